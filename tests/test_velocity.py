"""Velocities: what was put in is found within its error; sources; arms; spikes."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import surveyfiles
from astropy.io import fits

from stellarcli import (
    catalog,
    checkpoint,
    preparation,
    prepared,
    preprocess,
    surveys,
    velocity,
)
from stellarcli.catalog import Flag
from stellarcli.errors import UsageError
from stellarcli.inputs import Task
from stellarcli.preprocess import Batch
from stellarcli.preprocess.spikes import mask_spikes
from stellarcli.spectrum import Spectrum, SpectrumMeta
from stellarcli.surveys import medium, simulated
from stellarcli.surveys.emulator import plausible
from stellarcli.velocity import Source, Velocity

SHARED = Path(__file__).parents[2] / "shared" / "data"


def medium_spectra(count, snr, seed=1, **options):
    """Simulated MRS spectra and their velocities, -300 to 300 km/s."""
    rng = np.random.default_rng(seed)
    stars = medium.observe(
        medium.draw(count, rng), rng, snr=snr, velocity_scatter=150, **options
    )
    inside = abs(stars.rv) < 300
    spectra = []
    for row in np.flatnonzero(inside):
        arms = [arm for arm in "BR" if stars.snr[arm][row] > 0]
        pieces = [
            np.concatenate([values[arm] for arm in arms])
            for values in (
                stars.wavelength,
                {arm: stars.flux[arm][row] for arm in arms},
                {arm: stars.ivar[arm][row] for arm in arms},
            )
        ]
        stops = np.cumsum([stars.wavelength[arm].size for arm in arms]).tolist()
        segments = tuple(zip([0, *stops[:-1]], stops, strict=True))
        mask = np.zeros(pieces[0].size, dtype=np.uint8)
        meta = SpectrumMeta(survey="lamost-mrs")
        spectra.append(Spectrum(*pieces, mask, meta, segments))
    return spectra, stars.rv[inside]


def low_spectra(count, snr, seed=1):
    """Simulated LRS spectra of A to K stars and their velocities."""
    rng = np.random.default_rng(seed)
    labels = simulated.draw_labels(count, rng, {"teff": (4000, 9000)})
    stars = simulated.simulate(labels, rng, snr=snr, velocity_scatter=150)
    inside = np.flatnonzero(abs(stars.rv) < 300)
    return low_of(stars, inside), stars.rv[inside]


def low_of(stars, rows):
    """Some of simulated LRS spectra."""
    return [
        Spectrum(
            stars.wavelength,
            stars.flux[row],
            stars.ivar[row],
            (stars.flux[row] == 0) * 4,
            SpectrumMeta(survey="lamost-lrs"),
        )
        for row in rows
    ]


# ------------------------------------------------------------------------- measurement


@pytest.mark.parametrize("make", [medium_spectra, low_spectra])
def test_what_was_injected_is_recovered_within_the_error(make):
    spectra, truth = make(96, (20, 150))
    found = velocity.measure(spectra)
    error = np.array([v.error for v in found])
    off = np.array([v.rv for v in found]) - truth
    assert np.isfinite(off).all()
    share = np.mean(abs(off) < error)
    assert share >= 0.95 - 2 * np.sqrt(0.05 * 0.95 / len(off))
    assert (abs(off) < 3 * error).all()
    assert abs(off).max() < 12 * np.median(error)
    assert np.median(error) < (1.0 if make is medium_spectra else 5.0)


def test_a_star_between_two_templates_is_not_found_beside_its_velocity():
    # without a mixture an A star of 7500 K is 2.5 km/s off
    labels = np.tile([[7600.0, 4.2, -0.2]], (24, 1))
    rng = np.random.default_rng(4)
    stars = simulated.simulate(labels, rng, snr=150, velocity_scatter=150)
    found = velocity.measure(low_of(stars, range(24)))
    off = np.array([v.rv for v in found]) - stars.rv
    assert abs(np.median(off)) < 1.0


def test_templates_are_stars_that_the_emulator_knows():
    stars = velocity.low_stars()
    assert plausible(stars).all()
    assert (velocity.low_templates().flux[0].shape[0]) == len(stars)
    assert np.ptp(stars[:, 0]) > 8000


def test_the_error_grows_with_the_noise():
    errors = [
        np.median([v.error for v in velocity.measure(medium_spectra(24, snr)[0])])
        for snr in (100, 12)
    ]
    assert errors[1] > 1.2 * errors[0]


def test_noise_has_no_velocity():
    spectra, _ = medium_spectra(8, 50)
    rng = np.random.default_rng(3)
    blank = [
        replace(s, flux=rng.normal(1, 0.2, s.flux.size), ivar=np.full(s.flux.size, 25))
        for s in spectra
    ]
    assert np.isnan([v.rv for v in velocity.measure(blank)]).all()


def test_another_wavelength_range_has_no_velocity(tmp_path):
    found = velocity.measure(
        [surveys.read(surveyfiles.apogee_visit(tmp_path / "a.fits"))]
    )
    assert np.isnan(found[0].rv)


def test_arms_with_different_velocities_are_told():
    spectra, truth = medium_spectra(12, 60, seed=5)
    whole = [n for n, s in enumerate(spectra) if len(s.segments) == 2]
    first, second = spectra[whole[0]], spectra[whole[1]]
    start, stop = second.segments[1]
    shift = 1 + 120 / 299792.458
    wavelength = first.wavelength.copy()
    wavelength[first.segments[1][0] :] *= shift
    found = velocity.measure([first, replace(first, wavelength=wavelength)])
    assert [v.discrepant for v in found] == [False, True]
    assert found[0].rv == pytest.approx(truth[whole[0]], abs=3)
    (blue, _), (red, _) = found[1].arms
    assert red - blue == pytest.approx(120, abs=5)
    assert stop > start


def test_one_arm_is_enough():
    spectra, truth = medium_spectra(12, 60, seed=5)
    spectrum = spectra[0]
    start, stop = spectrum.segments[-1]
    arrays = (spectrum.wavelength, spectrum.flux, spectrum.ivar, spectrum.mask)
    red = Spectrum(*(a[start:stop] for a in arrays), spectrum.meta)
    (found,) = velocity.measure([red])
    assert found.rv == pytest.approx(truth[0], abs=3)
    assert np.isnan(found.arms[0]).all()
    assert not found.discrepant


def test_discrepancy_is_in_units_of_the_error():
    assert Velocity(0, 1, ((0.0, 1.0), (5.8, 1.0))).discrepant
    assert not Velocity(0, 1, ((0.0, 1.0), (5.5, 1.0))).discrepant
    assert not Velocity(0, 1, ((0.0, 1.0), (np.nan, np.nan))).discrepant


@pytest.mark.skipif(not SHARED.exists(), reason="needs the real data in ../shared")
def test_visits_of_a_star_agree_as_well_as_the_headers():
    folder = SHARED / "repeats"
    with open(folder / "repeats.csv") as file:
        rows = list(csv.DictReader(file))
    spectra = [surveys.read(folder / row["file"]) for row in rows]
    measured = velocity.measure(spectra)
    found = np.array([v.rv for v in measured])
    error = np.array([v.error for v in measured])
    header = np.array([s.meta.rv for s in spectra])
    star = np.array([row["star"] for row in rows])
    pairs = [(i, j) for i in range(len(rows)) for j in range(i) if star[i] == star[j]]
    first, second = np.transpose(pairs)

    def scatter(values):
        off = values[first] - values[second]
        return 1.4826 * np.median(np.abs(off)) / np.sqrt(2)

    pull = (found[first] - found[second]) / np.hypot(error[first], error[second])
    assert 0.55 < np.mean(abs(pull) < 1) < 0.8, "one standard deviation on real stars"

    assert scatter(found) < 1.3 * scatter(header)
    assert 1.4826 * np.median(abs(found - header)) < 5
    assert abs(np.median(found - header)) < 2


@pytest.mark.skipif(not SHARED.exists(), reason="needs the real data in ../shared")
def test_real_exposures_agree_with_their_coadd():
    (path,) = (SHARED / "formats" / "lamost-mrs-dr7").iterdir()
    spectra = [surveys.read(path), *surveys.read_all(path)]
    found = velocity.measure(spectra)
    assert len(found) == 5
    np.testing.assert_allclose([v.rv for v in found[1:]], found[0].rv, atol=1)


# ----------------------------------------------------------------------------- sources


def test_sources_are_named(tmp_path):
    with pytest.raises(UsageError, match="Did you mean 'measure'"):
        Source.of("mesure")
    with pytest.raises(UsageError, match="nope"):
        Source.of("nope.fits")
    table = tmp_path / "t.csv"
    table.write_text("objid,teff\n1,5000\n")
    with pytest.raises(UsageError, match=r"no column of velocities.*objid, teff"):
        Source.of(str(table))


def test_a_catalogue_gives_velocities_to_its_rows(here):
    for number, name in enumerate(("a.fits", "b.fits", "c.fits")):
        flux, ivar = surveyfiles.star(surveyfiles.grid(), 30.0, seed=number)
        surveyfiles.lamost_image(name, flux=flux, ivar=ivar, OBSID=100 + number)
    Path("rv.csv").write_text("obsid,rv,rv_err\n100,55.5,1.5\n101,-9999,1\n")
    source = Source.of("rv.csv")
    spectra = [surveys.read(name) for name in ("a.fits", "b.fits", "c.fits")]
    found, discrepant = source.assign([*spectra, None])
    assert found[3] is None
    assert not discrepant.any()
    assert [s.meta.rv for s in found[:3]] == [55.5, None, None]
    assert found[0].meta.rv_error == 1.5
    assert found[0].meta.rv_source == "catalogue rv.csv"
    assert spectra[0].meta.rv != 55.5


def test_auto_measures_only_where_the_header_is_silent(monkeypatch):
    spectra, _ = medium_spectra(4, 40)
    known = replace(spectra[0], meta=replace(spectra[0].meta, rv=7.0))
    seen = []

    def pretend(chosen):
        seen.append(len(chosen))
        return [Velocity(3.0, 0.5)] * len(chosen)

    monkeypatch.setattr(velocity, "measure", pretend)
    pair = [known, spectra[1]]
    for name, expected in {
        "header": [7.0, None],
        "auto": [7.0, 3.0],
        "measure": [3.0, 3.0],
    }.items():
        found, _ = Source.of(name).assign(pair)
        assert [s.meta.rv for s in found] == expected
    assert seen == [1, 2]


def test_prepared_tables_keep_velocity_and_error(here, stellar):
    simulated.write_spectra("mrs", 6, "lamost-mrs", seed=3, snr=(30, 60))
    truth = simulated.write_spectra("mrs", 6, "lamost-mrs", seed=3, snr=(30, 60))
    options = ("mrs", "--recipe", "rdn", "-q")
    assert (
        stellar("preprocess", *options, "-o", "m.fits", "--rv", "measure").status == 0
    )
    rows = fits.getdata("m.fits", "SPECTRA")
    assert (abs(rows["rv"] - truth["rv"]) < 4 * rows["rv_err"]).all()
    assert not (rows["flag"] & Flag.NO_VELOCITY).any()
    stellar("preprocess", *options, "-o", "h.fits")
    rows = fits.getdata("h.fits", "SPECTRA")
    assert (rows["flag"] & Flag.NO_VELOCITY).all()
    assert np.isnan(rows["rv_err"]).all()


def test_a_catalogue_of_labels_has_the_measured_velocity(stellar, model, stars, here):
    options = ("predict", *stars, "--model", model, "-q")
    assert stellar(*options, "-o", "plain.fits").status == 0
    assert stellar(*options, "-o", "rv.fits", "--rv", "measure").status == 0
    plain, rows = (catalog.read(n).rows.dtype.names for n in ("plain.fits", "rv.fits"))
    assert "rv" not in plain
    assert rows == (*plain[:5], "rv", "rv_err", *plain[5:])
    refused = stellar("preprocess", *stars, "-o", "p.fits", "--rv", "heather")
    assert refused.status == 2
    assert "header" in refused.err


@pytest.fixture
def measured_model(changed_model, model):
    """A model that was trained with measured velocities, by its own account."""
    training = checkpoint.load(model).training | {"velocities": ["measure"]}
    return changed_model(training=training)


def test_a_model_measures_where_its_training_did(stellar, measured_model, stars, here):
    assert checkpoint.load(measured_model).velocities == "auto"
    options = ("predict", *stars, "--model", measured_model, "-q")
    assert stellar(*options, "-o", "own.fits").status == 0
    assert stellar(*options, "-o", "auto.fits", "--rv", "auto").status == 0
    assert stellar(*options, "-o", "head.fits", "--rv", "header").status == 0
    own, auto, header = (
        catalog.read(f"{name}.fits").rows for name in ("own", "auto", "head")
    )
    assert "rv" in own.dtype.names
    assert "rv" not in header.dtype.names
    assert own.tobytes() == auto.tobytes()


def test_a_prepared_table_says_where_its_velocities_are_from(
    stellar, measured_model, stars, here
):
    recipe = measured_model
    for source in ("header", "auto"):
        made = stellar(
            *("preprocess", *stars, "-o", f"{source}.fits", "-q"),
            *("--recipe", recipe, "--rv", source),
        )
        assert made.status == 0
        assert prepared.PreparedTable(f"{source}.fits").velocities == source
    done = stellar("predict", "auto.fits", "-m", measured_model, "-o", "p.fits", "-q")
    assert done.status == 0, "what is prepared isn't measured again"
    assert "rv" in catalog.read("p.fits").rows.dtype.names


def test_prepared_spectra_are_refused_another_velocity(here):
    task = Task(table="p.fits", start=0, stop=1)
    with pytest.raises(UsageError, match="velocities are removed already"):
        preparation.run(task, preprocess.get("rdn"), velocities=Source.of("measure"))


# ------------------------------------------------------------- arms in prepared spectra


def test_a_missing_arm_and_one_of_zeros_are_flagged_alike(tmp_path):
    paths = {
        "both": surveyfiles.lamost_mrs(tmp_path / "both.fits", exposures=()),
        "blue": surveyfiles.lamost_mrs(tmp_path / "b.fits", arms="B", exposures=()),
        "stub": surveyfiles.lamost_mrs(tmp_path / "s.fits", stubs="R", exposures=()),
        "zeros": surveyfiles.lamost_mrs(tmp_path / "z.fits", exposures=()),
    }
    with fits.open(paths["zeros"], mode="update") as hdus:
        hdus["COADD_R"].data["FLUX"] = 0
    chunk = preparation.run(
        Task(paths=tuple(map(str, paths.values()))), preprocess.get("rdn")
    )
    half = chunk.batch.flux.shape[1] // 2
    for row, name in enumerate(paths):
        flags = Flag(int(chunk.rows["flag"][row]))
        assert Flag.UNREADABLE not in flags
        if name != "both":
            assert Flag.PARTIAL_COVERAGE in flags
            assert not chunk.batch.ivar[row, half:].any()
            assert not chunk.batch.flux[row, half:].any()
        assert chunk.batch.ivar[row, :half].any()


# ------------------------------------------------------------------------------ spikes


def plain_batch(flux, noise=0.02):
    shape = flux.shape
    return Batch(
        wavelength=np.linspace(5000, 5100, shape[1]),
        flux=flux.astype(np.float32),
        ivar=np.full(shape, noise**-2, dtype=np.float32),
        mask=np.zeros(shape, dtype=np.uint8),
        redshift=np.zeros(len(flux)),
        segments=(((0, shape[1]),),),
    )


def test_spikes_are_masked_and_nothing_else():
    rng = np.random.default_rng(1)
    flux = 1 + rng.normal(0, 0.02, (3, 1000)) + np.linspace(-0.4, 0.4, 1000)
    flux[:, 300:310] -= 0.5
    flux[0, 500:503] += 3.0
    flux[1, 700] += 0.6
    flux[2, 400:440] += 2.0  # an emission line
    batch = mask_spikes(plain_batch(flux))
    assert np.flatnonzero(batch.mask[0]).tolist() == [499, 500, 501, 502, 503]
    assert np.flatnonzero(batch.mask[1]).tolist() == [699, 700, 701]
    assert not batch.mask[2].any()
    assert not batch.ivar[batch.mask != 0].any()


def test_noise_alone_is_no_spike():
    rng = np.random.default_rng(2)
    for noise in (0.01, 0.15):
        flux = 1 + rng.normal(0, noise, (40, 3800))
        assert mask_spikes(plain_batch(flux, noise)).mask.sum() < 10


def test_the_recipe_scales_as_if_there_were_no_cosmic_ray():
    spectra, _ = medium_spectra(6, 60, seed=9)
    spectrum = next(s for s in spectra if len(s.segments) == 2)
    flux = spectrum.flux.copy()
    flux[1500:1502] += 30 * np.median(flux)
    recipe = preprocess.get("rdn")
    pair = [
        recipe.apply(Batch.from_spectra([s]))
        for s in (spectrum, replace(spectrum, flux=flux))
    ]
    good = pair[0].good & pair[1].good
    assert good.sum() > good.size - 700
    np.testing.assert_allclose(pair[0].flux[good], pair[1].flux[good], atol=0.02)
