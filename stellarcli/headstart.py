"""Spectra that another process prepares while this one loads PyTorch.

That takes as long as a thousand spectra, of one core: the others need not wait.
"""

from __future__ import annotations

import multiprocessing
import os
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

MOST = 64  # tasks ahead, of some 2 MB each
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
        arguments = (self.tasks, run, model.recipe, os.getpid(), theirs)
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
            meets the same error, and can say it.
        """
        if self._process is None:
            return {}
        chunks = []
        with self, suppress(EOFError, OSError):
            self._pipe.send(None)
            chunks = self._pipe.recv()
        return dict(zip(self.tasks, chunks, strict=False))


def _prepare(
    tasks: Sequence[Task], run: Run, recipe: Recipe, parent: int, pipe: Connection
) -> None:
    """Prepare tasks until somebody asks for them, in a process of its own."""
    parallel.settle(parent)
    done = []
    with suppress(Exception):
        for task in tasks:
            if pipe.poll():
                break
            done.append(runs.prepare(task, run, recipe))
    with suppress(EOFError, OSError):
        pipe.recv()
        pipe.send(done)
