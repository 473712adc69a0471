"""Deep residual network for MK subtypes.

After Wang et al. 2021 (Spectroscopy and Spectral Analysis 41, 1602): 25 convolutions in
one dimension, twelve residual blocks, one max pooling, one average pooling, one fully
connected layer, GELU, no normalisation. The text leaves out widths and strides; with
those below, kernel 5 makes 25.2 million parameters, and the recipe's 3738 pixels go
through 1866, 622, 311, 104, 35, 12, 4 and 2 positions to one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from stellarcli.models.resnet1d import NOISE_CAP

WIDTHS = (32, 64, 128, 256, 512, 1024)  # channels of the stages
STRIDES = (2, 3, 3, 3, 3, 3)  # of their first blocks
DEPTH = 2  # blocks of a stage
STEM_KERNEL, STEM_STRIDE, POOL = 7, 2, 3


class Block(nn.Module):
    """Two convolutions beside a shortcut: 1x1 where the shape changes."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int):
        super().__init__()
        half = kernel // 2
        self.first = nn.Conv1d(inputs, outputs, kernel, stride, half)
        self.second = nn.Conv1d(outputs, outputs, kernel, padding=half)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Conv1d(inputs, outputs, 1, stride)
        # without normalisation the initial weights keep the scale of the signal, and
        # all residuals together add about as much as the shortcuts carry
        for layer in self.modules():
            if isinstance(layer, nn.Conv1d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        with torch.no_grad():
            self.second.weight *= (DEPTH * len(WIDTHS)) ** -0.5

    def forward(self, x: Tensor) -> Tensor:
        """(spectrum, channel, position) to (spectrum, outputs, position / stride)."""
        residual = self.second(functional.gelu(self.first(x)))
        return functional.gelu(self.shortcut(x) + residual)


class MKResNet(nn.Module):
    """Spectrum to labels, in the paper a spectral type alone.

    Parameters
    ----------
    pixels : int
        Pixels of a spectrum.
    labels : int
    kernel : int
        Width of the blocks' convolutions, odd; the paper compares 3, 5, 7 and 9.
    width : float
        Factor on all channels; 1 is the paper's network.
    noise : bool
        Take the noise as a second input channel. The paper's network sees flux alone.
    uncertainty : bool
        Predict a variance per label. Without it, as in the paper, the logarithm of the
        variance is 0 and the last layer has no weights for it.
    dropout : float
        Before the last layer.
    """

    def __init__(
        self,
        pixels: int,
        labels: int,
        *,
        kernel: int = 5,
        width: float = 1.0,
        noise: bool = False,
        uncertainty: bool = False,
        dropout: float = 0.0,
    ):
        super().__init__()
        if kernel < 1 or kernel % 2 == 0:
            raise ValueError(f"kernel must be odd, not {kernel}")
        if width <= 0:
            raise ValueError(f"width must be positive, not {width}")
        if pixels < STEM_KERNEL + STEM_STRIDE * (POOL - 1):
            raise ValueError(f"{pixels} pixels are too few")
        widths = [max(1, round(channels * width)) for channels in WIDTHS]
        stem = nn.Conv1d(2 if noise else 1, widths[0], STEM_KERNEL, STEM_STRIDE)
        nn.init.kaiming_normal_(stem.weight, nonlinearity="relu")
        layers = [nn.Sequential(stem, nn.GELU(), nn.MaxPool1d(POOL))]
        before = widths[0]
        for channels, stride in zip(widths, STRIDES, strict=True):
            first = Block(before, channels, kernel, stride)
            rest = [Block(channels, channels, kernel, 1) for _ in range(DEPTH - 1)]
            layers.append(nn.Sequential(first, *rest))
            before = channels
        self.noise, self.uncertainty = noise, uncertainty
        self.trunk = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool1d(1)  # the two positions that the paper has left
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(before, labels * (2 if uncertainty else 1))

    def stages(self) -> dict[str, nn.Module]:
        """Return the parts whose output is (spectrum, channel, position), finest first.

        Returns
        -------
        dict of nn.Module
            ``stem``, then ``stage1`` to ``stage6``.
        """
        names = ["stem", *(f"stage{n}" for n in range(1, len(self.trunk)))]
        return dict(zip(names, self.trunk, strict=True))

    def forward_features(self, flux: Tensor, ivar: Tensor) -> Tensor:
        """(spectrum, pixel) to features (spectrum, channel)."""
        # flux about its continuum, in units of a typical line depth
        x = ((flux - 1) * 5).unsqueeze(1)  # (spectrum, 1, pixel)
        if self.noise:
            noise = torch.rsqrt(ivar.clamp_min(1e-12)).clamp_max(NOISE_CAP)
            # compressed, so that S/N 10 and 1000 are both told apart
            x = torch.cat([x, (noise.log() * 0.5 + 1.5).unsqueeze(1)], dim=1)
        x = self.trunk(x.to(self.trunk[0][0].weight.dtype))
        return self.pool(x).flatten(1).to(self.head.weight.dtype)

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
        features = self.dropout(self.forward_features(flux, ivar))
        # a few values decide about a label: these need all digits
        device = "cpu" if features.is_meta else features.device.type
        with torch.autocast(device, enabled=False):
            values = self.head(features.float())
            if not self.uncertainty:
                return values, torch.zeros_like(values)
            mean, log_variance = values.chunk(2, dim=1)
            return mean, log_variance.clamp(-12, 6)
