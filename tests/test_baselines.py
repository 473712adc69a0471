"""Models computed in one go: against formulas, scikit-learn, by the program."""

import sys

import numpy as np
import pytest
import torch
import trainingtables

from stellarcli import checkpoint, models, sptype
from stellarcli.catalog import read
from stellarcli.errors import UsageError

ONE_GO = [name for name in models.MODELS if models.in_one_go(name)]
LEARNERS = ["adaboost", "kmeans"]


def spectra(rows, pixels=24, seed=0):
    rng = np.random.default_rng(seed)
    flux = rng.normal(1, 0.1, (rows, pixels)).astype("f4")
    flux[:, 3] += rng.uniform(-1, 1, rows).astype("f4")
    return flux


def truth_of(flux):
    """Two labels that follow the spectra."""
    return np.stack([flux[:, 3] - 1, np.sin(4 * flux[:, 3])], axis=1)


def fitted(name, flux, truth, seed=0, **options):
    network = models.build(
        name, pixels=flux.shape[1], labels=truth.shape[1], **options
    ).eval()
    network.fit(flux, np.ones_like(flux), truth, seed)
    return network


def predict(network, flux):
    mean, log_variance = network(torch.from_numpy(flux), torch.ones(flux.shape))
    return mean.numpy(), np.exp(log_variance.numpy())


# ----------------------------------------------------------------------------- formulas


@pytest.mark.parametrize("bandwidth", [1.0, 0.5])
def test_kernel_regression_is_the_formula(bandwidth):
    flux, other = spectra(40), spectra(7, seed=1)
    truth = truth_of(flux)
    mean, variance = predict(fitted("kernel", flux, truth, bandwidth=bandwidth), other)
    for row, spectrum in enumerate(other.astype(float)):
        squared = ((flux.astype(float) - spectrum) ** 2).sum(1)
        weight = np.exp(-squared / (2 * squared.min() * bandwidth**2))
        expected = (weight[:, None] * truth).sum(0) / weight.sum()
        spread = (weight[:, None] * (truth - expected) ** 2).sum(0) / weight.sum()
        np.testing.assert_allclose(mean[row], expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(variance[row], spread, rtol=1e-3)


def test_kernel_regression_leaves_out_missing_labels_and_returns_what_it_knows():
    flux = spectra(40)
    truth = truth_of(flux)
    some = truth.copy()
    some[::2, 1] = np.nan
    mean, _ = predict(fitted("kernel", flux, some), spectra(5, seed=1))
    half, _ = predict(fitted("kernel", flux[1::2], truth[1::2]), spectra(5, seed=1))
    whole, _ = predict(fitted("kernel", flux, truth), spectra(5, seed=1))
    np.testing.assert_allclose(mean[:, 0], whole[:, 0], rtol=1e-5)
    # a spectrum that was trained on has distance 0 and is alone with its weight
    known, _ = predict(fitted("kernel", flux, truth), flux)
    np.testing.assert_allclose(known, truth, atol=1e-4)
    assert np.isfinite(half).all()


def test_kmeans_is_that_of_scikit_learn():
    cluster = pytest.importorskip("sklearn.cluster")
    flux, other = spectra(60), spectra(9, seed=1)
    truth = truth_of(flux)
    mean, variance = predict(fitted("kmeans", flux, truth, seed=3, clusters=5), other)
    expected = cluster.KMeans(5, random_state=3).fit(flux - 1)
    numbers = expected.predict(other - 1)
    for row, number in enumerate(numbers):
        inside = truth[expected.labels_ == number]
        np.testing.assert_allclose(mean[row], inside.mean(0), rtol=1e-4, atol=1e-5)
        off = ((inside - inside.mean(0)) ** 2).sum(0)
        np.testing.assert_allclose(
            variance[row], (off + 1) / (len(inside) + 1), rtol=1e-3
        )
    assert len(set(numbers)) > 2


@pytest.mark.parametrize("share", [1.0, 0.4])
def test_adaboost_is_that_of_scikit_learn(share):
    ensemble = pytest.importorskip("sklearn.ensemble")
    from sklearn.tree import DecisionTreeRegressor

    flux, other = spectra(80), spectra(30, seed=1)
    truth = truth_of(flux)
    options = {"trees": 12, "depth": 3, "share": share}
    mean, variance = predict(fitted("adaboost", flux, truth, seed=7, **options), other)
    for label in range(2):
        tree = DecisionTreeRegressor(max_depth=3, max_features=share)
        expected = ensemble.AdaBoostRegressor(tree, n_estimators=12, random_state=7)
        expected.fit(flux, truth[:, label].astype("f4"))
        np.testing.assert_allclose(mean[:, label], expected.predict(other), atol=1e-6)
        residual = expected.predict(flux) - truth[:, label]
        trees = np.stack([one.predict(other) for one in expected.estimators_])
        weight = expected.estimator_weights_[: len(trees), None]
        off = (trees - expected.predict(other)) ** 2
        spread = (weight * off).sum(0) / weight.sum()
        np.testing.assert_allclose(
            variance[:, label], spread + (residual**2).mean(), rtol=1e-3
        )


def test_labels_may_need_different_numbers_of_trees_and_be_missing():
    pytest.importorskip("sklearn")
    flux = spectra(60)
    truth = np.stack([np.zeros(60), truth_of(flux)[:, 1]], axis=1)  # one tree is enough
    truth[:20, 0] = np.nan
    network = fitted("adaboost", flux, truth, trees=6, depth=2)
    assert (network.weight > 0).sum(1).tolist() == [1, 6]
    assert not predict(network, flux)[0][:, 0].any()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("kernel", {"bandwidth": 0.0}),
        ("kmeans", {"clusters": 0}),
        ("adaboost", {"depth": 0}),
        ("adaboost", {"share": 1.5}),
    ],
)
def test_options_that_cannot_be_are_refused(name, options):
    with pytest.raises(UsageError, match=next(iter(options))):
        models.build(name, pixels=8, labels=1, **options)


# -------------------------------------------------------------------------- the program


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Spectra whose type follows their first line; some types can't be read."""
    path = tmp_path_factory.mktemp("tables") / "table.fits"
    teff = np.random.default_rng(0).uniform(4500, 7000, 240)  # as `write` draws them
    types = sptype.names((7500 - teff) / 1000)
    types[:6] = ["Non", "", "DA5", "Non", "Am", "F5/F7V"]
    return trainingtables.write(path, 240, subclass=types)


def fit(stellar, table, name, *more):
    words = ("--target", "sptype", "--set", "test=0.2", "--set", "validation=0.3")
    return stellar("train", table, "-o", "m.safetensors", "-m", name, *words, *more)


@pytest.mark.parametrize("name", ONE_GO)
def test_train_save_and_predict(stellar, here, table, name, monkeypatch):
    if name in LEARNERS:
        pytest.importorskip("sklearn")
    done = fit(stellar, table, name)
    assert done.status == 0, done.err
    assert "4 of 239 spectral types can't be read: 'Non' (2)" in done.err
    model = checkpoint.load("m.safetensors")
    assert [label.name for label in model.labels] == ["sptype_num"]
    assert model.training["history"] == []
    assert model.training["test_metrics"]["sptype_num"]["mae"] < 0.45  # of 0.65
    monkeypatch.setitem(sys.modules, "sklearn", None)  # predicting needs none
    done = stellar("predict", table, "-o", "p.fits", "--model", "m.safetensors")
    assert done.status == 0, done.err
    found = read("p.fits").rows
    names = ["objid", "file", "ra", "dec", "snr", "sptype", "sptype_num"]
    assert list(found.dtype.names) == [*names, "sptype_num_err", "flag"]
    assert (sptype.names(found["sptype_num"]) == found["sptype"].astype(str)).all()
    assert (found["sptype_num_err"] > 0).all()
    assert np.isfinite(found["sptype_num"]).all()
    done = stellar("compare", "p.fits", table, "--target", "sptype", "--json")
    (values,) = done.json["labels"].values()
    assert (values["n"], values["no_reference"]) == (235, 5)
    assert values["mae"] < 0.4
    assert 0 < values["within_half_subtype"] < 1
    assert "table: 4 of 239 spectral types can't be read" in done.err


def test_an_ensemble_and_a_grid(stellar, here, table):
    pytest.importorskip("sklearn")
    done = fit(stellar, table, "kmeans", "--set", "members=2")
    assert done.status == 0, done.err
    assert checkpoint.load("m.safetensors").members == ["member0", "member1"]
    grid = ("--grid", "network.clusters=4,16", "--overwrite")
    assert fit(stellar, table, "kmeans", *grid).status == 0
    runs = read("m.runs.csv").rows
    assert runs["network.clusters"].tolist() == [4, 16]
    assert (runs["sptype_num_mae"] > 0).all()


def test_settings_of_the_descent_are_refused(stellar, here, table):
    done = fit(stellar, table, "kernel", "--epochs", "3", "--set", "noise=1")
    assert done.status == 2
    assert "kernel is computed in one go" in done.err.replace("\n", " ")
    assert "epochs, noise" in " ".join(done.err.split())


def test_the_plan_says_what_it_takes(stellar, here, table):
    done = fit(stellar, table, "kernel", "--dry-run")
    assert done.status == 0
    assert "1 models, computed in one go" in done.err


@pytest.mark.parametrize("name", LEARNERS)
def test_missing_scikit_learn_is_a_sentence(stellar, here, table, name, monkeypatch):
    for module in [m for m in sys.modules if m.partition(".")[0] == "sklearn"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    done = fit(stellar, table, name)
    assert done.status == 2
    assert "'pip install scikit-learn'" in " ".join(done.err.split())


def test_a_table_without_types_names_the_columns(stellar, here, tmp_path):
    bare = trainingtables.write(tmp_path / "bare.fits", 40)
    done = fit(stellar, bare, "kernel")
    assert done.status == 2
    assert "unknown column" in done.err
    assert "'sptype'" in done.err


def test_the_same_label_twice_is_refused(stellar, here, table):
    done = fit(stellar, table, "kernel", "--target", "sptype,subclass")
    assert done.status == 2
    assert "each once" in done.err
