"""Tiny prepared tables whose labels can be learnt, and the options of tiny networks."""

import numpy as np

from stellarcli.prepared import PreparedWriter
from stellarcli.preprocess import Batch, Recipe

PIXELS = 64
STEPS = [
    {
        "resample": {
            "grids": [
                {"kind": "log10", "start": 5000.0, "step": 1e-3, "pixels": PIXELS},
            ]
        }
    }
]
NETWORK = {
    "widths": [4, 8],
    "blocks": [1, 1],
    "stem": 8,
    "hidden": 8,
}
SETTINGS = {
    "network": NETWORK,
    "target": "teff,logg",
    "epochs": 3,
    "batch_size": 16,
    "precision": "float32",
    "learning_rate": 3e-3,
    "device": "cpu",
}


def options(**changes):
    """Command-line options for `SETTINGS`, with changes."""
    pairs = {**SETTINGS, **changes}
    network = pairs.pop("network")
    pairs |= {f"network.{key}": value for key, value in network.items()}
    return [word for key, v in pairs.items() for word in ("--set", f"{key}={v}")]


def write(path, size=96, seed=0, stars=None, steps=STEPS, **columns):
    """Write a prepared table; each star's line depths follow its labels.

    `stars` names the objid of every row. Further columns replace or join the usual
    ones: teff, logg, plan, snr and positions.
    """
    random = np.random.default_rng(seed)
    teff = random.uniform(4500, 7000, size)
    logg = random.uniform(1, 5, size)
    position = np.arange(PIXELS)
    lines = [np.exp(-0.5 * ((position - at) / 2) ** 2) for at in (20, 45)]
    depth = np.stack([(teff - 4000) / 6000, logg / 10], axis=1)
    flux = 1 - depth @ np.stack(lines)
    flux += random.normal(0, 0.02, flux.shape)
    ivar = np.full(flux.shape, 1 / 0.02**2)
    flux[:, :2], ivar[:, :2] = -0.5, 0
    values = {
        "objid": stars if stars is not None else [f"s{seed}_{n}" for n in range(size)],
        "ra": random.uniform(0, 360, size),
        "dec": random.uniform(-60, 60, size),
        "snr": random.uniform(5, 50, size),
        "flag": np.zeros(size, "i4"),
        "teff": teff,
        "logg": logg,
        "plan": [f"p{n % 8}" for n in range(size)],
    } | columns
    arrays = {name: np.asarray(v) for name, v in values.items()}
    arrays = {
        n: np.char.encode(v) if v.dtype.kind == "U" else v for n, v in arrays.items()
    }
    rows = np.empty(size, [(n, v.dtype) for n, v in arrays.items()])
    for name, array in arrays.items():
        rows[name] = array
    recipe = Recipe.from_steps("tiny", steps)
    batch = Batch(
        recipe.wavelength,
        flux.astype("f4"),
        ivar.astype("f4"),
        np.where(ivar > 0, 0, 1).astype("u1"),
        np.zeros(size),
        (((0, PIXELS),),),
    )
    with PreparedWriter(str(path), recipe) as writer:
        writer.append(rows, batch)
    return str(path)
