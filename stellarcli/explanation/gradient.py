"""Integrated gradients: what each pixel adds to a label.

Sundararajan, Taly & Yan 2017 (arXiv:1703.01365, equation 1), from the continuum to the
spectrum: (x - x') times the mean gradient on the straight way between them. The sum
over all pixels is the label of the spectrum minus that of the continuum (their
proposition 1, completeness), up to the error of the quadrature.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from stellarcli import feeding, models
from stellarcli.errors import UsageError
from stellarcli.explanation.baseline import continuum_level
from stellarcli.explanation.request import Request
from stellarcli.feeding import Feed
from stellarcli.prediction import Predictor
from stellarcli.preprocess import Batch

BATCH = 16  # spectra whose activations are kept for the way back


def differentiable_labels(
    predictor: Predictor,
    flux: Tensor,
    others: Feed,
    targets: Sequence[int],
) -> list[Tensor]:
    """Compute labels through which gradients go back.

    Parameters
    ----------
    predictor : Predictor
    flux : Tensor, shape (spectrum, pixel)
        On the predictor's device.
    others : dict of ndarray
        What else the networks are fed, the inverse variance above all.
    targets : sequence of int
        Which labels of the model.

    Returns
    -------
    list of Tensor, shape (spectrum,)
        Their gradients are those of the labels in their own units; their values are
        in model units times the slope between both.

    Raises
    ------
    UsageError
        If the model is none that gradients go through.
    """
    feed = {**feeding.tensors(others, flux.device), "flux": flux}
    outputs = [
        network(*(feed[name] for name in models.inputs(network)))[0].float()
        for network in predictor.networks
    ]
    mean = torch.stack(outputs).mean(0)
    if not mean.requires_grad:
        raise UsageError(
            f"{predictor.model.architecture} has no gradients; explain it with "
            "--method occlusion."
        )
    values = mean.detach().cpu().numpy()
    found = []
    for n in targets:
        slope = predictor.model.labels[n].decode_error(values[:, n], 1.0)
        found.append(mean[:, n] * torch.from_numpy(slope).to(mean))
    return found


class IntegratedGradients:
    """Contributions of pixels to labels.

    Attributes
    ----------
    wavelength : ndarray, shape (pixel,)
        Of the model, vacuum Å.
    """

    precision = "float32"
    about = "contribution of a pixel, against the continuum"
    axis = "{} per pixel"

    def __init__(self, predictor: Predictor, request: Request):
        if request.nodes < 1:
            raise UsageError(f"--nodes must be at least 1, not {request.nodes}.")
        self.predictor = predictor
        self.targets = request.choose(predictor.model.labels)
        self.wavelength = predictor.model.wavelength
        self.details = [("NODES", request.nodes, "points of the integral")]
        nodes, weights = np.polynomial.legendre.leggauss(request.nodes)
        self.nodes = ((nodes + 1) / 2).astype(np.float32)
        self.weights = (weights / 2).astype(np.float32)

    def __call__(self, batch: Batch, others: Feed | None = None) -> np.ndarray:
        """Explain prepared spectra.

        Parameters
        ----------
        batch : Batch
        others : dict of ndarray, optional
            What the network is fed beside flux and ivar.

        Returns
        -------
        ndarray of float32, shape (spectrum, pixel, label)
            In the label's unit.
        """
        level = continuum_level(batch, self.predictor.model.recipe)
        way = batch.flux - level
        others = {**(others or {}), "ivar": batch.ivar}
        gradient = np.zeros((*way.shape, len(self.targets)), dtype=np.float32)
        pairs = len(batch) * len(self.nodes)
        for first in range(0, pairs, BATCH):
            pair = np.arange(first, min(first + BATCH, pairs))
            row, node = np.divmod(pair, len(self.nodes))
            flux = level[row] + self.nodes[node, None] * way[row]
            weight = self.weights[node, None, None]
            found = self._gradient(flux, feeding.taken(others, row))
            np.add.at(gradient, row, weight * found)
        return gradient * way[..., None]

    def _gradient(self, flux: np.ndarray, others: Feed) -> np.ndarray:
        """Differentiate labels by flux; shape (spectrum, pixel, label)."""
        x = torch.from_numpy(flux).to(self.predictor.device).requires_grad_()
        found = [
            torch.autograd.grad(label.sum(), x, retain_graph=True)[0]
            for label in differentiable_labels(self.predictor, x, others, self.targets)
        ]
        return torch.stack(found, dim=2).cpu().numpy()
