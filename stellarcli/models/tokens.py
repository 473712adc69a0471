"""Spectra of any range and sampling as tokens, for `models.spectrafm`.

There are two kinds of tokens.

pixels
    The paper's: GELU(E·flux + b), here with the noise beside the flux, plus a
    sinusoidal code of ln λ (`code`). Attention, quadratic in their number, takes
    some 500 of them; which ones is drawn anew in every training step.
patches
    The light of a stretch of ln λ: Σ (flux − 1)·ψ(λ) over its pixels, with ψ a table
    over ln λ that is learnt, linear between its knots (`Patches`), in place of one E
    for all wavelengths. Such sums mean the same whatever the sampling, as equivalent
    widths do, and a spectrum of 4000 pixels is 180 tokens. Where no training spectrum
    had light the table knows nothing, which `familiarity` keeps in mind.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

NOISE_CAP = 1.0  # noise of a pixel, relative to the continuum
LEAST_COVER = 0.3  # of a patch's knots, for a token
LONGEST, SHORTEST = 4.0, 1e-4  # periods of the code of ln λ


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
