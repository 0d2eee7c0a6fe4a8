"""How fast a network runs beside what the machine can do: its matrix products and its memory, measured in the same run.

Everything that is compared is timed in turn, round by round, so that what else the machine does falls on all alike, and
the best round counts. On a CPU with one thread the clock is the processor time of the process, with any thread that a
runtime starts: other work hardly disturbs it.
"""

import contextlib
import importlib.util
import inspect
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from .errors import RestoreError
from .memory import release_freed_memory

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Timing:
    """``seconds``: of the best round. ``peak``: bytes that the process (on CUDA: the device) held at most, or None where
    the system does not tell. ``traffic``: bytes that the network's leaf modules read and write, or None if unknown.
    """

    seconds: float
    peak: int | None
    traffic: int | None = None


class Clock:
    """Times calls on one device: waits for a GPU, counts the processor's time on a single thread."""

    def __init__(self, device):
        self.device = torch.device(device)
        alone = self.device.type == "cpu" and torch.get_num_threads() == 1
        self.now = time.process_time if alone else time.perf_counter
        self.what = "processor time" if alone else "wall time"

    def __call__(self, function):
        """Seconds that ``function()`` takes."""
        self._wait()
        begun = self.now()
        function()
        self._wait()
        return self.now() - begun

    def _wait(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def matrix_rate(clock, precision="fp32", side=None):
    """FLOP/s of the best of five products of square matrices, in the precision that the network runs in."""
    side = side or (8192 if clock.device.type == "cuda" else 1024)
    a = torch.rand(side, side, device=clock.device).to(DTYPES[precision])
    a @ a
    return 2 * side**3 / min(clock(lambda: a @ a) for _ in range(5))


def copy_rate(clock, size=1 << 26):
    """Bytes per second, read and written together, of the best of three copies that no cache holds."""
    source = torch.ones(size, device=clock.device)
    target = torch.ones_like(source)
    return 2 * source.nbytes / min(clock(lambda: target.copy_(source)) for _ in range(3))


def race(sides, clock, rounds=3, rates=()):
    """``({name: Timing}, [best of each rate])`` of the functions in ``sides``, called in turn ``rounds`` times.

    Each is called beforehand (twice on CUDA, where the second call records), and its peak memory taken then. ``rates`` are functions that are measured in every
    round as well, the largest value of each is returned.
    """
    calls = 2 if clock.device.type == "cuda" else 1
    peaks = {name: [peak_memory(function, clock.device) for _ in range(calls)][-1] for name, function in sides.items()}
    best, tops = dict.fromkeys(sides, float("inf")), [0.0] * len(rates)
    for _ in range(rounds):
        tops = [max(top, rate()) for top, rate in zip(tops, rates)]
        for name, function in sides.items():
            best[name] = min(best[name], clock(function))
    return {name: Timing(best[name], peaks[name]) for name in sides}, tops


def peak_memory(function, device):
    """Bytes held at most while ``function()`` ran: by the process, or on the GPU; None where the system does not tell."""
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        function()
        return torch.cuda.max_memory_allocated(device)
    reset = _reset_peak()
    function()
    return _peak() if reset else None


def _reset_peak():
    """On Linux: give back what glibc keeps, and set the process's high-water mark to what it holds."""
    if not sys.platform.startswith("linux"):
        return False
    release_freed_memory()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return _peak() is not None


def _peak():
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    return None


def traffic(network, x, depth):
    """Bytes that the leaf modules of ``network`` read and write for ``x``: what must move if no result stays in a cache.

    A block that runs in strips counts as one module that reads its input twice and writes its output.
    """
    from .fast import StripTransformer
    total = 0

    def count(module, inputs, output):
        nonlocal total
        reads = 2 if isinstance(module, StripTransformer) else 1
        total += reads * sum(t.nbytes for t in inputs if torch.is_tensor(t)) + output.nbytes

    hooks = [module.register_forward_hook(count) for module in network.modules() if not any(module.children())]
    try:
        with torch.no_grad():
            network(x, depth)
    finally:
        for hook in hooks:
            hook.remove()
    return total


def load_callable(spec):
    """The function that ``FILE.py:NAME`` names, as ``function(x, depth)``; its own may take ``x`` alone.

    ``x`` is a float32 batch (1, 3, h, w) in [0, 1] on the device that is measured. Raises :class:`RestoreError`.
    """
    path, _, name = spec.rpartition(":")
    if not path or not Path(path).is_file():
        raise RestoreError(f"--against {spec}: give FILE.py:NAME of a function that takes a batch (1, 3, h, w)")
    module_spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    module = importlib.util.module_from_spec(module_spec)
    sys.path.insert(0, str(Path(path).resolve().parent))         # so that it finds the files beside it
    try:
        module_spec.loader.exec_module(module)
        function = getattr(module, name)
    except Exception as error:
        raise RestoreError(f"--against {spec}: {type(error).__name__}: {error}") from error
    finally:
        sys.path.pop(0)
    if not callable(function):
        raise RestoreError(f"--against {spec}: {name} is no function")
    try:
        takes_depth = len(inspect.signature(function).parameters) > 1
    except (TypeError, ValueError):
        takes_depth = False
    return function if takes_depth else lambda x, depth: function(x)
