"""Choose the stars of SpectraFM's transfer experiment, and score what came of it.

    python tests/benchmarks/spectrafm_transfer.py choose LABELS CHOSEN
    python tests/benchmarks/spectrafm_transfer.py score LABELS CHOSEN N NAME=FILE...

LABELS is train_labels.fits, CHOSEN the table that says which stars are whose.

Learnt from: N stars of the training plans (see default.yaml), clean and consistent,
S/N(g) > 20, 4500 < Teff < 7000 K, [Fe/H] > -1, drawn at random; each set holds the
smaller ones. Tested on: all with [Fe/H] < -1, S/N(g) > 10, that no stage has seen with
a real label; and the metal-rich ones of the test plans.
"""

from __future__ import annotations

import sys

import numpy as np

from stellarcli import catalog
from stellarcli.dataset import split_by_hash

SIZES = (30, 100, 300, 1000)
TEFF = (4500, 7000)


def choose(labels: str, output: str) -> None:
    """Write columns use30 and so on: 1 to learn from, 2 metal-poor, 0 neither."""
    rows = catalog.read(labels).rows
    part = split_by_hash(np.char.strip(rows["plan"]), test=0.25, validation=0.0, seed=1)
    cool = (rows["teff"] > TEFF[0]) & (rows["teff"] < TEFF[1])
    good = (rows["clean"] != 0) & (rows["consistent"] != 0) & (rows["snrg"] > 20) & cool
    rich = np.flatnonzero(good & (rows["feh"] > -1) & (part == "train"))
    poor = (rows["consistent"] != 0) & (rows["snrg"] > 10) & cool & (rows["feh"] < -1)
    drawn = np.random.default_rng(1).permutation(rich)
    columns = {"obsid": rows["obsid"].astype(str)}
    for size in SIZES:
        use = np.where(poor, 2.0, 0.0)
        use[drawn[:size]] = 1
        columns[f"use{size}"] = use
    made = [catalog.Column(n, "S" if n == "obsid" else "f4") for n in columns]
    catalog.write(output, catalog.rows(made, columns), made, overwrite=True)
    print(f"{rich.size} metal-rich stars to draw from, {poor.sum()} metal-poor ones")


def score(labels: str, chosen: str, size: str, *named: str) -> None:
    """Print errors of [Fe/H] per catalogue."""
    rows, use = catalog.read(labels).rows, catalog.read(chosen).rows[f"use{size}"]
    part = split_by_hash(np.char.strip(rows["plan"]), test=0.25, validation=0.0, seed=1)
    for pair in named:
        name, _, path = pair.partition("=")
        found = catalog.read(path).rows
        own = catalog.match(found, rows).index
        truth, snr, teff = (rows[n][own].astype(float) for n in ("feh", "snrg", "teff"))
        off = np.abs(found["feh"] - truth)
        cool = (teff > TEFF[0]) & (teff < TEFF[1]) & (snr > 20)
        trusted = (rows["clean"][own] != 0) & (rows["consistent"][own] != 0)
        samples = {
            "metal-poor": use[own] == 2,
            "… S/N > 20": (use[own] == 2) & (snr > 20),
            "metal-rich, test plans": cool
            & trusted
            & (truth > -1)
            & (part[own] == "test"),
        }
        for what, some in samples.items():
            bias = (found["feh"] - truth)[some].mean()
            mae = off[some].mean()
            print(f"{size} {name}: {what} ({some.sum()}) {mae:.3f} {bias:+.3f}")


if __name__ == "__main__":
    {"choose": choose, "score": score}[sys.argv[1]](*sys.argv[2:])
