"""What every training run is told: the settings, the learning rate they mean, what a resumed run may change."""

import dataclasses
import math
from typing import Literal

from .branches import Branches
from .errors import RestoreError
from .recipe import flatten, require_within

# Keys that may change between a run and its resumption, since the weights do not depend on them. `steps` may be
# extended: the cosine then ends at the new number, and the learning rate jumps to where that curve is.
FREE_KEYS = ("steps", "workers", "log_every", "validate_every", "checkpoint_every", "keep_checkpoints", "trackers",
             "validation.side", "validation.images", "data.cache_mb")
TRACKERS = ("tensorboard", "trackio", "wandb")


@dataclasses.dataclass
class Training:
    """What every training run has; a recipe inherits it and adds its data, so that these keys stand at its top.

    batch_size: samples in one optimizer step, over all processes; each process takes ``batch_size / processes`` of
        them, in ``accumulate`` micro-batches. The recipe so means the same on one device and on eight.
    lr, warmup, lr_end: cosine from ``lr`` down to ``lr * lr_end`` after ``warmup`` steps of linear rise (never from 0).
    optimizer: ``adamw``, or ``muon``, which gains more from a step (:mod:`restore.muon`; not for sharded weights).
    clip: largest norm of the gradient, 0 for none. ema: decay of the averaged weights, 0 for none.
    weight_decay: decoupled, on weights of two and more dimensions (not on biases and norms).
    loss: see :mod:`restore.losses`; frequency_weight: of the spectrum in ``frequency``, beside the 1 of the pixels.
    max_bad_steps: the run stops after this many consecutive steps with a loss or gradient that is not finite.
    deterministic: also on a GPU only operations that repeat to the bit (slower; a CPU repeats anyway).
    """
    seed: int = 0
    steps: int = 1000
    batch_size: int = 8
    accumulate: int = 1
    workers: int = 2
    device: Literal["auto", "cpu"] = "auto"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    channels_last: bool = False
    compile: bool = False
    deterministic: bool = False
    optimizer: Literal["adamw", "muon"] = "adamw"
    lr: float = 2e-4
    lr_end: float = 0.01
    warmup: int = 0
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    clip: float = 1.0
    ema: float = 0.999
    loss: Literal["l1", "charbonnier", "frequency", "psnr"] = "l1"
    frequency_weight: float = 0.1
    branches: Branches = dataclasses.field(default_factory=Branches)
    sync_batchnorm: bool = False
    max_bad_steps: int = 50
    log_every: int = 50
    validate_every: int = 1000
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2
    trackers: list[str] = dataclasses.field(default_factory=list)

    def check(self):
        require_within(self, 1, math.inf, "steps", "batch_size", "accumulate", "log_every", "validate_every",
                       "checkpoint_every", "keep_checkpoints", "max_bad_steps")
        require_within(self, 0, math.inf, "seed", "workers", "warmup", "weight_decay", "clip", "frequency_weight")
        if not 0 < self.lr < math.inf:
            raise RestoreError(f"lr: {self.lr} must be positive and finite")
        for key in ("lr_end", "ema"):
            if not 0 <= getattr(self, key) <= (1 if key == "lr_end" else 0.999999):
                raise RestoreError(f"{key}: {getattr(self, key)} must be from 0 to below 1")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise RestoreError(f"betas: {list(self.betas)} must be from 0 to below 1")
        if self.warmup >= self.steps:
            raise RestoreError(f"warmup: {self.warmup} steps leave nothing of the {self.steps} steps")
        for name in self.trackers:
            if name not in TRACKERS:
                raise RestoreError(f"trackers: {name!r} is none of {', '.join(TRACKERS)} (log.jsonl is always written)")


def learning_rate(training, step):
    """Learning rate of ``step`` (from 0): a line up to ``lr`` over ``warmup`` steps, a cosine to ``lr * lr_end``."""
    if step < training.warmup:
        return training.lr * (step + 1) / (training.warmup + 1)
    progress = (step - training.warmup) / max(training.steps - training.warmup, 1)
    return training.lr * (training.lr_end + (1 - training.lr_end) * (1 + math.cos(math.pi * min(progress, 1))) / 2)


def require_same(old, new, folder):
    """Raise RestoreError unless two resolved recipes (dicts) make the same weights; it names each key that differs."""
    old, new = flatten(old), flatten(new)
    changed = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key) and key not in FREE_KEYS]
    if changed:
        listed = "; ".join(f"{key} was {old.get(key)!r} and is now {new.get(key)!r}" for key in changed)
        raise RestoreError(
            f"{folder}: the run was started with another recipe: {listed}. Start a new run in another folder, or "
            "give the old values."
        )
