"""3×3 convolutions of images with half of the multiplications, for inference.

Winograd's F(4, 3) (Lavin & Gray 2016, arXiv:1509.09308, section 4.3): a filter of three
taps gives four neighbouring outputs from six products instead of twelve. Tiles of six
inputs are mixed, the filter is mixed beforehand, outputs are mixed products. Here rows
are mixed only: each of the six products is a convolution along columns, (1, 3) pixels
wide, which oneDNN does at the processor's full rate. Mixing both ways would leave a
quarter of the multiplications, and lose more in moving numbers than it saves.

Rows are what mixing adds up, so they are the first axis in memory, where a row of all
stars is one long vector: (row, star, column, channel). A row of zeros before the first
and one after the last are what the convolution pads with; `rows_first` makes them, and
all functions here keep them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

TILE = 4  # rows that a tile gives
AT_ONCE = 32  # rows that are convolved together: more don't stay in the cache
# rows: mixed inputs; columns: inputs
MIX = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
# rows: mixed filters; columns: taps
FILTER = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
BIASED = 1  # the product that every output has once


def pays() -> bool:
    """Whether this processor takes more time to multiply than to move numbers.

    That was measured with AVX2. Wider vectors multiply twice as fast or more, and
    memory is no faster for them.
    """
    return torch.backends.cpu.get_cpu_capability() == "AVX2"


def fits(side: int) -> bool:
    """Whether images of that many rows divide into tiles."""
    return side % TILE == 0


def rows_first(x: Tensor) -> Tensor:
    """(star, channel, row, column) to (row + 2, star, column, channel)."""
    stars, channels, rows, columns = x.shape
    whole = _between_zeros(x, rows, stars, columns, channels)
    whole[1:-1] = x.permute(2, 0, 3, 1)
    return whole


def stars_first(x: Tensor) -> Tensor:
    """(row + 2, star, column, channel) to (star, row, column, channel)."""
    return x[1:-1].transpose(0, 1)


class Winograd(nn.Module):
    """A 3×3 convolution that keeps the size of its images, rows first.

    Parameters
    ----------
    convolve : Conv2d
        Of one step, padded by one pixel, with a bias.

    Raises
    ------
    ValueError
        If it is another one.
    """

    weight: Tensor
    mix: Tensor

    def __init__(self, convolve: nn.Conv2d):
        shape = convolve.kernel_size, convolve.stride, convolve.padding, convolve.groups
        if shape != ((3, 3), (1, 1), (1, 1), 1) or convolve.bias is None:
            raise ValueError(f"not a 3×3 convolution of one step with bias: {convolve}")
        super().__init__()
        taps = convolve.weight.detach().double()  # (output, input, row, column)
        mixed = torch.einsum("pr,oirc->poci", torch.tensor(FILTER).double(), taps)
        # (product, output, column, input): channels last, as oneDNN likes them
        self.register_buffer("weight", mixed.float().contiguous())
        self.register_buffer("mix", torch.tensor(MIX, dtype=torch.float32))
        self.bias = convolve.bias

    def forward(self, x: Tensor) -> Tensor:
        """(row + 2, star, column, input) to (row + 2, star, column, output)."""
        y = _between_zeros(x, len(x) - 2, *x.shape[1:3], self.weight.shape[1])
        for start, end in _parts(len(x) - 2):
            rows = y[start + 1 : end + 1].unflatten(0, (-1, TILE)).unbind(1)
            unmix(self._products(x[start : end + 2]), rows)
        return y

    def pooled(self, x: Tensor) -> Tensor:
        """Convolve, and keep the largest of 3×3 pixels in steps of two, or 0.

        Halves rows and columns, both even. Rows are pooled while they are in the cache.
        The zeros around can't be told from what a rectifier leaves: they do no harm.
        """
        _, stars, columns, _ = x.shape
        outputs = self.weight.shape[1]
        y = _between_zeros(x, (len(x) - 2) // 2, stars, columns // 2, outputs)
        before = None
        for start, end in _parts(len(x) - 2):
            rows = unmix(self._products(x[start : end + 2]))
            pairs = y[start // 2 + 1 : end // 2 + 1].unflatten(0, (-1, TILE // 2))
            for largest, out in zip(
                _largest(rows, before), pairs.unbind(1), strict=True
            ):
                _pool_columns(largest, out)
            before = rows[-1][-1]
        return y

    def _products(self, x: Tensor) -> list[Tensor]:
        """Rows and those beside them to products, (tile, star, column, output) each."""
        _, stars, columns, _ = x.shape
        products = [
            functional.conv2d(
                mixed,
                weight.permute(0, 2, 1)[:, :, None],
                self.bias if number == BIASED else None,
                padding=(0, 1),
            )
            for number, (mixed, weight) in enumerate(
                zip(self._mix(x), self.weight, strict=True)
            )
        ]
        return [
            p.permute(0, 2, 3, 1).view(-1, stars, columns, p.shape[1]) for p in products
        ]

    def _mix(self, x: Tensor) -> Tensor:
        """Rows to mixed tiles, (product, tile * star, input, 1, column)."""
        rows, stars, columns, channels = x.shape
        tiles, size, row = rows // TILE, len(self.mix), x.stride(0)
        mixed = x.new_empty((size, tiles * stars, 1, columns, channels))
        torch.bmm(
            self.mix.expand(tiles, size, size),
            x.as_strided((tiles, size, row), (TILE * row, row, 1)),  # they overlap
            out=mixed.view(size, tiles, row).transpose(0, 1),
        )
        return mixed.permute(0, 1, 4, 2, 3)


def unmix(
    products: Sequence[Tensor], rows: Sequence[Tensor] | None = None
) -> Sequence[Tensor]:
    """Add six products up to a tile's four rows; uses the products up.

    The matrix is (1 1 1 1 1 0; 0 1 -1 2 -2 0; 0 1 1 4 4 0; 0 1 -1 8 -8 1).

    Parameters
    ----------
    products : sequence of Tensor
    rows : sequence of Tensor, optional
        Where to put the rows; where the products were by default.
    """
    first, one, other, two, another, last = products
    even = one + other
    odd = torch.sub(one, other, out=other)
    even_too = torch.add(two, another, out=one)
    odd_too = torch.sub(two, another, out=another)
    rows = rows or (first, two, even, last)
    torch.add(first, even, out=first)
    torch.add(first, even_too, out=rows[0])
    torch.add(odd, odd_too, alpha=2, out=rows[1])
    torch.add(even, even_too, alpha=4, out=rows[2])
    torch.add(last, odd, out=last)
    torch.add(last, odd_too, alpha=8, out=rows[3])
    return rows


def _parts(rows: int) -> Iterator[tuple[int, int]]:
    """Where rows start and end that are convolved together."""
    for start in range(0, rows, AT_ONCE):
        yield start, min(start + AT_ONCE, rows)


def _largest(rows: Sequence[Tensor], before: Tensor | None) -> tuple[Tensor, Tensor]:
    """Largest of three rows around a tile's first and third; uses the first up.

    Parameters
    ----------
    rows : sequence of Tensor
        Four of (tile, star, column, channel).
    before : Tensor, shape (star, column, channel), optional
        The row before the first tile.
    """
    first, second, third, fourth = rows
    upper = torch.maximum(first, second, out=first)
    later = upper[1:]
    torch.maximum(later, fourth[:-1], out=later)
    if before is not None:
        torch.maximum(upper[0], before, out=upper[0])
    lower = torch.maximum(second, third, out=second)
    return upper, torch.maximum(lower, fourth, out=lower)


def _pool_columns(x: Tensor, out: Tensor) -> None:
    """Keep the largest of three neighbouring columns, or 0; (tile, star, column, …)."""
    left, right = x[:, :, ::2], x[:, :, 1::2]
    torch.maximum(left, right, out=out)
    inner = out[:, :, 1:]
    torch.maximum(inner, right[:, :, :-1], out=inner)
    out.clamp_(min=0)


def _between_zeros(like: Tensor, rows: int, *shape: int) -> Tensor:
    """Make room for rows, with zeros before the first and behind the last."""
    whole = like.new_empty((rows + 2, *shape))
    whole[0] = 0
    whole[-1] = 0
    return whole
