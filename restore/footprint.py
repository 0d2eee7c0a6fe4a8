"""Memory: what there is, and what a network needs for an image of a given size."""

import copy
import os
import re
import sys
import weakref
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .errors import RestoreError

_UNITS = {"": 1, "B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_CGROUPS = (("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat"),
            ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes",
             "/sys/fs/cgroup/memory/memory.stat"))


def parse_memory(text):
    """Bytes from ``"2GB"``, ``"512MiB"``, ``"unlimited"`` or a number of bytes; raises :class:`RestoreError`."""
    if str(text).strip().lower() in ("unlimited", "inf"):
        return float("inf")
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?(?:e\d+)?)\s*([a-z]*)\s*", str(text), re.IGNORECASE)
    if not match or match[2].upper() not in _UNITS or not float(match[1]):
        raise RestoreError(f"memory {text!r}: give a size such as 2GB or 512MB, or 'unlimited'")
    return float(match[1]) * _UNITS[match[2].upper()]


def available_memory():
    """Bytes of main memory that this process may still take: of the machine, or of its container if that is less."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        free = _physical_memory() // 2       # not Linux: nothing portable says more
    for limit, used, stat in _CGROUPS:
        try:
            cap, taken = int(Path(limit).read_text()), int(Path(used).read_text())
            cache = re.search(r"^(?:total_)?inactive_file (\d+)", Path(stat).read_text(), re.MULTILINE)
            free = min(free, cap - taken + (int(cache[1]) if cache else 0))
        except (OSError, ValueError):        # no such group, or its limit is "max"
            continue
    return max(0, free)


def measure(model, depth, *sides):
    """``(bytes, bytes per pixel)`` that ``model(x, depth)`` takes at its peak beyond its weights and ``x``.

    Nothing is computed: on a copy of the network without storage, the tensors of two runs on square images are
    counted as they would live and die, and a line is laid through the two peaks.
    """
    shapes = {}
    for module in model.modules():
        for value in tree_leaves(list(vars(module).values())):             # its parameters, buffers and plain tensors
            if torch.is_tensor(value):
                bare = torch.empty_like(value, device="meta")
                shapes[id(value)] = torch.nn.Parameter(bare) if isinstance(value, torch.nn.Parameter) else bare
    hollow, peaks = copy.deepcopy(model, shapes), []
    for side in sides:
        x = torch.empty(1, 3, side, side, device="meta")
        with torch.no_grad(), _Live() as live:
            hollow(x, depth)
        peaks.append(live.peak)
    (small, large), (low, high) = sides, peaks
    slope = max(0.0, (high - low) / (large**2 - small**2))
    return max(0.0, low - slope * small**2), slope


class _Live(TorchDispatchMode):
    """Counts the bytes of the tensors made inside and still alive, storage by storage."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.holders = {}                    # storage -> how many tensors look at it

    @classmethod
    def _should_skip_dynamo(cls):
        """No: torch would import its compiler (and sympy, 2 s) to keep it out of here, where nothing is compiled."""
        return False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {_storage(leaf) for leaf in tree_leaves((args, kwargs)) if torch.is_tensor(leaf)}
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if not torch.is_tensor(leaf):
                continue
            where, size = _storage(leaf), leaf.untyped_storage().nbytes()
            if where in self.holders:
                self.holders[where] += 1
            elif where in given:             # a view of a weight, or of what came in
                continue
            else:
                self.holders[where] = 1
                self.now += size
                self.peak = max(self.peak, self.now)
            weakref.finalize(leaf, self._gone, where, size).atexit = False
        return out

    def _gone(self, where, size):
        self.holders[where] -= 1
        if not self.holders[where]:
            del self.holders[where]
            self.now -= size


def _storage(tensor):
    return tensor.untyped_storage()._cdata


def _physical_memory():
    if sys.platform == "win32":
        return 8 << 30
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
