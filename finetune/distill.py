"""Distillation: a student learns from the clean images and from a teacher, in the training loop of fine-tuning.

What a step minimises is :class:`Distillation`; samples, depths, schedule, validation, log and exact resume are
fine-tuning's own.
"""

import dataclasses
import math
from dataclasses import field
from pathlib import Path

from restore.errors import RestoreError
from restore.losses import L1, SSIM, Criterion, Frequency
from restore.models import MODELS
from restore.recipe import from_dict, read_yaml, require_within

from .features import Recorder, affinity_loss, decoder_stages
from .mixture import find_sources
from .recipe import Model, Recipe
from .run import build_model, fine_tune, tell_once
from .teacher import FolderTeacher, open_teacher, split_depth


@dataclasses.dataclass
class Weights:
    """How much each part of the loss counts; a part of weight 0 is not computed.

    target: L1 to the clean image. teacher: L1 to the teacher's output.
    frequency: L1 of the FFT, to both in the proportion of the two weights above (which it is multiplied with).
    ssim: one minus SSIM to the clean image. features: distance of the attention maps on matching decoder stages, see
        ``finetune/features.py``; it needs a network as the teacher.
    """
    target: float = 1.0
    teacher: float = 1.0
    frequency: float = 0.1
    ssim: float = 0.0
    features: float = 0.0

    def check(self):
        require_within(self, 0, math.inf, *vars(self))
        if not self.target + self.teacher:
            raise RestoreError("target: 0, and teacher: 0, leave nothing to learn")


@dataclasses.dataclass
class Distill(Recipe):
    """A distillation. The keys of a fine-tuning recipe stand beside these; ``distill`` takes the place of ``loss``.

    teacher: a checkpoint (``CHECKPOINT@DEPTH`` for another depth than its largest), a file that spandrel loads, an ``.onnx``
        file, or a folder of outputs named as the pairs.
    student: a network's name (``gunet_t``; ``model.options`` make it smaller), a checkpoint, ``CHECKPOINT@DEPTH`` for one
        depth of it alone, or the YAML file that ``python -m finetune allocate`` writes. By default what ``model`` and
        ``start`` say.
    teacher_sha256: of the teacher's weights; the run fills it in and refuses to resume with another teacher.
    """
    teacher: str = ""
    student: str = ""
    distill: Weights = field(default_factory=Weights)
    teacher_sha256: str = ""

    def check(self):
        super().check()
        if not self.teacher:
            raise RestoreError("teacher: give a checkpoint, an ONNX file or a folder of outputs (--teacher CKPT)")
        if self.loss != "l1":
            raise RestoreError(f"loss: {self.loss}: a distillation weighs its losses under distill; leave loss out")


def run(recipe, out, resume=False, tell=tell_once):
    """Distil as the :class:`Distill` recipe says; returns the folder ``out/final`` with the student's weights.

    Raises RestoreError for a teacher or student that cannot be had, and what :func:`finetune.run.run` raises.
    """
    recipe = with_student(recipe)
    model, sources, teacher = build_model(recipe), find_sources(recipe), open_teacher(recipe.teacher)
    if isinstance(teacher, FolderTeacher):
        teacher.join(sources)
    recipe = dataclasses.replace(recipe, teacher_sha256=teacher.sha256)
    criterion = Distillation(model, teacher, recipe.distill)
    if criterion.scales:
        named = [f"1/{scale}" if scale > 1 else "full resolution" for scale in criterion.scales]
        tell("features compared at " + ", ".join(named))
    return fine_tune(model, sources, recipe, out, resume, tell, criterion, {"teacher": recipe.teacher})


def with_student(recipe):
    """The recipe with ``student`` written out as ``model``, ``start`` and ``branches``; ``student`` stays, for the record."""
    name = recipe.student
    if not name:
        return recipe
    if name in MODELS:
        return dataclasses.replace(recipe, start="", model=dataclasses.replace(recipe.model, name=name))
    if Path(name).suffix in (".yaml", ".yml"):
        values = read_yaml(name)
        if not isinstance(values, dict) or "model" not in values:
            raise RestoreError(f"student: {name} has no section called model, as python -m finetune allocate writes it")
        return dataclasses.replace(recipe, start=values.get("start", ""), model=from_dict(Model, values["model"], "model."))
    start, depth = split_depth(name)
    if not depth:
        return dataclasses.replace(recipe, start=start)
    return dataclasses.replace(recipe, start=start, branches=dataclasses.replace(recipe.branches, strategy=f"single:{depth}"))


class Distillation(Criterion):
    """The loss of a student: see :class:`Weights` for its parts.

    student: the network to train, on which hooks are left. teacher: what :func:`finetune.teacher.open_teacher` gives. Raises
    RestoreError where features are asked for and the two have no stages of equal resolution.
    """

    def __init__(self, student, teacher, weights):
        super().__init__(L1())
        self.teacher, self.weights = teacher, weights
        self.frequency, self.ssim = Frequency(), SSIM()
        self.scales = []
        if weights.features:
            stages = decoder_stages(student)
            self.scales = sorted(stages.keys() & teacher.stages.keys())
            if not self.scales:
                own = ", ".join(f"1/{scale}" for scale in stages) or "none"
                raise RestoreError(f"distill.features: the teacher shows no features at a resolution of the student's ({own}); "
                                   "set it to 0, or take a network as teacher")
            teacher.watch(self.scales)
            self.recorder = Recorder(student, {scale: stages[scale] for scale in self.scales}, training=True)

    def prepare(self, batch):
        """Run the teacher once for all passes over this micro-batch."""
        if not (self.weights.teacher or self.scales):
            return batch
        output = self.teacher(batch)
        return {**batch, "teacher": output, **{f"teacher_{scale}": maps for scale, maps in self.teacher.maps().items()}}

    def forward(self, output, target, rows):
        weights, parts, loss = self.weights, {}, 0.0
        for name, wanted in (("target", target), ("teacher", rows.get("teacher"))):
            if weight := getattr(weights, name):
                parts[name] = self.loss(output, wanted)
                loss = loss + weight * parts[name]
                if weights.frequency:
                    loss = loss + weight * weights.frequency * self.frequency(output, wanted)
        if weights.ssim:
            parts["ssim"] = self.ssim(output, target)
            loss = loss + weights.ssim * parts["ssim"]
        if self.scales:
            parts["features"] = affinity_loss(self.recorder.take(), {scale: rows[f"teacher_{scale}"] for scale in self.scales})
            loss = loss + weights.features * parts["features"]
        return loss, parts
