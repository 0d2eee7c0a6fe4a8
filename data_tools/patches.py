"""Choosing the most detailed windows of an image, and cutting them out without loss."""

import math

import cv2
import numpy as np

from restore.errors import ImageError

from . import jpeg_crop
from .decode import decode
from .header import read_header

_STEP = 16                                 # windows begin at multiples of this: the MCU of most JPEGs
_BLOCK = 8


def choose(gray, size, count, overlap=0.0, min_detail=0.0, step=(_STEP, _STEP)):
    """The ``count`` most detailed ``size`` x ``size`` windows of a uint8 luma image: a list of (x, y, detail).

    detail is the mean of |dx| + |dy| per pixel, each 8x8 block counted up to 32, so that a few hard edges do not outweigh
    texture. Windows are taken from the most detailed down (equals: from the top left), leaving out those that would
    share more than ``overlap`` of their side, in both directions, with one that was taken, and those below
    ``min_detail``. They begin at multiples of ``step`` (x, y). An image smaller than ``size`` has none.
    """
    height, width = gray.shape
    if min(height, width) < size:
        return []
    detail = _detail(gray)
    ys, xs = np.arange(0, height - size + 1, step[1]), np.arange(0, width - size + 1, step[0])
    table = cv2.integral(detail.astype(np.float64))
    top, left = ys // _BLOCK, xs // _BLOCK
    side = size // _BLOCK if size >= _BLOCK else 1
    bottom, right = np.minimum(top + side, detail.shape[0]), np.minimum(left + side, detail.shape[1])
    sums = table[np.ix_(bottom, right)] - table[np.ix_(top, right)] - table[np.ix_(bottom, left)] + table[np.ix_(top, left)]
    scores = np.round(sums / ((bottom - top)[:, None] * (right - left)), 6)
    chosen = []
    apart = size * (1 - overlap)
    while len(chosen) < count:
        at = int(scores.argmax())
        i, j = divmod(at, len(xs))
        if scores[i, j] < max(min_detail, 0) or scores[i, j] == -1:
            break
        chosen.append((int(xs[j]), int(ys[i]), float(scores[i, j])))
        scores[np.ix_(abs(ys - ys[i]) < apart, abs(xs - xs[j]) < apart)] = -1
    return chosen


def _detail(gray):
    """Mean |dx| + |dy| of 8x8 blocks, at most 32."""
    dx = cv2.absdiff(gray[:-1, 1:], gray[:-1, :-1])
    dy = cv2.absdiff(gray[1:, :-1], gray[:-1, :-1])
    height, width = (max(1, math.ceil(side / _BLOCK)) for side in gray.shape)
    total = cv2.copyMakeBorder(cv2.add(dx, dy, dtype=cv2.CV_16U), 0, height * _BLOCK - dx.shape[0], 0,
                               width * _BLOCK - dx.shape[1], cv2.BORDER_REPLICATE)
    return np.minimum(cv2.resize(total.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA), 32)


def cut(data, settings, max_megapixels=200.0):
    """The windows of an encoded image by the recipe's ``export`` settings: a list of (encoded bytes, suffix, x, y).

    ``patches``: decoded pixels as PNG. ``crops``: a JPEG's own coefficients where libjpeg-turbo is installed and the image
    is stored upright, else the pixels as PNG, with all their bits and their alpha. Raises ImageError.
    """
    header = read_header(data)
    choice = (settings.patch_size, settings.patches_per_image, settings.patch_overlap, settings.patch_min_detail)
    if settings.content == "crops" and header.format == "JPEG" and header.orientation in (0, 1) and jpeg_crop.available():
        _, pixels, _ = decode(data, max_megapixels)
        try:
            *_, mcu_width, mcu_height = jpeg_crop.grid(data)
            step = max(_STEP, mcu_width), max(_STEP, mcu_height)
            return [(jpeg_crop.crop(data, x, y, settings.patch_size, settings.patch_size), "jpg", x, y)
                    for x, y, _ in choose(_gray(pixels), *choice, step)]
        except ValueError:
            pass                           # such as arithmetic coding: the pixels then
    pixels = _all_bits(data, header) if settings.content == "crops" else None
    if pixels is None:
        pixels = _pixels(data, header, max_megapixels)
    return [(_png(pixels[y:y + settings.patch_size, x:x + settings.patch_size]), "png", x, y)
            for x, y, _ in choose(_gray(pixels), *choice)]


def _pixels(data, header, max_megapixels):
    """8-bit pixels, upright; JPEG with smooth chroma, as training reads it, where measuring takes the quick way."""
    if header.format != "JPEG" or header.width * header.height > max_megapixels * 1e6:
        return decode(data, max_megapixels)[1]
    from restore.image import read_rgb8  # brings torch, so only when it is needed
    return np.ascontiguousarray(read_rgb8(data)[:, :, ::-1])


def _all_bits(data, header):
    """Pixels with 16 bits and alpha, for formats that have them and that OpenCV reads unchanged; else None."""
    if header.format not in ("PNG", "TIFF") or header.orientation not in (0, 1):
        return None
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    return pixels if pixels is not None and pixels.dtype in (np.uint8, np.uint16) else None


def _gray(pixels):
    pixels = (pixels >> 8).astype(np.uint8) if pixels.dtype == np.uint16 else pixels
    if pixels.ndim == 2:
        return pixels
    return cv2.cvtColor(pixels, cv2.COLOR_BGRA2GRAY if pixels.shape[2] == 4 else cv2.COLOR_BGR2GRAY)


def _png(pixels):
    done, data = cv2.imencode(".png", pixels)
    if not done:
        raise ImageError("unsupported: the pixels cannot be written as PNG")
    return data.tobytes()
