"""Adaptation: a network learns from a user's own photos, for which no clean version exists; a small adapter is what it learns.

An EMA teacher restores a photo, the prior (``finetune/priors.py``) takes the teacher's result one step towards clear, and the
student learns to give that result for the photo, seen mirrored and in other exposure, and for the result degraded anew. Of
clear photos, degraded and as they are, it must make what it made before (learning without forgetting, arXiv 1606.09282): their
own pixels as targets would teach it to leave haze alone. What may not happen is in ``finetune/guards.py``; the weights that are
kept are those of the teacher at the best of the regular checks.
"""

import dataclasses
import hashlib
import json
import math
from dataclasses import field
from pathlib import Path
from typing import Literal

import numpy as np

from restore import checkpoint
from restore.adapter import fingerprint
from restore.data import torch_generator
from restore.depth import format_depth
from restore.errors import RestoreError
from restore.files import atomic_path, write_bytes
from restore.recipe import require_within, to_dict
from restore.resume import RunFolder
from restore.settings import require_same

from .guards import Guards, Judge
from .learner import Learner, degraded
from .photos import Photo, as_array, as_tensor, read_photos, reduced, sort_photos
from .run import tell_once

STRENGTHS = (1.0, 0.7, 0.5, 0.35, 0.25, 0.15)    # of the adapter, tried in turn: the first that keeps every bound is taken
ADAPTER, SHEET, REPORT = "adapter.safetensors", "sheet.png", "report.json"
FEW = 5             # held-out photos: on six others, an adapter that had passed on two raised the haze by 12 %
FREE_KEYS = ("checkpoint_every",)


@dataclasses.dataclass
class Signals:
    """How much each part of a step counts: ``prior`` on the photo, ``again`` on the teacher's result degraded anew,
    ``made`` on clear photos degraded and ``clear`` on clear photos as they are, of which the network must make what it made
    before, ``clip`` the directional loss (needs ``clip_weights``).
    contrast: of the differences between neighbouring pixels, in each of them."""
    prior: float = 1.0
    again: float = 0.5
    made: float = 1.0
    clear: float = 1.0
    contrast: float = 1.0
    clip: float = 0.0

    def check(self):
        require_within(self, 0, math.inf, *vars(self))
        if not self.prior + self.again + self.clip:
            raise RestoreError("prior: 0, again: 0 and clip: 0 leave nothing to adapt to")


@dataclasses.dataclass
class Adaptation:
    """An adaptation.

    start: the checkpoint. real: folder of photos to adapt to. clear: folder of clear photos, by default those that come with
    scikit-image. pairs: two folders or a set of pairs for the guard, by default made on the clear photos.
    rank: of the adapter's matrices; 0 adapts all weights. share: of the network's numbers that the adapter may take.
    side: pixels to which the longer sides of photos are reduced. holdout: share of the photos that is held out for the checks.
    images: clear photos and pairs that a check looks at, of each at most so many. precision: of the steps; bf16 is for speed.
    lr: Adam's; a step changes a weight by about that share of itself, times the root of the rank.
    ema: decay of the teacher. patience: checks without a better one, after which the run ends.
    clip_model, clip_weights: open_clip's name and a file of its weights.
    data_sha256: of the photos; the run fills it in and refuses to resume on others.
    """
    start: str = ""
    real: str = ""
    clear: str = ""
    pairs: list[str] = field(default_factory=list)
    task: Literal["haze", "rain"] = "haze"
    seed: int = 0
    steps: int = 120
    check_every: int = 20
    checkpoint_every: int = 10
    patience: int = 3
    rank: int = 4
    share: float = 0.03
    lr: float = 2e-3
    ema: float = 0.95
    side: int = 288
    crop: int = 128
    holdout: float = 0.3
    images: int = 4
    precision: Literal["fp32", "bf16"] = "fp32"
    device: str = "auto"
    clip_model: str = "ViT-B-32"
    clip_weights: str = ""
    signals: Signals = field(default_factory=Signals)
    guards: Guards = field(default_factory=Guards)
    data_sha256: str = ""

    def check(self):
        if not self.start or not self.real:
            raise RestoreError("real: give a checkpoint and a folder of your photos: python -m finetune adapt CKPT --real DIR")
        for key in ("steps", "check_every", "checkpoint_every", "patience", "images"):
            if getattr(self, key) < 1:
                raise RestoreError(f"{key}: {getattr(self, key)} must be at least 1")
        if self.rank < 0 or not 0 < self.share <= 1:
            raise RestoreError(f"rank: {self.rank} must be 0 or more, and share: {self.share} from above 0 to 1")
        if not 0 < self.lr < 1 or not 0 <= self.ema < 1:
            raise RestoreError(f"lr: {self.lr} and ema: {self.ema} must be from 0 to below 1")
        if not 32 <= self.crop <= self.side:
            raise RestoreError(f"crop: {self.crop} must be from 32 to side: {self.side}")
        if not 0 < self.holdout < 1:
            raise RestoreError(f"holdout: {self.holdout} must be between 0 and 1")
        if len(self.pairs) > 2:
            raise RestoreError("pairs: give a set of pairs, or two folders, degraded and clean")
        if self.signals.clip and not self.clip_weights:
            raise RestoreError("clip_weights: give the file of open_clip's weights for the signal clip")


def run(recipe, out, resume=False, tell=tell_once):
    """Adapt as the :class:`Adaptation` says; returns the adapter's path, or None where the original weights are kept.

    ``out`` gets the adapter, a report, a contact sheet of the held-out photos, the log. Raises RestoreError: too few photos, a
    checkpoint that cannot be had, a folder that holds another run.
    """
    folder = RunFolder(out)
    model = checkpoint.load(recipe.start)
    photos = sort_photos(recipe.real, recipe.task, recipe.side, recipe.holdout)
    clear = [*_clear_photos(recipe), *photos.clear]
    tell(f"{recipe.real}: {photos}\n{len(clear)} clear photos")
    if len(photos.held) < FEW:
        tell(f"{len(photos.held)} held-out photos are few: what passes on them may harm others. Look at {SHEET}, or give more")
    pairs = _pairs(recipe, clear)
    digest = hashlib.sha256(f"{photos.digest} {[p.digest for p in clear]} {len(pairs)}".encode()).hexdigest()
    recipe = dataclasses.replace(recipe, data_sha256=digest)
    if folder.holds_run():
        if not resume:
            raise RestoreError(f"{out}: holds a run already; --resume goes on with it, another folder starts anew")
        require_same(_lasting(folder.recipe()), _lasting(to_dict(recipe)), out)
    else:
        folder.describe(to_dict(recipe), {"base": fingerprint(model), "left_out": photos.left_out})
    learner = Learner(recipe, model, photos.train, clear)
    judge = Judge(recipe, model, photos.held, clear, pairs)
    best = _learn(recipe, folder, learner, judge, tell)
    return _finish(recipe, folder, learner, judge, best, photos, tell)


def _learn(recipe, folder, learner, judge, tell):
    """The steps and the checks; returns the best teacher that keeps every bound as ``(gain, step, strength, factors)``, or None.

    A teacher that went too far counts with the strength at which it keeps them: the way there is then the useful part of it.
    """
    from tqdm import tqdm
    found = folder.load()
    if found:
        start, groups, numbers = found
        learner.restore(groups, numbers)
        folder.cut_log(start)
        best = (*numbers["best"], groups["best"]) if numbers["best"] else None
        worse = numbers["worse"]
    else:
        start, best, worse = 0, None, 0
        folder.cut_log(-1)
        learner.place(tell)
    before, depths = judge.before(), learner.named_depths()
    with tqdm(total=recipe.steps, initial=start, unit="step", disable=None) as bar:
        for step in range(start + 1, recipe.steps + 1):
            if worse >= recipe.patience:
                break
            loss = learner.step(step - 1)
            row = {"step": step, "loss": loss}
            if not np.isfinite(loss):
                raise RestoreError(f"step {step}: the loss is not finite; try a smaller --lr than {recipe.lr:g}")
            if step % recipe.check_every == 0 or step == recipe.steps:
                teacher = {key: value.detach().clone() for key, value in learner.teacher.items()}
                faults = {}
                for strength in STRENGTHS:
                    tried, faults[strength] = judge.everywhere(learner.adapter(teacher, strength), depths)
                    if not faults[strength]:
                        break
                kept, after = not faults[strength], tried[None][0]
                gain = _gain(before, after)
                if kept and gain > (best[0] if best else 0):
                    best, worse = (gain, step, strength, {key: value.cpu() for key, value in teacher.items()}), 0
                else:
                    worse += 1
                row |= {"gain": gain, "strength": strength, "after": after, "broken": faults}
                bar.write(f"step {step}, strength {strength:g}: {recipe.task} seen by the prior {-gain:+.0%}, pairs "
                          f"{after['paired_psnr'] - before['paired_psnr']:+.2f} dB"
                          + ("" if kept else "; at no strength within the bounds; at full: " + "; ".join(faults[STRENGTHS[0]])))
            folder.log(**row)
            bar.update()
            if step % recipe.checkpoint_every == 0 or step == recipe.steps or worse >= recipe.patience:
                groups, numbers = learner.state()
                folder.save(step, groups | ({"best": best[3]} if best else {}),
                            numbers | {"best": best and best[:3], "worse": worse}, keep=2)
    return best


def _finish(recipe, folder, learner, judge, best, photos, tell):
    """Write the best as the adapter, with the sheet and the report, if it improves enough; tell the figures."""
    gain, step, strength, teacher = best or (0.0, None, None, {})
    kept = best is not None and gain >= recipe.guards.improvement
    report = {"kept": kept, "step": step, "before": judge.before(), "left_out": photos.left_out}
    path = folder.path / ADAPTER
    if not kept:
        why = (f"the prior sees {gain:.1%} less of the {recipe.task}, and {recipe.guards.improvement:.0%} are the least" if best
               else "no check kept every bound; log.jsonl names those that broke")
        path.unlink(missing_ok=True)
        write_bytes(folder.path / REPORT, json.dumps(report | {"why": why}, indent=1) + "\n")
        tell(f"nothing improved within the bounds, so the original weights are kept and no adapter is written: {why}")
        return None
    adapter = learner.adapter({key: value.to(learner.device) for key, value in teacher.items()}, strength)
    tried, _ = judge.everywhere(adapter, learner.named_depths())
    after, outputs = tried[None]
    measured = {key: f"{judge.before()[key]:.4g} -> {value:.4g}" for key, value in after.items()}
    adapter.facts |= {"base_name": Path(recipe.start).name, "task": recipe.task, "rank": recipe.rank,
                      "parameters": adapter.count(), "layers": len(adapter.changes), "step": step, "strength": strength,
                      "photos": len(photos.train), "held_out": len(photos.held), "data_sha256": recipe.data_sha256, "measured": measured}
    adapter.save(path)
    by_depth = {format_depth(learner.model.repeats(depth)) or "fixed": found for depth, (found, _) in tried.items()}
    write_bytes(folder.path / REPORT, json.dumps(report | {"strength": strength, "after": by_depth}, indent=1) + "\n")
    _sheet(folder.path / SHEET, recipe, judge, outputs)
    tell(_table(judge.before(), after))
    tell(f"{path}: {adapter.count():,} numbers in {len(adapter.changes)} layers, step {step}, strength {strength:g}; "
         f"the held-out photos are in {folder.path / SHEET}")
    return path


def _gain(before, after):
    """Share by which what the prior still sees of the degradation fell."""
    return 1 - after["residue"] / max(before["residue"], 1e-9)


def _table(before, after):
    width = max(map(len, after))
    return "\n".join([f"{'held out':<{width}}  {'before':>9} {'after':>9}",
                      *(f"{key:<{width}}  {before[key]:9.4g} {value:9.4g}" for key, value in after.items())])


def _sheet(path, recipe, judge, outputs):
    from PIL import Image

    from restore.sheet import contact_sheet
    rows = []
    for photo, first, output in zip(judge.held, judge.first[None], outputs):
        images = [as_array(image) for image in (photo.pixels, first, output)]
        rows.append([(image, f"{label}\n{photo.name}") for image, label in zip(images, ("photo", "before", "after"))])
    with atomic_path(path) as temporary:
        Image.fromarray(contact_sheet(rows, f"Held-out photos, adapted to {recipe.task}", tile=(300, 400))).save(temporary)


def _clear_photos(recipe):
    if recipe.clear:
        photos, left_out = read_photos(recipe.clear, recipe.side)
        if not photos:
            told = "; ".join(f"{len(names)} {reason}" for reason, names in left_out.items())
            raise RestoreError(f"clear: {recipe.clear}: no usable photo there; {told}")
        return photos
    from restore.samples import PHOTOS, photo
    arrays = {name: photo(name) for name in PHOTOS}
    return [Photo(name, as_tensor(reduced(array, recipe.side)), hashlib.sha256(array.tobytes()).hexdigest())
            for name, array in arrays.items()]


def _pairs(recipe, clear):
    """``[(degraded, clean)]`` for the guard, reduced to ``side``: given ones, or made on the clear photos."""
    if not recipe.pairs:
        return [(degraded(recipe.task, photo.pixels, torch_generator(recipe.seed, 1 << 20 | k)), photo.pixels)
                for k, photo in enumerate(clear[:recipe.images])]
    from restore.layouts import find_pairs, pair_folders
    found = pair_folders(*recipe.pairs) if len(recipe.pairs) == 2 else find_pairs(recipe.pairs[0], f"de{recipe.task}")
    from .mixture import PairCorpus
    corpus = PairCorpus(found.root, found.pairs)
    both = [corpus.read(int(k)) for k in sorted({int(k) for k in np.linspace(0, corpus.count - 1, recipe.images)})]
    sides = [(six[..., :3], six[..., 3:]) for six in both]
    return [tuple(as_tensor(reduced(np.ascontiguousarray(side), recipe.side)) for side in pair) for pair in sides]


def _lasting(recipe):
    return {key: value for key, value in recipe.items() if key not in FREE_KEYS}
