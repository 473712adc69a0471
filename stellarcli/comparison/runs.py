"""The outcomes of a sweep, ``*.runs.csv`` of ``stellar train``, averaged."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stellarcli import catalog, published
from stellarcli.errors import UsageError

REPEATED = ("repeat", "fold", "seed")  # what is averaged over
SHOWN = ("mae", "rmse")

Spread = tuple[float, float]  # mean, standard deviation over repeats


@dataclass(frozen=True, eq=False)
class Setting:
    """One point of a grid.

    Attributes
    ----------
    source : str
        Table that it comes from.
    settings : dict of str
        What was varied.
    runs : int
        Trainings that were averaged.
    figures : dict
        By label and metric: mean and standard deviation (divided by runs - 1).
    """

    source: str
    settings: dict[str, str]
    runs: int
    figures: dict[str, dict[str, Spread]]

    @property
    def name(self) -> str:
        """Settings in words, or the table's name where nothing was varied."""
        words = (f"{k.rpartition('.')[2]} {v}" for k, v in self.settings.items())
        return ", ".join(words) or self.source

    def to_json(self) -> dict[str, Any]:
        """All numbers."""
        return {
            "name": self.name,
            "source": self.source,
            "settings": self.settings,
            "runs": self.runs,
            "labels": {
                label: {
                    metric: {"mean": mean, "std": std}
                    for metric, (mean, std) in metrics.items()
                }
                for label, metrics in self.figures.items()
            },
        }


@dataclass(frozen=True, eq=False)
class Runs:
    """Averages of one or more sweeps.

    Attributes
    ----------
    settings : list of Setting
    part : str
        Rows that the figures were measured on: ``"test"`` or ``"validation"``.
    paper : str or None
        Key of `published.PAPERS`.
    """

    settings: list[Setting]
    part: str
    paper: str | None = None

    @property
    def labels(self) -> list[str]:
        """Labels of any setting."""
        return list(dict.fromkeys(n for s in self.settings for n in s.figures))

    @property
    def published(self) -> list[published.Result]:
        """What the paper printed about any of the labels."""
        results = published.get(self.paper).results if self.paper else ()
        return [r for r in results if set(r.figures) & set(self.labels)]

    def to_json(self) -> dict[str, Any]:
        """All numbers."""
        found = {
            "part": self.part,
            "settings": [setting.to_json() for setting in self.settings],
        }
        if self.paper:
            paper = published.get(self.paper)
            found["published"] = [
                {
                    "method": result.method,
                    "source": paper.source,
                    "data": paper.data,
                    "other_data": True,
                    "labels": {
                        label: {m: {"mean": v, "std": s} for m, (v, s) in row.items()}
                        for label, row in result.figures.items()
                    },
                }
                for result in self.published
            ]
        return found


def is_sweep(source: str) -> bool:
    """Say whether a table is one of `sweep.run`."""
    if source == "-" or not source.lower().endswith(".csv"):
        return False
    try:
        with open(source, encoding="utf-8-sig") as file:
            names = file.readline().strip().split(",")
    except (OSError, UnicodeDecodeError):
        return False
    return names[0] == "model" and any(name.endswith("_mae") for name in names)


def average(sources: Sequence[str], paper: str | None = None) -> Runs:
    """Average the figures of sweeps over repeats, folds and seeds.

    Those of the test rows are taken where every table has them, otherwise those of the
    validation rows.

    Parameters
    ----------
    sources : sequence of str
    paper : str, optional
        Key of `published.PAPERS`.

    Raises
    ------
    UsageError
        If a table isn't one of a sweep, or there is no such paper.
    """
    if paper:
        published.get(paper)
    tables = [catalog.read(source) for source in sources]
    for source, table in zip(sources, tables, strict=True):
        if not is_sweep(source) or not len(table.rows):
            raise UsageError(
                f"{source} is no table of outcomes (*.runs.csv of 'stellar train'); "
                "outcomes and catalogues can't be compared with each other."
            )
    tested = all(_figures(table.rows, "test_") for table in tables)
    prefix = "test_" if tested else ""
    settings = [s for table in tables for s in _settings(table, prefix)]
    return Runs(settings, "test" if tested else "validation", paper)


def _figures(rows: np.ndarray, prefix: str) -> dict[str, tuple[str, str]]:
    """Label and metric of the columns with figures."""
    from stellarcli import sweep  # brings torch

    found = {}
    for name in rows.dtype.names:
        label, _, metric = name.removeprefix(prefix).rpartition("_")
        begins = name.startswith("test_") == bool(prefix)
        if begins and label and metric in sweep.METRICS:
            found[name] = label, metric
    return found


def _settings(table: catalog.Table, prefix: str) -> list[Setting]:
    from stellarcli import sweep

    rows = table.rows
    figures = _figures(rows, prefix)
    other = {*_figures(rows, ""), *_figures(rows, "test_"), "model", *REPEATED}
    by = [name for name in rows.dtype.names if name not in other]
    found = []
    for key, averaged in sweep.average(rows, by).items():
        same = [tuple(str(row[name]) for name in by) == key for row in rows]
        values: dict[str, dict[str, Spread]] = {}
        for name, (label, metric) in figures.items():
            values.setdefault(label, {})[metric] = averaged[name]
        settings = dict(zip(by, key, strict=True))
        name = os.path.basename(table.name)
        found.append(Setting(name, settings, sum(same), values))
    return found
