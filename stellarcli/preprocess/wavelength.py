"""Air and vacuum, rest frame, and resampling of flux, inverse variance and mask."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache, lru_cache
from itertools import pairwise

import numpy as np

from stellarcli.errors import UsageError
from stellarcli.preprocess.batch import Batch, Segments
from stellarcli.spectrum import PixelMask

# B-spline coefficients of a single 1: sqrt(3) z**|k| with the pole z = sqrt(3) - 2,
# which falls by 0.27 per pixel: to 1e-8, more than float32 sees, within REACH
POLE = np.sqrt(3) - 2
DOUBLINGS = (8, 4, 2, 1)  # sum of z**k over 16 pixels = product of 1 + z**d over these
REACH = sum(DOUBLINGS)  # pixels
CARDINAL = np.sqrt(3) * POLE ** np.abs(np.arange(-REACH, REACH + 1))
MOST_PIXELS = 100_000  # of a grid
MOST_GRIDS = 64
MARGIN = REACH + 3  # pixels beyond a grid that its spline needs
TOGETHER = 64  # spectra; bounds memory
STEADY = 1e-3  # pixel that distances may differ by: twice what float32 wavelengths do
SHARE = 0.2  # an output pixel is masked if a masked one has more than this weight in it


def air_to_vacuum(wavelength: np.ndarray) -> np.ndarray:
    """Wavelengths in air to vacuum.

    Parameters
    ----------
    wavelength : ndarray
        Standard air, Å.

    Returns
    -------
    ndarray of float64
        Vacuum, Å. Below 2000 Å, where air is not used, returned unchanged.

    Notes
    -----
    Refractive index of Ciddor (1996, Appl. Opt. 35, 1566, eq. 1) for dry air at
    15 °C and 1013.25 hPa, evaluated at the vacuum wavelength by fixed-point
    iteration, so that `vacuum_to_air` is the exact inverse (below 1e-8 Å).
    """
    air = np.asarray(wavelength, dtype=np.float64)
    vacuum = air
    for _ in range(4):
        vacuum = air * _index(vacuum)
    return np.where(air < 2000.0, air, vacuum)


def vacuum_to_air(wavelength: np.ndarray) -> np.ndarray:
    """Wavelengths in vacuum to air, Å; inverse of `air_to_vacuum`."""
    vacuum = np.asarray(wavelength, dtype=np.float64)
    return np.where(vacuum < 2000.0, vacuum, vacuum / _index(vacuum))


def _index(vacuum: np.ndarray) -> np.ndarray:
    """Refractive index of standard air (Ciddor 1996, eq. 1); wavelength in Å."""
    sigma2 = np.square(1e4 / vacuum)  # 1/μm²
    return 1.0 + 1e-8 * (5792105.0 / (238.0185 - sigma2) + 167917.0 / (57.362 - sigma2))


def rest_frame(batch: Batch) -> Batch:
    """Divide each spectrum's wavelengths by 1 + z.

    Parameters
    ----------
    batch : Batch
        `Batch.redshift` is removed; spectra without a velocity carry 0.

    Returns
    -------
    Batch
        With redshift 0, so that a second call changes nothing.
    """
    scale = 1.0 + batch.redshift
    wavelength = np.atleast_2d(batch.wavelength) / scale[:, None]
    return replace(batch, wavelength=wavelength, redshift=np.zeros_like(batch.redshift))


def bridge(batch: Batch) -> Batch:
    """Replace the flux of masked pixels by a straight line between good neighbours.

    Masked pixels stay masked with zero ivar; only their flux changes, so that a
    spline or a convolution isn't dragged to a filler. Behind the last good pixel the
    flux is held constant; nothing is bridged across the border of two segments.
    """
    pixels = batch.flux.shape[1]
    # of all spectra one behind the other, the pixels that a segment begins or ends at
    border = np.zeros(batch.flux.size + 1, dtype=bool)
    border[::pixels] = True
    for row in range(len(batch)):
        for start, stop in batch.segments_of(row):
            border[row * pixels + start] = border[row * pixels + stop] = True
    holes = np.flatnonzero(batch.mask != 0)
    if not holes.size:
        return batch
    first = np.flatnonzero(border[holes] | (np.diff(holes, prepend=-2) > 1))
    count = np.diff(first, append=holes.size)  # of holes in each run
    left = holes[first] - 1
    right = left + count + 1
    ends = border[left + 1], border[right]
    left, right = np.where(ends[0], right, left), np.where(ends[1], left, right)
    known = ~(ends[0] & ends[1])
    holes = holes[known.repeat(count)]
    left, right, count = left[known], right[known], count[known]
    flux = batch.flux.copy().ravel()
    low = flux[left].astype(np.float64)
    slope = (flux[right] - low) / np.maximum(right - left, 1)
    flux[holes] = low.repeat(count) + slope.repeat(count) * (holes - left.repeat(count))
    return batch.with_flux(flux.reshape(batch.flux.shape))


def keep_ranges(batch: Batch, *, ranges: list[list[float]]) -> Batch:
    """Mask all pixels outside some ranges of wavelength.

    Parameters
    ----------
    batch : Batch
    ranges : list of (float, float)
        Vacuum Å; at the star's rest where `rest_frame` came before.

    Raises
    ------
    UsageError
        If a range isn't two wavelengths, the shorter one first.
    """
    inside = np.zeros(batch.flux.shape, dtype=bool)
    for limits in ranges:
        if len(limits) != 2 or not limits[0] < limits[1]:
            raise UsageError(
                f"step 'keep' takes ranges such as [5130, 5450], not {limits}."
            )
        low, high = limits
        inside |= (batch.wavelength >= low) & (batch.wavelength <= high)
    mask = np.where(inside, batch.mask, batch.mask | PixelMask.OUTSIDE)
    result = batch.with_flux(np.where(inside, batch.flux, 1), inside)
    return replace(result, mask=mask.astype(np.uint8))


def make_grid(
    *,
    start: float,
    step: float,
    pixels: int,
    kind: str = "linear",
) -> np.ndarray:
    """Return one wavelength grid.

    Parameters
    ----------
    start : float
        First wavelength, vacuum Å.
    step : float
        Å for ``linear``, dex for ``log10``.
    pixels : int
    kind : {'linear', 'log10'}

    Raises
    ------
    UsageError
        If `kind` is neither, or a number isn't positive.
    """
    if kind not in ("linear", "log10"):
        raise UsageError(f"grid kind {kind!r} is not known; use 'linear' or 'log10'.")
    if not (0 < start < np.inf and 0 < step < np.inf and 1 < pixels <= MOST_PIXELS):
        raise UsageError(
            f"a grid needs start > 0, step > 0 and 2 to {MOST_PIXELS} pixels, not "
            f"start={start}, step={step}, pixels={pixels}."
        )
    index = np.arange(int(pixels))
    if kind == "linear":
        return start + step * index
    if np.log10(start) + step * pixels > 9:
        raise UsageError(f"a grid of steps of {step} dex leaves the spectrum.")
    return 10.0 ** (np.log10(start) + step * index)


def join_grids(grids: list[dict]) -> tuple[np.ndarray, Segments]:
    """Return several grids one behind the other, and the segments they form.

    Raises
    ------
    UsageError
        If a grid lacks an argument of `make_grid` or has another one, or the grids
        overlap.
    """
    try:
        parts = [make_grid(**grid) for grid in grids[:MOST_GRIDS]]
    except (KeyError, TypeError) as error:
        raise UsageError(
            f"grids {grids!r:.200} can't be made ({error}); give a list of "
            "{start: 4000.0, step: 1.0, pixels: 4096, kind: linear}."
        ) from None
    if not parts or any(left[-1] >= right[0] for left, right in pairwise(parts)):
        raise UsageError("resample needs one or more grids, increasing and apart.")
    stops = np.cumsum([part.size for part in parts]).tolist()
    starts = [0, *stops[:-1]]
    return np.concatenate(parts), tuple(zip(starts, stops, strict=True))


def resample(batch: Batch, *, grids: list[dict]) -> Batch:
    """Interpolate every spectrum onto one grid with a cubic spline.

    The spline runs through the whole spectrum (a spline through a cropped one would
    extrapolate at the ends) and is uniform in pixel number: for the surveys' grids,
    in wavelength or its logarithm. Inverse variance is propagated with
    the squared spline weights: each output pixel's variance is right, neighbours are
    correlated. An output pixel is masked outside the spectrum's range, or if a masked
    input pixel has more than `SHARE` of the weight in it.

    Parameters
    ----------
    batch : Batch
        Masked pixels should have been bridged.
    grids : list of dict
        Arguments of `make_grid`, one per segment of the result, increasing.

    Returns
    -------
    Batch
        On a common grid. Where the spectrum has no pixel, flux is held at its end.
    """
    grid, segments = join_grids(grids)
    shape = (len(batch), grid.size)
    result = replace(
        batch,
        wavelength=grid,
        flux=np.zeros(shape, dtype=np.float32),
        ivar=np.zeros(shape, dtype=np.float32),
        mask=np.full(shape, PixelMask.OUTSIDE, dtype=np.uint8),
        segments=(segments,),
    )
    wavelength = np.broadcast_to(batch.wavelength, batch.flux.shape)
    batch = replace(batch, wavelength=wavelength)
    beside_bad = []
    for start in range(0, len(batch), TOGETHER):
        rows = range(start, min(start + TOGETHER, len(batch)))
        alike, *where = _shifts(batch, rows, grid)
        if alike.size:
            beside_bad.append(_shifted(batch, alike, *where, result))
        for row in sorted({*rows} - {*alike.tolist()}):
            beside_bad += _interpolated(batch, row, result)
    if beside_bad:
        out, *where = map(np.concatenate, zip(*beside_bad, strict=True))
        result.ivar.flat[out], result.mask.flat[out] = _propagate_beside_bad(
            batch.ivar.ravel(), batch.mask.ravel(), *where
        )
    return result


def _interpolated(batch: Batch, row: int, result: Batch) -> Iterator[tuple]:
    """Resample one spectrum of any sampling, segment by segment, into `result`.

    Yields
    ------
    out, source : ndarray of int, shape (sample,)
        Samples of the raveled `result` that have a masked neighbour in the raveled
        `batch`, and its pixel to the left.
    fraction : ndarray of float32, shape (sample,)
        Of a pixel, from there.
    """
    grid, wavelength = result.wavelength, batch.wavelength[row]
    pieces = batch.segments_of(row)
    if len(pieces) > 1:
        known = np.isfinite(wavelength)
        result.flux[row] = np.interp(grid, wavelength[known], batch.flux[row, known])
    for start, stop in pieces:
        native = wavelength[start:stop]
        inside = slice(
            np.searchsorted(grid, native[0], side="left"),
            np.searchsorted(grid, native[-1], side="right"),
        )
        target = slice(None) if len(pieces) == 1 else inside
        position = np.interp(grid[target], native, _pixels(native.size))
        index, fraction = _split(position, native.size)
        coefficients = _coefficients(batch.flux[row, start:stop])
        result.flux[row, target] = _evaluate(coefficients, index, fraction)
        if len(pieces) == 1:
            index, fraction = index[inside], fraction[inside]
        result.ivar[row, inside], rest = _propagate(
            batch.ivar[row, start:stop], index, fraction
        )
        result.mask[row, inside] = 0
        bad = batch.mask[row, start:stop] != 0
        rest |= (bad[:-1] | bad[1:]).take(index)
        places = np.flatnonzero(rest)
        out = row * grid.size + inside.start + places
        source = row * batch.flux.shape[1] + start + index[places]
        yield out, source, fraction[places]


def _shifts(
    batch: Batch, rows: range, grid: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Spectra whose pixels all lie at one distance from those of a grid.

    So it is where both are equidistant in ln λ with the same step, as in LAMOST and
    SDSS, whatever the velocity: one number then does for all pixels.

    Returns
    -------
    rows : ndarray of int, shape (row,)
        Those of `rows` where it is so, and the grid is covered with some margin.
    first : ndarray of int, shape (row,)
        Pixel to the left of the grid's first.
    fraction : ndarray of float32, shape (row, 1)
        Of a pixel, from there.
    """
    size = grid.size
    found, first, native = [], [], []
    for row in rows:
        wavelength = batch.wavelength[row]
        left = int(wavelength.searchsorted(grid[0], side="right")) - 1
        whole = MARGIN <= left < wavelength.size - size - MARGIN
        if whole and len(batch.segments_of(row)) == 1:
            found.append(row)
            first.append(left)
            native.append(wavelength[left : left + size + 1])
    if not found:
        return np.array([], dtype=int), np.array([]), np.array([])
    native = np.array(native)
    step = np.log(native[:, -1:] / native[:, :1]) / size
    ratio = grid / native[:, :-1]
    low, high = (getattr(ratio, end)(axis=1, keepdims=True) for end in ("min", "max"))
    steady = (high - low < STEADY * step)[:, 0]
    fraction = np.log((low + high) / 2) / step
    fraction = fraction[steady].clip(0, 1).astype(np.float32)
    return np.array(found)[steady], np.array(first)[steady], fraction


def _shifted(
    batch: Batch,
    rows: np.ndarray,
    first: np.ndarray,
    fraction: np.ndarray,
    result: Batch,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Resample spectra that are only shifted into `result`; as `_interpolated`."""
    size = result.wavelength.size
    near = list(zip(rows.tolist(), first.tolist(), strict=True))
    flux = [batch.flux[row, n - MARGIN : n + size + MARGIN] for row, n in near]
    coefficients = _filtered(np.array(flux))[:, MARGIN - 1 :]
    result.flux[rows] = _evaluate(coefficients, slice(0, size), fraction)
    ivar = np.array([batch.ivar[row, n : n + size + 1] for row, n in near])
    result.ivar[rows], rest = _propagate(ivar, slice(0, size), fraction)
    result.mask[rows] = 0
    bad = np.array([batch.mask[row, n : n + size + 1] for row, n in near]) != 0
    rest |= bad[:, :-1]
    rest |= bad[:, 1:]
    row, place = np.nonzero(rest)
    out = rows[row] * size + place
    source = rows[row] * batch.flux.shape[1] + first[row] + place
    return out, source, fraction[row, 0]


def spline(values: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Evaluate the cubic spline through equally spaced values.

    Parameters
    ----------
    values : ndarray of float32, shape (pixel,)
    position : ndarray, shape (sample,)
        Pixel coordinates in [0, pixel - 1].

    Returns
    -------
    ndarray of float32, shape (sample,)

    Notes
    -----
    Cubic B-splines with the prefilter of Unser (1999, IEEE Signal Processing Magazine
    16, 22); mirrored at the ends.
    """
    return _evaluate(_coefficients(values), *_split(position, values.size))


def _evaluate(
    coefficients: np.ndarray, index: np.ndarray | slice, fraction: np.ndarray
) -> np.ndarray:
    """Evaluate a spline at pixels and fractions of a pixel.

    Parameters
    ----------
    coefficients : ndarray of float32, shape (…, pixel)
        The first is that of the pixel before pixel 0.
    index : ndarray of int, or slice
    fraction : ndarray of float32
    """
    weights = _b_spline(fraction)
    total = _at(coefficients, index) * weights[0]
    for offset in (1, 2, 3):
        total += _at(coefficients[..., offset:], index) * weights[offset]
    return total


def _at(values: np.ndarray, index: np.ndarray | slice) -> np.ndarray:
    """Values at pixels; a view where these are a slice."""
    return values[..., index] if isinstance(index, slice) else values.take(index)


def _coefficients(values: np.ndarray) -> np.ndarray:
    """B-spline coefficients, float32, of one pixel more than `values` on both sides."""
    return _filtered(_mirrored(values, REACH + 1))[REACH:-REACH]


def _filtered(values: np.ndarray) -> np.ndarray:
    """B-spline coefficients in place of values; but for `REACH` pixels at the ends.

    z**|k| is a filter from the left times one from the right times 1 - z², and each of
    them a product of sums of two: eight additions in place of a sum over 2 `REACH`.
    """
    for distance in DOUBLINGS:
        factor = np.float32(POLE**distance)
        values[..., distance:] += factor * values[..., :-distance]
        values[..., :-distance] += factor * values[..., distance:]
    values *= np.float32(np.sqrt(3) * (1 - POLE**2))
    return values


def _mirrored(values: np.ndarray, margin: int) -> np.ndarray:
    """Values with their mirror image about the first and the last one, float32."""
    size = values.size
    if size <= margin:
        return np.pad(values, margin, mode="reflect").astype(np.float32)
    result = np.empty(size + 2 * margin, dtype=np.float32)
    result[margin:-margin] = values
    result[:margin] = values[margin:0:-1]
    result[-margin:] = values[-2 : -margin - 2 : -1]
    return result


@lru_cache(maxsize=64)
def _pixels(size: int) -> np.ndarray:
    """Pixel numbers as float64."""
    return np.arange(size, dtype=np.float64)


def _split(position: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixel coordinates as the pixel to the left and the fraction of a pixel."""
    index = np.minimum(position.astype(np.intp), size - 2)
    return index, (position - index).astype(np.float32)


def _b_spline(fraction: np.ndarray) -> tuple[np.ndarray, ...]:
    """Cubic B-spline weights of the pixels -1, 0, 1, 2 from the left neighbour."""
    t, u = fraction, 1 - fraction
    t2, u2 = t * t, u * u
    sixth = np.float32(1 / 6)
    outer_left, outer_right = u2 * u * sixth, t2 * t * sixth
    inner_left = np.float32(2 / 3) - t2 * (1 - t * np.float32(0.5))
    return (
        outer_left,
        inner_left,
        1 - outer_left - inner_left - outer_right,
        outer_right,
    )


@cache
def _noise_gain() -> np.ndarray:
    """Sum of squared spline weights at fractions 0…1 of a pixel, in equal steps.

    It is the variance of an interpolated value over that of its neighbours: 1 on a
    pixel, about 0.76 half-way between two.
    """
    fraction = np.linspace(0, 1, 257)
    weights = np.array(_b_spline(fraction))  # (4, fraction)
    shifted = np.array([np.roll(CARDINAL, shift) for shift in (1, 0, -1, -2)])
    return np.square(shifted.T @ weights).sum(axis=0).astype(np.float32)


def _propagate(
    ivar: np.ndarray, index: np.ndarray | slice, fraction: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Inverse variance between the pixels `index` and `index` + 1, both of them good.

    Returns
    -------
    ivar : ndarray of float32, shape (sample,)
    nonsense : ndarray of bool, shape (sample,)
        Where that is no number: inverse variances that are zero, or nearly.
    """
    left, right = _at(ivar, index), _at(ivar[..., 1:], index)
    both = right * (1 - fraction)
    both += left * fraction
    # variance (1-t)/left + t/right, so ivar = left·right / (right·(1-t) + left·t);
    # the ratio first: for fluxes in erg/s/cm2/Å the product leaves float32's range
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        out = right / both
        out *= left
    gain = _noise_gain()
    out /= gain.take((fraction * (gain.size - 1)).astype(np.intp))
    return out, ~(both > 0)


def _propagate_beside_bad(
    ivar: np.ndarray, mask: np.ndarray, index: np.ndarray, fraction: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Inverse variance and mask where one or both of the two pixels may be masked."""
    left, right, t = ivar[index], ivar[index + 1], fraction
    bits = np.where(t < 1 - SHARE, mask[index], 0)
    bits |= np.where(t > SHARE, mask[index + 1], 0)
    # one of the two may be masked without spoiling the pixel: the other's stands in
    left, right = np.where(left == 0, right, left), np.where(right == 0, left, right)
    both = right * (1 - t) + left * t
    good = (bits == 0) & (both > 0)
    out = left * np.divide(right, both, out=np.zeros_like(both), where=good)
    gain = _noise_gain()
    out /= gain[(t * (gain.size - 1)).astype(np.intp)]
    return out, np.where(good, 0, np.maximum(bits, PixelMask.NO_IVAR))
