"""What the user types as inputs, and how it is cut into tasks."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import surveyfiles
from conftest import RECIPE

from stellarcli import catalog, inputs
from stellarcli.errors import UsageError
from stellarcli.inputs import Task, expand, tasks


@pytest.fixture
def files(here):
    """Raw files in nested directories, among them some that are no spectra."""
    for name in (
        "b.fits",
        "a.fit",
        "c.FITS.GZ",
        "deep/er/d.fits.gz",
        "deep/e.fits",
        "deep/.hidden.fits",
        ".cache/f.fits",
        "notes.txt",
        "deep/list.csv",
    ):
        Path("in", name).parent.mkdir(parents=True, exist_ok=True)
        Path("in", name).write_bytes(b"x")
    return [
        *("in/a.fit", "in/b.fits", "in/c.FITS.GZ"),
        *("in/deep/e.fits", "in/deep/er/d.fits.gz"),
    ]


def test_directories_are_searched_sorted_without_hidden_files(files):
    assert expand(["in"]) == files
    assert expand(["in/", "in/b.fits"]) == [*files, "in/b.fits"]


def test_texts_in_directories_are_left_out_and_named(files):
    told = []
    assert expand(["in"], note=told.append) == files
    assert len(told) == 1
    assert "a text file in a directory left out, such as in/notes.txt" in told[0]


def test_a_list_of_files_that_are_not_here(here):
    Path("list.txt").write_text("one.fits\ntwo.fits\n")
    with pytest.raises(UsageError, match="lists 2 files, and none exists, not even"):
        expand(["@list.txt"])


def test_links_to_directories_are_followed_once(files):
    os.symlink("../../in", "in/deep/loop")
    os.mkdir("other")
    Path("other/z.fits").write_bytes(b"x")
    os.symlink("../other", "in/zz")
    assert expand(["in"]) == [*files, "in/zz/z.fits"]


def test_globs_are_expanded_here(files):
    assert expand(["in/*.fits"]) == ["in/b.fits"]
    assert expand(["in/**/*.fits"]) == ["in/b.fits", "in/deep/e.fits"]
    with pytest.raises(UsageError, match=r"no file matches 'in/\*.fts'"):
        expand(["in/*.fts"])


def test_names_that_look_like_globs_are_names(here):
    for name in ("a[1].fits", "what?.fits", "x(2).fits"):
        Path(name).write_bytes(b"x")
        assert expand([name]) == [name]
    assert expand(["*.fits"]) == ["a[1].fits", "what?.fits", "x(2).fits"]


def test_the_output_is_no_input_where_the_user_did_not_name_it(files):
    assert expand(["in"], "in/b.fits") == [f for f in files if f != "in/b.fits"]
    assert expand(["in/*.fit*"], "!./in/b.fits") == ["in/a.fit"]
    assert expand(["in/b.fits"], "in/b.fits") == ["in/b.fits"]


def test_lists(here):
    content = b"# night 3\r\n a b.fits \r\n\n\xe9\xff.fits\n#x\nin"
    Path("list.txt").write_bytes(content)
    Path("in").mkdir()
    assert expand(["@list.txt"]) == ["a b.fits", os.fsdecode(b"\xe9\xff.fits"), "in"]


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "no spectra in '@list'"), (b"SIMPLE\0", "neither text nor a catalogue")],
)
def test_bad_lists(here, content, words):
    Path("list").write_bytes(content)
    with pytest.raises(UsageError, match=words):
        expand(["@list"])
    with pytest.raises(UsageError, match="list 'none': No such file"):
        expand(["@none"])


def test_missing_files_stay_among_others(files):
    assert expand(["none.fits", "in/b.fits"]) == ["none.fits", "in/b.fits"]


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["in/b.fit"], "there is no 'in/b.fit'; check the name. Did you mean 'in/b.fi"),
        (["inn/"], "there is no 'inn/'; check the name. Did you mean 'in'?"),
        (["i/c.fits", "x"], "none of the 2 inputs exists, not even 'i/c.fits'"),
        (["in/deep/err/"], "Did you mean 'in/deep/er'?"),
        (["quite/other"], r"there is no 'quite/other'; check the name\.$"),
    ],
)
def test_mistyped_names(files, typed, words):
    with pytest.raises(UsageError, match=words):
        expand(typed)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may look everywhere")
def test_what_can_not_be_reached_is_not_missing(files):
    os.chmod("in", 0)
    try:
        assert expand(["in/b.fits"]) == ["in/b.fits"]
    finally:
        os.chmod("in", 0o755)


@pytest.mark.parametrize("command", ["predict", "preprocess"])
def test_a_mistyped_name_writes_nothing(stellar, stars, command):
    done = stellar(command, "star-9.fits", "-o", "o.fits")
    assert (done.status, done.out) == (2, b"")
    assert "'star-9.fits'" in done.err
    assert "Did you mean 'star-" in done.err
    assert not Path("o.fits").exists()


def test_paths_of_a_catalogue_are_found_beside_it(here):
    names = ["a.fits", "100%25.fits", "gone.fits"]
    os.mkdir("night")
    for name in ("a.fits", "100%.fits"):
        Path("night", name).write_bytes(b"x")
    rows = np.array([(n, 5.0) for n in names], [("FileName", "S20"), ("snr", "f4")])
    for table in ("night/c.fits", "night/c.csv", "night/c.ecsv"):
        catalog.write(table, rows)
        expected = ["night/a.fits", "night/100%.fits", "gone.fits"]
        assert expand([table]) == expected, table


@pytest.fixture
def mixed(stellar, stars, model):
    """Spectra with an earlier output and the split of a training beside them."""
    os.mkdir("mix")
    for name in stars:
        os.rename(name, f"mix/{name}")
    done = stellar("predict", "mix", "-o", "mix/params.fits", "-m", model, "-q")
    assert done.status == 0, done.err
    split = np.array([("1", "a", 0, "train")], "S1,S1,i8,S5")
    split.dtype.names = "objid", "table", "row", "part"
    catalog.write("mix/split.fits", split)
    return [f"mix/{name}" for name in stars]


def test_catalogues_among_other_inputs_are_left_out(mixed):
    catalogues = ["mix/params.fits", "mix/split.fits"]
    for arguments in (["mix"], ["mix/*"], [*mixed, *catalogues]):
        notes = []
        assert expand(arguments, note=notes.append) == mixed
        assert notes == [
            "mix/params.fits and 1 more are catalogues, not spectra: left out; "
            "@mix/params.fits stands for the files that it lists."
        ]
    with pytest.raises(UsageError, match=r"no spectra in 'mix/params\.fits', 'mix/s"):
        expand(catalogues)


def test_catalogues_meant_as_lists(mixed):
    catalog.write("mix/params.csv", catalog.read("mix/params.fits").rows)
    for name in ("mix/params.fits", "mix/params.csv"):
        for argument in (name, f"@{name}"):
            notes = []
            assert expand([argument], note=notes.append) == mixed
            assert notes == [f"5 files listed in {name}"]
        assert expand(["x.fits", f"@{name}"]) == ["x.fits", *mixed]
    some = "mix/params.fits[#row<3]"
    assert expand([some, "x.fits"]) == [*mixed[:2], "x.fits"]
    assert expand([f"@{some}"]) == mixed[:2]
    with pytest.raises(UsageError, match=r"split\.fits has neither spectra nor a col"):
        expand(["mix/split.fits"])


def test_what_happened_to_catalogues_is_said(mixed, stellar, model):
    done = stellar("predict", "mix", "-o", "again.fits", "-m", model)
    assert "mix/params.fits and 1 more are catalogues" in done.err
    done = stellar(
        "predict", "-", "-o", "b.fits", stdin=Path("again.fits").read_bytes()
    )
    assert "5 files listed in the table on standard input" in done.err
    assert catalog.read("b.fits").rows["file"].tolist() == mixed
    words = ["mix/params.fits", "-o", "c.fits", "-m", model, "--quiet"]
    assert stellar("predict", *words).err == ""
    again = catalog.read("c.fits").rows
    assert again.tolist() == catalog.read("again.fits").rows.tolist()


# ------------------------------------------------------------------------- kinds


@pytest.mark.parametrize("example", surveyfiles.EXAMPLES)
def test_spectra_of_every_survey_are_spectra(here, example):
    _, path = surveyfiles.build(example, here)
    assert inputs.kind(str(path)) == "spectrum"
    assert expand([str(path)]) == [str(path)]


def test_kinds_of_other_files(here, stellar):
    Path("empty.fits").write_bytes(b"")
    Path("text.fits").write_text("hello")
    os.mkdir("folder.fits")
    surveyfiles.galaxy_image("image.fits")
    surveyfiles.text("columns.csv", heading="wavelength,flux,error", separator=",")
    for name in ("empty", "text", "folder", "image", "missing"):
        assert inputs.kind(f"{name}.fits") == "spectrum"
    assert inputs.kind("columns.csv") == "spectrum"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_looking_at_a_pipe_doesnt_wait_for_it(here):
    os.mkfifo("pipe.fits")
    assert inputs.kind("pipe.fits") == "spectrum"


# ------------------------------------------------------------------------- tasks


@pytest.fixture
def prepared(stellar, stars):
    Path("tiny.yaml").write_text(json.dumps(RECIPE))
    done = stellar("preprocess", *stars, "-r", "tiny.yaml", "-o", "p.fits")
    assert done.status == 0, done.err
    return "p.fits"


def test_tasks_keep_the_order_and_the_size(prepared):
    assert inputs.kind(prepared) == "prepared"
    paths = [f"{n}.fits" for n in range(5)]
    found = list(tasks([*paths, prepared, "x.fits", prepared], 2))
    assert found == [
        Task(paths=("0.fits", "1.fits")),
        Task(paths=("2.fits", "3.fits")),
        Task(paths=("4.fits",)),
        Task(table=prepared, start=0, stop=2),
        Task(table=prepared, start=2, stop=4),
        Task(table=prepared, start=4, stop=5),
        Task(paths=("x.fits",)),
        Task(table=prepared, start=0, stop=2),
        Task(table=prepared, start=2, stop=4),
        Task(table=prepared, start=4, stop=5),
    ]
    assert [len(task) for task in found] == [2, 2, 1, 2, 2, 1, 1, 2, 2, 1]


def test_a_cut_prepared_table_is_one_sentence(prepared):
    content = Path(prepared).read_bytes()
    Path("cut.fits").write_bytes(content[: len(content) // 2])
    with pytest.raises(UsageError, match=r"cut\.fits"):
        list(tasks(["cut.fits"], 2))
