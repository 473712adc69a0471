"""Print the accuracy of a catalogue on the plans that its model never saw.

    python tests/benchmarks/score.py params.fits train_labels.fits model.safetensors

The split is recomputed from the model file's own settings (group, test, seed). Rows:
S/N(g) > 25, 3785.9 < Teff < 8399.7 K, `clean` and `consistent` (../shared/DATA.md); the
other test rows are printed below.
"""

from __future__ import annotations

import sys

import numpy as np

from stellarcli import catalog, checkpoint, metrics
from stellarcli.dataset import split_by_hash

LABELS = ("teff", "logg", "feh")


def main(catalogue: str, truth: str, model: str) -> None:
    """Print a table of figures."""
    predicted = catalog.read(catalogue).rows
    labels = catalog.read(truth).rows
    settings = checkpoint.load(model).training["config"]
    part = split_by_hash(
        labels[settings["group"]],
        test=settings["test"],
        validation=settings["validation"],
        seed=settings["seed"],
    )
    plans = {p: np.unique(labels["plan"][part == p]).size for p in np.unique(part)}
    print("plans:", plans, "spectra:", {p: int((part == p).sum()) for p in plans})
    found = catalog.match(predicted, labels)
    assert (found.index >= 0).all(), "rows without labels"
    labels, part = labels[found.index], part[found.index]
    teff = labels["teff"]
    good = (labels["clean"] != 0) & (labels["consistent"] != 0)
    bright = (labels["snrg"] > 25) & (teff > 3785.9) & (teff < 8399.7)
    test = part == "test"
    trusted = (predicted["flag"] & int(catalog.BAD)) == 0
    samples = {
        "test plans": test & good & bright,
        "… not flagged": test & good & bright & trusted,
        "… validation plans": (part == "validation") & good & bright,
        "… S/N 10-25": test & good & (labels["snrg"] > 10) & (labels["snrg"] < 25),
        "… S/N > 100": test & good & bright & (labels["snrg"] > 100),
        "… Teff > 7000": test & good & bright & (teff > 7000),
        "… not clean & consistent": test & ~good & bright,
        "all test rows": test,
    }
    for name, rows in samples.items():
        if not rows.any():
            continue
        print(f"{name} ({rows.sum()}), flagged {(~trusted[rows]).mean():.1%}")
        for label in LABELS:
            result = metrics.summary(
                predicted[label][rows],
                labels[label][rows].astype(float),
                predicted[f"{label}_err"][rows],
            )
            figures = ("mae", "rmse", "bias", "nmad", "within1", "within2")
            print(
                f"    {label:5s}",
                "  ".join(f"{key} {result[key]:.4g}" for key in figures),
            )


if __name__ == "__main__":
    main(*sys.argv[1:])
