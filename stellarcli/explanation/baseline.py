"""The continuum that lines are replaced by."""

from __future__ import annotations

import numpy as np

from stellarcli.preprocess import Batch, Recipe
from stellarcli.preprocess.continuum import continuum_quantile

SCALING = ("continuum", "min_max", "median")  # steps that decide about the level


def continuum_level(batch: Batch, recipe: Recipe) -> np.ndarray:
    """Find the continuum of prepared spectra.

    It is 1 where the recipe divided by a continuum and scaled no more. Otherwise it is
    each spectrum's own upper envelope: the 0.9 quantile of its good pixels within
    150 Å (`continuum_quantile`). Before a spectrum's first good pixel and after its
    last one there is nothing to replace, and the flux stands for the continuum.

    Parameters
    ----------
    batch : Batch
        Prepared, on one grid.
    recipe : Recipe
        That they were prepared with.

    Returns
    -------
    ndarray of float32, shape (spectrum, pixel)
        In the unit of the prepared flux.
    """
    scaling = [step.name for step in recipe.steps if step.name in SCALING]
    if scaling[-1:] == ["continuum"]:
        level = np.ones_like(batch.flux)
    else:
        level = continuum_quantile(batch)
    good = batch.good
    begun = np.maximum.accumulate(good, axis=1)
    not_ended = np.maximum.accumulate(good[:, ::-1], axis=1)[:, ::-1]
    return np.where(begun & not_ended, level, batch.flux)
