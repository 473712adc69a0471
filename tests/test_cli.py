"""The commands as a user meets them: help, messages, logs, summaries."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import surveyfiles
from conftest import program
from typer.main import get_command
from typer.testing import CliRunner

from stellarcli import __version__, catalog, models
from stellarcli.cli import app
from stellarcli.cli.reporting import command_line, printable


def commands(command=None, path=()):
    """All commands of the tree, with the words that call them."""
    command = command or get_command(app)
    yield path, command
    for name, below in getattr(command, "commands", {}).items():
        yield from commands(below, (*path, name))


@pytest.mark.parametrize("path", [path for path, _ in commands()], ids=" ".join)
def test_every_command_has_help_with_examples(stellar, path):
    done = stellar(*path, "--help") if path else stellar("--help")
    assert done.status == 0
    assert b"Usage: stellar" in done.out
    if path and not done.out.count(b"COMMAND"):
        assert b"stellar " in done.out.split(b"Examples", 1)[1]
    assert max(map(len, done.out.decode().splitlines())) <= 100


def test_the_help_of_train_names_every_network(stellar):
    words = set(re.findall(r"\w+", stellar("train", "--help").out.decode()))
    assert set(models.MODELS) <= words


def test_version(stellar):
    assert stellar("--version").out.decode().strip() == f"stellar {__version__}"


def test_without_a_command_help_is_shown(stellar):
    done = stellar("predict", "--nonsense")
    assert done.status == 2
    assert "--nonsense" in done.err


@pytest.mark.parametrize("command", ["predict", "preprocess"])
def test_missing_arguments(stellar, here, command):
    for arguments in ([], ["a.fits"]):
        done = stellar(command, *arguments)
        assert done.status == 2
        assert "is missing: " in done.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("predct x", "unknown command 'predct'. Did you mean 'predict'? Valid: "),
        ("fetch simulatd", "unknown command 'simulatd'. Did you mean 'simulated'?"),
        ("--versoin", "unknown option '--versoin'. Did you mean '--version'?"),
        (
            "predict a -o x --modle q",
            "unknown option '--modle'. Did you mean '--model'",
        ),
        ("predict a -o x -z", "unknown option '-z'. Valid: --output, -o, --model, -m"),
        ("predict", "PATHS... is missing: files, directories, "),
        ("predict a", "--output FILE is missing: output file; - is standard output"),
        (
            "train t -o m --epochs 1e3",
            "--epochs N must be a whole number, not '1e3': p",
        ),
        ("compare --radius near", "--radius ARCSEC must be a number, not 'near': how"),
        ("fetch simulated -o d -n 0", "--number N must be at least 1, not '0': "),
        ("fold a b -o c", "'b' is too much: 'stellar fold' takes PREPARED."),
        ("compare a -o", "option '-o' requires an argument. See 'stellar compare -"),
        ("predict a -o b --quiet=1", "option '--quiet' does not take a value."),
    ],
)
def test_mistakes_in_the_command_line_are_one_sentence(stellar, here, words, said):
    done = stellar(*words.split())
    assert (done.status, done.out) == (2, b"")
    assert done.err.startswith(f"stellar: {said}")
    assert done.err.count("\n") == 1
    assert re.search(r" See 'stellar[a-z ]* --help'\.$", done.err)


@pytest.mark.parametrize("words", [[], ["fetch"]])
def test_a_command_without_words_shows_its_help(words):
    done = CliRunner().invoke(app, words, prog_name="stellar")
    assert done.exit_code == 2
    assert "Usage: stellar" in done.output
    assert "Commands:" in done.output


@pytest.mark.slow
def test_predicting_a_file_loads_no_more_than_it_needs(stars, model):
    words, environment = program("predict", stars[0], "-o", "!o.fits", "-m", model)
    words[1:1] = ["-X", "importtime"]
    done = subprocess.run(
        words, env=environment, capture_output=True, text=True, check=True
    )
    loaded = set(re.findall(r"\| +(\w+)$", done.stderr, re.MULTILINE))
    assert {"numpy", "torch"} <= loaded
    assert not {"astropy", "scipy", "matplotlib", "requests"} & loaded


def test_summary_as_json(stellar, stars, model):
    Path("bad.fits").write_bytes(b"")
    words = ["predict", *stars, "bad.fits", "-o", "o.fits", "-m", model, "--json"]
    done = stellar(*words)
    assert done.status == 3
    summary = done.json
    assert (summary["rows"], summary["failed"]) == (6, 1)
    assert summary["flags"] == {"UNREADABLE": 1}
    assert summary["reasons"] == [["bad.fits", "the file is empty"]]
    assert {"read", "prepare", "network", "total"} <= set(summary["seconds"])


def test_quiet_says_nothing_but_logs(stellar, stars, model):
    Path("bad.fits").write_bytes(b"")
    words = ["-o", "o.fits", "-m", model, "--quiet", "--log", "o.log"]
    done = stellar("predict", *stars, "bad.fits", *words)
    assert (done.status, done.err, done.out) == (3, "", b"")
    assert "bad.fits: the file is empty" in Path("o.log").read_text()


def test_errors_reach_the_log_too(stellar, here):
    done = stellar("predict", "a.fits", "-o", "o.txt", "--log", "o.log")
    assert done.status == 2
    assert done.err.count("o.txt") == 1, "said once"
    assert "ERROR the format of 'o.txt'" in Path("o.log").read_text()


def test_verbose_tells_where_the_time_goes(stellar, stars, model):
    done = stellar("predict", *stars, "-o", "o.fits", "-m", model, "--verbose")
    assert "network" in done.err
    assert "by the clock" in done.err


def test_many_reasons_are_summed_up(stellar, here, model):
    surveyfiles.lamost_image("good.fits")
    for n in range(30):
        Path(f"bad-{n:02d}.fits").write_bytes(b"")
    done = stellar("predict", ".", "-o", "o.fits", "-m", model)
    assert "./bad-00.fits (and 29 more): the file is empty" in done.err
    assert "--log FILE lists all" in done.err
    assert len(done.err.splitlines()) < 10


def test_the_header_keeps_only_what_matters(monkeypatch):
    words = ["predict", "a", "-o", "b", "--shard", "1/3", "--shard=2/3", "-j", "3"]
    words += ["-j4", "--workers=2", "--resume", "-q", "--log", "x", "--model", "m"]
    monkeypatch.setattr(sys, "argv", ["/bin/stellar", *words])
    assert command_line() == ["/bin/stellar", *words[:4], "--model", "m"]


def test_names_that_no_terminal_can_show():
    assert printable(os.fsdecode(b"a\xffb\nc")) == "a?b\\nc"


def test_the_documented_sentence(stars, model):
    """``preprocess -o - | predict - -o -``, with real pipes."""
    first, environment = program("preprocess", *stars, "-r", model, "-o", "-", "-q")
    second, _ = program("predict", "-", "-o", "-", "-m", model, "-q")
    with subprocess.Popen(first, env=environment, stdout=subprocess.PIPE) as source:
        done = subprocess.run(
            second,
            env=environment,
            stdin=source.stdout,
            capture_output=True,
            check=True,
        )
    assert source.returncode == 0
    assert done.stderr == b""
    Path("o.fits").write_bytes(done.stdout)
    rows = catalog.read("o.fits").rows
    assert rows["file"].tolist() == stars
    assert np.isfinite(rows["teff"]).all()


def test_environment_variables_are_defaults(stellar, stars, model, monkeypatch):
    monkeypatch.setenv("STELLAR_MODEL", model)
    monkeypatch.setenv("STELLAR_QUIET", "1")
    done = stellar("predict", *stars, "-o", "o.fits")
    assert (done.status, done.err) == (0, "")
    assert catalog.read("o.fits").header["MODEL"] == "tiny"
