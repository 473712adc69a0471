"""Spectra observed in the computer, as LAMOST's low-resolution mode would.

`simulate` adds velocity, reddening, imperfect flux calibration, noise and bad pixels to
an emulator's spectra. The observing conditions are statistics of LAMOST DR10 spectra.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np

from stellarcli.errors import UsageError
from stellarcli.spectrum import SPEED_OF_LIGHT
from stellarcli.surveys.emulator import LABEL_NAMES, Emulator

VELOCITY_SCATTER = 50.0  # km/s, as the DR10 training plans
ROUGH = 0.06  # of the Legendre terms of continua that no one has calibrated
MAX_VELOCITY = 600.0  # km/s, a few pixels inside the emulator's margin


def extinction(wavelength: np.ndarray) -> np.ndarray:
    """Extinction in magnitudes per unit E(B−V), R_V = 3.1.

    Eqs 1–3 of Cardelli, Clayton & Mathis 1989, the optical branch (3030–9091 Å, used
    unchanged for the last 0.1 % of LAMOST's range).

    Parameters
    ----------
    wavelength : ndarray
        Å.

    Returns
    -------
    ndarray, same shape
    """
    y = 1e4 / np.asarray(wavelength) - 1.82
    a = (0.32999, -0.77530, 0.01979, 0.72085, -0.02427, -0.50447, 0.17699, 1.0)
    b = (-2.09002, 5.30260, -0.62251, -5.38434, 1.07233, 2.28305, 1.41338, 0.0)
    return 3.1 * np.polyval(a, y) + np.polyval(b, y)


def block_continuum(size: int, blocks: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Matrices of a coarse continuum: averages over blocks, then lines between them.

    Parameters
    ----------
    size : int
        Pixels of a spectrum.
    blocks : int

    Returns
    -------
    average : ndarray of float32, shape (pixel, block)
    expand : ndarray of float32, shape (block, pixel)
        ``flux @ average @ expand`` is the continuum.
    """
    bounds = np.linspace(0, size, blocks + 1).round().astype(int)
    average = np.zeros((size, blocks), dtype=np.float32)
    for block, (start, stop) in enumerate(pairwise(bounds)):
        average[start:stop, block] = 1 / (stop - start)
    centers = (bounds[1:] + bounds[:-1] - 1) / 2
    rows = [np.interp(np.arange(size), centers, row) for row in np.eye(blocks)]
    return average, np.array(rows, dtype=np.float32)


@dataclass(frozen=True, eq=False)
class Simulation:
    """Simulated observations with everything that is known about them.

    Attributes
    ----------
    wavelength : ndarray, shape (pixel,)
        Vacuum, heliocentric, Å.
    flux, ivar : ndarray of float32, shape (spectrum, pixel)
        As in a file: bad pixels included, the star's velocity not removed.
    andmask, ormask : ndarray of float32, shape (spectrum, pixel)
    continuum : ndarray of float32, shape (spectrum, pixel)
        Coarse continuum of the noise-free flux.
    labels : ndarray, shape (spectrum, 3)
        Teff [K], log g [dex], [Fe/H] [dex].
    rv, rv_measured : ndarray, shape (spectrum,)
        True velocity and what the header says, km/s.
    rv_error : ndarray, shape (spectrum,)
        Standard error of `rv_measured`, km/s.
    ebv : ndarray, shape (spectrum,)
        Effective E(B−V), mag: negative where calibration made a star too blue.
    snr : dict of str to ndarray, shape (spectrum,)
        Median signal-to-noise ratio per pixel of bands u, g, r, i, z, as in a header.
    """

    wavelength: np.ndarray
    flux: np.ndarray
    ivar: np.ndarray
    andmask: np.ndarray
    ormask: np.ndarray
    continuum: np.ndarray
    labels: np.ndarray
    rv: np.ndarray
    rv_measured: np.ndarray
    rv_error: np.ndarray
    ebv: np.ndarray
    snr: dict[str, np.ndarray]


# Å; LAMOST's header S/N is the median of flux * sqrt(ivar) over these (found by search
# over 2073 DR10 headers; they agree to 0.1–0.5 %, in u to 2 %)
SNR_BANDS = {
    "u": (3000.0, 3860.0),
    "g": (4050.0, 5300.0),
    "r": (5500.0, 6900.0),
    "i": (6900.0, 8150.0),
    "z": (8200.0, 9300.0),
}


def simulate(
    labels: np.ndarray,
    rng: np.random.Generator,
    *,
    snr: float | tuple[float, float] | np.ndarray | None = None,
    velocity_scatter: float = VELOCITY_SCATTER,
    emulator: Emulator | None = None,
    ebv: np.ndarray | None = None,
    factor: np.ndarray | None = None,
) -> Simulation:
    """Observe stars with LAMOST's low-resolution mode, in the computer.

    Noise is drawn from inverse variances with the shape, scale and pixel-to-pixel
    correlation of real ones (real noise is a little smaller than its IVAR says).

    Parameters
    ----------
    labels : ndarray, shape (spectrum, 3), or structured with fields teff, logg, feh
    rng : numpy.random.Generator
    snr : float, (float, float), or ndarray of shape (spectrum,), optional
        Signal-to-noise ratio per pixel in g: one value, a range that is drawn from
        evenly in its logarithm, or that of each star. Without it, LAMOST DR10's
        distribution.
    velocity_scatter : float
        Standard deviation of the stars' radial velocities, km/s.
    emulator : Emulator, optional
        The shipped one by default.
    ebv : ndarray, shape (spectrum,), optional
        Reddening, mag; drawn as LAMOST's effective one by default.
    factor : ndarray of float32, shape (spectrum, pixel), optional
        What the emulator doesn't know of these stars: times its flux, at rest.

    Returns
    -------
    Simulation

    Raises
    ------
    UsageError
        If the labels are outside the emulator's limits, or `snr` isn't positive.
    """
    emulator = emulator or Emulator.load()
    labels = _label_array(labels)
    arrays, count = emulator.arrays, len(labels)
    wavelength = emulator.wavelength[emulator.margin : -emulator.margin]
    rv = np.clip(rng.normal(0, velocity_scatter, count), -MAX_VELOCITY, MAX_VELOCITY)
    target = snr if isinstance(snr, np.ndarray) else draw_snr(snr, count, rng, emulator)
    if ebv is None:
        ebv = _from_quantiles(arrays["ebv_quantiles"], rng.random(count))
    rest = emulator.spectrum(labels)
    flux = _shift(rest if factor is None else rest * factor, rv, emulator)
    known = emulator.constrained(labels)[:, emulator.margin : -emulator.margin]
    dimming = ebv[:, None].astype(np.float32) * _extinction_column(emulator)
    flux *= np.exp(_distortion(count, rng, arrays) + dimming)
    average, expand = _continuum_matrices(wavelength.size)
    continuum = flux @ average @ expand
    ivar = _inverse_variance(flux, continuum, labels, target, rng, emulator)
    scale = _flux_level(target, rng, arrays)[:, None]
    flux *= scale
    continuum *= scale
    ivar /= scale**2
    flux += _noise(ivar.shape, rng, arrays) / np.sqrt(ivar)
    ivar *= known
    snr_bands = _measure_snr(wavelength, flux, ivar)
    andmask, ormask = _bad_pixels(flux, ivar, rng, arrays)
    rv_error = 2.5 + 120.0 / target
    return Simulation(
        wavelength=wavelength,
        flux=flux,
        ivar=ivar,
        andmask=andmask,
        ormask=ormask,
        continuum=continuum,
        labels=labels,
        rv=rv,
        rv_measured=rv + rv_error * rng.normal(size=count),
        rv_error=rv_error,
        ebv=ebv,
        snr=snr_bands,
    )


def _label_array(labels: np.ndarray) -> np.ndarray:
    if getattr(labels, "dtype", None) is not None and labels.dtype.names:
        return np.stack([labels[name] for name in LABEL_NAMES], axis=1).astype(float)
    return np.atleast_2d(np.asarray(labels, dtype=float))


def check_snr(snr: float | tuple[float, float] | None) -> tuple[float, float] | None:
    """Return the requested range of S/N; `UsageError` if it isn't one."""
    if snr is None:
        return None
    low, high = (snr, snr) if np.ndim(snr) == 0 else snr
    if not 0 < low <= high < np.inf:
        raise UsageError(
            f"S/N {low:g}:{high:g} can't be simulated; give one positive number or a "
            "range such as 10:300."
        )
    return float(low), float(high)


def draw_snr(
    snr: float | tuple[float, float] | None,
    count: int,
    rng: np.random.Generator,
    emulator: Emulator,
) -> np.ndarray:
    """Draw signal-to-noise ratios as `simulate` does, (spectrum,)."""
    limits, uniform = check_snr(snr), rng.random(count)
    if limits is None:
        return _from_quantiles(emulator.arrays["snr_quantiles"], uniform)
    return limits[0] * (limits[1] / limits[0]) ** uniform


def _from_quantiles(quantiles: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """Draw from a distribution that is stored as evenly spaced quantiles."""
    return np.interp(uniform, np.linspace(0, 1, quantiles.size), quantiles)


@cache
def _continuum_matrices(size: int) -> tuple[np.ndarray, np.ndarray]:
    return block_continuum(size)


@cache
def _extinction_column(emulator: Emulator) -> np.ndarray:
    """Log of the flux ratio per unit E(B−V), relative to 5500 Å."""
    wavelength = emulator.wavelength[emulator.margin : -emulator.margin]
    relative = extinction(wavelength) - extinction(5500.0)
    return (-0.4 * np.log(10) * relative).astype(np.float32)


def _shift(flux: np.ndarray, rv: np.ndarray, emulator: Emulator) -> np.ndarray:
    """Doppler-shift rest-frame flux onto the survey's pixels.

    On a log grid a velocity is a number of pixels; six-point Lagrange interpolation
    takes the fraction.
    """
    margin, step = emulator.margin, float(emulator.arrays["coeff1"])
    size = flux.shape[1] - 2 * margin
    pixels = -np.log10(1 + rv / SPEED_OF_LIGHT) / step
    whole = np.floor(pixels).astype(int)
    weights = _lagrange(pixels - whole)
    shifted = np.empty((len(flux), size), dtype=np.float32)
    for row, target in enumerate(shifted):
        start = margin + whole[row] - 2
        np.multiply(flux[row, start : start + size], weights[row, 0], out=target)
        for tap in range(1, 6):
            first = start + tap
            target += flux[row, first : first + size] * weights[row, tap]
    return shifted


def _lagrange(fraction: np.ndarray) -> np.ndarray:
    """Weights of the nodes −2…3 for interpolation at `fraction`, (spectrum, 6)."""
    nodes = np.arange(-2, 4)
    weights = np.ones((fraction.size, nodes.size))
    for column, node in enumerate(nodes):
        for other in nodes[nodes != node]:
            weights[:, column] *= (fraction - other) / (node - other)
    return weights.astype(np.float32)


def _distortion(count: int, rng, arrays) -> np.ndarray:
    """Log of LAMOST's flux-calibration error, (spectrum, pixel)."""
    shapes = arrays["distortion_shapes"]  # (shape, block), one standard deviation each
    _, expand = _continuum_matrices(arrays["noise_mean"].size)
    draws = rng.normal(size=(count, len(shapes))).astype(np.float32)
    return draws @ shapes @ expand


def noise_regressors(labels: np.ndarray, snr: np.ndarray) -> np.ndarray:
    """Terms that the shape of the noise depends on: colour and S/N, (spectrum, 5)."""
    t = np.log10(np.clip(labels[:, 0], 4200, 11000) / 6000) / 0.1
    s = np.log10(np.clip(snr, 8, 600) / 50)
    return np.stack([np.ones_like(t), t, s, t * t, s * s], axis=1)


def _inverse_variance(flux, continuum, labels, target, rng, emulator) -> np.ndarray:
    """Inverse variance with the requested median S/N in g, (spectrum, pixel)."""
    arrays = emulator.arrays
    coefficients = noise_regressors(labels, target) @ arrays["noise_regression"]
    scatter = rng.normal(size=coefficients.shape) @ arrays["noise_scatter"]
    log_snr = (coefficients + scatter).astype(np.float32) @ arrays["noise_shapes"]
    log_snr += arrays["noise_mean"]
    root = np.exp(log_snr) / np.maximum(continuum, 1e-4)
    wavelength = emulator.wavelength[emulator.margin : -emulator.margin]
    start, stop = np.searchsorted(wavelength, SNR_BANDS["g"])
    median = np.median(flux[:, start:stop] * root[:, start:stop], axis=1)
    root *= (target / median)[:, None].astype(np.float32)
    return np.square(root, out=root)


def _noise(shape: tuple[int, int], rng, arrays) -> np.ndarray:
    """Noise in units of 1/sqrt(ivar), correlated between neighbours."""
    scale, lag = arrays["noise_amplitude"]
    # white noise weighted (s, 1, s) has variance 1 + 2s² and lag-1 covariance 2s
    side = (1 - np.sqrt(1 - 2 * lag**2)) / (2 * lag)
    center = scale / np.sqrt(1 + 2 * side**2)
    white = rng.standard_normal((shape[0], shape[1] + 2), dtype=np.float32)
    noise = white[:, 1:-1] + np.float32(side) * (white[:, :-2] + white[:, 2:])
    noise *= np.float32(center)
    return noise


def _flux_level(target: np.ndarray, rng, arrays) -> np.ndarray:
    """Draw counts at 5500 Å, correlated with S/N as in LAMOST."""
    slope, offset, scatter = arrays["flux_level"]
    log_level = offset + slope * np.log10(target)
    return 10 ** (log_level + scatter * rng.normal(size=target.size)).astype(np.float32)


def _measure_snr(wavelength, flux, ivar) -> dict[str, np.ndarray]:
    bands = {}
    for band, limits in SNR_BANDS.items():
        start, stop = np.searchsorted(wavelength, limits)
        ratio = flux[:, start:stop] * np.sqrt(ivar[:, start:stop])
        bands[band] = np.median(ratio, axis=1).astype(float)
    return bands


def _bad_pixels(flux, ivar, rng, arrays) -> tuple[np.ndarray, np.ndarray]:
    """Put runs of bad pixels into `flux` and `ivar`; return ANDMASK and ORMASK.

    Runs of some pixels lose their IVAR; the cores of some also lose their flux. At the
    red end of many files the flux is exactly 0 and the IVAR is not.
    """
    count, size = flux.shape
    andmask, ormask = np.zeros_like(flux), np.zeros_like(flux)
    number = _from_quantiles(arrays["bad_run_quantiles"], rng.random(count))
    number = np.floor(number + rng.random(count)).astype(int)
    spectra = np.repeat(np.arange(count), number)
    total = spectra.size
    lengths = 1 + np.searchsorted(arrays["bad_length_cdf"], rng.random(total))
    blocks = np.searchsorted(arrays["bad_place_cdf"], rng.random(total))
    width = size / arrays["bad_place_cdf"].size
    starts = ((blocks + rng.random(total)) * width).astype(int)
    starts = np.minimum(starts, size - lengths)
    filled = rng.random(total) < arrays["bad_filled_rate"]
    flagged = rng.random((2, total)) < arrays["bad_mask_rate"][:, None]
    for run, (row, start, length) in enumerate(
        zip(spectra, starts, lengths, strict=True)
    ):
        span = slice(start, start + length)
        ivar[row, span] = 0
        ormask[row, span] = flagged[1, run]
        andmask[row, span] = flagged[0, run] and flagged[1, run]
        if filled[run]:
            middle = start + length // 2
            flux[row, max(start, middle - 1) : middle + 1] = 0
            ormask[row, span] = 1
    tail = _from_quantiles(arrays["zero_tail_quantiles"], rng.random(count)).astype(int)
    flux[np.arange(size) >= size - tail[:, None]] = 0
    return andmask, ormask


# ------------------------------------------------------- where nothing else is known


def rough(count: int, pixels: int, rng: np.random.Generator) -> np.ndarray:
    """Continua that no one has calibrated, about 1, float32 (star, pixel)."""
    x = np.linspace(-1, 1, pixels)
    bend = rng.normal(0, ROUGH, (4, count))
    return np.exp(np.polynomial.legendre.legval(x, bend)).astype(np.float32)


def photon_ivar(flux: np.ndarray, snr: np.ndarray) -> np.ndarray:
    """Inverse variance of photon noise with a median S/N, float32 (star, pixel)."""
    level = np.median(flux, axis=1, keepdims=True)
    variance = np.maximum(flux, 0.02 * level) * level / np.square(snr)[:, None]
    return (1 / variance).astype(np.float32)


def lost_runs(shape: tuple[int, int], most: int, rng) -> np.ndarray:
    """Draw runs of up to twenty bad pixels, bool (star, pixel)."""
    lost = np.zeros(shape, dtype=bool)
    for row, number in enumerate(rng.integers(0, most + 1, shape[0])):
        for start in rng.integers(0, shape[1], number):
            lost[row, start : start + rng.integers(1, 20)] = True
    return lost
