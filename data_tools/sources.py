"""What images a source holds: folders, archives, WebDataset shards, parquet, Hugging Face datasets, URL lists.

:func:`rows` lists a source as rows of the ``scan`` table, in an order that depends on names alone; nothing is decoded
and nothing is unpacked. Sidecars travel along: ``X.json`` and ``X.txt`` beside ``X.jpg`` (as WebDataset shards and
img2dataset's folders have them) and the other columns of a parquet file give licence, address, caption, provenance.
"""

import csv
import glob
import io
import itertools
import json
import os
import re
import tarfile
import zipfile
from urllib.parse import urlsplit

from restore.errors import RestoreError

from . import containers, download, sidecars
from .containers import locator
from .header import SUFFIXES, said
from .store import make_id

ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip")


def rows(source, store, settings):
    """Yield the ``scan`` rows (dictionaries) of one :class:`data_tools.recipe.Source`.

    ``store`` is where the images of a URL list are downloaded to, with ``settings`` (:class:`recipe.Download`).
    Raises RestoreError when the source cannot be read at all; what is wrong with a part of it becomes a row with
    ``error`` set.
    """
    kind = source.kind if source.kind != "auto" else _kind(source)
    listed = {"files": _files, "dataset": _dataset, "urls": _urls}[kind](source, store, settings)
    for entry in itertools.islice(listed, source.limit):
        yield _row(source, kind, entry)


def sanitise(name):
    """A member's name as a harmless relative path: no root, drive, ``..``, backslash, control
    character or broken UTF-8.

    >>> sanitise("../../etc/passwd"), sanitise("C:\\\\a\\\\b.jpg"), sanitise("/x//./y.jpg")
    ('etc/passwd', 'C_/a/b.jpg', 'x/y.jpg')
    """
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "replace").replace("\\", "/")
    text = "".join("_" if ord(c) < 32 or ord(c) == 127 or c in ':*?"<>|' else c for c in text)
    parts = [part for part in text.split("/") if part not in ("", ".", "..")]
    return "/".join(part[:200] for part in parts) or "unnamed"


def _row(source, kind, entry):
    name = entry["name"]
    url = entry.get("url")
    provenance = {key: value for key, value in entry.get("provenance", {}).items() if value is not None}
    by = source.group or ("host" if kind == "urls" else "folder")
    group = {"source": source.name, "image": f"{source.name}/{name}",
             "archive": f"{source.name}/{entry.get('container', '')}",
             "host": f"{source.name}/{urlsplit(url).hostname if url else ''}",
             "folder": f"{source.name}/{entry.get('folder', os.path.dirname(name))}"}[by]
    return {"id": make_id(source.name, name), "source": source.name, "name": name, "locator": entry.get("locator", ""),
            "bytes": int(entry.get("bytes", -1)), "stamp": int(entry.get("stamp", 0)),
            "licence": entry.get("licence") or source.licence, "url": url, "group": group,
            "provenance": json.dumps(provenance, sort_keys=True, ensure_ascii=True, default=str),
            "error": entry.get("error")}


def _kind(source):
    path = source.path
    if os.path.isdir(path):
        saved = any(os.path.exists(os.path.join(path, name)) for name in ("state.json", "dataset_dict.json"))
        return "dataset" if saved else "files"
    lower = path.lower()
    if lower.endswith((".txt", ".csv", ".tsv", ".jsonl")):
        return "urls"
    if lower.endswith(".parquet") and os.path.exists(path):
        import pyarrow.parquet as pq
        schema = pq.read_schema(path)
        return "urls" if source.url_column in schema.names and not _image_columns(schema) else "files"
    if "://" in path or os.path.exists(path) or glob.glob(path, recursive=True):
        return "files"
    raise RestoreError(f"source {source.name!r}: {path}: no such file or folder, and no file matches it. For a dataset "
                       "on the Hugging Face Hub say `kind: dataset`.")


# ---- files, archives and parquet ---------------------------------------------------------------------------------

def _files(source, store, settings):
    base, paths = _walk(source.path)
    if not paths:
        raise RestoreError(f"source {source.name!r}: {source.path}: no images, archives or parquet files in it")
    stems = {}
    for path, *_ in paths:                 # only sidecars are remembered
        stem, suffix = os.path.splitext(path)
        if suffix.lower() in sidecars.SUFFIXES:
            stems.setdefault(stem, {})[suffix.lower()] = path
    for path, size, stamp in paths:
        relative = _relative(path, base)
        lower = path.lower()
        if lower.endswith(ARCHIVES) or lower.endswith(".parquet"):
            reader = _zip if lower.endswith(".zip") else _parquet if lower.endswith(".parquet") else _tar
            seen = {}
            for entry in _guarded(reader, path, source):
                name = f"{relative}!{_unique(sanitise(entry.pop('member')), seen)}"
                yield {"stamp": stamp, "container": relative, "folder": relative, **entry, "name": name}
        elif os.path.splitext(lower)[1] in SUFFIXES:
            clean = sanitise(relative)
            if clean != relative:          # two hostile names must not become one
                clean = _marked(clean, make_id("", relative)[:8])
            read = {suffix: sidecars.read(sidecar) for suffix, sidecar in stems.get(os.path.splitext(path)[0], {}).items()}
            yield {"name": clean, "locator": locator("file", "", path), "bytes": size, "stamp": stamp,
                   **sidecars.parse(read.get(".json"), read.get(".txt"))}


def _guarded(reader, path, source):
    """A damaged archive gives the members before the damage and one row that says so."""
    entries = reader(path, source)
    while True:
        try:
            yield next(entries)
        except StopIteration:
            return
        except RestoreError:
            raise
        except Exception as error:  # noqa: BLE001  archive readers raise anything on damaged files
            yield {"member": "(damaged)", "error": f"corrupt: the archive cannot be read further ({said(error)})"}
            return


def _walk(path):
    """``(base folder, [(path, size, mtime in ns)])``, sorted by path, hidden files and folders left out."""
    if "://" in path:
        return _walk_remote(path)
    if os.path.isdir(path):
        base, found = path, []
        for folder, folders, names in os.walk(path):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            found += [os.path.join(folder, name) for name in names if not name.startswith(".")]
    else:
        found = [path] if os.path.exists(path) else glob.glob(path, recursive=True)
        base = os.path.dirname(re.split(r"[*?\[]", path, maxsplit=1)[0])
    kept = []
    for name in found:
        if name.lower().endswith((*ARCHIVES, ".parquet", *SUFFIXES, *sidecars.SUFFIXES)) and os.path.isfile(name):
            status = os.stat(name)
            kept.append((name, status.st_size, status.st_mtime_ns))
    return base, sorted(kept, key=lambda item: os.fsencode(_relative(item[0], base)))


def _walk_remote(address):
    import fsspec
    try:
        system, path = fsspec.core.url_to_fs(address)
        found = system.find(path, detail=True) if not re.search(r"[*?\[]", path) else system.glob(path, detail=True)
    except Exception as error:  # noqa: BLE001  each file system has errors of its own
        raise RestoreError(f"{address}: {type(error).__name__}: {error}") from None
    kept = sorted((system.unstrip_protocol(name), int(info.get("size") or -1), 0) for name, info in found.items()
                  if name.lower().endswith((*ARCHIVES, ".parquet", *SUFFIXES, *sidecars.SUFFIXES))
                  and info.get("type") != "directory")
    return system.unstrip_protocol(re.split(r"[*?\[]", path, maxsplit=1)[0].rstrip("/")), kept


def _relative(path, base):
    inside = path[len(base):] if base and path.startswith(base) else path
    return inside.replace(os.sep, "/").lstrip("/") or os.path.basename(path)


def _unique(name, seen):
    """Members of one archive may repeat a name: the second ``x.jpg`` becomes ``x~2.jpg``."""
    seen[name] = seen.get(name, 0) + 1
    return name if seen[name] == 1 else _unique(_marked(name, seen[name]), seen)


def _marked(name, mark):
    stem, suffix = os.path.splitext(name)
    return f"{stem}~{mark}{suffix}"


def _is_image(name):
    return os.path.splitext(name.lower())[1] in SUFFIXES and not os.path.basename(name).startswith(".")


def _tar(path, source):
    """Members of a tar archive; those that share a WebDataset key with ``key.json`` or ``key.txt`` get these fields."""
    with containers.open_file(path) as raw, \
            tarfile.open(fileobj=containers.decompressed(path, raw), mode="r:") as archive:
        def members():
            for member in archive:
                archive.members = []       # tarfile keeps every header otherwise
                if member.isreg() and not member.issparse():
                    name = member.name
                    texts = member.size < sidecars.LIMIT and name.lower().endswith(sidecars.SUFFIXES)
                    if texts or _is_image(name):
                        yield name, member, archive.extractfile(member).read() if texts else None
        for _, group in itertools.groupby(members(), key=lambda item: _key(item[0])):
            group = list(group)
            texts = {os.path.splitext(name)[1].lower(): text for name, _, text in group if text is not None}
            extra = sidecars.parse(texts.get(".json"), texts.get(".txt"))
            for name, member, text in group:
                if text is None:
                    yield {"member": name, "locator": locator("tar", f"{member.offset_data}-{member.size}", path),
                           "bytes": member.size, **extra}


def _key(name):
    """WebDataset's sample key: the path up to the first dot of the file name."""
    folder, _, base = name.rpartition("/")
    return folder, base.split(".", 1)[0]


def _zip(path, source):
    with containers.open_file(path) as raw, zipfile.ZipFile(raw) as archive:
        members = archive.infolist()
        texts = {}
        for member in members:
            stem, suffix = os.path.splitext(member.filename)
            if suffix.lower() in sidecars.SUFFIXES and member.file_size < sidecars.LIMIT and not member.flag_bits & 1:
                texts.setdefault(stem, {})[suffix.lower()] = member
        for index, member in enumerate(members):
            if member.is_dir() or not _is_image(member.filename):
                continue
            beside = texts.get(os.path.splitext(member.filename)[0], {})
            read = {suffix: archive.read(sidecar) for suffix, sidecar in beside.items()}
            yield {"member": member.filename, "locator": locator("zip", str(index), path), "bytes": member.file_size,
                   **sidecars.parse(read.get(".json"), read.get(".txt"))}


def _parquet(path, source):
    file = containers.open_parquet(path)
    try:
        schema = file.schema_arrow
        column = _image_column(schema, source, path)
        others = [name for name in _scalars(schema) if name != column]
        index = schema.names.index(column)
        row = 0
        for group in range(file.num_row_groups):
            count = file.metadata.row_group(group).num_rows
            table = file.read_row_group(group, columns=others) if others else None
            for k in range(count):
                fields = {name: table[name][k].as_py() for name in others}
                yield {"member": _cell_name(fields, row), "locator": locator("parquet", f"{group}-{k}-{index}", path),
                       **sidecars.fields(fields)}
                row += 1
    finally:
        file.close()


def _cell_name(fields, row):
    return f"{row:08d}" + (f"/{fields['file_name']}" if isinstance(fields.get("file_name"), str) else "")


def _image_columns(schema):
    import pyarrow as pa
    found = []
    for name, kind in zip(schema.names, schema.types):
        if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or (
                pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0):
            found.append(name)
    return sorted(found, key=lambda name: name not in ("image", "jpg", "img", "picture"))


def _image_column(schema, source, path):
    if source.image_column:
        if source.image_column not in schema.names:
            raise RestoreError(f"source {source.name!r}: {path} has no column {source.image_column!r}; "
                               f"its columns: {', '.join(schema.names)}")
        return source.image_column
    found = _image_columns(schema)
    if not found:
        raise RestoreError(f"source {source.name!r}: {path} has no column of images; "
                           f"its columns: {', '.join(schema.names)}")
    return found[0]


def _scalars(schema):
    """Names of the columns of texts, numbers and booleans."""
    from pyarrow import types
    tests = (types.is_string, types.is_large_string, types.is_integer, types.is_floating, types.is_boolean)
    return [name for name, kind in zip(schema.names, schema.types) if any(test(kind) for test in tests)]


# ---- Hugging Face datasets ---------------------------------------------------------------------------------------

def _dataset(source, store, settings):
    folder = source.path
    if not os.path.isdir(folder):
        folder = _from_hub(source, store)
    if os.path.exists(os.path.join(folder, "dataset_dict.json")):
        with open(os.path.join(folder, "dataset_dict.json")) as file:
            splits = sorted(json.load(file)["splits"])
    else:
        splits = [""]
    for split in splits:
        try:
            with open(os.path.join(folder, split, "state.json")) as file:
                files = [entry["filename"] for entry in json.load(file)["_data_files"]]
        except (OSError, ValueError, KeyError) as error:
            raise RestoreError(f"source {source.name!r}: {os.path.join(folder, split)}: not a saved dataset "
                               f"({error})") from None
        row = 0
        for name in files:
            path = os.path.join(folder, split, name)
            stamp = os.stat(path).st_mtime_ns
            for number, batch in enumerate(containers.open_arrow(path)):
                column = _image_column(batch.schema, source, path)
                index = batch.schema.names.index(column)
                others = [n for n in _scalars(batch.schema) if n != column]
                columns = {n: batch.column(batch.schema.names.index(n)) for n in others}
                for k in range(batch.num_rows):
                    fields = {n: values[k].as_py() for n, values in columns.items()}
                    yield {"name": "/".join(filter(None, (split, f"{row:08d}"))), "stamp": stamp, "folder": split,
                           "container": split, "locator": locator("arrow", f"{number}-{k}-{index}", path),
                           **sidecars.fields(fields)}
                    row += 1


def _from_hub(source, store):
    """Download a dataset of the Hub once, with its images left encoded, into the work folder."""
    folder = store.path("download", source.name)
    if not (folder / "state.json").exists():
        import datasets
        try:
            data = datasets.load_dataset(source.path, split=source.split)
        except Exception as error:  # noqa: BLE001  the library and the network raise many things
            raise RestoreError(f"source {source.name!r}: the dataset {source.path!r} cannot be had from the Hugging "
                               f"Face Hub ({type(error).__name__}: {str(error)[:200]})") from None
        for name, feature in data.features.items():
            if isinstance(feature, datasets.Image):
                data = data.cast_column(name, datasets.Image(decode=False))
        data.save_to_disk(str(folder))
    return str(folder)


# ---- URL lists ---------------------------------------------------------------------------------------------------

def _urls(source, store, settings):
    yield from download.fetch(_url_list(source), source, store, settings)


def _url_list(source):
    """Yield ``{"url": ..., other columns}`` of a .txt, .csv, .tsv, .jsonl or .parquet file."""
    lower = source.path.lower()
    if lower.endswith(".parquet"):
        file = containers.open_parquet(source.path)
        for batch in file.iter_batches(columns=_scalars(file.schema_arrow)):
            yield from _named(batch.to_pylist(), source)
        return
    with containers.open_file(source.path) as raw:
        text = io.TextIOWrapper(raw, "utf-8-sig", errors="replace", newline="")
        if lower.endswith((".csv", ".tsv")):
            yield from _named(csv.DictReader(text, delimiter="\t" if lower.endswith(".tsv") else ","), source)
        elif lower.endswith(".jsonl"):
            yield from _named((json.loads(line) for line in text if line.strip()), source)
        else:
            for line in text:
                if line.strip() and not line.startswith("#"):
                    yield {"url": line.strip()}


def _named(records, source):
    for record in records:
        if source.url_column not in record:
            raise RestoreError(f"source {source.name!r}: {source.path} has no column {source.url_column!r}; its "
                               f"columns: {', '.join(map(str, record))}. Name it with `url_column`.")
        yield {**record, "url": str(record[source.url_column] or "").strip()}
