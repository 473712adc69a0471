"""Many small files: fetched several at once, verified, repeated where needed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from stellarcli.archives.client import Client
from stellarcli.archives.crew import (
    RETRIES,
    Crew,
    Crews,
    Result,
    back_off,
    gives_up,
    processes,
)
from stellarcli.archives.store import Item, Store, exists
from stellarcli.errors import (
    AuthenticationError,
    FetchError,
    StellarError,
    Trouble,
)

HOPELESS = 20  # files given up, and not one fetched: the archive is the trouble


@dataclass
class Outcome:
    """What became of a batch.

    Attributes
    ----------
    files : dict of str
        Name in the directory, by key.
    troubles : dict of FetchError
        Why there is none, by key.
    skipped : int
        Files that were there and whole.
    size : int
        Bytes received in files.
    """

    files: dict[str, str] = field(default_factory=dict)
    troubles: dict[str, FetchError] = field(default_factory=dict)
    skipped: int = 0
    size: int = 0


def repeated(client: Client, attempt: Callable[[], Any], retries: int = RETRIES) -> Any:
    """Do something until it succeeds or is hopeless.

    Raises
    ------
    FetchError
        Of the last attempt.
    """
    tries = 0
    while True:
        try:
            return attempt()
        except FetchError as error:
            tries += 1
            if gives_up(error, tries, retries):
                raise
            time.sleep(back_off(tries, error.wait))


def fetch(
    client: Client,
    keys: Sequence[str],
    make: Callable[[str], Item],
    store: Store,
    *,
    retries: int = RETRIES,
    resume: bool = False,
    progress: Callable[[int, int, int], None] = lambda files, size, failed: None,
) -> Outcome:
    """Fetch files into a directory.

    Parameters
    ----------
    client : Client
    keys : sequence of str
        Different ones.
    make : callable
        Item of a key.
    store : Store
    retries : int
        Repetitions of one file.
    resume : bool
        Skip files that are there and whole.
    progress : callable
        Told of every file: how many it was, its bytes, how many have failed so far.

    Returns
    -------
    Outcome

    Raises
    ------
    OutputExistsError
        If files are there, and neither `resume` nor the store's `overwrite` is given.
    AuthenticationError
        If the archive answers nothing but login pages.
    StellarError
        If it doesn't answer at all, or the disk is full.
    """
    outcome = Outcome()
    there = [key for key in keys if store.journal.is_there(key)]
    if there and not (resume or store.overwrite):
        raise exists(store, len(there))
    wanted = list(keys)
    if resume:
        wanted = []
        for key in keys:
            if store.journal.is_whole(key):
                outcome.files[key] = store.journal.entries[key]["file"]
                outcome.skipped += 1
                progress(1, 0, 0)
            else:
                wanted.append(key)
    if wanted:
        _work(client, store, wanted, make, retries, outcome, progress)
    return outcome


def _work(client, store, keys, make, retries, outcome, progress) -> None:
    """Fetch files and take in what becomes of them."""
    count = processes(len(keys), client.connections)
    try:
        crew: Crew | Crews
        if count > 1:
            crew = Crews(client, store, keys, make, retries, count)
        else:
            crew = Crew(client, store, map(make, keys), retries)
        try:
            for done in crew.batches():
                _take_in(done, store, outcome, progress)
        finally:
            crew.end()
    except KeyboardInterrupt as error:
        error.add_note(
            f"{len(outcome.files)} files are whole; the same command with --resume "
            "goes on."
        )
        raise


def _take_in(done: Sequence[Result], store: Store, outcome: Outcome, progress) -> None:
    """Give finished files their names, and note what failed."""
    try:
        for item, result in done:
            _take_in_one(item, result, store, outcome, progress)
    except BaseException:
        with suppress(StellarError):  # of a full disk, perhaps the reason
            store.journal.write()
        raise
    store.journal.write()


def _take_in_one(item: Item, result, store: Store, outcome: Outcome, progress) -> None:
    size = 0
    if not isinstance(result, BaseException):
        try:
            outcome.files[item.key] = store.place(item, result)
            outcome.size += (size := result.size)
        except StellarError as error:
            result = error
    if isinstance(result, FetchError):
        outcome.troubles[item.key] = result
        if not outcome.files and len(outcome.troubles) >= HOPELESS:
            raise_if_hopeless(outcome, midway=True)
    elif isinstance(result, StellarError):
        raise type(result)(
            f"{result} {len(outcome.files)} files are whole; --resume goes on."
        ) from result
    elif isinstance(result, BaseException):
        raise result
    progress(1, size, len(outcome.troubles))


def mean_size(client: Client, items: Sequence[Item], typical: int) -> int:
    """Bytes per file, from what the archive announces of a few of them.

    The heads of GET requests are looked at: archives answer nothing else of spectra.

    Parameters
    ----------
    client : Client
    items : sequence of Item
        All of these are asked for.
    typical : int
        Returned where the archive doesn't say.
    """
    found = []
    for item in items:
        for address in item.addresses:
            try:
                reply = client.stream(address, lambda _: None)
            except FetchError:
                continue
            if reply.length and "json" not in reply.header("Content-Type"):
                found.append(reply.length)
            break
    return sum(found) // len(found) if found else typical


def raise_if_hopeless(outcome: Outcome, midway: bool = False) -> None:
    """Raise if the archive itself, not its files, is the trouble.

    Parameters
    ----------
    outcome : Outcome
    midway : bool
        Whether there is more to fetch: an archive that sends nothing but rubbish need
        not be asked for all of it.

    Raises
    ------
    AuthenticationError
        If all that came were login pages and refusals.
    StellarError
        If nothing came, for one and the same kind of reason.
    """
    if outcome.files or not outcome.troubles:
        return
    kinds = {error.kind for error in outcome.troubles.values()}
    reason, *others = dict.fromkeys(map(str, outcome.troubles.values()))
    tried = len(outcome.troubles)
    if kinds == {Trouble.LOGIN}:
        raise AuthenticationError(
            f"the archive wants a login for each of {tried} files: {reason}. If the "
            "release isn't public, give your token by --token-file or "
            "STELLAR_LAMOST_TOKEN; if you did, it is not accepted."
        )
    # many refused alike: the certificate, or a portal that redirects whatever is asked
    alike = midway and kinds == {Trouble.REFUSED} and not others
    if alike or kinds <= {Trouble.PASSING, *([Trouble.DAMAGED] if midway else [])}:
        raise StellarError(
            f"none of {tried} files could be fetched: {reason}. Check the network and "
            "the address (--url), or come back later; --resume goes on."
        )
