"""Red-clump stars and their frames, simulated; from files to labels with images."""

import tracemalloc
from dataclasses import replace
from types import SimpleNamespace

import fitsio
import numpy as np
import pytest
import torch
from astropy.io import fits
from astropy.wcs import WCS

from stellarcli import catalog, checkpoint, labels, models, prepared
from stellarcli.catalog import BAD, Flag
from stellarcli.errors import UsageError
from stellarcli.explanation.channels import ChannelAttention
from stellarcli.explanation.request import Request
from stellarcli.prepared import PreparedTable, PreparedWriter
from stellarcli.preprocess import Batch, Recipe
from stellarcli.surveys import frames, redclump
from stellarcli.surveys.emulator import Emulator

# SPFusion's recipe with fewer pixels
STEPS = [
    "bridge",
    "rest_frame",
    {
        "resample": {
            "grids": [{"kind": "log10", "start": 4000.0, "step": 1.4e-3, "pixels": 250}]
        }
    },
    "min_max",
    {"pad": {"pixels": 256}},
    {"images": {"bands": ["g", "r", "i"], "size": 16}},
]
SMALL = {"image_size": 16, "drop_path": 0.0}
STARS = 6


@pytest.fixture(scope="module")
def clump():
    """Many stars, without files."""
    rng = np.random.default_rng(0)
    snr = 10 ** rng.uniform(1, 2.3, 1500)
    return redclump.draw(1500, rng, snr, redclump.positions(1500, rng))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Simulated spectra and frames, with what is true of them."""
    from stellarcli import simulation

    folder = tmp_path_factory.mktemp("clump")
    stars = simulation.fetch(
        folder / "spectra", STARS, seed=3, images=True, compress=False
    )
    simulation.write_truth(str(folder / "truth.fits"), stars)
    simulation.write_paths(str(folder / "paths.fits"), stars, folder / "spectra")
    lost = stars["image_g"] == b""
    assert not lost.all()
    return folder


@pytest.fixture
def recipe(tmp_path):
    import yaml

    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump({"name": "small", "steps": STEPS}))
    return path


@pytest.fixture
def model(tmp_path):
    """An untrained SPFusion that has all that a model file has."""
    torch.manual_seed(0)
    network = models.build("spfusion", pixels=256, labels=2, **SMALL).eval()
    own = Recipe.from_steps("small", STEPS)
    ranges = {"mass": (0.5, 3.0), "age": (0.5, 13.0)}
    made = checkpoint.Model(
        name="small",
        architecture="spfusion",
        config=SMALL,
        pixels=256,
        labels=[labels.get(n).fitted(np.linspace(*r, 9)) for n, r in ranges.items()],
        recipe=own,
        wavelength=own.wavelength,
        error_scale=[1.0, 1.0],
        limits={"large_error": 50.0},
        state={f"member0.{k}": v.numpy() for k, v in network.state_dict().items()},
    )
    checkpoint.save(made, tmp_path / "small.safetensors")
    return tmp_path / "small.safetensors"


# --- relations ------------------------------------------------------------------------


def test_ages_follow_from_masses_as_published():
    # the Sun's age at the base of the giant branch (Hurley et al. 2000)
    assert redclump.giant_branch_age(1.0, 0.0) == pytest.approx(11.58, abs=0.05)
    assert redclump.giant_branch_age(2.0, 0.0) == pytest.approx(1.16, abs=0.05)
    assert redclump.giant_branch_age(1.0, -0.5) < redclump.giant_branch_age(1.0, 0.0)
    age, feh = np.array([1.0, 3.0, 10.0]), np.array([-0.5, 0.0, 0.2])
    mass = redclump.mass_of(age, feh)
    back = redclump.LATER * redclump.giant_branch_age(mass, feh)
    np.testing.assert_allclose(back, age, rtol=1e-3)


def test_stars_are_like_the_red_clump(clump):
    medians = {name: np.median(clump[name]) for name in redclump.FIELDS}
    assert 4700 < medians["teff"] < 5050
    assert 2.35 < medians["logg"] < 2.65
    assert 1.1 < medians["mass"] < 1.6
    assert 2.5 < medians["age"] < 6
    assert clump["age"].min() >= 0.8
    assert clump["age"].max() <= 12.5
    assert 0.6 < np.median(clump["g"] - clump["r"] - 1.05 * clump["ebv"]) < 1.0


def test_carbon_over_nitrogen_tells_ages_with_the_published_scatter(clump):
    age = 10.14 + 2.23 * clump["c_n"] - 9  # log Gyr, Spoo et al. 2022
    off = np.log10(clump["age"]) - age
    assert abs(off.mean()) < 0.02
    assert off.std() == pytest.approx(2.23 * redclump.CN_SPREAD, rel=0.1)


def test_dredging_keeps_carbon_and_nitrogen_together():
    carbon, nitrogen = redclump.dredged(np.array([0.0, -0.3, -0.6]))
    assert (carbon[0], nitrogen[0]) == pytest.approx((0, 0), abs=1e-9)
    total = redclump.SUN_CARBON * 10**carbon + 10**nitrogen
    np.testing.assert_allclose(total, 1 + redclump.SUN_CARBON)
    np.testing.assert_allclose(carbon - nitrogen, [0, -0.3, -0.6])


def test_bands_answer_to_carbon_and_nothing_else(clump):
    emulator = Emulator.load()
    two = clump[:2].copy()
    two["c_n"] = redclump.CN_USUAL, redclump.CN_USUAL + 0.3
    factor = redclump.bands(two, emulator.wavelength.size)
    np.testing.assert_allclose(factor[0], 1, atol=1e-6)
    ch = (emulator.wavelength > 4295) & (emulator.wavelength < 4320)
    assert factor[1, ch].mean() < 0.97  # more carbon, a deeper G band
    beyond = emulator.wavelength > 5400
    assert (factor[1, beyond] == 1).all()


# --- frames ---------------------------------------------------------------------------


def test_frames_show_the_star_where_their_coordinates_say(files):
    truth = fitsio.read(files / "truth.fits")
    checked = 0
    for star in truth:
        for band in "gri":
            name = star[f"image_{band}"].strip()
            if not name:
                continue
            with fits.open(files / "spectra" / name) as hdus:
                data, header = hdus[0].data, hdus[0].header
            assert header["FILTER"] == band
            assert "SIMULATED" in str(header["COMMENT"])
            x, y = WCS(header).all_world2pix([[star["ra"], star["dec"]]], 0)[0]
            rows, columns = np.indices(data.shape)
            near = np.hypot(columns - x, rows - y) < 3
            weight = np.where(near, data, 0)
            middle = (weight * columns).sum(), (weight * rows).sum()
            off = np.subtract(np.array(middle) / weight.sum(), (x, y))
            assert np.hypot(*off) < 0.3
            checked += 1
    assert checked >= STARS


def test_pointings_are_gnomonic():
    pointing = frames.Pointing(150.0, 40.0, 100.0, 90.0, 0.7)
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval, wcs.wcs.crpix = (150.0, 40.0), (101.0, 91.0)
    wcs.wcs.cd = pointing.matrix
    places = np.array([[150.01, 40.02], [149.98, 39.99]])
    np.testing.assert_allclose(
        pointing.pixels(*places.T), wcs.all_world2pix(places, 0), atol=1e-6
    )


def test_magnitudes_and_saturation_are_in_the_frames():
    star = np.zeros((), dtype=[(name, "f8") for name in redclump.FIELDS])[()]
    star["ra"], star["dec"], star["r"] = 100.0, 30.0, 16.0
    pointing = frames.Pointing(100.0, 30.0, 96.3, 95.8, 0.2)
    rng = np.random.default_rng(0)
    image = frames.render(star, np.empty((0, 5)), pointing, "r", rng)
    assert image.sum() == pytest.approx(10 ** (0.4 * 6.5), rel=0.03)
    star["r"] = 12.0
    image = frames.render(star, np.empty((0, 5)), pointing, "r", rng)
    assert image.max() == pytest.approx(frames.FULL / frames.GAIN["r"])


def test_a_seed_means_the_same_stars_whatever_their_number(files, tmp_path):
    from stellarcli import simulation

    again = simulation.fetch(tmp_path / "two", 2, seed=3, images=True, compress=False)
    for name in [*again["file"], *(b"frames/" + n for n in again["image_r"] if n)]:
        one, other = (
            folder / name.decode() for folder in (files / "spectra", tmp_path / "two")
        )
        assert one.read_bytes() == other.read_bytes()


def test_images_are_made_of_low_resolution_stars_only(stellar, here):
    done = stellar(
        "fetch", "simulated", "--images", "-o", "a", "--survey", "lamost-mrs"
    )
    assert done.status == 2
    assert "not of lamost-mrs" in done.err
    done = stellar("fetch", "simulated", "--images", "-o", "a", "--range", "teff=5000")
    assert done.status == 2
    assert "leave --range out" in done.err


# --- prepared tables ------------------------------------------------------------------


def prepare(stellar, files, recipe, *more):
    return stellar(
        *("preprocess", files / "spectra", "-o", "p.fits", "-r", recipe),
        *("--labels", files / "truth.fits", *more),
    )


@pytest.mark.parametrize("source", ["paths.fits", "spectra/frames"])
def test_images_come_beside_their_spectra(stellar, here, files, recipe, source):
    done = prepare(stellar, files, recipe, "--images", files / source)
    assert done.status == 0
    assert f"of {STARS} have an image" in done.err
    table = PreparedTable("p.fits")
    assert table.wavelength.size == 256
    pixels = table.feed(slice(None), ["images"])["images"]
    assert pixels.shape == (STARS, 3, 16, 16)
    without = table.column("flag") & Flag.NO_IMAGE != 0
    assert np.isnan(pixels[without]).all()
    assert (pixels[~without].max((2, 3)) == 1).all()
    assert (pixels[~without].min((2, 3)) == 0).all()
    faults = np.stack([table.column(f"imflag_{band}") for band in "gri"], axis=1)
    assert (without == ((faults & 15) != 0).any(1)).all()
    with fits.open("p.fits") as hdus:
        hdus.verify("exception")
        assert hdus["IMAGES"].header["BANDS"] == "g,r,i"
        np.testing.assert_allclose(hdus["IMAGES"].data, pixels, atol=1e-6)


def test_a_figure_shows_three_bands_and_the_spectrum(stellar, here, files, recipe):
    more = ("--images", files / "paths.fits", "--figure", "star.svg")
    assert prepare(stellar, files, recipe, *more).status == 0
    drawn = (here / "star.svg").read_text()
    assert drawn.count("<image") >= 3


def test_a_recipe_without_images_is_refused(stellar, here, files):
    done = prepare(stellar, files, "default", "--images", files / "paths.fits")
    assert done.status == 2
    assert "no step 'images'" in done.err
    assert not (here / "p.fits").exists()


def test_images_are_written_some_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(prepared, "IMAGE_ROWS", 8)
    own = Recipe.from_steps(
        "small", [*STEPS[:-1], {"images": {"bands": ["g"], "size": 64}}]
    )
    grid = own.wavelength
    count, size = 40, 64
    flux = np.zeros((count, grid.size), np.float32)
    batch = Batch(
        *(grid, flux, flux + 1, np.zeros(flux.shape, np.uint8)),
        *(np.zeros(count), (((0, grid.size),),)),
    )
    rows = np.zeros(count, [("objid", "S4"), ("flag", "i4")])
    pixels = np.random.default_rng(0).random((count, 1, size, size), np.float32)
    path = tmp_path / "many.fits"
    tracemalloc.start()
    with PreparedWriter(str(path), own) as writer:
        for n in range(50):
            writer.append(rows, batch, pixels)
            if not n:
                tracemalloc.reset_peak()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    whole = 50 * pixels.nbytes // 2
    assert path.stat().st_size > whole
    assert peak < whole / 6
    table = PreparedTable(path)
    found = table.feed(np.array([1999, 3]), ["images"])["images"]
    np.testing.assert_allclose(found, pixels[[39, 3]], atol=2e-5)


# --- from files to labels -------------------------------------------------------------


def test_images_of_raw_spectra_decide(stellar, here, files, model):
    spectra = files / "spectra"
    with_images = ("--images", files / "paths.fits")
    assert (
        stellar("predict", spectra, "-o", "a.fits", "-m", model, *with_images).status
        == 0
    )
    done = stellar("predict", spectra, "-o", "b.fits", "-m", model)
    assert done.status == 0
    assert "flagged NO_IMAGE" in done.err
    seen, blind = fitsio.read("a.fits"), fitsio.read("b.fits")
    missing = seen["flag"] & Flag.NO_IMAGE != 0
    assert not missing.all()
    assert (blind["flag"] & Flag.NO_IMAGE != 0).all()
    assert np.isfinite(blind["mass"]).all()
    assert not BAD & (Flag.NO_IMAGE | Flag.IMAGE_DEFECT)
    assert (seen["mass"][~missing] != blind["mass"][~missing]).all()
    np.testing.assert_allclose(seen["mass"][missing], blind["mass"][missing], rtol=1e-5)


def test_a_prepared_table_gives_the_same_labels(stellar, here, files, recipe, model):
    source = files / "paths.fits"
    prepare(stellar, files, recipe, "--images", source)
    stellar("predict", "p.fits", "-o", "a.fits", "-m", model)
    stellar(
        "predict", files / "spectra", "-o", "b.fits", "-m", model, "--images", source
    )
    one, other = fitsio.read("a.fits"), fitsio.read("b.fits")
    np.testing.assert_allclose(one["mass"], other["mass"], rtol=1e-3)
    assert (one["flag"] == other["flag"]).all()
    done = stellar("predict", "p.fits", "-o", "c.fits", "-m", model, "--images", source)
    assert done.status == 2
    assert "is prepared, and its images with it" in done.err


def test_models_without_eyes_refuse_images(stellar, here, files):
    done = stellar("predict", files / "spectra", "-o", "a.fits", "--images", "frames")
    assert done.status == 2
    assert "sees no images" in done.err


def test_training_needs_images_and_takes_stars_without(stellar, here, files, recipe):
    prepare(stellar, files, recipe)
    train = ("train", "p.fits", "-m", "spfusion", "--preset", "paper", "--epochs", 1)
    train += ("--set", "network.image_size=16", "--set", "batch_size=3", "-q")
    train += ("--set", "validation=0", "-o", "s.safetensors")
    done = stellar(*train)
    assert done.status == 2
    assert "stellar preprocess --images" in done.err
    (here / "p.fits").unlink()
    prepare(stellar, files, recipe, "--images", files / "paths.fits")
    assert stellar(*train).status == 0
    made = checkpoint.load("s.safetensors")
    assert [label.name for label in made.labels] == ["mass", "age"]
    assert made.recipe.images == (("g", "r", "i"), 16)


def test_a_network_on_images_alone_predicts(stellar, here, files, recipe):
    prepare(stellar, files, recipe, "--images", files / "paths.fits")
    train = ("train", "p.fits", "-m", "resnet10t", "--preset", "paper", "--epochs", 1)
    small = ("--set", "network.stem=[4]", "--set", "network.widths=[4,8]")
    more = ("--set", "batch_size=3", "--set", "validation=0", "-q")
    assert stellar(*train, *small, *more, "-o", "s.safetensors").status == 0
    assert (
        stellar("predict", "p.fits", "-o", "a.fits", "-m", "s.safetensors").status == 0
    )
    assert np.isfinite(fitsio.read("a.fits")["age"]).all()


def test_channel_attention_over_a_batch_and_the_spectrum(
    stellar, here, files, recipe, model
):
    prepare(stellar, files, recipe, "--images", files / "paths.fits")
    explain = ("explain", "p.fits", "-m", model, "--method", "channel-attention")
    done = stellar(*explain, "-o", "a.fits", "--figure", "a.png", "--keep-flagged")
    assert done.status == 0
    table = fitsio.read("a.fits", ext="CATALOGUE")
    assert table["attention"].min() >= 0
    assert table["attention"].max() <= 1
    assert table["attention"].std() > 0
    single = fitsio.read("a.fits", ext="SPECTRA")
    assert single["channels"].shape == (STARS, 96)
    assert ((single["channels"] > 0) & (single["channels"] < 1)).all()
    header = fitsio.read_header("a.fits", ext="CATALOGUE")
    assert header["SPECTRAL"] == "64:96"
    assert (here / "a.png").stat().st_size > 10_000


def test_other_networks_have_no_channel_attention(model):
    network = models.build("sscnn", pixels=256, labels=2)
    made = replace(checkpoint.load(str(model)), architecture="sscnn")
    predictor = SimpleNamespace(model=made, networks=[network])
    with pytest.raises(UsageError, match=r"no channel attention.*spfusion"):
        ChannelAttention(predictor, Request())


def test_published_ablations_are_listed():
    from stellarcli import published

    methods = {m for _, m, _ in published.rows("spfusion", ["mass"])}
    assert {"kernel 11 (S, P)", "4 heads (S, P)", "ConvNeXt 1D (S)"} <= methods
    assert catalog.FLAG_MEANING[Flag.NO_IMAGE]
