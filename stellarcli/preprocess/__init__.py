"""Preprocessing: functions of batches of arrays, composed into recipes.

A step takes a `Batch` and parameters and returns a `Batch`; `STEPS` is the table of
contents. A `Recipe` is an ordered list of steps with their parameters. It goes as JSON
into prepared tables, model files and catalogues, and `stellar predict` replays it.
Nothing here opens a spectrum file.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from stellarcli import plainyaml
from stellarcli.errors import UsageError, unknown
from stellarcli.preprocess import continuum, images, spikes, wavelength
from stellarcli.preprocess.batch import Batch
from stellarcli.preprocess.fold import check_shape, fold, unfold

__all__ = ["RECIPES", "STEPS", "Batch", "Recipe", "Step", "fold", "get", "unfold"]


def _keep_flat(batch: Batch, *, shape: tuple[int, int]) -> Batch:
    """Check that the spectra fold into `shape`; tables keep them in wavelength order.

    Networks that want an image fold at their input (`Recipe.image_shape`), so that a
    prepared table always shows spectra.
    """
    check_shape(tuple(shape), batch.flux.shape[1])
    return batch


STEPS: dict[str, Callable[..., Batch]] = {
    "spikes": spikes.mask_spikes,
    "bridge": wavelength.bridge,
    "rest_frame": wavelength.rest_frame,
    "resample": wavelength.resample,
    "keep": wavelength.keep_ranges,
    "continuum": continuum.divide_continuum,
    "clip": continuum.clip_flux,
    "min_max": continuum.scale_min_max,
    "median": continuum.scale_median,
    "pad": continuum.pad,
    "fold": _keep_flat,
    "images": images.keep_spectra,
}

# what numbers may be, by name of the parameter: beyond, they cost memory or hours
RANGES = {
    "degree": (0, 100),
    "height": (0, 1e6),
    "high": (-1e6, 1e6),
    "iterations": (0, 1000),
    "longest": (1, 1e5),
    "low": (-1e6, 1e6),
    "pixels": (2, wavelength.MOST_PIXELS),
    "quantile": (0, 1),
    "threshold": (0, 1e6),
    "velocity": (100, 1e6),
    "width": (0.01, 1e6),
}
MOST_STEPS = 100
MOST_KNOTS = 30_000_000  # of a continuum, times pixels
ON_GRID = ("continuum", "pad", "fold")  # steps that take spectra on one grid only


@dataclass(frozen=True)
class Step:
    """One step of a recipe: its name in `STEPS` and its parameters."""

    name: str
    parameters: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse unknown steps and parameters, with the nearest valid name.

        Missing parameters too, and grids that can't be made.
        """
        if self.name not in STEPS:
            raise unknown("preprocessing step", self.name, STEPS)
        valid = _parameters(STEPS[self.name])
        if not all(isinstance(key, str) for key in self.parameters):
            raise UsageError(f"step {self.name!r} has a parameter that is no name.")
        if self.name == "continuum":
            method = self.parameters.get("method", "polynomial")
            if not isinstance(method, str) or method not in continuum.CONTINUA:
                raise unknown("continuum method", str(method), continuum.CONTINUA)
            valid += _parameters(continuum.CONTINUA[method])
        for key in self.parameters:
            if key not in valid:
                raise unknown(f"parameter of step {self.name!r}", key, valid)
        for key in _parameters(STEPS[self.name], required=True):
            if key not in self.parameters:
                raise UsageError(f"step {self.name!r} needs the parameter {key!r}.")
        for key in RANGES.keys() & self.parameters:
            self._check_number(key, self.parameters[key])
        if self.name == "resample":
            wavelength.join_grids(self.parameters["grids"])
        if self.name == "images":
            images.check(**self.parameters)
        if self.name == "fold":
            self._check_shape(self.parameters["shape"])

    def _check_number(self, key: str, value: Any) -> None:
        low, high = RANGES[key]
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not low <= value <= high:
            raise UsageError(
                f"parameter {key!r} of step {self.name!r} is a number from {low:g} to "
                f"{high:g}, not {value!r:.80}."
            )

    def _check_shape(self, shape: Any) -> None:
        pair = isinstance(shape, list | tuple) and len(shape) == 2
        if not pair or not all(type(size) is int and size > 0 for size in shape):
            raise UsageError(
                f"the shape of step {self.name!r} is [rows, columns], such as "
                f"[64, 64], not {shape!r:.80}."
            )

    def __str__(self) -> str:
        """Return ``name(key=value, ...)``."""
        pairs = ", ".join(f"{k}={v}" for k, v in self.parameters.items())
        return f"{self.name}({pairs})"


def _parameters(function: Callable, *, required: bool = False) -> list[str]:
    return [
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
        and (parameter.default is parameter.empty or not required)
    ]


@dataclass(frozen=True)
class Recipe:
    """An ordered list of steps.

    Attributes
    ----------
    name : str
    steps : tuple of Step
    """

    name: str
    steps: tuple[Step, ...]

    def __post_init__(self) -> None:
        """Refuse steps that need a common grid before there is one."""
        names = [step.name for step in self.steps]
        if len(names) > MOST_STEPS:
            raise UsageError(f"recipe {self.name!r} has more than {MOST_STEPS} steps.")
        self._check_knots()
        count = names.index("resample") if "resample" in names else len(names)
        for step in self.steps[:count]:
            if step.name in ON_GRID and "velocity" not in step.parameters:
                raise UsageError(
                    f"recipe {self.name!r}: step {step.name!r} needs spectra on a "
                    "common grid; put 'resample' before it."
                )

    def _check_knots(self) -> None:
        """Refuse continua so narrow that their matrices would fill the memory."""
        grids = self.parameters("resample")
        if grids is None:
            return
        grid = wavelength.join_grids(grids["grids"])[0]
        for step in self.steps:
            width = step.parameters.get("width")
            if width and np.ptp(grid) / width * 4 * grid.size > MOST_KNOTS:
                raise UsageError(
                    f"recipe {self.name!r}: a continuum {width:g} Å wide is too narrow "
                    f"for {grid.size} pixels over {np.ptp(grid):.0f} Å."
                )

    def apply(self, batch: Batch) -> Batch:
        """Run all steps in order."""
        for step in self.steps:
            batch = STEPS[step.name](batch, **step.parameters)
        return batch

    def parameters(self, name: str) -> dict[str, Any] | None:
        """Return the parameters of the first step with that name, or None."""
        return next((s.parameters for s in self.steps if s.name == name), None)

    @property
    def wavelength(self) -> np.ndarray | None:
        """Wavelengths of the result, vacuum Å; None if native sampling is kept."""
        if self.parameters("resample") is None:
            return None
        grid, segments = wavelength.join_grids(self.parameters("resample")["grids"])
        empty = np.zeros((1, grid.size), dtype=np.float32)
        mask = empty.astype(np.uint8)
        batch = Batch(grid, empty, empty, mask, np.zeros(1), (segments,))
        for step in self.steps:
            if step.name == "pad":
                batch = continuum.pad(batch, **step.parameters)
        return batch.wavelength

    @property
    def image_shape(self) -> tuple[int, int] | None:
        """Shape of the folded image, or None for plain spectra."""
        parameters = self.parameters("fold")
        return None if parameters is None else tuple(parameters["shape"])

    @property
    def images(self) -> tuple[tuple[str, ...], int] | None:
        """Bands and side of the images beside the spectra, or None."""
        parameters = self.parameters("images")
        return None if parameters is None else images.check(**parameters)

    def to_json(self) -> str:
        """Return name and steps as one line of JSON."""
        steps = [{s.name: s.parameters} for s in self.steps]
        return json.dumps({"name": self.name, "steps": steps})

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """Inverse of `to_json`."""
        values = json.loads(text)
        return cls.from_steps(values["name"], values["steps"])

    @classmethod
    def from_steps(cls, name: str, steps: list) -> Recipe:
        """Build from a list whose items are ``name`` or ``{name: {parameter: value}}``.

        Raises
        ------
        UsageError
            If an item has another form, or names no known step or parameter.
        """
        return cls(name, tuple(_step(item) for item in steps))

    @classmethod
    def from_yaml(cls, path: Path) -> Recipe:
        """Read a recipe file: a list of steps, or a mapping with ``steps``.

        Raises
        ------
        UsageError
            If the file is missing, isn't YAML, or isn't a recipe.
        """
        try:
            values = plainyaml.parse(path.read_text())
        except OSError as error:
            raise UsageError(f"recipe '{path}': {error.strerror}.") from None
        except ValueError as error:
            raise UsageError(f"recipe '{path}' is not YAML: {error}") from None
        if isinstance(values, dict) and isinstance(values.get("steps"), list):
            return cls.from_steps(str(values.get("name", path.stem)), values["steps"])
        if isinstance(values, list):
            return cls.from_steps(path.stem, values)
        raise UsageError(
            f"recipe '{path}' must be a list of steps, or have a list under 'steps:'. "
            f"Steps: {', '.join(STEPS)}."
        )


def _step(item: Any) -> Step:
    if isinstance(item, str):
        return Step(item)
    if isinstance(item, dict) and len(item) == 1:
        name, parameters = next(iter(item.items()))
        if parameters is None or isinstance(parameters, dict):
            return Step(str(name), dict(parameters or {}))
    raise UsageError(
        f"a recipe's step is 'name' or 'name: {{parameter: value}}', not {item!r:.80}."
    )


LOG_STEP = 1e-4  # dex per pixel, the native sampling of LAMOST LRS and SDSS
MRS_GRIDS = [  # both arms of LAMOST MRS
    {"start": 4920.0, "step": 0.1, "pixels": 4401},
    {"start": 6290.0, "step": 0.1, "pixels": 4401},
]
LRS_START = {"kind": "log10", "step": LOG_STEP}

RECIPES = {
    name: Recipe.from_steps(name, steps)
    for name, steps in {
        "default": [
            "bridge",
            "rest_frame",
            {"resample": {"grids": [{**LRS_START, "start": 3850.0, "pixels": 2816}]}},
            {"continuum": {"method": "smooth", "width": 100.0}},
            "clip",
        ],
        # SCA-Net: 4000-8095 Å, 4096 points, Lee et al. 2008, 64x64
        "scanet": [
            "bridge",
            "rest_frame",
            {"resample": {"grids": [{"start": 4000.0, "step": 1.0, "pixels": 4096}]}},
            {"continuum": {"method": "polynomial", "degree": 9}},
            {"fold": {"shape": [64, 64]}},
        ],
        # MK ResNet: 3738 pixels from 10**3.5682 Å
        "mkresnet": [
            "bridge",
            "rest_frame",
            {
                "resample": {
                    "grids": [{**LRS_START, "start": 10**3.5682, "pixels": 3738}]
                }
            },
            {"continuum": {"method": "polynomial", "degree": 9}},
        ],
        # RDN: both LAMOST MRS arms at 0.1 Å, min-max per arm, which one cosmic ray
        # would decide about
        "rdn": [
            "spikes",
            "bridge",
            "rest_frame",
            {"resample": {"grids": MRS_GRIDS}},
            "min_max",
        ],
        # The same with a continuum instead: min-max leaves the slope of the flux
        # calibration, and loses the depth of the deepest line
        "mrs": [
            "spikes",
            "bridge",
            "rest_frame",
            {"resample": {"grids": MRS_GRIDS}},
            {"continuum": {"method": "smooth", "width": 30.0}},
            "clip",
        ],
        # SPFusion: 4000-9000 Å at native sampling, min-max, zeros on both sides to
        # 3584; images in three bands, if they are given
        "spfusion": [
            "bridge",
            "rest_frame",
            {"resample": {"grids": [{**LRS_START, "start": 4000.0, "pixels": 3522}]}},
            "min_max",
            {"pad": {"pixels": 3584}},
            {"images": {"bands": list(images.BANDS), "size": images.SIZE}},
        ],
        # SpectraFM: any range, native sampling kept
        "spectrafm": [
            "bridge",
            "rest_frame",
            {"continuum": {"method": "smooth", "velocity": 6000.0}},
            "clip",
        ],
    }.items()
}


def get(name: str) -> Recipe:
    """Return a built-in recipe by name, or read one from a YAML file.

    Raises
    ------
    UsageError
        If it is neither.
    """
    if name in RECIPES:
        return RECIPES[name]
    if Path(name).suffix in (".yaml", ".yml") or Path(name).exists():
        return Recipe.from_yaml(Path(name))
    raise unknown("recipe", name, RECIPES)
