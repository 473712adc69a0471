"""What the subcommands of ``stellar fetch`` share: options, progress, summary."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stellarcli.cli.reporting import (
    command_line,
    progress,
    report_reasons,
    say,
    start_log,
)

if TYPE_CHECKING:
    from stellarcli.archives.batch import Outcome
    from stellarcli.archives.client import Client
    from stellarcli.archives.orders import Order
    from stellarcli.archives.store import Store
    from stellarcli.catalog import Table

FEW = 2  # repetitions of a question that is no download
SAMPLE = 3  # files whose sizes are asked for by --dry-run

Directory = Annotated[
    str,
    typer.Option("--output", "-o", metavar="DIR", help="Directory; made if missing."),
]
TableOut = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="Table of the files, with all columns of the catalogue; - pipes it to "
        "'predict -'.",
    ),
]
Failures = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="Table of the rows that failed, with reasons; --from takes it.",
    ),
]
From = Annotated[
    str,
    typer.Option(
        "--from",
        metavar="CATALOGUE",
        help="Table of what to fetch, also 'file.fits[snrg>30]'; - is standard input.",
    ),
]
Connections = Annotated[
    int,
    typer.Option(metavar="N", min=1, max=64, help="Connections open at once."),
]
Rate = Annotated[
    float | None,
    typer.Option(
        metavar="N",
        min=0.001,
        help="Requests per second at most; by default only what the archive asks for.",
        show_default=False,
    ),
]
Timeout = Annotated[
    float,
    typer.Option(metavar="S", min=0.1, help="Seconds without a byte, per attempt."),
]
Retries = Annotated[
    int,
    typer.Option(metavar="N", min=0, max=100, help="Repetitions per file."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Skip what is there and whole.")]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Say how many files of which size, fetch nothing."),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print a summary as JSON on standard output.")
]


@dataclass(frozen=True)
class Job:
    """Options of one run, as the command line has them."""

    output: str
    table: str | None
    failures: str | None
    connections: int
    rate: float | None
    timeout: float
    retries: int
    resume: bool
    overwrite: bool
    dry_run: bool
    json: bool
    quiet: bool
    verbose: bool
    log: str | None

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> Job:
        """Take a command's arguments; start the log, refuse outputs that can't be."""
        job = cls(**{field.name: arguments[field.name] for field in fields(cls)})
        job.check()
        return job

    @property
    def limits(self) -> dict[str, Any]:
        """What a client has to keep to."""
        names = ("connections", "rate", "timeout")
        return {name: getattr(self, name) for name in names}

    def check(self) -> None:
        """Refuse outputs that can't be, before an archive is asked anything."""
        from stellarcli import catalog
        from stellarcli.errors import UsageError

        start_log(self.log, self.verbose)
        if self.json and self.table == "-":
            raise UsageError("--json and --table - both want standard output.")
        for path in (self.table, self.failures):
            if path and not self.dry_run:
                catalog.check_output(path, self.overwrite or self.resume)


def ask_token() -> Callable[[], str] | None:
    """Way to ask a person for a token, where there is one."""
    if not (sys.stdin and sys.stdin.isatty() and sys.stderr.isatty()):
        return None
    return lambda: typer.prompt("LAMOST token", hide_input=True, err=True)


def get(client: Client, order: Order, job: Job) -> None:
    """Fetch an order's files, write the tables, say what happened."""
    from pathlib import Path

    from stellarcli.archives import batch
    from stellarcli.archives.store import Store, check_space

    keys = order.wanted
    if job.dry_run:
        _preview(client, order, job)
        return
    with Store(job.output, job.overwrite) as store:
        check_space(Path(job.output), _left(order, store, job) * order.typical)
        with counted(len(keys), job.quiet) as count:
            outcome = batch.fetch(
                client,
                keys,
                order.make,
                store,
                retries=job.retries,
                resume=job.resume,
                progress=count,
            )
    batch.raise_if_hopeless(outcome)
    finish(order, outcome, job)


def get_night(
    source: str,
    rows: Table | None,
    job: Job,
    base: str,
    dr: str | None,
    version: str | None,
    medium: bool,
    token_file: str | None,
) -> None:
    """Take spectra out of a night's tarball, fetched first unless it is a file."""
    import os

    from stellarcli.archives import lamost, nights, orders
    from stellarcli.archives.client import Client
    from stellarcli.archives.store import Store

    if job.dry_run:
        say(f"the spectra in tarball {source} would go to {job.output}")
        return
    with Store(job.output, job.overwrite) as store:
        release, path = lamost.TARBALL, source
        if not os.path.isfile(source):
            release = lamost.choose(
                Client(base, **job.limits), dr, version, job.retries
            )
            token = lamost.authorised(release, token_file, ask_token())
            client = Client(base, token, **job.limits)
            with measured(job.quiet) as count:
                path = nights.download(
                    client,
                    lamost.tarball(source, release, client.base, medium),
                    store,
                    resume=job.resume,
                    retries=job.retries,
                    progress=count,
                )
        prefix = lamost.prefix(release, medium)
        order = (
            lamost.spectra(base, release, rows, medium) if rows is not None else None
        )
        wanted = order and {int(key.rpartition("/")[2]): key for key in order.wanted}
        with counted(len(wanted) if wanted else None, job.quiet) as count:
            outcome = nights.unpack(
                path, store, prefix, wanted, resume=job.resume, progress=count
            )
    if path != source:
        os.remove(path)
    finish(order or orders.of_outcome(outcome), outcome, job)


def _left(order: Order, store: Store, job: Job) -> int:
    there = map(store.journal.is_there, order.wanted) if job.resume else ()
    return len(order.wanted) - sum(there)


@contextmanager
def counted(total: int | None, quiet: bool):
    """Progress in files, with MB/s and failures; gives the function to tell it."""
    import time

    start, received = time.monotonic(), 0
    with progress(total, "files", quiet) as bar:

        def count(files: int, size: int, failed: int) -> None:
            nonlocal received
            received += size
            rate = received / 1e6 / max(time.monotonic() - start, 1e-3)
            bar.set_postfix_str(f"{rate:.1f} MB/s, {failed} failed", refresh=False)
            bar.update(files)

        yield count


@contextmanager
def measured(quiet: bool):
    """Progress in bytes of one file; gives the function to tell it."""
    from tqdm import tqdm

    disable = True if quiet else None
    with tqdm(unit="B", unit_scale=True, unit_divisor=1000, disable=disable) as bar:

        def count(size: int, total: int | None) -> None:
            bar.total = total
            bar.update(size - bar.n)

        yield count


def _preview(client: Client, order: Order, job: Job) -> None:
    """Say what would be fetched."""
    from stellarcli.archives import batch

    keys = order.wanted
    items = [order.make(key) for key in keys[:: max(len(keys) // SAMPLE, 1)][:SAMPLE]]
    size = batch.mean_size(client, items, order.typical)
    total = size * len(keys)
    summary = {
        "files": len(keys),
        "bytes_about": total,
        "rows": len(order.table.rows),
        "rows_without_file": sum(
            not all(row) for row in zip(*order.keys.values(), strict=True)
        ),
    }
    if job.json:
        _print_json(summary)
    say(
        f"{len(keys)} files for {len(order.table.rows)} rows, about "
        f"{total / 1e6:.1f} MB ({size / 1e3:.0f} kB each), would go to {job.output}"
    )
    if summary["rows_without_file"]:
        say(f"  {summary['rows_without_file']} rows name no file")
    for item in items:
        say(f"  {client.mask(item.addresses[0])}" if item.addresses else "  none")


def finish(order: Order, outcome: Outcome, job: Job) -> None:
    """Write the tables of a finished run, say what happened, set the exit status."""
    from stellarcli import catalog, provenance
    from stellarcli.archives import orders
    from stellarcli.errors import ExitStatus

    overwrite = job.overwrite or job.resume
    cards = provenance.cards(command_line())
    rows, columns = orders.table_of(order, outcome, job.output)
    failed = rows[orders.REASON] != b""
    if job.table:
        catalog.write(job.table, rows, columns, cards, overwrite)
    if job.failures:
        catalog.write(job.failures, rows[failed], columns, cards, overwrite)
    reasons = orders.reasons(order, outcome)
    report_reasons(reasons, job.log, job.quiet)
    summary = {
        "files": len(outcome.files),
        "skipped": outcome.skipped,
        "failed": len(reasons),
        "rows": len(rows),
        "rows_failed": int(failed.sum()),
        "bytes": outcome.size,
        "directory": job.output,
    }
    if not job.quiet:
        skipped = f" ({outcome.skipped} were there)" if outcome.skipped else ""
        say(
            f"{len(outcome.files)} files in {job.output}{skipped}, "
            f"{outcome.size / 1e6:.1f} MB fetched, {len(reasons)} failed"
        )
    if job.json:
        _print_json(summary)
    if failed.any():
        raise typer.Exit(ExitStatus.INCOMPLETE)


def _print_json(summary: dict[str, Any]) -> None:
    import json

    typer.echo(json.dumps(summary, indent=1))
