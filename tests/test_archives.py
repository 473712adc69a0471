"""Fetching from archives: the client, hostile servers, verification, large files."""

import bz2
import contextlib
import gzip
import hashlib
import io
import os
import re
import socket
import ssl
import subprocess
import tarfile
import threading
import time

import numpy as np
import pytest
from archiveserver import LOGIN, TOKEN, Answer, Archive, endless, message, slow
from astropy.io import fits

from stellarcli import catalog
from stellarcli.archives import batch, crew, lamost, nights, orders, token, transfer
from stellarcli.archives import client as client_module
from stellarcli.archives import verification as verify
from stellarcli.archives.client import Client
from stellarcli.archives.store import JOURNAL, PART, Item, Store
from stellarcli.errors import (
    FetchError,
    OutputExistsError,
    StellarError,
    Trouble,
    UsageError,
)

FITS = b"".join(
    card.ljust(80)
    for card in (b"SIMPLE  =                    T", b"BITPIX  =                    8")
)
FITS += b"NAXIS   =                    0".ljust(80) + b"END".ljust(80)
FITS = FITS.ljust(2880)
PACKS = [bytes, gzip.compress, bz2.compress]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Waits of tests are short."""
    monkeypatch.setattr(crew, "FIRST_WAIT", 0.01)


@pytest.fixture
def client(archive):
    return Client(archive.url, timeout=5.0)


def item(url, name="a.fits", **cards):
    return Item(f"test/{name}", (url,), name, cards)


def fetch_one(client, tmp_path, url, retries=0, **cards):
    """Outcome of a batch of one file."""
    one = item(url, **cards)
    with Store(tmp_path / "out") as store:
        return batch.fetch(client, [one.key], lambda key: one, store, retries=retries)


def trouble(client, tmp_path, url, retries=0, **cards):
    """Why one file can't be had; nothing must be left of it."""
    outcome = fetch_one(client, tmp_path, url, retries, **cards)
    assert not outcome.files
    assert [n for n in os.listdir(tmp_path / "out") if n != JOURNAL] == []
    [error] = outcome.troubles.values()
    return error


# ------------------------------------------------------------------ hostile servers


@pytest.mark.parametrize(
    "name",
    [
        "../../evil.fits",
        "/etc/evil.fits",
        "..\\evil.fits",
        ".evil.fits",
        "evil.fits\0",
        "-o.fits",
        "a/b.fits",
        "evil.sh",
        "CON\n.fits",
        "x" * 300 + ".fits",
        "%2e%2e%2fevil.fits",
        "",
    ],
)
def test_proposed_names_lead_nowhere(archive, client, tmp_path, name):
    disposition = (
        'attachment; filename="' + name.replace("\n", "").replace("\0", "") + '"'
    )
    archive.special["/file"] = Answer(FITS, Content_Disposition=disposition)
    one = Item("test/7", (f"{archive.url}/file",), "own.fits", proposed=True)
    with Store(tmp_path / "out") as store:
        outcome = batch.fetch(client, [one.key], lambda key: one, store)
    [kept] = outcome.files.values()
    assert "/" not in kept
    assert not kept.startswith((".", "-"))
    inside = {path.name for path in tmp_path.rglob("*")}
    assert inside == {"out", kept, JOURNAL}


def test_gigantic_length_is_refused_before_the_body(archive, client, tmp_path):
    archive.special["/file"] = Answer(FITS, length=10**15)
    error = trouble(client, tmp_path, f"{archive.url}/file", retries=3)
    assert error.kind is Trouble.REFUSED
    assert "1000000000000000" in str(error)
    assert len(archive.requests) == 1


def test_endless_body_is_refused(archive, client, tmp_path, monkeypatch):
    monkeypatch.setattr(client_module, "SMALL", 1 << 20)
    archive.special["/file"] = endless
    with pytest.raises(FetchError, match="more and more") as caught:
        client.content(f"{archive.url}/file", limit=1 << 20)
    assert caught.value.kind is Trouble.REFUSED


def test_dripping_body_is_given_up(archive):
    archive.special["/file"] = slow(FITS, pause=0.05)
    start = time.monotonic()
    with pytest.raises(FetchError, match="too slow"):
        Client(archive.url, timeout=0.3).content(f"{archive.url}/file")
    assert time.monotonic() - start < 30


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress], ids=["gzip", "bzip2"])
def test_bombs_are_refused(pack, monkeypatch, tmp_path):
    monkeypatch.setattr(verify, "SMALL", 1 << 20)
    bomb = pack(FITS + bytes(1 << 26))
    with pytest.raises(FetchError, match="unpacks to more") as caught:
        verify.check(bomb)
    assert caught.value.kind is Trouble.REFUSED
    (tmp_path / "bomb").write_bytes(bomb)
    with pytest.raises(FetchError, match="unpacks to more"):
        verify.check_file(tmp_path / "bomb")


@pytest.mark.parametrize(
    "location",
    [
        "file:///etc/passwd",
        "ftp://127.0.0.1/x.fits",
        "gopher://x",
        "javascript:1",
    ],
)
def test_redirects_to_other_schemes_are_refused(archive, client, tmp_path, location):
    archive.special["/file"] = Answer(b"", 302, Location=location)
    error = trouble(client, tmp_path, f"{archive.url}/file", retries=3)
    assert error.kind is Trouble.REFUSED
    assert len(archive.requests) == 1


def test_redirects_to_other_hosts_do_not_get_the_token(archive, few_spectra, tmp_path):
    with Archive(few_spectra) as other:
        client = Client(archive.url, token.Token(TOKEN), timeout=5.0)
        target = f"{other.url}/dr10/v2.0/spectrum/fits/5001"
        archive.special["/file"] = Answer(b"", 302, Location=target)
        error = trouble(client, tmp_path, f"{archive.url}/file")
        assert error.kind is Trouble.REFUSED
        assert "the token belongs to" in str(error)
        assert other.requests == []
        assert len(archive.tokens_seen()) == 0  # it is quoted in the address
        assert "token=s3cret" in archive.requests[0][1]
        # without a token a mirror may be elsewhere
        outcome = fetch_one(Client(archive.url), tmp_path, f"{archive.url}/file")
        assert outcome.files


def test_token_goes_only_to_its_archive(archive, few_spectra):
    with Archive(few_spectra) as other:
        client = Client(archive.url, token.Token(TOKEN))
        client.content(f"{other.url}/dr10/v2.0/spectrum/fits/5001")
        assert "token" not in other.requests[0][1]


def test_redirects_in_circles_end(archive, client, tmp_path):
    archive.special["/file"] = Answer(b"", 302, Location="/file")
    error = trouble(client, tmp_path, f"{archive.url}/file")
    assert "circles" in str(error)
    assert len(archive.requests) == client_module.REDIRECTS + 1


def test_an_echoed_token_is_masked(archive, tmp_path):
    client = Client(archive.url, token.Token(TOKEN))
    archive.special["/file"] = message("bad", f"no file for token={TOKEN}")
    error = trouble(client, tmp_path, f"{archive.url}/file")
    assert "***" in str(error)
    assert TOKEN not in str(error)
    archive.special["/other"] = lambda *_: message("bad", TOKEN, status=400)
    assert TOKEN not in str(trouble(client, tmp_path, f"{archive.url}/other"))


def test_a_file_name_with_the_token_is_not_taken(archive, tmp_path):
    plain = "abc123secret"
    client = Client(archive.url, token.Token(plain))
    disposition = f'attachment; filename="{plain}.fits"'
    archive.special["/file"] = Answer(FITS, Content_Disposition=disposition)
    one = Item("test/7", (f"{archive.url}/file",), "own.fits", proposed=True)
    with Store(tmp_path) as store:
        outcome = batch.fetch(client, [one.key], lambda key: one, store)
    assert outcome.files == {"test/7": "own.fits"}


def test_nothing_is_logged_about_addresses(archive, caplog):
    caplog.set_level("DEBUG")
    client = Client(archive.url, token.Token(TOKEN))
    client.content(f"{archive.url}/dr12/v1.0/spectrum/fits/5001")
    assert "token" not in caplog.text
    assert repr(client.token) == "Token(***)"
    assert TOKEN not in f"{client.token} {client.token!r}"


def test_token_is_not_sent_unencrypted():
    with pytest.raises(UsageError, match="over http"):
        Client("http://www.lamost.org", token.Token(TOKEN))
    Client("https://www.lamost.org", token.Token(TOKEN))


# with these, one program or another stops verifying
CARELESS = {
    "PYTHONHTTPSVERIFY": "0",
    "REQUESTS_CA_BUNDLE": "",
    "CURL_CA_BUNDLE": "",
    "SSL_CERT_DIR": "",
    "GIT_SSL_NO_VERIFY": "1",
    "NODE_TLS_REJECT_UNAUTHORIZED": "0",
}


def test_certificates_are_verified(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("tls")
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -keyout key.pem "
    command += "-out cert.pem -subj /CN=localhost -addext subjectAltName=DNS:localhost"
    if subprocess.run(command.split(), cwd=folder, capture_output=True).returncode:
        pytest.skip("needs openssl")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    asked = []

    def serve():
        with contextlib.suppress(OSError):
            while True:
                answer(listener.accept()[0])

    def answer(plain):
        with (
            contextlib.suppress(OSError),
            plain,
            context.wrap_socket(plain, server_side=True) as line,
        ):
            asked.append(line.recv(9999))
            line.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"https://localhost:{listener.getsockname()[1]}"
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        for name, value in CARELESS.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(FetchError, match="certificate") as caught:
            Client(address, token.Token(TOKEN)).content(f"{address}/")
        assert caught.value.kind is Trouble.REFUSED
        # what the system trusts is trusted, but only under its own name
        monkeypatch.setenv("SSL_CERT_FILE", str(folder / "cert.pem"))
        other = address.replace("localhost", "127.0.0.1")
        with pytest.raises(FetchError, match="certificate"):
            Client(other).content(f"{other}/")
        assert not any(asked)  # of the request not a byte was sent
        assert Client(address).content(f"{address}/")[0] == b"hi"
        assert asked[-1].startswith(b"GET / HTTP/1.1")


def test_nothing_in_the_package_turns_verification_off():
    from pathlib import Path

    package = Path(client_module.__file__).parent.parent
    for path in package.rglob("*.py"):
        text = path.read_text()
        for bad in ("CERT_NONE", "verify=False", "check_hostname", "_unverified"):
            assert bad not in text, path
        found = re.findall(r"SSL_VERIFY\w+\W+(\w+)", text)
        assert found == (["1", "2"] if path.name == "wire.py" else []), path


@pytest.mark.parametrize(
    "address",
    ["www.lamost.org", "file:///etc", "ftp://x", "https://", "http://h:port", ""],
)
def test_addresses_that_are_none(address):
    with pytest.raises(UsageError, match="is no address"):
        Client(address)


def test_an_address_with_a_password_is_refused_and_not_repeated():
    with pytest.raises(UsageError) as caught:
        Client("https://me:hidden@example.org")
    assert "hidden" not in str(caught.value)


# ------------------------------------------------------------------------- statuses


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (Answer(b"", 500), Trouble.PASSING),
        (Answer(b"", 503), Trouble.PASSING),
        (Answer(b"", 401), Trouble.LOGIN),
        (Answer(b"", 403), Trouble.LOGIN),
        (Answer(b"", 404), Trouble.ABSENT),
        (Answer(b"", 418), Trouble.ANSWER),
        (Answer(LOGIN), Trouble.LOGIN),
        (Answer(b"<html>sorry</html>"), Trouble.DAMAGED),
        (message("no such obsid"), Trouble.ANSWER),
        (Answer(b""), Trouble.DAMAGED),
        (Answer(b"PK\3\4 something else"), Trouble.DAMAGED),
        (Answer(FITS, cut=100), Trouble.PASSING),
        (Answer(b"", 302, Location="https://login.example.org/oauth"), Trouble.LOGIN),
    ],
)
def test_what_follows_from_an_answer(archive, client, tmp_path, answer, kind):
    archive.special["/file"] = answer
    assert trouble(client, tmp_path, f"{archive.url}/file").kind is kind


@pytest.mark.parametrize(
    ("answer", "retries", "asked"),
    [
        (Answer(b"", 500), 4, 5),
        (Answer(LOGIN), 4, 5),
        (message("no"), 4, crew.ASKED),
        (message("no"), 1, 2),
        (Answer(b"", 404), 4, 1),
    ],
)
def test_how_often_is_asked(archive, client, tmp_path, answer, retries, asked):
    archive.special["/file"] = answer
    trouble(client, tmp_path, f"{archive.url}/file", retries=retries)
    assert len(archive.requests) == asked


def test_retry_after_is_heeded(archive, client, tmp_path):
    answers = [Answer(b"", 429, Retry_After="1"), Answer(FITS)]
    archive.special["/file"] = lambda *_: answers.pop(0)
    start = time.monotonic()
    assert fetch_one(client, tmp_path, f"{archive.url}/file", retries=1).files
    assert time.monotonic() - start >= 1


def test_retry_after_forms():
    wait = client_module._retry_after
    assert wait("7") == 7
    assert wait("1e9") == client_module.LONGEST_WAIT
    assert wait("Fri, 31 Dec 1999 23:59:59 GMT") == 0
    assert wait("Fri, 31 Dec 2999 23:59:59 GMT") == client_module.LONGEST_WAIT
    assert wait("nan") == wait("soon") == wait(None) == wait("-5") == 0


def test_rate_limit(archive):
    client = Client(archive.url, rate=50)
    start = time.monotonic()
    for _ in range(6):
        client.content(f"{archive.url}/openapi/dr_versions")
    assert time.monotonic() - start >= 5 / 50


def test_connections_are_kept(archive, few_spectra, tmp_path):
    client = Client(archive.url, connections=2)
    order = order_of(archive, few_spectra)
    fetch_order(client, order, tmp_path)
    assert len(archive.requests) == len(few_spectra)
    assert archive.lines <= 2


# ------------------------------------------------------------------------- batches


def unpacked(path, folder, *arguments):
    """Outcome of unpacking a tarball."""
    with Store(folder) as store:
        return nights.unpack(str(path), store, *arguments)


def order_of(archive, obsids):
    table = orders.from_list(list(obsids), "obsid")
    release = lamost.parse_release("10", "v2.0")
    return lamost.spectra(archive.url, release, table)


def fetch_order(client, order, folder, **options):
    with Store(folder, options.pop("overwrite", False)) as store:
        return batch.fetch(client, order.wanted, order.make, store, **options)


def assert_whole(folder, spectra):
    """The directory holds these files, byte for byte, and at most a journal."""
    there = {path.name: path.read_bytes() for path in folder.glob("[!.]*")}
    assert there == dict(spectra.values())
    hidden = {path.name for path in folder.glob(".*")}
    assert hidden <= {JOURNAL}


@pytest.mark.parametrize("kind", ["500", "cut", "json", "login", "truncated", "wrong"])
@pytest.mark.parametrize("seed", [1, 2])
def test_a_faulty_archive_loses_nothing(
    archive, few_spectra, tmp_path, monkeypatch, kind, seed
):
    archive.faults, archive.kinds = 0.25, [kind]
    archive.random.seed(seed)
    client = Client(archive.url, timeout=5.0)
    monkeypatch.setattr(crew, "ASKED", 12)  # it says no where it has the file
    outcome = fetch_order(client, order_of(archive, few_spectra), tmp_path, retries=12)
    assert not outcome.troubles
    assert archive.given
    assert_whole(tmp_path, few_spectra)


def test_all_faults_together(archive, few_spectra, tmp_path):
    archive.faults = 0.3
    archive.random.seed(4)
    kinds = [k for k in archive.kinds if k not in ("503", "429", "json")]
    archive.kinds, archive.hang = kinds, 5.0
    client = Client(archive.url, timeout=0.5)
    outcome = fetch_order(client, order_of(archive, few_spectra), tmp_path, retries=12)
    assert not outcome.troubles
    assert_whole(tmp_path, few_spectra)


def test_resume_fetches_what_is_missing_or_damaged(
    archive, few_spectra, tmp_path, client
):
    order = order_of(archive, few_spectra)
    fetch_order(client, order, tmp_path)
    names = sorted(path.name for path in tmp_path.glob("[!.]*"))
    (tmp_path / names[0]).unlink()
    (tmp_path / names[1]).write_bytes(b"cut")
    with pytest.raises(OutputExistsError, match="--resume"):
        fetch_order(client, order, tmp_path)
    archive.requests.clear()
    outcome = fetch_order(client, order, tmp_path, resume=True)
    assert len(archive.requests) == 2
    assert outcome.skipped == len(few_spectra) - 2
    assert_whole(tmp_path, few_spectra)
    archive.requests.clear()
    fetch_order(client, order, tmp_path, resume=True)
    assert archive.requests == []
    fetch_order(client, order, tmp_path, overwrite=True)
    assert len(archive.requests) == len(few_spectra)
    assert_whole(tmp_path, few_spectra)


@pytest.mark.parametrize(
    "end", [b'{"key": "lam', b"\xff\xfe", b"[]\n", b'{"key": 1}\n']
)
def test_a_journal_that_a_kill_has_cut(archive, few_spectra, tmp_path, client, end):
    order = order_of(archive, few_spectra)
    fetch_order(client, order, tmp_path)
    journal = tmp_path / JOURNAL
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:10]) + end)
    (tmp_path / f".spec-1.fits.gz{PART}").write_bytes(b"rest")
    outcome = fetch_order(client, order, tmp_path, resume=True)
    assert outcome.skipped == 10
    assert_whole(tmp_path, few_spectra)
    assert fetch_order(client, order, tmp_path, resume=True).skipped == len(few_spectra)


def test_two_runs_into_one_directory(archive, few_spectra, tmp_path, client):
    with (
        Store(tmp_path),
        pytest.raises(UsageError, match="another 'stellar fetch' is at work"),
    ):
        Store(tmp_path)
    assert os.listdir(tmp_path) == []


def test_somebody_elses_file_stays(archive, few_spectra, tmp_path, client):
    name, content = few_spectra[5003]
    (tmp_path / name).write_bytes(b"mine")
    outcome = fetch_order(client, order_of(archive, [5003]), tmp_path)
    assert (tmp_path / name).read_bytes() == b"mine"
    [other] = outcome.files.values()
    assert (tmp_path / other).read_bytes() == content


def test_two_files_of_one_name_are_both_kept(archive, few_spectra, tmp_path, client):
    first, second = few_spectra[5000], few_spectra[5001]
    archive.spectra = {5000: first, 5001: (first[0], second[1])}
    outcome = fetch_order(client, order_of(archive, [5000, 5001]), tmp_path)
    assert len(set(outcome.files.values())) == 2
    contents = {(tmp_path / name).read_bytes() for name in outcome.files.values()}
    assert contents == {first[1], second[1]}


def test_a_mirror_with_other_addresses(archive, few_spectra, tmp_path):
    archive.web_only = True
    client = Client(archive.url, connections=1)
    fetch_order(client, order_of(archive, few_spectra), tmp_path)
    assert_whole(tmp_path, few_spectra)
    assert len(archive.requests) == len(few_spectra) + 1  # the first one teaches


def test_an_archive_that_never_answers_ends_the_run(tmp_path):
    with Archive() as gone:
        pass  # the port is free again
    client = Client(gone.url, timeout=1.0)
    table = orders.from_list(range(1, 200), "obsid")
    release = lamost.parse_release("10", "v2.0")
    order = lamost.spectra(gone.url, release, table)
    with pytest.raises(StellarError, match=r"none of \d+ files could be fetched"):
        fetch_order(client, order, tmp_path, retries=1)


def test_an_archive_whose_answers_are_all_refused_ends_the_run(archive, tmp_path):
    obsids = list(range(1, 100))
    for obsid in obsids:
        path = f"/dr10/v2.0/spectrum/fits/{obsid}"
        archive.special[path] = Answer(b"", 302, Location="file:///etc/passwd")
    archive.web_only, archive.latency = True, 0.02
    with pytest.raises(StellarError, match=r"none of 20 files .* file:// is refused"):
        fetch_order(Client(archive.url), order_of(archive, obsids), tmp_path)
    assert len(archive.requests) < 2 * len(obsids)


def test_files_of_another_star_are_refused(archive, few_spectra, tmp_path, client):
    archive.spectra = {5000: few_spectra[5001]}
    outcome = fetch_order(client, order_of(archive, [5000]), tmp_path, retries=1)
    [error] = outcome.troubles.values()
    assert "OBSID is 5001, not 5000" in str(error)


def test_names_follow_the_content(archive, few_spectra, tmp_path, client):
    name, content = few_spectra[5000]
    plain = gzip.decompress(content)
    archive.spectra = {5000: (name, plain)}
    outcome = fetch_order(client, order_of(archive, [5000]), tmp_path)
    assert list(outcome.files.values()) == [name.removesuffix(".gz")]
    assert (tmp_path / name.removesuffix(".gz")).read_bytes() == plain


# -------------------------------------------------------------------- verification


def fits_bytes(*hdus, checksum=False):
    memory = io.BytesIO()
    fits.HDUList(list(hdus)).writeto(memory, checksum=checksum)
    return memory.getvalue()


@pytest.fixture
def table_file():
    columns = [fits.Column("A", "100E", array=np.arange(1000.0).reshape(10, 100))]
    image = fits.ImageHDU(np.arange(999, dtype="i2"))
    table = fits.BinTableHDU.from_columns(columns)
    return fits_bytes(fits.PrimaryHDU(), image, table, checksum=True)


@pytest.mark.parametrize("pack", PACKS, ids=["plain", "gzip", "bzip2"])
def test_whole_files_pass(table_file, tmp_path, pack):
    content = pack(table_file)
    assert verify.check(content).get("NAXIS") == 0
    (tmp_path / "a").write_bytes(content)
    assert verify.check_file(tmp_path / "a").get("NAXIS") == 0


@pytest.mark.parametrize("pack", PACKS, ids=["plain", "gzip", "bzip2"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.6, 0.8])
def test_cut_files_do_not_pass(table_file, tmp_path, pack, share):
    content = pack(table_file)
    cut = content[: int(share * len(content))]
    with pytest.raises(FetchError):
        verify.check(cut)
    (tmp_path / "a").write_bytes(cut)
    with pytest.raises(FetchError):
        verify.check_file(tmp_path / "a")


@pytest.mark.parametrize("place", [-4000, -100, 2880 * 4 + 10])
def test_checksums_find_a_changed_bit(table_file, place):
    damaged = bytearray(table_file)
    damaged[place] ^= 1
    with pytest.raises(FetchError, match=r"DATASUM|CHECKSUM"):
        verify.check(bytes(damaged))


def test_checksum_of_the_header(table_file):
    assert table_file.count(b"XTENSION= 'BINTABLE'") == 1
    damaged = table_file.replace(b"EXTNAME", b"EXTNAMF").replace(b"TTYPE1", b"TTYPE2")
    with pytest.raises(FetchError, match="CHECKSUM"):
        verify.check(damaged)


def test_ones_complement_sum_by_hand():
    # 0xFFFFFFFF + 1 wraps to 0, carry 1: 1
    assert verify._ones_sum(b"\xff\xff\xff\xff\x00\x00\x00\x01") == 1
    assert verify._ones_sum(b"\x00\x00\x00\x02", 0xFFFFFFFF) == 2


@pytest.mark.parametrize("value", [b"'A'", b"-1", b"99999999999"])
def test_nonsense_headers(value):
    card = b"NAXIS   = " + value.rjust(20)
    with pytest.raises(FetchError, match="damaged"):
        verify.check(FITS.replace(FITS[160:240], card.ljust(80)))


# -------------------------------------------------------------------- large files


@pytest.fixture
def large(archive):
    rng = np.random.default_rng(3)
    data = fits_bytes(
        fits.PrimaryHDU(rng.integers(0, 255, (900, 1000), dtype=np.uint8))
    )
    archive.static["/large.fits"] = data
    return data


def ranges(archive):
    return [headers.get("range") for _, _, headers in archive.requests]


def test_a_large_file_goes_on_where_it_was_cut(archive, large, client, tmp_path):
    whole = archive.file
    cuts = [300_000, 250_000, 300_000]

    def answer(path, query, headers):
        found = whole(large, headers)
        found.cut = cuts.pop() if cuts else None
        return found

    archive.special["/large.fits"] = answer
    target = tmp_path / "large.fits"
    transfer.download(client, [f"{archive.url}/large.fits"], target)
    assert target.read_bytes() == large
    assert ranges(archive) == [
        None,
        "bytes=300000-",
        "bytes=550000-",
        "bytes=850000-",
    ]
    assert os.listdir(tmp_path) == ["large.fits"]


def interrupted(archive, client, large, target):
    """Leave a third of a file behind."""
    found = archive.file(large, {})
    found.cut = len(large) // 3
    archive.special["/large.fits"] = found
    with pytest.raises(FetchError, match="cut"):
        transfer.download(client, [f"{archive.url}/large.fits"], target, retries=0)
    del archive.special["/large.fits"]
    assert not target.exists()
    archive.requests.clear()


def test_resume_of_a_large_file(archive, large, client, tmp_path):
    target = tmp_path / "large.fits"
    interrupted(archive, client, large, target)
    transfer.download(client, [f"{archive.url}/large.fits"], target, resume=True)
    assert ranges(archive) == [f"bytes={len(large) // 3}-"]
    assert target.read_bytes() == large


def test_a_file_that_changed_meanwhile_is_fetched_anew(
    archive, large, client, tmp_path
):
    target = tmp_path / "large.fits"
    interrupted(archive, client, large, target)
    changed = large.replace(b"\1", b"\2")
    archive.static["/large.fits"] = changed
    transfer.download(client, [f"{archive.url}/large.fits"], target, resume=True)
    assert target.read_bytes() == changed


def test_a_server_that_sends_another_range(archive, large, client, tmp_path):
    target = tmp_path / "large.fits"
    interrupted(archive, client, large, target)

    def lie(path, query, headers):
        answer = archive.file(large, headers)
        if "range" in headers:
            answer.headers["Content-Range"] = f"bytes 0-9/{len(large)}"
        return answer

    archive.special["/large.fits"] = lie
    address = f"{archive.url}/large.fits"
    transfer.download(client, [address], target, resume=True, retries=2)
    assert target.read_bytes() == large


def test_a_damaged_large_file_is_not_kept(archive, large, client, tmp_path):
    archive.static["/large.fits"] = large[:-5000]
    with pytest.raises(FetchError, match="cut short"):
        transfer.download(
            client, [f"{archive.url}/large.fits"], tmp_path / "a.fits", retries=1
        )
    assert os.listdir(tmp_path) == []


def test_a_file_larger_than_the_disk(archive, client, tmp_path, monkeypatch):
    address, target = f"{archive.url}/large.fits", tmp_path / "a.fits"
    archive.special["/large.fits"] = Answer(FITS, length=1 << 60)
    with pytest.raises(FetchError, match="1152921504606846976 bytes, where") as caught:
        transfer.download(client, [address], target)
    assert caught.value.kind is Trouble.REFUSED
    monkeypatch.setattr(transfer, "RESERVE", 1 << 60)
    archive.special["/large.fits"] = Answer(FITS, length=1 << 30)
    with pytest.raises(StellarError, match=r"needs 1\.07 GB, and 0\.00 GB are"):
        transfer.download(client, [address], target)
    archive.special["/large.fits"] = endless
    with pytest.raises(StellarError, match=r"needs more, and 0\.00 GB are"):
        transfer.download(client, [address], target)


# --------------------------------------------------------------------- tarballs


def tarball(members, mode="w:gz"):
    memory = io.BytesIO()
    with tarfile.open(fileobj=memory, mode=mode) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return memory.getvalue()


def test_a_night(few_spectra, tmp_path):
    inside = {f"20231101/{name}": content for name, content in few_spectra.values()}
    (tmp_path / "night.tar.gz").write_bytes(tarball(inside))
    out = tmp_path / "out"
    outcome = unpacked(tmp_path / "night.tar.gz", out, "lamost/x/lrs")
    assert len(outcome.files) == len(few_spectra)
    assert outcome.files["lamost/x/lrs/5003"] == few_spectra[5003][0]
    assert_whole(out, few_spectra)


def test_part_of_a_night(few_spectra, tmp_path):
    inside = dict(few_spectra.values())
    (tmp_path / "night.tar").write_bytes(tarball(inside, "w"))
    wanted = {5001: "lamost/x/lrs/5001", 1: "lamost/x/lrs/1"}
    outcome = unpacked(tmp_path / "night.tar", tmp_path / "out", "lamost/x/lrs", wanted)
    assert outcome.files == {"lamost/x/lrs/5001": few_spectra[5001][0]}
    assert "not in the tarball" in str(outcome.troubles["lamost/x/lrs/1"])


def test_a_hostile_tarball(few_spectra, tmp_path):
    name, content = few_spectra[5000]
    members = {
        "../../escaped.fits.gz": few_spectra[5001][1],
        "/absolute.fits.gz": few_spectra[5002][1],
        "link.fits.gz": "/etc/passwd",
        "damaged.fits.gz": content[:-100],
        ".hidden.fits.gz": content,
        "script.sh": b"rm -rf /",
        name: content,
    }
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    (tmp_path / "night.tar.gz").write_bytes(tarball(members))
    outcome = unpacked(tmp_path / "night.tar.gz", folder, "p")
    assert set(os.listdir(folder)) == {
        JOURNAL,
        name,
        "escaped.fits.gz",
        "absolute.fits.gz",
    }
    assert set(os.listdir(tmp_path)) == {"a", "night.tar.gz"}
    assert list(outcome.troubles) == ["p/damaged.fits.gz"]


def test_a_cut_tarball(few_spectra, tmp_path):
    whole = tarball(dict(few_spectra.values()))
    (tmp_path / "night.tar.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StellarError, match="can't be read to its end"):
        unpacked(tmp_path / "night.tar.gz", tmp_path / "out", "p")
    with pytest.raises(FetchError, match="damaged"):
        nights.check_gzip(tmp_path / "night.tar.gz")


# ----------------------------------------------------------------- releases, tables


@pytest.mark.parametrize(
    "answer",
    [
        {
            "versions": [
                {"dr_version": "dr10", "sub_version": "v2.0", "public_status": "public"}
            ]
        },
        [{"dr": "dr10", "version": "v2.0", "public": True}],
        {"dr10": ["v1.0", "v2.0"], "dr9": ["v1.0"]},
        {"public": ["dr10/v2.0"], "internal": ["dr12/v1.0"]},
        {"data": {"dr10": {"v": [{"name": "v2.0"}]}}},
    ],
)
def test_shapes_of_the_list_of_releases(answer):
    found = set(lamost._releases_in(answer))
    assert "dr10/v2.0" in {release.name for release in found}
    for release in found:
        if release.name == "dr12/v1.0":
            assert release.public is False


@pytest.mark.parametrize("answer", [None, 3, "x", [], {}, {"error": "no"}, [[[]]]])
def test_other_shapes_are_no_obstacle(archive, answer):
    archive.releases = answer
    chosen = lamost.choose(Client(archive.url), "10", "v2.0", 0)
    assert chosen.name == "dr10/v2.0"
    assert chosen.public is None
    with pytest.raises(UsageError, match="give --dr and --version"):
        lamost.choose(Client(archive.url), "10", None, 0)


def test_the_newest_public_release(archive):
    client = Client(archive.url)
    assert lamost.choose(client, None, None, 0).name == "dr10/v2.0"
    assert lamost.choose(client, "dr9", None, 0).name == "dr9/v2.0"
    assert lamost.choose(client, "12", None, 0).public is False
    with pytest.raises(UsageError, match=r"'dr11'.*dr9, dr10, dr12"):
        lamost.choose(client, "11", None, 0)
    with pytest.raises(UsageError, match=r"dr10/v1.0, dr10/v2.0"):
        lamost.choose(client, "10", "v7", 0)


@pytest.mark.parametrize(
    "content",
    [
        b"obsid,ra,name\n7,1.5,a\n8,2.5,b\n",
        b"obsid|ra|name\n7|1.5|a\n8|2.5|b\n",
        b"# comment\nobsid\tra\tname\n7\t1.5\ta\n8\t2.5\tb\n",
        b'[{"obsid": 7, "ra": 1.5, "name": "a"}, {"obsid": 8, "ra": 2.5, "name": "b"}]',
        b'{"a": {"b": [{"obsid": 7, "ra": 1.5, "name": "a"}, '
        b'{"obsid": 8, "ra": 2.5, "name": "b"}]}}',
    ],
)
def test_tables_of_every_format(content):
    table = orders.parse_answer(content, "answer")
    assert table.rows["obsid"].tolist() == [7, 8]
    np.testing.assert_allclose(table.rows["ra"], [1.5, 2.5])
    assert table.rows["name"].tolist() == ["a", "b"]


def votable(rows):
    from astropy.table import Table

    memory = io.BytesIO()
    Table(rows).write(memory, format="votable")
    return memory.getvalue()


def test_votables():
    table = orders.parse_answer(votable({"obsid": [7, 8], "ra": [1.5, 2.5]}), "answer")
    assert table.rows["obsid"].tolist() == [7, 8]
    error = (
        b'<?xml version="1.0"?><VOTABLE version="1.3"><RESOURCE type="results">'
        b'<INFO name="QUERY_STATUS" value="ERROR">no column tef</INFO>'
        b"</RESOURCE></VOTABLE>"
    )
    with pytest.raises(FetchError, match="no column tef") as caught:
        orders.parse_answer(error, "answer")
    assert caught.value.kind is Trouble.ANSWER


def test_votables_with_entities_are_refused():
    bomb = b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "b">]><VOTABLE/>'
    with pytest.raises(FetchError, match="no plain VOTable"):
        orders.parse_answer(bomb, "answer")


@pytest.mark.parametrize("content", [b"", b"<html></html>", b"{}", b"[1, 2]", b"{"])
def test_answers_that_are_no_table(content):
    with pytest.raises(FetchError):
        orders.parse_answer(content, "answer")


def test_the_table_of_files(archive, few_spectra, tmp_path, client):
    rows = np.array(
        [(5001, "mine", 0.5), (1, "x", 1.5), (5000, "y", 2.5), (-9999, "z", 3.5)],
        dtype=[("obsid", "i8"), ("file", "U8"), ("snrg", "f4")],
    )
    release = lamost.parse_release("10", "v2.0")
    order = lamost.spectra(
        archive.url, release, catalog.Table(rows, units={"snrg": "K"})
    )
    outcome = fetch_order(client, order, tmp_path, retries=1)
    table, columns = orders.table_of(order, outcome, "raw/")
    assert [column.name for column in columns] == [
        "file",
        "obsid",
        "file_in",
        "snrg",
        "fetch_error",
    ]
    files = table["file"].astype(str).tolist()
    assert files[0] == f"raw/{few_spectra[5001][0]}"
    assert files[1] == "raw/lamost-lrs-1.fits"
    assert files[2] == f"raw/{few_spectra[5000][0]}"
    reasons = table["fetch_error"].astype(str).tolist()
    assert [bool(reason) for reason in reasons] == [False, True, False, True]
    assert "no spectrum of obsid 1" in reasons[1]
    assert table["file_in"].astype(str).tolist() == ["mine", "x", "y", "z"]
    assert [c.unit for c in columns if c.name == "snrg"] == ["K"]


# ----------------------------------------------------------------------- tokens


def test_tokens_from_files(tmp_path_factory, monkeypatch):
    monkeypatch.delenv(token.ENVIRONMENT, raising=False)
    folder = tmp_path_factory.mktemp("tokens")  # tmp_path is searched for the token
    for text in (TOKEN, f"\n{TOKEN}\n\n", f"# mine\ntoken = {TOKEN}\nother=1\n"):
        (folder / "t").write_text(text)
        assert token.find(str(folder / "t")).reveal() == TOKEN
    for text in ("", "two words", "a\nb", "é"):
        (folder / "t").write_text(text)
        with pytest.raises(UsageError, match="holds no token"):
            token.find(str(folder / "t"))
    with pytest.raises(UsageError, match="No such file"):
        token.find(str(folder / "none"))
    monkeypatch.setenv(token.ENVIRONMENT, TOKEN)
    assert token.find().reveal() == TOKEN
    monkeypatch.delenv(token.ENVIRONMENT)
    assert token.find() is None
    assert token.find(ask=lambda: TOKEN).reveal() == TOKEN


def test_digests(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    transfer.check_digest(tmp_path / "a", "md5", hashlib.md5(b"abc").hexdigest())
    with pytest.raises(FetchError, match="published"):
        transfer.check_digest(tmp_path / "a", "sha256", "0" * 64)
