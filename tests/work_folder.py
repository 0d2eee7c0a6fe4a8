"""A small work folder of data_tools without worker processes: photos that are drawn, scanned and measured here."""

from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa

from data_tools import recipe as recipes
from data_tools.containers import open_bytes
from data_tools.measure import measure, schema
from data_tools.scan import scan
from data_tools.store import Store


def photo(seed, height=321, width=481):
    """A uint8 BGR picture with a natural picture's spectrum and with edges; another one for every seed."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None] * height, np.fft.rfftfreq(width)[None] * width)
    texture = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((height, width))) / np.maximum(frequency, 1) ** 1.1, (height, width))
    shapes = np.full((height, width, 3), 120, np.uint8)
    for _ in range(25):
        centre, axes = rng.integers(0, (width, height)).tolist(), rng.integers(8, 90, 2).tolist()
        cv2.ellipse(shapes, centre, axes, float(rng.integers(180)), 0, 360, rng.integers(20, 235, 3).tolist(), -1, cv2.LINE_AA)
    image = 0.7 * shapes + 38 + 30 * (texture / texture.std())[..., None] * rng.uniform(0.7, 1.3, 3)
    return np.clip(image + 2 * rng.standard_normal((height, width, 1)), 0, 255).astype(np.uint8)


def write(path, image, quality=92):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), image, [cv2.IMWRITE_JPEG_QUALITY, quality] if path.suffix == ".jpg" else [])
    return path


RULES = """
corrupt: {any: [{metric: error, one_of: [corrupt, truncated, empty, not-an-image]}]}
small: {why: a thumbnail, any: [{metric: short_side, below: 200}, {metric: megapixels, below: 0.05}]}
blurry: {why: not sharp, any: [{metric: sharpness, below: 0.2}]}
bright: {action: flag, all: [{metric: brightness, above: 150}, {metric: contrast, above: 50}]}
contaminated: {any: [{metric: contaminated, is: true}]}
duplicate: {any: [{metric: duplicate, is: true}]}
"""


def measured(sources, output, **settings):
    """``(store, recipe)`` of the given source folders, scanned and measured in this process, with rules that let drawn
    photos pass. Settings are named like ``export__shard_mb``."""
    recipe = recipes.Recipe(sources=[recipes.Source(path=str(path), name=path.name, licence=f"licence of {path.name}")
                                     for path in sources], output=str(output))
    for name, value in settings.items():
        group, _, key = name.partition("__")
        if key:
            setattr(getattr(recipe, group), key, value)
        else:
            setattr(recipe, group, value)
    store = Store(output)
    store.folder.mkdir(parents=True, exist_ok=True)
    recipe.thresholds = str(store.folder / "rules.yaml")
    Path(recipe.thresholds).write_text(RULES)
    scan(store, recipe)
    parts = []
    for number, table in enumerate(store.batches("scan")):
        rows = [{**measure(open_bytes(row["locator"]), row["name"]), "id": row["id"]} for row in table.to_pylist()]
        parts.append(f"part-{number:05d}.parquet")
        store.write_part("measure", parts[-1], pa.Table.from_pylist(rows, schema()))
    store.finish("measure", parts, store.rows("scan"), "test")
    return store, recipe
