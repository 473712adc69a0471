"""Losses against values computed by hand."""

import math

import pytest
import torch

from stellarcli import losses


def one(name, mean, log_variance=0.0, truth=0.0, noise=0.0):
    values = (torch.tensor([[float(v)]]) for v in (mean, log_variance, truth, noise))
    return losses.LOSSES[name](*values).item()


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("mae", (3, 0, 1), 2),
        ("mse", (3, 0, 1), 4),
        ("mae", (3, 0, 1, 1), 1),  # a label as uncertain as the labels spread: half
        ("mse", (3, 0, 1, 3), 1),
        ("log_cosh", (1, 0, 0), math.log(math.cosh(1))),
        ("log_cosh", (500, 0, 0), 500 - math.log(2)),  # cosh itself would overflow
        ("nll", (3, 0, 1), 2),  # ½ (ln 1 + 2²/1)
        ("nll", (3, math.log(4), 1), 0.5 * (math.log(4) + 1)),
        ("nll", (3, 0, 1, 3), 0.5 * (math.log(4) + 1)),  # variances add
        ("laplace", (3, math.log(2), 1), 2),  # b = 1
        ("laplace", (3, math.log(8), 1), math.log(2) + 1),  # b = 2
        ("laplace", (3, math.log(2), 1, 6), math.log(2) + 1),
    ],
)
def test_by_hand(name, values, expected):
    assert one(name, *values) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", losses.LIKELIHOODS)
def test_likelihoods_are_best_at_the_true_spread(name):
    torch.manual_seed(1)
    if name == "nll":
        truth = 0.3 * torch.randn(20000, 1)
    else:
        truth = torch.distributions.Laplace(0.0, 0.3 / math.sqrt(2)).sample((20000, 1))
    zero = torch.zeros_like(truth)
    spreads = [0.25, 0.3, 0.36]
    found = [
        losses.LOSSES[name](zero, zero + 2 * math.log(s), truth, zero).mean()
        for s in spreads
    ]
    assert min(range(3), key=lambda i: found[i]) == 1


@pytest.mark.parametrize("name", losses.LOSSES)
def test_gradients_are_finite_far_away(name):
    mean = torch.tensor([[1e4, -1e4]], requires_grad=True)
    log_variance = torch.tensor([[-12.0, 6.0]], requires_grad=True)
    zero = torch.zeros(1, 2)
    losses.LOSSES[name](mean, log_variance, zero, zero).sum().backward()
    assert torch.isfinite(mean.grad).all()
    assert torch.isfinite(log_variance.grad).all()


def test_total_counts_known_labels_with_their_weights():
    loss = torch.tensor([[1.0, 10.0], [2.0, 20.0]])
    known = torch.tensor([[True, True], [True, False]])
    value, weight = losses.total(loss, known, torch.tensor([1.0, 0.5]))
    assert value == 1 + 2 + 5
    assert weight == 2.5
