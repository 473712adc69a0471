"""What shards left in several places, merged into one table."""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import numpy as np

from stellarcli import catalog
from stellarcli.catalog import Column, Table
from stellarcli.claims import claimed
from stellarcli.errors import StellarError, UsageError
from stellarcli.parts import PLAN, Parts
from stellarcli.runs import Summary

DIRECTORY = re.compile(r"\..+-([0-9a-f]{16})\.parts")
OWN_CARDS = ("MODEL", "MODELSHA", "RECIPE", "BADFLAGS")  # that tables must agree in


def merge(
    given: Sequence[str],
    output: str,
    *,
    overwrite: bool = False,
    cards: Sequence[tuple] = (),
) -> Summary:
    """Write the table that one machine would have written.

    Parameters
    ----------
    given : sequence of str
        What shards were told to write (``-o``), where their parts are still beside it;
        directories of parts; or whole catalogues, which are put one behind the other.
    output : str
        ``-`` for standard output.
    overwrite : bool
    cards : sequence of (name, value, comment)
        Provenance for the header.

    Returns
    -------
    Summary

    Raises
    ------
    UsageError
        If something given is neither, or what is given doesn't go together.
    StellarError
        If parts are missing.
    """
    target = catalog.check_output(output, overwrite)
    overwrite = overwrite or target != output
    with claimed(target):
        found = {name: _directories(name) for name in given}
        tables = [name for name, directories in found.items() if not directories]
        if not tables:
            directories = [path for paths in found.values() for path in paths]
            return _merge_parts(directories, target, overwrite, cards)
        if len(tables) < len(found):
            raise UsageError(
                f"'{tables[0]}' is a whole table, others are parts of one. Merge the "
                "parts first."
            )
        return _merge_tables(given, target, overwrite, cards)


def _directories(name: str) -> list[Path]:
    """Directories of parts that a name stands for; none if it is a table.

    Raises
    ------
    UsageError
        If it is nothing at all.
    """
    path = Path(name)
    if path.is_dir():
        if not DIRECTORY.fullmatch(path.resolve().name):
            raise UsageError(
                f"'{name}' is no directory of parts; those are called "
                ".OUTPUT-DIGEST.parts. Give what the shard was told to write."
            )
        return [path]
    beside = path.parent.glob(f".{glob.escape(path.name)}-*.parts")
    found = sorted(p for p in beside if DIRECTORY.fullmatch(p.name))
    if not found and not path.is_file():
        raise UsageError(
            f"there is neither a table '{name}' nor are there parts of it; name what "
            f"'stellar predict --shard' was told to write.{catalog.nearest(name)}"
        )
    return [] if path.is_file() else found


def _merge_parts(
    directories: Sequence[Path], target: str, overwrite: bool, cards: Sequence[tuple]
) -> Summary:
    digests = {DIRECTORY.fullmatch(path.resolve().name)[1] for path in directories}
    if len(digests) > 1:
        raise UsageError(
            f"these are parts of {len(digests)} different runs: of other inputs, model "
            "or options. Merge those of one."
        )
    plan = _plan_in(directories)
    sources = [Parts.at(path, plan["parts"]) for path in directories]
    where = {}
    for source in sources:
        for number in range(source.count):
            if number not in where and source.is_done(number):
                where[number] = source
    missing = sorted(set(range(plan["parts"])) - set(where))
    if missing:
        raise StellarError(
            f"parts {_ranges(missing)} of {plan['parts']} are missing (counted from "
            "1). Run the shards that make them, with --resume, and merge again."
        )
    paths = [where[number].path(number) for number in range(plan["parts"])]
    columns = [Column(**fields) for fields in plan["columns"]]
    header = [*cards, *map(tuple, plan["header"])]
    catalog.write_parts(target, paths, columns, header, overwrite)
    summary = Summary()
    summary.count(paths)
    for number in range(plan["parts"]):
        summary.reasons += where[number].reasons(number)
    return summary


def _plan_in(directories: Sequence[Path]) -> dict:
    """Return what the shards wrote down of their run."""
    for directory in directories:
        try:
            plan = json.loads((directory / PLAN).read_text())
            if isinstance(plan["parts"], int) and plan["columns"] and plan["header"]:
                return plan
        except (OSError, ValueError, KeyError, TypeError):
            continue
    raise StellarError(
        f"'{directories[0]}' says nothing of its run ({PLAN} is missing or damaged); "
        "run the shard again."
    )


def _ranges(numbers: Sequence[int]) -> str:
    """Numbers counted from 1, runs of them as 3–7."""
    runs = []
    for _, run in groupby(enumerate(numbers, 1), key=lambda pair: pair[1] - pair[0]):
        own = [number for _, number in run]
        runs.append(f"{own[0] + 1}–{own[-1] + 1}" if own[1:] else f"{own[0] + 1}")
    return ", ".join(runs)


def _merge_tables(
    given: Sequence[str], target: str, overwrite: bool, cards: Sequence[tuple]
) -> Summary:
    first, summary = None, Summary()
    for name in given:
        table = catalog.read(name)
        first = table if first is None else first
        _check_like(table, first)
        rows = table.rows
        flags = rows["flag"] if "flag" in rows.dtype.names else np.zeros(len(rows), int)
        summary.add(flags)
    cards = [*cards, *((c, first.header[c]) for c in OWN_CARDS if c in first.header)]
    columns = _described(first)
    parts = [lambda name=name: catalog.read(name).rows for name in given]
    catalog.write_parts(target, parts, columns, cards, overwrite)
    return summary


def _described(table: Table) -> list[Column]:
    """Columns with the descriptions that `predict` gives them."""
    from stellarcli import labels

    known = catalog.columns([labels.get(name) for name in labels.LABELS], velocity=True)
    by_name = {column.name: column for column in known}
    return [
        by_name.get(column.name, column)
        for column in catalog.columns_of(table.rows, table.units)
    ]


def _check_like(table: Table, first: Table) -> None:
    """Raise `UsageError` unless two tables have the same columns, from one model."""
    if table.rows.dtype.names != first.rows.dtype.names:
        raise UsageError(
            f"{table.name} has the columns {', '.join(table.rows.dtype.names)}, "
            f"{first.name} has {', '.join(first.rows.dtype.names)}."
        )
    for card in ("MODELSHA", "RECIPE"):
        if table.header.get(card) != first.header.get(card):
            raise UsageError(
                f"{table.name} and {first.name} differ in {card}: they were made with "
                "different models."
            )
