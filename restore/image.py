"""Image files in and out: the one place that knows bit depths, alpha, gray, CMYK, orientation and metadata.

In memory an image is an RGB ``float32`` tensor ``(3, height, width)`` in [0, 1], the right way up.
"""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from .codecs import bmp, jpeg, png, ppm, tiff, webp
from .codecs.containers import find_exif, kind_of
from .codecs.exif import ORIENTATION, turn, upright
from .codecs.exif import orientation as exif_orientation
from .codecs.pillow import opened
from .codecs.raster import Metadata, Raster
from .errors import ImageError
from .files import atomic_path

MAX_PIXELS = 1_000_000_000                   # more than this is refused from the header alone

_CODECS = {"BMP": bmp, "JPEG": jpeg, "PNG": png, "PPM": ppm, "TIFF": tiff, "WEBP": webp}
_WRITERS = {".png": png, ".jpg": jpeg, ".jpeg": jpeg, ".webp": webp, ".bmp": bmp, ".tif": tiff, ".tiff": tiff,
            ".ppm": ppm, ".pgm": ppm}
_FULL_SCALE = {np.dtype(np.uint8): 255, np.dtype(np.uint16): 65535}
_BAND = 1 << 20                              # values converted at a time: bounds the temporaries on large images
_STRAY = 0.01                                # floating point: the share of values outside [0, 1] that is clipped


@dataclass
class Image(Metadata):
    """An image and what its file said about it.

    ``pixels`` ``(3, h, w)`` ``float32`` in [0, 1]; ``alpha`` ``(h, w)`` alike, or None; ``bits`` of a channel in the file:
    8, 16, or 32 for floating point; ``gray``: the three channels are equal and one is written. The other fields are
    those of :class:`restore.codecs.raster.Metadata`; ``exif`` has orientation 1, since ``pixels`` are upright.
    """

    pixels: torch.Tensor = None
    alpha: torch.Tensor | None = None
    bits: int = 8
    gray: bool = False

    def with_pixels(self, pixels):
        """The same image, all but its pixels: ``pixels`` is ``(3, h, w)`` of the same size."""
        if pixels.shape != self.pixels.shape:
            raise ImageError(f"pixels of the shape {tuple(pixels.shape)} do not fit an image of {tuple(self.pixels.shape)}")
        return Image(**self.metadata(), pixels=pixels, alpha=self.alpha, bits=self.bits, gray=self.gray)

    def save(self, path, quality=None):
        """:func:`write_image` to ``path``."""
        write_image(path, self, quality)


def read_image(path, max_pixels=MAX_PIXELS):
    """Read an image file: JPEG, PNG, TIFF, WebP, BMP, PPM or PGM. What it is is told by its content, not by its name.

    The EXIF orientation is baked in. CMYK becomes sRGB. Of a TIFF's pages the first is taken. Floating point is
    taken as [0, 1]: where at most 1 % of the values lie outside they are clipped, more is an error. All of this is
    said in ``notes``. Raises :class:`ImageError` for a file that is missing, empty, damaged, cut short, animated, no
    image, or larger than ``max_pixels``.
    """
    name, data = _load(path)
    height, width = _header(name, data, max_pixels=max_pixels)
    kind = kind_of(data)
    try:
        raster = _CODECS[kind].read(data)
        _check_floats(raster)
        how = exif_orientation(raster.exif)
        fields = raster.metadata()
        fields["exif"], fields["xmp"] = upright(raster.exif, raster.xmp)
        if how >= 5 and raster.dpi:
            fields["dpi"] = raster.dpi[::-1]
        writer = _WRITERS.get(Path(str(name)).suffix.lower())
        if writer not in (None, _CODECS[kind]):
            fields["notes"] = [*raster.notes, f"it is a {kind} in spite of its name"]
        alpha = None if raster.alpha is None else from_array(turn(raster.alpha, how))[0].clone()
        return Image(**fields, pixels=from_array(turn(raster.color, how)), alpha=alpha,
                     bits=8 * raster.color.dtype.itemsize, gray=raster.color.shape[2] == 1)
    except MemoryError as error:
        raise ImageError(f"{name}: {width} x {height} pixels do not fit into memory") from error
    except ImageError:
        raise
    except Exception as error:               # decoders raise whatever a damaged file led them to
        raise ImageError(f"{name}: cannot be read: {error}") from error


def write_image(path, image, quality=None):
    """Write ``image`` to ``path`` in the format of its suffix, whole or not at all.

    The depth is the image's, as far as the format has it: floating point becomes 16 bits in a PNG, 16 bits become 8 in
    a JPEG. Metadata is kept. ``quality`` (1 to 100) is for JPEG and WebP; see their ``write``. Raises
    :class:`ImageError` if the format is not written here, has no alpha while the image does, or the disk refuses;
    its ``__cause__`` is then the ``OSError``.
    """
    path = Path(path)
    codec = check_writable(path, alpha=image.alpha is not None)
    if quality is not None and not 1 <= quality <= 100:
        raise ImageError(f"the quality of an image is 1 to 100, not {quality}")
    bits = min(image.bits, codec.BITS[-1])
    if image.gray:
        first, second, third = image.pixels
        mean = first + ((second - first) + (third - first)) / 3          # exact where the three are equal
        color = to_array(mean.expand(3, -1, -1), bits)[:, :, :1]
    else:
        color = to_array(image.pixels, bits)
    alpha = None if image.alpha is None else to_array(image.alpha.expand(3, -1, -1), bits)[:, :, 0]
    raster = Raster(**image.metadata(), color=color, alpha=alpha)
    try:
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            codec.write(raster, file, quality)
    except ValueError as error:
        raise ImageError(f"{path}: cannot be written: {error}") from error
    except OSError as error:
        raise ImageError(f"{path}: cannot be written: {error.strerror or error}") from error


def check_writable(path, alpha=False):
    """The format module for the suffix of ``path``. Raises :class:`ImageError` if there is none or it has no alpha."""
    path = Path(path)
    codec = _WRITERS.get(path.suffix.lower())
    if codec is None:
        raise ImageError(f"{path}: {path.suffix or 'a name without a suffix'} is not an image format that is written "
                         f"here; there are {', '.join(_WRITERS)}")
    if alpha and not codec.ALPHA:
        raise ImageError(f"{path}: this format has no transparency and the image does; write PNG, TIFF or WebP")
    return codec


def read_rgb8(source, orientation=True):
    """Decode ``source``, a path or the bytes of a file, to a ``uint8`` RGB array ``(height, width, 3)``.

    The plain, fast decode of training and benchmarks: alpha is dropped, 16 bits become 8, profiles are not applied.
    JPEG goes through libjpeg-turbo (simplejpeg: accurate DCT, smooth chroma upsampling; damage is an error), PNG
    through OpenCV, the rest as in :func:`read_image`. The EXIF orientation is baked in unless ``orientation`` is
    False. Raises :class:`ImageError`.
    """
    name, data = _load(source)
    _header(name, data)
    kind = kind_of(data)
    try:
        if kind in ("JPEG", "PNG"):
            how = exif_orientation(find_exif(data))
            array = (_decode_jpeg if kind == "JPEG" else _decode_png)(data)
        else:
            raster = _CODECS[kind].read(data)
            how = exif_orientation(raster.exif)
            array = to_array(from_array(raster.color))
    except Exception as error:               # decoders raise whatever a damaged file led them to
        raise ImageError(f"{name}: cannot be read: {error}") from error
    return np.ascontiguousarray(turn(array, how if orientation else 1))


def image_size(path, orientation=True):
    """``(height, width)`` of an image file as it will be read, from its header alone. Raises :class:`ImageError`."""
    try:
        with open(path, "rb") as file:
            return _header(path, file, orientation)
    except OSError as error:
        raise ImageError(f"{path}: cannot be read: {error.strerror or error}") from error


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
    height, width, _ = array.shape
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


def _header(name, source, orientation=True, max_pixels=MAX_PIXELS):
    """``(height, width)`` from the header of a file (bytes, or open for reading)."""
    start = source[:64] if isinstance(source, bytes) else source.read(64)
    if not start:
        raise ImageError(f"{name}: is empty")
    kind = kind_of(start)
    if kind is None:
        raise ImageError(f"{name}: is not an image that can be read here (JPEG, PNG, TIFF, WebP, BMP, PPM, PGM)")
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    file.seek(0)
    try:
        if kind in ("PNG", "TIFF"):
            height, width, how = _CODECS[kind].size(file)
        else:
            with opened(file, kind) as image:
                width, height = image.size
                how = image.getexif().get(ORIENTATION, 1)
    except Exception as error:               # the parsers raise whatever a damaged header led them to
        raise ImageError(f"{name}: cannot be read: its header is damaged or cut short ({error})") from error
    if height * width > max_pixels:
        raise ImageError(f"{name}: has {width} x {height} pixels, more than the limit of {max_pixels / 1e6:,.0f} megapixels")
    if not height * width:
        raise ImageError(f"{name}: has no pixels")
    return (width, height) if orientation and how in (5, 6, 7, 8) else (height, width)


def _decode_jpeg(data):
    import simplejpeg
    return simplejpeg.decode_jpeg(data, "RGB", strict=True)


def _decode_png(data):
    import cv2
    array = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if array is None:
        raise ValueError("its pixels are damaged")
    return cv2.cvtColor(array, cv2.COLOR_BGR2RGB)


def _check_floats(raster):
    """Clip the few values of a floating-point image that stray from [0, 1]; raise ``ValueError`` for more."""
    for array in (raster.color, raster.alpha):
        if array is None or array.dtype.kind != "f":
            continue
        if not np.isfinite(array).all():
            raise ValueError("it holds values that are not numbers (NaN or infinite)")
        stray = float(((array < 0) | (array > 1)).mean())
        if stray > _STRAY:
            raise ValueError(f"its values go from {array.min():.4g} to {array.max():.4g}; floating point is expected in "
                             "[0, 1], so scale it first")
        if stray:
            raster.notes.append(f"{stray:.2%} of its values lie outside [0, 1] and are clipped")
    if raster.color.dtype.kind == "f":
        raster.color = raster.color.clip(0, 1)
        raster.alpha = None if raster.alpha is None else raster.alpha.clip(0, 1)
