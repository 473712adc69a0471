"""SCA-Net: convolutions, then attention, on a spectrum folded into an image.

Zhang H. K. et al. 2026, Acta Astronomica Sinica ("SCA-Net: stellar parameters with
efficient convolution and attention"). Section 3.1: six stages. S0 is two convolutions
at full size; S1 … S4 halve the side and are MBConv (M) or Transformer (T), M before T,
which gives five variants (section 3.3); S5 fuses the maps of S1 … S4 and pools them to
one vector; two fully connected layers make labels of it.

Where the paper is silent: both convolutions of S0 are followed by batch normalisation
and GELU; maps are brought to S2's side by averaging 2x2 pixels (S1) or repeating them
(S3, S4); GELU stands between the fully connected layers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import fuse_conv_bn_eval

from stellarcli.errors import unknown

VARIANTS = ("MMMM", "MMMT", "MMTT", "MTTT", "TTTT")  # section 3.3
CONVOLUTIONS = ("mbconv", "standard")  # rows of table 2
EXPANSION = 4  # hidden over input channels, of MBConv and of the feed-forward layers
HALVINGS = 4  # S1 … S4


def scaled(size: int, width: float, multiple: int = 8) -> int:
    """Scale a number of channels, rounded to a multiple of at least one."""
    return max(multiple, round(size * width / multiple) * multiple)


def fold_order(side: int) -> Tensor:
    """Pixels in the order of the folded image: every second row runs backwards.

    The same as `stellarcli.preprocess.fold`, as indices of shape (side * side,).
    """
    rows = torch.arange(side * side).view(side, side)
    backwards = torch.arange(side)[:, None] % 2 == 1
    return torch.where(backwards, rows.flip(1), rows).flatten()


def drop_path(residual: Tensor, rate: float, training: bool) -> Tensor:
    """Skip a block for some spectra (stochastic depth, Huang et al. 2016)."""
    if not (training and rate):
        return residual
    shape = (len(residual), *[1] * (residual.dim() - 1))
    keep = torch.rand(shape, device=residual.device) >= rate
    return residual * keep / (1 - rate)


def absorb_norm(norm: nn.BatchNorm2d, conv: nn.Conv2d) -> nn.Conv2d:
    """Put a batch normalisation into the 1x1 convolution after it.

    W (s x + t) = (W s) x + W t holds at every pixel because nothing is padded; before
    a padded convolution it would not hold at the borders, where x is 0 and not -t/s.
    """
    if conv.kernel_size != (1, 1) or conv.padding != (0, 0) or conv.groups != 1:
        raise ValueError("only a plain 1x1 convolution takes in what comes before it")
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    shift = norm.bias - norm.running_mean * scale
    matrix = conv.weight[:, :, 0, 0]  # (output, input)
    bias = matrix @ shift if conv.bias is None else conv.bias + matrix @ shift
    conv.weight = nn.Parameter(conv.weight * scale[:, None, None], requires_grad=False)
    conv.bias = nn.Parameter(bias, requires_grad=False)
    return conv


# ---------------------------------------------------------------------- convolutions


class SqueezeExcitation(nn.Module):
    """Weights of the channels from their means (Hu et al. 2018; section 3.2)."""

    def __init__(self, channels: int, squeezed: int):
        super().__init__()
        self.squeeze = nn.Linear(channels, squeezed, bias=False)
        self.excite = nn.Linear(squeezed, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(spectrum, channel, row, column) to the same."""
        # what mean() gives, eight times as fast in bfloat16
        means = functional.avg_pool2d(x, x.shape[2:]).flatten(1)  # (spectrum, channel)
        weights = torch.sigmoid(self.excite(functional.gelu(self.squeeze(means))))
        return x * weights[:, :, None, None]


class ConvolutionBlock(nn.Module):
    """MBConv (section 3.2, steps 1-4), or the standard bottleneck of table 2.

    Normalise; 1x1 to four times the channels; 3x3 on each channel by itself; weigh the
    channels; 1x1 to the output; add the input. The standard block has a full 3x3 and no
    weights of channels. The first block of a stage halves the side by max pooling in
    front of both branches, and its shortcut is a 1x1 convolution.
    """

    def __init__(
        self, inputs: int, outputs: int, *, first: bool, standard: bool, drop: float
    ):
        super().__init__()
        hidden = EXPANSION * inputs
        groups = 1 if standard else hidden
        self.drop = drop
        self.pool = nn.MaxPool2d(3, 2, padding=1) if first else nn.Identity()
        self.shortcut = (
            nn.Conv2d(inputs, outputs, 1, bias=False) if first else nn.Identity()
        )
        self.norm = nn.BatchNorm2d(inputs)
        self.expand = nn.Conv2d(inputs, hidden, 1, bias=False)
        self.expand_norm = nn.BatchNorm2d(hidden)
        self.spatial = nn.Conv2d(
            hidden, hidden, 3, padding=1, groups=groups, bias=False
        )
        self.spatial_norm = nn.BatchNorm2d(hidden)
        self.weigh = (
            nn.Identity() if standard else SqueezeExcitation(hidden, inputs // 4)
        )
        self.project = nn.Conv2d(hidden, outputs, 1, bias=False)
        self.project_norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(spectrum, input, row, column) to (spectrum, output, row, column)."""
        x = self.pool(x)
        y = functional.gelu(self.expand_norm(self.expand(self.norm(x))))
        y = functional.gelu(self.spatial_norm(self.spatial(y)))
        y = self.project_norm(self.project(self.weigh(y)))
        return self.shortcut(x) + drop_path(y, self.drop, self.training)

    def fuse(self) -> None:
        """Put all four normalisations into the three convolutions."""
        expand = absorb_norm(self.norm, self.expand)
        self.expand = fuse_conv_bn_eval(expand, self.expand_norm)
        self.spatial = fuse_conv_bn_eval(self.spatial, self.spatial_norm)
        self.project = fuse_conv_bn_eval(self.project, self.project_norm)
        for name in ("norm", "expand_norm", "spatial_norm", "project_norm"):
            setattr(self, name, nn.Identity())


def padded_convolution(inputs: int, outputs: int) -> nn.Sequential:
    """3x3 convolution, batch normalisation, GELU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.GELU(),
    )


def fuse_padded(layers: nn.Sequential) -> None:
    """Put the normalisation of `padded_convolution` into its convolution."""
    layers[0] = fuse_conv_bn_eval(layers[0], layers[1])
    layers[1] = nn.Identity()


# ------------------------------------------------------------------------- attention


class Attention(nn.Module):
    """Self-attention over an image's pixels: softmax(Q Kᵀ / √d + B) V.

    Vaswani et al. 2017, equation 1; B depends on the two pixels' distance in rows and
    columns and is learnt per head, as in CoAtNet (Dai et al. 2021), which the paper
    builds on.
    """

    def __init__(self, channels: int, side: int, heads: int, head_dim: int):
        super().__init__()
        inner = heads * head_dim
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * inner, bias=False)
        self.out = nn.Linear(inner, channels)
        self.position = nn.Parameter(torch.zeros(heads, 2 * side - 1, 2 * side - 1))
        steps = torch.arange(side)
        # (from, to) along one axis, counted from 0
        distance = steps[:, None] - steps + side - 1
        self.register_buffer("distance", distance, persistent=False)
        self.register_buffer("fused_bias", None, persistent=False)

    def bias(self) -> Tensor:
        """B for every pair of pixels, shape (1, head, pixel, pixel)."""
        if self.fused_bias is not None:
            return self.fused_bias
        rows = self.distance[:, None, :, None]
        columns = self.distance[None, :, None, :]
        # (head, row, column, row, column) to (1, head, pixel, pixel); processors' fast
        # attention wants the 1
        return self.position[:, rows, columns].flatten(3).flatten(1, 2).unsqueeze(0)

    def forward(self, x: Tensor) -> Tensor:
        """(spectrum, pixel, channel) to the same."""
        # (spectrum, pixel, 3 * head * d) to three of (spectrum, head, pixel, d)
        queries, keys, values = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(x).chunk(3, dim=2)
        )
        bias = self.bias().to(queries.dtype)
        if self.training and x.device.type == "cpu":
            # the fused attention has no gradient for B there, and what torch falls
            # back on takes 1.5 times as long as the formula
            scores = queries * queries.shape[-1] ** -0.5 @ keys.transpose(2, 3)
            y = torch.softmax(scores + bias, dim=-1) @ values
        else:
            y = functional.scaled_dot_product_attention(queries, keys, values, bias)
        # (spectrum, head, pixel, d) to (spectrum, pixel, head * d)
        return self.out(y.transpose(1, 2).flatten(2))

    def fuse(self) -> None:
        """Spread B over all pairs of pixels once and for all."""
        self.fused_bias = self.bias().detach()


class TransformerBlock(nn.Module):
    """Attention and a feed-forward layer, each normalised before and added."""

    def __init__(
        self, channels: int, side: int, *, heads: int, head_dim: int, drop: float
    ):
        super().__init__()
        self.drop = drop
        self.attention_norm = nn.LayerNorm(channels)
        self.attention = Attention(channels, side, heads, head_dim)
        self.forward_norm = nn.LayerNorm(channels)
        self.feed_forward = nn.Sequential(
            nn.Linear(channels, EXPANSION * channels),
            nn.GELU(),
            nn.Linear(EXPANSION * channels, channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(spectrum, pixel, channel) to the same."""
        y = self.attention(self.attention_norm(x))
        x = x + drop_path(y, self.drop, self.training)
        y = self.feed_forward(self.forward_norm(x))
        return x + drop_path(y, self.drop, self.training)


class TransformerStage(nn.Module):
    """Halve the side, set the channels, then blocks on a sequence of pixels."""

    def __init__(self, inputs: int, outputs: int, blocks: Sequence[TransformerBlock]):
        super().__init__()
        self.pool = nn.AvgPool2d(2)
        # averages and 1x1 convolutions may swap places: here the convolution has a
        # quarter of the pixels
        self.embed = (
            nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        )
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        """(spectrum, input, row, column) to (spectrum, output, row/2, column/2)."""
        x = self.embed(self.pool(x))
        rows = x.shape[2]
        # both ways without a copy: channels are last in memory
        x = x.flatten(2).transpose(1, 2)  # (spectrum, pixel, channel)
        x = self.blocks(x)
        return x.transpose(1, 2).unflatten(2, (rows, -1))


# --------------------------------------------------------------------------- network


class Fusion(nn.Module):
    """Multi-scale feature fusion (S5, figure 5), up to its 3x3 convolution.

    The maps of S1 … S4 get equally many channels and S2's side, are joined and
    convolved.
    """

    def __init__(self, widths: Sequence[int], channels: int):
        super().__init__()
        self.lateral = nn.ModuleList(
            nn.Conv2d(width, channels, 1, bias=False) for width in widths
        )
        joined = channels * len(widths)
        self.join = padded_convolution(joined, joined)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Join maps to (spectrum, joined channel, row, column) at S2's side."""
        side = maps[1].shape[2]
        equal = []
        for x, lateral in zip(maps, self.lateral, strict=True):
            if x.shape[2] > side:  # the smaller map is the one to convolve
                x = lateral(functional.avg_pool2d(x, x.shape[2] // side))
            else:
                x = functional.interpolate(lateral(x), size=(side, side))
            equal.append(x)
        return self.join(torch.cat(equal, dim=1))


class Trunk(nn.Module):
    """S0 … S5: the image to the joined map."""

    def __init__(self, stem: nn.Module, stages: Sequence[nn.Module], fusion: Fusion):
        super().__init__()
        self.stem = stem
        self.stages = nn.ModuleList(stages)
        self.fusion = fusion

    def forward(self, image: Tensor) -> Tensor:
        """(spectrum, 1, row, column) to (spectrum, channel, row/4, column/4)."""
        x = self.stem(image)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return self.fusion(maps)


class SCANet(nn.Module):
    """Spectrum to labels; the inverse variance is ignored, as in the paper.

    Parameters
    ----------
    pixels : int
        Square of a multiple of 16 from 32 on; 4096 in the paper.
    labels : int
    variant : str
        Kinds of S1 … S4, one of `VARIANTS`; ``M-M-T-T`` is understood as well.
    conv : {'mbconv', 'standard'}
        Block of the M stages.
    width : float
        Factor on all sizes below, rounded to multiples of 8; 1 is the paper's network.
    widths : sequence of int
        Channels of S0 … S4.
    blocks : sequence of int
        Blocks of S1 … S4.
    heads, head_dim : int
        Attention heads, which `width` scales too, and channels of each.
    fusion : int
        Channels that each of S1 … S4 has when they are joined.
    hidden : int
        Units between the fully connected layers.
    uncertainty : bool
        Predict a variance per label. Without it, as in the paper, the logarithm of the
        variance is 0 and the last layer has no weights for it.
    drop_path : float
        Probability that a block is skipped in training.
    dropout : float
        Before the last layer.
    """

    def __init__(
        self,
        pixels: int,
        labels: int,
        *,
        variant: str = "MMTT",
        conv: str = "mbconv",
        width: float = 1.0,
        widths: Sequence[int] = (64, 128, 256, 512, 1024),
        blocks: Sequence[int] = (2, 6, 14, 2),
        heads: int = 8,
        head_dim: int = 32,
        fusion: int = 192,
        hidden: int = 512,
        uncertainty: bool = False,
        drop_path: float = 0.0,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.side = _side(pixels)
        kinds = _kinds(variant)
        if conv not in CONVOLUTIONS:
            raise unknown("convolution", conv, CONVOLUTIONS)
        if len(widths) != HALVINGS + 1 or len(blocks) != HALVINGS:
            raise ValueError(
                f"widths are those of S0 … S4 (5), blocks those of S1 … S4 (4), not "
                f"{len(widths)} and {len(blocks)}"
            )
        if width <= 0 or min(blocks) < 1:
            raise ValueError("width must be positive, and each stage needs a block")
        widths = [scaled(size, width) for size in widths]
        attention = {"heads": max(1, round(heads * width)), "head_dim": head_dim}
        stages = []
        for n, kind in enumerate(kinds):
            sizes = (widths[n], widths[n + 1], blocks[n])
            if kind == "M":
                stages.append(_convolutions(*sizes, conv == "standard", drop_path))
            else:
                side = self.side // 2 ** (n + 1)
                stages.append(_attentions(*sizes, side, **attention, drop=drop_path))
        stem = nn.Sequential(
            *padded_convolution(1, widths[0]), *padded_convolution(widths[0], widths[0])
        )
        channels = scaled(fusion, width)
        self.trunk = Trunk(stem, stages, Fusion(widths[1:], channels))
        self.project = nn.Conv2d(channels * HALVINGS, widths[-1], 1)
        self.hidden = nn.Linear(widths[-1], scaled(hidden, width))
        self.dropout = nn.Dropout(dropout)
        self.uncertainty = uncertainty
        self.head = nn.Linear(scaled(hidden, width), labels * (2 if uncertainty else 1))
        self.fused = False
        self.register_buffer("order", fold_order(self.side), persistent=False)
        self.to(memory_format=torch.channels_last)

    def image(self, flux: Tensor) -> Tensor:
        """Fold spectra along an S: (spectrum, pixel) to (spectrum, 1, row, column)."""
        folded = flux.index_select(1, self.order).view(-1, self.side, self.side, 1)
        return folded.permute(0, 3, 1, 2)  # channels last

    def stages(self) -> dict[str, nn.Module]:
        """Modules that give (spectrum, channel, row, column), from fine to coarse."""
        return {
            "S0": self.trunk.stem,
            **{f"S{n}": stage for n, stage in enumerate(self.trunk.stages, 1)},
        }

    def unfold(self, maps: Tensor) -> Tensor:
        """Bring maps of any side to the spectrum: (spectrum, row, column) to pixels.

        Returns
        -------
        Tensor, shape (spectrum, pixel)
            Interpolated between the centres of the map's cells.
        """
        size = (self.side, self.side)
        images = functional.interpolate(maps[:, None], size, mode="bilinear")
        # folding twice is unfolding
        return images.flatten(1).index_select(1, self.order)

    def forward_features(self, flux: Tensor, ivar: Tensor) -> Tensor:
        """(spectrum, pixel) to features (spectrum, hidden)."""
        # about the continuum: padding with 0 is padding with continuum, and bfloat16
        # keeps the digits of weak lines
        image = self.image(flux - 1)
        x = self.trunk(image.to(self.trunk.stem[0].weight.dtype))
        x = x.to(self.project.weight.dtype)
        if self.fused:  # a mean of 1x1 convolutions is the convolution of the mean
            x = self.project(x.mean((2, 3), keepdim=True)).flatten(1)
        else:
            x = self.project(x).mean((2, 3))
        # a few values decide about a label: these need all digits
        with _float32(x):
            return functional.gelu(self.hidden(x.to(self.hidden.weight.dtype)))

    def forward(self, flux: Tensor, ivar: Tensor) -> tuple[Tensor, Tensor]:
        """Predict labels.

        Parameters
        ----------
        flux, ivar : Tensor, shape (spectrum, pixel)
            Continuum-normalised flux; its inverse variance has no effect.

        Returns
        -------
        mean, log_variance : Tensor, shape (spectrum, label)
            In model units.
        """
        features = self.dropout(self.forward_features(flux, ivar))
        with _float32(features):
            values = self.head(features)
            if not self.uncertainty:
                return values, torch.zeros_like(values)
            mean, log_variance = values.chunk(2, dim=1)
            return mean, log_variance.clamp(-12, 6)

    @torch.no_grad()
    def fuse(self) -> SCANet:
        """Prepare for inference; the outputs stay the same but for rounding.

        Batch normalisations go into their convolutions, position biases are spread out,
        and the map is pooled before its last convolution. To be done in evaluation
        mode, before the trunk goes to bfloat16. There is no way back to training or to
        a model file.
        """
        if self.training:
            raise ValueError("fuse() needs evaluation mode: statistics must be final")
        if self.fused:
            return self
        kinds = (ConvolutionBlock, Attention)
        # a list of all modules would keep the replaced ones, and their memory
        for module in [m for m in self.trunk.modules() if isinstance(m, kinds)]:
            module.fuse()
        for first in (0, 3):
            stem = self.trunk.stem
            stem[first] = fuse_conv_bn_eval(stem[first], stem[first + 1])
            stem[first + 1] = nn.Identity()
        fuse_padded(self.trunk.fusion.join)
        self.fused = True
        return self.to(memory_format=torch.channels_last)


def _float32(x: Tensor) -> torch.autocast:
    """Switch automatic mixed precision off on a tensor's device."""
    # the meta device, on which multiply-adds are counted, knows no such thing
    device = "cpu" if x.is_meta else x.device.type
    return torch.autocast(device, enabled=False)


def _side(pixels: int) -> int:
    """Side of the image; `ValueError` unless S4 has at least 2x2 pixels."""
    side = round(pixels**0.5)
    smallest = 2**HALVINGS
    if side * side != pixels or side % smallest or side < 2 * smallest:
        sizes = ", ".join(str((smallest * n) ** 2) for n in (2, 3, 4, 5, 6))
        raise ValueError(
            f"{pixels} pixels don't fold into a square whose side 16 divides; "
            f"{sizes}, … do. The recipe 'scanet' makes 4096"
        )
    return side


def _kinds(variant: str) -> str:
    kinds = variant.replace("-", "").upper()
    if kinds not in VARIANTS:
        raise unknown("variant", variant, VARIANTS)
    return kinds


def _convolutions(
    inputs: int, outputs: int, depth: int, standard: bool, drop: float
) -> nn.Sequential:
    """Build an M stage."""
    return nn.Sequential(
        *(
            ConvolutionBlock(
                outputs if n else inputs,
                outputs,
                first=not n,
                standard=standard,
                drop=drop,
            )
            for n in range(depth)
        )
    )


def _attentions(
    inputs: int, outputs: int, depth: int, side: int, **options: float
) -> TransformerStage:
    """Build a T stage with `options` of `TransformerBlock`."""
    blocks = [TransformerBlock(outputs, side, **options) for _ in range(depth)]
    return TransformerStage(inputs, outputs, blocks)
