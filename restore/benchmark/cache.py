"""Results by content: one small JSON file for each image, network, protocol and version of the code that decides scores.

Files are written by rename, so two processes may share a folder: both find whole files, and what both compute is the same.
"""

import functools
import hashlib
import json
import os
from pathlib import Path

from ..errors import RestoreError
from ..files import write_bytes

_PACKAGE = Path(__file__).parents[1]
# The source files that decide a score, restored images included.
_SOURCES = ("metrics.py", "image.py", "depth.py", "models/*.py", "restorer.py", "tiling.py", "fast.py", "benchmark/inputs.py", "benchmark/protocol.py",
            "benchmark/competitors.py", "benchmark/classical.py", "benchmark/noreference.py", "benchmark/piqe.py", "benchmark/fade.py",
            "benchmark/gallery.py", "benchmark/data/fade.json")


def default_folder():
    """``$XDG_CACHE_HOME/anydepth/bench``, by default in ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "anydepth" / "bench"


@functools.lru_cache(maxsize=1)
def code_version():
    """Content hash of the source files that decide a score."""
    digest = hashlib.sha256()
    for pattern in _SOURCES:
        for path in sorted(_PACKAGE.glob(pattern)):
            digest.update(path.relative_to(_PACKAGE).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]


class Cache:
    """``get`` and ``put`` of JSON records in ``folder``; ``None`` for the folder keeps nothing.

    Raises :class:`RestoreError` when a record cannot be written.
    """

    def __init__(self, folder):
        self.folder = None if folder is None else Path(folder)

    def key(self, competitor, entry, protocol, image):
        """Content hash of a result: the network, the protocol, the noise level, the code and the pixels themselves."""
        if self.folder is None:
            return ""
        parts = [competitor.key, competitor.image_key(image, entry), protocol.key(), repr(entry.sigma), code_version(),
                 image.digest]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:40]

    def get(self, key):
        """The record, or None if there is none; a damaged file counts as none."""
        if self.folder is None:
            return None
        try:
            record = json.loads(self._path(key).read_bytes())
        except (OSError, ValueError):
            return None
        return record if isinstance(record, dict) and "scores" in record else None

    def put(self, key, record):
        if self.folder is None:
            return
        try:
            write_bytes(self._path(key), json.dumps(record))
        except OSError as error:
            raise RestoreError(f"{self.folder}: results cannot be kept here ({error.strerror or error}); choose another "
                               "folder with --cache DIR, or --no-cache") from error

    def _path(self, key):
        return self.folder / key[:2] / f"{key[2:]}.json"
