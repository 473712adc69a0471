"""Precision from repeated observations of the same stars; no truth is needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from stellarcli import catalog, metrics
from stellarcli.comparison import pairs, sides
from stellarcli.comparison.accuracy import (
    Request,
    bin_edges,
    check_sources,
    parse_bins,
    read_sides,
)
from stellarcli.comparison.sides import Side
from stellarcli.errors import UsageError
from stellarcli.selection import select

FURTHEST = 30  # of a star's rows, only those at most so many rows apart are paired


@dataclass(frozen=True, eq=False)
class Repeats:
    """What repeated observations say about each catalogue.

    Attributes
    ----------
    models : dict
        By name: ``counts``, ``labels``, ``bins``.
    notes : list of str
    """

    models: dict[str, dict[str, Any]]
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """All numbers; ``labels`` and ``bins`` are the first model's."""
        first = next(iter(self.models.values()))
        return {**first, "models": self.models, "notes": self.notes}


def repeats(sources: Sequence[str], column: str, request: Request) -> Repeats:
    """Compare observations of the same star with each other.

    Every two rows of one star are a pair. The stars are told by a column: of the
    catalogue, or of a last catalogue which is joined to the others for that purpose. If
    nobody has it, rows within 3 arcsec of each other are one star.

    Parameters
    ----------
    sources : sequence of str
    column : str
        That says which rows are one star.
    request : Request
        Bins are those of the smaller value of a pair.

    Raises
    ------
    UsageError
        If no star was observed twice, or there is no label.
    """
    check_sources(sources, 1, "name one at least")
    models = read_sides(sources, request.wishes(column), truth=False)
    models, stars = _with_stars(models, column.lower())
    notes: list[str] = []
    found = {
        side.name: _measure(side, stars, column.lower(), request, notes)
        for side in models
    }
    return Repeats(found, notes)


def _with_stars(models: list[Side], column: str) -> tuple[list[Side], Side | None]:
    """Tell the catalogue of stars, if there is one, from those to be measured."""
    *others, last = models
    if others and last.has(column):
        alone = not any(side.has(column) for side in others)
        if alone or not set(last.values) & set(others[0].values):
            return others, last
    return models, None


def _measure(
    side: Side, stars: Side | None, column: str, request: Request, notes: list[str]
) -> dict[str, Any]:
    star, how, unknown = _star_numbers(side, stars, column, request.radius)
    labels = [sides.label_name(n) for n in request.target] or list(side.values)
    missing = [name for name in labels if name not in side.values]
    if missing or not labels:
        raise UsageError(
            f"{side.source} has no number called "
            f"{', '.join(missing) or 'like a label'}; name the columns with --column "
            "or --target."
        )
    keep = _kept(side, star, request)
    first, second = star_pairs(np.where(keep, star, -1))
    if not first.size:
        raise UsageError(
            f"no star of {side.source} has two rows {how}; precision needs repeated "
            "observations."
        )
    number = int(np.unique(star[first]).size)
    notes.append(f"{side.name}: {number} stars with {first.size} pairs of rows, {how}")
    if unknown:
        notes.append(f"{side.name}: {unknown} rows of no known star left out")
    found = {name: _label(side, name, first, second, star, request) for name in labels}
    return {
        "counts": {"rows": len(side.rows), "stars": number, "unknown": unknown},
        "labels": {name: values for name, (values, _) in found.items()},
        "bins": {
            parse_bins(text)[0]: {
                name: bins[parse_bins(text)[0]] for name, (_, bins) in found.items()
            }
            for text in request.by
        },
    }


def _kept(side: Side, star: np.ndarray, request: Request) -> np.ndarray:
    keep = star >= 0
    if request.drop_flagged:
        keep &= ~pairs.flagged(side)
    if request.select:
        keep &= select(request.select, _Columns(side))
    return keep


class _Columns:
    """Columns of one catalogue, for a selection."""

    def __init__(self, side: Side):
        self.rows = np.arange(len(side.rows))
        self.pairs = pairs.Pairs(side, side, self.rows, self.rows)

    def __call__(self, name: str) -> np.ndarray:
        return self.pairs.column(name)


def _star_numbers(
    side: Side, stars: Side | None, column: str, radius: float
) -> tuple[np.ndarray, str, int]:
    """Star of every row, -1 where unknown; how it was found; how many are unknown."""
    if stars is None and not side.has(column):
        return _by_position(side, column)
    if stars is None:
        number = _numbers(side.rows[column])
        return number, f"told by column {column!r}", int((number < 0).sum())
    matched = pairs.match(side, stars, catalog.Matcher(stars.rows, radius))
    number = np.full(len(side.rows), -1)
    number[matched.left] = _numbers(stars.rows[column])[matched.right]
    how = f"told by column {column!r} of {stars.name}"
    return number, how, int((number < 0).sum())


def _numbers(values: np.ndarray) -> np.ndarray:
    """Give a number to every different value, -1 to fillers and NaN."""
    if values.dtype.kind == "f":
        known = np.isfinite(values) & ~np.isin(values, sides.FILLERS)
    elif values.dtype.kind in "SU":
        text = np.char.lower(np.char.strip(values.astype(str)))
        known = ~np.isin(text, catalog.FILLERS)
    else:
        known = values >= 0
    _, number = np.unique(values, return_inverse=True)
    return np.where(known, number, -1)


def _by_position(side: Side, column: str) -> tuple[np.ndarray, str, int]:
    from stellarcli.dataset import JOIN_RADIUS, same_star  # brings torch

    ra = catalog.find(side.rows, *catalog.RIGHT_ASCENSIONS)
    dec = catalog.find(side.rows, *catalog.DECLINATIONS)
    if not (ra and dec):
        raise UsageError(
            f"{side.source} has neither a column {column!r} that says which rows are "
            "one star, nor positions. Add a catalogue that has it, as the last one."
        )
    x, y = (np.asarray(side.rows[name], dtype=np.float64) for name in (ra, dec))
    unknown = ~np.isfinite(x) | ~np.isfinite(y) | ((x == 0) & (y == 0))
    number = same_star(np.full(len(x), ""), x, y)
    how = f"told by position, within {JOIN_RADIUS:g} arcsec (no column {column!r})"
    return np.where(unknown, -1, number), how, int(unknown.sum())


def star_pairs(star: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of rows of the same star.

    Parameters
    ----------
    star : ndarray of int, shape (row,)
        Negative for rows of no star.

    Returns
    -------
    first, second : ndarray of int, shape (pair,)
        Rows. Of a star's rows only those at most `FURTHEST` apart, in the order of the
        table, are paired: a star with thousands of visits would make millions.
    """
    order = np.argsort(star, kind="stable")
    order = order[star[order] >= 0]
    found = list(_neighbours(order, star))
    if not found:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    return tuple(np.concatenate(side) for side in zip(*found, strict=True))


def _neighbours(order: np.ndarray, star: np.ndarray) -> Iterator[tuple]:
    start = np.arange(max(order.size - 1, 0))
    for lag in range(1, FURTHEST + 1):
        start = start[start + lag < order.size]
        start = start[star[order[start]] == star[order[start + lag]]]
        if not start.size:
            return
        yield order[start], order[start + lag]


def _label(
    side: Side,
    name: str,
    first: np.ndarray,
    second: np.ndarray,
    star: np.ndarray,
    request: Request,
) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """Precision of one label, whole and in bins."""
    unit = sides.unit_of(name, side)
    values, error = sides.numbers(side, name, unit)
    difference = values[first] - values[second]
    errors = None if error is None else np.hypot(error[first], error[second])
    found = {"unit": unit} | metrics.precision(difference, errors)
    finite = np.isfinite(difference)
    found["stars"] = int(np.unique(star[first][finite]).size)
    found["left_out"] = int((~finite).sum())
    interval = metrics.precision_interval(difference[finite], star[first][finite])
    found["intervals"] = {"scatter": interval}
    bins = {}
    for text in request.by:
        quantity, edges = parse_bins(text)
        lower = _smaller(side, quantity, first, second)
        edges = edges or bin_edges(quantity, lower)
        bins[quantity] = _bins(lower, edges, difference, errors, star[first])
    return found, bins


def _smaller(
    side: Side, quantity: str, first: np.ndarray, second: np.ndarray
) -> np.ndarray:
    """Smaller value of a quantity in each pair."""
    values = np.asarray(_Columns(side)(quantity), dtype=np.float64)
    return np.minimum(values[first], values[second])


def _bins(
    by: np.ndarray,
    edges: list[float],
    difference: np.ndarray,
    errors: np.ndarray | None,
    star: np.ndarray,
) -> list[dict[str, Any]]:
    """Precision in bins; those without pairs are left out."""
    number = np.searchsorted(edges, by, side="right") - 1
    number[by == edges[-1]] = len(edges) - 2
    rows = []
    for index, (low, high) in enumerate(pairwise(edges)):
        inside = (number == index) & np.isfinite(difference)
        within = None if errors is None else errors[inside]
        row = {"low": low, "high": high} | metrics.precision(difference[inside], within)
        row["stars"] = int(np.unique(star[inside]).size)
        if row["n"]:
            rows.append(row)
    return rows
