"""Networks by the name that users type.

A network is a `torch.nn.Module` whose constructor takes ``pixels`` and ``labels`` (both
int) and keyword options with defaults, and whose ``forward(flux, ivar)`` takes tensors
``(spectrum, pixel)`` and returns ``mean, log_variance``, each ``(spectrum, label)`` in
model units. Its ``trunk`` is the part that may compute in bfloat16. A model with a
method ``fit`` is computed in one go instead of by gradient descent (`baselines`). A
network that needs to know wavelengths and labels has a method ``prepare(wavelength,
labels)``, called before its first training; one with parts that are solved for and not
trained has ``settle(flux, ivar, truth)``, called with training rows, truth in model
units, when it is trained. Modules with a true ``exact`` are never stored as float16.
Options that came later are in ``former``, with the values that older files stand for.
Names map to ``module:class``, so that listing them needs no torch.

A network that wants more than flux and inverse variance names its inputs, in the order
of its ``forward``, in the class attribute ``inputs``: any of `feeding.INPUTS`, where
their shapes and what stands for missing values are written down. ``inputs = ("flux",
"ivar", "wavelength")`` gets each spectrum's own wavelengths, and may be trained on
tables that have no common grid, or several; padding has ivar 0 and wavelength NaN.
``"images"`` is the IMAGES of the prepared table, NaN where a star has none, and
``"extra"`` the columns that the network's option ``extra`` names, NaN where missing.
A method ``acquaint(feed)`` is called with those of some training rows before the first
training. A network that answers requests has ``relabelled(state, old, new)``: its
weights for other labels, so that ``--init`` may change the target.
``fit`` and ``settle`` get the same arrays before theirs. Augmentation varies flux and
ivar, and leaves everything else alone.

A convolutional network may have ``stages()``, modules by the name that users type, from
fine to coarse, that give maps ``(spectrum, channel, position)`` or ``(spectrum,
channel, row, column)``: activation maps are taken there. Where more than one row means
a folded spectrum, ``unfold(map)`` brings ``(spectrum, row, column)`` to
``(spectrum, pixel)``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from stellarcli import feeding
from stellarcli.errors import UsageError, unknown

if TYPE_CHECKING:
    from torch import Tensor, nn

MODELS = {
    "convnext1d": "convnext1d:ConvNeXt1D",
    "convnextpico": "photometric:ConvNeXtPico",
    "densenet": "compared:DenseNet",
    "metaformer": "photometric:Metaformer",
    "racnet": "spectral:RACNet",
    "rdn": "rdn:RDN",
    "resnet": "compared:ResNet",
    "resnet10t": "photometric:ResNet10T",
    "resnet1d": "resnet1d:ResNet1D",
    "resnetfit": "resnetfit:ResNetFit",
    "scanet": "scanet:SCANet",
    "spfusion": "spfusion:SPFusion",
    "sscnn": "spectral:SSCNN",
    "starnet": "compared:StarNet",
    "mkresnet": "mkresnet:MKResNet",
    "spectrafm": "spectrafm:SpectraFM",
    "perceptron": "perceptron:Perceptron",
    "ridge": "components:Ridge",
    "neighbours": "components:Neighbours",
    "gp": "components:GaussianProcess",
    "kernel": "baselines:KernelRegression",
    "adaboost": "baselines:AdaBoost",
    "kmeans": "baselines:KMeans",
}


def network_class(name: str) -> type[nn.Module]:
    """Import the class of a network.

    Raises
    ------
    UsageError
        If `name` isn't in `MODELS`.
    """
    from importlib import import_module

    if name not in MODELS:
        raise unknown("model architecture", name, MODELS)
    module, attribute = MODELS[name].split(":")
    return getattr(import_module(f"stellarcli.models.{module}"), attribute)


def extends(name: str, other: str) -> bool:
    """Say whether a network is another one with more to it, or the same."""
    return name == other or issubclass(network_class(name), network_class(other))


def options(name: str) -> dict[str, Any]:
    """Return the options of a network and their defaults."""
    import inspect

    parameters = inspect.signature(network_class(name)).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def former(name: str) -> dict[str, Any]:
    """Return the values of options that a network's older files don't state."""
    return getattr(network_class(name), "former", {})


def inputs(network: str | nn.Module) -> tuple[str, ...]:
    """Return the names of what a network is fed, in the order of its ``forward``."""
    kind = network_class(network) if isinstance(network, str) else network
    return feeding.check(getattr(kind, "inputs", feeding.SPECTRUM))


def made_up(network: nn.Module, rows: int, pixels: int) -> list[Tensor]:
    """Return what a network could be fed, of ones: to count, to time, to try it."""
    extra = len(getattr(network, "extra", ()))
    device = next((t.device for t in network.state_dict().values()), "cpu")
    shape = list(feeding.IMAGE_SHAPE)
    shape[1:] = 2 * [getattr(network, "image_size", shape[-1])]
    feed = feeding.made_up(
        inputs(network), rows, pixels, extra=extra, image_shape=shape
    )
    if "flux" in feed:
        feed["flux"] = np.ones_like(feed["flux"])
        feed["ivar"] = np.ones_like(feed["ivar"])
    return list(feeding.tensors(feed, device).values())


def in_one_go(name: str) -> bool:
    """Say whether a model is computed by its ``fit``, without gradient descent."""
    return hasattr(network_class(name), "fit")


def build(name: str, *, pixels: int, labels: int, **config: Any) -> nn.Module:
    """Build a network with fresh weights.

    Parameters
    ----------
    name : str
        Key of `MODELS`.
    pixels, labels : int
        Size of input and output.
    **config
        Options of that network.

    Raises
    ------
    UsageError
        If the network or an option is unknown, or the options don't go together.
    """
    valid = options(name)
    for key in config:
        if key not in valid:
            raise unknown(f"option of {name}", key, valid)
    try:
        return network_class(name)(pixels=pixels, labels=labels, **config)
    except ValueError as error:
        raise UsageError(f"{name}: {error}") from None


def fused(network: nn.Module) -> nn.Module:
    """Return a network with what evaluation can merge merged, such as batch norms.

    A network that has something to merge does it in its method ``fuse()``, exactly and
    in place. It can't be trained or saved afterwards.
    """
    if hasattr(network, "fuse"):
        network.fuse()
    return network


def count_multiply_adds(network: nn.Module, pixels: int) -> int:
    """Count the multiply-adds of one spectrum's forward pass.

    Convolutions and matrix products are counted, as in the papers; activations and
    normalisations are not.
    """
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    training = network.training
    network.eval()
    counter = FlopCounterMode(display=False)
    # the counter doesn't see the CPU's fused attention, hence the plain one
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        network(*made_up(network, 1, pixels))
    network.train(training)
    return counter.get_total_flops() // 2
