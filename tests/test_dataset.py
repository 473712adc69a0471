"""Training data: selections, splits, leakage, augmentation."""

import numpy as np
import pytest
import torch
import trainingtables

from stellarcli import dataset
from stellarcli.augmentation import Augmentation
from stellarcli.dataset import load, same_star, split_by_hash
from stellarcli.errors import UsageError
from stellarcli.settings import TrainConfig


def config(**changes):
    return TrainConfig.resolve({"target": "teff,logg", "device": "cpu"}, changes)


# ------------------------------------------------------------------------------ splits


def test_parts_follow_from_the_name_alone():
    names = [f"star{n}" for n in range(5000)]
    options = {"test": 0.2, "validation": 0.25, "seed": 1}
    part = split_by_hash(names, **options)
    assert np.mean(part == "test") == pytest.approx(0.2, abs=0.02)
    assert np.mean(part == "validation") == pytest.approx(0.2, abs=0.02)  # 0.25 of 0.8
    np.testing.assert_array_equal(split_by_hash(names[::-1], **options), part[::-1])
    np.testing.assert_array_equal(split_by_hash(names[7:], **options), part[7:])
    assert (split_by_hash(names, **{**options, "seed": 2}) != part).any()


def test_every_group_is_tested_on_in_one_fold():
    names = [f"p{n % 20}" for n in range(200)]
    tested = [
        split_by_hash(names, test=0, validation=0.1, seed=1, folds=4, fold=k) == "test"
        for k in range(4)
    ]
    np.testing.assert_array_equal(np.sum(tested, axis=0), 1)


def test_folds_divide_what_the_test_part_leaves():
    names = np.array([f"p{n}" for n in range(2000)])
    options = {"test": 0.25, "validation": 0.1, "seed": 1}
    plain = split_by_hash(names, **options)
    parts = [split_by_hash(names, **options, folds=4, fold=k) for k in range(4)]
    tested = np.stack(parts) == "test"
    np.testing.assert_array_equal(tested.sum(axis=0), plain != "test")
    np.testing.assert_allclose(tested.mean(axis=1), 0.75 / 4, atol=0.03)
    for part in parts:
        np.testing.assert_array_equal(part == "held out", plain == "test")


def test_no_fold_sees_a_star_that_is_held_out(tmp_path):
    """Plates share stars: a star of a plate held out counts there alone."""
    plans = [f"p{n % 40}" for n in range(400)]
    stars = [f"s{n % 150}" for n in range(400)]
    path = trainingtables.write(tmp_path / "t.fits", 400, stars=stars, plan=plans)
    options = {"group": "plan", "test": 0.25, "validation": 0}
    last = load([path], config(**options))
    held = set(last.star[last.part == "test"])
    tested = []
    for fold in range(4):
        data = load([path], config(**options, folds=4, fold=fold))
        assert set(data.part) == {"train", "test"}
        assert held.isdisjoint(data.star)
        mine = data.part == "test"
        assert set(data.star[mine]).isdisjoint(data.star[~mine])
        tested += data.row[mine].tolist()
    assert sorted(tested) == last.row[last.part == "train"].tolist()


def test_stars_are_recognised_by_name_and_position():
    objid = np.array(["a", "b", "a", "", "", "c"])
    ra = np.array([10, 20, np.nan, 20 + 2 / 3600, 0, 0])
    dec = np.array([0, 0, np.nan, 0, 0, 0])
    star = same_star(objid, ra, dec)
    assert star[0] == star[2]
    assert star[1] == star[3]
    assert len(set(star)) == 4  # positions 0, 0 mean unknown


def test_spectra_of_one_star_stay_together(tmp_path):
    stars = [f"s{n // 4}" for n in range(400)]
    ra, dec = np.repeat(np.arange(100.0), 4), np.zeros(400)
    stars[::4] = [f"other{n}" for n in range(100)]  # the same place, another name
    path = trainingtables.write(tmp_path / "t.fits", 400, stars=stars, ra=ra, dec=dec)
    data = load([path], config(test=0.3, validation=0.3))
    assert len(data) == 400, "nothing needs to be left out"
    for star in np.unique(data.star):
        assert len(set(data.part[data.star == star])) == 1
    assert min(data.index(part).size for part in dataset.PARTS) > 40


def test_groups_that_share_stars_lose_rows_where_they_are_not_tested(tmp_path):
    stars = [f"s{n % 360}" for n in range(400)]
    plan = [f"p{n % 7}" for n in range(400)]
    position = {"ra": np.full(400, np.nan), "dec": np.full(400, np.nan)}
    path = trainingtables.write(
        tmp_path / "t.fits", 400, stars=stars, plan=plan, **position
    )
    data = load([path], config(test=0.3, validation=0.2, group="plan"))
    assert len(data) < 400
    for star in np.unique(data.star):
        assert len(set(data.part[data.star == star])) == 1
    part = split_by_hash(plan, test=0.3, validation=0.2, seed=1)
    np.testing.assert_array_equal(data.part, part[data.row])
    assert data.index("test").size == (part == "test").sum(), "tested rows stay"


def test_a_split_column_is_obeyed_and_checked(tmp_path):
    part = np.array(["train"] * 60 + ["Test"] * 36)
    path = trainingtables.write(tmp_path / "a.fits", part=part)
    data = load([path], config(split="part", validation=0.3))
    assert data.index("test").tolist() == list(range(60, 96))
    assert 5 < data.index("validation").size < 35
    assert load([path], config(split="part", validation=0)).index("train").size == 60
    stars = [f"s{n % 50}" for n in range(96)]
    path = trainingtables.write(tmp_path / "b.fits", stars=stars, part=part)
    with pytest.raises(
        UsageError, match=r"stars are on both sides.*the first is 's10'"
    ):
        load([path], config(split="part"))
    near = {"ra": np.tile(np.arange(48.0), 2), "dec": np.zeros(96)}
    path = trainingtables.write(tmp_path / "c.fits", part=part, **near)
    with pytest.raises(UsageError, match="36 stars are on both sides"):
        load([path], config(split="part"))
    part[3] = "trian"
    path = trainingtables.write(tmp_path / "d.fits", part=part)
    with pytest.raises(UsageError, match="Did you mean 'train'"):
        load([path], config(split="part"))


def test_a_fold_without_rows_is_refused(tmp_path):
    path = trainingtables.write(tmp_path / "t.fits", plan=["one"] * 48 + ["two"] * 48)
    tested = split_by_hash(
        ["one", "two"], test=0, validation=0, seed=1, folds=9, fold=0
    )
    fold = 0 if (tested != "test").all() else 1
    with pytest.raises(UsageError, match="too few groups"):
        load([path], config(group="plan", folds=9, fold=fold, validation=0))


# -------------------------------------------------------------------------------- rows


def test_rows_without_spectrum_or_label_are_left_out(tmp_path):
    flag = np.zeros(96, "i4")
    flag[:5] = int(dataset.catalog.Flag.UNREADABLE)
    teff, logg = np.full(96, 5000.0), np.full(96, 4.0)
    teff[3:10], logg[8:12] = np.nan, np.nan
    path = trainingtables.write(tmp_path / "t.fits", flag=flag, teff=teff, logg=logg)
    rows = load([path], config()).row.tolist()
    assert rows == [n for n in range(5, 96) if n not in (8, 9)]


def test_several_tables_are_one(tmp_path):
    paths = [trainingtables.write(tmp_path / f"{n}.fits", 40, seed=n) for n in range(2)]
    data = load(paths, config())
    assert len(data) == 80
    index = np.array([70, 3, 41, 39])
    flux, ivar = data.spectra(index)
    for k, n in enumerate(index):
        own = data.tables[n // 40].spectra(np.array([n % 40]))
        np.testing.assert_array_equal(flux[k], own[0][0])
        np.testing.assert_array_equal(ivar[k], own[1][0])
    assert flux.dtype == np.dtype("=f4")
    other = trainingtables.write(
        tmp_path / "x.fits", steps=[*trainingtables.STEPS, "clip"]
    )
    with pytest.raises(UsageError, match="was prepared differently"):
        load([paths[0], other], config())


# ------------------------------------------------------------------------ augmentation


def varied(size=400, part=slice(None), seed=1, **settings):
    """Flat spectra with one line and a masked window, varied; and what they were."""
    flux = torch.ones(size, 200)
    flux[:, 100] = 0.5
    ivar = torch.full((size, 200), 100.0)
    flux[:, 20:30], ivar[:, 20:30] = -7.0, 0.0
    generator = torch.Generator().manual_seed(seed)
    new = Augmentation(**settings)(flux, ivar, generator, part)
    return flux, ivar, *new


def test_noise_is_as_large_as_ivar_says():
    flux, _, noisy, less = varied(noise=2.0)
    added = (noisy - flux)[:, 40:]
    touched = added.abs().amax(dim=1) > 0
    assert touched.float().mean() == pytest.approx(0.5, abs=0.1)
    variance = 1 / less[:, 40:].mean(dim=1) - 1 / 100
    found = added.square().mean(dim=1)
    ratio = (found / variance)[variance > 1e-4]
    assert ratio.mean() == pytest.approx(1, abs=0.05)
    assert variance.max() <= 4 / 100 + 1e-6
    assert variance.max() > 3.5 / 100
    assert torch.equal(noisy[:, 20:30], flux[:, 20:30])
    assert (less[:, 20:30] == 0).all()


def test_velocity_shifts_flux_and_mask():
    _, _, flux, ivar = varied(velocity=3.0)
    assert torch.isfinite(flux).all()
    depth = (1 - flux)[:, 80:120]
    centre = (depth * torch.arange(80, 120)).sum(1) / depth.sum(1)
    assert centre.mean() == pytest.approx(100, abs=0.5)
    assert centre.std() == pytest.approx(3, abs=0.3)
    assert depth.sum(1).numpy() == pytest.approx(0.5, abs=1e-4)  # nothing is lost
    assert (flux[ivar > 0] >= 0.49).all(), "masked flux leaks into no good pixel"
    assert set((ivar == 0).sum(dim=1).tolist()) <= {10, 11}
    assert ivar[ivar > 0].numpy() == pytest.approx(100, rel=1e-4)


def test_distortion_is_smooth_and_keeps_the_snr():
    flux, ivar, bent, less = varied(size=4000, distortion=0.1)
    good = ivar > 0
    snr = (flux * ivar.sqrt())[good], (bent * less.sqrt())[good]
    torch.testing.assert_close(*snr)
    factor = torch.log(bent[:, 40:90])
    assert factor.std() == pytest.approx(0.1, abs=0.02)
    assert torch.diff(factor, dim=1).abs().max() < 0.03
    assert torch.equal(bent[:, 20:30], flux[:, 20:30])


def test_windows_are_hidden():
    _, _, flux, ivar = varied(size=2000, hide=0.5)
    hidden = (ivar == 0) & (torch.arange(200) >= 30)
    assert hidden.any(dim=1).float().mean() == pytest.approx(0.45, abs=0.07)
    assert hidden.sum(dim=1).max() <= 20
    assert (flux[hidden] == 1).all()


def test_processes_that_share_a_batch_draw_what_one_would():
    settings = {"noise": 1.0, "velocity": 1.0, "distortion": 0.1, "hide": 0.5}
    whole = varied(10, **settings)[2:]
    parts = [varied(10, part, **settings)[2:] for part in (slice(0, 4), slice(4, 10))]
    for k in range(2):
        torch.testing.assert_close(torch.cat([p[k] for p in parts]), whole[k])


def test_nothing_happens_unless_asked_for():
    flux, ivar, same, unchanged = varied()
    assert not Augmentation().any
    assert torch.equal(same, flux)
    assert torch.equal(unchanged, ivar)
