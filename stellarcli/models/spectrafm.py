"""SpectraFM: a Transformer that reads spectra of any range, sampling and instrument.

Koblischke & Bovy 2024 (arXiv:2411.04750), after Leung & Bovy 2023 (arXiv:2308.10944):
tokens of flux and wavelength enter an encoder, requests for labels a decoder that looks
at its output; each request gets a value and a variance. Tokens are a set: their order
means nothing, and what isn't there (a masked pixel, an arm, a magnitude) has no token.

Those of spectra are pixels or patches (`models.tokens`).

Other quantities (a magnitude, a parallax, Teff from elsewhere; any label of another
model) are tokens of their own, one for each name of the option ``extra``. In training
each of them, and parts of the spectra, are hidden at random, so that any subset works
at prediction.

The published network has 11.87 million weights, 3.85 million of them a table of which a
handful of rows is used; the other 8.02 are what ``--preset paper`` builds, and `stellar
compare --architectures spectrafm` counts. Its blocks normalise after the sum, ours
before it unless asked (``norm``): that needs no warm-up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from stellarcli.models.tokens import Patches, Pixels

BLANK = -1e9  # logit of what isn't there


class Attention(nn.Module):
    """Multi-head attention of some tokens to others, those that are there."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is no multiple of {heads} heads")
        self.heads, self.dropout = heads, dropout
        self.query = nn.Linear(width, width)
        self.pair = nn.Linear(width, 2 * width)  # keys and values
        self.out = nn.Linear(width, width)

    def _split(self, x: Tensor) -> Tensor:
        """(spectrum, token, width) to (spectrum, head, token, share)."""
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)

    def forward(self, x: Tensor, seen: Tensor, there: Tensor) -> Tensor:
        """Look from `x` (spectrum, request, width) at `seen` (spectrum, token, width).

        `there` (spectrum, token) says which tokens exist.
        """
        key, value = map(self._split, self.pair(seen).chunk(2, dim=2))
        found = functional.scaled_dot_product_attention(
            self._split(self.query(x)),
            key,
            value,
            attn_mask=there[:, None, None, :],
            dropout_p=self.dropout if self.training else 0.0,
        )
        return self.out(found.transpose(1, 2).flatten(2))

    def weights(self, x: Tensor, seen: Tensor, there: Tensor) -> Tensor:
        """Return the attention itself, (spectrum, head, request, token); rows sum to 1.

        Arguments as in `forward`.
        """
        key, _ = map(self._split, self.pair(seen).chunk(2, dim=2))
        query = self._split(self.query(x))
        logits = query @ key.transpose(2, 3) / math.sqrt(query.shape[3])
        return logits.masked_fill(~there[:, None, None, :], BLANK).softmax(dim=3)


class Block(nn.Module):
    """Attention and a feed-forward layer, each with a residual and a normalisation.

    Tokens of an encoder look at each other, requests of a decoder at the tokens.
    """

    def __init__(
        self, width: int, heads: int, hidden: int, dropout: float, before: bool
    ):
        super().__init__()
        self.before = before
        self.attention = Attention(width, heads, dropout)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.feed_forward = nn.Sequential(
            nn.Linear(width, hidden),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, width),
            nn.Dropout(dropout),
        )

    def look(self, x: Tensor) -> Tensor:
        """Return what attention starts from."""
        return self.norms[0](x) if self.before else x

    def forward(self, x: Tensor, seen: Tensor | None, there: Tensor) -> Tensor:
        """(spectrum, token, width) to the same; `seen` None means `x` itself."""
        start = self.look(x)
        x = x + self.attention(start, start if seen is None else seen, there)
        if self.before:
            return x + self.feed_forward(self.norms[1](x))
        x = self.norms[0](x)
        return self.norms[1](x + self.feed_forward(x))


class SpectraFM(nn.Module):
    """Tokens of a spectrum and of other quantities to labels with variances.

    Parameters
    ----------
    pixels : int
        Of the longest training spectrum; others may be longer.
    labels : int
    tokens : {'patches', 'pixels'}
    width : int
        Of tokens and requests.
    heads : int or sequence of int
        Of attention; one number, or one for each block of encoder and decoder.
    encoder, decoder : sequence of int
        Units of the feed-forward layer of each block.
    hidden : sequence of int
        Units of the layers from a request to its value and variance.
    context : int
        Most tokens of a spectrum in training, and with pixels at prediction, too.
    patch, step : float
        Of `Patches`, in ln λ: 0.005 is 25 Å at 5000 Å.
    rank : int
        Of `Patches`.
    reach : (float, float)
        Of `Patches`, Å.
    cut : float
        Chance that a training spectrum is cut to a stretch of it.
    shortest : float
        Share of the spectrum that such a stretch has at least; their lengths are even
        in the logarithm.
    norm : {'before', 'after'}
        Where blocks normalise.
    dropout : float
    extra : sequence of str
        Columns that are tokens beside the spectrum.
    """

    inputs = ("flux", "ivar", "wavelength", "extra")

    def __init__(
        self,
        pixels: int,
        labels: int,
        *,
        tokens: str = "patches",
        width: int = 64,
        heads: int | Sequence[int] = 4,
        encoder: Sequence[int] = (128, 128),
        decoder: Sequence[int] = (128, 128),
        hidden: Sequence[int] = (128,),
        context: int = 128,
        patch: float = 0.005,
        step: float = 2e-4,
        rank: int = 16,
        reach: Sequence[float] = (3500.0, 17500.0),
        cut: float = 0.4,
        shortest: float = 0.15,
        norm: str = "before",
        dropout: float = 0.0,
        extra: Sequence[str] = (),
    ):
        super().__init__()
        if tokens not in ("patches", "pixels"):
            raise ValueError(f"tokens must be patches or pixels, not {tokens!r}")
        if norm not in ("before", "after"):
            raise ValueError(f"norm must be before or after, not {norm!r}")
        if width % 2 or context < 1 or rank < 1 or not 0 < step <= patch:
            raise ValueError(
                "width must be even, context and rank at least 1, step above 0 and at "
                f"most patch, not {width}, {context}, {rank}, {step} and {patch}"
            )
        if len(reach) != 2 or not 0 < reach[0] < reach[1]:
            raise ValueError(f"reach must be two wavelengths, not {list(reach)}")
        if not (0 <= cut <= 1 and 0 < shortest <= 1):
            raise ValueError(
                "cut must be 0 to 1 and shortest above 0 and at most 1, not "
                f"{cut} and {shortest}"
            )
        self.extra, self.cut, self.shortest = tuple(extra), cut, shortest
        if tokens == "pixels":
            self.tokens = Pixels(width, context)
        else:
            self.tokens = Patches(
                width,
                context,
                first=reach[0],
                last=reach[1],
                patch=patch,
                step=step,
                rank=rank,
            )
        if self.extra:
            self.extra_embed = nn.Linear(1, width)
            self.extra_names = nn.Parameter(torch.randn(len(self.extra), width))
            self.register_buffer("extra_center", torch.zeros(len(self.extra)))
            self.register_buffer("extra_scale", torch.ones(len(self.extra)))
        self.requests = nn.Parameter(torch.randn(labels, width))
        before = norm == "before"
        sizes = [*encoder, *decoder]
        each = [heads] * len(sizes) if isinstance(heads, int) else list(heads)
        if len(each) != len(sizes):
            raise ValueError(f"{len(each)} heads for {len(sizes)} blocks")
        blocks = [
            Block(width, number, size, dropout, before)
            for number, size in zip(each, sizes, strict=True)
        ]
        self.trunk = nn.ModuleList(blocks[: len(encoder)])
        self.last = nn.LayerNorm(width) if before else nn.Identity()
        self.decoder = nn.ModuleList(blocks[len(encoder) :])
        layers: list[nn.Module] = [nn.LayerNorm(width)] if before else []
        for inputs, outputs in pairwise((width, *hidden)):
            layers += [nn.Linear(inputs, outputs), nn.GELU(), nn.Dropout(dropout)]
        last = (width, *hidden)[-1]
        self.head = nn.Sequential(*layers, nn.Linear(last, 2))

    # ------------------------------------------------------------------------ training

    @torch.no_grad()
    def acquaint(self, feed: dict[str, np.ndarray]) -> None:
        """Learn the usual values of the quantities beside the spectrum.

        Parameters
        ----------
        feed : dict of ndarray
            Of training rows.
        """
        if not self.extra:
            return
        for number, values in enumerate(feed["extra"].T.astype(float)):
            known = values[np.isfinite(values)]
            if known.size:
                self.extra_center[number] = float(np.median(known))
                spread = np.subtract(*np.percentile(known, (84, 16))) / 2
                self.extra_scale[number] = float(spread) or 1.0

    @staticmethod
    def relabelled(
        state: dict[str, Tensor], old: Sequence[str], new: Sequence[str]
    ) -> dict[str, Tensor]:
        """Give weights for other labels: known requests are kept, new ones drawn.

        Parameters
        ----------
        state : dict of Tensor
            Weights for the labels `old`.
        old, new : sequence of str
            Names of labels.
        """
        known = state["requests"]
        rows = [
            known[list(old).index(name)] if name in old else torch.randn_like(known[0])
            for name in new
        ]
        return {**state, "requests": torch.stack(rows)}

    def _part(self, flux: Tensor) -> Tensor:
        """Draw which part of each training spectrum is used, (spectrum, 3)."""
        draw = torch.rand(len(flux), 3, device=flux.device)
        length = self.shortest ** draw[:, 0]
        low = draw[:, 1] * (1 - length)
        whole = draw[:, 2] >= self.cut
        low = torch.where(whole, 0, low)
        high = torch.where(whole, 1, low + length)
        return torch.stack([torch.full_like(low, 1e-3), low, high], dim=1)

    # ------------------------------------------------------------------------- network

    def _tokens(
        self, flux: Tensor, ivar: Tensor, wavelength: Tensor, extra: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """All tokens, which of them are there, and what they are of."""
        part = self._part(flux) if self.training else None
        tokens, there, index = self.tokens(flux, ivar, wavelength, part)
        if self.extra:
            values = (extra - self.extra_center) / self.extra_scale
            known = values.isfinite()
            if self.training:
                known &= torch.rand_like(values) < 0.5
            values = torch.where(known, values, 0)[..., None]
            embedded = self.extra_embed(values.to(self.extra_embed.weight.dtype))
            more = functional.gelu(embedded) + self.extra_names
            tokens = torch.cat([tokens, more.to(tokens.dtype)], dim=1)
            there = torch.cat([there, known], dim=1)
        # attention to nothing has no value: a blank spectrum looks at a blank token
        nothing = ~there.any(1, keepdim=True)
        first = torch.arange(there.shape[1], device=there.device) == 0
        there = there | (nothing & first)
        return tokens, there, index

    def encode(self, tokens: Tensor, there: Tensor) -> Tensor:
        """Let tokens (spectrum, token, width) look at each other."""
        x = tokens
        if len(self.trunk):
            x = x.to(self.trunk[0].feed_forward[0].weight.dtype)
        for block in self.trunk:
            x = block(x, None, there)
        # a few values decide about a label: these need all digits
        return self.last(x.to(self.requests.dtype))

    def decode(self, seen: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
        """Answer all requests from encoded tokens: mean and log variance."""
        x = self.requests.repeat(len(seen), 1, 1)
        for block in self.decoder:
            x = block(x, seen, there)
        mean, log_variance = self.head(x).unbind(2)
        return mean.float(), log_variance.float().clamp(-12, 6)

    def forward(
        self, flux: Tensor, ivar: Tensor, wavelength: Tensor, extra: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Predict labels.

        Parameters
        ----------
        flux, ivar : Tensor, shape (spectrum, pixel)
            Continuum-normalised flux and its inverse variance; 0 where masked.
        wavelength : Tensor of float64, shape (spectrum, pixel)
            Vacuum Å at the star's rest.
        extra : Tensor, shape (spectrum, quantity)
            NaN where unknown.

        Returns
        -------
        mean, log_variance : Tensor, shape (spectrum, label)
            In model units.
        """
        tokens, there, _ = self._tokens(flux, ivar, wavelength, extra)
        return self.decode(self.encode(tokens, there), there)

    @torch.no_grad()
    def attention(
        self, flux: Tensor, ivar: Tensor, wavelength: Tensor, extra: Tensor
    ) -> Tensor:
        """Attention of each request to each pixel, mean over heads and blocks.

        Parameters
        ----------
        flux, ivar, wavelength, extra : Tensor
            As in `forward`.

        Returns
        -------
        Tensor, shape (spectrum, label, pixel)
            Sums to 1 with what the quantities beside the spectrum get.
        """
        tokens, there, index = self._tokens(flux, ivar, wavelength, extra)
        seen = self.encode(tokens, there)
        x, found = self.requests.repeat(len(seen), 1, 1), []
        for block in self.decoder:
            weights = block.attention.weights(block.look(x), seen, there)
            found.append(weights.mean(1))
            x = block(x, seen, there)
        mean = torch.stack(found).mean(0)[:, :, : index.shape[1]]
        mean = mean * there[:, None, : index.shape[1]]
        seen_at = torch.where(ivar > 0, wavelength, math.nan)
        return self.tokens.shares(flux, seen_at, mean, index)
