"""HTTP/1.1 on the wire: connections that stay open, GET requests, their answers.

urllib3 spends 0.45 ms of Python more on an exchange, nearly as much as a spectrum takes
to be received, verified and written: with it 2000 spectra come at 60 % of curl's rate
where an answer takes 5 ms, with this at 77 %; from 20 ms on they are equals. This knows
what a client of files needs and no more: answers framed by a length, by chunks or by
the connection's end (RFC 9112), proxies, tunnels. What it doesn't understand ends the
connection, so that the rest of one answer can never be taken for the next.
"""

from __future__ import annotations

import base64
import functools
import os
import re
import socket
import ssl
import sys
import time
import weakref
from contextlib import suppress
from urllib.parse import SplitResult, quote, unquote, urlsplit

from stellarcli.errors import UsageError

PORTS = {"http": 80, "https": 443}
PIECE = 1 << 18  # bytes received at once
LONGEST_HEAD = 1 << 16  # bytes of a status line and its headers
LONGEST_LINE = 1 << 12  # bytes of what stands before a chunk
INTERIM = 8  # answers 1xx before the real one
ROUTES = 100  # other ends that are remembered
END = b"\r\n\r\n"
STATUS = re.compile(r"HTTP/1\.([01]) ([1-9]\d\d)(?: .*)?", re.ASCII)
FIELD = re.compile(
    r"([!#$%&'*+.^_`|~\w-]+):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*?)[ \t]*", re.ASCII
)
SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;.*)?")
USUAL = re.compile(r"(https?)://([^][/?#@\\]+)(/[!-\"$-~]*)?", re.ASCII)
UNFIT = re.compile(r"[^!-~]")  # what can't stand in a request line as it is


class ProtocolError(OSError):
    """A server doesn't speak HTTP, or a part of it that isn't understood."""


class Ended(ConnectionError):
    """A connection has ended where more was expected."""


class Answer:
    """An answer, whose body is read piece by piece.

    Attributes
    ----------
    status : int
    headers : dict of str
        By name in small letters; the first of several, but lengths must agree.
    length : int or None
        Bytes of the body, if the server says so.
    """

    def __init__(self, line: Line, pool: Connections, head: str):
        self._line, self._pool = line, pool
        first, *fields = head.split("\r\n")
        status = STATUS.fullmatch(first)
        if not status:
            raise ProtocolError("the server doesn't speak HTTP/1.1")
        self.status = int(status[2])
        self.headers = _headers(fields)
        words = self.headers.get("connection", "").lower()
        self._keep = "close" not in words and (status[1] == "1" or "keep" in words)
        coding = self.headers.get("transfer-encoding", "").lower()
        self._chunked = coding == "chunked"
        if coding and not self._chunked:
            raise ProtocolError(f"the transfer encoding {coding[:40]!r} isn't known")
        self.length = None if self._chunked else _length(self.headers)
        if self.status in (204, 304):
            self.length, self._chunked = 0, False
        # bytes of the body, or of its chunk, still to come; None until the line ends
        self._left = 0 if self._chunked else self.length
        self._over = False

    def read(self) -> bytes:
        """Return what comes next of the body; nothing at its end.

        Raises
        ------
        Ended
            If the connection ends before.
        ProtocolError
            If a chunk isn't one.
        OSError
            Of the connection.
        """
        if self._over:
            return b""
        try:
            if self._chunked and not self._left:
                self._left = self._line.chunk_size()
            if self._left == 0:
                self._finish()
                return b""
            piece = self._line.some(PIECE if self._left is None else self._left)
            if self._left is not None:
                self._count(piece)
            elif not piece:
                self.close()
            return piece
        except BaseException:
            self.close()
            raise

    def _count(self, piece: bytes) -> None:
        if not piece:
            raise Ended("the connection ended")
        self._left -= len(piece)
        if self._left == 0:
            if self._chunked:
                self._line.blank()
            else:
                self._finish()

    def close(self) -> None:
        """Give up what is left of the body, and the connection with it."""
        if not self._over:
            self._over = True
            self._line.close()

    def _finish(self) -> None:
        self._over = True
        if self._keep and not self._line.rest:
            self._pool.put(self._line)
        else:
            self._line.close()


def _headers(fields: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for field in fields:
        match = FIELD.fullmatch(field)
        if not match:
            raise ProtocolError("a header of the answer is damaged")
        name = match[1].lower()
        if name == "content-length" and found.get(name, match[2]) != match[2]:
            raise ProtocolError("the answer has two different lengths")
        found.setdefault(name, match[2])
    return found


def _length(headers: dict[str, str]) -> int | None:
    text = headers.get("content-length")
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise ProtocolError(f"the length {text[:40]!r} is none")
    return int(text)


class Line:
    """One connection.

    Attributes
    ----------
    place : tuple of (str, str, int)
        Scheme, host and port at its other end.
    used : bool
        Whether it has carried an exchange before.
    rest : bytes
        Received and not yet looked at.
    """

    def __init__(
        self, place: tuple[str, str, int], line: socket.socket, timeout: float
    ):
        self.place, self._socket, self.timeout = place, line, timeout
        self.used = False
        self.rest = b""

    def close(self) -> None:
        """End it."""
        with suppress(OSError):
            self._socket.close()

    def ask(self, request: bytes) -> str:
        """Send a request and return the head of its answer.

        Raises
        ------
        Ended
            If the other end has closed it; nothing was answered then.
        """
        self._socket.sendall(request)
        for _ in range(INTERIM):
            head = self._head()
            if not head.startswith("HTTP/1.1 1"):
                return head
        raise ProtocolError("the server announces answers, and gives none")

    def _head(self) -> str:
        data, self.rest = self.rest, b""
        latest = time.monotonic() + self.timeout  # a byte now and then is no head
        while (end := data.find(END)) < 0:
            piece = self._socket.recv(LONGEST_HEAD)
            if not piece:
                raise Ended("the connection ended") if data else Unanswered
            data = data + piece if data else piece
            if len(data) > LONGEST_HEAD and data.find(END, 0, LONGEST_HEAD) < 0:
                raise ProtocolError("the head of the answer has no end")
            if time.monotonic() > latest:
                raise TimeoutError
        self.rest = data[end + len(END) :]
        return data[:end].decode("latin-1")

    def some(self, size: int) -> bytes:
        """Return at most so many bytes, as they come; nothing at the end."""
        if not self.rest:
            return self._socket.recv(min(size, PIECE))
        piece, self.rest = self.rest[:size], self.rest[size:]
        return piece

    def chunk_size(self) -> int:
        """Read the line before a chunk; of the last one, also what follows it."""
        size = SIZE.fullmatch(self._text())
        if not size:
            raise ProtocolError("a chunk of the answer is damaged")
        number = int(size[1], 16)
        room = LONGEST_HEAD
        while number == 0 and (trailer := self._text()):
            room -= len(trailer)
            if room < 0:
                raise ProtocolError("the end of the answer has no end")
        return number

    def blank(self) -> None:
        """Read the end of a chunk."""
        if self._text():
            raise ProtocolError("a chunk of the answer is longer than it says")

    def _text(self) -> bytes:
        while (end := self.rest.find(b"\r\n")) < 0:
            if len(self.rest) > LONGEST_LINE:
                raise ProtocolError("a chunk of the answer is damaged")
            piece = self._socket.recv(LONGEST_LINE)
            if not piece:
                raise Ended("the connection ended")
            self.rest += piece
        text, self.rest = self.rest[:end], self.rest[end + 2 :]
        return text


class Unanswered(Ended):
    """A connection has ended before the answer: a server may close one that idles."""


class Connections:
    """Connections by their other end; those that idle are used again.

    Parameters
    ----------
    count : int
        That may idle.
    timeout : float, s
        Without a byte.
    connect_timeout : float, s
        Until one is made.
    """

    def __init__(self, count: int, timeout: float, connect_timeout: float):
        self.count, self.timeout = count, timeout
        self.connect_timeout = min(connect_timeout, timeout)
        self.made = 0
        self._idle: list[Line] = []
        self._routes: dict[tuple[str, str], tuple] = {}
        weakref.finalize(self, _close, self._idle)

    @functools.cached_property
    def _context(self) -> ssl.SSLContext:
        """Verify certificates and names, always, by what the system trusts."""
        return ssl.create_default_context()

    def get(self, address: str, headers: dict[str, str]) -> Answer:
        """Send a GET request.

        Parameters
        ----------
        address : str
            Absolute, of http or https.
        headers : dict of str

        Raises
        ------
        OSError
            If there is no answer; `ProtocolError` if it is none.
        ValueError
            If the address is none.
        """
        scheme, netloc, target = _split(address)
        place, name, proxy = self._route(scheme, netloc)
        fields = {"Host": name, **headers}
        if proxy and scheme == "http":
            target = f"http://{name}{target}"
            fields |= _authorisation(proxy)
        lines = [f"GET {target} HTTP/1.1", *(f"{n}: {v}" for n, v in fields.items())]
        request = "\r\n".join([*lines, "", ""]).encode("latin-1")
        while True:
            line = self._take(place) or self._connect(place, proxy)
            try:
                return Answer(line, self, line.ask(request))
            except BaseException as error:
                line.close()
                gone = isinstance(error, ConnectionError | ssl.SSLEOFError)
                cut = isinstance(error, Ended) and not isinstance(error, Unanswered)
                if not (gone and line.used and not cut):
                    raise  # it isn't that the server was tired of waiting

    def _route(
        self, scheme: str, netloc: str
    ) -> tuple[tuple[str, str, int], str, SplitResult | None]:
        """Where to connect, the name for Host, and the proxy in between."""
        if (found := self._routes.get((scheme, netloc))) is not None:
            return found
        parts = urlsplit(f"{scheme}://{netloc}")
        host = (parts.hostname or "").encode("idna").decode()
        if scheme not in PORTS or not host or UNFIT.search(host):
            raise ValueError("no address")
        port = parts.port or PORTS[scheme]
        name = f"[{host}]" if ":" in host else host
        name = name if port == PORTS[scheme] else f"{name}:{port}"
        found = (scheme, host, port), name, proxy_of(scheme, host)
        if len(self._routes) < ROUTES:
            self._routes[scheme, netloc] = found
        return found

    def put(self, line: Line) -> None:
        """Take back a connection that is at rest."""
        line.used = True
        if len(self._idle) < self.count:
            self._idle.append(line)
        else:
            line.close()

    def forget(self) -> None:
        """Let go of connections that another process has, too."""
        _close(self._idle)

    def _take(self, place: tuple[str, str, int]) -> Line | None:
        # threads may take from and put into a list at any time, but not while another
        # looks for something in it: nearly always the last one fits
        others, found = [], None
        while found is None:
            try:
                line = self._idle.pop()
            except IndexError:
                break
            found = line if line.place == place else others.append(line)
        self._idle.extend(others)
        return found

    def _connect(self, place: tuple[str, str, int], proxy: SplitResult | None) -> Line:
        scheme, host, port = place
        there = (proxy.hostname or "", proxy.port or 80) if proxy else (host, port)
        line = socket.create_connection(there, self.connect_timeout)
        try:
            line.settimeout(self.timeout)
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if scheme == "https":
                if proxy:
                    self._tunnel(line, host, port, proxy)
                line = self._context.wrap_socket(line, server_hostname=host)
        except BaseException:
            line.close()
            raise
        self.made += 1
        return Line(place, line, self.timeout)

    def _tunnel(
        self, line: socket.socket, host: str, port: int, proxy: SplitResult
    ) -> None:
        """Ask a proxy to connect, so that it sees nothing of what is sent."""
        there = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        fields = {"Host": there, **_authorisation(proxy)}
        lines = [f"CONNECT {there} HTTP/1.1", *(f"{n}: {v}" for n, v in fields.items())]
        tunnel = Line(("http", host, port), line, self.timeout)
        head = tunnel.ask("\r\n".join([*lines, "", ""]).encode("latin-1"))
        status = STATUS.fullmatch(head.partition("\r\n")[0])
        if not status or status[2] != "200" or tunnel.rest:
            said = f"status {status[2]}" if status else "no HTTP"
            raise ProtocolError(f"the proxy {proxy.hostname} refuses: {said}")


def _close(lines: list[Line]) -> None:
    while lines:
        lines.pop().close()


def _split(address: str) -> tuple[str, str, str]:
    """Scheme, host with port, and what is asked for."""
    if usual := USUAL.fullmatch(address):
        return usual[1], usual[2], usual[3] or "/"
    parts = urlsplit(address)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if UNFIT.search(target):
        target = quote(target, safe="!#$%&'()*+,/:;=?@[]~")
    return parts.scheme, parts.netloc.rpartition("@")[2], target


def proxy_of(scheme: str, host: str) -> SplitResult | None:
    """Proxy of the environment, or of the system's settings where it has such.

    Raises
    ------
    UsageError
        If it is one that can't be used.
    """
    if sys.platform == "linux" and not any("_proxy" in n.lower() for n in os.environ):
        return None  # and no need to import what looks for one
    import urllib.request

    text = urllib.request.getproxies().get(scheme)
    if not text or urllib.request.proxy_bypass(host):
        return None
    proxy = urlsplit(text if "://" in text else f"http://{text}")
    if proxy.scheme != "http" or not proxy.hostname:
        raise UsageError(
            f"the proxy for {scheme} has to be an address that begins with http://; "
            f"look at the environment variable {scheme}_proxy."
        )
    return proxy


def _authorisation(proxy: SplitResult) -> dict[str, str]:
    if not proxy.username:
        return {}
    words = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    secret = base64.b64encode(words.encode()).decode()
    return {"Proxy-Authorization": f"Basic {secret}"}
