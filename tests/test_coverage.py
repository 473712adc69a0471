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
    middle, length, width = coverage.place(whole)[0]
    assert np.exp(middle) == pytest.approx(np.sqrt(3700 * 9100), rel=1e-3)
    assert np.exp(length) == pytest.approx(np.log(9100 / 3700), rel=1e-3)
    assert np.exp(width) == pytest.approx(STEP, rel=1e-3)
    red = coverage.place(cut(whole, 0.5, 1.0))[0]
    assert np.exp(red[0]) == pytest.approx(np.sqrt(np.exp(middle) * 9100), rel=1e-3)
    assert np.exp(red[1]) == pytest.approx(0.5 * np.exp(length), rel=1e-2)
    arms = whole | {"ivar": whole["ivar"].copy()}
    arms["ivar"][:, whole["ivar"].shape[1] // 4 : -whole["ivar"].shape[1] // 4] = 0
    gap = coverage.place(arms)[0]
    np.testing.assert_allclose(gap, [middle, red[1], width], atol=0.01)


def test_what_lies_beyond_the_end_of_a_spectrum_has_no_place():
    feed = spectra(rows=2)
    ends = {name: array[:, :3000] for name, array in feed.items()}
    feed = {name: array.copy() for name, array in feed.items()}
    feed["wavelength"][:, 3000:] = np.nan
    feed["ivar"][:, 3000:] = 0
    np.testing.assert_allclose(coverage.place(feed), coverage.place(ends), atol=1e-3)
    seen = familiarity.fit(feed)
    assert seen["seen"].sum(axis=1).max() == 1  # one sampling, wherever
    np.testing.assert_array_equal(familiarity.share(ends, seen), 1)
    feed["ivar"][1] = 0
    assert np.isfinite(coverage.place(feed)).all()


def drawn(rng, stars, factor, step=STEP):
    """Places of stretches, and their residuals over the errors: `factor` of both."""
    length = 0.15 ** rng.random(stars)
    middle = 8.3 + 0.9 * (length / 2 + rng.random(stars) * (1 - length))
    width = np.full(stars, np.log(step))
    places = np.stack([middle, np.log(0.9 * length), width], axis=1)
    off = factor(places) * rng.standard_normal(stars)
    return places, np.log(np.abs(off))[:, None]


def fitted(places, excess, spectra, instrument=None):
    """A table of stretches of so many spectra."""
    whole = np.arange(len(places)) < spectra
    if instrument is None:
        instrument = np.full(len(places), "one")
    return coverage.fit(places, excess, whole, instrument, SHARE)


def injected(places):
    """Errors that are right in the blue and too small, by 1.8, in the red."""
    return np.exp(0.6 * (places[:, 0] > 8.75))


def within(table, places, excess):
    return (excess < coverage.at(places, table)).mean()


def test_a_table_tells_places_apart():
    rng = np.random.default_rng(1)
    places, excess = drawn(rng, 4 * STARS, injected)
    table = fitted(places, excess, STARS)
    places, excess = drawn(rng, 4 * STARS, injected)
    for red in (False, True):
        here = (places[:, 0] > 8.8) if red else (places[:, 0] < 8.7)
        own = places[here], excess[here]
        assert within(table, *own) == pytest.approx(SHARE, abs=0.03)
    assert not np.allclose(coverage.at(places, table), 0, atol=0.2)


def test_instruments_have_tables_of_their_own():
    """Pixels even in ln λ and even in λ: alike in the blue, not beyond."""
    rng = np.random.default_rng(5)
    even, linear = (drawn(rng, 2 * STARS, factor) for factor in (injected, twice))
    linear[0][:, 2] = np.log(0.9) - linear[0][:, 0]
    places, excess = (np.concatenate(p) for p in zip(even, linear, strict=True))
    names = np.repeat(["even", "linear"], 2 * STARS)
    order = rng.permutation(len(places))
    table = fitted(places[order], excess[order], STARS, names[order])
    assert table["levels"].shape[1] == 2
    for own in (even, linear):
        for red in (False, True):
            here = (own[0][:, 0] > 8.8) if red else (own[0][:, 0] < 8.7)
            share = within(table, own[0][here], own[1][here])
            assert share == pytest.approx(SHARE, abs=0.03)


def twice(places):
    """Errors that are too small by two, and by three in the blue."""
    return 2 + (places[:, 0] < 8.75)


def test_few_spectra_tell_no_more_than_four_numbers():
    rng = np.random.default_rng(3)
    places, excess = drawn(rng, 40, injected)
    table = fitted(places, excess, 1)
    for axis in (2, 3):  # linear in both
        np.testing.assert_allclose(np.diff(table["levels"], 2, axis), 0, atol=0.03)


def test_labels_that_nobody_has_are_left_alone():
    places = drawn(np.random.default_rng(4), 50, injected)[0]
    excess = np.full((50, 2), np.nan)
    table = fitted(places, excess, 50)
    assert table["levels"].shape[0] == 2
    np.testing.assert_array_equal(coverage.at(places, table), 0)


def test_spectra_of_one_place_give_a_table():
    places = np.repeat([[8.6, -0.1, -8.4]], 30, axis=0)
    table = fitted(places, np.zeros((30, 1)), 30)
    assert np.isfinite(coverage.at(places, table)).all()
    assert (np.diff(table["middle"]) > 0).all()


def test_other_instruments_keep_their_errors():
    judged = spectra()
    table = {
        "middle": np.array([8.0, 9.0]),
        "length": np.array([-2.0, 0.0]),
        "levels": np.full((1, 2, 2), 0.4),  # of one instrument: there was no other
    } | familiarity.fit(judged)
    np.testing.assert_allclose(coverage.corrections(judged, table), 0.4, atol=0.01)
    finer = spectra(4920, 5360, 2.3e-5)
    infrared = spectra(15100, 17000, 1.4e-5)
    for feed in (finer, infrared):
        np.testing.assert_array_equal(coverage.corrections(feed, table), 0)
    half = coverage.corrections(spectra(6000, 13804), table)  # half of it beyond
    np.testing.assert_allclose(half, 0.2, atol=0.02)
