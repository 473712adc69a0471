"""Occlusion: `stellar explain` against one forward call per window and spectrum.

    python tests/benchmarks/explain_speed.py prepared.fits [--model default]
        [--spectra 8] [--naive 400] [--rounds 3]

"naive" is the loop that one writes down: replace a window, call the network with that
one spectrum, decode. It is timed on some pairs of a spectrum and a window, ours on all
windows of some spectra; both on one core, in processor time, so that a busy machine
counts little. The command has one such process per core. Values are compared before.
The best round counts.
"""

from __future__ import annotations

import argparse
import functools
import time

import numpy as np
import torch

from stellarcli import checkpoint, parallel
from stellarcli.explanation.occlusion import Occlusion
from stellarcli.explanation.request import Request
from stellarcli.prediction import Predictor
from stellarcli.prepared import PreparedTable


def naive(network, model, batch, pairs, inside):
    """Changes of labels by one call per pair, shape (pair, label)."""

    def values(flux, row):
        ivar = torch.from_numpy(batch.ivar[row : row + 1])
        mean = network(torch.from_numpy(flux)[None], ivar)[0][0]
        return np.array([y.decode(mean[n]) for n, y in enumerate(model.labels)])

    whole = [values(flux, row) for row, flux in enumerate(batch.flux)]
    found = []
    for row, window in pairs:
        flux = batch.flux[row].copy()
        flux[inside[window]] = 1
        found.append(values(flux, row) - whole[row])
    return np.array(found)


def best(function, rounds):
    """Processor seconds of the fastest round, and its result."""
    times = []
    for _ in range(rounds):
        start = time.process_time()
        result = function()
        times.append(time.process_time() - start)
    return min(times), result


@torch.inference_mode()
def measure(options):
    model = checkpoint.load(options.model)
    batch = PreparedTable(options.table).batch(slice(0, options.spectra))
    explainers = {
        name: Occlusion(Predictor(model, "cpu", name), Request())
        for name in ("float32", "auto")
    }
    seen, inside = explainers["auto"].seen, explainers["auto"].inside
    random = np.random.default_rng(0)
    rows = random.integers(0, len(batch), options.naive)
    windows = random.choice(seen, options.naive)
    pairs = list(zip(rows, windows, strict=True))
    (network,) = model.networks()
    loop = functools.partial(naive, network, model, batch, pairs, inside)
    seconds, truth = best(loop, options.rounds)
    rates = {"naive": len(pairs) / seconds}
    for name, explainer in explainers.items():
        seconds, ours = best(functools.partial(explainer, batch), options.rounds)
        rates[name] = len(batch) * len(seen) / seconds
        moved = np.abs(ours[rows, windows] - truth).max(axis=0)
        print(name, "differs by at most", moved / np.abs(ours).max(axis=(0, 1)))
    return rates


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table")
    parser.add_argument("--model", default="default")
    parser.add_argument("--spectra", type=int, default=8)
    parser.add_argument("--naive", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    parallel.keep_freed_memory()
    rates = measure(options)
    for name, rate in rates.items():
        print(f"{name:8} {rate:8.1f} /s  {rate / rates['naive']:.1f} x")


if __name__ == "__main__":
    main()
