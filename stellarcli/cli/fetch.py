"""``stellar fetch``: one subcommand per source."""

from __future__ import annotations

from typing import Annotated

import typer

from stellarcli.cli import fetching, options
from stellarcli.cli.reporting import command_line, progress, say, start_log

app = typer.Typer(no_args_is_help=True, help="Get spectra, catalogues and models.")


@app.callback()
def fetch() -> None:
    """Get spectra, catalogues and models.

    Files get their names when they are whole and verified; what is interrupted goes on
    with --resume.

    Examples:

      stellar fetch lamost --dr 10 --version v2.0 --obsid 176604010 -o raw/

      stellar fetch simulated -n 200 -o spectra/
    """


@app.command("simulated")
def simulated(
    output: Annotated[
        str,
        typer.Option(
            "--output", "-o", metavar="DIR", help="Directory; made if missing."
        ),
    ],
    number: Annotated[
        int, typer.Option("--number", "-n", metavar="N", min=1, help="Spectra.")
    ] = 100,
    survey: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Whose files to imitate: lamost-lrs, lamost-mrs or apogee.",
        ),
    ] = "lamost-lrs",
    snr: Annotated[
        str | None,
        typer.Option(
            metavar="X|LOW:HIGH",
            help="Signal-to-noise ratio in g, of medium resolution in the blue arm; by "
            "default as LAMOST's.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(
            metavar="N", min=0, max=999999, help="Same seed, same stars and noise."
        ),
    ] = 1,
    ranges: Annotated[
        list[str] | None,
        typer.Option(
            "--range",
            metavar="LABEL=LOW:HIGH",
            help="Limits of teff, logg, feh; several with commas or repeated. By "
            "default the trained range of the shipped model.",
            show_default=False,
        ),
    ] = None,
    images: Annotated[
        bool,
        typer.Option(
            "--images",
            help="Make red-clump stars with simulated masses and ages, and SDSS-like "
            "g, r and i frames of them in DIR/frames.",
        ),
    ] = False,
    labels_out: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Table of file, objid and true labels."),
    ] = None,
    table: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Table of the paths written; - pipes it to 'predict -'.",
        ),
    ] = None,
    uncompressed: Annotated[
        bool, typer.Option("--no-gzip", help="Write .fits instead of .fits.gz.")
    ] = False,
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
) -> None:
    """Write simulated survey files with known labels.

    Spectra come from a small emulator inside the package; velocities, reddening, noise
    and bad pixels are as in LAMOST DR10. Those of medium resolution (lamost-mrs) come
    from a line list and a synthesis in miniature, with fifteen abundances; apogee is
    combined spectra of dwarfs in the H band, after El-Badry et al. 2018. The survey's
    reader can't tell the files from real ones, their header can.

    Examples:

      stellar fetch simulated -n 200 -o spectra/ --labels-out truth.fits

      stellar fetch simulated -n 50 -o dwarfs/ --range teff=4000:7000,logg=4:5 --snr 50

      stellar fetch simulated --survey lamost-mrs -n 50 -o mrs/ --labels-out truth.fits

      stellar fetch simulated --images -n 300 -o clump/ --labels-out truth.fits
    """
    from stellarcli import catalog, provenance, simulation

    for path in (labels_out, table):
        if path:
            catalog.check_output(path, overwrite)
    stars = simulation.fetch(
        output,
        number,
        survey,
        seed=seed,
        snr=simulation.parse_snr(snr),
        ranges=simulation.parse_ranges(ranges or [], survey),
        compress=not uncompressed,
        images=images,
        overwrite=overwrite,
    )
    cards = provenance.cards(command_line())
    if labels_out:
        simulation.write_truth(labels_out, stars, cards, overwrite)
    if table:
        simulation.write_paths(table, stars, output, cards, overwrite)
    if not quiet:
        say(f"{len(stars)} spectra in {output}")
        if images:
            say(f"  simulated red-clump stars, their frames in {output}/frames")


Url = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        envvar="STELLAR_LAMOST_URL",
        help="The archive or a mirror of it; https://www.lamost.org by default.",
        show_default=False,
    ),
]
SdssUrl = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        envvar="STELLAR_SDSS_URL",
        help="Science Archive Server or mirror; https://data.sdss.org/sas by default.",
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


@app.command("lamost")
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

    job = fetching.Job(
        output,
        table,
        failures,
        retries,
        resume,
        overwrite,
        dry_run,
        json,
        quiet,
        verbose,
        log,
    )
    job.check()
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
    limits = {"connections": connections, "rate": rate, "timeout": timeout}
    base = url or archive.ADDRESS
    if from_tar:
        fetching.get_night(
            from_tar, rows, job, base, dr, version, mrs, token_file, limits
        )
        return
    release = archive.choose(Client(base, **limits), dr, version, retries)
    token = archive.authorised(release, token_file, fetching.ask_token())
    client = Client(base, token, **limits)
    if place is not None:
        rows = archive.cone(client, release, place, mrs, retries)
    elif sql is not None:
        rows = archive.sql(client, release, sql, retries)
    fetching.get(client, archive.spectra(client.base, release, rows, mrs), job)


@app.command("lamost-catalogue")
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


@app.command("sdss")
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

    job = fetching.Job(
        output,
        table,
        failures,
        retries,
        resume,
        overwrite,
        dry_run,
        json,
        quiet,
        verbose,
        log,
    )
    job.check()
    limits = {"connections": connections, "rate": rate, "timeout": timeout}
    client = Client(url or archive.ADDRESS, **limits)
    release = archive.parse_dr(dr)
    rows = catalog.read(source)
    fetching.get(client, archive.spectra(client.base, rows, release, full), job)


@app.command("sdss-images")
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

    job = fetching.Job(
        output,
        table,
        failures,
        retries,
        resume,
        overwrite,
        dry_run,
        json,
        quiet,
        verbose,
        log,
    )
    job.check()
    limits = {"connections": connections, "rate": rate, "timeout": timeout}
    client = Client(url or archive.ADDRESS, **limits)
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


@app.command("apogee")
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

    job = fetching.Job(
        output,
        table,
        failures,
        retries,
        resume,
        overwrite,
        dry_run,
        json,
        quiet,
        verbose,
        log,
    )
    job.check()
    limits = {"connections": connections, "rate": rate, "timeout": timeout}
    client = Client(url or archive.ADDRESS, **limits)
    release = archive.parse_dr(dr)
    rows = catalog.read(source)
    fetching.get(client, archive.apogee(client.base, rows, release, kind), job)


HubUrl = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        envvar="STELLAR_MODEL_URL",
        help="Hub of models: an address with an index.json.",
        show_default=False,
    ),
]


@app.command("model")
def model(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="As 'fetch list' shows.", show_default=False
        ),
    ],
    url: HubUrl = None,
    timeout: fetching.Timeout = 30.0,
    retries: fetching.Retries = 5,
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
) -> None:
    """Fetch a trained model, for '--model NAME' to find.

    Its checksum is compared with the hub's, and it is opened once, before it is kept in
    STELLAR_MODELS, or stellar/models below XDG_CACHE_HOME or ~/.cache. Prints its path.

    Examples:

      stellar fetch model giants --url https://example.org/models
    """
    from stellarcli.archives import hub
    from stellarcli.archives.client import Client

    client = Client(url, timeout=timeout) if url else None
    with fetching.measured(quiet) as count:
        path = hub.fetch(client, name, retries, overwrite=overwrite, progress=count)
    typer.echo(str(path))


@app.command("list")
def list_models(
    url: HubUrl = None,
    timeout: fetching.Timeout = 30.0,
    json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """List models: shipped, fetched, and those of a hub.

    Examples:

      stellar fetch list

      stellar fetch list --url https://example.org/models
    """
    from dataclasses import asdict

    from stellarcli.archives import hub
    from stellarcli.archives.client import Client

    entries = hub.local()
    if url:
        entries += hub.listed(Client(url, timeout=timeout), fetching.FEW)
    if json:
        import json as json_module

        typer.echo(json_module.dumps([asdict(entry) for entry in entries], indent=1))
        return
    for entry in entries:
        typer.echo(
            f"{entry.name:20s} {entry.where:8s} {entry.size / 1e6:7.1f} MB  "
            f"{entry.sha256[:12]:12s}  {entry.description}"
        )


@app.command("vizier")
def vizier(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="Catalogue or table, such as J/AJ/151/13; or lamost-kepler-mk, "
            "red-clump, apogee.",
            show_default=False,
        ),
    ],
    output: options.Output,
    match: Annotated[
        str | None,
        typer.Option(
            metavar="TABLE",
            help="Only rows near a position (ra, dec) of this table, with its columns.",
        ),
    ] = None,
    radius: Annotated[
        float, typer.Option(metavar="ARCSEC", help="How near, with --match.")
    ] = 3.0,
    url: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            envvar="STELLAR_VIZIER_URL",
            help="TAP service; that of VizieR by default.",
            show_default=False,
        ),
    ] = None,
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
) -> None:
    """Fetch a catalogue of VizieR, or match it with a table.

    Needs pyvo: pip install 'stellarcli[vo]'.

    Examples:

      stellar fetch vizier red-clump -o red_clump.fits

      stellar fetch vizier lamost-kepler-mk --match stars.fits -o stars_mk.fits
    """
    from stellarcli import catalog, provenance
    from stellarcli.archives import vizier as archive

    catalog.check_output(output, overwrite)
    mine = catalog.read(match) if match else None
    tap = archive.service(url or archive.ADDRESS)
    found = archive.find_table(tap, name)
    if mine is None:
        whole = archive.whole_table(tap, found)
        rows, columns = whole.rows, catalog.columns_of(whole.rows, whole.units)
    else:
        with progress(len(mine.rows), "rows", quiet) as bar:
            rows, columns = archive.matched(tap, found, mine, radius, bar.update)
    cards = provenance.cards(command_line(), table=(found, "table of VizieR"))
    catalog.write(output, rows, columns, cards, overwrite)
    if not quiet:
        say(f"{len(rows)} rows of {found} in {output}")
