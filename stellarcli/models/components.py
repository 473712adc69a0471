"""What any network has to be better than: regressions on principal components.

Computed in one go, like `baselines`: the spectra's leading principal components, each
brought to variance 1, then a linear, a local or a Gaussian-process regression on them.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from stellarcli.models.baselines import Fitted, squared_distances

ITERATIONS = 5  # of the search for components
SPARE = 16  # directions beyond them, which make it converge
TRIED = 600  # rows by which a Gaussian process chooses length and noise
LENGTHS = (0.5, 1.0, 2.0, 4.0)  # of the root of the number of components
NOISES = (1e-3, 0.01, 0.03, 0.1, 0.3)  # of the labels' variance


class Components(Fitted):
    """Base of regressions on principal components of the spectra.

    A subclass learns in ``regress(points, truth)``, double precision, and predicts in
    ``at(points)``, which returns mean and variance.

    Parameters
    ----------
    pixels, labels : int
    components : int
    """

    def __init__(self, pixels: int, labels: int, *, components: int = 40):
        super().__init__(pixels, labels)
        if components < 1:
            raise ValueError(f"components must be at least 1, not {components}")
        self.components = components
        self.keep(
            middle=torch.zeros(pixels, dtype=torch.float64),
            basis=torch.zeros(pixels, components, dtype=torch.float64),
        )

    def fit(
        self, flux: np.ndarray, ivar: np.ndarray, truth: np.ndarray, seed: int
    ) -> None:
        """Find the components, then regress; see `Fitted.fit`."""
        spectra, good = torch.from_numpy(flux), torch.from_numpy(ivar > 0)
        count = good.sum(dim=0).clamp_min(1)
        middle = torch.where(good, spectra, 0).sum(dim=0) / count
        centred = torch.where(good, spectra - middle, 0)
        size = min(self.components, *centred.shape)
        torch.manual_seed(seed)
        most = min(size + SPARE, *centred.shape)
        _, values, basis = torch.svd_lowrank(centred, q=most, niter=ITERATIONS)
        spread = values[:size].clamp_min(1e-6 * values[0]) / len(centred) ** 0.5
        self.keep(middle=middle.double(), basis=(basis[:, :size] / spread).double())
        known = torch.from_numpy(np.isfinite(truth))
        self.regress(
            self._points(spectra, good), torch.from_numpy(truth).double(), known
        )

    def regress(self, points: Tensor, truth: Tensor, known: Tensor) -> None:
        """Learn from training rows.

        Parameters
        ----------
        points : Tensor of float64, shape (row, component)
        truth : Tensor of float64, shape (row, label)
            NaN where `known` is False.
        known : Tensor of bool, shape (row, label)
        """
        raise NotImplementedError

    def at(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and variance, each (spectrum, label), at some points."""
        raise NotImplementedError

    def _points(self, flux: Tensor, good: Tensor) -> Tensor:
        return torch.where(good, flux.double() - self.middle, 0) @ self.basis

    def values(self, flux: Tensor, ivar: Tensor) -> tuple[Tensor, Tensor]:
        """Predict; see `Fitted.values`."""
        return self.at(self._points(flux, ivar > 0))


class Ridge(Components):
    """Linear regression with a penalty (Hoerl & Kennard 1970, Technometrics 12, 55).

    The variance is that of the training rows, each left out in turn.

    Parameters
    ----------
    pixels, labels, components : int
    penalty : float
        Added to the normal equations; components have variance 1.
    """

    def __init__(
        self, pixels: int, labels: int, *, components: int = 40, penalty: float = 1.0
    ):
        super().__init__(pixels, labels, components=components)
        if penalty < 0:
            raise ValueError(f"penalty must be 0 or more, not {penalty}")
        self.penalty = penalty
        self.keep(
            slopes=torch.zeros(components + 1, labels, dtype=torch.float64),
            spread=torch.ones(labels, dtype=torch.float64),
        )

    def regress(self, points: Tensor, truth: Tensor, known: Tensor) -> None:
        """Solve the normal equations."""
        design = _with_ones(points)
        penalty = self.penalty * torch.eye(design.shape[1], dtype=torch.float64)
        penalty[0, 0] = 1e-9  # the mean is free
        columns = []
        for values, there in zip(truth.T, known.T, strict=True):
            rows = design[there]
            inverse = torch.linalg.inv(rows.T @ rows + penalty)
            slope = inverse @ (rows.T @ values[there])
            own = ((rows @ inverse) * rows).sum(dim=1).clamp_max(0.99)
            residual = (values[there] - rows @ slope) / (1 - own)
            columns.append((slope, residual.square().mean()))
        slopes, spreads = zip(*columns, strict=True)
        self.keep(slopes=torch.stack(slopes, dim=1), spread=torch.stack(spreads))

    def at(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Evaluate the line."""
        mean = _with_ones(points) @ self.slopes
        return mean, self.spread.expand_as(mean)


class Neighbours(Components):
    """Mean of the nearest training spectra, and the variance about it.

    Parameters
    ----------
    pixels, labels, components : int
    neighbours : int
    """

    def __init__(
        self, pixels: int, labels: int, *, components: int = 10, neighbours: int = 10
    ):
        super().__init__(pixels, labels, components=components)
        if neighbours < 2:
            raise ValueError(f"neighbours must be at least 2, not {neighbours}")
        self.neighbours = neighbours
        self.keep(
            places=torch.zeros(1, components, dtype=torch.float64),
            truth=torch.zeros(1, labels, dtype=torch.float64),
        )

    def regress(self, points: Tensor, truth: Tensor, known: Tensor) -> None:
        """Keep the training rows whose labels are all known."""
        whole = known.all(dim=1)
        if not whole.any():
            raise ValueError("no training row has all labels, which neighbours need")
        self.keep(places=points[whole], truth=truth[whole])

    def at(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Average over neighbours."""
        count = min(self.neighbours, len(self.places))
        distance = squared_distances(points, self.places)
        nearest = distance.topk(count, largest=False).indices  # (spectrum, neighbour)
        labels = self.truth[nearest]
        return labels.mean(dim=1), labels.var(dim=1, correction=0)


class GaussianProcess(Components):
    """Gaussian process with a squared exponential and a linear kernel.

    Length and noise are those with the smallest errors of training rows left out
    (Rasmussen & Williams 2006, eq. 5.12), for each label.

    Parameters
    ----------
    pixels, labels, components : int
    """

    def __init__(self, pixels: int, labels: int, *, components: int = 40):
        super().__init__(pixels, labels, components=components)
        double = {"dtype": torch.float64}
        self.keep(
            places=torch.zeros(1, components, **double),
            weights=torch.zeros(1, labels, **double),
            inverse=torch.zeros(labels, 1, 1, **double),
            level=torch.zeros(labels, **double),
            scale=torch.ones(labels, **double),
            length=torch.ones(labels, **double),
            noise=torch.ones(labels, **double),
            amplitude=torch.ones(labels, **double),
        )

    def regress(self, points: Tensor, truth: Tensor, known: Tensor) -> None:
        """Choose length and noise, and solve."""
        whole = known.all(dim=1)
        if not whole.any():
            raise ValueError("no training row has all labels, which gp needs")
        points, truth = points[whole], truth[whole]
        level, scale = truth.mean(dim=0), truth.std(dim=0).clamp_min(1e-6)
        values = (truth - level) / scale
        step = max(1, len(points) // TRIED)
        lengths, noises, weights, inverses, amplitudes = [], [], [], [], []
        for column in values.T:
            length, noise = _best(points[::step], column[::step])
            kernel = _covariance(points, points, length)
            kernel.diagonal().add_(noise)
            inverses.append(torch.linalg.inv(kernel))
            weights.append(inverses[-1] @ column)
            # errors of rows left out over those promised
            own = inverses[-1].diagonal()
            amplitudes.append((weights[-1].square() / own).mean())
            lengths.append(length)
            noises.append(noise)
        self.keep(
            places=points,
            weights=torch.stack(weights, dim=1),
            inverse=torch.stack(inverses),
            level=level,
            scale=scale,
            length=torch.tensor(lengths, dtype=torch.float64),
            noise=torch.tensor(noises, dtype=torch.float64),
            amplitude=torch.stack(amplitudes),
        )

    def at(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of the process, noise included (ibid., eqs. 2.25, 2.26)."""
        means, variances = [], []
        for i in range(self.labels):
            length = float(self.length[i])
            kernel = _covariance(points, self.places, length)
            means.append(kernel @ self.weights[:, i])
            own = 2 + points.square().mean(dim=1)
            known = ((kernel @ self.inverse[i]) * kernel).sum(dim=1)
            variance = (own - known).clamp_min(0) + self.noise[i]
            variances.append(variance * self.amplitude[i])
        mean, variance = torch.stack(means, dim=1), torch.stack(variances, dim=1)
        return mean * self.scale + self.level, variance * self.scale.square()


def _with_ones(points: Tensor) -> Tensor:
    return torch.cat([torch.ones_like(points[:, :1]), points], dim=1)


def _covariance(one: Tensor, other: Tensor, length: float) -> Tensor:
    """Covariance of points; length is in roots of the number of components."""
    size = one.shape[1]
    smooth = torch.exp(-0.5 * squared_distances(one, other) / (size * length**2))
    return smooth + one @ other.T / size + 1


def _best(points: Tensor, values: Tensor) -> tuple[float, float]:
    """Length and noise with the smallest mean absolute error of rows left out."""
    found = []
    for length in LENGTHS:
        kernel = _covariance(points, points, length)
        for noise in NOISES:
            inverse = torch.linalg.inv(
                kernel + noise * torch.eye(len(kernel), dtype=torch.float64)
            )
            error = (inverse @ values / inverse.diagonal()).abs().mean()
            found.append((float(error), length, noise))
    return min(found)[1:]
