"""SPFusion and the networks beside it: sizes, ablations, stars without images."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from stellarcli import architectures, labels, models, settings
from stellarcli.errors import UsageError
from stellarcli.fitting import label_weights
from stellarcli.models import spfusion
from stellarcli.models.spfusion import Sum, TransformerBlock

PIXELS = 3584
SMALL = {"pixels": 256, "labels": 2, "image_size": 32}


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def whole(name="spfusion", **options):
    with torch.device("meta"):
        return models.build(name, pixels=PIXELS, labels=2, **options)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return models.build("spfusion", **SMALL)


@pytest.fixture
def stars():
    """Flux, ivar and images of eight stars."""
    generator = torch.Generator().manual_seed(1)
    flux = torch.rand(8, 256, generator=generator)
    images = torch.rand(8, 3, 32, 32, generator=generator)
    return flux, torch.ones_like(flux), images


# --- sizes ----------------------------------------------------------------------------


def test_every_stage_has_the_published_number_of_parameters():
    network = whole()
    photometric = network.trunk["photometric"]
    found = {
        "stem and block": count(photometric.stem) + count(photometric.block),
        "projection": count(photometric.project),
        "linear": count(photometric.linear),
        "spectral": count(network.trunk["spectral"]),
        "fusion": count(network.fusion),
        "transformer": count(network.transformer),
        "metaformer": count(network.metaformer),
        "head": count(network.head),
    }
    assert found == {
        "stem and block": 100_216,
        "projection": 27_776,
        "linear": 28_700,
        "spectral": 559_520,
        "fusion": 87_264,
        "transformer": 74_976,
        "metaformer": 38_128,
        "head": 22_818,
    }
    assert count(network) == 939_398
    assert count(whole("convnext1d")) == 566_978


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("racnet", 0.76),
        ("sscnn", 0.75),
        ("resnet10t", 4.95),
        ("convnextpico", 8.56),
        ("metaformer", 11.43),
    ],
)
def test_compared_networks_have_the_printed_size(name, millions):
    assert count(whole(name)) / 1e6 == pytest.approx(millions, abs=0.006)


def test_architectures_list_all_of_them():
    rows = architectures.table("spfusion", latency=False)
    sizes = {row["variant"]: row["parameters"] for row in rows}
    assert sizes["SPFusion"] == 939_398
    assert sizes["ConvNeXt 1D"] == 566_978
    names = {row["name"] for row in rows}
    assert names >= {"spfusion", "convnext1d", "racnet", "sscnn", "resnet10t"}
    macs = {row["variant"]: row["macs"] for row in rows}
    assert macs["SPFusion"] - macs["ConvNeXt 1D"] > 0.75 * macs["SPFusion"]


# --- ablations ------------------------------------------------------------------------

ABLATIONS = {
    "star": [True, False],
    "kernel": [3, 7, 11],
    "ratio": [2, 3, 4, 5],
    "heads": [1, 2, 4, 7],
    "metaformers": [1, 2, 3],
}


@pytest.mark.parametrize(
    ("option", "value"),
    [(option, value) for option, values in ABLATIONS.items() for value in values],
)
def test_every_choice_that_the_paper_ablates_is_an_option(option, value):
    size = count(whole(**{option: value}))
    default = models.options("spfusion")[option]
    assert (size == 939_398) == (value == default or option == "heads")


def test_without_the_star_operator_features_are_added(stars):
    network = models.build("spfusion", **SMALL, star=False).eval()
    assert isinstance(network.fusion, Sum)
    photometric, spectral = torch.rand(2, 3, 32, 1, 2)
    assert torch.equal(network.fusion(photometric, spectral), photometric + spectral)


def test_attention_is_a_softmax_with_one_added_to_its_denominator():
    block = TransformerBlock(6, heads=2, ratio=2, drop=0.0).eval()
    x = torch.randn(1, 6, 1, 4)
    normed = nn.functional.layer_norm(x[0, :, 0].T, (6,)).T  # weights are 1 and 0
    expected = torch.empty(6, 4)
    for head in range(2):
        part = normed[:, 2 * head : 2 * head + 2]
        weights = torch.exp(part @ part.T / 2**0.5)
        weights = weights / (1 + weights.sum(1, keepdim=True))
        expected[:, 2 * head : 2 * head + 2] = weights @ part
    torch.testing.assert_close(block._attend(x)[0, :, 0], expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel": 4}, "kernel must be odd, such as 3, 7, 11, not 4"),
        ({"heads": 3}, r"heads must divide the 28 positions \(1, 2, 4, 7, 14, 28\)"),
        ({"ratio": 0}, "ratio and metaformers must be 1 or more"),
        ({"image_size": 30}, "multiple of 4, not 30"),
        ({"hide_images": 1.0}, "hide_images must be from 0 to below 1"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        whole(**options)


def test_pixels_that_do_not_divide_name_the_recipe():
    with pytest.raises(UsageError, match=r"spfusion.*3584"):
        models.build("spfusion", pixels=3522, labels=2)


# --- stars without images -------------------------------------------------------------


def test_a_star_without_an_image_is_predicted_from_its_spectrum(network, stars):
    flux, ivar, images = stars
    network.eval()
    incomplete = images.clone()
    incomplete[0] = float("nan")
    incomplete[1] = 0
    incomplete[2, 1] = 0  # one band is missing
    mean, _ = network(flux, ivar, incomplete)
    assert torch.isfinite(mean).all()
    alone, _ = network(flux[:3], ivar[:3], torch.zeros_like(images[:3]))
    torch.testing.assert_close(mean[:3], alone)
    torch.testing.assert_close(mean[3:], network(flux, ivar, images)[0][3:])
    assert not torch.allclose(mean[:3], network(flux, ivar, images)[0][:3])


def test_training_hides_images_of_some_stars(stars):
    flux, ivar, images = stars
    options = {"drop_path": 0.0, **SMALL}
    network = models.build("spfusion", **options, hide_images=0.5).train()
    seen = []
    network.fusion.register_forward_hook(lambda _, x, y: seen.append(x[0]))
    torch.manual_seed(0)
    network(flux, ivar, images)
    empty = (seen[0] == 0).flatten(1).all(1)
    assert 0 < empty.sum() < len(flux)


def test_images_of_another_size_are_refused(network, stars):
    flux, ivar, images = stars
    with pytest.raises(ValueError, match="image_size"):
        network(flux, ivar, images[..., :16, :16])


@pytest.mark.parametrize("halved", [True, False])
def test_fusing_keeps_the_outputs(network, stars, halved, monkeypatch):
    monkeypatch.setattr(spfusion, "pays", lambda: halved)
    monkeypatch.setattr(spfusion, "STARS", 3)  # so that the last are fewer
    network.train()
    with torch.no_grad():
        for _ in range(5):
            network(*stars)
    network.eval()
    with torch.no_grad():
        before = network(*stars)[0]
        fused = copy.deepcopy(network).fuse()
        after = fused(*stars)[0]
    assert before.std(0).min() > 1e-3, "stars must matter"
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)
    assert (fused.trunk["photometric"].by_rows is not None) == halved
    assert not [m for m in fused.modules() if isinstance(m, nn.BatchNorm2d)]
    with torch.no_grad():
        assert torch.equal(fused.fuse()(*stars)[0], after)
    for module in fused.modules():
        module.at_once = None  # as where oneDNN's joint kernels are missing
    # gradients can be had from the usual convolutions
    torch.testing.assert_close(fused(*stars)[0], after, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="evaluation mode"):
        network.train().fuse()


def seen(network, images):
    with torch.no_grad():
        return network.eval().trunk["photometric"](images)


def test_features_of_images_stay_with_half_the_multiplications(
    network, stars, monkeypatch
):
    monkeypatch.setattr(spfusion, "pays", lambda: True)
    images = stars[2]
    before = seen(network, images)
    after = seen(copy.deepcopy(network).fuse(), images)
    assert (after - before).abs().max() < 1e-5 * before.abs().max()
    assert before.std(0).min() > 1e-3 * before.abs().max(), "stars must matter"
    assert torch.equal(seen(network.fuse(), images[:5]), after[:5])


def test_images_that_do_not_divide_into_tiles_are_convolved_as_usual(monkeypatch):
    monkeypatch.setattr(spfusion, "pays", lambda: True)
    network = models.build("spfusion", **SMALL | {"image_size": 20}).eval()
    images = torch.rand(2, 3, 20, 20)
    before = seen(network, images)
    assert network.fuse().trunk["photometric"].by_rows is None
    torch.testing.assert_close(seen(network, images), before, rtol=1e-5, atol=1e-6)


# --- loss -----------------------------------------------------------------------------


def test_the_preset_weighs_squared_errors_in_solar_masses_and_gyr():
    values = settings.preset("paper", "spfusion")
    config = settings.TrainConfig.resolve(values)
    fitted = [
        labels.get("mass").fitted(np.array([1.0, 1.4])),
        labels.get("age").fitted(np.array([2.0, 10.0])),
    ]
    weights = label_weights(config, fitted)
    off = np.array([0.1, 0.5])  # Msun, Gyr
    scales = np.array([label.scale for label in fitted])
    loss = (weights.numpy() * (off / scales) ** 2).sum()
    assert loss == pytest.approx(100 * 0.1**2 + 0.5**2)
    assert config.target == ("mass", "age")
    assert (config.optimizer, config.schedule) == ("adam", "restarts")
    assert models.options("spfusion")["drop_path"] == 0.3


def test_weights_in_units_are_for_squared_errors_of_linear_labels():
    for changed in ({"loss": "mae"}, {"target": ("teff",), "label_weights": (1.0,)}):
        values = settings.preset("paper", "spfusion") | changed
        with pytest.raises(UsageError, match="weigh_in_units"):
            settings.TrainConfig.resolve(values)
