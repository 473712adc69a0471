"""Occlusion: how labels change when a window is replaced by the continuum.

Zeiler & Fergus 2014 (arXiv:1311.2901, section 4.2), as SCA-Net uses it (Zhang H. K. et
al. 2026, figure 8). The inverse variance stays: the network is not told.
"""

from __future__ import annotations

import logging

import numpy as np
import torch

from stellarcli import feeding
from stellarcli.errors import UsageError
from stellarcli.explanation.baseline import continuum_level
from stellarcli.explanation.request import Request
from stellarcli.feeding import Feed
from stellarcli.prediction import Predictor
from stellarcli.preparation import CHUNK
from stellarcli.preprocess import Batch

BLUR = 0.1  # error of a change by bfloat16 over the change; 0.03 of the shipped model

log = logging.getLogger(__name__)


class Occlusion:
    """Changes of labels, per window.

    Attributes
    ----------
    wavelength : ndarray, shape (window,)
        Middles of the windows, vacuum Å.
    seen : ndarray of int
        Windows with a pixel of the model in them; the change is 0 in the others.

    Raises
    ------
    UsageError
        If no window holds a pixel of the model.
    """

    precision = "auto"  # `_settle` decides
    about = "change when a window is replaced by the continuum"
    axis = "|Δ {}|"

    def __init__(self, predictor: Predictor, request: Request):
        model = predictor.model
        self.predictor = predictor
        self.recipe = model.recipe
        self.targets = request.choose(model.labels)
        self.wavelength = request.windows.centre
        self.details = [
            ("WINDOW", request.windows.width, "[Angstrom] width of a window"),
            ("STEP", request.windows.step, "[Angstrom] between windows"),
        ]
        self.inside = request.windows.contains(model.wavelength)
        self.seen = np.flatnonzero(self.inside.any(axis=1))
        if not self.seen.size:
            low, high = model.wavelength[[0, -1]]
            raise UsageError(
                f"the model sees {low:.0f} to {high:.0f} Å and no window lies there; "
                "change --start and --stop."
            )
        parameters = (p for n in predictor.networks for p in n.parameters())
        if any(parameter.dtype == torch.bfloat16 for parameter in parameters):
            self._settle()

    def _settle(self) -> None:
        """Go back to float32 if bfloat16 blurs changes, which are small differences.

        Mean absolute changes would be too large by about half the square of the blur.
        """
        exact = Predictor(self.predictor.model, str(self.predictor.device), "float32")
        feed = self.predictor.made_up()
        spaced = np.linspace(0, len(self.seen) - 1, CHUNK).round().astype(int)
        inside = self.inside[self.seen[spaced]]
        occluded = feed | {"flux": np.where(inside, np.float32(1), feed["flux"])}
        reduced, change = (
            p.predict(**occluded)[0] - p.predict(**feed)[0]
            for p in (self.predictor, exact)
        )
        blur = np.median(np.abs(reduced - change), axis=0)
        if not (blur <= BLUR * np.median(np.abs(change), axis=0)).all():
            log.info("bfloat16 blurs the changes of this model; float32 is used")
            self.predictor = exact

    def __call__(self, batch: Batch, others: Feed | None = None) -> np.ndarray:
        """Explain prepared spectra.

        Parameters
        ----------
        batch : Batch
        others : dict of ndarray, optional
            What the network is fed beside flux and ivar.

        Returns
        -------
        ndarray of float32, shape (spectrum, window, label)
            Label with the window replaced minus label, in the label's unit.
        """
        level = continuum_level(batch, self.recipe)
        others = others or {}
        whole = self._values(batch.flux, batch.ivar, others)
        shape = (len(batch), len(self.wavelength), whole.shape[1])
        change = np.zeros(shape, dtype=np.float32)
        # pairs of a spectrum and a window, in full batches: few spectra take the model
        # no longer per pair than many, and memory is that of one batch
        pairs = len(batch) * len(self.seen)
        for first in range(0, pairs, CHUNK):
            pair = np.arange(first, min(first + CHUNK, pairs))
            row, window = np.divmod(pair, len(self.seen))
            window = self.seen[window]
            flux = np.where(self.inside[window], level[row], batch.flux[row])
            occluded = self._values(flux, batch.ivar[row], feeding.taken(others, row))
            change[row, window] = occluded - whole[row]
        return change

    def _values(self, flux: np.ndarray, ivar: np.ndarray, others: Feed) -> np.ndarray:
        """Labels in their own units, shape (spectrum, label)."""
        mean, _, _ = self.predictor.predict(flux, ivar, **others)
        labels = self.predictor.model.labels
        return np.stack([labels[n].decode(mean[:, n]) for n in self.targets], axis=1)
