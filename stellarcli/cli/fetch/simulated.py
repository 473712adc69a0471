"""``stellar fetch simulated``: files of stars that nobody has observed."""

from __future__ import annotations

from typing import Annotated

import typer

from stellarcli.cli import options
from stellarcli.cli.reporting import command_line, say


def simulated(
    output: Annotated[
        str,
        typer.Option(
            "--output", "-o", metavar="DIR", help="Directory; made if missing."
        ),
    ],
    number: Annotated[
        int, typer.Option("--number", "-n", metavar="N", min=1, help="Spectra.")
    ] = 100,
    survey: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Whose files to imitate: lamost-lrs, lamost-mrs or apogee.",
        ),
    ] = "lamost-lrs",
    snr: Annotated[
        str | None,
        typer.Option(
            metavar="X|LOW:HIGH",
            help="Signal-to-noise ratio in g, of medium resolution in the blue arm; by "
            "default as LAMOST's.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(
            metavar="N", min=0, max=999999, help="Same seed, same stars and noise."
        ),
    ] = 1,
    ranges: Annotated[
        list[str] | None,
        typer.Option(
            "--range",
            metavar="LABEL=LOW:HIGH",
            help="Limits of teff, logg, feh; several with commas or repeated. By "
            "default the trained range of the shipped model.",
            show_default=False,
        ),
    ] = None,
    images: Annotated[
        bool,
        typer.Option(
            "--images",
            help="Make red-clump stars with simulated masses and ages, and SDSS-like "
            "g, r and i frames of them in DIR/frames.",
        ),
    ] = False,
    labels_out: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Table of file, objid and true labels."),
    ] = None,
    table: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Table of the paths written; - pipes it to 'predict -'.",
        ),
    ] = None,
    uncompressed: Annotated[
        bool, typer.Option("--no-gzip", help="Write .fits instead of .fits.gz.")
    ] = False,
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
) -> None:
    """Write simulated survey files with known labels.

    Spectra come from a small emulator inside the package; velocities, reddening, noise
    and bad pixels are as in LAMOST DR10. Those of medium resolution (lamost-mrs) come
    from a line list and a synthesis in miniature, with fifteen abundances; apogee is
    combined spectra of dwarfs in the H band, after El-Badry et al. 2018. The survey's
    reader can't tell the files from real ones, their header can.

    Examples:

      stellar fetch simulated -n 200 -o spectra/ --labels-out truth.fits

      stellar fetch simulated -n 50 -o dwarfs/ --range teff=4000:7000,logg=4:5 --snr 50

      stellar fetch simulated --survey lamost-mrs -n 50 -o mrs/ --labels-out truth.fits

      stellar fetch simulated --images -n 300 -o clump/ --labels-out truth.fits
    """
    from stellarcli import catalog, provenance, simulation

    for path in (labels_out, table):
        if path:
            catalog.check_output(path, overwrite)
    stars = simulation.fetch(
        output,
        number,
        survey,
        seed=seed,
        snr=simulation.parse_snr(snr),
        ranges=simulation.parse_ranges(ranges or [], survey),
        compress=not uncompressed,
        images=images,
        overwrite=overwrite,
    )
    cards = provenance.cards(command_line())
    if labels_out:
        simulation.write_truth(labels_out, stars, cards, overwrite)
    if table:
        simulation.write_paths(table, stars, output, cards, overwrite)
    if not quiet:
        say(f"{len(stars)} spectra in {output}")
        if images:
            say(f"  simulated red-clump stars, their frames in {output}/frames")
