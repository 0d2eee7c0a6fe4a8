"""Training samples by number: sample k of a set depends on (seed, k) and on nothing else, and so does every batch.

The position in the data is therefore one number, the step. A resumed run asks for the next one and gets the samples
that an unbroken run would have had, with any number of workers and processes. (Skipping batches of a running loader,
the usual way, gives others.)
"""

import collections
import functools
import itertools
from typing import NamedTuple

import cv2
import numpy as np
import torch

from .errors import ImageError, RestoreError

ATTEMPTS = 64       # images tried in place of broken ones before a sample is given up


def numpy_rng(seed, k, purpose=0):
    """Random numbers for the choices of sample ``k``: crop, flips, strengths."""
    return np.random.default_rng([seed, k, purpose])


def torch_generator(seed, k, device="cpu"):
    """Random numbers for the pixels of sample ``k``: noise, masks, rain. Another kind of device has other numbers."""
    state = np.random.SeedSequence([seed, k, 1]).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(state >> np.uint64(1)))


class Window(NamedTuple):
    """A crop's place and turn, the same for each image of a pair: quarter ``turns``, then a left-right ``flip``."""
    top: int
    left: int
    turns: int
    flip: bool


def random_window(height, width, size, rng):
    """A random :class:`Window` of ``size`` in an image of that size, one of the eight orientations."""
    top, left = rng.integers(max(height - size, 0) + 1), rng.integers(max(width - size, 0) + 1)
    return Window(int(top), int(left), int(rng.integers(4)), bool(rng.integers(2)))


def crop(image, size, window):
    """The window of ``image`` as a float32 tensor (3, size, size) in [0, 1].

    image: uint8 array (h, w, 3), or a uint8 tensor (3, h, w), on any device, where the result then lies too. An image
    smaller than ``size`` is mirrored at the bottom and the right: enlarging it would teach blurred targets.
    """
    if isinstance(image, torch.Tensor):
        part = image[:, window.top:window.top + size, window.left:window.left + size]
        part = _mirror(part, size).rot90(window.turns, (1, 2))
        return (part.flip(2) if window.flip else part).contiguous().float().div_(255)
    part = image[window.top:window.top + size, window.left:window.left + size]
    down, right = size - part.shape[0], size - part.shape[1]
    if down or right:
        part = cv2.copyMakeBorder(part, 0, down, 0, right, cv2.BORDER_REFLECT_101)
    part = np.rot90(part, window.turns)
    part = part[:, ::-1] if window.flip else part
    return torch.from_numpy(np.ascontiguousarray(part.transpose(2, 0, 1))).float().div_(255)


def _mirror(part, size):
    """Tensors (3, h, w) mirrored to ``size`` as cv2's BORDER_REFLECT_101 does, for a side of one pixel too."""
    for axis in (1, 2):
        side = part.shape[axis]
        if side < size:
            wave = torch.arange(size, device=part.device) % max(2 * side - 2, 1)
            part = part.index_select(axis, torch.minimum(wave, max(2 * side - 2, 0) - wave) if side > 1 else wave)
    return part


class CleanImages:
    """The clean image of sample ``k``: a :class:`restore.corpus.Corpus` in random order, broken files replaced.

    cache_mb: bound of the decoded images kept in memory by each worker; it changes the speed and nothing else.
    device: where they are kept; on a GPU as tensors, so that cropping and degrading happen there.
    """

    def __init__(self, corpus, seed, cache_mb=256, device="cpu"):
        self.corpus, self.seed, self.device = corpus, seed, torch.device(device)
        self.on_device = self.device.type != "cpu"
        self.room = int(cache_mb * 1e6)
        self.kept, self.used = collections.OrderedDict(), 0

    def fetch(self, k):
        """``(image, skipped)``: a uint8 array (h, w, 3), a tensor (3, h, w) on a GPU, and the broken files met.

        Raises RestoreError when 64 files in a row cannot be read.
        """
        skipped = []
        for index in self._candidates(k):
            try:
                return self._read(index), skipped
            except ImageError as error:
                skipped.append(" ".join(str(error).split()))
        raise RestoreError(
            f"{self.corpus.source}: {len(skipped)} images in a row cannot be read, the first: {skipped[0]}"
        )

    def _candidates(self, k):
        """Indices to try for sample ``k``, in an order that only (seed, k) decides."""
        if self.corpus.count is None:               # a stream: the neighbours, which it still holds in memory
            yield from range(k, max(k - ATTEMPTS, -1), -1)
            yield from range(k + 1, k + ATTEMPTS - min(k, ATTEMPTS - 1))
            return
        yield order(self.seed, k, self.corpus.count, self.corpus.blocks)
        rng = numpy_rng(self.seed, k, 2)
        for _ in range(ATTEMPTS - 1):
            yield int(rng.integers(self.corpus.count))

    def _read(self, index):
        if index in self.kept:
            self.kept.move_to_end(index)
            return self.kept[index]
        image = self.corpus.read(index)
        if self.on_device:
            image = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).to(self.device)
        if image.nbytes <= self.room:
            self.kept[index], self.used = image, self.used + image.nbytes
            while self.used > self.room:
                self.used -= self.kept.popitem(last=False)[1].nbytes
        return image

    def __getstate__(self):                         # a worker starts with an empty memory
        return {**self.__dict__, "kept": collections.OrderedDict(), "used": 0}


def order(seed, k, count, blocks=None):
    """Index of the image for sample ``k``: every image once per pass over ``count`` images, in another order each time.

    blocks: first indices of groups of images that are quick to read together (a parquet row group). They are then
    shuffled as blocks, and images only among ``MIXED`` blocks at a time.
    """
    epoch, place = divmod(k, count)
    return int(_permutation(seed, epoch, count, blocks)[place])


MIXED = 8


@functools.lru_cache(maxsize=16)            # a mixture draws from several sets in turn
def _permutation(seed, epoch, count, blocks):
    rng = np.random.default_rng([seed, epoch, 3])
    if blocks is None:
        return rng.permutation(count).astype(np.int64)
    ends = (*blocks[1:], count)
    shuffled = [np.arange(blocks[b], ends[b]) for b in rng.permutation(len(blocks))]
    together = [np.concatenate(shuffled[i:i + MIXED]) for i in range(0, len(shuffled), MIXED)]
    return np.concatenate([rng.permutation(group) for group in together])


def batches(samples, batch_size, start_step=0, workers=0, rank=0, world=1, pin_memory=False):
    """Endless batches: step s on ``rank`` holds samples ``(s * world + rank) * batch_size ...``, whatever the workers.

    Yields dictionaries of stacked tensors, with ``skipped`` a list of strings. Raises what ``samples.sample`` raised.
    """
    from torch.utils.data import DataLoader
    device = getattr(samples, "device", torch.device("cpu"))

    loader = DataLoader(
        _Numbered(samples),
        batch_sampler=_Steps(batch_size, start_step, rank, world),
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=pin_memory and device.type == "cpu",
        prefetch_factor=4 if workers else None,
    )
    for batch in _sequential(loader, device) if workers == 0 else loader:
        if "error" in batch:
            raise batch["error"]
        yield batch


def _sequential(loader, device):
    """Batches made in this process on one thread, as in a worker: sums in another order would be other samples.

    On a GPU they are made on a stream of their own, so that a sample that goes to the CPU for its JPEG does not wait
    for the training step.
    """
    iterator = iter(loader)
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None
    while True:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with torch.cuda.stream(stream):
                batch = next(iterator)
        finally:
            torch.set_num_threads(threads)
        if stream is not None:
            torch.cuda.current_stream(device).wait_stream(stream)
            for value in batch.values():
                if isinstance(value, torch.Tensor) and value.is_cuda:
                    value.record_stream(torch.cuda.current_stream(device))
        yield batch


class _Steps:
    def __init__(self, batch_size, start_step, rank, world):
        self.batch_size, self.start_step, self.rank, self.world = batch_size, start_step, rank, world

    def __iter__(self):
        for step in itertools.count(self.start_step):
            first = (step * self.world + self.rank) * self.batch_size
            yield list(range(first, first + self.batch_size))


class _Numbered(torch.utils.data.Dataset):
    def __init__(self, samples):
        self.samples = samples

    def __getitem__(self, k):
        try:
            return self.samples.sample(k)
        except RestoreError as error:       # raised again where the batch is taken, without a worker's traceback
            return {"error": error}


def _collate(items):
    for item in items:
        if "error" in item:
            return item
    batch = {}
    for key in items[0]:
        values = [item[key] for item in items]
        batch[key] = (torch.stack(values) if isinstance(values[0], torch.Tensor)
                      else values if isinstance(values[0], str) else torch.tensor(values))
    return batch
