"""Measure a SpectraFM model: cuts, attention, throughput. See train_spectrafm.sh.

    python tests/benchmarks/spectrafm_measures.py MODEL[,MODEL...] PREPARED LABELS cuts

PREPARED has LAMOST LRS spectra with `recipe spectrafm`, LABELS is train_labels.fits.
Rows: those of `score.py` on the plans that the model's split holds out; for `cuts` also
all of these plans that the model's own selection takes. Of a fold of a cross-validation
they are the plans that this fold hadn't seen; give all folds for all plans.

The last word is one of

cuts    a contiguous 40 % of each spectrum's pixels, 25 places: error against labels,
        share within 1 σ, errors over those of the whole spectrum
lines   share of the 2 % of pixels with most attention to [Fe/H] that lie within 5 Å of
        an iron line of the shipped list, and of all pixels. For Teff the lines are
        Balmer's. Gravity has no element: there they are what types of luminosity are
        told by in A to K stars (Gray & Corbally 2009, Stellar Spectral Classification):
        lines of ions, and strong ones with wings
speed   spectra per second of CPU time of the network alone against the context length,
        and the most memory that the process has taken by then
"""

from __future__ import annotations

import resource
import sys
import time

import numpy as np
import torch

from stellarcli import catalog, checkpoint, feeding, models, selection
from stellarcli.calibration import error_factors
from stellarcli.dataset import split_by_hash
from stellarcli.explanation import lines
from stellarcli.prediction import Predictor
from stellarcli.preparation import CHUNK
from stellarcli.prepared import PreparedTable

LABELS = ("teff", "logg", "feh")
SHARE, PLACES = 0.4, tuple(n / 40 for n in range(25))
WITHIN, MOST = 0.6827, 0.08  # share within 1 σ that is right, and how far off it may be
IONS = ("Fe II", "Ti II", "Sr II", "Ba II", "Si II", "Mg II", "Ca II")
WINGS = ("Mg b", "Ca I 4227", "Na D", "H")
FEW = ("Mg b", "Mg I", "Mg II", "Ca I", "Ca II", "Fe II")
ELEMENTS = (
    ("teff", ("H",)),
    ("feh", ("Fe",)),
    ("logg", FEW),
    ("logg", IONS),
    ("logg", IONS + WINGS),
)
NEAR, TOP, STEP = 5.0, 0.02, 2e-4


def test_rows(table: PreparedTable, path: str, model: checkpoint.Model):
    """Rows of the table on test plans, their true labels, and which have good ones."""
    labels = catalog.read(path).rows
    settings = model.training["config"]
    names = ("test", "seed", "folds", "fold")
    options = {name: settings[name] for name in names}
    part = split_by_hash(labels[settings["group"]], validation=0.0, **options)
    found = catalog.match(table.rows(), labels).index
    own, part = labels[found], part[found]
    chosen = selection.select(settings["select"], lambda name: own[name])
    rows = np.flatnonzero(chosen & (part == "test") & (found >= 0))
    own = own[rows]
    good = (own["clean"] != 0) & (own["consistent"] != 0) & (own["snrg"] > 25)
    good &= (own["teff"] > 3785.9) & (own["teff"] < 8399.7)
    return rows, np.stack([own[name].astype(float) for name in LABELS], 1), good


def predicted(predictor: Predictor, feed: dict) -> tuple[np.ndarray, np.ndarray]:
    """Labels and their errors as in a catalogue, (spectrum, label)."""
    values, errors = [], []
    for start in range(0, len(feed["flux"]), CHUNK):
        piece = feeding.taken(feed, slice(start, start + CHUNK))
        mean, variance, _ = predictor.predict(**piece)
        error = np.sqrt(variance) * error_factors(
            predictor.model, piece["ivar"], piece["wavelength"]
        )
        own = predictor.model.labels
        decoded = [label.decode(mean[:, n]) for n, label in enumerate(own)]
        values.append(np.stack(decoded, 1))
        pairs = [y.decode_error(mean[:, n], error[:, n]) for n, y in enumerate(own)]
        errors.append(np.stack(pairs, 1))
    return np.concatenate(values), np.concatenate(errors)


def cuts(predictor: Predictor, table: PreparedTable, rows) -> dict:
    """Predict what is left of the labels when 60 % of a spectrum is not there."""
    feed = table.feed(rows, predictor.inputs, predictor.extra)
    found = {"whole": predicted(predictor, feed)}
    for place in PLACES:
        low = np.full(len(rows), place)
        cut = feeding.stretches(feed, low, low + SHARE)
        found[f"{place:.1%} to {place + SHARE:.1%}"] = predicted(predictor, cut)
    return found


def print_cuts(predictors: list[Predictor], table: PreparedTable, labels: str) -> None:
    """Print the shares within 1 sigma of what each model hadn't seen."""
    chosen = [test_rows(table, labels, predictor.model) for predictor in predictors]
    _, truth, good = (np.concatenate(part) for part in zip(*chosen, strict=True))
    pieces = [
        cuts(predictor, table, rows)
        for predictor, (rows, *_) in zip(predictors, chosen, strict=True)
    ]
    found = {
        name: [np.concatenate([piece[name][n] for piece in pieces]) for n in (0, 1)]
        for name in pieces[0]
    }
    for name, some in (("good labels", good), ("all selected", good | True)):
        print(f"{name}: {some.sum()} spectra")
        own = {key: [array[some] for array in pair] for key, pair in found.items()}
        _print_cuts(own, truth[some])


def _print_cuts(found: dict, truth: np.ndarray) -> None:
    whole = found["whole"][1]
    shares = [_print(name, *pair, whole, truth) for name, pair in found.items()][1:]
    for step, kind in ((1, "2.5 %"), (2, "5 %"), (4, "10 %")):
        some = np.array(shares[::step])
        out = (abs(some - WITHIN) > MOST).sum()
        print(
            f"every {kind}: within 1 sigma {some.min(0).round(3)} to "
            f"{some.max(0).round(3)}, {out} of {some.size} over {MOST:.0%} off"
        )
    several = list(found.values())[1::4]
    values, errors = (np.concatenate(part) for part in zip(*several, strict=True))
    count = len(several)
    _print(
        "every 10 %", values, errors, *(np.tile(a, (count, 1)) for a in (whole, truth))
    )


def _print(name, values, errors, whole, truth) -> list[float]:
    """Print figures of merit; returns the shares within 1 sigma."""
    off = np.abs(values - truth)
    for n, label in enumerate(LABELS):
        within = (off[:, n] < errors[:, n]).mean()
        ratio = np.median(errors[:, n] / whole[:, n])
        larger = (errors[:, n] > whole[:, n]).mean()
        print(
            f"{name:15s} {label:5s} MAE {off[:, n].mean():.4g}  within 1 sigma "
            f"{within:.3f}  error/whole {ratio:.2f}, larger in {larger:.0%}"
        )
    return (off < errors).mean(axis=0)


def attended(predictor: Predictor, table: PreparedTable, rows) -> None:
    """Print how much of the attention lies on lines, against chance."""
    total, light = None, None
    points = np.arange(np.log(3700), np.log(9100), STEP)
    total = np.zeros((len(LABELS), points.size))
    light = np.zeros(points.size)
    network = predictor.networks[0]
    for start in range(0, len(rows), 16):
        feed = table.feed(rows[start : start + 16], predictor.inputs, predictor.extra)
        tensors = feeding.tensors(feed)
        found = network.attention(*(tensors[n] for n in predictor.inputs)).numpy()
        good = feed["ivar"] > 0
        place = (np.log(np.where(good, feed["wavelength"], 5000)) - points[0]) / STEP
        place = place.astype(int)
        for row, own in enumerate(found):
            kept = good[row] & (place[row] >= 0) & (place[row] < points.size)
            np.add.at(light, place[row, kept], 1)
            for n, map_ in enumerate(own):
                np.add.at(total[n], place[row, kept], map_[kept])
    wavelength = np.exp(points + STEP / 2)
    seen = light > 0.3 * len(rows)
    for label, names in ELEMENTS:
        chosen = [line for line in lines.load() if _is_of(line.name, names)]
        near = np.zeros(points.size, dtype=bool)
        for line in chosen:
            near |= abs(wavelength - line.wavelength) < NEAR
        own = total[LABELS.index(label)]
        density = np.where(seen, own / np.maximum(light, 1), -1)
        count = int(TOP * seen.sum())
        top = np.argsort(-density)[:count]
        print(
            f"{label}: {near[top].mean():.3f} of the top {TOP:.0%} within {NEAR:g} Å "
            f"of {len(chosen)} features of {', '.join(names)}; by chance "
            f"{near[seen].mean():.3f}; peaks at "
            f"{sorted({int(round(w / 5) * 5) for w in wavelength[top]})}"
        )


BALMER = ("Hα", "Hβ", "Hγ", "Hδ", "Hε", "H8", "H9", "H10", "Paschen")


def _is_of(name: str, wanted: tuple[str, ...]) -> bool:
    """Say whether a feature, Fe II 4233, is one of Fe, or Fe II, or H."""
    names = (*wanted, *(BALMER if "H" in wanted else ()))
    return any(f"{name} ".startswith(f"{start} ") for start in names)


def speed(predictor: Predictor, table: PreparedTable, rows) -> None:
    """Print spectra per second of the network against the context length."""
    model = predictor.model
    feed = feeding.tensors(table.feed(rows[:CHUNK], predictor.inputs, predictor.extra))
    shipped = model.config["patch"]
    kinds = [("patches", {"patch": p}) for p in (0.02, 0.01, 0.005, 0.0025, 0.00125)]
    kinds += [("pixels", {"context": c}) for c in (128, 256, 512, 1024, 2048)]
    for tokens, options in kinds:
        config = {**model.config, "tokens": tokens, **options}
        network = models.build(
            "spectrafm", pixels=model.pixels, labels=len(LABELS), **config
        ).eval()
        with torch.inference_mode():
            there = network._tokens(*feed.values())[1]
            times = []
            for _ in range(4):
                begin = time.process_time()
                network(*feed.values())
                times.append(time.process_time() - begin)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(
            f"{tokens} {options}: {there.sum(1).float().mean():.0f} tokens, "
            f"{CHUNK / min(times[1:]):.0f} spectra/s of CPU time, {peak:.0f} MiB"
            + (", as shipped" if options == {"patch": shipped} else "")
        )


def main(names: str, prepared: str, labels: str, what: str = "cuts") -> None:
    """Measure."""
    torch.set_num_threads(1)
    predictors = [
        Predictor(checkpoint.load(name), precision="float32")
        for name in names.split(",")
    ]
    table = PreparedTable(prepared)
    if what == "cuts":
        print_cuts(predictors, table, labels)
        return
    rows, _, good = test_rows(table, labels, predictors[0].model)
    print(f"{good.sum()} spectra")
    (attended if what == "lines" else speed)(predictors[0], table, rows[good])


if __name__ == "__main__":
    main(*sys.argv[1:])
