"""Stellar labels: names, units, sane ranges, and the way to model units and back."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

import numpy as np

from stellarcli.errors import UsageError, unknown

TRANSFORMS = {
    "linear": (lambda x: x, lambda y: y, np.ones_like),
    # derivative of the inverse: d(2**y)/dy = 2**y ln 2
    "log2": (np.log2, np.exp2, lambda y: np.exp2(y) * np.log(2)),
}


@dataclass(frozen=True)
class Label:
    """One quantity that a model predicts.

    Model units are ``(transform(value) - center) / scale``; networks see only those.

    Attributes
    ----------
    name : str
        Column name in catalogues, e.g. ``"teff"``.
    unit : str
        FITS unit string; empty for dimensionless.
    description : str
        One line for the column's comment.
    sane : tuple of float
        Values outside can only be mistakes (wrong unit, filler such as -9999).
    display : str
        FITS TDISP format.
    transform : str
        Key of `TRANSFORMS`.
    center, scale : float
        Of the transformed training labels; 0 and 1 before `fitted`.
    trained : tuple of float
        Range that the training labels cover; values outside are flagged.
    """

    name: str
    unit: str
    description: str
    sane: tuple[float, float]
    display: str = "F8.3"
    transform: str = "linear"
    center: float = 0.0
    scale: float = 1.0
    trained: tuple[float, float] = (-np.inf, np.inf)

    def __post_init__(self) -> None:
        """Refuse a transform that doesn't exist."""
        if self.transform not in TRANSFORMS:
            raise unknown("label transform", self.transform, TRANSFORMS)

    def encode(self, values: np.ndarray) -> np.ndarray:
        """Label values to model units; NaN stays NaN.

        Parameters
        ----------
        values : ndarray
            In the label's unit.

        Returns
        -------
        ndarray of float64, same shape
        """
        forward, _, _ = TRANSFORMS[self.transform]
        return (
            forward(np.asarray(values, dtype=np.float64)) - self.center
        ) / self.scale

    def decode(self, values: np.ndarray) -> np.ndarray:
        """Model units to label values (inverse of `encode`)."""
        _, inverse, _ = TRANSFORMS[self.transform]
        return inverse(np.asarray(values, dtype=np.float64) * self.scale + self.center)

    def decode_error(self, values: np.ndarray, errors: np.ndarray) -> np.ndarray:
        """Bring standard errors from model units to label units, to first order.

        Parameters
        ----------
        values, errors : ndarray
            Predicted value and its standard error, both in model units.

        Returns
        -------
        ndarray of float64
            Standard error in the label's unit.
        """
        _, _, slope = TRANSFORMS[self.transform]
        inner = np.asarray(values, dtype=np.float64) * self.scale + self.center
        return np.asarray(errors, dtype=np.float64) * self.scale * slope(inner)

    def encode_error(self, values: np.ndarray, errors: np.ndarray) -> np.ndarray:
        """Bring standard errors from label units to model units, to first order.

        Parameters
        ----------
        values, errors : ndarray
            Label value and its standard error, both in the label's unit.

        Returns
        -------
        ndarray of float64
            Standard error in model units.
        """
        forward, _, slope = TRANSFORMS[self.transform]
        inner = forward(np.asarray(values, dtype=np.float64))
        return np.asarray(errors, dtype=np.float64) / (slope(inner) * self.scale)

    def fitted(self, values: np.ndarray) -> Label:
        """Return this label with center, scale and trained range of training values.

        Parameters
        ----------
        values : ndarray
            Training labels; NaN are left out.

        Raises
        ------
        UsageError
            If no finite value is left, or values lie outside `sane`.
        """
        finite = np.asarray(values, dtype=np.float64)
        finite = finite[np.isfinite(finite)]
        self.check(finite)
        inner = TRANSFORMS[self.transform][0](finite)
        return replace(
            self,
            center=float(inner.mean()),
            scale=float(inner.std()) or 1.0,
            trained=(float(finite.min()), float(finite.max())),
        )

    def check(self, values: np.ndarray) -> None:
        """Raise `UsageError` where finite `values` can't be this label."""
        finite = np.asarray(values, dtype=np.float64)
        finite = finite[np.isfinite(finite)]
        if finite.size == 0:
            raise UsageError(
                f"no spectrum has a finite {self.name}; check the label column's name "
                "and the rows that --select leaves."
            )
        low, high = self.sane
        wrong = (finite < low) | (finite > high)
        if wrong.any():
            raise UsageError(
                f"{wrong.sum()} of {finite.size} values of {self.name} are outside "
                f"{low:g} to {high:g} {self.unit or '(no unit)'}, the first is "
                f"{finite[wrong][0]:g}. Set fillers to NaN, check the unit, or leave "
                "those rows out with --select."
            )

    def to_json(self) -> dict:
        """Plain values for a model file."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict) -> Label:
        """Inverse of `to_json`."""
        pairs = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**pairs)


def _abundance(element: str) -> Label:
    name = "feh" if element == "Fe" else f"{element.lower()}_h"
    return Label(name, "", f"[{element}/H], dex", (-10.0, 5.0), display="F7.3")


ELEMENTS = ("C", "N", "O", "Mg", "Al", "Si", "S", "K", "Ca")
ELEMENTS += ("Ti", "Cr", "Mn", "Fe", "Ni", "Cu")

SUBTYPE = "sptype_num"  # a spectral type as a number, see `sptype`
# what catalogues call a spectral type, as text or as a number
SUBTYPE_COLUMNS = (SUBTYPE, "sptype", "subclass", "spectral_type", "sp_type", "spt")

LABELS = {
    label.name: label
    for label in (
        Label(
            "teff",
            "K",
            "effective temperature",
            (1000.0, 200000.0),
            display="F9.2",
            transform="log2",
        ),
        Label("logg", "", "surface gravity, log10 of cm/s2, dex", (-2.0, 10.0)),
        Label(
            SUBTYPE, "", "spectral type, A0 = 0, F0 = 1, K9 = 3.9", (-2.0, 7.0), "F7.3"
        ),
        Label("mass", "Msun", "stellar mass", (0.01, 200.0)),
        Label("age", "Gyr", "stellar age", (0.0, 20.0)),
        *map(_abundance, ELEMENTS),
    )
}


def get(name: str) -> Label:
    """Return the label of a column name; any other name is a plain number."""
    fallback = Label(name, "", f"{name}, as trained", (-1e30, 1e30), display="G13.6")
    if name.lower() in SUBTYPE_COLUMNS:
        name = SUBTYPE
    return LABELS.get(name.lower(), fallback)
