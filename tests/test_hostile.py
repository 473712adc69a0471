"""What others wrote may be anything: no crash, no hang, no memory, no surprise."""

import contextlib
import gzip
import json
import re
import struct
import tracemalloc
from dataclasses import replace
from functools import cache
from pathlib import Path

import hostile
import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stellarcli import checkpoint, plainyaml, surveys
from stellarcli.errors import ModelFileError, SpectrumError, UsageError

some = settings(
    max_examples=30, suppress_health_check=list(HealthCheck), derandomize=True
)


@cache
def seeds(name):
    return hostile.seeds(name)


CARDS = (b"BITPIX", b"NAXIS", b"NAXIS1", b"NAXIS2", b"TFIELDS", b"PCOUNT")
NUMBERS = (b"-1", b"0", b"99999999999999", b"1e400")
place = st.floats(0, 1)  # in a file, as a share of its length
damages = st.lists(
    st.one_of(
        st.tuples(st.just("bytes"), place, st.binary(min_size=1, max_size=8)),
        st.tuples(st.just("cut"), place, st.integers(1, 4000)),
        st.tuples(st.just("double"), place, st.integers(1, 200)),
        st.tuples(st.just("number"), place, st.sampled_from(NUMBERS)),
        st.tuples(
            *(st.just("card"), place),
            st.tuples(st.sampled_from(CARDS), st.integers(-9, 10**13)),
        ),
    ),
    min_size=1,
    max_size=6,
)


def damaged(content, damage):
    """A good file with bytes, numbers or cards replaced, or pieces cut or doubled."""
    content = bytearray(content)
    for what, share, value in damage:
        start = int(share * len(content))
        if what == "bytes":
            content[start : start + len(value)] = value
        elif what == "cut":
            del content[start : start + value]
        elif what == "double":
            content[start:start] = content[start : start + value]
        elif what == "number":  # the next one
            digit = re.search(rb"[0-9]", content[start:])
            begin = start + digit.start() if digit else 0
            content[begin : begin + len(value)] = value
        else:
            begin = start // 80 * 80
            card = value[0].ljust(8) + b"=" + str(value[1]).rjust(21).encode()
            content[begin : begin + 80] = card.ljust(80)
    return bytes(content)


@pytest.mark.parametrize("name", hostile.TARGETS)
def test_damage_is_an_error_of_ours_or_nothing(name):
    @some
    @given(st.integers(0, len(seeds(name)) - 1), damages)
    def try_one(number, damage):
        hostile.TARGETS[name](damaged(seeds(name)[number], damage))

    try_one()


values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-3, 200),
        st.sampled_from([10**12, -(10**12), 1e-300, float("nan"), float("inf"), "x"]),
    ),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(("start", "step", "pixels", "kind", "a")), inner, max_size=4
        )
    ),
    max_leaves=6,
)
names = ("degree", "iterations", "width", "pixels", "grids", "method", "shape")
names += ("low", "high", "quantile", "threshold", "height", "longest", "velocity")
step = st.sampled_from(
    ("bridge", "resample", "continuum", "fold", "pad", "clip", "spikes", "min_max")
).flatmap(
    lambda name: st.dictionaries(st.sampled_from(names), values, max_size=3).map(
        lambda parameters: {name: parameters}
    )
)


@some
@given(st.lists(step, max_size=4))
def test_recipes_of_any_values(steps):
    good = {"resample": {"grids": [{"start": 4920.0, "step": 0.5, "pixels": 300}]}}
    for content in (steps, [good, *steps]):
        hostile.recipe(yaml.safe_dump(content).encode())


@some
@given(st.dictionaries(st.text(max_size=9), values, max_size=4))
def test_configurations_of_any_values(content):
    hostile.configuration(yaml.safe_dump(content).encode())


# ------------------------------------------------------- findings, and what was feared

LAUGHS = "".join(
    f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]\n" for n in range(1, 9)
)


@pytest.mark.parametrize(
    "text",
    [
        "l0: &l0 [lol]\n" + LAUGHS,
        "[" * 100_000,
        "- !!python/object/apply:os.system ['touch harm']",
        "- !!python/name:os.system",
        "a: 2001-99-99",
        "a: " + "9" * 5000,
        "a: !!binary '*'",
        "a: {<<: 3}",
        "? [a]\n: b",
        "x" * (plainyaml.LARGEST + 1),
        "\x00",
    ],
    ids=lambda text: text[:12],
)
def test_yaml_that_is_not_plain(here, stellar, text):
    with pytest.raises(plainyaml.PlainYAMLError):
        plainyaml.parse(text)
    for option, name in (("--recipe", "r.yaml"), ("--config", "c.yaml")):
        Path(name).write_text(text)
        command = ["preprocess"] if option == "--recipe" else ["train"]
        done = stellar(*command, "x.fits", "-o", "o.fits", option, name)
        assert done.status == 2
        assert "Traceback" not in done.err
        assert len(done.err) < 2000
    assert not Path("harm").exists()


@pytest.mark.parametrize(
    ("step", "word"),
    [
        (
            {"resample": {"grids": [{"start": 4e3, "step": 1, "pixels": 1e12}]}},
            "pixels",
        ),
        ({"resample": {"grids": 5}}, "grids"),
        (
            {
                "resample": {
                    "grids": [{"start": 1, "step": 9, "pixels": 99, "kind": "log10"}]
                }
            },
            "leaves",
        ),
        ({"continuum": {"width": 1e-12, "method": "smooth"}}, "width"),
        ({"continuum": {"degree": 10**9}}, "degree"),
        ({"continuum": {"iterations": 10**12}}, "iterations"),
        ({"continuum": {"method": []}}, "method"),
        ({"continuum": {"width": "wide", "method": "smooth"}}, "width"),
        ({"fold": {"shape": 64}}, "shape"),
        ({"pad": {"pixels": 10**12}}, "pixels"),
    ],
    ids=str,
)
def test_recipes_that_would_fill_memory_or_time(step, word):
    from stellarcli.preprocess import Recipe

    good = {"resample": {"grids": [{"start": 4920.0, "step": 0.5, "pixels": 9000}]}}
    with pytest.raises(UsageError, match=word):
        Recipe.from_steps("x", [good, step])


def test_a_narrow_continuum_of_many_pixels():
    from stellarcli.preprocess import Recipe

    grid = {"resample": {"grids": [{"start": 4e3, "step": 0.1, "pixels": 90_000}]}}
    with pytest.raises(UsageError, match="too narrow"):
        Recipe.from_steps("x", [grid, {"continuum": {"method": "smooth", "width": 1}}])


def cards(*lines):
    text = "".join(line.ljust(80) for line in (*lines, "END"))
    return text.ljust(-(-len(text) // 2880) * 2880).encode()


PRIMARY = cards("SIMPLE  =                    T", "BITPIX  = 8", "NAXIS   = 0")


def extension(kind, *lines):
    return PRIMARY + cards(f"XTENSION= '{kind:8}'", *lines)


PROMISES = {
    "a table of 10^12 rows": extension(
        *("BINTABLE", "BITPIX  = 8", "NAXIS   = 2", "NAXIS1  = 8"),
        *("NAXIS2  = 1000000000000", "PCOUNT  = 0", "GCOUNT  = 1", "TFIELDS = 1"),
        *("TFORM1  = 'D'", "TTYPE1  = 'FLUX'"),
    ),
    "an ASCII table of 10^12 rows": extension(
        *("TABLE", "BITPIX  = 8", "NAXIS   = 2", "NAXIS1  = 8"),
        *("NAXIS2  = 1000000000000", "PCOUNT  = 0", "GCOUNT  = 1", "TFIELDS = 1"),
        *("TFORM1  = 'E8.3'", "TBCOL1  = 1", "TTYPE1  = 'FLUX'"),
    ),
    "10^9 columns": extension(
        *("BINTABLE", "BITPIX  = 8", "NAXIS   = 2", "NAXIS1  = 8", "NAXIS2  = 1"),
        *("PCOUNT  = 0", "GCOUNT  = 1", "TFIELDS = 1000000000"),
    ),
    "10^9 axes": cards("SIMPLE  = T", "BITPIX  = 8", "NAXIS   = 1000000000"),
    "a compressed image of 10^12 pixels": extension(
        *("BINTABLE", "BITPIX  = 8", "NAXIS   = 2", "NAXIS1  = 8", "NAXIS2  = 1"),
        *("PCOUNT  = 0", "GCOUNT  = 1", "TFIELDS = 1", "TFORM1  = '1PB(1)'"),
        *("TTYPE1  = 'COMPRESSED_DATA'", "ZIMAGE  =                    T"),
        *("ZCMPTYPE= 'RICE_1'", "ZBITPIX = -32", "ZNAXIS  = 2"),
        *("ZNAXIS1 = 1000000", "ZNAXIS2 = 1000000", "ZTILE1  = 1000000", "ZTILE2 = 1"),
    )
    + bytes(2880),
    "a header of two megabytes": cards(
        "SIMPLE  = T", "BITPIX  = 8", "NAXIS   = 0", *["HISTORY x"] * 30_000
    ),
    "an image of 10^13 pixels": cards(
        *("SIMPLE  = T", "BITPIX  = -64", "NAXIS   = 2"),
        *("NAXIS1  = 10000000", "NAXIS2  = 1000000", "BZERO   = 5"),
    ),
}


@contextlib.contextmanager
def little_memory(most):
    """See that Python objects and arrays take no more than so many bytes."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("content", PROMISES.values(), ids=PROMISES)
def test_headers_that_promise_too_much(tmp_path, content):
    path = tmp_path / "x.fits"
    path.write_bytes(content)
    with little_memory(100e6), pytest.raises(SpectrumError):
        surveys.read(path)
    hostile.catalogue(content)


def test_a_gzip_bomb(tmp_path, monkeypatch):
    from stellarcli.surveys import inflating

    monkeypatch.setattr(inflating, "LARGEST", 1 << 20)
    path = tmp_path / "x.fits.gz"
    path.write_bytes(gzip.compress(bytes(1 << 25)))
    with little_memory(30e6), pytest.raises(SpectrumError, match="too large"):
        surveys.read(path)
    small = gzip.compress(bytes(1 << 19)), gzip.compress(b"0" * (1 << 19))
    path.write_bytes(b"".join(small) * 20)  # many small members
    with little_memory(30e6), pytest.raises(SpectrumError, match="too large"):
        surveys.read(path)


def test_text_that_is_no_spectrum(tmp_path, monkeypatch):
    from stellarcli.surveys import generic

    path = tmp_path / "x.txt"
    path.write_text("#" + "(" * 200_000 + "\n4000 1\n4001 1\n4002 1\n")
    assert surveys.read(path).flux.size == 3
    monkeypatch.setattr(generic, "LARGEST_TEXT", 1000)
    with pytest.raises(SpectrumError, match="MB of text"):
        surveys.read(path)


# ------------------------------------------------------------------------ model files


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("<Q", 5 << 30) + b"{",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 100_000) + b"[" * 100_000,
        struct.pack("<Q", 2) + b"[]",
        b"",
        b"\x80\x04\x95K\x00",  # a pickle
        b"PK\x03\x04",  # of torch.save
    ],
)
def test_headers_of_model_files(tmp_path, content):
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    with little_memory(50e6), pytest.raises(ModelFileError):
        checkpoint.load(str(path))


def test_metadata_nested_too_deeply(tmp_path):
    text = json.dumps({"__metadata__": {"stellar": "[" * 100_000}}).encode()
    path = tmp_path / "m.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    with pytest.raises(ModelFileError, match="damaged"):
        checkpoint.load(str(path))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"config": {"widths": [4, 4096], "blocks": [1, 1], "hidden": 1 << 40}}, "too"),
        ({"config": {"widths": [1] * 1000}}, "too many"),
        (
            {"config": {"hidden": 4096, "widths": [4096] * 8, "blocks": [9] * 8}},
            "describes|divisible",
        ),
        ({"pixels": 10**12}, "pixels"),
        ({"pixels": 385}, "pixels"),
        ({"error_scale": [1.0]}, "error_scale"),
        ({"error_scale": [float("nan")] * 3}, "error_scale"),
        ({"limits": []}, "limits"),
        ({"architecture": "os:system"}, "unknown"),
    ],
)
def test_model_files_that_contradict_themselves(tmp_path, model, changes, words):
    """Written as ours are, checksum and all, by somebody who means harm."""
    path = tmp_path / "bad.safetensors"
    checkpoint.save(replace(checkpoint.load(model), **changes), path)
    with little_memory(200e6), pytest.raises((ModelFileError, UsageError), match=words):
        checkpoint.load(str(path)).networks()


def test_novelty_of_another_shape(tmp_path, model):
    original = checkpoint.load(model)
    state = original.state | {"novelty.mean": np.zeros(3, dtype=np.float32)}
    path = tmp_path / "bad.safetensors"
    checkpoint.save(replace(original, state=state), path)
    with pytest.raises(ModelFileError, match=r"novelty\.mean"):
        checkpoint.load(str(path))


def test_good_files_stay_good(here):
    for number, content in enumerate(seeds("reader")[:-1]):
        Path("good").write_bytes(content)
        assert surveys.read("good").flux.size > 0, number
