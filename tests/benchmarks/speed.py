"""Spectra per second: each stage, the whole, and what others and the disk would do.

    python tests/benchmarks/speed.py FOLDER [--counts 1000,30000] [--kinds .gz]

FOLDER holds raw LAMOST spectra (``*.fits``), and perhaps the same gzipped; otherwise
that is done, at level 6. Hard links to them make as many inputs as wanted in a
temporary folder beside it. Per count and
kind (raw .fits, .fits.gz, a prepared table of the .gz files), side by side in one run:

bytes     one process per core only reads the bytes
bare      one process per core reads, inflates, and runs the network, fit and all, on
          arrays that are there already: nothing else. Processes have everything loaded
started   the same from the start of these processes, PyTorch's import included
stellar   `stellar predict` from its start to its end, imports and catalogue included
naive     file by file as the published codes do it: astropy, scipy's spline, a
          polynomial continuum fitted six times, one eager float32 pass with a batch of
          one, in one process with as many threads as PyTorch likes; on a sample

and the microseconds per spectrum that each stage takes on one core, and the most memory
that a process of the run held. Rates are by the clock; shares of bare are also given of
processor time, which a machine with other work spoils less.
"""

from __future__ import annotations

import argparse
import gzip
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from stellarcli import (
    checkpoint,
    inputs,
    novelty,
    parallel,
    prediction,
    preparation,
    surveys,
)
from stellarcli.inputs import Task
from stellarcli.preprocess import Batch
from stellarcli.surveys import inflating

SAMPLE = 60  # files that the naive way is tried on
CHUNK = preparation.CHUNK
STAGES = ("read", "parse", "stack", "recipe", "network", "novelty", "rows")


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--counts", default="1000,3000,10000,30000")
    parser.add_argument("--kinds", default=".fits,.gz,table")
    parser.add_argument("--model", default=checkpoint.DEFAULT)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    cores = parallel.available_cores()
    parallel.keep_freed_memory()
    model = checkpoint.load(options.model)
    print(f"{cores} cores, model {model.name} ({model.sha256[:8]}), torch", end=" ")
    print(torch.__version__, "libdeflate", inflating.gzip_decompress is not None)
    with tempfile.TemporaryDirectory(dir=options.folder.parent) as name:
        work = Path(name)
        plain = sorted(options.folder.glob("*.fits"))
        zipped = sorted(options.folder.glob("*.fits.gz"))
        zipped = zipped or [packed(path, work) for path in plain]
        stages(model, zipped)
        single, core = naive(model, zipped[:SAMPLE], cores)
        print(f"naive: {single:.1f}/s, {core:.1f}/s of a core's time")
        head = ("inputs", "kind", "bytes", "bare", "started", "stellar", "of bare")
        more = ("by CPU", "of started", "of naive", "GB")
        print("".join(f"{word:>11}" for word in (*head, *more)))
        kinds = options.kinds.split(",")
        for count in map(int, options.counts.split(",")):
            linked = {}
            for kind, paths in ((".fits", plain), (".gz", zipped)):
                linked[kind] = links(paths, count, work / f"{kind[1:]}{count}")
                if kind in kinds:
                    row(kind, linked[kind], options.model, cores, single)
            if "table" in kinds:
                table = work / f"{count}.table.fits"
                recipe = str(checkpoint.find(options.model))
                source = linked[".gz"][0].parent
                stellar("preprocess", source, "-r", recipe, "-o", table)
                row("table", [table], options.model, cores, single)
                table.unlink()


def packed(path: Path, work: Path) -> Path:
    """Gzip a file as the archive does."""
    target = work / f"{path.name}.gz"
    target.write_bytes(gzip.compress(path.read_bytes(), 6))
    return target


def links(paths: Sequence[Path], count: int, folder: Path) -> list[Path]:
    """So many names of the same files."""
    folder.mkdir()
    found = []
    for n in range(count):
        source = paths[n % len(paths)]
        found.append(folder / f"{n:06d}{''.join(source.suffixes[-2:])[-8:]}")
        try:
            os.link(source, found[-1])
        except OSError:  # another disk, or too many names
            found[-1].write_bytes(source.read_bytes())
    return found


def row(kind: str, paths: list[Path], model: str, cores: int, single: float) -> None:
    """Measure one kind of input and print its line."""
    if kind == "table":
        count = sum(map(len, inputs.tasks(map(str, paths), CHUNK)))
        alone, pure, core, started = [float("nan")] * 4
        source = paths[0]
    else:
        count, source = len(paths), paths[0].parent
        alone, _ = rate(read_only, paths, cores)
        pure, core = rate(partial(bare, model=model), paths, cores)
        started, _ = rate(partial(bare, model=model), paths, cores, "spawn")
    output = source.parent / "o.fits"
    begin, spent = time.perf_counter(), children()
    memory = stellar("predict", source, "-o", output, "-m", model)
    whole = count / (time.perf_counter() - begin)
    own = count / (children() - spent)
    output.unlink()
    print(
        f"{count:11d}{kind:>11}{alone:11.0f}{pure:11.0f}{started:11.0f}{whole:11.0f}"
        f"{whole / pure:11.2f}{own / core:11.2f}{whole / started:11.2f}"
        f"{whole / single:11.1f}{memory:11.2f}",
        flush=True,
    )


def children() -> float:
    """Processor time of all processes that have ended, s."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def stellar(*words: object) -> float:
    """Run the program; the most memory of one of its processes, GB."""
    code = (
        "import resource, sys; sys.argv[0] = 'stellar'\n"
        "from stellarcli.cli import app\n"
        "try: app(prog_name='stellar')\n"
        "except SystemExit: pass\n"
        "kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)\n"
        "print('memory', max(resource.getrusage(k).ru_maxrss for k in kinds))"
    )
    command = [sys.executable, "-c", code, *map(str, words), "-q"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(r"memory (\d+)", done.stdout)
    if not found:
        sys.exit(f"{words}: {done.stderr}")
    return int(found[1]) / (1 << 20)


def rate(
    work: Callable, paths: list[Path], cores: int, method: str = "fork"
) -> tuple[float, float]:
    """Files per second, and per second of a core, of processes that only `work`."""
    context = get_context(method)
    processes = [
        context.Process(target=pinned, args=(work, paths[core::cores], core))
        for core in range(cores)
    ]
    begin, spent = time.perf_counter(), children()
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    seconds, used = time.perf_counter() - begin, children() - spent
    return len(paths) / seconds, len(paths) / used


def pinned(work: Callable, paths: list[Path], core: int) -> None:
    """Work on one core."""
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[core]})
    torch.set_num_threads(1)
    parallel.keep_freed_memory()
    work(paths)


def read_only(paths: list[Path]) -> None:
    """Read bytes."""
    for path in paths:
        with open(path, "rb", buffering=0) as file:
            file.readall()


def bare(paths: list[Path], model: str) -> None:
    """Read and inflate, and run the bare network on made-up arrays."""
    predictor = prediction.Predictor(checkpoint.load(model))
    feed = made_up(predictor)
    for start in range(0, len(paths), CHUNK):
        for path in paths[start : start + CHUNK]:
            surveys.hdus.read_bytes(path)
        predictor.predict(**feed)


def made_up(predictor: prediction.Predictor) -> dict[str, np.ndarray]:
    """Arrays of a chunk, such as the network takes."""
    shape = (CHUNK, predictor.model.pixels)
    flux = np.random.default_rng(0).normal(1, 0.05, shape).astype(np.float32)
    return {"flux": flux, "ivar": np.full(shape, 400, dtype=np.float32)}


# --------------------------------------------------------------------------- stages


def stages(model: checkpoint.Model, paths: list[Path]) -> None:
    """Print the time of each stage on one core, per spectrum."""
    predictor = prediction.Predictor(model)
    paths = [str(path) for path in paths[: len(paths) // CHUNK * CHUNK][: 8 * CHUNK]]
    seconds = dict.fromkeys(STAGES, 0.0)

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        begin = time.process_time()
        yield
        seconds[name] += time.process_time() - begin

    for warm in (True, False):
        for start in range(0, CHUNK if warm else len(paths), CHUNK):
            some = paths[start : start + CHUNK]
            with stage("read"):
                contents = [surveys.hdus.read_bytes(path) for path in some]
            with stage("parse"):
                found = [
                    surveys.library.with_fallback(
                        content,
                        lambda hdus, path=path: surveys.lamost.read_lrs(hdus, path),
                    )
                    for content, path in zip(contents, some, strict=True)
                ]
            with stage("stack"):
                batch = Batch.from_spectra(found)
            with stage("recipe"):
                batch = model.recipe.apply(batch)
            with stage("network"):
                predictor.predict(batch.flux, batch.ivar)
            with stage("novelty"):
                novelty.score(batch.flux, batch.ivar, model.part("novelty"))
        if warm:
            seconds = dict.fromkeys(STAGES, 0.0)
    chunk = preparation.run(Task(tuple(paths[:CHUNK])), model.recipe)
    begin = time.process_time()
    predictor(chunk)
    whole = time.process_time() - begin
    each = {name: 1e6 * value / len(paths) for name, value in seconds.items()}
    each["rows"] = 1e6 * whole / CHUNK - each["network"] - each["novelty"]
    text = ", ".join(f"{name} {value:.0f}" for name, value in each.items())
    total = sum(each.values())
    print(f"µs per spectrum on one core: {text}; in all {total:.0f}")


# ---------------------------------------------------------------------------- naive


def naive(
    model: checkpoint.Model, paths: list[Path], cores: int
) -> tuple[float, float]:
    """Spectra per second, and per second of a core's time, of the plain way."""
    network = model.networks()[0]
    grid = model.wavelength
    torch.set_num_threads(cores)
    with torch.no_grad():
        one_by_one(network, grid, paths[:3])
        begin, spent = time.perf_counter(), time.process_time()
        one_by_one(network, grid, paths)
    seconds, used = time.perf_counter() - begin, time.process_time() - spent
    torch.set_num_threads(1)
    return len(paths) / seconds, len(paths) / used


def one_by_one(network: torch.nn.Module, grid: np.ndarray, paths: list[Path]) -> None:
    """Astropy, a spline, six fits of a polynomial, a batch of one."""
    from astropy.io import fits
    from scipy.interpolate import CubicSpline

    for path in paths:
        with fits.open(path) as file:
            redshift = file[0].header["Z"]
            data = file[1].data[0]
            wavelength = np.array(data["WAVELENGTH"], dtype=float) / (1 + redshift)
            flux = np.array(data["FLUX"], dtype=float)
            ivar = np.array(data["IVAR"], dtype=float)
        flux = CubicSpline(wavelength, flux)(grid)
        ivar = np.interp(grid, wavelength, ivar)
        x = np.linspace(-1, 1, grid.size)
        keep = np.ones(grid.size, dtype=bool)
        for _ in range(6):
            fit = np.polynomial.chebyshev.chebfit(x[keep], flux[keep], 9)
            continuum = np.polynomial.chebyshev.chebval(x, fit)
            off = flux - continuum
            keep = (off > -off.std()) & (off < 4 * off.std())
        arrays = (flux / continuum, ivar * continuum**2)
        network(*(torch.from_numpy(a[None].astype(np.float32)) for a in arrays))


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    main()
