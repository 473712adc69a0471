"""Tables: what is written is read back, and nothing half-written is ever left."""

import importlib.util
import os
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from stellarcli import __version__, catalog, labels, provenance
from stellarcli.catalog import BAD, FAILED, FLAG_MEANING, Column, Flag
from stellarcli.errors import OutputExistsError, StellarError, UsageError

COLUMNS = catalog.columns([labels.get("teff"), labels.get("feh")])
FORMATS = (".fits", ".fits.gz", ".csv", ".ecsv", ".vot", ".parquet")


def table(size=5, seed=1):
    """Rows of a catalogue: the first one failed, the last one has an odd file name."""
    rng = np.random.default_rng(seed)
    values = {
        "objid": [str(100 + i) for i in range(size)],
        "file": [f"spec-{i:0{3 + i}d}.fits" for i in range(size)],
        "ra": rng.uniform(0, 360, size),
        "dec": rng.uniform(-90, 90, size),
        "snr": rng.uniform(5, 90, size),
        "teff": rng.uniform(4000, 8000, size),
        "teff_err": rng.uniform(10, 90, size),
        "feh": rng.uniform(-2, 0.5, size),
        "feh_err": rng.uniform(0.1, 0.3, size),
        "flag": rng.integers(0, 2**31, size),
    }
    values["file"][-1] = catalog.encode_name("Spektrum für 100%.fits")
    rows = catalog.rows(COLUMNS, values)
    rows["teff"][0] = rows["teff_err"][0] = np.nan
    return rows


def stellar(code, **options):
    """Run Python code in a process of its own."""
    return subprocess.run([sys.executable, "-c", code], timeout=120, **options)


def assert_same(found, expected):
    assert found.dtype.names == expected.dtype.names
    for name in expected.dtype.names:
        left, right = found[name], expected[name]
        if right.dtype.kind == "S":
            left, right = left.astype(str), right.astype(str)
        np.testing.assert_array_equal(left, right, err_msg=name)


# --------------------------------------------------------------------------- flags


def test_every_flag_has_a_bit_and_a_meaning():
    assert set(FLAG_MEANING) == set(Flag)
    assert all(flag.bit_count() == 1 for flag in Flag)
    assert all(len(text) < 60 for text in FLAG_MEANING.values())


def test_bad_covers_failed_and_leaves_circumstances_out():
    assert FAILED & BAD == FAILED
    for flag in (Flag.LOW_SNR, Flag.NO_VELOCITY, Flag.PARTIAL_COVERAGE):
        assert not flag & BAD


def test_describe_flags():
    assert catalog.describe_flags(0) == "none"
    assert catalog.describe_flags(np.int32(4 + 16)) == "LOW_SNR, NO_VELOCITY"
    assert catalog.describe_flags(1 << 20) == "bit 20"


# ------------------------------------------------------------------------- columns


def test_columns_in_the_order_of_the_contract():
    names = [column.name for column in COLUMNS]
    assert names[:5] == ["objid", "file", "ra", "dec", "snr"]
    assert names[5:] == ["teff", "teff_err", "feh", "feh_err", "flag"]
    by_name = {column.name: column for column in COLUMNS}
    assert by_name["teff_err"].unit == "K"
    assert by_name["ra"].dtype == "f8"


def test_rows_fill_what_is_missing():
    rows = catalog.rows(COLUMNS, {"objid": ["a", "bcd"], "snr": [1, 2]})
    assert rows.dtype["objid"] == "S3"
    assert np.isnan(rows["teff"]).all()
    assert (rows["flag"] == 0).all()
    assert (rows["file"] == b"").all()


def test_rows_refuse_a_column_that_does_not_exist():
    with pytest.raises(ValueError, match="tef"):
        catalog.rows(COLUMNS, {"tef": [1.0]})


# --------------------------------------------------------------------- round trips


@pytest.mark.parametrize("ending", FORMATS)
def test_round_trip(tmp_path, ending):
    path = tmp_path / f"out{ending}"
    catalog.write(path, table(), COLUMNS, [("MODEL", "giants", "model")])
    found = catalog.read(path)
    assert_same(found.rows, table())
    assert os.listdir(tmp_path) == [path.name]
    if ending != ".csv":
        assert found.units == {
            "ra": "deg",
            "dec": "deg",
            "teff": "K",
            "teff_err": "K",
        }
    if ending not in (".csv", ".vot"):
        assert found.header["MODEL"] == "giants"


@pytest.mark.parametrize("ending", FORMATS)
def test_empty_table(tmp_path, ending):
    path = tmp_path / f"out{ending}"
    catalog.write(path, table()[:0], COLUMNS)
    found = catalog.read(path).rows
    assert len(found) == 0
    assert found.dtype.names == table().dtype.names


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("scratch")


@given(
    arrays("f8", 3),
    arrays("f4", 3),
    arrays("i4", 3),
    arrays("i8", 3),
    st.lists(st.text(), min_size=3, max_size=3),
)
def test_fits_keeps_every_value(scratch, f8, f4, i4, i8, names):
    kinds = {"f8": f8, "f4": f4, "i4": i4, "i8": i8}
    text = [catalog.encode_name(name.replace("\0", "")) for name in names]
    columns = [Column(name, name) for name in kinds] + [Column("text", "S")]
    rows = catalog.rows(columns, kinds | {"text": text})
    catalog.write(scratch / "any.fits", rows, columns, overwrite=True)
    assert_same(catalog.read(scratch / "any.fits").rows, rows)


@given(st.binary().map(lambda b: os.fsdecode(b.replace(b"\0", b""))))
def test_names_become_ascii_and_come_back(name):
    text = catalog.encode_name(name)
    assert text.isascii()
    assert text == text.strip()
    assert catalog.decode_name(text) == name


def test_plain_names_stay_as_they_are():
    name = "dir/spec-55859-F5902_sp03-232 (1).fits.gz"
    assert catalog.encode_name(name) == name
    assert catalog.encode_name("ü 50%") == "%C3%BC 50%25"


def test_text_that_nobody_encoded_is_written_without_loss(tmp_path):
    rows = catalog.rows([Column("name", "S")], {"name": ["β Cet", "50%"]})
    catalog.write(tmp_path / "a.fits", rows)
    found = catalog.read(tmp_path / "a.fits").rows["name"]
    assert found.tolist() == ["%CE%B2 Cet", "50%"]


def test_vector_columns_and_columns_as_found(tmp_path):
    rows = np.zeros(3, dtype=[("flux", ">f4", (7,)), ("name", "U4")])
    rows["flux"] = np.arange(21).reshape(3, 7)
    rows["name"] = ["a", "bb", "cccc"]
    catalog.write(tmp_path / "a.fits", rows, catalog.columns_of(rows, {"flux": "Jy"}))
    found = catalog.read(tmp_path / "a.fits")
    assert_same(found.rows, rows)
    assert found.units == {"flux": "Jy"}


# -------------------------------------------------------------------- FITS details


def test_header_says_what_is_in_the_file(tmp_path):
    from astropy.io import fits

    long = "stellar predict 'it''s' & " * 12 + "&"
    cards = [
        ("COMMAND", long, "command line"),
        ("NAN", float("nan"), "undefined"),
        ("COUNT", np.int64(7)),
        ("TRUTH", np.True_),
        ("PLACE", "Köln", ""),
        ("HISTORY", "once " * 40),
        ("HISTORY", "twice"),
    ]
    catalog.write(tmp_path / "a.fits", table(), COLUMNS, cards)
    with fits.open(tmp_path / "a.fits", checksum=True) as file:
        file.verify("exception")
        header = file[1].header
        assert all("CHECKSUM" in hdu.header for hdu in file)
    assert header["COMMAND"] == long
    assert (header["COUNT"], header["TRUTH"]) == (7, True)
    assert header["PLACE"] == "K%C3%B6ln"
    assert "twice" in header["HISTORY"]
    assert header["FLAGB2"].startswith("LOW_SNR: ")
    assert header["FLAGBAD"] == BAD
    teff = [column.name for column in COLUMNS].index("teff") + 1
    assert header[f"TUNIT{teff}"] == "K"
    assert header[f"TCOMM{teff}"] == "effective temperature"
    assert header[f"TDISP{teff}"] == "F9.2"
    again = catalog.read(tmp_path / "a.fits").header
    assert again["COMMAND"] == long
    assert again["HISTORY"].endswith("twice")


def test_checksum_notices_a_changed_byte(tmp_path):
    import fitsio

    path = tmp_path / "a.fits"
    catalog.write(path, table(), COLUMNS)
    with fitsio.FITS(path) as file:
        file[1].verify_checksum()
    data = path.read_bytes().replace(b"spec-0001", b"spec-0002")
    path.write_bytes(data)
    with fitsio.FITS(path) as file, pytest.raises(ValueError, match="data checksum"):
        file[1].verify_checksum()


@given(st.lists(st.integers(0, 40), max_size=5))
def test_bytes_do_not_depend_on_the_cuts(scratch, cuts):
    rows = table(40)
    bounds = [0, *sorted(cuts), len(rows)]
    parts = [rows[a:b] for a, b in pairwise(bounds)]
    catalog.write(scratch / "whole.fits", rows, COLUMNS, overwrite=True)
    catalog.write_parts(scratch / "parts.fits", parts, COLUMNS, overwrite=True)
    same = (scratch / "whole.fits").read_bytes()
    assert (scratch / "parts.fits").read_bytes() == same


def test_bytes_do_not_depend_on_the_clock_or_the_kind_of_part(tmp_path, monkeypatch):
    monkeypatch.setattr(catalog.writing, "CHUNK", 7)
    rows = table(40)
    np.save(tmp_path / "part.npy", rows[20:])
    wide = rows[:20].astype(
        [(n, "S99" if n == "file" else rows.dtype[n]) for n in rows.dtype.names]
    )
    catalog.write(tmp_path / "a.fits.gz", rows, COLUMNS)
    time.sleep(1.1)  # cfitsio and gzip write whole seconds
    parts = [lambda: wide, tmp_path / "part.npy"]
    catalog.write_parts(tmp_path / "b.fits.gz", parts, COLUMNS)
    same = (tmp_path / "a.fits.gz").read_bytes()
    assert (tmp_path / "b.fits.gz").read_bytes() == same


def test_parts_are_read_once_when_the_widths_are_known(tmp_path):
    rows = table(10)
    widths = catalog.string_widths([rows], COLUMNS)
    parts = (rows[i : i + 1] for i in range(10))
    catalog.write_parts(tmp_path / "a.fits", parts, COLUMNS, widths=widths)
    assert_same(catalog.read(tmp_path / "a.fits").rows, rows)


def test_text_is_never_cut_off(tmp_path):
    with pytest.raises(ValueError, match="objid"):
        catalog.write_parts(
            tmp_path / "a.fits", [table()], COLUMNS, widths={"objid": 2, "file": 99}
        )
    assert os.listdir(tmp_path) == []


# -------------------------------------------------------------------------- outputs


def test_existing_output_is_refused(tmp_path):
    path = tmp_path / "a.fits"
    catalog.write(path, table(), COLUMNS)
    before = path.read_bytes()
    with pytest.raises(OutputExistsError, match="--overwrite"):
        catalog.write(path, table(3), COLUMNS)
    assert path.read_bytes() == before
    catalog.write(f"!{path}", table(3), COLUMNS)
    assert len(catalog.read(path).rows) == 3
    catalog.write(path, table(4), COLUMNS, overwrite=True)
    assert len(catalog.read(path).rows) == 4


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.doc", r"a\.doc.*\.fits.*\.parquet"),
        ("nowhere/a.fits", "no directory"),
        ("folder.fits", "is a directory"),
    ],
)
def test_impossible_outputs_are_found_early(tmp_path, name, message):
    (tmp_path / "folder.fits").mkdir()
    with pytest.raises(UsageError, match=message):
        catalog.check_output(tmp_path / name)


def test_parquet_without_pyarrow_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'stellarcli\[parquet\]"):
        catalog.check_output(tmp_path / "a.parquet")


def test_a_terminal_gets_no_binary(monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    with pytest.raises(UsageError, match="terminal"):
        catalog.check_output("-")


@pytest.mark.parametrize("ending", FORMATS)
def test_a_failure_on_the_way_leaves_nothing(tmp_path, ending):
    path = tmp_path / f"a{ending}"

    def failing():
        yield table()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        catalog.write_parts(path, failing(), COLUMNS, widths={"objid": 9, "file": 99})
    assert os.listdir(tmp_path) == []


@pytest.fixture
def small_disk(tmp_path):
    """Mount a file system of 200 kB; skip where that isn't allowed."""
    place = tmp_path / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", place]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("can't mount a small file system here")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


@pytest.mark.parametrize("ending", FORMATS)
def test_full_disk(small_disk, ending):
    rows = table(6000)
    rows["file"] = np.random.default_rng(0).integers(10**9, 2**62, 6000).astype("S")
    with pytest.raises(StellarError, match="no space left") as caught:
        catalog.write(small_disk / f"a{ending}", rows, COLUMNS)
    assert str(caught.value).count("\n") == 0
    assert os.listdir(small_disk) == []


@pytest.mark.parametrize("rows", [1700, 1900, 2000, 2050, 2100, 2200])
def test_a_disk_that_is_nearly_full(small_disk, rows):
    path = small_disk / "a.fits"
    try:
        catalog.write(path, table(rows), COLUMNS)
    except StellarError:
        assert os.listdir(small_disk) == []
    else:
        assert len(catalog.read(path).rows) == rows


WRITE = """
from tests.test_catalog import table, COLUMNS, catalog
catalog.write("-", table(), COLUMNS)
"""


def test_pipes(tmp_path):
    catalog.write(tmp_path / "a.fits", table(), COLUMNS)
    written = stellar(WRITE, capture_output=True, check=True)
    assert written.stdout == (tmp_path / "a.fits").read_bytes()
    assert written.stderr == b""
    copy = (
        "from stellarcli import catalog as c; t = c.read('-');"
        "c.write('-', t.rows, c.columns_of(t.rows, t.units))"
    )
    copied = stellar(copy, input=written.stdout, capture_output=True, check=True)
    (tmp_path / "b.fits").write_bytes(copied.stdout)
    assert_same(catalog.read(tmp_path / "b.fits").rows, table())


def test_full_standard_output():
    with open("/dev/full", "wb") as full:
        done = stellar(WRITE, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1
    assert b"StellarError: can't write standard output: no space left" in done.stderr


def test_closed_pipe_is_no_error_of_ours():
    reading, writing = os.pipe()
    os.close(reading)
    done = stellar(WRITE, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert b"BrokenPipeError" in done.stderr
    assert b"StellarError" not in done.stderr


@pytest.mark.parametrize(
    "name",
    ["a(1)", "b[2]", "[1]", "c+3", "d e", "stdin", "mem:x", "!x", "ü", "e.fits[1]"],
)
def test_names_that_mean_something_to_cfitsio(tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkdir(name)
    for path in (os.path.join(tmp_path, name, f"{name}.fits"), f"./{name}.fits"):
        catalog.write(path, table(), COLUMNS)
        assert_same(catalog.read(path).rows, table())
    with pytest.raises(OutputExistsError):
        catalog.write(f"./{name}.fits", table(), COLUMNS)


# -------------------------------------------------------------------------- reading


def test_extended_names(tmp_path):
    path = tmp_path / "a.fits"
    catalog.write(path, table(20), COLUMNS)
    found = catalog.read(f"{path}[1][snr > 40]").rows
    expected = table(20)
    assert_same(found, expected[expected["snr"] > 40])
    assert catalog.read(f"{path}[catalogue][col objid]").rows.dtype.names == ("objid",)
    with pytest.raises(UsageError, match="can't read"):
        catalog.read(f"{path}[1][nothing > 40]")
    with pytest.raises(UsageError, match="not a table"):
        catalog.read(f"{path}[0]")
    with pytest.raises(UsageError, match="no table"):
        catalog.read(f"{tmp_path}/b.fits[1]")


def test_the_first_table_with_rows_is_read_unless_told(tmp_path):
    from astropy.io import fits

    empty = fits.BinTableHDU.from_columns([fits.Column("a", "J", array=[])], name="ONE")
    full = fits.BinTableHDU.from_columns([fits.Column("b", "J", array=[1])], name="TWO")
    last = fits.BinTableHDU.from_columns([fits.Column("c", "J", array=[2])], name="END")
    file = fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(), empty, full, last])
    file[0].header["ORIGIN"] = "here"
    file.writeto(tmp_path / "a.fits")
    found = catalog.read(tmp_path / "a.fits")
    assert found.rows.dtype.names == ("b",)
    assert found.header["ORIGIN"] == "here"
    assert catalog.read(f"{tmp_path}/a.fits[4]").rows.dtype.names == ("c",)
    assert catalog.read(f"{tmp_path}/a.fits[END][c > 0]").rows["c"].tolist() == [2]
    assert catalog.read(f"{tmp_path}/a.fits[ONE]").rows.dtype.names == ("a",)


@pytest.mark.parametrize("ending", [".fits", ".csv", ".ecsv", ".vot", ".parquet"])
def test_damaged_files_give_one_sentence(tmp_path, ending):
    path = tmp_path / f"a{ending}"
    for content in (b"", b"\x00\xff" * 3000, b"a,b\n1\n2,3,4\n"):
        path.write_bytes(content)
        with pytest.raises(UsageError, match=f"a{ending}") as caught:
            catalog.read(path)
        assert "\n" not in str(caught.value)


def test_truncated_fits(tmp_path):
    path = tmp_path / "a.fits"
    catalog.write(path, table(2000), COLUMNS)
    path.write_bytes(path.read_bytes()[:20000])
    with pytest.raises(UsageError, match="can't read"):
        catalog.read(path)


def test_standard_input_that_is_no_table():
    done = stellar(
        "from stellarcli import catalog; catalog.read('-')",
        input=b"objid,teff\n1,5000\n",
        capture_output=True,
    )
    assert b"UsageError: can't read standard input as FITS" in done.stderr


def test_missing_cells_of_csv(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("\ufeffname, id,n,x\n a ,6904703228801028864,1,1.5\n,,,\nb,12,3,\n")
    found = catalog.read(path)
    rows = found.rows
    assert rows["name"].tolist() == ["a", "", "b"]
    assert rows[found.find("ID")].tolist() == ["6904703228801028864", "", "12"]
    np.testing.assert_array_equal(rows["n"], [1, np.nan, 3])
    np.testing.assert_array_equal(rows["x"], [1.5, np.nan, np.nan])


@pytest.mark.parametrize("ending", [".fits", ".csv"])
def test_reading_some_columns(tmp_path, ending):
    path = tmp_path / f"a{ending}"
    catalog.write(path, table(), COLUMNS)
    found = catalog.read(path, lambda name: name.startswith("teff"))
    assert found.rows.dtype.names == ("teff", "teff_err")
    none = catalog.read(path, lambda name: False).rows
    assert not none.dtype.names
    assert len(none) == 5


# ------------------------------------------------------------------------- matching


def structured(**values):
    """Structured array of columns given by name."""
    values = {name: np.asarray(value) for name, value in values.items()}
    size = len(next(iter(values.values())))
    rows = np.zeros(size, dtype=[(name, value.dtype) for name, value in values.items()])
    for name, value in values.items():
        rows[name] = value
    return rows


@pytest.mark.parametrize(
    "right",
    [
        structured(obsid=[7, 1, 30]),
        structured(OBSID=["7", " 1", "0030"]),
        structured(obsid=[7.0, 1.0, 30.0]),
        structured(objid=[b"7", b"1", b"30"]),
        structured(specobjid=np.array([7, 1, 30], dtype="u8")),
    ],
)
def test_numbers_equal_the_text_that_spells_them(right):
    found = catalog.match(structured(objid=["1", "2", "30", "7"]), right)
    assert found.index.tolist() == [1, -1, 2, 0]
    assert found.counts == {"objid": 3}


def test_long_identifiers_keep_their_digits():
    left = structured(source_id=[6904703228801028864, 6904703228801028865])
    right = structured(source_id=["6904703228801028865"])
    assert catalog.match(left, right).index.tolist() == [-1, 0]


def test_fillers_never_match():
    fillers = ["", "0", "-9999", "nan", "--", "NaN", "None"]
    found = catalog.match(structured(objid=fillers), structured(objid=fillers))
    assert (found.index == -1).all()
    for filler in (0, -9999):
        rows = structured(objid=[filler, 5])
        assert catalog.match(rows, rows).index.tolist() == [-1, 1]
    rows = structured(objid=[np.nan, -9999.0, 5.0])
    assert catalog.match(rows, rows).index.tolist() == [-1, -1, 2]
    rows = structured(ra=[0.0, np.nan, -9999.0, 5.0], dec=[0.0, 1.0, -9999.0, 5.0])
    assert catalog.match(rows, rows).index.tolist() == [-1, -1, -1, 3]


def test_files_by_base_name_without_gz():
    left = structured(file=["raw/a.fits", "b.fits.gz", "c.fits", "%C3%BC.fits"])
    right = structured(filename=["/else/ü.fits.gz", "a.fits.gz", "x/b.fits", ""])
    found = catalog.match(left, right)
    assert found.index.tolist() == [1, 2, -1, 0]
    assert found.counts == {"file": 3}


def test_sky_within_the_radius():
    offsets = np.array([0, 2.9, 3.1]) / 3600
    left = structured(ra=[359.9999, 10.0, 10.0], dec=[60.0, 0.0, -20.0])
    right = structured(
        RAJ2000=[10.0, 0.0001 - 0.0002, 10.0],
        DEJ2000=[-20 + offsets[2], 60.0, offsets[1]],
    )
    assert catalog.match(left, right).index.tolist() == [1, 2, -1]
    assert catalog.match(left, right, radius=3.2).index.tolist() == [1, 2, 0]


def test_ways_are_tried_in_order_for_each_row():
    left = structured(
        objid=["1", "2", "3", "4"],
        file=["a", "b", "c", "d"],
        ra=[10.0, 20.0, 30.0, 40.0],
        dec=[1.0, 1.0, 1.0, 1.0],
    )
    right = structured(
        obsid=[1, 99, 98],
        file=["b", "b", "z"],
        ra=[40.0, 20.0, 30.0],
        dec=[1.0, 1.0, 1.0],
    )
    found = catalog.match(left, right)
    assert found.index.tolist() == [0, 0, 2, 0]
    assert found.how.tolist() == ["objid", "file", "sky", "sky"]
    assert catalog.match(left, right, by=["sky"]).how.tolist() == [
        "",
        "sky",
        "sky",
        "sky",
    ]


def test_first_of_several_is_taken_and_the_rest_counted():
    found = catalog.match(
        structured(objid=[5, 6]), structured(objid=[6, 5, 5, 5, 0, 0])
    )
    assert found.index.tolist() == [1, 0]
    assert found.duplicates == 2


def test_tables_with_nothing_in_common():
    found = catalog.match(structured(objid=[1]), structured(teff=[5000.0]))
    assert found.index.tolist() == [-1]
    assert found.counts == {}
    empty = catalog.match(structured(objid=[1])[:0], structured(objid=[1])[:0])
    assert empty.index.size == 0


@given(st.permutations(range(1, 30)), st.integers(0, 29))
def test_matching_finds_a_permutation(order, kept):
    order = np.array(order[:kept], dtype=int)
    left = structured(objid=np.arange(1, 30))
    found = catalog.match(left, structured(objid=order.astype(str))).index
    for row, place in enumerate(found):
        if place < 0:
            assert row + 1 not in order
        else:
            assert order[place] == row + 1


def test_column_is_a_value():
    assert replace(Column("a", "f4"), unit="K") == Column("a", "f4", "K")


# ----------------------------------------------------------------------- provenance


def test_provenance_in_the_header(tmp_path, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    command = ["/usr/bin/stellar", "predict", "a b.fits", "-o", "ü.fits"]
    cards = provenance.cards(command, model=("giants", "model file"), rows=7)
    catalog.write(tmp_path / "a.fits", table(), COLUMNS, cards)
    header = catalog.read(tmp_path / "a.fits").header
    assert header["PROGRAM"] == "stellar"
    assert header["VERSION"] == __version__
    assert header["DATE"] == "1970-01-02T00:00:00"
    assert header["COMMAND"] == "stellar predict 'a b.fits' -o '%C3%BC.fits'"
    assert (header["MODEL"], header["ROWS"]) == ("giants", 7)
    assert header["NUMPY"] == np.__version__


def test_date_is_utc_and_now(monkeypatch):
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    now = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())
    later = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(time.time() + 5))
    assert now <= provenance.date() <= later


@pytest.mark.parametrize(
    "arguments",
    [
        ["--token", "s3cret"],
        ["--token=s3cret"],
        ["--lamost-token", "s3cret"],
        ["https://archive/get?id=1&token=s3cret&x=2"],
        ["https://me:s3cret@archive/x"],
    ],
)
def test_secrets_are_masked(arguments):
    shown = provenance.command(["stellar", "fetch", *arguments, "end"])
    assert "s3cret" not in shown
    assert "***" in shown
    assert shown.startswith("stellar fetch ")
    assert shown.endswith(" end")


def test_versions_need_no_import():
    done = stellar(
        "import sys; from stellarcli import provenance as p; f = p.facts(['stellar']);"
        "assert 'torch' in f and not {'torch', 'numpy'} & set(sys.modules)"
    )
    assert done.returncode == 0


def test_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert provenance.sha256(tmp_path / "a").startswith("ba7816bf8f01cfea")


def test_nothing_matches_an_empty_catalogue():
    kind = [("file", "S8"), ("objid", "S4"), ("ra", "f8"), ("dec", "f8")]
    rows = np.array([(b"a.fits", b"1", 1.0, 2.0)], dtype=kind)
    assert catalog.Matcher(rows[:0], 3.0)(rows).index.tolist() == [-1]
    assert catalog.Matcher(rows, 3.0)(rows[:0]).index.tolist() == []
