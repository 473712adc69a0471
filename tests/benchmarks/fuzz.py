"""Coverage-guided fuzzing of everything that reads files (atheris, libFuzzer).

    pip install atheris
    python tests/benchmarks/fuzz.py TARGET CORPUS -max_total_time=300

TARGET is one of `hostile.TARGETS`; CORPUS is a directory, which gets the good files to
begin from if it is empty. A crash, an error that isn't one of the program's, five
seconds without an answer or 2 GB of memory end the run, with the input in a file.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["stellarcli"]):
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import hostile

    from stellarcli import (  # noqa: F401
        catalog,
        checkpoint,
        inputs,
        preparation,
        prepared,
        preprocess,
        settings,
        surveys,
    )

LIMITS = ["-timeout=5", "-rss_limit_mb=2048", "-max_len=300000"]


def main() -> None:
    """Fill an empty corpus, and hand over to libFuzzer."""
    if len(sys.argv) < 3 or sys.argv[1] not in hostile.TARGETS:
        sys.exit(f"{__doc__}\nTargets: {', '.join(hostile.TARGETS)}")
    name, corpus = sys.argv.pop(1), Path(sys.argv[1])
    corpus.mkdir(parents=True, exist_ok=True)
    if not any(corpus.iterdir()):
        for number, content in enumerate(hostile.seeds(name)):
            (corpus / f"seed-{number}").write_bytes(content)
    target = hostile.TARGETS[name]
    atheris.Setup([sys.argv[0], *LIMITS, *sys.argv[1:]], target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
