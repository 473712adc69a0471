"""``stellar fetch`` as it is typed: subcommands, exit statuses, kills, full disks."""

import gzip
import hashlib
import io
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import parse_qs, quote

import numpy as np
import pytest
import surveyfiles
from archiveserver import LOGIN, TOKEN, Answer, Archive, message
from astropy.table import Table
from conftest import Done, program
from test_archives import assert_whole, tarball, votable

from stellarcli import catalog, checkpoint
from stellarcli.archives import crew, sdss, verification
from stellarcli.archives.store import JOURNAL, PART

RELEASE = ("--dr", "10", "--version", "v2.0")


def spread(*arguments, before=""):
    """As `program`; even a few files are spread over processes."""
    code = (
        f"{before}\nimport sys\nfrom stellarcli.archives import crew\n"
        "crew.MANY, crew.FIRST_WAIT = 1, 0.01\nsys.argv[0] = 'stellar'\n"
        "from stellarcli.__main__ import main\nmain()"
    )
    words, environment = program(*arguments)
    return [sys.executable, "-c", code, *words[3:]], environment


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(crew, "FIRST_WAIT", 0.01)


@pytest.fixture
def catalogue(here, few_spectra):
    """A catalogue of the archive's spectra, as surveys publish them."""
    obsids = sorted(few_spectra)
    rows = {
        "OBSID": obsids,
        "snrg": np.linspace(1, 100, len(obsids)),
        "teff": np.linspace(4000, 7000, len(obsids)),
        "designation": [f"J{n}" for n in obsids],
    }
    Table(rows).write(here / "cat.fits")
    return here / "cat.fits"


@pytest.fixture
def lamost(stellar, archive):
    """Run ``stellar fetch lamost`` of a release that needs no question."""

    def run(*arguments, release=RELEASE):
        return stellar("fetch", "lamost", *release, *arguments)

    return run


def spectra(folder):
    return sorted(path.name for path in Path(folder).glob("[!.]*"))


# --------------------------------------------------------------------- what to fetch


def test_by_identifier(lamost, few_spectra, here):
    done = lamost("--obsid", "5003, 5001", "--obsid", "5002", "-o", "raw")
    assert done.status == 0, done.err
    assert spectra("raw") == [few_spectra[n][0] for n in (5001, 5002, 5003)]
    assert "3 files in raw" in done.err


@pytest.mark.parametrize(
    ("text", "files", "failed"),
    [
        ("\ufeffobsid,ra\n5001,1\n5002,2\n", 2, []),  # a byte-order mark
        ("ra,ObsID\r\n1,5001\r\n2,5002\r\n", 2, []),
        ("obsid,ra\n 5001 ,1\n5002  ,2\n", 2, []),
        ("obsid\n5001\n5002\n5001\n", 2, []),
        ("obsid,ra\n5001.0,1\n5002.5,2\n,3\n-9999,4\n", 1, [2, 3, 4]),
    ],
)
def test_lists_as_people_write_them(lamost, here, text, files, failed):
    Path("list.csv").write_bytes(text.encode())
    done = lamost("--from", "list.csv", "-o", "raw", "--log", "log")
    assert done.status == (3 if failed else 0), done.err
    assert len(spectra("raw")) == files
    for row in failed:
        assert f"row {row}: the row has no identifier" in Path("log").read_text()


def test_from_a_catalogue_with_a_filter(lamost, few_spectra, catalogue):
    done = lamost("--from", "cat.fits[1][snrg>50]", "-o", "raw", "--table", "t.fits")
    assert done.status == 0, done.err
    table = catalog.read("t.fits")
    assert len(table.rows) == sum(np.linspace(1, 100, 20) > 50)
    assert table.rows["teff"].min() > 5400
    assert table.rows.dtype.names[0] == "file"
    for row in table.rows:
        assert row["file"] == f"raw/{few_spectra[row['OBSID']][0]}"
    assert "fetch lamost" in table.header["COMMAND"]


def test_end_to_end(lamost, stellar, catalogue, model):
    piped = lamost("--from", "cat.fits[1][snrg>50]", "-o", "raw", "--table", "-")
    assert piped.status == 0
    done = stellar("predict", "-", "-o", "p.fits", "--model", model, stdin=piped.out)
    assert done.status == 0, done.err
    found = catalog.read("p.fits").rows
    assert found["objid"].astype(int).tolist() == list(range(5010, 5020))
    assert np.isfinite(found["teff"]).all()


def test_from_standard_input(process, archive, catalogue):
    done = process(
        *("fetch", "lamost", *RELEASE, "--from", "-", "-o", "raw", "--table", "t.fits"),
        input=catalogue.read_bytes(),
    )
    assert done.status == 0, done.err
    assert len(spectra("raw")) == 20


def test_cone(lamost, archive, here):
    def answer(path, query, headers):
        assert (query["ra"], query["dec"], query["sr"]) == ("150.1", "-2.2", "0.5")
        return Answer(votable({"obsid": [5001, 5002], "ra": [150.1, 150.2]}))

    archive.special["/openapi/dr10/v2.0/lrs/voservice/conesearch"] = answer
    done = lamost("--cone", "150.1,-2.2,0.5", "-o", "raw", "--table", "t.fits")
    assert done.status == 0, done.err
    assert catalog.read("t.fits").rows["ra"].tolist() == [150.1, 150.2]


def test_sql(lamost, archive, here):
    seen = []

    def answer(path, query, headers):
        seen.append(query["sql"])
        return Answer(b"obsid,teff\n5001,5777\n")

    archive.special["/openapi/dr10/v2.0/sql"] = answer
    query = "select obsid, teff from combined where teff > 5000 and class = 'STAR'"
    done = lamost("--sql", query, "-o", "raw", "--table", "t.fits")
    assert done.status == 0, done.err
    assert seen == [query]
    assert catalog.read("t.fits").rows["teff"].tolist() == [5777]


def test_medium_resolution(lamost, archive, here):
    path = surveyfiles.lamost_mrs(here / "med-1.fits.gz", OBSID=42)
    archive.spectra[42] = (path.name, path.read_bytes())
    done = lamost("--mrs", "--obsid", "42", "-o", "raw")
    assert done.status == 0, done.err
    assert "/openapi/dr10/v2.0/mrs/spectrum/fits?obsid=42" in archive.requests[-1][1]
    assert spectra("raw") == ["med-1.fits.gz"]


def test_only_get_requests(lamost, archive, catalogue):
    assert lamost("--from", "cat.fits", "-o", "raw").status == 0
    assert lamost("--from", "cat.fits", "-o", "raw2", "--dry-run").status == 0
    assert {method for method, *_ in archive.requests} == {"GET"}


def test_dry_run(lamost, few_spectra, catalogue):
    done = lamost("--from", "cat.fits", "-o", "raw", "--dry-run", "--json")
    assert done.status == 0
    assert done.json["files"] == 20
    size = sum(len(content) for _, content in few_spectra.values())
    assert abs(done.json["bytes_about"] / size - 1) < 0.05
    assert not Path("raw").exists()


def test_json_summary(lamost, catalogue):
    done = lamost("--from", "cat.fits", "-o", "raw", "--json", "--quiet")
    assert done.json["files"] == 20
    assert done.json["failed"] == 0
    assert done.err == ""


# --------------------------------------------------------------------- what can fail


def test_a_missing_identifier_is_a_failed_row(lamost, few_spectra, here):
    done = lamost(
        *("--obsid", "5001,777", "-o", "raw", "--table", "t.fits"),
        *("--failures", "failed.fits", "--log", "log"),
    )
    assert done.status == 3
    assert "there is no spectrum of obsid 777" in done.err
    rows = catalog.read("t.fits").rows
    assert rows["obsid"].tolist() == [5001, 777]
    assert "no spectrum" in rows["fetch_error"][1]
    assert spectra("raw") == [few_spectra[5001][0]]
    assert "777" in Path("log").read_text()
    failed = catalog.read("failed.fits").rows
    assert failed["obsid"].tolist() == [777]


def test_failures_can_be_fetched_again(lamost, archive, few_spectra, here):
    lamost("--obsid", "5001,777", "-o", "raw", "--failures", "failed.fits")
    _, content = few_spectra[5002]
    archive.spectra[777] = ("new.fits.gz", changed_obsid(content, 777))
    done = lamost("--from", "failed.fits", "-o", "raw", "--table", "t.fits")
    assert done.status == 0, done.err
    assert catalog.read("t.fits").rows["fetch_error"].tolist() == [""]


def changed_obsid(content, obsid):
    plain = gzip.decompress(content)
    assert plain.count(b"5002") == 1
    return gzip.compress(plain.replace(b"5002", f"{obsid:4d}".encode()))


def test_failed_rows_are_flagged_by_predict(lamost, stellar, model, here):
    piped = lamost("--obsid", "5001,777", "-o", "raw", "--table", "-")
    done = stellar("predict", "-", "-o", "p.fits", "--model", model, stdin=piped.out)
    assert done.status == 3
    found = catalog.read("p.fits").rows
    assert np.isfinite(found["teff"]).tolist() == [True, False]
    assert "777" in found["file"][1]


def test_login_pages_everywhere(lamost, archive, catalogue):
    archive.faults, archive.kinds = 1.0, ["login"]
    done = lamost("--from", "cat.fits", "-o", "raw", "--retries", "1")
    assert done.status == 4
    assert "--token-file" in done.err
    assert spectra("raw") == []


def test_login_pages_of_some(lamost, archive, few_spectra, catalogue):
    for obsid in (5001, 5002):
        archive.spectra[obsid] = ("page", LOGIN)
    done = lamost("--from", "cat.fits", "-o", "raw", "--retries", "1")
    assert done.status == 3
    assert len(spectra("raw")) == 18


def test_an_archive_that_is_away(stellar, here):
    with Archive() as gone:
        pass
    arguments = ("--obsid", "1", "-o", "raw", "--retries", "1", "--url", gone.url)
    done = stellar("fetch", "lamost", *RELEASE, *arguments)
    assert done.status == 1
    assert "--url" in done.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "--obsid, --from, --cone or --sql"),
        (("--obsid", "1", "--cone", "1,2,3"), "say once"),
        (("--obsid", "12a"), "'12a'"),
        (("--obsid", "-5"), "'-5'"),
        (("--cone", "1,2"), "RA,DEC,RADIUS"),
        (("--cone", "400,2,1"), "RA is 400"),
        (("--cone", "1,95,1"), "DEC is 95"),
        (("--cone", "1,2,0"), "RADIUS is 0"),
        (("--cone", "nan,2,1"), "RA is nan"),
        (("--from", "none.fits"), "there is no table none.fits"),
        (("--from", "other.csv"), "obsid or objid"),
        (("--from", "bare.csv"), "into its first line"),
        (("--from", "semicolons.csv"), "semicolons between them"),
        (("--from", "tabs.csv"), "tabs between them"),
        (("--from", "empty.csv"), "has no rows"),
        (("--from", "list.txt"), "has to end in .csv"),
        (("--from", "cut.fits"), "a whole table"),
        (("--from", "cat.fits[1][snr>5]"), "filter in brackets"),
        (("--from", "cat.fits[1][snrg>1e9]"), "has no rows"),
        (("--from-tar", "yesterday"), "20231101"),
        (("--obsid", "5001", "--url", "lamost"), "is no address"),
        (("--obsid", "5001", "--table", "t.txt"), "format of 't.txt'"),
        (("--obsid", "5001", "--token-file", "none"), "none"),
    ],
)
def test_wrong_arguments(lamost, archive, catalogue, arguments, words):
    Path("other.csv").write_text("ra,dec\n1,2\n")
    Path("bare.csv").write_text("5001\n5002\n")
    Path("list.txt").write_text("5001\n5002\n")
    Path("semicolons.csv").write_text("obsid;ra\n5001;2\n")
    Path("tabs.csv").write_text("obsid\tra\n5001\t2\n")
    Path("empty.csv").write_text("obsid,ra\n")
    Path("cut.fits").write_bytes(catalogue.read_bytes()[:6000])
    archive.releases = {"another": "shape"}  # so that a token could be needed
    done = lamost(*arguments, "-o", "raw")
    assert done.status == 2, done.err
    assert words in done.err
    assert not spectra("raw")


@pytest.mark.parametrize(
    ("release", "words"),
    [
        (("--dr", "11"), "Valid: dr9, dr10, dr12"),
        (("--dr", "ten"), "'ten'"),
        (("--dr", "10", "--version", "v3.1"), "dr10/v1.0, dr10/v2.0"),
        (("--version", "new"), "'new'"),
    ],
)
def test_wrong_releases(lamost, here, release, words):
    done = lamost("--obsid", "5001", "-o", "raw", release=release)
    assert done.status == 2
    assert words in done.err


def test_the_newest_public_release_is_the_default(lamost, archive, here):
    done = lamost("--obsid", "5001", "-o", "raw", release=())
    assert done.status == 0
    assert "/openapi/dr10/v2.0/" in archive.requests[-1][1]


def test_a_query_that_the_archive_refuses(lamost, archive, here):
    archive.special["/openapi/dr10/v2.0/sql"] = message(
        "Bad Request", "column tef does not exist", status=400
    )
    done = lamost("--sql", "select tef from combined", "-o", "raw")
    assert done.status == 2
    assert "column tef does not exist" in done.err


def test_a_query_without_identifiers(lamost, archive, here):
    archive.special["/openapi/dr10/v2.0/sql"] = Answer(b"teff\n5777\n")
    done = lamost("--sql", "select teff from combined", "-o", "raw")
    assert done.status == 2
    assert "It has: teff" in done.err


def test_the_directory_is_a_file(lamost, here):
    Path("raw").write_text("")
    done = lamost("--obsid", "5001", "-o", "raw")
    assert done.status == 2
    assert "raw is a file" in done.err


# ------------------------------------------------------------------------- tokens


def internal(stellar, *arguments):
    words = ("--dr", "12", "--version", "v1.0", "--obsid", "5001", "-o", "raw")
    return stellar("fetch", "lamost", *words, *arguments)


def test_public_releases_get_no_token(lamost, archive, here, monkeypatch):
    monkeypatch.setenv("STELLAR_LAMOST_TOKEN", TOKEN)
    assert lamost("--obsid", "5001", "-o", "raw").status == 0
    assert all("token" not in target for _, target, _ in archive.requests)


def test_internal_releases_want_one(stellar, archive, here):
    done = internal(stellar)
    assert done.status == 4
    assert "STELLAR_LAMOST_TOKEN" in done.err
    assert not spectra("raw")


def test_token_from_the_environment(stellar, archive, here, monkeypatch):
    monkeypatch.setenv("STELLAR_LAMOST_TOKEN", TOKEN)
    done = internal(stellar, "--table", "t.fits", "--log", "log", "--verbose")
    assert done.status == 0, done.err
    [query] = [parse_qs(t.partition("?")[2]) for _, t, _ in archive.requests[1:]]
    assert query["token"] == [TOKEN]
    assert "user-agent" in archive.requests[1][2]


def test_token_from_a_file(stellar, archive, here, tmp_path_factory):
    file = tmp_path_factory.mktemp("token") / "token"
    file.write_text(f"{TOKEN}\n")
    assert internal(stellar, "--token-file", file).status == 0


def test_a_token_that_is_not_accepted(stellar, archive, here, monkeypatch):
    monkeypatch.setenv("STELLAR_LAMOST_TOKEN", "wrong-one")
    done = internal(stellar, "--retries", "1")
    assert done.status == 4
    assert "not accepted" in done.err
    assert "wrong-one" not in done.err


@pytest.mark.skipif(not os.path.exists("/proc/self/cmdline"), reason="needs /proc")
def test_the_token_is_in_no_process_list(archive, here):
    archive.special["/openapi/dr12/v1.0/lrs/spectrum/fits"] = lambda *_: None
    words, environment = spread(
        *("fetch", "lamost", "--dr", "12", "--version", "v1.0"),
        *("--obsid", "5001", "-o", "raw"),
    )
    environment["STELLAR_LAMOST_TOKEN"] = TOKEN
    process = subprocess.Popen(words, env=environment, stderr=subprocess.PIPE)
    try:
        wait_until(lambda: archive.requests and "token" in archive.requests[-1][1])
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                assert TOKEN.encode() not in entry.read_bytes()
            except OSError:
                continue  # it has ended
    finally:
        process.send_signal(signal.SIGINT)
        errors = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert TOKEN.encode() not in errors
    assert b"--resume" in errors


def test_the_token_is_looked_for(archive, here):
    """What watches over all tests does find it."""
    command = ["printenv", "SECRET"]
    for shown in (TOKEN, quote(TOKEN), quote(TOKEN, safe="")):
        environment = {**os.environ, "SECRET": f"it is {shown}!"}
        with pytest.raises(AssertionError, match="a token is shown"):
            subprocess.run(command, env=environment, capture_output=True)
        with pytest.raises(AssertionError, match="a token is shown"):
            subprocess.run(["true", shown])
        with pytest.raises(AssertionError, match="a token is shown"):
            Done(0, b"", f"failed: {shown}")


# ---------------------------------------------------------------- resume and disks


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_existing_files_are_refused_then_skipped(lamost, few_spectra, catalogue):
    assert lamost("--from", "cat.fits", "-o", "raw", "--table", "t.fits").status == 0
    before = Path("t.fits").read_bytes()
    done = lamost("--from", "cat.fits", "-o", "raw")
    assert done.status == 2
    assert "--resume" in done.err
    done = lamost("--from", "cat.fits", "-o", "raw", "--table", "t.fits", "--resume")
    assert done.status == 0, done.err
    assert "20 were there" in done.err
    assert Path("t.fits").read_bytes() == before


def children(number):
    """Paths in /proc of a process's children; none where there is no /proc."""
    try:
        text = Path(f"/proc/{number}/task/{number}/children").read_text()
    except OSError:
        return []
    return [f"/proc/{word}" for word in text.split()]


def test_an_interrupt_in_the_middle(lamost, catalogue, monkeypatch):
    """What was begun is given up, and it is said how to go on."""
    check, count = verification.check, itertools.count()

    def interrupted(*arguments):
        if next(count) == 5:
            raise KeyboardInterrupt
        return check(*arguments)

    monkeypatch.setattr(verification, "check", interrupted)
    done = lamost("--from", "cat.fits", "-o", "raw", "--connections", "2")
    assert done.status == 130
    assert "files are whole; the same command with --resume goes on" in done.err
    assert not list(Path("raw").glob(f".*{PART}"))
    assert lamost("--from", "cat.fits", "-o", "raw", "--resume").status == 0
    assert len(spectra("raw")) == 20


@pytest.mark.skipif(sys.platform != "linux", reason="forks only there")
def test_a_faulty_archive_and_several_processes(archive, catalogue):
    archive.faults, archive.hang = 0.3, 5.0
    archive.random.seed(7)
    kinds = [k for k in archive.kinds if k not in ("503", "429", "json")]
    archive.kinds = kinds
    words, environment = spread(
        *("fetch", "lamost", *RELEASE, "--from", "cat.fits", "-o", "raw", "--json"),
        *("--timeout", "0.5", "--retries", "12"),
    )
    done = subprocess.run(words, env=environment, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["files"] == 20
    assert archive.given
    assert_whole(Path("raw"), archive.spectra)


@pytest.mark.skipif(sys.platform != "linux", reason="forks only there")
def test_jumps_of_the_clock_change_nothing(archive, catalogue):
    archive.faults, archive.kinds = 0.3, ("cut", "truncated")
    archive.random.seed(7)
    jumps = (
        "import itertools, time\nreal = time.time\n"
        "jumps = itertools.cycle((1e9, -1e9, 0))\n"
        "time.time = lambda: real() + next(jumps)\n"
    )
    arguments = ("fetch", "lamost", *RELEASE, "--from", "cat.fits", "-o", "raw")
    for more in ((), ("--resume",)):
        words, environment = spread(*arguments, *more, before=jumps)
        done = subprocess.run(words, env=environment, capture_output=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert_whole(Path("raw"), archive.spectra)
    assert archive.given
    assert b"20 were there" in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="forks only there")
def test_processes_keep_to_one_rate(archive, catalogue):
    start = time.monotonic()
    words, environment = spread(
        *("fetch", "lamost", *RELEASE, "--from", "cat.fits", "-o", "raw"),
        *("--rate", "20"),
    )
    subprocess.run(words, env=environment, check=True, timeout=60, capture_output=True)
    assert time.monotonic() - start >= 19 / 20


@pytest.mark.skipif(sys.platform != "linux", reason="forks only there")
def test_a_process_that_is_killed(archive, few_spectra, catalogue):
    archive.latency = 0.3
    words, environment = spread(
        *("fetch", "lamost", *RELEASE, "--from", "cat.fits", "-o", "raw"),
        *("--connections", "2"),
    )
    process = subprocess.Popen(words, env=environment, stderr=subprocess.PIPE)
    wait_until(lambda: len(spectra("raw")) >= 2)
    os.kill(int(children(process.pid)[0].rpartition("/")[2]), signal.SIGKILL)
    errors = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 1
    assert "was killed" in errors
    assert "--resume" in errors
    there = {path.name: path.read_bytes() for path in Path("raw").glob("[!.]*")}
    assert there.items() <= dict(few_spectra.values()).items()
    assert {path.name for path in Path("raw").glob(".*")} == {JOURNAL}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_killed_run_goes_on(archive, few_spectra, catalogue, number):
    archive.latency = 0.2
    arguments = ("fetch", "lamost", *RELEASE, "--from", "cat.fits", "-o", "raw")
    words, environment = spread(*arguments, "--connections", "2")
    process = subprocess.Popen(words, env=environment, stderr=subprocess.PIPE)
    wait_until(lambda: len(spectra("raw")) >= 4)
    archive.latency = 60.0  # however slow this machine is, the run doesn't end now
    workers = children(process.pid)
    process.send_signal(number)
    process.communicate(timeout=60)
    wait_until(lambda: not any(map(os.path.exists, workers)))
    statuses = {signal.SIGKILL: -9, signal.SIGINT: 130, signal.SIGTERM: 143}
    assert process.returncode == statuses[number]
    assert 4 <= len(spectra("raw")) < 20
    archive.latency = 0
    words, environment = program(*arguments, "--resume")
    done = subprocess.run(words, env=environment, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert_whole(Path("raw"), few_spectra)


def test_a_full_disk(archive, few_spectra, catalogue):
    # a mount in a namespace of its own ends with the process, even if a test is killed
    words, environment = program(
        *("fetch", "lamost", *RELEASE, "--from", "cat.fits", "-o", "small/raw"),
        before="from stellarcli.archives import lamost\nlamost.TYPICAL['lrs'] = 1",
    )
    Path("small").mkdir()
    size = sum(len(content) for _, content in few_spectra.values()) // 2
    script = f'mount -t tmpfs -o size={size} none small && "$@"; status=$?; '
    script += "cp -a small/raw kept; exit $status"
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", *words],
        env=environment,
        capture_output=True,
        timeout=60,
    )
    if b"unshare" in done.stderr or b"mount" in done.stderr:
        pytest.skip("only root can mount a small disk")
    assert done.returncode == 1, done.stderr
    assert b"no space left" in done.stderr
    assert b"Traceback" not in done.stderr
    there = {path.name: path.read_bytes() for path in Path("kept").glob("[!.]*")}
    assert 0 < len(there) < 20
    assert there.items() <= dict(few_spectra.values()).items()
    assert {path.name for path in Path("kept").glob(".*")} <= {JOURNAL}
    words, environment = program(
        *("fetch", "lamost", *RELEASE, "--from", "cat.fits", "-o", "kept", "--resume")
    )
    subprocess.run(words, env=environment, check=True, timeout=60, capture_output=True)
    assert_whole(Path("kept"), few_spectra)


def test_a_disk_that_is_too_small_beforehand(lamost, catalogue, monkeypatch):
    from stellarcli.archives import lamost as archive

    monkeypatch.setitem(archive.TYPICAL, "lrs", 1 << 50)
    done = lamost("--from", "cat.fits", "-o", "raw")
    assert done.status == 1
    assert "are free" in done.err


# ------------------------------------------------------------------------ tarballs


def test_a_night_of_the_archive(lamost, archive, few_spectra, catalogue):
    content = tarball(dict(few_spectra.values()))
    address = "/dr10/v2.0/tar/lrs-fits/20231101.tar.gz"
    archive.static[address] = content
    md5 = hashlib.md5(content).hexdigest()
    archive.static[f"{address}.md5"] = f"{md5}  20231101.tar.gz\n".encode()
    done = lamost("--from-tar", "20231101", "-o", "raw", "--table", "t.fits")
    assert done.status == 0, done.err
    assert_whole(Path("raw"), few_spectra)
    assert len(catalog.read("t.fits").rows) == 20
    done = lamost(
        *("--from-tar", "20231101", "--from", "cat.fits[1][snrg>50]", "-o", "some"),
        *("--table", "some.fits"),
    )
    assert done.status == 0, done.err
    assert len(spectra("some")) == 10
    assert catalog.read("some.fits").rows["teff"].min() > 5400


def test_a_night_with_another_checksum(lamost, archive, few_spectra, here):
    address = "/dr10/v2.0/tar/lrs-fits/20231101.tar.gz"
    archive.static[address] = tarball(dict(few_spectra.values()))
    archive.static[f"{address}.md5"] = b"0" * 32
    done = lamost("--from-tar", "20231101", "-o", "raw", "--retries", "1")
    assert done.status == 1
    assert "md5" in done.err
    assert os.listdir("raw") == []


def test_a_tarball_on_disk_needs_no_archive(stellar, few_spectra, here):
    Path("night.tar.gz").write_bytes(tarball(dict(few_spectra.values())))
    words = ("fetch", "lamost", "--from-tar", "night.tar.gz", "-o", "raw")
    done = stellar(*words, "--obsid", "5001,777", "--table", "t.fits")
    assert done.status == 3
    assert spectra("raw") == [few_spectra[5001][0]]
    assert "not in the tarball" in done.err
    assert stellar(*words, "--resume").status == 0
    assert_whole(Path("raw"), few_spectra)
    assert stellar(*words).status == 2


# ---------------------------------------------------------------------- catalogues


def test_a_catalogue_of_lamost(stellar, archive, catalogue):
    content = gzip.compress(catalogue.read_bytes())
    seen = []

    def answer(path, query, headers):
        seen.append(query["name"])
        return archive.file(content, headers)

    archive.special["/openapi/dr10/v2.0/lrs/catalog"] = answer
    words = ("fetch", "lamost-catalogue", "lrs_stellar", *RELEASE, "-o", "cats")
    done = stellar(*words)
    assert done.status == 0, done.err
    assert seen == ["dr10_v2.0_LRS_stellar.fits.gz"]
    path = Path("cats/dr10_v2.0_LRS_stellar.fits.gz")
    assert path.read_bytes() == content
    assert stellar(*words).status == 2
    assert stellar(*words, "--resume").status == 0
    assert stellar(*words, "--overwrite").status == 0
    path.write_bytes(content[:-10])
    done = stellar(*words, "--resume")  # what is damaged is fetched again
    assert done.status == 0, done.err
    assert path.read_bytes() == content


def test_an_unknown_catalogue(stellar, archive, here):
    done = stellar("fetch", "lamost-catalogue", "LRS_stelar", *RELEASE)
    assert done.status == 2
    assert "Did you mean 'LRS_stellar'?" in done.err
    assert not archive.requests


def test_a_catalogue_that_is_away(stellar, archive, here):
    done = stellar("fetch", "lamost-catalogue", "LRS_wd", *RELEASE)
    assert done.status == 1
    assert "404" in done.err
    assert os.listdir() == []


# ----------------------------------------------------------------------------- SDSS


def test_sdss_plates(stellar, archive, here):
    path = surveyfiles.sdss_spec(here / "spec.fits")
    content = path.read_bytes()
    header = verification.check(content)
    plate, mjd, fiber = (header.get(name) for name in ("PLATEID", "MJD", "FIBERID"))
    name = f"spec-{plate:04d}-{mjd}-{fiber:04d}.fits"
    tree = "/sas/dr17/sdss/spectro/redux/103/spectra/lite"
    archive.static[f"{tree}/{plate:04d}/{name}"] = content
    Table({"PLATE": [plate, 1], "MJD": [mjd, 2], "FIBERID": [fiber, 3]}).write("t.fits")
    done = stellar(
        "fetch", "sdss", "--from", "t.fits", "-o", "raw", "--table", "o.fits"
    )
    assert done.status == 3, done.err
    assert spectra("raw") == [name]
    assert Path("raw", name).read_bytes() == content
    assert "no such file" in catalog.read("o.fits").rows["fetch_error"][1]


@pytest.mark.parametrize(
    ("dr", "tree"),
    [
        ("19", "dr19/spectro/boss/redux/v6_1_3/spectra/lite/015143/59205"),
        ("20", "dr20/spectro/boss/redux/v6_2_1/spectra/daily/lite/015XXX/015143/59205"),
    ],
)
def test_sdss_fields(stellar, archive, here, dr, tree):
    content = surveyfiles.sdss_spec(here / "spec.fits").read_bytes()
    name = "spec-015143-59205-4544940698.fits"
    archive.static[f"/sas/{tree}/{name}"] = content
    Path("t.csv").write_text("field,mjd,catalogid\n15143,59205,4544940698\n")
    done = stellar("fetch", "sdss", "--dr", dr, "--from", "t.csv", "-o", "raw")
    assert done.status == 0, done.err
    assert spectra("raw") == [name]


@pytest.mark.parametrize(
    ("dr", "plate", "tree"),
    [
        ("16", 4055, "dr16/eboss/spectro/redux/v5_13_0/spectra/lite"),
        ("17", 350, "dr17/sdss/spectro/redux/26/spectra/lite"),
        (
            "18",
            4055,
            "dr18/prior-surveys/sdss4-dr17-eboss/spectro/redux/v5_13_2/spectra/lite",
        ),
        ("19", 350, "dr19/prior-surveys/sdss2-dr8-sdss/spectro/redux/26/spectra/lite"),
    ],
)
def test_where_releases_keep_their_plates(dr, plate, tree):
    rows = np.array(
        [(plate, 55000, 7)], [("plate", "i4"), ("mjd", "i4"), ("fiber", "i4")]
    )
    order = sdss.spectra("base", catalog.Table(rows), int(dr))
    addresses = order.make(order.wanted[0]).addresses
    assert addresses[0] == f"base/{tree}/{plate:04d}/spec-{plate:04d}-55000-0007.fits"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("sdss",), "plate"),
        (("sdss", "--dr", "4"), "'4'"),
        (("sdss-images",), "right ascension"),
        (("apogee",), "telescope"),
        (("apogee", "--kind", "stars"), "Did you mean 'star'"),
        (("apogee", "--dr", "12"), "dr16, dr17"),
    ],
)
def test_tables_without_the_columns(stellar, archive, here, command, words):
    Path("t.csv").write_text("a,b\n1,2\n")
    done = stellar("fetch", *command, "--from", "t.csv", "-o", "raw")
    assert done.status == 2
    assert words in done.err


def frame(run, camcol, band):
    import bz2

    from astropy.io import fits

    hdu = fits.PrimaryHDU(np.zeros((9, 9), "f4"))
    hdu.header.update(RUN=run, CAMCOL=camcol, FILTER=band)
    memory = io.BytesIO()
    hdu.writeto(memory)
    return bz2.compress(memory.getvalue())


def test_frames_of_each_star(stellar, archive, here, monkeypatch):
    monkeypatch.setattr(sdss, "SKYSERVER_RATE", 1000.0)
    tree = "/sas/dr17/eboss/photoObj/frames/301/3699/2"
    for band in "gri":
        name = f"frame-{band}-003699-2-0123.fits.bz2"
        archive.static[f"{tree}/{name}"] = frame(3699, 2, band)
    queries = []

    def answer(path, query, headers):
        queries.append(query["cmd"])
        found = b"" if "77.0" in query["cmd"] else b"3699,2,123\n"
        return Answer(b"#Table1\nrun,camcol,field\n" + found)

    archive.special["/dr17/SkyServerWS/SearchTools/SqlSearch"] = answer
    Path("t.csv").write_text("id,ra,dec\n1,10.5,0.5\n2,10.5001,0.5\n3,77.0,1\n4,,\n")
    done = stellar(
        "fetch", "sdss-images", "--from", "t.csv", "-o", "raw", "--table", "o.fits"
    )
    assert done.status == 3, done.err
    assert "fGetNearestObjEq(10.5000000, 0.5000000" in queries[0]
    assert spectra("raw") == [f"frame-{b}-003699-2-0123.fits.bz2" for b in "gir"]
    rows = catalog.read("o.fits").rows
    assert rows["image_g"][1] == "raw/frame-g-003699-2-0123.fits.bz2"
    assert rows["fetch_error"].astype(bool).tolist() == [False, False, True, True]
    Path("u.csv").write_text("run,camcol,field\n3699,2,123\n")
    done = stellar("fetch", "sdss-images", "--from", "u.csv", "-o", "raw", "--resume")
    assert done.status == 0, done.err
    assert "3 were there" in done.err


def test_apogee(stellar, archive, here):
    content = surveyfiles.apogee_star(here / "a.fits").read_bytes()
    star = verification.check(content).get("OBJID")
    name = f"asStar-dr17-{star}.fits"
    tree = "/sas/dr17/apogee/spectro/redux/dr17/stars/lco25m/120+12"
    archive.static[f"{tree}/{name}"] = content
    heading = "APOGEE_ID,TELESCOPE,FIELD\n"
    Path("t.csv").write_text(f"{heading}{star},lco25m,120+12\n../x,a,b\n")
    done = stellar("fetch", "apogee", "--from", "t.csv", "-o", "raw")
    assert done.status == 3
    assert "the row has no identifier" in done.err
    assert spectra("raw") == [name]


def test_apogee_visits(stellar, archive, here):
    content = surveyfiles.apogee_visit(here / "a.fits").read_bytes()
    name = "apVisit-dr17-5095-55844-008.fits"
    tree = "/sas/dr17/apogee/spectro/redux/dr17/visit/apo25m/120+12/5095/55844"
    archive.static[f"{tree}/{name}"] = content
    heading = "telescope,field,plate,mjd,fiberid\n"
    Path("t.csv").write_text(f"{heading}apo25m,120+12,5095,55844,8\n")
    done = stellar("fetch", "apogee", "--kind", "visit", "--from", "t.csv", "-o", "raw")
    assert done.status == 0, done.err
    assert spectra("raw") == [name]


# --------------------------------------------------------------------------- models


@pytest.fixture
def hub(archive, model, monkeypatch, here):
    """A hub with one model, and an empty place for fetched ones."""
    monkeypatch.setenv("STELLAR_MODELS", str(here / "models"))
    content = Path(model).read_bytes()
    entry = {
        "name": "giants",
        "file": "v1/giants.safetensors",
        "size": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "description": "red giants",
    }
    archive.static["/hub/v1/giants.safetensors"] = content
    archive.entry = entry
    archive.special["/hub/index.json"] = lambda *_: Answer(
        json.dumps({"models": [archive.entry]}).encode()
    )
    return f"{archive.url}/hub"


def test_a_model_is_fetched_and_found(stellar, hub, stars, here):
    done = stellar("fetch", "list", "--url", hub)
    assert done.status == 0, done.err
    assert "giants" in done.out.decode()
    done = stellar("fetch", "model", "giants", "--url", hub)
    assert done.status == 0, done.err
    path = done.out.decode().strip()
    assert path == str(here / "models" / "giants.safetensors")
    done = stellar("predict", *stars, "-o", "p.fits", "--model", "giants")
    assert done.status == 0, done.err
    listed = stellar("fetch", "list", "--json").json
    assert {entry["name"]: entry["where"] for entry in listed}["giants"] == "fetched"
    assert os.listdir(here / "models") == ["giants.safetensors"]
    assert stellar("fetch", "model", "giants").out.decode().strip() == path


def test_shipped_models(stellar, here, monkeypatch):
    monkeypatch.setenv("STELLAR_MODELS", str(here / "models"))
    done = stellar("fetch", "list", "--json")
    if not checkpoint.shipped():
        pytest.skip("no model is shipped")
    shipped = {entry["name"]: entry for entry in done.json}["default"]
    assert shipped["where"] == "shipped"
    assert len(shipped["sha256"]) == 64
    done = stellar("fetch", "model", "default")
    assert done.out.decode().strip() == str(checkpoint.shipped()["default"])
    done = stellar("fetch", "model", "giants")
    assert done.status == 2
    assert "STELLAR_MODEL_URL" in done.err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sha256": "0" * 64}, "sha256"),
        ({"size": 3}, "the index says 3"),
        ({"file": "../giants.safetensors"}, "refused"),
        ({"file": "https://elsewhere/x.safetensors"}, "refused"),
        ({"name": "../x"}, "refused"),
        ({"sha256": ""}, "refused"),
        ({"name": "dwarfs"}, "dwarfs"),
    ],
)
def test_models_that_are_not_what_the_index_says(stellar, archive, hub, change, words):
    archive.entry.update(change)
    done = stellar("fetch", "model", "giants", "--url", hub, "--retries", "0")
    assert done.status in (1, 2)
    assert words in done.err
    assert not Path("models").exists() or os.listdir("models") == []


def test_a_file_that_is_no_model(stellar, archive, hub):
    content = b"no model at all"
    archive.static["/hub/v1/giants.safetensors"] = content
    archive.entry.update(size=len(content), sha256=hashlib.sha256(content).hexdigest())
    done = stellar("fetch", "model", "giants", "--url", hub, "--retries", "0")
    assert done.status == 1
    assert "no model file" in done.err
    assert not list(Path("models").glob("[!.]*"))


def test_a_hub_that_is_none(stellar, archive, hub):
    done = stellar("fetch", "list", "--url", archive.url)
    assert done.status == 1
    assert "index.json" in done.err
    archive.special["/hub/index.json"] = Answer(b"[]")
    assert "no index of models" in stellar("fetch", "list", "--url", hub).err


# --------------------------------------------------------------------------- VizieR


@pytest.fixture
def tap(archive, monkeypatch):
    """A TAP service with one catalogue of two tables; the queries that it got."""
    pytest.importorskip("pyvo", reason="an optional dependency")
    queries = []
    main = {
        "RAJ2000": [10.0, 20.0, 10.0002],
        "DEJ2000": [1.0, 2.0, 1.0],
        "MK": ["A", "B", "C"],
    }

    class Post(Archive):
        async def exchange(self, reader, writer):
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length:")[2].split()[0] or 0)
            body = (await reader.readexactly(length)).decode("utf-8", "replace")
            query = parse_qs(body).get("QUERY", [body])[0]
            queries.append(query)
            writer.write(self.reply(query).head() + self.reply(query).body)
            await writer.drain()
            return True

        def reply(self, query):
            if "TAP_SCHEMA.tables" in query:
                names = ["J/AJ/151/13/main", "J/AJ/151/13/notes", "J/AJ/151/130/x"]
                rows = {
                    "table_name": names,
                    "description": ["MK classes", "notes", "no"],
                }
            elif "TAP_SCHEMA.columns" in query:
                rows = {"column_name": list(main)}
            elif "TAP_UPLOAD" in query:
                rows = {"stellar_row": [0, 0, 1], "separation": [0.7, 0.1, 0.2]}
                rows |= {
                    name: [values[2], values[0], values[1]]
                    for name, values in main.items()
                }
            else:
                rows = main
            return Answer(votable(rows), Content_Type="application/x-votable+xml")

    with Post() as server:
        monkeypatch.setenv("STELLAR_VIZIER_URL", f"{server.url}/tap")
        yield queries


def test_a_catalogue_of_vizier(stellar, tap, here):
    done = stellar("fetch", "vizier", "J/AJ/151/13/main", "-o", "mk.fits")
    assert done.status == 0, done.err
    assert tap[-1] == 'SELECT * FROM "J/AJ/151/13/main"'
    table = catalog.read("mk.fits")
    assert table.rows["MK"].tolist() == ["A", "B", "C"]
    assert table.header["TABLE"] == "J/AJ/151/13/main"


def test_a_match_with_vizier(stellar, tap, here):
    Path("mine.csv").write_text("id,ra,dec,MK\n1,10,1,x\n2,20,2,y\n3,30,3,z\n")
    words = ("fetch", "vizier", "J/AJ/151/13/main", "--match", "mine.csv")
    done = stellar(*words, "-o", "m.fits")
    assert done.status == 0, done.err
    rows = catalog.read("m.fits").rows
    assert rows["id"].tolist() == [1, 2]
    assert rows["MK"].tolist() == ["x", "y"]
    assert rows["MK_vizier"].tolist() == ["A", "B"]  # the nearer of two
    np.testing.assert_allclose(rows["separation"], [0.1, 0.2])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("J/AJ/151/13", "has 2 tables"),
        ("lamost-kepler-mk", "J/AJ/151/13/main: MK classes"),
        ("J/none", "no catalogue 'J/none'"),
        ("x'; drop", "no name of VizieR's"),
    ],
)
def test_names_that_vizier_does_not_have(stellar, tap, here, name, words):
    done = stellar("fetch", "vizier", name, "-o", "x.fits")
    assert done.status == 2
    assert words in done.err
