"""`stellar predict`: a row for every input, whatever happens, and the same bytes."""

import csv
import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import surveyfiles
from astropy.table import Table
from conftest import SMALL, program

from stellarcli import catalog
from stellarcli.catalog import FAILED, Flag, encode_name

UNREADABLE, NO_COVERAGE = Flag.UNREADABLE, Flag.NO_COVERAGE


def read(path):
    return catalog.read(path).rows


def empty(path):
    path.write_bytes(b"")


def truncated(path):
    surveyfiles.lamost_image(path)
    path.write_bytes(path.read_bytes()[:3000])


def garbled(path):
    surveyfiles.lamost_image(path)
    content = bytearray(path.read_bytes())
    content[2000:2100] = bytes(100)
    path.write_bytes(content)


def cut_fits(path):
    surveyfiles.lamost_image(path)
    path.write_bytes(path.read_bytes()[:9000])


def spectrum(**options):
    return lambda path: surveyfiles.lamost_image(path, **options)


# name of the file -> (how it is made, flag that it must have, word of the reason)
BAD_INPUTS = {
    "empty.fits": (empty, UNREADABLE, "empty"),
    "truncated.fits.gz": (truncated, UNREADABLE, "truncated"),
    "garbled.fits.gz": (garbled, UNREADABLE, "gzip"),
    "cut.fits": (cut_fits, UNREADABLE, ""),
    "text.fits": (lambda p: p.write_text("hello\n"), UNREADABLE, "not a FITS"),
    "galaxy.fits": (surveyfiles.galaxy_image, UNREADABLE, "2-D image"),
    "zero.fits": (spectrum(flux=np.zeros(400)), NO_COVERAGE, "no pixel"),
    "nan.fits": (spectrum(flux=np.full(400, np.nan)), NO_COVERAGE, "no pixel"),
    "ivar0.fits": (spectrum(ivar=np.zeros(400)), NO_COVERAGE, "no pixel"),
    "no-z.fits": (spectrum(Z=-9999.0), Flag.NO_VELOCITY, "velocity"),
    "quasar.fits": (spectrum(CLASS="QSO"), Flag.NOT_A_STAR, "QSO"),
    "no-flux.fits": (
        lambda p: surveyfiles.lamost_table(p, columns=["IVAR", "WAVELENGTH"]),
        UNREADABLE,
        "",
    ),
    "missing.fits": (lambda p: None, UNREADABLE, "no such file"),
    "directory-in-list.fits": (Path.mkdir, UNREADABLE, "directory"),
    "infrared.fits": (surveyfiles.apogee_star, NO_COVERAGE, "outside 4910 to 5363 Å"),
    "negative.fits": (spectrum(flux=np.full(400, -9.0)), NO_COVERAGE, "flux positive"),
}
ODD_NAMES = [
    "with two  blanks.fits",
    "光谱 № 1.fits",
    "100%41.fits",
    "a(1)[x>3].fits",
    "'quoted\"$HOME.fits",
    os.fsdecode(b"latin-\xe9\xff.fits"),
    "-o.fits",
    "new\nline.fits",
]


@pytest.fixture
def listed(here):
    """A list with every bad input, a readable one after each, and odd names."""
    names = []
    for number, (name, (make, _, _)) in enumerate(BAD_INPUTS.items()):
        make(here / name)
        surveyfiles.lamost_image(here / f"good-{number}.fits", OBSID=7000 + number)
        names += [name, f"good-{number}.fits"]
    return names


def test_every_input_has_its_row_and_every_failure_its_reason(
    stellar, listed, here, model
):
    Path("list.txt").write_text("# a comment\n\n" + "\r\n".join(listed) + "\n")
    done = stellar(
        "predict", "@list.txt", "-o", "o.fits", "-m", model, "--log", "o.log"
    )
    assert done.status == 3, done.err
    rows = read("o.fits")
    assert rows["file"].tolist() == listed
    good = rows[1::2]
    assert good["objid"].tolist() == [str(7000 + n) for n in range(len(good))]
    assert np.isfinite(good["teff"]).all()
    assert not (good["flag"] & FAILED).any()
    log = Path("o.log").read_text()
    for row, (name, (_, flag, word)) in zip(rows[::2], BAD_INPUTS.items(), strict=True):
        assert row["flag"] & flag, name
        failed = bool(row["flag"] & FAILED)
        assert failed == bool(flag & FAILED), name
        for label in ("teff", "logg", "feh", "teff_err"):
            assert np.isnan(row[label]) == failed, name
        reasons = [line for line in log.splitlines() if f" {name}: " in line]
        assert word in reasons[0]
    assert "Traceback" not in done.err + log
    assert "empty.fits: the file is empty" in done.err


def test_names_of_any_bytes_come_through(stellar, here, model):
    for number, name in enumerate(ODD_NAMES, start=1):
        surveyfiles.lamost_image("plain.tmp", OBSID=number)
        os.rename("plain.tmp", name)
    broken = os.fsdecode(b"broken-\xff.fits")
    Path(broken).write_bytes(b"")
    given = [f"./{name}" for name in [*ODD_NAMES, broken]]
    done = stellar("predict", *given, "-o", "o.fits", "-m", model, "--log", "o.log")
    assert done.status == 3
    rows = read("o.fits")
    assert rows["file"].tolist() == [encode_name(name) for name in given]
    assert rows["objid"][:-1].tolist() == [str(n) for n in range(1, len(ODD_NAMES) + 1)]
    assert b"broken-\xff.fits: the file is empty" in Path("o.log").read_bytes()
    # the table's own paths lead to the files again
    again = stellar("predict", "o.fits", "-o", "again.fits", "-m", model)
    assert again.status == 3
    np.testing.assert_array_equal(read("again.fits")["objid"], rows["objid"])


def test_the_same_file_twice_is_two_rows_and_a_flag(stellar, stars, model):
    given = [stars[0], stars[1], f"./{stars[0]}"]
    done = stellar("predict", *given, "-o", "o.fits", "-m", model)
    assert done.status == 0
    rows = read("o.fits")
    assert rows["file"].tolist() == given
    assert (rows["flag"] & Flag.DUPLICATE != 0).tolist() == [True, False, True]
    assert rows["teff"][0] == rows["teff"][2]
    assert "(and 1 more): this file was given more than once" in done.err


def test_statuses(stellar, stars, model):
    common = ["-m", model, "--overwrite", "-o", "o.fits"]
    assert stellar("predict", *stars, *common).status == 0
    assert stellar("predict", *stars, "nowhere.fits", *common).status == 3
    Path("list").write_text("nowhere.fits")
    done = stellar("predict", "@list", *common)
    assert done.status == 64
    assert "none of 1 inputs gave a value" in done.err
    assert read("o.fits")["flag"].tolist() == [UNREADABLE], "the table is written"


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="needs to be root")
def test_a_directory_without_permission_is_a_row(stellar, model, monkeypatch):
    """Runs as another user, since root may enter everywhere."""
    import tempfile

    from stellarcli import prediction

    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        monkeypatch.chdir(folder)
        Path("in/closed").mkdir(parents=True)
        surveyfiles.lamost_image("in/a.fits")
        surveyfiles.lamost_image("in/closed/b.fits")
        Path("in/secret.fits").write_bytes(Path("in/a.fits").read_bytes())
        os.chmod("in/closed", 0)
        os.chmod("in/secret.fits", 0)
        prediction._predictor(model, "cpu", "auto", False, 0.0)  # its file is root's
        os.setresuid(65534, 65534, 0)
        try:
            done = stellar("predict", "in", "-o", "o.fits", "-m", model)
            denied = stellar("predict", "in", "-o", "/usr/o.fits", "-m", model)
        finally:
            os.setresuid(0, 0, 0)
        assert done.status == 3, done.err
        rows = read("o.fits")
        assert rows["file"].tolist() == ["in/a.fits", "in/secret.fits", "in/closed"]
        assert (rows["flag"] & UNREADABLE != 0).tolist() == [False, True, True]
        assert done.err.count("permission denied") == 1  # one reason, two files
        assert denied.status == 2
        assert "not writable" in denied.err
        os.chmod("in/closed", 0o700)


# --------------------------------------------------------------------------- flags


def flags_of(stellar, path, model):
    stellar("predict", path, "-o", "flags.fits", "-m", model, "--overwrite")
    return Flag(int(read("flags.fits")["flag"][0]))


def masked(share):
    ivar = surveyfiles.star(surveyfiles.grid())[1]
    ivar[100 : 100 + int(400 * share)] = 0
    return ivar


@pytest.mark.parametrize(
    ("flag", "options"),
    [
        (Flag.LOW_SNR, {"SNRG": 3.0}),
        (Flag.LOW_SNR, {"SNRG": -9999.0, "SNRR": 20.0}),
        (Flag.NO_VELOCITY, {"Z": -9999.0}),
        (Flag.NOT_A_STAR, {"CLASS": "GALAXY"}),
        (Flag.PARTIAL_COVERAGE, {"size": 300}),
        (Flag.MASKED_PIXELS, {"ivar": masked(0.4)}),
        (Flag.UNLIKE_TRAINING, {"ivar": masked(0.7)}),
        (Flag.UNLIKE_TRAINING, {"flux": 50 + 50 * np.sin(np.arange(400) / 3)}),
    ],
    ids=lambda value: value.name if isinstance(value, Flag) else "-".join(value),
)
def test_flags_of_spectra(stellar, here, model, flag, options):
    surveyfiles.lamost_image("good.fits")
    surveyfiles.lamost_image("odd.fits", **options)
    assert flag not in flags_of(stellar, "good.fits", model)
    assert flag in flags_of(stellar, "odd.fits", model)
    row = read("flags.fits")[0]
    assert np.isfinite([row["teff"], row["teff_err"]]).all(), "flagged, yet finite"


def test_flags_of_the_model(stellar, stars, model, changed_model):
    from dataclasses import replace

    from stellarcli import checkpoint

    original = checkpoint.load(model)
    assert flags_of(stellar, stars[0], model) == 0
    narrow = [replace(label, trained=(1.0, 1.1)) for label in original.labels]
    path = changed_model("narrow", labels=narrow)
    assert Flag.OUT_OF_RANGE in flags_of(stellar, stars[0], path)
    path = changed_model("unsure", limits={"large_error": 1e-6})
    assert Flag.LARGE_ERROR in flags_of(stellar, stars[0], path)
    other = {
        key.replace("member0", "member1"): value + (2.0 if "head.bias" in key else 0)
        for key, value in original.state.items()
        if key.startswith("member0")
    }
    shy = {k: v.copy() for k, v in (original.state | other).items()}
    for key in ("member0.head.bias", "member1.head.bias"):
        shy[key][3:] = -9  # small errors of their own
    path = changed_model("ensemble", state=shy)
    assert Flag.DISAGREEMENT in flags_of(stellar, stars[0], path)


@pytest.mark.parametrize("scale", [1e-18, 1e-10, 1e10, 1e15])
def test_fluxes_of_any_size_give_finite_values(stellar, here, model, scale):
    flux, ivar = surveyfiles.star(surveyfiles.grid())
    ivar = np.minimum(ivar.astype(np.float64) / scale**2, 1e38)
    surveyfiles.lamost_image("odd.fits", flux=flux * scale, ivar=ivar, dtype=">f8")
    assert not flags_of(stellar, "odd.fits", model) & FAILED
    row = read("flags.fits")[0]
    assert np.isfinite([row[name] for name in ("teff", "logg", "feh_err")]).all()


@pytest.mark.parametrize("seed", range(4))
def test_nonsense_gives_finite_values_or_a_reason(stellar, here, model, seed):
    random = np.random.default_rng(seed)
    names = [f"odd-{n}.fits" for n in range(30)]
    for name in names:
        flux = random.normal(0, 1, 400) * 10 ** random.uniform(-30, 30, 400)
        ivar = 10 ** random.uniform(-30, 30, 400) * (random.random(400) < 0.7)
        flux[random.random(400) < 0.2] = random.choice([0, np.nan, np.inf, 1e38])
        surveyfiles.lamost_image(name, flux=flux, ivar=ivar, Z=random.normal() / 9)
    done = stellar("predict", *names, "-o", "o.fits", "-m", model, "--log", "o.log")
    assert done.status in (0, 3, 64)
    assert "Warning" not in done.err
    log = Path("o.log").read_text()
    for row in read("o.fits"):
        values = [row[label] for label in ("teff", "teff_err", "logg", "feh_err")]
        if row["flag"] & FAILED:
            assert f"{row['file']}: no good pixel" in log
        else:
            assert np.isfinite(values).all(), row


# --------------------------------------------------------------------------- output


def test_what_the_header_says(stellar, stars, model):
    stellar("predict", *stars, "-o", "o.fits", "-m", model)
    header = catalog.read("o.fits").header
    assert header["MODEL"] == "tiny"
    assert len(header["MODELSHA"]) == 64
    assert header["COMMAND"].startswith("stellar predict star-0.fits")
    assert header["DATE"] == "2023-11-14T22:13:20"
    assert '"name": "tiny"' in header["RECIPE"]


@pytest.mark.parametrize("name", ["o.ecsv", "o.parquet"])
def test_text_tables_with_a_header_say_how_they_were_made(stellar, stars, model, name):
    stellar("predict", *stars, "-o", name, "-m", model)
    header = catalog.read(name).header
    assert header["COMMAND"].startswith("stellar predict star-0.fits")
    assert (header["MODEL"], header["PROGRAM"]) == ("tiny", "stellar")
    assert header["FLAGB0"].startswith("UNREADABLE")


def test_csv_is_what_every_reader_of_csv_reads(stellar, stars, model):
    """No comment lines: astropy's, pandas' and TOPCAT's take them for rows."""
    stellar("predict", *stars, "-o", "o.csv", "-m", model)
    with open("o.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == stars
    assert Table.read("o.csv", format="csv")["file"].tolist() == stars


@pytest.mark.parametrize("name", ["o.csv", "o.ecsv", "o.parquet", "o.vot", "o.fits.gz"])
def test_formats(stellar, stars, model, name):
    assert stellar("predict", *stars, "-o", "o.fits", "-m", model).status == 0
    assert stellar("predict", *stars, "-o", name, "-m", model).status == 0
    np.testing.assert_allclose(read(name)["teff"], read("o.fits")["teff"], rtol=1e-6)
    assert read(name)["file"].tolist() == stars
    # a finished table of any format is left alone by --resume, and known by its files
    again = stellar("predict", *stars, "-o", name, "-m", model, "--resume")
    assert again.status == 0, again.err
    other = stellar("predict", *stars[:2], "-o", name, "-m", model, "--resume")
    assert other.status == 2, other.err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["-o", "o.txt"], ["'o.txt'", "*.fits", "*.csv"]),
        (["-o", "o"], ["'o'", "*.fits"]),
        (["-o", "no/where/o.fits"], ["no directory no/where", "make it first"]),
        (["-o", "folder"], ["folder"]),
        (["-o", "there.fits"], ["there.fits exists", "--overwrite"]),
        (["-o", "o.fits", "-m", "defautl"], ["unknown model 'defautl'"]),
        (["-o", "o.fits", "-m", "no.safetensors"], ["'no.safetensors'", "train"]),
        (["-o", "o.fits", "--workers", "0"], ["--workers", "1", "0"]),
        (["-o", "o.fits", "--device", "gpu"], ["'gpu'", "cuda"]),
        (["-o", "o.fits", "--device", "cuda:99"], ["'cuda:99'", "--device cpu"]),
        (["-o", "o.fits", "--precision", "half"], ["'half'", "bfloat16"]),
        (["-o", "-", "--json"], ["--json", "-o -"]),
        (["-o", "-", "--shard", "1/2"], ["--shard", "file"]),
        (["-o", "o.fits", "--log", "no/o.log"], ["no/o.log", "No such file"]),
        (["-o", "o.fits", "nothing*.fits"], ["'nothing*.fits'", "no file matches"]),
        (["-o", "o.fits", "@none.txt"], ["list 'none.txt'", "path per line"]),
        (["-o", "o.fits", "@star-0.fits"], ["star-0.fits", "@"]),
        (["-o", "o.fits", "star-0.fits[1][snr>3]"], ["rows", "catalogue"]),
        *(
            (["-o", "o.fits", "--shard", text], [text, "I/N" if bad else "1/"])
            for text, bad in [
                ("3", True),
                ("a/b", True),
                ("²/3", True),
                ("1/3/4", True),
                ("-1/3", True),
                ("0/3", False),
                ("4/3", False),
                ("1/0", False),
            ]
        ),
    ],
)
def test_wrong_usage_is_one_sentence_and_status_2(
    stellar, stars, model, options, words
):
    Path("folder").mkdir()
    Path("there.fits").write_text("precious")
    model = [] if "-m" in options else ["-m", model]
    before = sorted(os.listdir())
    done = stellar("predict", stars[0], *model, *options)
    assert done.status == 2, done.err
    last = done.err.strip().splitlines()[-1]
    assert last.startswith("stellar: ")
    for word in words:
        assert word in last
    assert sorted(os.listdir()) == before, "nothing is left"
    assert Path("there.fits").read_text() == "precious"


def test_an_empty_directory_is_an_error(stellar, here, model):
    Path("empty").mkdir()
    done = stellar("predict", "empty", "-o", "o.fits", "-m", model)
    assert done.status == 2
    assert "no spectra in 'empty'" in done.err


def test_overwrite_and_exclamation_mark(stellar, stars, model):
    Path("o.fits").write_text("old")
    assert stellar("predict", stars[0], "-o", "!o.fits", "-m", model).status == 0
    assert len(read("o.fits")) == 1
    done = stellar("predict", *stars, "-o", "o.fits", "-m", model, "--overwrite")
    assert done.status == 0
    assert len(read("o.fits")) == 5


def test_an_output_among_the_inputs_is_no_input(stellar, stars, here, model):
    for _ in range(2):
        done = stellar("predict", ".", "-o", "out.fits", "-m", model, "--resume")
        assert done.status == 0, done.err
        assert read("out.fits")["file"].tolist() == [f"./{name}" for name in stars]


@pytest.mark.parametrize("full", ["at once", "later"])
def test_a_full_disk(stellar, stars, model, small_disk, full):
    room = {"at once": 400_000, "later": 397_000}[full]
    (small_disk / "ballast").write_bytes(bytes(room))
    done = stellar("predict", *stars, "-o", small_disk / "o.fits", "-m", model)
    assert done.status == 1, done.err
    assert "no space left" in done.err
    assert "free some space" in done.err
    assert "Traceback" not in done.err
    left = [p for p in small_disk.rglob("*") if p.is_file() and p.name != "ballast"]
    assert not [p for p in left if p.suffix in (".fits", ".tmp", ".part")]
    (small_disk / "ballast").unlink()
    again = stellar(
        "predict", *stars, "-o", small_disk / "o.fits", "-m", model, "--resume"
    )
    assert again.status == 0, again.err
    assert os.listdir(small_disk) == ["o.fits"]


def test_standard_output_without_room(stars, model):
    words, environment = program("predict", *stars, "-o", "-", "-m", model, "-j", "1")
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            words, env=environment, stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert done.returncode == 1
    assert b"can't write standard output: no space left" in done.stderr
    assert b"Traceback" not in done.stderr


# --------------------------------------------------------------- pipes, prepared tables


def test_pipes(stellar, stars, model):
    assert stellar("predict", *stars, "-o", "o.fits", "-m", model).status == 0
    prepared = stellar("preprocess", *stars, "-r", model, "-o", "-")
    assert prepared.status == 0
    piped = stellar("predict", "-", "-o", "-", "-m", model, stdin=prepared.out)
    assert piped.status == 0, piped.err
    Path("piped.fits").write_bytes(piped.out)
    for name in ("objid", "file", "ra", "snr", "teff", "feh_err", "flag"):
        np.testing.assert_array_equal(read("piped.fits")[name], read("o.fits")[name])
    # a catalogue of paths comes through a pipe too
    paths = stellar(
        "predict", "-", "-o", "c.fits", "-m", model, stdin=Path("o.fits").read_bytes()
    )
    assert paths.status == 0
    assert read("c.fits")["file"].tolist() == stars
    # the plan of piped input is that of its content
    plans = {catalog.read(name).header["PLAN"] for name in ("o.fits", "c.fits")}
    again = stellar("predict", "-", "-o", "-", "-m", model, stdin=prepared.out)
    assert len(plans) == 1
    assert again.out == piped.out


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["empty"]),
        (b"not a table", ["standard input", "FITS"]),
    ],
)
def test_bad_pipes(stellar, here, model, content, words):
    done = stellar("predict", "-", "-o", "o.fits", "-m", model, stdin=content)
    assert done.status == 2
    for word in words:
        assert word in done.err
    assert ".stellar-" not in done.err, "the name of a temporary file says nothing"


def test_a_table_without_paths_in_a_pipe(stellar, here, model):
    surveyfiles.table("t.fits", {"a": np.arange(3), "b": np.arange(3)})
    content = Path("t.fits").read_bytes()
    done = stellar("predict", "-", "-o", "o.fits", "-m", model, stdin=content)
    assert done.status == 2
    assert "the table on standard input has neither spectra nor" in done.err


def test_prepared_tables_mix_with_raw_files(stellar, stars, model):
    stellar("preprocess", *stars[1:3], "-r", model, "-o", "p.fits")
    given = [stars[0], "p.fits", stars[3], "nowhere.fits", "p.fits"]
    done = stellar("predict", *given, "-o", "o.fits", "-m", model)
    assert done.status == 3, done.err
    rows = read("o.fits")
    expected = [*stars[:4], "nowhere.fits", *stars[1:3]]
    assert rows["file"].tolist() == expected
    twice = (rows["flag"] & Flag.DUPLICATE != 0).tolist()
    assert twice == [False, True, True, False, False, True, True]


def test_a_prepared_table_of_another_recipe_is_refused(stellar, stars, model):
    recipe = Path("other.yaml")
    recipe.write_text("- rest_frame\n- min_max\n")
    stellar("preprocess", *stars, "-r", recipe, "-o", "p.fits")
    done = stellar("predict", "p.fits", "-o", "o.fits", "-m", model)
    assert done.status == 2
    for word in ("'p.fits'", "'other'", "'tiny'", "stellar preprocess"):
        assert word in done.err
    assert not Path("o.fits").exists()


def test_catalogues_of_paths(stellar, stars, model):
    stellar("predict", *stars, "-o", "o.fits", "-m", model)
    table = read("o.fits")
    catalog.write("c.csv", table)
    catalog.write("sub.fits", table)
    snr = np.arange(5.0)
    table["snr"] = snr
    catalog.write("snr.fits", table)
    for argument, expected in [
        ("c.csv", stars),
        ("sub.fits", stars),
        ("snr.fits[1][snr>2]", stars[3:]),
    ]:
        done = stellar("predict", argument, "-o", "!r.fits", "-m", model)
        assert done.status == 0, done.err
        assert read("r.fits")["file"].tolist() == expected


def test_a_closed_pipe_says_nothing(stars, model):
    words, environment = program("predict", *stars, "-o", "-", "-m", model, "-q")
    with subprocess.Popen(
        words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as running:
        running.stdout.close()
        assert running.stderr.read() == b""
    assert running.returncode == 1


# ------------------------------------------------------------ resume, shards, workers


@pytest.fixture
def many(stars, here):
    """Eleven inputs, one of them bad, and hence six parts."""
    Path("bad.fits").write_bytes(b"")
    for n in range(5):
        surveyfiles.lamost_image(f"more-{n}.fits", OBSID=2000 + n, Z=n * 1e-4)
    return [*stars, "bad.fits", *(f"more-{n}.fits" for n in range(5))]


@pytest.fixture
def whole(stellar, many, model, here, small_parts):
    """Bytes of the table that an undivided run writes."""
    done = stellar("predict", *many, "-o", "o.fits", "-m", model)
    assert done.status == 3
    content = Path("o.fits").read_bytes()
    Path("o.fits").unlink()
    assert hidden() == []
    return content


def hidden():
    return [name for name in os.listdir() if name.startswith(".")]


def left_parts():
    return [name for name in hidden() if name.endswith(".parts")]


def test_workers_dont_change_a_bit(stellar, many, model, whole):
    done = stellar("predict", *many, "-o", "o.fits", "-m", model, "--workers", "2")
    assert done.status == 3
    assert Path("o.fits").read_bytes() == whole


@pytest.mark.parametrize(
    "order", [(1, 2, 3), (3, 1, 2), (2, 3, 1)], ids=lambda order: str(order)
)
def test_shards_merge_to_the_same_bytes(stellar, many, model, whole, order):
    for shard in order:
        assert not Path("o.fits").exists()
        done = stellar(
            "predict", *many, "-o", "o.fits", "-m", model, "--shard", f"{shard}/3"
        )
        assert "Traceback" not in done.err
        last = shard == order[-1]
        assert ("other shards have parts left" in done.err) != last
    assert Path("o.fits").read_bytes() == whole
    assert hidden() == []


def test_more_shards_than_parts(stellar, many, model, whole):
    for shard in (9, *range(1, 9)):
        done = stellar(
            "predict", *many, "-o", "o.fits", "-m", model, "--shard", f"{shard}/9"
        )
        assert done.status in (0, 3)
    assert Path("o.fits").read_bytes() == whole
    assert hidden() == []


def test_shard_auto_is_that_of_slurm(stellar, many, model, whole, monkeypatch):
    names = {"MIN": "5", "MAX": "9", "COUNT": "3", "STEP": "2"}
    for name, value in names.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)
    for task in ("7", "5", "9"):
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", task)
        stellar("predict", *many, "-o", "o.fits", "-m", model, "--shard", "auto")
    assert Path("o.fits").read_bytes() == whole
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "4")
    done = stellar("predict", *many, "-o", "x.fits", "-m", model, "--shard", "auto")
    assert done.status == 2
    assert "without gaps" in done.err
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID")
    done = stellar("predict", *many, "-o", "x.fits", "-m", model, "--shard", "auto")
    assert done.status == 2
    assert "sbatch --array" in done.err


def test_shards_at_the_same_time(many, model, whole):
    shards = []
    for shard in (1, 2):
        words, environment = program(
            *("predict", *many, "-o", "o.fits", "-m", model, "-j1"),
            *("--shard", f"{shard}/2"),
            before=SMALL,
        )
        shards.append(subprocess.Popen(words, env=environment, stderr=-1))
    errors = [shard.communicate()[1] for shard in shards]
    assert [shard.returncode for shard in shards].count(3) >= 1, errors
    assert b"Traceback" not in b"".join(errors)
    assert Path("o.fits").read_bytes() == whole, errors
    assert hidden() == []


def killed_after(parts, number):
    """Code that sends a signal to the program as soon as some parts are finished."""
    return (
        f"{SMALL}\n"
        "import os\nstore = prediction.Parts.store\n"
        "def stop(self, number, *rest):\n"
        "    pairs = store(self, number, *rest)\n"
        f"    if number == {parts - 1}: os.kill(os.getpid(), {int(number)})\n"
        "    return pairs\n"
        "prediction.Parts.store = stop"
    )


@pytest.mark.parametrize(
    ("number", "status"),
    [
        (signal.SIGKILL, -signal.SIGKILL),
        (signal.SIGINT, 130),
        (signal.SIGTERM, 143),
        (signal.SIGHUP, 129),
    ],
    ids=lambda value: value.name if isinstance(value, signal.Signals) else "",
)
def test_an_interrupted_run_resumes(
    process, stellar, many, model, whole, number, status
):
    words = ["predict", *many, "-o", "o.fits", "-m", model]
    done = process(*words, "-j", "2", before=killed_after(3, number))
    assert done.status == status
    assert "Traceback" not in done.err
    if status > 0:
        assert "stellar: interrupted; " in done.err
        assert " of 6 parts of o.fits are finished; the same command with --resum" in (
            done.err
        )
    assert not Path("o.fits").exists()
    (parts,) = left_parts()
    finished = sorted(p.name for p in Path(parts).glob("*.npy"))
    assert finished[:3] == ["000000.npy", "000001.npy", "000002.npy"]
    times = [Path(parts, name).stat().st_mtime_ns for name in finished[:2]]
    # other inputs don't go on with these parts
    other = stellar("predict", *many[:4], "-o", "o.fits", "-m", model, "--resume")
    assert other.status == 2
    assert "unfinished run of other inputs" in other.err
    Path(parts, finished[1]).write_bytes(b"")  # a crash of the machine may leave this
    done = stellar(*words, "--resume")
    assert done.status == 3
    assert "bad.fits: the file is empty" in done.err
    assert times
    assert Path("o.fits").read_bytes() == whole
    assert hidden() == []


# the clock as a badly kept machine has it: 30 years ahead, or behind, from call to call
JUMPS = (
    "import itertools, time\nreal, jumps = time.time, itertools.cycle((1e9, -1e9, 0))\n"
    "time.time = lambda: real() + next(jumps)\n"
    "time.time_ns = lambda: int(time.time() * 1e9)\n"
)


def test_jumps_of_the_clock_change_nothing(process, many, model, whole):
    words = ["predict", *many, "-o", "o.fits", "-m", model, "-j", "2"]
    done = process(*words, before=JUMPS + killed_after(3, signal.SIGKILL))
    assert done.status == -signal.SIGKILL
    (parts,) = left_parts()
    for n, path in enumerate([parts, *Path(parts).iterdir()]):
        then = time.time() + (-1) ** n * 1e9  # as a server's clock has it
        os.utime(path, (then, then))
    done = process(*words, "--resume", before=f"{JUMPS}{SMALL}")
    assert done.status == 3, done.err
    assert Path("o.fits").read_bytes() == whole
    assert hidden() == []


def test_resume_without_anything_to_resume(stellar, many, model, whole):
    words = ["predict", *many, "-o", "o.fits", "-m", model, "--resume"]
    assert stellar(*words).status == 3
    assert Path("o.fits").read_bytes() == whole
    before = Path("o.fits").stat().st_mtime_ns
    for _ in range(2):  # finished: nothing changes, the status is the same
        done = stellar(*words)
        assert done.status == 3
        assert "11 spectra in o.fits" in done.err
        assert Path("o.fits").stat().st_mtime_ns == before
        words.append("--overwrite")


def test_resume_of_a_finished_table_of_something_else(stellar, many, model, whole):
    stellar("predict", *many, "-o", "o.fits", "-m", model)
    for inputs in (many[:-1], list(reversed(many))):
        done = stellar("predict", *inputs, "-o", "o.fits", "-m", model, "--resume")
        assert done.status == 2
        assert "o.fits is there, but not of these inputs" in done.err
    assert Path("o.fits").read_bytes() == whole


def test_interrupted_before_a_part_is_finished(stellar, many, model, monkeypatch):
    from stellarcli import prediction

    def pressed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(prediction, "work", pressed)
    done = stellar("predict", *many, "-o", "o.fits", "-m", model)
    assert done.status == 130
    assert done.err == (
        "stellar: interrupted; no part was finished, so there is nothing to go on "
        "with.\n"
    )
    assert hidden() == []


def test_a_run_without_resume_drops_nothing(process, stellar, many, model, whole):
    words = ["predict", *many, "-o", "o.fits", "-m", model]
    process(*words, "-j", "1", before=killed_after(2, signal.SIGKILL))
    (parts,) = left_parts()
    for inputs in (many, many[:4]):
        done = stellar("predict", *inputs, "-o", "o.fits", "-m", model)
        assert done.status == 2
        assert "2 parts of o.fits, of 2 spectra at most, are there from" in done.err
        assert "--resume to go on with it, --overwrite to start anew" in done.err
    assert left_parts() == [parts]
    done = stellar(*words, "--overwrite")
    assert done.status == 3
    assert "they are dropped, since --overwrite starts anew" in done.err
    assert Path("o.fits").read_bytes() == whole
    assert hidden() == []


def children(pid):
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text().split()]


def alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state != "Z"  # a zombie waits for somebody to read its exit status
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux")
def test_workers_end_with_a_killed_parent(many, model, whole):
    before = (
        "import time\ndef slow(*a, **k):\n    time.sleep(60)\nprediction.work = slow"
    )
    words, environment = program(
        "predict", *many, "-o", "o.fits", "-m", model, "-j", "2", before=before
    )
    running = subprocess.Popen(words, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.time() + 30
    while len(workers := children(running.pid)) < 2 and time.time() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    running.kill()
    running.wait()
    assert len(workers) == 2
    deadline = time.time() + 5
    while any(map(alive, workers)) and time.time() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, workers))


def test_a_killed_worker_is_one_sentence(process, many, model, whole):
    before = (
        "import os, signal\n"
        "def die(*a, **k): os.kill(os.getpid(), signal.SIGKILL)\n"
        "prediction.work = die"
    )
    done = process(
        "predict", *many, "-o", "o.fits", "-m", model, "-j", "2", before=before
    )
    assert done.status == 1
    assert "a worker process was killed" in done.err
    assert "Traceback" not in done.err
    assert not [name for name in os.listdir() if name.startswith((".", "o."))]


# ------------------------------------------------------------------------ real files

REAL = Path("/work/shared/data/formats")


@pytest.mark.skipif(not REAL.is_dir(), reason="the real files aren't here")
def test_real_files_of_every_format_get_rows(stellar, here, model):
    done = stellar("predict", REAL, "-o", "o.fits", "-m", model, "--log", "o.log")
    assert done.status in (0, 3), done.err
    rows = read("o.fits")
    files = [p for p in REAL.rglob("*") if p.name.lower().endswith((".fits", ".gz"))]
    assert len(rows) == len(files)
    finite = np.isfinite(rows["teff"])
    np.testing.assert_array_equal(finite, rows["flag"] & FAILED == 0)
