"""Names of spectral features: lines, bands, and what the Earth's air adds."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from math import sqrt

from stellarcli.explanation.classes import CLASSES


@dataclass(frozen=True)
class Line:
    """A spectral feature.

    Attributes
    ----------
    name : str
        As astronomers call it, after the wavelength in air. Lines that a resolution of
        1800 hardly parts share a name.
    wavelength : float
        Vacuum Å; of a band the middle.
    width : float
        Å of what counts as the feature at a resolution of 1800.
    classes : str
        Spectral classes that it is seen in.
    source : str
        Of the wavelength.
    """

    name: str
    wavelength: float
    width: float
    classes: str
    source: str

    @property
    def low(self) -> float:
        """Blue end, Å."""
        return self.wavelength - self.width / 2

    @property
    def high(self) -> float:
        """Red end, Å."""
        return self.wavelength + self.width / 2


@cache
def load() -> tuple[Line, ...]:
    """Return the shipped list, ``data/lines.csv``, by wavelength."""
    path = files("stellarcli") / "data" / "lines.csv"
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(line for line in file if not line.startswith("#"))
        found = [
            Line(
                row["name"],
                float(row["wavelength"]),
                float(row["width"]),
                row["classes"] or CLASSES,
                row["source"],
            )
            for row in rows
        ]
    return tuple(sorted(found, key=lambda line: line.wavelength))


def between(low: float, high: float, classes: str = CLASSES) -> list[Line]:
    """Features that reach into a range, those nearest to its middle first.

    Distances count in square roots of widths: the middle of a broad feature says less
    about where it is.

    Parameters
    ----------
    low, high : float
        Vacuum Å.
    classes : str
        Spectral classes, one of which must show the feature.

    Returns
    -------
    list of Line
        One of each name.
    """
    middle = (low + high) / 2
    inside = [
        line
        for line in load()
        if line.low < high and line.high > low and set(line.classes) & set(classes)
    ]
    inside.sort(key=lambda line: abs(line.wavelength - middle) / sqrt(line.width))
    return list({line.name: line for line in reversed(inside)}.values())[::-1]
