"""Write MILES stars as files: 1-D images, air wavelengths, as the library has them.

    python tests/benchmarks/miles_files.py ../shared/data/miles/miles_train.fits \
        -o miles/ --labels-out miles_labels.fits

The catalogue has the labels, the spectral type and, in `part`, train or test: the test
stars are those that `fit_interpolator.py` leaves out.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import fitsio
import numpy as np
from fit_interpolator import held_out, identifiers

from stellarcli import catalog

START, STEP = 3540.5, 0.9  # Å of air


def main() -> None:
    """Write a file per star that has all labels, and the catalogue."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stars", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--labels-out", required=True)
    arguments = parser.parse_args()
    stars = fitsio.read(arguments.stars)
    labels = [stars[name].astype(float) for name in ("teff", "logg", "feh")]
    stars = stars[np.isfinite(labels).all(axis=0)]
    arguments.output.mkdir(parents=True, exist_ok=True)
    names = identifiers(stars).tolist()
    header = {"CTYPE1": "AWAV", "CUNIT1": "Angstrom", "CRPIX1": 1.0}
    header |= {"CRVAL1": START, "CDELT1": STEP, "VELOCITY": 0.0}
    for name, star in zip(names, stars, strict=True):
        path = arguments.output / f"{name}.fits"
        path.unlink(missing_ok=True)
        flux = np.nan_to_num(star["flux"]).astype("f4")  # 0 without an error: no data
        fitsio.write(path, flux, header={**header, "OBJECT": name})
    test = held_out(identifiers(stars))
    columns = {
        "file": np.array([f"{name}.fits" for name in names]),
        "objid": np.array(names),
        "star": stars["name"].astype(str),
        "sptype": stars["sptype"].astype(str),
        "teff": stars["teff"],
        "logg": stars["logg"],
        "feh": stars["feh"],
        "part": np.where(test, "test", "train"),
        # as LAMOST's labels have them, so that one selection serves both
        "consistent": np.ones(len(stars), "f4"),
        "clean": np.ones(len(stars), "f4"),
        "snrg": np.full(len(stars), 100.0, "f4"),
    }
    kinds = {"U": "S", "f": "f4"}
    made = [catalog.Column(n, kinds[v.dtype.kind]) for n, v in columns.items()]
    rows = catalog.rows(made, columns)
    catalog.write(arguments.labels_out, rows, made, overwrite=True)
    print(f"{arguments.output}: {len(rows)} stars, {test.sum()} of them for tests")


if __name__ == "__main__":
    main()
