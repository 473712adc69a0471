"""Results as files: Markdown, LaTeX, and tables with all numbers.

Tables (FITS, CSV, ECSV) have one row per model, label and bin, per pair of models, and
per figure that a paper printed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from stellarcli import catalog, published
from stellarcli.catalog import Column
from stellarcli.comparison.accuracy import Comparison, Statistics
from stellarcli.comparison.repeats import Repeats
from stellarcli.comparison.runs import SHOWN, Runs
from stellarcli.comparison.tables import Block
from stellarcli.errors import UsageError
from stellarcli.provenance import Card

TEXT = (".md", ".tex")

# ------------------------------------------------------------------------ text files


def to_markdown(found: Iterable[Block]) -> str:
    """Write blocks as pipe tables."""
    parts = []
    for block in found:
        head = [name or " " for name in block.head]
        lines = [
            f"**{_markdown(block.title)}**",
            "",
            _pipes(head),
            _pipes([":---"] + ["---:"] * (len(head) - 1)),
            *(_pipes(map(_markdown, row)) for row in block.rows),
        ]
        lines += ["", *(_markdown(note) for note in block.notes)]
        parts.append("\n".join(lines).rstrip())
    return "\n\n".join(parts) + "\n"


def _pipes(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _markdown(text: str) -> str:
    return re.sub(r"([\\|*_<>])", r"\\\1", text)


LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{sign: rf"\{sign}" for sign in "%_&#${}"},
    "±": r"$\pm$",
    "σ": r"$\sigma$",
    "Δ": r"$\Delta$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "½": r"$\frac{1}{2}$",
    "√": r"$\surd$",
    "†": r"$^{\dagger}$",
    "–": "--",
    "…": r"\ldots{}",
    "<": "$<$",
    ">": "$>$",
    "|": "$|$",
    "*": r"$^{*}$",
    "\N{NARROW NO-BREAK SPACE}": r"\,",
}
LATEX_NAMES = {"Teff": r"$T_{\mathrm{eff}}$", "log g": r"$\log g$"}


def to_latex(found: Iterable[Block]) -> str:
    """Write blocks as tables that need no package."""
    return "\n".join(_latex_block(block) for block in found)


def _latex_block(block: Block) -> str:
    align = "l" + "r" * (len(block.head) - 1)
    lines = [
        r"\begin{table*}",
        r"\centering",
        rf"\caption{{{_latex(block.title)}}}",
        rf"\begin{{tabular}}{{{align}}}",
        r"\hline\hline",
        " & ".join(map(_latex, block.head)) + r" \\",
        r"\hline",
        *(" & ".join(map(_latex, row)) + r" \\" for row in block.rows),
        r"\hline",
        r"\end{tabular}",
        *(rf"\par\smallskip\footnotesize {_latex(note)}" for note in block.notes),
        r"\end{table*}",
        "",
    ]
    return "\n".join(lines)


def _latex(text: str) -> str:
    """Text with LaTeX's own signs, minus signs and the names of labels in its way."""
    text = re.sub(r"(?<![\w.])-(?=[\d.])", "\N{MINUS SIGN}", text)
    names = "|".join(map(re.escape, LATEX_NAMES))
    pieces = re.split(f"({names})", text)
    signs = LATEX | {"\N{MINUS SIGN}": "$-$"}
    return "".join(
        LATEX_NAMES.get(piece) or "".join(signs.get(sign, sign) for sign in piece)
        for piece in pieces
    )


# ----------------------------------------------------------------------- FITS and CSV

TEXT_COLUMNS = {
    "kind": "model, bin, pair, published, repeats, run or setting",
    "model": "catalogue, or method of a paper",
    "label": "what was compared",
    "unit": "of all figures of this row",
    "by": "quantity of the bin",
    "source": "where a figure was printed, or what was compared",
}
NUMBER_COLUMNS = {
    "low": "lower edge of the bin",
    "high": "upper edge of the bin",
    "n": "rows, or pairs of rows, compared",
    "left_out": "rows without a value or a reference",
    "bias": "mean residual, predicted minus reference",
    "mae": "mean absolute error",
    "rmse": "root mean squared error",
    "std": "standard deviation of the residuals",
    "nmad": "1.4826 x median distance from the median",
    "outliers": "fraction further than 5 nmad from the median",
    "maximum": "largest absolute error",
    **{f"p{p}": f"{p}th percentile of the residuals" for p in (5, 16, 50, 84, 95)},
    **{
        f"{name}_{end}": f"{end} end of the 95% bootstrap interval of {name}"
        for name in ("bias", "mae", "rmse", "std", "nmad", "scatter")
        for end in ("low", "high")
    },
    "mae_scatter": "standard deviation of mae over repeated trainings",
    "rmse_scatter": "standard deviation of rmse over repeated trainings",
    "mean_error": "mae without the largest error",
    "deviation": "scatter of absolute errors about mean_error",
    "within_half_subtype": "fraction of errors up to half a subtype",
    "quadratic0": "label = quadratic0 + quadratic1 p + quadratic2 p^2",
    "quadratic1": "of the prediction p",
    "quadratic2": "of its square",
    "within1": "fraction within 1 predicted error",
    "within2": "fraction within 2 predicted errors",
    "within3": "fraction within 3 predicted errors",
    "scaling": "factor on the errors to be right",
    "probability": "that the first of a pair has the smaller mae",
    "stars": "stars with repeated observations",
    "scatter": "rms difference of two observations / sqrt 2",
    "robust": "the same from the median",
    "mean_difference": "mean absolute difference of two observations",
    "runs": "trainings that were averaged",
}
COUNTS = ("n", "left_out", "stars", "runs")

Record = dict[str, Any]


def records(comparison: Comparison) -> list[Record]:
    """List a comparison, one record per model, label and bin, pair, printed figure."""
    found = []
    for model in comparison.models:
        common = {"model": model.name, "source": model.pairs.model.source}
        for label, s in model.labels.items():
            row = {"kind": "model", "label": label} | common | _flat(s)
            found.append(row)
        for by, labels in model.bins.items():
            for label, bins in labels.items():
                unit = model.labels[label]["unit"]
                for s in bins:
                    row = {"kind": "bin", "label": label, "by": by, "unit": unit}
                    found.append(row | common | _flat(s))
    return (
        found + [_duel(comparison, d) for d in comparison.duels] + _printed(comparison)
    )


def _flat(s: Statistics) -> Record:
    """Statistics without nested values, intervals and coefficients by column."""
    row = {k: v for k, v in s.items() if isinstance(v, int | float | str)}
    for name, (low, high) in s.get("intervals", {}).items():
        row |= {f"{name}_low": low, f"{name}_high": high}
    if s.get("quadratic"):
        coefficients = s["quadratic"]["coefficients"]
        row |= {f"quadratic{n}": value for n, value in enumerate(coefficients)}
    return row


def _duel(comparison: Comparison, duel: dict[str, Any]) -> Record:
    unit = next(
        m.labels[duel["label"]]["unit"]
        for m in comparison.models
        if duel["label"] in m.labels
    )
    return {
        "kind": "pair",
        "model": f"{duel['first']} - {duel['second']}",
        "label": duel["label"],
        "unit": unit,
        "n": duel["n"],
        "mae": duel["mae_difference"],
        "mae_low": duel["mae_low"],
        "mae_high": duel["mae_high"],
        "rmse": duel["rmse_difference"],
        "rmse_low": duel["rmse_low"],
        "rmse_high": duel["rmse_high"],
        "probability": duel["mae_probability"],
        "source": "first minus second, on the same stars",
    }


def _printed(comparison: Comparison) -> list[Record]:
    found = []
    for label, method, figures in comparison.published:
        paper = published.get(comparison.paper)
        row = {name: value for name, (value, _) in figures.items()}
        row |= {f"{n}_scatter": s for n, (_, s) in figures.items() if s is not None}
        source = f"other data: {paper.source}"
        unit = next(
            m.labels[label]["unit"] for m in comparison.models if label in m.labels
        )
        more = {"kind": "published", "model": method, "label": label, "unit": unit}
        found.append(row | more | {"source": source})
    return found


def repeat_records(repeats: Repeats) -> list[Record]:
    """List the precision from repeated observations, one record per label and bin."""
    found = []
    for name, model in repeats.models.items():
        for label, s in model["labels"].items():
            more = {"kind": "repeats", "model": name, "label": label}
            found.append(_flat(s) | more)
        for by, labels in model["bins"].items():
            for label, bins in labels.items():
                unit = model["labels"][label]["unit"]
                more = {"kind": "bin", "model": name, "label": label, "by": by}
                found += [_flat(s) | more | {"unit": unit} for s in bins]
    return found


def run_records(runs: Runs) -> list[Record]:
    """List the averages of sweeps, one record per setting and label."""
    found = []
    for setting in runs.settings:
        for label, figures in setting.figures.items():
            row = {m: mean for m, (mean, _) in figures.items()}
            row |= {f"{m}_scatter": figures[m][1] for m in SHOWN if m in figures}
            more = {"kind": "setting", "model": setting.name, "label": label}
            found.append(row | more | {"runs": setting.runs, "source": setting.source})
    for result in runs.published:
        for label, figures in result.figures.items():
            row = {name: value for name, (value, _) in figures.items()}
            row |= {f"{n}_scatter": s for n, (_, s) in figures.items() if s is not None}
            more = {"kind": "published", "model": result.method, "label": label}
            source = f"other data: {published.get(runs.paper).source}"
            found.append(row | more | {"source": source})
    return found


def to_rows(found: Sequence[Record]) -> tuple[np.ndarray, list[Column]]:
    """Put records into a table, with the columns that any of them fills.

    Returns
    -------
    rows : structured ndarray
    columns : list of Column
    """
    columns, values = [], {}
    for name, description in (TEXT_COLUMNS | NUMBER_COLUMNS).items():
        given = [record.get(name) for record in found]
        if all(value is None for value in given):
            continue
        if name in TEXT_COLUMNS:
            columns.append(Column(name, "S", "", description))
            values[name] = np.array([value or "" for value in given], dtype=str)
        elif name in COUNTS:
            columns.append(Column(name, "i8", "", description))
            values[name] = np.array([int(v or 0) for v in given], dtype=np.int64)
        else:
            columns.append(Column(name, "f8", "", description, "G13.6"))
            given = [np.nan if value is None else value for value in given]
            values[name] = np.array(given, dtype=np.float64)
    return catalog.rows(columns, values), columns


# ---------------------------------------------------------------------------- writing


def check_output(path: str, overwrite: bool) -> str:
    """Check the name of an output, before anything is computed.

    Parameters
    ----------
    path : str
        ``.md``, ``.tex``, or as for `catalog.check_output`; ``!name`` means
        `overwrite`.
    overwrite : bool

    Returns
    -------
    str
        `path` without the ``!``.
    """
    plain = path.removeprefix("!")
    if plain.lower().endswith(TEXT):
        catalog.check_directory(plain)
        catalog.check_absent(plain, overwrite or path.startswith("!"))
        return plain
    try:
        return catalog.check_output(path, overwrite)
    except UsageError as error:
        text = str(error).replace("name it *", f"name it *{', *'.join(TEXT)}, *", 1)
        raise type(error)(text) from None


def write(
    path: str,
    found: Sequence[Block],
    rows: Sequence[Record],
    header: Iterable[Card],
) -> None:
    """Write a result in the format that a name says.

    Parameters
    ----------
    path : str
        Of `check_output`; replaced if it exists.
    found : sequence of Block
        For text.
    rows : sequence of Record
        For tables.
    header : iterable of (keyword, value, comment)
        How it was made; in text as a comment.
    """
    if not path.lower().endswith(TEXT):
        table, columns = to_rows(rows)
        catalog.write(path, table, columns, header, overwrite=True)
        return
    made = [f"{name}: {value}" for name, value, _ in header]
    if path.lower().endswith(".tex"):
        text = "\n".join(f"% {line}" for line in made) + "\n" + to_latex(found)
    else:
        text = to_markdown(found) + "\n<!--\n" + "\n".join(made) + "\n-->\n"
    with (
        catalog.temporary_name(path) as temporary,
        catalog.explained(path, temporary),
    ):
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(temporary, path)


# ---------------------------------------------------------------------- architectures

SIZES = {
    "name": ("", "architecture"),
    "variant": ("", "its stages"),
    "conv": ("", "kind of its convolutions"),
    "parameters": ("", "numbers that are learnt"),
    "macs": ("", "multiply-adds of one spectrum"),
    "latency_ms": ("ms", "time per spectrum, here"),
    "published_parameters": ("", "as printed"),
    "live_parameters": ("", "of the published code, without unused ones"),
    "published_macs": ("", "as printed"),
    "published_latency_ms": ("ms", "as printed, on another machine"),
}


def write_architectures(
    path: str, rows: Sequence[Record], header: Iterable[Card]
) -> None:
    """Write sizes and speeds of networks, the rows of `architectures.table`.

    Parameters
    ----------
    path, header
        As for `write`.
    rows : sequence of dict
    """
    if path.lower().endswith(TEXT):
        head = ("network", *(name.replace("_", " ") for name in [*SIZES][3:]))
        lines = [
            (
                " ".join(filter(None, (row["variant"], row["conv"]))),
                *(_size(row.get(name)) for name in [*SIZES][3:]),
            )
            for row in rows
        ]
        block = Block(f"Networks of {rows[0]['name']}", head, tuple(lines))
        write(path, [block], (), header)
        return
    columns, values = [], {}
    for name, (unit, description) in SIZES.items():
        given = [row.get(name) for row in rows]
        kind = _kind(name, given)
        columns.append(Column(name, kind, unit, description))
        filler = {"S": "", "f8": np.nan}.get(kind)
        values[name] = np.array([filler if v is None else v for v in given])
    catalog.write(path, catalog.rows(columns, values), columns, header, overwrite=True)


def _size(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else f"{value:d}"


def _kind(name: str, values: Sequence[Any]) -> str:
    """Type of a column: text, whole numbers where all are there, or numbers."""
    if name in ("name", "variant", "conv"):
        return "S"
    return "i8" if all(isinstance(value, int) for value in values) else "f8"
