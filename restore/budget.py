"""The best depth within a budget of time, arithmetic or memory, and how long an image will take.

Time is measured once for each device, network, depth and precision on a 256 x 256 image and kept in the user's cache
folder; other sizes follow by their multiply-accumulates. "Best" is what the checkpoint's own validation says.
"""

import hashlib
import json
import os
import platform
import re
import sys
import time
import weakref
from dataclasses import dataclass
from pathlib import Path

from .depth import format_depth, macs_of_sizes
from .errors import RestoreError
from .files import write_bytes

SIDE = 256                                   # of the image that is timed
_counted = weakref.WeakKeyDictionary()       # network -> {repeats: its MACs as a function of the size}
_measured = {}                               # what could not be written to the cache
_UNITS = {"ms": ("seconds", 1e-3), "s": ("seconds", 1), "min": ("seconds", 60),
          "mmacs": ("macs", 1e6), "gmacs": ("macs", 1e9), "tmacs": ("macs", 1e12),
          "kb": ("bytes", 1e3), "mb": ("bytes", 1e6), "gb": ("bytes", 1e9),
          "kib": ("bytes", 2**10), "mib": ("bytes", 2**20), "gib": ("bytes", 2**30)}


@dataclass(frozen=True)
class Budget:
    """``limit`` of ``kind``: ``"seconds"`` and ``"macs"`` for one image, ``"bytes"`` for the network's tensors at work."""

    kind: str
    limit: float
    text: str


def parse_budget(text):
    """``"200ms"``, ``"1.5s"``, ``"20gmacs"`` or ``"1GB"`` as a :class:`Budget`; raises :class:`RestoreError`."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]+)\s*", str(text), re.IGNORECASE)
    if not match or match[2].lower() not in _UNITS or not float(match[1]):
        raise RestoreError(f"budget {text!r}: give time, arithmetic or memory, such as 200ms, 20gmacs or 1GB")
    kind, scale = _UNITS[match[2].lower()]
    return Budget(kind, float(match[1]) * scale, str(text))


def choose_depth(restorer, budget, height, width):
    """The name of the best depth of ``restorer.model`` whose cost for a ``height`` x ``width`` image is within ``budget``.

    The best is the one with the highest mean PSNR in the checkpoint's validation; without such numbers, the one with
    the most multiply-accumulates. ``budget`` is a :class:`Budget` or its text. Raises :class:`RestoreError` for a network
    of one depth, or if no depth fits; the message tells what the cheapest costs.
    """
    budget = budget if isinstance(budget, Budget) else parse_budget(budget)
    model = restorer.model
    if not model.depths:
        raise RestoreError(f"depth auto: {model.name} has one fixed depth")
    costs = {name: cost(restorer.at(name), budget.kind, height, width) for name in model.depths}
    return best_within(model, costs, budget, height, width)


def best_within(model, costs, budget, height, width):
    """:func:`choose_depth` where the ``costs`` of the depths, by name and of the budget's kind, are known already."""
    fitting = [name for name in costs if costs[name] <= budget.limit]
    if not fitting:
        cheapest = min(costs, key=costs.get)
        raise RestoreError(f"budget {budget.text}: no depth fits; for {width} x {height} pixels the cheapest, {cheapest}, takes "
                           f"{_readable(budget.kind, costs[cheapest])}")
    return max(fitting, key=lambda name: quality(model, name))


def quality(model, name):
    """``(validated mean PSNR or -inf, MACs)`` of a named depth: what depths are ranked by."""
    scores = model.provenance.get("psnr", {}).get(name)
    mean = scores.get("mean", float("-inf")) if isinstance(scores, dict) else float("-inf")
    return mean, macs(model, 64, 64, name)


def cost(restorer, kind, height, width):
    """What one image takes with ``restorer`` at its depth: ``"seconds"``, ``"macs"`` or ``"bytes"``."""
    if kind == "macs":
        return macs(restorer.model, height, width, restorer.depth)
    if kind == "bytes":
        fixed, per_pixel = restorer.footprint()
        tall, wide = restorer.tile(height, width)
        return fixed + per_pixel * tall * wide
    return seconds(restorer, height, width)


def seconds(restorer, height, width):
    """Seconds that one image will take: measured at 256 x 256 (and remembered), in proportion to the tiles' MACs."""
    tall, wide = restorer.tile(height, width)
    model, depth = restorer.model, restorer.depth
    work = macs(model, tall, wide, depth) * restorer.count_tiles(height, width)
    return measured_seconds(restorer) * work / macs(model, SIDE, SIDE, depth)


def macs(model, height, width, depth=None):
    """What :func:`restore.depth.count_macs` gives, remembered for each network: an inference network does not change."""
    known = _counted.setdefault(model, {})
    repeats = model.repeats(depth)
    if repeats not in known:
        known[repeats] = macs_of_sizes(model, repeats or None)
    return known[repeats](height, width)


def measured_seconds(restorer):
    """Seconds of a 256 x 256 image with ``restorer``: from the cache, or measured now and put there."""
    key, path = _key(restorer), cache_folder() / "seconds.json"
    known = {**_read(path), **_measured}
    if key not in known:
        import torch
        image = torch.rand(3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
        times = []
        for _ in range(3):
            begun = time.perf_counter()
            restorer.restore(image)
            times.append(time.perf_counter() - begun)
            if sum(times) > 10:
                break
        known = {**_read(path), key: min(times)}
        try:
            write_bytes(path, json.dumps(known, indent=1, sort_keys=True) + "\n")
        except OSError:                      # a read-only home: measured again by the next process
            _measured[key] = known[key]
    return known[key]


def cache_folder():
    """Where measurements are kept: ``ANYDEPTH_CACHE``, or a folder in the system's place for caches."""
    if "ANYDEPTH_CACHE" in os.environ:
        return Path(os.environ["ANYDEPTH_CACHE"])
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "anydepth"


def _key(restorer):
    import torch
    device = restorer.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{_processor()} x{torch.get_num_threads()}"
    config = hashlib.sha256(json.dumps(restorer.model.config, sort_keys=True).encode()).hexdigest()[:12]
    depth = format_depth(restorer.depth) or "fixed"
    return f"{name} | torch {torch.__version__} | {restorer.model.name} {config} | {depth} | {restorer.precision} | {restorer.runtime}"


def _processor():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _read(path):
    try:
        known = json.loads(path.read_text())
    except (OSError, ValueError):            # not there yet, or damaged: it is only a cache
        return {}
    return known if isinstance(known, dict) else {}


def _readable(kind, value):
    if kind == "seconds":
        return readable_seconds(value)
    return f"{value / 1e9:.3g} {'GMACs' if kind == 'macs' else 'GB'}"


def readable_seconds(value):
    """``0.0123`` as ``"12 ms"``, ``75`` as ``"1.2 min"``."""
    if value < 1:
        return f"{value * 1e3:.0f} ms"
    return f"{value:.1f} s" if value < 60 else f"{value / 60:.1f} min" if value < 5400 else f"{value / 3600:.1f} h"
