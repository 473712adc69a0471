"""Medium-resolution simulation: the synthesis's physics, observations, files."""

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from stellarcli import simulation, surveys
from stellarcli.errors import UsageError
from stellarcli.preprocess.wavelength import air_to_vacuum
from stellarcli.surveys import atmospheres, medium, simulated, synthesis
from stellarcli.surveys.atmospheres import KINDS, LABELS
from stellarcli.surveys.synthesis import WINDOWS, Lines

BENCHMARK = Path(__file__).parents[2] / "shared" / "data" / "benchmark"
SUN = (5772.0, 4.44, 0.0)


def star(teff, logg, feh, **abundances):
    """One row of labels; elements follow iron unless given."""
    values = dict.fromkeys(LABELS, feh) | {"teff": teff, "logg": logg} | abundances
    return np.array([[values[name] for name in LABELS]])


@pytest.fixture(scope="module")
def lines():
    return Lines.load()


@pytest.fixture(scope="module")
def sun():
    return atmospheres.atmosphere(star(*SUN))


# --------------------------------------------------------------------------- physics


def test_the_line_list_holds_every_label(lines):
    assert (np.diff(lines.wavelength) >= 0).all()
    for low, high in WINDOWS:
        inside = (lines.wavelength > low) & (lines.wavelength < high)
        assert inside.sum() > 2000
    kinds = {KINDS[kind] for kind in np.unique(lines.kind)}
    assert {"Fe", *atmospheres.ELEMENTS} - kinds == {"N"}
    assert {"CN", "MgH", "Fe+", "Ti+"} <= kinds
    assert "CH" not in kinds  # it has bands in neither window


def test_pressures_are_those_of_the_sun(sun):
    # Holweger & Müller 1974 at log τ = -1.1: log Pg = 4.6, log Pe = 0.6
    layer = 3
    assert np.log10(sun.gas_pressure[0, layer]) == pytest.approx(4.6, abs=0.15)
    assert np.log10(sun.electron_pressure[0, layer]) == pytest.approx(0.6, abs=0.2)
    assert (np.diff(sun.gas_pressure[0]) > 0).all()


def test_electrons_come_from_ions(sun):
    t, pe = sun.temperature[0], sun.electron_pressure[0]
    for layer in (0, 3, 6):
        ions = 0.0
        for number, (energy, atom, ion, _) in enumerate(atmospheres.SPECIES.values()):
            ratio = 0.6665 * ion / atom * t[layer] ** 2.5
            ratio *= 10 ** (-5040 * energy / t[layer]) / pe[layer]
            ions += sun.abundance[0, number] * ratio / (1 + ratio)
        nuclei = 1.085  # and helium's
        expected = ions / (nuclei + ions) * sun.gas_pressure[0, layer]
        assert pe[layer] == pytest.approx(expected, rel=0.01)


def test_bound_atoms_solve_the_law_of_mass_action():
    k, first, second = 3.0e4, 2.5e-4, 5e-4
    x = atmospheres._bound(first, second, k)
    assert 0 < x < first
    assert x == pytest.approx(k * (first - x) * (second - x), rel=1e-9)


def test_opacity_of_a_line_goes_with_its_abundance(lines, sun):
    rich = atmospheres.atmosphere(star(*SUN, ni_h=0.3))
    pair = [
        synthesis.strengths(lines, stars, atmospheres.populations(stars), 0, 3)[0]
        for stars in (sun, rich)
    ]
    nickel = lines.kind == KINDS.index("Ni")
    np.testing.assert_allclose(pair[1][nickel] / pair[0][nickel], 10**0.3, rtol=0.02)
    calcium = lines.kind == KINDS.index("Ca")
    np.testing.assert_allclose(pair[1][calcium] / pair[0][calcium], 1, rtol=0.02)


def depth(labels):
    """Mean depth of lines in each window at R = 7500, (star, window)."""
    flux = synthesis.normalised(labels)
    flux = synthesis.broadened(flux, 7500, np.full(len(labels), 3.0))
    first = len(synthesis.grid()[0])
    return 1 - np.stack([flux[:, :first].mean(1), flux[:, first:].mean(1)], axis=1)


@pytest.mark.parametrize("label", LABELS[2:])
def test_more_of_an_element_deepens_its_lines(label):
    cool = {"teff": 4600.0, "logg": 2.4, "feh": -0.2}
    elements = dict.fromkeys(LABELS[3:], -0.2)
    labels = [star(**cool | elements | more) for more in ({}, {label: 0.3})]
    flux = synthesis.normalised(np.vstack(labels))
    less, more = synthesis.broadened(flux, 7500, np.zeros(2))
    # O shows in CN, too: CO takes the carbon
    assert (less - more).max() > (0.003 if label != "k_h" else 0.0005)


def test_nitrogen_is_seen_through_cn_in_giants_only():
    giant, dwarf = (4500.0, 2.0, 0.0), (6300.0, 4.3, 0.0)
    change = [
        np.diff(depth(np.vstack([star(*s), star(*s, n_h=s[2] + 0.4)])), axis=0)[0, 1]
        for s in (giant, dwarf)
    ]
    assert change[0] > 20 * abs(change[1])


def test_wings_of_magnesium_tell_dwarfs_from_giants():
    labels = np.vstack([star(5000.0, 2.5, -0.3), star(5000.0, 4.6, -0.3)])
    flux = synthesis.normalised(labels)[:, : len(synthesis.grid()[0])]
    wing = abs(synthesis.grid()[0] - 5181.0) < 1.5
    giant, dwarf = flux[:, wing].mean(axis=1)
    assert dwarf < giant - 0.03


def test_balmer_wings_grow_with_temperature():
    labels = np.vstack([star(t, 4.3, 0.0) for t in (5000.0, 5800.0, 6600.0)])
    flux = synthesis.normalised(labels)[:, len(synthesis.grid()[0]) :]
    offset = abs(synthesis.grid()[1] - 6564.61)
    assert (np.diff(flux[:, (offset > 2) & (offset < 6)].mean(axis=1)) < 0).all()
    assert (flux[:, offset < 0.2].mean(axis=1) < 0.5).all()


def test_broadening_keeps_the_line_and_has_the_instruments_width():
    grid = synthesis.grid()
    flux = np.ones((1, sum(map(len, grid))), dtype=np.float32)
    middle = len(grid[0]) // 2
    flux[0, middle] = 0
    wide = synthesis.broadened(flux, 7500, np.array([0.0]), macro=0.0)[0]
    assert (1 - wide).sum() == pytest.approx(1, rel=1e-3)
    velocity = synthesis.STEP * (np.arange(wide.size) - middle)
    sigma = np.sqrt(((1 - wide) * velocity**2)[middle - 100 : middle + 100].sum())
    assert 2.3548 * sigma == pytest.approx(299792.458 / 7500, rel=0.01)
    fast = synthesis.broadened(flux, 7500, np.array([60.0]), macro=0.0)[0]
    assert (1 - fast).max() < 0.6 * (1 - wide).max()


def test_collisions_with_hydrogen_widen_its_line_in_dwarfs(monkeypatch):
    # Barklem, Piskunov & O'Mara 2000, 1180 a0² at 10 km/s: γ/N = 7.3e-8 at 5000 K
    pressure = 1.085 * atmospheres.BOLTZMANN * 5000.0  # of one atom per cm³
    assert synthesis._self_broadening(5000.0, pressure) == pytest.approx(
        7.3e-8, rel=0.01
    )
    labels = np.vstack([star(5000.0, 1.5, 0.0), star(5000.0, 4.6, 0.0)])
    wing = abs(abs(synthesis.grid()[1] - 6564.61) - 4) < 2

    def depths():
        return 1 - synthesis.normalised(labels)[:, -wing.size :][:, wing].mean(axis=1)

    giant, dwarf = depths()
    monkeypatch.setattr(synthesis, "_self_broadening", lambda *_: 0.0)
    giant_alone, dwarf_alone = depths()
    assert dwarf - dwarf_alone > 0.005
    assert abs(giant - giant_alone) < 0.5 * (dwarf - dwarf_alone)


def test_labels_outside_the_limits_are_refused():
    with pytest.raises(UsageError, match=r"teff = 9000 .* 3700 to 7200"):
        atmospheres.atmosphere(star(9000.0, 4.0, 0.0))


STARS = {  # file, labels (α-rich where Gaia's benchmark is), lowest correlations
    "ATLAS.Sun_47000": (SUN, 0.0, (0.98, 0.96)),  # whose spectrum the gf are fitted to
    "UVES_epsEri-2_47000": ((5062.0, 4.60, -0.08), 0.0, (0.97, 0.96)),
    "iraf_UVES_HD201891_47000": ((6040.0, 4.34, -1.02), 0.27, (0.98, 0.96)),
    "UVES_HD106038_47000": ((6172.0, 4.28, -1.33), 0.35, (0.97, 0.95)),
}


@pytest.mark.skipif(not BENCHMARK.exists(), reason="needs the real data in ../shared")
@pytest.mark.parametrize("name", STARS)
def test_benchmark_stars_look_like_their_synthesis(name):
    import fitsio

    (teff, logg, feh), alpha, limits = STARS[name]
    rich = {f"{e}_h": feh + alpha for e in ("o", "mg", "si", "s", "ca", "ti")}
    model = synthesis.normalised(star(teff, logg, feh, **rich))
    model = synthesis.broadened(model, 7500, np.array([3.0]))[0]
    observed = fitsio.read(BENCHMARK / f"{name}.fits").astype(float)
    air = 4800 + 0.01 * np.arange(observed.size)
    grid = synthesis.grid()
    parts = np.split(model, [len(grid[0])])
    for wavelength, part, least in zip(grid, parts, limits, strict=True):
        flux = np.interp(wavelength, air_to_vacuum(air), observed)
        good = (flux > 0) & (wavelength > 4930) & (wavelength < 6720)
        good &= (wavelength < 5355) | (wavelength > 6295)
        wide = 299792.458 / 7500 / 2.3548 / synthesis.STEP
        sharp = 299792.458 / 47000 / 2.3548 / synthesis.STEP
        flux = blurred(flux, np.sqrt(wide**2 - sharp**2))
        pair = [flattened(values, good) for values in (flux, part)]
        assert np.corrcoef(*pair)[0, 1] > least
    if feh < -1:  # few lines but Hα in its wings
        near = abs(wavelength[good] - 6564.61) < 20
        real, model = (1 - values[near].mean() for values in pair)
        assert model == pytest.approx(real, rel=0.12)


def blurred(flux, sigma):
    offset = np.arange(-60, 61)
    kernel = np.exp(-0.5 * (offset / sigma) ** 2)
    return np.convolve(flux, kernel / kernel.sum(), mode="same")


def flattened(flux, good):
    """Flux over a polynomial through its upper envelope."""
    x = np.linspace(-1, 1, flux.size)
    keep = good.copy()
    for _ in range(8):
        fit = np.polynomial.Chebyshev.fit(x[keep], flux[keep], 5)(x)
        residual = flux - fit
        sigma = residual[keep].std()
        keep = good & (residual > -sigma) & (residual < 4 * sigma)
    return (flux / fit)[good]


# ----------------------------------------------------------------------- observations


def test_abundances_follow_iron_with_a_scatter_of_their_own():
    labels = medium.draw(4000, np.random.default_rng(1))
    iron = labels[:, 2]
    ratio = dict(zip(LABELS[3:], (labels[:, 3:] - iron[:, None]).T, strict=True))
    poor, rich = iron < -1, iron > 0
    assert np.mean(ratio["mg_h"][poor]) > np.mean(ratio["mg_h"][rich]) + 0.15
    assert np.mean(ratio["mn_h"][poor]) < np.mean(ratio["mn_h"][rich]) - 0.15
    giants = labels[:, 1] < 2.5
    assert np.mean((ratio["n_h"] - ratio["c_h"])[giants]) > 0.3
    assert all(values.std() > 0.06 for values in ratio.values())


@pytest.fixture(scope="module")
def observed():
    labels = np.repeat(star(5800.0, 4.4, -2.0), 64, axis=0)
    return medium.observe(labels, np.random.default_rng(2), snr=40)


def test_requested_snr_and_correlation_of_neighbours(observed):
    there = observed.snr["B"] > 0
    np.testing.assert_allclose(observed.snr["B"][there], 40, rtol=0.1)
    flux, ivar = observed.flux["R"][:, 2500:3700], observed.ivar["R"][:, 2500:3700]
    there = observed.snr["R"] > 0
    noise = (flux * np.sqrt(ivar))[there]
    noise = np.clip(noise - np.median(noise, axis=1, keepdims=True), -4, 4)
    lags = [np.mean(noise[:, n:] * noise[:, : noise.shape[1] - n]) for n in (0, 1, 4)]
    trend = lags[2]  # lines and continuum
    assert (lags[1] - trend) / (lags[0] - trend) == pytest.approx(0.4, abs=0.05)


def test_arms_end_in_zeros_and_some_are_missing(observed):
    for arm in "BR":
        missing = observed.snr[arm] == 0
        assert (observed.flux[arm][missing] == 0).all()
        assert (observed.flux[arm][:, -4:] == 0).all()
        assert (observed.ivar[arm][~missing, :-14] > 0).all()
    labels = np.repeat(star(5800.0, 4.4, -2.0), 1, axis=0)
    many = [medium.observe(labels, np.random.default_rng(n)).snr for n in range(60)]
    lost = [snr["B"][0] == 0 or snr["R"][0] == 0 for snr in many]
    assert 0 < sum(lost) < 15
    assert not any(snr["B"][0] == 0 and snr["R"][0] == 0 for snr in many)


# ------------------------------------------------------------------------------- files


def test_files_are_valid_and_their_reader_understands_them(tmp_path):
    truth = simulated.write_spectra(tmp_path, 3, "lamost-mrs", seed=4, snr=(20, 40))
    assert list(truth.dtype.names) == [
        name for name, _ in simulated.truth_columns("lamost-mrs")
    ]
    assert set(LABELS) < set(truth.dtype.names)
    for row in truth:
        path = tmp_path / row["file"].decode()
        with fits.open(path) as hdus:
            hdus.verify("exception")
            assert "SIMULATED" in hdus[0].header["DATA_V"]
            assert "Z" not in hdus[0].header
        spectrum = surveys.read(path)
        assert spectrum.meta.survey == "lamost-mrs"
        assert spectrum.meta.objid == row["objid"].decode()
        assert spectrum.meta.snr == pytest.approx(row["snr"])
        assert len(spectrum.segments) == 2


def test_a_seed_means_the_same_files(tmp_path):
    few = simulated.write_spectra(tmp_path / "few", 2, "lamost-mrs", seed=5)
    more = simulated.write_spectra(tmp_path / "more", 3, "lamost-mrs", seed=5)
    assert (more[:2] == few).all()
    for name in few["file"].astype(str):
        pair = [(tmp_path / folder / name).read_bytes() for folder in ("few", "more")]
        assert pair[0] == pair[1]


def test_ranges_are_those_of_the_synthesis(tmp_path, stellar):
    with pytest.raises(UsageError, match=r"teff=3700:7200"):
        simulation.parse_ranges(["teff=3000:4000"], "lamost-mrs")
    with pytest.raises(UsageError, match="unknown label 'mg_h'"):
        medium.check_ranges({"mg_h": (0, 1)})
    assert simulation.default_ranges("lamost-mrs") == medium.DEFAULT_RANGES
    options = ("--survey", "lamost-mrs", "--range", "teff=5000:5100", "-n", 2)
    paths = ("-o", tmp_path / "out", "--labels-out", tmp_path / "truth.fits")
    assert stellar("fetch", "simulated", *options, *paths).status == 0
    table = fits.getdata(tmp_path / "truth.fits")
    assert ((table["teff"] >= 5000) & (table["teff"] <= 5100)).all()
    assert "ebv" not in table.names
    assert "k_h" in table.names
