"""One GET after another: connections kept open, limits, and what went wrong.

Nothing that a server sends is believed: not its lengths, names, types or redirects.
TLS certificates are always verified; there is no option against it.
"""

from __future__ import annotations

import functools
import json
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.message import Message
from email.utils import parsedate_to_datetime
from multiprocessing.context import BaseContext
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlencode, urljoin, urlsplit

from stellarcli import __version__
from stellarcli.archives import wire
from stellarcli.archives.token import Token
from stellarcli.errors import FetchError, Trouble, UsageError

CONNECTIONS = 8
TIMEOUT = 30.0  # s without a byte
CONNECT_TIMEOUT = 10.0  # s
SLOWEST = 1000  # bytes/s; less counts as nothing
REDIRECTS = 5
LONGEST_WAIT = 120.0  # s that Retry-After may ask for
WORDS = 1 << 16  # bytes of an error's body that are looked at
SMALL = 64 << 20  # bytes; limit of what is kept in memory

STATUS = re.compile(rb"HTTP/[\d.]+ +(\d{3})")
BUSY = {408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524}
LOGIN_ADDRESS = re.compile(r"log-?in|oauth|passport|sso|signin", re.IGNORECASE)
LOGIN_PAGE = re.compile(
    rb"log\s*-?in|sign\s*-?in|password|oauth|\xe7\x99\xbb\xe5\xbd\x95", re.I
)
PLAIN_NAME = re.compile(r'\s*attachment\s*;\s*filename="?([\w.+-]+)"?\s*', re.ASCII)


class Stopped(Exception):
    """The run has ended while this thread waited."""


class _Enough(Exception):
    """No more of a body is wanted."""


@dataclass
class Reply:
    """The head of an answer.

    Attributes
    ----------
    lines : list of bytes
        As they came; an answer 1xx or one of a proxy may stand before the real one.
    """

    lines: list[bytes] = field(default_factory=list)

    @functools.cached_property
    def _fields(self) -> list[bytes]:
        """The status line and what follows it."""
        heads = [n for n, line in enumerate(self.lines) if line.startswith(b"HTTP/")]
        return self.lines[heads[-1] if heads else 0 :]

    @property
    def status(self) -> int:
        """Status, 0 if there is none."""
        found = STATUS.match(self._fields[0]) if self._fields else None
        return int(found[1]) if found else 0

    @property
    def whole(self) -> bool:
        """Whether the head came to its end."""
        return b"\r\n" in self.lines or b"\n" in self.lines

    @property
    def good(self) -> bool:
        """Whether the body is what was asked for."""
        return self.status in (200, 206)

    @property
    def length(self) -> int | None:
        """Bytes of the body, if the server says so."""
        text = self.header("Content-Length")
        sized = text.isascii() and text.isdigit() and len(text) < 20
        return int(text) if sized and not self.header("Transfer-Encoding") else None

    @property
    def name(self) -> str:
        """File name that the server proposes; anything may be in it."""
        return _proposed_name(self.header("Content-Disposition"))

    def header(self, name: str) -> str:
        """Return a header; empty if there is none."""
        wanted = name.lower().encode()
        for line in self._fields:
            found, _, value = line.partition(b":")
            if found.lower() == wanted:
                return value.strip().decode("latin-1")
        return ""


Write = Callable[[bytes], object]
Begin = Callable[[Reply], Write | None]


class _Body:
    """Where the pieces of a body go, once its head is known.

    Exceptions can't pass through libcurl: they are kept here.

    Parameters
    ----------
    begin : callable
        Of a good answer's head; returns what takes the pieces, or None if they aren't
        wanted.
    stop : threading.Event
        Ends the exchange.
    """

    def __init__(self, begin: Begin, stop: threading.Event):
        self.reply = Reply()
        self.words: list[bytes] = []  # body of an answer that isn't good
        self.error: BaseException | None = None
        self._begin, self._stop = begin, stop
        self._write: Write | None = None

    def take(self, piece: bytes) -> int | None:
        """Pass on a piece; -1 to libcurl if nobody wants more."""
        try:
            if self._stop.is_set():
                raise Stopped
            self.begun()(piece)
        except BaseException as error:
            self.error = error
            return -1
        return None

    def begun(self) -> Write:
        """Return what takes the pieces."""
        if self._write is None:
            begin = self._begin if self.reply.good else self._remember
            self._write = begin(self.reply)
        if self._write is None:
            raise _Enough
        return self._write

    def _remember(self, reply: Reply) -> Write:
        return self._word

    def _word(self, piece: bytes) -> None:
        self.words.append(piece)
        if sum(map(len, self.words)) > WORDS:
            raise _Enough


class Client:
    """Connections to one archive, shared by threads.

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
        self.stop = threading.Event()
        self._interval = 1.0 / rate if rate else 0.0
        # by the monotonic clock: when the next request may start
        self._turn: Any = SimpleNamespace(value=0.0)
        self._lock: Any = threading.Lock()
        self._lines = wire.Connections(timeout, CONNECT_TIMEOUT, SLOWEST)
        if token is not None:
            _check_private(self.base)

    def share(self, context: BaseContext) -> None:
        """Let processes that are made of this one keep to one rate and its pauses.

        Connections that are open can't be theirs as well.
        """
        self._lines.close()
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

    def sleep(self, seconds: float) -> None:
        """Wait; raise `Stopped` as soon as the run has ended."""
        if self.stop.wait(seconds) if seconds > 0 else self.stop.is_set():
            raise Stopped

    def content(
        self,
        address: str,
        parameters: Mapping[str, object] | None = None,
        limit: int = SMALL,
    ) -> tuple[bytes, Reply]:
        """Return the whole body of an answer; see `stream`."""
        pieces: list[bytes] = []
        reply = self.stream(address, lambda _: pieces.append, parameters, limit=limit)
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
        secret = self.token is not None and _origin(address) == _origin(self.base)
        parameters = dict(parameters or {})
        if secret:
            parameters["token"] = self.token.reveal()
        if parameters:
            join = "&" if "?" in address else "?"
            address += join + urlencode(parameters)
        for _ in range(REDIRECTS + 1):
            body = _Body(begin, self.stop)
            self._exchange(address, {**HEADERS, **(headers or {})}, body, limit)
            location = body.reply.header("Location")
            if body.reply.status not in (301, 302, 303, 307, 308) or not location:
                self._check(body)
                return body.reply
            address = self._target(address, location, secret)
        raise FetchError("the archive redirects in circles")

    def _exchange(
        self, address: str, fields: Mapping[str, str], body: _Body, limit: int
    ) -> None:
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._turn.value)
            self._turn.value = turn + self._interval
        self.sleep(turn - now)
        try:
            self._lines.get(address, fields, body.reply.lines.append, body.take, limit)
            if not body.reply.whole:
                raise FetchError("the connection was cut in the head of the answer")
            body.begun()  # of an empty body nobody has heard yet
        except _Enough:
            return
        except (wire.Failed, ValueError) as failure:
            if body.error is None:
                raise self._failure(failure, body.reply, limit) from None
        if body.error is not None and not isinstance(body.error, _Enough):
            raise body.error

    def _target(self, address: str, location: str, secret: bool) -> str:
        """Where a redirect leads, if it may be followed."""
        target = urljoin(address, location)
        here, there = urlsplit(address), urlsplit(target)
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

    def _check(self, body: _Body) -> None:
        """Raise the error that a status means."""
        if body.reply.good:
            return
        number, words = body.reply.status, self.words_of(b"".join(body.words))
        status = f"HTTP status {number}" + (f" ({words})" if words else "")
        wait = _retry_after(body.reply.header("Retry-After"))
        if number in (429, 503) and wait:
            self.pause(wait)
        if number in BUSY:
            raise FetchError(status, Trouble.PASSING, wait)
        if number in (401, 403, 407):
            raise FetchError(f"{status}: access refused", Trouble.LOGIN)
        if number in (404, 410):
            raise FetchError(f"{status}: no such file", Trouble.ABSENT)
        raise FetchError(status, Trouble.ANSWER)

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

    def _failure(
        self, failure: wire.Failed | ValueError, reply: Reply, limit: int
    ) -> FetchError:
        """Say why an exchange failed, in words that don't quote the address."""
        if self.stop.is_set():
            raise Stopped
        if isinstance(failure, ValueError) or failure.code == wire.NO_ADDRESS:
            return FetchError("the archive names an address that is none")
        where, text = urlsplit(self.base).netloc, self.mask(str(failure))
        if failure.code in wire.UNRESOLVED:
            return FetchError(f"the name of {where} can't be resolved")
        if failure.code in wire.UNTRUSTED:
            return FetchError(
                f"the certificate of {where} isn't valid: {text}", Trouble.REFUSED
            )
        if failure.code == wire.TOO_LONG:
            return _too_long(reply.length, limit)
        if failure.code == wire.TOO_SLOW:
            return _too_slow(failure.received, self.timeout)
        if failure.code in wire.CUT and failure.received:
            return FetchError(
                f"the connection was cut after {failure.received} of {reply.length} "
                "bytes"
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


def _proposed_name(disposition: str) -> str:
    plain = PLAIN_NAME.fullmatch(disposition)
    if plain or not disposition:
        return plain[1] if plain else ""
    message = Message()
    message["Content-Disposition"] = disposition
    try:
        return message.get_filename("") or ""
    except (LookupError, ValueError):  # names in encodings that don't exist
        return ""


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


def _too_long(length: int | None, limit: int) -> FetchError:
    found = f"{length} bytes" if length else "more and more"
    return FetchError(
        f"the archive sends {found}, where {limit} bytes are the most", Trouble.REFUSED
    )


def _too_slow(received: int, timeout: float) -> FetchError:
    if not received:
        return FetchError(f"nothing came for {timeout:g} s")
    return FetchError(
        f"too slow: {received} bytes have come, and for {timeout:g} s less than "
        f"{SLOWEST} a second"
    )
