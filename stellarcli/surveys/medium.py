"""Simulated LAMOST medium-resolution files: which stars, how observed, what format.

Spectra are `synthesis`'s. Abundances follow [Fe/H] as in the Galaxy, with a scatter of
their own: N has only CN lines in these windows and K only weak ones, so what a network
says of them rests partly on that correlation (Cu, S and O in cool stars, too).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from stellarcli.errors import UsageError, unknown
from stellarcli.spectrum import SPEED_OF_LIGHT
from stellarcli.surveys import atmospheres, synthesis
from stellarcli.surveys.atmospheres import ELEMENTS
from stellarcli.surveys.emulator import draw_labels
from stellarcli.surveys.observing import MAX_VELOCITY, VELOCITY_SCATTER, check_snr

# What is drawn without being asked: the stars of the RDN paper, and a margin
DEFAULT_RANGES = {"teff": (3900.0, 6700.0), "logg": (0.3, 5.2), "feh": (-2.5, 0.5)}

RESOLUTION = 7500.0
STEP = 1.00136e-5  # dex per pixel of a coadd
# first wavelength in Å, pixels, relative throughput at both ends: of a DR7 file
ARMS = {"B": (4927.198, 3771, (0.45, 0.85)), "R": (6300.134, 3806, (0.30, 0.85))}
LAG = 0.4  # correlation of neighbouring pixels of a coadd
EDGE = 14  # pixels of exact zeros at an arm's end
MISSING = 0.04  # share of files with one arm only
SPIKES = 0.7  # cosmic rays that survive in a coadd, per arm
SNR_RANGE = (8.0, 250.0)  # per pixel in the blue arm; 30 is typical
SNR_SCATTER = 0.35  # dex
REDDER = (1.2, 2.2)  # S/N of the red arm over that of the blue one
CONTINUUM_SCATTER = 0.15  # of the flux calibration, per Legendre term


def draw(
    n: int,
    rng: np.random.Generator,
    ranges: Mapping[str, tuple[float, float]] | None = None,
) -> np.ndarray:
    """Draw stars with seventeen labels.

    Parameters
    ----------
    n : int
    rng : numpy.random.Generator
    ranges : mapping of (float, float), optional
        Of teff, logg and feh; `DEFAULT_RANGES` for those that it lacks.

    Returns
    -------
    ndarray, shape (star, label)
        Order `atmospheres.LABELS`: K, dex.
    """
    drawn = draw_labels(n, rng, check_ranges(ranges))
    logg, iron = drawn["logg"], drawn["feh"]
    # two sequences in [α/Fe] (Hayden et al. 2015): high in old stars, low in young ones
    old = rng.random(n) < np.clip(0.15 - 0.9 * iron, 0.1, 0.95)
    high = np.interp(iron, [-1.0, -0.5, 0.2], [0.35, 0.27, 0.08])
    low = np.interp(iron, [-1.0, -0.5, 0.2], [0.20, 0.10, 0.0])
    alpha = np.where(old, high, low) + rng.normal(0, 0.04, n)
    # odd elements and iron peak: gentle trends (e.g. Kobayashi et al. 2020, figure 5)
    poor = np.clip(iron, -1.5, 0.5)
    mixed = np.clip(
        (3.3 - logg) / 0.8, 0, 1
    )  # first dredge-up: carbon becomes nitrogen
    trends = {
        "C": 0.3 * alpha - 0.15 * mixed,
        "N": 0.1 * poor + 0.30 * mixed,
        "O": 1.1 * alpha,
        "Mg": alpha,
        "Al": 0.7 * alpha + 0.1 * poor,
        "Si": 0.7 * alpha,
        "S": 0.8 * alpha,
        "K": 0.6 * alpha,
        "Ca": 0.6 * alpha,
        "Ti": 0.7 * alpha,
        "Cr": 0.02 * poor,
        "Mn": 0.22 * poor,
        "Ni": 0.03 * poor,
        "Cu": 0.30 * poor,
    }
    light = dict.fromkeys(("C", "N", "O", "S", "K", "Cu"), 0.12)
    scatter = {name: light.get(name, 0.07) for name in ELEMENTS}
    columns = [drawn["teff"], logg, iron]
    columns += [iron + trends[e] + rng.normal(0, scatter[e], n) for e in ELEMENTS]
    return np.stack(columns, axis=1)


def check_ranges(ranges: Mapping[str, tuple[float, float]] | None) -> dict:
    """Complete ranges of teff, logg and feh by the defaults and check them.

    Raises
    ------
    UsageError
        If a label is unknown, or a range reversed or outside the synthesis's limits.
    """
    complete = dict(DEFAULT_RANGES)
    for name, (low, high) in (ranges or {}).items():
        if name not in DEFAULT_RANGES:
            raise unknown("label", name, DEFAULT_RANGES)
        least, most = atmospheres.LIMITS[name]
        if not least <= low <= high <= most:
            raise UsageError(
                f"range {name}={low:g}:{high:g} can't be simulated for lamost-mrs; its "
                f"synthesis covers {name}={least:g}:{most:g}, lowest value first."
            )
        complete[name] = (float(low), float(high))
    return complete


@dataclass(frozen=True, eq=False)
class Observation:
    """Stars as LAMOST's medium-resolution mode would coadd them.

    Attributes
    ----------
    wavelength : dict of ndarray, shape (pixel,)
        By arm; vacuum, heliocentric, Å.
    flux, ivar : dict of ndarray of float32, shape (star, pixel)
        By arm; edges, cosmic rays and noise included, the velocity not removed.
    snr : dict of ndarray, shape (star,)
        Median flux over error per pixel; 0 where the arm is missing.
    labels : ndarray, shape (star, label)
        Order `atmospheres.LABELS`.
    rv, rv_measured, rv_error : ndarray, shape (star,)
        km/s.
    """

    wavelength: dict[str, np.ndarray]
    flux: dict[str, np.ndarray]
    ivar: dict[str, np.ndarray]
    snr: dict[str, np.ndarray]
    labels: np.ndarray
    rv: np.ndarray
    rv_measured: np.ndarray
    rv_error: np.ndarray


def observe(
    labels: np.ndarray,
    rng: np.random.Generator,
    *,
    snr: float | tuple[float, float] | None = None,
    velocity_scatter: float = VELOCITY_SCATTER,
    rest: np.ndarray | None = None,
) -> Observation:
    """Observe stars with LAMOST's medium-resolution mode, in the computer.

    The noise of neighbouring pixels is correlated by `LAG`, as a coadd's is, so that
    the inverse variances promise more than the spectrum holds.

    Parameters
    ----------
    labels : ndarray, shape (star, label)
        Order `atmospheres.LABELS`.
    rng : numpy.random.Generator
    snr : float or (float, float), optional
        Per pixel of the blue arm: one value, or a range that is drawn from evenly in
        its logarithm. By default around 30.
    velocity_scatter : float
        Standard deviation of the radial velocities, km/s.
    rest : ndarray, shape (star, pixel), optional
        Their spectra, of `synthesis.normalised`, where they are made already.

    Returns
    -------
    Observation
    """
    count = len(labels)
    limits = check_snr(snr)
    rv = np.clip(rng.normal(0, velocity_scatter, count), -MAX_VELOCITY, MAX_VELOCITY)
    rotation = _rotation(labels, rng)
    if rest is None:
        rest = synthesis.normalised(labels)
    rest = synthesis.broadened(rest, RESOLUTION, rotation)
    if limits is None:
        blue = np.clip(30 * 10 ** rng.normal(0, SNR_SCATTER, count), *SNR_RANGE)
    else:
        blue = limits[0] * (limits[1] / limits[0]) ** rng.random(count)
    wanted = {"B": blue, "R": blue * rng.uniform(*REDDER, count)}
    level = 10 ** rng.uniform(1.8, 3.8, count)  # counts
    one_arm = rng.random(count) < MISSING
    lost = np.where(one_arm, rng.choice(["B", "R"], count), "")
    found: dict[str, dict] = {"wavelength": {}, "flux": {}, "ivar": {}, "snr": {}}
    pieces = dict(zip(ARMS, synthesis.grid(), strict=True))
    first = len(pieces["B"])
    own = {"B": slice(0, first), "R": slice(first, None)}
    for arm, (start, pixels, ends) in ARMS.items():
        wavelength = start * 10 ** (STEP * np.arange(pixels))
        x = np.linspace(-1, 1, pixels)
        blaze = np.interp(x, [-1, -0.2, 0.2, 1], [ends[0], 1, 1, ends[1]])
        bend = rng.normal(0, CONTINUUM_SCATTER, (4, count))
        colour = np.log(wavelength / wavelength.mean())
        colour = colour * (1.4388e8 / wavelength.mean() / labels[:, :1] - 5)
        smooth = np.polynomial.legendre.legval(x, bend)
        shape = blaze * np.exp(colour + smooth)
        flux = np.empty((count, pixels), dtype=np.float32)
        for star in range(count):
            at_rest = wavelength / (1 + rv[star] / SPEED_OF_LIGHT)
            flux[star] = np.interp(at_rest, pieces[arm], rest[star, own[arm]])
        flux *= shape
        ivar = _inverse_variance(flux, shape, wanted[arm])
        flux += _noise(ivar.shape, rng) / np.sqrt(ivar)
        snr_found = np.median(flux * np.sqrt(ivar), axis=1)
        _cosmic_rays(flux, rng)
        flux *= level[:, None]
        ivar /= np.square(level[:, None])
        edge = rng.integers(4, EDGE + 1, count)[:, None]
        outside = np.arange(pixels) >= pixels - edge
        missing = (lost == arm)[:, None]
        flux[outside | missing] = 0
        ivar[outside | missing] = 0
        found["wavelength"][arm], found["snr"][arm] = wavelength, snr_found
        found["snr"][arm] = np.where(lost == arm, 0, snr_found)
        found["flux"][arm], found["ivar"][arm] = flux, ivar.astype(np.float32)
    error = 0.3 + 15 / blue
    return Observation(
        labels=labels,
        rv=rv,
        rv_measured=rv + error * rng.normal(size=count),
        rv_error=error,
        **found,
    )


def _rotation(labels: np.ndarray, rng) -> np.ndarray:
    """Draw v sin i, km/s: slow in cool stars and giants, faster in warm dwarfs."""
    typical = np.interp(labels[:, 0], [5500, 6200, 6700], [3, 8, 20])
    typical = np.where(labels[:, 1] < 3.5, 3, typical)
    return np.minimum(typical * np.exp(rng.normal(0, 0.5, len(labels))), 80)


def _inverse_variance(flux, shape, wanted) -> np.ndarray:
    """Inverse variance of photon noise and some read noise, with a median S/N."""
    variance = np.maximum(flux, 0.02) + 0.1 * shape.mean(axis=1, keepdims=True)
    median = np.median(flux / np.sqrt(variance), axis=1)
    return np.square(wanted / median)[:, None] / variance


def _noise(shape: tuple[int, int], rng) -> np.ndarray:
    """Noise of unit variance with the correlation `LAG` between neighbours."""
    # white noise weighted (s, 1, s) has variance 1 + 2s² and lag-1 covariance 2s
    side = (1 - np.sqrt(1 - 2 * LAG**2)) / (2 * LAG)
    white = rng.standard_normal((shape[0], shape[1] + 2), dtype=np.float32)
    noise = white[:, 1:-1] + np.float32(side) * (white[:, :-2] + white[:, 2:])
    return noise / np.float32(np.sqrt(1 + 2 * side**2))


def _cosmic_rays(flux: np.ndarray, rng) -> None:
    """Add spikes of one to four pixels, up to several times the continuum."""
    for row, number in enumerate(rng.poisson(SPIKES, len(flux))):
        for place in rng.integers(0, flux.shape[1] - 4, number):
            height = np.median(flux[row]) * 10 ** rng.uniform(-0.5, 1.0)
            length = rng.integers(1, 5)
            flux[row, place : place + length] += height * rng.uniform(0.3, 1, length)


# --- files ----------------------------------------------------------------------------


def coadds(stars: Observation, row: int) -> Iterator[tuple[str, bytes]]:
    """Yield the coadds of one star: arm, rows of the table.

    A row per pixel with FLUX, IVAR, LOGLAM, ANDMASK and ORMASK, as up to DR8.
    """
    kind = [("f", ">f4"), ("i", ">f4"), ("l", ">f4"), ("a", ">i2"), ("o", ">i2")]
    for arm in ARMS:
        table = np.zeros(stars.wavelength[arm].size, dtype=kind)
        table["f"], table["i"] = stars.flux[arm][row], stars.ivar[arm][row]
        table["l"] = np.log10(stars.wavelength[arm])
        yield arm, table.tobytes()
