"""`stellar compare`: matching, numbers, rules for units and rows, outputs."""

import csv
import json

import numpy as np
import pytest

from stellarcli import catalog, labels, published
from stellarcli.comparison import (
    accuracy,
    drawing,
    repeats,
    runs,
    sides,
    tables,
    writing,
)
from stellarcli.errors import UsageError

UNITS = {"teff": "K", "ra": "deg", "dec": "deg"}


def write(path, units=None, header=(), **columns):
    """Write a table; the unit of a column is given, or that of `UNITS`."""
    units = UNITS | (units or {})
    arrays = {name: np.asarray(values) for name, values in columns.items()}
    made = [
        catalog.Column(
            name,
            "S" if values.dtype.kind == "U" else values.dtype.str[1:],
            units.get(name, ""),
        )
        for name, values in arrays.items()
    ]
    table = catalog.rows(made, arrays)
    catalog.write(str(path), table, made, header, overwrite=True)
    return str(path)


TEFF = np.array([5000.0, 5500, 6000, 6500, 7000])
RESIDUAL = np.array([10.0, -10, 30, -30, 100])
IDS = np.array([11, 12, 13, 14, 15])


@pytest.fixture
def truth(here):
    return write("truth.fits", obsid=IDS, teff=TEFF, snrg=[5.0, 15, 25, 25, 120])


@pytest.fixture
def model(here):
    return write(
        "model.fits",
        objid=IDS[::-1].astype(str),
        teff=(TEFF + RESIDUAL)[::-1],
        teff_err=[20.0, 30, 10, 20, 10],  # in the order of the rows
        flag=np.array([0, 0, 256, 0, 4]),
    )


def compared(stellar, *arguments):
    done = stellar("compare", *arguments, "--json")
    assert done.status == 0, done.err
    return done.json


def refused(stellar, *arguments):
    done = stellar("compare", *arguments)
    assert done.status == 2
    assert not done.out
    assert "Traceback" not in done.err
    return " ".join(done.err.split())


# -------------------------------------------------------------------------- numbers


def test_numbers_by_hand(stellar, model, truth):
    found = compared(stellar, model, truth)["labels"]["teff"]
    assert found["n"] == 5
    assert found["unit"] == "K"
    assert found["mae"] == pytest.approx(180 / 5)
    assert found["bias"] == pytest.approx(20)
    assert found["rmse"] == pytest.approx(np.sqrt(12000 / 5))
    assert found["nmad"] == pytest.approx(1.4826 * 20)  # from 10: 0 20 20 40 90
    assert found["maximum"] == 100
    assert found["mean_error"] == pytest.approx(20)
    # errors 10 20 10 30 20 of residuals 10 -10 30 -30 100
    assert (found["within1"], found["within2"]) == (0.6, 0.6)
    assert found["within3"] == 0.8
    low, high = found["intervals"]["mae"]
    assert low < 36 < high


def test_agrees_with_numpy(stellar, here):
    rng = np.random.default_rng(1)
    size = 400
    ids = 1 + rng.permutation(size)
    reference = {"teff": rng.uniform(4e3, 8e3, size), "logg": rng.uniform(1, 5, size)}
    error = {"teff": rng.uniform(20, 90, size), "logg": rng.uniform(0.05, 0.2, size)}
    predicted = {n: reference[n] + error[n] * rng.normal(0, 1, size) for n in error}
    one = write(
        "a.fits",
        objid=ids[:350].astype(str),
        **{n: v[:350] for n, v in predicted.items()},
        **{f"{n}_err": v[:350] for n, v in error.items()},
    )
    order = rng.permutation(size)
    two = write(
        "b.fits", obsid=ids[order], **{n: v[order] for n, v in reference.items()}
    )
    found = compared(stellar, one, two)
    assert found["counts"]["unmatched"] == 0
    assert found["counts"]["truth_unmatched"] == 50
    for name in error:
        r = (predicted[name] - reference[name])[:350]
        z = np.abs(r) / error[name][:350]
        s = found["labels"][name]
        assert s["n"] == 350
        assert s["mae"] == pytest.approx(np.abs(r).mean())
        assert s["rmse"] == pytest.approx(np.sqrt((r**2).mean()))
        assert s["bias"] == pytest.approx(r.mean())
        assert s["std"] == pytest.approx(r.std())
        assert s["p16"] == pytest.approx(np.percentile(r, 16))
        assert s["p84"] == pytest.approx(np.percentile(r, 84))
        assert s["scaling"] == pytest.approx(np.percentile(z, 68.27))
        assert s["within2"] == pytest.approx(np.mean(z <= 2))
        a = np.polyfit(predicted[name][:350], reference[name][:350], 2)
        assert s["quadratic"]["coefficients"] == pytest.approx(a[::-1], rel=1e-4)


def test_a_spectral_type_has_the_papers_figures(stellar, here):
    truth = write("t.fits", objid=["1", "2", "3"], sptype_num=[0.2, 1.0, 2.4])
    model = write("m.fits", objid=["1", "2", "3"], sptype_num=[0.25, 1.1, 1.4])
    found = compared(stellar, model, truth)["labels"]["sptype_num"]
    assert found["maximum"] == pytest.approx(1)
    assert found["mean_error"] == pytest.approx(0.15 / 2)
    assert found["within_half_subtype"] == pytest.approx(1 / 3)
    text = stellar("compare", model, truth, "--published", "mkresnet").out.decode()
    assert "≤ ½ subtype" in text
    assert "91.4 %" in text


@pytest.mark.parametrize("texts", ["truth", "model", "both"])
def test_spectral_types_may_be_text_on_either_side(stellar, here, texts):
    ids = ["1", "2", "3", "4"]
    values = {
        "truth": ("t.fits", [0.2, 1.0, np.nan, 2.4], ["A2V", "F0", "Non", "G4III"]),
        "model": ("m.fits", [0.25, 1.1, 0.3, 1.4], ["A2.5", "sdF1", "A3", "F3/F5V"]),
    }
    paths = {}
    for side, (path, numbers, names) in values.items():
        text = texts in (side, "both")
        column = {"subclass": names} if text else {"sptype_num": numbers}
        paths[side] = write(path, objid=ids, **column)
    done = stellar("compare", paths["model"], paths["truth"], "--json")
    assert done.status == 0, done.err
    found = done.json["labels"]["sptype_num"]
    assert found["maximum"] == pytest.approx(1)
    assert found["mean_error"] == pytest.approx(0.15 / 2)
    assert found["within_half_subtype"] == pytest.approx(1 / 3)
    assert (found["n"], found["no_reference"]) == (3, 1)
    said = "t: 1 of 4 spectral types can't be read: 'Non'"
    assert (said in done.err) == (texts != "model")


def test_spectral_types_of_any_column(stellar, here):
    truth = write("t.fits", objid=["1", "2"], MK=["G2V", "K0III"])
    model = write("m.fits", objid=["1", "2"], sptype=["G3", "K0"])
    words = ("--column", "truth:sptype=MK", "--target", "sptype")
    found = compared(stellar, model, truth, *words)["labels"]
    assert list(found) == ["sptype_num"]
    assert found["sptype_num"]["mae"] == pytest.approx(0.05)
    stars = write("r.fits", star=["a", "a", "b"], sptype=["G2", "G4V", "K0"])
    done = stellar("compare", stars, "--repeats", "star", "--json")
    assert done.status == 0, done.err


def test_bins_by_hand(stellar, model, truth):
    found = compared(stellar, model, truth, "--by", "snr=0,20,100", "--by", "teff")
    low, high = found["bins"]["snr"]["teff"]
    assert (low["low"], low["high"], low["n"], low["mae"]) == (0, 20, 2, 10)
    assert (high["n"], high["mae"]) == (2, 30)
    assert sum(row["n"] for row in found["bins"]["teff"]["teff"]) == 5
    edges = accuracy.bin_edges("teff", np.linspace(4112, 8390, 500))
    assert edges == [4000, 4500, 5000, 5500, 6000, 6500, 7000, 7500, 8000, 8500]
    assert accuracy.bin_edges("snr", np.array([3.0, 26.0])) == [0, 10, 20, 30]


@pytest.mark.parametrize("text", ["snr=", "snr=1", "snr=5,2", "snr=a,b"])
def test_bad_edges_are_refused(stellar, model, truth, text):
    assert "snr=10,30,100" in refused(stellar, model, truth, "--by", text)


# ----------------------------------------------------------------- several models


def test_two_models_on_the_same_stars(stellar, model, truth):
    other = write("other.csv", obsid=IDS[:4], teff=(TEFF + 3 * RESIDUAL)[:4])
    found = compared(stellar, model, other, truth)
    assert list(found["models"]) == ["model", "other"]
    assert found["labels"] == found["models"]["model"]["labels"]
    (duel,) = found["paired"]
    assert duel["n"] == 4
    assert (duel["mae_first"], duel["mae_second"]) == (20, 60)
    assert duel["mae_difference"] == -40
    assert duel["mae_probability"] == 1
    text = stellar("compare", model, other, truth).out.decode()
    assert "P(1 better)" in text
    assert "> 0.999" in text


def test_models_of_one_name_are_told_apart(stellar, model, truth):
    found = compared(stellar, model, model, truth)
    assert list(found["models"]) == ["model (1)", "model (2)"]
    assert found["paired"][0]["mae_probability"] == 0.5


# ------------------------------------------------------------------------ matching


@pytest.mark.parametrize("ending", ["fits", "csv", "ecsv", "vot", "parquet"])
def test_reads_every_format(stellar, model, truth, ending):
    if ending == "parquet":
        pytest.importorskip("pyarrow")
    table = catalog.read(truth)
    name = f"same.{ending}"
    catalog.write(name, table.rows, catalog.columns_of(table.rows, table.units))
    assert compared(stellar, model, name)["labels"]["teff"]["mae"] == 36


def test_row_filter_of_cfitsio(stellar, model, truth):
    found = compared(stellar, f"{model}[teff < 6400]", truth)
    assert found["counts"]["rows"] == 3
    assert found["labels"]["teff"]["n"] == 3


def test_pipe(process, model, truth):
    with open(model, "rb") as file:
        done = process("compare", "-", truth, "--json", stdin=file)
    assert done.json["labels"]["teff"]["mae"] == 36
    assert list(done.json["models"]) == ["stdin"]
    done = process("compare", model, truth, "-o", "-", "--quiet")
    assert done.out.startswith(b"SIMPLE")
    assert not done.err


def test_matches_by_file_name_and_position(stellar, here):
    a = write("a.fits", file=["x/s1.fits.gz", "s2.fits"], teff=[5000.0, 6000])
    b = write("b.fits", file=["s2.fits.gz", "y/s1.fits"], teff=[6010.0, 5010])
    found = compared(stellar, a, b)
    assert found["counts"]["ways"] == {"file": 2}
    assert found["labels"]["teff"]["bias"] == -10
    a = write("a.fits", ra=[10.0, 20], dec=[5.0, 5], teff=[5000.0, 6000])
    b = write("b.fits", ra=[20.001, 10], dec=[5.0, 5], teff=[6010.0, 5010])
    assert compared(stellar, a, b)["counts"]["ways"] == {"sky": 1}
    assert compared(stellar, a, b, "--radius", "5")["counts"]["ways"] == {"sky": 2}


def test_no_row_in_common(stellar, model):
    other = write("other.fits", obsid=[1, 2], teff=[5000.0, 6000])
    text = refused(stellar, model, other)
    assert "no row of model.fits (objid) belongs to a row of other.fits (obsid)" in text


def test_rows_with_the_same_identifier(stellar, model):
    """The first row of the truth counts; every row of the model does."""
    twice = write("twice.fits", obsid=[11, 11, 12], teff=[5000.0, 9000, 5500])
    found = compared(stellar, model, twice)
    assert found["counts"]["truth_duplicates"] == 1
    assert found["labels"]["teff"]["mae"] == 10
    visits = write("visits.fits", objid=["11", "11", "12"], teff=[5010.0, 5030, 5500])
    done = stellar("compare", visits, twice)
    assert "1 rows repeat the identifier of an earlier one" in done.err
    assert "1 rows belong to the same row of twice as another one" in done.err
    found = compared(stellar, visits, twice)
    assert found["counts"]["repeated"] == 1
    assert found["labels"]["teff"]["n"] == 3
    assert found["labels"]["teff"]["mae"] == pytest.approx(40 / 3)


# ------------------------------------------------------------------ labels and units


def test_a_label_on_one_side_only(stellar, model):
    more = write("more.fits", obsid=IDS, teff=TEFF, feh=np.zeros(5))
    done = stellar("compare", model, more)
    assert "only more has feh: left out" in done.err
    text = refused(stellar, model, more, "--target", "feh")
    assert "model.fits has no number called 'feh'; its labels are teff" in text
    none = write("none.fits", obsid=IDS, feh=np.zeros(5))
    assert "have no label in common" in refused(stellar, model, none)


def test_other_names_of_columns(stellar, model):
    other = write("other.fits", obsid=IDS, Teff_lasp=TEFF, T2=TEFF + 10, SNR_X=TEFF)
    assert compared(stellar, model, other)["labels"]["teff"]["mae"] == 36
    option = ("--column", "truth:teff=t2")
    assert compared(stellar, model, other, *option)["labels"]["teff"]["bias"] == 10
    option = ("--column", "teff=T2")  # no side: those that have it
    assert compared(stellar, model, other, *option)["labels"]["teff"]["bias"] == 10
    found = compared(stellar, model, other, "--column", "snr=SNR_X", "--by", "snr")
    assert "snr" in found["bins"]


@pytest.mark.parametrize("option", ["teff", "teff=", "x:teff=T2", "=T2"])
def test_columns_that_cannot_be_read(stellar, model, truth, option):
    assert "write it like teff=Teff_lasp" in refused(
        stellar, model, truth, "--column", option
    )


@pytest.mark.parametrize(
    ("option", "right"),
    [
        ("T2=teff", "teff=T2"),
        ("truth:T2=Teff", "Teff=T2"),
        ("1:rv_x=logg", "logg=rv_x"),
    ],
)
def test_a_column_and_its_label_the_wrong_way_round(
    stellar, model, truth, option, right
):
    text = refused(stellar, model, truth, "--column", option)
    assert f"the label goes first, as in {right}." in text
    assert f"--column '{option}': '{right.partition('=')[2]}' is no label (" in text


@pytest.mark.parametrize(
    ("header", "why"),
    [
        ([("MODELSHA", "ab")], "was made by 'stellar predict'"),
        ([], "alone has standard errors"),
    ],
)
def test_a_truth_that_looks_like_a_prediction_is_noticed(
    stellar, model, truth, header, why
):
    rows = catalog.read(model).rows
    catalog.write("p.fits", rows, header=header)
    wrong = stellar("compare", truth, "p.fits")
    assert wrong.status == 0
    assert f"p {why}, but stands last, where the truth goes" in wrong.err
    assert "give: p.fits truth.fits" in wrong.err
    for right in (["p.fits", truth], ["p.fits", "p.fits"]):
        assert "stands last" not in stellar("compare", *right).err


def test_columns_that_are_not_there(stellar, model, truth):
    text = refused(stellar, model, truth, "--column", "truth:teff=T3")
    assert "truth.fits has no column 'T3'" in text
    text = refused(stellar, model, truth, "--column", "teff=T3")
    assert "no catalogue has a column 'T3'" in text
    assert "unknown column 'nope'" in refused(stellar, model, truth, "--by", "nope")


def test_units_that_differ_are_converted(stellar, model):
    other = write("other.fits", {"teff": "kK"}, obsid=IDS, teff=TEFF / 1000)
    found = compared(stellar, model, other)["labels"]["teff"]
    assert found["mae"] == pytest.approx(36)
    assert found["unit"] == "K"
    found = compared(stellar, other, model)["labels"]["teff"]
    assert found["mae"] == pytest.approx(36)


def test_a_unit_that_is_missing(stellar, model):
    other = write("other.fits", {"teff": ""}, obsid=IDS, teff=TEFF / 1000)
    text = refused(stellar, model, other)
    assert "teff of other.fits is without a unit" in text
    assert "a median of 6" in text
    assert "--unit truth:teff=kK" in text
    for option in ("truth:teff=kK", "teff=kK"):  # without a side: where none is stated
        found = compared(stellar, model, other, "--unit", option)
        assert found["labels"]["teff"]["mae"] == pytest.approx(36)


def test_a_unit_that_cannot_be_converted(stellar, model):
    other = write("other.fits", {"teff": "mag"}, obsid=IDS, teff=TEFF)
    text = refused(stellar, model, other)
    assert "is in 'mag', which can't be converted to 'K'" in text
    found = compared(stellar, model, other, "--unit", "truth:teff=K")
    assert found["labels"]["teff"]["mae"] == 36


def test_units_of_logarithms_are_ignored(stellar, here):
    a = write("a.fits", {"logg": "log(cm.s**-2)"}, objid=["1", "2"], logg=[4.0, 2.0])
    b = write("b.fits", {"logg": "dex"}, objid=["1", "2"], logg=[4.5, 2.5])
    assert compared(stellar, a, b)["labels"]["logg"]["bias"] == -0.5


# ---------------------------------------------------------------------------- rows


def test_rows_without_a_value_are_counted_apart(stellar, model):
    other = write("other.fits", obsid=IDS, teff=[5000.0, np.nan, -9999, 5.0, 7000])
    found = compared(stellar, model, other)["labels"]["teff"]
    assert (found["n"], found["left_out"]) == (2, 3)
    assert (found["no_reference"], found["no_prediction"]) == (3, 0)
    done = stellar("compare", model, other)
    assert "3 rows without a value or reference" in done.out.decode()
    empty = write("empty.fits", obsid=IDS, teff=np.full(5, np.nan))
    assert "has a value and a reference" in refused(stellar, model, empty)


def test_flagged_rows_count_unless_dropped(stellar, model, truth):
    assert "1 matched rows are flagged, counted" in stellar("compare", model, truth).err
    found = compared(stellar, model, truth, "--drop-flagged")
    # the header says that LARGE_ERROR is bad, LOW_SNR is not
    assert (found["counts"]["flagged"], found["counts"]["dropped"]) == (1, 1)
    assert found["labels"]["teff"]["n"] == 4


def test_all_rows_flagged(stellar, truth):
    bad = write("bad.fits", objid=IDS, teff=TEFF, flag=np.full(5, 256))
    text = refused(stellar, bad, truth, "--drop-flagged")
    assert "all 5 matched rows of bad.fits are flagged" in text
    assert compared(stellar, bad, truth)["labels"]["teff"]["n"] == 5


def test_flags_of_other_programs():
    def side(flag, header=None, **more):
        rows = np.zeros(len(flag), [("flag", np.asarray(flag).dtype), *more.items()])
        rows["flag"] = flag
        return sides.Side("x", "x", "1", rows, {}, {}, {}, header or {})

    assert pairs_flagged(side([0, 4, 256])) == [False, True, True]  # any bit
    assert pairs_flagged(side([0, 4, 256], objid="i8", file="S3")) == [
        False,
        False,
        True,
    ]
    assert pairs_flagged(side([0, 4, 256], {"FLAGBAD": 4})) == [False, True, False]
    assert pairs_flagged(side(["", "none", "BINARY"])) == [False, False, True]
    none = np.zeros(2, [("teff", "f8")])
    assert pairs_flagged(sides.Side("x", "x", "1", none, {}, {})) == [False, False]


def pairs_flagged(side):
    from stellarcli.comparison.pairs import flagged

    return flagged(side).tolist()


def test_selection(stellar, model, truth):
    found = compared(stellar, model, truth, "--select", "snrg > 10 and teff < 7000")
    assert found["counts"]["not_selected"] == 2
    assert found["labels"]["teff"]["n"] == 3
    text = refused(stellar, model, truth, "--select", "snrg > 1000")
    assert "none of 5 matched rows" in text
    assert "at character" in refused(stellar, model, truth, "--select", "snrg >")


# ------------------------------------------------------------------------- repeats


@pytest.fixture
def visits(here):
    """Stars a, b, c observed 2, 3 and 1 times."""
    return write(
        "visits.fits",
        objid=["1", "2", "3", "4", "5", "6"],
        ra=[10.0, 10.0001, 20, 20, 20.0002, 30],
        dec=np.zeros(6),
        snr=[30.0, 50, 20, 60, 70, 90],
        teff=[5000.0, 5030, 6000, 6040, 6000, 7000],
        teff_err=np.full(6, 20.0),
    )


def check_repeats(found):
    s = found["labels"]["teff"]
    assert (s["n"], s["stars"]) == (4, 2)  # differences 30; 40, 40, 0
    assert s["scatter"] == pytest.approx(np.sqrt((900 + 1600 + 1600) / 4 / 2))
    assert s["robust"] == pytest.approx(1.4826 * 35 / np.sqrt(2))
    assert (s["within1"], s["within2"]) == (0.25, 1)  # 28.3 K


def test_repeats_by_a_column_elsewhere(stellar, visits):
    write("stars.csv", obsid=np.arange(1, 7), star=["a", "a", "b", "b", "b", "c"])
    check_repeats(compared(stellar, visits, "stars.csv", "--repeats", "star"))


def test_repeats_by_position(stellar, visits):
    found = compared(stellar, visits, "--repeats", "star", "--by", "snr=0,40,100")
    check_repeats(found)
    assert "told by position, within 3 arcsec" in found["notes"][0]
    low, high = found["bins"]["snr"]["teff"]
    assert (low["n"], high["n"]) == (3, 1)  # of each pair the smaller S/N


def test_repeats_by_an_own_column_of_two_models(stellar, here):
    star = [1, 1, 2]
    a = write("a.fits", objid=["1", "2", "3"], star=star, teff=[5e3, 5040, 6e3])
    b = write("b.fits", objid=["1", "2", "3"], star=star, teff=[5e3, 5080, 6e3])
    found = compared(stellar, a, b, "--repeats", "star")
    scatter = [found["models"][n]["labels"]["teff"]["scatter"] for n in "ab"]
    assert scatter == pytest.approx([40 / np.sqrt(2), 80 / np.sqrt(2)])
    text = stellar("compare", a, b, "--repeats", "star").out.decode()
    assert "scatter/√2" in text


def test_no_repeats(stellar, model, visits):
    assert "neither a column 'star'" in refused(stellar, model, "--repeats", "star")
    assert "no star of visits.fits" in refused(
        stellar, visits, "--repeats", "star", "--select", "teff > 6500"
    )


def test_pairs_of_a_star_with_many_visits_are_bounded():
    first, second = repeats.star_pairs(np.zeros(100, dtype=int))
    assert (second - first).max() == repeats.FURTHEST
    assert first.size == sum(100 - lag for lag in range(1, repeats.FURTHEST + 1))
    assert [a.size for a in repeats.star_pairs(np.array([-1, -1]))] == [0, 0]


# ------------------------------------------------------------------ papers and runs


@pytest.mark.parametrize("name", published.PAPERS)
def test_papers_have_known_labels_and_metrics(name):
    from stellarcli.comparison.tables import HEAD_OF

    paper = published.get(name)
    assert paper.source
    assert paper.data
    for result in paper.results:
        for label, figures in result.figures.items():
            assert label in (*labels.LABELS, sides.SUBTYPE)
            assert set(figures) <= set(HEAD_OF)


def test_published_rows_are_marked(stellar, model, truth):
    done = stellar("compare", model, truth, "--published", "scanet")
    text = " ".join(done.out.decode().split())
    assert "SCA-Net M-M-T-T † – – 71.07 ± 9.43 111.84 ± 11.98" in text
    assert "† as printed, on other data" in text
    found = compared(stellar, model, truth, "--published", "scanet")["published"]
    assert len(found) == 7
    assert all(row["other_data"] for row in found)
    assert (found[0]["mae"], found[0]["scatter"]["mae"]) == (71.07, 9.43)
    assert "Did you mean 'scanet'" in refused(
        stellar, model, truth, "--published", "scanett"
    )
    done = stellar("compare", model, truth, "--published", "spfusion")
    assert "SPFusion printed nothing about teff" in done.err


RUNS = """model,network.variant,repeat,teff_mae,test_teff_mae,test_teff_rmse
m.safetensors,MMMM,0,70,80,110
m.safetensors,MMMM,1,72,84,110
m.safetensors,MMTT,0,60,70,100
m.safetensors,MMTT,1,64,76,100
"""


def test_runs_of_a_sweep(stellar, here):
    (here / "sca.runs.csv").write_text(RUNS)
    found = compared(stellar, "sca.runs.csv")
    assert found["part"] == "test"
    first, second = found["settings"]
    assert first["settings"] == {"network.variant": "MMMM"}
    assert first["labels"]["teff"]["mae"] == pytest.approx(
        {"mean": 82, "std": np.sqrt(8)}
    )
    assert second["labels"]["teff"]["mae"]["mean"] == 73
    done = stellar("compare", "sca.runs.csv", "--published", "scanet", "-o", "t.fits")
    text = " ".join(done.out.decode().split())
    assert "variant MMMM 2 82.0 ± 2.8" in text
    assert "SCA-Net M-M-T-T † – 71.07 ± 9.43" in text
    rows = catalog.read("t.fits").rows
    assert rows["mae"][rows["kind"] == "setting"].tolist() == [82, 73]


def test_runs_and_catalogues_do_not_mix(stellar, here, model):
    (here / "sca.runs.csv").write_text(RUNS)
    assert "no table of outcomes" in refused(stellar, "sca.runs.csv", model)
    assert not runs.is_sweep("-")
    assert not runs.is_sweep(model)


# --------------------------------------------------------------------------- output


def test_fits_has_a_row_per_figure(stellar, model, truth):
    other = write("other.csv", obsid=IDS, teff=TEFF + 3 * RESIDUAL)
    options = ("--published", "scanet", "--by", "snr=0,20,100", "-o", "out.fits")
    done = stellar("compare", model, other, truth, *options)
    assert done.status == 0
    table = catalog.read("out.fits")
    rows = table.rows
    kinds, counts = np.unique(rows["kind"], return_counts=True)
    assert dict(zip(kinds.tolist(), counts.tolist(), strict=True)) == {
        "model": 2,
        "bin": 4,
        "pair": 1,
        "published": 7,
    }
    assert rows["mae"][0] == 36
    assert rows["mae_low"][0] < 36 < rows["mae_high"][0]
    assert "stellar compare model.fits" in table.header["COMMAND"]
    assert refused(stellar, model, truth, "-o", "out.fits").startswith(
        "stellar: out.fits exists"
    )
    assert "is to be compared" in refused(stellar, model, truth, "-o", f"!{model}")


def test_csv_markdown_and_latex(stellar, model, truth):
    for name in ("out.csv", "out.md", "out.tex"):
        assert stellar("compare", model, truth, "-o", name, "-q").status == 0
    with open("out.csv") as file:
        assert next(csv.DictReader(file))["mae"] == "36.0"
    with open("out.md") as file:
        assert "| model | 5 | 20.00 | 36.00 ± " in file.read()
    with open("out.tex") as file:
        text = file.read()
    assert r"$T_{\mathrm{eff}}$ (K)" in text
    assert r"$\pm$" in text
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 2
    assert refused(stellar, model, truth, "-o", "out.md").startswith(
        "stellar: out.md exists"
    )


def test_latex_signs():
    text = writing._latex("a_b & 5 % of -0.5 – [Fe/H] ± σ 1e-3 x-y")
    assert text == (r"a\_b \& 5 \% of $-$0.5 -- [Fe/H] $\pm$ $\sigma$ 1e-3 x-y")


@pytest.mark.parametrize("ending", ["png", "pdf"])
def test_figure(stellar, here, ending):
    rng = np.random.default_rng(4)
    size = 600
    teff, types = rng.uniform(4e3, 7e3, size), rng.uniform(0, 4, size)
    truth = write("t.fits", obsid=np.arange(1, size + 1), teff=teff, sptype_num=types)
    catalogues = [
        write(
            f"{name}.fits",
            objid=np.arange(1, size + 1).astype(str),
            snr=rng.uniform(5, 300, size),
            teff=teff + rng.normal(0, scale, size),
            teff_err=np.full(size, scale),
            sptype_num=types + rng.normal(0, 0.1, size),
        )
        for name, scale in (("a", 50.0), ("b", 90.0))
    ]
    name = f"f.{ending}"
    assert stellar("compare", *catalogues, truth, "--figure", name).status == 0
    first = (here / name).read_bytes()
    assert len(first) > 20_000
    stellar("compare", *catalogues, truth, "--figure", name, "--overwrite")
    assert (here / name).read_bytes() == first
    assert "exists" in refused(stellar, *catalogues, truth, "--figure", name)
    options = ("--figure", "n.png", "--panels", "density,errors")
    assert stellar("compare", catalogues[0], truth, *options).status == 0


def test_figure_of_perfect_and_few_rows(stellar, truth, here):
    assert stellar("compare", truth, truth, "--figure", "f.png").status == 0
    text = refused(
        stellar, truth, truth, "--figure", "g.png", "--panels", "calibration"
    )
    assert "nothing to draw" in text
    assert not (here / "g.png").exists()
    assert "unknown panel" in refused(
        stellar, truth, truth, "--figure", "g.png", "--panels", "pie"
    )


def test_kernel_density_is_that_of_scipy():
    from scipy.stats import gaussian_kde

    values = np.random.default_rng(8).normal(1, 2, 3000)
    grid = np.linspace(-5, 7, 401)
    width = 0.9 * min(values.std(), drawing.metrics.nmad(values)) * 3000**-0.2
    exact = gaussian_kde(values, width / values.std(ddof=1))(grid)
    assert drawing.kernel_density(values, grid) == pytest.approx(exact, abs=0.002)


def test_json_has_no_nan(stellar, model, truth):
    one = write("one.fits", objid=["11"], teff=[5010.0])
    done = stellar("compare", one, truth, "--json")
    found = json.loads(done.out, parse_constant=lambda name: pytest.fail(name))
    assert found["labels"]["teff"]["n"] == 1
    assert found["labels"]["teff"]["mean_error"] is None


def test_architectures(stellar, here):
    options = ("--architectures", "scanet", "--no-latency", "--quiet")
    done = stellar("compare", *options, "--json")
    first = done.json[0]
    assert first["variant"] == "MMMM"
    assert isinstance(first["parameters"], int)
    assert first["published_parameters"] == 61_867_000
    assert "MMMM" in stellar("compare", *options, "-o", "a.fits").out.decode()
    rows = catalog.read("a.fits").rows
    assert len(rows) == len(done.json)
    assert rows["parameters"][0] == first["parameters"]


def test_networks_of_rdn(stellar, here):
    options = ("--architectures", "rdn", "--no-latency", "--quiet")
    rows = stellar("compare", *options, "--json").json
    assert [row["variant"] for row in rows[2:5]] == ["n=3", "n=4", "ResNet"]
    assert all(row["parameters"] > 0 for row in rows)
    assert "DenseNet" in stellar("compare", *options, "-o", "a.md").out.decode()


def test_abundances_have_their_usual_names():
    assert tables.heading("mg_h") == "[Mg/H] (dex)"
    assert tables.heading("feh") == "[Fe/H] (dex)"
    assert sides.other_names("mg_h") == ("mg_h", "mgh", "[mg/h]")
    assert set(sides.other_names("feh")) >= {"feh", "fe_h", "[fe/h]", "feh_lasp"}
    assert {label for label, _, _ in published.rows("rdn", ["cu_h", "n_h"])} == {
        "cu_h",
        "n_h",
    }


# ---------------------------------------------------------------------------- usage


def test_usage(stellar, model, truth):
    assert "name catalogues to compare" in refused(stellar)
    assert "1 catalogue was given; name one or more, and the truth" in refused(
        stellar, model
    )
    assert ". is a directory; name a table in it" in refused(stellar, model, ".")
    assert "there is no table nope.fits" in refused(stellar, model, "nope.fits")
    assert "both want standard output" in refused(
        stellar, model, truth, "--json", "-o", "-"
    )
    assert "read once only" in refused(stellar, "-", "-")
    assert "0 arcsec or more" in refused(stellar, model, truth, "--radius", "-3")
    text = refused(stellar, model, truth, "-o", "t.txt")
    assert "name it *.md, *.tex, *.fits," in text
    assert "no figure of --repeats" in refused(
        stellar, model, "--repeats", "star", "--figure", "f.png"
    )
    assert "name it *.png" in refused(stellar, model, truth, "--figure", "f.jpg")


def test_requests_name_the_columns_that_they_need():
    request = accuracy.Request(by=["snr=1,2"], select="clean and plan == 'x'")
    assert set(request.wishes("star").extra) == {"snr", "clean", "plan", "star"}
    with pytest.raises(UsageError):
        accuracy.parse_bins("snr=")


def test_maps_show_where_the_errors_are(stellar, here):
    from types import SimpleNamespace

    from matplotlib.figure import Figure

    from stellarcli.comparison import maps
    from stellarcli.comparison.pairs import Values

    rng = np.random.default_rng(9)
    teff, logg = rng.uniform(4000, 8000, 4000), rng.uniform(1, 5, 4000)
    off = np.where((teff > 6000) & (logg < 3), -200.0, 40.0)
    values = {
        "teff": Values("teff", "K", teff + off, teff, None),
        "logg": Values("logg", "dex", logg, logg, None),
    }
    model = SimpleNamespace(values=values)
    for kind, worst in (("mae", 200), ("bias", -200)):
        axes = Figure().subplots()
        maps.draw(axes, model, "teff", kind, "Error")
        (mesh,) = axes.collections
        found = np.unique(np.round(mesh.get_array().compressed()))
        assert {found.min(), found.max()} == {min(worst, 40), max(worst, 40)}
        cells = mesh.get_coordinates()[:-1, :-1][np.round(mesh.get_array()) == worst]
        assert cells[:, 0].min() > 5500
        assert cells[:, 1].max() < 3

    truth = write("t.fits", obsid=np.arange(1, 4001), teff=teff, logg=logg)
    mine = write("m.fits", objid=np.arange(1, 4001).astype(str), teff=teff, logg=logg)
    drawn = ("--figure", "f.png", "--panels", "map,bias")
    assert stellar("compare", mine, truth, *drawn).status == 0
    lonely = (*drawn, "--overwrite", "--target", "teff")
    assert "nothing to draw for the panels map, bias" in refused(
        stellar, mine, truth, *lonely
    )
