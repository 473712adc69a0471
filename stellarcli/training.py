"""Training: configuration, losses, augmentation and the loop."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stellarcli import checkpoint, dataset, labels, metrics, models, novelty
from stellarcli.dataset import Dataset
from stellarcli.errors import StellarError, UsageError, unknown
from stellarcli.labels import Label

log = logging.getLogger(__name__)

EVALUATION_BATCH = 256
SLOPE_FLOOR = 1e-6


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides about a training run.

    Read from YAML, overridden by options, saved resolved in the model file.
    """

    model: str = "resnet1d"  # key of MODELS
    network: dict[str, Any] = field(default_factory=dict)  # options of the network
    target: tuple[str, ...] = ("teff", "logg", "feh")  # label columns
    loss: str = "nll"  # key of LOSSES
    epochs: int = 30
    batch_size: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup: float = 0.03  # fraction of all steps with a rising learning rate
    clip: float = 1.0  # largest norm of the gradient; 0 for no limit
    average: float = 0.998  # decay of the running mean of the weights; 0 for none
    members: int = 1  # networks of the ensemble, seeds seed, seed + 1, …
    seed: int = 1
    init: str | None = None  # model whose weights and label scaling to start from
    select: str | None = None  # rows to use, "snrg > 10 and clean"
    group: str | None = None  # column that keeps rows together, such as plan
    split: str | None = None  # column that says train, validation, test
    test: float = 0.0  # fraction of groups never used
    validation: float = 0.1  # fraction of groups for calibration and the choice of runs
    noise: float = 0.0  # augmentation: added noise, up to this multiple of the own
    velocity: float = 0.0  # augmentation: shift, standard deviation in pixels
    hide: float = 0.0  # augmentation: chance of hiding a window of pixels
    precision: str = "auto"  # float32, bfloat16, or auto: bfloat16 where it is fast
    half: bool = True  # store weights as float16

    def __post_init__(self) -> None:
        """Refuse values that can't be."""
        if self.loss not in LOSSES:
            raise unknown("loss", self.loss, LOSSES)
        if self.precision not in ("auto", "float32", "bfloat16"):
            raise unknown("precision", self.precision, ("auto", "float32", "bfloat16"))
        for name in ("epochs", "batch_size", "learning_rate", "members"):
            if not getattr(self, name) > 0:
                raise UsageError(f"{name} must be positive, not {getattr(self, name)}.")
        if not 0 <= self.test + self.validation < 1:
            raise UsageError(
                f"test ({self.test}) and validation ({self.validation}) must leave "
                "something to train on: their sum is between 0 and 1."
            )

    @classmethod
    def resolve(cls, *sources: dict[str, Any]) -> TrainConfig:
        """Merge settings, later ones win.

        Raises
        ------
        UsageError
            If a key is unknown (names the nearest) or a value has the wrong type.
        """
        merged: dict[str, Any] = {}
        valid = {f.name: f for f in fields(cls)}
        for source in sources:
            for key, value in source.items():
                head, _, tail = key.partition(".")
                if head not in valid or (tail and head != "network"):
                    raise unknown("training setting", key, valid)
                if tail:
                    merged["network"] = {**merged.get("network", {}), tail: value}
                else:
                    merged[head] = _convert(valid[head].type, head, value)
        return cls(**merged)


def _convert(kind: str, name: str, value: Any) -> Any:
    """Bring a YAML or command-line value to the type of its field."""
    try:
        if kind.startswith("tuple"):
            items = value.split(",") if isinstance(value, str) else value
            return tuple(str(item).strip() for item in items)
        if kind.startswith("dict") and isinstance(value, dict):
            return value
        if "None" in kind:
            return None if value is None else str(value)
        if kind == "bool" and isinstance(value, bool):
            return value
        if kind == "int" and float(value) == int(float(value)):
            return int(float(value))
        if kind == "float":
            return float(value)
        if kind == "str" and isinstance(value, str):
            return value
    except (TypeError, ValueError):
        pass
    raise UsageError(f"training setting {name!r} must be {kind}, not {value!r}.")


def read_config(path: Path) -> dict[str, Any]:
    """Read settings from a YAML file.

    Raises
    ------
    UsageError
        If it can't be read or isn't a mapping.
    """
    import yaml

    try:
        values = yaml.safe_load(path.read_text()) or {}
    except OSError as error:
        raise UsageError(f"configuration '{path}': {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"configuration '{path}' is not YAML: {error}") from None
    if not isinstance(values, dict):
        raise UsageError(f"configuration '{path}' must be a mapping of settings.")
    return values


def parse_settings(pairs: list[str]) -> dict[str, Any]:
    """Read ``key=value`` settings; values as YAML, so that ``[1, 2]`` is a list.

    Raises
    ------
    UsageError
        If one has no ``=`` or isn't YAML.
    """
    import yaml

    values = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals:
            raise UsageError(f"--set takes KEY=VALUE, not {pair!r}.")
        try:
            values[key.strip()] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise UsageError(f"--set {pair}: the value is not YAML.") from None
    return values


def nll(mean: Tensor, log_variance: Tensor, truth: Tensor) -> Tensor:
    """Gaussian negative log-likelihood, without its constant."""
    return 0.5 * (log_variance + (truth - mean).square() * torch.exp(-log_variance))


def mae(mean: Tensor, log_variance: Tensor, truth: Tensor) -> Tensor:
    """Absolute error; the variance is not trained."""
    return (truth - mean).abs() + 0 * log_variance


def mse(mean: Tensor, log_variance: Tensor, truth: Tensor) -> Tensor:
    """Squared error; the variance is not trained."""
    return (truth - mean).square() + 0 * log_variance


def log_cosh(mean: Tensor, log_variance: Tensor, truth: Tensor) -> Tensor:
    """Log-Cosh: squared for small errors, absolute for large ones."""
    error = (truth - mean).abs()
    # ln cosh e = e + ln(1 + exp(-2 e)) - ln 2, which can't overflow
    value = error + nn.functional.softplus(-2 * error) - math.log(2)
    return value + 0 * log_variance


def laplace(mean: Tensor, log_variance: Tensor, truth: Tensor) -> Tensor:
    """Laplace negative log-likelihood: robust against wrong labels.

    ``exp(log_variance)`` is the variance 2 b² of the distribution.
    """
    log_b = 0.5 * (log_variance - math.log(2))
    return log_b + (truth - mean).abs() * torch.exp(-log_b)


LOSSES = {
    "nll": nll,
    "laplace": laplace,
    "mae": mae,
    "mse": mse,
    "log_cosh": log_cosh,
}


def masked_mean(loss: Tensor, known: Tensor) -> Tensor:
    """Mean over the labels that are known."""
    return (loss * known).sum() / known.sum().clamp_min(1)


def augment(
    flux: Tensor, ivar: Tensor, config: TrainConfig, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Vary spectra as another observation of the same star would.

    Parameters
    ----------
    flux, ivar : Tensor, shape (spectrum, pixel)
    config : TrainConfig
    generator : torch.Generator

    Returns
    -------
    flux, ivar : Tensor, shape (spectrum, pixel)
    """
    count, pixels = flux.shape

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    if config.velocity:
        shift = torch.randn(count, 1, generator=generator) * config.velocity
        left, right = torch.roll(flux, 1, 1), torch.roll(flux, -1, 1)
        share = shift.abs().clamp_max(1)
        flux = (1 - share) * flux + share * torch.where(shift > 0, left, right)
    if config.noise:
        # half of the spectra stay as they are
        factor = (draw(count, 1) * 2 - 1).clamp_min(0) * config.noise
        sigma = torch.where(ivar > 0, ivar.clamp_min(1e-8).rsqrt(), 0)
        noise = torch.randn(flux.shape, generator=generator)
        flux = flux + factor * sigma * noise
        ivar = ivar / (1 + factor.square())
    if config.hide:
        width = (draw(count, 1) * pixels / 10).long()
        start = (draw(count, 1) * pixels).long()
        position = torch.arange(pixels)
        inside = (position >= start) & (position < start + width)
        hidden = inside & (draw(count, 1) < config.hide)
        flux = torch.where(hidden, torch.ones(()), flux)
        ivar = torch.where(hidden, torch.zeros(()), ivar)
    return flux, ivar


@dataclass
class Progress:
    """What a running training says about itself.

    Attributes
    ----------
    member, epoch : int
    train_loss, validation_loss : float
    mae : dict
        Validation error per label, in the label's unit.
    learning_rate : float
    rate : float
        Spectra per second.
    remaining : float
        Estimate, s.
    """

    member: int
    epoch: int
    train_loss: float
    validation_loss: float
    mae: dict[str, float]
    learning_rate: float
    rate: float
    remaining: float


def train(
    tables: list[str],
    output: Path,
    config: TrainConfig,
    *,
    report: Callable[[Progress], None] = lambda _: None,
    provenance: dict[str, Any] | None = None,
) -> checkpoint.Model:
    """Train a model from prepared tables and write its file.

    Parameters
    ----------
    tables : list of str
    output : Path
    config : TrainConfig
    report : callable
        Called after every epoch.
    provenance : dict, optional
        Goes into the file.

    Returns
    -------
    Model

    Raises
    ------
    UsageError
        If data or configuration can't be used.
    StellarError
        If the loss stops being a number.
    """
    data = dataset.load(
        tables,
        config.target,
        selection=config.select,
        group=config.group,
        split=config.split,
        test=config.test,
        validation=config.validation,
        seed=config.seed,
    )
    start = checkpoint.load(config.init) if config.init else None
    model = _new_model(output.stem, data, config, start)
    encoded = _encode(model.labels, data.labels)
    history: list[dict[str, Any]] = []
    networks = []
    for member in range(config.members):
        network = _initial(model, start, member, config.seed + member)

        def collect(progress: Progress) -> None:
            history.append(asdict(progress))
            report(progress)

        network = fit(network, data, encoded, config, model.labels, member, collect)
        networks.append(network)
        model.state |= {
            f"member{member}.{key}": value.detach().cpu().contiguous().numpy()
            for key, value in network.state_dict().items()
        }
    _finish(model, networks, data, encoded)
    model.training |= {
        "config": asdict(config),
        "tables": [Path(table).name for table in tables],
        "spectra": {part: int(data.index(part).size) for part in dataset.PARTS},
        "history": history,
    }
    model.provenance = provenance or {}
    checkpoint.save(model, output, half=config.half)
    return model


def _new_model(
    name: str, data: Dataset, config: TrainConfig, start: checkpoint.Model | None
) -> checkpoint.Model:
    table = data.tables[0]
    train_labels = data.labels[data.index("train")]
    fitted = [
        labels.get(target).fitted(train_labels[:, i])
        for i, target in enumerate(config.target)
    ]
    architecture, options = config.model, {}
    if start is not None:
        fitted = _inherit(fitted, start, config)
        architecture, options = start.architecture, start.config
    options = {**options, **config.network}
    return checkpoint.Model(
        name=name,
        architecture=architecture,
        config=options,
        pixels=table.pixels,
        labels=fitted,
        recipe=table.recipe,
        wavelength=table.wavelength,
    )


def _inherit(
    fitted: list[Label], start: checkpoint.Model, config: TrainConfig
) -> list[Label]:
    """Keep the model units of the model to start from, with the new trained range."""
    names = [label.name for label in start.labels]
    if names != [label.name for label in fitted]:
        raise UsageError(
            f"'{config.init}' predicts {', '.join(names)}, the target is "
            f"{', '.join(config.target)}. Give --target {','.join(names)}."
        )
    return [
        replace(old, trained=new.trained)
        for old, new in zip(start.labels, fitted, strict=True)
    ]


def _initial(
    model: checkpoint.Model, start: checkpoint.Model | None, member: int, seed: int
) -> nn.Module:
    torch.manual_seed(seed)
    if start is not None:
        same_shape = start.config | model.config == start.config
        if start.pixels == model.pixels and same_shape:
            networks = start.networks()
            return networks[member % len(networks)].train()
        network = _build(model)
        weights = start.networks()[member % len(start.members)].state_dict()
        network.load_state_dict(weights)
        return network
    return _build(model)


def _build(model: checkpoint.Model) -> nn.Module:
    return models.build(
        model.architecture,
        pixels=model.pixels,
        labels=len(model.labels),
        **model.config,
    )


def _encode(fitted: list[Label], values: np.ndarray) -> Tensor:
    columns = [label.encode(values[:, i]) for i, label in enumerate(fitted)]
    return torch.from_numpy(np.stack(columns, axis=1).astype(np.float32))


def fit(
    network: nn.Module,
    data: Dataset,
    encoded: Tensor,
    config: TrainConfig,
    fitted: list[Label],
    member: int,
    report: Callable[[Progress], None],
) -> nn.Module:
    """Train one network.

    Parameters
    ----------
    network : nn.Module
    data : Dataset
    encoded : Tensor, shape (spectrum, label)
        Labels in model units, NaN where missing.
    config : TrainConfig
    fitted : list of Label
    member : int
        Number within the ensemble, for reports.
    report : callable

    Returns
    -------
    nn.Module
        With the running mean of the weights, in evaluation mode.
    """
    generator = torch.Generator().manual_seed(config.seed + member)
    index = data.index("train")
    steps_per_epoch = math.ceil(len(index) / config.batch_size)
    total = steps_per_epoch * config.epochs
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: _cosine(step, total, config.warmup)
    )
    average = _Average(network, config.average)
    begin = time.monotonic()
    for epoch in range(config.epochs):
        network.train()
        order = index[torch.randperm(len(index), generator=generator).numpy()]
        losses = []
        for flux, ivar, truth in _batches(data, encoded, order, config.batch_size):
            flux, ivar = augment(flux, ivar, config, generator)
            loss = _step(network, optimizer, config, flux, ivar, truth)
            schedule.step()
            average.update(network)
            losses.append(loss)
        train_loss = float(np.mean(losses))
        if not math.isfinite(train_loss):
            raise StellarError(
                f"the loss is {train_loss} in epoch {epoch + 1}. Lower learning_rate "
                f"(now {config.learning_rate:g}) or clip (now {config.clip:g}), and "
                "look for wrong labels with --select."
            )
        elapsed = time.monotonic() - begin
        done = epoch + 1
        validation, errors = _validate(average.network, data, encoded, config, fitted)
        report(
            Progress(
                member=member,
                epoch=done,
                train_loss=train_loss,
                validation_loss=validation,
                mae=errors,
                learning_rate=schedule.get_last_lr()[0],
                rate=done * len(index) / elapsed,
                remaining=elapsed / done * (config.epochs - done),
            )
        )
    return average.network.eval()


def _cosine(step: int, total: int, warmup: float) -> float:
    rise = max(1, int(total * warmup))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, total - rise)))


class _Average:
    """Exponential running mean of a network's weights."""

    def __init__(self, network: nn.Module, decay: float):
        self.decay = decay
        self.steps = 0
        self.network = network
        if decay:
            self.network = torch.optim.swa_utils.AveragedModel(network).module
            self.network.requires_grad_(False)

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Take in the weights of one step."""
        if not self.decay:
            return
        self.steps += 1
        # the first steps weigh more, so that the start is forgotten quickly
        decay = min(self.decay, self.steps / (self.steps + 10))
        pairs = zip(
            self.network.state_dict().values(),
            network.state_dict().values(),
            strict=True,
        )
        for mean, new in pairs:
            if mean.is_floating_point():
                mean.lerp_(new, 1 - decay)
            else:
                mean.copy_(new)


def _batches(
    data: Dataset, encoded: Tensor, order: np.ndarray, size: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield batches, reading the next one while the network works on this one."""

    def read(start: int) -> tuple[Tensor, Tensor, Tensor]:
        index = order[start : start + size]
        flux, ivar = data.spectra(index)
        return torch.from_numpy(flux), torch.from_numpy(ivar), encoded[index]

    starts = range(0, len(order), size)
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(read, starts[0]) if len(starts) else None
        for start in starts:
            batch = coming.result()
            if start + size < len(order):
                coming = pool.submit(read, start + size)
            yield batch


def use_bfloat16(precision: str) -> bool:
    """Decide whether to compute in bfloat16."""
    if precision != "auto":
        return precision == "bfloat16"
    return bool(torch.backends.mkldnn.is_available()) and any(
        flag in _cpu_flags() for flag in ("amx_bf16", "avx512_bf16")
    )


def _cpu_flags() -> str:
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""


def _step(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    config: TrainConfig,
    flux: Tensor,
    ivar: Tensor,
    truth: Tensor,
) -> float:
    known = torch.isfinite(truth)
    with torch.autocast("cpu", torch.bfloat16, enabled=use_bfloat16(config.precision)):
        mean, log_variance = network(flux, ivar)
    loss = LOSSES[config.loss](
        mean.float(), log_variance.float(), torch.where(known, truth, 0)
    )
    loss = masked_mean(loss, known)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if config.clip:
        nn.utils.clip_grad_norm_(network.parameters(), config.clip)
    optimizer.step()
    return loss.item()


@torch.no_grad()
def predict_encoded(
    network: nn.Module, data: Dataset, index: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and log variance in model units, each (spectrum, label)."""
    network.eval()
    means, log_variances = [], []
    for start in range(0, len(index), EVALUATION_BATCH):
        flux, ivar = data.spectra(index[start : start + EVALUATION_BATCH])
        mean, log_variance = network(torch.from_numpy(flux), torch.from_numpy(ivar))
        means.append(mean.numpy())
        log_variances.append(log_variance.numpy())
    return np.concatenate(means), np.concatenate(log_variances)


def _validate(
    network: nn.Module,
    data: Dataset,
    encoded: Tensor,
    config: TrainConfig,
    fitted: list[Label],
) -> tuple[float, dict[str, float]]:
    index = data.index("validation")
    if not index.size:
        return math.nan, {}
    mean, log_variance = predict_encoded(network, data, index)
    truth = encoded[index]
    known = torch.isfinite(truth)
    loss = LOSSES[config.loss](
        torch.from_numpy(mean),
        torch.from_numpy(log_variance),
        torch.where(known, truth, 0),
    )
    errors = {
        label.name: metrics.mae(
            metrics.residuals(label.decode(mean[:, i]), data.labels[index, i])
        )
        for i, label in enumerate(fitted)
    }
    return masked_mean(loss, known).item(), errors


def combine(
    means: list[np.ndarray], log_variances: list[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of an equal mixture of Gaussians.

    σ² = mean(σᵢ² + μᵢ²) − μ² (Lakshminarayanan et al. 2017, arXiv:1612.01474), written
    so that large means don't cancel.
    """
    stack = np.stack(means)
    mean = stack.mean(axis=0)
    variance = np.exp(np.stack(log_variances)).mean(axis=0)
    return mean, variance + np.square(stack - mean).mean(axis=0)


def _finish(
    model: checkpoint.Model,
    networks: list[nn.Module],
    data: Dataset,
    encoded: Tensor,
) -> None:
    """Calibrate on the validation rows what the catalogue says about its values."""
    index = data.index("train")
    rng = np.random.default_rng(0)
    sample = rng.permutation(index)[: novelty.ROWS]
    unlike = novelty.fit(*data.spectra(np.sort(sample)))
    held = data.index("validation")
    # without validation rows the training ones must do, too optimistic as they are
    judge = held if held.size >= 50 else sample
    novelty.calibrate(unlike, novelty.score(*data.spectra(judge), unlike))
    model.state |= {f"novelty.{key}": value for key, value in unlike.items()}
    outputs = [predict_encoded(network, data, judge) for network in networks]
    mean, variance = combine(*map(list, zip(*outputs, strict=True)))
    error = np.sqrt(variance)
    truth = encoded[judge].numpy()
    model.error_scale = []
    results: dict[str, Any] = {}
    for i, label in enumerate(model.labels):
        known = np.isfinite(truth[:, i])
        ratio = np.abs(mean[known, i] - truth[known, i]) / error[known, i]
        # one number per label: the share within one sigma becomes that of a Gaussian
        model.error_scale.append(float(np.quantile(ratio, 0.6827)))
        predicted = label.decode(mean[:, i])
        results[label.name] = metrics.summary(
            predicted,
            data.labels[judge, i],
            label.decode_error(mean[:, i], error[:, i]) * model.error_scale[i],
        )
    model.limits = {"large_error": 0.5}  # of the training labels' spread
    kind = "validation" if judge is held else "train"
    model.training |= {"judged_on": kind, "metrics": json.loads(json.dumps(results))}
