"""The processes that train together: one, unless ``torchrun`` started more."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, nn

PATIENCE = timedelta(days=1)  # others wait while the first one prepares raw files


@dataclass(frozen=True)
class World:
    """Processes that train together.

    Attributes
    ----------
    size, rank : int
        Number of processes, and which one this is.
    device : torch.device
        Of this process.
    """

    size: int
    rank: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes and reports."""
        return self.rank == 0

    def part(self, count: int) -> slice:
        """Return this process's share of a batch."""
        return slice(
            count * self.rank // self.size, count * (self.rank + 1) // self.size
        )

    def wrap(self, network: nn.Module) -> nn.Module:
        """Let gradients be averaged over processes.

        The graph is the same in every step, by which parameters without a gradient are
        known from the first one and nobody waits for them.
        """
        if self.size == 1:
            return network
        return nn.parallel.DistributedDataParallel(network, static_graph=True)

    def sum(self, *values: Tensor) -> Tensor:
        """Sum scalars over processes."""
        stack = torch.stack([value.detach() for value in values])
        if self.size > 1:
            torch.distributed.all_reduce(stack)
        return stack

    def gather(self, value: object) -> list:
        """Return the values of all processes, in order, to each of them."""
        if self.size == 1:
            return [value]
        values = [None] * self.size
        torch.distributed.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.size > 1:
            torch.distributed.barrier()


@contextmanager
def join(device: str) -> Iterator[World]:
    """Meet the other processes, and part at the end.

    Inside another `join` it is the same meeting.

    Parameters
    ----------
    device : str
        As `devices.choose_device` returns it; with several processes each takes the
        GPU of its local number.
    """
    size = int(os.environ.get("WORLD_SIZE", 1))
    if size == 1 or "MASTER_ADDR" not in os.environ:
        yield World(1, 0, torch.device(device))
        return
    if device.startswith("cuda"):
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
        torch.cuda.set_device(device)
    opened = not torch.distributed.is_initialized()
    if opened:
        backend = "nccl" if device.startswith("cuda") else "gloo"
        torch.distributed.init_process_group(backend, timeout=PATIENCE)
    try:
        yield World(size, torch.distributed.get_rank(), torch.device(device))
    finally:
        if opened:
            torch.distributed.destroy_process_group()
