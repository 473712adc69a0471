"""``stellar preprocess``."""

from __future__ import annotations

from typing import Annotated

import typer

from stellarcli.cli import options
from stellarcli.cli.reporting import (
    command_line,
    progress,
    report_reasons,
    say,
    sayer,
    start_log,
)


def preprocess(
    paths: options.Paths,
    output: options.Output,
    recipe: Annotated[
        str,
        typer.Option(
            "--recipe",
            "-r",
            metavar="NAME|FILE",
            help="Built-in recipe (default, scanet, mkresnet, rdn, spfusion, "
            "spectrafm), a YAML file, or a model file whose recipe to use.",
        ),
    ] = "default",
    labels: Annotated[
        str | None,
        typer.Option(
            metavar="CATALOGUE",
            help="Table whose columns travel along, joined by identifier, file name "
            "or sky position.",
        ),
    ] = None,
    radius: Annotated[
        float,
        typer.Option(metavar="ARCSEC", help="Of the join on the sky."),
    ] = 3.0,
    figure: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Draw one spectrum before and after (png, pdf), and its images.",
        ),
    ] = None,
    figure_row: Annotated[
        int | None,
        typer.Option(
            "--row", metavar="N", help="Input that --figure draws, counted from 0."
        ),
    ] = None,
    exposures: options.Exposures = False,
    rv: options.Velocity = "header",
    images: options.Images = None,
    workers: options.Workers = None,
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    log: options.Log = None,
) -> None:
    """Bring spectra onto one grid, normalise them, and write a prepared table.

    The table holds recipe, wavelengths, flux and inverse variance, what the survey says
    about each spectrum, and flags. 'train', 'predict' and 'fold' take it.

    Examples:

      stellar preprocess spectra/ -o prepared.fits --labels labels.fits

      stellar preprocess spectra/ -o prepared.fits --recipe scanet --figure star.png

      stellar preprocess mrs/ -o prepared.fits --recipe rdn --rv measure

      stellar preprocess clump/ -o prepared.fits -r spfusion --images clump/frames
    """
    start_log(log, verbose)
    from stellarcli import (
        catalog,
        checkpoint,
        figures,
        inputs,
        parallel,
        preparation,
        provenance,
        tabulation,
        velocity,
    )
    from stellarcli.errors import ExitStatus, NoUsableSpectraError, UsageError

    target = catalog.check_output(output, overwrite, formats=("fits",))
    chosen = checkpoint.find_recipe(recipe)
    table = catalog.read(labels) if labels else None
    found = inputs.expand(paths, output, sayer(quiet))
    if figure:
        figures.check_output(figure, overwrite)
        if figure_row is not None:
            figures.read_row(found, figure_row)  # before the work
    elif figure_row is not None:
        raise UsageError("--row says what --figure draws; give both, or neither.")
    tasks = list(inputs.tasks(found, preparation.CHUNK))
    with progress(sum(map(len, tasks)), "spectra", quiet) as bar:
        summary = tabulation.write_table(
            tasks,
            target,
            chosen,
            labels=table,
            radius=radius,
            exposures=exposures,
            velocities=velocity.Source.of(rv, radius),
            images=images or "",
            workers=parallel.check_workers(workers),
            cards=provenance.cards(command_line()),
            progress=bar.update,
        )
    if figure:
        figures.before_and_after(found, chosen, figure, figure_row, images or "")
    report_reasons(summary.reasons, log, quiet)
    if not quiet:
        where = "standard output" if output == "-" else target
        say(f"{summary.rows} spectra in {where}, {summary.failed} without a good pixel")
        if table is not None:
            say(f"  {summary.matched} of {summary.rows} matched a row of {labels}")
        if images:
            say(f"  {summary.pictured} of {summary.rows} have an image of {images}")
    if summary.failed == summary.rows:
        raise NoUsableSpectraError(f"none of {summary.rows} inputs has a good pixel.")
    if summary.failed:
        raise typer.Exit(ExitStatus.INCOMPLETE)
