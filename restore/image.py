"""Image files in and out: the one place that knows bit depths, alpha, gray, CMYK, orientation and metadata.

In memory an image is an RGB ``float32`` tensor ``(3, height, width)`` in [0, 1], the right way up.
"""

import io
from pathlib import Path

import numpy as np
import torch

from .codecs.containers import find_exif, kind_of
from .codecs.exif import orientation as exif_orientation
from .codecs.exif import turn
from .errors import ImageError

MAX_PIXELS = 1_000_000_000                   # more than this is refused from the header alone

_FULL_SCALE = {np.dtype(np.uint8): 255, np.dtype(np.uint16): 65535}
_BAND = 1 << 20                              # values converted at a time: bounds the temporaries on large images


def read_rgb8(source, orientation=True):
    """Decode ``source``, a path or the bytes of a file, to a ``uint8`` RGB array ``(height, width, 3)``.

    The plain, fast decode of training and benchmarks: alpha is dropped, 16 bits become 8, profiles are not applied.
    JPEG goes through libjpeg-turbo (simplejpeg: accurate DCT, smooth chroma upsampling; damage is an error), the
    rest through OpenCV. The EXIF orientation is baked in unless ``orientation`` is False. Raises :class:`ImageError`.
    """
    import cv2
    name, data = _load(source)
    try:
        how = exif_orientation(find_exif(data)) if orientation else 1
        if kind_of(data) == "JPEG":
            import simplejpeg
            array = simplejpeg.decode_jpeg(data, "RGB", strict=True)
        else:
            array = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
            if array is None:
                raise ValueError("it is damaged or not a supported image")
            array = cv2.cvtColor(array, cv2.COLOR_BGR2RGB)
    except (ValueError, cv2.error) as error:
        raise ImageError(f"{name}: cannot be read as an image: {error}") from error
    return np.ascontiguousarray(turn(array, how))


def image_size(path, orientation=True):
    """``(height, width)`` of an image file as it will be read, from its header alone. Raises :class:`ImageError`."""
    from PIL import Image as Pillow
    try:
        with open(path, "rb") as file, Pillow.open(file) as image:
            width, height = image.size
            how = image.getexif().get(0x0112, 1) if orientation else 1
    except Exception as error:               # Pillow's plugins raise whatever their parsing met
        raise ImageError(f"{path}: cannot be read as an image: {error}") from error
    return (width, height) if how in (5, 6, 7, 8) else (height, width)


def from_array(array):
    """A ``float32`` tensor ``(3, h, w)`` in [0, 1] from an array ``(h, w)``, ``(h, w, 1)`` or ``(h, w, 3)``.

    ``uint8`` is divided by 255, ``uint16`` by 65535; floats are taken as they are. Raises :class:`ImageError` for
    another shape or type.
    """
    array = np.asarray(array)
    array = array[:, :, None] if array.ndim == 2 else array
    if array.ndim != 3 or array.shape[2] not in (1, 3) or 0 in array.shape:
        raise ImageError(f"an image array is (height, width), (height, width, 1) or (height, width, 3), not {array.shape}")
    if array.dtype not in _FULL_SCALE and array.dtype.kind != "f":
        raise ImageError(f"an image array is uint8, uint16 or floating point, not {array.dtype}")
    height, width, channels = array.shape
    scale = _FULL_SCALE.get(array.dtype)
    planes = np.empty((3, height, width), np.float32)
    for rows in _bands(height, 3 * width):
        band = array[rows].transpose(2, 0, 1)
        if scale:
            np.divide(band, np.float32(scale), out=planes[:, rows], dtype=np.float32)
        else:
            planes[:, rows] = band
    return torch.from_numpy(planes)


def to_array(tensor, bits=8):
    """An array ``(h, w, 3)`` from a tensor ``(3, h, w)`` in [0, 1]; values outside are clipped.

    ``bits`` 8 and 16 give ``uint8`` and ``uint16``, rounded to nearest; 32 gives ``float32``.
    """
    kind = {8: np.uint8, 16: np.uint16, 32: np.float32}.get(bits)
    if kind is None:
        raise ImageError(f"bits is 8, 16 or 32, not {bits}")
    if tensor.ndim != 3 or tensor.shape[0] != 3:
        raise ImageError(f"an image tensor is (3, height, width), not {tuple(tensor.shape)}")
    planes = tensor.detach().cpu()
    _, height, width = planes.shape
    array = np.empty((height, width, 3), kind)
    for rows in _bands(height, 3 * width):
        band = planes[:, rows].float().clamp(0, 1).permute(1, 2, 0).numpy()
        array[rows] = band if bits == 32 else np.rint(band * np.float32(2 ** bits - 1))
    return array


def _bands(height, row):
    step = max(1, _BAND // max(1, row))
    return [slice(top, min(height, top + step)) for top in range(0, height, step)]


def _load(source):
    """``(name, bytes)`` of a path or of bytes."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return "image", bytes(source)
    if isinstance(source, io.IOBase):
        return "image", source.read()
    try:
        return source, Path(source).read_bytes()
    except OSError as error:
        raise ImageError(f"{source}: cannot be read: {error.strerror or error}") from error
