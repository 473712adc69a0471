"""Cosmic rays: pixels that stand out of the spectrum above its continuum."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from stellarcli.preprocess.batch import Batch
from stellarcli.spectrum import PixelMask

BLOCK = 48  # pixels; the continuum is taken from blocks of so many
LEVEL = 0.8  # quantile of a block's good pixels


def mask_spikes(
    batch: Batch, *, threshold: float = 6.0, height: float = 0.15, longest: int = 12
) -> Batch:
    """Mask what stands high above the continuum for a few pixels only.

    Longer runs are emission lines and stay. One pixel on both sides of a spike is
    masked with it. To be done before `bridge` and `min_max`: a single spike would
    decide about the range.

    Parameters
    ----------
    batch : Batch
        Native sampling or a common grid.
    threshold : float
        In units of the noise.
    height : float
        Above the continuum, relative to it.
    longest : int
        Pixels of a spike at most.

    Returns
    -------
    Batch
        With `PixelMask.NO_FLUX`, and no inverse variance, at spikes.
    """
    mask, ivar = batch.mask.copy(), batch.ivar.copy()
    for rows, pixels in batch.parts():
        part = np.ix_(rows, np.arange(pixels.start, pixels.stop))
        flux, good = batch.flux[part], batch.good[part]
        level = _continuum(flux, good)
        noise = np.sqrt(np.divide(1, ivar[part], np.zeros_like(flux), where=good))
        above = flux - level
        high = good & (above > threshold * noise) & (above > height * abs(level))
        for row in np.flatnonzero(high.any(axis=1)):
            for start, stop in _runs(high[row]):
                if stop - start <= longest:
                    span = slice(max(start - 1, 0), stop + 1)
                    mask[rows[row], pixels][span] |= np.uint8(PixelMask.NO_FLUX)
                    ivar[rows[row], pixels][span] = 0
    return replace(batch, mask=mask, ivar=ivar)


def _continuum(flux: np.ndarray, good: np.ndarray) -> np.ndarray:
    """Quantile of each block, straight lines between their centres, (row, pixel)."""
    count, size = flux.shape
    blocks = -(-size // BLOCK)
    values = np.full((count, blocks * BLOCK), np.nan, dtype=np.float32)
    values[:, :size] = np.where(good, flux, np.nan)
    ordered = np.sort(values.reshape(count, blocks, BLOCK), axis=2)  # NaN last
    known = np.isfinite(ordered).sum(axis=2)
    place = np.maximum((LEVEL * (known - 1)).round().astype(int), 0)
    levels = np.take_along_axis(ordered, place[..., None], axis=2)[..., 0]
    # a spike must not raise its own surroundings: a block at most as its neighbours
    padded = np.pad(levels, ((0, 0), (1, 1)), constant_values=np.nan)
    with np.errstate(invalid="ignore"):
        neighbours = np.fmax(padded[:, :-2], padded[:, 2:])
        levels = np.fmin(levels, np.where(neighbours > 0, 1.5 * neighbours, np.inf))
    centres = (np.arange(blocks) + 0.5) * BLOCK
    result = np.zeros_like(flux)
    for row, level in enumerate(levels):
        there = np.isfinite(level)
        if there.any():
            result[row] = np.interp(np.arange(size), centres[there], level[there])
    return result


def _runs(flags: np.ndarray) -> list[tuple[int, int]]:
    """Start and stop of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(int), [0]])))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
