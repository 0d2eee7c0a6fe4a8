"""Measures of one photo without a reference: sharpness, contrast, entropy, and the way to PIQE, FADE and pyiqa.

All take a ``uint8`` RGB array ``(h, w, 3)`` and return a float. Sharpness, contrast and entropy say how much structure
there is, not whether it is right: noise raises all of them, so they are never a goal by themselves.
"""

import functools

import cv2
import numpy as np

from ..errors import RestoreError
from .fade import fade
from .piqe import piqe


def gray(image):
    """ITU-R BT.601 gray, rounded to whole levels like MATLAB's ``rgb2gray`` of uint8; float64 ``(h, w)``."""
    return np.floor(image.astype(np.float64) @ np.array([0.298936021293775, 0.587043074451121, 0.114020904255103]) + 0.5)


def laplacian(image):
    """Variance of the Laplacian (4 neighbours) of gray levels (Pech-Pacheco et al., ICPR 2000); higher is sharper."""
    return float(cv2.Laplacian(gray(image), cv2.CV_64F, ksize=1).var())


def tenengrad(image):
    """Mean squared Sobel gradient of gray levels (Krotkov 1988); higher is sharper."""
    levels = gray(image)
    return float((cv2.Sobel(levels, cv2.CV_64F, 1, 0) ** 2 + cv2.Sobel(levels, cv2.CV_64F, 0, 1) ** 2).mean())


def contrast(image):
    """RMS contrast: standard deviation of gray levels on the scale [0, 1] (Peli 1990)."""
    return float(gray(image).std() / 255.0)


def entropy(image):
    """Shannon entropy of the 256 gray levels in bits."""
    counts = np.bincount(gray(image).astype(np.uint8).ravel(), minlength=256)
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log2(share)).sum())


MEASURES = {"laplacian": laplacian, "tenengrad": tenengrad, "contrast": contrast, "entropy": entropy,
            "piqe": lambda image: piqe(gray(image)), "fade": fade}


def measure(metric, image):
    """The value of a no-reference :class:`~restore.benchmark.catalog.Metric`."""
    if metric.measure == "pyiqa":
        return _pyiqa(metric.model, metric.weights)(image)
    return MEASURES[metric.measure](image)


@functools.lru_cache(maxsize=8)
def _pyiqa(model, weights):
    """A measure of the optional package pyiqa; with ``weights`` nothing is downloaded."""
    try:
        import pyiqa
        import torch
    except ImportError as error:
        raise RestoreError(f"the measure {model!r} comes from pyiqa, which is not installed: pip install pyiqa "
                           "(non-commercial licence)") from error
    options = {"pretrained_model_path": weights} if weights else {}
    made = pyiqa.create_metric(model, device="cpu", **options)

    def value(image):
        tensor = torch.from_numpy(image.astype(np.float32) / 255).permute(2, 0, 1)[None]
        with torch.inference_mode():
            return float(made(tensor))

    return value
