"""The model file: weights and everything that `predict` needs, without pickle.

A ``.safetensors`` file. Tensors are named ``<member>.<parameter>``, so that an ensemble
is one file; statistics of the training spectra are ``novelty.<name>``, and errors by
where a spectrum lies ``coverage.<name>``. The metadata entry ``stellar`` is JSON with
the fields of `Model`; its ``sha256`` guards all of it.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stellarcli import catalog, coverage, familiarity, models, preprocess
from stellarcli.errors import ModelFileError, UsageError, unknown
from stellarcli.labels import Label
from stellarcli.preprocess import Recipe

if TYPE_CHECKING:
    from torch import nn

FORMAT = 3  # raised when older programs could misread the file
DEFAULT = "default"
KINDS = {  # of the values in a file
    "name": str,
    "pixels": int,
    "labels": list,
    "error_scale": list,
    "error_slope": list,
    "limits": dict,
    "training": dict,
    "provenance": dict,
}
MOST = 1 << 20  # pixels
MOST_LABELS = 1000
MOST_OPTIONS = 100  # of a network, or values of one
LARGEST_OPTION = 1 << 14  # whole number among them
LARGE = 1 << 30  # weights that a network may have, by a guess, without a closer look


@dataclass
class Model:
    """What a model file holds.

    Attributes
    ----------
    name : str
    architecture : str
        Key of `stellarcli.models.MODELS`.
    config : dict
        Options of the architecture.
    pixels : int
    labels : list of Label
    recipe : Recipe
    wavelength : ndarray of float64, shape (pixel,), or None
        Vacuum Å, rest frame; None where every spectrum keeps its own.
    error_scale : list of float
        Per label, what calibration multiplies the predicted errors by.
    error_slope : list of float
        Per label, the power of the signal-to-noise ratio in that factor; none in files
        of format 1. See `calibration.error_factors`, which in files since format 3 may
        also depend on where a spectrum lies.
    training : dict
        Data, split, seed, resolved configuration, metrics.
    provenance : dict
    state : dict of ndarray
        Tensors by name, as stored.
    sha256 : str
        Of the file.
    """

    name: str
    architecture: str
    config: dict[str, Any]
    pixels: int
    labels: list[Label]
    recipe: Recipe
    wavelength: np.ndarray | None
    error_scale: list[float] = field(default_factory=list)
    error_slope: list[float] = field(default_factory=list)
    limits: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    state: dict[str, np.ndarray] = field(default_factory=dict)
    sha256: str = ""

    @property
    def members(self) -> list[str]:
        """Names of the ensemble's members."""
        prefixes = {key.split(".")[0] for key in self.state}
        return sorted(p for p in prefixes if p.startswith("member"))

    @property
    def velocities(self) -> str:
        """Where velocities are from unless a user says it: as in training.

        ``auto`` where spectra were measured for lack of a velocity in their files.
        """
        used = self.training.get("velocities", [])
        return "auto" if {"auto", "measure"} & set(used) else "header"

    def part(self, prefix: str) -> dict[str, np.ndarray]:
        """Return the tensors under a prefix, without it."""
        start = f"{prefix}."
        return {
            key.removeprefix(start): value
            for key, value in self.state.items()
            if key.startswith(start)
        }

    def networks(self) -> list[nn.Module]:
        """Build the networks of all members with their weights, in evaluation mode.

        Raises
        ------
        ModelFileError
            If tensors are missing, superfluous, or of another shape.
        """
        import torch

        networks = []
        self._check_size()
        for member in self.members:
            weights = {
                # a copy: safetensors' arrays may be read-only
                key: torch.from_numpy(value.copy())
                for key, value in self.part(member).items()
            }
            try:
                network = self._build()
                network.load_state_dict(weights)
            except (RuntimeError, TypeError, UsageError) as error:
                detail = " ".join(str(error).split())
                raise ModelFileError(
                    f"model {self.name!r} doesn't fit the architecture "
                    f"{self.architecture!r} of this program: {detail} Copy the file "
                    "again, or install the version that made it."
                ) from None
            networks.append(network.eval())
        if not networks:
            raise ModelFileError(f"model {self.name!r} has no weights.")
        return networks

    def _build(self) -> nn.Module:
        return models.build(
            self.architecture,
            pixels=self.pixels,
            labels=len(self.labels),
            **models.former(self.architecture) | self.config,
        )

    def _check_size(self) -> None:
        """Refuse a network far larger than its weights: it would fill the memory."""
        import torch

        numbers = [abs(number) for number in _numbers(self.config)]
        largest = max(numbers, default=1)
        if largest * max(largest, self.pixels) * len(numbers) < LARGE:
            return
        with torch.device("meta"):  # shapes without memory
            wanted = sum(weight.numel() for weight in self._build().parameters())
        there = sum(values.size for values in self.state.values())
        if wanted > there:
            raise ModelFileError(
                f"model {self.name!r} describes a network of {wanted} weights and "
                f"holds {there}. Copy the file again."
            )


def save(model: Model, path: Path) -> None:
    """Write a model file under a temporary name and rename it.

    Tensors keep their type: those in float16 are computed with in float32.
    """
    from safetensors.numpy import save as to_bytes

    state = {key: np.ascontiguousarray(model.state[key]) for key in sorted(model.state)}
    values = {
        "format": FORMAT,
        "name": model.name,
        "architecture": {"name": model.architecture, "config": model.config},
        "pixels": model.pixels,
        "labels": [label.to_json() for label in model.labels],
        "recipe": json.loads(model.recipe.to_json()),
        "wavelength": _grid(model.wavelength),
        "error_scale": model.error_scale,
        "error_slope": model.error_slope,
        "limits": model.limits,
        "training": model.training,
        "provenance": model.provenance,
    }
    values["sha256"] = _digest(state, json.dumps(values))
    # one entry: safetensors writes several in any order, and equal models should be
    # equal files
    metadata = {"stellar": json.dumps(values)}
    name = str(path)
    with (
        catalog.temporary_name(name) as temporary,
        catalog.explained(name, temporary),
    ):
        with open(temporary, "wb") as file:
            file.write(to_bytes(state, metadata=metadata))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, name)


def _grid(wavelength: np.ndarray | None) -> dict[str, Any]:
    """Say what wavelengths a model is for, for readers of the file."""
    grid = {"frame": "rest", "medium": "vacuum", "unit": "Angstrom"}
    if wavelength is None:
        return grid | {"pixels": "each spectrum's own"}
    first, last = float(wavelength[0]), float(wavelength[-1])
    return grid | {"first": first, "last": last, "pixels": int(wavelength.size)}


def _digest(state: dict[str, np.ndarray], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for key in sorted(state):
        digest.update(f"{key} {state[key].dtype} {state[key].shape}".encode())
        digest.update(state[key].tobytes())
    return digest.hexdigest()


def shipped() -> dict[str, Path]:
    """Return the model files inside the package, by name."""
    folder = Path(str(files("stellarcli") / "data"))
    return {path.stem: path for path in sorted(folder.glob("*.safetensors"))}


def models_directory() -> Path:
    """Return where ``stellar fetch model`` puts models; it need not exist."""
    if folder := os.environ.get("STELLAR_MODELS"):
        return Path(folder)
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(caches) / "stellar" / "models"


def fetched() -> dict[str, Path]:
    """Return the model files in `models_directory`, by name."""
    try:
        found = sorted(models_directory().glob("[!.]*.safetensors"))
    except OSError:  # another user's directory, on a machine that is set up like that
        found = []
    return {path.stem: path for path in found}


def find(name: str) -> Path:
    """Return the path of a shipped or fetched model's name, or of a model file.

    Raises
    ------
    UsageError
        If there is neither.
    """
    if name in (known := fetched() | shipped()):
        return known[name]
    if Path(name).is_file():
        return Path(name)
    if Path(name).suffix == ".safetensors" or "/" in name:
        raise UsageError(
            f"model file '{name}' doesn't exist. Give a file that 'stellar train' "
            f"wrote, or a shipped model: {', '.join(known)}.{catalog.nearest(name)}"
        )
    raise UsageError(f"{unknown('model', name, known)}{catalog.nearest(name)}")


def find_recipe(name: str) -> Recipe:
    """Return a built-in recipe, one from a YAML file, or that of a model file.

    Raises
    ------
    UsageError
        If it is none of them.
    """
    return load(name).recipe if name.endswith(".safetensors") else preprocess.get(name)


def load(name: str) -> Model:
    """Read a model by shipped name or path.

    Raises
    ------
    UsageError
        If it doesn't exist.
    ModelFileError
        If it is damaged, incomplete, no model, or of a newer format.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load as from_bytes

    path = find(name)
    try:
        content = path.read_bytes()
        state = from_bytes(content)
        size = int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8 : 8 + size]).get("__metadata__", {})
        text = metadata.get("stellar", "{}")
        values = json.loads(text)
    except OSError as error:
        raise ModelFileError(
            f"can't read model '{path}': {error.strerror}; check the file's rights."
        ) from None
    except (SafetensorError, ValueError, RecursionError, AttributeError) as error:
        raise ModelFileError(
            f"'{path}' is damaged or no model file ({error}). Copy it again, or train "
            "it again with 'stellar train'."
        ) from None
    if not values:
        raise ModelFileError(
            f"'{path}' is a safetensors file but not one of 'stellar train', which "
            "alone has labels and recipe in it."
        )
    _check_version(path, values)
    same = json.dumps(values) == text  # a number's last digit may not change its value
    found = values.pop("sha256", "")
    if not same or found != _digest(state, json.dumps(values)):
        raise ModelFileError(
            f"'{path}' is damaged: its checksum doesn't match. Copy it again."
        )
    return _parse(path, values, state, content)


def _check_version(path: Path, values: Any) -> None:
    version = values.get("format") if isinstance(values, dict) else None
    if not isinstance(version, int):
        raise ModelFileError(
            f"'{path}' is damaged: it has no format version. Copy it again."
        )
    if version > FORMAT:
        raise ModelFileError(
            f"'{path}' has format version {version}; this program reads up to {FORMAT}."
            " Install a newer stellarcli."
        )


def _parse(path: Path, values: dict, state: dict, content: bytes) -> Model:
    try:
        recipe = Recipe.from_json(json.dumps(values["recipe"]))
        _check_values(values, recipe, state)
        return Model(
            name=values["name"],
            architecture=values["architecture"]["name"],
            config=values["architecture"]["config"],
            pixels=values["pixels"],
            labels=[Label.from_json(label) for label in values["labels"]],
            recipe=recipe,
            wavelength=recipe.wavelength,
            error_scale=values["error_scale"],
            error_slope=values.get("error_slope", []),
            limits=values["limits"],
            training=values["training"],
            provenance=values["provenance"],
            state=state,
            sha256=hashlib.sha256(content).hexdigest(),
        )
    except KeyError as error:
        raise ModelFileError(
            f"'{path}' lacks the entry {error}; train it again with this version."
        ) from None
    except (
        *(AttributeError, LookupError, TypeError, ValueError, RecursionError),
        *(OverflowError, UsageError),
    ) as error:
        raise ModelFileError(
            f"'{path}' can't be used by this version: {error}"
        ) from None


def _check_values(values: dict, recipe: Recipe, state: dict[str, np.ndarray]) -> None:
    """Raise `ValueError` if the file contradicts itself: it may come from anywhere."""
    for key, kind in KINDS.items():
        if not isinstance(values.get(key, kind()), kind):
            raise ValueError(f"{key} is {values[key]!r:.80}, not {kind.__name__}")
    pixels, labels = values["pixels"], len(values["labels"])
    grid = recipe.wavelength
    if not 1 < pixels <= MOST or (grid is not None and grid.size != pixels):
        raise ValueError(f"{pixels} pixels are not those of the recipe")
    if not 0 < labels <= MOST_LABELS:
        raise ValueError(f"it has {labels} labels")
    for key in ("error_scale", "error_slope"):
        numbers = np.array(values.get(key, []), dtype=float)
        if numbers.shape not in ((0,), (labels,)) or not np.isfinite(numbers).all():
            raise ValueError(f"{key} is not a number for each label")
    if not isinstance(values["architecture"]["config"], dict):
        raise ValueError("the network's configuration is no dictionary")
    _check_config(values["architecture"]["config"])
    unlike = {k: v.shape for k, v in state.items() if k.startswith("novelty.")}
    components = unlike.get("novelty.components", (0,))
    for name, shape in unlike.items():
        wanted = {
            "novelty.mean": (pixels,),
            "novelty.floor": (pixels,),
            "novelty.components": (components[0], pixels),
            "novelty.center": components[:1],
            "novelty.precision": components[:1] * 2,
            "novelty.noise": (1,),
            "novelty.thresholds": (2,),
        }.get(name)
        if wanted != shape:
            raise ValueError(f"{name} has the shape {shape}, not {wanted}")
    _check_coverage(state, labels)


def _check_coverage(state: dict[str, np.ndarray], labels: int) -> None:
    """Raise `ValueError` where there is half a table of errors, or none that fits."""
    start = "coverage."
    found = {k.removeprefix(start): v for k, v in state.items() if k.startswith(start)}
    if not found:
        return
    several = found.pop(coverage.SEVERAL, None)
    if set(found) != set(coverage.NAMES):
        raise ValueError(f"coverage has {sorted(found)}, not {list(coverage.NAMES)}")
    knots = found["middle"], found["length"]
    for values in knots:
        if values.ndim != 1 or not values.size or not (np.diff(values) > 0).all():
            raise ValueError("the knots of coverage don't increase")
    sizes = [values.size for values in knots]
    shape = (labels, *sizes)
    if several is not None:
        shape = (labels, len(several), *sizes)
        if several.shape != shape[1:3] or not np.isfinite(several).all():
            raise ValueError(
                f"coverage.{coverage.SEVERAL} are not {shape[1:3]} numbers"
            )
    levels = found["levels"]
    if levels.shape != shape or not np.isfinite(levels).all():
        raise ValueError(f"coverage.levels are not {shape} numbers")
    if found["seen"].shape != familiarity.SHAPE:
        raise ValueError(f"coverage.seen has not the shape {familiarity.SHAPE}")


def _check_config(config: dict[str, Any]) -> None:
    """Raise `ValueError` where building such a network would take for ever."""
    numbers = _numbers(config)
    if len(numbers) > MOST_OPTIONS:
        raise ValueError("the network's configuration has too many numbers")
    for value in numbers:
        if not abs(value) <= LARGEST_OPTION:
            raise ValueError(f"{value} is too much for a network")


def _numbers(config: Any) -> list[int]:
    """All whole numbers of a configuration, in lists and dictionaries too."""
    if isinstance(config, dict | list | tuple):
        values = config.values() if isinstance(config, dict) else config
        return [number for value in values for number in _numbers(value)]
    return [config] if type(config) is int else []
