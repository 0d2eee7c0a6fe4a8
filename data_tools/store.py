"""The work folder: tables of one row per image, all in one row order, written part by part and committed by rename.

Every stage reads the tables of the stages before it and writes its own; nothing else passes between them.
**All tables have one row per image, in the same order** (the order of the scan), so that columns of two stages can be
put side by side. The schema:

``scan/part-00000.parquet`` ... (512 rows each)
    id            string   16 hex digits, :func:`make_id` of (source, name): stable when the folder moves
    source        string   the source's name in the recipe
    name          string   the image's name inside the source, relative, sanitised, unique within the source
    locator       string   where its bytes are: ``containers.open_bytes(locator)`` returns them
    bytes         int64    size of the encoded image; -1 when not known before reading
    stamp         int64    modification time in ns of the file that holds it: with ``bytes`` it tells a changed file
    licence       string   or null
    url           string   or null: where it came from
    group         string   what must stay on one side of a train/val split (folder, shard, host)
    provenance    string   JSON object: container, member, caption, sidecar fields ...; keys sorted
    error         string   or null: "download: 404", "opt-out: noai" ...: known before the bytes are read

``measure/part-00000-KEY.parquet`` ... (KEY: hash of the part's ids, sizes, stamps and of the measure settings)
    id            string
    error         string   or null; every metric may be null when set. ``KIND: text``, KIND one of
                           missing, download, opt-out, empty, not-an-image, bomb, truncated, corrupt, unsupported,
                           crash, timeout, plugin
    sha256        fixed binary 32 of the encoded bytes
    phash         fixed binary 32, see :mod:`data_tools.phash`;  phash_quality int8 (0..100, below 50: hash says little)
    descriptor    binary, see :func:`data_tools.decontaminate.describe`: what test images are recognised by
    width height  int32 as displayed (EXIF orientation applied);  format string (JPEG, PNG, ...), and all metrics of
                  :data:`data_tools.measure.METRICS` as flat float32/bool/int columns; a plug-in's columns are
                  ``<plugin>.<column>``

``passes/passes.parquet``
    id            string
    watermark watermark_source niqe   float32 or null, see :mod:`data_tools.passes`; only those that were asked for

``join/join.parquet``
    id            string
    duplicate_group   string  or null: id of the group's best image, for images that have a (near) duplicate
    best_in_group     string  or null: the same id; ``best_in_group == id`` marks the copy to keep
    place             int32   or null: place in the group in order of preference, 0 for the best
    contaminated_by   string  or null: "benchmark/name" of the test image that it shows
    reason            string  or null: one line for people ("exact copy of ...", "hash distance 12 to ...")

``decide/decision.parquet``
    id            string
    keep          bool
    rules         list<string>   ALL rules that fired and reject, in the order of the thresholds file; [] when kept
    flags         list<string>   rules that fired but only flag
    primary       string   or null: the first of ``rules``
``decide/thresholds.yaml``   the thresholds that made it, resolved

Each stage folder holds a ``manifest.json`` ({"parts": [file names in order], "rows": n, "key": ...}), written after
the data and removed before anything in the folder changes: a stage without it is unfinished. Parts have deterministic
names and bytes, so a run that was killed and resumed leaves the same files as an unbroken one.
"""

import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from restore.errors import RestoreError
from restore.files import atomic_path, write_bytes

PART_ROWS = 512
STAGES = ("scan", "measure", "join", "decide")

SCAN_SCHEMA = pa.schema([
    ("id", pa.string()), ("source", pa.string()), ("name", pa.string()), ("locator", pa.string()),
    ("bytes", pa.int64()), ("stamp", pa.int64()), ("licence", pa.string()), ("url", pa.string()),
    ("group", pa.string()), ("provenance", pa.string()), ("error", pa.string())])
JOIN_SCHEMA = pa.schema([
    ("id", pa.string()), ("duplicate_group", pa.string()), ("best_in_group", pa.string()),
    ("place", pa.int32()), ("contaminated_by", pa.string()), ("reason", pa.string())])
DECISION_SCHEMA = pa.schema([
    ("id", pa.string()), ("keep", pa.bool_()), ("rules", pa.list_(pa.string())), ("flags", pa.list_(pa.string())),
    ("primary", pa.string())])


def make_id(source, name):
    """16 hex digits that depend on the source's name and the image's name inside it, and on nothing else."""
    return hashlib.sha256(f"{source}\0{name}".encode("utf-8", "surrogatepass")).hexdigest()[:16]


class Store:
    """The tables of one work folder.

    ``Store(folder)`` creates nothing. ``read`` and ``batches`` raise :class:`RestoreError` when the stage is not
    finished, with the command that finishes it.
    """

    def __init__(self, folder):
        self.folder = Path(folder)

    def path(self, stage, name=""):
        """The folder of a stage, or a file in it."""
        return self.folder / stage / name

    def write_part(self, stage, name, table):
        """Commit one table as ``stage/name`` (zstd): the same rows make the same bytes."""
        with atomic_path(self.path(stage, name)) as temporary:
            pq.write_table(table, temporary, compression="zstd", store_schema=True)

    def begin(self, stage):
        """Mark a stage as unfinished, before anything in its folder changes."""
        self.path(stage, "manifest.json").unlink(missing_ok=True)

    def finish(self, stage, parts, rows, key="", **more):
        """Mark a stage as finished: its parts in order. Part files that are not among them are removed before that, since a
        stage that is finished is not looked through again."""
        manifest = {"parts": list(parts), "rows": int(rows), "key": key, **more}
        keep = set(manifest["parts"])
        self.begin(stage)
        # glob finds hidden files too: the half-written ones of killed runs
        for stale in self.path(stage).glob("*.parquet"):
            if stale.name not in keep:
                stale.unlink(missing_ok=True)
        write_bytes(self.path(stage, "manifest.json"), json.dumps(manifest, indent=1, sort_keys=True) + "\n")

    def manifest(self, stage):
        """The manifest of a finished stage, or None."""
        try:
            return json.loads(self.path(stage, "manifest.json").read_text())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise RestoreError(f"{self.path(stage, 'manifest.json')}: {error}. Delete it and run the stage "
                               "again.") from None

    def require(self, stage):
        """The manifest of a stage that must be finished."""
        manifest = self.manifest(stage)
        if manifest is None:
            raise RestoreError(f"{self.folder}: the stage {stage!r} has not finished here. "
                               f"Run: python -m data_tools {stage} RECIPE")
        return manifest

    def rows(self, stage):
        """Number of images in a finished stage."""
        return self.require(stage)["rows"]

    def columns(self, stage):
        """Names of the columns of a finished stage."""
        parts = self.require(stage)["parts"]
        return pq.read_schema(self.path(stage, parts[0])).names if parts else []

    def batches(self, stage, columns=None):
        """Yield a ``pyarrow.Table`` per part, in row order: for what must not hold two million rows at once."""
        for name in self.require(stage)["parts"]:
            path = self.path(stage, name)
            try:
                yield pq.read_table(path, columns=columns, partitioning=None)
            except (OSError, pa.ArrowInvalid) as error:
                raise RestoreError(f"{path}: {error}. Delete {path.parent / 'manifest.json'} and the file, and run "
                                   f"the stage {stage!r} again.") from None

    def read(self, stage, columns=None):
        """All rows of a finished stage as one ``pyarrow.Table`` (an empty one without columns when there are none)."""
        tables = list(self.batches(stage, columns))
        return pa.concat_tables(tables, promote_options="permissive") if tables else pa.table({})


def table_key(table, columns, salt=""):
    """12 hex digits of the given columns' values and ``salt``: what a part was made from."""
    digest = hashlib.sha256(salt.encode())
    for name in columns:
        digest.update(json.dumps(table[name].to_pylist()).encode())
    return digest.hexdigest()[:12]
