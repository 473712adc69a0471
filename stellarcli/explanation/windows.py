"""Windows in wavelength."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stellarcli.errors import UsageError

MOST = 20_000


@dataclass(frozen=True)
class Windows:
    """Windows of one width at equal steps, the first at `start`, none beyond `stop`.

    The defaults are those of SCA-Net (Zhang H. K. et al. 2026, figure 8).

    Attributes
    ----------
    start, stop : float
        Vacuum Å, rest frame.
    width, step : float
        Å.
    """

    start: float = 4000.0
    stop: float = 8095.0
    width: float = 15.0
    step: float = 5.0

    def __post_init__(self) -> None:
        """Refuse what makes no window, or very many."""
        if not (self.width > 0 and self.step > 0):
            raise UsageError(
                f"--window and --step must be more than 0 Å, not {self.width:g} and "
                f"{self.step:g}."
            )
        if not self.stop - self.start >= self.width:
            raise UsageError(
                f"no window of {self.width:g} Å fits between {self.start:g} and "
                f"{self.stop:g} Å; change --window, --start or --stop."
            )
        if not len(self) <= MOST:
            raise UsageError(f"{len(self)} windows are too many; give a larger --step.")

    def __len__(self) -> int:
        """Return the number of windows."""
        room = self.stop - self.start - self.width
        return int(room / self.step + 1e-9) + 1

    @property
    def low(self) -> np.ndarray:
        """Blue ends, shape (window,)."""
        return self.start + self.step * np.arange(len(self))

    @property
    def high(self) -> np.ndarray:
        """Red ends, not included, shape (window,)."""
        return self.low + self.width

    @property
    def centre(self) -> np.ndarray:
        """Middles, shape (window,)."""
        return self.low + self.width / 2

    def contains(self, wavelength: np.ndarray) -> np.ndarray:
        """Say which pixels lie in which window.

        Parameters
        ----------
        wavelength : ndarray, shape (pixel,)

        Returns
        -------
        ndarray of bool, shape (window, pixel)
        """
        return (wavelength >= self.low[:, None]) & (wavelength < self.high[:, None])
