"""Names of spectral features: lines, bands, and what the Earth's air adds."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from importlib.resources import files


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
    source : str
        Of the wavelength.
    """

    name: str
    wavelength: float
    width: float
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
                row["source"],
            )
            for row in rows
        ]
    return tuple(sorted(found, key=lambda line: line.wavelength))


def between(low: float, high: float) -> list[Line]:
    """Features that reach into a range, by the distance to its middle in widths.

    Parameters
    ----------
    low, high : float
        Vacuum Å.

    Returns
    -------
    list of Line
        One of each name.
    """
    middle = (low + high) / 2
    inside = [line for line in load() if line.low < high and line.high > low]
    inside.sort(key=lambda line: abs(line.wavelength - middle) / line.width)
    return list({line.name: line for line in reversed(inside)}.values())[::-1]
