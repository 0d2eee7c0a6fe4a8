"""NIQE (Mittal, Soundararajan and Bovik, "Making a completely blind image quality analyzer", 2013), fitted on images of
your own.

Natural scene statistics of sharp 96x96 patches at two scales, 36 numbers a patch, make one Gaussian for a set of good
images; an image's score is the distance of its own Gaussian from that one: lower is better. No fitted model is shipped
(the authors' comes with conditions, and a model fitted on the images one wants more of is the better judge), so scores
of different models cannot be compared with one another or with published ones.
"""

import cv2
import numpy as np
from scipy.special import gamma

from restore.errors import RestoreError
from restore.files import atomic_path

PATCH = 96
_SHARP = 0.75                              # for fitting: patches at least this share as sharp as the sharpest
_SHAPES = np.arange(0.2, 10.001, 0.001)
_RATIO = gamma(2 / _SHAPES) ** 2 / (gamma(1 / _SHAPES) * gamma(3 / _SHAPES))


def fit(images):
    """Model (mean (36,), covariance (36, 36)) of uint8 luma images; RestoreError when they are too few."""
    rows = []
    for gray in images:
        features, sharpness = patches(gray)
        if len(features):
            rows.append(features[sharpness >= _SHARP * sharpness.max()])
    rows = np.concatenate(rows) if rows else np.zeros((0, 36))
    rows = rows[np.isfinite(rows).all(1)]
    if len(rows) < 200:
        raise RestoreError(f"NIQE: {len(rows)} sharp patches of 96x96 pixels are too few for a model; "
                           "give more or larger images")
    return rows.mean(0), np.cov(rows, rowvar=False)


def save(path, model):
    """Write a model as .npz."""
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, mean=model[0], covariance=model[1])


def load(path):
    """The model in a file written by :func:`save`."""
    try:
        with np.load(path, allow_pickle=False) as data:
            return data["mean"], data["covariance"]
    except (OSError, ValueError, KeyError) as error:
        raise RestoreError(f"{path}: no NIQE model ({error}); make one with "
                           "python -m data_tools niqe-fit FOLDER -o FILE") from None


def score(gray, model):
    """NIQE of a uint8 luma image; NaN when it has no full patch of 96x96 at least twice."""
    features, _ = patches(gray)
    features = features[np.isfinite(features).all(1)] if len(features) else features
    if len(features) < 2:
        return float("nan")
    difference = features.mean(0) - model[0]
    spread = (np.cov(features, rowvar=False) + model[1]) / 2
    return float(np.sqrt(difference @ np.linalg.pinv(spread) @ difference))


def patches(gray):
    """``(features (n, 36), sharpness (n,))`` of the 96x96 patches of a uint8 luma image."""
    high, wide = gray.shape[0] // PATCH, gray.shape[1] // PATCH
    if not high or not wide:
        return np.zeros((0, 36)), np.zeros(0)
    image = gray[:high * PATCH, :wide * PATCH].astype(np.float32)
    columns, sharpness = [], None
    for size in (PATCH, PATCH // 2):
        normal, deviation = _normalised(image)
        pairs = [normal] + [normal * np.roll(normal, shift, (0, 1)) for shift in ((0, 1), (1, 0), (1, 1), (1, -1))]
        cut = [_cut(values, size) for values in pairs]
        columns.append(np.concatenate([_symmetric(cut[0])] + [_asymmetric(values) for values in cut[1:]], 1))
        if sharpness is None:
            sharpness = _cut(deviation, size).mean(1)
        image = cv2.resize(image, (image.shape[1] // 2, image.shape[0] // 2), interpolation=cv2.INTER_AREA)
    return np.concatenate(columns, 1), sharpness


def _normalised(image):
    mean = cv2.GaussianBlur(image, (7, 7), 7 / 6, borderType=cv2.BORDER_REPLICATE)
    square = cv2.GaussianBlur(image * image, (7, 7), 7 / 6, borderType=cv2.BORDER_REPLICATE)
    deviation = np.sqrt(np.abs(square - mean * mean))
    return (image - mean) / (deviation + 1), deviation


def _cut(values, size):
    high, wide = values.shape[0] // size, values.shape[1] // size
    return values.reshape(high, size, wide, size).transpose(0, 2, 1, 3).reshape(high * wide, -1)


def _shape(ratio):
    """The generalised Gaussian's shape whose moments have this ratio (the tabulated curve rises)."""
    return _SHAPES[np.clip(np.searchsorted(_RATIO, ratio), 0, len(_SHAPES) - 1)]


def _moments(values):
    left, right = np.where(values < 0, values, 0), np.where(values > 0, values, 0)
    deviations = [np.sqrt((side ** 2).sum(1) / np.maximum(1, (side != 0).sum(1))) for side in (left, right)]
    squares = (values ** 2).mean(1)
    return deviations, np.abs(values).mean(1) ** 2 / np.maximum(squares, 1e-12), squares


def _symmetric(values):
    (left, right), ratio, _ = _moments(values)
    return np.stack([_shape(ratio), (left + right) / 2], 1)


def _asymmetric(values):
    (left, right), ratio, _ = _moments(values)
    balance = left / np.maximum(right, 1e-6)
    shape = _shape(ratio * (balance ** 3 + 1) * (balance + 1) / (balance ** 2 + 1) ** 2)
    scale = np.sqrt(gamma(1 / shape) / gamma(3 / shape))
    mean = (right - left) * scale * gamma(2 / shape) / gamma(1 / shape)
    return np.stack([shape, mean, left * scale, right * scale], 1)
