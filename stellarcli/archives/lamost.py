"""LAMOST: releases, spectra, catalogues, queries.

Addresses are those of the archive's own interface (``/openapi``), with those of its web
pages as the second choice; mirrors may have either. Spectra of public releases need no
token. An identifier that doesn't exist is answered with status 200 and a JSON message.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from urllib.parse import urlencode

import numpy as np

from stellarcli.archives import orders, token
from stellarcli.archives.batch import repeated
from stellarcli.archives.client import Client, check_address
from stellarcli.archives.orders import Order
from stellarcli.archives.store import Item
from stellarcli.archives.token import Token
from stellarcli.archives.verification import json_of
from stellarcli.catalog import Table
from stellarcli.errors import (
    AuthenticationError,
    FetchError,
    StellarError,
    Trouble,
    UsageError,
    unknown,
)

ADDRESS = "https://www.lamost.org"
CATALOGUES = (
    *("LRS_catalogue", "LRS_stellar", "LRS_astellar", "LRS_mstellar"),
    *("LRS_galaxy", "LRS_qso", "LRS_wd", "LRS_cv"),
    *("MRS_catalogue", "MRS_stellar"),
)
TYPICAL = {"lrs": 85_000, "mrs": 400_000}  # bytes of a gzipped spectrum
WIDEST = 10.0  # degrees
OBSID_COLUMNS = ("obsid", "objid", "obs_id")
DR = re.compile(r"(?:dr)?(\d{1,3})", re.IGNORECASE)
VERSION = re.compile(r"v?(\d{1,3}(?:\.\d{1,3})*)", re.IGNORECASE)
FILE = re.compile(r"dr\d+_v[\d.]+_\w+\.fits(\.gz)?", re.ASCII)
NIGHT = re.compile(r"20\d{6}", re.ASCII)


@dataclass(frozen=True, order=True)
class Release:
    """A data release and its version.

    Attributes
    ----------
    dr : int
    version : tuple of int
        (2, 0) for v2.0.
    name : str
        ``dr10/v2.0``, as in addresses.
    public : bool or None
        None if the archive didn't say.
    """

    dr: int
    version: tuple[int, ...]
    name: str
    public: bool | None = None


TARBALL = Release(0, (), "tarball")  # of a file on this machine, nobody knows


def parse_release(dr: str, version: str, public: bool | None = None) -> Release | None:
    """Make a release of ``10`` or ``dr10`` and ``v2.0`` or ``2.0``; None of others."""
    number, parts = DR.fullmatch(dr.strip()), VERSION.fullmatch(version.strip())
    if not number or not parts:
        return None
    numbers = tuple(int(part) for part in parts[1].split("."))
    return Release(int(number[1]), numbers, f"dr{int(number[1])}/v{parts[1]}", public)


def releases(client: Client, retries: int) -> list[Release]:
    """Ask the archive which releases there are.

    Returns
    -------
    list of Release
        Empty if the answer has a shape that isn't understood.

    Raises
    ------
    FetchError
        If there is no answer.
    """
    address = f"{client.base}/openapi/dr_versions"
    content, _ = repeated(client, partial(client.content, address), retries)
    return sorted(set(_releases_in(json_of(content))))


def _releases_in(
    answer: object, dr: str = "", public: bool | None = None, depth: int = 0
) -> Iterator[Release]:
    """Find releases in an answer: the shape of this JSON is documented nowhere.

    Objects may have a release and a version among their values, be keyed by release, or
    stand in lists under the words public and internal.
    """
    if depth > 6:
        return
    if isinstance(answer, str):
        both = re.fullmatch(r"(dr\d+)[/_ -]+(v[\d.]+)", answer, re.IGNORECASE)
        found = parse_release(*(both.groups() if both else (dr, answer)), public)
        if found and (both or answer[:1] in "vV"):
            yield found
    elif isinstance(answer, list):
        for entry in answer:
            yield from _releases_in(entry, dr, public, depth + 1)
    elif isinstance(answer, dict):
        public = _publicity(answer, public)
        words = [value for value in answer.values() if isinstance(value, str)]
        dr = next((w for w in words if re.fullmatch(r"dr\d+", w, re.I)), dr)
        for key, value in answer.items():
            named = key if re.fullmatch(r"dr\d+", key, re.I) else dr
            status = {"public": True, "internal": False}.get(key.lower(), public)
            if isinstance(value, str | list | dict):
                yield from _releases_in(value, named, status, depth + 1)


def _publicity(entry: dict, default: bool | None) -> bool | None:
    """Whether an object says that it is public."""
    for key, value in entry.items():
        if isinstance(value, bool) and "public" in key.lower():
            return value
        if isinstance(value, str) and value.lower() in ("public", "internal"):
            return value.lower() == "public"
    return default


def choose(
    client: Client, dr: str | None, version: str | None, retries: int
) -> Release:
    """Return the release that is meant; the newest public one where nothing is said.

    Parameters
    ----------
    client : Client
    dr, version : str or None
        ``10`` and ``v2.0``.
    retries : int

    Raises
    ------
    UsageError
        If the archive has no such release, or has to be told which.
    StellarError
        If the archive has to be asked and doesn't answer.
    """
    for given, pattern, name, example in (
        (dr, DR, "--dr", "10"),
        (version, VERSION, "--version", "v2.0"),
    ):
        if given is not None and not pattern.fullmatch(given.strip()):
            raise UsageError(f"{name} {given!r} is no release; give {example}, say.")
    wanted = parse_release(dr, version) if dr and version else None
    try:
        known = releases(client, min(retries, 1) if wanted else retries)
    except FetchError as error:
        if wanted:
            return wanted
        raise StellarError(
            f"can't ask {client.base} for its releases: {error}. Give --dr and "
            "--version, such as --dr 10 --version v2.0, or check --url."
        ) from None
    if not known:
        if wanted:
            return wanted
        raise UsageError(
            f"the list of releases of {client.base} has a shape that isn't understood; "
            "give --dr and --version, such as --dr 10 --version v2.0."
        )
    return _chosen(known, dr, version)


def _chosen(known: Sequence[Release], dr: str | None, version: str | None) -> Release:
    some = list(known)
    if dr:
        number = int(DR.fullmatch(dr.strip())[1])
        some = [release for release in some if release.dr == number]
        if not some:
            names = dict.fromkeys(f"dr{release.dr}" for release in known)
            raise unknown("LAMOST release", f"dr{number}", names)
    if version:
        name = f"v{VERSION.fullmatch(version.strip())[1]}"
        some = [release for release in some if release.name.endswith(f"/{name}")]
        if not some:
            of = [r for r in known if not dr or r.dr == number]
            names = dict.fromkeys(release.name for release in of)
            raise unknown("LAMOST version", f"dr{dr}/{name}" if dr else name, names)
    public = [release for release in some if release.public]
    return max(public or some)


def authorised(
    release: Release, file: str | None, ask: Callable[[], str] | None
) -> Token | None:
    """Return the token that a release needs; none for a public one, unasked.

    Parameters
    ----------
    release : Release
    file : str or None
        As in `token.find`.
    ask : callable or None
        As there; used only if the archive calls the release internal.

    Raises
    ------
    AuthenticationError
        If there is none, and the archive calls the release internal.
    """
    if release.public:
        return None
    internal = release.public is False
    found = token.find(file, ask if internal else None)
    if internal and found is None:
        raise AuthenticationError(
            f"release {release.name} is not public; it needs a token, which is on your "
            f"page at www.lamost.org/lmusers. Set {token.ENVIRONMENT}, or give "
            "--token-file."
        )
    return found


def prefix(release: Release, medium: bool) -> str:
    """Return what the keys of a survey's spectra begin with."""
    return f"lamost/{release.name}/{'mrs' if medium else 'lrs'}"


def check_columns(table: Table) -> np.ndarray:
    """Return the identifiers of a table's rows.

    Raises
    ------
    UsageError
        If it has no such column, or no rows.
    """
    column = orders.column_of(table, OBSID_COLUMNS, "LAMOST identifiers")
    if not len(column):
        raise UsageError(
            f"{table.name or 'the table'} has no rows; check the filter in brackets, "
            "or the query."
        )
    return column


def spectra(base: str, release: Release, table: Table, medium: bool = False) -> Order:
    """Order the spectra of a table's rows.

    Parameters
    ----------
    base : str
        Address of the archive.
    release : Release
    table : Table
        With a column ``obsid``.
    medium : bool
        Of the medium-resolution survey.

    Raises
    ------
    UsageError
        If it has no such column, or no rows.
    """
    survey, start = "mrs" if medium else "lrs", prefix(release, medium)
    numbers = [orders.whole(value) for value in check_columns(table).tolist()]
    return Order(
        table,
        {"file": [f"{start}/{number}" if number else "" for number in numbers]},
        partial(_item, base, release.name, survey),
        TYPICAL[survey],
    )


def _item(base: str, release: str, survey: str, key: str) -> Item:
    obsid = key.rpartition("/")[2]
    page = "medspectrum" if survey == "mrs" else "spectrum"
    return Item(
        key,
        (
            f"{base}/openapi/{release}/{survey}/spectrum/fits?obsid={obsid}",
            f"{base}/{release}/{page}/fits/{obsid}",
        ),
        f"lamost-{survey}-{obsid}.fits",
        {"OBSID": int(obsid)},
        proposed=True,
    )


def parse_obsids(texts: Sequence[str]) -> Table:
    """Read identifiers, ``["101008,101016", "101017"]``.

    Raises
    ------
    UsageError
        If one of them isn't a whole number.
    """
    words = [word for text in texts for word in re.split(r"\s*[,\s]\s*", text.strip())]
    for word in words:
        if not (word.isascii() and word.isdigit() and 0 < int(word) < 2**63):
            raise UsageError(
                f"--obsid {word!r} is no LAMOST identifier: whole numbers between "
                "commas are expected, such as 101008,101016."
            )
    return orders.from_list([int(word) for word in words], "obsid")


def parse_cone(text: str) -> tuple[float, float, float]:
    """Read ``RA,DEC,RADIUS`` in degrees.

    Raises
    ------
    UsageError
        If it isn't that.
    """
    try:
        ra, dec, radius = (float(word) for word in text.split(","))
    except ValueError:
        raise UsageError(
            f"--cone {text!r} is not RA,DEC,RADIUS in degrees, such as 150.1,2.2,0.5."
        ) from None
    limits = (
        ("RA", ra, 0 <= ra <= 360, "0 to 360"),
        ("DEC", dec, -90 <= dec <= 90, "-90 to 90"),
        ("RADIUS", radius, 0 < radius <= WIDEST, f"above 0, at most {WIDEST:g}"),
    )
    for name, value, valid, allowed in limits:
        if not valid:
            raise UsageError(
                f"--cone {text}: {name} is {value:g}, and has to be {allowed} degrees."
            )
    return ra, dec, radius


def cone(
    client: Client,
    release: Release,
    place: tuple[float, float, float],
    medium: bool,
    retries: int,
) -> Table:
    """Ask which spectra lie within a circle on the sky.

    Parameters
    ----------
    place : (float, float, float)
        Right ascension, declination, radius; degrees.

    Raises
    ------
    StellarError
        If the archive doesn't answer with a table.
    """
    survey = "mrs" if medium else "lrs"
    address = f"{client.base}/openapi/{release.name}/{survey}/voservice/conesearch"
    values = dict(zip(("ra", "dec", "sr"), place, strict=True))
    return _asked(client, address, values, f"cone search of {release.name}", retries)


def sql(client: Client, release: Release, query: str, retries: int) -> Table:
    """Send a query in the archive's SQL; as `cone`.

    Raises
    ------
    UsageError
        If the archive refuses it.
    """
    address = f"{client.base}/openapi/{release.name}/sql"
    return _asked(client, address, {"sql": query}, f"query of {release.name}", retries)


def _asked(
    client: Client, address: str, values: dict[str, object], name: str, retries: int
) -> Table:
    def attempt() -> Table:
        content, _ = client.content(address, {**values, "output.fmt": "votable"})
        words = client.words_of(content)
        try:
            return orders.parse_answer(content, name)
        except FetchError as error:
            if words and error.kind is Trouble.ANSWER:
                raise FetchError(f"the archive says: {words}", error.kind) from None
            raise

    try:
        return repeated(client, attempt, retries)
    except FetchError as error:
        reason = client.mask(str(error))
        if error.kind is Trouble.ANSWER:
            raise UsageError(
                f"the {name} was refused: {reason}. Check its spelling; the tables and "
                f"columns are listed at {client.base}."
            ) from None
        raise StellarError(
            f"the {name} failed: {reason}. Try again later, or another --url."
        ) from None


def check_catalogue(name: str) -> str:
    """Return a catalogue's name as the archive spells it.

    Raises
    ------
    UsageError
        If it isn't one of `CATALOGUES`, or a file name such as
        ``dr10_v2.0_LRS_stellar.fits.gz``.
    """
    known = {short.lower(): short for short in CATALOGUES}
    if name.lower() in known:
        return known[name.lower()]
    if FILE.fullmatch(name):
        return name
    raise unknown("LAMOST catalogue", name, CATALOGUES)


def catalogue(name: str, release: Release, base: str) -> tuple[str, list[str]]:
    """File name and addresses of one of the release's catalogues.

    Parameters
    ----------
    name : str
        As `check_catalogue` takes it.
    release : Release
    base : str
    """
    file = name = check_catalogue(name)
    if name in CATALOGUES:
        file = f"{release.name.replace('/', '_')}_{name}.fits.gz"
    medium = "_MRS_" in file
    survey, page = ("mrs", "medcas/catdl") if medium else ("lrs", "catdl")
    query = urlencode({"name": file})
    return file, [
        f"{base}/openapi/{release.name}/{survey}/catalog?{query}",
        f"{base}/{release.name}/{page}?{query}",
    ]


def tarball(source: str, release: Release, base: str, medium: bool) -> str:
    """Address of the spectra of one night, ``YYYYMMDD``; an address stays what it is.

    Raises
    ------
    UsageError
        If it is neither.
    """
    if source.startswith(("http://", "https://")):
        return check_address(source)
    if not NIGHT.fullmatch(source):
        raise UsageError(
            f"--from-tar {source!r} is neither a file, nor a night such as 20231101, "
            "nor an address."
        )
    survey = "mrs" if medium else "lrs"
    return f"{base}/{release.name}/tar/{survey}-fits/{source}.tar.gz"
