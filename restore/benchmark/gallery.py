"""The crops of a report: where a network gained most and least over its input, or what it did to a photo.

Every image offers the window in which the error fell most and the one in which it fell least (or rose); the ten best and worst
of an entry are shown.
"""

import base64
from dataclasses import dataclass

import cv2
import numpy as np

from .protocol import MAPS, error_cells

SIDE = 128                                    # pixels of a crop
PHOTO = 480                                   # longest side of a photo in a report


@dataclass
class Crop:
    """A window of one image: ``gain`` in dB over the input (of photos: none), and its pixels, ``uint8 (h, w, 3)``."""

    name: str
    gain: float | None
    box: tuple                                # top, left, height, width
    degraded: np.ndarray | None = None
    restored: np.ndarray | None = None
    clean: np.ndarray | None = None
    source: object = None                     # the whole input, as long as the restored pixels are still to be made


def windows(degraded, restored, clean):
    """``(best, worst)`` as ``(gain, top, left, height, width)``; all three images are ``uint8``."""
    before, after = error_cells(degraded, clean), error_cells(restored, clean)
    if not before.size:
        return None
    size = [min(SIDE // MAPS, side) for side in before.shape]
    sums = [_window_means(cells, size) for cells in (before, after)]
    gain = 10 * np.log10((sums[0] + 1e-7) / (sums[1] + 1e-7))
    found = []
    for index in (int(gain.argmax()), int(gain.argmin())):
        row, column = np.unravel_index(index, gain.shape)
        found.append((round(float(gain[row, column]), 4), int(row) * MAPS, int(column) * MAPS, size[0] * MAPS, size[1] * MAPS))
    return found


def _window_means(cells, size):
    total = np.zeros((cells.shape[0] + 1, cells.shape[1] + 1))
    np.cumsum(np.cumsum(cells, 0), 1, out=total[1:, 1:])
    height, width = size
    return (total[height:, width:] - total[:-height, width:] - total[height:, :-width] + total[:-height, :-width]) \
        / (height * width)


def cut(name, window, image, restored):
    """A :class:`Crop` of an :class:`~restore.benchmark.inputs.Input` and its restored ``uint8`` image."""
    gain, top, left, height, width = window
    part = np.s_[top:top + height, left:left + width]
    clean = None if image.clean is None else image.clean[part].copy()
    return Crop(name, gain, (top, left, height, width), image.degraded[part].copy(), restored[part].copy(), clean)


def photo(name, image, restored):
    """The whole of a photo, small enough for a page."""
    height, width = restored.shape[:2]
    scale = min(1.0, PHOTO / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = [cv2.resize(part, size, interpolation=cv2.INTER_AREA) for part in (image.degraded, restored)]
    return Crop(name, None, (0, 0, height, width), *small)


class Gallery:
    """The ``count`` best and worst crops among those offered; pixels of others are dropped as soon as they are known."""

    def __init__(self, count):
        self.count, self.best, self.worst = count, [], []

    def wants(self, best, worst):
        """Whether windows of these gains would be kept, each."""
        return (self.count > 0 and (len(self.best) < self.count or best > self.best[-1].gain),
                self.count > 0 and (len(self.worst) < self.count or worst < self.worst[-1].gain))

    def offer(self, best=None, worst=None):
        """Take a crop into either list; photos, which have no gain, only into the first, in order of name."""
        if best is not None:
            self.best = sorted([*self.best, best], key=lambda crop: (-(crop.gain or 0), crop.name))[:self.count]
        if worst is not None:
            self.worst = sorted([*self.worst, worst], key=lambda crop: (crop.gain, crop.name))[:self.count]


def difference_map(image, reference, gain=5):
    """Absolute difference of ``uint8`` images, the mean over channels times ``gain``, in colours from black to yellow."""
    levels = np.abs(image.astype(np.int16) - reference).mean(-1) * gain
    return cv2.applyColorMap(np.clip(levels, 0, 255).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]


def pack(crop):
    """A crop as JSON-able data: its pixels as PNG in base64."""
    def encode(array):
        return None if array is None else base64.b64encode(cv2.imencode(".png", array[..., ::-1])[1]).decode()
    return {"name": crop.name, "gain": crop.gain, "box": crop.box,
            **{part: encode(getattr(crop, part)) for part in ("degraded", "restored", "clean")}}


def unpack(data):
    """The crop that :func:`pack` made ``data`` of."""
    def decode(text):
        return None if text is None else cv2.imdecode(np.frombuffer(base64.b64decode(text), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    return Crop(data["name"], data["gain"], tuple(data["box"]),
                *(decode(data[part]) for part in ("degraded", "restored", "clean")))
