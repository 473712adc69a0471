"""One GET request, the head of its answer, and where the body goes."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from email.message import Message

from stellarcli.errors import FetchError, Trouble

WORDS = 1 << 16  # bytes of an error's body that are looked at
STATUS = re.compile(rb"HTTP/[\d.]+ +(\d{3})")
PLAIN_NAME = re.compile(r'\s*attachment\s*;\s*filename="?([\w.+-]+)"?\s*', re.ASCII)


class Failed(Exception):
    """An exchange that came to no good end.

    Attributes
    ----------
    code : int
        Of libcurl, one of ``pycurl.E_…``.
    """

    def __init__(self, code: int, text: str):
        super().__init__(text)
        self.code = code


class Reply:
    """The head of an answer.

    Attributes
    ----------
    lines : list of bytes
        As they came; an answer 1xx or one of a proxy may stand before the real one.
    """

    def __init__(self) -> None:
        self.lines: list[bytes] = []

    @functools.cached_property
    def _fields(self) -> list[bytes]:
        """The status line and what follows it."""
        heads = [n for n, line in enumerate(self.lines) if line.startswith(b"HTTP/")]
        return self.lines[heads[-1] if heads else 0 :]

    @functools.cached_property
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


class _Enough(Exception):
    """No more of a body is wanted."""


class Exchange:
    """A GET request, and what comes of it.

    Parameters
    ----------
    address : str
        Absolute.
    fields : mapping
        Of the request's head.
    begin : callable
        Given the head of a good answer as soon as it is there; returns what takes the
        body piece by piece, or None if it isn't wanted.
    limit : int
        Bytes of the body; more end the exchange.

    Attributes
    ----------
    reply : Reply
    received : int
        Bytes of the body.
    words : list of bytes
        The body of an answer that isn't good, as far as it is looked at.
    failure : Failed or None
        Set when the exchange has ended.
    """

    def __init__(
        self, address: str, fields: Mapping[str, str], begin: Begin, limit: int
    ):
        self.address, self.fields, self.limit = address, fields, limit
        self.reply = Reply()
        self.received = 0
        self.words: list[bytes] = []
        self.failure: Failed | None = None
        # exceptions can't pass through libcurl: what a receiver raises is kept here
        self._error: BaseException | None = None
        self._begin = begin
        self._write: Write | None = None

    def take(self, piece: bytes) -> int | None:
        """Pass on a piece of the body; -1, to libcurl, if nobody wants more."""
        try:
            write = self._write or self._begun()
            self.received += len(piece)
            if self.received > self.limit:
                raise _too_long("more and more", self.limit)
            write(piece)
        except BaseException as error:
            self._error = error
            return -1
        return None

    def check(self) -> None:
        """Raise what went wrong, be it the network, the server or the receiver.

        Raises
        ------
        Failed
        FetchError
            If the head was cut, or the body is too long.
        """
        if isinstance(self._error, _Enough):
            return
        if self._error or self.failure:
            raise self._error or self.failure
        if not self.reply.whole:
            raise FetchError("the connection was cut in the head of the answer")
        if self._write is None:  # of an empty body the receiver hasn't heard yet
            with suppress(_Enough):
                self._begun()

    def _begun(self) -> Write:
        if self.reply.good and (self.reply.length or 0) > self.limit:
            raise _too_long(f"{self.reply.length} bytes", self.limit)
        self._write = self._begin(self.reply) if self.reply.good else self._word
        if self._write is None:
            raise _Enough
        return self._write

    def _word(self, piece: bytes) -> None:
        self.words.append(piece)
        if sum(map(len, self.words)) > WORDS:
            raise _Enough


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


def _too_long(found: str, limit: int) -> FetchError:
    return FetchError(
        f"the archive sends {found}, where {limit} bytes are the most", Trouble.REFUSED
    )
