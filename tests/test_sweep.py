"""Sweeps: which runs, their names, the table of outcomes."""

import numpy as np
import pytest

from stellarcli import sweep
from stellarcli.errors import UsageError
from stellarcli.settings import TrainConfig


def test_every_point_of_the_grid_in_every_fold_with_every_seed():
    config = TrainConfig(folds=2, seed=7)
    grid = {"learning_rate": [1e-3, 1e-4], "network.widths": [[8, 16]]}
    runs = sweep.plan(config, seeds=3, grid=grid)
    assert len(runs) == 12
    assert len({run.tag for run in runs}) == 12
    assert runs[0].tag == "learning_rate0.001-widths8_16-fold0-repeat0"
    assert {run.config.seed for run in runs} == {7}
    assert {run.config.repeat for run in runs} == {0, 1, 2}
    assert runs[0].config.network == {"widths": [8, 16]}


def test_one_run_needs_no_tag():
    (run,) = sweep.plan(TrainConfig())
    assert run.tag == ""


def test_mistakes():
    with pytest.raises(UsageError, match="at least 1"):
        sweep.plan(TrainConfig(), seeds=0)
    with pytest.raises(UsageError, match="Did you mean 'noise'"):
        sweep.plan(TrainConfig(), grid={"nois": [1]})


def test_names_are_fit_for_files():
    (run, _) = sweep.plan(TrainConfig(), grid={"select": ["snr > 3/2", "a b"]})
    assert "/" not in run.tag
    assert " " not in run.tag


def test_mean_and_deviation_over_repeats():
    table = np.array(
        [("a", 1.0, 0, 0, 2.0), ("b", 1.0, 0, 1, 4.0), ("c", 2.0, 0, 0, 9.0)],
        dtype=[
            ("model", "U1"),
            ("noise", "f8"),
            ("fold", "i8"),
            ("repeat", "i8"),
            ("teff_mae", "f8"),
        ],
    )
    assert sweep.experiments(table) == ["noise"]
    found = sweep.average(table, ["noise"])
    assert found[("1.0",)]["teff_mae"] == pytest.approx((3.0, 2**0.5))
    assert found[("2.0",)]["teff_mae"] == (9.0, 0.0)
