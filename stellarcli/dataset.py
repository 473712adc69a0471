"""Training data: prepared tables, selected rows, splits, augmentation."""

from __future__ import annotations

import ast
import hashlib
import logging
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from stellarcli import catalog, preparation
from stellarcli.errors import UsageError, unknown
from stellarcli.prepared import PreparedTable, recipe_difference
from stellarcli.settings import TrainConfig

PARTS = ("train", "validation", "test")
JOIN_RADIUS = 3.0  # arcsec
SKY = ("ra", "dec")
log = logging.getLogger(__name__)

_COMPARE = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
_COMBINE = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
}


def select(expression: str, column: Callable[[str], np.ndarray]) -> np.ndarray:
    """Evaluate a row selection such as ``"snrg > 25 and 3786 < teff < 8400"``.

    Parameters
    ----------
    expression : str
        Comparisons of columns, numbers and 'strings', joined by and, or, not, with
        + - * / & | and parentheses. A bare column is true where it isn't zero.
    column : callable
        Returns the column of a name.

    Returns
    -------
    ndarray of bool

    Raises
    ------
    UsageError
        If the expression can't be parsed or uses anything else.
    """
    try:
        tree = ast.parse(expression.strip(), mode="eval").body
    except SyntaxError as error:
        raise UsageError(
            f"selection {expression!r} can't be read at character {error.offset}. "
            'Write it like "snrg > 25 and 3786 < teff < 8400".'
        ) from None

    def value(node: ast.expr) -> np.ndarray:
        if isinstance(node, ast.BoolOp):
            parts = [value(part).astype(bool) for part in node.values]
            join = np.logical_and if isinstance(node.op, ast.And) else np.logical_or
            return join.reduce(parts)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return ~value(node.operand).astype(bool)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -value(node.operand)
        if isinstance(node, ast.BinOp) and type(node.op) in _COMBINE:
            return _COMBINE[type(node.op)](value(node.left), value(node.right))
        if isinstance(node, ast.Compare):
            sides = [value(side) for side in (node.left, *node.comparators)]
            tests = [
                _COMPARE[type(op)](left, right)
                for op, left, right in zip(node.ops, sides, sides[1:], strict=False)
                if type(op) in _COMPARE
            ]
            if len(tests) == len(node.ops):
                return np.logical_and.reduce(tests)
        if isinstance(node, ast.Name):
            return column(node.id)
        if isinstance(node, ast.Constant) and isinstance(node.value, int | float | str):
            return np.asarray(node.value)
        raise UsageError(
            f"selection {expression!r}: {ast.unparse(node)!r} is not allowed. Use "
            "columns, numbers, comparisons, and, or, not."
        )

    return np.asarray(value(tree)).astype(bool)


def split_by_hash(
    groups: Sequence[str],
    *,
    test: float,
    validation: float,
    seed: int,
    folds: int = 0,
    fold: int = 0,
) -> np.ndarray:
    """Assign whole groups to train, validation or test.

    A group's part follows from its name and the seed alone, so that adding rows never
    moves a star from one side to the other.

    Parameters
    ----------
    groups : sequence of str
        Group of every row: the star, the plate.
    test, validation : float
        Expected fractions of the groups, `validation` of those that aren't tested on.
    seed : int
    folds, fold : int
        With folds, fold number `fold` is the test part instead of a fraction.

    Returns
    -------
    ndarray of str
        One of `PARTS` per row.
    """
    names, inverse = np.unique(np.asarray(groups).astype(str), return_inverse=True)
    share = np.array([_share(f"{seed}:{name}") for name in names])
    inner = np.array([_share(f"{seed}:validation:{name}") for name in names])
    tested = (share * folds).astype(int) == fold if folds else share < test
    part = np.where(inner < validation, "validation", "train")
    return np.where(tested, "test", part)[inverse]


def _share(text: str) -> float:
    """Return a number in [0, 1) that depends on nothing but a text."""
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


@dataclass
class Dataset:
    """Selected rows of one or more prepared tables.

    Attributes
    ----------
    tables : list of PreparedTable
    table, row : ndarray of int, shape (spectrum,)
        Where each spectrum is.
    labels : ndarray of float64, shape (spectrum, label)
        NaN where missing.
    part : ndarray of str, shape (spectrum,)
        One of `PARTS`.
    objid : ndarray of str, shape (spectrum,)
    errors : ndarray of float64, shape (spectrum, label)
        Standard errors of the labels; 0 where none are known.
    star : ndarray of int, shape (spectrum,)
        Equal for spectra of one star.
    """

    tables: list[PreparedTable]
    table: np.ndarray
    row: np.ndarray
    labels: np.ndarray
    part: np.ndarray
    objid: np.ndarray
    errors: np.ndarray
    star: np.ndarray

    def __len__(self) -> int:
        """Return the number of spectra."""
        return len(self.row)

    def index(self, part: str) -> np.ndarray:
        """Return the spectra of one part."""
        return np.flatnonzero(self.part == part)

    def rows(self, index: np.ndarray) -> Dataset:
        """Return some of the spectra."""
        arrays = {
            f.name: getattr(self, f.name)[index]
            for f in fields(self)
            if f.name != "tables"
        }
        return replace(self, **arrays)

    def write_split(self, path: Path) -> None:
        """Write which spectrum was in which part, so that figures can be traced."""
        names = np.array([Path(table.path).name for table in self.tables])
        columns = {
            "objid": np.char.encode(self.objid, "ascii", "replace"),
            "table": np.char.encode(names, "ascii", "replace")[self.table],
            "row": self.row.astype("i8"),
            "part": self.part.astype("S10"),
        }
        table = np.empty(len(self), [(n, c.dtype) for n, c in columns.items()])
        for name, values in columns.items():
            table[name] = values
        catalog.write(path, table, overwrite=True)

    def spectra(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Read flux and ivar of some spectra, float32, each (spectrum, pixel)."""
        shape = (len(index), self.tables[0].pixels)
        flux = np.empty(shape, dtype=np.float32)
        ivar = np.empty(shape, dtype=np.float32)
        for number, table in enumerate(self.tables):
            here = np.flatnonzero(self.table[index] == number)
            if here.size:
                flux[here], ivar[here] = table.spectra(self.row[index[here]])
        return flux, ivar


def load(
    paths: Sequence[str],
    config: TrainConfig,
    catalogue: catalog.Table | None = None,
) -> Dataset:
    """Open prepared tables, select rows and split them.

    Parameters
    ----------
    paths : sequence of str
    config : TrainConfig
        Target, selection and split.
    catalogue : Table, optional
        Columns that the tables lack: labels, groups, what the selection needs. Joined
        by identifier, file or sky.

    Raises
    ------
    UsageError
        If recipes differ, a column is missing, nothing is left, or a star would be on
        both sides of the split.
    """
    tables = [PreparedTable(path) for path in paths]
    for table in tables[1:]:
        if difference := recipe_difference(table.recipe, tables[0].recipe):
            raise UsageError(
                f"'{table.path}' was prepared differently from '{tables[0].path}': "
                f"{difference}. Prepare both with the same --recipe."
            )
    pieces = [
        _piece(number, _Columns(table, catalogue), config)
        for number, table in enumerate(tables)
    ]
    *columns, ra, dec = map(np.concatenate, zip(*pieces, strict=True))
    data = Dataset(tables, *columns, star=same_star(columns[4], ra, dec))
    data = _separated(data, config)
    _check(data, config.select)
    return data


class _Columns:
    """Scalar columns of a prepared table, and of a catalogue joined to it."""

    def __init__(self, table: PreparedTable, catalogue: catalog.Table | None):
        self.table = table
        self.joined: dict[str, np.ndarray] = {}
        if catalogue is not None:
            rows, matched = preparation.join(table.rows(), catalogue, JOIN_RADIUS)
            if not matched:
                raise UsageError(
                    f"no row of {catalogue.name} belongs to a spectrum of "
                    f"'{table.path}': neither identifiers, file names nor positions "
                    "agree."
                )
            self.joined = {name.lower(): rows[name] for name in rows.dtype.names}

    def __call__(self, name: str) -> np.ndarray:
        """Return a column; that of the catalogue where both have it."""
        values = self.joined.get(f"{name.lower()}_label")
        if values is None:
            values = self.joined.get(name.lower())
        if values is None:
            return self.table.column(name)
        return np.char.decode(values, "ascii") if values.dtype.kind == "S" else values

    def has(self, name: str) -> bool:
        """Say whether there is such a column."""
        own = {column.lower() for column in self.table.names}
        return name.lower() in own | set(self.joined)


def _piece(number: int, column: _Columns, config: TrainConfig) -> tuple:
    """Return the selected rows of one table: `Dataset`'s fields, then the position."""
    size = len(column.table)
    labels = np.stack([column(n).astype(float) for n in config.target], axis=1)
    keep = np.isfinite(labels).any(axis=1)
    if config.select:
        keep &= select(config.select, column)
    errors = np.zeros_like(labels)
    if config.label_errors:
        for i, name in enumerate(config.target):
            errors[:, i] = np.nan_to_num(column(f"{name}_err").astype(float))
    row = np.flatnonzero(keep)
    part = _part(column, config) if size else np.zeros(0, dtype="U10")
    return (
        np.full(row.size, number),
        row,
        labels[row],
        part[row],
        column("objid")[row].astype(str),
        errors[row],
        *(column(n)[row] if column.has(n) else np.full(row.size, np.nan) for n in SKY),
    )


def _part(column: _Columns, config: TrainConfig) -> np.ndarray:
    groups = column(config.group or "objid")
    options = {"validation": config.validation, "seed": config.seed}
    if config.split is None:
        return split_by_hash(
            groups, test=config.test, folds=config.folds, fold=config.fold, **options
        )
    part = np.char.lower(column(config.split).astype(str))
    for value in np.unique(part):
        if value not in PARTS:
            raise unknown(f"value of split column '{config.split}'", str(value), PARTS)
    if config.validation > 0 and not (part == "validation").any():
        inner = split_by_hash(groups, test=0.0, **options)
        part = np.where((part == "train") & (inner == "validation"), inner, part)
    return part


def _separated(data: Dataset, config: TrainConfig) -> Dataset:
    """Refuse, or take out, stars that would be on both sides of the split.

    A split column that does it is wrong. Groups such as plates share stars, though:
    then a star's rows count where they are tested.
    """
    rank = np.array([PARTS.index(part) for part in data.part.tolist()])
    highest = np.zeros(data.star.max(initial=-1) + 1, dtype=int)
    np.maximum.at(highest, data.star, rank)
    leaking = rank < highest[data.star]
    if not leaking.any():
        return data
    if config.split is not None:
        raise UsageError(
            f"{np.unique(data.star[leaking]).size} stars are on both sides of the "
            f"split, the first is {data.objid[leaking][0]!r}. Correct the split column "
            f"{config.split!r}, or leave it out and give --group."
        )
    log.info("%d rows left out: their stars are tested on", leaking.sum())
    return data.rows(np.flatnonzero(~leaking))


def same_star(objid: np.ndarray, ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
    """Give each star a number; rows of one identifier or position are one star.

    Parameters
    ----------
    objid : ndarray of str, shape (spectrum,)
        Empty where unknown.
    ra, dec : ndarray, shape (spectrum,)
        Degrees, NaN where unknown.

    Returns
    -------
    ndarray of int, shape (spectrum,)
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial import cKDTree

    size = len(objid)
    _, number = np.unique(objid, return_inverse=True)
    first = np.full(number.max(initial=-1) + 1, -1)
    first[number[::-1]] = np.arange(size)[::-1]
    named = np.flatnonzero(objid != "")
    pairs = [np.stack([named, first[number[named]]], axis=1)]
    known = np.flatnonzero(
        np.isfinite(ra) & np.isfinite(dec) & ~((ra == 0) & (dec == 0))
    )
    if known.size:
        a, d = np.radians(ra[known]), np.radians(dec[known])
        unit = np.stack([np.cos(d) * np.cos(a), np.cos(d) * np.sin(a), np.sin(d)], 1)
        near = cKDTree(unit).query_pairs(
            np.radians(JOIN_RADIUS / 3600), output_type="ndarray"
        )
        pairs.append(known[near])
    left, right = np.concatenate(pairs).T
    graph = coo_array((np.ones(left.size), (left, right)), shape=(size, size))
    return connected_components(graph, directed=False)[1]


def _check(data: Dataset, selection: str | None) -> None:
    if not data.index("train").size:
        raise UsageError(
            "no spectrum is left to train on"
            + (f" after selecting {selection!r}" if selection else "")
            + "; check the selection, the label columns and the split."
        )
