"""Selections of rows, as a user writes them: ``snrg > 25 and class == 'STAR'``.

::

    any         all, or all, …
    all         negation and negation …
    negation    not negation | comparison
    comparison  sum < sum <= …
    sum         product + product - …
    product     factor * factor / …
    factor      -factor | (any) | number | 'text' | column

A reader of its own, since Python's refuses columns called like its keywords (``class``)
and doesn't say where its patience ended.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from functools import reduce

import numpy as np

from stellarcli.errors import UsageError

Columns = Callable[[str], np.ndarray]  # by name
Value = Callable[[Columns], np.ndarray]

COMPARE = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
SUM = {"+": operator.add, "-": operator.sub}
PRODUCT = {"*": operator.mul, "/": operator.truediv}
INSTEAD = {
    "&": "and",
    "|": "or",
    "~": "not",
    "!": "not",
    "=": "==",
}  # of other languages
WORDS = ("and", "or", "not")
CONSTANTS = {"True": True, "False": False}
TOKEN = re.compile(
    r"(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)"
    r"|(?P<text>'[^']*'|\"[^\"]*\")"
    r"|(?P<name>[^\W\d]\w*)"
    r"|(?P<sign>[<>=!]=|[-<>+*/()])"
    r"|(?P<other>\S)"
)


def select(expression: str, column: Columns) -> np.ndarray:
    """Evaluate a row selection such as ``"snrg > 25 and 3786 < teff < 8400"``.

    Parameters
    ----------
    expression : str
        Comparisons of columns, numbers and 'strings', joined by and, or, not, with
        + - * / and parentheses. A bare column is true where it isn't zero.
    column : callable
        Returns the column of a name.

    Returns
    -------
    ndarray of bool

    Raises
    ------
    UsageError
        If the expression can't be read (says where), or compares text with numbers.
    """
    value = _Reader(expression).read()
    try:
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(value(column)).astype(bool)
    except (TypeError, ValueError):  # NumPy's, for text beside numbers
        raise UsageError(
            f"selection {expression!r} mixes text and numbers; write text in quotes, "
            "and compare it with columns of text only."
        ) from None


def names(expression: str) -> tuple[str, ...]:
    """Return the columns in a selection; none where it can't be read."""
    reader = _Reader(expression)
    try:
        reader.read()
    except UsageError:
        return ()
    return tuple(reader.names)


class _Reader:
    """Turns an expression into a function of columns, token by token."""

    def __init__(self, expression: str):
        self.expression = expression
        self.tokens = [
            (match.lastgroup, match[0], match.start() + 1)
            for match in TOKEN.finditer(expression)
        ]
        self.names: list[str] = []

    def read(self) -> Value:
        value = self._any()
        if self.tokens:
            raise self._error()
        return value

    def _error(self) -> UsageError:
        if self.tokens:
            _, text, place = self.tokens[0]
            where = f"at character {place}, {text!r}"
            where += f" (write {INSTEAD[text]!r})" if text in INSTEAD else ""
        else:
            where = f"at character {len(self.expression.rstrip()) + 1}, its end"
        return UsageError(
            f"selection {self.expression!r} can't be read {where}. Write it like "
            "\"snrg > 25 and 3786 < teff < 8400 and class == 'STAR'\"."
        )

    def _take(self, *texts: str) -> str:
        """Take the next token if it is one of some signs or words."""
        if self.tokens and self.tokens[0][1].lower() in texts:
            return self.tokens.pop(0)[1].lower()
        return ""

    def _any(self) -> Value:
        return self._chain(self._all, {"or": np.logical_or})

    def _all(self) -> Value:
        return self._chain(self._negation, {"and": np.logical_and})

    def _negation(self) -> Value:
        if self._take("not"):
            value = self._negation()
            return lambda column: ~value(column).astype(bool)
        return self._comparison()

    def _comparison(self) -> Value:
        sides, tests = [self._sum()], []
        while sign := self._take(*COMPARE):
            tests.append(_comparable(COMPARE[sign]))
            sides.append(self._sum())
        if not tests:
            return sides[0]

        def value(column: Columns) -> np.ndarray:
            values = [side(column) for side in sides]
            pairs = zip(tests, values, values[1:], strict=False)
            return reduce(np.logical_and, [test(a, b) for test, a, b in pairs])

        return value

    def _sum(self) -> Value:
        return self._chain(self._product, SUM)

    def _product(self) -> Value:
        return self._chain(self._factor, PRODUCT)

    def _chain(self, part: Callable[[], Value], operators: dict) -> Value:
        value = part()
        while sign := self._take(*operators):
            value = _joined(operators[sign], value, part())
        return value

    def _factor(self) -> Value:
        if self._take("-"):
            value = self._factor()
            return lambda column: -value(column)
        if self._take("("):
            value = self._any()
            if not self._take(")"):
                raise self._error()
            return value
        kind, text, _ = self.tokens[0] if self.tokens else ("end", "", 0)
        constants = {"number": float, "text": lambda quoted: quoted[1:-1]}
        if text in CONSTANTS:
            constant = CONSTANTS[text]
        elif kind in constants:
            constant = constants[kind](text)
        elif kind == "name" and text.lower() not in WORDS:
            self.names.append(text)
            del self.tokens[0]
            return lambda column: column(text)
        else:
            raise self._error()
        del self.tokens[0]
        return lambda column: np.asarray(constant)


def _joined(function: Callable, left: Value, right: Value) -> Value:
    return lambda column: function(left(column), right(column))


def _comparable(function: Callable) -> Callable:
    """Refuse text beside numbers, which NumPy finds unequal without a word."""

    def compare(left: np.ndarray, right: np.ndarray) -> np.ndarray:
        if (left.dtype.kind in "SU") != (right.dtype.kind in "SU"):
            raise TypeError
        return function(left, right)

    return compare
