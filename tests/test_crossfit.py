"""Cross-fitting: every row predicted by the fold that hasn't seen it."""

from itertools import combinations

import numpy as np
import pytest
import trainingtables
from astropy.io import fits

from stellarcli import checkpoint
from stellarcli.catalog import read
from stellarcli.dataset import split_by_hash

FOLDS = 3


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("crossfit") / "table.fits"
    return trainingtables.write(path, size=300, plan=[f"p{n % 30}" for n in range(300)])


def fit(stellar, table, *words):
    common = ("--target", "teff,logg", "--group", "plan", "--set", "validation=0")
    return stellar(
        "train", table, "-o", "m.safetensors", "-m", "ridge", *common, *words
    )


def rows_of(table):
    return np.asarray(fits.getdata(table, "SPECTRA"))


def test_unseen_rows_of_all_folds_calibrate_the_model_of_all_rows(stellar, here, table):
    select = ("--select", "snr > 10")
    done = fit(stellar, table, "--folds", str(FOLDS), "--refit", *select)
    assert done.status == 0, done.err
    assert "folds   teff" in done.err
    known = rows_of(table)
    chosen = known["snr"] > 10
    found = read("m.folds.fits").rows
    objid = known["objid"].astype(str)
    np.testing.assert_array_equal(found["objid"].astype(str), objid[chosen])

    plans = known["plan"].astype(str)
    for fold in range(FOLDS):
        part = split_by_hash(
            plans, test=0, validation=0, folds=FOLDS, fold=fold, seed=1
        )
        name = f"m.fold{fold}.safetensors"
        split = read(f"m.fold{fold}.split.fits").rows
        mine = chosen & (part == "test")
        there = np.isin(objid[chosen], objid[mine])
        tested = split["part"].astype(str) == "test"
        assert set(objid[mine]) == set(split["objid"][tested].astype(str))
        assert stellar("predict", table, "-o", "!p.fits", "--model", name).status == 0
        rows = read("p.fits").rows[mine]
        for column in ("teff", "teff_err", "logg", "logg_err", "flag"):
            np.testing.assert_array_equal(found[column][there], rows[column])
        assert checkpoint.load(name).training["judged_on"] == "folds"

    model = checkpoint.load("m.safetensors")
    assert model.training["judged_on"] == "folds"
    assert model.training["spectra"] == {
        "train": chosen.sum(),
        "validation": 0,
        "test": 0,
    }
    off = np.abs(found["teff"] - known["teff"][chosen])
    metrics = model.training["metrics"]["teff"]
    assert metrics["n"] == chosen.sum()
    assert metrics["mae"] == pytest.approx(off.mean(), rel=1e-5)
    # calibrated on themselves 68 %; by the other folds nearly so
    assert metrics["within1"] == pytest.approx(0.68, abs=0.02)
    assert abs((off < found["teff_err"]).mean() - 0.68) < 0.08


def test_the_test_part_is_seen_by_no_fold_and_judges_the_last_model(
    stellar, here, table
):
    words = ("--folds", str(FOLDS), "--refit", "--set", "test=0.3")
    assert fit(stellar, table, *words).status == 0
    plans = rows_of(table)["plan"].astype(str)
    part = split_by_hash(plans, test=0.3, validation=0, seed=1)
    objid = rows_of(table)["objid"].astype(str)
    found = read("m.folds.fits").rows["objid"].astype(str)
    np.testing.assert_array_equal(found, objid[part == "train"])
    held = set(objid[part == "test"])
    assert held
    for fold in range(FOLDS):
        split = read(f"m.fold{fold}.split.fits").rows
        assert held.isdisjoint(split["objid"].astype(str))
    split = read("m.split.fits").rows
    tested = split["part"].astype(str) == "test"
    assert set(split["objid"][tested].astype(str)) == held
    training = checkpoint.load("m.safetensors").training
    assert training["metrics"]["teff"]["n"] == (part == "train").sum()
    assert training["test_metrics"]["teff"]["n"] == len(held)


def test_stretches_of_unseen_rows_make_the_table_of_errors(stellar, here):
    """One of all folds for the last model, for each of these one of the others."""
    plans = [f"p{n % 30}" for n in range(120)]
    table = trainingtables.write(here / "few.fits", size=120, plan=plans)
    small = {
        "width": 8,
        "heads": 2,
        "encoder": "[8]",
        "decoder": "[8]",
        "hidden": "[8]",
        "rank": 2,
    }
    network = [w for key in small for w in ("--set", f"network.{key}={small[key]}")]
    done = stellar(
        *("train", table, "-o", "m.safetensors", "-m", "spectrafm", "--group", "plan"),
        *("--target", "teff,logg", "--folds", "2", "--refit", "--epochs", "1"),
        *("--set", "validation=0", "--set", "precision=float32", *network),
    )
    assert done.status == 0, done.err
    names = ("m.safetensors", "m.fold0.safetensors", "m.fold1.safetensors")
    models = [checkpoint.load(name) for name in names]
    tables = [model.part("coverage") for model in models]
    for one, other in combinations(tables, 2):
        assert not np.array_equal(one["levels"], other["levels"])
        np.testing.assert_array_equal(one["seen"], other["seen"])
    # figures of merit are those of whole spectra, each counted once
    assert [m.training["metrics"]["teff"]["n"] for m in models] == [
        len(rows_of(table)),
        *(m.training["spectra"]["train"] for m in models[1:]),
    ]
    off = read("m.folds.fits").rows["teff"] - rows_of(table)["teff"]
    metrics = models[0].training["metrics"]["teff"]
    assert metrics["mae"] == pytest.approx(np.abs(off).mean(), rel=1e-4)
    assert metrics["within1"] == pytest.approx(0.68, abs=0.1)


def test_finished_folds_are_kept(stellar, here, table):
    words = ("--folds", "2", "--refit")
    assert fit(stellar, table, *words).status == 0
    whole = checkpoint.load("m.safetensors").state
    (here / "m.safetensors").unlink()
    assert fit(stellar, table, *words, "--resume").status == 0
    again = checkpoint.load("m.safetensors").state
    assert all(np.array_equal(again[key], value) for key, value in whole.items())


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--folds", "2", "--seeds", "2"),
        ("--folds", "2", "--grid", "network.penalty=1,2"),
    ],
)
def test_only_the_folds_of_one_experiment(stellar, here, table, words):
    done = fit(stellar, table, "--refit", *words)
    assert done.status == 2
    assert "--refit needs the folds of one experiment" in done.err
    assert not list(here.glob("m.*"))
