"""A residual network beside a full-spectrum fit.

The network of `resnet1d` sees the whole spectrum and learns everything from examples; a
fit of templates knows how lines answer to labels, and errs by the templates' faults,
which are a smooth function of the labels, of the lines' widths and of what the fit
leaves of the spectrum. Their errors have little in common, so that the mean of both is
better than either.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from stellarcli.labels import Label
from stellarcli.models.regression import KernelRegression
from stellarcli.models.residuals import Residuals
from stellarcli.models.resnet1d import ResNet1D
from stellarcli.models.templatefit import Solution, TemplateFit

NOISY = 50.0  # S/N per pixel below which noise dominates a fit's error
BATCH = 256


class ResNetFit(ResNet1D):
    """Spectrum and its noise to labels with variances, by two experts.

    It can start from the weights of a `ResNet1D` and trains like one: in training, and
    until `settle`, it is one.

    Parameters
    ----------
    pixels, labels : int
        The labels have to be Teff, log g and [Fe/H].
    window : (float, float)
        Of the template fit, vacuum Å.
    degree : int
        Of the fit's polynomial for the continuum.
    outlier : float
        Robust standard deviations beyond which the fit leaves pixels out.
    components : int
        Of the fit's residuals, for the correction; 0 for none.
    tolerance : float
        Share of the largest step that a fit's second one has to exceed for a third, and
        where three are not enough, errors say so; 0: all fits take three.
    share : float
        Of the fit in the mean of both.
    **options
        Of `ResNet1D`.
    """

    # what files have that don't say
    former: ClassVar[dict[str, Any]] = {
        "outlier": 4.0,
        "components": 0,
        "tolerance": 0.0,
        "share": 0.6,
    }

    def __init__(
        self,
        pixels: int,
        labels: int,
        *,
        widths: Sequence[int] = (64, 96, 128, 192),
        blocks: Sequence[int] = (1, 1, 1, 1),
        kernel: int = 3,
        stem: int = 8,
        hidden: int = 256,
        drop_path: float = 0.0,
        dropout: float = 0.0,
        window: Sequence[float] = (4200.0, 5700.0),
        degree: int = 40,
        outlier: float = 2.5,
        components: int = 30,
        tolerance: float = 0.4,
        share: float = 0.7,
    ):
        super().__init__(
            pixels,
            labels,
            widths=widths,
            blocks=blocks,
            kernel=kernel,
            stem=stem,
            hidden=hidden,
            drop_path=drop_path,
            dropout=dropout,
        )
        self.share = share
        self.fit = TemplateFit(pixels, window, degree, outlier, tolerance=tolerance)
        if components:
            self.residuals = Residuals(components)
        self.correction = KernelRegression(labels + 1, labels, components)

    def prepare(self, wavelength: np.ndarray, labels: list[Label]) -> None:
        """Make the templates for a recipe's wavelengths and a model's labels."""
        self.fit.prepare(wavelength, labels)

    @torch.no_grad()
    def settle(self, flux: Tensor, ivar: Tensor, truth: Tensor) -> None:
        """Learn the fit's systematic errors from training rows, network at hand.

        Parameters
        ----------
        flux, ivar : Tensor, shape (spectrum, pixel)
        truth : Tensor, shape (spectrum, label)
            Model units, NaN where unknown.
        """
        self.eval()
        pieces = []
        for some in zip(flux.split(BATCH), ivar.split(BATCH), strict=True):
            start, _ = super().forward(*some)
            pieces.append(self.fit(*some, start))
        found = Solution(*map(torch.cat, zip(*pieces, strict=True)))
        if hasattr(self, "residuals"):
            self.residuals.solve(found.residual, found.weight)
        good = (ivar > 0).sum(dim=1).clamp_min(1)
        noise = good / ivar.sqrt().sum(dim=1).clamp_min(1e-6)
        variance = 1 + (NOISY * noise).square().clamp_max(1e6)
        self.correction.solve(self._inputs(found), truth - found.labels, variance)

    def _inputs(self, found: Solution) -> Tensor:
        """Return what the fit's faults depend on, (spectrum, input)."""
        inputs = [found.labels, found.broadening]
        if hasattr(self, "residuals"):
            inputs.append(self.residuals(found.residual, found.weight))
        return torch.cat(inputs, dim=1)

    def forward(self, flux: Tensor, ivar: Tensor) -> tuple[Tensor, Tensor]:
        """Predict labels.

        Parameters
        ----------
        flux, ivar : Tensor, shape (spectrum, pixel)
            Continuum-normalised flux and its inverse variance.

        Returns
        -------
        mean, log_variance : Tensor, shape (spectrum, label)
            In model units; of the network alone until `settle`.
        """
        mean, log_variance = super().forward(flux, ivar)
        if self.training or not self.correction.solved:
            return mean, log_variance
        with torch.autocast(mean.device.type, enabled=False):
            found = self.fit(flux, ivar, mean)
            fitted = found.labels + self.correction(self._inputs(found))
            # that of a mixture: where the two disagree, neither is to be trusted
            spread = self.share * (1 - self.share) * (fitted - mean).square()
            if self.fit.tolerance:
                # a fit that is still on its way may end anywhere, where no correction
                # may be known: all of that way is in doubt
                way = torch.maximum(spread, (found.labels - mean).square())
                spread = torch.where(found.converged, spread, way)
            log_variance = torch.log(log_variance.float().exp() + spread)
        return torch.lerp(mean, fitted, self.share), log_variance
