"""Red-clump stars with masses and ages, in the computer.

No catalogue of masses and ages with spectra may be shipped, so these stars follow
published relations, with their scatter; what is made of them is simulated, and says so:

age and height    4 Gyr more per kpc above the plane: Casagrande et al. 2016 (MNRAS 455,
                  987), about a young mode in the plane (Girardi 2016, ARA&A 54, 95)
age and mass      time to the base of the giant branch: Hurley, Pols & Tout 2000 (MNRAS
                  315, 543), equation 4 and appendix; a few per cent later on the clump
Teff, [Fe/H]      the clump's ridge beside the line of Bovy et al. 2014 (ApJ 790, 127),
                  equation 3
log g             from mass, Teff and the clump's nearly constant luminosity
[C/N] and age     log age = 10.14 + 2.23 [C/N]: Spoo et al. 2022 (AJ 163, 229). The
                  dredge-up turns carbon into nitrogen, their sum stays

CH and CN bands answer to carbon and nitrogen as in ``data/carbon.npz``, which
``tests/benchmarks/carbon_response.py`` computes from the line lists; everything else of
a spectrum is the emulator's, which knows nothing of [C/N].
"""

from __future__ import annotations

import io
from functools import cache
from importlib.resources import files

import numpy as np

from stellarcli.surveys.emulator import Emulator
from stellarcli.surveys.observing import extinction

SUN_TEFF, SUN_LOGG, SUN_MAGNITUDE = 5772.0, 4.438, 4.74  # K, dex, bolometric
LATER = 1.06  # age on the clump over that at the base of the giant branch
AGES = (0.8, 12.5)  # Gyr; younger stars burn helium elsewhere in the diagram
MASSES = np.linspace(0.7, 3.2, 501)  # Msun
YOUNG, SPREAD, PER_KPC = 2.2, 0.22, 4.0  # Gyr in the plane, dex, Gyr per kpc
OLDER = 5.0  # Gyr, which stars far from the plane are older by
FAINTEST, PER_DEX = 17.8, 2.75  # r magnitude of S/N 6; magnitudes per factor of ten
NEAR_PLANE = 0.15  # mean sine of the latitude
LUMINOSITY, LUMINOSITY_SPREAD = 1.72, 0.03  # log L/Lsun
CORRECTION = -0.05  # bolometric less r magnitude
CN_SLOPE, CN_ZERO, CN_SPREAD = 2.23, 10.14, 0.06  # log yr per dex, log yr, dex
CN_USUAL = -0.3  # [C/N] of the giants that the emulator is fitted to
SUN_CARBON = 10 ** (8.43 - 7.83)  # C over N by number (Asplund et al. 2009)
DUST, DUST_HEIGHT, DUST_SPREAD = 0.04, 0.125, 0.3  # mag towards the pole, kpc, ln
MOST_DUST = 1.2  # E(B-V), mag
POLE = np.radians([192.8595, 27.1284])  # of the Galaxy, ICRS

# half-power wavelengths, Å, of the SDSS filters (Doi et al. 2010), and the width of
# their edges
FILTERS = {"g": (3996.0, 5375.0), "r": (5475.0, 6857.0), "i": (6712.0, 8248.0)}
EDGE = 40.0

FIELDS = ("teff", "logg", "feh", "mass", "age", "c_n", "ebv", "snr", "ra", "dec")
FIELDS += ("g", "r", "i")


def giant_branch_age(mass: np.ndarray, feh: np.ndarray) -> np.ndarray:
    """Age at the base of the giant branch, Gyr (Hurley et al. 2000, eq. 4).

    Parameters
    ----------
    mass : ndarray
        Msun.
    feh : ndarray, same shape
        [Fe/H], dex; Z = 0.02 at 0.
    """
    zeta = np.asarray(feh, dtype=float)
    a1, a2, a3, a4 = (
        np.polynomial.polynomial.polyval(zeta, coefficients)
        for coefficients in (
            (1.593890e3, 2.053038e3, 1.231226e3, 2.327785e2),
            (2.706708e3, 1.483131e3, 5.772723e2, 7.411230e1),
            (1.466143e2, -1.048442e2, -6.795374e1, -1.391127e1),
            (4.141960e-2, 4.564888e-2, 2.958542e-2, 5.571483e-3),
        )
    )
    m = np.asarray(mass, dtype=float)
    time = a1 + a2 * m**4 + a3 * m**5.5 + m**7
    return 1e-3 * time / (a4 * m**2 + 3.426349e-1 * m**7)


def mass_of(age: np.ndarray, feh: np.ndarray) -> np.ndarray:
    """Mass of a red-clump star of an age, Msun; inverse of `LATER` times the above."""
    own = LATER * giant_branch_age(MASSES[None], np.asarray(feh)[:, None])
    pairs = zip(np.log(age), np.log(own), strict=True)
    return np.array([np.interp(-a, -row, MASSES) for a, row in pairs])


def latitude(ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
    """Sine of the Galactic latitude of positions in degrees."""
    a, d = np.radians(ra), np.radians(dec)
    north = np.sin(d) * np.sin(POLE[1])
    return north + np.cos(d) * np.cos(POLE[1]) * np.cos(a - POLE[0])


def positions(count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw positions in LAMOST's sky, most of them near the plane, degrees, (star, 2).

    Declinations are −10° to 60°.
    """
    low, high = np.sin(np.radians([-10, 60]))
    found = np.empty((0, 2))
    while len(found) < count:
        dec = np.degrees(np.arcsin(rng.uniform(low, high, 8 * count)))
        ra = rng.uniform(0, 360, dec.size)
        chance = np.exp(-np.abs(latitude(ra, dec)) / NEAR_PLANE)
        chosen = rng.random(dec.size) < chance
        found = np.concatenate([found, np.stack([ra, dec], axis=1)[chosen]])
    return found[:count].round(6)


def reddening(distance: np.ndarray, sine: np.ndarray, usual: np.ndarray) -> np.ndarray:
    """E(B-V) behind an exponential sheet of dust, mag.

    Parameters
    ----------
    distance : ndarray
        kpc.
    sine : ndarray, same shape
        Absolute sine of the latitude.
    usual : ndarray, same shape
        Dust of this direction over what is usual there.
    """
    sine = np.maximum(sine, 0.02)
    depth = 1 - np.exp(-distance * sine / DUST_HEIGHT)
    return np.minimum(usual * DUST / sine * depth, MOST_DUST)


def draw(
    count: int,
    rng: np.random.Generator,
    snr: np.ndarray,
    positions: np.ndarray,
    emulator: Emulator | None = None,
) -> np.ndarray:
    """Draw red-clump stars.

    Parameters
    ----------
    count : int
    rng : numpy.random.Generator
    snr : ndarray, shape (star,)
        Of the spectra, per pixel in g; faint stars have little.
    positions : ndarray, shape (star, 2)
        Right ascension and declination, degrees.
    emulator : Emulator, optional
        For colours; the shipped one by default.

    Returns
    -------
    ndarray, shape (star,), fields `FIELDS`
        K, dex, dex, Msun, Gyr, dex, mag, per pixel, degrees, and AB magnitudes.
    """
    stars = np.zeros(count, dtype=[(name, "f8") for name in FIELDS])
    stars["snr"], (stars["ra"], stars["dec"]) = snr, positions.T
    sine = np.abs(latitude(stars["ra"], stars["dec"]))
    luminosity = LUMINOSITY + LUMINOSITY_SPREAD * rng.normal(size=count)
    absolute = SUN_MAGNITUDE - 2.5 * luminosity - CORRECTION
    faintness = FAINTEST - PER_DEX * np.log10(snr / 6)
    stars["r"] = faintness + 0.35 * rng.normal(size=count)  # plates differ
    usual = np.exp(DUST_SPREAD * rng.normal(size=count))
    distance = 10 ** (0.2 * (stars["r"] - absolute) - 2)  # kpc
    for _ in range(4):
        stars["ebv"] = reddening(distance, sine, usual)
        dimming = float(extinction(np.array(6165.0))) * stars["ebv"]
        distance = 10 ** (0.2 * (stars["r"] - dimming - absolute) - 2)
    height = distance * sine
    typical = YOUNG + OLDER * (1 - np.exp(-PER_KPC / OLDER * height))
    stars["age"] = _ages(typical, rng)
    metals = 0.02 - 0.3 * np.minimum(height, 2) + 0.18 * rng.normal(size=count)
    stars["feh"] = np.clip(metals, -1.0, 0.4)
    stars["mass"] = mass_of(stars["age"], stars["feh"])
    ridge = 4607 - 382.5 * stars["feh"] + 190 + 60 * (stars["mass"] - 1.3)
    stars["teff"] = ridge + 50 * rng.normal(size=count)
    stars["logg"] = (
        SUN_LOGG
        + np.log10(stars["mass"])
        + 4 * np.log10(stars["teff"] / SUN_TEFF)
        - luminosity
    )
    usual_cn = (np.log10(stars["age"] * 1e9) - CN_ZERO) / CN_SLOPE
    stars["c_n"] = usual_cn + CN_SPREAD * rng.normal(size=count)
    for band, colour in colours(stars, emulator or Emulator.load()).items():
        stars[band] = stars["r"] + colour
    return stars


def _ages(typical: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw ages about typical ones, within `AGES`, Gyr."""
    from scipy.special import ndtr, ndtri

    edges = (np.log10(np.array(AGES))[:, None] - np.log10(typical)) / SPREAD
    low, high = ndtr(edges)
    spread = ndtri(low + (high - low) * rng.random(typical.size))
    return typical * 10 ** (SPREAD * spread)


def colours(stars: np.ndarray, emulator: Emulator) -> dict[str, np.ndarray]:
    """Magnitudes g, r, i less r, from the emulator's spectra behind dust.

    AB system, photons counted (Fukugita et al. 1996, eq. 7).
    """
    labels = np.stack([stars[name] for name in ("teff", "logg", "feh")], axis=1)
    wavelength = emulator.wavelength
    dust = extinction(wavelength) * stars["ebv"][:, None]
    flux = emulator.spectrum(labels) * 10 ** (-0.4 * dust)
    magnitudes = {}
    for band, (low, high) in FILTERS.items():
        rise = 1 / (1 + np.exp((low - wavelength) / EDGE))
        through = rise / (1 + np.exp((wavelength - high) / EDGE))
        # pixels are equally wide in log wavelength, hence one factor of it more
        photons = (flux * through * wavelength**2).sum(axis=1)
        magnitudes[band] = -2.5 * np.log10(photons / through.sum())
    return {band: value - magnitudes["r"] for band, value in magnitudes.items()}


# ------------------------------------------------------------------ carbon and nitrogen


def dredged(c_n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[C/Fe] and [N/Fe] of a [C/N], if carbon and nitrogen together are the Sun's."""
    ratio = SUN_CARBON * 10 ** np.asarray(c_n, dtype=float)  # C over N by number
    total = 1 + SUN_CARBON  # in units of the Sun's nitrogen
    nitrogen = total / (1 + ratio)
    return np.log10((total - nitrogen) / SUN_CARBON), np.log10(nitrogen)


@cache
def _response() -> dict[str, np.ndarray]:
    data = files("stellarcli").joinpath("data", "carbon.npz").read_bytes()
    with np.load(io.BytesIO(data), allow_pickle=False) as stored:
        return {
            name: stored[name].astype(int if name == "pixel" else np.float32)
            for name in stored.files
        }


def bands(stars: np.ndarray, pixels: int) -> np.ndarray:
    """Flux over the emulator's, in CH and CN bands.

    Parameters
    ----------
    stars : ndarray, shape (star,)
        Of `draw`.
    pixels : int
        Of the emulator.

    Returns
    -------
    ndarray of float32, shape (star, pixel)
    """
    stored = _response()
    change = np.zeros((len(stars), stored["pixel"].size), dtype=np.float32)
    own, usual = dredged(stars["c_n"]), dredged(np.array(CN_USUAL))
    places = [
        np.clip((stars[name] - nodes[0]) / (nodes[1] - nodes[0]), -0.5, 1.5)
        for name, nodes in (("teff", stored["teff"]), ("feh", stored["feh"]))
    ]
    for name, value, zero in zip(("carbon", "nitrogen"), own, usual, strict=True):
        grid = stored[name]  # (teff, feh, pixel)
        for i, warm in enumerate((1 - places[0], places[0])):
            for j, rich in enumerate((1 - places[1], places[1])):
                weight = (warm * rich * (value - zero)).astype(np.float32)
                change += weight[:, None] * grid[i, j]
    factor = np.ones((len(stars), pixels), dtype=np.float32)
    factor[:, stored["pixel"]] = np.exp(change)
    return factor
