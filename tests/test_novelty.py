"""Novelty: the components, the border, odd inputs."""

import numpy as np
import pytest

from stellarcli import novelty

PIXELS = 200


def spectra(size, seed, noise=0.02, masked=0.05):
    """Random mixtures of three lines, noise, masked pixels with any flux."""
    random = np.random.default_rng(seed)
    position = np.arange(PIXELS)
    lines = [np.exp(-0.5 * ((position - at) / 4) ** 2) for at in (40, 100, 160)]
    flux = 1 - random.uniform(0.2, 0.6, (size, 3)) @ np.stack(lines)
    flux += random.normal(0, noise, flux.shape)
    ivar = np.full(flux.shape, 1 / noise**2)
    hidden = random.random(flux.shape) < masked
    flux[hidden], ivar[hidden] = 99, 0
    return flux.astype("f4"), ivar.astype("f4")


@pytest.fixture(scope="module")
def model():
    made = novelty.fit(*spectra(800, 1))
    novelty.calibrate(made, novelty.score(*spectra(800, 2), made))
    return made


def test_components_are_those_of_the_covariance():
    flux, _ = spectra(800, 1, masked=0)
    centred = flux - flux.mean(axis=0)
    found = novelty._principal(centred, 3)
    _, vectors = np.linalg.eigh(centred.T.astype("f8") @ centred)
    overlap = np.linalg.svd(found @ vectors[:, -3:])[1]
    np.testing.assert_allclose(overlap, 1, atol=1e-5)
    np.testing.assert_allclose(found @ found.T, np.eye(3), atol=1e-5)


def test_good_stars_pass_and_others_do_not(model):
    good = novelty.score(*spectra(2000, 3), model).max(axis=1) > 1
    assert good.mean() == pytest.approx(0.01, abs=0.01)
    flux, ivar = spectra(50, 4)
    emission = flux.copy()
    emission[:, 60:70] += 1
    assert (novelty.score(emission, ivar, model)[:, 0] > 1).all()
    deep = 1 + 4 * (flux - 1)
    assert (novelty.score(np.where(ivar > 0, deep, flux), ivar, model) > 1).any(1).all()


def test_noise_alone_is_not_unlike(model):
    noisy = novelty.score(*spectra(500, 5, noise=0.2), model)
    assert (noisy.max(axis=1) > 1).mean() < 0.1


def test_what_a_model_file_keeps_is_what_was_fitted(model):
    kept = {
        name: v.astype(np.float16) if v.dtype == np.float32 else v
        for name, v in model.items()
    }
    assert all(np.isfinite(values).all() for values in kept.values())
    flux, ivar = spectra(100, 6)
    np.testing.assert_allclose(
        novelty.score(flux, ivar, kept), novelty.score(flux, ivar, model), rtol=1e-4
    )


@pytest.mark.parametrize("size", [1, 2, 5])
def test_a_handful_of_spectra(size):
    made = novelty.fit(*spectra(size, 7))
    assert np.isfinite(novelty.score(*spectra(3, 8), made)).all()


def test_spectra_without_a_good_pixel(model):
    flux = np.full((2, PIXELS), 99, "f4")
    assert np.isfinite(novelty.score(flux, np.zeros_like(flux), model)).all()


def test_the_number_of_spectra_is_bounded():
    assert novelty.rows(100) == novelty.ROWS
    assert novelty.rows(8575) * 8575 <= novelty.VALUES


def test_cross_scores_see_through_an_odd_spectrum():
    rng = np.random.default_rng(2)
    flux = (1 + 0.01 * rng.normal(size=(200, 120))).astype(np.float32)
    ivar = np.full_like(flux, 1e4)
    flux[7] += np.sin(np.arange(120) / 3) * 0.5
    scores = novelty.cross_scores(flux, ivar)
    assert scores.shape == (200, 2)
    assert scores[:, 0].argmax() == 7
    assert scores[7, 0] > 10
    assert np.median(scores[:, 0]) < 1.5
    inside = novelty.score(flux, ivar, novelty.fit(flux, ivar))
    assert inside[7, 0] < scores[7, 0] / 5  # it has a component of its own there
