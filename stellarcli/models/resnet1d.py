"""A light residual network for spectra: the shipped model's architecture.

Pre-activation residual blocks (He et al. 2016, arXiv:1603.05027) without batch
statistics: each block starts as the identity through a scale that is learnt from zero
(SkipInit: De & Smith 2020, arXiv:2002.10444). One spectrum's result therefore never
depends on its neighbours in a batch. Convolutions are two-dimensional with height one,
channels last: CPU kernels run them up to twice as fast as one-dimensional ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

NOISE_CAP = 1.0  # noise of a masked pixel, relative to the continuum


class Block(nn.Module):
    """Two convolutions around a shortcut, scaled from zero."""

    def __init__(self, channels: int, kernel: int, drop: float):
        super().__init__()
        padding = (0, kernel // 2)
        self.first = nn.Conv2d(channels, channels, (1, kernel), padding=padding)
        self.second = nn.Conv2d(channels, channels, (1, kernel), padding=padding)
        self.scale = nn.Parameter(torch.zeros(()))
        self.drop = drop

    def forward(self, x: Tensor) -> Tensor:
        """(spectrum, channel, 1, position) to the same."""
        residual = self.second(functional.relu_(self.first(functional.relu(x))))
        if self.training and self.drop:
            keep = torch.rand(len(x), 1, 1, 1, device=x.device) >= self.drop
            residual = residual * keep / (1 - self.drop)
        if self.scale is not None:
            residual = self.scale * residual
        return residual.add_(x)

    @torch.no_grad()
    def fuse(self) -> None:
        """Take the scale into the second convolution."""
        self.second.weight *= self.scale
        self.second.bias *= self.scale
        self.scale = None


class ResNet1D(nn.Module):
    """Spectrum and its noise to labels with variances.

    Parameters
    ----------
    pixels : int
        Pixels of a spectrum, divisible by ``stem * 2**(len(widths) - 1)``.
    labels : int
    widths : sequence of int
        Channels of the stages; each stage halves the length.
    blocks : sequence of int
        Residual blocks of the stages.
    kernel : int
        Width of the convolutions, odd.
    stem : int
        Stride of the first convolution, which is twice as wide.
    hidden : int
        Units of the fully connected layer.
    drop_path : float
        Probability that a block is skipped in training (Huang et al. 2016).
    dropout : float
        Before the last layer.
    """

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
    ):
        super().__init__()
        factor = stem * 2 ** (len(widths) - 1)
        if len(blocks) != len(widths):
            raise ValueError(f"{len(widths)} widths but {len(blocks)} blocks")
        if pixels % factor:
            raise ValueError(
                f"{pixels} pixels are not divisible by {factor} (stem {stem}, "
                f"{len(widths)} stages); change stem or widths, or the recipe's pixels"
            )
        half = stem // 2
        layers: list[nn.Module] = [
            nn.Conv2d(2, widths[0], (1, 2 * stem), (1, stem), padding=(0, half))
        ]
        previous = widths[0]
        self.ends: list[int] = []  # of the stages, in the trunk
        for stage, (width, depth) in enumerate(zip(widths, blocks, strict=True)):
            if stage:
                layers.append(nn.Conv2d(previous, width, (1, 2), (1, 2)))
            layers += [Block(width, kernel, drop_path) for _ in range(depth)]
            self.ends.append(len(layers) - 1)
            previous = width
        layers += [nn.ReLU(), nn.Conv2d(previous, previous // 4, 1), nn.ReLU()]
        self.trunk = nn.Sequential(*layers)
        self.hidden = nn.Linear(previous // 4 * (pixels // factor), hidden)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(hidden, 2 * labels)
        self.to(memory_format=torch.channels_last)

    def fuse(self) -> None:
        """Merge what evaluation can merge; see `stellarcli.models.fused`."""
        for layer in self.trunk:
            if isinstance(layer, Block):
                layer.fuse()

    def stages(self) -> dict[str, nn.Module]:
        """Modules that give (spectrum, channel, 1, position), from fine to coarse."""
        return {f"stage{n}": self.trunk[end] for n, end in enumerate(self.ends, 1)}

    def forward_features(self, flux: Tensor, ivar: Tensor) -> Tensor:
        """(spectrum, pixel) to features (spectrum, hidden)."""
        # flux about its continuum, in units of a typical line depth; noise as a second
        # channel, compressed, so that S/N 10 and 1000 are both told apart: half the
        # logarithm of the standard deviation
        x = flux.new_empty(*flux.shape, 2)
        x[..., 0] = (flux - 1) * 4
        x[..., 1] = ivar.clamp_min(NOISE_CAP**-2).log() * -0.25 + 1.5
        x = x[:, None].permute(0, 3, 1, 2)  # (spectrum, 2, 1, pixel), channels last
        x = self.trunk(x.to(self.trunk[0].weight.dtype)).flatten(1)
        # a few values decide about a label: these need all digits
        with torch.autocast(x.device.type, enabled=False):
            return functional.relu(self.hidden(x.float()))

    def forward(self, flux: Tensor, ivar: Tensor) -> tuple[Tensor, Tensor]:
        """Predict labels.

        Parameters
        ----------
        flux, ivar : Tensor, shape (spectrum, pixel)
            Continuum-normalised flux and its inverse variance.

        Returns
        -------
        mean, log_variance : Tensor, shape (spectrum, label)
            In model units.
        """
        features = self.dropout(self.forward_features(flux, ivar))
        with torch.autocast(features.device.type, enabled=False):
            mean, log_variance = self.head(features).chunk(2, dim=1)
        return mean, log_variance.clamp(-12, 6)
