"""Training data: prepared tables, selected rows, splits, augmentation."""

from __future__ import annotations

import ast
import hashlib
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from stellarcli.errors import UsageError, unknown
from stellarcli.prepared import PreparedTable, recipe_difference

PARTS = ("train", "validation", "test")

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
    groups: Sequence[str], *, test: float, validation: float, seed: int
) -> np.ndarray:
    """Assign whole groups to train, validation or test.

    A group's part follows from its name and the seed alone, so that adding rows never
    moves a star from one side to the other.

    Parameters
    ----------
    groups : sequence of str
        Group of every row: the star, the plate.
    test, validation : float
        Expected fractions of the groups.
    seed : int

    Returns
    -------
    ndarray of str
        One of `PARTS` per row.
    """
    names, inverse = np.unique(np.asarray(groups).astype(str), return_inverse=True)
    share = np.array([_share(name, seed) for name in names])
    part = np.where(
        share < test, "test", np.where(share < test + validation, "validation", "train")
    )
    return part[inverse]


def _share(name: str, seed: int) -> float:
    """Return a number in [0, 1) that depends on nothing but its arguments."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
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
    """

    tables: list[PreparedTable]
    table: np.ndarray
    row: np.ndarray
    labels: np.ndarray
    part: np.ndarray
    objid: np.ndarray

    def __len__(self) -> int:
        """Return the number of spectra."""
        return len(self.row)

    def index(self, part: str) -> np.ndarray:
        """Return the spectra of one part."""
        return np.flatnonzero(self.part == part)

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
    target: Sequence[str],
    *,
    selection: str | None,
    group: str | None,
    split: str | None,
    test: float,
    validation: float,
    seed: int,
) -> Dataset:
    """Open prepared tables, select rows and split them.

    Parameters
    ----------
    paths : sequence of str
    target : sequence of str
        Label columns. Rows without any finite one are left out.
    selection : str or None
        See `select`.
    group : str or None
        Column that keeps rows together (plate, star); by default `objid`.
    split : str or None
        Column that says train, validation or test; otherwise fractions of groups.
    test, validation : float
    seed : int

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
    pieces = []
    for number, table in enumerate(tables):
        keep = np.ones(len(table), dtype=bool)
        if selection:
            keep &= select(selection, table.column)
        labels = np.stack([table.column(n).astype(float) for n in target], axis=1)
        keep &= np.isfinite(labels).any(axis=1)
        row = np.flatnonzero(keep)
        part = _part(table, group, split, test, validation, seed)
        pieces.append(
            (
                np.full(row.size, number),
                row,
                labels[row],
                part[row],
                table.column("objid")[row].astype(str),
            )
        )
    data = Dataset(tables, *map(np.concatenate, zip(*pieces, strict=True)))
    _check(data, selection)
    return data


def _part(
    table: PreparedTable,
    group: str | None,
    split: str | None,
    test: float,
    validation: float,
    seed: int,
) -> np.ndarray:
    if split is None:
        names = table.column(group or "objid")
        return split_by_hash(names, test=test, validation=validation, seed=seed)
    part = np.char.lower(table.column(split).astype(str))
    for value in np.unique(part):
        if value not in PARTS:
            raise unknown(f"value of split column '{split}'", value, PARTS)
    if validation > 0 and not (part == "validation").any():
        inner = split_by_hash(
            table.column(group or "objid"), test=0.0, validation=validation, seed=seed
        )
        part = np.where((part == "train") & (inner == "validation"), inner, part)
    return part


def _check(data: Dataset, selection: str | None) -> None:
    if not data.index("train").size:
        raise UsageError(
            "no spectrum is left to train on"
            + (f" after selecting {selection!r}" if selection else "")
            + "; check the selection, the label columns and the split."
        )
    known = data.objid != ""
    sides = [set(data.objid[(data.part == part) & known]) for part in PARTS]
    shared = (sides[0] | sides[1]) & sides[2] | sides[0] & sides[1]
    if shared:
        raise UsageError(
            f"{len(shared)} stars are on both sides of the split, the first is "
            f"{min(shared)!r}. Split by star: give --group objid, or correct the split "
            "column."
        )
