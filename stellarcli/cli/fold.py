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
            help="Of the images; by default the recipe's, or 64x64, or else the one "
            "that fits nearest to a square.",
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
    from stellarcli import catalog, figures, folding, inputs

    target = catalog.check_output(output, overwrite, formats=("fits",))
    wanted = folding.parse_shape(shape)
    source = inputs.expand(["-"])[0] if prepared == "-" else prepared
    if png:
        figures.check_output(png, overwrite)
        folding.read_image(source, row, wanted)  # before the work
    if unfold:
        made = f"{folding.unfold_table(source, target)} spectra"
    else:
        rows, columns = wanted = folding.choose_shape(source, wanted)
        count = folding.fold_table(source, target, wanted)
        made = f"{count} images of {rows}x{columns} pixels"
    if png:
        figures.folded(source, wanted, row, png)
    if not quiet:
        say(f"{made} in {'standard output' if target == '-' else target}")
