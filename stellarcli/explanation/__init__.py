"""What a model looks at: importance over wavelength.

A method is a class made of a `Predictor` and a `Request`. Called with prepared spectra
it returns a map per spectrum and label, in the label's own units, over its
``wavelength``; everything else is the same for all: reading, averages per label and
per spectral class, table and figure.

============  ======================================================================
request       `Request`: what to explain, and how
windows       windows in wavelength
baseline      the continuum that lines are replaced by
occlusion     change of a label when a window is replaced by the continuum
gradient      integrated gradients: what each pixel adds to the label
activation    class activation maps of a convolutional stage
attention     where a network that answers requests looks for each label
channels      channel attention, over a batch and over the spectrum
classes       O, B, A, F, G, K, M of a prediction, with scores
importance    `explain`: spectra through a method, and their averages
lines         names of spectral features
ranking       the windows that matter, and the features in them
writing       `Importance` as a table
drawing       `Importance` as a figure
heatmap       channel attention as a figure
============  ======================================================================
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from stellarcli.errors import unknown

METHODS = {
    "occlusion": "occlusion:Occlusion",
    "gradient": "gradient:IntegratedGradients",
    "cam": "activation:ActivationMaps",
    "gradcam": "activation:GradCAM",
    "attention": "attention:Attention",
    "channel-attention": "channels:ChannelAttention",
}


def method_class(name: str) -> type[Any]:
    """Import the class of a method.

    Raises
    ------
    UsageError
        If `name` isn't in `METHODS`.
    """
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    module, attribute = METHODS[name].split(":")
    return getattr(import_module(f"stellarcli.explanation.{module}"), attribute)
