"""One catalogue of a comparison: which of its columns are what, and in which unit.

Names are compared without regard to case. A column belongs to a label if it is called
like it, or by one of its other names (`other_names`), or if ``--column`` says so; its
standard error is found by the habits in `ERRORS`.

Units: a label of the toolkit is brought to the toolkit's unit, any other one to the
truth's. A column without a unit is taken to be in that unit already; where most of its
values can't be (`labels.Label.sane`), or where a unit can't be converted, the
comparison is refused. Logarithms (log g, abundances) have no unit that could be
converted: whatever text stands there is ignored.

Spectral types may be numbers or text (`stellarcli.sptype`) on either side.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from stellarcli import catalog, labels, sptype
from stellarcli.errors import UsageError
from stellarcli.labels import SUBTYPE, SUBTYPE_COLUMNS

SNR = ("snr", "snrg", "snr_g", "sn_g", "sn", "s_n", "snr_median")
OTHER_NAMES = {
    "teff": ("t_eff", "teff_lasp", "teff_k", "teff_adop", "teff_gspphot"),
    "logg": ("log_g", "logg_lasp", "logg_adop", "logg_gspphot"),
    "feh": ("feh_lasp", "feh_adop"),
    SUBTYPE: ("sptype_number", "spt_num", "subclass_num", *SUBTYPE_COLUMNS[1:]),
}
ERRORS = ("{}_err", "e_{}", "err_{}", "{}_error", "{}_unc", "sigma_{}", "{}_sigma")
FILLERS = (-99.0, -999.0, -9999.0)  # of missing numbers
NO_LABELS = {
    *catalog.IDENTIFIERS,
    *catalog.FILES,
    *catalog.RIGHT_ASCENSIONS,
    *catalog.DECLINATIONS,
    *SNR,
    "flag",
}


def other_names(label: str) -> tuple[str, ...]:
    """Names that other programs give to a label, its own one first.

    >>> other_names("mg_h")
    ('mg_h', 'mgh', '[mg/h]')
    """
    found = (label, *OTHER_NAMES.get(label, ()))
    if label == "feh" or (label in labels.LABELS and label.endswith("_h")):
        element = label.removesuffix("h").removesuffix("_")
        spellings = (f"{element}_h", f"{element}h", f"[{element}/h]")
        found += tuple(name for name in spellings if name not in found)
    return found


def label_name(name: str) -> str:
    """Return what the toolkit calls a label: ``"sptype_num"`` for ``"sptype"``."""
    return labels.get(name.lower()).name


KNOWN = tuple(labels.LABELS)


# ---------------------------------------------------------------------- assignments


@dataclass(frozen=True)
class Assignment:
    """``[SIDE:]NAME=VALUE`` of an option.

    Attributes
    ----------
    side : str
        ``"truth"``, the number of a catalogue from 1, or empty for all.
    name, value : str
        What this program calls it; the column, or the unit, that it stands for.
    text : str
        As given.
    """

    side: str
    name: str
    value: str
    text: str

    @classmethod
    def parse(cls, text: str, option: str) -> Assignment:
        """Read one value of an option.

        Raises
        ------
        UsageError
            If it has another form, or column and label are the wrong way round.
        """
        left, equals, value = text.partition("=")
        side, colon, name = left.rpartition(":")
        side, name, value = side.strip().lower(), name.strip(), value.strip()
        known = not colon or side == "truth" or side.isdigit()
        if not (equals and name and value and known):
            raise UsageError(
                f"{option} {text!r} can't be read; write it like teff=Teff_lasp, "
                "truth:teff=Teff_lasp or 1:teff=Teff_lasp (catalogues count from 1)."
            )
        if option == "--column" and value.lower() in KNOWN and not _is_known(name):
            own = left.rpartition(":")[2].strip()
            raise UsageError(
                f"{option} {text!r}: {own!r} is no label ({', '.join(KNOWN)}). If it "
                f"is a column, the label goes first, as in {value}={own}."
            )
        return cls(side, label_name(name), value, text)

    def concerns(self, number: int, truth: bool) -> bool:
        """Say whether this is about a catalogue."""
        return self.side in ("", str(number)) or (truth and self.side == "truth")


@dataclass(frozen=True)
class Wishes:
    """What the options say about columns.

    Attributes
    ----------
    columns, units : tuple of Assignment
    target : tuple of str
        Labels to compare; all that both sides have if empty.
    extra : tuple of str
        Further columns that are needed: bins, selection, stars.
    """

    columns: tuple[Assignment, ...] = ()
    units: tuple[Assignment, ...] = ()
    target: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()


# --------------------------------------------------------------------------- reading


@dataclass(frozen=True, eq=False)
class Side:
    """One catalogue.

    Attributes
    ----------
    name : str
        How the tables call it.
    source : str
        What it was read from.
    key : str
        How assignments call it: its number, or ``"truth"``.
    rows : structured ndarray, shape (row,)
        Needed columns under lower-case names, text as bytes.
    values, errors : dict of str
        Column of each label, and of its standard error where there is one.
    units : dict of str
        By column, where known.
    header : dict
    applied : tuple of Assignment
        Those that named a column which is there.
    """

    name: str
    source: str
    key: str
    rows: np.ndarray
    values: dict[str, str]
    errors: dict[str, str]
    units: dict[str, str] = field(default_factory=dict)
    header: dict[str, object] = field(default_factory=dict)
    applied: tuple[Assignment, ...] = ()

    def has(self, name: str) -> bool:
        """Say whether there is a column."""
        return name.lower() in self.rows.dtype.names

    def column(self, name: str) -> np.ndarray:
        """Return a column; text as text."""
        values = self.rows[name.lower()]
        return np.char.decode(values, "ascii") if values.dtype.kind == "S" else values


def read(source: str, number: int, truth: bool, wishes: Wishes) -> Side:
    """Read the columns that a comparison needs.

    Parameters
    ----------
    source : str
        As for `catalog.read`.
    number : int
        Of the catalogue, from 1.
    truth : bool
        Whether it is the truth.
    wishes : Wishes

    Raises
    ------
    UsageError
        If it can't be read, or an assignment names a column that it lacks.
    """
    mapped = [a for a in wishes.columns if a.concerns(number, truth)]
    table = _read(source, lambda names: _needed(names, mapped, wishes))
    rows, units, applied = _renamed(table, mapped)
    values = _values(rows.dtype.names, mapped, wishes.target)
    values = {
        name: column
        for name, column in values.items()
        if rows.dtype[column].kind in ("fiuSU" if name == SUBTYPE else "fiu")
    }
    errors = {
        name: found
        for name, column in values.items()
        if (found := _error_of(name, column, rows.dtype.names))
        and rows.dtype[found].kind in "fiu"
    }
    for a in wishes.units:
        column = values.get(a.name)
        if column and a.concerns(number, truth) and (a.side or column not in units):
            units[column] = a.value
            units.pop(errors.get(a.name, ""), None)
    return Side(
        name=_name(source),
        source=table.name or source,
        key="truth" if truth else str(number),
        rows=rows,
        values=values,
        errors=errors,
        units=units,
        header=table.header,
        applied=applied,
    )


def _name(source: str) -> str:
    """Name of a catalogue in tables: that of the file, without folder and ending."""
    if source == "-":
        return "stdin"
    file, bracket, rest = source.partition("[")
    base = os.path.basename(file)
    endings = sorted(catalog.FORMATS, key=len, reverse=True)
    ending = next((e for e in endings if base.lower().endswith(e)), "")
    return base[: len(base) - len(ending)] + bracket + rest


def _read(source: str, needed: Callable[[Sequence[str]], set[str]]) -> catalog.Table:
    """Read a table without columns that nobody needs, if its format allows that."""
    file = source.partition("[")[0].lower()
    if source == "-" or file.endswith((".csv", ".ecsv", ".vot", ".xml")):
        table = catalog.read(source)
        return _some(table, needed(table.rows.dtype.names))
    names: list[str] = []
    catalog.read(source, lambda name: bool(names.append(name)))
    some = needed(names)
    return _some(catalog.read(source, lambda name: name.lower() in some), some)


def _some(table: catalog.Table, names: Iterable[str]) -> catalog.Table:
    """Numbers and text of some columns, with lower-case names and text as bytes."""
    wanted, columns = set(names), {}
    for name in table.rows.dtype.names:
        values = table.rows[name]
        small = name.lower()
        if small in columns or small not in wanted or values.ndim > 1:
            continue
        if values.dtype.kind in "fiubSU":
            columns[small] = _bytes(values)
    dtype = [(name, values.dtype) for name, values in columns.items()]
    rows = np.empty(len(table.rows), dtype=dtype)
    for name, values in columns.items():
        rows[name] = values
    units = {n.lower(): u for n, u in table.units.items() if n.lower() in columns}
    return replace(table, rows=rows, units=units)


def _bytes(values: np.ndarray) -> np.ndarray:
    """Text as bytes, a quarter as big, where it is ASCII."""
    if values.dtype.kind != "U":
        return values
    try:
        return values.astype("S")
    except UnicodeEncodeError:
        return values


def _needed(
    names: Sequence[str], mapped: Sequence[Assignment], wishes: Wishes
) -> set[str]:
    """Columns to read, in lower case: what rows are called, labels, errors, extras."""
    small = [name.lower() for name in names]
    values = _values(small, mapped, wishes.target)
    sources = {a.value.lower() for a in mapped}
    errors = {
        pattern.format(stem)
        for label, column in values.items()
        for stem in (label, column)
        for pattern in ERRORS
    }
    extra = {name.lower() for name in wishes.extra}
    return (NO_LABELS | sources | errors | extra | set(values.values())) & set(small)


def _renamed(
    table: catalog.Table, mapped: Sequence[Assignment]
) -> tuple[np.ndarray, dict[str, str], tuple[Assignment, ...]]:
    """Give columns the names that the options say; missing ones are an error.

    An assignment to no side in particular concerns the catalogues that have the column.
    """
    present = table.rows.dtype.names
    new, applied = {}, []
    for assignment in mapped:
        if assignment.value.lower() in present:
            new[assignment.name] = assignment.value.lower()
            applied.append(assignment)
        elif assignment.side:
            raise UsageError(
                f"--column {assignment.text}: {table.name or 'standard input'} has no "
                f"column {assignment.value!r}."
            )
    order = {name: name for name in present if name not in new.values()} | new
    rows = np.empty(
        len(table.rows), [(name, table.rows.dtype[old]) for name, old in order.items()]
    )
    for name, old in order.items():
        rows[name] = table.rows[old]
    units = {n: table.units[old] for n, old in order.items() if old in table.units}
    return rows, units, tuple(applied)


def _values(
    names: Iterable[str], mapped: Sequence[Assignment], target: Sequence[str]
) -> dict[str, str]:
    """Column of each label: known ones, such with an error, and those asked for."""
    present = list(names)
    found = {}
    for label in KNOWN:
        column = next((n for n in other_names(label) if n in present), None)
        if column is not None:
            found[label] = column
    taken = {*found.values(), *NO_LABELS}
    pairs = ("{}_err", "e_{}", "{}_error")
    for name in present:
        has_error = any(pattern.format(name) in present for pattern in pairs)
        if has_error and name not in taken:
            found[name] = name
    found |= {name: name for name in map(str.lower, target) if name in present}
    for a in mapped:
        if a.name not in NO_LABELS and not _is_error(a.name):
            column = a.name if a.name in present else a.value.lower()
            found |= {a.name: column} if column in present else {}
    return found


def _is_known(name: str) -> bool:
    """Say whether a name means something to this program."""
    return name in KNOWN or name in NO_LABELS or _is_error(name)


def _is_error(name: str) -> bool:
    """Say whether a name is that of a standard error."""
    known = {pattern.format(label) for pattern in ERRORS for label in KNOWN}
    return name.endswith("_err") or name in known


def _error_of(label: str, column: str, names: Sequence[str]) -> str | None:
    candidates = [p.format(stem) for stem in (column, label) for p in ERRORS]
    return next((name for name in candidates if name in names), None)


# ----------------------------------------------------------------------------- units


def unit_of(label: str, *sides: Side) -> str:
    """Return the unit to compare a label in: the toolkit's, else the first side's."""
    if label in labels.LABELS:
        return labels.LABELS[label].unit
    units = [side.units.get(side.values.get(label, ""), "") for side in sides]
    return next(filter(None, units), "")


def numbers(side: Side, label: str, unit: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Values and standard errors of a label in a unit; NaN where missing.

    Parameters
    ----------
    side : Side
    label : str
    unit : str
        Of `unit_of`.

    Returns
    -------
    values : ndarray of float64, shape (row,)
    errors : ndarray of float64, shape (row,), or None

    Raises
    ------
    UsageError
        If the column's unit can't be converted, or its values can't be in it.
    """
    column = side.values[label]
    if side.rows.dtype[column].kind in "SU":
        return sptype.numbers(side.rows[column]), None
    own = side.units.get(column, "")
    factor = _factor(side, label, own, unit)
    values = _without_fillers(side.rows[column]) * factor
    _check_sane(side, label, values, own, unit)
    if label not in side.errors:
        return values, None
    column = side.errors[label]
    factor = _factor(side, label, side.units.get(column, own), unit)
    errors = _without_fillers(side.rows[column])
    return values, np.where(errors > 0, errors * factor, np.nan)


def unread(side: Side, label: str) -> str:
    """Say which spectral types can't be read; empty where all can, or for numbers."""
    column = side.values[label]
    if side.rows.dtype[column].kind not in "SU":
        return ""
    note = sptype.unread(side.rows[column])
    return f"{side.name}: {note}" if note else ""


def _without_fillers(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    return np.where(np.isin(values, FILLERS), np.nan, values)


def _factor(side: Side, label: str, own: str, unit: str) -> float:
    """Return what brings a column to a unit; 1 where either is unknown."""
    if not own or not unit or own == unit:
        return 1.0
    from astropy import units

    try:
        return units.Unit(own).to(units.Unit(unit))
    except (ValueError, TypeError) as error:
        raise UsageError(
            f"{label} of {side.source} is in {own!r}, which can't be converted to "
            f"{unit!r}. Say what it is with --unit {side.key}:{label}={unit}, or "
            "compare other labels with --target."
        ) from error


def _check_sane(
    side: Side, label: str, values: np.ndarray, own: str, unit: str
) -> None:
    """Refuse a label of which most values can't be in its unit."""
    if label not in labels.LABELS:
        return
    low, high = labels.LABELS[label].sane
    finite = values[np.isfinite(values)]
    if not finite.size or np.mean((finite < low) | (finite > high)) <= 0.5:
        return
    stated = f"in {own!r}" if own else "without a unit"
    example = "kK" if label == "teff" else "UNIT"
    raise UsageError(
        f"{label} of {side.source} is {stated}; most of its values, with a median of "
        f"{np.median(finite):.4g}, can't be in {unit or 'dex'} (sane are {low:g} to "
        f"{high:g}). Say what it is, such as --unit {side.key}:{label}={example}, or "
        "name another column with --column."
    )


def without_insane(label: str, values: np.ndarray) -> np.ndarray:
    """Make reference values NaN that can only be mistakes or fillers."""
    low, high = labels.get(label).sane
    return np.where((values < low) | (values > high), np.nan, values)
