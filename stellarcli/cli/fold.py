"""``stellar fold``."""

from __future__ import annotations

from typing import Annotated

import typer

from stellarcli.cli import options
from stellarcli.cli.reporting import say


def fold(
    prepared: Annotated[
        str,
        typer.Argument(
            metavar="PREPARED",
            help="Prepared table, or with --unfold a folded one; - is standard input.",
        ),
    ],
    output: options.Output,
    shape: Annotated[
        str | None,
        typer.Option(
            metavar="ROWSxCOLUMNS",
            help="Of the images; the recipe's by default, or 64x64.",
            show_default=False,
        ),
    ] = None,
    unfold: Annotated[
        bool, typer.Option("--unfold", help="Turn images into spectra again.")
    ] = False,
    png: Annotated[
        str | None, typer.Option(metavar="FILE", help="Draw one image.")
    ] = None,
    row: Annotated[
        int, typer.Option(metavar="N", help="Spectrum that --png draws, from 0.")
    ] = 0,
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
) -> None:
    """Fold spectra in S shape into images, or unfold them bit for bit.

    Row 0 of an image holds the bluest pixels from left to right, row 1 the next ones
    from right to left, and so on. HDUs IMAGES and IVAR_IMAGES are cubes (spectrum, row,
    column), WAVELENGTH is an image of the same shape.

    Examples:

      stellar preprocess spectra/ -r scanet -o prepared.fits

      stellar fold prepared.fits -o folded.fits --png star.png

      stellar fold folded.fits -o again.fits --unfold
    """
    from stellarcli import catalog, folding, inputs

    target = catalog.check_output(output, overwrite, formats=("fits",))
    source = inputs.expand(["-"])[0] if prepared == "-" else prepared
    if unfold:
        count = folding.unfold_table(source, target)
    else:
        count = folding.fold_table(source, target, folding.parse_shape(shape))
    if png:
        from stellarcli import figures

        figures.folded(source, folding.parse_shape(shape), row, png)
    if not quiet:
        what = "spectra" if unfold else "images"
        say(f"{count} {what} in {'standard output' if target == '-' else target}")
