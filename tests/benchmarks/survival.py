"""Runs that meet what clusters do to them: what they cost, and that nothing is lost.

    python tests/benchmarks/survival.py DIRECTORY -m MODEL [--counts 10000 100000]
        [--share 0.1] [--only inputs latency killed full]

DIRECTORY holds LAMOST spectra, ``.fits.gz``. ``inputs``: so many hard links to them, a
share of them to files broken in twenty ways, through `stellar predict`: every broken
file has to be a row with a flag and a reason, every whole one has values; printed are
the processor time per file and the memory of the largest process. ``latency``: 1024
files on a disk whose every open and read waits, as NFS over a busy network does, with
more and more workers. ``killed``: a worker of each command is killed. ``full``: a disk
(as root) that is too small, then has more room, and ``--resume``.
"""

from __future__ import annotations

import argparse
import gzip
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from stellarcli import catalog

EACH = 20  # different files of a kind
WAIT = 0.01  # s; of every open and every read
FAILED = 0b11  # flags of rows without values: unreadable, no coverage
SLOW = f"""
import builtins, os, sys, time
real, real_os = builtins.open, os.open
class Slow:
    def __init__(self, file): self.file = file
    def __enter__(self): return self
    def __exit__(self, *_): self.file.close()
    def __getattr__(self, name): return getattr(self.file, name)
    def readall(self): time.sleep({WAIT}); return self.file.readall()
def slow(path, *rest, **options):
    if not str(path).endswith('.gz'): return real(path, *rest, **options)
    time.sleep({WAIT})
    return Slow(real(path, *rest, **options))
builtins.open = slow
from stellarcli.__main__ import main
sys.argv[0] = 'stellar'
main()
"""


def main() -> None:
    """Print what each of them found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("-m", "--model", default="default")
    parser.add_argument("--counts", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--share", type=float, default=0.1, help="of broken inputs")
    parser.add_argument("--only", nargs="+", choices=list(TRIALS), default=list(TRIALS))
    options = parser.parse_args()
    sources = [str(path.resolve()) for path in sorted(options.directory.glob("*.gz"))]
    # hard links can't leave a file system
    with tempfile.TemporaryDirectory(dir=options.directory.parent) as folder:
        os.chdir(folder)
        for name in options.only:
            TRIALS[name](sources, options)
        os.chdir("/")


def stellar(*words: object, code: str = "") -> tuple[int, str, float]:
    """Run ``stellar``; its status, what it said, and the MB of its largest process."""
    start = ["-c", code] if code else ["-m", "stellarcli"]
    command = [sys.executable, *start, *map(str, words)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    errors = process.stderr.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, errors, used.ru_maxrss / 1024


# ------------------------------------------------------------------- broken inputs


def card(data: bytes, key: bytes, value: bytes) -> bytes:
    """Give a card of the last header another value."""
    start = data.rfind(key.ljust(8) + b"=")
    text = (key.ljust(8) + b"= " + value.rjust(20)).ljust(80)
    return data[:start] + text + data[start + 80 :]


def flipped(data: bytes, start: int, end: int) -> bytes:
    """Change one byte."""
    at = random.randrange(start, end)
    return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]


def packed(data: bytes) -> bytes:
    """Compress as fast as can be."""
    return gzip.compress(data, 1, mtime=0)


# by name, of the compressed file and of its content
KINDS: dict[str, Callable[[bytes, bytes], bytes]] = {
    "empty": lambda gz, raw: b"",
    "one byte": lambda gz, raw: gz[:1],
    "text": lambda gz, raw: b"no spectrum\n" * random.randrange(1, 900),
    "login page": lambda gz, raw: b"<html>login, password</html>",
    "JSON": lambda gz, raw: b'{"error": "Not Found"}',
    "cut": lambda gz, raw: gz[: random.randrange(20, len(gz) - 8)],
    "cut at the end": lambda gz, raw: gz[: -random.randrange(1, 8)],
    "a byte flipped": lambda gz, raw: flipped(gz, 30, len(gz) - 8),
    "wrong checksum": lambda gz, raw: flipped(gz, len(gz) - 8, len(gz)),
    "noise": lambda gz, raw: random.randbytes(random.randrange(10, 60_000)),
    "packed noise": lambda gz, raw: packed(random.randbytes(5000)),
    "cut, then packed": lambda gz, raw: packed(
        raw[: random.randrange(1, len(raw) // 2)]
    ),
    "no END": lambda gz, raw: packed(raw.replace(b"END     ", b"ENX     ")),
    "a gigantic axis": lambda gz, raw: packed(card(raw, b"NAXIS2", b"1000000000000")),
    "a negative axis": lambda gz, raw: packed(card(raw, b"NAXIS2", b"-5")),
    "no such extension": lambda gz, raw: packed(card(raw, b"XTENSION", b"'NONE    '")),
    "packed twice": lambda gz, raw: packed(gz),
    "bomb": lambda gz, raw: packed(bytes(200 << 20)) if random.random() < 0.1 else b"",
    "all NaN": lambda gz, raw: packed(raw[:8640] + b"\xff" * (len(raw) - 8640)),
    "all zero": lambda gz, raw: packed(raw[:8640] + bytes(len(raw) - 8640)),
}


def broken(sources: list[str]) -> dict[str, list[str]]:
    """Write files of every kind; their names by kind."""
    Path("broken").mkdir()
    made: dict[str, list[str]] = {}
    for number, (kind, change) in enumerate(KINDS.items()):
        for n, source in enumerate(sources[:EACH]):
            packed_file = Path(source).read_bytes()
            path = Path(f"broken/{number:02d}-{n:02d}")
            path.write_bytes(change(packed_file, gzip.decompress(packed_file)))
            made.setdefault(kind, []).append(str(path))
    return made


def linked(
    root: str, count: int, share: float, sources: list[str], bad: dict[str, list[str]]
) -> dict[str, str]:
    """Fill a directory; the kind of every broken file by its path."""
    kinds = {}
    choices = [(kind, path) for kind, paths in bad.items() for path in paths]
    for n in range(count):
        path = f"{root}/{n // 1000:03d}/{n:06d}.fits.gz"
        if n % 1000 == 0:
            os.makedirs(os.path.dirname(path))
        if int((n + 1) * share) == int(n * share):
            os.link(sources[n % len(sources)], path)
            continue
        kinds[path], source = random.choice([*choices, ("dangling link", "")])
        os.link(source, path) if source else os.symlink("nowhere", path)
    return kinds


def inputs(sources: list[str], options: argparse.Namespace) -> None:
    """Predict many files, some of them broken."""
    random.seed(1)
    bad = broken(sources)
    for count in options.counts:
        root = f"in{count}"
        kinds = linked(root, count, options.share, sources, bad)
        before = _cpu()
        status, errors, memory = stellar(
            *("predict", root, "-m", options.model, "-j", options.workers),
            *("-o", "o.fits", "--log", "o.log", "--quiet", "--overwrite"),
        )
        used = (_cpu() - before) / count * 1e6
        assert status == 3, (status, errors)
        rows = catalog.read("o.fits").rows
        files = rows["file"].tolist()
        assert files == sorted(files), "not in order"
        assert len(files) == count
        lost = dict(zip(files, rows["flag"] & FAILED != 0, strict=True))
        log = Path("o.log").read_text()
        silent = [path for path in kinds if not lost[path] or path not in log]
        wrong = [path for path in files if lost[path] and path not in kinds]
        assert not silent, [(kinds[path], path) for path in silent[:10]]
        assert not wrong, wrong[:10]
        print(
            f"{count} files, {len(kinds)} broken in {len(set(kinds.values()))} ways: "
            f"all have rows, and reasons; {used:.0f} µs of a core each, "
            f"{memory:.0f} MB at most in a process",
            flush=True,
        )
        shutil.rmtree(root)


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


# ------------------------------------------------------------- disks, dying workers


def latency(sources: list[str], options: argparse.Namespace) -> None:
    """Predict files of a slow disk with more and more workers."""
    few = sources[:1024]
    Path("list").write_text("\n".join(few))
    expected = None
    for workers in (1, 4, 16):
        begin = time.perf_counter()
        status, errors, _ = stellar(
            *("predict", "@list", "-m", options.model, "-o", "s.fits", "-q"),
            *("-j", workers, "--overwrite"),
            code=SLOW,
        )
        seconds = time.perf_counter() - begin
        assert status == 0, errors
        found = catalog.read("s.fits").rows.tobytes()
        expected = expected or found
        assert found == expected, "another table"
        print(
            f"{WAIT * 1e3:g} ms per open and per read, {workers} workers: "
            f"{len(few) / seconds:.0f} files/s",
            flush=True,
        )


def commands(sources: list[str], options: argparse.Namespace) -> dict[str, list]:
    """Commands that many workers share, without their outputs."""
    Path("few").write_text("\n".join(sources[:1500]))
    return {
        "predict": ["predict", "@few", "-m", options.model, "-q", "-j", 2],
        "preprocess": ["preprocess", "@few", "-r", options.model, "-q", "-j", 2],
    }


def killed(sources: list[str], options: argparse.Namespace) -> None:
    """Kill one worker of a run, as a system without memory does."""
    for name, words in commands(sources, options).items():
        whole = f"{name}-whole.fits"
        assert stellar(*words, "-o", whole)[0] == 0
        command = [sys.executable, "-m", "stellarcli", *map(str, words), "-o", "k.fits"]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while len(children.read_text().split()) < 2:
            time.sleep(0.01)
        time.sleep(0.5)
        os.kill(int(children.read_text().split()[0]), signal.SIGKILL)
        errors = process.communicate()[1]
        assert process.returncode == 1, (process.returncode, errors)
        assert "a worker process was killed" in errors, errors
        assert not Path("k.fits").exists()
        again(name, words, "k.fits", whole)
        print(f"{name}: a worker killed: status 1, then the same table", flush=True)


def again(name: str, words: list, output: str, whole: str) -> None:
    """Repeat a run, and compare its data with those of an undisturbed one."""
    extra = ["--resume"] if name == "predict" else []
    status, errors, _ = stellar(*words, "-o", output, *extra)
    assert status == 0, errors
    hdu = {"predict": 1, "preprocess": "SPECTRA"}[name]
    import fitsio

    rows = [fitsio.read(path, ext=hdu) for path in (output, whole)]
    assert rows[0].tobytes() == rows[1].tobytes(), "another table"
    hidden = [p.name for p in Path(output).parent.glob(f".{Path(output).name}*")]
    assert not hidden, hidden
    Path(output).unlink()


def full(sources: list[str], options: argparse.Namespace) -> None:
    """Write to a disk that is too small, then to the same with more room."""
    Path("small").mkdir()
    mount = ["mount", "-t", "tmpfs"]
    for name, words in commands(sources, options).items():
        whole = f"{name}-whole.fits"
        assert stellar(*words, "-o", whole, "--overwrite")[0] == 0
        size = Path(whole).stat().st_size
        for part in (0.02, 0.5, 0.99):
            room = f"size={int(size * part) // 1024}k"
            subprocess.run([*mount, "-o", room, "none", "small"], check=True)
            try:
                status, errors, _ = stellar(*words, "-o", "small/f.fits")
                assert status == 1, (status, errors)
                assert "no space left" in errors, errors
                assert "Traceback" not in errors, errors
                assert not list(Path("small").glob("[!.]*"))
                more = f"remount,size={size * 4 // 1024}k"
                subprocess.run(["mount", "-o", more, "small"], check=True)
                again(name, words, "small/f.fits", whole)
            finally:
                subprocess.run(["umount", "-l", "small"], check=True)
        print(f"{name}: three full disks: status 1, then the same table", flush=True)


TRIALS = {"inputs": inputs, "latency": latency, "killed": killed, "full": full}


if __name__ == "__main__":
    main()
