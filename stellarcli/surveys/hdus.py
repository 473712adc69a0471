"""FITS files as far as spectra need them: headers read card by card, data as views.

General readers spend nearly all of a small spectrum's time on its header: they parse
150 cards where 15 are wanted. `open_hdus` reads the file once, finds where each HDU
starts, and looks up single cards and columns when asked. What it doesn't know (scaled
columns, variable-length arrays, compressed images, ASCII tables, odd headers) raises
`UnusualFITS`, and `surveys.library` opens the same file with astropy behind the same
interface. Every failure is a `SpectrumError` with the reason in one sentence, without
the path.
"""

from __future__ import annotations

import math
import os
import re
import stat
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np

from stellarcli.errors import SpectrumError
from stellarcli.surveys.inflating import GZIP, LARGEST, gunzip

BLOCK = 2880  # bytes; FITS headers and data are padded to multiples of it
CARD = 80  # bytes
END = b"END" + b" " * 77
NO_SUCH_FILE = "no such file"  # reason of an input that isn't there
LONGEST_HEADER = 1 << 20  # bytes; parsing far more takes the library minutes

IMAGE_TYPES = {8: "u1", 16: ">i2", 32: ">i4", 64: ">i8", -32: ">f4", -64: ">f8"}
# TFORM letter -> (bytes per element, NumPy type; empty: of no use in a spectrum)
COLUMN_TYPES = {
    "L": (1, "S1"),
    "B": (1, "u1"),
    "I": (2, ">i2"),
    "J": (4, ">i4"),
    "K": (8, ">i8"),
    "E": (4, ">f4"),
    "D": (8, ">f8"),
    "A": (1, "S"),
    "C": (8, ""),
    "M": (16, ""),
    "P": (8, ""),
    "Q": (16, ""),
}


class UnusualFITS(Exception):
    """The minimal reader doesn't know this feature of FITS; the library does."""


class Column(NamedTuple):
    """Where a column of a binary table lies in a row."""

    name: str
    letter: str  # of TFORMn
    repeat: int
    offset: int  # bytes
    scaled: bool  # by TSCALn or TZEROn


class Header:
    """Cards of one HDU, each parsed when asked for.

    Parameters
    ----------
    block : bytes
        The header, a whole number of cards.
    """

    __slots__ = ("_block", "_index")

    def __init__(self, block: bytes):
        self._block = block
        # the first eight bytes of all cards, as numbers
        self._index = _index(np.frombuffer(block, np.uint64)[:: CARD // 8].tobytes())

    def __contains__(self, key: str) -> bool:
        return _padded(key) in self._index

    def get(self, key: str, default: Any = None) -> Any:
        """Value of a card as str, bool, int or float.

        Parameters
        ----------
        key : str
            Name of the card in capitals.
        default : object
            Returned where the card is absent, or has no value.
        """
        start = self._index.get(_padded(key))
        if start is None or self._block[start + 8 : start + 10] != b"= ":
            return default
        value = parse_value(self._block[start + 10 : start + CARD])
        return default if value is None else value


@lru_cache(maxsize=64)  # files of one release have the same cards
def _index(keys: bytes) -> dict[bytes, int]:
    """Where each card begins, from the names of all, eight bytes each."""
    names = (keys[start : start + 8] for start in range(0, len(keys), 8))
    index: dict[bytes, int] = {}
    for number, name in enumerate(names):
        # the first of two equal cards counts, as in the libraries
        index.setdefault(name, number * CARD)
    return index


@cache  # of the names in this program, which are few
def _padded(key: str) -> bytes:
    return key.encode().ljust(8)


def parse_value(text: bytes) -> Any:
    """Value in a card's last 70 bytes; None if it is empty or no FITS value."""
    if b"'" not in text:  # nearly always a number, which needs no stripping
        word = text.partition(b"/")[0]
        try:
            return float(word) if b"." in word else int(word)
        except ValueError:
            pass
    if not text.startswith(b"'"):
        text = text.lstrip()
    if text.startswith(b"'"):
        end = text.find(b"'", 1)
        if (
            end < 0 or text[end + 1 : end + 2] == b"'"
        ):  # doubled quotes, or none at the end
            match = re.match(rb"'((?:[^']|'')*)", text)
            return match[1].replace(b"''", b"'").decode("ascii").rstrip()
        return text[1:end].decode("ascii").rstrip()
    word = text.partition(b"/")[0].rstrip()
    if word == b"T" or word == b"F":
        return word == b"T"
    try:
        return float(word) if b"." in word else int(word)
    except ValueError:
        try:
            return float(word.upper().replace(b"D", b"E"))
        except ValueError:
            return None


class HDU:
    """One header and the data that belong to it.

    Attributes
    ----------
    header : Header
        Anything with ``get(key, default)`` and ``in``.
    name : str
        EXTNAME in capitals; empty if there is none.
    kind : str
        ``"image"``, ``"table"`` or ``"empty"``.
    shape : tuple of int
        Of the image, slowest axis first; (rows,) of a table.
    size : int
        Bytes of data in the file, without padding.
    """

    __slots__ = (
        *("_block", "_data", "_offset"),
        *("header", "kind", "name", "shape", "size"),
    )

    def __init__(self, block: bytes, data: bytes, offset: int):
        self._data = data
        self._offset = offset
        # of an extension, files of one release share the header, byte for byte
        structure = _shared_structure if block.startswith(b"XTENSION") else _structure
        self.header, self.name, self.kind, self.shape, self.size = structure(block)
        self._block = block

    @property
    def data(self) -> np.ndarray:
        """The image, in the byte order of the file."""
        header = self.header
        if header.get("BSCALE", 1) != 1 or header.get("BZERO", 0) != 0:
            raise UnusualFITS("scaled image")
        kind = IMAGE_TYPES.get(_whole(header, "BITPIX"))
        if kind is None:
            raise UnusualFITS("BITPIX")
        return np.ndarray(self.shape, kind, self._data, self._offset)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the table's columns, in capitals."""
        return tuple(self._columns()[0])

    def column(self, name: str) -> np.ndarray:
        """One column, shape (row,) or (row, element), in the byte order of the file.

        Parameters
        ----------
        name : str
            In capitals.

        Raises
        ------
        SpectrumError
            If there is no such column.
        """
        columns, width = self._columns()
        if name not in columns:
            raise missing_column(self, name)
        _, letter, repeat, offset, scaled = columns[name]
        kind = COLUMN_TYPES[letter][1]
        if not kind:
            raise UnusualFITS(f"column of format {letter}")
        if scaled:
            raise UnusualFITS("scaled column")
        if letter == "A":
            kind, repeat = f"S{repeat}", 1
        start = self._offset + offset
        if repeat == 1:
            return np.ndarray(self.shape, kind, self._data, start, (width,))
        step = np.dtype(kind).itemsize
        return np.ndarray((*self.shape, repeat), kind, self._data, start, (width, step))

    def value(self, name: str, default: Any = None) -> Any:
        """First row of a column as str, int, float or list; `default` if absent."""
        return first_value(self, name, default)

    def _columns(self) -> tuple[dict[str, Column], int]:
        if self.kind != "table":
            return {}, 0
        return table_layout(self._block)


def _structure(block: bytes) -> tuple[Header, str, str, tuple[int, ...], int]:
    """Header, name, kind, shape and size of an HDU."""
    header = Header(block)
    name = str(header.get("EXTNAME", "")).strip().upper()
    axes = [_whole(header, f"NAXIS{i + 1}") for i in range(_whole(header, "NAXIS"))]
    shape = tuple(axes[::-1])
    size = 0
    if axes:
        elements = _whole(header, "PCOUNT", 0) + math.prod(axes)
        width = abs(_whole(header, "BITPIX")) // 8
        size = width * _whole(header, "GCOUNT", 1) * elements
    extension = header.get("XTENSION", "IMAGE")
    if extension == "BINTABLE":
        if "ZIMAGE" in header or len(axes) != 2:
            raise UnusualFITS("compressed image")
        return header, name, "table", shape[:1], size
    if extension != "IMAGE":
        raise UnusualFITS(f"extension {extension!r}")
    if "GROUPS" in header:
        raise UnusualFITS("random groups")
    # NAXIS = 0 decides: LAMOST's empty primaries keep NAXIS1 and NAXIS2.
    kind = "image" if axes and min(axes) > 0 else "empty"
    return header, name, kind, shape, size


_shared_structure = lru_cache(maxsize=64)(_structure)


@lru_cache(maxsize=64)
def table_layout(block: bytes) -> tuple[dict[str, Column], int]:
    """Columns of a binary table by name, and the length of a row in bytes."""
    header = Header(block)
    columns: dict[str, Column] = {}
    offset = 0
    for index in range(1, _whole(header, "TFIELDS") + 1):
        form = re.fullmatch(
            r"(\d*)([LXBIJKAEDCMPQ])(.*)", str(header.get(f"TFORM{index}"))
        )
        if not form:
            raise UnusualFITS(f"TFORM{index}")
        repeat = int(form[1] or 1)
        name = str(header.get(f"TTYPE{index}", f"COL{index}")).strip().upper()
        letter = form[2]
        if letter == "X":
            letter, repeat = "B", (repeat + 7) // 8
        scale, zero = header.get(f"TSCAL{index}", 1), header.get(f"TZERO{index}", 0)
        scaled = scale != 1 or bool(zero)
        columns.setdefault(name, Column(name, letter, repeat, offset, scaled))
        offset += repeat * COLUMN_TYPES[letter][0]
    width = _whole(header, "NAXIS1")
    if offset != width:
        raise UnusualFITS("row length")
    return columns, width


def missing_column(hdu: Any, name: str) -> SpectrumError:
    """Build the error for a column that isn't there."""
    names = ", ".join(hdu.columns[:12]) or "none"
    return SpectrumError(
        f"HDU {hdu.name or hdu.kind} has no column {name}, only {names}"
    )


def first_value(hdu: Any, name: str, default: Any = None) -> Any:
    """First row of a column as a Python object; `default` if there is none."""
    if name not in hdu.columns or not hdu.shape[0]:
        return default
    value = hdu.column(name)[0]
    if isinstance(value, bytes):
        return value.rstrip(b"\0 ").decode("ascii", "replace")
    if isinstance(value, str):
        return value.rstrip()
    return value.tolist()


def _whole(header: Header, key: str, default: int | None = None) -> int:
    """Value of a card that has to be a whole number ≥ 0 (BITPIX: any)."""
    value = header.get(key, default)
    if type(value) is not int or (value < 0 and key != "BITPIX"):
        raise UnusualFITS(f"{key} = {value!r}")
    return value


def read_bytes(path: str | os.PathLike) -> bytes:
    """Read a whole file, inflated if it is gzip (decided by its first bytes).

    Parameters
    ----------
    path : str or path-like

    Returns
    -------
    bytes

    Raises
    ------
    SpectrumError
        If it can't be read, is empty, or is damaged gzip.
    """
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise SpectrumError("is a directory, not a file")
        if not stat.S_ISREG(status.st_mode):
            raise SpectrumError("is not a regular file")
        if status.st_size > LARGEST:
            raise SpectrumError(
                f"{status.st_size / 1e9:.1f} GB is too large for a spectrum"
            )
        with open(path, "rb", buffering=0) as file:
            data = file.readall()
    except FileNotFoundError:
        raise SpectrumError(NO_SUCH_FILE) from None
    except PermissionError:
        raise SpectrumError("permission denied") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SpectrumError(f"can't be read: {reason}") from None
    if not data:
        raise SpectrumError("the file is empty")
    return gunzip(data) if data.startswith(GZIP) else data


def is_fits(data: bytes) -> bool:
    """Whether these bytes begin like a FITS file."""
    return data.startswith(b"SIMPLE  =")


def describe_bytes(data: bytes) -> str:
    """Say that data are no FITS file, and how they begin."""
    return f"not a FITS file: it starts with {data[:12]!r}"


def open_hdus(path: str | os.PathLike) -> list[HDU]:
    """Open a FITS file, gzipped or not, with the minimal parser.

    Parameters
    ----------
    path : str or path-like

    Returns
    -------
    list of HDU

    Raises
    ------
    SpectrumError
        If the file can't be read, is damaged, or is no FITS file.
    UnusualFITS
        If it needs `library.library_hdus`.
    """
    return parse_hdus(read_bytes(path))


def parse_hdus(data: bytes) -> list[HDU]:
    """Split the bytes of a FITS file into HDUs; as `open_hdus`."""
    if not is_fits(data):
        raise SpectrumError(describe_bytes(data))
    hdus = []
    start = 0
    # After the last HDU a file may hold anything that isn't another one.
    while start == 0 or data.startswith(b"XTENSION", start):
        block, start = _header_block(data, start, len(hdus))
        hdu = HDU(block, data, start)
        size, there = hdu.size, max(len(data) - start, 0)
        if size > there:  # only the padding of the last HDU may be absent
            raise SpectrumError(
                f"the file is truncated: HDU {len(hdus)} needs {size} bytes of data, "
                f"{there} are there"
            )
        hdus.append(hdu)
        start += -(-size // BLOCK) * BLOCK
    return hdus


def _header_block(data: bytes, start: int, number: int) -> tuple[bytes, int]:
    """Cards of the header that begins at `start`, and where its data begin."""
    end = header_end(data, start)
    if end < 0:
        raise SpectrumError(
            f"the file is truncated: the header of HDU {number} has no END"
        )
    if end - start > LONGEST_HEADER:
        raise SpectrumError(
            f"damaged FITS file: the header of HDU {number} has {end - start} bytes"
        )
    block = data[start:end]
    if not block.isascii():  # a lost END, or a header that needs the library's patience
        raise UnusualFITS("header is not ASCII")
    return block, start - (start - end - CARD) // BLOCK * BLOCK


def header_end(data: bytes, start: int = 0) -> int:
    """Where the END card of the header that begins at `start` is; -1 without one."""
    end = data.find(END, start)
    while end >= 0 and (end - start) % CARD:
        end = data.find(END, end + 1)
    return end
