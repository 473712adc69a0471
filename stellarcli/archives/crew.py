"""Those who fetch small files, many at once, in one process or in several.

A file is received, verified and written under a temporary name here; its name and the
journal are the parent's business.
"""

from __future__ import annotations

import heapq
import os
import random
import signal
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.context import BaseContext
from typing import Any

from stellarcli import parallel
from stellarcli.archives import verification
from stellarcli.archives.client import Client, Steps
from stellarcli.archives.exchange import Exchange
from stellarcli.archives.store import Item, Store, Written
from stellarcli.errors import FetchError, StellarError, Trouble

RETRIES = 5
ASKED = 3  # times that one file's answer "no" is heard before it is believed
FIRST_WAIT = 0.5  # s; doubled at every repetition
MOST_WAIT = 60.0  # s
LOOK = 0.05  # s between reports of what was done
FINAL = (Trouble.ABSENT, Trouble.REFUSED)
MANY = 200  # files; fewer aren't worth another process
ENDS = (signal.SIGINT, signal.SIGTERM)
PROCESSES = 2  # each does for what comes through a gigabit per second


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


@dataclass(order=True)
class _Job:
    """A file to fetch."""

    ready: float  # when it, or its next exchange, may begin
    number: int
    item: Item = field(compare=False)
    tries: int = field(compare=False, default=0)
    steps: Steps[Written] | None = field(compare=False, default=None)
    exchange: Exchange | None = field(compare=False, default=None)


Result = tuple[Item, Written | BaseException]


class Crew:
    """Works through items, with several connections at once.

    Parameters
    ----------
    client : Client
    store : Store
        Only written to, under temporary names.
    items : iterable of Item
    retries : int
        Repetitions of one file.
    """

    def __init__(
        self, client: Client, store: Store, items: Iterable[Item], retries: int
    ):
        self.client, self.store, self.retries = client, store, retries
        self._address = 0  # index of the addresses that had the last file
        self._streak = 0  # failures of the archive since the last success
        self._results: list[Result] = []
        self._fresh = (_Job(0.0, number, item) for number, item in enumerate(items))
        self._later: list[_Job] = []  # to be repeated
        self._turns: list[_Job] = []  # whose exchange waits for its turn
        self._running: dict[Exchange, _Job] = {}
        self._arrived: deque[_Job] = deque()  # whose exchange has ended

    def batches(self) -> Iterator[list[Result]]:
        """Yield what has been done since the last time, now and then, until all is.

        To tell the caller of every file would cost more time than the files do.
        """
        told = time.monotonic()
        while self._begin():
            seconds = 0.0 if self._arrived else self._pause()
            for exchange in self.client.lines.ended(seconds):
                self._arrived.append(self._running.pop(exchange))
            if self._arrived:  # one, and then those that wait for the network
                self._go_on(self._arrived.popleft())
            if self._results and time.monotonic() > told + LOOK:
                yield self._results
                self._results, told = [], time.monotonic()
        if self._results:
            yield self._results

    def end(self) -> None:
        """Give up what has been begun."""
        self.client.lines.close()
        self.store.tidy()

    def _begin(self) -> bool:
        """Begin what may begin now; whether anything is left to do."""
        while job := self._next():
            job.steps = self._attempt(job.item)
            self._go_on(job)
        now = time.monotonic()
        while self._turns and self._turns[0].ready <= now:
            job = heapq.heappop(self._turns)
            self.client.lines.start(job.exchange)
            self._running[job.exchange] = job
        return bool(self._turns or self._running or self._arrived or self._later)

    def _next(self) -> _Job | None:
        """Take a job, if there are one and a connection for it."""
        if not self._has_room():
            return None
        if self._later and self._later[0].ready <= time.monotonic():
            return heapq.heappop(self._later)
        return next(self._fresh, None)

    def _has_room(self) -> bool:
        asked, most = len(self._turns) + len(self._running), self.client.connections
        return asked < most and len(self._arrived) < most

    def _pause(self) -> float:
        """Seconds until something may begin; at most `LOOK`, to tell what was done."""
        queues = (self._turns, self._later if self._has_room() else [])
        ready = [queue[0].ready for queue in queues if queue]
        seconds = min(ready) - time.monotonic() if ready else LOOK
        return min(max(seconds, 0.0), LOOK)

    def _go_on(self, job: _Job) -> None:
        """Go on with a job until its next exchange, or its end."""
        result: Written | BaseException
        try:
            job.exchange = next(job.steps)
            job.ready = self.client.turn()
            heapq.heappush(self._turns, job)
            return
        except StopIteration as end:
            result, self._streak = end.value, 0
        except FetchError as error:
            self._spare(error)
            job.tries += 1
            if not gives_up(error, job.tries, self.retries):
                job.ready = time.monotonic() + back_off(job.tries, error.wait)
                heapq.heappush(self._later, job)
                return
            result = error
        except Exception as error:  # of the disk, or a mistake: the caller ends the run
            result = error
        self._results.append((job.item, result))

    def _spare(self, error: FetchError) -> None:
        """Slow down where an archive does nothing but fail."""
        if error.kind in (Trouble.PASSING, Trouble.DAMAGED, Trouble.LOGIN):
            self._streak += 1
            rounds, rest = divmod(self._streak, 2 * self.client.connections)
            if rounds and not rest:
                self.client.pause(back_off(rounds))

    def _attempt(self, item: Item) -> Steps[Written]:
        """Fetch and verify one file, and write it under a temporary name."""
        content, proposed = yield from self._content(item)
        try:
            header = verification.check(content, item.cards)
        except FetchError as error:
            reason, kind = str(error), error.kind
            if kind is Trouble.ANSWER and (words := self.client.words_of(content)):
                reason = f"the archive says: {words}"
            kind = Trouble.DAMAGED if kind is Trouble.PASSING else kind
            raise FetchError(reason, kind) from None
        names = [proposed, str(header.get("FILENAME", ""))]
        return self.store.write(content, self._without_token(names))

    def _without_token(self, names: list[str]) -> list[str]:
        """Names but those that a server wrote the token into."""
        return [name for name in names if self.client.mask(name) == name]

    def _content(self, item: Item) -> Steps[tuple[bytes, str]]:
        """Body of the first address that has the file, and the name proposed for it."""
        count = len(item.addresses)
        missing = None
        first = self._address
        for step in range(count):
            index = (first + step) % count
            try:
                steps = self.client.content_steps(item.addresses[index])
                content, reply = yield from steps
            except FetchError as error:
                if error.kind is not Trouble.ABSENT:
                    raise
                missing = error
                continue
            self._address = index
            return content, reply.name
        raise missing


def processes(files: int, connections: int) -> int:
    """How many processes a number of files is worth.

    Only where they can be forked: a new interpreter would need longer than the files.
    """
    if sys.platform != "linux" or files < MANY:
        return 1
    return min(files, connections, PROCESSES)


class Crews:
    """A crew in each of several processes; each takes the next item as it gets free.

    Parameters
    ----------
    client : Client
    store : Store
    keys : sequence of str
    make : callable
        Item of a key.
    retries : int
    count : int
        Of processes.
    """

    def __init__(
        self,
        client: Client,
        store: Store,
        keys: Sequence[str],
        make: Callable[[str], Item],
        retries: int,
        count: int,
    ):
        import multiprocessing

        context = multiprocessing.get_context("fork")
        client.share(context)
        self._next = context.Value("L", 0)
        self._parent = os.getpid()
        self._store, self._keys, self._make = store, keys, make
        self._pipes, self._processes = [], []
        # nothing may interrupt this before there is someone who ends the processes
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDS)
        try:
            for number in range(count):
                share = len(range(number, client.connections, count))
                self._start(context, client, share, retries)
        except BaseException:
            self.end()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDS)

    def _start(
        self, context: BaseContext, client: Client, share: int, retries: int
    ) -> None:
        pipe, end = context.Pipe(duplex=False)
        process = context.Process(
            target=self._run, args=(client, share, retries, end), daemon=True
        )
        process.start()
        end.close()
        self._pipes.append(pipe)
        self._processes.append(process)

    def batches(self) -> Iterator[list[Result]]:
        """Yield what has been done since the last time, until all is.

        Raises
        ------
        StellarError
            If a process died.
        """
        from multiprocessing.connection import wait

        pipes = list(self._pipes)
        while pipes:
            for pipe in wait(pipes):
                try:
                    done = pipe.recv()
                except (EOFError, OSError):
                    time.sleep(parallel.GRACE)  # what ended it may end this one, too
                    raise StellarError(
                        "a process that fetched files was killed, most likely for want "
                        "of memory. Give fewer --connections; --resume goes on."
                    ) from None
                if done is None:
                    pipes.remove(pipe)
                else:
                    yield [(self._make(key), result) for key, result in done]

    def end(self) -> None:
        """End the processes, whatever they do, and remove what they were writing."""
        for process in self._processes:
            process.kill()
        for process, pipe in zip(self._processes, self._pipes, strict=True):
            process.join()
            pipe.close()
        self._store.tidy()

    def _run(self, client: Client, share: int, retries: int, pipe: Any) -> None:
        """Work in a new process."""
        parallel.settle(self._parent)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # that, too, is the parent's
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDS)
        self._store.journal.forget()
        client.settle(share)
        random.seed()
        crew = Crew(client, self._store, self._items(), retries)
        for done in crew.batches():
            pipe.send([(item.key, _sendable(result)) for item, result in done])
        pipe.send(None)

    def _items(self) -> Iterator[Item]:
        while True:
            with self._next.get_lock():
                number = self._next.value
                self._next.value += 1
            if number >= len(self._keys):
                return
            yield self._make(self._keys[number])


def _sendable(result: Written | BaseException) -> Written | BaseException:
    """Make it what another process can read: mistakes become their tracebacks."""
    if isinstance(result, Written | StellarError):
        return result
    return RuntimeError("".join(traceback.format_exception(result)))
