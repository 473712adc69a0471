"""APOGEE in the computer: dwarfs in the H band, how they are observed, their files.

Spectra are those of a compact emulator that ``tests/benchmarks/fit_apogee.py`` fits to
the spectral model of El-Badry et al. 2018 (MNRAS 473, 5043), which is made in the
manner of The Payne (Ting et al. 2019, ApJ 879, 69). It knows dwarfs of 4200 to 7000 K.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import combinations_with_replacement, pairwise
from pathlib import Path

import numpy as np

from stellarcli.errors import UsageError, unknown
from stellarcli.spectrum import SPEED_OF_LIGHT
from stellarcli.surveys.cards import card, decimal, header_block, padded, remark
from stellarcli.surveys.observing import (
    MAX_VELOCITY,
    VELOCITY_SCATTER,
    check_snr,
    lost_runs,
    photon_ivar,
    rough,
)

LABELS = ("teff", "logg", "feh", "alpha_fe", "vmacro")  # order of the emulator's
SNR_RANGE = (20.0, 400.0)  # per pixel, evenly in its logarithm
VELOCITY_ERROR = 0.3  # km/s
LOST = 12  # runs of bad pixels, at most
# pixels of an apStar file, and the first one's log10 Å and step
PIXELS, COEFF0, COEFF1 = 8575, 4.179, 6e-6


def polynomial(x: np.ndarray, degree: int) -> np.ndarray:
    """All products of at most `degree` columns, (star, term); the first is 1.

    Parameters
    ----------
    x : ndarray, shape (star, column)
    degree : int
    """
    terms = [np.ones(len(x))]
    for order in range(1, degree + 1):
        for chosen in combinations_with_replacement(range(x.shape[1]), order):
            terms.append(x[:, chosen].prod(axis=1))
    return np.stack(terms, axis=1)


@dataclass(frozen=True, eq=False)
class ApogeeEmulator:
    """Labels to normalised H-band spectra of dwarfs.

    Fitted by ``tests/benchmarks/fit_apogee.py`` to the spectral model of El-Badry et
    al. 2018 (MNRAS 473, 5043), which is for Teff 4200–7000 K and log g 4–5.

    Attributes
    ----------
    wavelength : ndarray, shape (pixel,)
        Vacuum Å; log-spaced within each of three detectors.
    limits : ndarray, shape (5, 2)
        Of Teff [K], log g, [Fe/H], [α/Fe] [dex], macroturbulence [km/s].
    """

    wavelength: np.ndarray
    limits: np.ndarray
    mean: np.ndarray
    basis: np.ndarray
    coefficients: np.ndarray
    degree: int

    @classmethod
    def load(cls, path: Path | str | None = None) -> ApogeeEmulator:
        """Read the shipped one, or another file of the same form.

        Raises
        ------
        UsageError
            If the file is of another form.
        """
        return _shipped_apogee() if path is None else _read_apogee(path)

    def spectrum(self, labels: np.ndarray) -> np.ndarray:
        """Normalised flux at rest, float32 (star, pixel); labels (star, 5)."""
        low, high = self.limits.T
        if not ((labels >= low) & (labels <= high)).all():
            raise UsageError(
                "labels outside the APOGEE emulator's limits: teff "
                f"{low[0]:.0f}:{high[0]:.0f}, logg {low[1]:.1f}:{high[1]:.1f}, feh "
                f"{low[2]:.2f}:{high[2]:.2f}."
            )
        terms = polynomial(2 * (labels - low) / (high - low) - 1, self.degree)
        return self.mean + (terms @ self.coefficients).astype(np.float32) @ self.basis

    @property
    def segments(self) -> tuple[tuple[int, int], ...]:
        """Pixels of the three detectors."""
        edges = np.flatnonzero(np.diff(np.log(self.wavelength)) > 1e-4) + 1
        bounds = [0, *edges.tolist(), self.wavelength.size]
        return tuple(pairwise(bounds))


def _read_apogee(source: object) -> ApogeeEmulator:
    with np.load(source, allow_pickle=False) as stored:
        if int(stored["format"]) != 1 if "format" in stored.files else True:
            raise UsageError(
                f"'{source}' is no APOGEE emulator of this program; make one with "
                "tests/benchmarks/fit_apogee.py."
            )
        return ApogeeEmulator(
            wavelength=stored["wavelength"],
            limits=stored["limits"],
            mean=stored["mean"].astype(np.float32),
            basis=stored["basis"].astype(np.float32),
            coefficients=stored["coefficients"],
            degree=int(stored["degree"]),
        )


@cache
def _shipped_apogee() -> ApogeeEmulator:
    data = files("stellarcli").joinpath("data", "apogee.npz").read_bytes()
    return _read_apogee(io.BytesIO(data))


# ---------------------------------------------------------------------------- observing


def check_ranges(ranges: Mapping[str, tuple[float, float]] | None) -> dict:
    """Complete ranges of teff, logg and feh by the emulator's limits and check them.

    Raises
    ------
    UsageError
        If a label is unknown, or a range reversed or outside the limits.
    """
    limits = dict(
        zip(LABELS[:3], ApogeeEmulator.load().limits[:3].tolist(), strict=True)
    )
    complete = {name: tuple(own) for name, own in limits.items()}
    for name, (low, high) in (ranges or {}).items():
        if name not in limits:
            raise unknown("label", name, limits)
        least, most = limits[name]
        # a twentieth of a dex or 20 K beyond the limits is a rounded number
        if not least - 0.05 <= low <= high <= most + 20:
            raise UsageError(
                f"range {name}={low:g}:{high:g} can't be simulated for apogee; its "
                f"emulator covers {name}={least:.4g}:{most:.4g}, lowest value first."
            )
        complete[name] = (max(low, least), min(high, most))
    return complete


def draw(
    n: int,
    rng: np.random.Generator,
    ranges: Mapping[str, tuple[float, float]] | None = None,
    emulator: ApogeeEmulator | None = None,
) -> np.ndarray:
    """Draw dwarfs, evenly within the ranges; (star, 5) in the order of `LABELS`."""
    emulator = emulator or ApogeeEmulator.load()
    complete = list(check_ranges(ranges).values())
    limits = np.concatenate([complete, emulator.limits[3:]])
    labels = rng.uniform(*limits.T, (n, len(limits)))
    # [α/Fe] falls with [Fe/H] in the Galaxy, with a wide scatter
    trend = np.interp(labels[:, 2], [-0.8, 0.3], [0.3, 0.0]) + rng.normal(0, 0.1, n)
    labels[:, 3] = np.clip(trend, *emulator.limits[3])
    return labels


@dataclass(frozen=True, eq=False)
class Observation:
    """Stars as APOGEE would combine their visits.

    Attributes
    ----------
    wavelength : ndarray, shape (pixel,)
        At the star's rest, vacuum Å.
    flux, ivar : ndarray of float32, shape (star, pixel)
    labels : ndarray, shape (star, 5)
        Order `LABELS`.
    snr, rv, rv_measured : ndarray, shape (star,)
        Per pixel; km/s. The velocity's error moves the lines.
    """

    wavelength: np.ndarray
    flux: np.ndarray
    ivar: np.ndarray
    labels: np.ndarray
    snr: np.ndarray
    rv: np.ndarray
    rv_measured: np.ndarray


def observe(
    labels: np.ndarray,
    rng: np.random.Generator,
    *,
    snr: float | tuple[float, float] | None = None,
    emulator: ApogeeEmulator | None = None,
) -> Observation:
    """Observe stars with APOGEE, in the computer.

    Parameters
    ----------
    labels : ndarray, shape (star, 5)
        Order `LABELS`.
    rng : numpy.random.Generator
    snr : float or (float, float), optional
        Per pixel: one value, or a range that is drawn from evenly in its logarithm.
    emulator : ApogeeEmulator, optional
    """
    emulator, count = emulator or ApogeeEmulator.load(), len(labels)
    rv = np.clip(rng.normal(0, VELOCITY_SCATTER, count), -MAX_VELOCITY, MAX_VELOCITY)
    measured = rv + rng.normal(0, VELOCITY_ERROR, count)
    rest = emulator.spectrum(labels)
    position = np.log(emulator.wavelength)
    flux = np.empty_like(rest)
    for star, own in enumerate(rest):
        off = (rv[star] - measured[star]) / SPEED_OF_LIGHT
        flux[star] = np.interp(position - off, position, own)
    for start, stop in emulator.segments:
        flux[:, start:stop] *= rough(count, stop - start, rng)
    low, high = check_snr(snr) or SNR_RANGE
    wanted = low * (high / low) ** rng.random(count)
    ivar = photon_ivar(flux, wanted)
    flux += rng.standard_normal(flux.shape, dtype=np.float32) / np.sqrt(ivar)
    ivar[lost_runs(flux.shape, LOST, rng)] = 0
    return Observation(emulator.wavelength, flux, ivar, labels, wanted, rv, measured)


def _on_file_grid(stars: Observation, row: int) -> tuple[np.ndarray, np.ndarray]:
    """Flux and error of one star on the pixels of an apStar file, float32.

    Gaps have flux 0; they and bad pixels have the error that the pipeline writes there.
    """
    pixel = np.rint((np.log10(stars.wavelength) - COEFF0) / COEFF1).astype(int)
    flux = np.zeros(PIXELS, dtype=np.float32)
    error = np.full(PIXELS, 1e10, dtype=np.float32)
    good = stars.ivar[row] > 0
    flux[pixel] = stars.flux[row]
    error[pixel[good]] = 1 / np.sqrt(stars.ivar[row, good])
    return flux, error


def apstar(truth: dict, stars: Observation, row: int) -> bytes:
    """One apStar file: header, flux, error, mask."""
    primary = [
        card("SIMPLE", True),
        card("BITPIX", 8),
        card("NAXIS", 0),
        card("EXTEND", True),
        remark("SIMULATED by stellar fetch simulated; not an observation"),
        card("OBJID", truth["objid"], "simulated"),
        decimal("RA", truth["ra"], "right ascension, deg, J2000", 6),
        decimal("DEC", truth["dec"], "declination, deg, J2000", 6),
        decimal("SNR", truth["snr"], "final median S/N per pixel", 2),
        decimal("VHELIO", stars.rv_measured[row], "mean velocity, km/s", 4),
    ]
    flux, error = _on_file_grid(stars, row)
    images = (flux.astype(">f4"), error.astype(">f4"), np.zeros(flux.size, ">i2"))
    content = header_block(primary)
    for image in images:
        cards = [
            card("XTENSION", "IMAGE"),
            card("BITPIX", -32 if image.dtype.kind == "f" else 16),
            card("NAXIS", 1),
            card("NAXIS1", image.size),
            card("PCOUNT", 0),
            card("GCOUNT", 1),
            card("CRVAL1", COEFF0, "log10 of the first pixel, vacuum A"),
            card("CDELT1", COEFF1, "dex per pixel"),
            card("CRPIX1", 1),
            card("CTYPE1", "LOG-LINEAR"),
        ]
        content += header_block(cards) + padded(image.tobytes())
    return content
