"""The shipped model of medium resolution: labels, errors, flags of spoilt arms."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from stellarcli import catalog, checkpoint
from stellarcli.catalog import Flag
from stellarcli.spectrum import SPEED_OF_LIGHT
from stellarcli.surveys import atmospheres, simulated

REAL = Path(__file__).parents[2] / "shared/data/formats/lamost-mrs-dr7"
LABELS = atmospheres.LABELS


def flags_of(row):
    return Flag(int(row["flag"]))


@pytest.fixture(scope="module")
def stars(tmp_path_factory):
    """Simulated files with both arms, and their truth."""
    folder = tmp_path_factory.mktemp("mrs")
    truth = simulated.write_spectra(folder, 40, "lamost-mrs", seed=31, snr=(30, 120))
    keep = []
    for row in truth:
        path = folder / row["file"].decode()
        with fits.open(path) as hdus:
            keep.append(
                len(hdus) == 3 and all(hdus[n].data["IVAR"].any() for n in (1, 2))
            )
        if not keep[-1]:
            path.unlink()
    return folder, truth[keep]


@pytest.fixture(scope="module")
def predicted(stars, tmp_path_factory):
    """Catalogue of those files, made without any option."""
    from stellarcli import inputs, prediction, preparation

    target = str(tmp_path_factory.mktemp("out") / "mrs.fits")
    paths = inputs.expand([str(stars[0])], target, print)
    tasks = list(inputs.tasks(paths, preparation.CHUNK))
    prediction.predict(tasks, target, prediction.Run(model="mrs-sim", workers=1))
    return catalog.read(target).rows


def test_the_model_says_what_it_is():
    model = checkpoint.load("mrs-sim")
    assert model.architecture == "rdn"
    assert tuple(label.name for label in model.labels) == LABELS
    assert len(model.members) == 6
    assert model.velocities == "auto"
    assert model.recipe.name == "mrs"


def test_every_label_of_the_truth_is_a_column_with_an_error(predicted):
    names = [n for label in LABELS for n in (label, f"{label}_err")]
    assert [n for n in predicted.dtype.names if n in names] == names
    for name in names:
        assert np.isfinite(predicted[name]).all()
    assert {"rv", "rv_err"} < set(predicted.dtype.names)


def test_labels_are_recovered_within_their_errors(stars, predicted):
    truth = stars[1]
    names = np.char.decode(predicted["objid"].astype("S"))
    np.testing.assert_array_equal(names, np.char.decode(truth["objid"].astype("S")))
    pull = np.array([(predicted[n] - truth[n]) / predicted[f"{n}_err"] for n in LABELS])
    assert 0.6 < np.mean(abs(pull) < 1) < 0.78
    assert np.mean(abs(pull) < 3) > 0.97
    for name, most in {"teff": 120, "logg": 0.35, "feh": 0.12, "mg_h": 0.14}.items():
        assert np.mean(abs(predicted[name] - truth[name])) < most
    # more than how abundances go together: the scatter of truth, removed in part
    for name in ("mg_h", "ni_h", "ca_h", "cr_h"):
        error = predicted[name] - truth[name]
        assert np.corrcoef(predicted[name], truth[name])[0, 1] > 0.9
        assert error.std() < 0.5 * truth[name].std()
    assert np.mean(abs(predicted["rv"] - truth["rv"]) < predicted["rv_err"]) > 0.8


def spoil(path, target, how):
    """Copy a file with one thing wrong."""
    shutil.copy(path, target)
    with fits.open(target, mode="update") as hdus:
        red = next(n for n, hdu in enumerate(hdus) if hdu.name == "COADD_R")
        if how == "one arm":
            del hdus[red:]
        elif how == "arm of zeros":
            for name in ("FLUX", "IVAR"):
                hdus[red].data[name] = 0
        elif how == "arms of two velocities":
            shift = np.log10(1 + 90 / SPEED_OF_LIGHT)
            hdus[red].data["LOGLAM"] += shift
        elif how == "nonsense":
            hdus[red].data["FLUX"] = np.nan


ARMS = Flag.PARTIAL_COVERAGE | Flag.ARMS_DIFFER | Flag.MASKED_PIXELS
KINDS = {
    "whole": Flag(0),
    "one arm": Flag.PARTIAL_COVERAGE,
    "arm of zeros": Flag.PARTIAL_COVERAGE,
    "arms of two velocities": Flag.ARMS_DIFFER,
    "nonsense": Flag.MASKED_PIXELS,
}


def test_spoilt_arms_are_flagged_and_do_not_crash(stars, stellar, here):
    folder, truth = stars
    best = truth[np.argmin(abs(truth["teff"] - 5200))]
    for kind in KINDS:
        spoil(folder / best["file"].decode(), here / f"{kind}.fits", kind)
    paths = [f"{kind}.fits" for kind in KINDS]
    done = stellar("predict", *paths, "-m", "mrs-sim", "-o", "out.fits", "-q")
    assert done.status == 0
    rows = catalog.read("out.fits").rows
    for row, (kind, flag) in zip(rows, KINDS.items(), strict=True):
        found = flags_of(row) & ARMS
        assert flag in found, kind
        assert (found == Flag(0)) == (kind == "whole")
        assert (Flag.ARMS_DIFFER in found) == (flag == Flag.ARMS_DIFFER)
        assert all(np.isfinite(row[name]) for name in LABELS), kind
        assert row["rv"] == pytest.approx(best["rv"], abs=100)
    whole, blue = rows[0], rows[1]
    assert abs(blue["teff"] - whole["teff"]) < 5 * blue["teff_err"] + 100
    assert blue["teff_err"] > whole["teff_err"]


@pytest.mark.skipif(not REAL.exists(), reason="needs the real data in ../shared")
def test_a_real_file_and_its_exposures(stellar, here):
    (path,) = REAL.iterdir()
    for kind in KINDS:
        spoil(path, here / f"{kind}.fits", kind)
    assert stellar("predict", path, "-m", "mrs-sim", "-o", "a.fits", "-q").status == 0
    options = ("-m", "mrs-sim", "-q", "--exposures")
    assert stellar("predict", path, *options, "-o", "b.fits").status == 0
    (coadd,), single = (catalog.read(name).rows for name in ("a.fits", "b.fits"))
    assert len(single) == 4
    assert coadd["snr"] > 10
    np.testing.assert_allclose(single["rv"], coadd["rv"], atol=1)
    assert (single["teff_err"] > 0.8 * coadd["teff_err"]).all()
    assert (abs(single["teff"] - coadd["teff"]) < 4 * single["teff_err"]).all()
    paths = [f"{kind}.fits" for kind in KINDS]
    assert stellar("predict", *paths, *options[:3], "-o", "c.fits").status == 0
    # an arm whose coadd is zeros is read from its best exposure
    expected = KINDS | {"arm of zeros": Flag(0)}
    for row, flag in zip(catalog.read("c.fits").rows, expected.values(), strict=True):
        found = flags_of(row) & ARMS
        assert flag in found
        assert np.isfinite(row["teff"])
