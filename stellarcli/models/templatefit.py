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
ALWAYS = 2  # steps that every spectrum takes
GROUP = 8  # spectra that take a later step are padded to a multiple of this


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
    converged : Tensor of bool, shape (spectrum, 1)
        False where labels still moved by more than the tolerance, or are at the edge of
        the templates' range; without a tolerance everywhere.
    """

    labels: Tensor
    broadening: Tensor
    residual: Tensor
    weight: Tensor
    converged: Tensor


class _State(NamedTuple):
    """Where the fits of a batch are; each with the spectra along the first axis."""

    observed: Tensor  # (spectrum, pixel of the window)
    weight: Tensor  # the same, as in `Solution`
    # what a step changes
    theta: Tensor  # (spectrum, parameter)
    continuum: Tensor  # (spectrum, pixel)
    factor: Tensor  # (spectrum, polynomial, polynomial), of the weights last used
    residual: Tensor  # (spectrum, pixel), as in `Solution`
    change: Tensor  # (spectrum, parameter), of the last step


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
    tolerance : float
        Spectra whose last step was smaller, in units of the largest one, take no more
        than `ALWAYS` of them, and have converged; with 0 all take all.
    """

    def __init__(
        self,
        pixels: int,
        window: tuple[float, float],
        degree: int,
        outlier: float,
        steps: int = 3,
        tolerance: float = 0.0,
    ):
        super().__init__()
        self.window, self.degree = tuple(window), degree
        self.outlier, self.steps, self.tolerance = outlier, steps, tolerance
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
        limits = torch.tensor([LOWEST, HIGHEST, LARGEST_STEP])
        self.register_buffer("limits", limits, persistent=False)
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
        ivar = ivar[:, part].float()
        theta = torch.zeros(len(flux), PARAMETERS, device=flux.device)
        theta[:, :3] = start.float() * self.scale + self.center
        weight = ivar / (1 + ivar * LEAST_NOISE**2)
        state = _State(
            observed=flux[:, part].float().contiguous(),
            weight=weight,
            theta=theta.clamp(*self.limits[:2]),
            continuum=torch.ones_like(weight),
            factor=self._factor(weight),
            residual=torch.empty_like(weight),
            change=torch.empty_like(theta),
        )
        for step in range(self.steps):
            if step < ALWAYS or not self.tolerance:
                state = self._step(state, clip=step > 0)
            else:
                self._step_where_needed(state)
        return Solution(
            labels=(state.theta[:, :3] - self.center) / self.scale,
            broadening=state.theta[:, 4:],
            residual=state.residual,
            weight=weight,
            converged=~(self._moved(state) | self._outermost(state))[:, :3].any(
                dim=1, keepdim=True
            ),
        )

    def _moved(self, state: _State) -> Tensor:
        """Whether a last step was beyond the tolerance, (spectrum, parameter)."""
        return state.change.abs() > self.tolerance * self.limits[2]

    def _outermost(self, state: _State) -> Tensor:
        """Whether parameters are as far as they may go, (spectrum, parameter)."""
        low, high, _ = self.limits
        return (state.theta <= low) | (state.theta >= high)

    def _step(self, state: _State, clip: bool) -> _State:
        """Take a step, of the same spectra; with outliers left out or not."""
        polynomials = self._tables(len(self.mean), state.theta.device)[0]
        low, high, largest = self.limits
        # slopes for the parameters, and the residual as one row more
        rows = self._model(state.theta, state.continuum, state.observed)
        kept, factor = state.weight, state.factor
        if clip:
            kept = self._without_outliers(rows[:, -1], kept, factor)
            factor = self._factor(kept)
        weighted = rows * kept[:, None]
        # this way around a quarter faster: 41 columns suit no kernel, 41 rows do
        across = polynomials.T @ weighted.flatten(0, 1).T
        across = across.unflatten(1, weighted.shape[:2]).transpose(0, 1)
        # what polynomials explain is taken out: Schur complement, by the factor
        across = torch.linalg.solve_triangular(
            factor, across.double(), upper=False
        )  # (spectrum, polynomial, row)
        products = (weighted @ rows.mT).double() - across.mT @ across
        prior = PRIOR * torch.eye(PARAMETERS, device=rows.device)
        normal, right = products[:, :-1, :-1] + prior, products[:, :-1, -1:]
        normal.diagonal(dim1=1, dim2=2).mul_(1.0001)
        change = torch.linalg.solve(normal, right)[..., 0].float()
        change = change.clamp(-largest, largest)
        along = across[..., -1:] - across[..., :-1] @ change[..., None].double()
        polynomial = self._polynomial(factor, along)
        explained = torch.bmm(change[:, None], rows[:, :-1])[:, 0]
        return _State(
            observed=state.observed,
            weight=state.weight,
            theta=(state.theta + change).clamp(low, high),
            continuum=(state.continuum + polynomial).clamp_(0.5, 2),
            factor=factor,
            residual=rows[:, -1] - explained - polynomial,
            change=change,
        )

    def _step_where_needed(self, state: _State) -> None:
        """Take a step with those spectra whose last one was beyond the tolerance."""
        some = self._moved(state).any(dim=1).nonzero()[:, 0]
        if not len(some):
            return
        # to one of few shapes, which kernels and hence digits depend on
        more = min(-len(some) % GROUP, len(state.theta) - len(some))
        padded = torch.cat([some, some[:1].expand(more)])
        moved = self._step(_State(*(values[padded] for values in state)), clip=True)
        for values, new in zip(state[2:], moved[2:], strict=True):
            values[some] = new[: len(some)]

    def _coefficients(self, labels: Tensor) -> Tensor:
        """Coefficients of the basis for the log of the normalised template."""
        hidden = torch.tanh(labels @ self.weight0 + self.bias0)
        hidden = torch.tanh(hidden @ self.weight1 + self.bias1)
        return hidden @ self.weight2 + self.bias2

    def _model(self, theta: Tensor, continuum: Tensor, observed: Tensor) -> Tensor:
        """Slopes and residual, (spectrum, parameter + 1, pixel)."""
        labels = theta[:, None, :3]
        moved = labels + torch.diag(theta.new_tensor(DIFFERENCE))
        coefficients = self._coefficients(torch.cat([labels, moved], dim=1))
        coefficients[:, 1:] -= coefficients[:, :1]
        coefficients[:, 1:] /= theta.new_tensor(DIFFERENCE)[:, None]
        shapes = coefficients.flatten(0, 1) @ self.basis
        shapes = shapes.unflatten(0, (len(theta), 4))  # log flux and its three slopes
        log_flux = shapes[:, 0] + self.mean
        first = _gradient(log_flux)
        second = _gradient(first) + first.square()
        log_flux.addcmul_(first, theta[:, 3:4]).addcmul_(second, theta[:, 4:])
        model = log_flux.exp_().mul_(continuum)
        rows = torch.empty(len(theta), PARAMETERS + 1, len(self.mean)).to(theta)
        torch.mul(shapes[:, 1:], model[:, None], out=rows[:, :3])
        torch.mul(first, model, out=rows[:, 3])
        torch.mul(second, model, out=rows[:, 4])
        torch.sub(observed, model, out=rows[:, 5])
        return rows

    def _without_outliers(
        self, residual: Tensor, weight: Tensor, factor: Tensor
    ) -> Tensor:
        """Weights, zero where a pixel is far off the model with its best continuum."""
        polynomials = self._tables(residual.shape[1], residual.device)[0]
        along = ((weight * residual) @ polynomials)[..., None].double()
        along = torch.linalg.solve_triangular(factor, along, upper=False)
        rest = residual - self._polynomial(factor, along)
        rest = rest.mul_(weight.sqrt()).abs_()
        typical = 1.4826 * _median(rest)
        return weight.masked_fill(rest > self.outlier * typical.clamp_min(1), 0)

    def _polynomial(self, factor: Tensor, along: Tensor) -> Tensor:
        """Polynomial, (spectrum, pixel), whose right-hand side was `factor` @ along."""
        polynomials = self._tables(len(self.mean), factor.device)[0]
        solution = torch.linalg.solve_triangular(factor.mT, along, upper=True)
        return solution[..., 0].float() @ polynomials.T

    def _factor(self, weight: Tensor) -> Tensor:
        """Cholesky factor, float64, of the polynomials' normal equations.

        Products of two polynomials are polynomials of up to twice the degree: moments
        of the weights with those are a tenth of the work of all products.
        """
        _, moments, products = self._tables(weight.shape[1], weight.device)
        size = self.degree + 1
        normal = (weight @ moments) @ products
        normal = normal.unflatten(1, (size, size)).double()
        normal.diagonal(dim1=1, dim2=2).mul_(1 + 1e-5).add_(PRIOR)
        return torch.linalg.cholesky_ex(normal)[0]

    def _tables(self, width: int, device: torch.device) -> tuple[Tensor, ...]:
        """Orthogonal polynomials; those of twice the degree; products by the latter."""
        if not self.tables or self.tables[0].device != device:
            powers = np.polynomial.legendre.legvander(
                np.linspace(-1, 1, width), 2 * self.degree
            )
            moments = np.linalg.qr(powers)[0] * np.sqrt(width)
            orthogonal = moments[:, : self.degree + 1]
            pairs = orthogonal[:, :, None] * orthogonal[:, None]
            products = moments.T @ pairs.reshape(width, -1) / width
            self.tables = (
                torch.tensor(orthogonal, dtype=torch.float32, device=device),
                torch.tensor(moments, dtype=torch.float32, device=device),
                torch.tensor(products, dtype=torch.float32, device=device),
            )
        return self.tables


def _gradient(values: Tensor) -> Tensor:
    """Central differences along the last axis, one-sided at its ends."""
    result = torch.empty_like(values)
    torch.sub(values[:, 2:], values[:, :-2], out=result[:, 1:-1])
    result[:, 1:-1] *= 0.5
    result[:, 0] = values[:, 1] - values[:, 0]
    result[:, -1] = values[:, -1] - values[:, -2]
    return result


def _median(values: Tensor) -> Tensor:
    """Lower median along the last axis, (row, 1)."""
    if values.device.type != "cpu":
        return values.median(dim=1, keepdim=True).values
    middle = (values.shape[1] - 1) // 2  # NumPy finds it ten times as fast
    ordered = np.partition(values.numpy(), middle, axis=1)
    return torch.from_numpy(ordered[:, middle : middle + 1])
