"""Spectra that are simulated while a network learns from them."""

import numpy as np
import pytest

from stellarcli import checkpoint, dataset, preprocess
from stellarcli.errors import UsageError
from stellarcli.settings import TrainConfig
from stellarcli.streams import GROUP, Stream
from stellarcli.surveys.atmospheres import LABELS
from stellarcli.surveys.hband import ApogeeEmulator
from stellarcli.surveys.instruments import INSTRUMENTS, Sky

RECIPE = preprocess.get("spectrafm")
NAMES = ("flux", "ivar", "wavelength", "extra")
SEEN = {  # Å at rest, within the velocities' errors
    "lamost-lrs": (3695, 9105),
    "lamost-mrs": (4920, 6890),
    "apogee": (15160, 16945),
    "miles": (3535, 7420),
    "optical": (3680, 9120),
}


@pytest.fixture(scope="module")
def sky():
    return Sky(pool=3)


@pytest.fixture(scope="module", params=INSTRUMENTS)
def stream(request, sky):
    return Stream(request.param, 40, RECIPE, sky, seed=5)


def test_spectra_are_prepared_and_lie_where_the_instrument_looks(stream):
    feed = stream.feed(np.arange(6), NAMES)
    good = feed["ivar"] > 0
    assert good.mean(axis=1).min() > 0.5
    assert abs(feed["flux"][good].mean() - 1) < 0.05
    assert 0.02 < feed["flux"][good].std() < 0.3
    low, high = SEEN[stream.name]
    seen = feed["wavelength"][good]
    assert low < seen.min() < seen.max() < high
    assert feed["flux"].shape[1] <= stream.pixels


def test_noise_is_what_the_inverse_variance_says(stream):
    """Neighbouring pixels differ by noise and little else, where there are many."""
    if stream.name == "optical":
        pytest.skip("its pixels are as wide as its lines")
    feed = stream.feed(np.arange(8), NAMES)
    good = (feed["ivar"][:, 1:] > 0) & (feed["ivar"][:, :-1] > 0)
    step = np.abs(np.diff(feed["flux"], axis=1)) * np.sqrt(feed["ivar"][:, 1:])
    assert 0.3 < np.median(step[good]) < 2.5  # lines, and correlated noise


def test_metal_poor_stars_are_more_frequent_than_in_the_sky(sky):
    """Of the instruments that draw from all of the diagram, and all their own way."""
    for name in ("lamost-lrs", "miles", "optical"):
        instrument = INSTRUMENTS[name](sky)
        drawn = instrument.draw(2000, np.random.default_rng(1))
        feh = drawn[:, instrument.names.index("feh")]
        assert 0.3 < (feh < -1).mean() < 0.45
        assert -2.5 <= feh.min() < -2.3
        half = [(part < -1).mean() for part in np.array_split(feh, 2)]
        assert abs(half[0] - half[1]) < 0.08  # in no order
        assert instrument.draw(1, np.random.default_rng(1)).shape == (1, 3)


def test_an_epoch_has_stars_of_its_own_and_the_kept_ones_stay(stream):
    kept = np.arange(stream.size, len(stream))
    stream.redraw(3)
    rows = np.array([4, 1, 30])
    first, labels = stream.feed(rows, NAMES), stream.column("teff").copy()
    held = stream.feed(kept, NAMES)
    stream.redraw(4)
    other = stream.feed(rows, NAMES)
    assert not np.array_equal(first["flux"], other["flux"])
    again = stream.feed(kept[::-1], NAMES)
    np.testing.assert_array_equal(held["flux"], again["flux"][::-1])
    np.testing.assert_array_equal(labels[kept], stream.column("teff")[kept])
    stream.redraw(3)
    repeated = stream.feed(rows, NAMES)
    for name in NAMES:
        np.testing.assert_array_equal(first[name], repeated[name])
    assert (stream.column("split") == "validation").sum() == len(kept) >= GROUP


def test_labels_of_other_instruments_are_missing(sky):
    settings = {"target": "teff,feh,mg_h", "pool": 3}
    settings |= {"stream": {"lamost-mrs": 20, "apogee": 20}, "model": "spectrafm"}
    data = dataset.load(
        [], TrainConfig.resolve(settings), inputs=("flux", "ivar", "wavelength")
    )
    known = np.isfinite(data.labels)
    assert known[:, :2].all()
    np.testing.assert_array_equal(known[:, 2], data.table == 0)
    before = data.labels.copy()
    assert data.redraw(1)
    train = data.part == "train"
    assert (before[train] != data.labels[train])[:, :2].mean() > 0.5
    np.testing.assert_array_equal(before[~train], data.labels[~train])


def test_depths_follow_metallicity_in_the_h_band():
    emulator = ApogeeEmulator.load()
    poor = np.array([[5500.0, 4.5, -0.7, 0.0, 5.0]])
    rich = np.array([[5500.0, 4.5, 0.3, 0.0, 5.0]])
    assert len(emulator.segments) == 3
    assert emulator.spectrum(rich).mean() < emulator.spectrum(poor).mean() - 0.01
    with pytest.raises(UsageError, match="teff 4200:6996"):
        emulator.spectrum(np.array([[8000.0, 4.5, 0.0, 0.0, 5.0]]))


def test_medium_resolution_has_its_abundances(sky):
    stream = Stream("lamost-mrs", 4, RECIPE, sky, seed=5)
    assert set(LABELS) <= set(stream.names)
    extra = stream.feed(np.arange(2), ("extra",), ["mg_h", "gmag"])["extra"]
    np.testing.assert_allclose(extra[:, 0], stream.column("mg_h")[:2], rtol=1e-6)
    assert np.isnan(extra[:, 1]).all()


def test_unknown_streams_are_named(sky):
    with pytest.raises(UsageError, match="Did you mean 'apogee'"):
        Stream("apogeee", 4, RECIPE, sky, seed=1)
    with pytest.raises(UsageError, match=r"stream\.apogee must be at least 1"):
        Stream("apogee", 0, RECIPE, sky, seed=1)


def test_nothing_to_train_on(stellar):
    done = stellar("train", "-o", "m.safetensors", "-m", "spectrafm")
    assert done.status == 2
    assert "stream.lamost-lrs=5000" in done.err


SMALL = ["network.width=16", "network.rank=4", "network.heads=2", "batch_size=16"]
SMALL += ["network.encoder=[16]", "network.decoder=[16]", "network.context=32"]


def test_training_from_streams_resumes_and_fine_tunes(stellar, here):
    """Three stages, each with --init; the second asks for another label."""
    options = [w for pair in SMALL for w in ("--set", pair)]
    common = ["-m", "spectrafm", "--device", "cpu", "--set", "precision=float32", "-q"]
    sources = ["--set", "stream.apogee=32", "--set", "stream.miles=32"]
    first = stellar(
        *("train", "-o", "a.safetensors", "--epochs", "2", *common, *options, *sources)
    )
    assert first.status == 0, first.err
    model = checkpoint.load("a.safetensors")
    assert model.recipe == RECIPE
    assert model.training["tables"] == ["stream apogee", "stream miles"]
    again = stellar(
        *("train", "-o", "b.safetensors", "--epochs", "1", *common, *sources),
        *("--init", "a.safetensors", "--target", "feh,alpha_fe,teff"),
    )
    assert again.status == 0, again.err
    tuned = checkpoint.load("b.safetensors")
    assert [label.name for label in tuned.labels] == ["feh", "alpha_fe", "teff"]
    old = {label.name: label for label in model.labels}
    assert tuned.labels[0].center == old["feh"].center
    assert tuned.labels[2].scale == old["teff"].scale
