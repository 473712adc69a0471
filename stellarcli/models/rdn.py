"""RDN: residual dense blocks on the two arms of a medium-resolution spectrum.

Chen, Wu & Zhang, "Parameter Estimation Model for Stellar Spectral Data based on RDN",
section 3, after Zhang et al. 2018 (arXiv:1802.08797): shallow features by two
convolutions; residual dense blocks; their outputs fused; average pooling; three fully
connected layers to a mean and a variance per label. Each arm has a branch of its own,
the fully connected layers see both.

Where the paper is silent: 32 channels and a growth rate of 16; the two first
convolutions have steps of 8 pixels and 2, since seven of the recipe's pixels are one
element of the instrument's resolution; the pooling leaves 64 places per arm, because a
mean over the whole arm couldn't tell lines apart; ReLU follows both convolutions of a
unit. Average pooling is linear, so the shallow features join before it rather than
after.

Convolutions are two-dimensional with height one, as in `resnet1d`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

UNITS = 3  # residual dense units of a block (figure 3)
NOISE_CAP = 1.0  # noise of a masked pixel, relative to the arm's range


def channels_of(flux: Tensor, ivar: Tensor, noise: bool, level: float = 0.5) -> Tensor:
    """Return what networks see of spectra, (spectrum, channel, pixel).

    Flux counts from `level`: 0.5 where it is min–max scaled, 1 where it is divided by a
    continuum. With `noise` a second channel is the logarithm of the noise, which is 0
    where a pixel is masked or its arm missing, and negative elsewhere.
    """
    if not noise:
        return flux.unsqueeze(1) - level
    sigma = torch.rsqrt(ivar.clamp_min(1e-12)).clamp_max(NOISE_CAP)
    return torch.stack([(flux - level) * 4, sigma.log() * 0.5], dim=1)


def convolution(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """Convolution along the spectrum; without a step it keeps the length."""
    return nn.Conv2d(
        inputs, outputs, (1, kernel), (1, stride), padding=(0, kernel // 2)
    )


class DenseUnit(nn.Module):
    """1×1 and 3×3 convolution, each with ReLU, on all that came before."""

    def __init__(self, inputs: int, growth: int):
        super().__init__()
        self.mix = convolution(inputs, growth, 1)
        self.convolve = convolution(growth, growth, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(spectrum, input, 1, position) to (spectrum, growth, 1, position)."""
        return functional.relu(self.convolve(functional.relu(self.mix(x))))


class Block(nn.Module):
    """Residual dense block (figure 3).

    Every unit sees the previous block's output and the units before it; a 1×1
    convolution reduces all of it, and the previous block's output is added.
    """

    def __init__(self, width: int, growth: int):
        super().__init__()
        self.units = nn.ModuleList(
            DenseUnit(width + n * growth, growth) for n in range(UNITS)
        )
        self.reduce = convolution(width + UNITS * growth, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(spectrum, width, 1, position) to the same."""
        seen = x
        for unit in self.units:
            seen = torch.cat([seen, unit(seen)], dim=1)
        return x + self.reduce(seen)


class Branch(nn.Module):
    """One arm: shallow features, blocks, their fusion, the global residual, pooling."""

    def __init__(
        self,
        channels: int,
        *,
        width: int,
        growth: int,
        blocks: int,
        strides: Sequence[int],
        places: int,
    ):
        super().__init__()
        first, second = strides
        self.shallow = nn.Sequential(
            convolution(channels, width, 2 * first + 1, first),
            nn.ReLU(),
            convolution(width, width, 3, second),
        )
        self.blocks = nn.ModuleList(Block(width, growth) for _ in range(blocks))
        self.fuse_blocks = convolution(blocks * width, width, 1)
        self.convolve = convolution(width, width, 3)
        self.pool = nn.AdaptiveAvgPool2d((1, places))

    def forward(self, x: Tensor) -> Tensor:
        """(spectrum, channel, 1, pixel) to (spectrum, width, 1, place)."""
        shallow = self.shallow(x)
        outputs = []
        x = shallow
        for block in self.blocks:
            x = block(x)
            outputs.append(x)
        fused = self.convolve(self.fuse_blocks(torch.cat(outputs, dim=1)))
        return self.pool(shallow + fused)


def fully_connected(
    inputs: int, hidden: Sequence[int], outputs: int, dropout: float
) -> nn.Sequential:
    """Fully connected layers with ReLU and dropout between them."""
    layers: list[nn.Module] = []
    for size in hidden:
        layers += [nn.Linear(inputs, size), nn.ReLU(), nn.Dropout(dropout)]
        inputs = size
    return nn.Sequential(*layers, nn.Linear(inputs, outputs))


def predicted(head: nn.Module, features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log variance from features, in all digits."""
    # the meta device, on which multiply-adds are counted, knows no autocast
    device = "cpu" if features.is_meta else features.device.type
    with torch.autocast(device, enabled=False):
        mean, log_variance = head(features.float()).chunk(2, dim=1)
    return mean, log_variance.clamp(-12, 6)


class RDN(nn.Module):
    """Spectrum of several arms to labels with variances.

    Parameters
    ----------
    pixels : int
        Of all arms together, min–max scaled; the same number in each.
    labels : int
    blocks : int
        Residual dense blocks, n in the paper's table 2.
    width : int
        Channels of the features.
    growth : int
        Channels that a residual dense unit adds.
    arms : int
    strides : (int, int)
        Steps of the two first convolutions.
    places : int
        Positions per arm that the pooling leaves.
    hidden : (int, int)
        Units of the first two fully connected layers.
    noise : bool
        Show the network the spectrum's noise, too. The paper's sees the flux alone.
    level : float
        Flux that counts as 0, see `channels_of`.
    dropout : float
        After the first two fully connected layers; the paper trains without.
    """

    def __init__(
        self,
        pixels: int,
        labels: int,
        *,
        blocks: int = 3,
        width: int = 32,
        growth: int = 16,
        arms: int = 2,
        strides: Sequence[int] = (8, 2),
        places: int = 64,
        hidden: Sequence[int] = (128, 64),
        noise: bool = False,
        level: float = 0.5,
        dropout: float = 0.0,
    ):
        super().__init__()
        if pixels % arms:
            raise ValueError(
                f"{pixels} pixels are not {arms} arms of equal length; the recipe "
                "'rdn' makes two, network option arms=1 takes a single one"
            )
        if blocks < 1 or len(strides) != 2 or len(hidden) != 2:
            raise ValueError(
                "blocks must be 1 or more; strides and hidden are two numbers each, "
                f"not {blocks}, {list(strides)} and {list(hidden)}"
            )
        self.arms, self.noise, self.level = arms, noise, level
        self.trunk = nn.ModuleList(
            Branch(
                1 + noise,
                width=width,
                growth=growth,
                blocks=blocks,
                strides=strides,
                places=places,
            )
            for _ in range(arms)
        )
        self.head = fully_connected(arms * width * places, hidden, 2 * labels, dropout)
        self.to(memory_format=torch.channels_last)

    def forward_features(self, flux: Tensor, ivar: Tensor) -> Tensor:
        """(spectrum, pixel) to features (spectrum, feature)."""
        x = channels_of(flux, ivar, self.noise, self.level).unsqueeze(2)
        x = x.to(self.trunk[0].convolve.weight.dtype)
        # (spectrum, channel, 1, pixel) to one such per arm
        pieces = x.chunk(self.arms, dim=3)
        outputs = [
            branch(piece.contiguous(memory_format=torch.channels_last))
            for branch, piece in zip(self.trunk, pieces, strict=True)
        ]
        return torch.cat(outputs, dim=3).flatten(1)

    def forward(self, flux: Tensor, ivar: Tensor) -> tuple[Tensor, Tensor]:
        """Predict labels.

        Parameters
        ----------
        flux, ivar : Tensor, shape (spectrum, pixel)
            Flux scaled to 0 … 1 in each arm, and its inverse variance.

        Returns
        -------
        mean, log_variance : Tensor, shape (spectrum, label)
            In model units.
        """
        return predicted(self.head, self.forward_features(flux, ivar))
