"""What a fine-tuning run is: the training loop's keys, the network, and below ``tasks`` the mixture."""

import dataclasses
import math
from dataclasses import field
from typing import Any, Literal

from restore.errors import RestoreError
from restore.layouts import TASKS
from restore.recipe import require_rising, require_within
from restore.training import Training

# What can be made on clean images; the others need pairs. `camera` is sensor noise as a camera's JPEG shows it, `pairs` are pairs of
# any one degradation.
SYNTHETIC = ("denoise", "derain", "dehaze", "jpeg", "camera")
KINDS = (*TASKS, "camera", "pairs")


@dataclasses.dataclass
class Task:
    """One task of the mixture: pairs, or clean images on which the degradation is made, or both.

    kind: one of ``KINDS``; by default the task's own name in the recipe.
    pairs: sets of pairs in any layout that ``restore/layouts.py`` knows, each a folder, a manifest, or a list of two folders
        (degraded, clean). Sets whose folders tell another task, or a test split, are left out and listed.
    clean: folders of clean images.
    synthetic: share of the samples made on clean images, where there are pairs too.
    transplant: ``derain``: share of the samples made on clean images whose rain is taken off a pair and put on them.
    weight: share of this task in the mixture, relative to the others (``data.balance: weights``).
    repeat: how often the task's images count (``data.balance: repeats``, PromptIR's way of balancing short sets).
    sigmas: noise levels (0..255) that ``denoise`` draws from; sigma_range: draw evenly from this range instead.
    truncate: ``denoise`` cuts the fraction off, as the benchmarks do (training without it loses up to 0.04 dB there).
    quality: lowest and highest quality of ``jpeg``.
    shrink: lowest and highest factor by which images are made smaller before they are cropped, drawn evenly; a crop then shows
        more of the scene, which haze and rain are told by. Empty: never.
    strength: lowest and highest factor by which what a pair's degradation adds to its clean image is multiplied: more haze, or
        less, of the same scene. Empty: as it is.
    gain: lowest and highest factor by which clean images are made darker or brighter first, cut off at white: a page or a wall
        in bright light is then no sign of haze. Empty: never.
    validation: sets to validate on; where there are none, the images of ``holdout`` scenes are kept back from training.
    """
    kind: str = ""
    pairs: str | list[str | list[str]] = field(default_factory=list)
    clean: str | list[str] = field(default_factory=list)
    synthetic: float = 0.5
    transplant: float = 0.0
    weight: float = 1.0
    repeat: int = 1
    sigmas: list[float] = field(default_factory=lambda: [15.0, 25.0, 50.0])
    sigma_range: list[float] = field(default_factory=list)
    truncate: bool = True
    quality: list[int] = field(default_factory=lambda: [10, 60])
    shrink: list[float] = field(default_factory=list)
    strength: list[float] = field(default_factory=list)
    gain: list[float] = field(default_factory=list)
    validation: str | list[str | list[str]] = field(default_factory=list)
    holdout: int = 2

    def check(self, kind):
        """Raise RestoreError, naming the key, for what cannot be; ``kind`` is the one in force."""
        if kind not in KINDS:
            raise RestoreError(f"kind: {kind!r} is none of {', '.join(KINDS)}")
        if not self.pairs and not self.clean:
            raise RestoreError("pairs: give pairs" + (", or clean images (clean) to make them on" if kind in SYNTHETIC else ""))
        if self.clean and kind not in SYNTHETIC:
            raise RestoreError(f"clean: {kind} cannot be made on clean images; it needs pairs")
        require_within(self, 0, 1, "synthetic", "transplant")
        if self.transplant and not (kind == "derain" and self.pairs and self.clean):
            raise RestoreError("transplant: rain goes from pairs to clean images; it needs kind derain, pairs and clean")
        if not 0 < self.weight < float("inf"):
            raise RestoreError(f"weight: {self.weight} must be positive; leave a task out to have none of it")
        require_within(self, 1, math.inf, "repeat")
        if not self.sigmas or not all(0 <= s <= 255 for s in self.sigmas):
            raise RestoreError(f"sigmas: {self.sigmas} must list levels in 0..255")
        if self.sigma_range:
            require_rising(self, 0, 255, "sigma_range")
        require_rising(self, 1, 100, "quality")
        if self.shrink:
            require_rising(self, 1, 16, "shrink")
        if self.strength:
            require_rising(self, 0, 10, "strength")
        if self.gain:
            require_rising(self, 0.01, 100, "gain")
        require_within(self, 0, math.inf, "holdout")


@dataclasses.dataclass
class Model:
    """The network: name and constructor arguments (``options``), for fresh weights only; ``depths`` to train, by name.

    With a checkpoint to start from, ``depths`` takes the place of the checkpoint's own, if given.
    """
    name: str = ""
    depths: dict[str, list[int]] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)


@dataclasses.dataclass
class Data:
    """How samples are drawn.

    crop: side of the training crops in pixels; smaller images are mirrored up to it.
    balance: ``weights`` gives each task its ``weight``'s share, ``repeats`` its count of images times its ``repeat``.
    epoch: samples in an epoch; 0: all images of the mixture, with ``repeats`` each as often as it is repeated.
    cache_mb: decoded images that each worker keeps for each line of the mixture; it changes the speed alone.
    on_device: keep the decoded images on the GPU and make the samples there (workers: 0).
    sha256: of the names and sizes of all files; the run fills it in and refuses to resume on other files.
    """
    crop: int = 128
    balance: Literal["weights", "repeats"] = "weights"
    epoch: int = 0
    cache_mb: float = 256.0
    on_device: bool = False
    sha256: str = ""

    def check(self):
        require_within(self, 16, 4096, "crop")
        require_within(self, 0, math.inf, "epoch", "cache_mb")


@dataclasses.dataclass
class Validation:
    """At most so many ``images`` of each task, their centres of ``side`` pixels (0: whole)."""
    images: int = 4
    side: int = 256

    def check(self):
        require_within(self, 0, math.inf, "images", "side")


@dataclasses.dataclass
class Recipe(Training):
    """A fine-tuning run. The keys of :class:`restore.training.Training` stand beside these at the top.

    start: the checkpoint to start from (``--from``); empty for fresh weights, as ``model`` says.
    epochs, warmup_epochs: the schedule in epochs, used where ``steps`` is 0.
    batch_size, lr: 0 means as published for this network (gUNet).
    freeze_norms: last share of the steps in which BatchNorm keeps its statistics (gUNet: 0.2).
    """
    steps: int = 0
    epochs: float = 0.0
    warmup_epochs: float = 0.0
    start: str = ""
    model: Model = field(default_factory=Model)
    tasks: dict[str, Task] = field(default_factory=dict)
    data: Data = field(default_factory=Data)
    validation: Validation = field(default_factory=Validation)
    freeze_norms: float = 0.0

    def check(self):
        if not self.tasks:
            raise RestoreError("tasks: the mixture is empty; name at least one task with pairs or clean images")
        for name, task in self.tasks.items():
            try:
                task.check(task.kind or name)
            except RestoreError as error:
                raise RestoreError(f"tasks.{name}.{error}") from None
        if not self.steps and not self.epochs:
            raise RestoreError("steps: say how long to train, in steps or in epochs")
        require_within(self, 0, math.inf, "epochs", "warmup_epochs")
        if self.warmup_epochs and self.warmup_epochs >= self.epochs:
            raise RestoreError(f"warmup_epochs: {self.warmup_epochs} leaves nothing of the {self.epochs} epochs")
        require_within(self, 0, 1, "freeze_norms")
        if self.data.on_device and self.workers:
            raise RestoreError(f"data.on_device: samples are then made in the training process; set workers: 0, not {self.workers}")
        # the loop's own rules, with a stand-in for what is only known once the data are counted
        known = dataclasses.replace(self, steps=self.steps or self.warmup + 1, batch_size=self.batch_size or 1, lr=self.lr or 1.0)
        Training.check(known)
