"""How unlike the training spectra a spectrum is.

Principal components of the training spectra, a floor for what they leave out, and the
spread of the coefficients. Two numbers per spectrum: the residual over what noise and
floor explain, and the distance of the coefficients from the training ones. Each is
divided by its threshold, so that 1 is the border whatever the network behind.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

COMPONENTS = 48
ROWS = 20000  # training spectra that the components are taken from, at most
VALUES = 60_000_000  # of flux, and as many of ivar
PIECE = 1024  # spectra worked on together
SPARE = 16  # directions beyond the components, which make the iteration converge
ITERATIONS = 5
FOLDS = 4
GOOD_SHARE = 0.98  # of the training and validation stars that pass


def fit(flux: np.ndarray, ivar: np.ndarray) -> dict[str, np.ndarray]:
    """Describe training spectra.

    Parameters
    ----------
    flux, ivar : ndarray of float32, shape (spectrum, pixel)
        As prepared; masked pixels have ivar 0.

    Returns
    -------
    dict of ndarray
        ``mean`` (pixel,), ``components`` (component, pixel), ``floor`` (pixel,): the
        variance that the components leave beyond the noise; ``center`` and
        ``precision`` of the coefficients; ``noise`` (1,), the variance of a typical
        training spectrum; ``thresholds`` (2,), all 1 until `calibrate`. The first two
        are float32 with the digits of float16, in which model files may keep them; the
        others, float64, would leave its range.
    """
    count, total = np.zeros(flux.shape[1]), np.zeros(flux.shape[1])
    for rows in _pieces(len(flux)):
        count += (ivar[rows] > 0).sum(axis=0)
        total += np.where(ivar[rows] > 0, flux[rows], 0).sum(axis=0)
    count = np.maximum(count, 1)
    mean = _rounded(total / count)
    centred = np.empty_like(flux)
    for rows in _pieces(len(flux)):
        centred[rows] = np.where(ivar[rows] > 0, flux[rows] - mean, 0)
    size = max(1, min(COMPONENTS, len(flux) // 4, flux.shape[1]))
    components = _rounded(_principal(centred, size))
    coefficients = centred @ components.T
    surplus, noises = np.zeros(flux.shape[1]), np.zeros(len(flux))
    for rows in _pieces(len(flux)):
        residual = centred[rows] - coefficients[rows] @ components
        good, noise = ivar[rows] > 0, _variance(ivar[rows])
        noises[rows] = noise.mean(axis=1)
        surplus += np.where(good, np.square(residual) - noise, 0).sum(axis=0)
    floor = np.maximum(surplus / count, 1e-6)
    center = np.median(coefficients, axis=0)
    offset = coefficients - coefficients.mean(axis=0)
    covariance = offset.T @ offset / max(1, len(flux) - 1) + 1e-6 * np.eye(size)
    return {
        "mean": mean,
        "components": components,
        "floor": floor,
        "center": center.astype(np.float64),
        "precision": np.linalg.inv(covariance),
        "noise": np.array([np.median(noises)]),
        "thresholds": np.ones(2),
    }


def _principal(centred: np.ndarray, size: int) -> np.ndarray:
    """Leading principal components, float32 (component, pixel).

    Subspace iteration from a random start (Halko, Martinsson & Tropp 2011,
    arXiv:0909.4061, algorithm 4.4): a matrix of pixels by pixels would be a hundred
    times the work.
    """
    pixels = centred.shape[1]
    random = np.random.default_rng(0)
    basis = random.normal(size=(pixels, min(size + SPARE, pixels))).astype(np.float32)
    for _ in range(ITERATIONS):
        basis, _ = np.linalg.qr(centred.T @ (centred @ basis))
    small = (centred @ basis).astype(np.float64)
    values, vectors = np.linalg.eigh(small.T @ small)
    return (basis @ vectors[:, np.argsort(values)[::-1][:size]]).T.astype(np.float32)


def _variance(ivar: np.ndarray) -> np.ndarray:
    """Return 1/ivar, 0 where masked."""
    with np.errstate(divide="ignore"):
        variance = 1 / ivar
    variance[~(ivar > 0)] = 0
    return variance


def _rounded(values: np.ndarray) -> np.ndarray:
    """Return float32 with the digits of float16."""
    return values.astype(np.float16).astype(np.float32)


def _pieces(rows: int) -> Iterator[slice]:
    return (slice(start, start + PIECE) for start in range(0, rows, PIECE))


def rows(pixels: int) -> int:
    """Return how many spectra `fit` should be given at most: half a gigabyte."""
    return min(ROWS, VALUES // pixels)


def score(
    flux: np.ndarray, ivar: np.ndarray, model: dict[str, np.ndarray]
) -> np.ndarray:
    """Score spectra against the training ones.

    Parameters
    ----------
    flux, ivar : ndarray of float32, shape (spectrum, pixel)
    model : dict
        Of `fit`.

    Returns
    -------
    ndarray of float32, shape (spectrum, 2)
        Residual over expectation, and distance of the coefficients; each in units of
        its threshold: above 1 is unlike.
    """
    model = {name: values.astype(np.float32) for name, values in model.items()}
    bad = ~(ivar > 0)
    centred = flux - model["mean"]
    centred[bad] = 0
    components = model["components"]
    coefficients = centred @ components.T
    residual = centred
    residual -= coefficients @ components
    residual[bad] = 0
    noise = _variance(ivar)
    expected = noise.sum(axis=1) + (~bad).astype(np.float32) @ model["floor"]
    squares = np.einsum("ij,ij->i", residual, residual)
    surplus = np.sqrt(squares / np.maximum(expected, 1e-12))
    offset = coefficients - model["center"]
    # more noise than in training widens the coefficients: allow for it
    more = np.maximum(noise.mean(axis=1) - model.get("noise", 0), 0)
    share = np.trace(model["precision"]) * more
    squared = np.einsum("ij,jk,ik->i", offset, model["precision"], offset)
    distance = np.sqrt(squared / (len(components) + share))
    return np.stack([surplus, distance], axis=1) / model["thresholds"]


def cross_scores(flux: np.ndarray, ivar: np.ndarray) -> np.ndarray:
    """Score each spectrum against the others: `FOLDS` fits, each without some.

    Odd spectra get components of their own in a fit that they take part in, and look
    ordinary; or spread the coefficients, and make others look so.

    Parameters
    ----------
    flux, ivar : ndarray of float32, shape (spectrum, pixel)

    Returns
    -------
    ndarray of float32, shape (spectrum, 2)
    """
    fold = np.random.default_rng(0).permutation(len(flux)) % FOLDS
    scores = np.zeros((len(flux), 2), dtype=np.float32)
    for number in range(FOLDS):
        left_out = fold == number
        model = fit(flux[~left_out], ivar[~left_out])
        for rows in _pieces(int(left_out.sum())):
            index = np.flatnonzero(left_out)[rows]
            scores[index] = score(flux[index], ivar[index], model)
    return scores


def calibrate(model: dict[str, np.ndarray], scores: np.ndarray) -> None:
    """Set the thresholds so that a share `GOOD_SHARE` of good stars passes both.

    Parameters
    ----------
    model : dict
        Changed in place.
    scores : ndarray, shape (spectrum, 2)
        Of good stars that `fit` didn't see, with the present thresholds.
    """
    each = 1 - (1 - GOOD_SHARE) / 2
    levels = np.quantile(scores, each, axis=0) * model["thresholds"]
    model["thresholds"] = levels
