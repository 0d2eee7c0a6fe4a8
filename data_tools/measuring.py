"""The measure stage: every image of the scan through the workers once, its row committed with its part.

A part's file name holds a hash of what it was made from (which images, their sizes and times, the settings), so a rerun
finds the parts that are done, and rows of images that did not change are taken over when others come or go.
"""

import contextlib
import hashlib
import json

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from restore.errors import ImageError
from restore.files import require_space

from . import engine, plugins
from .containers import open_bytes
from .measure import VERSION, header_only, measure, schema

_FROM = ["id", "name", "locator", "bytes", "stamp", "error"]


def run(store, recipe, shard=(0, 1)):
    """Measure what the scan lists and has not been measured; returns ``(rows, rows measured now)``.

    ``shard=(i, n)`` does every n-th part only: n jobs on a shared file system do the whole, and the first run without
    ``shard`` (or the last of the jobs) finishes the stage.
    """
    scanned = store.require("scan")
    columns = plugins.columns(recipe.measure.plugins)
    salt = json.dumps({"version": VERSION, "max_megapixels": recipe.measure.max_megapixels,
                       "max_mb": recipe.measure.max_mb,
                       "plugins": [plugins.fingerprint(plugin) for plugin in recipe.measure.plugins]}, sort_keys=True)
    names, todo = [], []
    folder = store.path("measure")
    folder.mkdir(parents=True, exist_ok=True)
    for number, table in enumerate(store.batches("scan", _FROM)):
        keys = _keys(table, salt)
        name = f"part-{number:05d}-{hashlib.sha256(keys.tobytes()).hexdigest()[:12]}.parquet"
        names.append(name)
        if number % shard[1] == shard[0] and not (folder / name).exists():
            todo.append((name, scanned["parts"][number], keys))    # not the table: two million rows are half a gigabyte
    known = store.manifest("measure")
    if known is not None and known["parts"] == names and not todo:
        return scanned["rows"], 0
    measured = _measure_parts(store, recipe, todo, columns, _Reused(folder, set(names))) if todo else 0
    missing = [name for name in names if not (folder / name).exists()]
    if not missing:
        store.finish("measure", names, scanned["rows"], hashlib.sha256(salt.encode()).hexdigest()[:12], columns=columns)
    return scanned["rows"], measured


def _keys(table, salt):
    """uint64 per row: of the image, its file's size and time, and the settings."""
    texts = zip(*(table[name].to_pylist() for name in ("id", "bytes", "stamp", "error")))
    hashes = (hashlib.blake2b(f"{row}{salt}".encode(), digest_size=8).digest() for row in texts)
    return np.array([int.from_bytes(digest, "big") for digest in hashes], np.uint64)


class _Reused:
    """Rows of parts that are no longer wanted as they are, found by key."""

    def __init__(self, folder, wanted):
        self.paths = [path for path in sorted(folder.glob("part-*.parquet")) if path.name not in wanted]
        self.where = {}
        for number, path in enumerate(self.paths):
            table = pq.read_table(path, columns=["key", "error"], partitioning=None)
            for k, (key, error) in enumerate(zip(table["key"].to_pylist(), table["error"].to_pylist())):
                # a worker that died or hung is no property of the image: give it another chance
                if not (error or "").startswith(("crash", "timeout", "missing")):
                    self.where[key] = (number, k)
        self.part = (None, None)

    def __contains__(self, key):
        return int(key) in self.where

    def row(self, key):
        number, k = self.where[int(key)]
        if self.part[0] != number:
            self.part = (number, pq.read_table(self.paths[number], partitioning=None))
        return self.part[1].slice(k, 1).to_pylist()[0]


def _measure_parts(store, recipe, todo, columns, reused):
    store.begin("measure")
    require_space(store.folder, 1 << 24, "measuring")
    arguments = {"max_megapixels": recipe.measure.max_megapixels, "max_mb": recipe.measure.max_mb,
                 "plugins": recipe.measure.plugins}
    items = (row for _, part, keys in todo for row, key in zip(_scanned(store, part, _FROM), keys) if key not in reused)
    run_engine = engine.run
    if recipe.engine == "ray":
        from .ray_engine import run as run_engine
    results = run_engine("data_tools.measuring:measurer", arguments, items, recipe.workers, recipe.measure.timeout)
    fields = schema(columns).append(pa.field("key", pa.uint64()))
    measured = 0
    with contextlib.closing(results), tqdm(total=sum(len(keys) for _, _, keys in todo), desc="measure", unit="img",
                                           disable=None) as progress:
        for name, part, keys in todo:
            rows = []
            for scanned, key in zip(_scanned(store, part, ["id"]), keys):
                if key in reused:
                    row = reused.row(key)
                else:
                    row = next(results)
                    row = {"error": row.reason} if isinstance(row, engine.Failure) else row
                    measured += 1
                rows.append({**row, "id": scanned["id"], "key": int(key)})
                progress.update(1)
            store.write_part("measure", name, pa.Table.from_pylist(rows, fields))
    return measured


def _scanned(store, part, columns):
    """The rows of one part of the scan."""
    return pq.read_table(store.path("scan", part), columns=columns, partitioning=None).to_pylist()


def measurer(max_megapixels, max_mb, plugins):
    """What a worker runs: a function from a scan row to a row of the ``measure`` table, without id and key."""
    from . import plugins as plugin_files
    cv2.setNumThreads(1)                   # one process per core: threads inside would only fight
    pa.set_cpu_count(1)
    loaded = [plugin_files.load(name) for name in plugins]
    limit = int(max_mb * 1e6)

    def one(item):
        if item["error"]:
            return {"error": item["error"]}
        try:
            data = open_bytes(item["locator"], limit)
        except ImageError as error:
            return {"error": str(error)}
        try:
            return measure(data, item["name"], max_megapixels, loaded)
        except MemoryError:
            return {"error": "unsupported: not enough memory", **header_only(data, item["name"])}
    return one
