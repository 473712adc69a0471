"""Figure of a training: its curves, and the labels it saw."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from stellarcli.checkpoint import Model
from stellarcli.figures import CONTINUUM, INK, MASKED, canvas

ROW = 1.4  # inches per row of panels


def draw(model: Model, labels: dict[str, dict[str, np.ndarray]], output: Path) -> None:
    """Draw losses and errors against epochs, and the label distributions.

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
    count = len(model.labels)
    with canvas(str(output), ROW * (count + 1)) as figure:
        grid = figure.add_gridspec(count + 1, 2)
        _losses(figure.add_subplot(grid[0, :]), history)
        for row, label in enumerate(model.labels, start=1):
            unit = f" ({label.unit})" if label.unit else ""
            axes = figure.add_subplot(grid[row, 0])
            _errors(axes, history, label.name)
            axes.set(xlabel="Epoch", ylabel=f"MAE of {label.name}{unit}")
            axes = figure.add_subplot(grid[row, 1])
            _distribution(axes, {p: v[label.name] for p, v in labels.items()})
            axes.set(xlabel=f"{label.name}{unit}", ylabel="Spectra")
        figure.tight_layout(pad=0.3)


def _members(history: list[dict]) -> dict[int, list[dict]]:
    numbers = sorted({entry["member"] for entry in history})
    return {n: [e for e in history if e["member"] == n] for n in numbers}


def _losses(axes, history: list[dict]) -> None:
    for entries in _members(history).values():
        epochs = [entry["epoch"] for entry in entries]
        for key, colour in (("train_loss", INK), ("validation_loss", CONTINUUM)):
            name = key.removesuffix("_loss")
            values = [entry[key] for entry in entries]
            axes.plot(epochs, values, color=colour, label=name)
    handles, names = axes.get_legend_handles_labels()
    unique = dict(zip(names, handles, strict=True))
    axes.legend(unique.values(), unique.keys(), frameon=False)
    axes.set(xlabel="Epoch", ylabel="Loss")


def _errors(axes, history: list[dict], name: str) -> None:
    for entries in _members(history).values():
        known = [entry for entry in entries if name in entry["mae"]]
        epochs = [entry["epoch"] for entry in known]
        axes.plot(epochs, [entry["mae"][name] for entry in known], color=CONTINUUM)
    axes.set_ylim(bottom=0)


def _distribution(axes, values: dict[str, np.ndarray]) -> None:
    """Histograms of the parts of the split, on a common, logarithmic scale."""
    everything = np.concatenate(list(values.values()))
    everything = everything[np.isfinite(everything)]
    edges = np.linspace(everything.min(), everything.max(), 31)
    colours = {"train": INK, "validation": CONTINUUM, "test": MASKED}
    for part, numbers in values.items():
        if np.isfinite(numbers).any():
            finite = numbers[np.isfinite(numbers)]
            axes.hist(
                finite,
                edges,
                histtype="step",
                color=colours[part],
                label=part,
                log=True,
            )
    axes.legend(frameon=False)
