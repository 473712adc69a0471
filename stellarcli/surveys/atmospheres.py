"""Atmospheres of cool stars in miniature: temperatures, pressures, who is how many.

A T–τ relation scaled from the Sun's; hydrostatic pressure with the electrons of
hydrogen and the metals; continuous opacity of H⁻, H and Rayleigh scattering; level and
ion populations by Boltzmann and Saha; CN, CH and MgH in equilibrium with CO and N₂.
What `synthesis` makes spectra of.

Formulae: Gray, "The Observation and Analysis of Stellar Photospheres", 3rd edition,
numbers below. Units are cgs, wavelengths vacuum Å.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stellarcli.errors import UsageError

# what a star is given by, and the order of the columns
ELEMENTS = ("C", "N", "O", "Mg", "Al", "Si", "S", "K", "Ca", "Ti", "Cr", "Mn", "Ni")
ELEMENTS += ("Cu",)
LABELS = ("teff", "logg", "feh", *(f"{element.lower()}_h" for element in ELEMENTS))
LIMITS = {"teff": (3700.0, 7200.0), "logg": (0.0, 5.3), "feh": (-3.0, 0.8)}

BOLTZMANN, HYDROGEN_MASS = 1.380649e-16, 1.6735e-24  # erg/K, g
EV = 11604.5  # K per eV
MASS_PER_HYDROGEN = 1.4 * HYDROGEN_MASS  # g, helium included

# Layers, and T/Teff of the Sun there (after Holweger & Müller 1974, rounded)
LOG_TAU = np.array([-3.5, -2.5, -1.7, -1.1, -0.6, -0.2, 0.2])
_SOLAR_LOG_TAU = [-4.0, -3.0, -2.0, -1.0, -0.5, 0.0, 0.3]
_SOLAR_RATIO = [0.720, 0.755, 0.810, 0.893, 0.962, 1.108, 1.220]

# ionisation energy in eV, partition functions of atom and ion at some 5500 K, log
# abundance of the Sun (Asplund et al. 2009)
SPECIES: dict[str, tuple[float, float, float, float]] = {
    "H": (13.598, 2.0, 1.0, 12.00),
    "C": (11.260, 9.3, 6.0, 8.43),
    "N": (14.534, 4.1, 8.9, 7.83),
    "O": (13.618, 8.7, 4.0, 8.69),
    "Na": (5.139, 2.1, 1.0, 6.24),
    "Mg": (7.646, 1.03, 2.0, 7.60),
    "Al": (5.986, 5.9, 1.0, 6.45),
    "Si": (8.152, 9.5, 5.7, 7.51),
    "S": (10.360, 8.1, 4.2, 7.12),
    "K": (4.341, 2.2, 1.0, 5.03),
    "Ca": (6.113, 1.2, 2.2, 6.34),
    "Sc": (6.561, 12.0, 23.0, 3.15),
    "Ti": (6.828, 30.0, 56.0, 4.95),
    "V": (6.746, 48.0, 44.0, 3.93),
    "Cr": (6.767, 10.5, 7.2, 5.64),
    "Mn": (7.434, 6.4, 7.7, 5.43),
    "Fe": (7.902, 27.0, 43.0, 7.50),
    "Co": (7.881, 33.0, 29.0, 4.99),
    "Ni": (7.640, 30.0, 10.5, 6.22),
    "Cu": (7.726, 2.3, 1.0, 4.19),
    "Zn": (9.394, 1.0, 2.0, 4.56),
    "Sr": (5.695, 1.3, 2.2, 2.87),
    "Y": (6.217, 12.0, 15.0, 2.21),
    "Zr": (6.634, 34.0, 46.0, 2.58),
    "Ba": (5.212, 2.5, 4.2, 2.18),
    "La": (5.577, 29.0, 30.0, 1.10),
    "Ce": (5.539, 120.0, 190.0, 1.58),
    "Nd": (5.525, 75.0, 130.0, 1.42),
}
NAMES = tuple(SPECIES)
IONISATION, _ATOM, _ION, _SUN = np.array(list(SPECIES.values())).T

# dissociation energy in eV, rotation and vibration constants in cm⁻¹, statistical
# weight, symmetry number (Huber & Herzberg 1979)
MOLECULES: dict[str, tuple[str, str, float, float, float, float, float]] = {
    "CO": ("C", "O", 11.09, 1.92, 2170.0, 1.0, 1.0),
    "N2": ("N", "N", 9.76, 1.99, 2359.0, 1.0, 2.0),
    "CN": ("C", "N", 7.72, 1.89, 2068.0, 2.0, 1.0),
    "CH": ("C", "H", 3.47, 14.2, 2858.0, 4.0, 1.0),
    "MgH": ("Mg", "H", 1.27, 5.74, 1495.0, 2.0, 1.0),
}
WEIGHTS = {"H": 1.008, "C": 12.01, "N": 14.01, "O": 16.00, "Mg": 24.31}  # amu
KINDS = (*NAMES, *(f"{name}+" for name in NAMES), *list(MOLECULES)[2:])


@dataclass(frozen=True, eq=False)
class Atmosphere:
    """Layers of stars; arrays (star, layer) unless said otherwise.

    Attributes
    ----------
    temperature : ndarray
        K.
    gas_pressure, electron_pressure : ndarray
        dyn/cm².
    abundance : ndarray, shape (star, element)
        Number relative to hydrogen, order `NAMES`.
    microturbulence : ndarray, shape (star,)
        km/s.
    """

    temperature: np.ndarray
    gas_pressure: np.ndarray
    electron_pressure: np.ndarray
    abundance: np.ndarray
    microturbulence: np.ndarray


def abundances(labels: np.ndarray) -> np.ndarray:
    """Abundances by number relative to hydrogen, order `NAMES`.

    Elements that are no label follow iron.

    Parameters
    ----------
    labels : ndarray, shape (star, label)
        Order `LABELS`.

    Returns
    -------
    ndarray, shape (star, element)
    """
    column = {f"{name.lower()}_h": name for name in ELEMENTS}
    named = {
        column.get(name, "Fe"): labels[:, n] for n, name in enumerate(LABELS[2:], 2)
    }
    iron = named["Fe"]
    scaled = [
        np.zeros(len(labels)) if name == "H" else named.get(name, iron)
        for name in NAMES
    ]
    return 10 ** (_SUN - 12 + np.stack(scaled, axis=1))


def saha(temperature: np.ndarray, electrons: np.ndarray) -> np.ndarray:
    """Ratio of ions to atoms (Gray, eq 1.20), (…, element)."""
    t, pe = temperature[..., None], electrons[..., None]
    constant = 0.6665 * t**2.5 * _ION / _ATOM
    return constant * np.exp(-IONISATION * EV / t) / pe


def _electron_share(temperature, electrons, abundance) -> np.ndarray:
    """Electrons per hydrogen nucleus, if the electron pressure were `electrons`."""
    ratio = saha(temperature, electrons)
    return (abundance * ratio / (1 + ratio)).sum(axis=-1)


def electron_pressure(
    temperature: np.ndarray, gas_pressure: np.ndarray, abundance: np.ndarray
) -> np.ndarray:
    """Electron pressure in ionisation equilibrium, dyn/cm².

    Parameters
    ----------
    temperature, gas_pressure : ndarray, shape (…,)
        K, dyn/cm².
    abundance : ndarray, shape (…, element)

    Returns
    -------
    ndarray, shape (…,)
    """
    low = np.full(np.shape(temperature), -12.0)  # log10 of Pe/Pg
    high = np.zeros_like(low)
    for _ in range(30):
        middle = (low + high) / 2
        pe = gas_pressure * 10**middle
        # nuclei per hydrogen nucleus: helium and hydrogen
        share = _electron_share(temperature, pe, abundance)
        more = share / (1.085 + share) > 10**middle
        low, high = np.where(more, middle, low), np.where(more, high, middle)
    return gas_pressure * 10 ** ((low + high) / 2)


def continuous_opacity(
    wavelength: float, temperature: np.ndarray, electrons: np.ndarray
) -> np.ndarray:
    """Cross-section per hydrogen nucleus, cm², of H⁻, H and Rayleigh scattering.

    Gray, eqs 8.12 (H⁻ bound-free), 8.13 (free-free), 8.8 (H from n = 3, with a Gaunt
    factor of 1), each per neutral hydrogen atom.
    """
    theta = 5040 / temperature
    powers = np.array([1.99654, -1.18267e-5, 2.64243e-6, -4.40524e-10])
    powers = np.append(powers, [3.23992e-14, -1.39568e-18, 2.78701e-23])
    bound = 1e-18 * np.polyval(powers[::-1], wavelength)
    total = 4.158e-10 * bound * electrons * theta**2.5 * 10 ** (0.754 * theta)
    x, y = np.log10(wavelength), np.log10(theta)
    f0 = -2.2763 - 1.6850 * x + 0.76661 * x**2 - 0.053346 * x**3
    f1 = 15.2827 - 9.2846 * x + 1.99381 * x**2 - 0.142631 * x**3
    f2 = -197.789 + 190.266 * x - 67.9775 * x**2 + 10.6913 * x**3 - 0.625151 * x**4
    total += 1e-26 * electrons * 10 ** (f0 + f1 * y + f2 * y**2)
    third = 9 * np.exp(-12.09 * EV / temperature)  # population of n = 3
    total += third * 3 * 7.91e-18 * (wavelength / 8205.8) ** 3
    total += 5.8e-13 / wavelength**4
    ionised = saha(temperature, electrons)[..., 0]
    return total / (1 + ionised)


def atmosphere(labels: np.ndarray) -> Atmosphere:
    """Layers of stars.

    Parameters
    ----------
    labels : ndarray, shape (star, label)
        Order `LABELS`, within `LIMITS`.

    Returns
    -------
    Atmosphere

    Raises
    ------
    UsageError
        If labels are outside `LIMITS`.
    """
    labels = np.atleast_2d(np.asarray(labels, dtype=float))
    for column, name in enumerate(LIMITS):
        low, high = LIMITS[name]
        wrong = ~((labels[:, column] >= low) & (labels[:, column] <= high))
        if wrong.any():
            raise UsageError(
                f"{name} = {labels[wrong, column][0]:g} is outside the range of the "
                f"synthesis, {low:g} to {high:g}."
            )
    teff, gravity = labels[:, 0], 10 ** labels[:, 1]
    abundance = abundances(labels)
    fine = np.arange(-4.0, LOG_TAU[-1] + 0.05, 0.1)
    ratio = np.interp(fine, _SOLAR_LOG_TAU, _SOLAR_RATIO)
    pressures, pressure = [], np.full(len(labels), 1.0)
    for step, level in enumerate(fine):
        temperature = teff * ratio[step]
        tau = 10**level
        for _ in range(20 if step == 0 else 1):
            pe = electron_pressure(temperature, pressure, abundance)
            kappa = continuous_opacity(5000.0, temperature, pe) / MASS_PER_HYDROGEN
            if step == 0:  # P grows as the opacity does, hence the 2
                pressure = np.sqrt(pressure * 2 * gravity * tau / kappa)
        pressures.append(pressure)
        # dP/dτ = g/κ (Gray, eq 9.8), with κ proportional to P within a step: d(P²)
        growth = 2 * gravity * tau * (10**0.1 - 1) * pressure / kappa
        pressure = np.sqrt(pressure**2 + growth)
    at = [int(np.argmin(abs(fine - level))) for level in LOG_TAU]
    temperature = teff[:, None] * np.interp(LOG_TAU, _SOLAR_LOG_TAU, _SOLAR_RATIO)
    gas = np.stack([pressures[index] for index in at], axis=1)
    electrons = electron_pressure(temperature, gas, abundance[:, None])
    # dwarfs 1 km/s, giants 2, as spectroscopists find it
    micro = np.clip(2.1 - 0.22 * labels[:, 1] + (teff - 5500) * 2e-4, 0.8, 2.5)
    return Atmosphere(temperature, gas, electrons, abundance, micro)


def populations(stars: Atmosphere) -> np.ndarray:
    """Particles over partition function, per hydrogen nucleus.

    Returns
    -------
    ndarray, shape (star, layer, kind)
        Order `KINDS`: atoms, ions, then molecules.
    """
    t, pe = stars.temperature, stars.electron_pressure
    ratio = saha(t, pe)
    abundance = stars.abundance[:, None]
    atoms = abundance / (1 + ratio)
    ions = abundance * ratio / (1 + ratio)
    hydrogen = (stars.gas_pressure - pe) / 1.085 / (BOLTZMANN * t)  # nuclei per cm³
    free = {name: atoms[..., NAMES.index(name)] for name in WEIGHTS}
    carbon = _bound(free["C"], free["O"], _association("CO", t) * hydrogen)
    free["C"], free["O"] = free["C"] - carbon, free["O"] - carbon
    both = 4 * _association("N2", t) * hydrogen * free["N"]
    free["N"] = free["N"] * 2 / (1 + np.sqrt(1 + 2 * both))
    for name in ("C", "N", "O"):
        atoms[..., NAMES.index(name)] = free[name]
    molecules = [
        free[MOLECULES[name][0]]
        * free[MOLECULES[name][1]]
        * hydrogen
        * _association(name, t)
        / _internal(name, t)
        for name in KINDS[2 * len(NAMES) :]
    ]
    return np.concatenate(
        [atoms / _ATOM, ions / _ION, np.stack(molecules, axis=-1)], axis=-1
    )


def _internal(name: str, t: np.ndarray) -> np.ndarray:
    """Partition function of a molecule: rotation, vibration, statistical weight."""
    _, _, _, rotation, vibration, weight, symmetry = MOLECULES[name]
    kelvin = 1.4388  # cm K
    rotations = t / (kelvin * rotation) / symmetry
    return weight * rotations / (1 - np.exp(-kelvin * vibration / t))


def _association(name: str, t: np.ndarray) -> np.ndarray:
    """n(AB) / (n(A) n(B)) in cm³ (law of mass action)."""
    first, second, energy, *_ = MOLECULES[name]
    mass = WEIGHTS[first] * WEIGHTS[second] / (WEIGHTS[first] + WEIGHTS[second])
    planck = 6.62607e-27
    volume = (planck**2 / (2 * np.pi * mass * 1.66054e-24 * BOLTZMANN * t)) ** 1.5
    weights = _ATOM[NAMES.index(first)] * _ATOM[NAMES.index(second)]
    return volume * _internal(name, t) / weights * np.exp(energy * EV / t)


def _bound(first: np.ndarray, second: np.ndarray, k: np.ndarray) -> np.ndarray:
    """Solve x = k (first − x)(second − x) for the smaller root."""
    b = first + second + 1 / k
    return 2 * first * second / (b + np.sqrt(b**2 - 4 * first * second))
