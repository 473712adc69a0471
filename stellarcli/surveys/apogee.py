"""APOGEE spectra: single visits (apVisit), combined (apStar), normalised (aspcapStar).

Data models: https://data.sdss.org/datamodel/files/APOGEE_REDUX/APRED_VERS/visit/TELESCOPE/FIELD/PLATE_ID/MJD5/apVisit.html,
``…/stars/TELESCOPE/FIELD/apStar.html``, ``…/aspcapStar.html``. Wavelengths: vacuum.

apVisit wavelengths are the telescope's; they are brought to the Sun with the card BC
(1 + BC/c). apStar and aspcapStar are at the star's rest; they are brought back to the
heliocentric frame with the mean velocity of the header, so that wavelengths and ``rv``
say the same here as for every other survey.
"""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np

from stellarcli.errors import SpectrumError
from stellarcli.spectrum import SPEED_OF_LIGHT, Spectrum, SpectrumMeta
from stellarcli.surveys.common import (
    FILLED,
    SURVEY,
    Arrays,
    ivar_from_error,
    join,
    median_snr,
    number,
)

# BADPIX, CRPIX, SATPIX, UNFIXABLE, BADDARK, BADFLAT, BADERR, NOSKY, NOT_ENOUGH_PSF: the
# pipeline's own "bad" set (it inflates their errors tenfold). The others (persistence,
# ghost, sky line, telluric) warn: a third of a good spectrum's pixels have one.
BAD_BITS = 0xFF | 1 << 14
UNKNOWN_ERROR = 1e8  # larger errors (the pipeline writes 1e10) mean: no data
MEAN_VELOCITY = ("VHELIO", "VHBARY", "VRAD")  # until DR16, since DR17, SDSS-V


def identify(hdus: list) -> bool:
    """Whether these HDUs are an APOGEE spectrum.

    Parameters
    ----------
    hdus : list of HDU

    Returns
    -------
    bool
    """
    return _is_visit(hdus) or _is_star(hdus)


def read(hdus: list, path: str) -> Spectrum:
    """Read a visit, or the combination of all visits.

    Parameters
    ----------
    hdus : list of HDU
    path : str

    Returns
    -------
    Spectrum
        A visit has its three detectors as segments.
    """
    return _read_visit(hdus, path) if _is_visit(hdus) else _read_star(hdus, path)


def read_exposures(hdus: list, path: str) -> list[Spectrum]:
    """Read the single visits of an apStar file.

    Parameters
    ----------
    hdus : list of HDU
    path : str

    Returns
    -------
    list of Spectrum
        In the file's order, `objid` ending in ``-<number>``; the one spectrum there is
        in files of another kind, or of a single visit.
    """
    if _is_visit(hdus) or len(hdus[1].shape) < 2 or hdus[1].shape[0] < 3:
        return [read(hdus, path)]
    return [_read_star(hdus, path, visit) for visit in range(1, hdus[1].shape[0] - 1)]


def _is_visit(hdus: list) -> bool:
    if len(hdus) < 5:
        return False
    shape = hdus[1].shape
    same = all(hdu.kind == "image" and hdu.shape == shape for hdu in hdus[1:5])
    return same and len(shape) == 2 and shape[0] == 3 and shape[1] > 3


def _is_star(hdus: list) -> bool:
    if len(hdus) < 4 or hdus[0].kind != "empty":
        return False
    flux, error = hdus[1], hdus[2]
    if flux.kind != "image" or error.kind != "image" or flux.shape != error.shape:
        return False
    start, step = (number(flux.header.get(key)) for key in ("CRVAL1", "CDELT1"))
    return len(flux.shape) < 3 and 4.1 < start < 4.3 and 0 < step < 1e-4


def _read_visit(hdus: list, path: str) -> Spectrum:
    header = hdus[0].header
    correction = number(header.get("BC"))
    scale = 1.0 if math.isnan(correction) else 1.0 + correction / SPEED_OF_LIGHT
    fluxes, errors, bits, wavelengths = (hdu.data for hdu in hdus[1:5])
    detectors = []
    for flux, error, bit, wavelength in zip(
        fluxes, errors, bits, wavelengths, strict=True
    ):
        ivar, mask = _ivar_and_mask(flux, error, bit)
        if np.isfinite(wavelength).all() and wavelength[0] > 0:  # a dead detector has 0
            wavelength = wavelength * scale
            detectors.append(Arrays(wavelength, flux, ivar, mask).increasing())
    if not detectors:
        raise SpectrumError("none of the three detectors has wavelengths")
    detectors.sort(key=lambda detector: detector.wavelength[0])
    arrays, segments = join(detectors)
    rv = number(header.get("VHELIO"))
    if math.isnan(rv):
        rv = number(header.get("VRAD")) + correction
    meta = _meta(header, arrays, rv, "VHELIO", path)
    return Spectrum(
        arrays.wavelength, arrays.flux, arrays.ivar, arrays.mask, meta, segments
    )


def _read_star(hdus: list, path: str, visit: int = 0) -> Spectrum:
    """Read the combined spectrum, or a visit (1, 2 …) of an apStar file."""
    header, grid = hdus[0].header, hdus[1].header
    # Rows: combined with pixel weights, combined with global weights, the visits.
    row = visit + 1 if visit else 0
    flux, error = (np.atleast_2d(hdu.data)[row] for hdu in hdus[1:3])
    bits = np.zeros(flux.size, dtype=np.int16)
    if hdus[3].kind == "image" and hdus[3].shape == hdus[1].shape:
        found = np.atleast_2d(hdus[3].data)[row]
        if found.dtype.kind in "iu":  # aspcapStar has its model there
            bits = found
    ivar, mask = _ivar_and_mask(flux, error, bits)
    key, rv = _mean_velocity(header)
    scale = 1.0 if math.isnan(rv) else 1.0 + rv / SPEED_OF_LIGHT
    start, step = number(grid.get("CRVAL1")), number(grid.get("CDELT1"))
    steps = np.arange(1, flux.size + 1) - number(grid.get("CRPIX1", 1))
    wavelength = 10.0 ** (start + step * steps) * scale
    arrays = Arrays(wavelength, flux, ivar, mask)
    meta = _meta(header, arrays, rv, key, path, visit)
    return Spectrum(wavelength, flux, ivar, mask, meta)


def _mean_velocity(header: Any) -> tuple[str, float]:
    for key in MEAN_VELOCITY:
        rv = number(header.get(key))
        if abs(rv) < 5000:  # the pipeline writes 999999 where it failed
            return key, rv
    return "", math.nan


def _ivar_and_mask(
    flux: np.ndarray, error: np.ndarray, bits: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    ivar = np.where(error < UNKNOWN_ERROR, ivar_from_error(error), 0.0)
    return ivar, ((bits & BAD_BITS) != 0) * SURVEY | (flux == 0) * FILLED


def _meta(
    header: Any, arrays: Arrays, rv: float, source: str, path: str, visit: int = 0
) -> SpectrumMeta:
    objid = str(header.get("OBJID", header.get("APOGEE_ID", ""))).strip()
    snr = number(header.get(f"SNRVIS{visit}" if visit else "SNR"))
    if math.isnan(snr):
        snr = median_snr(arrays.flux, arrays.ivar)
    known = abs(rv) < 5000
    return SpectrumMeta(
        objid=f"{objid}-{visit}" if visit else objid,
        survey="apogee",
        ra=number(header.get("RA")),
        dec=number(header.get("DEC")),
        snr=snr,
        rv=rv if known else None,
        rv_source=f"header {source}" if known else "",
        object_class="SKY" if header.get("OBJTYPE") == "SKY" else "STAR",
        mjd=number(header.get("MJD5")),
        plan=str(header.get("PLATE", "")).strip(),
        file=os.fspath(path),
    )
