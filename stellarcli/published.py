"""What papers printed about the accuracy of their models, each with its source.

All of it was measured on other data than a user's: other stars, other labels, other
selections. Figures stand as printed, in the units of `labels.LABELS`; spectral types
are in units of a type, ten subtypes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from stellarcli.errors import unknown

Figure = tuple[
    float, float | None
]  # value and, where printed, its scatter over repeats


@dataclass(frozen=True)
class Result:
    """One method in one paper.

    Attributes
    ----------
    method : str
        As the paper calls it.
    figures : dict
        By label and metric (names of `metrics.summary`).
    settings : dict of str
        Values of our settings that the method stands for, such as the variant of a
        network.
    """

    method: str
    figures: dict[str, dict[str, Figure]]
    settings: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Paper:
    """What one paper printed.

    Attributes
    ----------
    title, source : str
        Short name, and where it was printed.
    data : str
        What the figures were measured on.
    results : tuple of Result
        The paper's own method first.
    """

    title: str
    source: str
    data: str
    results: tuple[Result, ...]


def get(name: str) -> Paper:
    """Return what a paper printed.

    Raises
    ------
    UsageError
        If `name` isn't in `PAPERS`.
    """
    if name not in PAPERS:
        raise unknown("paper", name, PAPERS)
    return PAPERS[name]


def _plain(metric: str, **values: float) -> dict[str, dict[str, Figure]]:
    """Figures of one metric by label, without scatter."""
    return {label: {metric: (value, None)} for label, value in values.items()}


# ------------------------------------------------------------------------- SCA-Net

ATMOSPHERE = ("teff", "logg", "feh")


def _variant(name: str, *figures: Figure) -> Result:
    """Row of table 1: MAE and RMSE of each label in turn."""
    pairs = zip(ATMOSPHERE, figures[::2], figures[1::2], strict=True)
    return Result(
        f"SCA-Net {name}",
        {label: {"mae": mae, "rmse": rmse} for label, mae, rmse in pairs},
        settings={"variant": name.replace("-", "")},
    )


def _mean_absolute(method: str, *values: float) -> Result:
    """Teff, log g and, where printed, [Fe/H]."""
    return Result(method, _plain("mae", **dict(zip(ATMOSPHERE, values, strict=False))))


SCANET = Paper(
    title="SCA-Net",
    source="Zhang et al. 2026, Acta Astronomica Sinica, tables 1 and 3",
    data=(
        "20 000 LAMOST DR10 low-resolution spectra of A to K stars, S/N > 25, against "
        "LASP; ± is the deviation over five trainings; LASP's own errors there: 21.4 K,"
        " 0.0285, 0.0156"
    ),
    results=(
        _variant(
            "M-M-T-T",
            (71.07, 9.43),
            (111.84, 11.98),
            (0.042, 0.001),
            (0.074, 0.002),
            (0.040, 0.006),
            (0.067, 0.006),
        ),
        _variant(
            "M-M-M-M",
            (75.62, 4.66),
            (112.90, 3.86),
            (0.042, 0.005),
            (0.075, 0.004),
            (0.041, 0.007),
            (0.067, 0.006),
        ),
        _variant(
            "M-M-M-T",
            (81.04, 17.12),
            (126.77, 17.08),
            (0.042, 0.003),
            (0.074, 0.006),
            (0.039, 0.004),
            (0.068, 0.004),
        ),
        _variant(
            "M-T-T-T",
            (78.07, 10.43),
            (119.55, 15.95),
            (0.045, 0.004),
            (0.077, 0.003),
            (0.045, 0.013),
            (0.072, 0.012),
        ),
        _variant(
            "T-T-T-T",
            (127.48, 70.42),
            (174.52, 91.26),
            (0.069, 0.035),
            (0.107, 0.047),
            (0.065, 0.036),
            (0.096, 0.037),
        ),
        _mean_absolute("GSN", 80.0, 0.14, 0.07),
        _mean_absolute("DCN", 97.21, 0.28, 0.13),
    ),
)


# ---------------------------------------------------------------------- MK subtypes


def _subtype(
    method: str, maximum: float, mean: float, deviation: float, **more: float
) -> Result:
    """Row of tables 1 and 2, in spectral types."""
    values = {"maximum": maximum, "mean_error": mean, "deviation": deviation} | more
    return Result(
        method, {"sptype_num": {name: (value, None) for name, value in values.items()}}
    )


MKRESNET = Paper(
    title="MK ResNet",
    source="Wang et al. 2021, Spectroscopy and Spectral Analysis 41, 1602, tables 1, 2",
    data=(
        "16 249 LAMOST DR5 spectra of A to K stars against the survey's subclass; the "
        "mean leaves the largest error out"
    ),
    results=(
        _subtype("ResNet, kernel 5", 2.98, 0.03, 0.05, within_half_subtype=0.914),
        _subtype("ResNet, kernel 3", 3.77, 0.07, 0.12),
        _subtype("ResNet, kernel 7", 1.99, 0.05, 0.07),
        _subtype("ResNet, kernel 9", 2.01, 0.05, 0.07),
        _subtype("non-parametric regression", 2.96, 0.19, 0.22),
        _subtype("AdaBoost CART", 3.19, 0.38, 0.32),
        _subtype("K-means", 3.12, 0.37, 0.39),
    ),
)


# ------------------------------------------------------------------------------ RDN

RDN = Paper(
    title="RDN",
    source="Chen, Wu & Zhang (RDN), section 4 and table 2 (n: residual dense blocks)",
    data=(
        "LAMOST DR7 medium-resolution spectra, S/N ≥ 10, 4000 < Teff < 6500 K, against "
        "APOGEE-Payne DR17; RRNet (Xiong et al. 2022) and SPEMR (arXiv:2312.15989) on "
        "selections of their own"
    ),
    results=(
        Result(
            "RDN (n = 3)",
            _plain(
                "mae",
                teff=52.92,
                logg=0.0816,
                feh=0.03,
                c_h=0.0523,
                n_h=0.0737,
                o_h=0.0750,
                mg_h=0.0345,
                al_h=0.0414,
                si_h=0.0322,
                s_h=0.0572,
                k_h=0.0854,
                ca_h=0.0385,
                ti_h=0.0739,
                cr_h=0.0645,
                mn_h=0.0717,
                ni_h=0.0397,
                cu_h=0.1338,
            ),
        ),
        _mean_absolute("RDN, n = 1", 56.1, 0.0871, 0.0342),
        _mean_absolute("RDN, n = 2", 53.4, 0.0823, 0.0327),
        _mean_absolute("RDN, n = 4", 53.6, 0.0821, 0.0297),
        _mean_absolute("RRNet (MRS, APOGEE-Payne, S/N ≥ 10)", 88.0, 0.13),
        _mean_absolute("SPEMR (MRS, APOGEE-Payne, S/N ≥ 10)", 47.0, 0.08, 0.03),
    ),
)


# -------------------------------------------------------------------------- SPFusion


def _red_clump(method: str, mass: float, age: float, **settings: object) -> Result:
    """Row of tables 2 to 7: solar masses and Gyr; what an ablation changed."""
    words = {name: str(value) for name, value in settings.items()}
    return Result(method, _plain("mae", mass=mass, age=age), settings=words)


SPFUSION = Paper(
    title="SPFusion",
    source="He et al. (SPFusion), tables 2 to 7",
    data=(
        "55 697 red-clump stars, LAMOST DR10 low-resolution spectra (S) and SDSS g, r, "
        "i images (P), three-fold cross-validation, against He et al. 2022"
    ),
    results=(
        _red_clump("SPFusion (S, P)", 0.0640, 0.7456),
        _red_clump("without star operator (S, P)", 0.0674, 0.7884, star=False),
        _red_clump("kernel 3 (S, P)", 0.0662, 0.7671, kernel=3),
        _red_clump("kernel 11 (S, P)", 0.0659, 0.7586, kernel=11),
        _red_clump("ratio 2 (S, P)", 0.0683, 0.7922, ratio=2),
        _red_clump("ratio 3 (S, P)", 0.0662, 0.7816, ratio=3),
        _red_clump("ratio 5 (S, P)", 0.0671, 0.8019, ratio=5),
        _red_clump("2 heads (S, P)", 0.0656, 0.7563, heads=2),
        _red_clump("4 heads (S, P)", 0.0645, 0.7416, heads=4),
        _red_clump("7 heads (S, P)", 0.0665, 0.7895, heads=7),
        _red_clump("2 Metaformer blocks (S, P)", 0.0652, 0.7571, metaformers=2),
        _red_clump("3 Metaformer blocks (S, P)", 0.0679, 0.7835, metaformers=3),
        _red_clump("ConvNeXt 1D (S)", 0.0694, 0.7938),
        _red_clump("RAC-Net (S)", 0.0809, 0.8786),
        _red_clump("SSCNN (S)", 0.1072, 0.9656),
        _red_clump("ConvNeXt V2 Pico (P)", 0.1348, 1.2729),
        _red_clump("Metaformer S12 (P)", 0.1351, 1.3218),
        _red_clump("MobileViT XXS (P)", 0.1353, 1.2934),
        _red_clump("EfficientViT B0 (P)", 0.1356, 1.2871),
        _red_clump("MobileNetV4 S (P)", 0.1357, 1.2711),
        _red_clump("ConvNeXt Pico (P)", 0.1360, 1.2875),
        _red_clump("GhostNet V2 (P)", 0.1366, 1.2919),
        _red_clump("ResNet10T (P)", 0.1375, 1.2747),
    ),
)

PAPERS = {"scanet": SCANET, "mkresnet": MKRESNET, "rdn": RDN, "spfusion": SPFUSION}


def rows(name: str, labels: Iterable[str]) -> list[tuple[str, str, dict[str, Figure]]]:
    """List what a paper printed about some labels.

    Parameters
    ----------
    name : str
        Key of `PAPERS`.
    labels : iterable of str

    Returns
    -------
    list of (label, method, figures)

    Raises
    ------
    UsageError
        If `name` isn't in `PAPERS`.
    """
    results = get(name).results
    return [
        (label, result.method, result.figures[label])
        for label in labels
        for result in results
        if label in result.figures
    ]
