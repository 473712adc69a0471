"""A spectral emulator: labels of stars, drawn, and their spectra at rest.

`Emulator` turns labels into spectra, `draw_labels` draws plausible stars.

The emulator is fitted by ``tests/benchmarks/fit_emulator.py`` to the MILES spectral
interpolator (Prugniel et al. 2011, Sharma et al. 2016) below 7410 Å and to LAMOST DR10
spectra above.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

import numpy as np

from stellarcli.errors import UsageError, unknown

LABEL_NAMES = ("teff", "logg", "feh")
LIMITS = {"teff": (2900.0, 25000.0), "logg": (-0.25, 5.5), "feh": (-2.8, 1.0)}
# What `draw_labels` draws without being asked: the stars that LAMOST labels exist for,
# and the giants and K stars next to them.
DEFAULT_RANGES = {"teff": (3800.0, 13000.0), "logg": (-0.25, 5.2), "feh": (-2.5, 0.9)}

FORMAT_VERSION = 1

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
