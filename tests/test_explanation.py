"""`stellar explain`: networks whose importance is known, tables, figures, errors."""

import csv
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import surveyfiles
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_models import SMALL, build, settled
from torch import nn

from stellarcli import catalog, checkpoint, feeding, figures, labels, models
from stellarcli.errors import NoUsableSpectraError, UsageError
from stellarcli.explanation import (
    METHODS,
    activation,
    classes,
    drawing,
    importance,
    lines,
    method_class,
    occlusion,
    ranking,
)
from stellarcli.explanation.activation import ActivationMaps, GradCAM
from stellarcli.explanation.baseline import continuum_level
from stellarcli.explanation.gradient import IntegratedGradients
from stellarcli.explanation.importance import Group, Importance, Maps
from stellarcli.explanation.occlusion import Occlusion
from stellarcli.explanation.request import Request
from stellarcli.explanation.windows import Windows
from stellarcli.models.scanet import SCANet
from stellarcli.prediction import Predictor
from stellarcli.preparation import Chunk
from stellarcli.preprocess import RECIPES, Batch, Recipe, fold
from stellarcli.preprocess.wavelength import air_to_vacuum
from stellarcli.spectrum import PixelMask

PIXELS = 400
RECIPE = Recipe.from_steps(
    "toy",
    [
        {"resample": {"grids": [{"start": 4800.0, "step": 1.0, "pixels": PIXELS}]}},
        {"continuum": {"method": "smooth"}},
    ],
)
TEFF = replace(labels.get("teff"), center=12.5, scale=0.1)
FEH = replace(labels.get("feh"), center=-0.2, scale=0.5)


class Linear(nn.Module):
    """Labels that are weighted sums of the flux about 1."""

    def __init__(self, weights):
        super().__init__()
        self.weights = nn.Parameter(torch.tensor(weights, dtype=torch.float32))

    def forward(self, flux, ivar):
        mean = (flux - 1) @ self.weights.T
        return mean, torch.zeros_like(mean)


class Curved(nn.Module):
    """Two labels by way of a curved layer."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.second = nn.Linear(PIXELS, 32), nn.Linear(32, 2)

    def forward(self, flux, ivar):
        mean = self.second(torch.tanh(3 * self.first(flux - 1)))
        return mean, torch.zeros_like(mean)


class Toy(Predictor):
    """A predictor of networks that no architecture has."""

    def __init__(self, *networks, targets=(FEH,), recipe=RECIPE):
        self.given = networks
        wavelength = recipe.wavelength
        super().__init__(
            checkpoint.Model(
                name="toy",
                architecture="toy",
                config={},
                pixels=wavelength.size,
                labels=list(targets),
                recipe=recipe,
                wavelength=wavelength,
            )
        )

    def _load(self):
        return [network.eval() for network in self.given]


def batch_of(flux, recipe=RECIPE, ivar=None):
    flux = np.asarray(flux, dtype=np.float32)
    ivar = np.full_like(flux, 400.0) if ivar is None else ivar.astype(np.float32)
    mask = np.where(ivar > 0, 0, PixelMask.NO_IVAR).astype(np.uint8)
    segments = (((0, flux.shape[1]),),)
    return Batch(recipe.wavelength, flux, ivar, mask, np.zeros(len(flux)), segments)


def noise(rows=3, seed=0):
    return np.random.default_rng(seed).normal(1, 0.1, (rows, PIXELS))


def one_window(low, high):
    """Weights of 1 between two wavelengths of the toy grid, shape (1, pixel)."""
    grid = RECIPE.wavelength
    return ((grid >= low) & (grid < high)).astype(float)[None]


# -------------------------------------------------------------------------- windows


def test_windows_are_those_of_the_paper():
    windows = Windows()
    assert len(windows) == 817  # (8095 - 4000 - 15) / 5 + 1
    np.testing.assert_array_equal(windows.centre[:2], [4007.5, 4012.5])
    assert windows.high[-1] == 8095.0
    inside = Windows(10, 20, 4, 3).contains(np.arange(10.0, 20.0))
    assert [np.flatnonzero(row).tolist() for row in inside] == [
        [0, 1, 2, 3],
        [3, 4, 5, 6],
        [6, 7, 8, 9],
    ]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((4000, 8095, 0, 5), "--window and --step must be more than 0"),
        ((4000, 8095, 15, -1), "--window and --step"),
        ((4000, 4010, 15, 5), "no window of 15 Å fits between 4000 and 4010"),
        ((5000, 4000, 15, 5), "no window"),
        ((4000, 8095, 15, 1e-3), "larger --step"),
        ((math.nan, 8095, 15, 5), "no window"),
    ],
)
def test_windows_that_cannot_be(values, message):
    with pytest.raises(UsageError, match=message):
        Windows(*values)


# ------------------------------------------------------------------------- baseline


def test_the_continuum_is_one_where_the_recipe_divided_by_it():
    flux, ivar = noise(1), np.full((1, PIXELS), 400.0)
    ivar[0, :5], ivar[0, 50], ivar[0, -3:] = 0, 0, 0
    level = continuum_level(batch_of(flux, ivar=ivar), RECIPE)
    assert (level[0, 5:-3] == 1).all()
    np.testing.assert_array_equal(level[0, :5], flux[0, :5].astype("f4"))
    np.testing.assert_array_equal(level[0, -3:], flux[0, -3:].astype("f4"))


def test_the_continuum_of_other_recipes_is_the_upper_envelope():
    grid = RECIPE.wavelength
    flux = np.tile(0.2 + 0.001 * (grid - 4800), (2, 1))
    flux[:, 195:205] -= 0.15  # a line
    steps = [{"resample": RECIPE.parameters("resample")}, "min_max"]
    level = continuum_level(batch_of(flux), Recipe.from_steps("scaled", steps))
    slope = 0.2 + 0.001 * (grid - 4800)
    inner = slice(80, -80)  # a quantile of half a window is off at the ends
    assert np.abs(level[:, inner] - slope[inner] - 0.06).max() < 0.015
    steps.insert(1, "continuum")  # scaled after the division: 1 means nothing
    again = continuum_level(batch_of(flux), Recipe.from_steps("both", steps))
    np.testing.assert_array_equal(again, level)


# ------------------------------------------------------------------------ occlusion


def test_occlusion_of_a_linear_network_is_known():
    predictor = Toy(Linear(one_window(5000, 5010)))
    flux = noise()
    explainer = Occlusion(predictor, Request(windows=Windows(4700, 5300, 10, 5)))
    change = explainer(batch_of(flux))
    inside = explainer.inside & (one_window(5000, 5010) > 0)
    expected = 0.5 * (inside @ (1 - flux).T).T  # FEH.scale
    np.testing.assert_allclose(change[:, :, 0], expected, atol=2e-6)
    touched = (explainer.wavelength > 4995) & (explainer.wavelength < 5015)
    assert not change[:, ~touched].any()
    assert np.count_nonzero(change[0, touched]) == 3


def test_occlusion_is_in_the_label_s_own_unit_and_ensembles_are_averaged():
    first, second = one_window(5000, 5010), 3 * one_window(5000, 5010)
    predictor = Toy(Linear(first), Linear(second), targets=[TEFF])
    flux = noise(1)
    request = Request(windows=Windows(5000, 5010, 10, 5))
    change = Occlusion(predictor, request)(batch_of(flux))
    mean = 2 * (flux - 1)[0, 200:210].sum()
    kelvin = 2**12.5 - 2 ** (12.5 + 0.1 * mean)
    np.testing.assert_allclose(change, [[[kelvin]]], rtol=1e-4)


def test_the_whole_grid_is_there_and_zero_where_the_model_does_not_look():
    predictor = Toy(Linear(np.ones((1, PIXELS))))
    change = Occlusion(predictor, Request())(batch_of(noise()))
    assert change.shape == (3, 817, 1)
    low = Windows().low
    blind = (low + 15 <= 4800) | (low >= 5200)
    assert not change[:, blind].any()
    assert change[:, ~blind].all()
    with pytest.raises(UsageError, match="sees 4800 to 5199 Å and no window"):
        Occlusion(predictor, Request(windows=Windows(6000, 7000)))


def naive(predictor, batch, windows):
    """One forward call per window and spectrum."""
    (network,), model = predictor.networks, predictor.model
    found = np.zeros((len(batch), len(windows), len(model.labels)))
    ivar = torch.from_numpy(batch.ivar)

    def values(flux, row):
        with torch.no_grad():
            mean, _ = network(torch.from_numpy(flux)[None], ivar[row][None])
        return np.array(
            [y.decode(mean[0, n]) for n, y in enumerate(model.labels)], dtype=float
        )

    for row in range(len(batch)):
        whole = values(batch.flux[row], row)
        for n, (low, high) in enumerate(zip(windows.low, windows.high, strict=True)):
            flux = batch.flux[row].copy()
            flux[(batch.wavelength >= low) & (batch.wavelength < high)] = 1
            found[row, n] = values(flux, row) - whole
    return found


def test_occlusion_equals_one_call_per_window_and_spectrum():
    predictor = Toy(Curved(), targets=[TEFF, FEH])
    batch, windows = batch_of(noise()), Windows(4790, 5300, 12, 7)
    change = Occlusion(predictor, Request(windows=windows))(batch)
    expected = naive(predictor, batch, windows)
    size = np.abs(expected).max(axis=(0, 1))
    assert (size > [10, 1e-2]).all()
    assert (np.abs(change - expected).max(axis=(0, 1)) < 1e-4 * size).all()


class Coarse(nn.Module):
    """The sum of the flux about 1, and an offset, in bfloat16."""

    def __init__(self, offset):
        super().__init__()
        self.offset = nn.Parameter(torch.tensor(offset, dtype=torch.bfloat16))

    def forward(self, flux, ivar):
        mean = (flux - 1).sum(1, keepdim=True).bfloat16() + self.offset
        return mean, torch.zeros_like(mean)


@pytest.mark.parametrize(("offset", "replaced"), [(0.0, False), (100.0, True)])
def test_bfloat16_is_used_only_where_it_tells_small_changes(
    monkeypatch, offset, replaced
):
    """Near 100 bfloat16 has steps of 0.5; a window of 15 pixels changes 0.2."""
    coarse, exact = Toy(Coarse(offset)), Toy(Linear(np.ones((1, PIXELS))))
    monkeypatch.setattr(occlusion, "Predictor", lambda *options: exact)
    found = Occlusion(coarse, Request())
    assert found.predictor is (exact if replaced else coarse)


# ------------------------------------------------------------------------- gradient


def test_integrated_gradients_of_a_linear_network_are_known():
    weights = np.random.default_rng(5).normal(0, 1, (2, PIXELS))
    predictor = Toy(Linear(weights), targets=[FEH, FEH])
    flux = noise()
    found = IntegratedGradients(predictor, Request())(batch_of(flux))
    expected = 0.5 * weights.T * (flux - 1)[:, :, None]
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("nodes", [16, 64])
def test_integrated_gradients_are_complete(nodes):
    """Pixels add up to the label of the spectrum minus that of the continuum."""
    predictor = Toy(Curved(), Curved(1), targets=[TEFF, FEH])
    batch = batch_of(noise())
    found = IntegratedGradients(predictor, Request(nodes=nodes))(batch)

    def values(flux):
        mean = predictor.predict(flux, batch.ivar)[0]
        return np.stack(
            [y.decode(mean[:, n]) for n, y in enumerate(predictor.model.labels)], 1
        )

    difference = values(batch.flux) - values(np.ones_like(batch.flux))
    assert (np.abs(difference).max(axis=0) > [10, 1e-2]).all()
    np.testing.assert_allclose(found.sum(axis=1), difference, rtol=1e-3)


# ------------------------------------------------------------------------------ cam


class Convolution(nn.Module):
    """Two channels at stride 4, then weights of every position."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.fine = nn.Conv1d(1, 2, 4, 4)
        self.coarse = nn.Conv1d(2, 2, 10, 10)
        self.head = nn.Linear(2 * PIXELS // 40, 1)

    def stages(self):
        return {"fine": self.fine, "coarse": self.coarse}

    def forward(self, flux, ivar):
        mean = self.head(self.coarse(self.fine(flux[:, None])).flatten(1))
        return mean, torch.zeros_like(mean)


@pytest.mark.parametrize("kind", [ActivationMaps, GradCAM])
def test_an_activation_map_is_activation_times_gradient(kind):
    network = Convolution()
    predictor, flux = Toy(network), noise()
    method = kind(predictor, Request(stage="coarse"))
    found = method(batch_of(flux))[:, :, 0]
    with torch.no_grad():
        seen = network.coarse(network.fine(torch.from_numpy(flux).float()[:, None]))
        weights = network.head.weight.view(2, -1)
        if kind is GradCAM:
            weights = weights.mean(1, keepdim=True)
        at_positions = 0.5 * (seen * weights).sum(1).numpy()
    middles = 40 * np.arange(10) + 19.5
    expected = [np.interp(np.arange(PIXELS), middles, row) for row in at_positions]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_default_stage_is_the_last_that_resolves_lines():
    network = Convolution()
    assert ActivationMaps(Toy(network), Request()).stage == "fine"  # 4 and 40 Å
    method = ActivationMaps(Toy(network), Request(stage="coarse"))
    assert method.resolution == pytest.approx(40.0, abs=1)
    network.stages = lambda: {"coarse": network.coarse}
    assert ActivationMaps(Toy(network), Request()).stage == "coarse"


def test_a_position_of_a_folded_spectrum_reaches_over_all_of_its_rows():
    grid = {"start": 4800.0, "step": 1.0, "pixels": 1024}
    recipe = Recipe.from_steps("toy", [{"resample": {"grids": [grid]}}, "continuum"])
    predictor = Toy(settled(build("scanet"), "scanet"), recipe=recipe)
    assert ActivationMaps(predictor, Request()).stage == "S0"
    two_rows = ActivationMaps(predictor, Request(stage="S1"))
    assert 20 < two_rows.resolution <= 64


def test_a_stage_or_model_that_cannot_be_names_those_that_can():
    with pytest.raises(UsageError, match=r"unknown stage of toy 'fin'.*fine, coarse"):
        ActivationMaps(Toy(Convolution()), Request(stage="fin"))
    with pytest.raises(UsageError, match=r"toy is none; they work for .*resnet1d, "):
        ActivationMaps(Toy(Linear(np.ones((1, PIXELS)))), Request())


def test_images_are_unfolded_as_the_recipe_folds():
    network = SCANet(1024, 1, width=0.125)
    spectra = np.random.default_rng(0).normal(size=(2, 1024)).astype("f4")
    images = torch.from_numpy(fold(spectra, (32, 32)))
    np.testing.assert_array_equal(network.unfold(images).numpy(), spectra)
    # a bright cell of the 8x8 map lies where its 4x4 pixels come from
    cell = torch.zeros(1, 8, 8)
    cell[0, 2, 5] = 1
    pixels = activation.spread(network, cell, 1024)[0].numpy().reshape(32, 32)
    row, column = np.unravel_index(pixels.argmax(), pixels.shape)
    assert row // 4 == 2
    assert (column if row % 2 == 0 else 31 - column) // 4 == 5


# ------------------------------------------------------- every method, every network


@pytest.mark.parametrize("name", models.MODELS)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_explains_every_network_or_says_why_not(name, method):
    pixels = SMALL.get(name, (256, {}))[0]
    grid = {"start": 4800.0, "step": 1.0, "pixels": pixels}
    recipe = Recipe.from_steps("toy", [{"resample": {"grids": [grid]}}, "continuum"])
    if not getattr(models.network_class(name), "sees_spectrum", True):
        pytest.skip("sees images alone")
    predictor = Toy(settled(build(name), name), targets=[TEFF, FEH, FEH], recipe=recipe)
    flux = np.random.default_rng(0).normal(1, 0.1, (2, pixels))
    request = Request(windows=Windows(4800, 4860, 15, 15), nodes=2)
    kind = method_class(method)
    if "cam" in method and not hasattr(predictor.networks[0], "stages"):
        with pytest.raises(UsageError, match="they work for"):
            kind(predictor, request)
        return
    if method == "attention" and not hasattr(predictor.networks[0], "attention"):
        with pytest.raises(UsageError, match="it is there in spectrafm"):
            kind(predictor, request)
        return
    parts = hasattr(predictor.networks[0], "channel_parts")
    if method == "channel-attention" and not parts:
        with pytest.raises(UsageError, match="no channel attention"):
            kind(predictor, request)
        return
    explainer = kind(predictor, request)
    batch = batch_of(flux, recipe)
    images = np.random.default_rng(1).random((2, 3, 32, 32), dtype=np.float32)
    chunk = Chunk(np.zeros(2, dtype=[("n", "i4")]), batch, images=images)
    feed = chunk.feed(models.inputs(name))
    inputs = feeding.tensors(feed)
    inputs["flux"].requires_grad_()
    smooth = predictor.networks[0](*inputs.values())[0].requires_grad
    others = {key: feed[key] for key in feed if key not in feeding.SPECTRUM}
    if method == "gradient" and not smooth:
        with pytest.raises(UsageError, match="has no gradients"):
            explainer(batch, others)
        return
    values = explainer(batch, others)
    shown = 1 if method == "channel-attention" else 3  # the same for all labels
    assert values.shape == (2, len(explainer.wavelength), shown)
    assert np.isfinite(values).all()
    # steps may be wider than what a window moves
    assert values.any() or not smooth


def test_an_unknown_method_names_the_nearest():
    with pytest.raises(UsageError, match="Did you mean 'occlusion'"):
        method_class("oclusion")


def test_a_model_without_gradients_says_what_to_do():
    network = Linear(np.ones((1, PIXELS)))
    network.forward = lambda flux, ivar: (flux[:, :1].detach(), flux[:, :1].detach())
    with pytest.raises(UsageError, match="--method occlusion"):
        IntegratedGradients(Toy(network), Request())(batch_of(noise()))


# -------------------------------------------------------------------------- classes


def catalogue_rows(values, error, name="teff"):
    columns = catalog.columns([labels.get(name)])
    return catalog.rows(
        columns,
        {
            "objid": np.array([str(n) for n in range(len(values))]),
            "snr": np.arange(len(values)),
            name: values,
            f"{name}_err": error,
        },
    )


def test_scores_are_probabilities_of_classes():
    found = classes.scores(catalogue_rows([6000.0, 6650.0, 40000.0], [100.0, 350, 1]))
    np.testing.assert_allclose(found.sum(axis=1), 1)
    np.testing.assert_allclose(found[0], [0, 0, 0, 0.5, 0.5, 0, 0], atol=1e-6)
    half = 0.5 * math.erf(650 / 350 / math.sqrt(2))  # from 6650 K to either limit
    np.testing.assert_allclose(found[1, 3], 2 * half, rtol=1e-6)
    assert classes.names(found).tolist()[1:] == ["F", "O"]


def test_scores_of_spectral_types_count_from_a0():
    rows = catalogue_rows([0.0, 0.5, 2.95, 3.9, -2.0], [0.01] * 5, "sptype_num")
    found = classes.scores(rows)
    assert classes.names(found).tolist() == ["A", "A", "K", "K", "O"]
    np.testing.assert_allclose(found[2, 4:6], 0.5, atol=1e-4)  # between G9 and K0
    assert classes.scores(catalogue_rows([0.0], [1.0], "feh")) is None


# ---------------------------------------------------------------------------- lines


def test_the_list_holds_vacuum_wavelengths_and_the_lines_that_matter():
    found = lines.load()
    names = {line.name for line in found}
    expected = "Hα Hβ Hγ Hδ,Ca II K,Ca II H,Ca I 4227,G band,Mg b,Na D,Fe I 5270"
    expected += ",TiO 7053,CaH 6975,Ca II triplet,K I 7699,DIB 5780,telluric O2 A"
    for name in expected.replace(" H", ",H").replace("II,H", "II H").split(","):
        assert name in names, name
    assert (np.diff([line.wavelength for line in found]) >= 0).all()
    assert all(line.source and line.width > 0 for line in found)
    assert {c for line in found for c in line.classes} == set(classes.CLASSES)
    rows = Path(lines.__file__).parent.parent / "data" / "lines.csv"
    text = [r for r in rows.read_text().splitlines() if not r.startswith("#")]
    for row in csv.DictReader(text):
        vacuum = air_to_vacuum(float(row["air"]))
        assert float(row["wavelength"]) == pytest.approx(vacuum, abs=6e-4), row["name"]


def test_the_list_agrees_with_linemake():
    import fitsio

    path = Path(__file__).parents[2] / "shared/data/lines/atomic.fits"
    if not path.exists():
        path = Path("/work/shared/data/lines/atomic.fits")
    if not path.exists():
        pytest.skip("the line lists of shared/data are not here")
    atomic = fitsio.read(str(path), columns=["wavelength", "element", "ion"])
    checked = 0
    for line in lines.load():
        element, ion = (*line.name.split(), "")[:2]
        if element not in ("Ca", "Fe", "Ti", "Cr", "Mn", "Ba", "Sr", "Al", "K"):
            continue
        same = (atomic["element"] == element) & (
            atomic["ion"] == {"I": 0, "II": 1}[ion]
        )
        vacuum = air_to_vacuum(atomic["wavelength"][same])
        assert np.abs(vacuum - line.wavelength).min() < 0.05, line.name
        checked += 1
    assert checked > 70


@pytest.mark.parametrize(
    ("low", "high", "kinds", "first"),
    [
        (4855, 4870, "FG", "Hβ"),
        (4335, 4350, "FG", "Hγ"),
        (5170, 5185, "FG", "Mg b"),
        (5265, 5280, "FG", "Fe I 5270"),
        (5885, 5900, "FG", "Na D"),
        (4295, 4305, "G", "G band"),
        (4225, 4235, "K", "Ca I 4227"),
        (3928, 3943, "FG", "Ca II K"),
        (7090, 7105, "M", "TiO 7053"),
    ],
)
def test_windows_are_named(low, high, kinds, first):
    found = lines.between(low, high, kinds)
    assert found[0].name == first
    assert len({line.name for line in found}) == len(found)


def test_features_of_other_classes_are_not_named():
    names = [line.name for line in lines.between(7090, 7105, "FG")]
    assert not names
    assert "TiO 4954" not in [line.name for line in lines.between(4960, 4975, "A")]


# ---------------------------------------------------------------- averages, ranking


def maps_of(values, teff=6500.0, flux=None):
    values = np.asarray(values, dtype=np.float32)
    rows = catalogue_rows(np.full(len(values), teff), np.full(len(values), 50.0))
    flux = noise(len(values)) if flux is None else flux
    return Maps(rows, flux.astype("f4"), values)


def test_averages_are_those_of_all_spectra_at_once():
    random = np.random.default_rng(3)
    values = random.normal(0, 1, (20, 7, 2))
    flux = noise(20)
    flux[0, :10], flux[:, 30] = np.nan, np.nan
    group = Group()
    for cut in (slice(0, 1), slice(1, 12), slice(12, 20)):
        group.add(maps_of(values[cut], flux=flux[cut]), None)
    size = np.abs(values)
    np.testing.assert_allclose(group.mean, size.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(group.signed, values.mean(axis=0), atol=1e-6)
    error = size.std(axis=0, ddof=1) / math.sqrt(20)
    np.testing.assert_allclose(group.error, error, rtol=1e-4)
    assert np.isnan(group.flux[30])
    np.testing.assert_allclose(group.flux[:10], flux[1:, :10].mean(axis=0), rtol=1e-5)
    alone = Group()
    alone.add(maps_of(values[:1]), None)
    assert np.isnan(alone.error).all()


def found_of(values, windows, method="occlusion", wavelength=None):
    """An `Importance` of values (spectrum, window, label) of F stars."""
    predictor = Toy(Linear(np.ones((1, PIXELS))))
    found = Importance(
        Request(method=method, windows=windows),
        predictor.model,
        [FEH],
        windows.centre if wavelength is None else wavelength,
        "change",
    )
    found.add(maps_of(values))
    return found


def test_peaks_are_ranked_and_their_wings_are_not():
    windows = Windows(4800, 5200, 15, 5)
    values = np.zeros((1, len(windows), 1))
    at = {4855.0: 9.0, 4850.0: 8.0, 4860.0: 7.0, 4865.0: 6.0, 5170.0: -5.0, 5000.0: 1}
    for low, value in at.items():
        values[0, np.searchsorted(windows.low, low), 0] = value
    found = found_of(values, windows)
    top = ranking.top(found, found.whole, 0, 10)
    assert [(w.low, w.importance, w.signed) for w in top] == [
        (4855.0, 9.0, 9.0),
        (5170.0, 5.0, -5.0),
        (5000.0, 1.0, 1.0),
    ]
    assert top[0].lines[0] == "Hβ"
    assert top[1].lines[0] == "Mg b"
    assert len(ranking.top(found, found.whole, 0, 2)) == 2
    values[:] = 0
    values[0, 4:9] = 2.0  # five equal windows: the first, and one that it doesn't reach
    found = found_of(values, windows)
    assert [w.low for w in ranking.top(found, found.whole, 0, 9)] == [4820.0, 4835.0]
    assert top[0].to_json()["wavelength"] == 4862.5


def test_values_of_pixels_are_averaged_in_windows():
    values = np.zeros((1, PIXELS, 1))
    values[0, 55:70, 0] = np.arange(15)  # 4855 to 4870 Å
    windows = Windows(4800, 5200, 15, 5)
    found = found_of(values, windows, "gradient", RECIPE.wavelength)
    top = ranking.top(found, found.whole, 0, 3)
    assert top[0].low == 4855.0
    assert top[0].importance == pytest.approx(7.0)


# --------------------------------------------------------------------------- figures


@given(
    st.lists(st.floats(0, 100), max_size=9).map(sorted),
    st.floats(0.1, 10),
)
def test_names_keep_apart_and_between_the_ends(places, room):
    moved = drawing.apart(places, room, 0, 100)
    assert (np.diff(moved) >= room * (1 - 1e-9) - 1e-9).all()
    if len(places):
        assert moved[0] >= -1e-9
        assert moved[-1] <= 100 + 1e-9
    if (np.diff(places) >= room).all():
        np.testing.assert_allclose(moved, places, atol=1e-9)


@pytest.fixture
def found():
    """Importance of every window, with peaks at many lines, in F and G stars."""
    windows = Windows(4800, 5200, 15, 5)
    random = np.random.default_rng(1)
    found = found_of(random.uniform(0.5, 1, (9, len(windows), 1)), windows)
    found.add(maps_of(random.uniform(0, 1, (5, len(windows), 1)), teff=5600.0))
    return found


@pytest.mark.parametrize("ending", figures.ENDINGS)
def test_figures_are_drawn(found, tmp_path, ending):
    path = tmp_path / f"figure{ending}"
    drawing.draw(found, str(path), "classes")
    assert path.stat().st_size > 8000
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_names_in_a_figure_do_not_overlap(found, tmp_path):
    with figures.canvas(str(tmp_path / "one.png"), height=2) as figure:
        axes = figure.subplots()
        drawing._draw(axes, found, drawing.Panel(found.whole, 0, "all"))
        figure.canvas.draw()
        boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) > 6
    boxes.sort(key=lambda box: box.x0)
    for left, right in pairwise(boxes):
        assert left.x1 <= right.x0
    assert boxes[-1].x1 <= axes.bbox.x1 + 1
    assert max(box.y1 for box in boxes) <= axes.bbox.y1


def test_examples_are_the_best_of_each_class(tmp_path):
    best = drawing.Examples(2)
    windows = Windows(4800, 5200, 15, 5)
    values = np.ones((4, len(windows), 1))
    for teff in (5600.0, 6500.0):
        maps = maps_of(values, teff)
        maps.rows["snr"] = [30, np.nan, 90, 50]
        best.keep(maps.take(np.arange(2)))
        best.keep(maps.take(np.arange(2, 4)))
    assert {name: maps.rows["snr"].tolist() for name, maps in best.best.items()} == {
        "G": [90, 50],
        "F": [90, 50],
    }
    found = found_of(values, windows)
    found.add(maps_of(values, 5600.0))
    path = tmp_path / "examples.png"
    drawing.draw(found, str(path), "examples", best)
    assert path.stat().st_size > 20000
    many = drawing.Examples(99)
    many.best = {name: maps_of(np.ones((64, 78, 1))) for name in "FG"}
    with pytest.raises(UsageError, match=r"128 panels are too many"):
        drawing.draw(found, str(path), "examples", many)


def test_panels_by_name():
    drawing.check_panels(None)
    drawing.check_panels("examples")
    with pytest.raises(UsageError, match="Did you mean 'classes'"):
        drawing.check_panels("class")


def test_panels_need_classes_unless_none_are_asked_for(tmp_path):
    windows = Windows(4800, 5200, 15, 5)
    found = found_of(np.ones((2, len(windows), 1)), windows, "cam")
    found.groups = {"all": Group()}
    maps = maps_of(np.ones((2, len(windows), 1)))
    found.whole.add(maps, None)
    path = tmp_path / "f.png"
    with pytest.raises(UsageError, match="--panels labels"):
        drawing.draw(found, str(path), "classes")
    drawing.draw(found, str(path))
    assert path.exists()


# ----------------------------------------------------------------------- the command


def explain(stellar, model, stars, *more, output="o.fits"):
    return stellar(
        *("explain", *stars, "-o", output, "-m", model, "--keep-flagged", *more)
    )


def test_the_table_says_what_it_holds(stellar, stars, model):
    done = explain(stellar, model, stars, "--figure", "f.png", "--log", "o.log")
    assert done.status == 0, done.err
    table = catalog.read("o.fits")
    names = ["wavelength"]
    names += [f"{n}{end}" for n in ("teff", "logg", "feh") for end in ENDS]
    assert list(table.rows.dtype.names) == names
    np.testing.assert_array_equal(table.rows["wavelength"], Windows().centre)
    assert table.units["wavelength"] == "Angstrom"
    assert table.units["teff"] == table.units["teff_err"] == "K"
    outside = (Windows().high <= 4910) | (Windows().low > 5364)
    assert not table.rows["teff"][outside].any()
    assert (table.rows["teff"][~outside] > 0).mean() > 0.5
    assert table.header["METHOD"] == "occlusion"
    assert table.header["NSPECTRA"] == 5
    assert table.header["WINDOW"] == 15
    assert table.header["MODEL"] == "tiny"
    assert table.header["COMMAND"].startswith("stellar explain star-0.fits")
    assert Path("f.png").stat().st_size > 20000
    out = done.out.decode()
    assert "Teff (K): mean absolute change when a window is replaced" in out
    assert "5 spectra in o.fits" in done.err


ENDS = ("", "_err", "_signed")


def test_what_is_written_is_what_is_computed(stellar, stars, model):
    import fitsio

    done = explain(stellar, model, stars, "--each")
    assert done.status == 0
    with fitsio.FITS("o.fits") as file:
        table, spectrum, by_class, single = (hdu.read() for hdu in file[1:])
    maps = single["teff_map"]
    assert maps.shape == (5, 817)
    np.testing.assert_allclose(table["teff"], np.abs(maps).mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(table["teff_signed"], maps.mean(axis=0), atol=1e-3)
    predicted = stellar("predict", *stars, "-o", "p.fits", "-m", model)
    assert predicted.status == 0
    catalogue = catalog.read("p.fits").rows
    np.testing.assert_array_equal(single["teff"], catalogue["teff"])
    assert single["objid"].tolist() == catalogue["objid"].tolist()
    scores = classes.scores(catalogue)
    own = classes.names(scores)
    assert by_class["class"].tolist() == sorted(set(own), key=classes.CLASSES.index)
    for row in by_class:
        member = own == row["class"]
        assert row["spectra"] == member.sum()
        mean = np.abs(maps[member]).mean(axis=0)
        np.testing.assert_allclose(row["teff"], mean, rtol=1e-5)
        expected = scores[member].mean(axis=0)
        found = [row[f"score_{name}"] for name in classes.CLASSES]
        np.testing.assert_allclose(found, expected, atol=1e-6)
    assert spectrum["wavelength"].size == spectrum["flux"].size == 384


def test_the_result_does_not_depend_on_workers_or_on_where_it_goes(
    stellar, stars, model
):
    few = ("--start", "5000", "--stop", "5100", "--quiet")
    piped = explain(stellar, model, stars, *few, output="-")
    assert piped.status == 0, piped.err
    assert not piped.err
    Path("piped.fits").write_bytes(piped.out)
    assert explain(stellar, model, stars, *few, "--workers", "2").status == 0
    one, two = catalog.read("piped.fits"), catalog.read("o.fits")
    assert one.rows.tobytes() == two.rows.tobytes()
    assert one.rows["teff"].any()


@pytest.mark.parametrize("method", [m for m in METHODS if "attention" not in m])
def test_methods_of_the_command(stellar, stars, model, method):
    done = explain(
        *(stellar, model, stars, "--method", method, "--target", "feh"),
        *("--figure", "f.pdf", "--json", "--top", "3", "--panels", "examples"),
    )
    assert done.status == 0, done.err
    assert list(done.json["labels"]) == ["feh"]
    top = done.json["labels"]["feh"]
    assert 1 <= len(top) <= 3
    assert top[0]["importance"] >= top[-1]["importance"] > 0
    assert set(top[0]) == {
        *("wavelength", "low", "high", "importance", "error", "signed", "lines")
    }
    assert done.json["spectra"] == 5
    table = catalog.read("o.fits")
    assert table.header["METHOD"] == method
    assert list(table.rows.dtype.names) == [
        *("wavelength", "feh", "feh_err", "feh_signed")
    ]
    assert Path("f.pdf").stat().st_size > 10000


def test_prepared_tables_and_lists_give_the_same(stellar, stars, model):
    Path("list.txt").write_text("\n".join(stars))
    assert explain(stellar, model, ["@list.txt"], output="a.fits").status == 0
    done = stellar("preprocess", *stars, "-o", "p.fits", "--recipe", model)
    assert done.status == 0, done.err
    assert explain(stellar, model, ["p.fits"], output="b.fits").status == 0
    first, second = (catalog.read(name).rows for name in ("a.fits", "b.fits"))
    np.testing.assert_allclose(first["teff"], second["teff"], rtol=1e-5)


def test_rows_not_to_be_trusted_are_left_out_and_counted(stellar, stars, changed_model):
    """The third star alone lies outside the trained range."""
    done = stellar("predict", *stars, "-o", "p.fits", "-m", changed_model())
    assert done.status == 0
    assert_flags = catalog.read("p.fits").rows["flag"] & int(catalog.BAD)
    model = changed_model("narrow")
    surveyfiles.lamost_image("galaxy.fits", CLASS="GALAXY")
    done = stellar("explain", *stars, "galaxy.fits", "-o", "o.fits", "-m", model)
    good = int((assert_flags == 0).sum())
    if good:
        assert done.status == 0, done.err
        header = catalog.read("o.fits").header
        assert (header["NSPECTRA"], header["NSKIPPED"]) == (good, 6 - good)
        assert f"{6 - good} left out" in done.err
        assert "NOT_A_STAR" in done.err
    done = stellar("explain", "galaxy.fits", "-o", "n.fits", "-m", model)
    assert done.status == 64
    assert "1 NOT_A_STAR" in done.err
    assert "--keep-flagged" in done.err
    assert not Path("n.fits").exists()


def test_unreadable_files_are_reported(stellar, stars, model):
    Path("broken.fits").write_text("no")
    done = explain(stellar, model, [*stars, "broken.fits"])
    assert done.status == 3
    assert "broken.fits: " in done.err
    assert catalog.read("o.fits").header["NFAILED"] == 1
    done = explain(stellar, model, ["broken.fits"], output="n.fits")
    assert done.status == 64
    assert "1 UNREADABLE. broken.fits: " in done.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--method", "magic"], "unknown method 'magic'"),
        (["--method", "cam", "--stage", "stage9"], "Valid: stage1, stage2"),
        (["--target", "mass"], "unknown label"),
        (["--window", "0"], "--window"),
        (["--start", "8000"], "no window lies there"),
        (["--nodes", "0", "--method", "gradient"], "--nodes"),
        (["--panels", "stars"], "unknown kind of panels"),
        (["--figure", "f.gif"], r"*.png"),
        (["--figure", "none/f.png"], "no directory"),
        (["--top", "-1"], "--top"),
        (["--device", "gpu"], "unknown device"),
        (["--workers", "0"], "--workers"),
        (["--json", "-o", "-"], "standard output"),
        (["-m", "nothing"], "unknown model"),
        (["-o", "o.txt"], "format"),
    ],
)
def test_usage_errors_leave_nothing_behind(stellar, stars, model, words, message):
    done = explain(stellar, model, stars, *words)
    assert done.status == 2
    assert message in done.err
    assert sorted(p.name for p in Path().iterdir()) == sorted(stars)


def test_outputs_are_not_replaced_by_accident(stellar, stars, model):
    few = ("--start", "5000", "--stop", "5030")
    Path("f.png").write_text("mine")
    done = explain(stellar, model, stars, *few, "--figure", "f.png")
    assert done.status == 2
    assert Path("f.png").read_text() == "mine"
    assert explain(stellar, model, stars, *few).status == 0
    assert explain(stellar, model, stars, *few).status == 2
    assert explain(stellar, model, stars, *few, output="!o.fits").status == 0
    assert explain(stellar, model, stars, *few, "--overwrite").status == 0


def test_recipes_without_a_grid_are_refused(stellar, stars, model, monkeypatch):
    loaded = replace(checkpoint.load(model), recipe=RECIPES["spectrafm"])
    monkeypatch.setattr(checkpoint, "load", lambda name: loaded)
    with pytest.raises(UsageError, match="--method attention"):
        importance.Explainer(Request(model=model))


def test_nothing_usable_is_an_error(model):
    with pytest.raises(NoUsableSpectraError, match="none of 0 spectra"):
        importance.explain([], Request(model=model, workers=1))
