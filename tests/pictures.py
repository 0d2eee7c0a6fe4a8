"""Pictures and containers that the tests of image files are made of."""

import struct
import zlib

import cv2
import numpy as np
from PIL import Image as Pillow
from PIL import ImageCms

from restore.codecs.containers import png_chunk
from restore.image import read_image, write_image

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="1" dc:title="t"/></x:xmpmeta>'
SHAPES = [(1, 1), (3, 5), (37, 53)]


def smooth(height, width, channels=3, dtype=np.uint8, seed=0):
    """A smooth random picture over the whole range of ``dtype``."""
    small = np.random.default_rng(seed).random((4, 4, channels))
    full = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC).reshape(height, width, channels)
    full = (full - full.min()) / max(np.ptp(full), 1e-9)
    return np.rint(full * np.iinfo(dtype).max).astype(dtype) if np.dtype(dtype).kind == "u" else full.astype(dtype)


def squeeze(array):
    return array[:, :, 0] if array.shape[2] == 1 else array


def exif_block(orientation=1, size=None, xmp=None):
    exif = Pillow.Exif()
    exif[0x0112], exif[0x010F] = orientation, "Maker"
    inner = exif.get_ifd(0x8769)
    inner[0x9003], inner[0x927C] = "2024:01:02 03:04:05", b"maker's note " * 9
    if size:
        inner[0xA002], inner[0xA003] = size
    if xmp:
        exif[700] = xmp                      # where a TIFF has it
    return exif.tobytes()


def round_trip(path, target=None):
    target = target or path.with_name("out" + path.suffix)
    write_image(target, read_image(path))
    return target


def raw_png(array, color_type, extra=b"", interlaced=False):
    """A PNG written by the book, without filters: the independent source of 16-bit files."""
    height, width = array.shape[:2]
    big = array.astype(array.dtype.newbyteorder(">")).reshape(height, width, -1)
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    parts = [big[y::dy, x::dx] for y, x, dy, dx in passes] if interlaced else [big]
    raw = b"".join(b"\0" + row.tobytes() for part in parts if part.size for row in part)
    header = struct.pack(">IIBBBBB", width, height, 8 * array.dtype.itemsize, color_type, 0, 0, int(interlaced))
    return (b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + extra + png_chunk(b"IDAT", zlib.compress(raw))
            + png_chunk(b"IEND", b""))
