"""The directory that files go to: names, temporary names, what is there and whole.

A file gets its name only when it is whole and verified. What is finished is written
down in a journal, a hidden file in the directory, from which ``--resume`` goes on.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from stellarcli import catalog
from stellarcli.archives import verification
from stellarcli.errors import (
    FetchError,
    OutputExistsError,
    StellarError,
    Trouble,
    UsageError,
)
from stellarcli.surveys.inflating import crc32

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

JOURNAL = ".stellar-fetch.jsonl"
PART = ".unfinished"  # ending of temporary names; those of large files have another
NAME = re.compile(r"[A-Za-z0-9][\w.+-]{0,199}\.fits?(\.gz|\.bz2)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Item:
    """One file to fetch.

    Attributes
    ----------
    key : str
        What it is, in the journal: archive, release and identifier.
    addresses : tuple of str
        Asked in turn while the archive has no such file there.
    name : str
        Of the file, where the archive proposes none that can be used; without ``.gz``
        or with, as its content turns out to be.
    cards : mapping
        Values that cards of the file's header must have.
    proposed : bool
        Whether the archive's or the header's name is better than `name`.
    """

    key: str
    addresses: tuple[str, ...]
    name: str
    cards: Mapping[str, object] = field(default_factory=dict)
    proposed: bool = False


class Written(NamedTuple):
    """A verified file under a temporary name.

    Attributes
    ----------
    part : str
        That name, in the directory.
    names : list of str
        That the archive proposes.
    ending : str
        Of its compression.
    size : int
        Bytes.
    crc32 : int
    """

    part: str
    names: list[str]
    ending: str
    size: int
    crc32: int


class Journal:
    """Which file of a directory holds what, and its checksum.

    It is locked while it is open: two runs into one directory would take each other's
    temporary files for left-over ones.

    Parameters
    ----------
    directory : Path

    Raises
    ------
    UsageError
        If another run has it open, or it can't be written.
    """

    def __init__(self, directory: Path):
        self.path = directory / JOURNAL
        self.entries: dict[str, dict] = {}
        self.owners: dict[str, str] = {}  # key by name of file
        self._noted: list[str] = []  # lines to be written
        try:
            self._lines = self.path.open("ab+", buffering=0)
        except OSError as error:
            raise UsageError(f"can't write {self.path}: {error.strerror}.") from None
        self._lock()
        self._lines.seek(0)
        content = self._lines.readall()
        for line in content.splitlines():
            entry = verification.json_of(line)  # a kill may have cut the last one
            if isinstance(entry, dict) and {"key", "file", "crc32"} <= set(entry):
                self._add(entry)
        self._start = b"" if content[-1:] in (b"", b"\n") else b"\n"

    def _lock(self) -> None:
        """Lock the file; where a file system can't, nothing is lost but the check."""
        try:
            if fcntl is not None:
                fcntl.flock(self._lines, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lines.close()
            raise UsageError(
                f"another 'stellar fetch' is at work in {self.path.parent}; wait for "
                "it, or name another directory."
            ) from None
        except OSError:
            return

    def _add(self, entry: dict) -> None:
        self.entries[entry["key"]] = entry
        self.owners[entry["file"]] = entry["key"]

    def is_whole(self, key: str) -> bool:
        """Whether the file of a key is there, byte for byte."""
        entry = self.entries.get(key)
        if entry is None:
            return False
        try:
            content = (self.path.parent / entry["file"]).read_bytes()
        except OSError:
            return False
        return crc32(content) == entry["crc32"]

    def is_there(self, key: str) -> bool:
        """Whether the file of a key is there, whole or not."""
        entry = self.entries.get(key)
        return entry is not None and (self.path.parent / entry["file"]).exists()

    def record(self, key: str, file: str, crc32: int) -> None:
        """Note that a file is finished; `write` writes it down."""
        entry = {"key": key, "file": file, "crc32": crc32}
        self._add(entry)
        self._noted.append(json.dumps(entry))

    def write(self) -> None:
        """Write down what has been noted.

        A file that is whole, but not written down when the machine fails, is fetched
        again; one that is written down counts as whole only with the right checksum.

        Raises
        ------
        StellarError
            If the disk is full.
        """
        if self._noted:
            path = str(self.path)
            text = "\n".join([*self._noted, ""]).encode()
            with catalog.explained(path, path):
                rest = memoryview(self._start + text)
                while rest:
                    rest = rest[self._lines.write(rest) :]
            self._start = b""
            self._noted = []

    def forget(self) -> None:
        """Let go of the file in a new process, so that the lock stays the parent's."""
        self._lines.close()

    def close(self) -> None:
        """Close the file; one without entries leaves nothing behind."""
        if not self._lines.closed:
            if not self.entries:
                self.path.unlink(missing_ok=True)
            self._lines.close()


class Store:
    """The directory that files go to: names, temporary names, the journal.

    Parameters
    ----------
    directory : path
        Made if missing.
    overwrite : bool
        Whether files that the journal doesn't know may be replaced.

    Raises
    ------
    UsageError
        If it can't be written to, or another run does so.
    """

    def __init__(self, directory: str | os.PathLike, overwrite: bool = False):
        self.directory = Path(directory)
        self.overwrite = overwrite
        prepare(self.directory)
        self.journal = Journal(self.directory)
        self._count = itertools.count()
        self.tidy()
        self._there = set(os.listdir(self.directory))

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.journal.close()

    def keep(self, item: Item, content: bytes, names: Sequence[str]) -> str:
        """Write a verified file and give it its name; see `write` and `place`."""
        name = self.place(item, self.write(content, names))
        self.journal.write()
        return name

    def write(self, content: bytes, names: Sequence[str] = ()) -> Written:
        """Write a verified file under a temporary name; in any thread or process.

        Parameters
        ----------
        content : bytes
        names : sequence of str
            Proposals of the archive, which may be anything.

        Raises
        ------
        StellarError
            If the disk is full.
        """
        part = f".{os.getpid()}-{next(self._count)}{PART}"
        path = os.path.join(self.directory, part)
        with catalog.explained(str(self.directory), path):
            try:
                # nothing here is faster than the system's own calls
                file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
                try:
                    written = os.write(file, content)
                    while written < len(content):  # a disk that is nearly full
                        written += os.write(file, content[written:])
                finally:
                    os.close(file)
            except BaseException:
                with suppress(OSError):
                    os.remove(path)
                raise
        ending = verification.ending(content)
        return Written(part, list(names), ending, len(content), crc32(content))

    def place(self, item: Item, written: Written) -> str:
        """Give a file that is written the first name that can be its own.

        The journal has a note of it then, to be written with those of other files.

        Returns
        -------
        str
            Name in the directory.

        Raises
        ------
        FetchError
            If another file has the name.
        StellarError
            If the disk is full.
        """
        part = os.path.join(self.directory, written.part)
        try:
            name = self._name(item, written)
            path = os.path.join(self.directory, name)
            with catalog.explained(path, part):
                os.replace(part, path)
        except BaseException:
            with suppress(OSError):
                os.remove(part)
            raise
        self.journal.record(item.key, name, written.crc32)
        return name

    def tidy(self) -> None:
        """Remove temporary files; nobody may be writing."""
        for leftover in self.directory.glob(f".*{PART}"):
            leftover.unlink(missing_ok=True)

    def _name(self, item: Item, written: Written) -> str:
        plain = [_plain(name) for name in written.names if NAME.fullmatch(name)]
        own = _plain(item.name)
        identifier = re.sub(r"[^\w+-]", "_", item.key.rpartition("/")[2], flags=re.A)
        choices = [*plain, own] if item.proposed else [own]
        choices.append(f"{choices[0].removesuffix('.fits')}_{identifier}.fits")
        for choice in choices:
            name = choice + written.ending
            if self._may_take(name, item.key, written):
                return name
        raise FetchError(
            f"{choices[0] + written.ending} exists and is another file; give "
            "--overwrite to replace it, or another directory",
            Trouble.REFUSED,
        )

    def _may_take(self, name: str, key: str, written: Written) -> bool:
        owner = self.journal.owners.get(name)
        if owner is not None:
            return owner == key
        if self.overwrite or name not in self._there:
            return True
        path, part = self.directory / name, self.directory / written.part
        return path.is_file() and path.read_bytes() == part.read_bytes()


def _plain(name: str) -> str:
    """Name of a file without the ending of its compression."""
    return name.removesuffix(".gz").removesuffix(".bz2")


def prepare(directory: Path) -> None:
    """Make a directory that can be written to.

    Raises
    ------
    UsageError
        If that is impossible.
    """
    if directory.exists() and not directory.is_dir():
        raise UsageError(f"{directory} is a file; name a directory.")
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"can't make directory {directory}: {error.strerror}; name another."
        ) from None
    if not os.access(directory, os.W_OK | os.X_OK):
        raise UsageError(f"directory {directory} is not writable; name another.")


def exists(store: Store, count: int) -> OutputExistsError:
    """Build the error for files that are there already."""
    return OutputExistsError(
        f"{store.directory} has {count} of these files already; give --resume to skip "
        "what is whole, or --overwrite to fetch them again."
    )


def check_space(directory: Path, size: int) -> None:
    """Raise `StellarError` if files of some bytes don't fit on a directory's disk."""
    free = shutil.disk_usage(directory).free
    if size > free:
        raise StellarError(
            f"about {size / 1e9:.2f} GB are needed in {directory}, {free / 1e9:.2f} GB "
            "are free. Free some space, choose fewer files, or another directory."
        )
