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

from .header import Refused, read_header


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
        pixels, transparent = _png(data)
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
            simplejpeg.decode_jpeg(data, "CMYK", strict=True)
            return _pillow(data)[0]        # Pillow knows Adobe's inverted CMYK
        pixels = simplejpeg.decode_jpeg(data, "GRAY" if header.mode == "L" else "BGR", fastupsample=True, strict=True)
        return pixels[:, :, 0] if header.mode == "L" else pixels
    except ValueError as error:
        text = str(error).strip()
        kind = "truncated" if "remature end" in text else "corrupt"
        raise Refused(f"{kind}: {text}") from None


def _png(data):
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
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise Refused("corrupt: the PNG cannot be decoded")
    pixels = _eight_bits(pixels)
    return _opaque(pixels)


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


def _opaque(pixels):
    """BGRA laid on white: ``(BGR or gray, share of pixels that were not opaque)``."""
    if pixels.ndim == 2:
        return pixels, 0.0
    if pixels.shape[2] != 4:
        return pixels, 0.0
    alpha = pixels[:, :, 3]
    solid = int(np.count_nonzero(alpha >= 250))
    colour = cv2.cvtColor(pixels, cv2.COLOR_BGRA2BGR)
    if solid == alpha.size:
        return colour, 0.0
    for y in range(0, len(colour), 256):                  # in bands: a 24-megapixel float copy would be 300 MB
        share = alpha[y:y + 256, :, None].astype(np.float32) / 255
        colour[y:y + 256] = (colour[y:y + 256] * share + 255 * (1 - share) + 0.5).astype(np.uint8)
    return colour, 1 - solid / alpha.size


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
                    return _opaque(cv2.cvtColor(np.asarray(image.convert("RGBA")), cv2.COLOR_RGBA2BGRA))
                colour = image if image.mode == "RGB" else image.convert("RGB")
                # straight to BGR: of a 24-megapixel picture every copy is 72 MB
                return np.frombuffer(colour.tobytes("raw", "BGR"), np.uint8).reshape(colour.height, colour.width, 3), 0.0
    except Refused:
        raise
    except MemoryError:
        raise Refused("unsupported: not enough memory to decode it") from None
    except Exception as error:  # noqa: BLE001  Pillow's readers raise anything on broken files
        kind = "truncated" if "truncated" in str(error).lower() else "corrupt"
        raise Refused(f"{kind}: {type(error).__name__}: {error}") from None
