"""PPM and PGM (Netpbm), plain or raw, any maximum up to 65,535; bitmaps (PBM) are read as gray."""

import re

import numpy as np

from .pillow import arrays, opened
from .raster import Raster

BITS, ALPHA = (8, 16), False
_HEADER = re.compile(rb"P([56])" + rb"(?:\s|#[^\n]*\n)+(\d+)" * 3 + rb"\s", re.DOTALL)


def read(data):
    """The image in the bytes of a PPM, PGM or PBM."""
    raster, header = Raster(format="PPM"), _HEADER.match(data)
    if header is None:                       # plain text, or a bitmap
        with opened(data, "PPM") as image:
            raster.color, raster.alpha, _ = arrays(image)
        return raster
    width, height, top = map(int, header.groups()[1:])
    channels = 3 if header[1] == b"6" else 1
    if not 0 < top < 65536:
        raise ValueError(f"its largest value is {top}, which no PPM may have")
    kind = np.dtype("u1" if top < 256 else ">u2")
    if len(data) - header.end() < width * height * channels * kind.itemsize:
        raise ValueError("it is cut short")
    array = np.frombuffer(data, kind, width * height * channels, header.end()).reshape(height, width, channels)
    full = 255 if top < 256 else 65535
    array = array.astype(np.uint8 if full == 255 else np.uint16, copy=False)
    if top != full:
        array = np.rint(array.astype(np.float64).clip(0, top) * (full / top)).astype(array.dtype)
    raster.color = array
    return raster


def write(raster, file, quality=None):
    """Write a raw PPM or PGM; ``quality`` has no meaning here."""
    height, width, channels = raster.color.shape
    top = 255 if raster.color.dtype == np.uint8 else 65535
    file.write(b"P%d\n%d %d\n%d\n" % (6 if channels == 3 else 5, width, height, top))
    file.write(raster.color.astype("u1" if top == 255 else ">u2").tobytes())
