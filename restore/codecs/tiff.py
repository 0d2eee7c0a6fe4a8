"""TIFF of 8 and 16 bits and floating point. Of several pages the first is read."""

import io
import logging
import struct
import zlib

import numpy as np

from .exif import ORIENTATION, orientation, turn
from .pillow import arrays, opened
from .raster import Raster, split

BITS, ALPHA = (8, 16, 32), True
_ICC, _XMP, _EXTRA_SAMPLES, _PREMULTIPLIED = 34675, 700, 338, 1
# what describes the picture and not how its pixels are stored: this is kept as EXIF
_DESCRIPTIVE = {269, 270, 271, 272, ORIENTATION, 285, 305, 306, 315, 316, 33432, 33723, 34377, 34665, 34853,
                18246, 18249, *range(40091, 40096), 33550, 33922, *range(34735, 34738), 42112, 42113}
_PIXEL_TAGS = {254, 255, *range(256, 267), 273, 277, 278, 279, 280, 281, 282, 283, 284, 296, 301, *range(317, 326),
               330, *range(332, 348), *range(512, 532), _XMP, _ICC}
_SHORT, _LONG, _RATIONAL, _UNDEFINED = 3, 4, 5, 7
_LARGEST = 2 ** 32 - 2 ** 20


def read(data):
    """The image in the bytes of a TIFF. Values of floating point outside [0, 1] are left for the caller to judge."""
    import tifffile
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)       # damage is an error here, not a line in a log
    raster = Raster(format="TIFF")
    with tifffile.TiffFile(io.BytesIO(data)) as tiff:
        page = tiff.pages.first
        if len(tiff.pages) > 1:
            raster.notes.append(f"of {len(tiff.pages)} pages only the first is taken")
        if any(start + count > len(data) for start, count in zip(page.dataoffsets, page.databytecounts, strict=False)):
            raise ValueError("it is cut short")
        tags = {tag.code: tag.value for tag in page.tags}
        raster.icc, raster.xmp = bytes(tags.get(_ICC, b"")), bytes(tags.get(_XMP, b""))
        raster.dpi = _dpi(tags)
        raster.exif = _exif(data)
        if page.sampleformat == 2:
            raise ValueError(f"it holds signed integers ({page.dtype}); 8 and 16 bits without sign and floating point are read")
        if page.bitspersample <= 8:
            with opened(data, "TIFF") as image:
                raster.color, raster.alpha, note = arrays(image, raster.icc)
                back = {6: 8, 8: 6}.get(how := orientation(raster.exif), how)
                if ORIENTATION not in image.getexif():             # Pillow has turned it upright: as stored, please
                    raster.color = turn(raster.color, back)
                    raster.alpha = None if raster.alpha is None else turn(raster.alpha, back)
            if note:
                raster.notes.append(note)
                raster.icc = b""
        else:
            raster.color, raster.alpha = _deep(data, page)
            if raster.alpha is not None and 1 in np.atleast_1d(tags.get(_EXTRA_SAMPLES, 0)):
                raster.color = _unmultiplied(raster.color, raster.alpha)
    return raster


def size(file):
    """``(height, width, orientation)`` from the header of an open TIFF."""
    import tifffile
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    with tifffile.TiffFile(file) as tiff:
        page = tiff.pages.first
        tag = page.tags.get(ORIENTATION)
        return page.imagelength, page.imagewidth, int(tag.value) if tag else 1


def _deep(data, page):
    """``(color, alpha)`` of a page with 16 bits or floating point."""
    kind = page.dtype
    if kind is None or not (kind == np.uint16 or kind.kind == "f"):
        raise ValueError(f"it holds samples of the type {kind}; 8 and 16 bits without sign and floating point are read")
    if page.photometric not in (0, 1, 2):
        raise ValueError(f"16-bit {getattr(page.photometric, 'name', page.photometric)} is not supported; gray and RGB are")
    try:
        array = page.asarray()
        if page.planarconfig == 2 and array.ndim == 3:
            array = array.transpose(1, 2, 0)
    except ValueError as error:              # a compression for which tifffile needs a package that we do not
        import cv2
        array = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        if array is None or array.dtype != kind or array.shape[:2] != (page.imagelength, page.imagewidth):
            raise ValueError(f"its pixels cannot be decoded ({error})") from error
        if array.ndim == 3 and array.shape[2] >= 3:
            array = array[:, :, [2, 1, 0, 3][:array.shape[2]]]
    if array.shape[:2] != (page.imagelength, page.imagewidth):
        raise ValueError(f"its pixels have the shape {array.shape}, which is not an image")
    color, alpha = split(array.astype(np.float32 if kind.kind == "f" else np.uint16, copy=False))
    if page.photometric == 0:
        color = (1 if kind.kind == "f" else 65535) - color
    return color, alpha


def _unmultiplied(color, alpha):
    scale = 65535 if color.dtype == np.uint16 else 1
    straight = color.astype(np.float32) * scale / np.maximum(alpha, 1 if scale > 1 else 1e-6)[:, :, None]
    return straight if scale == 1 else np.rint(straight.clip(0, scale)).astype(np.uint16)


def _dpi(tags):
    per_inch = {2: 1, 3: 2.54}.get(int(tags.get(296, 2)))
    pairs = [tags.get(282), tags.get(283)]
    if per_inch is None or not all(isinstance(p, tuple) and len(p) == 2 and p[0] and p[1] for p in pairs):
        return None
    return tuple(p[0] / p[1] * per_inch for p in pairs)


def _exif(data):
    """The descriptive tags of the first page as an EXIF block; empty where there are none or they are damaged."""
    from PIL import Image
    source, kept = Image.Exif(), Image.Exif()
    try:
        source.load(b"Exif\0\0" + data)
        for tag in _DESCRIPTIVE.intersection(source):
            kept[tag] = source.get_ifd(tag) if tag in (34665, 34853) else source[tag]
        return kept.tobytes()[6:] if len(kept) else b""
    except (ArithmeticError, AttributeError, LookupError, OSError, SyntaxError, TypeError, ValueError, struct.error):
        return b""


def write(raster, file, quality=None):
    """Write with Deflate compression; ``quality`` has no meaning here.

    The EXIF block opens the file, since it is a TIFF itself: so its directory entries, and the offsets inside its
    maker's note, stay valid as they are. The pixels follow, then the one directory that the header points to.
    """
    height, width, _ = raster.color.shape
    order = ">" if raster.exif[:2] == b"MM" else "<"
    head = bytearray(raster.exif if len(raster.exif) >= 8 else struct.pack("<2sHI", b"II", 42, 0))
    head += b"\0" * (len(head) % 2)
    inherited = _directory(bytes(head), order)
    file.write(head)
    at, starts, counts = len(head), [], []
    channels = raster.color.shape[2] + (raster.alpha is not None)
    rows = max(1, (1 << 20) // (width * channels * raster.color.dtype.itemsize))
    for top in range(0, height, rows):
        strip = Raster(color=raster.color[top:top + rows],
                       alpha=None if raster.alpha is None else raster.alpha[top:top + rows]).stacked()
        packed = zlib.compress(_differences(strip).astype(strip.dtype.newbyteorder(order)).tobytes(), 6)
        starts.append(at)
        counts.append(len(packed))
        file.write(packed)
        at += len(packed)
        if at > _LARGEST:
            raise ValueError("it would exceed the four gigabytes that a TIFF can hold; write PNG")
    bits, floating = 8 * raster.color.dtype.itemsize, raster.color.dtype.kind == "f"
    tags = {256: (_LONG, [width]), 257: (_LONG, [height]), 258: (_SHORT, [bits] * channels), 259: (_SHORT, [8]),
            262: (_SHORT, [1 if raster.color.shape[2] == 1 else 2]), 273: (_LONG, starts), 274: (_SHORT, [1]),
            277: (_SHORT, [channels]), 278: (_LONG, [rows]), 279: (_LONG, counts), 284: (_SHORT, [1]),
            317: (_SHORT, [1 if floating else 2]), 339: (_SHORT, [3 if floating else 1] * channels)}
    if raster.alpha is not None:
        tags[_EXTRA_SAMPLES] = (_SHORT, [2])                       # alpha that is not multiplied into the color
    if raster.dpi:
        across, down = raster.dpi
        tags |= {282: (_RATIONAL, [round(across * 10000), 10000]), 283: (_RATIONAL, [round(down * 10000), 10000]),
                 296: (_SHORT, [2])}
    if raster.xmp:
        tags[_XMP] = (1, raster.xmp)
    if raster.icc:
        tags[_ICC] = (_UNDEFINED, raster.icc)
    at += at % 2 and file.write(b"\0")
    body, entries = bytearray(), dict(inherited)
    for tag, (kind, values) in tags.items():
        form = {_SHORT: "H", _LONG: "I", _RATIONAL: "I"}.get(kind)
        stored = struct.pack(f"{order}{len(values)}{form}", *values) if form else bytes(values)
        count = len(values) // (2 if kind == _RATIONAL else 1)
        if len(stored) > 4:
            place = struct.pack(order + "I", at + len(body))
            body += stored + b"\0" * (len(stored) % 2)
        else:
            place = stored.ljust(4, b"\0")
        entries[tag] = struct.pack(order + "HHI", tag, kind, count) + place
    file.write(body)
    file.write(struct.pack(order + "H", len(entries)) + b"".join(entries[tag] for tag in sorted(entries)) + b"\0" * 4)
    file.seek(4)
    file.write(struct.pack(order + "I", at + len(body)))


def _directory(exif, order):
    """The entries of the first directory of an EXIF block as stored, ``{tag: 12 bytes}``, without those on pixels."""
    start = struct.unpack_from(order + "I", exif, 4)[0]
    if not 8 <= start <= len(exif) - 2:
        return {}
    count = struct.unpack_from(order + "H", exif, start)[0]
    found = (exif[at:at + 12] for at in range(start + 2, min(start + 2 + 12 * count, len(exif) - 11), 12))
    return {tag: entry for entry in found if (tag := struct.unpack(order + "H", entry[:2])[0]) not in _PIXEL_TAGS}


def _differences(strip):
    """TIFF's predictor 2: each sample less the one to its left; floating point is left as it is."""
    if strip.dtype.kind == "f":
        return strip
    out = strip.copy()
    out[:, 1:] -= strip[:, :-1]
    return out
