"""Text as the ASCII that FITS holds: file names there and back, and everything else."""

from __future__ import annotations

import os
from urllib.parse import quote, unquote_to_bytes

import numpy as np

PRINTABLE = "".join(map(chr, range(0x20, 0x7F)))


def encode_name(name: str | os.PathLike) -> str:
    """File name as ASCII: ``%`` and every byte that isn't printable as in a URL.

    Blanks stay, except first and last, which FITS would lose.
    """
    text = quote(os.fsencode(name), safe=PRINTABLE.replace("%", ""))
    core = text.strip(" ")
    if not core:
        return "%20" * len(text)
    before, _, after = text.partition(core)
    return "%20" * len(before) + core + "%20" * len(after)


def decode_name(text: str) -> str:
    """Inverse of `encode_name`."""
    return os.fsdecode(unquote_to_bytes(text))


def located(text: str, directory: str) -> str:
    """Path of a name in a table, as written or decoded, from here or from there.

    Parameters
    ----------
    text : str
    directory : str
        Of the table.

    Returns
    -------
    str
        Decoded and from here if there is no such file.
    """
    decoded = decode_name(text)
    choices = (text, decoded, os.path.join(directory, decoded))
    return next((path for path in choices if os.path.isfile(path)), decoded)


def to_ascii(values: np.ndarray) -> np.ndarray:
    """Text as bytes; what isn't ASCII is percent-encoded, ``%`` left alone."""
    values = np.asarray(values)
    if values.dtype.kind == "S":
        return values
    values = values.astype(str)
    try:
        return values.astype("S")
    except UnicodeEncodeError:
        return np.array([ascii_text(text) for text in values.tolist()], dtype="S")


def ascii_text(text: str) -> str:
    """Text as ASCII; everything else is percent-encoded, ``%`` left alone."""
    return quote(os.fsencode(text), safe=PRINTABLE)
