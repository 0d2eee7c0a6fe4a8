"""Which depths of an elastic network a training step runs: the branch strategies.

A step is a list of :class:`Pass`: some rows of the micro-batch through the network at one depth, with a weight and a
target. The draws are a function of (seed, step, micro-batch) alone, so every process of a distributed run draws the
same depths, and a resumed run the same ones as an unbroken one.
"""

import dataclasses
import itertools
from typing import NamedTuple

import numpy as np

from .errors import RestoreError

STRATEGIES = ("alternate", "per_sample", "sandwich", "largest_only")


class Pass(NamedTuple):
    """One forward and backward: ``rows`` of the micro-batch at ``depth`` (a name; None where there is only one)."""
    depth: str | None
    rows: slice
    weight: float
    distill: bool = False       # learn the detached output of the first pass instead of the target


@dataclasses.dataclass
class Branches:
    """How a training step chooses among the depths of the network.

    strategy: ``alternate`` (one depth per step, DyNet's own), ``per_sample`` (the micro-batch is cut into ``groups``,
        each with its own depth), ``sandwich`` (largest, smallest and one random depth in every step, arXiv 1903.05134),
        ``largest_only``, or ``single:NAME`` for one depth, by name or as repeats (``single:2,3,3,4``).
    probability: chance of each depth by name, for ``alternate`` and ``per_sample``; empty means equal chances.
    groups: for ``per_sample``: number of groups in a micro-batch; 0 means one group per sample.
    distill: for ``sandwich``: the smaller depths learn the largest one's detached output (arXiv 2003.11142).
    grow: share of the run in which the depths come in one after another, by their cost: the cheapest alone at first, all
        of them from then on. With shared weights cheap steps teach the deep ones too (progressive stacking, Gong et al.
        2019), and the same multiply-accumulates buy more of them. 0: all depths from the start.
    """
    strategy: str = "alternate"
    probability: dict[str, float] = dataclasses.field(default_factory=dict)
    groups: int = 0
    distill: bool = False
    grow: float = 0.0

    def check(self):
        if self.strategy not in STRATEGIES and not self.strategy.startswith("single:"):
            raise RestoreError(f"strategy: {self.strategy!r} is none of {', '.join(STRATEGIES)}, single:DEPTH")
        if self.groups < 0:
            raise RestoreError(f"groups: {self.groups} is negative")
        if any(p < 0 for p in self.probability.values()) or (self.probability and not sum(self.probability.values())):
            raise RestoreError(f"probability: {self.probability} must be positive or 0, and not all 0")
        if not 0 <= self.grow < 1:
            raise RestoreError(f"grow: {self.grow} is not from 0 to below 1")
        if self.grow and (self.strategy == "largest_only" or self.strategy.startswith("single:")):
            raise RestoreError(f"grow: {self.strategy} trains one depth alone, so nothing can come in later")
        if self.distill and self.strategy != "sandwich":
            raise RestoreError(f"distill: only the sandwich strategy distils, not {self.strategy}")


def plan(branches, depths, seed, step, micro=0, rows=1, steps=0):
    """The passes over micro-batch ``micro`` of a training step: a list of :class:`Pass`, whose weights add up to 1.

    depths: names of the depths to train, the cheapest first, as :func:`depth_names` gives them. rows: samples in the
        micro-batch. steps: of the whole run; only ``branches.grow`` looks at it.
    """
    depths = depths[:_grown(branches, len(depths), step, steps)]
    if branches.strategy.startswith("single:"):
        return [Pass(branches.strategy.partition(":")[2], slice(0, rows), 1.0)]
    if branches.strategy == "largest_only" or len(depths) == 1:
        return [Pass(depths[-1], slice(0, rows), 1.0)]
    if branches.strategy == "alternate":                        # one draw a step, also where it has many micro-batches
        return [Pass(_draw(branches, depths, np.random.default_rng([seed, step, 4])), slice(0, rows), 1.0)]
    rng = np.random.default_rng([seed, step, 5, micro])
    if branches.strategy == "per_sample":
        edges = np.linspace(0, rows, min(branches.groups or rows, rows) + 1).round().astype(int)
        drawn = [(_draw(branches, depths, rng), int(a), int(b)) for a, b in itertools.pairwise(edges)]
        return [Pass(name, slice(a, b), (b - a) / rows) for name, a, b in _joined(drawn)]
    middle = depths[1:-1]
    names = [depths[-1], depths[0], *([middle[rng.integers(len(middle))]] if middle else [])]
    return [Pass(name, slice(0, rows), 1 / len(names), branches.distill and i > 0) for i, name in enumerate(names)]


def _grown(branches, count, step, steps):
    """How many of ``count`` depths, the cheapest first, take part in a step."""
    if step >= branches.grow * steps:
        return count
    return 1 + int((count - 1) * step / (branches.grow * steps))


def _draw(branches, depths, rng):
    chances = np.array([branches.probability.get(name, 0.0) if branches.probability else 1.0 for name in depths])
    if not chances.sum():                   # of the depths that take part already, none has a chance
        chances[:] = 1
    return depths[rng.choice(len(depths), p=chances / chances.sum())]


def _joined(drawn):
    """Neighbouring groups of equal depth as one: the same gradient from fewer passes."""
    joined = []
    for name, start, end in drawn:
        if joined and joined[-1][0] == name:
            joined[-1] = (name, joined[-1][1], end)
        else:
            joined.append((name, start, end))
    return joined


def depth_names(model, branches):
    """Names of the depths that the strategy trains, the cheapest first; [None] for a network of one depth.

    In the order of their cost, as a draw must not depend on how a recipe lists them. Raises RestoreError for an unknown
    name.
    """
    from .depth import parse_depth
    for name in branches.probability:
        if name not in model.depths:
            known = ", ".join(model.depths) or "one fixed depth"
            raise RestoreError(f"branches.probability: no depth {name!r}; the network has {known}")
    if branches.strategy.startswith("single:"):
        name = branches.strategy.partition(":")[2]
        try:
            model.repeats(parse_depth(name))
        except RestoreError as error:
            raise RestoreError(f"branches.strategy: {error}") from None
        return [name]
    if not model.depths:
        return [None]
    cost = depth_costs(model, list(model.depths))
    names = sorted(model.depths, key=lambda name: (cost[name], name))
    return names[-1:] if branches.strategy == "largest_only" else names


def depth_costs(model, names, side=64):
    """Multiply-accumulates of one ``side`` x ``side`` image at each depth, by name."""
    from .depth import count_macs, parse_depth
    return {name: count_macs(model, side, side, parse_depth(name)) for name in names}


def shares(branches, names):
    """How often, on average, a sample goes through each depth in a step; ``names`` with the cheapest first."""
    if branches.grow and len(names) > 1:
        whole = dataclasses.replace(branches, grow=0.0)
        stages = [(1 - branches.grow, names), *((branches.grow / (len(names) - 1), names[:k]) for k in range(1, len(names)))]
        parts = [(weight, shares(whole, some)) for weight, some in stages]
        return {name: sum(weight * part.get(name, 0.0) for weight, part in parts) for name in names}
    if branches.strategy == "largest_only" or len(names) == 1:
        return {names[-1]: 1.0}
    if branches.strategy.startswith("single:"):
        return {branches.strategy.partition(":")[2]: 1.0}
    if branches.strategy == "sandwich":
        return {name: 1.0 if name in (names[0], names[-1]) else 1 / (len(names) - 2) for name in names}
    chances = {name: branches.probability.get(name, 0.0) if branches.probability else 1.0 for name in names}
    if not sum(chances.values()):
        chances = dict.fromkeys(names, 1.0)
    return {name: chance / sum(chances.values()) for name, chance in chances.items()}
