"""What a trained model learns about itself: errors, limits, unlike spectra."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from stellarcli import (
    coverage,
    familiarity,
    feeding,
    metrics,
    models,
    novelty,
    sptype,
)
from stellarcli.checkpoint import Model
from stellarcli.dataset import Dataset
from stellarcli.feeding import Feed

log = logging.getLogger(__name__)

BATCH = 256  # spectra evaluated together
ENOUGH = 50  # validation rows to judge by; below, training rows do, optimistic as it is
CUTS = 16  # stretches of each of them, for networks that learn from stretches, …
SHORTEST = 0.15  # … of this share of its pixels or more
LARGE_ERROR = 0.5  # of the training labels' spread: the spectrum says little
REFERENCE_SNR = 50.0  # per pixel, where the error's factor is the model's error_scale
LEAST_SPAN = 0.5  # of the rows' log S/N, for a slope with it
STEEPEST = 1.0  # slope of log error with log S/N
TYPED = 0.9  # of the training rows have a spectral type, where types are judged
RARE = 0.002  # of them have types beyond the range, at each end
TYPE_MARGIN = 0.3  # classes: surveys' types are no better than three subtypes
HARMLESS = 0.1  # change by bfloat16 over predicted error


@dataclass(frozen=True)
class Judged:
    """Predictions of spectra with known labels, in the labels' units.

    Attributes
    ----------
    value, error, truth : ndarray of float, shape (spectrum, label)
        Errors as the networks give them, before calibration; truth is NaN where
        missing.
    snr : ndarray of float, shape (spectrum,)
        Of `signal_to_noise`.
    place : ndarray of float, shape (spectrum, 3)
        Of `coverage.place`; NaN where wavelengths aren't part of what is fed.
    whole : ndarray of bool, shape (spectrum,)
        False of a stretch of a spectrum that is there as well.
    instrument : ndarray of str, shape (spectrum,)
        That it is from.
    """

    value: np.ndarray
    error: np.ndarray
    truth: np.ndarray
    snr: np.ndarray
    place: np.ndarray
    whole: np.ndarray
    instrument: np.ndarray

    def some(self, index: np.ndarray) -> Judged:
        """Return some of the spectra."""
        return Judged(*(getattr(self, f.name)[index] for f in fields(self)))

    @classmethod
    def joined(cls, pieces: Sequence[Judged]) -> Judged:
        """Put the spectra of several together."""
        names = [f.name for f in fields(cls)]
        return cls(
            *(np.concatenate([getattr(p, name) for p in pieces]) for name in names)
        )


class Encoded(NamedTuple):
    """Predictions in model units, and what `Judged` has of their spectra."""

    mean: np.ndarray
    variance: np.ndarray
    snr: np.ndarray
    place: np.ndarray


def _batches(index: np.ndarray) -> Iterator[np.ndarray]:
    """Hand out rows, those of a batch at a time; an empty one of none."""
    for start in range(0, max(1, len(index)), BATCH):
        yield index[start : start + BATCH]


@torch.no_grad()
def _outputs(network: nn.Module, feed: Feed) -> tuple[np.ndarray, np.ndarray]:
    network.eval()
    device = next(iter(network.state_dict().values())).device
    mean, log_variance = network(*feeding.tensors(feed, device).values())
    return mean.float().cpu().numpy(), log_variance.float().cpu().numpy()


def predict_encoded(
    network: nn.Module, data: Dataset, index: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and log variance in model units, each (spectrum, label)."""
    outputs = [_outputs(network, data.feed(rows)) for rows in _batches(index)]
    mean, log_variance = zip(*outputs, strict=True)
    return np.concatenate(mean), np.concatenate(log_variance)


def combine(
    means: list[np.ndarray], log_variances: list[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of an equal mixture of Gaussians.

    σ² = mean(σᵢ² + μᵢ²) − μ² (RDN, eq. 5; Lakshminarayanan et al. 2017,
    arXiv:1612.01474), written so that large means don't cancel.
    """
    stack = np.stack(means)
    mean = stack.mean(axis=0)
    variance = np.exp(np.stack(log_variances)).mean(axis=0)
    return mean, variance + np.square(stack - mean).mean(axis=0)


def finish(
    model: Model,
    networks: list[nn.Module],
    data: Dataset,
    unseen: Judged | None = None,
    start: Model | None = None,
) -> None:
    """Fill a model's error scale, limits, novelty statistics and metrics.

    Parameters
    ----------
    model : Model
        Changed in place.
    networks : list of nn.Module
        Members of the ensemble, with the weights as they will be stored.
    data : Dataset
        Its validation rows judge; without enough of them its training rows.
    unseen : Judged, optional
        Predictions by models alike of spectra that these hadn't seen, which then judge:
        those of a cross-validation.
    start : Model, optional
        That the training began with: what it has seen, this one has seen, too.
    """
    most = novelty.rows(model.pixels)
    sample = some(data.index("train"), most)
    held = _real(data, data.index("validation"))
    judge = held if held.size >= ENOUGH else sample
    if model.wavelength is not None:  # components of spectra need a common grid
        unlike = novelty.fit(*data.spectra(sample))
        scores = [novelty.cross_scores(*data.spectra(sample))]
        if judge is held:
            scores.append(_scores(data, some(held, most), unlike))
        novelty.calibrate(unlike, np.concatenate(scores))
        for name in ("mean", "components"):
            unlike[name] = unlike[name].astype(np.float16)  # they have no more digits
        model.state |= {f"novelty.{key}": value for key, value in unlike.items()}
    elif "wavelength" in data.inputs:
        seen = familiarity.fit(data.feed(sample), start and start.part("familiar"))
        model.state |= {f"familiar.{key}": value for key, value in seen.items()}
    whole = _predicted(networks, data, judge)
    model.limits = {
        "large_error": LARGE_ERROR,
        "bfloat16_safe": _bfloat16_safe(networks, data, judge, whole),
    }
    types = sptype.numbers(data.rows(sample).text("subclass"))
    if np.isfinite(types).mean() >= TYPED:
        low, high = np.nanquantile(types, (RARE, 1 - RARE))
        model.limits["types"] = [low - TYPE_MARGIN, high + TYPE_MARGIN]
    judged = unseen or _all(model, whole, networks, data, judge)
    if "wavelength" in data.inputs and np.count_nonzero(~judged.whole) >= ENOUGH:
        _remember_places(model, data)
    calibrate(model, judged)
    kind = "validation" if judge is held else "train"
    model.training |= {
        "judged_on": "folds" if unseen else kind,
        "metrics": metrics_of(model, judged),
    }
    test = data.index("test")
    if test.size:
        judged = judge_rows(model, networks, data, test)
        model.training["test_metrics"] = metrics_of(model, judged)


def _real(data: Dataset, index: np.ndarray) -> np.ndarray:
    """Leave simulated spectra out, where enough others are there to judge by.

    What has been simulated lacks what makes errors of real spectra larger.
    """
    real = index[~data.simulated[index]]
    return real if real.size >= ENOUGH else index


def judge_rows(
    model: Model, networks: list[nn.Module], data: Dataset, index: np.ndarray
) -> Judged:
    """Predict rows of a dataset.

    Parameters
    ----------
    model : Model
        Its labels decode what the networks say.
    networks : list of nn.Module
    data : Dataset
    index : ndarray of int, shape (spectrum,)
    """
    return _judged(model, _predicted(networks, data, index), data, index)


def judge_all(
    model: Model, networks: list[nn.Module], data: Dataset, index: np.ndarray
) -> Judged:
    """Predict rows of a dataset, and stretches of them if networks learn from such.

    Arguments as in `judge_rows`.
    """
    whole = _predicted(networks, data, index)
    return _all(model, whole, networks, data, index)


def _all(
    model: Model,
    whole: Encoded,
    networks: list[nn.Module],
    data: Dataset,
    index: np.ndarray,
) -> Judged:
    """As `judge_all`, where the whole spectra have been predicted."""
    judged = _judged(model, whole, data, index)
    if not any(getattr(network, "cut", 0) for network in networks):
        return judged
    stretch = replace(judged, whole=np.zeros_like(judged.whole))
    cuts = _stretches(networks, data, index)
    more = [replace(stretch, **_in_units(model, encoded)) for encoded in cuts]
    return Judged.joined([judged, *more])


def _predicted(networks: list[nn.Module], data: Dataset, index: np.ndarray) -> Encoded:
    """Predict rows of a dataset, in model units."""
    pieces = []
    for rows in _batches(index):
        feed = data.feed(rows)
        # some networks look at images alone
        ivar = feed["ivar"] if "ivar" in feed else data.spectra(rows)[1]
        pieces.append(_ensemble(networks, feed, ivar))
    return _joined(pieces)


def _ensemble(networks: list[nn.Module], feed: Feed, ivar: np.ndarray) -> Encoded:
    """Return what the ensemble says of some spectra, in model units."""
    outputs = [_outputs(network, feed) for network in networks]
    mean, variance = combine(*map(list, zip(*outputs, strict=True)))
    place = np.full((len(mean), 3), np.nan)
    if "wavelength" in feed:
        place = coverage.place(feed)
    return Encoded(mean, variance, signal_to_noise(ivar), place)


def _joined(pieces: Sequence[Encoded]) -> Encoded:
    return Encoded(*map(np.concatenate, zip(*pieces, strict=True)))


def _stretches(
    networks: list[nn.Module], data: Dataset, index: np.ndarray
) -> list[Encoded]:
    """Predict random stretches of spectra, whose lengths are even in the logarithm."""
    rng = np.random.default_rng(0)
    pieces: list[list[Encoded]] = [[] for _ in range(CUTS)]
    for rows in _batches(index):
        feed = data.feed(rows)
        for found in pieces:
            draw = rng.random((2, len(rows)))
            length = SHORTEST ** draw[0]
            low = draw[1] * (1 - length)
            cut = feeding.stretches(feed, low, low + length)
            found.append(_ensemble(networks, cut, cut["ivar"]))
    return [_joined(found) for found in pieces]


def _judged(model: Model, encoded: Encoded, data: Dataset, index: np.ndarray) -> Judged:
    """Put predictions of whole spectra beside what their labels are."""
    return Judged(
        **_in_units(model, encoded),
        truth=data.labels[index],
        whole=np.ones(len(index), dtype=bool),
        instrument=_instruments(data, index),
    )


def _in_units(model: Model, encoded: Encoded) -> dict[str, np.ndarray]:
    """Bring predictions from model units to those of the labels, for `Judged`."""
    mean, error = encoded.mean, np.sqrt(encoded.variance)
    decoded = [
        (label.decode(mean[:, i]), label.decode_error(mean[:, i], error[:, i]))
        for i, label in enumerate(model.labels)
    ]
    value, error = (np.stack(columns, axis=1) for columns in zip(*decoded, strict=True))
    return {"value": value, "error": error, "snr": encoded.snr, "place": encoded.place}


def _instruments(data: Dataset, index: np.ndarray) -> np.ndarray:
    """Name what spectra are from: the survey, or else the table."""
    survey = data.rows(index).text("survey")
    return np.where(survey == "", data.table[index].astype(str), survey)


def some(index: np.ndarray, most: int) -> np.ndarray:
    """Return at most so many spectra, drawn at random, in order."""
    return np.sort(np.random.default_rng(0).permutation(index)[:most])


def _scores(data: Dataset, index: np.ndarray, unlike: dict) -> np.ndarray:
    """Score spectra for novelty, some at a time; (spectrum, 2)."""
    pieces = [index[start : start + BATCH] for start in range(0, len(index), BATCH)]
    return np.concatenate([novelty.score(*data.spectra(i), unlike) for i in pieces])


def signal_to_noise(ivar: np.ndarray) -> np.ndarray:
    """Return the mean signal-to-noise ratio per pixel of normalised spectra.

    From the spectrum itself: headers may lack it, or mean another band by it.

    Parameters
    ----------
    ivar : ndarray, shape (spectrum, pixel)
        Of flux about 1.

    Returns
    -------
    ndarray of float, shape (spectrum,)
        0 without a good pixel.
    """
    good = np.count_nonzero(ivar > 0, axis=1)
    return np.sqrt(ivar).sum(axis=1, dtype=float) / np.maximum(good, 1)


def error_factors(
    model: Model, ivar: np.ndarray, wavelength: np.ndarray | None = None
) -> np.ndarray:
    """Return what calibration multiplies predicted errors by.

    Parameters
    ----------
    model : Model
    ivar : ndarray, shape (spectrum, pixel)
    wavelength : ndarray, shape (spectrum, pixel), optional
        Vacuum Å, for models whose errors depend on what is there.

    Returns
    -------
    ndarray of float, shape (spectrum, label)
    """
    factors = _factors(model, signal_to_noise(ivar))
    if wavelength is None or not (table := model.part("coverage")):
        return factors
    feed = {"ivar": ivar, "wavelength": wavelength}
    return factors * np.exp(coverage.corrections(feed, table))


def _judged_factors(model: Model, judged: Judged) -> np.ndarray:
    """As `error_factors`, of spectra such as the model has learnt from."""
    return _factors(model, judged.snr) * _factors_by_place(model, judged)


def _factors_by_place(model: Model, judged: Judged) -> np.ndarray:
    """Return those of the table of `coverage`; 1 if there is none."""
    table = model.part("coverage")
    return np.exp(coverage.at(judged.place, table) if "levels" in table else 0.0)


def _factors(model: Model, snr: np.ndarray) -> np.ndarray:
    scale = np.array(model.error_scale or [1.0] * len(model.labels))
    if not model.error_slope:  # files of format 1
        return np.broadcast_to(scale, (len(snr), scale.size))
    snr = np.clip(snr, *model.limits["snr"])
    return scale * np.power(snr[:, None] / REFERENCE_SNR, model.error_slope)


def calibrate(model: Model, judged: Judged) -> None:
    """Bring 68.27 % of the rows within one sigma, at low S/N as at high.

    Per label the factor on errors is a power of the signal-to-noise ratio, found by
    quantile regression (Koenker & Bassett 1978, Econometrica 46, 33). Where there are
    stretches of spectra, whose errors are to be right as well, a table of `coverage`
    follows: they are wrong in some places more than in others.

    Parameters
    ----------
    model : Model
        Changed in place, but for its table of `coverage` if all spectra are whole.
    judged : Judged
        Better of rows that the networks haven't seen.
    """
    anew = "coverage.seen" in model.state and not judged.whole.all()
    ratio = np.abs(judged.value - judged.truth) / judged.error
    if anew:
        _level(model, ratio, judged.snr)
        _chart(model, ratio, judged)
    else:
        _level(model, ratio / _factors_by_place(model, judged), judged.snr)


def _level(model: Model, ratio: np.ndarray, snr: np.ndarray) -> None:
    """Find the factor on errors, with its power of S/N."""
    model.error_scale, model.error_slope = [], []
    used = snr[snr > 0]
    low, high = np.percentile(used, (2, 98)) if used.size else (1.0, 1.0)
    distance = np.log(np.clip(snr, low, high) / REFERENCE_SNR)
    for off in ratio.T:
        known = np.isfinite(off) & (off > 0) & (snr > 0)
        level, slope = _quantile_line(distance[known], np.log(off[known]))
        model.error_scale.append(float(np.exp(level)))
        model.error_slope.append(slope)
    model.limits["snr"] = [float(low), float(high)]


def _chart(model: Model, ratio: np.ndarray, judged: Judged) -> None:
    """Make the table of `coverage` of what that factor leaves."""
    with np.errstate(divide="ignore"):
        excess = np.log(ratio / _factors(model, judged.snr))
    excess[judged.snr == 0] = np.nan
    names, number, count = np.unique(
        judged.instrument, return_inverse=True, return_counts=True
    )
    # few spectra make no table of their own
    rare = count[number] < ENOUGH * (1 + CUTS)
    instrument = np.where(rare, names[count.argmax()], judged.instrument)
    given = judged.place, excess, judged.whole, instrument
    table = coverage.fit(*given, metrics.WITHIN[1])
    model.state |= {f"coverage.{name}": value for name, value in table.items()}


def _remember_places(model: Model, data: Dataset) -> None:
    """Note what spectra a table of `coverage` is to be of: the real ones."""
    real = _real(data, np.flatnonzero(data.part != "test"))
    seen: dict[str, np.ndarray] | None = None
    for rows in _batches(real):
        seen = familiarity.fit(data.feed(rows), seen)
    model.state["coverage.seen"] = seen["seen"]


def _quantile_line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Level at 0 and slope of the line with 68.27 % of the points below it.

    The slope is 0 where there are too few points to tell.
    """
    from scipy.optimize import minimize

    share = metrics.WITHIN[1]
    level = float(np.quantile(y, share)) if y.size else 0.0
    if x.size < 2 * ENOUGH or np.ptp(x) < LEAST_SPAN:
        return level, 0.0

    def loss(line: np.ndarray) -> float:
        above = y - line[0] - line[1] * x
        return float(np.maximum(share * above, (share - 1) * above).sum())

    bounds = [(None, None), (-STEEPEST, STEEPEST)]
    found = minimize(loss, [level, 0.0], method="Nelder-Mead", bounds=bounds)
    return float(found.x[0]), float(found.x[1])


def metrics_of(model: Model, judged: Judged) -> dict[str, Any]:
    """Return the figures of merit of whole spectra, with calibrated errors."""
    judged = judged.some(judged.whole)
    error = judged.error * _judged_factors(model, judged)
    results = {
        label.name: metrics.summary(judged.value[:, i], judged.truth[:, i], error[:, i])
        for i, label in enumerate(model.labels)
    }
    return json.loads(json.dumps(results))


def _bfloat16_safe(
    networks: list[nn.Module],
    data: Dataset,
    index: np.ndarray,
    whole: Encoded,
) -> bool:
    """Say whether bfloat16 moves each label by less than a tenth of its error."""
    means = []
    for network in networks:
        reduced = models.fused(copy.deepcopy(network))
        reduced.trunk.to(torch.bfloat16)
        means.append(predict_encoded(reduced, data, index)[0])
    moved = (np.mean(means, axis=0) - whole.mean) / np.sqrt(whole.variance)
    typical = np.sqrt(np.square(moved).mean(axis=0))
    log.info("bfloat16 moves labels by %s of their errors", typical.round(3).tolist())
    return bool((typical < HARMLESS).all())
