r"""Select the lines that matter in LAMOST MRS's windows: stellarcli/data/lines.npz.

    python tests/benchmarks/select_lines.py ../shared/data/lines \
        ../shared/data/benchmark/ATLAS.Sun_47000.fits

The list's gf are good to a factor of two or worse, above all where they were computed:
as is the custom, `calibrated` corrects those of atomic lines by the Sun's spectrum. A
line is kept if its opacity at its centre exceeds `ATOM` (or `MOLECULE`) of the
continuum's in the line-forming layers of a cool giant, a K dwarf, the Sun or an F
dwarf, each with twice or three times the Sun's metals. Wavelengths become vacuum.
"""

import sys
from dataclasses import replace
from pathlib import Path

import fitsio
import numpy as np

from stellarcli.preprocess.wavelength import air_to_vacuum
from stellarcli.surveys import atmospheres, synthesis
from stellarcli.surveys.atmospheres import KINDS
from stellarcli.surveys.synthesis import WINDOWS, Lines

ATOM, MOLECULE = 0.03, 0.02
MGH = -0.4  # dex; epsilon Eridani's bands are that much weaker than the list's
G_BAND = 4500.0  # Å
STARS = [(3900.0, 1.0, 0.4), (4300.0, 4.6, 0.5), (5777.0, 4.4, 0.4), (6700.0, 4.2, 0.4)]
LAYER = 3  # log τ = -1.1

# Calibration by the Sun: Teff, log g, [Fe/H]; resolution; km/s
SUN, RESOLUTION, ROTATION, MACRO = (5771.0, 4.44, 0.0), 47000, 2.0, 1.6
BIN, UPPER = 15.0, 95  # Å, percentile: what counts as the continuum
CORE = 0.06  # Å around a line's centre that are compared
ROUNDS, GAIN, STEP = 6, 1.3, 0.4  # exponent of the ratio of depths; dex per round
WEAKEST, DEEPEST = 0.5, 0.85  # opacity and depth of lines that can be judged
LARGEST = (-2.0, 0.3)  # dex: what a list lacks isn't put into its neighbours
# Å: bands of the Earth's O₂, and the wings of Hα
SPARED = ((6270.0, 6326.0), (6865.0, 6900.0), (6549.6, 6579.6))
OUTPUT = Path(synthesis.__file__).parents[1] / "data" / "lines.npz"


def read(folder: Path) -> Lines:
    """All lines of known species in the windows."""
    atoms = fitsio.read(folder / "atomic.fits")
    molecules = fitsio.read(folder / "molecular.fits")
    names = [row["element"].strip() + "+" * int(row["ion"]) for row in atoms]
    names += [row["molecule"].strip() for row in molecules]
    columns = [
        np.concatenate([atoms[name], molecules[name]]).astype(float)
        for name in ("wavelength", "ep", "loggf")
    ]
    vacuum = air_to_vacuum(columns[0])
    inside = np.zeros(vacuum.size, dtype=bool)
    for low, high in WINDOWS:
        inside |= (vacuum > low) & (vacuum < high)
    known = np.array([name in KINDS and not name.startswith("H") for name in names])
    # beyond the G band what the list has of CH, with gf up to 22, is extrapolated, and
    # neither in the Sun nor in any of the benchmark stars
    ch = np.array([name == "CH" for name in names]) & (vacuum > G_BAND)
    rows = np.stack([vacuum, [KINDS.index(n) if n in KINDS else -1 for n in names]])
    rows = np.vstack([rows, columns[1:]]).T
    first = np.zeros(vacuum.size, dtype=bool)  # parts of the list are there twice
    first[np.unique(rows, axis=0, return_index=True)[1]] = True
    keep = inside & known & first & ~ch
    wavelength, kind, energy, log_gf = rows[keep].T
    log_gf = log_gf + MGH * (kind == KINDS.index("MgH"))
    return Lines(wavelength, kind.astype(int), energy, log_gf)


def relative(wavelength: np.ndarray, flux: np.ndarray) -> np.ndarray:
    """Flux over its upper envelope."""
    edges = np.linspace(
        wavelength[0], wavelength[-1], int(np.ptp(wavelength) / BIN) + 1
    )
    number = np.digitize(wavelength, edges[1:-1])
    upper = [np.percentile(flux[number == n], UPPER) for n in range(len(edges) - 1)]
    return flux / np.interp(wavelength, (edges[1:] + edges[:-1]) / 2, upper)


def calibrated(lines: Lines, path: Path) -> Lines:
    """Give atomic lines the gf with which the Sun has their depths.

    Each round multiplies a line's gf by a power of the ratio of observed and computed
    depth in its centre, so that lines of a blend share its correction. Lines that are
    too weak or too deep to be judged stay.
    """
    observed = fitsio.read(path).astype(float)
    air = 4800 + 0.01 * np.arange(observed.size)
    labels = np.array([[*SUN, *[0.0] * len(atmospheres.ELEMENTS)]])
    stars = atmospheres.atmosphere(labels)
    levels = atmospheres.populations(stars)
    center, _ = synthesis.strengths(lines, stars, levels, 0, LAYER)
    judged = (center > WEAKEST) & (lines.kind < 2 * len(atmospheres.NAMES))
    for low, high in SPARED:
        judged &= (lines.wavelength < low) | (lines.wavelength > high)
    pieces = synthesis.grid()
    width = max(1, round(2 * CORE / 5000 * synthesis.SPEED_OF_LIGHT / synthesis.STEP))
    box = np.ones(width) / width

    def depths(fluxes: list[np.ndarray]) -> np.ndarray:
        """Mean depth around the centre of every line."""
        found = [
            np.interp(
                lines.wavelength,
                grid,
                np.convolve(1 - relative(grid, flux), box, "same"),
            )
            for grid, flux in zip(pieces, fluxes, strict=True)
        ]
        return np.where(lines.arm, found[1], found[0])

    truth = depths([np.interp(grid, air_to_vacuum(air), observed) for grid in pieces])
    log_gf = lines.log_gf
    for _ in range(ROUNDS):
        now = replace(lines, log_gf=log_gf)
        flux = synthesis.broadened(
            synthesis.normalised(labels, now), RESOLUTION, np.array([ROTATION]), MACRO
        )
        computed = depths(np.split(flux[0].astype(float), [len(pieces[0])]))
        ratio = np.clip(truth, 0.004, 1) / np.clip(computed, 0.004, 1)
        change = np.clip(GAIN * np.log10(ratio), -STEP, STEP)
        change[~judged | (computed > DEEPEST)] = 0
        log_gf = lines.log_gf + np.clip(log_gf + change - lines.log_gf, *LARGEST)
    return replace(lines, log_gf=log_gf)


def strong(lines: Lines, labels: np.ndarray) -> np.ndarray:
    """Say which lines matter in one of some stars, labels (star, label)."""
    stars = atmospheres.atmosphere(labels)
    levels = atmospheres.populations(stars)
    opacity = np.max(
        [
            synthesis.strengths(lines, stars, levels, n, LAYER)[0]
            for n in range(len(labels))
        ],
        axis=0,
    )
    molecule = lines.kind >= 2 * len(atmospheres.NAMES)
    return opacity > np.where(molecule, MOLECULE, ATOM)


def main() -> None:
    lines = calibrated(read(Path(sys.argv[1])), Path(sys.argv[2]))
    labels = np.array(
        [[*star, *[star[2]] * len(atmospheres.ELEMENTS)] for star in STARS]
    )
    keep = np.flatnonzero(strong(lines, labels))
    keep = keep[np.argsort(lines.wavelength[keep])]
    np.savez_compressed(
        OUTPUT,
        wavelength=lines.wavelength[keep].round(3),
        kind=lines.kind[keep].astype(np.uint8),
        energy=lines.energy[keep].astype(np.float32),
        log_gf=lines.log_gf[keep].astype(np.float32),
    )
    for number, name in enumerate(KINDS):
        if count := int((lines.kind[keep] == number).sum()):
            print(f"{name:4} {count}")
    print(len(keep), "lines,", OUTPUT.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
