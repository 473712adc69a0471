"""GET requests by libcurl: connections that stay open, and what they may do.

libcurl does what no archive needs, too; here it speaks HTTP/1.1 and nothing else,
follows no redirects, reads no ``~/.netrc``, keeps no cookies, and verifies certificates
always. Proxies are those that the environment names, as with ``curl``.
"""

from __future__ import annotations

import functools
import math
import os
import sys
import threading
from collections.abc import Callable, Mapping
from urllib.parse import quote, urlsplit

import pycurl

from stellarcli.errors import UsageError

PIECE = 1 << 19  # bytes received at once
PLAIN = frozenset(map(chr, range(0x21, 0x7F)))  # what stands in an address as it is
KEPT = "!#$%&'()*+,/:;=?@[]~"  # of these, what quoting leaves alone
# what other programs on a cluster are told their certificates by; the first that is set
AUTHORITIES = ("SSL_CERT_FILE", "CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE")
OPTIONS = {
    pycurl.NOSIGNAL: 1,
    pycurl.PROTOCOLS: pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS,
    pycurl.HTTP_VERSION: pycurl.CURL_HTTP_VERSION_1_1,
    pycurl.FOLLOWLOCATION: 0,
    pycurl.NETRC: pycurl.NETRC_IGNORED,
    pycurl.SSL_VERIFYPEER: 1,
    pycurl.SSL_VERIFYHOST: 2,
    pycurl.BUFFERSIZE: PIECE,
}
UNRESOLVED = {pycurl.E_COULDNT_RESOLVE_HOST, pycurl.E_COULDNT_RESOLVE_PROXY}
UNTRUSTED = {pycurl.E_PEER_FAILED_VERIFICATION, pycurl.E_SSL_CACERT_BADFILE}
CUT = {pycurl.E_PARTIAL_FILE, pycurl.E_RECV_ERROR}
TOO_LONG = pycurl.E_FILESIZE_EXCEEDED
TOO_SLOW = pycurl.E_OPERATION_TIMEDOUT
NO_ADDRESS = pycurl.E_URL_MALFORMAT


class Failed(Exception):
    """An exchange that came to no good end.

    Attributes
    ----------
    code : int
        Of libcurl, one of ``pycurl.E_…``.
    received : int
        Bytes of the body.
    """

    def __init__(self, code: int, text: str, received: int):
        super().__init__(text)
        self.code, self.received = code, received


class Connections:
    """Connections that stay open; every thread that asks has one of its own.

    Parameters
    ----------
    timeout : float, s
        Without a byte, or with less than `slowest`; whole seconds are kept.
    connect_timeout : float, s
        Until a connection is made.
    slowest : int
        Bytes per second; less counts as nothing.
    """

    def __init__(self, timeout: float, connect_timeout: float, slowest: int):
        self._limits = {
            pycurl.CONNECTTIMEOUT_MS: math.ceil(min(connect_timeout, timeout) * 1e3),
            pycurl.LOW_SPEED_TIME: math.ceil(timeout),
            pycurl.LOW_SPEED_LIMIT: slowest,
        }
        self._idle: list[pycurl.Curl] = []

    def get(
        self,
        address: str,
        fields: Mapping[str, str],
        head: Callable[[bytes], object],
        body: Callable[[bytes], int | None],
        limit: int,
    ) -> None:
        """Send a GET request and pass on what is answered.

        Parameters
        ----------
        address : str
            Absolute.
        fields : mapping
            Of the request's head.
        head : callable
            Given every line of heads, those before the real one included.
        body : callable
            Given the body piece by piece; ends the exchange by returning -1, and must
            not raise.
        limit : int
            Bytes of the body; more end the exchange.

        Raises
        ------
        Failed
            If it didn't come to its end.
        ValueError
            If the address is none.
        """
        try:
            line = self._idle.pop()
        except IndexError:
            line = self._made()
        try:
            line.setopt(pycurl.URL, cleaned(address).encode())
            line.setopt(pycurl.HTTPHEADER, [f"{n}: {v}" for n, v in fields.items()])
            line.setopt(pycurl.HEADERFUNCTION, head)
            line.setopt(pycurl.WRITEFUNCTION, body)
            line.setopt(pycurl.MAXFILESIZE_LARGE, limit)
            # libcurl looks up once a second, and Python can take Ctrl-C then
            here = threading.current_thread() is threading.main_thread()
            line.setopt(pycurl.NOPROGRESS, not here)
            if address.startswith("https:"):
                for option, value in self._authorities:
                    line.setopt(option, value)
            line.perform()
        except pycurl.error as error:
            code, text = error.args
            received = int(line.getinfo(pycurl.SIZE_DOWNLOAD_T))
            raise Failed(code, text, received) from None
        finally:
            self._idle.append(line)

    def close(self) -> None:
        """Close connections that idle: those of other processes are their own."""
        while self._idle:
            self._idle.pop().close()

    @functools.cached_property
    def _authorities(self) -> list[tuple[int, str]]:
        return authorities()

    def _made(self) -> pycurl.Curl:
        line = pycurl.Curl()
        for option, value in {**OPTIONS, **self._limits}.items():
            line.setopt(option, value)
        line.setopt(pycurl.XFERINFOFUNCTION, _look_up)
        if sys.platform in ("darwin", "win32"):  # elsewhere PycURL finds the system's
            line.setopt(pycurl.SSL_OPTIONS, pycurl.SSLOPT_NATIVE_CA)
        return line


def _look_up(*_: int) -> None:
    """Let Python run, and with it what waits for that: the handlers of signals."""


def authorities() -> list[tuple[int, str]]:
    """Options that name the certificates which the environment wants to be trusted.

    Raises
    ------
    UsageError
        If they aren't there.
    """
    found = []
    if folder := os.environ.get("SSL_CERT_DIR"):
        found.append((pycurl.CAPATH, folder))
    for name in AUTHORITIES:
        if not (path := os.environ.get(name)):
            continue
        if not os.access(path, os.R_OK):
            raise UsageError(
                f"{name} names certificates that can't be read: {path}. Correct it, or "
                "unset it to trust what the system trusts."
            )
        option = pycurl.CAPATH if os.path.isdir(path) else pycurl.CAINFO
        return [*found, (option, path)]
    return found


def cleaned(address: str) -> str:
    """Address as it can be sent: without a password, and blanks and the like quoted."""
    if PLAIN.issuperset(address) and "@" not in address:
        return address
    parts = urlsplit(address)
    return parts._replace(
        netloc=parts.netloc.rpartition("@")[2],
        path=quote(parts.path, safe=KEPT),
        query=quote(parts.query, safe=KEPT),
    ).geturl()
