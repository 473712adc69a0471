"""Errors by where a spectrum lies: what was injected is found, and only there."""

import numpy as np
import pytest

from stellarcli import coverage, familiarity, feeding

SHARE = 0.6827
STEP = 2.3e-4  # ln λ
STARS = 1500


def spectra(start=3700.0, stop=9100.0, step=STEP, rows=3, snr=50.0):
    """Blank spectra of one sampling."""
    wavelength = np.exp(np.arange(np.log(start), np.log(stop), step))
    shape = (rows, wavelength.size)
    return {
        "ivar": np.full(shape, snr**2, dtype=np.float32),
        "wavelength": np.broadcast_to(wavelength, shape),
    }


def cut(feed, low, high):
    rows = len(feed["ivar"])
    return feeding.stretches(feed, np.full(rows, low), np.full(rows, high))


def test_places_are_those_of_the_good_pixels():
    whole = spectra()
    middle, length = coverage.place(whole)[0]
    assert np.exp(middle) == pytest.approx(np.sqrt(3700 * 9100), rel=1e-3)
    assert np.exp(length) == pytest.approx(np.log(9100 / 3700), rel=1e-3)
    red = coverage.place(cut(whole, 0.5, 1.0))[0]
    assert np.exp(red[0]) == pytest.approx(np.sqrt(np.exp(middle) * 9100), rel=1e-3)
    assert np.exp(red[1]) == pytest.approx(0.5 * np.exp(length), rel=1e-2)
    arms = whole | {"ivar": whole["ivar"].copy()}
    arms["ivar"][:, whole["ivar"].shape[1] // 4 : -whole["ivar"].shape[1] // 4] = 0
    gap = coverage.place(arms)[0]
    np.testing.assert_allclose(gap, [middle, red[1]], atol=0.01)


def test_places_without_a_wavelength_are_numbers():
    feed = spectra(rows=2)
    feed["wavelength"] = feed["wavelength"].copy()
    feed["wavelength"][:, 3000:] = np.nan  # beyond the end of a shorter spectrum
    feed["ivar"][:, 3000:] = 0
    feed["ivar"][1] = 0
    assert np.isfinite(coverage.place(feed)).all()


def drawn(rng, stars, factor):
    """Places of stretches, and their residuals over the errors: `factor` of both."""
    length = 0.15 ** rng.random(stars)
    middle = 8.3 + 0.9 * (length / 2 + rng.random(stars) * (1 - length))
    places = np.stack([middle, np.log(0.9 * length)], axis=1)
    off = factor(places) * rng.standard_normal(stars)
    return places, np.log(np.abs(off))[:, None]


def injected(places):
    """Errors that are right in the blue and too small, by 1.8, in the red."""
    return np.exp(0.6 * (places[:, 0] > 8.75))


def within(table, places, excess):
    return (excess < coverage.at(places, table)).mean()


def test_a_table_tells_places_apart():
    rng = np.random.default_rng(1)
    places, excess = drawn(rng, 4 * STARS, injected)
    table = coverage.fit(places, excess, STARS, SHARE)
    places, excess = drawn(rng, 4 * STARS, injected)
    for red in (False, True):
        here = (places[:, 0] > 8.8) if red else (places[:, 0] < 8.7)
        own = places[here], excess[here]
        assert within(table, *own) == pytest.approx(SHARE, abs=0.03)
    assert not np.allclose(coverage.at(places, table), 0, atol=0.2)


def test_few_spectra_tell_no_more_than_four_numbers():
    rng = np.random.default_rng(3)
    places, excess = drawn(rng, 40, injected)
    table = coverage.fit(places, excess, 1, SHARE)
    for axis in (1, 2):  # linear in both
        np.testing.assert_allclose(np.diff(table["levels"], 2, axis), 0, atol=0.03)


def test_labels_that_nobody_has_are_left_alone():
    places = drawn(np.random.default_rng(4), 50, injected)[0]
    excess = np.full((50, 2), np.nan)
    table = coverage.fit(places, excess, 50, SHARE)
    assert table["levels"].shape[0] == 2
    np.testing.assert_array_equal(coverage.at(places, table), 0)


def test_spectra_of_one_place_give_a_table():
    places = np.repeat([[8.6, -0.1]], 30, axis=0)
    table = coverage.fit(places, np.zeros((30, 1)), 30, SHARE)
    assert np.isfinite(coverage.at(places, table)).all()
    assert (np.diff(table["middle"]) > 0).all()


def test_other_instruments_keep_their_errors():
    judged = spectra()
    table = {
        "middle": np.array([8.0, 9.0]),
        "length": np.array([-2.0, 0.0]),
        "levels": np.full((1, 2, 2), 0.4),
    } | familiarity.fit(judged)
    np.testing.assert_allclose(coverage.corrections(judged, table), 0.4, atol=0.01)
    finer = spectra(4920, 5360, 2.3e-5)
    infrared = spectra(15100, 17000, 1.4e-5)
    for feed in (finer, infrared):
        np.testing.assert_array_equal(coverage.corrections(feed, table), 0)
    half = coverage.corrections(spectra(6000, 13804), table)  # half of it beyond
    np.testing.assert_allclose(half, 0.2, atol=0.02)
