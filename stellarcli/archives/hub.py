"""Trained models from a hub: an address with ``index.json`` and the files it lists.

``index.json`` is ``{"models": [{"name", "file", "size", "sha256", "description"}]}``;
``file`` is relative to it. Any web server or local mirror can be a hub.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import quote

from stellarcli import checkpoint
from stellarcli.archives import transfer
from stellarcli.archives.batch import repeated
from stellarcli.archives.client import Client
from stellarcli.archives.store import prepare
from stellarcli.archives.verification import json_of
from stellarcli.errors import FetchError, StellarError, UsageError, unknown

INDEX = "index.json"
NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,99}", re.ASCII)
FILE = re.compile(r"([\w-][\w.-]*/)*[\w-][\w.-]*\.safetensors", re.ASCII)
DIGEST = re.compile(r"[0-9a-fA-F]{64}")
LARGEST = 1 << 20  # bytes of an index


@dataclass(frozen=True)
class Entry:
    """A model that can be had.

    Attributes
    ----------
    name : str
        As for ``--model``.
    where : str
        ``"shipped"``, ``"fetched"`` or ``"hub"``.
    size : int
        Bytes.
    sha256 : str
    description : str
    file : str
        Path on this machine, or relative to the hub.
    """

    name: str
    where: str
    size: int
    sha256: str
    description: str
    file: str


def local() -> list[Entry]:
    """Models on this machine: shipped and fetched ones."""
    found = []
    for where, models in (
        ("shipped", checkpoint.shipped()),
        ("fetched", checkpoint.fetched()),
    ):
        for name, path in models.items():
            size = path.stat().st_size
            try:
                model = checkpoint.load(str(path))
                labels = ", ".join(label.name for label in model.labels)
                about, digest = f"{labels} ({model.architecture})", model.sha256
            except StellarError as error:
                about, digest = str(error), ""
            found.append(Entry(name, where, size, digest, about, str(path)))
    return found


def listed(client: Client, retries: int) -> list[Entry]:
    """Models of a hub.

    Raises
    ------
    StellarError
        If it doesn't answer, or not with an index.
    """
    address = f"{client.base}/{INDEX}"
    try:
        content, _ = repeated(
            client, partial(client.content, address, limit=LARGEST), retries
        )
    except FetchError as error:
        raise StellarError(
            f"can't read {address}: {error}. Check --url; a hub is an address with an "
            f"{INDEX} in it."
        ) from None
    answer = json_of(content)
    entries = answer.get("models") if isinstance(answer, dict) else None
    if not isinstance(entries, list):
        raise StellarError(
            f"{address} is no index of models: it must be JSON with a list 'models'."
        )
    return [_entry(entry, address) for entry in entries]


def _entry(entry: object, address: str) -> Entry:
    fields = entry if isinstance(entry, dict) else {}
    name, file = str(fields.get("name", "")), str(fields.get("file", ""))
    digest, size = str(fields.get("sha256", "")), fields.get("size", 0)
    if not (
        NAME.fullmatch(name)
        and FILE.fullmatch(file)
        and ".." not in file
        and DIGEST.fullmatch(digest)
        and isinstance(size, int)
    ):
        raise StellarError(
            f"{address} has an entry that is refused: {str(entry)[:200]!r}. A name of "
            "letters and digits, a file '*.safetensors' below the index, its size and "
            "its sha256 are needed."
        )
    about = " ".join(str(fields.get("description", "")).split())
    about = "".join(c for c in about if c.isprintable())[:200]
    return Entry(name, "hub", size, digest.lower(), about, file)


def fetch(
    client: Client | None,
    name: str,
    retries: int,
    *,
    overwrite: bool = False,
    progress: Callable[[int, int | None], None] = lambda size, total: None,
) -> Path:
    """Bring a model to where ``--model NAME`` finds it.

    Parameters
    ----------
    client : Client or None
        Of a hub.
    name : str
    retries : int
    overwrite : bool
        Whether a fetched one may be replaced.
    progress : callable
        As of `transfer.download`.

    Returns
    -------
    Path
        Of the model file; a shipped or fetched one stays as it is.

    Raises
    ------
    UsageError
        If there is none of that name.
    StellarError
        If it can't be fetched, or isn't the file that the index describes.
    """
    there = checkpoint.shipped() | checkpoint.fetched()
    if name in checkpoint.shipped() or (name in there and not overwrite):
        return there[name]
    if client is None:
        known = ", ".join(there)
        raise UsageError(
            f"there is no model {name!r} on this machine ({known}), and no hub to ask; "
            "give --url or set STELLAR_MODEL_URL."
        )
    entries = {entry.name: entry for entry in listed(client, retries)}
    if name not in entries:
        raise unknown(f"model of {client.base}", name, entries)
    entry = entries[name]
    target = checkpoint.models_directory() / f"{name}.safetensors"
    prepare(target.parent)
    try:
        transfer.download(
            client,
            [f"{client.base}/{quote(entry.file)}"],
            target,
            partial(_check, entry),
            resume=True,  # the checksum decides
            retries=retries,
            progress=progress,
        )
    except FetchError as error:
        raise StellarError(
            f"model {name!r} can't be fetched: {error}. Try again, or tell who keeps "
            f"{client.base}."
        ) from None
    return target


def _check(entry: Entry, path: str) -> None:
    """Raise unless a file is the one of the index, and a model this version reads."""
    size = os.path.getsize(path)
    if entry.size and size != entry.size:
        raise FetchError(f"it has {size} bytes, and the index says {entry.size}")
    transfer.check_digest(path, "sha256", entry.sha256)
    checkpoint.load(path)
