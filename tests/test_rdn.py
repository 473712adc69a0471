"""RDN and the networks it is compared with: sizes by hand, structure, both arms."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from stellarcli import architectures, models
from stellarcli.errors import UsageError
from stellarcli.models.rdn import RDN, channels_of

ARM = 4401  # pixels of the recipe's arms
NETWORKS = {row.variant: row for row in architectures.get("rdn").networks}


def size(module):
    return sum(parameter.numel() for parameter in module.parameters())


def weights(inputs, outputs, kernel=1):
    """Of a convolution or a fully connected layer with bias."""
    return inputs * outputs * kernel + outputs


def on_meta(**options):
    with torch.device("meta"):
        return RDN(2 * ARM, 17, **options)


def head(inputs, *sizes):
    """Weights of fully connected layers."""
    pairs = zip((inputs, *sizes), sizes, strict=False)
    return sum(weights(*pair) for pair in pairs)


# ------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize("blocks", [1, 2, 3, 4])
def test_rdn_has_the_weights_that_its_structure_says(blocks):
    units = sum(weights(32 + 16 * n, 16) + weights(16, 16, 3) for n in range(3))
    block = units + weights(32 + 3 * 16, 32)
    shallow = weights(1, 32, 17) + weights(32, 32, 3)
    fusion = weights(32 * blocks, 32) + weights(32, 32, 3)
    connected = head(2 * 32 * 64, 128, 64, 2 * 17)
    network = on_meta(blocks=blocks)
    assert [size(b) for b in network.trunk[0].blocks] == [block] * blocks
    assert size(network.trunk) == 2 * (shallow + blocks * block + fusion)
    assert size(network.head) == connected
    assert size(network) == architectures.count("rdn", NETWORKS[f"n={blocks}"])[0]


def test_multiply_adds_of_rdn_are_those_of_its_layers():
    # 4401 pixels in steps of 8 are 551 positions, in steps of 2 276
    shallow = 551 * 17 * 32 + 276 * 32 * 32 * 3
    units = sum((32 + 16 * n) * 16 + 16 * 16 * 3 for n in range(3))
    block = 276 * (units + 80 * 32)
    fusion = 276 * (3 * 32 * 32 + 32 * 32 * 3)
    connected = 4096 * 128 + 128 * 64 + 64 * 34
    expected = 2 * (shallow + 3 * block + fusion) + connected
    assert architectures.count("rdn", NETWORKS["n=3"])[1] == expected


def test_starnet_has_the_weights_that_were_published():
    positions = (2 * ARM - 7 - 7) // 4
    connected = head(16 * positions, 256, 128, 34)
    expected = weights(1, 4, 8) + weights(4, 16, 8) + connected
    assert architectures.count("rdn", NETWORKS["StarNet"])[0] == expected


def test_resnet_has_the_weights_of_eighteen_layers():
    def block(inputs, outputs, shortcut):
        norms = 2 * 2 * outputs
        convolutions = 3 * inputs * outputs + 3 * outputs * outputs
        return norms + convolutions + shortcut * (inputs * outputs + 2 * outputs)

    trunk = 7 * 16 + 2 * 16 + 2 * block(16, 16, 0)
    for inputs, outputs in ((16, 32), (32, 64), (64, 128)):
        trunk += block(inputs, outputs, 1) + block(outputs, outputs, 0)
    expected = trunk + head(128 * 32, 128, 64, 34)
    assert architectures.count("rdn", NETWORKS["ResNet"])[0] == expected
    with torch.device("meta"):
        network = models.build("resnet", pixels=2 * ARM, labels=17)
    # all but the shortcuts, of which there are three, and both ends: 16 convolutions
    kinds = nn.Conv2d | nn.Linear
    assert len([m for m in network.trunk.modules() if isinstance(m, kinds)]) == 17 + 3


def test_densenet_has_the_weights_of_its_layers():
    def layer(inputs):
        return 2 * inputs + 64 * inputs + 2 * 64 + 3 * 64 * 16

    width, trunk = 32, 7 * 32 + 2 * 32
    for block, depth in enumerate((3, 4, 4)):
        if block:
            trunk += 2 * width + width * width // 2
            width //= 2
        trunk += sum(layer(width + 16 * n) for n in range(depth))
        width += 16 * depth
    trunk += 2 * width
    assert width == 116
    expected = trunk + head(width * 64, 128, 64, 34)
    assert architectures.count("rdn", NETWORKS["DenseNet"])[0] == expected


# --------------------------------------------------------------------------- structure


def by_hand(network, flux):
    """Forward pass of RDN's first arm in one dimension, from the paper's text."""
    state = dict(network.trunk[0].named_parameters())

    def conv(name, x, stride=1):
        weight, bias = state[f"{name}.weight"][:, :, 0], state[f"{name}.bias"]
        return functional.conv1d(x, weight, bias, stride, weight.shape[2] // 2)

    x = (flux - 0.5).unsqueeze(1)
    shallow = conv("shallow.2", functional.relu(conv("shallow.0", x, 8)), 2)
    previous, outputs = shallow, []
    for block in range(len(network.trunk[0].blocks)):
        dense = [previous]
        for unit in range(3):
            name = f"blocks.{block}.units.{unit}"
            y = functional.relu(conv(f"{name}.mix", torch.cat(dense, 1)))
            dense.append(functional.relu(conv(f"{name}.convolve", y)))
        previous = previous + conv(f"blocks.{block}.reduce", torch.cat(dense, 1))
        outputs.append(previous)
    fused = conv("convolve", conv("fuse_blocks", torch.cat(outputs, 1)))
    return functional.adaptive_avg_pool1d(shallow + fused, 4)


def small(**options):
    torch.manual_seed(0)
    own = {"width": 8, "growth": 8, "places": 4, "hidden": (16, 8)}
    return RDN(256, 3, **own | options).eval()


def spectra():
    generator = torch.Generator().manual_seed(1)
    flux = torch.rand(5, 256, generator=generator)
    return flux, torch.full_like(flux, 400.0)


@torch.no_grad()
def test_rdn_is_the_network_of_the_paper():
    network = small(blocks=2)
    flux, ivar = spectra()
    features = network.forward_features(flux, ivar).unflatten(1, (8, 1, 8))
    torch.testing.assert_close(
        features[:, :, 0, :4], by_hand(network, flux[:, :128]), rtol=1e-4, atol=1e-6
    )


@torch.no_grad()
def test_each_arm_has_a_branch_of_its_own():
    network = small()
    flux, ivar = spectra()
    changed = flux.clone()
    changed[:, 128:] = 0.3
    before = network.forward_features(flux, ivar).unflatten(1, (8, 8))
    after = network.forward_features(changed, ivar).unflatten(1, (8, 8))
    assert torch.equal(before[..., :4], after[..., :4])
    assert not torch.equal(before[..., 4:], after[..., 4:])


@torch.no_grad()
@pytest.mark.parametrize("name", ["rdn", "resnet", "densenet", "starnet"])
def test_noise_matters_only_where_it_is_shown(name):
    flux, ivar = spectra()
    for noise in (False, True):
        torch.manual_seed(0)
        network = models.build(name, pixels=256, labels=3, noise=noise).eval()
        same = torch.equal(network(flux, ivar)[1], network(flux, ivar / 9)[1])
        assert same is not noise


def test_a_missing_arm_has_no_noise_and_no_flux():
    flux, ivar = torch.zeros(1, 4), torch.tensor([[0.0, 1.0, 100.0, 1e4]])
    channels = channels_of(flux, ivar, noise=True)
    assert (channels[0, 0] == -2).all()
    expected = [0.0, 0.0, -2.302585 / 2, -4.60517 / 2]
    torch.testing.assert_close(channels[0, 1], torch.tensor(expected))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arms": 3}, "256 pixels are not 3 arms"),
        ({"blocks": 0}, "blocks must be 1 or more"),
        ({"hidden": (8,)}, "two numbers each"),
    ],
)
def test_rdn_refuses_options_that_cannot_be(options, message):
    with pytest.raises(UsageError, match=message):
        models.build("rdn", pixels=256, labels=3, **options)


def test_rdn_learns():
    network = small(noise=True).train()
    flux, ivar = spectra()
    truth = torch.stack([flux.std(1), flux[:, :128].mean(1), flux[:, 128:].mean(1)], 1)
    truth = (truth - truth.mean(0)) / truth.std(0)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for _ in range(150):
        loss = (network(flux, ivar)[0] - truth).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1


@pytest.mark.parametrize("name", ["rdn", "resnet", "densenet", "starnet"])
def test_flux_counts_from_the_level(name):
    torch.manual_seed(1)
    pair = [
        models.build(name, pixels=2 * 600, labels=2, level=level).eval()
        for level in (0.5, 1.0)
    ]
    pair[1].load_state_dict(pair[0].state_dict())
    flux = torch.rand(3, 1200)
    ivar = torch.full_like(flux, 400.0)
    with torch.no_grad():
        scaled, normalised = pair[0](flux, ivar), pair[1](flux + 0.5, ivar)
    for one, other in zip(scaled, normalised, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


# ------------------------------------------------------------------------------- table


def test_the_table_of_rdn_names_every_network():
    rows = architectures.table("rdn", latency=False)
    names = ["n=1", "n=2", "n=3", "n=4", "ResNet", "DenseNet", "StarNet"]
    assert [row["variant"] for row in rows] == names
    assert [row["name"] for row in rows[3:]] == ["rdn", "resnet", "densenet", "starnet"]
    text = architectures.to_text(rows)
    assert "published" not in text.splitlines()[0]
    assert "prints no sizes" in text
