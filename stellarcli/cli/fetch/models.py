"""``stellar fetch model`` and ``list``."""

from __future__ import annotations

from typing import Annotated

import typer

from stellarcli.cli import fetching, options

HubUrl = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        envvar="STELLAR_MODEL_URL",
        help="Hub of models: an address with an index.json.",
        show_default=False,
    ),
]


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
