"""What several survey readers need: a number from a card, an S/N, an ivar."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from stellarcli.spectrum import SPEED_OF_LIGHT, PixelMask

FILLED = np.uint8(PixelMask.FILLED)
SURVEY = np.uint8(PixelMask.SURVEY)


@dataclass(frozen=True)
class Arrays:
    """Columns of one arm or detector before they become a `Spectrum`."""

    wavelength: np.ndarray
    flux: np.ndarray
    ivar: np.ndarray
    mask: np.ndarray

    def increasing(self) -> Arrays:
        """Reversed if the wavelengths decrease."""
        if self.wavelength.size and self.wavelength[0] > self.wavelength[-1]:
            return Arrays(
                self.wavelength[::-1], self.flux[::-1], self.ivar[::-1], self.mask[::-1]
            )
        return self


def join(parts: list[Arrays]) -> tuple[Arrays, tuple[tuple[int, int], ...]]:
    """Put arms one behind the other.

    Parameters
    ----------
    parts : list of Arrays
        In order of wavelength.

    Returns
    -------
    Arrays
        All pixels.
    tuple of (int, int)
        Pixel range of each arm.
    """
    bounds = np.cumsum([0, *(part.flux.size for part in parts)]).tolist()
    names = ("wavelength", "flux", "ivar", "mask")
    arrays = Arrays(
        *(np.concatenate([getattr(p, name) for p in parts]) for name in names)
    )
    return arrays, tuple(pairwise(bounds))


def number(value: Any) -> float:
    """Turn a card or table value into a float; NaN for −9999 and for text."""
    if type(value) is not float:  # the quick way: most values are floats
        try:
            value = float(value)
        except (TypeError, ValueError):
            return math.nan
    return value if -9990.0 < value < math.inf else math.nan


def velocity_of(redshift: float) -> float | None:
    """Velocity in km/s as z times c, or None for NaN.

    The product, not the relativistic form, so that ``Spectrum.redshift`` is z again.
    """
    return None if math.isnan(redshift) else redshift * SPEED_OF_LIGHT


def object_class(value: Any) -> str:
    """Class of the object in capitals; empty if there is none."""
    return str(value or "").strip().upper()


def ivar_from_error(error: np.ndarray) -> np.ndarray:
    """Inverse variance of a standard deviation; 0 where that isn't positive, finite."""
    error = np.asarray(error, dtype=np.float64)
    good = np.isfinite(error) & (error > 0)
    return np.where(good, 1.0 / np.square(np.where(good, error, 1.0)), 0.0)


def median_snr(flux: np.ndarray, ivar: np.ndarray) -> float:
    """Median of flux over error, where there is an error; NaN if nowhere."""
    flux, ivar = np.asarray(flux, np.float64), np.asarray(ivar, np.float64)
    good = (ivar > 0) & np.isfinite(flux) & np.isfinite(ivar)
    if not good.any():
        return math.nan
    return float(np.median(flux[good] * np.sqrt(ivar[good])))
