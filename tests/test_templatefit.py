"""The template fit: it finds labels, and shares the noise of other fits."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter1d

from stellarcli import checkpoint, labels, models, preprocess, training
from stellarcli.errors import UsageError
from stellarcli.models.resnet1d import ResNet1D
from stellarcli.models.templatefit import TemplateFit
from stellarcli.preprocess import Batch
from stellarcli.settings import TrainConfig
from stellarcli.surveys.emulator import Emulator

RECIPE = preprocess.get("default")
STARS = np.array(
    [
        [5800.0, 4.4, 0.0],
        [6300.0, 4.1, -0.5],
        [4800.0, 2.6, -0.3],
        [5300.0, 4.5, 0.2],
        [7800.0, 4.0, -0.1],
        [5100.0, 3.3, -1.2],
    ]
)
RANGES = {"teff": (4000.0, 9000.0), "logg": (1.0, 5.0), "feh": (-2.5, 0.5)}
LABELS = [labels.get(name).fitted(np.linspace(*r, 9)) for name, r in RANGES.items()]
FAR = np.array([1.06, 0.4, 0.25])  # factor on Teff, offsets: where fits start


def normalised(stars, snr, seed=0, tilt=0.0):
    """Emulator spectra with noise, through the default recipe."""
    emulator = Emulator.load()
    wavelength = emulator.wavelength
    flux = emulator.spectrum(stars).astype(float)
    flux *= 1 + tilt * np.sin(wavelength / 300)
    sigma = flux.mean(axis=1, keepdims=True) / snr
    rng = np.random.default_rng(seed)
    flux = flux + sigma * rng.standard_normal(flux.shape)
    ivar = np.broadcast_to(sigma**-2, flux.shape)
    batch = Batch(
        wavelength,
        flux.astype("f4"),
        ivar.astype("f4"),
        np.zeros(flux.shape, np.uint8),
        np.zeros(len(flux)),
        (((0, wavelength.size),),),
    )
    batch = RECIPE.apply(batch)
    return torch.from_numpy(batch.flux).float(), torch.from_numpy(batch.ivar).float()


def encoded(stars):
    columns = [label.encode(stars[:, i]) for i, label in enumerate(LABELS)]
    return torch.from_numpy(np.stack(columns, axis=1)).float()


def decoded(values):
    values = values.numpy().astype(float)
    return np.stack([label.decode(values[:, i]) for i, label in enumerate(LABELS)], 1)


@pytest.fixture(scope="module")
def fit():
    made = TemplateFit(RECIPE.wavelength.size, (4200.0, 5700.0), 40, 2.5)
    made.prepare(RECIPE.wavelength, LABELS)
    return made


def test_it_finds_the_labels_of_templates(fit):
    start = STARS * [FAR[0], 1, 1] + [0, *FAR[1:]]
    found, broadening = fit(*normalised(STARS, 1000.0), encoded(start))[:2]
    off = np.abs(decoded(found) - STARS) / [STARS[0, 0], 1, 1]
    assert (off < [0.01, 0.05, 0.03]).all(), off
    assert broadening.abs().max() < 0.1


def test_it_finds_broader_lines(fit):
    sharp = normalised(STARS, 1000.0)
    wide = torch.from_numpy(gaussian_filter1d(sharp[0].numpy(), 1.5, axis=1))
    found, broadening = fit(wide, sharp[1], encoded(STARS))[:2]
    np.testing.assert_allclose(broadening, 1.5**2 / 2, rtol=0.2)
    assert np.abs(decoded(found) - STARS)[:, 1].max() < 0.1


def test_a_continuum_error_changes_little(fit):
    plain = fit(*normalised(STARS, 1000.0), encoded(STARS)).labels
    bent = fit(*normalised(STARS, 1000.0, tilt=0.05), encoded(STARS)).labels
    assert np.abs(decoded(bent) - decoded(plain))[:, 1].max() < 0.02


def test_outliers_are_left_out(fit):
    flux, ivar = normalised(STARS, 100.0)
    clean = fit(flux, ivar, encoded(STARS)).labels
    flux[:, 700:1600:90] += 0.5  # cosmic rays
    hit = fit(flux, ivar, encoded(STARS)).labels
    assert np.abs(decoded(hit) - decoded(clean))[:, 1].max() < 0.05


def test_noise_moves_fits_of_the_same_pixels_alike(fit):
    """What makes LASP's noise reproducible: another continuum, the same residuals."""
    other = TemplateFit(RECIPE.wavelength.size, (4200.0, 5700.0), 25, 2.5)
    other.prepare(RECIPE.wavelength, LABELS)
    stars = np.repeat(STARS[:1], 100, axis=0)
    spectra = normalised(stars, 25.0)
    found = [made(*spectra, encoded(stars))[0].numpy() for made in (fit, other)]
    for label in range(3):
        assert np.corrcoef(found[0][:, label], found[1][:, label])[0, 1] > 0.8


def test_only_fits_that_still_move_take_a_third_step():
    spectra = [torch.cat([values] * 4) for values in normalised(STARS, 50.0)]
    near, far = encoded(STARS), encoded(STARS * [FAR[0], 1, 1] + [0, *FAR[1:]])
    start = torch.cat([near, far, near, far])

    def fitted(rows=slice(None), **options):
        made = TemplateFit(RECIPE.wavelength.size, (4200.0, 5700.0), 40, 2.5, **options)
        made.prepare(RECIPE.wavelength, LABELS)
        return made(*(values[rows] for values in (*spectra, start)))

    two, three, mixed = fitted(steps=2), fitted(), fitted(tolerance=0.1)
    takes_two = (mixed.labels == two.labels).all(dim=1)
    assert 6 < takes_two.sum() < 18  # some of both
    for values, short, long in zip(mixed[:4], two[:4], three[:4], strict=True):
        wanted = torch.where(takes_two[:, None], short, long)
        torch.testing.assert_close(values, wanted, rtol=1e-4, atol=1e-4)
    assert takes_two[:6].sum() > takes_two[6:12].sum()
    # neither the order nor the number of those beside it matter to a spectrum
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    shuffled = fitted(order, tolerance=0.1).labels
    torch.testing.assert_close(shuffled, mixed.labels[order], rtol=1e-4, atol=1e-4)
    for row in (0, 6):
        alone = fitted([row], tolerance=0.1).labels[0]
        torch.testing.assert_close(alone, mixed.labels[row], rtol=1e-4, atol=1e-4)


def test_without_a_good_pixel_it_stays_where_it_starts(fit):
    flux = torch.ones(2, RECIPE.wavelength.size)
    found = fit(flux, torch.zeros_like(flux), encoded(STARS[:2])).labels
    np.testing.assert_allclose(decoded(found), STARS[:2], rtol=1e-3, atol=1e-3)


def network_of(**options):
    small = {"widths": (8, 16), "blocks": (1, 1), "hidden": 16, "components": 8}
    small |= options
    torch.manual_seed(0)
    network = models.build(
        "resnetfit", pixels=RECIPE.wavelength.size, labels=3, **small
    )
    network.prepare(RECIPE.wavelength, LABELS)
    return network, small


def stars(count, seed):
    rng = np.random.default_rng(seed)
    return rng.uniform([5000, 3.6, -0.8], [6800, 4.6, 0.3], (count, 3))


def test_settled_it_corrects_the_fit_whatever_the_network_says():
    """Labels that differ from the templates' by a smooth function are learnt."""
    network, _ = network_of()
    network.fit.steps = 6  # untrained, the network starts it far off

    def scale(labels):  # another survey's scale
        bent = labels.copy()
        bent[:, 0] += 150 + 0.05 * (labels[:, 0] - 6000)
        bent[:, 1] += 0.2 * np.sin((labels[:, 0] - 5500) / 500)
        return bent

    known, fresh = stars(250, 1), stars(60, 2)
    spectra = normalised(known, 200.0)
    untouched = network.eval()(*spectra)[0]
    assert torch.equal(untouched, ResNet1D.forward(network, *spectra)[0])
    network.settle(*spectra, encoded(scale(known)))
    spectra = normalised(fresh, 200.0, seed=5)
    with torch.no_grad():
        own, own_variance = ResNet1D.forward(network, *spectra)
        mean, variance = network(*spectra)
    share = network.share
    fitted = own + (mean - own) / share
    spread = share * (fitted - mean) ** 2 + (1 - share) * (own - mean) ** 2
    whole = own_variance.exp() + spread  # of a mixture with these shares
    found = network.fit(*spectra, own)
    sure = found.converged[:, 0]
    assert sure.float().mean() > 0.9
    torch.testing.assert_close(variance.exp()[sure], whole[sure], rtol=1e-3, atol=0)
    off = np.abs(decoded(fitted) - scale(fresh)).mean(axis=0)
    assert (off < [25, 0.05, 0.03]).all(), off
    assert network.train()(*spectra)[0].requires_grad  # trains like a ResNet1D


def test_where_three_steps_are_not_enough_the_error_is_all_of_their_way():
    network, _ = network_of()
    spectra = normalised(stars(80, 1), 100.0)
    network.settle(*spectra, encoded(stars(80, 1)))
    with torch.no_grad():
        network.head.bias[0] += 2  # 3000 K too hot for all
        own, own_variance = ResNet1D.forward(network, *spectra)
        found = network.fit(*spectra, own)
        lost = ~found.converged[:, 0]
        assert lost.float().mean() > 0.5
        way = (found.labels - own).square()
        assert way[lost, 0].median() > 0.3
        variance = network(*spectra)[1].exp()[lost]
        assert (variance > 0.999 * (own_variance.exp() + way)[lost]).all()
        network.fit.tolerance = 0.0  # as models from before this do
        assert (network(*spectra)[1].exp()[lost] < variance).any()


def test_at_the_edge_of_the_templates_a_fit_has_not_converged():
    made = TemplateFit(RECIPE.wavelength.size, (4200.0, 5700.0), 40, 2.5, tolerance=0.4)
    made.prepare(RECIPE.wavelength, LABELS)
    poor = STARS * [1, 1, 0] - [0, 0, 2.6]  # [Fe/H] = -2.6
    spectra = normalised(poor, 200.0)
    blank = torch.ones_like(spectra[0]), spectra[1]
    for values, expected in ((blank, False), (normalised(STARS, 200.0), True)):
        found = made(*values, encoded(STARS if expected else poor))
        assert (found.converged == expected).all()


def saved(network, config, tmp_path):
    """The network as a file gives it back."""
    model = checkpoint.Model(
        name="fit",
        architecture="resnetfit",
        config=config,
        pixels=RECIPE.wavelength.size,
        labels=LABELS,
        recipe=RECIPE,
        wavelength=RECIPE.wavelength,
        state={f"member0.{k}": v.numpy() for k, v in network.state_dict().items()},
    )
    checkpoint.save(model, tmp_path / "fit.safetensors")
    (again,) = checkpoint.load(str(tmp_path / "fit.safetensors")).networks()
    return again


def test_files_keep_templates_and_correction(tmp_path):
    network, options = network_of()
    spectra = normalised(stars(80, 1), 100.0)
    network.settle(*spectra, encoded(stars(80, 1)))
    again = saved(network, models.options("resnetfit") | options, tmp_path)
    with torch.no_grad():
        assert torch.equal(again(*spectra)[0], network(*spectra)[0])


def test_files_from_before_an_option_compute_as_they_did(tmp_path):
    network, options = network_of(components=0)
    said = {name: options[name] for name in ("widths", "blocks", "hidden")}
    again = saved(network, said, tmp_path)
    assert (again.fit.outlier, again.fit.tolerance, again.share) == (4.0, 0.0, 0.6)
    assert not hasattr(again, "residuals")


def test_it_refuses_what_it_has_no_templates_for():
    made = TemplateFit(RECIPE.wavelength.size, (4200.0, 5700.0), 40, 2.5)
    with pytest.raises(UsageError, match="template fits give teff, logg, feh"):
        made.prepare(RECIPE.wavelength, LABELS[:2])
    with pytest.raises(UsageError, match="only 0 pixels of the recipe"):
        made.prepare(np.linspace(15000, 17000, 256), LABELS)


def test_only_an_architecture_that_extends_another_can_start_from_it():
    assert models.extends("resnetfit", "resnet1d")
    assert not models.extends("resnet1d", "resnetfit")
    small = models.build(
        "resnet1d", pixels=2816, labels=3, widths=(8, 16), blocks=(1, 1)
    )
    start = checkpoint.Model(
        name="plain",
        architecture="resnet1d",
        config={"widths": (8, 16), "blocks": (1, 1)},
        pixels=2816,
        labels=LABELS,
        recipe=RECIPE,
        wavelength=RECIPE.wavelength,
        state={f"member0.{k}": v.numpy() for k, v in small.state_dict().items()},
    )
    config = training.resolve(TrainConfig(model="resnetfit", init="plain"), start)
    assert config.network["widths"] == (8, 16)
    assert config.network["degree"] == 40
    extended = checkpoint.Model(**{**vars(start), "architecture": "resnetfit"})
    extended.config = config.network
    network = training.initial_network(extended, start, 0)
    assert torch.equal(network.head.weight, small.head.weight)
    assert network.fit.basis.abs().sum() > 0  # templates are made
    with pytest.raises(UsageError, match="is a resnetfit, not a resnet1d"):
        training.resolve(TrainConfig(model="resnet1d", init="plain"), extended)
