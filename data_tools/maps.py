"""Block-wise difference maps of a gray image, computed once and shared by sharpness, noise, flatness and blockiness.

First and second differences are taken in integers, a few strips at a time (what fits in the processor's cache, so a
24-megapixel image needs no more memory than a small one), and averaged over square blocks.
"""

from dataclasses import dataclass

import cv2
import numpy as np

BLOCK = 16
_CACHED = 100_000                          # pixels that are worked on at once
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

    ``grid=True`` fills ``columns`` and ``rows``. With ``pixels`` only about so many are looked at: of large images, rows
    of blocks evenly spread over the height, at least five.
    """
    height, width = gray.shape
    across = (width - 2) // block
    inner = across * block
    parts, column_sum, row_sums, seen = [], np.zeros(width - 1), np.full(height - 1, np.nan), 0
    for count, tops in _strips(height, width, block, pixels):
        tall = count * block
        strips = np.concatenate([gray[top:top + tall + 2] for top in tops])
        a = strips.reshape(len(tops), tall + 2, width).astype(np.int16)
        dx, dy = _along(a), a[:, 1:] - a[:, :-1]
        dyy = dy[:, 1:] - dy[:, :-1]
        sums = np.empty((6, len(tops), count, inner), np.int16)
        # (operator, first row, first column); magnitudes are taken of whole arrays: unbroken memory is twice as fast
        operators = ((dx, 1, 0), (dy, 1, 1), (_along(dx), 1, 0), (dyy, 0, 1), (_along(_along(dyy)), 0, 0), (a, 1, 1))
        for (values, row, column), out in zip(operators, sums):
            values = values if values is a else np.abs(values, out=values)
            # sums of 16 rows of the largest operator, 8 x 255, just fit 16 bits
            values = values[:, row:row + tall, column:column + inner].reshape(len(tops), count, block, inner)
            np.add.reduce(values, 2, dtype=np.int16, out=out)
        parts.append((sums.reshape(-1, block).astype(np.float32) @ _ONES[:block]).reshape(6, -1, across))
        if grid:
            column_sum += _sum(cv2.absdiff(strips[:, 1:], strips[:, :-1]), 0)
            steps = _sum(cv2.absdiff(strips[1:], strips[:-1]), 1)
            for k, top in enumerate(tops):
                row_sums[top:top + tall] = steps[k * (tall + 2):k * (tall + 2) + tall]
            seen += len(strips)
    made = np.concatenate(parts, 1) / np.float32(block * block)
    return Maps(made, column_sum / seen if grid else None, row_sums / width if grid else None)


def _strips(height, width, block, pixels):
    """Yield ``(rows of blocks in a strip, tops of strips)``: what is worked on at once."""
    rows = (height - 2) // block
    if pixels is None or height * width <= 1.3 * pixels:
        step = max(1, min(2048 // block, _CACHED // (width * block)))
        for row in range(0, rows, step):
            yield min(step, rows - row), [row * block]
        return
    chosen = np.unique(np.linspace(0, rows - 1, max(5, pixels // (block * width))).astype(int)) * block
    at_once = max(1, _CACHED // (width * (block + 2)))
    for k in range(0, len(chosen), at_once):
        yield 1, chosen[k:k + at_once].tolist()


def _sum(steps, axis):
    """Sums of uint8 steps down the columns (axis 0) or along the rows (axis 1), clipped: strong edges say nothing about
    an 8-pixel grid."""
    return cv2.reduce(cv2.min(steps, 24), axis, cv2.REDUCE_SUM, dtype=cv2.CV_32F).ravel()


def _along(a):
    """First difference along each row; the last column wraps around and is never used (unbroken memory is faster)."""
    flat = a.ravel()
    out = np.empty_like(flat)
    np.subtract(flat[1:], flat[:-1], out=out[:-1])
    out[-1] = 0
    return out.reshape(a.shape)
