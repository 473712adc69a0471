"""What the user typed, as tasks: paths of spectra and rows of prepared tables."""

from __future__ import annotations

import glob
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from stellarcli import catalog
from stellarcli.catalog import decode_name
from stellarcli.errors import UsageError
from stellarcli.prepared import PreparedTable, is_prepared

SPECTRUM_ENDINGS = (".fits", ".fit", ".fits.gz", ".fit.gz")
TABLE_ENDINGS = (".csv", ".ecsv", ".vot", ".parquet")
HEAD = 1 << 16  # bytes looked at to tell a catalogue from a spectrum
TEXT_CARD = re.compile(rb"TTYPE\d+ *= *'([^']*)'")


@dataclass(frozen=True)
class Task:
    """Spectra that are worked on together: some files, or some rows of a table.

    Attributes
    ----------
    paths : tuple of str
        Raw files; empty for rows of a table.
    table : str
        Prepared table.
    start, stop : int
        Rows of it.
    """

    paths: tuple[str, ...] = ()
    table: str = ""
    start: int = 0
    stop: int = 0

    def __len__(self) -> int:
        """Return the number of spectra (of files, where these hold exposures)."""
        return len(self.paths) or self.stop - self.start


def expand(arguments: Sequence[str]) -> list[str]:
    """Turn arguments into paths of spectra and prepared tables.

    Parameters
    ----------
    arguments : sequence of str
        Files; directories (their FITS files, recursively, sorted); quoted globs;
        ``@list.txt`` with a path per line; catalogues with a column of paths; ``-``
        for a prepared table or such a catalogue on standard input.

    Returns
    -------
    list of str
        In the order given. A file that doesn't exist stays in: it becomes a row.

    Raises
    ------
    UsageError
        If a list or catalogue can't be read, or nothing is left.
    """
    paths = [path for argument in arguments for path in _expand(argument)]
    if not paths:
        raise UsageError(
            f"no spectra in {', '.join(map(repr, arguments))}: a directory must hold "
            f"files ending in {', '.join(SPECTRUM_ENDINGS)}."
        )
    return paths


def tasks(paths: Sequence[str], size: int) -> Iterator[Task]:
    """Cut paths into tasks of at most `size` spectra, in order.

    The cuts depend on the paths alone, so that shards and resumed runs see the same
    batches as an undivided one.
    """
    waiting: list[str] = []
    for path in paths:
        prepared = path.lower().endswith((".fits", ".fit", ".tmp")) and is_prepared(
            path
        )
        if waiting and (prepared or len(waiting) == size):
            yield Task(paths=tuple(waiting))
            waiting = []
        if prepared:
            rows = len(PreparedTable(path))
            for start in range(0, rows, size):
                yield Task(table=path, start=start, stop=min(start + size, rows))
        else:
            waiting.append(path)
    if waiting:
        yield Task(paths=tuple(waiting))


def _expand(argument: str) -> Iterable[str]:
    if argument == "-":
        return _from_pipe()
    if argument.startswith("@"):
        return _listed(argument[1:])
    if os.path.isdir(argument):
        return _below(argument)
    if glob.has_magic(argument) and not os.path.exists(argument):
        if found := sorted(glob.glob(argument, recursive=True)):
            return [path for name in found for path in _expand(name)]
        if not os.path.exists(argument.partition("[")[0]):
            raise UsageError(f"no file matches {argument!r}.")
    if _has_paths(argument):
        return paths_of(catalog.read(argument), os.path.dirname(argument))
    return [argument]


def _from_pipe() -> list[str]:
    """Spool standard input to a file that lives as long as the program."""
    import atexit

    if sys.stdin.isatty():
        raise UsageError(
            "standard input is a terminal; pipe a table into it, or name files."
        )
    with tempfile.NamedTemporaryFile(
        prefix=".stellar-", suffix=".tmp", delete=False
    ) as file:
        atexit.register(Path(file.name).unlink, missing_ok=True)
        shutil.copyfileobj(sys.stdin.buffer, file)
    if os.path.getsize(file.name) == 0:
        raise UsageError("standard input is empty: the program before failed.")
    if is_prepared(file.name):
        return [file.name]
    table = catalog.read(file.name)
    table.name = "the table on standard input"
    return paths_of(table)


def _listed(name: str) -> list[str]:
    try:
        lines = os.fsdecode(Path(name).read_bytes()).splitlines()
    except OSError as error:
        raise UsageError(f"list '{name}': {error.strerror}.") from None
    return [line.strip() for line in lines if line.strip() and line[0] != "#"]


def _below(directory: str) -> list[str]:
    """FITS files below a directory; one that can't be listed is an input that fails."""
    found: list[str] = []
    walk = os.walk(directory, onerror=lambda error: found.append(str(error.filename)))
    for folder, folders, files in walk:
        folders.sort()
        found += [
            os.path.join(folder, name)
            for name in sorted(files)
            if name.lower().endswith(SPECTRUM_ENDINGS) and not name.startswith(".")
        ]
    return found


def _has_paths(argument: str) -> bool:
    """Say whether a file is a table with a column of paths, from its first bytes."""
    file = argument if os.path.exists(argument) else argument.partition("[")[0]
    if file.lower().endswith(TABLE_ENDINGS):
        try:
            return catalog.read(file).find(*catalog.FILES) is not None
        except UsageError:
            return False  # two columns of text perhaps
    try:
        with open(file, "rb") as stream:
            head = stream.read(HEAD)
    except OSError:
        return False
    if not head.startswith(b"SIMPLE"):
        return False
    names = {name.strip().lower().decode() for name in TEXT_CARD.findall(head)}
    return bool(names & set(catalog.FILES)) and "flux" not in names


def paths_of(table: catalog.Table, directory: str = "") -> list[str]:
    """Return the paths in a catalogue.

    Parameters
    ----------
    table : Table
    directory : str
        Of the catalogue: where paths that don't exist from here are looked for.

    Raises
    ------
    UsageError
        If no column holds paths.
    """
    column = table.find(*catalog.FILES)
    if column is None:
        raise UsageError(
            f"{table.name} has neither spectra nor a column of paths "
            f"({', '.join(catalog.FILES)})."
        )
    return [_located(str(text), directory) for text in table.rows[column]]


def _located(text: str, directory: str) -> str:
    """Path as written or percent-decoded, from here or from the catalogue."""
    decoded = decode_name(text)
    choices = [text, decoded, os.path.join(directory, decoded)]
    return next((path for path in choices if os.path.exists(path)), decoded)
