"""How right a network's errors are, by where a spectrum lies.

Networks that take any stretch of a spectrum say of each how uncertain they are, though
not equally rightly of all: what is left without Hβ, say, may be worth less than they
think. Nor do they know some instrument's spectra as well as another's. `fit` makes a
table for each instrument of what is to be added to the log of the errors, over the
middle and the length of a spectrum in ln λ, and `corrections` reads it, linearly
between its knots. Instruments are told apart by the width of their pixels there.

A table counts as far as a spectrum has wavelengths and samplings of those that it was
made from (`familiarity`): it says nothing of another instrument's.
"""

from __future__ import annotations

import math

import numpy as np

from stellarcli import familiarity
from stellarcli.feeding import Feed

SPACING = (0.12, 0.5)  # of knots at most: of the middle, and of the log of the length
LEAST = 5  # knots of each
ENDS = (1, 99)  # percentiles of the spectra, where the first and the last knot lie
PRIOR = 4.0  # spectra by which the table is drawn to what its corners say
ROUNDING = 0.03  # of the loss's corner, which makes it smooth
SHORTEST = 1e-4  # ln λ; of a spectrum without a good pixel
NAMES = ("middle", "length", "levels", "seen")  # of the arrays that tables are, …
SEVERAL = "width"  # … and of another, where there are those of several instruments


def place(feed: Feed) -> np.ndarray:
    """Say where spectra lie.

    Parameters
    ----------
    feed : dict of ndarray
        With ``ivar`` and ``wavelength``.

    Returns
    -------
    ndarray of float, shape (spectrum, 3)
        Mean ln λ of the good pixels, λ in Å; the log of the ln λ that they cover, gaps
        not counted; and that of a pixel's share of it.
    """
    position, width = familiarity.positions(feed["wavelength"])
    good = (feed["ivar"] > 0) & np.isfinite(position)
    middle = np.where(good, position, 0).sum(axis=1) / np.maximum(good.sum(axis=1), 1)
    good &= np.isfinite(width)
    length = np.maximum(np.where(good, width, 0).sum(axis=1), SHORTEST)
    share = length / np.maximum(good.sum(axis=1), 1)
    return np.stack([middle, np.log(length), np.log(share)], axis=1)


def fit(
    places: np.ndarray,
    excess: np.ndarray,
    whole: np.ndarray,
    instrument: np.ndarray,
    share: float,
) -> dict[str, np.ndarray]:
    """Make tables from spectra with known labels.

    Per instrument and label, one quantile regression (Koenker & Bassett 1978,
    Econometrica 46, 33).

    Parameters
    ----------
    places : ndarray, shape (spectrum, 3)
        Of `place`.
    excess : ndarray, shape (spectrum, label)
        Log of the residual over the error; not finite where unknown.
    whole : ndarray of bool, shape (spectrum,)
        False of stretches of spectra that are there as well.
    instrument : ndarray of str, shape (spectrum,)
    share : float
        Of the spectra that are to be within their error.

    Returns
    -------
    dict of ndarray
        ``middle`` and ``length``, the knots; ``levels`` (label, instrument, middle,
        length); ``width`` (instrument, middle), the usual log of a pixel's width.
    """
    spread = places[:, : len(SPACING)].T
    knots = [_knots(*column) for column in zip(spread, SPACING, strict=True)]
    levels, width = [], []
    for name in np.unique(instrument):
        own = instrument == name
        pull = PRIOR / max(1, np.count_nonzero(whole[own]))
        levels.append(_levels(places[own], excess[own], knots, pull, share))
        hats = _hats(places[own, 0], knots[0])
        width.append(np.linalg.lstsq(hats, places[own, 2], rcond=None)[0])
    tables = {"levels": np.stack(levels, axis=1), SEVERAL: np.stack(width)}
    return {"middle": knots[0], "length": knots[1], **tables}


def _levels(
    places: np.ndarray,
    excess: np.ndarray,
    knots: list[np.ndarray],
    pull: float,
    share: float,
) -> np.ndarray:
    """Table of one instrument, (label, middle, length)."""
    ends = [knot[[0, -1]] for knot in knots]
    cells, corners = _cells(places, *knots), _cells(places, *ends)
    design = np.concatenate([cells, corners], axis=1)
    inside = np.arange(design.shape[1]) < cells.shape[1]
    grid = np.stack(np.meshgrid(*knots, indexing="ij"), axis=-1).reshape(-1, 2)
    plane = _cells(grid, *ends)
    levels = []
    for column in excess.T:
        found = _quantile(design, column, np.where(inside, pull, 0), share)
        levels.append(found[inside] + plane @ found[~inside])
    return np.reshape(levels, (len(levels), *(knot.size for knot in knots)))


def corrections(feed: Feed, table: dict[str, np.ndarray]) -> np.ndarray:
    """Return what a table adds to the log of the errors.

    Parameters
    ----------
    feed : dict of ndarray
        With ``ivar`` and ``wavelength``.
    table : dict of ndarray
        Of `fit`, with ``seen`` of `familiarity.fit` of the spectra behind it.

    Returns
    -------
    ndarray of float, shape (spectrum, label)
    """
    return at(place(feed), table) * familiarity.share(feed, table)[:, None]


def at(places: np.ndarray, table: dict[str, np.ndarray]) -> np.ndarray:
    """Read a table, as `corrections` of spectra such as those that it is of.

    Parameters
    ----------
    places : ndarray, shape (spectrum, 3)
        Of `place`.
    table : dict of ndarray
        Of `fit`.

    Returns
    -------
    ndarray of float, shape (spectrum, label)
    """
    cells = _cells(places, table["middle"], table["length"])
    levels = table["levels"]
    if SEVERAL not in table:  # of one instrument
        return cells @ levels.reshape(len(levels), -1).T
    usual = _hats(places[:, 0], table["middle"]) @ table[SEVERAL].T
    nearest = np.abs(usual - places[:, 2:]).argmin(axis=1)
    values = np.einsum("sc,lic->sil", cells, levels.reshape(*levels.shape[:2], -1))
    return values[np.arange(len(places)), nearest]


def _knots(values: np.ndarray, spacing: float) -> np.ndarray:
    """Even knots over the range of some values."""
    low, high = np.percentile(values, ENDS)
    count = max(LEAST, math.ceil((high - low) / spacing) + 1)
    # knots of one place would divide by nothing
    return np.linspace(low, max(high, low + 1e-3), count)


def _hats(values: np.ndarray, knots: np.ndarray) -> np.ndarray:
    """Weight of each knot, (value, knot): linear between, the nearest one's beyond."""
    return np.stack([np.interp(values, knots, one) for one in np.eye(knots.size)], 1)


def _cells(places: np.ndarray, middle: np.ndarray, length: np.ndarray) -> np.ndarray:
    """Weight of each cell of the table, (spectrum, cell): bilinear interpolation."""
    first, second = _hats(places[:, 0], middle), _hats(places[:, 1], length)
    return (first[:, :, None] * second[:, None, :]).reshape(len(places), -1)


def _quantile(
    design: np.ndarray, value: np.ndarray, penalty: np.ndarray, share: float
) -> np.ndarray:
    """Coefficients of a plane with a share of the values below it."""
    from scipy.optimize import minimize
    from scipy.special import expit

    known = np.isfinite(value)
    design, value = design[known], value[known]
    if not value.size:
        return np.zeros(design.shape[1])

    def loss(coefficients: np.ndarray) -> tuple[float, np.ndarray]:
        above = value - design @ coefficients
        corner = np.logaddexp(0, -above / ROUNDING)
        total = (share * above + ROUNDING * corner).mean()
        slope = share - expit(-above / ROUNDING)
        pull = penalty * coefficients
        gradient = pull - design.T @ slope / value.size
        return total + 0.5 * float(pull @ coefficients), gradient

    start = np.zeros(design.shape[1])
    return minimize(loss, start, jac=True, method="L-BFGS-B").x
