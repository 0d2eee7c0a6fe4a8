"""A score: a restored image, its clean counterpart and a protocol in, the protocol's numbers out."""

import numpy as np

from ..metrics import luma, psnr, ssim
from .catalog import REFERENCE_MEASURES

MAPS = 8                                      # side of the cells in which the squared error is kept for finding crops


def to_float(image):
    """Float64 in [0, 1], ``(h, w, 3)``, from uint8, uint16 or float; raises ``ValueError`` for values that are not finite."""
    image = np.asarray(image)
    if image.dtype.kind == "u":
        return image / float(np.iinfo(image.dtype).max)
    image = image.astype(np.float64)
    if not np.isfinite(image).all():
        raise ValueError("the restored image has values that are not finite")
    return np.clip(image, 0.0, 1.0, out=image)


def score(restored, clean, protocol):
    """``{metric name: value}`` of ``restored`` (uint8, uint16 or float RGB) against ``clean`` (uint8), both ``(h, w, 3)``.

    ``clean`` is None for photos. Raises ``ValueError`` for another size or values that are not finite.
    """
    restored = to_float(restored)
    if clean is not None and restored.shape != clean.shape:
        raise ValueError(f"the restored image is {restored.shape[0]}x{restored.shape[1]} and the clean one "
                         f"{clean.shape[0]}x{clean.shape[1]} (height x width)")
    if protocol.round == "8bit":
        restored = np.rint(restored * 255) / 255
    if protocol.metrics[0].measure not in REFERENCE_MEASURES:
        from .noreference import measure
        levels = np.rint(restored * 255).astype(np.uint8)
        return {metric.name: measure(metric, levels) for metric in protocol.metrics}
    planes = [np.moveaxis(_inner(image, protocol.border), -1, 0) for image in (restored, to_float(clean))]
    by_channel = {"rgb": planes}
    for channel in {metric.channel for metric in protocol.metrics} - {"rgb"}:
        by_channel[channel] = [_luma(image, channel) for image in planes]
    return {metric.name: _measure(metric, *by_channel[metric.channel], protocol.limit) for metric in protocol.metrics}


def _measure(metric, restored, clean, limit):
    return psnr(restored, clean, limit) if metric.measure == "psnr" else ssim(restored, clean, metric.window)


def _luma(planes, channel):
    values = luma(planes)
    return np.rint(values * 255) / 255 if channel == "y8" else values


def _inner(image, border):
    return image[border:image.shape[0] - border, border:image.shape[1] - border] if border else image


def error_cells(image, clean):
    """Mean squared error (0..1 scale) of ``uint8`` images in cells of 8x8 pixels, rows and columns beyond whole cells left out."""
    height, width = (side // MAPS * MAPS for side in clean.shape[:2])
    difference = image[:height, :width].astype(np.float32) - clean[:height, :width]
    difference *= difference
    rows = difference.reshape(height // MAPS, MAPS, width * 3).sum(1)
    return rows.reshape(height // MAPS, width // MAPS, MAPS * 3).sum(-1) / (MAPS * MAPS * 3 * 255.0 ** 2)
