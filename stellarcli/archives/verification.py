"""Whether bytes are a whole FITS file, and the one that was asked for.

Every check is done on the bytes themselves: the compression's own checksum, the length
that each header announces, CHECKSUM and DATASUM where a header has them, and cards such
as OBSID that name the object.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import math
import os
import zlib
from collections.abc import Mapping
from typing import IO

import numpy as np

from stellarcli.archives.client import LOGIN_PAGE, SMALL
from stellarcli.errors import FetchError, Trouble, one_line
from stellarcli.surveys.hdus import BLOCK, CARD, END, Header
from stellarcli.surveys.inflating import GZIP, one_member

BZIP2 = b"BZh"
SIMPLE = b"SIMPLE  ="
PIECE = 364 * BLOCK  # bytes read at a time, about a megabyte
HEADER_BLOCKS = 4000  # of 36 cards; no honest header is longer
RATIO = 200  # a FITS file seldom shrinks more; bombs do, a thousandfold
ONES = 0xFFFFFFFF


def check(content: bytes, cards: Mapping[str, object] | None = None) -> Header:
    """Check a small file in memory.

    Parameters
    ----------
    content : bytes
        As received.
    cards : mapping, optional
        Values that cards of the first header must have, where they are there.

    Returns
    -------
    Header
        Of the first HDU.

    Raises
    ------
    FetchError
        If it is no whole FITS file, or another one.
    """
    header = walk(_Memory(_inflated(content)))
    for name, wanted in (cards or {}).items():
        found = header.get(name)
        if found is not None and not _same(found, wanted):
            raise FetchError(f"a wrong file: its {name} is {found}, not {wanted}")
    return header


class _Memory(io.BytesIO):
    """Bytes that need not be copied to be passed over."""

    def skip(self, size: int) -> int:
        """Pass over at most so many bytes; how many there were."""
        start = self.tell()
        end = min(start + size, len(self.getbuffer()))
        return self.seek(max(end, start)) - start


def check_file(path: str | os.PathLike) -> Header:
    """Check a file of any size on disk, piece by piece; as `check`."""
    with open(path, "rb") as file:
        head = file.read(512)
        file.seek(0)
        limit = RATIO * max(os.path.getsize(path), SMALL // RATIO)
        try:
            return walk(_opened(file, head), limit)
        except (EOFError, zlib.error, gzip.BadGzipFile, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the disk, not the file
            raise _damaged(error) from None


def ending(content: bytes) -> str:
    """Return the ending that first bytes ask for: ``""``, ``".gz"``, ``".bz2"``."""
    if content.startswith(GZIP):
        return ".gz"
    return ".bz2" if content.startswith(BZIP2) else ""


def _opened(file: IO[bytes], head: bytes) -> IO[bytes]:
    if head.startswith(GZIP):
        return gzip.GzipFile(fileobj=file)
    if head.startswith(BZIP2):
        return bz2.BZ2File(file)
    if not head.startswith(SIMPLE):
        raise no_fits(head)
    return file


def _inflated(content: bytes) -> bytes:
    """Return the FITS bytes inside, at most `SMALL` of them."""
    if content.startswith(GZIP):
        if whole := one_member(content, SMALL):
            return whole
        return _unpacked(content, lambda: zlib.decompressobj(wbits=31), GZIP)
    if content.startswith(BZIP2):
        return _unpacked(content, bz2.BZ2Decompressor, BZIP2)
    if not content.startswith(SIMPLE):
        raise no_fits(content)
    return content


def _unpacked(content: bytes, decompressor, magic: bytes) -> bytes:
    parts, room = [], SMALL
    while content.startswith(magic):
        unpack = decompressor()
        try:
            parts.append(unpack.decompress(content, room + 1))
        except (zlib.error, OSError, ValueError) as error:
            raise _damaged(error) from None
        room -= len(parts[-1])
        if room < 0:
            raise _bomb(SMALL)
        if not unpack.eof:
            raise FetchError("the compressed file is cut short")
        content = unpack.unused_data
    return parts[0] if len(parts) == 1 else b"".join(parts)


def no_fits(content: bytes) -> FetchError:
    """Build the error for an answer that is no file: a page, a message, nothing."""
    text = content[:65536].lstrip(b"\xef\xbb\xbf \t\r\n")
    if not text:
        return FetchError("the answer is empty")
    if text[:1] == b"<":
        if LOGIN_PAGE.search(text):
            return FetchError("the archive sent a login page", Trouble.LOGIN)
        return FetchError("the archive sent a web page instead of a file")
    if text[:1] in b"{[":
        return FetchError("the archive answered without a file", Trouble.ANSWER)
    return FetchError(f"no FITS file: it begins with {text[:12]!r}")


def walk(stream: IO[bytes], limit: int = SMALL) -> Header:
    """Go through the HDUs of a FITS file to its end.

    Parameters
    ----------
    stream : file
        Of uncompressed bytes.
    limit : int
        Bytes; more are refused.

    Returns
    -------
    Header
        Of the first HDU.

    Raises
    ------
    FetchError
        If it is cut short, has a damaged header, or a checksum doesn't match.
    """
    first, number, seen = None, 0, 0
    block = _read(stream, BLOCK)
    while number == 0 or block.startswith(b"XTENSION"):
        head = _header(stream, block, number)
        header = Header(head)
        size = _data_size(header, number)
        seen += len(head) + size
        if seen > limit:
            raise _bomb(limit)
        summed = _data(stream, size, number, "DATASUM" in header)
        if summed is not None:
            _check_sums(header, head, summed, number)
        first, number = first or header, number + 1
        block = _read(stream, BLOCK)
    while block:  # rubbish after the last HDU is allowed; the stream must end well
        seen += len(block)
        if seen > limit:
            raise _bomb(limit)
        block = _read(stream, PIECE)
    return first


def _read(stream: IO[bytes], size: int) -> bytes:
    """As many bytes as asked for, unless the stream ends."""
    data = stream.read(size)
    while data and len(data) < size and (more := stream.read(size - len(data))):
        data += more
    return data


def _header(stream: IO[bytes], block: bytes, number: int) -> bytes:
    """All blocks of a header, of which the first is given."""
    blocks = []
    while len(blocks) < HEADER_BLOCKS and len(block) == BLOCK:
        blocks.append(block)
        end = block.find(END)
        while end >= 0 and end % CARD:
            end = block.find(END, end + 1)
        if end >= 0:
            return b"".join(blocks)
        block = _read(stream, BLOCK)
    raise FetchError(f"the file is cut short: the header of HDU {number} has no end")


def _data_size(header: Header, number: int) -> int:
    """Bytes of data that a header announces."""
    axes = [header.get(f"NAXIS{i + 1}") for i in range(_count(header, "NAXIS", number))]
    if not axes:
        return 0
    if any(type(axis) is not int or axis < 0 for axis in axes):
        raise FetchError(f"the header of HDU {number} is damaged: NAXISn = {axes}")
    if axes[0] == 0 and header.get("GROUPS") is True:
        axes = axes[1:]
    groups, extra = header.get("GCOUNT", 1), header.get("PCOUNT", 0)
    bits = header.get("BITPIX")
    if any(type(value) is not int for value in (groups, extra, bits)):
        raise FetchError(f"the header of HDU {number} is damaged: BITPIX = {bits!r}")
    return max(abs(bits) // 8 * groups * (extra + math.prod(axes)), 0)


def _count(header: Header, name: str, number: int) -> int:
    value = header.get(name)
    if type(value) is not int or not 0 <= value <= 999:
        raise FetchError(f"the header of HDU {number} is damaged: {name} = {value!r}")
    return value


def _data(stream: IO[bytes], size: int, number: int, wanted: bool) -> int | None:
    """Read data and padding; their ones' complement sum if it is wanted."""
    left, total = size, 0
    if not wanted and isinstance(stream, _Memory):
        left -= stream.skip(-(-size // BLOCK) * BLOCK)
        if left > 0:
            raise _too_short(number, size, size - left)
    while left > 0:
        piece = _read(stream, min(PIECE, -(-left // BLOCK) * BLOCK))
        if len(piece) < min(PIECE, left):
            raise _too_short(number, size, size - left + len(piece))
        left -= len(piece)
        if wanted:
            total = _ones_sum(piece, total)
    return total if wanted else None


def _too_short(number: int, size: int, there: int) -> FetchError:
    return FetchError(
        f"the file is cut short: HDU {number} needs {size} bytes of data, {there} are "
        "there"
    )


def _ones_sum(data: bytes, start: int = 0) -> int:
    """Ones' complement sum of 32-bit words (FITS Standard 4.0, appendix J)."""
    data += b"\0" * (-len(data) % 4)  # the last HDU may lack its padding
    total = start + int(np.frombuffer(data, ">u4").sum(dtype=np.uint64))
    while total > ONES:
        total = (total & ONES) + (total >> 32)
    return total


def _check_sums(header: Header, head: bytes, summed: int, number: int) -> None:
    announced = str(header.get("DATASUM")).strip()
    if announced.isdigit() and int(announced) != summed:
        raise FetchError(f"DATASUM of HDU {number} doesn't match: the data are damaged")
    checksum = str(header.get("CHECKSUM", "")).strip("0 ")
    if checksum and _ones_sum(head, summed) not in (0, ONES):
        raise FetchError(f"CHECKSUM of HDU {number} doesn't match: it is damaged")


def _same(found: object, wanted: object) -> bool:
    """Whether a card has a value; numbers may be written as text."""
    if str(found).strip() == str(wanted):
        return True
    try:
        return float(found) == float(wanted)
    except (TypeError, ValueError):
        return False


def _damaged(error: Exception) -> FetchError:
    return FetchError(f"the compressed file is damaged ({one_line(error)[:100]})")


def _bomb(limit: int) -> FetchError:
    return FetchError(
        f"the file unpacks to more than {limit} bytes, which no honest one does",
        Trouble.REFUSED,
    )


def json_of(content: bytes) -> object:
    """Parse JSON; None if it is none."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None
