"""SPFusion: a spectrum and g, r, i images of a star to its labels.

He, Wu, Jiang & Zhang, "SPFusion: A Lightweight Multi-Modality Deep Learning Model for
Parameter Estimation of Red Clump Stars". Section 3.1: features of the images by a stem
of three convolutions, one residual block (He et al. 2016) and a projection to as many
positions as the spectrum has; features of the spectrum by `convnext1d`. Section 3.2:
both fused by the star operator (Ma et al. 2024), joined, and related to each other by a
Transformer block over channels. Section 3.3: a Metaformer block (Yu et al. 2022) and a
head with channel attention.

Where the text and the published number of parameters differ, the layers are those that
add up to it: streams are compressed after the star product instead of before; the
projection's activation stands before its linear layer; pooling in the Metaformer block
is over three positions; the head's convolution has 32 outputs. Queries, keys and values
of the Transformer block are its input, normalised, without projections, and attention
may go nowhere: 1 is added to the denominator of its softmax.

A star without an image is a case of its own. In training the images of some stars are
hidden (`hide_images`), so that the network learns what the spectrum says alone; their
photometric features are 0, as are those of stars that have none. A star that lacks one
band counts as having none. `prediction` flags such stars.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from stellarcli.models.convnext1d import (
    ChannelNorm,
    Extractor,
    Head,
    Pointwise,
    convolution,
    fuse_pairs,
    in_all_digits,
)
from stellarcli.models.scanet import drop_path
from stellarcli.models.winograd import (
    Winograd,
    fits,
    pays,
    rows_first,
    stars_first,
)

BANDS = 3
STEM = (24, 32, 64)  # channels: 3n, 4n, 8n with n = 8 (equations 3 to 5)
SHORTER = 4  # pixels of an image over rows of its features
KERNELS = (3, 7, 11)  # of table 4; any odd one will do
STARS = 32  # whose images are seen together where it counts: some 110 MB


def image_convolution(
    inputs: int, outputs: int, stride: int = 1, bias: bool = False
) -> nn.Conv2d:
    """3×3 convolution, without bias where a normalisation follows."""
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=bias)


def image_stem(widths: Sequence[int]) -> nn.Sequential:
    """Convolutions, normalised and rectified, the first of two steps; then a pooling.

    Parameters
    ----------
    widths : sequence of int
        Channels of the convolutions.
    """
    layers: list[nn.Module] = []
    inputs = BANDS
    for n, outputs in enumerate(widths):
        layers += [
            image_convolution(inputs, outputs, 1 if n else 2),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        ]
        inputs = outputs
    return nn.Sequential(*layers, nn.MaxPool2d(3, 2, padding=1))


class Rectified(nn.Module):
    """A convolution with its rectifier, for inference: one pass over memory.

    oneDNN does both at once; where PyTorch lacks that, they follow one another.

    Parameters
    ----------
    convolve : Conv2d
    """

    def __init__(self, convolve: nn.Conv2d):
        super().__init__()
        self.convolve = convolve
        self.at_once = getattr(torch.ops.mkldnn, "_convolution_pointwise", None)

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """Convolve, add a shortcut if there is one, rectify."""
        layer = self.convolve
        if self.at_once is None or x.device.type != "cpu" or x.dtype != torch.float32:
            y = layer(x)
            return functional.relu(y if shortcut is None else y + shortcut)
        options = [list(layer.padding), list(layer.stride), list(layer.dilation)]
        options.append(layer.groups)
        if shortcut is None:
            return self.at_once(x, layer.weight, layer.bias, *options, "relu", [], "")
        return self.at_once.binary(
            *(x, shortcut, layer.weight, layer.bias, *options),
            *("add", 1.0, "relu", [], ""),
        )


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions around a shortcut (He et al. 2016, figure 2)."""

    def __init__(self, channels: int):
        super().__init__()
        self.first = image_convolution(channels, channels)
        self.first_norm = nn.BatchNorm2d(channels)
        self.second = image_convolution(channels, channels)
        self.second_norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(star, channel, row, column) to the same."""
        if isinstance(self.second, Rectified):
            return self.second(self.first(x), x)
        y = functional.relu(self.first_norm(self.first(x)), inplace=True)
        return functional.relu(self.second_norm(self.second(y)) + x, inplace=True)


class ByRows(nn.Module):
    """What follows the stem's second convolution, in half the multiplications.

    The two before have so few channels that mixing rows would take what it saves.

    Parameters
    ----------
    extractor : PhotometricExtractor
        Whose normalisations are in its convolutions.
    """

    def __init__(self, extractor: PhotometricExtractor):
        super().__init__()
        self.stem = Winograd(extractor.stem[-4])
        self.first = Winograd(extractor.block.first)
        self.second = Winograd(extractor.block.second)
        self.project = nn.Sequential(
            Winograd(extractor.project[0]), Winograd(extractor.project[2])
        )

    def forward(self, x: Tensor) -> Tensor:
        """(star, channel, row, column) to (star, row / 2, column / 2, channel)."""
        x = self.stem.pooled(rows_first(x))
        y = self.second(self.first(x).relu_())
        return stars_first(self.project(y.add_(x).relu_()))


class PhotometricExtractor(nn.Module):
    """Images to features, one row of them per channel (section 3.1).

    Parameters
    ----------
    size : int
        Pixels of an image's side.
    channels, positions : int
        Of the result.
    """

    def __init__(self, size: int, channels: int, positions: int):
        super().__init__()
        self.stem = image_stem(STEM)
        self.block = ResidualBlock(STEM[-1])
        self.project = nn.Sequential(
            image_convolution(STEM[-1], channels, bias=True),
            nn.BatchNorm2d(channels),
            image_convolution(channels, channels, bias=True),
        )
        self.rows = size // SHORTER
        self.linear = nn.Linear(self.rows**2, positions)
        self.by_rows: ByRows | None = None

    def rectify(self) -> None:
        """Join convolutions and their rectifiers, where no normalisation is left."""
        if pays() and fits(self.rows):
            self.by_rows = ByRows(self)
        for n in range(0, 3 * len(STEM), 3):
            self.stem[n] = Rectified(self.stem[n])
            self.stem[n + 2] = nn.Identity()
        self.block.first = Rectified(self.block.first)
        self.block.second = Rectified(self.block.second)

    def forward(self, images: Tensor) -> Tensor:
        """(star, band, row, column) to (star, channel, 1, position)."""
        x = images.to(self.linear.weight.dtype)
        x = self._see(x.contiguous(memory_format=torch.channels_last))
        x = functional.gelu(x.flatten(1, 2))
        weight = self.linear.weight.expand(len(x), -1, -1)
        x = torch.baddbmm(self.linear.bias[:, None], weight, x)
        return x.mT[:, :, None]

    def _see(self, x: Tensor) -> Tensor:
        """(star, band, row, column) to (star, row, column, channel)."""
        by_rows = self.by_rows
        meant = x.device.type == "cpu" and x.dtype == torch.float32
        if by_rows is not None and meant and not torch.is_grad_enabled():
            parts = [by_rows(self.stem[:-4](some)) for some in x.split(STARS)]
            return torch.cat(parts)
        # as it lies in memory, which saves a copy
        return self.project(self.block(self.stem(x))).permute(0, 2, 3, 1)


class StarFusion(nn.Module):
    """Features of both kinds, multiplied at four times the channels (section 3.2)."""

    def __init__(self, channels: int, kernel: int):
        super().__init__()
        wide = 4 * channels
        self.photometric = self._expand(channels, wide, kernel)
        self.spectral = self._expand(channels, wide, kernel)
        self.compress = nn.Sequential(
            convolution(wide, channels, kernel),
            nn.BatchNorm2d(channels),
            convolution(channels, channels, kernel, groups=channels),
        )

    @staticmethod
    def _expand(channels: int, wide: int, kernel: int) -> nn.Sequential:
        return nn.Sequential(
            convolution(channels, channels, kernel, groups=channels),
            nn.BatchNorm2d(channels),
            convolution(channels, wide, kernel),
        )

    def forward(self, photometric: Tensor, spectral: Tensor) -> Tensor:
        """Two of (star, channel, 1, position) to one."""
        # equation 9
        product = self.photometric(photometric) * functional.gelu(
            self.spectral(spectral)
        )
        return self.compress(product)


class Sum(nn.Module):
    """What stands in for the star operator where it is left out (section 4.2.1)."""

    def forward(self, photometric: Tensor, spectral: Tensor) -> Tensor:
        """Two of (star, channel, 1, position) to one."""
        return photometric + spectral


class TransformerBlock(nn.Module):
    """Attention among channels, then a feed-forward unit (equations 10 and 11)."""

    def __init__(self, channels: int, heads: int, ratio: int, drop: float):
        super().__init__()
        self.heads, self.drop = heads, drop
        self.query = ChannelNorm(channels)
        self.key = ChannelNorm(channels)
        self.value = ChannelNorm(channels)
        self.feed_forward = Pointwise(channels, ratio * channels)

    def forward(self, x: Tensor) -> Tensor:
        """(star, channel, 1, position) to the same."""
        x = x + drop_path(self._attend(x), self.drop, self.training)
        return x + drop_path(self.feed_forward(x), self.drop, self.training)

    def _attend(self, x: Tensor) -> Tensor:
        query, key, value = (
            self._split(norm(x)) for norm in (self.query, self.key, self.value)
        )
        scores = query @ key.mT * query.shape[-1] ** -0.5  # (star, head, channel, …)
        # exp(s) / (1 + sum of exp(s)) is the softmax of the scores and a zero
        nowhere = scores.new_zeros((*scores.shape[:-1], 1))
        weights = torch.cat([scores, nowhere], dim=-1).softmax(-1)[..., :-1]
        return (weights @ value).transpose(1, 2).reshape(x.shape)

    def _split(self, x: Tensor) -> Tensor:
        """(star, channel, 1, position) to (star, head, channel, position of it)."""
        return x.flatten(2).unflatten(2, (self.heads, -1)).transpose(1, 2)


class MetaformerBlock(nn.Module):
    """Pooling for a token mixer, then pointwise layers (section 3.3)."""

    def __init__(self, channels: int, positions: int, drop: float):
        super().__init__()
        self.drop = drop
        self.pointwise = Pointwise(channels, 2 * channels)
        self.along = nn.Linear(positions, positions, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(star, channel, 1, position) to the same."""
        mixed = functional.avg_pool2d(
            x, (1, 3), stride=1, padding=(0, 1), count_include_pad=False
        )
        x = x + drop_path(mixed, self.drop, self.training)
        return x + drop_path(self.along(self.pointwise(x)), self.drop, self.training)


class SPFusion(nn.Module):
    """Spectrum and images to labels.

    Parameters
    ----------
    pixels : int
        Of a spectrum scaled to 0 … 1, zeros where padded.
    labels : int
    star : bool
        Multiply the features of both kinds (table 3); without it they are added.
    kernel : int
        Of the star fusion's convolutions, odd (table 4).
    ratio : int
        Hidden over outer channels of the Transformer's feed-forward unit (table 5).
    heads : int
        Of its attention, dividing the number of positions (table 6).
    metaformers : int
        Number of Metaformer blocks (table 7).
    image_size : int
        Pixels of an image's side.
    drop_path : float
        Probability that a block is skipped in training (Larsson et al. 2017).
    hide_images : float
        Probability that a star's images are hidden in training; the paper's stars all
        have some.
    uncertainty : bool
        Predict a variance per label, which the paper doesn't.
    """

    inputs = ("flux", "ivar", "images")

    def __init__(
        self,
        pixels: int,
        labels: int,
        *,
        star: bool = True,
        kernel: int = 7,
        ratio: int = 4,
        heads: int = 1,
        metaformers: int = 1,
        image_size: int = 128,
        drop_path: float = 0.3,
        hide_images: float = 0.1,
        uncertainty: bool = False,
    ):
        super().__init__()
        spectral = Extractor(drop=drop_path)
        channels, positions = spectral.channels, spectral.positions(pixels)
        _check(kernel, ratio, heads, metaformers, image_size, positions)
        if not 0 <= hide_images < 1:
            raise ValueError(
                f"hide_images must be from 0 to below 1, not {hide_images}"
            )
        self.image_size, self.hide_images = image_size, hide_images
        self.fused = False
        self.trunk = nn.ModuleDict(
            {
                "photometric": PhotometricExtractor(image_size, channels, positions),
                "spectral": spectral,
            }
        )
        self.fusion = StarFusion(channels, kernel) if star else Sum()
        joined = BANDS * channels  # photometric, fused, spectral
        self.transformer = TransformerBlock(joined, heads, ratio, drop_path)
        self.metaformer = nn.Sequential(
            *(MetaformerBlock(joined, positions, drop_path) for _ in range(metaformers))
        )
        self.head = Head(joined, channels, labels, uncertainty)
        self.to(memory_format=torch.channels_last)

    def stages(self) -> dict[str, nn.Module]:
        """Modules that give (spectrum, channel, 1, position), from fine to coarse."""
        spectral = self.trunk["spectral"]
        return {f"stage{n}": spectral.layers[e] for n, e in enumerate(spectral.ends, 1)}

    def channel_parts(self) -> dict[str, slice]:
        """Channels that the head's attention weighs, by what they are of."""
        third = self.trunk["spectral"].channels
        names = ("photometric", "fused", "spectral")
        return {
            name: slice(n * third, n * third + third) for n, name in enumerate(names)
        }

    def forward_features(self, flux: Tensor, images: Tensor) -> Tensor:
        """Spectra and images to joined features, (star, channel, 1, position).

        The first third of the channels is photometric, the second fused, the third
        spectral.
        """
        photometric = self._photometric(images)
        spectral = self.trunk["spectral"](flux)
        with in_all_digits(spectral):
            photometric, spectral = photometric.float(), spectral.float()
            fused = self.fusion(photometric, spectral)
            x = torch.cat([photometric, fused, spectral], dim=1)
            x = x.contiguous(memory_format=torch.channels_last)
            return self.metaformer(self.transformer(x))

    def _photometric(self, images: Tensor) -> Tensor:
        """Features of the images, 0 for stars without, (star, channel, 1, position)."""
        if images.shape[1:] != (BANDS, self.image_size, self.image_size):
            raise ValueError(
                f"images are {tuple(images.shape[1:])}, the network takes {BANDS} "
                f"bands of {self.image_size} pixels square (option image_size)"
            )
        extract = self.trunk["photometric"]
        if images.is_meta:  # multiply-adds are counted
            return extract(images)
        images = images.nan_to_num()
        there = (images.flatten(2).amax(2) > 0).all(1)
        if self.training:
            # all of them go through, since parallel processes need equal graphs
            if self.hide_images:
                drawn = torch.rand(len(images), device=images.device)
                there = there & (drawn >= self.hide_images)
            return extract(images) * there[:, None, None, None]
        if there.all():
            return extract(images)
        shape = extract.project[2].out_channels, 1, extract.linear.out_features
        whole = images.new_zeros((len(images), *shape))
        if there.any():
            whole[there] = extract(images[there]).to(whole.dtype)
        return whole

    def forward(
        self, flux: Tensor, ivar: Tensor, images: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Predict labels.

        Parameters
        ----------
        flux, ivar : Tensor, shape (star, pixel)
            Flux scaled to 0 … 1; its inverse variance has no effect.
        images : Tensor, shape (star, band, row, column)
            Each band scaled to 0 … 1; NaN or 0 where there is none.

        Returns
        -------
        mean, log_variance : Tensor, shape (star, label)
            In model units.
        """
        return self.head(self.forward_features(flux, images))

    def fuse(self) -> SPFusion:
        """Prepare for inference; the outputs stay the same but for rounding."""
        if not self.fused:
            fuse_pairs(self)
            self.trunk["photometric"].rectify()
            self.fused = True
        return self


def _check(
    kernel: int, ratio: int, heads: int, metaformers: int, size: int, positions: int
) -> None:
    """Raise ValueError unless the options go together."""
    if kernel < 1 or kernel % 2 == 0:
        raise ValueError(
            f"kernel must be odd, such as {', '.join(map(str, KERNELS))}, not {kernel}"
        )
    if ratio < 1 or metaformers < 1:
        raise ValueError(
            f"ratio and metaformers must be 1 or more, not {ratio} and {metaformers}"
        )
    if heads < 1 or positions % heads:
        valid = [n for n in range(1, positions + 1) if positions % n == 0]
        raise ValueError(
            f"heads must divide the {positions} positions "
            f"({', '.join(map(str, valid))}), not {heads}"
        )
    if size < SHORTER or size % SHORTER:
        raise ValueError(f"image_size must be a multiple of {SHORTER}, not {size}")
