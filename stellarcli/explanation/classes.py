"""Spectral classes of predictions, with scores."""

from __future__ import annotations

import numpy as np

CLASSES = "OBAFGKM"

# Where a class ends and the next begins. Numbers of spectral types count from A0 = 0,
# F0 = 1, and A9.5 is halfway from A to F. Temperatures are those of dwarfs, between the
# neighbouring subtypes of Pecaut & Mamajek 2013 (ApJS 208, 9, table 5), to 100 K.
LIMITS = {
    "sptype_num": np.array([-1, 0, 1, 2, 3, 4]) - 0.05,
    "teff": np.array([31500.0, 10000.0, 7300.0, 6000.0, 5300.0, 3900.0]),
}


def scores(rows: np.ndarray) -> np.ndarray | None:
    """Probability of each class, for a Gaussian error of the prediction.

    Parameters
    ----------
    rows : structured ndarray, shape (spectrum,)
        Of a catalogue: ``sptype_num`` or else ``teff``, with errors.

    Returns
    -------
    ndarray of float64, shape (spectrum, class), or None
        In the order of `CLASSES`; None if no column tells a class.
    """
    from scipy.special import ndtr

    name = next((name for name in LIMITS if name in rows.dtype.names), None)
    if name is None:
        return None
    value = rows[name].astype(np.float64)[:, None]
    error = np.maximum(rows[f"{name}_err"].astype(np.float64)[:, None], 1e-6)
    limits = LIMITS[name]
    sign = np.sign(limits[-1] - limits[0])  # temperatures fall along the sequence
    below = ndtr(sign * (limits - value) / error)
    edges = np.hstack([np.zeros_like(value), below, np.ones_like(value)])
    return np.diff(edges, axis=1)


def names(found: np.ndarray) -> np.ndarray:
    """Return the class with the highest score, shape (spectrum,), text."""
    return np.array(list(CLASSES))[found.argmax(axis=1)]
