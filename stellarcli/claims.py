"""One process at a time writes an output: a lock that ends with its holder."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from stellarcli.errors import OutputBusyError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

PATIENCE = 2.0  # s; workers of a killed process hold its lock for a moment
PAUSE = 0.05  # s between two attempts


@contextmanager
def claimed(output: str | os.PathLike, *, shared: bool = False) -> Iterator[None]:
    """Keep other processes from writing the same output meanwhile.

    A lock of the system on a hidden file beside the output: it ends with the process,
    however that ends, and a file that a killed process has left claims nothing. Where
    a file system has no locks, nothing is kept from anybody.

    Parameters
    ----------
    output : str or path
        ``-`` needs no claim.
    shared : bool
        Let other processes share the claim that share it too, such as shards.

    Raises
    ------
    OutputBusyError
        If another process has it.
    """
    if os.fspath(output) == "-" or fcntl is None:
        yield
        return
    path = lock_of(Path(output))
    number = _lock(path, Path(output), shared)
    if number is not None and not shared:
        _tidy(Path(output))
    try:
        yield
    finally:
        if number is not None:
            _release(path, number, shared)


def lock_of(output: Path) -> Path:
    """Return the file that is locked for an output."""
    return output.with_name(f".{output.name}.lock")


def _tidy(output: Path) -> None:
    """Remove what killed processes left half-written: nobody else is at work on it."""
    name = re.sub(r"[^\w.-]", "_", output.name, flags=re.ASCII)  # catalog's names
    for path in output.parent.glob(f".{name}.*.part*"):
        if re.fullmatch(r"\.[0-9a-f]{8}\.part(\.gz)?", path.name[1 + len(name) :]):
            with suppress(OSError):
                path.unlink()


def _lock(path: Path, output: Path, shared: bool) -> int | None:
    """Open and lock the file; None where that isn't possible for anybody."""
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError:  # a full or read-only disk; whoever writes will say so
            return None
        try:
            fcntl.flock(number, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(number)
            os.close(number)
            if time.monotonic() > deadline:
                raise OutputBusyError(
                    f"{output} is being written by {holder}; wait until that ends, or "
                    "name another output."
                ) from None
            time.sleep(PAUSE)
            continue
        except OSError:
            os.close(number)
            path.unlink(missing_ok=True)
            return None
        if _is_at(path, number):
            _sign(number)
            return number
        os.close(number)  # its last holder removed it before it was locked here


def _is_at(path: Path, number: int) -> bool:
    """Say whether an open file is still the one of that name."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(number))
    except OSError:
        return False


def _sign(number: int) -> None:
    """Write down who holds the lock, for whoever is refused."""
    with suppress(OSError):  # a full disk
        os.ftruncate(number, 0)
        os.pwrite(number, f"{os.getpid()} on {socket.gethostname()}".encode(), 0)


def _holder(number: int) -> str:
    try:
        signature = os.pread(number, 200, 0).decode("utf-8", "replace")
    except OSError:
        signature = ""
    return f"process {signature}" if signature else "another process"


def _release(path: Path, number: int, shared: bool) -> None:
    """Remove the file, unless others share the lock, and end the claim."""
    with suppress(OSError):
        if shared:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
    os.close(number)
