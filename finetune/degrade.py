"""Degradations made on clean crops, one function for each task; strengths are drawn as widely as the tasks occur."""

import torch
import torch.nn.functional as F

from restore.degradations.haze import random_haze
from restore.degradations.jpeg import jpeg
from restore.degradations.noise import gaussian, poisson_gaussian
from restore.degradations.rain import random_rain

# Side of the clean crop, in patches, on which a degradation is made before the patch is cut out of it. Haze follows the
# depth of a scene: made on a patch alone, every patch would hold a whole scene's range of it.
CONTEXT = {"dehaze": 3}


def degrade(kind, image, rng, generator, task):
    """``image`` (3, h, w) in [0, 1] degraded for ``kind``, on 8-bit levels as files are.

    rng: a numpy Generator for the strengths, generator: a torch.Generator for the pixels, task: the recipe's Task.
    """
    return _MAKERS[kind](image, rng, generator, task)


def transplant_rain(image, degraded, clean, rng):
    """``image`` with the rain of another photo: what ``degraded`` has more light than ``clean``, all (3, h, w) in [0, 1].

    Streaks add light of no colour, in the common sets to the digit, so the channel that is farthest from saturation has
    their strength. It is varied by up to a third.
    """
    rain = (degraded - clean).amax(0).clamp_(min=0)
    return _eight_bits((image + rain * rng.uniform(0.67, 1.33)).clamp_(0, 1))


def vary_strength(degraded, clean, factor):
    """A pair's degradation ``factor`` times as strong; (3, h, w) in [0, 1]. Of haze that is another transmission, since it
    mixes the scene with the airlight; of rain, brighter or fainter streaks."""
    return _eight_bits((clean + (degraded - clean) * factor).clamp_(0, 1))


def _noisy(image, rng, generator, task):
    sigma = rng.uniform(*task.sigma_range) if task.sigma_range else task.sigmas[rng.integers(len(task.sigmas))]
    return gaussian(image, generator, sigma=float(sigma), truncate=task.truncate)


def _rainy(image, rng, generator, task):
    return _eight_bits(random_rain(image, generator))


def _hazy(image, rng, generator, task):
    return _eight_bits(random_haze(image, generator))


def _compressed(image, rng, generator, task):
    return _jpeg(image, rng, task.quality)


def _camera(image, rng, generator, task):
    """Sensor noise as a camera's JPEG shows it: Poisson-Gaussian in linear light, blotchy from demosaicing, compressed.

    The ranges are our choice, from a clean frame at base sensitivity to a phone's at night.
    """
    photons = 60 * 100 ** rng.random()
    raw = poisson_gaussian(image.pow(2.2), generator, photons=photons, sigma=rng.uniform(0, 6))
    noise = raw.pow(1 / 2.2) - image
    if rng.random() < 0.7:
        noise = _blur(noise, rng.uniform(0.3, 1.0))
    noisy = (image + noise).clamp_(0, 1)
    return _jpeg(noisy, rng, (75, 99)) if rng.random() < 0.7 else _eight_bits(noisy)


_MAKERS = {"denoise": _noisy, "derain": _rainy, "dehaze": _hazy, "jpeg": _compressed, "camera": _camera}


def _jpeg(image, rng, quality):
    chroma = ("4:4:4", "4:2:0", "4:2:0")[rng.integers(3)]
    return jpeg(image, quality=int(rng.integers(quality[0], quality[1] + 1)), chroma=chroma)


def _eight_bits(image):
    return image.mul(255).round_().div_(255)


def _blur(noise, sigma):
    """Gaussian blur of (3, h, w) over 5x5 pixels, borders mirrored."""
    offsets = torch.arange(-2, 3, dtype=noise.dtype, device=noise.device)
    row = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = torch.outer(row, row).div_(row.sum() ** 2).expand(3, 1, 5, 5)
    return F.conv2d(F.pad(noise[None], (2, 2, 2, 2), mode="reflect"), kernel, groups=3)[0]
