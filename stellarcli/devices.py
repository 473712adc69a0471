"""Where networks compute, and in which precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from stellarcli.errors import UsageError, unknown


def choose_device(name: str) -> str:
    """Resolve ``auto``, and check that a device exists.

    Raises
    ------
    UsageError
        If there is no such device.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return name
    if name.split(":")[0] != "cuda":
        raise unknown("device", name, ("auto", "cpu", "cuda", "cuda:N"))
    number = name.partition(":")[2] or "0"
    count = torch.cuda.device_count()
    if not number.isdigit() or int(number) >= count:
        raise UsageError(
            f"device {name!r} isn't there: this machine shows {count} CUDA devices. "
            "Use --device cpu."
        )
    return name


def has_bfloat16(device: torch.device) -> bool:
    """Say whether bfloat16 is fast on a device."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "amx_bf16" in flags or "avx512_bf16" in flags


@contextmanager
def without_denormals() -> Iterator[None]:
    """Take numbers below 1e-38 for 0, which processors are slow with."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
