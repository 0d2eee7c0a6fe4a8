"""The mixture: which images each task has, and sample k of it, a function of (seed, k) alone."""

import bisect
import contextlib
import dataclasses
import functools
import hashlib
import os
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from restore.corpus import Corpus, Folder, digest, open_corpus
from restore.data import CleanImages, crop, numpy_rng, random_window, torch_generator
from restore.errors import ImageError, RestoreError
from restore.foreign import read_output, to_8_bits
from restore.image import read_rgb8
from restore.layouts import TASKS, find_clean, find_pairs, pair_folders

from .degrade import CONTEXT, degrade, transplant_rain, vary_strength
from .recipe import Task

BLOCK = 1024        # shares are exact over so many samples


class PairCorpus(Corpus):
    """Pairs of images by index: the degraded and the clean one as one uint8 array (h, w, 6), so that both are cropped alike.

    With ``outputs``, ``{name of the pair: path}`` of a teacher's restored images, these follow as channels 6 to 8.
    """

    def __init__(self, source, pairs):
        self.source, self.pairs, self.count, self.outputs = str(source), list(pairs), len(pairs), {}

    def read(self, index):
        pair = self.pairs[index]
        degraded, clean = read_rgb8(pair.degraded), read_rgb8(pair.clean)
        clean = clean[pair.border:clean.shape[0] - pair.border, pair.border:clean.shape[1] - pair.border]
        if degraded.shape != clean.shape:
            raise ImageError(f"{pair.degraded}: {degraded.shape[0]}x{degraded.shape[1]}, but {pair.clean} "
                             f"{clean.shape[0]}x{clean.shape[1]}")
        images = [degraded, clean]
        if self.outputs:
            images.append(to_8_bits(read_output(self.outputs[pair.name])))
            if images[2].shape != clean.shape:
                raise ImageError(f"{self.outputs[pair.name]}: {images[2].shape[0]}x{images[2].shape[1]}, but {pair.degraded} "
                                 f"{clean.shape[0]}x{clean.shape[1]}")
        return np.concatenate(images, axis=2)

    def names(self):
        for pair in self.pairs:
            yield " ".join(map(str, [pair.name, pair.degraded.stat().st_size, pair.clean.stat().st_size,
                                     *([self.outputs[pair.name].stat().st_size] if self.outputs else [])]))


class JoinedCorpus(Corpus):
    """Several corpora one after the other, or some of their images: ``places`` lists (corpus, index within it)."""

    def __init__(self, corpora, places=None):
        self.corpora, self.source = corpora, ", ".join(c.source for c in corpora)
        self.places = places or [(number, index) for number, c in enumerate(corpora) for index in range(c.count)]
        self.count = len(self.places)
        if any(c.blocks for c in corpora):          # what is quick to read together stays together, see restore.data.order
            homes = [(number, bisect.bisect(corpora[number].blocks or (0,), index)) for number, index in self.places]
            self.blocks = tuple(i for i, home in enumerate(homes) if i == 0 or home != homes[i - 1])

    def only(self, kept):
        """The same with those images alone."""
        return JoinedCorpus(self.corpora, [self.places[index] for index in kept])

    def raw(self, index):
        number, own = self.places[index]
        return self.corpora[number].raw(own)

    def names(self):
        for corpus in self.corpora:
            yield from corpus.names()
        yield f"{self.count} of them"


@dataclasses.dataclass
class Source:
    """One line of the mixture: the pairs of a task, or the clean images that it is made on.

    label: the task's name in the recipe, number: its place there. found: the :class:`restore.layouts.PairedSet` s. held: pairs, or
    places ``(corpus, index)`` of clean images, kept back for validation. donors: pairs whose degradation is put on the clean images.
    share: of the samples, exact over ``BLOCK`` of them.
    """
    label: str
    kind: str
    task: Task
    number: int
    corpus: Corpus
    paired: bool
    found: list
    held: list
    donors: Corpus | None = None
    weight: float = 0.0
    share: float = 0.0


def find_sources(recipe):
    """The sources of a recipe's mixture, recognised and counted; raises RestoreError naming the task and what is missing."""
    sources = []
    for number, (label, task) in enumerate(recipe.tasks.items()):
        kind = task.kind or label
        try:
            made = [make(label, kind, task, number) for make, given in ((_paired, task.pairs), (_clean, task.clean)) if given]
        except RestoreError as error:
            raise RestoreError(f"tasks.{label}: {error}") from None
        images = sum(s.corpus.count for s in made)
        total = task.weight if recipe.data.balance == "weights" else images * task.repeat
        for source in made:
            part = 1.0 if len(made) == 1 else 1 - task.synthetic if source.paired else task.synthetic
            source.weight = total * part
        if task.transplant:             # both were given, the pairs first
            made[1].donors = made[0].corpus
        sources += [s for s in made if s.weight > 0]
    for source, slots in zip(sources, _slots([s.weight for s in sources])):
        source.share = slots / BLOCK
    return sources


def _paired(label, kind, task, number):
    pairs, found = [], []
    for entry in as_list(task.pairs):
        result = open_pairs(entry, kind, "train")
        found.append(result)
        pairs += result.pairs
    pairs, held = _hold_out(pairs, 0 if task.validation else task.holdout, key=lambda p: p.clean)
    return Source(label, kind, task, number, PairCorpus(found[0].root, pairs), True, found, held)


def _clean(label, kind, task, number):
    corpus = JoinedCorpus([open_clean(entry) for entry in as_list(task.clean)])
    kept, held = _hold_out(list(range(corpus.count)), 0 if task.validation else task.holdout)
    return Source(label, kind, task, number, corpus.only(kept), False, [], [(corpus, index) for index in held])


def open_clean(entry):
    """A folder of images or of a paired set's clean side; else shards or a dataset, as pre-training takes them."""
    if Path(entry).is_dir():
        with contextlib.suppress(RestoreError):     # no loose images: then shards
            return Folder(entry, [os.path.relpath(path, entry) for path in find_clean(entry)])
    corpus = open_corpus(entry)
    if corpus.count is None:
        raise RestoreError(f"{entry}: a mixture needs clean images that can be counted, and a stream cannot")
    return corpus


def open_pairs(entry, kind, split):
    """The PairedSet of a recipe's entry: a folder or manifest, or a list of two folders (degraded, clean)."""
    task = "denoise" if kind == "camera" else kind if kind in TASKS else None
    if isinstance(entry, str):
        return find_pairs(entry, task, split)
    if len(entry) != 2:
        raise RestoreError(f"pairs: a list within the list holds two folders, degraded and clean, not {entry}")
    return pair_folders(*entry, task=task)


def as_list(value):
    """Recipes may give one path or a list of them."""
    return [value] if isinstance(value, str) else list(value)


def _hold_out(items, count, key=lambda item: item):
    """(kept, held back): ``count`` evenly spaced items go, and all that share their clean image; short sets keep theirs."""
    keys = sorted({key(item) for item in items})
    if not count or len(keys) < 5 * count:
        return items, []
    gone = {keys[(2 * i + 1) * len(keys) // (2 * count)] for i in range(count)}
    held = {key(item): item for item in reversed(items) if key(item) in gone}
    return [item for item in items if key(item) not in gone], [held[k] for k in sorted(gone)]


class Mixture:
    """Training samples of several sources in fixed shares; ``sample(k)`` depends on (seed, k) alone.

    Within each block of 1,024 samples every source has exactly its share, in an order of the block's own, and within a source
    every image comes once before any comes again.
    """

    def __init__(self, sources, patch, seed, cache_mb=256, device="cpu"):
        self.sources, self.patch, self.seed, self.device = sources, patch, seed, device
        self.counts = _slots([s.weight for s in sources])
        self.images = [CleanImages(s.corpus, _mixed(seed, i), cache_mb, device) for i, s in enumerate(sources)]
        self.donors = [s.donors and CleanImages(s.donors, _mixed(seed, len(sources) + i), cache_mb, device) for i, s in enumerate(sources)]

    def place(self, k):
        """``(index of the source, which of its samples)`` for sample ``k``."""
        block, place = divmod(k, BLOCK)
        numbers, earlier = _block(self.seed, block, self.counts)
        return int(numbers[place]), block * self.counts[int(numbers[place])] + int(earlier[place])

    def sample(self, k):
        number, own = self.place(k)
        source = self.sources[number]
        image, skipped = self.images[number].fetch(own)
        rng, generator = numpy_rng(self.seed, k), torch_generator(self.seed, k, self.device)
        context = 1 if source.paired else CONTEXT.get(source.kind, 1)
        part = self._view(image, source.task, context, rng)
        side = part.shape[-1]
        if source.task.gain and not source.paired:
            low, high = np.log(source.task.gain)
            part = (part * np.exp(rng.uniform(low, high))).clamp_(0, 1)
        if source.paired:
            images = part.split(3)
            if source.task.strength:
                images = vary_strength(*images[:2], rng.uniform(*source.task.strength)), *images[1:]
        elif source.donors and rng.random() < source.task.transplant:
            donor, more = self.donors[number].fetch(own)
            skipped = [*skipped, *more]
            pair = self._view(donor, source.task, context, rng)[:6]
            images = transplant_rain(part, *pair.split(3), rng), part
        else:
            images = degrade(source.kind, part, rng, generator, source.task), part
        degraded, clean, *teacher = images
        top, left = rng.integers(side - self.patch + 1, size=2)
        inner = (slice(None), slice(top, top + self.patch), slice(left, left + self.patch))
        sample = {"input": degraded[inner].contiguous(), "target": clean[inner].contiguous(), "task": source.number,
                  "skipped": "\n".join(skipped)}
        return {**sample, "teacher": teacher[0][inner].contiguous()} if teacher else sample

    def _view(self, image, task, context, rng):
        """A random square of an image, flipped and turned, ``context`` patches wide if it has so many pixels, one at least."""
        height, width = image.shape[-2:] if isinstance(image, torch.Tensor) else image.shape[:2]
        side = max(self.patch, min(context * self.patch, height, width))
        whole = side
        if task.shrink:                 # a wider view in as many pixels; mirroring would add nothing to see
            whole = max(side, min(int(side * rng.uniform(*task.shrink)), height, width))
        part = crop(image, whole, random_window(height, width, whole, rng))
        if whole > side:
            part = F.interpolate(part[None], (side, side), mode="bilinear", antialias=True)[0].clamp_(0, 1)
        return part


def _mixed(seed, number):
    """A seed of a source's own, so that two sources of equal length don't walk in step."""
    return int(np.random.SeedSequence([seed, number, 4]).generate_state(1)[0])


@functools.lru_cache(maxsize=4)
def _block(seed, block, counts):
    """For each place in a block of samples: the number of its source, and how many samples of that source come before it."""
    numbers = np.random.default_rng([seed, block, 5]).permutation(np.repeat(np.arange(len(counts)), counts))
    earlier = np.empty(BLOCK, int)
    for number, count in enumerate(counts):
        earlier[numbers == number] = np.arange(count)
    return numbers, earlier


def _slots(weights):
    """Samples of each source in a block: in proportion to ``weights``, by largest remainders, at least one each."""
    exact = np.array(weights, float) / sum(weights) * BLOCK
    slots = np.maximum(np.floor(exact), 1).astype(int)
    while slots.sum() < BLOCK:
        slots[np.argmax(exact - slots)] += 1
    while slots.sum() > BLOCK:
        slots[np.argmax(slots)] -= 1
    return tuple(map(int, slots))


def epoch_length(recipe, sources):
    """Samples in an epoch: the recipe's ``data.epoch``, or all images, each counted as often as the recipe repeats it."""
    repeats = [s.task.repeat if recipe.data.balance == "repeats" else 1 for s in sources]
    return recipe.data.epoch or sum(s.corpus.count * r for s, r in zip(sources, repeats))


def table(sources):
    """The mixture as lines of text: task, what it is made of, images or pairs, share; then what was left over."""
    rows = [("task", "source", "images", "held", "share")]
    for s in sources:
        what = ", ".join(str(f.root) for f in s.found) if s.paired else s.corpus.source
        rows.append((s.label if s.label == s.kind else f"{s.label} ({s.kind})", ("pairs: " if s.paired else "made on: ") + what,
                     str(s.corpus.count), str(len(s.held)), f"{s.share:.1%}"))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths))) for row in rows]
    for s in sources:
        for found in s.found:
            notes = [*found.problems(), *(f"not used: {other}" for other in found.skipped)]
            lines += [f"{s.label}: {found.root}: {found.layout}", *(f"  {note}" for note in notes)] if notes else []
    return "\n".join(lines)


def data_digest(sources):
    """SHA-256 over names and sizes of everything the mixture reads."""
    read = [(s.label, corpus) for s in sources for corpus in (s.corpus, s.donors) if corpus]
    return hashlib.sha256("\n".join(f"{label} {digest(corpus)}" for label, corpus in read).encode()).hexdigest()
