"""Statistics against values worked out by hand, or against what was injected."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from stellarcli import metrics

# residuals 1, -1, 3, -3, 10
PREDICTED = np.array([11.0, 19.0, 33.0, 37.0, 60.0])
REFERENCE = np.array([10.0, 20.0, 30.0, 40.0, 50.0])


def test_by_hand():
    found = metrics.summary(PREDICTED, REFERENCE)
    assert found["n"] == 5
    assert found["mae"] == pytest.approx(18 / 5)
    assert found["rmse"] == pytest.approx(np.sqrt(120 / 5))
    assert found["bias"] == pytest.approx(2)
    assert found["std"] == pytest.approx(np.sqrt(120 / 5 - 4))
    assert found["nmad"] == pytest.approx(1.4826 * 2)  # distances from 1: 0 2 2 4 9
    assert found["maximum"] == 10
    assert found["p50"] == 1
    assert found["p16"] == pytest.approx(-3 + 0.64 * 2)  # 0.16 × 4 steps


def test_outliers():
    residual = np.array([0.0, 1, -1, 1, -1, 0, 0, 1, -1, 50])
    assert metrics.outliers(residual) == 0.1
    assert metrics.outliers(residual, threshold=0.5) == 0.7


def test_rows_without_a_pair_are_left_out_and_counted():
    predicted = np.array([1.0, np.nan, 3.0, np.inf, 5.0])
    reference = np.array([1.0, 2.0, np.nan, 4.0, 4.0])
    found = metrics.summary(predicted, reference)
    assert (found["n"], found["left_out"]) == (2, 3)
    assert found["mae"] == 0.5


def test_nothing_to_compare_gives_nan_without_a_warning():
    found = metrics.summary(np.full(3, np.nan), np.zeros(3), np.ones(3))
    assert (found.pop("n"), found.pop("left_out")) == (0, 3)
    assert np.isnan(list(found.values())).all()


def test_calibration_by_hand():
    error = np.array([1.0, 0.5, 1.0, 1.0, 2.0])  # ratios 1, 2, 3, 3, 5
    found = metrics.calibration(PREDICTED, REFERENCE, error)
    assert (found["within1"], found["within2"], found["within3"]) == (0.2, 0.4, 0.8)
    assert found["scaling"] == pytest.approx(3)


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_scaling_recovers_errors_that_are_wrong_by_a_factor(factor):
    rng = np.random.default_rng(3)
    error = rng.uniform(10, 100, 20000)
    predicted = 5000 + error * rng.standard_normal(error.size)
    found = metrics.calibration(predicted, np.full(error.size, 5000.0), error / factor)
    assert found["scaling"] == pytest.approx(factor, rel=0.03)
    if factor == 1:
        for n, expected in metrics.WITHIN.items():
            assert found[f"within{n}"] == pytest.approx(expected, abs=0.01)


def test_errors_of_zero_or_nan_say_nothing():
    error = np.array([0.0, np.nan, -1.0, np.inf, 20.0])
    assert metrics.calibration(PREDICTED, REFERENCE, error)["within1"] == 1


def test_robust_scatter_is_that_of_a_gaussian():
    residual = np.random.default_rng(1).normal(5, 2, 40000)
    residual[:400] = 1e6
    assert metrics.nmad(residual) == pytest.approx(2, rel=0.03)


def test_bins_by_hand():
    by = np.array([0.0, 10.0, 19.9, 20.0, np.nan])
    low, high, empty = metrics.binned(by, [0, 10, 20, 30], PREDICTED, REFERENCE)
    assert (low["low"], low["high"], low["n"], low["mae"]) == (0, 10, 1, 1)
    assert (high["n"], high["mae"]) == (2, 2)
    assert (empty["n"], empty["mae"]) == (1, 3)
    last = metrics.binned(by, [0, 10, 20], PREDICTED, REFERENCE, np.ones(5))[-1]
    assert last["n"] == 3  # the last edge belongs to the last bin
    assert last["within1"] == pytest.approx(1 / 3)


def test_bins_refuse_edges_that_do_not_increase():
    with pytest.raises(ValueError, match="increase"):
        metrics.binned(REFERENCE, [0, 0, 1], PREDICTED, REFERENCE)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"\(5,\), \(1,\)"):
        metrics.summary(PREDICTED, np.ones(1))


@given(arrays("f8", 12, elements=st.floats(-1e6, 1e6)), st.floats(-1e3, 1e3))
def test_an_offset_moves_the_bias_and_no_scatter(residual, offset):
    zero = np.zeros(residual.size)
    first = metrics.summary(residual, zero)
    moved = metrics.summary(residual + offset, zero)
    assert moved["bias"] == pytest.approx(first["bias"] + offset, abs=1e-6)
    for name in ("std", "nmad"):
        assert moved[name] == pytest.approx(first[name], abs=1e-6)
    assert moved["rmse"] ** 2 == pytest.approx(
        moved["bias"] ** 2 + moved["std"] ** 2, rel=1e-6, abs=1e-6
    )


# ------------------------------------------------------------------ the papers' own


def test_mk_errors_by_hand():
    residual = PREDICTED - REFERENCE  # 1, -1, 3, -3, 10
    assert metrics.mean_error(residual) == pytest.approx(8 / 4)  # without the 10
    # absolute errors about 2: -1 -1 1 1 8
    assert metrics.deviation(residual) == pytest.approx(np.sqrt((4 + 64) / 5))
    assert np.isnan(metrics.mean_error(np.array([3.0])))


def test_within_half_a_subtype_includes_the_limit():
    residual = np.array([0.0, 0.05, -0.05, 0.051, -0.3])
    assert metrics.within(residual) == pytest.approx(3 / 5)
    single = np.float32([3.05]).astype(float) - 3  # 0.0499999523
    assert metrics.within(single) == 1
    assert metrics.within(residual, limit=0.2) == pytest.approx(4 / 5)


def test_quadratic_by_hand():
    x = np.array([-2.0, -1, 0, 1, 2])
    fit = metrics.quadratic(x, 1 + 2 * x + 3 * x**2)
    assert fit.coefficients == pytest.approx((1, 2, 3))
    assert fit.band(x) == pytest.approx(0, abs=1e-6)
    # y = 1 at 0, else 0: the sums are n = 5, Σx² = 10, Σx⁴ = 34, so that
    # a = 34/70, b = 0, c = -10/70; residuals squared 18/35, over 2 free: 9/35
    fit = metrics.quadratic(x, np.array([0.0, 0, 1, 0, 0]))
    assert fit.coefficients == pytest.approx((34 / 70, 0, -1 / 7))
    # variance at 0 is 34/70 of that; Student's t of 2 is 4.302653
    assert fit.band([0.0])[0] == pytest.approx(4.302653 * np.sqrt(9 / 35 * 34 / 70))


def test_quadratic_agrees_with_polyfit():
    rng = np.random.default_rng(5)
    x = rng.uniform(4000, 8000, 300)
    y = x + 1e-5 * (x - 6000) ** 2 + rng.normal(0, 80, x.size)
    fit = metrics.quadratic(x, y)
    # polyfit as of a centred x: its covariance has the same scale
    terms, covariance = np.polyfit((x - 6000) / 1000, y, 2, cov=True)
    grid = np.linspace(4000, 8000, 9)
    u = (grid - 6000) / 1000
    assert fit(grid) == pytest.approx(np.polyval(terms, u))
    powers = np.stack([u**2, u, np.ones(9)], axis=1)
    error = np.sqrt(np.einsum("ij,jk,ik->i", powers, covariance, powers))
    assert fit.band(grid) / error == pytest.approx(1.968, abs=0.001)  # t of 297


@pytest.mark.parametrize("x", [[1.0, 2, 3], [1.0, 1, 2, 2, 2], [np.nan] * 9])
def test_quadratic_of_too_little_is_none(x):
    assert metrics.quadratic(np.array(x), np.array(x)) is None


def test_reliability_by_hand():
    ratio = np.array([0.5, 0.7, 1.0, 2.0])  # a half is promised up to 0.6745
    found = metrics.reliability(ratio, levels=[0.5, 0.6, 0.95, 0.96])
    assert found["observed"] == [0.25, 0.5, 0.75, 1.0]
    assert np.isnan(metrics.reliability(np.zeros(0))["observed"]).all()


def test_precision_by_hand():
    found = metrics.precision(np.array([3.0, -4.0, np.nan]), np.array([3.0, 2.0, 1.0]))
    assert found["n"] == 2
    assert found["scatter"] == pytest.approx(np.sqrt(25 / 2) / np.sqrt(2))
    assert found["robust"] == pytest.approx(1.4826 * 3.5 / np.sqrt(2))
    assert (found["mean_difference"], found["maximum"]) == (3.5, 4)
    assert (found["within1"], found["within2"]) == (0.5, 1)


# ------------------------------------------------------------------------ bootstrap


@pytest.mark.parametrize("size", [50, 1000, 40000])
def test_intervals_are_those_of_the_central_limit(size):
    residual = np.random.default_rng(7).normal(3, 2, size)
    found = metrics.intervals(residual, np.abs(residual))
    expected = {
        "bias": (residual.mean(), residual.std() / np.sqrt(size)),
        "mae": (np.abs(residual).mean(), np.abs(residual).std() / np.sqrt(size)),
        "std": (residual.std(), residual.std() / np.sqrt(2 * size)),
        "nmad": (metrics.nmad(residual), 1.166 * residual.std() / np.sqrt(size)),
        "within1": (
            np.mean(np.abs(residual) <= 1),
            np.sqrt(np.var(np.abs(residual) <= 1) / size),
        ),
    }
    for name, (value, error) in expected.items():
        low, high = found[name]
        room = 0.12 if name != "nmad" else 0.35
        assert (high - low) / (2 * 1.96) == pytest.approx(error, rel=room), name
        assert (low + high) / 2 == pytest.approx(value, abs=0.6 * error), name


def test_intervals_of_few_rows():
    assert np.isnan(metrics.intervals(np.zeros(0))["mae"]).all()
    assert np.isnan(metrics.intervals(np.ones(1))["nmad"]).all()
    assert metrics.intervals(np.array([2.0, 2.0]))["mae"] == (2, 2)
    assert metrics.intervals(PREDICTED - REFERENCE) == metrics.intervals(
        PREDICTED - REFERENCE
    )


def test_paired_by_hand():
    first = np.array([1.0, -1, 2, np.nan, -2])
    second = np.array([3.0, -3, 4, 1, np.nan])
    found = metrics.paired(first, second)
    assert found["n"] == 3
    assert found["mae_first"] == pytest.approx(4 / 3)
    assert found["mae_second"] == pytest.approx(10 / 3)
    assert found["mae_difference"] == pytest.approx(-2)
    assert (found["mae_low"], found["mae_high"]) == pytest.approx((-2, -2))
    assert found["mae_probability"] == 1
    assert metrics.paired(second, first)["mae_probability"] == 0
    assert metrics.paired(first, first)["rmse_probability"] == 0.5


def test_paired_probability_is_that_of_a_gaussian():
    rng = np.random.default_rng(3)
    difference = rng.normal(0, 1, 4000)
    difference += 1 / np.sqrt(difference.size) - difference.mean()  # one error above 0
    found = metrics.paired(50 + difference, np.full(difference.size, 50.0))
    assert found["mae_probability"] == pytest.approx(0.1587, abs=0.03)


def test_paired_of_nothing_is_nan_without_a_warning():
    found = metrics.paired(np.full(3, np.nan), np.ones(3))
    assert found["n"] == 0
    assert np.isnan(found["mae_probability"])


def test_stars_with_many_pairs_widen_the_interval():
    difference = np.repeat(np.random.default_rng(2).normal(0, 1, 100), 9)
    low, high = metrics.precision_interval(difference, np.arange(900))
    wide_low, wide_high = metrics.precision_interval(difference, np.arange(900) // 9)
    assert (wide_high - wide_low) / (high - low) == pytest.approx(3, rel=0.2)
