"""Settings of a training run: defaults, presets, YAML files, ``key=value``."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from stellarcli import labels, plainyaml
from stellarcli.augmentation import Augmentation
from stellarcli.catalog import nearest
from stellarcli.errors import UsageError, unknown
from stellarcli.losses import LOSSES

OPTIMIZERS = ("adamw", "adam")
SCHEDULES = ("cosine", "restarts", "constant")
PRECISIONS = ("auto", "float32", "bfloat16")
MODEL = "resnet1d"  # architecture unless one is chosen

# Limits of numbers, inclusive; those of POSITIVE are above 0
LIMITS = {
    "test": (0, 1),
    "validation": (0, 1),
    "folds": (0, 1000),
    "fold": (0, 1000),
    "weight_decay": (0, math.inf),
    "warmup": (0, 1),
    "clip": (0, math.inf),
    "average": (0, 0.999999),
    "patience": (0, math.inf),
    "seed": (0, 2**32),
    "repeat": (0, 2**32),
    "noise": (0, math.inf),
    "velocity": (0, 100),
    "distortion": (0, 1),
    "hide": (0, 1),
}
POSITIVE = ("epochs", "batch_size", "learning_rate", "members", "restart_epochs")
POSITIVE += ("pool",)
NESTED = ("network", "stream")  # settings such as network.width

# What only gradient descent uses: refused for models computed in one go
DESCENT = ("init", "freeze", "loss", "label_weights", "label_errors", "epochs")
DESCENT += (
    "weigh_in_units",
    "batch_size",
    "optimizer",
    "learning_rate",
    "weight_decay",
    "schedule",
)
DESCENT += ("restart_epochs", "warmup", "clip", "average", "patience", "precision")
DESCENT += ("noise", "velocity", "distortion", "hide", "stream")

# SPFusion and the networks of its table 2 are trained alike: 100 MSE(mass) + MSE(age);
# two thirds of a fold to learn from, 7 : 3 with those to judge by
SPFUSION_NETWORKS = ("spfusion", "convnext1d", "sscnn", "racnet")
SPFUSION_NETWORKS += ("resnet10t", "convnextpico", "metaformer")
SPFUSION: dict[str, Any] = {
    "target": ("mass", "age"),
    "loss": "mse",
    "label_weights": (100.0, 1.0),
    "weigh_in_units": True,
    "epochs": 150,
    "batch_size": 32,
    "optimizer": "adam",
    "learning_rate": 1e-3,
    "weight_decay": 0.0,
    "schedule": "restarts",
    "restart_epochs": 20,
    "warmup": 0.0,
    "average": 0.0,
    "validation": 0.3,
}

# What a paper did, by architecture; `--preset paper`. Figures from SYSTEMS.md.
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "paper": {
        "scanet": {
            "loss": "mae",
            "epochs": 80,
            "batch_size": 32,
            "learning_rate": 1e-4,
            "optimizer": "adamw",
            "schedule": "constant",
            "warmup": 0.0,
            "average": 0.0,
            "validation": 0.1,
        },
        "rdn": {
            "loss": "nll",
            "epochs": 30,
            "batch_size": 256,
            "members": 6,
            "test": 0.2,
            "validation": 0.1,
        },
        **dict.fromkeys(SPFUSION_NETWORKS, SPFUSION),
        # 7 : 1 : 2; its epochs, batches and optimiser are stated nowhere
        "mkresnet": {
            "loss": "log_cosh",
            "epochs": 60,
            "batch_size": 32,
            "learning_rate": 3e-4,
            "clip": 1.0,
            "test": 0.2,
            "validation": 0.125,
        },
        # of the first of three stages
        "spectrafm": {
            "network": {
                "tokens": "pixels",
                "width": 256,
                "heads": [16, 8, 16, 8, 4],
                "encoder": [2048, 1024],
                "decoder": [2048, 1024, 512],
                "hidden": [2048, 1024, 512, 256],
                "context": 512,
                "norm": "after",
                "cut": 0.0,
                "dropout": 0.05,
            },
            "loss": "nll",
            "epochs": 325,
            "batch_size": 64,
            "learning_rate": 1e-4,
            "optimizer": "adamw",
            "schedule": "restarts",
            "restart_epochs": 50,
            "average": 0.0,
        },
    },
}


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides about a training run.

    Read from YAML, overridden by options, saved resolved in the model file.
    """

    # what
    model: str = ""  # key of MODELS; where empty that of init, or MODEL
    network: dict[str, Any] = field(default_factory=dict)  # options of the network
    target: tuple[str, ...] = ("teff", "logg", "feh")  # label columns; sptype is text
    init: str | None = None  # model whose weights and label scaling to start from
    freeze: tuple[str, ...] = ()  # parts of the network to keep as they are: trunk
    # data
    select: str | None = None  # rows to use, "snrg > 10 and clean"
    group: str | None = None  # column that keeps rows together, such as plan
    split: str | None = None  # column that says train, validation, test
    test: float = 0.0  # fraction of groups never used
    validation: float = 0.1  # fraction of groups for calibration and the choice of runs
    folds: int = 0  # k of a k-fold cross-validation of what `test` leaves
    fold: int = 0  # which one is the test part, from 0
    label_errors: bool = False  # use columns <label>_err in the loss
    stream: dict[str, Any] = field(default_factory=dict)  # spectra simulated per epoch
    emulator: str | None = None  # file that streams use instead of the shipped one
    pool: int = 1000  # stars synthesised for the stream lamost-mrs
    # learning
    loss: str = "nll"  # key of LOSSES
    label_weights: tuple[float, ...] = ()  # per label, in the loss; 1 by default
    weigh_in_units: bool = False  # they hold for squared errors in the labels' units
    epochs: int = 30
    batch_size: int = 64
    optimizer: str = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    schedule: str = "cosine"
    restart_epochs: int = 20  # length of a cycle of schedule restarts
    warmup: float = 0.03  # fraction of all steps with a rising learning rate
    clip: float = 1.0  # largest norm of the gradient; 0 for no limit
    average: float = 0.998  # decay of the running mean of the weights; 0 for none
    patience: int = 0  # epochs without improvement before stopping; 0 for all epochs
    members: int = 1  # networks of the ensemble, seeds seed, seed + 1, …
    seed: int = 1  # of the split, the weights and the order
    repeat: int = 0  # another draw of weights and order on the same split
    # augmentation, see Augmentation
    noise: float = 0.0
    velocity: float = 0.0
    distortion: float = 0.0
    hide: float = 0.0
    # computing
    device: str = "auto"
    precision: str = "auto"  # float32, bfloat16, or auto: bfloat16 where it is fast
    half: bool = True  # store weights as float16

    def __post_init__(self) -> None:
        """Refuse values that can't be."""
        for name, valid in (
            ("loss", LOSSES),
            ("optimizer", OPTIMIZERS),
            ("schedule", SCHEDULES),
            ("precision", PRECISIONS),
        ):
            if getattr(self, name) not in valid:
                raise unknown(name, getattr(self, name), valid)
        for name in POSITIVE:
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise UsageError(f"{name} must be positive, not {value}.")
        for name, (low, high) in LIMITS.items():
            value = getattr(self, name)
            if not low <= value <= high or value == math.inf:
                raise UsageError(f"{name} must be {low} to {high:g}, not {value}.")
        self._check_targets()
        self._check_split()
        if self.freeze and not self.init:
            raise UsageError(
                f"freeze {','.join(self.freeze)} keeps parts of a model as they are: "
                "name that model with --init, or leave --freeze out."
            )

    def _check_targets(self) -> None:
        names = {labels.get(name).name for name in self.target}
        if not self.target or len(names) < len(self.target):
            raise UsageError(
                f"target must name labels, each once, not {', '.join(self.target)!r}."
            )
        if self.label_weights and len(self.label_weights) != len(self.target):
            raise UsageError(
                f"{len(self.label_weights)} label_weights for {len(self.target)} "
                f"labels ({', '.join(self.target)}); give one each."
            )
        linear = {labels.get(name).transform for name in self.target} == {"linear"}
        if self.weigh_in_units and not (self.loss == "mse" and linear):
            raise UsageError(
                "weigh_in_units is meant for loss mse and labels that aren't scaled by "
                f"a logarithm, not for {self.loss} of {', '.join(self.target)}."
            )
        weights = self.label_weights or (1.0,)
        if not (min(weights) >= 0 and 0 < sum(weights) < math.inf):
            given = ", ".join(map(str, weights))
            raise UsageError(f"label_weights must be positive or 0, not {given}.")

    def _check_split(self) -> None:
        if self.test + self.validation >= 1:
            raise UsageError(
                f"test ({self.test}) and validation ({self.validation}) must leave "
                "something to train on: their sum is below 1."
            )
        if self.folds == 1 or (self.folds and self.fold >= self.folds):
            raise UsageError(
                f"fold {self.fold} of {self.folds} doesn't exist: give at least 2 "
                "folds; they are counted from 0."
            )
        if self.folds and self.split:
            raise UsageError(
                f"folds and the split column {self.split!r} are two ways to split; "
                "leave one out."
            )
        if self.patience and not self.validation and not self.split:
            raise UsageError(
                "patience waits for the validation loss; set validation above 0."
            )

    def check_in_one_go(self) -> None:
        """Refuse settings of the descent, for a model that has none."""
        default = TrainConfig()
        given = [n for n in DESCENT if getattr(self, n) != getattr(default, n)]
        if given:
            raise UsageError(
                f"{self.model} is computed in one go, without gradient descent: "
                f"{', '.join(given)} would have no effect. Leave them out, or choose "
                "another --model."
            )

    def random_seed(self, *what: object) -> int:
        """Return a seed for one purpose, such as a member's epoch.

        Different purposes and repeats share nothing; the same ones always agree, so
        that a resumed run draws what the uninterrupted one would have drawn.
        """
        text = f"{self.seed}:{self.repeat}:{what}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1

    @property
    def augmentation(self) -> Augmentation:
        """The settings of augmentation."""
        return Augmentation(self.noise, self.velocity, self.distortion, self.hide)

    def to_json(self) -> dict[str, Any]:
        """Plain values for a model file."""
        return asdict(self)

    @classmethod
    def resolve(cls, *sources: dict[str, Any]) -> TrainConfig:
        """Merge settings, later ones win.

        Raises
        ------
        UsageError
            If a key is unknown (names the nearest) or a value has the wrong type.
        """
        merged: dict[str, Any] = {}
        valid = {f.name: f for f in fields(cls)}
        for source in sources:
            for key, value in source.items():
                head, _, tail = str(key).partition(".")
                if head not in valid or (tail and head not in NESTED):
                    raise unknown("training setting", str(key), valid)
                if tail:
                    merged[head] = {**merged.get(head, {}), tail: _number(value)}
                else:
                    merged[head] = _convert(str(valid[head].type), head, value)
        return cls(**merged)


def _convert(kind: str, name: str, value: Any) -> Any:
    """Bring a YAML or command-line value to the type of its field."""
    try:
        if kind.startswith("tuple"):
            items = value.split(",") if isinstance(value, str) else value
            number = "float" in kind
            if isinstance(items, int | float):
                items = [items]
            return tuple(float(i) if number else str(i).strip() for i in items)
        if kind.startswith("dict") and isinstance(value, dict):
            return {str(k): _number(v) for k, v in value.items()}
        if "None" in kind:
            return None if value is None else str(value)
        if kind == "bool" and isinstance(value, bool):
            return value
        if kind == "int" and not isinstance(value, bool):
            if float(value) == int(float(value)):
                return int(float(value))
        elif kind == "float" and not isinstance(value, bool):
            return float(value)
        elif kind == "str" and isinstance(value, str):
            return value
    except (TypeError, ValueError, OverflowError):
        pass
    raise UsageError(f"training setting {name!r} must be {kind}, not {value!r}.")


def preset(name: str, model: str) -> dict[str, Any]:
    """Return the settings of a preset for an architecture.

    Raises
    ------
    UsageError
        If there is no such preset.
    """
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    if model not in PRESETS[name]:
        raise unknown(f"architecture of preset {name!r}", model, PRESETS[name])
    return {"model": model, **PRESETS[name][model]}


def read_config(path: Path) -> dict[str, Any]:
    """Read settings from a YAML file.

    Raises
    ------
    UsageError
        If it can't be read or isn't a mapping.
    """
    try:
        values = plainyaml.parse(path.read_text()) or {}
    except OSError as error:
        hint = nearest(str(path))
        raise UsageError(f"configuration '{path}': {error.strerror}.{hint}") from None
    except ValueError as error:
        raise UsageError(f"configuration '{path}' is not YAML: {error}") from None
    if not isinstance(values, dict):
        raise UsageError(f"configuration '{path}' must be a mapping of settings.")
    return values


def parse_pairs(pairs: list[str]) -> dict[str, Any]:
    """Read ``key=value`` settings; values as YAML, so that ``[1, 2]`` is a list.

    Raises
    ------
    UsageError
        If one has no ``=`` or isn't YAML.
    """
    return dict(_pairs(pairs, "--set", "{}", "KEY=VALUE"))


def parse_grid(pairs: list[str]) -> dict[str, list[Any]]:
    """Read ``key=value,value,…``: the values that a grid search runs through.

    Raises
    ------
    UsageError
        If one has no ``=``, no value, or isn't YAML.
    """
    grid = dict(_pairs(pairs, "--grid", "[{}]", "KEY=VALUE,VALUE"))
    for key, values in grid.items():
        if not values:
            raise UsageError(f"--grid takes KEY=VALUE,VALUE; {key} has no value.")
    return {key: [_number(value) for value in values] for key, values in grid.items()}


def _pairs(
    pairs: list[str], option: str, form: str, wanted: str
) -> Iterator[tuple[str, Any]]:
    """Split ``key=text``, and read the text, put into a form, as YAML."""
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals:
            raise UsageError(f"{option} takes {wanted}, not {pair!r}.")
        yield key.strip(), _value(pair, form.format(text))


def _value(pair: str, text: str) -> Any:
    try:
        return _number(plainyaml.parse(text))
    except plainyaml.PlainYAMLError:
        raise UsageError(f"{pair}: the value is not YAML.") from None


def _number(value: Any) -> Any:
    """Turn text such as 1e-3, which YAML takes for text, into a number."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value
