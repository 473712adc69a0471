"""Spectral synthesis in miniature: labels of cool stars to LAMOST MRS's two windows.

Not a model atmosphere code, but physics enough that every label leaves its true mark:
the layers of `atmospheres`; lines with Doppler cores and damping wings; Hα with wings
by the Stark effect and by collisions; the emergent flux of seven layers in local
thermodynamic equilibrium. Compared with the Gaia benchmark stars in
``tests/test_medium.py``.

Lines: a selection of the linemake lists (Placco et al. 2021, RNAAS 5, 92), made by
``tests/benchmarks/select_lines.py``. Formulae: Gray, "The Observation and Analysis of
Stellar Photospheres", 3rd edition, numbers below. Units are cgs, wavelengths vacuum Å.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from importlib.resources import files

import numpy as np

from stellarcli.spectrum import SPEED_OF_LIGHT
from stellarcli.surveys.atmospheres import (
    BOLTZMANN,
    EV,
    HYDROGEN_MASS,
    IONISATION,
    LOG_TAU,
    Atmosphere,
    atmosphere,
    continuous_opacity,
    populations,
    saha,
)

WINDOWS = ((4900.0, 5390.0), (6275.0, 6895.0))  # Å; the arms and a margin
STEP = 2.0  # km/s per pixel


# -------------------------------------------------------------------------------- lines


@dataclass(frozen=True, eq=False)
class Lines:
    """Spectral lines, each array (line,).

    Attributes
    ----------
    wavelength : ndarray of float64
        Vacuum Å.
    kind : ndarray of int
        Index into `atmospheres.KINDS`.
    energy : ndarray
        Excitation potential of the lower level, eV.
    log_gf : ndarray
    """

    wavelength: np.ndarray
    kind: np.ndarray
    energy: np.ndarray
    log_gf: np.ndarray

    @classmethod
    def load(cls) -> Lines:
        """Read the shipped selection."""
        return _shipped()

    @cached_property
    def arm(self) -> np.ndarray:
        """Window of each line, 0 or 1."""
        return (self.wavelength > WINDOWS[1][0]).astype(int)

    @cached_property
    def cross(self) -> np.ndarray:
        """Cross-section in the centre times the Doppler width, cm² cm/s.

        Gray, eq 11.12, with πe²/mc = 0.02654 and the profile's 1/(√π Δν).
        """
        return 0.02654 * 10**self.log_gf * 1e-8 * self.wavelength / np.sqrt(np.pi)

    @cached_property
    def broadening(self) -> np.ndarray:
        """Van der Waals damping over P T^-0.7, rad/s: Gray, eqs 11.29 and 11.30.

        Twice Unsöld's approximation, as is found in the Sun.
        """
        limits = np.concatenate([IONISATION, IONISATION + 8, np.full(3, 9.0)])
        above = np.maximum(limits[self.kind] - self.energy, 1.0)
        below = np.maximum(above - 12398.4 / self.wavelength, 0.4)
        c6 = 0.3e-30 * (1 / below**2 - 1 / above**2)
        return 2 * 10**19.6 * c6**0.4


@cache
def _shipped() -> Lines:
    data = files("stellarcli").joinpath("data", "lines.npz").read_bytes()
    with np.load(io.BytesIO(data), allow_pickle=False) as stored:
        return Lines(
            stored["wavelength"],
            stored["kind"].astype(int),
            stored["energy"].astype(np.float64),
            stored["log_gf"].astype(np.float64),
        )


def strengths(
    lines: Lines, stars: Atmosphere, levels: np.ndarray, star: int, layer: int
) -> tuple[np.ndarray, np.ndarray]:
    """Opacity in the centre of lines over that of the continuum, and the damping.

    Parameters
    ----------
    lines : Lines
    stars : Atmosphere
    levels : ndarray
        Of `populations`.
    star, layer : int

    Returns
    -------
    center, damping : ndarray, shape (line,)
        κ_line / κ_continuum without damping, and the Voigt parameter a.
    """
    t, pe = stars.temperature[star, layer], stars.electron_pressure[star, layer]
    width = 1e5 * doppler(stars, star, layer)  # cm/s
    stimulated = 1 - np.exp(-1.4388e8 / lines.wavelength / t)
    lower = levels[star, layer][lines.kind] * np.exp(-lines.energy * EV / t)
    continuum = [continuous_opacity(np.mean(window), t, pe) for window in WINDOWS]
    center = lower * lines.cross / width * stimulated / np.array(continuum)[lines.arm]
    pressure = lines.broadening * stars.gas_pressure[star, layer] * t**-0.7
    natural = 2.2e15 / lines.wavelength**2  # rad/s
    damping = (pressure + natural) * 1e-8 * lines.wavelength / (4 * np.pi * width)
    return center, damping


def doppler(stars: Atmosphere, star: int, layer: int) -> float:
    """Doppler width of iron, km/s; that of all lines."""
    t = stars.temperature[star, layer]
    thermal = 2 * BOLTZMANN * t / (55.8 * HYDROGEN_MASS) * 1e-10
    # rounded, so that stars share the profiles
    return round(float(np.sqrt(thermal + stars.microturbulence[star] ** 2)), 2)


# ----------------------------------------------------------------------------- spectrum


def grid() -> list[np.ndarray]:
    """Wavelengths of both windows, vacuum Å, `STEP` km/s apart."""
    found = []
    for low, high in WINDOWS:
        count = int(np.log(high / low) * SPEED_OF_LIGHT / STEP)
        found.append(low * np.exp(np.arange(count) * STEP / SPEED_OF_LIGHT))
    return found


GAP = 2000  # empty pixels between the windows, so that wings end


@cache
def _layout() -> tuple[list[slice], int]:
    """Places of the windows in one array, and its length."""
    sizes = [len(piece) for piece in grid()]
    starts = [GAP, 2 * GAP + sizes[0]]
    total = starts[1] + sizes[1] + GAP
    length = 1 << 4
    while length * 1536 < total:
        length += 1
    return [slice(s, s + n) for s, n in zip(starts, sizes, strict=True)], length * 1536


def _comb(position: np.ndarray, values: np.ndarray, length: int) -> np.ndarray:
    """Put values between the two nearest pixels each."""
    index = position.astype(int)
    share = position - index
    comb = np.bincount(index, values * (1 - share), length)
    return comb + np.bincount(index + 1, values * share, length)


@lru_cache(maxsize=1)
def _positions(lines: Lines) -> np.ndarray:
    """Pixel of each line in the array of both windows."""
    windows, _ = _layout()
    start = np.array([window.start for window in windows])[lines.arm]
    low = np.array([window[0] for window in WINDOWS])[lines.arm]
    return start + np.log(lines.wavelength / low) * SPEED_OF_LIGHT / STEP


@cache
def _offsets() -> np.ndarray:
    """Distance from pixel 0 around the array's ends, km/s."""
    _, length = _layout()
    return STEP * np.fft.fftfreq(length, 1 / length)


@lru_cache(maxsize=256)
def _profiles(width: float) -> tuple[np.ndarray, np.ndarray]:
    """Voigt function to first order in a: H₀ + a H₁ (Gray, eq 11.44), transformed.

    H₁ = −2/√π (1 − 2u D(u)) with Dawson's D: the wings a/(√π u²) far out.
    """
    from scipy import fft, special

    u = _offsets() / width
    first = -2 / np.sqrt(np.pi) * (1 - 2 * u * special.dawsn(u))
    return fft.rfft(np.exp(-(u**2))), fft.rfft(first)


def line_opacity(
    lines: Lines, stars: Atmosphere, levels: np.ndarray, star: int, layer: int
) -> np.ndarray:
    """κ_line / κ_continuum in both windows, one behind the other, (pixel,)."""
    from scipy import fft

    windows, length = _layout()
    center, damping = strengths(lines, stars, levels, star, layer)
    where = _positions(lines)
    core, wing = _profiles(doppler(stars, star, layer))
    spectrum = fft.rfft(_comb(where, center, length)) * core
    spectrum += fft.rfft(_comb(where, center * np.minimum(damping, 1.0), length)) * wing
    total = fft.irfft(spectrum, length)
    opacity = np.concatenate([total[window] for window in windows])
    opacity[-(windows[1].stop - windows[1].start) :] += balmer(stars, star, layer)
    return np.maximum(opacity, 0)


def balmer(stars: Atmosphere, star: int, layer: int) -> np.ndarray:
    """Opacity of Hα over that of the continuum in the red window.

    A Doppler core; wings by the linear Stark effect, 3.13e-16 F₀^1.5 Δλ^-2.5 cm² per
    atom in n = 2 (Gray, eq 11.47), twice for the electrons' share; wings by collisions
    with hydrogen, which in cool dwarfs are the wider ones (`_self_broadening`).
    """
    t, pe = stars.temperature[star, layer], stars.electron_pressure[star, layer]
    field = 1.25e-9 * (pe / (BOLTZMANN * t)) ** (2 / 3)
    width = 0.1285 * np.sqrt(t)  # km/s
    core = 6564.61 * width / SPEED_OF_LIGHT  # Å
    distance = grid()[1] - 6564.61
    cross = 2 * 3.13e-16 * field**1.5 * np.hypot(distance, core) ** -2.5
    strength = 0.02654 * 0.6407  # πe²/mc f, cm² Hz
    damping = _self_broadening(t, stars.gas_pressure[star, layer] - pe)
    frequency = SPEED_OF_LIGHT * 1e13 / 6564.61**2 * np.hypot(distance, core)  # Hz
    cross += strength * damping / np.square(2 * np.pi * frequency)
    peak = strength * 6564.61e-8 / (np.sqrt(np.pi) * 1e5 * width)
    cross += peak * np.exp(-np.square(distance / core))
    second = 4 * np.exp(-10.199 * EV / t) / (1 + saha(t, pe)[0])
    return second * cross / continuous_opacity(6564.6, t, pe)


def _self_broadening(temperature: float, pressure: float) -> float:
    """Damping of Hα by collisions with hydrogen atoms, rad/s.

    Full width at half maximum after Barklem, Piskunov & O'Mara (2000, A&A 363, 1091):
    cross-section 1180 a₀² at 10 km/s, falling with velocity to the power of 0.677.

    Parameters
    ----------
    temperature, pressure : float
        K; of the gas without its electrons, dyn/cm².
    """
    atoms = pressure / 1.085 / (BOLTZMANN * temperature)  # cm⁻³
    speed = np.sqrt(16 * BOLTZMANN * temperature / (np.pi * HYDROGEN_MASS))  # cm/s
    half = (4 / np.pi) ** 0.3385 * 0.9021 * 1180 * 2.8003e-17
    return 2 * atoms * half * speed * (speed / 1e6) ** -0.677


def normalised(labels: np.ndarray, lines: Lines | None = None) -> np.ndarray:
    """Emergent flux over that of the continuum, at rest, before any broadening.

    Parameters
    ----------
    labels : ndarray, shape (star, label)
        Order `atmospheres.LABELS`, within `LIMITS` there.
    lines : Lines, optional
        The shipped ones by default.

    Returns
    -------
    ndarray of float32, shape (star, pixel)
        Both windows of `grid`, one behind the other.
    """
    lines = lines or Lines.load()
    stars = atmosphere(labels)
    levels = populations(stars)
    tau = 10**LOG_TAU
    sizes = [len(piece) for piece in grid()]
    middle = np.repeat([np.mean(window) for window in WINDOWS], sizes)
    result = np.empty((len(levels), middle.size), dtype=np.float32)
    for star in range(len(levels)):
        opacities = [
            line_opacity(lines, stars, levels, star, n) for n in range(tau.size)
        ]
        source = 1 / np.expm1(1.4388e8 / middle / stars.temperature[star][:, None])
        lined = _emergent(1 + np.stack(opacities), source, tau)
        result[star] = lined / _emergent(np.ones_like(source), source, tau)
    return result


def _emergent(opacity: np.ndarray, source: np.ndarray, tau: np.ndarray) -> np.ndarray:
    """Flux from layers: ∫ S(t) 2 E₂(t) dt with 2 E₃(t) = exp(−1.5 t), nearly.

    Parameters
    ----------
    opacity : ndarray, shape (layer, pixel)
        Relative to that of the continuum, in which `tau` is measured.
    source : ndarray, shape (layer, pixel)
    tau : ndarray, shape (layer,)

    Returns
    -------
    ndarray, shape (pixel,)
    """
    depth = opacity[0] * tau[0]
    flux = source[0] * (1 - np.exp(-1.5 * depth))
    left = np.exp(-1.5 * depth)
    for layer in range(1, tau.size):
        mean = np.sqrt(opacity[layer] * opacity[layer - 1])
        depth = depth + mean * (tau[layer] - tau[layer - 1])
        through = np.exp(-1.5 * depth)
        flux += (source[layer] + source[layer - 1]) / 2 * (left - through)
        left = through
    return flux + source[-1] * left


def broadened(
    flux: np.ndarray, resolution: float, rotation: np.ndarray, macro: float = 3.0
) -> np.ndarray:
    """Convolve with rotation, macroturbulence and the instrument.

    Parameters
    ----------
    flux : ndarray, shape (star, pixel)
        Of `normalised`.
    resolution : float
        λ over the full width at half maximum of the instrument's Gaussian.
    rotation : ndarray, shape (star,)
        v sin i, km/s; limb darkening 0.6 (Gray, eq 18.14).
    macro : float
        Standard deviation of the macroturbulence, km/s.

    Returns
    -------
    ndarray of float32, shape (star, pixel)
    """
    from scipy import fft

    windows, length = _layout()
    offset = _offsets()
    sigma = np.hypot(SPEED_OF_LIGHT / resolution / 2.3548, macro)
    result = np.empty_like(flux)
    own = np.split(np.arange(flux.shape[1]), [windows[0].stop - windows[0].start])
    for star, values in enumerate(flux):
        kernel = np.exp(-0.5 * (offset / sigma) ** 2)
        transform = fft.rfft(kernel / kernel.sum())
        if rotation[star] > STEP:
            x = np.maximum(1 - (offset / rotation[star]) ** 2, 0)
            disc = 2 * 0.4 * np.sqrt(x) + 0.5 * np.pi * 0.6 * x
            transform = transform * fft.rfft(disc / disc.sum())
        depth = np.zeros(length)
        for window, pixels in zip(windows, own, strict=True):
            depth[window] = 1 - values[pixels]
        smooth = fft.irfft(fft.rfft(depth) * transform, length)
        for window, pixels in zip(windows, own, strict=True):
            result[star, pixels] = 1 - smooth[window]
    return result
