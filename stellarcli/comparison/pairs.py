"""Rows of a catalogue beside the rows of the truth that they belong to.

Every row of the catalogue counts, also when several belong to one row of the truth
(visits of one star). Of several rows of the truth with the same identifier the first
one is taken. Rows without a partner, flagged rows, and rows that the selection leaves
out are counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from stellarcli import catalog
from stellarcli.comparison.sides import SNR, Side, numbers, unit_of, without_insane
from stellarcli.errors import UsageError, unknown
from stellarcli.selection import select


@dataclass(frozen=True)
class Values:
    """One label of the rows that were paired.

    Attributes
    ----------
    label, unit : str
    predicted, reference : ndarray of float64, shape (pair,)
        NaN where there is no value.
    error : ndarray of float64, shape (pair,), or None
        Standard error of `predicted`.
    """

    label: str
    unit: str
    predicted: np.ndarray
    reference: np.ndarray
    error: np.ndarray | None

    @cached_property
    def residual(self) -> np.ndarray:
        """Predicted minus reference, NaN where either is missing."""
        return self.predicted - self.reference


@dataclass(frozen=True, eq=False)
class Pairs:
    """Rows of a catalogue and of the truth.

    Attributes
    ----------
    model, truth : Side
    left, right : ndarray of int, shape (pair,)
        Rows of each that belong together.
    counts : dict
        What happened to all other rows; see `match`.
    """

    model: Side
    truth: Side
    left: np.ndarray
    right: np.ndarray
    counts: dict[str, object] = field(default_factory=dict)

    def values(self, label: str) -> Values:
        """Return a label of both sides in one unit."""
        unit = unit_of(label, self.truth, self.model)
        predicted, error = numbers(self.model, label, unit)
        reference, _ = numbers(self.truth, label, unit)
        return Values(
            label,
            unit,
            predicted[self.left],
            without_insane(label, reference)[self.right],
            None if error is None else error[self.left],
        )

    def column(self, name: str) -> np.ndarray:
        """Return a column of the truth or, where it has none, of the catalogue.

        Parameters
        ----------
        name : str
            Of a label, a column, or ``"snr"``, which has several names.

        Raises
        ------
        UsageError
            If neither has it.
        """
        if name.lower() in self.truth.values and name.lower() in self.model.values:
            return self.values(name.lower()).reference
        candidates = (name, *SNR) if name.lower() == "snr" else (name,)
        for side, rows in ((self.truth, self.right), (self.model, self.left)):
            for candidate in candidates:
                if side.has(candidate):
                    return side.column(candidate)[rows]
        names = sorted({*self.truth.rows.dtype.names, *self.model.rows.dtype.names})
        raise unknown("column", name, names)

    def has(self, name: str) -> bool:
        """Say whether `column` finds a name."""
        candidates = (name, *SNR) if name.lower() == "snr" else (name,)
        return any(s.has(c) for s in (self.truth, self.model) for c in candidates)

    def only(self, keep: np.ndarray, **counts: object) -> Pairs:
        """Return some of the pairs, with what is to be known about the others."""
        return replace(
            self,
            left=self.left[keep],
            right=self.right[keep],
            counts=self.counts | counts,
        )


def match(model: Side, truth: Side, matcher: catalog.Matcher) -> Pairs:
    """Find the truth of every row: by object identifier, else file, else position.

    Parameters
    ----------
    model, truth : Side
    matcher : Matcher
        Of `truth`'s rows.

    Returns
    -------
    Pairs
        Its counts: ``rows``, ``matched``, ``ways`` (by which way), ``unmatched``,
        ``truth_rows``, ``truth_unmatched``, ``truth_duplicates`` (rows of the truth
        with the identifier of an earlier one, never taken), ``repeated`` (rows that
        share their row of the truth with an earlier one).

    Raises
    ------
    UsageError
        If no row has a partner.
    """
    index = np.full(len(model.rows), -1, dtype=np.int64)
    ways, duplicates = {}, 0
    for way in catalog.WAYS:
        open_rows = np.flatnonzero(index < 0)
        if not open_rows.size:
            break
        whole = open_rows.size == len(index)
        rows = model.rows if whole else model.rows[open_rows]
        found = matcher(rows, by=(way,))
        index[open_rows] = found.index
        ways |= found.counts
        duplicates = max(duplicates, found.duplicates)
    left = np.flatnonzero(index >= 0)
    if not left.size:
        raise UsageError(_no_match(model, truth, matcher.radius))
    right = index[left]
    taken = np.unique(right).size
    counts = {
        "rows": len(model.rows),
        "matched": int(left.size),
        "ways": ways,
        "unmatched": int(len(model.rows) - left.size),
        "truth_rows": len(truth.rows),
        "truth_unmatched": int(len(truth.rows) - taken),
        "truth_duplicates": int(duplicates),
        "repeated": int(left.size - taken),
    }
    return Pairs(model, truth, left, right, counts)


def _no_match(model: Side, truth: Side, radius: float) -> str:
    def names(side: Side) -> str:
        known = (*catalog.IDENTIFIERS, *catalog.FILES, "ra", "dec")
        return ", ".join(n for n in known if side.has(n)) or "no column to match by"

    return (
        f"no row of {model.source} ({names(model)}) belongs to a row of {truth.source} "
        f"({names(truth)}): neither identifiers, file names nor positions within "
        f"{radius:g} arcsec agree. Check that both are of the same stars; a column of "
        "another name is told with --column objid=NAME."
    )


def flagged(side: Side) -> np.ndarray:
    """Rows not to trust, shape (row,).

    The header's FLAGBAD says which bits of ``flag`` count. Where it is missing, these
    are our own in a catalogue of our layout (CSV has no header), otherwise any bit, or
    any text that isn't a filler.
    """
    if not side.has("flag"):
        return np.zeros(len(side.rows), dtype=bool)
    flag = side.rows["flag"]
    if flag.dtype.kind in "SU":
        fillers = np.array(catalog.FILLERS)
        return ~np.isin(np.char.lower(flag.astype(str)), fillers)
    bits = np.nan_to_num(flag.astype(np.float64)).astype(np.int64)
    ours = all(side.has(name) for name in ("objid", "file", "flag"))
    mask = side.header.get("FLAGBAD", int(catalog.BAD) if ours else -1)
    return (bits & int(mask)) != 0


def without_flagged(pairs: Pairs, drop: bool) -> Pairs:
    """Count flagged rows, and leave them out if asked.

    Raises
    ------
    UsageError
        If no row is left.
    """
    bad = flagged(pairs.model)[pairs.left]
    counts = {"flagged": int(bad.sum()), "dropped": int(bad.sum()) if drop else 0}
    if drop and bad.all():
        raise UsageError(
            f"all {bad.size} matched rows of {pairs.model.source} are flagged; leave "
            "--drop-flagged out to compare them all the same."
        )
    keep = ~bad if drop else np.ones(bad.size, dtype=bool)
    return pairs.only(keep, **counts)


def selected(pairs: Pairs, expression: str | None) -> Pairs:
    """Leave out pairs that a selection doesn't want.

    Raises
    ------
    UsageError
        If it can't be evaluated, or no row is left.
    """
    if not expression:
        return pairs
    keep = np.broadcast_to(select(expression, pairs.column), pairs.left.shape)
    if not keep.any():
        raise UsageError(
            f"none of {keep.size} matched rows of {pairs.model.source} is left after "
            f"selecting {expression!r}."
        )
    return pairs.only(keep, not_selected=int(keep.size - keep.sum()))


def common(first: Pairs, second: Pairs) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of two catalogues that belong to the same row of the truth.

    Where several of one catalogue do, the first is taken.

    Returns
    -------
    first, second : ndarray of int
        Which of the pairs of each.
    """
    one, at_one = np.unique(first.right, return_index=True)
    two, at_two = np.unique(second.right, return_index=True)
    _, in_one, in_two = np.intersect1d(
        one, two, assume_unique=True, return_indices=True
    )
    return at_one[in_one], at_two[in_two]


def shared_labels(models: Sequence[Side], truth: Side | None = None) -> list[str]:
    """Labels that the first catalogue and every other one, or the truth, have."""
    others = [truth] if truth is not None else list(models[1:])
    return [
        label
        for label in models[0].values
        if all(label in side.values for side in others)
    ]
