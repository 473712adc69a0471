"""One large file: continued where it was cut, verified, then renamed.

What has arrived waits in a hidden file beside the target, ``.NAME.part``; a note beside
it says of which version of the file it is a part.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import IO

from stellarcli import catalog
from stellarcli.archives import verification
from stellarcli.archives.client import Client
from stellarcli.archives.crew import RETRIES, back_off, gives_up
from stellarcli.archives.exchange import Reply
from stellarcli.errors import AuthenticationError, FetchError, StellarError, Trouble

LARGEST = 64 << 30  # bytes; nights and catalogues stay well below
RESERVE = 100 << 20  # bytes of the disk that are left free
PROGRESS = 1 << 20  # bytes; an attempt that brought them counts as a success
CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


def download(
    client: Client,
    addresses: Sequence[str],
    path: str | os.PathLike,
    check: Callable[[str], object] = verification.check_file,
    *,
    resume: bool = False,
    retries: int = RETRIES,
    progress: Callable[[int, int | None], None] = lambda size, total: None,
) -> None:
    """Fetch a file that is too large for memory.

    Parameters
    ----------
    client : Client
    addresses : sequence of str
        Tried in turn while the archive has no such file there.
    path : path
        Where the file appears when it is whole; replaced if it exists.
    check : callable
        Of the path of what has arrived; raises `FetchError` if that is not whole.
    resume : bool
        Go on with what an earlier run has left.
    retries : int
        Repetitions without progress.
    progress : callable
        Told how many bytes there are, and of how many.

    Raises
    ------
    FetchError
        Of the last attempt.
    StellarError
        If the disk is full.
    """
    part = Part(Path(path))
    if not resume:
        part.discard()
    tries, choices = 0, list(addresses)
    while True:
        before = part.size
        try:
            part.extend(client, choices[0], progress)
            try:
                check(str(part.path))
            except FetchError:
                part.discard()
                raise
            break
        except FetchError as error:
            if error.kind is Trouble.ABSENT and len(choices) > 1:
                choices.pop(0)
                continue
            tries = 1 if part.size > before + PROGRESS else tries + 1
            if gives_up(error, tries, retries):
                raise
            time.sleep(back_off(tries, error.wait))
    part.finish()


class Part:
    """What has arrived of a file.

    Parameters
    ----------
    target : Path
        Of the whole file.
    """

    def __init__(self, target: Path):
        self.target = target
        self.path = target.with_name(f".{target.name}.part")
        self.note = target.with_name(f".{target.name}.part.json")

    @property
    def size(self) -> int:
        """Bytes that have arrived."""
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return 0

    def discard(self) -> None:
        """Forget it."""
        self.path.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)

    def finish(self) -> None:
        """Give the whole file its name."""
        with catalog.explained(str(self.target), str(self.path)):
            with open(self.path, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(self.path, self.target)
        self.note.unlink(missing_ok=True)

    def extend(
        self,
        client: Client,
        address: str,
        progress: Callable[[int, int | None], None],
    ) -> None:
        """Ask for what is missing and append it.

        Raises
        ------
        FetchError
            If it can't be had, or is cut again.
        StellarError
            If the disk is full; what has arrived stays, if there is room for it.
        """
        known = self._known(address)
        start = self.size if known else 0
        if start and start == known["total"]:
            return
        headers = {"Range": f"bytes={start}-"} if start else {}
        if start and known["validator"]:
            headers["If-Range"] = known["validator"]
        with (
            catalog.explained(str(self.target), str(self.path)),
            closing(_Arrival(self, address, start, known, progress)) as arrival,
        ):
            try:
                client.stream(address, arrival.begin, headers=headers, limit=LARGEST)
            except FetchError as error:
                if start and "416" in str(error):  # the file has become shorter
                    self.discard()
                    raise FetchError("the file changed while it was fetched") from None
                raise

    def _known(self, address: str) -> dict:
        """Read the note about what is there, if it belongs to this address."""
        try:
            note = verification.json_of(self.note.read_bytes())
        except OSError:
            return {}
        wanted = {"address", "validator", "total"}
        whole = isinstance(note, dict) and set(note) == wanted
        return note if whole and note["address"] == address else {}

    def remember(self, address: str, reply: Reply, total: int | None) -> None:
        """Write the note about what arrives."""
        strong = reply.header("ETag")
        validator = strong if strong.startswith('"') else ""
        validator = validator or reply.header("Last-Modified")
        note = {"address": address, "validator": validator, "total": total}
        self.note.write_text(json.dumps(note), encoding="utf-8")


class _Arrival:
    """Takes what comes of a file, and writes it where it belongs.

    Parameters
    ----------
    part : Part
    address : str
        That it comes from.
    start : int
        Byte that was asked for.
    known : dict
        The note about what is there.
    progress : callable
        Told how many bytes there are, and of how many.
    """

    def __init__(
        self,
        part: Part,
        address: str,
        start: int,
        known: dict,
        progress: Callable[[int, int | None], None],
    ):
        self.part, self.address = part, address
        self.start, self.known, self.progress = start, known, progress
        self.total: int | None = None
        self._room = 0  # bytes that the disk has for it
        self._file: IO[bytes] | None = None

    def begin(self, reply: Reply) -> Callable[[bytes], None]:
        """Look at the head of the answer; return what takes its body."""
        try:
            self.start, self.total = _range(reply, self.start, self.known)
        except FetchError:
            self.part.discard()
            raise
        self._room = shutil.disk_usage(self.part.path.parent).free - RESERVE
        if self.total is not None and self.total - self.start > self._room:
            raise self._too_large(f"{(self.total - self.start) / 1e9:.2f} GB")
        self.part.remember(self.address, reply, self.total)
        self._file = self.part.path.open("rb+" if self.start else "wb")
        self._file.truncate(self.start)
        self._file.seek(self.start)
        self.progress(self.start, self.total)
        return self._write

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()

    def _write(self, piece: bytes) -> None:
        self._room -= len(piece)
        if self._room < 0:
            raise self._too_large("more")
        self._file.write(piece)
        self.progress(self._file.tell(), self.total)

    def _too_large(self, needs: str) -> StellarError:
        return StellarError(
            f"{self.part.target} needs {needs}, and {max(self._room, 0) / 1e9:.2f} GB "
            "are to be had on its disk. Free some space, or write elsewhere."
        )


def _range(reply: Reply, start: int, known: dict) -> tuple[int, int | None]:
    """Where the body belongs in the file, and the bytes of the whole."""
    if reply.status != 206:
        return 0, reply.length
    found = CONTENT_RANGE.fullmatch(reply.header("Content-Range"))
    if not start or not found or int(found[1]) != start:
        raise FetchError("the archive sent another part of the file than was asked for")
    total = int(found[3])
    if known["total"] not in (None, total):
        raise FetchError("the file changed while it was fetched")
    return start, total


def check_digest(path: str, algorithm: str, wanted: str) -> None:
    """Raise `FetchError` if a file doesn't have a checksum that was published."""
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, algorithm).hexdigest()
    if found != wanted.lower():
        raise FetchError(
            f"its {algorithm} is {found}, and the archive published {wanted}"
        )


def is_whole(path: Path) -> bool:
    """Say whether a FITS file is there, and whole."""
    try:
        verification.check_file(path)
    except (FetchError, FileNotFoundError):
        return False
    return True


def explained(error: FetchError, what: str, client: Client) -> StellarError:
    """Build the error that ends a run whose only file can't be had."""
    if error.kind is Trouble.LOGIN:
        return AuthenticationError(
            f"{client.base} wants a login for {what}: {error}. If the release isn't "
            "public, give your token by --token-file or STELLAR_LAMOST_TOKEN."
        )
    return StellarError(
        f"can't fetch {what}: {error}. Check its name and the address (--url), or come "
        "back later; --resume goes on with what has arrived."
    )
