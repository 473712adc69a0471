"""What the user typed, as tasks: paths of spectra and rows of prepared tables."""

from __future__ import annotations

import glob
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from stellarcli import catalog
from stellarcli.errors import StellarError, UsageError
from stellarcli.prepared import PreparedTable, is_prepared

SPECTRUM_ENDINGS = (".fits", ".fit", ".fits.gz", ".fit.gz")
IMAGE_NAME = re.compile(r"frame-[ugriz]-", re.IGNORECASE)  # as SDSS names them
TEXT_ENDINGS = (".txt", ".dat", ".asc", ".txt.gz", ".dat.gz")
TABLE_ENDINGS = (".csv", ".ecsv", ".vot", ".parquet")
PIPED = ".piped"  # ending of the file that standard input is kept in
PREPARED_ENDINGS = (".fits", ".fit", PIPED)
PATH_COLUMNS = {name.encode() for name in catalog.FILES}
BLOCK = 2880  # bytes; the recipe is in a prepared table's first one
HEAD = 1 << 14  # bytes looked at to tell a catalogue from a spectrum
NAXIS_CARD = slice(160, 240)  # third card of every FITS file
OWN_TABLE = b"EXTNAME = 'CATALOGUE'"
COLUMN_CARD = re.compile(rb"TTYPE\d+ *= *'([^']*)'")


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


def expand(
    arguments: Sequence[str],
    output: str = "",
    note: Callable[[str], None] = lambda text: None,
) -> list[str]:
    """Turn arguments into paths of spectra and prepared tables.

    A catalogue with a column of paths is a list of inputs where it can be meant as
    one: alone, as ``@catalogue``, with rows selected, or on standard input. Among other
    inputs it is left out: often it is what an earlier run wrote beside its spectra.

    Parameters
    ----------
    arguments : sequence of str
        Files; directories (their FITS files, recursively, sorted; hidden ones and SDSS
        frames left out); quoted globs; ``@list.txt`` with a path per line; catalogues
        with a column of paths; ``-`` for a prepared table or such a catalogue on
        standard input.
    output : str
        Left out where a directory or a glob brings it up: an earlier output is no
        spectrum.
    note : callable
        Told, in a line of text, which lists were followed and what was left out.

    Returns
    -------
    list of str
        In the order given. A file that doesn't exist stays in, and becomes a row, if it
        is listed somewhere or another input exists.

    Raises
    ------
    UsageError
        If a list or catalogue can't be read, nothing is left, or none of `arguments`
        exists.
    """
    own = os.path.abspath(output.removeprefix("!")) if output else ""
    paths: list[str] = []
    texts: list[str] = []
    left_out: list[str] = []
    for argument in arguments:
        if argument == "-":
            paths += _from_pipe(note)
        elif _is_list(argument, alone=len(arguments) == 1):
            paths += _listed(argument.removeprefix("@"), note)
        else:
            for path in _found(argument, own, texts):
                (left_out if kind(path) == "catalogue" else paths).append(path)
    if left_out:
        note(_about_catalogues(left_out))
    if texts:
        which = f"{len(texts)} text files" if texts[1:] else "a text file"
        note(
            f"{which} in a directory left out, such as {texts[0]}; to read columns of "
            "text as spectra, name the files, or give a pattern such as '*.txt'."
        )
    if not paths:
        raise UsageError(
            f"no spectra in {', '.join(map(repr, arguments))}: a directory must hold "
            f"files ending in {', '.join(SPECTRUM_ENDINGS)}, a list or catalogue at "
            "least one path."
        )
    if paths == list(arguments) and all(map(_is_missing, paths)):
        what = f"there is no '{paths[0]}'"
        if paths[1:]:
            what = f"none of the {len(paths)} inputs exists, not even '{paths[0]}'"
        raise UsageError(f"{what}; check the name.{catalog.nearest(paths[0])}")
    return paths


def tasks(paths: Iterable[str], size: int) -> Iterator[Task]:
    """Cut paths into tasks of at most `size` spectra, in order.

    The cuts depend on the paths alone, so that shards and resumed runs see the same
    batches as an undivided one.

    Raises
    ------
    UsageError
        If a prepared table is damaged.
    """
    waiting: list[str] = []
    for path in paths:
        prepared = path.lower().endswith(PREPARED_ENDINGS) and kind(path) == "prepared"
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


def kind(path: str) -> str:
    """Tell what a file is from its first bytes.

    Parameters
    ----------
    path : str

    Returns
    -------
    {'prepared', 'catalogue', 'spectrum'}
        A prepared table; a table with a column of paths, or that this program wrote;
        or anything else: a spectrum, or what its reader shall complain about.
        Compressed FITS files and pipes are taken for spectra unseen.
    """
    if path.lower().endswith(".gz"):
        return "spectrum"
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return "spectrum"
    if not stat.S_ISREG(status.st_mode):
        return "spectrum"
    return _kind(path, status.st_ino, status.st_mtime_ns)


@lru_cache(maxsize=1 << 15)  # every file is asked for twice
def _kind(path: str, inode: int, time: int) -> str:
    if path.lower().endswith(TABLE_ENDINGS):
        return "catalogue" if _has_path_column(path) else "spectrum"
    head = _head(path)
    if not head.startswith(b"SIMPLE"):
        return "spectrum"
    if b"RECIPE" in head[:BLOCK] and is_prepared(path):
        return "prepared"
    if head[NAXIS_CARD].partition(b"=")[2].split(b"/")[0].strip() != b"0":
        return "spectrum"  # an image: catalogues and prepared tables start empty
    blocks = range(BLOCK, len(head), BLOCK)
    table = next((n for n in blocks if head.startswith(b"XTENSION", n)), len(head))
    columns = {name.strip().lower() for name in COLUMN_CARD.findall(head, table)}
    listing = columns & PATH_COLUMNS or head.find(OWN_TABLE, table) > 0
    return "catalogue" if listing and b"flux" not in columns else "spectrum"


def _head(path: str) -> bytes:
    """First bytes of a file; none if it can't be read. Faster than `open`."""
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError:
        return b""
    try:
        return os.read(file, HEAD)
    except OSError:
        return b""
    finally:
        os.close(file)


def _has_path_column(path: str) -> bool:
    try:
        return catalog.read(path).find(*catalog.FILES) is not None
    except UsageError:
        return False  # two columns of text perhaps


def _is_list(argument: str, alone: bool) -> bool:
    """Say whether an argument is a list of inputs, rather than an input."""
    if argument.startswith("@"):
        return True
    if os.path.exists(argument):
        return alone and kind(argument) == "catalogue"
    file, bracket, _ = argument.partition("[")
    return bool(bracket) and os.path.isfile(file)  # rows, by cfitsio's extended name


def _found(argument: str, own: str, texts: list[str]) -> list[str]:
    """Files that a directory, a quoted glob or the name of a file stands for.

    Texts in directories may be anything; they are appended to `texts`.
    """
    if os.path.isdir(argument):
        found = _below(argument, texts)
        return [path for path in found if os.path.abspath(path) != own]
    if os.path.exists(argument) or not glob.has_magic(argument):
        return [argument]
    names = sorted(glob.glob(argument, recursive=True))
    if not names:
        zipped = len(glob.glob(f"{argument}.gz", recursive=True))
        hint = f" {zipped} files match '{argument}.gz'." if zipped else ""
        raise UsageError(
            f"no file matches {argument!r}; check the pattern with 'ls', and the "
            f"directory that it starts from.{hint}"
        )
    others = [name for name in names if os.path.abspath(name) != own]
    return [path for name in others for path in _found(name, own, texts)]


def _about_catalogues(names: Sequence[str]) -> str:
    """Say why catalogues among other inputs were left out."""
    more = f" and {len(names) - 1} more" if names[1:] else ""
    which = "are catalogues" if more else "is a catalogue"
    return (
        f"{names[0]}{more} {which}, not spectra: left out; @{names[0]} stands for the "
        "files that it lists."
    )


def _is_missing(path: str) -> bool:
    """Say whether there is no such file; not if it only can't be reached."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (OSError, ValueError):
        return False
    return False


def _from_pipe(note: Callable[[str], None]) -> list[str]:
    """Keep standard input in a file that lives as long as the program."""
    import atexit

    if sys.stdin is None or sys.stdin.isatty():
        raise UsageError(
            "standard input is a terminal; pipe a table into it, or name files."
        )
    number, name = tempfile.mkstemp(prefix=".stellar-", suffix=PIPED)
    atexit.register(Path(name).unlink, missing_ok=True)
    try:
        with open(number, "wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
    except OSError as error:
        raise StellarError(
            f"can't keep standard input in {name}: {error.strerror}. Free some space, "
            "or set TMPDIR to a directory that has it."
        ) from None
    if os.path.getsize(name) == 0:
        raise UsageError("standard input is empty: the program before failed.")
    if kind(name) == "prepared":
        return [name]
    try:
        table = catalog.read(name)
    except UsageError as error:
        raise UsageError(str(error).replace(name, "standard input")) from None
    paths = paths_of(replace(table, name="the table on standard input"))
    note(f"{len(paths)} files listed in the table on standard input")
    return paths


def _listed(name: str, note: Callable[[str], None]) -> list[str]:
    """Paths in a catalogue, or in a text file."""
    file = name if os.path.exists(name) else name.partition("[")[0]
    if kind(file) == "catalogue":
        paths = paths_of(catalog.read(name), os.path.dirname(file))
    elif file != name:
        raise UsageError(
            f"{name!r}: rows can only be selected from a catalogue with a column of "
            f"paths ({', '.join(catalog.FILES)}), and '{file}' is none."
        )
    else:
        paths = _lines(name)
    note(f"{len(paths)} files listed in {name}")
    if len(paths) > 1 and all(map(_is_missing, paths)):
        raise UsageError(
            f"'{name}' lists {len(paths)} files, and none exists, not even "
            f"'{paths[0]}'; run this where they are, or fetch them first."
        )
    return paths


def _lines(name: str) -> list[str]:
    """Paths in a text file; blank lines and those that start with # don't count."""
    try:
        content = Path(name).read_bytes()
    except OSError as error:
        raise UsageError(
            f"list '{name}': {error.strerror}. It must be a text file with a path per "
            f"line, or a catalogue with a column of paths.{catalog.nearest(name)}"
        ) from None
    if b"\0" in content:
        raise UsageError(
            f"list '{name}' is neither text nor a catalogue with a column of paths "
            f"({', '.join(catalog.FILES)}); leave out the @ to read a spectrum."
        )
    lines = [line.strip() for line in content.split(b"\n")]
    return [os.fsdecode(line) for line in lines if line and not line.startswith(b"#")]


def _below(directory: str, texts: list[str]) -> list[str]:
    """FITS files below a directory; one that can't be listed is an input that fails."""
    found: list[str] = []
    seen: set[tuple[int, int]] = set()  # links may lead round in circles
    walk = os.walk(
        directory,
        onerror=lambda error: found.append(str(error.filename)),
        followlinks=True,
    )
    for folder, folders, files in walk:
        about = os.stat(folder)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if (about.st_dev, about.st_ino) in seen:
            folders.clear()
            continue
        seen.add((about.st_dev, about.st_ino))
        found += [
            os.path.join(folder, name)
            for name in sorted(files)
            if name.lower().endswith(SPECTRUM_ENDINGS)
            and not name.startswith(".")
            and not IMAGE_NAME.match(name)
        ]
        texts += [
            os.path.join(folder, name)
            for name in sorted(files)
            if name.lower().endswith(TEXT_ENDINGS) and not name.startswith(".")
        ]
    return found


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
    return [catalog.located(str(text), directory) for text in table.rows[column]]
