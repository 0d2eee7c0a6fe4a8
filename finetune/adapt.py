"""Adaptation: a network learns from a user's own photos, for which no clean version exists; a small adapter is what it learns.

An EMA teacher restores a photo, the prior (``finetune/priors.py``) takes the teacher's result one step towards clear, and the
student learns to give that result for the photo, seen mirrored and in other exposure, and for the result degraded anew. Clear
photos, degraded and as they are, hold it where it was. What may not happen is in ``finetune/guards.py``; the weights that are
kept are those of the teacher at the best of the regular checks.
"""

import dataclasses
import hashlib
import json
from dataclasses import field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch.func import functional_call

from restore import checkpoint
from restore.adapter import Adapter, fingerprint
from restore.data import numpy_rng, torch_generator
from restore.degradations.haze import random_haze
from restore.degradations.rain import random_rain
from restore.depth import format_depth
from restore.errors import RestoreError
from restore.files import atomic_path, write_bytes
from restore.recipe import to_dict
from restore.restorer import Restorer, choose_device
from restore.resume import RunFolder
from restore.settings import require_same

from . import guards as figures
from . import placement, priors
from .guards import Guards
from .photos import Photo, as_array, as_tensor, read_photos, reduced, sort_photos
from .run import tell_once

STRENGTHS = (1.0, 0.7, 0.5, 0.3)             # tried in the end, the first that keeps every bound at every depth
EXPOSURES = (0.85, 1.1)
ADAPTER, SHEET, REPORT = "adapter.safetensors", "sheet.png", "report.json"
FREE_KEYS = ("checkpoint_every",)


@dataclasses.dataclass
class Signals:
    """How much each part of a step counts: ``prior`` on the photo, ``again`` on the teacher's result degraded anew, ``made`` on clear
    photos degraded, ``clear`` on clear photos as they are, ``clip`` the directional loss (needs ``clip_weights``).
    contrast: of the differences between neighbouring pixels, in each of them."""
    prior: float = 1.0
    again: float = 0.5
    made: float = 1.0
    clear: float = 1.0
    contrast: float = 1.0
    clip: float = 0.0

    def check(self):
        for key, value in dataclasses.asdict(self).items():
            if not 0 <= value < float("inf"):
                raise RestoreError(f"{key}: {value} must be 0 or more, and finite")
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


class Learner:
    """The student's and the teacher's changes, and a step of them. Sample k is a function of (seed, k) alone."""

    def __init__(self, recipe, model, photos, clear):
        self.recipe, self.photos, self.clear = recipe, photos, clear
        self.device = choose_device(recipe.device)
        if self.device.type == "cuda":       # the same run gives the same bytes
            torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
        self.model = model.to(self.device).eval().requires_grad_(False)
        self.depths = sorted(model.depths, key=lambda name: sum(model.depths[name])) or [None]
        self.facts = [_facts(recipe.task, photo.pixels) for photo in photos]
        self.base, self.fingerprint = dict(self.model.named_parameters()), fingerprint(model)
        self.scales, self.student, self.teacher = {}, {}, {}
        self.clip = None
        if recipe.signals.clip:
            from .clip_signal import Direction
            self.clip = Direction(recipe.clip_model, recipe.clip_weights, recipe.task, self.device)

    def place(self, tell):
        """Measure where adapters are worth it and put them there, as nothing yet."""
        recipe = self.recipe
        if not recipe.rank:
            self._start({name: None for name in self.base})
            return tell(f"all {sum(p.numel() for p in self.base.values()):,} weights are adapted")
        count = max(2, min(4, len(self.photos)))
        places = placement.measure(self.model, lambda weights, k: self.loss(weights, k, {}), [-1 - k for k in range(count)], recipe.rank)
        chosen = placement.choose(places, recipe.share * sum(p.numel() for p in self.base.values()))
        self._start({place.name: place.start for place in chosen})
        tell(placement.table(places, chosen))

    def _start(self, starts):
        """Factors such that a step of Adam changes a weight by about ``lr`` of itself, whatever the layer's scale."""
        for name, start in starts.items():
            weight = self.base[name]
            self.scales[name] = float(weight.square().mean().sqrt().clamp(min=1e-3))
            if start is None:
                self.student[f"{name}.delta"] = torch.zeros_like(weight)
            else:
                self.student[f"{name}.up"] = torch.zeros(len(weight), len(start), device=self.device)
                self.student[f"{name}.down"] = start * start.shape[1] ** 0.5
        self.teacher = {key: value.clone() for key, value in self.student.items()}
        self._optimise()

    def _optimise(self):
        for tensor in self.student.values():
            tensor.requires_grad_()
        self.optimizer = torch.optim.Adam(self.student.values(), lr=self.recipe.lr)

    def adapter(self, factors, strength=1.0):
        """The :class:`restore.adapter.Adapter` of a student's or teacher's factors, its scales worked in; without facts."""
        changes = {}
        for key, value in factors.items():
            name, _, part = key.rpartition(".")
            scale = 1.0 if part == "down" else strength * self.scales[name]
            changes.setdefault(name, {})[part] = scale * value.detach()
        return Adapter(changes, {"network": self.model.name, "base": self.fingerprint})

    def weights(self, factors):
        """``{name: changed weight}`` of factors, with gradients."""
        changed = {}
        for name, scale in self.scales.items():
            if f"{name}.delta" in factors:
                change = factors[f"{name}.delta"]
            else:
                change = (factors[f"{name}.up"] @ factors[f"{name}.down"]).view(self.base[name].shape)
            changed[name] = self.base[name] + scale * change
        return changed

    def step(self, k):
        """Step ``k`` from 0; returns the loss."""
        recipe = self.recipe
        with torch.no_grad():
            teacher = self.weights(self.teacher)
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.lr * (0.1 + 0.45 * (1 + np.cos(np.pi * k / recipe.steps)))
        loss = self.loss(self.weights(self.student), k, teacher)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            decay = min(recipe.ema, (1 + k) / (10 + k))
            for own, value in zip(self.teacher.values(), self.student.values()):
                own.lerp_(value, 1 - decay)
        return float(loss.detach())

    def loss(self, weights, k, teacher):
        """The loss of sample ``k`` for changed ``weights``; ``teacher`` are the teacher's. Negative k are other samples than a run's."""
        recipe, signals = self.recipe, self.recipe.signals
        rng, generator = numpy_rng(recipe.seed, abs(k), int(k < 0)), torch_generator(recipe.seed + (k < 0), abs(k))
        number = int(rng.integers(len(self.photos)))
        photo = _crop(self.photos[number].pixels, recipe.crop, rng)
        clear = _crop(self.clear[int(rng.integers(len(self.clear)))].pixels, recipe.crop, rng)
        depth = self.depths[int(rng.integers(len(self.depths)))]
        exposure = rng.uniform(*EXPOSURES)
        with torch.no_grad():
            restored = self._run(teacher, photo[None].to(self.device))[0].clamp(0, 1).cpu()
        wanted = _clearer(recipe.task, restored, self.facts[number])
        parts = [(signals.prior, (exposure * photo).flip(-1).clamp(0, 1), (exposure * wanted).flip(-1)),
                 (signals.again, _degraded(recipe.task, wanted, generator), wanted),
                 (signals.made, _degraded(recipe.task, clear, generator), clear), (signals.clear, clear, clear)]
        parts = [part for k, part in enumerate(parts) if part[0] or (k == 0 and signals.clip)]      # the first is the photo
        inputs, targets = (torch.stack([part[i] for part in parts]).to(self.device) for i in (1, 2))
        outputs = self._run(weights, inputs, depth)
        total = sum(part[0] * _distance(output, target, signals.contrast) for part, output, target in zip(parts, outputs, targets))
        if self.clip is not None:
            total = total + signals.clip * self.clip(inputs[:1], outputs[:1])
        return total

    def _run(self, weights, inputs, depth=None):
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16"):
            return functional_call(self.model, weights, (inputs, depth)).float()

    def state(self):
        """``(groups, numbers)`` for a checkpoint: tensors by group and JSON-able values."""
        adam = {f"{key}.{entry}": value for key, tensor in self.student.items()
                for entry, value in self.optimizer.state.get(tensor, {}).items()}
        detached = {key: value.detach().cpu().clone() for key, value in self.student.items()}
        return {"student": detached, "teacher": {k: v.cpu().clone() for k, v in self.teacher.items()}, "optimizer": adam}, \
            {"scales": self.scales}

    def restore(self, groups, numbers):
        """Take up what :meth:`state` gave."""
        self.scales = numbers["scales"]
        self.student, self.teacher = ({key: value.to(self.device) for key, value in groups[name].items()} for name in ("student", "teacher"))
        self._optimise()
        for key, tensor in self.student.items():
            own = {name.removeprefix(f"{key}."): value if name.endswith(".step") else value.to(self.device) for name, value in groups["optimizer"].items() if name.startswith(f"{key}.")}
            if own:
                self.optimizer.state[tensor] = own


class Judge:
    """The figures of held-out photos, clear ones and pairs, before and after, at any depth."""

    def __init__(self, recipe, model, held, clear, pairs):
        self.recipe, self.held, self.pairs = recipe, held, pairs
        self.clear = [photo.pixels for photo in clear[:recipe.images]]
        self.restorer = Restorer(model, device=recipe.device)
        self.angles = [None if recipe.task == "haze" else priors.streaks(photo.pixels)[1] for photo in held]
        self.first, self.known = {}, {}

    def before(self, depth=None):
        """The figures of the network as it came."""
        if depth not in self.known:
            restorer = self.restorer.at(depth)
            self.first[depth] = [restorer.restore(photo.pixels) for photo in self.held]
            self.known[depth] = self._measure(restorer, self.first[depth], depth)[0]
        return self.known[depth]

    def after(self, adapter, depth=None):
        """``(figures, outputs, bounds that are broken)`` with an adapter."""
        before = self.before(depth)
        restorer = self.restorer.adapted(adapter).at(depth)
        after, outputs = self._measure(restorer, [restorer.restore(photo.pixels) for photo in self.held], depth)
        return after, outputs, self.recipe.guards.broken(after, before)

    def _measure(self, restorer, outputs, depth):
        rows = [figures.photo_figures(self.recipe.task, photo.pixels, first, output, angle)
                for photo, first, output, angle in zip(self.held, self.first[depth], outputs, self.angles)]
        found = figures.mean_figures(rows)
        found["clear_psnr"] = figures.pair_psnr(restorer.restore, [(image, image) for image in self.clear])
        found["paired_psnr"] = figures.pair_psnr(restorer.restore, self.pairs)
        return found, outputs


def _learn(recipe, folder, learner, judge, tell):
    """The steps and the checks; returns the best teacher that keeps every bound as ``(gain, step, factors)``, or None."""
    from tqdm import tqdm
    found = folder.load()
    if found:
        start, groups, numbers = found
        learner.restore(groups, numbers)
        folder.cut_log(start)
        best = (numbers["best"][0], numbers["best"][1], groups["best"]) if numbers["best"] else None
        worse = numbers["worse"]
    else:
        start, best, worse = 0, None, 0
        folder.cut_log(-1)
        learner.place(tell)
    before = judge.before()
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
                after, _, broken = judge.after(learner.adapter(teacher))
                gain = 1 - after["residue"] / max(before["residue"], 1e-9)
                if not broken and gain > (best[0] if best else 0):
                    best, worse = (gain, step, {key: value.cpu() for key, value in teacher.items()}), 0
                else:
                    worse += 1
                row |= {"gain": gain, "after": after, "broken": broken}
                bar.write(f"step {step}: {recipe.task} seen by the prior {-gain:+.0%}, pairs "
                          f"{after['paired_psnr'] - before['paired_psnr']:+.2f} dB" + (": " + "; ".join(broken) if broken else ""))
            folder.log(**row)
            bar.update()
            if step % recipe.checkpoint_every == 0 or step == recipe.steps or worse >= recipe.patience:
                groups, numbers = learner.state()
                folder.save(step, groups | ({"best": best[2]} if best else {}),
                            numbers | {"best": best and best[:2], "worse": worse}, keep=2)
    return best


def _finish(recipe, folder, learner, judge, best, photos, tell):
    """Try the best at every depth, weaker if it must be; write the adapter, the sheet and the report, and tell the figures."""
    chosen, why = None, "no check kept every bound"
    step, teacher = (best[1], {key: value.to(learner.device) for key, value in best[2].items()}) if best else (None, None)
    for strength in STRENGTHS if best else ():
        adapter = learner.adapter(teacher, strength)
        tried = {depth: judge.after(adapter, depth) for depth in [None, *(d for d in learner.depths if d not in (None, learner.model.default_depth))]}
        after = tried[None][0]
        gain = 1 - after["residue"] / max(judge.before()["residue"], 1e-9)
        broken = [f"{f'at depth {depth}: ' if depth else ''}{text}" for depth, (_, _, texts) in tried.items() for text in texts]
        if not broken and gain >= recipe.guards.improvement:
            chosen = adapter, strength, tried
            break
        why = "; ".join(broken) or f"the prior sees only {gain:.1%} less of the {recipe.task}, less than {recipe.guards.improvement:.0%}"
    report = {"kept": chosen is not None, "step": step, "before": judge.before(), "left_out": photos.left_out}
    path = folder.path / ADAPTER
    if chosen is None:
        path.unlink(missing_ok=True)
        write_bytes(folder.path / REPORT, json.dumps(report | {"why": why}, indent=1) + "\n")
        tell(f"nothing improved within the bounds, so the original weights are kept and no adapter is written: {why}")
        return None
    adapter, strength, tried = chosen
    after, outputs, _ = tried[None]
    measured = {key: f"{judge.before()[key]:.4g} -> {value:.4g}" for key, value in after.items()}
    adapter.facts |= {"base_name": Path(recipe.start).name, "task": recipe.task, "rank": recipe.rank, "parameters": adapter.count(),
                      "layers": len(adapter.changes), "step": step, "strength": strength, "photos": len(photos.train),
                      "held_out": len(photos.held), "data_sha256": recipe.data_sha256, "measured": measured}
    adapter.save(path)
    write_bytes(folder.path / REPORT, json.dumps(report | {"strength": strength, "after": {
        format_depth(learner.model.repeats(depth)) or "fixed": found for depth, (found, _, _) in tried.items()}}, indent=1) + "\n")
    _sheet(folder.path / SHEET, recipe, judge, outputs)
    tell(_table(judge.before(), after))
    tell(f"{path}: {adapter.count():,} numbers in {len(adapter.changes)} layers, step {step}, strength {strength:g}; "
         f"the held-out photos are in {folder.path / SHEET}")
    return path


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
            raise RestoreError(f"clear: {recipe.clear}: no usable photo there; " + "; ".join(f"{len(n)} {r}" for r, n in left_out.items()))
        return photos
    from restore.samples import PHOTOS, photo
    arrays = {name: photo(name) for name in PHOTOS}
    return [Photo(name, as_tensor(reduced(a, recipe.side)), hashlib.sha256(a.tobytes()).hexdigest()) for name, a in arrays.items()]


def _pairs(recipe, clear):
    """``[(degraded, clean)]`` for the guard, reduced to ``side``: given ones, or made on the clear photos."""
    if not recipe.pairs:
        return [(_degraded(recipe.task, photo.pixels, torch_generator(recipe.seed, 1 << 20 | k)), photo.pixels)
                for k, photo in enumerate(clear[:recipe.images])]
    from restore.layouts import find_pairs, pair_folders
    found = pair_folders(*recipe.pairs) if len(recipe.pairs) == 2 else find_pairs(recipe.pairs[0], f"de{recipe.task}")
    from .mixture import PairCorpus
    corpus = PairCorpus(found.root, found.pairs)
    both = [corpus.read(int(k)) for k in sorted({int(k) for k in np.linspace(0, corpus.count - 1, recipe.images)})]
    small = [[as_tensor(reduced(np.ascontiguousarray(b[..., part]), recipe.side)) for part in (slice(0, 3), slice(3, 6))] for b in both]
    return [tuple(pair) for pair in small]


def _facts(task, photo):
    """What the prior must know of the whole photo: airlight and window, or the direction of its streaks."""
    return (priors.airlight(photo), priors.window(*photo.shape[1:])) if task == "haze" else (priors.streaks(photo)[1],)


def _clearer(task, image, facts):
    return (priors.less_haze if task == "haze" else priors.less_rain)(image, *facts)


def _degraded(task, image, generator):
    """``image`` (3, h, w) with haze or rain of any strength, on 8-bit levels as files are."""
    return (random_haze if task == "haze" else random_rain)(image, generator).mul(255).round_().div_(255)


def _crop(image, size, rng):
    """A square of (3, h, w), mirrored at random; an image that is too small is mirrored up to it."""
    missing = [max(0, size - n) for n in image.shape[1:]]
    if any(missing):
        image = F.pad(image[None], (0, missing[1], 0, missing[0]), mode="reflect" if max(missing) < min(image.shape[1:]) else "replicate")[0]
    top, left = (int(rng.integers(n - size + 1)) for n in image.shape[1:])
    part = image[:, top:top + size, left:left + size]
    return (part.flip(-1) if rng.integers(2) else part).contiguous()


def _distance(output, target, contrast):
    """L1 of (3, h, w), and of the differences between neighbouring pixels, which keep contrast and edges; never clamped."""
    wrong = output - target
    return wrong.abs().mean() + contrast * (wrong.diff(dim=-1).abs().mean() + wrong.diff(dim=-2).abs().mean())


def _lasting(recipe):
    return {key: value for key, value in recipe.items() if key not in FREE_KEYS}
