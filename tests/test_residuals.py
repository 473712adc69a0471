"""Coefficients of what a fit leaves: found in noise, 0 where noise hides them."""

import numpy as np
import pytest
import torch

from stellarcli.models.residuals import Residuals

PIXELS = 200
SHAPES = np.stack([np.sin(np.arange(PIXELS) / 7), np.cos(np.arange(PIXELS) / 23)]) * [
    [0.02],
    [0.01],
]


def made(rows, noise, seed):
    rng = np.random.default_rng(seed)
    coefficients = rng.standard_normal((rows, 2))
    residual = coefficients @ SHAPES + noise * rng.standard_normal((rows, PIXELS))
    weight = np.full((rows, PIXELS), noise**-2)
    return coefficients, *(torch.from_numpy(a).float() for a in (residual, weight))


@pytest.fixture(scope="module")
def layer():
    found = Residuals(2)
    found.solve(*made(400, 0.005, 0)[1:])
    return found


def test_they_are_those_injected(layer):
    coefficients, residual, weight = made(100, 0.005, 1)
    found = layer(residual, weight).numpy()
    for column in range(2):
        one = np.corrcoef(coefficients[:, column], found[:, column])[0, 1]
        assert abs(one) > 0.97
    np.testing.assert_allclose(found.std(axis=0), 1, atol=0.2)


def test_noise_shrinks_them(layer):
    noisy = layer(*made(100, 0.5, 1)[1:])
    assert noisy.abs().mean() < 0.3
    _, residual, weight = made(4, 0.005, 1)
    assert not layer(residual, torch.zeros_like(weight)).any()


def test_one_wild_pixel_does_little(layer):
    _, residual, weight = made(50, 0.005, 1)
    before = layer(residual, weight)
    residual[:, 17] = 30.0
    assert (layer(residual, weight) - before).abs().max() < 1


def test_without_training_there_are_none():
    _, residual, weight = made(3, 0.01, 0)
    assert Residuals(2)(residual, weight).shape == (3, 0)
