"""SDSS, BOSS, SDSS-V and APOGEE: addresses on the Science Archive Server.

Data models: https://data.sdss.org/datamodel/. Where a release keeps spectra of several
reductions, the table's RUN2D says which; without it, all are asked in turn.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from urllib.parse import quote

import numpy as np

from stellarcli.archives import orders
from stellarcli.archives.batch import repeated
from stellarcli.archives.client import Client
from stellarcli.archives.orders import Order
from stellarcli.archives.store import Item
from stellarcli.catalog import DECLINATIONS, RIGHT_ASCENSIONS, Table
from stellarcli.errors import FetchError, UsageError, unknown

ADDRESS = "https://data.sdss.org/sas"
SKYSERVER = "https://skyserver.sdss.org"
LEGACY = ("26", "103", "104")  # RUN2D of the SDSS spectrographs
EBOSS = {13: "v5_7_2", 14: "v5_10_0", 15: "v5_10_0", 16: "v5_13_0", 17: "v5_13_2"}
EBOSS |= dict.fromkeys((18, 19, 20), "v5_13_2")  # the last one
SDSS5 = {18: "v6_0_4", 19: "v6_1_3", 20: "v6_2_1"}
GROUPED = 20  # from here on, fields are in folders of a thousand
PRIOR = {"sdss": "sdss2-dr8-sdss", "eboss": "sdss4-dr17-eboss"}  # since DR18
APOGEE = {16: "r12", 17: "dr17"}  # reduction, by release
ASPCAP = {16: "l33", 17: "synspec_rev1"}
KINDS = ("star", "visit", "aspcap")
BANDS = "gri"
SKYSERVER_RATE = 1.0  # queries per second; it allows sixty a minute
RERUN = 301  # of all frames since DR8
TYPICAL = {"spectrum": 250_000, "frame": 4_000_000, "star": 1_500_000}  # bytes
NAME = re.compile(r"\w[\w.+-]*", re.ASCII)  # what may become part of an address
NEAREST = 0.1  # arcmin; within it the star has to be in the photometric catalogue


def parse_dr(text: str) -> int:
    """Read ``17`` or ``dr17``.

    Raises
    ------
    UsageError
        If it is neither.
    """
    digits = text.strip().lower().removeprefix("dr")
    if not (digits.isascii() and digits.isdigit() and 8 <= int(digits) < 100):
        raise UsageError(f"--dr {text!r} is no SDSS release; give 17 or 19, say.")
    return int(digits)


def spectra(base: str, table: Table, dr: int, full: bool = False) -> Order:
    """Order spectra by plate, mjd and fiber, or by field, mjd and catalogid (SDSS-V).

    Parameters
    ----------
    base : str
    table : Table
        With these columns; ``run2d`` is heeded where it is there.
    dr : int
        Release.
    full : bool
        Files with all single exposures, instead of the small ones.

    Raises
    ------
    UsageError
        If the columns are missing, or have no rows.
    """
    fifth = table.find("catalogid", "sdss_id") is not None and table.find("field")
    if fifth:
        names = (("field",), ("mjd",), ("catalogid",))
        what, addresses = "SDSS-V fields, MJDs and catalogids", _sdss5
        template = "spec-{:06d}-{:05d}-{}.fits"
        cards = ("FIELDID", "MJD", "CATALOGID")
    else:
        names = (("plate",), ("mjd",), ("fiberid", "fiber"))
        what, addresses = "SDSS plates, MJDs and fibers", _plates
        template = "spec-{:04d}-{:05d}-{:04d}.fits"
        cards = ("PLATEID", "MJD", "FIBERID")
    numbers = _numbers(table, names, what)
    run = table.find("run2d")
    runs = [orders.text(v) for v in table.rows[run].tolist()] if run else []
    runs = [word if NAME.fullmatch(word) else "" for word in runs]
    kind = "full" if full else "lite"

    def item(key: str) -> Item:
        *triple, run2d = key.split("/")[3:]
        values = [int(word) for word in triple]
        paths = addresses(values, dr, run2d, kind)
        return Item(
            key,
            tuple(f"{base}/{path}" for path in paths),
            template.format(*values),
            dict(zip(cards[:3], values, strict=True)) if not fifth else {},
        )

    keys = [
        f"sdss/dr{dr}/{kind}/{'/'.join(map(str, row))}/{runs[n] if runs else ''}"
        if all(row)
        else ""
        for n, row in enumerate(numbers)
    ]
    return Order(table, {"file": keys}, item, TYPICAL["spectrum"])


def _plates(values: list[int], dr: int, run2d: str, kind: str) -> list[str]:
    plate, mjd, fiber = values
    file = f"{plate:04d}/spec-{plate:04d}-{mjd:05d}-{fiber:04d}.fits"
    runs = [run2d] if run2d else [*([EBOSS[dr]] if dr in EBOSS else []), *LEGACY]
    if not run2d and plate < 3510:  # the first plate of the BOSS spectrographs
        runs = [*LEGACY, *runs[: -len(LEGACY)]]
    paths = []
    for run in runs:
        survey = "sdss" if run in LEGACY else "eboss"
        trees = [f"dr{dr}/{survey}/spectro/redux/{run}/spectra"]
        if dr >= 18:
            prior = f"dr{dr}/prior-surveys/{PRIOR[survey]}/spectro/redux/{run}/spectra"
            trees = [prior, f"dr{dr}/spectro/{survey}/redux/{run}/spectra"]
        for tree in trees:
            paths += [f"{tree}/{kind}/{file}"]
            if kind == "full" or dr >= 18:  # not all have a folder of that name
                paths += [f"{tree}/{file}"]
    return paths


def _sdss5(values: list[int], dr: int, run2d: str, kind: str) -> list[str]:
    field, mjd, catalogid = values
    run = run2d or SDSS5.get(dr)
    if run is None:
        raise UsageError(
            f"which reduction (RUN2D) SDSS DR{dr} has of its fields isn't known here "
            f"({', '.join(f'DR{n}: {v}' for n, v in SDSS5.items())}); add a column "
            "run2d to the table."
        )
    tree = f"dr{dr}/spectro/boss/redux/{run}/spectra"
    end = f"{field:06d}/{mjd}/spec-{field:06d}-{mjd}-{catalogid}.fits"
    if dr >= GROUPED:
        return [f"{tree}/daily/{kind}/{field // 1000:03d}XXX/{end}"]
    return [
        f"{tree}/{kind}/{end}",
        f"dr{dr}/spectro/sdss/redux/{run}/spectra/{kind}/{field}p/{mjd}/"
        f"spec-{field}-{mjd}-{catalogid}.fits",
    ]


def _numbers(table: Table, names, what: str) -> list[tuple[int | None, ...]]:
    columns = [orders.column_of(table, choices, what) for choices in names]
    if not len(columns[0]):
        raise UsageError(f"{table.name} has no rows; check the filter in brackets.")
    return [
        tuple(orders.whole(value) for value in row)
        for row in zip(*(column.tolist() for column in columns), strict=True)
    ]


def images(
    base: str,
    skyserver: Client,
    table: Table,
    dr: int,
    retries: int,
    progress: Callable[[int], object] = lambda count: None,
) -> Order:
    """Order the g, r and i frames that contain each star.

    Frames are calibrated images (nanomaggies, 0.396″ a pixel). Where the table has no
    columns run, camcol and field, SkyServer is asked for each position.

    Parameters
    ----------
    base : str
        Of the Science Archive Server.
    skyserver : Client
    table : Table
        With run, camcol and field, or with ra and dec.
    dr : int
    retries : int
    progress : callable
        Told of every position that was asked for.

    Raises
    ------
    UsageError
        If it has neither.
    """
    troubles: dict[str, FetchError] = {}
    if all(table.find(name) for name in ("run", "camcol", "field")):
        names = (("run",), ("camcol",), ("field",))
        frames = _numbers(table, names, "frames")
    else:
        ra = orders.column_of(table, RIGHT_ASCENSIONS, "right ascension in degrees")
        dec = orders.column_of(table, DECLINATIONS, "declination in degrees")
        frames = []
        for place in zip(ra.tolist(), dec.tolist(), strict=True):
            frames.append(_frame(skyserver, place, dr, retries, troubles))
            progress(1)
    keys = {
        f"image_{band}": [
            _frame_key(dr, frame, band) if all(frame) else _place_key(frame)
            for frame in frames
        ]
        for band in BANDS
    }
    item = partial(_frame_item, base)
    return Order(table, keys, item, TYPICAL["frame"], troubles)


def _frame_key(dr: int, frame: tuple, band: str) -> str:
    run, camcol, field = frame
    return f"sdss/dr{dr}/frame/{run}/{camcol}/{field}/{band}"


def _place_key(frame: tuple) -> str:
    """Key of a position without a frame, under which its trouble is known."""
    return frame[0] if frame and isinstance(frame[0], str) else ""


def _frame(
    client: Client, place: tuple, dr: int, retries: int, troubles: dict
) -> tuple:
    """Run, camcol and field of the photometric object nearest to a position."""
    try:
        ra, dec = (float(value) for value in place)
    except ValueError:
        return ("", 0, 0)
    if not (np.isfinite((ra, dec)).all() and 0 <= ra <= 360 and -90 <= dec <= 90):
        return ("", 0, 0)
    query = (
        "SELECT p.run, p.camcol, p.field FROM "
        f"dbo.fGetNearestObjEq({ra:.7f}, {dec:.7f}, {NEAREST}) AS n "
        "JOIN PhotoObjAll AS p ON p.objID = n.objID"
    )
    address = f"{client.base}/dr{dr}/SkyServerWS/SearchTools/SqlSearch"
    key = f"sdss/dr{dr}/position/{ra:.6f}/{dec:.6f}"

    def ask() -> Table:
        content, _ = client.content(address, {"cmd": query, "format": "csv"})
        return orders.parse_answer(content, "SkyServer's answer")

    try:
        found = repeated(client, ask, retries)
        columns = [found.find(name) for name in ("run", "camcol", "field")]
        if None in columns or not len(found.rows):
            raise FetchError("no SDSS frame has a star at this position")
        return tuple(orders.whole(found.rows[column][0]) for column in columns)
    except FetchError as error:
        troubles[key] = error
        return (key, 0, 0)


def _frame_item(base: str, key: str) -> Item:
    parts = key.split("/")
    if parts[2] == "position":
        return Item(key, (), "no-frame.fits.bz2")
    dr, run, camcol, field, band = parts[1], *map(int, parts[3:6]), parts[6]
    name = f"frame-{band}-{run:06d}-{camcol}-{field:04d}.fits.bz2"
    tree = "eboss/photoObj" if int(dr[2:]) >= 13 else "boss/photoObj"
    trees = (tree, "prior-surveys/sdss4-dr17-eboss/photoObj")
    paths = (f"{base}/{dr}/{t}/frames/{RERUN}/{run}/{camcol}/{name}" for t in trees)
    cards = {"RUN": run, "CAMCOL": camcol, "FILTER": band}
    return Item(key, tuple(paths), name, cards)


def apogee(base: str, table: Table, dr: int, kind: str = "star") -> Order:
    """Order APOGEE spectra.

    Parameters
    ----------
    base : str
    table : Table
        With apogee_id, telescope and field, as in allStar; for visits with telescope,
        field, plate, mjd and fiberid, as in allVisit.
    dr : int
    kind : {'star', 'visit', 'aspcap'}
        Combined spectrum, single visits, or the normalised one of the pipeline.

    Raises
    ------
    UsageError
        If the release or the kind is none, or columns are missing.
    """
    if dr not in APOGEE:
        raise unknown("APOGEE release", f"dr{dr}", [f"dr{n}" for n in APOGEE])
    if kind not in KINDS:
        raise unknown("kind of APOGEE spectrum", kind, KINDS)
    names = ["telescope", "field"]
    names += ["plate", "mjd", "fiberid"] if kind == "visit" else ["apogee_id"]
    what = f"APOGEE {kind} spectra"
    columns = [orders.column_of(table, (name,), what).tolist() for name in names]
    if not columns[0]:
        raise UsageError(f"{table.name} has no rows; check the filter in brackets.")
    keys = []
    for cells in zip(*columns, strict=True):
        words = [orders.text(cell) for cell in cells]
        safe = all(NAME.fullmatch(word) for word in words)
        if kind == "visit" and not orders.whole(words[-1]):
            safe = False
        keys.append(f"apogee/dr{dr}/{kind}/{'/'.join(words)}" if safe else "")
    item = partial(_apogee_item, base, dr, kind)
    return Order(table, {"file": keys}, item, TYPICAL["star"])


def _apogee_item(base: str, dr: int, kind: str, key: str) -> Item:
    telescope, field, *rest = key.split("/")[3:]
    letters = "as" if telescope.startswith("lco") else "ap"
    tree = f"{base}/dr{dr}/apogee/spectro"
    reduction, place = APOGEE[dr], f"{telescope}/{field}"
    if kind == "visit":
        plate, mjd, fiber = rest[0], rest[1], int(float(rest[2]))
        name = f"{letters}Visit-{reduction}-{plate}-{mjd}-{fiber:03d}.fits"
        path = f"redux/{reduction}/visit/{place}/{plate}/{mjd}/{name}"
        cards = {"FIBERID": fiber}
    else:
        first = f"{letters}Star" if kind == "star" else "aspcapStar"
        name = f"{first}-{reduction}-{rest[0]}.fits"
        path = f"redux/{reduction}/stars/{place}/{name}"
        if kind == "aspcap":
            path = f"aspcap/{reduction}/{ASPCAP[dr]}/{place}/{name}"
        cards = {"OBJID": rest[0]}
    return Item(key, (f"{tree}/{quote(path)}",), name, cards)
