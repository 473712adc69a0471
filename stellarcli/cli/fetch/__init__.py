"""``stellar fetch``: a file per source."""

from __future__ import annotations

import typer

from stellarcli.cli.fetch.lamost import lamost, lamost_catalogue
from stellarcli.cli.fetch.models import list_models, model
from stellarcli.cli.fetch.sdss import apogee, sdss, sdss_images
from stellarcli.cli.fetch.simulated import simulated
from stellarcli.cli.fetch.vizier import vizier

app = typer.Typer(no_args_is_help=True, help="Get spectra, catalogues and models.")


@app.callback()
def fetch() -> None:
    """Get spectra, catalogues and models.

    Files get their names when they are whole and verified; what is interrupted goes on
    with --resume.

    Examples:

      stellar fetch lamost --dr 10 --version v2.0 --obsid 176604010 -o raw/

      stellar fetch simulated -n 200 -o spectra/
    """


for name, command in (
    ("simulated", simulated),
    ("lamost", lamost),
    ("lamost-catalogue", lamost_catalogue),
    ("sdss", sdss),
    ("sdss-images", sdss_images),
    ("apogee", apogee),
    ("model", model),
    ("list", list_models),
    ("vizier", vizier),
):
    app.command(name)(command)
