"""Student and teacher of an adaptation: the samples, the loss of a step, and the factors that become the adapter."""

import numpy as np
import torch
import torch.nn.functional as F
from torch.func import functional_call

from restore.adapter import Adapter, fingerprint
from restore.data import numpy_rng, torch_generator
from restore.restorer import choose_device

from . import placement, priors
from .degrade import degrade

EXPOSURES = (0.85, 1.1)


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

    def named_depths(self):
        """None, which is the default depth, and the names of the others."""
        return [None, *(depth for depth in self.depths if depth not in (None, self.model.default_depth))]

    def place(self, tell):
        """Measure where adapters are worth it and put them there, as nothing yet."""
        recipe = self.recipe
        if not recipe.rank:
            self._start({name: None for name in self.base})
            return tell(f"all {sum(p.numel() for p in self.base.values()):,} weights are adapted")
        count = max(2, min(4, len(self.photos)))
        samples = [-1 - k for k in range(count)]
        places = placement.measure(self.model, lambda weights, k: self.loss(weights, k, {}), samples, recipe.rank)
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
        """The :class:`restore.adapter.Adapter` of a student's or teacher's factors, with gradients; its facts name the base."""
        changes = {}
        for key, value in factors.items():
            name, _, part = key.rpartition(".")
            scale = 1.0 if part == "down" else strength * self.scales[name]
            changes.setdefault(name, {})[part] = scale * value
        return Adapter(changes, {"network": self.model.name, "base": self.fingerprint})

    def weights(self, factors):
        """``{name: changed weight}`` of factors, with gradients."""
        return self.adapter(factors).weights(self.model)

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
        """The loss of sample ``k`` for changed ``weights``; ``teacher`` are the teacher's. A run has no negative k."""
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
        known = torch.stack([degraded(recipe.task, clear, generator), clear])
        with torch.no_grad():           # what the network made of them when it came, right or wrong, is what it shall keep
            kept = self._run({}, known.to(self.device), depth).cpu() if signals.made or signals.clear else known
        parts = [(signals.prior, (exposure * photo).flip(-1).clamp(0, 1), (exposure * wanted).flip(-1)),
                 (signals.again, degraded(recipe.task, wanted, generator), wanted),
                 (signals.made, known[0], kept[0]), (signals.clear, known[1], kept[1])]
        parts = [part for k, part in enumerate(parts) if part[0] or (k == 0 and signals.clip)]      # the first is the photo
        inputs, targets = (torch.stack([part[i] for part in parts]).to(self.device) for i in (1, 2))
        outputs = self._run(weights, inputs, depth)
        total = sum(part[0] * _distance(output, target, signals.contrast)
                    for part, output, target in zip(parts, outputs, targets))
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
        self.student, self.teacher = ({key: value.to(self.device) for key, value in groups[name].items()}
                                      for name in ("student", "teacher"))
        self._optimise()
        for name, value in groups["optimizer"].items():
            key, _, entry = name.rpartition(".")
            self.optimizer.state[self.student[key]][entry] = value if entry == "step" else value.to(self.device)


def _facts(task, photo):
    """What the prior must know of the whole photo: airlight and window, or the direction of its streaks."""
    return (priors.airlight(photo), priors.window(*photo.shape[1:])) if task == "haze" else (priors.streaks(photo)[1],)


def _clearer(task, image, facts):
    return (priors.less_haze if task == "haze" else priors.less_rain)(image, *facts)


def degraded(task, image, generator):
    """``image`` (3, h, w) with haze or rain of any strength, on 8-bit levels as files are."""
    return degrade(f"de{task}", image, None, generator, None)          # these two draw from the generator alone


def _crop(image, size, rng):
    """A square of (3, h, w), mirrored at random; an image that is too small is mirrored up to it."""
    missing = [max(0, size - n) for n in image.shape[1:]]
    if any(missing):
        mode = "reflect" if max(missing) < min(image.shape[1:]) else "replicate"
        image = F.pad(image[None], (0, missing[1], 0, missing[0]), mode=mode)[0]
    top, left = (int(rng.integers(n - size + 1)) for n in image.shape[1:])
    part = image[:, top:top + size, left:left + size]
    return (part.flip(-1) if rng.integers(2) else part).contiguous()


def _distance(output, target, contrast):
    """L1 of (3, h, w), and of the differences between neighbouring pixels, which keep contrast and edges; never clamped."""
    wrong = output - target
    return wrong.abs().mean() + contrast * (wrong.diff(dim=-1).abs().mean() + wrong.diff(dim=-2).abs().mean())
