"""The layouts in which people keep restoration sets, turned into one list of (degraded, clean) pairs.

    found = find_pairs("RESIDE-IN")              # or a manifest, or pair_folders("my/in", "my/gt")
    print(found)                                 # what was recognised, how many pairs, what is left over
    for pair in found.pairs: pair.name, pair.degraded, pair.clean

Only names and headers are looked at. Understood are sister folders by the names in ``DEGRADED_NAMES`` and
``CLEAN_NAMES`` at any level of a tree (PromptIR's and gUNet's trees, RESIDE, SOTS, Haze4K, the rain sets, SIDD,
LOL, GoPro), one folder with both kinds of image in it, and manifests.
"""

import csv
import dataclasses
import json
import os
import re
from pathlib import Path

from .errors import ImageError, RestoreError
from .files import IMAGE_SUFFIXES

# A folder or a part of a file name that marks the degraded side, and the task that it tells (None: it doesn't).
DEGRADED_NAMES = {
    "noisy": "denoise", "noise": "denoise",
    "rainy": "derain", "rain": "derain", "raindrop": "derain",
    "hazy": "dehaze", "haze": "dehaze", "foggy": "dehaze",
    "blur": "deblur", "blurry": "deblur", "blurred": "deblur",
    "low": "lowlight", "lowlight": "lowlight", "dark": "lowlight",
    "snow": "desnow", "snowy": "desnow",
    "jpeg": "jpeg", "compressed": "jpeg",
    "synthetic": None, "input": None, "inputs": None, "in": None, "lq": None, "degraded": None, "data": None,
}
CLEAN_NAMES = ("clean", "clear", "gt", "gts", "groundtruth", "target", "targets", "norain", "nohaze", "original", "sharp",
               "high", "normal", "hq", "hr", "mean", "reference", "ref", "label")
TASKS = ("denoise", "derain", "dehaze", "deblur", "lowlight", "desnow", "jpeg")

MANIFEST_SUFFIXES = (".csv", ".jsonl", ".parquet")
MANIFEST_COLUMNS = {"degraded": ("degraded", "input", "lq"), "clean": ("clean", "target", "gt")}

UNDERSTOOD = """The layouts understood are
  hazy/ + GT/ or clear/          (gUNet, RESIDE, SOTS, Haze4K; 1400_1.png goes with 1400.png)
  rainy/ or rain/ + clean/, norain/ or gt/   (rain-001.png goes with norain-001.png; also all in one folder)
  noisy/ + clean/,  low/ + high/ (LOL),  blur/ + sharp/ (GoPro),  input/ + target/,  lq/ + gt/
  PromptIR's tree (Derain/rainy + Derain/gt, Dehaze/synthetic + Dehaze/original, Rain100L/input + Rain100L/target)
  a manifest: .csv, .jsonl or .parquet with the columns degraded and clean, and task if wanted
or give the two folders themselves."""

RESIDE_BORDER = 10      # the clean images of RESIDE's indoor sets, as released, have so many pixels more on every side

_WORDS = {**DEGRADED_NAMES, "real": "denoise"}      # in file names also PolyU's and CC's, ..._real.JPG beside ..._mean.JPG
_FILLER = {"image", "images", "img", "imgs", "crop", "crops", "patches", "srgb", "rgb", "frames", "s"}
_SPLITS = {"train": {"train", "training", "our"}, "test": {"test", "testing", "val", "valid", "validation", "eval"}}
_TASK_HINTS = (("derain", r"(?<![a-z])(de)?rain"), ("dehaze", r"(?<![a-z])((de)?haz[ey]|sots|reside|fog)"),
               ("denoise", r"(?<![a-z])((de)?nois[ey]|sidd|polyu|dnd)"), ("deblur", r"(?<![a-z])((de)?blur|gopro)"),
               ("lowlight", r"(?<![a-z])(low.?light|lol|enhance)"), ("desnow", r"(?<![a-z])(de)?snow"),
               ("jpeg", r"(?<![a-z])jpe?g"))


@dataclasses.dataclass(frozen=True)
class Pair:
    """One degraded image and its clean partner.

    ``name`` is the degraded file's path below its folder without suffix, preceded by the set's own path where
    several sets were found together; unique within a :class:`PairedSet`. ``border``: pixels to cut from each side of the clean
    image, known once the sizes are.
    """
    name: str
    degraded: Path
    clean: Path
    task: str | None = None
    border: int = 0


@dataclasses.dataclass
class PairedSet:
    """What :func:`find_pairs` found. ``str()`` of it is a report of a few lines.

    ``pairs`` are sorted by name. ``missing``: degraded images without a partner, or files that a manifest names and that are
    not there. ``extra``: clean images that no degraded one uses. ``duplicates``: images left out because another has the same
    name. ``unequal``: ``(pair, degraded (h, w), clean (h, w))`` for pairs whose sizes differ, ``unreadable``: ``(path, why)`` for
    files whose header cannot be read; pairs in either are left out of ``pairs``. ``skipped``: sets of another task or split.
    """
    root: Path
    layout: str
    pairs: list
    task: str | None = None
    split: str | None = None
    missing: list = dataclasses.field(default_factory=list)
    extra: list = dataclasses.field(default_factory=list)
    duplicates: list = dataclasses.field(default_factory=list)
    unequal: list = dataclasses.field(default_factory=list)
    unreadable: list = dataclasses.field(default_factory=list)
    skipped: list = dataclasses.field(default_factory=list)

    def problems(self, limit=5):
        """One line for each kind of problem, at most ``limit`` names in each; an empty list where all is well."""
        kinds = (("without a clean partner, or missing", self.missing), ("clean images that nothing uses", self.extra),
                 ("left out, another file has the same name", self.duplicates),
                 ("pairs of unequal sizes, left out",
                  [f"{p.degraded} is {a[0]}x{a[1]} and {p.clean} {b[0]}x{b[1]}" for p, a, b in self.unequal]),
                 ("not readable, left out", [f"{path} ({why})" for path, why in self.unreadable]))
        return [f"{len(items)} {what}: " + ", ".join(map(str, items[:limit])) + (", ..." if len(items) > limit else "")
                for what, items in kinds if items]

    def __str__(self):
        head = f"{self.root}: {len(self.pairs)} pairs, {self.task or 'task not told by the names'}, {self.layout}"
        return "\n  ".join([head, *self.problems(), *(f"not used: {s}" for s in self.skipped)])


def find_pairs(folder, task=None, split=None, sizes=True):
    """All pairs in ``folder`` (or in a manifest file), as one :class:`PairedSet`.

    ``task`` (one of ``TASKS``) leaves out sets that names tell to be of another task. ``split`` ("train" or "test") leaves out
    sets that lie under the other one's folder (``test``, ``eval15`` ... against ``train``, ``our485``). ``sizes`` reads every
    header and leaves out unreadable files and pairs of unequal sizes, which are listed.

    A partner is the clean image of the same relative path, then of the same file name, then the one whose name is equal once the
    words for either side are gone (``rain-001x2``, ``norain-001``), then the one named by the longest part of the name before an
    underscore (``0025_0.8_0.2`` to ``0025``).

    Raises :class:`RestoreError` if there is no pair, with the layouts understood.
    """
    sets = find_sets(folder)
    kept = [s for s in sets if not (task and s.task and s.task != task)
            and not (split and s.split and s.split != split)]
    found = _merge(Path(folder), kept, task)
    found.skipped = [f"{s.root} ({s.task or 'any task'}{f', {s.split}' if s.split else ''}, {len(s.pairs)} pairs)"
                     for s in sets if s not in kept]
    if sizes:
        _check_sizes(found)
    if not found.pairs:
        told = "\n".join([*found.problems(), *(f"not used: {s}" for s in found.skipped)])
        wanted = f" for {task}" if task else ""
        raise RestoreError(f"{folder}: no pairs{wanted} found here.\n" + (told + "\n" if told else "") + UNDERSTOOD)
    return found


def find_sets(folder):
    """Every paired set below ``folder``, one :class:`PairedSet` for each place, ordered by path; sizes are not looked at."""
    folder = Path(folder)
    if folder.is_file():
        return _manifest_sets(folder, _rows(folder))
    if not folder.is_dir():
        raise RestoreError(f"{folder}: no such folder or file")
    return _walk(folder, folder, frozenset())


def pair_folders(degraded, clean, task=None, sizes=True):
    """Pairs of two folders given by the user, whatever their names; raises :class:`RestoreError` if there are none."""
    for folder in (degraded, clean):
        if not Path(folder).is_dir():
            raise RestoreError(f"{folder}: no such folder")
    found = _pair(Path(degraded), _images(Path(degraded)), Path(clean), _images(Path(clean)), "two folders")
    found.task = task or found.task
    found.pairs = [dataclasses.replace(p, task=found.task) for p in found.pairs]
    if sizes:
        _check_sizes(found)
    if not found.pairs:
        raise RestoreError(f"{degraded} and {clean}: no two images in them belong together by name.\n"
                           + "\n".join(found.problems()))
    return found


def find_clean(folder):
    """Clean images of ``folder``: those of its ``Denoise`` folder in PromptIR's tree, the clean sides of paired sets, else all.

    Returns a sorted list of paths. Raises :class:`RestoreError` if there are none.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise RestoreError(f"{folder}: no such folder")
    below = next((child for child in _listing(folder)[0] if child.name.lower() == "denoise"), folder)
    sets = find_sets(below)
    paths = sorted({pair.clean for found in sets for pair in found.pairs}) or [p for _, p in _images(below)]
    if not paths:
        raise RestoreError(f"{folder}: no images here ({', '.join(IMAGE_SUFFIXES)})")
    return paths


# -- the tree ----------------------------------------------------------------------------------------------------------

def _walk(folder, root, above):
    """Sets below ``folder``. ``above`` holds the real paths on the way here, against links that go in circles."""
    real = os.path.realpath(folder)
    if real in above:
        return []
    children, files = _listing(folder)
    for path in files:
        if path.stem.lower() in ("manifest", "pairs") and path.suffix.lower() in MANIFEST_SUFFIXES:
            rows = _rows(path)
            if rows and all(_column(rows, role) for role in MANIFEST_COLUMNS):      # else it lists something else than pairs
                return _manifest_sets(path, rows)
    nested = {child: _walk(child, root, above | {real}) for child in children}
    sides = [child for child in children if not nested[child]]   # `rain/` that holds whole sets is not a set's rainy side
    degraded = [child for child in sides if _word(child.name) in DEGRADED_NAMES]
    clean = [child for child in sides if _word(child.name) in CLEAN_NAMES]
    here = [p for p in files if p.suffix.lower() in IMAGE_SUFFIXES]
    sets = []
    if degraded and (clean or here):
        # beside `rainy/`, the clean images of the early rain sets lie in the parent folder itself
        clean_folder, clean_images = (clean[0], _images(clean[0])) if clean else (folder, [(p.name, p) for p in here])
        plain = [child for child in degraded if _word(child.name) != "data"] or degraded
        for child in plain:
            layout = f"{child.name}/ + {clean_folder.name + '/' if clean else 'images beside it'}"
            sets.append(_pair(child, _images(child), clean_folder, clean_images, layout))
    elif here:
        marked = [(p, _marks(p.stem)) for p in here]
        left, right = ([(p.name, p) for p, marks in marked if marks == side] for side in ("degraded", "clean"))
        mixed = _pair(folder, left, folder, right, "both kinds in one folder") if left and right else None
        if mixed and mixed.pairs:                   # else they are photos of snow and of clear lakes
            sets.append(mixed)
    for found in sets:
        found.root = folder
        below = folder.relative_to(root)
        found.split = _split_of(*below.parts)       # not of the root's own name: the user has chosen that folder
        found.task = found.task or _task_of(root.name, *below.parts)
        found.pairs = [dataclasses.replace(p, task=found.task) for p in found.pairs]
    return sets + [found for child in children for found in nested[child]]


def _listing(folder):
    """``(folders, files)`` directly in ``folder``, hidden ones left out, sorted by name."""
    with os.scandir(folder) as entries:
        seen = sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)
    return [Path(e) for e in seen if e.is_dir()], [Path(e) for e in seen if e.is_file()]


def _images(folder):
    """``(path below folder, path)`` of all images below ``folder``, linked folders too; sorted."""
    found = []
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        if len(Path(place).relative_to(folder).parts) > 8:       # deeper than any set: a link that goes in a circle
            folders.clear()
        found += [Path(place, n) for n in names if not n.startswith(".") and Path(n).suffix.lower() in IMAGE_SUFFIXES]
    return sorted((p.relative_to(folder).as_posix(), p) for p in found)


def _word(name):
    """A folder's name without digits, separators and words like "images": ``Ground_Truth`` gives ``groundtruth``."""
    words = [w for w in re.findall("[a-z]+", name.lower()) if w not in _FILLER]
    return "".join(words)


def _split_of(*parts):
    words = {w for part in parts for w in re.findall("[a-z]+", part.lower())}
    return next((split for split, names in _SPLITS.items() if words & names), None)


def _task_of(*parts):
    for part in reversed(parts):
        for task, pattern in _TASK_HINTS:
            if re.search(pattern, part.lower()):
                return task
    return None


# -- names -------------------------------------------------------------------------------------------------------------

def _tokens(stem):
    """Words and numbers of a file name without its trailing scale mark: ``norain-001x2`` gives (norain, 001)."""
    return re.findall("[a-z]+|[0-9]+", re.sub(r"(?<=\d)x\d$", "", stem.lower()))


def _key(stem):
    """What is left of a name once the words for either side are gone: the same for ``rain-001`` and ``norain-001``."""
    return tuple(t for t in _tokens(stem) if t not in _WORDS and t not in CLEAN_NAMES)


def _marks(stem):
    """Which side a name itself tells, "degraded" or "clean", or None; its first or last word decides."""
    words = [t for t in _tokens(stem) if t.isalpha()]
    for word in (words[0], words[-1]) if words else ():
        if word in CLEAN_NAMES:
            return "clean"
        if word in _WORDS and word != "data":
            return "degraded"
    return None


def _pair(degraded_folder, degraded, clean_folder, clean, layout):
    """Pair two lists of ``(relative path, path)`` by name."""
    degraded, twice = _one_per_name(degraded)
    clean, twice_clean = _one_per_name(clean)
    by_path = dict(clean)
    by_stem = _unique((Path(rel).name, path) for rel, path in clean)
    by_key = _unique((_key(Path(rel).name), path) for rel, path in clean)

    def partner(relative):
        stem = Path(relative).name
        parts = stem.split("_")
        prefixes = ["_".join(parts[:n]) for n in range(len(parts) - 1, 0, -1)]
        return (by_path.get(relative) or by_stem.get(stem) or (by_key.get(_key(stem)) if _key(stem) else None)
                or next((by_stem[p] for p in prefixes if p in by_stem), None)
                or next((by_key[_key(p)] for p in prefixes if _key(p) in by_key and _key(p)), None))

    found = PairedSet(degraded_folder, layout, [])
    found.task = DEGRADED_NAMES.get(_word(degraded_folder.name))
    found.duplicates = twice + twice_clean
    used = set()
    for relative, path in degraded:
        match = partner(relative)
        if match is None:
            found.missing.append(path)
        else:
            used.add(match)
            found.pairs.append(Pair(relative, path, match))
    if layout == "both kinds in one folder" and found.task is None:
        words = {_WORDS.get(t) for p in found.pairs for t in _tokens(p.degraded.stem)} - {None}
        found.task = words.pop() if len(words) == 1 else None
    found.extra = [path for _, path in clean if path not in used]
    return found


def _one_per_name(images):
    """``(relative path without suffix, path)``, and the paths that another file of the same name made superfluous."""
    named, twice = {}, []
    for relative, path in images:
        stem = os.path.splitext(relative)[0]
        if stem in named:
            twice.append(path)
        else:
            named[stem] = path
    return sorted(named.items()), twice


def _unique(items):
    """A dict of the keys that occur once: an ambiguous name pairs with nothing."""
    table, several = {}, set()
    for key, path in items:
        if key in table:
            several.add(key)
        table[key] = path
    return {k: v for k, v in table.items() if k not in several}


def _merge(root, sets, task):
    """One set of several; names are preceded by the sets' paths where there is more than one."""
    if len(sets) == 1:
        found = dataclasses.replace(sets[0], root=root)
        found.task = found.task or task
    else:
        layouts = list(dict.fromkeys(s.layout for s in sets))
        tasks = {s.task for s in sets}
        found = PairedSet(root, f"{len(sets)} sets of " + ", ".join(layouts[:4]) + (", ..." if len(layouts) > 4 else ""), [],
                          task or (tasks.pop() if len(tasks) == 1 else None))
        for s in sets:
            below = s.root.relative_to(root).as_posix() if s.root.is_relative_to(root) else "."
            # two rainy folders beside one clean one share their place; the degraded folder's name tells them apart
            if any(other.root == s.root and other.layout != s.layout for other in sets):
                below = f"{below}/{s.layout.split('/')[0]}"
            found.pairs += [dataclasses.replace(p, name=p.name if below == "." else f"{below}/{p.name}") for p in s.pairs]
            for field in ("missing", "extra", "duplicates"):
                getattr(found, field).extend(getattr(s, field))
    found.pairs = sorted((dataclasses.replace(p, task=p.task or task) for p in found.pairs), key=lambda p: p.name)
    return found


def _check_sizes(found):
    from .image import image_size

    sizes = {}
    for path in {path for pair in found.pairs for path in (pair.degraded, pair.clean)}:
        try:
            sizes[path] = tuple(image_size(path))
        except ImageError as error:
            found.unreadable.append((path, str(error).removeprefix(f"{path}: ")))
    found.unreadable.sort()
    readable = [p for p in found.pairs if p.degraded in sizes and p.clean in sizes]
    found.pairs = []
    for pair in readable:
        degraded, clean = sizes[pair.degraded], sizes[pair.clean]
        if degraded == clean:
            found.pairs.append(pair)
        elif clean == tuple(side + 2 * RESIDE_BORDER for side in degraded):
            found.pairs.append(dataclasses.replace(pair, border=RESIDE_BORDER))
        else:
            found.unequal.append((pair, degraded, clean))


# -- manifests ---------------------------------------------------------------------------------------------------------

def _manifest_sets(path, rows):
    columns = [_column(rows, role) for role in MANIFEST_COLUMNS]
    if None in columns:
        raise RestoreError(f"{path}: needs the columns {' and '.join(MANIFEST_COLUMNS)}"
                           + (f", has {', '.join(map(str, rows[0]))}" if rows else " and is empty"))
    sets, seen = {}, set()
    for number, row in enumerate(rows, start=1):
        names, task = [row.get(column) for column in columns], row.get("task") or None
        if not all(names):
            raise RestoreError(f"{path}: row {number} lacks {'clean' if names[0] else 'degraded'}")
        if task and task not in TASKS:
            raise RestoreError(f"{path}: row {number} has the task {task!r}; there are {', '.join(TASKS)}")
        found = sets.setdefault(task, PairedSet(path.parent, f"manifest {path.name}", [], task))
        degraded, clean = (path.parent / name for name in names)
        gone = [file for file in (degraded, clean) if not file.is_file()]
        if gone:
            found.missing += gone
        elif names[0] in seen:
            found.duplicates.append(degraded)
        else:
            found.pairs.append(Pair(os.path.splitext(names[0])[0], degraded, clean, task))
        seen.add(names[0])
    return list(sets.values())


def _column(rows, role):
    """The name of a role's column, or None."""
    return next((name for name in MANIFEST_COLUMNS[role] if rows and isinstance(rows[0], dict) and name in rows[0]), None)


def _rows(path):
    suffix = path.suffix.lower()
    try:
        if suffix == ".csv":
            with open(path, newline="", encoding="utf-8-sig") as handle:
                return list(csv.DictReader(handle))
        if suffix == ".jsonl":
            return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        if suffix == ".parquet":
            import pyarrow.parquet
            return pyarrow.parquet.read_table(path).to_pylist()
    except Exception as error:
        raise RestoreError(f"{path}: not readable as a {suffix} manifest: {error}") from error
    raise RestoreError(f"{path}: a manifest is a {', '.join(MANIFEST_SUFFIXES)} file")
