"""Fully connected networks: what SpectraFM's paper trains from scratch beside it.

Koblischke & Bovy 2024 (arXiv:2411.04750): 512 pixels of a short window, layers of 2048,
1280 and 1024 units, one label: 4.99 million weights. Its nonlinearity is stated
nowhere; here it is ReLU. The output has a variance beside each label.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

NOISE_CAP = 1.0  # noise of a masked pixel, relative to the continuum


class Perceptron(nn.Module):
    """Spectrum to labels with variances, by layers that see all of it.

    Parameters
    ----------
    pixels, labels : int
    hidden : sequence of int
        Units of the layers.
    noise : bool
        Show it the noise beside the flux, too.
    dropout : float
        After each of them.
    """

    def __init__(
        self,
        pixels: int,
        labels: int,
        *,
        hidden: Sequence[int] = (2048, 1280, 1024),
        noise: bool = False,
        dropout: float = 0.0,
    ):
        super().__init__()
        if not hidden or min(hidden) < 1:
            raise ValueError(f"hidden must be sizes of layers, not {list(hidden)}")
        self.noise = noise
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise((pixels * (1 + noise), *hidden)):
            layers += [nn.Linear(inputs, outputs), nn.ReLU(), nn.Dropout(dropout)]
        self.trunk = nn.Sequential(*layers)
        self.head = nn.Linear(hidden[-1], 2 * labels)

    def forward(self, flux: Tensor, ivar: Tensor) -> tuple[Tensor, Tensor]:
        """Predict labels.

        Parameters
        ----------
        flux, ivar : Tensor, shape (spectrum, pixel)
            Continuum-normalised flux, and its inverse variance, which counts with
            `noise` only.

        Returns
        -------
        mean, log_variance : Tensor, shape (spectrum, label)
            In model units.
        """
        # flux about its continuum, in units of a typical line depth
        x = (flux - 1) * 5
        if self.noise:
            sigma = torch.rsqrt(ivar.clamp_min(1e-12)).clamp_max(NOISE_CAP)
            x = torch.cat([x, sigma.log() * 0.5 + 1.5], dim=1)
        features = self.trunk(x.to(self.trunk[0].weight.dtype))
        # a few values decide about a label: these need all digits
        device = "cpu" if features.is_meta else features.device.type
        with torch.autocast(device, enabled=False):
            mean, log_variance = self.head(features.float()).chunk(2, dim=1)
        return mean, log_variance.clamp(-12, 6)
