"""What the runs of a study are scored on, and the scores: centres of benchmark images, PSNR at every depth."""

import dataclasses
import math
from dataclasses import field

import numpy as np

from restore.depth import count_macs, format_depth, parse_depth
from restore.errors import RestoreError
from restore.recipe import require_within

COLUMNS = ("arm", "seed", "depth", "repeats", "trained", "gmacs", "steps", "set", "image", "psnr")
SIDE = 256              # of the images that MACs are told for


@dataclasses.dataclass
class Scores:
    """The images to score.

    data: folder with benchmark sets, in any layout that ``restore bench`` knows.
    sets: names of sets; one of clean images with its noise level (``cbsd68-25``), the noise seeded by name as in the
        protocol ``seeded``.
    images: how many of each set, evenly spread over its names; 0 for all. side: their centres of so many pixels; 0 for
        whole images.
    """
    data: str = ""
    sets: list[str] = field(default_factory=lambda: ["cbsd68-15", "cbsd68-25", "cbsd68-50", "rain100l", "sots-indoor"])
    images: int = 12
    side: int = 128

    def check(self):
        if not self.data:
            raise RestoreError("data: give the folder of benchmark sets")
        if not self.sets:
            raise RestoreError("sets: list at least one set")
        require_within(self, 0, math.inf, "images", "side")


@dataclasses.dataclass
class Image:
    """``degraded`` and ``clean`` uint8 (h, w, 3) of one image of ``set``."""
    set: str
    name: str
    degraded: np.ndarray
    clean: np.ndarray


def load_images(scores):
    """Every :class:`Image`, set by set. Raises RestoreError for a set that is unknown, absent or holds a bad file."""
    from restore.benchmark.catalog import protocols
    from restore.benchmark.inputs import inputs
    from restore.benchmark.locate import locate, parse_data
    roots, _ = parse_data([scores.data])
    images = []
    for key in scores.sets:
        entry = _entry(key)
        located = locate(entry.set, roots)
        if located is None:
            raise RestoreError(f"scores.data: {scores.data} has no set {entry.set.key}")
        located = dataclasses.replace(located, items=_spread(located.items, scores.images))
        for _, image in inputs([entry], located, protocols()["seeded"]):
            if image.error:
                raise RestoreError(f"scores.data: {image.error}")
            images.append(Image(key, image.name, *(_centre(a, scores.side) for a in (image.degraded, image.clean))))
    return images


def score(model, depths, images, device="auto"):
    """PSNR (dB, RGB, output clipped and not rounded) of ``model`` at each of ``depths`` on ``images``: a list of dictionaries
    with the keys of ``COLUMNS`` that are no facts of the run.
    """
    import torch

    from restore.metrics import psnr
    from restore.restorer import Restorer
    restorer, rows = Restorer(model, device=device), []
    for depth in depths:
        at = restorer.at(parse_depth(depth))
        macs = count_macs(model, SIDE, SIDE, at.depth)
        for image in images:
            given = torch.from_numpy(image.degraded.transpose(2, 0, 1).copy()).float().div_(255)
            restored = at.restore(given.to(at.device)).cpu().double().numpy()
            rows.append({"depth": depth, "repeats": format_depth(model.repeats(parse_depth(depth))),
                         "gmacs": round(macs / 1e9, 6), "set": image.set, "image": image.name,
                         "psnr": round(float(psnr(restored, image.clean.transpose(2, 0, 1) / 255.0, 100.0)), 6)})
    return rows


def _entry(key):
    from restore.benchmark.catalog import Entry, image_sets
    name, _, sigma = key.rpartition("-")
    known = image_sets()
    if key in known and known[key].kind == "pairs":
        return Entry(known[key])
    if name in known and known[name].kind == "clean" and sigma.replace(".", "", 1).isdigit():
        return Entry(known[name], float(sigma))
    raise RestoreError(f"scores.sets: {key!r} is no set of pairs, and no set of clean images with a noise level such as cbsd68-25")


def _spread(items, count):
    if not count or count >= len(items):
        return items
    return [items[i] for i in np.linspace(0, len(items) - 1, count).round().astype(int)]


def _centre(image, side):
    height, width = image.shape[:2]
    h, w = min(height, side or height), min(width, side or width)
    top, left = (height - h) // 2, (width - w) // 2
    return np.ascontiguousarray(image[top:top + h, left:left + w])
