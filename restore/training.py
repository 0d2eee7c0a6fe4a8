"""The training loop, in sight: Accelerate, EMA, schedule, exact resume, validation at every branch, JSON-lines log."""

import dataclasses
from typing import Literal

from .branches import Branches
from .errors import RestoreError

# Keys that may differ between a run and its resumption: they do not change the weights. (`steps` is handled apart.)
FREE_KEYS = ("steps", "workers", "log_every", "validate_every", "checkpoint_every", "keep_checkpoints", "trackers")


@dataclasses.dataclass
class Training:
    """What every training run has; a recipe inherits it and adds its data, so that its keys stand at the top of the YAML.

    batch_size: samples in one optimizer step, over all processes; each process takes ``batch_size / processes`` of them,
        in ``accumulate`` micro-batches. The recipe so means the same on one device and on eight.
    lr, warmup, lr_end: cosine from ``lr`` down to ``lr * lr_end`` after ``warmup`` steps of linear rise (never from 0).
    clip: largest norm of the gradient, 0 for none. ema: decay of the averaged weights, 0 for none.
    max_bad_steps: the run stops after this many consecutive steps with a loss or gradient that is not finite.
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
    lr: float = 2e-4
    lr_end: float = 0.01
    warmup: int = 0
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    clip: float = 1.0
    ema: float = 0.999
    loss: Literal["l1", "charbonnier", "frequency"] = "l1"
    branches: Branches = dataclasses.field(default_factory=Branches)
    sync_batchnorm: bool = False
    max_bad_steps: int = 20
    log_every: int = 50
    validate_every: int = 1000
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2
    trackers: list[str] = dataclasses.field(default_factory=list)


def train(model, samples, recipe, out, *, resume=False, validation=(), head=None, on_step=None, provenance=None):
    """Train ``model`` and return the folder ``out/final`` with its averaged weights.

    model: a :class:`restore.models.base.RestorationModel` on the CPU; trained at ``model.depths`` as ``recipe.branches`` says.
    samples: an object whose ``sample(k)`` returns a dictionary: ``input`` and ``target`` float tensors (3, s, s) in [0, 1], ``task`` int,
        and ``skipped`` str (names of files that had to be replaced, one a line; may be missing). It must depend on (seed, k) alone.
    recipe: a :class:`Training` or a dataclass that inherits it; written to ``out/recipe.yaml`` and compared with it on resume.
    out: folder of the run. Refused if it holds a run already, unless ``resume``.
    validation: :class:`restore.validation.Pair` s, restored at every depth each ``validate_every`` steps.
    head: module from the encoder's latent (n, c, h, w) to logits of the task, trained beside, never saved in ``final``.
    on_step: ``on_step(step, model)``, called before each step in training mode; must depend on ``step`` alone (gUNet freezes its norms).
    provenance: more facts for ``final/config.json``: data manifest hash, corpus.

    Raises RestoreError: the run exists, the recipe changed, the loss is not finite for too long, the disk is full.
    """
    raise NotImplementedError
