"""From files to prepared spectra: reading, recipes, flags; failures become rows."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np

from stellarcli import catalog, feeding, imaging, surveys
from stellarcli.catalog import Column, Flag, encode_name
from stellarcli.errors import SpectrumError, UsageError
from stellarcli.feeding import Feed
from stellarcli.inputs import Task
from stellarcli.prepared import (
    PreparedTable,
    recipe_difference,
)
from stellarcli.preprocess import Batch, Recipe
from stellarcli.preprocess import images as photos
from stellarcli.spectrum import PixelMask, Spectrum, SpectrumMeta
from stellarcli.velocity import Source

CHUNK = 64  # spectra prepared together: fixed, since kernels depend on batch shapes
LOW_SNR = 10.0  # per pixel
MASKED_SHARE = 0.2  # of the covered pixels
MISSING_SHARE = 0.03  # of the grid; of that of recipe rdn LAMOST MRS lacks 0.02
HIGHEST_IVAR = 1e18  # of a normalised flux; its square still fits into 32 bits

INFO = [
    *catalog.columns([], velocity=True)[:-1],  # objid, file, ra, dec, snr, rv, rv_err
    Column("mjd", "f8", "d", "modified Julian date", "F10.4"),
    Column("plan", "S", "", "plan or plate that the star was observed with"),
    Column("survey", "S", "", "kind of the file"),
    Column("class", "S", "", "class that the survey gives"),
    Column("subclass", "S", "", "subclass that the survey gives"),
    catalog.columns([])[-1],  # flag
]


@dataclass
class Chunk:
    """Some input spectra in order, prepared.

    Attributes
    ----------
    rows : structured ndarray, shape (spectrum,)
        Columns `INFO`, or those of a prepared table.
    batch : Batch
        Row by row; a spectrum that could not be read has no good pixel.
    reasons : list of (int, str)
        Row within the chunk, and what was wrong with it.
    seconds : dict of float
        Time per stage.
    images : ndarray of float32, shape (spectrum, band, row, column), optional
        Where the network sees any.
    """

    rows: np.ndarray
    batch: Batch
    reasons: list[tuple[int, str]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    images: np.ndarray | None = None

    def feed(self, names: Sequence[str], extra: Sequence[str] = ()) -> Feed:
        """Return what a network is fed.

        Parameters
        ----------
        names : sequence of str
            Of `feeding.INPUTS`.
        extra : sequence of str
            Columns of the input ``extra``; NaN where there is no such column.
        """
        batch, count = self.batch, len(self.rows)
        feed: Feed = {}
        for name in names:
            if name == "wavelength":
                grid = np.asarray(batch.wavelength, dtype=np.float64)
                feed[name] = np.tile(grid, (count, 1)) if grid.ndim == 1 else grid
            elif name == "images":
                none = feeding.empty(name, (count, *feeding.IMAGE_SHAPE))
                feed[name] = none if self.images is None else self.images
            elif name == "extra":
                feed[name] = self._quantities(extra)
            else:
                feed[name] = getattr(batch, name)
        return feed

    def _quantities(self, names: Sequence[str]) -> np.ndarray:
        found = feeding.empty("extra", (len(self.rows), len(names)))
        own = {name.lower(): name for name in self.rows.dtype.names}
        for number, name in enumerate(names):
            if key := own.get(name.lower()):
                found[:, number] = feeding.numbers(self.rows[key])
        return found

    def pieces(self, size: int) -> Iterator[Chunk]:
        """Cut into chunks of at most `size` spectra (without reasons and times)."""
        if len(self.rows) <= size:
            yield self
            return
        for start in range(0, len(self.rows), size):
            part = slice(start, start + size)
            images = None if self.images is None else self.images[part]
            yield Chunk(self.rows[part], self.batch.rows(part), images=images)


HEADER = Source()


def run(
    task: Task,
    recipe: Recipe,
    *,
    exposures: bool = False,
    velocities: Source = HEADER,
    inputs: Sequence[str] = feeding.SPECTRUM,
    images: str = "",
) -> Chunk:
    """Prepare the spectra of a task.

    Parameters
    ----------
    task : Task
    recipe : Recipe
        Of the model; a prepared table must have been made with it.
    exposures : bool
        Read single exposures where files hold them; a file may give several rows.
    velocities : Source
        What to remove from raw files.
    inputs : sequence of str
        What the network is fed; images are read only if they are among it.
    images : str
        Directory or table of them, for raw files; see `imaging.Images`. Without it no
        star has any.

    Returns
    -------
    Chunk
        One row per spectrum, in order, whatever happened.

    Raises
    ------
    UsageError
        If a prepared table was made with another recipe, or other velocities are
        wanted than those that it is without.
    """
    if task.table:
        if images:
            raise UsageError(
                f"'{task.table}' is prepared, and its images with it; give the raw "
                "files, or leave --images out."
            )
        if velocities.name not in ("header", "auto"):
            raise UsageError(
                f"'{task.table}' is prepared: its velocities are removed already. Give "
                "the raw files, or leave --rv out."
            )
        return _from_table(task, recipe, inputs)
    begin = time.perf_counter()
    spectra, metas, reasons = _read(task.paths, exposures)
    middle = time.perf_counter()
    spectra, discrepant = velocities.assign(spectra)
    metas = [
        meta if spectrum is None else spectrum.meta
        for spectrum, meta in zip(spectra, metas, strict=True)
    ]
    reasons += _without_velocity(spectra)
    batch = _apply(recipe, spectra)
    rows = catalog.rows(INFO, _columns(metas, recipe))
    rows["flag"] = _flags(metas, spectra, batch, recipe)
    rows["flag"][discrepant] |= catalog.Flag.ARMS_DIFFER
    reasons += _losses(spectra, batch, recipe)
    end = time.perf_counter()
    seconds = {"read": middle - begin, "prepare": end - middle}
    pixels = None
    if "images" in inputs:
        rows, pixels, why = _photographed(rows, recipe, images)
        reasons += why
        seconds["images"] = time.perf_counter() - end
    return Chunk(rows, batch, sorted(reasons), seconds, pixels)


def _photographed(
    rows: np.ndarray, recipe: Recipe, source: str
) -> tuple[np.ndarray, np.ndarray, list[tuple[int, str]]]:
    """Images of stars, and their rows with what is wrong with these.

    Returns
    -------
    rows : structured ndarray, shape (spectrum,)
        Flagged; where there is a source, with a column of `ImageFlag` per band.
    pixels : ndarray of float32, shape (spectrum, band, row, column)
    reasons : list of (int, str)
    """
    bands, size = image_options(recipe)
    if not source:
        rows["flag"] |= catalog.Flag.NO_IMAGE
        nothing = feeding.empty("images", (len(rows), len(bands), size, size))
        return rows, nothing, []
    cut = imaging.source(source, bands, size)(rows)
    usable = photos.usable(cut.flags)
    defects = usable & (cut.flags & ~int(photos.NOTHING) != 0).any(axis=1)
    rows["flag"][~usable] |= catalog.Flag.NO_IMAGE
    rows["flag"][defects] |= catalog.Flag.IMAGE_DEFECT
    names = [column.name for column in image_columns(bands)]
    rows = catalog.with_columns(rows, dict(zip(names, cut.flags.T, strict=True)))
    return rows, cut.pixels, cut.reasons


def image_options(recipe: Recipe) -> tuple[tuple[str, ...], int]:
    """Bands and size of a recipe's images.

    Raises
    ------
    UsageError
        If it has none.
    """
    if recipe.images is None:
        raise UsageError(
            f"recipe '{recipe.name}' has no step 'images', which says what images are "
            "to be like; take --recipe spfusion, or add the step to yours."
        )
    return recipe.images


def image_columns(bands: Sequence[str]) -> list[Column]:
    """Columns of a prepared table that say what is wrong with images."""
    bits = ", ".join(f"{int(flag)} {flag.name}" for flag in photos.ImageFlag)
    return [
        Column(f"imflag_{band}", "i2", "", f"image in {band}: sum of {bits}".lower())
        for band in bands
    ]


def _read(
    paths: Sequence[str], exposures: bool
) -> tuple[list[Spectrum | None], list[SpectrumMeta], list[tuple[int, str]]]:
    """Spectra that can be used, what is known of them, and why others can't."""
    spectra: list[Spectrum | None] = []
    metas: list[SpectrumMeta] = []
    reasons: list[tuple[int, str]] = []
    for path in paths:
        try:
            found = surveys.read_all(path) if exposures else [surveys.read(path)]
        except Exception as error:
            reasons.append((len(metas), _reason(error)))
            spectra.append(None)
            metas.append(SpectrumMeta(file=path))
            continue
        for spectrum in found:
            blank = not (spectrum.good & (spectrum.flux != 0)).any()
            reasons += [(len(metas), remark) for remark in _remarks(spectrum, blank)]
            spectra.append(_without_signal(spectrum) if blank else spectrum)
            metas.append(spectrum.meta)
    return spectra, metas, reasons


def _reason(error: Exception) -> str:
    """Say why a file can't be read; a reader's mistake must not end a night's run."""
    if isinstance(error, SpectrumError):
        return str(error)
    logging.getLogger(__name__).error("the reader failed", exc_info=error)
    return f"the reader failed ({type(error).__name__}: {error}); please report this"


def _remarks(spectrum: Spectrum, blank: bool) -> list[str]:
    """Return what the log should say about a readable spectrum."""
    meta, remarks = spectrum.meta, []
    if blank and spectrum.good.any():
        remarks.append("flux is zero in every good pixel")
    elif blank:
        remarks.append("no pixel has a finite flux with a positive inverse variance")
    if meta.noise_measured:
        remarks.append("the file has no errors; the noise was measured in the flux")
    if meta.medium_assumed:
        remarks.append("wavelengths in air or vacuum? not said; taken as vacuum")
    if meta.object_class not in ("", "STAR"):
        remarks.append(f"the header's class is {meta.object_class}, not a star")
    return remarks


def _without_velocity(spectra: Sequence[Spectrum | None]) -> list[tuple[int, str]]:
    """Say which readable spectra have no velocity."""
    return [
        (row, "no radial velocity in the header; taken as 0")
        for row, spectrum in enumerate(spectra)
        if spectrum is not None and spectrum.meta.rv is None
    ]


def _losses(
    spectra: Sequence[Spectrum | None], batch: Batch, recipe: Recipe
) -> list[tuple[int, str]]:
    """Say why nothing is left of spectra that had good pixels."""
    grid, lost = recipe.wavelength, []
    for row in np.flatnonzero(~batch.good.any(axis=1)).tolist():
        spectrum = spectra[row]
        if spectrum is None or not spectrum.good.any():
            continue  # known already
        known = spectrum.wavelength[spectrum.good]
        reason = "no good pixel is left by the recipe; is the flux positive?"
        if grid is not None and (known.max() < grid[0] or known.min() > grid[-1]):
            reason = (
                f"good pixels from {known.min():.0f} to {known.max():.0f} Å, outside "
                f"{grid[0]:.0f} to {grid[-1]:.0f} Å of recipe '{recipe.name}'"
            )
        lost.append((row, reason))
    return lost


def _without_signal(spectrum: Spectrum) -> Spectrum:
    return replace(spectrum, mask=spectrum.mask | PixelMask.NO_FLUX)


def _apply(recipe: Recipe, spectra: Sequence[Spectrum | None]) -> Batch:
    """Apply a recipe; rows without a spectrum become empty ones."""
    used = [row for row, spectrum in enumerate(spectra) if spectrum is not None]
    if used:
        with np.errstate(all="ignore"):  # nonsense values end as masked pixels
            batch = recipe.apply(Batch.from_spectra([spectra[row] for row in used]))
        batch = _finite(batch)
        if len(used) == len(spectra):
            return batch
        wavelength, segments = batch.wavelength, batch.segments
    else:
        wavelength = recipe.wavelength
        if wavelength is None:
            wavelength = np.full((0, 2), np.nan)
        segments = (((0, wavelength.shape[-1]),),)
    shape = (len(spectra), wavelength.shape[-1])
    whole = Batch(
        wavelength=wavelength,
        flux=np.zeros(shape, dtype=np.float32),
        ivar=np.zeros(shape, dtype=np.float32),
        mask=np.full(shape, PixelMask.OUTSIDE, dtype=np.uint8),
        redshift=np.zeros(len(spectra)),
        segments=segments,
    )
    if wavelength.ndim == 2:
        own = np.full(shape, np.nan)
        own[used] = wavelength
        per_row = dict(zip(used, segments, strict=False))
        empty = ((0, shape[1]),)
        rows = tuple(per_row.get(row, empty) for row in range(len(spectra)))
        whole = replace(whole, wavelength=own, segments=rows)
    if used:
        whole.flux[used] = batch.flux
        whole.ivar[used] = batch.ivar
        whole.mask[used] = batch.mask
    return whole


def _finite(batch: Batch) -> Batch:
    """Mask pixels that a recipe left without a value; cap precision beyond reason."""
    if np.isfinite(batch.flux).all() and (batch.ivar <= HIGHEST_IVAR).all():
        return batch
    lost = ~np.isfinite(batch.flux) | np.isnan(batch.ivar)
    ivar = np.minimum(batch.ivar, np.float32(HIGHEST_IVAR))
    return replace(
        batch,
        flux=np.where(lost, np.float32(0), batch.flux),
        ivar=np.where(lost, np.float32(0), ivar),
        mask=batch.mask | lost * np.uint8(PixelMask.NO_FLUX),
    )


def _columns(metas: Sequence[SpectrumMeta], recipe: Recipe) -> dict[str, np.ndarray]:
    rest_frame = recipe.parameters("rest_frame") is not None
    removed = [m.rv if m.rv is not None and rest_frame else 0.0 for m in metas]
    return {
        "objid": np.array([m.objid for m in metas]),
        "file": np.array([encode_name(m.file) for m in metas]),
        "ra": np.array([m.ra for m in metas]),
        "dec": np.array([m.dec for m in metas]),
        "snr": np.array([m.snr for m in metas], dtype=np.float32),
        "rv": np.array(removed, dtype=np.float32),
        "rv_err": np.array([m.rv_error for m in metas], dtype=np.float32),
        "mjd": np.array([m.mjd for m in metas]),
        "plan": np.array([m.plan for m in metas]),
        "survey": np.array([m.survey for m in metas]),
        "class": np.array([m.object_class for m in metas]),
        "subclass": np.array([m.subclass for m in metas]),
        "flag": np.zeros(len(metas), dtype=np.int32),
    }


def _flags(
    metas: Sequence[SpectrumMeta],
    spectra: Sequence[Spectrum | None],
    batch: Batch,
    recipe: Recipe,
) -> np.ndarray:
    """Set flags that follow from files and pixels; a model adds its own."""
    readable = np.array([spectrum is not None for spectrum in spectra])
    good = batch.good.sum(axis=1)
    covered = ((batch.mask & PixelMask.OUTSIDE) == 0).sum(axis=1)
    snr = np.array([meta.snr for meta in metas])
    conditions = {
        Flag.NO_COVERAGE: good == 0,
        Flag.LOW_SNR: ~(snr >= LOW_SNR),
        Flag.MASKED_PIXELS: good < (1 - MASKED_SHARE) * covered,
        Flag.NO_VELOCITY: np.array([meta.rv is None for meta in metas]),
        Flag.NOISE_MEASURED: np.array([meta.noise_measured for meta in metas]),
        Flag.NOT_A_STAR: np.array(
            [meta.object_class not in ("", "STAR") for meta in metas]
        ),
    }
    if recipe.wavelength is not None:
        whole = batch.flux.shape[1]
        conditions[Flag.PARTIAL_COVERAGE] = covered < (1 - MISSING_SHARE) * whole
    flags = np.zeros(len(metas), dtype=np.int32)
    for flag, condition in conditions.items():
        flags[condition] |= flag
    return np.where(readable, flags, Flag.UNREADABLE)


@lru_cache(maxsize=4)
def _open(path: str, inode: int, time: int) -> PreparedTable:
    return PreparedTable(path)


def _from_table(task: Task, recipe: Recipe, inputs: Sequence[str]) -> Chunk:
    begin = time.perf_counter()
    status = os.stat(task.table)  # to notice when it is another file of that name
    table = _open(task.table, status.st_ino, status.st_mtime_ns)
    if difference := recipe_difference(table.recipe, recipe):
        raise UsageError(
            f"'{task.table}' was prepared with recipe '{table.recipe.name}', the model "
            f"needs '{recipe.name}': {difference}. Give the raw files, or prepare them "
            "with the model's own recipe: 'stellar preprocess --recipe MODELFILE'."
        )
    index = slice(task.start, task.stop)
    rows = table.rows(index)
    missing = [c.name for c in INFO if c.name not in rows.dtype.names]
    for name in missing:
        if name in ("objid", "flag"):
            raise UsageError(f"'{task.table}' lacks the column {name}.")
    failed = rows["flag"] & catalog.FAILED
    reasons = [
        (row, f"{catalog.describe_flags(failed[row])} in the prepared table")
        for row in np.flatnonzero(failed).tolist()
    ]
    seconds = {"read": time.perf_counter() - begin}
    pixels = None
    if "images" in inputs and table.has_images:
        pixels = table.feed(index, ["images"])["images"]
    elif "images" in inputs:
        rows, pixels, _ = _photographed(rows, recipe, "")
    return Chunk(rows, table.batch(index), reasons, seconds, pixels)
