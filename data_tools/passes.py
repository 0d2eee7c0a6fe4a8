"""Second passes, over images that were measured: watermarks of whole sources, and NIQE where a model is given.

They read images again, only those that need it: a sample of each source, all images of a source in which a watermark
was found, and for NIQE the images that the other rules keep. Columns, null where there was nothing to measure:

    watermark         how far the image's match with its source's mark stands out, in standard deviations
    watermark_source  share of the source's sample that carries the mark: who marks most pictures marks all, and on a
                      plain white one it just cannot be seen
    niqe              lower is better
"""

import contextlib
import hashlib
import json
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
from tqdm import tqdm

from restore.errors import ImageError

from . import engine, niqe, phash, watermark
from .containers import open_bytes
from .decode import decode
from .header import Refused

_SAMPLE = 192                              # images of a source that its pattern is learned from


def run(store, recipe):
    """Write the ``passes`` table (id and one column a pass); nothing is done when nothing has changed."""
    measured = store.require("measure")
    settings = [5, measured["parts"], measured["key"], recipe.measure.watermarks, recipe.measure.watermark_min_images,
                recipe.measure.niqe and hashlib.sha256(Path(recipe.measure.niqe).read_bytes()).hexdigest(),
                recipe.thresholds, recipe.rules if recipe.measure.niqe else None]
    key = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:12]
    known = store.manifest("passes")
    if known is not None and known["key"] == key:
        return "nothing new"
    store.begin("passes")
    scanned = store.read("scan", ["id", "source", "locator"])
    readable = _readable(store)
    columns = {"id": scanned["id"]}
    said = []
    if recipe.measure.watermarks:
        scores, shares, marked = _watermarks(store, scanned, readable, recipe)
        columns["watermark"] = pa.array(scores, pa.float32(), from_pandas=True)
        columns["watermark_source"] = pa.array(shares, pa.float32(), from_pandas=True)
        said.append("watermarks found in " + (", ".join(marked) if marked else "no source"))
    if recipe.measure.niqe:
        from . import decide
        rules = decide.thresholds(recipe.thresholds, recipe.rules)
        kept = np.concatenate([decide.decide_table(table, rules)["keep"].to_numpy(zero_copy_only=False)
                               for table in decide.metric_tables(store)] or [np.zeros(0, bool)])
        at = np.flatnonzero(kept & readable)
        scores = np.full(len(scanned), np.nan, np.float32)
        model = {"model": recipe.measure.niqe}
        scores[at] = list(_map("data_tools.passes:niqe_scorer", model, scanned, at, recipe, "niqe"))
        columns["niqe"] = pa.array(scores, pa.float32(), from_pandas=True)
        said.append(f"NIQE of {len(at)} images")
    store.write_part("passes", "passes.parquet", pa.table(columns))
    store.finish("passes", ["passes.parquet"], len(scanned), key)
    return "; ".join(said)


def _readable(store):
    errors = [table["error"] for table in store.batches("measure", ["error"])]
    return np.concatenate([~np.array(column.is_valid()) for column in errors] or [np.zeros(0, bool)])


def _watermarks(store, scanned, readable, recipe):
    scores, shares = np.full((2, len(scanned)), np.nan, np.float32)
    names = np.array(scanned["source"].to_pylist(), dtype=object)
    hashes = np.array([np.frombuffer(h or bytes(32), np.uint8) for t in store.batches("measure", ["phash"])
                       for h in t["phash"].to_pylist()], np.uint8).reshape(-1, 32)
    marked = []
    for source in recipe.sources:
        at = np.flatnonzero((names == source.name) & readable)
        if len(at) < recipe.measure.watermark_min_images:
            continue
        sample = at[np.unique(np.linspace(0, len(at) - 1, min(len(at), _SAMPLE)).astype(int))]
        sample = sample[_distinct(hashes[sample])]        # copies of one picture have everything in common
        if len(sample) < recipe.measure.watermark_min_images:
            continue
        what = f"watermark sample of {source.name}"
        found = list(_map("data_tools.passes:windower", {}, scanned, sample, recipe, what))
        used = [(int(k), windows) for k, windows in zip(sample, found) if windows is not None]
        filters, known = watermark.learn([windows for _, windows in used], recipe.measure.watermark_min_images)
        scores[at] = shares[at] = 0
        if not filters:
            continue
        marked.append(f"{source.name} ({', '.join(filters)})")
        scores[[k for k, _ in used]] = known
        shares[at] = (known > watermark.FOUND).mean()
        rest = np.setdiff1d(at, [k for k, _ in used])
        scores[rest] = list(_map("data_tools.passes:mark_scorer", {"filters": filters}, scanned, rest, recipe,
                                 f"watermarks of {source.name}"))
    return scores, shares, marked


def _distinct(hashes):
    """Places of the hashes that are not within 64 bits of an earlier one."""
    kept = []
    for k in range(len(hashes)):
        if not kept or phash.distance(hashes[kept], hashes[k]).min() > 64:
            kept.append(k)
    return kept


def _map(target, arguments, scanned, at, recipe, what):
    locators = scanned["locator"].take(pa.array(at)).to_pylist()
    arguments = {**arguments, "max_megapixels": recipe.measure.max_megapixels}
    results = engine.run(target, arguments, locators, recipe.workers, recipe.measure.timeout, window=256)
    with contextlib.closing(results):
        for result in tqdm(results, total=len(at), desc=what, unit="img", disable=None):
            yield None if isinstance(result, engine.Failure) else result


def _gray(locator, max_megapixels):
    try:
        pixels = decode(open_bytes(locator), max_megapixels)[1]
    except (ImageError, Refused):
        return None
    return pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY)


def windower(max_megapixels):
    """A worker's function from a locator to :func:`watermark.windows`, or None."""
    cv2.setNumThreads(1)

    def one(locator):
        gray = _gray(locator, max_megapixels)
        return None if gray is None else watermark.windows(gray)
    return one


def mark_scorer(filters, max_megapixels):
    """A worker's function from a locator to its best score against the source's filters; NaN when unreadable."""
    window = windower(max_megapixels)

    def one(locator):
        windows = window(locator)
        return float("nan") if windows is None else watermark.best(windows, filters)
    return one


def niqe_scorer(model, max_megapixels):
    """A worker's function from a locator to NIQE against a fitted model; NaN when unreadable or too small."""
    cv2.setNumThreads(1)
    loaded = niqe.load(model)

    def one(locator):
        gray = _gray(locator, max_megapixels)
        return float("nan") if gray is None else niqe.score(gray, loaded)
    return one
