"""Kernel regression as a layer, solved at once from the training rows."""

from __future__ import annotations

import torch
from torch import Tensor, nn

REACH = 1.7  # length scale of the kernel, standard deviations of the inputs
BENT, STRAIGHT = 4.0, 10.0  # variances of its smooth and of its linear part
LATENT_REACH = 7.0  # the same for the latent inputs, standard deviations
JOINT, SLIGHT = 2.0, 0.1  # variances of what inputs and latents do together; linear
NOISE = 0.3  # variance of targets without noise of their own
ROUNDS = 3  # of reweighting
ORDINARY = 2.0  # robust standard deviations; targets farther off weigh less
FARTHEST = 5.0  # standard deviations of the inputs; beyond, the edge's value is used


class Given(nn.Module):
    """A module of buffers, whose sizes are those of what it loads."""

    def _load_from_state_dict(self, state, prefix, *rest) -> None:
        for name, buffer in self.named_buffers(recurse=False):
            if prefix + name in state:
                setattr(self, name, buffer.new_zeros(state[prefix + name].shape))
        super()._load_from_state_dict(state, prefix, *rest)


class KernelRegression(Given):
    """A smooth function of a few inputs plus a linear one: 0 until it is `solve`d.

    The mean of a Gaussian process (Rasmussen & Williams 2006, eq. 2.25) with a squared
    exponential and a linear kernel, made robust by giving targets that the others don't
    predict more noise. Latent inputs, many and each of little weight, add a linear
    kernel of their own and one that is local in the inputs and smooth in the latents:
    what they mean may differ from one kind of star to another.

    Parameters
    ----------
    inputs, outputs : int
    latents : int
        Latent inputs, of variance 1: the last columns.
    """

    exact = True  # values are differences of large numbers: files keep all digits

    def __init__(self, inputs: int, outputs: int, latents: int = 0):
        super().__init__()
        self.latents = latents
        inputs += latents
        self.register_buffer("center", torch.zeros(inputs))
        self.register_buffer("scale", torch.ones(inputs))
        self.register_buffer("points", torch.zeros(0, inputs))
        self.register_buffer("weights", torch.zeros(0, outputs))
        self.register_buffer("level", torch.zeros(outputs))

    @property
    def solved(self) -> bool:
        """Whether there are training points."""
        return len(self.points) > 0

    def forward(self, inputs: Tensor) -> Tensor:
        """(row, input) to (row, output)."""
        points = ((inputs - self.center) / self.scale).clamp(-FARTHEST, FARTHEST)
        return self._kernel(points, self.points) @ self.weights + self.level

    def _kernel(self, one: Tensor, other: Tensor) -> Tensor:
        """Covariance of rows, (row of one, row of other)."""
        split = self.points.shape[1] - self.latents
        product = one[:, :split] @ other[:, :split].T
        smooth = _bell(one[:, :split], other[:, :split], product, REACH)
        kernel = torch.add(product.add_(1).mul_(STRAIGHT), smooth, alpha=BENT)
        if self.latents:
            one, other = one[:, split:], other[:, split:]
            product = one @ other.T
            local = _bell(one, other, product, LATENT_REACH)
            kernel.addcmul_(smooth, local, value=JOINT).add_(product, alpha=SLIGHT)
        return kernel

    @torch.no_grad()
    def solve(self, inputs: Tensor, targets: Tensor, noise: Tensor) -> None:
        """Learn from training rows; time goes with the cube of their number.

        Parameters
        ----------
        inputs : Tensor, shape (row, input)
        targets : Tensor, shape (row, output)
            NaN where unknown.
        noise : Tensor, shape (row,)
            Variance of the rows' targets relative to that of a row without noise.
        """
        inputs, targets, noise = inputs.double(), targets.double(), noise.double()
        self.center = inputs.mean(dim=0).float()
        self.scale = inputs.std(dim=0).clamp_min(1e-6).float()
        if self.latents:  # in their unit already
            self.center[-self.latents :], self.scale[-self.latents :] = 0, 1
        points = (inputs - self.center) / self.scale
        self.points = points.clamp(-FARTHEST, FARTHEST).float()
        kernel = self._kernel(self.points.double(), self.points.double())
        columns = [_solution(kernel, target, noise) for target in targets.T]
        weights, levels = zip(*columns, strict=True)
        self.weights = torch.stack(weights, dim=1).float()
        self.level = torch.stack(levels).float()


def _bell(one: Tensor, other: Tensor, product: Tensor, reach: float) -> Tensor:
    """Squared exponential of the distances between rows."""
    squares = one.square().sum(1)[:, None] + other.square().sum(1)
    squares.sub_(product, alpha=2).clamp_min_(0)
    return squares.mul_(-0.5 / reach**2).exp_()


def _solution(kernel: Tensor, target: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of the points for one output, and the level they add to."""
    known = torch.isfinite(target)
    weights = torch.zeros_like(target)
    if not known.any():
        return weights, target.new_zeros(())
    level = target[known].median()
    spread = _robust(target[known] - level).clamp_min(1e-9)
    values = ((target[known] - level) / spread).clamp(-15, 15)
    own = NOISE * noise[known]
    widened = own
    for _ in range(ROUNDS):
        covariance = kernel[known][:, known] + torch.diag(widened)
        inverse = torch.linalg.inv(covariance)
        solution = inverse @ values
        # residual of each row left out, over its error (ibid., eq. 5.12)
        off = solution.abs() / inverse.diagonal().sqrt()
        ratio = off / _robust(off).clamp_min(1e-9) / ORDINARY
        widened = own * ratio.clamp_min(1).square()
    weights[known] = solution * spread
    return weights, level


def _robust(values: Tensor) -> Tensor:
    return 1.4826 * values.abs().median()
