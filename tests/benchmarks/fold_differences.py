"""Differences between networks trained on the same folds, fold by fold.

    python tests/benchmarks/fold_differences.py USUAL.runs.csv OTHER.runs.csv...

Takes what 'stellar train --folds' wrote. A fold has the same stars and the same draws
for every network, so the scatter of the differences is less than that of the figures.
Three folds say little about their own scatter: it is taken from the differences of all
networks together (each freed of its mean), one value per label. Marked are differences
that chance leaves in one case of twenty, by Student's t. In brackets is each fold's, as
one training that went astray makes a mean of three.
"""

from __future__ import annotations

import math
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
from scipy import stats

from stellarcli import catalog

LEVEL = 0.05


def folds(path: str, label: str) -> dict[str, dict[int, float]]:
    """MAE of the test rows by setting, or the file's name, and fold."""
    rows = catalog.read(path).rows
    varied = [name for name in rows.dtype.names if name.startswith("network.")]
    found: dict[str, dict[int, float]] = defaultdict(dict)
    for row in rows:
        setting = ", ".join(f"{n.removeprefix('network.')} {row[n]}" for n in varied)
        found[setting or Path(path).name.split(".")[0]][int(row["fold"])] = float(
            row[f"test_{label}_mae"]
        )
    return found


def differences(usual: str, others: list[str], label: str) -> dict[str, np.ndarray]:
    """MAE of each setting minus that of the usual network, fold by fold."""
    (base,) = folds(usual, label).values()
    found = {}
    for other in others:
        for setting, values in folds(other, label).items():
            if values.keys() != base.keys():
                raise SystemExit(f"{other}: its folds are not those of {usual}")
            found[setting] = np.array([values[n] - base[n] for n in sorted(base)])
    return found


def main(usual: str, *others: str) -> None:
    """Print them."""
    names = catalog.read(usual).rows.dtype.names
    labels = [n[5:-4] for n in names if n.startswith("test_") and n.endswith("_mae")]
    for label in labels:
        found = differences(usual, list(others), label)
        free = sum(len(d) - 1 for d in found.values())
        scatter = math.sqrt(sum(((d - d.mean()) ** 2).sum() for d in found.values()))
        scatter /= math.sqrt(free)
        print(f"{label}: MAE minus that of the usual network; ± from {free} degrees")
        for setting, values in found.items():
            error = scatter / math.sqrt(len(values))
            beyond = stats.t.sf(abs(values.mean()) / error, free) < LEVEL / 2
            mark = "  beyond chance" if beyond else ""
            each = " ".join(f"{value:+.4f}" for value in values)
            print(f"  {setting:16} {values.mean():+.4f} ± {error:.4f} ({each}){mark}")


if __name__ == "__main__":
    main(*sys.argv[1:])
