"""Results as text: which figures stand in which table, and with how many digits.

A `Block` holds finished text. The command line draws it on a terminal; `writing` turns
it into Markdown and LaTeX.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stellarcli import metrics, published
from stellarcli.comparison.accuracy import Comparison, Statistics
from stellarcli.comparison.repeats import Repeats
from stellarcli.comparison.runs import SHOWN, Runs, Spread
from stellarcli.comparison.sides import SUBTYPE
from stellarcli.labels import ELEMENTS

MISSING = "–"
PRINTED = "†"  # marks figures that a paper printed

NAMES = {  # of labels, in headings
    "teff": "Teff",
    "logg": "log g",
    "feh": "[Fe/H]",
    SUBTYPE: "Spectral type",
}
UNITS = {"logg": "dex", "feh": "dex", SUBTYPE: "types"}


@dataclass(frozen=True)
class Block:
    """One table of text.

    Attributes
    ----------
    title : str
    head : tuple of str
        Of the columns; the first one holds names.
    rows : tuple of tuple of str
    notes : tuple of str
        To stand below.
    """

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


def heading(label: str, unit: str = "") -> str:
    """Name of a label with its unit, ``"Teff (K)"``."""
    unit = unit or UNITS.get(label, "dex" if label in _ABUNDANCES else "")
    name = NAMES.get(label) or _ABUNDANCES.get(label, label)
    return f"{name} ({unit})" if unit else name


_ABUNDANCES = {f"{element.lower()}_h": f"[{element}/H]" for element in ELEMENTS}


def number(value: float | None, decimals: int | None = None) -> str:
    """Write a number with so many decimals, by default with four digits."""
    if value is None or not np.isfinite(value):
        return MISSING
    return f"{value:.{_decimals(value) if decimals is None else decimals}f}"


def _decimals(*values: float | None) -> int:
    """Decimals that give the smallest of some numbers four digits, 4 at most."""
    sizes = [abs(v) for v in values if v is not None and np.isfinite(v) and v != 0]
    if not sizes:
        return 0
    return min(max(3 - int(np.floor(np.log10(min(sizes)))), 0), 4)


def fraction(value: float | None) -> str:
    """Per cent."""
    if value is None or not np.isfinite(value):
        return MISSING
    digits = 1 if 0.001 <= value <= 0.999 or value in (0, 1) else 3
    return f"{100 * value:.{digits}f} %"


def spread(value: float, scatter: float | None) -> str:
    """``"71.07 ± 9.43"``, both with as many decimals as fit the scatter."""
    if scatter is None or not np.isfinite(scatter):
        return number(value)
    if scatter <= 0:
        return f"{number(value)} ± 0"
    digits = min(max(1 - int(np.floor(np.log10(scatter))), 0), 5)
    return f"{value:.{digits}f} ± {scatter:.{digits}f}"


def _half_width(statistics: Statistics, name: str) -> float:
    low, high = statistics["intervals"][name]
    return (high - low) / 2


# ------------------------------------------------------------------------- accuracy

ACCURACY = ("", "N", "bias", "MAE", "RMSE", "σ", "NMAD", "16 %", "84 %", "outl.", "max")
SUBTYPES = ("", "N", "bias", "MAE", "max", "mean*", "dev.*", "≤ ½ subtype", "NMAD")


def blocks(comparison: Comparison) -> list[Block]:
    """Lay out a comparison: accuracy by label, who is better, calibration, bins."""
    found = [_accuracy(comparison, label) for label in comparison.labels]
    if comparison.duels:
        found.append(_duels(comparison))
    if any("within1" in s for m in comparison.models for s in m.labels.values()):
        found.append(_calibration(comparison))
    for name in comparison.models[0].bins:
        found += [_bins(comparison, name, label) for label in comparison.labels]
    return found


def _accuracy(comparison: Comparison, label: str) -> Block:
    subtype = label == SUBTYPE
    models = [m for m in comparison.models if label in m.labels]
    decimals = _decimals(*(m.labels[label]["mae"] for m in models))
    rows = [
        (_subtype_row if subtype else _row)(model.name, model.labels[label], decimals)
        for model in models
    ]
    head = SUBTYPES if subtype else ACCURACY
    printed = [p for p in comparison.published if p[0] == label]
    last = comparison.published and comparison.published[-1][0] == label
    rows += [_printed_row(method, figures, head) for _, method, figures in printed]
    notes = ["MAE ± half of its 95 % bootstrap interval."]
    if subtype:
        notes.append(
            "mean*: without the largest error; dev.*: of the absolute errors about it."
        )
    left_out = sum(m.labels[label]["left_out"] for m in models)
    if left_out:
        notes.append(f"{left_out} rows without a value or reference, not counted.")
    if last:
        notes.append(_source(comparison.paper))
    unit = models[0].labels[label]["unit"]
    return Block(heading(label, unit), head, tuple(rows), tuple(notes))


def _row(name: str, s: Statistics, decimals: int) -> tuple[str, ...]:
    spread = (number(s[key], decimals) for key in ("rmse", "std", "nmad", "p16", "p84"))
    largest = number(s["maximum"], decimals)
    return (*_first_cells(name, s, decimals), *spread, fraction(s["outliers"]), largest)


def _subtype_row(name: str, s: Statistics, decimals: int) -> tuple[str, ...]:
    keys = ("maximum", "mean_error", "deviation")
    errors = (number(s[key], decimals) for key in keys)
    near, nmad = fraction(s["within_half_subtype"]), number(s["nmad"], decimals)
    return (*_first_cells(name, s, decimals), *errors, near, nmad)


def _first_cells(name: str, s: Statistics, decimals: int) -> tuple[str, ...]:
    return name, str(s["n"]), number(s["bias"], decimals), _mae(s, decimals)


def _mae(s: Statistics, decimals: int) -> str:
    """MAE and half the width of its interval."""
    width = _half_width(s, "mae")
    if not np.isfinite(width):
        return number(s["mae"], decimals)
    return f"{number(s['mae'], decimals)} ± {number(width, decimals)}"


HEAD_OF = {
    "bias": "bias",
    "mae": "MAE",
    "rmse": "RMSE",
    "std": "σ",
    "nmad": "NMAD",
    "maximum": "max",
    "mean_error": "mean*",
    "deviation": "dev.*",
    "within_half_subtype": "≤ ½ subtype",
}


def _source(paper: str | None) -> str:
    found = published.get(paper or "")
    return f"{PRINTED} as printed, on other data: {found.source}. {found.data}."


def _printed_row(
    method: str, figures: dict[str, published.Figure], head: Sequence[str]
) -> tuple[str, ...]:
    cells = dict.fromkeys(head, MISSING)
    for name, (value, scatter) in figures.items():
        shown = fraction(value) if name.startswith("within") else as_printed(value)
        cells[HEAD_OF[name]] = (
            shown if scatter is None else f"{shown} ± {as_printed(scatter)}"
        )
    cells[""] = f"{method} {PRINTED}"
    return tuple(cells.values())


def as_printed(value: float) -> str:
    """Digits of a paper's figure, no more, and three decimals of small ones."""
    return f"{value:.3f}" if value < 1 and round(value, 3) == value else f"{value:g}"


def _duels(comparison: Comparison) -> Block:
    rows = []
    for duel in comparison.duels:
        decimals = _decimals(duel["mae_first"], duel["mae_second"])
        low, high = (number(duel[f"mae_{end}"], decimals) for end in ("low", "high"))
        rows.append(
            (
                f"{heading(duel['label'])}: {duel['first']} – {duel['second']}",
                str(duel["n"]),
                number(duel["mae_first"], decimals),
                number(duel["mae_second"], decimals),
                number(duel["mae_difference"], decimals),
                f"{low} … {high}",
                probability(duel["mae_probability"]),
                probability(duel["rmse_probability"]),
            )
        )
    head = ("", "N", "MAE 1", "MAE 2", "1 – 2", "95 %", "P(1 better)", "by RMSE")
    note = "On the rows that both have; P is the share of bootstrap samples."
    return Block("On the same stars", head, tuple(rows), (note,))


def probability(value: float) -> str:
    """Probability, as far as the number of bootstrap samples can tell."""
    edge = 1 / metrics.REPLICATES
    if not np.isfinite(value):
        return MISSING
    if value < edge:
        return f"< {edge:g}"
    return f"> {1 - edge:g}" if value > 1 - edge else f"{value:.3f}"


def _calibration(comparison: Comparison) -> Block:
    rows = [
        (
            f"{heading(label)}: {model.name}",
            *(fraction(s[f"within{n}"]) for n in metrics.WITHIN),
            number(s["scaling"], 3),
        )
        for label in comparison.labels
        for model in comparison.models
        if "within1" in (s := model.labels.get(label, {}))
    ]
    gauss = ("right errors", *(fraction(v) for v in metrics.WITHIN.values()), "1")
    head = ("", "within 1 σ", "2 σ", "3 σ", "k")
    note = "k: factor that the errors lack to hold 68.27 % of the rows."
    return Block("Calibration of the errors", head, (*rows, gauss), (note,))


def _bins(comparison: Comparison, name: str, label: str) -> Block:
    rows = []
    found = [s for m in comparison.models for s in m.bins[name].get(label, ())]
    decimals = _decimals(*(s["mae"] for s in found))
    for model in comparison.models:
        for s in model.bins[name].get(label, ()):
            calibrated = fraction(s["within1"]) if "within1" in s else MISSING
            rows.append(
                (
                    f"{s['low']:g} – {s['high']:g}",
                    *([model.name] if len(comparison.models) > 1 else []),
                    str(s["n"]),
                    number(s["bias"], decimals),
                    _mae(s, decimals),
                    *(number(s[key], decimals) for key in ("rmse", "nmad")),
                    calibrated,
                )
            )
    several = ("model",) if len(comparison.models) > 1 else ()
    head = (name, *several, "N", "bias", "MAE", "RMSE", "NMAD", "within 1 σ")
    unit = comparison.models[0].labels.get(label, {}).get("unit", "")
    return Block(f"{heading(label, unit)} by {name}", head, tuple(rows))


# ------------------------------------------------------------------- repeats and runs


def repeat_blocks(repeats: Repeats) -> list[Block]:
    """Lay out the precision from repeated observations."""
    head = ("", "pairs", "stars", "scatter/√2", "robust", "mean |Δ|", "max |Δ|")
    head += ("within 1 σ", "2 σ", "3 σ", "k")
    rows = [
        (f"{heading(label, s['unit'])}: {name}", *_repeat_cells(s))
        for name, model in repeats.models.items()
        for label, s in model["labels"].items()
    ]
    notes = (
        "Δ: difference of two observations of one star; scatter/√2: standard error of "
        "one observation ± half of its 95 % interval; σ: both predicted errors.",
    )
    found = [Block("Repeated observations", head, tuple(rows), notes)]
    for name, model in repeats.models.items():
        for quantity, labels in model["bins"].items():
            for label, bins in labels.items():
                title = f"{heading(label)} by the smaller {quantity} of a pair: {name}"
                cells = tuple(
                    (f"{s['low']:g} – {s['high']:g}", *_repeat_cells(s)) for s in bins
                )
                found.append(Block(title, (quantity, *head[1:]), cells))
    return found


def _repeat_cells(s: Statistics) -> tuple[str, ...]:
    decimals = _decimals(s["scatter"])
    scatter = number(s["scatter"], decimals)
    if "intervals" in s:
        scatter += f" ± {number(_half_width(s, 'scatter'), decimals)}"
    rest = ("robust", "mean_difference", "maximum")
    return (
        str(s["n"]),
        str(s.get("stars", MISSING)),
        scatter,
        *(number(s[key], decimals) for key in rest),
        *(fraction(s.get(f"within{n}")) for n in metrics.WITHIN),
        number(s.get("scaling"), 3),
    )


def run_blocks(runs: Runs) -> list[Block]:
    """Lay out the averages of sweeps as the SCA-Net paper does (table 1)."""
    pairs = [(label, metric) for label in runs.labels for metric in SHOWN]
    head = ("", "runs", *(f"{heading(n)} {m.upper()}" for n, m in pairs))
    rows = [
        (
            setting.name,
            str(setting.runs),
            *(_averaged(setting.figures, *pair) for pair in pairs),
        )
        for setting in runs.settings
    ]
    rows += [
        (
            f"{result.method} {PRINTED}",
            MISSING,
            *(_averaged(result.figures, *pair, as_printed) for pair in pairs),
        )
        for result in runs.published
    ]
    notes = [f"{runs.part} rows; mean ± standard deviation over repeats."]
    if runs.published:
        notes.append(_source(runs.paper))
    title = ", ".join(dict.fromkeys(s.source for s in runs.settings))
    return [Block(title, head, tuple(rows), tuple(notes))]


def _averaged(
    figures: dict[str, dict[str, Spread]], label: str, metric: str, shown=None
) -> str:
    if metric not in figures.get(label, {}):
        return MISSING
    value, scatter = figures[label][metric]
    if shown is None:
        return spread(value, scatter or None)
    return shown(value) if scatter is None else f"{shown(value)} ± {shown(scatter)}"
