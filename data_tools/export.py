"""The export stage: what was kept, as shards of bounded size, split into train and val, with all that is known of it.

    export/webdataset/train/00000.tar    KEY.jpg beside KEY.json
    export/parquet/train/00000.parquet   for ``datasets.load_dataset`` and ``pretrain``
    export/files/train/00000/KEY.jpg     with metadata.jsonl
    export/shards/train-00000.json       what is in that shard: written after it, so a shard with it is whole
    export/manifest.json, README.md      written last

Which rows go into which shard follows from the tables alone. Shards are therefore written by several processes, a run that
was killed writes only the missing ones, and the bytes are those of an unbroken run. Whether an image belongs to val
follows from its group's name and the seed: images of one group stay together, and hardly change sides when others are
added.
"""

import contextlib
import hashlib
import json
import os
import shutil
from pathlib import Path

from tqdm import tqdm

from restore.errors import ImageError, RestoreError
from restore.files import atomic_path, require_space, write_bytes

from . import card, engine, jpeg_crop, patches
from .containers import open_bytes
from .shards import FIELDS, WRITERS

VERSION = 1
_SCAN = ["id", "source", "name", "locator", "bytes", "licence", "url", "group", "provenance"]
_MEASURE = ["sha256", "width", "height", "format", "bits_per_pixel", "megapixels"]
_SAMPLE_OVERHEAD = 2500                    # bytes that a sample's fields and headers take at most, usually
_SUFFIX = {"JPEG": "jpg", "TIFF": "tif"}   # others: the format in lower case


def export(store, recipe):
    """Write the kept images by ``recipe.export``; returns a line that says what was written."""
    settings = recipe.export
    if settings.content not in ("original", "crops", "patches") or not settings.formats \
            or not set(settings.formats) <= set(WRITERS):
        raise RestoreError(f"export: content is one of original, crops, patches, and formats some of {', '.join(WRITERS)}")
    if settings.shard_mb <= 0 or settings.patch_size < 8 or settings.patches_per_image < 1 or \
            not 0 <= settings.patch_overlap < 1 or not 0 <= settings.val_fraction <= 1:
        raise RestoreError("export: expected shard_mb > 0, patch_size >= 8, patches_per_image >= 1, 0 <= patch_overlap < 1 "
                           "and 0 <= val_fraction <= 1")
    store.require("decide")
    folder = store.path("export")
    folder.mkdir(parents=True, exist_ok=True)
    store.begin("export")
    planned, todo, total = [], [], 0
    for shard in plan(store, settings):
        name = _name(shard)
        planned.append(name)
        total += len(shard["rows"])
        if _done(folder, name, shard["key"]) is None:
            todo.append((name, len(shard["rows"]), shard["bytes"]))
    _clean(folder, set(planned))
    require_space(folder, int(sum(size for _, _, size in todo) * len(settings.formats) * 1.02) + (1 << 20), "the export")
    _write(store, recipe, folder, {name for name, _, _ in todo}, total - sum(rows for _, rows, _ in todo), total)
    shards = [(name, _done(folder, name)) for name in planned]
    missing = [name for name, done in shards if done is None]
    if missing:
        raise RestoreError(f"{folder}: the shard {missing[0]} was not written; run the export again")
    return _finish(store, recipe, shards)


def plan(store, settings):
    """Yield the shards: {"split", "number", "rows", "bytes" (estimated), "key"}; rows are dictionaries, in scan order."""
    salt = json.dumps([VERSION, settings.content, settings.formats, settings.content != "original" and
                       [settings.patch_size, settings.patches_per_image, settings.patch_overlap, settings.patch_min_detail,
                        jpeg_crop.available()]])
    limit = settings.shard_mb * 1e6
    open_shards = {split: {"split": split, "number": 0, "rows": [], "bytes": 0} for split in ("train", "val")}

    def closed(shard):
        text = salt + json.dumps(shard["rows"], sort_keys=True)
        shard["key"] = hashlib.sha256(text.encode()).hexdigest()[:16]
        open_shards[shard["split"]] = {"split": shard["split"], "number": shard["number"] + 1, "rows": [], "bytes": 0}
        return shard

    val = val_groups(store, settings)
    for row in _kept(store):
        size = _estimate(row, settings)
        shard = open_shards["val" if row["group"] in val else "train"]
        if shard["rows"] and shard["bytes"] + size > limit:
            yield closed(shard)
            shard = open_shards[shard["split"]]
        shard["rows"].append(row)
        shard["bytes"] += size
    for shard in list(open_shards.values()):
        if shard["rows"]:
            yield closed(shard)


def val_groups(store, settings):
    """The groups that are val: those whose hash with the seed falls below ``val_fraction``, the smallest hash first, as
    long as val does not get much more than its share (half as much again; a tenth of the set is always allowed)."""
    drawn, total, start = {}, 0, 0
    kept = store.read("decide", ["keep"])["keep"]
    for scan in store.batches("scan", ["group"]):
        groups = scan["group"].filter(kept.slice(start, len(scan)))
        start += len(scan)
        total += len(groups)
        for entry in groups.value_counts().to_pylist():
            name = entry["values"]
            digest = hashlib.blake2b(f"{settings.seed}\0{name}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
            share = int.from_bytes(digest, "big") / 2.0 ** 64
            if share < settings.val_fraction:
                drawn[share, name] = drawn.get((share, name), 0) + entry["counts"]
    room = total * min((1 + settings.val_fraction) / 2, max(1.5 * settings.val_fraction, 0.1))
    chosen = set()
    for share, name in sorted(drawn):
        if drawn[share, name] <= room:
            room -= drawn[share, name]
            chosen.add(name)
    return chosen


def _kept(store):
    """Rows of the images that the decision keeps: their fields, where they are, and their size."""
    kept = store.read("decide", ["keep"])["keep"]
    start = 0
    for scan, measure in zip(store.batches("scan", _SCAN), store.batches("measure", _MEASURE)):
        keep = kept.slice(start, len(scan))
        start += len(scan)
        scan, measure = scan.filter(keep), measure.filter(keep)
        for row, metrics in zip(scan.to_pylist(), measure.to_pylist()):
            size = row.pop("bytes")
            if size < 0:
                size = round(metrics["bits_per_pixel"] * metrics["width"] * metrics["height"] / 8)
            kind = metrics["format"] or "bin"
            yield {**row, "size": size, "sha256": metrics["sha256"].hex(), "width": metrics["width"],
                   "height": metrics["height"], "suffix": _SUFFIX.get(kind, kind.lower())}


def _estimate(row, settings):
    """Bytes that a row will take in a shard: what it takes for originals, no less than that otherwise."""
    if settings.content == "original":
        return row["size"] + _SAMPLE_OVERHEAD
    side = settings.patch_size
    if min(row["width"], row["height"]) < side:
        return 0
    room = (row["width"] // side) * (row["height"] // side) / (1 - settings.patch_overlap) ** 2
    count = max(1, min(settings.patches_per_image, int(room)))
    if settings.content == "crops" and row["suffix"] == "jpg" and jpeg_crop.available():
        share = min(1.0, 1.5 * count * side * side / (row["width"] * row["height"]))
        return int(row["size"] * share) + 2 * count * _SAMPLE_OVERHEAD
    return count * (3 * side * side + side + _SAMPLE_OVERHEAD)


# ---- writing -----------------------------------------------------------------------------------------------------

def _write(store, recipe, folder, todo, done, total):
    """Write the shards in ``todo``, each by one worker."""
    if not todo:
        return
    arguments = {"folder": str(folder), "settings": dict(vars(recipe.export)), "max_mb": recipe.measure.max_mb,
                 "max_megapixels": recipe.measure.max_megapixels}
    items = (shard for shard in plan(store, recipe.export) if _name(shard) in todo)
    if len(todo) == 1 or recipe.workers == 1:
        results = map(shard_writer(**arguments), items)
    elif recipe.engine == "ray":
        from .ray_engine import run
        results = run("data_tools.export:shard_writer", arguments, items, recipe.workers, 86400.0, 64, 1)
    else:
        workers = min(len(todo), recipe.workers or len(os.sched_getaffinity(0)))
        results = engine.run("data_tools.export:shard_writer", arguments, items, workers, 86400.0, 4 * workers, 1)
    with tqdm(total=total, initial=done, desc="export", unit="img", disable=None) as progress, contextlib.closing(
            results if hasattr(results, "close") else contextlib.ExitStack()):
        for result in results:
            if isinstance(result, engine.Failure):
                raise RestoreError(f"{folder}: a shard could not be written: {result.reason}")
            if isinstance(result, str):
                raise RestoreError(result)
            progress.update(result)


def shard_writer(folder, settings, max_mb, max_megapixels):
    """What a worker runs: a function that writes a shard of the plan, and returns how many rows that were, or an error."""
    from .recipe import Export
    settings = Export(**settings)

    def one(shard):
        try:
            _write_shard(Path(folder), shard, settings, int(max_mb * 1e6), max_megapixels)
        except OSError as error:
            return f"{folder}: {error.strerror or error}. The shards before this one are whole; run the export again."
        return len(shard["rows"])
    return one


def _write_shard(folder, shard, settings, limit, max_megapixels):
    """The data by rename, then the note that it is whole."""
    name = _name(shard)
    described = {"key": shard["key"], "split": shard["split"], "rows": len(shard["rows"]), "samples": 0, "image_bytes": 0,
                 "files": {}, "licences": {}, "sources": {}, "skipped": []}
    with contextlib.ExitStack() as stack:
        writers = {}
        for kind in settings.formats:
            path = folder / _relative(kind, shard)
            temporary = stack.enter_context(atomic_path(path) if WRITERS[kind].suffix else _atomic_folder(path))
            writers[kind] = WRITERS[kind](temporary)
        for row in shard["rows"]:
            try:
                samples = _samples(row, settings, limit, max_megapixels)
            except ImageError as error:
                name_ = f"{row['source']}/{row['name']}"
                described["skipped"].append({"id": row["id"], "name": name_, "reason": str(error)})
                continue
            for sample in samples:
                for writer in writers.values():
                    writer.add(sample)
                described["samples"] += 1
                described["image_bytes"] += len(sample["image"])
            for counts, value in (("licences", row["licence"] or ""), ("sources", row["source"])):
                described[counts][value] = described[counts].get(value, 0) + len(samples)
        for kind, writer in writers.items():
            described["files"][_relative(kind, shard)] = writer.close()
    write_bytes(folder / "shards" / f"{name}.json", json.dumps(described, indent=1, sort_keys=True) + "\n")


def _samples(row, settings, limit, max_megapixels):
    """The samples of one image. Raises ImageError when it cannot be read, or is not what was measured."""
    data = open_bytes(row["locator"], limit)
    if hashlib.sha256(data).hexdigest() != row["sha256"]:
        raise ImageError("changed: the bytes are not those that were measured")
    fields = {name: row.get(name) for name in FIELDS}
    if settings.content == "original":
        return [{**fields, "key": row["id"], "image": data, "suffix": row["suffix"]}]
    side = settings.patch_size
    fields |= {"width": side, "height": side}
    return [{**fields, "key": f"{row['id']}_{k}", "image": image, "suffix": suffix, "x": x, "y": y}
            for k, (image, suffix, x, y) in enumerate(patches.cut(data, settings, max_megapixels))]


@contextlib.contextmanager
def _atomic_folder(path):
    """Like ``atomic_path``, for a folder."""
    temporary = path.parent / f".{path.name}.{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield temporary
        shutil.rmtree(path, ignore_errors=True)
        os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


# ---- what is there -----------------------------------------------------------------------------------------------

def _name(shard):
    return f"{shard['split']}-{shard['number']:05d}"


def _relative(kind, shard):
    return f"{kind}/{shard['split']}/{shard['number']:05d}{WRITERS[kind].suffix}"


def _done(folder, name, key=None):
    """The note of a shard that is whole (and was made from what ``key`` stands for), else None."""
    try:
        described = json.loads((folder / "shards" / f"{name}.json").read_text())
    except (OSError, ValueError):
        return None
    if key is not None and described["key"] != key:
        return None
    for file, facts in described["files"].items():
        path = folder / file
        if not path.exists() or (path.is_file() and path.stat().st_size != facts["bytes"]):
            return None
    return described


def _clean(folder, planned):
    """Remove shards that are no longer part of the export, and what a killed run left half-written."""
    for note in (folder / "shards").glob("*.json"):
        if note.stem not in planned:
            note.unlink()
    for kind in WRITERS:
        for path in (folder / kind).glob("*/*"):
            if path.name.startswith(".") or f"{path.parent.name}-{path.name.split('.')[0]}" not in planned:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        for path in (folder / kind).glob("*/.*"):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _finish(store, recipe, shards):
    """The card and the manifest; shards of formats that are no longer wanted go."""
    folder = store.path("export")
    wanted = {file for _, described in shards for file in described["files"]}
    for kind in WRITERS:
        for path in (folder / kind).glob("*/*"):
            if str(path.relative_to(folder)) not in wanted:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    totals = card.totals([described for _, described in shards])
    write_bytes(folder / "README.md", card.card(store, recipe, totals))
    files = {file: facts for _, described in shards for file, facts in described["files"].items()}
    skipped = [entry for _, described in shards for entry in described["skipped"]]
    manifest = {"parts": [name for name, _ in shards], "rows": totals["samples"], "key": store.require("decide")["key"],
                "splits": totals["splits"], "image_bytes": totals["image_bytes"], "files": files, "skipped": skipped,
                "settings": dict(vars(recipe.export))}
    write_bytes(folder / "manifest.json", json.dumps(manifest, indent=1, sort_keys=True) + "\n")
    parts = ", ".join(f"{count} {split}" for split, count in totals["splits"].items())
    said = f"{totals['samples']} samples ({parts or 'none'}), {totals['image_bytes'] / 1e6:.1f} MB of images"
    if skipped:
        said += f"; {len(skipped)} skipped, the first: {skipped[0]['name']}: {skipped[0]['reason']}"
    if totals["samples"] and recipe.export.val_fraction and not totals["splits"].get("val"):
        said += "; no group fell into val (few or large groups, or a small val_fraction)"
    return said
