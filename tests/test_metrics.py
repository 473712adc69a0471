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
