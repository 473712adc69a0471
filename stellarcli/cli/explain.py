"""``stellar explain``."""

from __future__ import annotations

from contextlib import ExitStack
from math import isfinite
from typing import TYPE_CHECKING, Annotated

import typer

from stellarcli.cli import options
from stellarcli.cli.reporting import (
    command_line,
    print_blocks,
    print_json,
    progress,
    report_reasons,
    say,
    start_log,
)

if TYPE_CHECKING:
    from stellarcli.comparison.tables import Block
    from stellarcli.explanation.importance import Importance
    from stellarcli.explanation.ranking import Window
    from stellarcli.explanation.windows import Windows


def explain(
    paths: options.Paths,
    output: options.Output,
    model: options.Model = "default",
    method: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="occlusion: how labels change when a window is replaced by the "
            "continuum. gradient: what each pixel adds to a label (integrated "
            "gradients). cam: activation maps of a convolutional stage, weighted by "
            "gradients where they are; gradcam: by their mean. attention: where "
            "spectrafm looks for each label. channel-attention: how much the head "
            "trusts each channel (spfusion, convnext1d).",
        ),
    ] = "occlusion",
    target: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES", help="Labels, such as teff,logg; all by default."
        ),
    ] = None,
    window: Annotated[
        float, typer.Option(metavar="ANGSTROM", help="Width of a window.")
    ] = 15.0,
    step: Annotated[
        float, typer.Option(metavar="ANGSTROM", help="From a window to the next.")
    ] = 5.0,
    start: Annotated[
        float | None,
        typer.Option(
            metavar="ANGSTROM",
            help="Where the windows begin, vacuum, rest frame. By default 4000 for "
            "occlusion, the model's first pixel otherwise.",
            show_default=False,
        ),
    ] = None,
    stop: Annotated[
        float | None,
        typer.Option(
            metavar="ANGSTROM",
            help="Where they end. By default 8095, or the model's last pixel; 5500 for "
            "channel-attention.",
            show_default=False,
        ),
    ] = None,
    stage: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Of the network, for cam and gradcam; by default the last one whose "
            "positions reach over at most 20 Å, so that lines are told apart.",
        ),
    ] = None,
    nodes: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Points between continuum and spectrum, for gradient: with 32 pixels "
            "add up to the label within 2 %, with 64 within 1 %.",
        ),
    ] = 32,
    each: Annotated[
        bool | None,
        typer.Option(
            "--each/--no-each",
            help="Keep the map of every spectrum in the output (FITS); by default "
            "only of cam, gradcam and channel-attention.",
            show_default=False,
        ),
    ] = None,
    images: options.Images = None,
    keep_flagged: Annotated[
        bool,
        typer.Option(
            "--keep-flagged", help="Use spectra that are not to be trusted, too."
        ),
    ] = False,
    figure: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Draw *.png, .pdf or .svg."),
    ] = None,
    panels: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Of the figure, one per label and: labels (all spectra), classes "
            "(O to M as predicted; usual for maps of a stage), examples (single "
            "spectra).",
            show_default=False,
        ),
    ] = None,
    examples: Annotated[
        int,
        typer.Option(
            metavar="N", help="Spectra of each class in such a figure, the best first."
        ),
    ] = 2,
    top: Annotated[
        int,
        typer.Option(
            metavar="N", help="Print the windows that matter most; 0 for none."
        ),
    ] = 10,
    device: options.Device = "auto",
    workers: options.Workers = None,
    overwrite: options.Overwrite = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print those windows as JSON instead.")
    ] = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    log: options.Log = None,
) -> None:
    """Show which wavelengths a model's labels come from.

    Writes importance over wavelength, in each label's own unit, averaged over all
    spectra; rows not to be trusted are left out and counted. Prints the windows that
    matter most, with the lines in them. A FITS output also has the mean spectrum and
    averages per spectral class.

    Examples:

      stellar explain spectra/ -o importance.fits --figure importance.png

      stellar explain @stars.txt -o logg.fits --target logg --top 20

      stellar explain prepared.fits -o maps.fits --method gradient -m mine.safetensors

      stellar explain spectra/ -o cam.fits --method cam --panels examples --figure c.pdf

      stellar explain clump.fits -o a.fits -m spf.safetensors --method channel-attention
    """
    from stellarcli.errors import ExitStatus, UsageError

    start_log(log, verbose)
    if json and output == "-":
        raise UsageError("--json and -o - both want standard output; name a file.")
    if top < 0 or examples < 1:
        raise UsageError("--top must be at least 0, --examples at least 1.")

    from stellarcli import catalog, devices, figures, inputs, parallel, provenance
    from stellarcli.explanation import (
        drawing,
        heatmap,
        importance,
        method_class,
        writing,
    )
    from stellarcli.explanation.request import Request

    method_class(method)
    request = Request(
        model=model,
        method=method,
        target=tuple(name.strip() for name in target.split(",")) if target else (),
        windows=_windows(model, method, start, stop, window, step),
        stage=stage or "",
        nodes=nodes,
        images=images or "",
        keep_flagged=keep_flagged,
        device=devices.choose_device(device),
        workers=parallel.check_workers(workers),
    )
    drawing.check_panels(panels)
    if figure:
        figures.check_output(figure, overwrite)
    name = catalog.check_output(output, overwrite)
    tasks = list(inputs.tasks(inputs.expand(paths, output), importance.TASK))
    best, weights = drawing.Examples(examples), heatmap.Weights()
    with ExitStack() as stack:
        spool = None
        usual = (*drawing.BY_CLASS, "channel-attention")
        if each or (each is None and method in usual):
            spool = stack.enter_context(writing.Spool(name))
        bar = stack.enter_context(progress(sum(map(len, tasks)), "spectra", quiet))

        def keep(maps: importance.Maps) -> None:
            best.keep(maps)
            if spool:
                spool.keep(maps)
            weights.keep(maps)

        found = importance.explain(tasks, request, keep=keep, progress=bar.update)
        cards = provenance.cards(command_line())
        writing.write(name, found, cards, spool, overwrite=True)
    if figure and method == "channel-attention":
        heatmap.draw(found, figure, weights, importance.channel_parts(request))
    elif figure:
        drawing.draw(found, figure, panels, best)
    report_reasons(found.summary.reasons, log, quiet)
    if not quiet:
        _report(found, output)
    _print_top(found, top, json, output)
    if found.summary.failed:
        raise typer.Exit(ExitStatus.INCOMPLETE)


def _windows(
    model: str,
    method: str,
    start: float | None,
    stop: float | None,
    width: float,
    step: float,
) -> Windows:
    """Windows as asked for; other methods than occlusion are shown in full."""
    import math

    from stellarcli import checkpoint, familiarity
    from stellarcli.explanation.windows import Windows

    low, high = Windows.start, Windows.stop
    loaded = checkpoint.load(model)
    seen = loaded.wavelength
    if method == "channel-attention":
        high = 5500.0  # as in SPFusion's figure 10
    elif method != "occlusion" and seen is not None:
        low, high = math.floor(seen[0]), math.ceil(seen[-1])
    elif seen is None and (familiar := loaded.part("familiar")):
        low, high = familiarity.reach(familiar)
    return Windows(
        low if start is None else start, high if stop is None else stop, width, step
    )


def _report(found: Importance, output: str) -> None:
    where = "standard output" if output == "-" else output
    say(f"{found.request.method} of {found.used} spectra in {where}")
    say(f"  {found.summary.failed} without values, {found.skipped} left out")
    for name, count in sorted(found.summary.flags.items(), key=lambda item: -item[1]):
        say(f"  {count:8d} {name}")


def _print_top(found: Importance, count: int, json: bool, output: str) -> None:
    from stellarcli.explanation import ranking

    ranked = {
        label.name: ranking.top(found, found.whole, n, count)
        for n, label in enumerate(found.labels)
    }
    if json:
        summary = {
            "model": found.model.name,
            "method": found.request.method,
            "spectra": found.used,
            "skipped": found.skipped,
            "failed": found.summary.failed,
        }
        windows = {name: [w.to_json() for w in top] for name, top in ranked.items()}
        print_json(summary | {"labels": windows})
    elif output != "-" and count:
        print_blocks([_block(found, name, top) for name, top in ranked.items()])


def _block(found: Importance, name: str, windows: list[Window]) -> Block:
    from stellarcli.comparison.tables import Block, heading

    unit = next(found.unit(label) for label in found.labels if label.name == name)
    rows = tuple(
        (
            ", ".join(window.lines) or "–",
            f"{window.low:.0f}–{window.high:.0f}",
            f"{window.importance:.3g}",
            f"{window.error:.1g}" if isfinite(window.error) else "–",  # of one star
            f"{window.signed:+.3g}",
        )
        for window in windows
    )
    head = ("lines", "Å (vacuum)", "importance", "±", "with sign")
    title = heading(name, unit) if found.in_units else name
    return Block(f"{title}: mean absolute {found.about}", head, rows)
