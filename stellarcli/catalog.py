"""The output table: its columns and flag bits, reading, atomic writing, matching.

In memory a table is a NumPy structured array. On disk it is FITS (also on a pipe),
CSV, ECSV, VOTable or Parquet, told apart by the file name.
"""

from __future__ import annotations

import errno
import gzip
import importlib.util
import json
import os
import re
import secrets
import shutil
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import IntFlag
from typing import IO
from urllib.parse import quote, unquote_to_bytes

import numpy as np

from stellarcli.errors import OutputExistsError, StellarError, UsageError
from stellarcli.labels import Label
from stellarcli.provenance import Card

# ---------------------------------------------------------------------------- flags


class Flag(IntFlag):
    """What is to be known about a row. Bits 12 to 23 are spare, 24 to 30 the user's."""

    UNREADABLE = 1 << 0
    NO_COVERAGE = 1 << 1
    LOW_SNR = 1 << 2
    MASKED_PIXELS = 1 << 3
    NO_VELOCITY = 1 << 4
    NOT_A_STAR = 1 << 5
    OUT_OF_RANGE = 1 << 6
    UNLIKE_TRAINING = 1 << 7
    LARGE_ERROR = 1 << 8
    PARTIAL_COVERAGE = 1 << 9
    DISAGREEMENT = 1 << 10
    DUPLICATE = 1 << 11


FLAG_MEANING = {
    Flag.UNREADABLE: "no spectrum could be read",
    Flag.NO_COVERAGE: "no good pixel in the model's wavelength range",
    Flag.LOW_SNR: "low signal-to-noise ratio",
    Flag.MASKED_PIXELS: "many masked pixels",
    Flag.NO_VELOCITY: "no radial velocity known, taken as 0",
    Flag.NOT_A_STAR: "the header's class is not a star",
    Flag.OUT_OF_RANGE: "a value is outside the trained label range",
    Flag.UNLIKE_TRAINING: "spectrum unlike those of the training set",
    Flag.LARGE_ERROR: "a predicted error is large",
    Flag.PARTIAL_COVERAGE: "part of the model's wavelength range is missing",
    Flag.DISAGREEMENT: "members of the ensemble disagree",
    Flag.DUPLICATE: "the same file was given more than once",
}

FAILED = Flag.UNREADABLE | Flag.NO_COVERAGE  # rows without values

# Rows not to trust: without values, or the model has left what it was trained for.
# Low S/N, no velocity and partial coverage aren't here: noise is in the error, most
# stars move by less than a pixel, and what the rest does to a spectrum that matters
# shows as UNLIKE_TRAINING or LARGE_ERROR. Many masked pixels are here, because a
# spectrum mostly filled in by interpolation looks smooth and is trusted too much.
BAD = (
    FAILED
    | Flag.MASKED_PIXELS
    | Flag.NOT_A_STAR
    | Flag.OUT_OF_RANGE
    | Flag.UNLIKE_TRAINING
    | Flag.LARGE_ERROR
    | Flag.DISAGREEMENT
)


def describe_flags(value: int) -> str:
    """Names of the bits set in a flag, ``"LOW_SNR, NO_VELOCITY"``; ``"none"`` for 0."""
    bits = [1 << bit for bit in range(32) if int(value) >> bit & 1]
    names = [Flag(bit).name or f"bit {bit.bit_length() - 1}" for bit in bits]
    return ", ".join(names) or "none"


# -------------------------------------------------------------------------- columns


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes
    ----------
    name : str
    dtype : str
        NumPy type without byte order; ``"S"`` for text, whose width the data decide.
    unit : str
        FITS unit string (TUNIT); empty for none.
    description : str
        One line (TCOMM).
    display : str
        FITS display format (TDISP).
    """

    name: str
    dtype: str
    unit: str = ""
    description: str = ""
    display: str = ""


def columns(labels: Sequence[Label]) -> list[Column]:
    """Columns of a catalogue with a value and a standard error per label.

    Parameters
    ----------
    labels : sequence of Label

    Returns
    -------
    list of Column
        ``objid, file, ra, dec, snr, <label>, <label>_err …, flag``.
    """
    found = [
        Column("objid", "S", "", "identifier given by the survey"),
        Column("file", "S", "", "input file; % and bytes other than ASCII as in a URL"),
        Column("ra", "f8", "deg", "right ascension, ICRS", "F11.6"),
        Column("dec", "f8", "deg", "declination, ICRS", "F10.6"),
        Column("snr", "f4", "", "signal-to-noise ratio per pixel", "F8.2"),
    ]
    for label in labels:
        name, unit, display = label.name, label.unit, label.display
        error = f"standard error of {name}"
        found.append(Column(name, "f4", unit, label.description, display))
        found.append(Column(f"{name}_err", "f4", unit, error, display))
    return [*found, Column("flag", "i4", "", "bits explained by FLAGBn", "I10")]


def columns_of(
    table: np.ndarray, units: Mapping[str, str] | None = None
) -> list[Column]:
    """Columns as a structured array has them, for tables made elsewhere.

    Parameters
    ----------
    table : structured ndarray
    units : mapping of str, optional
        Unit per column name.
    """
    return [
        Column(name, _plain_type(table.dtype[name]), (units or {}).get(name, ""))
        for name in table.dtype.names
    ]


def _plain_type(dtype: np.dtype) -> str:
    if dtype.kind in "SUO":
        return "S"
    return f"{dtype.shape or ''}{dtype.base.str[1:]}"


def rows(columns: Sequence[Column], values: Mapping[str, np.ndarray]) -> np.ndarray:
    """Put arrays into a table.

    Parameters
    ----------
    columns : sequence of Column
    values : mapping of str to ndarray, shape (row,)
        By column name. A column without values is NaN, 0 or empty text.

    Returns
    -------
    structured ndarray, shape (row,)
        Text as ASCII bytes, exactly as wide as its longest value.

    Raises
    ------
    ValueError
        If there are values for no column or for a column that doesn't exist.
    """
    unknown = set(values) - {column.name for column in columns}
    if unknown or not values:
        raise ValueError(f"values for columns {sorted(unknown)} of {columns}")
    size = len(next(iter(values.values())))
    given = {
        column.name: _ascii(values[column.name]) if column.dtype == "S" else None
        for column in columns
        if column.name in values
    }
    widths = {name: text.itemsize for name, text in given.items() if text is not None}
    table = np.zeros(size, dtype=_dtype(columns, widths))
    for column in columns:
        if column.name in values:
            text = given[column.name]
            table[column.name] = values[column.name] if text is None else text
        elif table.dtype[column.name].base.kind == "f":
            table[column.name] = np.nan
    return table


def _dtype(columns: Sequence[Column], widths: Mapping[str, int]) -> np.dtype:
    return np.dtype(
        [
            (c.name, f"S{max(widths.get(c.name, 1), 1)}" if c.dtype == "S" else c.dtype)
            for c in columns
        ]
    )


# ----------------------------------------------------------------------------- text

PRINTABLE = "".join(map(chr, range(0x20, 0x7F)))


def encode_name(name: str | os.PathLike) -> str:
    """File name as ASCII: ``%`` and every byte that isn't printable as in a URL.

    Blanks stay, except first and last, which FITS would lose.
    """
    text = quote(os.fsencode(name), safe=PRINTABLE.replace("%", ""))
    core = text.strip(" ")
    if not core:
        return "%20" * len(text)
    before, _, after = text.partition(core)
    return "%20" * len(before) + core + "%20" * len(after)


def decode_name(text: str) -> str:
    """Inverse of `encode_name`."""
    return os.fsdecode(unquote_to_bytes(text))


def _ascii(values: np.ndarray) -> np.ndarray:
    """Text as bytes; what isn't ASCII is percent-encoded, ``%`` left alone."""
    values = np.asarray(values)
    if values.dtype.kind == "S":
        return values
    values = values.astype(str)
    try:
        return values.astype("S")
    except UnicodeEncodeError:
        return np.array([_ascii_text(text) for text in values.tolist()], dtype="S")


def _ascii_text(text: str) -> str:
    return quote(os.fsencode(text), safe=PRINTABLE)


# -------------------------------------------------------------------------- writing

Part = np.ndarray | str | os.PathLike | Callable[[], np.ndarray]

CHUNK = 65536  # rows converted and handed to the writer at a time

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


def _format(path: str) -> str | None:
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
    _check_directory(path)
    if os.path.exists(path) and not overwrite:
        raise OutputExistsError(
            f"{path} exists; give --overwrite to replace it, or another name."
        )
    return path


def _check_not_terminal() -> None:
    if sys.stdout.isatty():
        raise UsageError(
            "standard output is a terminal, which can't show FITS; send it to a file "
            "('> catalogue.fits') or a program, or name a file with --output."
        )


def _check_format(path: str, formats: Collection[str]) -> None:
    form = _format(path)
    if form not in formats:
        endings = [ending for ending, known in FORMATS.items() if known in formats]
        raise UsageError(
            f"the format of {path!r} isn't one of this output; name it "
            f"*{', *'.join(endings)}, or - for FITS on standard output."
        )
    if form == "parquet" and importlib.util.find_spec("pyarrow") is None:
        raise UsageError(
            f"writing {path} needs pyarrow; run 'pip install stellarcli[parquet]', or "
            "choose .fits."
        )


def _check_directory(path: str) -> None:
    directory = os.path.dirname(path) or "."
    if os.path.isdir(path):
        raise UsageError(f"{path} is a directory; name a file in it.")
    if not os.path.isdir(directory):
        raise UsageError(
            f"there is no directory {directory} for {path}; make it first."
        )
    if not os.access(directory, os.W_OK):
        raise UsageError(f"directory {directory} of {path} is not writable.")


def write(
    path: str | os.PathLike,
    table: np.ndarray,
    columns: Sequence[Column] | None = None,
    header: Iterable[Card] = (),
    overwrite: bool = False,
) -> None:
    """Write a table; see `write_parts`, of which this is the case of one part.

    Parameters
    ----------
    table : structured ndarray, shape (row,)
    columns : sequence of Column, optional
        As in `table` if not given.
    path, header, overwrite
        As in `write_parts`.
    """
    write_parts(path, [table], columns or columns_of(table), header, overwrite)


def write_parts(
    path: str | os.PathLike,
    parts: Iterable[Part],
    columns: Sequence[Column],
    header: Iterable[Card] = (),
    overwrite: bool = False,
    widths: Mapping[str, int] | None = None,
) -> None:
    """Write the rows of many parts as one table.

    The file appears under its name when it is whole and safely on disk; a failure
    leaves nothing behind. Its bytes don't depend on how rows were cut into parts. FITS
    needs memory for `CHUNK` rows (and one part), the other formats for the whole table.

    Parameters
    ----------
    path : str or path
        As in `check_output`, which is called first.
    parts : iterable of structured ndarray, path or callable
        In the order of rows; a path is that of an array in .npy, a callable returns
        one. Read twice, hence kept in a list, if `widths` isn't given.
    columns : sequence of Column
        What to write of each part, in which order and type.
    header : iterable of (keyword, value, comment)
        FITS cards; comment may be left out. Keywords HISTORY and COMMENT may repeat.
        Values that FITS can't hold become ASCII text. ECSV and Parquet keep them as
        metadata, CSV and VOTable don't.
    overwrite : bool
        Whether an existing file may be replaced.
    widths : mapping of str to int, optional
        Bytes of each text column, where known; the longest value otherwise.

    Raises
    ------
    UsageError
        From `check_output`.
    StellarError
        If the disk is full or the file can't be written for another reason.
    ValueError
        If a text is longer than `widths` says, or a part lacks a column.
    """
    path = check_output(path, overwrite)
    if widths is None:
        parts = list(parts)
        widths = string_widths(parts, columns)
    dtype = _dtype(columns, widths)
    chunks = (chunk for part in parts for chunk in _chunks(_load(part), dtype))
    cards = _cards(header, columns)
    with temporary_name(path) as temporary, explained(path, temporary):
        form = "fits" if path == "-" else _format(path)
        if form == "fits":
            _write_fits(temporary, chunks, dtype, columns, cards)
        else:
            whole = np.concatenate([np.zeros(0, dtype), *chunks])
            writer = _write_parquet if form == "parquet" else _write_astropy
            writer(temporary, whole, columns, cards, form)
        _deliver(temporary, path)


def string_widths(parts: Iterable[Part], columns: Sequence[Column]) -> dict[str, int]:
    """Bytes of the longest text in each text column, at least 1.

    Parameters
    ----------
    parts, columns
        As in `write_parts`.

    Returns
    -------
    dict of int
        By column name.
    """
    widths = {column.name: 1 for column in columns if column.dtype == "S"}
    for part in parts:
        table = _load(part)
        for name in widths:
            widths[name] = max(widths[name], _longest(_ascii(table[name])))
    return widths


def _longest(text: np.ndarray) -> int:
    return int(np.char.str_len(text).max(initial=0))


def _load(part: Part) -> np.ndarray:
    if isinstance(part, np.ndarray):
        return part
    return (
        part() if callable(part) else np.load(part, mmap_mode="r", allow_pickle=False)
    )


def _chunks(table: np.ndarray, dtype: np.dtype) -> Iterator[np.ndarray]:
    """Cut a part into pieces of the type that is written."""
    for start in range(0, len(table), CHUNK):
        piece = table[start : start + CHUNK]
        chunk = np.zeros(len(piece), dtype=dtype)
        for name in dtype.names:
            chunk[name] = _fitting(piece[name], dtype[name], name)
        yield chunk


def _fitting(values: np.ndarray, dtype: np.dtype, name: str) -> np.ndarray:
    """Text as bytes that fit; NumPy would cut off the rest without a word."""
    if dtype.kind != "S":
        return values
    text = _ascii(values)
    if _longest(text) > dtype.itemsize:
        raise ValueError(
            f"text of {_longest(text)} bytes in {name}, {dtype.itemsize} wide"
        )
    return text


def _cards(header: Iterable[Card], columns: Sequence[Column]) -> list[Card]:
    """Cards of the caller, and for a flag column those which explain its bits."""
    cards = [(name, _card_value(value), *comment) for name, value, *comment in header]
    if not any(column.name == "flag" for column in columns):
        return cards
    for flag, meaning in FLAG_MEANING.items():
        bit = flag.bit_length() - 1
        cards.append(
            (f"FLAGB{bit}", f"{flag.name}: {meaning}", f"flag bit {bit} = {flag}")
        )
    return [*cards, ("FLAGBAD", int(BAD), "bits of rows not to trust")]


def _card_value(value: object) -> object:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return None  # FITS has no NaN in headers, but undefined values
    if value is None or isinstance(value, bool | int | float):
        return value
    return _ascii_text(str(value))


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


def _deliver(temporary: str, path: str) -> None:
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


def _write_fits(
    path: str,
    chunks: Iterable[np.ndarray],
    dtype: np.dtype,
    columns: Sequence[Column],
    cards: Iterable[Card],
) -> None:
    import fitsio

    with _literal(path) as plain, fitsio.FITS(plain, "rw", clobber=True) as file:
        units = [column.unit for column in columns]
        file.create_table_hdu(dtype=dtype, units=units, extname="CATALOGUE")
        table = file[-1]
        for number, column in enumerate(columns, start=1):
            if column.description:
                table.write_key(f"TCOMM{number}", column.description)
            if column.display:
                table.write_key(f"TDISP{number}", column.display)
        for name, value, *comment in cards:
            _write_card(table, name, value, *comment)
        for chunk in chunks:
            table.append(chunk)
        for hdu in file:
            _write_checksum(hdu)
        size = table.get_offsets()["data_end"]
    # closing flushes cfitsio's buffers, and reports no error
    if os.path.getsize(path) != size:
        raise OSError(f"{os.path.getsize(path)} of {size} bytes were written")


def _write_card(hdu, name: str, value: object, comment: str = "") -> None:
    if name == "HISTORY":
        hdu.write_history(value)
    elif name == "COMMENT":
        hdu.write_comment(value)
    else:
        hdu.write_key(name, value, comment=_ascii_text(comment))


def _write_checksum(hdu) -> None:
    """CHECKSUM and DATASUM without the time that cfitsio puts in their comments.

    It does so where the data sum changes: with the right one there, and an empty
    CHECKSUM, it computes the latter and keeps both comments.
    """
    data = hdu.write_checksum()["datasum"]
    hdu.write_key("CHECKSUM", "0" * 16, comment="HDU checksum")
    hdu.write_key("DATASUM", str(data), comment="data unit checksum")
    hdu.write_checksum()


@contextmanager
def _literal(path: str) -> Iterator[str]:
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


def _write_astropy(
    path: str, rows: np.ndarray, columns: Sequence[Column], cards: list[Card], form: str
) -> None:
    from astropy.table import Table as AstropyTable

    table = AstropyTable(rows)
    table.convert_bytestring_to_unicode()
    for column in columns:
        table[column.name].unit = column.unit or None
        table[column.name].description = column.description or None
    if form == "ascii.ecsv":
        table.meta = _header(cards)
    # opened here: astropy leaves its own file open when the disk is full
    with _opened(path, form, "w") as file:
        table.write(file, format=form)


def _opened(path: str, form: str, mode: str) -> IO:
    if form == "votable":
        return open(path, mode + "b")
    # spreadsheets put a mark at the start, which -sig takes away
    encoding = "utf-8-sig" if mode == "r" else "utf-8"
    return open(path, mode, encoding=encoding)


def _write_parquet(
    path: str, rows: np.ndarray, columns: Sequence[Column], cards: list[Card], form: str
) -> None:
    """Write with pyarrow itself: astropy reads Parquet only where pandas is."""
    import pyarrow
    from pyarrow import parquet

    arrays, fields = [], []
    for column in columns:
        values = rows[column.name]
        text = values.dtype.kind == "S"
        if text or values.ndim > 1:
            values = (values.astype(str) if text else values).tolist()
        arrays.append(pyarrow.array(values, pyarrow.string() if text else None))
        about = {"unit": column.unit, "description": column.description}
        fields.append(pyarrow.field(column.name, arrays[-1].type, metadata=about))
    header = {"stellar": json.dumps(_header(cards))}
    schema = pyarrow.schema(fields, metadata=header)
    parquet.write_table(pyarrow.table(arrays, schema=schema), path)


# -------------------------------------------------------------------------- reading


@dataclass(frozen=True, eq=False)
class Table:
    """A table that was read.

    Attributes
    ----------
    rows : structured ndarray, shape (row,)
        In the machine's byte order; text without blanks around it.
    header : dict
        Cards of the file and the table by keyword; HISTORY and COMMENT joined by line
        ends.
    units : dict of str
        By column name, where there is one.
    name : str
        What it was read from.
    """

    rows: np.ndarray
    header: dict[str, object] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)
    name: str = ""

    def find(self, *names: str) -> str | None:
        """First column called one of `names`, in any case of letters."""
        return find(self.rows, *names)


def find(table: np.ndarray, *names: str) -> str | None:
    """First column of a structured array called one of `names`, in any case."""
    known = {name.lower(): name for name in reversed(table.dtype.names)}
    return next((known[n.lower()] for n in names if n.lower() in known), None)


def read(
    source: str | os.PathLike, columns: Callable[[str], bool] | None = None
) -> Table:
    """Read a table.

    Parameters
    ----------
    source : str or path
        FITS, CSV, ECSV, VOTable or Parquet; ``-`` for FITS on standard input; cfitsio's
        extended names such as ``file.fits[1][snr>10]``. Of a FITS file the first table
        that has rows is read if the name doesn't say which one.
    columns : callable, optional
        Told the name of a column, says whether to read it. Wide survey catalogues have
        hundreds.

    Returns
    -------
    Table

    Raises
    ------
    UsageError
        If there is no such file, or no table in it, or it is damaged.
    """
    source = os.fspath(source)
    file, extension = _split_extended(source)
    if file != "-" and not os.path.isfile(file):
        raise UsageError(f"there is no table {file}; check the name.")
    form = _format(file) or "fits"
    wanted = columns or (lambda name: True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about deviations from the standard
            if form == "fits":
                return _read_fits(file, extension, wanted)
            reader = _read_parquet if form == "parquet" else _read_astropy
            return reader(file, form, wanted)
    except UsageError:
        raise
    except Exception as error:  # a damaged file can raise anything in these libraries
        name = "standard input" if source == "-" else source
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(
            f"can't read {name} as {_readable(form)}: {reason[:300]}. Check that it is "
            "a whole table of that format."
        ) from error


def _readable(form: str) -> str:
    return form.removeprefix("ascii.").upper()


def _split_extended(source: str) -> tuple[str, str]:
    """``file.fits[1][snr>10]`` into file and rest; names of files stay whole."""
    if os.path.exists(source):
        return source, ""
    file, bracket, rest = source.partition("[")
    return file, bracket + rest


def _read_fits(file: str, extension: str, wanted: Callable[[str], bool]) -> Table:
    import fitsio

    with _literal(file) as plain, fitsio.FITS(plain + extension) as fits:
        hdu = _table_hdu(fits, extension, file + extension)
        names = hdu.get_colnames()
        some = [name for name in names if wanted(name)]
        rows = hdu.read(columns=some) if some else np.zeros(hdu.get_nrows(), [])
        header = _header(_records(fits[0]) + _records(hdu))
    units = {name: header.get(f"TUNIT{n}") for n, name in enumerate(names, start=1)}
    return _table(rows, header, units, file + extension)


def _table_hdu(fits, extension: str, name: str):
    """Pick the HDU that an extended name says, or the first table that has rows."""
    chosen = re.match(r"\[\s*(\d+|[A-Za-z]\w*)\s*(?:,\s*\d+\s*)?\]", extension)
    if chosen:
        key = chosen[1]
        hdu = fits[int(key)] if key.isdigit() else fits[key]
        if not hasattr(hdu, "get_colnames"):
            raise UsageError(f"HDU {key} of {name} is not a table.")
        return hdu
    tables = [hdu for hdu in fits if hasattr(hdu, "get_colnames")]
    if not tables:
        raise UsageError(f"there is no table in {name or 'standard input'}.")
    return next((table for table in tables if table.get_nrows()), tables[0])


def _records(hdu) -> list[Card]:
    return [(card["name"], card["value"]) for card in hdu.read_header().records()]


def _header(cards: Iterable[Card]) -> dict[str, object]:
    """Cards as a dictionary; a later one replaces an earlier one of the same name."""
    header: dict[str, object] = {}
    for name, value, *_ in cards:
        if name in ("HISTORY", "COMMENT") and name in header:
            value = f"{header[name]}\n{value}"
        if name:
            header[name] = value
    return header


def _read_astropy(file: str, form: str, wanted: Callable[[str], bool]) -> Table:
    from astropy.table import Table as AstropyTable

    # opened here: astropy leaves its own file open when the table is damaged
    with _opened(file, form, "r") as content:
        if form == "votable":
            table = AstropyTable.read(content, format=form)
        else:
            lines = content.read().rstrip("\n").split("\n")
            table = AstropyTable.read(lines, format=form, guess=False)
    if not table.colnames:
        raise ValueError("it has no columns")
    arrays = {name: _filled(table[name]) for name in table.colnames if wanted(name)}
    units = {name: str(table[name].unit or "") for name in arrays}
    return _table(_structured(arrays, len(table)), dict(table.meta), units, file)


def _read_parquet(file: str, form: str, wanted: Callable[[str], bool]) -> Table:
    from pyarrow import parquet

    schema = parquet.read_schema(file)
    some = [name for name in schema.names if wanted(name)]
    table = parquet.read_table(file, columns=some)
    arrays = {name: _filled(_masked(table[name])) for name in some}
    about = {name: schema.field(name).metadata or {} for name in some}
    units = {name: about[name].get(b"unit", b"").decode() for name in some}
    header = json.loads((schema.metadata or {}).get(b"stellar", b"{}"))
    return _table(_structured(arrays, table.num_rows), header, units, file)


def _masked(column) -> np.ma.MaskedArray:
    """Array of a pyarrow column, masked where it has no value."""
    from pyarrow import types

    if types.is_integer(column.type) or types.is_floating(column.type):
        values = column.fill_null(0).to_numpy()
        return np.ma.array(values, mask=column.is_null().to_numpy())
    return np.ma.array(column.to_pylist())


def _structured(arrays: Mapping[str, np.ndarray], size: int) -> np.ndarray:
    """Table of `size` rows of arrays by column name."""
    dtype = [(name, array.dtype, array.shape[1:]) for name, array in arrays.items()]
    rows = np.zeros(size, dtype=dtype)
    for name, array in arrays.items():
        rows[name] = array
    return rows


def _table(
    rows: np.ndarray, header: dict, units: Mapping[str, str | None], name: str
) -> Table:
    """Table in the machine's byte order, with text stripped."""
    rows = rows.astype(rows.dtype.newbyteorder("="), copy=False)
    for column in rows.dtype.names:
        if rows.dtype[column].kind == "U":
            rows[column] = np.char.strip(rows[column])
    known = {column: unit for column, unit in units.items() if unit}
    return Table(rows, header, known, name)


def _filled(column: np.ndarray) -> np.ndarray:
    """Array of an astropy column; missing numbers are NaN, missing text is empty."""
    values, mask = np.asarray(column), np.asarray(getattr(column, "mask", False))
    if values.dtype.kind in "OS":
        values = np.array([_text(value) for value in values.tolist()], dtype=str)
    if not mask.any():
        return values
    if values.dtype.kind == "U":
        return np.where(mask, "", values)
    if values.dtype.kind in "iu" and np.abs(values[~mask]).max(initial=0) >= 2**53:
        return np.where(mask, "", values.astype(str))  # as float, digits would be lost
    return np.where(mask, np.nan, values.astype(np.float64))


def _text(value: object) -> str:
    if value is None:
        return ""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


# ------------------------------------------------------------------------- matching

IDENTIFIERS = (
    "objid",
    "obsid",
    "specobjid",
    "apogee_id",
    "source_id",
    "gaia_source_id",
    "gaiadr3",
    "sdss_id",
    "sobject_id",
    "miles_id",
    "uid",
)
FILES = ("file", "filename", "fits_file", "path")
RIGHT_ASCENSIONS = ("ra", "raj2000", "_raj2000", "ra_icrs", "ra_deg", "ra_obs")
DECLINATIONS = ("dec", "dej2000", "_dej2000", "de_icrs", "dec_deg", "dec_obs")
DECLINATIONS += ("decj2000", "dec_icrs")

FILLERS = ("", "0", "-1", "-99", "-999", "-9999", "nan", "none", "null", "n/a", "--")


@dataclass(frozen=True, eq=False)
class Match:
    """Rows of one table that belong to rows of another.

    Attributes
    ----------
    index : ndarray of int64, shape (left row,)
        Row on the right, -1 where there is none.
    how : ndarray of str, shape (left row,)
        ``"objid"``, ``"file"``, ``"sky"``, or empty.
    duplicates : int
        Rows on the right with the identifier, or file, of an earlier one, which were
        therefore never taken.
    """

    index: np.ndarray
    how: np.ndarray
    duplicates: int

    @property
    def counts(self) -> dict[str, int]:
        """Rows per way of matching, e.g. ``{"objid": 2000, "sky": 12}``."""
        found = Counter(self.how.tolist())
        return {way: found[way] for way in WAYS if found[way]}


def match(
    left: np.ndarray,
    right: np.ndarray,
    radius: float = 3.0,
    by: Sequence[str] | None = None,
) -> Match:
    """Find the row on the right of every row on the left.

    Three ways are tried in turn, each on the rows that the former left over: object
    identifier, file name, sky position. A table of several surveys may thus match one
    way here and another there; `Match.how` says which.

    - Identifiers are the columns called one of `IDENTIFIERS`. Columns of the same name
      are compared first, then ``objid`` of either side with the others. A number equals
      the text that spells it.
    - Files are compared by their base name without ``.gz``.
    - On the sky the nearest row within the radius is taken.

    Fillers (`FILLERS`, NaN, position 0 0) never match. Where several rows on the right
    have the same identifier or file, the first one is taken. One row on the right may
    belong to many on the left.

    Parameters
    ----------
    left, right : structured ndarray
    radius : float
        Of the search on the sky, arcsec.
    by : sequence of str, optional
        The ways to try, of ``"objid"``, ``"file"``, ``"sky"``; all if not given.

    Returns
    -------
    Match
    """
    return Matcher(right, radius)(left, by)


class Matcher:
    """`match` with one table on the right, for many on the left.

    What is known of the right one (sorted identifiers, directions) is kept, so that a
    catalogue of millions of rows can be matched chunk by chunk.

    Parameters
    ----------
    right : structured ndarray
    radius : float
        Of the search on the sky, arcsec.
    """

    def __init__(self, right: np.ndarray, radius: float = 3.0):
        self.right = right
        self.radius = radius
        self._keys: dict[str, Keys] = {}
        self._sky: tuple | None = None

    def __call__(self, left: np.ndarray, by: Sequence[str] | None = None) -> Match:
        """Find the row on the right of every row on the left, as `match` does."""
        index = np.full(len(left), -1, dtype=np.int64)
        how = np.full(len(left), "", dtype="U5")
        duplicates = 0
        for way in by or WAYS:
            for found, repeated in WAYS[way](left, self):
                new = (index < 0) & (found >= 0)
                index[new], how[new] = found[new], way
                duplicates = max(duplicates, repeated)
        return Match(index, how, duplicates)

    def keys(self, name: str, spell: Callable[[np.ndarray], np.ndarray]) -> Keys:
        """Spelled, sorted keys of a column on the right."""
        if name not in self._keys:
            spelled = spell(self.right[name])
            unique, first = np.unique(spelled, return_index=True)
            repeated = np.count_nonzero(spelled != b"") - np.count_nonzero(
                unique != b""
            )
            self._keys[name] = unique, first, int(repeated)
        return self._keys[name]

    def sky(self) -> tuple:
        """Tree of the directions on the right (None without any), and their rows."""
        from scipy.spatial import cKDTree

        if self._sky is None:
            vectors, rows = _unit_vectors(self.right)
            self._sky = cKDTree(vectors) if len(rows) else None, rows
        return self._sky


Keys = tuple[np.ndarray, np.ndarray, int]  # unique keys, first row of each, duplicates
Found = tuple[np.ndarray, int]  # row on the right or -1, shape (left row,); duplicates


def _by_objid(left: np.ndarray, matcher: Matcher) -> Iterator[Found]:
    names = [
        (find(left, a), find(matcher.right, b))
        for a, b in [(name, name) for name in IDENTIFIERS]
        + [("objid", name) for name in IDENTIFIERS[1:]]
        + [(name, "objid") for name in IDENTIFIERS[1:]]
    ]
    for a, b in names:
        if a and b:
            yield _equal(_identifiers(left[a]), matcher.keys(b, _identifiers))


def _by_file(left: np.ndarray, matcher: Matcher) -> Iterator[Found]:
    a, b = find(left, *FILES), find(matcher.right, *FILES)
    if a and b:
        yield _equal(_file_names(left[a]), matcher.keys(b, _file_names))


def _by_sky(left: np.ndarray, matcher: Matcher) -> Iterator[Found]:
    if not (_has_position(left) and _has_position(matcher.right)):
        return
    vectors, rows = _unit_vectors(left)
    tree, right_rows = matcher.sky()
    index = np.full(len(left), -1, dtype=np.int64)
    if len(rows) and tree is not None:
        chord = 2 * np.sin(np.deg2rad(matcher.radius / 3600) / 2)
        # an ulp more than the radius: the bound itself is excluded
        distance, nearest = tree.query(vectors, distance_upper_bound=chord * 1.000001)
        near = np.isfinite(distance)
        index[rows[near]] = right_rows[nearest[near]]
    yield index, 0


WAYS = {"objid": _by_objid, "file": _by_file, "sky": _by_sky}


def _equal(left: np.ndarray, right: Keys) -> Found:
    """Match keys; empty ones match nothing."""
    unique, first, duplicates = right
    if not unique.size:
        return np.full(len(left), -1, dtype=np.int64), 0
    place = np.minimum(np.searchsorted(unique, left), unique.size - 1)
    same = (unique[place] == left) & (left != b"")
    return np.where(same, first[place], -1), duplicates


def _identifiers(values: np.ndarray) -> np.ndarray:
    """Spell identifiers as bytes, one way per number, fillers empty; shape (row,)."""
    if values.dtype.kind == "f":
        values = _whole_numbers(values)
    text = np.char.strip(_ascii(values))
    digits = np.char.isdigit(text)
    text = np.where(digits & (text != b"0"), np.char.lstrip(text, b"0"), text)
    return _without_fillers(text)


def _whole_numbers(values: np.ndarray) -> np.ndarray:
    """Spell floats as whole numbers where they are; CSV makes them of identifiers."""
    whole = (
        np.isfinite(values) & (np.abs(values) < 2**63) & (values == np.floor(values))
    )
    spelled = np.where(whole, values, 0).astype(np.int64).astype(str)
    return np.where(
        whole, spelled, np.where(np.isfinite(values), values.astype(str), "")
    )


def _file_names(values: np.ndarray) -> np.ndarray:
    """Take base names as bytes, without .gz, fillers empty; shape (row,)."""
    text = np.char.strip(_ascii(values))
    base = np.char.rpartition(text, b"/")[:, 2]
    zipped = np.char.endswith(base, b".gz")
    base = np.where(zipped, np.char.rpartition(base, b".gz")[:, 0], base)
    return _without_fillers(base)


def _without_fillers(text: np.ndarray) -> np.ndarray:
    fillers = np.array([filler.encode() for filler in FILLERS])
    return np.where(np.isin(np.char.lower(text), fillers), b"", text)


def _has_position(table: np.ndarray) -> bool:
    names = find(table, *RIGHT_ASCENSIONS), find(table, *DECLINATIONS)
    return all(name and table.dtype[name].kind in "fiu" for name in names)


def _unit_vectors(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Directions of the rows that have a position, shape (found, 3), and their rows."""
    ra = np.asarray(table[find(table, *RIGHT_ASCENSIONS)], dtype=np.float64)
    dec = np.asarray(table[find(table, *DECLINATIONS)], dtype=np.float64)
    known = (np.abs(ra) <= 360) & (np.abs(dec) <= 90) & ((ra != 0) | (dec != 0))
    found = np.flatnonzero(known)
    ra, dec = np.deg2rad(ra[found]), np.deg2rad(dec[found])
    vectors = [np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)]
    return np.stack(vectors, axis=1), found
