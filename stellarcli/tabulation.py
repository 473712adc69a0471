"""Files prepared into one table, beside the labels of a catalogue."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from stellarcli import catalog, imaging
from stellarcli.catalog import decode_name, encode_name
from stellarcli.claims import claimed
from stellarcli.errors import UsageError
from stellarcli.inputs import Task
from stellarcli.parallel import ordered_map
from stellarcli.preparation import (
    HEADER,
    INFO,
    Chunk,
    image_columns,
    image_options,
    run,
)
from stellarcli.prepared import VECTORS, PreparedWriter
from stellarcli.preprocess import Batch, Recipe
from stellarcli.spectrum import PixelMask
from stellarcli.velocity import Source

# what a label column holds where no row matched, by kind of NumPy type
FILLERS = {"f": np.nan, "S": b"", "U": "", "b": False, "i": -9999, "u": 0}
LONGEST_CARD = 68  # characters that fit into a FITS header card


@dataclass
class Summary:
    """What preparing a table has to say at its end.

    Attributes
    ----------
    rows, failed, matched, pictured : int
        All rows, those without a good pixel, those with a row in the label catalogue,
        those with an image.
    reasons : list of (str, str)
        File and what was wrong with it.
    """

    rows: int = 0
    failed: int = 0
    matched: int = 0
    pictured: int = 0
    reasons: list[tuple[str, str]] = field(default_factory=list)


def write_table(
    work: Iterable[Task],
    output: str,
    recipe: Recipe,
    *,
    labels: catalog.Table | None = None,
    radius: float = 3.0,
    exposures: bool = False,
    velocities: Source = HEADER,
    images: str = "",
    workers: int = 1,
    cards: Sequence[tuple] = (),
    progress: Callable[[int], None] = lambda count: None,
) -> Summary:
    """Prepare files and write the prepared table.

    Parameters
    ----------
    work : iterable of Task
        Of `inputs.tasks`; raw files only.
    output : str
        ``-`` for standard output.
    recipe : Recipe
    labels : Table, optional
        Its columns travel along, joined by identifier, file or sky.
    radius : float
        Of the join on the sky, arcsec.
    exposures : bool
    velocities : Source
        Of the radial velocities to remove.
    images : str
        Directory or table of images to cut out, see `imaging.Images`.
    workers : int
    cards : sequence of (name, value, comment)
    progress : callable
        Told how many spectra were finished since the last call.

    Returns
    -------
    Summary

    Raises
    ------
    UsageError
        If one of the inputs is prepared already, or `radius` is negative.
    StellarError
        If a worker dies or the disk is full.
    """
    catalog.check_radius(radius)
    summary = Summary()
    work = list(work)
    for table in (task.table for task in work if task.table):
        raise UsageError(
            f"'{table}' is prepared already; give the raw files, or 'stellar predict' "
            "this table."
        )
    longest = max(len(encode_name(path)) for task in work for path in task.paths)
    units = {column.name: column.unit for column in INFO}
    comments = {column.name: column.description for column in INFO}
    cards = [*cards, velocities.card(), *catalog.flag_cards()]
    matcher = None
    if labels is not None:
        free = _free_names(labels.rows.dtype.names)
        units |= {free[name]: unit for name, unit in labels.units.items()}
        matcher = catalog.Matcher(labels.rows, radius)
    prepare = partial(run, recipe=recipe, exposures=exposures, velocities=velocities)
    if images:
        bands, size = image_options(recipe)
        imaging.source(images, bands, size)  # before the work
        comments |= {c.name: c.description for c in image_columns(bands)}
        prepare = partial(prepare, inputs=("images",), images=images)
    with ExitStack() as stack:
        stack.enter_context(claimed(output))
        chunks = stack.enter_context(closing(ordered_map(prepare, work, workers)))
        if recipe.wavelength is None:
            chunks = stack.enter_context(closing(_equally_wide(chunks, output)))
        writer = PreparedWriter(output, recipe, cards, units, comments)
        stack.enter_context(writer)
        for chunk in chunks:
            rows = _widened(chunk.rows, longest)
            if matcher is not None:
                rows, matched = join(rows, matcher)
                summary.matched += matched
            writer.append(rows, chunk.batch, chunk.images)
            summary.pictured += _pictured(chunk)
            names = [decode_name(name.decode()) for name in chunk.rows["file"]]
            summary.reasons += [(names[row], text) for row, text in chunk.reasons]
            summary.rows += len(rows)
            summary.failed += int((rows["flag"] & catalog.FAILED != 0).sum())
            progress(len(rows))
        if labels is not None and not summary.matched:
            raise UsageError(
                f"no spectrum belongs to a row of {labels.name}: neither identifiers "
                "(objid, obsid, …), file names nor positions (ra, dec) agree. Nothing "
                "was written."
            )
    return summary


def _pictured(chunk: Chunk) -> int:
    """Count the spectra that have an image."""
    if chunk.images is None:
        return 0
    return int((chunk.rows["flag"] & catalog.Flag.NO_IMAGE == 0).sum())


def _equally_wide(chunks: Iterable[Chunk], output: str) -> Iterator[Chunk]:
    """Pad spectra of native sampling to the longest of all chunks.

    That is known at the end: until then they are in a temporary file.
    """
    directory = tempfile.gettempdir() if output == "-" else str(Path(output).parent)
    reasons, widest = [], 0
    with (
        catalog.explained(output, os.path.join(directory, "chunks")),
        tempfile.TemporaryFile(prefix=".stellar-", dir=directory) as file,
    ):
        for chunk in chunks:
            batch = chunk.batch
            for array in (chunk.rows, batch.wavelength, batch.flux, batch.ivar):
                np.save(file, array, allow_pickle=False)
            reasons.append(chunk.reasons)
            widest = max(widest, batch.flux.shape[1])
        file.seek(0)
        for why in reasons:
            rows, wavelength, flux, ivar = (np.load(file) for _ in range(4))
            yield Chunk(rows, _padded(wavelength, flux, ivar, widest), why)


def _padded(
    wavelength: np.ndarray, flux: np.ndarray, ivar: np.ndarray, pixels: int
) -> Batch:
    """Spectra of native sampling, (spectrum, pixel), with more pixels."""
    extra = ((0, 0), (0, pixels - flux.shape[1]))
    flux, ivar = np.pad(flux, extra), np.pad(ivar, extra)
    return Batch(
        wavelength=np.pad(wavelength, extra, constant_values=np.nan),
        flux=flux,
        ivar=ivar,
        mask=np.where(ivar > 0, 0, PixelMask.NO_IVAR).astype(np.uint8),
        redshift=np.zeros(len(flux)),
        segments=(((0, pixels),),),
    )


def _widened(rows: np.ndarray, longest_file: int) -> np.ndarray:
    """Give text columns the widths that all chunks of a table share."""
    widths = {
        "file": longest_file,
        "objid": max(LONGEST_CARD, longest_file),  # some readers take it from the name
        "plan": LONGEST_CARD,
        "survey": 16,
        "class": LONGEST_CARD,
        "subclass": LONGEST_CARD,
    }
    return rows.astype(
        [
            (name, f"S{widths[name]}" if name in widths else rows.dtype[name])
            for name in rows.dtype.names
        ]
    )


def _free_names(names: Sequence[str]) -> dict[str, str]:
    """Names of label columns beside those of the prepared table, in any case."""
    taken = {column.name for column in INFO} | {v.lower() for v in VECTORS}
    free = {}
    for name in names:
        free[name] = name
        while free[name].lower() in taken:
            free[name] += "_label"
        taken.add(free[name].lower())
    return free


def join(rows: np.ndarray, matcher: catalog.Matcher) -> tuple[np.ndarray, int]:
    """Append the columns of a catalogue's matching rows.

    Parameters
    ----------
    rows : structured ndarray, shape (spectrum,)
    matcher : Matcher
        Of the catalogue.

    Returns
    -------
    rows : structured ndarray, shape (spectrum,)
        Without a match: NaN, empty text, -9999 for integers, False.
    matched : int
    """
    labels = matcher.right
    found = matcher(rows).index
    hit = found >= 0
    columns = {}
    for name, free in _free_names(labels.dtype.names).items():
        values = labels[name]
        if values.ndim > 1 or values.dtype.kind not in FILLERS:
            continue  # vectors and objects are no labels
        taken = np.zeros(len(rows), dtype=values.dtype)
        taken[hit] = values[found[hit]]
        if taken.dtype.kind == "U":
            wide = f"S{max(values.dtype.itemsize // 4, 1)}"
            taken = np.char.encode(taken, "ascii", "replace").astype(wide)
        taken[~hit] = _filler(taken.dtype)
        columns[free] = taken
    return catalog.with_columns(rows, columns), int(hit.sum())


def _filler(dtype: np.dtype) -> object:
    """Value of a label column where no row matched."""
    if dtype.kind == "i":
        return max(-9999, np.iinfo(dtype).min)
    return FILLERS[dtype.kind]
