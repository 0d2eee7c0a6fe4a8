"""A study: many small pre-training runs at equal cost, scored at many depths, and what the differences between them are.

A study is a YAML file (:class:`Study`): a base recipe, named arms that change some of its keys, seeds, and the training
MACs that every run may spend. An arm that does cheaper steps does more of them. Each pair of an arm and a seed is a run
of its own below ``OUT/runs``, resumed to the bit as any other; one that is trained and scored is never touched again.
"""

import dataclasses
import functools
import itertools
import json
import shutil
import time
from dataclasses import field
from pathlib import Path
from typing import Any, Literal

from restore import branches as branching
from restore import checkpoint
from restore.depth import count_macs, parse_depth
from restore.errors import RestoreError
from restore.files import write_bytes
from restore.recipe import from_dict, set_key, to_dict

from .bench import step_seconds
from .mixture import Mixture
from .recipe import Recipe
from .run import build_data, build_model, data_device, run
from .study_scores import COLUMNS, Scores, load_images, score

FOLDER, DONE = "runs", "scores.csv"


@dataclasses.dataclass
class Arm:
    """What one arm changes.

    keys: dotted keys of the recipe and their values (``branches.strategy: sandwich``).
    cost: share of the study's cost; ``share`` gives a ``single:DEPTH`` what the base arm spends on that depth, so that
        all such arms together cost as much as the base.
    first: keys of a first phase, on top of ``keys``; it spends ``first_cost`` of the arm's cost, and the second phase,
        by ``keys`` alone, starts from its weights. So a pre-training task is judged by what comes after it.
    seeds: how many of the study's seeds it runs; 0 means all.
    against: the arm that it is compared with; empty means the study's ``base``.
    group: arms of one group share a table and a figure.
    """
    keys: dict[str, Any] = field(default_factory=dict)
    cost: float | Literal["share"] = 1.0
    first: dict[str, Any] = field(default_factory=dict)
    first_cost: float = 0.5
    seeds: int = 0
    against: str = ""
    group: str = "main"

    def check(self):
        if self.cost != "share" and not 0 < self.cost < float("inf"):
            raise RestoreError(f"cost: {self.cost} must be positive, or share")
        if not 0 < self.first_cost < 1:
            raise RestoreError(f"first_cost: {self.first_cost} is not between 0 and 1")
        if self.seeds < 0:
            raise RestoreError(f"seeds: {self.seeds} is negative")


@dataclasses.dataclass
class Study:
    """A study.

    recipe: the base, a recipe of pre-training; its ``seed``, ``steps`` and ``warmup`` follow from the keys below.
    cost: training MACs of a run, forward and backward (three times the forward pass).
    warmup: share of a run's steps. base: the arm that the others are compared with.
    depths: depths that every run is scored at, by name or as repeats (``1,1,1,2``), trained or not.
    """
    title: str = ""
    recipe: Recipe = field(default_factory=Recipe)
    cost: float = 0.0
    warmup: float = 0.05
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    base: str = "alternate"
    arms: dict[str, Arm] = field(default_factory=dict)
    depths: list[str] = field(default_factory=list)
    scores: Scores = field(default_factory=Scores)

    def check(self):
        if not 0 < self.cost < float("inf"):
            raise RestoreError(f"cost: {self.cost} must be the positive number of training MACs of a run")
        if not 0 <= self.warmup < 1:
            raise RestoreError(f"warmup: {self.warmup} must be a share from 0 to below 1")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise RestoreError(f"seeds: {self.seeds} must list different numbers of 0 or more")
        for name in [self.base, *(arm.against for arm in self.arms.values() if arm.against)]:
            if name not in self.arms:
                raise RestoreError(f"base: no arm {name!r}; there are {', '.join(self.arms) or 'none'}")
        for name in self.arms:
            if not name.replace("-", "").replace("_", "").isalnum():
                raise RestoreError(f"arms: {name!r} names a folder; use letters, digits, - and _")
        if not self.depths:
            raise RestoreError("depths: list the depths to score, by name or as repeats such as 1,1,1,2")


class Run:
    """One arm with one seed: its phases as recipes with their steps, and its folder."""

    def __init__(self, study, name, seed, out):
        self.arm, self.name, self.seed = study.arms[name], name, seed
        self.folder = Path(out) / FOLDER / f"{name}-{seed}"
        self.phases = _phases(study, name, seed, self.folder)

    @property
    def label(self):
        return f"{self.name}, seed {self.seed}"

    def key(self, study):
        """All that decides this run's scores, as it is kept beside them."""
        return {"phases": [to_dict(recipe) for recipe in self.phases], "depths": study.depths,
                "scores": {**to_dict(study.scores), "data": ""}}

    def is_done(self, study):
        """Whether it was trained and scored as the study now says; raises RestoreError if it was trained otherwise."""
        kept = self.folder / "run.json"
        if not kept.exists():
            return False
        before, now = json.loads(kept.read_text()), json.loads(json.dumps(self.key(study)))
        if [_moved(p) for p in before["phases"]] != [_moved(p) for p in now["phases"]]:
            raise RestoreError(f"{self.folder}: was trained by other keys than the study now has for {self.name}; remove "
                               "this folder to train it anew, or use another OUT")
        return before == {**now, "phases": before["phases"]} and (self.folder / DONE).exists()

    def go(self, study, images):
        """Train what is missing, score, and keep the scores."""
        for place, recipe in enumerate(self.phases):
            out = self._phase_folder(place)
            if not (out / "final" / "config.json").exists() or not (self.folder / "run.json").exists():
                run(recipe, out, resume=True, samples=_samples(recipe))
        model = checkpoint.load(self._phase_folder(len(self.phases) - 1) / "final")
        trained = {model.repeats(parse_depth(n)) for n in branching.depth_names(model, self.phases[-1].branches)}
        rows = score(model, study.depths, images, study.recipe.device)
        steps = sum(recipe.steps for recipe in self.phases)
        for row in rows:
            row |= {"arm": self.name, "seed": self.seed, "steps": steps, "trained": parse_depth(row["repeats"]) in trained}
        write_bytes(self.folder / DONE, _csv(rows))
        write_bytes(self.folder / "run.json", json.dumps(self.key(study), indent=1) + "\n")
        for place in range(len(self.phases)):           # the weights stay; what was for resuming is of no more use
            shutil.rmtree(self._phase_folder(place) / "checkpoints", ignore_errors=True)

    def _phase_folder(self, place):
        return self.folder / f"phase-{place + 1}"


def runs(study, out):
    """All runs, seed by seed, so that a study that is stopped early has compared every arm.

    Raises RestoreError for an arm that cannot be run as it is written.
    """
    return [Run(study, name, seed, out) for place, seed in enumerate(study.seeds) for name, arm in study.arms.items()
            if place < (arm.seeds or len(study.seeds))]


def go(study, out, planned, only=(), part=(1, 1)):
    """Run what is missing of ``planned`` (see :func:`runs`) and write the report. ``only`` names arms; ``part`` is (i, n):
    every n-th run from the i-th, for n processes at once.
    """
    from .study_report import write_report
    unknown = sorted(set(only) - set(study.arms))
    if unknown:
        raise RestoreError(f"--only: no arm {unknown[0]!r}; there are {', '.join(study.arms)}")
    out = Path(out)
    chosen = [r for r in planned[part[0] - 1::part[1]] if not only or r.name in only]
    waiting = [r for r in chosen if not r.is_done(study)]
    images = load_images(study.scores)
    print(f"{len(planned)} runs, {len(waiting)} to do here; scored on {len(images)} images at {len(study.depths)} depths")
    spent, started = 0.0, time.monotonic()
    total = sum(_macs(study, r) for r in waiting)
    for place, item in enumerate(waiting, start=1):
        print(f"[{place}/{len(waiting)}] {item.label}: {' + '.join(f'{p.steps:,}' for p in item.phases)} steps", flush=True)
        item.go(study, images)
        spent += _macs(study, item)
        elapsed = time.monotonic() - started
        print(f"    done after {elapsed / 60:.1f} min in all, about {elapsed * (total / spent - 1) / 60:.0f} min left", flush=True)
        write_report(study, out, collect(planned, study), images)
    if not waiting:
        write_report(study, out, collect(planned, study), images)
    print(f"{out / 'summary.md'}")


def parse_part(text):
    """``"2/3"`` as (2, 3); None as (1, 1). Raises RestoreError for anything else."""
    first, slash, last = (text or "1/1").partition("/")
    if not slash or not first.isdigit() or not last.isdigit() or not 1 <= int(first) <= int(last):
        raise RestoreError(f"--part {text}: give I/N, such as 1/2 and 2/2 for two processes")
    return int(first), int(last)


def collect(planned, study):
    """The rows of all runs that are done, as a DataFrame; raises RestoreError if there is none."""
    import pandas
    frames = [pandas.read_csv(r.folder / DONE, dtype={"image": str, "depth": str}) for r in planned if r.is_done(study)]
    if not frames:
        raise RestoreError("no run of this study is done yet")
    return pandas.concat(frames, ignore_index=True)


def estimate(study, planned, timed=3):
    """The ``planned`` runs as a table of arms, with the hours that it will take here, from ``timed`` steps of the base recipe."""
    import torch
    recipe = _with(study.recipe, study.arms[study.base].keys)
    device = torch.device("cuda" if torch.cuda.is_available() and recipe.device != "cpu" else "cpu")
    seconds = macs = 0.0
    for name in branching.depth_names(build_model(recipe), branching.Branches()):
        model = build_model(recipe)
        macs += 3 * count_macs(model, recipe.data.crop, recipe.data.crop, parse_depth(name)) * recipe.batch_size
        seconds += step_seconds(model, parse_depth(name), recipe.batch_size, recipe.data.crop, device, timed,
                                recipe.precision, recipe.channels_last, recipe.compile)[0]
    total = sum(_macs(study, r) for r in planned)
    lines = [f"{'arm':24}  {'seeds':>5}  {'steps':>15}  {'GMACs a step':>12}  {'TMACs a run':>11}"]
    for name in study.arms:
        mine = [r for r in planned if r.name == name]
        steps, cost = mine[0].phases, _macs(study, mine[0])
        lines.append(f"{name:24}  {len(mine):5}  {' + '.join(f'{p.steps:,}' for p in steps):>15}  "
                     f"{cost / sum(p.steps for p in steps) / 1e9:12.2f}  {cost / 1e12:11.3f}")
    hours = total * seconds / macs / 3600
    return "\n".join([*lines, f"{len(planned)} runs, {total / 1e12:.2f} TMACs: about {hours:.2f} hours of training on this device "
                      f"({macs / seconds / 1e9:.1f} GMACs/s in the base recipe's steps), scoring not counted"])


def _phases(study, name, seed, folder):
    arm = study.arms[name]
    cost = study.cost * (_share(study, arm) if arm.cost == "share" else arm.cost)
    if not arm.first:
        return [_recipe(study, name, arm.keys, seed, cost)]
    first = _recipe(study, name, {**arm.keys, **arm.first}, seed, cost * arm.first_cost)
    start = str((folder / "phase-1" / "final").resolve())
    return [first, _recipe(study, name, {**arm.keys, "start": start}, seed, cost * (1 - arm.first_cost))]


def _recipe(study, name, keys, seed, cost):
    try:
        recipe = _with(study.recipe, {**keys, "seed": seed})
        steps = steps_within(recipe, cost)
    except RestoreError as error:
        raise RestoreError(f"arms.{name}: {error}") from None
    return dataclasses.replace(recipe, steps=steps, warmup=min(int(study.warmup * steps), steps - 1))


def _with(recipe, keys):
    values = to_dict(recipe)
    for key, value in keys.items():
        set_key(values, key, value)
    return from_dict(Recipe, values)


def steps_within(recipe, cost):
    """The number of steps whose planned passes cost ``cost`` training MACs, by the draws that the run will make.

    Raises RestoreError where not even one step fits.
    """
    names, price = _prices(json.dumps([to_dict(recipe)[key] for key in _PRICED]))
    micro = recipe.batch_size // recipe.accumulate

    def affordable(steps):
        """How many steps the cost pays, of a run that is planned for ``steps``."""
        left = cost
        for step in itertools.count():
            left -= sum(price[item.depth] * (item.rows.stop - item.rows.start) for part in range(recipe.accumulate)
                        for item in branching.plan(recipe.branches, names, recipe.seed, step, part, micro, steps))
            if left < 0 or (steps and step >= steps):
                return step

    if not recipe.branches.grow:
        steps = affordable(0)
    else:                                   # how long the cheap steps last depends on the number of all steps
        lowest, highest = 0, int(cost / (price[names[0]] * recipe.batch_size)) + 1
        while highest - lowest > 1:
            middle = (lowest + highest) // 2
            lowest, highest = (middle, highest) if affordable(middle) >= middle else (lowest, middle)
        steps = lowest
    if not steps:
        raise RestoreError(f"cost: {cost:.3g} MACs are less than one step")
    return steps


_PRICED = ("model", "data", "branches", "workers")       # workers, as a recipe is refused whose data do not go with them


@functools.lru_cache(maxsize=256)
def _prices(keys):
    """``(names of the trained depths, {name: training MACs of one sample})`` of a recipe's keys ``_PRICED`` as JSON."""
    recipe = from_dict(Recipe, dict(zip(_PRICED, json.loads(keys))))
    model, side = build_model(recipe), recipe.data.crop
    names = branching.depth_names(model, recipe.branches)
    return names, {name: 3 * count_macs(model, side, side, parse_depth(name)) for name in names}


def _samples(recipe, known={}):  # noqa: B006  kept from run to run
    """The recipe's samples; runs of the same data share their decoded images and their pool."""
    made = Mixture(build_data(recipe)[0], recipe, data_device(recipe))
    plain = to_dict(recipe)
    plain["targets"].pop("classify")
    key = json.dumps([plain[name] for name in ("seed", "data", "noise", "jpeg", "targets")])
    if key not in known:
        while len(known) > 1:                                       # the runs come seed by seed
            known.pop(next(iter(known)))
        known[key] = made.images, made.pool
    made.images, made.pool = known[key]
    return made


def _share(study, arm):
    """Part of the base arm's MACs that go through the one depth which ``arm`` trains."""
    recipe, single = _with(study.recipe, study.arms[study.base].keys), _with(study.recipe, arm.keys)
    depth = single.branches.strategy.partition(":")[2]
    if not depth:
        raise RestoreError("arms: cost: share is for an arm with branches.strategy single:DEPTH")
    names, price = _prices(json.dumps([to_dict(recipe)[key] for key in _PRICED]))
    parts = branching.shares(recipe.branches, names)
    if depth not in parts:
        raise RestoreError(f"arms: cost: share: {study.base} does not train the depth {depth}")
    costs = {name: part * price[name] for name, part in parts.items()}
    return costs[depth] / sum(costs.values())


def _macs(study, item):
    return study.cost * (_share(study, item.arm) if item.arm.cost == "share" else item.arm.cost)


def _moved(phase):
    """A phase's keys without those that say where things lie."""
    return {**phase, "start": bool(phase["start"]), "data": {**phase["data"], "source": ""}}


def _csv(rows):
    import csv
    import io
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
