"""Labels to model units and back, their errors too, and values that can't be."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stellarcli import labels
from stellarcli.errors import UsageError
from stellarcli.labels import LABELS, Label

TRAINING = np.linspace(3000, 9000, 50)


@given(st.sampled_from(sorted(LABELS)), st.floats(0, 1))
def test_decode_is_the_inverse_of_encode(name, share):
    label = LABELS[name]
    low, high = label.sane
    fitted = label.fitted(np.linspace(low + 0.1 * (high - low), high, 9))
    value = max(low + share * (high - low), 1e-3 if name == "teff" else low)
    found = fitted.decode(fitted.encode(value))
    np.testing.assert_allclose(found, value, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", sorted(LABELS))
def test_errors_are_those_of_finite_differences(name):
    label = LABELS[name]
    fitted = label.fitted(np.linspace(*label.sane, 9)[1:])
    inner, error = np.array([-0.5, 0.0, 0.5]), 1e-4
    high, low = fitted.decode(inner + error), fitted.decode(inner - error)
    found = fitted.decode_error(inner, np.full(3, error))
    np.testing.assert_allclose(found, (high - low) / 2, rtol=1e-6)
    back = fitted.encode_error(fitted.decode(inner), found)
    np.testing.assert_allclose(back, error, rtol=1e-9)


def test_fitted_labels_are_standardised_and_know_their_range():
    label = LABELS["teff"].fitted(np.append(TRAINING, np.nan))
    inner = label.encode(TRAINING)
    assert abs(inner.mean()) < 1e-12
    assert abs(inner.std() - 1) < 1e-12
    assert label.trained == (3000.0, 9000.0)


def test_one_value_only_has_scale_one():
    label = LABELS["feh"].fitted(np.array([0.1, 0.1]))
    assert label.scale == 1.0
    assert label.decode(label.encode(0.1)) == pytest.approx(0.1)


def test_nan_stays_nan():
    label = LABELS["teff"].fitted(TRAINING)
    assert np.isnan(label.encode(np.array([np.nan]))).all()
    assert np.isnan(label.decode(np.array([np.nan]))).all()


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("teff", [5000.0, -9999.0], ["1 of 2", "teff", "1000 to 200000 K", "-9999"]),
        ("teff", [5.0, 6.0], ["2 of 2", "the first is 5", "check the unit"]),
        ("logg", [4.0, 99.0], ["-2 to 10 (no unit)", "NaN"]),
        ("feh", [np.nan, np.inf], ["no spectrum has a finite feh", "--select"]),
        ("feh", [], ["no spectrum has a finite feh"]),
    ],
)
def test_values_that_cant_be(name, values, words):
    with pytest.raises(UsageError) as caught:
        LABELS[name].fitted(np.array(values))
    for word in words:
        assert word in str(caught.value)


def test_json_round_trip():
    label = LABELS["teff"].fitted(TRAINING)
    assert Label.from_json(label.to_json()) == label


def test_unknown_transform():
    with pytest.raises(UsageError, match=r"unknown label transform 'log3'.*'log2'"):
        Label("x", "", "x", (0, 1), transform="log3")


def test_any_column_can_be_a_label():
    assert labels.get("TEFF") is LABELS["teff"]
    plain = labels.get("colour")
    assert plain.name == "colour"
    assert plain.fitted(np.arange(5.0)).decode(0.0) == 2.0
