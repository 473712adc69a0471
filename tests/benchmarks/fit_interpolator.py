"""Fit the MILES interpolator's polynomials again, without the stars of a test.

    python tests/benchmarks/fit_interpolator.py ../shared/data -o miles_tgm.fits

The published interpolator (Prugniel et al. 2011, Sharma et al. 2016) was fitted to all
MILES stars, so that no MILES star is new to an emulator made from it. This one is of
the same form and leaves a quarter of the stars out, by the hash of the identifier
(`held_out`, the split of spectrafm_adapt.yaml): what is trained on its spectra may be
tested on them. Robust ridge regression in each regime; the stars next to a regime help
at its borders. Prints the residuals of both kinds of stars.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import fitsio
import numpy as np
from fit_emulator import Interpolator, _interpolator_terms, log_planck, to_vacuum

from stellarcli.dataset import split_by_hash

OFFSET, SIZE = 5, 4306  # pixels before the library's first one, and of the interpolator
REGIMES = {"warm": (4100, 8200), "hot": (6500, 40000), "cold": (0, 4700)}  # K
RIDGE = 0.3  # of a star's weight


def identifiers(stars: np.ndarray) -> np.ndarray:
    """Names of the stars' files, miles-0001 and so on."""
    return np.char.add("miles-", np.char.strip(stars["miles_id"].astype(str)))


def held_out(names: np.ndarray) -> np.ndarray:
    """Say which MILES stars, of `identifiers`, are kept for tests."""
    return split_by_hash(names, test=0.25, validation=0.0, seed=1) == "test"


def read(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Names, labels (star, 3), vacuum wavelengths, flux about 1 at 5500 Å."""
    stars = fitsio.read(path)
    labels = np.stack([stars[name] for name in ("teff", "logg", "feh")], 1).astype(
        float
    )
    good = np.isfinite(labels).all(axis=1) & np.isfinite(stars["flux"]).all(axis=1)
    wavelength = to_vacuum(3540.5 + 0.9 * np.arange(stars["flux"].shape[1]))
    near = abs(wavelength - 5500) < 50
    flux = stars["flux"].astype(float)
    flux /= flux[:, near].mean(axis=1)[:, None]
    return identifiers(stars)[good], labels[good], wavelength, flux[good]


def fit(terms: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Robust ridge regression of every pixel, (term, pixel)."""
    scale = np.sqrt(np.square(terms).mean(axis=0))
    scaled = terms / scale
    penalty = RIDGE * np.eye(scaled.shape[1])
    penalty[0, 0] = 0
    weight = np.ones(len(terms))
    for _ in range(6):
        normal = scaled.T @ (scaled * weight[:, None]) + penalty
        coefficients = np.linalg.solve(normal, (scaled * weight[:, None]).T @ values)
        off = np.sqrt(np.square(values - scaled @ coefficients).mean(axis=1))
        weight = 1 / (1 + np.square(off / (2 * np.median(off))))
    return coefficients / scale[:, None]


def main() -> None:
    """Fit, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    names, labels, wavelength, flux = read(
        arguments.data / "miles" / "miles_train.fits"
    )
    test = held_out(names)
    values = flux / np.exp(log_planck(wavelength, labels[:, 0], 5500.0))
    t, g, z = np.log10(labels[:, 0]) - 3.7617, labels[:, 1] - 4.44, labels[:, 2]
    made = {}
    for regime, (low, high) in REGIMES.items():
        x = (t + 0.1) / 0.2 if regime == "cold" else t / 0.2
        terms = _interpolator_terms(x, g, z)[:, : 19 if regime == "hot" else 26]
        near = (labels[:, 0] > low) & (labels[:, 0] < high) & ~test
        coefficients = fit(terms[near], values[near])
        ends = (OFFSET, SIZE - OFFSET - coefficients.shape[1])
        made[regime] = np.pad(coefficients, ((0, 0), ends), mode="edge")
        print(f"{regime}: {near.sum()} stars")
    grid = to_vacuum(3536.0 + 0.9 * np.arange(SIZE))
    found = Interpolator(grid, made["warm"], made["hot"], made["cold"])(labels)
    found = found[:, OFFSET : OFFSET + flux.shape[1]]
    inside = (wavelength > 3900) & (wavelength < 7300)
    rms = np.sqrt(np.square(found / flux - 1)[:, inside].mean(axis=1))
    for name, rows in (("fitted", ~test), ("left out", test)):
        for low, high in ((0, 4550), (4550, 7000), (7000, 99999)):
            some = rows & (labels[:, 0] >= low) & (labels[:, 0] < high)
            print(f"{name} {low}-{high} K: {some.sum()}, {np.median(rms[some]):.2%}")
    arguments.output.unlink(missing_ok=True)
    for regime in ("warm", "hot", "cold"):
        fitsio.write(arguments.output, made[regime])


if __name__ == "__main__":
    main()
