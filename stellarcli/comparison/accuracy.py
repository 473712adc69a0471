"""How good catalogues are: every number about every label, and who is better.

`compare` measures; its `Comparison` holds numbers only, `to_json` has all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, pairwise
from typing import Any

import numpy as np

from stellarcli import catalog, metrics, published, selection
from stellarcli.comparison import pairs as pairing
from stellarcli.comparison import sides
from stellarcli.comparison.pairs import Pairs, Values
from stellarcli.comparison.sides import Assignment, Side, Wishes
from stellarcli.errors import UsageError

SNR_EDGES = (0, 10, 20, 30, 40, 50, 70, 100, 150, 200, 300, 500, 1000)
PREDICTED = "MODELSHA"  # card of a catalogue that a model made
BINS = 12  # wanted in a quantity without edges of its own, at most

Statistics = dict[str, Any]


@dataclass(frozen=True)
class Request:
    """What to compare, and how.

    Attributes
    ----------
    columns, units : sequence of str
        ``[SIDE:]NAME=COLUMN`` and ``[SIDE:]LABEL=UNIT``.
    target : sequence of str
        Labels; all that both sides have if empty.
    select : str or None
        Pairs to count, in columns of the truth or else of the catalogue.
    by : sequence of str
        Quantities to bin by, ``"snr"`` or ``"snr=10,30,100"``.
    radius : float
        Of matching on the sky, arcsec.
    drop_flagged : bool
    paper : str or None
        Key of `published.PAPERS`.
    """

    columns: Sequence[str] = ()
    units: Sequence[str] = ()
    target: Sequence[str] = ()
    select: str | None = None
    by: Sequence[str] = ()
    radius: float = 3.0
    drop_flagged: bool = False
    paper: str | None = None

    def wishes(self, *extra: str) -> Wishes:
        """Columns that this needs."""
        return Wishes(
            tuple(Assignment.parse(text, "--column") for text in self.columns),
            tuple(Assignment.parse(text, "--unit") for text in self.units),
            tuple(map(sides.label_name, self.target)),
            (
                *(parse_bins(text)[0] for text in self.by),
                *selection.names(self.select or ""),
                *extra,
            ),
        )


@dataclass(frozen=True, eq=False)
class Model:
    """One catalogue's figures.

    Attributes
    ----------
    name : str
    counts : dict
        Of rows; see `pairs.match`.
    labels : dict
        Statistics by label.
    bins : dict
        By quantity and label: statistics of each bin.
    pairs : Pairs
    values : dict of Values
        By label.
    """

    name: str
    counts: dict[str, Any]
    labels: dict[str, Statistics]
    bins: dict[str, dict[str, list[Statistics]]]
    pairs: Pairs
    values: dict[str, Values]

    def to_json(self) -> dict[str, Any]:
        """All numbers."""
        return {"counts": self.counts, "labels": self.labels, "bins": self.bins}


@dataclass(frozen=True, eq=False)
class Comparison:
    """All that was measured.

    Attributes
    ----------
    models : list of Model
    truth : str
    duels : list of dict
        Two models on the same stars: ``label, first, second`` and `metrics.paired`.
    paper : str or None
    notes : list of str
        What a reader must know about rows and columns.
    """

    models: list[Model]
    truth: str
    duels: list[dict[str, Any]] = field(default_factory=list)
    paper: str | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def labels(self) -> list[str]:
        """Labels of any model."""
        return list(dict.fromkeys(name for m in self.models for name in m.labels))

    @property
    def published(self) -> list[tuple[str, str, dict[str, published.Figure]]]:
        """Label, method and figures that the paper printed."""
        return published.rows(self.paper, self.labels) if self.paper else []

    def to_json(self) -> dict[str, Any]:
        """All numbers; ``labels`` and ``bins`` are the first model's."""
        first = self.models[0]
        printed = [
            {
                "label": label,
                "method": method,
                "source": published.get(self.paper).source,
                "data": published.get(self.paper).data,
                "other_data": True,
                **{name: value for name, (value, _) in figures.items()},
                "scatter": {n: s for n, (_, s) in figures.items() if s is not None},
            }
            for label, method, figures in self.published
        ]
        return {
            "truth": self.truth,
            **first.to_json(),
            "models": {model.name: model.to_json() for model in self.models},
            "paired": self.duels,
            "published": printed,
            "notes": self.notes,
        }


def compare(sources: Sequence[str], request: Request) -> Comparison:
    """Compare catalogues with the truth.

    Parameters
    ----------
    sources : sequence of str
        As for `catalog.read`; the last one is the truth.
    request : Request

    Raises
    ------
    UsageError
        If something can't be read, matched or compared.
    """
    check_sources(sources, 2, "name one or more, and the truth last")
    wishes = request.wishes()
    if request.paper:
        published.get(request.paper)
    *first, last = read_sides(sources, wishes, truth=True)
    matcher = catalog.Matcher(last.rows, request.radius)
    notes = _order_notes(first, last)
    models = [_model(side, last, matcher, request, notes) for side in first]
    duels = [duel for pair in combinations(models, 2) for duel in _duels(*pair)]
    found = Comparison(models, last.source, duels, request.paper, notes)
    if request.paper and not found.published:
        notes.append(
            f"{published.get(request.paper).title} printed nothing about "
            f"{', '.join(found.labels)}"
        )
    return found


def check_sources(sources: Sequence[str], least: int, hint: str) -> None:
    """Refuse too few catalogues, and standard input twice."""
    if len(sources) < least:
        were = "catalogue was" if len(sources) == 1 else "catalogues were"
        raise UsageError(f"{len(sources)} {were} given; {hint}.")
    if sources.count("-") > 1:
        raise UsageError("standard input can be read once only; name a file.")


def read_sides(sources: Sequence[str], wishes: Wishes, truth: bool) -> list[Side]:
    """Read catalogues, with names that differ."""
    last = len(sources) if truth else 0
    found = [
        sides.read(source, number, number == last, wishes)
        for number, source in enumerate(sources, start=1)
    ]
    for a in wishes.columns:
        if not any(a in side.applied for side in found):
            raise UsageError(
                f"--column {a.text}: no catalogue has a column {a.value!r}."
            )
    names = [side.name for side in found]
    return [
        replace(side, name=f"{side.name} ({side.key})")
        if names.count(side.name) > 1
        else side
        for side in found
    ]


def _order_notes(models: Sequence[Side], truth: Side) -> list[str]:
    """Say so where the catalogue that stands last looks like no truth."""
    if PREDICTED in truth.header and not any(PREDICTED in m.header for m in models):
        what = "was made by 'stellar predict'"
    elif truth.errors and not any(model.errors for model in models):
        what = "alone has standard errors"
    else:
        return []
    others = " ".join(model.source for model in models)
    return [
        f"{truth.name} {what}, but stands last, where the truth goes; if it is the "
        f"prediction, give: {truth.source} {others}"
    ]


def _model(
    side: Side,
    truth: Side,
    matcher: catalog.Matcher,
    request: Request,
    notes: list[str],
) -> Model:
    labels = _labels(side, truth, request, notes)
    pairs = pairing.match(side, truth, matcher)
    pairs = pairing.without_flagged(pairs, request.drop_flagged)
    pairs = pairing.selected(pairs, request.select)
    notes += count_notes(pairs, request)
    values = {label: pairs.values(label) for label in labels}
    if not any(np.isfinite(v.residual).any() for v in values.values()):
        raise UsageError(
            f"no row of {side.source} has a value and a reference for any of "
            f"{', '.join(labels)}."
        )
    return Model(
        name=side.name,
        counts=pairs.counts | {"compared": int(pairs.left.size)},
        labels={label: statistics(value) for label, value in values.items()},
        bins={
            parse_bins(text)[0]: _bins(pairs, values, *parse_bins(text))
            for text in request.by
        },
        pairs=pairs,
        values=values,
    )


def _labels(side: Side, truth: Side, request: Request, notes: list[str]) -> list[str]:
    """Labels to compare; says which ones only one side has.

    Raises
    ------
    UsageError
        If there is none, or one that was asked for is missing.
    """
    asked = {Assignment.parse(text, "--column").name for text in request.columns}
    wanted = [sides.label_name(name) for name in request.target]
    for name in wanted:
        for one in (side, truth):
            if name not in one.values:
                raise UsageError(
                    f"{one.source} has no number called {name!r}; its labels are "
                    f"{', '.join(one.values) or 'none'}. Name the column with --column "
                    f"{one.key}:{name}=COLUMN."
                )
    both = [name for name in side.values if name in truth.values]
    if not both:
        raise UsageError(
            f"{side.source} ({', '.join(side.values) or 'no labels'}) and "
            f"{truth.source} ({', '.join(truth.values) or 'no labels'}) have no label "
            "in common; say which columns belong together, such as --column "
            "teff=Teff_lasp."
        )
    for one, other in ((side, truth), (truth, side)):
        alone = [n for n in one.values if n not in other.values]
        alone = [n for n in alone if n in (*sides.KNOWN, *asked)]
        if alone and not wanted:
            notes.append(f"only {one.name} has {', '.join(alone)}: left out")
    chosen = wanted or both
    unread = [sides.unread(one, name) for one in (side, truth) for name in chosen]
    notes += [note for note in unread if note and note not in notes]
    return chosen


def count_notes(pairs: Pairs, request: Request) -> list[str]:
    """Say what happened to the rows."""
    counts, name = pairs.counts, pairs.model.name
    ways = ", ".join(f"{n} by {way}" for way, n in counts["ways"].items())
    lines = [
        f"{name}: {counts['matched']} of {counts['rows']} rows matched ({ways}), "
        f"{counts['unmatched']} not; {counts['truth_unmatched']} of "
        f"{counts['truth_rows']} rows of {pairs.truth.name} without a partner"
    ]
    if counts["flagged"]:
        what = "left out" if request.drop_flagged else "counted (see --drop-flagged)"
        lines.append(f"{name}: {counts['flagged']} matched rows are flagged, {what}")
    if counts.get("not_selected"):
        lines.append(f"{name}: {counts['not_selected']} rows not selected")
    if counts["repeated"]:
        lines.append(
            f"{name}: {counts['repeated']} rows belong to the same row of "
            f"{pairs.truth.name} as another one; each counts"
        )
    if counts["truth_duplicates"]:
        lines.append(
            f"{pairs.truth.name}: {counts['truth_duplicates']} rows repeat the "
            "identifier of an earlier one, which is taken instead"
        )
    return lines


def statistics(values: Values) -> Statistics:
    """Everything about one label.

    Returns
    -------
    dict
        ``unit``, `metrics.summary` (``left_out`` split into ``no_prediction`` and
        ``no_reference``), ``mean_error``, ``deviation`` and, of a spectral type,
        ``within_half_subtype``; ``quadratic`` (label on prediction), with errors
        ``reliability``; ``intervals``.
    """
    predicted, reference, error = values.predicted, values.reference, values.error
    residual = values.residual[np.isfinite(values.residual)]
    found: Statistics = {"unit": values.unit}
    found |= metrics.summary(predicted, reference, error)
    found["no_prediction"] = int((~np.isfinite(predicted)).sum())
    found["no_reference"] = int((~np.isfinite(reference)).sum())
    found["mean_error"] = metrics.mean_error(residual)
    found["deviation"] = metrics.deviation(residual)
    if values.label == sides.SUBTYPE:
        found["within_half_subtype"] = metrics.within(residual)
    found["quadratic"] = _quadratic(predicted, reference)
    ratio = None
    if error is not None:
        ratio = metrics.ratios(predicted, reference, error)
        found["reliability"] = metrics.reliability(ratio)
    found["intervals"] = metrics.intervals(residual, ratio)
    return found


def _quadratic(predicted: np.ndarray, reference: np.ndarray) -> Statistics | None:
    """Coefficients of label on prediction, and how far the fit is from y = x."""
    fit = metrics.quadratic(predicted, reference)
    if fit is None:
        return None
    good = np.isfinite(predicted - reference)
    low, high = np.percentile(predicted[good], [1, 99])
    grid = np.linspace(low, high, 101)
    off, band = np.abs(fit(grid) - grid), fit.band(grid)
    return {
        "coefficients": list(fit.coefficients),
        "from": float(low),
        "to": float(high),
        "largest_departure": float(off.max()),
        "largest_band": float(band.max()),
        "diagonal_within_band": float(np.mean(off <= band)),
    }


# ------------------------------------------------------------------------------ bins


def parse_bins(text: str) -> tuple[str, list[float] | None]:
    """Read ``"snr"`` or ``"snr=10,30,100"``.

    Raises
    ------
    UsageError
        If edges aren't numbers, or don't increase.
    """
    name, equals, rest = text.partition("=")
    if not equals:
        return name.strip().lower(), None
    try:
        edges = [float(word) for word in rest.split(",")]
    except ValueError:
        edges = []
    if len(edges) < 2 or any(a >= b for a, b in pairwise(edges)):
        raise UsageError(
            f"--by {text!r} can't be read; write it like snr=10,30,100, with edges "
            "that increase."
        )
    return name.strip().lower(), edges


def bin_edges(name: str, values: np.ndarray) -> list[float]:
    """Round edges that cover the finite values; S/N has fixed ones.

    Raises
    ------
    UsageError
        If no value is finite.
    """
    finite = values[np.isfinite(values)]
    if not finite.size:
        raise UsageError(f"no row has a {name} to bin by.")
    low, high = np.percentile(finite, [0.2, 99.8])
    if name in sides.SNR:
        inner = [float(e) for e in SNR_EDGES if e <= high]
        beyond = [float(e) for e in SNR_EDGES if e > high and e >= finite.max()]
        return [*inner, beyond[0] if beyond else float(np.ceil(finite.max() + 1))]
    if low == high:
        return [float(low) - 0.5, float(high) + 0.5]
    rough = (high - low) / BINS
    unit = 10.0 ** np.floor(np.log10(rough))
    step = next(m * unit for m in (1, 2, 5, 10) if m * unit >= rough * 0.99)
    edges = np.arange(np.floor(low / step), np.ceil(high / step) + 1) * step
    return np.round(edges, 10).tolist()


def _bins(
    pairs: Pairs, values: dict[str, Values], name: str, edges: list[float] | None
) -> dict[str, list[Statistics]]:
    """Statistics per label and bin; bins without rows are left out."""
    by = pairs.column(name)
    if by.dtype.kind not in "fiu":
        raise UsageError(
            f"--by {name} needs numbers; that column holds something else."
        )
    by = np.asarray(by, dtype=np.float64)
    edges = edges or bin_edges(name, by)
    return {label: binned(by, edges, value) for label, value in values.items()}


def binned(by: np.ndarray, edges: Sequence[float], values: Values) -> list[Statistics]:
    """Compute `metrics.binned` with the interval of the MAE, for bins that have rows.

    Parameters
    ----------
    by : ndarray, shape (pair,)
    edges : sequence of float
    values : Values
    """
    rows = metrics.binned(by, edges, values.predicted, values.reference, values.error)
    residual = values.residual
    for number, row in enumerate(rows):
        last = number == len(rows) - 1
        upper = by <= row["high"] if last else by < row["high"]
        inside = (by >= row["low"]) & upper & np.isfinite(residual)
        if inside.any():
            row["middle"] = float(np.median(by[inside]))
            row["intervals"] = metrics.intervals(residual[inside], medians=False)
    return [row for row in rows if row["n"]]


def _duels(first: Model, second: Model) -> list[dict[str, Any]]:
    """Compare two models on the rows of the truth that both have."""
    one, two = pairing.common(first.pairs, second.pairs)
    return [
        {
            "label": label,
            "first": first.name,
            "second": second.name,
            **metrics.paired(
                first.values[label].residual[one], second.values[label].residual[two]
            ),
        }
        for label in first.labels
        if label in second.labels
    ]
