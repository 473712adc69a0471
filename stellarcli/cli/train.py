"""``stellar train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stellarcli.cli import options
from stellarcli.cli.reporting import command_line, say, start_log


def train(
    tables: Annotated[
        list[str],
        typer.Argument(metavar="TABLE...", help="Prepared tables with label columns."),
    ],
    output: options.Output,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", metavar="NAME", help="Architecture, such as resnet1d."
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", metavar="FILE", help="Settings in YAML."),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help="Label columns, such as teff,logg,feh."),
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
    init: Annotated[
        str | None,
        typer.Option(metavar="NAME|FILE", help="Model to start from (fine-tuning)."),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(metavar="N", help="Passes over the training rows.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(metavar="N", help="Of weights, split and order.")
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
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    log: options.Log = None,
) -> None:
    """Train a model from prepared tables and write it to one file.

    The file holds weights, labels, recipe, split, settings and figures of merit; it is
    all that 'predict' needs.

    Examples
    --------
      stellar train prepared.fits -o mine.safetensors --group plan

      stellar train mine.fits -o tuned.safetensors --init default --epochs 10
    """
    start_log(log, verbose)
    from stellarcli.errors import OutputExistsError

    target_path = Path(output.removeprefix("!"))
    if target_path.exists() and not (overwrite or output.startswith("!")):
        raise OutputExistsError(
            f"'{target_path}' exists; give --overwrite to replace it, or another name."
        )
    from stellarcli import provenance, training

    options_given = {
        "model": model,
        "target": target,
        "select": select,
        "group": group,
        "split": split,
        "init": init,
        "epochs": epochs,
        "seed": seed,
    }
    resolved = training.TrainConfig.resolve(
        training.read_config(config) if config else {},
        training.parse_settings(settings or []),
        {key: value for key, value in options_given.items() if value is not None},
    )

    def report(progress: training.Progress) -> None:
        if not quiet:
            say(_line(progress, resolved))

    trained = training.train(
        tables,
        target_path,
        resolved,
        report=report,
        provenance=provenance.facts(command_line()),
    )
    if not quiet:
        _summarise(trained, target_path)


def _line(progress, config) -> str:
    errors = ", ".join(f"{name} {value:.4g}" for name, value in progress.mae.items())
    return (
        f"network {progress.member + 1}/{config.members} "
        f"epoch {progress.epoch}/{config.epochs}  "
        f"loss {progress.train_loss:.4f} / {progress.validation_loss:.4f}  "
        f"MAE {errors}  {progress.rate:.0f}/s  {progress.remaining:.0f} s left"
    )


def _summarise(model, path: Path) -> None:
    size = path.stat().st_size / 1e6
    say(f"{path}: {model.architecture}, {size:.1f} MB")
    say(f"  on {model.training['judged_on']} rows:")
    for name, values in model.training["metrics"].items():
        say(
            f"  {name}: MAE {values['mae']:.4g}, RMSE {values['rmse']:.4g}, "
            f"bias {values['bias']:.3g}, n {values['n']}"
        )
