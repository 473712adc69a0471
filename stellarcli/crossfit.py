"""Cross-fitting: a model of all rows, whose errors its cross-validation tells.

Each fold's model predicts the rows that it hasn't seen. Together these predictions are
as many as there are rows, and say more about errors than a validation part could; the
final model learns from all rows and is calibrated by them. It has seen somewhat more
than the folds' models, so that its errors are rather too large than too small.

Rows of a test part, where one is asked for, stay out of all this: the final model alone
is tested on them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from stellarcli import (
    calibration,
    catalog,
    checkpoint,
    dataset,
    inputs,
    models,
    prediction,
    sweep,
    training,
)
from stellarcli.calibration import Judged
from stellarcli.catalog import Table
from stellarcli.dataset import Dataset
from stellarcli.devices import without_denormals
from stellarcli.errors import UsageError
from stellarcli.fitting import Progress
from stellarcli.preparation import CHUNK
from stellarcli.processes import World
from stellarcli.sweep import Outcome, Run

ENDING = ".folds.fits"  # of the catalogue of unseen rows


def check(runs: Sequence[Run]) -> None:
    """Refuse what isn't the folds of one experiment.

    Raises
    ------
    UsageError
    """
    folds = {run.config.fold for run in runs if run.config.folds}
    if len(folds) < 2 or len(folds) != len(runs):
        raise UsageError(
            "--refit needs the folds of one experiment: give --folds K, and leave "
            "--seeds and --grid out."
        )


def run(
    runs: list[Run],
    tables: list[str],
    output: Path,
    *,
    world: World,
    report: Callable[[Run, Progress], None],
    **common: Any,
) -> checkpoint.Model:
    """Train the folds and the final model; write a catalogue of the unseen rows.

    Every fold's model is calibrated by the other folds' rows, and its own rows of the
    catalogue ``<output stem>.folds.fits`` come from that: neither weights nor errors
    have seen them.

    Parameters
    ----------
    runs : list of Run
        Of `sweep.plan`, the folds of one experiment.
    tables, output, world, report, **common
        As for `sweep.run`.

    Returns
    -------
    Model
        That of all rows but those it is tested on.

    Raises
    ------
    UsageError
        From `check` and `training.train`.
    """
    check(runs)
    outcomes = sweep.train_all(runs, tables, output, report=report, **common)
    unseen = None
    if world.first:
        parts = [_part(outcome, tables, common["catalogue"]) for outcome in outcomes]
        judged = [_judged(*pair) for pair in zip(outcomes, parts, strict=True)]
        outcomes = [
            _calibrated(outcome, judged, number)
            for number, outcome in enumerate(outcomes)
        ]
        sweep.write_outcomes(outcomes, output)
        _write_catalogue(outcomes, parts, tables, output)
        unseen = Judged.joined(judged)
    world.wait()
    config = replace(runs[0].config, folds=0, fold=0, validation=0.0)
    final = Run("", config, {})
    return training.train(
        tables,
        output,
        config,
        report=lambda progress: report(final, progress),
        unseen=unseen,
        **common,
    )


def _part(outcome: Outcome, tables: list[str], catalogue: Table | None) -> Dataset:
    """Return the rows that a fold is tested on."""
    config = outcome.run.config
    fed = models.inputs(outcome.model.architecture)
    data = dataset.load(tables, config, catalogue, fed)
    return data.rows(data.index("test"))


def _judged(outcome: Outcome, part: Dataset) -> Judged:
    """Predict the unseen rows of a fold."""
    with without_denormals():
        return calibration.judge_all(
            outcome.model, outcome.model.networks(), part, np.arange(len(part))
        )


def _calibrated(outcome: Outcome, judged: list[Judged], number: int) -> Outcome:
    """Calibrate a fold's model by the other folds, and write it again."""
    model = checkpoint.load(str(outcome.path))
    others = Judged.joined(judged[:number] + judged[number + 1 :])
    calibration.calibrate(model, others)
    model.training |= {
        "judged_on": "folds",
        "metrics": calibration.metrics_of(model, others),
        "test_metrics": calibration.metrics_of(model, judged[number]),
    }
    checkpoint.save(model, outcome.path)
    return outcome._replace(model=model)


def _write_catalogue(
    outcomes: list[Outcome], parts: list[Dataset], tables: list[str], output: Path
) -> None:
    """Write the unseen rows' predictions, in the order of the tables."""
    tasks = list(inputs.tasks(tables, CHUNK))
    sizes = [0, *(len(table) for table in parts[0].tables)]
    offset = np.cumsum(sizes)
    pieces, positions = [], []
    for outcome, part in zip(outcomes, parts, strict=True):
        name = str(output.with_name(f".{output.stem}.{outcome.run.tag}.fits"))
        settings = prediction.Run(model=str(outcome.path))
        prediction.predict(tasks, name, settings, overwrite=True)
        position = offset[part.table] + part.row
        pieces.append(catalog.read(name).rows[position])
        positions.append(position)
        Path(name).unlink()
    order = np.argsort(np.concatenate(positions))
    rows = np.concatenate(pieces)[order]
    model = outcomes[0].model
    header = [
        ("MODEL", output.stem, "folds of this model made the values"),
        ("FOLDS", len(outcomes), "each row is of the fold that had not seen it"),
        ("RECIPE", model.recipe.to_json(), "preprocessing"),
        ("BADFLAGS", int(catalog.BAD), "rows with one of these bits are not trusted"),
    ]
    columns = catalog.columns(model.labels)
    catalog.write(output.with_suffix(ENDING), rows, columns, header, overwrite=True)
