"""How CH and CN bands of red-clump stars answer to carbon and nitrogen.

    python tests/benchmarks/carbon_response.py ../shared/data/lines

Makes stellarcli/data/carbon.npz: the change of log flux per dex of [C/Fe] and [N/Fe]
at LAMOST's low resolution, computed by `stellarcli.surveys.synthesis` with all lines of
the linemake lists (Placco et al. 2021) in 4150–4400 and 4900–5380 Å: the G band of CH,
the violet CN band with its head at 4216 Å, C₂ left out. Beyond, the lists have weak CN
lines or none, and the response is taken as 0. Four stars of the red clump, between
which is interpolated.
"""

import sys
from pathlib import Path

import numpy as np

from stellarcli.surveys import atmospheres, synthesis
from stellarcli.surveys.emulator import Emulator

synthesis.WINDOWS = ((4151.5, 4400.0), (4901.5, 5380.0))  # before anything is cached

import select_lines  # noqa: E402

select_lines.WINDOWS = synthesis.WINDOWS
TEFF, FEH, LOGG = (4600.0, 5000.0), (-0.4, 0.2), 2.5
STEP = 0.15  # dex, to both sides
CARBON, NITROGEN = -0.2, 0.25  # [C/Fe] and [N/Fe] of a red-clump star: dredged up
RESOLUTION = 1800.0
OUTPUT = Path(synthesis.__file__).parents[1] / "data" / "carbon.npz"


def stars(carbon: float, nitrogen: float) -> np.ndarray:
    """Labels of the four stars, (star, label)."""
    rows = []
    for teff in TEFF:
        for feh in FEH:
            row = np.full(len(atmospheres.LABELS), feh)
            row[:2] = teff, LOGG
            row[atmospheres.LABELS.index("c_h")] += carbon
            row[atmospheres.LABELS.index("n_h")] += nitrogen
            rows.append(row)
    return np.array(rows)


def strong(lines: synthesis.Lines) -> synthesis.Lines:
    """Lines that matter in one of the stars."""
    keep = select_lines.strong(lines, stars(CARBON, NITROGEN))
    arrays = (lines.wavelength, lines.kind, lines.energy, lines.log_gf)
    return synthesis.Lines(*(array[keep] for array in arrays))


def log_flux(lines: synthesis.Lines, carbon: float, nitrogen: float) -> np.ndarray:
    """Log of the flux at the survey's resolution, (star, pixel of both windows)."""
    flux = synthesis.normalised(stars(carbon, nitrogen), lines)
    slow = np.full(len(flux), 3.0)  # km/s
    return np.log(np.maximum(synthesis.broadened(flux, RESOLUTION, slow), 0.02))


def main() -> None:
    lines = strong(select_lines.read(Path(sys.argv[1])))
    print(len(lines.wavelength), "lines")
    sides = {
        "carbon": [(CARBON + s * STEP, NITROGEN) for s in (1, -1)],
        "nitrogen": [(CARBON, NITROGEN + s * STEP) for s in (1, -1)],
    }
    wavelength = Emulator.load().wavelength
    grid = np.concatenate(synthesis.grid())
    inside = np.zeros(wavelength.size, dtype=bool)
    for low, high in synthesis.WINDOWS:
        inside |= (wavelength > low) & (wavelength < high)
    arrays = {"pixel": np.flatnonzero(inside).astype(np.uint16)}
    for name, (more, less) in sides.items():
        change = (log_flux(lines, *more) - log_flux(lines, *less)) / (2 * STEP)
        own = [np.interp(wavelength[inside], grid, row) for row in change]
        arrays[name] = np.array(own).reshape(2, 2, -1).astype(np.float16)
        for star, row in zip(stars(0, 0), own, strict=True):
            at = np.argmin(row)
            what = f"{name:9} {star[0]:.0f} K {star[2]:+.1f}"
            print(f"{what}: {row[at]:+.3f} at {wavelength[inside][at]:.0f} Å")
    np.savez_compressed(OUTPUT, teff=np.array(TEFF), feh=np.array(FEH), **arrays)
    print(OUTPUT.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
