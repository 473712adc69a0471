"""Survey files made from a shipped spectral emulator, with known labels.

For trying the program, its tests and pre-training: `write_spectra` makes files that the
survey's own reader can't tell from real ones, and says in their header that they are
simulated. The stars and their spectra are `emulator`'s, what happens to them on the way
to the detector is `observing`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from stellarcli.errors import UsageError, unknown
from stellarcli.spectrum import SPEED_OF_LIGHT
from stellarcli.surveys import atmospheres, frames, hband, medium, redclump
from stellarcli.surveys.cards import (
    bzip2,
    card,
    decimal,
    designation,
    gzip,
    header_block,
    padded,
    remark,
    write_atomically,
)
from stellarcli.surveys.emulator import (
    DEFAULT_RANGES,
    FORMAT_VERSION,
    LABEL_NAMES,
    LIMITS,
    Emulator,
    check_ranges,
    draw_labels,
    plausible,
    red_basis,
)
from stellarcli.surveys.observing import (
    MAX_VELOCITY,
    SNR_BANDS,
    VELOCITY_SCATTER,
    Simulation,
    block_continuum,
    check_snr,
    draw_snr,
    extinction,
    noise_regressors,
    simulate,
)

__all__ = [
    "BLOCK",
    "DEFAULT_RANGES",
    "FORMAT_VERSION",
    "LABEL_NAMES",
    "LIMITS",
    "LRS_LAYOUTS",
    "MAX_VELOCITY",
    "RANGE_CHECKS",
    "SIMULATORS",
    "SNR_BANDS",
    "SUBCLASSES",
    "TRUTH_COLUMNS",
    "TRUTH_UNITS",
    "VELOCITY_SCATTER",
    "Emulator",
    "Simulation",
    "apogee",
    "block_continuum",
    "card",
    "check_ranges",
    "check_snr",
    "designation",
    "draw_labels",
    "extinction",
    "gzip",
    "header_block",
    "lamost_lrs",
    "lamost_mrs",
    "noise_regressors",
    "plausible",
    "red_basis",
    "simulate",
    "subclass",
    "truth_columns",
    "write_spectra",
]

BLOCK = 64  # spectra drawn together; a change changes what a seed means

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


TRUTH_COLUMNS = [
    *(("file", "S44"), ("objid", "S16"), ("ra", "f8"), ("dec", "f8"), ("snr", "f8")),
    *(("teff", "f8"), ("logg", "f8"), ("feh", "f8"), ("rv", "f8"), ("ebv", "f8")),
    ("subclass", "S4"),
]
TRUTH_UNITS = {"ra": "deg", "dec": "deg", "teff": "K", "rv": "km/s", "ebv": "mag"}
CLUMP_COLUMNS = [
    *((name, "f8") for name in ("mass", "age", "c_n", "gmag", "rmag", "imag")),
    *((f"image_{band}", "S44") for band in frames.SEEING),
]
FRAMES = "frames"  # folder of the images, beside the spectra


def truth_columns(survey: str, images: bool = False) -> list[tuple[str, str]]:
    """Names and types of what is true of a survey's files.

    Those of `TRUTH_COLUMNS`; other surveys have abundances and no reddening, stars with
    images mass, age, magnitudes and the names of their frames.
    """
    if images:
        return [*TRUTH_COLUMNS, *CLUMP_COLUMNS]
    if survey == "lamost-lrs":
        return TRUTH_COLUMNS
    columns = [column for column in TRUTH_COLUMNS if column[0] != "ebv"]
    place = [name for name, _ in columns].index("rv")
    labels = hband.LABELS[3:4] if survey == "apogee" else atmospheres.LABELS[3:]
    more = [(name, "f8") for name in labels]
    return [*columns[:place], *more, *columns[place:]]


_LMJD = 59580  # 1 January 2022
_PLAN = "SIM{seed:06d}"
_FIBRES, _SPECTROGRAPHS = 250, 16


def write_spectra(
    directory: Path | str,
    n: int,
    survey: str = "lamost-lrs",
    *,
    seed: int = 0,
    snr: float | tuple[float, float] | None = None,
    ranges: Mapping[str, tuple[float, float]] | None = None,
    layout: str = "C",
    compress: bool = True,
    images: bool = False,
    emulator: Emulator | None = None,
) -> np.ndarray:
    """Write simulated survey files into a directory and return what is true of them.

    The same seed gives the same files, whatever `n`: more stars come after them.

    Parameters
    ----------
    directory : path
        Made if it doesn't exist. Files of the same names are replaced.
    n : int
        Number of files.
    survey : str
        Key of `SIMULATORS`.
    seed : int
        0 to 999999; part of the file names, so two seeds share a directory.
    snr, ranges
        As in `simulate` and `draw_labels`.
    layout : str
        LAMOST's ``"C"`` (binary table, DR9 and later) or ``"A"`` (image, DR2–DR8).
    compress : bool
        Write ``.fits.gz`` rather than ``.fits``, and images as ``.fits.bz2``.
    images : bool
        Make red-clump stars, with masses and ages, and g, r and i frames of them in the
        folder `FRAMES` of the directory. They have their own ranges.
    emulator : Emulator, optional
        The shipped one by default.

    Returns
    -------
    ndarray, shape (n,), fields as in `truth_columns`
        `snr` is the header's g-band value, or that of the blue arm; `rv` the true
        velocity in km/s.

    Raises
    ------
    UsageError
        If the survey or a label is unknown, or a number is outside its limits.
    """
    if survey not in SIMULATORS:
        raise unknown("survey to simulate", survey, SIMULATORS)
    if not (n >= 0 and 0 <= seed < 10**6):
        raise UsageError(
            f"n = {n}, seed = {seed}: give n >= 0 and a seed below 1000000."
        )
    if images and survey != "lamost-lrs":
        raise UsageError(
            f"images are made beside spectra of lamost-lrs, not of {survey}; leave "
            "--images out, or give --survey lamost-lrs."
        )
    check_snr(snr)
    RANGE_CHECKS[survey](ranges)
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    if images:
        (directory / FRAMES).mkdir(exist_ok=True)
    truth = np.zeros(n, dtype=truth_columns(survey, images))
    blocks = (lamost_red_clump if images else SIMULATORS[survey])(
        n,
        seed=seed,
        snr=snr,
        ranges=ranges,
        layout=layout,
        emulator=emulator,
    )
    ending = ".gz" if compress else ""
    for row, (content, facts) in enumerate(blocks):
        name = facts["file"] + ending
        write_atomically(directory / name, gzip(content) if compress else content)
        for band, (file, image) in facts.pop("frames", {}).items():
            file += ".bz2" if compress else ""
            image = bzip2(image) if compress else image
            write_atomically(directory / FRAMES / file, image)
            facts[f"image_{band}"] = file
        for column, value in facts.items():
            truth[column][row] = value
        truth["file"][row] = name
    return truth


def lamost_lrs(
    n: int, *, seed: int, snr, ranges, layout: str, emulator: Emulator | None = None
) -> Iterator[tuple[bytes, dict]]:
    """Yield LAMOST low-resolution files as bytes, each with what is true of it.

    Data model: https://www.lamost.org/dr10/v2.0/doc/lr-data-production-description
    """
    encode = _lrs_layout(layout)
    emulator = emulator or Emulator.load()
    wavelength = _lrs_wavelength(emulator)
    for block in range(-(-n // BLOCK)):
        rng = np.random.default_rng([seed, block])
        labels = draw_labels(BLOCK, rng, ranges)
        stars = simulate(labels, rng, snr=snr, emulator=emulator)
        positions = _draw_positions(BLOCK, rng)
        for row in range(min(BLOCK, n - block * BLOCK)):
            facts = _lrs_facts(seed, block * BLOCK + row, row, stars, positions)
            yield encode(facts, stars, row, wavelength), facts["truth"]


def lamost_red_clump(
    n: int, *, seed: int, snr, layout: str, emulator: Emulator | None = None, **_
) -> Iterator[tuple[bytes, dict]]:
    """Yield files of red-clump stars as `lamost_lrs` does.

    Among what is true of a star are its `frames`, name and content by band.
    """
    encode = _lrs_layout(layout)
    emulator = emulator or Emulator.load()
    wavelength = _lrs_wavelength(emulator)
    for block in range(-(-n // BLOCK)):
        rng = np.random.default_rng([seed, block, 2])
        positions = redclump.positions(BLOCK, rng)
        ratios = draw_snr(snr, BLOCK, rng, emulator)
        clump = redclump.draw(BLOCK, rng, ratios, positions, emulator)
        stars = simulate(
            clump[list(LABEL_NAMES)],
            rng,
            snr=ratios,
            emulator=emulator,
            ebv=clump["ebv"],
            factor=redclump.bands(clump, emulator.wavelength.size),
        )
        for row in range(min(BLOCK, n - block * BLOCK)):
            index = block * BLOCK + row
            facts = _lrs_facts(seed, index, row, stars, positions)
            field, camcol = divmod(index, 6)
            name = f"{_PLAN.format(seed=seed)}-{camcol + 1}-{field + 1:04d}"
            own = np.random.default_rng([seed, index, 3])
            facts["truth"] |= {
                "mass": clump["mass"][row],
                "age": clump["age"][row],
                "c_n": clump["c_n"][row],
                **{f"{band}mag": clump[band][row] for band in frames.SEEING},
                "frames": frames.frames(clump[row], name, own),
            }
            yield encode(facts, stars, row, wavelength), facts["truth"]


def _lrs_layout(name: str) -> Callable[..., bytes]:
    if name not in LRS_LAYOUTS:
        raise unknown("layout", name, LRS_LAYOUTS)
    return LRS_LAYOUTS[name]


def _lrs_wavelength(emulator: Emulator) -> np.ndarray:
    wavelength = emulator.wavelength[emulator.margin : -emulator.margin]
    # real COEFF0 are rounded: the stored array is a thousandth of a pixel off
    return (wavelength * 10**1.2e-7).astype(np.float32)


def _draw_positions(count: int, rng) -> np.ndarray:
    """Points spread evenly over LAMOST's sky (declination −10° to 60°), (count, 2)."""
    low, high = np.sin(np.radians([-10, 60]))
    dec = np.degrees(np.arcsin(rng.uniform(low, high, count)))
    return np.stack([rng.uniform(0, 360, count), dec], axis=1).round(6)


def _lrs_facts(seed: int, index: int, row: int, stars: Simulation, positions) -> dict:
    """Header values of file number `index`, and its row of the truth table."""
    plate, fibre = divmod(index, _FIBRES)
    night, spectrograph = divmod(plate, _SPECTROGRAPHS)
    lmjd, spid, fibre = _LMJD + night, spectrograph + 1, fibre + 1
    plan = _PLAN.format(seed=seed)
    teff, logg, feh = stars.labels[row]
    ra, dec = positions[row]
    # LAMOST's own numbers have nine digits; these can't be mistaken for them
    obsid = 10**10 + seed * 10**6 + index
    z = stars.rv_measured[row] / SPEED_OF_LIGHT
    snr = {band: _header_snr(value[row]) for band, value in stars.snr.items()}
    kind = subclass(teff, logg)
    name = f"spec-{lmjd}-{plan}_sp{spid:02d}-{fibre:03d}.fits"
    truth = {
        "file": name,
        "objid": str(obsid),
        "ra": ra,
        "dec": dec,
        "snr": snr["g"],
        "teff": teff,
        "logg": logg,
        "feh": feh,
        "rv": stars.rv[row],
        "ebv": stars.ebv[row],
        "subclass": kind,
    }
    return {
        "truth": truth,
        "lmjd": lmjd,
        "plan": plan,
        "spid": spid,
        "fibre": fibre,
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


def _lrs_table(facts: dict, stars: Simulation, row: int, wavelength) -> bytes:
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


def _lrs_image(facts: dict, stars: Simulation, row: int, wavelength) -> bytes:
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


LRS_LAYOUTS = {"A": _lrs_image, "C": _lrs_table}


def lamost_mrs(n: int, *, seed: int, snr, ranges, **_) -> Iterator[tuple[bytes, dict]]:
    """Yield LAMOST medium-resolution files as `lamost_lrs` does; one layout, DR7's.

    As in the survey the header has no velocity. Half of the arms that are missing are
    left out, half are zeros.

    Data model: https://www.lamost.org/dr10/v2.0/doc/mr-data-production-description
    """
    for block in range(-(-n // BLOCK)):
        rng = np.random.default_rng([seed, block, 1])
        stars = medium.observe(medium.draw(BLOCK, rng, ranges), rng, snr=snr)
        positions = _draw_positions(BLOCK, rng)
        for row in range(min(BLOCK, n - block * BLOCK)):
            facts = _mrs_facts(seed, block * BLOCK + row, row, stars, positions)
            yield _mrs_tables(facts, stars, row), facts["truth"]


def _mrs_facts(
    seed: int, index: int, row: int, stars: medium.Observation, positions
) -> dict:
    """Header values of file number `index`, and its row of the truth table."""
    plate, fibre = divmod(index, _FIBRES)
    night, spectrograph = divmod(plate, _SPECTROGRAPHS)
    lmjd, spid, fibre = _LMJD + night, spectrograph + 1, fibre + 1
    plan = _PLAN.format(seed=seed)
    ra, dec = positions[row]
    obsid = 2 * 10**10 + seed * 10**6 + index
    snr = {arm: _header_snr(stars.snr[arm][row]) for arm in medium.ARMS}
    labels = dict(zip(atmospheres.LABELS, stars.labels[row].tolist(), strict=True))
    truth = {
        "file": f"med-{lmjd}-{plan}_sp{spid:02d}-{fibre:03d}.fits",
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
        "lmjd": lmjd,
        "plan": plan,
        "spid": spid,
        "fibre": fibre,
        "obsid": obsid,
        "snr": snr,
        "left out": [arm for arm in medium.ARMS if snr[arm] <= 0 and row % 2],
        "designation": designation(ra, dec),
    }


def _mrs_tables(facts: dict, stars: medium.Observation, row: int) -> bytes:
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


def apogee(n: int, *, seed: int, snr, ranges, **_) -> Iterator[tuple[bytes, dict]]:
    """Yield APOGEE's combined spectra (apStar) as `lamost_lrs` does.

    Data model: https://data.sdss.org/datamodel/files/APOGEE_REDUX
    """
    for block in range(-(-n // BLOCK)):
        rng = np.random.default_rng([seed, block, 2])
        stars = hband.observe(hband.draw(BLOCK, rng, ranges), rng, snr=snr)
        positions = _draw_positions(BLOCK, rng)
        for row in range(min(BLOCK, n - block * BLOCK)):
            index = block * BLOCK + row
            ra, dec = positions[row]
            labels = dict(zip(hband.LABELS[:4], stars.labels[row], strict=False))
            name = f"SIM{seed:06d}_{index:06d}"
            truth = {
                "file": f"apStar-{name}.fits",
                "objid": name,
                "ra": ra,
                "dec": dec,
                "snr": round(float(stars.snr[row]), 2),
                **labels,
                "rv": stars.rv[row],
                "subclass": subclass(labels["teff"], labels["logg"]),
            }
            yield hband.apstar(truth, stars, row), truth


SIMULATORS = {"lamost-lrs": lamost_lrs, "lamost-mrs": lamost_mrs, "apogee": apogee}
RANGE_CHECKS = {
    "lamost-lrs": check_ranges,
    "lamost-mrs": medium.check_ranges,
    "apogee": hband.check_ranges,
}
