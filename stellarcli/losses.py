"""Losses, element by element, for a mean and a log variance in model units."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional


def nll(mean: Tensor, log_variance: Tensor, truth: Tensor, noise: Tensor) -> Tensor:
    """Gaussian negative log-likelihood, without its constant.

    With label errors the variance is the sum of both (SpectraFM: Koblischke & Bovy
    2024, arXiv:2411.04750; without them RDN's equation 3).
    """
    variance = torch.exp(log_variance) + noise
    return 0.5 * (torch.log(variance) + (truth - mean).square() / variance)


def laplace(mean: Tensor, log_variance: Tensor, truth: Tensor, noise: Tensor) -> Tensor:
    """Laplace negative log-likelihood: robust against wrong labels.

    The variance of the distribution, exp(log_variance) plus that of the labels, is
    2 b².
    """
    log_b = 0.5 * (torch.log(torch.exp(log_variance) + noise) - math.log(2))
    return log_b + (truth - mean).abs() * torch.exp(-log_b)


def mae(mean: Tensor, log_variance: Tensor, truth: Tensor, noise: Tensor) -> Tensor:
    """Absolute error, weighted by label errors; no variance is learnt."""
    return _weighted((truth - mean).abs(), log_variance, noise)


def mse(mean: Tensor, log_variance: Tensor, truth: Tensor, noise: Tensor) -> Tensor:
    """Squared error, weighted by label errors; no variance is learnt."""
    return _weighted((truth - mean).square(), log_variance, noise)


def log_cosh(
    mean: Tensor, log_variance: Tensor, truth: Tensor, noise: Tensor
) -> Tensor:
    """Log-Cosh: squared for small errors, absolute for large ones (MK ResNet, eq. 3).

    ln cosh e = e + ln(1 + exp(-2 e)) - ln 2, which can't overflow.
    """
    error = (truth - mean).abs()
    value = error + functional.softplus(-2 * error) - math.log(2)
    return _weighted(value, log_variance, noise)


def _weighted(value: Tensor, log_variance: Tensor, noise: Tensor) -> Tensor:
    """Weigh rows by 1/(1 + σ²), so that exact labels count fully.

    The log variance enters with a pull to 0, lest weight decay alone decide about it.
    """
    return value / (1 + noise) + 1e-3 * log_variance.square()


LOSSES = {
    "nll": nll,
    "laplace": laplace,
    "mae": mae,
    "mse": mse,
    "log_cosh": log_cosh,
}
LIKELIHOODS = ("nll", "laplace")  # those that learn a variance


def total(loss: Tensor, known: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Sum over known labels, and the sum of their weights.

    Parameters
    ----------
    loss : Tensor, shape (spectrum, label)
    known : Tensor of bool, shape (spectrum, label)
    weights : Tensor, shape (label,)
    """
    weight = known * weights
    return (loss * weight).sum(), weight.sum()
