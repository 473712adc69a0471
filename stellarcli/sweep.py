"""Many trainings from one configuration: repeats, folds, grid searches."""

from __future__ import annotations

import itertools
import math
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from stellarcli import catalog, checkpoint
from stellarcli.catalog import Table
from stellarcli.errors import UsageError
from stellarcli.fitting import Progress
from stellarcli.processes import World
from stellarcli.settings import TrainConfig
from stellarcli.training import BESIDE, train

METRICS = ("n", "mae", "rmse", "bias")


@dataclass(frozen=True)
class Run:
    """One training of a sweep.

    Attributes
    ----------
    tag : str
        Part of the file name, such as ``seed2`` or ``fold0-learning_rate0.001``.
    config : TrainConfig
    varied : dict
        What distinguishes this run.
    """

    tag: str
    config: TrainConfig
    varied: dict[str, Any]


def plan(
    config: TrainConfig,
    *,
    seeds: int = 1,
    grid: dict[str, list[Any]] | None = None,
) -> list[Run]:
    """List the runs of a sweep: every point of the grid, every fold, every seed.

    The split depends on the first seed alone: repeats differ in weights and order.

    Parameters
    ----------
    config : TrainConfig
        With `folds` for cross-validation.
    seeds : int
    grid : dict of lists, optional
        Settings and their values.
    """
    if seeds < 1:
        raise UsageError(f"--seeds must be at least 1, not {seeds}.")
    grid = grid or {}
    folds = range(config.folds) if config.folds else [None]
    runs = []
    for values in itertools.product(*grid.values()):
        for fold, repeat in itertools.product(folds, range(seeds)):
            varied = dict(zip(grid, values, strict=True))
            if fold is not None:
                varied["fold"] = fold
            if seeds > 1:
                varied["repeat"] = repeat
            settings = {k: v for k, v in varied.items() if k != "repeat"}
            made = TrainConfig.resolve(config.to_json(), settings)
            made = replace(made, repeat=config.repeat + repeat)
            tag = "-".join(f"{k.split('.')[-1]}{_word(v)}" for k, v in varied.items())
            runs.append(Run(tag, made, varied))
    return runs


def _word(value: Any) -> str:
    """Spell a value as part of a file name: [8, 16] becomes 8_16."""
    text = "_".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return re.sub(r"[^A-Za-z0-9._+-]", "_", text)


class Outcome(NamedTuple):
    """A finished run, its model and the model's file."""

    run: Run
    model: checkpoint.Model
    path: Path


def run(
    runs: list[Run],
    tables: list[str],
    output: Path,
    *,
    world: World,
    report: Callable[[Run, Progress], None],
    **common: Any,
) -> Table | None:
    """Train all runs; the best one becomes `output`, a table lists the outcomes.

    The best run has the smallest validation error.

    Parameters
    ----------
    runs, tables, output, report, **common
        As for `train_all`.
    world : World

    Returns
    -------
    Table or None
        Of `write_outcomes`. None in all but the first of several processes.
    """
    outcomes = train_all(runs, tables, output, report=report, **common)
    if not world.first:
        return None
    best = min(outcomes, key=lambda outcome: _merit(outcome.model))
    for ending in (".safetensors", *BESIDE):
        shutil.copyfile(best.path.with_suffix(ending), output.with_suffix(ending))
    return write_outcomes(outcomes, output)


def train_all(
    runs: list[Run],
    tables: list[str],
    output: Path,
    *,
    report: Callable[[Run, Progress], None],
    **common: Any,
) -> list[Outcome]:
    """Train all runs, each to a file of its own: ``<output stem>.<tag>.safetensors``.

    Parameters
    ----------
    runs : list of Run
    tables : list of str
    output : Path
    report : callable
        Told of a run's every epoch.
    **common
        Further arguments of `training.train`. With ``resume``, finished runs are kept.
    """
    outcomes = []
    for item in runs:
        path = path_of(item, output)
        model = train(
            tables,
            path,
            item.config,
            report=lambda progress, item=item: report(item, progress),
            **common,
        )
        outcomes.append(Outcome(item, model, path))
    return outcomes


def write_outcomes(outcomes: list[Outcome], output: Path) -> Table:
    """Write ``<output stem>.runs.csv``, a row per run.

    Returns
    -------
    Table
        What was varied, then MAE, RMSE, bias per label on the validation and, where
        there is one, the test part.
    """
    table = _table(outcomes)
    name = str(output.with_suffix(".runs.csv"))
    catalog.write(name, table, overwrite=True)
    return Table(table, name=name)


def path_of(item: Run, output: Path) -> Path:
    """Return the model file of a run."""
    return output.with_name(f"{output.stem}.{item.tag}.safetensors")


def _merit(model: checkpoint.Model) -> float:
    """Mean over labels of validation MAE in units of their range; never of the test."""
    found = [
        model.training["metrics"][label.name]["mae"]
        / ((label.trained[1] - label.trained[0]) or 1.0)
        for label in model.labels
    ]
    known = [value for value in found if math.isfinite(value)]
    return float(np.mean(known)) if known else math.inf


def _table(outcomes: list[Outcome]) -> np.ndarray:
    rows = [dict(_columns(item, model, path)) for item, model, path in outcomes]
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {n: np.array([row.get(n, np.nan) for row in rows]) for n in names}
    table = np.empty(len(rows), [(n, c.dtype) for n, c in columns.items()])
    for name, values in columns.items():
        table[name] = values
    return table


def _columns(item: Run, model: checkpoint.Model, path: Path) -> Iterator[tuple]:
    yield "model", path.name
    for name, value in item.varied.items():
        plain = isinstance(value, int | float | str)
        yield name, value if plain else _word(value)
    for kind in ("metrics", "test_metrics"):
        prefix = "test_" if kind == "test_metrics" else ""
        for label, values in model.training.get(kind, {}).items():
            for metric in METRICS:
                yield f"{prefix}{label}_{metric}", values[metric]


def average(table: np.ndarray, by: list[str]) -> dict[tuple, dict[str, tuple]]:
    """Mean and standard deviation over repeats, and folds, of every figure.

    Parameters
    ----------
    table : structured ndarray
        Of `run`.
    by : list of str
        Columns that tell different experiments apart.

    Returns
    -------
    dict
        By the values of `by`: figure to (mean, standard deviation).
    """
    keys = [tuple(str(row[name]) for name in by) for row in table]
    figures = [name for name in table.dtype.names if is_figure(name)]
    found = {}
    for key in dict.fromkeys(keys):
        rows = table[[k == key for k in keys]]
        found[key] = {
            name: (
                float(rows[name].mean()),
                float(rows[name].std(ddof=1)) if len(rows) > 1 else 0.0,
            )
            for name in figures
        }
    return found


def is_figure(name: str) -> bool:
    """Say whether a column of the outcomes is a figure of merit: teff_mae."""
    return name.rpartition("_")[2] in METRICS and "_" in name


def experiments(table: np.ndarray) -> list[str]:
    """Columns that tell experiments apart, beyond repeats and folds."""
    varied = [name for name in table.dtype.names[1:] if not is_figure(name)]
    return [name for name in varied if name not in ("repeat", "fold")]
