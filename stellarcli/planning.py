"""Before a training: raw files become a prepared table, and the plan is laid open."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from stellarcli import checkpoint, dataset, inputs, models, preparation
from stellarcli.catalog import Table
from stellarcli.parallel import available_cores
from stellarcli.prepared import is_prepared
from stellarcli.settings import TrainConfig
from stellarcli.training import new_model

TIMED_STEPS = 3
COPIES = 4  # weights, gradients and two moments of the optimiser


@contextmanager
def prepared(
    arguments: Sequence[str], recipe: str, output: Path
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
    """
    paths = inputs.expand(arguments)
    tables = [path for path in paths if is_prepared(path)]
    raw = [path for path in paths if path not in set(tables)]
    temporary = output.with_name(f".{output.name}.prepared")
    try:
        if raw:
            preparation.write_table(
                raw,
                str(temporary),
                checkpoint.find_recipe(recipe),
                workers=available_cores(),
            )
            tables.append(str(temporary))
        yield tables
    finally:
        temporary.unlink(missing_ok=True)


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
    data = dataset.load(tables, config, catalogue)
    start = checkpoint.load(config.init) if config.init else None
    model = new_model("plan", data, config, start)
    network = models.build(
        model.architecture,
        pixels=model.pixels,
        labels=len(model.labels),
        **model.config,
    )
    parts = {part: data.index(part) for part in dataset.PARTS}
    parameters = sum(p.numel() for p in network.parameters())
    adds = models.count_multiply_adds(network, model.pixels)
    step = _seconds_per_step(network, config.batch_size, model.pixels)
    steps = -(-parts["train"].size // config.batch_size) * config.epochs
    total = step * steps * config.members * runs
    stars = {name: len(set(data.star[index])) for name, index in parts.items()}
    lines = [
        f"spectra: {len(data)} of {len(data.tables)} tables, {model.pixels} pixels",
        *(f"  {name}: {parts[name].size}, stars: {stars[name]}" for name in parts),
        *(
            f"  {label.name}: {label.trained[0]:.6g} to {label.trained[1]:.6g} "
            f"{label.unit}".rstrip()
            for label in model.labels
        ),
        f"network: {model.architecture} {model.config or ''}".rstrip(),
        f"  {parameters} parameters, {adds / 1e6:.1f} million multiply-adds",
        f"  memory: about {COPIES * 4 * parameters / 1e6:.0f} MB for weights and "
        f"optimiser, {8 * config.batch_size * model.pixels / 1e6:.0f} MB per batch",
        f"training: {runs} x {config.members} networks, {steps} steps each, "
        f"{step:.3f} s per step here, about {_duration(total)}",
    ]
    return "\n".join(lines)


def _seconds_per_step(network: torch.nn.Module, size: int, pixels: int) -> float:
    """Time forward and backward passes of a batch of ones."""
    batch = torch.ones(size, pixels)
    times = []
    for _ in range(TIMED_STEPS):
        begin = time.perf_counter()
        mean, log_variance = network(batch, batch)
        (mean.square().mean() + log_variance.square().mean()).backward()
        times.append(time.perf_counter() - begin)
    return min(times)


def _duration(seconds: float) -> str:
    for unit, length in (("h", 3600.0), ("min", 60.0)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"
