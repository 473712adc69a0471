"""Survey files made from a shipped spectral emulator, with known labels.

For trying the program, its tests and pre-training: `write_spectra` makes files that the
survey's own reader can't tell from real ones, and says in their header that they are
simulated. `Emulator` turns labels into spectra, `draw_labels` draws plausible stars,
`simulate` adds velocity, reddening, imperfect flux calibration, noise and bad pixels.

The emulator is fitted by ``tests/benchmarks/fit_emulator.py`` to the MILES spectral
interpolator (Prugniel et al. 2011, Sharma et al. 2016) below 7410 Å and to LAMOST DR10
spectra above; the observing conditions are statistics of the same LAMOST spectra.
"""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import pairwise
from pathlib import Path

import numpy as np

from stellarcli.errors import UsageError, unknown
from stellarcli.spectrum import SPEED_OF_LIGHT

LABEL_NAMES = ("teff", "logg", "feh")
LIMITS = {"teff": (2900.0, 25000.0), "logg": (-0.25, 5.5), "feh": (-2.8, 1.0)}
# What `draw_labels` draws without being asked: the stars that LAMOST labels exist for,
# and the giants and K stars next to them.
DEFAULT_RANGES = {"teff": (3800.0, 13000.0), "logg": (-0.25, 5.2), "feh": (-2.5, 0.9)}

FORMAT_VERSION = 1
BLOCK = 64  # spectra drawn together; a change changes what a seed means
VELOCITY_SCATTER = 50.0  # km/s, as the DR10 training plans
MAX_VELOCITY = 600.0  # km/s, a few pixels inside the emulator's margin

# Edges of the HR diagram at nodes of Teff, a margin around real stars less where the
# interpolator's polynomials turn negative. Nothing outside is drawn or was fitted.
_REGION_TEFF = np.array(
    [
        2900,
        3500,
        4000,
        4400,
        4700,
        5000,
        5500,
        6000,
        6500,
        7000,
        8000,
        10000,
        15000,
        25000,
    ]
)
_REGION_LOW = np.array(
    [0.0, -0.1, -0.2, 0.3, 0.7, 0.7, 0.7, 0.7, 0.7, 0.8, 1.1, 1.6, 2.0, 2.4]
)
_REGION_HIGH = np.array(
    [5.2, 5.1, 5.1, 5.0, 5.0, 5.1, 5.2, 5.2, 5.1, 5.1, 5.1, 5.1, 5.0, 4.9]
)
_REGION_POOR = np.array(
    [-1.2, -1.6, -1.8, -2.2, -2.6, -2.8, -2.8, -2.8, -2.8, -2.8, -2.4, -1.6, -1.0, -0.8]
)
_REGION_RICH = np.array(
    [0.3, 0.4, 0.45, 0.4, 0.4, 0.45, 0.65, 0.75, 0.85, 0.9, 1.0, 1.0, 1.0, 1.0]
)

# Ridge lines of the HR diagram: dwarfs (zero age and solar composition) and giants.
_DWARF_TEFF = [2900, 3500, 4000, 4500, 5000, 5500, 6000, 6500, 7000, 8000, 10000, 25000]
_DWARF_LOGG = [5.1, 4.9, 4.72, 4.62, 4.57, 4.5, 4.42, 4.34, 4.28, 4.25, 4.3, 4.2]
_GIANT_TEFF = [2900, 3500, 4000, 4500, 4800, 5000, 5200, 5500]
_GIANT_LOGG = [-0.2, 0.4, 1.3, 2.2, 2.7, 3.05, 3.4, 3.6]


def plausible(labels: np.ndarray) -> np.ndarray:
    """Say which labels lie in the emulator's part of the Hertzsprung–Russell diagram.

    Parameters
    ----------
    labels : ndarray, shape (..., 3)
        Teff [K], log g [dex], [Fe/H] [dex].

    Returns
    -------
    ndarray of bool, shape (...)
    """
    teff, logg, feh = np.moveaxis(np.asarray(labels, dtype=float), -1, 0)
    log_teff, nodes = np.log10(np.maximum(teff, 1.0)), np.log10(_REGION_TEFF)
    low, high, poor, rich = (
        np.interp(log_teff, nodes, edge)
        for edge in (_REGION_LOW, _REGION_HIGH, _REGION_POOR, _REGION_RICH)
    )
    # metal-rich supergiants and metal-poor K and M dwarfs are in no library
    rich = rich - 0.1 * np.clip(3.5 - logg, 0, None) * (teff < 8000)
    high = high - 0.4 * np.clip(-0.8 - feh, 0, 1) * (teff < 4900)
    inside = (logg >= low) & (logg <= high) & (feh >= poor) & (feh <= rich)
    for values, name in ((teff, "teff"), (logg, "logg"), (feh, "feh")):
        inside &= (values >= LIMITS[name][0]) & (values <= LIMITS[name][1])
    return inside


# --- labels to spectra ----------------------------------------------------------------


def red_basis(labels: np.ndarray) -> np.ndarray:
    """Quadratic polynomial terms that carry the spectrum beyond 7410 Å.

    Parameters
    ----------
    labels : ndarray, shape (spectrum, 3)

    Returns
    -------
    ndarray, shape (spectrum, 10)
    """
    teff, logg, feh = np.asarray(labels, dtype=float).T
    t, g, m = np.log10(teff / 6000) / 0.1, (logg - 4.0) / 0.6, (feh + 0.3) / 0.4
    terms = (np.ones_like(t), t, g, m, t * t, t * g, t * m, g * g, g * m, m * m)
    return np.stack(terms, axis=1)


@dataclass(frozen=True, eq=False)
class Emulator:
    """Labels to rest-frame spectra: a small network and a basis of log flux.

    Attributes
    ----------
    wavelength : ndarray, shape (pixel,)
        Vacuum, Å; LAMOST's pixels and a margin at both ends for velocities.
    margin : int
        Pixels before the survey's first one.
    arrays : dict of ndarray
        The shipped file: network, basis and the statistics that `simulate` draws from.
    """

    wavelength: np.ndarray
    margin: int
    arrays: dict[str, np.ndarray]

    @classmethod
    def load(cls, path: Path | str | None = None) -> Emulator:
        """Read the shipped emulator, or another file of the same form.

        Raises
        ------
        UsageError
            If the file is of a form that this version doesn't know.
        """
        return _shipped() if path is None else _read_emulator(path)

    def spectrum(self, labels: np.ndarray) -> np.ndarray:
        """Rest-frame flux density of stars, unreddened, free of noise.

        Parameters
        ----------
        labels : ndarray, shape (spectrum, 3)
            Teff [K], log g [dex], [Fe/H] [dex], within `LIMITS`.

        Returns
        -------
        ndarray of float32, shape (spectrum, pixel)
            Per Å, relative to the mean at 5450–5550 Å.

        Raises
        ------
        UsageError
            If labels lie outside `LIMITS`.
        """
        arrays = self.arrays
        hidden = self._inputs(labels)
        for layer in range(int(arrays["layers"])):
            hidden = hidden @ arrays[f"weight{layer}"] + arrays[f"bias{layer}"]
            if layer < int(arrays["layers"]) - 1:
                hidden = np.tanh(hidden)
        log_flux = hidden @ arrays["basis"]
        log_flux += arrays["mean"]
        return np.exp(log_flux, out=log_flux)

    def constrained(self, labels: np.ndarray) -> np.ndarray:
        """Say which pixels real spectra or the MILES stars constrain.

        Beyond 7410 Å these are the pixels of stars like LAMOST's labelled ones: those
        for which the regression's leverage is no larger than it was in the fit.

        Parameters
        ----------
        labels : ndarray, shape (spectrum, 3)

        Returns
        -------
        ndarray of bool, shape (spectrum, pixel)
        """
        labels = np.atleast_2d(labels)
        terms = red_basis(labels)
        leverage = np.einsum("si,ij,sj->s", terms, self.arrays["red_inverse"], terms)
        low, high = self.arrays["red_teff"]
        known = leverage <= self.arrays["red_leverage"]
        known &= (labels[:, 0] >= low) & (labels[:, 0] <= high)
        return known[:, None] | (self.wavelength <= self.arrays["red_start"])

    def _inputs(self, labels: np.ndarray) -> np.ndarray:
        """Labels as the network takes them, after a check of their range."""
        labels = np.atleast_2d(np.asarray(labels, dtype=float))
        for column, name in enumerate(LABEL_NAMES):
            low, high = LIMITS[name]
            wrong = ~((labels[:, column] >= low) & (labels[:, column] <= high))
            if wrong.any():
                raise UsageError(
                    f"{name} = {labels[wrong, column][0]:g} is outside the emulator's "
                    f"range {low:g} to {high:g}."
                )
        inputs = labels.copy()
        inputs[:, 0] = np.log10(labels[:, 0])
        inputs = (inputs - self.arrays["label_center"]) / self.arrays["label_scale"]
        return inputs.astype(np.float32)


def _read_emulator(path) -> Emulator:
    with np.load(path, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    version = int(arrays.get("format", 0))
    if version != FORMAT_VERSION:
        raise UsageError(
            f"emulator file {path} has format {version}; this program reads format "
            f"{FORMAT_VERSION}. Fit it again with tests/benchmarks/fit_emulator.py."
        )
    # half precision is for the file only: numpy computes with it in software
    for name, array in arrays.items():
        if array.dtype == np.float16:
            arrays[name] = array.astype(np.float32)
    arrays["basis"] *= arrays["basis_scale"][:, None]
    margin = int(arrays["margin"])
    log_wavelength = arrays["coeff0"] + arrays["coeff1"] * (
        np.arange(arrays["mean"].size) - margin
    )
    return Emulator(10.0**log_wavelength, margin, arrays)


@cache
def _shipped() -> Emulator:
    data = files("stellarcli").joinpath("data", "emulator.npz").read_bytes()
    return _read_emulator(io.BytesIO(data))


# --- which stars ----------------------------------------------------------------------


def check_ranges(ranges: Mapping[str, tuple[float, float]] | None) -> dict:
    """Complete the label ranges by the defaults and check them.

    Parameters
    ----------
    ranges : mapping of str to (float, float), optional
        Lowest and highest value of any of `LABEL_NAMES`; equal ones fix the label.

    Returns
    -------
    dict of str to (float, float)

    Raises
    ------
    UsageError
        If a label is unknown, a range is reversed or outside the emulator's limits.
    """
    complete = dict(DEFAULT_RANGES)
    for name, (low, high) in (ranges or {}).items():
        if name not in LIMITS:
            raise unknown("label", name, LABEL_NAMES)
        least, most = LIMITS[name]
        if not least <= low <= high <= most:
            raise UsageError(
                f"range {name}={low:g}:{high:g} can't be simulated; the emulator "
                f"covers {name}={least:g}:{most:g}, lowest value first."
            )
        complete[name] = (float(low), float(high))
    return complete


def draw_labels(
    n: int,
    rng: np.random.Generator,
    ranges: Mapping[str, tuple[float, float]] | None = None,
) -> np.ndarray:
    """Draw stars from a broad version of the Hertzsprung–Russell diagram.

    Dwarfs, turn-off stars and subgiants, giants, and a thin uniform floor over the
    whole plausible region, so that a network trained on them isn't lost anywhere.

    Parameters
    ----------
    n : int
    rng : numpy.random.Generator
    ranges : mapping of str to (float, float), optional
        As in `check_ranges`.

    Returns
    -------
    ndarray, shape (n,), fields teff [K], logg [dex], feh [dex]

    Raises
    ------
    UsageError
        As `check_ranges`, or if no plausible star lies in the ranges.
    """
    ranges = check_ranges(ranges)
    edges, cumulative = _label_grid(tuple(ranges[name] for name in LABEL_NAMES))
    shape = tuple(len(edge) - 1 for edge in edges)
    cell = np.searchsorted(cumulative, rng.random(n), side="right")
    cells = np.unravel_index(np.minimum(cell, cumulative.size - 1), shape)
    within = rng.random((3, n))
    labels = np.empty(n, dtype=[(name, "f8") for name in LABEL_NAMES])
    for column, name in enumerate(LABEL_NAMES):
        low, high = edges[column][cells[column]], edges[column][cells[column] + 1]
        labels[name] = low + (high - low) * within[column]
    low, high = ranges["teff"]
    labels["teff"] = np.clip(10 ** labels["teff"], low, high)
    return labels


@cache
def _label_grid(ranges: tuple) -> tuple[list[np.ndarray], np.ndarray]:
    """Cell edges in (log10 Teff, log g, [Fe/H]) and the cumulative probability."""
    (cool, hot), (low, high), (poor, rich) = ranges
    edges = [
        np.linspace(np.log10(cool), np.log10(hot), 81),
        np.linspace(low, high, 61),
        np.linspace(poor, rich, 33),
    ]
    centers = [(edge[1:] + edge[:-1]) / 2 for edge in edges]
    log_teff, logg, feh = np.meshgrid(*centers, indexing="ij")
    density = _density(log_teff, logg, feh)
    cumulative = np.cumsum(density.ravel())
    if not cumulative[-1] > 0:
        raise UsageError(
            f"no plausible star has teff {cool:g} to {hot:g} K, logg {low:g} to "
            f"{high:g} and feh {poor:g} to {rich:g}; widen a range."
        )
    return edges, cumulative / cumulative[-1]


def _density(log_teff: np.ndarray, logg: np.ndarray, feh: np.ndarray) -> np.ndarray:
    """Probability density of stars, not normalised, 0 outside the plausible region."""

    def bump(value, center, width):
        return np.exp(-0.5 * ((value - center) / width) ** 2) / width

    teff = 10**log_teff
    dwarf = np.interp(teff, _DWARF_TEFF, _DWARF_LOGG)
    # at one Teff, metal-poor giants lie higher up the branch
    giant = np.interp(teff, _GIANT_TEFF, _GIANT_LOGG) + 0.4 * np.clip(feh, -2, 0.3)
    evolved = np.clip((teff - 5000) / 700, 0, 1)  # cooler dwarfs haven't had time
    warm = 1 / (1 + ((log_teff - 3.77) / 0.16) ** 4)  # most labelled stars are A to K
    branch = 1 / (1 + np.exp((teff - 5300) / 120))
    gap = bump(teff, 5500, 600)
    shape = 0.45 * warm * bump(logg, dwarf, 0.13)
    shape += 0.30 * warm * evolved * bump(logg, dwarf - 0.35, 0.3)
    shape += (
        0.45 * branch * np.clip((teff - 2900) / 900, 0.1, 1) * bump(logg, giant, 0.4)
    )
    shape += 90.0 * gap * bump(logg, 3.7, 0.3)  # subgiants
    shape += 0.05 + 0.03 * warm
    poor_allowed = np.clip((9000 - teff) / 1500, 0.02, 1)  # old stars aren't hot
    metals = 0.60 * bump(feh, -0.1, 0.25) + 0.22 * poor_allowed * bump(feh, -0.55, 0.3)
    metals += 0.10 * poor_allowed * bump(feh, -1.4, 0.6) + 0.04
    inside = plausible(np.stack([teff, logg, feh], axis=-1))
    return np.where(inside, shape * metals, 0.0)


# --- stars to observations ------------------------------------------------------------


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
    snr: float | tuple[float, float] | None = None,
    velocity_scatter: float = VELOCITY_SCATTER,
    emulator: Emulator | None = None,
) -> Simulation:
    """Observe stars with LAMOST's low-resolution mode, in the computer.

    Noise is drawn from inverse variances with the shape, scale and pixel-to-pixel
    correlation of real ones (real noise is a little smaller than its IVAR says).

    Parameters
    ----------
    labels : ndarray, shape (spectrum, 3), or structured with fields teff, logg, feh
    rng : numpy.random.Generator
    snr : float or (float, float), optional
        Signal-to-noise ratio per pixel in g: one value, or a range that is drawn from
        evenly in its logarithm. Without it, LAMOST DR10's distribution.
    velocity_scatter : float
        Standard deviation of the stars' radial velocities, km/s.
    emulator : Emulator, optional
        The shipped one by default.

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
    target = _draw_snr(snr, count, rng, arrays)
    ebv = _from_quantiles(arrays["ebv_quantiles"], rng.random(count))
    flux = _shift(emulator.spectrum(labels), rv, emulator)
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


def _draw_snr(snr, count: int, rng, arrays) -> np.ndarray:
    limits, uniform = check_snr(snr), rng.random(count)
    if limits is None:
        return _from_quantiles(arrays["snr_quantiles"], uniform)
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


# --- observations to files ------------------------------------------------------------

SUBCLASSES = (
    *((30000.0, "O9"), (20000.0, "B2"), (15000.0, "B6"), (11000.0, "B9")),
    *((9900.0, "A0"), (9200.0, "A1"), (8800.0, "A2"), (8400.0, "A3"), (8100.0, "A5")),
    *((7800.0, "A7"), (7400.0, "A9"), (7150.0, "F0"), (6850.0, "F2"), (6550.0, "F3")),
    *((6350.0, "F5"), (6200.0, "F6"), (6100.0, "F7"), (5980.0, "F9"), (5880.0, "G0")),
    *((5800.0, "G2"), (5700.0, "G3"), (5600.0, "G5"), (5450.0, "G7"), (5300.0, "G8")),
    *((5150.0, "G9"), (5000.0, "K0"), (4850.0, "K1"), (4700.0, "K3"), (4400.0, "K4")),
    *((4200.0, "K5"), (3950.0, "K7"), (3750.0, "M0"), (3600.0, "M1"), (3450.0, "M2")),
    *((3300.0, "M3"), (3100.0, "M4"), (0.0, "M5")),
)


def subclass(teff: float, logg: float = 4.5) -> str:
    """Spectral subclass as LAMOST writes it for a star of some Teff [K].

    The cooler edge of each class in LAMOST's DR10 labels; M stars carry d (dwarf) or g
    (giant) in front, as in the survey.
    """
    name = next(name for edge, name in SUBCLASSES if teff >= edge)
    if name[0] == "M":
        return ("d" if logg > 3.5 else "g") + name
    return name


TRUTH_COLUMNS = [
    *(("file", "S44"), ("objid", "S16"), ("ra", "f8"), ("dec", "f8"), ("snr", "f8")),
    *(("teff", "f8"), ("logg", "f8"), ("feh", "f8"), ("rv", "f8"), ("ebv", "f8")),
    ("subclass", "S4"),
]
TRUTH_UNITS = {"ra": "deg", "dec": "deg", "teff": "K", "rv": "km/s", "ebv": "mag"}

_LMJD = 59580  # 1 January 2022
_PLAN = "SIM{seed:06d}"
_FIBRES, _SPECTROGRAPHS = 250, 16


def write_spectra(
    directory: Path | str,
    n: int,
    survey: str = "lamost-lrs",
    *,
    seed: int = 0,
    snr: float | tuple[float, float] | None = None,
    ranges: Mapping[str, tuple[float, float]] | None = None,
    layout: str = "C",
    compress: bool = True,
    emulator: Emulator | None = None,
) -> np.ndarray:
    """Write simulated survey files into a directory and return what is true of them.

    The same seed gives the same files, whatever `n`: more stars come after them.

    Parameters
    ----------
    directory : path
        Made if it doesn't exist. Files of the same names are replaced.
    n : int
        Number of files.
    survey : str
        Key of `SIMULATORS`.
    seed : int
        0 to 999999; part of the file names, so two seeds share a directory.
    snr, ranges
        As in `simulate` and `draw_labels`.
    layout : str
        LAMOST's ``"C"`` (binary table, DR9 and later) or ``"A"`` (image, DR2–DR8).
    compress : bool
        Write ``.fits.gz`` rather than ``.fits``.
    emulator : Emulator, optional
        The shipped one by default.

    Returns
    -------
    ndarray, shape (n,), fields as in `TRUTH_COLUMNS`
        `snr` is the header's g-band value, `rv` the true velocity in km/s.

    Raises
    ------
    UsageError
        If the survey or a label is unknown, or a number is outside its limits.
    """
    if survey not in SIMULATORS:
        raise unknown("survey to simulate", survey, SIMULATORS)
    if not (n >= 0 and 0 <= seed < 10**6):
        raise UsageError(
            f"n = {n}, seed = {seed}: give n >= 0 and a seed below 1000000."
        )
    check_ranges(ranges)
    check_snr(snr)
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    truth = np.zeros(n, dtype=TRUTH_COLUMNS)
    blocks = SIMULATORS[survey](
        n,
        seed=seed,
        snr=snr,
        ranges=ranges,
        layout=layout,
        emulator=emulator or Emulator.load(),
    )
    ending = ".gz" if compress else ""
    for row, (content, facts) in enumerate(blocks):
        name = facts["file"] + ending
        _write_atomically(directory / name, gzip(content) if compress else content)
        for column, value in facts.items():
            truth[column][row] = value
        truth["file"][row] = name
    return truth


def gzip(content: bytes) -> bytes:
    """Compress as gzip does, without a date: equal content gives equal files."""
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    return packer.compress(content) + packer.flush()


def _write_atomically(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def lamost_lrs(
    n: int, *, seed: int, snr, ranges, layout: str, emulator: Emulator
) -> Iterator[tuple[bytes, dict]]:
    """Yield LAMOST low-resolution files as bytes, each with what is true of it.

    Data model: https://www.lamost.org/dr10/v2.0/doc/lr-data-production-description
    """
    if layout not in LRS_LAYOUTS:
        raise unknown("layout", layout, LRS_LAYOUTS)
    encode = LRS_LAYOUTS[layout]
    wavelength = emulator.wavelength[emulator.margin : -emulator.margin]
    # real COEFF0 are rounded: the stored array is a thousandth of a pixel off
    wavelength = (wavelength * 10**1.2e-7).astype(np.float32)
    for block in range(-(-n // BLOCK)):
        rng = np.random.default_rng([seed, block])
        labels = draw_labels(BLOCK, rng, ranges)
        stars = simulate(labels, rng, snr=snr, emulator=emulator)
        positions = _draw_positions(BLOCK, rng)
        for row in range(min(BLOCK, n - block * BLOCK)):
            facts = _lrs_facts(seed, block * BLOCK + row, row, stars, positions)
            yield encode(facts, stars, row, wavelength), facts["truth"]


def _draw_positions(count: int, rng) -> np.ndarray:
    """Points spread evenly over LAMOST's sky (declination −10° to 60°), (count, 2)."""
    low, high = np.sin(np.radians([-10, 60]))
    dec = np.degrees(np.arcsin(rng.uniform(low, high, count)))
    return np.stack([rng.uniform(0, 360, count), dec], axis=1).round(6)


def _lrs_facts(seed: int, index: int, row: int, stars: Simulation, positions) -> dict:
    """Header values of file number `index`, and its row of the truth table."""
    plate, fibre = divmod(index, _FIBRES)
    night, spectrograph = divmod(plate, _SPECTROGRAPHS)
    lmjd, spid, fibre = _LMJD + night, spectrograph + 1, fibre + 1
    plan = _PLAN.format(seed=seed)
    teff, logg, feh = stars.labels[row]
    ra, dec = positions[row]
    # LAMOST's own numbers have nine digits; these can't be mistaken for them
    obsid = 10**10 + seed * 10**6 + index
    z = stars.rv_measured[row] / SPEED_OF_LIGHT
    snr = {band: _header_snr(value[row]) for band, value in stars.snr.items()}
    kind = subclass(teff, logg)
    name = f"spec-{lmjd}-{plan}_sp{spid:02d}-{fibre:03d}.fits"
    truth = {
        "file": name,
        "objid": str(obsid),
        "ra": ra,
        "dec": dec,
        "snr": snr["g"],
        "teff": teff,
        "logg": logg,
        "feh": feh,
        "rv": stars.rv[row],
        "ebv": stars.ebv[row],
        "subclass": kind,
    }
    return {
        "truth": truth,
        "lmjd": lmjd,
        "plan": plan,
        "spid": spid,
        "fibre": fibre,
        "obsid": obsid,
        "z": z,
        "z_err": stars.rv_error[row] / SPEED_OF_LIGHT,
        "snr": snr,
        "designation": designation(ra, dec),
    }


def _header_snr(value: float) -> float:
    """S/N as headers give it: two digits, 999 at most, -9999 without usable pixels."""
    return float(min(round(value, 2), 999)) if value != 0 else -9999.0


def designation(ra: float, dec: float) -> str:
    """Name of a position as LAMOST forms it, ``LAMOST JHHMMSS.ss+DDMMSS.s``.

    Parameters
    ----------
    ra, dec : float
        Degrees; truncated as the IAU asks, not rounded.
    """
    hundredths = int(ra / 15 * 360000)
    tenths = int(abs(dec) * 36000)
    hours = f"{hundredths // 360000:02d}{hundredths // 6000 % 60:02d}"
    hours += f"{hundredths // 100 % 60:02d}.{hundredths % 100:02d}"
    degrees = f"{tenths // 36000:02d}{tenths // 600 % 60:02d}"
    degrees += f"{tenths // 10 % 60:02d}.{tenths % 10}"
    return f"LAMOST J{hours}{'-' if dec < 0 else '+'}{degrees}"


def card(keyword: str, value, comment: str = "") -> str:
    """One FITS header card of 80 characters (FITS 4.0, section 4.2, fixed format)."""
    if isinstance(value, bool):
        text = f"{'T' if value else 'F':>20}"
    elif isinstance(value, str):
        text = f"'{value:<8}'".ljust(20)
    else:
        text = f"{value:>20}"
    line = f"{keyword:<8}= {text}"
    if comment:
        line += f" / {comment}"
    return f"{line[:80]:<80}"


def header_block(cards: list[str]) -> bytes:
    """Join cards, END and the padding to a multiple of 2880 bytes."""
    text = "".join(cards) + f"{'END':<80}"
    return text.ljust(-(-len(text) // 2880) * 2880).encode("ascii")


def _remark(text: str) -> str:
    return f"{'COMMENT ' + text:<80}"


def _lrs_cards(facts: dict, release: str) -> list[str]:
    """Return the cards that both layouts share, in the order of real files."""
    truth = facts["truth"]
    ra, dec = truth["ra"], truth["dec"]
    where = ("[deg] Right ascension of object", "[deg] Declination of object")
    return [
        _remark("--------FILE INFORMATION"),
        _remark("SIMULATED by stellar fetch simulated; not an observation"),
        card("FILENAME", truth["file"]),
        card("OBSID", facts["obsid"], "Unique number ID of this spectrum"),
        card("AUTHOR", "stellar simulated", "Who compiled the information"),
        card("DATA_V", f"STELLAR SIMULATED {release}", "Data release version"),
        card("ORIGIN", "simulated", "Organization responsible for creating this file"),
        _remark("--------TELESCOPE PARAMETERS"),
        card("TELESCOP", "LAMOST", "The telescope that is imitated"),
        _remark("--------OBSERVATION PARAMETERS"),
        card("LMJD", facts["lmjd"], "Local Modified Julian Day"),
        card("MJD", facts["lmjd"] - 1, "Modified Julian Date"),
        card("PLANID", facts["plan"], "Plan ID in use"),
        _number("RA", ra, where[0], 6),
        _number("DEC", dec, where[1], 6),
        card("DESIG", facts["designation"], "Designation of LAMOST target"),
        card("FIBERID", facts["fibre"], "Fiber ID of Object"),
        card("OBJTYPE", "Star", "Object type from input catalog"),
        card("RADECSYS", "FK5", "Equatorial coordinate system"),
        card("EQUINOX", 2000.0, "Equinox in years"),
        _remark("--------SPECTROGRAPH PARAMETERS"),
        card("SPID", facts["spid"], "Spectrograph ID"),
        _remark("--------DATA REDUCTION PARAMETERS"),
        card("HELIO", True, "Heliocentric correction"),
        card("VACUUM", True, "Wavelengths are in vacuum"),
        card("NWORDER", 2, "Number of linear-log10 coefficients"),
        card("WFITTYPE", "LOG-LINEAR", "Linear-log10 dispersion"),
        card("COEFF0", 3.5682, "Central wavelength (log10) of first pixel"),
        card("COEFF1", 0.0001, "Log10 dispersion per pixel"),
        card("CRVAL1", 3.5682, "Central wavelength (log10) of first pixel"),
        card("CD1_1", 0.0001, "Log10 dispersion per pixel"),
        card("CRPIX1", 1, "Starting pixel (1-indexed)"),
        card("CTYPE1", "LINEAR"),
        card("DC-FLAG", 1, "Log-linear flag"),
        _remark("--------SPECTRA ANALYSIS RESULTS"),
        card("VERSPIPE", "stellar", "Version of Pipeline"),
        card("CLASS", "STAR", "Class of object"),
        card("SUBCLASS", truth["subclass"], "Subclass of object"),
        _number("Z", facts["z"], "Redshift of object"),
        _number("Z_ERR", facts["z_err"], "Redshift error of object"),
        card("ZFLAG", "SIMULATED", "Which method computes the redshift"),
        *(
            _number(f"SNR{band.upper()}", value, f"SNR of {band} filter", 2)
            for band, value in facts["snr"].items()
        ),
    ]


def _number(keyword: str, value: float, comment: str, digits: int = 8) -> str:
    line = f"{keyword:<8}= {value:>20.{digits}f} / {comment}"
    return f"{line:<80}"


def _padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % 2880)


def _lrs_table(facts: dict, stars: Simulation, row: int, wavelength) -> bytes:
    """Layout C: empty primary HDU, one row of vector columns in COADD."""
    pixels = wavelength.size
    primary = [
        card("SIMPLE", True, "Primary Header"),
        card("BITPIX", 16),
        # real files carry stray NAXIS1 and NAXIS2 cards here, against the standard
        card("NAXIS", 0, "Number of array dimensions"),
        card("EXTEND", True),
        *_lrs_cards(facts, "DR10"),
    ]
    good = stars.ivar[row] > 0
    normalised = np.ones(pixels, dtype=np.float32)
    np.divide(stars.flux[row], stars.continuum[row], out=normalised, where=good)
    columns = {
        "FLUX": stars.flux[row],
        "IVAR": stars.ivar[row],
        "WAVELENGTH": wavelength,
        "ANDMASK": stars.andmask[row],
        "ORMASK": stars.ormask[row],
        "NORMALIZATION": normalised,
    }
    table = [
        "XTENSION= 'BINTABLE'           / Binary table".ljust(80),
        card("BITPIX", 8),
        card("NAXIS", 2),
        card("NAXIS1", 4 * pixels * len(columns), "Number of bytes per row"),
        card("NAXIS2", 1, "Number of rows"),
        card("PCOUNT", 0),
        card("GCOUNT", 1),
        card("TFIELDS", len(columns), "Number of columns in table"),
        card("EXTNAME", "COADD", "The extension name"),
    ]
    for number, name in enumerate(columns, start=1):
        table.append(card(f"TTYPE{number}", name))
        table.append(card(f"TFORM{number}", f"{pixels}E"))
    data = np.stack(list(columns.values())).astype(">f4").tobytes()
    return header_block(primary) + header_block(table) + _padded(data)


def _lrs_image(facts: dict, stars: Simulation, row: int, wavelength) -> bytes:
    """Layout A: one image of five rows in the primary HDU."""
    primary = [
        card("SIMPLE", True, "Primary Header"),
        card("BITPIX", -32),
        card("NAXIS", 2, "Number of array dimensions"),
        card("NAXIS1", wavelength.size),
        card("NAXIS2", 5),
        card("EXTEND", True),
        card("EXTEN0", "Flux, Inverse, Wavelength, Andmask, Ormask"),
        card("EXTNAME", "Flux", "The extension name"),
        *_lrs_cards(facts, "DR7"),
    ]
    rows = (stars.flux, stars.ivar, wavelength[None], stars.andmask, stars.ormask)
    image = np.stack([part[row if len(part) > 1 else 0] for part in rows])
    return header_block(primary) + _padded(image.astype(">f4").tobytes())


LRS_LAYOUTS = {"A": _lrs_image, "C": _lrs_table}
SIMULATORS = {"lamost-lrs": lamost_lrs}
