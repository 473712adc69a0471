"""Convolutions with half of the multiplications against PyTorch's."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from stellarcli.models import winograd
from stellarcli.models.winograd import Winograd, rows_first, stars_first


def images(stars=3, channels=8, rows=8, columns=8):
    generator = torch.Generator().manual_seed(2)
    return torch.randn(stars, channels, rows, columns, generator=generator)


def convolution(inputs=8, outputs=16):
    torch.manual_seed(3)
    return nn.Conv2d(inputs, outputs, 3, padding=1).requires_grad_(False)


def back(x):
    """Rows first to (star, channel, row, column)."""
    return stars_first(x).permute(0, 3, 1, 2)


@pytest.mark.parametrize(
    "shape", [(3, 8, 8, 8), (1, 8, 4, 5), (2, 8, 40, 3), (5, 8, 64, 1)]
)
def test_a_convolution_is_that_of_pytorch(shape):
    convolve, x = convolution(), images(*shape)
    found = Winograd(convolve)(rows_first(x))
    exact = convolve.double()(x.double())
    assert (back(found) - exact).abs().max() < 3e-6 * exact.abs().max()
    assert (found[0] == 0).all()
    assert (found[-1] == 0).all()


def test_one_after_the_other_sees_zeros_around():
    first, second, x = convolution(8, 8), convolution(8, 4), images(rows=12)
    found = Winograd(second)(Winograd(first)(rows_first(x)))
    exact = second(first(x))
    torch.testing.assert_close(back(found), exact, rtol=1e-5, atol=1e-5)


def test_rows_beyond_those_at_once_are_no_different(monkeypatch):
    convolve, x = convolution(), rows_first(images(rows=24))
    whole = Winograd(convolve)(x)
    monkeypatch.setattr(winograd, "AT_ONCE", 8)
    torch.testing.assert_close(Winograd(convolve)(x), whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "options", [{"stride": 2}, {"padding": 0}, {"groups": 4}, {"bias": False}]
)
def test_other_convolutions_are_refused(options):
    with pytest.raises(ValueError, match=r"3×3.*Conv2d"):
        Winograd(nn.Conv2d(8, 8, 3, **{"padding": 1} | options))


def test_half_of_the_multiplications_are_left():
    convolve, x = convolution(), images(rows=16)

    def multiplications(function, argument):
        counter = FlopCounterMode(display=False)
        with torch.no_grad(), counter:
            function(argument)
        counts = counter.get_flop_counts()["Global"]
        return counts[torch.ops.aten.convolution]

    usual = multiplications(convolve, x)
    assert multiplications(Winograd(convolve), rows_first(x)) == usual / 2


@pytest.mark.parametrize("shape", [(3, 8, 8, 8), (1, 8, 4, 2), (2, 8, 24, 6)])
def test_pooling_is_that_of_pytorch(shape, monkeypatch):
    monkeypatch.setattr(winograd, "AT_ONCE", 8)
    convolve, x = convolution(), images(*shape)
    expected = functional.max_pool2d(functional.relu(convolve(x)), 3, 2, padding=1)
    found = Winograd(convolve).pooled(rows_first(x))
    torch.testing.assert_close(back(found), expected, rtol=1e-5, atol=1e-5)
    assert (found[0] == 0).all()
    assert (found[-1] == 0).all()


@pytest.mark.parametrize("capability", ["DEFAULT", "AVX512"])
def test_only_processors_it_was_measured_on_halve(capability, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert not winograd.pays()
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert winograd.pays()


def test_only_whole_tiles_fit():
    assert [side for side in range(1, 13) if winograd.fits(side)] == [4, 8, 12]
