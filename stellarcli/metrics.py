"""How far predictions are from reference values, and whether their errors are right.

All functions take arrays of shape (row,) in the label's unit. Residual always means
predicted minus reference. Rows in which either is not finite are left out; `summary`
counts them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

GAUSSIAN = 1.4826  # standard deviation / median absolute deviation of a Gaussian
WITHIN = {1: 0.6827, 2: 0.9545, 3: 0.9973}  # of a Gaussian within n standard deviations
OUTLIER = 5.0  # residuals further than this many robust scatters from the median


def residuals(predicted: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Predicted minus reference where both are finite.

    Parameters
    ----------
    predicted, reference : ndarray, shape (row,)

    Returns
    -------
    ndarray of float64, shape (finite row,)

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    predicted, reference = _pair(predicted, reference)
    difference = predicted - reference
    return difference[np.isfinite(difference)]


def _pair(*arrays: np.ndarray) -> list[np.ndarray]:
    converted = [np.asarray(array, dtype=np.float64) for array in arrays]
    shapes = [array.shape for array in converted]
    if len(set(shapes)) > 1:
        raise ValueError(f"arrays of shapes {shapes} can't be compared row by row")
    return converted


def mae(residual: np.ndarray) -> float:
    """Mean absolute error."""
    return _of(np.mean, np.abs(residual))


def rmse(residual: np.ndarray) -> float:
    """Root of the mean squared error."""
    return _of(np.mean, np.square(residual)) ** 0.5


def bias(residual: np.ndarray) -> float:
    """Mean residual."""
    return _of(np.mean, residual)


def std(residual: np.ndarray) -> float:
    """Scatter about the mean (divided by the number of rows)."""
    return _of(np.std, residual)


def nmad(residual: np.ndarray) -> float:
    """Robust scatter: 1.4826 times the median distance from the median."""
    return GAUSSIAN * _of(np.median, np.abs(residual - _of(np.median, residual)))


def maximum(residual: np.ndarray) -> float:
    """Largest absolute residual."""
    return _of(np.max, np.abs(residual))


def outliers(residual: np.ndarray, threshold: float | None = None) -> float:
    """Fraction of rows far from the median residual.

    Parameters
    ----------
    residual : ndarray, shape (row,)
    threshold : float, optional
        In the unit of the residuals; `OUTLIER` times `nmad` if not given.
    """
    limit = OUTLIER * nmad(residual) if threshold is None else threshold
    return _of(np.mean, np.abs(residual - _of(np.median, residual)) > limit)


def percentiles(
    residual: np.ndarray, levels: Sequence[float] = (5, 16, 50, 84, 95)
) -> dict[str, float]:
    """Percentiles of the residuals as ``{"p16": …}``."""
    return {
        f"p{p:g}": _of(lambda r, p=p: np.percentile(r, p), residual) for p in levels
    }


def _of(statistic: Callable, values: np.ndarray) -> float:
    """Return the statistic as float; NaN, without a warning, of no values."""
    return float(statistic(values)) if np.size(values) else np.nan


def calibration(
    predicted: np.ndarray, reference: np.ndarray, error: np.ndarray
) -> dict[str, float]:
    """Compare residuals with the errors that were predicted for them.

    Parameters
    ----------
    predicted, reference : ndarray, shape (row,)
    error : ndarray, shape (row,)
        Standard errors of `predicted`; rows without a positive one are left out.

    Returns
    -------
    dict of float
        ``within1``, ``within2``, ``within3``: fraction of rows within so many errors
        (a Gaussian has `WITHIN`); ``scaling``: factor on the errors that puts 68.27 %
        of the rows within one (1 is right, above 1 the errors are too small).
    """
    predicted, reference, error = _pair(predicted, reference, error)
    good = np.isfinite(predicted - reference) & np.isfinite(error) & (error > 0)
    ratio = np.abs(predicted - reference)[good] / error[good]
    result = {f"within{n}": _of(np.mean, ratio <= n) for n in WITHIN}
    result["scaling"] = _of(lambda r: np.percentile(r, 100 * WITHIN[1]), ratio)
    return result


METRICS: dict[str, Callable[[np.ndarray], float]] = {
    "mae": mae,
    "rmse": rmse,
    "bias": bias,
    "std": std,
    "nmad": nmad,
    "outliers": outliers,
    "maximum": maximum,
}


def summary(
    predicted: np.ndarray, reference: np.ndarray, error: np.ndarray | None = None
) -> dict[str, float]:
    """Compute all `METRICS`, percentiles, and with errors the calibration.

    Parameters
    ----------
    predicted, reference : ndarray, shape (row,)
    error : ndarray, shape (row,), optional
        Standard errors of `predicted`.

    Returns
    -------
    dict of float
        ``n`` rows compared and ``left_out`` rows without a finite pair, both int, then
        the statistics; NaN where no row is left.

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    residual = residuals(predicted, reference)
    result = {"n": residual.size, "left_out": np.size(predicted) - residual.size}
    result |= {name: metric(residual) for name, metric in METRICS.items()}
    result |= percentiles(residual)
    if error is not None:
        result |= calibration(predicted, reference, error)
    return result


def binned(
    by: np.ndarray,
    edges: Sequence[float],
    predicted: np.ndarray,
    reference: np.ndarray,
    error: np.ndarray | None = None,
) -> list[dict[str, float]]:
    """Compute `summary` in bins of another quantity, such as S/N or the label itself.

    Parameters
    ----------
    by : ndarray, shape (row,)
        Quantity to bin; rows where it is NaN are in no bin.
    edges : sequence of float, length bin + 1
        Increasing. A bin holds ``low <= by < high``, the last one also its ``high``.
    predicted, reference, error : ndarray, shape (row,)
        As for `summary`.

    Returns
    -------
    list of dict, one per bin
        ``low``, ``high`` and what `summary` gives; empty bins are kept, with ``n`` 0.

    Raises
    ------
    ValueError
        If the edges don't increase or the shapes differ.
    """
    edges = np.asarray(edges, dtype=np.float64)
    if edges.size < 2 or not (np.diff(edges) > 0).all():
        raise ValueError(f"bin edges {edges.tolist()} don't increase")
    by, predicted, reference = _pair(by, predicted, reference)
    number = np.searchsorted(edges, by, side="right") - 1
    number[by == edges[-1]] = edges.size - 2
    rows = []
    for index, (low, high) in enumerate(pairwise(edges)):
        inside = number == index
        errors = None if error is None else np.asarray(error)[inside]
        found = summary(predicted[inside], reference[inside], errors)
        rows.append({"low": float(low), "high": float(high)} | found)
    return rows
