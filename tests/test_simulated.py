"""Simulated survey files: what is put in must come out, and files must be real ones."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from stellarcli.errors import UsageError
from stellarcli.spectrum import SPEED_OF_LIGHT
from stellarcli.surveys import cards, lamostfiles, simulated
from stellarcli.surveys.simulated import (
    LABEL_NAMES,
    Emulator,
    draw_labels,
    plausible,
    simulate,
    write_spectra,
)

SHARED = Path(__file__).parents[2] / "shared" / "data"
SUN = np.array([[5777.0, 4.44, 0.0]])


@pytest.fixture(scope="module")
def emulator():
    return Emulator.load()


def depth(emulator, labels, center, width):
    """Line depth: 1 - mean flux in the line / mean of both sides."""
    flux = emulator.spectrum(np.atleast_2d(labels))
    off = abs(emulator.wavelength - center)
    line = flux[:, off < width].mean(axis=1)
    sides = flux[:, (off > 3 * width) & (off < 5 * width)].mean(axis=1)
    return 1 - line / sides


# --- the emulator ---------------------------------------------------------------------


def test_spectra_are_positive_and_finite_all_over_the_region(emulator):
    labels = draw_labels(500, np.random.default_rng(0))
    flux = emulator.spectrum(np.stack([labels[n] for n in LABEL_NAMES], axis=1))
    assert flux.dtype == np.float32
    assert flux.shape == (500, emulator.wavelength.size)
    assert np.isfinite(flux).all()
    assert (flux > 0).all()


def test_hotter_main_sequence_stars_have_stronger_balmer_lines(emulator):
    labels = [[teff, 4.3, 0.0] for teff in (5000, 5800, 6600, 7600, 8800)]
    for center in (4862.7, 6564.6):
        assert (np.diff(depth(emulator, labels, center, 6)) > 0).all()


def test_metal_lines_deepen_with_metallicity_and_in_cool_stars(emulator):
    magnesium = 5176.0
    rich = [[5500.0, 4.3, feh] for feh in (-2.0, -1.0, 0.0)]
    assert (np.diff(depth(emulator, rich, magnesium, 12)) > 0).all()
    cool = [[teff, 4.4, 0.0] for teff in (6500, 5800, 5000)]
    assert (np.diff(depth(emulator, cool, magnesium, 12)) > 0).all()


def test_gravity_shows_in_magnesium_of_cool_stars(emulator):
    giant, dwarf = depth(emulator, [[4800, 2.5, 0.0], [4800, 4.6, 0.0]], 5176.0, 12)
    assert dwarf > giant


def test_colour_follows_the_planck_function(emulator):
    teff = np.array([4500.0, 5800.0, 7500.0, 9500.0])
    flux = emulator.spectrum(np.array([[t, 4.3, 0.0] for t in teff]))
    at = [abs(emulator.wavelength - w) < 60 for w in (4600, 6800)]
    colour = np.log(flux[:, at[0]].mean(axis=1) / flux[:, at[1]].mean(axis=1))
    blue, red = (np.expm1(1.438777e8 / (w * teff)) for w in (4600, 6800))  # hc/k in Å K
    expected = np.log(red / blue) + 5 * np.log(6800 / 4600)
    # Teff isn't the colour temperature, but both change alike
    colour, expected = colour - colour[1], expected - expected[1]
    np.testing.assert_allclose(colour, expected, atol=0.25)


def test_lines_are_in_vacuum(emulator):
    flux = emulator.spectrum(np.array([[8500.0, 4.2, 0.0]]))[0]
    near = abs(emulator.wavelength - 6564.6) < 10
    core = emulator.wavelength[near][np.argmin(flux[near])]
    assert core == pytest.approx(6564.61, abs=1.0)  # in air: 6562.80


def test_red_end_is_constrained_for_labelled_kinds_of_stars_only(emulator):
    red = emulator.wavelength > 7500
    known = emulator.constrained(
        np.array([[5800, 4.4, 0], [3200, 4.9, 0], [20000, 4, 0]])
    )
    assert known[0].all()
    assert not known[1:, red].any()
    assert known[1:, ~red & (emulator.wavelength < 7390)].all()


def test_red_end_is_smooth_where_unconstrained(emulator):
    flux = emulator.spectrum(np.array([[20000.0, 4.0, 0.0], [18000.0, 4.0, 0.0]]))
    red = emulator.wavelength > 7500
    assert (np.ptp(np.log(flux[:, red]), axis=1) < 1.2).all()


def test_labels_outside_the_limits_are_refused_with_the_limits(emulator):
    with pytest.raises(UsageError, match=r"teff = 50000 .* 2900 to 25000"):
        emulator.spectrum(np.array([[50000.0, 4.0, 0.0]]))
    with pytest.raises(UsageError, match="logg = nan"):
        emulator.spectrum(np.array([[5000.0, np.nan, 0.0]]))


def test_unknown_format_is_refused(tmp_path):
    np.savez(tmp_path / "new.npz", format=99)
    with pytest.raises(UsageError, match="format 99"):
        Emulator.load(tmp_path / "new.npz")


# --- labels ---------------------------------------------------------------------------


def test_drawn_stars_are_plausible_and_of_all_kinds():
    labels = draw_labels(5000, np.random.default_rng(1))
    rows = np.stack([labels[name] for name in LABEL_NAMES], axis=1)
    assert plausible(rows).mean() > 0.99
    giants = labels["logg"] < 3.5
    assert 0.15 < giants.mean() < 0.5
    assert np.median(labels["teff"][giants]) < np.median(labels["teff"][~giants])
    assert (labels["feh"] < -1).mean() > 0.03
    assert (labels["teff"] > 8000).mean() > 0.05


def test_ranges_limit_and_equal_ends_fix_a_label():
    ranges = {"teff": (5000, 5500), "feh": (-0.5, -0.5)}
    labels = draw_labels(200, np.random.default_rng(1), ranges)
    assert labels["teff"].min() >= 5000
    assert labels["teff"].max() <= 5500
    assert (labels["feh"] == -0.5).all()


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ({"tef": (4000, 5000)}, "'teff'.*Valid: teff, logg, feh"),
        ({"teff": (1000, 5000)}, "teff=2900:25000"),
        ({"logg": (4, 3)}, "lowest value first"),
        ({"feh": (np.nan, 0)}, "feh=-2.8:1"),
        ({"teff": (20000, 25000), "feh": (-2.8, -2.5)}, "no plausible star"),
    ],
)
def test_ranges_that_cannot_be_are_refused(tmp_path, ranges, message):
    with pytest.raises(UsageError, match=message):
        write_spectra(tmp_path / "out", 1, ranges=ranges)


@pytest.mark.parametrize("snr", [0, -5, (30, 10), (0, 10), np.nan])
def test_impossible_snr_is_refused(tmp_path, snr):
    with pytest.raises(UsageError, match=r"S/N|snr"):
        write_spectra(tmp_path / "out", 1, snr=snr)


# --- simulation -----------------------------------------------------------------------


def test_requested_snr_is_reached():
    labels = np.repeat(SUN, 64, axis=0)
    for wanted in (10, 50, 200):
        stars = simulate(labels, np.random.default_rng(2), snr=wanted)
        np.testing.assert_allclose(stars.snr["g"], wanted, rtol=0.1)
        start, stop = np.searchsorted(stars.wavelength, simulated.SNR_BANDS["g"])
        ratio = (stars.flux * np.sqrt(stars.ivar))[:, start:stop]
        np.testing.assert_allclose(np.median(ratio), wanted, rtol=0.1)


def test_snr_range_is_drawn_evenly_in_its_logarithm():
    labels = np.repeat(SUN, 256, axis=0)
    snr = simulate(labels, np.random.default_rng(2), snr=(10, 1000)).snr["g"]
    assert np.median(np.log10(snr)) == pytest.approx(2, abs=0.2)
    assert np.log10(snr).std() == pytest.approx(2 / np.sqrt(12), rel=0.15)


def test_velocity_is_recovered_by_cross_correlation(emulator):
    labels = np.repeat(SUN, 32, axis=0)
    stars = simulate(labels, np.random.default_rng(4), snr=100, velocity_scatter=150)
    rest = emulator.spectrum(SUN)[0]
    inside = (stars.wavelength > 4200) & (stars.wavelength < 5600)
    trial = np.arange(-600, 601, 10.0)
    template = np.array(
        [
            np.interp(
                stars.wavelength[inside] / (1 + v / SPEED_OF_LIGHT),
                emulator.wavelength,
                rest,
            )
            for v in trial
        ]
    )
    flat = template / smooth(template)
    flat -= flat.mean(axis=1, keepdims=True)
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    good = stars.ivar[:, inside] > 0
    flux = np.where(good, stars.flux[:, inside], stars.continuum[:, inside])
    flux = flux / smooth(flux)
    correlation = (flux - flux.mean(axis=1, keepdims=True)) @ flat.T
    peak = np.clip(correlation.argmax(axis=1), 1, trial.size - 2)
    around = correlation[np.arange(32)[:, None], peak[:, None] + [-1, 0, 1]].T
    curvature = around[0] - 2 * around[1] + around[2]
    found = trial[peak] + 5 * (around[0] - around[2]) / curvature
    assert np.median(abs(found - stars.rv)) < 5
    assert abs(found - stars.rv).max() < 25
    assert np.median(abs(stars.rv_measured - stars.rv)) < 8


def smooth(flux, width=120):
    kernel = np.ones(width) / width
    padded = np.pad(flux, ((0, 0), (width // 2, width - width // 2 - 1)), mode="edge")
    return np.array([np.convolve(row, kernel, mode="valid") for row in padded])


def test_noise_matches_its_inverse_variance():
    labels = np.repeat(SUN, 64, axis=0)
    stars = simulate(labels, np.random.default_rng(5), snr=8)
    inside = (stars.wavelength > 4500) & (stars.wavelength < 6800)
    flux, ivar = stars.flux[:, inside], stars.ivar[:, inside]
    good = (ivar[:, 3:] > 0) & (ivar[:, :-3] > 0)
    off = ((flux[:, 3:] - flux[:, :-3]) * np.sqrt(ivar[:, 3:] / 2))[good]
    assert 0.75 < 1.4826 * np.median(abs(off)) < 1.1


def test_bad_pixels_are_like_the_survey_s():
    labels = np.repeat(SUN, 256, axis=0)
    stars = simulate(labels, np.random.default_rng(6), snr=50)
    dead = (stars.ivar == 0).sum(axis=1)
    filled = ((stars.ivar == 0) & (stars.flux == 0)).sum(axis=1)
    assert 5 < np.median(dead) < 80
    assert (dead == 0).any()
    assert 0 < filled.mean() < 20
    zero = (stars.flux == 0) & (stars.ivar > 0)
    assert not zero[:, stars.wavelength < 9000].any()
    assert 0 < zero.mean(axis=1).max() < 0.02
    assert ((stars.andmask > 0) <= (stars.ormask > 0)).all()


def test_a_structured_array_of_labels_will_do():
    labels = draw_labels(3, np.random.default_rng(0))
    assert simulate(labels, np.random.default_rng(0)).flux.shape[0] == 3


# --- files ----------------------------------------------------------------------------


def contents(directory):
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.iterdir())
    }


def test_a_seed_means_the_same_files_whatever_their_number(tmp_path):
    few = write_spectra(tmp_path / "few", 5, seed=7)
    many = write_spectra(tmp_path / "many", 70, seed=7)
    assert (many[:5] == few).all()
    first, all_ = contents(tmp_path / "few"), contents(tmp_path / "many")
    assert len(first) == 5
    assert len(all_) == 70
    assert first.items() <= all_.items()
    other = write_spectra(tmp_path / "other", 5, seed=8)
    assert not set(other["file"]) & set(few["file"])
    assert not set(other["objid"]) & set(few["objid"])
    assert not np.isin(other["teff"], few["teff"]).any()


def test_zero_files_are_an_empty_table(tmp_path):
    assert len(write_spectra(tmp_path, 0)) == 0


@pytest.mark.parametrize("layout", ["A", "C"])
@pytest.mark.parametrize("compress", [True, False])
def test_files_are_valid_fits(tmp_path, layout, compress):
    from astropy.io import fits

    truth = write_spectra(tmp_path, 3, seed=1, snr=40, layout=layout, compress=compress)
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".tmp")]
    for row in truth:
        path = tmp_path / row["file"].decode()
        assert path.name.endswith(".fits.gz" if compress else ".fits")
        with fits.open(path) as hdus:
            hdus.verify("exception")
            header = hdus[0].header
            assert header["OBSID"] == int(row["objid"])
            assert header["SNRG"] == pytest.approx(row["snr"])
            assert header["RA"] == pytest.approx(row["ra"])
            assert header["CLASS"] == "STAR"
            assert header["SUBCLASS"] == row["subclass"].decode()
            assert header["VACUUM"] is True
            assert "SIMULATED" in header["DATA_V"]
            velocity = header["Z"] * SPEED_OF_LIGHT
            assert velocity == pytest.approx(row["rv"], abs=40)
            grid = 10 ** (header["COEFF0"] + header["COEFF1"] * np.arange(3909))
            if layout == "C":
                data = hdus["COADD"].data
                assert len(data) == 1
                wavelength, flux = data["WAVELENGTH"][0], data["FLUX"][0]
            else:
                assert header["EXTEN0"].startswith("Flux, Inverse, Wavelength")
                flux, _, wavelength, _, _ = hdus[0].data
            np.testing.assert_allclose(wavelength, grid, rtol=1e-6)
            assert np.isfinite(flux).all()
            assert np.median(flux) > 0


def test_compressed_and_plain_files_hold_the_same(tmp_path):
    write_spectra(tmp_path / "gz", 1, seed=2)
    write_spectra(tmp_path / "plain", 1, seed=2, compress=False)
    packed, plain = (next((tmp_path / name).iterdir()) for name in ("gz", "plain"))
    assert gzip.decompress(packed.read_bytes()) == plain.read_bytes()


def test_fitsio_reads_them(tmp_path):
    import fitsio

    truth = write_spectra(tmp_path, 1, seed=2)
    with fitsio.FITS(tmp_path / truth["file"][0].decode()) as hdus:
        assert hdus["COADD"].read()["FLUX"].shape == (1, 3909)
        assert (
            hdus[0].read_header()["SUBCLASS"].strip() == truth["subclass"][0].decode()
        )


def test_unknown_survey_and_layout_are_named(tmp_path):
    with pytest.raises(UsageError, match="lamost-lrs"):
        write_spectra(tmp_path, 1, "lamost")
    with pytest.raises(UsageError, match="Valid: A, C"):
        write_spectra(tmp_path, 1, layout="B")


@pytest.mark.parametrize(
    ("ra", "dec", "name"),
    [
        (57.407629, 26.351154, "LAMOST J034937.83+262104.1"),
        (158.209454, 35.693413, "LAMOST J103250.26+354136.2"),
        (10.0, -5.5, "LAMOST J004000.00-053000.0"),
    ],
)
def test_designation_is_formed_like_lamost_s(ra, dec, name):
    assert cards.designation(ra, dec) == name


@pytest.mark.parametrize(
    ("teff", "logg", "name"),
    [(9500, 4, "A1"), (5850, 4.4, "G2"), (3500, 4.9, "dM2"), (3500, 0.5, "gM2")],
)
def test_subclass_follows_temperature(teff, logg, name):
    assert lamostfiles.subclass(teff, logg) == name


# --- real spectra ---------------------------------------------------------------------


DR10 = SHARED / "lamost-dr10"


@pytest.mark.skipif(not DR10.exists(), reason="needs the real data in ../shared")
def test_emulator_matches_real_spectra(emulator):
    import fitsio

    table = fitsio.read(DR10 / "train_labels.fits")
    by_name = {row["file"].strip(): row for row in table}
    correlations, reddest = [], []
    with tarfile.open(DR10 / "train.tar.xz") as archive:
        members = (member for member in archive if member.isfile())
        for member in islice(members, 150):
            row = by_name[Path(member.name).name]
            if row["snrg"] < 40 or not (row["consistent"] and row["clean"]):
                continue
            observed = from_bytes(archive.extractfile(member).read())
            for found, (start, stop) in ((correlations, (3950, 5750)), (reddest, RED)):
                found.append(correlate(emulator, row, observed, start, stop))
    assert len(correlations) > 10
    assert np.median(correlations) > 0.93
    assert np.median(reddest) > 0.7


RED = (8400, 8900)  # the Ca II triplet


def from_bytes(content):
    from astropy.io import fits

    with fits.open(io.BytesIO(content)) as hdus:
        data = hdus["COADD"].data
        columns = [data[name][0] for name in ("WAVELENGTH", "FLUX", "IVAR")]
        wavelength, flux, ivar = (np.asarray(c, dtype=float) for c in columns)
        return wavelength / (1 + hdus[0].header["Z"]), flux, ivar


def correlate(emulator, row, observed, start, stop):
    wavelength, flux, ivar = observed
    inside = (wavelength > start) & (wavelength < stop)
    model = emulator.spectrum(np.array([[row[name] for name in LABEL_NAMES]]))[0]
    model = np.interp(wavelength[inside], emulator.wavelength, model)
    flux = np.interp(wavelength[inside], wavelength[ivar > 0], flux[ivar > 0])
    pair = np.array([flux, model])
    return np.corrcoef(pair / smooth(pair))[0, 1]
