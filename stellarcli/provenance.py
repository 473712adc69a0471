"""How an output was made: program, versions, command line, hashes of the inputs."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shlex
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib import metadata

from stellarcli import __version__

Card = tuple[str, object, str]  # FITS keyword, value, comment

LIBRARIES = ("numpy", "torch")  # those that decide about the last digit of a value

SECRET_OPTION = re.compile(r"--[\w-]*(token|password|secret)[\w-]*", re.IGNORECASE)
SECRET_IN_TEXT = re.compile(r"((?:token|password|secret)[\w-]*=)[^&\s]+", re.IGNORECASE)
URL_LOGIN = re.compile(r"(?<=://)[^/\s@]+@")


def date() -> str:
    """Return now in UTC as FITS writes it, ``YYYY-MM-DDThh:mm:ss``.

    ``SOURCE_DATE_EPOCH`` (seconds since 1970) takes the place of the clock, which
    makes outputs reproducible byte for byte.
    """
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    now = datetime.fromtimestamp(int(epoch), UTC) if epoch else datetime.now(UTC)
    return now.strftime("%Y-%m-%dT%H:%M:%S")


def command(arguments: Sequence[str]) -> str:
    """Return a command line that can be pasted, with tokens and passwords masked.

    Parameters
    ----------
    arguments : sequence of str
        As in ``sys.argv``; of the first one only the base name is kept.

    Returns
    -------
    str
        ``stellar fetch lamost --token '***'``.
    """
    if not arguments:
        return ""
    shown = [os.path.basename(arguments[0])]
    secret = False
    for argument in arguments[1:]:
        shown.append("***" if secret else _masked(argument))
        secret = SECRET_OPTION.fullmatch(argument) is not None
    return shlex.join(shown)


def _masked(argument: str) -> str:
    return URL_LOGIN.sub("***@", SECRET_IN_TEXT.sub(r"\1***", argument))


def facts(arguments: Sequence[str]) -> dict[str, str]:
    """Collect program, versions, command line and date, e.g. for a model file.

    Parameters
    ----------
    arguments : sequence of str
        As in ``sys.argv``.

    Returns
    -------
    dict of str
        ``program``, ``version``, ``command``, ``date``, ``python`` and one key per
        entry of `LIBRARIES` that is installed. Host and user are left out on purpose.
    """
    found = {
        "program": "stellar",
        "version": __version__,
        "command": command(arguments),
        "date": date(),
        "python": platform.python_version(),
    }
    return found | library_versions(LIBRARIES)


def library_versions(names: Iterable[str]) -> dict[str, str]:
    """Versions of installed libraries, read without importing them."""
    versions = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


COMMENTS = {
    "program": "program that wrote this file",
    "version": "its version",
    "command": "command line",
    "date": "UTC date of writing",
    "python": "version of Python",
    "numpy": "version of NumPy",
    "torch": "version of PyTorch",
}


def cards(arguments: Sequence[str], **extra: object) -> list[Card]:
    """Return `facts` and further values as FITS cards.

    Parameters
    ----------
    arguments : sequence of str
        As in ``sys.argv``.
    **extra : object or (object, str)
        Further cards: a value, or a value and its comment. Names are written in
        capitals and have at most 8 characters.

    Returns
    -------
    list of (str, object, str)
        Keyword, value, comment, in the order of writing.

    Examples
    --------
    >>> cards(["stellar"], model=("giants", "model file"))[-1]
    ('MODEL', 'giants', 'model file')
    """
    found = [
        (name.upper(), value, COMMENTS[name])
        for name, value in facts(arguments).items()
    ]
    for name, value in extra.items():
        value, comment = value if isinstance(value, tuple) else (value, "")
        found.append((name.upper(), value, comment))
    return found


def sha256(path: str | os.PathLike) -> str:
    """SHA-256 of a file as 64 hexadecimal digits.

    Raises
    ------
    OSError
        If the file can't be read.
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
