"""The windows that matter most, and the features in them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stellarcli.explanation import lines
from stellarcli.explanation.importance import Group, Importance


@dataclass(frozen=True)
class Window:
    """A window that matters.

    Attributes
    ----------
    low, high : float
        Vacuum Å.
    importance, error : float
        Mean absolute value of the label in it and its standard error, in its unit.
    signed : float
        Mean value with its sign.
    lines : tuple of str
        Names of features in it, the nearest to its middle first.
    """

    low: float
    high: float
    importance: float
    error: float
    signed: float
    lines: tuple[str, ...]

    def to_json(self) -> dict:
        """Plain values for ``--json``."""
        return {
            "wavelength": (self.low + self.high) / 2,
            "low": self.low,
            "high": self.high,
            "importance": self.importance,
            "error": self.error,
            "signed": self.signed,
            "lines": list(self.lines),
        }


def top(found: Importance, group: Group, label: int, count: int) -> list[Window]:
    """Rank windows by importance.

    Only peaks count: windows that overlap no more important one, so that a line takes
    one place and its wings none. Where a method gives values per pixel, a window has
    the mean over its pixels.

    Parameters
    ----------
    found : Importance
    group : Group
        One of its groups.
    label : int
        Which of ``found.labels``.
    count : int
        How many windows at most.

    Returns
    -------
    list of Window
        None of them without any importance.
    """
    windows = found.request.windows

    def features(n: int) -> tuple[str, ...]:
        near = lines.between(windows.low[n], windows.high[n], group.classes)
        return tuple(line.name for line in near)

    values = np.stack([group.mean, group.error, group.signed])[..., label]
    if not np.array_equal(found.wavelength, windows.centre):
        inside = windows.contains(found.wavelength)
        pixels = np.maximum(inside.sum(axis=1), 1)
        values = values @ inside.T / pixels
    overlap = np.abs(windows.low[:, None] - windows.low) < windows.width - 1e-6
    highest = np.where(overlap, values[0], 0).max(axis=1)
    peaks = np.flatnonzero((values[0] > 0) & (values[0] == highest))
    chosen: list[int] = []
    for n in peaks[np.argsort(-values[0, peaks], kind="stable")].tolist():
        if not overlap[n, chosen].any():  # with an equal one
            chosen.append(n)
    return [
        Window(
            *(float(windows.low[n]), float(windows.high[n])),
            *values[:, n].tolist(),
            features(n),
        )
        for n in chosen[:count]
    ]
