"""Networks that are fed more than flux and inverse variance."""

import sys
from types import ModuleType

import fitsio
import numpy as np
import pytest
import torch
import trainingtables
from torch import nn

from stellarcli import checkpoint, dataset, feeding, inputs, models, prediction
from stellarcli.errors import UsageError
from stellarcli.feeding import INPUTS, SPECTRUM
from stellarcli.prediction import Predictor, Run
from stellarcli.prepared import PreparedTable, PreparedWriter
from stellarcli.preprocess import Batch, Recipe
from stellarcli.settings import TrainConfig

EVERYTHING = tuple(INPUTS)


class Fed(nn.Module):
    """A network of everything: sums that tell what arrived."""

    inputs = EVERYTHING

    def __init__(self, pixels, labels, *, extra=()):
        super().__init__()
        self.extra = tuple(extra)
        self.trunk = nn.Linear(4, labels)

    def forward(self, flux, ivar, wavelength, images, extra):
        good = ivar > 0
        assert not torch.isnan(wavelength[good]).any()
        light = torch.where(good, flux * wavelength.nan_to_num() / 5000, 0).sum(1)
        sums = [
            light / good.sum(1).clamp_min(1),
            images.nan_to_num().mean((1, 2, 3)),
            extra.nan_to_num().sum(1) / 5000,
            images.isnan().float().mean((1, 2, 3)),
        ]
        mean = self.trunk(
            torch.stack([s.float() for s in sums], 1).to(self.trunk.weight.dtype)
        )
        return mean, torch.zeros_like(mean)


@pytest.fixture
def fed(monkeypatch):
    """The network under a name that commands know."""
    module = ModuleType("stellarcli.models.fed")
    module.Fed = Fed
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(models.MODELS, "fed", "fed:Fed")


def native(path, pixels, start, size=40, seed=0, images=False):
    """Write a prepared table whose spectra keep their own sampling."""
    random = np.random.default_rng(seed)
    teff = random.uniform(4500, 7000, size)
    names = [b"%d_%d" % (seed, n) for n in range(size)]
    columns = {"objid": names, "teff": teff, "gmag": random.uniform(10, 18, size)}
    columns["flag"] = np.zeros(size, "i4")
    kinds = [("objid", "S9"), ("teff", "f8"), ("gmag", "f4"), ("flag", "i4")]
    rows = np.empty(size, dtype=kinds)
    for name, values in columns.items():
        rows[name] = values
    rows["gmag"][:3] = feeding.MISSING
    flux = 1 + random.normal(0, 0.1, (size, pixels)) + (teff[:, None] - 6000) / 5000
    wavelength = np.tile(np.linspace(start, start + 500, pixels), (size, 1))
    ivar = np.full(flux.shape, 100.0, "f4")
    wavelength[: size // 2, -4:], ivar[: size // 2, -4:] = np.nan, 0
    mask = np.where(ivar > 0, 0, 1).astype("u1")
    segments = (((0, pixels),),)
    batch = Batch(wavelength, flux.astype("f4"), ivar, mask, np.zeros(size), segments)
    recipe = Recipe.from_steps("own", ["median"])
    with PreparedWriter(str(path), recipe) as writer:
        writer.append(rows, batch)
    if images:
        sky = np.full((size, *feeding.IMAGE_SHAPE), np.nan, "f4")
        sky[1::2] = teff[1::2, None, None, None] / 1000
        with fitsio.FITS(str(path), "rw") as file:
            file.write(sky, extname="IMAGES")
    return str(path)


@pytest.fixture
def tables(tmp_path):
    return [
        native(tmp_path / "blue.fits", 40, 4000.0, seed=1, images=True),
        native(tmp_path / "red.fits", 60, 15000.0, seed=2, images=True),
    ]


def config(**changes):
    return TrainConfig.resolve({"target": "teff", "model": "fed"}, changes)


def test_tables_of_different_grids_are_fed_together(tables):
    settings = config(network={"extra": ["gmag", "nothing"]})
    data = dataset.load(tables, settings, inputs=EVERYTHING)
    index = np.array([60, 3, 0, 79])  # red, blue, blue, red
    feed = data.feed(index)
    assert list(feed) == list(INPUTS)
    assert {n: a.dtype.str[1:] for n, a in feed.items()} == {
        name: INPUTS[name].dtype for name in INPUTS
    }
    assert feed["flux"].shape == (4, 60)
    assert data.pixels == 60
    blue, red = map(PreparedTable, tables)
    np.testing.assert_array_equal(feed["flux"][0], blue_or(red, 20)["flux"][0])
    np.testing.assert_array_equal(feed["flux"][1, :40], blue_or(blue, 3)["flux"][0])
    assert not feed["ivar"][1:3, 40:].any()
    assert np.isnan(feed["wavelength"][1:3, 40:]).all()
    assert np.nanmin(feed["wavelength"], axis=1).tolist() == [15e3, 4e3, 4e3, 15e3]
    assert np.isnan(feed["extra"][:, 1]).all()
    assert np.isnan(feed["extra"][:, 0]).tolist() == [False, False, True, False]
    assert np.isnan(feed["images"]).all((1, 2, 3)).tolist() == [
        True,
        False,
        True,
        False,
    ]
    flux, ivar = data.spectra(index)
    np.testing.assert_array_equal(flux, feed["flux"])
    np.testing.assert_array_equal(ivar, feed["ivar"])


def blue_or(table, row):
    return table.feed(np.array([row]), SPECTRUM)


def test_stretches_of_good_pixels_are_kept():
    ivar = np.array([[1, 1, 0, 1, 1, 0], [0, 1, 2, 3, 4, 5], [0] * 6], "f4")
    feed = {"ivar": ivar, "flux": np.ones((3, 6), "f4")}
    low, high = np.array([0.5, 0.2, 0.0]), np.array([1.0, 0.6, 0.5])
    cut = feeding.stretches(feed, low, high)
    assert cut["ivar"].tolist() == [[0, 0, 0, 1, 1, 0], [0, 0, 2, 3, 0, 0], [0] * 6]
    assert cut["ivar"].dtype == np.float32
    assert cut["flux"] is feed["flux"]
    assert feed["ivar"][0, 0] == 1  # the given one stays


def test_train_and_predict_a_network_of_everything(fed, stellar, tables, tmp_path):
    model = tmp_path / "fed.safetensors"
    options = ["-m", "fed", "--target", "teff", "--epochs", "3", "--set"]
    options += ["network.extra=[gmag]", "--set", "noise=1", "--set", "test=0.1"]
    options += ["--set", "precision=float32", "--seed", "3", "--device", "cpu"]
    stellar("train", *tables, "-o", str(model), *options)
    loaded = checkpoint.load(str(model))
    assert loaded.wavelength is None
    assert loaded.pixels == 60
    assert not loaded.part("novelty")
    catalogue = tmp_path / "out.fits"
    tasks = list(inputs.tasks(tables[:1], 64))
    summary = prediction.predict(
        tasks, str(catalogue), Run(model=str(model), workers=1)
    )
    rows = fitsio.read(str(catalogue), ext=1)
    assert summary.failed == 0
    assert np.isfinite(rows["teff"]).all()
    # the same as the network says of what the data set feeds it
    settings = config(network={"extra": ["gmag"]})
    data = dataset.load(tables[:1], settings, inputs=EVERYTHING)
    feed = feeding.tensors(data.feed(np.arange(40)))
    with torch.no_grad():
        mean = loaded.networks()[0](*feed.values())[0].numpy()
    expected = loaded.labels[0].decode(mean[:, 0])
    np.testing.assert_allclose(rows["teff"], expected, rtol=1e-5)


def test_dry_run_counts_a_network_of_everything(fed, stellar, tables):
    done = stellar(
        *("train", *tables, "-o", "x.safetensors", "-m", "fed", "--dry-run"),
        *("--target", "teff", "--set", "network.extra=[gmag]"),
    )
    assert "60 pixels" in done.err
    assert "million multiply-adds" in done.err


def test_images_that_are_not_there(tmp_path):
    path = native(tmp_path / "plain.fits", 40, 4000.0)
    with pytest.raises(UsageError, match="no IMAGES extension"):
        dataset.load([path], config(), inputs=EVERYTHING)


def test_networks_of_flux_and_ivar_need_a_common_grid(tmp_path):
    path = native(tmp_path / "plain.fits", 40, 4000.0)
    with pytest.raises(UsageError, match="a wavelength grid each"):
        dataset.load([path], config())


def test_a_common_grid_is_fed_to_every_spectrum(tmp_path):
    path = trainingtables.write(tmp_path / "a.fits")
    table = PreparedTable(path)
    feed = table.feed(slice(2, 5), ("wavelength", "flux"))
    assert list(feed) == ["wavelength", "flux"]
    np.testing.assert_array_equal(feed["wavelength"], [table.wavelength] * 3)


def test_an_input_that_does_not_exist_is_named(fed, monkeypatch):
    monkeypatch.setattr(Fed, "inputs", ("flux", "wavelenght"))
    with pytest.raises(UsageError, match=r"'wavelenght'.*wavelength"):
        models.inputs("fed")


@pytest.mark.parametrize("name", models.MODELS)
def test_networks_of_this_package_name_known_inputs(name):
    assert set(SPECTRUM) <= set(models.inputs(name)) <= set(INPUTS)


def test_the_default_model_is_fed_the_spectrum_alone():
    predictor = Predictor(checkpoint.load("default"))
    assert predictor.inputs == SPECTRUM
    assert list(predictor.made_up()) == list(SPECTRUM)
