"""The run: every image of every entry through every competitor, scored, kept in the cache, and crops set aside.

Decoding and noise happen in one thread ahead of the networks, scoring in another behind them.
"""

import contextlib
import hashlib
import queue
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from ..errors import RestoreError
from .cost import warm_up
from .gallery import Crop, Gallery, cut, pack, photo, unpack, windows
from .inputs import checksum, inputs
from .protocol import score, to_float


@dataclass
class EntryResult:
    """What became of one entry. ``located`` is None where the set is absent; ``errors`` are images that have no score."""

    entry: object
    located: object
    crc: str = ""
    images: int = 0
    first: int | None = None
    errors: list = field(default_factory=list)
    notes: list = field(default_factory=list)

    @property
    def complete(self):
        """Whether every image of the complete set was read as it is published."""
        return bool(self.located) and self.located.complete and not self.errors and not self.notes \
            and self.images == len(self.located.items)

    @property
    def label(self):
        """How to call the set's state beside its numbers."""
        if not self.located:
            return "missing"
        if self.complete:
            return self.located.label
        if self.images < len(self.located.items):
            return f"partial, {self.images} of {self.located.set.count or len(self.located.items)}"
        return self.located.label if self.located.label != "complete" else "altered"


@dataclass
class Results:
    """Everything a report is made of; ``rows`` has one dict for each image, model and entry."""

    suite: object
    competitors: list
    entries: list
    rows: list = field(default_factory=list)
    galleries: dict = field(default_factory=dict)        # (model, entry key) -> Gallery
    memory: dict = field(default_factory=dict)           # model -> MiB
    failed: list = field(default_factory=list)           # lines: a model that failed on an image
    clock: dict = field(default_factory=dict)            # CPU seconds: network, own; wall seconds

    @property
    def ok(self):
        """Whether every image of every set that is here was scored and is what its set publishes."""
        bad = any(e.errors or e.notes or (e.located and (e.located.renamed or e.located.broken)) for e in self.entries)
        return not self.failed and not bad and any(e.images for e in self.entries)


def run(suite, located, competitors, cache, first=None, crops=10, progress=None):
    """Run ``suite`` on the sets in ``located`` (entry key to :class:`Located` or None) and return :class:`Results`.

    ``first`` takes only so many images of each set, by name. ``crops`` best and worst crops are kept for each model and
    entry. ``progress(text)`` is called once an image. A bad image or a failing model is recorded and the rest goes on.
    """
    results = Results(suite, competitors, [EntryResult(e, located[e.key], first=first) for e in suite.entries])
    clock = _Clock()
    with ThreadPoolExecutor(1) as scorer:
        for image_set in dict.fromkeys(result.entry.set.key for result in results.entries if result.located):
            _run_set([result for result in results.entries if result.entry.set.key == image_set], results, cache, first, crops,
                     progress, scorer, clock)
    order = [result.entry.key for result in results.entries]
    results.rows.sort(key=lambda row: order.index(row["entry"]))
    results.clock = clock.read()
    return results


def _run_set(of_set, results, cache, first, crops, progress, scorer, clock):
    """All entries of one set, image by image, so that an image is read once for all noise levels."""
    protocol, by_key = results.suite.protocol, {result.entry.key: result for result in of_set}
    results.galleries |= {(c.name, key): Gallery(crops) for key in by_key for c in results.competitors}
    keys = {place: [] for place in results.galleries}
    pending, crc = [], dict.fromkeys(by_key, 0)
    images = inputs([result.entry for result in of_set], of_set[0].located, protocol, first)
    with contextlib.closing(_ahead(images, clock, bool(cache.folder))) as images:
        for entry, image in images:
            result = by_key[entry.key]
            if image.error:
                result.errors.append(image.error)
                continue
            result.images += 1
            crc[entry.key] = checksum(image, crc[entry.key])
            if image.note:
                result.notes.append(image.note)
            for competitor in results.competitors:
                pending += _run_image(competitor, image, result, results, cache, scorer, clock, keys)
                while len(pending) > 3:
                    _collect(pending.pop(0), results)
            if progress:
                progress(f"{entry.key} {image.name}")
    for item in pending:
        _collect(item, results)
    for key, result in by_key.items():
        result.crc = f"{crc[key]:08x}"
        expected = result.entry.set.crc32.get(f"{protocol.name}-{result.entry.sigma or 0:g}", result.crc)
        if result.complete and result.crc != expected:
            result.notes.append(f"not the published pixels: the inputs' crc32 is {result.crc}, the published set's {expected}")
        for competitor in results.competitors:
            _fill(results.galleries[competitor.name, key], competitor, result.entry, cache, keys[competitor.name, key])


def _run_image(competitor, image, result, results, cache, scorer, clock, keys):
    """At most one ``(competitor, image, entry result, record or its future)``."""
    try:
        key = cache.key(competitor, result.entry, results.suite.protocol, image)
        record = cache.get(key)
        if record is None:
            if competitor.runs and competitor.name not in results.memory:
                with clock.apart():
                    results.memory[competitor.name] = warm_up(competitor, image, result.entry)
            with clock.network():
                restored, seconds = competitor.restore(image, result.entry)
            record = scorer.submit(_score, restored, seconds, image, results.suite.protocol, cache, key,
                                   results.galleries[competitor.name, result.entry.key], clock)
    except Exception as error:  # noqa: BLE001  somebody's network or function may raise anything; the others go on
        results.failed.append(f"{competitor.name} on {result.entry.key} {image.name}: {_line(error)}")
        return []
    keys[competitor.name, result.entry.key].append(key)
    return [(competitor, image, result, record)]


def _score(restored, seconds, image, protocol, cache, key, gallery, clock):
    """``(record, [best crop or None, worst crop or None])`` of one restored image; runs in the scoring thread."""
    with clock.own():
        scores = score(restored, image.clean, protocol)
        levels = restored if restored.dtype == np.uint8 else np.rint(to_float(restored) * 255).astype(np.uint8)
        record = {"scores": scores, "seconds": seconds}
        crops = []
        if image.clean is None:
            crops = [photo(image.name, image, levels)] if len(gallery.best) < gallery.count else []
        elif gallery.count and (found := windows(image.degraded, levels, image.clean)):
            record["windows"] = found
            keep = gallery.wants(*(window[0] for window in found))
            crops = [cut(image.name, window, image, levels) if k else None for window, k in zip(found, keep)]
        cache.put(key, record)
    return record, crops


def _collect(item, results):
    competitor, image, result, record = item
    gallery = results.galleries[competitor.name, result.entry.key]
    try:
        record, crops = (record, _known_crops(gallery, record, image)) if isinstance(record, dict) else record.result()
    except RestoreError:
        raise
    except Exception as error:  # noqa: BLE001  such as an output of another size
        results.failed.append(f"{competitor.name} on {result.entry.key} {image.name}: {_line(error)}")
        return
    gallery.offer(*crops)
    height, width = image.degraded.shape[:2]
    entry = result.entry
    results.rows.append({"model": competitor.name, "entry": entry.key, "image": image.name, "sigma": entry.sigma,
                         "height": height, "width": width, **record["scores"],
                         "milliseconds": record["seconds"] * 1000 if competitor.runs else None})


def _known_crops(gallery, record, image):
    """Crops of a result from the cache: where they are is known, the restored pixels are filled in later."""
    if image.clean is None:
        return [Crop(image.name, None, (), source=image)] if len(gallery.best) < gallery.count else []
    found = record.get("windows") or []
    keep = gallery.wants(*(window[0] for window in found)) if found else []
    return [Crop(image.name, window[0], tuple(window[1:]), source=image) if k else None for window, k in zip(found, keep)]


def _fill(gallery, competitor, entry, cache, keys):
    """Give every crop its pixels: from the cache where the same gallery was made before, else by running the network."""
    crops = [*gallery.best, *gallery.worst]
    if not crops:
        return
    key = hashlib.sha256("\n".join([*keys, str(gallery.count)]).encode()).hexdigest()[:40]
    if all(crop.restored is not None for crop in crops):
        cache.put(key, {"scores": {}, "best": [pack(c) for c in gallery.best], "worst": [pack(c) for c in gallery.worst]})
        return
    known = cache.get(key)
    if known:
        gallery.best, gallery.worst = ([unpack(c) for c in known[side]] for side in ("best", "worst"))
        return
    outputs = {}
    for crop in crops:
        if crop.restored is None:
            if crop.name not in outputs:
                restored, _ = competitor.restore(crop.source, entry)
                outputs[crop.name] = np.rint(to_float(restored) * 255).astype(np.uint8)
            filled = cut(crop.name, (crop.gain, *crop.box), crop.source, outputs[crop.name]) if crop.box else \
                photo(crop.name, crop.source, outputs[crop.name])
            vars(crop).update(vars(filled))
    cache.put(key, {"scores": {}, "best": [pack(c) for c in gallery.best], "worst": [pack(c) for c in gallery.worst]})


def _ahead(images, clock, digests, depth=3):
    """``(entry, image)`` of ``images``, prepared in a thread of its own, at most ``depth`` ahead."""
    ready, stop = queue.Queue(depth), threading.Event()

    def offer(item):
        while not stop.is_set():
            with contextlib.suppress(queue.Full):
                ready.put(item, timeout=0.1)
                return

    def work():
        try:
            while not stop.is_set():
                with clock.own():
                    item = next(images, None)
                    if item is not None and digests and not item[1].error:
                        item[1].digest  # noqa: B018  computed here, ahead of the network
                if item is None:
                    break
                offer(item)
            offer(None)
        except BaseException as error:  # noqa: BLE001  raised again in the main thread
            offer(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        thread.join()


class _Clock:
    """CPU seconds of the networks and of the benchmark itself, and wall seconds."""

    def __init__(self):
        self.lock = threading.Lock()
        self.seconds = {"own": 0.0, "main": 0.0, "apart_cpu": 0.0, "apart_wall": 0.0, "network_wall": 0.0}
        self.start = (time.process_time(), time.perf_counter(), time.thread_time())

    def _add(self, name, seconds):
        with self.lock:
            self.seconds[name] += seconds

    @contextlib.contextmanager
    def own(self):
        """Around the benchmark's own work in another thread than the main one."""
        start = time.thread_time()
        yield
        self._add("own", time.thread_time() - start)

    @contextlib.contextmanager
    def network(self):
        """Around a network's call in the main thread."""
        start, wall = time.thread_time(), time.perf_counter()
        yield
        self._add("main", time.thread_time() - start)
        self._add("network_wall", time.perf_counter() - wall)

    @contextlib.contextmanager
    def apart(self):
        """Around a warm-up, which counts neither as the network's nor as the benchmark's."""
        start = (time.process_time(), time.perf_counter(), time.thread_time())
        yield
        self._add("apart_cpu", time.process_time() - start[0])
        self._add("apart_wall", time.perf_counter() - start[1])
        self._add("main", time.thread_time() - start[2])

    def read(self):
        """``{"network": CPU s, "own": CPU s, "wall": s, "network_wall": s}`` since the start, warm-ups left out."""
        own = self.seconds["own"] + time.thread_time() - self.start[2] - self.seconds["main"]
        total = time.process_time() - self.start[0] - self.seconds["apart_cpu"]
        return {"own": own, "network": max(0.0, total - own), "network_wall": self.seconds["network_wall"],
                "wall": time.perf_counter() - self.start[1] - self.seconds["apart_wall"]}


def _line(error):
    text = " ".join(str(error).split()) or type(error).__name__
    return text if isinstance(error, (RestoreError, ValueError)) else f"{type(error).__name__}: {text}"
