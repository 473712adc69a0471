"""Calibration: errors as large as the residuals, at low S/N as at high."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import trainingtables

from stellarcli import calibration, checkpoint, dataset, feeding, labels
from stellarcli.settings import TrainConfig

RANGES = {"teff": (4000.0, 7000.0), "logg": (1.0, 5.0)}
ROWS = 6000


def small_model(**changes):
    fields = {
        "name": "small",
        "architecture": "resnet1d",
        "config": {},
        "pixels": 8,
        "labels": [labels.get(n).fitted(np.linspace(*r, 9)) for n, r in RANGES.items()],
        "recipe": None,
        "wavelength": np.arange(8.0),
    }
    return checkpoint.Model(**(fields | changes))


def judged(slope, rows=ROWS):
    """Predictions whose errors are too small by 1.5 (S/N / 50)**slope."""
    rng = np.random.default_rng(3)
    snr = np.exp(rng.uniform(np.log(10), np.log(300), rows))
    ivar = np.repeat(snr[:, None] ** 2, 8, axis=1)
    ivar[:, 3] = 0  # masked pixels don't count
    model = small_model()
    mean = rng.normal(0, 0.3, (rows, 2))
    error = np.full((rows, 2), 0.1)
    off = error * 1.5 * (snr[:, None] / 50) ** slope * rng.standard_normal((rows, 2))
    truth = [label.decode((mean + off)[:, i]) for i, label in enumerate(model.labels)]
    decoded = [
        (label.decode(mean[:, i]), label.decode_error(mean[:, i], error[:, i]))
        for i, label in enumerate(model.labels)
    ]
    value, error = (np.stack(columns, axis=1) for columns in zip(*decoded, strict=True))
    snr = calibration.signal_to_noise(ivar)
    truth = np.stack(truth, axis=1)
    nowhere = np.full((rows, 3), np.nan)
    same = np.ones(rows, bool), np.full(rows, "one")
    return model, calibration.Judged(value, error, truth, snr, nowhere, *same), ivar


def test_signal_to_noise_is_that_of_the_good_pixels():
    ivar = np.array([[400.0, 0, 400, 100], [0, 0, 0, 0]])
    np.testing.assert_allclose(
        calibration.signal_to_noise(ivar), [(20 + 20 + 10) / 3, 0]
    )


def test_errors_are_right_at_every_signal_to_noise():
    model, found, ivar = judged(slope=-0.4)
    calibration.calibrate(model, found)
    np.testing.assert_allclose(model.error_scale, 1.5, rtol=0.05)
    np.testing.assert_allclose(model.error_slope, -0.4, atol=0.05)
    factors = calibration.error_factors(model, ivar)
    off = np.abs(found.value - found.truth)
    for low, high in ((10, 25), (25, 50), (50, 100), (100, 300)):
        rows = (found.snr > low) & (found.snr < high)
        within = (off < found.error * factors)[rows].mean(axis=0)
        assert ((within > 0.65) & (within < 0.72)).all()


def test_few_rows_give_one_factor():
    model, found, ivar = judged(slope=-0.4, rows=60)
    calibration.calibrate(model, found)
    assert model.error_slope == [0.0, 0.0]
    factors = calibration.error_factors(model, ivar)
    within = np.abs(found.value - found.truth) < found.error * factors
    assert (np.abs(within.mean(axis=0) - 0.68) < 0.03).all()


def test_beyond_the_judged_range_the_factor_stays():
    model = small_model(error_scale=[2.0, 1.0], error_slope=[-0.5, 0.0])
    model.limits = {"snr": [10.0, 200.0]}
    ivar = np.array([[1.0], [100.0], [2500.0], [1e12], [0.0]]) * np.ones(8)
    factors = calibration.error_factors(model, ivar)
    wanted = 2 * (np.array([10, 10, 50, 200, 10]) / 50) ** -0.5
    np.testing.assert_allclose(factors[:, 0], wanted)
    np.testing.assert_allclose(factors[:, 1], 1)


class Mean(torch.nn.Module):
    """Says that the label is the mean flux, with one error for all spectra."""

    def __init__(self, cut):
        super().__init__()
        self.cut, self.trunk = cut, torch.nn.Identity()
        self.one = torch.nn.Parameter(torch.ones(1))

    def forward(self, flux, ivar):
        good = ivar > 0
        mean = torch.where(good, flux, 0).sum(1) / good.sum(1).clamp_min(1)
        return mean[:, None], torch.full((len(mean), 1), 2 * np.log(0.01))


@pytest.mark.parametrize("cut", [0.0, 0.4])
def test_networks_of_stretches_are_judged_by_stretches_too(tmp_path, cut):
    """Half the pixels, errors 1.4 times as large: the network says nothing of it."""
    path = trainingtables.write(tmp_path / "t.fits", size=400)
    settings = TrainConfig.resolve({"target": "logg", "validation": 0.5})
    data = dataset.load([path], settings)
    flux, ivar = data.spectra(np.arange(400))
    flux += np.random.default_rng(2).normal(0, 0.2, flux.shape).astype("f4")
    good = ivar > 0
    data.spectra = lambda index: (flux[index], ivar[index])
    data.feed = lambda index: {"flux": flux[index], "ivar": ivar[index]}
    held = data.index("validation")
    label = labels.get("logg")  # in its own unit
    unit = replace(small_model(), labels=[label], pixels=flux.shape[1])
    # the truth: the mean without noise, of all pixels
    clean = (flux * good).sum(1) / good.sum(1)
    off = np.random.default_rng(3).normal(0, 0.01, 400)
    data.labels = label.decode(clean + off)[:, None]
    calibration.finish(unit, [Mean(cut)], data)
    scale = unit.error_scale[0]
    if cut:  # nearly all are stretches, and noise has its say
        assert 1.5 < scale < 6
    else:
        assert 0.85 < scale < 1.15
    # figures of merit stay those of whole spectra
    assert unit.training["metrics"]["logg"]["mae"] < 0.012
    assert held.size > calibration.ENOUGH


class Blue(torch.nn.Module):
    """Says that the label is the mean flux, with one error wherever it comes from."""

    inputs = ("flux", "ivar", "wavelength")

    def __init__(self):
        super().__init__()
        self.cut, self.trunk = 0.4, torch.nn.Identity()
        self.one = torch.nn.Parameter(torch.ones(1))

    def forward(self, flux, ivar, wavelength):
        good = ivar > 0
        mean = torch.where(good, flux, 0).sum(1) / good.sum(1).clamp_min(1)
        return mean[:, None], torch.full((len(mean), 1), 2 * np.log(0.01))


def stretched(data, seed):
    """Give a data set spectra that say what the label is, the redder the less."""
    rng, size, pixels = np.random.default_rng(seed), len(data), 200
    wavelength = np.geomspace(4000, 8000, pixels)
    label = labels.get("logg")
    truth = rng.uniform(1, 5, size)
    flux = np.repeat(label.encode(truth)[:, None], pixels, axis=1)
    flux += rng.normal(0, 0.01, (size, 1))
    flux += rng.normal(0, 0.06, (size, 1)) * np.linspace(0, 1, pixels)
    flux = flux.astype("f4")
    ivar = np.full(flux.shape, 2500, "f4")
    feed = {
        "flux": flux,
        "ivar": ivar,
        "wavelength": np.broadcast_to(wavelength, flux.shape),
    }
    data.labels, data.inputs = truth[:, None], tuple(feed)
    data.spectra = lambda index: (flux[index], ivar[index])
    data.feed = lambda index: feeding.taken(feed, index)
    return data


def finished(tmp_path, network, size=1200, validation=0.2, **columns):
    """Calibrate a model of log g on spectra of `stretched`; it, and these."""
    path = trainingtables.write(tmp_path / "t.fits", size=size, **columns)
    settings = TrainConfig.resolve({"target": "logg", "validation": validation})
    data = stretched(dataset.load([path], settings), seed=1)
    unit = replace(small_model(), labels=[labels.get("logg")], wavelength=None)
    calibration.finish(unit, [network], data)
    return unit, data


def test_errors_are_right_wherever_a_spectrum_lies(tmp_path):
    unit, data = finished(tmp_path, Blue())
    assert unit.part("coverage")["levels"].shape[0] == 1
    # of other stars
    fresh = stretched(data, seed=2).feed(np.arange(1200))
    truth, label, sizes = data.labels[:, 0], unit.labels[0], []
    for low, high in ((0.0, 0.4), (0.3, 0.7), (0.6, 1.0), (0.0, 1.0)):
        ends = np.full(1200, low), np.full(1200, high)
        feed = feeding.stretches(fresh, *ends)
        mean = Blue()(*feeding.tensors(feed).values())[0].detach().numpy()
        factors = calibration.error_factors(unit, feed["ivar"], feed["wavelength"])
        error = label.decode_error(mean, 0.01 * factors)[:, 0]
        off = np.abs(label.decode(mean)[:, 0] - truth)
        assert (off < error).mean() == pytest.approx(0.683, abs=0.06), (low, high)
        sizes.append(np.median(error))
    blue, between, red, whole = sizes
    assert blue < whole < red
    assert blue < between < red


@pytest.mark.parametrize(("others", "tables"), [(600, 2), (20, 1)])
def test_surveys_have_tables_of_their_own_if_they_are_large(tmp_path, others, tables):
    survey = np.where(np.arange(1200) < others, "one", "other")
    unit, _ = finished(tmp_path, Blue(), survey=survey)
    table = unit.part("coverage")
    assert table["levels"].shape[:2] == (1, tables)
    assert len(table["width"]) == tables


class Picky(Blue):
    """Needs spectra, as networks do that look for the longest of a batch."""

    def forward(self, flux, ivar, wavelength):
        assert len(flux)
        return super().forward(flux, ivar, wavelength)


def test_without_validation_rows_training_rows_make_the_table(tmp_path):
    unit, _ = finished(tmp_path, Picky(), size=100, validation=0)
    assert np.ptp(unit.part("coverage")["levels"]) > 0.1


def test_folds_level_a_table_and_keep_it(tmp_path):
    unit, data = finished(tmp_path, Blue())
    table = unit.part("coverage")["levels"].copy()
    index = np.arange(1200)
    judged = calibration.judge_rows(unit, [Blue()], stretched(data, seed=3), index)
    calibration.calibrate(unit, judged)  # of whole spectra alone
    np.testing.assert_array_equal(unit.part("coverage")["levels"], table)
    figures = calibration.metrics_of(unit, judged)["logg"]
    assert figures["within1"] == pytest.approx(0.683, abs=0.01)


def test_files_without_slopes_keep_their_one_factor(model):
    old = checkpoint.load(model)
    old = replace(old, error_scale=[2.0, 3.0, 4.0], error_slope=[])
    factors = calibration.error_factors(old, np.ones((2, 8)))
    np.testing.assert_array_equal(factors, [[2, 3, 4]] * 2)


def test_the_file_format_before_still_loads():
    shipped = checkpoint.load("default")
    assert len(calibration.error_factors(shipped, np.ones((1, 8)))[0]) == 3
