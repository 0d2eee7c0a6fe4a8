"""The photos of each open page: in a temporary folder of its own, which goes when the page is closed, or the program."""

import argparse
import asyncio
import math
import os
import re
import secrets
import shutil
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from ..codecs.containers import kind_of
from ..commands import degrade
from ..commands.run import MARK
from ..errors import ImageError, RestoreError
from ..files import require_space
from ..image import Image, check_writable, image_size, read_image
from ..metrics import psnr, ssim

try:
    import fcntl
except ImportError:                          # Windows
    fcntl = None

_PREFIX = "anydepth-serve-"
_ABANDONED = 600                             # seconds after which an upload that no page asked for is deleted
_LONGEST_NAME = 120
_SUFFIX = {"JPEG": ".jpg", "PNG": ".png", "TIFF": ".tif", "WEBP": ".webp", "BMP": ".bmp", "PPM": ".ppm"}
_WIDEST_JPEG = 65500
_WINDOW, _BAND = 7, 1 << 22                  # of SSIM; pixels of a band that is scored at once


@dataclass(frozen=True)
class Limits:
    """Of one photo: ``upload`` in bytes, ``pixels``."""

    upload: int
    pixels: int


class Workspace:
    """A temporary folder with one folder for each open page, and ``uploads`` for what is still arriving."""

    def __init__(self, limits):
        _sweep_dead()
        self.limits = limits
        self.root = Path(tempfile.mkdtemp(prefix=_PREFIX))       # readable for this user alone
        self.uploads = self.root / "uploads"
        self.uploads.mkdir()
        self._lock = threading.Lock()
        self._sessions = {}
        self._alive = _hold(self.root)

    def session(self, key):
        """The :class:`Session` of a page, by what gradio calls its hash; made on first use."""
        with self._lock:
            if key not in self._sessions:
                self._sessions[key] = Session(self)
            return self._sessions[key]

    def by_token(self, token):
        """The :class:`Session` whose addresses have this token, or None."""
        with self._lock:
            return next((s for s in self._sessions.values() if secrets.compare_digest(s.token, token)), None)

    def end(self, key):
        """The page was closed: its work is cancelled and its photos are deleted."""
        with self._lock:
            session = self._sessions.pop(key, None)
        if session is not None:
            session.close()

    def sweep_uploads(self):
        """Delete uploads that were broken off, or that no page ever asked for."""
        for path in sorted(self.uploads.rglob("*"), reverse=True):
            try:
                if path.is_dir():
                    path.rmdir()
                elif time.time() - path.stat().st_mtime > _ABANDONED:
                    path.unlink()
            except OSError:                  # a folder that is in use, or a file that is gone already
                pass

    def close(self):
        """Delete everything."""
        with self._lock:
            sessions, self._sessions = list(self._sessions.values()), {}
        for session in sessions:
            session.close()
        shutil.rmtree(self.root, ignore_errors=True)
        if self._alive is not None:
            os.close(self._alive)
            self._alive = None


class Session:
    """One open page: at most one photo, at most one job. ``token`` is a secret in the addresses of its pictures."""

    def __init__(self, workspace):
        self.workspace = workspace
        self.token = secrets.token_urlsafe(24)
        self.folder = workspace.root / secrets.token_hex(8)
        self.folder.mkdir()
        self.photo = self.job = self.choice = None
        self.lock = asyncio.Lock()           # held by the one event that changes the photo
        self.closed = False

    def take(self, upload, name):
        """Make the file ``upload`` this page's photo, in place of an earlier one; it is moved. Raises :class:`RestoreError`.

        ``name`` is what the user calls it.
        """
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        try:
            photo = Photo.open(upload, folder, name, self.workspace.limits)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        finally:
            Path(upload).unlink(missing_ok=True)
        if self.closed:
            shutil.rmtree(folder, ignore_errors=True)
        old, self.photo = self.photo, photo
        if old is not None:
            shutil.rmtree(old.folder, ignore_errors=True)
        return photo

    def address(self, path):
        """Where the browser finds a file of this page's photo."""
        return f"/photo/{self.token}/{path.parent.name}/{path.name}"

    def find(self, folder, name):
        """The path of such an address if it is one of the photo's pictures or its result, else None."""
        photo = self.photo
        files = [] if photo is None else [path for path in (*photo.pictures.values(), photo.result, photo.input) if path]
        return next((path for path in files if path.name == name and path.parent.name == folder), None)

    def close(self):
        self.closed = True
        if self.job is not None:
            self.job.cancel()
        shutil.rmtree(self.folder, ignore_errors=True)


@dataclass
class Photo:
    """A photo, what it is tested with, and what became of it.

    ``source`` is the file as it came, ``input`` the one that is restored: the same, or its degraded version. ``pictures`` are
    for the screen: ``"input"``, and where there are such ``"clean"`` and ``"restored"``. ``scores`` has (PSNR, SSIM) of
    ``"input"`` and ``"restored"`` against ``"clean"``. ``runs`` has (seconds, PSNR or None) of each (model, depth) that was run.
    """

    folder: Path
    source: Path
    input: Path
    height: int
    width: int
    facts: dict
    notes: list
    pictures: dict = field(default_factory=dict)
    test: list | None = None                 # options of restore degrade
    result: Path | None = None
    restored_with: tuple | None = None       # (model, depth)
    scores: dict = field(default_factory=dict)
    runs: dict = field(default_factory=dict)

    @classmethod
    def open(cls, upload, folder, name, limits):
        """Check the file ``upload``, move it into ``folder`` and read it; raises :class:`RestoreError` that calls it ``name``."""
        upload = Path(upload)
        with upload.open("rb") as file:
            start = file.read(64)
        kind = kind_of(start)
        if kind is None:
            raise ImageError(_not_an_image(name, start))
        source = folder / _safe_name(name, kind)
        shutil.move(upload, source)
        try:
            if source.stat().st_size > limits.upload:
                raise ImageError(f"{source}: has {source.stat().st_size / 1e6:.0f} MB; the limit here is {limits.upload / 1e6:.0f} MB")
            height, width = image_size(source)
            if height * width > limits.pixels:
                raise ImageError(f"{source}: has {width} x {height} pixels ({height * width / 1e6:.0f} megapixels); the limit here is "
                                 f"{limits.pixels / 1e6:.0f} megapixels. Use restore run for it, or reduce it first")
            require_space(folder, 4 * height * width, "a photo of this size")
            image = read_image(source, limits.pixels)
            if image.alpha is not None and not check_writable(source).ALPHA:     # a PNG that is called photo.jpg
                source = source.rename(source.with_suffix(_SUFFIX[kind]))
            facts = {"bits": image.bits, "gray": image.gray, "alpha": image.alpha is not None, "format": kind,
                     "bytes": source.stat().st_size, "icc": bool(image.icc), "metadata": bool(image.exif or image.xmp)}
            photo = cls(folder, source, source, height, width, facts, image.notes)
            photo.show("input", image)
        except RestoreError as error:
            raise _named(error, source) from error.__cause__
        return photo

    def show(self, what, image):
        """Write ``image`` as a picture for the screen; every one has a new name, so that no browser shows an old one."""
        lossless = image.alpha is not None or max(self.height, self.width) > _WIDEST_JPEG
        path = self.folder / f"{what}-{secrets.token_hex(4)}{'.png' if lossless else '.jpg'}"
        Image(pixels=image.pixels, alpha=image.alpha, icc=image.icc, bits=8, gray=image.gray).save(path, quality=95)
        old, self.pictures[what] = self.pictures.get(what), path
        if old is not None:
            old.unlink(missing_ok=True)

    def degrade(self, test):
        """Put the photo's degraded version in its place; ``test`` are options of ``restore degrade``, None takes it back."""
        self._drop_result()
        if self.test is not None:
            for path in (self.input, self.pictures["input"]):
                path.unlink(missing_ok=True)
            self.input, self.test = self.source, None
            self.pictures["input"] = self.pictures.pop("clean")
            self.scores.clear()
        self.runs = {key: (elapsed, None) for key, (elapsed, _) in self.runs.items()}
        if test is None:
            return
        args = _parse(test)
        image = read_image(self.source)
        worse = degrade.degraded(image, args.kind[0], args, self.source.name)
        target = self.folder / f"{self.source.stem}.{args.kind[0]}.png"
        worse.save(target)
        self.pictures["clean"] = self.pictures.pop("input")
        self.input, self.test = target, list(test)
        worse = read_image(target)           # rounded, as it was written
        self.show("input", worse)
        self._score("input", worse.pixels, image.pixels)

    def restore(self, restored_with, run):
        """Restore ``input`` by ``run(pixels)`` and write the result as ``restore run`` does; ``restored_with`` is kept."""
        image = read_image(self.input)
        pixels, image.pixels = image.pixels, None
        begun = time.perf_counter()
        image.pixels = run(pixels)
        elapsed = time.perf_counter() - begun
        del pixels
        result = self.input.with_name(f"{self.input.stem}{MARK}{self.input.suffix}")
        image.save(result)
        self._drop_result()
        self.show("restored", image)
        if self.test is not None:
            self._score("restored", image.pixels, read_image(self.source).pixels)
        self.result, self.restored_with = result, restored_with
        self.runs[restored_with] = elapsed, self.scores["restored"][0] if self.test is not None else None

    def _score(self, what, pixels, clean):
        self.scores[what] = _scores(pixels, clean)

    def _drop_result(self):
        self.result = self.restored_with = None
        self.scores.pop("restored", None)
        picture = self.pictures.pop("restored", None)
        if picture is not None:
            picture.unlink(missing_ok=True)


def _scores(pixels, clean):
    """(PSNR, SSIM or None if smaller than its window) in bands of rows, since scores are computed in float64."""
    _, height, width = pixels.shape
    rows = max(_WINDOW, _BAND // width)
    error = sum(10 ** (-psnr(a, b) / 10) * a.shape[1] for a, b in zip(pixels.split(rows, 1), clean.split(rows, 1))) / height
    if min(height, width) < _WINDOW:
        return _decibel(error), None
    starts = range(0, height - _WINDOW + 1, rows)                # of windows; a band has the rows below that they need
    bands = [(min(rows, height - _WINDOW + 1 - top), slice(top, top + rows + _WINDOW - 1)) for top in starts]
    similar = sum(count * ssim(pixels[:, band], clean[:, band]) for count, band in bands)
    return _decibel(error), similar / sum(count for count, _ in bands)


def _decibel(error):
    return -10 * math.log10(error) if error else math.inf


def _parse(options):
    parser = argparse.ArgumentParser(exit_on_error=False)
    degrade.add_arguments(parser)
    args = parser.parse_args(options)
    degrade.check(args)
    return args


def _safe_name(name, kind):
    """``name`` as a file name on any system, with a suffix that can be written."""
    name = re.sub(r'[\x00-\x1f\x7f<>:"/\\|?*]', "_", re.split(r"[/\\]", str(name))[-1]).strip(" .") or "photo"
    stem, suffix = os.path.splitext(name)
    try:
        check_writable(name)
    except ImageError:                       # photo.jfif, or none
        suffix = _SUFFIX[kind]
    while len(stem.encode()) > _LONGEST_NAME:
        stem = stem[:-1]
    return stem + suffix


def _named(error, path):
    """``error`` with the user's name of the file instead of where it lies."""
    return type(error)(str(error).replace(str(path), path.name))


def _not_an_image(name, start):
    name = re.split(r"[/\\]", str(name))[-1]
    if not start:
        return f"{name}: is empty"
    if start[4:8] == b"ftyp":
        return (f"{name}: is a HEIC, AVIF or video file, which cannot be read here. Save it as JPEG, PNG or TIFF; an iPhone takes JPEG "
                "photos with Settings > Camera > Formats > Most Compatible")
    return f"{name}: is not a photo that can be read here. JPEG, PNG, TIFF, WebP, BMP and PPM can; camera raw files cannot"


def _hold(root):
    """A locked file in ``root``, by which other processes see that it is in use; None where there are no such locks."""
    if fcntl is None:
        return None
    handle = os.open(root / "alive", os.O_CREAT | os.O_RDWR, 0o600)
    fcntl.flock(handle, fcntl.LOCK_EX)
    return handle


def _sweep_dead():
    """Delete what a killed ``restore serve`` of this user left behind."""
    if fcntl is None:
        return
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        try:
            handle = os.open(folder / "alive", os.O_RDWR)
        except OSError:                      # another user's, or one that is just being made
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:                      # in use
            pass
        else:
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(handle)
