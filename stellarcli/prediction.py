"""From spectra to a catalogue: batches through a model, flags, parts, shards, resume.

The inputs are cut into tasks of fixed size, some tasks make a part, parts are files in
a hidden directory beside the output. An interrupted run keeps its finished parts; a shard
is a run that makes only its share of them, and whichever shard finishes the last part
merges all. Tasks are cut the same way in every case, hence the table is the same bit
for bit.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from stellarcli import __version__, catalog, checkpoint, inputs, novelty, preparation
from stellarcli.catalog import BAD, FAILED, Flag
from stellarcli.checkpoint import Model
from stellarcli.errors import OutputExistsError, UsageError, unknown
from stellarcli.inputs import Task
from stellarcli.parallel import available_cores, ordered_map
from stellarcli.preparation import CHUNK, Chunk

PART = 16  # tasks per part: what an interrupted run loses at most
DISAGREEMENT = 1.5  # spread of an ensemble's values over their predicted error
PRECISIONS = ("auto", "float32", "bfloat16")


@dataclass
class Summary:
    """What a run has to say at its end.

    Attributes
    ----------
    rows, failed, untrusted : int
        All rows, those without values, those with a bit of `catalog.BAD`.
    flags : dict of int
        Rows per flag name.
    reasons : list of (str, str)
        File and what was wrong with it, in the order of rows.
    seconds : dict of float
        Time per stage, summed over workers; ``total`` is that of the clock.
    complete : bool
        False for a shard that leaves parts to others: no table yet.
    """

    rows: int = 0
    failed: int = 0
    untrusted: int = 0
    flags: dict[str, int] = field(default_factory=dict)
    reasons: list[tuple[str, str]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    complete: bool = True

    def add(self, flags: np.ndarray) -> None:
        """Count the flags of some rows."""
        self.rows += len(flags)
        self.failed += int((flags & FAILED != 0).sum())
        self.untrusted += int((flags & BAD != 0).sum())
        for flag in Flag:
            if count := int((flags & flag != 0).sum()):
                self.flags[flag.name] = self.flags.get(flag.name, 0) + count

    def to_json(self) -> dict:
        """Plain values for ``--json``."""
        return asdict(self)


def parse_shard(text: str | None) -> tuple[int, int]:
    """Read ``I/N``, or ``auto`` for the task of a Slurm array.

    Raises
    ------
    UsageError
        If it is neither, or I isn't in 1 … N.
    """
    if text is None:
        return (1, 1)
    if text == "auto":
        return _slurm_shard()
    number, slash, count = text.partition("/")
    if not (slash and number.isdigit() and count.isdigit()):
        raise UsageError(f"--shard is I/N, such as 1/8, or auto; not {text!r}.")
    if not 1 <= int(number) <= int(count):
        raise UsageError(
            f"--shard {text}: shards are counted from 1/{count} to {count}/{count}."
        )
    return int(number), int(count)


def _slurm_shard() -> tuple[int, int]:
    names = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_COUNT")
    try:
        task, first, count = (int(os.environ[name]) for name in names)
        step = int(os.environ.get("SLURM_ARRAY_TASK_STEP", 1))
    except (KeyError, ValueError):
        raise UsageError(
            "--shard auto needs a Slurm array job (sbatch --array=1-8); elsewhere give "
            "--shard I/N."
        ) from None
    return (task - first) // step + 1, count


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
    """

    def __init__(self, model: Model, device: str = "cpu", precision: str = "auto"):
        self.model = model
        self.columns = catalog.columns(model.labels)
        self.device = torch.device(device)
        self.unlike = model.part("novelty")
        safe = bool(model.limits.get("bfloat16_safe"))
        reduced = precision == "bfloat16" or (
            precision == "auto" and safe and has_bfloat16(self.device)
        )
        self.networks = [network.to(self.device) for network in model.networks()]
        if reduced:
            for network in self.networks:
                network.trunk.to(torch.bfloat16)

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
        mean, variance, spread = self.predict(chunk.batch.flux, chunk.batch.ivar)
        flags = chunk.rows["flag"].astype(np.int32)
        failed = flags & FAILED != 0
        judged = flags | self._flags(chunk, mean, variance, spread)
        values = {
            name: chunk.rows[name]
            for name in ("objid", "file", "ra", "dec", "snr")
            if name in chunk.rows.dtype.names
        }
        for i, label in enumerate(self.model.labels):
            error = self._error(variance, i)
            value = label.decode(mean[:, i])
            values[label.name] = np.where(failed, np.nan, value)
            values[f"{label.name}_err"] = np.where(
                failed, np.nan, label.decode_error(mean[:, i], error)
            )
        values["flag"] = np.where(failed, flags, judged)
        return catalog.rows(self.columns, values)

    @torch.inference_mode()
    def predict(
        self, flux: np.ndarray, ivar: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Run all networks on at most `CHUNK` spectra, padded to exactly that many.

        Parameters
        ----------
        flux, ivar : ndarray of float32, shape (spectrum, pixel)

        Returns
        -------
        mean, variance, spread : ndarray, shape (spectrum, label)
            In model units: of the mixture, and variance of the members' means.
        """
        count = len(flux)
        padding = ((0, CHUNK - count), (0, 0))
        tensors = [
            torch.from_numpy(np.pad(array, padding)).to(self.device)
            for array in (flux, ivar)
        ]
        outputs = [network(*tensors) for network in self.networks]
        means = torch.stack([mean.float() for mean, _ in outputs])[:, :count]
        variances = torch.stack([v.float().exp() for _, v in outputs])[:, :count]
        mean = means.mean(0)
        spread = (means - mean).square().mean(0)
        return (
            mean.cpu().numpy(),
            (variances.mean(0) + spread).cpu().numpy(),
            spread.cpu().numpy(),
        )

    def _error(self, variance: np.ndarray, label: int) -> np.ndarray:
        scale = self.model.error_scale[label] if self.model.error_scale else 1.0
        return np.sqrt(variance[:, label]) * scale

    def _flags(
        self,
        chunk: Chunk,
        mean: np.ndarray,
        variance: np.ndarray,
        spread: np.ndarray,
    ) -> np.ndarray:
        outside = np.zeros(len(mean), dtype=bool)
        large = np.zeros(len(mean), dtype=bool)
        for i, label in enumerate(self.model.labels):
            value = label.decode(mean[:, i])
            low, high = label.trained
            outside |= ~((value >= low) & (value <= high))
            large |= ~(
                self._error(variance, i) < self.model.limits.get("large_error", np.inf)
            )
        conditions = {Flag.OUT_OF_RANGE: outside, Flag.LARGE_ERROR: large}
        if self.unlike:
            scores = novelty.score(chunk.batch.flux, chunk.batch.ivar, self.unlike)
            conditions[Flag.UNLIKE_TRAINING] = ~(scores <= 1).all(axis=1)
        if len(self.networks) > 1:
            own = np.maximum(variance - spread, 1e-12)
            conditions[Flag.DISAGREEMENT] = (np.sqrt(spread / own) > DISAGREEMENT).any(
                axis=1
            )
        flags = np.zeros(len(mean), dtype=np.int32)
        for flag, condition in conditions.items():
            flags[condition] |= flag
        return flags


def has_bfloat16(device: torch.device) -> bool:
    """Say whether bfloat16 is fast on a device."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "amx_bf16" in flags or "avx512_bf16" in flags


def choose_device(name: str) -> str:
    """Resolve ``auto``, and check that a device exists.

    Raises
    ------
    UsageError
        If there is no such device.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return name
    if name.split(":")[0] != "cuda":
        raise unknown("device", name, ("auto", "cpu", "cuda", "cuda:N"))
    number = name.partition(":")[2] or "0"
    count = torch.cuda.device_count()
    if not number.isdigit() or int(number) >= count:
        raise UsageError(
            f"device {name!r} isn't there: this machine shows {count} CUDA devices. "
            "Use --device cpu."
        )
    return name


# ------------------------------------------------------------------------------ runs


@dataclass(frozen=True)
class Run:
    """What to predict, and how.

    Attributes
    ----------
    model : str
        Shipped name or file.
    device, precision : str
        See `Predictor`.
    exposures : bool
        Rows for single exposures where files hold them.
    workers : int
    shard : (int, int)
        Number of this shard, from 1, and how many there are.
    resume : bool
        Keep the finished parts of an interrupted run.
    """

    model: str = checkpoint.DEFAULT
    device: str = "cpu"
    precision: str = "auto"
    exposures: bool = False
    workers: int = field(default_factory=available_cores)
    shard: tuple[int, int] = (1, 1)
    resume: bool = False


def predict(
    paths: Sequence[str],
    output: str,
    run: Run,
    *,
    overwrite: bool = False,
    cards: Sequence[tuple] = (),
    progress: Callable[[int], None] = lambda count: None,
) -> Summary:
    """Write the catalogue of some inputs.

    Parameters
    ----------
    paths : sequence of str
        Of `inputs.expand`.
    output : str
        ``-`` for standard output.
    run : Run
    overwrite : bool
    cards : sequence of (name, value, comment)
        Provenance for the header.
    progress : callable
        Told how many spectra were finished since the last call.

    Returns
    -------
    Summary

    Raises
    ------
    UsageError
        If the output exists, the model doesn't, or a table doesn't fit the model.
    StellarError
        If a worker dies or the disk is full.
    """
    begin = time.perf_counter()
    model = _predictor(run.model, run.device, run.precision).model
    tasks = list(inputs.tasks(paths, CHUNK))
    digest = _plan(model, tasks, run)
    try:
        target = catalog.check_output(output, overwrite)
    except OutputExistsError:
        if not run.resume:
            raise
        return _finished(output, digest)
    parts = Parts(target, digest, -(-len(tasks) // PART))
    mine = parts.share(*run.shard)
    parts.open(keep=run.resume or run.shard[1] > 1)
    summary = Summary()
    try:
        todo = [n for n in mine if not (run.resume and parts.is_done(n))]
        _make(parts, todo, tasks, run, _duplicates(paths), summary, progress)
        for number in mine:
            summary.reasons += parts.reasons(number)
        if parts.all_done():
            header = [*cards, *_header(model, digest)]
            arrays = [parts.path(number) for number in range(parts.count)]
            for array in arrays:
                summary.add(np.load(array, mmap_mode="r")["flag"])
            columns = catalog.columns(model.labels)
            catalog.write_parts(output, arrays, columns, header, overwrite)
            parts.remove()
        else:
            summary.complete = False
            for number in mine:
                summary.add(np.load(parts.path(number), mmap_mode="r")["flag"])
    finally:
        if target == "-":
            parts.remove()
    summary.seconds["total"] = time.perf_counter() - begin
    return summary


@lru_cache(maxsize=1)
def _predictor(model: str, device: str, precision: str) -> Predictor:
    """Load a model once per process; forked workers inherit it."""
    torch.set_num_threads(1)  # processes are the parallelism, and keep bits the same
    return Predictor(checkpoint.load(model), device, precision)


Result = tuple[np.ndarray, list, dict]


def _work(task: Task, run: Run) -> Result:
    """Prepare and predict one task, in a worker."""
    predictor = _predictor(run.model, run.device, run.precision)
    chunk = preparation.run(task, predictor.model.recipe, exposures=run.exposures)
    return _infer(predictor, chunk)


def _infer(predictor: Predictor, chunk: Chunk) -> Result:
    begin = time.perf_counter()
    # single exposures can make a chunk longer than its task
    rows = np.concatenate([predictor(piece) for piece in chunk.pieces(CHUNK)])
    seconds = {**chunk.seconds, "network": time.perf_counter() - begin}
    return rows, chunk.reasons, seconds


def _results(tasks: Sequence[Task], run: Run) -> Iterator[Result]:
    if run.device == "cpu":
        yield from ordered_map(partial(_work, run=run), tasks, run.workers)
        return
    # workers read and prepare; this process feeds the device
    predictor = _predictor(run.model, run.device, run.precision)
    prepare = partial(
        preparation.run, recipe=predictor.model.recipe, exposures=run.exposures
    )
    for chunk in ordered_map(prepare, tasks, run.workers):
        yield _infer(predictor, chunk)


def _make(
    parts: Parts,
    numbers: Sequence[int],
    tasks: Sequence[Task],
    run: Run,
    duplicates: set[bytes],
    summary: Summary,
    progress: Callable[[int], None],
) -> None:
    """Work through some parts and store each when it is whole."""
    cut = {n: tasks[n * PART : (n + 1) * PART] for n in numbers}
    results = _results([task for n in numbers for task in cut[n]], run)
    for number in numbers:
        rows, reasons, before = [], [], 0
        for piece, why, seconds in islice(results, len(cut[number])):
            if duplicates:
                why = why + _mark(piece, duplicates)
            reasons += [(before + row, text) for row, text in sorted(why)]
            before += len(piece)
            rows.append(piece)
            for stage, value in seconds.items():
                summary.seconds[stage] = summary.seconds.get(stage, 0.0) + value
            progress(len(piece))
        parts.store(number, np.concatenate(rows), reasons)


def _duplicates(paths: Sequence[str]) -> set[bytes]:
    """Names, as in the catalogue, of files that were given more than once."""
    count = Counter(map(os.path.normpath, paths))
    if len(count) == len(paths):
        return set()
    return {
        catalog.encode_name(path).encode()
        for path in paths
        if count[os.path.normpath(path)] > 1
    }


def _mark(rows: np.ndarray, duplicates: set[bytes]) -> list[tuple[int, str]]:
    here = [n for n, name in enumerate(rows["file"].tolist()) if name in duplicates]
    rows["flag"][here] |= Flag.DUPLICATE
    return [(row, "this file was given more than once") for row in here]


def _plan(model: Model, tasks: Sequence[Task], run: Run) -> str:
    """Digest of everything that decides about the table's values."""
    digest = hashlib.sha256()
    options = (__version__, model.sha256, run.precision, run.device, run.exposures)
    digest.update(repr(options).encode())
    for task in tasks:
        digest.update(repr(task).encode())
    return digest.hexdigest()[:16]


def _header(model: Model, digest: str) -> list[tuple]:
    return [
        ("MODEL", model.name, "model that made the values"),
        ("MODELSHA", model.sha256, "sha256 of the model file"),
        ("RECIPE", model.recipe.to_json(), "preprocessing"),
        ("PLAN", digest, "digest of inputs, model and options"),
        ("BADFLAGS", int(BAD), "rows with one of these bits are not to be trusted"),
    ]


def _finished(output: str, digest: str) -> Summary:
    """Summary of a finished table that --resume was asked to go on with."""
    table = catalog.read(output)
    if table.header.get("PLAN") != digest:
        raise OutputExistsError(
            f"{output} is finished, but not by these inputs, model and options. Give "
            "--overwrite to replace it, or another name."
        )
    summary = Summary()
    summary.add(table.rows["flag"])
    return summary


class Parts:
    """Finished parts of a table, in a hidden directory beside it.

    Parameters
    ----------
    output : str
        ``-``: a temporary directory takes the parts.
    digest : str
        Of the plan; parts of another plan are never mixed in.
    count : int
    """

    def __init__(self, output: str, digest: str, count: int):
        self.count = count
        self.output = output
        if output == "-":
            self.directory = Path(tempfile.gettempdir())
            self.directory /= f".stellar-{os.getpid()}-{digest}.parts"
        else:
            target = Path(output)
            self.directory = target.with_name(f".{target.name}-{digest}.parts")

    def share(self, number: int, of: int) -> range:
        """Return the parts of one shard: a contiguous range, as even as possible."""
        return range(
            (number - 1) * self.count // of,
            number * self.count // of,
        )

    def open(self, keep: bool) -> None:
        """Make the directory; without `keep`, drop what earlier runs left."""
        if self.output != "-" and not keep:
            target = Path(self.output)
            for old in target.parent.glob(f".{glob.escape(target.name)}-*.parts"):
                shutil.rmtree(old, ignore_errors=True)
        self.directory.mkdir(exist_ok=True)

    def path(self, number: int) -> Path:
        """Return the file of a part's rows."""
        return self.directory / f"{number:06d}.npy"

    def is_done(self, number: int) -> bool:
        """Say whether a part is there."""
        return self.path(number).exists()

    def all_done(self) -> bool:
        """Say whether all parts of all shards are there."""
        return all(map(self.is_done, range(self.count)))

    def store(self, number: int, rows: np.ndarray, reasons: list) -> None:
        """Write a part; its rows' file appears last and whole."""
        names = [catalog.decode_name(rows["file"][row].decode()) for row, _ in reasons]
        texts = [text for _, text in reasons]
        pairs = list(zip(names, texts, strict=True))
        path = self.path(number)
        with catalog.explained(self.output, str(path)):
            path.with_suffix(".json").write_text(json.dumps(pairs))
            partial_path = path.with_suffix(f".{os.getpid()}.tmp")
            with partial_path.open("wb") as file:
                np.save(file, rows, allow_pickle=False)
            partial_path.replace(path)

    def reasons(self, number: int) -> list[tuple[str, str]]:
        """Return file and reason of a part's rows that have one."""
        text = self.path(number).with_suffix(".json").read_text()
        return [tuple(pair) for pair in json.loads(text)]

    def remove(self) -> None:
        """Drop the parts: the table is written."""
        shutil.rmtree(self.directory, ignore_errors=True)
