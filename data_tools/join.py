"""The join stage: what can only be seen across images. Exact and near duplicates, and copies of test images.

Nothing is decided here: the table says which group an image belongs to, which of its copies is preferred, and which test
image it shows; the thresholds file says what follows from that.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from restore.errors import RestoreError
from restore.files import list_images

from . import decontaminate, duplicates, engine
from .store import JOIN_SCHEMA

VERSION = 2
HASH_QUALITY = 50                          # below, PDQ's authors say, the hash of a plain picture says little
TURNED = ("", "mirrored", "upside down", "turned by 180 degrees", "transposed", "turned", "turned", "transposed")
_COLUMNS = ["id", "error", "sha256", "phash", "phash_quality", "width", "height", "jpeg_quality", "pixel_quality", "gray",
            "sharpness", "noise"]
_CHUNK = 64                                # images that a worker compares with the test images at once


def join(store, recipe):
    """Write the ``join`` table; returns a line that says what was found. Nothing is done when nothing has changed."""
    measured = store.require("measure")
    tests = references(recipe.join.benchmarks)
    made_from = [VERSION, decontaminate.VERSION, measured["parts"], measured["key"], recipe.join.near_distance,
                 recipe.join.mirrored, tests]
    key = hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:12]
    known = store.manifest("join")
    if known is not None and known["key"] == key:
        return _summary(known)
    if not 0 <= recipe.join.near_distance <= 47:
        raise RestoreError(f"join.near_distance: expected 0..47, got {recipe.join.near_distance}")
    store.begin("join")
    shown = _contamination(store, recipe, tests) if tests else None
    table = store.read("measure", _COLUMNS)
    best, place, how = group(table, recipe.join.near_distance, recipe.join.mirrored)
    result = _table(store, table["id"], best, place, how, shown)
    store.write_part("join", "join.parquet", result)
    counts = {"groups": int(((place == 0) & (best >= 0)).sum()), "exact": int((how[:, 1] < 0).sum()),
              "near": int((how[:, 0] >= 0).sum() - (how[:, 1] < 0).sum()),
              "contaminated": result.num_rows - result["contaminated_by"].null_count,
              "test_images": sum(len(files) for _, _, files in tests)}
    store.finish("join", ["join.parquet"], result.num_rows, key, **counts)
    return _summary(counts)


def _summary(counts):
    return (f"{counts['exact']} exact and {counts['near']} near duplicates in {counts['groups']} groups; "
            f"{counts['contaminated']} copies of {counts['test_images']} test images")


def group(table, distance=31, turned=True):
    """Duplicate groups of the rows of a ``measure`` table.

    Preferred is the larger image, then the higher JPEG quality (of the file, or that its pixels show; in steps of 5), then
    what was processed less: colour before gray, the sharper (in steps of 15 %), the less noisy; then the smaller id.

    Returns:
        best (n,) int64: row of the preferred image of the group; -1 for an image without a duplicate.
        place (n,) int32: place in the group in order of preference, from 0; -1 without a duplicate.
        how (n, 2) int16: differing bits, and version (see :data:`TURNED`; -1: the same bytes), towards the best image;
            (-1, 0) for images that are none's duplicate, best images among them.
    """
    count = table.num_rows
    best, place = np.full(count, -1), np.full(count, -1, np.int32)
    how = np.tile(np.array([-1, 0], np.int16), (count, 1))
    usable = np.flatnonzero(pc.and_(pc.is_null(table["error"]), pc.is_valid(table["sha256"])).to_numpy()) if count else []
    if not len(usable):
        return best, place, how
    order = usable[_preference(table.take(pa.array(usable)))]          # rows, the preferred first
    digests = _fixed(table["sha256"], order, "S32")
    _, first, member = np.unique(digests, return_index=True, return_inverse=True)
    exact = first[member]                                              # as places in order
    hashed = pc.is_valid(table["phash"]).to_numpy() & (pc.fill_null(table["phash_quality"], 0).to_numpy() >= HASH_QUALITY)
    representatives = np.flatnonzero((exact == np.arange(len(order))) & hashed[order])
    hashes = _fixed(table["phash"], order[representatives], np.dtype((np.uint8, 32)))
    with tqdm(total=len(hashes), desc="duplicates", unit="img", disable=None) as progress:
        near, differing, version = duplicates.group(hashes, distance, turned, progress.update)
    towards = np.arange(len(order))
    towards[representatives] = representatives[near]
    bits, versions = np.zeros(len(order), np.int16), np.zeros(len(order), np.int16)
    bits[representatives], versions[representatives] = differing, version
    towards, bits, versions = towards[exact], bits[exact], versions[exact]
    versions[(towards == exact) & (exact != np.arange(len(order)))] = -1
    alone = np.bincount(towards, minlength=len(order)) == 1
    grouped = ~alone[towards]
    best[order[grouped]] = order[towards[grouped]]
    followers = grouped & (towards != np.arange(len(order)))
    how[order[followers], 0], how[order[followers], 1] = bits[followers], versions[followers]
    # places: rows of a group side by side, each group in order of preference
    rows = np.flatnonzero(grouped)
    rows = rows[np.argsort(towards[rows], kind="stable")]
    starts = np.flatnonzero(np.diff(towards[rows], prepend=-1))
    place[order[rows]] = np.arange(len(rows)) - np.repeat(starts, np.diff(np.append(starts, len(rows))))
    return best, place, how


def _preference(table):
    """Places of the rows when they are put in order of preference."""
    def column(name, missing):
        return pc.fill_null(table[name].cast(pa.float64()), missing).to_numpy()
    identity = np.frombuffer(bytes.fromhex("".join(table["id"].to_pylist())), ">u8")
    pixels = column("width", 0) * column("height", 0)
    quality = np.round(np.minimum(column("jpeg_quality", 100), column("pixel_quality", 100)) / 5)
    sharpness = np.round(np.log(np.maximum(column("sharpness", 1), 0.1)) / 0.15)
    return np.lexsort((identity, column("noise", 0), -sharpness, column("gray", 0), -quality, -pixels))


def _fixed(column, rows, dtype):
    """Fixed-size binary values of some rows as an array."""
    taken = column.take(pa.array(rows)).combine_chunks()
    values = taken if isinstance(taken, pa.Array) else taken.chunk(0) if taken.num_chunks else pa.array([], column.type)
    data = np.frombuffer(values.buffers()[1] or b"", np.uint8)
    width = column.type.byte_width
    data = data[values.offset * width:(values.offset + len(values)) * width].reshape(len(values), width)
    return np.ascontiguousarray(data) if dtype != "S32" else np.ascontiguousarray(data).view("S32").ravel()


def _table(store, ids, best, place, how, shown):
    """The ``join`` table, with a line for people about every duplicate and every copy of a test image."""
    count = len(ids)
    grouped = np.flatnonzero(best >= 0)
    best_ids = np.full(count, None, object)
    identities = ids.to_pylist()
    reasons = [None] * count
    names = _names(store, np.unique(best[grouped])) if len(grouped) else {}
    for row in grouped:
        best_ids[row] = identities[best[row]]
        if how[row, 0] >= 0:
            bits, version = how[row]
            name = names[int(best[row])]
            turned = f", {TURNED[version]}" if version > 0 else ""
            reasons[row] = f"same bytes as {name}" if version < 0 else f"like {name}{turned}: {bits} of 256 bits differ"
    contaminated = [None] * count
    for row, match in (shown or {}).items():
        name, significance, share, turned = match
        contaminated[row] = name
        how_ = f", {turned}" if turned else ""
        line = f"shows {round(100 * share)} % of test image {name}{how_} ({significance:.1f} sigma)"
        reasons[row] = f"{reasons[row]}; {line}" if reasons[row] else line
    group_ids = pa.array(best_ids.tolist(), pa.string())
    return pa.table({"id": ids, "duplicate_group": group_ids, "best_in_group": group_ids,
                     "place": pa.array(place, mask=place < 0), "contaminated_by": pa.array(contaminated, pa.string()),
                     "reason": pa.array(reasons, pa.string())}, JOIN_SCHEMA)


def _names(store, rows):
    """``row -> "source/name"`` of some rows of the scan."""
    found, start = {}, 0
    for table in store.batches("scan", ["source", "name"]):
        low, high = np.searchsorted(rows, (start, start + table.num_rows))
        for row in rows[low:high]:
            at = int(row) - start
            found[int(row)] = f"{table['source'][at]}/{table['name'][at]}"
        start += table.num_rows
    return found


# ---- test images -------------------------------------------------------------------------------------------------

def references(folders):
    """``[name, folder, [[file, size, time] ...]]`` for each benchmark folder: what the comparison depends on."""
    paths = [Path(folder) for folder in folders]
    listed = []
    for path in paths:
        alike = sum(other.name == path.name for other in paths) > 1
        files = [[str(f.relative_to(path)), f.stat().st_size, f.stat().st_mtime_ns] for f in list_images(path)]
        if not files:
            raise RestoreError(f"join.benchmarks: {path}: no images in it")
        listed.append(["/".join(path.parts[-2:]) if alike else path.name, str(path), files])
    return listed


def _contamination(store, recipe, tests):
    """``row -> (test image, significance, share, turned)``; every part of the measurements is compared once."""
    if "descriptor" not in store.columns("measure"):
        raise RestoreError(f"{store.folder}: measured by a version that could not recognise test images. Run: python -m "
                           "data_tools measure RECIPE")
    made_from = [VERSION, decontaminate.VERSION, recipe.join.mirrored, tests]
    key = hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:12]
    folder = store.path("join", f"test-images-{key}")
    parts, done = store.require("measure")["parts"], {}
    todo = [name for name in parts if not (folder / name).exists()]
    arguments = {"folders": [(name, path) for name, path, _ in tests], "turned": recipe.join.mirrored}
    results = _compare(store, recipe, todo, arguments) if todo else iter(())
    start = 0
    for name in tqdm(parts, desc="test images", unit="part", disable=None):
        if not (folder / name).exists():
            store.write_part(folder.relative_to(store.folder), name, next(results))
        table = pq.read_table(folder / name, partitioning=None)
        for row in table.to_pylist():
            done[start + row["row"]] = (row["name"], row["significance"], row["share"], row["turned"])
        start += pq.read_metadata(store.path("measure", name)).num_rows
    for stale in store.path("join").glob("test-images-*/*"):
        if stale.parent != folder or stale.name not in parts:
            stale.unlink(missing_ok=True)
    return done


def _compare(store, recipe, parts, arguments):
    """Yield the table of matches of each part."""
    def items():
        for name in parts:
            table = pq.read_table(store.path("measure", name), columns=["descriptor", "width", "height"], partitioning=None)
            for low in range(0, max(1, len(table)), _CHUNK):
                yield {k: v.to_pylist() for k, v in zip(table.column_names, table.slice(low, _CHUNK).columns)}

    run = engine.run
    if recipe.engine == "ray":
        from .ray_engine import run
    if len(parts) < 5:                     # starting processes would take longer
        results = map(matcher(**arguments), items())
    else:
        results = run("data_tools.join:matcher", arguments, items(), recipe.workers, 600.0)
    schema = pa.schema([("row", pa.int32()), ("name", pa.string()), ("significance", pa.float32()), ("share", pa.float32()),
                        ("turned", pa.string())])
    for name in parts:
        count, rows = pq.read_metadata(store.path("measure", name)).num_rows, []
        for low in range(0, max(1, count), _CHUNK):
            found = next(results)
            if isinstance(found, engine.Failure):
                raise RestoreError(f"{name}: comparing with the test images failed: {found.reason}")
            rows += [{"row": low + row, "name": m.name, "significance": m.significance, "share": m.share,
                      "turned": m.turned} for row, m in found]
        yield pa.Table.from_pylist(rows, schema)


def matcher(folders, turned=True):
    """What a worker runs: a function from columns of ``measure`` to pairs of a row and its match."""
    reference = decontaminate.Reference(folders, turned)

    def one(columns):
        found = reference.match(columns["descriptor"], columns["width"], columns["height"])
        return [(row, match) for row, match in enumerate(found) if match]
    return one
