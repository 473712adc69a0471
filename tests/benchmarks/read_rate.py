"""Files read per second by this package, astropy and fitsio on the same files.

    python tests/benchmarks/read_rate.py [FOLDER] [--files 400] [--rounds 5]

FOLDER holds raw LAMOST spectra (``*.fits``); without one, files are made. Copies
gzipped at level 6 go to a temporary folder. Each round reads the files with each
reader in turn, so that the machine's moods meet all of them; the median round counts.
All readers give wavelength, flux, ivar and the header's values of `KEYS`.
"""

from __future__ import annotations

import argparse
import gzip
import sys
import tempfile
import time
import warnings
from pathlib import Path

import fitsio
import numpy as np
from astropy.io import fits

sys.path.insert(0, str(Path(__file__).parents[1]))
import surveyfiles

from stellarcli import surveys

KEYS = ("OBSID", "RA", "DEC", "SNRG", "SNRR", "SNRI", "Z", "CLASS", "SUBCLASS", "LMJD")
COLUMNS = ("FLUX", "IVAR", "WAVELENGTH")


def with_astropy(path):
    """Arrays and header values with astropy."""
    with fits.open(path) as file:
        header = file[0].header
        row = file[1].data[0]
        return [np.array(row[name]) for name in COLUMNS], [header[key] for key in KEYS]


def with_fitsio(path):
    """Arrays and header values with fitsio."""
    with fitsio.FITS(str(path)) as file:
        header = file[0].read_header()
        row = file[1].read(columns=list(COLUMNS))
        return row, [header[key] for key in KEYS]


READERS = {"stellar": surveys.read, "astropy": with_astropy, "fitsio": with_fitsio}


def rates(paths, rounds):
    """Median files per second of each reader."""
    found = {name: [] for name in READERS}
    for _ in range(rounds):
        for name, reader in READERS.items():
            # the libraries are ten times slower: a tenth of the files is enough
            chosen = paths if name == "stellar" else paths[::10]
            start = time.perf_counter()
            for path in chosen:
                reader(path)
            found[name].append(len(chosen) / (time.perf_counter() - start))
    return {name: float(np.median(values)) for name, values in found.items()}


def main():
    """Parse the command line, read, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--files", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        if options.folder:
            plain = sorted(options.folder.glob("*.fits"))[: options.files]
        else:
            plain = [
                surveyfiles.lamost_table(work / f"{i}.fits", size=3909)
                for i in range(options.files)
            ]
        packed = []
        for path in plain:
            packed.append(work / f"{path.name}.gz")
            packed[-1].write_bytes(gzip.compress(path.read_bytes(), 6))
        print(f"{'':8}" + "".join(f"{reader:>10}" for reader in READERS) + "  files/s")
        for kind, paths in ((".fits", plain), (".gz", packed)):
            found = rates(paths, options.rounds)
            print(f"{kind:8}" + "".join(f"{found[reader]:10.0f}" for reader in READERS))


if __name__ == "__main__":
    main()
