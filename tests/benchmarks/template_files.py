"""Write SDSS's mean spectra of all types as LAMOST files, noise and all.

    python tests/benchmarks/template_files.py ../shared/data -o templates/ [--typed]
        [--times 8]

The files' names begin with the type: ``M3V-4.fits.gz``. SUBCLASS is empty, so that
flags can come from the spectra alone, or with ``--typed`` the type, as LAMOST gives it.
At the end the model's verdict, by class: how many of the rows are flagged.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

import numpy as np
from mk_stars import COOLEST, HOTTEST, SNR, TEFF, Library, read_templates

from stellarcli import catalog, inputs, parallel, preparation, runs, sptype
from stellarcli.prediction import predict
from stellarcli.surveys import lamostfiles, simulated
from stellarcli.surveys.cards import gzip


def main() -> None:
    """Write the files, predict them, count."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--typed", action="store_true")
    parser.add_argument("--times", type=int, default=8, help="observations of each")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--model", default="default")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    _, types, flux, known = read_templates(options.data / "mk/sdss_templates.fits")
    number = sptype.numbers(types)
    usable = np.flatnonzero((number >= HOTTEST) & (number <= COOLEST))
    rows = np.repeat(usable, options.times)
    library = Library()
    library.flux, library.known = flux[rows], known[rows]
    labels = np.zeros((len(rows), 3))
    labels[:, 0] = np.interp(number[rows], *TEFF)  # decides about the noise's colour
    rng = np.random.default_rng(options.seed)
    stars = simulated.simulate(labels, rng, snr=SNR, emulator=library)
    positions = simulated.draw_positions(len(rows), rng)
    wavelength = lamostfiles.lrs_wavelength(library)
    for n, row in enumerate(rows):
        facts = lamostfiles.lrs_facts(options.seed, n, n, stars, positions)
        kind = types[row].strip()
        facts["truth"]["subclass"] = kind if options.typed else ""
        content = lamostfiles.lrs_table(facts, stars, n, wavelength)
        name = f"{kind.replace('/', '_')}-{row}-{n % options.times}.fits.gz"
        (options.output / name).write_bytes(gzip(content))
    target = f"{options.output}.catalogue.fits"
    paths = inputs.expand([str(options.output)])
    tasks = list(inputs.tasks(paths, preparation.CHUNK))
    run = runs.Run(model=options.model, workers=parallel.available_cores())
    predict(tasks, target, run, overwrite=True)
    verdict(catalog.read(target).rows)


def verdict(rows: np.ndarray) -> None:
    """Print, per class, how many rows are flagged, and with what."""
    kinds = np.array([Path(name).name[:1] for name in rows["file"].astype(str)])
    flagged = rows["flag"] & int(catalog.BAD) != 0
    for kind in "OBAFGKM":
        own = kinds == kind
        reasons = Counter(
            flag.name
            for flag in catalog.Flag
            for row in rows[own]
            if row["flag"] & flag
        )
        print(kind, f"{flagged[own].sum()} of {own.sum()} flagged", dict(reasons))


if __name__ == "__main__":
    main()
