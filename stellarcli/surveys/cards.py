"""FITS headers as text, for survey files that are written byte by byte."""

from __future__ import annotations


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
