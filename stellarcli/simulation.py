"""Simulated survey files as the command makes them: checks, ranges, truth tables."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from stellarcli import catalog, checkpoint, labels
from stellarcli.catalog import Column
from stellarcli.errors import OutputExistsError, StellarError, UsageError, unknown
from stellarcli.provenance import Card
from stellarcli.surveys import hband, medium, simulated
from stellarcli.surveys.atmospheres import LABELS
from stellarcli.surveys.simulated import LABEL_NAMES, LIMITS

Range = tuple[float, float]

COLUMNS = [
    Column("file", "S", "", "simulated file; % and bytes other than ASCII as in a URL"),
    Column("objid", "S", "", "identifier in the file's header"),
    Column("ra", "f8", "deg", "right ascension, ICRS", "F11.6"),
    Column("dec", "f8", "deg", "declination, ICRS", "F10.6"),
    Column("snr", "f4", "", "S/N per pixel in g, or in the blue arm", "F8.2"),
    Column("teff", "f8", "K", "true effective temperature", "F9.2"),
    Column("logg", "f8", "", "true surface gravity, log10 of cm/s2, dex", "F8.3"),
    Column("feh", "f8", "", "true [Fe/H], dex", "F8.3"),
    *(
        Column(name, "f8", "", f"true {labels.get(name).description}", "F8.3")
        for name in (*LABELS[3:], "alpha_fe")
    ),
    Column("rv", "f8", "km/s", "true radial velocity", "F8.2"),
    Column("ebv", "f8", "mag", "true reddening E(B-V)", "F7.3"),
    Column("subclass", "S", "", "spectral subclass in the file's header"),
    Column("mass", "f8", "Msun", "simulated stellar mass", "F8.3"),
    Column("age", "f8", "Gyr", "simulated stellar age", "F8.3"),
    Column("c_n", "f8", "", "simulated [C/N], dex", "F8.3"),
    *(
        Column(f"{band}mag", "f8", "mag", f"simulated magnitude {band}, AB", "F8.3")
        for band in "gri"
    ),
    *(
        Column(f"image_{band}", "S", "", f"simulated frame in {band}; none: empty")
        for band in "gri"
    ),
]


def parse_snr(text: str | None) -> float | Range | None:
    """Read a signal-to-noise ratio, ``"50"``, or a range, ``"10:300"``.

    Raises
    ------
    UsageError
        If the text has another form, or no such S/N can be simulated.
    """
    if text is None:
        return None
    limits = _numbers(text)
    if limits is None:
        raise UsageError(
            f"S/N {text!r} is neither a number, such as 50, nor a range, such as "
            "10:300."
        )
    simulated.check_snr(limits)
    return limits if ":" in text else limits[0]


def parse_ranges(texts: Iterable[str], survey: str = "lamost-lrs") -> dict[str, Range]:
    """Read label ranges, ``["teff=4000:7000,logg=4:5", "feh=0"]``.

    A single number fixes a label.

    Parameters
    ----------
    texts : iterable of str
        Each with one range, or several between commas.
    survey : str
        Whose stars to draw; one that can't be simulated is refused by `fetch`.

    Returns
    -------
    dict of (float, float)
        By label.

    Raises
    ------
    UsageError
        If a text has another form, a label is unknown or given twice, or a range
        can't be simulated.
    """
    ranges: dict[str, Range] = {}
    for part in [part for text in texts for part in text.split(",")]:
        name, equals, numbers = (piece.strip() for piece in part.partition("="))
        limits = _numbers(numbers)
        if not (name and equals and limits):
            raise UsageError(
                f"range {part!r} is not LABEL=LOW:HIGH, such as teff=4000:7000. "
                f"Labels: {', '.join(LABEL_NAMES)}."
            )
        if name not in LABEL_NAMES:
            raise unknown("label", name, LABEL_NAMES)
        if name in ranges:
            raise UsageError(f"a range of {name} is given twice; give it once.")
        ranges[name] = limits
    simulated.RANGE_CHECKS.get(survey, simulated.check_ranges)(ranges)
    return ranges


def _numbers(text: str) -> Range | None:
    """``"1:2"`` as (1, 2), ``"1"`` as (1, 1), None if it is neither."""
    low, colon, high = text.partition(":")
    try:
        limits = float(low), float(high if colon else low)
    except ValueError:
        return None
    return limits if np.isfinite(limits).all() else None


def default_ranges(survey: str = "lamost-lrs") -> dict[str, Range]:
    """Ranges drawn from without being asked: what the shipped model is trained for.

    Parameters
    ----------
    survey : str
        Medium resolution and APOGEE have ranges of their own.

    Returns
    -------
    dict of (float, float)
        By label, within what the emulator covers; its own defaults where no shipped
        model predicts the label.
    """
    if survey == "lamost-mrs":
        return dict(medium.DEFAULT_RANGES)
    if survey == "apogee":
        return hband.check_ranges(None)
    ranges = dict(simulated.DEFAULT_RANGES)
    if checkpoint.DEFAULT not in checkpoint.shipped():
        return ranges
    for label in checkpoint.load(checkpoint.DEFAULT).labels:
        if label.name in LIMITS:
            low = max(label.trained[0], LIMITS[label.name][0])
            high = min(label.trained[1], LIMITS[label.name][1])
            if low < high:
                ranges[label.name] = (float(low), float(high))
    return ranges


def fetch(
    directory: str | os.PathLike,
    number: int,
    survey: str = "lamost-lrs",
    *,
    seed: int = 1,
    snr: float | Range | None = None,
    ranges: Mapping[str, Range] | None = None,
    compress: bool = True,
    images: bool = False,
    overwrite: bool = False,
) -> np.ndarray:
    """Write simulated survey files into a directory.

    Parameters
    ----------
    directory : path
        Made if missing.
    number : int
        Of files.
    survey : str
        Key of `surveys.simulated.SIMULATORS`.
    seed : int
        Same seed, same files; the first of them whatever `number` is.
    snr : float or (float, float), optional
        Signal-to-noise ratio in g; by default the survey's own distribution.
    ranges : mapping of (float, float), optional
        By label; `default_ranges` for labels that it lacks.
    compress : bool
        Write ``.fits.gz`` instead of ``.fits``, and images as ``.fits.bz2``.
    images : bool
        Make red-clump stars with masses and ages, and g, r and i frames of them.
    overwrite : bool
        Whether files of the same seed may be replaced.

    Returns
    -------
    structured ndarray, shape (spectrum,)
        What is true of each file, fields of `surveys.simulated.truth_columns`.

    Raises
    ------
    OutputExistsError
        If the directory has files of that seed.
    UsageError
        If the path is a file, or a value is one that can't be simulated.
    StellarError
        If the directory can't be written to.
    """
    directory = Path(directory)
    if survey not in simulated.SIMULATORS:
        raise unknown("survey to simulate", survey, simulated.SIMULATORS)
    if directory.exists() and not directory.is_dir():
        raise UsageError(f"{directory} is a file; name a directory.")
    if images and ranges:
        raise UsageError(
            "--images makes red-clump stars, whose labels follow from each other; "
            "leave --range out."
        )
    ending = ".fits.gz" if compress else ".fits"
    if not overwrite:
        _refuse_existing(directory, seed, ending)
    try:
        return simulated.write_spectra(
            directory,
            number,
            survey,
            seed=seed,
            snr=snr,
            ranges={**default_ranges(survey), **(ranges or {})},
            compress=compress,
            images=images,
        )
    except OSError as error:
        raise StellarError(
            f"can't write into {directory}: {error.strerror or error}. Check the disk "
            "and the rights, or name another directory."
        ) from error


def _refuse_existing(directory: Path, seed: int, ending: str) -> None:
    """Raise if the files of a seed, which have it in their names, are there."""
    found = sorted(directory.glob(f"*-SIM{seed:06d}_*{ending}"))
    if found:
        raise OutputExistsError(
            f"{directory} has {len(found)} simulated spectra of seed {seed} already, "
            f"the first is {found[0].name}; give --overwrite to replace them, or "
            "another --seed."
        )


def write_truth(
    path: str, stars: np.ndarray, cards: Sequence[Card] = (), overwrite: bool = False
) -> None:
    """Write a catalogue of what is true of simulated files; `file` is the base name.

    Parameters
    ----------
    path : str
        As in `catalog.write`.
    stars : structured ndarray
        Of `fetch`.
    cards : sequence of (keyword, value, comment)
    overwrite : bool
    """
    _write(path, stars, lambda name: name, cards, overwrite)


def write_paths(
    path: str,
    stars: np.ndarray,
    directory: str | os.PathLike,
    cards: Sequence[Card] = (),
    overwrite: bool = False,
) -> None:
    """Write the same catalogue with paths in `file`, which 'stellar predict -' takes.

    Parameters
    ----------
    directory : path
        That the files are in.
    path, stars, cards, overwrite
        As in `write_truth`.
    """
    _write(path, stars, lambda name: os.path.join(directory, name), cards, overwrite)


def _write(
    path: str,
    stars: np.ndarray,
    place: Callable[[str], str],
    cards: Sequence[Card],
    overwrite: bool,
) -> None:
    columns = [column for column in COLUMNS if column.name in stars.dtype.names]
    values = {column.name: stars[column.name] for column in columns}
    for name in values:
        if name == "file" or name.startswith("image_"):
            folder = "" if name == "file" else simulated.FRAMES
            found = [os.path.join(folder, n) if n else "" for n in _text(stars[name])]
            values[name] = np.array(
                [catalog.encode_name(place(n)) if n else "" for n in found], dtype="S"
            )
    catalog.write(path, catalog.rows(columns, values), columns, cards, overwrite)


def _text(values: np.ndarray) -> list[str]:
    return [value.decode("ascii") for value in values]
