"""GET requests by libcurl: connections that stay open, and what they may do.

libcurl can do what no archive needs. Here it speaks HTTP/1.1 and nothing else, follows
no redirects, reads no ``~/.netrc``, keeps no cookies and verifies certificates, always.
Proxies are those that the environment names, as with ``curl``. One thread goes on with
all exchanges: threads that wait for Python's lock cost a third more processor time.
"""

from __future__ import annotations

import math
import os
import sys
import time
from urllib.parse import quote, urlsplit

import pycurl

from stellarcli.archives.exchange import Exchange, Failed
from stellarcli.errors import UsageError

PIECE = 1 << 19  # bytes received at once
NAP = 0.01  # s; where there is nothing that could be waited for
PLAIN = frozenset(map(chr, range(0x21, 0x7F)))  # what stands in an address as it is
KEPT = "!#$%&'()*+,/:;=?@[]~"  # of these, what quoting leaves alone
# by what programs on a cluster are told certificates; the first that is set counts
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
NO_ADDRESS = pycurl.E_URL_MALFORMAT
TOO_SLOW = pycurl.E_OPERATION_TIMEDOUT
UNRESOLVED = {pycurl.E_COULDNT_RESOLVE_HOST, pycurl.E_COULDNT_RESOLVE_PROXY}
UNTRUSTED = {pycurl.E_PEER_FAILED_VERIFICATION, pycurl.E_SSL_CACERT_BADFILE}
CUT = {pycurl.E_PARTIAL_FILE, pycurl.E_RECV_ERROR}


class Connections:
    """Connections that stay open, and the exchanges on them.

    Parameters
    ----------
    count : int
        Of exchanges at once.
    timeout : float, s
        Without a byte, or with fewer than `slowest`; rounded up to whole seconds.
    connect_timeout : float, s
        Until a connection is made.
    slowest : int
        Bytes per second; less counts as nothing.

    Raises
    ------
    UsageError
        If certificates that the environment names aren't there.
    """

    def __init__(
        self, count: int, timeout: float, connect_timeout: float, slowest: int
    ):
        self._kept = 2 * count  # connections; redirects to a mirror need as many again
        self._limits = {
            pycurl.CONNECTTIMEOUT_MS: math.ceil(min(connect_timeout, timeout) * 1e3),
            pycurl.LOW_SPEED_TIME: math.ceil(timeout),
            pycurl.LOW_SPEED_LIMIT: slowest,
        }
        self._authorities = authorities()
        self._multi: pycurl.CurlMulti | None = None
        self._idle: list[pycurl.Curl] = []
        self._busy: dict[pycurl.Curl, Exchange] = {}
        self._failed: list[Exchange] = []  # at once

    def start(self, exchange: Exchange) -> None:
        """Begin an exchange; `ended` goes on with it."""
        line = self._idle.pop() if self._idle else self._made()
        try:
            self._prepare(line, exchange)
        except ValueError:  # the address, or a head, has what can't be in one
            exchange.failure = Failed(NO_ADDRESS, "no address")
            self._idle.append(line)
            self._failed.append(exchange)
            return
        if self._multi is None:
            self._multi = pycurl.CurlMulti()
            self._multi.setopt(pycurl.M_MAXCONNECTS, self._kept)
        self._multi.add_handle(line)
        self._busy[line] = exchange

    def ended(self, seconds: float) -> list[Exchange]:
        """Go on with what was begun, and return exchanges that have come to an end.

        Parameters
        ----------
        seconds : float
            To wait for one, at most.
        """
        found, self._failed = self._failed, []
        if self._busy:
            found += self._perform()
        if found or seconds <= 0.0:
            return found
        if not self._busy:
            time.sleep(seconds)
            return []
        wanted = self._multi.timeout() / 1e3  # -1: nothing that libcurl knows of
        wait = min(seconds, wanted) if wanted >= 0 else seconds
        if self._multi.select(wait) < 0:
            time.sleep(min(wait, NAP))
        return self._perform()

    def close(self) -> None:
        """Give up all exchanges and connections."""
        if self._multi is not None:
            self._multi.close()
        for line in [*self._idle, *self._busy]:
            line.close()
        self._multi, self._idle, self._busy, self._failed = None, [], {}, []

    def _perform(self) -> list[Exchange]:
        self._multi.perform()
        _, good, bad = self._multi.info_read()
        found = [self._freed(line) for line in good]
        for line, code, text in bad:
            exchange = self._freed(line)
            exchange.failure = Failed(code, text or f"error {code} of libcurl")
            found.append(exchange)
        return found

    def _freed(self, line: pycurl.Curl) -> Exchange:
        self._multi.remove_handle(line)
        self._idle.append(line)
        return self._busy.pop(line)

    def _made(self) -> pycurl.Curl:
        line = pycurl.Curl()
        for option, value in {**OPTIONS, **self._limits}.items():
            line.setopt(option, value)
        if sys.platform in ("darwin", "win32"):  # elsewhere PycURL finds the system's
            line.setopt(pycurl.SSL_OPTIONS, pycurl.SSLOPT_NATIVE_CA)
        return line

    def _prepare(self, line: pycurl.Curl, exchange: Exchange) -> None:
        line.setopt(pycurl.URL, cleaned(exchange.address).encode())
        fields = [f"{name}: {value}" for name, value in exchange.fields.items()]
        line.setopt(pycurl.HTTPHEADER, fields)
        line.setopt(pycurl.HEADERFUNCTION, exchange.reply.lines.append)
        line.setopt(pycurl.WRITEFUNCTION, exchange.take)
        if exchange.address.startswith("https:"):
            for option, value in self._authorities:
                line.setopt(option, value)


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
