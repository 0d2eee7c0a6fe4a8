"""Small pictures for the report: whole images, or a piece of them pixel by pixel, read from the sources when needed."""

import cv2
import numpy as np

from restore import page
from restore.errors import ImageError

from . import patches
from .containers import open_bytes
from .header import read_header

_LARGEST = 2e8
_REDUCED = ((8, cv2.IMREAD_REDUCED_COLOR_8), (4, cv2.IMREAD_REDUCED_COLOR_4), (2, cv2.IMREAD_REDUCED_COLOR_2))


class Pictures:
    """Pictures of rows of a work folder, as ``data:`` URIs. An image that cannot be shown is None.

    ``rows`` must list every row that will be asked for: names and places are read once.
    """

    def __init__(self, store, rows, side=160):
        self.side, self.found, self.made = side, {}, {}
        rows = np.unique(np.array(sorted(rows), np.int64))
        start = 0
        for table in store.batches("scan", ["id", "source", "name", "locator", "licence"]):
            low, high = np.searchsorted(rows, (start, start + len(table)))
            for row, facts in zip(rows[low:high], table.take(rows[low:high] - start).to_pylist()):
                self.found[int(row)] = facts
            start += len(table)

    def name(self, row):
        """"source/name"."""
        return f"{self.found[row]['source']}/{self.found[row]['name']}"

    def whole(self, row):
        """The whole image, its longer side ``side`` pixels."""
        return self._made(row, False)

    def detail(self, row):
        """The most detailed ``side`` x ``side`` pixels of the image, not resized."""
        return self._made(row, True)

    def _made(self, row, detail):
        if (row, detail) not in self.made:
            try:
                data = open_bytes(self.found[row]["locator"], 1 << 28)
                header = read_header(data)
                if header.width * header.height > _LARGEST:
                    raise ValueError("too large to show")
                self.made[row, detail] = page.image_uri(_detail(data, self.side) if detail else shrunk(data, self.side),
                                                        quality=92 if detail else 80)
            except (ImageError, cv2.error, OSError, ValueError):
                self.made[row, detail] = None
        return self.made[row, detail]


def shrunk(data, side):
    """An encoded image as uint8 RGB whose longer side is at most ``side``. Raises ValueError when it cannot be read."""
    data = np.frombuffer(data, np.uint8)
    pixels = None
    for factor, flag in _REDUCED:
        small = cv2.imdecode(data, flag) if len(data) else None
        if small is not None and (max(small.shape[:2]) >= side or factor == 2):
            pixels = small
            break
    if pixels is not None and max(pixels.shape[:2]) < side:
        pixels = cv2.imdecode(data, cv2.IMREAD_COLOR)
    if pixels is None:
        raise ValueError("cannot be read")
    scale = side / max(pixels.shape[:2])
    if scale < 1:
        size = tuple(max(1, round(n * scale)) for n in pixels.shape[1::-1])
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(pixels[:, :, ::-1])


def _detail(data, side):
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    if pixels is None:
        raise ValueError("cannot be read")
    window = patches.choose(cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY), min(side, *pixels.shape[:2]), 1)
    x, y, _ = window[0] if window else (0, 0, 0)
    return np.ascontiguousarray(pixels[y:y + side, x:x + side, ::-1])
