"""Spectra that another process prepares while this one loads PyTorch.

That takes as long as two thousand spectra, of one core: the others need not wait. What
is prepared lies in memory that both share, and the workers that are forked later, too.
"""

from __future__ import annotations

import mmap
import multiprocessing
import os
import pickle
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

from stellarcli import parallel, runs
from stellarcli.inputs import Task
from stellarcli.preparation import Chunk
from stellarcli.preprocess import Recipe
from stellarcli.runs import Run

MOST = 64  # tasks ahead
ROOM = 4 << 20  # bytes for each of them; pages that aren't used cost nothing
ALIGNED = 64  # bytes
FEWEST = 8  # tasks of a run that is worth a process more


class HeadStart:
    """A process that prepares the first tasks of a run, within a ``with``.

    It is not started where it can't be (systems without fork), for one worker, or for a
    few tasks; then `ready` has nothing.

    Parameters
    ----------
    tasks : sequence of Task
    run : Run
        With the model's name; what concerns the network doesn't matter yet.

    Raises
    ------
    UsageError, ModelFileError
        If there is no such model.
    """

    def __init__(self, tasks: Sequence[Task], run: Run):
        self.tasks = tasks[:MOST]
        self._process = None
        able = sys.platform == "linux" and run.workers > 1
        if not able or len(tasks) < FEWEST or any(task.table for task in self.tasks):
            return
        model = runs.model_of(run.model)
        if model.recipe.images is not None:  # chunks would be large
            return
        run = replace(run, rv=run.rv or model.velocities)
        context = multiprocessing.get_context("fork")
        self._pipe, theirs = context.Pipe()
        self._room = mmap.mmap(-1, len(self.tasks) * ROOM)
        shared = theirs, self._room
        arguments = (self.tasks, run, model.recipe, os.getpid(), *shared)
        self._process = context.Process(target=_prepare, args=arguments, daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> HeadStart:
        """Return itself."""
        return self

    def __exit__(self, *error: Any) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process.close()
            self._pipe.close()
            self._process = None

    def ready(self) -> dict[Task, Chunk]:
        """End the process, and return what it has prepared.

        Returns
        -------
        dict of Chunk
            Nothing where the process has failed: whoever prepares those tasks again
            meets the same error, and can say it. Arrays lie in the shared memory.
        """
        if self._process is None:
            return {}
        done: list[_Packed] = []
        with self, suppress(EOFError, OSError):
            self._pipe.send(None)
            done = self._pipe.recv()
        room = memoryview(self._room)
        chunks = [
            pickle.loads(content, buffers=[room[place] for place in places])
            for content, places in done
        ]
        return dict(zip(self.tasks, chunks, strict=False))


# a pickled chunk but for its arrays, and where these lie in the shared memory
_Packed = tuple[bytes, list[slice]]


def _prepare(
    tasks: Sequence[Task],
    run: Run,
    recipe: Recipe,
    parent: int,
    pipe: Connection,
    room: mmap.mmap,
) -> None:
    """Prepare tasks until somebody asks for them, in a process of its own."""
    parallel.settle(parent)
    done: list[_Packed] = []
    used = 0
    with suppress(Exception):
        for task in tasks:
            if pipe.poll():
                break
            done.append(_packed(runs.prepare(task, run, recipe), room, used))
            used = max([used, *(place.stop for place in done[-1][1])])
    with suppress(EOFError, OSError):
        pipe.recv()
        pipe.send(done)


def _packed(chunk: Chunk, room: mmap.mmap, used: int) -> _Packed:
    """Put a chunk's arrays behind the used part of the memory.

    Raises
    ------
    IndexError
        If there is no room for them.
    """
    arrays: list[pickle.PickleBuffer] = []
    content = pickle.dumps(chunk, protocol=5, buffer_callback=arrays.append)
    places = []
    for array in arrays:
        data = array.raw()
        start = -(-used // ALIGNED) * ALIGNED
        used = start + data.nbytes
        room[start:used] = data
        places.append(slice(start, used))
    return content, places
