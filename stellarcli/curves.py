"""Figure of a training: its curves, and the labels it saw."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stellarcli.checkpoint import Model
from stellarcli.figures import CONTINUUM, INK, MASKED, canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROW = 1.3  # inches per row of panels
COLOURS = {"train": INK, "validation": CONTINUUM, "test": MASKED}
STEEP = 10.0  # ratio of the largest to the smallest error that wants a logarithm
BINS = 30


def draw(model: Model, labels: dict[str, dict[str, np.ndarray]], output: Path) -> None:
    """Draw losses and errors against epochs, if there were any, and the labels.

    Parameters
    ----------
    model : Model
        As `training.train` returns it.
    labels : dict of dict of ndarray
        By part of the split and label name: its values.
    output : Path
        png, pdf or svg.
    """
    history = model.training["history"]
    rows = len(model.labels) + bool(history)
    with canvas(str(output), ROW * rows + 0.3) as figure:
        figure.set_layout_engine("constrained")
        grid = figure.add_gridspec(rows, 2)
        if history:
            axes = figure.add_subplot(grid[0, :])
            _losses(axes, history)
            loss = model.training["config"]["loss"]
            axes.set(xlabel="Epoch", ylabel=f"Loss ({loss})")
        for row, label in enumerate(model.labels, start=bool(history)):
            unit = f" ({label.unit})" if label.unit else ""
            if history:
                axes = figure.add_subplot(grid[row, 0])
                _errors(axes, history, label.name)
                axes.set(xlabel="Epoch", ylabel=f"MAE of {label.name}{unit}")
            axes = figure.add_subplot(grid[row, 1 if history else slice(None)])
            _distribution(axes, {part: v[label.name] for part, v in labels.items()})
            axes.set(xlabel=f"{label.name}{unit}", ylabel="Spectra")
        figure.align_ylabels()
        _legend(figure, {part for part, v in labels.items() if len(v[label.name])})


def _legend(figure: Figure, parts: set[str]) -> None:
    """One legend for all panels, above them."""
    from matplotlib.lines import Line2D

    lines = [
        Line2D([], [], color=colour, linewidth=1.2, label=part)
        for part, colour in COLOURS.items()
        if part in parts
    ]
    figure.legend(
        handles=lines, loc="outside upper center", ncols=len(lines), frameon=False
    )


def _members(history: list[dict]) -> Iterator[list[dict]]:
    """Entries of one network after the other."""
    for number in sorted({entry["member"] for entry in history}):
        yield [entry for entry in history if entry["member"] == number]


def _losses(axes: Axes, history: list[dict]) -> None:
    for entries in _members(history):
        for part in ("train", "validation"):
            _curve(axes, entries, [e[f"{part}_loss"] for e in entries], part)
    _epochs(axes)


def _errors(axes: Axes, history: list[dict], name: str) -> None:
    values = np.array([entry["mae"].get(name, np.nan) for entry in history])
    known = values[np.isfinite(values) & (values > 0)]
    for entries in _members(history):
        errors = [entry["mae"].get(name, np.nan) for entry in entries]
        _curve(axes, entries, errors, "validation")
    if known.size and known.max() > STEEP * known.min():
        axes.set_yscale("log")
    elif known.size:
        axes.set_ylim(0, 1.08 * known.max())
    else:
        axes.text(0.5, 0.5, "no validation rows", ha="center", transform=axes.transAxes)
    _epochs(axes)


def _curve(axes: Axes, entries: list[dict], values: list[float], part: str) -> None:
    epochs = [entry["epoch"] for entry in entries]
    marker = "." if len(epochs) < 12 else ""
    axes.plot(
        epochs, values, color=COLOURS[part], linewidth=0.8, marker=marker, markersize=3
    )


def _epochs(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))


def _distribution(axes: Axes, values: dict[str, np.ndarray]) -> None:
    """Histograms of the parts of the split, with a logarithmic scale."""
    finite = {part: v[np.isfinite(v)] for part, v in values.items()}
    everything = np.concatenate(list(finite.values()))
    low, high = everything.min(), everything.max()
    edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
    for part, numbers in finite.items():
        if numbers.size:
            counts, _ = np.histogram(numbers, edges)
            axes.stairs(counts, edges, color=COLOURS[part], linewidth=0.8)
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.7)
