"""Small benchmark sets, drawn here, and a suite over them: for the tests of restore.benchmark."""

import dataclasses

import cv2
import numpy as np

from restore.benchmark import cache, catalog, competitors, locate, run


def picture(number, height=50, width=67):
    y, x = np.mgrid[:height, :width]
    planes = [(x * (3 + c) + y * (5 - c) + (x // 8) * (y // 8) * (number + 2) + 40 * c) % 256 for c in range(3)]
    return np.stack(planes, -1).astype(np.uint8)


def save(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image[..., ::-1] if image.ndim == 3 else image)


SUITE = """
title: small sets
protocol: seeded
sets:
  mini: {title: Mini, kind: clean, task: denoise, count: 3, folders: [mini], names: [alpha, beta, gamma]}
  wet: {title: Wet, kind: pairs, task: derain, count: 2, folders: [wet]}
entries:
  - {set: mini, sigma: [15, 25]}
  - {set: wet}
"""

FUNCTION = """
calls = []
def halve(image, sigma, name):
    calls.append(name)
    return image * 0.5
def wrong(image):
    return image[1:] if image.mean() > 0 else image
def broken(image):
    raise KeyError("no weights")
"""


def write_data(folder):
    """Three pictures in ``data/mini``, two pairs in ``data/wet``, and ``suite.yaml``, which names both."""
    for number, name in enumerate(("alpha", "beta", "gamma")):
        save(folder / "data" / "mini" / f"{name}.png", picture(number))
    for number in range(2):
        save(folder / "data" / "wet" / "clean" / f"{number}.png", picture(number))
        save(folder / "data" / "wet" / "rainy" / f"{number}.png", np.maximum(picture(number), picture(number + 3) // 2))
    (folder / "suite.yaml").write_text(SUITE)
    return folder


def run_suite(folder, models=("input",), protocol_name=None, first=None, kept=None, restored=(), depths=(), only=None):
    suite = catalog.load_suite(folder / "suite.yaml", protocol_name)
    if only:
        suite = dataclasses.replace(suite, entries=tuple(e for e in suite.entries if e.key in only), complete=False)
    located = {e.key: locate.locate(e.set, [folder / "data"]) for e in suite.entries}
    rows = competitors.competitors(models, depths, restored, "cpu", alone=len(suite.entries) == 1)
    return run.run(suite, located, rows, cache.Cache(kept), first, crops=2)
