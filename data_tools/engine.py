"""Supervised worker processes: a worker that dies or hangs costs the image it was at, never the run.

``ProcessPoolExecutor`` aborts when a worker is killed and ``multiprocessing.Pool`` waits for ever; here each worker has
its own pipe and a slot of shared memory in which it notes what it is working at and since when. The supervisor replaces
a worker that died or took too long, gives the image one more try in a fresh worker (the kill may have come from
outside), and then quarantines it with the reason. Results come out in the order of the items, whoever finished first.
"""

import ctypes
import importlib
import multiprocessing
import os
import signal
import sys
import time
from collections import deque
from dataclasses import dataclass
from multiprocessing.connection import wait

from restore.errors import RestoreError

CHUNK = 16                                 # items a worker is handed at once: pipes cost about 0.1 ms a message
_TRIES = 2


@dataclass
class Failure:
    """An item that no worker survived: ``reason`` is ``KIND: text``, KIND crash or timeout."""

    reason: str


def run(target, arguments, items, workers=0, timeout=60.0, window=4096, chunk=CHUNK):
    """Yield the result of every item of an iterable, in order: what ``function(item)`` returned, or a :class:`Failure`.

    target      "module:factory"; ``factory(**arguments)`` is called once in each worker and returns ``function``
    workers     processes; 0 for one per core this process may use
    timeout     seconds for one item
    window      items that may be under way or waiting for an earlier one to finish
    chunk       items a worker is handed at once; 1 for items that take seconds

    Items, arguments and results must be picklable. Raises RestoreError when workers cannot even start.
    """
    supervisor = _Supervisor(target, arguments, workers or len(os.sched_getaffinity(0)), timeout, window, chunk)
    try:
        yield from supervisor.results(items)
    finally:
        supervisor.close()


class _Worker:
    def __init__(self, context, target, arguments):
        self.state = context.RawArray("d", 2)             # index of the item it is at (-1: none), since when
        self.state[0] = -1
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_main, args=(theirs, self.state, target, arguments), daemon=True)
        self.process.start()
        theirs.close()
        self.assigned = {}                                # index -> item, not yet answered
        self.answered = 0

    def kill(self):
        self.process.kill()
        self.process.join()
        self.pipe.close()


class _Supervisor:
    def __init__(self, target, arguments, workers, timeout, window, chunk):
        # spawn: a forked child of a process with threads (pyarrow's, a test runner's) may deadlock
        self.context = multiprocessing.get_context("spawn")
        self.target, self.arguments, self.timeout, self.window, self.chunk = target, arguments, timeout, window, chunk
        self.workers = [_Worker(self.context, target, arguments) for _ in range(workers)]
        self.failed_starts = 0
        self.retries, self.tries, self.ready = deque(), {}, {}

    def results(self, items):
        items = enumerate(items)
        exhausted, read, given = False, 0, 0
        while True:
            for worker in self.workers:
                # a second chunk is handed out early so that a worker never waits for the supervisor
                while len(worker.assigned) <= self.chunk // 2:
                    if self.retries:
                        if worker.assigned:
                            break                         # a suspect goes alone into an idle worker
                        chunk = [self.retries.popleft()]
                    else:
                        chunk = []
                        while not exhausted and len(chunk) < self.chunk and read - given < self.window:
                            try:
                                chunk.append(next(items))
                                read += 1
                            except StopIteration:
                                exhausted = True
                    if not chunk:
                        break
                    worker.assigned.update(chunk)
                    try:
                        worker.pipe.send(chunk)
                    except (BrokenPipeError, ConnectionResetError):
                        break                             # it died; the sentinel tells below
                    if self.tries.get(chunk[0][0]):
                        break
            while given in self.ready:
                yield self.ready.pop(given)
                given += 1
            if exhausted and given == read and not self.retries:
                return
            self._listen()

    def _listen(self):
        waiting = {worker.pipe: worker for worker in self.workers} | {w.process.sentinel: w for w in self.workers}
        for worker in {id(waiting[w]): waiting[w] for w in wait(list(waiting), timeout=0.5)}.values():
            alive = self._receive(worker)
            if not alive or not worker.process.is_alive():
                self._receive(worker)                     # what it sent before it died counts
                self._replace(worker, None)
        now = time.monotonic()
        for worker in list(self.workers):
            index, since = worker.state
            if index >= 0 and now - since > self.timeout and self._receive(worker) and int(index) in worker.assigned \
                    and worker.state[0] == index:
                self._replace(worker, f"timeout: not finished after {self.timeout:g} seconds")

    def _receive(self, worker):
        """Take what the worker has sent; False when its pipe is broken."""
        try:
            while worker.pipe.poll():
                message = worker.pipe.recv()
                if isinstance(message, str):
                    raise RestoreError(message)
                for index, result in message:
                    if worker.assigned.pop(index, None) is not None:
                        self.ready[index] = result
                worker.answered += 1
            return True
        except (EOFError, OSError):
            return False

    def _replace(self, worker, reason):
        """Start a new worker in the place of one that died or hangs, and put its unanswered items back."""
        at = int(worker.state[0])
        worker.kill()
        code = worker.process.exitcode
        reason = reason or (f"crash: the worker process ended with {_describe(code)}")
        if not worker.answered and at < 0:
            self.failed_starts += 1
            if self.failed_starts > 3:
                raise RestoreError(f"worker processes cannot start ({_describe(code)})")
        for index, item in sorted(worker.assigned.items(), reverse=True):
            if index == at:
                self.tries[index] = self.tries.get(index, 0) + 1
                if self.tries[index] >= _TRIES:
                    self.ready[index] = Failure(reason + ", twice")
                    continue
            self.retries.appendleft((index, item))
        self.workers[self.workers.index(worker)] = _Worker(self.context, self.target, self.arguments)

    def close(self):
        for worker in self.workers:
            worker.kill()


def _describe(code):
    if code is not None and code < 0:
        return f"signal {-code} ({signal.Signals(-code).name})"
    return f"exit status {code}"


def _main(pipe, state, target, arguments):
    """A worker's life: build the function, then answer chunks until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)          # Ctrl-C is the supervisor's business
    die_with_parent()
    prepare()
    try:
        function = resolve(target)(**arguments)
    except Exception as error:  # noqa: BLE001  whatever a factory raises ends the worker with its reason
        pipe.send(f"a worker cannot start: {type(error).__name__}: {error}")
        return
    try:
        while True:
            answers, since = [], time.monotonic()
            for index, item in pipe.recv():
                state[1] = time.monotonic()
                state[0] = index
                answers.append((index, function(item)))
                state[0] = -1
                if time.monotonic() - since > 0.5:
                    pipe.send(answers)
                    answers, since = [], time.monotonic()
            if answers:
                pipe.send(answers)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass


def prepare():
    """What every worker process sets once: freed memory is kept, since each image needs as much again."""
    from restore.memory import keep_freed_memory
    keep_freed_memory()


def resolve(target):
    """The object that "module:name" names."""
    module, name = target.split(":")
    return getattr(importlib.import_module(module), name)


def die_with_parent():
    """On Linux, have the kernel kill this process when the supervisor dies, also by ``kill -9``."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)         # PR_SET_PDEATHSIG
