"""``stellar compare``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from stellarcli.cli import options
from stellarcli.cli.reporting import command_line, print_blocks, print_json, say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stellarcli.comparison.accuracy import Comparison, Request
    from stellarcli.comparison.tables import Block


def compare(
    catalogues: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="CATALOGUE...",
            help="Catalogues of any program, the truth last; - is standard input, "
            "file.fits[snr>10] some rows. Or outcomes of sweeps (*.runs.csv).",
            show_default=False,
        ),
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(
            "--column",
            metavar="[SIDE:]NAME=COLUMN",
            help="What a column is, e.g. teff=Teff_lasp, truth:snr=snrg or 1:objid=ID. "
            "SIDE is truth or the catalogue's number; without it, those that have such "
            "a column. Repeatable.",
        ),
    ] = None,
    unit: Annotated[
        list[str] | None,
        typer.Option(
            "--unit",
            metavar="[SIDE:]LABEL=UNIT",
            help="Unit of a column that has none, or with SIDE of any. Repeatable.",
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES", help="Labels, such as teff,logg; all in common by default."
        ),
    ] = None,
    radius: Annotated[
        float,
        typer.Option(
            metavar="ARCSEC",
            help="How near rows must be that neither identifier nor file matches.",
        ),
    ] = 3.0,
    select: Annotated[
        str | None,
        typer.Option(
            metavar="EXPRESSION",
            help='Rows to count, such as "clean and snrg > 25", in columns of the '
            "truth, or else of the catalogue.",
        ),
    ] = None,
    drop_flagged: Annotated[
        bool, typer.Option("--drop-flagged", help="Leave out rows not to be trusted.")
    ] = False,
    by: Annotated[
        list[str] | None,
        typer.Option(
            "--by",
            metavar="NAME[=EDGES]",
            help="Also in bins of a column, e.g. snr, or teff=4000,5000,6000. "
            "Repeatable.",
        ),
    ] = None,
    repeats: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="Precision from rows of the same star, as this column tells (of the "
            "catalogue, or of a last one; else the position). No truth is needed.",
        ),
    ] = None,
    paper: Annotated[
        str | None,
        typer.Option(
            "--published",
            metavar="PAPER",
            help="Add what a paper printed, on other data: scanet, mkresnet, rdn or "
            "spfusion.",
        ),
    ] = None,
    architectures: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Instead of catalogues, the sizes and speeds of a paper's networks: "
            "scanet, mkresnet, rdn, spfusion or spectrafm.",
        ),
    ] = None,
    latency: Annotated[
        bool,
        typer.Option(
            "--latency/--no-latency", help="With --architectures, time them, too."
        ),
    ] = True,
    device: options.Device = "cpu",
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Also write *.fits, .csv, .ecsv (all numbers), .tex or .md (the "
            "tables); - is FITS on standard output, instead of text.",
            show_default=False,
        ),
    ] = None,
    figure: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Draw *.png, .pdf or .svg."),
    ] = None,
    panels: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Of the figure: density, residuals, bins, calibration, errors, map, "
            "bias (the last two over Teff and log g); two at most fit one column of a "
            "journal, more take the page's width.",
        ),
    ] = None,
    overwrite: options.Overwrite = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print all numbers as JSON instead of text.")
    ] = False,
    quiet: options.Quiet = False,
) -> None:
    """Compare catalogues with the truth, with each other, or with repeats.

    Rows are matched by object identifier, else file name, else position. Prints
    accuracy, calibration of the errors and, of several models, who is better on the
    same stars. Flagged rows count; rows without a value are counted apart.

    Examples:

      stellar compare params.fits truth.fits --figure accuracy.pdf

      stellar compare mine.fits theirs.csv truth.fits --column teff=Teff_lasp --by snr

      stellar compare params.fits labels.fits --select "clean and snrg > 25" -o t.tex

      stellar compare params.fits stars.csv --repeats star

      stellar predict spectra/ -o - | stellar compare - truth.fits --json
    """
    from stellarcli.errors import UsageError

    sources = list(catalogues or [])
    if json and output == "-":
        raise UsageError("--json and -o - both want standard output; name a file.")
    if bool(sources) == bool(architectures):
        raise UsageError(
            "name catalogues to compare, the truth last, or give --architectures."
        )
    target_file = _checked(output, figure, overwrite, sources)
    how = {"output": target_file, "json": json}
    if architectures:
        _architectures(architectures, latency, device, quiet, **how)
        return

    from stellarcli.comparison.accuracy import Request

    request = Request(
        columns=column or (),
        units=unit or (),
        target=[name.strip() for name in target.split(",")] if target else (),
        select=select,
        by=by or (),
        radius=radius,
        drop_flagged=drop_flagged,
        paper=paper,
    )
    if repeats:
        _no_figure(figure, "--repeats")
        _repeats(sources, repeats, request, quiet, **how)
    elif _is_sweep(sources):
        _no_figure(figure, "outcomes of sweeps")
        _runs(sources, paper, **how)
    else:
        _accuracy(sources, request, figure, panels, quiet, **how)


def _checked(
    output: str | None, figure: str | None, overwrite: bool, sources: Sequence[str]
) -> str | None:
    """Check all outputs before anything is computed."""
    from stellarcli.errors import UsageError

    if figure:
        from stellarcli import figures

        figures.check_output(figure, overwrite)
    if not output:
        return None
    from stellarcli.comparison import writing

    target = writing.check_output(output, overwrite)
    if target != "-" and target in sources:
        raise UsageError(f"{target} is to be compared; give another --output.")
    return target


def _no_figure(figure: str | None, what: str) -> None:
    from stellarcli.errors import UsageError

    if figure:
        raise UsageError(f"there is no figure of {what}; leave --figure out.")


def _is_sweep(sources: Sequence[str]) -> bool:
    from stellarcli.comparison import runs

    return any(runs.is_sweep(source) for source in sources)


def _accuracy(
    sources: Sequence[str],
    request: Request,
    figure: str | None,
    panels: str | None,
    quiet: bool,
    **how: Any,
) -> None:
    from stellarcli.comparison import accuracy, drawing, tables, writing

    chosen = drawing.parse_panels(panels)
    found: Comparison = accuracy.compare(sources, request)
    if figure:
        drawing.draw(found, figure, chosen)
    _notes(found.notes, quiet)
    _deliver(found, tables.blocks(found), writing.records(found), **how)


def _repeats(
    sources: Sequence[str], column: str, request: Request, quiet: bool, **how: Any
) -> None:
    from stellarcli.comparison import repeats, tables, writing

    found = repeats.repeats(sources, column, request)
    _notes(found.notes, quiet)
    _deliver(found, tables.repeat_blocks(found), writing.repeat_records(found), **how)


def _runs(sources: Sequence[str], paper: str | None, **how: Any) -> None:
    from stellarcli.comparison import runs, tables, writing

    found = runs.average(sources, paper)
    _deliver(found, tables.run_blocks(found), writing.run_records(found), **how)


def _notes(notes: Sequence[str], quiet: bool) -> None:
    for note in () if quiet else notes:
        say(note)


def _deliver(
    found: Any,
    blocks: Sequence[Block],
    records: Sequence[dict],
    output: str | None,
    json: bool,
) -> None:
    """Write the output file, and print text or JSON unless FITS goes there."""
    from stellarcli import provenance
    from stellarcli.comparison import writing

    if output:
        cards = provenance.cards(command_line())
        writing.write(output, blocks, records, cards)
    if json:
        print_json(found.to_json())
    elif output != "-":
        print_blocks(blocks)


def _architectures(
    name: str, latency: bool, device: str, quiet: bool, output: str | None, json: bool
) -> None:
    from stellarcli import architectures, devices

    rows = architectures.table(
        name,
        latency=latency,
        device=devices.choose_device(device),
        progress=lambda row: (
            None if quiet else say(f"  {row['variant']} {row['conv']}")
        ),
    )
    if output:
        from stellarcli import provenance
        from stellarcli.comparison import writing

        writing.write_architectures(output, rows, provenance.cards(command_line()))
    if json:
        print_json(rows)
    elif output != "-":
        typer.echo(architectures.to_text(rows))
