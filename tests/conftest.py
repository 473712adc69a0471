"""What several test files share: tiny spectra, a tiny model, the program itself."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
import surveyfiles
from archiveserver import TOKEN, Archive
from hypothesis import settings

# a busy machine makes no test wrong
settings.register_profile("stellar", deadline=None)
settings.load_profile("stellar")

ROOT = Path(__file__).parent.parent
# the grid of surveyfiles.grid(), a little less on both sides
RECIPE = [
    "bridge",
    "rest_frame",
    {
        "resample": {
            "grids": [{"kind": "log10", "start": 4910.0, "step": 1e-4, "pixels": 384}]
        }
    },
    {"continuum": {"method": "smooth", "width": 100.0}},
    "clip",
]


SECRETS = [text.encode() for text in (TOKEN, quote(TOKEN), quote(TOKEN, safe=""))]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Let a test fail whose captured output or log holds the token."""
    report = yield
    shown = "".join(text for _, text in report.sections) + str(report.longrepr or "")
    if any(secret.decode() in shown for secret in SECRETS):
        report.outcome, report.longrepr = "failed", "the token is in the output"
    return report


def assert_no_token(*shown):
    """Fail if text, bytes or words of a command line hold the token."""
    for part in shown:
        parts = part if isinstance(part, list | tuple) else [part]
        for word in parts:
            content = word if isinstance(word, bytes) else str(word).encode()
            assert not any(secret in content for secret in SECRETS), "a token is shown"


class WatchedProcess(subprocess.Popen):
    """A process whose command line and output are searched for the token."""

    def __init__(self, args, *others, **options):
        assert_no_token(args)
        super().__init__(args, *others, **options)

    def communicate(self, *others, **options):
        shown = super().communicate(*others, **options)
        assert_no_token(*shown)
        return shown


@pytest.fixture(autouse=True)
def own_signals():
    """A run that was interrupted in this process ignores signals ever after.

    So would the programs that later tests start.
    """
    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def no_token_in_processes(monkeypatch):
    """Look for the token in every process that a test starts."""
    monkeypatch.setattr(subprocess, "Popen", WatchedProcess)


@pytest.fixture(autouse=True)
def no_token_in_files(request):
    """Look for the token in every file that a test has written."""
    yield
    if folder := request.node.funcargs.get("tmp_path"):
        for path in folder.rglob("*"):
            if path.is_file() and path.stat().st_size < 1 << 22:
                content = path.read_bytes()
                assert not any(secret in content for secret in SECRETS), path


@pytest.fixture(scope="session")
def few_spectra(tmp_path_factory):
    """Twenty spectra as archives have them: (file name, gzipped content) by OBSID."""
    folder = tmp_path_factory.mktemp("archive")
    found = {}
    for n in range(20):
        flux, ivar = surveyfiles.star(surveyfiles.grid(), 30.0, seed=300 + n)
        path = folder / f"spec-59000-PLAN_sp01-{n:03d}.fits.gz"
        cards = {"OBSID": 5000 + n, "FILENAME": path.name.removesuffix(".gz")}
        surveyfiles.lamost_image(path, flux=flux, ivar=ivar, **cards)
        found[5000 + n] = (path.name, path.read_bytes())
    return found


@pytest.fixture
def archive(few_spectra, monkeypatch):
    """An archive in a thread, and the environment that leads to it."""
    with Archive(few_spectra) as server:
        monkeypatch.setenv("STELLAR_LAMOST_URL", server.url)
        monkeypatch.setenv("STELLAR_SDSS_URL", f"{server.url}/sas")
        monkeypatch.setenv("STELLAR_SKYSERVER_URL", server.url)
        monkeypatch.delenv("STELLAR_LAMOST_TOKEN", raising=False)
        yield server
        for _, _, headers in server.requests:
            assert_no_token(list(headers.values()))  # nor in a Referer


@dataclass
class Done:
    """What a finished command left: exit status, standard output and error."""

    status: int
    out: bytes
    err: str

    def __post_init__(self):
        assert_no_token(self.out, self.err)

    @property
    def json(self):
        return json.loads(self.out)


def model_of(folder, **changes):
    """Write a small model file, untrained but with everything a model has."""
    import torch

    from stellarcli import checkpoint, labels, models, novelty, preparation
    from stellarcli.inputs import Task
    from stellarcli.preprocess import Recipe

    recipe = Recipe.from_steps("tiny", RECIPE)
    stars = [
        str(surveyfiles.lamost_image(folder / f"star{n}.fits", flux=flux, ivar=ivar))
        for n in range(80)
        for flux, ivar in [surveyfiles.star(surveyfiles.grid(), 30.0, seed=n)]
    ]
    batch = preparation.run(Task(paths=tuple(stars)), recipe).batch
    unlike = novelty.fit(batch.flux[:40], batch.ivar[:40])
    novelty.calibrate(
        unlike, 1.5 * novelty.score(batch.flux[40:], batch.ivar[40:], unlike)
    )
    config = {"widths": [4, 8], "blocks": [1, 1], "stem": 16, "hidden": 8}
    torch.manual_seed(1)
    network = models.build("resnet1d", pixels=384, labels=3, **config)
    state = {f"member0.{k}": v.numpy() for k, v in network.state_dict().items()}
    state |= {f"novelty.{k}": v for k, v in unlike.items()}
    ranges = {"teff": (4000, 7000), "logg": (1, 5), "feh": (-2, 0.5)}
    fields = {
        "name": "tiny",
        "architecture": "resnet1d",
        "config": config,
        "pixels": 384,
        "labels": [labels.get(n).fitted(np.linspace(*r, 9)) for n, r in ranges.items()],
        "recipe": recipe,
        "wavelength": recipe.wavelength,
        "error_scale": [1.0, 1.0, 1.0],
        "limits": {"large_error": 50.0},
        "state": state,
    }
    model = checkpoint.Model(**(fields | changes))
    checkpoint.save(model, folder / "tiny.safetensors")
    return folder / "tiny.safetensors"


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """Path of a small model file."""
    return str(model_of(tmp_path_factory.mktemp("model")))


@pytest.fixture
def changed_model(tmp_path, model):
    """Write a variant of the small model: fields of `checkpoint.Model` by name."""
    from dataclasses import replace

    from stellarcli import checkpoint

    def write(name="changed", **changes):
        path = tmp_path / f"{name}.safetensors"
        checkpoint.save(replace(checkpoint.load(model), **changes), path)
        return str(path)

    return write


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Work in an empty directory, at a fixed date."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    return tmp_path


@pytest.fixture
def stars(here):
    """Five readable spectra of different stars in the working directory."""
    names = [f"star-{n}.fits" for n in range(5)]
    for n, name in enumerate(names):
        flux, ivar = surveyfiles.star(surveyfiles.grid(), 30.0, 90.0 + n, seed=100 + n)
        surveyfiles.lamost_image(name, flux=flux, ivar=ivar, OBSID=1000 + n)
    return names


@pytest.fixture
def stellar(monkeypatch):
    """Run ``stellar`` in this process, one worker unless told otherwise."""
    from typer.testing import CliRunner

    from stellarcli.cli import app

    def run(*arguments, stdin=None):
        words = [str(a) for a in arguments]
        if (
            words[0] in ("explain", "predict", "preprocess")
            and "--workers" not in words
        ):
            words += ["--workers", "1"]
        monkeypatch.setattr(sys, "argv", ["stellar", *words])
        result = CliRunner().invoke(app, words, input=stdin, prog_name="stellar")
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Done(result.exit_code, result.stdout_bytes, result.stderr)

    return run


# for `program`: parts of two spectra, so that few files make many parts
SMALL = "prediction.PART = 1; preparation.CHUNK = 2"


@pytest.fixture
def small_parts(monkeypatch):
    """`SMALL` in this process."""
    from stellarcli import prediction, preparation

    monkeypatch.setattr(prediction, "PART", 1)
    monkeypatch.setattr(preparation, "CHUNK", 2)


def program(*arguments, before=""):
    """Command line and options of `subprocess` for the program itself.

    `before` is Python code that changes it, such as ``prediction.PART = 1``.
    """
    code = (
        "import sys\nfrom stellarcli import prediction, preparation\n"
        f"{before}\nsys.argv[0] = 'stellar'\n"
        "from stellarcli.__main__ import main\nmain()"
    )
    start = ["-c", code] if before else ["-m", "stellarcli"]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return [sys.executable, *start, *map(str, arguments)], environment


@pytest.fixture
def process():
    """Run ``stellar`` in a process of its own."""

    def run(*arguments, before="", **options):
        words, environment = program(*arguments, before=before)
        done = subprocess.run(
            words, env=environment, capture_output=True, timeout=300, **options
        )
        return Done(done.returncode, done.stdout, done.stderr.decode())

    return run


@pytest.fixture
def small_disk(tmp_path):
    """A directory on a disk of 400 kB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k", "none", folder],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("only root can mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)
