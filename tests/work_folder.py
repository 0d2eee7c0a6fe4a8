"""A small work folder of data_tools without worker processes: photos that are drawn, scanned and measured here."""

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
    frequency = np.hypot(np.fft.fftfreq(height)[:, None] * height, np.fft.fftfreq(width)[None] * width)
    image = np.zeros((height, width, 3), np.float32)
    for channel in range(3):
        noise = np.fft.fft2(rng.standard_normal((height, width))) / np.maximum(frequency, 1) ** 1.1
        image[..., channel] = np.fft.ifft2(noise).real
    image = 128 + 40 * image / image.std()
    for _ in range(25):
        centre = tuple(int(v) for v in rng.integers(0, (width, height)))
        axes = tuple(int(v) for v in rng.integers(8, 90, 2))
        colour = [float(v) for v in rng.integers(20, 235, 3)]
        layer = image.copy()
        cv2.ellipse(layer, centre, axes, float(rng.integers(180)), 0, 360, colour, -1, cv2.LINE_AA)
        image = 0.25 * image + 0.75 * layer
    return np.clip(image + 2 * rng.standard_normal(image.shape), 0, 255).astype(np.uint8)


def write(path, image, quality=92):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return path


def measured(sources, output, **settings):
    """``(store, recipe)`` of the given source folders, scanned and measured in this process."""
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
    scan(store, recipe)
    parts = []
    for number, table in enumerate(store.batches("scan")):
        rows = [{**measure(open_bytes(row["locator"]), row["name"]), "id": row["id"]} for row in table.to_pylist()]
        parts.append(f"part-{number:05d}.parquet")
        store.write_part("measure", parts[-1], pa.Table.from_pylist(rows, schema()))
    store.finish("measure", parts, store.rows("scan"), "test")
    return store, recipe
