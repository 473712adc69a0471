"""Spectral types as numbers and back.

A number counts in units of a spectral type from A0, as in the MK ResNet paper (Wang et
al. 2021, section 2): A0 = 0, F0 = 1, G5 = 2.5, K9 = 3.9. The scale goes on at both
ends: O0 = -2, B0 = -1, M0 = 4, L0 = 5, T0 = 6. One subtype is 0.1.

What is read: class and subtype, decimals included (``K0.5``), between a prefix (``d``
dwarf, ``g`` giant, ``c`` supergiant, ``sd``, ``esd``, ``usd`` subdwarf) and
anything, such as luminosity class, peculiarities and a companion: ``dM5``, ``sdF8``,
``A7m``, ``G8III-IV``, ``A9V (154660)``, ``K2II+...``. Of a range (``F7-8IV``,
``G8/K0III``) the middle is taken, of an Am star with several types (``kA2hA5mF0``) that
of the hydrogen lines. What isn't read, since it has no subtype on this scale: ``Non``,
``Am``, ``G:?``, white dwarfs (``DA5``), carbon stars and the like.
"""

from __future__ import annotations

import re

import numpy as np

CLASSES = "OBAFGKMLT"
FIRST = -CLASSES.index("A")  # of O0
LAST = FIRST + len(CLASSES) - 0.1  # T9
SHOWN = 5  # unreadable texts that a note names, at most

_SUBTYPE = r"(\d(?:\.\d+)?)(?!\d)"
_PATTERN = re.compile(
    rf"\s*(?:k[^h\s]*h|usd|esd|sd|[cdg])?[:\s]*([{CLASSES}]){_SUBTYPE}"
    rf"(?:\s?[-/]\s?([{CLASSES}]?){_SUBTYPE})?"
)


def number(text: str) -> float:
    """Return a spectral type as a number; NaN where there is none to be read.

    >>> number("G8III-IV"), number("dM5"), number("K0.5"), number("G8/K0III")
    (2.8, 4.5, 3.05, 2.9)
    >>> number("Non")
    nan
    """
    found = _PATTERN.match(text)
    if not found:
        return np.nan
    letter, subtype, other, end = found.groups()
    tenths = [_tenths(letter, subtype)]
    if end:
        tenths.append(_tenths(other or letter, end))
    return round(sum(tenths) / len(tenths), 6) / 10


def _tenths(letter: str, subtype: str) -> float:
    """Subtypes from A0."""
    return 10 * (FIRST + CLASSES.index(letter)) + float(subtype)


def numbers(texts: np.ndarray) -> np.ndarray:
    """Spectral types as numbers.

    Parameters
    ----------
    texts : array_like of str or bytes

    Returns
    -------
    ndarray of float64, same shape
        NaN where there is none to be read; `unread` says what that was.
    """
    texts = _as_text(texts)
    distinct, inverse = np.unique(texts, return_inverse=True)
    values = np.array([number(text) for text in distinct.tolist()], dtype=np.float64)
    return values[inverse].reshape(texts.shape)


def outside(texts: np.ndarray, first: float, last: float) -> np.ndarray:
    """Say which spectral types are certainly not between two numbers.

    Parameters
    ----------
    texts : array_like of str or bytes
    first, last : float

    Returns
    -------
    ndarray of bool, same shape
        True for objects of other kinds too (``WD``, ``Carbon``, ``CV``); False where
        nothing is said (``Non``, empty), or of a class alone (``Am``).
    """
    texts = _as_text(texts)
    values = numbers(texts)
    silent = np.isin(np.char.lower(texts), ("", "non", "nan"))
    classed = np.isin(texts.astype("U1"), list(CLASSES))
    kind = np.isnan(values) & ~silent & ~classed
    return kind | (values < first) | (values > last)


def names(values: np.ndarray) -> np.ndarray:
    """Numbers as the nearest spectral types, such as ``"G8"``.

    Parameters
    ----------
    values : array_like of float

    Returns
    -------
    ndarray of str, same shape
        Empty where not finite, or beyond O0 and T9.
    """
    tenths = np.floor(np.asarray(values, dtype=np.float64) * 10 + 0.5)
    known = (tenths >= 10 * FIRST) & (tenths < 10 * (FIRST + len(CLASSES)))
    letter, subtype = np.divmod(np.where(known, tenths, 0).astype(int), 10)
    text = np.char.add(np.array(list(CLASSES))[letter - FIRST], subtype.astype(str))
    return np.where(known, text, "")


def unread(texts: np.ndarray) -> str:
    """Say what `numbers` can't read; empty where all is well.

    Parameters
    ----------
    texts : array_like of str or bytes
        Empty ones don't count.

    Returns
    -------
    str
        ``"3 of 90 spectral types can't be read: 'Non' (2), 'DA5'"``
    """
    texts = _as_text(texts).ravel()
    texts = texts[np.char.strip(texts) != ""]
    distinct, count = np.unique(texts, return_counts=True)
    unknown = np.isnan(numbers(distinct))
    if not unknown.any():
        return ""
    pairs = zip(distinct[unknown].tolist(), count[unknown].tolist(), strict=True)
    ordered = sorted(pairs, key=lambda pair: -pair[1])
    listed = [f"'{text}' ({n})" if n > 1 else f"'{text}'" for text, n in ordered]
    more = [f"{len(listed) - SHOWN} more"] if len(listed) > SHOWN else []
    return (
        f"{count[unknown].sum()} of {texts.size} spectral types can't be read: "
        + ", ".join([*listed[:SHOWN], *more])
    )


def _as_text(texts: np.ndarray) -> np.ndarray:
    texts = np.asarray(texts)
    if texts.dtype.kind == "S":
        return np.char.decode(texts, "ascii", "replace")
    return texts.astype(str)
