"""Importance as a figure: mean spectra coloured by it, with names of features.

labels    one panel per label, over all spectra
classes   one panel per label and spectral class
examples  one panel per label and single spectrum, the best of each class
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from stellarcli import figures
from stellarcli.errors import UsageError, unknown
from stellarcli.explanation import classes, lines, method_class, ranking
from stellarcli.explanation.importance import Group, Importance, Maps

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap, Normalize

PANELS = ("labels", "classes", "examples")
BY_CLASS = ("cam", "gradcam")  # methods drawn per class unless told otherwise
SYMBOLS = figures.SYMBOLS | {"sptype_num": "Spectral type"}
HEIGHT = 1.75  # inches of a panel
NAMED = 14  # features per panel, at most
LEAST = 0.1  # of the highest importance, for a name
LETTER = 0.095  # inches between names
SIZE = 2.7  # inches that the axes are wide
MOST = 42  # panels that fit into one figure

# from light to dark, so that it is a scale without colours, too
COLOURS = ("#C4C4C4", "#E69F00", "#D55E00", "#7A1E00", "#3B0A00")


def check_panels(name: str | None) -> None:
    """Raise `UsageError` unless a name, if there is one, is in `PANELS`."""
    if name is not None and name not in PANELS:
        raise unknown("kind of panels", name, PANELS)


class Examples:
    """The spectra of highest signal-to-noise ratio in each class.

    Parameters
    ----------
    count : int
        Of each class.
    """

    def __init__(self, count: int):
        self.count = count
        self.best: dict[str, Maps] = {}

    def keep(self, maps: Maps) -> None:
        """Look at some more spectra."""
        if not len(maps):
            return
        scores = classes.scores(maps.rows)
        own = np.full(len(maps), "") if scores is None else classes.names(scores)
        for name in np.unique(own).tolist():
            more = maps.take(np.flatnonzero(own == name))
            both = self.best[name].joined(more) if name in self.best else more
            order = np.argsort(-np.nan_to_num(both.rows["snr"]), kind="stable")
            self.best[name] = both.take(order[: self.count])


@dataclass(frozen=True, eq=False)
class Panel:
    """What one panel shows.

    Attributes
    ----------
    group : Group
        Spectra averaged.
    label : int
        Which of the labels explained.
    title : str
    """

    group: Group
    label: int
    title: str


def draw(
    found: Importance,
    output: str,
    panels: str | None = None,
    examples: Examples | None = None,
) -> None:
    """Draw importance.

    Parameters
    ----------
    found : Importance
    output : str
        Figure file, replaced if it exists.
    panels : str, optional
        Of `PANELS`; by default classes of activation maps, where there are any, and
        labels of the other methods.
    examples : Examples, optional
        For panels of that name.

    Raises
    ------
    UsageError
        If there is nothing for such panels, or too much.
    """
    plan = {
        "labels": _labels,
        "classes": _classes,
        "examples": lambda found: _examples(found, examples),
    }
    by_class = found.request.method in BY_CLASS and found.found_classes
    chosen = list(plan[panels or ("classes" if by_class else "labels")](found))
    if not chosen:
        raise UsageError(
            "the model predicts no temperature and no spectral type, hence there are "
            "no classes to draw; give --panels labels."
        )
    if len(chosen) > MOST:
        raise UsageError(
            f"{len(chosen)} panels are too many for a figure; choose labels with "
            "--target, or fewer --examples."
        )
    with figures.canvas(output, height=HEIGHT * len(chosen) + 0.25) as figure:
        figure.set_layout_engine("constrained", h_pad=0.02, w_pad=0.03, hspace=0)
        every = figure.subplots(len(chosen), sharex=True, squeeze=False)[:, 0]
        for axes, panel in zip(every, chosen, strict=True):
            _draw(axes, found, panel)
        every[-1].set_xlabel("Wavelength (Å, vacuum, rest frame)")


def _labels(found: Importance) -> Iterator[Panel]:
    for n in range(len(found.labels)):
        yield Panel(found.whole, n, _spectra(found.used))


def _classes(found: Importance) -> Iterator[Panel]:
    for n in range(len(found.labels)):
        for name in found.found_classes:
            group = found.groups[name]
            yield Panel(group, n, f"{name}: {_spectra(group.count)}, {_scores(group)}")


def _examples(found: Importance, examples: Examples) -> Iterator[Panel]:
    for n in range(len(found.labels)):
        for name in found.found_classes:
            maps = examples.best[name]
            for row in range(len(maps)):
                one, group = maps.take(np.array([row])), Group()
                group.add(one, classes.scores(one.rows))
                title = f"{one.rows['objid'][0].decode()}: {_scores(group)}"
                yield Panel(group, n, title)


def _spectra(count: int) -> str:
    return f"{count} spectra" if count > 1 else "1 spectrum"


def _scores(group: Group) -> str:
    """Class scores above a hundredth."""
    pairs = zip(classes.CLASSES, group.scores, strict=True)
    return " ".join(f"{name} {score:.2f}" for name, score in pairs if score >= 0.005)


# ---------------------------------------------------------------------------- panels


def _draw(axes: Axes, found: Importance, panel: Panel) -> None:
    """Draw a spectrum, coloured, above its importance, below names."""
    from matplotlib.colors import LinearSegmentedColormap, Normalize
    from matplotlib.ticker import MaxNLocator

    point = found.wavelength
    importance = panel.group.mean[:, panel.label]
    wavelength, flux = _shown(found, panel.group)
    highest = float(importance.max()) or 1.0
    colours = LinearSegmentedColormap.from_list("importance", COLOURS)
    scale = Normalize(0, highest)
    own = np.interp(wavelength, point, importance, left=0, right=0)
    _coloured(axes, wavelength, flux, own, colours, scale)
    low, high = np.nanquantile(flux, [0.001, 0.995])
    room = (high - low) or 1.0
    axes.set_ylim(low - 0.6 * room, high + room)
    axes.set_xlim(wavelength[0], wavelength[-1])
    axes.set_yticks([t for t in axes.get_yticks() if low - 0.1 * room <= t <= high])
    axes.set_ylabel(figures.flux_label(found.model.recipe))
    axes.tick_params(which="both", top=True)
    below = axes.twinx()
    inside = (point >= wavelength[0]) & (point <= wavelength[-1])
    below.fill_between(
        *(point[inside], importance[inside]), color=COLOURS[1], linewidth=0, alpha=0.5
    )
    below.plot(point[inside], importance[inside], color=COLOURS[3], linewidth=0.6)
    below.set_ylim(0, 4.5 * highest)
    ticks = MaxNLocator(2).tick_values(0, highest)
    below.set_yticks([t for t in ticks if t <= 1.01 * highest])
    below.set_ylabel(_symbol(found, panel.label), color=COLOURS[3])
    below.tick_params(axis="y", colors=COLOURS[3])
    _names(axes, found, panel)
    axes.set_title(panel.title, loc="left", fontsize=6, pad=2, parse_math=False)


def _shown(found: Importance, group: Group) -> tuple[np.ndarray, np.ndarray]:
    """Part of the mean spectrum that the method looked at, shape (pixel,) each.

    Gaps have a NaN in them.
    """
    wavelength, flux = found.pixels, group.flux
    windows = found.request.windows
    seen = (wavelength >= windows.start) & (wavelength <= windows.stop)
    if found.model.wavelength is None:  # only where these spectra lie
        known = np.flatnonzero(seen & np.isfinite(flux))
        if known.size:
            seen[: known[0]] = seen[known[-1] + 1 :] = False
    wavelength, flux = wavelength[seen], flux[seen].copy()
    step = np.diff(wavelength)
    flux[1:][step > 5 * np.median(step)] = np.nan
    return wavelength, flux


def _coloured(
    axes: Axes,
    wavelength: np.ndarray,
    flux: np.ndarray,
    importance: np.ndarray,
    colours: Colormap,
    scale: Normalize,
) -> None:
    from matplotlib.collections import LineCollection

    points = np.stack([wavelength, flux], axis=1)
    pieces = np.stack([points[:-1], points[1:]], axis=1)  # (piece, end, axis)
    middle = (importance[:-1] + importance[1:]) / 2
    known = np.isfinite(pieces).all(axis=(1, 2))
    axes.add_collection(
        LineCollection(
            pieces[known],
            array=middle[known],
            cmap=colours,
            norm=scale,
            linewidths=0.8,
            capstyle="round",
        )
    )


def _symbol(found: Importance, number: int) -> str:
    label = found.labels[number]
    unit = label.unit or ("dex" if label.name in figures.SYMBOLS else "")
    unit = unit if found.in_units else ""
    name = SYMBOLS.get(label.name, label.name)
    name = method_class(found.request.method).axis.format(name)
    return f"{name} ({unit})" if unit else name


def _names(axes: Axes, found: Importance, panel: Panel) -> None:
    """Name the features at the highest peaks, upright above the spectrum."""
    start, stop = axes.get_xlim()
    marks = peaks(found, panel, start, stop)
    room = LETTER / SIZE * (stop - start)
    places = apart([at for at, _ in marks], room, start + room / 2, stop - room / 2)
    inside = {"transform": axes.get_xaxis_transform()}
    for (at, name), place in zip(marks, places, strict=True):
        axes.plot(
            *([at, at, place], [0.61, 0.65, 0.69]),
            color=figures.INK,
            linewidth=0.35,
            **inside,
        )
        axes.text(
            *(place, 0.7, name),
            rotation="vertical",
            ha="center",
            va="bottom",
            fontsize=5.5,
            **inside,
        )


def peaks(
    found: Importance, panel: Panel, start: float, stop: float
) -> list[tuple[float, str]]:
    """Places and names of the features that matter most, by wavelength.

    Parameters
    ----------
    found : Importance
    panel : Panel
    start, stop : float
        Of the wavelengths shown.

    Returns
    -------
    list of (float, str)
        Each name once, at its highest peak.
    """
    marks: dict[str, float] = {}
    windows = ranking.top(found, panel.group, panel.label, 4 * NAMED)
    for window in windows:
        near = lines.between(window.low, window.high, panel.group.classes)
        small = window.importance < LEAST * windows[0].importance
        if small or not near or near[0].name in marks or len(marks) == NAMED:
            continue
        at = np.clip(near[0].wavelength, window.low, window.high)  # bands are wide
        if start <= at <= stop:
            marks[near[0].name] = float(at)
    return sorted((at, name) for name, at in marks.items())


def apart(places: Sequence[float], room: float, low: float, high: float) -> np.ndarray:
    """Move ordered places so that none are nearer than `room`, and by little.

    After subtracting ``n room`` from the n-th place the result must not decrease:
    halfway between its running maximum from the left and its running minimum from the
    right it doesn't, and lone places stay.

    Parameters
    ----------
    places : sequence of float
        Ascending.
    room, low, high : float
        The places end up between `low` and `high` if there is room.

    Returns
    -------
    ndarray, same shape
    """
    steps = room * np.arange(len(places))
    if not len(places):
        return steps
    free = np.asarray(places) - steps
    from_left = np.maximum.accumulate(free)
    from_right = np.minimum.accumulate(free[::-1])[::-1]
    middle = (from_left + from_right) / 2
    return np.clip(middle, low, max(high - steps[-1], low)) + steps
