"""Man pages, completions, README tree and wheel say what the program does."""

import importlib.util
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Annotated

import pytest
import typer

ROOT = Path(__file__).parent.parent


def load_script():
    spec = importlib.util.spec_from_file_location(
        "render_reference", ROOT / ".ci" / "render_reference.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


reference = load_script()


# --------------------------------------------------------------- the real program


@pytest.fixture(scope="module")
def app():
    from stellarcli.cli import app

    return app


def test_man_pages_and_completions_are_those_of_the_program(app):
    outdated = reference.differences(reference.render(app))
    assert not outdated, "run .ci/render_reference.py"


def test_every_command_has_a_page_with_an_example(app):
    for page in reference.command_tree(app).walk():
        assert (ROOT / "man" / f"{page.name}.1").is_file()
        assert page.text.summary.endswith("."), page.name
        if not page.children:
            assert "stellar " in " ".join(page.text.examples), page.name


def test_every_option_says_what_it_does(app):
    for page in reference.command_tree(app).walk():
        for parameter in page.command.get_params(page.context):
            hidden = getattr(parameter, "hidden", False)
            assert hidden or parameter.help, f"{page.name} {parameter.name}"


def test_every_exit_status_is_explained():
    assert set(reference.EXIT_STATUS) == set(reference.ExitStatus)


# ------------------------------------------------------------------------- README


def paths_of_tree(text):
    """Paths in a tree drawn with ├── and └──, several per line allowed."""
    folders = {}
    for line in text.splitlines():
        found = re.match(r"^([│ ]*)[├└]── (.*)$", line)
        root = re.match(r"^([\w.-]+/)(\s|$)", line)
        if root:
            folders = {-1: root[1]}
        if not found or -1 not in folders:
            continue
        depth = len(found[1]) // 4
        for word in re.split(r" {2,}", found[2].strip()):
            if " " in word or not ("." in word or word.endswith("/")):
                break  # the comment has begun
            path = folders[depth - 1] + word
            if word.endswith("/"):
                folders[depth] = path
            yield path


def test_tree_in_readme_is_that_of_the_package():
    paths = set(paths_of_tree((ROOT / "README.md").read_text(encoding="utf-8")))
    if not paths:
        pytest.skip("README draws no tree")
    missing = [path for path in paths if not (ROOT / path).exists()]
    assert not missing
    there = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("stellarcli/*.py")}
    assert there <= paths, "modules that the tree doesn't show"


def test_tree_reader():
    tree = """
stellar/
├── a.py      first, with e.g. dots
├── data/     things
│   ├── b.py  c.py
│   └── d.txt
└── e.py
"""
    found = set(paths_of_tree(tree))
    names = {"a.py", "data/", "data/b.py", "data/c.py", "data/d.txt", "e.py"}
    assert found == {f"stellar/{name}" for name in names}


# -------------------------------------------------------------------------- wheel


@pytest.mark.slow
def test_wheel_contains_pages_completions_and_data(tmp_path):
    pytest.importorskip("hatchling", reason="pip brings it along only while it builds")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    [wheel] = tmp_path.glob("*.whl")
    names = [name.partition(".data/data/")[2] or name for name in wheel_names(wheel)]
    for page in (ROOT / "man").iterdir():
        assert f"share/man/man1/{page.name}" in names
    assert "share/bash-completion/completions/stellar" in names
    assert "share/zsh/site-functions/_stellar" in names
    assert "share/fish/vendor_completions.d/stellar.fish" in names
    for path in (ROOT / "stellarcli").rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            assert path.relative_to(ROOT).as_posix() in names
    assert not [name for name in names if name.startswith("tests")]


def wheel_names(path):
    with zipfile.ZipFile(path) as wheel:
        return wheel.namelist()


# ------------------------------------------------- the renderer, on a toy program


def toy_program():
    program = typer.Typer(rich_markup_mode="rich", add_completion=False)
    fetch = typer.Typer(help="Get spectra.")

    @program.callback()
    def toy():
        """Make catalogues."""

    @program.command()
    def predict(
        inputs: Annotated[
            list[str], typer.Argument(help="Files, or 'globs'.", metavar="PATHS...")
        ],
        batch: Annotated[
            int,
            typer.Option("--batch", "-b", help="[bold]Rows[/bold].", envvar="TOY_B"),
        ] = 512,
        secret: Annotated[bool, typer.Option(hidden=True)] = False,
    ):
        """Predict parameters.

        Between 4000-8095 Å, C:\\temp
        and so on.

        .dots at the start

        \b
        kept
          as it is

        Examples

            stellar predict raw/ -o cat.fits
            # and then
            stellar compare cat.fits 'a b.fits'

        Afterwards.
        """

    @fetch.command()
    def lamost():
        """Get LAMOST spectra.

        \b
        Examples:
          $ stellar fetch lamost
        """

    @fetch.command(hidden=True)
    def internal():
        """Do something else."""

    program.add_typer(fetch, name="fetch")
    return program


@pytest.fixture(scope="module")
def toy():
    return reference.render(toy_program())


def test_a_page_per_command_and_group(toy):
    pages = {path for path in toy if path.startswith("man/")}
    names = ("stellar", "stellar-predict", "stellar-fetch", "stellar-fetch-lamost")
    assert pages == {f"man/{name}.1" for name in names}
    assert {path for path in toy if path not in pages} == {
        "completions/stellar.bash",
        "completions/_stellar",
        "completions/stellar.fish",
    }


def test_help_is_taken_apart():
    text = reference.HelpText.parse(
        "Sum\nmary.\n\nBody.\n\n\b\na\n b\n\n"
        "Examples:\n  stellar a\n\n  stellar b\n\nEnd."
    )
    assert text.summary == "Sum mary."
    assert text.description == [("Body.", False), ("a\n b", True), ("End.", False)]
    assert text.examples == ["stellar a", "stellar b"]


@pytest.mark.skipif(not shutil.which("groff"), reason="needs groff")
def test_pages_render_without_warnings_as_they_were_meant(toy):
    shown = {}
    for path, text in toy.items():
        if path.startswith("man/"):
            done = subprocess.run(
                ["groff", "-man", "-ww", "-Tutf8", "-P-c"],
                input=text.encode(),
                capture_output=True,
                check=True,
            )
            assert done.stderr == b""
            shown[path] = re.sub(".\b", "", done.stdout.decode())
    page = shown["man/stellar-predict.1"]
    for line in (
        "       stellar-predict - Predict parameters",
        "       stellar predict [OPTIONS] PATHS...",
        "       PATHS...\n              Files, or 'globs'. [required]",
        "       Between 4000-8095 Å, C:\\temp and so on.",
        "       .dots at the start",
        "           kept\n             as it is",
        "           stellar predict raw/ -o cat.fits\n           # and then",
        "           stellar compare cat.fits 'a b.fits'",
        "              Rows. [env var: TOY_B; default: 512]",
        "       TOY_B  Default of --batch.",
        "       stellar(1), stellar-fetch(1)",
    ):
        assert f"{line}\n" in page
    assert "secret" not in page
    assert page.index("Afterwards.") < page.index("EXAMPLES")
    assert "lamost Get LAMOST spectra." in shown["man/stellar-fetch.1"]
    assert "internal" not in shown["man/stellar-fetch.1"]


def test_check_sees_changed_missing_and_left_over_files(toy, tmp_path):
    for folder in ("man", "completions"):
        (tmp_path / folder).mkdir()
    assert reference.differences(toy, tmp_path) == sorted(toy)
    reference.update(toy, tmp_path)
    assert reference.differences(toy, tmp_path) == []
    (tmp_path / "man" / "stellar.1").write_text("old")
    (tmp_path / "man" / "stellar-gone.1").write_text("old")
    wrong = ["man/stellar-gone.1", "man/stellar.1"]
    assert reference.differences(toy, tmp_path) == wrong
    reference.update(toy, tmp_path)
    assert reference.differences(toy, tmp_path) == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completions_are_valid_scripts(toy, shell, tmp_path):
    if not shutil.which(shell):
        pytest.skip(f"needs {shell}")
    name = "_stellar" if shell == "zsh" else f"stellar.{shell}"
    script = tmp_path / name
    script.write_text(toy[f"completions/{name}"])
    subprocess.run([shell, "-n", script], check=True)


def test_zsh_finds_its_header_on_the_first_line(toy):
    assert toy["completions/_stellar"].startswith("#compdef stellar\n")
