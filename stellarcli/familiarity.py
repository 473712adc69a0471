"""What a model without a common grid has seen: wavelengths, and how they were sampled.

`novelty` compares spectra with the training ones pixel by pixel, which needs a grid.
Where every spectrum has its own, this remembers which stretches of ln λ the training
spectra covered, at which sampling, and says how much of a spectrum lies there.
"""

from __future__ import annotations

import numpy as np

from stellarcli.feeding import Feed

FIRST, LAST = 1000.0, 30000.0  # Å
STRETCH = 0.005  # in ln λ
FINEST, COARSEST = -18, -7  # log2 of a pixel's width in ln λ
ENOUGH = 0.5  # share of a spectrum's pixels; below, it is unlike the training spectra

SHAPE = (int(np.log(LAST / FIRST) / STRETCH) + 1, COARSEST - FINEST + 1)


def fit(feed: Feed, before: dict[str, np.ndarray] | None = None) -> dict:
    """Remember what spectra cover.

    Parameters
    ----------
    feed : dict of ndarray
        With ``ivar`` and ``wavelength``, of training spectra.
    before : dict of ndarray, optional
        What the model to start from remembers.

    Returns
    -------
    dict of ndarray
        ``seen``, uint8 (stretch, sampling), of `SHAPE`.
    """
    seen = np.zeros(SHAPE, dtype=np.uint8)
    stretch, sampling, good = _places(feed)
    seen[stretch[good], sampling[good]] = 1
    if before:
        seen |= before["seen"]
    return {"seen": seen}


def share(feed: Feed, model: dict[str, np.ndarray]) -> np.ndarray:
    """Share of each spectrum's good pixels that lie where the model has seen some.

    Samplings that differ by less than a factor of two or so count as one.

    Parameters
    ----------
    feed : dict of ndarray
    model : dict of ndarray
        Of `fit`.

    Returns
    -------
    ndarray of float, shape (spectrum,)
        0 without a good pixel.
    """
    seen = model["seen"] > 0
    near = seen.copy()
    near[:, 1:] |= seen[:, :-1]
    near[:, :-1] |= seen[:, 1:]
    stretch, sampling, good = _places(feed)
    known = near[stretch, sampling] & good
    return known.sum(axis=1) / np.maximum(good.sum(axis=1), 1)


def reach(model: dict[str, np.ndarray]) -> tuple[float, float]:
    """Shortest and longest wavelength that a model has seen, Å."""
    used = np.flatnonzero((model["seen"] > 0).any(axis=1))
    if not used.size:
        return FIRST, LAST
    low, high = used[0], used[-1] + 1
    return float(FIRST * np.exp(STRETCH * low)), float(FIRST * np.exp(STRETCH * high))


def positions(wavelength: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where pixels lie, and how wide they are.

    Parameters
    ----------
    wavelength : ndarray, shape (spectrum, pixel)
        Vacuum Å, not above 0 behind the end of a shorter spectrum.

    Returns
    -------
    position, width : ndarray of float, shape (spectrum, pixel)
        In ln λ, λ in Å; NaN where there is no pixel, and the width also of the one
        before such.
    """
    position = np.log(np.where(wavelength > 0, wavelength, np.nan))
    return position, np.abs(np.gradient(position, axis=1))


def _places(feed: Feed) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Stretch and sampling of every pixel, and which are good, (spectrum, pixel)."""
    wavelength = feed["wavelength"]
    position, width = positions(wavelength)
    good = (feed["ivar"] > 0) & (wavelength > FIRST) & (wavelength < LAST)
    good &= np.isfinite(width)
    width = np.clip(np.where(good, width, 1), 2.0**FINEST, 2.0**COARSEST)
    sampling = np.floor(np.log2(width)).astype(int) - FINEST
    stretch = (np.where(good, position, 0) - np.log(FIRST)) / STRETCH
    return np.where(good, stretch, 0).astype(int), sampling, good
