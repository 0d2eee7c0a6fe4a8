"""Pre-training samples: a crop of a clean image, and the same with noise, JPEG artefacts and masks (DyNet's mixture).

With ``targets.tasks`` the crop gets one of the degradations that are to be restored in the end, and the masks on top
(MaskDCPT).
"""

import torch

from restore.data import CleanImages, crop, numpy_rng, order, random_window, torch_generator
from restore.degradations.haze import random_haze
from restore.degradations.jpeg import jpeg
from restore.degradations.masking import mask
from restore.degradations.noise import gaussian, uniform
from restore.degradations.rain import random_rain
from restore.errors import ImageError, RestoreError
from restore.validation import Pair

from .recipe import TASKS


class Mixture:
    """Sample k for :func:`restore.training.train`: a function of (recipe, corpus, k) alone."""

    def __init__(self, corpus, recipe, device="cpu"):
        self.recipe, self.device = recipe, torch.device(device)
        self.images = CleanImages(corpus, recipe.seed, recipe.data.cache_mb, device)
        self.pool = {}                  # of the recipe's data.pool samples, those made so far

    def sample(self, k):
        rng, generator = numpy_rng(self.recipe.seed, k), torch_generator(self.recipe.seed, k, self.device)
        target, degraded, task, skipped = self._pooled(k) if self.recipe.data.pool else self._made(k, rng, generator)
        degraded = masked(degraded, self.recipe.masking, rng, generator)
        return {"input": degraded, "target": target, "task": task, "skipped": "\n".join(skipped)}

    def _made(self, k, rng, generator):
        image, skipped = self.images.fetch(k)
        height, width = image.shape[1:] if isinstance(image, torch.Tensor) else image.shape[:2]
        target = crop(image, self.recipe.data.crop, random_window(height, width, self.recipe.data.crop, rng))
        return target, *degrade(target, self.recipe, rng, generator), skipped

    def _pooled(self, k):
        """A sample of the pool, mirrored or not; rain does not fall sideways, so it is never turned."""
        seed, count = self.recipe.seed, self.recipe.data.pool
        place = order(seed, k, count)
        if place not in self.pool:
            made = self._made(place, numpy_rng(seed, place, 7), torch_generator(seed, place, self.device))
            self.pool[place] = (made[0].mul(255).round().byte(), made[1].half(), *made[2:])
        target, degraded, task, skipped = self.pool[place]
        turn = (lambda image: image.flip(2)) if numpy_rng(seed, k, 8).integers(2) else lambda image: image
        return turn(target.float().div_(255)), turn(degraded.float()), task, skipped if k < count else []

    def __getstate__(self):                         # a worker makes its own
        return {**self.__dict__, "pool": {}}


def degrade(target, recipe, rng, generator):
    """``(degraded, task)`` of a clean crop, without masks; ``task`` is its index in TASKS, or 0 where nothing is
    classified."""
    if recipe.targets.tasks:
        return _target_degradation(target, recipe.targets, rng, generator)
    return _artefacts(target, recipe, rng, generator), 0


def masked(image, masking, rng, generator):
    """``image`` with patches painted black in a share of the samples, as :class:`pretrain.recipe.Masking` says."""
    if rng.random() >= masking.probability:
        return image
    return mask(image, generator, patch=int(rng.choice(masking.patch)), ratio=float(rng.uniform(*masking.ratio)))


def _artefacts(target, recipe, rng, generator):
    noise, degraded = recipe.noise, target
    if rng.random() < noise.probability:
        if rng.random() < noise.random:
            degraded = uniform(
                degraded, generator, amplitude=float(rng.uniform(*noise.amplitude)), truncate=noise.truncate
            )
        else:
            degraded = gaussian(degraded, generator, sigma=float(rng.uniform(*noise.sigma)), truncate=noise.truncate)
    if rng.random() < recipe.jpeg.probability:
        low, high = recipe.jpeg.quality
        degraded = jpeg(degraded, generator, quality=int(rng.integers(low, high + 1)))
    return degraded


def _target_degradation(target, targets, rng, generator):
    weights = [targets.tasks.get(name, 0.0) for name in TASKS]
    task = int(rng.choice(len(TASKS), p=[w / sum(weights) for w in weights]))
    if TASKS[task] == "noise":
        return gaussian(target, generator, sigma=float(rng.choice(targets.sigma))), task
    return (random_rain if TASKS[task] == "rain" else random_haze)(target, generator), task


def validation_pairs(corpus, indices, recipe):
    """Pairs from the clean images ``indices``, each degraded in every way that the recipe trains, by fixed seeds.

    Noise at sigma 25, JPEG at the middle of its range, masks as in training; an unreadable image is left out. Raises
    RestoreError if none can be read.
    """
    pairs, faults = [], []
    for place, index in enumerate(indices):
        try:
            clean = torch.from_numpy(corpus.read(index).transpose(2, 0, 1).copy()).float().div_(255)
        except ImageError as error:
            faults.append(str(error))
            continue
        clean = _centre(clean, recipe.validation.side)
        for number, (task, function) in enumerate(_validation_tasks(recipe).items()):
            generator = torch_generator(recipe.seed + 1, place * 16 + number)
            pairs.append(Pair(f"{place}-{task}", task, function(clean, generator), clean))
    if faults and not pairs:
        raise RestoreError(f"validation: none of {len(faults)} images can be read; the first: {faults[0]}")
    return pairs


def _validation_tasks(recipe):
    tasks = {}
    if recipe.targets.tasks:
        known = {"noise": lambda x, g: gaussian(x, g, sigma=25.0), "rain": random_rain, "haze": random_haze}
        tasks = {name: known[name] for name, weight in recipe.targets.tasks.items() if weight}
    else:
        if recipe.noise.probability:
            tasks["noise25"] = lambda x, g: gaussian(x, g, sigma=25.0)
        if recipe.jpeg.probability:
            tasks["jpeg"] = lambda x, g: jpeg(x, g, quality=sum(recipe.jpeg.quality) // 2)
    if recipe.masking.probability:
        ratio, patch = sum(recipe.masking.ratio) / 2, recipe.masking.patch[0]
        tasks["masked"] = lambda x, g: mask(x, g, patch=patch, ratio=ratio)
    return tasks or {"clean": lambda x, g: x.clone()}


def _centre(image, side):
    height, width = image.shape[-2:]
    h, w = (min(n, side or n) for n in (height, width))
    top, left = (height - h) // 2, (width - w) // 2
    return image[:, top:top + h, left:left + w].contiguous()
