"""Importance as a table.

``CATALOGUE``: ``wavelength`` and, per label, the mean absolute value, its standard
error and the mean with its sign. FITS files have more tables: ``SPECTRUM``, the mean
prepared spectrum; ``CLASSES``, the same averages per spectral class, with the mean
scores; and ``SPECTRA``, the map of every spectrum, if these are kept.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, suppress

import numpy as np

from stellarcli import catalog
from stellarcli.catalog import Column, Extension
from stellarcli.explanation import classes
from stellarcli.explanation.importance import Importance, Maps
from stellarcli.labels import Label
from stellarcli.provenance import Card

WAVELENGTH = Column("wavelength", "f8", "Angstrom", "vacuum, rest frame", "F9.3")


class Spool:
    """Maps of single spectra on disk, until a table takes them.

    Parameters
    ----------
    output : str
        Of the table: the temporary file lies beside it.
    """

    def __init__(self, output: str):
        folder = tempfile.gettempdir() if output == "-" else os.path.dirname(output)
        self.output = output
        self.folder = folder or "."
        self.count = 0
        self.channels = 0
        self.widths: dict[str, int] = {}

    def __enter__(self) -> Spool:
        """Open the file."""
        with self._explained(), ExitStack() as stack:
            self._file = stack.enter_context(
                tempfile.TemporaryFile(prefix=".stellar-", dir=self.folder)
            )
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        """Remove the file."""
        with suppress(OSError):  # a full disk has been reported already
            self._stack.close()

    def _explained(self) -> AbstractContextManager[None]:
        return catalog.explained(self.output, os.path.join(self.folder, "maps"))

    def keep(self, maps: Maps) -> None:
        """Append maps."""
        if not len(maps):
            return
        with self._explained():
            for array in (maps.rows, maps.values, _weights(maps)):
                np.save(self._file, array, allow_pickle=False)
        self.channels = _weights(maps).shape[1]
        self.count += 1
        for name in ("objid", "file"):
            width = maps.rows.dtype[name].itemsize
            self.widths[name] = max(self.widths.get(name, 1), width)

    def parts(self, columns: list[Column], labels: list[Label]) -> Iterator[np.ndarray]:
        """Yield rows of the table of single spectra."""
        with self._explained():
            self._file.flush()
            self._file.seek(0)
        for _ in range(self.count):
            rows, values, weights = (np.load(self._file) for _ in range(3))
            content = {"objid": rows["objid"], "file": rows["file"]}
            known = [label.name for label in labels if label.name in rows.dtype.names]
            content |= {name: rows[name] for name in known}
            if self.channels:
                content["channels"] = weights
            content |= _scores(classes.scores(rows))
            content |= {
                f"{label.name}_map": values[:, :, n] for n, label in enumerate(labels)
            }
            yield catalog.rows(columns, content)


def _weights(maps: Maps) -> np.ndarray:
    """Weights of channels, (spectrum, channel); no channels where there are none."""
    if maps.channels is None:
        return np.zeros((len(maps), 0), dtype=np.float32)
    return maps.channels


def write(
    path: str,
    found: Importance,
    header: Iterable[Card],
    spool: Spool | None = None,
    overwrite: bool = False,
) -> None:
    """Write a table; further ones in FITS.

    Parameters
    ----------
    path : str
        As for `catalog.write_parts`; ``-`` is standard output.
    found : Importance
    header : iterable of (keyword, value, comment)
        Provenance.
    spool : Spool, optional
        Maps of single spectra.
    overwrite : bool
    """
    columns, values = [WAVELENGTH], {"wavelength": found.wavelength}
    whole = found.whole
    for n, label in enumerate(found.labels):
        columns += _columns(label, found)
        values |= _averages(label.name, whole.mean, whole.error, whole.signed, n)
    catalog.write_parts(
        path,
        [catalog.rows(columns, values)],
        columns,
        [*header, *_cards(found)],
        overwrite,
        extensions=[*_extensions(found), *_single(found, spool)],
    )


def _columns(label: Label, found: Importance, shape: str = "") -> list[Column]:
    name, unit = label.name, found.unit(label)
    return [
        Column(name, f"{shape}f4", unit, f"mean absolute {found.about}", "G13.6"),
        Column(f"{name}_err", f"{shape}f4", unit, "its standard error", "G13.6"),
        Column(f"{name}_signed", f"{shape}f4", unit, f"mean {found.about}", "G13.6"),
    ]


def _averages(name: str, mean, error, signed, n: int) -> dict[str, np.ndarray]:
    return {
        name: mean[..., n],
        f"{name}_err": error[..., n],
        f"{name}_signed": signed[..., n],
    }


def _cards(found: Importance) -> list[Card]:
    request, model = found.request, found.model
    cards = [
        ("MODEL", model.name, "model that is explained"),
        ("MODELSHA", model.sha256, "sha256 of the model file"),
        ("RECIPE", model.recipe.to_json(), "preprocessing"),
        ("METHOD", request.method, "of explanation"),
        ("NSPECTRA", found.used, "spectra averaged"),
        ("NSKIPPED", found.skipped, "spectra left out: not to be trusted"),
        ("NFAILED", found.summary.failed, "spectra without values"),
    ]
    return [*cards, *found.details]


def _extensions(found: Importance) -> Iterator[Extension]:
    spectrum = [
        WAVELENGTH,
        Column("flux", "f4", "", "mean prepared flux", "G13.6"),
    ]
    content = {"wavelength": found.pixels, "flux": found.whole.flux}
    yield Extension("SPECTRUM", spectrum, [catalog.rows(spectrum, content)], {})
    if found.found_classes:
        yield _by_class(found)


def _by_class(found: Importance) -> Extension:
    """One row per spectral class, with vectors over ``wavelength``."""
    groups = [found.groups[name] for name in found.found_classes]
    columns = [
        Column("class", "S", "", "class of the prediction"),
        Column("spectra", "i4", "", "number of spectra"),
        *_score_columns(),
    ]
    values = {
        "class": np.array(found.found_classes),
        "spectra": np.array([group.count for group in groups]),
        **_scores(np.array([group.scores for group in groups])),
    }
    shape = f"({len(found.wavelength)},)"
    mean = np.array([group.mean for group in groups])
    error = np.array([group.error for group in groups])
    signed = np.array([group.signed for group in groups])
    for n, label in enumerate(found.labels):
        columns += _columns(label, found, shape)
        values |= _averages(label.name, mean, error, signed, n)
    pixels = f"({len(found.pixels)},)f4"
    columns.append(Column("flux", pixels, "", "mean prepared flux"))
    values["flux"] = np.array([group.flux for group in groups])
    return Extension("CLASSES", columns, [catalog.rows(columns, values)], {"class": 1})


def _score_columns() -> list[Column]:
    return [
        Column(f"score_{name}", "f4", "", f"probability of class {name}", "F6.4")
        for name in classes.CLASSES
    ]


def _scores(scores: np.ndarray | None) -> dict[str, np.ndarray]:
    if scores is None:
        return {}
    return {f"score_{name}": scores[:, n] for n, name in enumerate(classes.CLASSES)}


def _single(found: Importance, spool: Spool | None) -> Iterator[Extension]:
    """One row per spectrum, with a vector over ``wavelength`` per label."""
    if spool is None:
        return
    shape = f"({len(found.wavelength)},)"
    columns = [
        Column("objid", "S", "", "identifier given by the survey"),
        Column("file", "S", "", "input file; % and bytes other than ASCII as in a URL"),
        *(
            Column(label.name, "f4", label.unit, label.description, label.display)
            for label in found.labels
            if label in found.model.labels
        ),
        *(
            [Column("channels", f"({spool.channels},)f4", "", "weight of each channel")]
            if spool.channels
            else ()
        ),
        *(_score_columns() if found.found_classes else ()),
        *(
            Column(
                *(f"{label.name}_map", f"{shape}f4", found.unit(label), found.about),
                "G13.6",
            )
            for label in found.labels
        ),
    ]
    parts = spool.parts(columns, found.labels)
    yield Extension("SPECTRA", columns, parts, spool.widths)
