# pytest tests/test_surveys.py
import gzip
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import surveyfiles as make
from astropy.io import fits

from stellarcli import surveys
from stellarcli.errors import SpectrumError, UsageError
from stellarcli.preprocess.wavelength import vacuum_to_air
from stellarcli.spectrum import SPEED_OF_LIGHT, PixelMask, Spectrum
from stellarcli.surveys import SURVEYS, generic, hdus, inflating, lamost, library

SHARED = Path(os.environ.get("STELLAR_TEST_DATA", "/work/shared/data"))
REAL = sorted((SHARED / "formats").glob("*/*.fits*"))
real = pytest.mark.skipif(not REAL, reason=f"no real files in {SHARED}/formats")
REAL_SURVEYS = {"apogee": "apogee", "sdss": "sdss", "lamost-mrs-dr7": "lamost-mrs"}


def line_centre(spectrum, line, width=8.0):
    """Flux-weighted centre of an absorption line."""
    near = (np.abs(spectrum.wavelength - line) < width) & spectrum.good
    depth = np.median(spectrum.flux[near]) - spectrum.flux[near]
    depth = np.where(depth > 0.2 * depth.max(), depth, 0)
    return np.sum(depth * spectrum.wavelength[near]) / np.sum(depth)


def same(one, two):
    """Assert that two spectra agree in every array and every entry."""
    for name in ("wavelength", "flux", "ivar", "mask"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name), name)
    assert one.segments == two.segments
    assert repr(one.meta) == repr(two.meta)


def read_with_library(path):
    """Read a file as `surveys.read` does, through astropy's HDUs only."""
    found = library.library_hdus(path)
    return surveys._survey_of(found).read(found, path)


# ------------------------------------------------------------- every layout


@pytest.mark.parametrize("layout", make.EXAMPLES)
def test_reads_every_layout(layout, tmp_path):
    survey, path = make.build(layout, tmp_path)
    assert surveys.identify(path) == survey
    spectrum = surveys.read(path)
    assert isinstance(spectrum, Spectrum)
    assert spectrum.meta.survey == survey
    assert spectrum.meta.file == str(path)
    assert spectrum.meta.objid
    assert spectrum.good.mean() > 0.9
    assert 1000 < spectrum.wavelength[0] < spectrum.wavelength[-1] < 20000
    line = next(x for x in make.LINES if abs(spectrum.wavelength - x).min() < 2)
    z = (spectrum.meta.rv or 0.0) / SPEED_OF_LIGHT
    assert line_centre(spectrum, line * (1 + z)) == pytest.approx(
        line * (1 + z), rel=5e-5
    )
    if survey != "generic":
        assert np.isfinite(
            [spectrum.meta.ra, spectrum.meta.dec, spectrum.meta.mjd]
        ).all()
    assert spectrum.meta.snr > 10


@pytest.mark.parametrize("layout", make.EXAMPLES)
def test_only_its_own_survey_identifies_a_file(layout, tmp_path):
    survey, path = make.build(layout, tmp_path)
    data = hdus.read_bytes(path)
    found = hdus.parse_hdus(data) if hdus.is_fits(data) else generic.text_hdus(data)
    claims = [name for name, entry in SURVEYS.items() if entry.identify(found)]
    assert [name for name in claims if name != "generic"] == [survey] * (
        survey != "generic"
    )


@pytest.mark.parametrize("layout", [n for n in make.EXAMPLES if n != "generic-text"])
def test_minimal_parser_and_library_agree(layout, tmp_path):
    _, path = make.build(layout, tmp_path)
    same(surveys.read(path), read_with_library(path))


@pytest.mark.parametrize("survey", SURVEYS.values(), ids=SURVEYS)
def test_every_survey_has_an_example_and_a_title(survey):
    assert survey.name in {example[0] for example in make.EXAMPLES.values()}
    assert survey.title
    assert survey.archive.startswith("https://") or survey.name == "generic"


def test_named_survey_is_used(tmp_path):
    path = make.lamost_table(tmp_path / "a.fits")
    assert surveys.read(path, survey="generic").meta.survey == "generic"
    with pytest.raises(
        SpectrumError, match="no SDSS, BOSS or eBOSS spectrum: the file"
    ):
        surveys.read(path, survey="sdss")
    with pytest.raises(UsageError, match="Did you mean 'sdss'"):
        surveys.read(path, survey="sds")


# ------------------------------------------------------------- real files


def plain_arrays(path):
    """Flux, ivar and wavelength of a real file, read as its data model says."""
    with fits.open(path) as file:
        kind = path.parent.name
        if kind.startswith("lamost-lrs") and file[0].data is not None:
            data = file[0].data.astype(np.float64)
            header = file[0].header
            if "Subcontinuum" in header["EXTEN0"]:
                log = header["COEFF0"] + header["COEFF1"] * np.arange(data.shape[1])
                return data[0], data[1], 10**log
            return data[0], data[1], data[2]
        if kind.startswith("lamost-lrs"):
            row = file[1].data[0]
            return row["FLUX"], row["IVAR"], row["WAVELENGTH"]
        if kind.startswith("lamost-mrs"):
            arms = [file["COADD_B"].data, file["COADD_R"].data]
            flux, ivar, log = (
                np.concatenate([arm[name] for arm in arms])
                for name in ("FLUX", "IVAR", "LOGLAM")
            )
            return flux, ivar, 10 ** log.astype(np.float64)
        if kind == "sdss":
            data = file[1].data
            return data["flux"], data["ivar"], 10 ** data["loglam"].astype(np.float64)
        flux, error, _, wavelength = (file[i].data.ravel()[::-1] for i in range(1, 5))
        scale = 1 + file[0].header["BC"] / SPEED_OF_LIGHT
        return flux, error.astype(np.float64) ** -2, wavelength * scale


@real
@pytest.mark.parametrize("path", REAL, ids=[f"{p.parent.name}/{p.name}" for p in REAL])
def test_real_files_give_the_arrays_in_the_file(path):
    spectrum = surveys.read(path)
    kind = path.parent.name
    assert surveys.identify(path) == REAL_SURVEYS.get(kind, "lamost-lrs")
    flux, ivar, wavelength = plain_arrays(path)
    np.testing.assert_array_equal(spectrum.flux, np.float32(flux))
    np.testing.assert_allclose(spectrum.wavelength, np.float64(wavelength), rtol=1e-15)
    kept = spectrum.good
    np.testing.assert_array_equal(spectrum.ivar[kept], np.float32(ivar[kept]))
    assert not spectrum.ivar[~kept].any()
    assert not kept[~(ivar > 0)].any()
    assert kept.mean() > 0.7
    same(spectrum, read_with_library(path))
    assert spectrum.meta.ra == pytest.approx(fits.getval(path, "RA"), abs=2)
    assert len(spectrum.segments) == {"apogee": 3, "lamost-mrs-dr7": 2}.get(kind, 1)


@real
def test_real_identifiers_and_velocities():
    by_name = {path.name.split(".fits")[0]: path for path in REAL}

    def meta(name):
        return surveys.read(by_name[name]).meta

    dr1 = meta("spec-55862-B6212_sp06-003")
    assert (dr1.objid, dr1.snr, dr1.mjd) == ("55862-B6212_sp06-003", 71.41, 55861)
    assert meta("spec-56309-GAC088N20V1_sp08-126").objid == "56309-GAC088N20V1_sp08-126"
    assert meta("spec-56309-GAC088N20V1_sp08-126").plan == "GAC088N20V1"
    # OBSID is -28762 in this file
    assert (
        meta("spec-55939-GAC_061N46_V3_sp07-078").objid
        == "55939-GAC_061N46_V3_sp07-078"
    )
    dr10 = meta("spec-59608-TD062610N184524H01_sp12-077")
    assert (dr10.objid, dr10.subclass, dr10.snr) == ("975712077", "A7", 72.65)
    unknown = meta("spec-58575-HD103621N361936B01_sp03-045")
    assert (unknown.rv, unknown.object_class, unknown.subclass) == (
        None,
        "UNKNOWN",
        "Non",
    )
    galaxy = meta("spec-58575-HD103621N361936B01_sp03-008")
    assert galaxy.object_class == "GALAXY"
    assert galaxy.rv == pytest.approx(0.122579 * SPEED_OF_LIGHT)
    assert meta("spec-0618-52049-0372").objid == "695908431386667008"
    assert meta("spec-0618-52049-0372").plan == "618"
    visit = meta("apVisit-r13-5095-55844-128")
    assert visit.plan == "5095"
    assert (visit.objid, visit.rv_source) == ("2M01183798+8403419", "header VHELIO")
    assert visit.rv == pytest.approx(-33.1228, abs=1e-3)


@real
def test_visits_of_one_star_are_heliocentric():
    path = next(p for p in REAL if p.name == "apVisit-r13-9518-57729-104.fits")
    spectrum = surveys.read(path)
    # Strong lines of K stars in the H band: Mg I, Si I, Al I (vacuum Å).
    scale = 1 + spectrum.meta.rv / SPEED_OF_LIGHT
    for line in (15753.291, 15964.424, 16723.524):
        found = line_centre(spectrum, line * scale, width=1.5)
        assert abs(found / (line * scale) - 1) * SPEED_OF_LIGHT < 4


@real
def test_real_exposures():
    path = next(p for p in REAL if p.name.startswith("med-"))
    exposures = surveys.read_all(path)
    minutes = (83555758, 83555772, 83555785, 83555799)
    assert [x.meta.objid for x in exposures] == [f"589002051-{m}" for m in minutes]
    assert all(x.segments == ((0, 4136), (4136, 8272)) for x in exposures)
    (coadd,) = surveys.read_all(path, exposures=False)
    same(coadd, surveys.read(path))
    assert coadd.meta.snr_bands == {"snrb": 92.84, "snrr": 162.45}


@pytest.mark.skipif(not (SHARED / "benchmark").is_dir(), reason="no benchmark stars")
@pytest.mark.parametrize("path", sorted((SHARED / "benchmark").glob("*.fits")), ids=str)
def test_benchmark_stars_are_air_nanometres(path):
    spectrum = surveys.read(path)
    assert spectrum.meta.survey == "generic"
    assert vacuum_to_air(spectrum.wavelength)[0] == pytest.approx(4800.0, abs=1e-6)
    assert 6790 < spectrum.wavelength[-1] < 6803
    assert spectrum.good.mean() > 0.9


# ------------------------------------------------------------- LAMOST


def test_lamost_meta(tmp_path):
    meta = surveys.read(make.lamost_table(tmp_path / "a.fits")).meta
    assert (meta.objid, meta.snr, meta.subclass) == ("740103002", 31.5, "G5")
    assert meta.rv == pytest.approx(29.979, abs=1e-3)
    assert meta.rv_source == "header Z"
    assert np.isnan(meta.snr_bands["snrz"])
    assert list(meta.snr_bands) == ["snru", "snrg", "snrr", "snri", "snrz"]
    assert meta.mjd == 58574


@pytest.mark.parametrize(
    ("cards", "objid"),
    [
        ({"OBSID": None}, "58575-HD103621N361936B01_sp03-002"),
        ({"OBSID": -28762}, "58575-HD103621N361936B01_sp03-002"),
        ({"OBSID": None, "FIBERID": "126"}, "58575-HD103621N361936B01_sp03-126"),
        ({"OBSID": "00123"}, "00123"),
        ({"OBSID": None, "PLANID": None}, "LAMOST J103250.26+354136.2"),
    ],
)
def test_lamost_identifier(cards, objid, tmp_path):
    path = make.lamost_image(tmp_path / "a.fits", **cards)
    assert surveys.read(path).meta.objid == objid


def test_dr1_third_row_is_never_a_wavelength(tmp_path):
    old = surveys.read(make.lamost_image(tmp_path / "old.fits", dr1=True))
    new = surveys.read(make.lamost_image(tmp_path / "new.fits"))
    np.testing.assert_allclose(old.wavelength, new.wavelength, rtol=1e-7)
    assert old.meta.snr == 31.5


@pytest.mark.parametrize("build", [make.lamost_image, make.lamost_table])
def test_lamost_masks_bad_pixels(build, tmp_path):
    flux, ivar = make.star(make.grid(400))
    flux[10] = ivar[10] = 0  # filler
    ivar[20] = 0
    flux[30] = 0  # filler with an ivar, as single pixels of real files have it
    flux[40] = np.nan
    ivar[50] = np.inf
    ivar[60] = -1
    spectrum = surveys.read(build(tmp_path / "a.fits", flux=flux, ivar=ivar))
    assert np.flatnonzero(~spectrum.good).tolist() == [10, 20, 30, 40, 50, 60]
    assert not spectrum.ivar[~spectrum.good].any()
    assert spectrum.mask[30] == PixelMask.FILLED
    assert np.isfinite(spectrum.flux).all()


@pytest.mark.parametrize("value", [-9999.0, -9999, "", "nan"])
def test_unknown_velocity_and_snr(value, tmp_path):
    meta = surveys.read(
        make.lamost_table(tmp_path / "a.fits", Z=value, SNRG=value)
    ).meta
    assert meta.rv is None
    assert meta.rv_source == ""
    assert np.isnan(meta.snr)


def test_hopeless_spectra_are_read_and_masked(tmp_path):
    size = 400
    nothing = np.zeros(size)
    nan = np.full(size, np.nan)
    one = np.ones(size)
    for name, flux, ivar in (
        ("0", nothing, nothing),
        ("n", nan, one),
        ("i", one, nothing),
    ):
        path = make.lamost_table(tmp_path / f"{name}.fits", flux=flux, ivar=ivar)
        assert not surveys.read(path).good.any()


def test_missing_coefficients(tmp_path):
    path = make.lamost_image(tmp_path / "a.fits", dr1=True)
    data = path.read_bytes().replace(b"COEFF0  =", b"COEFFX  =")
    path.write_bytes(data)
    with pytest.raises(SpectrumError, match="no COEFF0"):
        surveys.read(path)


def test_mrs_segments_and_order(tmp_path):
    spectrum = surveys.read(make.lamost_mrs(tmp_path / "a.fits"))
    assert spectrum.segments == ((0, 300), (300, 550))
    assert spectrum.wavelength[299] < 5400 < 6300 < spectrum.wavelength[300]
    assert spectrum.meta.snr == 40
    assert spectrum.meta.snr_bands == {"snrb": 40, "snrr": 80}
    assert spectrum.meta.rv is None


@pytest.mark.parametrize("vectors", [False, True])
@pytest.mark.parametrize(
    ("arms", "stubs"), [("B", ""), ("R", ""), ("BR", "R"), ("BR", "B")]
)
def test_mrs_with_one_arm(vectors, arms, stubs, tmp_path):
    path = make.lamost_mrs(tmp_path / "a.fits", vectors=vectors, arms=arms, stubs=stubs)
    spectrum = surveys.read(path)
    left = set(arms) - set(stubs)
    assert len(spectrum.segments) == 1
    assert (spectrum.wavelength[0] < 5400) == (left == {"B"})
    assert [x.segments for x in surveys.read_all(path)] == [spectrum.segments]


def test_mrs_without_arms(tmp_path):
    path = make.lamost_mrs(tmp_path / "a.fits", stubs="BR")
    with pytest.raises(SpectrumError, match="neither the blue nor the red arm"):
        surveys.read(path)


def test_mrs_arm_without_coadd_uses_its_best_exposure(tmp_path):
    path = make.lamost_mrs(tmp_path / "a.fits", exposures=(83555758, 83555772))
    with fits.open(path) as file:
        kept = [hdu.copy() for hdu in file if hdu.name != "COADD_R"]
    spectrum = surveys.read(make.write(path, *kept))
    assert spectrum.meta.snr_bands == {"snrb": 40, "snrr": 21}
    assert len(spectrum.segments) == 2
    assert (np.diff(spectrum.wavelength) > 0).all()


# ------------------------------------------------------------- SDSS and APOGEE


def test_sdss_meta_and_mask(tmp_path):
    bits = np.zeros(400, np.int32)
    bits[5] = 1 << 24  # NODATA
    bits[6] = 1 << 23  # BRIGHTSKY: a warning only
    spectrum = surveys.read(make.sdss_spec(tmp_path / "a.fits", and_mask=bits))
    assert np.flatnonzero(~spectrum.good).tolist() == [5]
    assert spectrum.mask[5] == PixelMask.SURVEY
    meta = spectrum.meta
    assert (meta.objid, meta.snr, meta.ra) == ("695908431386667008", 35, 236.97794)
    assert (meta.object_class, meta.subclass, meta.mjd) == ("STAR", "K3", 52049)
    assert meta.rv_source == "SPECOBJ Z"


def test_sdss_without_its_second_table(tmp_path):
    path = make.sdss_spec(tmp_path / "a.fits")
    with fits.open(path) as file:
        make.write(path, *(hdu.copy() for hdu in file[:2]))
    meta = surveys.read(path).meta
    assert (meta.objid, meta.rv) == ("0618-52049-0372", None)
    assert meta.snr == pytest.approx(100, rel=0.1)


def test_visit_is_brought_to_the_sun(tmp_path):
    path = make.apogee_visit(tmp_path / "a.fits", velocity=60.0, correction=-25.0)
    spectrum = surveys.read(path)
    assert spectrum.meta.rv == 60
    assert len(spectrum.segments) == 3
    assert (np.diff(spectrum.wavelength) > 0).all()
    found = line_centre(spectrum, 16000 * (1 + 60 / SPEED_OF_LIGHT), width=15)
    assert (found / 16000 - 1) * SPEED_OF_LIGHT == pytest.approx(60, abs=2)


def test_visit_mask_bits(tmp_path):
    bits = np.zeros((3, 200), np.int16)
    bits[2, -1] = 1 << 14  # NOT_ENOUGH_PSF, the bluest pixel
    bits[2, -2] = 1 << 12  # SIG_SKYLINE: a warning only
    spectrum = surveys.read(make.apogee_visit(tmp_path / "a.fits", mask=bits))
    assert np.flatnonzero(~spectrum.good).tolist() == [0]


def test_apstar_is_brought_from_rest_to_the_sun(tmp_path):
    spectrum = surveys.read(make.apogee_star(tmp_path / "a.fits", velocity=30.0))
    np.testing.assert_allclose(
        spectrum.wavelength / (1 + spectrum.redshift),
        10 ** (4.179 + 6e-6 * np.arange(8575)),
    )
    assert not spectrum.good[:50].any()
    assert spectrum.good[50:].all()


def test_apstar_visits(tmp_path):
    path = make.apogee_star(tmp_path / "a.fits", visits=3)
    visits = surveys.read_all(path)
    assert [x.meta.objid[-2:] for x in visits] == ["-1", "-2", "-3"]
    assert [x.meta.snr for x in visits] == [20, 21, 22]
    np.testing.assert_array_equal(visits[2].flux, fits.getdata(path, 1)[4])
    assert len(surveys.read_all(make.apogee_star(tmp_path / "b.fits", visits=1))) == 1


def test_apstar_without_a_velocity_stays_at_rest(tmp_path):
    spectrum = surveys.read(make.apogee_star(tmp_path / "a.fits", velocity=999999.0))
    assert spectrum.meta.rv is None
    assert spectrum.wavelength[0] == 10**4.179


# ------------------------------------------------------------- generic


def air(wavelength):
    return vacuum_to_air(np.asarray(wavelength))


SCALES = {
    "linear": ({"CRVAL1": 4950.0, "CDELT1": 0.5}, lambda i: 4950 + 0.5 * i),
    "cd": ({"CRVAL1": 4950.0, "CD1_1": 0.5, "CRPIX1": 11.0}, lambda i: 4945 + 0.5 * i),
    "reversed": ({"CRVAL1": 5150.0, "CDELT1": -0.5}, lambda i: 5150 - 0.5 * (399 - i)),
    "nm": ({"CRVAL1": 495.0, "CDELT1": 0.05, "CUNIT1": "nm"}, lambda i: 4950 + 0.5 * i),
    "nm guessed": ({"CRVAL1": 495.0, "CDELT1": 0.05}, lambda i: 4950 + 0.5 * i),
    "um": ({"CRVAL1": 0.495, "CDELT1": 5e-5, "CUNIT1": "um"}, lambda i: 4950 + 0.5 * i),
    "metre": (
        {"CRVAL1": 4.95e-7, "CDELT1": 5e-11, "CTYPE1": "WAVE", "CUNIT1": "m"},
        lambda i: 4950 + 0.5 * i,
    ),
    "dc-flag": (
        {"CRVAL1": 3.69, "CDELT1": 1e-4, "DC-FLAG": 1},
        lambda i: 10 ** (3.69 + 1e-4 * i),
    ),
    "log10 guessed": (
        {"CRVAL1": 3.69, "CDELT1": 1e-4},
        lambda i: 10 ** (3.69 + 1e-4 * i),
    ),
    "log10 named": (
        {"CRVAL1": 3.69, "CDELT1": 1e-4, "CTYPE1": "LOGLAM", "CUNIT1": "Angstrom"},
        lambda i: 10 ** (3.69 + 1e-4 * i),
    ),
    "log10 iraf": (
        {"CRVAL1": 3.69, "CD1_1": 1e-4, "CTYPE1": "LINEAR", "DC-FLAG": 1}
        | {"WAT1_001": "wtype=linear label=Wavelength units=Angstroms"},
        lambda i: 10 ** (3.69 + 1e-4 * i),
    ),
    "coeff": ({"COEFF0": 3.69, "COEFF1": 1e-4}, lambda i: 10 ** (3.69 + 1e-4 * i)),
    "ln": (
        {"CRVAL1": np.log(4950), "CDELT1": 1e-4, "CTYPE1": "LN-LAMBDA"},
        lambda i: 4950 * np.exp(1e-4 * i),
    ),
    "paper III": (
        {"CRVAL1": 4950.0, "CDELT1": 0.5, "CTYPE1": "WAVE-LOG", "CUNIT1": "Angstrom"},
        lambda i: 4950 * np.exp(0.5 * i / 4950),
    ),
}


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("medium", [None, "air", "vacuum"])
def test_scale_in_the_header(scale, medium, tmp_path):
    cards, expected = SCALES[scale]
    cards = cards | ({} if medium is None else {"AIRORVAC": medium[:3]})
    flux = np.linspace(1, 2, 400)
    if scale != "reversed" and "CTYPE1" in cards and medium == "air":
        cards["CTYPE1"] = cards["CTYPE1"].replace("WAVE", "AWAV")
    spectrum = surveys.read(make.image(tmp_path / "a.fits", flux, **cards))
    wanted = expected(np.arange(400.0))
    found = spectrum.wavelength
    np.testing.assert_allclose(
        air(found) if medium == "air" else found, wanted, rtol=1e-9
    )
    assert (np.diff(spectrum.flux) > 0).all() == (scale != "reversed")


@pytest.mark.parametrize(
    ("cards", "is_air"),
    [
        ({}, False),
        ({"CTYPE1": "AWAV"}, True),
        ({"CTYPE1": "WAVE"}, False),
        ({"CTYPE1": "WAVELENGTH"}, False),
        ({"AIRORVAC": "air"}, True),
        ({"AIRORVAC": "vac"}, False),
        ({"VACUUM": True}, False),
        ({"VACUUM": False}, True),
        ({"VACUUM": 0}, True),
        ({"CTYPE1": "WAVELENGTH", "VACUUM": "F"}, True),
        ({"WAVETYPE": "Vacuum"}, False),
    ],
)
def test_air_or_vacuum_comes_from_the_header(cards, is_air, tmp_path):
    cards = {"CRVAL1": 5000.0, "CDELT1": 1.0} | cards
    first = surveys.read(
        make.image(tmp_path / "a.fits", np.ones(50), **cards)
    ).wavelength[0]
    assert first == pytest.approx(5001.39 if is_air else 5000.0, abs=0.01)


def test_errors_beside_the_image(tmp_path):
    flux = np.linspace(1, 2, 50)
    scale = {"CRVAL1": 5000.0, "CDELT1": 1.0}
    spectrum = surveys.read(make.image(tmp_path / "a.fits", flux, flux / 10, **scale))
    np.testing.assert_allclose(spectrum.ivar, 100 / flux**2, rtol=1e-6)
    assert spectrum.meta.snr == pytest.approx(10)


def test_noise_is_measured_where_no_error_is_given(tmp_path):
    random = np.random.default_rng(3)
    flux = 100 + random.normal(0, 2, 4000)
    flux[:100] = 0
    path = make.image(tmp_path / "a.fits", flux, CRVAL1=5000.0, CDELT1=1.0)
    spectrum = surveys.read(path)
    assert spectrum.meta.snr == pytest.approx(50, rel=0.1)
    assert spectrum.good.sum() == 3900


def test_iraf_bands(tmp_path):
    bands = np.stack([np.full(60, 5.0), np.full(60, 4.0), np.full(60, 0.5)])[:, None]
    cards = {"CRVAL1": 5000.0, "CD1_1": 1.0, "BANDID1": "spectrum - optimal"}
    cards |= {"BANDID2": "raw", "BANDID3": "sigma - background fit"}
    spectrum = surveys.read(make.image(tmp_path / "a.fits", bands, **cards))
    np.testing.assert_array_equal(spectrum.flux, np.float32(5))
    np.testing.assert_allclose(spectrum.ivar, 4)


def test_images_named_wavelength_flux_ivar(tmp_path):
    wavelength = make.grid(80)
    flux, ivar = make.star(wavelength)
    named = {"FLUX": flux, "IVAR": ivar, "WAVELENGTH": wavelength}
    images = [fits.ImageHDU(array, name=name) for name, array in named.items()]
    spectrum = surveys.read(make.write(tmp_path / "a.fits", fits.PrimaryHDU(), *images))
    np.testing.assert_array_equal(spectrum.wavelength, wavelength)
    np.testing.assert_array_equal(spectrum.ivar, ivar)


@pytest.mark.parametrize("vectors", [False, True])
@pytest.mark.parametrize(
    ("names", "units", "is_air"),
    [
        (("WAVE", "FLUX", "ERR"), {}, False),
        (("wave_air", "flux", "flux_error"), {"wave_air": "Angstrom"}, True),
        (("lambda", "flux", "sigma"), {"lambda": "nm"}, False),
        (("loglam", "flux", "ERR"), {}, False),
        (("Wavelength", "Flux_lambda", "uncertainty"), {"Wavelength": "um"}, False),
        (("waveobs", "flux", "err"), {"waveobs": "nm"}, False),
    ],
)
def test_tables_by_other_names(names, units, is_air, vectors, tmp_path):
    wavelength = make.grid(80)
    flux, ivar = make.star(wavelength)
    stored = air(wavelength) if is_air else wavelength
    stored = {"nm": stored / 10, "um": stored / 1e4}.get(units.get(names[0]), stored)
    stored = np.log10(stored) if names[0] == "loglam" else stored
    arrays = dict(zip(names, (stored, flux, ivar**-0.5), strict=True))
    path = make.table(tmp_path / "a.fits", arrays, units=units, vectors=vectors)
    spectrum = surveys.read(path)
    np.testing.assert_allclose(spectrum.wavelength, wavelength, rtol=1e-9)
    np.testing.assert_allclose(spectrum.ivar, ivar, rtol=1e-5)


def test_table_with_ivar_mask_and_velocity(tmp_path):
    wavelength = make.grid(80)
    flux, ivar = make.star(wavelength)
    bad = np.arange(80) == 7
    arrays = {"wavelength": wavelength, "flux": flux, "ivar": ivar, "mask": bad}
    primary = {"OBJECT": "HD 22049", "RV": 16.4, "RA": 53.2, "DEC": -9.4, "SNR": 12.0}
    spectrum = surveys.read(make.table(tmp_path / "a.fits", arrays, primary=primary))
    assert np.flatnonzero(~spectrum.good).tolist() == [7]
    meta = spectrum.meta
    assert (meta.objid, meta.rv, meta.snr) == ("HD 22049", 16.4, 12.0)
    same(spectrum, read_with_library(tmp_path / "a.fits"))


def test_table_of_many_spectra(tmp_path):
    array = np.ones((3, 50))
    columns = [fits.Column(n, "50D", array=array) for n in ("wavelength", "flux")]
    table = fits.BinTableHDU.from_columns(columns)
    path = make.write(tmp_path / "a.fits", fits.PrimaryHDU(), table)
    with pytest.raises(SpectrumError, match="a table of 3 spectra"):
        surveys.read(path)


@pytest.mark.parametrize(
    ("options", "columns"),
    [
        ({}, 3),
        ({"heading": ""}, 3),
        ({"heading": "wavelength,flux,error", "separator": ","}, 3),
        ({"heading": "# no names here", "columns": 2}, 2),
        ({"heading": "% lambda (Angstrom) flux", "columns": 2, "separator": "\t"}, 2),
    ],
)
def test_text(options, columns, tmp_path):
    spectrum = surveys.read(make.text(tmp_path / "star.dat", **options))
    wavelength = make.grid(400)
    np.testing.assert_allclose(spectrum.wavelength, wavelength, atol=1e-6)
    assert spectrum.meta.objid == "star"
    assert spectrum.meta.snr == pytest.approx(100, rel=0.2)


def test_faint_fluxes_in_cgs_units_keep_their_errors(tmp_path):
    wavelength = make.grid(80)
    flux, ivar = make.star(wavelength)
    arrays = {
        "wavelength": wavelength,
        "flux": flux * 1e-22,
        "error": ivar**-0.5 * 1e-22,
    }
    spectrum = surveys.read(make.table(tmp_path / "a.fits", arrays))
    assert spectrum.good.all()
    np.testing.assert_allclose(
        spectrum.flux * np.sqrt(spectrum.ivar), flux * np.sqrt(ivar), rtol=1e-5
    )


def test_text_in_air_nanometres(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(
        "# wavelength in air, nm\n" + "".join(f"{500 + i} 1\n" for i in range(9))
    )
    np.testing.assert_allclose(
        air(surveys.read(path).wavelength), 5000 + 10 * np.arange(9)
    )


# ------------------------------------------------------------- unusual FITS


def test_scaled_and_compressed_files_use_the_library(tmp_path):
    wavelength = make.grid(80)
    flux = np.round(1000 * make.star(wavelength)[0]).astype(np.int32)
    arrays = {"wavelength": wavelength, "flux": flux}
    cards = {"TSCAL2": 0.001, "TZERO2": 5.0}
    path = make.table(tmp_path / "scaled.fits", arrays, **cards)
    np.testing.assert_allclose(surveys.read(path).flux, flux / 1000 + 5, rtol=1e-6)

    scaled = fits.PrimaryHDU(flux)
    scaled.scale("int32", bscale=2.0, bzero=1.0)
    scaled.header.update({"CRVAL1": 5000.0, "CDELT1": 1.0})
    path = make.write(tmp_path / "image.fits", scaled)
    np.testing.assert_allclose(surveys.read(path).flux, flux, rtol=1e-4)

    compressed = fits.CompImageHDU(
        flux[None].repeat(4, 0)[:1], compression_type="GZIP_1"
    )
    compressed.header.update({"CRVAL1": 5000.0, "CDELT1": 1.0})
    path = make.write(tmp_path / "compressed.fits", fits.PrimaryHDU(), compressed)
    np.testing.assert_array_equal(surveys.read(path).flux, np.float32(flux))


def test_variable_length_and_ascii_tables(tmp_path):
    wavelength = make.grid(80)
    flux, _ = make.star(wavelength)
    arrays = {"wavelength": wavelength, "flux": np.float64(flux)}
    columns = []
    for name, array in arrays.items():
        cell = np.empty(1, dtype=object)
        cell[0] = array
        columns.append(fits.Column(name, "PD()", array=cell))
    table = fits.BinTableHDU.from_columns(columns)
    path = make.write(tmp_path / "variable.fits", fits.PrimaryHDU(), table)
    np.testing.assert_array_equal(surveys.read(path).wavelength, wavelength)
    columns = [fits.Column(n, "D25.17", array=a, ascii=True) for n, a in arrays.items()]
    table = fits.TableHDU.from_columns(columns)
    path = make.write(tmp_path / "ascii.fits", fits.PrimaryHDU(), table)
    np.testing.assert_allclose(surveys.read(path).wavelength, wavelength)


def test_header_values():
    parse = hdus.parse_value
    assert parse(b" 'it''s  '           / note") == "it's"
    assert parse(b" 'a / b'") == "a / b"
    assert parse(b" ''") == ""
    assert parse(b"                    T / yes") is True
    assert parse(b" 1.5D3 / double") == 1500.0
    assert parse(b" -28762 /") == -28762
    assert parse(b" 1E5") == 1e5
    assert parse(b"   / nothing") is None
    assert parse(b" junk") is None


def test_stray_cards_of_the_empty_primary(tmp_path):
    found = hdus.open_hdus(make.lamost_table(tmp_path / "a.fits"))
    assert found[0].header.get("NAXIS1") == 3909
    assert found[0].kind == "empty"
    assert [hdu.name for hdu in found] == ["", "COADD"]
    assert found[1].value("FLUX")[0] == pytest.approx(100, rel=0.1)
    with pytest.raises(
        SpectrumError, match="HDU COADD has no column X, only FLUX, IVAR"
    ):
        found[1].column("X")


# ------------------------------------------------------------- damaged files


def damaged(tmp_path):
    """Files that hold no readable spectrum: name -> (path, pattern of the reason)."""
    good = make.lamost_table(tmp_path / "good.fits").read_bytes()
    packed = gzip.compress(good)
    broken = bytearray(packed)
    broken[-6] ^= 255  # within the CRC
    cases = {
        "empty": (b"", "is empty"),
        "text": (
            b"hello, this is no spectrum\n",
            r"not a FITS file: it starts with b'hello",
        ),
        "binary": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "not a FITS file"),
        "html": (
            b"<!DOCTYPE html>\n<html><body>404</body></html>\n",
            "not a FITS file",
        ),
        "words": (b"5000 1\n5001 one\n5002 2\n", "words"),
        "ragged": (b"5000 1\n5001 1 2\n5002 2\n", "different length"),
        "descending and rising": (b"5000 1\n4999 1\n5002 2\n", "increasing"),
        "gzip cut": (packed[: len(packed) // 2], "gzip file is truncated"),
        "gzip without end": (packed[:-4], "gzip file is truncated"),
        "gzip crc": (bytes(broken), "gzip data are damaged"),
        "gzip head only": (packed[:6], "gzip file is truncated"),
        "gzip of nothing": (gzip.compress(b""), "empty inside"),
        "gzip of text": (
            gzip.compress(b"hello, this is no spectrum\n"),
            "not a FITS file",
        ),
        "header cut": (good[:1000], "header of HDU 0 has no END"),
        "second header cut": (good[: 2880 + 1000], "header of HDU 1 has no END"),
        "data cut": (good[:9000], r"truncated: HDU 1 needs 9600 bytes of data"),
        "primary only": (good[:2880], "no data, only a header"),
        "zeros": (bytes(5000), "not a FITS file"),
        "bad naxis": (
            good.replace(
                b"TFIELDS =                    6", b"TFIELDS =            sixty"
            ),
            None,
        ),
        "not ascii": (
            good.replace(b"TTYPE1  = 'FLUX", b"TTYPE1  = '\xff\xfe\xfdX"),
            None,
        ),
    }
    return cases


def test_damaged_files_give_a_reason(tmp_path):
    for name, (data, pattern) in damaged(tmp_path).items():
        path = tmp_path / f"{name}.fits"
        path.write_bytes(data)
        with pytest.raises(SpectrumError, match=pattern) as caught:
            surveys.read(path)
        reason = str(caught.value)
        assert "\n" not in reason, name
        assert str(tmp_path) not in reason, name
        if pattern != "increasing":
            with pytest.raises(SpectrumError):
                surveys.identify(path)


def test_bytes_flipped_anywhere_never_raise_anything_else(tmp_path):
    random = np.random.default_rng(5)
    for layout in ("lrs-image", "lrs-table", "mrs-rows", "sdss-lite", "apogee-visit"):
        _, source = make.build(layout, tmp_path)
        whole = source.read_bytes()
        path = tmp_path / "flipped.fits"
        for _ in range(60):
            data = bytearray(whole)
            for place in random.integers(0, min(len(data), 9000), 3):
                data[place] = random.integers(0, 256)
            path.write_bytes(data[: random.integers(1, 2 * len(data))])
            try:
                spectrum = surveys.read(path)
            except SpectrumError:
                continue
            assert np.isfinite(spectrum.wavelength).all()


def test_what_is_no_file(tmp_path):
    with pytest.raises(SpectrumError, match="no such file"):
        surveys.read(tmp_path / "absent.fits")
    with pytest.raises(SpectrumError, match="is a directory"):
        surveys.read(tmp_path)
    with pytest.raises(SpectrumError, match="can't be read"):
        surveys.read("a\0b.fits")
    fifo = tmp_path / "pipe.fits"
    os.mkfifo(fifo)
    with pytest.raises(SpectrumError, match="not a regular file"):
        surveys.read(fifo)
    loop = tmp_path / "loop.fits"
    loop.symlink_to(loop)
    with pytest.raises(SpectrumError, match="can't be read"):
        surveys.read(loop)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_permission(tmp_path):
    path = make.lamost_table(tmp_path / "a.fits")
    path.chmod(0)
    with pytest.raises(SpectrumError, match="permission denied"):
        surveys.read(path)


def test_files_without_a_spectrum_say_what_they_hold(tmp_path):
    path = make.galaxy_image(tmp_path / "galaxy.fits")
    with pytest.raises(
        SpectrumError, match="no spectrum: the file holds a 2-D image of 64×64"
    ):
        surveys.read(path)
    path = make.table(tmp_path / "t.fits", {"teff": np.ones(3), "logg": np.ones(3)})
    with pytest.raises(
        SpectrumError, match="a table of 3 rows with columns TEFF, LOGG"
    ):
        surveys.read(path)
    path = make.image(tmp_path / "line.fits", np.ones(50))
    with pytest.raises(SpectrumError, match="a 1-D image of 50"):
        surveys.read(path)
    names = ["FLUX", "IVAR", "ANDMASK", "ORMASK"]
    path = make.lamost_table(tmp_path / "l.fits", columns=names)
    with pytest.raises(
        SpectrumError, match="a table of 1 rows with columns FLUX, IVAR"
    ):
        surveys.read(path)


@pytest.mark.parametrize(
    "name", ["with space", "ünïcödé ★", "a[1]", "-", "%41", "a.fits.fits"]
)
def test_odd_file_names(name, tmp_path):
    path = make.lamost_table(tmp_path / f"{name}.fits")
    assert surveys.read(path).meta.file == str(path)
    assert surveys.read(str(path)).meta.objid == "740103002"


def test_file_name_that_is_not_unicode(tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe.fits")
    os.rename(make.lamost_table(tmp_path / "a.fits"), path)
    assert surveys.read(path).meta.file == path


def test_gzip_of_several_members_and_padding(tmp_path):
    plain = make.lamost_table(tmp_path / "a.fits")
    data = plain.read_bytes()
    half = len(data) // 2
    path = tmp_path / "b"  # the ending doesn't matter
    path.write_bytes(
        gzip.compress(data[:half]) + gzip.compress(data[half:]) + bytes(512)
    )
    np.testing.assert_array_equal(surveys.read(path).flux, surveys.read(plain).flux)


def test_zlib_reads_what_libdeflate_reads(tmp_path, monkeypatch):
    path = make.lamost_table(tmp_path / "a.fits.gz")
    expected = surveys.read(path)
    monkeypatch.setattr(inflating, "gzip_decompress", None)
    same(surveys.read(path), expected)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(SpectrumError, match="truncated"):
        surveys.read(path)


def test_only_one_whole_member_is_inflated_at_once():
    one, other = gzip.compress(b"a" * 999), gzip.compress(b"b" * 999)
    assert inflating.one_member(one, 999) == b"a" * 999
    assert inflating.one_member(one, 998) is None
    for data in (one + other, one + bytes(8), one[:-1], other[:-8] + one[-8:], b""):
        assert inflating.one_member(data, 9999) is None
    assert inflating.gunzip(one + other) == b"a" * 999 + b"b" * 999
    promising = one[:-4] + (1 << 27).to_bytes(4, "little")  # more than there can be
    assert inflating.one_member(promising, 1 << 28) is None


def test_missing_padding_and_trailing_bytes(tmp_path):
    path = make.lamost_table(tmp_path / "a.fits")
    expected = surveys.read(path)
    data = path.read_bytes()
    path.write_bytes(data.rstrip(b"\0"))
    path.write_bytes(data + b"anything at all")
    same(surveys.read(path), expected)


def test_readers_import_no_astropy():
    code = (
        "import sys, stellarcli.surveys; print({'astropy', 'torch'} & {*sys.modules})"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "set()"


def test_common_layouts_never_need_astropy(tmp_path, monkeypatch):
    def refuse(*_):
        raise AssertionError("the library was used")

    monkeypatch.setattr(library, "library_parse", refuse)
    for layout in make.EXAMPLES:
        surveys.read(make.build(layout, tmp_path)[1])
    for path in REAL:
        surveys.read(path)


def test_lamost_bands_are_those_of_the_catalogue():
    assert lamost.BANDS == "ugriz"
