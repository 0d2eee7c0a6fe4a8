"""Block-wise difference maps of a gray image, computed once and shared by sharpness, noise, flatness and blockiness.

First and second differences are taken in integers, strip by strip (a strip stays in the processor's cache and a
24-megapixel image needs no more memory than a small one), and averaged over square blocks.
"""

from dataclasses import dataclass

import cv2
import numpy as np

BLOCK = 16
_CACHED = 100_000                          # pixels of a strip
_ONES = np.ones((BLOCK, 1), np.float32)


@dataclass
class Maps:
    """What :func:`block_maps` returns.

    values   float32 (6, rows, columns), means over blocks: |first difference| along x and along y, |second difference|
             along x and along y, Immerkaer's noise operator |d2/dx2 d2/dy2|, gray
    columns  (w - 1) mean over the rows looked at of the clipped |difference| between columns k and k + 1
    rows     (h - 1) the same between rows, NaN where not looked at
    """

    values: np.ndarray
    columns: np.ndarray
    rows: np.ndarray

    @property
    def gradient(self):
        return self.values[0] + self.values[1]

    @property
    def cross(self):
        return self.values[4]

    @property
    def mean(self):
        return self.values[5]


def halve(gray):
    """2x2 means, an odd last row or column left out."""
    h, w = gray.shape[0] // 2, gray.shape[1] // 2
    return cv2.resize(gray[:2 * h, :2 * w], (w, h), interpolation=cv2.INTER_AREA)


def block_maps(gray, block=BLOCK, grid=False, pixels=None):
    """:class:`Maps` of a (h, w) uint8 image of at least ``block + 2`` pixels each way.

    ``grid=True`` fills ``columns`` and ``rows``. With ``pixels`` only about so many are looked at, in five or more
    strips evenly spread over the height: large images are sampled.
    """
    height, width = gray.shape
    across = (width - 2) // block
    inner = across * block
    sampled = pixels is not None and height * width > 1.3 * pixels
    # a strip fits into the processor's cache; when sampling, more and lower ones see more of the picture
    step = min(2048 // block, max(2, (_CACHED // (3 if sampled else 1)) // (width * block))) * block
    strips = list(range(0, height - 2 - block + 1, step))
    if sampled:
        chosen = np.linspace(0, len(strips) - 1, max(5, pixels // (step * width))).astype(int)
        strips = [strips[i] for i in np.unique(chosen)]
    parts, column_sum, row_sums, seen = [], np.zeros(width - 1), np.full(height - 1, np.nan), 0
    for top in strips:
        count = (min(top + step + 2, height) - top - 2) // block
        tall = count * block
        a = gray[top:top + tall + 2].astype(np.int16)
        dx, dy = _along(a), a[1:] - a[:-1]
        dxx, dyy = _along(dx), dy[1:] - dy[:-1]
        cross = _along(_along(dyy))
        sums = np.empty((6, count, inner), np.int16)
        # sums of 16 rows of the largest operator, 8 x 255, just fit 16 bits
        for values, out in zip((dx[1:-1], dy[1:, 1:], dxx[1:-1], dyy[:, 1:], cross, a[1:-1, 1:]), sums):
            np.add.reduce(np.abs(values[:, :inner]).reshape(count, block, inner), 1, dtype=np.int16, out=out)
        parts.append((sums.reshape(-1, block).astype(np.float32) @ _ONES[:block]).reshape(6, count, across))
        if grid:                                          # clipped: strong edges say nothing about the grid
            strip = gray[top:top + tall + 1]
            column_sum += np.add.reduce(cv2.min(cv2.absdiff(strip[:-1, 1:], strip[:-1, :-1]), 24), 0, dtype=np.uint16)
            row_sums[top:top + tall] = cv2.reduce(cv2.min(cv2.absdiff(strip[1:], strip[:-1]), 24), 1, cv2.REDUCE_SUM,
                                                  dtype=cv2.CV_32F)[:, 0]
            seen += tall
    made = np.concatenate(parts, 1) / np.float32(block * block)
    return Maps(made, column_sum / seen if grid else None, row_sums / width if grid else None)


def _along(a):
    """First difference along each row; the last column wraps around and is never used (unbroken memory is faster)."""
    flat = a.ravel()
    out = np.empty_like(flat)
    np.subtract(flat[1:], flat[:-1], out=out[:-1])
    out[-1] = 0
    return out.reshape(a.shape)
