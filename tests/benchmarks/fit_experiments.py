"""Compare forms of the template fit and its correction, without the fine-tuned network.

    python tests/benchmarks/fit_experiments.py WORK_DIRECTORY
    python tests/benchmarks/fit_experiments.py WORK_DIRECTORY
after train_default.sh has made lamost.fits and pretrained.safetensors there. Three-fold
by plan with three seeds, inside the plans that default.yaml's rule (test: 0.25, seed 1)
doesn't hold out, so that nothing is chosen on those. Fits start from the pre-trained
network, which has seen no label of LAMOST. Prints MAE at S/N(g) > 25, mean of the
seeds, and the difference to the first row, paired by star, with its standard error.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from stellarcli import checkpoint
from stellarcli.dataset import same_star, split_by_hash
from stellarcli.models.regression import KernelRegression
from stellarcli.models.residuals import Residuals
from stellarcli.models.resnetfit import NOISY
from stellarcli.models.templatefit import Solution, TemplateFit
from stellarcli.prepared import PreparedTable

LABELS = ("teff", "logg", "feh")
SEEDS, FOLDS = (11, 12, 13), 3
BATCH = 256
# degree of the polynomial, outlier, steps, components of the residuals
VARIANTS = (
    (40, 4.0, 3, 0),
    (40, 2.5, 3, 0),
    (40, 2.5, 3, 10),
    (40, 2.5, 3, 20),
    (40, 2.5, 3, 30),
    (40, 2.5, 3, 45),
    (40, 2.0, 3, 30),
    (40, 3.0, 3, 30),
    (40, 2.5, 4, 30),
    (34, 2.5, 3, 30),
    (46, 2.5, 3, 30),
)


class Bench:
    """Spectra, labels and folds."""

    def __init__(self, work: Path):
        table = PreparedTable(str(work / "lamost.fits"))
        self.wavelength = np.array(table.wavelength)
        spectra = table.spectra(np.arange(len(table)))
        self.flux, self.ivar = (torch.from_numpy(np.array(a)) for a in spectra)
        self.plan = table.column("plan").astype(str)
        model = checkpoint.load(str(work / "pretrained.safetensors"))
        self.labels = model.labels
        self.truth = np.stack([table.column(n).astype(float) for n in LABELS], axis=1)
        encoded = [
            label.encode(self.truth[:, i]) for i, label in enumerate(self.labels)
        ]
        self.encoded = torch.from_numpy(np.stack(encoded, axis=1))
        snr, teff = table.column("snrg"), self.truth[:, 0]
        consistent = table.column("consistent").astype(bool)
        self.usable = consistent & (snr > 10)
        held = split_by_hash(self.plan, test=0.25, validation=0, seed=1) == "test"
        names = table.column("objid").astype(str)
        self.star = same_star(names, table.column("ra"), table.column("dec"))
        self.inner = ~held & ~np.isin(self.star, self.star[held])
        clean = consistent & table.column("clean").astype(bool)
        self.judged = (
            self.inner & clean & (snr > 25) & (teff > 3785.9) & (teff < 8399.7)
        )
        good = (self.ivar > 0).sum(dim=1).clamp_min(1)
        noise = good / self.ivar.sqrt().sum(dim=1).clamp_min(1e-6)
        self.variance = 1 + (NOISY * noise).square().clamp_max(1e6)
        (network,) = model.networks()
        with torch.no_grad():
            self.start = torch.cat([network(*some)[0] for some in self.batches()])
        self.fits: dict[tuple, Solution] = {}

    def batches(self):
        """Pairs of flux and ivar."""
        return zip(self.flux.split(BATCH), self.ivar.split(BATCH), strict=True)

    def fit(self, degree: int, outlier: float, steps: int) -> Solution:
        """Fit all spectra, once for each form."""
        form = (degree, outlier, steps)
        if form not in self.fits:
            layer = TemplateFit(
                self.flux.shape[1], (4200.0, 5700.0), degree, outlier, steps
            )
            layer.prepare(self.wavelength, self.labels)
            starts = self.start.split(BATCH)
            found = [
                layer(*some, start)
                for some, start in zip(self.batches(), starts, strict=True)
            ]
            self.fits[form] = Solution(*map(torch.cat, zip(*found, strict=True)))
        return self.fits[form]

    def errors(self, found: Solution, components: int, seed: int) -> np.ndarray:
        """Absolute errors of all spectra by models that saw nothing of their plans."""
        off = np.full(self.truth.shape, np.nan)
        for fold in range(FOLDS):
            part = split_by_hash(
                self.plan, test=0, validation=0, folds=FOLDS, fold=fold, seed=seed
            )
            test = self.inner & (part == "test")
            train = self.inner & (part != "test") & self.usable
            train &= ~np.isin(self.star, self.star[test])
            inputs = torch.cat([found.labels, found.broadening], dim=1)
            if components:
                layer = Residuals(components)
                layer.solve(found.residual[train], found.weight[train])
                latent = layer(found.residual, found.weight)
                inputs = torch.cat([inputs, latent], dim=1)
            correction = KernelRegression(4, 3, components)
            wanted = self.encoded[train] - found.labels[train]
            correction.solve(inputs[train], wanted, self.variance[train])
            values = (found.labels[test] + correction(inputs[test])).numpy()
            for i, label in enumerate(self.labels):
                off[test, i] = label.decode(values[:, i]) - self.truth[test, i]
        return np.abs(off)


def main(work: Path) -> None:
    """Print a row per form."""
    bench = Bench(work)
    first = None
    for degree, outlier, steps, components in VARIANTS:
        found = bench.fit(degree, outlier, steps)
        errors = [bench.errors(found, components, seed) for seed in SEEDS]
        errors = np.mean(errors, axis=0)[bench.judged]
        first = errors if first is None else first
        change = errors - first
        spread = change.std(axis=0) / np.sqrt(len(change))
        print(
            f"| {degree} | {outlier:g} | {steps} | {components} | "
            + " / ".join(f"{value:.4g}" for value in errors.mean(axis=0))
            + " | "
            + " / ".join(
                f"{m:+.3g} ± {s:.2g}"
                for m, s in zip(change.mean(axis=0), spread, strict=True)
            )
            + " |",
            flush=True,
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
