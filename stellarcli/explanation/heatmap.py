"""Channel attention as a figure: the heat map of a batch, and over the spectrum."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from stellarcli import figures
from stellarcli.explanation import lines
from stellarcli.explanation.drawing import LETTER, SIZE, apart
from stellarcli.explanation.importance import Importance, Maps

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROWS = 256  # stars in the heat map, at most
ATTENDED = 0.5  # weight from which a position is shaded (the paper's figure 10)
# what carbon, nitrogen, metals and gravity of a red-clump star are read from
KNOWN = ("CN 4160", "Hδ", "Sr II 4216", "Ca I 4227", "G band", "Hγ", "Fe I 4384")
KNOWN += ("C2 4668", "Hβ", "Fe I 4958", "Mg b", "Fe I 5270", "Fe I 5328")
AREA, LINE = "#F0E442", "#D55E00"  # of what is attended to, and of known lines


class Weights:
    """Weights of the first stars of a run.

    Attributes
    ----------
    rows : list of ndarray, each (spectrum, channel)
    """

    def __init__(self) -> None:
        self.rows: list[np.ndarray] = []

    def keep(self, maps: Maps) -> None:
        """Look at some more stars."""
        room = ROWS - sum(map(len, self.rows))
        if maps.channels is not None and len(maps) and room > 0:
            self.rows.append(maps.channels[:room])


def draw(
    found: Importance, output: str, weights: Weights, parts: dict[str, slice]
) -> None:
    """Draw the heat map above the mean spectrum.

    Parameters
    ----------
    found : Importance
        Of the method ``channel-attention``.
    output : str
        Figure file, replaced if it exists.
    weights : Weights
    parts : dict of slice
        Channels of each kind.
    """
    with figures.canvas(output, height=4.2) as figure:
        figure.set_layout_engine("constrained", h_pad=0.02, w_pad=0.03, hspace=0.04)
        above, below = figure.subplots(2, height_ratios=[1.25, 1])
        image = _heat(above, np.concatenate(weights.rows), parts)
        figure.colorbar(image, ax=above, label="Weight", pad=0.01, aspect=30)
        _overlay(below, found)


def _heat(axes: Axes, rows: np.ndarray, parts: dict[str, slice]):
    image = axes.imshow(
        rows, aspect="auto", cmap="viridis", vmin=0, vmax=1, interpolation="nearest"
    )
    for name, part in parts.items():
        if part.start:
            axes.axvline(part.start - 0.5, color="#BBBBBB", linestyle="--")
        middle = (part.start + part.stop - 1) / 2
        axes.text(middle, -0.02 * len(rows) - 0.5, name, ha="center", va="bottom")
    axes.set(xlabel="Channel", ylabel="Star")
    return image


def _overlay(axes: Axes, found: Importance) -> None:
    """Draw the mean spectrum, shaded where it is attended to, with known lines."""
    windows = found.request.windows
    wavelength = found.model.wavelength
    seen = (wavelength >= windows.start) & (wavelength <= windows.stop)
    wavelength, flux = wavelength[seen], found.whole.flux[seen]
    weight = found.whole.mean[seen, 0]
    axes.plot(wavelength, flux, color=figures.INK)
    axes.fill_between(
        *(wavelength, 0, 1),
        where=weight > ATTENDED,
        color=AREA,
        alpha=0.5,
        linewidth=0,
        transform=axes.get_xaxis_transform(),
        zorder=0,
    )
    low, high = np.nanquantile(flux, [0.001, 0.999])
    room = (high - low) or 1.0
    axes.set_xlim(wavelength[0], wavelength[-1])
    axes.set_ylim(low - 0.05 * room, high + 0.75 * room)
    axes.set(
        xlabel="Wavelength (Å, vacuum, rest frame)",
        ylabel=figures.flux_label(found.model.recipe),
    )
    _name(axes)
    scale = axes.twinx()
    scale.plot(wavelength, weight, color=LINE, linewidth=0.6)
    scale.set_ylim(0, 1.9)
    scale.set_yticks([0, 0.5, 1])
    scale.set_ylabel("Weight", color=LINE)


def _name(axes: Axes) -> None:
    """Mark and name features of red-clump stars."""
    start, stop = axes.get_xlim()
    known = {
        line.name: line.wavelength
        for line in lines.load()
        if line.name in KNOWN and start <= line.wavelength <= stop
    }
    marks = sorted((at, name) for name, at in known.items())
    room = LETTER / SIZE * (stop - start)
    places = apart([at for at, _ in marks], room, start + room / 2, stop - room / 2)
    inside = {"transform": axes.get_xaxis_transform()}
    for (at, name), place in zip(marks, places, strict=True):
        axes.plot([at, at, place], [0, 0.66, 0.72], color=LINE, linewidth=0.4, **inside)
        axes.text(
            *(place, 0.73, name),
            rotation="vertical",
            ha="center",
            va="bottom",
            fontsize=5.5,
            **inside,
        )
