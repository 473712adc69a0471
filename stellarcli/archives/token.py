"""The token of a release that isn't public: found, sent, never shown."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote, quote_plus

from stellarcli.errors import UsageError

ENVIRONMENT = "STELLAR_LAMOST_TOKEN"
HIDDEN = "***"


class Token:
    """A secret that shows itself only to who asks for it by name.

    Parameters
    ----------
    secret : str
    """

    __slots__ = ("_secret",)

    def __init__(self, secret: str):
        self._secret = secret

    def reveal(self) -> str:
        """Return the secret."""
        return self._secret

    def mask(self, text: str) -> str:
        """Return a text, of a server perhaps, without the secret in any spelling."""
        secret = self._secret
        for shown in {
            secret,
            quote(secret),
            quote(secret, safe=""),
            quote_plus(secret),
        }:
            text = text.replace(shown, HIDDEN)
        return text

    def __repr__(self) -> str:
        return f"Token({HIDDEN})"


def find(file: str | None = None, ask: Callable[[], str] | None = None) -> Token | None:
    """Look for a token: in a file, in the environment, at last by asking.

    Parameters
    ----------
    file : str, optional
        Text file with the token alone, or a line ``token=…``.
    ask : callable, optional
        Asks a person; not given where there is none.

    Returns
    -------
    Token or None

    Raises
    ------
    UsageError
        If the file can't be read or has no token, or a token can't be one.
    """
    if file:
        return _checked(_from_file(file), f"token file '{file}'")
    if secret := os.environ.get(ENVIRONMENT, "").strip():
        return _checked(secret, f"environment variable {ENVIRONMENT}")
    if ask and (secret := ask().strip()):
        return _checked(secret, "answer")
    return None


def _from_file(file: str) -> str:
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "no text"
        raise UsageError(
            f"token file '{file}': {reason}. It must hold the token, or a line "
            "token=…, and nothing else."
        ) from None
    lines = [line.strip() for line in lines]
    lines = [line for line in lines if line and not line.startswith(("#", "["))]
    named = [line for line in lines if line.replace(" ", "").startswith("token=")]
    if named:
        return named[0].partition("=")[2].strip()
    return lines[0] if len(lines) == 1 else ""


def _checked(secret: str, source: str) -> Token:
    """Make a token of one word; the message never quotes it."""
    if not secret or not secret.isascii() or not secret.isprintable() or " " in secret:
        raise UsageError(
            f"the {source} holds no token: one word of ASCII is expected. It is on "
            "your page at www.lamost.org/lmusers."
        )
    return Token(secret)
