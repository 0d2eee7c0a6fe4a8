"""Pillow, used for the formats that it reads faithfully, and the conversion of what it alone understands."""

import contextlib
import io
import threading

import numpy as np

from .raster import split

_LOCK = threading.Lock()


@contextlib.contextmanager
def opened(source, kind):
    """A Pillow image of a path, a file or bytes that must be of format ``kind``; only the header has been read.

    Pillow's own limit on the number of pixels is lifted, since ``restore.image`` has one of its own.
    """
    from PIL import Image
    if isinstance(source, (bytes, memoryview)):
        source = io.BytesIO(source)
    with _LOCK:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = Image.open(source, formats=[kind])
        finally:
            Image.MAX_IMAGE_PIXELS = limit
    with image:
        yield image


def arrays(image, icc=b""):
    """``(color, alpha or None, note or None)`` of an opened Pillow image of at most 8 bits a channel.

    CMYK becomes sRGB, through the profile ``icc`` if that is a CMYK one; the note says so.
    """
    if image.mode == "CMYK":
        color, note = _from_cmyk(image, icc)
        return color, None, note
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA" if image.mode == "PA" or "transparency" in image.info else "RGB")
    elif image.mode in ("RGBa", "La"):
        image = image.convert(image.mode.upper())
    elif image.mode == "1":
        image = image.convert("L")
    elif image.mode in ("YCbCr", "LAB"):
        image = image.convert("RGB")
    if image.mode not in ("L", "LA", "RGB", "RGBA", "RGBX"):
        raise ValueError(f"its pixels are of a kind ({image.mode}) that is not supported")
    return *split(np.asarray(image)), None


def cmyk_to_rgb(array, icc):
    """``(sRGB array, note)`` of a CMYK array ``(h, w, 4)`` in which 255 is full ink."""
    from PIL import Image
    return _from_cmyk(Image.frombytes("CMYK", array.shape[1::-1], np.ascontiguousarray(array).tobytes()), icc)


def _from_cmyk(image, icc):
    if icc[16:20] == b"CMYK":
        from PIL import ImageCms
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(icc))
            image = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB",
                                              renderingIntent=1, flags=0x2000)    # relative, black point kept black
            return np.asarray(image), "CMYK was turned into sRGB through its profile"
        except ImageCms.PyCMSError:
            pass
    return np.asarray(image.convert("RGB")), "CMYK without a usable profile was turned into RGB by plain inversion"
