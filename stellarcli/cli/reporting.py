"""What commands say on standard error, and the one place that sets exit statuses."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup

from stellarcli.cli.mistakes import Mistake, explain
from stellarcli.errors import ExitStatus, StellarError

if TYPE_CHECKING:
    from stellarcli.comparison.tables import Block

SHOWN = 10  # reasons listed on the terminal; the log has all of them


class Commands(TyperGroup):
    """The command group that turns errors into one sentence and an exit status."""

    def make_context(self, *arguments: Any, **options: Any) -> typer.Context:
        """Read the options that stand before a command."""
        with _explained("stellar"):
            return super().make_context(*arguments, **options)

    def invoke(self, ctx: typer.Context) -> Any:
        """Run a command."""
        _heed_signals()
        _without_log()
        try:
            with _explained("stellar", ctx):
                return super().invoke(ctx)
        except StellarError as error:
            say(f"stellar: {error}")
            logging.getLogger("stellarcli").error(str(error))
            raise typer.Exit(error.exit_status) from None
        except KeyboardInterrupt as error:
            _ignore_signals()
            say("; ".join(["stellar: interrupted", *getattr(error, "__notes__", [])]))
            ended = isinstance(error, Ended)
            status = 128 + error.number if ended else ExitStatus.INTERRUPTED
            raise typer.Exit(status) from None
        except BrokenPipeError:
            # the program behind the pipe has seen enough; keep Python from complaining
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(ExitStatus.FAILED) from None


@contextmanager
def _explained(called: str, ctx: typer.Context | None = None) -> Iterator[None]:
    """Turn a mistake in the command line into one sentence."""
    try:
        yield
    except Mistake as mistake:
        if type(mistake).__name__ == "NoArgsIsHelpError":
            raise  # it shows the help
        words = [called, ctx.invoked_subcommand] if ctx else [called]
        say(f"stellar: {explain(mistake, ' '.join(filter(None, words)))}")
        raise typer.Exit(ExitStatus.USAGE) from None


class Ended(KeyboardInterrupt):
    """The system wants the program to end: time is up, or the terminal is gone."""

    def __init__(self, number: int):
        super().__init__()
        self.number = number


def _end(number: int, frame: Any) -> None:
    raise Ended(number)


ENDS = [getattr(signal, name, signal.SIGTERM) for name in ("SIGTERM", "SIGHUP")]


def _heed_signals() -> None:
    """Let what ends a program end it as Ctrl-C does; ``nohup`` stays in force."""
    for number in ENDS:
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _end)


def _ignore_signals() -> None:
    """Let nobody disturb the last words."""
    for number in (signal.SIGINT, *ENDS):
        signal.signal(number, signal.SIG_IGN)


def say(text: str) -> None:
    """Print a line on standard error."""
    typer.echo(text, err=True)


def sayer(quiet: bool) -> Callable[[str], None]:
    """Return what takes notes of the library: `say`, or nothing with `quiet`."""
    return (lambda text: None) if quiet else say


class _Lines(logging.Formatter):
    """Log records as JSON, one per line."""

    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "fields", {})
        time = self.formatTime(record, "%Y-%m-%dT%H:%M:%S")
        entry = {
            "time": time,
            "level": record.levelname,
            "message": record.getMessage(),
        }
        return json.dumps(entry | fields, default=str)


def log_fields(message: str, **values: Any) -> None:
    """Log a message with named values; in a log of JSON lines these are keys."""
    logging.getLogger("stellarcli").info(message, extra={"fields": values})


def start_log(path: str | None, verbose: bool, lines: bool = False) -> None:
    """Send the library's log to a file, and to standard error if `verbose`.

    Parameters
    ----------
    path : str or None
    verbose : bool
    lines : bool
        Write the file as JSON lines.

    Raises
    ------
    UsageError
        If the file can't be written.
    """
    from stellarcli.errors import UsageError

    logger = _without_log()
    plain = logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    if verbose:
        _add_handler(logger, logging.StreamHandler(), plain)
    if path:
        try:
            # names of files may hold any byte
            handler = logging.FileHandler(
                path, encoding="utf-8", errors="surrogateescape"
            )
        except OSError as error:
            raise UsageError(
                f"can't write the log '{path}': {error.strerror}; name another file."
            ) from None
        _add_handler(logger, handler, _Lines() if lines else plain)


def _without_log() -> logging.Logger:
    """Return the library's logger, mute and without an earlier command's files."""
    logger = logging.getLogger("stellarcli")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    logger.addHandler(logging.NullHandler())
    return logger


def _add_handler(
    logger: logging.Logger, handler: logging.Handler, formatter: logging.Formatter
) -> None:
    handler.setFormatter(formatter)
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
    """Log every reason; show each once with the first file that it concerns."""
    logger = logging.getLogger("stellarcli")
    files: dict[str, list[str]] = {}
    for file, reason in reasons:
        logger.warning("%s: %s", file, reason)
        files.setdefault(reason, []).append(file)
    if quiet:
        return
    for reason, concerned in list(files.items())[:SHOWN]:
        more = f" (and {len(concerned) - 1} more)" if len(concerned) > 1 else ""
        say(f"  {printable(concerned[0])}{more}: {reason}")
    if len(files) > SHOWN:
        say(f"  … and {len(files) - SHOWN} more reasons")
    if not log and len(reasons) > min(len(files), SHOWN):
        say("  --log FILE lists all files")


def printable(name: str) -> str:
    """Return a file name on one line that any terminal can take, ? for odd bytes."""
    text = name.encode("utf-8", "replace").decode("utf-8")
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def print_json(values: Any) -> None:
    """Print values as JSON on standard output."""
    typer.echo(json.dumps(_plain(values), indent=1, allow_nan=False))


def _plain(values: Any) -> Any:
    """Values that JSON has: NaN and infinity become null."""
    import numpy as np

    if isinstance(values, dict):
        return {str(key): _plain(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [_plain(value) for value in values]
    if isinstance(values, np.generic):
        values = values.item()
    if isinstance(values, float) and not np.isfinite(values):
        return None
    return values


def print_blocks(blocks: Sequence[Block]) -> None:
    """Draw tables as wide as they are where standard output is no terminal."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    for block in blocks:
        grid = Table(box=SIMPLE_HEAD, padding=(0, 0, 0, 1), show_edge=False)
        for n, name in enumerate(block.head):
            fixed = {"justify": "right", "no_wrap": True} if n else {"overflow": "fold"}
            grid.add_column(Text(name), **fixed)
        for row in block.rows:
            grid.add_row(*map(Text, row))
        if not console.is_terminal:
            widest = Console(width=10_000).measure(grid).maximum
            console.width = max(console.width, widest)
        console.print(Text(block.title, style="bold"))
        console.print(grid)
        for note in block.notes:
            console.print(Text(note, style="dim"))
        console.print()


def command_line() -> list[str]:
    """Return the command line without what doesn't change the values.

    Shards, resumed and undivided runs of one job thereby write the same header.
    """
    neutral = {"--resume", "--quiet", "-q", "--verbose", "-v", "--json", "--overwrite"}
    with_value = {"--shard", "--workers", "-j", "--log"}
    words = iter(sys.argv)
    kept = []
    for word in words:
        if word in with_value:
            next(words, None)
        elif not (
            word in neutral
            or word.partition("=")[0] in with_value
            or word.startswith("-j")
        ):
            kept.append(word)
    return kept
