"""PIQE: the perception-based image quality evaluator, from its paper. Lower is better, 0 to 100.

Venkatanath N., Praneeth D., Maruthi Chandrasekhar Bh., Channappayya, Medasani: "Blind image quality evaluation using
perception based features", NCC 2015. Only blocks with structure count; a block is distorted when a stretch of its border is
flat (blur, blocking) or when its middle stands out from its rest as noise does.
"""

import cv2
import numpy as np

BLOCK, SEGMENT = 16, 6
ACTIVE, FLAT = 0.1, 0.1                      # thresholds of the paper: variance of a block, deviation of a stretch


def mscn(levels):
    """Mean-subtracted, contrast-normalised coefficients of gray levels (0..255), with their local mean and deviation."""
    kernel = np.exp(-0.5 * (np.arange(-3, 4) / (7 / 6)) ** 2)
    kernel /= kernel.sum()
    mean = cv2.sepFilter2D(levels, cv2.CV_64F, kernel, kernel, borderType=cv2.BORDER_REPLICATE)
    square = cv2.sepFilter2D(levels * levels, cv2.CV_64F, kernel, kernel, borderType=cv2.BORDER_REPLICATE)
    deviation = np.sqrt(np.abs(square - mean * mean))
    return (levels - mean) / (deviation + 1), mean, deviation


def blocks(plane, size):
    """A plane ``(h, w)`` of whole blocks as ``(rows, columns, size, size)``."""
    height, width = plane.shape
    return plane.reshape(height // size, size, width // size, size).swapaxes(1, 2)


def piqe(levels):
    """PIQE of gray levels, float64 ``(h, w)`` in 0..255."""
    height, width = levels.shape
    levels = np.pad(levels, ((0, -height % BLOCK), (0, -width % BLOCK)), mode="symmetric")
    tiles = blocks(mscn(levels)[0], BLOCK).reshape(-1, BLOCK, BLOCK)
    variance = tiles.var((1, 2), ddof=1)
    active = variance > ACTIVE
    tiles, variance = tiles[active], variance[active]
    borders = np.stack([tiles[:, 0], tiles[:, -1], tiles[:, :, 0], tiles[:, :, -1]], 1)
    stretches = np.lib.stride_tricks.sliding_window_view(borders, SEGMENT, axis=-1)
    impaired = (stretches.std(-1, ddof=1) < FLAT).any((1, 2))
    # the rest leaves out columns 7 and 9 where 7 and 8 are the middle: so do MATLAB's piqe and its ports, so kept
    middle, rest = tiles[:, :, 7:9], np.delete(tiles, (7, 9), axis=2)
    ratio = middle.std((1, 2), ddof=1) / rest.std((1, 2), ddof=1)
    deviation = np.sqrt(variance)
    noisy = deviation > 2 * np.abs(deviation - ratio) / np.maximum(deviation, ratio)
    distortion = (impaired * (1 - variance) + noisy * variance).sum()
    return float(100 * (distortion + 1) / (active.sum() + 1))
