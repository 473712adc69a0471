"""Spectrographs in the computer: stars drawn, observed and handed over as arrays.

What `streams` trains networks on: no files are written. `INSTRUMENTS` is the table of
contents. Each draws stars of its own and returns them as a reader would have read them,
noise, bad pixels and the error of the measured velocity included.

lamost-lrs   LAMOST's low resolution, as `observing` simulates it
lamost-mrs   its medium resolution, as `medium` does. Synthesis takes a while: a pool of
             stars is made once and observed again and again
apogee       dwarfs in the H band, as `hband` does
miles        the MILES library's range, resolution and sampling
optical      any stretch of the optical at resolutions of 500 to 1800: what no survey
             here has, so that a network learns not to count on one
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from stellarcli.preprocess import Batch
from stellarcli.preprocess.wavelength import air_to_vacuum
from stellarcli.spectrum import SPEED_OF_LIGHT, PixelMask
from stellarcli.surveys import atmospheres, hband, medium, synthesis
from stellarcli.surveys.emulator import LABEL_NAMES, Emulator, draw_labels
from stellarcli.surveys.hband import ApogeeEmulator
from stellarcli.surveys.observing import lost_runs, photon_ivar, rough, simulate

POOL = 1000  # stars of medium resolution that are synthesised for a stream
RANGES = {"teff": (3600.0, 13000.0), "logg": (-0.25, 5.2), "feh": (-2.5, 0.9)}
POOR = 0.3  # of the stars are drawn with [Fe/H] below POOR_BELOW, besides the others
POOR_BELOW = -1.0
VELOCITY = 60.0  # km/s, scatter of stars
MILES_AIR = (3540.5, 0.9, 4300)  # Å: first pixel, step, pixels


@dataclass(frozen=True, eq=False)
class Sky:
    """What an instrument looks at, and how.

    Attributes
    ----------
    emulator : Emulator
        Of the optical.
    apogee : ApogeeEmulator
    pool : int
        Stars synthesised at medium resolution.
    seed : int
    """

    emulator: Emulator = field(default_factory=Emulator.load)
    apogee: ApogeeEmulator = field(default_factory=ApogeeEmulator.load)
    pool: int = POOL
    seed: int = 1


# ------------------------------------------------------------------------- instruments


class Instrument:
    """A spectrograph that stars are observed with.

    Attributes
    ----------
    names : tuple of str
        Labels that its stars have.
    pixels : int
        Of the longest spectrum.
    """

    names: tuple[str, ...] = LABEL_NAMES
    pixels: int

    def __init__(self, sky: Sky):
        self.sky = sky

    def draw(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Draw stars: labels in the order of `names`, (star, label).

        More metal-poor ones than there are: a network that has met few of them takes
        any star for a metal-rich one where its spectrum leaves room for doubt.
        """
        poor = {**RANGES, "feh": (RANGES["feh"][0], POOR_BELOW)}
        fewer = rng.binomial(count, POOR)
        drawn = [draw_labels(fewer, rng, poor), draw_labels(count - fewer, rng, RANGES)]
        labels = np.concatenate(drawn)
        labels = np.stack([labels[name] for name in LABEL_NAMES], axis=1)
        return rng.permutation(labels)

    def observe(self, labels: np.ndarray, rng: np.random.Generator) -> Batch:
        """Observe stars as a file would hold them: velocities are not removed."""
        raise NotImplementedError


class LowResolution(Instrument):
    """LAMOST's low resolution."""

    @property
    def pixels(self) -> int:
        """Pixels of a spectrum."""
        return self.sky.emulator.wavelength.size - 2 * self.sky.emulator.margin

    def observe(self, labels: np.ndarray, rng: np.random.Generator) -> Batch:
        """Observe stars; see `Instrument.observe`."""
        stars = simulate(labels, rng, emulator=self.sky.emulator)
        return batch_of(stars.wavelength, stars.flux, stars.ivar, stars.rv_measured)


class MediumResolution(Instrument):
    """LAMOST's medium resolution; of a pool of stars."""

    names = atmospheres.LABELS
    pixels = sum(pixels for _, pixels, _ in medium.ARMS.values())

    def __init__(self, sky: Sky):
        super().__init__(sky)
        self.pool = self.rest = np.zeros((0, 0))

    def _fill(self) -> None:
        rng = np.random.default_rng([self.sky.seed, 77])
        self.pool = medium.draw(self.sky.pool, rng)
        made = [
            synthesis.normalised(self.pool[n : n + 1]).astype(np.float16)
            for n in range(len(self.pool))
        ]
        self.rest = np.concatenate(made)

    def draw(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Draw stars from the pool; see `Instrument.draw`."""
        if not len(self.pool):
            self._fill()
        return self.pool[rng.integers(0, len(self.pool), count)]

    def observe(self, labels: np.ndarray, rng: np.random.Generator) -> Batch:
        """Observe stars of the pool; see `Instrument.observe`."""
        place = {tuple(star): n for n, star in enumerate(self.pool.tolist())}
        index = [place[tuple(star)] for star in labels.tolist()]
        rest = self.rest[index].astype(np.float32)
        stars = medium.observe(labels, rng, rest=rest)
        arms = list(medium.ARMS)
        wavelength = np.concatenate([stars.wavelength[arm] for arm in arms])
        flux, ivar = (
            np.concatenate([arrays[arm] for arm in arms], axis=1)
            for arrays in (stars.flux, stars.ivar)
        )
        first = stars.wavelength[arms[0]].size
        segments = ((0, first), (first, wavelength.size))
        return batch_of(wavelength, flux, ivar, stars.rv_measured, segments)


class Apogee(Instrument):
    """APOGEE's three detectors in the H band."""

    names = hband.LABELS

    @property
    def pixels(self) -> int:
        """Pixels of a spectrum."""
        return self.sky.apogee.wavelength.size

    def draw(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Draw dwarfs with [α/Fe] and macroturbulence; see `Instrument.draw`."""
        return hband.draw(count, rng, emulator=self.sky.apogee)

    def observe(self, labels: np.ndarray, rng: np.random.Generator) -> Batch:
        """Observe stars; see `Instrument.observe`."""
        emulator = self.sky.apogee
        stars = hband.observe(labels, rng, emulator=emulator)
        scale = 1 + stars.rv_measured[:, None] / SPEED_OF_LIGHT
        return batch_of(
            stars.wavelength * scale,
            stars.flux,
            stars.ivar,
            stars.rv_measured,
            emulator.segments,
        )


class Miles(Instrument):
    """The MILES library's spectrograph: 3540–7410 Å in steps of 0.9 Å of air."""

    pixels = MILES_AIR[2]

    def observe(self, labels: np.ndarray, rng: np.random.Generator) -> Batch:
        """Observe stars with S/N 40 to 400; see `Instrument.observe`."""
        emulator, count = self.sky.emulator, len(labels)
        start, step, pixels = MILES_AIR
        wavelength = air_to_vacuum(start + step * np.arange(pixels))
        rest = emulator.spectrum(labels)
        rv = rng.normal(0, 8.0, count)  # the library is at rest, nearly
        flux = _on(wavelength, emulator.wavelength, rest, rv)
        flux *= rough(count, pixels, rng)
        ivar = photon_ivar(flux, 40 * 10 ** rng.random(count))
        ivar[:, wavelength < emulator.wavelength[0] + 5] = 0
        ivar[:, wavelength > emulator.arrays["red_start"]] = 0
        return batch_of(wavelength, flux, ivar, np.zeros(count), None, rng)


class Optical(Instrument):
    """Stretches of the optical, of many resolutions."""

    pixels = 3000
    resolutions = (500.0, 1800.0)
    shortest = 0.15  # in ln λ: 750 Å at 5000 Å

    def observe(self, labels: np.ndarray, rng: np.random.Generator) -> Batch:
        """Observe stars with S/N 20 to 300; see `Instrument.observe`.

        All of one call share range, resolution and sampling.
        """
        emulator, count = self.sky.emulator, len(labels)
        lowest, highest = np.log(emulator.wavelength[[20, -20]])
        length = rng.uniform(self.shortest, highest - lowest)
        start = rng.uniform(lowest, highest - length)
        low, high = self.resolutions
        resolution = low * (high / low) ** rng.random()
        step = 1 / (resolution * rng.uniform(1.8, 3.5))
        pixels = min(int(length / step), self.pixels)
        wavelength = np.exp(start + step * np.arange(pixels))
        rest = emulator.spectrum(labels)
        fine = float(emulator.arrays["coeff1"]) * np.log(10)
        # what the resolution lacks to the emulator's 1800, in its pixels
        sigma = np.sqrt(resolution**-2 - 1800.0**-2) / 2.3548 / fine
        if sigma > 0.3:
            from scipy.ndimage import gaussian_filter1d

            rest = gaussian_filter1d(rest, sigma, axis=1)
        rv = rng.normal(0, VELOCITY, count)
        flux = _on(wavelength, emulator.wavelength, rest, rv)
        flux *= rough(count, pixels, rng)
        ivar = photon_ivar(flux, 20 * 15 ** rng.random(count))
        known = emulator.constrained(labels)
        near = np.searchsorted(emulator.wavelength, wavelength)
        ivar *= known[:, np.minimum(near, known.shape[1] - 1)]
        ivar[lost_runs(flux.shape, 3, rng)] = 0
        measured = rv + rng.normal(0, 5, count)
        return batch_of(wavelength, flux, ivar, measured, None, rng)


INSTRUMENTS: dict[str, Callable[[Sky], Instrument]] = {
    "lamost-lrs": LowResolution,
    "lamost-mrs": MediumResolution,
    "apogee": Apogee,
    "miles": Miles,
    "optical": Optical,
}


# ------------------------------------------------------------------------------- parts


def batch_of(
    wavelength: np.ndarray,
    flux: np.ndarray,
    ivar: np.ndarray,
    rv: np.ndarray,
    segments: tuple[tuple[int, int], ...] | None = None,
    rng: np.random.Generator | None = None,
) -> Batch:
    """Return arrays as a `Batch` whose spectra have wavelengths of their own.

    Parameters
    ----------
    wavelength : ndarray, shape (pixel,) or (star, pixel)
        Vacuum Å, heliocentric.
    flux, ivar : ndarray of float32, shape (star, pixel)
    rv : ndarray, shape (star,)
        As measured, km/s.
    segments : tuple of (start, stop), optional
        One by default.
    rng : numpy.random.Generator, optional
        To add the noise that `ivar` stands for.
    """
    if rng is not None:
        noise = rng.standard_normal(flux.shape, dtype=np.float32)
        sigma = np.divide(1, np.sqrt(ivar), out=np.zeros_like(ivar), where=ivar > 0)
        flux = flux + noise * sigma
    bad = ~(ivar > 0)
    return Batch(
        wavelength=np.broadcast_to(wavelength, flux.shape).astype(np.float64),
        flux=np.asarray(flux, dtype=np.float32),
        ivar=np.where(bad, 0, ivar).astype(np.float32),
        mask=(bad * PixelMask.NO_IVAR).astype(np.uint8),
        redshift=rv / SPEED_OF_LIGHT,
        segments=tuple([segments or ((0, flux.shape[1]),)] * len(flux)),
    )


def _on(
    wavelength: np.ndarray, grid: np.ndarray, flux: np.ndarray, rv: np.ndarray
) -> np.ndarray:
    """Interpolate spectra at rest, of velocity `rv` [km/s], to other wavelengths."""
    seen = [
        np.interp(np.log(wavelength) - v / SPEED_OF_LIGHT, np.log(grid), own)
        for own, v in zip(flux, rv, strict=True)
    ]
    return np.array(seen, dtype=np.float32)
