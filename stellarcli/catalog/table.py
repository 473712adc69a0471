"""A table in memory: its columns, and the structured array of its rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from stellarcli.catalog.text import to_ascii
from stellarcli.labels import SUBTYPE, Label
from stellarcli.provenance import Card


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


VELOCITY = [
    Column("rv", "f4", "km/s", "radial velocity that was removed", "F8.2"),
    Column("rv_err", "f4", "km/s", "standard error of rv", "F8.2"),
]


def columns(labels: Sequence[Label], *, velocity: bool = False) -> list[Column]:
    """Columns of a catalogue with a value and a standard error per label.

    Parameters
    ----------
    labels : sequence of Label
    velocity : bool
        With ``rv`` and ``rv_err`` behind ``snr``.

    Returns
    -------
    list of Column
        ``objid, file, ra, dec, snr, <label>, <label>_err …, flag``; before a spectral
        type as a number it as text, ``sptype``.
    """
    found = [
        Column("objid", "S", "", "identifier given by the survey"),
        Column("file", "S", "", "input file; % and bytes other than ASCII as in a URL"),
        Column("ra", "f8", "deg", "right ascension, ICRS", "F11.6"),
        Column("dec", "f8", "deg", "declination, ICRS", "F10.6"),
        Column("snr", "f4", "", "signal-to-noise ratio per pixel", "F8.2"),
    ]
    if velocity:
        found += VELOCITY
    for label in labels:
        name, unit, display = label.name, label.unit, label.display
        error = f"standard error of {name}"
        if name == SUBTYPE:
            found.append(Column("sptype", "S", "", "nearest spectral type"))
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
        column.name: to_ascii(values[column.name]) if column.dtype == "S" else None
        for column in columns
        if column.name in values
    }
    widths = {name: text.itemsize for name, text in given.items() if text is not None}
    table = np.zeros(size, dtype=row_type(columns, widths))
    for column in columns:
        if column.name in values:
            text = given[column.name]
            table[column.name] = values[column.name] if text is None else text
        elif table.dtype[column.name].base.kind == "f":
            table[column.name] = np.nan
    return table


def with_columns(rows: np.ndarray, columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return rows with more columns behind theirs, or others in place of some.

    Parameters
    ----------
    rows : structured ndarray, shape (row,)
    columns : mapping of str to ndarray, shape (row, ...)
    """
    values = {name: rows[name] for name in rows.dtype.names} | dict(columns)
    kinds = [(name, own.dtype, own.shape[1:]) for name, own in values.items()]
    table = np.empty(len(rows), dtype=kinds)
    for name, own in values.items():
        table[name] = own
    return table


def row_type(columns: Sequence[Column], widths: Mapping[str, int]) -> np.dtype:
    """Type of a table's rows; `widths` are the bytes of text columns."""
    return np.dtype(
        [
            (c.name, f"S{max(widths.get(c.name, 1), 1)}" if c.dtype == "S" else c.dtype)
            for c in columns
        ]
    )


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


def cards_by_name(cards: Iterable[Card]) -> dict[str, object]:
    """Cards as a dictionary; a later one replaces an earlier one of the same name."""
    header: dict[str, object] = {}
    for name, value, *_ in cards:
        if name in ("HISTORY", "COMMENT") and name in header:
            value = f"{header[name]}\n{value}"
        if name:
            header[name] = value
    return header
