"""Spectra through a method, and averages over them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import lru_cache, partial

import numpy as np
import torch

from stellarcli import checkpoint, feeding, runs
from stellarcli.catalog import BAD, FAILED, decode_name
from stellarcli.checkpoint import Model
from stellarcli.errors import NoUsableSpectraError, UsageError
from stellarcli.explanation import classes, method_class
from stellarcli.explanation.request import Request
from stellarcli.inputs import Task
from stellarcli.labels import Label
from stellarcli.models import network_class
from stellarcli.parallel import ordered_map
from stellarcli.prediction import Predictor, Summary
from stellarcli.preparation import CHUNK, Chunk
from stellarcli.provenance import Card
from stellarcli.runs import Run

TASK = 8  # spectra per task: each takes a while
ALL = "all"  # name of the group of all spectra
COMMON = 0.1  # mean score from which features of a class are named


@dataclass(frozen=True, eq=False)
class Maps:
    """Some spectra and what a method says of them.

    Attributes
    ----------
    rows : structured ndarray, shape (spectrum,)
        Of the catalogue that the model predicts.
    flux : ndarray of float32, shape (spectrum, pixel)
        Prepared; NaN where masked.
    values : ndarray of float32, shape (spectrum, point, label)
        With a sign, in the labels' units.
    channels : ndarray of float32, shape (spectrum, channel), optional
        Weights of a network's channels, of the method that looks at them.
    """

    rows: np.ndarray
    flux: np.ndarray
    values: np.ndarray
    channels: np.ndarray | None = None

    def __len__(self) -> int:
        """Return the number of spectra."""
        return len(self.rows)

    def take(self, index: np.ndarray) -> Maps:
        """Return some of the spectra."""
        channels = None if self.channels is None else self.channels[index]
        return Maps(self.rows[index], self.flux[index], self.values[index], channels)

    def joined(self, other: Maps) -> Maps:
        """Return these spectra and others."""
        pairs = zip(
            (self.rows, self.flux, self.values),
            (other.rows, other.flux, other.values),
            strict=True,
        )
        return Maps(*map(np.concatenate, pairs))


class Group:
    """Averages over spectra, grown piece by piece.

    Attributes
    ----------
    count : int
        Spectra in it.
    """

    def __init__(self) -> None:
        self.count = 0
        self._sums: dict[str, np.ndarray] = {}

    def add(self, maps: Maps, scores: np.ndarray | None) -> None:
        """Add spectra, and their class scores if there are any."""
        self.count += len(maps)
        values = maps.values.astype(np.float64)
        known = np.isfinite(maps.flux)
        more = {
            "size": np.abs(values).sum(axis=0),
            "square": np.square(values).sum(axis=0),
            "signed": values.sum(axis=0),
            "flux": np.where(known, maps.flux, 0.0).sum(axis=0),
            "known": known.sum(axis=0),
        }
        if scores is not None:
            more["scores"] = scores.sum(axis=0)
        for name, value in more.items():
            self._sums[name] = self._sums.get(name, 0) + value

    @property
    def mean(self) -> np.ndarray:
        """Mean absolute value, shape (point, label)."""
        return self._sums["size"] / self.count

    @property
    def error(self) -> np.ndarray:
        """Standard error of `mean`; NaN of a single spectrum."""
        if self.count < 2:
            return np.full_like(self.mean, np.nan)
        variance = self._sums["square"] / self.count - self.mean**2
        return np.sqrt(np.maximum(variance, 0) / (self.count - 1))

    @property
    def signed(self) -> np.ndarray:
        """Mean value with its sign, shape (point, label)."""
        return self._sums["signed"] / self.count

    @property
    def flux(self) -> np.ndarray:
        """Mean prepared flux, shape (pixel,); NaN where all are masked."""
        known = self._sums["known"]
        mean = np.full(known.shape, np.nan)
        return np.divide(self._sums["flux"], known, out=mean, where=known > 0)

    @property
    def scores(self) -> np.ndarray | None:
        """Mean class scores in the order of `classes.CLASSES`, or None."""
        return self._sums["scores"] / self.count if "scores" in self._sums else None

    @property
    def classes(self) -> str:
        """Spectral classes that are `COMMON` in it; all where none are known."""
        if self.scores is None:
            return classes.CLASSES
        pairs = zip(classes.CLASSES, self.scores, strict=True)
        return "".join(name for name, score in pairs if score >= COMMON)


@dataclass
class Importance:
    """What a run found.

    Attributes
    ----------
    request : Request
    model : Model
    labels : list of Label
        Those explained.
    wavelength : ndarray, shape (point,)
        Where the method gives values, vacuum Å.
    about : str
        What a value means.
    details : list of (keyword, value, comment)
        How the method was set.
    pixels : ndarray, shape (pixel,)
        Of the mean spectra, vacuum Å; those of the model by default.
    in_units : bool
        Whether values are in the labels' units.
    groups : dict of Group
        ``all``, then each spectral class that occurs.
    summary : prediction.Summary
        Of all spectra given: flags, and what was wrong with some.
    """

    request: Request
    model: Model
    labels: list[Label]
    wavelength: np.ndarray
    about: str
    details: list[Card] = field(default_factory=list)
    pixels: np.ndarray | None = None
    in_units: bool = True
    groups: dict[str, Group] = field(default_factory=dict)
    summary: Summary = field(default_factory=Summary)

    def __post_init__(self) -> None:
        """Spectra are on the model's wavelengths unless the method has its own."""
        if self.pixels is None:
            self.pixels = self.model.wavelength

    def unit(self, label: Label) -> str:
        """Return the unit of a label's values."""
        return label.unit if self.in_units else ""

    @property
    def used(self) -> int:
        """Number of spectra explained."""
        return self.groups[ALL].count if self.groups else 0

    @property
    def skipped(self) -> int:
        """Number of spectra left out as not to be trusted."""
        return self.summary.rows - self.summary.failed - self.used

    @property
    def whole(self) -> Group:
        """Averages over all spectra."""
        return self.groups[ALL]

    def add(self, maps: Maps) -> None:
        """Add spectra to the groups that they belong to."""
        if not len(maps):
            return
        scores = classes.scores(maps.rows)
        self.groups.setdefault(ALL, Group()).add(maps, scores)
        if scores is None:
            return
        own = classes.names(scores)
        for name in np.unique(own).tolist():
            member = own == name
            group = self.groups.setdefault(name, Group())
            group.add(maps.take(member), scores[member])

    @property
    def found_classes(self) -> list[str]:
        """Spectral classes that occur, from O to M."""
        return [name for name in classes.CLASSES if name in self.groups]


class Explainer:
    """A model and a method, ready for prepared chunks."""

    def __init__(self, request: Request):
        torch.set_num_threads(1)  # processes are the parallelism
        kind = method_class(request.method)
        model = checkpoint.load(request.model)
        if not getattr(network_class(model.architecture), "sees_spectrum", True):
            raise UsageError(
                f"{model.name} is a {model.architecture}, which sees images alone: no "
                "wavelength matters to it."
            )
        if model.recipe.wavelength is None and not getattr(kind, "any_grid", False):
            raise UsageError(
                f"recipe '{model.recipe.name}' of {model.name} leaves every spectrum "
                f"its own wavelengths; {request.method} needs a common grid. Give "
                "--method attention."
            )
        self.request = request
        self.model = model
        self.predictor = Predictor(model, request.device, kind.precision)
        self.method = kind(self.predictor, request)

    def __call__(self, chunk: Chunk) -> tuple[Maps, np.ndarray, list]:
        """Explain a chunk.

        Returns
        -------
        maps : Maps
            Of the spectra that are used.
        flags : ndarray
            Of all spectra.
        reasons : list of (str, str)
        """
        rows = np.concatenate([self.predictor(piece) for piece in chunk.pieces(CHUNK)])
        bad = FAILED if self.request.keep_flagged else BAD | FAILED
        use = np.flatnonzero(rows["flag"] & bad == 0)
        batch = chunk.batch.rows(use)
        if hasattr(self.method, "flux"):
            flux = self.method.flux(batch)
        else:
            flux = np.where(batch.good, batch.flux, np.float32(np.nan))
        names = [decode_name(name.decode()) for name in rows["file"]]
        reasons = [(names[row], text) for row, text in chunk.reasons]
        shape = (0, len(self.method.wavelength), len(self.method.targets))
        others = feeding.taken(self.predictor.feed(chunk), use)
        for name in feeding.SPECTRUM:  # these are in the batch
            others.pop(name, None)
        values = np.zeros(shape, np.float32)
        if use.size:
            values = self.method(batch, others)
        channels = getattr(self.method, "channels", None)
        if channels is not None and not use.size:
            channels = channels[:0]
        return Maps(rows[use], flux, values, channels), rows["flag"], reasons


@lru_cache(maxsize=1)
def _explainer(request: Request) -> Explainer:
    """Load a model once per process; forked workers inherit it."""
    return Explainer(request)


def channel_parts(request: Request) -> dict[str, slice]:
    """Channels of each kind, of the method that looks at them."""
    return _explainer(request).method.parts


def _work(task: Task, request: Request) -> tuple[Maps, np.ndarray, list]:
    explainer = _explainer(request)
    return explainer(_prepare(task, explainer))


def _prepare(task: Task, explainer: Explainer) -> Chunk:
    model, request = explainer.model, explainer.request
    run = Run(model=request.model, rv=model.velocities, images=request.images)
    return runs.prepare(task, run, model.recipe, explainer.predictor.inputs)


def _results(tasks: Sequence[Task], request: Request) -> Iterator:
    if request.device == "cpu":
        yield from ordered_map(partial(_work, request=request), tasks, request.workers)
        return
    # workers read and prepare; this process feeds the device
    explainer = _explainer(request)
    prepare = partial(_prepare, explainer=explainer)
    yield from map(explainer, ordered_map(prepare, tasks, request.workers))


def explain(
    tasks: Sequence[Task],
    request: Request,
    *,
    keep: Callable[[Maps], None] = lambda maps: None,
    progress: Callable[[int], None] = lambda count: None,
) -> Importance:
    """Explain a model's labels for some spectra.

    Parameters
    ----------
    tasks : sequence of Task
        Of `inputs.tasks`, best `TASK` spectra each.
    request : Request
    keep : callable
        Given the maps of single spectra, in order.
    progress : callable
        Told how many spectra were finished since the last call.

    Returns
    -------
    Importance

    Raises
    ------
    UsageError
        If the model or method doesn't exist, or the method can't serve the model.
    NoUsableSpectraError
        If no spectrum is to be trusted.
    """
    explainer = _explainer(request)
    model, method = explainer.model, explainer.method
    found = Importance(
        request=request,
        model=model,
        labels=getattr(method, "labels", None)
        or [model.labels[n] for n in method.targets],
        wavelength=method.wavelength,
        pixels=model.wavelength if model.wavelength is not None else method.wavelength,
        in_units=getattr(method, "in_units", True),
        about=method.about,
        details=method.details,
    )
    with ExitStack() as stack:
        results = stack.enter_context(closing(_results(tasks, request)))
        for task, (maps, flags, reasons) in zip(tasks, results, strict=True):
            found.summary.add(flags)
            found.summary.reasons += reasons
            found.add(maps)
            keep(maps)
            progress(len(task))
    if not found.groups:
        raise NoUsableSpectraError(_none_usable(found))
    return found


def _none_usable(found: Importance) -> str:
    flags = ", ".join(f"{count} {name}" for name, count in found.summary.flags.items())
    first = "".join(f" {file}: {why}." for file, why in found.summary.reasons[:1])
    hint = " --keep-flagged uses those with values, too." if found.skipped else ""
    return (
        f"none of {found.summary.rows} spectra can be used; flags: {flags or 'none'}."
        f"{first}{hint}"
    )
