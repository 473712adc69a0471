"""One GET after another: connections kept open, limits, and what went wrong.

Nothing that a server sends is believed: not its lengths, names, types or redirects.
TLS certificates are always verified; there is no option against it.
"""

from __future__ import annotations

import json
import logging
import re
import ssl
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.message import Message
from email.utils import parsedate_to_datetime
from urllib.parse import urlencode, urljoin, urlsplit

import urllib3

from stellarcli import __version__
from stellarcli.archives.token import Token
from stellarcli.errors import FetchError, Trouble, UsageError

CONNECTIONS = 8
TIMEOUT = 30.0  # s without a byte
CONNECT_TIMEOUT = 10.0  # s
CHUNK = 1 << 18  # bytes
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

# its debug messages quote addresses, and thereby tokens
logging.getLogger("urllib3").addFilter(lambda record: record.levelno > logging.DEBUG)
for _name in ("connectionpool", "connection", "util.retry", "response", "poolmanager"):
    logging.getLogger(f"urllib3.{_name}").setLevel(logging.ERROR)


class Stopped(Exception):
    """The run has ended while this thread waited."""


@dataclass
class Reply:
    """The head of a good answer; its body is read from `Client.body`.

    Attributes
    ----------
    response : urllib3.BaseHTTPResponse
    length : int or None
        Bytes of the body, if the server says so.
    name : str
        File name that the server proposes; anything may be in it.
    """

    response: urllib3.BaseHTTPResponse
    length: int | None
    name: str

    @property
    def headers(self) -> Mapping[str, str]:
        """Headers by name, in any case."""
        return self.response.headers


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
        self._lock = threading.Lock()
        self._turn = 0.0  # by the monotonic clock: when the next request may start
        self._pool = _pool(self.base, connections, timeout)
        # the usual case spares urllib3 to take every address apart; not for a proxy
        direct = type(self._pool) is urllib3.PoolManager
        self._home = self._pool.connection_from_url(self.base) if direct else None
        self._root = len("{0.scheme}://{0.netloc}".format(urlsplit(self.base)))
        if token is not None:
            _check_private(self.base)

    def mask(self, text: str) -> str:
        """Return a text without the token."""
        return self.token.mask(text) if self.token else text

    def pause(self, seconds: float) -> None:
        """Let no request start for some time."""
        with self._lock:
            self._turn = max(self._turn, time.monotonic() + seconds)

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
            response = self._send(address, headers or {})
            location = response.headers.get("Location")
            if response.status not in (301, 302, 303, 307, 308) or not location:
                return self._checked(response)
            response.close()
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
            while chunk := reply.response.read1(CHUNK):
                received += len(chunk)
                if received > limit:
                    raise _too_long("more and more", limit)
                self._check_speed(received, time.monotonic() - start)
                yield chunk
            if reply.length not in (None, received):
                raise _cut(received, reply.length)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            if reply.length is not None and "IncompleteRead" in repr(error):
                raise _cut(received, reply.length) from None
            raise self._failure(error) from None
        finally:
            if reply.length != received:
                reply.response.close()  # what is left in it would be the next answer
            reply.response.release_conn()

    def _check_speed(self, received: int, seconds: float) -> None:
        if self.stop.is_set():
            raise Stopped
        if seconds > self.timeout and received < SLOWEST * seconds:
            raise FetchError(
                f"too slow: {received} bytes in {seconds:.0f} s, less than "
                f"{SLOWEST:.0f} a second"
            )

    def _send(
        self, address: str, headers: Mapping[str, str]
    ) -> urllib3.BaseHTTPResponse:
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._turn)
            self._turn = turn + self._interval
        self.sleep(turn - now)
        options = {
            "headers": {**HEADERS, **headers},
            "redirect": False,
            "retries": False,
            "preload_content": False,
            "decode_content": False,
        }
        try:
            if self._home is not None and address.startswith(f"{self.base}/"):
                target = address[self._root :]
                return self._home.urlopen("GET", target, **options)
            return self._pool.request("GET", address, **options)
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
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

    def _checked(self, response: urllib3.BaseHTTPResponse) -> Reply:
        """Return the reply, or raise the error that its status means."""
        if response.status in (200, 206):
            return Reply(response, _length(response), _proposed_name(response))
        words = self._words(response)
        status = f"HTTP status {response.status}" + (f" ({words})" if words else "")
        wait = _retry_after(response.headers.get("Retry-After"))
        if response.status in (429, 503) and wait:
            self.pause(wait)
        if response.status in BUSY:
            raise FetchError(status, Trouble.PASSING, wait)
        if response.status in (401, 403, 407):
            raise FetchError(f"{status}: access refused", Trouble.LOGIN)
        if response.status in (404, 410):
            raise FetchError(f"{status}: no such file", Trouble.ABSENT)
        raise FetchError(status, Trouble.ANSWER)

    def _words(self, response: urllib3.BaseHTTPResponse) -> str:
        """Return what the body of an error says, if it is JSON."""
        reply = Reply(response, _length(response), "")
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
        cause = _root(error)
        errors = urllib3.exceptions
        if isinstance(error, errors.NameResolutionError):
            return FetchError(f"the name of {where} can't be resolved")
        if isinstance(cause, ssl.SSLCertVerificationError):
            return FetchError(
                f"the certificate of {where} isn't valid: {cause.verify_message}",
                Trouble.REFUSED,
            )
        timeouts = errors.ConnectTimeoutError, errors.ReadTimeoutError, TimeoutError
        refused = isinstance(error, errors.NewConnectionError)  # one of the former
        if isinstance(error, timeouts) and not refused:
            return FetchError(f"nothing came for {self.timeout:g} s")
        if isinstance(error, errors.LocationParseError | errors.LocationValueError):
            return FetchError("the archive names an address that is none")
        text = getattr(cause, "strerror", None) or type(cause).__name__
        return FetchError(f"the connection failed ({self.mask(str(text))})")


HEADERS = {
    "User-Agent": f"stellar/{__version__} (stellarcli)",
    "Accept-Encoding": "identity",  # lengths and Range mean the file, then
}


def _pool(base: str, connections: int, timeout: float) -> urllib3.PoolManager:
    """Make connections, through the proxy of the environment if there is one."""
    options = {
        "maxsize": connections,
        "block": False,
        "timeout": urllib3.Timeout(connect=min(CONNECT_TIMEOUT, timeout), read=timeout),
        # verifies certificates and names; stated, so that no default can undo it
        "ssl_context": ssl.create_default_context(),
        "cert_reqs": "CERT_REQUIRED",
        "assert_hostname": None,
    }
    address = urlsplit(base)
    proxy = urllib.request.getproxies().get(address.scheme)
    if proxy and not urllib.request.proxy_bypass(address.hostname or ""):
        return urllib3.ProxyManager(proxy, **options)
    return urllib3.PoolManager(**options)


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


def _length(response: urllib3.BaseHTTPResponse) -> int | None:
    text = response.headers.get("Content-Length", "")
    chunked = "chunked" in response.headers.get("Transfer-Encoding", "").lower()
    return int(text) if text.isascii() and text.isdigit() and not chunked else None


def _proposed_name(response: urllib3.BaseHTTPResponse) -> str:
    message = Message()
    message["Content-Disposition"] = response.headers.get("Content-Disposition", "")
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


def _root(error: BaseException) -> BaseException:
    """Return the error at the bottom of those that urllib3 wraps around it."""
    inside = [error.__cause__, *error.args]
    found = next((e for e in inside if isinstance(e, BaseException)), None)
    return error if found is None else _root(found)


def _cut(received: int, length: int | None) -> FetchError:
    return FetchError(f"the connection was cut after {received} of {length} bytes")


def _too_long(found: str, limit: int) -> FetchError:
    return FetchError(
        f"the archive sends {found}, where {limit} bytes are the most", Trouble.REFUSED
    )
