"""Settings: precedence, types, limits."""

import math

import pytest

from stellarcli import settings
from stellarcli.errors import UsageError
from stellarcli.settings import TrainConfig, parse_grid, parse_pairs


def test_later_sources_win():
    found = TrainConfig.resolve(
        {"epochs": 1, "network": {"stem": 4, "hidden": 2}},
        {"epochs": "2", "network.stem": "1e1"},
        {"target": "teff, logg", "select": "snr > 3"},
    )
    assert found.epochs == 2
    assert found.network == {"stem": 10.0, "hidden": 2}
    assert found.target == ("teff", "logg")
    assert TrainConfig.resolve(found.to_json()) == found


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"lerning_rate": 1}, "Did you mean 'learning_rate'"),
        ({1: 2}, "unknown training setting '1'"),
        ({"epochs": 2.5}, "must be int, not 2.5"),
        ({"epochs": math.inf}, "must be int"),
        ({"epochs": "many"}, "must be int, not 'many'"),
        ({"epochs": True}, "must be int"),
        ({"half": 1}, "must be bool"),
        ({"epochs": 0}, "epochs must be positive"),
        ({"learning_rate": math.nan}, "learning_rate must be positive"),
        ({"noise": -1}, "noise must be 0 to inf"),
        ({"hide": 1.5}, "hide must be 0 to 1"),
        ({"average": 1}, "average must be"),
        ({"loss": "log-cosh"}, "Did you mean 'log_cosh'"),
        ({"test": 0.5, "validation": 0.5}, "something to train on"),
        ({"folds": 1}, "at least 2 folds"),
        ({"folds": 3, "fold": 3}, "fold 3 of 3 doesn't exist"),
        ({"folds": 3, "split": "part"}, "two ways to split"),
        ({"patience": 3, "validation": 0}, "set validation above 0"),
        ({"label_weights": [1, 2]}, "2 label_weights for 3 labels"),
        ({"label_weights": [1, -2, 0]}, "must be positive or 0"),
        ({"target": []}, "target must name labels"),
        ({"target": "teff,teff"}, "each once"),
        ({"freeze": "trunk"}, "freeze trunk .* name that model with --init"),
    ],
)
def test_mistakes(values, text):
    with pytest.raises(UsageError, match=text):
        TrainConfig.resolve(values)


def test_pairs_are_yaml():
    pairs = ["a=1e-3", "b=[1, 2]", "c=x > 3", "d=null", "e=true", "f=k=v"]
    expected = {"a": 1e-3, "b": [1, 2], "c": "x > 3", "d": None, "e": True, "f": "k=v"}
    assert parse_pairs(pairs) == expected
    with pytest.raises(UsageError, match="KEY=VALUE, not 'a'"):
        parse_pairs(["a"])
    with pytest.raises(UsageError, match="not YAML"):
        parse_pairs(["a=[1"])


def test_grid_values_may_be_lists():
    found = parse_grid(["learning_rate=1e-3,1e-4", "network.widths=[8,16],[4]"])
    assert found == {
        "learning_rate": [1e-3, 1e-4],
        "network.widths": [[8, 16], [4]],
    }
    with pytest.raises(UsageError, match="KEY=VALUE,VALUE"):
        parse_grid(["noise"])


def test_yaml_files(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("learning_rate: 1e-3\nnetwork:\n  dropout: 1e-1\n")
    found = TrainConfig.resolve(settings.read_config(path))
    assert found.learning_rate == 1e-3
    assert found.network == {"dropout": 0.1}
    for text, error in (("- a\n", "must be a mapping"), ("a: [", "is not YAML")):
        path.write_text(text)
        with pytest.raises(UsageError, match=error):
            settings.read_config(path)
    with pytest.raises(UsageError, match="No such file"):
        settings.read_config(tmp_path / "none.yaml")


def test_seeds_of_different_purposes_differ():
    config = TrainConfig(seed=3)
    seeds = {
        TrainConfig(seed=seed, repeat=repeat).random_seed("order", member, epoch)
        for seed in range(3)
        for repeat in range(3)
        for member in range(3)
        for epoch in range(3)
    }
    assert len(seeds) == 81
    assert config.random_seed("weights", 0) == config.random_seed("weights", 0)
    assert 0 <= max(seeds) < 2**63
