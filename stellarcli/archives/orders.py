"""What a user wants, as rows and files: in from catalogues, out to a table."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from stellarcli import catalog
from stellarcli.archives.batch import Outcome
from stellarcli.archives.store import Item
from stellarcli.archives.verification import json_of
from stellarcli.catalog import Column, Table
from stellarcli.errors import FetchError, Trouble, UsageError

REASON = "fetch_error"


@dataclass(frozen=True)
class Order:
    """Files for the rows of a catalogue.

    Attributes
    ----------
    table : Table
        The rows.
    keys : dict of list of str
        Key of the file of each row, by column of the table of files; empty where the
        row names none.
    make : callable
        Item of a key.
    typical : int
        Bytes of such a file, about.
    troubles : dict of FetchError
        By key, where it is known beforehand that there is no file.
    """

    table: Table
    keys: dict[str, list[str]]
    make: Callable[[str], Item]
    typical: int
    troubles: dict[str, FetchError] = field(default_factory=dict)

    @property
    def wanted(self) -> list[str]:
        """Different keys, in order of their first row."""
        every = (key for row in zip(*self.keys.values(), strict=True) for key in row)
        found = dict.fromkeys(key for key in every if key)
        return [key for key in found if key not in self.troubles]


def column_of(table: Table, names: Sequence[str], what: str) -> np.ndarray:
    """Return the first column that has one of these names, in any case of letters.

    Raises
    ------
    UsageError
        If there is none.
    """
    column = table.find(*names)
    if column is None:
        known = ", ".join(table.rows.dtype.names[:40]) or "none"
        # of a bare list, the first row is taken for the names of the columns
        bare = all(whole(name) for name in table.rows.dtype.names)
        hint = " Write the names of the columns into its first line." if bare else ""
        raise UsageError(
            f"{table.name or 'the table'} has no column of the {what}: it must be "
            f"called {' or '.join(names)}, in any case of letters. It has: {known}."
            + hint
        )
    return table.rows[column]


def whole(value: object) -> int | None:
    """Whole positive number in a cell, None if it holds a filler or anything else."""
    if isinstance(value, bytes):
        value = value.decode("ascii", "replace")
    try:
        number = int(value)
        same = number == float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if same and number > 0 else None


def text(value: object) -> str:
    """Text in a cell, without blanks around it."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    return str(value).strip()


def from_list(values: Sequence[int], name: str) -> Table:
    """Make a table of one column."""
    return Table(np.array(values, dtype=np.int64).astype([(name, "i8")]))


def of_outcome(outcome: Outcome) -> Order:
    """Make the order that a batch without a catalogue was: a row per file."""
    keys = [*outcome.files, *outcome.troubles]
    table = Table(np.array(keys, dtype=str).astype([("fetch_key", "U200")]))
    return Order(table, {"file": keys}, lambda key: Item(key, (), "none"), 0)


def parse_answer(content: bytes, name: str) -> Table:
    """Read a table that an archive sent, in whatever format it is.

    Parameters
    ----------
    content : bytes
        FITS, VOTable, JSON (a list of objects, or an object that has one) or text
        with commas, semicolons, bars or tabs.
    name : str
        For messages.

    Raises
    ------
    FetchError
        If it is none of them, or says that the query failed.
    """
    start = content[:512].lstrip(b"\xef\xbb\xbf \t\r\n")
    try:
        if start.startswith((b"<?xml", b"<VOTABLE")):
            return _from_votable(content, name)
        if start[:1] in (b"{", b"["):
            return _from_json(content, name)
        if start and start[:1] != b"<":
            return _from_text(content, name)
    except FetchError:
        raise
    except Exception as error:  # astropy raises nearly anything on damaged tables
        reason = " ".join(str(error).split())[:200]
        raise FetchError(f"the answer is no table ({reason})") from None
    raise FetchError("the archive sent a web page, or nothing, instead of a table")


def _from_votable(content: bytes, name: str) -> Table:
    import warnings

    from astropy.io import votable

    if b"<!ENTITY" in content[:100_000]:  # nothing honest defines entities
        raise FetchError("the answer is no plain VOTable", Trouble.REFUSED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about deviations from the standard
        parsed = votable.parse(io.BytesIO(content), verify="ignore")
    for resource in parsed.resources:
        for info in resource.infos:
            if info.name == "QUERY_STATUS" and str(info.value).upper() == "ERROR":
                words = " ".join(str(info.content or "no reason given").split())[:300]
                raise FetchError(f"the archive says: {words}", Trouble.ANSWER)
    found = parsed.get_first_table().to_table(use_names_over_ids=True)
    return catalog.from_astropy(found, name)


def _from_json(content: bytes, name: str) -> Table:
    from astropy.table import Table as AstropyTable

    rows = _list_in(json_of(content))
    if rows is None:
        raise FetchError("the archive answered without a table", Trouble.ANSWER)
    names = list(dict.fromkeys(key for row in rows for key in row))
    if not names:
        return Table(np.zeros(0, []), name=name)
    columns = {key: [row.get(key) for row in rows] for key in names}
    masked = {
        key: np.ma.array(
            [_filler(values) if value is None else value for value in values],
            mask=[value is None for value in values],
        )
        for key, values in columns.items()
    }
    return catalog.from_astropy(AstropyTable(masked), name)


def _filler(values: list) -> object:
    """Something of the type of the values, for where there is none."""
    known = next((value for value in values if value is not None), "")
    return type(known)() if isinstance(known, str | int | float | bool) else ""


def _list_in(answer: object, depth: int = 0) -> list[dict] | None:
    """Find the list of objects in an answer, wherever it is."""
    if isinstance(answer, list) and all(isinstance(row, dict) for row in answer):
        return answer
    if isinstance(answer, dict) and depth < 3:
        for value in answer.values():
            if (found := _list_in(value, depth + 1)) is not None:
                return found
    return None


def _from_text(content: bytes, name: str) -> Table:
    from astropy.table import Table as AstropyTable

    lines = content.decode("utf-8-sig").splitlines()
    lines = [line for line in lines if line.strip() and not line.startswith("#")]
    if not lines:
        raise FetchError("the archive sent an empty table")
    delimiter = max(",|;\t", key=lines[0].count)
    found = AstropyTable.read(
        lines, format="ascii.basic", delimiter=delimiter, guess=False
    )
    return catalog.from_astropy(found, name)


def table_of(
    order: Order, outcome: Outcome, directory: str
) -> tuple[np.ndarray, list[Column]]:
    """Make the table of files: a row per row of the catalogue, with all its columns.

    A row whose file could not be fetched has the name that the file would have, which
    later commands report as missing, and the reason in ``fetch_error``.

    Parameters
    ----------
    order : Order
    outcome : Outcome
    directory : str
        That the files are in; goes before their names.

    Returns
    -------
    rows : structured ndarray, shape (row,)
    columns : list of Column
    """
    size = len(order.table.rows)
    prefix = f"{directory.rstrip('/')}/" if directory else ""
    files = {
        column: [
            catalog.encode_name(prefix + _name(order, outcome, key)) for key in keys
        ]
        for column, keys in order.keys.items()
    }
    reasons = ["" for _ in range(size)]
    for keys in order.keys.values():
        for row, key in enumerate(keys):
            reasons[row] = reasons[row] or reason_of(order, outcome, key)
    about = "fetched file; % and bytes other than ASCII as in a URL"
    made = [Column(name, "S", "", about) for name in files]
    made.append(Column(REASON, "S", "", "why there is no file; empty if there is one"))
    taken = {column.name.lower() for column in made}
    values: dict[str, np.ndarray] = {
        **{name: np.array(names, dtype="S") for name, names in files.items()},
        REASON: np.array(reasons, dtype=str),
    }
    kept = []
    for column in catalog.columns_of(order.table.rows, order.table.units):
        if column.name.lower() == REASON:
            continue  # of an earlier table of failures, which this one answers
        name = column.name if column.name.lower() not in taken else f"{column.name}_in"
        kept.append(Column(name, column.dtype, column.unit))
        values[name] = order.table.rows[column.name]
    columns = [*made[:-1], *kept, made[-1]]
    return catalog.rows(columns, values), columns


def _name(order: Order, outcome: Outcome, key: str) -> str:
    if not key:
        return "none"
    return outcome.files.get(key) or order.make(key).name


def reason_of(order: Order, outcome: Outcome, key: str) -> str:
    """Why there is no file of a key; empty if there is one."""
    if not key:
        return "the row has no identifier"
    trouble = outcome.troubles.get(key) or order.troubles.get(key)
    return str(trouble) if trouble else ""


def reasons(order: Order, outcome: Outcome) -> list[tuple[str, str]]:
    """Key and reason of every file that isn't there, as a log wants them."""
    every: Mapping[str, FetchError] = {**order.troubles, **outcome.troubles}
    found = [(key, str(error)) for key, error in every.items()]
    rows = enumerate(zip(*order.keys.values(), strict=True), start=1)
    empty = [number for number, row in rows if "" in row]
    return found + [(f"row {n}", reason_of(order, outcome, "")) for n in empty]
