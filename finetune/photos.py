"""The photos of a user's folder: which of them an adaptation can learn from, which are held out, and why others are left out.

The folder may hold clean photos, night photos, copies and broken files. Each is named with its reason.
"""

import dataclasses
import hashlib

import cv2
import numpy as np
import torch

from restore.errors import ImageError, RestoreError
from restore.files import list_images
from restore.image import read_rgb8

from . import priors

LEAST = 3                    # usable photos without which there is nothing to learn from and to judge on
SMALLEST = 96                # pixels of the shorter side
NIGHT = 0.2                  # median brightness below which the light is not day light, which both models assume
ALIKE = 2.0                  # levels of 255 by which the thumbnails of two copies differ at most, on average
UNVEILED = 0.08              # mean veil in the dark channel below which a photo has no haze to learn from


@dataclasses.dataclass
class Photo:
    """``pixels`` (3, h, w) in [0, 1], reduced; ``name`` below its folder; ``digest`` of the file's decoded pixels."""
    name: str
    pixels: torch.Tensor
    digest: str


@dataclasses.dataclass
class Photos:
    """``train`` and ``held`` out of the photos to adapt to; ``clear`` ones among them; ``left_out``: {reason: [names]}."""
    train: list
    held: list
    clear: list
    left_out: dict

    def __str__(self):
        lines = [f"{len(self.train)} photos to adapt to, {len(self.held)} held out: " + ", ".join(p.name for p in self.held)]
        if self.clear:
            lines.append(f"{len(self.clear)} without haze, taken as clear ones: " + ", ".join(p.name for p in self.clear))
        return "\n".join([*lines, *(f"{len(names)} left out, {reason}: " + ", ".join(names)
                                    for reason, names in self.left_out.items())])

    @property
    def digest(self):
        """Of all that is used, in its roles; file names do not count."""
        roles = (sorted(p.digest for p in photos) for photos in (self.train, self.held, self.clear))
        return hashlib.sha256(repr(list(roles)).encode()).hexdigest()


def sort_photos(folder, task, side, share):
    """The :class:`Photos` of ``folder``, their longer sides reduced to ``side``; ``share`` of them, at least one, is held out.

    The choice depends on the photos' pixels, not on names. Raises :class:`RestoreError` if fewer than ``LEAST`` remain.
    """
    photos, left_out = read_photos(folder, side)
    usable, clear = [], []
    for photo in photos:
        if float(priors.luma(photo.pixels).median()) < NIGHT:
            left_out.setdefault("night or too dark", []).append(photo.name)
        elif task == "haze" and priors.veil_of(photo.pixels) < UNVEILED:
            clear.append(photo)
        else:
            usable.append(photo)
    if len(usable) < LEAST:
        told = "".join(f"\n  {len(names)} {reason}: {', '.join(names[:5])}" for reason, names in left_out.items())
        raise RestoreError(f"{folder}: {len(usable)} photos with {task} to adapt to; {LEAST} are the least, tens are better."
                           + (f"\n  {len(clear)} without haze" if clear else "") + told)
    usable.sort(key=lambda photo: photo.digest)
    held = max(1, round(share * len(usable)))
    return Photos(usable[held:], usable[:held], clear, dict(sorted(left_out.items())))


def read_photos(folder, side):
    """``(photos, left_out)``: the images below ``folder`` that can be read, are large enough and no copies of earlier ones."""
    photos, left_out, thumbnails = [], {}, []
    for path in list_images(folder):
        name = path.relative_to(folder).as_posix()
        try:
            array = read_rgb8(path)
        except ImageError:
            left_out.setdefault("cannot be read", []).append(name)
            continue
        if min(array.shape[:2]) < SMALLEST:
            left_out.setdefault(f"smaller than {SMALLEST} pixels", []).append(name)
            continue
        grey = cv2.cvtColor(array, cv2.COLOR_RGB2GRAY)
        thumbnail = cv2.resize(grey, (24, 24), interpolation=cv2.INTER_AREA).astype(np.float32)
        copy = next((other for other, there in thumbnails if np.abs(there - thumbnail).mean() < ALIKE), None)
        if copy is not None:
            left_out.setdefault("copies of others", []).append(f"{name} (of {copy})")
            continue
        thumbnails.append((name, thumbnail))
        photos.append(Photo(name, as_tensor(reduced(array, side)), hashlib.sha256(array.tobytes()).hexdigest()))
    return photos, left_out


def reduced(array, side):
    """uint8 (h, w, 3) with its longer side no longer than ``side``."""
    scale = side / max(array.shape[:2])
    return array if scale >= 1 else cv2.resize(array, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


def as_tensor(array):
    """float32 (3, h, w) in [0, 1] of uint8 (h, w, 3)."""
    return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1))).float().div_(255)


def as_array(tensor):
    """uint8 (h, w, 3) of (3, h, w), clipped and rounded."""
    return tensor.detach().clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).cpu().numpy()
