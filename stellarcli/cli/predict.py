"""``stellar predict``."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
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

    from stellarcli import catalog, inputs, parallel, preparation, provenance, runs
    from stellarcli.headstart import HeadStart
    from stellarcli.parts import parse_shard

    facts = provenance.cards(command_line())
    if merge:
        from stellarcli import merging

        if dask or resume or shard is not None:
            raise UsageError(
                "--merge only puts parts together; leave --dask, --resume and --shard "
                "out."
            )
        summary = merging.merge(paths, output, overwrite=overwrite, cards=facts)
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
        catalog.check_output(output, overwrite or resume or shard is not None)
        found = inputs.expand(paths, output, sayer(quiet))
        tasks = list(inputs.tasks(found, preparation.CHUNK))
        # finished parts need no start, and a cluster has its own
        whole = not (dask or resume or shard)
        with HeadStart(tasks if whole else [], run) as head:
            from stellarcli import cluster, devices, prediction

            run = replace(
                run,
                device=devices.choose_device("cpu" if dask else device),
                precision=prediction.check_precision(precision),
                dropout=prediction.check_dropout(dropout),
            )
            with progress(sum(map(len, tasks)), "spectra", quiet) as bar:
                summary = prediction.predict(
                    tasks,
                    output,
                    run,
                    overwrite=overwrite,
                    cards=facts,
                    progress=bar.update,
                    note=sayer(quiet),
                    compute=cluster.results(dask)
                    if dask
                    else partial(prediction.results, ready=head.ready),
                )
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
