"""Kills at random instants: every run resumes to the result of an undisturbed one.

    python tests/benchmarks/kills.py [--kills 52] [--seed 1]

Predict, preprocess, train and fetch take turns. Each is run undisturbed first; then it
is killed (SIGKILL, every fourth time SIGTERM) at an instant drawn evenly from its
duration, up to three times in a row, with ``--resume`` where the command has it, and
run to its end. In between nothing may be under the output's name, unless it is whole;
at the end it has to be the same, bit for bit, and nothing else may be left. Processes
are forks of this one, so that kills fall into the work and not into imports.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
import surveyfiles
from archiveserver import Archive

from stellarcli import catalog, checkpoint, prediction, preparation, training
from stellarcli.prepared import PreparedTable

SPECTRA = 400
EXPECTED = (0, 3)  # exit statuses of a finished run
RECIPE = """
- bridge
- rest_frame
- resample: {grids: [{kind: log10, start: 4910.0, step: 1.0e-4, pixels: 384}]}
- continuum: {method: smooth, width: 100.0}
"""


@dataclass
class Case:
    """A command, and what its result is compared by."""

    words: list[str]
    output: str
    result: Callable[[Path], object]
    resume: bool = True


def start(words: list[str], log: Path) -> int:
    """Fork a process that runs ``stellar``; its number."""
    number = os.fork()
    if number:
        return number
    try:
        target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(target, 1)
        os.dup2(target, 2)
        sys.argv = ["stellar", *words]
        from stellarcli.__main__ import main

        main()
        os._exit(0)
    except SystemExit as end:
        os._exit(end.code if isinstance(end.code, int) else int(end.code is not None))
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(99)


def finish(number: int) -> int:
    """Wait for a process; its exit status, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])


def killed(number: int, after: float, how: int) -> int:
    """Kill a process after some seconds, if it still runs; its exit status."""
    deadline = time.monotonic() + after
    while time.monotonic() < deadline:
        done, status = os.waitpid(number, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(number, how)
    return finish(number)


def rows(path: Path) -> object:
    """Data of a catalogue."""
    return hashlib.sha256(catalog.read(path).rows.tobytes()).hexdigest()


def spectra(path: Path) -> object:
    """Data of a prepared table."""
    table = PreparedTable(path)
    batch = table.batch(slice(None))
    arrays = (table.rows(), batch.flux, batch.ivar)
    return hashlib.sha256(b"".join(a.tobytes() for a in arrays)).hexdigest()


def weights(path: Path) -> object:
    """Tensors of a model."""
    state = checkpoint.load(str(path)).state
    return {k: hashlib.sha256(v.tobytes()).hexdigest() for k, v in state.items()}


def contents(path: Path) -> object:
    """Files of a directory, but for the journal."""
    return {
        one.name: hashlib.sha256(one.read_bytes()).hexdigest()
        for one in path.iterdir()
        if one.name != ".stellar-fetch.jsonl"
    }


def cases(url: str) -> dict[str, Case]:
    """Make inputs in the working directory, and list the commands."""
    Path("in").mkdir()
    random_flux = np.random.default_rng(0)
    truth = {"objid": [], "teff": []}
    for n in range(SPECTRA):
        flux, ivar = surveyfiles.star(surveyfiles.grid(), 30.0, seed=n)
        name = f"in/{n:04d}.fits" + (".gz" if n % 2 else "")
        surveyfiles.lamost_image(name, flux=flux, ivar=ivar, OBSID=n + 1)
        truth["objid"].append(str(n + 1))
        truth["teff"].append(float(random_flux.uniform(4000, 7000)))
    for n in range(0, SPECTRA, 10):  # a tenth of them broken
        path = Path(f"in/{n:04d}.fits")
        path.write_bytes(path.read_bytes()[: 100 * n % 5000])
    Path("recipe.yaml").write_text(RECIPE)
    table = np.zeros(SPECTRA, dtype=[("objid", "S8"), ("teff", "f4")])
    table["objid"], table["teff"] = truth["objid"], truth["teff"]
    catalog.write("truth.fits", table)
    Path("list.csv").write_text("obsid\n" + "\n".join(str(5000 + n) for n in range(80)))
    prepare = ["preprocess", "in", "-r", "recipe.yaml", "--labels", "truth.fits"]
    finish(start([*prepare, "-o", "train.fits", "-q", "-j1"], Path("log")))
    train = ["train", "train.fits", "-q", "-m", "resnet1d", "--target", "teff"]
    for option in ("stem=16", "widths=[8,16]", "blocks=[1,1]", "hidden=16"):
        train += ["--set", f"network.{option}"]
    fit = [*train, "--epochs", "12", "-o", "m.safetensors"]
    model = [*train, "--epochs", "1", "-o", "model.safetensors"]
    assert finish(start(model, Path("log"))) == 0, Path("log").read_text()
    predict = ["predict", "in", "-m", "model.safetensors", "-q", "-j2"]
    fetch = ["fetch", "lamost", "--from", "list.csv", "--url", url, "--dr", "10", "-q"]
    return {
        "predict": Case([*predict, "-o", "o.fits"], "o.fits", rows),
        "preprocess": Case(
            [*prepare, "-q", "-j2", "-o", "p.fits"], "p.fits", spectra, resume=False
        ),
        "train": Case(fit, "m.safetensors", weights),
        "fetch": Case(
            [*fetch, "--version", "v2.0", "--connections", "2", "-o", "raw"],
            "raw",
            contents,
        ),
    }


def left(output: str) -> list[str]:
    """Hidden files of a finished run, which should not be there."""
    return [path.name for path in Path().glob(f".{output}*")]


def clear(output: str) -> None:
    """Remove the output and what belongs to it."""
    for path in [
        *Path().glob(f"{output.split('.')[0]}.*"),
        *Path().glob(f".{output}*"),
    ]:
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()
    shutil.rmtree(output, ignore_errors=True)


def attempt(name: str, case: Case, expected: object, seconds: float) -> str:
    """Kill a run some times and let it end; what became of it."""
    extra = ["--resume"] if case.resume else []
    story = []
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        how = random.choice((signal.SIGKILL,) * 3 + (signal.SIGTERM,))
        after = random.uniform(0, seconds)
        status = killed(start([*case.words, *extra], Path("log")), after, how)
        story.append(f"{signal.Signals(how).name} after {after:.2f} s: {status}")
        output = Path(case.output)
        if output.exists() and output.is_file():
            assert case.result(output) == expected, f"{name}: half an output; {story}"
            if not case.resume:
                output.unlink()
    status = finish(start([*case.words, *extra], Path("log")))
    assert status in EXPECTED, f"{name}: status {status}; {story}"
    assert case.result(Path(case.output)) == expected, f"{name} differs; {story}"
    assert not left(case.output), f"{name} leaves {left(case.output)}; {story}"
    return "; ".join(story)


def main() -> None:
    """Print every kill and, at the end, the count."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=52)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    random.seed(options.seed)
    # many small parts and chunks: kills between and within them
    prediction.PART, preparation.CHUNK = 1, 16
    assert training  # imported here, so that forks need not
    few = {}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for n in range(80):
            flux, ivar = surveyfiles.star(surveyfiles.grid(), 30.0, seed=300 + n)
            path = Path(f"spec-59000-PLAN_sp01-{n:03d}.fits.gz")
            cards = {"OBSID": 5000 + n, "FILENAME": path.name.removesuffix(".gz")}
            surveyfiles.lamost_image(path, flux=flux, ivar=ivar, **cards)
            few[5000 + n] = (path.name, path.read_bytes())
            path.unlink()
        server = os.fork()
        if not server:  # a process of its own: forks of one with threads may hang
            with Archive(few) as archive:
                Path("url.part").write_text(archive.url)
                os.rename("url.part", "url")
                signal.pause()
        while not Path("url").exists():
            time.sleep(0.02)
        try:
            run(cases(Path("url").read_text()), options.kills)
        finally:
            os.kill(server, signal.SIGKILL)
            os.chdir("/")


def run(commands: dict[str, Case], kills: int) -> None:
    """Kill each command in turn until there were so many kills."""
    expected, seconds = {}, {}
    for name, case in commands.items():
        begin = time.monotonic()
        status = finish(start(case.words, Path("log")))
        seconds[name] = time.monotonic() - begin
        assert status in EXPECTED, (name, status, Path("log").read_text()[-3000:])
        expected[name] = case.result(Path(case.output))
        print(f"{name}: {seconds[name]:.2f} s undisturbed", flush=True)
        clear(case.output)
    count, runs = 0, 0
    while count < kills:
        for name, case in commands.items():
            story = attempt(name, case, expected[name], seconds[name])
            count += len(story.split(";"))
            runs += 1
            print(f"{name}: {story}; same result", flush=True)
            clear(case.output)
    print(f"{count} kills in {runs} runs, all with the same result")


if __name__ == "__main__":
    main()
