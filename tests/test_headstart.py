"""What is prepared while PyTorch loads is what would have been prepared later."""

import os
import signal
import sys
import time
from contextlib import suppress

import numpy as np
import pytest

from stellarcli import (
    catalog,
    checkpoint,
    headstart,
    inputs,
    prediction,
    preparation,
    runs,
)
from stellarcli.errors import UsageError

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="head starts need a fork that is safe"
)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(headstart, "FEWEST", 2)


@pytest.fixture
def tasks(stars):
    return list(inputs.tasks([*stars, "nothing.fits"], 1))


def started(tasks, model, workers=2):
    return headstart.HeadStart(tasks, runs.Run(model=str(model), workers=workers))


def test_chunks_are_those_of_the_run(tasks, model):
    recipe = checkpoint.load(str(model)).recipe
    with started(tasks, model) as start:
        time.sleep(1)
        chunks = start.ready()
    assert chunks, "a second was enough for nothing"
    assert list(chunks) == tasks[: len(chunks)]
    for task, chunk in chunks.items():
        same = runs.prepare(task, runs.Run(model=str(model), rv="header"), recipe)
        assert chunk.rows.tobytes() == same.rows.tobytes()
        assert np.array_equal(chunk.batch.flux, same.batch.flux)
        assert chunk.reasons == same.reasons


def test_a_table_is_the_same_with_and_without(stellar, stars, model, monkeypatch):
    monkeypatch.setattr(preparation, "CHUNK", 1)
    used = []
    ready = headstart.HeadStart.ready

    def spied(self):
        time.sleep(1)
        used.append(ready(self))
        return dict(used[-1])

    monkeypatch.setattr(headstart.HeadStart, "ready", spied)
    for name, workers in (("with.fits", 2), ("without.fits", 1)):
        words = ["predict", *stars, "missing.fits", "-o", name, "-m", model]
        assert stellar(*words, "--workers", workers).status == 3
    assert used[0]
    assert not used[1]
    one, other = (catalog.read(name).rows for name in ("with.fits", "without.fits"))
    assert one.tobytes() == other.tobytes()
    assert not prediction._early


def test_a_killed_process_costs_nothing_but_time(tasks, model):
    with started(tasks, model) as start:
        os.kill(start._process.pid, signal.SIGKILL)
        assert start.ready() == {}


def test_nothing_is_left_running_after_an_error(tasks, model):
    start = started(tasks, model)
    number = start._process.pid
    with suppress(UsageError), start:
        raise UsageError("the output is there")
    with pytest.raises(ProcessLookupError):
        os.kill(number, 0)


@pytest.mark.parametrize("workers", [1, 2])
def test_none_where_it_is_not_worth_a_process(tasks, model, workers):
    some = tasks if workers == 1 else tasks[:1]
    with started(some, model, workers) as start:
        assert start._process is None
        assert start.ready() == {}


def test_a_reader_that_fails_is_left_to_the_run(tasks, model, monkeypatch):
    def failing(*arguments):
        raise RuntimeError("out of luck")

    monkeypatch.setattr(runs, "prepare", failing)
    with started(tasks, model) as start:
        assert start.ready() == {}
