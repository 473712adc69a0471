"""Select the lines that matter in LAMOST MRS's windows: stellarcli/data/lines.npz.

    python tests/benchmarks/select_lines.py ../shared/data/lines

A line is kept if its opacity at its centre exceeds `ATOM` (or `MOLECULE`) of the
continuum's in the line-forming layers of a cool giant, a K dwarf, the Sun or an F
dwarf, each with twice or three times the Sun's metals. Wavelengths become vacuum.
"""

import sys
from pathlib import Path

import fitsio
import numpy as np

from stellarcli.preprocess.wavelength import air_to_vacuum
from stellarcli.surveys import synthesis
from stellarcli.surveys.synthesis import KINDS, WINDOWS, Lines

ATOM, MOLECULE = 0.03, 0.02
MGH = -0.4  # dex; epsilon Eridani's bands are that much weaker than the list's
STARS = [(3900.0, 1.0, 0.4), (4300.0, 4.6, 0.5), (5777.0, 4.4, 0.4), (6700.0, 4.2, 0.4)]
LAYER = 3  # log τ = -1.1
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
    # CH has no band in the red window: what the list has there, with gf up to 22, is
    # extrapolated and in no star
    ch = np.array([name == "CH" for name in names]) & (vacuum > WINDOWS[1][0])
    rows = np.stack([vacuum, [KINDS.index(n) if n in KINDS else -1 for n in names]])
    rows = np.vstack([rows, columns[1:]]).T
    first = np.zeros(vacuum.size, dtype=bool)  # parts of the list are there twice
    first[np.unique(rows, axis=0, return_index=True)[1]] = True
    keep = inside & known & first & ~ch
    wavelength, kind, energy, log_gf = rows[keep].T
    log_gf = log_gf + MGH * (kind == KINDS.index("MgH"))
    return Lines(wavelength, kind.astype(int), energy, log_gf)


def main() -> None:
    lines = read(Path(sys.argv[1]))
    labels = np.array([[*star, *[star[2]] * len(synthesis.ELEMENTS)] for star in STARS])
    stars = synthesis.atmosphere(labels)
    levels = synthesis.populations(stars)
    opacity = np.max(
        [
            synthesis.strengths(lines, stars, levels, n, LAYER)[0]
            for n in range(len(STARS))
        ],
        axis=0,
    )
    molecule = lines.kind >= 2 * len(synthesis.NAMES)
    keep = np.flatnonzero(opacity > np.where(molecule, MOLECULE, ATOM))
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
