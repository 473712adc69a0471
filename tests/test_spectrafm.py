"""SpectraFM: sets of tokens, requests, cuts, attention, ranges that it knows."""

import json

import fitsio
import numpy as np
import pytest
import torch

from stellarcli import (
    calibration,
    checkpoint,
    familiarity,
    feeding,
    models,
    prediction,
    preprocess,
    surveys,
)
from stellarcli.catalog import Flag
from stellarcli.errors import UsageError
from stellarcli.models.spectrafm import SpectraFM
from stellarcli.preprocess import Batch
from stellarcli.preprocess.continuum import continuum_smooth
from stellarcli.streams import Stream
from stellarcli.surveys import hband, simulated
from stellarcli.surveys.instruments import Sky

PIXELS = 600
KINDS = {
    "patches": {"rank": 4, "encoder": (16,), "decoder": (16, 16)},
    "pixels": {"tokens": "pixels", "context": PIXELS, "encoder": (16,)},
}


def network(kind="patches", **options):
    torch.manual_seed(0)
    small = {"width": 16, "heads": 2} | KINDS[kind] | options
    return models.build("spectrafm", pixels=PIXELS, labels=3, **small).eval()


def spectra(rows=4, step=2.3e-4, pixels=PIXELS, extra=0, seed=0):
    """Spectra with lines at fixed wavelengths, as tensors that networks are fed."""
    random = np.random.default_rng(seed)
    wavelength = np.tile(5000 * np.exp(step * np.arange(pixels)), (rows, 1))
    places = 5000 * np.exp(random.uniform(0, 0.13, 30))
    depth = random.uniform(0.05, 0.6, (rows, 30))
    width = 4e-4 * places
    shape = np.exp(-0.5 * ((wavelength[..., None] - places) / width) ** 2)
    flux = 1 - (shape * depth[:, None]).sum(2)
    ivar = np.full(flux.shape, 2500.0)
    ivar[:, 50:60] = 0
    arrays = (flux.astype("f4"), ivar.astype("f4"), wavelength)
    return [*map(torch.from_numpy, arrays), torch.full((rows, extra), torch.nan)]


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


# ------------------------------------------------------------------------- sets


def test_the_order_of_pixels_means_nothing(kind):
    fed = spectra()
    order = torch.randperm(PIXELS, generator=torch.Generator().manual_seed(1))
    shuffled = [x[:, order] if x.shape[1] == PIXELS else x for x in fed]
    for one, other in zip(network(kind)(*fed), network(kind)(*shuffled), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_the_order_of_tokens_means_nothing(kind):
    made = network(kind)
    tokens, there, _ = made._tokens(*spectra())
    order = torch.randperm(tokens.shape[1], generator=torch.Generator().manual_seed(1))
    one = made.decode(made.encode(tokens, there), there)
    there = there[:, order]
    other = made.decode(made.encode(tokens[:, order], there), there)
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_what_is_not_there_means_nothing(kind):
    """Padding, masked pixels and their flux leave no trace."""
    flux, ivar, wavelength, extra = spectra()
    expected = network(kind)(flux, ivar, wavelength, extra)
    other = torch.where(ivar > 0, flux, 17.0)
    blank = torch.zeros(len(flux), 40)
    padded = [torch.cat([x, blank], 1) for x in (other, ivar)]
    nowhere = torch.cat([wavelength, blank.double() * torch.nan], 1)
    found = network(kind, **({"context": 640} if kind == "pixels" else {}))(
        *padded, nowhere, extra
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_blank_spectrum_has_finite_values(kind):
    flux, ivar, wavelength, extra = spectra()
    for values in network(kind)(flux, 0 * ivar, wavelength, extra):
        assert torch.isfinite(values).all()


def test_patches_do_not_depend_on_the_sampling():
    """The same lines in pixels half as wide: the same light in every patch."""
    patches = network().tokens
    coarse, fine = spectra(), spectra(step=1.15e-4, pixels=2 * PIXELS)
    for fed in (coarse, fine):
        fed[1] = torch.full_like(fed[0], 2500.0)
    sums = []
    for fed in (coarse, fine):
        light, _, _, cover = patches._gather(*fed[:3])
        inner = (cover == 1).all(0)
        sums.append((light.sum(2), inner))
    inner = sums[0][1] & sums[1][1]
    assert inner.sum() > 20
    one, other = (light[:, inner] for light, _ in sums)
    torch.testing.assert_close(one, other, rtol=0.03, atol=0.02)


def test_training_sees_parts_and_prediction_all(kind):
    made = network(kind, context=12, cut=1.0)
    fed = spectra(rows=64)
    there = made.train()._tokens(*fed)[1]
    assert there.shape[1] <= 12
    if kind == "patches":
        assert there.sum(1).float().std() > 0  # stretches of different lengths
        whole = made.eval()._tokens(*fed)[1]
        assert whole.sum(1).min() > 20
    first, second = (made.train()(*fed)[0] for _ in range(2))
    assert not torch.equal(first, second)
    made.eval()
    assert torch.equal(made(*fed)[0], made(*fed)[0])


def test_stretches_are_as_short_as_wanted():
    """Their lengths are even in the logarithm, down to the shortest."""
    torch.manual_seed(1)
    made = network(cut=0.5, shortest=0.04)
    _, low, high = made._part(torch.zeros(4000, 1)).T
    length = high - low
    assert low.min() >= 0
    assert high.max() <= 1
    whole = length > 0.9999
    assert 0.46 < whole.float().mean() < 0.54
    logs = length[~whole].log() / np.log(0.04)  # 0 to 1
    assert logs.max() <= 1
    assert abs(logs.mean() - 0.5) < 0.03
    assert logs.max() > 0.97


# --------------------------------------------------------- requests and other tokens


def test_other_quantities_are_tokens_that_may_be_missing():
    made = network(extra=("teff", "gmag"))
    known = np.array([[5000.0, 12.0], [6000.0, np.nan], [7000.0, 14.0]], "f4")
    made.acquaint({"extra": known})
    assert made.extra_center.tolist() == [6000, 13]
    flux, ivar, wavelength, nothing = spectra(extra=2)
    without = made(flux, ivar, wavelength, nothing)[0]
    given = nothing.clone()
    given[1, 0] = 6500
    changed = (made(flux, ivar, wavelength, given)[0] - without).abs().amax(1)
    assert changed[1] > 1e-4
    assert changed[[0, 2, 3]].max() < 1e-5


def test_a_spectrum_is_not_needed_where_something_else_is_known():
    made = network(extra=("teff",))
    flux, ivar, wavelength, _ = spectra(extra=1)
    values = [
        made(flux, 0 * ivar, wavelength, torch.full((4, 1), v))[0] for v in (1.0, -1.0)
    ]
    assert (values[0] - values[1]).abs().max() > 1e-4


def test_known_requests_are_kept_when_others_are_asked():
    made = network()
    fresh = SpectraFM.relabelled(
        made.state_dict(), ["teff", "logg", "feh"], ["mg_h", "feh"]
    )
    other = models.build("spectrafm", pixels=9, labels=2, width=16, heads=2)
    assert fresh["requests"].shape == other.requests.shape == (2, 16)
    assert torch.equal(fresh["requests"][1], made.requests[2])


def test_requests_do_not_depend_on_each_other():
    made, fed = network(), spectra()
    whole = made(*fed)[0]
    made.requests.data = made.requests.data[1:2]
    torch.testing.assert_close(made(*fed)[0][:, 0], whole[:, 1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": "words"}, "patches or pixels"),
        ({"norm": "never"}, "before or after"),
        ({"step": 0.01}, "at most patch"),
        ({"reach": (5000, 4000)}, "two wavelengths"),
        ({"heads": (2, 2)}, "2 heads for 3 blocks"),
        ({"width": 18, "heads": 4}, "no multiple of 4 heads"),
        ({"cut": 1.5}, "cut must be 0 to 1 .* not 1.5 and 0.15"),
        ({"shortest": 0.0}, "shortest above 0 .* not 0.4 and 0.0"),
    ],
)
def test_options_that_do_not_go_together(options, message):
    with pytest.raises(UsageError, match=message):
        network(**options)


# ------------------------------------------------------------------------ attention


def test_attention_is_shared_among_good_pixels(kind):
    made, fed = network(kind), spectra()
    found = made.attention(*fed)
    assert found.shape == (4, 3, PIXELS)
    assert (found >= 0).all()
    torch.testing.assert_close(found.sum(2), torch.ones(4, 3), rtol=1e-3, atol=1e-3)
    assert not found[:, :, 50:60].any()


def test_attention_weights_are_those_of_the_network():
    block = network().decoder[0].attention
    x, seen = torch.randn(2, 3, 16), torch.randn(2, 7, 16)
    there = torch.ones(2, 7, dtype=torch.bool)
    there[1, 4:] = False
    weights = block.weights(x, seen, there)
    value = block.pair(seen).chunk(2, 2)[1].unflatten(2, (2, -1)).transpose(1, 2)
    by_hand = block.out((weights @ value).transpose(1, 2).flatten(2))
    torch.testing.assert_close(by_hand, block(x, seen, there))
    assert not weights[1, :, :, 4:].any()


# -------------------------------------------------------------- ranges that are known


def covered(low, high, step, rows=3):
    pixels = int(np.log(high / low) / step)
    wavelength = np.tile(low * np.exp(step * np.arange(pixels)), (rows, 1))
    return {"ivar": np.ones(wavelength.shape, "f4"), "wavelength": wavelength}


def test_a_model_knows_what_it_has_seen():
    seen = familiarity.fit(covered(4000, 7000, 2.3e-4))
    low, high = familiarity.reach(seen)
    assert 3970 < low <= 4000 < 7000 <= high < 7050
    known = [(4000, 7000, 2.3e-4), (5000, 5500, 1.3e-4), (5000, 5500, 4e-4)]
    for where in known:
        assert familiarity.share(covered(*where), seen).min() > 0.98
    for where in [(8000, 9000, 2.3e-4), (5000, 5500, 1e-5), (5000, 5500, 3e-3)]:
        assert familiarity.share(covered(*where), seen).max() < 0.02
    half = familiarity.share(covered(6000, 8167, 2.3e-4), seen)
    np.testing.assert_allclose(half, 0.5, atol=0.03)
    more = familiarity.fit(covered(8000, 9000, 2.3e-4), before=seen)
    assert familiarity.share(covered(8000, 9000, 2.3e-4), more).min() > 0.98
    assert familiarity.share(covered(4500, 5000, 2.3e-4), more).min() > 0.98


# --------------------------------------------------------------------- preprocessing


def native(rows=5, redshift=True):
    """Spectra of one survey at several velocities, on grids of their own."""
    random = np.random.default_rng(3)
    z = random.normal(0, 2e-4, rows) if redshift else np.zeros(rows)
    grid = 4000 * np.exp(2.3e-4 * np.arange(900))
    wavelength = grid / (1 + z[:, None])
    slope = np.polynomial.Polynomial([1, 0.3, -0.2])((wavelength - 4400) / 400)
    flux = slope * (1 + random.normal(0, 0.02, wavelength.shape))
    ivar = np.full(flux.shape, 2500.0, "f4")
    ivar[:, 100:110] = 0
    mask = (ivar == 0).astype("u1")
    segments = tuple([((0, 400), (400, 900))] * rows)
    return Batch(wavelength, flux.astype("f4"), ivar, mask, np.zeros(rows), segments)


def test_a_continuum_in_km_s_is_that_of_each_spectrum_alone():
    batch = native()
    together = continuum_smooth(batch, velocity=6000.0)
    for row in range(len(batch)):
        alone = continuum_smooth(batch.rows(slice(row, row + 1)), velocity=6000.0)
        np.testing.assert_allclose(together[row], alone[0], rtol=1e-4)
    ratio = batch.flux / together
    assert abs(ratio[:, 30:370].mean() - 1) < 0.01
    with pytest.raises(UsageError, match="give velocity"):
        continuum_smooth(batch)


def test_ranges_are_kept_and_the_rest_is_masked():
    batch = preprocess.STEPS["keep"](native(), ranges=[[4100, 4200], [4500, 4600]])
    low, high = batch.wavelength[batch.good].min(), batch.wavelength[batch.good].max()
    assert 4100 <= low < 4101
    assert 4599 < high <= 4600
    assert not batch.ivar[~batch.good].any()
    with pytest.raises(UsageError, match=r"\[5130, 5450\]"):
        preprocess.STEPS["keep"](batch, ranges=[[5000, 4000]])


# ------------------------------------------------------------------------ survey files


def test_simulated_apogee_files_are_read_as_apogee(tmp_path):
    ranges = {"teff": (5000.0, 6000.0)}
    truth = simulated.write_spectra(tmp_path, 3, "apogee", seed=4, ranges=ranges)
    assert {"alpha_fe", "rv"} <= set(truth.dtype.names)
    assert ((truth["teff"] > 5000) & (truth["teff"] < 6000)).all()
    for row in truth:
        spectrum = surveys.read(str(tmp_path / row["file"].decode()))
        assert spectrum.meta.survey == "apogee"
        assert abs(spectrum.meta.rv - row["rv"]) < 2
        assert spectrum.good.sum() > 6900
        emulator = hband.ApogeeEmulator.load()
        labels = [row[name] for name in hband.LABELS[:4]] + [5.0]
        rest = spectrum.wavelength / (1 + spectrum.meta.rv / 299792.458)
        model = emulator.spectrum(np.array([labels]))[0]
        middle = slice(*emulator.segments[1])
        seen = np.interp(emulator.wavelength[middle], rest, spectrum.flux)
        assert np.corrcoef(seen, model[middle])[0, 1] > 0.7
    with pytest.raises(UsageError, match="emulator covers teff=4200"):
        simulated.write_spectra(tmp_path, 1, "apogee", ranges={"teff": (3000, 5000)})


# ------------------------------------------------------------------ the shipped model


@pytest.fixture(scope="module")
def shipped():
    return prediction.Predictor(checkpoint.load("spectrafm"), precision="float32")


@pytest.fixture(scope="module")
def stars():
    """Spectra of two instruments, and their labels."""
    sky = Sky(pool=1)
    streams = [
        Stream(name, 32, preprocess.get("spectrafm"), sky, seed=11)
        for name in ("lamost-lrs", "apogee")
    ]
    names = ("flux", "ivar", "wavelength", "extra")
    feeds = [stream.feed(np.arange(24), names) for stream in streams]
    truth = [
        np.stack([stream.column(n)[:24] for n in ("teff", "logg", "feh")], 1)
        for stream in streams
    ]
    return feeds, truth


def test_the_shipped_model_predicts_two_instruments(shipped, stars):
    """Far better than the spread of the labels, wherever the spectrum lies."""
    for feed, truth in zip(*stars, strict=True):
        mean, _, _ = shipped.predict(**feed)
        assert familiarity.share(feed, shipped.familiar).min() > 0.9
        for n in (0, 2):  # dwarfs of the H band have one log g, nearly
            found = shipped.model.labels[n].decode(mean[:, n])
            off = np.median(np.abs(found - truth[:, n]))
            assert off < 0.5 * np.abs(truth[:, n] - np.median(truth[:, n])).mean()


def calibrated(predictor, feed):
    error = np.sqrt(predictor.predict(**feed)[1])
    pair = feed["ivar"], feed["wavelength"]
    return error * calibration.error_factors(predictor.model, *pair)


@pytest.mark.parametrize("start", [0.0, 0.15, 0.3, 0.45, 0.6])
def test_a_cut_spectrum_has_larger_errors(shipped, stars, start):
    feed = stars[0][0]
    low = np.full(len(feed["ivar"]), start)
    cut = feeding.stretches(feed, low, low + 0.4)
    for errors in (calibrated, lambda model, fed: np.sqrt(model.predict(**fed)[1])):
        whole, part = (errors(shipped, fed) for fed in (feed, cut))
        assert np.isfinite(part).all()
        assert (np.median(part / whole, axis=0) > 1).all()


def test_errors_depend_on_the_place_where_there_are_real_spectra(shipped, stars):
    optical, infrared = stars[0]
    model = shipped.model
    for feed, same in ((optical, False), (infrared, True)):
        plain = calibration.error_factors(model, feed["ivar"])
        found = calibration.error_factors(model, feed["ivar"], feed["wavelength"])
        assert np.allclose(found, plain) == same


def test_spectra_from_elsewhere_are_flagged(stellar, here):
    """A stretch of the infrared that no training spectrum had."""
    for name, low in (("seen", 5000.0), ("unseen", 11000.0)):
        wavelength = low * np.exp(2.3e-4 * np.arange(900))
        flux = 1 + np.random.default_rng(1).normal(0, 0.01, 900)
        rows = np.column_stack([wavelength, flux, np.full(900, 0.01)])
        np.savetxt(f"{name}.txt", rows, header="wavelength flux error (vacuum)")
    done = stellar(
        *("predict", "seen.txt", "unseen.txt", "-o", "o.fits", "-m", "spectrafm"),
        *("--workers", "1", "-q"),
    )
    assert done.status == 0, done.err
    rows = fitsio.read("o.fits", ext=1)
    unlike = (rows["flag"] & Flag.UNLIKE_TRAINING) != 0
    assert unlike.tolist() == [False, True]
    assert np.isfinite(rows["teff"]).all()


def test_attention_is_explained_on_native_sampling(stellar, here):
    simulated.write_spectra(here / "s", 3, seed=8, snr=100.0, compress=False)
    done = stellar(
        *("explain", "s", "-o", "a.fits", "-m", "spectrafm", "--method", "attention"),
        *("--target", "feh", "--figure", "a.png", "--json", "--keep-flagged"),
        *("--workers", "1", "-q", "--each"),
    )
    assert done.status == 0, done.err
    assert list(json.loads(done.out)["labels"]) == ["feh"]
    table = fitsio.read("a.fits", ext=1)
    assert table["feh"].min() >= 0
    np.testing.assert_allclose(table["feh"].sum(), 1, atol=0.02)
    assert (here / "a.png").stat().st_size > 10_000
