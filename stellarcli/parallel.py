"""The same function over many tasks, on several processes, results in order."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from stellarcli.errors import StellarError, UsageError

AHEAD = 3  # tasks per worker that may be finished before their turn: bounds memory
GRACE = 0.3  # s; Slurm's signals reach all processes of a job one after the other


def available_cores() -> int:
    """Cores this process may use; on Slurm that is what the job was given."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def check_workers(workers: int | None) -> int:
    """Return the number of workers to use; None means one per core.

    Raises
    ------
    UsageError
        If it isn't positive.
    """
    if workers is None:
        return available_cores()
    if workers < 1:
        raise UsageError(f"--workers must be at least 1, not {workers}.")
    return workers


def ordered_map(
    function: Callable[[Any], Any], tasks: Iterable[Any], workers: int
) -> Iterator[Any]:
    """Yield ``function(task)`` for every task, in order.

    With one worker everything runs in this process. Otherwise workers are forked where
    the system can do that safely, so that they share imported libraries and loaded
    models; each is bound to one core and one thread.

    Parameters
    ----------
    function : callable
    tasks : iterable
        Taken as workers become free, never far ahead.
    workers : int

    Raises
    ------
    StellarError
        If a worker dies, for want of memory for example.
    """
    keep_freed_memory()
    if workers == 1:
        yield from map(function, tasks)
        return
    method = "fork" if sys.platform == "linux" else "spawn"
    context = multiprocessing.get_context(method)
    cores = context.Queue()
    for core in _cores(workers):
        cores.put(core)
    pool = ProcessPoolExecutor(
        workers, mp_context=context, initializer=_settle, initargs=(cores, os.getpid())
    )
    waiting: deque = deque()
    try:
        for task in tasks:
            waiting.append(pool.submit(function, task))
            if len(waiting) >= AHEAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        time.sleep(GRACE)  # what ended the worker may be about to end this process too
        raise StellarError(
            "a worker process was killed, most likely for want of memory. Give fewer "
            "--workers or a smaller --batch-size; with --resume, finished parts count."
        ) from None
    finally:
        with _undisturbed():  # an impatient second Ctrl-C would leave workers waiting
            pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Ignore what would interrupt this process, where signals arrive."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    names = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows lacks the last
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def _cores(workers: int) -> list[int]:
    """One core per worker, going round; -1 where binding isn't possible."""
    if not hasattr(os, "sched_getaffinity"):
        return [-1] * workers
    cores = sorted(os.sched_getaffinity(0))
    return [cores[i % len(cores)] for i in range(workers)]


def _settle(cores: Any, parent: int) -> None:
    """Prepare a new worker of a pool: one core, too."""
    settle(parent)
    core = cores.get()
    if core >= 0:
        os.sched_setaffinity(0, {core})


def settle(parent: int) -> None:
    """Prepare a new process: its end is its parent's, and Ctrl-C is the parent's."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what it means
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _die_with(parent)
    keep_freed_memory()


def _die_with(parent: int) -> None:
    """End this process as soon as its parent has ended, even by SIGKILL."""
    if (library := _c_library()) is None:
        return
    set_parent_death_signal = 1  # PR_SET_PDEATHSIG of <sys/prctl.h>
    library.prctl(set_parent_death_signal, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before
        os.kill(os.getpid(), signal.SIGKILL)


def _c_library() -> ctypes.CDLL | None:
    """C library on Linux; None elsewhere."""
    if sys.platform != "linux":
        return None
    try:
        return ctypes.CDLL(None)
    except OSError:
        return None


def keep_freed_memory() -> None:
    """Let glibc keep big freed blocks instead of returning them to the system.

    Every batch would get its pages anew otherwise, which cost up to a factor 1.7.
    """
    mallopt = getattr(_c_library(), "mallopt", None)
    if mallopt is None:  # another C library
        return
    mmap_threshold, trim_threshold = -3, -1
    mallopt(mmap_threshold, 1 << 30)
    mallopt(trim_threshold, 1 << 30)
