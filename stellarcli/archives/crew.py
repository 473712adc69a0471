"""The threads that fetch small files, and the processes that they are spread over.

A file is received, verified and written under a temporary name here; its name and the
journal are the parent's business. Python runs one thread of a process at a time, so
that large batches are worked at by several processes.
"""

from __future__ import annotations

import heapq
import itertools
import os
import random
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.context import BaseContext
from typing import Any

from stellarcli import parallel
from stellarcli.archives import verification
from stellarcli.archives.client import Client, Stopped
from stellarcli.archives.store import Item, Store, Written
from stellarcli.errors import FetchError, StellarError, Trouble

RETRIES = 5
ASKED = 3  # times that one file's answer "no" is heard before it is believed
FIRST_WAIT = 0.5  # s; doubled at every repetition
MOST_WAIT = 60.0  # s
LOOK = 0.05  # s between looks at what the threads have done
FINAL = (Trouble.ABSENT, Trouble.REFUSED)
MANY = 200  # files; fewer aren't worth another process
ENDS = (signal.SIGINT, signal.SIGTERM)
PROCESSES = 4  # threads of one process wait for each other as much as they work


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
    """A file to fetch, and how often that was tried."""

    ready: float
    number: int
    item: Item = field(compare=False)
    tries: int = field(compare=False, default=0)


class _Queue:
    """Jobs by the time from which they may be done; repetitions wait here."""

    def __init__(self, items: Iterable[Item]):
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


Result = tuple[Item, Written | BaseException]


class Crew:
    """Threads that work through items.

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
        self.results: deque[Result] = deque()
        self._ended = threading.Event()
        self._address = 0  # index of the addresses that had the last file
        self._streak = 0  # failures of the archive since the last success
        self._jobs = _Queue(items)
        self._threads = [
            threading.Thread(target=self._work, daemon=True)
            for _ in range(client.connections)
        ]
        try:
            for thread in self._threads:
                thread.start()
        except BaseException:  # Ctrl-C, when the first ones are already at work
            self.end()
            raise

    def batches(self) -> Iterator[list[Result]]:
        """Yield what has been done since the last time, until all is.

        It is looked at now and then: to wake the caller for every file would cost the
        threads more time than the files do.
        """
        over = False
        while not over:
            if self._ended.wait(LOOK):
                self._ended.clear()
            over = not any(thread.is_alive() for thread in self._threads)
            done = [self.results.popleft() for _ in range(len(self.results))]
            if done:
                yield done

    def end(self) -> None:
        """Let the threads stop; those that wait for a server end by themselves."""
        self.client.stop.set()
        end = time.monotonic() + 1.0
        for thread in self._threads:
            if thread.ident is not None:  # it was started
                thread.join(max(end - time.monotonic(), 0.0))
        if not any(thread.is_alive() for thread in self._threads):
            self.client.stop.clear()
        self.store.tidy()

    def _work(self) -> None:
        try:
            while (job := self._jobs.take(self.client.stop)) is not None:
                self._do(job)
        except Stopped:
            return
        finally:
            self._ended.set()

    def _do(self, job: _Job) -> None:
        result: Written | BaseException
        try:
            result = self._attempt(job.item)
            self._streak = 0
        except FetchError as error:
            self._spare(error)
            job.tries += 1
            if not gives_up(error, job.tries, self.retries):
                self._jobs.again(job, back_off(job.tries, error.wait))
                return
            result = error
        except Stopped:
            raise
        except BaseException as error:  # of the disk, or a mistake: the run ends
            result = error
            self._ended.set()
        self.results.append((job.item, result))
        self._jobs.done()

    def _spare(self, error: FetchError) -> None:
        """Slow all threads down where an archive does nothing but fail."""
        if error.kind in (Trouble.PASSING, Trouble.DAMAGED, Trouble.LOGIN):
            self._streak += 1
            rounds, rest = divmod(self._streak, 2 * self.client.connections)
            if rounds and not rest:
                self.client.pause(back_off(rounds))

    def _attempt(self, item: Item) -> Written:
        """Fetch and verify one file, and write it under a temporary name."""
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
        return self.store.write(content, self._without_token(names))

    def _without_token(self, names: list[str]) -> list[str]:
        """Names but those that a server wrote the token into."""
        return [name for name in names if self.client.mask(name) == name]

    def _content(self, item: Item) -> tuple[bytes, str]:
        """Body of the first address that has the file, and the name proposed for it."""
        count = len(item.addresses)
        missing = None
        first = self._address
        for step in range(count):
            index = (first + step) % count
            try:
                content, reply = self.client.content(item.addresses[index])
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
