"""JPEG, decoded and checked by libjpeg-turbo; its segments of metadata are carried over byte by byte."""

import io

import numpy as np

from .containers import EXIF_HEADER, jpeg_segment, jpeg_segments
from .pillow import cmyk_to_rgb
from .raster import Raster

BITS, ALPHA = (8,), False
_XMP, _XMP_MORE = b"http://ns.adobe.com/xap/1.0/\0", b"http://ns.adobe.com/xmp/extension/\0"
_ICC, _IPTC = b"ICC_PROFILE\0", b"Photoshop 3.0\0"
_APP1, _APP2, _APP13, _APP14, _COMMENT, _TABLES = 0xE1, 0xE2, 0xED, 0xEE, 0xFE, 0xDB
_LARGEST = 65533
_STANDARD_SUM = 3688                         # of the luma table in ISO/IEC 10918-1, Annex K.1, which is quality 50


def read(data):
    """The image in the bytes of a JPEG. Any damage that the decoder notices is an error, also where it could go on."""
    import simplejpeg
    raster, profile, adobe = Raster(format="JPEG"), {}, False
    for marker, payload in jpeg_segments(data):
        if marker == 0xE0 and payload[:5] == b"JFIF\0" and payload[7:8] in (b"\1", b"\2"):
            scale = 1 if payload[7] == 1 else 2.54
            across, down = (int.from_bytes(payload[at:at + 2], "big") * scale for at in (8, 10))
            raster.dpi = (across, down) if across and down else None
        elif marker == _APP1 and payload.startswith(EXIF_HEADER):
            raster.exif = raster.exif or payload[len(EXIF_HEADER):]
        elif marker == _APP1 and payload.startswith(_XMP):
            raster.xmp = payload[len(_XMP):]
        elif marker == _APP2 and payload.startswith(_ICC):
            profile[payload[len(_ICC)]] = payload[len(_ICC) + 2:]
        elif marker == _APP14 and payload.startswith(b"Adobe"):
            adobe = True
        elif marker == _COMMENT or (marker, payload[:14]) == (_APP13, _IPTC) or payload.startswith(_XMP_MORE):
            raster.extra.append((marker, payload))
        elif marker == _TABLES and raster.quality is None:
            raster.quality = _quality(payload)
    raster.icc = b"".join(profile[number] for number in sorted(profile))
    space = simplejpeg.decode_jpeg_header(data)[2].upper()
    if space in ("CMYK", "YCCK"):
        array = simplejpeg.decode_jpeg(data, "CMYK", strict=True)
        raster.color, note = cmyk_to_rgb(255 - array if adobe else array, raster.icc)
        raster.notes.append(note)
        raster.icc = b""                     # the profile described the inks, which are gone
    else:
        raster.color = simplejpeg.decode_jpeg(data, "GRAY" if space in ("GRAY", "GREY") else "RGB", strict=True)
    return raster


def write(raster, file, quality=None):
    """Encode at ``quality`` 1 to 100; without one at 95, or finer if the image came from a finer JPEG.

    Chroma is kept at full resolution from quality 90 on.
    """
    from PIL import Image
    if max(raster.color.shape[:2]) > 65500:
        raise ValueError("a JPEG has at most 65,500 pixels a side; write PNG or TIFF")
    quality = quality or max(95, raster.quality or 0)
    buffer = io.BytesIO()
    Image.fromarray(raster.color.squeeze(2) if raster.color.shape[2] == 1 else raster.color).save(
        buffer, "JPEG", quality=quality, subsampling=0 if quality >= 90 else 2,
        dpi=tuple(round(v) for v in raster.dpi) if raster.dpi else (0, 0))
    encoded = buffer.getbuffer()
    after_jfif = 4 + int.from_bytes(encoded[4:6], "big")
    file.write(encoded[:after_jfif])
    for marker, payload in _segments(raster):
        if len(payload) > _LARGEST:
            raise ValueError(f"a block of metadata has {len(payload) // 1024} KB and a JPEG holds 64; write PNG or TIFF")
        file.write(jpeg_segment(marker, payload))
    file.write(encoded[after_jfif:])


def _segments(raster):
    if raster.exif:
        yield _APP1, EXIF_HEADER + raster.exif
    if raster.xmp:
        yield _APP1, _XMP + raster.xmp
    size = _LARGEST - len(_ICC) - 2
    parts = [raster.icc[at:at + size] for at in range(0, len(raster.icc), size)]
    for number, part in enumerate(parts, 1):
        yield _APP2, _ICC + bytes([number, len(parts)]) + part
    if raster.format == "JPEG":
        yield from raster.extra


def _quality(payload):
    """libjpeg's quality for the first quantisation table in a segment; its inverse of ``jpeg_quality_scaling``."""
    kind = ">u2" if payload[0] >> 4 else "u1"
    table = np.frombuffer(payload, kind, count=min(64, (len(payload) - 1) // np.dtype(kind).itemsize), offset=1)
    if table.max(initial=0) <= 1:
        return 100
    scale = 100 * float(table.sum()) / _STANDARD_SUM
    return int(np.clip(round((200 - scale) / 2 if scale <= 100 else 5000 / scale), 1, 100))
