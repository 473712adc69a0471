"""The command line: thin, one file per command, mirrored by ``man/``.

Commands parse, call one function of the library and print. Heavy imports are inside the
functions, so that ``--help`` and completion stay fast.
"""

from __future__ import annotations

from typing import Annotated

import typer

from stellarcli.cli import compare, explain, fetch, fold, predict, preprocess, train
from stellarcli.cli.reporting import Commands

app = typer.Typer(
    name="stellar",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={
        "help_option_names": ["-h", "--help"],
    },
)


def _version(wanted: bool) -> None:
    if wanted:
        from stellarcli import __version__

        typer.echo(f"stellar {__version__}")
        raise typer.Exit


@app.callback()
def stellar(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Turn raw survey spectra into a catalogue of stellar parameters.

    Examples:

      stellar fetch simulated -n 200 -o spectra/

      stellar predict spectra/ -o params.fits
    """


app.add_typer(fetch.app, name="fetch")
app.command("preprocess")(preprocess.preprocess)
app.command("fold")(fold.fold)
app.command("train")(train.train)
app.command("predict")(predict.predict)
app.command("compare")(compare.compare)
app.command("explain")(explain.explain)
