"""Continuum normalisation and scaling of spectra."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from stellarcli.errors import UsageError
from stellarcli.preprocess.batch import Batch
from stellarcli.spectrum import SPEED_OF_LIGHT, PixelMask

ALIKE = 1e-5  # in ln λ: wavelengths that one smoothing serves
BLOCKS = 6  # that a smoothing is done in
ROUNDING = 1e-5  # of the level; float32's digits are no scatter to clip at
FLOOR = 1e-3  # of the spectrum's mean; a continuum below it is no continuum


def continuum_polynomial(
    batch: Batch,
    *,
    degree: int = 9,
    iterations: int = 6,
    low: float = 1.0,
    high: float = 4.0,
) -> np.ndarray:
    """Fit a polynomial to the upper envelope by asymmetric clipping.

    In the manner of Lee et al. (2008, AJ 136, 2022, section 3): fit, drop the pixels
    that lie more than `low` σ under or `high` σ above the fit, fit again.

    Parameters
    ----------
    batch : Batch
        On a common grid.
    degree : int
        Of the Chebyshev series, per segment.
    iterations : int
        Number of clips.
    low, high : float
        In units of the scatter about the fit; the small one below rejects lines.

    Returns
    -------
    ndarray of float32, shape (spectrum, pixel)
        In the unit of the flux.
    """
    continuum = np.ones_like(batch.flux)
    for start, stop in batch.segments_of(0):
        part = slice(start, stop)
        continuum[:, part] = _clipped_fit(
            batch.flux[:, part], batch.good[:, part], degree, iterations, low, high
        )
    return continuum


def _clipped_fit(
    flux: np.ndarray,
    good: np.ndarray,
    degree: int,
    iterations: int,
    low: float,
    high: float,
) -> np.ndarray:
    basis = _chebyshev(flux.shape[1], 2 * degree)  # (pixel, 2 degree + 1)
    scale = _mean(flux, good)
    values = flux / scale
    weight = good.astype(np.float32)
    fit = _solve(values, weight, basis, degree)
    for _ in range(iterations):
        residual = (values - fit) * weight
        count = np.maximum(weight.sum(axis=1, keepdims=True), 1)
        sigma = np.sqrt(np.square(residual).sum(axis=1, keepdims=True) / count)
        sigma = np.maximum(sigma, ROUNDING)
        residual = values - fit
        keep = good & (residual > -low * sigma) & (residual < high * sigma)
        # a fit needs a few pixels per coefficient; a hopeless row keeps its last one
        enough = keep.sum(axis=1, keepdims=True) > 4 * (degree + 1)
        weight = np.where(enough, keep, weight).astype(np.float32)
        fit = _solve(values, weight, basis, degree)
    return _hold_ends(fit * scale, good)


def _hold_ends(fit: np.ndarray, good: np.ndarray) -> np.ndarray:
    """Hold a fit beyond each row's first and last good pixel, as `resample` does.

    A polynomial that runs on by itself turns its last digit into per cents.
    """
    last = fit.shape[1] - 1
    ends = [good.argmax(axis=1), last - good[:, ::-1].argmax(axis=1)]
    for row in np.flatnonzero((ends[0] > 0) | (ends[1] < last)):
        left, right = ends[0][row], ends[1][row]
        fit[row, :left] = fit[row, left]
        fit[row, right:] = fit[row, right]
    return fit


def _chebyshev(pixels: int, degree: int) -> np.ndarray:
    x = np.linspace(-1, 1, pixels)
    return np.polynomial.chebyshev.chebvander(x, degree)


def _solve(
    values: np.ndarray, weight: np.ndarray, basis: np.ndarray, degree: int
) -> np.ndarray:
    """Weighted least squares for all rows at once; returns the fitted values.

    T_i T_j = (T_{i+j} + T_{|i-j|}) / 2 turns the normal matrices into 2 degree + 1
    moments of the weights: one matrix product instead of one per row. In double
    precision: gaps make the matrices ill-conditioned, and the last digit would then
    depend on the other rows.
    """
    moments = weight @ basis  # (spectrum, 2 degree + 1)
    right = (weight * values) @ basis[:, : degree + 1]
    order = np.arange(degree + 1)
    plus = order[:, None] + order
    minus = np.abs(order[:, None] - order)
    normal = 0.5 * (moments[:, plus] + moments[:, minus])
    # a ridge far below the noise keeps empty or gappy rows solvable
    normal += np.eye(degree + 1) * (1e-6 * np.maximum(moments[:, :1, None], 1.0))
    coefficients = np.linalg.solve(normal, right[..., None])[..., 0]
    shapes = basis[:, : degree + 1].T.astype(np.float32)
    return coefficients.astype(np.float32) @ shapes


def continuum_smooth(
    batch: Batch, *, width: float = 100.0, velocity: float | None = None
) -> np.ndarray:
    """Smooth with a Gaussian, weighted by good pixels.

    As Ho et al. (2017, ApJ 836, 5, section 3.1) do for LAMOST: broad lines sink into
    it, the same way in training and prediction, and no shape of the flux calibration
    survives.

    Parameters
    ----------
    batch : Batch
        On a common grid, or, with `velocity`, on grids of their own.
    width : float
        Standard deviation of the Gaussian, Å.
    velocity : float, optional
        The same in km/s, wherever a spectrum lies; instead of `width`.

    Returns
    -------
    ndarray of float32, shape (spectrum, pixel)

    Raises
    ------
    UsageError
        If spectra of their own grids are to be smoothed by Å.
    """
    continuum = np.ones_like(batch.flux)
    if batch.common_grid and velocity is None:
        for start, stop in batch.segments_of(0):
            blocks = _smoothing(batch.wavelength[start:stop].tobytes(), width)
            _smooth(batch, continuum, slice(None), slice(start, stop), blocks)
        return continuum
    if velocity is None:
        raise UsageError(
            "method smooth of step 'continuum' takes spectra on a common grid; give "
            "velocity, in km/s, for others, or put 'resample' before it."
        )
    for rows, pixels in batch.parts():
        grid = np.log(np.atleast_2d(batch.wavelength)[:, pixels])
        grid = np.broadcast_to(grid, (len(batch), grid.shape[1]))[rows]
        for members, distance in _alike(grid - grid[:, :1]):
            blocks = _smoothing(distance.tobytes(), velocity / SPEED_OF_LIGHT)
            _smooth(batch, continuum, rows[members], pixels, blocks)
    return continuum


def _smooth(
    batch: Batch,
    continuum: np.ndarray,
    rows: np.ndarray | slice,
    pixels: slice,
    blocks: list[Block],
) -> None:
    """Smooth one segment of some spectra with blocks of `_smoothing`."""
    weight = batch.good[rows, pixels].astype(np.float32)
    both = np.concatenate([weight, weight * batch.flux[rows, pixels]])
    knots = np.zeros((len(both), blocks[-1].wide.stop), dtype=np.float32)
    for block in blocks:
        knots[:, block.wide] += both[:, block.pixels] @ block.spread
    result = np.zeros_like(weight)
    for block in blocks:
        total, smooth = np.split(knots[:, block.near] @ block.gather, 2)
        out = result[:, block.pixels]
        np.divide(smooth, total, out=out, where=total > 1e-6)
    continuum[rows, pixels] = result


def _alike(distance: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield spectra whose pixels lie at the same distances from the first one.

    A velocity moves all pixels alike in ln λ, so that these are most of a survey's.
    What is rounded in a file, or broken off, makes no difference to a broad Gaussian.
    """
    left = np.arange(len(distance))
    while left.size:
        off = np.abs(distance[left] - distance[left[0]]).max(axis=1)
        same = ~(off > ALIKE)
        yield left[same], np.ascontiguousarray(distance[left[0]])
        left = left[~same]


class Block(NamedTuple):
    """Some pixels of a smoothing and the knots that have to do with them.

    Attributes
    ----------
    pixels, wide, near : slice
        Of the pixels; of the knots within the Gaussian's reach; of those around.
    spread : ndarray of float32, shape (pixel, wide knot)
    gather : ndarray of float32, shape (near knot, pixel)
        Linear interpolation between the knots.
    """

    pixels: slice
    wide: slice
    near: slice
    spread: np.ndarray
    gather: np.ndarray


@lru_cache(maxsize=8)
def _smoothing(grid: bytes, width: float) -> list[Block]:
    """Gaussian smoothing by way of knots, a quarter of its width apart.

    Parameters
    ----------
    grid : bytes
        Of the float64 wavelengths, Å: hashable, so that batches share the matrices.
    width : float
        Å.

    Returns
    -------
    list of Block
        In order; most of the whole matrices would be zeros.
    """
    wavelength = np.frombuffer(grid)
    count = max(3, int(np.ptp(wavelength) / (0.25 * width)) + 2)
    knots = np.linspace(wavelength[0], wavelength[-1], count)
    spread = np.exp(-0.5 * np.square((wavelength[:, None] - knots) / width))
    spread[spread < 1e-6] = 0  # float32's denormal numbers would cost a factor 15
    gather = np.array([np.interp(wavelength, knots, row) for row in np.eye(count)])
    blocks = []
    step = -(-wavelength.size // BLOCKS)
    for start in range(0, wavelength.size, step):
        pixels = slice(start, min(start + step, wavelength.size))
        wide = _extent(spread[pixels].any(axis=0))
        near = _extent(gather[:, pixels].any(axis=1))
        matrices = spread[pixels, wide], gather[near, pixels]
        matrices = [np.ascontiguousarray(m, dtype=np.float32) for m in matrices]
        blocks.append(Block(pixels, wide, near, *matrices))
    return blocks


def _extent(flags: np.ndarray) -> slice:
    """From the first to the last that is set."""
    places = np.flatnonzero(flags)
    return slice(places[0], places[-1] + 1)


def continuum_quantile(
    batch: Batch, *, width: float = 150.0, quantile: float = 0.9
) -> np.ndarray:
    """Take a running quantile of the good pixels.

    Parameters
    ----------
    batch : Batch
        On a common grid.
    width : float
        Full width of the window, Å. Evaluated every quarter of it and interpolated.
    quantile : float
        Between 0 and 1.

    Returns
    -------
    ndarray of float32, shape (spectrum, pixel)
    """
    continuum = np.ones_like(batch.flux)
    for start, stop in batch.segments_of(0):
        wavelength = batch.wavelength[start:stop]
        values = np.where(batch.good[:, start:stop], batch.flux[:, start:stop], np.nan)
        count = max(2, int(np.ptp(wavelength) / (0.25 * width)) + 1)
        knots = np.linspace(wavelength[0], wavelength[-1], count)
        edges = np.searchsorted(wavelength, [knots - width / 2, knots + width / 2])
        levels = np.stack(
            [_quantile(values[:, a:b], quantile) for a, b in edges.T], axis=1
        )
        for row, level in enumerate(levels):
            known = np.isfinite(level)
            if known.any():
                continuum[row, start:stop] = np.interp(
                    wavelength, knots[known], level[known]
                )
    return continuum


def _quantile(values: np.ndarray, quantile: float) -> np.ndarray:
    """Quantile of each row's finite values, NaN where there is none (no warning)."""
    ordered = np.sort(values, axis=1)  # NaN last
    count = np.isfinite(values).sum(axis=1)
    position = np.maximum(quantile * (count - 1), 0)
    left = position.astype(int)
    right = np.minimum(left + 1, np.maximum(count - 1, 0))
    rows = np.arange(len(values))
    fraction = position - left
    return (1 - fraction) * ordered[rows, left] + fraction * ordered[rows, right]


CONTINUA = {
    "polynomial": continuum_polynomial,
    "smooth": continuum_smooth,
    "quantile": continuum_quantile,
}


def divide_continuum(batch: Batch, *, method: str = "polynomial", **options) -> Batch:
    """Divide flux by a continuum and scale ivar accordingly.

    Parameters
    ----------
    batch : Batch
        On a common grid.
    method : {'polynomial', 'smooth', 'quantile'}
        Key of `CONTINUA`.
    **options
        Arguments of that function.

    Returns
    -------
    Batch
        Continuum near 1. Where the continuum isn't above a thousandth of the
        spectrum's level (blank or sky-subtracted to nothing), flux is 1, the pixel is
        masked.
    """
    continuum = CONTINUA[method](batch, **options)
    floor = FLOOR * _mean(batch.flux, batch.good)
    usable = continuum > floor
    flux = np.divide(batch.flux, continuum, out=np.ones_like(batch.flux), where=usable)
    lost = np.where(usable, 0, PixelMask.NO_FLUX).astype(np.uint8)
    result = batch.with_flux(flux, np.where(usable, continuum, 0))
    return replace(result, mask=batch.mask | lost)


def clip_flux(batch: Batch, *, low: float = -0.5, high: float = 2.5) -> Batch:
    """Limit flux to a range; what leaves it (cosmic rays, sky residuals) is masked.

    Parameters
    ----------
    batch : Batch
    low, high : float
        In the unit of the flux, which is 1 at a normalised continuum.
    """
    outside = (batch.flux < low) | (batch.flux > high)
    mask = batch.mask | outside * np.uint8(PixelMask.NO_FLUX)
    result = batch.with_flux(np.clip(batch.flux, low, high), ~outside)
    return replace(result, mask=mask)


def scale_min_max(batch: Batch) -> Batch:
    """Map each segment's good pixels to the range 0 … 1.

    A segment without contrast becomes 0. Masked pixels are clipped to the range.
    """
    flux = np.zeros_like(batch.flux)
    factor = np.ones_like(batch.flux)
    for rows, pixels in batch.parts():
        part = np.ix_(rows, np.arange(pixels.start, pixels.stop))
        values, good = batch.flux[part], batch.good[part]
        low = np.where(good, values, np.inf).min(axis=1, keepdims=True)
        high = np.where(good, values, -np.inf).max(axis=1, keepdims=True)
        low = np.where(np.isfinite(low), low, 0)
        contrast = np.where(np.isfinite(high) & (high > low), high - low, np.inf)
        flux[part] = np.clip((values - low) / contrast, 0, 1)
        factor[part] = np.where(np.isfinite(contrast), contrast, 0)
    return batch.with_flux(flux, factor)


def scale_median(batch: Batch) -> Batch:
    """Divide each segment by the median of its good pixels (if that is positive)."""
    flux, factor = batch.flux.copy(), np.ones_like(batch.flux)
    for rows, pixels in batch.parts():
        part = np.ix_(rows, np.arange(pixels.start, pixels.stop))
        level = _level(batch.flux[part], batch.good[part])
        flux[part] /= level
        factor[part] = level
    return batch.with_flux(flux, factor)


def _mean(flux: np.ndarray, good: np.ndarray) -> np.ndarray:
    """Mean of each row's good pixels, shape (spectrum, 1); 1 if it isn't positive."""
    count = np.maximum(good.sum(axis=1, keepdims=True), 1)
    mean = np.where(good, flux, 0).sum(axis=1, keepdims=True) / count
    return np.where(mean > 0, mean, 1).astype(np.float32)


def _level(flux: np.ndarray, good: np.ndarray) -> np.ndarray:
    """Median of each row's good pixels, shape (spectrum, 1); 1 if it isn't positive."""
    level = _quantile(np.where(good, flux, np.nan), 0.5)[:, None]
    return np.where(level > 0, level, 1).astype(np.float32)


def pad(batch: Batch, *, pixels: int) -> Batch:
    """Add masked zeros on both sides, half each, up to a number of pixels.

    Parameters
    ----------
    batch : Batch
        On a common grid of one segment.
    pixels : int
        Number of pixels of the result.

    Raises
    ------
    UsageError
        If the spectra have more pixels already.
    """
    missing = pixels - batch.flux.shape[1]
    if missing < 0:
        raise UsageError(
            f"spectra of {batch.flux.shape[1]} pixels can't be padded to {pixels}."
        )
    left = missing // 2
    sides = ((0, 0), (left, missing - left))
    ratio = batch.wavelength[-1] / batch.wavelength[-2]
    index = np.arange(1, missing + 1)
    wavelength = np.concatenate(
        [
            batch.wavelength[0] * ratio ** -index[:left][::-1].astype(float),
            batch.wavelength,
            batch.wavelength[-1] * ratio ** index[: missing - left].astype(float),
        ]
    )
    return replace(
        batch,
        wavelength=wavelength,
        flux=np.pad(batch.flux, sides),
        ivar=np.pad(batch.ivar, sides),
        mask=np.pad(batch.mask, sides, constant_values=PixelMask.OUTSIDE),
        segments=(((0, pixels),),),
    )
