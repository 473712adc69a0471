"""Preprocessing: what is injected is recovered, and no spectrum sees another one."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.interpolate import CubicSpline

from stellarcli import preprocess
from stellarcli.errors import UsageError
from stellarcli.preprocess import RECIPES, STEPS, Batch, Recipe, Step, fold, unfold
from stellarcli.preprocess import continuum as continua
from stellarcli.preprocess import wavelength as wavelengths
from stellarcli.preprocess.fold import check_shape
from stellarcli.preprocess.wavelength import (
    SHARE,
    air_to_vacuum,
    bridge,
    make_grid,
    resample,
    rest_frame,
    spline,
    vacuum_to_air,
)
from stellarcli.spectrum import SPEED_OF_LIGHT, PixelMask, Spectrum, SpectrumMeta

LINES = np.array([4102.9, 4341.7, 4862.7, 5175.0, 5268.0, 5895.6, 6494.0, 6564.6])


def log_grid(size=3909, start=3.5682, step=1e-4):
    """LAMOST's low-resolution pixels."""
    return 10 ** (start + step * np.arange(size))


def continuum_of(wavelength):
    """Continuum that a low polynomial describes, 80 to 120."""
    x = (wavelength - 6000) / 2500
    return 100 + 12 * x - 10 * x**2 + 5 * x**3


def lines(wavelength, velocity=0.0, depth=0.4, width=2.5):
    """Absorption lines, relative to the continuum."""
    flux = np.ones_like(wavelength)
    for line in LINES * (1 + velocity / SPEED_OF_LIGHT):
        flux -= depth * np.exp(-0.5 * ((wavelength - line) / width) ** 2)
    return flux


def star(wavelength, velocity=None, snr=100.0, seed=1, mask=None, segments=()):
    """Spectrum with lines, a smooth continuum and noise."""
    flux = continuum_of(wavelength) * lines(wavelength, velocity or 0.0)
    noise = np.full(wavelength.shape, 100 / snr)
    flux += np.random.default_rng(seed).normal(0, noise)
    empty = np.zeros(wavelength.shape, dtype=np.uint8)
    mask = empty if mask is None else mask
    meta = SpectrumMeta(rv=velocity)
    return Spectrum(wavelength, flux, 1 / noise**2, mask, meta, segments)


def lrs(**options):
    return star(log_grid(), **options)


def mrs(**options):
    """Two arms, as LAMOST's medium-resolution spectra have."""
    blue, red = (
        make_grid(start=4950, step=0.12, pixels=3300),
        np.arange(6300, 6800, 0.15),
    )
    segments = ((0, blue.size), (blue.size, blue.size + red.size))
    return star(np.concatenate([blue, red]), segments=segments, **options)


def batch_of(*spectra):
    return Batch.from_spectra(spectra)


def flat(wavelength, flux, ivar=None, mask=None):
    """Batch of one spectrum without velocity, as the arrays are."""
    flux = np.asarray(flux, dtype=np.float32)
    ivar = np.ones_like(flux) if ivar is None else np.asarray(ivar, dtype=np.float32)
    mask = np.zeros(flux.shape, np.uint8) if mask is None else mask.astype(np.uint8)
    whole = (((0, flux.size),),)
    rows = [np.asarray(array)[None] for array in (wavelength, flux, ivar, mask)]
    return Batch(*rows, np.zeros(1), whole)


# ------------------------------------------------------------------- air and vacuum


@pytest.mark.parametrize(
    ("air", "vacuum"),
    [(6562.79, 6564.60), (4861.35, 4862.71), (5889.951, 5891.583), (3933.66, 3934.77)],
)
def test_air_to_vacuum_of_known_lines(air, vacuum):
    assert air_to_vacuum(np.array([air]))[0] == pytest.approx(vacuum, abs=0.015)
    assert vacuum_to_air(np.array([vacuum]))[0] == pytest.approx(air, abs=0.015)


def test_vacuum_to_air_agrees_with_the_formula_of_the_iau():
    vacuum = np.linspace(2500, 17000, 500)
    s2 = (1e4 / vacuum) ** 2  # Morton (2000, ApJS 130, 403), eq. 8
    index = 1 + 8.34254e-5 + 2.406147e-2 / (130 - s2) + 1.5998e-4 / (38.9 - s2)
    np.testing.assert_allclose(vacuum_to_air(vacuum), vacuum / index, atol=2e-4)


@given(st.floats(2001, 30000))
def test_air_and_vacuum_are_inverse(wavelength):
    air = vacuum_to_air(np.array([wavelength]))
    if air[0] >= 2000:
        np.testing.assert_allclose(air_to_vacuum(air), wavelength, atol=1e-8)
    vacuum = air_to_vacuum(np.array([wavelength]))
    np.testing.assert_allclose(vacuum_to_air(vacuum), wavelength, atol=1e-8)


def test_below_2000_angstrom_wavelengths_stay():
    ultraviolet = np.array([1000.0, 1999.0])
    np.testing.assert_array_equal(air_to_vacuum(ultraviolet), ultraviolet)
    np.testing.assert_array_equal(vacuum_to_air(ultraviolet), ultraviolet)


# ----------------------------------------------------------------------- rest frame


def line_center(wavelength, flux, line, reach=8.0):
    """Centroid of the depth around a line."""
    near = np.abs(wavelength - line) < reach
    depth = 1 - flux[near]
    return (wavelength[near] * depth).sum() / depth.sum()


@pytest.mark.parametrize("velocity", [-300.0, -12.5, 0.0, 85.0, 450.0])
def test_an_injected_velocity_is_removed(velocity):
    spectrum = lrs(velocity=velocity, snr=1e4)
    grids = [{"start": 4000.0, "step": 0.5, "pixels": 6000}]
    batch = resample(rest_frame(batch_of(spectrum)), grids=grids)
    flux = batch.flux[0] / continuum_of(batch.wavelength)
    for line in (4341.7, 4862.7, 5895.6, 6564.6):
        # 0.02 Å is about 1 km/s
        assert line_center(batch.wavelength, flux, line) == pytest.approx(
            line, abs=0.02
        )


@given(st.floats(-600, 600))
def test_shift_by_v_and_minus_v(velocity):
    batch = batch_of(star(log_grid(50), velocity=velocity))
    back = replace(rest_frame(batch), redshift=1 / (1 + batch.redshift) - 1)
    np.testing.assert_allclose(
        rest_frame(back).wavelength, batch.wavelength, rtol=1e-14
    )


def test_rest_frame_twice_is_once():
    once = rest_frame(batch_of(lrs(velocity=100.0)))
    twice = rest_frame(once)
    np.testing.assert_array_equal(once.wavelength, twice.wavelength)
    assert (once.redshift == 0).all()


def test_without_velocity_nothing_moves():
    batch = batch_of(lrs())
    np.testing.assert_array_equal(rest_frame(batch).wavelength, batch.wavelength)


# -------------------------------------------------------------------------- bridging


def test_bridge_draws_straight_lines_over_masked_pixels():
    flux = 3.0 * np.arange(20)
    mask = np.isin(np.arange(20), [0, 5, 6, 7, 18, 19])
    spoiled = np.where(mask, 1e6, flux)
    batch = bridge(flat(np.arange(20) + 4000, spoiled, np.where(mask, 0, 1), mask))
    np.testing.assert_allclose(batch.flux[0, 1:18], flux[1:18])
    assert batch.flux[0, 0] == flux[1]
    assert (batch.flux[0, 18:] == flux[17]).all()
    np.testing.assert_array_equal(batch.mask[0] != 0, mask)
    assert (batch.ivar[0, mask] == 0).all()


def test_bridge_does_not_cross_segments():
    mask = np.isin(np.arange(20), [9, 10])
    flux = np.where(np.arange(20) < 10, 1.0, 5.0)
    batch = flat(np.arange(20) + 4000, flux, mask=mask)
    batch = bridge(replace(batch, segments=(((0, 10), (10, 20)),)))
    assert batch.flux[0, 9] == 1.0
    assert batch.flux[0, 10] == 5.0


@pytest.mark.parametrize("seed", range(20))
def test_bridge_is_linear_interpolation_within_each_segment(seed):
    random = np.random.default_rng(seed)
    flux = random.normal(size=(4, 30)).astype(np.float32)
    mask = (random.random(flux.shape) < random.random()).astype(np.uint8)
    segments = ((0, 13), (13, 30)) if seed % 2 else ((0, 28),)
    mask[:, segments[-1][1] :] = PixelMask.OUTSIDE  # padding
    batch = Batch(np.arange(30.0), flux, flux * 0, mask, np.zeros(4), (segments,))
    expected = flux.copy()
    for row in range(4):
        for start, stop in segments:
            good = start + np.flatnonzero(mask[row, start:stop] == 0)
            if good.size:
                pixels = np.arange(start, stop)
                expected[row, start:stop] = np.interp(pixels, good, flux[row, good])
    assert np.allclose(bridge(batch).flux, expected, atol=1e-6)


def test_bridge_leaves_a_spectrum_without_good_pixels():
    batch = flat(np.arange(9) + 4000, np.arange(9), mask=np.ones(9))
    np.testing.assert_array_equal(bridge(batch).flux, batch.flux)


# ------------------------------------------------------------------------- resampling


@pytest.mark.parametrize("seed", range(3))
def test_spline_is_the_cubic_spline(seed):
    rng = np.random.default_rng(seed)
    values = rng.normal(0, 1, 400).astype(np.float32)
    position = np.sort(rng.uniform(25, 374, 900))  # the ends have their own rules
    expected = CubicSpline(np.arange(400), values.astype(np.float64))(position)
    np.testing.assert_allclose(spline(values, position), expected, atol=2e-6)


def test_spline_goes_through_the_pixels():
    values = np.random.default_rng(0).normal(0, 1, 50).astype(np.float32)
    np.testing.assert_allclose(spline(values, np.arange(50.0)), values, atol=1e-6)


def test_a_shift_of_equal_pixels_is_that_spline_too(monkeypatch):
    """As LAMOST's pixels are those of the grid, moved; one spectrum's are not."""
    random = np.random.default_rng(3)
    spectra = []
    for velocity in (-310.0, -0.2, 0.0, 14.7, 250.0):
        mask = (random.random(3909) < 0.02) * np.uint8(PixelMask.SURVEY)
        grid = log_grid().astype(np.float32)
        spectra.append(star(grid.astype(float), velocity, mask=mask))
    spectra.append(star(np.linspace(3700, 9100, 3909), 30.0))
    batch = rest_frame(bridge(batch_of(*spectra)))
    grids = [{"kind": "log10", "start": 3850.0, "step": 1e-4, "pixels": 2816}]
    fast = resample(batch, grids=grids)
    shifts = wavelengths._shifts(batch, range(6), fast.wavelength)
    assert shifts[0].tolist() == [0, 1, 2, 3, 4]
    nothing = (np.array([], dtype=int),) * 3
    monkeypatch.setattr(wavelengths, "_shifts", lambda *_: nothing)
    slow = resample(batch, grids=grids)
    assert np.array_equal(fast.mask, slow.mask)
    good = slow.good
    noise = 1 / np.sqrt(slow.ivar[good])
    # a thousandth of a pixel, where the lines are steepest
    assert np.abs(fast.flux - slow.flux)[good].max() < 0.05 * noise.min()
    assert np.allclose(fast.ivar, slow.ivar, rtol=5e-3)
    assert np.array_equal(fast.flux[5], slow.flux[5])


def test_resampling_onto_the_same_pixels_changes_nothing():
    grid = make_grid(start=4000.0, step=1e-4, pixels=500, kind="log10")
    spectrum = star(grid)
    spec = {"start": 4000.0, "step": 1e-4, "pixels": 500, "kind": "log10"}
    batch = resample(batch_of(spectrum), grids=[spec])
    np.testing.assert_allclose(batch.flux[0], spectrum.flux, rtol=1e-5)
    inner = slice(1, -1)  # rounding may put the ends outside
    np.testing.assert_allclose(batch.ivar[0, inner], spectrum.ivar[inner], rtol=1e-2)
    assert batch.common_grid
    assert (batch.mask[0, inner] == 0).all()


@pytest.mark.parametrize("scale", [1.0, 1e-16, 1e12])
@pytest.mark.parametrize("step", [0.4, 1.0, 1.37])
def test_scatter_of_interpolated_noise_is_what_ivar_says(step, scale):
    """Monte Carlo, with a noise that varies, in units from Jy to erg/s/cm2/Å."""
    rng = np.random.default_rng(5)
    native = 4000 + np.arange(300.0)
    sigma = scale * np.linspace(0.5, 2.0, 300)
    spectra = [
        Spectrum(
            *(native, rng.normal(0, sigma), sigma**-2.0),
            np.zeros(300, np.uint8),
            SpectrumMeta(),
        )
        for _ in range(600)
    ]
    grid = {"start": 4020.3, "step": step, "pixels": int(250 / step)}
    batch = resample(batch_of(*spectra), grids=[grid])
    assert (batch.mask == 0).all()
    pulls = batch.flux * np.sqrt(batch.ivar)
    assert pulls.std() == pytest.approx(1, abs=0.02)
    per_pixel = pulls.std(axis=0)  # standard error 3 %
    np.testing.assert_allclose(per_pixel, 1, atol=0.15)


def test_masked_pixels_spread_as_far_as_their_weight():
    native = 4000 + np.arange(40.0)
    mask = np.where(np.arange(40) == 20, PixelMask.SURVEY, 0)
    batch = flat(native, np.ones(40), np.where(mask, 0, 1), mask)
    offsets = {-SHARE: False, SHARE: False, -0.5: True, 0.5: True, 0.0: True}
    offsets |= {-0.95: False, 0.95: False, -1.0: False, 1.0: False}
    for offset, masked in offsets.items():
        offset *= 1.0 if abs(offset) != SHARE else (1 - SHARE / 2) / SHARE
        grid = {"start": 4020 + offset, "step": 5.0, "pixels": 2}
        result = resample(batch, grids=[grid])
        assert (result.mask[0, 0] != 0) == masked, offset
        assert (result.ivar[0, 0] == 0) == masked, offset
        if masked:
            assert result.mask[0, 0] & PixelMask.SURVEY


def test_outside_the_spectrum_pixels_are_masked_and_flux_is_held():
    batch = flat(5000 + np.arange(50.0), np.full(50, 7.0))
    grid = {"start": 4990.5, "step": 1.0, "pixels": 70}
    result = resample(batch, grids=[grid])
    outside = (result.wavelength < 5000) | (result.wavelength > 5049)
    np.testing.assert_array_equal(result.mask[0] == PixelMask.OUTSIDE, outside)
    assert (result.mask[0, ~outside] == 0).all()
    assert (result.ivar[0, outside] == 0).all()
    np.testing.assert_allclose(result.flux[0], 7.0, rtol=1e-5)


def test_a_spectrum_elsewhere_has_no_good_pixel():
    batch = flat(15000 + np.arange(50.0), np.ones(50))
    result = resample(batch, grids=[{"start": 4000.0, "step": 1.0, "pixels": 100}])
    assert (result.mask == PixelMask.OUTSIDE).all()
    assert np.isfinite(result.flux).all()


def test_interpolation_does_not_cross_arms():
    """A bad level in one arm leaves the other one as it was."""
    spectrum = mrs()
    blue = spectrum.segments[0][1]
    changed = spectrum.flux.copy()
    changed[blue:] += 1e4
    other = replace(spectrum, flux=changed)
    grids = RECIPES["rdn"].parameters("resample")["grids"]
    one, two = (resample(batch_of(s), grids=grids) for s in (spectrum, other))
    assert one.segments == (((0, 4401), (4401, 8802)),)
    inside = np.flatnonzero(one.mask[0, :4401] == 0)
    np.testing.assert_array_equal(one.flux[0, inside], two.flux[0, inside])
    assert inside.size > 3900
    gap = (one.wavelength > spectrum.wavelength[blue - 1]) & (
        one.wavelength < spectrum.wavelength[blue]
    )
    assert (one.mask[0, gap] == PixelMask.OUTSIDE).all()


@pytest.mark.parametrize(
    "grid",
    [
        {"start": 4000.0, "step": -1.0, "pixels": 10},
        {"start": 0.0, "step": 1.0, "pixels": 10},
        {"start": 4000.0, "step": 1.0, "pixels": 1},
        {"start": 4000.0, "step": 1.0, "pixels": 10, "kind": "log"},
        {"start": 4000.0, "step": 1.0},
        {"start": "blue", "step": 1.0, "pixels": 10},
        {"start": 4000.0, "step": 1.0, "pixels": 10, "stop": 5000.0},
    ],
)
def test_grids_that_can_not_be(grid):
    with pytest.raises(UsageError):
        Step("resample", {"grids": [grid]})


def test_grids_that_overlap():
    grid = {"start": 4000.0, "step": 1.0, "pixels": 100}
    with pytest.raises(UsageError, match="increasing"):
        Step("resample", {"grids": [grid, {**grid, "start": 4050.0}]})


# ---------------------------------------------------------------------------- continua


def on_grid(*spectra, pixels=4096):
    grids = [{"start": 4000.0, "step": 1.0, "pixels": pixels}]
    return resample(batch_of(*spectra), grids=grids)


@pytest.mark.parametrize("method", continua.CONTINUA)
@pytest.mark.parametrize("level", [1.0, 1e-16])
def test_the_true_continuum_is_recovered(method, level):
    spectra = [lrs(snr=200, seed=seed) for seed in range(4)]
    spectra = [
        replace(s, flux=s.flux * np.float32(level), ivar=s.ivar / np.float32(level**2))
        for s in spectra
    ]
    batch = on_grid(*spectra)
    found = continua.CONTINUA[method](batch)
    assert found.dtype == np.float32
    ratio = found / (level * continuum_of(batch.wavelength))
    assert np.abs(ratio - 1).max() < 0.02 + 0.03 * (method == "smooth")  # lines sink in
    assert np.median(np.abs(ratio - 1)) < 0.01
    assert abs(np.median(ratio) - 1) < 0.01


@pytest.mark.parametrize("method", continua.CONTINUA)
def test_division_by_the_continuum(method):
    batch = on_grid(lrs(snr=200))
    result = STEPS["continuum"](batch, method=method)
    away = np.abs(result.wavelength[:, None] - LINES).min(axis=1) > 20
    assert result.flux[0, away].mean() == pytest.approx(1, abs=0.01)
    # S/N of every pixel is what it was
    np.testing.assert_allclose(
        result.flux * np.sqrt(result.ivar), batch.flux * np.sqrt(batch.ivar), rtol=1e-4
    )


@pytest.mark.parametrize("method", continua.CONTINUA)
def test_masked_pixels_do_not_move_the_continuum(method):
    batch = on_grid(lrs(snr=200))
    bad = np.zeros(4096, bool)
    bad[1000:1060] = True
    mask = np.where(bad, PixelMask.SURVEY, batch.mask).astype(np.uint8)
    dirty = np.where(bad, 1e5, batch.flux).astype(np.float32)
    clean = replace(batch, mask=mask)
    found = [
        continua.CONTINUA[method](replace(clean, flux=flux))
        for flux in (batch.flux, dirty)
    ]
    np.testing.assert_allclose(*found, rtol=1e-5)


def test_a_continuum_per_arm():
    grids = RECIPES["rdn"].parameters("resample")["grids"]
    batch = resample(batch_of(mrs(snr=500)), grids=grids)
    low = batch.flux.copy()
    low[:, 4401:] *= 0.01
    for method, function in continua.CONTINUA.items():
        one, two = function(batch), function(replace(batch, flux=low))
        np.testing.assert_array_equal(one[:, :4401], two[:, :4401], err_msg=method)
        np.testing.assert_allclose(one[:, 4401:], 100 * two[:, 4401:], rtol=1e-3)


@pytest.mark.parametrize("method", continua.CONTINUA)
@pytest.mark.parametrize("level", [0.0, -5.0])
def test_where_there_is_no_continuum_flux_is_one_and_masked(method, level):
    wavelength = 4000 + np.arange(1000.0)
    batch = replace(flat(wavelength, np.full(1000, level)), wavelength=wavelength)
    result = STEPS["continuum"](batch, method=method)
    assert np.isfinite(result.flux).all()
    assert (result.flux == 1).all()
    assert (result.mask & PixelMask.NO_FLUX != 0).all()
    assert (result.ivar == 0).all()


# ------------------------------------------------------------------------------ scaling


def test_min_max_spans_zero_to_one_per_arm():
    grids = RECIPES["rdn"].parameters("resample")["grids"]
    batch = resample(batch_of(mrs(), mrs(seed=2)), grids=grids)
    result = STEPS["min_max"](batch)
    for arm in (slice(0, 4401), slice(4401, None)):
        good = np.where(result.good[:, arm], result.flux[:, arm], np.nan)
        np.testing.assert_array_equal(np.nanmin(good, axis=1), 0)
        np.testing.assert_array_equal(np.nanmax(good, axis=1), 1)
    assert (result.flux >= 0).all()
    assert (result.flux <= 1).all()
    before, after = (np.diff(b.flux[0, [500, 900]])[0] for b in (batch, result))
    noise = np.sqrt(result.ivar[0, 500] / batch.ivar[0, 500])
    assert before / after == pytest.approx(noise, rel=1e-3)


def test_min_max_without_contrast_is_zero():
    result = STEPS["min_max"](flat(np.arange(9) + 4000.0, np.full(9, 3.0)))
    assert (result.flux == 0).all()
    assert (result.ivar == 0).all()


def test_median_is_one_afterwards():
    mask = np.arange(101) > 90
    batch = flat(
        np.arange(101) + 4000.0, np.arange(101) + 10, np.where(mask, 0, 4), mask
    )
    result = STEPS["median"](batch)
    assert np.median(result.flux[0, ~mask]) == pytest.approx(1)
    np.testing.assert_allclose(result.ivar[0, ~mask], 4 * 55.0**2, rtol=1e-5)


@pytest.mark.parametrize("step", ["median", "min_max"])
def test_scaling_knows_each_spectrums_own_segments(step):
    """Spectra of native sampling differ in length and arms."""
    spectra = [star(log_grid(900)), mrs(), star(log_grid(1500), seed=3)]
    together = STEPS[step](batch_of(*spectra))
    for row, spectrum in enumerate(spectra):
        alone = STEPS[step](batch_of(spectrum))
        size = spectrum.flux.size
        np.testing.assert_array_equal(together.flux[row, :size], alone.flux[0])
        np.testing.assert_array_equal(together.ivar[row, :size], alone.ivar[0])
        assert (together.flux[row, size:] == 0).all()


def test_clip_limits_and_masks():
    batch = flat(np.arange(5) + 4000.0, [-9, -0.5, 1, 2.5, 80])
    result = STEPS["clip"](batch)
    np.testing.assert_array_equal(result.flux[0], [-0.5, -0.5, 1, 2.5, 2.5])
    np.testing.assert_array_equal(result.good[0], [False, True, True, True, False])
    np.testing.assert_array_equal(result.ivar[0], [0, 1, 1, 1, 0])
    assert result.flux.dtype == result.ivar.dtype == np.float32


def test_pad_adds_masked_zeros_on_both_sides():
    batch = on_grid(lrs(), pixels=100)
    result = STEPS["pad"](batch, pixels=105)
    assert result.flux.shape == (1, 105)
    np.testing.assert_array_equal(result.flux[:, 2:102], batch.flux)
    np.testing.assert_array_equal(result.wavelength[2:102], batch.wavelength)
    assert (np.diff(result.wavelength) > 0).all()
    outside = np.r_[0:2, 102:105]
    assert (result.flux[0, outside] == 0).all()
    assert (result.mask[0, outside] == PixelMask.OUTSIDE).all()
    assert result.segments == (((0, 105),),)
    with pytest.raises(UsageError, match="100 pixels can't be padded to 99"):
        STEPS["pad"](batch, pixels=99)


# --------------------------------------------------------------------------------- fold


@given(
    st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)).flatmap(
        lambda shape: st.tuples(
            arrays(np.float32, (shape[0], shape[1] * shape[2])), st.just(shape[1:])
        )
    )
)
def test_unfold_is_the_inverse_of_fold(case):
    spectra, shape = case
    images = fold(spectra, shape)
    assert images.shape == (len(spectra), *shape)
    assert unfold(images).tobytes() == spectra.tobytes()  # NaN too


@given(st.integers(1, 12), st.integers(1, 12))
def test_neighbours_in_the_spectrum_are_neighbours_in_the_image(rows, columns):
    image = fold(np.arange(rows * columns), (rows, columns))
    place = {int(image[r, c]): (r, c) for r in range(rows) for c in range(columns)}
    for pixel in range(rows * columns - 1):
        (r, c), (s, d) = place[pixel], place[pixel + 1]
        assert abs(r - s) + abs(c - d) == 1


def test_fold_runs_left_to_right_then_right_to_left():
    np.testing.assert_array_equal(fold(np.arange(6), (3, 2)), [[0, 1], [3, 2], [4, 5]])


def test_fold_leaves_its_argument_alone():
    spectra = np.arange(16.0)
    image = fold(spectra, (4, 4))
    image[:] = 0
    np.testing.assert_array_equal(spectra, np.arange(16.0))


def test_shapes_that_do_not_fit():
    with pytest.raises(UsageError, match=r"4095.*4096.*64x64"):
        check_shape((63, 65), 4096)
    with pytest.raises(UsageError, match="none near a square"):
        check_shape((2, 3), 7)
    with pytest.raises(UsageError):
        check_shape((-64, -64), 4096)


# ------------------------------------------------------------------------------ recipes


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_json_round_trip(recipe):
    assert Recipe.from_json(recipe.to_json()) == recipe
    assert "\n" not in recipe.to_json()


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_yaml_round_trip(recipe, tmp_path):
    """JSON is YAML, so that a recipe from a header is a recipe file."""
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.to_json())
    assert preprocess.get(str(path)) == recipe
    path.write_text(json.dumps(json.loads(recipe.to_json())["steps"]))
    assert preprocess.get(str(path)).steps == recipe.steps
    assert preprocess.get(str(path)).name == "recipe"


def test_a_recipe_file_as_users_write_it(tmp_path):
    path = tmp_path / "mine.yml"
    path.write_text(
        "- bridge\n- rest_frame\n- resample:\n    grids:\n"
        "      - {start: 4000, step: 1.0, pixels: 4096}\n- continuum:\n- min_max\n"
    )
    recipe = preprocess.get(str(path))
    assert [step.name for step in recipe.steps] == [
        *("bridge", "rest_frame", "resample", "continuum", "min_max")
    ]
    assert recipe.wavelength.size == 4096
    assert recipe.image_shape is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "list of steps"),
        ("name: mine", "list of steps"),
        ("- [bridge]", "a recipe's step is"),
        ("- {bridge: {}, median: {}}", "a recipe's step is"),
        ("- brigde", "Did you mean 'bridge'"),
        ("- continuum: {methd: smooth}", "Did you mean 'method'"),
        ("- continuum: {method: smoth}", "Did you mean 'smooth'"),
        ("- continuum: {method: smooth, degree: 3}", "unknown parameter"),
        ("- resample", "needs the parameter 'grids'"),
        ("- pad", "needs the parameter 'pixels'"),
        ("- continuum", "put 'resample' before it"),
        ("- {pad: {pixels: 5000}}", "put 'resample' before it"),
        ("- {", "is not YAML"),
    ],
)
def test_recipe_files_that_are_none(tmp_path, content, message):
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with pytest.raises(UsageError, match=message):
        preprocess.get(str(path))


def test_unknown_recipes_name_the_nearest(tmp_path):
    with pytest.raises(UsageError, match="Did you mean 'scanet'"):
        preprocess.get("scannet")
    with pytest.raises(UsageError, match="No such file"):
        preprocess.get(str(tmp_path / "none.yaml"))
    with pytest.raises(UsageError, match="directory"):
        preprocess.get(str(tmp_path))


def test_a_step_prints_as_a_call():
    assert str(Step("pad", {"pixels": 3584})) == "pad(pixels=3584)"


@pytest.mark.parametrize("name", STEPS)
def test_every_step_is_described(name):
    assert STEPS[name].__doc__


def difficult(spectrum):
    """Variants of a spectrum that archives hold."""
    size = spectrum.flux.size
    zero, bad = np.zeros(size), np.zeros(size, bool)
    bad[size // 3 : size // 2] = True
    nan = np.where(bad, np.nan, spectrum.flux)
    survey = np.where(bad, PixelMask.SURVEY, 0).astype(np.uint8)
    everything = np.full(size, PixelMask.SURVEY, dtype=np.uint8)
    single = everything.copy()
    single[size // 2] = 0
    spike = np.where(np.arange(size) % 501 == 0, 1e8, spectrum.flux)
    return {
        "as it is": spectrum,
        "blank": replace(spectrum, flux=zero, ivar=zero),
        "zero": replace(spectrum, flux=zero),
        "constant": replace(spectrum, flux=np.ones(size)),
        "negative": replace(spectrum, flux=-spectrum.flux),
        "nan": replace(spectrum, flux=nan),
        "all nan": replace(spectrum, flux=np.full(size, np.nan)),
        "masked": replace(spectrum, mask=survey),
        "all masked": replace(spectrum, mask=everything),
        "one pixel": replace(spectrum, mask=single),
        "spikes": replace(spectrum, flux=spike),
        "faint": replace(
            spectrum, flux=1e-17 * spectrum.flux, ivar=np.full(size, 1e34)
        ),
        "infinite ivar": replace(spectrum, ivar=np.full(size, np.inf)),
    }


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize("kind", [lrs, mrs], ids=["lrs", "mrs"])
def test_every_recipe_gives_finite_values(recipe, kind):
    spectra = difficult(kind(velocity=30.0))
    batch = recipe.apply(batch_of(*spectra.values()))
    assert batch.flux.dtype == batch.ivar.dtype == np.float32
    assert np.isfinite(batch.flux).all()
    assert np.isfinite(batch.ivar).all()
    assert (batch.ivar >= 0).all()
    assert (batch.ivar[batch.mask != 0] == 0).all()
    good = dict(zip(spectra, batch.good.any(axis=1), strict=True))
    assert good["as it is"]
    assert good["nan"]
    assert good["faint"]
    assert not any(good[name] for name in ("blank", "all nan", "all masked"))
    if recipe.wavelength is None:
        assert batch.wavelength.shape == batch.flux.shape
    else:
        np.testing.assert_array_equal(batch.wavelength, recipe.wavelength)
    if recipe.image_shape:
        assert fold(batch.flux, recipe.image_shape).shape[1:] == recipe.image_shape


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_units_of_the_flux_do_not_matter(recipe):
    """Faint spectra in erg/s/cm2/Å come out as bright ones in counts."""
    spectrum, scale = lrs(velocity=20.0), np.float32(1e-17)
    faint = replace(
        spectrum, flux=spectrum.flux * scale, ivar=spectrum.ivar / scale / scale
    )
    one, two = (recipe.apply(batch_of(s)) for s in (spectrum, faint))
    np.testing.assert_array_equal(one.mask, two.mask)
    np.testing.assert_allclose(one.flux, two.flux, atol=2e-4)
    np.testing.assert_allclose(one.ivar, two.ivar, rtol=1e-3)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_a_spectrum_does_not_see_the_others_of_its_batch(recipe):
    spectra = list(difficult(lrs(velocity=-40.0)).values())
    spectra += [mrs(velocity=10.0), star(log_grid(2000), seed=7)]
    together = recipe.apply(batch_of(*spectra))
    for row in (0, 3, 7, -2, -1):
        alone = recipe.apply(batch_of(spectra[row]))
        size = alone.flux.shape[1]
        np.testing.assert_array_equal(together.mask[row, :size], alone.mask[0])
        # matrix products of other shapes round otherwise
        np.testing.assert_allclose(together.flux[row, :size], alone.flux[0], atol=1e-4)
        np.testing.assert_allclose(
            together.ivar[row, :size], alone.ivar[0], rtol=1e-3, atol=1e-6
        )


@pytest.mark.parametrize("name", ["default", "scanet", "mkresnet"])
def test_lines_survive_a_whole_recipe_at_their_rest_wavelength(name):
    batch = RECIPES[name].apply(batch_of(lrs(velocity=-220.0, snr=300)))
    for line in (4862.7, 5268.0, 6564.6):
        center = line_center(batch.wavelength, batch.flux[0], line)
        assert center == pytest.approx(line, abs=0.1)


def test_batches_of_rows():
    batch = batch_of(lrs(), mrs(), lrs(seed=3))
    part = batch.rows(slice(1, 3))
    assert len(part) == 2
    assert part.segments_of(0) == mrs().segments
    np.testing.assert_array_equal(part.flux, batch.flux[1:])


@settings(max_examples=20)
@given(st.lists(st.integers(2, 40), min_size=1, max_size=4))
def test_stacking_pads_to_the_longest(sizes):
    batch = batch_of(*[star(log_grid(size)) for size in sizes])
    assert batch.flux.shape == (len(sizes), max(sizes))
    for row, size in enumerate(sizes):
        assert np.isfinite(batch.wavelength[row, :size]).all()
        assert np.isnan(batch.wavelength[row, size:]).all()
        assert (batch.mask[row, size:] == PixelMask.OUTSIDE).all()
        assert (batch.ivar[row, size:] == 0).all()
