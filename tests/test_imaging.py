"""Images of stars: cut out, aligned, judged; frames of all kinds and their faults."""

import bz2
import gzip

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from stellarcli import imaging
from stellarcli.errors import SpectrumError, UsageError
from stellarcli.imaging import Images
from stellarcli.preprocess import RECIPES, Recipe, images
from stellarcli.preprocess.images import Frame, ImageFlag

RA, DEC = 150.1, 2.2
FLUX = 1000.0


def coordinates(angle=0.3, scale=0.396, x=95.3, y=97.8, projection="TAN"):
    """A WCS with the star on pixel (x, y), counted from 0."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = [f"RA---{projection}", f"DEC--{projection}"]
    wcs.wcs.crval = RA, DEC
    wcs.wcs.crpix = x + 1, y + 1
    cosine, sine = np.cos(angle), np.sin(angle)
    wcs.wcs.cd = scale / 3600 * np.array([[-cosine, sine], [sine, cosine]])
    return wcs


def star(shape=(192, 192), x=95.3, y=97.8, width=1.5, flux=FLUX, sky=0.0):
    rows, columns = np.indices(shape)
    profile = np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 2 / width**2)
    return (sky + flux * profile / (2 * np.pi * width**2)).astype(np.float32)


def noisy(image, sigma=0.02, seed=0):
    noise = np.random.default_rng(seed).normal(0, sigma, image.shape)
    return (image + noise).astype(np.float32)


def centroid(image, reach=8):
    middle = images.SIZE // 2
    part = image[middle - reach : middle + reach + 1, middle - reach :][
        :, : 2 * reach + 1
    ]
    rows, columns = np.indices(part.shape) - reach
    return (part * columns).sum() / part.sum(), (part * rows).sum() / part.sum()


def write(path, data, wcs=None, band="g", **cards):
    header = (wcs or coordinates()).to_header()
    header["FILTER"] = band
    header.update(cards)
    fits.PrimaryHDU(data, header).writeto(path, overwrite=True)
    return str(path)


def row(ra=RA, dec=DEC, objid="1"):
    rows = np.zeros(1, [("objid", "S8"), ("ra", "f8"), ("dec", "f8")])
    rows[0] = objid.encode(), ra, dec
    return rows


@pytest.fixture
def frames(tmp_path):
    """Three frames of a star whose coordinates differ."""
    places = {"g": (0.3, 95.3, 97.8), "r": (1.4, 90.7, 101.2), "i": (-2.0, 99.1, 93.4)}
    for band, (angle, x, y) in places.items():
        data = noisy(star(x=x, y=y, sky=3.0), seed=ord(band))
        write(
            tmp_path / f"frame-{band}.fits", data, coordinates(angle, 0.396, x, y), band
        )
    return tmp_path


# --- alignment ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("angle", "scale", "projection"),
    [(0.3, 0.396, "TAN"), (2.1, 0.396, "TAN"), (-1.0, 0.5, "SIN"), (0.7, 0.3, "TAN")],
)
def test_an_injected_star_lands_in_the_middle_with_its_flux(angle, scale, projection):
    reference = coordinates()
    target = images.target_wcs(reference, RA, DEC)
    width = 1.5 * 0.396 / scale
    frame = Frame(
        star(width=width, x=90.4, y=96.6),
        coordinates(angle, scale, 90.4, 96.6, projection),
    )
    image, flag = images.cut_out(frame, target, RA, DEC)
    assert not flag & ~ImageFlag.EDGE
    assert np.hypot(*centroid(image)) < 0.05
    assert image.sum() == pytest.approx(FLUX, rel=0.01)
    peak = np.unravel_index(image.argmax(), image.shape)
    assert peak == (images.SIZE // 2, images.SIZE // 2)


def test_three_frames_of_different_coordinates_are_aligned(frames):
    cut = Images(str(frames))(row())
    assert cut.pixels.shape == (1, 3, 128, 128)
    assert not cut.flags.any()
    for band in cut.pixels[0]:
        assert (band.min(), band.max()) == (0, 1)
        assert np.hypot(*centroid(band - np.median(band))) < 0.3


def test_a_nonlinear_distortion_moves_along():
    wcs = coordinates()
    header = wcs.to_header(relax=True)
    header["CTYPE1"], header["CTYPE2"] = "RA---TAN-SIP", "DEC--TAN-SIP"
    header.update({"A_ORDER": 2, "B_ORDER": 2, "A_2_0": 1e-5, "B_0_2": -1e-5})
    distorted = WCS(header)
    x, y = images.position(distorted, RA + 0.004, DEC + 0.003)
    frame = Frame(star(x=x, y=y), distorted)
    target = images.target_wcs(distorted, RA + 0.004, DEC + 0.003)
    image, _ = images.cut_out(frame, target, RA + 0.004, DEC + 0.003)
    assert np.hypot(*centroid(image)) < 0.1


def test_the_other_side_of_the_sky_is_not_on_a_frame():
    assert np.isnan(images.position(coordinates(), RA + 180, -DEC)).all()


# --- what is wrong with a cut-out -----------------------------------------------------


def judged(data, x=95.3, y=97.8, **options):
    frame = Frame(data, coordinates(x=x, y=y), **options)
    return images.cut_out(frame, images.target_wcs(frame.wcs, RA, DEC), RA, DEC)


def test_a_good_image_has_no_flag():
    assert judged(noisy(star()))[1] == 0


def test_a_blank_image_is_recognised():
    assert judged(np.full((192, 192), 7.0, np.float32))[1] == ImageFlag.BLANK
    assert judged(np.full((192, 192), np.nan, np.float32))[1] == ImageFlag.BLANK


def test_a_saturated_core_is_recognised_by_its_plateau_or_the_header():
    full = np.minimum(noisy(star(flux=4e4)), 800.0)
    assert judged(full)[1] == ImageFlag.SATURATED
    assert judged(noisy(star()), full=60.0)[1] == ImageFlag.SATURATED
    assert judged(noisy(star(flux=3.0)))[1] == 0  # noise has no plateau


@pytest.mark.parametrize(("x", "y"), [(40.0, 97.0), (2.0, 1.5), (189.0, 96.0)])
def test_a_star_near_the_edge_keeps_its_place_and_is_flagged(x, y):
    image, flag = judged(noisy(star(x=x, y=y, sky=5.0)), x, y)
    assert flag == ImageFlag.EDGE
    assert np.isfinite(image).all()
    peak = np.unravel_index(image.argmax(), image.shape)
    assert np.abs(np.subtract(peak, images.SIZE // 2)).max() <= 1
    assert np.median(image) == pytest.approx(5.0, abs=0.1)  # sky beyond the edge


def test_a_star_off_the_frame_is_said_to_be():
    image, flag = judged(star(), x=-3.0)
    assert flag == ImageFlag.OUTSIDE
    assert not image.any()


def test_holes_are_filled_and_flagged():
    data = noisy(star(sky=2.0))
    data[60:64, 60:64] = np.nan
    image, flag = judged(data)
    assert flag == ImageFlag.HOLES
    assert np.isfinite(image).all()
    assert image.sum() - 2.0 * image.size == pytest.approx(FLUX, rel=0.02)


def test_scaling_and_storing():
    image = images.scale_min_max(noisy(star()))
    assert (image.min(), image.max()) == (0, 1)
    assert not images.scale_min_max(np.ones((4, 4), np.float32)).any()
    both = np.stack([image, np.full_like(image, np.nan)])
    back = images.restored(images.stored(both))
    np.testing.assert_allclose(back, both, atol=2e-5)
    assert images.stored(both).nbytes == both.nbytes // 2


# --- files ----------------------------------------------------------------------------


def test_frames_may_be_compressed(tmp_path):
    data = noisy(star())
    path = write(tmp_path / "frame-g-1.fits", data)
    content = (tmp_path / "frame-g-1.fits").read_bytes()
    (tmp_path / "a.fits.bz2").write_bytes(bz2.compress(content))
    (tmp_path / "a.fits.gz").write_bytes(gzip.compress(content))
    packed = fits.CompImageHDU(data, coordinates().to_header())
    fits.HDUList([fits.PrimaryHDU(), packed]).writeto(tmp_path / "a.fits.fz")
    expected = imaging.read(path).data
    for name in ("a.fits.bz2", "a.fits.gz", "a.fits.fz"):
        frame = imaging.read(str(tmp_path / name))
        # .fz rounds to a fraction of the noise
        np.testing.assert_allclose(frame.data, expected, atol=0.01)
        assert images.position(frame.wcs, RA, DEC) == pytest.approx((95.3, 97.8))


def broken(tmp_path, kind):
    """A file of one kind of fault."""
    path = tmp_path / f"frame-g-{kind}.fits"
    write(path, star())
    content = path.read_bytes()
    header = coordinates().to_header()
    if kind == "cut short":
        path = path.with_suffix(".fits.bz2")
        path.write_bytes(bz2.compress(content)[:-100])
    elif kind == "colour":
        fits.PrimaryHDU(np.stack([star()] * 3), header).writeto(path, overwrite=True)
    elif kind == "no coordinates":
        fits.PrimaryHDU(star()).writeto(path, overwrite=True)
    elif kind == "no pole":
        for card in ("LONPOLE", "LATPOLE"):
            header.pop(card, None)
        header["CTYPE1"], header["CTYPE2"] = "RA---COE", "DEC--COE"
        header["PV2_1"] = 0.0
        fits.PrimaryHDU(star(), header).writeto(path, overwrite=True)
    elif kind == "text":
        path.write_text("no image")
    elif kind == "empty":
        fits.PrimaryHDU().writeto(path, overwrite=True)
    elif kind == "missing":
        path.unlink()
    return str(path)


FAULTS = {
    "cut short": "cut off: its compressed data end too early",
    "colour": r"3 axes \(3, 192, 192\), as colour images have",
    "no coordinates": "no celestial coordinates: CTYPE1 and CTYPE2 are 'missing'",
    "no pole": "coordinates that can't be",
    "text": "no readable FITS image",
    "empty": "has no image",
    "missing": "can't be read",
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_frame_that_cannot_be_used_says_why(tmp_path, kind):
    with pytest.raises(SpectrumError, match=FAULTS[kind]):
        imaging.read(broken(tmp_path, kind))


def test_usual_headers_leave_the_pole_out(tmp_path):
    header = coordinates().to_header()
    for card in ("LONPOLE", "LATPOLE"):
        header.pop(card, None)
    fits.PrimaryHDU(star(), header).writeto(tmp_path / "a.fits")
    frame = imaging.read(str(tmp_path / "a.fits"))
    assert images.position(frame.wcs, RA, DEC) == pytest.approx((95.3, 97.8))


# --- which frame belongs to which star ------------------------------------------------


def listed(tmp_path, frames, **columns):
    """A table as 'fetch sdss-images' writes it."""
    from stellarcli import catalog

    values = {
        "objid": ["1", "2"],
        "ra": [RA, 10.0],
        "dec": [DEC, 10.0],
        **{f"image_{b}": [str(frames / f"frame-{b}.fits"), ""] for b in "gri"},
    } | columns
    arrays = {name: np.array(column) for name, column in values.items()}
    table = np.empty(
        2,
        [
            (n, a.astype("S").dtype if a.dtype.kind == "U" else a.dtype)
            for n, a in arrays.items()
        ],
    )
    for name, array in arrays.items():
        table[name] = array
    catalog.write(str(tmp_path / "frames.fits"), table, overwrite=True)
    return str(tmp_path / "frames.fits")


def test_a_table_is_joined_by_identifier_or_position(tmp_path, frames):
    source = listed(tmp_path, frames)
    for known in (row(), row(objid="")):
        assert not Images(source)(known).flags.any()
    missing = Images(source)(row(objid="2", ra=10.0, dec=10.0))
    assert (missing.flags == ImageFlag.MISSING).all()
    assert np.isnan(missing.pixels).all()
    assert "no image in g" in missing.reasons[0][1]
    far = Images(source)(row(objid="", ra=RA + 1))
    assert (far.flags == ImageFlag.MISSING).all()


def test_a_directory_is_searched_for_frames_that_show_the_star(frames):
    (frames / "frame-r-broken.fits").write_text("no image")
    source = Images(str(frames))
    assert not source(row()).flags.any()
    away = source(row(ra=RA + 0.1))
    assert (away.flags == ImageFlag.MISSING).all()


def test_one_missing_band_leaves_the_star_without_an_image(frames):
    (frames / "frame-i.fits").unlink()
    cut = Images(str(frames))(row())
    assert cut.flags.tolist() == [[0, 0, ImageFlag.MISSING]]
    assert np.isnan(cut.pixels).all()
    assert not images.usable(cut.flags).any()


def test_a_broken_frame_is_a_flag_and_a_reason(tmp_path, frames):
    path = broken(tmp_path, "cut short")
    source = listed(tmp_path, frames, image_r=[path, ""])
    cut = Images(source)(row())
    assert cut.flags.tolist() == [[0, ImageFlag.UNREADABLE, 0]]
    assert "cut off" in cut.reasons[0][1]


def test_a_star_without_a_position_has_no_image(frames):
    cut = Images(str(frames))(row(ra=np.nan))
    assert (cut.flags == ImageFlag.MISSING).all()
    assert cut.reasons == [(0, "no position, hence no image")]


def test_sources_without_images_are_refused(tmp_path, frames):
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UsageError, match="no image of bands g, r, i"):
        Images(str(tmp_path / "nothing"))
    with pytest.raises(UsageError, match=r"none\.fits"):
        Images(str(tmp_path / "none.fits"))
    from stellarcli import catalog

    table = np.zeros(1, [("objid", "S2"), ("ra", "f8"), ("dec", "f8")])
    catalog.write(str(tmp_path / "plain.fits"), table)
    with pytest.raises(UsageError, match="sdss-images --table"):
        Images(str(tmp_path / "plain.fits"))


# --- recipe ---------------------------------------------------------------------------


def test_the_recipe_says_what_images_are_like():
    assert RECIPES["spfusion"].images == (("g", "r", "i"), 128)
    assert RECIPES["default"].images is None
    for parameters in ({"bands": [], "size": 64}, {"bands": ["g"], "size": 1}):
        with pytest.raises(UsageError, match="images"):
            Recipe.from_steps("mine", [{"images": parameters}])
