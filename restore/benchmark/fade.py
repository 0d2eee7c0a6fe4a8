"""FADE: the density of fog that a person perceives in a photo, from its paper. Lower is clearer.

Choi, You, Bovik: "Referenceless prediction of perceptual fog density and perceptual image defogging", IEEE TIP 24(11),
2015. Twelve statistics of every 8x8 patch are compared with Gaussian models of fog-free and of foggy photos; the score is the
mean distance to the fog-free model over one plus that to the foggy model. The models' parameters are those of the authors'
release, under its notice, in ``data/fade.json``.
"""

import functools
import json
import warnings
from pathlib import Path

import cv2
import numpy as np

from .piqe import blocks, mscn

PATCH = 8
# Groen et al. 2013, after whom FADE takes contrast energy: noise thresholds of gray, blue-yellow and red-green
_THRESHOLDS = (9.225496406318721e-4 * 255, 8.969246659629488e-4 * 255, 2.069284034165411e-4 * 255)
_SIGMA, _SEMISATURATION = 3.25, 0.1


def fade(image):
    """Perceptual fog density of a ``uint8`` RGB image ``(h, w, 3)`` of at least 8x8 pixels."""
    features = _features(image)
    clear, foggy = (np.nanmean(_distances(features, *model)) for model in _models())
    return float(clear / (foggy + 1))


def _features(image):
    """``log(1 + f)`` of the twelve features of every patch, ``(patches, 12)``; NaN where a feature is undefined."""
    height, width = (side // PATCH * PATCH for side in image.shape[:2])
    if not height or not width:
        raise ValueError("FADE needs an image of at least 8x8 pixels")
    image = image[:height, :width]
    red, green, blue = np.moveaxis(image.astype(np.float64), -1, 0)
    levels = np.floor(0.298936021293775 * red + 0.587043074451121 * green + 0.114020904255103 * blue + 0.5)
    low, high = image.min(-1) / 255.0, image.max(-1) / 255.0
    saturation = np.divide(high - low, high, out=np.zeros_like(high), where=high > 0)
    coefficients, mean, deviation = mscn(levels)
    pairs = coefficients * np.roll(coefficients, 1, 0)                   # with the neighbour above
    red_green, blue_yellow = red - green, 0.5 * (red + green) - blue
    with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)                  # patches without a positive or negative pair
        columns = [
            _patches(coefficients).var(-1, ddof=1),
            _variance(np.where(pairs < 0, np.nan, pairs)),
            _variance(np.where(pairs > 0, np.nan, pairs)),
            _patches(deviation).mean(-1),
            _patches(deviation / mean).mean(-1),
            *(_patches(_contrast_energy(plane, threshold)).mean(-1) for plane, threshold in zip(
                (0.299 * red + 0.587 * green + 0.114 * blue, blue_yellow, red_green), _THRESHOLDS)),
            _entropy(_patches(levels)),
            _patches(low).mean(-1),
            _patches(saturation).mean(-1),
            _colourfulness(_patches(red_green), _patches(blue_yellow)),
        ]
        return np.log1p(np.stack(columns, -1))


def _patches(plane):
    return blocks(plane, PATCH).reshape(-1, PATCH * PATCH)


def _variance(plane):
    """Variance of the defined values of every patch; 0 for a single one, NaN for none."""
    values = _patches(plane)
    return np.where(np.isfinite(values).sum(-1) == 1, 0.0, np.nanvar(values, -1, ddof=1))


def _colourfulness(red_green, blue_yellow):
    spread = np.hypot(red_green.std(-1, ddof=1), blue_yellow.std(-1, ddof=1))
    return spread + 0.3 * np.hypot(red_green.mean(-1), blue_yellow.mean(-1))


def _entropy(values):
    """Shannon entropy of the 64 gray levels of every patch, in bits: the runs of the sorted levels are the counts."""
    ordered = np.sort(values, -1)
    starts = np.concatenate([np.ones((len(values), 1), bool), ordered[:, 1:] != ordered[:, :-1]], 1)
    rows, first = np.nonzero(starts)
    length = np.diff(np.append(rows * PATCH * PATCH + first, values.size))
    share = length / (PATCH * PATCH)
    return np.bincount(rows, -share * np.log2(share), len(values))


def _contrast_energy(plane, threshold):
    """Contrast energy of a channel: second derivatives of a Gaussian, normalised, above the noise threshold."""
    # The release samples the kernel at 20 points from -9.75 on, and repeats borders by copying their first or last ten
    # rows unmirrored. Both matter in the second digit, so both are kept.
    x = np.arange(-3 * _SIGMA, 3 * _SIGMA + 1e-9)
    gaussian = np.exp(-x ** 2 / (2 * _SIGMA ** 2))
    kernel = (x ** 2 / _SIGMA ** 4 - 1 / _SIGMA ** 2) * gaussian / gaussian.sum()
    kernel -= kernel.mean()
    kernel /= (0.5 * x * x * kernel).sum()
    half = len(x) // 2
    for axis in (0, 1):
        first, last = np.split(plane, [half], axis)[0], np.split(plane, [-half], axis)[1]
        plane = np.concatenate([first, plane, last], axis)
    # conv2(..., "same") of an even kernel: flipped, its centre one after the middle
    one = np.ones(1)
    across = cv2.sepFilter2D(plane, cv2.CV_64F, kernel[::-1], one, anchor=(len(x) - 1 - half, 0),
                             borderType=cv2.BORDER_CONSTANT)
    down = cv2.sepFilter2D(plane, cv2.CV_64F, one, kernel[::-1], anchor=(0, len(x) - 1 - half),
                           borderType=cv2.BORDER_CONSTANT)
    energy = np.hypot(across, down)[half:-half, half:-half]
    largest = energy.max()
    if largest == 0:
        return energy
    response = energy * largest / (energy + largest * _SEMISATURATION) - threshold
    return np.where(response > 1e-7, response, 0.0)


def _distances(features, mean, covariance):
    """Mahalanobis-like distance of every patch to a model; its own covariance is the variance over its features."""
    own = np.nanvar(features, -1, ddof=1)
    offset = mean - features
    usable = np.isfinite(offset).all(-1)
    joint = (own[usable, None, None] + covariance) / 2
    offset = offset[usable]
    return np.sqrt(np.einsum("ni,ni->n", offset, np.linalg.solve(joint, offset[..., None])[..., 0]))


@functools.lru_cache(maxsize=1)
def _models():
    data = json.loads((Path(__file__).parent / "data" / "fade.json").read_text(encoding="utf-8"))
    return tuple((np.array(data[key]["mean"]), np.array(data[key]["covariance"])) for key in ("fogfree", "foggy"))
