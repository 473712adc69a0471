"""Attention: where a network that answers requests looks for each label.

A network with a method ``attention`` (`stellarcli.models.spectrafm`) says how much of
each request's attention, mean over heads and layers, every pixel gets. Spectra that
keep their own sampling are brought to one scale of wavelengths by adding up what falls
between its points. Attention has no sign and no unit: it says where a label is looked
up, not how it answers (Jain & Wallace 2019, arXiv:1902.10186); occlusion does.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from stellarcli import feeding, models
from stellarcli.errors import UsageError
from stellarcli.explanation.request import Request
from stellarcli.feeding import Feed
from stellarcli.prediction import Predictor
from stellarcli.preprocess import Batch

STEP = 2e-4  # of the common scale, in ln λ: 1 Å at 5000 Å
BATCH = 16


class Attention:
    """Shares of attention, per pixel or point of a common scale.

    Attributes
    ----------
    wavelength : ndarray, shape (point,)
        Of the model, or, where it has none, `STEP` apart; vacuum Å.

    Raises
    ------
    UsageError
        If the network doesn't attend.
    """

    precision = "float32"
    about = "share of the label's attention"
    axis = "attention to {}"
    any_grid = True  # takes spectra of their own sampling
    in_units = False  # of the label

    def __init__(self, predictor: Predictor, request: Request):
        if not hasattr(predictor.networks[0], "attention"):
            kinds = {name: models.network_class(name) for name in models.MODELS}
            able = [name for name, kind in kinds.items() if hasattr(kind, "attention")]
            raise UsageError(
                f"{predictor.model.architecture} has no attention; it is there in "
                f"{', '.join(able)}. Explain this model with --method occlusion."
            )
        self.predictor = predictor
        self.targets = request.choose(predictor.model.labels)
        self.own = predictor.model.wavelength is None
        self.wavelength = predictor.model.wavelength
        if self.own:
            low, high = math.log(request.windows.start), math.log(request.windows.stop)
            points = np.arange(low, high, STEP) + STEP / 2
            self.wavelength = np.exp(points)
        blocks = len(predictor.networks[0].decoder)
        self.details = [("BLOCKS", blocks, "of the decoder, averaged")]

    def __call__(self, batch: Batch, others: Feed | None = None) -> np.ndarray:
        """Explain prepared spectra.

        Parameters
        ----------
        batch : Batch
        others : dict of ndarray
            What the network is fed beside flux and ivar.

        Returns
        -------
        ndarray of float32, shape (spectrum, point, label)
        """
        feed = {**(others or {}), "flux": batch.flux, "ivar": batch.ivar}
        parts = [slice(n, n + BATCH) for n in range(0, len(batch), BATCH)]
        found = np.concatenate([self._maps(feeding.taken(feed, p)) for p in parts])
        if not self.own:
            return found.transpose(0, 2, 1)
        place, inside = self._places(batch.wavelength)
        values = np.zeros((*found.shape[:2], len(self.wavelength)), dtype=np.float32)
        for row in range(len(batch)):
            kept = inside[row]
            for n, map_ in enumerate(found[row]):
                np.add.at(values[row, n], place[row, kept], map_[kept])
        return values.transpose(0, 2, 1)

    def _maps(self, feed: Feed) -> np.ndarray:
        """Attention of the labels to pixels, mean of the ensemble."""
        tensors = feeding.tensors(feed, self.predictor.device)
        found = [
            network.attention(*(tensors[name] for name in models.inputs(network)))
            for network in self.predictor.networks
        ]
        return torch.stack(found).mean(0)[:, self.targets].float().cpu().numpy()

    def _places(self, wavelength: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Point that each pixel belongs to, and whether there is one."""
        start = math.log(self.wavelength[0]) - STEP / 2
        with np.errstate(invalid="ignore"):
            place = np.floor((np.log(wavelength) - start) / STEP)
            inside = (place >= 0) & (place < len(self.wavelength))
        return np.where(inside, place, 0).astype(int), inside

    def flux(self, batch: Batch) -> np.ndarray:
        """Return the prepared flux at `wavelength`, NaN where masked or not there."""
        known = np.where(batch.good, batch.flux, np.float32(np.nan))
        if not self.own:
            return known
        shape = (len(batch), len(self.wavelength))
        found = np.full(shape, np.nan, dtype=np.float32)
        for row, good in enumerate(batch.good):
            if good.any():
                own = batch.wavelength[row, good]
                near = np.interp(self.wavelength, own, batch.flux[row, good])
                index = np.searchsorted(own, self.wavelength).clip(1, own.size - 1)
                gap = np.diff(own)[index - 1] > 5 * np.median(np.diff(own))
                beyond = (self.wavelength < own[0]) | (self.wavelength > own[-1])
                found[row] = np.where(gap | beyond, np.nan, near)
        return found
