"""``stellar fetch vizier``."""

from __future__ import annotations

from typing import Annotated

import typer

from stellarcli.cli import options
from stellarcli.cli.reporting import command_line, progress, say


def vizier(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="Catalogue or table, such as J/AJ/151/13; or lamost-kepler-mk, "
            "red-clump, apogee.",
            show_default=False,
        ),
    ],
    output: options.Output,
    match: Annotated[
        str | None,
        typer.Option(
            metavar="TABLE",
            help="Only rows near a position (ra, dec) of this table, with its columns.",
        ),
    ] = None,
    radius: Annotated[
        float, typer.Option(metavar="ARCSEC", help="How near, with --match.")
    ] = 3.0,
    url: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            envvar="STELLAR_VIZIER_URL",
            help="TAP service; that of VizieR by default.",
            show_default=False,
        ),
    ] = None,
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
) -> None:
    """Fetch a catalogue of VizieR, or match it with a table.

    Needs pyvo: pip install 'stellarcli[vo]'.

    Examples:

      stellar fetch vizier red-clump -o red_clump.fits

      stellar fetch vizier lamost-kepler-mk --match stars.fits -o stars_mk.fits
    """
    from stellarcli import catalog, provenance
    from stellarcli.archives import vizier as archive

    catalog.check_output(output, overwrite)
    mine = catalog.read(match) if match else None
    tap = archive.service(url or archive.ADDRESS)
    found = archive.find_table(tap, name)
    if mine is None:
        whole = archive.whole_table(tap, found)
        rows, columns = whole.rows, catalog.columns_of(whole.rows, whole.units)
    else:
        with progress(len(mine.rows), "rows", quiet) as bar:
            rows, columns = archive.matched(tap, found, mine, radius, bar.update)
    cards = provenance.cards(command_line(), table=(found, "table of VizieR"))
    catalog.write(output, rows, columns, cards, overwrite)
    if not quiet:
        say(f"{len(rows)} rows of {found} in {output}")
