"""What the papers compare their networks with: models computed in one go.

They keep the contract of `stellarcli.models`, so that they train, save, load and
predict like any network; but they have buffers instead of parameters, and a method
``fit`` that fills them from the training spectra. Training calls it instead of
descending a gradient, and settings of the descent mean nothing to them. All training
spectra are in memory meanwhile. Fitting with trees and clusters needs scikit-learn,
predicting doesn't.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stellarcli.errors import UsageError

SMALLEST = 1e-6  # of variances, in model units


class Fitted(nn.Module):
    """Base of models that are computed in one go.

    A subclass registers its buffers with `keep`, in any size, since a model file
    brings its own; it fills them in ``fit(flux, ivar, truth, seed)`` and predicts in
    ``values(flux, ivar)``. Buffers of float32 may be stored as float16; what needs its
    digits is float64.

    Parameters
    ----------
    pixels, labels : int
    """

    def __init__(self, pixels: int, labels: int):
        super().__init__()
        self.pixels, self.labels = pixels, labels
        self.trunk = nn.Identity()  # nothing computes in bfloat16

    def keep(self, **arrays: np.ndarray | Tensor) -> None:
        """Set buffers by name."""
        for name, values in arrays.items():
            self.register_buffer(name, torch.as_tensor(values))

    def fit(
        self, flux: np.ndarray, ivar: np.ndarray, truth: np.ndarray, seed: int
    ) -> None:
        """Fill the buffers.

        Parameters
        ----------
        flux, ivar : ndarray of float32, shape (spectrum, pixel)
        truth : ndarray of float32, shape (spectrum, label)
            In model units; NaN where unknown.
        seed : int
            Of all random choices.
        """
        raise NotImplementedError

    def values(self, flux: Tensor, ivar: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and variance, each (spectrum, label), in model units."""
        raise NotImplementedError

    def forward(self, flux: Tensor, ivar: Tensor) -> tuple[Tensor, Tensor]:
        """Predict labels; see `stellarcli.models`."""
        mean, variance = self.values(flux, ivar)
        return mean.float(), variance.clamp_min(SMALLEST).log().float()

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *rest: Any
    ) -> None:
        """Take the sizes of a model file before its values."""
        for name, buffer in self.named_buffers(recurse=False):
            if (stored := state_dict.get(prefix + name)) is not None:
                self.keep(**{name: buffer.new_zeros(stored.shape)})
        super()._load_from_state_dict(state_dict, prefix, *rest)


class KernelRegression(Fitted):
    """Non-parametric regression: all training spectra, weighted by their likeness.

    The weights are exp(-d²/2h²) of the squared Euclidean distances d², with h² the
    smallest of them, as the MK ResNet paper adapts it (Wang et al. 2021, section 2.2;
    Liu et al. 2017, Spectroscopy and Spectral Analysis 37, 1553). The variance is that
    of the training labels under these weights.

    Parameters
    ----------
    pixels, labels : int
    bandwidth : float
        Factor on h; 1 as in the paper.
    """

    def __init__(self, pixels: int, labels: int, *, bandwidth: float = 1.0):
        super().__init__(pixels, labels)
        if bandwidth <= 0:
            raise ValueError(f"bandwidth must be positive, not {bandwidth}")
        self.bandwidth = bandwidth
        self.keep(
            spectra=torch.zeros(1, pixels),
            truth=torch.zeros(1, labels),
            known=torch.ones(1, labels, dtype=torch.bool),
        )

    def fit(
        self, flux: np.ndarray, ivar: np.ndarray, truth: np.ndarray, seed: int
    ) -> None:
        """Keep the training spectra, about their continuum."""
        known = np.isfinite(truth)
        self.keep(spectra=flux - 1, truth=np.where(known, truth, 0), known=known)

    def values(self, flux: Tensor, ivar: Tensor) -> tuple[Tensor, Tensor]:
        """Weigh the training labels."""
        squared = squared_distances(flux - 1, self.spectra)  # (spectrum, training)
        nearest = squared.amin(dim=1, keepdim=True).clamp_min(1e-12)
        weight = torch.exp(-0.5 * squared / (nearest * self.bandwidth**2))
        total = (weight @ self.known.float()).clamp_min(1e-30)
        mean = weight @ self.truth / total
        # about each spectrum's own mean: squares of means would cancel
        off = self.known * (self.truth - mean.unsqueeze(1)).square()
        # (spectrum, training) and (spectrum, training, label)
        return mean, torch.einsum("st,stl->sl", weight, off) / total


class KMeans(Fitted):
    """K-means: the mean label of the nearest cluster of training spectra.

    The variance is that of the cluster's labels, with one more of the variance of all.

    Parameters
    ----------
    pixels, labels : int
    clusters : int
        Fewer where there are fewer training spectra.
    """

    def __init__(self, pixels: int, labels: int, *, clusters: int = 64):
        super().__init__(pixels, labels)
        if clusters < 1:
            raise ValueError(f"clusters must be at least 1, not {clusters}")
        self.clusters = clusters
        self.keep(
            centres=torch.zeros(1, pixels),
            means=torch.zeros(1, labels),
            variances=torch.ones(1, labels),
        )

    def fit(
        self, flux: np.ndarray, ivar: np.ndarray, truth: np.ndarray, seed: int
    ) -> None:
        """Find the clusters, and their labels."""
        clusters = min(self.clusters, len(flux))
        found = scikit_learn("cluster").KMeans(clusters, random_state=seed)
        number = found.fit_predict(flux - 1)
        belongs = (number == np.arange(clusters)[:, None]).astype(np.float32)
        known = np.isfinite(truth)
        truth = np.where(known, truth, 0)
        count = belongs @ known  # (cluster, label)
        means = (belongs @ truth) / np.maximum(count, 1)  # 0, the mean, of empty ones
        off = np.square(truth - means[number]) * known
        variances = (belongs @ off + 1) / (count + 1)
        self.keep(
            centres=found.cluster_centers_.astype(np.float32),
            means=means.astype(np.float32),
            variances=variances.astype(np.float32),
        )

    def values(self, flux: Tensor, ivar: Tensor) -> tuple[Tensor, Tensor]:
        """Look up the nearest cluster."""
        nearest = squared_distances(flux - 1, self.centres).argmin(dim=1)
        return self.means[nearest], self.variances[nearest]


class AdaBoost(Fitted):
    """AdaBoost.R2 over regression trees (Drucker 1997; CART, Breiman et al. 1984).

    The prediction is the median of the trees under their weights, the variance their
    spread about it and that of the training residuals. A label has its own trees.

    Parameters
    ----------
    pixels, labels : int
    trees : int
        At most; boosting ends where it doesn't help.
    depth : int
        Of a tree.
    share : float
        Part of the pixels, drawn at random, that a node chooses from: 1 is CART, less
        is as much faster.
    """

    def __init__(
        self,
        pixels: int,
        labels: int,
        *,
        trees: int = 50,
        depth: int = 6,
        share: float = 1.0,
    ):
        super().__init__(pixels, labels)
        if trees < 1 or depth < 1 or not 0 < share <= 1:
            raise ValueError(
                f"trees and depth must be at least 1, share above 0 and up to 1, not "
                f"{trees}, {depth} and {share}"
            )
        self.trees, self.depth, self.share = trees, depth, share
        empty = torch.zeros(labels, 1, 1)  # (label, tree, node)
        self.keep(
            pixel=empty.long(),
            threshold=empty.double(),
            left=empty.long(),
            right=empty.long(),
            leaf=empty.double(),
            weight=torch.ones(labels, 1).double(),
            residual=torch.ones(labels).double(),
        )

    def fit(
        self, flux: np.ndarray, ivar: np.ndarray, truth: np.ndarray, seed: int
    ) -> None:
        """Grow the trees of each label."""
        ensemble, tree = scikit_learn("ensemble"), scikit_learn("tree")
        boosters, residual = [], []
        for values in truth.T:
            known = np.isfinite(values)
            base = tree.DecisionTreeRegressor(
                max_depth=self.depth, max_features=self.share
            )
            booster = ensemble.AdaBoostRegressor(
                base, n_estimators=self.trees, random_state=seed
            )
            booster.fit(flux[known], values[known])
            off = booster.predict(flux[known]) - values[known]
            boosters.append(booster)
            residual.append(np.square(off).mean())
        self.keep(**_as_arrays(boosters), residual=np.array(residual))

    def values(self, flux: Tensor, ivar: Tensor) -> tuple[Tensor, Tensor]:
        """Let every tree decide, and take their weighted median."""
        leaf = self._leaves(flux)  # (label, tree, spectrum)
        ordered, order = leaf.sort(dim=1)
        weight = self.weight.unsqueeze(2).expand_as(leaf).gather(1, order)
        total = weight.sum(dim=1, keepdim=True)
        middle = (weight.cumsum(dim=1) >= 0.5 * total).int().argmax(dim=1, keepdim=True)
        median = ordered.gather(1, middle)
        spread = (weight * (ordered - median).square()).sum(1, keepdim=True) / total
        variance = spread.squeeze(1) + self.residual.unsqueeze(1)
        return median.squeeze(1).T, variance.T

    def _leaves(self, flux: Tensor) -> Tensor:
        """Values of the leaves that spectra fall into, (label, tree, spectrum)."""
        labels, trees, _ = self.leaf.shape
        node = torch.zeros(
            labels, trees, len(flux), dtype=torch.long, device=flux.device
        )
        spectrum = torch.arange(len(flux), device=flux.device)
        for _ in range(self.depth):
            value = flux[spectrum, self.pixel.gather(2, node)]
            below = value <= self.threshold.gather(2, node)
            node = torch.where(
                below, self.left.gather(2, node), self.right.gather(2, node)
            )
        return self.leaf.gather(2, node)


def _as_arrays(boosters: list[Any]) -> dict[str, np.ndarray]:
    """Trees of scikit-learn as arrays (label, tree, node); leaves lead to themselves.

    Labels with fewer trees than others get more of no weight.
    """
    forests = [[one.tree_ for one in booster.estimators_] for booster in boosters]
    most = max(map(len, forests))
    nodes = max(tree.node_count for forest in forests for tree in forest)
    shape = (len(forests), most, nodes)
    arrays = {name: np.zeros(shape, "i8") for name in ("pixel", "left", "right")}
    arrays |= {name: np.zeros(shape) for name in ("threshold", "leaf")}
    arrays["weight"] = np.zeros(shape[:2])
    for label, (booster, forest) in enumerate(zip(boosters, forests, strict=True)):
        arrays["weight"][label, : len(forest)] = booster.estimator_weights_[
            : len(forest)
        ]
        for number, tree in enumerate(forest):
            place = label, number, slice(tree.node_count)
            itself, inner = np.arange(tree.node_count), tree.children_left >= 0
            arrays["pixel"][place] = np.where(inner, tree.feature, 0)
            arrays["left"][place] = np.where(inner, tree.children_left, itself)
            arrays["right"][place] = np.where(inner, tree.children_right, itself)
            arrays["threshold"][place] = tree.threshold
            arrays["leaf"][place] = tree.value[:, 0, 0]
    return arrays


def squared_distances(one: Tensor, other: Tensor) -> Tensor:
    """Squared Euclidean distances of rows, (row, other row); never negative."""
    lengths = one.square().sum(1, keepdim=True) + other.square().sum(1)
    return torch.addmm(lengths, one, other.T, alpha=-2).clamp_min(0)


def scikit_learn(module: str) -> Any:
    """Import a module of scikit-learn.

    Raises
    ------
    UsageError
        If it isn't installed.
    """
    from importlib import import_module

    try:
        return import_module(f"sklearn.{module}")
    except ImportError:
        raise UsageError(
            "fitting this model needs scikit-learn, which isn't installed; run "
            "'pip install scikit-learn' (predicting doesn't need it)."
        ) from None
