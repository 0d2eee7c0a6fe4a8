"""The networks, each loaded once for everybody, and the queue in which they work."""

import threading
import time
from bisect import bisect_right
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path

from ..budget import best_within, macs, parse_budget, readable_seconds, seconds
from ..depth import count_parameters, format_depth
from ..errors import RestoreError
from ..restorer import Restorer
from ..tiling import shares

_TRIAL = 96                                  # pixels a side of the image on which it is seen how a tile's time passes


class Cancelled(Exception):
    """The user does not want the result any more."""


class Job:
    """One piece of work: what the page shows of it, and the flag that ends it.

    ``fraction`` is the done share in [0, 1], ``tile`` and ``tiles`` count from 1; ``begun`` is None while it waits.
    ``timing`` is whether it is no user's but times a network.
    """

    def __init__(self, what, expected=None, timing=False):
        self.what, self.expected, self.timing = what, expected, timing       # expected: seconds in all, or None
        self.begun, self.fraction, self.tile, self.tiles = None, 0.0, 1, 1
        self.future = None
        self._cancelled = threading.Event()

    def cancel(self):
        """End it: at once if it still waits, else with the next block of the network."""
        self._cancelled.set()
        if self.future is not None:
            self.future.cancel()

    def check(self):
        """Raise :class:`Cancelled` if it was."""
        if self._cancelled.is_set():
            raise Cancelled

    @property
    def cancelled(self):
        return self._cancelled.is_set()

    @property
    def done(self):
        return self.future is not None and self.future.done()

    def remaining(self):
        """Seconds still to go, or None while nobody can tell."""
        if self.begun is None:
            return None
        passed = time.perf_counter() - self.begun
        if self.fraction > 0.1:
            return passed * (1 - self.fraction) / self.fraction
        return None if self.expected is None else max(0.0, self.expected - passed)


class Queue:
    """One worker: first come, first served. A page has one job at a time, so nobody can push in."""

    def __init__(self):
        self._worker = ThreadPoolExecutor(1)
        self._jobs = []
        self._lock = threading.Lock()

    def submit(self, job, function, *args):
        """Let ``function(*args)`` wait for its turn as ``job``; its ``future`` has the result."""
        def work():
            job.check()
            job.begun = time.perf_counter()
            return function(*args)

        with self._lock:
            self._jobs.append(job)
        job.future = self._worker.submit(work)
        job.future.add_done_callback(lambda _: self._forget(job))
        return job

    def ahead(self, job):
        """``(jobs that come before this one, the seconds that those will take as far as that is known)``."""
        with self._lock:
            before = self._jobs[:self._jobs.index(job)] if job in self._jobs else []
        return before, sum(other.remaining() or (other.expected if other.begun is None else 0) or 0 for other in before)

    def close(self):
        """Cancel everything and wait for the worker to notice."""
        with self._lock:
            jobs = list(self._jobs)
        for job in jobs:
            job.cancel()
        self._worker.shutdown(wait=True, cancel_futures=True)

    def _forget(self, job):
        with self._lock:
            self._jobs.remove(job)


@dataclass(frozen=True)
class DepthCost:
    """What one depth takes for one photo. ``name`` is None for a network of one depth, ``seconds`` until they are measured."""

    name: str | None
    repeats: str | None
    macs: int
    seconds: float | None


class Engine:
    """Networks by name (bundled, or a path), at each depth; ``options`` are those of :class:`restore.restorer.Restorer`.

    The first network is loaded at once, so that a wrong path ends the program before anybody sees the page, the others when they
    are chosen.
    """

    def __init__(self, models, **options):
        self.models, self._options = list(models), options
        self._restorers, self._measured = {}, set()
        self._lock = threading.Lock()
        self.queue = Queue()
        self.restorer(self.models[0], None)

    def restorer(self, model, depth):
        """The :class:`Restorer` of ``model`` at ``depth``, made on first use."""
        with self._lock:
            if (model, None) not in self._restorers:
                restorer = Restorer(model, **self._options)
                if restorer.device.type == "cpu":                # on a GPU a tile is done before one could cancel it
                    for module in restorer.network.modules():
                        module.register_forward_pre_hook(_tick)
                self._restorers[model, None] = restorer
            if (model, depth) not in self._restorers:
                self._restorers[model, depth] = self._restorers[model, None].at(depth)
            return self._restorers[model, depth]

    def depths(self, model):
        """The named depths of ``model`` from the cheapest to the dearest; ``[None]`` for a network of one depth."""
        network = self.restorer(model, None).model
        return sorted(network.depths, key=lambda name: macs(network, 64, 64, name)) or [None]

    def default_depth(self, model):
        """The depth that ``model`` is run at unless another is asked for, as its name."""
        return self.restorer(model, None).model.default_depth if self.depths(model) != [None] else None

    def parameters(self, model):
        """Trainable numbers of ``model``."""
        return count_parameters(self.restorer(model, None).model)

    def costs(self, model, height, width):
        """A :class:`DepthCost` for each of :meth:`depths`, for a photo of this size."""
        network = self.restorer(model, None).model
        return [DepthCost(name, format_depth(network.repeats(name)) or None, macs(network, height, width, name),
                          self.expected(model, name, height, width)) for name in self.depths(model)]

    def expected(self, model, depth, height, width):
        """Seconds that a photo of this size should take, None before :meth:`measure`."""
        return seconds(self.restorer(model, depth), height, width) if model in self._measured else None

    def measure(self, model):
        """Time ``model`` at each depth, or remember it from an earlier run (:mod:`restore.budget`); takes seconds."""
        if model not in self._measured:
            for name in self.depths(model):
                seconds(self.restorer(model, name), 256, 256)
            self._measured.add(model)

    def choose(self, model, limit, height, width):
        """The best depth of ``model`` that restores a photo of this size within ``limit`` seconds; raises :class:`RestoreError`."""
        depths = self.depths(model)
        if depths == [None]:
            return None
        costs = {name: seconds(self.restorer(model, name), height, width) for name in depths}
        fastest = min(costs, key=costs.get)
        if costs[fastest] > limit:
            raise RestoreError(f"No depth restores this photo within {limit:g} s; the fastest, {fastest}, takes about "
                               f"{readable_seconds(costs[fastest])}")
        return best_within(self.restorer(model, None).model, costs, parse_budget(f"{limit:g}s"), height, width)

    def run(self, restorer, pixels, job):
        """``restorer.restore(pixels)`` with the progress in ``job``; raises :class:`Cancelled` soon after its cancelling."""
        tiles = shares(*restorer.cuts(*pixels.shape[1:]))
        passed = _tick_times(restorer)
        work, ends = sum(computed for computed, _ in tiles), list(accumulate(advanced for _, advanced in tiles))
        job.tiles, done = len(tiles), 0

        def advance(ticks):
            at = min(bisect_right(ends, done + 0.5), len(tiles) - 1)         # the tile that is at work
            before = sum(computed for computed, _ in tiles[:at])
            share = passed[min(ticks, len(passed) - 1)]
            job.tile = at + 1
            job.fraction = max(job.fraction, 1.0 if done + 0.5 > ends[-1] else (before + share * tiles[at][0]) / work)

        def progress(count):
            nonlocal done
            done += count
            _here.ticks = 0
            advance(0)
            job.check()

        def tick():
            job.check()
            _here.ticks += 1
            advance(_here.ticks)

        _here.ticks, _here.tick = 0, tick
        try:
            return restorer.restore(pixels, progress)
        finally:
            _here.tick = None

    def close(self):
        """Cancel what is at work and wait for its end."""
        self.queue.close()


_here = threading.local()                    # of the worker: what each module of the network calls before it runs


def _tick(module, inputs):
    tick = getattr(_here, "tick", None)
    if tick is not None:
        tick()


@lru_cache(64)
def _tick_times(restorer):
    """When the modules are called for one tile at this depth, as shares of its time in [0, 1): tried on a small one."""
    import torch
    begun = time.perf_counter()
    times = [begun]
    _here.tick = lambda: times.append(time.perf_counter())
    try:
        restorer.restore(torch.zeros(3, _TRIAL, _TRIAL))
    finally:
        _here.tick = None
    whole = time.perf_counter() - begun
    return [(moment - begun) / whole for moment in times]


def label(model):
    """How the page names a model: a bundled name as it is, of a path the end."""
    path = Path(str(model))
    return path.parent.name + "/" + path.name if len(path.parts) > 1 else path.name
