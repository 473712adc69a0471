"""Kernel regression as a layer, solved at once from the training rows."""

from __future__ import annotations

import torch
from torch import Tensor, nn

REACH = 1.7  # length scale of the kernel, standard deviations of the inputs
BENT, STRAIGHT = 4.0, 10.0  # variances of its smooth and of its linear part
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
    predict more noise.

    Parameters
    ----------
    inputs, outputs : int
    """

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
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
        return _kernel(points, self.points) @ self.weights + self.level

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
        points = (inputs - self.center) / self.scale
        self.points = points.clamp(-FARTHEST, FARTHEST).float()
        kernel = _kernel(self.points.double(), self.points.double())
        columns = [_solution(kernel, target, noise) for target in targets.T]
        weights, levels = zip(*columns, strict=True)
        self.weights = torch.stack(weights, dim=1).float()
        self.level = torch.stack(levels).float()


def _kernel(one: Tensor, other: Tensor) -> Tensor:
    """Covariance of rows, (row of one, row of other)."""
    product = one @ other.T
    square = one.square().sum(1)[:, None] + other.square().sum(1) - 2 * product
    smooth = torch.exp(-0.5 * square.clamp_min(0) / REACH**2)
    return BENT * smooth + STRAIGHT * (product + 1)


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
