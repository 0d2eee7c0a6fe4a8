"""What the allocator and the garbage collector are told.

On Linux about half of a network's time on a CPU is otherwise page faults.

glibc maps every large tensor afresh and gives it back when it is freed, and the kernel clears each page again. Raising
the two thresholds lets the next layer reuse what the last one freed. Costs nothing but a higher resident size between
calls.
"""

import contextlib
import ctypes
import gc
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3      # malloc.h


def keep_freed_memory():
    """Ask glibc to keep freed blocks for reuse; True if it agreed, False on other systems. Call before the work."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):                # musl has no mallopt
        return False
    largest = 2 ** 31 - 1
    return bool(mallopt(_M_MMAP_THRESHOLD, largest) and mallopt(_M_TRIM_THRESHOLD, largest))


def release_freed_memory():
    """Give the system back what is free now, on Linux: between tiles, so that holes of many sizes do not add up."""
    if sys.platform.startswith("linux"):
        with contextlib.suppress(OSError, AttributeError):      # musl has no malloc_trim
            ctypes.CDLL(None).malloc_trim(0)


@contextlib.contextmanager
def collector_paused():
    """No garbage collection inside: importing torch makes objects that all stay, and looking through them again and again
    takes an eighth of its time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
