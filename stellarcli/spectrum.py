"""One spectrum as every survey reader returns it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import IntFlag

import numpy as np

from stellarcli.errors import SpectrumError

SPEED_OF_LIGHT = 299792.458  # km/s


class PixelMask(IntFlag):
    """Why a pixel carries no information. Any set bit means: don't use it."""

    NO_IVAR = 1  # inverse variance zero, negative or not finite
    NO_FLUX = 2  # flux not finite
    FILLED = 4  # flux and ivar both exactly 0: the survey's filler (arm edges, gaps)
    SURVEY = 8  # the survey's own mask says that the pixel is bad
    OUTSIDE = 16  # of a grid, beyond the spectrum's ends


FILLED_BIT = np.uint8(PixelMask.FILLED.bit_length() - 1)


@dataclass(frozen=True)
class SpectrumMeta:
    """What the survey says about a spectrum.

    Attributes
    ----------
    objid : str
        The survey's own identifier (OBSID for LAMOST).
    survey : str
        Key of `stellarcli.surveys.SURVEYS`.
    ra, dec : float
        ICRS position, degrees; NaN when unknown.
    snr : float
        Signal-to-noise ratio per pixel (g band for LAMOST LRS); NaN when unknown.
    snr_bands : dict
        Signal-to-noise ratio per band, such as ``{"snrg": 31.2}``.
    rv : float or None
        Radial velocity, km/s, positive receding; None when the survey gives none.
    rv_error : float
        Standard error of `rv`, km/s; NaN when unknown.
    rv_source : str
        Where `rv` is from, such as ``"header Z"``; empty when there is none.
    object_class : str
        The survey's class in capitals: STAR, GALAXY, QSO, UNKNOWN; empty if not given.
    subclass : str
        The survey's subclass as written, e.g. ``"A7V"``.
    mjd : float
        Modified Julian date of the observation; NaN when unknown.
    plan : str
        The survey's plan (LAMOST) or plate (SDSS) that the star was observed with.
    file : str
        Path of the file as the user gave it.
    noise_measured : bool
        The file holds no errors; they were measured in the flux.
    medium_assumed : bool
        The file doesn't say whether its wavelengths are in air; vacuum was assumed.
    """

    objid: str = ""
    survey: str = ""
    ra: float = np.nan
    dec: float = np.nan
    snr: float = np.nan
    snr_bands: dict[str, float] = field(default_factory=dict)
    rv: float | None = None
    rv_error: float = np.nan
    rv_source: str = ""
    object_class: str = ""
    subclass: str = ""
    mjd: float = np.nan
    plan: str = ""
    file: str = ""
    noise_measured: bool = False
    medium_assumed: bool = False


@dataclass(frozen=True, eq=False)
class Spectrum:
    """A spectrum, immutable and checked at birth.

    Parameters
    ----------
    wavelength : ndarray, shape (pixel,)
        Vacuum wavelength in Å, heliocentric, increasing within each segment.
    flux : ndarray, shape (pixel,)
        Flux density per Å in the survey's unit.
    ivar : ndarray, shape (pixel,)
        Inverse variance of `flux`; 0 where nothing is known.
    mask : ndarray of int, shape (pixel,)
        `PixelMask` bits. `NO_IVAR`, `NO_FLUX` and `FILLED` are set here from the
        arrays; a reader passes only what the survey's own mask says.
    meta : SpectrumMeta
    segments : tuple of (int, int)
        Pixel ranges of the arms or detectors, in order of wavelength; one range by
        default. A spline never crosses from one segment into the next.

    Raises
    ------
    SpectrumError
        If the arrays disagree in length, are empty, or the wavelengths are not
        positive, finite and increasing.
    """

    wavelength: np.ndarray
    flux: np.ndarray
    ivar: np.ndarray
    mask: np.ndarray
    meta: SpectrumMeta
    segments: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        """Convert, check and freeze the arrays."""
        wavelength = np.array(self.wavelength, dtype=np.float64)
        flux = np.array(self.flux, dtype=np.float32)
        ivar = np.array(self.ivar, dtype=np.float32)
        mask = np.array(self.mask, dtype=np.uint8)
        size = wavelength.size
        if not wavelength.ndim == 1 or size < 2:
            raise SpectrumError(
                f"wavelength has shape {wavelength.shape}, not (pixel,)"
            )
        for name, array in (("flux", flux), ("ivar", ivar), ("mask", mask)):
            if array.shape != (size,):
                raise SpectrumError(
                    f"{name} has shape {array.shape}, wavelength has {size} pixels"
                )
        segments = self.segments or ((0, size),)
        for start, stop in segments:
            part = wavelength[start:stop]
            if not (part[0] > 0 and part[-1] < np.inf and (part[1:] > part[:-1]).all()):
                raise SpectrumError("wavelengths are not finite, positive, increasing")
        unknown = ivar > 0
        unknown &= ivar < np.inf
        np.logical_not(unknown, out=unknown)
        filled = flux == 0
        filled &= unknown
        # a truth value is a byte of 0 or 1, which is NO_IVAR
        mask |= unknown.view(np.uint8)
        mask |= filled.view(np.uint8) << FILLED_BIT
        if not math.isfinite(flux.sum()):  # one pixel suffices; or all are very large
            infinite = ~np.isfinite(flux)
            mask |= infinite * np.uint8(PixelMask.NO_FLUX)
            flux[infinite] = 0
        ivar[mask.astype(bool)] = 0
        for array in (wavelength, flux, ivar, mask):
            array.flags.writeable = False
        object.__setattr__(self, "wavelength", wavelength)
        object.__setattr__(self, "flux", flux)
        object.__setattr__(self, "ivar", ivar)
        object.__setattr__(self, "mask", mask)
        object.__setattr__(self, "segments", segments)

    @property
    def good(self) -> np.ndarray:
        """Pixels without any mask bit, shape (pixel,)."""
        return self.mask == 0

    @property
    def redshift(self) -> float:
        """Redshift of the survey's velocity; 0 when it gives none."""
        return 0.0 if self.meta.rv is None else self.meta.rv / SPEED_OF_LIGHT
