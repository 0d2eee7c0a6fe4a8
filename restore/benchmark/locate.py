"""Where the sets lie below a folder, and how what is there differs from what a complete set holds.

Folders are recognised by the names people give them (``data/sets.yaml``), pairs inside them by :mod:`restore.layouts`.
"""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import RestoreError
from ..files import IMAGE_SUFFIXES
from ..layouts import find_pairs

DEEPEST = 6                                   # levels below the data folder that are searched


@dataclass(frozen=True)
class Item:
    """One image of a set: its name, the degraded and the clean file; either is None where it does not exist."""

    name: str
    degraded: Path | None
    clean: Path | None


@dataclass
class Located:
    """A set as found: ``items`` in order of name; ``problems`` are lines for a reader, empty where all is well.

    ``renamed``: some files have names that the published set does not have. ``broken``: some lack a partner or share a name.
    """

    set: object
    folder: Path
    items: list
    problems: list = field(default_factory=list)
    renamed: bool = False
    broken: bool = False

    @property
    def complete(self):
        """Whether as many images are here as the complete set has, under its names, where these are known."""
        return self.set.count in (None, len(self.items)) and not self.renamed

    @property
    def label(self):
        """"complete", "partial, 34 of 100" or, for a set of no fixed size, the count."""
        if self.set.count is None:
            return f"{len(self.items)} images"
        if self.complete:
            return "complete"
        if len(self.items) == self.set.count:
            return "files renamed"
        return f"{'partial' if len(self.items) < self.set.count else 'other'}, {len(self.items)} of {self.set.count}"


def parse_data(options):
    """``["DIR", "cbsd68=DIR"]`` as ``([roots], {set key: folder})``; raises :class:`RestoreError` for what is not there."""
    roots, given = [], {}
    for option in options:
        key, _, folder = str(option).partition("=")
        from_key = bool(folder) and not Path(option).exists()
        path = Path(folder if from_key else option)
        if not path.is_dir():
            raise RestoreError(f"--data {option}: no such folder")
        if from_key:
            given[key] = path
        else:
            roots.append(path)
    return roots, given


def locate(image_set, roots, given=None):
    """The set below one of ``roots`` (or in the folder ``given`` for its key) as :class:`Located`, or None if absent.

    Where several folders bear its name, the one with the most images wins, the first by path among equals; the others
    are told in ``problems``.
    """
    if given and image_set.key in given:
        return _open(image_set, given[image_set.key])
    candidates = [folder for root in roots for folder in _folders(root) if _is_named(folder, image_set.folders)]
    found = []
    for folder in candidates:
        located = _open(image_set, folder)
        real = {item.degraded or item.clean for item in located.items} if located else set()
        if located and not any(real <= {i.degraded or i.clean for i in other.items} for other in found):
            found.append(located)
    if not found:
        return None
    best = max(found, key=lambda located: len(located.items))
    best.problems += [f"also found and not used: {other.folder} ({len(other.items)})" for other in found if other is not best]
    return best


def check(located, sizes=True):
    """Lines that say how a located set differs from the complete one: names, sizes, gray and unreadable files."""
    lines = list(located.problems)
    expected, there = set(located.set.names), {item.name for item in located.items}
    if expected:
        lines += _few("missing", sorted(expected - there), "")
    if sizes:
        lines += _headers(located)
    return lines


def _headers(located):
    from PIL import Image
    lines, odd = [], []
    for item in located.items:
        shapes = {}
        for path in filter(None, (item.degraded, item.clean)):
            try:
                with Image.open(path) as image:
                    shapes[path] = image.size[::-1]
                    if image.mode in ("L", "LA", "1", "I", "I;16"):
                        lines.append(f"{path.name}: gray, read as RGB of equal channels")
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
                lines.append(f"{path}: cannot be read: {error}")
        if len(shapes) == 2 and trimmed(shapes[item.clean], shapes[item.degraded], located.set) is None:
            first, second = shapes[item.degraded], shapes[item.clean]
            lines.append(f"{item.name}: degraded {first[0]}x{first[1]} and clean {second[0]}x{second[1]} (height x width), "
                         "left out")
        if located.set.sizes and any(tuple(s) not in located.set.sizes for s in shapes.values()):
            odd.append(item.name)
    wanted = " or ".join(f"{h}x{w}" for h, w in located.set.sizes)
    return lines + _few("not of this set's size", odd, f" ({wanted}), resized or from elsewhere")


def trimmed(clean, degraded, image_set):
    """Pixels to cut off every side of the clean image so that it fits the degraded one, or None if it never does."""
    border = image_set.clean_border
    if tuple(clean) == tuple(degraded):
        return 0
    return border if border and tuple(side - 2 * border for side in clean) == tuple(degraded) else None


def _open(image_set, folder):
    if image_set.kind != "pairs":
        return _open_images(image_set, folder)
    try:
        split = "test" if any(re.search("test|val|eval", p.name.lower()) for p in folder.iterdir() if p.is_dir()) else None
        pairs = find_pairs(folder, split=split, sizes=False)
    except RestoreError:
        return None
    items = sorted((Item(pair.name, pair.degraded, pair.clean) for pair in pairs.pairs), key=lambda item: item.name)
    return _finish(image_set, folder, items, pairs.problems(), bool(pairs.missing or pairs.duplicates))


def _open_images(image_set, folder):
    paths = sorted((p for p in folder.iterdir() if p.is_file() and p.suffix.lower() in IMAGE_SUFFIXES
                    and not p.name.startswith(".")), key=lambda p: p.stem)
    problems, by_name = [], {}
    for path in paths:
        if path.stem in by_name:
            problems.append(f"two images named {path.stem}: {by_name[path.stem].name} is used, {path.name} is not")
        else:
            by_name[path.stem] = path
    items = [Item(name, None, path) if image_set.kind == "clean" else Item(name, path, None)
             for name, path in sorted(by_name.items())]
    return _finish(image_set, folder, items, problems, bool(problems)) if items else None


def _finish(image_set, folder, items, problems, broken):
    expected = set(image_set.names)
    strangers = [item.name for item in items if item.name not in expected] if expected else []
    problems += _few("not a name of this set", strangers, ", renamed or from elsewhere: noise that is seeded by name or by "
                     "order differs from the published")
    return Located(image_set, folder, items, problems, renamed=bool(strangers), broken=broken)


def _folders(root):
    """``root`` and every folder below it, hidden ones left out, ordered by path."""
    found = []
    root = Path(root)
    for place, folders, _ in os.walk(root, followlinks=True):
        depth = len(Path(place).relative_to(root).parts)
        folders[:] = sorted(f for f in folders if not f.startswith(".")) if depth < DEEPEST else []
        found.append(Path(place))
    return found


def _is_named(folder, patterns):
    parts = [_plain(part) for part in folder.absolute().parts]
    wanted = [[_plain(part) for part in pattern.split("/")] for pattern in patterns]
    return any(parts[-len(names):] == names for names in wanted)


def _plain(name):
    return re.sub(r"[-_ ]", "", name.lower())


def _few(what, names, tail, limit=8):
    if not names:
        return []
    return [f"{len(names)} {what}{tail}: {', '.join(names[:limit])}{', ...' if len(names) > limit else ''}"]


