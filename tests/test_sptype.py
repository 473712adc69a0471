"""Spectral types as numbers and back, as surveys and libraries write them."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stellarcli import sptype

DATA = Path(__file__).parents[2] / "shared" / "data"
TENTHS = st.integers(-20, 69)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("A0", 0.0),
        ("F0", 1.0),
        ("G5", 2.5),
        ("K9", 3.9),
        ("O5", -1.5),
        ("B9.5V", -0.05),
        ("M4", 4.4),
        ("L2", 5.2),
        # LAMOST, SDSS
        ("A7V", 0.7),
        ("A2IV", 0.2),
        ("gM0", 4.0),
        ("dM5", 4.5),
        ("sdM1", 4.1),
        ("usdM3", 4.3),
        ("sdF8", 1.8),
        ("A9V (154660)", 0.9),
        ("F3/F5V (30743)", 1.4),
        ("M6III (148783)", 4.6),
        # MILES
        ("G8III-IV", 2.8),
        ("K0.5IIIb", 3.05),
        ("A7m", 0.7),
        ("A0mnp...", 0.0),
        ("sdF2:", 1.2),
        ("F6:w?", 1.6),
        ("K2II+...", 3.2),
        ("G0Ib/II", 2.0),
        ("F7-8IV-V", 1.75),
        ("G8/K0III", 2.9),
        ("K4-5 III-I", 3.45),
        ("M0III-IIIb", 4.0),
        ("M5.2 III", 4.52),
        ("M2S?", 4.2),
        (" K1 V ", 3.1),
        ("kA2hA5mF0", 0.5),
    ],
)
def test_what_surveys_write(text, number):
    assert sptype.number(text) == pytest.approx(number, abs=1e-12)


@pytest.mark.parametrize(
    "text",
    [
        *("", "Non", "OB", "Am", "Ap", "A", "G:?", "sd:F", "AGB", "HB", "S?", "DA5"),
        *("WD", "Carbon", "CV", "Double Star", "09Ib", "M...", "A10", "5.0", "WN5"),
    ],
)
def test_what_is_no_subtype_is_not_guessed(text):
    assert np.isnan(sptype.number(text))


@given(tenths=TENTHS)
def test_there_and_back(tenths):
    name = str(sptype.names(tenths / 10))
    assert sptype.number(name) == tenths / 10
    assert len(name) == 2


@given(
    tenths=TENTHS,
    prefix=st.sampled_from(["", "d", "g", "sd", "esd", "usd", "c"]),
    luminosity=st.sampled_from(["", "V", "III-IV", " Ib", "IIIb", "Vwe", "p...", "m"]),
)
def test_only_class_and_subtype_count(tenths, prefix, luminosity):
    text = f"{prefix}{sptype.names(tenths / 10)}{luminosity}"
    assert sptype.number(text) == tenths / 10


@given(value=st.floats(-2.04, 6.94))
def test_the_nearest_type_is_within_half_a_subtype(value):
    assert abs(sptype.number(str(sptype.names(value))) - value) <= 0.05 + 1e-9


@given(text=st.text(max_size=12))
def test_any_text_is_read_or_not(text):
    value = sptype.number(text)
    assert np.isnan(value) or sptype.FIRST <= value < sptype.LAST + 0.1


@given(text=st.text("OBAFGKMdsg0123456789.-/:+IVmpe ", max_size=10))
def test_a_range_lies_between_its_ends(text):
    value = sptype.number(text)
    assert np.isnan(value) or sptype.FIRST <= value < sptype.LAST + 0.1


def test_names_of_arrays():
    values = [[-2.04, -2.06], [2.449, np.nan], [6.9, 6.96], [np.inf, 3.95]]
    expected = [["O0", ""], ["G4", ""], ["T9", ""], ["", "M0"]]
    assert sptype.names(values).tolist() == expected


@pytest.mark.parametrize("kind", ["U", "S"])
def test_numbers_of_arrays(kind):
    texts = np.array([["A0", "Non"], ["G8III", "A0"]], dtype=f"{kind}8")
    np.testing.assert_array_equal(sptype.numbers(texts), [[0.0, np.nan], [2.8, 0.0]])
    assert sptype.numbers(texts[:0]).shape == (0, 2)


def test_what_could_not_be_read_is_said():
    texts = np.array(["Non", "A0", "", "DA5", "Non", " "])
    said = "3 of 4 spectral types can't be read: 'Non' (2), 'DA5'"
    assert sptype.unread(texts) == said
    assert sptype.unread(np.array(["A0", ""])) == ""
    many = np.array([f"W{n}" for n in range(9)])
    assert sptype.unread(many).endswith("'W4', 4 more")


def column(name, field):
    import fitsio

    path = DATA / name
    if not path.exists():
        pytest.skip(f"{path} is not here")
    return np.char.strip(fitsio.read(path, columns=[field])[field].astype(str))


def test_all_types_of_the_lamost_labels_are_read():
    texts = column("lamost-dr10/train_labels.fits", "subclass")
    assert sptype.unread(texts) == ""
    assert (sptype.names(sptype.numbers(texts)) == texts).all()


def test_all_types_of_the_templates_are_read():
    texts = column("mk/sdss_templates.fits", "sptype")
    assert (sptype.names(sptype.numbers(texts)) == texts).all()


def test_miles_types_without_a_subtype_are_all_that_is_not_read():
    texts = np.unique(column("miles/miles_train.fits", "sptype"))
    numbers = sptype.numbers(texts)
    # independent of the codec: a letter of the scale followed by a digit
    there = [
        any(a in "OBAFGKM" and b.isdigit() for a, b in pairwise(text))
        for text in texts.tolist()
    ]
    assert (np.isfinite(numbers) == np.array(there)).all()
    # the number lies within the class that the text names first
    for text, number in zip(texts[there].tolist(), numbers[there], strict=True):
        first = next(letter for letter in text if letter in "OBAFGKM")
        assert "OBAFGKM".index(first) - 2 <= number < "OBAFGKM".index(first) - 1
