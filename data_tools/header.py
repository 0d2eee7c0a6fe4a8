"""What an encoded image says of itself before a pixel is decoded: format, size, mode, progressive, tables."""

import io
import os
import re
import struct
import warnings
from dataclasses import dataclass, field

import numpy as np
from PIL import Image as PILImage

from restore.errors import ImageError

PILImage.MAX_IMAGE_PIXELS = None           # our own limit comes from the recipe and is checked before decoding

SUFFIXES = {                               # what a file name promises -> the format it should hold
    ".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG", ".png": "PNG", ".apng": "PNG", ".gif": "GIF",
    ".webp": "WEBP", ".bmp": "BMP", ".dib": "BMP", ".tif": "TIFF", ".tiff": "TIFF", ".ppm": "PPM", ".pgm": "PPM",
    ".pbm": "PPM", ".pnm": "PPM", ".avif": "AVIF", ".jp2": "JPEG2000", ".j2k": "JPEG2000"}


class Refused(ImageError):
    """An image that cannot be measured; ``str()`` is ``KIND: text`` with a KIND of :mod:`data_tools.store`."""


@dataclass
class Header:
    """Size in pixels as stored (``orientation`` not applied)."""

    format: str
    width: int
    height: int
    mode: str = "RGB"                      # L, RGB, RGBA, CMYK, P ... as in Pillow
    bits: int = 8
    frames: int = 1
    progressive: bool = False
    orientation: int = 1
    tables: list = field(default_factory=list)    # JPEG quantisation tables, 64 integers each, natural order not needed


def said(error):
    """An exception's name and text, without addresses in memory: the same file must give the same row again."""
    return re.sub(r" ?<[^<>]* at 0x[0-9a-f]+>", "", f"{type(error).__name__}: {error}")


def sniff(data):
    """The format that the first bytes show, or None."""
    head = bytes(data[:32])
    if head[:2] == b"\xff\xd8":
        return "JPEG"
    if head[:8] == b"\x89PNG\r\n\x1a\n":
        return "PNG"
    if head[:6] in (b"GIF87a", b"GIF89a"):
        return "GIF"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[:2] == b"BM":
        return "BMP"
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "TIFF"
    if head[:1] == b"P" and head[1:2] in b"123456" and head[2:3].isspace():
        return "PPM"
    if head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis", b"mif1"):
        return "AVIF"
    if head[:12] == b"\0\0\0\x0cjP  \r\n\x87\n" or head[:4] == b"\xff\x4f\xff\x51":
        return "JPEG2000"
    return None


def read_header(data):
    """:class:`Header` of an encoded image (bytes). Raises :class:`Refused` for what is none, or none that we know."""
    if not len(data):
        raise Refused("empty: the file has no bytes")
    kind = sniff(data)
    if kind is None:
        what = "a web page or text" if bytes(data[:256]).lstrip()[:1] in (b"<", b"{") else "no known image format"
        raise Refused(f"not-an-image: the bytes are {what}")
    if kind == "JPEG":
        return _jpeg(data)
    if kind == "PNG":
        return _png(data)
    return _pillow(data, kind)


def misnamed(name, kind):
    """Whether a file name promises another format than the bytes hold; names that promise nothing do not lie."""
    promised = SUFFIXES.get(os.path.splitext(name)[1].lower())
    return promised is not None and promised != kind


_SOF = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}


def _jpeg(data):
    tables, orientation, position, size = {}, 1, 2, len(data)
    while position + 4 <= size:
        if data[position] != 0xFF:
            raise Refused("corrupt: a JPEG marker is missing in the header")
        marker = data[position + 1]
        if marker == 0xFF:
            position += 1
            continue
        length = data[position + 2] << 8 | data[position + 3]
        start, end = position + 4, position + 2 + length
        if end > size:
            break
        if marker == 0xDB:
            while start + 65 <= end:
                precision, number = data[start] >> 4, data[start] & 15
                count = 128 if precision else 64
                raw = bytes(data[start + 1:start + 1 + count])
                tables[number] = list(struct.unpack(">64H", raw) if precision and len(raw) == 128 else raw[:64])
                start += 1 + count
        elif marker in _SOF and end - start >= 6:
            bits, height, width, components = struct.unpack_from(">BHHB", data, start)
            mode = {1: "L", 3: "RGB", 4: "CMYK"}.get(components, "?")
            if not width or not height:
                raise Refused("corrupt: the JPEG header gives no size")
            if marker in (0xC3, 0xC5, 0xC6, 0xC7, 0xCB, 0xCD, 0xCE, 0xCF):
                raise Refused("unsupported: lossless or hierarchical JPEG")
            return Header("JPEG", width, height, mode, bits, 1, marker in (0xC2, 0xCA), orientation,
                          [tables[n] for n in sorted(tables)])
        elif marker == 0xE1 and bytes(data[start:start + 6]) == b"Exif\0\0":
            orientation = _orientation(bytes(data[start + 6:end]))
        elif marker in (0xDA, 0xD9):
            raise Refused("corrupt: the JPEG has no frame header")
        position = end
    raise Refused("truncated: the file ends inside its JPEG header")


def _orientation(tiff):
    """The EXIF orientation 1..8 in a TIFF block; 1 when there is none or it is nonsense."""
    try:
        order = {b"II": "<", b"MM": ">"}[tiff[:2]]
        offset = struct.unpack_from(order + "I", tiff, 4)[0]
        for k in range(struct.unpack_from(order + "H", tiff, offset)[0]):
            tag, _, _, value = struct.unpack_from(order + "HHIH", tiff, offset + 2 + 12 * k)
            if tag == 0x0112:
                return value if 1 <= value <= 8 else 1
    except (KeyError, struct.error):
        pass
    return 1


def _png(data):
    if len(data) < 33 or bytes(data[12:16]) != b"IHDR":
        raise Refused("truncated: the file ends inside its PNG header")
    width, height, bits, colour = struct.unpack_from(">IIBB", data, 16)
    mode = {0: "L", 2: "RGB", 3: "P", 4: "LA", 6: "RGBA"}.get(colour)
    if mode is None or not width or not height:
        raise Refused("corrupt: the PNG header is nonsense")
    frames, orientation, position = 1, 1, 8
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        if kind == b"acTL" and position + 16 <= len(data):
            frames = struct.unpack_from(">I", data, position + 8)[0]
        elif kind == b"tRNS" and mode in ("L", "RGB", "P"):
            mode = {"L": "LA", "RGB": "RGBA", "P": "PA"}[mode]
        elif kind == b"eXIf":
            orientation = _orientation(bytes(data[position + 8:position + 8 + length]))
        elif kind == b"IDAT":
            break
        position += 12 + length
    return Header("PNG", width, height, mode, bits, max(1, frames), False, orientation)


def _pillow(data, kind):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with PILImage.open(io.BytesIO(data)) as image:
                bits = 16 if image.mode.startswith("I;16") else 32 if image.mode in ("I", "F") else 8
                if kind == "TIFF":
                    depth = image.tag_v2.get(258, 8)
                    bits = max(depth) if isinstance(depth, tuple) else int(depth)
                orientation = image.getexif().get(0x0112, 1)
                return Header(image.format if image.format != "MPO" else "JPEG", image.width, image.height, image.mode,
                              bits, getattr(image, "n_frames", 1), False,
                              orientation if orientation in range(1, 9) else 1)
    except Exception as error:  # noqa: BLE001  Pillow's readers raise anything on broken files
        raise Refused(f"corrupt: the {kind} header cannot be read ({said(error)})") from None


# the luma table of the JPEG standard's annex K; libjpeg's quality 1..100 scales it (both orders sum alike)
_STANDARD = np.sort(np.array([
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51,
    87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92, 49, 64, 78, 87, 103, 121, 120, 101,
    72, 92, 95, 98, 112, 100, 103, 99], np.float64))
_QUALITY = np.arange(1, 101)
_SUMS = np.array([np.clip(np.floor((_STANDARD * (5000 // q if q < 50 else 200 - 2 * q) + 50) / 100), 1, 255).sum()
                  for q in _QUALITY])


def jpeg_quality(table):
    """libjpeg's quality 1..100 whose luma table has the sum nearest to this one's; other encoders' tables are placed
    on the same scale by it."""
    return int(_QUALITY[np.abs(_SUMS - sum(table)).argmin()])
