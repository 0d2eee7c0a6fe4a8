"""Corpora of clean images: a folder, tar or parquet shards, a Hugging Face dataset; images as uint8 arrays by index.

A folder, shards and a map-style dataset are read at random places. A streamed dataset has no places: image i is the
i-th that the stream gives, pass after pass, and the position is kept by counting. Each worker walks the whole stream
and decodes only its own images; a resumed run walks again up to its place. That is exact as long as the stream gives
the same order, and no other way is.
"""

import hashlib
import io
import itertools
import tarfile
from pathlib import Path

import numpy as np

from .errors import ImageError, RestoreError
from .files import IMAGE_SUFFIXES, list_images
from .image import read_rgb8

REMEMBERED = 64     # images of a stream that stay readable behind its head: as many as replacements are tried


class Corpus:
    """Clean images by index. ``source``: its name; ``count``: images, None for a stream; ``blocks``: see data.order."""

    source = ""
    count = None
    blocks = None

    def raw(self, index):
        """``(name, path or encoded bytes)`` of an image; any ``index`` from 0 below ``count``."""
        raise NotImplementedError(type(self).__name__)

    def read(self, index):
        """The image as a uint8 array (h, w, 3); raises ImageError naming it."""
        name, content = self.raw(index)
        try:
            if content is None:
                raise ImageError("has no image bytes")
            return read_rgb8(content)
        except ImageError as error:
            message = str(error)
            raise ImageError(message if name in message else f"{name}: {message}") from None

    def names(self):
        """Names with sizes of all images, the facts that :func:`digest` covers; a stream knows none."""
        return ()


def digest(corpus):
    """SHA-256 over the names (and sizes, where known) of a corpus: which data a run was trained on."""
    total = hashlib.sha256(f"{type(corpus).__name__} {corpus.count}\n".encode())
    for name in corpus.names():
        total.update(f"{name}\n".encode())
    return total.hexdigest()


class Folder(Corpus):
    """The images below a folder, or a given list of them, in the order of their names."""

    def __init__(self, folder, paths=None):
        self.source, self.folder = str(folder), Path(folder)
        self.paths = [str(p.relative_to(folder)) for p in list_images(folder)] if paths is None else list(paths)
        self.count = len(self.paths)
        if not self.count:
            raise RestoreError(f"{folder}: no images ({' '.join(IMAGE_SUFFIXES)}), no .tar and no .parquet files in it")

    def raw(self, index):
        path = str(self.folder / self.paths[index])
        return path, path

    def names(self):
        for path in self.paths:
            yield f"{path} {(self.folder / path).stat().st_size}"


class Tar(Corpus):
    """Images in tar shards (webdataset: KEY.jpg or KEY.png beside KEY.json), read where they lie, without unpacking."""

    def __init__(self, source, shards):
        self.source, self.shards = str(source), [str(s) for s in shards]
        self.members, places = [], []
        for number, shard in enumerate(self.shards):
            try:
                with tarfile.open(shard, "r:") as tar:
                    for member in tar:
                        if member.isfile() and Path(member.name).suffix.lower() in IMAGE_SUFFIXES:
                            self.members.append(member.name)
                            places.append((number, member.offset_data, member.size))
            except (tarfile.TarError, OSError, EOFError) as error:
                raise RestoreError(f"{shard}: not a whole uncompressed tar file ({error})") from None
        self.count, self.places = len(places), np.array(places, np.int64).reshape(-1, 3)
        if not self.count:
            raise RestoreError(f"{source}: no images in its {len(self.shards)} tar files")

    def raw(self, index):
        shard, offset, size = map(int, self.places[index])
        with open(self.shards[shard], "rb") as file:
            file.seek(offset)
            return f"{self.shards[shard]}/{self.members[index]}", file.read(size)

    def names(self):
        for (shard, _, size), member in zip(self.places, self.members):
            yield f"{Path(self.shards[shard]).name}/{member} {size}"


class Parquet(Corpus):
    """Images in a column of parquet shards: encoded bytes, or Hugging Face's struct of ``bytes`` and ``path``."""

    def __init__(self, source, shards, column="image"):
        from pyarrow import parquet
        self.source, self.shards, self.column = str(source), [str(s) for s in shards], column
        self.groups, first = [], 0                  # (shard, row group) and the index of its first row
        blocks = []
        for number, shard in enumerate(self.shards):
            try:
                file = parquet.ParquetFile(shard)
            except (OSError, ValueError) as error:
                raise RestoreError(f"{shard}: not a whole parquet file ({error})") from None
            if column not in file.schema_arrow.names:
                raise RestoreError(f"{shard}: no column {column!r}; there are {', '.join(file.schema_arrow.names)}")
            for group in range(file.metadata.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                if rows:
                    self.groups.append((number, group))
                    blocks.append(first)
                    first += rows
        self.count, self.blocks, self.open = first, tuple(blocks), {}
        if not self.count:
            raise RestoreError(f"{source}: no rows in its {len(self.shards)} parquet files")

    def raw(self, index):
        block = int(np.searchsorted(self.blocks, index, "right")) - 1
        row = index - self.blocks[block]
        name = f"{self.shards[self.groups[block][0]]}, row {index}"
        return name, _encoded(self._rows(block)[row].as_py(), name, Path(self.shards[0]).parent)

    def _rows(self, block):
        """The column of one row group, still encoded; as many are kept as the shuffling mixes."""
        from pyarrow import parquet
        if block not in self.open:
            from .data import MIXED
            while len(self.open) >= MIXED:
                self.open.pop(next(iter(self.open)))
            shard, group = self.groups[block]
            table = parquet.ParquetFile(self.shards[shard]).read_row_group(group, columns=[self.column])
            self.open[block] = table.column(0).combine_chunks()
        return self.open[block]

    def names(self):
        for shard in self.shards:
            yield f"{Path(shard).name} {Path(shard).stat().st_size}"

    def __getstate__(self):
        return {**self.__dict__, "open": {}}


class Mapped(Corpus):
    """A map-style Hugging Face dataset (memory-mapped arrow files)."""

    def __init__(self, source, dataset, column="image"):
        self.source, self.dataset, self.column = str(source), _undecoded(dataset, column, source), column
        self.count = len(dataset)
        if not self.count:
            raise RestoreError(f"{source}: the dataset is empty")

    def raw(self, index):
        name = f"{self.source}, row {index}"
        return name, _encoded(self.dataset[index][self.column], name)

    def names(self):
        return (str(getattr(self.dataset, "_fingerprint", self.source)),)


class Stream(Corpus):
    """An iterable Hugging Face dataset, or any re-iterable of dictionaries: image i is the i-th, pass after pass."""

    def __init__(self, source, dataset, column="image"):
        self.source, self.column = str(source), column
        self.dataset = _undecoded(dataset, column, source)
        self.iterator, self.position, self.behind = None, 0, {}

    def raw(self, index):
        if index < self.position and index not in self.behind:
            self.iterator, self.position, self.behind = None, 0, {}
        if self.iterator is None:
            self.iterator = self._rows()
        while self.position <= index:
            self.behind[self.position] = next(self.iterator)
            self.behind.pop(self.position - REMEMBERED, None)
            self.position += 1
        name = f"{self.source}, item {index}"
        return name, _encoded(self.behind[index], name)

    def _rows(self):
        for epoch in itertools.count():
            if hasattr(self.dataset, "set_epoch"):
                self.dataset.set_epoch(epoch)       # the shards of a shuffled stream come in another order in each pass
            found = False
            for row in self._pass():
                if self.column not in row:
                    raise RestoreError(f"{self.source}: no column {self.column!r}; there are {', '.join(row)}")
                found = True
                yield row[self.column]
            if not found:
                raise RestoreError(f"{self.source}: the stream is empty")

    def _pass(self):
        """One pass over the rows. A dataset's own ``for`` gives each worker other rows; its batches do not."""
        if not hasattr(self.dataset, "iter"):
            yield from self.dataset
            return
        for batch in self.dataset.iter(batch_size=1):
            yield {name: values[0] for name, values in batch.items()}

    def __getstate__(self):
        return {**self.__dict__, "iterator": None, "position": 0, "behind": {}}


def _undecoded(dataset, column, source):
    """The dataset with its image column left as bytes: decoding is ours, and only for the images that are used."""
    features = getattr(dataset, "features", None)
    if features is None:
        return dataset
    if column not in features:
        raise RestoreError(f"{source}: no column {column!r}; there are {', '.join(features)}")
    from datasets import Image
    return dataset.cast_column(column, Image(decode=False)) if isinstance(features[column], Image) else dataset


def _encoded(value, name, folder=None):
    """Bytes, path or array of one cell: raw bytes, a path, {bytes, path}, or what a decoded dataset gives."""
    if isinstance(value, dict) and ("bytes" in value or "path" in value):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str) and folder is not None and not Path(value).is_absolute():
        value = str(folder / value)
    if hasattr(value, "convert"):                   # a PIL image: encode it again without loss
        buffer = io.BytesIO()
        value.convert("RGB").save(buffer, "PNG")
        value = buffer.getvalue()
    if value is None or isinstance(value, (bytes, str)):
        return value
    raise RestoreError(f"{name}: an image column holds bytes, paths or images, not {type(value).__name__}")


def open_corpus(source, kind="auto", column="image", split="train", streaming=False):
    """The corpus that ``source`` names.

    kind: ``folder`` (of images), ``tar`` or ``parquet`` (a file, or a folder of shards), ``dataset`` (Hugging Face: a
        folder of ``save_to_disk``, or a name on the Hub), or ``auto``, which looks at what is there and takes
        OWNER/NAME for one on the Hub.
    column: the image column of parquet shards and datasets. streaming: for datasets.
    split: of a dataset; of shards and of what ``data_tools`` exports the subfolder of that name, where there is one.
    Raises RestoreError if nothing usable is there.
    """
    path = _exported(Path(source), split)
    kind = _kind(path) if kind == "auto" else kind
    if kind == "folder":
        return Folder(path)
    if kind in ("tar", "parquet"):
        path = path / split if (path / split).is_dir() else path            # never train on val
        shards = [path] if path.is_file() else sorted(path.rglob(f"*.{kind}"))
        if not shards:
            raise RestoreError(f"{source}: no .{kind} files in it")
        return Tar(source, shards) if kind == "tar" else Parquet(source, shards, column)
    return _open_dataset(source, column, split, streaming)


def _exported(path, split):
    """Of an export folder of ``data_tools`` (webdataset/, parquet/, files/, manifest.json) one of its equal formats."""
    if (path / "manifest.json").is_file():
        for form in ("webdataset", "parquet", "files"):
            if (path / form / split).is_dir():
                return path / form / split
    return path


def _kind(path):
    if path.is_file() and path.suffix in (".tar", ".parquet"):
        return path.suffix[1:]
    if path.is_dir():
        if (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists():
            return "dataset"
        for kind in ("tar", "parquet"):
            if next(path.rglob(f"*.{kind}"), None):
                return kind
        return "folder"
    if not path.exists() and str(path).count("/") == 1 and not path.is_absolute() and not str(path).startswith("."):
        return "dataset"                            # owner/name on the Hub
    raise RestoreError(f"{path}: no such folder, .tar or .parquet file (a dataset on the Hub without an owner in its "
                       "name needs kind: dataset)")


def _open_dataset(source, column, split, streaming):
    try:
        import datasets
    except ImportError:
        raise RestoreError(
            f"{source}: reading a Hugging Face dataset needs the package datasets (pip install datasets)"
        ) from None
    try:
        if Path(source).is_dir():
            dataset = datasets.load_from_disk(source)
        else:
            dataset = datasets.load_dataset(str(source), split=split, streaming=streaming)
    except Exception as error:                      # the Hub, its scripts and the network raise all kinds
        raise RestoreError(f"{source}: not a folder here, and not a dataset that can be opened: "
                           f"{type(error).__name__}: {' '.join(str(error).split())[:300]}") from None
    if isinstance(dataset, dict):
        if split not in dataset:
            raise RestoreError(f"{source}: no split {split!r}; there are {', '.join(dataset)}")
        dataset = dataset[split]
    if streaming and hasattr(dataset, "to_iterable_dataset"):
        dataset = dataset.to_iterable_dataset()
    return Mapped(source, dataset, column) if hasattr(dataset, "__len__") else Stream(source, dataset, column)


def hold_out(corpus, last):
    """A copy of ``corpus`` without its ``last`` images."""
    import copy
    shorter = copy.copy(corpus)
    shorter.count = corpus.count - last
    if corpus.blocks is not None:
        shorter.blocks = tuple(b for b in corpus.blocks if b < shorter.count)
    return shorter
