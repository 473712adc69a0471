"""The command's way to simulated files: checks before the work, tables after it."""

from __future__ import annotations

import os
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from stellarcli import catalog, checkpoint, inputs, labels, simulation, surveys
from stellarcli.errors import OutputExistsError, StellarError, UsageError
from stellarcli.surveys import simulated


@pytest.fixture(autouse=True)
def no_shipped_model(monkeypatch):
    """Tests don't depend on which weights are shipped; see `shipped`."""
    monkeypatch.setattr(checkpoint, "shipped", dict)


def shipped(monkeypatch, **trained):
    """Pretend that the shipped model was trained on these ranges."""
    found = [replace(labels.get(n), trained=limits) for n, limits in trained.items()]
    model = SimpleNamespace(labels=found)
    monkeypatch.setattr(checkpoint, "shipped", lambda: {checkpoint.DEFAULT: None})
    monkeypatch.setattr(checkpoint, "load", lambda name: model)


def files(directory):
    return sorted(os.listdir(directory))


# ----------------------------------------------------------------------------- parsing


@pytest.mark.parametrize(
    ("text", "snr"),
    [(None, None), ("50", 50.0), ("10:300", (10.0, 300.0)), (" 7.5 ", 7.5)],
)
def test_parse_snr(text, snr):
    assert simulation.parse_snr(text) == snr


@pytest.mark.parametrize("text", ["", "high", "10:", ":10", "10:20:30", "nan", "inf"])
def test_an_snr_that_is_none_is_named(text):
    with pytest.raises(UsageError, match=r"10:300") as error:
        simulation.parse_snr(text)
    assert repr(text) in str(error.value)


@pytest.mark.parametrize("text", ["0", "-5", "300:10", "0:10"])
def test_an_snr_that_can_not_be(text):
    with pytest.raises(UsageError, match="can't be simulated"):
        simulation.parse_snr(text)


def test_parse_ranges():
    given = ["teff=4000:7000,logg=4:5", " feh = 0 "]
    expected = {"teff": (4000.0, 7000.0), "logg": (4.0, 5.0), "feh": (0.0, 0.0)}
    assert simulation.parse_ranges(given) == expected
    assert simulation.parse_ranges([]) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tef=4000:7000", "unknown label 'tef'.*Did you mean 'teff'.*teff, logg, feh"),
        ("teff", "'teff' is not LABEL=LOW:HIGH.*teff, logg, feh"),
        ("teff=", "LABEL=LOW:HIGH"),
        ("=4:5", "LABEL=LOW:HIGH"),
        ("teff=hot", "LABEL=LOW:HIGH"),
        ("teff=4000:nan", "LABEL=LOW:HIGH"),
        ("teff=4000:5000,", "LABEL=LOW:HIGH"),
        ("teff=7000:4000", "can't be simulated.*lowest value first"),
        ("teff=100:200", "emulator covers teff="),
        ("teff=4000:5000,teff=6000:7000", "teff is given twice"),
    ],
)
def test_ranges_that_are_none(text, message):
    with pytest.raises(UsageError, match=message):
        simulation.parse_ranges([text])


# ------------------------------------------------------------------------------ ranges


def test_default_ranges_without_a_model():
    assert simulation.default_ranges() == simulated.DEFAULT_RANGES


def test_default_ranges_are_the_models_within_the_emulators(monkeypatch):
    shipped(monkeypatch, teff=(3900.0, 40000.0), logg=(-9.0, 4.9), c_h=(0.0, 1.0))
    assert simulation.default_ranges() == {
        "teff": (3900.0, simulated.LIMITS["teff"][1]),
        "logg": (simulated.LIMITS["logg"][0], 4.9),
        "feh": simulated.DEFAULT_RANGES["feh"],
    }


def test_a_model_of_other_stars_leaves_the_defaults(monkeypatch):
    shipped(monkeypatch, teff=(50000.0, 90000.0))
    assert simulation.default_ranges() == simulated.DEFAULT_RANGES


def test_stars_are_drawn_from_the_models_range(monkeypatch, tmp_path):
    shipped(monkeypatch, teff=(5000.0, 5500.0), logg=(4.0, 5.0), feh=(-0.5, 0.5))
    stars = simulation.fetch(tmp_path, 3)
    assert ((stars["teff"] >= 5000) & (stars["teff"] <= 5500)).all()
    own = simulation.fetch(tmp_path, 3, seed=2, ranges={"teff": (6000.0, 6500.0)})
    assert ((own["teff"] >= 6000) & (own["teff"] <= 6500)).all()
    assert (own["logg"] >= 4).all()


# ------------------------------------------------------------------------------- files


@pytest.mark.parametrize(("compress", "ending"), [(True, ".fits.gz"), (False, ".fits")])
def test_fetch_writes_files_and_makes_the_directory(tmp_path, compress, ending):
    folder = tmp_path / "new" / "spectra"
    stars = simulation.fetch(folder, 2, seed=7, snr=40.0, compress=compress)
    assert files(folder) == sorted(stars["file"].astype(str))
    assert all(name.endswith(ending) for name in files(folder))
    np.testing.assert_allclose(stars["snr"], 40, atol=2)
    assert surveys.read(folder / files(folder)[0]).meta.survey == "lamost-lrs"


def test_files_of_the_same_seed_are_refused(tmp_path):
    simulation.fetch(tmp_path, 2)
    before = {name: (tmp_path / name).read_bytes() for name in files(tmp_path)}
    with pytest.raises(OutputExistsError, match=r"2 .*seed 1.*--overwrite"):
        simulation.fetch(tmp_path, 1, snr=10.0)
    assert {name: (tmp_path / name).read_bytes() for name in files(tmp_path)} == before
    simulation.fetch(tmp_path, 1, seed=2)
    simulation.fetch(tmp_path, 1, compress=False)
    assert len(files(tmp_path)) == 4
    simulation.fetch(tmp_path, 2, snr=10.0, overwrite=True)
    assert all(
        (tmp_path / name).read_bytes() != content for name, content in before.items()
    )


def test_places_that_files_can_not_go_to(tmp_path):
    taken = tmp_path / "taken"
    taken.write_text("")
    with pytest.raises(UsageError, match="is a file; name a directory"):
        simulation.fetch(taken, 1)
    with pytest.raises(StellarError, match=r"can't write into .*Not a directory"):
        simulation.fetch(taken / "below", 1)


def test_a_directory_without_rights(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(simulated, "write_spectra", refuse)
    with pytest.raises(StellarError, match=r"can't write into .*Permission denied"):
        simulation.fetch(tmp_path, 1)


def test_what_can_not_be_simulated(tmp_path):
    with pytest.raises(UsageError, match="Did you mean 'lamost-lrs'"):
        simulation.fetch(tmp_path / "new", 1, "lamost-lsr")
    with pytest.raises(UsageError, match="seed"):
        simulation.fetch(tmp_path / "new", 1, seed=10**6)
    assert files(tmp_path) == []


# ------------------------------------------------------------------------------ tables


@pytest.fixture
def stars(tmp_path):
    return simulation.fetch(tmp_path / "spectra", 3)


def test_truth_is_a_catalogue(stars, tmp_path):
    path = str(tmp_path / "truth.fits")
    simulation.write_truth(path, stars, [("COMMAND", "stellar fetch", "")])
    table = catalog.read(path)
    assert list(table.rows.dtype.names) == [
        *("file", "objid", "ra", "dec", "snr", "teff", "logg", "feh", "rv", "ebv"),
        "subclass",
    ]
    assert list(table.rows.dtype.names) == [name for name, _ in simulated.TRUTH_COLUMNS]
    units = {"ra": "deg", "dec": "deg", "teff": "K", "rv": "km/s", "ebv": "mag"}
    assert table.units == units
    assert table.header["COMMAND"] == "stellar fetch"
    assert all(f"TCOMM{n}" in table.header for n in range(1, 12))
    for name in ("teff", "logg", "feh", "rv", "ebv", "ra", "dec"):
        np.testing.assert_array_equal(table.rows[name], stars[name])
    np.testing.assert_array_equal(table.rows["file"], stars["file"].astype(str))
    for row in table.rows:
        spectrum = surveys.read(tmp_path / "spectra" / row["file"])
        assert spectrum.meta.objid == row["objid"]
        assert spectrum.meta.snr == pytest.approx(row["snr"], abs=0.01)
        assert spectrum.meta.subclass == row["subclass"]


def test_existing_tables_are_refused(stars, tmp_path):
    path = str(tmp_path / "truth.csv")
    simulation.write_truth(path, stars)
    for write in (
        lambda **o: simulation.write_truth(path, stars, **o),
        lambda **o: simulation.write_paths(path, stars, "spectra", **o),
    ):
        with pytest.raises(OutputExistsError):
            write()
        write(overwrite=True)


@pytest.mark.parametrize("folder", ["spectra", "Spektren für 100% [1]", " blank "])
def test_predict_finds_the_files_that_a_table_names(tmp_path, monkeypatch, folder):
    monkeypatch.chdir(tmp_path)
    for directory in (folder, str(tmp_path / folder / "below")):
        stars = simulation.fetch(directory, 2)
        simulation.write_paths("paths.fits", stars, directory, overwrite=True)
        found = inputs.expand(["paths.fits"])
        assert found == [os.path.join(directory, n) for n in stars["file"].astype(str)]
        assert all(os.path.exists(path) for path in found)
