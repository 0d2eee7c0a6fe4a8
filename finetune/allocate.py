"""Allocation: which repeats and how many channels each level keeps so that a network fits a budget.

From the whole network on, the change that loses least quality for what it saves is made, one repeat or an eighth of one
level's channels at a time, until the budget holds. What a change loses is what :mod:`finetune.importance` measured of it alone.
The result is the ``model`` section of a recipe, of a network with fresh weights; where no channel goes, the weights are kept.
"""

import bisect
import dataclasses
import itertools
import json
import re
from pathlib import Path

import numpy as np
import torch

from restore import checkpoint
from restore.depth import count_macs, count_parameters, parse_depth
from restore.errors import RestoreError
from restore.models import create_model
from restore.text import table as text_table

from . import importance as measuring
from .mixture import open_pairs
from .teacher import largest
from .validation import centred_pairs

SIDE = 256              # of the image whose multiply-accumulates a budget counts
CHANNELS = 4            # widths are multiples of this
_UNITS = {"k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}


@dataclasses.dataclass(frozen=True)
class Budget:
    """At most ``limit`` ``"macs"`` of a 256x256 image, or ``"params"``."""
    kind: str
    limit: float
    text: str


def parse_budget(text):
    """``"3gmacs"``, ``"500kparams"`` or ``"1.5mparams"`` as a :class:`Budget`; raises RestoreError for other text."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt])(macs|params)\s*", str(text), re.IGNORECASE)
    if not match or not float(match[1]):
        raise RestoreError(f"--budget {text!r}: give multiply-accumulates of a {SIDE}x{SIDE} image or parameters, such as "
                           "3gmacs or 500kparams")
    return Budget(match[3].lower(), float(match[1]) * _UNITS[match[2].lower()], str(text).strip())


@dataclasses.dataclass
class Plan:
    """A network's levels: ``repeats`` and ``widths`` (None where the network has no width of each level), and what they cost.

    expected: dB that the measured costs of its changes add up to; None where nothing was measured.
    """
    repeats: tuple
    widths: tuple | None
    macs: int
    parameters: int
    expected: float | None = None


class Space:
    """What can be changed in a network, and what the changed network costs; ``model`` itself stays as it is."""

    def __init__(self, model, repeats, repeats_only=False):
        self.name, self.repeats = model.name, tuple(repeats)
        self.options = {key: value for key, value in model.config.items() if key not in ("depths", "default_depth")}
        width = self.options.get("width")
        self.by_level = isinstance(width, (list, tuple)) and len(width) == model.levels and not repeats_only
        self.widths = tuple(width) if self.by_level else None
        self.known = {}

    def model_section(self, repeats, widths):
        """``{"name", "options", "depths"}`` as a recipe's ``model`` has it, one depth called ``allocated``."""
        options = {**self.options, "width": list(widths)} if widths else self.options
        return {"name": self.name, "depths": {"allocated": list(repeats)}, "options": options}

    def plan(self, repeats, widths, expected=None):
        """The :class:`Plan` with its costs."""
        if (repeats, widths) not in self.known:
            section = self.model_section(repeats, widths)
            with torch.device("meta"):
                model = create_model(self.name, **section["options"], depths=section["depths"], default_depth="allocated")
            self.known[repeats, widths] = count_macs(model, SIDE, SIDE), count_parameters(model)
        return Plan(repeats, widths, *self.known[repeats, widths], expected)

    def narrowed(self, level, share):
        """Channels of a level without ``share`` of them, a multiple of 4."""
        return max(CHANNELS, round(self.widths[level] * (1 - share) / CHANNELS) * CHANNELS) if share else self.widths[level]

    def choices(self, level):
        """The widths that a level may have, falling by about an eighth."""
        return sorted({self.narrowed(level, n / 8) for n in range(8)}, reverse=True) if self.by_level else [None]


def cost(plan, kind):
    """What a plan costs in the unit of a budget."""
    return plan.macs if kind == "macs" else plan.parameters


def run(start, pairs, budget, out, depth=None, images=8, side=128, repeats_only=False, compare=False, tell=print):
    """Measure and allocate, and write ``student.yaml``, ``importance.png`` and ``importance.json`` into the folder ``out``.

    start: a checkpoint with depths; depth: what is cut, by default its largest. pairs: sets of pairs, each ``[DIR]`` or
    ``[IN, GT]``; of each the centres (``side`` pixels, 0: whole) of ``images`` are used. compare: write ``uniform.yaml``
    too, the network with every level cut alike. Returns the :class:`Plan`. Raises RestoreError for what cannot be.
    """
    from tqdm import tqdm

    from restore.files import write_bytes
    budget = parse_budget(budget)
    if images < 1 or side < 0:
        raise RestoreError(f"--images {images} --side {side}: give at least one image, and pixels or 0")
    model = checkpoint.load(start)
    measuring.level_convolutions(model)              # refuses a network without levels before anything is read
    repeats = model.repeats(parse_depth(depth)) if depth else largest(model)
    space = Space(model, repeats, repeats_only)
    held = [pair for given in pairs for pair in _opened(given, images, side)]
    shares = measuring.SHARES if space.by_level else ()
    with tqdm(total=1 + sum(r - 1 for r in repeats) + len(repeats) * len(shares), unit="change", dynamic_ncols=True) as bar:
        importance = measuring.measure(model, held, repeats, shares=shares, progress=bar.update)
    tell(measuring.table(importance))
    plan = allocate(space, importance, budget)
    tell(table(space, plan))
    tell(f"what was measured of these changes adds up to {plan.expected:.2f} dB, before any training")
    out = Path(out)
    write(space, plan, out / "student.yaml", start)
    draw(importance, space, plan, out / "importance.png")
    facts = {"start": str(start), "budget": budget.text, "images": len(held), "importance": dataclasses.asdict(importance),
             "plan": dataclasses.asdict(plan)}
    if compare:
        alike = uniform(space, budget)
        write(space, alike, out / "uniform.yaml", start)
        tell(f"cut alike in every level: repeats {alike.repeats}" + (f", channels {alike.widths}" if alike.widths else "")
             + f": {costs_of(alike)}")
        facts["uniform"] = dataclasses.asdict(alike)
    write_bytes(out / "importance.json", json.dumps(facts, indent=1) + "\n")
    return plan


def _opened(given, images, side):
    entry = given[0] if len(given) == 1 else list(given)
    if len(given) > 2:
        raise RestoreError(f"--pairs {' '.join(given)}: give one set of pairs, or two folders, degraded and clean")
    return centred_pairs(open_pairs(entry, "pairs", "train").pairs, Path(given[0]).name, images, side)


def allocate(space, importance, budget):
    """The :class:`Plan` within ``budget`` by measured ``importance``; raises RestoreError if the least network does not fit."""
    choices = [space.choices(level) for level in range(len(space.repeats))]
    shorter = [_rising(costs) for costs in importance.without_repeats]
    narrower = [_rising(_between(costs, [1 - width / widths[0] for width in widths])) if space.by_level else [0.0]
                for costs, widths in zip(importance.without_channels, choices)]

    def made(change):
        removed, dropped = change
        repeats = tuple(r - n for r, n in zip(space.repeats, removed))
        widths = tuple(widths[n] for widths, n in zip(choices, dropped)) if space.by_level else None
        lost = sum(costs[n] for costs, n in zip(shorter, removed)) + sum(costs[n] for costs, n in zip(narrower, dropped))
        return space.plan(repeats, widths, lost)

    def changes(change, by):
        """One repeat, or one step of channels, of one level less (``by`` 1) or more (-1)."""
        removed, dropped = change
        for level in range(len(space.repeats)):
            if 0 <= removed[level] + by < len(shorter[level]):
                yield _stepped(removed, level, by), dropped
            if 0 <= dropped[level] + by < len(choices[level]):
                yield removed, _stepped(dropped, level, by)

    change = [0] * len(space.repeats), [0] * len(space.repeats)       # repeats and steps of channels taken away, by level
    plan = made(change)
    while (before := cost(plan, budget.kind)) > budget.limit:
        here, offers = plan, [(other, made(other)) for other in changes(change, 1)]
        offers = [(other, offer) for other, offer in offers if cost(offer, budget.kind) < before]
        if not offers:
            raise RestoreError(f"--budget {budget.text}: not reached: {space.name} at its least still takes {costs_of(plan)}"
                               + ("" if space.by_level else "; only its repeats can change"
                                  + (", which take no parameters" if budget.kind == "params" else "")))
        change, plan = min(offers, key=lambda item: (item[1].expected - here.expected) / (before - cost(item[1], budget.kind)))
    while fitting := [(other, offer) for other in changes(change, -1)
                      if cost(offer := made(other), budget.kind) <= budget.limit]:
        change, plan = min(fitting, key=lambda item: item[1].expected)      # the last step went too far; what fits returns
    return plan


def uniform(space, budget):
    """The :class:`Plan` with every level cut alike: the same share of its channels and of its repeats, up or down to whole ones.

    Of the plans within the budget it is the one that comes nearest to it.
    """
    most, fitting = max(space.repeats), []
    for kept, repeats in _cut_alike(space.repeats):

        def made(step, repeats=repeats):
            widths = tuple(space.narrowed(i, step / 64) for i in range(len(repeats))) if space.by_level else None
            return space.plan(repeats, widths)

        steps = range(64 if space.by_level else 1)
        first = bisect.bisect_left(steps, -budget.limit, key=lambda step: -cost(made(step), budget.kind))
        if first < len(steps):
            fitting.append((kept, first, made(first)))
    if not fitting:
        raise RestoreError(f"--budget {budget.text}: no network cut alike in every level fits")
    # nearest to the budget; within 3 % of that, repeats and channels cut as nearly alike as can be
    nearest = max(cost(plan, budget.kind) for _, _, plan in fitting)
    near = [item for item in fitting if cost(item[2], budget.kind) >= 0.97 * nearest]
    return min(near, key=lambda item: abs(item[0] / most - (1 - item[1] / 64)))[2]


def _cut_alike(repeats):
    """``(k, repeats)`` with k of the most repeats kept, and of the other levels as great a share, rounded down or up."""
    most = max(repeats)
    for kept in range(1, most + 1):
        rounded = [{max(1, r * kept // most), -(-r * kept // most)} for r in repeats]
        yield from ((kept, each) for each in itertools.product(*map(sorted, rounded)))


def costs_of(plan):
    """A plan's costs as text."""
    return f"{plan.macs / 1e9:.3g} GMACs at {SIDE}x{SIDE}, {plan.parameters / 1e6:.3f} M parameters"


def table(space, plan):
    """What every level keeps, as lines of text."""
    rows = []
    for level, (before, after) in enumerate(zip(space.repeats, plan.repeats)):
        row = (str(level + 1), f"{before} -> {after}")
        if plan.widths:
            whole, kept = space.widths[level], plan.widths[level]
            row = (*row, f"{whole} -> {kept}", f"{1 - kept / whole:.0%}")
        rows.append(row)
    head = ("level", "repeats", "channels", "channels removed")[:len(rows[0])]
    whole = space.plan(space.repeats, space.widths)
    return "\n".join([*text_table(head, rows), f"{costs_of(whole)} -> {costs_of(plan)}"])


def write(space, plan, path, start):
    """The ``model`` section of a recipe as YAML; where no width changed, also ``start``, whose weights it keeps."""
    import yaml

    from restore.files import write_bytes
    section = space.model_section(plan.repeats, plan.widths)
    content = {"model": section}
    if plan.widths == space.widths:
        content = {"start": str(start), "model": {**section, "options": {}}}
    comment = f"# {Path(str(start)).name} as python -m finetune allocate cut it: {costs_of(plan)}\n"
    write_bytes(path, comment + yaml.safe_dump(content, sort_keys=False, default_flow_style=None))


def draw(importance, space, plan, path):
    """The costs by level, and what each level keeps, as a PNG."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot

    from restore.files import atomic_path
    figure, axes = pyplot.subplots(1, 2 + space.by_level, figsize=(8 + 4 * space.by_level, 3.6), layout="constrained")
    for level, costs in enumerate(importance.without_repeats):
        axes[0].plot(range(len(costs)), costs, "o-", label=f"level {level + 1}")
    axes[0].set_xlabel("repeats removed from one level")
    axes[0].set_xticks(range(max(map(len, importance.without_repeats))))
    axes[0].set_ylabel("dB lost")
    if space.by_level:
        for level, costs in enumerate(importance.without_channels):
            axes[1].plot([100 * share for share in costs], list(costs.values()), "o-", label=f"level {level + 1}")
        axes[1].set_xlabel("% of one level's channels removed")
    kept, places = axes[-1], range(1, len(plan.repeats) + 1)
    kept.bar([p - 0.2 for p in places], [100 * a / b for a, b in zip(plan.repeats, space.repeats)], 0.4, label="repeats")
    if plan.widths:
        kept.bar([p + 0.2 for p in places], [100 * a / b for a, b in zip(plan.widths, space.widths)], 0.4, label="channels")
    kept.set_xticks(list(places), [f"level {p}" for p in places])
    kept.set_ylabel("% kept")
    kept.set_ylim(0, 105)
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.legend(fontsize=9)
    figure.suptitle(f"{space.name}: {costs_of(plan)}", fontsize=11)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)
    pyplot.close(figure)


def _between(costs, shares):
    """Measured ``{share: cost}`` at other shares, by straight lines."""
    known = sorted(costs)
    return np.interp(shares, known, [costs[share] for share in known]).tolist()


def _rising(costs):
    """Costs of taking away ever more: never falling, never below zero, so that noise of the measurement is no gain."""
    risen = []
    for value in costs:
        risen.append(max(value, risen[-1] if risen else 0.0, 0.0))
    return risen


def _stepped(counts, level, by):
    return [n + by * (i == level) for i, n in enumerate(counts)]
