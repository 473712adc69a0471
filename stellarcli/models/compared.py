"""The networks that RDN's paper compares with, in one dimension.

All take what `rdn` takes, both arms one behind the other, and give a mean and a
variance per label. The paper trains them on the same spectra and says no more about
them.

ResNet
    He et al. 2016 (arXiv:1512.03385), figure 3 with 18 layers: 7-pixel convolution and
    pooling, four stages of two basic blocks with batch normalisation.
DenseNet
    Huang et al. 2017 (arXiv:1608.06993), with bottlenecks and compression (-BC): dense
    blocks of normalised 1×1 and 3-pixel convolutions, transitions that halve channels
    and length.
StarNet
    Fabbro et al. 2018 (arXiv:1709.09182), figure 1: two convolutions with 4 and 16
    filters of 8 pixels, max pooling over 4, fully connected layers of 256 and 128.

The first two end in an average over everything where they classify photographs; here
they keep `places`, since the place of a line is what it means, and RDN's fully
connected layers follow.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from stellarcli.models.rdn import channels_of, fully_connected, predicted


def convolution(
    inputs: int, outputs: int, kernel: int = 3, stride: int = 1
) -> nn.Conv2d:
    """Convolution along the spectrum, without bias: a normalisation follows."""
    return nn.Conv2d(
        inputs,
        outputs,
        (1, kernel),
        (1, stride),
        padding=(0, kernel // 2),
        bias=False,
    )


def stem(channels: int, width: int, stride: int) -> list[nn.Module]:
    """First convolution and pooling, which together shorten by twice the stride."""
    return [
        convolution(channels, width, 7, stride),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.MaxPool2d((1, 3), (1, 2), padding=(0, 1)),
    ]


class Baseline(nn.Module):
    """A trunk on the whole spectrum and fully connected layers."""

    def __init__(
        self, trunk: nn.Sequential, head: nn.Sequential, noise: bool, level: float
    ):
        super().__init__()
        self.trunk, self.head = trunk, head
        self.noise, self.level = noise, level
        self.to(memory_format=torch.channels_last)

    def forward_features(self, flux: Tensor, ivar: Tensor) -> Tensor:
        """(spectrum, pixel) to features (spectrum, feature)."""
        x = channels_of(flux, ivar, self.noise, self.level).unsqueeze(2)
        x = x.contiguous(memory_format=torch.channels_last)
        return self.trunk(x.to(self.trunk[0].weight.dtype)).flatten(1)

    def forward(self, flux: Tensor, ivar: Tensor) -> tuple[Tensor, Tensor]:
        """Predict labels; as `stellarcli.models.rdn.RDN.forward`."""
        return predicted(self.head, self.forward_features(flux, ivar))


class BasicBlock(nn.Module):
    """Two normalised convolutions around a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.layers = nn.Sequential(
            convolution(inputs, outputs, stride=stride),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            convolution(outputs, outputs),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                convolution(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(spectrum, input, 1, position) to (spectrum, output, 1, position/stride)."""
        return functional.relu(self.layers(x) + self.shortcut(x))


class ResNet(Baseline):
    """Residual network of basic blocks.

    Parameters
    ----------
    pixels, labels : int
    widths : sequence of int
        Channels of the stages; each but the first halves the length.
    blocks : int
        Of a stage.
    stride : int
        Step of the first convolution.
    places : int
        Positions that the pooling leaves.
    hidden, noise, level, dropout
        As in `stellarcli.models.rdn.RDN`.
    """

    def __init__(
        self,
        pixels: int,
        labels: int,
        *,
        widths: Sequence[int] = (16, 32, 64, 128),
        blocks: int = 2,
        stride: int = 8,
        places: int = 32,
        hidden: Sequence[int] = (128, 64),
        noise: bool = False,
        level: float = 0.5,
        dropout: float = 0.0,
    ):
        layers = stem(1 + noise, widths[0], stride)
        inputs = widths[0]
        for stage, width in enumerate(widths):
            for number in range(blocks):
                step = 2 if stage and not number else 1
                layers.append(BasicBlock(inputs, width, step))
                inputs = width
        layers.append(nn.AdaptiveAvgPool2d((1, places)))
        head = fully_connected(inputs * places, hidden, 2 * labels, dropout)
        super().__init__(nn.Sequential(*layers), head, noise, level)


class DenseLayer(nn.Module):
    """Normalised 1×1 and 3-pixel convolution, joined to its input."""

    def __init__(self, inputs: int, growth: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.ReLU(),
            convolution(inputs, 4 * growth, 1),
            nn.BatchNorm2d(4 * growth),
            nn.ReLU(),
            convolution(4 * growth, growth),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(spectrum, input, 1, position) to (spectrum, input + growth, 1, position)."""
        return torch.cat([x, self.layers(x)], dim=1)


class DenseNet(Baseline):
    """Densely connected network with bottlenecks and compression.

    Parameters
    ----------
    pixels, labels : int
    width : int
        Channels of the first convolution.
    growth : int
        Channels that a layer adds.
    layers : sequence of int
        Of the dense blocks; a transition between two halves channels and length.
    stride : int
        Step of the first convolution.
    places : int
        Positions that the pooling leaves.
    hidden, noise, level, dropout
        As in `stellarcli.models.rdn.RDN`.
    """

    def __init__(
        self,
        pixels: int,
        labels: int,
        *,
        width: int = 32,
        growth: int = 16,
        layers: Sequence[int] = (3, 4, 4),
        stride: int = 8,
        places: int = 64,
        hidden: Sequence[int] = (128, 64),
        noise: bool = False,
        level: float = 0.5,
        dropout: float = 0.0,
    ):
        modules = stem(1 + noise, width, stride)
        for block, depth in enumerate(layers):
            if block:
                modules += [
                    nn.BatchNorm2d(width),
                    nn.ReLU(),
                    convolution(width, width // 2, 1),
                    nn.AvgPool2d((1, 2)),
                ]
                width //= 2
            for _ in range(depth):
                modules.append(DenseLayer(width, growth))
                width += growth
        modules += [
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d((1, places)),
        ]
        head = fully_connected(width * places, hidden, 2 * labels, dropout)
        super().__init__(nn.Sequential(*modules), head, noise, level)


class StarNet(Baseline):
    """Two convolutions, max pooling, two hidden layers, as published.

    Parameters
    ----------
    pixels, labels : int
    filters : (int, int)
    kernel : int
        Pixels of a filter.
    pool : int
        Pixels of which the largest is kept.
    hidden, noise, level, dropout
        As in `stellarcli.models.rdn.RDN`.
    """

    def __init__(
        self,
        pixels: int,
        labels: int,
        *,
        filters: Sequence[int] = (4, 16),
        kernel: int = 8,
        pool: int = 4,
        hidden: Sequence[int] = (256, 128),
        noise: bool = False,
        level: float = 0.5,
        dropout: float = 0.0,
    ):
        first, second = filters
        trunk = nn.Sequential(
            nn.Conv2d(1 + noise, first, (1, kernel)),
            nn.ReLU(),
            nn.Conv2d(first, second, (1, kernel)),
            nn.ReLU(),
            nn.MaxPool2d((1, pool)),
        )
        positions = (pixels - 2 * (kernel - 1)) // pool
        head = fully_connected(second * positions, hidden, 2 * labels, dropout)
        super().__init__(trunk, head, noise, level)
