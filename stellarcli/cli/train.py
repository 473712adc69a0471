"""``stellar train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stellarcli.cli import options
from stellarcli.cli.reporting import command_line, log_fields, say, start_log


def train(
    tables: Annotated[
        list[str],
        typer.Argument(
            metavar="TABLE...",
            help="Prepared tables; raw files, directories and lists too, which are "
            "prepared first with --recipe.",
        ),
    ],
    output: options.Output,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="NAME",
            help="Architecture: resnet1d, scanet.",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", metavar="FILE", help="Settings in YAML."),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Settings that a paper used: paper (with --model)."
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Any setting, e.g. learning_rate=3e-4 or network.stem=4; wins over "
            "--config. Repeatable.",
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help="Label columns, such as teff,logg,feh."),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            metavar="CATALOGUE",
            help="Labels that the tables lack, joined by identifier, file or sky.",
        ),
    ] = None,
    select: Annotated[
        str | None,
        typer.Option(
            metavar="EXPRESSION",
            help='Rows to use, such as "snrg > 25 and 3786 < teff < 8400".',
        ),
    ] = None,
    group: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="Keep rows with the same value on one side of the split.",
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Column saying train, validation, test."),
    ] = None,
    folds: Annotated[
        int | None,
        typer.Option(metavar="K", help="K-fold cross-validation: K models."),
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(metavar="NAME|FILE", help="Model to start from (fine-tuning)."),
    ] = None,
    freeze: Annotated[
        str | None,
        typer.Option(metavar="PARTS", help="Parts to keep as they are, e.g. trunk."),
    ] = None,
    recipe: Annotated[
        str, typer.Option("--recipe", "-r", metavar="NAME|FILE", help="For raw files.")
    ] = "default",
    epochs: Annotated[
        int | None, typer.Option(metavar="N", help="Passes over the training rows.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(metavar="N", help="Of split, weights and order.")
    ] = None,
    seeds: Annotated[
        int,
        typer.Option(metavar="N", help="Repeat with N draws of weights and order."),
    ] = 1,
    grid: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=V,V,...",
            help="Train once per value; repeatable for all combinations.",
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            envvar="STELLAR_DEVICE",
            help="auto, cpu, cuda or cuda:N.",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan and stop.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted run.")
    ] = False,
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    log: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            envvar="STELLAR_LOG",
            help="Append the log as JSON lines, one per epoch.",
        ),
    ] = None,
) -> None:
    """Train a model from prepared tables and write it to one file.

    The file holds weights, labels, recipe, split, settings and figures of merit; it is
    all that 'predict' needs. Beside it: the split (.split.fits), the curves (.png) and,
    for several runs, their outcomes (.runs.csv). 'torchrun' starts it on several GPUs.

    Examples
    --------
      stellar train prepared.fits -o mine.safetensors --group plan

      stellar train mine.fits -o tuned.safetensors --init default --epochs 10

      stellar train folded.fits -o sca.safetensors -m scanet --preset paper --seeds 5
    """
    start_log(log, verbose, lines=True)
    target_path = _check_output(output, overwrite, resume)
    from stellarcli import catalog, planning, provenance, sweep, training
    from stellarcli.settings import (
        TrainConfig,
        parse_grid,
        parse_pairs,
        read_config,
    )
    from stellarcli.settings import preset as read_preset

    given = {
        "model": model,
        "target": target,
        "select": select,
        "group": group,
        "split": split,
        "folds": folds,
        "init": init,
        "freeze": freeze,
        "epochs": epochs,
        "seed": seed,
        "device": device,
    }
    resolved = TrainConfig.resolve(
        read_preset(preset, model or TrainConfig.model) if preset else {},
        read_config(config) if config else {},
        parse_pairs(settings or []),
        {key: value for key, value in given.items() if value is not None},
    )
    catalogue = catalog.read(labels) if labels else None
    runs = sweep.plan(resolved, seeds=seeds, grid=parse_grid(grid or []))
    facts = provenance.facts(command_line())
    with planning.prepared(tables, recipe, target_path) as paths:
        if dry_run:
            say(planning.describe(paths, runs[0].config, len(runs), catalogue))
            return

        def report(run: sweep.Run, progress: training.Progress) -> None:
            log_fields("epoch", run=run.tag, **vars(progress))
            if not quiet:
                say(_line(progress, run))

        common = {"catalogue": catalogue, "resume": resume, "provenance": facts}
        if len(runs) > 1:
            outcomes = sweep.run(runs, paths, target_path, report=report, **common)
            if not quiet:
                _tabulate(outcomes, seeds)
            return
        trained = training.train(
            paths,
            target_path,
            resolved,
            report=lambda progress: report(runs[0], progress),
            **common,
        )
    if not quiet:
        _summarise(trained, target_path)


def _check_output(output: str, overwrite: bool, resume: bool) -> Path:
    from stellarcli.errors import OutputExistsError, UsageError

    path = Path(output.removeprefix("!"))
    if path.suffix != ".safetensors":
        raise UsageError(
            f"a model file is named *.safetensors, not '{path}'; give -o "
            f"{path.with_suffix('.safetensors')}."
        )
    if not path.parent.is_dir():
        raise UsageError(f"there is no directory {path.parent} for {path}.")
    replace = overwrite or resume or output.startswith("!")
    if path.exists() and not replace:
        raise OutputExistsError(
            f"'{path}' exists; give --overwrite to replace it, or another name."
        )
    return path


def _line(progress, run) -> str:
    errors = ", ".join(f"{name} {value:.4g}" for name, value in progress.mae.items())
    where = f"{run.tag} " if run.tag else ""
    if run.config.members > 1:
        where += f"network {progress.member}/{run.config.members} "
    return (
        f"{where}epoch {progress.epoch}/{run.config.epochs}  "
        f"loss {progress.train_loss:.4f} / {progress.validation_loss:.4f}  "
        f"MAE {errors}  rate {progress.learning_rate:.1e}  "
        f"{progress.rate:.0f}/s  {progress.remaining:.0f} s left"
    )


def _summarise(model, path: Path) -> None:
    size = path.stat().st_size / 1e6
    say(f"{path}: {model.architecture}, {size:.1f} MB")
    kinds = {
        f"{model.training['judged_on']} rows": "metrics",
        "test rows": "test_metrics",
    }
    for name, kind in kinds.items():
        for label, values in model.training.get(kind, {}).items():
            say(
                f"  {name}, {label}: MAE {values['mae']:.4g}, "
                f"RMSE {values['rmse']:.4g}, bias {values['bias']:.3g}, n {values['n']}"
            )


def _tabulate(outcomes, seeds: int) -> None:
    from rich.console import Console
    from rich.table import Table as Grid

    from stellarcli import sweep

    names = outcomes.rows.dtype.names
    by = [n for n in names[1:] if n.rpartition("_")[2] not in sweep.METRICS]
    by = [name for name in by if name != "repeat"]
    found = sweep.average(outcomes.rows, by)
    first = next(iter(found.values()))
    shown = [n for n in first if n.endswith(("_mae", "_rmse"))]
    grid = Grid(*by, *shown, title=f"{outcomes.name}: mean ± deviation of {seeds}")
    for key, values in found.items():
        figures = (f"{values[n][0]:.4g} ± {values[n][1]:.2g}" for n in shown)
        grid.add_row(*key, *figures)
    Console(stderr=True).print(grid)
