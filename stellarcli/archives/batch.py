"""Many small files: fetched by several threads, verified, repeated where needed."""

from __future__ import annotations

import heapq
import itertools
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from stellarcli.archives import verification
from stellarcli.archives.client import Client, Stopped
from stellarcli.archives.store import Item, Store, exists
from stellarcli.errors import (
    AuthenticationError,
    FetchError,
    StellarError,
    Trouble,
)

RETRIES = 5
ASKED = 3  # times that one file's answer "no" is heard before it is believed
FIRST_WAIT = 0.5  # s; doubled at every repetition
MOST_WAIT = 60.0  # s
LOOK = 0.05  # s between looks at what the threads have done
HOPELESS = 20  # files given up, and not one fetched: the archive is the trouble
FINAL = (Trouble.ABSENT, Trouble.REFUSED)


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


@dataclass(order=True)
class _Job:
    """A file to fetch, and how often that was tried."""

    ready: float
    number: int
    item: Item = field(compare=False)
    tries: int = field(compare=False, default=0)


class _Queue:
    """Jobs by the time from which they may be done; repetitions wait here."""

    def __init__(self, items: Sequence[Item] | itertools.chain):
        self._fresh = iter(items)
        self._waiting: list[_Job] = []
        self._count = itertools.count()
        self._busy = 0
        self._changed = threading.Condition()

    def take(self, stop: threading.Event) -> _Job | None:
        """Return the next job, or None when all are done."""
        with self._changed:
            while not stop.is_set():
                now = time.monotonic()
                if self._waiting and self._waiting[0].ready <= now:
                    self._busy += 1
                    return heapq.heappop(self._waiting)
                item = next(self._fresh, None)
                if item is not None:
                    self._busy += 1
                    return _Job(now, next(self._count), item)
                if not self._waiting and not self._busy:
                    return None
                pause = self._waiting[0].ready - now if self._waiting else 1.0
                self._changed.wait(min(pause, 1.0))
        return None

    def done(self) -> None:
        """Say that a job that was taken needs no repetition."""
        with self._changed:
            self._busy -= 1
            self._changed.notify_all()

    def again(self, job: _Job, seconds: float) -> None:
        """Give a job back, to be done after some time."""
        with self._changed:
            self._busy -= 1
            later = time.monotonic() + seconds
            again = _Job(later, next(self._count), job.item, job.tries)
            heapq.heappush(self._waiting, again)
            self._changed.notify_all()


def back_off(tries: int, wait: float = 0.0) -> float:
    """Seconds before a repetition: doubled each time, with chance in it."""
    longest = min(FIRST_WAIT * 2 ** (tries - 1), MOST_WAIT)
    return max(wait, longest * random.uniform(0.5, 1.0))


def gives_up(error: FetchError, tries: int, retries: int) -> bool:
    """Whether a file that failed for the `tries`-th time isn't tried again."""
    if error.kind in FINAL:
        return True
    most = min(ASKED - 1, retries) if error.kind is Trouble.ANSWER else retries
    return tries > most


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
            client.sleep(back_off(tries, error.wait))


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
    _Run(client, store, retries, outcome, progress).work(map(make, wanted), len(wanted))
    return outcome


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
                reply = client.get(address)
            except FetchError:
                continue
            reply.answer.close()
            if reply.length and "json" not in reply.header("Content-Type"):
                found.append(reply.length)
            break
    return sum(found) // len(found) if found else typical


class _Run:
    """The threads of one batch; results come back to the one that started them."""

    def __init__(self, client, store, retries, outcome, progress):
        self.client: Client = client
        self.store: Store = store
        self.retries: int = retries
        self.outcome: Outcome = outcome
        self.progress = progress
        self.results: deque = deque()
        self.finished = threading.Event()
        self.address = 0  # index of the addresses that had the last file
        self.streak = 0  # failures of the archive since the last success

    def work(self, items, count: int) -> None:
        jobs = _Queue(items)
        number = min(self.client.connections, count)
        threads = [
            threading.Thread(target=self._work, args=(jobs,), daemon=True)
            for _ in range(number)
        ]
        for thread in threads:
            thread.start()
        left = count
        try:
            while left:
                # looked at now and then: waking this thread for every file would cost
                # the others more time than the files do
                if self.finished.wait(LOOK):
                    self.finished.clear()
                while self.results:
                    self._note(*self.results.popleft())
                    left -= 1
        except KeyboardInterrupt as error:
            error.add_note(
                f"{len(self.outcome.files)} files are whole; the same command with "
                "--resume goes on."
            )
            raise
        finally:
            self.client.stop.set()
            end = time.monotonic() + 1.0
            for thread in threads:  # those that wait for a server end by themselves
                thread.join(max(end - time.monotonic(), 0.0))
        self.client.stop.clear()

    def _note(self, item: Item | None, result: object) -> None:
        """Take in what became of one file."""
        outcome = self.outcome
        if isinstance(result, FetchError):
            outcome.troubles[item.key] = result
            self.progress(1, 0, len(outcome.troubles))
            if not outcome.files and len(outcome.troubles) >= HOPELESS:
                raise_if_hopeless(outcome, midway=True)
        elif isinstance(result, StellarError):
            raise type(result)(
                f"{result} {len(outcome.files)} files are whole; --resume goes on."
            ) from result
        elif isinstance(result, BaseException):
            raise result
        else:
            name, size = result
            outcome.files[item.key] = name
            outcome.size += size
            self.progress(1, size, len(outcome.troubles))

    def _work(self, jobs: _Queue) -> None:
        stop = self.client.stop
        while (job := jobs.take(stop)) is not None:
            try:
                result: object = self._attempt(job.item)
                self.streak = 0
            except FetchError as error:
                self._spare(error)
                job.tries += 1
                if not gives_up(error, job.tries, self.retries):
                    jobs.again(job, back_off(job.tries, error.wait))
                    continue
                result = error
            except Stopped:
                return
            except BaseException as error:  # of the disk, or a mistake: the run ends
                result = error
                self.finished.set()
            self.results.append((job.item, result))
            jobs.done()
        self.finished.set()

    def _spare(self, error: FetchError) -> None:
        """Slow all threads down where an archive does nothing but fail."""
        if error.kind in (Trouble.PASSING, Trouble.DAMAGED, Trouble.LOGIN):
            self.streak += 1
            rounds, rest = divmod(self.streak, 2 * self.client.connections)
            if rounds and not rest:
                self.client.pause(back_off(rounds))

    def _attempt(self, item: Item) -> tuple[str, int]:
        """Fetch, verify and keep one file; its name and size."""
        content, proposed = self._content(item)
        try:
            header = verification.check(content, item.cards)
        except FetchError as error:
            reason, kind = str(error), error.kind
            if kind is Trouble.ANSWER and (words := self.client.words_of(content)):
                reason = f"the archive says: {words}"
            kind = Trouble.DAMAGED if kind is Trouble.PASSING else kind
            raise FetchError(reason, kind) from None
        names = [proposed, str(header.get("FILENAME", ""))]
        return self.store.keep(item, content, self._without_token(names)), len(content)

    def _without_token(self, names: list[str]) -> list[str]:
        """Names but those that a server wrote the token into."""
        return [name for name in names if self.client.mask(name) == name]

    def _content(self, item: Item) -> tuple[bytes, str]:
        """Body of the first address that has the file, and the name proposed for it."""
        count = len(item.addresses)
        missing = None
        first = self.address
        for step in range(count):
            index = (first + step) % count
            try:
                content, reply = self.client.content(item.addresses[index])
            except FetchError as error:
                if error.kind is not Trouble.ABSENT:
                    raise
                missing = error
                continue
            self.address = index
            return content, reply.name
        raise missing


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
    reason = str(next(iter(outcome.troubles.values())))
    tried = len(outcome.troubles)
    if kinds == {Trouble.LOGIN}:
        raise AuthenticationError(
            f"the archive wants a login for each of {tried} files: {reason}. If the "
            "release isn't public, give your token by --token-file or "
            "STELLAR_LAMOST_TOKEN; if you did, it is not accepted."
        )
    if kinds <= {Trouble.PASSING, *([Trouble.DAMAGED] if midway else [])}:
        raise StellarError(
            f"none of {tried} files could be fetched: {reason}. Check the network and "
            "the address (--url), or come back later; --resume goes on."
        )
