"""Which depths of an elastic network a training step runs: the branch strategies.

A step is a list of :class:`Pass`: some rows of the micro-batch through the network at one depth, with a weight and a target. The
draws are a function of (seed, step, micro-batch) alone, so every process of a distributed run draws the same depths, and a
resumed run the same ones as an unbroken one.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from .errors import RestoreError

STRATEGIES = ("alternate", "per_sample", "sandwich", "largest_only")


class Pass(NamedTuple):
    """One forward and backward: ``rows`` of the micro-batch, at ``depth`` (a name, or None for a network of one depth)."""
    depth: str | None
    rows: slice
    weight: float
    distill: bool = False       # learn the detached output of the first pass instead of the target


@dataclasses.dataclass
class Branches:
    """How a training step chooses among the depths of the network.

    strategy: ``alternate`` (one depth per step, DyNet's own), ``per_sample`` (the micro-batch is cut into ``groups``, each with its
        own depth), ``sandwich`` (largest, smallest and one random depth in every step, arXiv 1903.05134), ``largest_only``,
        or ``single:NAME`` for one depth, by name or as repeats (``single:2,3,3,4``).
    probability: chance of each depth by name, for ``alternate`` and ``per_sample``; empty means equal chances.
    groups: for ``per_sample``: number of groups in a micro-batch; 0 means one group per sample.
    distill: for ``sandwich``: the smaller depths learn the largest one's detached output (arXiv 2003.11142).
    """
    strategy: str = "alternate"
    probability: dict[str, float] = dataclasses.field(default_factory=dict)
    groups: int = 0
    distill: bool = False

    def check(self):
        if self.strategy not in STRATEGIES and not self.strategy.startswith("single:"):
            raise RestoreError(f"strategy: {self.strategy!r} is none of {', '.join(STRATEGIES)}, single:DEPTH")
        if self.groups < 0:
            raise RestoreError(f"groups: {self.groups} is negative")
        if any(p < 0 for p in self.probability.values()) or (self.probability and not sum(self.probability.values())):
            raise RestoreError(f"probability: {self.probability} must be positive or 0, and not all 0")
        if self.distill and self.strategy != "sandwich":
            raise RestoreError(f"distill: only the sandwich strategy distils, not {self.strategy}")
