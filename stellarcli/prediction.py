"""From spectra to a catalogue: batches through a model, flags, parts, shards, resume.

The inputs are cut into tasks of fixed size, some tasks make a part, parts are files in
a hidden directory beside the output. An interrupted run keeps its finished parts; a
shard makes only its share of them, and whichever shard finishes the last part
merges all. Tasks are cut the same way in every case, hence the table is the same bit
for bit.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from functools import lru_cache, partial

import numpy as np
import torch

from stellarcli import (
    catalog,
    familiarity,
    feeding,
    imaging,
    models,
    novelty,
    preparation,
    runs,
    sptype,
)
from stellarcli.calibration import error_factors
from stellarcli.catalog import BAD, FAILED, Flag
from stellarcli.checkpoint import Model
from stellarcli.claims import claimed
from stellarcli.devices import has_bfloat16, without_denormals
from stellarcli.errors import OutputExistsError, UsageError, unknown
from stellarcli.feeding import Feed
from stellarcli.inputs import Task
from stellarcli.labels import SUBTYPE
from stellarcli.parallel import ordered_map
from stellarcli.parts import Parts
from stellarcli.preparation import Chunk
from stellarcli.preprocess import Recipe
from stellarcli.runs import Run, Summary

PART = 16  # tasks per part: what an interrupted run loses at most
# of the grid's pixels that have to be good for a verdict: one arm of two is enough
LEAST_SHARE = 0.4
DISAGREEMENT = 1.5  # spread of an ensemble's values over their predicted error
PRECISIONS = ("auto", "float32", "bfloat16")
PASSES = 10  # of every network with dropout
WRONG = 0.3  # change of labels by bfloat16 over their errors; 0.003 where it is right

Result = tuple[np.ndarray, list, dict]  # rows, reasons by row, seconds per stage
Compute = Callable[[Sequence[Task], Run], Iterator[Result]]

log = logging.getLogger(__name__)


def check_dropout(rate: float) -> float:
    """Return a rate from 0 to below 1, or raise `UsageError`."""
    if not 0 <= rate < 1:
        raise UsageError(f"--dropout must be from 0 to below 1, not {rate:g}.")
    return rate


def check_precision(name: str) -> str:
    """Return a name in `PRECISIONS`, or raise `UsageError`."""
    if name not in PRECISIONS:
        raise unknown("precision", name, PRECISIONS)
    return name


class Predictor:
    """A model ready to turn prepared chunks into catalogue rows.

    Parameters
    ----------
    model : Model
    device : str
        ``cpu`` or ``cuda[:n]``.
    precision : {'auto', 'float32', 'bfloat16'}
        Of the network's trunk. ``auto`` is bfloat16 where the processor has it and the
        model file says that its values don't suffer.
    velocity : bool
        Give the velocity that was removed, too.
    dropout : float
        Rate of dropout while predicting (Gal & Ghahramani 2016, arXiv:1506.02142);
        each network then counts as `PASSES` members of the ensemble.

    Raises
    ------
    UsageError
        If the network has no dropout layers.
    """

    def __init__(
        self,
        model: Model,
        device: str = "cpu",
        precision: str = "auto",
        velocity: bool = False,
        dropout: float = 0.0,
    ):
        self.model = model
        self.dropout = dropout
        self.columns = catalog.columns(model.labels, velocity=velocity)
        self.names = {column.name for column in self.columns}
        self.device = torch.device(device)
        self.unlike = model.part("novelty")
        self.familiar = model.part("familiar")
        self.extra = tuple(model.config.get("extra", ()))
        safe = bool(model.limits.get("bfloat16_safe"))
        reduced = precision == "bfloat16" or (
            precision == "auto" and safe and has_bfloat16(self.device)
        )
        self.networks = self._load()
        self.inputs = models.inputs(self.networks[0])
        if reduced:
            self._reduce()

    def _load(self) -> list[torch.nn.Module]:
        networks = self.model.networks()
        fused = [models.fused(network).to(self.device) for network in networks]
        if self.dropout:
            for network in fused:
                self._drop(network)
        return fused

    def _drop(self, network: torch.nn.Module) -> None:
        layers = [m for m in network.modules() if isinstance(m, torch.nn.Dropout)]
        if not layers:
            raise UsageError(
                f"model {self.model.name!r} has no dropout layers; leave --dropout out."
            )
        for layer in layers:
            layer.p = self.dropout
            layer.train()

    def _reduce(self) -> None:
        """Let the trunks compute in bfloat16, if this machine does it right.

        Libraries have been met that are fast and wrong, for some shapes on some
        processors; two batches tell.
        """
        feed = self.made_up()
        exact, variance, _ = self.predict(**feed)
        for network in self.networks:
            network.trunk.to(torch.bfloat16)
        moved = np.abs(self.predict(**feed)[0] - exact) / np.sqrt(variance)
        if not np.median(moved) < WRONG:
            log.warning("bfloat16 is computed wrongly here; float32 is used instead")
            self.networks = self._load()

    def made_up(self) -> Feed:
        """Return a batch of noise that the networks can be tried on."""
        model = self.model
        shape = feeding.IMAGE_SHAPE
        if model.recipe.images is not None:
            bands, size = model.recipe.images
            shape = (len(bands), size, size)
        return feeding.made_up(
            *(self.inputs, preparation.CHUNK, model.pixels, model.wavelength),
            len(self.extra),
            image_shape=shape,
        )

    def feed(self, chunk: Chunk) -> Feed:
        """Return what the networks are fed of a chunk."""
        return chunk.feed(self.inputs, self.extra)

    def __call__(self, chunk: Chunk) -> np.ndarray:
        """Predict the rows of a chunk.

        Parameters
        ----------
        chunk : Chunk
            At most `CHUNK` spectra, prepared with the model's recipe.

        Returns
        -------
        structured ndarray, shape (spectrum,)
            Columns of `catalog.columns`.
        """
        feed = self.feed(chunk)
        mean, variance, spread = self.predict(**feed)
        ivar, wavelength = chunk.batch.ivar, feed.get("wavelength")
        error = np.sqrt(variance) * error_factors(self.model, ivar, wavelength)
        flags = chunk.rows["flag"].astype(np.int32)
        failed = flags & FAILED != 0
        judged = flags | self._flags(chunk, feed, mean, error, variance, spread)
        values = {
            name: chunk.rows[name]
            for name in ("objid", "file", "ra", "dec", "snr", "rv", "rv_err")
            if name in chunk.rows.dtype.names and name in self.names
        }
        for i, label in enumerate(self.model.labels):
            value = label.decode(mean[:, i])
            values[label.name] = np.where(failed, np.nan, value)
            values[f"{label.name}_err"] = np.where(
                failed, np.nan, label.decode_error(mean[:, i], error[:, i])
            )
            if label.name == SUBTYPE:
                # of the digits that the table keeps: a number between two subtypes
                values["sptype"] = sptype.names(values[label.name].astype(np.float32))
        values["flag"] = np.where(failed, flags, judged)
        return catalog.rows(self.columns, values)

    @torch.inference_mode()
    def predict(
        self,
        flux: np.ndarray | None = None,
        ivar: np.ndarray | None = None,
        **others: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Run all networks on at most `CHUNK` spectra, padded to exactly that many.

        Parameters
        ----------
        flux, ivar : ndarray of float32, shape (spectrum, pixel), optional
            Networks on images need none.
        **others : ndarray
            What else the networks are fed, by its name in `feeding.INPUTS`.

        Returns
        -------
        mean, variance, spread : ndarray, shape (spectrum, label)
            In model units: of the mixture, and variance of the members' means.
        """
        feed = {"flux": flux, "ivar": ivar, **others}
        feed = {name: feed[name] for name in self.inputs}
        count = len(feed[self.inputs[0]])
        tensors = feeding.tensors(feeding.padded(feed, preparation.CHUNK), self.device)
        tensors = [tensors[name] for name in self.inputs]
        outputs = []
        with without_denormals(), torch.random.fork_rng(enabled=bool(self.dropout)):
            if self.dropout:
                torch.manual_seed(0)  # a row must not depend on the rows before
            for network in self.networks:
                for _ in range(PASSES if self.dropout else 1):
                    outputs.append(network(*tensors))
        means = torch.stack([mean.float() for mean, _ in outputs])[:, :count]
        variances = torch.stack([v.float().exp() for _, v in outputs])[:, :count]
        mean = means.mean(0)
        spread = (means - mean).square().mean(0)
        return (
            mean.cpu().numpy(),
            (variances.mean(0) + spread).cpu().numpy(),
            spread.cpu().numpy(),
        )

    def _flags(
        self,
        chunk: Chunk,
        feed: Feed,
        mean: np.ndarray,
        error: np.ndarray,
        variance: np.ndarray,
        spread: np.ndarray,
    ) -> np.ndarray:
        outside = np.zeros(len(mean), dtype=bool)
        large = np.zeros(len(mean), dtype=bool)
        for i, label in enumerate(self.model.labels):
            value = label.decode(mean[:, i])
            low, high = label.trained
            outside |= ~((value >= low) & (value <= high))
            large |= ~(error[:, i] < self.model.limits.get("large_error", np.inf))
        conditions = {Flag.OUT_OF_RANGE: outside, Flag.LARGE_ERROR: large}
        if types := self.model.limits.get("types"):
            conditions[Flag.OTHER_TYPE] = sptype.outside(chunk.rows["subclass"], *types)
        if self.unlike:
            scores = novelty.score(chunk.batch.flux, chunk.batch.ivar, self.unlike)
            # of a small part of the pixels anything looks alike
            scarce = (chunk.batch.ivar > 0).mean(axis=1) < LEAST_SHARE
            conditions[Flag.UNLIKE_TRAINING] = ~(scores <= 1).all(axis=1) | scarce
        if self.familiar:
            share = familiarity.share(feed, self.familiar)
            conditions[Flag.UNLIKE_TRAINING] = share < familiarity.ENOUGH
        if len(self.networks) > 1:
            own = np.maximum(variance - spread, 1e-12)
            conditions[Flag.DISAGREEMENT] = (np.sqrt(spread / own) > DISAGREEMENT).any(
                axis=1
            )
        flags = np.zeros(len(mean), dtype=np.int32)
        for flag, condition in conditions.items():
            flags[condition] |= flag
        return flags


# ------------------------------------------------------------------------------ runs


def predict(
    tasks: Sequence[Task],
    output: str,
    run: Run,
    *,
    overwrite: bool = False,
    cards: Sequence[tuple] = (),
    progress: Callable[[int], None] = lambda count: None,
    note: Callable[[str], None] = lambda text: None,
    compute: Compute | None = None,
) -> Summary:
    """Write the catalogue of some inputs.

    Parameters
    ----------
    tasks : sequence of Task
        Of `inputs.tasks`, at most `CHUNK` spectra each.
    output : str
        ``-`` for standard output.
    run : Run
    overwrite : bool
    cards : sequence of (name, value, comment)
        Provenance for the header.
    progress : callable
        Told how many spectra were finished since the last call.
    note : callable
        Told, in a line of text, which finished parts are dropped.
    compute : callable, optional
        What works on the tasks in place of `results`: ``compute(tasks, run)`` yields
        a `Result` for each, in order.

    Returns
    -------
    Summary

    Raises
    ------
    UsageError
        If the output, or parts of it, exist, another process is writing them, the
        model doesn't exist, a table doesn't fit it, or `resume` finds the work of
        other inputs, model or options.
    StellarError
        If a worker dies or the disk is full.
    KeyboardInterrupt
        With a note on what is kept.
    """
    continues = run.resume or run.shard is not None
    if run.shard and output == "-":
        raise UsageError("--shard needs a file that all shards can write, not -.")
    target = catalog.check_output(output, overwrite or continues)
    with claimed(target, shared=run.shard is not None):
        begin = time.perf_counter()
        replaces = overwrite or target != output
        summary = _predict(
            tasks, target, run, replaces, cards, progress, note, compute or results
        )
        summary.seconds["total"] = time.perf_counter() - begin
    return summary


def _predict(
    tasks: Sequence[Task],
    target: str,
    run: Run,
    overwrite: bool,
    cards: Sequence[tuple],
    progress: Callable[[int], None],
    note: Callable[[str], None],
    compute: Compute,
) -> Summary:
    """As `predict`, of an output that no other process is writing."""
    predictor = predictor_of(run)
    model = predictor.model
    _check_images(predictor, tasks, run, note)
    run = replace(run, rv=run.rv or model.velocities)
    runs.velocities(run.rv)
    digest = runs.digest_of(model, tasks, run)
    continues = run.resume or run.shard is not None
    if continues and (finished := runs.finished(target, digest, tasks, model)):
        return finished
    if continues and not overwrite and os.path.exists(target):
        raise OutputExistsError(
            f"{target} is there, but not of these inputs, model and options. Give "
            "--overwrite to replace it, or another name."
        )
    parts = Parts(target, digest, -(-len(tasks) // PART))
    runs.settle_with_others(parts, run, overwrite, PART * preparation.CHUNK, note)
    header = _header(model, digest)
    try:
        parts.begin([asdict(column) for column in predictor.columns], header)
        summary = _make(parts, tasks, run, progress, compute)
        with parts.merging():
            if parts.all_done():
                catalog.write_parts(
                    target,
                    parts.paths(),
                    predictor.columns,
                    [*cards, *header],
                    overwrite,
                )
                summary.count(parts.paths())
                parts.remove()
            elif merged := runs.finished(target, digest, tasks, model):
                # by another shard
                own = {"reasons": summary.reasons, "computed": summary.computed}
                summary = replace(merged, **own)
            else:
                summary.count(parts.paths(run.shard))
                summary.complete = False
    except KeyboardInterrupt as error:
        error.add_note(runs.kept(parts))
        raise
    finally:
        parts.close(keep=target != "-", shared=run.shard is not None)
    return summary


def _check_images(
    predictor: Predictor, tasks: Sequence[Task], run: Run, note: Callable[[str], None]
) -> None:
    """Open the source of images; say so where a model misses it, or has no use."""
    if "images" not in predictor.inputs:
        if run.images:
            raise UsageError(
                f"model {predictor.model.name!r} sees no images; leave --images out."
            )
    elif run.images:
        bands, size = preparation.image_options(predictor.model.recipe)
        imaging.source(run.images, bands, size)
    elif any(task.paths for task in tasks):
        note(
            f"model {predictor.model.name!r} sees images, too, and none are given "
            "(--images): values are those of the spectra alone, flagged NO_IMAGE."
        )


@lru_cache(maxsize=1)
def _predictor(
    model: str,
    device: str,
    precision: str,
    velocity: bool = False,
    dropout: float = 0.0,
) -> Predictor:
    """Build a model once per process; forked workers inherit it."""
    torch.set_num_threads(1)  # processes are the parallelism, and keep bits the same
    return Predictor(runs.model_of(model), device, precision, velocity, dropout)


def predictor_of(run: Run) -> Predictor:
    """Return the model of a run, built once per process."""
    velocity = (run.rv or runs.model_of(run.model).velocities) != "header"
    return _predictor(run.model, run.device, run.precision, velocity, run.dropout)


# chunks that were ready before the workers were forked, who so get them for nothing
_early: dict[Task, Chunk] = {}


def work(task: Task, run: Run) -> Result:
    """Prepare and predict one task, in a worker."""
    predictor = predictor_of(run)
    chunk = _prepare(task, run, predictor.model.recipe, predictor.inputs)
    return _infer(predictor, chunk)


def _prepare(task: Task, run: Run, recipe: Recipe, inputs: tuple[str, ...]) -> Chunk:
    chunk = _early.pop(task, None)
    return chunk or runs.prepare(task, run, recipe, inputs)


def _infer(predictor: Predictor, chunk: Chunk) -> Result:
    begin = time.perf_counter()
    # single exposures can make a chunk longer than its task
    pieces = chunk.pieces(preparation.CHUNK)
    rows = np.concatenate([predictor(piece) for piece in pieces])
    seconds = {**chunk.seconds, "network": time.perf_counter() - begin}
    return rows, chunk.reasons, seconds


def results(
    tasks: Sequence[Task],
    run: Run,
    ready: Callable[[], dict[Task, Chunk]] = dict,
) -> Iterator[Result]:
    """Yield the rows of each task, in order: with the processes of this machine.

    Parameters
    ----------
    tasks : sequence of Task
    run : Run
    ready : callable
        Gives the chunks of tasks that are prepared already; asked when work begins.
    """
    _early.update(ready())
    try:
        if run.device == "cpu":
            yield from ordered_map(partial(work, run=run), tasks, run.workers)
            return
        # workers read and prepare; this process feeds the device
        predictor = predictor_of(run)
        prepare = partial(
            _prepare, run=run, recipe=predictor.model.recipe, inputs=predictor.inputs
        )
        for chunk in ordered_map(prepare, tasks, run.workers):
            yield _infer(predictor, chunk)
    finally:
        _early.clear()


def _make(
    parts: Parts,
    tasks: Sequence[Task],
    run: Run,
    progress: Callable[[int], None],
    compute: Compute,
) -> Summary:
    """Work through the parts of this run and store each when it is whole."""
    summary = Summary()
    cut = {n: tasks[n * PART : (n + 1) * PART] for n in parts.share(run.shard)}
    done = {n: parts.reasons(n) for n in cut if run.resume and parts.is_done(n)}
    todo = [task for n in cut if n not in done for task in cut[n]]
    repeated = _repeated(tasks)
    with closing(compute(todo, run)) as computed:
        for number, own in cut.items():
            if number in done:
                summary.reasons += done[number]
                progress(sum(map(len, own)))
                continue
            rows, reasons, before = [], [], 0
            for task, (piece, why, seconds) in zip(own, computed, strict=False):
                why = why + _mark(piece, task, repeated)
                reasons += [(before + row, text) for row, text in sorted(why)]
                before += len(piece)
                summary.computed += len(piece)
                rows.append(piece)
                summary.add_seconds(seconds)
                progress(len(task))
            summary.reasons += parts.store(number, np.concatenate(rows), reasons)
    return summary


def _repeated(tasks: Sequence[Task]) -> set[str]:
    """Files and tables, as written, that were given more than once."""
    names = [path for task in tasks for path in task.paths]
    names += [task.table for task in tasks if task.table and task.start == 0]
    count = Counter(map(os.path.normpath, names))
    if len(count) == len(names):
        return set()
    return {name for name in names if count[os.path.normpath(name)] > 1}


def _mark(rows: np.ndarray, task: Task, repeated: set[str]) -> list[tuple[int, str]]:
    """Flag the rows of inputs that were given more than once."""
    if task.table:
        here = range(len(rows)) if task.table in repeated else []
    else:
        encoded = {catalog.encode_name(p).encode() for p in task.paths if p in repeated}
        here = [n for n, name in enumerate(rows["file"].tolist()) if name in encoded]
    rows["flag"][list(here)] |= Flag.DUPLICATE
    return [(row, "this file was given more than once") for row in here]


def _header(model: Model, digest: str) -> list[tuple]:
    return [
        ("MODEL", model.name, "model that made the values"),
        ("MODELSHA", model.sha256, "sha256 of the model file"),
        ("RECIPE", model.recipe.to_json(), "preprocessing"),
        ("PLAN", digest, "digest of inputs, model and options"),
        ("BADFLAGS", int(BAD), "rows with one of these bits are not to be trusted"),
    ]
