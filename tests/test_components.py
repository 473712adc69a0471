"""Regressions on principal components, against formulas."""

import numpy as np
import pytest
import torch
from test_baselines import fitted, predict

from stellarcli.errors import UsageError

PIXELS = 32


def made(rows, seed, bend=0.0):
    """Spectra of two lines, and the labels that their depths are a function of."""
    rng = np.random.default_rng(seed)
    depth = rng.uniform(0.1, 0.6, (rows, 2))
    position = np.arange(PIXELS)
    lines = np.stack([np.exp(-0.5 * ((position - at) / 2) ** 2) for at in (8, 22)])
    flux = 1 - depth @ lines + rng.normal(0, 0.005, (rows, PIXELS))
    truth = depth @ [[1.0, 0.5], [-1.0, 2.0]] + bend * np.sin(12 * depth)
    return flux.astype("f4"), truth.astype("f4")


def points(network, flux):
    return network._points(torch.from_numpy(flux), torch.ones(flux.shape) > 0).numpy()


def test_components_have_variance_one():
    flux, truth = made(300, 0)
    at = points(fitted("ridge", flux, truth, components=4), flux)
    np.testing.assert_allclose(at.T @ at / len(at), np.eye(4), atol=1e-3)


def test_ridge_is_the_formula():
    flux, truth = made(200, 1)
    network = fitted("ridge", flux, truth, components=4, penalty=3.0)
    other, _ = made(20, 2)
    design = np.c_[np.ones(200), points(network, flux)]
    normal = design.T @ design + np.diag([0, 3, 3, 3, 3])
    slopes = np.linalg.solve(normal, design.T @ truth)
    mean, variance = predict(network, other)
    expected = np.c_[np.ones(20), points(network, other)] @ slopes
    np.testing.assert_allclose(mean, expected, rtol=1e-4, atol=1e-5)
    left_out = []
    for row in range(0, 200, 10):
        rest = np.delete(np.arange(200), row)
        slopes = np.linalg.solve(
            design[rest].T @ design[rest] + np.diag([1e-9, 3, 3, 3, 3]),
            design[rest].T @ truth[rest],
        )
        left_out.append(truth[row] - design[row] @ slopes)
    np.testing.assert_allclose(variance[0], np.square(left_out).mean(axis=0), rtol=0.6)


def test_ridge_takes_each_label_from_the_rows_that_have_it():
    flux, truth = made(200, 1)
    some = truth.copy()
    some[50:, 1] = np.nan
    whole = predict(fitted("ridge", flux, truth), flux)[0]
    part = predict(fitted("ridge", flux, some), flux)[0]
    np.testing.assert_allclose(part[:, 0], whole[:, 0], atol=1e-5)
    assert np.isfinite(part).all()


def test_neighbours_are_the_nearest():
    flux, truth = made(100, 3)
    network = fitted("neighbours", flux, truth, components=2, neighbours=5)
    other, _ = made(6, 4)
    mean, variance = predict(network, other)
    known, places = points(network, flux), points(network, other)
    for row, place in enumerate(places):
        nearest = np.argsort(((known - place) ** 2).sum(axis=1))[:5]
        np.testing.assert_allclose(mean[row], truth[nearest].mean(axis=0), rtol=1e-5)
        np.testing.assert_allclose(variance[row], truth[nearest].var(axis=0), rtol=1e-4)


def test_a_gaussian_process_bends_where_a_line_does_not():
    flux, truth = made(400, 5, bend=0.3)
    other, wanted = made(100, 6, bend=0.3)
    line = predict(fitted("ridge", flux, truth, components=4), other)[0]
    mean, _ = predict(fitted("gp", flux, truth, components=4), other)
    off = np.abs(mean - wanted).mean(axis=0)
    assert (off < 0.25 * np.abs(line - wanted).mean(axis=0)).all()


def test_variances_of_a_gaussian_process_are_those_of_the_labels():
    (flux, truth), (other, wanted) = made(400, 5), made(400, 6)
    rng = np.random.default_rng(0)
    truth, wanted = (t + 0.1 * rng.standard_normal(t.shape) for t in (truth, wanted))
    mean, variance = predict(fitted("gp", flux, truth, components=4), other)
    assert 0.5 < (np.abs(mean - wanted) < np.sqrt(variance)).mean() < 0.85


def test_masked_pixels_say_nothing():
    flux, truth = made(200, 7)
    network = fitted("gp", flux, truth, components=4)
    ivar = torch.ones(flux.shape)
    ivar[:, 3] = 0
    wild = flux.copy()
    wild[:, 3] = 1e6
    mean = network(torch.from_numpy(wild), ivar)[0]
    plain = network(torch.from_numpy(flux), torch.ones(flux.shape))[0]
    assert (mean - plain).abs().max() < 0.02


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ridge", {"components": 0}),
        ("ridge", {"penalty": -1.0}),
        ("neighbours", {"neighbours": 1}),
    ],
)
def test_wrong_options(name, options):
    with pytest.raises(UsageError, match="must be"):
        fitted(name, *made(20, 0), **options)
