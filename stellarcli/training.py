"""Training one model: data, the loop, ensembles, resuming, several processes.

Under ``torchrun`` every process takes its share of each batch; gradients are averaged
so that the losses are those of one process with the whole batch (exactly so for
networks without batch statistics; batch normalisation uses each process's own share).
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stellarcli import (
    calibration,
    checkpoint,
    curves,
    dataset,
    labels,
    losses,
    metrics,
    models,
)
from stellarcli.calibration import predict_encoded
from stellarcli.catalog import Table
from stellarcli.dataset import Dataset
from stellarcli.devices import choose_device, has_bfloat16
from stellarcli.errors import StellarError, UsageError
from stellarcli.labels import Label
from stellarcli.settings import TrainConfig

log = logging.getLogger(__name__)


@dataclass
class Progress:
    """What a running training says about itself after an epoch.

    Attributes
    ----------
    member, epoch : int
        Counted from 1.
    train_loss, validation_loss : float
    mae : dict
        Validation error per label, in the label's unit.
    learning_rate : float
    rate : float
        Spectra per second.
    remaining : float
        Estimate for this network, s.
    """

    member: int
    epoch: int
    train_loss: float
    validation_loss: float
    mae: dict[str, float]
    learning_rate: float
    rate: float
    remaining: float


class World:
    """The processes that train together; one, unless ``torchrun`` started more."""

    def __init__(self, device: str):
        self.size = int(os.environ.get("WORLD_SIZE", 1))
        self.rank = int(os.environ.get("RANK", 0))
        if device.startswith("cuda") and self.size > 1:
            device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
        self.device = torch.device(device)
        if self.size > 1 and not torch.distributed.is_initialized():
            backend = "nccl" if self.device.type == "cuda" else "gloo"
            torch.distributed.init_process_group(backend)

    def part(self, count: int) -> slice:
        """Return this process's share of a batch."""
        return slice(
            count * self.rank // self.size, count * (self.rank + 1) // self.size
        )

    def wrap(self, network: nn.Module) -> nn.Module:
        """Let gradients be averaged over processes."""
        if self.size == 1:
            return network
        return nn.parallel.DistributedDataParallel(network)

    def sum(self, *values: Tensor) -> Tensor:
        """Sum scalars over processes."""
        stack = torch.stack([value.detach() for value in values])
        if self.size > 1:
            torch.distributed.all_reduce(stack)
        return stack


def train(
    tables: list[str],
    output: Path,
    config: TrainConfig,
    *,
    catalogue: Table | None = None,
    resume: bool = False,
    report: Callable[[Progress], None] = lambda _: None,
    provenance: dict[str, Any] | None = None,
) -> checkpoint.Model:
    """Train a model from prepared tables and write its file.

    Parameters
    ----------
    tables : list of str
    output : Path
    config : TrainConfig
    catalogue : Table, optional
        Labels that the tables lack.
    resume : bool
        Go on after the last finished epoch of an interrupted run.
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
        If the loss stops being a number, or memory runs out.
    """
    torch.set_flush_denormal(True)  # such numbers mean nothing here and cost much
    world = World(choose_device(config.device))
    data = dataset.load(tables, config, catalogue)
    start = checkpoint.load(config.init) if config.init else None
    model = new_model(output.stem, data, config, start)
    state = State(output, _digest(config, tables, data))
    state.open(resume, write=world.rank == 0)
    history: list[dict[str, Any]] = []
    networks = []
    for member in range(config.members):
        torch.manual_seed(config.network_seed + member)
        network = _initial(model, start, member).to(world.device)
        fitter = Fitter(network, data, model.labels, config, member, world)
        with _explained(config):
            networks.append(fitter.run(state, report).cpu())
        history += fitter.history
        if config.half:
            _round(networks[-1])
        model.state |= {
            f"member{member}.{key}": value.contiguous().numpy()
            for key, value in networks[-1].state_dict().items()
        }
    calibration.finish(model, networks, data)
    model.training |= {
        "config": config.to_json(),
        "tables": [Path(table).name for table in tables],
        "spectra": {part: int(data.index(part).size) for part in dataset.PARTS},
        "history": history,
    }
    model.provenance = provenance or {}
    if world.rank == 0:
        checkpoint.save(model, output, half=config.half)
        data.write_split(output.with_suffix(".split.fits"))
        curves.draw(model, _by_part(model, data), output.with_suffix(".png"))
        state.remove()
    return model


def _by_part(model: checkpoint.Model, data: Dataset) -> dict:
    return {
        part: {
            label.name: data.labels[data.index(part), i]
            for i, label in enumerate(model.labels)
        }
        for part in dataset.PARTS
    }


def new_model(
    name: str, data: Dataset, config: TrainConfig, start: checkpoint.Model | None
) -> checkpoint.Model:
    """Return a model without weights: what to build, from which data."""
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
    return checkpoint.Model(
        name=name,
        architecture=architecture,
        config={**options, **config.network},
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
    model: checkpoint.Model, start: checkpoint.Model | None, member: int
) -> nn.Module:
    """Build a network, with the weights to start from if there are any."""
    network = models.build(
        model.architecture,
        pixels=model.pixels,
        labels=len(model.labels),
        **model.config,
    )
    if start is not None:
        networks = start.networks()
        weights = networks[member % len(networks)].state_dict()
        try:
            network.load_state_dict(weights)
        except RuntimeError as error:
            raise UsageError(
                f"the network's options don't fit the model to start from: "
                f"{' '.join(str(error).split())}"
            ) from None
    return network


def _round(network: nn.Module) -> None:
    """Give weights the digits that the file keeps, before anything is judged."""
    for tensor in network.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(tensor.half())


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


class Fitter:
    """Fit one network.

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
        weights = config.label_weights or (1.0,) * len(fitted)
        self.weights = torch.tensor(weights, device=world.device)
        self.index = data.index("train")
        self.generator = torch.Generator().manual_seed(config.network_seed + member)
        self.average = Average(network, config.average)
        self.optimizer = self._optimizer()
        self.parallel = world.wrap(network)
        self.reduced = config.precision == "bfloat16" or (
            config.precision == "auto" and has_bfloat16(world.device)
        )
        self.epoch = 0
        self.best = math.inf
        self.stale = 0
        self.best_weights: dict[str, Tensor] = {}
        self.history: list[dict[str, Any]] = []

    def _optimizer(self) -> torch.optim.Optimizer:
        names = [name for name, _ in self.network.named_parameters()]
        for part in self.config.freeze:
            hit = [name for name in names if name.startswith(part)]
            if not hit:
                tops = sorted({name.split(".")[0] for name in names})
                raise UsageError(
                    f"nothing in {self.config.model} is called {part!r}, so it can't be"
                    f" frozen. Parts: {', '.join(tops)}."
                )
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad_(
                not any(name.startswith(part) for part in self.config.freeze)
            )
        trainable = [p for p in self.network.parameters() if p.requires_grad]
        if not trainable:
            raise UsageError("--freeze leaves nothing to train.")
        kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}
        return kind[self.config.optimizer](
            trainable,
            lr=self.config.learning_rate,
            weight_decay=self.config.weight_decay,
        )

    @property
    def steps_per_epoch(self) -> int:
        """Batches per epoch; a last one smaller than the processes are is left out."""
        whole, rest = divmod(len(self.index), self.config.batch_size)
        return whole + (rest >= self.world.size)

    def run(self, state: State, report: Callable[[Progress], None]) -> nn.Module:
        """Train to the end and return the network to use, in evaluation mode."""
        state.restore(self)
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
                remaining=elapsed / done * (self.config.epochs - self.epoch),
            )
            self.history.append(asdict(progress))
            if self.world.rank == 0:
                state.store(self)
                report(progress)
        network = self.average.network
        if self.best_weights:
            network.load_state_dict(self.best_weights)
        return network.eval()

    @property
    def _stopped(self) -> bool:
        return 0 < self.config.patience <= self.stale

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
        self.parallel.train()
        shuffled = torch.randperm(len(self.index), generator=self.generator).numpy()
        order = self.index[shuffled]
        total = torch.zeros(2, device=self.world.device)
        for number, batch in enumerate(self._batches(order)):
            self._set_rate(self.epoch * self.steps_per_epoch + number)
            total += self._step(*batch)
            self.average.update(self.network)
        loss = (total[0] / total[1]).item()
        if not math.isfinite(loss):
            raise StellarError(
                f"the loss is {loss} in epoch {self.epoch + 1}. Lower learning_rate "
                f"(now {self.config.learning_rate:g}) or clip (now "
                f"{self.config.clip:g}), and look for wrong labels with --select."
            )
        return loss

    def _set_rate(self, step: int) -> None:
        rate = self.config.learning_rate * rate_factor(
            self.config, step, self.steps_per_epoch
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def _batches(self, order: np.ndarray) -> Iterator[tuple[Tensor, ...]]:
        """Yield batches, reading the next one while the network works on this one."""
        size = self.config.batch_size
        starts = [n * size for n in range(self.steps_per_epoch)]

        def read(start: int) -> tuple[np.ndarray, Tensor, Tensor]:
            index = order[start : start + size]
            flux, ivar = self.data.spectra(index)
            return index, torch.from_numpy(flux), torch.from_numpy(ivar)

        with ThreadPoolExecutor(1) as pool:
            coming = pool.submit(read, starts[0])
            for following in [*starts[1:], None]:
                index, flux, ivar = coming.result()
                if following is not None:
                    coming = pool.submit(read, following)
                part = self.world.part(len(index))
                flux, ivar = self.config.augmentation(flux, ivar, self.generator, part)
                mine = index[part]
                batch = flux, ivar, self.truth[mine], self.noise[mine]
                yield tuple(tensor.to(self.world.device) for tensor in batch)

    def _step(self, flux: Tensor, ivar: Tensor, truth: Tensor, noise: Tensor) -> Tensor:
        """Take one step; returns summed loss and weight of all processes."""
        value, weight = self._loss(self.parallel, flux, ivar, truth, noise)
        both = self.world.sum(value, weight)
        # gradients are averaged over processes, hence the factor
        loss = value * (self.world.size / both[1].clamp_min(1e-12))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.config.clip:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.config.clip)
        self.optimizer.step()
        return both

    def _loss(
        self,
        network: nn.Module,
        flux: Tensor,
        ivar: Tensor,
        truth: Tensor,
        noise: Tensor,
    ) -> tuple[Tensor, Tensor]:
        known = torch.isfinite(truth)
        kind = self.world.device.type
        with torch.autocast(kind, torch.bfloat16, enabled=self.reduced):
            mean, log_variance = network(flux, ivar)
        loss = losses.LOSSES[self.config.loss](
            mean.float(), log_variance.float(), torch.where(known, truth, 0), noise
        )
        return losses.total(loss, known, self.weights)

    @torch.no_grad()
    def _validate(self) -> tuple[float, dict[str, float]]:
        index = self.data.index("validation")
        if not index.size:
            return math.nan, {}
        network = self.average.network
        mean, log_variance = predict_encoded(network, self.data, index)
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


@dataclass
class State:
    """The state of an unfinished run, in a hidden file beside the output.

    Tensors and JSON only; written under a temporary name and renamed, so that a run
    that is killed at any moment goes on after its last whole epoch.

    Parameters
    ----------
    output : Path
        Of the model.
    digest : str
        Of settings and data: another run's state is refused.
    """

    output: Path
    digest: str
    found: tuple[dict[str, Tensor], dict[str, Any]] | None = None
    finished: dict[int, dict[str, Tensor]] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """Return the file."""
        return self.output.with_name(f".{self.output.name}.state")

    def open(self, resume: bool, write: bool) -> None:
        """Read what an interrupted run left, or clear it away.

        Raises
        ------
        UsageError
            If it is another run's.
        """
        if resume and self.path.exists():
            from safetensors import safe_open

            with safe_open(self.path, "pt") as file:
                notes = json.loads(file.metadata()["state"])
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            if notes["digest"] != self.digest:
                raise UsageError(
                    f"'{self.path}' is the state of a run with other settings or data. "
                    "Give the same ones, or leave --resume out to start anew."
                )
            self.found = tensors, notes
        elif write:
            self.path.unlink(missing_ok=True)

    def store(self, fitter: Fitter) -> None:
        """Write everything that the next epoch depends on."""
        from safetensors.torch import save_file

        tensors = {
            "generator": fitter.generator.get_state(),
            "torch": torch.get_rng_state(),
            **_prefixed("network", fitter.network.state_dict()),
            **_prefixed("average", fitter.average.network.state_dict()),
            **_prefixed("best", fitter.best_weights),
        }
        for number, values in fitter.optimizer.state_dict()["state"].items():
            tensors |= _prefixed(f"optimizer.{number}", values)
        for member, weights in self.finished.items():
            tensors |= _prefixed(f"finished.{member}", weights)
        notes = {
            "digest": self.digest,
            "member": fitter.member,
            "epoch": fitter.epoch,
            "best": fitter.best,
            "stale": fitter.stale,
            "steps": fitter.average.steps,
            "history": fitter.history,
        }
        partial = self.path.with_suffix(".partial")
        plain = torch.contiguous_format
        unshared = {
            key: value.detach().cpu().clone(memory_format=plain)
            for key, value in tensors.items()
        }
        save_file(unshared, partial, metadata={"state": json.dumps(notes)})
        partial.replace(self.path)
        if fitter.epoch == fitter.config.epochs:
            weights = fitter.average.network.state_dict()
            self.finished[fitter.member] = weights

    def restore(self, fitter: Fitter) -> None:
        """Bring a fitter to where the interrupted run was."""
        if self.found is None:
            return
        tensors, notes = self.found
        if notes["member"] > fitter.member:
            weights = _part(f"finished.{fitter.member}", tensors)
            fitter.average.network.load_state_dict(weights)
            self.finished[fitter.member] = weights
            fitter.epoch = fitter.config.epochs
            return
        self.found = None
        fitter.network.load_state_dict(_part("network", tensors))
        fitter.average.network.load_state_dict(_part("average", tensors))
        fitter.average.steps = notes["steps"]
        fitter.best_weights = _part("best", tensors)
        groups = fitter.optimizer.state_dict()
        count = len(groups["param_groups"][0]["params"])
        groups["state"] = {n: _part(f"optimizer.{n}", tensors) for n in range(count)}
        fitter.optimizer.load_state_dict(groups)
        fitter.generator.set_state(tensors["generator"])
        torch.set_rng_state(tensors["torch"])
        fitter.epoch, fitter.best = notes["epoch"], notes["best"]
        fitter.stale, fitter.history = notes["stale"], notes["history"]

    def remove(self) -> None:
        """Drop the state: the model is written."""
        self.path.unlink(missing_ok=True)


def _prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{key}": value for key, value in tensors.items()}


def _part(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    start = f"{prefix}."
    return {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}


def _digest(config: TrainConfig, tables: list[str], data: Dataset) -> str:
    """Digest of everything that decides about the weights."""
    digest = hashlib.sha256(repr(config.to_json()).encode())
    digest.update(repr([Path(table).name for table in tables]).encode())
    for array in (data.labels, data.errors, data.table, data.row):
        digest.update(np.ascontiguousarray(array).tobytes())
    digest.update(data.part.astype("U10").tobytes())
    return digest.hexdigest()


class _explained:
    """Turn running out of memory into one sentence."""

    def __init__(self, config: TrainConfig):
        self.config = config

    def __enter__(self) -> None:
        """Nothing to open."""

    def __exit__(self, kind: type | None, error: BaseException | None, _: Any) -> None:
        """Re-raise as `StellarError` with what to try."""
        text = str(error).lower()
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or (
            isinstance(error, RuntimeError) and "allocate memory" in text
        ):
            raise StellarError(
                f"out of memory with batch_size {self.config.batch_size}. Lower it, or "
                "choose a narrower network (--set network.…)."
            ) from None
