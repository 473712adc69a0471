"""Every network keeps the contract of `stellarcli.models`; SCA-Net's own properties."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from stellarcli import checkpoint, labels, models, preprocess
from stellarcli.errors import UsageError
from stellarcli.models.mkresnet import Block
from stellarcli.models.scanet import VARIANTS, Attention, absorb_norm

# small ones of every architecture: pixels and options
SMALL = {
    "densenet": (256, {"width": 8, "growth": 4, "layers": (1, 1), "places": 4}),
    "rdn": (256, {"width": 8, "growth": 8, "places": 4, "hidden": (16, 8)}),
    "resnet": (256, {"widths": (8, 16), "blocks": 1, "places": 4}),
    "resnet1d": (256, {"widths": (8, 16), "blocks": (1, 1), "hidden": 16}),
    "resnetfit": (
        256,
        {"widths": (8, 16), "blocks": (1, 1), "hidden": 16, "degree": 3},
    ),
    "starnet": (256, {"hidden": (16, 8)}),
    "scanet": (1024, {"width": 0.125, "blocks": (1, 2, 2, 1)}),
    "spectrafm": (256, {"width": 16, "heads": 2, "rank": 4, "encoder": (16,)}),
    "convnext1d": (256, {"widths": (8, 16, 8), "blocks": 1, "drop_path": 0.0}),
    "spfusion": (256, {"image_size": 32, "drop_path": 0.0, "hide_images": 0.0}),
    "sscnn": (256, {"filters": (4, 8), "hidden": 16}),
    "racnet": (256, {"widths": (8, 16), "hidden": 16}),
    "resnet10t": (256, {"stem": (4, 8), "widths": (8, 16), "hidden": 8}),
    "convnextpico": (256, {"widths": (8, 16), "depths": (1, 1), "hidden": 8}),
    "metaformer": (256, {"widths": (8, 16), "depths": (1, 1), "hidden": 8}),
    "perceptron": (256, {"hidden": (16, 8)}),
    "mkresnet": (512, {"width": 0.125}),
    "adaboost": (256, {"trees": 4}),
    "kmeans": (256, {"clusters": 4}),
    "ridge": (256, {"components": 2}),
    "neighbours": (256, {"components": 2, "neighbours": 2}),
    "gp": (256, {"components": 2}),
}
TARGETS = {"teff": [4000.0, 6000.0], "logg": [1.0, 4.5], "feh": [-2.0, 0.5]}
ROWS = 4


def build(name, **options):
    torch.manual_seed(0)
    pixels, small = SMALL.get(name, (256, {}))
    return models.build(name, pixels=pixels, labels=3, **small | options)


def spectra(name, rows=ROWS):
    """Made-up spectra that differ in their lines, as the network wants them."""
    rng = np.random.default_rng(0)
    pixels = SMALL.get(name, (256, {}))[0]
    centres = rng.uniform(0, pixels, (rows, 8, 1))
    lines = np.exp(-(((np.arange(pixels) - centres) / 5) ** 2)).sum(1)
    flux = 1 - rng.uniform(0.1, 0.5, (rows, 1)) * lines
    ivar = np.full_like(flux, 2500.0)
    wavelength = np.tile(5000 * np.exp(2.3e-4 * np.arange(pixels)), (rows, 1))
    fed = {"wavelength": torch.from_numpy(wavelength), "extra": torch.zeros(rows, 0)}
    fed |= {"flux": torch.from_numpy(flux).float()}
    fed |= {"ivar": torch.from_numpy(ivar).float()}
    noise, star = rng.random((2, rows, 3, 32, 32))
    star = np.exp(-(((np.indices((32, 32)) - 16) / 2) ** 2).sum(0)) * star
    images = (noise * rng.uniform(0.01, 0.3, (rows, 3, 1, 1)) + star).clip(0, 1)
    fed |= {"images": torch.from_numpy(images).float()}
    return tuple(fed[wanted] for wanted in models.inputs(name))


def settled(network, name):
    """In evaluation mode, with what it takes from spectra beside gradients."""
    network.train()
    if models.in_one_go(name):
        flux, ivar = (array.numpy() for array in spectra(name, 16))
        network.fit(flux, ivar, flux[:, :3], seed=0)
    with torch.no_grad():
        for _ in range(20):
            network(*spectra(name, 16))
    return network.eval()


@pytest.fixture(params=models.MODELS)
def name(request):
    return request.param


@pytest.fixture(params=VARIANTS)
def variant(request):
    return request.param


# ------------------------------------------------------------------ every architecture


def test_outputs_have_a_row_per_spectrum_and_are_finite(name):
    outputs = settled(build(name), name)(*spectra(name))
    assert [tuple(output.shape) for output in outputs] == [(ROWS, 3)] * 2
    assert all(torch.isfinite(output).all() for output in outputs)


def untouched(network, name):
    """Parameters that no gradient reaches."""
    mean, log_variance = network.train()(*spectra(name))
    truth = torch.randn_like(mean)
    loss = log_variance + (mean - truth) ** 2 * torch.exp(-log_variance)
    loss.mean().backward()
    return [
        key
        for key, parameter in network.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    ]


def test_gradients_reach_all_parameters(name):
    network = build(name)
    if models.in_one_go(name):
        assert not list(network.parameters())
        return
    if name.startswith("resnet"):  # their blocks start as the identity
        for key, parameter in network.named_parameters():
            if key.endswith("scale"):
                nn.init.ones_(parameter)
    assert not untouched(network, name)


def test_a_spectrum_does_not_depend_on_its_neighbours(name):
    network = settled(build(name), name)
    inputs = spectra(name)
    together = torch.cat(network(*inputs), dim=1)
    for i in range(ROWS):
        alone = torch.cat(network(*(x[i : i + 1] for x in inputs)), dim=1)
        torch.testing.assert_close(alone[0], together[i], rtol=1e-4, atol=1e-5)


def test_the_trunk_computes_in_bfloat16(name):
    network = settled(build(name), name)
    exact = network(*spectra(name))[0]
    network.trunk.to(torch.bfloat16)
    reduced = network(*spectra(name))[0]
    assert reduced.dtype == torch.float32
    torch.testing.assert_close(reduced, exact, rtol=0.05, atol=0.02)


def test_a_model_file_gives_the_same_outputs(name, tmp_path):
    network = settled(build(name), name)
    pixels, options = SMALL.get(name, (256, {}))
    grid = {"kind": "log10", "start": 4000.0, "step": 1e-4, "pixels": pixels}
    recipe = preprocess.Recipe.from_steps("small", [{"resample": {"grids": [grid]}}])
    model = checkpoint.Model(
        name="small",
        architecture=name,
        config=models.options(name) | options,
        pixels=pixels,
        labels=[labels.get(k).fitted(np.array(v)) for k, v in TARGETS.items()],
        recipe=recipe,
        wavelength=recipe.wavelength,
        state={f"member0.{k}": v.numpy() for k, v in network.state_dict().items()},
    )
    checkpoint.save(model, tmp_path / "small.safetensors")
    (loaded,) = checkpoint.load(str(tmp_path / "small.safetensors")).networks()
    for before, after in zip(
        network(*spectra(name)), loaded(*spectra(name)), strict=True
    ):
        assert torch.equal(before, after)


def test_an_unknown_option_names_the_nearest(name):
    known = next(iter(models.options(name)))
    with pytest.raises(UsageError, match=f"Did you mean '{known}'"):
        build(name, **{known + "x": 1})


def test_an_unknown_architecture_names_the_nearest(name):
    with pytest.raises(UsageError, match=f"Did you mean '{name}'"):
        models.build(name + "x", pixels=256, labels=3)


@pytest.mark.parametrize(
    "name", [name for name in models.MODELS if not models.in_one_go(name)]
)
def test_multiply_adds_are_counted(name):
    assert models.count_multiply_adds(build(name), SMALL.get(name, (256, {}))[0]) > 0


# ------------------------------------------------------------------------------ SCA-Net


def test_scanet_folds_as_the_recipe_does():
    network = build("scanet")
    flux = spectra("scanet")[0]
    folded = preprocess.fold(flux.numpy(), (32, 32))
    np.testing.assert_array_equal(network.image(flux)[:, 0].numpy(), folded)


@pytest.mark.parametrize("conv", ["mbconv", "standard"])
def test_scanet_builds_no_weight_that_is_not_used(variant, conv):
    assert not untouched(build("scanet", variant=variant, conv=conv), "scanet")


def test_scanet_ignores_the_inverse_variance():
    network = settled(build("scanet"), "scanet")
    flux, ivar = spectra("scanet")
    assert torch.equal(network(flux, ivar)[0], network(flux, 0 * ivar)[0])


def test_scanet_predicts_a_variance_only_when_asked():
    flux, ivar = spectra("scanet")
    plain, more = build("scanet"), build("scanet", uncertainty=True)
    assert not plain(flux, ivar)[1].any()
    assert more(flux, ivar)[1].any()
    assert plain.head.out_features * 2 == more.head.out_features
    assert not untouched(more, "scanet")


def scatter(network):
    """Give normalisations and position biases values other than 1 and 0."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
        elif isinstance(module, Attention):
            nn.init.uniform_(module.position, -1, 1)


@pytest.mark.parametrize("conv", ["mbconv", "standard"])
def test_fusing_scanet_leaves_no_normalisation_and_the_same_outputs(variant, conv):
    network = build("scanet", variant=variant, conv=conv)
    scatter(network)
    network = settled(network, "scanet").double()
    flux, ivar = (x.double() for x in spectra("scanet"))
    before = network(flux, ivar)[0]
    assert before.std(0).min() > 1e-6, "spectra must matter"
    fused = copy.deepcopy(network).fuse()
    assert not [m for m in fused.modules() if isinstance(m, nn.BatchNorm2d)]
    torch.testing.assert_close(fused(flux, ivar)[0], before, rtol=0, atol=1e-12)
    assert torch.equal(fused.fuse()(flux, ivar)[0], fused(flux, ivar)[0])


def test_multiply_adds_of_scanet_are_the_same_without_memory():
    with sdpa_kernel(SDPBackend.MATH):  # the fast attention isn't counted
        here = models.count_multiply_adds(build("scanet"), 1024)
    with torch.device("meta"):
        assert models.count_multiply_adds(build("scanet"), 1024) == here


def test_fusing_needs_final_statistics():
    with pytest.raises(ValueError, match="evaluation"):
        build("scanet").train().fuse()


def test_a_normalisation_does_not_go_into_a_padded_convolution():
    with pytest.raises(ValueError, match="1x1"):
        absorb_norm(nn.BatchNorm2d(4).eval(), nn.Conv2d(4, 4, 3, padding=1))


def test_drop_path_acts_in_training_only():
    network = settled(build("scanet", drop_path=0.5), "scanet")
    flux, ivar = spectra("scanet")
    assert torch.equal(network(flux, ivar)[0], network(flux, ivar)[0])
    network.train()
    assert not torch.equal(network(flux, ivar)[0], network(flux, ivar)[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "MTMT"}, "variant 'MTMT'"),
        ({"conv": "mbconf"}, "Did you mean 'mbconv'"),
        ({"blocks": (1, 1)}, "5 and 2"),
        ({"width": 0}, "positive"),
    ],
)
def test_scanet_refuses_options_that_cannot_be(options, message):
    with pytest.raises(UsageError, match=message):
        build("scanet", **options)


@pytest.mark.parametrize("pixels", [256, 1000, 2816, 40 * 40])
def test_scanet_names_the_pixels_that_fold(pixels):
    with pytest.raises(UsageError, match=f"{pixels} pixels.* 4096"):
        models.build("scanet", pixels=pixels, labels=3)


def test_scanet_takes_a_variant_as_the_paper_writes_it():
    written = build("scanet", variant="m-m-t-t").state_dict()
    assert written.keys() == build("scanet", variant="MMTT").state_dict().keys()


def test_scanet_learns():
    network = build("scanet").train()
    flux, ivar = spectra("scanet", 16)
    truth = torch.stack([flux.min(1).values, flux.mean(1), flux.std(1)], dim=1)
    truth = (truth - truth.mean(0)) / truth.std(0)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    for _ in range(30):
        loss = (network(flux, ivar)[0] - truth).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.25


def test_attention_is_the_same_in_training_and_evaluation():
    torch.manual_seed(1)
    layer = Attention(16, side=4, heads=2, head_dim=8)
    nn.init.normal_(layer.position)
    x = torch.randn(3, 16, 16)
    torch.testing.assert_close(layer.train()(x), layer.eval()(x))


# --------------------------------------------------------------------------- MK ResNet


def count(network, kind):
    return sum(isinstance(module, kind) for module in network.modules())


@pytest.mark.parametrize("kernel", [3, 5, 7, 9])
def test_mkresnet_is_built_of_what_the_paper_says(kernel):
    with torch.device("meta"):
        network = models.build("mkresnet", pixels=3738, labels=1, kernel=kernel)
    blocks = [module for module in network.modules() if isinstance(module, Block)]
    shortcuts = nn.ModuleList(block.shortcut for block in blocks)
    convolutions = count(network, nn.Conv1d) - count(shortcuts, nn.Conv1d)
    assert (convolutions, len(blocks)) == (25, 12)
    assert count(shortcuts, nn.Conv1d) == 6  # where a stage begins
    assert count(network, nn.MaxPool1d) == count(network, nn.AdaptiveAvgPool1d) == 1
    assert count(network, nn.Linear) == 1
    assert count(network, (nn.BatchNorm1d, nn.LayerNorm)) == 0
    sizes = {b.first.kernel_size + b.second.kernel_size for b in blocks}
    assert sizes == {(kernel, kernel)}


def test_mkresnet_has_the_published_size_and_positions():
    network = models.build("mkresnet", pixels=3738, labels=1)
    parameters = sum(p.numel() for p in network.parameters())
    assert parameters == pytest.approx(25.2e6, rel=0.003)
    shapes = {}
    for name, stage in network.stages().items():
        stage.register_forward_hook(
            lambda m, i, output, name=name: shapes.update({name: tuple(output.shape)})
        )
    network(*(torch.ones(2, 3738) for _ in range(2)))
    assert list(shapes.values()) == [
        (2, 32, 622),
        (2, 32, 311),
        (2, 64, 104),
        (2, 128, 35),
        (2, 256, 12),
        (2, 512, 4),
        (2, 1024, 2),
    ]
    assert list(shapes) == ["stem", *(f"stage{n}" for n in range(1, 7))]


def test_mkresnet_sees_the_noise_only_when_asked():
    for noise in (False, True):
        network = build("mkresnet", noise=noise)
        flux, ivar = spectra("mkresnet")
        same = torch.equal(network(flux, ivar)[0], network(flux, 0.1 * ivar)[0])
        assert same is not noise


def test_mkresnet_predicts_a_variance_only_when_asked():
    flux, ivar = spectra("mkresnet")
    assert not build("mkresnet")(flux, ivar)[1].any()
    assert build("mkresnet", uncertainty=True)(flux, ivar)[1].any()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"kernel": 4}, "odd, not 4"), ({"width": 0.0}, "width must be positive")],
)
def test_mkresnet_refuses_options_that_cannot_be(options, message):
    with pytest.raises(UsageError, match=message):
        build("mkresnet", **options)
    with pytest.raises(UsageError, match="10 pixels are too few"):
        models.build("mkresnet", pixels=10, labels=1)
