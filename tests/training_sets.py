"""Small training sets, drawn here, and a recipe over them: for the tests of the mixture and of fine-tuning."""

import cv2
import numpy as np

from finetune.mixture import Mixture, find_sources
from finetune.recipe import Recipe
from restore.recipe import from_dict

OFFSET = 40         # what the degraded images of the pairs here have more than the clean ones


def picture(number, height=40, width=48):
    """A smooth random picture, its number in the red channel: values from 40 to 200, so that OFFSET fits above."""
    rng = np.random.default_rng(number)
    small = rng.integers(40, 200, (6, 7, 3), dtype=np.uint8)
    image = cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
    image[..., 0] = 40 + number
    return image


def write(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image[..., ::-1])


def write_sets(root):
    """Clean photos in ``clean``, rainy pairs in ``rain``, hazy ones (two for a scene) in ``haze``."""
    for n in range(12):
        write(root / f"clean/{n}.png", picture(n))
    for n in range(12, 24):
        write(root / f"rain/norain-{n}.png", picture(n))
        write(root / f"rain/rainy/rain-{n}.png", picture(n) + OFFSET)
    for n in range(24, 30):
        write(root / f"haze/clear/{n}.png", picture(n))
        for light in (1, 2):
            write(root / f"haze/hazy/{n}_{light}.png", picture(n) + OFFSET)
    return root


def recipe_of(sets, **changes):
    """A recipe of three tasks: noise on photos, rain from pairs, haze from both in equal parts."""
    values = {"steps": 4, "batch_size": 2, "workers": 0, "device": "cpu", "warmup": 1, "log_every": 1, "validate_every": 100,
              "checkpoint_every": 2, "data": {"crop": 16}, "validation": {"images": 1, "side": 24}, "model": {
                  "name": "dynet", "options": {"width": 8, "refinement": 1}, "depths": {"small": [1, 1, 1, 1], "large": [1, 1, 1, 2]}},
              "tasks": {"denoise": {"clean": str(sets / "clean"), "weight": 2, "holdout": 0},
                        "derain": {"pairs": str(sets / "rain"), "weight": 1, "holdout": 0},
                        "dehaze": {"pairs": str(sets / "haze"), "clean": [str(sets / "clean")], "weight": 1, "holdout": 0}}}
    return from_dict(Recipe, {**values, **changes})


def mixture(recipe):
    return Mixture(find_sources(recipe), recipe.data.crop, recipe.seed)
