"""What a fit leaves of a spectrum, in a few numbers, as a layer."""

from __future__ import annotations

import torch
from torch import Tensor

from stellarcli.models.regression import Given

BEST = 1e4  # inverse variance beyond which a row counts no more
CLIP = 4.0  # standard deviations of the noise that a pixel may be off by
LEAST_CLIP = 0.08  # of the continuum: what is allowed for real lines anyway
LEAST_SHARE = 0.1  # of a component's variance that noise can't account for


class Residuals(Given):
    """Principal components of residuals, found in the presence of noise.

    Coefficients are the posterior means of a factor model with the training rows'
    variances and each spectrum's own noise (Tipping & Bishop 1999, JRSS B 61, 611,
    with a variance per pixel), in units of their standard deviations: what noise hides
    is 0, the mean star's. Without `solve` there are none.

    Parameters
    ----------
    components : int
    """

    def __init__(self, components: int):
        super().__init__()
        self.components = components
        self.register_buffer("mean", torch.zeros(1))
        self.register_buffer("basis", torch.zeros(0, 1))
        self.tables: tuple[Tensor, ...] = ()

    @torch.no_grad()
    def solve(self, residual: Tensor, weight: Tensor) -> None:
        """Learn mean and components from the less noisy half of the training rows.

        Parameters
        ----------
        residual, weight : Tensor, shape (row, pixel)
            Of the continuum, and the inverse variance.
        """
        quality = weight.mean(dim=1)
        bright = quality >= quality.median()
        residual, weight = residual[bright].double(), weight[bright].double()
        size = min(self.components, len(residual) // 4)
        total = weight.sum(dim=0)
        mean = (weight * residual).sum(dim=0) / total.clamp_min(1)
        rows = weight.clamp_max(BEST).mean(dim=1, keepdim=True)
        centred = _clipped(residual - mean, weight) * rows.sqrt()
        _, values, basis = torch.linalg.svd(centred, full_matrices=False)
        variance = values[:size].square() / rows.sum()
        noise = (1 / weight.clamp_min(1)).mean() / 2  # half: rows of weight count more
        variance = torch.maximum(variance - noise, LEAST_SHARE * variance)
        self.mean = mean.float()
        # in the order that a file gives it back in: products depend on it
        self.basis = (basis[:size] * variance.sqrt()[:, None]).float().contiguous()
        self.tables = ()

    def forward(self, residual: Tensor, weight: Tensor) -> Tensor:
        """(spectrum, pixel), twice, to coefficients (spectrum, component)."""
        size = len(self.basis)
        if not size:
            return residual.new_zeros(len(residual), 0)
        weighted = weight * _clipped(residual - self.mean, weight)
        products, pair = self._tables()
        values = (weight @ products).index_select(1, pair).double()
        normal = values.unflatten(1, (size, size))
        normal.diagonal(dim1=1, dim2=2).add_(1)
        right = (weighted @ self.basis.T).double()
        factor = torch.linalg.cholesky_ex(normal)[0]
        return torch.cholesky_solve(right[..., None], factor)[..., 0].float()

    def _tables(self) -> tuple[Tensor, ...]:
        """Products of pairs of components, (pixel, pair); which is whose, (square,)."""
        if not self.tables or self.tables[0].device != self.basis.device:
            size, device = len(self.basis), self.basis.device
            row, column = torch.triu_indices(size, size, device=device)
            products = (self.basis[row] * self.basis[column]).T.contiguous()
            pair = torch.zeros(size, size, dtype=torch.int64, device=device)
            pair[row, column] = pair[column, row] = torch.arange(
                len(row), device=device
            )
            self.tables = products, pair.flatten()
        return self.tables


def _clipped(residual: Tensor, weight: Tensor) -> Tensor:
    """Residuals without the outliers of the noise, 0 where masked."""
    limit = (CLIP * weight.clamp_min(1e-9).rsqrt()).clamp_min(LEAST_CLIP)
    return torch.where(weight > 0, residual.clamp(-limit, limit), 0)
