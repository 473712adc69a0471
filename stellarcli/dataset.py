"""Training data: prepared tables, selected rows, splits, augmentation."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np

from stellarcli import catalog, feeding, preprocess, sptype
from stellarcli.errors import UsageError, unknown
from stellarcli.feeding import Feed
from stellarcli.labels import SUBTYPE_COLUMNS
from stellarcli.prepared import PreparedTable, recipe_difference
from stellarcli.selection import select
from stellarcli.settings import MODEL, TrainConfig
from stellarcli.streams import Stream, streams

PARTS = ("train", "validation", "test")
HELD = "held out"  # of all folds of a cross-validation, tested on after it
JOIN_RADIUS = 3.0  # arcsec
SKY = ("ra", "dec")
log = logging.getLogger(__name__)


def split_by_hash(
    groups: Sequence[str],
    *,
    test: float,
    validation: float,
    seed: int,
    folds: int = 0,
    fold: int = 0,
) -> np.ndarray:
    """Assign whole groups to train, validation or test.

    A group's part follows from its name and the seed alone, so that adding rows never
    moves a star from one side to the other.

    Parameters
    ----------
    groups : sequence of str
        Group of every row: the star, the plate.
    test, validation : float
        Expected fractions of the groups, `validation` of those that aren't tested on.
    seed : int
    folds, fold : int
        With folds, the groups that `test` leaves are divided into so many; number
        `fold` is the test part, and what `test` takes is held out of all folds.

    Returns
    -------
    ndarray of str
        One of `PARTS`, or `HELD`, per row.
    """
    names, inverse = np.unique(np.asarray(groups).astype(str), return_inverse=True)
    share = np.array([_share(f"{seed}:{name}") for name in names])
    inner = np.array([_share(f"{seed}:validation:{name}") for name in names])
    part = np.where(inner < validation, "validation", "train")
    taken = share < test
    if not folds:
        return np.where(taken, "test", part)[inverse]
    number = ((share - test) / (1 - test) * folds).astype(int)
    part = np.where(number == fold, "test", part)
    return np.where(taken, HELD, part)[inverse]


def _share(text: str) -> float:
    """Return a number in [0, 1) that depends on nothing but a text."""
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


@dataclass
class Dataset:
    """Selected rows of one or more prepared tables.

    Attributes
    ----------
    tables : list of PreparedTable or Stream
    table, row : ndarray of int, shape (spectrum,)
        Where each spectrum is.
    labels : ndarray of float64, shape (spectrum, label)
        NaN where missing.
    part : ndarray of str, shape (spectrum,)
        One of `PARTS`.
    objid : ndarray of str, shape (spectrum,)
    errors : ndarray of float64, shape (spectrum, label)
        Standard errors of the labels; 0 where none are known.
    star : ndarray of int, shape (spectrum,)
        Equal for spectra of one star.
    notes : list of str
        What the user should know about the labels.
    target : tuple of str
        Columns that the labels are from.
    inputs, extra : tuple of str
        What the network is fed, of `feeding.INPUTS`, and the columns of its input
        ``extra``.
    """

    tables: list[PreparedTable | Stream]
    table: np.ndarray
    row: np.ndarray
    labels: np.ndarray
    part: np.ndarray
    objid: np.ndarray
    errors: np.ndarray
    star: np.ndarray
    notes: list[str] = field(default_factory=list)
    target: tuple[str, ...] = ()
    inputs: tuple[str, ...] = feeding.SPECTRUM
    extra: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Return the number of spectra."""
        return len(self.row)

    def index(self, part: str) -> np.ndarray:
        """Return the spectra of one part."""
        return np.flatnonzero(self.part == part)

    @property
    def simulated(self) -> np.ndarray:
        """Which spectra are from streams, bool (spectrum,)."""
        return np.array([isinstance(t, Stream) for t in self.tables])[self.table]

    def rows(self, index: np.ndarray) -> Dataset:
        """Return some of the spectra."""
        arrays = {
            f.name: getattr(self, f.name)[index]
            for f in fields(self)
            if isinstance(getattr(self, f.name), np.ndarray)
        }
        return replace(self, **arrays)

    def redraw(self, epoch: int) -> bool:
        """Let streams go on to the stars of an epoch; say whether labels changed."""
        changed = False
        for number, table in enumerate(self.tables):
            if isinstance(table, Stream):
                table.redraw(epoch)
                here = self.table == number
                labels = _labels(_Columns(table, None, None), self.target)
                self.labels[here] = labels[self.row[here]]
                changed = True
        return changed

    def text(self, name: str) -> np.ndarray:
        """Return a column of the tables as text, empty where a table lacks it."""
        values = np.full(len(self), "", dtype=object)
        for number, table in enumerate(self.tables):
            here = self.table == number
            if name in getattr(table, "names", ()):
                values[here] = table.column(name)[self.row[here]].astype(str)
        return values.astype(str)

    def write_split(self, path: Path) -> None:
        """Write which spectrum was in which part, so that figures can be traced."""
        names = np.array([Path(table.path).name for table in self.tables])
        columns = {
            "objid": np.char.encode(self.objid, "ascii", "replace"),
            "table": np.char.encode(names, "ascii", "replace")[self.table],
            "row": self.row.astype("i8"),
            "part": self.part.astype("S10"),
        }
        table = np.empty(len(self), [(n, c.dtype) for n, c in columns.items()])
        for name, values in columns.items():
            table[name] = values
        catalog.write(path, table, overwrite=True)

    def spectra(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Read flux and ivar of some spectra, float32, each (spectrum, pixel)."""
        feed = self._read(index, feeding.SPECTRUM)
        return feed["flux"], feed["ivar"]

    def feed(self, index: np.ndarray) -> Feed:
        """Read what the network is fed of some spectra."""
        return self._read(index, self.inputs)

    @property
    def pixels(self) -> int:
        """Pixels of the longest spectrum."""
        return max(table.pixels for table in self.tables)

    def _read(self, index: np.ndarray, names: tuple[str, ...]) -> Feed:
        """Read named arrays; spectra of shorter tables are padded."""
        if len(self.tables) == 1:
            return self.tables[0].feed(self.row[index], names, self.extra)
        pieces = {}
        for number, table in enumerate(self.tables):
            here = np.flatnonzero(self.table[index] == number)
            if here.size or not number:
                piece = table.feed(self.row[index[here]], names, self.extra)
                pieces[number] = here, piece
        feed = {}
        for name in names:
            shape = list(pieces[0][1][name].shape)
            shape[0] = len(index)
            if feeding.INPUTS[name].per_pixel:
                shape[1] = max(piece[name].shape[1] for _, piece in pieces.values())
            feed[name] = feeding.empty(name, shape)
            for here, piece in pieces.values():
                if feeding.INPUTS[name].per_pixel:
                    feed[name][here, : piece[name].shape[1]] = piece[name]
                else:
                    feed[name][here] = piece[name]
        return feed


def load(
    paths: Sequence[str],
    config: TrainConfig,
    catalogue: catalog.Table | None = None,
    inputs: tuple[str, ...] = feeding.SPECTRUM,
) -> Dataset:
    """Open prepared tables, select rows and split them.

    Rows without a good pixel, or without any label, are left out.

    Parameters
    ----------
    paths : sequence of str
    config : TrainConfig
        Target, selection and split.
    catalogue : Table, optional
        Columns beyond those of the tables: labels, groups, what the selection needs.
        Joined by identifier, file or sky.
    inputs : tuple of str
        What the network is fed, see `feeding`.

    The spectra of `TrainConfig.stream` come after those of the tables. They are
    prepared with the tables' recipe, or, without tables, with the one that is named as
    the network, or the default.

    Raises
    ------
    UsageError
        If recipes differ, a column is missing, nothing is left, or a star would be on
        both sides of the split.
    """
    tables: list[PreparedTable | Stream] = [PreparedTable(path) for path in paths]
    model = config.model or MODEL
    named = model if model in preprocess.RECIPES else "default"
    recipe = tables[0].recipe if tables else preprocess.get(named)
    more = (config.random_seed("streams"), config.emulator, config.pool)
    tables += streams(config.stream, recipe, *more)
    if not tables:
        raise UsageError(
            "there is nothing to train on: name prepared tables or raw files, or let "
            "spectra be simulated, such as --set stream.lamost-lrs=5000."
        )
    _check_alike(tables, inputs)
    matcher = catalog.Matcher(catalogue.rows, JOIN_RADIUS) if catalogue else None
    sources = [
        _Columns(table, None, None)
        if isinstance(table, Stream)
        else _Columns(table, catalogue, matcher)
        for table in tables
    ]
    pieces = [_piece(number, source, config) for number, source in enumerate(sources)]
    columns = {name: np.concatenate([p[name] for p in pieces]) for name in pieces[0]}
    if not columns["row"].size:
        raise _nothing_left(config)
    star = same_star(columns["objid"], columns.pop("ra"), columns.pop("dec"))
    part = _parts(columns.pop("group"), columns.pop("split"), star, config)
    notes = [note for source in sources for note in source.notes]
    extra = tuple(config.network.get("extra", ()))
    fed = {"target": config.target, "inputs": inputs, "extra": extra}
    data = Dataset(tables=tables, star=star, part=part, notes=notes, **fed, **columns)
    data = _separated(data)
    if not data.index("train").size:
        raise _nothing_left(config)
    if config.folds and not data.index("test").size:
        raise UsageError(
            f"fold {config.fold} of {config.folds} has no row: there are too few "
            f"groups. Give fewer --folds, or another --seed."
        )
    return data


def _check_alike(tables: list[PreparedTable | Stream], inputs: tuple[str, ...]) -> None:
    """Refuse tables that can't feed one network."""
    for table in tables:
        if table.wavelength is None and "wavelength" not in inputs:
            raise UsageError(
                f"the spectra of '{table.path}' have a wavelength grid each, and this "
                "network needs a common one; prepare them with a recipe that resamples."
            )
        if "images" in inputs:
            table.check_images()
        if difference := recipe_difference(table.recipe, tables[0].recipe):
            raise UsageError(
                f"'{table.path}' was prepared differently from '{tables[0].path}': "
                f"{difference}. Prepare both with the same --recipe."
            )


def _nothing_left(config: TrainConfig) -> UsageError:
    return UsageError(
        "no spectrum is left to train on"
        + (f" after selecting {config.select!r}" if config.select else "")
        + "; check the selection, the label columns and the split."
    )


class _Columns:
    """Scalar columns of a prepared table, and of a catalogue joined to it."""

    def __init__(
        self,
        table: PreparedTable | Stream,
        catalogue: catalog.Table | None,
        matcher: catalog.Matcher | None,
    ):
        self.table, self.catalogue = table, catalogue
        self.notes: list[str] = []
        if matcher is not None:
            self.found = matcher(table.rows()).index
            if not (self.found >= 0).any():
                raise UsageError(
                    f"no row of {catalogue.name} belongs to a spectrum of "
                    f"'{table.path}': neither identifiers, file names nor positions "
                    "agree."
                )

    def __call__(self, name: str) -> np.ndarray:
        """Return a column; that of the catalogue where both have it."""
        key = self.catalogue.find(name) if self.catalogue else None
        if key is not None:
            return self._joined(key)
        if not self.has(name):
            valid = [*self.table.names]
            where = f"'{self.table.path}'"
            hint = " Columns of another table are joined with --labels CATALOGUE."
            if self.catalogue:
                valid += self.catalogue.rows.dtype.names
                where, hint = f"{where} or {self.catalogue.name}", ""
            error = unknown(f"column of {where}", name, dict.fromkeys(valid))
            raise UsageError(f"{error}{hint}")
        return self.table.column(name)

    def _joined(self, key: str) -> np.ndarray:
        """Values of the matching rows; NaN, empty text or False without one."""
        values = self.catalogue.rows[key]
        if values.ndim > 1 or values.dtype.kind not in "fiubSU":
            raise UsageError(
                f"column {key!r} of {self.catalogue.name} isn't one value per spectrum."
            )
        taken = values[np.maximum(self.found, 0)]
        if taken.dtype.kind == "S":
            taken = np.char.strip(np.char.decode(taken, "ascii", "replace"))
        elif taken.dtype.kind in "iu":
            taken = taken.astype(np.float64)
        missing = {"f": np.nan, "U": "", "b": False}[taken.dtype.kind]
        return np.where(self.found >= 0, taken, missing)

    def own(self, name: str, missing: object) -> np.ndarray:
        """Return a column of the table itself, or one value where there is none."""
        if self.has(name):
            return self.table.column(name)
        return np.full(len(self.table), missing)

    def numbers(self, name: str) -> np.ndarray:
        """Return a column as float64.

        A spectral type is taken from any of `SUBTYPE_COLUMNS` where there is none of
        that name, and may be text; it is NaN where it can't be read.

        Raises
        ------
        UsageError
            If it is other text.
        """
        if name.lower() in SUBTYPE_COLUMNS and not self.known(name):
            name = next(filter(self.known, SUBTYPE_COLUMNS), name)
        values = self(name)
        if values.dtype.kind == "U" and name.lower() in SUBTYPE_COLUMNS:
            if note := sptype.unread(values):
                self.notes.append(f"'{self.table.path}', column {name}: {note}")
            return sptype.numbers(values)
        if values.dtype.kind not in "fiub" or values.ndim > 1:
            raise UsageError(
                f"column {name!r} of '{self.table.path}' isn't one number per spectrum."
            )
        return values.astype(np.float64)

    def known(self, name: str) -> bool:
        """Say whether the table or the catalogue has a column."""
        return self.has(name) or bool(self.catalogue and self.catalogue.find(name))

    def has(self, name: str) -> bool:
        """Say whether the table has a column."""
        return name.lower() in {column.lower() for column in self.table.names}


def _piece(number: int, column: _Columns, config: TrainConfig) -> dict[str, np.ndarray]:
    """Return the selected rows of one table: columns of `Dataset`, position, group."""
    size = len(column.table)
    stream = isinstance(column.table, Stream)
    labels = _labels(column, config.target)
    keep = np.isfinite(labels).any(axis=1)
    keep &= column.own("flag", 0).astype(int) & int(catalog.FAILED) == 0
    if config.select and not stream:
        keep &= select(config.select, column)
    row = np.flatnonzero(keep)
    objid = column.own("objid", "").astype(str)
    position = {name: column.own(name, np.nan).astype(float) for name in SKY}
    values = {
        "labels": labels,
        "errors": _errors(labels, column, config),
        "objid": objid,
        **position,
        "group": _names(column, objid, None if stream else config.group),
        "split": column("split" if stream else config.split).astype(str)
        if stream or config.split
        else np.full(size, ""),
    }
    chosen = {name: array[row] for name, array in values.items()}
    return {"table": np.full(row.size, number), "row": row, **chosen}


def _labels(column: _Columns, target: tuple[str, ...]) -> np.ndarray:
    """Return label columns side by side; NaN where a stream's stars have none."""
    stream = isinstance(column.table, Stream)
    values = [
        np.full(len(column.table), np.nan)
        if stream and not column.has(name)
        else column.numbers(name)
        for name in target
    ]
    return np.stack(values, axis=1)


def _errors(labels: np.ndarray, column: _Columns, config: TrainConfig) -> np.ndarray:
    """Return the errors of the labels, the median where unknown; 0 without any."""
    errors = np.zeros_like(labels)
    if config.label_errors and not isinstance(column.table, Stream):
        for i, name in enumerate(config.target):
            found = column.numbers(f"{name}_err")
            known = np.isfinite(found) & (found > 0)
            typical = np.median(found[known]) if known.any() else 0.0
            errors[:, i] = np.where(known, found, typical)
    return errors


def _names(column: _Columns, objid: np.ndarray, group: str | None) -> np.ndarray:
    """Name of every row's group; rows without one are a group of their own."""
    file = column.own("file", "").astype(str)
    rows = np.arange(len(objid)).astype(str)
    own = np.where(file != "", file, np.char.add("row ", rows))
    own = np.where(objid != "", objid, own)
    if group is None:
        return own
    names = column(group).astype(str)
    return np.where((names != "") & (names != "nan"), names, own)


def _parts(
    group: np.ndarray, given: np.ndarray, star: np.ndarray, config: TrainConfig
) -> np.ndarray:
    """Part of every row, from a column or from the names of groups."""
    if config.group is None:
        group = _smallest(group, star)
    options = {"validation": config.validation, "seed": config.seed}
    if config.split is None:
        part = split_by_hash(
            group, test=config.test, folds=config.folds, fold=config.fold, **options
        )
        return np.where(given == "", part, given)
    part = np.char.strip(np.char.lower(given))
    for value in np.unique(part):
        if value not in PARTS:
            raise unknown(f"value of split column '{config.split}'", str(value), PARTS)
    _refuse_leaks(part, star, group, config.split)
    if config.validation > 0 and not (part == "validation").any():
        inner = split_by_hash(group, test=0.0, **options)
        part = np.where((part == "train") & (inner == "validation"), inner, part)
    return part


def _smallest(names: np.ndarray, star: np.ndarray) -> np.ndarray:
    """Give all rows of a star the same name, the smallest of theirs."""
    order = np.argsort(names, kind="stable")
    _, first = np.unique(star[order], return_index=True)
    return names[order][first][star]


def _leaking(part: np.ndarray, star: np.ndarray) -> np.ndarray:
    """Rows whose star is in a later part too, (spectrum,)."""
    order = (*PARTS, HELD)
    rank = np.array([order.index(name) for name in part.tolist()], dtype=int)
    highest = np.zeros(star.max(initial=-1) + 1, dtype=int)
    np.maximum.at(highest, star, rank)
    return rank < highest[star]


def _refuse_leaks(
    part: np.ndarray, star: np.ndarray, name: np.ndarray, column: str
) -> None:
    leaking = _leaking(part, star)
    if leaking.any():
        raise UsageError(
            f"{np.unique(star[leaking]).size} stars are on both sides of the split, "
            f"the first is {str(name[leaking][0])!r}. Correct the split column "
            f"{column!r}, or leave it out and give --group."
        )


def _separated(data: Dataset) -> Dataset:
    """Take out rows whose star is held out elsewhere, and those of no part of a fold.

    Groups such as plates share stars: then a star's rows count where they are tested.
    """
    leaking = _leaking(data.part, data.star)
    if leaking.any():
        log.info("%d rows left out: their stars are tested on", leaking.sum())
    return data.rows(np.flatnonzero(~leaking & (data.part != HELD)))


def same_star(objid: np.ndarray, ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
    """Give each star a number; rows of one identifier or position are one star.

    Parameters
    ----------
    objid : ndarray of str, shape (spectrum,)
        Empty where unknown.
    ra, dec : ndarray, shape (spectrum,)
        Degrees, NaN where unknown.

    Returns
    -------
    ndarray of int, shape (spectrum,)
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial import cKDTree

    size = len(objid)
    _, number = np.unique(objid, return_inverse=True)
    first = np.full(number.max(initial=-1) + 1, -1)
    first[number[::-1]] = np.arange(size)[::-1]
    named = np.flatnonzero(objid != "")
    pairs = [np.stack([named, first[number[named]]], axis=1)]
    known = np.flatnonzero(
        np.isfinite(ra) & np.isfinite(dec) & ~((ra == 0) & (dec == 0))
    )
    if known.size:
        a, d = np.radians(ra[known]), np.radians(dec[known])
        unit = np.stack([np.cos(d) * np.cos(a), np.cos(d) * np.sin(a), np.sin(d)], 1)
        near = cKDTree(unit).query_pairs(
            np.radians(JOIN_RADIUS / 3600), output_type="ndarray"
        )
        pairs.append(known[near])
    left, right = np.concatenate(pairs).T
    graph = coo_array((np.ones(left.size), (left, right)), shape=(size, size))
    return connected_components(graph, directed=False)[1]
