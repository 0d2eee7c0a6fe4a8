"""What a network costs beside its quality: milliseconds and peak memory of one call, measured where it runs."""

import ctypes
import sys
from pathlib import Path


def warm_up(competitor, image, entry):
    """Warm ``competitor`` up and return the peak memory of one more call in MiB, or None if nobody can tell.

    On a GPU it is what PyTorch allocated at the most, weights included. On Linux it is by how much the process grew beyond
    its size before the call, weights not included.
    """
    device = str(getattr(competitor, "device", "cpu"))
    competitor.restore(image, entry)                     # what is allocated once and for all is no cost of a call
    if device.startswith("cuda"):
        import torch
        torch.cuda.reset_peak_memory_stats(device)
        competitor.restore(image, entry)
        return torch.cuda.max_memory_allocated(device) / 2 ** 20
    before = _restart_peak()
    competitor.restore(image, entry)
    after = _status("VmHWM")
    return None if before is None or after is None else max(0.0, (after - before) / 1024)


def _restart_peak():
    """Resident size in KiB after freed memory went back to the system, with the kernel's record of the peak restarted."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):
        return None
    return _status("VmRSS")


def _status(field):
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith(field + ":")), None)
