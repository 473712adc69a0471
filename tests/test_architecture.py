"""The import rule, a light start, and a library that neither prints nor exits."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "stellarcli"

# A module imports only from lines above its own; names on one line do not import each
# other. A folder is one name: files within it may import each other.
ORDER = """
errors provenance
plainyaml spectrum labels sptype devices claims processes resuming published selection
catalog metrics novelty parallel losses augmentation feeding
familiarity
coverage
preprocess settings parts
surveys
prepared velocity streams imaging
inputs
preparation
tabulation
dataset
models
checkpoint folding
calibration figures archives runs
curves fitting headstart
training prediction simulation architectures
sweep planning cluster merging explanation
comparison crossfit
cli
__main__
"""
LINE = {
    name: number
    for number, line in enumerate(ORDER.strip().splitlines())
    for name in line.split()
}

FILES = sorted(PACKAGE.rglob("*.py"))
LIBRARY = [
    path
    for path in FILES
    if path.relative_to(PACKAGE).parts[0] not in ("cli", "__main__.py")
]
HEAVY = ("torch", "astropy", "matplotlib", "scipy")


def name(path):
    return str(path.relative_to(PACKAGE))


def unit(path):
    """Name under which `ORDER` lists a file: its folder, or itself."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(path):
    """All modules of a file's import statements, in full: ``stellarcli.errors``."""
    package = ("stellarcli", *path.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join((*start, *([node.module] if node.module else ())))
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def units_imported(path):
    """Names of `ORDER`, or of files that it lacks, that a file imports."""
    for module in imported(path):
        first, _, rest = module.partition(".")
        part = rest.partition(".")[0]
        if first == "stellarcli" and part in LINE:
            yield part


@pytest.mark.parametrize("path", FILES, ids=name)
def test_imports_only_from_lines_above(path):
    own = unit(path)
    if own == "__init__":
        assert not list(units_imported(path)), "the version imports nothing"
        return
    assert own in LINE, f"add {own} to ORDER, and to the import rule in the design"
    for other in set(units_imported(path)) - {own}:
        assert LINE[other] < LINE[own], f"{own} may not import {other}"


def calls(path):
    """Called names of a file, dotted: ``print``, ``sys.exit``."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node.lineno


@pytest.mark.parametrize("path", LIBRARY, ids=name)
def test_the_library_neither_prints_nor_exits(path):
    forbidden = {"print", "exit", "quit", "input", "sys.exit", "os._exit"}
    found = [f"line {line}: {call}" for call, line in calls(path) if call in forbidden]
    assert not found
    assert not {m.partition(".")[0] for m in imported(path)} & {"typer", "click"}
    raised = [
        n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Raise)
    ]
    assert not [
        n.lineno for n in raised if n.exc and "SystemExit" in ast.unparse(n.exc)
    ]


def modules_after(code):
    """Modules that Python has loaded after running some code."""
    code += "\nimport sys\nprint(*sys.modules, file=sys.__stdout__)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return {module.partition(".")[0] for module in done.stdout.split()}


def test_importing_the_command_is_light():
    loaded = modules_after("import stellarcli.__main__, stellarcli.cli")
    assert "typer" in loaded
    assert not loaded & set(HEAVY)


@pytest.mark.parametrize("arguments", [["--help"], ["predict", "--help"]])
def test_help_is_light(arguments):
    loaded = modules_after(
        "import contextlib, io, sys\n"
        f"sys.argv = ['stellar', *{arguments}]\n"
        "from stellarcli.__main__ import main\n"
        "with contextlib.redirect_stdout(io.StringIO()) as text:\n"
        "    try: main()\n"
        "    except SystemExit: pass\n"
        "assert 'Usage' in text.getvalue()\n"
    )
    assert not loaded & set(HEAVY)


def test_completion_is_light_and_answers():
    loaded = modules_after(
        "import contextlib, io, os, sys\n"
        "os.environ.update(_STELLAR_COMPLETE='complete_bash', COMP_CWORD='1',"
        " COMP_WORDS='stellar pred')\n"
        "sys.argv = ['stellar']\n"
        "from stellarcli.__main__ import main\n"
        "with contextlib.redirect_stdout(io.StringIO()) as text:\n"
        "    try: main()\n"
        "    except SystemExit: pass\n"
        "assert text.getvalue().split() == ['predict']\n"
    )
    assert not loaded & set(HEAVY)
