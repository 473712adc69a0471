"""Files of simulated stars as LAMOST lays them out, byte by byte.

Data models: https://www.lamost.org/dr10/v2.0/doc/lr-data-production-description and
``mr-data-production-description``. Headers say that nothing of it was observed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from stellarcli.errors import unknown
from stellarcli.spectrum import SPEED_OF_LIGHT
from stellarcli.surveys import atmospheres, medium
from stellarcli.surveys.cards import (
    card,
    decimal,
    designation,
    header_block,
    padded,
    remark,
)
from stellarcli.surveys.emulator import Emulator
from stellarcli.surveys.observing import Simulation

_LMJD = 59580  # 1 January 2022
PLAN = "SIM{seed:06d}"
_FIBRES, _SPECTROGRAPHS = 250, 16

SUBCLASSES = (
    *((30000.0, "O9"), (20000.0, "B2"), (15000.0, "B6"), (11000.0, "B9")),
    *((9900.0, "A0"), (9200.0, "A1"), (8800.0, "A2"), (8400.0, "A3"), (8100.0, "A5")),
    *((7800.0, "A7"), (7400.0, "A9"), (7150.0, "F0"), (6850.0, "F2"), (6550.0, "F3")),
    *((6350.0, "F5"), (6200.0, "F6"), (6100.0, "F7"), (5980.0, "F9"), (5880.0, "G0")),
    *((5800.0, "G2"), (5700.0, "G3"), (5600.0, "G5"), (5450.0, "G7"), (5300.0, "G8")),
    *((5150.0, "G9"), (5000.0, "K0"), (4850.0, "K1"), (4700.0, "K3"), (4400.0, "K4")),
    *((4200.0, "K5"), (3950.0, "K7"), (3750.0, "M0"), (3600.0, "M1"), (3450.0, "M2")),
    *((3300.0, "M3"), (3100.0, "M4"), (0.0, "M5")),
)


def subclass(teff: float, logg: float = 4.5) -> str:
    """Spectral subclass as LAMOST writes it for a star of some Teff [K].

    The cooler edge of each class in LAMOST's DR10 labels; M stars carry d (dwarf) or g
    (giant) in front, as in the survey.
    """
    name = next(name for edge, name in SUBCLASSES if teff >= edge)
    if name[0] == "M":
        return ("d" if logg > 3.5 else "g") + name
    return name


def _exposure(seed: int, index: int) -> dict[str, Any]:
    """When and where file number `index` was observed."""
    plate, fibre = divmod(index, _FIBRES)
    night, spectrograph = divmod(plate, _SPECTROGRAPHS)
    return {
        "lmjd": _LMJD + night,
        "plan": PLAN.format(seed=seed),
        "spid": spectrograph + 1,
        "fibre": fibre + 1,
    }


def _file(kind: str, exposure: dict[str, Any]) -> str:
    return "{}-{lmjd}-{plan}_sp{spid:02d}-{fibre:03d}.fits".format(kind, **exposure)


# ----------------------------------------------------------------------- low resolution


def lrs_layout(name: str) -> Callable[..., bytes]:
    """Return what encodes a star, by the name of a layout."""
    if name not in LRS_LAYOUTS:
        raise unknown("layout", name, LRS_LAYOUTS)
    return LRS_LAYOUTS[name]


def lrs_wavelength(emulator: Emulator) -> np.ndarray:
    """Wavelengths as files have them, float32 (pixel,)."""
    wavelength = emulator.wavelength[emulator.margin : -emulator.margin]
    # real COEFF0 are rounded: the stored array is a thousandth of a pixel off
    return (wavelength * 10**1.2e-7).astype(np.float32)


def lrs_facts(seed: int, index: int, row: int, stars: Simulation, positions) -> dict:
    """Header values of file number `index`, and its row of the truth table."""
    exposure = _exposure(seed, index)
    teff, logg, feh = stars.labels[row]
    ra, dec = positions[row]
    # LAMOST's own numbers have nine digits; these can't be mistaken for them
    obsid = 10**10 + seed * 10**6 + index
    z = stars.rv_measured[row] / SPEED_OF_LIGHT
    snr = {band: _header_snr(value[row]) for band, value in stars.snr.items()}
    truth = {
        "file": _file("spec", exposure),
        "objid": str(obsid),
        "ra": ra,
        "dec": dec,
        "snr": snr["g"],
        "teff": teff,
        "logg": logg,
        "feh": feh,
        "rv": stars.rv[row],
        "ebv": stars.ebv[row],
        "subclass": subclass(teff, logg),
    }
    return {
        "truth": truth,
        **exposure,
        "obsid": obsid,
        "z": z,
        "z_err": stars.rv_error[row] / SPEED_OF_LIGHT,
        "snr": snr,
        "designation": designation(ra, dec),
    }


def _header_snr(value: float) -> float:
    """S/N as headers give it: two digits, 999 at most, -9999 without usable pixels."""
    return float(min(round(value, 2), 999)) if value != 0 else -9999.0


def _lrs_cards(facts: dict, release: str) -> list[str]:
    """Return the cards that both layouts share, in the order of real files."""
    truth = facts["truth"]
    ra, dec = truth["ra"], truth["dec"]
    where = ("[deg] Right ascension of object", "[deg] Declination of object")
    return [
        remark("--------FILE INFORMATION"),
        remark("SIMULATED by stellar fetch simulated; not an observation"),
        card("FILENAME", truth["file"]),
        card("OBSID", facts["obsid"], "Unique number ID of this spectrum"),
        card("AUTHOR", "stellar simulated", "Who compiled the information"),
        card("DATA_V", f"STELLAR SIMULATED {release}", "Data release version"),
        card("ORIGIN", "simulated", "Organization responsible for creating this file"),
        remark("--------TELESCOPE PARAMETERS"),
        card("TELESCOP", "LAMOST", "The telescope that is imitated"),
        remark("--------OBSERVATION PARAMETERS"),
        card("LMJD", facts["lmjd"], "Local Modified Julian Day"),
        card("MJD", facts["lmjd"] - 1, "Modified Julian Date"),
        card("PLANID", facts["plan"], "Plan ID in use"),
        decimal("RA", ra, where[0], 6),
        decimal("DEC", dec, where[1], 6),
        card("DESIG", facts["designation"], "Designation of LAMOST target"),
        card("FIBERID", facts["fibre"], "Fiber ID of Object"),
        card("OBJTYPE", "Star", "Object type from input catalog"),
        card("RADECSYS", "FK5", "Equatorial coordinate system"),
        card("EQUINOX", 2000.0, "Equinox in years"),
        remark("--------SPECTROGRAPH PARAMETERS"),
        card("SPID", facts["spid"], "Spectrograph ID"),
        remark("--------DATA REDUCTION PARAMETERS"),
        card("HELIO", True, "Heliocentric correction"),
        card("VACUUM", True, "Wavelengths are in vacuum"),
        card("NWORDER", 2, "Number of linear-log10 coefficients"),
        card("WFITTYPE", "LOG-LINEAR", "Linear-log10 dispersion"),
        card("COEFF0", 3.5682, "Central wavelength (log10) of first pixel"),
        card("COEFF1", 0.0001, "Log10 dispersion per pixel"),
        card("CRVAL1", 3.5682, "Central wavelength (log10) of first pixel"),
        card("CD1_1", 0.0001, "Log10 dispersion per pixel"),
        card("CRPIX1", 1, "Starting pixel (1-indexed)"),
        card("CTYPE1", "LINEAR"),
        card("DC-FLAG", 1, "Log-linear flag"),
        remark("--------SPECTRA ANALYSIS RESULTS"),
        card("VERSPIPE", "stellar", "Version of Pipeline"),
        card("CLASS", "STAR", "Class of object"),
        card("SUBCLASS", truth["subclass"], "Subclass of object"),
        decimal("Z", facts["z"], "Redshift of object"),
        decimal("Z_ERR", facts["z_err"], "Redshift error of object"),
        card("ZFLAG", "SIMULATED", "Which method computes the redshift"),
        *(
            decimal(f"SNR{band.upper()}", value, f"SNR of {band} filter", 2)
            for band, value in facts["snr"].items()
        ),
    ]


def lrs_table(facts: dict, stars: Simulation, row: int, wavelength) -> bytes:
    """Layout C: empty primary HDU, one row of vector columns in COADD."""
    pixels = wavelength.size
    primary = [
        card("SIMPLE", True, "Primary Header"),
        card("BITPIX", 16),
        # real files carry stray NAXIS1 and NAXIS2 cards here, against the standard
        card("NAXIS", 0, "Number of array dimensions"),
        card("EXTEND", True),
        *_lrs_cards(facts, "DR10"),
    ]
    good = stars.ivar[row] > 0
    normalised = np.ones(pixels, dtype=np.float32)
    np.divide(stars.flux[row], stars.continuum[row], out=normalised, where=good)
    columns = {
        "FLUX": stars.flux[row],
        "IVAR": stars.ivar[row],
        "WAVELENGTH": wavelength,
        "ANDMASK": stars.andmask[row],
        "ORMASK": stars.ormask[row],
        "NORMALIZATION": normalised,
    }
    table = [
        "XTENSION= 'BINTABLE'           / Binary table".ljust(80),
        card("BITPIX", 8),
        card("NAXIS", 2),
        card("NAXIS1", 4 * pixels * len(columns), "Number of bytes per row"),
        card("NAXIS2", 1, "Number of rows"),
        card("PCOUNT", 0),
        card("GCOUNT", 1),
        card("TFIELDS", len(columns), "Number of columns in table"),
        card("EXTNAME", "COADD", "The extension name"),
    ]
    for number, name in enumerate(columns, start=1):
        table.append(card(f"TTYPE{number}", name))
        table.append(card(f"TFORM{number}", f"{pixels}E"))
    data = np.stack(list(columns.values())).astype(">f4").tobytes()
    return header_block(primary) + header_block(table) + padded(data)


def lrs_image(facts: dict, stars: Simulation, row: int, wavelength) -> bytes:
    """Layout A: one image of five rows in the primary HDU."""
    primary = [
        card("SIMPLE", True, "Primary Header"),
        card("BITPIX", -32),
        card("NAXIS", 2, "Number of array dimensions"),
        card("NAXIS1", wavelength.size),
        card("NAXIS2", 5),
        card("EXTEND", True),
        card("EXTEN0", "Flux, Inverse, Wavelength, Andmask, Ormask"),
        card("EXTNAME", "Flux", "The extension name"),
        *_lrs_cards(facts, "DR7"),
    ]
    rows = (stars.flux, stars.ivar, wavelength[None], stars.andmask, stars.ormask)
    image = np.stack([part[row if len(part) > 1 else 0] for part in rows])
    return header_block(primary) + padded(image.astype(">f4").tobytes())


LRS_LAYOUTS = {"A": lrs_image, "C": lrs_table}


# -------------------------------------------------------------------- medium resolution


def mrs_facts(
    seed: int, index: int, row: int, stars: medium.Observation, positions
) -> dict:
    """Header values of file number `index`, and its row of the truth table."""
    exposure = _exposure(seed, index)
    ra, dec = positions[row]
    obsid = 2 * 10**10 + seed * 10**6 + index
    snr = {arm: _header_snr(stars.snr[arm][row]) for arm in medium.ARMS}
    labels = dict(zip(atmospheres.LABELS, stars.labels[row].tolist(), strict=True))
    truth = {
        "file": _file("med", exposure),
        "objid": str(obsid),
        "ra": ra,
        "dec": dec,
        "snr": snr["B"] if snr["B"] > 0 else snr["R"],
        **labels,
        "rv": stars.rv[row],
        "subclass": subclass(labels["teff"], labels["logg"]),
    }
    return {
        "truth": truth,
        **exposure,
        "obsid": obsid,
        "snr": snr,
        "left out": [arm for arm in medium.ARMS if snr[arm] <= 0 and row % 2],
        "designation": designation(ra, dec),
    }


def mrs_tables(facts: dict, stars: medium.Observation, row: int) -> bytes:
    """Empty primary HDU, then a table per coadded arm, a row per pixel."""
    truth, there = facts["truth"], [a for a in "BR" if a not in facts["left out"]]
    primary = [
        card("SIMPLE", True, "Primary Header"),
        card("BITPIX", 16),
        card("NAXIS", 0, "Number of array dimensions"),
        card("EXTEND", True, "Extensions may be present"),
        remark("--------FILE INFORMATION"),
        remark("SIMULATED by stellar fetch simulated; not an observation"),
        card("FILENAME", truth["file"]),
        card("OBSID", facts["obsid"], "Unique number ID of this spectrum"),
        card("AUTHOR", "stellar simulated", "Who compiled the information"),
        card("DATA_V", "STELLAR SIMULATED DR7", "Data release version"),
        card("N_EXTEN", 1 + len(there), "The extension number"),
        card("EXTNAME", "Information", "The extension name"),
        card("ORIGIN", "simulated", "Organization responsible for creating this file"),
        remark("--------OBSERVATION PARAMETERS"),
        card("TELESCOP", "LAMOST", "The telescope that is imitated"),
        card("LMJD", facts["lmjd"], "Local Modified Julian Day"),
        card("MJD", facts["lmjd"] - 1, "Modified Julian Day"),
        card("PLANID", facts["plan"], "Plan ID in use"),
        decimal("RA", truth["ra"], "[deg] Right ascension of object", 6),
        decimal("DEC", truth["dec"], "[deg] Declination of object", 6),
        card("DESIG", facts["designation"], "Designation of LAMOST target"),
        card("FIBERID", facts["fibre"], "Fiber ID of Object"),
        card("OBJTYPE", "Star", "Object type from input catalog"),
        card("RADECSYS", "FK5", "Equatorial coordinate system"),
        card("EQUINOX", 2000.0, "Equinox in years"),
        *(card(f"COMBIN_{arm}", facts["snr"][arm] > 0) for arm in medium.ARMS),
        card("SPID", facts["spid"], "Spectrograph ID"),
        card("HELIO", True, "Heliocentric correction"),
        card("VACUUM", True, "Wavelengths are in vacuum"),
    ]
    content = header_block(primary)
    for arm, data in medium.coadds(stars, row):
        if arm in there:
            content += _mrs_header(arm, len(data) // 16, facts["snr"][arm])
            content += padded(data)
    return content


def _mrs_header(arm: str, rows: int, snr: float) -> bytes:
    table = [
        "XTENSION= 'BINTABLE'           / Binary table".ljust(80),
        card("BITPIX", 8),
        card("NAXIS", 2),
        card("NAXIS1", 16, "Number of bytes per row"),
        card("NAXIS2", rows, "Number of rows"),
        card("PCOUNT", 0),
        card("GCOUNT", 1),
        card("TFIELDS", 5),
        card("EXTNAME", f"COADD_{arm}", "The extension name"),
        decimal("SNR", snr, "Signal to noise ratio", 2),
    ]
    kinds = {"FLUX": "E", "IVAR": "E", "LOGLAM": "E", "ANDMASK": "I", "ORMASK": "I"}
    for number, (name, kind) in enumerate(kinds.items(), start=1):
        table += [card(f"TTYPE{number}", name), card(f"TFORM{number}", kind)]
    return header_block(table)
