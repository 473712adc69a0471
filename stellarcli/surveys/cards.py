"""Survey files written byte by byte: headers as text, names, compression."""

from __future__ import annotations

import bz2
import os
import zlib
from pathlib import Path


def card(keyword: str, value, comment: str = "") -> str:
    """One FITS header card of 80 characters (FITS 4.0, section 4.2, fixed format)."""
    if isinstance(value, bool):
        text = f"{'T' if value else 'F':>20}"
    elif isinstance(value, str):
        text = f"'{value:<8}'".ljust(20)
    else:
        text = f"{value:>20}"
    line = f"{keyword:<8}= {text}"
    if comment:
        line += f" / {comment}"
    return f"{line[:80]:<80}"


def header_block(cards: list[str]) -> bytes:
    """Join cards, END and the padding to a multiple of 2880 bytes."""
    text = "".join(cards) + f"{'END':<80}"
    return text.ljust(-(-len(text) // 2880) * 2880).encode("ascii")


def remark(text: str) -> str:
    """Return a COMMENT card."""
    return f"{'COMMENT ' + text:<80}"


def decimal(keyword: str, value: float, comment: str, digits: int = 8) -> str:
    """Return a card with a number of so many decimals."""
    line = f"{keyword:<8}= {value:>20.{digits}f} / {comment}"
    return f"{line:<80}"


def padded(content: bytes) -> bytes:
    """Fill data with zeros to a multiple of 2880 bytes."""
    return content + bytes(-len(content) % 2880)


def designation(ra: float, dec: float) -> str:
    """Name of a position as LAMOST forms it, ``LAMOST JHHMMSS.ss+DDMMSS.s``.

    Parameters
    ----------
    ra, dec : float
        Degrees; truncated as the IAU asks, not rounded.
    """
    hundredths = int(ra / 15 * 360000)
    tenths = int(abs(dec) * 36000)
    hours = f"{hundredths // 360000:02d}{hundredths // 6000 % 60:02d}"
    hours += f"{hundredths // 100 % 60:02d}.{hundredths % 100:02d}"
    degrees = f"{tenths // 36000:02d}{tenths // 600 % 60:02d}"
    degrees += f"{tenths // 10 % 60:02d}.{tenths % 10}"
    return f"LAMOST J{hours}{'-' if dec < 0 else '+'}{degrees}"


def gzip(content: bytes) -> bytes:
    """Compress as gzip does, without a date: equal content gives equal files."""
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    return packer.compress(content) + packer.flush()


def bzip2(content: bytes) -> bytes:
    """Compress as SDSS's archive does."""
    return bz2.compress(content)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that has its name only when it is whole."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)
