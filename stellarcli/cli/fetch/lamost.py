"""``stellar fetch lamost`` and ``lamost-catalogue``."""

from __future__ import annotations

from typing import Annotated

import typer

from stellarcli.cli import fetching, options
from stellarcli.cli.reporting import say, start_log

Url = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        envvar="STELLAR_LAMOST_URL",
        help="The archive or a mirror of it; https://www.lamost.org by default.",
        show_default=False,
    ),
]
Dr = Annotated[
    str | None,
    typer.Option(
        metavar="N",
        help="Data release; by default the newest public one, asked of the archive.",
        show_default=False,
    ),
]
Version = Annotated[
    str | None,
    typer.Option(
        metavar="vN.N",
        help="Its version; by default the newest public one.",
        show_default=False,
    ),
]
TokenFile = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        envvar="STELLAR_LAMOST_TOKEN_FILE",
        help="Holds the token of a release that isn't public. Also taken from "
        "STELLAR_LAMOST_TOKEN, or asked for on a terminal.",
        show_default=False,
    ),
]


def lamost(
    output: fetching.Directory,
    dr: Dr = None,
    version: Version = None,
    mrs: Annotated[
        bool, typer.Option("--mrs", help="Medium resolution instead of low.")
    ] = False,
    obsid: Annotated[
        list[str] | None,
        typer.Option(
            metavar="N,N...",
            help="Identifiers; with commas or repeated.",
            show_default=False,
        ),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="CATALOGUE",
            help="Table with a column obsid, also 'file.fits[snrg>30]'; - is standard "
            "input.",
        ),
    ] = None,
    cone: Annotated[
        str | None,
        typer.Option(metavar="RA,DEC,RADIUS", help="All within a circle; degrees."),
    ] = None,
    sql: Annotated[
        str | None,
        typer.Option(
            metavar="QUERY", help="All that the archive's SQL finds; select obsid too."
        ),
    ] = None,
    from_tar: Annotated[
        str | None,
        typer.Option(
            metavar="NIGHT|FILE|ADDRESS",
            help="Take them out of a night's tarball, YYYYMMDD, rather than one by "
            "one; all, or those of --obsid or --from.",
        ),
    ] = None,
    table: fetching.TableOut = None,
    failures: fetching.Failures = None,
    url: Url = None,
    token_file: TokenFile = None,
    connections: fetching.Connections = 8,
    rate: fetching.Rate = None,
    timeout: fetching.Timeout = 30.0,
    retries: fetching.Retries = 5,
    resume: fetching.Resume = False,
    dry_run: fetching.DryRun = False,
    overwrite: options.Overwrite = False,
    json: fetching.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    log: options.Log = None,
) -> None:
    """Fetch LAMOST spectra.

    Every file is verified before it gets its name. A row that failed stays in the
    table, with its reason; the exit status is then 3, and --resume tries it again.

    Examples:

      stellar fetch lamost --dr 10 --version v2.0 --obsid 176604010,176604011 -o raw/

      stellar fetch lamost --dr 10 --version v2.0 --from 'stellar.fits[snrg>50]' -o raw/

      stellar fetch lamost --cone 150,2,1 -o r/ --table - | stellar predict - -o a.fits
    """
    from stellarcli import catalog
    from stellarcli.archives import lamost as archive
    from stellarcli.archives.client import Client
    from stellarcli.errors import UsageError

    job = fetching.Job.of(locals())
    given = [bool(obsid), source is not None, cone is not None, sql is not None]
    if sum(given) > 1 or not (any(given) or from_tar) or (from_tar and (cone or sql)):
        raise UsageError(
            "say once which spectra: --obsid, --from, --cone or --sql; --from-tar "
            "alone or with one of the first two."
        )
    rows = None
    place = archive.parse_cone(cone) if cone is not None else None
    if obsid:
        rows = archive.parse_obsids(obsid)
    elif source is not None:
        rows = catalog.read(source)
        archive.check_columns(rows)
    base = url or archive.ADDRESS
    if from_tar:
        fetching.get_night(from_tar, rows, job, base, dr, version, mrs, token_file)
        return
    release = archive.choose(Client(base, **job.limits), dr, version, retries)
    token = archive.authorised(release, token_file, fetching.ask_token())
    client = Client(base, token, **job.limits)
    if place is not None:
        rows = archive.cone(client, release, place, mrs, retries)
    elif sql is not None:
        rows = archive.sql(client, release, sql, retries)
    fetching.get(client, archive.spectra(client.base, release, rows, mrs), job)


def lamost_catalogue(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="LRS_stellar, say; a wrong name lists all.",
            show_default=False,
        ),
    ],
    output: Annotated[
        str,
        typer.Option(
            "--output", "-o", metavar="DIR", help="Directory; made if missing."
        ),
    ] = ".",
    dr: Dr = None,
    version: Version = None,
    url: Url = None,
    token_file: TokenFile = None,
    timeout: fetching.Timeout = 30.0,
    retries: fetching.Retries = 5,
    resume: fetching.Resume = False,
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    log: options.Log = None,
) -> None:
    """Fetch a LAMOST catalogue: gigabytes, continued where it was cut.

    Examples:

      stellar fetch lamost-catalogue LRS_stellar --dr 10 --version v2.0

      stellar fetch lamost-catalogue MRS_stellar -o catalogues/ --resume
    """
    from pathlib import Path

    from stellarcli.archives import lamost as archive
    from stellarcli.archives import transfer
    from stellarcli.archives.client import Client
    from stellarcli.archives.store import prepare
    from stellarcli.errors import FetchError, OutputExistsError

    start_log(log, verbose)
    base = url or archive.ADDRESS
    archive.check_catalogue(name)
    release = archive.choose(Client(base, timeout=timeout), dr, version, retries)
    token = archive.authorised(release, token_file, fetching.ask_token())
    client = Client(base, token, timeout=timeout)
    file, addresses = archive.catalogue(name, release, client.base)
    prepare(Path(output))
    path = Path(output) / file
    if path.exists() and not (overwrite or resume):
        raise OutputExistsError(
            f"{path} exists; give --overwrite to fetch it again, --resume to check it."
        )
    try:
        if not (resume and transfer.is_whole(path)):
            with fetching.measured(quiet) as count:
                transfer.download(
                    client,
                    addresses,
                    path,
                    resume=resume,
                    retries=retries,
                    progress=count,
                )
    except FetchError as error:
        raise transfer.explained(error, file, client) from None
    if not quiet:
        say(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
