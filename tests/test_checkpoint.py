"""The model file: what is saved is loaded, and no damage goes unnoticed."""

import json
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stellarcli import checkpoint, preprocess
from stellarcli.errors import ModelFileError, StellarError, UsageError


@pytest.fixture
def broken(tmp_path, model):
    """Write a model file with its bytes changed by a function."""

    def write(change):
        path = tmp_path / "broken.safetensors"
        path.write_bytes(change(Path(model).read_bytes()))
        return str(path)

    return write


def rewritten(model, tmp_path, change):
    """Copy of a model file whose metadata a function changed, with a right checksum."""
    from safetensors.numpy import load, save

    content = Path(model).read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    values = json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["stellar"])
    state = load(content)
    del values["sha256"]
    change(values, state)
    values["sha256"] = checkpoint._digest(state, json.dumps(values))
    metadata = {"stellar": json.dumps(values)}
    path = tmp_path / "rewritten.safetensors"
    path.write_bytes(save(state, metadata=metadata))
    return str(path)


def test_round_trip(model, tmp_path):
    first = checkpoint.load(model)
    checkpoint.save(first, tmp_path / "again.safetensors")
    again = checkpoint.load(str(tmp_path / "again.safetensors"))
    assert again.sha256 == first.sha256, "the same model is the same bytes"
    assert again.labels == first.labels
    assert again.recipe == first.recipe
    for key, value in first.state.items():
        np.testing.assert_array_equal(again.state[key], value)


def test_float16_weights_are_computed_with_in_float32(model):
    first = checkpoint.load(model)
    short = replace(
        first, state={k: v.astype(np.float16) for k, v in first.state.items()}
    )
    weight = short.networks()[0].state_dict()["head.weight"]
    assert str(weight.dtype) == "torch.float32"
    assert np.array_equal(weight.numpy(), short.state["member0.head.weight"])


def test_every_flipped_byte_is_noticed(model, broken):
    size = Path(model).stat().st_size
    header = struct.unpack("<Q", Path(model).read_bytes()[:8])[0]
    rng = np.random.default_rng(1)
    places = {0, 7, 9, header, header + 9, size - 1, *rng.integers(8, header, 60)}
    for place in (*places, *rng.integers(header + 8, size, 20)):

        def flip(content, place=place):
            return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]

        with pytest.raises(ModelFileError, match=r"broken\.safetensors"):
            checkpoint.load(broken(flip))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda content: content[:-1], "damaged or no model file"),
        (lambda content: content[:100], "damaged or no model file"),
        (lambda content: b"", "damaged or no model file"),
        (lambda content: b"hello, world\n" * 9, "damaged or no model file"),
    ],
    ids=["truncated", "header cut", "empty", "text"],
)
def test_damage(broken, change, words, stellar, here):
    path = broken(change)
    with pytest.raises(ModelFileError, match=words):
        checkpoint.load(path)
    done = stellar("predict", path, "-o", "o.fits", "-m", path)
    assert done.status == 1
    assert "Copy it again" in done.err
    assert not list(here.glob("o.fits"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda v, s: v.update(format=99), "format version 99; .* up to 3.*newer"),
        (lambda v, s: v.pop("format"), "no format version"),
        (lambda v, s: v.pop("recipe"), "lacks the entry 'recipe'"),
        (lambda v, s: v["labels"][0].pop("name"), "can't be used.*name"),
        (lambda v, s: v.update(labels=[1]), "can't be used"),
        (lambda v, s: v["recipe"].update(steps=["resmaple"]), "'resmaple'"),
    ],
)
def test_files_of_other_versions(model, tmp_path, change, words):
    with pytest.raises(ModelFileError, match=words):
        checkpoint.load(rewritten(model, tmp_path, change))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda v, s: s.pop("member0.head.bias"), "Missing.*head.bias"),
        (lambda v, s: s.update({"member0.extra": np.ones(2)}), "extra"),
        (lambda v, s: s.update({"member0.head.bias": np.ones(2)}), "head.bias"),
        (lambda v, s: v["architecture"].update(name="scannet"), "'scanet'"),
        (lambda v, s: v["architecture"]["config"].update(width=3), "'widths'"),
        (lambda v, s: v.update(pixels=383), "383"),
        (lambda v, s: [s.pop(k) for k in list(s) if "member" in k], "no weights"),
    ],
)
def test_weights_that_dont_fit(model, tmp_path, change, words):
    path = rewritten(model, tmp_path, change)
    with pytest.raises(ModelFileError, match=words):
        checkpoint.load(path).networks()


def test_another_safetensors_file(tmp_path):
    from safetensors.numpy import save_file

    path = tmp_path / "other.safetensors"
    save_file({"a": np.ones(3)}, path)
    with pytest.raises(ModelFileError, match="not one of 'stellar train'"):
        checkpoint.load(str(path))


def test_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"model file 'no\.safetensors' doesn't exist"):
        checkpoint.load("no.safetensors")
    with pytest.raises(UsageError, match="unknown model 'defalt'"):
        checkpoint.load("defalt")
    (tmp_path / "giants.safetensors").touch()
    for mistyped in ("giants.safetensor", "./gaints.safetensors"):
        with pytest.raises(UsageError, match=r"Did you mean 'giants\.safetensors'"):
            checkpoint.load(mistyped)
    for name in checkpoint.shipped():
        (tmp_path / name).write_text("a file of the same name changes nothing")
        assert checkpoint.find(name) == checkpoint.shipped()[name]


def test_saving_on_a_full_disk_leaves_nothing(model, tmp_path, monkeypatch):
    def full(number):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StellarError, match="no space left on the disk"):
        checkpoint.save(checkpoint.load(model), tmp_path / "m.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_recipes_of_model_files(model):
    assert checkpoint.find_recipe(model) == checkpoint.load(model).recipe
    assert checkpoint.find_recipe("scanet") == preprocess.RECIPES["scanet"]


def test_the_shipped_model_uses_the_default_recipe():
    """Or ``preprocess | predict -`` would be refused."""
    default = checkpoint.load("default")
    steps = preprocess.RECIPES["default"].steps
    assert [str(step) for step in default.recipe.steps] == [str(step) for step in steps]


def test_an_ensemble_is_one_file(model, tmp_path):
    first = checkpoint.load(model)
    more = {k.replace("member0", "member1"): v for k, v in first.state.items()}
    path = tmp_path / "two.safetensors"
    checkpoint.save(replace(first, state=first.state | more), path)
    assert len(checkpoint.load(str(path)).networks()) == 2


def test_a_table_of_errors_comes_back_from_the_file(tmp_path):
    shipped = checkpoint.load("spectrafm")
    checkpoint.save(shipped, tmp_path / "m.safetensors")
    again = checkpoint.load(str(tmp_path / "m.safetensors"))
    for name, values in shipped.part("coverage").items():
        np.testing.assert_array_equal(again.part("coverage")[name], values)
    for old in ("default", "mk"):  # of the format before
        assert not checkpoint.load(old).part("coverage")


def test_a_table_of_one_instrument_is_read(tmp_path):
    model = checkpoint.load("spectrafm")
    levels = model.state["coverage.levels"][:, 0]
    state = model.state | {"coverage.levels": levels}
    del state["coverage.width"]
    checkpoint.save(replace(model, state=state), tmp_path / "m.safetensors")
    again = checkpoint.load(str(tmp_path / "m.safetensors"))
    np.testing.assert_array_equal(again.part("coverage")["levels"], levels)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("levels", np.zeros((3, 2, 2)), "coverage.levels are not"),
        ("levels", np.full((3, 2, 7, 6), np.nan), "coverage.levels are not"),
        ("width", np.zeros(3), "coverage.width are not"),
        ("middle", np.zeros(7), "don't increase"),
        ("length", np.zeros((2, 3)), "don't increase"),
        ("seen", np.zeros(3, np.uint8), "coverage.seen"),
        ("seen", None, "coverage has"),
        ("more", np.zeros(3), "coverage has"),
    ],
)
def test_a_table_of_errors_that_is_none(tmp_path, name, value, words):
    model = checkpoint.load("spectrafm")
    state = {k: v for k, v in model.state.items() if k != f"coverage.{name}"}
    if value is not None:
        state[f"coverage.{name}"] = value
    path = tmp_path / "bad.safetensors"
    checkpoint.save(replace(model, state=state), path)
    with pytest.raises(ModelFileError, match=words):
        checkpoint.load(str(path))
