"""Survey files made from a shipped spectral emulator, with known labels.

For trying the program, its tests and pre-training: `write_spectra` makes files that the
survey's own reader can't tell from real ones, and says in their header that they are
simulated. The stars and their spectra are `emulator`'s, what happens to them on the way
to the detector is `observing`'s.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from stellarcli.errors import UsageError, unknown
from stellarcli.surveys import (
    atmospheres,
    frames,
    hband,
    lamostfiles,
    medium,
    redclump,
)
from stellarcli.surveys.cards import (
    bzip2,
    gzip,
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
    SNR_BANDS,
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
    "RANGE_CHECKS",
    "SIMULATORS",
    "SNR_BANDS",
    "TRUTH_COLUMNS",
    "TRUTH_UNITS",
    "Emulator",
    "apogee",
    "block_continuum",
    "check_ranges",
    "check_snr",
    "draw_labels",
    "draw_positions",
    "extinction",
    "lamost_lrs",
    "lamost_mrs",
    "noise_regressors",
    "plausible",
    "red_basis",
    "simulate",
    "truth_columns",
    "write_spectra",
]

BLOCK = 64  # spectra drawn together; a change changes what a seed means

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
    encode = lamostfiles.lrs_layout(layout)
    emulator = emulator or Emulator.load()
    wavelength = lamostfiles.lrs_wavelength(emulator)
    for block in range(-(-n // BLOCK)):
        rng = np.random.default_rng([seed, block])
        labels = draw_labels(BLOCK, rng, ranges)
        stars = simulate(labels, rng, snr=snr, emulator=emulator)
        positions = draw_positions(BLOCK, rng)
        for row in range(min(BLOCK, n - block * BLOCK)):
            facts = lamostfiles.lrs_facts(
                seed, block * BLOCK + row, row, stars, positions
            )
            yield encode(facts, stars, row, wavelength), facts["truth"]


def lamost_red_clump(
    n: int, *, seed: int, snr, layout: str, emulator: Emulator | None = None, **_
) -> Iterator[tuple[bytes, dict]]:
    """Yield files of red-clump stars as `lamost_lrs` does.

    Among what is true of a star are its `frames`, name and content by band.
    """
    encode = lamostfiles.lrs_layout(layout)
    emulator = emulator or Emulator.load()
    wavelength = lamostfiles.lrs_wavelength(emulator)
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
            facts = lamostfiles.lrs_facts(seed, index, row, stars, positions)
            field, camcol = divmod(index, 6)
            name = f"{lamostfiles.PLAN.format(seed=seed)}-{camcol + 1}-{field + 1:04d}"
            own = np.random.default_rng([seed, index, 3])
            facts["truth"] |= {
                "mass": clump["mass"][row],
                "age": clump["age"][row],
                "c_n": clump["c_n"][row],
                **{f"{band}mag": clump[band][row] for band in frames.SEEING},
                "frames": frames.frames(clump[row], name, own),
            }
            yield encode(facts, stars, row, wavelength), facts["truth"]


def draw_positions(count: int, rng) -> np.ndarray:
    """Points spread evenly over LAMOST's sky (declination −10° to 60°), (count, 2)."""
    low, high = np.sin(np.radians([-10, 60]))
    dec = np.degrees(np.arcsin(rng.uniform(low, high, count)))
    return np.stack([rng.uniform(0, 360, count), dec], axis=1).round(6)


def lamost_mrs(n: int, *, seed: int, snr, ranges, **_) -> Iterator[tuple[bytes, dict]]:
    """Yield LAMOST medium-resolution files as `lamost_lrs` does; one layout, DR7's.

    As in the survey the header has no velocity. Half of the arms that are missing are
    left out, half are zeros.

    Data model: https://www.lamost.org/dr10/v2.0/doc/mr-data-production-description
    """
    for block in range(-(-n // BLOCK)):
        rng = np.random.default_rng([seed, block, 1])
        stars = medium.observe(medium.draw(BLOCK, rng, ranges), rng, snr=snr)
        positions = draw_positions(BLOCK, rng)
        for row in range(min(BLOCK, n - block * BLOCK)):
            facts = lamostfiles.mrs_facts(
                seed, block * BLOCK + row, row, stars, positions
            )
            yield lamostfiles.mrs_tables(facts, stars, row), facts["truth"]


def apogee(n: int, *, seed: int, snr, ranges, **_) -> Iterator[tuple[bytes, dict]]:
    """Yield APOGEE's combined spectra (apStar) as `lamost_lrs` does.

    Data model: https://data.sdss.org/datamodel/files/APOGEE_REDUX
    """
    for block in range(-(-n // BLOCK)):
        rng = np.random.default_rng([seed, block, 2])
        stars = hband.observe(hband.draw(BLOCK, rng, ranges), rng, snr=snr)
        positions = draw_positions(BLOCK, rng)
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
                "subclass": lamostfiles.subclass(labels["teff"], labels["logg"]),
            }
            yield hband.apstar(truth, stars, row), truth


SIMULATORS = {"lamost-lrs": lamost_lrs, "lamost-mrs": lamost_mrs, "apogee": apogee}
RANGE_CHECKS = {
    "lamost-lrs": check_ranges,
    "lamost-mrs": medium.check_ranges,
    "apogee": hband.check_ranges,
}
