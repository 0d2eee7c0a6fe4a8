"""Validation pairs of a mixture: held-back or given images of every task, the same in every run."""

import sys
import zlib
from pathlib import Path

import numpy as np
import torch

from restore.errors import ImageError, RestoreError
from restore.validation import Pair

from .degrade import degrade
from .mixture import PairCorpus, as_list, open_clean, open_pairs


def validation_pairs(recipe, sources):
    """A list of :class:`restore.validation.Pair` for the training loop; ``denoise`` has one task for each noise level.

    Real pairs are used where a task has any, its clean images with a degradation seeded by their names otherwise. Broken files
    are passed over, on stderr.
    """
    made, told = [], set()
    for source in sorted(sources, key=lambda s: not s.paired):
        if source.label in told or not recipe.validation.images:
            continue
        items = _given(source) if source.task.validation else source.held
        if items:
            told.add(source.label)
        for item in _spread(items, recipe.validation.images):
            try:
                made += _pairs_of(source, item, recipe.validation.side)
            except (ImageError, ValueError) as error:
                print(f"tasks.{source.label}: not validated on: {error}", file=sys.stderr)
    return made


def _given(source):
    """What the recipe names for validation: pairs, or clean images where that task is made on them and no pairs are found."""
    items = []
    for entry in as_list(source.task.validation):
        try:
            items += open_pairs(entry, source.kind, "test").pairs
        except RestoreError as error:
            if source.paired:
                raise RestoreError(f"tasks.{source.label}.validation: {error}") from None
            corpus = open_clean(entry)
            items += [(corpus, index) for index in range(corpus.count)]
    return items


def _spread(items, count):
    return [items[i] for i in sorted({int(i) for i in np.linspace(0, len(items) - 1, count)})] if items else []


def centred_pairs(pairs, task, count, size):
    """At most ``count`` of ``pairs`` (:class:`restore.layouts.Pair`), evenly spread, as validation pairs of ``task``."""
    return [_centred_pair(pair, task, size) for pair in _spread(pairs, count)]


def _centred_pair(pair, task, size):
    both = _centre(PairCorpus("", [pair]).read(0), size)
    return Pair(pair.name, task, both[:3], both[3:])


def _pairs_of(source, item, size):
    if not isinstance(item, tuple):
        return [_centred_pair(item, source.label, size)]
    corpus, index = item
    name, clean = Path(corpus.raw(index)[0]).stem, _centre(corpus.read(index), size)
    task = source.task
    if source.kind != "denoise":
        return [Pair(name, source.label, _degraded(source.kind, clean, f"{name}:{source.kind}", task), clean)]
    levels = np.linspace(*task.sigma_range, 3) if task.sigma_range else task.sigmas
    made = []
    for sigma in levels:
        one = type(task)(sigmas=[float(sigma)], truncate=task.truncate)
        noisy = _degraded("denoise", clean, f"{name}:{sigma:g}", one)
        made.append(Pair(name, f"{source.label} {sigma:g}", noisy, clean))
    return made


def _degraded(kind, clean, name, task):
    seed = zlib.crc32(name.encode())
    return degrade(kind, clean, np.random.default_rng(seed), torch.Generator().manual_seed(seed), task)


def _centre(image, size):
    """The centre of uint8 (h, w, c) as a float tensor (c, h', w'), sides at most ``size`` (0: whole)."""
    height, width = image.shape[:2]
    rows, columns = (min(n, size) if size else n for n in (height, width))
    top, left = (height - rows) // 2, (width - columns) // 2
    part = image[top:top + rows, left:left + columns]
    return torch.from_numpy(np.ascontiguousarray(part.transpose(2, 0, 1))).float().div_(255)
