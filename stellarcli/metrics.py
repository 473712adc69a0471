"""How far predictions are from reference values, and whether their errors are right.

All functions take arrays of shape (row,) in the label's unit. Residual always means
predicted minus reference. Rows in which either is not finite are left out; `summary`
counts them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np

GAUSSIAN = 1.4826  # standard deviation / median absolute deviation of a Gaussian
WITHIN = {1: 0.6827, 2: 0.9545, 3: 0.9973}  # of a Gaussian within n standard deviations
OUTLIER = 5.0  # residuals further than this many robust scatters from the median
HALF_SUBTYPE = 0.05  # spectral types are numbers whose unit is ten subtypes
ROUNDING = 1e-6  # what a single-precision spectral type may be off

CONFIDENCE = 0.95  # of all intervals and bands
REPLICATES = 1000  # bootstrap samples
GROUPS = 1000  # groups of rows that a bootstrap of sums draws from
SUBSAMPLE = 2000  # rows of which a bootstrap of medians is made
SEED = 20210501


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


def mean_error(residual: np.ndarray) -> float:
    """Mean absolute error without the largest one, as the MK subtype paper takes it."""
    errors = np.abs(residual)
    if errors.size < 2:
        return np.nan
    return float((errors.sum() - errors.max()) / (errors.size - 1))


def deviation(residual: np.ndarray) -> float:
    """Scatter of the absolute errors about `mean_error` (MK subtype paper, eq. 6)."""
    center = mean_error(residual)
    return _of(lambda r: np.mean((np.abs(r) - center) ** 2), residual) ** 0.5


def within(residual: np.ndarray, limit: float = HALF_SUBTYPE) -> float:
    """Fraction of absolute residuals up to a limit, by default half a subtype."""
    return _of(np.mean, np.abs(residual) <= limit + ROUNDING)


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
    ratio = ratios(predicted, reference, error)
    result = {f"within{n}": _of(np.mean, ratio <= n) for n in WITHIN}
    result["scaling"] = _of(lambda r: np.percentile(r, 100 * WITHIN[1]), ratio)
    return result


def ratios(
    predicted: np.ndarray, reference: np.ndarray, error: np.ndarray
) -> np.ndarray:
    """Absolute residuals in units of their errors, where these are positive.

    Parameters
    ----------
    predicted, reference, error : ndarray, shape (row,)

    Returns
    -------
    ndarray of float64, shape (usable row,)
    """
    predicted, reference, error = _pair(predicted, reference, error)
    good = np.isfinite(predicted - reference) & np.isfinite(error) & (error > 0)
    return np.abs(predicted - reference)[good] / error[good]


LEVELS = tuple(np.round(np.arange(0.05, 0.96, 0.05), 2).tolist())


def reliability(
    ratio: np.ndarray, levels: Sequence[float] = LEVELS
) -> dict[str, list[float]]:
    """Compare the coverage of central Gaussian intervals with what they promise.

    Parameters
    ----------
    ratio : ndarray, shape (row,)
        Of `ratios`.
    levels : sequence of float
        Probabilities that the intervals promise.

    Returns
    -------
    dict
        ``expected``: `levels`; ``observed``: fraction of rows that each holds. Above
        the diagonal the errors are too large, below it too small.
    """
    from scipy.special import ndtri

    limits = ndtri((1 + np.asarray(levels)) / 2)
    inside = np.searchsorted(np.sort(ratio), limits, side="right")
    observed = inside / ratio.size if ratio.size else np.full(limits.size, np.nan)
    return {"expected": list(levels), "observed": observed.tolist()}


@dataclass(frozen=True, eq=False)
class Quadratic:
    """A parabola fitted to reference over prediction, and how well it is known.

    Attributes
    ----------
    center, scale : float
        It is one in ``u = (prediction - center) / scale``.
    terms : ndarray, shape (3,)
        Of 1, u, u².
    covariance : ndarray, shape (3, 3)
        Of `terms`.
    quantile : float
        Half width of the band in standard errors (Student's t).
    """

    center: float
    scale: float
    terms: np.ndarray
    covariance: np.ndarray
    quantile: float

    def __call__(self, predicted: np.ndarray) -> np.ndarray:
        """Return the reference that the parabola expects for predictions."""
        return self._powers(predicted) @ self.terms

    def band(self, predicted: np.ndarray) -> np.ndarray:
        """Half width of the band that holds the parabola at `CONFIDENCE`."""
        powers = self._powers(predicted)
        variance = np.einsum("ij,jk,ik->i", powers, self.covariance, powers)
        return self.quantile * np.sqrt(variance)

    def _powers(self, predicted: np.ndarray) -> np.ndarray:
        u = (np.asarray(predicted, dtype=np.float64) - self.center) / self.scale
        return np.stack([np.ones_like(u), u, u * u], axis=-1)

    @property
    def coefficients(self) -> tuple[float, float, float]:
        """Of 1, prediction, prediction²."""
        a, b, c = self.terms
        m, s = self.center, self.scale
        constant = a - b * m / s + c * m**2 / s**2
        return (float(constant), float(b / s - 2 * c * m / s**2), float(c / s**2))


def quadratic(predicted: np.ndarray, reference: np.ndarray) -> Quadratic | None:
    """Fit a parabola to reference over prediction by least squares.

    Parameters
    ----------
    predicted, reference : ndarray, shape (row,)

    Returns
    -------
    Quadratic or None
        None of fewer than four rows, or fewer than three different predictions.
    """
    from scipy.special import stdtrit

    predicted, reference = _pair(predicted, reference)
    good = np.isfinite(predicted - reference)
    x, y = predicted[good], reference[good]
    if x.size < 4 or np.unique(x[:100_000]).size < 3:
        return None
    center, scale = float(x.mean()), float(x.std())
    u = (x - center) / scale
    powers = np.stack([np.ones_like(u), u, u * u])
    inverse = np.linalg.inv(powers @ powers.T)
    terms = inverse @ (powers @ y)
    free = x.size - 3
    variance = np.sum((y - terms @ powers) ** 2) / free
    t = float(stdtrit(free, (1 + CONFIDENCE) / 2))
    return Quadratic(center, scale, terms, variance * inverse, t)


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


# ------------------------------------------------------------------------- bootstrap

# Rows are drawn with replacement, always with the same seed. What follows from sums
# over rows (means, RMSE, fractions) is drawn from sums over at most `GROUPS` random
# groups of equal size: up to so many rows this is the ordinary bootstrap, beyond it has
# the same variance, known to 1/sqrt(2 GROUPS) = 2 %, at the cost of one pass. Medians
# have no sums: theirs are drawn from `SUBSAMPLE` random rows and the interval's
# distances from the value shrunk by the square root of how many times more rows there
# are.


def intervals(
    residual: np.ndarray, ratio: np.ndarray | None = None, medians: bool = True
) -> dict[str, tuple[float, float]]:
    """Bootstrap intervals at `CONFIDENCE` for values of `summary`.

    Rows count as independent of each other.

    Parameters
    ----------
    residual : ndarray, shape (row,)
    ratio : ndarray, shape (row,), optional
        Of `ratios`.
    medians : bool
        Whether to draw medians, too, which takes most of the time.

    Returns
    -------
    dict of (float, float)
        For mae, rmse, bias, std, with `medians` for nmad, and with `ratio` for within1,
        within2, within3; NaN of fewer than two rows.
    """
    size, total, square, absolute = _resampled(
        np.ones(residual.size), residual, residual**2, np.abs(residual)
    )
    variance = np.maximum(square / size - (total / size) ** 2, 0)
    drawn = {
        "mae": absolute / size,
        "rmse": np.sqrt(square / size),
        "bias": total / size,
        "std": np.sqrt(variance),
    }
    found = {name: _interval(values) for name, values in drawn.items()}
    if medians:
        found["nmad"] = _interval(_resampled_nmad(residual))
    if ratio is not None:
        size, *inside = _resampled(np.ones(ratio.size), *(ratio <= n for n in WITHIN))
        for n, count in zip(WITHIN, inside, strict=True):
            found[f"within{n}"] = _interval(count / size)
    return found


def paired(first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    """Compare two models on the same rows.

    Parameters
    ----------
    first, second : ndarray, shape (row,)
        Residuals of the models; rows where either is NaN are left out.

    Returns
    -------
    dict of float
        ``n`` rows; for ``mae`` and ``rmse`` the first's minus the second's
        (``mae_difference``), its interval (``mae_low``, ``mae_high``), and the
        probability that the first is the better one, ``mae_probability``: the share of
        bootstrap samples in which it is, ties halved.
    """
    first, second = _pair(first, second)
    both = np.isfinite(first) & np.isfinite(second)
    first, second = first[both], second[both]
    size, *sums = _resampled(
        np.ones(first.size), np.abs(first), np.abs(second), first**2, second**2
    )
    means = [values / size for values in sums]
    drawn = {
        "mae": means[0] - means[1],
        "rmse": np.sqrt(means[2]) - np.sqrt(means[3]),
    }
    found: dict[str, float] = {"n": first.size}
    for name, values in drawn.items():
        metric = METRICS[name]
        low, high = _interval(values)
        better = _of(lambda v: np.mean(v < 0) + np.mean(v == 0) / 2, values)
        found |= {
            f"{name}_first": metric(first),
            f"{name}_second": metric(second),
            f"{name}_difference": metric(first) - metric(second),
            f"{name}_low": low,
            f"{name}_high": high,
            f"{name}_probability": better,
        }
    return found


def _interval(drawn: np.ndarray) -> tuple[float, float]:
    """Central range of what was drawn; NaN where fewer than two rows were there."""
    if not drawn.size:
        return (np.nan, np.nan)
    edges = 100 * (1 - CONFIDENCE) / 2, 100 * (1 + CONFIDENCE) / 2
    low, high = np.percentile(drawn, edges)
    return (float(low), float(high))


def _resampled(*columns: np.ndarray) -> list[np.ndarray]:
    """Add up columns in bootstrap samples; each of shape (replicate,)."""
    size = len(columns[0])
    if size < 2:
        return [np.zeros(0)] * len(columns)
    groups = min(size, GROUPS)
    order = np.random.default_rng(SEED).permutation(size)
    starts = np.arange(groups) * size // groups
    sums = [
        np.add.reduceat(np.asarray(c, dtype=np.float64)[order], starts) for c in columns
    ]
    return list((_weights(groups) @ np.stack(sums, axis=1)).T)


@lru_cache(maxsize=4)
def _weights(groups: int) -> np.ndarray:
    """How often each sample holds each group, shape (replicate, group)."""
    rng = np.random.default_rng(SEED)
    shares = np.full(groups, 1 / groups)
    return rng.multinomial(groups, shares, size=REPLICATES).astype(np.float64)


def _resampled_nmad(residual: np.ndarray) -> np.ndarray:
    if residual.size < 2:
        return np.zeros(0)
    rng = np.random.default_rng(SEED)
    some = residual
    if residual.size > SUBSAMPLE:
        some = rng.choice(residual, SUBSAMPLE, replace=False)
    drawn = some[rng.integers(some.size, size=(REPLICATES, some.size))]
    distance = np.abs(drawn - np.median(drawn, axis=1, keepdims=True))
    values = GAUSSIAN * np.median(distance, axis=1)
    shrink = (some.size / residual.size) ** 0.5
    return nmad(residual) + shrink * (values - nmad(some))


def precision(
    differences: np.ndarray, errors: np.ndarray | None = None
) -> dict[str, float]:
    """Say what the differences between observations of the same stars mean.

    Parameters
    ----------
    differences : ndarray, shape (pair,)
    errors : ndarray, shape (pair,), optional
        Standard errors of the differences: the roots of the sums of two squares.

    Returns
    -------
    dict of float
        ``n`` pairs; ``scatter``: root of the mean squared difference, divided by √2,
        thus the standard error of one observation; ``robust``: the same from the
        median; ``mean_difference``: mean absolute difference; ``maximum``; with errors
        those of `calibration`.
    """
    finite = np.isfinite(differences)
    differences = differences[finite]
    found = {
        "n": differences.size,
        "scatter": rmse(differences) / np.sqrt(2),
        "robust": GAUSSIAN * _of(np.median, np.abs(differences)) / np.sqrt(2),
        "mean_difference": mae(differences),
        "maximum": maximum(differences),
    }
    if errors is not None:
        zero = np.zeros(differences.size)
        found |= calibration(differences, zero, np.asarray(errors)[finite])
    return found


def precision_interval(
    differences: np.ndarray, star: np.ndarray
) -> tuple[float, float]:
    """Bootstrap interval of the ``scatter`` of `precision`, drawing whole stars.

    Parameters
    ----------
    differences : ndarray, shape (pair,)
        All finite.
    star : ndarray of int, shape (pair,)
        Pairs of one star depend on each other.
    """
    _, number = np.unique(star, return_inverse=True)
    size, square = _resampled(
        np.bincount(number), np.bincount(number, weights=differences**2)
    )
    return _interval(np.sqrt(square / size / 2))
