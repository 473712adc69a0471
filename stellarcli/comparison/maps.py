"""Panels of `drawing` that show where in Teff and log g a model errs.

Cells are wide where stars are few: their edges are quantiles of the reference labels,
rounded, and cells with less than `LEAST` stars stay empty.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from stellarcli.comparison.accuracy import Model

LEAST = 4  # stars of a cell, for a mean to say something
ACROSS, DOWN = (6, 14), (5, 12)  # cells of Teff and log g, at least and at most
EACH = 12  # stars of a cell of the average, which decides how many there are
TEFF_STEP, LOGG_STEP = 50.0, 0.05  # that edges are rounded to
SATURATION = 95  # percentile of the cells at which colours end


def possible(model: Model) -> bool:
    """Say whether there are Teff and log g to draw over."""
    return {"teff", "logg"} <= set(model.values)


def draw(axes: Axes, model: Model, label: str, kind: str, title: str) -> None:
    """Draw a map.

    Parameters
    ----------
    axes : Axes
    model : Model
    label : str
        Of the residuals.
    kind : {'mae', 'bias'}
    title : str
        Of the colours.
    """
    residual = model.values[label].residual
    teff, logg = (model.values[name].reference for name in ("teff", "logg"))
    good = np.isfinite(residual) & np.isfinite(teff) & np.isfinite(logg)
    residual, teff, logg = residual[good], teff[good], logg[good]
    side = np.sqrt(residual.size / EACH)
    edges = (
        _edges(teff, int(np.clip(side, *ACROSS)), TEFF_STEP),
        _edges(logg, int(np.clip(side, *DOWN)), LOGG_STEP),
    )

    def summed(weights: np.ndarray) -> np.ndarray:
        return np.histogram2d(teff, logg, bins=edges, weights=weights)[0].T

    count = summed(np.ones_like(residual))
    total = summed(np.abs(residual) if kind == "mae" else residual)
    known = count >= LEAST
    values = np.ma.masked_array(total / np.maximum(count, 1), ~known)
    _paint(axes, edges, values, kind, title)
    axes.plot(teff, logg, ",", color="black", alpha=0.25, zorder=2)
    axes.set(xlim=edges[0][[-1, 0]], ylim=edges[1][[-1, 0]])  # as in an HR diagram
    axes.set_xlabel("Reference $T_\\mathrm{eff}$ (K)")
    axes.set_ylabel("Reference log g (dex)")
    axes.locator_params(axis="x", nbins=4)


def _edges(values: np.ndarray, cells: int, step: float) -> np.ndarray:
    """Edges half-way between equal numbers of stars and equal widths."""
    share = np.linspace(0, 1, cells + 1)
    low, high = (values.min(), values.max()) if values.size else (0.0, 1.0)
    even = low + share * (high - low)
    crowd = np.quantile(values, share) if values.size else even
    edges = np.round((even + crowd) / 2 / step) * step
    edges[0], edges[-1] = np.floor(low / step) * step, np.ceil(high / step) * step
    edges = np.unique(edges)
    return edges if edges.size > 1 else edges[0] + np.array([0.0, step])


def _paint(
    axes: Axes,
    edges: tuple[np.ndarray, np.ndarray],
    values: np.ma.MaskedArray,
    kind: str,
    title: str,
) -> None:
    from matplotlib import colormaps

    found = np.abs(values.compressed())
    top = float(np.percentile(found, SATURATION)) if found.size else 1.0
    top = top or 1.0
    name, low = ("viridis_r", 0.0) if kind == "mae" else ("RdBu_r", -top)
    picture = axes.pcolormesh(
        *edges,
        values,
        cmap=colormaps[name],
        vmin=low,
        vmax=top,
        rasterized=True,
        zorder=1,
    )
    beyond = "max" if kind == "mae" else "both"
    bar = axes.figure.colorbar(
        picture, ax=axes, pad=0.02, fraction=0.06, aspect=25, extend=beyond
    )
    bar.set_label(title, labelpad=2)
    bar.outline.set_linewidth(0.4)
    bar.ax.tick_params(which="both", direction="in", pad=1.5)
    bar.ax.minorticks_off()
