"""Writing a table, atomically and part by part, in any of the formats."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stellarcli.catalog.files import (
    check_output,
    deliver,
    explained,
    format_of,
    literal,
    opened,
    temporary_name,
    write_checksum,
)
from stellarcli.catalog.flags import flag_cards
from stellarcli.catalog.table import Column, cards_by_name, columns_of, row_type
from stellarcli.catalog.text import ascii_text, to_ascii
from stellarcli.provenance import Card

Part = np.ndarray | str | os.PathLike | Callable[[], np.ndarray]

CHUNK = 65536  # rows converted and handed to the writer at a time


@dataclass(frozen=True, eq=False)
class Extension:
    """A further table of a FITS file.

    Attributes
    ----------
    name : str
        EXTNAME.
    columns : sequence of Column
    parts : iterable of structured ndarray
        Read once.
    widths : mapping of str to int
        Bytes of each text column.
    """

    name: str
    columns: Sequence[Column]
    parts: Iterable[Part]
    widths: Mapping[str, int]


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
    extensions: Sequence[Extension] = (),
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
    extensions : sequence of Extension
        Further tables, which formats other than FITS leave out.

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
    dtype = row_type(columns, widths)
    cards = _cards(header, columns)
    with temporary_name(path) as temporary, explained(path, temporary):
        form = "fits" if path == "-" else format_of(path)
        if form == "fits":
            first = Extension("CATALOGUE", columns, parts, widths)
            _write_fits(temporary, [first, *extensions], cards)
        else:
            chunks = (chunk for part in parts for chunk in _chunks(_load(part), dtype))
            whole = np.concatenate([np.zeros(0, dtype), *chunks])
            writer = _write_parquet if form == "parquet" else _write_astropy
            writer(temporary, whole, columns, cards, form)
        deliver(temporary, path)


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
            widths[name] = max(widths[name], _longest(to_ascii(table[name])))
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
    text = to_ascii(values)
    if _longest(text) > dtype.itemsize:
        raise ValueError(
            f"text of {_longest(text)} bytes in {name}, {dtype.itemsize} wide"
        )
    return text


def _cards(header: Iterable[Card], columns: Sequence[Column]) -> list[Card]:
    """Cards of the caller, and for a flag column those which explain its bits."""
    cards = [(name, _card_value(value), *comment) for name, value, *comment in header]
    if any(column.name == "flag" for column in columns):
        cards += flag_cards()
    return cards


def _card_value(value: object) -> object:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return None  # FITS has no NaN in headers, but undefined values
    if value is None or isinstance(value, bool | int | float):
        return value
    return ascii_text(str(value))


def _write_fits(path: str, tables: Sequence[Extension], cards: Iterable[Card]) -> None:
    import fitsio

    with literal(path) as plain, fitsio.FITS(plain, "rw", clobber=True) as file:
        for number, table in enumerate(tables):
            _append_table(file, table, () if number else cards)
        for hdu in file:
            write_checksum(hdu)
        size = file[-1].get_offsets()["data_end"]
    # closing flushes cfitsio's buffers, and reports no error
    if os.path.getsize(path) != size:
        raise OSError(f"{os.path.getsize(path)} of {size} bytes were written")


def _append_table(file, content: Extension, cards: Iterable[Card]) -> None:
    dtype = row_type(content.columns, content.widths)
    units = [column.unit for column in content.columns]
    file.create_table_hdu(dtype=dtype, units=units, extname=content.name)
    table = file[-1]
    for number, column in enumerate(content.columns, start=1):
        if column.description:
            table.write_key(f"TCOMM{number}", column.description)
        if column.display:
            table.write_key(f"TDISP{number}", column.display)
    for name, value, *comment in cards:
        _write_card(table, name, value, *comment)
    for part in content.parts:
        for chunk in _chunks(_load(part), dtype):
            table.append(chunk)


def _write_card(hdu, name: str, value: object, comment: str = "") -> None:
    if name == "HISTORY":
        hdu.write_history(value)
    elif name == "COMMENT":
        hdu.write_comment(value)
    else:
        hdu.write_key(name, value, comment=ascii_text(comment))


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
        table.meta = cards_by_name(cards)
    # opened here: astropy leaves its own file open when the disk is full
    with opened(path, form, "w") as file:
        table.write(file, format=form)


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
    header = {"stellar": json.dumps(cards_by_name(cards))}
    schema = pyarrow.schema(fields, metadata=header)
    parquet.write_table(pyarrow.table(arrays, schema=schema), path)
