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

    A copy of the network runs on two square images, and hardly anything is computed: what binds is replaced by a tensor of
    the result's size that nobody writes to. The tensors are counted as they live and die, and a line is laid through the two
    peaks. The copy of a network on an accelerator is on the meta device, so that autocast treats it alike; for a CPU it is not,
    since torch imports its compiler for that device, which takes longer than restoring a small photo.
    """
    device = "meta" if any(weight.device.type != "cpu" for weight in model.parameters()) else "cpu"
    shapes = {}
    for module in model.modules():
        for value in tree_leaves(list(vars(module).values())):             # its parameters, buffers and plain tensors
            if torch.is_tensor(value):
                bare = torch.empty_like(value, device=device)
                shapes[id(value)] = torch.nn.Parameter(bare) if isinstance(value, torch.nn.Parameter) else bare
    hollow, peaks = copy.deepcopy(model, shapes), []
    for side in sides:
        x = torch.empty(1, 3, side, side, device=device)
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
        """No: torch would import its compiler to keep it out of here, where nothing is compiled."""
        return False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = _STAND_INS.get(func, func)(*args, **(kwargs or {}))
        for leaf in out if isinstance(out, (tuple, list)) else (out,):
            if not torch.is_tensor(leaf):
                continue
            where, size = _storage(leaf), leaf.untyped_storage().nbytes()
            if where in self.holders:
                self.holders[where] += 1
            elif where in {_storage(given) for given in tree_leaves((args, kwargs)) if torch.is_tensor(given)}:
                continue                     # a view of a weight, or of what came in
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


def _elementwise(operator):
    def stand_in(x, *others, **options):
        if all(_fits(other, x) for other in others if torch.is_tensor(other)):
            return torch.empty_like(x)
        return operator(x, *others, **options)

    return stand_in


def _fits(other, x):
    """Whether ``x`` and ``other`` together have the shape and the type of ``x``."""
    sides = zip(reversed(other.shape), reversed(x.shape), strict=False)
    return other.dtype == x.dtype and other.ndim <= x.ndim and all(side in (1, full) for side, full in sides)


def _in_place(x, *others, **options):
    return x


def _into(*operands, out, **options):
    return out


def _clone(x, memory_format=torch.preserve_format):
    return torch.empty_like(x, memory_format=memory_format)


def _layer_norm(x, shape, *rest):
    mean, deviation = (x.new_empty(*x.shape[:-len(shape)], *(1 for _ in shape)) for _ in range(2))
    return torch.empty_like(x, memory_format=torch.contiguous_format), mean, deviation


def _matrices(a, b):
    return a.new_empty(*a.shape[:-1], b.shape[-1])


def _added_matrices(added, a, b, **scales):
    return _matrices(a, b)


def _convolution(x, weight, bias, stride, padding, dilation, transposed, output_padding, groups):
    if transposed or x.ndim != 4:
        return _ATEN.convolution(x, weight, bias, stride, padding, dilation, transposed, output_padding, groups)
    sides = [(side + 2 * beyond - step * (kernel - 1) - 1) // move + 1 for side, beyond, step, kernel, move
             in zip(x.shape[2:], padding, dilation, weight.shape[2:], stride, strict=True)]
    last = any(t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous() for t in (x, weight))
    return torch.empty(len(x), len(weight), *sides, dtype=x.dtype, device=x.device,
                       memory_format=torch.channels_last if last else torch.contiguous_format)


_ATEN = torch.ops.aten
# a result of the same size, type and layout for what takes time; the rest is cheap enough to be computed
_STAND_INS = {
    **{operator: _elementwise(operator) for operator in (
        _ATEN.add.Tensor, _ATEN.sub.Tensor, _ATEN.mul.Tensor, _ATEN.div.Tensor, _ATEN.clamp_min.default, _ATEN.gelu.default,
        _ATEN.relu.default, _ATEN.leaky_relu.default, _ATEN.sigmoid.default, _ATEN._softmax.default)},
    **dict.fromkeys((_ATEN.copy_.default, _ATEN.add_.Tensor, _ATEN.mul_.Tensor), _in_place),
    **dict.fromkeys((_ATEN.mm.out, _ATEN.addmm.out, _ATEN.bmm.out), _into),
    **dict.fromkeys((_ATEN.mm.default, _ATEN.bmm.default), _matrices),
    **dict.fromkeys((_ATEN.addmm.default, _ATEN.baddbmm.default), _added_matrices),
    _ATEN.clone.default: _clone,
    _ATEN.native_layer_norm.default: _layer_norm,
    _ATEN.convolution.default: _convolution,
}


def _storage(tensor):
    return tensor.untyped_storage()._cdata


def _physical_memory():
    if sys.platform == "win32":
        return 8 << 30
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
