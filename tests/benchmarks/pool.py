"""Put the folds of cross_validate.sh together, and print their accuracy.

    python tests/benchmarks/pool.py WORK_DIRECTORY FOLDS

Writes WORK_DIRECTORY/out_of_fold.fits: one row per star, predicted by the model that
saw nothing of its plan.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from stellarcli import catalog, checkpoint, metrics
from stellarcli.dataset import split_by_hash
from stellarcli.prepared import PreparedTable

LABELS = ("teff", "logg", "feh")
FIGURES = ("mae", "rmse", "bias", "nmad", "within1", "within2")


def pooled(work: Path, folds: int, plan: np.ndarray) -> np.ndarray:
    """Rows of the catalogue, each of the fold that its plan is tested in."""
    rows = None
    for fold in range(folds):
        model = checkpoint.load(str(work / f"fold.fold{fold}.safetensors"))
        found = catalog.read(str(work / f"fold{fold}.fits")).rows
        rows = found.copy() if rows is None else rows
        settings = {"seed": model.training["config"]["seed"], "folds": folds}
        part = split_by_hash(plan, test=0, validation=0, fold=fold, **settings)
        rows[part == "test"] = found[part == "test"]
    return rows


def main(work: Path, folds: int) -> None:
    """Write the pooled catalogue and print a table of figures."""
    table = PreparedTable(str(work / "lamost.fits"))
    plan = table.column("plan").astype(str)
    rows = pooled(work, folds, plan)
    catalog.write(work / "out_of_fold.fits", rows, overwrite=True)
    teff, snr = table.column("teff"), table.column("snrg")
    good = table.column("clean").astype(bool) & table.column("consistent").astype(bool)
    good &= (teff > 3785.9) & (teff < 8399.7)
    bright = good & (snr > 25)
    trusted = (rows["flag"] & int(catalog.BAD)) == 0
    unseen = split_by_hash(plan, test=0.25, validation=0, seed=1) == "test"
    samples = {
        "S/N > 25": bright,
        "… not flagged": bright & trusted,
        "… plans that the emulator saw": bright & ~unseen,
        "… plans that it didn't see": bright & unseen,
        "S/N 10-25": good & (snr > 10) & (snr <= 25),
        "S/N 25-50": good & (snr > 25) & (snr <= 50),
        "S/N 50-100": good & (snr > 50) & (snr <= 100),
        "S/N > 100": good & (snr > 100),
        "Teff > 7000": bright & (teff > 7000),
        "log g < 3.5": bright & (table.column("logg") < 3.5),
        "all rows": np.ones(len(rows), dtype=bool),
    }
    for name, chosen in samples.items():
        flagged = 1 - trusted[chosen].mean()
        print(f"{name} ({chosen.sum()}), flagged {flagged:.1%}")
        for label in LABELS:
            result = metrics.summary(
                rows[label][chosen],
                table.column(label)[chosen].astype(float),
                rows[f"{label}_err"][chosen],
            )
            print(f"    {label:5s}", *(f"{key} {result[key]:.4g}" for key in FIGURES))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
