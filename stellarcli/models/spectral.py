"""The other networks on spectra that SPFusion is compared with (table 2).

SSCNN
    Liu et al. 2019 (MNRAS 483, 4774): a shallow stack of convolutions and poolings,
    then fully connected layers.
RAC-Net
    Zou et al. 2020 (PASP 132, 044503): residual convolutions with attention to bands
    and to features of the spectrum.

SPFusion's paper searched for their sizes and prints 0.75 and 0.76 million parameters
alone; the sizes here come to that. Both see a spectrum scaled to 0 … 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from stellarcli.models.convnext1d import (
    ChannelAttention,
    along,
    convolution,
    fuse_pairs,
    in_all_digits,
    mean_and_variance,
)


class Output(nn.Module):
    """Fully connected layers to labels, with or without a variance of each."""

    def __init__(
        self, inputs: int, hidden: Sequence[int], labels: int, uncertainty: bool
    ):
        super().__init__()
        self.uncertainty = uncertainty
        layers: list[nn.Module] = []
        for size in hidden:
            layers += [nn.Linear(inputs, size), nn.ReLU()]
            inputs = size
        outputs = labels * (2 if uncertainty else 1)
        self.layers = nn.Sequential(*layers, nn.Linear(inputs, outputs))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(spectrum, feature) to mean and log variance."""
        with in_all_digits(features):
            return mean_and_variance(self.layers(features.float()), self.uncertainty)


class SSCNN(nn.Module):
    """Convolutions and poolings, one behind the other.

    Parameters
    ----------
    pixels, labels : int
    filters : sequence of int
        Channels of the convolutions.
    kernel : int
        Pixels that each sees, odd.
    pool : int
        Pixels of which the largest is kept, after each.
    hidden : int
        Units between the fully connected layers.
    uncertainty : bool
        Predict a variance per label.
    """

    def __init__(
        self,
        pixels: int,
        labels: int,
        *,
        filters: Sequence[int] = (8, 16, 32),
        kernel: int = 7,
        pool: int = 4,
        hidden: int = 416,
        uncertainty: bool = False,
    ):
        super().__init__()
        layers: list[nn.Module] = []
        inputs, length = 1, pixels
        for outputs in filters:
            layers += [
                convolution(inputs, outputs, kernel),
                nn.ReLU(),
                nn.MaxPool2d((1, pool)),
            ]
            inputs, length = outputs, length // pool
        if not length:
            raise ValueError(
                f"{pixels} pixels are too few for {len(filters)} poolings by {pool}"
            )
        self.trunk = nn.Sequential(*layers)
        self.head = Output(inputs * length, (hidden,), labels, uncertainty)
        self.to(memory_format=torch.channels_last)

    def forward(self, flux: Tensor, ivar: Tensor) -> tuple[Tensor, Tensor]:
        """Predict labels.

        Parameters
        ----------
        flux, ivar : Tensor, shape (spectrum, pixel)
            Flux scaled to 0 … 1; its inverse variance has no effect.

        Returns
        -------
        mean, log_variance : Tensor, shape (spectrum, label)
            In model units.
        """
        x = self.trunk(along(flux, self.trunk[0].weight))
        return self.head(x.flatten(1))


class Attend(nn.Module):
    """Weights of features (channels), then of bands (positions).

    The second from the mean and the maximum over channels (Woo et al. 2018,
    arXiv:1807.06521, in one dimension).
    """

    def __init__(self, channels: int):
        super().__init__()
        self.features = ChannelAttention(channels)
        self.bands = convolution(2, 1, 7)

    def forward(self, x: Tensor) -> Tensor:
        """(spectrum, channel, 1, position) to the same."""
        x = x * self.features(x)[:, :, None, None]
        seen = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], dim=1)
        return x * torch.sigmoid(self.bands(seen))


class ResidualBlock(nn.Module):
    """Normalised convolutions and attention around a shortcut; halves the length."""

    def __init__(self, inputs: int, outputs: int, kernel: int):
        super().__init__()
        self.first = convolution(inputs, outputs, kernel, bias=False)
        self.first.stride = (1, 2)
        self.first_norm = nn.BatchNorm2d(outputs)
        self.second = convolution(outputs, outputs, kernel, bias=False)
        self.second_norm = nn.BatchNorm2d(outputs)
        self.attend = Attend(outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, (1, 2), bias=False)
        self.shortcut_norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(spectrum, input, 1, position) to (spectrum, output, 1, position // 2)."""
        y = functional.relu(self.first_norm(self.first(x)))
        y = self.attend(self.second_norm(self.second(y)))
        return functional.relu(y + self.shortcut_norm(self.shortcut(x)))


class RACNet(nn.Module):
    """Residual blocks with attention.

    Parameters
    ----------
    pixels, labels : int
    widths : sequence of int
        Channels of the blocks.
    kernel : int
        Positions that a convolution sees, odd.
    stem : int
        Step of the first convolution.
    hidden : int
        Units between the fully connected layers.
    uncertainty : bool
        Predict a variance per label.
    """

    def __init__(
        self,
        pixels: int,
        labels: int,
        *,
        widths: Sequence[int] = (32, 64, 96, 160),
        kernel: int = 7,
        stem: int = 4,
        hidden: int = 216,
        uncertainty: bool = False,
    ):
        super().__init__()
        first = nn.Conv2d(1, widths[0], (1, 2 * stem + 1), (1, stem), (0, stem))
        layers = [first, nn.BatchNorm2d(widths[0]), nn.ReLU()]
        inputs = widths[0]
        for outputs in widths:
            layers.append(ResidualBlock(inputs, outputs, kernel))
            inputs = outputs
        self.trunk = nn.Sequential(*layers)
        self.places = 8
        if pixels < stem * 2 ** len(widths) * self.places:
            raise ValueError(
                f"{pixels} pixels are too few for {len(widths)} blocks; give at least "
                f"{stem * 2 ** len(widths) * self.places}, or fewer widths"
            )
        self.head = Output(inputs * self.places, (hidden,), labels, uncertainty)
        self.to(memory_format=torch.channels_last)

    def stages(self) -> dict[str, nn.Module]:
        """Modules that give (spectrum, channel, 1, position), from fine to coarse."""
        return {f"stage{n}": block for n, block in enumerate(self.trunk[3:], 1)}

    def forward(self, flux: Tensor, ivar: Tensor) -> tuple[Tensor, Tensor]:
        """Predict labels.

        Parameters
        ----------
        flux, ivar : Tensor, shape (spectrum, pixel)
            Flux scaled to 0 … 1; its inverse variance has no effect.

        Returns
        -------
        mean, log_variance : Tensor, shape (spectrum, label)
            In model units.
        """
        x = self.trunk(along(flux, self.trunk[0].weight))
        x = functional.adaptive_avg_pool2d(x, (1, self.places))
        return self.head(x.flatten(1))

    def fuse(self) -> RACNet:
        """Prepare for inference; the outputs stay the same but for rounding."""
        fuse_pairs(self)
        return self
