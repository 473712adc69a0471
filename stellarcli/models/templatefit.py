"""Full-spectrum fitting as a layer: templates against a spectrum by least squares.

LASP's labels are such a fit (ULySS: Koleva et al. 2009, A&A 501, 1269; Wu et al. 2011,
RAA 11, 924): templates of an interpolator times a polynomial. Noise moves a fit in a
way that follows from the spectrum alone, so that a second fit to the same pixels moves
likewise, and what a label owes to its spectrum's noise can be reproduced too.

The multiplicative polynomial is linearised about a continuum of one, so that its normal
equations are those of the weights alone, a matrix product for the whole batch.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from stellarcli.errors import UsageError
from stellarcli.labels import Label
from stellarcli.models.regression import Given
from stellarcli.surveys.emulator import LABEL_NAMES, Emulator

ORIGIN = (6000.0, 4.0, 0.0)  # Teff [K], log g, [Fe/H] that the parameters count from
PARAMETERS = 5  # log2 Teff, log g, [Fe/H], shift [pixel], broadening [pixel²/2]
LOWEST = (-0.75, -4.0, -2.6, -2.0, -1.0)
HIGHEST = (1.3, 1.2, 0.9, 2.0, 4.0)
LARGEST_STEP = (0.085, 0.4, 0.4, 0.5, 1.0)
DIFFERENCE = (0.015, 0.05, 0.05)  # of the labels, for slopes
PRIOR = 1e-3  # inverse variance that keeps spectra without a good pixel at their start
LEAST_NOISE = 0.01  # of a pixel: templates are not better than that
CONTINUUM = 50.0  # Å, smoothing that is taken out of the templates


class Solution(NamedTuple):
    """What a fit finds.

    Attributes
    ----------
    labels : Tensor, shape (spectrum, 3)
        Model units.
    broadening : Tensor, shape (spectrum, 1)
        Half the variance of the star's lines beyond the templates', pixel².
    residual : Tensor, shape (spectrum, pixel of the window)
        What the model leaves of the flux, to first order of the last step.
    weight : Tensor, shape (spectrum, pixel of the window)
        Inverse variances, those of outliers too; 0 where masked.
    """

    labels: Tensor
    broadening: Tensor
    residual: Tensor
    weight: Tensor


class TemplateFit(Given):
    """Fit the emulator's spectra to normalised spectra by Gauss-Newton steps.

    Templates are made by `prepare` and come from model files ever after; nothing is
    learnt. Before, they are flat, and every fit stays where it starts.

    Parameters
    ----------
    pixels : int
        Of the spectra.
    window : (float, float)
        First and last wavelength, vacuum Å.
    degree : int
        Of the polynomial that continua may differ by.
    outlier : float
        Robust standard deviations beyond which pixels are left out after the first
        step.
    steps : int
        Of the iteration.
    """

    def __init__(
        self,
        pixels: int,
        window: tuple[float, float],
        degree: int,
        outlier: float,
        steps: int = 3,
    ):
        super().__init__()
        self.window, self.degree = tuple(window), degree
        self.outlier, self.steps = outlier, steps
        self.register_buffer("first", torch.zeros((), dtype=torch.int64))
        self.register_buffer("center", torch.zeros(3))
        self.register_buffer("scale", torch.ones(3))
        for layer in range(3):
            self.register_buffer(
                f"weight{layer}", torch.zeros(3 if layer == 0 else 1, 1)
            )
            self.register_buffer(f"bias{layer}", torch.zeros(1))
        self.register_buffer("mean", torch.zeros(pixels))
        self.register_buffer("basis", torch.zeros(1, pixels))
        self.tables: tuple[Tensor, ...] = ()

    def prepare(self, wavelength: np.ndarray, labels: list[Label]) -> None:
        """Take templates from the shipped emulator.

        Parameters
        ----------
        wavelength : ndarray, shape (pixel,)
            Vacuum Å, rest frame, of the spectra to come.
        labels : list of Label
            Teff, log g and [Fe/H], with their model units.

        Raises
        ------
        UsageError
            If the spectra or the labels are others than the templates have.
        """
        from scipy.interpolate import CubicSpline
        from scipy.ndimage import gaussian_filter1d

        names = tuple(label.name for label in labels)
        if names != LABEL_NAMES:
            raise UsageError(
                f"template fits give {', '.join(LABEL_NAMES)}, not {', '.join(names)}; "
                "choose another model."
            )
        inside = np.flatnonzero(
            (wavelength > self.window[0]) & (wavelength < self.window[1])
        )
        if inside.size < 10 * (self.degree + 1):
            raise UsageError(
                f"only {inside.size} pixels of the recipe are within the window "
                f"{self.window[0]:g} to {self.window[1]:g} Å of the template fit; "
                "change network.window, or prepare spectra that cover it."
            )
        emulator = Emulator.load()
        part = slice(inside[0], inside[-1] + 1)
        pixel = np.median(np.diff(wavelength[part]))

        def sampled(rows: np.ndarray) -> np.ndarray:
            rows = CubicSpline(emulator.wavelength, np.atleast_2d(rows), axis=1)(
                wavelength
            )
            return (rows - gaussian_filter1d(rows, CONTINUUM / pixel))[:, part]

        arrays = emulator.arrays
        # the network's inputs counted from ORIGIN, in log2 instead of log10
        slope = np.array([np.log10(2), 1, 1]) / arrays["label_scale"]
        origin = np.array([np.log10(ORIGIN[0]), *ORIGIN[1:]])
        origin = (origin - arrays["label_center"]) / arrays["label_scale"]
        zero = np.array([np.log2(ORIGIN[0]), *ORIGIN[1:]])
        self.first = torch.tensor(int(inside[0]))
        values = {
            "center": np.array([label.center for label in labels]) - zero,
            "scale": np.array([label.scale for label in labels]),
            "mean": sampled(arrays["mean"])[0],
            "basis": sampled(arrays["basis"]),
            "weight0": slope[:, None] * arrays["weight0"],
            "bias0": arrays["bias0"] + origin @ arrays["weight0"],
        }
        for name in ("weight1", "bias1", "weight2", "bias2"):
            values[name] = arrays[name]
        for name, value in values.items():
            setattr(self, name, torch.from_numpy(np.asarray(value, dtype=np.float32)))

    @torch.no_grad()
    def forward(self, flux: Tensor, ivar: Tensor, start: Tensor) -> Solution:
        """Fit a batch.

        Parameters
        ----------
        flux, ivar : Tensor, shape (spectrum, pixel)
            Continuum-normalised flux and its inverse variance.
        start : Tensor, shape (spectrum, 3)
            Labels to start from, model units.

        Returns
        -------
        Solution
        """
        width = self.mean.shape[-1]
        part = slice(self.first, self.first + width)
        observed, ivar = flux[:, part].float(), ivar[:, part].float()
        weight = torch.where(
            ivar > 0, 1 / (1 / ivar.clamp_min(1e-9) + LEAST_NOISE**2), 0
        )
        low, high, largest = (
            flux.new_tensor(values) for values in (LOWEST, HIGHEST, LARGEST_STEP)
        )
        theta = torch.zeros(len(flux), PARAMETERS, device=flux.device)
        theta[:, :3] = start.float() * self.scale + self.center
        theta = theta.clamp(low, high)
        polynomials = self._tables(width, flux.device)[0]
        continuum, kept = torch.ones_like(observed), weight
        inverse = self._inverse(kept)
        for step in range(self.steps):
            model, slopes = self._model(theta, continuum)
            residual = observed - model
            if step:
                kept = self._without_outliers(residual, weight, inverse)
                inverse = self._inverse(kept)
            weighted = slopes * kept[:, None]
            across = weighted @ polynomials  # (spectrum, parameter, polynomial)
            along = (kept * residual) @ polynomials
            normal = weighted @ slopes.mT - across @ inverse @ across.mT
            right = weighted @ residual[..., None] - across @ inverse @ along[..., None]
            normal = normal.double() + PRIOR * torch.eye(PARAMETERS, device=flux.device)
            normal.diagonal(dim1=1, dim2=2).mul_(1.0001)
            change = torch.linalg.solve(normal, right.double())[..., 0].float()
            change = change.clamp(-largest, largest)
            theta = (theta + change).clamp(low, high)
            along = along - (across * change[..., None]).sum(1)
            continuum = continuum + (inverse @ along[..., None])[..., 0] @ polynomials.T
            continuum = continuum.clamp(0.5, 2)
        residual = residual - (slopes * change[..., None]).sum(1)
        residual = residual - (inverse @ along[..., None])[..., 0] @ polynomials.T
        return Solution(
            labels=(theta[:, :3] - self.center) / self.scale,
            broadening=theta[:, 4:],
            residual=residual,
            weight=weight,
        )

    def _log_template(self, labels: Tensor) -> Tensor:
        """Log of the normalised template, (spectrum, pixel)."""
        hidden = torch.tanh(labels @ self.weight0 + self.bias0)
        hidden = torch.tanh(hidden @ self.weight1 + self.bias1)
        return (hidden @ self.weight2 + self.bias2) @ self.basis + self.mean

    def _model(self, theta: Tensor, continuum: Tensor) -> tuple[Tensor, Tensor]:
        """Model (spectrum, pixel) and its slopes (spectrum, parameter, pixel)."""
        labels = theta[:, :3]
        log_flux = self._log_template(labels)
        first = torch.gradient(log_flux, dim=1)[0]
        second = torch.gradient(first, dim=1)[0] + first.square()
        log_flux_here = log_flux + first * theta[:, 3:4] + second * theta[:, 4:]
        model = torch.exp(log_flux_here) * continuum
        slopes = [first, second]
        for i, difference in reversed(list(enumerate(DIFFERENCE))):
            moved = labels.clone()
            moved[:, i] += difference
            slopes.insert(0, (self._log_template(moved) - log_flux) / difference)
        return model, torch.stack(slopes, dim=1) * model[:, None]

    def _without_outliers(
        self, residual: Tensor, weight: Tensor, inverse: Tensor
    ) -> Tensor:
        """Weights, zero where a pixel is far off the model with its best continuum."""
        polynomials = self._tables(residual.shape[1], residual.device)[0]
        along = (weight * residual) @ polynomials
        rest = residual - (inverse @ along[..., None])[..., 0] @ polynomials.T
        rest = (rest * weight.sqrt()).abs()
        typical = 1.4826 * rest.median(dim=1, keepdim=True).values
        return torch.where(rest > self.outlier * typical.clamp_min(1), 0, weight)

    def _inverse(self, weight: Tensor) -> Tensor:
        """Inverse of the polynomials' normal equations."""
        _, products, row, column = self._tables(weight.shape[1], weight.device)
        size = self.degree + 1
        normal = weight.new_zeros(len(weight), size, size)
        values = weight @ products
        normal[:, row, column] = values
        normal[:, column, row] = values
        normal.diagonal(dim1=1, dim2=2).mul_(1 + 1e-5).add_(PRIOR)
        return torch.linalg.inv(normal)

    def _tables(self, width: int, device: torch.device) -> tuple[Tensor, ...]:
        """Orthogonal polynomials, and the products of all pairs of them."""
        if not self.tables or self.tables[0].device != device:
            powers = np.polynomial.legendre.legvander(
                np.linspace(-1, 1, width), self.degree
            )
            orthogonal = np.linalg.qr(powers)[0] * np.sqrt(width)
            row, column = np.triu_indices(self.degree + 1)
            arrays = (orthogonal, orthogonal[:, row] * orthogonal[:, column])
            self.tables = (
                *(torch.tensor(a, dtype=torch.float32, device=device) for a in arrays),
                torch.from_numpy(row).to(device),
                torch.from_numpy(column).to(device),
            )
        return self.tables
