"""``stellar train``."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stellarcli.cli import options
from stellarcli.cli.reporting import (
    command_line,
    log_fields,
    say,
    sayer,
    start_log,
)

if TYPE_CHECKING:
    from stellarcli import checkpoint, fitting, sweep
    from stellarcli.catalog import Table
    from stellarcli.settings import TrainConfig


def train(
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            metavar="MODEL",
            help="Model file, *.safetensors; !MODEL replaces an existing one.",
        ),
    ],
    tables: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[TABLE]...",
            help="Prepared tables; raw files, directories and lists too, which are "
            "prepared first with --recipe. None where --set stream.… simulates "
            "spectra while training.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="NAME",
            help="Architecture: resnet1d, resnetfit, scanet, mkresnet, rdn, resnet, "
            "densenet, starnet, spectrafm, perceptron; spfusion, which takes images "
            "too, and what it is compared with, convnext1d, racnet, sscnn on spectra, "
            "resnet10t, convnextpico, metaformer on images; or ridge, neighbours, gp, "
            "kernel, adaboost, kmeans, which are computed in one go.",
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
            "--config, options over it. Repeatable.",
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Label columns, such as teff,logg,feh; sptype for spectral types, as "
            "text or numbers.",
        ),
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
            help='Rows to use, such as "snr > 25 and 3786 < teff < 8400".',
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
    refit: Annotated[
        bool,
        typer.Option(
            "--refit",
            help="After the folds, train on the rows of all; errors are calibrated on "
            "what the folds had not seen, which .folds.fits holds.",
        ),
    ] = False,
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

    Examples:

      stellar train prepared.fits -o mine.safetensors --group plan

      stellar train mine.fits -o tuned.safetensors --init default --epochs 10

      stellar train prepared.fits -o mine.safetensors --folds 10 --refit

      stellar train folded.fits -o sca.safetensors -m scanet --preset paper --seeds 5

      stellar train -o fm.safetensors -m spectrafm --set stream.lamost-lrs=5000
    """
    start_log(log, verbose, lines=True)
    from stellarcli import (
        catalog,
        crossfit,
        planning,
        processes,
        provenance,
        resuming,
        sweep,
        training,
    )
    from stellarcli.devices import choose_device
    from stellarcli.settings import parse_grid

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
    resolved = _resolve(preset, config, settings, given)
    runs = sweep.plan(resolved, seeds=seeds, grid=parse_grid(grid or []))
    if refit:
        crossfit.check(runs)
    target_path = _check_output(output, runs, overwrite, resume or dry_run)
    catalogue = catalog.read(labels) if labels else None
    facts = provenance.facts(command_line())
    with (
        _interruptible(target_path, runs),
        processes.join(choose_device(resolved.device)) as world,
        planning.prepared(
            tables or [], recipe, target_path, world, sayer(quiet or not world.first)
        ) as paths,
    ):
        if dry_run:
            say(planning.describe(paths, runs[0].config, len(runs), catalogue))
            return
        if world.first and not (resume or quiet):
            for path in _models(target_path, runs):
                if state := resuming.describe(path):
                    say(f"{state}; it is dropped, since --overwrite starts anew.")

        def report(run: sweep.Run, progress: fitting.Progress) -> None:
            log_fields("epoch", run=run.tag, **_without_nan(vars(progress)))
            if not quiet:
                say(_line(progress, run))

        common = {"catalogue": catalogue, "resume": resume, "provenance": facts}
        if refit:
            trained = crossfit.run(
                runs, paths, target_path, report=report, world=world, **common
            )
            if world.first and not quiet:
                _summarise(trained, target_path)
            return
        if any(run.varied for run in runs):
            outcomes = sweep.run(
                runs, paths, target_path, report=report, world=world, **common
            )
            if world.first and not quiet:
                _tabulate(outcomes, target_path)
            return
        trained = training.train(
            paths,
            target_path,
            resolved,
            report=lambda progress: report(runs[0], progress),
            **common,
        )
        if world.first and not quiet:
            _summarise(trained, target_path)


def _resolve(
    preset: str | None,
    config: Path | None,
    settings: list[str] | None,
    given: dict[str, Any],
) -> TrainConfig:
    """Merge preset, YAML file, --set and options; later ones win."""
    from stellarcli.settings import MODEL, TrainConfig, parse_pairs, read_config
    from stellarcli.settings import preset as read_preset

    sources = [
        read_config(config) if config else {},
        parse_pairs(settings or []),
        {key: value for key, value in given.items() if value is not None},
    ]
    resolved = TrainConfig.resolve(*sources)
    if preset is None:
        return resolved
    first = read_preset(preset, resolved.model or MODEL)
    return TrainConfig.resolve(first, *sources)


def _check_output(output: str, runs: list, overwrite: bool, keeps: bool) -> Path:
    """Return the path of the model; refuse what couldn't be written, or is there.

    A run that keeps what is there may find a model, and the state of a training.
    """
    from stellarcli import catalog, resuming, training
    from stellarcli.errors import OutputExistsError, UsageError

    overwrite = overwrite or output.startswith("!")
    path = Path(output.removeprefix("!"))
    if path.suffix != ".safetensors":
        raise UsageError(
            f"a model file is named *.safetensors, not '{path}'; give -o "
            f"{path.with_suffix('.safetensors')}."
        )
    catalog.check_directory(str(path))
    models = _models(path, runs)
    endings = (".safetensors", ".runs.csv", *training.BESIDE)
    written = [model.with_suffix(ending) for model in models for ending in endings]
    there = [str(name) for name in written if name.exists()]
    if there and not (overwrite or keeps):
        raise OutputExistsError(
            f"{', '.join(map(repr, there[:3]))} {'exist' if there[1:] else 'exists'}; "
            "give --overwrite to replace, --resume to go on with an interrupted run, "
            "or another name."
        )
    unfinished = next(filter(None, map(resuming.describe, models)), "")
    if unfinished and not (overwrite or keeps):
        raise OutputExistsError(
            f"{unfinished}. Give --resume to go on with it, --overwrite to start anew, "
            "or another name."
        )
    return path


def _models(output: Path, runs: list) -> list[Path]:
    """Return all model files that are to be written."""
    from stellarcli import sweep

    return [output, *(sweep.path_of(run, output) for run in runs if run.tag)]


@contextmanager
def _interruptible(output: Path, runs: list) -> Iterator[None]:
    """Say after Ctrl-C, or when time is up, how to go on."""
    from stellarcli import resuming

    try:
        yield
    except KeyboardInterrupt as error:
        models = _models(output, runs)
        files = [resuming.path_of(model) for model in models] + models[1:]
        error.add_note(
            "the same command with --resume goes on after the last finished epoch."
            if any(file.exists() for file in files)
            else "no epoch was finished, so there is nothing to go on with."
        )
        raise


def _without_nan(values: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN."""
    return {
        key: _without_nan(value)
        if isinstance(value, dict)
        else None
        if isinstance(value, float) and not math.isfinite(value)
        else value
        for key, value in values.items()
    }


def _line(progress: fitting.Progress, run: sweep.Run) -> str:
    where = f"{run.tag} " if run.tag else ""
    if run.config.members > 1:
        where += f"network {progress.member}/{run.config.members} "
    line = (
        f"{where}epoch {progress.epoch}/{run.config.epochs}  "
        f"loss {progress.train_loss:.4f}"
    )
    if progress.mae:
        errors = ", ".join(f"{name} {e:.4g}" for name, e in progress.mae.items())
        line += f", validation {progress.validation_loss:.4f}  MAE {errors}"
    return (
        f"{line}  rate {progress.learning_rate:.1e}  {progress.rate:.0f}/s  "
        f"{_duration(progress.remaining)} left"
    )


def _duration(seconds: float) -> str:
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02}:{whole % 60:02}"


def _summarise(model: checkpoint.Model, path: Path) -> None:
    """Print a table of the figures of merit."""
    facts = model.training
    say(f"{path}: {model.architecture}, {path.stat().st_size / 1e6:.1f} MB")
    columns = ("mae", "rmse", "bias", "nmad", "within1", "n")
    rows = [
        (kind, name, *(f"{values[column]:.4g}" for column in columns))
        for kind, metrics in (
            (facts["judged_on"], facts["metrics"]),
            ("test", facts.get("test_metrics", {})),
        )
        for name, values in metrics.items()
    ]
    _print(("rows", "label", "MAE", "RMSE", "bias", "NMAD", "within 1σ", "n"), rows)
    for note in facts["notes"]:
        say(f"  {note}")
    if facts["judged_on"] == "train":
        say(
            "  too few validation rows: errors and flags are calibrated on training "
            "rows, which makes them too small. Give more rows, or --set validation=…"
        )


def _tabulate(outcomes: Table, path: Path) -> None:
    """Print the outcomes of a sweep, repeats and folds averaged."""
    from stellarcli import sweep

    by = sweep.experiments(outcomes.rows)
    found = sweep.average(outcomes.rows, by)
    names = [n for n in next(iter(found.values())) if n.endswith(("_mae", "_rmse"))]
    each = len(outcomes.rows) // len(found)
    say(f"{path}: the best of {len(outcomes.rows)} runs, all in {outcomes.name}")
    if each > 1:
        say(f"mean ± standard deviation of {each} runs:")
    for prefix, title in (("", "validation"), ("test_", "test")):
        shown = [n for n in names if n.startswith("test_") == bool(prefix)]
        rows = [
            (*key, *(_figure(*values[name], each) for name in shown))
            for key, values in found.items()
        ]
        heads = [name.removeprefix("test_").replace("_", " ") for name in shown]
        if shown:
            _print((*by, *heads), rows, title)


def _figure(mean: float, deviation: float, runs: int) -> str:
    return f"{mean:.4g} ± {deviation:.2g}" if runs > 1 else f"{mean:.4g}"


def _print(
    heads: Sequence[str], rows: Sequence[Sequence[str]], title: str = ""
) -> None:
    """Print a table with aligned columns, numbers to the right."""
    lines = [tuple(map(str, row)) for row in (heads, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    if title:
        say(f"  {title}")
    for line in lines:
        cells = (text.rjust(width) for text, width in zip(line, widths, strict=True))
        say("  " + "  ".join(cells))
