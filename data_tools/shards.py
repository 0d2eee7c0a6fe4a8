"""Writing samples as WebDataset tar shards, parquet shards, or a folder of files: the same samples, the same bytes.

A sample is a dictionary: ``key`` (unique, no dots), ``image`` (encoded bytes), ``suffix``, and the fields of
:data:`FIELDS`. Each writer has ``add(sample)`` and ``close()``, which returns {"bytes", "sha256"} of what was written.
"""

import hashlib
import io
import json
import os
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq

# what travels with every sample: name -> (arrow type, its name for `datasets`)
FIELDS = {
    "id": (pa.string(), "string"), "source": (pa.string(), "string"), "name": (pa.string(), "string"),
    "licence": (pa.string(), "string"), "url": (pa.string(), "string"), "group": (pa.string(), "string"),
    "provenance": (pa.string(), "string"), "sha256": (pa.string(), "string"), "width": (pa.int32(), "int32"),
    "height": (pa.int32(), "int32"), "x": (pa.int32(), "int32"), "y": (pa.int32(), "int32"),
}
_GROUP_BYTES, _GROUP_ROWS = 32 << 20, 1000


class _Hashed(io.RawIOBase):
    """A new file that is hashed while it is written, so that nothing has to be read again."""

    def __init__(self, path):
        self.file, self.digest, self.size = open(path, "wb"), hashlib.sha256(), 0     # noqa: SIM115  closed by close()

    def writable(self):
        return True

    def write(self, data):
        self.digest.update(data)
        self.size += len(data)
        return self.file.write(data)

    def tell(self):
        return self.size

    def close(self):
        self.file.close()
        super().close()

    def fingerprint(self):
        return {"bytes": self.size, "sha256": self.digest.hexdigest()}


class TarWriter:
    """KEY.jpg (or another suffix) beside KEY.json, in POSIX tar without times or owners."""

    suffix = ".tar"

    def __init__(self, path):
        self.file = _Hashed(path)

    def add(self, sample):
        described = json.dumps({name: sample[name] for name in FIELDS}, sort_keys=True)
        self._member(f"{sample['key']}.{sample['suffix']}", sample["image"])
        self._member(f"{sample['key']}.json", described.encode())

    def _member(self, name, data):
        member = tarfile.TarInfo(name)
        member.size, member.mode = len(data), 0o644
        self.file.write(member.tobuf(tarfile.USTAR_FORMAT))
        self.file.write(data)
        self.file.write(b"\0" * (-len(data) % 512))

    def close(self):
        self.file.write(b"\0" * 1024)
        self.file.close()
        return self.file.fingerprint()


class ParquetWriter:
    """A column ``image`` that ``datasets`` decodes (bytes and a name), ``key``, and :data:`FIELDS`."""

    suffix = ".parquet"

    def __init__(self, path):
        self.schema, self.file = parquet_schema(), _Hashed(path)
        self.writer = pq.ParquetWriter(self.file, self.schema, compression={n: "zstd" for n in ("key", *FIELDS)} | {
            "image.bytes": "none", "image.path": "none"}, use_dictionary=["source", "licence", "group"],
            write_statistics=False)
        self.rows, self.size = [], 0

    def add(self, sample):
        image = {"bytes": sample["image"], "path": f"{sample['key']}.{sample['suffix']}"}
        self.rows.append({"image": image, "key": sample["key"], **{name: sample[name] for name in FIELDS}})
        self.size += len(sample["image"])
        if self.size >= _GROUP_BYTES or len(self.rows) >= _GROUP_ROWS:
            self._flush()

    def _flush(self):
        if self.rows:
            self.writer.write_table(pa.Table.from_pylist(self.rows, self.schema))
        self.rows, self.size = [], 0

    def close(self):
        self._flush()
        self.writer.close()
        self.file.close()
        return self.file.fingerprint()


class FilesWriter:
    """A folder of KEY.jpg files with ``metadata.jsonl``, as ``datasets`` reads image folders."""

    suffix = ""

    def __init__(self, path):
        self.path = path
        os.makedirs(path)
        self.lines, self.size, self.digest = io.StringIO(), 0, hashlib.sha256()

    def add(self, sample):
        name = f"{sample['key']}.{sample['suffix']}"
        with open(os.path.join(self.path, name), "wb") as file:
            file.write(sample["image"])
        self.size += len(sample["image"])
        self.digest.update(sample["image"])
        row = {"file_name": name, **{field: sample[field] for field in FIELDS}}
        self.lines.write(json.dumps(row, sort_keys=True) + "\n")

    def close(self):
        lines = self.lines.getvalue().encode()
        with open(os.path.join(self.path, "metadata.jsonl"), "wb") as file:
            file.write(lines)
        self.digest.update(lines)
        return {"bytes": self.size + len(lines), "sha256": self.digest.hexdigest()}


WRITERS = {"webdataset": TarWriter, "parquet": ParquetWriter, "files": FilesWriter}


def parquet_schema():
    """The arrow schema, with the features that ``datasets`` looks for in its metadata."""
    features = {"image": {"_type": "Image"}, "key": {"dtype": "string", "_type": "Value"}}
    features |= {name: {"dtype": dtype, "_type": "Value"} for name, (_, dtype) in FIELDS.items()}
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    fields = [pa.field("image", image), pa.field("key", pa.string()), *(pa.field(n, t) for n, (t, _) in FIELDS.items())]
    return pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": features}})})
