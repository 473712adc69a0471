"""Readers of survey files; `SURVEYS` is the table of contents.

A survey is a file here with two functions: ``identify(hdus)`` tells from the structure
of a file whether it is one of its own, never from names or release numbers, and
``read(hdus, path)`` makes a `Spectrum` of it: vacuum Å, heliocentric, masked. To add a
survey, add its file and a line to `SURVEYS`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from stellarcli.errors import SpectrumError, unknown
from stellarcli.spectrum import Spectrum
from stellarcli.surveys import apogee, generic, lamost, sdss
from stellarcli.surveys.hdus import is_fits, read_bytes
from stellarcli.surveys.library import with_fallback


@dataclass(frozen=True)
class Survey:
    """How the spectra of one survey are told and read.

    Attributes
    ----------
    name : str
        Key of `SURVEYS`; goes to ``meta.survey``.
    title : str
        Name in words, for lists.
    identify : callable
        ``identify(hdus) -> bool``.
    read : callable
        ``read(hdus, path) -> Spectrum``.
    archive : str
        Where the files come from; empty if nowhere in particular.
    read_exposures : callable or None
        ``read_exposures(hdus, path) -> list of Spectrum``, where files hold the single
        exposures or visits too.
    """

    name: str
    title: str
    identify: Callable[[list], bool]
    read: Callable[[list, str], Spectrum]
    archive: str = ""
    read_exposures: Callable[[list, str], list[Spectrum]] | None = None


# In the order of asking; the generic reader takes what no survey claims.
SURVEYS: dict[str, Survey] = {
    survey.name: survey
    for survey in (
        Survey(
            "lamost-lrs",
            "LAMOST low-resolution spectrum",
            lamost.identify_lrs,
            lamost.read_lrs,
            archive="https://www.lamost.org",
        ),
        Survey(
            "lamost-mrs",
            "LAMOST medium-resolution spectrum",
            lamost.identify_mrs,
            lamost.read_mrs,
            archive="https://www.lamost.org",
            read_exposures=lamost.read_mrs_exposures,
        ),
        Survey(
            "sdss",
            "SDSS, BOSS or eBOSS spectrum",
            sdss.identify,
            sdss.read,
            archive="https://data.sdss.org/sas",
        ),
        Survey(
            "apogee",
            "APOGEE visit or star",
            apogee.identify,
            apogee.read,
            archive="https://data.sdss.org/sas",
            read_exposures=apogee.read_exposures,
        ),
        Survey(
            "generic",
            "table, 1-D image with a wavelength scale, or columns of text",
            generic.identify,
            generic.read,
        ),
    )
}


def identify(path: str | os.PathLike) -> str:
    """Name of the survey that a file is from.

    Parameters
    ----------
    path : str or path-like

    Returns
    -------
    str
        Key of `SURVEYS`.

    Raises
    ------
    SpectrumError
        If the file can't be read, or holds no spectrum.
    """
    return _use(path, lambda hdus: _survey_of(hdus).name)


def read(path: str | os.PathLike, *, survey: str | None = None) -> Spectrum:
    """Read a spectrum of any survey: the coadd where a file has several.

    Parameters
    ----------
    path : str or path-like
        A FITS file, gzipped or not, or columns of text.
    survey : str, optional
        Key of `SURVEYS`; by default the file's structure decides.

    Returns
    -------
    Spectrum

    Raises
    ------
    SpectrumError
        If the file can't be read, or holds no spectrum; the reason in one sentence,
        without the path.
    """
    return _use(path, lambda hdus: _survey_of(hdus, survey).read(hdus, path))


def read_all(
    path: str | os.PathLike, *, exposures: bool = True, survey: str | None = None
) -> list[Spectrum]:
    """Read the single exposures or visits in a file.

    Parameters
    ----------
    path : str or path-like
    exposures : bool
        False reads only what `read` does.
    survey : str, optional
        As for `read`.

    Returns
    -------
    list of Spectrum
        The spectrum that `read` returns, where a file has no exposures.

    Raises
    ------
    SpectrumError
        As `read`.
    """

    def use(hdus: list) -> list[Spectrum]:
        found = _survey_of(hdus, survey)
        if exposures and found.read_exposures:
            return found.read_exposures(hdus, path) or [found.read(hdus, path)]
        return [found.read(hdus, path)]

    return _use(path, use)


def _use(path: str | os.PathLike, use: Callable[[list], object]) -> object:
    """Call `use` with the HDUs of a file, or with the one table of a text."""
    data = read_bytes(path)
    with np.errstate(all="ignore"):  # nonsense values end as masked pixels, or an error
        if is_fits(data):
            return with_fallback(data, use)
        return use(generic.text_hdus(data))


def _survey_of(hdus: list, name: str | None = None) -> Survey:
    if name is not None and name not in SURVEYS:
        raise unknown("survey", name, SURVEYS)
    for survey in SURVEYS.values():
        if name in (None, survey.name) and survey.identify(hdus):
            return survey
    what = SURVEYS[name].title if name else "spectrum"
    raise SpectrumError(f"no {what}: the file holds {generic.describe(hdus)}")
