"""``stellar fetch sdss``, ``sdss-images`` and ``apogee``."""

from __future__ import annotations

from typing import Annotated

import typer

from stellarcli.cli import fetching, options
from stellarcli.cli.reporting import progress

SdssUrl = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        envvar="STELLAR_SDSS_URL",
        help="Science Archive Server or mirror; https://data.sdss.org/sas by default.",
        show_default=False,
    ),
]


def sdss(
    output: fetching.Directory,
    source: fetching.From,
    dr: Annotated[str, typer.Option(metavar="N", help="Data release.")] = "17",
    full: Annotated[
        bool,
        typer.Option("--full", help="Files with all exposures, not the small ones."),
    ] = False,
    table: fetching.TableOut = None,
    failures: fetching.Failures = None,
    url: SdssUrl = None,
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
    """Fetch SDSS, BOSS, eBOSS or SDSS-V spectra.

    The table has plate, mjd and fiberid, or field, mjd and catalogid (SDSS-V); a column
    run2d is heeded.

    Examples:

      stellar fetch sdss --from 'specobj.fits[snmedian>20]' -o sdss/

      stellar fetch sdss --dr 19 --from spall.fits -o boss/ --table boss.fits
    """
    from stellarcli import catalog
    from stellarcli.archives import sdss as archive
    from stellarcli.archives.client import Client

    job = fetching.Job.of(locals())
    client = Client(url or archive.ADDRESS, **job.limits)
    release = archive.parse_dr(dr)
    rows = catalog.read(source)
    fetching.get(client, archive.spectra(client.base, rows, release, full), job)


def sdss_images(
    output: fetching.Directory,
    source: fetching.From,
    dr: Annotated[str, typer.Option(metavar="N", help="Data release.")] = "17",
    table: fetching.TableOut = None,
    failures: fetching.Failures = None,
    url: SdssUrl = None,
    skyserver_url: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            envvar="STELLAR_SKYSERVER_URL",
            help="Who is asked for frames; https://skyserver.sdss.org by default.",
            show_default=False,
        ),
    ] = None,
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
    """Fetch the SDSS frames in g, r and i that contain each star.

    The table has run, camcol and field, or ra and dec in degrees, for which SkyServer
    is asked once a second. Frames are calibrated images (nanomaggies); the table of
    files has the columns image_g, image_r, image_i.

    Examples:

      stellar fetch sdss-images --from red_clump.fits -o frames/ --table frames.fits
    """
    from stellarcli import catalog
    from stellarcli.archives import sdss as archive
    from stellarcli.archives.client import Client

    job = fetching.Job.of(locals())
    client = Client(url or archive.ADDRESS, **job.limits)
    skyserver = Client(
        skyserver_url or archive.SKYSERVER,
        rate=rate or archive.SKYSERVER_RATE,
        timeout=timeout,
    )
    release = archive.parse_dr(dr)
    rows = catalog.read(source)
    with progress(len(rows.rows), "positions", quiet) as bar:
        order = archive.images(
            client.base, skyserver, rows, release, retries, bar.update
        )
    fetching.get(client, order, job)


def apogee(
    output: fetching.Directory,
    source: fetching.From,
    dr: Annotated[str, typer.Option(metavar="N", help="Data release.")] = "17",
    kind: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="star (combined), visit (single) or aspcap (normalised).",
        ),
    ] = "star",
    table: fetching.TableOut = None,
    failures: fetching.Failures = None,
    url: SdssUrl = None,
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
    """Fetch APOGEE spectra.

    The table has apogee_id, telescope and field, as allStar; for visits telescope,
    field, plate, mjd and fiberid, as allVisit.

    Examples:

      stellar fetch apogee --from 'allStar.fits[1][SNR>100]' -o apogee/
    """
    from stellarcli import catalog
    from stellarcli.archives import sdss as archive
    from stellarcli.archives.client import Client

    job = fetching.Job.of(locals())
    client = Client(url or archive.ADDRESS, **job.limits)
    release = archive.parse_dr(dr)
    rows = catalog.read(source)
    fetching.get(client, archive.apogee(client.base, rows, release, kind), job)
