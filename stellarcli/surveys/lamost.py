"""LAMOST low and medium resolution spectra, in every layout a release has had.

Data models: https://www.lamost.org/dr10/v2.0/doc/lr-data-production-description and
``mr-data-production-description``. Wavelengths are vacuum and heliocentric in all of
them (cards VACUUM, HELIO); the star's own velocity is never removed.

Low resolution
    an image of five rows (up to DR8), or a table of one row of vectors (DR9 on).
    DR1's third row is a normalised flux, not a wavelength.
Medium resolution
    tables ``COADD_B`` and ``COADD_R``, and one for each exposure, ``B-<minute>`` and
    ``R-<minute>``; a row per pixel with LOGLAM, or one row of vectors with WAVELENGTH.

ANDMASK, ORMASK and PIXMASK add nothing: no pixel with a positive ivar had a bit set in
any of a hundred files. An exact zero in the flux is filler also where its ivar is
positive: runs at the red end, and single pixels in the continuum of bright stars.
"""

from __future__ import annotations

import math
import os
import re
from typing import Any

import numpy as np

from stellarcli.errors import SpectrumError
from stellarcli.spectrum import Spectrum, SpectrumMeta
from stellarcli.surveys.common import (
    FILLED,
    Arrays,
    join,
    number,
    object_class,
    velocity_of,
)

LRS_COLUMNS = {"FLUX", "IVAR", "WAVELENGTH", "ANDMASK", "ORMASK"}
BANDS = "ugriz"
ARMS = "BR"  # in order of wavelength
EXPOSURE = re.compile(r"([BR])-(\d+)")


def identify_lrs(hdus: list) -> bool:
    """Whether these HDUs are a low-resolution spectrum.

    Parameters
    ----------
    hdus : list of HDU

    Returns
    -------
    bool
    """
    return _is_image(hdus[0]) or _lrs_table(hdus) is not None


def read_lrs(hdus: list, path: str) -> Spectrum:
    """Read a low-resolution spectrum.

    Parameters
    ----------
    hdus : list of HDU
    path : str
        As the user gave it; goes to ``meta.file``.

    Returns
    -------
    Spectrum
    """
    header = hdus[0].header
    if _is_image(hdus[0]):
        rows = hdus[0].data
        flux, ivar = rows[0], rows[1]
        wavelength = _image_wavelength(rows[2], header)
    else:
        table = _lrs_table(hdus)
        names = ("FLUX", "IVAR", "WAVELENGTH")
        flux, ivar, wavelength = (table.column(name)[0] for name in names)
    flux = flux.astype(np.float32)  # comparing in another byte order takes its time
    mask = (flux == 0) * FILLED
    return Spectrum(wavelength, flux, ivar, mask, _lrs_meta(header, path))


def identify_mrs(hdus: list) -> bool:
    """Whether these HDUs are a medium-resolution spectrum; as `identify_lrs`."""
    return any(_is_arm(hdu) for hdu in hdus[1:])


def read_mrs(hdus: list, path: str) -> Spectrum:
    """Read the coadded blue and red arms of a medium-resolution spectrum.

    Each arm is a segment. An arm without a coadd, or with a stub, is taken from its
    best exposure; an arm without any is left out.

    Parameters
    ----------
    hdus : list of HDU
    path : str

    Returns
    -------
    Spectrum

    Raises
    ------
    SpectrumError
        If neither arm has a spectrum.
    """
    chosen = {}
    for arm in ARMS:
        exposures = [hdu for hdu in hdus if hdu.name.startswith(f"{arm}-")]
        exposures.sort(key=_snr, reverse=True)
        coadds = [hdu for hdu in hdus if hdu.name == f"COADD_{arm}"]
        for hdu in [*coadds, *exposures]:
            if (arrays := _arm(hdu)) is not None:
                chosen[arm] = (hdu, arrays)
                break
    return _mrs_spectrum(hdus[0].header, chosen, path)


def read_mrs_exposures(hdus: list, path: str) -> list[Spectrum]:
    """Read the single exposures of a medium-resolution spectrum.

    Parameters
    ----------
    hdus : list of HDU
    path : str

    Returns
    -------
    list of Spectrum
        One for each local minute (LMJM), in order of time, of both arms where both
        exist; their `objid` ends in ``-<LMJM>``.
    """
    minutes: dict[str, dict] = {}
    for hdu in hdus:
        match = EXPOSURE.fullmatch(hdu.name)
        if match and (arrays := _arm(hdu)) is not None:
            minutes.setdefault(match[2], {})[match[1]] = (hdu, arrays)
    header = hdus[0].header
    return [_mrs_spectrum(header, minutes[key], path, key) for key in sorted(minutes)]


def _is_image(hdu: Any) -> bool:
    if hdu.kind != "image" or len(hdu.shape) != 2 or hdu.shape[0] != 5:
        return False
    rows = str(hdu.header.get("EXTEN0", "")).upper()
    return "FLUX" in rows and "INVERSE" in rows


def _lrs_table(hdus: list) -> Any | None:
    for hdu in hdus[1:2]:
        vectors = hdu.shape == (1,) and LRS_COLUMNS.issubset(hdu.columns)
        if vectors and not _is_arm(hdu):  # later MRS coadds have the same columns
            return hdu
    return None


def _is_arm(hdu: Any) -> bool:
    if hdu.name in ("COADD_B", "COADD_R"):  # a stub may be no table
        return True
    return bool(EXPOSURE.fullmatch(hdu.name)) and "FLUX" in hdu.columns


def _image_wavelength(row: np.ndarray, header: Any) -> np.ndarray:
    """Third row if that is a wavelength, else the formula of the header.

    The formula is the second choice because COEFF0 is rounded, by up to 0.036 Å.
    """
    if row[0] > 1000 and (row[1:] > row[:-1]).all():
        return row
    start, step = number(header.get("COEFF0")), number(header.get("COEFF1"))
    if math.isnan(start + step) or not 3 < start < 5:
        raise SpectrumError(
            "row 3 is no wavelength, and the header has no COEFF0, COEFF1"
        )
    return 10.0 ** (start + step * np.arange(row.size))


def _lrs_meta(header: Any, path: str) -> SpectrumMeta:
    get = header.get
    # SN_U … SN_Z in DR1 and DR2, SNRU … SNRZ since.
    key = "SNR" if "SNRG" in header else "SN_"
    bands = {f"snr{band}": number(get(key + band.upper())) for band in BANDS}
    redshift = number(get("Z"))
    rv = velocity_of(redshift)
    return SpectrumMeta(
        objid=_objid(header),
        survey="lamost-lrs",
        ra=number(get("RA")),
        dec=number(get("DEC")),
        snr=bands["snrg"],
        snr_bands=bands,
        rv=rv,
        rv_source="" if rv is None else "header Z",
        object_class=object_class(get("CLASS")),
        subclass=str(get("SUBCLASS", "")),
        mjd=_mjd(header),
        plan=_plan(header),
        file=os.fspath(path),
    )


def _objid(header: Any) -> str:
    """OBSID, or where that is absent the name the survey gives to the file.

    DR1 and DR2 have no OBSID, DR3 one that overflowed 16 bits (−28762).
    """
    obsid = header.get("OBSID")
    if type(obsid) is int and obsid > 0:
        return str(obsid)
    if type(obsid) is str and obsid.strip().isdigit():
        return obsid.strip()
    lmjd, spid, fiber = (number(header.get(key)) for key in ("LMJD", "SPID", "FIBERID"))
    plan = _plan(header)
    if not plan or math.isnan(lmjd + spid + fiber):
        return str(header.get("DESIG", "")).strip()
    return f"{lmjd:.0f}-{plan}_sp{spid:02.0f}-{fiber:03.0f}"


def _plan(header: Any) -> str:
    return str(header.get("PLANID", "")).strip()


def _mjd(header: Any) -> float:
    """Whole MJD (UTC): LMJD less 1. The MJD card of DR1 and DR2 is two days ahead."""
    local = number(header.get("LMJD"))
    return number(header.get("MJD")) if math.isnan(local) else local - 1


def _snr(hdu: Any) -> float:
    """S/N of an arm or exposure; −1 if unknown, so that it sorts last."""
    value = number(hdu.header.get("SNR"))
    return -1.0 if math.isnan(value) else value


def _arm(hdu: Any) -> Arrays | None:
    """Arrays of one arm in order of wavelength; None for a stub or nothing but 0."""
    columns = hdu.columns
    if hdu.kind != "table" or not {"FLUX", "IVAR"}.issubset(columns):
        return None
    if "WAVELENGTH" in columns:
        wavelength = hdu.column("WAVELENGTH").ravel().astype(np.float64)
    elif "LOGLAM" in columns:
        wavelength = 10.0 ** hdu.column("LOGLAM").ravel().astype(np.float64)
    else:
        return None
    flux, ivar = hdu.column("FLUX").ravel(), hdu.column("IVAR").ravel()
    if wavelength.size < 2 or not wavelength[0] > 1000 or not flux.any():
        return None
    arm = Arrays(wavelength, flux, ivar, (flux == 0) * FILLED).increasing()
    return arm if (np.diff(arm.wavelength) > 0).all() else None


def _mrs_spectrum(header: Any, chosen: dict, path: str, minute: str = "") -> Spectrum:
    """Join the arms found; `chosen` is arm -> (HDU, Arrays)."""
    if not chosen:
        raise SpectrumError("neither the blue nor the red arm holds a spectrum")
    arms = [arm for arm in ARMS if arm in chosen]
    arrays, segments = join([chosen[arm][1] for arm in arms])
    bands = {f"snr{a.lower()}": number(chosen[a][0].header.get("SNR")) for a in arms}
    objid = _objid(header)
    redshift = number(header.get("Z"))
    rv = velocity_of(redshift)
    meta = SpectrumMeta(
        objid=f"{objid}-{minute}" if minute else objid,
        survey="lamost-mrs",
        ra=number(header.get("RA")),
        dec=number(header.get("DEC")),
        snr=bands[f"snr{arms[0].lower()}"],
        snr_bands=bands,
        rv=rv,
        rv_source="" if rv is None else "header Z",
        object_class=object_class(header.get("CLASS")),
        subclass=str(header.get("SUBCLASS", "")),
        mjd=_mjd(header),
        plan=_plan(header),
        file=os.fspath(path),
    )
    return Spectrum(
        arrays.wavelength, arrays.flux, arrays.ivar, arrays.mask, meta, segments
    )
