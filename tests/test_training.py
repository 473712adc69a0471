"""Training: it learns, resumes bit for bit, sweeps, and says what went wrong."""

import json
import math
import os
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import surveyfiles
import torch
import trainingtables
from astropy.table import Table as AstropyTable
from conftest import program
from torch import nn

from stellarcli import catalog, checkpoint, fitting, models, training
from stellarcli.errors import StellarError, UsageError
from stellarcli.settings import TrainConfig

DROPPING = {**trainingtables.NETWORK, "dropout": 0.3, "drop_path": 0.3}
VARIED = {"noise": 1.0, "velocity": 0.5, "distortion": 0.1, "hide": 0.5}


@pytest.fixture(autouse=True)
def one_thread():
    """Leave the other core to others."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    torch.set_flush_denormal(False)


@pytest.fixture(scope="session")
def table(tmp_path_factory):
    """96 spectra of different stars with teff and logg."""
    return trainingtables.write(tmp_path_factory.mktemp("train") / "table.fits")


def config(**changes):
    return TrainConfig.resolve(trainingtables.SETTINGS, changes)


def weights(path):
    model = checkpoint.load(str(path))
    return {k: v for k, v in model.state.items() if k.startswith("member")}


def assert_same(one, other):
    """Same weights to the last bit."""
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys()
    for key in a:
        assert a[key].tobytes() == b[key].tobytes(), key


# ---------------------------------------------------------------------------- learning


def test_it_learns(here, table):
    settings = config(
        epochs=60, learning_rate=0.02, average=0.9, test=0.2, validation=0.2
    )
    model = training.train([table], here / "model.safetensors", settings)
    assert model.training["test_metrics"]["teff"]["rmse"] < 250  # of 720 to begin with
    assert model.training["test_metrics"]["logg"]["rmse"] < 0.45  # of 1.15
    assert model.training["judged_on"] == "train"  # under 50 validation rows
    assert 0.3 < min(model.error_scale) <= max(model.error_scale) < 3
    again = checkpoint.load(str(here / "model.safetensors"))
    assert again.training["config"]["epochs"] == 60
    assert again.training["config"]["network"]["dropout"] == 0.0  # resolved
    assert (here / "model.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "adam", "schedule": "restarts", "restart_epochs": 1},
        {"precision": "bfloat16", "clip": 0.0, "schedule": "constant"},
        {"loss": "mae", "average": 0.0, "warmup": 0.0},
        {"loss": "laplace", "network": DROPPING, **VARIED},
        {"loss": "log_cosh", "label_weights": [1, 0.5], "validation": 0.0},
        {"loss": "mse", "half": False, "batch_size": 1000},
    ],
    ids=lambda changes: "-".join(map(str, changes.values()))[:30],
)
def test_settings_train(here, table, changes):
    model = training.train([table], here / "m.safetensors", config(epochs=2, **changes))
    losses = [entry["train_loss"] for entry in model.training["history"]]
    assert len(losses) == 2
    assert np.isfinite(losses).all()
    # drawing the file's weights again is exact: they were rounded before judging
    stored = checkpoint.load(str(here / "m.safetensors"))
    for name, value in stored.state.items():
        np.testing.assert_array_equal(
            value.astype("f4"), model.state[name].astype("f4"), err_msg=name
        )


def test_what_is_learnt_is_float16_and_statistics_are_not():
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    network[1].running_var.copy_(torch.tensor([1e-9, 70000.0]))  # neither is a float16
    assert training._round(network)
    whole, half = (training._tensors([network], half=half) for half in (False, True))
    assert half["member0.0.weight"].dtype == np.float16
    assert np.array_equal(half["member0.0.weight"], whole["member0.0.weight"])
    assert half["member0.1.running_var"].tobytes() == np.float32([1e-9, 7e4]).tobytes()


def test_weights_too_large_for_float16_stay_float32():
    network = nn.Linear(2, 2)
    with torch.no_grad():
        network.weight[0, 0] = 1e5
    before = network.weight.clone()
    assert not training._round(network)
    assert torch.equal(network.weight, before)


def test_missing_labels_are_masked_one_by_one(here):
    random = np.random.default_rng(1)
    logg = random.uniform(1, 5, 96)
    logg[::2] = np.nan
    with_holes = trainingtables.write(here / "holes.fits", logg=logg)
    settings = config(validation=0.0, average=0.0)
    model = training.train([with_holes], here / "m.safetensors", settings)
    assert model.training["metrics"]["logg"]["n"] == 48
    assert model.training["metrics"]["teff"]["n"] == 96
    data = training.dataset.load([with_holes], settings)
    truth, noise = fitting.encode(model.labels, data)
    assert torch.isnan(truth[:, 1]).sum() == 48
    assert torch.isfinite(noise).all()


def test_label_errors_weigh_the_loss(here):
    errors = np.full(96, 50.0)
    errors[:3] = [np.nan, -9999.0, 0.0]
    path = trainingtables.write(
        here / "t.fits", teff_err=errors, logg_err=np.full(96, 0.1)
    )
    settings = config(label_errors=True)
    data = training.dataset.load([path], settings)
    np.testing.assert_allclose(data.errors[:, 0], 50.0)  # unknown: the median
    model = training.new_model("m", data, training.resolve(settings, None), None)
    _, noise = fitting.encode(model.labels, data)
    slope = 1 / (data.labels[:, 0] * math.log(2) * model.labels[0].scale)
    np.testing.assert_allclose(noise[:, 0], np.square(50 * slope), rtol=1e-5)
    np.testing.assert_allclose(noise[:, 1], (0.1 / model.labels[1].scale) ** 2, 1e-5)
    trained = training.train([path], here / "m.safetensors", settings)
    assert np.isfinite(trained.training["history"][-1]["train_loss"])


def test_early_stopping_keeps_the_best_weights(here, table, monkeypatch):
    scores = iter([3.0, 1.0, 2.0, 2.0, 0.5])
    monkeypatch.setattr(
        fitting.Fitter, "_validate", lambda self: (next(scores), {"teff": 1.0})
    )
    seen = []
    remember = fitting.Fitter._remember

    def spy(self, validation):
        state = self.average.network.state_dict()
        seen.append({k: v.clone() for k, v in state.items()})
        remember(self, validation)

    monkeypatch.setattr(fitting.Fitter, "_remember", spy)
    settings = config(epochs=9, patience=2, half=False)
    training.train([table], here / "m.safetensors", settings)
    assert len(seen) == 4
    for name, value in weights(here / "m.safetensors").items():
        best = seen[1][name.removeprefix("member0.")]
        np.testing.assert_array_equal(value, best.numpy())


def test_ensemble_is_one_file_that_predict_combines(here, table, stellar):
    done = stellar(
        "train", table, "-o", "two.safetensors", *trainingtables.options(members=2)
    )
    assert done.status == 0, done.err
    assert "network 2/2" in done.err
    model = checkpoint.load("two.safetensors")
    assert model.members == ["member0", "member1"]
    assert [entry["member"] for entry in model.training["history"]] == [
        1,
        1,
        1,
        2,
        2,
        2,
    ]
    done = stellar("predict", table, "-o", "p.fits", "--model", "two.safetensors")
    assert done.status in (0, 3), done.err
    first, second = model.networks()
    data = training.dataset.load([table], config())
    inputs = [torch.from_numpy(a) for a in data.spectra(np.arange(96))]
    with torch.no_grad():
        means = [network(*inputs)[0].numpy() for network in (first, second)]
    assert np.abs(means[0] - means[1]).max() > 0
    expected = model.labels[1].decode(np.mean(means, axis=0)[:, 1])
    found = catalog.read("p.fits").rows["logg"]
    np.testing.assert_allclose(found, expected, rtol=1e-4)


class Wrong(nn.Linear):
    """A layer whose bfloat16 is unrelated to its float32, as oneDNN's sometimes is."""

    def forward(self, x):
        y = super().forward(x)
        return y.flip(1) if y.dtype == torch.bfloat16 else y


def test_bfloat16_is_used_only_where_it_is_right(here, table, monkeypatch):
    torch.manual_seed(1)
    network, spectra = Normed(64, 2), (torch.randn(8, 64), torch.ones(8, 64))
    assert fitting.agrees_in_bfloat16(network, *spectra)
    network.trunk[0] = Wrong(64, 4)
    assert not fitting.agrees_in_bfloat16(network, *spectra)
    monkeypatch.setattr(fitting, "agrees_in_bfloat16", lambda *_: False)
    for precision in ("bfloat16", "float32"):
        settings = config(precision=precision, epochs=1)
        training.train([table], here / f"{precision}.safetensors", settings)
    assert_same(here / "bfloat16.safetensors", here / "float32.safetensors")


# ------------------------------------------------------------------------- fine-tuning


class Normed(nn.Module):
    """A network with batch statistics, and a parameter that nothing uses."""

    def __init__(self, pixels, labels, *, width=4):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(pixels, width), nn.BatchNorm1d(width))
        self.unused = nn.Linear(2, 2)
        self.head = nn.Linear(width, 2 * labels)

    def forward(self, flux, ivar):
        features = self.trunk(flux.to(self.trunk[0].weight.dtype))
        mean, log_variance = self.head(features.float()).chunk(2, 1)
        return mean, log_variance.clamp(-12, 6)


def test_frozen_parts_stay_as_they_are(here, table, monkeypatch):
    monkeypatch.setattr(models, "network_class", lambda name: Normed)
    settings = config(network={"width": 5}, half=False, average=0.0)
    training.train([table], here / "a.safetensors", settings)
    tuned = replace(
        settings, init=str(here / "a.safetensors"), freeze=("trunk",), seed=2
    )
    training.train([table], here / "b.safetensors", tuned)
    a, b = weights(here / "a.safetensors"), weights(here / "b.safetensors")
    for name in a:
        same = np.array_equal(a[name], b[name])
        assert same == (not name.startswith("member0.head")), name
    assert checkpoint.load(str(here / "b.safetensors")).config == {"width": 5}


def test_starting_from_a_model(here, table):
    first = training.train([table], here / "a.safetensors", config(epochs=8))
    settings = replace(config(epochs=1), init=str(here / "a.safetensors"), network={})
    other = trainingtables.write(here / "other.fits", size=40, seed=5)
    second = training.train([other], here / "b.safetensors", settings)
    assert [s.scale for s in second.labels] == [s.scale for s in first.labels]
    assert second.labels[0].trained != first.labels[0].trained
    assert second.config["widths"] == [4, 8]
    assert second.training["config"]["model"] == "resnet1d"
    with pytest.raises(UsageError, match="is a resnet1d, not a scanet"):
        training.train(
            [table], here / "c.safetensors", replace(settings, model="scanet")
        )
    with pytest.raises(UsageError, match="predicts teff, logg, the target is teff"):
        training.train(
            [table], here / "c.safetensors", replace(settings, target=("teff",))
        )
    wider = replace(settings, network={"hidden": 9})
    with pytest.raises(UsageError, match="don't fit the model to start from"):
        training.train([table], here / "c.safetensors", wider)
    with pytest.raises(UsageError, match=r"'heat'.*Did you mean 'head'"):
        training.train(
            [table], here / "c.safetensors", replace(settings, freeze=("heat",))
        )
    everything = replace(settings, freeze=("trunk", "hidden", "head"))
    with pytest.raises(UsageError, match="nothing to train"):
        training.train([table], here / "c.safetensors", everything)


def test_a_missing_label_names_what_is_near_and_how_to_join(here, table, stellar):
    words = ["train", table, "-o", "m.safetensors", "--target"]
    done = stellar(*words, "Tef")
    assert done.status == 2
    assert "'Tef'. Did you mean 'teff'? Valid: objid" in done.err
    assert "joined with --labels CATALOGUE" in done.err
    done = stellar(*words, "vmic", "--labels", table)
    assert "unknown column of " in done.err
    assert "--labels" not in done.err


# --------------------------------------------------------------------------- resuming


class Killed(Exception):
    """Stands for kill -9: nothing of the program runs after it."""


def interrupt(monkeypatch, step):
    """Let training end within the given step, counted over all epochs."""
    taken = fitting.Fitter._step
    count = iter(range(10_000))

    def dying(self, *batch):
        if next(count) == step:
            raise Killed
        return taken(self, *batch)

    monkeypatch.setattr(fitting.Fitter, "_step", dying)


# 96 spectra, 10 % for validation, in batches of 16: 6 or 5 steps in each of 3 epochs
CASES = {
    "plain": {},
    "dropping": {"network": DROPPING, **VARIED},
    "no average": {"average": 0.0, "optimizer": "adam", "schedule": "restarts"},
    "members": {"members": 2, "network": DROPPING},
    "patience": {"members": 2, "patience": 1, "epochs": 4, "learning_rate": 0.3},
}


@pytest.mark.parametrize("name", CASES)
def test_resumed_is_the_same_as_uninterrupted(here, table, monkeypatch, name):
    settings = config(validation=0.2, **CASES[name])
    whole = training.train([table], here / "whole.safetensors", settings)
    if name == "patience":
        assert len(whole.training["history"]) < 8, "it should stop early"
    output = here / "parts.safetensors"
    kills = 0
    for step in (2, 7, 6, 13, 6, 12):  # each counted from where the last one ended
        with monkeypatch.context() as patch:
            interrupt(patch, step)
            try:
                model = training.train([table], output, settings, resume=True)
                break
            except Killed:
                kills += 1
    else:
        model = training.train([table], output, settings, resume=True)
    assert kills > 1
    assert_same(here / "whole.safetensors", output)
    timeless = [
        [(e["member"], e["epoch"], e["train_loss"]) for e in m.training["history"]]
        for m in (whole, model)
    ]
    assert timeless[0] == timeless[1]
    assert not [p for p in here.iterdir() if p.name.startswith(".")]
    assert training.train(
        [table], output, settings, resume=True
    ).sha256  # nothing to do


def killed(arguments, cwd, moment):
    """Start the program, and kill it as soon as `moment()` is true."""
    words, environment = program(*arguments)
    process = subprocess.Popen(words, env=environment, cwd=cwd, stderr=subprocess.PIPE)
    limit = time.monotonic() + 60
    while not moment():
        assert process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < limit
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()
    assert process.returncode == -signal.SIGKILL


def test_killed_program_resumes(here, table, stellar):
    settings = trainingtables.options(epochs=12, network=DROPPING, **VARIED, members=2)
    command = ["train", table, "-o", "parts.safetensors", *settings]
    state = here / ".parts.safetensors.state"
    killed(command, here, state.exists)
    first = state.read_bytes()
    killed([*command, "--resume"], here, lambda: state.read_bytes() != first)
    assert stellar(*command, "--resume", "-q").status == 0
    whole = [*command[:3], "whole.safetensors", *command[4:]]
    assert stellar(*whole, "-q").status == 0
    assert_same("whole.safetensors", "parts.safetensors")


def test_killed_sweep_resumes(here, table, stellar, monkeypatch):
    words = [*trainingtables.options(), "--seeds", "2", "--grid", "noise=0,1", "-q"]
    assert stellar("train", table, "-o", "whole.safetensors", *words).status == 0
    for step in (2, 25, 33):  # in the first run, the second, and after a finished one
        with monkeypatch.context() as patch:
            interrupt(patch, step)
            with pytest.raises(Killed):
                stellar("train", table, "-o", "parts.safetensors", *words, "--resume")
    done = stellar("train", table, "-o", "parts.safetensors", *words, "--resume")
    assert done.status == 0, done.err
    found = sorted(here.glob("whole*.safetensors"))
    assert len(found) == 5
    for path in found:
        assert_same(path, here / path.name.replace("whole", "parts"))
    rows = [catalog.read(name).rows for name in ("whole.runs.csv", "parts.runs.csv")]
    for column in rows[0].dtype.names[1:]:
        assert rows[0][column].tolist() == rows[1][column].tolist()


def test_state_of_another_run_is_refused(here, table, monkeypatch):
    output = here / "m.safetensors"
    interrupt(monkeypatch, 8)
    with pytest.raises(Killed):
        training.train([table], output, config())
    monkeypatch.undo()
    with pytest.raises(UsageError, match="other settings or data"):
        training.train([table], output, config(learning_rate=1e-4), resume=True)
    other = trainingtables.write(here / "table.fits", seed=3)
    with pytest.raises(UsageError, match="other settings or data"):
        training.train([other], output, config(), resume=True)
    state = here / ".m.safetensors.state"
    state.write_bytes(state.read_bytes()[:100])
    with pytest.raises(UsageError, match="is damaged; give --overwrite instead"):
        training.train([table], output, config(), resume=True)
    training.train([table], output, config())
    assert not state.exists()
    with pytest.raises(UsageError, match="nothing to resume"):
        training.train([table], output, config(seed=2), resume=True)


def test_ctrl_c_says_how_to_go_on(here, table, stellar, monkeypatch):
    step = fitting.Fitter._step

    def pressed(self, *batch):
        if self.epoch == 1:
            raise KeyboardInterrupt
        return step(self, *batch)

    command = ["train", table, "-o", "m.safetensors", *trainingtables.options()]
    with monkeypatch.context() as patch:
        patch.setattr(fitting.Fitter, "_step", pressed)
        done = stellar(*command)
    assert done.status == 130
    assert "the same command with --resume goes on" in done.err
    # hours of work are not lost by typing the same again
    again = stellar(*command)
    assert again.status == 2
    assert "unfinished training: network 1, 1 epochs done" in again.err
    assert "--resume to go on with it, --overwrite to start anew" in again.err
    assert "epoch 2/3" in stellar(*command, "--resume").err


def test_ctrl_c_before_the_first_epoch(here, table, stellar, monkeypatch):
    def pressed(self, *batch):
        raise KeyboardInterrupt

    monkeypatch.setattr(fitting.Fitter, "_step", pressed)
    done = stellar("train", table, "-o", "m.safetensors", *trainingtables.options())
    assert done.status == 130
    assert done.err.endswith(
        "no epoch was finished, so there is nothing to go on with.\n"
    )


def test_a_training_that_would_replace_a_model_resumes_too(
    here, table, stellar, monkeypatch
):
    command = ["train", table, "-o", "m.safetensors", *trainingtables.options()]
    assert stellar(*command).status == 0
    longer = [*command, "--set", "seed=2", "--overwrite"]
    with monkeypatch.context() as patch:
        interrupt(patch, 8)
        with pytest.raises(Killed):
            stellar(*longer)
    state = here / ".m.safetensors.state"
    assert state.exists()
    done = stellar(*longer[:-1], "--resume")
    assert (done.status, "epoch 1/3" in done.err) == (0, False), done.err
    assert "epoch 2/3" in done.err
    whole = [*longer[:-1], "-q"]
    whole[3] = "whole.safetensors"
    assert stellar(*whole).status == 0
    assert_same("whole.safetensors", "m.safetensors")


def test_overwriting_says_what_it_drops(here, table, stellar, monkeypatch):
    command = ["train", table, "-o", "m.safetensors", *trainingtables.options()]
    with monkeypatch.context() as patch:
        interrupt(patch, 8)
        with pytest.raises(Killed):
            stellar(*command)
    assert stellar(*command, "--dry-run").status == 0, "it changes nothing"
    done = stellar(*command, "--overwrite")
    assert done.status == 0
    assert "1 epochs done; it is dropped, since --overwrite" in done.err
    assert "epoch 1/3" in done.err


# ------------------------------------------------------------------- several processes


def test_two_processes_have_the_losses_of_one(here):
    random = np.random.default_rng(2)
    logg = random.uniform(1, 5, 90)
    logg[random.random(90) < 0.5] = np.nan
    trainingtables.write(here / "t.fits", size=90, logg=logg)
    training.train(["t.fits"], here / "start.safetensors", config(epochs=1))
    settings = VARIED | {"init": "start.safetensors", "freeze": "trunk.0"}
    settings |= {"patience": 9, "validation": 0.2}
    options = trainingtables.options(**settings)
    words, environment = program("train", "t.fits", "-o", "two.safetensors", *options)
    words[1:1] = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment["STELLAR_LOG"] = "two.log"  # torchrun takes --log for its own
    done = subprocess.run(words, env=environment, capture_output=True, timeout=90)
    err = done.stderr.decode()
    assert done.returncode == 0, err
    assert err.count("epoch 1/3") == 1, "only one process reports"
    assert "destroy_process_group" not in err
    one = training.train(
        ["t.fits"],
        here / "one.safetensors",
        config(**settings),
    )
    two = checkpoint.load("two.safetensors")
    for a, b in zip(one.training["history"], two.training["history"], strict=True):
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-5, abs=1e-5)
        assert a["validation_loss"] == pytest.approx(b["validation_loss"], abs=1e-5)
        assert a["mae"] == pytest.approx(b["mae"], rel=1e-4)
    logged = [json.loads(line) for line in Path("two.log").read_text().splitlines()]
    assert [e["epoch"] for e in logged if e["message"] == "epoch"] == [1, 2, 3]


def test_too_few_spectra_for_the_processes():
    assert fitting.count_steps(100, 16, 2) == 7
    assert fitting.count_steps(97, 16, 2) == 6
    assert fitting.count_steps(1, 16, 1) == 1
    with pytest.raises(UsageError, match="batches of 3 spectra can't be shared by 4"):
        fitting.count_steps(3, 16, 4)


# ------------------------------------------------------------------------------ sweeps


def test_a_grid_of_one_value_is_a_grid(here, table, stellar):
    words = [*trainingtables.options(epochs=1), "--grid", "noise=0.5"]
    done = stellar("train", table, "-o", "g.safetensors", *words)
    assert done.status == 0, done.err
    assert catalog.read("g.runs.csv").rows["noise"].tolist() == [0.5]
    model = checkpoint.load("g.noise0.5.safetensors")
    assert model.training["config"]["noise"] == 0.5


def test_sweep_of_grid_and_folds(here, table, stellar):
    words = trainingtables.options(epochs=2, validation=0.3)
    grid = "network.widths=[4,8],[8,16]"
    done = stellar(
        "train", table, "-o", "g.safetensors", *words, "--folds", "2", "--grid", grid
    )
    assert done.status == 0, done.err
    outcomes = catalog.read("g.runs.csv").rows
    assert outcomes["network.widths"].tolist() == ["4_8", "4_8", "8_16", "8_16"]
    assert outcomes["fold"].tolist() == [0, 1, 0, 1]
    assert outcomes["test_teff_n"].sum() == 2 * 96  # every row is tested on once
    assert "mean ± standard deviation of 2 runs" in done.err
    best = checkpoint.load("g.safetensors")
    assert best.sha256 in {
        checkpoint.load(str(path)).sha256 for path in here.glob("g.widths*.safetensors")
    }
    for ending in (".png", ".split.fits"):
        assert (here / f"g{ending}").exists()


def test_seeds_share_the_split_and_nothing_else(here, table, stellar):
    words = trainingtables.options(epochs=1)
    done = stellar("train", table, "-o", "s.safetensors", *words, "--seeds", "2", "-q")
    assert done.status == 0, done.err
    splits = [catalog.read(f"s.repeat{n}.split.fits").rows for n in range(2)]
    assert (splits[0] == splits[1]).all()
    a, b = (weights(f"s.repeat{n}.safetensors") for n in range(2))
    assert not np.array_equal(a["member0.head.weight"], b["member0.head.weight"])


# ------------------------------------------------------------------------ the command


def test_precedence_of_settings(here, table, stellar):
    Path("c.yaml").write_text("epochs: 9\nseed: 8\nbatch_size: 7\nloss: mae\n")
    words = [*trainingtables.options(epochs=5, batch_size=6), "--epochs", "1"]
    done = stellar("train", table, "-o", "m.safetensors", "-c", "c.yaml", *words)
    assert done.status == 0, done.err
    found = checkpoint.load("m.safetensors").training["config"]
    assert [found[k] for k in ("epochs", "batch_size", "seed", "loss")] == [
        1,
        6,
        8,
        "mae",
    ]


def test_preset_of_a_paper(here, table, stellar):
    words = ("--preset", "paper", "--model", "scanet", "--dry-run", "--target", "teff")
    Path("c.yaml").write_text("model: scanet\n")
    reached = stellar("train", table, "-o", "m.safetensors", *words)
    assert "preset" not in reached.err
    done = stellar("train", table, "-o", "m.safetensors", "--preset", "paper")
    assert "Valid: scanet" in done.err
    done = stellar("train", table, "-o", "m.safetensors", "--preset", "papa")
    assert "Did you mean 'paper'" in done.err


def test_dry_run_prints_the_plan_and_writes_nothing(here, table, stellar):
    words = trainingtables.options(test=0.2, members=2)
    done = stellar("train", table, "-o", "m.safetensors", *words, "--dry-run")
    assert done.status == 0, done.err
    for part in ("test: ", "stars: ", "teff: ", "parameters", "multiply-adds", "MB"):
        assert part in done.err
    assert "1 x 2 networks, 3 epochs" in done.err
    assert not list(here.iterdir())


def test_labels_of_a_catalogue(here, stellar):
    path = trainingtables.write("t.fits")
    rows = catalog.read(f"{path}[SPECTRA]").rows
    labels = AstropyTable({"objid": rows["objid"], "age": rows["logg"] * 2.0})
    labels["plan2"] = [f"p{n % 5}" for n in range(96)]
    labels[:60].write("labels.fits")
    words = [*trainingtables.options(epochs=1, target="age,teff"), "--group", "plan2"]
    words += ["--select", "age > 3", "--labels", "labels.fits"]
    done = stellar("train", path, "-o", "m.safetensors", *words)
    assert done.status == 0, done.err
    model = checkpoint.load("m.safetensors")
    assert sum(model.training["spectra"].values()) == (labels["age"][:60] > 3).sum()
    assert model.labels[0].trained[0] > 3


def test_raw_files_are_prepared_on_the_fly(here, stellar):
    for n in range(12):
        flux, ivar = surveyfiles.star(surveyfiles.grid(), noise=0.01, seed=n)
        surveyfiles.lamost_image(f"s{n}.fits", flux=flux, ivar=ivar, OBSID=n + 1)
    labels = AstropyTable(
        {"obsid": np.arange(1, 13), "teff": np.linspace(4e3, 6e3, 12)}
    )
    labels.write("labels.fits")
    Path("r.yaml").write_text(
        "steps:\n- resample: {grids: [{kind: log10, start: 4910.0, step: 5.0e-4, "
        "pixels: 64}]}\n- continuum: {method: smooth, width: 100.0}\n"
    )
    words = [
        *trainingtables.options(epochs=1, target="teff"),
        "--labels",
        "labels.fits",
    ]
    raw = [f"s{n}.fits" for n in range(12)]
    done = stellar("train", *raw, "-o", "m.safetensors", "-r", "r.yaml", *words)
    assert done.status == 0, done.err
    assert sum(checkpoint.load("m.safetensors").training["spectra"].values()) == 12
    assert not [path.name for path in here.iterdir() if path.name.startswith(".")]


def test_what_is_written_beside_the_model(here, table, stellar):
    command = ["train", table, "-o", "m.safetensors", *trainingtables.options()]
    done = stellar(*command, "--log", "log", "--set", "test=0.3")
    assert done.status == 0, done.err
    split = catalog.read("m.split.fits").rows
    data = training.dataset.load([table], config(test=0.3))
    assert split["objid"].astype(str).tolist() == data.objid.tolist()
    assert split["part"].astype(str).tolist() == data.part.tolist()
    entries = [json.loads(line) for line in Path("log").read_text().splitlines()]
    epochs = [entry for entry in entries if entry["message"] == "epoch"]
    assert [entry["epoch"] for entry in epochs] == [1, 2, 3]
    assert epochs[0].keys() >= {"train_loss", "mae", "learning_rate", "rate"}
    refused = stellar(*command)
    assert refused.status == 2
    assert "'m.safetensors', 'm.split.fits', 'm.png' exist" in refused.err
    assert stellar(*command, "--overwrite", "-q").err == ""


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        (["-o", "none/m.safetensors"], 2, "no directory none"),
        (["-o", "m.pt"], 2, "give -o m.safetensors"),
        (["--target", "tef"], 2, "Did you mean 'teff'"),
        (["--target", "objid"], 2, "isn't one number per spectrum"),
        (["--set", "epoch=3"], 2, "Did you mean 'epochs'"),
        (["--set", "network.width=3"], 2, "Did you mean 'widths'"),
        (["--select", "teff > 1e6"], 2, "no spectrum is left to train on"),
        (["--select", "plan > 3"], 2, "mixes text and numbers"),
        (["--select", "teff >"], 2, "can't be read at character"),
        (["--set", "network.stem=7"], 2, "64 pixels are not divisible"),
        (["--grid", "nois=1,2"], 2, "Did you mean 'noise'"),
        (["--seeds", "0"], 2, "--seeds must be at least 1"),
    ],
)
def test_mistakes_are_explained(here, table, stellar, words, status, text):
    output = [] if "-o" in words else ["-o", "m.safetensors"]
    done = stellar("train", table, *output, *trainingtables.options(), *words)
    assert done.status == status, done.err
    assert text in done.err
    assert not list(here.iterdir())


def test_impossible_labels_are_refused_wherever_they_are(here):
    teff = np.full(96, 5000.0)
    data = training.dataset.load([trainingtables.write(here / "a.fits")], config())
    held = data.index("validation")[0]
    teff[held] = -9999
    path = trainingtables.write(here / "t.fits", teff=teff)
    with pytest.raises(
        UsageError, match="outside 1000 to 200000 K, the first is -9999"
    ):
        training.train([path], here / "m.safetensors", config())


def test_divergence_is_explained(here, table):
    wild = config(learning_rate=1e30, clip=0.0, warmup=0.0, optimizer="adam")
    with pytest.raises(StellarError, match=r"the loss is .* in epoch \d of 3.*Lower"):
        training.train([table], here / "m.safetensors", wild)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_running_out_of_memory_is_explained(here, table, monkeypatch, error):
    def full(self, *batch):
        raise error

    monkeypatch.setattr(fitting.Fitter, "_step", full)
    with pytest.raises(StellarError, match=r"batch_size 16. Lower it .*batch_size=8"):
        training.train([table], here / "m.safetensors", config())


def test_a_full_disk_is_explained(here, table, monkeypatch):
    import safetensors.torch

    def full(*arguments, **options):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(StellarError, match="No space left"):
        training.train([table], here / "m.safetensors", config())


# ---------------------------------------------------------------------------- schedule


def test_schedules():
    one = config(schedule="cosine", warmup=0.1, epochs=10)
    rates = [fitting.rate_factor(one, step, 10) for step in range(100)]
    assert rates[:10] == pytest.approx(np.linspace(0.1, 1, 10))
    assert rates[10] == 1
    assert rates[55] == pytest.approx(0.5)
    assert rates[99] < 1e-3
    two = config(schedule="restarts", restart_epochs=2, warmup=0.0, epochs=10)
    rates = [fitting.rate_factor(two, step, 10) for step in range(100)]
    assert rates[20] == rates[40] == 1
    assert rates[19] < 0.01
    assert rates[10] == pytest.approx(0.5, abs=1e-4)


def test_running_mean_of_weights():
    network = nn.Linear(1, 1)
    nn.init.constant_(network.weight, 1.0)
    mean = fitting.Average(network, 0.5)
    nn.init.constant_(network.weight, 2.0)
    mean.update(network)
    first = 1 / 11  # the first steps weigh more than the decay says
    assert mean.network.weight.item() == pytest.approx(first * 1 + (1 - first) * 2)
    assert fitting.Average(network, 0.0).network is network
