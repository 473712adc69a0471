"""SDSS, BOSS and eBOSS spectra (``spec-PLATE-MJD-FIBER.fits``, full and lite).

Data model: https://data.sdss.org/datamodel/files/BOSS_SPECTRO_REDUX/RUN2D/spectra/PLATE4/spec.html
HDU 1 is the coadd, a row per pixel; HDU 2 (SPALL or SPECOBJ) one row of what the
pipeline found. Wavelengths are vacuum and heliocentric; the velocity isn't removed.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from stellarcli.spectrum import Spectrum, SpectrumMeta
from stellarcli.surveys.common import (
    FILLED,
    SURVEY,
    median_snr,
    number,
    object_class,
    velocity_of,
)

COLUMNS = {"FLUX", "LOGLAM", "IVAR", "AND_MASK"}
BANDS = "ugriz"
PLATE = ("PLATEID", "PLATE")
# NOSKY, FULLREJECT, NODATA, COMBINEREJ in every exposure: nothing was measured. The
# other bits (BRIGHTSKY, NEARBADPIXEL, BADSKYCHI …) warn of noise that ivar has counted:
# they are set in up to 2 % of the pixels of good spectra, on the sky lines.
BAD_BITS = 1 << 18 | 1 << 22 | 1 << 24 | 1 << 25


def identify(hdus: list) -> bool:
    """Whether these HDUs are an SDSS spec file.

    Parameters
    ----------
    hdus : list of HDU

    Returns
    -------
    bool
    """
    return len(hdus) > 1 and COLUMNS.issubset(hdus[1].columns)


def read(hdus: list, path: str) -> Spectrum:
    """Read the coadd.

    Parameters
    ----------
    hdus : list of HDU
    path : str

    Returns
    -------
    Spectrum
    """
    coadd = hdus[1]
    wavelength = 10.0 ** coadd.column("LOGLAM").ravel().astype(np.float64)
    flux, ivar = coadd.column("FLUX").ravel(), coadd.column("IVAR").ravel()
    bits = coadd.column("AND_MASK").ravel()
    mask = ((bits & BAD_BITS) != 0) * SURVEY | (flux == 0) * FILLED
    return Spectrum(wavelength, flux, ivar, mask, _meta(hdus, flux, ivar, path))


def _meta(hdus: list, flux: np.ndarray, ivar: np.ndarray, path: str) -> SpectrumMeta:
    header = hdus[0].header
    found = next((hdu for hdu in hdus[2:] if {"CLASS", "Z"} <= set(hdu.columns)), None)

    def value(name: str, default: Any = None) -> Any:
        return default if found is None else found.value(name, default)

    snr_bands = {}
    medians = value("SN_MEDIAN")
    if isinstance(medians, list) and len(medians) == len(BANDS):
        pairs = zip(BANDS, medians, strict=True)
        snr_bands = {f"snr{band}": number(median) for band, median in pairs}
    rv = velocity_of(number(value("Z")))
    return SpectrumMeta(
        objid=_objid(header, value),
        survey="sdss",
        ra=number(header.get("PLUG_RA", value("PLUG_RA", value("RA")))),
        dec=number(header.get("PLUG_DEC", value("PLUG_DEC", value("DEC")))),
        snr=snr_bands.get("snrg", median_snr(flux, ivar)),
        snr_bands=snr_bands,
        rv=rv,
        rv_source="" if rv is None else f"{found.name or 'table'} Z",
        object_class=object_class(value("CLASS")),
        subclass=str(value("SUBCLASS", "")),
        mjd=number(header.get("MJD", value("MJD"))),
        plan=_spelled(header, value, PLATE),
        file=os.fspath(path),
    )


def _objid(header: Any, value: Any) -> str:
    """SPECOBJID, or plate-mjd-fiber as in file names where there is none."""
    objid = str(value("SPECOBJID", "")).strip()
    if objid not in ("", "0", "-1"):
        return objid
    keys = ((PLATE, 4), (("MJD",), 5), (("FIBERID", "FIBER"), 4))
    return "-".join(_spelled(header, value, *key) for key in keys)


def _spelled(header: Any, value: Any, names: tuple[str, ...], digits: int = 0) -> str:
    """Spell a number that has several names, of the header or else of the table."""
    found = (header.get(name) for name in names if name in header)
    raw = next(found, value(names[-1]))
    return str(raw if raw is not None else "").strip().zfill(digits)
