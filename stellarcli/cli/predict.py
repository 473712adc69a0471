"""``stellar predict``."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

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

if TYPE_CHECKING:
    from stellarcli.runs import Run, Summary


def predict(
    paths: options.Paths,
    output: options.Output,
    model: options.Model = "default",
    precision: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="float32, bfloat16, or auto: bfloat16 where it is fast and harmless.",
        ),
    ] = "auto",
    device: options.Device = "auto",
    workers: options.Workers = None,
    exposures: options.Exposures = False,
    rv: options.ModelVelocity = "",
    images: options.Images = None,
    dropout: Annotated[
        float,
        typer.Option(
            metavar="RATE",
            help="Dropout while predicting, such as 0.1: every network then votes ten "
            "times, and errors show how far the votes differ.",
        ),
    ] = 0.0,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Do only the I-th of N shares (I from 1); auto takes both from a "
            "Slurm array. The shard that finishes last writes the table.",
        ),
    ] = None,
    merge: Annotated[
        bool,
        typer.Option(
            "--merge",
            help="PATHS are outputs of shards that could not write to one place (or "
            "whole catalogues): write the one table.",
        ),
    ] = False,
    dask: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Compute on the Dask cluster of this scheduler (tcp://HOST:PORT, or "
            "the scheduler's file).",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted run.")
    ] = False,
    overwrite: options.Overwrite = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print a summary as JSON on standard output.")
    ] = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    log: options.Log = None,
) -> None:
    """Predict stellar labels of spectra and write a catalogue.

    Every input gets a row, in input order; rows that could not be computed are flagged
    and hold NaN. The header says how the values were made and explains the flags; .csv
    and .vot have none, so take .fits, .parquet, or .ecsv, which is CSV below a header.

    Examples:

      stellar predict spectra/ -o params.fits

      stellar predict spectra/*.fits.gz -o params.fits

      stellar predict @night.txt -o params.fits --log night.log --resume

      stellar preprocess spectra/ -o - | stellar predict - -o params.csv

      stellar predict --merge part-1.fits part-2.fits -o params.fits
    """
    from stellarcli.errors import ExitStatus, NoUsableSpectraError, UsageError

    start_log(log, verbose)
    if json and output == "-":
        raise UsageError("--json and -o - both want standard output; name a file.")

    from stellarcli import parallel, provenance, runs
    from stellarcli.parts import parse_shard

    facts = {"overwrite": overwrite, "cards": provenance.cards(command_line())}
    if merge:
        from stellarcli import merging

        if dask or resume or shard is not None:
            raise UsageError(
                "--merge only puts parts together; leave --dask, --resume and --shard "
                "out."
            )
        summary = merging.merge(paths, output, **facts)
    else:
        run = runs.Run(
            model=model,
            exposures=exposures,
            rv=rv,
            images=images or "",
            workers=parallel.check_workers(workers),
            shard=parse_shard(shard),
            resume=resume,
        )
        network = {"device": device, "precision": precision, "dropout": dropout}
        summary = _predicted(paths, output, run, network, dask, quiet, facts)
    report_reasons(summary.reasons, log, quiet)
    if not quiet:
        _report(summary, output, verbose)
    if json:
        import json as json_module

        typer.echo(json_module.dumps(summary.to_json(), indent=1))
    if summary.rows and summary.failed == summary.rows:
        raise NoUsableSpectraError(
            f"none of {summary.rows} inputs gave a value; the table holds the reasons' "
            "flags."
        )
    if summary.failed:
        raise typer.Exit(ExitStatus.INCOMPLETE)


def _predicted(
    paths: list[str],
    output: str,
    run: Run,
    network: dict[str, Any],
    dask: str | None,
    quiet: bool,
    facts: dict[str, Any],
) -> Summary:
    """Write the catalogue of some inputs.

    Libraries of the network are loaded when there is something to predict, and while
    the first spectra are being prepared.
    """
    from stellarcli import catalog, inputs, preparation
    from stellarcli.headstart import HeadStart

    continues = run.resume or run.shard is not None
    catalog.check_output(output, facts["overwrite"] or continues)
    found = inputs.expand(paths, output, sayer(quiet))
    tasks = list(inputs.tasks(found, preparation.CHUNK))
    # finished parts need no start, and a cluster has its own
    with HeadStart([] if dask or continues else tasks, run) as head:
        from stellarcli import cluster, devices, prediction

        run = replace(
            run,
            device=devices.choose_device("cpu" if dask else network["device"]),
            precision=prediction.check_precision(network["precision"]),
            dropout=prediction.check_dropout(network["dropout"]),
        )
        compute = partial(prediction.results, ready=head.ready)
        with progress(sum(map(len, tasks)), "spectra", quiet) as bar:
            return prediction.predict(
                tasks,
                output,
                run,
                progress=bar.update,
                note=sayer(quiet),
                compute=cluster.results(dask) if dask else compute,
                **facts,
            )


def _report(summary, output: str, verbose: bool) -> None:
    total = summary.seconds.get("total", 0.0)
    rate = f", {summary.computed / total:.0f}/s" if summary.computed else ""
    where = "standard output" if output == "-" else output
    if summary.complete:
        say(f"{summary.rows} spectra in {where}{rate}")
    else:
        say(f"{summary.rows} spectra of this shard done; other shards have parts left.")
    say(f"  {summary.failed} without values, {summary.untrusted} not to be trusted")
    for name, count in sorted(summary.flags.items(), key=lambda item: -item[1]):
        say(f"  {count:8d} {name}")
    if verbose:
        stages = {k: v for k, v in summary.seconds.items() if k != "total"}
        spent = sum(stages.values()) or 1.0
        shares = ", ".join(f"{k} {v / spent:.0%}" for k, v in stages.items())
        say(f"  {total:.2f} s by the clock; of the workers' {spent:.2f} s: {shares}")
