"""Block-wise difference maps of a gray image, computed once and shared by sharpness, noise, flatness and blockiness.

First and second differences are taken in integers, strip by strip (a strip stays in the processor's cache and a
24-megapixel image needs no more memory than a small one), and averaged over square blocks.
"""

from dataclasses import dataclass

import cv2
import numpy as np

BLOCK = 16
STRIP = 64
_ONES = np.ones((BLOCK, 1), np.float32)


@dataclass
class Maps:
    """Means over blocks, float32 (rows, columns): |first difference| along x and y, |second difference| along x and y,
    Immerkaer's noise operator |d2/dx2 d2/dy2|, and the mean gray. ``columns`` (w - 1) holds the mean over the rows looked
    at of the clipped |difference| between columns k and k + 1; ``rows`` (h - 1) the same between rows, NaN where not
    looked at."""

    dx: np.ndarray
    dy: np.ndarray
    dxx: np.ndarray
    dyy: np.ndarray
    cross: np.ndarray
    mean: np.ndarray
    columns: np.ndarray
    rows: np.ndarray

    @property
    def gradient(self):
        return self.dx + self.dy


def halve(gray):
    """2x2 means, an odd last row or column left out."""
    h, w = gray.shape[0] // 2, gray.shape[1] // 2
    return cv2.resize(gray[:2 * h, :2 * w], (w, h), interpolation=cv2.INTER_AREA)


def block_maps(gray, block=BLOCK, grid=False, max_strips=None):
    """:class:`Maps` of a (h, w) uint8 image of at least ``block + 2`` pixels each way.

    ``grid=True`` fills ``columns`` and ``rows``. ``max_strips`` takes that many strips of 64 rows, evenly spread,
    instead of all: very large images are sampled.
    """
    height, width = gray.shape
    across = (width - 2) // block
    inner = across * block
    strips = list(range(0, height - 2 - block + 1, STRIP))
    if max_strips and len(strips) > max_strips:
        strips = [strips[i] for i in np.linspace(0, len(strips) - 1, max_strips).astype(int)]
    parts = {name: [] for name in ("dx", "dy", "dxx", "dyy", "cross", "mean")}
    column_sum, row_sums, seen = np.zeros(width - 1), np.full(height - 1, np.nan), 0
    for top in strips:
        count = (min(top + STRIP + 2, height) - top - 2) // block
        tall = count * block
        a = gray[top:top + tall + 2].astype(np.int16)
        dx, dy = _along(a), a[1:] - a[:-1]
        dxx, dyy = _along(dx), dy[1:] - dy[:-1]
        cross = _along(_along(dyy))
        for name, values in (("dx", dx[1:-1]), ("dy", dy[1:, 1:]), ("dxx", dxx[1:-1]), ("dyy", dyy[:, 1:]),
                             ("cross", cross), ("mean", a[1:-1, 1:])):
            # sums of 16 rows of the largest operator, 8 x 255, just fit 16 bits
            sums = np.add.reduce(np.abs(values[:, :inner]).reshape(count, block, inner), 1, dtype=np.int16)
            parts[name].append(_fold(sums, count, across, block))
        if grid:                                          # clipped: strong edges say nothing about the grid
            strip = gray[top:top + tall + 1]
            column_sum += np.add.reduce(cv2.min(cv2.absdiff(strip[:-1, 1:], strip[:-1, :-1]), 24), 0, dtype=np.uint16)
            row_sums[top:top + tall] = cv2.reduce(cv2.min(cv2.absdiff(strip[1:], strip[:-1]), 24), 1, cv2.REDUCE_SUM,
                                                  dtype=cv2.CV_32F)[:, 0]
            seen += tall
    made = {name: np.concatenate(values) / np.float32(block * block) for name, values in parts.items()}
    return Maps(**made, columns=column_sum / seen if grid else None, rows=row_sums / width if grid else None)


def _along(a):
    """First difference along each row; the last column wraps around and is never used (unbroken memory is faster)."""
    flat = a.ravel()
    out = np.empty_like(flat)
    np.subtract(flat[1:], flat[:-1], out=out[:-1])
    out[-1] = 0
    return out.reshape(a.shape)


def _fold(sums, count, across, block):
    return (sums.reshape(count * across, block).astype(np.float32) @ _ONES[:block]).reshape(count, across)
