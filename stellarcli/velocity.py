"""Radial velocities by cross-correlation with templates from the shipped simulators.

For every template and every shift, the template's best amplitude and the drop of χ²
that it brings, from two correlations (with masks and inverse variances as they are);
the velocity is where χ² drops most, its error where it has risen by 1 again. The error
is widened by what the residuals show: noise other than the file says, correlated noise
of a coadd, a template that isn't the star. A star between two templates is compared
with a mixture of those that resemble it. The smallest error, 3.5 km/s at low
resolution, is the survey's own: with it, repeated observations of real stars differ as
one standard deviation says (`tests/test_velocity.py`); simulated spectra have no errors
of the wavelength calibration, and are found within one error in 97 % of cases.

Templates of medium resolution are `surveys.synthesis`'s, of low resolution those of the
`surveys.emulator`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property

import numpy as np

from stellarcli import catalog
from stellarcli.errors import UsageError, unknown
from stellarcli.preprocess import Batch, Recipe, continuum
from stellarcli.spectrum import SPEED_OF_LIGHT, Spectrum
from stellarcli.surveys import atmospheres, synthesis
from stellarcli.surveys.emulator import Emulator, plausible

FASTEST = 800.0  # km/s
CREDIBLE = 30.0  # drop of χ² after widening, below which a velocity is a guess
MIXED = 8  # templates that are mixed
NEAR = 20  # pixels around the velocity of a single template
LAGS = 8  # pixels over which residuals may be correlated
DISCREPANT = 4.0  # difference of two arms over its error
IMPOSSIBLE = 9000.0  # km/s; -9999 is a filler
COLUMNS = ("rv", "radial_velocity", "vrad", "rv_lasp", "rv_br0", "rv_b0")

MEDIUM = ("lamost-mrs",)  # surveys of medium resolution
# Teff [K], log g, [Fe/H]
MEDIUM_STARS = (
    *((4000.0, 1.2, -0.3), (4500.0, 2.3, -0.2), (4900.0, 2.6, -0.6)),
    *((4300.0, 4.6, 0.0), (4900.0, 4.6, 0.0), (5500.0, 4.5, 0.1)),
    *((5900.0, 4.3, -0.2), (6400.0, 4.2, -0.2)),
    *((4900.0, 2.0, -1.7), (5900.0, 4.3, -1.3)),
)
# log g of the templates of low resolution by Teff: dense where Balmer lines change fast
_DWARFS = dict.fromkeys((7000.0, 7400.0, 7800.0, 8200.0, 8600.0, 9200.0, 10000.0), 4.2)
_DWARFS |= {4000.0: 4.7, 4500.0: 4.6, 5000.0: 4.55, 5500.0: 4.45, 6000.0: 4.3}
_DWARFS |= {6500.0: 4.2, 12500.0: 4.0}
_GIANTS = {4100.0: 1.3, 4600.0: 2.4, 5000.0: 2.9, 5600.0: 3.5}
LOW_METALS = (0.1, -0.5, -1.1, -1.8)  # [Fe/H]; the lower two up to 7000 K only
# supergiants, and the narrowest wings of A stars' opposite
_OTHERS = (
    (6500.0, 2.5, 0.0),
    (7500.0, 2.5, 0.0),
    (8500.0, 2.5, 0.0),
    (8200.0, 5.0, 0.0),
)


def low_stars() -> np.ndarray:
    """Labels of the templates of low resolution, (template, 3), as in `LABEL_NAMES`."""
    ridge = np.array(
        [
            (teff, logg, metals)
            for stars in (_DWARFS, _GIANTS)
            for teff, logg in stars.items()
            for metals in LOW_METALS
            if teff <= 7000 or metals > -1
        ]
    )
    return np.concatenate([ridge[plausible(ridge)], _OTHERS])


@dataclass(frozen=True)
class Velocity:
    """A measured radial velocity.

    Attributes
    ----------
    rv, error : float
        km/s, positive receding; NaN where nothing could be measured.
    arms : tuple of (float, float)
        Velocity and error of each window of the templates; NaN without.
    """

    rv: float
    error: float
    arms: tuple[tuple[float, float], ...] = ()

    @property
    def discrepant(self) -> bool:
        """Whether two arms differ by more than `DISCREPANT` of their errors."""
        known = [arm for arm in self.arms if np.isfinite(arm).all()]
        return any(
            abs(a - b) > DISCREPANT * np.hypot(e, f)
            for n, (a, e) in enumerate(known)
            for b, f in known[:n]
        )


@dataclass(frozen=True, eq=False)
class Templates:
    """Normalised spectra at rest on grids of equal velocity steps.

    Attributes
    ----------
    recipe : Recipe
        What brings an observed spectrum to the same form.
    step : float
        km/s per pixel.
    windows : tuple of (start, stop)
        Pixels of each window in a prepared spectrum.
    flux : tuple of ndarray, shape (template, pixel)
        Per window, less 1, `FASTEST` longer on both sides.
    floor : float
        Error that no signal can undercut, km/s.
    """

    recipe: Recipe
    step: float
    windows: tuple[tuple[int, int], ...]
    flux: tuple[np.ndarray, ...]
    floor: float

    @property
    def reach(self) -> int:
        """Largest shift, pixels."""
        return int(FASTEST / self.step)

    def shifted(self, chosen: np.ndarray | slice, place: int) -> np.ndarray:
        """Return some templates at a shift, (template, pixel of a prepared one)."""
        pieces = [
            models[chosen, place : place + stop - start]
            for (start, stop), models in zip(self.windows, self.flux, strict=True)
        ]
        return np.concatenate(pieces, axis=1)

    def mixed(self, shares: np.ndarray) -> Templates:
        """Return a single one, the sum of all with weights, (template,)."""
        flux = tuple(shares[None] @ models for models in self.flux)
        return replace(self, flux=flux)

    @cached_property
    def transforms(self) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
        """Fourier transforms of each window's templates and of their squares."""
        from scipy import fft

        return tuple(
            (
                fft.rfft(models, _size(models)),
                fft.rfft(np.square(models), _size(models)),
            )
            for models in self.flux
        )


def _recipe(ranges: Sequence[tuple[float, float]], step: float, width: float) -> Recipe:
    grids = []
    for low, high in ranges:
        dex = np.log10(1 + step / SPEED_OF_LIGHT)
        pixels = int(np.log10(high / low) / dex)
        grid = {"kind": "log10", "start": low, "step": float(dex), "pixels": pixels}
        grids.append(grid)
    steps = ["spikes", "bridge", {"resample": {"grids": grids}}]
    steps.append({"continuum": {"method": "smooth", "width": width}})
    return Recipe.from_steps("velocity", steps)


def _templates(
    ranges: Sequence[tuple[float, float]],
    step: float,
    width: float,
    pieces: Sequence[tuple[np.ndarray, np.ndarray]],
    floor: float,
) -> Templates:
    """Bring model spectra, (wavelength, flux) per window, to the templates' form."""
    recipe = _recipe(ranges, step, width)
    windows, flux, start = [], [], 0
    reach = int(FASTEST / step)
    for (low, high), (wavelength, models) in zip(ranges, pieces, strict=True):
        pixels = _recipe([(low, high)], step, width).wavelength.size
        index = np.arange(-reach, pixels + reach)
        grid = low * (1 + step / SPEED_OF_LIGHT) ** index
        values = np.stack([np.interp(grid, wavelength, model) for model in models])
        ones = np.ones_like(values, dtype=np.float32)
        batch = Batch(
            wavelength=grid,
            flux=values.astype(np.float32),
            ivar=ones,
            mask=np.zeros(values.shape, dtype=np.uint8),
            redshift=np.zeros(len(values)),
            segments=(((0, grid.size),),),
        )
        smooth = continuum.divide_continuum(batch, method="smooth", width=width)
        flux.append(smooth.flux - 1)
        windows.append((start, start + pixels))
        start += pixels
    return Templates(recipe, step, tuple(windows), tuple(flux), floor)


@cache
def medium_templates() -> Templates:
    """Return those of both arms of LAMOST MRS."""
    labels = [[*star, *[star[2]] * len(atmospheres.ELEMENTS)] for star in MEDIUM_STARS]
    models = synthesis.normalised(np.array(labels))
    models = synthesis.broadened(models, 7500.0, np.full(len(models), 5.0))
    grids = synthesis.grid()
    parts = np.split(models, [grids[0].size], axis=1)
    ranges = [(4930.0, 5360.0), (6305.0, 6750.0)]
    pieces = list(zip(grids, parts, strict=True))
    return _templates(ranges, 6.0, 15.0, pieces, 0.3)


@cache
def low_templates() -> Templates:
    """Return those of low resolution, from blue to red."""
    emulator = Emulator.load()
    models = emulator.spectrum(low_stars())
    return _templates(
        [(3900.0, 6800.0)], 35.0, 50.0, [(emulator.wavelength, models)], 3.5
    )


def measure(spectra: Sequence[Spectrum]) -> list[Velocity]:
    """Measure the velocities of spectra.

    Parameters
    ----------
    spectra : sequence of Spectrum
        Of any surveys. Whatever their header says of a velocity isn't used.

    Returns
    -------
    list of Velocity
        NaN where the spectrum doesn't overlap the templates or resembles none.
    """
    results: list[Velocity] = [Velocity(np.nan, np.nan)] * len(spectra)
    for medium, load in ((True, medium_templates), (False, low_templates)):
        index = [
            n for n, s in enumerate(spectra) if (s.meta.survey in MEDIUM) == medium
        ]
        if not index:
            continue
        templates = load()
        with np.errstate(all="ignore"):  # nonsense values end as masked pixels
            batch = Batch.from_spectra([spectra[n] for n in index])
            batch = templates.recipe.apply(batch)
        flux = np.where(batch.good, batch.flux - 1, 0).astype(np.float64)
        ivar = np.where(batch.good, batch.ivar, 0).astype(np.float64)
        for n, row, weight in zip(index, flux, ivar, strict=True):
            results[n] = _measure(row, weight, templates)
    return results


def _measure(flux: np.ndarray, ivar: np.ndarray, templates: Templates) -> Velocity:
    """Velocity of one prepared spectrum less 1."""
    product, power = np.sum(_both(flux, ivar, templates), axis=0)
    gain = _gain(product, power)
    best = int(gain.max(axis=1).argmax())
    place = int(gain[best].argmax())
    if not 0 < place < gain.shape[1] - 1:
        return Velocity(np.nan, np.nan)
    weights = _mixture(flux, ivar, templates, gain.max(axis=1), place)
    mixed = templates.mixed(weights)
    pairs = _both(flux, ivar, mixed)
    product, power = np.sum(pairs, axis=0)
    gain = _gain(product, power)
    near = slice(max(place - NEAR, 1), place + NEAR + 1)
    place = near.start + int(gain[0, near].argmax())
    if not 0 < place < gain.shape[1] - 1:
        return Velocity(np.nan, np.nan)
    amplitude = product[0, place] / power[0, place]
    excess = _excess(flux, ivar, mixed, place, amplitude)
    if gain[0, place] / excess < CREDIBLE:
        return Velocity(np.nan, np.nan)
    rv, error = _peak(gain[0], place, templates, excess)
    arms = []
    for one, other in pairs:
        own = _gain(one[0], other[0])
        near = slice(max(place - NEAR, 1), place + NEAR + 1)
        top = near.start + int(own[near].argmax())
        inside = 0 < top < own.size - 1 and own[top] / excess > CREDIBLE
        found = _peak(own, top, templates, excess) if inside else (np.nan, np.nan)
        arms.append(found)
    return Velocity(rv, error, tuple(arms))


def _both(
    flux: np.ndarray, ivar: np.ndarray, templates: Templates
) -> list[tuple[np.ndarray, np.ndarray]]:
    """`_correlations` of every window."""
    return [
        _correlations(flux[a:b], ivar[a:b], models, transforms)
        for (a, b), models, transforms in zip(
            templates.windows, templates.flux, templates.transforms, strict=True
        )
    ]


def _mixture(
    flux: np.ndarray,
    ivar: np.ndarray,
    templates: Templates,
    gain: np.ndarray,
    place: int,
) -> np.ndarray:
    """Shares of the templates, (template,), whose sum is the star best.

    Of those that resemble it most, by least squares without negative shares: a star
    between two templates would otherwise be found beside its velocity.
    """
    from scipy.optimize import nnls

    chosen = np.argsort(gain)[-MIXED:]
    root = np.sqrt(ivar)
    models = templates.shifted(chosen, place)
    shares = np.zeros(len(gain))
    shares[chosen], _ = nnls((models * root).T, flux * root)
    return shares


def _size(models: np.ndarray) -> int:
    """Length of a transform that holds templates, (template, pixel)."""
    from scipy import fft

    return fft.next_fast_len(models.shape[1], real=True)


def _correlations(
    flux: np.ndarray,
    ivar: np.ndarray,
    models: np.ndarray,
    transforms: tuple[np.ndarray, np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:
    """Σ w f t and Σ w t² for all templates and shifts, each (template, shift).

    Shift 0 is the most positive velocity.
    """
    from scipy import fft

    size = _size(models)
    shifts = models.shape[1] - flux.size + 1

    def correlate(transform: np.ndarray, weight: np.ndarray) -> np.ndarray:
        weights = np.conj(fft.rfft(weight, size))
        return fft.irfft(transform * weights, size)[:, :shifts]

    product, power = transforms
    return correlate(product, flux * ivar), correlate(power, ivar)


def _gain(product: np.ndarray, power: np.ndarray) -> np.ndarray:
    """Drop of χ² by a template at its best, positive amplitude."""
    positive = (product > 0) & (power > 1e-9 * power.max(initial=1e-30))
    return np.divide(product**2, power, out=np.zeros_like(power), where=positive)


def _peak(
    gain: np.ndarray, place: int, templates: Templates, excess: float
) -> tuple[float, float]:
    """Velocity and error from a parabola through the three highest values."""
    left, middle, right = gain[place - 1 : place + 2]
    curvature = left - 2 * middle + right  # per pixel², negative
    if not curvature < 0:
        return np.nan, np.nan
    offset = 0.5 * (left - right) / curvature
    shift = templates.reach - (place + offset)  # pixels, positive receding
    # pixels are equal steps of ln λ
    rate = np.log1p(templates.step / SPEED_OF_LIGHT)
    rv = SPEED_OF_LIGHT * np.expm1(shift * rate)
    error = templates.step * np.sqrt(-2 * excess / curvature)
    return float(rv), float(np.hypot(error, templates.floor))


def _excess(
    flux: np.ndarray,
    ivar: np.ndarray,
    mixed: Templates,
    place: int,
    amplitude: float,
) -> float:
    """Variance of the residuals over the expected, times their correlation length."""
    (model,) = mixed.shifted(slice(None), place)
    residual = (flux - amplitude * model) * np.sqrt(ivar)
    good = ivar > 0
    residual = np.clip(residual, *np.percentile(residual[good], [0.5, 99.5]))
    variance = np.mean(residual[good] ** 2)
    lags = [
        np.sum(residual[n:] * residual[:-n]) / np.sum(good[n:] & good[:-n])
        for n in range(1, LAGS + 1)
    ]
    return float(max(1.0, variance + 2 * np.sum(lags)))


# ------------------------------------------------------------------------------ sources

CARD = "RVSOURCE"  # of prepared tables, whose reader looks for it
SOURCES = {
    "header": "what the file says",
    "auto": "what the file says, measured where it says nothing",
    "measure": "measured in the spectrum",
}


@dataclass(frozen=True, eq=False)
class Source:
    """Where velocities are from.

    Attributes
    ----------
    name : str
        Key of `SOURCES`, or of a table.
    matcher : Matcher or None
        Of that table.
    rv, rv_error : str
        Its columns, km/s; the second is empty where there is none.
    """

    name: str = "header"
    matcher: catalog.Matcher | None = None
    rv: str = ""
    rv_error: str = ""

    @classmethod
    def of(cls, name: str, radius: float = 3.0) -> Source:
        """Make one from what the user typed.

        Parameters
        ----------
        name : str
            Key of `SOURCES`, or a table with a column ``rv`` in km/s.
        radius : float
            Of the search on the sky, arcsec.

        Raises
        ------
        UsageError
            If it is neither, or the table has no such column.
        """
        if name in SOURCES:
            return cls(name)
        if "." not in name and not os.path.exists(name):
            raise unknown("source of velocities", name, SOURCES)
        table = catalog.read(name).rows
        rv = catalog.find(table, *COLUMNS)
        if rv is None or table.dtype[rv].kind not in "fiu":
            raise UsageError(
                f"{name} has no column of velocities in km/s, named "
                f"{', '.join(COLUMNS)}; it has {', '.join(table.dtype.names)}."
            )
        error = catalog.find(table, f"{rv}_err", f"e_{rv}", f"{rv}_error") or ""
        return cls(name, catalog.Matcher(table, radius), rv, error)

    def card(self) -> tuple[str, str, str]:
        """Card of a prepared table's header: key of `SOURCES`, or catalogue."""
        name = self.name if self.name in SOURCES else "catalogue"
        return CARD, name, "where radial velocities are from"

    def assign(
        self, spectra: Sequence[Spectrum | None]
    ) -> tuple[list[Spectrum | None], np.ndarray]:
        """Give spectra their velocities.

        Parameters
        ----------
        spectra : sequence of Spectrum or None

        Returns
        -------
        spectra : list of Spectrum or None
            With ``meta.rv``, None where the source has none, and ``meta.rv_error``.
        discrepant : ndarray of bool, shape (spectrum,)
            Arms that were measured differ.
        """
        result, discrepant = list(spectra), np.zeros(len(spectra), dtype=bool)
        wanted = [
            n
            for n, spectrum in enumerate(spectra)
            if spectrum is not None
            and self.name != "header"
            and (self.name != "auto" or spectrum.meta.rv is None)
        ]
        if not wanted:
            return result, discrepant
        chosen = [spectra[n] for n in wanted]
        if self.matcher is not None:
            found, label = self._look_up(chosen), f"catalogue {self.name}"
        else:
            found, label = measure(chosen), "measured"
        for n, spectrum, velocity in zip(wanted, chosen, found, strict=True):
            known = bool(np.isfinite(velocity.rv))
            meta = replace(
                spectrum.meta,
                rv=velocity.rv if known else None,
                rv_error=velocity.error,
                rv_source=label if known else "",
            )
            result[n] = replace(spectrum, meta=meta)
            discrepant[n] = velocity.discrepant
        return result, discrepant

    def _look_up(self, spectra: Sequence[Spectrum]) -> list[Velocity]:
        """Find velocities in the table, by identifier, file name or position."""
        metas = [spectrum.meta for spectrum in spectra]
        left = np.array(
            [(m.objid, catalog.encode_name(m.file), m.ra, m.dec) for m in metas],
            dtype=[("objid", "U80"), ("file", "U999"), ("ra", "f8"), ("dec", "f8")],
        )
        rows = self.matcher(left).index
        table = self.matcher.right
        found = []
        for row in rows:
            rv = float(table[self.rv][row]) if row >= 0 else np.nan
            if not abs(rv) < IMPOSSIBLE:
                found.append(Velocity(np.nan, np.nan))
                continue
            error = float(table[self.rv_error][row]) if self.rv_error else np.nan
            found.append(Velocity(rv, error))
        return found
