"""The same prediction on a Dask cluster: a task per batch, results in order.

Any scheduler will do: a local one, one that dask-jobqueue started on Slurm, one on
Kubernetes. Workers see the same files under the same names and have this package, in
the same version. They may come and go: what a dead one was at work on is given to
another.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stellarcli import __version__, catalog, prediction, preparation, runs
from stellarcli.errors import StellarError, UsageError, first_line
from stellarcli.inputs import Task
from stellarcli.parallel import AHEAD, keep_freed_memory
from stellarcli.runs import Run
from stellarcli.surveys.hdus import NO_SUCH_FILE
from stellarcli.velocity import SOURCES

if TYPE_CHECKING:
    from distributed import Client

CONNECTING = 30.0  # s that a scheduler has to answer
AGAIN = 1  # times that a task is tried again after an error that isn't ours
LEAST_AHEAD = 8  # tasks handed out while there are few workers: new ones find work
FRESH = 5.0  # s that a count of the workers is good for

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """A task as it travels to a worker.

    Attributes
    ----------
    task : Task
        With the paths that go into the table.
    run : Run
    folder : str
        That relative paths are relative to.
    version, model : str
        Of this package, and the sha256 of the model file: results must not depend on
        which worker they came from.
    """

    task: Task
    run: Run
    folder: str
    version: str
    model: str


def results(address: str) -> Callable[[Sequence[Task], Run], Iterator]:
    """Return what computes tasks on the cluster at an address.

    Parameters
    ----------
    address : str
        Of a Dask scheduler, such as ``tcp://host:8786``, or the scheduler's file.

    Returns
    -------
    callable
        For `prediction.predict`: ``compute(tasks, run)``.

    Raises
    ------
    UsageError
        If Dask isn't installed.
    """
    try:
        import distributed  # noqa: F401
    except ImportError:
        raise UsageError(
            "--dask needs the package distributed; run: pip install 'stellarcli[dask]'."
        ) from None

    def compute(tasks: Sequence[Task], run: Run) -> Iterator[prediction.Result]:
        if run.device != "cpu":
            raise UsageError(f"--dask computes on CPUs, not on {run.device}.")
        client = _connect(address)
        try:
            yield from _ordered(client, _jobs(tasks, run))
        finally:
            client.close()

    return compute


def _connect(address: str) -> Client:
    from distributed import Client

    where = {"address": address}
    if os.path.exists(address):
        where = {"scheduler_file": address}
    try:
        client = Client(**where, timeout=CONNECTING, set_as_default=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"no Dask scheduler answers at '{address}' ({first_line(error)}). "
            "Give the address that 'dask scheduler' prints, such as tcp://host:8786, "
            "or the file of its option --scheduler-file."
        ) from None
    if not client.nthreads():
        log.warning("no worker has joined the cluster at %s yet; waiting", address)
    return client


def _jobs(tasks: Sequence[Task], run: Run) -> Iterator[Job]:
    """Tasks, with names that workers in other directories understand."""
    folder = os.getcwd()
    sha256 = runs.model_of(run.model).sha256
    if Path(run.model).is_file():
        run = replace(run, model=os.path.abspath(run.model))
    if run.rv and run.rv not in SOURCES:
        run = replace(run, rv=os.path.abspath(run.rv))
    if run.images:
        run = replace(run, images=os.path.abspath(run.images))
    for task in tasks:
        yield Job(task, run, folder, __version__, sha256)


def _ordered(client: Client, jobs: Iterator[Job]) -> Iterator[prediction.Result]:
    """Yield results in the order of jobs, never far ahead of the slowest."""
    from concurrent.futures import CancelledError

    from distributed.scheduler import KilledWorker

    window = _Window(client)
    waiting: deque[tuple[Job, Any]] = deque()
    try:
        for job in jobs:
            future = client.submit(_work, job, pure=False, retries=AGAIN)
            waiting.append((job, future))
            if len(waiting) >= window.size():
                yield _received(*waiting.popleft())
        while waiting:
            yield _received(*waiting.popleft())
    except KilledWorker:
        raise StellarError(
            f"several workers of the cluster died over the same {preparation.CHUNK} "
            "spectra, most likely for want of memory. Give them more; with --resume, "
            "finished parts count."
        ) from None
    except ImportError as error:
        raise StellarError(
            f"workers of the cluster lack stellarcli or what it needs ({error}). "
            "Install the same version there."
        ) from None
    except (CancelledError, OSError) as error:
        raise StellarError(
            f"the connection to the Dask scheduler was lost ({type(error).__name__}). "
            "Start it again; with --resume, finished parts count."
        ) from None
    finally:
        with suppress(Exception):  # the scheduler may be gone
            client.cancel([future for _, future in waiting])


class _Window:
    """How many tasks may be under way: some for each thread of the workers now."""

    def __init__(self, client: Client):
        self.client = client
        self.counted, self.asked = LEAST_AHEAD, -FRESH

    def size(self) -> int:
        """Return it; the scheduler is asked now and then."""
        if time.monotonic() - self.asked > FRESH:
            self.asked = time.monotonic()
            threads = sum(self.client.nthreads().values())
            self.counted = max(LEAST_AHEAD, AHEAD * threads)
        return self.counted


def _received(job: Job, future: Any) -> prediction.Result:
    """Wait for a result, and see that the worker saw the files that are here."""
    rows, reasons, seconds = future.result()
    future.release()
    for row, reason in reasons:
        path = catalog.decode_name(rows["file"][row].decode())
        if reason == NO_SUCH_FILE and os.path.exists(path):
            raise StellarError(
                f"a worker of the cluster doesn't see '{path}', which is here. All "
                "workers need the same files under the same names."
            )
    return rows, reasons, seconds


def _work(job: Job) -> prediction.Result:
    """Predict one task, on a worker."""
    _settle()
    predictor = prediction.predictor_of(job.run)
    for what, own, wanted in (
        ("stellarcli", __version__, job.version),
        ("model", predictor.model.sha256, job.model),
    ):
        if own != wanted:
            raise StellarError(
                f"a worker on {socket.gethostname()} has {what} {own}, this program "
                f"{wanted}: the rows would depend on who made them."
            )
    # as seen from another directory; the table gets the names as they were given
    names = {os.path.join(job.folder, path): path for path in job.task.paths}
    table = job.task.table and os.path.join(job.folder, job.task.table)
    there = replace(job.task, paths=tuple(names), table=table)
    rows, reasons, seconds = prediction.work(there, job.run)
    if names:
        rows = _renamed(rows, {catalog.encode_name(k): v for k, v in names.items()})
    return rows, reasons, seconds


def _renamed(rows: np.ndarray, names: dict[str, str]) -> np.ndarray:
    """Rows with other names of files, as wide as these need."""
    given = [catalog.encode_name(names[name.decode()]) for name in rows["file"]]
    return catalog.with_columns(rows, {"file": np.array(given, dtype="S")})


@cache
def _settle() -> None:
    """Prepare a worker, once."""
    keep_freed_memory()
