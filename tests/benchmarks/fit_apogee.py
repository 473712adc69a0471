"""Fit the compact APOGEE emulator that ``--survey apogee`` and streams ship with.

    python tests/benchmarks/fit_apogee.py ../shared/data/apogee/emulator.npz \
        -o stellarcli/data/apogee.npz

The source is the spectral model of El-Badry et al. 2018 (MNRAS 473, 5043), a small
network per pixel after The Payne (Ting et al. 2019, ApJ 879, 69), for dwarfs. It is
evaluated for random stars within its limits; principal components of its normalised
spectra, each a cubic polynomial of the labels, are what is shipped. A minute on one
core; prints the errors against the source for other random stars.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from stellarcli.surveys.hband import polynomial

STARS, COMPONENTS, DEGREE = 3000, 24, 3
MACRO = (1.0, 20.0)  # km/s; the source goes on to where few dwarfs are


def source(path: Path):
    """Read the source: its wavelengths, limits, and labels to normalised flux."""
    with np.load(path) as stored:
        arrays = {name: stored[name] for name in stored.files}
    low, high = arrays["x_min"], arrays["x_max"]

    def spectra(labels: np.ndarray) -> np.ndarray:
        """(star, 5) to float32 (star, pixel)."""
        x = ((labels - low) / (high - low) - 0.5).astype(np.float32)
        flux = np.empty((len(x), len(arrays["wavelength"])), dtype=np.float32)
        for star, own in enumerate(x):
            inner = arrays["w_array_0"] @ own + arrays["b_array_0"]  # (pixel, unit)
            hidden = 1 / (1 + np.exp(-inner))
            flux[star] = (arrays["w_array_1"] * hidden).sum(1) + arrays["b_array_1"]
        return flux

    limits = np.stack([low, high], axis=1)
    limits[4] = np.clip(limits[4], *MACRO)
    return arrays["wavelength"], limits, spectra


def main() -> None:
    """Fit, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    wavelength, limits, spectra = source(arguments.source)
    rng = np.random.default_rng(1)
    labels = rng.uniform(*limits.T, (STARS + 300, len(limits)))
    flux = spectra(labels)
    known, other = slice(0, STARS), slice(STARS, None)
    mean = flux[known].mean(axis=0)
    centred = flux[known] - mean
    _, _, vectors = np.linalg.svd(centred[:1200], full_matrices=False)
    basis = vectors[:COMPONENTS]
    scaled = 2 * (labels - limits[:, 0]) / np.ptp(limits, axis=1) - 1
    terms = polynomial(scaled, DEGREE)
    targets = centred @ basis.T
    coefficients = np.linalg.lstsq(terms[known], targets, rcond=None)[0]
    stored = basis.astype(np.float16)
    found = mean + terms[other] @ coefficients @ stored.astype(np.float32)
    error = found - flux[other]
    depth = np.abs(flux[other] - 1)
    print(
        f"rms error {error.std():.5f}, 99 % below {np.quantile(abs(error), 0.99):.4f}; "
        f"rms depth of lines {np.sqrt((depth**2).mean()):.4f}"
    )
    np.savez_compressed(
        arguments.output,
        format=np.int64(1),
        wavelength=wavelength,
        limits=limits,
        mean=mean.astype(np.float16),
        basis=stored,
        coefficients=coefficients.astype(np.float32),
        degree=np.int64(DEGREE),
    )
    print(f"{arguments.output}: {arguments.output.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
