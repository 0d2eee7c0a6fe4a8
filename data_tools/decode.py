"""One strict decode: bytes to 8-bit BGR or gray, or a reason. Damaged files that viewers silently accept are refused.

libjpeg, Pillow and OpenCV go on after bit-rot with a warning that nobody sees; here a JPEG goes through simplejpeg's
strict mode, a PNG's checksums are all verified, and other formats go through Pillow with truncation refused.
"""

import io
import struct
import sys
import warnings
import zlib

import cv2
import numpy as np
import simplejpeg
from PIL import Image as PILImage

from .header import Refused, read_header, said

_BAND = 256                                # rows converted at once: every whole copy of 24 megapixels is 72 MB or more


def decode(data, max_megapixels=200.0):
    """``(header, pixels, transparent)`` of an encoded image.

    pixels       uint8 (h, w) for gray images, else (h, w, 3) BGR, orientation applied; more than 8 bits keep the upper
                 8, the first frame of an animation is taken, transparency is laid on white
    transparent  share of pixels, 0..1, that are not opaque

    JPEG's chroma is enlarged the fast way (its luma, which nearly all metrics look at, is exact).

    Raises :class:`Refused`, whose text begins with its kind, also for images of more than ``max_megapixels`` by their
    header, before anything of them is decoded.
    """
    header = read_header(data)
    if header.width * header.height > max_megapixels * 1e6:
        raise Refused(f"bomb: the header declares {header.width}x{header.height} pixels, more than "
                      f"{max_megapixels:g} megapixels")
    transparent = 0.0
    if header.format == "JPEG":
        pixels = _jpeg(data, header)
    elif header.format == "PNG":
        pixels, transparent = _png(data, header)
    else:
        pixels, transparent = _pillow(data)
    if pixels.shape[0] < 1 or pixels.shape[1] < 1:
        raise Refused("corrupt: no pixels")
    return header, orient(pixels, header.orientation), transparent


def orient(pixels, orientation):
    """Pixels as they are meant to be seen, for an EXIF orientation 1..8."""
    if orientation in (5, 6, 7, 8):
        pixels = cv2.transpose(pixels)
    flip = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}.get(orientation)
    return pixels if flip is None else cv2.flip(pixels, flip)


def _jpeg(data, header):
    if header.bits != 8:
        raise Refused(f"unsupported: JPEG with {header.bits} bits")
    if header.mode not in ("L", "RGB", "CMYK"):
        raise Refused("unsupported: JPEG with an odd number of components")
    try:
        if header.mode == "CMYK":
            return _from_cmyk(simplejpeg.decode_jpeg(data, "CMYK", strict=True))
        pixels = simplejpeg.decode_jpeg(data, "GRAY" if header.mode == "L" else "BGR", fastupsample=True, strict=True)
        return pixels[:, :, 0] if header.mode == "L" else pixels
    except ValueError as error:
        text = str(error).strip()
        kind = "truncated" if "remature end" in text else "corrupt"
        raise Refused(f"{kind}: {text}") from None


def _from_cmyk(inverted):
    """BGR of a JPEG's CMYK, inverted as Adobe writes it and everybody reads it: each ink times black."""
    pixels = np.empty((*inverted.shape[:2], 3), np.uint8)
    for y in range(0, len(pixels), _BAND):
        band = inverted[y:y + _BAND]
        for channel, ink in ((2, 0), (1, 1), (0, 2)):
            pixels[y:y + _BAND, :, channel] = cv2.multiply(band[:, :, ink], band[:, :, 3], scale=1 / 255)
    return pixels


def _png(data, header):
    view, position = memoryview(data), 8
    while True:
        if position + 12 > len(view):
            raise Refused("truncated: the PNG ends before its last chunk")
        length, kind = struct.unpack_from(">I4s", view, position)
        end = position + 8 + length
        if end + 4 > len(view):
            raise Refused("truncated: the PNG ends inside a chunk")
        if zlib.crc32(view[position + 4:end]) != struct.unpack_from(">I", view, end)[0]:
            raise Refused(f"corrupt: wrong checksum in the PNG's {kind.decode('latin-1')!r} chunk")
        if kind == b"IEND":
            break
        position = end + 4
    flags = cv2.IMREAD_UNCHANGED
    if header.bits == 16:                  # to 8 bits row by row: a 24-megapixel RGBA of 16 bits is 192 MB
        if "A" in header.mode:
            return _pillow(data)
        flags = cv2.IMREAD_IGNORE_ORIENTATION | (cv2.IMREAD_GRAYSCALE if header.mode == "L" else cv2.IMREAD_COLOR)
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if pixels is None:
        raise Refused("corrupt: the PNG cannot be decoded")
    if pixels.ndim == 2 or pixels.shape[2] == 3:
        return pixels, 0.0
    return _on_white(pixels.shape[:2], (pixels[y:y + _BAND] for y in range(0, len(pixels), _BAND)))


def _eight_bits(pixels):
    if pixels.dtype == np.uint16:          # the upper bytes, without a second copy of 16 bits
        return np.ascontiguousarray(pixels.view(np.uint8)[..., 1::2] if sys.byteorder == "little"
                                    else pixels.view(np.uint8)[..., ::2])
    if pixels.dtype == np.uint8:
        return pixels
    low, high = float(np.nanmin(pixels)), float(np.nanmax(pixels))
    scale = 255 / max(high, 1e-12) if low >= 0 else 0      # floats and 32-bit integers have no agreed white
    if not np.isfinite(scale) or scale == 0:
        raise Refused("unsupported: pixels with negative or infinite values")
    return np.nan_to_num(pixels * scale).clip(0, 255).astype(np.uint8)


def _on_white(shape, bands):
    """``(BGR, share of pixels that were not opaque)`` of a BGRA picture, given some rows at a time, laid on white."""
    pixels, solid, y = np.empty((*shape, 3), np.uint8), 0, 0
    for band in bands:
        colour, alpha = band[:, :, :3], band[:, :, 3]
        opaque = int(np.count_nonzero(alpha >= 250))
        solid += opaque
        if opaque < alpha.size:
            share = alpha[:, :, None].astype(np.float32) / 255
            colour = colour * share + 255 * (1 - share) + 0.5
        pixels[y:y + len(band)] = colour
        y += len(band)
    return pixels, 1 - solid / (shape[0] * shape[1])


def _pillow(data):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with PILImage.open(io.BytesIO(data)) as image:
                image.load()
                if image.mode in ("I", "F") or image.mode.startswith("I;16"):
                    pixels = np.asarray(image)
                    return _eight_bits(pixels.astype(np.uint16) if image.mode.startswith("I;16") else pixels), 0.0
                if image.mode in ("1", "L"):
                    return np.asarray(image.convert("L")), 0.0
                if "A" in image.mode or "transparency" in image.info:
                    return _on_white((image.height, image.width), _bands(image, "RGBA", cv2.COLOR_RGBA2BGRA))
                pixels = np.empty((image.height, image.width, 3), np.uint8)
                for k, band in enumerate(_bands(image, "RGB", cv2.COLOR_RGB2BGR)):
                    pixels[k * _BAND:(k + 1) * _BAND] = band
                return pixels, 0.0
    except Refused:
        raise
    except MemoryError:
        raise Refused("unsupported: not enough memory to decode it") from None
    except Exception as error:  # noqa: BLE001  Pillow's readers raise anything on broken files
        kind = "truncated" if "truncated" in str(error).lower() else "corrupt"
        raise Refused(f"{kind}: {said(error)}") from None


def _bands(image, mode, order):
    """Yield a Pillow image some rows at a time, in another mode and order of channels."""
    for y in range(0, image.height, _BAND):
        rows = image.crop((0, y, image.width, min(y + _BAND, image.height)))
        yield cv2.cvtColor(np.asarray(rows if rows.mode == mode else rows.convert(mode)), order)
