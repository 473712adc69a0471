"""ConvNeXt in one dimension: the spectral half of SPFusion, and a network of its own.

Liu et al. 2022 (arXiv:2201.03545) brought to spectra as in He et al. (SPFusion, section
3.1, and table 2's last row but one): a stem that cuts the spectrum into patches of 32
pixels; stages of three blocks with 64, 128 and 32 channels; a layer normalisation at
the end of each and a convolution of two steps between them; channel attention, one
convolution and one linear layer for a head.

Spectra are (spectrum, channel, 1, position), channels last in memory: convolutions of
height one, so that pointwise ones and layer normalisations see channels side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import fuse_conv_bn_eval

from stellarcli.models.scanet import drop_path

SQUEEZE = 16  # channels over hidden units of the channel attention


def convolution(
    inputs: int, outputs: int, kernel: int, *, groups: int = 1, bias: bool = True
) -> nn.Conv2d:
    """Convolution along the spectrum that keeps its length; `kernel` is odd."""
    padding = (0, kernel // 2)
    return nn.Conv2d(
        inputs, outputs, (1, kernel), padding=padding, groups=groups, bias=bias
    )


def in_all_digits(x: Tensor):
    """Keep autocast out of what decides about labels."""
    # the meta device, on which multiply-adds are counted, knows no autocast
    return torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False)


def along(flux: Tensor, weight: Tensor) -> Tensor:
    """(spectrum, pixel) to (spectrum, 1, 1, pixel) as a layer with that weight likes.

    Its type, channels last in memory.
    """
    x = flux.to(weight.dtype)[:, None, None]
    return x.contiguous(memory_format=torch.channels_last)


def mean_and_variance(values: Tensor, uncertainty: bool) -> tuple[Tensor, Tensor]:
    """Split what a last layer gives, (spectrum, output), into mean and log variance.

    Networks without uncertainties have a variance of 1.
    """
    if not uncertainty:
        return values, torch.zeros_like(values)
    mean, log_variance = values.chunk(2, dim=1)
    return mean, log_variance.clamp(-12, 6)


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of each position, or pixel of an image."""

    def forward(self, x: Tensor) -> Tensor:
        """(spectrum, channel, row, column) to the same; spectra are one row."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Pointwise(nn.Module):
    """Layer normalisation, then two linear layers over channels with GELU between."""

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.expand = nn.Linear(channels, hidden)
        self.reduce = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(spectrum, channel, 1, position) to the same."""
        y = self.expand(self.norm(x.permute(0, 2, 3, 1)))
        return self.reduce(functional.gelu(y)).permute(0, 3, 1, 2)


class Block(nn.Module):
    """Depthwise convolution and pointwise layers around a shortcut (ConvNeXt)."""

    def __init__(self, channels: int, kernel: int, expansion: int, drop: float):
        super().__init__()
        self.kernel, self.drop = kernel, drop
        self.depthwise = nn.Conv2d(channels, channels, (1, kernel), groups=channels)
        self.pointwise = Pointwise(channels, expansion * channels)

    def forward(self, x: Tensor) -> Tensor:
        """(spectrum, channel, 1, position) to the same."""
        before = (self.kernel - 1) // 2
        y = self.depthwise(functional.pad(x, (before, self.kernel - 1 - before)))
        return x + drop_path(self.pointwise(y), self.drop, self.training)


class Extractor(nn.Module):
    """Spectrum to features, (spectrum, pixel) to (spectrum, channel, 1, position).

    Parameters
    ----------
    widths : sequence of int
        Channels of the stages.
    blocks : int
        Of each stage.
    stem : int
        Pixels of a patch.
    kernel : int
        Positions that a depthwise convolution sees.
    expansion : int
        Hidden over outer channels of a block.
    drop : float
        Probability that a block is skipped in training.
    """

    def __init__(
        self,
        *,
        widths: Sequence[int] = (64, 128, 32),
        blocks: int = 3,
        stem: int = 32,
        kernel: int = 16,
        expansion: int = 4,
        drop: float = 0.0,
    ):
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(1, widths[0], (1, stem), (1, stem))]
        previous = widths[0]
        self.ends: list[int] = []  # of the stages
        for stage, width in enumerate(widths):
            if stage:
                layers.append(nn.Conv2d(previous, width, (1, 2), (1, 2)))
            layers += [Block(width, kernel, expansion, drop) for _ in range(blocks)]
            layers.append(ChannelNorm(width))
            self.ends.append(len(layers) - 1)
            previous = width
        self.layers = nn.Sequential(*layers)
        self.channels = previous
        self.pixels = stem * 2 ** (len(widths) - 1)  # of a position

    def positions(self, pixels: int) -> int:
        """Positions of a spectrum.

        Raises
        ------
        ValueError
            If the pixels don't divide into them.
        """
        if pixels % self.pixels or pixels < 2 * self.pixels:
            raise ValueError(
                f"{pixels} pixels don't divide into positions of {self.pixels}; the "
                "recipe 'spfusion' makes 3584, its step 'pad' any number"
            )
        return pixels // self.pixels

    def forward(self, flux: Tensor) -> Tensor:
        """(spectrum, pixel) to (spectrum, channel, 1, position)."""
        return self.layers(along(flux, self.layers[0].weight))


class ChannelAttention(nn.Module):
    """Weights of channels from their means (squeeze and excitation, Hu et al. 2018)."""

    def __init__(self, channels: int):
        super().__init__()
        self.squeeze = nn.Linear(channels, max(1, channels // SQUEEZE), bias=False)
        self.excite = nn.Linear(self.squeeze.out_features, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(spectrum, channel, 1, position) to (spectrum, channel), 0 to 1."""
        hidden = functional.relu(self.squeeze(x.mean((2, 3))))
        return torch.sigmoid(self.excite(hidden))


class Head(nn.Module):
    """Channel attention, convolution, mean over positions, labels (eq. 12).

    Parameters
    ----------
    inputs, outputs : int
        Channels before and after the convolution.
    labels : int
    uncertainty : bool
        Predict a variance per label, which the paper doesn't: its logarithm is 0.
    """

    def __init__(self, inputs: int, outputs: int, labels: int, uncertainty: bool):
        super().__init__()
        self.uncertainty = uncertainty
        self.attention = ChannelAttention(inputs)
        self.convolve = convolution(inputs, outputs, 7)
        self.norm = nn.BatchNorm2d(outputs)
        self.predict = nn.Linear(outputs, labels * (2 if uncertainty else 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(spectrum, channel, 1, position) to mean and log variance."""
        with in_all_digits(x):
            x = x.float()
            x = x * self.attention(x)[:, :, None, None]
            values = self.predict(self.norm(self.convolve(x)).mean((2, 3)))
            return mean_and_variance(values, self.uncertainty)


def fuse_pairs(network: nn.Module) -> None:
    """Put batch normalisations into the convolutions before them, in place.

    Pairs are neighbours among a module's children. Exact, in evaluation mode.

    Raises
    ------
    ValueError
        In training mode: statistics must be final.
    """
    if network.training:
        raise ValueError("fuse() needs evaluation mode: statistics must be final")
    for module in list(network.modules()):
        names = list(module._modules)
        for first, second in pairwise(names):
            left, right = module._modules[first], module._modules[second]
            if isinstance(left, nn.Conv2d) and isinstance(right, nn.BatchNorm2d):
                fused = fuse_conv_bn_eval(left, right)
                if left.weight.is_contiguous(memory_format=torch.channels_last):
                    fused = fused.to(memory_format=torch.channels_last)
                module._modules[first] = fused
                module._modules[second] = nn.Identity()


class ConvNeXt1D(nn.Module):
    """Spectrum to labels.

    Parameters
    ----------
    pixels : int
        Scaled to 0 … 1, zeros where padded.
    labels : int
    widths : sequence of int
        Channels of the stages.
    blocks : int
        Of each stage.
    kernel : int
        Positions that a depthwise convolution sees.
    drop_path : float
        Probability that a block is skipped in training (Larsson et al. 2017).
    uncertainty : bool
        Predict a variance per label.
    """

    def __init__(
        self,
        pixels: int,
        labels: int,
        *,
        widths: Sequence[int] = (64, 128, 32),
        blocks: int = 3,
        kernel: int = 16,
        drop_path: float = 0.3,
        uncertainty: bool = False,
    ):
        super().__init__()
        self.trunk = Extractor(
            widths=widths, blocks=blocks, kernel=kernel, drop=drop_path
        )
        self.trunk.positions(pixels)
        channels = self.trunk.channels
        self.head = Head(channels, channels, labels, uncertainty)
        self.to(memory_format=torch.channels_last)

    def stages(self) -> dict[str, nn.Module]:
        """Modules that give (spectrum, channel, 1, position), from fine to coarse."""
        return {
            f"stage{n}": self.trunk.layers[end]
            for n, end in enumerate(self.trunk.ends, 1)
        }

    def channel_parts(self) -> dict[str, slice]:
        """Channels that the head's attention weighs, by what they are of."""
        return {"spectral": slice(0, self.trunk.channels)}

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
        return self.head(self.trunk(flux))

    def fuse(self) -> ConvNeXt1D:
        """Prepare for inference; the outputs stay the same but for rounding."""
        fuse_pairs(self)
        return self
