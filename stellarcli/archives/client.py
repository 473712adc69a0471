"""One GET after another: connections kept open, limits, and what went wrong.

Nothing that a server sends is believed: not its lengths, names, types or redirects.
TLS certificates are always verified; there is no option against it.
"""

from __future__ import annotations

import json
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
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
SLOWEST = 1000.0  # bytes/s; slower bodies, on average, count as hanging
REDIRECTS = 5
LONGEST_WAIT = 120.0  # s that Retry-After may ask for
WORDS = 1 << 16  # bytes of an error's body that are looked at
SMALL = 64 << 20  # bytes; limit of what is kept in memory

BUSY = {408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524}
LOGIN_ADDRESS = re.compile(r"log-?in|oauth|passport|sso|signin", re.IGNORECASE)
LOGIN_PAGE = re.compile(
    rb"log\s*-?in|sign\s*-?in|password|oauth|\xe7\x99\xbb\xe5\xbd\x95", re.I
)
PLAIN_NAME = re.compile(r'\s*attachment\s*;\s*filename="?([\w.+-]+)"?\s*', re.ASCII)


class Stopped(Exception):
    """The run has ended while this thread waited."""


@dataclass
class Reply:
    """The head of a good answer; its body is read from `Client.body`.

    Attributes
    ----------
    answer : wire.Answer
    """

    answer: wire.Answer

    @property
    def length(self) -> int | None:
        """Bytes of the body, if the server says so."""
        return self.answer.length

    @property
    def name(self) -> str:
        """File name that the server proposes; anything may be in it."""
        return _proposed_name(self.header("Content-Disposition"))

    def header(self, name: str) -> str:
        """Return a header; empty if there is none."""
        return self.answer.headers.get(name.lower(), "")


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
        self._lines = wire.Connections(connections, timeout, CONNECT_TIMEOUT)
        address = urlsplit(self.base)
        wire.proxy_of(address.scheme, address.hostname or "")  # now, not in a thread
        if token is not None:
            _check_private(self.base)

    def share(self, context: BaseContext) -> None:
        """Let processes that are made of this one keep to one rate and its pauses."""
        self._turn = context.Value("d", self._turn.value)
        self._lock = self._turn.get_lock()

    def settle(self, connections: int) -> None:
        """Go on in a new process, with a share of the connections."""
        self.connections = connections
        self._lines.forget()

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

    def get(
        self,
        address: str,
        parameters: Mapping[str, object] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """Send a GET request and follow redirects.

        Parameters
        ----------
        address : str
            Absolute.
        parameters : mapping, optional
            Of the query.
        headers : mapping, optional

        Returns
        -------
        Reply
            With status 200 or 206.

        Raises
        ------
        FetchError
            Of every other outcome; the reason never contains the token.
        """
        secret = self.token is not None and _origin(address) == _origin(self.base)
        parameters = dict(parameters or {})
        if secret:
            parameters["token"] = self.token.reveal()
        if parameters:
            join = "&" if "?" in address else "?"
            address += join + urlencode(parameters)
        for _ in range(REDIRECTS + 1):
            reply = Reply(self._send(address, headers or {}))
            location = reply.header("Location")
            if reply.answer.status not in (301, 302, 303, 307, 308) or not location:
                return self._checked(reply)
            reply.answer.close()
            address = self._target(address, location, secret)
        raise FetchError("the archive redirects in circles")

    def content(
        self,
        address: str,
        parameters: Mapping[str, object] | None = None,
        limit: int = SMALL,
    ) -> tuple[bytes, Reply]:
        """Return the whole body of an answer; see `get` and `body`."""
        reply = self.get(address, parameters)
        return b"".join(self.body(reply, limit)), reply

    def body(self, reply: Reply, limit: int) -> Iterator[bytes]:
        """Yield the body in pieces, as they arrive.

        Parameters
        ----------
        reply : Reply
        limit : int
            Bytes; a longer body is refused.

        Raises
        ------
        FetchError
            If it is too long, too slow, or cut.
        """
        received, start = 0, time.monotonic()
        try:
            if reply.length is not None and reply.length > limit:
                raise _too_long(f"{reply.length} bytes", limit)
            while piece := reply.answer.read():
                received += len(piece)
                if received > limit:
                    raise _too_long("more and more", limit)
                self._check_speed(received, time.monotonic() - start)
                yield piece
        except wire.Ended:
            raise _cut(received, reply.length) from None
        except OSError as error:
            raise self._failure(error) from None
        finally:
            reply.answer.close()  # what is left in it would be the next answer

    def _check_speed(self, received: int, seconds: float) -> None:
        if self.stop.is_set():
            raise Stopped
        if seconds > self.timeout and received < SLOWEST * seconds:
            raise FetchError(
                f"too slow: {received} bytes in {seconds:.0f} s, less than "
                f"{SLOWEST:.0f} a second"
            )

    def _send(self, address: str, headers: Mapping[str, str]) -> wire.Answer:
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._turn.value)
            self._turn.value = turn + self._interval
        self.sleep(turn - now)
        try:
            return self._lines.get(address, {**HEADERS, **headers})
        except (OSError, ValueError) as error:
            raise self._failure(error) from None

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

    def _checked(self, reply: Reply) -> Reply:
        """Return the reply, or raise the error that its status means."""
        number = reply.answer.status
        if number in (200, 206):
            return reply
        words = self._words(reply)
        status = f"HTTP status {number}" + (f" ({words})" if words else "")
        wait = _retry_after(reply.header("Retry-After"))
        if number in (429, 503) and wait:
            self.pause(wait)
        if number in BUSY:
            raise FetchError(status, Trouble.PASSING, wait)
        if number in (401, 403, 407):
            raise FetchError(f"{status}: access refused", Trouble.LOGIN)
        if number in (404, 410):
            raise FetchError(f"{status}: no such file", Trouble.ABSENT)
        raise FetchError(status, Trouble.ANSWER)

    def _words(self, reply: Reply) -> str:
        """Return what the body of an error says, if it is JSON."""
        try:
            return self.words_of(b"".join(self.body(reply, WORDS)))
        except FetchError:
            return ""

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

    def _failure(self, error: Exception) -> FetchError:
        """Say why a connection failed, in words that don't quote the address."""
        if self.stop.is_set():
            raise Stopped
        where = urlsplit(self.base).netloc
        if isinstance(error, socket.gaierror):
            return FetchError(f"the name of {where} can't be resolved")
        if isinstance(error, ssl.SSLCertVerificationError):
            return FetchError(
                f"the certificate of {where} isn't valid: {error.verify_message}",
                Trouble.REFUSED,
            )
        if isinstance(error, TimeoutError):
            return FetchError(f"nothing came for {self.timeout:g} s")
        if isinstance(error, ValueError):
            return FetchError("the archive names an address that is none")
        text = error.strerror or str(error) or type(error).__name__
        return FetchError(f"the connection failed ({self.mask(text)})")


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


def _cut(received: int, length: int | None) -> FetchError:
    return FetchError(f"the connection was cut after {received} of {length} bytes")


def _too_long(found: str, limit: int) -> FetchError:
    return FetchError(
        f"the archive sends {found}, where {limit} bytes are the most", Trouble.REFUSED
    )
