"""Ensembles: the paper's mean and variance, dropout, errors that know the noise."""

import numpy as np
import pytest
import torch

from stellarcli import calibration, catalog, checkpoint, models
from stellarcli.errors import UsageError
from stellarcli.prediction import PASSES, Predictor


def test_the_mixture_is_that_of_the_paper():
    rng = np.random.default_rng(1)
    means, variances = rng.normal(3, 2, (6, 5, 4)), rng.uniform(0.1, 2, (6, 5, 4))
    mean, variance = calibration.combine(list(means), list(np.log(variances)))
    expected = sum(means) / 6  # eq. 4
    np.testing.assert_allclose(mean, expected)
    squares = sum(s + m**2 for s, m in zip(variances, means, strict=True)) / 6
    np.testing.assert_allclose(variance, squares - expected**2)  # eq. 5


def test_two_members_by_hand():
    mean, variance = calibration.combine(
        [np.array([[1.0]]), np.array([[3.0]])], [np.log([[0.5]]), np.log([[1.5]])]
    )
    assert mean == 2
    assert variance == pytest.approx((0.5 + 1 + 1.5 + 9) / 2 - 4)


@pytest.fixture
def ensemble(changed_model, model):
    """File of three small RDN on the pixels of the small model."""
    small = {"width": 8, "growth": 8, "places": 4, "hidden": [16, 8], "noise": True}
    state = {
        key: value
        for key, value in checkpoint.load(model).state.items()
        if key.startswith("novelty")
    }
    for member in range(3):
        torch.manual_seed(member)
        network = models.build("rdn", pixels=384, labels=3, **small)
        state |= {
            f"member{member}.{k}": v.numpy() for k, v in network.state_dict().items()
        }
    return changed_model(architecture="rdn", config=small, state=state)


def inputs():
    rng = np.random.default_rng(2)
    flux = rng.uniform(0, 1, (9, 384)).astype(np.float32)
    return flux, np.full_like(flux, 400)


def test_the_predictor_gives_the_mixture(ensemble):
    loaded = checkpoint.load(ensemble)
    flux, ivar = inputs()
    mean, variance, _ = Predictor(loaded).predict(flux, ivar)
    tensors = torch.from_numpy(flux), torch.from_numpy(ivar)
    with torch.no_grad():
        outputs = [network(*tensors) for network in loaded.networks()]
    mu = np.array([m.numpy() for m, _ in outputs], dtype=float)
    sigma = np.array([v.exp().numpy() for _, v in outputs], dtype=float)
    np.testing.assert_allclose(mean, mu.mean(0), rtol=1e-4, atol=1e-5)
    paper = (sigma + mu**2).mean(0) - mu.mean(0) ** 2
    np.testing.assert_allclose(variance, paper, rtol=1e-3, atol=1e-5)


def test_dropout_makes_members_of_one_network(ensemble):
    loaded = checkpoint.load(ensemble)
    flux, ivar = inputs()
    calm, dropped = Predictor(loaded), Predictor(loaded, dropout=0.3)
    quiet = calm.predict(flux, ivar)
    first = dropped.predict(flux, ivar)
    assert first[2].mean() > quiet[2].mean(), "votes differ more"
    for a, b in zip(first, dropped.predict(flux, ivar), strict=True):
        np.testing.assert_array_equal(a, b)
    seen = []
    dropped.networks[0].register_forward_hook(lambda *_: seen.append(1))
    before = torch.random.get_rng_state()
    dropped.predict(flux, ivar)
    assert len(seen) == PASSES
    assert torch.equal(before, torch.random.get_rng_state())


def test_dropout_is_an_option_of_predict(stellar, stars, model, ensemble):
    def errors(*options):
        name = f"{len(options)}.fits"
        done = stellar("predict", *stars, "-m", ensemble, "-o", name, "-q", *options)
        assert done.status == 0
        return catalog.read(name).rows["teff_err"]

    assert not np.array_equal(errors(), errors("--dropout", "0.2"))
    refused = stellar("predict", *stars, "-m", model, "-o", "n.fits", "--dropout", "1")
    assert refused.status == 2
    assert "below 1" in refused.err


def test_a_model_without_dropout_says_so(model, monkeypatch):
    loaded = checkpoint.load(model)
    plain = torch.nn.Sequential(torch.nn.Linear(2, 2))
    monkeypatch.setattr(checkpoint.Model, "networks", lambda _: [plain])
    with pytest.raises(UsageError, match="no dropout layers"):
        Predictor(loaded, dropout=0.1)
