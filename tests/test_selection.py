"""Selections of rows: what they mean, and where one that can't be read goes wrong."""

import numpy as np
import pytest

from stellarcli.errors import UsageError
from stellarcli.selection import names, select

COLUMNS = {
    "snr": np.array([5.0, 20.0, 30.0, np.nan]),
    "teff": np.array([4000.0, 5000.0, 9000.0, 6000.0]),
    "clean": np.array([True, True, False, True]),
    "kind": np.array(["A", "B", "A", "A"]),
    "class": np.array(["STAR", "STAR", "QSO", "GALAXY"]),
    "lambda": np.array([1, 2, 3, 4]),
    "plan": np.array(["a and b", "(c)", "class", ""]),
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("snr > 10", [0, 1, 1, 0]),
        ("4500 <= teff < 9000 and clean", [0, 1, 0, 1]),
        ("not clean or kind == 'B'", [0, 1, 1, 0]),
        ("teff / 1000 - 1 > 2 * (snr + -15) * 0 + 3.5", [0, 1, 1, 0]),
        (" clean ", [1, 1, 0, 1]),
        ("True", [1]),
        ("1 < 2 <= lambda", [0, 1, 1, 1]),
        ("class == 'STAR'", [1, 1, 0, 0]),
        ("class != \"STAR\" AND (lambda == 4 OR NOT kind=='A')", [0, 0, 0, 1]),
        ("plan == 'a and b' or plan=='class'", [1, 0, 1, 0]),
        ("clean == True", [1, 1, 0, 1]),
        ("clean or clean and snr > 100", [1, 1, 0, 1]),  # and before or
        ("not snr > 10 and not clean", [0, 0, 0, 0]),
        ("10 - 3 - 2 == lambda + 1", [0, 0, 0, 1]),
        ("8 / 2 / 2 == lambda", [0, 1, 0, 0]),
        ("snr > 1.5e1", [0, 1, 1, 0]),
        ("-snr < -.2E2", [0, 0, 1, 0]),
    ],
)
def test_selections(text, expected):
    found = select(text, COLUMNS.__getitem__)
    np.testing.assert_array_equal(np.atleast_1d(found), np.array(expected, bool))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("snr > 10 & clean", r"at character 10, '&' \(write 'and'\)"),
        ("  snr = 3", r"at character 7, '=' \(write '=='\)"),
        ("abs(snr)", r"at character 4, '\('"),
        ("snr.real", r"at character 4, '\.'"),
        ("snr > ", "at character 6, its end"),
        ("snr > 25 teff < 8", "at character 10, 'teff'"),
        ("(snr > 25 and clean", "at character 20, its end"),
        ("snr > 25)", r"at character 9, '\)'"),
        ("snr > and", "at character 7, 'and'"),
        ("", "at character 1, its end"),
        ("kind == 'A", 'at character 9, "\'"'),
        ("kind > 3", "mixes text and numbers"),
        ("kind == 3", "mixes text and numbers"),
        ("-clean", "mixes text and numbers"),
        ("x:=1", "at character 2, ':'"),
    ],
)
def test_selections_that_are_refused(text, words):
    with pytest.raises(UsageError, match=f"selection .*{words}"):
        select(text, COLUMNS.__getitem__)


def test_names():
    assert names("snr > 25 and Class == 'kind' or True") == ("snr", "Class")
    assert names("snr > ") == ()
