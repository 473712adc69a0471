"""The state of an unfinished training, from which ``--resume`` goes on."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stellarcli.errors import StellarError, UsageError

Snapshot = tuple[dict[str, Tensor], dict[str, Any]]  # tensors, and plain values


@dataclass
class State:
    """The state of an unfinished run, in a hidden file beside the output.

    Tensors and JSON only; written under a temporary name and renamed, so that a run
    that is killed at any moment goes on after its last whole epoch.

    Attributes
    ----------
    output : Path
        Of the model.
    digest : str
        Of settings and data: another run's state is refused.
    write : bool
        Whether this process keeps the file.
    running : (int, Snapshot), optional
        The member of the ensemble that was at work, and its state.
    finished : dict of Snapshot
        Weights and history of the members before it.
    """

    output: Path
    digest: str
    write: bool = True
    running: tuple[int, Snapshot] | None = None
    finished: dict[int, Snapshot] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """Return the file."""
        return path_of(self.output)

    def open(self, resume: bool) -> None:
        """Read what an interrupted run left, or clear it away.

        Raises
        ------
        UsageError
            If it is another run's, or damaged.
        """
        if resume and self.path.exists():
            self._read()
        elif self.write:
            self.path.unlink(missing_ok=True)

    def _read(self) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path, "pt") as file:
                notes = json.loads(file.metadata()["state"])
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, ValueError, KeyError, TypeError):
            raise UsageError(
                f"'{self.path}' is damaged; give --overwrite instead of --resume to "
                "start anew."
            ) from None
        if notes["digest"] != self.digest:
            raise UsageError(
                f"'{self.path}' is the state of a run with other settings or data. "
                "Give the same ones, or --overwrite instead of --resume to start anew."
            )
        self.running = notes["member"], (part("running", tensors), notes["running"])
        self.finished = {
            int(number): (part(f"finished.{number}", tensors), values)
            for number, values in notes["finished"].items()
        }

    def take(self, member: int) -> Snapshot | None:
        """Return the state in which a member was interrupted, if it was."""
        if self.running is None or self.running[0] != member:
            return None
        return self.running[1]

    def store(self, member: int, snapshot: Snapshot) -> None:
        """Write everything that the next epoch depends on.

        Raises
        ------
        StellarError
            If the disk is full, or the file can't be written for another reason.
        """
        if not self.write:
            return
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        tensors = prefixed("running", snapshot[0])
        for number, (weights, _) in self.finished.items():
            tensors |= prefixed(f"finished.{number}", weights)
        notes = {
            "digest": self.digest,
            "member": member,
            "running": snapshot[1],
            "finished": {n: values for n, (_, values) in self.finished.items()},
        }
        plain = {key: _plain(value) for key, value in tensors.items()}
        partial = self.path.with_name(f"{self.path.name}.partial")
        try:
            save_file(plain, partial, metadata={"state": json.dumps(notes)})
            os.replace(partial, self.path)
        except (OSError, SafetensorError) as error:
            partial.unlink(missing_ok=True)
            raise StellarError(
                f"can't write '{self.path}', which --resume goes on from: {error}. "
                "Free some space on the disk."
            ) from None

    def finish(self, member: int, snapshot: Snapshot) -> None:
        """Keep a finished member; the next `store` writes it."""
        self.running = None
        weights = {key: _plain(value) for key, value in snapshot[0].items()}
        self.finished[member] = weights, snapshot[1]

    def remove(self) -> None:
        """Drop the state: the model is written."""
        if self.write:
            self.path.unlink(missing_ok=True)


def path_of(output: Path) -> Path:
    """Return the file that keeps the state of a training to `output`."""
    return output.with_name(f".{output.name}.state")


def notes_of(output: Path) -> dict[str, Any]:
    """Return what the state of a training to `output` says, but for the tensors.

    Returns
    -------
    dict
        ``digest``, ``member``, ``running``, ``finished``; empty where there is no
        state, or a damaged one.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path_of(output), "pt") as file:
            return json.loads(file.metadata()["state"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return {}


def describe(output: Path) -> str:
    """Say how far the unfinished training to `output` came; empty without one."""
    path = path_of(output)
    if not path.exists():
        return ""
    notes = notes_of(output)
    if not notes:
        return f"'{path}' holds the damaged state of an unfinished training"
    return (
        f"'{path}' holds an unfinished training: network {notes['member'] + 1}, "
        f"{notes['running']['epoch']} epochs done"
    )


def _plain(tensor: Tensor) -> Tensor:
    """Return a copy on the CPU that shares nothing."""
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors under names that begin with a prefix and a dot."""
    return {f"{prefix}.{key}": value for key, value in tensors.items()}


def part(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors under a prefix, without it: the inverse of `prefixed`."""
    start = f"{prefix}."
    return {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}
