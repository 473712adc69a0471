"""Reading a table of any of the formats, also from a pipe or by an extended name."""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Callable, Mapping

import numpy as np

from stellarcli.catalog.files import format_of, literal, nearest, opened
from stellarcli.catalog.table import Table, cards_by_name
from stellarcli.errors import UsageError, one_line
from stellarcli.provenance import Card


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
    if os.path.isdir(file):
        raise UsageError(f"{file} is a directory; name a table in it.")
    if file != "-" and not os.path.isfile(file):
        raise UsageError(f"there is no table {file}; check the name.{nearest(file)}")
    form = format_of(file) or "fits"
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
        raise UsageError(
            f"can't read {name} as {_readable(form)}: {one_line(error)[:300]}. "
            + _next_step(file, extension)
        ) from error


def _next_step(file: str, extension: str) -> str:
    """Say what to look at where a table can't be read."""
    if extension:
        return "Check the filter in brackets, and that it is a whole table."
    if file != "-" and format_of(file) is None:
        return "If it is text with commas, its name has to end in .csv."
    return "Check that it is a whole table of that format."


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

    with literal(file) as plain, fitsio.FITS(plain + extension) as fits:
        hdu = _table_hdu(fits, extension, file + extension)
        names = hdu.get_colnames()
        some = [name for name in names if wanted(name)]
        rows = hdu.read(columns=some) if some else np.zeros(hdu.get_nrows(), [])
        header = cards_by_name(_records(fits[0]) + _records(hdu))
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


def _read_astropy(file: str, form: str, wanted: Callable[[str], bool]) -> Table:
    # opened here: astropy leaves its own file open when the table is damaged
    with opened(file, form, "r") as content:
        if form == "votable":
            table = _astropy_table().read(content, format=form)
        else:
            lines = content.read().rstrip("\n").split("\n")
            if form == "ascii.csv" and (plain := _plain(lines)) is not None:
                arrays = {name: plain[name] for name in plain if wanted(name)}
                size = len(lines) - 1
                return _table(_structured(arrays, size), {}, {}, file)
            table = _astropy_table().read(lines, format=form, guess=False)
    if not table.colnames:
        raise ValueError("it has no columns")
    if form == "ascii.csv" and len(table.colnames) == 1:
        _check_commas(table.colnames[0], file)
    return from_astropy(table, file, wanted)


def _check_commas(heading: str, file: str) -> None:
    for mark, called in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
        if mark in heading:
            raise UsageError(
                f"the columns of {file} have {called} between them; CSV has commas. "
                "Export it again with commas."
            )


def _astropy_table():
    from astropy.table import Table as AstropyTable

    return AstropyTable


WHOLE = re.compile(r"[+-]?\d{1,18}", re.ASCII)
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)
WORD = re.compile(r"(?!nan|inf)[A-Za-z][\w .:/+-]*", re.ASCII | re.IGNORECASE)


def _plain(lines: list[str]) -> dict[str, np.ndarray] | None:
    """Columns of a simple CSV file by name; None where more than this is needed.

    Lists of identifiers and files are simple, and astropy takes half a second to be
    imported. Quotes, gaps, blanks and columns of both words and numbers are left to it.
    """
    names, *rows = (line.split(",") for line in lines)
    shapes = {len(row) for row in rows}
    if shapes != {len(names)} or len(set(names)) < len(names):
        return None
    if not all(WORD.fullmatch(name) for name in names):
        return None
    arrays = {}
    for name, column in zip(names, zip(*rows, strict=True), strict=True):
        if all(map(WHOLE.fullmatch, column)):
            arrays[name] = np.array(column, dtype=np.int64)
        elif all(map(NUMBER.fullmatch, column)):
            arrays[name] = np.array(column, dtype=np.float64)
        elif all(map(WORD.fullmatch, column)) and column == tuple(
            word.strip() for word in column
        ):
            arrays[name] = np.array(column, dtype=str)
        else:
            return None
    return arrays


def from_astropy(
    table, name: str, wanted: Callable[[str], bool] = lambda column: True
) -> Table:
    """Take over a table of astropy's; missing numbers are NaN, missing text is empty.

    Parameters
    ----------
    table : astropy.table.Table
    name : str
        What it was read from.
    wanted : callable, optional
        As `columns` of `read`.
    """
    arrays = {key: _filled(table[key]) for key in table.colnames if wanted(key)}
    units = {key: str(table[key].unit or "") for key in arrays}
    return _table(_structured(arrays, len(table)), dict(table.meta), units, name)


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
