"""What one restoration costs: time and peak memory, measured in a process of its own.

A process's peak memory only ever grows, so that two depths measured in one process would both show the larger; and what
the caller has loaded would be counted too.
"""

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass

from .errors import RestoreError


@dataclass(frozen=True)
class Cost:
    """``seconds``: the median of the timed runs. ``peak``: bytes of main memory that the whole process took at most,
    and ``start``: what Python, the libraries and the weights had taken before the first image; None where the system
    does not tell. ``device_peak``: bytes allocated on the GPU at most, or None.
    """

    seconds: float
    peak: int | None
    start: int | None
    device_peak: int | None


def measure_cost(model, depth, height, width, device="auto", runs=3):
    """The :class:`Cost` of restoring one ``height`` x ``width`` image with ``model`` (a path or a bundled name).

    Raises :class:`RestoreError` if the process fails; its last line of output tells why.
    """
    order = json.dumps([str(model), depth, height, width, str(device), runs])
    done = subprocess.run([sys.executable, "-m", __name__, order], capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise RestoreError(f"measuring {model} at depth {depth}: {reason}")
    return Cost(**json.loads(done.stdout.splitlines()[-1]))


def _measure_here(model, depth, height, width, device, runs):
    import statistics

    import torch

    from .memory import keep_freed_memory
    from .restorer import Restorer
    keep_freed_memory()
    restorer = Restorer(model, depth=tuple(depth) if isinstance(depth, list) else depth, device=device)
    start = _peak_memory()
    image = torch.rand(3, height, width, generator=torch.Generator().manual_seed(0))
    restorer.restore(image[:, :64, :64])                # what is loaded or compiled on the first call
    on_gpu = torch.cuda.is_available() and torch.cuda.memory_allocated() > 0
    times = []
    for _ in range(runs):
        begun = time.perf_counter()
        restorer.restore(image).cpu()                   # the copy waits for the GPU
        times.append(time.perf_counter() - begun)
    return Cost(statistics.median(times), _peak_memory(), start, torch.cuda.max_memory_allocated() if on_gpu else None)


def _peak_memory():
    # not ru_maxrss on Linux: a process there begins with the peak of the one that started it
    try:
        with open("/proc/self/status", encoding="ascii") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        pass
    try:
        import resource
    except ImportError:                                 # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    print(json.dumps(asdict(_measure_here(*json.loads(sys.argv[1])))))
