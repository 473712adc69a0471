"""Files of tables: formats by name, checks beforehand, temporary names, delivery."""

from __future__ import annotations

import errno
import gzip
import importlib.util
import os
import re
import secrets
import shutil
import sys
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from typing import IO

from stellarcli.errors import OutputExistsError, StellarError, UsageError

FORMATS = {
    ".fits": "fits",
    ".fit": "fits",
    ".fits.gz": "fits",
    ".fit.gz": "fits",
    ".csv": "ascii.csv",
    ".ecsv": "ascii.ecsv",
    ".vot": "votable",
    ".xml": "votable",
    ".parquet": "parquet",
}

ALIKE = 0.7  # of names, as difflib measures; endings are alike anyway


def format_of(path: str) -> str | None:
    """Format of a file name, None if its extension says nothing."""
    name = os.path.basename(path).lower()
    return next(
        (form for ending, form in FORMATS.items() if name.endswith(ending)), None
    )


def check_output(
    path: str | os.PathLike, overwrite: bool = False, formats: Sequence[str] = ()
) -> str:
    """Check that an output can be written, before hours of work go into it.

    Parameters
    ----------
    path : str or path
        File name, ``-`` for standard output; ``!name`` means `overwrite`.
    overwrite : bool
        Whether an existing file may be replaced.
    formats : sequence of str, optional
        Values of `FORMATS` that will do; all by default.

    Returns
    -------
    str
        `path` without the ``!``.

    Raises
    ------
    OutputExistsError
        If the file exists and may not be replaced.
    UsageError
        If the format, or the directory, is not one to write to.
    """
    path = os.fspath(path)
    if path == "-":
        _check_not_terminal()
        return path
    if path.startswith("!"):
        path, overwrite = path[1:], True
    _check_format(path, formats or set(FORMATS.values()))
    check_directory(path)
    check_absent(path, overwrite)
    return path


def check_absent(path: str, overwrite: bool) -> None:
    """Raise `OutputExistsError` if a file is there and may not be replaced."""
    if os.path.exists(path) and not overwrite:
        raise OutputExistsError(
            f"{path} exists; give --overwrite to replace it, or another name."
        )


def _check_not_terminal() -> None:
    if sys.stdout.isatty():
        raise UsageError(
            "standard output is a terminal, which can't show FITS; send it to a file "
            "('> catalogue.fits') or a program, or name a file with --output."
        )


def _check_format(path: str, formats: Collection[str]) -> None:
    form = format_of(path)
    if form not in formats:
        endings = [ending for ending, known in FORMATS.items() if known in formats]
        raise UsageError(
            f"the format of {path!r} isn't one of this output; name it "
            f"*{', *'.join(endings)}, or - for FITS on standard output."
        )
    if form == "parquet" and importlib.util.find_spec("pyarrow") is None:
        raise UsageError(
            f"writing {path} needs pyarrow; run: pip install 'stellarcli[parquet]', or "
            "choose .fits."
        )


def check_directory(path: str) -> None:
    """Raise `UsageError` if a file can't be made at a path."""
    directory = os.path.dirname(path) or "."
    if os.path.isdir(path):
        raise UsageError(f"{path} is a directory; name a file in it.")
    if not os.path.isdir(directory):
        raise UsageError(
            f"there is no directory {directory} for {path}; make it first."
        )
    if not os.access(directory, os.W_OK):
        raise UsageError(f"directory {directory} of {path} is not writable.")


def nearest(path: str) -> str:
    """Hint at the existing name that is most like one that doesn't exist.

    Parameters
    ----------
    path : str
        If a directory of it is missing already, that is what is looked for.

    Returns
    -------
    str
        A sentence after a blank; empty where nothing is alike, or the name exists.
    """
    path = os.path.normpath(path)
    if os.path.exists(path):
        return ""
    while not os.path.isdir(os.path.dirname(path) or "."):
        path = os.path.dirname(path)
    directory, name = os.path.split(path)
    with suppress(OSError):
        near = get_close_matches(name, os.listdir(directory or "."), 1, ALIKE)
        if near:
            return f" Did you mean '{os.path.join(directory, near[0])}'?"
    return ""


@contextmanager
def temporary_name(path: str) -> Iterator[str]:
    """Give a name to write under, beside the output; nothing is left under it.

    It starts with a dot and doesn't end like a spectrum, so that a run over the same
    directory never takes it for one.
    """
    directory = tempfile.gettempdir() if path == "-" else os.path.dirname(path)
    name = re.sub(r"[^\w.-]", "_", os.path.basename(path), flags=re.ASCII)
    temporary = os.path.join(directory, f".{name}.{secrets.token_hex(4)}.part")
    try:
        yield temporary
    finally:
        for leftover in (temporary, temporary + ".gz"):
            with suppress(FileNotFoundError):
                os.remove(leftover)


@contextmanager
def explained(path: str, temporary: str) -> Iterator[None]:
    """Turn the system's and cfitsio's errors into one sentence."""
    try:
        yield
    except BrokenPipeError:
        raise  # the reader of the pipe has seen enough
    except OSError as error:
        target = "standard output" if path == "-" else path
        reason, step = _reason(error, os.path.dirname(temporary) or ".")
        raise StellarError(
            f"can't write {target}: {reason}. Nothing was left behind; {step}."
        ) from error


def _reason(error: OSError, directory: str) -> tuple[str, str]:
    # cfitsio passes no errno on: a failure where no room is left speaks for itself
    room = shutil.disk_usage(directory).free
    if error.errno == errno.ENOSPC or (error.errno is None and room < SCANT):
        return "no space left on the disk", f"free some space, also in {directory}"
    text = error.strerror or " ".join(str(error).split()).rstrip(".")
    return text, "check the disk and the rights, or write elsewhere"


SCANT = 250_000  # bytes; more than cfitsio holds back in its buffers


def deliver(temporary: str, path: str) -> None:
    """Bring a finished file to its place, compressed if its name says so."""
    if path == "-":
        with open(temporary, "rb") as file:
            shutil.copyfileobj(file, sys.stdout.buffer)
        sys.stdout.buffer.flush()
        return
    if path.lower().endswith(".gz"):
        temporary = _compressed(temporary)
    with open(temporary, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _compressed(path: str) -> str:
    """Compress a file; without name and time in it, so that equal tables stay equal."""
    result = path + ".gz"
    with (
        open(path, "rb") as source,
        open(result, "wb") as raw,
        gzip.GzipFile("", "wb", compresslevel=6, fileobj=raw, mtime=0) as target,
    ):
        shutil.copyfileobj(source, target)
    return result


@contextmanager
def literal(path: str) -> Iterator[str]:
    """Name of a file that cfitsio takes as it is.

    Brackets and parentheses mean something to cfitsio, and so does a name that begins
    with ``stdin`` or ``mem:``: a link to the directory hides the former, an absolute
    name the latter.
    """
    plain = path if path == "-" else os.path.abspath(path)
    if not re.search(r"[][()]", plain):
        yield plain
        return
    directory, name = os.path.split(plain)
    with tempfile.TemporaryDirectory(prefix="stellar-") as links:
        if os.path.exists(plain):
            link = os.path.join(links, "table.gz" if name.endswith(".gz") else "table")
            os.symlink(plain, link)
            yield link
        else:
            link = os.path.join(links, "directory")
            os.symlink(directory, link)
            yield os.path.join(link, name)


def opened(path: str, form: str, mode: str) -> IO:
    """Open a file of a format, as text where it is text."""
    if form == "votable":
        return open(path, mode + "b")
    # spreadsheets put a mark at the start, which -sig takes away
    encoding = "utf-8-sig" if mode == "r" else "utf-8"
    return open(path, mode, encoding=encoding)


def write_checksum(hdu) -> None:
    """CHECKSUM and DATASUM without the time that cfitsio puts in their comments.

    It does so where the data sum changes: with the right one there, and an empty
    CHECKSUM, it computes the latter and keeps both comments.
    """
    data = hdu.write_checksum()["datasum"]
    hdu.write_key("CHECKSUM", "0" * 16, comment="HDU checksum")
    hdu.write_key("DATASUM", str(data), comment="data unit checksum")
    hdu.write_checksum()
