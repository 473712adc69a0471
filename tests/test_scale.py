"""Many machines, one table: claims, merged shards, a cluster whose workers die."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import surveyfiles
from conftest import SMALL, program

from stellarcli import catalog, claims
from stellarcli.claims import claimed, lock_of
from stellarcli.errors import OutputBusyError


@pytest.fixture
def many(stars, here):
    """Nine inputs, one of them bad, which make five parts where these are small."""
    Path("bad.fits").write_bytes(b"")
    for n in range(3):
        surveyfiles.lamost_image(f"more-{n}.fits", OBSID=2000 + n, Z=n * 1e-4)
    return [*stars, "bad.fits", *(f"more-{n}.fits" for n in range(3))]


@pytest.fixture
def whole(stellar, many, model, small_parts):
    """Rows of the table that one process writes."""
    assert stellar("predict", *many, "-o", "whole.fits", "-m", model).status == 3
    return catalog.read("whole.fits")


def same(path, whole):
    """Compare data bit for bit, and what the header says of them."""
    table = catalog.read(path)
    assert table.rows.dtype == whole.rows.dtype
    assert table.rows.tobytes() == whole.rows.tobytes()
    for card in ("DATASUM", "PLAN", "MODELSHA", "TCOMM1", "TDISP3", "FLAGB0"):
        assert table.header[card] == whole.header[card], card


# --------------------------------------------------------------------------- claims


@pytest.mark.parametrize("command", ["predict", "preprocess"])
def test_a_second_process_is_refused(stellar, stars, model, monkeypatch, command):
    monkeypatch.setattr(claims, "PATIENCE", 0)
    option = {"predict": "-m", "preprocess": "-r"}[command]
    words = [command, *stars, "-o", "o.fits", option, model]
    with claimed("o.fits"):
        done = stellar(*words)
        assert done.status == 2
        for word in ("o.fits is being written by", str(os.getpid()), "another output"):
            assert word in done.err
        assert not Path("o.fits").exists()
        other = [word.replace("o.fits", "p.fits") for word in words]
        assert stellar(*other).status == 0, "another output is free"
    assert stellar(*words).status == 0
    assert not lock_of(Path("o.fits")).exists()


def test_a_second_process_does_not_touch_the_parts_of_the_first(
    process, stellar, stars, model, monkeypatch
):
    """Other inputs, the same output: its parts are not unfinished, but under way."""
    monkeypatch.setattr(claims, "PATIENCE", 0)
    before = (
        f"{SMALL}\nstore = prediction.Parts.store\n"
        "def halt(self, number, *rest):\n"
        "    pairs = store(self, number, *rest)\n"
        "    print('stored', flush=True)\n"
        "    sys.stdin.readline()\n"
        "    return pairs\n"
        "prediction.Parts.store = halt"
    )
    words, environment = program(
        "predict", *stars, "-o", "o.fits", "-m", model, "-j1", "-q", before=before
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(words, env=environment, **pipes) as first:
        assert first.stdout.readline() == "stored\n"
        for extra in ([], ["--overwrite"], ["--resume"]):
            done = stellar("predict", stars[0], "-o", "o.fits", "-m", model, *extra)
            assert (done.status, "being written" in done.err) == (2, True), extra
        first.stdin.close()
        assert first.wait() == 0
    assert catalog.read("o.fits").rows["file"].tolist() == stars


def test_what_a_killed_process_claimed_is_free(here):
    code = (
        "import os, signal\nfrom stellarcli.claims import claimed\n"
        "with claimed('o.fits'): os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = program()[1]
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    assert lock_of(Path("o.fits")).exists()
    with claimed("o.fits"):
        pass
    assert os.listdir() == []


def test_shards_share_a_claim(here, monkeypatch):
    monkeypatch.setattr(claims, "PATIENCE", 0)
    with claimed("o.fits", shared=True):
        with claimed("o.fits", shared=True), pytest.raises(OutputBusyError):
            claimed("o.fits").__enter__()
        assert lock_of(Path("o.fits")).exists(), "one is still at work"
    assert os.listdir() == []


def test_a_file_system_without_locks_keeps_nobody_out(here, monkeypatch):
    def no_locks(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(claims.fcntl, "flock", no_locks)
    with claimed("o.fits"), claimed("o.fits"):
        pass
    assert os.listdir() == []


# -------------------------------------------------------------------------- merging


def shards(stellar, many, model, count):
    for number in range(1, count + 1):
        Path(f"node{number}").mkdir()
        shard = f"--shard={number}/{count}"
        output = f"node{number}/o.fits"
        assert stellar("predict", *many, "-o", output, "-m", model, shard).status < 4
    return [f"node{number}/o.fits" for number in range(1, count + 1)]


@pytest.mark.parametrize("count", [2, 7])
def test_shards_of_several_places_merge(stellar, many, model, whole, count):
    outputs = shards(stellar, many, model, count)
    done = stellar("predict", "--merge", *reversed(outputs), "-o", "merged.fits")
    assert done.status == 3, done.err
    assert "bad.fits: the file is empty" in done.err
    same("merged.fits", whole)
    folders = [str(path) for path in Path().glob("node*/.*.parts")]
    assert stellar("predict", "--merge", *folders, "-o", "!merged.fits").status == 3
    same("merged.fits", whole)


def test_merging_says_what_is_missing(stellar, many, model, whole):
    outputs = shards(stellar, many, model, 3)
    done = stellar("predict", "--merge", *outputs[1:], "-o", "merged.fits")
    assert done.status == 1
    assert "parts 1 of 5 are missing" in done.err
    assert not Path("merged.fits").exists()
    (folder,) = Path("node2").glob(".*.parts")
    (folder / "plan.json").write_text("[1]")
    done = stellar("predict", "--merge", outputs[1], "-o", "merged.fits")
    assert done.status == 1
    assert "plan.json is missing or damaged" in done.err
    stellar("predict", *many[:4], "-o", "node1/o.fits", "-m", model, "--shard=1/2")
    done = stellar("predict", "--merge", *outputs, "-o", "merged.fits")
    assert done.status == 2
    assert "of 2 different runs" in done.err


def test_whole_catalogues_merge(stellar, many, model, whole):
    for name, some in {"a.fits": many[:4], "b.fits": many[4:]}.items():
        stellar("predict", *some, "-o", name, "-m", model)
    done = stellar("predict", "--merge", "a.fits", "b.fits", "-o", "merged.fits")
    assert done.status == 3
    table = catalog.read("merged.fits")
    assert table.rows.tobytes() == whole.rows.tobytes()
    assert table.header["MODELSHA"] == whole.header["MODELSHA"]
    assert table.units == whole.units


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing.fits"], "neither a table 'nothing.fits' nor are there parts"),
        (["whole.fits", "other.fits"], "has the columns a, flag"),
        (["."], "is no directory of parts"),
        (["whole.fits", "--shard", "1/2"], "leave --dask, --resume and --shard out"),
        (["whole.fits", "node1/o.fits"], "'whole.fits' is a whole table"),
    ],
)
def test_what_does_not_merge(stellar, many, model, whole, words, message):
    shards(stellar, many, model, 1)
    Path("node1/o.fits").unlink()
    stellar("predict", *many, "-o", "node1/o.fits", "-m", model, "--shard=1/2")
    surveyfiles.table("other.fits", {"a": np.arange(2), "flag": np.zeros(2, "i4")})
    done = stellar("predict", "--merge", *words, "-o", "merged.fits")
    assert done.status == 2
    assert message in done.err


# ------------------------------------------------------------------------- a cluster

# what workers run before they begin: small parts; and one that is killed at its second
# task, and has a task of its own at work at the time. The others wait until it is dead,
# or on a slow machine they may be done before it has begun
PRELOAD = f"""
import os, signal, time
from stellarcli import prediction, preparation
{SMALL}
def dying(*arguments, work=prediction.work, done=[]):
    done.append(1)
    if os.environ.get("DIES") and len(done) == 2:
        open("died", "x").close()
        os.kill(os.getpid(), signal.SIGKILL)
    deadline = time.monotonic() + 60
    while not (os.environ.get("DIES") or os.path.exists("died")):
        assert time.monotonic() < deadline, "the other never died"
        time.sleep(0.05)
    return work(*arguments)
if prediction.work.__name__ == "work":  # Dask runs this file twice
    prediction.work = dying
"""


@pytest.fixture
def cluster(here):
    """A scheduler's file, and a function that starts a worker."""
    pytest.importorskip("distributed", reason="needs 'pip install stellarcli[dask]'")
    Path("preload.py").write_text(PRELOAD)
    environment = program()[1] | {
        "DASK_DISTRIBUTED__LOGGING__DISTRIBUTED": "error",
        # one task each: enough are left for the one that dies, should it come last
        "DASK_DISTRIBUTED__SCHEDULER__WORKER_SATURATION": "1.0",
    }
    running = []

    def start(*words, **extra):
        code = f"from distributed.cli.dask_{words[0]} import main; main()"
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        command = [sys.executable, "-c", code, *words[1:]]
        running.append(subprocess.Popen(command, env=environment | extra, **quiet))
        return running[-1]

    def worker(**extra):
        words = ["--scheduler-file", "s.json", "--preload", "preload.py", "--no-nanny"]
        words += ["--nthreads", "1", "--no-dashboard", "--local-directory", "scratch"]
        return start("worker", *words, **extra)

    start(
        *("scheduler", "--scheduler-file", "s.json", "--no-dashboard", "--port", "0"),
        *("--host", "127.0.0.1"),
    )
    deadline = time.monotonic() + 60
    while not Path("s.json").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    yield worker
    for one in running:
        one.kill()
        one.wait()


def test_a_cluster_with_a_dying_worker_writes_the_same(
    process, many, model, whole, cluster
):
    *others, first = [cluster(), cluster(), cluster(DIES="1")]
    words = ["predict", *many, "-o", "o.fits", "-m", model, "--dask", "s.json"]
    done = process(*words, before=SMALL)
    assert done.status == 3, done.err
    assert "Traceback" not in done.err
    same("o.fits", whole)
    assert first.wait(60) == -signal.SIGKILL
    assert all(other.poll() is None for other in others)
    # a worker that can't see the files is an error, and not a table of failures
    again = ["predict", "hidden.fits", "-o", "p.fits", "-m", model, "--dask", "s.json"]
    surveyfiles.lamost_image("hidden.fits")
    unseen = (
        f"{SMALL}\nfrom stellarcli import cluster\n"
        "cluster._jobs = lambda tasks, run, jobs=cluster._jobs: "
        "(cluster.replace(job, folder='/elsewhere') for job in jobs(tasks, run))"
    )
    done = process(*again, before=unseen)
    assert done.status == 1
    assert "doesn't see 'hidden.fits'" in done.err
    assert not Path("p.fits").exists()


# ----------------------------------------------------------------------- job scripts

README = Path(__file__).parent.parent / "README.md"
SCRIPTS = {
    word: text
    for text in re.findall(r"```sh\n(#!/bin/bash\n.*?)```", README.read_text(), re.S)
    for word in ("--requeue", "--merge", "--dask", "torchrun")
    if word in text
}


@pytest.fixture
def slurm(here):
    """Run a script of README's as Slurm would, one task of it; what it printed."""
    python = f'exec "{sys.executable}"'
    commands = {
        "srun": 'exec "$@"',
        "stellar": f'{python} -m stellarcli "$@" -j 1 -q',
        "dask": f'{python} -c "from dask.__main__ import main; main()" "$@"',
        "scontrol": "echo node1; echo node2",
        "torchrun": 'echo "$@"',
    }
    Path("bin").mkdir()
    for name, line in commands.items():
        path = Path("bin", name)
        path.write_text(f"#!/bin/bash\n{line}\n")
        path.chmod(0o755)

    def run(text, **environment):
        Path("job.sh").write_text(text)
        path = f"{Path('bin').resolve()}{os.pathsep}{os.environ['PATH']}"
        everything = program()[1] | {"PATH": path} | environment
        done = subprocess.run(
            ["bash", "job.sh"], env=everything, capture_output=True, timeout=300
        )
        return done

    return run


def array_task(number, count):
    names = {"ID": number, "MIN": 1, "MAX": count, "COUNT": count, "STEP": 1}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in names.items()}


@pytest.mark.slow
def test_job_scripts_of_an_array(slurm, stars):
    """Tasks in any order, one of them twice; with and without a common disk."""
    Path("night.txt").write_text("\n".join(stars))
    for number in (2, 1, 2):
        done = slurm(SCRIPTS["--requeue"], **array_task(number, 2))
        assert (done.returncode, b"Traceback" in done.stderr) == (0, False)
    assert catalog.read("params.fits").rows["file"].tolist() == stars
    Path("parts").mkdir()
    for number in (1, 2):
        Path(f"disk{number}").mkdir()
        slurm(
            SCRIPTS["--merge"],
            **array_task(number, 2),
            TMPDIR=f"{os.getcwd()}/disk{number}",
        )
    # five spectra are one part: the task that made it has the whole table
    same("disk2/part-2.fits", catalog.read("params.fits"))
    assert [path.name[:12] for path in Path("parts").iterdir()] == [".part-1.fits"]


def test_job_script_of_a_training(slurm):
    done = slurm(SCRIPTS["torchrun"], SLURM_JOB_NODELIST="node[1-2]", SLURM_NNODES="2")
    words = done.stdout.decode().split()
    assert "--nnodes=2" in words
    assert "--rdzv-endpoint=node1:29500" in words
    assert words[words.index("-m") + 1] == "stellarcli"


@pytest.mark.slow
def test_job_script_of_a_cluster(slurm, stars):
    pytest.importorskip("distributed", reason="needs 'pip install stellarcli[dask]'")
    Path("night.txt").write_text("\n".join(stars))
    done = slurm(SCRIPTS["--dask"].replace("--nworkers 16", "--nworkers 2"))
    assert done.returncode == 0, done.stderr
    assert catalog.read("params.fits").rows["file"].tolist() == stars


def test_no_scheduler_is_one_sentence(stellar, stars, model, monkeypatch):
    pytest.importorskip("distributed", reason="needs 'pip install stellarcli[dask]'")
    from stellarcli import cluster

    monkeypatch.setattr(cluster, "CONNECTING", 0.3)
    done = stellar(
        *("predict", *stars, "-o", "o.fits", "-m", model),
        *("--dask", "tcp://127.0.0.1:9"),
    )
    assert done.status == 2
    assert "no Dask scheduler answers at 'tcp://127.0.0.1:9'" in done.err


def test_without_dask_the_option_says_what_to_install(
    stellar, stars, model, monkeypatch
):
    monkeypatch.setitem(sys.modules, "distributed", None)
    done = stellar("predict", *stars, "-o", "o.fits", "-m", model, "--dask", "s.json")
    assert done.status == 2
    assert "pip install 'stellarcli[dask]'" in done.err
