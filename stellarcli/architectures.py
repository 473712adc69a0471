"""What the networks of a paper weigh and cost, beside what it printed.

Each row is one network, built alone and forgotten before the next, so that the biggest
one decides how much memory is needed. Parameters and multiply-adds are counted on
torch's meta device, without any memory.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from stellarcli import models, settings
from stellarcli.errors import unknown

BATCH = 32
PRECISIONS = ("float32", "bfloat16")
ROUNDS, SECONDS = 5, 2.0  # timing ends after so many rounds, or so many seconds

Row = dict[str, Any]


@dataclass(frozen=True)
class Published:
    """One network of a paper's table.

    Attributes
    ----------
    variant, conv : str
        Its name in two columns; `conv` is empty where the paper has one kind only.
    options : dict
        Of the network, beside the defaults.
    parameters, macs : int or None
        As printed; multiply-adds of one spectrum.
    live_parameters : int or None
        Those that the published code uses.
    latency_ms : float or None
        Per spectrum, as printed.
    model : str
        Key of `models.MODELS`; empty for that of the paper's name.
    """

    variant: str
    conv: str
    options: dict[str, Any]
    parameters: int | None = None
    live_parameters: int | None = None
    macs: int | None = None
    latency_ms: float | None = None
    model: str = ""


@dataclass(frozen=True)
class Architecture:
    """The networks of one paper.

    Attributes
    ----------
    title : str
    source : str
        Where its figures were printed.
    pixels, labels : int
        Of the paper's experiment.
    networks : tuple of Published
    note : str
        Why printed figures and ours differ.
    """

    title: str
    source: str
    pixels: int
    labels: int
    networks: tuple[Published, ...]
    note: str = ""


def _scanet(
    variant: str, conv: str, parameters: float, live: float, macs: float, latency: float
) -> Published:
    """Row of table 2: millions of parameters, billions of multiply-adds, ms."""
    return Published(
        variant=variant,
        conv=conv,
        options={"variant": variant, "conv": conv},
        parameters=round(parameters * 1e6),
        live_parameters=round(live * 1e6),
        macs=round(macs * 1e9),
        latency_ms=latency,
    )


ARCHITECTURES = {
    "scanet": Architecture(
        title="SCA-Net",
        source="Zhang et al. 2026, table 2 (latency on an RTX 2080 Ti)",
        pixels=4096,
        labels=3,
        networks=(
            _scanet("MMMM", "mbconv", 61.867, 61.867, 4.738, 1.779),
            _scanet("MMMM", "standard", 789.196, 793.196, 57.826, 4.660),
            _scanet("MMMT", "mbconv", 83.319, 66.524, 7.013, 2.231),
            _scanet("MMMT", "standard", 628.581, 611.786, 57.085, 4.769),
            _scanet("MMTT", "mbconv", 114.239, 68.020, 4.523, 1.840),
            _scanet("MMTT", "standard", 166.526, 120.307, 22.609, 2.664),
            _scanet("MTTT", "mbconv", 118.738, 69.359, 1.876, 1.418),
            _scanet("MTTT", "standard", 122.218, 72.840, 7.294, 1.648),
            _scanet("TTTT", "mbconv", 119.555, 69.912, 0.967, 1.334),
        ),
        note=(
            "The published code holds a second feed-forward layer in each Transformer "
            "block that it never uses; its live parameters leave that out. Its "
            "Transformer stages pool 4x instead of 2x and apply attention and "
            "feed-forward twice, hence other multiply-adds wherever there is a T. It "
            "prints 789.196 M for the standard M-M-M-M and builds 793.196 M. It fuses "
            "three stages at 256 channels, the paper's text and this program four at "
            "192."
        ),
    ),
    "rdn": Architecture(
        title="RDN and the networks that it is compared with",
        source="Chen, Wu & Zhang (RDN), table 2 and figure 6",
        pixels=8802,
        labels=17,
        networks=(
            *(Published(f"n={n}", "", {"blocks": n}) for n in (1, 2, 3, 4)),
            *(
                Published(name, "", {}, model=name.lower())
                for name in ("ResNet", "DenseNet", "StarNet")
            ),
        ),
        note=(
            "The paper prints no sizes and says neither how wide its networks are nor "
            "how fast they grow; here RDN has 32 channels and a growth rate of 16, "
            "ResNet 18 layers of 16 to 128 channels, DenseNet 11 dense layers, StarNet "
            "what its own paper says. n is the number of residual dense blocks; 3 is "
            "the paper's choice."
        ),
    ),
    "spfusion": Architecture(
        title="SPFusion and the networks that it is compared with",
        source="He et al. (SPFusion), table 2",
        pixels=3584,
        labels=2,
        networks=(
            Published("SPFusion", "", {}, 940_000),
            Published("without star", "", {"star": False}),
            *(Published(f"kernel {n}", "", {"kernel": n}) for n in (3, 11)),
            *(Published(f"ratio {n}", "", {"ratio": n}) for n in (2, 3, 5)),
            *(Published(f"heads {n}", "", {"heads": n}) for n in (2, 4, 7)),
            *(Published(f"Metaformers {n}", "", {"metaformers": n}) for n in (2, 3)),
            *(
                Published(variant, "", {}, parameters, model=model)
                for variant, parameters, model in (
                    ("ConvNeXt 1D", 570_000, "convnext1d"),
                    ("RAC-Net", 760_000, "racnet"),
                    ("SSCNN", 750_000, "sscnn"),
                    ("ResNet10T", 4_950_000, "resnet10t"),
                    ("ConvNeXt Pico", 8_560_000, "convnextpico"),
                    ("Metaformer S12", 11_430_000, "metaformer"),
                )
            ),
        ),
        note=(
            "Printed to 0.01 M. Of RAC-Net and SSCNN the paper says nothing but their "
            "size, of the networks on images nothing about the two linear layers "
            "behind them; these are this program's choice. Heads have no weights."
        ),
    ),
    "mkresnet": Architecture(
        title="MK ResNet",
        source="Wang et al. 2021, which prints no parameters, multiply-adds or times",
        pixels=3738,
        labels=1,
        networks=tuple(
            Published(f"kernel {kernel}", "", {"kernel": kernel})
            for kernel in (5, 3, 7, 9)
        ),
    ),
    "spectrafm": Architecture(
        title="SpectraFM",
        source="Koblischke & Bovy 2024 (arXiv:2411.04750)",
        pixels=512,
        labels=5,
        networks=(
            Published(
                *("paper", ""),
                settings.PRESETS["paper"]["spectrafm"]["network"],
                parameters=11_870_000,
                live_parameters=8_020_000,
            ),
            Published("patches", "", {}),
            Published("fully connected", "", {}, 4_990_000, model="perceptron"),
        ),
        note=(
            "The published SpectraFM holds a table of 3.85 million weights of which a "
            "handful of rows is used; its live parameters leave that out. 'patches' is "
            "this program's own network at its default size, whose multiply-adds here "
            "are those of a spectrum with light in all of its 322 patches. The paper's "
            "fully connected network has one output, ours a mean and a variance for "
            "each of five labels."
        ),
    ),
}


def get(name: str) -> Architecture:
    """Return the published networks of an architecture.

    Raises
    ------
    UsageError
        If `name` isn't in `ARCHITECTURES`.
    """
    if name not in ARCHITECTURES:
        raise unknown("architecture", name, ARCHITECTURES)
    return ARCHITECTURES[name]


def table(
    name: str = "scanet",
    *,
    latency: bool = True,
    device: str = "cpu",
    batch: int = BATCH,
    precision: str = "float32",
    progress: Callable[[Row], None] = lambda row: None,
) -> list[Row]:
    """Count, and time, all networks of an architecture.

    Parameters
    ----------
    name : str
        Key of `ARCHITECTURES`.
    latency : bool
        Time them, too; this takes as much memory as the biggest network.
    device : str
        To time them on.
    batch : int
        Spectra in one forward pass.
    precision : {'float32', 'bfloat16'}
        Of the networks' trunks while timed.
    progress : callable
        Told of each row as it is finished.

    Returns
    -------
    list of dict
        With ``name, variant, conv, parameters, macs, latency_ms`` and, as printed,
        ``published_parameters, live_parameters, published_macs,
        published_latency_ms``. Numbers are int and float, or None.

    Raises
    ------
    UsageError
        If the architecture or the precision is unknown.
    """
    architecture = get(name)
    if precision not in PRECISIONS:
        raise unknown("precision", precision, PRECISIONS)
    rows = []
    for published in architecture.networks:
        parameters, macs = count(name, published)
        milliseconds = None
        if latency:
            milliseconds = _latency(name, published, device, batch, precision)
        rows.append(
            {
                "name": published.model or name,
                "variant": published.variant,
                "conv": published.conv,
                "parameters": parameters,
                "macs": macs,
                "latency_ms": milliseconds,
                "published_parameters": published.parameters,
                "live_parameters": published.live_parameters,
                "published_macs": published.macs,
                "published_latency_ms": published.latency_ms,
            }
        )
        progress(rows[-1])
    return rows


def _build(name: str, published: Published) -> nn.Module:
    architecture = get(name)
    return models.build(
        published.model or name,
        pixels=architecture.pixels,
        labels=architecture.labels,
        **published.options,
    )


def count(name: str, published: Published) -> tuple[int, int]:
    """Count parameters, and multiply-adds of one spectrum, without memory.

    Parameters
    ----------
    name : str
        Key of `ARCHITECTURES`.
    published : Published

    Returns
    -------
    parameters, macs : int
    """
    with torch.device("meta"):
        network = _build(name, published)
        macs = models.count_multiply_adds(network, get(name).pixels)
    return sum(p.numel() for p in network.parameters()), macs


def _latency(
    name: str, published: Published, device: str, batch: int, precision: str
) -> float:
    """Milliseconds per spectrum of a network that was made ready for inference."""
    with torch.device(device):
        network = _build(name, published).eval()
    inputs = models.made_up(network, batch, get(name).pixels)
    if hasattr(network, "fuse"):
        network.fuse()
    if precision == "bfloat16":
        network.trunk.to(torch.bfloat16)
    return 1000 * seconds(network, *inputs) / batch


@torch.inference_mode()
def seconds(network: nn.Module, *inputs: torch.Tensor) -> float:
    """Median time of a forward pass, after one that isn't counted.

    Parameters
    ----------
    network : nn.Module
    *inputs : Tensor
        What it is fed.

    Returns
    -------
    float
        Seconds for the whole batch, what runs on a GPU included.
    """
    times: list[float] = []
    _timed(network, *inputs)
    while len(times) < ROUNDS and sum(times) < SECONDS:
        times.append(_timed(network, *inputs))
    return statistics.median(times)


def _timed(network: nn.Module, *inputs: torch.Tensor) -> float:
    start = time.perf_counter()
    network(*inputs)
    if inputs[0].is_cuda:
        torch.cuda.synchronize(inputs[0].device)
    return time.perf_counter() - start


# ------------------------------------------------------------------------ plain text

# heading, key, unit, format; a column without any value is left out
COLUMNS: tuple[tuple[str, str, float, str], ...] = (
    ("parameters", "parameters", 1e6, "{:.3f} M"),
    ("live in the published code", "live_parameters", 1e6, "{:.3f} M"),
    ("published", "published_parameters", 1e6, "{:.3f} M"),
    ("multiply-adds", "macs", 1e9, "{:.3f} G"),
    ("published", "published_macs", 1e9, "{:.3f} G"),
    ("latency", "latency_ms", 1.0, "{:.3f} ms"),
    ("published", "published_latency_ms", 1.0, "{:.3f} ms"),
)


def to_text(rows: Sequence[Row]) -> str:
    """Lay rows out as plain text, with the source of the figures and the note.

    Parameters
    ----------
    rows : sequence of dict
        Of `table`.

    Returns
    -------
    str
        Lines of equal columns.
    """
    import textwrap

    architecture = get(rows[0]["name"])
    shown = [c for c in COLUMNS if any(row[c[1]] is not None for row in rows)]
    cells = [["network", *(heading for heading, *_ in shown)]]
    for row in rows:
        values = [
            "–" if row[key] is None else form.format(row[key] / unit)
            for _, key, unit, form in shown
        ]
        cells.append([_label(row), *values])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if n else cell.ljust(width)
            for n, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in cells
    ]
    source = f"{architecture.title}; published: {architecture.source}."
    notes = textwrap.fill(architecture.note, 88)
    return "\n".join([*lines, "", source, notes]).rstrip()


def _label(row: Row) -> str:
    return f"{row['variant']} ({row['conv']})" if row["conv"] else row["variant"]
