"""Observe MILES stars and SDSS template spectra as LAMOST would, in the computer.

    python tests/benchmarks/mk_stars.py ../shared/data -o stars.fits --recipe default

Writes a prepared table with the types as text in ``subclass`` and a group for the
split in ``plan``, so that all observations of one star or template are on one side.
Both libraries are brought to LAMOST's resolution and pixels; `simulate` adds velocity,
reddening, imperfect calibration, noise and bad pixels. See train_mk.sh.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import fitsio
import numpy as np
from fit_emulator import MARGIN, broaden, log_grid, to_vacuum

from stellarcli import catalog, preprocess, sptype
from stellarcli.preparation import INFO
from stellarcli.prepared import PreparedWriter
from stellarcli.preprocess import Batch
from stellarcli.spectrum import Spectrum, SpectrumMeta
from stellarcli.surveys.simulated import Emulator, simulate

# What LAMOST's resolution lacks to the 2.5 Å of MILES, and nearly of SDSS: standard
# deviations in Å, as `fit_emulator.measure_broadening` finds them on the training plans
BROADENING = (
    (3930.0, 4330.0, 4730.0, 5330.0, 5530.0, 5930.0, 6530.0, 7130.0),
    (1.05, 0.80, 0.70, 0.84, 1.06, 1.60, 1.50, 1.50),
)
HOTTEST, COOLEST = -2.0, 4.95  # O to M: LAMOST sees no L dwarfs
TEFF = ((-2, -1, 0, 1, 2, 3, 4, 5), (40e3, 20e3, 9800, 7200, 5900, 5200, 3900, 2900))
SNR = (10.0, 300.0)
BLOCK = 256


class Library:
    """Library spectra in place of an emulator's."""

    def __init__(self) -> None:
        shipped = Emulator.load()
        self.wavelength, self.margin = shipped.wavelength, shipped.margin
        self.arrays = shipped.arrays
        self.flux = self.known = np.zeros((0, shipped.wavelength.size))

    def spectrum(self, labels: np.ndarray) -> np.ndarray:
        """Return flux of the present stars, float32 (spectrum, pixel)."""
        return self.flux.astype(np.float32)

    def constrained(self, labels: np.ndarray) -> np.ndarray:
        """Say which pixels the library has, (spectrum, pixel)."""
        return self.known


def read_miles(path: Path) -> tuple[np.ndarray, ...]:
    """Names, types, flux and known pixels of the MILES stars on LAMOST's grid."""
    stars = fitsio.read(path)
    air = 3540.5 + 0.9 * np.arange(stars["flux"].shape[1])
    names = np.char.add("miles-", stars["miles_id"].astype(str))
    return names, stars["sptype"], *_on_grid(stars["flux"], to_vacuum(air))


def read_templates(path: Path) -> tuple[np.ndarray, ...]:
    """Names, types, flux and known pixels of the SDSS templates on LAMOST's grid."""
    header = fitsio.read_header(path, ext=1)
    stars = fitsio.read(path)
    pixel = np.arange(stars["flux"].shape[1])
    wavelength = 10 ** (header["CRVAL1"] + header["CDELT1"] * pixel)
    names = np.array([f"sdss-{star['sptype']}{star['feh']}" for star in stars])
    return names, stars["sptype"], *_on_grid(stars["flux"], wavelength)


def _on_grid(flux: np.ndarray, wavelength: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Broadened flux, about 1, held at its ends; and where it is known."""
    grid = log_grid(MARGIN)
    flux = np.array(flux, dtype=float)
    missing = ~np.isfinite(flux)
    for row in np.flatnonzero(missing.any(axis=1)):
        good = ~missing[row]
        flux[row] = np.interp(wavelength, wavelength[good], flux[row, good])
    inside = np.clip(grid, wavelength[0] + 1, wavelength[-1] - 1)
    result = broaden(flux, wavelength, lambda w: np.interp(w, *BROADENING), inside)
    lost = np.array([np.interp(grid, wavelength, row) for row in missing]) > 0
    result /= np.median(result[:, (grid > 5450) & (grid < 5550)], axis=1)[:, None]
    return np.maximum(result, 1e-3), (inside == grid) & ~lost


def main() -> None:
    """Observe, prepare, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("-o", "--output", required=True)
    parser.add_argument("--recipe", default="default")
    parser.add_argument("--miles", type=int, default=4, help="observations of a star")
    parser.add_argument("--templates", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)
    recipe = preprocess.get(arguments.recipe)
    library = Library()
    with PreparedWriter(arguments.output, recipe) as writer:
        for stars, times in (
            (read_miles(arguments.data / "miles/miles_train.fits"), arguments.miles),
            (
                read_templates(arguments.data / "mk/sdss_templates.fits"),
                arguments.templates,
            ),
        ):
            print(sptype.unread(stars[1]))
            number = sptype.numbers(stars[1])
            usable = (number >= HOTTEST) & (number <= COOLEST)
            order = np.repeat(np.flatnonzero(usable), times)
            for start in range(0, len(order), BLOCK):
                rows = order[start : start + BLOCK]
                some = [values[rows] for values in (*stars, number)]
                writer.append(*observe(library, *some, rng=rng, recipe=recipe))


def observe(library, names, types, flux, known, number, *, rng, recipe):
    """Rows and prepared batch of one observation of each spectrum."""
    library.flux, library.known = flux, known
    labels = np.zeros((len(names), 3))
    labels[:, 0] = np.interp(number, *TEFF)  # decides about the noise's colour
    observed = simulate(labels, rng, snr=SNR, emulator=library)
    bad = (observed.flux == 0).astype(np.uint8)
    spectra = [
        Spectrum(
            observed.wavelength,
            observed.flux[row],
            observed.ivar[row],
            bad[row],
            SpectrumMeta(rv=observed.rv_measured[row]),
        )
        for row in range(len(names))
    ]
    batch = recipe.apply(Batch.from_spectra(spectra))
    values = {
        "objid": names,
        "plan": names,
        "snr": observed.snr["g"],
        "rv": observed.rv_measured,
        "survey": np.char.partition(names, "-")[:, 0],
        "class": np.full(len(names), "STAR"),
        "subclass": types,
    }
    rows = catalog.rows(INFO, values)
    widths = {"objid": 24, "plan": 24, "survey": 8, "class": 8, "subclass": 16}
    wide = [
        (name, f"S{widths[name]}" if name in widths else rows.dtype[name])
        for name in rows.dtype.names
    ]
    table = np.zeros(len(rows), wide)
    for name in rows.dtype.names:
        table[name] = rows[name]
    return table, batch


if __name__ == "__main__":
    main()
