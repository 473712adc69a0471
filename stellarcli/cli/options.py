"""Options that several commands share, declared once."""

from __future__ import annotations

from typing import Annotated

import typer

Output = Annotated[
    str,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        help="Output file; - is standard output, !FILE replaces an existing one.",
    ),
]
Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        metavar="NAME|FILE",
        envvar="STELLAR_MODEL",
        help="Shipped model or a file of 'stellar train'.",
    ),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace an existing output.")
]
Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet", "-q", envvar="STELLAR_QUIET", help="No progress and no summary."
    ),
]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Log and stage times on standard error.")
]
Log = Annotated[
    str | None,
    typer.Option(
        "--log", metavar="FILE", envvar="STELLAR_LOG", help="Append the log to FILE."
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        "-j",
        metavar="N",
        envvar="STELLAR_WORKERS",
        help="Processes; by default one per core that this job may use.",
        show_default=False,
    ),
]
Device = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="NAME",
        envvar="STELLAR_DEVICE",
        help="auto, cpu, cuda or cuda:N.",
    ),
]
Exposures = Annotated[
    bool,
    typer.Option(
        "--exposures", help="A row for every single exposure that a file holds."
    ),
]
Velocity = Annotated[
    str,
    typer.Option(
        "--rv",
        metavar="SOURCE",
        help="Radial velocities: header; measure, by cross-correlation; auto, which "
        "measures where the header has none; or a catalogue with a column rv (km/s).",
    ),
]
Images = Annotated[
    str | None,
    typer.Option(
        "--images",
        metavar="DIR|TABLE",
        help="Images of the stars: a directory of frames, or a table with columns "
        "image_g, image_r, image_i, as 'fetch sdss-images' writes it, joined by "
        "identifier or position.",
        show_default=False,
    ),
]
ModelVelocity = Annotated[
    str,
    typer.Option(
        "--rv",
        metavar="SOURCE",
        help="Radial velocities: header; measure, by cross-correlation; auto, which "
        "measures where the header has none; or a catalogue with a column rv (km/s). "
        "By default what the model was trained with: auto or header.",
        show_default=False,
    ),
]
Paths = Annotated[
    list[str],
    typer.Argument(
        metavar="PATHS...",
        help="Files, directories, quoted globs, prepared tables; @list: the paths in a "
        "text file, or in a catalogue with a column of them, which may also be named "
        "alone; - is a table on standard input.",
        show_default=False,
    ),
]
