"""Figures of spectra: before and after a recipe, and folded into an image."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from stellarcli import catalog, imaging, surveys
from stellarcli.errors import NoUsableSpectraError, SpectrumError, UsageError
from stellarcli.folding import Image, Shape, read_image
from stellarcli.labels import ELEMENTS
from stellarcli.preparation import image_options
from stellarcli.preprocess import STEPS, Batch, Recipe
from stellarcli.preprocess.images import ImageFlag
from stellarcli.spectrum import PixelMask, Spectrum

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

ENDINGS = (".png", ".pdf", ".svg")
WIDTH = 3.5  # inches: one column of a journal
RESOLUTION = 300  # dots per inch of a PNG
PHOTO_HEIGHT = 1.3  # inches that images need

# Okabe & Ito's colours, told apart by colour-blind readers too
INK, GREY, CONTINUUM, MASKED = "#222222", "#BBBBBB", "#D55E00", "#0072B2"
STYLE = {
    "font.size": 7,
    "axes.titlesize": 7,
    "axes.labelsize": 7,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "legend.fontsize": 6.5,
    "axes.linewidth": 0.6,
    "xtick.direction": "in",
    "ytick.direction": "in",
    "lines.linewidth": 0.5,
    "axes.formatter.limits": (-3, 5),
    "axes.formatter.use_mathtext": True,
    "svg.hashsalt": "stellar",  # equal figures are equal files
    "pdf.fonttype": 42,
}
SYMBOLS = {"teff": r"$T_\mathrm{eff}$", "logg": r"$\log\,g$"}
SYMBOLS |= {f"{element.lower()}h": f"[{element}/H]" for element in ELEMENTS}
UNDATED = {".png": {}, ".pdf": {"CreationDate": None}, ".svg": {"Date": None}}

NORMALISED = {  # label of the flux axis after the last of these steps
    "continuum": "Flux / continuum",
    "min_max": "Flux, scaled to 0 … 1",
    "median": "Flux / median",
}
DIVISORS = ("continuum", "median")  # steps that divide, without an offset
RAW = "Flux density (unit of the file)"


def check_output(path: str, overwrite: bool = True) -> str:
    """Check the name of a figure, before hours of work go into it.

    Parameters
    ----------
    path : str
    overwrite : bool
        Whether an existing file may be replaced.

    Raises
    ------
    OutputExistsError
        If the file exists and may not be replaced.
    UsageError
        If its ending is none of `ENDINGS`, or the directory is none to write
        to.
    """
    ending = os.path.splitext(path)[1].lower()
    if ending not in ENDINGS:
        raise UsageError(
            f"figure {path!r} can't be drawn in format {ending or 'without a name'!r}; "
            f"name it *{', *'.join(ENDINGS)}."
        )
    catalog.check_directory(path)
    catalog.check_absent(path, overwrite)
    return path


# ------------------------------------------------------------------ before and after


def before_and_after(
    paths: Sequence[str],
    recipe: Recipe,
    output: str,
    row: int | None = None,
    images: str = "",
) -> None:
    """Draw a spectrum as read and as a recipe leaves it, and images of its star.

    Parameters
    ----------
    paths : sequence of str
        Survey files.
    recipe : Recipe
    output : str
        Figure file, replaced if it exists.
    row : int, optional
        Which of `paths`, counted from 0; by default the first with a good pixel.
    images : str, optional
        Directory or table of images; drawn are those that the recipe makes.

    Raises
    ------
    UsageError
        If `output` has an unknown ending, or that spectrum can't be read.
    NoUsableSpectraError
        If none can be read.
    """
    check_output(output)
    spectrum = _first(paths) if row is None else read_row(paths, row)
    prepared, level = _prepare(recipe, spectrum)
    unity = [Piece(np.array([1.0, 1e6]), np.ones(2), np.ones(2, dtype=bool))]
    divisor = _divisor(recipe)
    raw = _pieces(Batch.from_spectra([spectrum]))
    with canvas(output, height=3.7 + bool(images) * PHOTO_HEIGHT) as whole:
        figure: Figure | SubFigure = whole
        if images:
            figure, below = whole.subfigures(2, 1, height_ratios=[3.7, PHOTO_HEIGHT])
            _photographs(below, spectrum, recipe, images)
        upper = _draw(figure, (0.56, 0.91), raw, level, divisor)
        _label(upper, "Wavelength (Å, vacuum)", RAW)
        after = _pieces(prepared), unity if divisor else []
        lower = _draw(figure, (0.095, 0.455), *after, divisor)
        _label(lower, _wavelength_label(recipe, spectrum), flux_label(recipe))
        _note(lower[0], f"recipe {recipe.name}")
        figure.suptitle(_title(spectrum), y=0.985, fontsize=7, parse_math=False)


def _photographs(
    figure: SubFigure, spectrum: Spectrum, recipe: Recipe, source: str
) -> None:
    """Draw the images of a star side by side, north where it happens to be."""
    bands, size = image_options(recipe)
    meta = spectrum.meta
    row = np.zeros(1, [("objid", "S68"), ("ra", "f8"), ("dec", "f8")])
    row[0] = meta.objid.encode("ascii", "replace"), meta.ra, meta.dec
    cut = imaging.source(source, bands, size)(row)
    for axes, band, pixels, flag in zip(
        figure.subplots(1, len(bands), squeeze=False)[0],
        *(bands, cut.pixels[0], cut.flags[0]),
        strict=True,
    ):
        axes.set(xticks=[], yticks=[])
        faults = ImageFlag(int(flag))
        axes.set_title(f"{band}: {faults.name.lower()}" if faults else band, pad=2)
        if np.isfinite(pixels).any():
            # the sky fills most of it: its noise and faint neighbours are to be seen
            axes.imshow(np.sqrt(pixels), cmap="gray_r", origin="lower")
    figure.subplots_adjust(0.03, 0.03, 0.975, 0.9, wspace=0.06)


@dataclass(frozen=True, eq=False)
class Piece:
    """One arm of a spectrum, drawn in axes of its own.

    Attributes
    ----------
    wavelength, flux : ndarray, shape (pixel,)
    good : ndarray of bool, shape (pixel,)
    """

    wavelength: np.ndarray
    flux: np.ndarray
    good: np.ndarray


def _first(paths: Sequence[str]) -> Spectrum:
    for path in paths:
        try:
            spectrum = surveys.read(path)
        except SpectrumError:
            continue
        if spectrum.good.any():
            return spectrum
    raise NoUsableSpectraError(
        f"none of {len(paths)} inputs has a good pixel to draw a figure of."
    )


def read_row(paths: Sequence[str], row: int) -> Spectrum:
    """Read one of many files.

    Parameters
    ----------
    paths : sequence of str
    row : int
        Which one, counted from 0.

    Raises
    ------
    UsageError
        If there is no such one, or it can't be read.
    """
    if not 0 <= row < len(paths):
        raise UsageError(
            f"there is no input {row} to draw; inputs are counted from 0 to "
            f"{len(paths) - 1}."
        )
    try:
        return surveys.read(paths[row])
    except SpectrumError as error:
        raise UsageError(
            f"input {row}, '{paths[row]}', can't be drawn: {error}. Choose another row."
        ) from None


def _prepare(recipe: Recipe, spectrum: Spectrum) -> tuple[Batch, list[Piece]]:
    """Apply a recipe, and keep what it divided by, as seen in the raw spectrum."""
    batch, level = Batch.from_spectra([spectrum]), []
    for step in recipe.steps:
        before = batch
        batch = STEPS[step.name](before, **step.parameters)
        if step.name in DIVISORS:
            level = _level(before, batch, spectrum.redshift)
    return batch, level


def _level(before: Batch, after: Batch, redshift: float) -> list[Piece]:
    """Find what a step divided by, in the observed frame.

    It is in the noise: ivar of the result is ivar times its square.
    """
    good = before.good & after.good
    square = np.divide(
        after.ivar, before.ivar, where=good, out=np.ones_like(after.ivar)
    )
    mask = np.where(good, 0, np.maximum(after.mask, PixelMask.NO_IVAR))
    level = replace(after, flux=np.sqrt(square), mask=mask.astype(np.uint8))
    shift = (1 + redshift) / (1 + before.redshift[0])
    return [
        replace(piece, wavelength=piece.wavelength * shift) for piece in _pieces(level)
    ]


def _pieces(batch: Batch) -> list[Piece]:
    """Cut the only spectrum of a batch at its segments, without pixels outside."""
    wavelength = np.broadcast_to(batch.wavelength, batch.flux.shape)[0]
    inside = np.isfinite(wavelength) & (batch.mask[0] & PixelMask.OUTSIDE == 0)
    pieces = []
    for start, stop in batch.segments_of(0):
        use = start + np.flatnonzero(inside[start:stop])
        if use.size > 1:
            pieces.append(
                Piece(wavelength[use], batch.flux[0, use], batch.good[0, use])
            )
    return pieces


def _divisor(recipe: Recipe) -> str:
    """Name of what the last normalisation divides by; empty without one."""
    names = [step.name for step in recipe.steps if step.name in DIVISORS]
    return names[-1] if names else ""


def _draw(
    figure: Figure,
    height: tuple[float, float],
    pieces: list[Piece],
    level: list[Piece],
    divisor: str,
) -> list[Axes]:
    """Draw arms side by side, on one scale of flux, between two heights."""
    widths = [np.ptp(piece.wavelength) for piece in pieces] or [1.0]
    sides = {"left": 0.155, "right": 0.975, "bottom": height[0], "top": height[1]}
    grid = figure.add_gridspec(
        1, len(widths), **sides, width_ratios=widths, wspace=0.05
    )
    row = list(grid.subplots(sharey=True, squeeze=False)[0])
    if not pieces:
        middle = {"ha": "center", "transform": row[0].transAxes}
        row[0].text(0.5, 0.5, "no pixel in the recipe's range", **middle)
        row[0].set(xticks=[], yticks=[])
        return row
    for axes, piece, width in zip(row, pieces, widths, strict=True):
        _draw_piece(axes, piece, level, divisor)
        axes.locator_params(axis="x", nbins=max(2, round(7 * width / sum(widths))))
    row[0].set_ylim(_limits(pieces))
    _break_axes(row)
    _legend(row)
    return row


def _label(row: list[Axes], wavelength: str, flux: str) -> None:
    """Label a row of axes as if it were one."""
    figure, first, last = row[0].figure, row[0].get_position(), row[-1].get_position()
    middle = (first.x0 + last.x1) / 2
    figure.text(middle, first.y0 - 0.055, wavelength, ha="center", va="top")
    height = (first.y0 + first.y1) / 2
    figure.text(0.012, height, flux, rotation="vertical", ha="left", va="center")


def _draw_piece(axes: Axes, piece: Piece, level: list[Piece], divisor: str) -> None:
    axes.plot(piece.wavelength, piece.flux, color=GREY, zorder=1)
    shown = np.where(piece.good, piece.flux, np.nan)
    axes.plot(piece.wavelength, shown, color=INK, zorder=2)
    for line in level:
        shown = np.where(line.good, line.flux, np.nan)
        axes.plot(
            *(line.wavelength, shown),
            color=CONTINUUM,
            linewidth=1.0,
            zorder=3,
            label=divisor if line is level[0] else None,
        )
    masked = piece.wavelength[~piece.good]
    if masked.size:
        axes.vlines(
            *(masked, 0, 0.03),
            color=MASKED,
            linewidth=0.6,
            transform=axes.get_xaxis_transform(),
            label="masked pixels",
        )
    axes.set_xlim(piece.wavelength[0], piece.wavelength[-1])


def _limits(pieces: list[Piece]) -> tuple[float, float]:
    """Range of flux that shows the good pixels but for a few, with room around."""
    flux = np.concatenate([piece.flux[piece.good] for piece in pieces])
    if not flux.size:
        flux = np.concatenate([piece.flux for piece in pieces])
    low, high = np.quantile(flux, [0.001, 0.999])
    room = (high - low) or abs(high) or 1.0
    return low - 0.1 * room, high + 0.2 * room


def _break_axes(row: Sequence[Axes]) -> None:
    """Open the frame between arms and mark the break."""
    mark = {"marker": [(-1, -2), (1, 2)], "markersize": 5, "linestyle": "none"}
    mark |= {"color": "black", "markeredgewidth": 0.6, "clip_on": False}
    for left, right in pairwise(row):
        left.spines.right.set_visible(False)
        right.spines.left.set_visible(False)
        right.tick_params(left=False)
        left.plot([1, 1], [0, 1], transform=left.transAxes, **mark)
        right.plot([0, 0], [0, 1], transform=right.transAxes, **mark)


def _note(axes: Axes, text: str) -> None:
    """Write into the upper left corner, clear of the ticks."""
    axes.annotate(
        _printable(text),
        (0, 1),
        (6, -3),
        xycoords="axes fraction",
        textcoords="offset points",
        va="top",
        parse_math=False,
    )


def _legend(row: Sequence[Axes]) -> None:
    handles = {}
    for axes in row:
        found, labels = axes.get_legend_handles_labels()
        handles |= dict(zip(labels, found, strict=True))
    if handles:
        row[-1].legend(
            *(handles.values(), handles.keys()),
            loc="upper right",
            ncols=2,
            edgecolor="none",
            framealpha=0.8,
            borderaxespad=0.2,
            handlelength=1.2,
        )


def _title(spectrum: Spectrum) -> str:
    meta = spectrum.meta
    kind = "/".join(filter(None, (meta.object_class, meta.subclass))) or "no class"
    snr = f"S/N {meta.snr:.1f}" if np.isfinite(meta.snr) else "S/N unknown"
    velocity = "no velocity" if meta.rv is None else f"v = {meta.rv:+.1f} km/s"
    return _printable(f"{meta.survey} {meta.objid}\n{kind}, {snr}, {velocity}")


def _printable(text: str) -> str:
    """Text without letters that the font may lack."""
    return text.encode("ascii", "replace").decode()


def flux_label(recipe: Recipe) -> str:
    """Label of the flux axis after a recipe."""
    names = [NORMALISED[s.name] for s in recipe.steps if s.name in NORMALISED]
    return names[-1] if names else RAW


def _wavelength_label(recipe: Recipe, spectrum: Spectrum) -> str:
    if recipe.parameters("rest_frame") is None:
        frame = "vacuum"
    elif spectrum.meta.rv is None:
        frame = "vacuum, not shifted: no velocity"
    else:
        frame = "vacuum, rest frame"
    return f"Wavelength (Å, {frame})"


# ---------------------------------------------------------------------------- folded


def folded(source: str, shape: Shape | None, row: int, output: str) -> None:
    """Draw one spectrum folded into an image.

    Parameters
    ----------
    source : str
        Prepared or folded table.
    shape : (int, int) or None
        Rows and columns; by default as in `folding.read_image`.
    row : int
        Which spectrum, counted from 0.
    output : str
        Figure file, replaced if it exists.

    Raises
    ------
    UsageError
        If `output` has an unknown ending, the source is no such table, or the row or
        shape don't fit.
    """
    check_output(output)
    image = read_image(source, row, shape)
    rows, columns = image.flux.shape
    with canvas(output, height=min(max(2.4 * rows / columns, 1.4), 6) + 0.9) as figure:
        figure.set_layout_engine("constrained")
        axes = figure.add_subplot()
        shown = np.ma.masked_where(image.ivar <= 0, image.flux)
        limits = (
            np.quantile(shown.compressed(), [0.005, 0.995]) if shown.count() else ()
        )
        picture = axes.imshow(
            shown,
            cmap=_colours(),
            vmin=min(limits, default=0),
            vmax=max(limits, default=1),
            aspect="auto",
            interpolation="nearest",
        )
        bar = figure.colorbar(picture, ax=axes, extend="both", pad=0.03)
        bar.set_label(flux_label(image.recipe))
        _label_rows(axes, image.wavelength)
        rest = image.recipe.parameters("rest_frame") is not None
        frame = "vacuum, rest frame" if rest else "vacuum"
        axes.set_xlabel(f"Column (wavelengths are {frame})")
        axes.set_title(_image_title(image), parse_math=False)


def _colours():
    from matplotlib import colormaps

    return colormaps["cividis"].with_extremes(bad="white")


def _label_rows(axes: Axes, wavelength: np.ndarray) -> None:
    """Label both ends of some rows, alternately right- and leftward ones."""
    rows = len(wavelength)
    step = 2 * max(1, round(rows / 16)) + 1 if rows > 8 else 1
    shown = np.arange(0, rows, step)
    digits = 0 if abs(wavelength[0, -1] - wavelength[0, 0]) > 20 else 1
    left = [f"{value:.{digits}f}" for value in wavelength[shown, 0]]
    right = [f"{value:.{digits}f}" for value in wavelength[shown, -1]]
    forward = shown % 2 == 0
    axes.set_yticks(
        shown, [f"{t} →" if f else f"{t} ←" for t, f in zip(left, forward, strict=True)]
    )
    axes.set_ylabel("Wavelength of row ends (Å)")
    other = axes.secondary_yaxis("right")
    other.set_yticks(
        shown,
        [f"→ {t}" if f else f"← {t}" for t, f in zip(right, forward, strict=True)],
    )


def _image_title(image: Image) -> str:
    names = image.row.dtype.names
    facts = [
        image.row[name].decode("ascii", "replace").strip()
        for name in ("survey", "objid", "subclass")
        if name in names
    ]
    if "snr" in names and np.isfinite(image.row["snr"]):
        facts.append(f"S/N {image.row['snr']:.1f}")
    shape = "x".join(map(str, image.flux.shape))
    masked = ", white: masked" if (image.ivar <= 0).any() else ""
    recipe = _printable(image.recipe.name)
    return f"{' '.join(filter(None, facts))}\nrecipe {recipe}, {shape}{masked}"


# ------------------------------------------------------------------------------ file


@contextmanager
def canvas(output: str, height: float) -> Iterator[Figure]:
    """Figure one column wide, which is on disk when all went well."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    ending = os.path.splitext(output)[1].lower()
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height))
        yield figure
        with (
            catalog.temporary_name(output) as temporary,
            catalog.explained(output, temporary),
        ):
            figure.savefig(
                temporary,
                format=ending[1:],
                dpi=RESOLUTION,
                metadata=UNDATED[ending],
            )
            os.replace(temporary, output)
