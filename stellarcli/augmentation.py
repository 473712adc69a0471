"""Variations of spectra as another observation of the same star would show them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

LONGEST_HIDDEN = 0.1  # of the spectrum, of a hidden window


@dataclass(frozen=True)
class Augmentation:
    """How much to vary.

    Attributes
    ----------
    noise : float
        Up to this multiple of a spectrum's own noise is added, to half of the spectra.
    velocity : float
        Standard deviation of a shift, pixels.
    distortion : float
        Standard deviation of a smooth error of the flux calibration, relative.
    hide : float
        Chance that a window of pixels is hidden.
    """

    noise: float = 0.0
    velocity: float = 0.0
    distortion: float = 0.0
    hide: float = 0.0

    @property
    def any(self) -> bool:
        """Whether spectra are varied at all."""
        return bool(self.noise or self.velocity or self.distortion or self.hide)

    def __call__(
        self,
        flux: Tensor,
        ivar: Tensor,
        generator: torch.Generator,
        part: slice = slice(None),
    ) -> tuple[Tensor, Tensor]:
        """Vary a batch.

        Parameters
        ----------
        flux, ivar : Tensor, shape (spectrum, pixel)
            The whole batch.
        generator : torch.Generator
            On the CPU; draws for the whole batch whatever `part` is, so that several
            processes sharing a batch draw what one process would.
        part : slice
            Spectra to return.

        Returns
        -------
        flux, ivar : Tensor, shape (spectrum of the part, pixel)
        """
        draw = _Draws(flux.shape, generator, part)
        flux, ivar = flux[part], ivar[part]
        if self.velocity:
            flux, ivar = _shift(flux, ivar, draw.normal() * self.velocity)
        if self.distortion:
            factor = torch.exp(_smooth(draw, flux.shape[1]) * self.distortion)
            flux = torch.where(ivar > 0, flux * factor, flux)
            ivar = ivar / factor.square()
        if self.noise:
            factor = (draw.uniform() * 2 - 1).clamp_min(0) * self.noise
            sigma = torch.where(ivar > 0, ivar.clamp_min(1e-8).rsqrt(), 0)
            flux = flux + factor * sigma * draw.normal(flux.shape[1])
            ivar = ivar / (1 + factor.square())
        if self.hide:
            hidden = _window(draw, flux.shape[1]) & (draw.uniform() < self.hide)
            flux = torch.where(hidden, torch.ones_like(flux), flux)
            ivar = torch.where(hidden, torch.zeros_like(ivar), ivar)
        return flux, ivar


class _Draws:
    """Random numbers of one batch, (spectrum of the part, width)."""

    def __init__(self, shape: tuple, generator: torch.Generator, part: slice):
        self.count = shape[0]
        self.generator = generator
        self.part = part

    def uniform(self, width: int = 1) -> Tensor:
        return torch.rand(self.count, width, generator=self.generator)[self.part]

    def normal(self, width: int = 1) -> Tensor:
        return torch.randn(self.count, width, generator=self.generator)[self.part]


def _shift(flux: Tensor, ivar: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Shift redwards by a number of pixels, linearly interpolated.

    Neighbours become correlated, hence the variance is interpolated like the flux. A
    pixel of which one part is masked is masked; beyond the ends the last one repeats.
    """
    width = flux.shape[1]
    whole = torch.floor(pixels)
    share = pixels - whole
    right = (torch.arange(width) - whole.long()).clamp(0, width - 1)
    left = (right - 1).clamp_min(0)

    def mixed(values: Tensor) -> Tensor:
        a, b = values.gather(1, left), values.gather(1, right)
        return torch.where(share == 0, b, share * a + (1 - share) * b)

    variance = mixed(1 / ivar)  # infinite where masked
    return mixed(flux), torch.where(torch.isfinite(variance), 1 / variance, 0)


def _smooth(draw: _Draws, pixels: int) -> Tensor:
    """Random cosines of up to three waves along the spectrum, unit variance."""
    phase = torch.linspace(0, math.pi, pixels)
    waves = torch.stack([torch.cos(k * phase) for k in (1, 2, 3)])
    return draw.normal(3) @ waves * math.sqrt(2 / 3)


def _window(draw: _Draws, pixels: int) -> Tensor:
    """Random window of pixels per spectrum."""
    width = draw.uniform() * LONGEST_HIDDEN * pixels
    start = draw.uniform() * pixels
    position = torch.arange(pixels)
    return (position >= start) & (position < start + width)
