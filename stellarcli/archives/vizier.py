"""Catalogues of the CDS (VizieR), whole or matched with one's own table, by TAP.

The protocol is left to pyvo, an optional dependency.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable

import numpy as np

from stellarcli import catalog
from stellarcli.archives import orders
from stellarcli.archives.client import check_address
from stellarcli.catalog import DECLINATIONS, RIGHT_ASCENSIONS, Table
from stellarcli.errors import StellarError, UsageError

ADDRESS = "https://tapvizier.cds.unistra.fr/TAPVizieR/tap"
# the names of the tables in them are asked of VizieR
CATALOGUES = {
    "lamost-kepler-mk": ("J/AJ/151/13", "MK classes of LAMOST-Kepler stars"),
    "red-clump": ("J/MNRAS/512/1710", "masses and ages, He et al. 2022"),
    "apogee": ("III/286/catalog", "APOGEE-2 DR17 allStar"),
}
NAME = re.compile(r"[A-Za-z0-9][\w./+-]*", re.ASCII)
UPLOAD = 20_000  # rows matched at a time
MOST = 50_000_000  # rows asked for; servers' own defaults cut tables short
SEPARATION = "separation"


def service(address: str):
    """Open a TAP service.

    Raises
    ------
    UsageError
        If pyvo isn't installed, or the address is none.
    """
    if importlib.util.find_spec("pyvo") is None:
        raise UsageError(
            "catalogues of VizieR need pyvo; run: pip install 'stellarcli[vo]'."
        )
    import pyvo

    return pyvo.dal.TAPService(check_address(address))


def find_table(tap, name: str) -> str:
    """Full name of the table that is meant by a catalogue's name, or a table's.

    Raises
    ------
    UsageError
        If there is none, or the catalogue has several.
    """
    name = CATALOGUES.get(name.lower(), (name,))[0].strip("/")
    if not NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} is no name of VizieR's; such names look like J/AJ/151/13 or "
            f"J/AJ/151/13/table3. Also known: {', '.join(CATALOGUES)}."
        )
    found = _ask(
        tap,
        "SELECT table_name, description FROM TAP_SCHEMA.tables "
        f"WHERE table_name LIKE '%{name}%'",
    )
    tables = {
        orders.text(row["table_name"]).strip('"'): orders.text(row["description"])
        for row in found.rows
    }
    inside = [t for t in tables if t == name or t.startswith(f"{name}/")]
    if len(inside) == 1 or name in inside:
        return name if name in inside else inside[0]
    if not inside:
        raise UsageError(
            f"VizieR has no catalogue {name!r}; look for it at "
            "https://vizier.cds.unistra.fr."
        )
    listed = "; ".join(f"{table}: {tables[table][:80]}" for table in inside[:20])
    raise UsageError(f"catalogue {name} has {len(inside)} tables, name one: {listed}.")


def whole_table(tap, name: str) -> Table:
    """Fetch all rows and columns of a table; `name` as `find_table` returns it."""
    return _ask(tap, f'SELECT * FROM "{name}"')


def matched(
    tap,
    name: str,
    table: Table,
    radius: float,
    progress: Callable[[int], object] = lambda rows: None,
) -> tuple[np.ndarray, list[catalog.Column]]:
    """Match the rows of one's own table with those of VizieR's, on the sky.

    Parameters
    ----------
    tap : TAPService
    name : str
        As `find_table` returns it.
    table : Table
        With right ascension and declination in degrees.
    radius : float, arcsec
    progress : callable
        Told of rows that were matched.

    Returns
    -------
    rows : structured ndarray, shape (row,)
        The rows that have a match, in order, with all columns of both tables; of
        several matches the nearest. A name that both have gets ``_vizier``.
    columns : list of Column
    """
    if not 0 < radius <= 3600:
        raise UsageError(f"--radius {radius:g} must be above 0, at most 3600 arcsec.")
    ra = orders.column_of(table, RIGHT_ASCENSIONS, "right ascension in degrees")
    dec = orders.column_of(table, DECLINATIONS, "declination in degrees")
    if not len(ra):
        raise UsageError(f"{table.name} has no rows; check the filter in brackets.")
    place = _position_columns(tap, name)
    parts = []
    for start in range(0, len(ra), UPLOAD):
        rows = np.arange(start, min(start + UPLOAD, len(ra)))
        parts.append(_match(tap, name, place, rows, ra[rows], dec[rows], radius))
        progress(len(rows))
    return _joined(table, parts)


def _position_columns(tap, name: str) -> tuple[str, str]:
    found = _ask(
        tap,
        "SELECT column_name FROM TAP_SCHEMA.columns "
        f"WHERE table_name = '{name}' OR table_name = '\"{name}\"'",
    )
    names = [orders.text(value).strip('"') for value in found.rows["column_name"]]
    lower = {column.lower(): column for column in names}
    pairs = [("raj2000", "dej2000"), ("ra_icrs", "de_icrs"), ("ra", "dec")]
    pairs += [("_raj2000", "_dej2000"), ("_ra", "_de")]
    for ra, dec in pairs:
        if ra in lower and dec in lower:
            return lower[ra], lower[dec]
    raise UsageError(
        f"{name} has no columns of positions in degrees ({', '.join(names[:40])}); "
        "fetch it whole, without --match."
    )


def _match(tap, name, place, rows, ra, dec, radius) -> Table:
    from astropy.table import Table as AstropyTable

    good = np.isfinite(ra.astype(float)) & np.isfinite(dec.astype(float))
    mine = AstropyTable(
        {
            "stellar_row": rows[good].astype(np.int64),
            "stellar_ra": ra[good].astype(float),
            "stellar_dec": dec[good].astype(float),
        }
    )
    point = f'POINT(\'ICRS\', v."{place[0]}", v."{place[1]}")'
    own = "u.stellar_ra, u.stellar_dec"
    query = (
        f"SELECT u.stellar_row, DISTANCE({point}, POINT('ICRS', {own})) * 3600 AS "
        f'{SEPARATION}, v.* FROM "{name}" AS v JOIN TAP_UPLOAD.stellar AS u ON '
        f"1 = CONTAINS({point}, CIRCLE('ICRS', {own}, {radius / 3600:.10f}))"
    )
    return _ask(tap, query, {"stellar": mine})


def _joined(
    table: Table, parts: list[Table]
) -> tuple[np.ndarray, list[catalog.Column]]:
    """Columns of both tables, of the nearest match of each row."""
    index, which = [], []
    for part in parts:
        order = np.lexsort((part.rows[SEPARATION], part.rows["stellar_row"]))
        row, first = np.unique(part.rows["stellar_row"][order], return_index=True)
        index.append(row)
        which.append(order[first])
    rows = np.concatenate(index).astype(np.int64)
    taken = {name.lower() for name in table.rows.dtype.names}
    values = {name: table.rows[name][rows] for name in table.rows.dtype.names}
    columns = catalog.columns_of(table.rows, table.units)
    for column in catalog.columns_of(parts[0].rows, parts[0].units):
        if column.name == "stellar_row":
            continue
        name = column.name
        name = f"{name}_vizier" if name.lower() in taken else name
        pieces = [
            part.rows[column.name][chosen]
            for part, chosen in zip(parts, which, strict=True)
        ]
        values[name] = np.concatenate(pieces)
        columns.append(catalog.Column(name, column.dtype, column.unit))
    return catalog.rows(columns, values), columns


def _ask(tap, query: str, uploads: dict | None = None) -> Table:
    """Run a query and return its table.

    Raises
    ------
    StellarError
        If the service can't be reached, or refuses.
    """
    import warnings

    import pyvo
    import requests

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about deviations from the standard
            found = tap.search(query, maxrec=MOST, uploads=uploads)
            table = found.to_table()
    except (pyvo.dal.DALAccessError, requests.RequestException) as error:
        reason = " ".join(str(error).split())[:300]
        raise StellarError(
            f"the query to {tap.baseurl} failed: {reason}. Try again later, or give "
            "another --url."
        ) from None
    return catalog.from_astropy(table, "VizieR")
