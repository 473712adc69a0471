"""Throughput of ``stellar fetch lamost`` beside curl's, of the same files.

    python tests/benchmarks/fetch_rate.py DIRECTORY [--latency 0 0.005 0.02 0.1]
        [--runs 3] [--copies 5] [--as-is] [--nginx]

A server in a process of its own serves the spectra in DIRECTORY (gzipped if they
aren't, unless ``--as-is``) on this machine, with some latency per answer, as the
network of an archive has; with ``--copies``, each several times, under identifiers of
their own. The clients get eight connections and take turns; times are those of whole
processes, start included, of the run that was least disturbed, and the CPU time of each
is printed too. Every run writes into a directory of its own: ext4 is slow to give out
what was removed a moment ago.
``stellar`` verifies every file, ``curl --parallel`` none, or the compression with a
process of ``gzip -t`` per core afterwards; ``xargs curl`` is a process per file, and
gets only the first few. With ``--nginx`` that serves the files (without
latency). Demanded are 70 % of the rate of ``curl --parallel``.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TESTS = Path(__file__).parent.parent
CONNECTIONS = 8
FEW = 200  # files for xargs
PATH = "/openapi/dr10/v2.0/lrs/spectrum/fits"
CONFIGURATION = """
daemon off; worker_processes 1; pid {root}/pid; error_log {root}/errors; user root;
events {{ worker_connections 256; }}
http {{
  access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000;
  open_file_cache max=10000;
  client_body_temp_path {root}/body; proxy_temp_path {root}/proxy;
  fastcgi_temp_path {root}/fast; uwsgi_temp_path {root}/u; scgi_temp_path {root}/scgi;
  server {{ listen 127.0.0.1:{port}; root {root}/files;
    location = {path} {{ try_files /$arg_obsid.fits.gz =404; }} }} }}
"""


def main() -> None:
    """Print the rates of each client, at each latency."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument(
        "--latency", type=float, nargs="+", default=[0.0, 0.005, 0.02, 0.1], help="s"
    )
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--copies", type=int, default=1)
    parser.add_argument("--as-is", action="store_true")
    parser.add_argument("--nginx", action="store_true")
    options = parser.parse_args()
    sys.path.insert(0, str(TESTS))
    from archiveserver import spectra_of

    paths = sorted(options.directory.glob("*.fits*"))
    spectra = spectra_of(paths, not options.as_is, options.copies)
    size = sum(len(content) for _, content in spectra.values())
    print(f"{len(spectra)} files, {size / len(spectra) / 1e3:.0f} kB each")
    with tempfile.TemporaryDirectory() as folder:
        if options.nginx:
            with nginx(spectra, Path(folder)) as url:
                measure("nginx", url, list(spectra), options.runs, Path(folder))
            return
        for latency in options.latency:
            with server(options, latency) as url:
                name = f"{latency * 1e3:g} ms"
                measure(name, url, list(spectra), options.runs, Path(folder))


@contextmanager
def server(options: argparse.Namespace, latency: float) -> Iterator[str]:
    """Address of the tests' own archive."""
    words = [options.directory, "--latency", str(latency)]
    words += ["--copies", str(options.copies)]
    words += ["--as-is"] if options.as_is else []
    process = subprocess.Popen(
        [sys.executable, TESTS / "archiveserver.py", *words], stdout=subprocess.PIPE
    )
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()


@contextmanager
def nginx(spectra: dict, folder: Path, port: int = 8098) -> Iterator[str]:
    """Address of a server that costs next to nothing."""
    root = folder / "nginx"
    (root / "files").mkdir(parents=True)
    for obsid, (_, content) in spectra.items():
        (root / "files" / f"{obsid}.fits.gz").write_bytes(content)
    text = CONFIGURATION.format(root=root, port=port, path=PATH)
    (root / "conf").write_text(text)
    process = subprocess.Popen(["nginx", "-c", root / "conf"])
    time.sleep(1)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def clients(
    url: str, obsids: list[int], folder: Path, out: Path
) -> dict[str, list[str]]:
    """Command lines by name."""
    page = f"{url}{PATH}?obsid="
    lines = [f'url = "{page}{n}"\noutput = "{out}/{n}.fits.gz"' for n in obsids]
    (folder / "curl.cfg").write_text("\n".join(lines))
    (folder / "list.csv").write_text("obsid\n" + "\n".join(map(str, obsids)))
    (folder / "list.txt").write_text("\n".join(map(str, obsids[:FEW])))
    stellar = [sys.executable, "-m", "stellarcli", "fetch", "lamost", "--url", url]
    stellar += ["--dr", "10", "--version", "v2.0", "--from", str(folder / "list.csv")]
    stellar += ["-o", str(out), "--connections", str(CONNECTIONS)]
    quiet = ["--no-progress-meter", "-sS"]
    parallel = ["--parallel", "--parallel-max", str(CONNECTIONS)]
    curl = ["curl", *quiet, *parallel, "-K", str(folder / "curl.cfg")]
    one = f"curl -sS -o {out}/{{}}.fits.gz '{page}{{}}'"
    xargs = ["xargs", "-a", str(folder / "list.txt"), "-P", str(CONNECTIONS)]
    xargs += ["-I{}", "sh", "-c", one]
    unpack = f"ls {out}/* | xargs -P {os.cpu_count()} -n 100 gzip -t"
    checked = ["sh", "-c", f'"$@" && {unpack}', "_", *curl]
    return {
        "stellar": stellar,
        "curl --parallel": curl,
        "curl, gzip -t": checked,
        "xargs curl": xargs,
    }


def measure(name: str, url: str, obsids: list[int], runs: int, folder: Path) -> None:
    """Let the clients take turns and print their rates."""
    names = list(clients(url, obsids, folder, folder))
    seconds = {client: [] for client in names}
    work = {client: [] for client in names}
    counts = {client: len(obsids) for client in names}
    counts["xargs curl"] = min(FEW, len(obsids))
    results = Path(tempfile.mkdtemp(dir=folder))
    for number in range(runs):
        for client in names:
            out = results / f"{client.replace(' ', '')}-{number}"
            out.mkdir()
            command = clients(url, obsids, folder, out)[client]
            before, start = _cpu(), time.perf_counter()
            subprocess.run(command, check=True, stderr=subprocess.DEVNULL, env=_env())
            seconds[client].append(time.perf_counter() - start)
            work[client].append(_cpu() - before)
            there = len(list(out.glob("[!.]*")))
            assert there == counts[client], client
    shutil.rmtree(results)
    rates = {n: counts[n] / min(seconds[n]) for n in names}
    for client, rate in rates.items():
        cpu = min(work[client]) / counts[client] * 1e6
        shown = ", ".join(f"{s:.2f}" for s in seconds[client])
        print(
            f"{name:7s} {client:16s} {rate:7.0f} files/s, "
            f"{rate / rates['curl --parallel']:5.0%} of curl --parallel, CPU "
            f"{cpu:5.0f} µs a file ({shown} s)",
            flush=True,
        )


def _env() -> dict[str, str]:
    """Environment in which Python keeps what it compiled, as it does for users."""
    return {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}


def _cpu() -> float:
    """Seconds that ended children have computed."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
