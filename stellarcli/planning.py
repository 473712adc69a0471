"""Before a training: raw files become a prepared table, and the plan is laid open."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from stellarcli import checkpoint, dataset, inputs, models, preparation, tabulation
from stellarcli.catalog import Table
from stellarcli.devices import choose_device
from stellarcli.errors import NoUsableSpectraError, UsageError
from stellarcli.fitting import count_steps
from stellarcli.parallel import available_cores
from stellarcli.prepared import is_prepared
from stellarcli.processes import World
from stellarcli.settings import TrainConfig
from stellarcli.training import initial_network, new_model, resolve

log = logging.getLogger(__name__)

TIMED_STEPS = 3
COPIES = 5  # weights, their running mean, gradients, two moments of the optimiser


@contextmanager
def prepared(
    arguments: Sequence[str],
    recipe: str,
    output: Path,
    world: World,
    note: Callable[[str], None] = lambda text: None,
) -> Iterator[list[str]]:
    """Yield prepared tables; raw files among the arguments are prepared first.

    Their table lies in a hidden file beside the model and is removed at the end.

    Parameters
    ----------
    arguments : sequence of str
        As for `inputs.expand`.
    recipe : str
        For raw files.
    output : Path
        Of the model.
    world : World
        The first process prepares, the others wait.
    note : callable
        As for `inputs.expand`.
    """
    paths = inputs.expand(arguments, note=note) if arguments else []
    tables = [path for path in paths if is_prepared(path)]
    raw = [path for path in paths if path not in set(tables)]
    temporary = output.with_name(f".{output.name}.prepared")
    try:
        if raw:
            if world.first:
                _prepare(raw, temporary, recipe)
            world.wait()
            tables.append(str(temporary))
        yield tables
    except UsageError as error:
        text = str(error).replace(f"'{temporary}'", "the prepared raw files")
        raise type(error)(text) from None
    finally:
        if world.first:  # it is the last one to be done
            temporary.unlink(missing_ok=True)


def _prepare(raw: list[str], output: Path, recipe: str) -> None:
    """Write a prepared table of raw files."""
    summary = tabulation.write_table(
        list(inputs.tasks(raw, preparation.CHUNK)),
        str(output),
        checkpoint.find_recipe(recipe),
        workers=available_cores(),
    )
    for file, reason in summary.reasons:
        log.warning("%s: %s", file, reason)
    if summary.failed == summary.rows:
        first = next((f"'{file}': {why}" for file, why in summary.reasons), "")
        raise NoUsableSpectraError(
            f"none of {summary.rows} inputs has a good pixel; {first}"
        )


def describe(
    tables: list[str], config: TrainConfig, runs: int, catalogue: Table | None
) -> str:
    """Say what a training would do, without doing it.

    Parameters
    ----------
    tables : list of str
    config : TrainConfig
    runs : int
        Number of trainings with such a configuration.
    catalogue : Table, optional
        Labels.

    Returns
    -------
    str
        Lines: stars, split, labels, parameters, multiply-adds, memory, time.
    """
    start = checkpoint.load(config.init) if config.init else None
    config = resolve(config, start)
    data = dataset.load(tables, config, catalogue, models.inputs(config.model))
    model = new_model("plan", data, config, start)
    network = initial_network(model, start, 0)
    parts = {part: data.index(part) for part in dataset.PARTS}
    stars = {name: len(set(data.star[index])) for name, index in parts.items()}
    lines = [
        f"spectra: {len(data)} of {len(data.tables)} tables, {model.pixels} pixels",
        *(f"  {name}: {parts[name].size}, stars: {stars[name]}" for name in parts),
        *(f"  {note}" for note in data.notes),
        *(
            f"  {label.name}: {label.trained[0]:.6g} to {label.trained[1]:.6g} "
            f"{label.unit}".rstrip()
            for label in model.labels
        ),
        f"network: {model.architecture} {model.config or ''}".rstrip(),
    ]
    if models.in_one_go(model.architecture):
        size = 2 * 4 * model.pixels * parts["train"].size
        lines.append(
            f"training: {runs} x {config.members} models, computed in one go with all "
            f"training spectra in memory, {size / 1e6:.0f} MB"
        )
    else:
        lines += _cost(network, parts["train"].size, model.pixels, config, runs)
    return "\n".join(lines)


def _cost(
    network: nn.Module, rows: int, pixels: int, config: TrainConfig, runs: int
) -> list[str]:
    """Say what a gradient descent takes: parameters, memory, time."""
    parameters = sum(p.numel() for p in network.parameters())
    adds = models.count_multiply_adds(network, pixels)
    size = min(config.batch_size, rows)
    device = choose_device(config.device)
    step, saved = _measure(network.to(device), size, pixels)
    steps = count_steps(rows, config.batch_size, 1) * config.epochs
    total = step * steps * config.members * runs
    return [
        f"  {parameters} parameters, {adds / 1e6:.1f} million multiply-adds",
        f"  memory: about {COPIES * 4 * parameters / 1e6:.0f} MB for weights and "
        f"optimiser, {saved / 1e6:.0f} MB for a batch of {size}",
        f"training: {runs} x {config.members} networks, {config.epochs} epochs, "
        f"{steps} steps each, {step:.3g} s per step on {device}, about "
        f"{_duration(total)}",
    ]


def _measure(network: nn.Module, size: int, pixels: int) -> tuple[float, float]:
    """Try steps with a batch of ones: seconds, and bytes kept for the gradients."""
    batch = models.made_up(network, size, pixels)
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    times = []
    for _ in range(TIMED_STEPS):
        begin = time.perf_counter()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            mean, log_variance = network(*batch)
        loss = mean.square().mean() + log_variance.square().mean()
        loss.backward()
        loss.item()  # waits for a GPU
        times.append(time.perf_counter() - begin)
        used = sum(kept.values())
        kept.clear()
    return min(times), used


def _duration(seconds: float) -> str:
    for unit, length in (("h", 3600.0), ("min", 60.0)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"
