"""`stellar preprocess`: spectra onto one grid, with all that is known of them."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import surveyfiles
from astropy.io import fits
from conftest import RECIPE

from stellarcli import catalog, dataset, preparation, preprocess
from stellarcli.catalog import FAILED, Flag
from stellarcli.inputs import Task
from stellarcli.prepared import PreparedTable
from stellarcli.preprocess import Recipe
from stellarcli.settings import TrainConfig


@pytest.fixture
def recipe(here):
    """Name of a file with the recipe of the tiny spectra."""
    Path("tiny.yaml").write_text(json.dumps(RECIPE))
    return "tiny.yaml"


def labels_of(stars, **columns):
    """Catalogue with columns for some of the stars, in another order."""
    names = list(columns)
    arrays = [np.asarray(columns[name]) for name in names]
    rows = np.zeros(
        len(arrays[0]), [(n, a.dtype) for n, a in zip(names, arrays, strict=True)]
    )
    for name, array in zip(names, arrays, strict=True):
        rows[name] = array
    catalog.write("labels.fits", rows, overwrite=True)
    return "labels.fits"


def test_the_prepared_table(stellar, stars, recipe):
    done = stellar("preprocess", *stars, "-r", recipe, "-o", "p.fits")
    assert done.status == 0, done.err
    table = PreparedTable("p.fits")
    assert table.recipe.name == "tiny"
    assert table.column("file").tolist() == stars
    assert table.column("objid").tolist() == [str(1000 + n) for n in range(5)]
    assert table.column("subclass").tolist() == ["G5"] * 5
    np.testing.assert_allclose(table.column("rv"), 29.98, atol=0.01)
    assert table.column("flag").tolist() == [0] * 5
    flux, ivar = table.spectra(slice(None))
    assert flux.shape == (5, 384)
    assert (ivar > 0).all()
    # the line at 5000 Å is at rest, and the continuum is 1
    assert abs(table.wavelength[flux.mean(axis=0).argmin()] - 5000) < 1
    assert abs(np.median(flux) - 1) < 0.01


def test_bad_inputs_keep_their_rows(stellar, stars, recipe):
    Path("bad.fits").write_bytes(b"")
    surveyfiles.lamost_image("zero.fits", flux=np.zeros(400))
    given = ["bad.fits", stars[0], "none.fits", "zero.fits", stars[1]]
    words = ["preprocess", *given, "-r", recipe, "-o", "p.fits", "--log", "p.log"]
    done = stellar(*words)
    assert done.status == 3
    table = PreparedTable("p.fits")
    assert table.column("file").tolist() == given
    failed = table.column("flag") & FAILED != 0
    assert failed.tolist() == [True, False, True, True, False]
    assert (table.spectra(slice(None))[1].sum(axis=1) > 0).tolist() == (
        ~failed
    ).tolist()
    log = Path("p.log").read_text()
    for words in (
        "bad.fits: the file is empty",
        "none.fits: no such file",
        "zero.fits",
    ):
        assert words in log
        assert words in done.err
    done = stellar("preprocess", "bad.fits", "-r", recipe, "-o", "!p.fits")
    assert done.status == 64
    assert len(PreparedTable("p.fits")) == 1


def test_workers_and_repetition_dont_change_a_byte(stellar, stars, recipe, monkeypatch):
    monkeypatch.setattr(preparation, "CHUNK", 2)
    contents = []
    for workers in ("1", "2", "2"):
        done = stellar(
            "preprocess", *stars, "-r", recipe, "-o", "!p.fits", "--workers", workers
        )
        assert done.status == 0, done.err
        contents.append(Path("p.fits").read_bytes())
    assert contents[0] == contents[1] == contents[2]


def test_a_pipe_carries_the_same_table(stellar, stars, recipe):
    stellar("preprocess", *stars, "-r", recipe, "-o", "p.fits")
    done = stellar("preprocess", *stars, "-r", recipe, "-o", "-")
    assert done.status == 0
    Path("piped.fits").write_bytes(done.out)
    one, two = PreparedTable("p.fits"), PreparedTable("piped.fits")
    np.testing.assert_array_equal(one.spectra(slice(None)), two.spectra(slice(None)))
    assert "5 spectra in standard output" in done.err


# ---------------------------------------------------------------------------- labels


def test_labels_join_by_identifier(stellar, stars, recipe):
    labels = labels_of(
        stars,
        obsid=[1003, 999, 1000],
        teff=[5300.0, 1.0, 5000.0],
        SNR=[3.0, 1.0, 2.0],
        note=["c", "x", "a"],
        count=np.array([3, 1, 2], "i2"),
        small=np.array([3, 1, 2], "i1"),
        good=[True, True, False],
    )
    done = stellar(
        "preprocess", *stars, "-r", recipe, "-o", "p.fits", "--labels", labels
    )
    assert done.status == 0, done.err
    assert "2 of 5 matched a row of labels.fits" in done.err
    table = PreparedTable("p.fits")
    nan = np.nan
    np.testing.assert_array_equal(table.column("teff"), [5000, nan, nan, 5300, nan])
    np.testing.assert_array_equal(table.column("SNR_label"), [2, nan, nan, 3, nan])
    assert table.column("note").tolist() == ["a", "", "", "c", ""]
    assert table.column("count").tolist() == [2, -9999, -9999, 3, -9999]
    assert table.column("small").tolist() == [2, -128, -128, 3, -128]
    assert table.column("good").tolist() == [False, False, False, True, False]
    np.testing.assert_allclose(table.column("snr"), 31.5)


def test_labels_join_by_file_and_by_sky(stellar, stars, recipe):
    words = ["preprocess", *stars, "-r", recipe, "-o", "!p.fits", "--labels"]
    labels = labels_of(
        stars, file=[f"/elsewhere/{stars[2]}.gz", "x"], teff=[5200.0, 1.0]
    )
    assert "1 of 5 matched" in stellar(*words, labels).err
    assert PreparedTable("p.fits").column("teff")[2] == 5200
    assert (
        PreparedTable("p.fits").column("file_label")[2] == "/elsewhere/star-2.fits.gz"
    )
    labels = labels_of(
        stars, RAJ2000=[158.209454], DEJ2000=[35.693413 + 2 / 3600], teff=[5200.0]
    )
    assert "5 of 5 matched" in stellar(*words, labels).err
    before = Path("p.fits").read_bytes()
    done = stellar(*words, labels, "--radius", "1")
    assert done.status == 2
    assert "no spectrum belongs to a row of" in done.err
    assert "identifiers (objid, obsid, …)" in done.err
    assert Path("p.fits").read_bytes() == before


def test_label_names_never_clash(stellar, stars, recipe):
    rows = np.array(
        [(1000, 1.0, 2.0, 3.0)],
        [("obsid", "i8"), ("snr", "f4"), ("SNR_label", "f4"), ("flux", "f4")],
    )
    catalog.write("l.csv", rows)
    done = stellar(
        "preprocess", *stars, "-r", recipe, "-o", "p.fits", "--labels", "l.csv"
    )
    assert done.status == 0, done.err
    names = {name.lower() for name in PreparedTable("p.fits").names}
    assert {"snr", "snr_label", "snr_label_label", "flux_label"} <= names


# --------------------------------------------------------------------------- recipes


def test_native_sampling_is_padded_to_the_longest(stellar, here, monkeypatch):
    monkeypatch.setattr(preparation, "CHUNK", 2)
    names = []
    for n, size in enumerate((100, 150, 400, 90, 60)):
        names.append(f"n{n}.fits")
        surveyfiles.lamost_image(names[-1], size=size, OBSID=100 + n)
    Path("bad.fits").write_bytes(b"")
    names.insert(1, "bad.fits")
    done = stellar("preprocess", *names, "-r", "spectrafm", "-o", "p.fits")
    assert done.status == 3, done.err
    table = PreparedTable("p.fits")
    assert table.wavelength is None
    assert table.pixels == 400
    batch = table.batch(slice(None))
    pixels = np.isfinite(batch.wavelength).sum(axis=1)
    assert pixels.tolist() == [100, 0, 150, 400, 90, 60]
    assert ((batch.ivar > 0).sum(axis=1) == pixels).all()
    np.testing.assert_allclose(
        batch.wavelength[0, :100], surveyfiles.grid(100) / (1 + 1e-4), rtol=1e-7
    )
    piped = stellar("preprocess", *names, "-r", "spectrafm", "-o", "-", "-q")
    assert piped.status == 3
    Path("piped.fits").write_bytes(piped.out)
    assert PreparedTable("piped.fits").pixels == 400
    assert [name for name in os.listdir() if name.startswith(".")] == []


@pytest.mark.parametrize("name", preprocess.RECIPES)
def test_every_recipe_takes_every_layout(here, name):
    paths = [
        surveyfiles.build(example, here / f"{n}")[1]
        for n, example in enumerate(surveyfiles.EXAMPLES)
        if (here / f"{n}").mkdir() is None
    ]
    task = Task(paths=tuple(map(str, paths)))
    chunk = preparation.run(task, preprocess.RECIPES[name])
    assert not (chunk.rows["flag"] & Flag.UNREADABLE).any(), chunk.reasons
    good = chunk.batch.good.any(axis=1)
    np.testing.assert_array_equal(good, chunk.rows["flag"] & FAILED == 0)
    failed = np.flatnonzero(~good).tolist()
    assert set(failed) <= {row for row, _ in chunk.reasons}, (
        "every failure has a reason"
    )
    assert np.isfinite(chunk.batch.flux).all()
    assert np.isfinite(chunk.batch.ivar).all()


def test_both_arms_of_medium_resolution(stellar, here):
    surveyfiles.lamost_mrs("m.fits", exposures=(1, 2))
    done = stellar("preprocess", "m.fits", "-r", "rdn", "-o", "p.fits")
    assert done.status == 0, done.err
    assert PreparedTable("p.fits").pixels == 8802
    words = ["preprocess", "m.fits", "-r", "rdn", "-o", "!p.fits", "--exposures"]
    assert stellar(*words).status == 0
    table = PreparedTable("p.fits")
    assert len(table) == 2
    assert table.column("file").tolist() == ["m.fits"] * 2


def test_recipe_from_a_model_file(stellar, stars, model):
    done = stellar("preprocess", *stars, "-r", model, "-o", "p.fits")
    assert done.status == 0
    assert PreparedTable("p.fits").recipe.name == "tiny"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["-r", "scanett"], ["unknown recipe 'scanett'", "'scanet'"]),
        (["-r", "bad-step.yaml"], ["'resmaple'", "'resample'"]),
        (["-r", "bad-key.yaml"], ["'widht'", "'width'"]),
        (["-r", "bad.yaml"], ["bad.yaml", "not YAML"]),
        (["-r", "none.yaml"], ["recipe 'none.yaml'", "No such file"]),
        (["--labels", "none.fits"], ["there is no table none.fits"]),
        (["--labels", "star-0.fits"], ["star-0.fits"]),
        (["-o", "p.csv"], ["'p.csv'", "*.fits"]),
        (["-o", "p.fits.gz"], ["p.fits.gz"]),
        (["-o", "star-1.fits"], ["star-1.fits exists", "--overwrite"]),
        (["-o", "none/p.fits"], ["no directory none"]),
        (["--radius", "-1"], ["--radius", "-1"]),
        (["--workers", "0"], ["--workers"]),
    ],
)
def test_wrong_usage(stellar, stars, options, words):
    Path("bad-step.yaml").write_text("- rest_frame\n- resmaple: {}\n")
    Path("bad-key.yaml").write_text("- continuum: {method: smooth, widht: 3}\n")
    Path("bad.yaml").write_text("a: [1\n")
    before = {name: Path(name).read_bytes() for name in os.listdir()}
    output = [] if "-o" in options else ["-o", "p.fits"]
    done = stellar("preprocess", *stars, *output, *options)
    assert done.status == 2, done.err
    for word in words:
        assert word in done.err
    assert {name: Path(name).read_bytes() for name in os.listdir()} == before


def test_prepared_tables_are_not_prepared_again(stellar, stars, recipe):
    stellar("preprocess", *stars, "-r", recipe, "-o", "p.fits")
    done = stellar("preprocess", "p.fits", "-r", recipe, "-o", "q.fits")
    assert done.status == 2
    assert "'p.fits' is prepared already" in done.err


@pytest.mark.parametrize("room", [0, 9000, 30_000])
@pytest.mark.parametrize("name", ["tiny.yaml", "spectrafm"])
def test_a_full_disk(stellar, stars, recipe, small_disk, name, room):
    (small_disk / "ballast").write_bytes(bytes(400_000 - room))
    output = small_disk / "p.fits"
    done = stellar("preprocess", *stars * 4, "-r", name, "-o", output)
    assert done.status == 1, done.err
    assert f"can't write {output}: no space left on the disk" in done.err
    assert os.listdir(small_disk) == ["ballast"]


# -------------------------------------------------------------------- odd spectra


def test_a_readers_mistake_is_a_row(here, monkeypatch, caplog):
    surveyfiles.lamost_image("a.fits")

    def fail(path):
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(preparation.surveys, "read", fail)
    chunk = preparation.run(Task(paths=("a.fits",)), Recipe.from_steps("tiny", RECIPE))
    assert chunk.rows["flag"].tolist() == [Flag.UNREADABLE]
    assert chunk.reasons[0][1].startswith("the reader failed (ZeroDivisionError: oops)")


def test_neighbours_dont_matter(stars):
    recipe = Recipe.from_steps("tiny", RECIPE)
    surveyfiles.lamost_image("wild.fits", flux=np.full(400, 1e30), ivar=np.ones(400))
    first = (stars[1], "none.fits", stars[0])
    among = preparation.run(Task(paths=first), recipe).batch
    paths = ("wild.fits", "none.fits", stars[0])
    wild = preparation.run(Task(paths=paths), recipe).batch
    assert np.isfinite(wild.flux).all()
    assert np.isfinite(wild.ivar).all()
    np.testing.assert_array_equal(wild.flux[2], among.flux[2])
    np.testing.assert_array_equal(wild.ivar[2], among.ivar[2])


def test_long_texts_are_kept(stellar, here, recipe):
    text = "a" * 68
    surveyfiles.lamost_image("a.fits", SUBCLASS=text)
    stellar("preprocess", "a.fits", "-r", recipe, "-o", "p.fits")
    assert PreparedTable("p.fits").column("subclass").tolist() == [text]


@pytest.mark.parametrize(("columns", "measured"), [(2, True), (3, False)])
def test_a_file_without_errors_says_so(here, columns, measured):
    path = str(surveyfiles.text(here / "star.txt", columns=columns))
    chunk = preparation.run(Task(paths=(path,)), preprocess.get("spectrafm"))
    assert bool(chunk.rows["flag"][0] & Flag.NOISE_MEASURED) == measured
    assert any("no errors" in reason for _, reason in chunk.reasons) == measured
    assert any("taken as vacuum" in reason for _, reason in chunk.reasons)


def test_a_lamost_file_without_its_ivar_column_says_so(here):
    path = here / "star.fits"
    surveyfiles.lamost_table(path, columns=("FLUX", "WAVELENGTH"))
    chunk = preparation.run(Task(paths=(str(path),)), preprocess.get("spectrafm"))
    assert chunk.rows["flag"][0] & Flag.NOISE_MEASURED


def test_the_figure_is_checked_before_the_work(stellar, stars, recipe, here):
    Path("bad.fits").write_bytes(b"")
    Path("there.png").write_bytes(b"")
    for options, words in (
        (["--figure", "f.png", "--row", "99"], "no input 99 to draw"),
        (["--figure", "f.png", "--row", "5"], "'bad.fits', can't be drawn"),
        (["--figure", "f.gif"], "name it *.png"),
        (["--figure", "there.png"], "there.png exists; give --overwrite"),
        (["--row", "2"], "--row says what --figure draws"),
    ):
        words_given = ["preprocess", *stars, "bad.fits", "-r", recipe, "-o", "p.fits"]
        done = stellar(*words_given, *options)
        assert done.status == 2
        assert words in done.err
        assert not Path("p.fits").exists()
    done = stellar(*words_given, "--figure", "there.png", "--row", "1", "--overwrite")
    assert done.status == 3
    assert Path("there.png").stat().st_size


def test_the_table_explains_itself_folded_too(stellar, stars, recipe):
    assert stellar("preprocess", *stars, "-r", recipe, "-o", "p.fits").status == 0
    assert stellar("fold", "p.fits", "-o", "f.fits").status == 0
    assert stellar("fold", "f.fits", "--unfold", "-o", "again.fits").status == 0
    for name in ("p.fits", "f.fits", "again.fits"):
        primary, header = (fits.getheader(name, n) for n in (0, "SPECTRA"))
        assert primary["FLAGB0"] == "UNREADABLE: no spectrum could be read"
        assert primary["FLAGBAD"] == catalog.BAD
        comments = {
            header[f"TTYPE{n}"]: header.get(f"TCOMM{n}")
            for n in range(1, header["TFIELDS"] + 1)
        }
        assert comments["rv"] == "radial velocity that was removed"
        assert comments["flag"] == "bits explained by FLAGBn"
        assert all(comments[column.name] for column in preparation.INFO)
    assert Path("again.fits").read_bytes() == Path("p.fits").read_bytes()


def test_plans_of_the_headers_keep_plates_together(stellar, recipe, here):
    for n in range(8):
        own = {"OBSID": n + 1, "RA": 10.0 * n, "PLANID": f"plan{n // 2}"}
        surveyfiles.lamost_image(f"s{n}.fits", **own)
    done = stellar("preprocess", "s*.fits", "-r", recipe, "-o", "p.fits")
    assert done.status == 0
    table = PreparedTable("p.fits")
    assert table.column("plan").tolist() == [f"plan{n // 2}" for n in range(8)]
    settings = {"target": "mjd", "group": "plan", "validation": 0.4}
    parts = dataset.load(["p.fits"], TrainConfig.resolve(settings)).part
    assert parts[::2].tolist() == parts[1::2].tolist()
    assert len(set(parts)) == 2
