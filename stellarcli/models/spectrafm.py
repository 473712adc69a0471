"""SpectraFM: a Transformer that reads spectra of any range, sampling and instrument.

Koblischke & Bovy 2024 (arXiv:2411.04750), after Leung & Bovy 2023 (arXiv:2308.10944):
tokens of flux and wavelength enter an encoder, requests for labels a decoder that looks
at its output; each request gets a value and a variance. Tokens are a set: their order
means nothing, and what isn't there (a masked pixel, an arm, a magnitude) has no token.

There are two kinds of tokens.

pixels
    The paper's: GELU(E·flux + b), here with the noise beside the flux, plus a
    sinusoidal code of ln λ (`code`). Its attention, quadratic in their number, takes
    some 500 of them; which ones is drawn anew in every training step.
patches
    The light of a stretch of ln λ: Σ (flux − 1)·ψ(λ) over its pixels, with ψ a table
    over ln λ that is learnt, linear between its knots (`Patches`), in place of one E
    for all wavelengths. Such sums mean the same whatever the sampling, as equivalent
    widths do, and a spectrum of 4000 pixels is 180 tokens. Where no training spectrum
    had light the table knows nothing, which `familiarity` keeps in mind.

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

NOISE_CAP = 1.0  # noise of a pixel, relative to the continuum
LEAST_COVER = 0.3  # of a patch's knots, for a token
LONGEST, SHORTEST = 4.0, 1e-4  # periods of the code of ln λ
BLANK = -1e9  # logit of what isn't there


def code(position: Tensor, width: int) -> Tensor:
    """Sines and cosines of a position, with periods from `LONGEST` to `SHORTEST`.

    Parameters
    ----------
    position : Tensor of float64, shape (...)
        ln λ.
    width : int

    Returns
    -------
    Tensor of float32, shape (..., width)
    """
    half = width // 2
    steps = torch.arange(half, dtype=torch.float64, device=position.device)
    period = LONGEST * (SHORTEST / LONGEST) ** (steps / max(1, half - 1))
    angle = 2 * math.pi * position[..., None] / period
    return torch.cat([angle.sin(), angle.cos()], dim=-1).float()


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


class Pixels(nn.Module):
    """Tokens of single pixels."""

    def __init__(self, width: int, context: int):
        super().__init__()
        self.context = context
        self.embed = nn.Linear(2, width)

    def forward(
        self, flux: Tensor, ivar: Tensor, wavelength: Tensor, part: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Make tokens; arguments and results as those of `Patches.forward`."""
        good = ivar > 0
        keys = good.float()
        if part is not None:
            keys = keys * (part[:, :1] + torch.rand_like(flux))
            place = wavelength.nan_to_num().log()
            keys = keys * _inside(place, good, part)
        else:  # evenly spread over the good pixels
            rank = good.cumsum(1) - 1
            count = good.sum(1, keepdim=True).clamp_min(1)
            step = (count / self.context).clamp_min(1)
            first = torch.floor(rank / step) > torch.floor((rank - 1) / step)
            keys = keys * (1 + first)
        chosen = keys.topk(min(self.context, flux.shape[1]), dim=1)
        index, there = chosen.indices, chosen.values > 0
        sigma = torch.rsqrt(ivar.clamp_min(1e-12)).clamp_max(NOISE_CAP)
        values = torch.stack([(flux - 1) * 4, sigma.log() * 0.5 + 1.5], dim=2)
        taken = values.gather(1, index[..., None].expand(-1, -1, 2))
        place = wavelength.gather(1, index).nan_to_num(nan=1.0).log()
        tokens = functional.gelu(self.embed(taken.to(self.embed.weight.dtype)))
        tokens = tokens + code(place, tokens.shape[2]).to(tokens.dtype)
        return tokens, there, index

    def shares(self, flux: Tensor, wavelength: Tensor, weights: Tensor, index: Tensor):
        """Give each token's attention to its pixel; as `Patches.shares`."""
        found = flux.new_zeros(len(flux), weights.shape[1], flux.shape[1])
        spread = index[:, None].expand(-1, weights.shape[1], -1)
        return found.scatter(2, spread, weights)


class Patches(nn.Module):
    """Tokens of stretches of ln λ.

    Parameters
    ----------
    width : int
        Of the tokens.
    context : int
        Tokens taken in training; 0 for all.
    first, last : float
        Å, of what the table covers.
    patch, step : float
        Length of a patch and distance of the knots, in ln λ.
    rank : int
        Values of ψ at a knot.
    """

    def __init__(
        self,
        width: int,
        context: int,
        *,
        first: float,
        last: float,
        patch: float,
        step: float,
        rank: int,
    ):
        super().__init__()
        self.context, self.step = context, step
        self.start = math.log(first)
        self.knots = max(1, round(patch / step))  # of a patch
        self.count = math.ceil((math.log(last) - self.start) / (self.knots * step))
        shape = (self.count, self.knots, rank)
        self.table = nn.Parameter(torch.randn(shape) * (4 / math.sqrt(self.knots)))
        self.embed = nn.Linear(rank + 3, width)
        self.mix = nn.Linear(width, width)
        centres = self.start + self.knots * step * (torch.arange(self.count) + 0.5)
        self.register_buffer("code", code(centres.double(), width), persistent=False)

    def forward(
        self, flux: Tensor, ivar: Tensor, wavelength: Tensor, part: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Make tokens.

        Parameters
        ----------
        flux, ivar, wavelength : Tensor, shape (spectrum, pixel)
        part : Tensor, shape (spectrum, 3), optional
            In training: how much chance has to say about the choice of tokens, and the
            two ends of the stretch to take them from, in shares of the spectrum.

        Returns
        -------
        tokens : Tensor, shape (spectrum, token, width)
        there : Tensor of bool, shape (spectrum, token)
            False for those that only fill the batch.
        index : Tensor of int, shape (spectrum, token)
            Number of the patch.
        """
        device = "cpu" if flux.is_meta else flux.device.type
        with torch.autocast(device, enabled=False):
            return self._forward(flux, ivar, wavelength, part)

    def _forward(
        self, flux: Tensor, ivar: Tensor, wavelength: Tensor, part: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        light, noise, number, cover = self._gather(flux, ivar, wavelength)
        known = cover >= LEAST_COVER
        keys = known.float()
        if part is not None:
            keys = keys * (part[:, :1] + torch.rand_like(keys))
            place = torch.arange(self.count, device=flux.device).expand_as(keys)
            keys = keys * _inside(place, known, part)
        # the meta device, on which multiply-adds are counted, has all patches
        blank = keys.is_meta
        size = self.count if blank else int((keys > 0).sum(1).max())
        if part is not None and self.context:
            size = min(size, self.context)
        chosen = keys.topk(max(1, size), dim=1)
        index, there = chosen.indices, chosen.values > 0
        used = torch.arange(self.count) if blank else torch.unique(index)
        # (patch, spectrum, knot) times (patch, knot, rank), of the patches in use
        table = self.table[used].float()
        sums = torch.bmm(light[:, used].transpose(0, 1), table)
        whole = sums.new_zeros(self.count, len(flux), sums.shape[2])
        whole = whole.index_copy(0, used, sums).transpose(0, 1)
        gathered = whole.gather(1, index[..., None].expand(-1, -1, whole.shape[2]))
        cover, noise, number = (x.gather(1, index) for x in (cover, noise, number))
        scalars = torch.stack(
            [cover, 0.25 * noise.clamp_min(1e-8).log() + 1.5, number.log1p() - 3], dim=2
        )
        gathered = gathered / cover.clamp_min(LEAST_COVER)[..., None]
        values = torch.cat([gathered, scalars], dim=2)
        values = torch.where(there[..., None], values, 0)
        tokens = self.embed(values.to(self.embed.weight.dtype))
        tokens = tokens + self.code[index].to(tokens.dtype)
        return tokens + self.mix(functional.gelu(tokens)), there, index

    def _knot(self, wavelength: Tensor, good: Tensor) -> tuple[Tensor, Tensor]:
        """Knot to the left of each pixel, and the share of the one to the right."""
        place = torch.where(good, wavelength, 1.0).log() - self.start
        place = place / self.step
        left = place.floor()
        return left.long(), (place - left).float()

    def _gather(
        self, flux: Tensor, ivar: Tensor, wavelength: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Bring pixels to knots.

        Returns
        -------
        light : Tensor, shape (spectrum, patch, knot)
            Mean of flux − 1 over the pixels around a knot; 0 where there are none.
        noise : Tensor, shape (spectrum, patch)
            Variance of a patch's mean flux.
        number : Tensor, shape (spectrum, patch)
            Pixels of a patch.
        cover : Tensor, shape (spectrum, patch)
            Share of the knots that have pixels.
        """
        total = self.count * self.knots
        good = (ivar > 0) & wavelength.isfinite()
        left, share = self._knot(wavelength, good)
        good = good & (left >= 0) & (left < total - 1)
        left = torch.where(good, left, 0)
        weight = torch.stack([1 - share, share], dim=2) * good[..., None]
        both = torch.stack([left, (left + 1).clamp_max(total - 1)], dim=2).flatten(1)
        blank = flux.new_zeros(len(flux), total)
        above = (torch.where(good, flux, 1.0) - 1)[..., None]
        sums = blank.scatter_add(1, both, (weight * above).flatten(1))
        weights = blank.scatter_add(1, both, weight.flatten(1))
        light = sums / weights.clamp_min(0.05)
        shape = (len(flux), self.count, self.knots)
        cover = (weights > 0.05).view(shape).float().mean(2)
        patch = left // self.knots
        blank = flux.new_zeros(len(flux), self.count)
        number = blank.scatter_add(1, patch, good.float())
        sigma2 = torch.where(good, 1 / ivar.clamp_min(1e-6), 0).clamp_max(NOISE_CAP)
        noise = blank.scatter_add(1, patch, sigma2) / number.square().clamp_min(1)
        return light.view(shape), noise, number, cover

    def shares(self, flux: Tensor, wavelength: Tensor, weights: Tensor, index: Tensor):
        """Divide the attention of tokens among their pixels.

        In proportion to the length of the vector that a pixel adds to its token's sum,
        |flux − 1|·‖ψ(λ)‖: attention says how much of a token is taken, the length how
        much of the token is the pixel's (norms beside weights: Kobayashi et al. 2020,
        arXiv:2004.10102).

        Parameters
        ----------
        flux, wavelength : Tensor, shape (spectrum, pixel)
            Wavelength NaN where there is nothing to see.
        weights : Tensor, shape (spectrum, request, token)
        index : Tensor of int, shape (spectrum, token)

        Returns
        -------
        Tensor, shape (spectrum, request, pixel)
        """
        good = wavelength.isfinite()
        left, share = self._knot(wavelength, good)
        total = self.count * self.knots
        good = good & (left >= 0) & (left < total - 1)
        left = torch.where(good, left, 0)
        table = self.table.float().flatten(0, 1)
        right = table[(left + 1).clamp_max(total - 1)]
        vector = torch.lerp(table[left], right, share[..., None])
        depth = (flux - 1).abs() + 1e-6  # a patch of pure continuum is shared evenly
        size = torch.where(good, depth * vector.norm(dim=2), 0)
        patch = left // self.knots
        blank = flux.new_zeros(len(flux), self.count)
        sums = blank.scatter_add(1, patch, size)
        part = size / sums.gather(1, patch).clamp_min(1e-12)
        whole = weights.new_zeros(*weights.shape[:2], self.count)
        spread = index[:, None].expand_as(weights)
        whole = whole.scatter_add(2, spread, weights)
        to = patch[:, None].expand(-1, weights.shape[1], -1)
        return whole.gather(2, to) * part[:, None]


def _inside(place: Tensor, known: Tensor, part: Tensor) -> Tensor:
    """Say what lies within a stretch of each spectrum, (spectrum, place)."""
    place = place.float()
    low = torch.where(known, place, math.inf).amin(1, keepdim=True)
    high = torch.where(known, place, -math.inf).amax(1, keepdim=True)
    share = (place - low) / (high - low).clamp_min(1e-6)
    return (share >= part[:, 1:2]) & (share <= part[:, 2:3])


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
