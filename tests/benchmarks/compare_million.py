"""Time and memory of comparing catalogues of a million rows.

    python tests/benchmarks/compare_million.py [ROWS]

Writes two catalogues and a truth, shuffled against each other, into a temporary folder
and runs ``stellar compare`` on them: one model; with bins by S/N; two models with a
figure. Demanded is 20 s and 2 GB for the first (issue 4).
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from stellarcli import catalog, labels

SCATTER = {"teff": 80.0, "logg": 0.1, "feh": 0.07}
RUNS = {
    "one model": ["a.fits", "truth.fits"],
    "one model by S/N": ["a.fits", "truth.fits", "--by", "snr"],
    "two models, figure": ["a.fits", "b.fits", "truth.fits", "--figure", "f.png"],
}


def main(rows: int = 1_000_000) -> None:
    """Print seconds and peak memory of each of `RUNS`."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), rows)
        for name, arguments in RUNS.items():
            start = time.perf_counter()
            before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
            subprocess.run(
                [sys.executable, "-m", "stellarcli", "compare", *arguments, "--quiet"],
                cwd=folder,
                stdout=subprocess.DEVNULL,
                check=True,
            )
            peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
            more = "" if peak > before else " at most"
            seconds = time.perf_counter() - start
            print(f"{name:20s} {seconds:6.1f} s {peak / 1024:7.0f} MB{more}")


def write(folder: Path, rows: int) -> None:
    """Write catalogues as `predict` does, in different orders."""
    rng = np.random.default_rng(0)
    number = 100_000_000 + rng.permutation(rows)
    truth = {
        "teff": rng.uniform(4000, 8000, rows),
        "logg": rng.uniform(1, 5, rows),
        "feh": rng.normal(-0.3, 0.4, rows),
    }
    common = {
        "objid": number.astype(str),
        "file": np.char.add("spectra/spec-55859-F5902_sp03-", number.astype(str)),
        "ra": rng.uniform(0, 360, rows),
        "dec": rng.uniform(-80, 80, rows),
        "snr": rng.lognormal(3.5, 0.8, rows),
        "flag": 256 * (rng.random(rows) < 0.05),
    }
    columns = catalog.columns([labels.get(name) for name in SCATTER])
    for name, factor in {"a": 1.0, "b": 1.1, "truth": 0.1}.items():
        values = dict(common)
        for label, scatter in SCATTER.items():
            error = scatter * rng.uniform(0.5, 1.5, rows)
            noise = factor * error * rng.standard_normal(rows)
            values |= {label: truth[label] + noise, f"{label}_err": error}
        table = catalog.rows(columns, values)[rng.permutation(rows)]
        catalog.write(folder / f"{name}.fits", table, columns)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
