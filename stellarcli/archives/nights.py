"""The spectra in a tarball: a night's, as the archive packs them."""

from __future__ import annotations

import gzip
import hashlib
import re
import tarfile
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import PurePosixPath

from stellarcli.archives import transfer, verification
from stellarcli.archives.batch import Outcome, repeated
from stellarcli.archives.client import SMALL, Client
from stellarcli.archives.store import NAME, Item, Store, exists
from stellarcli.errors import FetchError, StellarError, Trouble, one_line

MD5 = re.compile(r"\b[0-9a-fA-F]{32}\b")
PIECE = 1 << 20  # bytes read at a time
MEMBERS = 2_000_000  # more than a night has by far


def download(
    client: Client,
    address: str,
    store: Store,
    *,
    resume: bool,
    retries: int,
    progress: Callable[[int, int | None], None],
) -> str:
    """Fetch a tarball to a hidden file in the directory that its spectra go to.

    It is compared with the MD5 that the archive publishes beside it; where there is
    none, its own checksum has to match.

    Returns
    -------
    str
        Its path; to be removed when it was unpacked.

    Raises
    ------
    StellarError
        If it can't be had whole.
    """
    path = store.directory / f".{hashlib.sha256(address.encode()).hexdigest()[:12]}.tar"
    if resume and path.exists():
        return str(path)
    try:
        words = repeated(client, partial(client.content, f"{address}.md5"), 1)[0]
        digest = MD5.search(words.decode("ascii", "replace"))
    except FetchError:
        digest = None

    def check(part: str) -> None:
        if digest:
            transfer.check_digest(part, "md5", digest[0])
        else:
            check_gzip(part)

    try:
        transfer.download(
            client,
            [address],
            path,
            check,
            resume=resume,
            retries=retries,
            progress=progress,
        )
    except FetchError as error:
        raise transfer.explained(error, address, client) from None
    return str(path)


def unpack(
    path: str,
    store: Store,
    prefix: str,
    wanted: Mapping[int, str] | None = None,
    *,
    resume: bool = False,
    progress: Callable[[int, int, int], None] = lambda files, size, failed: None,
) -> Outcome:
    """Verify the spectra in a tarball and bring them into a directory.

    Only regular files with names of spectra are taken, by their last name: links,
    devices and paths in the tarball have no effect.

    Parameters
    ----------
    path : str
        Compressed or not.
    store : Store
    prefix : str
        Of keys, such as ``lamost/dr10/v2.0/mrs``; the identifier follows.
    wanted : mapping of int to str, optional
        Keys by OBSID, of the spectra to take; all by default.
    resume : bool
        Leave alone what is there and whole.
    progress : callable
        As of `batch.fetch`.

    Returns
    -------
    Outcome
        Spectra that are wanted and not inside are among its troubles.

    Raises
    ------
    StellarError
        If the tarball is damaged, or the disk is full.
    """
    outcome = Outcome()
    try:
        with tarfile.open(path, "r|*") as tarball:
            for number, member in enumerate(tarball):
                if number > MEMBERS:
                    raise tarfile.ReadError("it has more members than any night")
                name = PurePosixPath(member.name).name
                if member.isreg() and NAME.fullmatch(name):
                    content = _content(tarball, member)
                    _take(content, name, store, prefix, wanted, resume, outcome)
                    size = 0 if content is None else len(content)
                    progress(1, size, len(outcome.troubles))
                tarball.members = []  # they would all stay in memory
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise StellarError(
            f"tarball '{path}' can't be read to its end: {one_line(error)}. Its first "
            f"{len(outcome.files)} spectra are kept; fetch it again, --resume goes on."
        ) from None
    for key in (wanted or {}).values():
        if key not in outcome.files and key not in outcome.troubles:
            outcome.troubles[key] = FetchError(
                "it is not in the tarball", Trouble.ABSENT
            )
    return outcome


def check_gzip(path: str) -> None:
    """Raise `FetchError` unless a gzip file is whole: tarfile looks at no checksum."""
    try:
        with gzip.open(path) as file:
            while file.read(PIECE):
                continue
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise FetchError(f"the tarball is damaged ({error})") from None


def _content(tarball: tarfile.TarFile, member: tarfile.TarInfo) -> bytes | None:
    """Bytes of a member; None if no spectrum is that large."""
    if member.size > SMALL:
        return None
    file = tarball.extractfile(member)
    return file.read() if file else None


def _take(
    content: bytes | None,
    name: str,
    store: Store,
    prefix: str,
    wanted: Mapping[int, str] | None,
    resume: bool,
    outcome: Outcome,
) -> None:
    """Keep one member if it is wanted, and whole."""
    key = f"{prefix}/{name}"
    try:
        if content is None:
            raise FetchError(f"larger than {SMALL} bytes", Trouble.REFUSED)
        obsid = verification.check(content).get("OBSID")
        if wanted is not None and obsid not in wanted:
            return
        if isinstance(obsid, int):
            key = f"{prefix}/{obsid}"
        if store.journal.is_there(key) and not (resume or store.overwrite):
            raise exists(store, 1)
        item = Item(key, (), name)
        if resume and store.journal.is_whole(key):
            outcome.skipped += 1
            outcome.files[key] = store.journal.entries[key]["file"]
            return
        outcome.files[key] = store.keep(item, content, [])
        outcome.size += len(content)
    except FetchError as error:
        outcome.troubles[key] = error
