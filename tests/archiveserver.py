"""A server on 127.0.0.1 that behaves as the archives do, faults included.

In a test, ``with Archive(spectra) as archive`` runs it in a thread; as a program it
runs in a process of its own, for benchmarks:

    python tests/archiveserver.py DIRECTORY [--faults 0.05] [--latency 0.02]

It prints its port. Addresses are those of LAMOST (``/openapi`` and the web pages) and
of any static file (SDSS, tarballs, models).
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import hashlib
import json
import random
import re
import struct
import threading
import zlib
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

FAULTS = (
    *("500", "503", "429", "cut", "hang", "json", "login", "truncated"),
    *("wrong", "loop", "empty", "page", "flipped"),
)
RELEASES = {
    "versions": [
        {"dr_version": "dr9", "sub_version": "v2.0", "public_status": "public"},
        {"dr_version": "dr10", "sub_version": "v1.0", "public_status": "public"},
        {"dr_version": "dr10", "sub_version": "v2.0", "public_status": "public"},
        {"dr_version": "dr12", "sub_version": "v1.0", "public_status": "internal"},
    ]
}
STEP = 10**10  # between the identifiers of a file's copies
TOKEN = "s3cret+token/of=the~tests"  # looked for in every output of the tests
LOGIN = b"<!DOCTYPE html><html><title>Login</title><input name=password></html>"
PAGE = b"<html><body>Service under maintenance</body></html>"
REASONS = {200: "OK", 206: "Partial Content", 302: "Found", 404: "Not Found"}


class Answer:
    """What goes back; after `cut` bytes of the body the line is dead."""

    def __init__(self, body=b"", status=200, cut=None, length=None, **headers):
        self.body, self.status, self.cut = body, status, cut
        self.length = len(body) if length is None else length
        self.headers = {
            name.replace("_", "-"): value for name, value in headers.items()
        }

    def head(self):
        lines = [f"HTTP/1.1 {self.status} {REASONS.get(self.status, 'Other')}"]
        if self.length >= 0:
            lines.append(f"Content-Length: {self.length}")
        else:
            lines.append("Connection: close")
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def message(error, description="", status=200):
    text = json.dumps({"error": error, "description": description})
    return Answer(text.encode(), status, Content_Type="application/json")


class Archive:
    """The server.

    Parameters
    ----------
    spectra : dict of int to (str, bytes)
        File name and content by OBSID.
    static : dict of str to bytes
        By path.
    faults : float
        Share of the spectra's answers that are one of `kinds`.
    token : str
        Wanted for releases that aren't public.
    latency : float, s
    """

    def __init__(self, spectra=(), static=(), *, faults=0.0, kinds=FAULTS, seed=1):
        self.spectra = dict(spectra)
        self.static = dict(static)
        self.special = {}  # Answer, or a function of (path, query, headers), by path
        self.releases = RELEASES
        self.faults, self.kinds = faults, kinds
        self.token = TOKEN
        self.latency = 0.0
        self.hang = 60.0  # s
        self.web_only = False  # a mirror without /openapi
        self.requests = []  # (method, target, headers)
        self.lines = 0  # connections that were made
        self.given = {}  # how often each fault was given
        self.random = random.Random(seed)
        self.port = 0

    # ------------------------------------------------------------------ life

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self):
        started = threading.Event()
        self.thread = threading.Thread(
            target=lambda: asyncio.run(self.serve(started.set)), daemon=True
        )
        self.thread.start()
        assert started.wait(10)
        return self

    def __exit__(self, *_):
        self.loop.call_soon_threadsafe(self.ended.set)
        self.thread.join(5)

    async def serve(self, ready):
        self.loop, self.ended = asyncio.get_running_loop(), asyncio.Event()
        self.tasks = set()
        server = await asyncio.start_server(self.connection, "127.0.0.1", self.port)
        self.port = server.sockets[0].getsockname()[1]
        ready()
        await self.ended.wait()
        server.close()
        for task in list(self.tasks):
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def connection(self, reader, writer):
        self.lines += 1
        task = asyncio.current_task()
        self.tasks.add(task)
        try:
            while await self.exchange(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self.tasks.discard(task)
            writer.transport.abort()

    async def exchange(self, reader, writer):
        """Answer one request; whether the connection stays open."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.split("\r\n")
        method, target, _ = first.split(" ", 2)
        headers = {
            name.strip().lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines if line)
        }
        self.requests.append((method, target, headers))
        if self.latency:
            await asyncio.sleep(self.latency)
        answer = self.answer(target, headers)
        if answer is None:
            await asyncio.sleep(self.hang)
            return False
        if callable(answer):  # endless and slow bodies write themselves
            await answer(writer)
            return False
        body = answer.body if answer.cut is None else answer.body[: answer.cut]
        writer.write(answer.head() + body)
        await writer.drain()
        if answer.cut is not None or answer.length < 0:
            writer.close()
            return False
        return True

    # --------------------------------------------------------------- content

    def answer(self, target, headers):
        parts = urlsplit(target)
        path = unquote(parts.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        if path in self.special:
            special = self.special[path]
            return special(path, query, headers) if callable(special) else special
        if path == "/openapi/dr_versions":
            return Answer(json.dumps(self.releases).encode())
        if path in self.static:
            return self.file(self.static[path], headers)
        if found := re.fullmatch(
            r"/openapi/(dr\d+)/v[\d.]+/(lrs|mrs)/spectrum/fits", path
        ):
            obsid = query.get("obsid", "")
            web = self.web_only
        elif found := re.fullmatch(
            r"/(dr\d+)/v[\d.]+/(?:med)?spectrum/fits/(\d+)", path
        ):
            obsid, web = found[2], False
        else:
            return Answer(b"not here", 404)
        if web:
            return Answer(b"not here", 404)
        if found[1] == "dr12" and query.get("token") != self.token:
            return Answer(LOGIN, Content_Type="text/html")
        return self.spectrum(int(obsid), target)

    def file(self, content, headers):
        """A static file, or the range of it that is asked for."""
        etag = f'"{hashlib.md5(content).hexdigest()}"'
        asked = re.fullmatch(r"bytes=(\d+)-", headers.get("range", ""))
        if asked and headers.get("if-range", etag) == etag:
            start, size = int(asked[1]), len(content)
            if start >= size:
                return Answer(b"", 416, Content_Range=f"bytes */{size}")
            span = f"bytes {start}-{size - 1}/{size}"
            return Answer(content[start:], 206, ETag=etag, Content_Range=span)
        return Answer(content, ETag=etag)

    def spectrum(self, obsid, target):
        if obsid not in self.spectra:
            return message("Not Found", f"there is no spectrum of obsid {obsid}")
        if self.faults and self.random.random() < self.faults:
            kind = self.random.choice(self.kinds)
            self.given[kind] = self.given.get(kind, 0) + 1
            return self.fault(kind, obsid, target)
        return self.whole(obsid)

    def whole(self, obsid):
        name, content = self.spectra[obsid]
        attachment = f'attachment; filename="{name}"'
        return Answer(content, Content_Disposition=attachment)

    def fault(self, kind, obsid, target):
        content = self.spectra[obsid][1]
        if kind == "500":
            return Answer(b"oops", 500)
        if kind in ("503", "429"):
            return Answer(b"busy", int(kind), Retry_After="1")
        if kind == "cut":
            return Answer(content, cut=len(content) // 2)
        if kind == "hang":
            return None
        if kind == "json":
            return message("Internal error", "the file system is not mounted")
        if kind == "login":
            return Answer(LOGIN, Content_Type="text/html")
        if kind == "truncated":
            return Answer(content[: len(content) * 2 // 3])
        if kind == "wrong":
            return self.whole(
                self.random.choice([n for n in self.spectra if n != obsid])
            )
        if kind == "loop":
            return Answer(b"", 302, Location=target)
        if kind == "empty":
            return Answer(b"")
        if kind == "flipped":
            damaged = bytearray(content)
            damaged[len(damaged) // 2] ^= 0xFF
            return Answer(bytes(damaged))
        assert kind == "page", kind
        return Answer(PAGE, Content_Type="text/html")

    def tokens_seen(self):
        """Targets and headers that the token was sent in."""
        return [
            request
            for request in self.requests
            if self.token in request[1] or self.token in str(request[2])
        ]


def slow(content, pause=0.2):
    """An answer whose bytes drip."""

    async def write(writer):
        writer.write(Answer(content).head())
        for byte in content:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(pause)

    return lambda *_: write


def endless(*_):
    """An answer that never ends and never says how long it is."""

    async def write(writer):
        writer.write(Answer(length=-1).head() + b"SIMPLE  =")
        while True:
            writer.write(b" " * (1 << 16))
            await writer.drain()

    return write


def spectra_of(paths, compress=True, copies=1):
    """Spectra by OBSID, of FITS files; copies get identifiers of their own."""
    from stellarcli.archives import verification

    found = {}
    for path in map(Path, paths):
        content = path.read_bytes()
        obsid = int(verification.check(content).get("OBSID"))
        name, packed = path.name.removesuffix(".gz"), content.startswith(b"\x1f\x8b")
        ending = ".gz" if packed or compress else ""
        if compress and not packed:
            content = gzip.compress(content, 6, mtime=0)
        found[obsid] = (name + ending, content)
        for number, one in enumerate(copies_of(content, copies - 1, obsid), start=1):
            found[obsid + number * STEP] = (f"{number}-{name}{ending}", one)
    return found


def copies_of(content, count, obsid):
    """A file with other identifiers; what they have in common is compressed once."""
    packed = content.startswith(b"\x1f\x8b")
    plain = gzip.decompress(content) if packed and count else content
    card = b"OBSID   = %20d"
    start = plain.find(card % obsid)
    end = start + len(card % obsid)
    tail = deflated(plain[end:], zlib.Z_FINISH) if packed and count else plain[end:]
    for number in range(1, count + 1):
        head = plain[:start] + card % (obsid + number * STEP)
        if not packed:
            yield head + tail
            continue
        check = zlib.crc32(plain[end:], zlib.crc32(head))
        trailer = struct.pack("<II", check, len(plain))
        yield (
            content[:3] + bytes(7) + deflated(head, zlib.Z_FULL_FLUSH) + tail + trailer
        )


def deflated(data, flush):
    """A piece of a deflate stream, as gzip -6 makes it; pieces can be joined."""
    deflate = zlib.compressobj(6, wbits=-15)
    return deflate.compress(data) + deflate.flush(flush)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--faults", type=float, default=0.0)
    parser.add_argument("--latency", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--as-is", action="store_true", help="Compress nothing.")
    parser.add_argument("--copies", type=int, default=1)
    options = parser.parse_args()
    paths = sorted(options.directory.glob("*.fits*"))
    archive = Archive(
        spectra_of(paths, compress=not options.as_is, copies=options.copies),
        faults=options.faults,
        seed=options.seed,
    )
    archive.latency = options.latency
    try:
        asyncio.run(archive.serve(lambda: print(archive.port, flush=True)))
    except KeyboardInterrupt:
        print(json.dumps(archive.given), flush=True)


if __name__ == "__main__":
    main()
