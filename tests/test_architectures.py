"""Parameters and multiply-adds of published networks, and the table of them."""

import json

import pytest
import torch

from stellarcli import architectures, models
from stellarcli.architectures import ARCHITECTURES, Published
from stellarcli.errors import UsageError
from stellarcli.models.scanet import SCANet

SCANET = ARCHITECTURES["scanet"].networks
KEYS = ["name", "variant", "conv", "parameters", "macs", "latency_ms"]
TINY = {"width": 0.125, "blocks": (1, 1, 1, 1)}


def label(published):
    return f"{published.variant}-{published.conv}"


def on_meta(**options):
    with torch.device("meta"):
        return SCANet(4096, 3, **options)


def size(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.fixture(scope="module")
def rows():
    return architectures.table("scanet", latency=False)


@pytest.mark.parametrize("published", SCANET, ids=label)
def test_scanet_has_the_live_parameters_of_the_published_code(published):
    parameters, _ = architectures.count("scanet", published)
    assert parameters == pytest.approx(published.live_parameters, rel=0.03)


def test_mbconv_stages_have_exactly_the_published_parameters():
    stages = on_meta(variant="MMMM").trunk.stages
    assert [size(stage) for stage in stages] == [240256, 3618048, 35514880, 14767104]


def test_multiply_adds_of_the_convolutional_network_are_those_published():
    published = SCANET[0]
    assert label(published) == "MMMM-mbconv"
    macs = architectures.count("scanet", published)[1]
    assert macs == pytest.approx(4.738e9, rel=0.03)
    # the mean's place is the only thing that fusing changes in the count of S0 … S5
    with torch.device("meta"):
        network = SCANet(4096, 3, variant="MMMM")
        fused = models.count_multiply_adds(network.eval().fuse(), 4096)
    assert macs - fused == 768 * 1024 * (16 * 16 - 1)


def attention_macs(inputs, outputs, depth, side):
    """Multiply-adds of a T stage, by hand."""
    pixels, inner = side * side, 256
    weights = outputs * 3 * inner + inner * outputs + 2 * outputs * 4 * outputs
    block = (
        pixels * weights + 2 * pixels * pixels * inner
    )  # Q Kᵀ and its product with V
    return pixels * inputs * outputs + depth * block


def test_multiply_adds_of_attention_are_counted_whole():
    macs = {
        published.variant: architectures.count("scanet", published)[1]
        for published in SCANET[-3::2]
    }
    pixels, hidden = 32 * 32, (256, 512)
    convolutions = sum(
        pixels * (i * h + 9 * h + h * 128) + 2 * h * i // 4
        for i, h in zip((64, 128), hidden, strict=True)
    )
    convolutions += pixels * 64 * 128  # shortcut
    difference = attention_macs(64, 128, 2, 32) - convolutions
    assert macs["TTTT"] - macs["MTTT"] == difference


def test_rows_hold_whole_numbers_and_survive_json(rows):
    assert len(rows) == 9
    assert json.loads(json.dumps(rows)) == rows
    for row in rows:
        assert list(row)[: len(KEYS)] == KEYS
        assert type(row["parameters"]) is type(row["macs"]) is int
        assert row["latency_ms"] is None
    names = [(row["variant"], row["conv"]) for row in rows]
    assert len(set(names)) == 9
    assert ("TTTT", "mbconv") in names
    assert ("TTTT", "standard") not in names


def test_text_has_a_line_per_network_and_says_why_figures_differ(rows):
    text = architectures.to_text(rows)
    lines = text.splitlines()
    assert len({len(line) for line in lines[:10]}) == 1
    assert "latency" not in lines[0]
    assert "114.239 M" in lines[5]
    assert "never uses" in text


def small(monkeypatch):
    networks = tuple(
        Published(p.variant, p.conv, p.options | TINY) for p in SCANET[4:6]
    )
    table = architectures.Architecture("SCA-Net", "tests", 1024, 3, networks)
    monkeypatch.setitem(ARCHITECTURES, "scanet", table)


@pytest.mark.parametrize("precision", architectures.PRECISIONS)
def test_latency_is_measured_per_spectrum(monkeypatch, precision):
    small(monkeypatch)
    seen = []
    rows = architectures.table(batch=2, precision=precision, progress=seen.append)
    assert seen == rows
    assert all(row["latency_ms"] > 0 for row in rows)
    assert "latency" in architectures.to_text(rows)
    assert "published" not in architectures.to_text(rows).splitlines()[0]


def test_unknown_names_are_refused():
    with pytest.raises(UsageError, match="Did you mean 'scanet'"):
        architectures.table("scannet")
    with pytest.raises(UsageError, match="Did you mean 'bfloat16'"):
        architectures.table(precision="float16")


def test_the_mk_resnet_is_counted_with_each_kernel():
    rows = architectures.table("mkresnet", latency=False)
    sizes = {row["variant"]: row["parameters"] for row in rows}
    assert list(sizes) == ["kernel 5", "kernel 3", "kernel 7", "kernel 9"]
    assert sizes["kernel 5"] == pytest.approx(25.2e6, rel=0.003)
    # two more taps of each kernel, of the blocks' convolutions alone
    pairs = [(32, 32), (32, 64), (64, 128), (128, 256), (256, 512), (512, 1024)]
    tap = sum(i * o + 3 * o * o for i, o in pairs)
    assert sizes["kernel 7"] - sizes["kernel 5"] == 2 * tap
    assert sizes["kernel 9"] - sizes["kernel 3"] == 6 * tap
    assert list(rows[0])[: len(KEYS)] == KEYS
    assert json.loads(json.dumps(rows)) == rows
    assert "25.174 M" in architectures.to_text(rows)
