"""Channel attention: how much a network's head trusts each of its channels.

SPFusion's head weighs its channels by squeeze and excitation; the first third is
photometric, the second fused, the third spectral (He et al., section 5 and figures 9
and 10). The weights themselves are the heat map over a batch.

Over the spectrum the paper lays the weights of the spectral third as if channels were
pieces of the spectrum. They aren't: every channel sees all of it. Here each position
gets the mean of the weights, weighted by how active each channel is there; above 0.5
the channels that see a position are those that the head lets through.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from stellarcli import feeding, models
from stellarcli.errors import UsageError
from stellarcli.explanation.activation import Tap, spread
from stellarcli.explanation.request import Request
from stellarcli.feeding import Feed
from stellarcli.labels import Label
from stellarcli.prediction import Predictor
from stellarcli.preprocess import Batch

BATCH = 32  # spectra at a time
ATTENTION = Label("attention", "", "mean weight of the channels active there", (0, 1))


class ChannelAttention:
    """Weights of channels, and of positions by the channels active there.

    Attributes
    ----------
    wavelength : ndarray, shape (pixel,)
        Of the model, vacuum Å.
    labels : list of Label
        One: attention is the same for all labels of a model.
    parts : dict of slice
        Channels of each kind.
    channels : ndarray of float32, shape (spectrum, channel)
        Weights of the last batch.

    Raises
    ------
    UsageError
        If the model's network has no channel attention.
    """

    precision = "float32"
    about = "weight of the spectral channels, by their activity at a position"
    axis = "{}"

    def __init__(self, predictor: Predictor, request: Request):
        request.choose(predictor.model.labels)  # a name that doesn't exist is one
        self.predictor = predictor
        network = predictor.networks[0]
        if not hasattr(network, "channel_parts"):
            able = [
                name
                for name in models.MODELS
                if hasattr(models.network_class(name), "channel_parts")
            ]
            raise UsageError(
                f"{predictor.model.architecture} has no channel attention; it's in "
                f"{', '.join(able)}. Explain this model with --method occlusion."
            )
        self.parts: dict[str, slice] = network.channel_parts()
        self.labels = [ATTENTION]
        self.targets = [0]
        self.wavelength = predictor.model.wavelength
        count = max(part.stop for part in self.parts.values())
        self.channels = np.zeros((0, count), dtype=np.float32)
        self.details = [
            (name[:8].upper(), f"{part.start}:{part.stop}", f"{name} channels")
            for name, part in self.parts.items()
        ]

    def __call__(self, batch: Batch, others: Feed | None = None) -> np.ndarray:
        """Explain prepared spectra.

        Parameters
        ----------
        batch : Batch
        others : dict of ndarray, optional
            What the network is fed beside flux and ivar.

        Returns
        -------
        ndarray of float32, shape (spectrum, pixel, 1)
            0 to 1.
        """
        feed = {"flux": batch.flux, "ivar": batch.ivar, **(others or {})}
        pieces = [
            self._attend(feeding.taken(feed, slice(n, n + BATCH)))
            for n in range(0, len(batch), BATCH)
        ]
        weights, maps = zip(*pieces, strict=True)
        self.channels = np.concatenate(weights)
        return np.concatenate(maps)[:, :, None]

    @torch.no_grad()
    def _attend(self, feed: Feed) -> tuple[np.ndarray, np.ndarray]:
        """Weights (spectrum, channel) and maps (spectrum, pixel), over all members."""
        tensors = feeding.tensors(feed, self.predictor.device)
        weights, maps = [], []
        for network in self.predictor.networks:
            seen: list[Tensor] = []
            attention = network.head.attention
            hook = attention.register_forward_pre_hook(
                lambda _, inputs, seen=seen: seen.append(inputs[0])
            )
            with Tap([attention]) as tap:
                network(*(tensors[name] for name in models.inputs(network)))
            hook.remove()
            own = self.parts["spectral"]
            weight, active = tap.maps[0], seen[0][:, own, 0].abs()
            lit = (active * weight[:, own, None]).sum(1)
            weights.append(weight)
            position = lit / active.sum(1).clamp_min(1e-12)  # (spectrum, position)
            maps.append(spread(network, position, len(self.wavelength)))
        return tuple(
            torch.stack(found).mean(0).float().cpu().numpy()
            for found in (weights, maps)
        )
