"""The same work on a Ray cluster: core tasks over chunks of items, the interface of :func:`data_tools.engine.run`.

Ray restarts a task whose worker died. A chunk that keeps dying or hanging is cut into single items, and the item that
no worker survives is quarantined with the reason. Install with ``pip install anydepth[ray]``; sources and work folder
must be visible to every node (a shared file system or fsspec addresses).
"""

import os
import pickle
import time
from collections import deque

from restore.errors import RestoreError

from .engine import Failure, resolve

CHUNK = 32
_TRIES = 2


def run(target, arguments, items, workers=0, timeout=120.0, window=4096, chunk=CHUNK):
    """Yield every item's result in order, as :func:`engine.run` does; ``workers`` 0 uses all CPUs of the cluster."""
    try:
        import ray
    except ImportError:
        raise RestoreError("engine: ray is not installed; pip install anydepth[ray]") from None
    if not ray.is_initialized():
        _start(ray, workers)
    task = ray.remote(max_retries=0, num_cpus=1)(_chunk)
    slots = workers or int(ray.cluster_resources().get("CPU", 1))
    items = enumerate(items)
    exhausted, read, given = False, 0, 0
    ready, running, again, tries = {}, {}, deque(), {}
    try:
        while True:
            while len(running) < 2 * slots:
                part = again.popleft() if again else []
                while not part and not exhausted and read - given < window:
                    for item in items:
                        part.append(item)
                        read += 1
                        if len(part) == chunk:
                            break
                    else:
                        exhausted = True
                    if not part:
                        break
                if not part:
                    break
                reference = task.remote(target, arguments, [item for _, item in part])
                running[reference] = (part, time.monotonic())
            while given in ready:
                yield ready.pop(given)
                given += 1
            if exhausted and given == read and not again and not running:
                return
            done, _ = ray.wait(list(running), num_returns=1, timeout=1.0)
            for reference in done:
                part, _ = running.pop(reference)
                try:
                    for (index, _), result in zip(part, ray.get(reference)):
                        ready[index] = result
                except ray.exceptions.RayTaskError as error:
                    raise RestoreError(f"a Ray task failed: {str(error).strip().splitlines()[-1]}") from None
                except ray.exceptions.RayError as error:
                    _retry(part, f"crash: the Ray worker ended ({type(error).__name__})", again, tries, ready)
            now = time.monotonic()
            for reference, (part, since) in list(running.items()):
                # waiting for a free slot counts as well: hence twice the slots, and a chunk's whole time
                if now - since > 2 * timeout + timeout * len(part):
                    del running[reference]
                    ray.cancel(reference, force=True)
                    _retry(part, f"timeout: not finished after {timeout:g} seconds", again, tries, ready)
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


def _start(ray, workers):
    """Join the cluster of RAY_ADDRESS, or start a local one; a busy machine may need several tries."""
    for attempt in range(3):
        try:
            ray.init(num_cpus=None if os.environ.get("RAY_ADDRESS") else workers or None, include_dashboard=False,
                     log_to_driver=False, configure_logging=False)
            return
        except Exception as error:  # noqa: BLE001  Ray raises many things here
            ray.shutdown()
            if attempt == 2:
                raise RestoreError(f"Ray cannot start: {str(error).strip()[:300]}") from None


def _retry(part, reason, again, tries, ready):
    """Items of a failed chunk go again one by one; a single item that fails twice is given up."""
    if len(part) == 1:
        index = part[0][0]
        tries[index] = tries.get(index, 0) + 1
        if tries[index] >= _TRIES:
            ready[index] = Failure(reason + ", twice")
            return
    again.extendleft([item] for item in reversed(part))


_functions = {}                            # per worker process: target and arguments -> function


def _chunk(target, arguments, items):
    from .engine import prepare
    key = (target, pickle.dumps(arguments))
    if key not in _functions:
        prepare()
        _functions.clear()
        _functions[key] = resolve(target)(**arguments)
    return [_functions[key](item) for item in items]
