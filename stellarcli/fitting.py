"""Fitting one network: the loop, its schedule, its running mean of the weights."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stellarcli import feeding, losses, metrics
from stellarcli.calibration import predict_encoded
from stellarcli.dataset import Dataset
from stellarcli.devices import has_bfloat16
from stellarcli.errors import StellarError, UsageError, unknown
from stellarcli.labels import Label
from stellarcli.processes import World
from stellarcli.resuming import Snapshot, State, part, prefixed
from stellarcli.settings import TrainConfig

log = logging.getLogger(__name__)

ROUNDING = 0.05  # relative; right results differ by less than 0.01 in bfloat16
CHECKED = 50  # steps after which the loss is looked at


@dataclass
class Progress:
    """What a running training says about itself after an epoch.

    Attributes
    ----------
    member, epoch : int
        Counted from 1.
    train_loss, validation_loss : float
        NaN without validation rows.
    mae : dict
        Validation error per label, in the label's unit.
    learning_rate : float
        Of the epoch's last step.
    rate : float
        Spectra per second.
    remaining : float
        Estimate for all networks of the ensemble, s.
    """

    member: int
    epoch: int
    train_loss: float
    validation_loss: float
    mae: dict[str, float]
    learning_rate: float
    rate: float
    remaining: float


def encode(fitted: list[Label], data: Dataset) -> tuple[Tensor, Tensor]:
    """Labels, and the variance of their errors, in model units.

    Returns
    -------
    truth, noise : Tensor of float32, shape (spectrum, label)
        Truth is NaN where missing, noise 0 where the error isn't known.
    """
    truth = [label.encode(data.labels[:, i]) for i, label in enumerate(fitted)]
    noise = [
        np.square(label.encode_error(data.labels[:, i], data.errors[:, i]))
        for i, label in enumerate(fitted)
    ]
    return tuple(
        torch.from_numpy(np.nan_to_num(np.stack(c, axis=1), nan=fill).astype("f4"))
        for c, fill in ((truth, np.nan), (noise, 0.0))
    )


def label_weights(config: TrainConfig, fitted: list[Label]) -> Tensor:
    """Weights of the labels in a loss of model units, (label,).

    A squared error in the label's unit is that in model units times the scale's square.
    """
    weights = torch.tensor(config.label_weights or (1.0,) * len(fitted))
    if config.weigh_in_units:
        weights = weights * torch.tensor([label.scale**2 for label in fitted])
    return weights


def fit_in_one_go(
    network: nn.Module, data: Dataset, fitted: list[Label], seed: int
) -> None:
    """Fit a model that needs no descent, on all training spectra at once."""
    index = data.index("train")
    truth, _ = encode(fitted, data)
    network.fit(*data.feed(index).values(), truth[index].numpy(), seed)


class Fitter:
    """Fit one network by gradient descent.

    Parameters
    ----------
    network : nn.Module
    data : Dataset
    fitted : list of Label
    config : TrainConfig
    member : int
        Number within the ensemble.
    world : World
    """

    def __init__(
        self,
        network: nn.Module,
        data: Dataset,
        fitted: list[Label],
        config: TrainConfig,
        member: int,
        world: World,
    ):
        self.network, self.data, self.fitted = network, data, fitted
        self.config, self.member, self.world = config, member, world
        self.truth, self.noise = encode(fitted, data)
        self.weights = label_weights(config, fitted).to(world.device)
        self.index = data.index("train")
        self.steps_per_epoch = count_steps(
            len(self.index), config.batch_size, world.size
        )
        self.generator = torch.Generator()
        self.average = Average(network, config.average)
        self.frozen = freeze(network, config.freeze)
        self.optimizer = make_optimizer(network, config)
        self.reduced = self._may_reduce()
        self.parallel = world.wrap(network)
        self.epoch = 0
        self.best = math.inf
        self.stale = 0
        self.best_weights: dict[str, Tensor] = {}
        self.history: list[dict[str, Any]] = []

    def _may_reduce(self) -> bool:
        """Say whether to compute in bfloat16: wanted, fast, and right."""
        precision, device = self.config.precision, self.world.device
        if precision == "float32" or (precision == "auto" and not has_bfloat16(device)):
            return False
        index = self.index[: -(-self.config.batch_size // self.world.size)]
        inputs = feeding.tensors(self.data.feed(index), device).values()
        right = all(self.world.gather(agrees_in_bfloat16(self.network, *inputs)))
        if not right:
            log.warning("bfloat16 is computed wrongly here; float32 is used instead")
        return right

    def run(self, state: State, report: Callable[[Progress], None]) -> nn.Module:
        """Train to the end and return the network to use, in evaluation mode."""
        if interrupted := state.take(self.member):
            self.restore(*interrupted)
        begin, first = time.monotonic(), self.epoch
        while self.epoch < self.config.epochs and not self._stopped:
            loss = self._train_epoch()
            self.epoch += 1
            validation, errors = self._validate()
            self._remember(validation)
            elapsed = time.monotonic() - begin
            done = self.epoch - first
            progress = Progress(
                member=self.member + 1,
                epoch=self.epoch,
                train_loss=loss,
                validation_loss=validation,
                mae=errors,
                learning_rate=self.optimizer.param_groups[0]["lr"],
                rate=done * len(self.index) / elapsed,
                remaining=elapsed / done * self._epochs_left,
            )
            self.history.append(asdict(progress))
            state.store(self.member, self.snapshot())
            if self.world.first:
                report(progress)
        network = self.average.network
        if self.best_weights:
            network.load_state_dict(self.best_weights)
        return network.eval()

    @property
    def _stopped(self) -> bool:
        return 0 < self.config.patience <= self.stale

    @property
    def _epochs_left(self) -> int:
        """Of this network and those after it."""
        others = self.config.members - self.member - 1
        own = 0 if self._stopped else self.config.epochs - self.epoch
        return own + others * self.config.epochs

    def snapshot(self) -> Snapshot:
        """Return everything that the next epoch depends on.

        Random numbers aren't part of it: each epoch has its own seed.
        """
        tensors = {
            **prefixed("network", self.network.state_dict()),
            **prefixed("average", self.average.network.state_dict()),
            **prefixed("best", self.best_weights),
        }
        for number, values in self.optimizer.state_dict()["state"].items():
            tensors |= prefixed(f"optimizer.{number}", values)
        notes = {
            "epoch": self.epoch,
            "best": self.best,
            "stale": self.stale,
            "steps": self.average.steps,
            "history": self.history,
        }
        return tensors, notes

    def restore(self, tensors: dict[str, Tensor], notes: dict[str, Any]) -> None:
        """Go back to a snapshot."""
        self.network.load_state_dict(part("network", tensors))
        self.average.network.load_state_dict(part("average", tensors))
        self.average.steps = notes["steps"]
        self.best_weights = part("best", tensors)
        saved = self.optimizer.state_dict()
        trained = self.optimizer.param_groups[0]["params"]
        for number, parameter in enumerate(trained):
            found = part(f"optimizer.{number}", tensors)
            saved["state"][number] = {
                # in the order of memory that the parameter has, like a moment born here
                key: torch.empty_like(parameter, device="cpu").copy_(value)
                if value.shape == parameter.shape and key != "step"
                else value
                for key, value in found.items()
            }
        self.optimizer.load_state_dict(saved)
        self.epoch, self.best = notes["epoch"], notes["best"]
        self.stale, self.history = notes["stale"], notes["history"]

    def _remember(self, validation: float) -> None:
        """Keep the best weights where early stopping was asked for."""
        if not self.config.patience or not math.isfinite(validation):
            return
        self.stale += 1
        if validation < self.best:
            self.best, self.stale = validation, 0
            weights = self.average.network.state_dict()
            self.best_weights = {k: v.detach().clone() for k, v in weights.items()}

    def _train_epoch(self) -> float:
        """Take the steps of one epoch; returns the mean loss."""
        self.parallel.train()
        for module in self.frozen:
            module.eval()  # else batch statistics would go on moving
        if self.data.redraw(self.epoch):
            self.truth, self.noise = encode(self.fitted, self.data)
        what = (self.member, self.epoch)
        self.generator.manual_seed(self.config.random_seed("order", *what))
        torch.manual_seed(self.config.random_seed("dropout", *what, self.world.rank))
        shuffled = torch.randperm(len(self.index), generator=self.generator).numpy()
        total = torch.zeros(2, device=self.world.device)
        for number, batch in enumerate(self._batches(self.index[shuffled])):
            self._set_rate(self.epoch * self.steps_per_epoch + number)
            total += self._step(*batch)
            self.average.update(self.network)
            if number % CHECKED == CHECKED - 1:
                self._check(total, number + 1)
        self._check(total, self.steps_per_epoch)
        return (total[0] / total[1]).item()

    def _check(self, total: Tensor, step: int) -> None:
        """Stop where the loss is no number any more."""
        value, weight = total.tolist()
        if math.isfinite(value) and weight > 0:
            return
        raise StellarError(
            f"the loss is {value:g} in epoch {self.epoch + 1} of {self.config.epochs}, "
            f"by step {step} of {self.steps_per_epoch}. Lower learning_rate (now "
            f"{self.config.learning_rate:g}) or clip (now {self.config.clip:g}), give "
            "precision=float32, and look for wrong labels with --select."
        )

    def _set_rate(self, step: int) -> None:
        rate = self.config.learning_rate * rate_factor(
            self.config, step, self.steps_per_epoch
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def _batches(self, order: np.ndarray) -> Iterator[tuple[Tensor, ...]]:
        """Yield batches, making the next one while the network works on this one."""
        size = self.config.batch_size

        def make(start: int) -> tuple[Tensor, ...]:
            index = order[start : start + size]
            share = self.world.part(len(index))
            mine = index[share]
            varied = self.config.augmentation.any
            feed = feeding.tensors(self.data.feed(index if varied else mine))
            if varied:
                spectra = [feed[name] for name in feeding.SPECTRUM]
                feed = {name: tensor[share] for name, tensor in feed.items()}
                spectra = self.config.augmentation(*spectra, self.generator, share)
                feed |= zip(feeding.SPECTRUM, spectra, strict=True)
            batch = *feed.values(), self.truth[mine], self.noise[mine]
            return tuple(tensor.to(self.world.device) for tensor in batch)

        starts = [number * size for number in range(self.steps_per_epoch)]
        with ThreadPoolExecutor(1) as pool:
            coming = pool.submit(make, starts[0])
            for following in [*starts[1:], None]:
                batch = coming.result()
                if following is not None:
                    coming = pool.submit(make, following)
                yield batch

    def _step(self, *batch: Tensor) -> Tensor:
        """Take one step; returns summed loss and weight of all processes."""
        value, weight = self._loss(self.parallel, *batch)
        both = self.world.sum(value, weight)
        # gradients are averaged over processes, hence the factor
        loss = value * (self.world.size / both[1].clamp_min(1e-12))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.config.clip:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.config.clip)
        self.optimizer.step()
        return both

    def _loss(self, network: nn.Module, *batch: Tensor) -> tuple[Tensor, Tensor]:
        """Return summed loss and weight for inputs, truth and noise."""
        *inputs, truth, noise = batch
        known = torch.isfinite(truth)
        kind = self.world.device.type
        with torch.autocast(kind, torch.bfloat16, enabled=self.reduced):
            mean, log_variance = network(*inputs)
        loss = losses.LOSSES[self.config.loss](
            mean.float(), log_variance.float(), torch.where(known, truth, 0), noise
        )
        return losses.total(loss, known, self.weights)

    @torch.no_grad()
    def _validate(self) -> tuple[float, dict[str, float]]:
        """Return loss and MAE of the validation rows, the same in every process."""
        index = self.data.index("validation")
        if not index.size:
            return math.nan, {}
        mine = index[self.world.part(len(index))]
        shares = self.world.gather(
            predict_encoded(self.average.network, self.data, mine)
        )
        mean, log_variance = map(np.concatenate, zip(*shares, strict=True))
        truth = self.truth[index]
        known = torch.isfinite(truth)
        loss = losses.LOSSES[self.config.loss](
            torch.from_numpy(mean),
            torch.from_numpy(log_variance),
            torch.where(known, truth, 0),
            self.noise[index],
        )
        value, weight = losses.total(loss, known, self.weights.cpu())
        errors = {
            label.name: metrics.mae(
                metrics.residuals(label.decode(mean[:, i]), self.data.labels[index, i])
            )
            for i, label in enumerate(self.fitted)
        }
        return (value / weight).item(), errors


def agrees_in_bfloat16(network: nn.Module, *inputs: Tensor) -> bool:
    """Say whether every layer's bfloat16 is its float32 but for rounding.

    It isn't for convolutions of some shapes (oneDNN of PyTorch 2.13 on a CPU with AMX:
    2 to 4 channels with a kernel of 64 gives unrelated numbers), whereupon training
    would find weights that are of no use in any other precision.

    Parameters
    ----------
    network : nn.Module
    *inputs : Tensor
        What it is fed: a batch as large as those of the training.
    """
    seen: list[tuple[nn.Module, Tensor]] = []
    hooks = [
        layer.register_forward_hook(lambda m, x, _: seen.append((m, x[0].detach())))
        for layer in network.modules()
        if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Linear)
    ]
    network.eval()
    with torch.no_grad(), torch.autocast(inputs[0].device.type, torch.bfloat16):
        network(*inputs)
    for hook in hooks:
        hook.remove()
    return all(_layer_agrees(layer, values.float()) for layer, values in seen)


def _layer_agrees(layer: nn.Module, values: Tensor) -> bool:
    """Compare a layer's output and gradients in both precisions."""
    values.requires_grad_()
    sources = [values, *(p for p in layer.parameters() if p.requires_grad)]
    with torch.autocast(values.device.type, enabled=False):
        exact = layer(values)
    with torch.autocast(values.device.type, torch.bfloat16):
        reduced = layer(values)
    after = exact.detach()
    pairs = [
        (exact, reduced),
        *zip(
            torch.autograd.grad(exact, sources, after),
            torch.autograd.grad(reduced, sources, after.to(reduced.dtype)),
            strict=True,
        ),
    ]
    return all(
        torch.linalg.norm(b.float() - a) <= ROUNDING * torch.linalg.norm(a) + 1e-9
        for a, b in pairs
    )


def freeze(network: nn.Module, parts: tuple[str, ...]) -> list[nn.Module]:
    """Exclude parts of a network, such as ``trunk`` or ``trunk.0``, from training.

    Returns
    -------
    list of nn.Module
        The modules with nothing left to train, to be kept in evaluation mode.

    Raises
    ------
    UsageError
        If there is no such part, or nothing is left to train.
    """

    def belongs(name: str, top: str) -> bool:
        return name == top or name.startswith(f"{top}.")

    named = dict(network.named_parameters())
    for top in parts:
        if not any(belongs(name, top) for name in named):
            tops = dict.fromkeys(name.split(".")[0] for name in named)
            raise unknown("part of the network", top, tops)
    for name, parameter in named.items():
        parameter.requires_grad_(not any(belongs(name, top) for top in parts))
    if not any(p.requires_grad for p in named.values()):
        raise UsageError("--freeze leaves nothing to train; name fewer parts.")
    return [
        module
        for name, module in network.named_modules()
        if any(belongs(name, top) for top in parts)
    ]


def make_optimizer(network: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Return the optimiser of what isn't frozen."""
    kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[config.optimizer]
    return kind(
        [p for p in network.parameters() if p.requires_grad],
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        fused=True,  # one pass over the weights: with millions of them half of a step
    )


def count_steps(rows: int, batch: int, processes: int) -> int:
    """Return the batches of an epoch.

    A last one with less than two spectra per process is left out: batch statistics
    wouldn't exist.

    Raises
    ------
    UsageError
        If a batch has no spectrum for every process.
    """
    if min(rows, batch) < processes:
        raise UsageError(
            f"batches of {min(rows, batch)} spectra can't be shared by {processes} "
            "processes; raise batch_size or start fewer."
        )
    whole, rest = divmod(rows, batch)
    return max(1, whole + (rest >= 2 * processes))


def rate_factor(config: TrainConfig, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of a step over the configured one.

    ``cosine`` falls once to zero; ``restarts`` falls in every cycle (Loshchilov &
    Hutter 2017, arXiv:1608.03983) to 1e-5 of it.
    """
    total = config.epochs * steps_per_epoch
    rise = int(total * config.warmup)
    if step < rise:
        return (step + 1) / rise
    if config.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, total - rise)))
    if config.schedule == "restarts":
        cycle = config.restart_epochs * steps_per_epoch
        phase = (step - rise) % cycle / cycle
        return 1e-5 + (1 - 1e-5) * 0.5 * (1 + math.cos(math.pi * phase))
    return 1.0


class Average:
    """Exponential running mean of a network's weights; decay 0 is the network itself.

    The first steps weigh more, so that the start is forgotten quickly.
    """

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
        decay = min(self.decay, self.steps / (self.steps + 10))
        means, news = self.network.state_dict(), network.state_dict()
        for name, mean in means.items():
            if mean.is_floating_point():
                mean.lerp_(news[name], 1 - decay)
            else:
                mean.copy_(news[name])
