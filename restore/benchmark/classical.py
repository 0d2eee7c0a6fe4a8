"""Baselines without learning, the floor that a network has to beat. ``uint8`` RGB ``(h, w, 3)`` in and out.

Each takes ``(image, sigma)``; ``sigma`` is the noise level where it is known and None elsewhere, then it is estimated.
"""

import cv2
import numpy as np

from ..errors import RestoreError


def identity(image, sigma):
    """The degraded image itself."""
    return image


def median(image, sigma):
    """Median of 3x3 pixels, of each channel."""
    return cv2.medianBlur(image, 3)


def non_local_means(image, sigma):
    """Non-local means (Buades, Coll, Morel, CVPR 2005): patches of 7x7 in a window of 21x21, filter strength sigma."""
    sigma = estimate_sigma(image) if sigma is None else sigma
    return cv2.fastNlMeansDenoising(image, None, float(max(sigma, 1e-3)), 7, 21)


def bm3d(image, sigma):
    """BM3D of colour images (Dabov et al., TIP 2007), by the package bm3d of its authors."""
    try:
        import bm3d as package
    except ImportError as error:
        raise RestoreError("the baseline bm3d needs the package bm3d: pip install bm3d (non-commercial licence)") from error
    sigma = estimate_sigma(image) if sigma is None else sigma
    return np.clip(package.bm3d_rgb(image / 255.0, sigma / 255.0), 0, 1)


def dark_channel_prior(image, sigma, patch=15, keep=0.95, floor=0.1, radius=40, smooth=1e-3):
    """Dehazing by the dark channel prior (He, Sun, Tang, CVPR 2009), transmission refined by a guided filter (ECCV 2010)."""
    hazy = image / 255.0
    window = np.ones((patch, patch), np.uint8)
    dark = cv2.erode(hazy.min(-1), window)
    brightest = np.argsort(dark.ravel())[-max(1, dark.size // 1000):]
    light = hazy.reshape(-1, 3)[brightest].mean(0).clip(0.1)
    transmission = 1 - keep * cv2.erode((hazy / light).min(-1), window)
    guide = hazy @ np.array([0.299, 0.587, 0.114])
    transmission = _guided_filter(guide, transmission, radius, smooth).clip(floor, 1)
    return np.clip((hazy - light) / transmission[..., None] + light, 0, 1)


def estimate_sigma(image):
    """Standard deviation of the noise on the 0..255 scale (Immerkaer, CVIU 1996)."""
    levels = image.mean(-1)
    response = cv2.filter2D(levels, cv2.CV_64F, np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], float))[1:-1, 1:-1]
    # the mean over channels has a third of the variance of independent noise
    return float(np.sqrt(3) * np.sqrt(np.pi / 2) / 6 * np.abs(response).mean())


def _guided_filter(guide, image, radius, smooth):
    def mean(plane):
        return cv2.blur(plane, (2 * radius + 1, 2 * radius + 1))

    guide_mean, image_mean = mean(guide), mean(image)
    slope = (mean(guide * image) - guide_mean * image_mean) / (mean(guide * guide) - guide_mean ** 2 + smooth)
    return mean(slope) * guide + mean(image_mean - slope * guide_mean)


METHODS = {"input": identity, "median": median, "nlm": non_local_means, "bm3d": bm3d, "dcp": dark_channel_prior}
