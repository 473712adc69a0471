"""What networks are fed: named arrays with a row per spectrum.

`INPUTS` is the one place that says which arrays there are. A network names those that
it wants, in the order of its ``forward``, in its attribute ``inputs``
(`stellarcli.models.inputs`); data sets and prepared chunks hand them out by these names
as a `Feed`, and nothing between them and the network needs to know what they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from stellarcli.errors import unknown

if TYPE_CHECKING:
    import torch

Feed = dict[str, np.ndarray]
IMAGE_SHAPE = (3, 128, 128)  # bands, rows, columns; unless a recipe says otherwise
MISSING = -9999  # what catalogues write where they have no value


@dataclass(frozen=True)
class Input:
    """One kind of array.

    Attributes
    ----------
    about : str
        What it holds.
    dtype : str
    empty : float
        What stands where there is nothing.
    per_pixel : bool
        Whether it is (spectrum, pixel): these are as long as the longest spectrum.
    """

    about: str
    dtype: str = "f4"
    empty: float = 0.0
    per_pixel: bool = False


INPUTS = {
    "flux": Input("prepared flux, (spectrum, pixel)", per_pixel=True),
    "ivar": Input("its inverse variance, 0 where masked", per_pixel=True),
    "wavelength": Input(
        "vacuum Å at the star's rest, (spectrum, pixel); NaN beyond a spectrum's end",
        "f8",
        np.nan,
        per_pixel=True,
    ),
    "images": Input(
        "bands, 0 to 1 each, (spectrum, band, row, column); NaN of a star without",
        empty=np.nan,
    ),
    "extra": Input(
        "quantities beside the spectrum, (spectrum, quantity), in the order of the "
        "network's option 'extra'",
        empty=np.nan,
    ),
}
SPECTRUM = ("flux", "ivar")  # of networks that name nothing


def check(names: Sequence[str]) -> tuple[str, ...]:
    """Return names of `INPUTS`.

    Raises
    ------
    UsageError
        If there is no such input.
    """
    for name in names:
        if name not in INPUTS:
            raise unknown("input of a network", name, INPUTS)
    return tuple(names)


def empty(name: str, shape: Sequence[int]) -> np.ndarray:
    """Return an array of an input's type with nothing in it."""
    return np.full(shape, INPUTS[name].empty, dtype=INPUTS[name].dtype)


def taken(feed: Feed, index: np.ndarray | slice) -> Feed:
    """Return some of the spectra."""
    return {name: array[index] for name, array in feed.items()}


def padded(feed: Feed, rows: int) -> Feed:
    """Add spectra with nothing in them, up to a number."""
    full = {}
    for name, array in feed.items():
        more = empty(name, (rows - len(array), *array.shape[1:]))
        full[name] = np.concatenate([array, more])
    return full


def stretches(feed: Feed, low: np.ndarray, high: np.ndarray) -> Feed:
    """Mask what lies outside a contiguous stretch of each spectrum's good pixels.

    Parameters
    ----------
    feed : Feed
    low, high : ndarray, shape (spectrum,)
        Ends of the stretches, in shares of the good pixels.
    """
    good = feed["ivar"] > 0
    rank = good.cumsum(axis=1) / np.maximum(good.sum(axis=1, keepdims=True), 1)
    inside = (rank > low[:, None]) & (rank <= high[:, None])
    ivar = np.where(inside, feed["ivar"], 0).astype(feed["ivar"].dtype)
    return feed | {"ivar": ivar}


def numbers(values: np.ndarray) -> np.ndarray:
    """Column of a catalogue as float32, NaN where it says that it has no value."""
    found = np.asarray(values).astype(np.float32)
    return np.where(found == MISSING, np.float32(np.nan), found)


def tensors(feed: Feed, device: torch.device | str = "cpu") -> dict[str, torch.Tensor]:
    """Bring arrays to where networks compute."""
    import torch

    return {name: torch.from_numpy(array).to(device) for name, array in feed.items()}


def made_up(
    names: Sequence[str],
    rows: int,
    pixels: int,
    wavelength: np.ndarray | None = None,
    extra: int = 0,
    image_shape: Sequence[int] = IMAGE_SHAPE,
) -> Feed:
    """Return spectra of noise about a continuum, to try a network on.

    Parameters
    ----------
    names : sequence of str
    rows, pixels : int
    wavelength : ndarray, shape (pixel,), optional
        By default 4000 to 9000 Å.
    extra : int
        Number of quantities beside the spectrum.
    image_shape : sequence of int
        Bands, rows and columns.
    """
    shape = (rows, pixels)
    if wavelength is None:
        wavelength = np.geomspace(4000.0, 9000.0, pixels)
    made = {
        "flux": np.random.default_rng(0).normal(1, 0.05, shape).astype(np.float32),
        "ivar": np.full(shape, 400, dtype=np.float32),
        "wavelength": np.broadcast_to(wavelength, shape).astype(np.float64),
    }
    if "images" in names:
        draw = np.random.default_rng(1).random
        made["images"] = draw((rows, *image_shape), dtype=np.float32)
    made["extra"] = np.zeros((rows, extra), np.float32)
    return {name: made[name] for name in names}
