"""What a trained model learns about itself: errors, limits, unlike spectra."""

from __future__ import annotations

import copy
import json
import logging
from typing import Any

import numpy as np
import torch
from torch import nn

from stellarcli import metrics, models, novelty
from stellarcli.checkpoint import Model
from stellarcli.dataset import Dataset

log = logging.getLogger(__name__)

BATCH = 256  # spectra evaluated together
ENOUGH = 50  # validation rows to judge by; below, training rows do, optimistic as it is
LARGE_ERROR = 0.5  # of the training labels' spread: the spectrum says little
HARMLESS = 0.1  # change by bfloat16 over predicted error
NOISE_BINS = 5  # of validation spectra, from quiet to noisy ones
BIN = 150  # spectra in a bin at least, else errors have one factor for all noise


@torch.no_grad()
def predict_encoded(
    network: nn.Module, data: Dataset, index: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and log variance in model units, each (spectrum, label)."""
    network.eval()
    device = next(iter(network.state_dict().values())).device
    outputs = []
    for start in range(0, max(1, len(index)), BATCH):
        spectra = data.spectra(index[start : start + BATCH])
        inputs = [torch.from_numpy(array).to(device) for array in spectra]
        outputs.append([values.float().cpu().numpy() for values in network(*inputs)])
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


def finish(model: Model, networks: list[nn.Module], data: Dataset) -> None:
    """Fill a model's error scale, limits, novelty statistics and metrics.

    Parameters
    ----------
    model : Model
        Changed in place.
    networks : list of nn.Module
        Members of the ensemble, with the weights as they will be stored.
    data : Dataset
        Its validation rows judge; without enough of them its training rows.
    """
    most = novelty.rows(model.pixels)
    sample = _some(data.index("train"), most)
    held = data.index("validation")
    judge = held if held.size >= ENOUGH else sample
    unlike = novelty.fit(*data.spectra(sample))
    scores = [novelty.cross_scores(*data.spectra(sample))]
    if judge is held:
        scores.append(_scores(data, _some(held, most), unlike))
    novelty.calibrate(unlike, np.concatenate(scores))
    for name in ("mean", "components"):
        unlike[name] = unlike[name].astype(np.float16)  # they have no more digits
    model.state |= {f"novelty.{key}": value for key, value in unlike.items()}
    mean, variance = _ensemble(networks, data, judge)
    error = np.sqrt(variance)
    model.error_scale = _error_scale(model, mean, error, data.labels[judge])
    model.limits = {
        "large_error": LARGE_ERROR,
        "bfloat16_safe": _bfloat16_safe(networks, data, judge, mean, error),
    }
    noise = _noise(data, judge)
    truth = data.labels[judge]
    if len(judge) >= NOISE_BINS * BIN:
        model.limits["error_noise"] = _scale_by_noise(model, mean, error, truth, noise)
    model.training |= {
        "judged_on": "validation" if judge is held else "train",
        "metrics": _metrics(model, mean, error * factors(model, noise), truth),
    }
    test = data.index("test")
    if test.size:
        mean, variance = _ensemble(networks, data, test)
        error = np.sqrt(variance) * factors(model, _noise(data, test))
        model.training["test_metrics"] = _metrics(model, mean, error, data.labels[test])


def noise_of(ivar: np.ndarray) -> np.ndarray:
    """Return the median error of each spectrum's good pixels; NaN without any.

    Parameters
    ----------
    ivar : ndarray, shape (spectrum, pixel)
        0 where masked.

    Returns
    -------
    ndarray, shape (spectrum,)
        In the unit of the prepared flux.
    """
    ordered = np.sort(np.where(ivar > 0, ivar, np.inf), axis=1)
    count = (ivar > 0).sum(axis=1)
    median = ordered[np.arange(len(ivar)), np.maximum(count - 1, 0) // 2]
    return np.where(count > 0, 1 / np.sqrt(median), np.nan)


def factors(model: Model, noise: np.ndarray) -> np.ndarray:
    """Return what errors are multiplied by at a noise, beside `Model.error_scale`.

    Parameters
    ----------
    model : Model
    noise : ndarray, shape (spectrum,)
        Of `noise_of`.

    Returns
    -------
    ndarray, shape (spectrum, label)
        1 for models without such a calibration, and without noise.
    """
    known = model.limits.get("error_noise")
    if not known:
        return np.ones((len(noise), len(model.labels)))
    x = np.log(np.where(noise > 0, noise, 1.0))
    at, scales = np.log(known["noise"]), np.array(known["scale"])
    values = np.stack([np.interp(x, at, column) for column in scales.T], axis=1)
    return np.where(np.isfinite(noise)[:, None], values, 1.0)


def _noise(data: Dataset, index: np.ndarray) -> np.ndarray:
    """Noise of spectra, some at a time; (spectrum,)."""
    pieces = [index[start : start + BATCH] for start in range(0, len(index), BATCH)]
    return np.concatenate([noise_of(data.spectra(piece)[1]) for piece in pieces])


def _scale_by_noise(
    model: Model,
    mean: np.ndarray,
    error: np.ndarray,
    truth: np.ndarray,
    noise: np.ndarray,
) -> dict[str, list]:
    """Return factors per bin of the noise and label that bring 68.27 % within 1σ."""
    bins = np.array_split(np.argsort(noise), NOISE_BINS)
    scales = [_error_scale(model, mean[b], error[b], truth[b]) for b in bins]
    relative = np.array(scales) / model.error_scale
    return {
        "noise": [float(np.median(noise[b])) for b in bins],
        "scale": relative.round(4).tolist(),
    }


def _some(index: np.ndarray, most: int) -> np.ndarray:
    """Return at most so many spectra, drawn at random, in order."""
    return np.sort(np.random.default_rng(0).permutation(index)[:most])


def _scores(data: Dataset, index: np.ndarray, unlike: dict) -> np.ndarray:
    """Score spectra for novelty, some at a time; (spectrum, 2)."""
    pieces = [index[start : start + BATCH] for start in range(0, len(index), BATCH)]
    return np.concatenate([novelty.score(*data.spectra(i), unlike) for i in pieces])


def _ensemble(
    networks: list[nn.Module], data: Dataset, index: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and variance of the ensemble, in model units."""
    outputs = [predict_encoded(network, data, index) for network in networks]
    return combine(*map(list, zip(*outputs, strict=True)))


def _error_scale(
    model: Model, mean: np.ndarray, error: np.ndarray, truth: np.ndarray
) -> list[float]:
    """One factor per label, which brings 68.27 % of the rows within one sigma."""
    scales = []
    for i, label in enumerate(model.labels):
        residual = np.abs(mean[:, i] - label.encode(truth[:, i]))
        ratio = (residual / error[:, i])[np.isfinite(residual)]
        known = ratio.size and np.quantile(ratio, metrics.WITHIN[1])
        scales.append(float(known) or 1.0)
    return scales


def _metrics(
    model: Model, mean: np.ndarray, error: np.ndarray, truth: np.ndarray
) -> dict[str, Any]:
    results = {
        label.name: metrics.summary(
            label.decode(mean[:, i]),
            truth[:, i],
            label.decode_error(mean[:, i], error[:, i]) * model.error_scale[i],
        )
        for i, label in enumerate(model.labels)
    }
    return json.loads(json.dumps(results))


def _bfloat16_safe(
    networks: list[nn.Module],
    data: Dataset,
    index: np.ndarray,
    mean: np.ndarray,
    error: np.ndarray,
) -> bool:
    """Say whether bfloat16 moves each label by less than a tenth of its error."""
    means = []
    for network in networks:
        reduced = models.fused(copy.deepcopy(network))
        reduced.trunk.to(torch.bfloat16)
        means.append(predict_encoded(reduced, data, index)[0])
    moved = (np.mean(means, axis=0) - mean) / error
    typical = np.sqrt(np.square(moved).mean(axis=0))
    log.info("bfloat16 moves labels by %s of their errors", typical.round(3).tolist())
    return bool((typical < HARMLESS).all())
