"""Fit the spectral emulator that ``stellar fetch simulated`` ships.

    python tests/benchmarks/fit_emulator.py ../shared/data \
        -o stellarcli/data/emulator.npz

Reads the MILES interpolator (``emulator/miles_tgm.fits``; Prugniel et al. 2011, Sharma
et al. 2016), the raw LAMOST DR10 spectra (``lamost-dr10/train.tar.xz``; ``--spectra``
names a folder where they are unpacked already) with their LASP labels, and, to report
an error only, the MILES stars. Takes about two minutes on one core.

1. The interpolator, polynomials of the labels times a Planck function, is broadened to
   LAMOST's resolution as measured on real spectra, converted from air to vacuum and put
   on LAMOST's pixels.
2. Beyond 7410 Å, where it ends, log flux is a quadratic polynomial of the labels in
   each pixel, by robust ridge regression on LAMOST spectra; the labels are held at the
   border of what those cover and a Planck function does the rest.
3. Random plausible stars -> principal components of log flux -> a small network.
4. Statistics of the same spectra that a simulation draws from: shapes of the noise, bad
   pixels, calibration errors, reddening, brightness.

A plan is held out, from everything that is fitted, when the SHA-256 of its name is a
multiple of 4: the test plans of the shipped models.
"""

from __future__ import annotations

import argparse
import io
import json
import tarfile
import tempfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import fitsio
import numpy as np
from scipy.interpolate import CubicSpline
from scipy.ndimage import gaussian_filter1d, median_filter

from stellarcli.dataset import split_by_hash
from stellarcli.surveys import simulated
from stellarcli.surveys.simulated import LABEL_NAMES, SNR_BANDS

COEFF0, COEFF1, SIZE, MARGIN = 3.5682, 1e-4, 3909, 16
RED_END = 7395.0  # Å, where the interpolator's last good pixel is
BLEND = (7330.0, 7390.0)  # Å, from interpolator to regression
SPLIT_SNR = 20.0  # spectra below teach nothing about fluxes
BLOCKS = 40


def log_grid(margin: int = 0) -> np.ndarray:
    """LAMOST's vacuum wavelengths in Å, with `margin` pixels more on both sides."""
    return 10 ** (COEFF0 + COEFF1 * (np.arange(SIZE + 2 * margin) - margin))


def to_vacuum(air: np.ndarray) -> np.ndarray:
    """Vacuum wavelength of air ones, Å (Morton 2000, eq 8)."""
    s = (1e4 / air) ** 2
    index = 1 + 8.34254e-5 + 2.406147e-2 / (130 - s) + 1.5998e-4 / (38.9 - s)
    return air * index


def held_out(plans: np.ndarray) -> np.ndarray:
    """Say which plans belong to the test set of everything trained here.

    The same rule and settings as tests/benchmarks/default.yaml.
    """
    part = split_by_hash(np.char.strip(plans), test=0.25, validation=0.0, seed=1)
    return part == "test"


# --- the interpolator -----------------------------------------------------------------


@dataclass
class Interpolator:
    """MILES interpolator: coefficients of its three regimes on some wavelengths."""

    wavelength: np.ndarray  # vacuum, Å
    warm: np.ndarray  # (26, pixel)
    hot: np.ndarray  # (19, pixel)
    cold: np.ndarray  # (26, pixel)

    @classmethod
    def read(cls, path: Path) -> Interpolator:
        """Read ``miles_tgm.fits``."""
        regimes = [fitsio.read(path, ext=number) for number in range(3)]
        air = 3536.0 + 0.9 * np.arange(regimes[0].shape[1])
        return cls(to_vacuum(air), *regimes)

    def map(self, wavelength: np.ndarray, operation) -> Interpolator:
        """Apply a linear operation on spectra; it acts on the coefficients alike."""
        regimes = (operation(part) for part in (self.warm, self.hot, self.cold))
        return Interpolator(wavelength, *regimes)

    def __call__(self, labels: np.ndarray) -> np.ndarray:
        """Spectra of `labels` (spectrum, 3), (spectrum, pixel).

        The polynomials give flux over the Planck function of Teff (flux of the MILES
        stars over them follows it within a few per cent at all Teff).
        """
        log_teff = np.log10(labels[:, 0])
        bounds = np.log10([4000, 4550, 7000, 9000])
        not_cold = np.clip((log_teff - bounds[0]) / (bounds[1] - bounds[0]), 0, 1)
        hot = np.clip((log_teff - bounds[2]) / (bounds[3] - bounds[2]), 0, 1)
        t, g, z = log_teff - 3.7617, labels[:, 1] - 4.44, labels[:, 2]
        terms = _interpolator_terms(t / 0.2, g, z)
        flux = (not_cold * (1 - hot))[:, None] * (terms @ self.warm)
        flux += hot[:, None] * (terms[:, :19] @ self.hot)
        terms = _interpolator_terms((t + 0.1) / 0.2, g, z)
        flux += (1 - not_cold)[:, None] * (terms @ self.cold)
        return flux * np.exp(log_planck(self.wavelength, labels[:, 0], 5500.0))


def _interpolator_terms(x, g, z) -> np.ndarray:
    y = x**2 - 1
    terms = (
        *(np.ones_like(x), x, z, g, x**2, x * y, y**2, x * z, x * g, y * g, y * z),
        *(g**2, z**2, x * y**2, x * g**2, g**3, z**3, x * z**2, g * z, g**2 * z),
        *(g * z**2, x * y * g, y**2 * g, y * x * z, y * g**2, y * g**3),
    )
    return np.stack(terms, axis=1)


def broaden(flux: np.ndarray, wavelength: np.ndarray, sigma, out: np.ndarray):
    """Convolve with a Gaussian of `sigma` Å (number, or function of Å) onto `out` Å."""
    fine = np.arange(wavelength[0], wavelength[-1], 0.15)
    flux = CubicSpline(wavelength, flux, axis=-1)(fine)
    widths = (
        np.array([0.5, 0.7, 0.9, 1.1, 1.3, 1.5, 1.7]) if callable(sigma) else [sigma]
    )
    layers = [
        CubicSpline(fine, gaussian_filter1d(flux, w / 0.15, axis=-1), axis=-1)(out)
        for w in widths
    ]
    if not callable(sigma):
        return layers[0]
    # between widths: linear, which for neighbouring Gaussians is as good as exact
    position = np.interp(sigma(out), widths, np.arange(len(widths)))
    weights = [np.clip(1 - abs(position - n), 0, 1) for n in range(len(widths))]
    return sum(weight * layer for weight, layer in zip(weights, layers, strict=True))


def measure_broadening(interpolator: Interpolator, real: RealSpectra) -> np.ndarray:
    """Extra broadening in Å that makes the interpolator fit LAMOST best.

    Returns
    -------
    ndarray, shape (2, window)
        Window centres, Å, and standard deviations of the Gaussian, Å.
    """
    good = np.flatnonzero((real.snr[:, 1] > 120) & (real.labels[:, 0] < 7500))[:80]
    out = log_grid()
    out = out[(out > 3820) & (out < 7300)]
    observed, ivar = real.rest_frame(good, out)
    widths = np.array([0.3, 0.5, 0.7, 0.9, 1.1, 1.3, 1.5, 1.7, 2.0])
    centers = np.arange(3930, 7250, 200)
    residuals = np.empty((widths.size, centers.size))
    for row, width in enumerate(widths):
        broad = interpolator.map(
            out, lambda c, w=width: broaden(c, interpolator.wavelength, w, out)
        )
        model = broad(real.labels[good])
        for column, center in enumerate(centers):
            inside = abs(out - center) < 100
            scatter = [
                _shape_residual(o[inside], m[inside], v[inside])
                for o, m, v in zip(observed, model, ivar, strict=True)
            ]
            residuals[row, column] = np.nanmedian(scatter)
    best = [_parabola_minimum(widths, column) for column in residuals.T]
    return np.array([centers, best])


def _shape_residual(observed, model, ivar) -> float:
    """Robust scatter of the ratio about a cubic."""
    good = ivar > 0
    if good.sum() < 0.8 * good.size:
        return np.nan
    powers = np.vander(np.linspace(-1, 1, good.size), 4)
    ratio = observed / model
    fit = np.linalg.lstsq(powers[good], ratio[good], rcond=None)[0]
    return 1.4826 * np.median(abs(ratio / (powers @ fit) - 1)[good])


def _parabola_minimum(x: np.ndarray, y: np.ndarray) -> float:
    middle = int(np.clip(np.argmin(y), 1, len(x) - 2))
    near = slice(middle - 1, middle + 2)
    a, b, _ = np.polyfit(x[near], y[near] ** 2, 2)
    return float(np.clip(-b / (2 * a), x[0], x[-1])) if a > 0 else x[np.argmin(y)]


def smooth_broadening(measured: np.ndarray):
    """Return the broadening as a function of Å, robust to one odd window."""
    centers, widths = measured
    widths = np.clip(widths, 0.5, 1.7)
    smooth = median_filter(widths, 3, mode="nearest")
    return lambda wavelength: np.interp(wavelength, centers, smooth)


# --- real spectra ---------------------------------------------------------------------


@dataclass
class RealSpectra:
    """LAMOST DR10 spectra on LAMOST's pixels."""

    flux: np.ndarray  # (spectrum, pixel)
    ivar: np.ndarray
    ormask: np.ndarray
    andmask: np.ndarray
    labels: np.ndarray  # (spectrum, 3)
    redshift: np.ndarray
    snr: np.ndarray  # (spectrum, 5): u g r i z of the header
    trusted: np.ndarray  # clean and consistent
    held_out: np.ndarray
    complete: np.ndarray  # has all 3909 pixels

    def __getitem__(self, rows) -> RealSpectra:
        """Some of the spectra."""
        return RealSpectra(**{name: value[rows] for name, value in vars(self).items()})

    def rest_frame(self, rows, out: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Flux (cubic spline) and ivar (0 near bad pixels) at rest, on `out`."""
        wavelength = log_grid()
        flux, ivar = np.empty((2, len(rows), out.size))
        for number, row in enumerate(rows):
            rest = wavelength / (1 + self.redshift[row])
            # the last pixels of many files hold FLUX = 0 with a positive IVAR
            bad = (self.ivar[row] <= 0) | (self.flux[row] == 0)
            filled = np.interp(wavelength, wavelength[~bad], self.flux[row][~bad])
            flux[number] = CubicSpline(rest, filled)(out)
            ivar[number] = np.interp(out, rest, self.ivar[row], left=0, right=0)
            ivar[number][np.interp(out, rest, bad, left=1, right=1) > 0.01] = 0
        return flux, ivar


def read_real(data: Path, spectra: Path | None) -> RealSpectra:
    """Read all DR10 training files with their labels."""
    table = fitsio.read(data / "lamost-dr10" / "train_labels.fits")
    if spectra is not None:
        return _read_real(table, spectra)
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(data / "lamost-dr10" / "train.tar.xz") as archive:
            archive.extractall(folder, filter="data")
        found = next(Path(folder).rglob("*.fits"))
        return _read_real(table, found.parent)


def _read_real(table: np.ndarray, folder: Path) -> RealSpectra:
    count = len(table)
    arrays = np.zeros((4, count, SIZE), dtype=np.float32)
    snr, redshift = np.empty((count, 5)), np.empty(count)
    for row, name in enumerate(table["file"]):
        with fitsio.FITS(folder / name.strip()) as hdus:
            header, data = hdus[0].read_header(), hdus["COADD"].read()
        first = np.log10(float(data["WAVELENGTH"][0][0]))
        start = round((first - COEFF0) / COEFF1)
        span = slice(start, start + data["FLUX"][0].size)
        for array, column in zip(
            arrays, ("FLUX", "IVAR", "ORMASK", "ANDMASK"), strict=True
        ):
            array[row, span] = data[column][0]
        snr[row] = [header[f"SNR{band}"] for band in "UGRIZ"]
        redshift[row] = header["Z"]
    return RealSpectra(
        *arrays,
        labels=np.stack([table[name] for name in LABEL_NAMES], axis=1).astype(float),
        redshift=redshift,
        snr=snr,
        trusted=table["clean"] & table["consistent"],
        held_out=held_out(np.asarray(table["plan"]).astype(str)),
        complete=(arrays[1][:, -40:] > 0).any(axis=1),
    )


def block_log_ratio(real: RealSpectra, model: np.ndarray) -> np.ndarray:
    """Median log of observed over model flux in blocks of pixels; NaN without any."""
    known = (real.ivar > 0) & (real.flux != 0)
    ratio = np.where(known, real.flux / np.maximum(model, 1e-6), np.nan)
    bounds = np.linspace(0, SIZE, BLOCKS + 1).round().astype(int)
    medians = np.full((len(ratio), BLOCKS), np.nan)
    for block, (start, stop) in enumerate(pairwise(bounds)):
        enough = np.isfinite(ratio[:, start:stop]).sum(axis=1) > 20
        medians[enough, block] = np.nanmedian(ratio[enough, start:stop], axis=1)
    return np.log(np.maximum(medians, 1e-3))


def block_centers() -> np.ndarray:
    """Wavelengths of the blocks' middles, Å."""
    bounds = np.linspace(0, SIZE, BLOCKS + 1).round().astype(int)
    return 10 ** (COEFF0 + COEFF1 * (bounds[1:] + bounds[:-1]) / 2)


def fit_reddening(log_ratio: np.ndarray, used: np.ndarray) -> np.ndarray:
    """E(B−V) and log scale of each spectrum from its block ratios, (spectrum, 2)."""
    wavelength = block_centers()
    column = (
        -0.4
        * np.log(10)
        * (simulated.extinction(wavelength) - simulated.extinction(5500.0))
    )
    design = np.stack([column, np.ones(BLOCKS)], axis=1)
    result = np.empty((len(log_ratio), 2))
    for row, values in enumerate(log_ratio):
        good = used & np.isfinite(values)
        for _ in range(3):
            fit = np.linalg.lstsq(design[good], values[good], rcond=None)[0]
            off = abs(values - design @ fit)
            good &= off < 4 * np.median(off[good]) + 0.02
        result[row] = fit
    return result


# --- the red end ----------------------------------------------------------------------


@dataclass
class RedModel:
    """Log flux beyond the interpolator, relative to its end."""

    wavelength: np.ndarray
    coefficients: np.ndarray  # (10, pixel)
    inverse: np.ndarray  # (10, 10)
    leverage: float
    teff: tuple[float, float]

    def __call__(self, labels: np.ndarray) -> np.ndarray:
        """Log flux relative to the anchor, (spectrum, pixel)."""
        held = hold_labels(labels)
        log_flux = simulated.red_basis(held) @ self.coefficients
        log_flux += log_planck(self.wavelength, labels[:, 0], RED_END)
        return log_flux - log_planck(self.wavelength, held[:, 0], RED_END)


def hold_labels(labels: np.ndarray) -> np.ndarray:
    """Move labels to the border of what LAMOST's labelled stars cover."""
    held = labels.copy()
    held[:, 0] = np.clip(labels[:, 0], 4400, 9000)
    lowest = np.interp(held[:, 0], [4400, 5000, 5500, 6000], [1.4, 2.2, 3.0, 3.4])
    held[:, 1] = np.clip(labels[:, 1], lowest, 4.8)
    held[:, 2] = np.clip(labels[:, 2], -1.8, 0.6)
    return held


def log_planck(wavelength: np.ndarray, teff: np.ndarray, anchor: float) -> np.ndarray:
    """Log of the Planck function (per Å) relative to `anchor` Å, (spectrum, pixel)."""
    exponent = 1.438777e8 / (wavelength * teff[:, None])  # hc/k in Å K
    ratio = np.expm1(1.438777e8 / (anchor * teff))[:, None] / np.expm1(exponent)
    return np.log(ratio) - 5 * np.log(wavelength / anchor)


def fit_red(real: RealSpectra, interpolator: Interpolator) -> RedModel:
    """Fit the red end; `real` holds training plans only."""
    good = real.trusted & (real.snr[:, 1] > SPLIT_SNR) & (real.snr[:, 3] > 40)
    good &= (real.labels[:, 0] > 4200) & (real.labels[:, 0] < 9500)
    real = real[np.flatnonzero(good)]
    grid = log_grid(MARGIN)
    model = interpolator(real.labels)
    shifted = np.array(
        [
            np.interp(log_grid(), grid * (1 + z), m)
            for m, z in zip(model, real.redshift, strict=True)
        ]
    )
    ratio = block_log_ratio(real, shifted)
    centers = block_centers()
    reddening = fit_reddening(ratio, (centers > 3950) & (centers < 7350))
    near = (centers > 6600) & (centers < 7350)
    column = simulated.extinction(centers) - simulated.extinction(5500.0)
    dimming = -0.4 * np.log(10) * reddening[:, :1] * column
    anchor = np.nanmedian((ratio - dimming)[:, near], axis=1)
    red = grid[grid > BLEND[0] - 40]
    flux, ivar = real.rest_frame(np.arange(len(real.flux)), red)
    extinction = simulated.extinction(red) - simulated.extinction(5500.0)
    end = (grid > 7000) & (grid < 7350)
    level = anchor + np.log(np.median(model[:, end], axis=1))
    log_flux = np.log(np.maximum(flux, 1e-3 * np.exp(level)[:, None]))
    log_flux += 0.4 * np.log(10) * reddening[:, :1] * extinction - level[:, None]
    weights = np.clip(real.snr[:, 3], 0, 150) ** 2
    # the anchor is the interpolator's own end: both must agree where they are blended
    coefficients, inverse = ridge(
        simulated.red_basis(real.labels), log_flux, ivar > 0, weights / weights.mean()
    )
    coefficients[0] -= _join(coefficients, red, interpolator, real.labels)
    terms = simulated.red_basis(real.labels)
    leverage = np.einsum("si,ij,sj->s", terms, inverse, terms)
    _bridge(coefficients, red, (7585.0, 7700.0))  # the telluric A band
    return RedModel(
        red,
        coefficients,
        inverse,
        float(np.percentile(leverage, 99.5)),
        (float(real.labels[:, 0].min()), float(real.labels[:, 0].max())),
    )


def _join(coefficients, red, interpolator, labels) -> float:
    """Mean log offset between regression and interpolator in the blended pixels."""
    inside = (red > BLEND[0]) & (red < BLEND[1])
    regression = simulated.red_basis(labels) @ coefficients[:, inside]
    model = interpolator(labels)
    grid = interpolator.wavelength
    end = (grid > 7000) & (grid < 7350)
    truth = np.log(model[:, np.isin(grid, red[inside])])
    truth -= np.log(np.median(model[:, end], axis=1))[:, None]
    return float(np.median(regression - truth))


def _bridge(coefficients: np.ndarray, wavelength: np.ndarray, band) -> None:
    """Replace a telluric band by a line between its borders."""
    inside = (wavelength > band[0]) & (wavelength < band[1])
    border = (abs(wavelength - np.mean(band)) < np.ptp(band) * 0.5 + 30) & ~inside
    for row in coefficients:
        line = np.polyfit(wavelength[border], row[border], 1)
        row[inside] = np.polyval(line, wavelength[inside])


def ridge(terms, values, known, weights, penalty=3.0, rounds=6):
    """Robust ridge regression of every pixel; unknown values follow the fit.

    Returns
    -------
    coefficients : ndarray, shape (term, pixel)
    inverse : ndarray, shape (term, term)
        Of the normal matrix, for leverages.
    """
    normal = terms.T @ (terms * weights[:, None])
    diagonal = penalty * np.ones(len(normal))
    diagonal[0] = 0
    inverse = np.linalg.inv(normal + np.diag(diagonal))
    # the last pixels are seen in few stars: they take the fit of the last common one
    common = np.flatnonzero(known.mean(axis=0) > 0.3)
    nearest = common[abs(np.arange(known.shape[1])[:, None] - common).argmin(axis=1)]
    known, values = known[:, nearest], values[:, nearest]
    fill = np.nanmedian(np.where(known, values, np.nan), axis=0)
    values = np.where(known, values, fill)
    for _ in range(rounds):
        coefficients = inverse @ (terms * weights[:, None]).T @ values
        fitted = terms @ coefficients
        off = values - fitted
        scatter = 1.4826 * np.median(abs(off), axis=0) + 1e-3
        values = np.where(
            known, fitted + np.clip(off, -3 * scatter, 3 * scatter), fitted
        )
    return coefficients, inverse


# --- components and network -----------------------------------------------------------


def sample_labels(
    count: int, rng: np.random.Generator, interpolator: Interpolator
) -> np.ndarray:
    """Random plausible labels where the interpolator is sane."""
    limits = np.array([simulated.LIMITS[name] for name in LABEL_NAMES])
    kept = np.empty((0, 3))
    while len(kept) < count:
        tries = rng.uniform(limits[:, 0], limits[:, 1], size=(count, 3))
        log_teff = rng.uniform(*np.log10(limits[0]), size=count)
        middle = rng.random(count) < 0.6
        log_teff[middle] = rng.uniform(*np.log10([3900, 9000]), size=middle.sum())
        tries[:, 0] = 10**log_teff
        tries = tries[simulated.plausible(tries)]
        kept = np.concatenate([kept, tries[is_positive(tries, interpolator)]])
    return kept[:count]


def is_positive(labels: np.ndarray, interpolator: Interpolator) -> np.ndarray:
    """Say where no used pixel falls below 2 % of the Planck function."""
    grid = interpolator.wavelength
    flux = interpolator(labels) / np.exp(log_planck(grid, labels[:, 0], 5500.0))
    near = abs(grid - 5500) < 50
    return (flux > 0.02 * flux[:, near].mean(axis=1)[:, None]).all(axis=1)


def truth(labels: np.ndarray, interpolator: Interpolator, red: RedModel) -> np.ndarray:
    """Log flux of interpolator and red end on the emulator's pixels."""
    grid = interpolator.wavelength
    flux = interpolator(labels)
    near = (grid > 5450) & (grid < 5550)
    flux /= flux[:, near].mean(axis=1)[:, None]
    end = (grid > 7000) & (grid < 7350)
    level = np.log(np.median(np.maximum(flux[:, end], 1e-4), axis=1))
    log_flux = np.log(np.maximum(flux, 1e-4))
    start = grid.size - red.wavelength.size
    weight = np.clip((grid[start:] - BLEND[0]) / (BLEND[1] - BLEND[0]), 0, 1)
    beyond = red(labels) + level[:, None]
    # for stars beyond the regression's reach the two needn't meet: make them
    blended = (grid[start:] > BLEND[0]) & (grid[start:] < BLEND[1])
    step = np.median((log_flux[:, start:] - beyond)[:, blended], axis=1)
    beyond += step[:, None]
    log_flux[:, start:] = (1 - weight) * log_flux[:, start:] + weight * beyond
    return log_flux


def principal_components(log_flux: np.ndarray, count: int):
    """Mean and leading principal components, (component, pixel)."""
    mean = log_flux.mean(axis=0)
    deviation = (log_flux - mean).astype(np.float32)
    _, vectors = np.linalg.eigh(deviation.T @ deviation)
    return mean, vectors[:, ::-1][:, :count].T


def fit_network(inputs, targets, variance, width: int, epochs: int, seed: int):
    """Fit labels -> components by a network of two hidden tanh layers.

    `variance` weighs each component's error, so that the loss is that of the spectra.
    """
    import torch  # only the fit needs it

    torch.manual_seed(seed)
    torch.set_num_threads(1)  # matrices this small lose time on more
    sizes = (inputs.shape[1], width, width, targets.shape[1])
    layers = []
    for before, after in pairwise(sizes):
        layers += [torch.nn.Linear(before, after), torch.nn.Tanh()]
    network = torch.nn.Sequential(*layers[:-1])
    x, y = (torch.tensor(a, dtype=torch.float32) for a in (inputs, targets))
    # square-rooted weights: faint components carry the lines of rare stars
    weight = torch.tensor(np.sqrt(variance / variance.sum()), dtype=torch.float32)
    optimizer = torch.optim.Adam(network.parameters(), lr=4e-3)
    batch, steps = 256, epochs * (len(x) // 256)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 8e-3, total_steps=steps)
    for _ in range(epochs):
        order = torch.randperm(len(x))
        for part in order[: len(x) // batch * batch].split(batch):
            optimizer.zero_grad()
            loss = ((network(x[part]) - y[part]) ** 2 * weight).sum(dim=1).mean()
            loss.backward()
            optimizer.step()
            schedule.step()
    linear = [layer for layer in network if isinstance(layer, torch.nn.Linear)]
    return [(m.weight.detach().numpy().T, m.bias.detach().numpy()) for m in linear]


def fit_emulator(interpolator, red, arguments, rng) -> dict[str, np.ndarray]:
    """Compress `truth` into components and a network; the arrays of the file."""
    labels = sample_labels(arguments.samples, rng, interpolator)
    log_flux = truth(labels, interpolator, red)
    mean, basis = principal_components(log_flux, arguments.components)
    coefficients = (log_flux - mean) @ basis.T
    scale = coefficients.std(axis=0)
    inputs = labels.copy()
    inputs[:, 0] = np.log10(labels[:, 0])
    center, spread = inputs.mean(axis=0), inputs.std(axis=0)
    layers = fit_network(
        (inputs - center) / spread,
        coefficients / scale,
        scale**2,
        arguments.width,
        arguments.epochs,
        arguments.seed,
    )
    # each row of the basis to a peak of 1, the middle of half precision's range
    peak = abs(basis).max(axis=1)
    arrays = {
        "label_center": center,
        "label_scale": spread,
        "mean": mean.astype(np.float32),
        "basis": (basis / peak[:, None]).astype(np.float16),
        "basis_scale": (scale * peak).astype(np.float32),
        "layers": np.array(len(layers)),
    }
    for number, (weight, bias) in enumerate(layers):
        arrays[f"weight{number}"], arrays[f"bias{number}"] = weight, bias
    return arrays


# --- observing conditions -------------------------------------------------------------


def observing_statistics(real: RealSpectra, emulator) -> dict[str, np.ndarray]:
    """Everything `simulate` draws from; `real` holds training plans only."""
    trusted = np.flatnonzero(real.trusted & real.complete)
    statistics = noise_shapes(real[trusted])
    statistics |= bad_pixels(real[np.flatnonzero(real.complete)])
    statistics |= calibration(real[trusted], emulator)
    statistics["noise_amplitude"] = noise_amplitude(real[trusted])
    snr = real.snr[real.snr[:, 1] > 0, 1]
    statistics["snr_quantiles"] = np.percentile(snr, np.linspace(0.5, 99.5, 100))
    near = (log_grid() > 5450) & (log_grid() < 5550)
    level = np.log10(np.maximum(np.median(real.flux[:, near], axis=1), 1))
    slope, offset = np.polyfit(np.log10(real.snr[:, 1]), level, 1)
    off = level - offset - slope * np.log10(real.snr[:, 1])
    statistics["flux_level"] = np.array([slope, offset, 1.4826 * np.median(abs(off))])
    return statistics


def noise_shapes(real: RealSpectra, count: int = 16) -> dict[str, np.ndarray]:
    """Shapes of log(continuum × sqrt(ivar)) and how they follow from labels and S/N."""
    pixels = np.arange(SIZE)
    _, expand = simulated.block_continuum(SIZE, BLOCKS)
    blocks = block_log_ratio(real, np.ones((1, SIZE)))
    usable = np.isfinite(blocks).all(axis=1) & (blocks > 0).all(axis=1)
    real, blocks = real[np.flatnonzero(usable)], blocks[usable]
    log_snr = np.empty((len(blocks), SIZE), dtype=np.float32)
    start, stop = np.searchsorted(log_grid(), SNR_BANDS["g"])
    rows = zip(real.flux, real.ivar, blocks, strict=True)
    for row, (flux, ivar, block) in enumerate(rows):
        good = ivar > 0
        good[-_zero_tail(flux) or SIZE :] = False
        values = 0.5 * np.log(ivar[good]) + np.log(np.exp(block) @ expand)[good]
        log_snr[row] = median_filter(np.interp(pixels, pixels[good], values), 5)
        log_snr[row] -= np.median(log_snr[row, start:stop])
    mean = np.median(log_snr, axis=0)
    deviation = np.clip(log_snr - mean, -1.5, 1.5)
    _, vectors = np.linalg.eigh(deviation.T @ deviation)
    shapes = vectors[:, ::-1][:, :count].T
    coefficients = deviation @ shapes.T
    regressors = simulated.noise_regressors(real.labels, real.snr[:, 1])
    regression = np.linalg.lstsq(regressors, coefficients, rcond=None)[0]
    rest = coefficients - regressors @ regression
    covariance = np.cov(np.clip(rest, *np.percentile(rest, [1, 99], axis=0)).T)
    return {
        "noise_mean": mean.astype(np.float32),
        "noise_shapes": shapes.astype(np.float16),
        "noise_regression": regression,
        "noise_scatter": np.linalg.cholesky(covariance).T,
    }


def _zero_tail(flux: np.ndarray) -> int:
    """Number of zeros at the red end."""
    return int((flux[::-1] != 0).argmax())


def noise_amplitude(real: RealSpectra) -> np.ndarray:
    """Noise relative to 1/sqrt(ivar), and its lag-1 correlation.

    From differences of pixels in faint spectra, where noise exceeds every line.
    """
    faint = real[np.flatnonzero(real.snr[:, 1] < 16)]
    inside = (log_grid() > 4500) & (log_grid() < 6800)
    flux, ivar = faint.flux[:, inside], faint.ivar[:, inside]
    variances = []
    for lag in (1, 3):
        both = (ivar[:, lag:] > 0) & (ivar[:, :-lag] > 0)
        difference = (flux[:, lag:] - flux[:, :-lag]) * np.sqrt(ivar[:, lag:])
        variances.append((1.4826 * np.median(abs(difference[both]))) ** 2 / 2)
    # Var(x_i - x_{i+n}) / 2 = sigma² (1 - rho_n), and rho_3 is 0
    return np.array([np.sqrt(variances[1]), 1 - variances[0] / variances[1]])


def bad_pixels(real: RealSpectra) -> dict[str, np.ndarray]:
    """Number, length, place and kind of runs of pixels with IVAR = 0."""
    edge = np.zeros((len(real.ivar), 1), dtype=np.int8)
    step = np.diff(np.concatenate([edge, real.ivar <= 0, edge], axis=1), axis=1)
    spectra, starts = np.nonzero(step == 1)
    lengths = np.nonzero(step == -1)[1] - starts
    per_spectrum = np.bincount(spectra, minlength=len(real.ivar))
    filled = np.array(
        [
            (real.flux[row, start : start + length] == 0).any()
            for row, start, length in zip(spectra, starts, lengths, strict=True)
        ]
    )
    bad = (real.ivar <= 0) & (real.flux != 0)
    masks = [(mask[bad] > 0).mean() for mask in (real.andmask, real.ormask)]
    masks[0] /= masks[1]  # ANDMASK is set only where ORMASK is
    places = np.histogram(starts, bins=60, range=(0, SIZE))[0]
    return {
        "bad_run_quantiles": np.percentile(per_spectrum, np.linspace(0, 99, 100)),
        "bad_length_cdf": np.cumsum(np.bincount(np.minimum(lengths, 30))[1:])
        / lengths.size,
        "bad_place_cdf": np.cumsum(places) / places.sum(),
        "bad_filled_rate": np.array(filled.mean()),
        "bad_mask_rate": np.array(masks),
        "zero_tail_quantiles": np.percentile(
            [_zero_tail(flux) for flux in real.flux], np.linspace(0, 99, 100)
        ),
    }


def calibration(real: RealSpectra, emulator, count: int = 6) -> dict[str, np.ndarray]:
    """Reddening, and the shapes in which LAMOST's fluxes differ from the emulator's."""
    real = real[np.flatnonzero((real.snr[:, 1] > 30) & (real.labels[:, 0] > 4500))]
    model = emulator.spectrum(real.labels)[:, MARGIN:-MARGIN]
    ratio = block_log_ratio(real, model)
    centers = block_centers()
    fit = fit_reddening(ratio, centers > 3950)
    column = simulated.extinction(centers) - simulated.extinction(5500.0)
    off = ratio + 0.4 * np.log(10) * fit[:, :1] * column - fit[:, 1:]
    off = off[np.isfinite(off).all(axis=1)]
    off = np.clip(off - np.median(off, axis=0), -0.4, 0.4)
    values, vectors = np.linalg.eigh(np.cov(off.T))
    shapes = (vectors * np.sqrt(np.maximum(values, 0))).T[::-1][:count]
    return {
        "ebv_quantiles": np.percentile(fit[:, 0], np.linspace(1, 99, 99)),
        "distortion_shapes": shapes.astype(np.float32),
    }


# --- report ---------------------------------------------------------------------------


def normalised(flux: np.ndarray, width: float = 60.0) -> np.ndarray:
    """Flux over itself smoothed by a Gaussian of `width` pixels."""
    return flux / gaussian_filter1d(flux, width, axis=-1, mode="nearest")


def report(emulator, interpolator, red, real: RealSpectra, miles: Path, rng) -> dict:
    """Errors against the interpolator, the MILES stars and held-out LAMOST spectra."""
    result = {"interpolator": {}, "miles": {}, "lamost": {}, "lamost_red": {}}
    labels = sample_labels(3000, rng, interpolator)
    wanted, given = truth(labels, interpolator, red), np.log(emulator.spectrum(labels))
    blue = emulator.wavelength < RED_END
    off = np.sqrt(((given - wanted)[:, blue] ** 2).mean(axis=1))
    for low, high in (
        (2900, 4000),
        (4000, 4550),
        (4550, 7000),
        (7000, 9000),
        (9000, 25000),
    ):
        inside = (labels[:, 0] >= low) & (labels[:, 0] < high)
        result["interpolator"][f"{low}-{high} K"] = np.percentile(off[inside], [50, 95])
    result["miles"] = _miles_residuals(emulator, interpolator, miles)
    held = real[np.flatnonzero(real.held_out & real.trusted)]
    for name, start, stop in (("lamost", 3950, 5750), ("lamost_red", 7400, 8950)):
        result[name] = _correlations(held, emulator, start, stop)
    return json.loads(json.dumps(result, default=lambda a: np.round(a, 4).tolist()))


def _correlations(real, emulator, start, stop) -> dict:
    grid = emulator.wavelength
    inside = (grid > start) & (grid < stop)
    flux, ivar = real.rest_frame(np.arange(len(real.flux)), grid[inside])
    model = emulator.spectrum(real.labels)[:, inside]
    observed, model = normalised(flux), normalised(model)
    correlation = np.array(
        [
            np.corrcoef(o[v > 0], m[v > 0])[0, 1] if (v > 0).mean() > 0.5 else np.nan
            for o, m, v in zip(observed, model, ivar, strict=True)
        ]
    )
    result = {}
    for low, high in ((20, 40), (40, 80), (80, 200), (200, 1000)):
        chosen = (real.snr[:, 1] >= low) & (real.snr[:, 1] < high)
        result[f"S/N {low}-{high}"] = np.nanmedian(correlation[chosen])
    return result


def _miles_residuals(emulator, interpolator, path: Path) -> dict:
    stars = fitsio.read(path)
    labels = np.stack([stars[name] for name in LABEL_NAMES], axis=1).astype(float)
    usable = np.isfinite(labels).all(axis=1) & simulated.plausible(labels)
    usable &= np.isfinite(stars["flux"]).all(axis=1)
    stars, labels = stars[usable], labels[usable]
    air = 3540.5 + 0.9 * np.arange(stars["flux"].shape[1])
    grid = emulator.wavelength
    inside = (grid > 3950) & (grid < 7300)
    flux = broaden(
        stars["flux"].astype(float), to_vacuum(air), interpolator.sigma, grid[inside]
    )
    result = {}
    for name, model in (
        ("emulator", emulator.spectrum),
        ("interpolator", interpolator),
    ):
        off = normalised(flux) / normalised(model(labels)[:, inside]) - 1
        scatter = 1.4826 * np.median(abs(off), axis=1)
        for low, high in ((2900, 4000), (4000, 4550), (4550, 7000), (7000, 25000)):
            chosen = (labels[:, 0] >= low) & (labels[:, 0] < high)
            result[f"{name} {low}-{high} K"] = np.median(scatter[chosen])
    return result


def main() -> None:
    """Fit, write, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--spectra", type=Path, help="folder with unpacked DR10 files")
    parser.add_argument("--samples", type=int, default=20000)
    parser.add_argument("--components", type=int, default=64)
    parser.add_argument("--width", type=int, default=160)
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)

    real = read_real(arguments.data, arguments.spectra)
    training = real[np.flatnonzero(~real.held_out)]
    raw = Interpolator.read(arguments.data / "emulator" / "miles_tgm.fits")
    trusted = training[np.flatnonzero(training.trusted)]
    measured = measure_broadening(raw, trusted)
    print("extra broadening [Å]", np.round(measured, 2).tolist())
    sigma = smooth_broadening(measured)
    grid = log_grid(MARGIN)
    # beyond its end the interpolator is never used; hold it there
    interpolator = raw.map(
        grid,
        lambda c: broaden(c, raw.wavelength, sigma, np.minimum(grid, RED_END)),
    )
    interpolator.sigma = sigma
    red = fit_red(training, interpolator)
    arrays = fit_emulator(interpolator, red, arguments, rng)
    arrays |= {
        "format": np.array(simulated.FORMAT_VERSION),
        "coeff0": np.array(COEFF0),
        "coeff1": np.array(COEFF1),
        "margin": np.array(MARGIN),
        "red_start": np.array(RED_END),
        "red_inverse": red.inverse,
        "red_leverage": np.array(red.leverage),
        "red_teff": np.array(red.teff),
    }
    # the statistics of calibration are relative to the emulator
    draft = io.BytesIO()
    np.savez(draft, **arrays)
    draft.seek(0)
    emulator = simulated.Emulator.load(draft)
    arrays |= observing_statistics(training, emulator)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    temporary = arguments.output.with_name(f".{arguments.output.name}.tmp.npz")
    np.savez_compressed(temporary, **arrays)
    temporary.replace(arguments.output)
    result = report(
        emulator,
        interpolator,
        red,
        real,
        arguments.data / "miles" / "miles_train.fits",
        rng,
    )
    print(json.dumps(result, indent=2))
    print(f"{arguments.output}: {arguments.output.stat().st_size} bytes")


if __name__ == "__main__":
    main()
