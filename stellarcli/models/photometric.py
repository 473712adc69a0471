"""Networks on images alone that SPFusion is compared with (table 2).

ResNet10-T
    He et al. 2016 (arXiv:1512.03385) with one basic block per stage, a deep stem of
    three convolutions and averaging in its shortcuts (He et al. 2019,
    arXiv:1812.01187).
ConvNeXt Pico
    Liu et al. 2022 (arXiv:2201.03545) with 64 to 512 channels and 2, 2, 6, 2 blocks.
Metaformer S12
    Yu et al. 2022 (arXiv:2111.11418): pooling for a token mixer, 2, 2, 6, 2 blocks.

Two linear layers follow, as in the paper (section 4.1), which doesn't say how wide they
are. Stars without an image are shown an empty one: these networks know nothing else,
and their values mean little there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from stellarcli.models.convnext1d import ChannelNorm, Pointwise, fuse_pairs
from stellarcli.models.spectral import Output
from stellarcli.models.spfusion import BANDS, image_convolution, image_stem

SCALE = 1e-5  # of a Metaformer block's residuals at the start (its section 4.1)


class Photometric(nn.Module):
    """Trunk to a map of features, its mean, two linear layers.

    Parameters
    ----------
    trunk : Module
        (star, band, row, column) to (star, channel, row, column).
    channels : int
        Of its result.
    hidden : int
        Units between the linear layers.
    labels : int
    uncertainty : bool
    """

    inputs = ("flux", "ivar", "images")  # the first two as every network is fed
    sees_spectrum = False

    def __init__(
        self,
        trunk: nn.Module,
        channels: int,
        hidden: int,
        labels: int,
        uncertainty: bool,
    ):
        super().__init__()
        self.trunk = trunk
        self.head = Output(channels, (hidden,), labels, uncertainty)
        self.to(memory_format=torch.channels_last)

    def forward(
        self, flux: Tensor, ivar: Tensor, images: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Predict labels.

        Parameters
        ----------
        flux, ivar : Tensor, shape (star, pixel)
            Not looked at.
        images : Tensor, shape (star, band, row, column)
            Each band scaled to 0 … 1; NaN counts as 0.

        Returns
        -------
        mean, log_variance : Tensor, shape (star, label)
            In model units.
        """
        x = images.nan_to_num().to(next(self.trunk.parameters()).dtype)
        x = self.trunk(x.contiguous(memory_format=torch.channels_last))
        return self.head(x.float().mean((2, 3)))

    def fuse(self) -> Photometric:
        """Prepare for inference; the outputs stay the same but for rounding."""
        fuse_pairs(self)
        return self


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions; the shortcut averages where the side is halved."""

    def __init__(self, inputs: int, outputs: int, step: int):
        super().__init__()
        self.first = image_convolution(inputs, outputs, step)
        self.first_norm = nn.BatchNorm2d(outputs)
        self.second = image_convolution(outputs, outputs)
        self.second_norm = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs or step != 1:
            self.shortcut = nn.Sequential(
                nn.AvgPool2d(step, ceil_mode=True),
                nn.Conv2d(inputs, outputs, 1, bias=False),
                nn.BatchNorm2d(outputs),
            )

    def forward(self, x: Tensor) -> Tensor:
        """(star, input, row, column) to (star, output, row / step, column / step)."""
        y = functional.relu(self.first_norm(self.first(x)), inplace=True)
        return functional.relu(self.second_norm(self.second(y)) + self.shortcut(x))


class ResNet10T(Photometric):
    """Residual network of four basic blocks.

    Parameters
    ----------
    pixels, labels : int
        The spectrum isn't looked at.
    stem : sequence of int
        Channels of the first convolutions.
    widths : sequence of int
        Channels of the blocks.
    hidden : int
        Units between the linear layers.
    uncertainty : bool
        Predict a variance per label.
    """

    def __init__(
        self,
        pixels: int,
        labels: int,
        *,
        stem: Sequence[int] = (24, 32, 64),
        widths: Sequence[int] = (64, 128, 256, 512),
        hidden: int = 64,
        uncertainty: bool = False,
    ):
        trunk, inputs = image_stem(stem), stem[-1]
        for n, outputs in enumerate(widths):
            trunk.append(ResidualBlock(inputs, outputs, 2 if n else 1))
            inputs = outputs
        super().__init__(trunk, inputs, hidden, labels, uncertainty)


def check_stages(widths: Sequence[int], depths: Sequence[int]) -> None:
    """Raise `ValueError` unless each stage has channels and blocks."""
    if len(widths) != len(depths) or min(*widths, *depths) < 1:
        raise ValueError(
            f"widths and depths are those of the stages, not {list(widths)} and "
            f"{list(depths)}"
        )


def stages(
    widths: Sequence[int],
    depths: Sequence[int],
    down: Callable[[int, int], list[nn.Module]],
    block: Callable[[int], nn.Module],
) -> list[nn.Module]:
    """Return the layers behind a stem: blocks, and steps down between the stages.

    Parameters
    ----------
    widths, depths : sequence of int
        Channels and blocks of the stages.
    down : callable
        Layers from the channels of one stage to those of the next.
    block : callable
        Block of so many channels.
    """
    layers: list[nn.Module] = []
    for n, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        if n:
            layers += down(widths[n - 1], width)
        layers += [block(width) for _ in range(depth)]
    return layers


class ConvNeXtBlock(nn.Module):
    """Depthwise 7×7 convolution and pointwise layers around a shortcut."""

    def __init__(self, channels: int):
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.pointwise = Pointwise(channels, 4 * channels)
        self.scale = nn.Parameter(torch.full((channels, 1, 1), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        """(star, channel, row, column) to the same."""
        return x + self.scale * self.pointwise(self.depthwise(x))


class ConvNeXtPico(Photometric):
    """ConvNeXt of the second smallest kind.

    Parameters
    ----------
    pixels, labels : int
        The spectrum isn't looked at.
    widths, depths : sequence of int
        Channels and blocks of the stages.
    hidden : int
        Units between the linear layers.
    uncertainty : bool
        Predict a variance per label.
    """

    def __init__(
        self,
        pixels: int,
        labels: int,
        *,
        widths: Sequence[int] = (64, 128, 256, 512),
        depths: Sequence[int] = (2, 2, 6, 2),
        hidden: int = 64,
        uncertainty: bool = False,
    ):
        check_stages(widths, depths)
        trunk = nn.Sequential(
            nn.Conv2d(BANDS, widths[0], 4, 4),
            ChannelNorm(widths[0]),
            *stages(widths, depths, self._down, ConvNeXtBlock),
            ChannelNorm(widths[-1]),
        )
        super().__init__(trunk, widths[-1], hidden, labels, uncertainty)

    @staticmethod
    def _down(inputs: int, outputs: int) -> list[nn.Module]:
        return [ChannelNorm(inputs), nn.Conv2d(inputs, outputs, 2, 2)]


class MetaformerBlock(nn.Module):
    """Pooling less its input, then a perceptron, each scaled and added."""

    def __init__(self, channels: int):
        super().__init__()
        self.mix_norm = nn.GroupNorm(1, channels)
        self.norm = nn.GroupNorm(1, channels)
        self.expand = nn.Conv2d(channels, 4 * channels, 1)
        self.reduce = nn.Conv2d(4 * channels, channels, 1)
        self.mix_scale = nn.Parameter(torch.full((channels, 1, 1), SCALE))
        self.scale = nn.Parameter(torch.full((channels, 1, 1), SCALE))

    def forward(self, x: Tensor) -> Tensor:
        """(star, channel, row, column) to the same."""
        y = self.mix_norm(x)
        pooled = functional.avg_pool2d(y, 3, 1, padding=1, count_include_pad=False)
        x = x + self.mix_scale * (pooled - y)
        y = self.reduce(functional.gelu(self.expand(self.norm(x))))
        return x + self.scale * y


class Metaformer(Photometric):
    """Metaformer with pooling, S12 by default.

    Parameters
    ----------
    pixels, labels : int
        The spectrum isn't looked at.
    widths, depths : sequence of int
        Channels and blocks of the stages.
    hidden : int
        Units between the linear layers.
    uncertainty : bool
        Predict a variance per label.
    """

    def __init__(
        self,
        pixels: int,
        labels: int,
        *,
        widths: Sequence[int] = (64, 128, 320, 512),
        depths: Sequence[int] = (2, 2, 6, 2),
        hidden: int = 64,
        uncertainty: bool = False,
    ):
        check_stages(widths, depths)
        trunk = nn.Sequential(
            nn.Conv2d(BANDS, widths[0], 7, 4, padding=2),
            *stages(widths, depths, self._down, MetaformerBlock),
            nn.GroupNorm(1, widths[-1]),
        )
        super().__init__(trunk, widths[-1], hidden, labels, uncertainty)

    @staticmethod
    def _down(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, 2, padding=1)]
