"""BMP with 24 bits, 8-bit gray, or 32 bits with alpha."""

import struct

from .pillow import arrays, opened
from .raster import Raster

BITS, ALPHA = (8,), True


def read(data):
    """The image in the bytes of a BMP."""
    raster = Raster(format="BMP")
    with opened(data, "BMP") as image:
        raster.color, raster.alpha, _ = arrays(image)
        raster.dpi = image.info.get("dpi")
    return raster


def write(raster, file, quality=None):
    """Write a BMP; ``quality`` has no meaning here."""
    import cv2
    order = {1: [0], 2: [0, 0, 0, 1], 3: [2, 1, 0], 4: [2, 1, 0, 3]}      # only the 32-bit header speaks of alpha
    array = raster.stacked()
    encoded = cv2.imencode(".bmp", array[:, :, order[array.shape[2]]])[1]
    if raster.dpi:
        struct.pack_into("<ii", encoded, 38, *(round(v / 0.0254) for v in raster.dpi))
    file.write(encoded.tobytes())
