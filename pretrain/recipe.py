"""The recipe of a pre-training run: everything that decides its weights, as typed dataclasses with defaults.

DyNet's authors published neither code nor most of these numbers; what is theirs and what is our choice stands in
``recipes/dynet.yaml``.
"""

import dataclasses
import math
from dataclasses import field
from typing import Any, Literal

from restore.errors import RestoreError
from restore.recipe import require_rising, require_within
from restore.settings import Training

TASKS = ("noise", "rain", "haze")


@dataclasses.dataclass
class Model:
    """The network: its name and constructor arguments (``options``), and the depths to train, by name, as repeats."""
    name: str = "dynet"
    depths: dict[str, list[int]] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)


@dataclasses.dataclass
class Data:
    """The clean images.

    source: a folder of images, of tar or of parquet shards; a shard; or a Hugging Face dataset (folder or name on the
        Hub).
    split: of a dataset, and the subfolder of that name in a folder of shards.
    crop: side of the training crops in pixels; smaller images are mirrored up to it.
    cache_mb: decoded images that each worker keeps, in megabytes; it changes the speed alone.
    pool: make only so many samples and use them again and again, in another order and mirrored or not; masks are drawn
        anew. For a slow CPU, where making rain and haze takes longer than a step of a small network. 0: always new ones.
    on_device: keep the decoded images on the GPU and crop and degrade them there (workers: 0); JPEG is still made on
        the CPU.
    """
    source: str = ""
    kind: Literal["auto", "folder", "tar", "parquet", "dataset"] = "auto"
    column: str = "image"
    split: str = "train"
    streaming: bool = False
    crop: int = 128
    cache_mb: float = 256.0
    pool: int = 0
    on_device: bool = False

    def check(self):
        if not self.source:
            raise RestoreError("source: give a folder of clean images, shards, or a Hugging Face dataset")
        require_within(self, 8, 4096, "crop")
        require_within(self, 0, math.inf, "cache_mb", "pool")


@dataclasses.dataclass
class Noise:
    """Noise in a share of the samples: Gaussian of ``sigma``, or for a share ``random`` uniform in +-``amplitude``.

    Strengths are drawn evenly from their range, on the 0..255 scale. truncate: cut to whole levels, as benchmarks do.
    """
    probability: float = 0.5
    random: float = 0.5
    sigma: tuple[float, float] = (5.0, 55.0)
    amplitude: tuple[float, float] = (5.0, 80.0)
    truncate: bool = False

    def check(self):
        require_within(self, 0, 1, "probability", "random")
        require_rising(self, 0, 255, "sigma", "amplitude")


@dataclasses.dataclass
class Jpeg:
    """JPEG artefacts in a share of the samples, at a quality drawn evenly."""
    probability: float = 0.5
    quality: tuple[int, int] = (20, 90)

    def check(self):
        require_within(self, 0, 1, "probability")
        require_rising(self, 1, 100, "quality")


@dataclasses.dataclass
class Masking:
    """Random square patches painted black in a share of the samples; ``patch`` lists sides in pixels to draw from."""
    probability: float = 1.0
    ratio: tuple[float, float] = (0.3, 0.3)
    patch: list[int] = field(default_factory=lambda: [16])

    def check(self):
        require_within(self, 0, 1, "probability")
        require_rising(self, 0, 1, "ratio")
        if not self.patch or min(self.patch) < 1:
            raise RestoreError(f"patch: {self.patch} must list sides of at least 1 pixel")


@dataclasses.dataclass
class Targets:
    """Masking on top of the degradations to be restored, and a head that tells them apart (MaskDCPT, arXiv 2510.13282).

    tasks: weight of each of noise, rain and haze; empty switches this off, otherwise it takes the place of ``noise``
        and ``jpeg``.
    sigma: noise levels to draw from, on the 0..255 scale. classify: weight of the classification loss, 0 for no head.
    """
    tasks: dict[str, float] = field(default_factory=dict)
    sigma: list[float] = field(default_factory=lambda: [15.0, 25.0, 50.0])
    classify: float = 0.1

    def check(self):
        for name, weight in self.tasks.items():
            if name not in TASKS:
                raise RestoreError(f"tasks: {name!r} is none of {', '.join(TASKS)}")
            if not 0 <= weight < math.inf:
                raise RestoreError(f"tasks.{name}: {weight} is not a weight")
        if self.tasks and not sum(self.tasks.values()):
            raise RestoreError("tasks: all weights are 0")
        if not self.sigma or not all(0 <= s <= 255 for s in self.sigma):
            raise RestoreError(f"sigma: {self.sigma} must list levels in 0..255")
        require_within(self, 0, math.inf, "classify")


@dataclasses.dataclass
class Validation:
    """Clean images kept apart: those of ``source``, or the corpus's ``last`` ones; ``side`` bounds them (0: whole)."""
    source: str = ""
    last: int = 4
    side: int = 256

    def check(self):
        require_within(self, 0, math.inf, "last", "side")


@dataclasses.dataclass
class Recipe(Training):
    """A pre-training run. The keys of :class:`restore.settings.Training` stand beside these at the top.

    start: a checkpoint of the same network whose weights the run begins with; empty for fresh ones.
    """
    start: str = ""
    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    noise: Noise = field(default_factory=Noise)
    jpeg: Jpeg = field(default_factory=Jpeg)
    masking: Masking = field(default_factory=Masking)
    targets: Targets = field(default_factory=Targets)
    validation: Validation = field(default_factory=Validation)

    def check(self):
        super().check()
        if self.data.on_device and self.workers:
            raise RestoreError(
                f"data.on_device: samples are then made in the training process; set workers: 0, not {self.workers}"
            )
