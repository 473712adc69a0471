"""Training a model: data, the networks of an ensemble, the file.

Under ``torchrun`` every process takes its share of each batch; gradients are averaged
so that the losses are those of one process with the whole batch: exactly so for
networks without batch statistics. Batch normalisation uses each process's own share in
training, and its running statistics are those of the first process; with less than some
16 spectra per process choose a larger batch.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from stellarcli import (
    calibration,
    checkpoint,
    curves,
    dataset,
    feeding,
    labels,
    models,
    processes,
    resuming,
    settings,
)
from stellarcli.catalog import Table
from stellarcli.claims import claimed
from stellarcli.dataset import Dataset
from stellarcli.devices import choose_device, without_denormals
from stellarcli.errors import StellarError, UsageError, unknown
from stellarcli.fitting import Fitter, Progress, encode, fit_in_one_go
from stellarcli.labels import Label
from stellarcli.processes import World
from stellarcli.resuming import State
from stellarcli.settings import TrainConfig

log = logging.getLogger(__name__)

SETTLED = 2000  # spectra for the parts of networks that aren't trained
BESIDE = (".split.fits", ".png")  # what is written beside a model


def train(
    tables: list[str],
    output: Path,
    config: TrainConfig,
    *,
    catalogue: Table | None = None,
    resume: bool = False,
    report: Callable[[Progress], None] = lambda _: None,
    provenance: dict[str, Any] | None = None,
    unseen: calibration.Judged | None = None,
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
        Go on after the last finished epoch of an interrupted run, which may have been
        about to replace a model; a finished one is left as it is.
    report : callable
        Called after every epoch.
    provenance : dict, optional
        Goes into the file.
    unseen : Judged, optional
        As for `calibration.finish`.

    Returns
    -------
    Model
        In the first of several processes; the others' lacks figures of merit.

    Raises
    ------
    UsageError
        If data or configuration can't be used.
    StellarError
        If the loss stops being a number, or memory runs out.
    """
    start = checkpoint.load(config.init) if config.init else None
    config = resolve(config, start)
    data = dataset.load(tables, config, catalogue, models.inputs(config.model))
    model = new_model(output.stem, data, config, start)
    model.training["digest"] = _digest(config, tables, data)
    digest = model.training["digest"]
    unfinished = resuming.notes_of(output).get("digest") == digest
    if resume and output.exists() and not unfinished:
        return _finished(output, digest)
    device = choose_device(config.device)
    with (
        processes.join(device) as world,
        claimed(output if world.first else "-"),
        _explained(config),
        without_denormals(),
    ):
        state = State(output, digest, write=world.first)
        state.open(resume)
        world.wait()  # until all have read what the first one replaces
        networks = _members(model, start, data, config, world, state, report)
        if world.first:
            model.training |= _facts(config, tables, data, state)
            model.provenance = provenance or {}
            half = config.half and all(map(_round, networks))
            _settle(networks, model, data)
            model.state = _tensors(networks, half)
            calibration.finish(model, networks, data, unseen, start)
            checkpoint.save(model, output)
            data.write_split(output.with_suffix(".split.fits"))
            curves.draw(model, _by_part(model, data), output.with_suffix(".png"))
            state.remove()
    return model


def resolve(config: TrainConfig, start: checkpoint.Model | None) -> TrainConfig:
    """Fill in what follows from the model to start from, and the network's options.

    Raises
    ------
    UsageError
        If an architecture was asked for that doesn't extend that of the model to start
        from, or an option of the network doesn't exist.
    """
    name, inherited = config.model or settings.MODEL, {}
    if start is not None:
        name = config.model or start.architecture
        if not models.extends(name, start.architecture):
            raise UsageError(
                f"'{config.init}' is a {start.architecture}, not a {config.model}: "
                "leave --model out, or --init."
            )
        inherited = models.former(start.architecture) | start.config
    defaults = models.options(name)
    for key in config.network:
        if key not in defaults:
            raise unknown(f"option of {name}", key, defaults)
    network = {**defaults, **inherited, **config.network}
    config = replace(config, model=name, network=network)
    if models.in_one_go(name):
        config.check_in_one_go()
    return config


def _finished(output: Path, digest: str) -> checkpoint.Model:
    """Return the model that an earlier run finished."""
    model = checkpoint.load(str(output))
    if model.training.get("digest") != digest:
        raise UsageError(
            f"'{output}' is of a run with other settings or data, so there is nothing "
            "to resume. Leave --resume out and give --overwrite, or another name."
        )
    log.info("%s is finished already", output)
    return model


def _members(
    model: checkpoint.Model,
    start: checkpoint.Model | None,
    data: Dataset,
    config: TrainConfig,
    world: World,
    state: State,
    report: Callable[[Progress], None],
) -> list[nn.Module]:
    """Train the networks of the ensemble, or take them from the state."""
    networks = []
    for member in range(config.members):
        torch.manual_seed(config.random_seed("weights", member))
        network = initial_network(model, start, member)
        if hasattr(network, "acquaint") and not _made(model, start):
            network.acquaint(data.feed(calibration.some(data.index("train"), SETTLED)))
        if member in state.finished:
            network.load_state_dict(state.finished[member][0])
        elif models.in_one_go(config.model):
            if world.first:
                seed = config.random_seed("weights", member) % 2**32
                fit_in_one_go(network, data, model.labels, seed)
            state.finish(member, (network.state_dict(), {"history": []}))
        else:
            fitter = Fitter(
                network.to(world.device), data, model.labels, config, member, world
            )
            network = fitter.run(state, report)
            history = {"history": fitter.history}
            state.finish(member, (network.state_dict(), history))
        networks.append(network.to(world.device).eval())
    return networks


def _settle(networks: list[nn.Module], model: checkpoint.Model, data: Dataset) -> None:
    """Solve for what isn't trained, where a network has such parts."""
    if not all(hasattr(network, "settle") for network in networks):
        return
    index = calibration.some(data.index("train"), SETTLED)
    feed = data.feed(index)
    truth = encode(model.labels, data.rows(index))[0]
    for network in networks:
        device = next(network.parameters()).device
        inputs = feeding.tensors(feed, device).values()
        network.settle(*inputs, truth.to(device))


def _facts(
    config: TrainConfig, tables: list[str], data: Dataset, state: State
) -> dict[str, Any]:
    """Return what the model file says about its training."""
    return {
        "config": config.to_json(),
        "tables": [Path(table.path).name for table in data.tables],
        "spectra": {part: int(data.index(part).size) for part in dataset.PARTS},
        "notes": data.notes,
        "velocities": sorted({table.velocities for table in data.tables}),
        "history": [
            entry
            for member in sorted(state.finished)
            for entry in state.finished[member][1]["history"]
        ],
    }


def _tensors(networks: list[nn.Module], half: bool) -> dict[str, np.ndarray]:
    """Name the tensors of all members as in the model file.

    With `half`, those of `_halved` are float16.
    """
    tensors = {}
    for number, network in enumerate(networks):
        halved = _halved(network) if half else {}
        for key, value in network.state_dict().items():
            stored = value.half() if key in halved else value
            tensors[f"member{number}.{key}"] = stored.cpu().contiguous().numpy()
    return tensors


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
    """Return a model without weights: what to build, from which data.

    Parameters
    ----------
    name : str
    data : Dataset
    config : TrainConfig
        Of `resolve`.
    start : Model, optional
        To start from.

    Raises
    ------
    UsageError
        If a label has no value to train on, or values that can't be.
    """
    table = data.tables[0]
    train_rows = data.index("train")
    fitted = []
    for i, target in enumerate(config.target):
        label = labels.get(target)
        label.check(data.labels[:, i])
        fitted.append(label.fitted(data.labels[train_rows, i]))
    if start is not None:
        fitted = _inherit(fitted, start, config)
    return checkpoint.Model(
        name=name,
        architecture=config.model,
        config=config.network,
        pixels=data.pixels,
        labels=fitted,
        recipe=table.recipe,
        wavelength=table.wavelength,
    )


def _inherit(
    fitted: list[Label], start: checkpoint.Model, config: TrainConfig
) -> list[Label]:
    """Keep the model units of the model to start from, with the new trained range.

    A network that answers requests may be asked for other labels; new ones have units
    of their own.
    """
    names = [label.name for label in start.labels]
    free = hasattr(models.network_class(config.model), "relabelled")
    if names != [label.name for label in fitted] and not free:
        raise UsageError(
            f"'{config.init}' predicts {', '.join(names)}, the target is "
            f"{', '.join(config.target)}. Give --target {','.join(names)}."
        )
    known = {label.name: label for label in start.labels}
    return [replace(known.get(new.name, new), trained=new.trained) for new in fitted]


def initial_network(
    model: checkpoint.Model, start: checkpoint.Model | None, member: int
) -> nn.Module:
    """Build a network, with the weights to start from if there are any.

    Parameters
    ----------
    model : Model
        Of `new_model`.
    start : Model, optional
    member : int
        Number within the ensemble.

    Raises
    ------
    UsageError
        If the weights, the wavelengths or the labels don't fit the network.
    """
    network = models.build(
        model.architecture,
        pixels=model.pixels,
        labels=len(model.labels),
        **model.config,
    )
    if start is not None:
        networks = start.networks()
        weights = networks[member % len(networks)].state_dict()
        if hasattr(network, "relabelled"):
            names = ([label.name for label in m.labels] for m in (start, model))
            weights = network.relabelled(weights, *names)
        try:
            # what extends the architecture of the model to start from begins afresh
            network.load_state_dict(
                weights, strict=start.architecture == model.architecture
            )
        except RuntimeError as error:
            raise UsageError(
                f"the network's options, or the {model.pixels} pixels of these tables, "
                "don't fit the model to start from: "
                f"{' '.join(str(error).split())}"
            ) from None
    if hasattr(network, "prepare") and not _made(model, start):
        network.prepare(model.wavelength, model.labels)
    return network


def _made(model: checkpoint.Model, start: checkpoint.Model | None) -> bool:
    """Say whether a network begins with all that it needs to know of its data."""
    return start is not None and start.architecture == model.architecture


def _halved(network: nn.Module) -> dict[str, torch.Tensor]:
    """Tensors that may be stored as float16.

    Not the variances of batch normalisations, by which weights are divided, and their
    means; nor the modules that call themselves exact.
    """
    exact = tuple(
        f"{name}."
        for name, module in network.named_modules()
        if getattr(module, "exact", False)
    )
    return {
        key: value
        for key, value in network.state_dict().items()
        if value.dtype == torch.float32
        and ".running_" not in f".{key}"
        and not key.startswith(exact)
    }


def _round(network: nn.Module) -> bool:
    """Give what was learnt the digits that the file keeps, before it is judged.

    Returns
    -------
    bool
        False, and nothing was done, where a weight is too large for float16.
    """
    tensors = list(_halved(network).values())
    if not all(torch.isfinite(tensor.half()).all() for tensor in tensors):
        log.warning("weights are kept as float32: some are too large for float16")
        return False
    for tensor in tensors:
        tensor.copy_(tensor.half())
    return True


def _digest(config: TrainConfig, tables: list[str], data: Dataset) -> str:
    """Digest of everything that decides about the weights."""
    settings_but_device = replace(config, device="auto").to_json()
    digest = hashlib.sha256(repr(settings_but_device).encode())
    digest.update(repr([Path(table).name for table in tables]).encode())
    for array in (data.labels, data.errors, data.table, data.row):
        digest.update(np.ascontiguousarray(array).tobytes())
    digest.update(data.part.astype("U10").tobytes())
    return digest.hexdigest()


@contextmanager
def _explained(config: TrainConfig) -> Iterator[None]:
    """Turn running out of memory into one sentence."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = str(error).lower()
        kinds = (MemoryError, torch.OutOfMemoryError)
        if not isinstance(error, kinds) and "allocate memory" not in text:
            raise
        if models.in_one_go(config.model):
            raise StellarError(
                f"out of memory: {config.model} needs all training spectra at once. "
                "Choose fewer with --select."
            ) from None
        raise StellarError(
            f"out of memory with batch_size {config.batch_size}. Lower it (--set "
            f"batch_size={max(1, config.batch_size // 2)}), or choose a narrower "
            "network (--set network.…)."
        ) from None
