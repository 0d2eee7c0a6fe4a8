"""Files written whole or not at all, and folders listed in one order everywhere."""

import contextlib
import glob
import os
import shutil
import tempfile
from pathlib import Path

from .errors import RestoreError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")


@contextlib.contextmanager
def atomic_path(path):
    """Yield a temporary path beside ``path``; on success it is moved onto ``path``, on any error removed.

    A reader therefore never meets a half-written file, also after ``kill -9`` or a full disk. The temporary
    name is hidden and keeps the suffix of ``path``, since image and tensor writers look at it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem[:80]}.", suffix=path.suffix)
    os.close(handle)
    try:
        yield Path(name)
        with open(name, "rb+") as written:
            os.fsync(written.fileno())
        os.chmod(name, 0o666 & ~_umask())        # mkstemp and some writers make private files; ours are ordinary ones
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def discard_half_written(path):
    """Remove what killed runs of :func:`atomic_path` left beside ``path``; not while another process writes it."""
    path = Path(path)
    for left in path.parent.glob(f".{glob.escape(path.stem[:80])}.????????{path.suffix}"):
        left.unlink(missing_ok=True)


def write_bytes(path, data):
    """Write ``data`` (bytes, or str as UTF-8) to ``path`` through :func:`atomic_path`."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


def require_space(folder, needed, what):
    """Raise :class:`RestoreError` when less than ``needed`` bytes are free where ``folder`` is, or will be."""
    existing = Path(folder).absolute()
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise RestoreError(f"{folder}: {what} needs {needed / 1e6:.0f} MB and the disk has {free / 1e6:.0f} MB "
                           "left. Free some space or choose another folder.")


def list_images(folder):
    """Image files anywhere below ``folder``, hidden ones left out, sorted by relative path; may be empty.

    Raises :class:`RestoreError` if ``folder`` is not a folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise RestoreError(f"{folder}: no such folder")
    found = (p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
    return sorted((p for p in found if not any(part.startswith(".") for part in p.relative_to(folder).parts)),
                  key=lambda p: p.relative_to(folder).as_posix())


def paired_files(folder):
    """``[(input, target)]`` of a folder with ``input/`` and ``target/``; raises :class:`RestoreError` unless they match."""
    inputs, targets = ({p.relative_to(folder / side).as_posix(): p for p in list_images(folder / side)} for side in ("input", "target"))
    odd = sorted(inputs.keys() ^ targets.keys())
    if odd or not inputs:
        raise RestoreError(f"{folder}: " + (f"{len(odd)} images are in only one of input/ and target/, such as {odd[0]}"
                                            if odd else "no images in input/ and target/"))
    return [(inputs[name], targets[name]) for name in inputs]


def expand(patterns):
    """``(path, path below its own root)`` for every image in files, folder trees and globs, in order, once each.

    Raises :class:`RestoreError` for a pattern that names nothing.
    """
    seen, found = set(), []
    for pattern in map(str, patterns):
        names = [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern, recursive=True))
        if not names:
            raise RestoreError(f"{pattern}: no such file or folder, and no file matches it")
        for name in map(Path, names):
            pairs = ((p, p.relative_to(name)) for p in list_images(name)) if name.is_dir() else [(name, Path(name.name))]
            for path, relative in pairs:
                if path.absolute() not in seen:
                    seen.add(path.absolute())
                    found.append((path, relative))
    return found


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask
