"""Figures of a comparison: one row of panels per label.

density      predicted over reference, as a two-dimensional histogram: no overplotting
             at a million rows
residuals    histogram, its kernel density estimate, mean and standard deviation
bins         MAE over S/N, or over what ``--by`` says first
calibration  how many rows the errors hold, and how many they promise
errors       absolute errors of all models; of spectral types in subtypes
map, bias    MAE and mean error over Teff and log g

Where there are several models, density and maps show the first one, the others all.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from stellarcli import figures, metrics
from stellarcli.comparison import maps
from stellarcli.comparison.accuracy import Comparison, Model, bin_edges, binned
from stellarcli.comparison.pairs import Values
from stellarcli.comparison.sides import SUBTYPE
from stellarcli.errors import UsageError, unknown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PAGE = 7.1  # inches: two columns of a journal and the space between them
HEIGHT = 1.75  # inches of one row of panels
CELLS = 70  # of the density, per axis
FEW = 400  # rows up to which points are drawn instead

# Okabe & Ito's colours; lines differ in style, too
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 2)))
MARKS = "os^Dvp"
INK, GREY = figures.INK, figures.GREY

SYMBOLS = figures.SYMBOLS | {SUBTYPE: "Spectral type"}
CLASSES = "OBAFGKM"


def parse_panels(text: str | None) -> list[str]:
    """Read ``--panels``.

    Raises
    ------
    UsageError
        If a name is none of `PANELS`.
    """
    names = [name.strip() for name in text.split(",")] if text else []
    for name in names:
        if name not in PANELS:
            raise unknown("panel", name, PANELS)
    return names


def draw(comparison: Comparison, output: str, panels: Sequence[str] = ()) -> None:
    """Draw a comparison.

    Parameters
    ----------
    comparison : Comparison
    output : str
        Figure file, replaced if it exists.
    panels : sequence of str
        Of `PANELS`; by default all that there are data for, with errors instead of
        residuals for a spectral type.

    Raises
    ------
    UsageError
        If there is no data for any panel.
    """
    plan = {
        label: [p for p in panels or _default(label) if _possible(comparison, label, p)]
        for label in comparison.labels
        if _models(comparison, label)
    }
    columns = max(map(len, plan.values()), default=0)
    if not columns:
        raise UsageError(
            f"there is nothing to draw for the panels {', '.join(panels)}: the "
            "catalogues lack errors, S/N, or Teff and log g."
        )
    wide = columns > 2
    with figures.canvas(output, height=HEIGHT * len(plan) + 0.25) as figure:
        if wide:
            figure.set_figwidth(PAGE)
        figure.set_layout_engine("constrained", w_pad=0.05, h_pad=0.04, wspace=0.03)
        axes = figure.subplots(len(plan), columns, squeeze=False)
        for row, (label, chosen) in zip(axes, plan.items(), strict=True):
            for one in row[len(chosen) :]:
                one.set_axis_off()
            for one, panel in zip(row, chosen, strict=False):
                PANELS[panel](one, comparison, label)
                one.tick_params(which="both", top=True, right=True)
        if len(comparison.models) > 1:
            _key(figure, comparison)


def _key(figure: Figure, comparison: Comparison) -> None:
    """Say once, above all panels, which line is which model."""
    from matplotlib.lines import Line2D

    lines = [
        Line2D(
            [], [], marker=_mark(comparison, m), markersize=3, **_look(comparison, m)
        )
        for m in comparison.models
    ]
    figure.legend(
        lines,
        [_short(model.name, 30) for model in comparison.models],
        loc="outside upper center",
        ncols=min(len(lines), 4 if figure.get_figwidth() > figures.WIDTH else 2),
        frameon=False,
        handlelength=2.6,
    )


def _default(label: str) -> tuple[str, ...]:
    second = "errors" if label == SUBTYPE else "residuals"
    return ("density", second, "bins", "calibration")


def _possible(comparison: Comparison, label: str, panel: str) -> bool:
    models = _models(comparison, label)
    if panel == "bins":
        return any(_binned_by(m) is not None for m in models)
    if panel == "calibration":
        return any(m.values[label].error is not None for m in models)
    if panel in ("map", "bias"):
        return maps.possible(models[0])
    return True


def _models(comparison: Comparison, label: str) -> list[Model]:
    """Models that have a finite residual of a label."""
    return [m for m in comparison.models if m.labels.get(label, {"n": 0})["n"]]


def _look(comparison: Comparison, model: Model) -> dict[str, object]:
    """Colour and line of a model, the same in every panel."""
    number = comparison.models.index(model)
    colour, line = COLOURS[number % len(COLOURS)], LINES[number % len(LINES)]
    return {"color": colour, "linestyle": line, "linewidth": 0.9}


def _mark(comparison: Comparison, model: Model) -> str:
    return MARKS[comparison.models.index(model) % len(MARKS)]


def _symbol(label: str, unit: str, before: str = "") -> str:
    unit = unit or ("dex" if label == "logg" or label in SYMBOLS else "")
    if label == SUBTYPE:
        unit = ""
    name = SYMBOLS.get(label, label)
    if before:
        name = f"{before} {name[0].lower() + name[1:] if label == SUBTYPE else name}"
    return f"{name} ({unit})" if unit else name


def _short(name: str, size: int = 18) -> str:
    return name if len(name) <= size else name[: size - 1] + "…"


def _write(
    axes: Axes, text: str, corner: str = "upper left", colour: str = INK
) -> None:
    """Write into a corner, clear of the ticks."""
    right, lower = "right" in corner, "lower" in corner
    axes.annotate(
        text,
        (float(right), float(not lower)),
        (-5 if right else 5, 4 if lower else -4),
        xycoords="axes fraction",
        textcoords="offset points",
        ha="right" if right else "left",
        va="bottom" if lower else "top",
        color=colour,
        fontsize=6,
        linespacing=1.25,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.8},
        zorder=5,
    )


def _figure(value: float) -> str:
    """Three digits, with a minus sign that is one."""
    if not np.isfinite(value):
        return "–"
    digits = 2 - int(np.floor(np.log10(max(abs(value), 1e-3))))
    text = f"{value:.{min(max(digits, 0), 3)}f}"
    return text.removeprefix("-") if float(text) == 0 else text.replace("-", "−")


# -------------------------------------------------------------------------- density


def _density(axes: Axes, comparison: Comparison, label: str) -> None:
    models = _models(comparison, label)
    model = models[0]
    values = model.values[label]
    good = np.isfinite(values.residual)
    x, y = values.reference[good], values.predicted[good]
    low, high = _range(x, y)
    inside = (x >= low) & (x <= high) & (y >= low) & (y <= high)
    if good.sum() <= FEW:
        axes.plot(x, y, ".", color=COLOURS[0], markersize=2, alpha=0.7, zorder=2)
    else:
        _histogram(axes, x, y, (low, high))
    axes.plot([low, high], [low, high], color=INK, linewidth=0.7, zorder=3)
    if label == SUBTYPE:
        _parabola(axes, values, (low, high))
    axes.set(xlim=(low, high), ylim=(low, high))
    axes.set_xlabel(_symbol(label, values.unit, "Reference"))
    axes.set_ylabel(_symbol(label, values.unit, "Predicted"))
    _same_ticks(axes, label, low, high)
    lines = [f"N = {good.sum():,}".replace(",", "\N{NARROW NO-BREAK SPACE}")]
    if len(comparison.models) > 1:
        lines.insert(0, _short(model.name))
    if not inside.all():
        lines.append(f"{(~inside).sum()} outside")
    _write(axes, "\n".join(lines))


def _range(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Range of both axes: nearly all references and predictions."""
    edges = np.percentile(np.concatenate([x, y]), [0.05, 99.95])
    low, high = float(edges[0]), float(edges[1])
    room = 0.04 * (high - low) or 0.5
    return low - room, high + room


def _histogram(
    axes: Axes, x: np.ndarray, y: np.ndarray, limits: tuple[float, float]
) -> None:
    from matplotlib.colors import LogNorm

    cells = int(np.clip(np.sqrt(x.size), 25, CELLS))
    edges = np.linspace(*limits, cells + 1)
    counts, _, _ = np.histogram2d(x, y, bins=(edges, edges))
    shown = np.ma.masked_equal(counts.T, 0)
    norm = LogNorm(1, max(counts.max(), 10))
    picture = axes.pcolormesh(
        edges, edges, shown, cmap=_colours(), norm=norm, rasterized=True, zorder=1
    )
    bar = axes.figure.colorbar(picture, ax=axes, pad=0.02, fraction=0.06, aspect=25)
    bar.set_label("Stars per cell", labelpad=2)
    bar.ax.yaxis.set_major_formatter("{x:g}")
    bar.outline.set_linewidth(0.4)
    bar.ax.tick_params(which="both", direction="in", pad=1.5)
    bar.ax.minorticks_off()


def _colours():
    """Viridis from green-yellow to dark: a single star must show on white."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    return ListedColormap(colormaps["viridis_r"](np.linspace(0.12, 1, 256)))


def _parabola(axes: Axes, values: Values, limits: tuple[float, float]) -> None:
    """Quadratic fit of the label on the prediction, with its band."""
    fit = metrics.quadratic(values.predicted, values.reference)
    if fit is None:
        return
    predicted = values.predicted[np.isfinite(values.residual)]
    grid = np.linspace(*np.percentile(predicted, [0.5, 99.5]), 200)
    middle, band = fit(grid), fit.band(grid)
    axes.fill_betweenx(
        grid, middle - band, middle + band, color=COLOURS[1], alpha=0.3, linewidth=0
    )
    line = {"color": COLOURS[1], "linestyle": "--", "linewidth": 0.9, "zorder": 4}
    axes.plot(middle, grid, **line)
    _write(axes, "quadratic fit\nand 95 % band", "lower right", COLOURS[1])


def _same_ticks(axes: Axes, label: str, low: float, high: float) -> None:
    from matplotlib.ticker import MaxNLocator

    if label == SUBTYPE:
        ticks = np.arange(np.ceil(low), np.floor(high) + 1)
        names = [_class(tick) for tick in ticks]
    else:
        ticks = MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
        ticks = ticks[(ticks >= low) & (ticks <= high)]
        digits = 0 if np.allclose(ticks, np.round(ticks)) else 1
        names = [f"{tick:.{digits}f}".replace("-", "−") for tick in ticks]
    axes.set_xticks(ticks, names)
    axes.set_yticks(ticks, names)


def _class(number: float) -> str:
    """Name of a spectral type's first subtype: A0 is 0."""
    index = round(number) + CLASSES.index("A")
    return f"{CLASSES[index]}0" if 0 <= index < len(CLASSES) else f"{number:g}"


# ------------------------------------------------------------------------ residuals


def _residuals(axes: Axes, comparison: Comparison, label: str) -> None:
    models = _models(comparison, label)
    spread = max(m.labels[label]["nmad"] for m in models)
    spread = spread or max(m.labels[label]["std"] for m in models) or 1.0
    center = np.median([m.labels[label]["p50"] for m in models])
    limits = (center - 5 * spread, center + 5 * spread)
    grid = np.linspace(*limits, 401)
    for model in models:
        residual = model.values[label].residual
        residual = residual[np.isfinite(residual)]
        density = kernel_density(residual, grid)
        if len(models) == 1:
            bins = int(np.clip(np.sqrt(residual.size), 15, 60))
            counts, edges = np.histogram(residual, bins, limits)
            height = counts / residual.size / np.diff(edges)
            axes.stairs(height, edges, fill=True, color="#9ECAE1", alpha=0.8)
        look = _look(comparison, model)
        axes.plot(grid, density, **look)
    top = 1 if len(models) == 1 else 0.7  # clear of the legend
    axes.axvline(0, 0, top, color=INK, linewidth=0.5, zorder=1)
    axes.set(xlim=limits, yticks=[])
    axes.set_ylim(0, (1.45 if len(models) > 1 else 1.15) * axes.get_ylim()[1])
    unit = models[0].values[label].unit
    axes.set_xlabel("Δ " + _symbol(label, unit) if label != SUBTYPE else "Δ type")
    axes.set_ylabel("Density")
    axes.locator_params(axis="x", nbins=4)
    _moments(axes, models, label)


def _moments(axes: Axes, models: Sequence[Model], label: str) -> None:
    """Mean and standard deviation: in a corner, or beside the lines of several."""
    found = [(m.labels[label]["bias"], m.labels[label]["std"]) for m in models]
    if len(models) > 1:
        words = [f"{_figure(mean)} ± {_figure(std)}" for mean, std in found]
        axes.legend(axes.get_lines()[: len(models)], words, title="μ ± σ", **LEGEND)
        return
    mean, std = found[0]
    _write(axes, f"μ = {_figure(mean)}\nσ = {_figure(std)}")
    beyond = _beyond(axes, models[0].values[label].residual)
    if beyond:
        _write(axes, f"{beyond}\noutside", "upper right")


LEGEND = {
    "loc": "upper left",
    "frameon": False,
    "fontsize": 5.5,
    "title_fontsize": 5.5,
    "handlelength": 1.8,
    "borderaxespad": 0.3,
    "labelspacing": 0.3,
}


def _beyond(axes: Axes, residual: np.ndarray) -> str:
    """Fraction of residuals that the panel doesn't show."""
    low, high = axes.get_xlim()
    finite = residual[np.isfinite(residual)]
    outside = np.mean((finite < low) | (finite > high))
    return f"{100 * outside:.2g} %" if outside else ""


def kernel_density(values: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Gaussian kernel density estimate on an even grid, at the cost of a histogram.

    Parameters
    ----------
    values : ndarray, shape (row,)
    grid : ndarray, shape (point,)
        Evenly spaced.

    Returns
    -------
    ndarray, shape (point,)
        The kernel's width is 0.9 min(σ, NMAD) N^(-1/5), Silverman's rule with a robust
        scatter.
    """
    step = grid[1] - grid[0]
    scatter = min(filter(None, (values.std(), metrics.nmad(values))), default=step)
    width = max(0.9 * scatter * values.size**-0.2, step)
    reach = int(np.ceil(4 * width / step))
    lower = grid[0] - (reach + 0.5) * step
    edges = lower + step * np.arange(grid.size + 2 * reach + 1)
    counts, _ = np.histogram(values, edges)
    offset = step * np.arange(-reach, reach + 1)
    kernel = np.exp(-0.5 * (offset / width) ** 2)
    smooth = np.convolve(counts, kernel / kernel.sum(), mode="valid")
    return smooth / (values.size * step)


# ----------------------------------------------------------------------------- bins


def _binned_by(model: Model) -> str | None:
    """Return what the panel bins by."""
    if model.bins:
        return next(iter(model.bins))
    return "snr" if model.pairs.has("snr") else None


def _bins(axes: Axes, comparison: Comparison, label: str) -> None:
    name = ""
    for model in _models(comparison, label):
        name = _binned_by(model) or ""
        if not name:
            continue
        rows = model.bins.get(name, {}).get(label)
        if rows is None:
            by = np.asarray(model.pairs.column(name), dtype=np.float64)
            rows = binned(by, bin_edges(name, by), model.values[label])
        rows = [row for row in rows if row["n"] > 4]
        middle = np.array([row["middle"] for row in rows])
        value = np.array([row["mae"] for row in rows])
        ends = np.array([row["intervals"]["mae"] for row in rows]).reshape(-1, 2).T
        axes.errorbar(
            middle,
            value,
            yerr=np.maximum(np.abs(ends - value), 0),
            marker=_mark(comparison, model),
            markersize=2.5,
            elinewidth=0.7,
            **_look(comparison, model),
        )
    _bins_axes(axes, comparison, label, name)


def _bins_axes(axes: Axes, comparison: Comparison, label: str, name: str) -> None:
    unit = _models(comparison, label)[0].values[label].unit
    axes.set_ylim(0, 1.15 * axes.get_ylim()[1] or 1.0)
    if name == "snr":
        axes.set_xscale("log")
        axes.set_xlabel("S/N")
        ticks = [t for t in (3, 10, 30, 100, 300) if _shows(axes, t)]
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
    else:
        known = {n: v.unit for m in comparison.models for n, v in m.values.items()}
        axes.set_xlabel(_symbol(name, known.get(name, "")))
        axes.locator_params(axis="x", nbins=4)
    axes.set_ylabel(
        "MAE " + _symbol(label, unit) if label != SUBTYPE else "MAE (types)"
    )


def _shows(axes: Axes, value: float) -> bool:
    low, high = axes.get_xlim()
    return low <= value <= high


# ---------------------------------------------------------------------- calibration


def _calibration(axes: Axes, comparison: Comparison, label: str) -> None:
    words = []
    for model in _models(comparison, label):
        found = model.labels[label]
        if "reliability" not in found:
            continue
        curve = found["reliability"]
        axes.plot(
            [0, *curve["expected"], 1],
            [0, *curve["observed"], 1],
            label=f"k = {_figure(found['scaling'])}",
            **_look(comparison, model),
        )
        words.append(
            "\n".join(
                f"{n}σ: {100 * found[f'within{n}']:.1f} %" for n in metrics.WITHIN
            )
            + f"\nk = {_figure(found['scaling'])}"
        )
    axes.plot([0, 1], [0, 1], color=INK, linewidth=0.5, zorder=1)
    axes.set(xlim=(0, 1), ylim=(0, 1), xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
    axes.set_xlabel("Promised fraction")
    axes.set_ylabel("Observed fraction")
    if len(words) == 1:
        high = _too_large(axes)
        _write(axes, words[0], "lower right" if high else "upper left")
    else:
        axes.legend(
            **LEGEND | {"loc": "lower right" if _too_large(axes) else "upper left"}
        )


def _too_large(axes: Axes) -> bool:
    """Say whether most of the curves is above the diagonal."""
    return sum(np.mean(line.get_ydata() - line.get_xdata()) for line in axes.lines) > 0


# --------------------------------------------------------------------------- errors


def _errors(axes: Axes, comparison: Comparison, label: str) -> None:
    """Distribution of absolute errors, on a logarithmic scale for its tail."""
    subtype = label == SUBTYPE
    factor = 10.0 if subtype else 1.0
    models = _models(comparison, label)
    errors = {
        m.name: factor
        * np.abs(m.values[label].residual)[np.isfinite(m.values[label].residual)]
        for m in models
    }
    top = max(float(e.max()) for e in errors.values()) or 1.0
    edges = np.arange(0, np.ceil(top) + 1.5, 0.5) if subtype else None
    edges = np.linspace(0, top, 41) if edges is None or edges.size > 200 else edges
    for model in models:
        values = errors[model.name]
        share = np.histogram(values, edges)[0] / values.size
        text = None
        if subtype:
            text = f"{100 * model.labels[label]['within_half_subtype']:.1f} %"
        axes.stairs(share, edges, label=text, **_look(comparison, model))
    axes.set_yscale("log")
    axes.set_xlim(0, edges[-1])
    axes.set_ylim(top=6)
    unit = models[0].values[label].unit
    what = "|Δ| (subtypes)" if subtype else "|Δ| " + _symbol(label, unit)
    axes.set_xlabel(what)
    axes.set_ylabel("Fraction of stars")
    if subtype:
        axes.axvline(0.5, color=INK, linewidth=0.5, linestyle=":")
        axes.legend(**LEGEND | {"loc": "upper right"}, title="within ½ subtype")


# ----------------------------------------------------------------------------- maps


def _map(axes: Axes, comparison: Comparison, label: str, kind: str = "mae") -> None:
    model = _models(comparison, label)[0]
    name = "MAE" if kind == "mae" else "Bias"
    maps.draw(axes, model, label, kind, _symbol(label, model.values[label].unit, name))
    if len(comparison.models) > 1:
        _write(axes, _short(model.name))


PANELS = {
    "density": _density,
    "residuals": _residuals,
    "bins": _bins,
    "calibration": _calibration,
    "errors": _errors,
    "map": _map,
    "bias": partial(_map, kind="bias"),
}
