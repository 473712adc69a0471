"""Everything that reads what others wrote, as functions of bytes: for fuzzing.

`TARGETS` has a function for each kind of file. It gives bytes to the program as that
kind of file, and lets pass what the program is to say about bad ones; whatever else is
raised is a finding. `seeds` are good files to begin from.
"""

import contextlib
import gzip
import io
import json
import os
import struct
import tempfile
import warnings
from pathlib import Path

import numpy as np
import surveyfiles

from stellarcli.errors import StellarError

FOLDER = Path(tempfile.mkdtemp(prefix="stellar-hostile-"))


@contextlib.contextmanager
def file(content, name):
    """A file of that content."""
    path = FOLDER / f"{os.getpid()}-{name}"
    path.write_bytes(content)
    try:
        yield str(path)
    finally:
        path.unlink(missing_ok=True)


def reader(content):
    """A spectrum of any survey."""
    from stellarcli import surveys

    with file(content, "spectrum") as path, contextlib.suppress(StellarError):
        for spectrum in surveys.read_all(path):
            assert np.isfinite(spectrum.flux).all()
            assert np.isfinite(spectrum.wavelength).all()


def prediction(content):
    """All of preparing a spectrum: nothing at all may be raised."""
    from stellarcli import preparation, preprocess
    from stellarcli.inputs import Task

    with file(content, "spectrum") as path:
        chunk = preparation.run(Task(paths=(path,)), preprocess.get("default"))
    assert np.isfinite(chunk.batch.flux).all()
    assert len(chunk.rows) == 1
    assert not any("please report" in reason for _, reason in chunk.reasons)


def model(content):
    """A model file."""
    from stellarcli import checkpoint

    with file(content, "m.safetensors") as path, contextlib.suppress(StellarError):
        checkpoint.load(path).networks()


def recipe(content):
    """A recipe in YAML, applied to a spectrum."""
    from stellarcli import preprocess
    from stellarcli.preprocess import Batch
    from stellarcli.surveys import read

    with file(content, "recipe.yaml") as path, contextlib.suppress(StellarError):
        found = preprocess.get(path)
        with (
            file(seeds("reader")[0], "spectrum") as spectrum,
            np.errstate(all="ignore"),
        ):
            found.apply(Batch.from_spectra([read(spectrum)]))
        preprocess.Recipe.from_json(found.to_json())


def configuration(content):
    """Settings of a training in YAML."""
    from stellarcli.settings import TrainConfig, read_config

    with file(content, "train.yaml") as path, contextlib.suppress(StellarError):
        TrainConfig.resolve(read_config(Path(path)))


def catalogue(content):
    """A table of any format, and a list of inputs."""
    from stellarcli import catalog, inputs

    endings = {b"SIM": ".fits", b"<?x": ".vot", b"# %": ".ecsv", b"PAR": ".parquet"}
    ending = endings.get(content[:3], ".csv")
    with file(content, f"table{ending}") as path, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.suppress(StellarError):
            catalog.read(path)
        with contextlib.suppress(StellarError):
            for name in inputs.expand([path]):
                inputs.kind(name)


def prepared(content):
    """A prepared table."""
    from stellarcli.prepared import PreparedTable

    with file(content, "prepared.fits") as path, contextlib.suppress(StellarError):
        table = PreparedTable(path)
        table.rows(slice(0, 3))
        table.batch(slice(0, 3))


TARGETS = {
    one.__name__: one
    for one in (
        *(reader, prediction, model, recipe, configuration, catalogue, prepared),
    )
}


def seeds(name):
    """Good files of a kind, as bytes."""
    return SEEDS[name]()


def _spectra():
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder)
        found = [
            surveyfiles.lamost_image(where / "a.fits"),
            surveyfiles.lamost_table(where / "b.fits"),
            surveyfiles.apogee_star(where / "c.fits"),
            surveyfiles.lamost_image(where / "d.fits.gz"),
        ]
        contents = [Path(path).read_bytes() for path in found]
    text = "\n".join(f"{4000 + n} {1 + n % 7} 0.1" for n in range(60))
    return [*contents, f"# wavelength flux error\n{text}".encode(), _compressed_image()]


def _compressed_image():
    from astropy.io import fits

    image = fits.CompImageHDU(np.ones((5, 64), dtype="f4"), compression_type="RICE_1")
    target = io.BytesIO()
    fits.HDUList([fits.PrimaryHDU(), image]).writeto(target)
    return target.getvalue()


def _models():
    header = {"__metadata__": {"stellar": json.dumps({"format": 1, "name": "x"})}}
    text = json.dumps(header).encode()
    from importlib.resources import files

    shipped = files("stellarcli") / "data" / "mk.safetensors"
    return [struct.pack("<Q", len(text)) + text, shipped.read_bytes()[:200_000]]


def _recipes():
    return [
        b"- bridge\n- rest_frame\n- resample: {grids: [{start: 4920, step: 0.5, "
        b"pixels: 400}]}\n- continuum: {method: smooth, width: 100}\n- clip\n",
        b"name: x\nsteps:\n- median\n- continuum: {method: polynomial, degree: 3}\n",
    ]


def _tables():
    from astropy.table import Table

    rows = np.zeros(3, dtype=[("file", "S8"), ("ra", "f8"), ("flag", "i4")])
    found = []
    for ending in ("fits", "csv", "ecsv", "vot"):
        form = {"csv": "ascii.csv", "ecsv": "ascii.ecsv", "vot": "votable"}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, f"t.{ending}")
            Table(rows).write(path, format=form.get(ending, ending))
            found.append(path.read_bytes())
    return found


def _prepared():
    from stellarcli import preprocess, tabulation
    from stellarcli.inputs import Task

    with tempfile.TemporaryDirectory() as folder:
        star = str(surveyfiles.lamost_image(Path(folder, "a.fits")))
        output = str(Path(folder, "p.fits"))
        tabulation.write_table([Task((star,))], output, preprocess.get("rdn"))
        return [Path(output).read_bytes()]


SEEDS = {
    "reader": _spectra,
    "prediction": _spectra,
    "model": _models,
    "recipe": _recipes,
    "configuration": lambda: [b"epochs: 3\ntarget: [teff]\nnetwork: {widths: [8]}\n"],
    "catalogue": _tables,
    "prepared": _prepared,
    "gzip": lambda: [gzip.compress(b"x" * 100)],
}
