"""What every network sees: the degraded image and its clean counterpart, the same bytes on every machine.

Images are ``uint8`` RGB arrays ``(h, w, 3)``, orientation tags ignored, cut around their centre as the protocol says.
"""

import functools
import hashlib
import zlib
from dataclasses import dataclass

import cv2
import numpy as np

from ..errors import ImageError, RestoreError
from ..image import image_size, read_rgb8
from .locate import trimmed


@dataclass
class Input:
    """One image of an entry; ``clean`` is None for photos, ``error`` a line (and both arrays None) for a bad file."""

    name: str
    degraded: np.ndarray | None = None
    clean: np.ndarray | None = None
    error: str = ""
    note: str = ""

    @functools.cached_property
    def digest(self):
        """Content hash of both images."""
        digest = hashlib.blake2b(digest_size=20)
        for array in (self.degraded, self.clean):
            if array is not None:
                digest.update(str(array.shape).encode())
                digest.update(array)
        return digest.hexdigest()


def inputs(entries, located, protocol, first=None):
    """Yield ``(entry, Input)`` for every image of ``located``, in order of name; a bad file becomes its input's ``error``.

    ``entries`` are all of this set: an image is read once for all noise levels. With the ``sequence`` rule every level has
    the same random numbers, and a file that cannot be read still takes its share of them where its header tells its size,
    so that the noise of the images after it stays the same.
    """
    sequence = None
    if protocol.noise["rule"] == "sequence" and entries[0].set.kind == "clean":
        sequence = np.random.RandomState(protocol.noise.get("seed", 0))
    for item in located.items[:first]:
        try:
            degraded, clean, note = _read(item, entries[0].set, protocol)
            noise = sequence.randn(*clean.shape) if sequence is not None else None
        except (ImageError, OSError) as error:
            if sequence is not None:
                _skip(item, protocol, sequence)
            line = " ".join(str(error).split())
            yield from ((entry, Input(item.name, error=line)) for entry in entries)
            continue
        for entry in entries:
            made = degraded
            if entry.sigma is not None:
                made = add_noise(clean, _by_name(item.name, entry.sigma, clean.shape) if noise is None else noise, entry.sigma)
            yield entry, Input(item.name, made, clean, note=note)


def _read(item, image_set, protocol):
    """``(degraded or None, clean or None, note)``, cut as the protocol says."""
    clean = None if item.clean is None else read_rgb8(item.clean, orientation=False)
    degraded = None if item.degraded is None else read_rgb8(item.degraded, orientation=False)
    if clean is not None and degraded is not None:
        border = trimmed(clean.shape[:2], degraded.shape[:2], image_set)
        if border is None:
            raise ImageError(f"{item.name}: {item.degraded} is {degraded.shape[0]}x{degraded.shape[1]} and {item.clean} "
                             f"{clean.shape[0]}x{clean.shape[1]} (height x width); a pair must have one size")
        clean = clean[border:clean.shape[0] - border, border:clean.shape[1] - border]
    note = _note(item, image_set, clean)
    degraded, clean = (None if image is None else crop(image, protocol.align) for image in (degraded, clean))
    if 0 in (clean if degraded is None else degraded).shape:
        raise ImageError(f"{item.name}: smaller than {protocol.align} pixels, nothing is left after the cut")
    return degraded, clean, note


def _note(item, image_set, clean):
    if clean is None or image_set.kind != "clean" or image_set.count is None:
        return ""
    if np.array_equal(clean[..., 0], clean[..., 1]) and np.array_equal(clean[..., 0], clean[..., 2]):
        return f"{item.name}: gray, scored as RGB of equal channels"
    if image_set.sizes and clean.shape[:2] not in image_set.sizes:
        return f"{item.name}: not of this set's size"
    return ""


def crop(image, base):
    """Cut around the centre to multiples of ``base``."""
    height, width = image.shape[:2]
    top, left = height % base // 2, width % base // 2
    return np.ascontiguousarray(image[top:top + height // base * base, left:left + width // base * base])


def _by_name(name, sigma, shape):
    return np.random.default_rng(zlib.crc32(f"{name}:{sigma:g}".encode())).standard_normal(shape)


def add_noise(clean, noise, sigma):
    """``clean + noise * sigma`` on the 0..255 scale, clipped and truncated to ``uint8``."""
    noisy = noise * float(sigma)
    noisy += clean
    return np.clip(noisy, 0, 255, out=noisy).astype(np.uint8)


def _skip(item, protocol, sequence):
    try:
        height, width = image_size(item.clean, orientation=False)
    except ImageError:
        return
    sequence.randn(height // protocol.align * protocol.align, width // protocol.align * protocol.align, 3)


def checksum(image, start=0):
    """Running CRC-32 of what a score rests on, over degraded and clean of every image; equal ones mean equal inputs."""
    for array in (image.degraded, image.clean):
        if array is not None:
            start = zlib.crc32(str(array.shape).encode(), start)
            start = zlib.crc32(np.ascontiguousarray(array).data, start)
    return start


def write_inputs(entry, located, protocol, folder, first=None):
    """Write the degraded images as ``folder/NAME.png``; return ``(count, crc, errors)``. A name may hold folders."""
    crc, count, errors = 0, 0, []
    for _, image in inputs([entry], located, protocol, first):
        if image.error:
            errors.append(image.error)
            continue
        crc = checksum(image, crc)
        path = folder / f"{image.name}.png"
        write_png(path, image.degraded)
        count += 1
    return count, f"{crc:08x}", errors


def write_png(path, array):
    """Write an RGB ``uint8`` array as PNG, whole or not at all."""
    from ..files import write_bytes
    done, data = cv2.imencode(".png", array[..., ::-1])
    if not done:
        raise RestoreError(f"{path}: an array of shape {array.shape} cannot be written as PNG")
    write_bytes(path, data.tobytes())
