"""Matching the rows of two tables: by identifier, by file name, on the sky."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from stellarcli.catalog.table import find
from stellarcli.catalog.text import to_ascii
from stellarcli.errors import UsageError

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


def check_radius(radius: float) -> None:
    """Raise `UsageError` unless a radius of a search, in arcsec, is 0 or more."""
    if not radius >= 0:
        raise UsageError(f"--radius must be 0 arcsec or more, not {radius:g}.")


class Matcher:
    """`match` with one table on the right, for many on the left.

    What is known of the right one (sorted identifiers, directions) is kept, so that a
    catalogue of millions of rows can be matched chunk by chunk.

    Parameters
    ----------
    right : structured ndarray
    radius : float
        Of the search on the sky, arcsec.

    Raises
    ------
    UsageError
        If the radius is negative.
    """

    def __init__(self, right: np.ndarray, radius: float = 3.0):
        check_radius(radius)
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
    text = np.char.strip(to_ascii(values))
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
    if not len(values):  # NumPy partitions no empty arrays
        return np.array([], dtype="S1")
    text = np.char.strip(to_ascii(values))
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
