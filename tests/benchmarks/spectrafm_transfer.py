"""Choose the stars of SpectraFM's transfer experiment; draw what came of it.

    python tests/benchmarks/spectrafm_transfer.py choose LABELS CHOSEN
    python tests/benchmarks/spectrafm_transfer.py sets
    python tests/benchmarks/spectrafm_transfer.py curve CHOSEN FIGURE NAME...

LABELS is train_labels.fits, CHOSEN the table that says which stars are whose. All of
them have consistent labels, S/N(g) > 10 and 4500 < Teff < 7000 K.

use100_1 ...   to learn from: 100 stars, first draw. [Fe/H] > -1, of the training plans
               (see default.yaml). `sets` prints all that are drawn
poor           to test on: [Fe/H] < -1. No stage sees any of them with a real label
rich           [Fe/H] > -1 of the test plans, for comparison
tested         what `score.py` calls the test plans, for the model without a transfer

`curve` reads NAME100_1.fits and so on, prints MAE and bias per set, and draws the MAE
against the number of stars.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from stellarcli import catalog
from stellarcli.dataset import split_by_hash
from stellarcli.figures import STYLE, WIDTH

SETS = {30: 1, 100: 3, 300: 1, 1000: 1}  # draws of so many stars
TEFF = (4500, 7000)
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#666666")
TESTS = {"poor": "[Fe/H] < −1", "rich": "[Fe/H] > −1"}


def choose(labels: str, output: str) -> None:
    """Write the table of stars."""
    rows = catalog.read(labels).rows
    part = split_by_hash(np.char.strip(rows["plan"]), test=0.25, validation=0.0, seed=1)
    good = (rows["consistent"] != 0) & (rows["snrg"] > 10)
    good &= (rows["teff"] > TEFF[0]) & (rows["teff"] < TEFF[1])
    poor = good & (rows["feh"] < -1)
    rich = good & (rows["feh"] > -1)
    pool = np.flatnonzero(rich & (part == "train"))
    columns = {"obsid": rows["obsid"].astype(str)}
    columns |= {name: rows[name] for name in ("teff", "logg", "feh", "snrg")}
    columns |= {"poor": poor, "rich": rich & (part == "test")}
    bright = (rows["snrg"] > 25) & (rows["teff"] > 3785.9) & (rows["teff"] < 8399.7)
    trusted = (rows["clean"] != 0) & (rows["consistent"] != 0)
    columns["tested"] = bright & trusted & (part == "test")
    for size, draws in SETS.items():
        for draw in range(1, draws + 1):
            drawn = np.random.default_rng(draw).permutation(pool)[:size]
            columns[f"use{size}_{draw}"] = np.isin(np.arange(len(rows)), drawn)
    made = [catalog.Column(n, "S" if n == "obsid" else "f4") for n in columns]
    catalog.write(output, catalog.rows(made, columns), made, overwrite=True)
    print(
        f"{pool.size} metal-rich stars to draw from; tested on {poor.sum()} metal-poor "
        f"ones and {columns['rich'].sum()} metal-rich ones"
    )


def sets() -> None:
    """Print the names of all sets, 30_1 and so on."""
    print(*(f"{size}_{d}" for size, draws in SETS.items() for d in range(1, draws + 1)))


def curve(chosen: str, figure: str, *names: str) -> None:
    """Print and draw the errors of catalogues against the number of stars."""
    truth = catalog.read(chosen).rows
    errors: dict[tuple[str, str], dict[int, list[float]]] = {}
    for name in names:
        for path in sorted(Path(figure).parent.glob(f"{name}[0-9]*_[0-9].fits")):
            found = catalog.read(str(path)).rows
            own = catalog.match(found, truth).index
            off = found["feh"] - truth["feh"][own]
            size = int(path.stem.removeprefix(name).split("_")[0])
            text = f"{path.stem:16s}"
            for test in TESTS:
                kept = off[(own >= 0) & (truth[test][own] != 0)]
                mae = float(np.abs(kept).mean())
                errors.setdefault((name, test), {}).setdefault(size, []).append(mae)
                text += f"  {test} ({kept.size}) {mae:.3f} bias {kept.mean():+.3f}"
            print(text)
    _draw(errors, figure, names)


def _draw(errors: dict, figure: str, names: tuple[str, ...]) -> None:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        drawn = Figure(figsize=(2 * WIDTH, 0.75 * WIDTH), layout="constrained")
        panels = drawn.subplots(1, len(TESTS))
        for axes, (test, title) in zip(panels, TESTS.items(), strict=True):
            for colour, name in zip(COLOURS, names, strict=False):
                sizes = errors.get((name, test), {})
                mean = [np.mean(sizes[n]) for n in sorted(sizes)]
                axes.plot(sorted(sizes), mean, "-", color=colour, lw=1, label=name)
                for n, values in sizes.items():
                    axes.plot([n] * len(values), values, "o", color=colour, ms=3)
            axes.set(xscale="log", title=f"{title}, not seen in training")
            axes.set(xlabel="stars to learn from", ylabel="MAE of [Fe/H] (dex)")
            axes.set_xticks([*SETS], [str(n) for n in SETS])
            axes.minorticks_off()
            axes.set_ylim(bottom=0)
        panels[0].legend(frameon=False)
        drawn.savefig(figure, dpi=200)


if __name__ == "__main__":
    {"choose": choose, "sets": sets, "curve": curve}[sys.argv[1]](*sys.argv[2:])
