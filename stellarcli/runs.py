"""A run of ``predict``: what to do, what came of it, and what earlier runs left."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np

from stellarcli import __version__, catalog, checkpoint, feeding, preparation
from stellarcli.catalog import BAD, FAILED, Flag
from stellarcli.checkpoint import Model
from stellarcli.errors import OutputExistsError, UsageError
from stellarcli.inputs import Task
from stellarcli.parallel import available_cores
from stellarcli.parts import Parts, count_finished
from stellarcli.preparation import Chunk
from stellarcli.prepared import EXTENSION
from stellarcli.preprocess import Recipe
from stellarcli.velocity import SOURCES, Source


@dataclass(frozen=True)
class Run:
    """What to predict, and how.

    Attributes
    ----------
    model : str
        Shipped name or file.
    device, precision : str
        See `Predictor`.
    exposures : bool
        Rows for single exposures where files hold them.
    rv : str
        Where velocities are from, see `velocity.Source`; empty for what the model was
        trained with.
    images : str
        Directory or table of images, for models that see them.
    dropout : float
        Rate of dropout while predicting; 0 for none.
    workers : int
    shard : (int, int) or None
        Number of this shard, from 1, and how many there are.
    resume : bool
        Keep the finished parts of an interrupted run.
    """

    model: str = checkpoint.DEFAULT
    device: str = "cpu"
    precision: str = "auto"
    exposures: bool = False
    rv: str = ""
    images: str = ""
    dropout: float = 0.0
    workers: int = field(default_factory=available_cores)
    shard: tuple[int, int] | None = None
    resume: bool = False


def prepare(
    task: Task, run: Run, recipe: Recipe, inputs: Sequence[str] = feeding.SPECTRUM
) -> Chunk:
    """Prepare a task of a run; as `preparation.run`.

    Parameters
    ----------
    task : Task
    run : Run
        Whose `rv` says where velocities are from.
    recipe : Recipe
    inputs : sequence of str
        What the network is fed.
    """
    return preparation.run(
        task,
        recipe,
        exposures=run.exposures,
        velocities=velocities(run.rv),
        inputs=inputs,
        images=run.images,
    )


@lru_cache(maxsize=1)
def model_of(name: str) -> Model:
    """Read a model file once per process."""
    return checkpoint.load(name)


@lru_cache(maxsize=1)
def velocities(rv: str) -> Source:
    """Read a catalogue of velocities once per process."""
    return Source.of(rv)


@dataclass
class Summary:
    """What a run has to say at its end.

    Attributes
    ----------
    rows, failed, untrusted : int
        All rows, those without values, those with a bit of `catalog.BAD`.
    flags : dict of int
        Rows per flag name.
    reasons : list of (str, str)
        File and what was wrong with it, in the order of rows.
    seconds : dict of float
        Time per stage, summed over workers; ``total`` is that of the clock.
    computed : int
        Rows of this run, without those of finished parts that it found.
    complete : bool
        False for a shard that leaves parts to others: no table yet.
    """

    rows: int = 0
    failed: int = 0
    untrusted: int = 0
    flags: dict[str, int] = field(default_factory=dict)
    reasons: list[tuple[str, str]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    computed: int = 0
    complete: bool = True

    def add(self, flags: np.ndarray) -> None:
        """Count the flags of some rows."""
        self.rows += len(flags)
        self.failed += int((flags & FAILED != 0).sum())
        self.untrusted += int((flags & BAD != 0).sum())
        for flag in Flag:
            if count := int((flags & flag != 0).sum()):
                self.flags[flag.name] = self.flags.get(flag.name, 0) + count

    def count(self, parts: Sequence[Path]) -> None:
        """Count the flags of parts on disk."""
        for path in parts:
            self.add(np.load(path, mmap_mode="r", allow_pickle=False)["flag"])

    def add_seconds(self, seconds: dict[str, float]) -> None:
        """Add to the time per stage."""
        for stage, value in seconds.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + value

    def to_json(self) -> dict:
        """Plain values for ``--json``."""
        return asdict(self)


def digest_of(model: Model, tasks: Sequence[Task], run: Run) -> str:
    """Return a digest of everything that decides about the table's values."""
    digest = hashlib.sha256()
    options = (__version__, model.sha256, run.precision, run.device, run.exposures)
    options += (run.rv, *_content(run.rv), run.dropout)
    options += (run.images, *_content(run.images))
    digest.update(repr(options).encode())
    identity = lru_cache(_identity)
    for task in tasks:
        # the name of a table says little: that of standard input is made up
        table = identity(task.table) if task.table else ""
        digest.update(repr((task.paths, table, task.start, task.stop)).encode())
    return digest.hexdigest()[:16]


def _content(source: str) -> tuple:
    """Size and date of a catalogue of velocities, or of where images are."""
    if source in SOURCES or not source:
        return ()
    try:
        status = os.stat(source)
    except OSError:
        return ()  # whoever opens it explains
    return status.st_size, status.st_mtime_ns


def _identity(table: str) -> str:
    """Checksum that a prepared table carries, or its size and date without one."""
    import fitsio

    try:
        header = fitsio.read_header(table, ext=EXTENSION)
    except OSError as error:
        raise UsageError(f"can't read prepared table '{table}': {error}") from None
    status = os.stat(table)
    return str(header.get("DATASUM") or (status.st_size, status.st_mtime_ns))


def finished(
    target: str, digest: str, tasks: Sequence[Task], model: Model
) -> Summary | None:
    """Return the summary of a table that this very plan has made; None if it hasn't."""
    if target == "-" or not os.path.exists(target):
        return None
    try:
        table = catalog.read(target, columns=lambda name: name in ("file", "flag"))
        if "flag" not in table.rows.dtype.names:
            return None
    except UsageError:
        return None
    plan = table.header.get("PLAN")
    if plan != digest and (plan is not None or not _same_files(table, tasks)):
        return None
    summary = Summary()
    summary.add(table.rows["flag"])
    return summary


def _same_files(table: catalog.Table, tasks: Sequence[Task]) -> bool:
    """Compare the files of a table whose format keeps no header, such as CSV."""
    names = [catalog.encode_name(path) for task in tasks for path in task.paths]
    return table.rows["file"].tolist() == names


def settle_with_others(
    parts: Parts,
    run: Run,
    overwrite: bool,
    spectra: int,
    note: Callable[[str], None],
) -> None:
    """Decide about unfinished parts of the same output, of this or another plan.

    Parameters
    ----------
    parts : Parts
    run : Run
    overwrite : bool
    spectra : int
        In a part, at most.
    note : callable
        Told, in a line of text, which finished parts are dropped.

    Raises
    ------
    UsageError
        If there are any, and neither `run` nor `overwrite` says what becomes of them.
    """
    if run.shard and not run.resume:
        return  # they may be those of another shard's run; merging removes them
    others = parts.others()
    if any(map(count_finished, others)) and run.resume and not overwrite:
        raise UsageError(
            f"{parts.output} has an unfinished run of other inputs, model or options. "
            "Give those to go on with it, or --overwrite instead of --resume to start "
            "anew."
        )
    dropped = others if run.resume else [*others, parts.directory]
    if count := sum(map(count_finished, dropped)):
        state = (
            f"{count} parts of {parts.output}, of {spectra} spectra at most, are "
            "there from an interrupted run"
        )
        if not overwrite:
            raise OutputExistsError(
                f"{state}. Give --resume to go on with it, --overwrite to start anew, "
                "or another name."
            )
        note(f"{state}; they are dropped, since --overwrite starts anew.")
    for directory in dropped:
        shutil.rmtree(directory, ignore_errors=True)


def kept(parts: Parts) -> str:
    """Say what an interrupted run leaves."""
    done = count_finished(parts.directory)
    if parts.output == "-" or not done:
        return "no part was finished, so there is nothing to go on with."
    return (
        f"{done} of {parts.count} parts of {parts.output} are finished; the same "
        "command with --resume goes on with the others."
    )
