"""Two thousand spectra from a faulty archive: not one lost, not one damaged.

    python tests/benchmarks/fetch_faults.py DIRECTORY [--faults 0.05]

A server in a process of its own serves the spectra in DIRECTORY; a share of its answers
fails in every way of `archiveserver.FAULTS`. Three runs: undisturbed; killed with
SIGKILL three times and resumed; on a disk that runs full (as root, in a mount namespace
that ends with the process), then resumed elsewhere. Every file is compared with
its source by checksum, and the directory must hold nothing else.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TESTS = Path(__file__).parent.parent
JOURNAL = ".stellar-fetch.jsonl"


def main() -> None:
    """Print what became of each run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--faults", type=float, default=0.05)
    options = parser.parse_args()
    sys.path.insert(0, str(TESTS))
    from archiveserver import spectra_of

    source = spectra_of(sorted(options.directory.glob("*.fits*")))
    arguments = [options.directory, "--faults", str(options.faults)]
    server = subprocess.Popen(
        [sys.executable, TESTS / "archiveserver.py", *arguments],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        port = int(server.stdout.readline())
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            Path("list.csv").write_text("obsid\n" + "\n".join(map(str, source)))
            command = [sys.executable, "-m", "stellarcli", "fetch", "lamost", "--from"]
            command += ["list.csv", "--url", f"http://127.0.0.1:{port}", "--dr", "10"]
            command += ["--version", "v2.0", "--timeout", "5", "-o"]
            undisturbed(command, source)
            killed(command, source)
            full_disk(command, source)
        server.send_signal(signal.SIGINT)
        print("faults given:", server.stdout.readline().strip())
    finally:
        server.kill()


def undisturbed(command: list[str], source: dict) -> None:
    """One run from the beginning to the end."""
    start = time.perf_counter()
    done = subprocess.run([*command, "plain"], capture_output=True, text=True)
    seconds = time.perf_counter() - start
    print(f"undisturbed: status {done.returncode}, {seconds:.1f} s,", end=" ")
    print(compared(Path("plain"), source), done.stderr.strip(), sep="; ")


def killed(command: list[str], source: dict) -> None:
    """Killed at a quarter, half and three quarters of the files."""
    for share in (0.25, 0.5, 0.75):
        process = subprocess.Popen(
            [*command, "killed", "--resume"], stderr=subprocess.DEVNULL
        )
        while process.poll() is None and count("killed") < share * len(source):
            time.sleep(0.01)
        process.kill()
        process.wait()
        print(f"killed with {count('killed')} files there")
    done = subprocess.run(
        [*command, "killed", "--resume"], capture_output=True, text=True
    )
    print(f"resumed: status {done.returncode},", end=" ")
    print(compared(Path("killed"), source), done.stderr.strip(), sep="; ")


def full_disk(command: list[str], source: dict) -> None:
    """A disk that somebody else fills when a third of the files are there."""
    if os.geteuid():
        print("full disk: only root can mount one")
        return
    size = 2 * sum(len(content) for _, content in source.values())
    Path("small").mkdir()
    script = f"""
        mount -t tmpfs -o size={size} none small
        (while [ $(ls small | wc -l) -lt {len(source) // 3} ]; do sleep 0.02; done
        cat /dev/zero >small/.ballast 2>/dev/null) &
        "$@" small
        status=$?
        rm small/.ballast
        cp -a small kept
        exit $status"""
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", *command],
        capture_output=True,
        text=True,
    )
    print(f"full disk: status {done.returncode}; {done.stderr.strip()}")
    print("   ", compared(Path("kept"), source))
    done = subprocess.run(
        [*command, "kept", "--resume"], capture_output=True, text=True
    )
    print(f"resumed: status {done.returncode},", end=" ")
    print(compared(Path("kept"), source), done.stderr.strip(), sep="; ")


def count(folder: str) -> int:
    """Whole files in a directory."""
    path = Path(folder)
    return len(list(path.glob("[!.]*"))) if path.exists() else 0


def compared(folder: Path, source: dict) -> str:
    """How many files are there, identical, and otherwise."""
    wanted = {
        hashlib.sha256(content).hexdigest(): name for name, content in source.values()
    }
    names = sorted(path.name for path in folder.iterdir())
    same = sum(
        wanted.get(hashlib.sha256((folder / name).read_bytes()).hexdigest()) == name
        for name in names
        if name != JOURNAL
    )
    others = [name for name in names if name.startswith(".") and name != JOURNAL]
    files = len(names) - len(others) - (JOURNAL in names)
    return (
        f"{files} of {len(wanted)} files, {same} identical to their source, "
        f"{len(others)} left-over parts"
    )


if __name__ == "__main__":
    main()
