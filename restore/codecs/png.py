"""PNG at every depth. Written here chunk by chunk: no library writes 16-bit color together with its metadata."""

import struct
import zlib

import numpy as np

from .containers import PNG_SIGNATURE, png_chunk, png_chunks
from .exif import orientation
from .pillow import arrays, opened
from .raster import Raster, split

BITS, ALPHA = (8, 16), True
_GRAY, _RGB, _PALETTE, _GRAY_ALPHA, _RGBA = 0, 2, 3, 4, 6
_XMP = b"XML:com.adobe.xmp\0"
_KEPT = (b"cHRM", b"gAMA", b"sRGB", b"cICP", b"mDCV", b"cLLI", b"tEXt", b"zTXt", b"iTXt")
_MOST_ICC = 1 << 26
_BAND = 1 << 21                              # bytes filtered and compressed at a time


def read(data):
    """The image in the bytes of a PNG; every checksum is verified. An animation is an error."""
    raster, key = Raster(format="PNG"), None
    for kind, payload in png_chunks(data):
        if kind == b"IHDR":
            depth, color_type = payload[8], payload[9]
        elif kind == b"acTL":
            raise ValueError("it is an animation; restore its frames one by one")
        elif kind == b"tRNS":
            key = bytes(payload)
        elif kind == b"eXIf":
            raster.exif = bytes(payload)
        elif kind == b"iCCP":
            raster.icc = _profile(bytes(payload))
        elif kind == b"pHYs" and payload[8] == 1:
            raster.dpi = tuple(v * 0.0254 for v in struct.unpack(">II", payload[:8]))
        elif kind == b"iTXt" and bytes(payload[:len(_XMP)]) == _XMP:
            raster.xmp = _text(bytes(payload))
        elif kind in _KEPT:
            raster.extra.append((kind, bytes(payload)))
    if depth == 16:
        raster.color, raster.alpha = _read16(data, color_type)
    else:
        with opened(data, "PNG") as image:
            if color_type in (_GRAY, _RGB):
                image.info.pop("transparency", None)               # done below, alike for all depths
            raster.color, raster.alpha, _ = arrays(image)
    if key and color_type in (_GRAY, _RGB):
        top = 2 ** depth - 1
        full = 65535 if depth == 16 else 255
        color = np.frombuffer(key, ">u2").astype(np.int64) * full // top
        raster.alpha = np.where((raster.color == color).all(2), 0, full).astype(raster.color.dtype)
    return raster


def size(file):
    """``(height, width, orientation)`` of an open PNG, skipping its pixels."""
    file.seek(8)
    height = width = 0
    how = 1
    while len(head := file.read(8)) == 8 and head[4:] != b"IEND":
        length = int.from_bytes(head[:4], "big")
        if head[4:] == b"IHDR":
            width, height = struct.unpack(">II", file.read(8))
            length -= 8
        elif head[4:] == b"eXIf":
            how = orientation(file.read(length))
            length = 0
        file.seek(length + 4, 1)
    return height, width, how


def _read16(data, color_type):
    import cv2
    array = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if array is None or array.dtype != np.uint16:
        raise ValueError("its pixels are damaged")
    array = array[:, :, None] if array.ndim == 2 else array
    if color_type == _GRAY:
        return array[:, :, :1], None
    if color_type == _GRAY_ALPHA:            # OpenCV repeats the gray three times
        return array[:, :, :1], array[:, :, -1]
    color, alpha = split(array)
    return color[:, :, ::-1], alpha if color_type == _RGBA else None


def write(raster, file, quality=None):
    """Write 8 or 16 bits, gray or RGB, with or without alpha. ``quality`` has no meaning here."""
    height, width, channels = raster.color.shape
    alpha = raster.alpha is not None
    step = raster.color.dtype.itemsize
    color_type = {(1, False): _GRAY, (3, False): _RGB, (1, True): _GRAY_ALPHA, (3, True): _RGBA}[channels, alpha]
    file.write(PNG_SIGNATURE)
    file.write(png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8 * step, color_type, 0, 0, 0)))
    for kind, payload in _chunks(raster):
        file.write(png_chunk(kind, payload))
    pixel = step * (channels + alpha)
    packer, above = zlib.compressobj(6), np.zeros((1, width * pixel), np.uint8)
    rows = max(1, _BAND // (width * pixel))
    for top in range(0, height, rows):
        band = Raster(color=raster.color[top:top + rows],
                      alpha=raster.alpha[top:top + rows] if alpha else None).stacked()
        band = np.ascontiguousarray(band, band.dtype.newbyteorder(">")).view(np.uint8).reshape(len(band), -1)
        packed = packer.compress(_paeth(band, above, pixel).tobytes())
        above = band[-1:]
        if packed:
            file.write(png_chunk(b"IDAT", packed))
    file.write(png_chunk(b"IDAT", packer.flush()))
    file.write(png_chunk(b"IEND", b""))


def _paeth(rows, above, pixel):
    """Rows of bytes filtered with the Paeth predictor (PNG specification, 9.4), each behind its filter type, 4."""
    up = np.concatenate([above, rows[:-1]]).astype(np.int16)
    left, corner = np.zeros_like(up), np.zeros_like(up)
    left[:, pixel:], corner[:, pixel:] = rows[:, :-pixel], up[:, :-pixel]
    by_left, by_up = np.abs(up - corner), np.abs(left - corner)
    by_corner = np.abs(left + up - 2 * corner)
    guess = np.where((by_left <= by_up) & (by_left <= by_corner), left, np.where(by_up <= by_corner, up, corner))
    filtered = np.full((len(rows), rows.shape[1] + 1), 4, np.uint8)
    filtered[:, 1:] = rows - guess.astype(np.uint8)
    return filtered


def _chunks(raster):
    kinds = {kind for kind, _ in raster.extra} if raster.format == "PNG" else set()
    if raster.icc:
        yield b"iCCP", b"ICC profile\0\0" + zlib.compress(raster.icc, 9)
    if kinds:
        yield from (item for item in raster.extra if not (raster.icc and item[0] == b"sRGB"))
    if raster.dpi:
        yield b"pHYs", struct.pack(">IIB", *(round(v / 0.0254) for v in raster.dpi), 1)
    if raster.exif:
        yield b"eXIf", raster.exif
    if raster.xmp:
        yield b"iTXt", _XMP + b"\0\0\0\0" + raster.xmp


def _profile(payload):
    try:
        packer = zlib.decompressobj()
        profile = packer.decompress(payload[payload.index(b"\0") + 2:], _MOST_ICC)
        return profile if packer.eof else b""
    except (ValueError, zlib.error):
        return b""                           # a profile that no reader can use


def _text(payload):
    """The text of an iTXt chunk: keyword, compressed or not, method, language, translated keyword, text."""
    packed = payload[len(_XMP)]
    text = payload[len(_XMP) + 2:].split(b"\0", 2)[2]
    return zlib.decompressobj().decompress(text, _MOST_ICC) if packed else text
