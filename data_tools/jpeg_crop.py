"""Cropping a JPEG without decoding it: its coefficients are copied, block by block, through libjpeg-turbo's transformer.

The library is the system's (``apt-get install libturbojpeg0``, ``brew install jpeg-turbo``), versions 2 and 3, called
through ctypes: no Python package offers the call for both. Without it :func:`available` is False and the exporter writes
PNG.
"""

import ctypes
import ctypes.util
import functools

_PERFECT, _CROP, _COPY_NONE = 2, 4, 64     # TJXOPT_*
_MCU = {0: (8, 8), 1: (16, 8), 2: (16, 16), 3: (8, 8), 4: (8, 16), 5: (32, 8)}   # TJSAMP_444, 422, 420, GRAY, 440, 411


class _Transform(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int) for name in ("x", "y", "w", "h", "op", "options")] + \
               [("data", ctypes.c_void_p), ("filter", ctypes.c_void_p)]


@functools.cache
def _library():
    name = ctypes.util.find_library("turbojpeg")
    if name is None:
        return None
    try:
        library = ctypes.CDLL(name)
        library.tjInitTransform.restype = ctypes.c_void_p
        library.tjGetErrorStr2.restype = ctypes.c_char_p
        library.tjGetErrorStr2.argtypes = library.tjDestroy.argtypes = [ctypes.c_void_p]
        library.tjFree.argtypes = [ctypes.c_void_p]
        library.tjTransform.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_int, ctypes.c_void_p,
                                        ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int]
        library.tjDecompressHeader3.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_ulong] + [ctypes.c_void_p] * 4
    except (OSError, AttributeError):
        return None
    return library


def available():
    """Whether libjpeg-turbo's transformer is there."""
    return _library() is not None


def grid(data):
    """``(width, height, mcu width, mcu height)`` of a JPEG as stored. Raises ValueError for what the library cannot read."""
    library = _library()
    handle = library.tjInitTransform()
    try:
        values = [ctypes.c_int() for _ in range(4)]
        if library.tjDecompressHeader3(handle, data, len(data), *map(ctypes.byref, values)):
            raise ValueError(library.tjGetErrorStr2(handle).decode(errors="replace"))
        width, height, sampling, _ = (v.value for v in values)
        if sampling not in _MCU:
            raise ValueError(f"chroma subsampling {sampling} is not known")
        return width, height, *_MCU[sampling]
    finally:
        library.tjDestroy(handle)


def crop(data, x, y, width, height):
    """The window of a JPEG as a JPEG with the same coefficients and tables, without its metadata but for a colour profile.

    ``x`` and ``y`` must be multiples of the MCU (:func:`grid`). Raises ValueError when the window does not fit or the file
    cannot be read.
    """
    library = _library()
    handle = library.tjInitTransform()
    out, size = ctypes.c_void_p(), ctypes.c_ulong()
    options = _PERFECT | _CROP | (0 if b"ICC_PROFILE\0" in data else _COPY_NONE)    # a profile cannot be kept alone
    transform = _Transform(x, y, width, height, 0, options, None, None)
    try:
        if library.tjTransform(handle, data, len(data), 1, ctypes.byref(out), ctypes.byref(size),
                               ctypes.byref(transform), 0):
            raise ValueError(library.tjGetErrorStr2(handle).decode(errors="replace"))
        return ctypes.string_at(out.value, size.value)
    finally:
        if out.value:
            library.tjFree(out)
        library.tjDestroy(handle)
