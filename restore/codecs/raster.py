"""What a format module reads and writes: an array of pixels with all that a file says about them."""

from dataclasses import dataclass, field, fields

import numpy as np


@dataclass
class Metadata:
    """What a file says beside its pixels. EXIF, XMP and ICC are the stored bytes, without their wrappers."""

    format: str = ""
    exif: bytes = b""                                   # from the TIFF header of the block on
    icc: bytes = b""
    xmp: bytes = b""
    dpi: tuple | None = None                            # (across, down), dots per inch
    quality: int | None = None                          # of a JPEG, as libjpeg counts it, estimated from its tables
    lossless: bool = False                              # of a WebP
    extra: list = field(default_factory=list)           # blocks that only the same format can hold, as (kind, payload)
    notes: list = field(default_factory=list)           # what a user should know about how the file was read

    def metadata(self):
        """The fields of this class as a dict, to hand them from one holder to another."""
        return {f.name: getattr(self, f.name) for f in fields(Metadata)}


@dataclass
class Raster(Metadata):
    """Pixels as stored: ``color`` ``(h, w, 1 or 3)`` and ``alpha`` ``(h, w)`` of ``uint8``, ``uint16`` or ``float32``."""

    color: np.ndarray = None
    alpha: np.ndarray = None

    def stacked(self):
        """Color and alpha in one array ``(h, w, 1 to 4)``."""
        return self.color if self.alpha is None else np.concatenate([self.color, self.alpha[:, :, None]], 2)


def split(array):
    """``(color, alpha or None)`` of an array ``(h, w)`` or ``(h, w, 1 to 4)``."""
    array = array[:, :, None] if array.ndim == 2 else array
    channels = array.shape[2]
    if channels not in (1, 2, 3, 4):
        raise ValueError(f"it has {channels} channels; gray and RGB with or without alpha are supported")
    return (array, None) if channels in (1, 3) else (array[:, :, :-1], array[:, :, -1])
