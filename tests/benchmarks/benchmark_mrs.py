"""What a medium-resolution model says of the Gaia FGK benchmark stars: real spectra.

    python tests/benchmarks/benchmark_mrs.py FOLDER OUTPUT_DIRECTORY [MODEL]

FOLDER holds high-resolution spectra (R = 47 000, air, 4800–6800 Å in steps of 0.01 Å).
Degraded to R = 7500 and LAMOST MRS's pixels, at 25 km/s and with noise of S/N 80, they
become files as the survey writes them, and `stellar predict` does the rest.
"""

import sys
from pathlib import Path

import fitsio
import numpy as np
from astropy.io import fits

from stellarcli import catalog, inputs, prediction, preparation
from stellarcli.preprocess.wavelength import air_to_vacuum
from stellarcli.spectrum import SPEED_OF_LIGHT
from stellarcli.surveys import medium

RV, SNR = 25.0, 80.0
# Teff, log g, [Fe/H]: the Sun, and Gaia FGK benchmark stars v3
STARS = {
    "ATLAS.Sun_47000": (5771, 4.44, 0.0),
    "UVES_epsEri-2_47000": (5062, 4.60, -0.08),
    "iraf_UVES_HD201891_47000": (6040, 4.34, -1.02),
    "UVES_HD106038_47000": (6172, 4.28, -1.33),
    "iraf_NARVAL_alfCet_47000": (3738, 0.66, -0.24),
}


def degraded(flux: np.ndarray, good: np.ndarray) -> np.ndarray:
    """Flux at R = 7500, weighted by good pixels; the grid is even in Å."""
    widths = [6000 / r / 2.3548 / 0.01 for r in (medium.RESOLUTION, 47000)]
    sigma = np.sqrt(widths[0] ** 2 - widths[1] ** 2)
    offset = np.arange(-5 * int(sigma), 5 * int(sigma) + 1)
    kernel = np.exp(-0.5 * (offset / sigma) ** 2)
    kernel /= kernel.sum()
    weight = np.convolve(good, kernel, "same")
    total = np.convolve(np.where(good, flux, 0), kernel, "same")
    return np.divide(total, weight, out=np.zeros_like(total), where=weight > 0.5)


def write(path: Path, target: Path, number: int) -> None:
    """Write the file that LAMOST would have made of a star."""
    rng = np.random.default_rng(number)
    observed = fitsio.read(path).astype(float)
    grid = air_to_vacuum(4800 + 0.01 * np.arange(observed.size))
    smooth = degraded(observed, observed > 0)
    primary = fits.PrimaryHDU()
    primary.header["EXTNAME"] = "Information"
    primary.header["TELESCOP"], primary.header["OBSID"] = "LAMOST", number
    primary.header["DATA_V"] = "degraded benchmark star"
    hdus = [primary]
    for arm, (start, pixels, _) in medium.ARMS.items():
        wavelength = start * 10 ** (medium.STEP * np.arange(pixels))
        flux = np.interp(wavelength / (1 + RV / SPEED_OF_LIGHT), grid, smooth)
        flux *= 1000 / np.median(flux)
        sigma = 1000 / SNR
        flux += np.where(flux > 0, rng.normal(0, sigma, pixels), 0)
        ivar = np.where(flux != 0, sigma**-2, 0)
        zeros = np.zeros(pixels, dtype=np.int16)
        columns = [
            fits.Column("FLUX", "E", array=flux),
            fits.Column("IVAR", "E", array=ivar),
            fits.Column("LOGLAM", "E", array=np.log10(wavelength)),
            fits.Column("ANDMASK", "I", array=zeros),
            fits.Column("ORMASK", "I", array=zeros),
        ]
        hdus.append(fits.BinTableHDU.from_columns(columns, name=f"COADD_{arm}"))
        hdus[-1].header["SNR"] = SNR
    fits.HDUList(hdus).writeto(target, overwrite=True)


def main(folder: str, output: str, model: str = "mrs-sim") -> None:
    """Print values, errors and differences from the literature."""
    directory = Path(output)
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, name in enumerate(STARS):
        paths.append(directory / f"{name}.fits")
        write(Path(folder) / f"{name}.fits", paths[-1], number)
    table = str(directory / "catalogue.fits")
    tasks = list(inputs.tasks(list(map(str, paths)), preparation.CHUNK))
    run = prediction.Run(model=model, workers=1)
    prediction.predict(tasks, table, run, overwrite=True)
    rows = catalog.read(table).rows
    for row, (name, truth) in zip(rows, STARS.items(), strict=True):
        flags = [f.name for f in catalog.Flag if row["flag"] & f]
        print(f"{name}: rv {row['rv']:.1f} ± {row['rv_err']:.1f} (put in: {RV:.1f})")
        for label, known in zip(("teff", "logg", "feh"), truth, strict=True):
            value, error = row[label], row[f"{label}_err"]
            print(f"  {label} {value:.2f} ± {error:.2f}, literature {known}")
        print(f"  {' '.join(flags) or 'no flag'}")


if __name__ == "__main__":
    main(*sys.argv[1:])
