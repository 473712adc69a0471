"""Class activation maps of a convolutional stage, weighted by gradients.

Zhou et al. 2016 (arXiv:1512.04150) weigh a stage's channels by the last layer behind
global average pooling. With gradients for weights any stage will do:

cam      each position has its own gradient, as in HiResCAM (Draelos & Carin 2020,
         arXiv:2011.08891, equation 3). Maps agree with occlusion
gradcam  the mean gradient of all positions, as in Grad-CAM (Selvaraju et al. 2017,
         arXiv:1610.02391, equation 1). Maps show the lines that the weighted channels
         see, also where they hardly matter. Where a network looks at positions one by
         one (resnet1d), their gradients differ in sign and the mean says little: sky
         residuals are as bright as lines
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from stellarcli import feeding, models
from stellarcli.errors import UsageError, unknown
from stellarcli.explanation.gradient import BATCH, differentiable_labels
from stellarcli.explanation.request import Request
from stellarcli.feeding import Feed
from stellarcli.prediction import Predictor
from stellarcli.preprocess import Batch

FINEST = 20.0  # Å from end to end of a position, up to which a stage resolves lines


class ActivationMaps:
    """Maps of one stage, brought to the model's pixels.

    The stage is the last one whose positions reach over at most `FINEST` Å, or the
    first if all reach further. Of a folded spectrum, a position of several rows reaches
    over all of these.

    Attributes
    ----------
    wavelength : ndarray, shape (pixel,)
        Of the model, vacuum Å.
    stage : str
    resolution : float
        Å from end to end of a position.

    Raises
    ------
    UsageError
        If the model isn't convolutional, or has no such stage.
    """

    precision = "float32"
    about = "activation times gradient, per position of the stage"
    axis = "{} per position"

    def __init__(self, predictor: Predictor, request: Request):
        self.predictor = predictor
        self.targets = request.choose(predictor.model.labels)
        self.wavelength = predictor.model.wavelength
        self.names = stage_names(predictor)
        resolution = self._resolutions()
        fine = [name for name, size in resolution.items() if size <= FINEST]
        self.stage = request.stage or (fine or self.names[:1])[-1]
        if self.stage not in resolution:
            raise unknown(
                f"stage of {predictor.model.architecture}", self.stage, self.names
            )
        self.resolution = resolution[self.stage]
        self.details = [
            ("STAGE", self.stage, "of the network"),
            ("RESOLUTN", self.resolution, "[Angstrom] from end to end of a position"),
        ]

    def _resolutions(self) -> dict[str, float]:
        """Å from end to end of a position, by stage."""
        network = self.predictor.networks[0]
        blank = models.made_up(network, 1, self.predictor.model.pixels)
        with torch.no_grad(), Tap(list(network.stages().values())) as tap:
            network(*blank)
        return {
            name: self._extent(maps[0, 0])
            for name, maps in zip(self.names, tap.maps, strict=True)
        }

    def _extent(self, positions: Tensor) -> float:
        """Å from end to end of what one position in the middle stands for."""
        single = torch.zeros_like(positions)
        single[tuple(size // 2 for size in single.shape)] = 1
        network, pixels = self.predictor.networks[0], len(self.wavelength)
        share = spread(network, single[None], pixels)[0].cpu().numpy()
        seen = self.wavelength[share >= 0.5 * share.max()]
        return float(seen[-1] - seen[0] + np.diff(self.wavelength).mean())

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
            In the label's unit; positive where what the stage sees raises the label.
        """
        others = {**(others or {}), "ivar": batch.ivar}
        parts = [slice(n, n + BATCH) for n in range(0, len(batch), BATCH)]
        pieces = [self._maps(batch.flux[p], feeding.taken(others, p)) for p in parts]
        return np.concatenate(pieces)

    def _maps(self, flux: np.ndarray, others: Feed) -> np.ndarray:
        predictor = self.predictor
        stages = [network.stages()[self.stage] for network in predictor.networks]
        x = torch.from_numpy(flux).to(predictor.device).requires_grad_()
        with Tap(stages) as tap:
            labels = differentiable_labels(predictor, x, others, self.targets)
        found = []
        for label in labels:
            gradients = torch.autograd.grad(label.sum(), tap.maps, retain_graph=True)
            found.append(self._to_pixels(tap.maps, gradients))
        return torch.stack(found, dim=2).cpu().numpy()

    def _to_pixels(self, maps: list[Tensor], gradients: tuple[Tensor, ...]) -> Tensor:
        """Sum over members of their weighted maps, shape (spectrum, pixel)."""
        members = zip(self.predictor.networks, maps, gradients, strict=True)
        return sum(
            spread(
                *(network, (map_ * self._weights(gradient)).sum(1).detach()),
                len(self.wavelength),
            )
            for network, map_, gradient in members
        )

    def _weights(self, gradient: Tensor) -> Tensor:
        """Weights of activations, (spectrum, channel, ...)."""
        return gradient


class GradCAM(ActivationMaps):
    """The same with one weight per channel."""

    about = "activation times mean gradient, per position of the stage"

    def _weights(self, gradient: Tensor) -> Tensor:
        return gradient.mean(tuple(range(2, gradient.dim())), keepdim=True)


def stage_names(predictor: Predictor) -> list[str]:
    """Names of a model's convolutional stages, from fine to coarse.

    Raises
    ------
    UsageError
        If it has none; names the architectures that do.
    """
    if hasattr(predictor.networks[0], "stages"):
        return list(predictor.networks[0].stages())
    able = [
        name for name in models.MODELS if hasattr(models.network_class(name), "stages")
    ]
    raise UsageError(
        f"activation maps need a convolutional network, {predictor.model.architecture} "
        f"is none; they work for {', '.join(able)}. Explain this model with --method "
        "occlusion."
    )


def spread(network: nn.Module, maps: Tensor, pixels: int) -> Tensor:
    """Bring maps of positions to the spectrum's pixels.

    Parameters
    ----------
    network : Module
        Unfolds images.
    maps : Tensor, shape (spectrum, position) or (spectrum, row, column)
    pixels : int

    Returns
    -------
    Tensor, shape (spectrum, pixel)
        Interpolated between the middles of positions.
    """
    if maps.dim() == 3 and maps.shape[1] > 1:
        return network.unfold(maps)
    line = maps.flatten(1)[:, None]  # (spectrum, 1, position)
    return functional.interpolate(line, pixels, mode="linear")[:, 0]


class Tap:
    """Keep what modules put out, while a network runs.

    Parameters
    ----------
    modules : list of Module

    Attributes
    ----------
    maps : list of Tensor
        In the order of the modules.
    """

    def __init__(self, modules: list[nn.Module]):
        self.modules = modules
        self.maps: list[Tensor] = []

    def __enter__(self) -> Tap:
        """Begin to listen."""
        found: dict[int, Tensor] = {}
        self._found = found
        self._hooks = [
            module.register_forward_hook(
                lambda _module, _inputs, output, n=n: found.__setitem__(n, output)
            )
            for n, module in enumerate(self.modules)
        ]
        return self

    def __exit__(self, *error: object) -> None:
        """Stop listening."""
        for hook in self._hooks:
            hook.remove()
        self.maps = [self._found[n] for n in sorted(self._found)]
