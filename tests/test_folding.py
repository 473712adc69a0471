"""Prepared tables and folded ones: bit for bit there and back, nothing left half."""

from __future__ import annotations

import filecmp
import gzip
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stellarcli import folding, provenance
from stellarcli.errors import StellarError, UsageError
from stellarcli.prepared import PreparedTable, PreparedWriter
from stellarcli.preprocess import RECIPES, Batch, Recipe, fold

CARDS = provenance.cards(["stellar", "preprocess", *["spectra/" * 5] * 5])
UNITS = {"snr": "", "teff": "K", "rv": "km/s"}


def recipe_of(pixels):
    grid = {"start": 4000.0, "step": 1.0, "pixels": pixels}
    return Recipe.from_steps("tiny", [{"resample": {"grids": [grid]}}])


def rows_of(size, seed=1):
    """Scalar columns of every type that label catalogues have."""
    rng = np.random.default_rng(seed)
    types = [("objid", "S12"), ("file", "S30"), ("snr", "f4"), ("teff", "f8")]
    types += [("flag", "i4"), ("id", "i8"), ("good", "?")]
    types += [("u2", "u2"), ("u8", "u8"), ("u1", "u1"), ("i1", "i1"), ("i2", "i2")]
    rows = np.zeros(size, dtype=types)
    for name in rows.dtype.names:
        kind = rows.dtype[name]
        if kind.kind == "S":
            rows[name] = [f"{name[0]} {i:d}" for i in range(size)]
        elif kind.kind == "f":
            rows[name] = rng.normal(0, 1e3, size)
            rows[name][:1] = np.nan
        elif kind.kind == "b":
            rows[name] = rng.random(size) < 0.5
        else:
            limits = np.iinfo(kind)
            rows[name] = rng.integers(limits.min, limits.max, size, kind, endpoint=True)
    return rows


def batch_of(rows, pixels, seed=1):
    rng = np.random.default_rng(seed)
    shape = (rows, pixels)
    flux = rng.normal(1, 0.1, shape).astype(np.float32)
    ivar = rng.choice([0, 1e-30, 25, 3e30], shape).astype(np.float32)
    wavelength = recipe_of(pixels).wavelength
    mask = (ivar == 0).astype(np.uint8)
    return Batch(wavelength, flux, ivar, mask, np.zeros(rows), (((0, pixels),),))


def prepared(path, rows=5, pixels=24, cards=CARDS, recipe=None):
    """Write a prepared table in two parts."""
    table, batch = rows_of(rows), batch_of(rows, pixels)
    with PreparedWriter(str(path), recipe or recipe_of(pixels), cards, UNITS) as writer:
        for part in (slice(0, rows // 2), slice(rows // 2, None)):
            writer.append(table[part], batch.rows(part))
    return str(path)


@pytest.fixture
def table(tmp_path):
    return prepared(tmp_path / "prepared.fits")


def names(directory):
    return sorted(os.listdir(directory))


# ------------------------------------------------------------------------------ shapes


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        (None, None),
        ("64x64", (64, 64)),
        (" 32 X 128 ", (32, 128)),
        ("1×4096", (1, 4096)),
    ],
)
def test_parse_shape(text, shape):
    assert folding.parse_shape(text) == shape


@pytest.mark.parametrize("text", ["", "64", "64x", "x64", "0x64", "-1x5", "64x64x1"])
def test_parse_shape_names_value_and_form(text):
    with pytest.raises(UsageError, match=r"ROWSxCOLUMNS.*64x64") as error:
        folding.parse_shape(text)
    assert repr(text) in str(error.value)


# ------------------------------------------------------------------------------- files


def test_a_folded_table_is_what_it_says(table, tmp_path):
    output = str(tmp_path / "folded.fits")
    assert folding.fold_table(table, output, (4, 6)) == 5
    source = PreparedTable(table)
    with fits.open(output, checksum=True) as hdus:  # a wrong sum is a warning: an error
        assert [hdu.name for hdu in hdus[1:]] == [
            *("SPECTRA", "IMAGES", "IVAR_IMAGES", "WAVELENGTH")
        ]
        assert hdus[0].header["FOLD"] == "4x6"
        for name, value, _ in CARDS:
            assert hdus[0].header[name] == value
        assert Recipe.from_json(hdus[0].header["RECIPE"]) == source.recipe
        flux, ivar = source.spectra(slice(None))
        np.testing.assert_array_equal(hdus["IMAGES"].data, fold(flux, (4, 6)))
        np.testing.assert_array_equal(hdus["IVAR_IMAGES"].data, fold(ivar, (4, 6)))
        wavelength = hdus["WAVELENGTH"]
        np.testing.assert_array_equal(wavelength.data, fold(source.wavelength, (4, 6)))
        assert wavelength.header["BUNIT"] == "Angstrom"
        assert hdus["IMAGES"].data.dtype == np.dtype(">f4")
        assert wavelength.data.dtype == np.dtype(">f8")
        assert hdus["SPECTRA"].columns.names == source.names
        assert hdus["SPECTRA"].columns["teff"].unit == "K"
        assert "CHECKSUM" in wavelength.header
    assert names(tmp_path) == ["folded.fits", "prepared.fits"]


def test_unfolding_gives_the_prepared_table_again(table, tmp_path):
    output, again = str(tmp_path / "folded.fits"), str(tmp_path / "again.fits")
    folding.fold_table(table, output, (6, 4))
    assert folding.unfold_table(output, again) == 5
    assert filecmp.cmp(table, again, shallow=False)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(1, 7), st.integers(1, 6), st.integers(2, 6), st.sampled_from([1, 64])
)
def test_round_trip_for_any_size(tmp_path, rows, height, width, block):
    source = prepared(tmp_path / "p.fits", rows, height * width)
    output, again = str(tmp_path / "f.fits"), str(tmp_path / "a.fits")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folding, "BLOCK_PIXELS", block)
        folding.fold_table(source, output, (height, width))
        folding.unfold_table(output, again)
    assert filecmp.cmp(source, again, shallow=False)


def test_other_blocks_give_the_same_bytes(table, tmp_path, monkeypatch):
    one, two = str(tmp_path / "one.fits"), str(tmp_path / "two.fits")
    folding.fold_table(table, one, (4, 6))
    monkeypatch.setattr(folding, "BLOCK_PIXELS", 30)
    folding.fold_table(table, two, (4, 6))
    assert filecmp.cmp(one, two, shallow=False)


def test_the_recipe_knows_the_shape(tmp_path):
    grid = {"start": 4000.0, "step": 1.0, "pixels": 24}
    steps = [{"resample": {"grids": [grid]}}, {"fold": {"shape": [3, 8]}}]
    source = prepared(tmp_path / "p.fits", recipe=Recipe.from_steps("wide", steps))
    folding.fold_table(source, str(tmp_path / "f.fits"))
    assert fits.getheader(tmp_path / "f.fits")["FOLD"] == "3x8"


def test_without_a_shape_images_are_64x64(tmp_path):
    source = prepared(tmp_path / "p.fits", rows=2, pixels=4096)
    folding.fold_table(source, str(tmp_path / "f.fits"))
    assert fits.getheader(tmp_path / "f.fits")["FOLD"] == "64x64"


@pytest.mark.parametrize(
    ("pixels", "shape"), [(2816, "44x64"), (96, "8x12"), (24, "4x6")]
)
def test_other_sizes_take_the_shape_nearest_to_a_square(tmp_path, pixels, shape):
    source = prepared(tmp_path / "p.fits", rows=2, pixels=pixels)
    folding.fold_table(source, str(tmp_path / "f.fits"))
    assert fits.getheader(tmp_path / "f.fits")["FOLD"] == shape


def test_to_standard_output(table, tmp_path):
    code = "import sys\nfrom stellarcli import folding\n"
    code += "folding.fold_table(sys.argv[1], '-', (4, 6))"
    done = subprocess.run(
        [sys.executable, "-c", code, table], capture_output=True, check=True
    )
    piped = tmp_path / "piped.fits"
    piped.write_bytes(done.stdout)
    again = tmp_path / "again.fits"
    folding.unfold_table(str(piped), str(again))
    assert filecmp.cmp(table, again, shallow=False)


def test_names_that_mean_something_to_cfitsio(tmp_path):
    folder = tmp_path / "a[1](b)"
    folder.mkdir()
    source = prepared(folder / "p[2].fits")
    folded, again = str(folder / "f(x).fits"), str(folder / "u[1].fits")
    folding.fold_table(source, folded, (4, 6))
    folding.unfold_table(folded, again)
    assert filecmp.cmp(source, again, shallow=False)
    assert folding.is_folded(folded)


def test_over_its_own_source(table):
    before = PreparedTable(table).spectra(slice(None))[0]
    folding.fold_table(table, table, (4, 6))
    folding.unfold_table(table, table)
    np.testing.assert_array_equal(PreparedTable(table).spectra(slice(None))[0], before)


def test_columns_of_every_type_are_read_right(table):
    """FITS stores truth values as letters and foreign integers with an offset."""
    expected, found = rows_of(5), PreparedTable(table)
    for name in expected.dtype.names:
        values = found.column(name)
        if values.dtype.kind == "U":
            values = values.astype("S")
        np.testing.assert_array_equal(values, expected[name], err_msg=name)
        np.testing.assert_array_equal(found.rows()[name], expected[name], err_msg=name)
    assert found.rows().dtype == expected.dtype


# ------------------------------------------------------------------------------ errors


def test_native_sampling_can_not_be_folded(tmp_path):
    batch = batch_of(3, 24)
    wavelength = np.tile(batch.wavelength, (3, 1))
    own = Batch(
        *(wavelength, batch.flux, batch.ivar, batch.mask),
        batch.redshift,
        batch.segments,
    )
    path = str(tmp_path / "p.fits")
    with PreparedWriter(path, RECIPES["spectrafm"]) as writer:
        writer.append(rows_of(3), own)
    with pytest.raises(UsageError, match=r"spectrafm.*own sampling.*resample"):
        folding.fold_table(path, str(tmp_path / "f.fits"), (4, 6))
    assert names(tmp_path) == ["p.fits"]


def test_a_shape_that_does_not_fit(table, tmp_path):
    with pytest.raises(UsageError, match=r"5x5.*24.*4x6"):
        folding.fold_table(table, str(tmp_path / "f.fits"), (5, 5))
    prime = prepared(tmp_path / "prime.fits", rows=2, pixels=31)
    with pytest.raises(UsageError, match=r"31\. Shapes that fit: none near a square"):
        folding.fold_table(prime, str(tmp_path / "f.fits"))
    assert names(tmp_path) == ["prepared.fits", "prime.fits"]


def test_the_command_checks_before_it_folds(table, tmp_path, stellar):
    output, png = str(tmp_path / "f.fits"), tmp_path / "f.png"
    words = ["fold", table, "-o", output, "--png", png]
    for wrong in (["--row", "99"], ["--shape", "5x5"], ["--png", "f.gif"]):
        done = stellar(*words, *wrong)
        assert (done.status, names(tmp_path)) == (2, ["prepared.fits"]), done.err
    done = stellar(*words)
    assert done.err == f"5 images of 4x6 pixels in {output}\n"
    assert png.exists()
    again = stellar("fold", table, "-o", tmp_path / "g.fits", "--png", png)
    assert "f.png exists; give --overwrite" in again.err
    assert names(tmp_path) == ["f.fits", "f.png", "prepared.fits"]


def test_folding_and_unfolding_twice_names_the_next_step(table, tmp_path):
    output = str(tmp_path / "f.fits")
    folding.fold_table(table, output, (4, 6))
    with pytest.raises(UsageError, match="stellar fold --unfold"):
        folding.fold_table(output, str(tmp_path / "g.fits"), (4, 6))
    with pytest.raises(UsageError, match=r"no folded table.*'stellar fold'"):
        folding.unfold_table(table, str(tmp_path / "g.fits"))


def test_files_that_are_none(table, tmp_path):
    text = tmp_path / "text.fits"
    text.write_text("no FITS")
    empty = str(tmp_path / "empty.fits")
    fits.PrimaryHDU().writeto(empty)
    for path in (str(text), str(tmp_path / "none.fits"), empty, str(tmp_path)):
        for function in (folding.fold_table, folding.unfold_table):
            with pytest.raises(UsageError):
                function(path, str(tmp_path / "f.fits"))
        assert not folding.is_folded(path)
    assert "f.fits" not in names(tmp_path)


def test_damaged_tables(table, tmp_path):
    output = tmp_path / "f.fits"
    folding.fold_table(table, str(output), (4, 6))
    for path, function in ((table, folding.fold_table), (output, folding.unfold_table)):
        whole = (tmp_path / path).read_bytes()
        for share in (0.3, 0.5, 0.7):
            cut = tmp_path / "cut.fits"
            cut.write_bytes(whole[: int(share * len(whole))])
            with pytest.raises(UsageError):
                function(str(cut), str(tmp_path / "g.fits"))
    assert names(tmp_path) == ["cut.fits", "f.fits", "prepared.fits"]


def test_compressed_tables(table, tmp_path):
    with pytest.raises(UsageError, match="name it without"):
        folding.fold_table(table, str(tmp_path / "f.fits.gz"), (4, 6))
    packed = tmp_path / "p.fits.gz"
    packed.write_bytes(gzip.compress(Path(table).read_bytes()))
    with pytest.raises(UsageError, match="gunzip"):
        folding.fold_table(str(packed), str(tmp_path / "f.fits"), (4, 6))


def test_a_directory_that_is_not_there(table, tmp_path):
    with pytest.raises(UsageError, match="there is no directory"):
        folding.fold_table(table, str(tmp_path / "none" / "f.fits"), (4, 6))


def test_nothing_is_left_after_a_failure(table, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folding, "write_wavelength", fail)
    with pytest.raises(StellarError, match="no space left"):
        folding.fold_table(table, str(tmp_path / "f.fits"), (4, 6))
    assert names(tmp_path) == ["prepared.fits"]


def test_nothing_is_left_after_an_interruption(tmp_path):
    writer = PreparedWriter(str(tmp_path / "p.fits"), recipe_of(24))

    def interrupted():
        with writer:
            writer.append(rows_of(2), batch_of(2, 24))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert names(tmp_path) == []


def test_errors_of_the_caller_are_not_the_disks(tmp_path):
    writer = PreparedWriter(str(tmp_path / "p.fits"), recipe_of(24))
    with pytest.raises(FileNotFoundError), writer:
        raise FileNotFoundError("a spectrum")
    assert names(tmp_path) == []


# ------------------------------------------------------------------------------ images


def test_read_image_of_either_table(table, tmp_path):
    output = str(tmp_path / "f.fits")
    folding.fold_table(table, output, (4, 6))
    flux, ivar = PreparedTable(table).spectra(slice(2, 3))
    for image in (
        folding.read_image(table, 2, (6, 4)),
        folding.read_image(output, 2, (6, 4)),
    ):
        np.testing.assert_array_equal(image.flux, fold(flux[0], (6, 4)))
        np.testing.assert_array_equal(image.ivar, fold(ivar[0], (6, 4)))
        assert image.wavelength[1, -1] == 4004
        assert image.row["objid"] == b"o 2"
    assert folding.read_image(output, 0).flux.shape == (4, 6)


@pytest.mark.parametrize("row", [-1, 5])
def test_rows_that_are_not_there(table, tmp_path, row):
    output = str(tmp_path / "f.fits")
    folding.fold_table(table, output, (4, 6))
    for path in (table, output):
        with pytest.raises(UsageError, match=f"no row {row}.*0 to 4"):
            folding.read_image(path, row, (4, 6))
