"""Throughput of ``stellar fetch lamost`` beside curl's, of the same files.

    python tests/benchmarks/fetch_rate.py DIRECTORY [--latency 0.02] [--runs 3]

A server in a process of its own serves the spectra in DIRECTORY (gzipped if they
aren't) on this machine, with some latency per answer, as the network of an archive has.
Both clients get eight connections and take turns; times are those of whole processes,
start included. ``stellar`` verifies every file, ``curl --parallel`` none; ``xargs
curl`` is a process per file. Demanded are 70 % of curl's rate.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TESTS = Path(__file__).parent.parent
CONNECTIONS = 8


def main() -> None:
    """Print seconds and files/s of each client."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--latency", type=float, default=0.02, help="s")
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    arguments = [options.directory, "--latency", str(options.latency)]
    server = subprocess.Popen(
        [sys.executable, TESTS / "archiveserver.py", *arguments], stdout=subprocess.PIPE
    )
    try:
        port = int(server.stdout.readline())
        with tempfile.TemporaryDirectory() as folder:
            measure(f"http://127.0.0.1:{port}", options, Path(folder))
    finally:
        server.kill()


def measure(url: str, options: argparse.Namespace, folder: Path) -> None:
    """Run the clients in turn and print their rates."""
    sys.path.insert(0, str(TESTS))
    from archiveserver import spectra_of

    obsids = list(spectra_of(options.directory.glob("*.fits*")))
    page = f"{url}/openapi/dr10/v2.0/lrs/spectrum/fits?obsid="
    out = folder / "out"
    lines = [f'url = "{page}{n}"\noutput = "{out}/{n}.fits.gz"' for n in obsids]
    (folder / "curl.cfg").write_text("\n".join(lines))
    (folder / "list.csv").write_text("obsid\n" + "\n".join(map(str, obsids)))
    (folder / "list.txt").write_text("\n".join(map(str, obsids)))
    stellar = [sys.executable, "-m", "stellarcli", "fetch", "lamost", "--url", url]
    stellar += ["--dr", "10", "--version", "v2.0", "--from", str(folder / "list.csv")]
    stellar += ["-o", str(out), "--connections", str(CONNECTIONS)]
    parallel = ["--parallel", "--parallel-max", str(CONNECTIONS)]
    curl = ["curl", "-sS", *parallel, "-K", str(folder / "curl.cfg")]
    one = f"curl -sS -o {out}/{{}}.fits.gz '{page}{{}}'"
    xargs = ["xargs", "-a", str(folder / "list.txt"), "-P", str(CONNECTIONS)]
    xargs += ["-I{}", "sh", "-c", one]
    clients = {"stellar": stellar, "curl --parallel": curl, "xargs curl": xargs}
    times = {name: [] for name in clients}
    for _ in range(options.runs):
        for name, command in clients.items():
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir()
            start = time.perf_counter()
            subprocess.run(
                command, check=True, stderr=subprocess.DEVNULL, env=os.environ
            )
            times[name].append(time.perf_counter() - start)
            assert len(list(out.glob("[!.]*"))) == len(obsids), name
    best = statistics.median(times["curl --parallel"])
    for name, seconds in times.items():
        middle = statistics.median(seconds)
        rates = ", ".join(f"{s:.2f}" for s in seconds)
        print(
            f"{name:16s} {len(obsids) / middle:7.0f} files/s, {best / middle:5.0%} of "
            f"curl --parallel ({rates} s)"
        )


if __name__ == "__main__":
    main()
