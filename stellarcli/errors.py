"""Everything that ``stellar`` reports as an error, and the exit status of each.

::

    StellarError              1   the run failed
    ├── UsageError            2   an option, a configuration or an output name is wrong
    │   ├── OutputExistsError 2   the output is there already
    │   └── OutputBusyError   2   another process is writing the output
    ├── ModelFileError        1   a model file is damaged, or newer than this program
    ├── AuthenticationError   4   an archive wants a token
    ├── FetchError            1   one file can't be fetched; a failed row among others
    ├── NoUsableSpectraError  64  not one input gave a value
    └── SpectrumError         –   one input can't be read: a flagged row, never the end

Programming mistakes stay tracebacks. `ExitStatus` names the remaining codes.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from enum import Enum, IntEnum


class ExitStatus(IntEnum):
    """Exit statuses of every command."""

    OK = 0  # every row has its values; flags are information
    FAILED = 1  # the run failed
    USAGE = 2  # usage or configuration
    INCOMPLETE = 3  # finished; some rows could not be computed
    AUTHENTICATION = 4  # an archive refused access
    NO_SPECTRA = 64  # no usable spectra
    INTERRUPTED = 130  # Ctrl-C; finished parts kept (143 by SIGTERM, 129 by SIGHUP)


class Trouble(Enum):
    """Kinds of trouble with an archive, by what follows from them."""

    PASSING = "passing"  # the network, a busy or faulty server: tried again
    DAMAGED = "damaged"  # what came is no whole file, or another one: tried again
    ANSWER = "answer"  # the archive says no in its own words: asked again, less often
    LOGIN = "login"  # a login page or a refusal: tried again, a token may be missing
    ABSENT = "absent"  # there is no such file: another address may have it
    REFUSED = "refused"  # what no honest archive does: not tried again


class StellarError(Exception):
    """Base of all errors that end with one sentence instead of a traceback."""

    exit_status = ExitStatus.FAILED


class UsageError(StellarError):
    """An option, a configuration key or an input has a value that can't be."""

    exit_status = ExitStatus.USAGE


class OutputExistsError(UsageError):
    """The output exists and ``--overwrite`` was not given."""


class OutputBusyError(UsageError):
    """Another process is writing the output."""


class ModelFileError(StellarError):
    """A model file can't be used: damaged, incomplete or of a newer version."""


class AuthenticationError(StellarError):
    """An archive asks for a token, or refuses the one it got."""

    exit_status = ExitStatus.AUTHENTICATION


class FetchError(StellarError):
    """One file can't be fetched; where there are others, its row has failed.

    Parameters
    ----------
    reason : str
        In one sentence, without the address.
    kind : Trouble
        What follows from it.
    wait : float
        Seconds after which the archive wants to be asked again; 0 if it said nothing.
    """

    def __init__(self, reason: str, kind: Trouble = Trouble.PASSING, wait: float = 0.0):
        super().__init__(reason)
        self.kind = kind
        self.wait = wait


class NoUsableSpectraError(StellarError):
    """None of the inputs gave a usable spectrum."""

    exit_status = ExitStatus.NO_SPECTRA


class SpectrumError(StellarError):
    """One input can't be read as a spectrum; the reason goes to row, log, summary."""


def one_line(error: BaseException) -> str:
    """Message of an error in one line; its kind where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def first_line(error: BaseException) -> str:
    """First line of an error's message; its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def unknown(kind: str, value: str, valid: Iterable[str]) -> UsageError:
    """Build the error for a name that isn't in a table of contents.

    Parameters
    ----------
    kind : str
        What the name stands for, e.g. ``"recipe"``.
    value : str
        The name that was given.
    valid : iterable of str
        The names that exist.

    Returns
    -------
    UsageError
        Names the value, the nearest valid one and all valid ones.
    """
    names = list(valid)
    small = {name.lower(): name for name in names}
    near = get_close_matches(str(value).lower(), small, n=1)
    hint = f" Did you mean {small[near[0]]!r}?" if near else ""
    return UsageError(f"unknown {kind} {value!r}.{hint} Valid: {', '.join(names)}.")
