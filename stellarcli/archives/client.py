"""One GET after another: connections kept open, limits, and what went wrong.

Nothing that a server sends is believed: not its lengths, names, types or redirects.
TLS certificates are always verified; there is no option against it.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Generator, Mapping
from contextlib import nullcontext
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from multiprocessing.context import BaseContext
from types import SimpleNamespace
from typing import Any, TypeVar
from urllib.parse import urlencode, urljoin, urlsplit

from stellarcli import __version__
from stellarcli.archives import wire
from stellarcli.archives.exchange import Begin, Exchange, Failed, Reply
from stellarcli.archives.token import Token
from stellarcli.errors import FetchError, Trouble, UsageError

CONNECTIONS = 8
TIMEOUT = 30.0  # s without a byte
CONNECT_TIMEOUT = 10.0  # s
SLOWEST = 1000  # bytes/s; less counts as nothing
REDIRECTS = 5
LONGEST_WAIT = 120.0  # s that Retry-After may ask for
SMALL = 64 << 20  # bytes; limit of what is kept in memory

LOOK = 0.2  # s; Ctrl-C is heard that often

REDIRECTING = {301, 302, 303, 307, 308}
BUSY = {408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524}
LOGIN_ADDRESS = re.compile(r"log-?in|oauth|passport|sso|signin", re.IGNORECASE)
LOGIN_PAGE = re.compile(
    rb"log\s*-?in|sign\s*-?in|password|oauth|\xe7\x99\xbb\xe5\xbd\x95", re.I
)
T = TypeVar("T")
Steps = Generator[Exchange, None, T]  # exchanges to be done, and what comes of them


class Client:
    """Connections to one archive.

    Parameters
    ----------
    base : str
        Address of the archive; the only place that the token is sent to.
    token : Token, optional
    connections : int
        That may be open at once.
    rate : float, optional
        Requests per second at most.
    timeout : float, s
        Without a byte.

    Raises
    ------
    UsageError
        If `base` is no address, or would carry a token unencrypted.
    """

    def __init__(
        self,
        base: str,
        token: Token | None = None,
        *,
        connections: int = CONNECTIONS,
        rate: float | None = None,
        timeout: float = TIMEOUT,
    ):
        self.base = check_address(base)
        self.token = token
        self.connections = connections
        self.timeout = timeout
        self.lines = wire.Connections(connections, timeout, CONNECT_TIMEOUT, SLOWEST)
        self._interval = 1.0 / rate if rate else 0.0
        # by the monotonic clock: when the next request may start
        self._turn: Any = SimpleNamespace(value=0.0)
        self._lock: Any = nullcontext()
        if token is not None:
            _check_private(self.base)

    def share(self, context: BaseContext) -> None:
        """Let processes that are made of this one keep to one rate and its pauses.

        Connections that are open can't be theirs as well.
        """
        self.lines.close()
        self._turn = context.Value("d", self._turn.value)
        self._lock = self._turn.get_lock()

    def settle(self, connections: int) -> None:
        """Go on in a new process, with a share of the connections."""
        self.connections = connections

    def mask(self, text: str) -> str:
        """Return a text without the token."""
        return self.token.mask(text) if self.token else text

    def pause(self, seconds: float) -> None:
        """Let no request start for some time."""
        with self._lock:
            self._turn.value = max(self._turn.value, time.monotonic() + seconds)

    def turn(self) -> float:
        """Take the next turn: when, by the monotonic clock, a request may start."""
        with self._lock:
            turn = max(time.monotonic(), self._turn.value)
            self._turn.value = turn + self._interval
        return turn

    def content(
        self,
        address: str,
        parameters: Mapping[str, object] | None = None,
        limit: int = SMALL,
    ) -> tuple[bytes, Reply]:
        """Return the whole body of an answer; see `stream`."""
        return self._done(self.content_steps(address, parameters, limit))

    def content_steps(
        self,
        address: str,
        parameters: Mapping[str, object] | None = None,
        limit: int = SMALL,
    ) -> Steps[tuple[bytes, Reply]]:
        """As `content`, for those who have the exchanges done; see `steps`."""
        pieces: list[bytes] = []
        reply = yield from self.steps(
            address, lambda _: pieces.append, parameters, limit=limit
        )
        return b"".join(pieces), reply

    def stream(
        self,
        address: str,
        begin: Begin,
        parameters: Mapping[str, object] | None = None,
        headers: Mapping[str, str] | None = None,
        limit: int = SMALL,
    ) -> Reply:
        """Send a GET request and follow redirects.

        Parameters
        ----------
        address : str
            Absolute.
        begin : callable
            Given the head, as soon as it is there, of an answer with status 200 or 206.
            Returns what takes the body piece by piece, or None if it isn't wanted.
            Whatever either of them raises ends the exchange.
        parameters : mapping, optional
            Of the query.
        headers : mapping, optional
        limit : int
            Bytes; a longer body is refused.

        Returns
        -------
        Reply

        Raises
        ------
        FetchError
            Of every other outcome: another status, a body that is too long, too slow or
            cut. The reason never contains the token.
        """
        return self._done(self.steps(address, begin, parameters, headers, limit))

    def _done(self, steps: Steps[T]) -> T:
        """Do exchanges one after another, and return what comes of them."""
        try:
            while True:
                exchange = next(steps)
                time.sleep(max(self.turn() - time.monotonic(), 0.0))
                self.lines.start(exchange)
                while not self.lines.ended(LOOK):
                    pass
        except StopIteration as end:
            return end.value
        except BaseException:
            self.lines.close()
            raise

    def steps(
        self,
        address: str,
        begin: Begin,
        parameters: Mapping[str, object] | None = None,
        headers: Mapping[str, str] | None = None,
        limit: int = SMALL,
    ) -> Steps[Reply]:
        """As `stream`, for those who have the exchanges done, perhaps many at once.

        Yields
        ------
        Exchange
            To be done before the next one is asked for: a redirect is another one.
        """
        secret = self.token is not None and _origin(address) == _origin(self.base)
        parameters = dict(parameters or {})
        if secret:
            parameters["token"] = self.token.reveal()
        if parameters:
            join = "&" if "?" in address else "?"
            address += join + urlencode(parameters)
        for _ in range(REDIRECTS + 1):
            exchange = Exchange(address, {**HEADERS, **(headers or {})}, begin, limit)
            yield exchange
            self._check(exchange)
            if exchange.reply.good:
                return exchange.reply
            location = exchange.reply.header("Location")
            if exchange.reply.status not in REDIRECTING or not location:
                raise self._refusal(exchange)
            address = self._target(address, location, secret)
        raise FetchError("the archive redirects in circles")

    def _target(self, address: str, location: str, secret: bool) -> str:
        """Where a redirect leads, if it may be followed."""
        try:
            target = urljoin(address, location)
            here, there = urlsplit(address), urlsplit(target)
            _ = there.port  # raises where it is no number
        except ValueError:
            raise FetchError("the archive names an address that is none") from None
        shown = self.mask(f"{there.scheme}://{there.netloc.rpartition('@')[2]}")[:100]
        if there.scheme not in ("http", "https") or not there.hostname:
            raise FetchError(f"a redirect to {shown} is refused", Trouble.REFUSED)
        upgrade = (here.scheme, there.scheme) == ("http", "https")
        same = here.hostname == there.hostname and (
            _origin(address) == _origin(target) or upgrade
        )
        if not same and LOGIN_ADDRESS.search(there.netloc + there.path):
            raise FetchError(f"redirected to a login page of {shown}", Trouble.LOGIN)
        if here.scheme == "https" and there.scheme == "http":
            raise FetchError(
                f"a redirect from https to {shown} is refused", Trouble.REFUSED
            )
        if secret and not same:
            raise FetchError(
                f"a redirect to {shown} is refused: the token belongs to "
                f"{urlsplit(self.base).netloc}",
                Trouble.REFUSED,
            )
        return target

    def _refusal(self, exchange: Exchange) -> FetchError:
        """Build the error that a status means."""
        number, words = exchange.reply.status, self.words_of(b"".join(exchange.words))
        status = f"HTTP status {number}" + (f" ({words})" if words else "")
        wait = _retry_after(exchange.reply.header("Retry-After"))
        if number in (429, 503) and wait:
            self.pause(wait)
        if number in BUSY:
            return FetchError(status, Trouble.PASSING, wait)
        if number in (401, 403, 407):
            return FetchError(f"{status}: access refused", Trouble.LOGIN)
        if number in (404, 410):
            return FetchError(f"{status}: no such file", Trouble.ABSENT)
        return FetchError(status, Trouble.ANSWER)

    def words_of(self, content: bytes) -> str:
        """Return the message in a JSON answer, without the token; empty if none."""
        try:
            answer = json.loads(content)
        except (ValueError, RecursionError):
            return ""
        if not isinstance(answer, dict):
            return ""
        known = ("error", "description", "message", "msg", "detail", "reason")
        words = [answer[key] for key in known if isinstance(answer.get(key), str)]
        text = " ".join(": ".join(words).split())
        return self.mask("".join(c for c in text if c.isprintable()))[:300]

    def _check(self, exchange: Exchange) -> None:
        """Raise if there is no whole answer, in words that don't quote the address."""
        try:
            exchange.check()
        except Failed as failure:
            raise self._failure(failure, exchange) from None

    def _failure(self, failure: Failed, exchange: Exchange) -> FetchError:
        where, text = urlsplit(self.base).netloc, self.mask(str(failure))
        length = exchange.reply.length
        if failure.code == wire.NO_ADDRESS:
            return FetchError("the archive names an address that is none")
        if failure.code in wire.UNRESOLVED:
            return FetchError(f"the name of {where} can't be resolved")
        if failure.code in wire.UNTRUSTED:
            return FetchError(
                f"the certificate of {where} isn't valid: {text}; SSL_CERT_FILE may "
                "name others to trust",
                Trouble.REFUSED,
            )
        if failure.code == wire.TOO_SLOW:
            return _too_slow(exchange.received, self.timeout)
        if failure.code in wire.CUT and exchange.received:
            return FetchError(
                f"the connection was cut after {exchange.received} of {length} bytes"
            )
        return FetchError(f"the connection failed ({text})")


HEADERS = {
    "User-Agent": f"stellar/{__version__} (stellarcli)",
    "Accept-Encoding": "identity",  # lengths and Range mean the file, then
}


def check_address(text: str) -> str:
    """Return an address without its last slash.

    Raises
    ------
    UsageError
        If it isn't one of http or https, or has a password in it.
    """
    try:
        address = urlsplit(text)
        valid = address.scheme in ("http", "https") and bool(address.hostname)
        _ = address.port  # raises where it is no number
    except ValueError:
        valid = False
    if not valid:
        raise UsageError(
            f"{text!r} is no address; it must begin with https:// or http://, such as "
            "https://www.lamost.org."
        )
    if "@" in address.netloc:
        raise UsageError(
            "an address must not hold a user name or a password; give a token by "
            "--token-file or the environment."
        )
    return text.rstrip("/")


def _check_private(base: str) -> None:
    address = urlsplit(base)
    local = address.hostname in ("localhost", "127.0.0.1", "::1")
    if address.scheme != "https" and not local:
        raise UsageError(
            f"the token isn't sent to {address.netloc} over http, where anyone can "
            f"read it; give --url https://{address.netloc}."
        )


def _origin(address: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(address)
    ports = {"http": 80, "https": 443}
    return parts.scheme, parts.hostname, parts.port or ports.get(parts.scheme)


def _retry_after(text: str | None) -> float:
    """Seconds, or seconds until a date; 0 if it is neither."""
    text = (text or "").strip()
    try:
        seconds = float(text)
    except ValueError:
        try:
            date = parsedate_to_datetime(text)
        except (TypeError, ValueError):
            return 0.0
        date = date if date.tzinfo else date.replace(tzinfo=UTC)
        seconds = (date - datetime.now(UTC)).total_seconds()
    return min(max(seconds, 0.0), LONGEST_WAIT) if seconds == seconds else 0.0


def _too_slow(received: int, timeout: float) -> FetchError:
    if not received:
        return FetchError(f"nothing came for {timeout:g} s")
    return FetchError(
        f"too slow: {received} bytes have come, and for {timeout:g} s less than "
        f"{SLOWEST} a second"
    )
