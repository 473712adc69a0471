"""Kernel regression: smooth functions, bad targets, spectra far from the others."""

import numpy as np
import torch

from stellarcli.models.regression import KernelRegression


def made(rows, seed, bad=0.0):
    rng = np.random.default_rng(seed)
    x = rng.uniform(-2, 2, (rows, 2))
    clean = np.stack([np.sin(x[:, 0]) + 0.5 * x[:, 1], x[:, 0] ** 2], axis=1)
    y = clean + 0.02 * rng.standard_normal(clean.shape)
    y[rng.random(rows) < bad] += 5
    return [torch.from_numpy(a).float() for a in (x, y, clean)]


def solved(rows=400, **options):
    x, y, _ = made(rows, 1, **options)
    regression = KernelRegression(2, 2)
    regression.solve(x, y, torch.ones(rows))
    return regression


def test_it_learns_smooth_functions():
    x, _, clean = made(200, 2)
    assert (solved()(x) - clean).abs().mean() < 0.05  # of 1.1


def test_wrong_targets_do_little_harm():
    x, _, clean = made(200, 2)
    assert (solved(bad=0.05)(x) - clean).abs().median() < 0.05


def test_unknown_targets_are_left_out():
    x, y, _ = made(400, 1)
    y[::3, 0] = np.nan
    y[:, 1] = np.nan
    regression = KernelRegression(2, 2)
    regression.solve(x, y, torch.ones(400))
    x, _, clean = made(200, 2)
    found = regression(x)
    assert (found - clean)[:, 0].abs().mean() < 0.03
    assert not found[:, 1].any()


def test_noisy_rows_weigh_less():
    x, y, _ = made(400, 1)
    noise = torch.ones(400)
    y[::2] += 3 * torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    noise[::2] = 1e4
    regression = KernelRegression(2, 2)
    regression.solve(x, y, noise)
    x, _, clean = made(200, 2)
    assert (regression(x) - clean).abs().mean() < 0.15


def test_far_away_it_stays_finite():
    found = solved()(torch.tensor([[1e6, -1e6]]))
    assert torch.isfinite(found).all()
    assert found.abs().max() < 20
