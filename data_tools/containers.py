"""Bytes out of folders, archives, parquet and Arrow files by *locator*, without unpacking anything to disk.

A locator is one string: ``KIND:DETAILS:PATH``, where PATH is a local path or an fsspec address.

    file::PATH                      a file
    tar:OFFSET-SIZE:PATH            that many bytes at that offset (of the uncompressed stream for .tar.gz and the like)
    zip:INDEX:PATH                  a member, by its place in the archive's directory
    parquet:GROUP-ROW-COLUMN:PATH   a cell: bytes, or a struct with ``bytes``
    arrow:BATCH-ROW-COLUMN:PATH     the same in an Arrow stream, as ``datasets`` saves them

Archive members are addressed by number and position, never by their names, so a hostile name can reach nothing.
"""

import bz2
import gzip
import lzma
import os
import threading
import zipfile
from collections import OrderedDict

from restore.errors import ImageError, RestoreError

from .header import said

_LIMIT = 1 << 31                           # no single image is larger; the recipe's limit is usually far below
_opened = OrderedDict()                    # path -> handle, the last few, per process
_opened_by = None
_lock = threading.RLock()
_KEPT = 8


def locator(kind, details, path):
    """Make a locator; bytes in a path that are not UTF-8 are kept as ``%XX`` behind ``quoted``."""
    try:
        path.encode("utf-8")
        return f"{kind}:{details}:{path}"
    except UnicodeEncodeError:
        from urllib.parse import quote_from_bytes
        return f"quoted-{kind}:{details}:{quote_from_bytes(os.fsencode(path))}"


def split(text):
    """``(kind, details, path)`` of a locator."""
    try:
        kind, details, path = text.split(":", 2)
    except ValueError:
        raise RestoreError(f"{text!r} is not a locator") from None
    if kind.startswith("quoted-"):
        from urllib.parse import unquote_to_bytes
        return kind[7:], details, os.fsdecode(unquote_to_bytes(path))
    return kind, details, path


def open_bytes(text, limit=_LIMIT):
    """The encoded bytes that a locator points to. Raises :class:`ImageError` when they cannot be had or are
    too many."""
    kind, details, path = split(text)
    try:
        with _lock:
            return _READERS[kind](path, details, limit)
    except KeyError:
        raise ImageError(f"{text}: no such kind of locator") from None
    except FileNotFoundError:
        raise ImageError("missing: the file is no longer there") from None
    except ImageError:
        raise
    except MemoryError:
        raise ImageError("unsupported: not enough memory to read it") from None
    except NotImplementedError as error:
        raise ImageError(f"unsupported: {error}") from None
    except Exception as error:  # noqa: BLE001  archive readers raise anything on damaged files
        raise ImageError(f"corrupt: reading failed ({said(error)})") from None


def open_file(path, mode="rb"):
    """A file object for a local path or an fsspec address."""
    if "://" not in path:
        return open(path, mode)
    import fsspec
    return fsspec.open(path, mode).open()


def decompressed(path, file):
    """``file`` itself, or the stream inside when its first bytes are gzip's, bzip2's or xz's."""
    head = file.read(6)
    file.seek(0)
    for magic, module in ((b"\x1f\x8b", gzip), (b"BZh", bz2), (b"\xfd7zXZ\0", lzma)):
        if head.startswith(magic):
            return module.open(file)
    return file


def _handle(path, opener):
    global _opened_by
    if _opened_by != os.getpid():          # a forked process must not share file positions with its parent
        _opened.clear()
        _opened_by = os.getpid()
    key = (path, opener)
    if key in _opened:
        _opened.move_to_end(key)
    else:
        _opened[key] = opener(path)
        while len(_opened) > _KEPT:
            _, old = _opened.popitem(last=False)
            getattr(old, "close", lambda: None)()
    return _opened[key]


def _too_large(size, limit):
    if size > limit:
        raise ImageError(f"bomb: {size / 1e6:.0f} MB, more than the limit of {limit / 1e6:.0f} MB")


def _read_file(path, details, limit):
    if "://" not in path:
        with open(path, "rb", buffering=0) as file:
            _too_large(os.fstat(file.fileno()).st_size, limit)
            return file.read()             # sized by the file: read(limit) would set the whole limit aside
    with open_file(path) as file:
        data = file.read(limit + 1)
    _too_large(len(data), limit)
    return data


def _open_tar(path):
    return decompressed(path, open_file(path))


def _read_tar(path, details, limit):
    offset, size = map(int, details.split("-"))
    _too_large(size, limit)
    file = _handle(path, _open_tar)
    file.seek(offset)
    data = file.read(size)
    if len(data) < size:
        raise ImageError("truncated: the archive ends inside this member")
    return data


def _open_zip(path):
    return zipfile.ZipFile(open_file(path))


def _read_zip(path, details, limit):
    archive = _handle(path, _open_zip)
    member = archive.infolist()[int(details)]
    if member.flag_bits & 1:
        raise ImageError("unsupported: the archive member is encrypted")
    _too_large(member.file_size, limit)
    with archive.open(member) as file:
        data = file.read(limit + 1)
    _too_large(len(data), limit)           # the directory may lie about the size
    return data


def open_parquet(path):
    """A ``pyarrow.parquet.ParquetFile`` of a local path or an fsspec address."""
    import pyarrow.parquet as pq
    return pq.ParquetFile(open_file(path))


class _ParquetColumns:
    """Remembers the last row group's column: rows are read in order."""

    def __init__(self, path):
        self.file, self.key, self.cells = open_parquet(path), None, None

    def cell(self, group, row, column):
        if self.key != (group, column):
            name = self.file.schema_arrow.names[column]
            self.cells = self.file.read_row_group(group, columns=[name]).column(0)
            self.key = (group, column)
        return self.cells[row].as_py()

    def close(self):
        self.file.close()


def _read_parquet(path, details, limit):
    group, row, column = map(int, details.split("-"))
    return _cell_bytes(_handle(path, _ParquetColumns).cell(group, row, column), path, limit)


def open_arrow(path):
    """Record batches of an Arrow stream or file, mapped, not read."""
    import pyarrow as pa
    source = pa.memory_map(path) if "://" not in path else pa.PythonFile(open_file(path))
    try:
        return list(pa.ipc.open_stream(source))
    except pa.ArrowInvalid:
        reader = pa.ipc.open_file(source)
        return [reader.get_batch(k) for k in range(reader.num_record_batches)]


def _read_arrow(path, details, limit):
    batch, row, column = map(int, details.split("-"))
    return _cell_bytes(_handle(path, open_arrow)[batch].column(column)[row].as_py(), path, limit)


def _cell_bytes(cell, path, limit):
    if isinstance(cell, dict):
        if cell.get("bytes") is None and cell.get("path"):
            inner = cell["path"]
            return _read_file(inner if os.path.isabs(inner) else os.path.join(os.path.dirname(path), inner), "", limit)
        cell = cell.get("bytes")
    if cell is None:
        raise ImageError("empty: the cell holds no bytes")
    if not isinstance(cell, bytes):
        raise ImageError("unsupported: the cell holds no encoded image")
    _too_large(len(cell), limit)
    return cell


_READERS = {"file": _read_file, "tar": _read_tar, "zip": _read_zip, "parquet": _read_parquet, "arrow": _read_arrow}
