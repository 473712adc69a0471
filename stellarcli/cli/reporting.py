"""What commands say on standard error, and the one place that sets exit statuses."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperGroup

from stellarcli.errors import ExitStatus, StellarError

SHOWN = 10  # reasons listed on the terminal; the log has all of them


class Commands(TyperGroup):
    """The command group that turns errors into one sentence and an exit status."""

    def invoke(self, ctx: typer.Context) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except StellarError as error:
            say(f"stellar: {error}")
            logging.getLogger("stellarcli").error(str(error))
            raise typer.Exit(error.exit_status) from None
        except KeyboardInterrupt:
            say(
                "stellar: interrupted; --resume goes on where there are finished parts."
            )
            raise typer.Exit(ExitStatus.INTERRUPTED) from None
        except BrokenPipeError:
            # the program behind the pipe has seen enough; keep Python from complaining
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(ExitStatus.FAILED) from None


def say(text: str) -> None:
    """Print a line on standard error."""
    typer.echo(text, err=True)


def start_log(path: str | None, verbose: bool) -> None:
    """Send the library's log to a file, and to standard error if `verbose`.

    Raises
    ------
    UsageError
        If the file can't be written.
    """
    from stellarcli.errors import UsageError

    logger = logging.getLogger("stellarcli")
    logger.setLevel(logging.INFO)
    logger.handlers.clear()
    logger.propagate = False
    handlers: list[logging.Handler] = [logging.NullHandler()]
    if verbose:
        handlers.append(logging.StreamHandler())
    if path:
        try:
            handlers.append(logging.FileHandler(path, encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"log '{path}': {error.strerror}.") from None
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger.addHandler(handler)


@contextmanager
def progress(total: int, unit: str, quiet: bool) -> Iterator[Any]:
    """Show a progress bar on a terminal; silent elsewhere and with `quiet`."""
    from tqdm import tqdm

    disable = True if quiet else None  # None: where standard error is no terminal
    with tqdm(total=total, unit=f" {unit}", disable=disable, smoothing=0.1) as bar:
        yield bar


def report_reasons(
    reasons: Sequence[tuple[str, str]], log: str | None, quiet: bool
) -> None:
    """Log every reason; show the first ones, by their real file names."""
    logger = logging.getLogger("stellarcli")
    for file, reason in reasons:
        logger.warning("%s: %s", file, reason)
    if quiet:
        return
    for file, reason in reasons[:SHOWN]:
        say(f"  {printable(file)}: {reason}")
    if len(reasons) > SHOWN:
        rest = len(reasons) - SHOWN
        where = f"see {log}" if log else "--log FILE lists all"
        say(f"  … and {rest} more; {where}.")


def printable(name: str) -> str:
    """Return a file name that any terminal can take (bytes that aren't text as ?)."""
    return name.encode("utf-8", "replace").decode("utf-8")


def command_line() -> list[str]:
    """Return the command line without what doesn't change the values.

    Shards, resumed and undivided runs of one job thereby write the same header.
    """
    neutral = {"--resume", "--quiet", "-q", "--verbose", "-v", "--json", "--overwrite"}
    with_value = {"--shard", "--workers", "-j", "--log"}
    words = iter(sys.argv)
    kept = []
    for word in words:
        name = word.partition("=")[0]
        if name in with_value:
            if "=" not in word:
                next(words, None)
        elif word not in neutral:
            kept.append(word)
    return kept
