"""Parts of a catalogue on disk, and the shards that share the work on them."""

from __future__ import annotations

import glob
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from stellarcli import catalog
from stellarcli.errors import UsageError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


PLAN = "plan.json"


def parse_shard(text: str | None) -> tuple[int, int] | None:
    """Read ``I/N``, or ``auto`` for the task of a Slurm array.

    Returns
    -------
    (int, int) or None
        Number of the shard, from 1, and how many there are; None for no shards.

    Raises
    ------
    UsageError
        If it is neither, or I isn't in 1 … N.
    """
    if text is None:
        return None
    if text == "auto":
        return _slurm_shard()
    if not re.fullmatch(r"[0-9]+/[0-9]+", text):
        raise UsageError(f"--shard is I/N, such as 1/8, or auto; not {text!r}.")
    number, count = map(int, text.split("/"))
    if not 1 <= number <= count:
        raise UsageError(
            f"--shard {text}: shards are counted from 1, as in 1/{max(count, 1)} to "
            f"{max(count, 1)}/{max(count, 1)}."
        )
    return number, count


def _slurm_shard() -> tuple[int, int]:
    names = ["ID", "MIN", "MAX", "COUNT", "STEP"]
    try:
        task, first, last, count, step = (
            int(os.environ[f"SLURM_ARRAY_TASK_{name}"]) for name in names
        )
    except (KeyError, ValueError):
        raise UsageError(
            "--shard auto needs a Slurm array job (sbatch --array=1-8); elsewhere give "
            "--shard I/N."
        ) from None
    if step < 1 or (last - first) // step + 1 != count:
        raise UsageError(
            f"--shard auto needs an array without gaps, such as --array=1-{count}; "
            f"this one has {count} tasks from {first} to {last}."
        )
    return (task - first) // step + 1, count


def count_finished(directory: Path) -> int:
    """Count the finished parts in a directory of `Parts`."""
    return len(list(directory.glob("*.npy")))


class Parts:
    """Finished parts of a table, in a hidden directory beside it.

    Parameters
    ----------
    output : str
        ``-``: a temporary directory takes the parts.
    digest : str
        Of the plan; parts of another plan are never mixed in.
    count : int
    """

    def __init__(self, output: str, digest: str, count: int):
        self.count = count
        self.output = output
        if output == "-":
            self.directory = Path(tempfile.gettempdir())
            self.directory /= f".stellar-{os.getpid()}-{digest}.parts"
        else:
            target = Path(output)
            self.directory = target.with_name(f".{target.name}-{digest}.parts")

    @classmethod
    def at(cls, directory: Path, count: int) -> Parts:
        """Return the parts in a directory, to read them."""
        parts = cls(str(directory), "", count)
        parts.directory = directory
        return parts

    def begin(self, columns: list[dict], header: list[tuple]) -> None:
        """Make the directory, and write down what merging needs to know.

        Parameters
        ----------
        columns : list of dict
            Fields of `catalog.Column`, of the table.
        header : list of (name, value, comment)
            Cards that all runs of the plan would write.
        """
        plan = {"parts": self.count, "columns": columns, "header": header}
        path = self.directory / PLAN
        partial = path.with_suffix(f".{os.getpid()}.tmp")
        with catalog.explained(self.output, str(self.directory)):
            self.directory.mkdir(exist_ok=True)
            try:
                partial.write_text(json.dumps(plan))
                partial.replace(path)
            finally:
                partial.unlink(missing_ok=True)

    def share(self, shard: tuple[int, int] | None) -> range:
        """Return the parts of a shard: a contiguous range, as even as possible."""
        number, of = shard or (1, 1)
        return range(
            (number - 1) * self.count // of,
            number * self.count // of,
        )

    def others(self) -> list[Path]:
        """Return the directories of parts of other plans for the same output."""
        if self.output == "-":
            return []
        target = Path(self.output)
        found = target.parent.glob(f".{glob.escape(target.name)}-*.parts")
        return [directory for directory in found if directory != self.directory]

    def path(self, number: int) -> Path:
        """Return the file of a part's rows."""
        return self.directory / f"{number:06d}.npy"

    def paths(self, shard: tuple[int, int] | None = None) -> list[Path]:
        """Return the files of the parts of a shard, or of all."""
        return [self.path(number) for number in self.share(shard)]

    def reasons(self, number: int) -> list[tuple[str, str]]:
        """Return file and reason of a part's rows that have one."""
        text = self.path(number).with_suffix(".json").read_text()
        return [tuple(pair) for pair in json.loads(text)]

    def is_done(self, number: int) -> bool:
        """Say whether a part is there, and whole: a crashed machine may cut it."""
        try:
            self.reasons(number)
            return len(np.load(self.path(number), mmap_mode="r")) > 0
        except (OSError, ValueError, EOFError):
            return False

    def all_done(self) -> bool:
        """Say whether all parts of all shards are there."""
        return all(path.exists() for path in self.paths())

    def store(
        self, number: int, rows: np.ndarray, reasons: list[tuple[int, str]]
    ) -> list[tuple[str, str]]:
        """Write a part; its rows' file appears last and whole.

        Returns
        -------
        list of (str, str)
            As `reasons` does.
        """
        names = [catalog.decode_name(rows["file"][row].decode()) for row, _ in reasons]
        texts = [text for _, text in reasons]
        pairs = list(zip(names, texts, strict=True))
        path = self.path(number)
        partial_path = path.with_suffix(f".{os.getpid()}.tmp")
        with catalog.explained(self.output, str(self.directory)):
            self.directory.mkdir(exist_ok=True)
            try:
                path.with_suffix(".json").write_text(json.dumps(pairs))
                with partial_path.open("wb") as file:
                    np.save(file, rows, allow_pickle=False)
                partial_path.replace(path)
            finally:
                partial_path.unlink(missing_ok=True)
        return pairs

    @contextmanager
    def merging(self) -> Iterator[None]:
        """Let one shard at a time look whether all parts are there.

        A lock of the system, which ends with the process that holds it. Where a file
        system has none, two shards may at worst write the same table twice.
        """
        if not self.directory.exists() or fcntl is None:
            yield
            return
        with (self.directory / "lock").open("w") as file:
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def remove(self) -> None:
        """Drop the parts, and those of other plans: the table is written."""
        for directory in [self.directory, *self.others()]:
            shutil.rmtree(directory, ignore_errors=True)

    def close(self, keep: bool, shared: bool) -> None:
        """Drop the directory, unless it may be of use to a resumed run, or is shared.

        Other shards may be about to write into an empty one.
        """
        if not keep or not (shared or count_finished(self.directory)):
            shutil.rmtree(self.directory, ignore_errors=True)
