"""How unlike the training spectra a spectrum is.

Principal components of the training spectra, a floor for what they leave out, and the
spread of the coefficients. Two numbers per spectrum: the residual over what noise and
floor explain, and the distance of the coefficients from the training ones. Each is
divided by its threshold, so that 1 is the border whatever the network behind.
"""

from __future__ import annotations

import numpy as np

COMPONENTS = 48
ROWS = 20000  # training spectra that the components are taken from, at most
GOOD_SHARE = 0.99  # of good validation stars that pass


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
        ``precision`` of the coefficients; ``thresholds`` (2,), all 1 until
        `calibrate`.
    """
    good = ivar > 0
    count = np.maximum(good.sum(axis=0), 1)
    mean = (np.where(good, flux, 0).sum(axis=0) / count).astype(np.float32)
    centred = np.where(good, flux - mean, 0)
    size = min(COMPONENTS, len(flux) // 4, flux.shape[1])
    covariance = centred.T @ centred
    values, vectors = np.linalg.eigh(covariance.astype(np.float64))
    components = vectors[:, np.argsort(values)[::-1][:size]].T.astype(np.float32)
    coefficients = centred @ components.T
    residual = np.where(good, centred - coefficients @ components, 0)
    noise = np.divide(1, ivar, out=np.zeros_like(ivar), where=good)
    floor = np.maximum((np.square(residual) - noise).sum(axis=0) / count, 1e-6)
    center = np.median(coefficients, axis=0)
    covariance = np.cov(coefficients.T) + 1e-6 * np.eye(size)
    return {
        "mean": mean,
        "components": components,
        "floor": floor.astype(np.float32),
        "center": center.astype(np.float32),
        "precision": np.linalg.inv(covariance).astype(np.float32),
        "thresholds": np.ones(2, dtype=np.float32),
    }


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
    good = ivar > 0
    centred = np.where(good, flux - model["mean"], 0)
    components = model["components"].astype(np.float32)
    coefficients = centred @ components.T
    residual = np.where(good, centred - coefficients @ components, 0)
    noise = np.divide(1, ivar, out=np.zeros_like(ivar), where=good)
    expected = np.where(good, noise + model["floor"], 0).sum(axis=1)
    surplus = np.sqrt(np.square(residual).sum(axis=1) / np.maximum(expected, 1e-12))
    offset = coefficients - model["center"]
    # noise alone widens the coefficients of a poor spectrum: allow for it
    share = np.trace(model["precision"]) * noise.mean(axis=1)
    squared = np.einsum("ij,jk,ik->i", offset, model["precision"], offset)
    distance = np.sqrt(squared / (len(components) + share))
    return np.stack([surplus, distance], axis=1) / model["thresholds"]


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
    model["thresholds"] = levels.astype(np.float32)
