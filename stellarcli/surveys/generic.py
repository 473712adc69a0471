"""Spectra of no survey in particular: tables, 1-D images with a WCS, columns of text.

What is understood
    a binary table with a wavelength and a flux column, and perhaps ivar, error,
    variance and mask (a row per pixel, or one row of vectors); a 1-D image with a
    wavelength scale in its header (linear, log10, ln; FITS WCS Paper III, Greisen et
    al. 2006, or IRAF's DC-FLAG), or with its wavelengths in another HDU, and perhaps
    errors in another HDU; two or three columns of text.

Units come from TUNIT, CUNIT or the text's header, else from the size of the numbers.
Air or vacuum comes from CTYPE1 (AWAV, WAVE), AIRORVAC, VACUUM and the like, the
column's name or unit, or the text's header; a file that doesn't say counts as vacuum.
The wavelengths are taken to be heliocentric.

Without errors the noise is measured in the flux (Stoehr et al. 2008, DER_SNR), one
number for the spectrum; exact zeros are then no data. Fluxes far from 1, such as
erg/s/cm²/Å, are divided by a power of ten, since float32 can't hold their ivar.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import replace
from pathlib import PurePath
from typing import Any

import numpy as np

from stellarcli.errors import SpectrumError
from stellarcli.spectrum import Spectrum, SpectrumMeta
from stellarcli.surveys.common import (
    FILLED,
    SURVEY,
    Arrays,
    ivar_from_error,
    median_snr,
    number,
    object_class,
    velocity_of,
)
from stellarcli.surveys.hdus import describe_bytes, first_value, missing_column

# What a column, or an image's EXTNAME, may be called; "_", "-", " " and brackets apart.
ROLES = {
    "wavelength": "WAVELENGTH WAVELENGTHS WAVE WAVES LAMBDA LAM WL WLEN WAVEOBS "
    "WAVELEN "
    "WAVELENGTHAIR WAVEAIR LAMBDAAIR AIRWAVELENGTH AIRWAVE WAVELENGTHVAC WAVEVAC "
    "LAMBDAVAC WAVELENGTHVACUUM VACUUMWAVELENGTH VACWAVE SPECTRALAXIS ANGSTROM NM",
    "loglam": "LOGLAM LOGLAMBDA LOGWAVE LOGWAVELENGTH LOG10LAM LOG10LAMBDA",
    "flux": "FLUX FLUXES FLAM FLAMBDA FLUXLAMBDA SPEC SPECTRUM INTENSITY DATA COUNTS "
    "FLUXREDUCED NORMFLUX NORMALIZEDFLUX NORMALISEDFLUX",
    "ivar": "IVAR INVVAR INVERSEVARIANCE FLUXIVAR IVARFLUX INVERSE",
    "error": "ERR ERROR ERRORS SIGMA SIG STD UNCERTAINTY UNC ESPEC NOISE FLUXERR "
    "FLUXERROR ERRFLUX ERRORFLUX EFLUX FLUXUNC FLUXSIGMA SIGMAFLUX ERRREDUCED",
    "variance": "VAR VARIANCE FLUXVAR VARFLUX",
    "mask": "MASK PIXMASK BADPIX BADPIXEL BADPIXELS DQ FLAG FLAGS",
}
ROLE_OF = {name: role for role, names in ROLES.items() for name in names.split()}

UNITS = (  # pattern of a unit's text -> Å per unit; the first that fits
    (re.compile(r"ANGSTROM|^AA?$|^Å$|^0\.1 ?NM$"), 1.0),
    (re.compile(r"^NM$|NANOM"), 10.0),
    (re.compile(r"^UM$|^[ΜΜ]M$|MICRON|MICROM"), 1e4),
    (re.compile(r"^M$|^MET(ER|RE)S?$"), 1e10),
)
LARGEST_TEXT = 1 << 24  # bytes
MOST_HEADING = 200  # lines of a text's header that may name its columns
LONGEST_LINE = 2000  # characters of such a line
MEDIUM_CARDS = ("AIRORVAC", "WAVEMED", "MEDIUM", "WAVETYPE", "WAVEREF")
AIR = re.compile(r"\b(in[ _])?air\b|_air\b|\bair_|\bawav", re.IGNORECASE)
VACUUM = re.compile(r"\bvac(uum)?\b|_vac(uum)?\b|\bvac(uum)?_", re.IGNORECASE)


def identify(hdus: list) -> bool:
    """Whether a wavelength and a flux can be found in these HDUs.

    Parameters
    ----------
    hdus : list of HDU

    Returns
    -------
    bool
    """
    return _table(hdus) is not None or _image(hdus) is not None


def read(hdus: list, path: str) -> Spectrum:
    """Read the first table or image that holds a spectrum.

    Parameters
    ----------
    hdus : list of HDU
    path : str

    Returns
    -------
    Spectrum
    """
    table = _table(hdus)
    if table is not None:
        columns, medium = _from_table(table), _table_medium(table, hdus[0])
        source = table
    else:
        source = _image(hdus)
        columns, medium = _from_images(source, hdus)
    arrays = _assemble(columns)
    if medium == "air":
        arrays = Arrays(
            _to_vacuum(arrays.wavelength), arrays.flux, arrays.ivar, arrays.mask
        )
    meta = _meta([hdus[0].header, source.header], arrays, path)
    if not ERRORS & set(columns):
        meta = replace(meta, noise_measured=True)
    meta = replace(meta, medium_assumed=not medium)
    return Spectrum(arrays.wavelength, arrays.flux, arrays.ivar, arrays.mask, meta)


def describe(hdus: list) -> str:
    """Say in a few words what HDUs without a spectrum hold."""
    parts = []
    for hdu in hdus[:3]:
        if hdu.kind == "image":
            size = "×".join(str(n) for n in hdu.shape[::-1])
            parts.append(f"a {len(hdu.shape)}-D image of {size}")
        elif hdu.kind == "table":
            names = ", ".join(hdu.columns[:6]) + (", …" if len(hdu.columns) > 6 else "")
            parts.append(f"a table of {hdu.shape[0]} rows with columns {names}")
    if not parts:
        return "no data, only a header"
    return "; ".join(parts) + (", …" if len(hdus) > 3 else "")


# ------------------------------------------------------------------ tables


def _role(name: str) -> str | None:
    bare = re.sub(r"[\(\[].*", "", name.upper())
    return ROLE_OF.get(re.sub(r"[\W_]", "", bare))


def _roles(names: tuple[str, ...]) -> dict[str, str]:
    """Role -> name of the first column or image that has it."""
    roles: dict[str, str] = {}
    for name in names:
        if role := _role(name):
            roles.setdefault(role, name)
    return roles


def _table(hdus: list) -> Any | None:
    for hdu in hdus:
        roles = _roles(hdu.columns) if hdu.kind == "table" else {}
        if "flux" in roles and ("wavelength" in roles or "loglam" in roles):
            return hdu
    return None


def _from_table(table: Any) -> dict[str, np.ndarray]:
    columns = {}
    for role, name in _roles(table.columns).items():
        values = table.column(name)
        if values.ndim == 2 and len(values) > 1:
            raise SpectrumError(
                f"a table of {len(values)} spectra; give one file for each spectrum"
            )
        columns[role] = values.ravel()
    if "wavelength" in columns:
        unit = _column_unit(table, _roles(table.columns)["wavelength"])
        columns["wavelength"] = _to_angstrom(columns["wavelength"], unit)
    else:
        columns["wavelength"] = 10.0 ** _floats(columns.pop("loglam"))
    return columns


def _column_unit(table: Any, name: str) -> str:
    unit = str(table.header.get(f"TUNIT{table.columns.index(name) + 1}", ""))
    bracket = re.search(r"[\(\[](.*?)[\)\]]", name)
    bare = re.sub(r"\W", "", name).upper()
    if not unit and (bracket or bare in ("NM", "ANGSTROM")):
        return bracket[1] if bracket else bare
    return unit


def _table_medium(table: Any, primary: Any) -> str:
    name = _roles(table.columns).get("wavelength", "")
    words = " ".join((name, _column_unit(table, name) if name else ""))
    if name:
        index = table.columns.index(name) + 1
        for key in (f"TUCD{index}", f"TCOMM{index}", f"TCTYP{index}"):
            words += " " + str(table.header.get(key, ""))
    return _said(words) or _medium(table.header) or _medium(primary.header)


# ------------------------------------------------------------------ images


def _image(hdus: list) -> Any | None:
    """Image that holds the flux: the one called so, or the first 1-D one."""
    lines = [hdu for hdu in hdus if hdu.kind == "image" and _is_line(hdu)]
    named = [hdu for hdu in lines if _role(hdu.name) == "flux"]
    for hdu in [*named, *(hdu for hdu in lines if _role(hdu.name) is None)]:
        if _wavelength_image(hdu, hdus) is not None or _scale(hdu.header):
            return hdu
    return None


def _is_line(hdu: Any) -> bool:
    long = [n for n in hdu.shape if n > 1]
    # IRAF's (band, 1, pixel): the first band is the spectrum.
    bands = "BANDID1" in hdu.header and len(long) == 2 and hdu.shape[0] < hdu.shape[-1]
    return len(long) == 1 or bands


def _line(hdu: Any) -> np.ndarray:
    return (
        hdu.data.reshape(-1, hdu.shape[-1])[0]
        if hdu.shape[-1] > 1
        else hdu.data.ravel()
    )


def _companions(flux: Any, hdus: list) -> dict[str, np.ndarray]:
    """Errors and mask in images beside the flux, by their names."""
    found = {}
    for hdu in hdus:
        same = hdu is not flux and hdu.kind == "image" and _is_line(hdu)
        role = _role(hdu.name) if same else None
        if role in ("ivar", "error", "variance", "mask"):
            values = _line(hdu)
            if values.shape == _line(flux).shape:
                found.setdefault(role, values)
    for band in range(1, 10):
        if str(flux.header.get(f"BANDID{band}", "")).lower().startswith("sigma"):
            found.setdefault("error", flux.data.reshape(-1, flux.shape[-1])[band - 1])
    return found


def _wavelength_image(flux: Any, hdus: list) -> Any | None:
    for hdu in hdus:
        if hdu.kind == "image" and _role(hdu.name) in ("wavelength", "loglam"):
            same = _is_line(hdu) and hdu.shape[-1] == flux.shape[-1]
            return hdu if same else None
    return None


def _from_images(flux: Any, hdus: list) -> tuple[dict[str, np.ndarray], str]:
    columns = {"flux": _line(flux), **_companions(flux, hdus)}
    beside = _wavelength_image(flux, hdus)
    if beside is None:
        wavelength, medium = _wcs(flux.header, columns["flux"].size)
        columns["wavelength"] = wavelength
        return columns, medium or _medium(flux.header) or _medium(hdus[0].header)
    values = _line(beside)
    if _role(beside.name) == "loglam":
        columns["wavelength"] = 10.0 ** _floats(values)
    else:
        columns["wavelength"] = _to_angstrom(
            values, str(beside.header.get("BUNIT", ""))
        )
    said = _said(beside.name) or _medium(beside.header) or _medium(flux.header)
    return columns, said or _medium(hdus[0].header)


def _scale(header: Any) -> tuple[float, float, float] | None:
    """Value, step and number of the reference pixel; None if the header has none."""
    first, pixel = number(header.get("CRVAL1")), number(header.get("CRPIX1", 1))
    step = number(header.get("CDELT1", header.get("CD1_1")))
    if "CD1_1" in header and number(header.get("CD1_1")) != 0:
        step = number(header.get("CD1_1"))
    if "COEFF0" in header and math.isnan(first + step):
        first, step = number(header.get("COEFF0")), number(header.get("COEFF1"))
        pixel = 1.0
    if math.isnan(first + step + pixel) or step == 0 or first <= 0:
        return None
    return first, step, pixel


def _wcs(header: Any, size: int) -> tuple[np.ndarray, str]:
    """Wavelengths in Å of a 1-D image, and the medium if CTYPE1 says it."""
    first, step, pixel = _scale(header)
    kind = str(header.get("CTYPE1", "")).strip().upper()
    unit = str(header.get("CUNIT1", header.get("XUNITS", "")))
    if not unit:
        label = re.search(r"units=(\w+)", str(header.get("WAT1_001", "")))
        unit = label[1] if label else ""
    steps = np.arange(1, size + 1) - pixel
    if kind.endswith("-LOG"):  # Paper III, section 3.2: logarithmic in e
        values = first * np.exp(steps * step / first)
    else:
        values = first + step * steps
        base = _log_base(header, kind, first, step, unit)
        if base:
            values, unit = base**values, "" if _unit_size(unit) is None else unit
    medium = {"AWAV": "air", "WAVE": "vacuum"}.get(kind[:4], "")
    # The bare name of the axis (WAVE, WAVELENGTH) is also what people write who mean λ.
    return _to_angstrom(values, unit), "" if kind.startswith("WAVEL") else medium


def _log_base(header: Any, kind: str, first: float, step: float, unit: str) -> float:
    """10 or e where the axis is a logarithm of the wavelength, else 0."""
    small = abs(step) < 0.01
    if kind.startswith("LN") or (kind.startswith("LOG") and 7 < first < 12 and small):
        return math.e
    said = header.get("DC-FLAG") == 1 or "LOG" in kind or "LOG" in unit.upper()
    if said or ("COEFF0" in header and first < 6):
        return 10.0 if first < 6 else 0.0
    guess = 3 < first < 5 and small and _unit_size(unit) in (None, 1.0)
    return 10.0 if guess else 0.0


# ------------------------------------------------------------------ text


class TextTable:
    """Columns of text behind the interface of an HDU."""

    kind = "table"
    name = "TEXT"

    def __init__(self, columns: dict[str, np.ndarray], header: dict[str, Any]):
        self._columns = columns
        self.header = header
        self.columns = tuple(columns)
        self.shape = (len(next(iter(columns.values()))),)

    def column(self, name: str) -> np.ndarray:
        """As `HDU.column`."""
        if name not in self._columns:
            raise missing_column(self, name)
        return self._columns[name]

    def value(self, name: str, default: Any = None) -> Any:
        """As `HDU.value`."""
        return first_value(self, name, default)


def text_hdus(data: bytes) -> list[TextTable]:
    """Parse columns of text: wavelength, flux and perhaps error.

    Parameters
    ----------
    data : bytes
        Of the file. Columns are parted by blanks or commas; lines beginning with
        ``#``, ``%``, ``!`` or ``;`` are the header; a line of names is understood.

    Returns
    -------
    list of TextTable
        One table.

    Raises
    ------
    SpectrumError
        If this isn't text, or no table of numbers.
    """
    if b"\0" in data[:4096]:
        raise SpectrumError(describe_bytes(data))
    if len(data) > LARGEST_TEXT:
        raise SpectrumError(f"{len(data) / 1e6:.0f} MB of text are no spectrum")
    lines = data.decode("utf-8", "replace").lstrip("\ufeff").splitlines()
    rows, heading = _split_text(lines)
    if len(rows) < 2 or len(rows[0]) < 2:
        raise SpectrumError(
            f"{describe_bytes(data)}, and is no table of numbers either"
        )
    try:
        values = np.array(rows, dtype=np.float64)
    except ValueError:
        raise SpectrumError("the text has rows of different length, or words") from None
    names = _text_names(heading, values.shape[1])
    text = "\n".join(heading)
    header = {"MEDIUM": _said(text)}
    if unit := _text_unit(text):
        header["TUNIT1"] = unit
    return [TextTable(dict(zip(names, values.T, strict=True)), header)]


def _split_text(lines: list[str]) -> tuple[list[list[str]], list[str]]:
    """Rows of words that are numbers, and the lines of the header before them."""
    rows: list[list[str]] = []
    heading: list[str] = []
    for line in lines:
        words = line.replace(",", " ").replace(";", " ").split()
        if not words:
            continue
        if line.lstrip()[0] in "#%!;|\\" or (not rows and not _is_number(words[0])):
            if not rows:
                heading.append(line.strip(" \t#%!;|\\"))
            continue
        rows.append(words)
    return rows, heading


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _text_names(heading: list[str], count: int) -> list[str]:
    """Names of the columns: the header's last line that fits, else by position."""
    for line in reversed(heading[-MOST_HEADING:]):
        if len(line) > LONGEST_LINE:
            continue
        bare = re.sub(r"[\(\[].*?[\)\]]", " ", line)
        words = bare.replace(",", " ").upper().split()
        roles = _roles(tuple(words))
        if len(words) == count and len(set(words)) == count and len(roles) > 1:
            return words
    return ["WAVELENGTH", "FLUX", "ERROR", *(f"COL{i}" for i in range(4, count + 1))][
        :count
    ]


def _text_unit(text: str) -> str:
    for word in re.findall(
        r"angstroms?|Å|\bnm\b|nanomet\w*|\bum\b|[µμ]m|microns?", text, re.I
    ):
        return word
    return ""


# ------------------------------------------------------------------ both


def _floats(values: np.ndarray) -> np.ndarray:
    try:
        return np.asarray(values).astype(np.float64)
    except (TypeError, ValueError):
        raise SpectrumError("a column of the spectrum holds no numbers") from None


def _unit_size(unit: str) -> float | None:
    """Å per unit; None where the text is no unit of wavelength."""
    text = re.sub(r"[\(,;].*", "", unit).strip().upper()
    for pattern, size in UNITS:
        if pattern.search(text):
            return size
    return None


def _to_angstrom(values: np.ndarray, unit: str) -> np.ndarray:
    values = _floats(values)
    size = _unit_size(unit)
    if size is None:
        size = _guess_unit(values)
    # Headers say Angstroms for values in nm or µm less often than they say nothing,
    # but a spectrum at 0.5 "m" or 5000 "m" is Å or µm all the same.
    if size == 1e10 and np.nanmedian(values) > 1e-3:
        size = _guess_unit(values)
    return values * size


def _guess_unit(values: np.ndarray) -> float:
    """Å per unit, from the size of the numbers: stars are observed at 0.2–30 µm."""
    finite = values[np.isfinite(values)]
    middle = float(np.median(finite)) if finite.size else math.nan
    for limit, size in ((1e-3, 1e10), (100.0, 1e4), (2000.0, 10.0)):
        if middle < limit:
            return size
    return 1.0


def _said(text: str) -> str:
    """Medium named in a text; empty if none or both are."""
    air, vacuum = bool(AIR.search(text)), bool(VACUUM.search(text))
    if air == vacuum:
        return ""
    return "air" if air else "vacuum"


def _medium(header: Any) -> str:
    """Medium said by the cards of a header; empty if they don't."""
    for key in MEDIUM_CARDS:
        if said := _said(str(header.get(key, ""))):
            return said
    vacuum = header.get("VACUUM")
    if isinstance(vacuum, bool | int):
        return "vacuum" if vacuum else "air"
    if isinstance(vacuum, str) and vacuum.strip().upper()[:1] in ("T", "F", "Y", "N"):
        return "vacuum" if vacuum.strip().upper()[0] in "TY" else "air"
    kind = str(header.get("CTYPE1", "")).strip().upper()
    return "air" if kind.startswith("AWAV") else ""


def _to_vacuum(wavelength: np.ndarray) -> np.ndarray:
    from stellarcli.preprocess.wavelength import air_to_vacuum

    return air_to_vacuum(wavelength)


def _assemble(columns: dict[str, np.ndarray]) -> Arrays:
    """Give the columns one length and one direction, and errors to those without."""
    wavelength, flux = columns["wavelength"], _floats(columns["flux"])
    if wavelength.shape != flux.shape:
        raise SpectrumError(
            f"{wavelength.size} wavelengths do not fit {flux.size} flux values"
        )
    ivar = _ivar(columns, flux)
    mask = np.zeros(flux.size, dtype=np.uint8)
    bits = columns.get("mask")
    if bits is not None and bits.shape == flux.shape:
        bad = bits == b"T" if bits.dtype.kind == "S" else bits.astype(bool)
        mask = bad * SURVEY
    mask = mask | ((flux == 0) & (ivar == 0)) * FILLED
    scale = _power_of_ten(flux)
    return Arrays(wavelength, flux / scale, ivar * scale**2, mask).increasing()


def _power_of_ten(flux: np.ndarray) -> float:
    """Find the unit of the flux: 1, unless float32 could not hold its ivar."""
    size = np.abs(flux[np.isfinite(flux) & (flux != 0)])
    middle = float(np.median(size)) if size.size else 1.0
    return 1.0 if 1e-8 < middle < 1e8 else 10.0 ** math.floor(math.log10(middle))


ERRORS = {"ivar", "error", "variance"}  # columns that say how noisy the flux is


def _ivar(columns: dict[str, np.ndarray], flux: np.ndarray) -> np.ndarray:
    if "ivar" in columns:
        ivar = _floats(columns["ivar"])
    elif "error" in columns:
        ivar = ivar_from_error(_floats(columns["error"]))
    elif "variance" in columns:
        ivar = ivar_from_error(np.sqrt(np.maximum(_floats(columns["variance"]), 0)))
    else:
        return _measured_ivar(flux)
    if ivar.shape != flux.shape:
        raise SpectrumError(f"{ivar.size} errors do not fit {flux.size} flux values")
    return ivar


def _measured_ivar(flux: np.ndarray) -> np.ndarray:
    """Inverse variance from the pixel-to-pixel scatter, the same for all pixels."""
    good = np.isfinite(flux) & (flux != 0)
    line = flux[good]
    if line.size < 5:
        return good * 1.0
    noise = (
        1.482602
        / math.sqrt(6)
        * np.median(np.abs(2 * line[2:-2] - line[:-4] - line[4:]))
    )
    return good / noise**2 if noise > 0 else good * 1.0


def _meta(headers: list, arrays: Arrays, path: str) -> SpectrumMeta:
    def card(*keys: str) -> Any:
        found = (h.get(key) for h in headers for key in keys if h.get(key) is not None)
        return next(found, None)

    objid = str(card("OBJID", "OBJECT", "OBJNAME", "TARGNAME") or "").strip()
    snr = number(card("SNR", "S/N", "SN"))
    rv, source = _velocity(card)
    return SpectrumMeta(
        objid=objid or _stem(path),
        survey="generic",
        ra=number(card("RA", "RA_TARG", "RA_OBJ")),
        dec=number(card("DEC", "DEC_TARG", "DEC_OBJ")),
        snr=median_snr(arrays.flux, arrays.ivar) if math.isnan(snr) else snr,
        rv=rv,
        rv_source=source,
        object_class=object_class(card("CLASS")),
        subclass=str(card("SUBCLASS", "SPTYPE") or ""),
        mjd=number(card("MJD-OBS", "MJD")),
        file=os.fspath(path),
    )


def _velocity(card: Any) -> tuple[float | None, str]:
    for key in ("RV", "RADVEL", "VHELIO"):  # km/s
        rv = number(card(key))
        if abs(rv) < 5000:
            return rv, f"header {key}"
    for key in ("Z", "REDSHIFT"):
        if not math.isnan(redshift := number(card(key))):
            return velocity_of(redshift), f"header {key}"
    return None, ""


def _stem(path: str) -> str:
    """Name of the file without folder and endings."""
    name = PurePath(os.fsdecode(path)).name
    return (
        re.sub(r"(\.(fits?|fts|txt|dat|csv|asc|ecsv|gz))+$", "", name, flags=re.I)
        or name
    )
