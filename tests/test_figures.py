"""Figures: every recipe and survey can be drawn, and bad requests are explained."""

from __future__ import annotations

import numpy as np
import pytest
import surveyfiles

from stellarcli import figures, folding
from stellarcli.errors import NoUsableSpectraError, OutputExistsError, UsageError
from stellarcli.inputs import Task
from stellarcli.preprocess import RECIPES, Batch, Recipe
from stellarcli.spectrum import SPEED_OF_LIGHT, PixelMask, Spectrum, SpectrumMeta
from stellarcli.tabulation import write_table

START = {".png": b"\x89PNG", ".pdf": b"%PDF", ".svg": b"<?xml"}


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """An unreadable file, a blank one, then one of every survey."""
    folder = tmp_path_factory.mktemp("spectra")
    broken = folder / "broken.fits"
    broken.write_bytes(b"SIMPLE")
    zero = np.zeros(400, dtype=np.float32)
    made = [
        broken,
        surveyfiles.lamost_table(folder / "blank.fits", flux=zero, ivar=zero),
        surveyfiles.lamost_table(folder / "lrs.fits", size=3909),
        surveyfiles.lamost_mrs(folder / "mrs.fits"),
        surveyfiles.sdss_spec(folder / "sdss.fits"),
        surveyfiles.apogee_visit(folder / "apogee.fits"),
        surveyfiles.text(folder / "star_$x^2$.txt"),
    ]
    return [str(path) for path in made]


@pytest.fixture
def table(paths, tmp_path):
    path = str(tmp_path / "prepared.fits")
    write_table([Task(tuple(paths[1:4]))], path, RECIPES["scanet"])
    return path


def size(path):
    """Width and height of a PNG."""
    return tuple(np.frombuffer(path.read_bytes()[16:24], dtype=">i4").tolist())


# -------------------------------------------------------------------- before and after


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize("row", range(1, 7))
def test_every_recipe_draws_every_survey(paths, tmp_path, recipe, row):
    output = tmp_path / "star.png"
    figures.before_and_after(paths, recipe, str(output), row)
    width, height = size(output)
    assert width == 1050  # 3.5 inches at 300 dots
    assert height > width
    assert [path.name for path in tmp_path.iterdir()] == ["star.png"]


@pytest.mark.parametrize("ending", START)
def test_formats(paths, tmp_path, ending):
    output = tmp_path / f"star{ending}"
    figures.before_and_after(paths, RECIPES["default"], str(output))
    first = output.read_bytes()
    assert first.startswith(START[ending])
    figures.before_and_after(paths, RECIPES["default"], str(output))
    assert output.read_bytes() == first  # no date, no random names


def test_the_first_readable_spectrum_is_drawn(paths, tmp_path):
    one, two = tmp_path / "one.png", tmp_path / "two.png"
    figures.before_and_after(paths, RECIPES["scanet"], str(one))
    figures.before_and_after(paths, RECIPES["scanet"], str(two), 2)
    assert one.read_bytes() == two.read_bytes()


def test_rows_that_can_not_be_drawn(paths, tmp_path):
    output, recipe = str(tmp_path / "star.png"), RECIPES["default"]
    with pytest.raises(UsageError, match=r"input 0, '.*broken.fits', can't be drawn"):
        figures.before_and_after(paths, recipe, output, 0)
    with pytest.raises(UsageError, match=r"no input 7 .* 0 to 6"):
        figures.before_and_after(paths, recipe, output, 7)
    with pytest.raises(NoUsableSpectraError, match="none of 2 inputs"):
        figures.before_and_after(paths[:2], recipe, output)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("method", ["polynomial", "smooth", "quantile"])
def test_the_continuum_is_drawn_where_the_raw_spectrum_is(method):
    """What a recipe divides by is found again, in the observed frame."""
    velocity = 3000.0
    observed = np.linspace(4000, 6000, 4000)
    flux = 50 + 0.01 * (observed - 5000)
    noise = np.full(4000, 0.1)
    meta = SpectrumMeta(rv=velocity)
    empty = np.zeros(4000, np.uint8)
    spectrum = Spectrum(observed, flux, noise**-2, empty, meta)
    grid = {"start": 4200.0, "step": 1.0, "pixels": 1400}
    recipe = Recipe.from_steps(
        "test",
        [
            *("bridge", "rest_frame", {"resample": {"grids": [grid]}}),
            {"continuum": {"method": method}},
        ],
    )
    batch, level = figures._prepare(recipe, spectrum)
    (piece,) = level
    ends = batch.wavelength[[0, -1]] * (1 + velocity / SPEED_OF_LIGHT)
    np.testing.assert_allclose(piece.wavelength[[0, -1]], ends)
    expected = np.interp(piece.wavelength, observed, flux)
    np.testing.assert_allclose(piece.flux, expected, rtol=0.02)
    assert piece.good.all()


def test_pieces_are_the_arms_without_what_is_outside():
    mask = np.zeros((1, 10), np.uint8)
    mask[0, [0, 9]] = PixelMask.OUTSIDE
    mask[0, 3] = PixelMask.SURVEY
    ones = np.ones((1, 10), np.float32)
    segments = (((0, 5), (5, 10)),)
    batch = Batch(np.arange(10.0), ones, ones, mask, np.zeros(1), segments)
    blue, red = figures._pieces(batch)
    np.testing.assert_array_equal(blue.wavelength, [1, 2, 3, 4])
    np.testing.assert_array_equal(blue.good, [True, True, False, True])
    np.testing.assert_array_equal(red.wavelength, [5, 6, 7, 8])


def test_the_title_says_what_is_known():
    def title(**facts):
        arrays = (np.array([4000.0, 4001]), *np.ones((2, 2)), np.zeros(2, np.uint8))
        return figures._title(Spectrum(*arrays, SpectrumMeta(**facts)))

    known = {"objid": "42", "survey": "sdss", "snr": 31.25, "rv": -12.34}
    assert title(**known, object_class="STAR", subclass="F5") == (
        "sdss 42\nSTAR/F5, S/N 31.2, v = -12.3 km/s"
    )
    assert title(objid="星") == " ?\nno class, S/N unknown, no velocity"


# ------------------------------------------------------------------------------ folded


def test_an_image_of_either_table_is_the_same(table, tmp_path):
    output = str(tmp_path / "folded.fits")
    folding.fold_table(table, output)
    one, two = tmp_path / "one.png", tmp_path / "two.png"
    figures.folded(table, None, 1, str(one))
    figures.folded(output, None, 1, str(two))
    assert one.read_bytes() == two.read_bytes()
    assert size(one)[0] == 1050


@pytest.mark.parametrize("shape", [(64, 64), (1, 4096), (4096, 1), (8, 512), (2, 2048)])
@pytest.mark.parametrize("row", [0, 1])  # the first one is blank
def test_images_of_any_shape(table, tmp_path, shape, row):
    figures.folded(table, shape, row, str(tmp_path / "star.svg"))
    assert (tmp_path / "star.svg").read_bytes().startswith(START[".svg"])


def test_images_that_can_not_be_drawn(table, tmp_path):
    output = str(tmp_path / "star.png")
    with pytest.raises(UsageError, match=r"no row 3"):
        figures.folded(table, None, 3, output)
    with pytest.raises(UsageError, match="5x5"):
        figures.folded(table, (5, 5), 0, output)
    with pytest.raises(UsageError, match="prepared table"):
        figures.folded(str(tmp_path / "none.fits"), None, 0, output)


# -------------------------------------------------------------------------------- file


@pytest.mark.parametrize("name", ["star.gif", "star", "-", ".png"])
def test_formats_that_do_not_exist(paths, tmp_path, name):
    with pytest.raises(UsageError, match=r"\*\.png, \*\.pdf, \*\.svg"):
        figures.before_and_after(paths, RECIPES["default"], name)
    with pytest.raises(UsageError, match=r"\*\.png"):
        figures.folded("none.fits", None, 0, name)


def test_output_is_checked_before_the_work(tmp_path):
    there = tmp_path / "star.png"
    there.write_bytes(b"")
    assert figures.check_output(str(there)) == str(there)
    with pytest.raises(OutputExistsError, match="--overwrite"):
        figures.check_output(str(there), overwrite=False)
    with pytest.raises(UsageError, match="no directory"):
        figures.check_output(str(tmp_path / "none" / "star.png"))
