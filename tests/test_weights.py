"""Deployable weights: round trip, and every damage noticed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from modistill.errors import ModelError
from modistill.weights import load_weights, save_weights


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_weights(path, {"b": torch.arange(400.0), "a": torch.ones(2, 3)}, {"method": "x", "inputs": ["t1"]})
    return path


def test_round_trip_with_card(model: Path) -> None:
    tensors, card = load_weights(model)
    assert torch.equal(tensors["b"], torch.arange(400.0))
    assert (card["method"], card["inputs"], card["format"]) == ("x", ["t1"], 2)
    assert json.loads(model.with_suffix(".json").read_text()) == card


@pytest.mark.parametrize("place", [0.999, 0.6, 0.5])
def test_a_flipped_bit_is_noticed(model: Path, place: float) -> None:
    content = bytearray(model.read_bytes())
    content[int(len(content) * place)] ^= 1
    model.write_bytes(bytes(content))
    with pytest.raises(ModelError, match="damaged"):
        load_weights(model)


def test_cut_foreign_absent_and_later_files_are_named(model: Path, tmp_path: Path) -> None:
    later = tmp_path / "later.safetensors"
    tensors = {"a": torch.ones(1)}
    save_file(tensors, later, {"modistill": json.dumps({"format": 99})})
    foreign = tmp_path / "foreign.safetensors"
    save_file(tensors, foreign)
    model.write_bytes(model.read_bytes()[:-10])
    for path, message in [
        (later, "written in format 99, this version reads 2"),
        (foreign, "it has no card"),
        (model, "damaged"),
        (tmp_path / "none.safetensors", "no trained model here"),
    ]:
        with pytest.raises(ModelError, match=message):
            load_weights(path)


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="not finite are not saved: w"):
        save_weights(tmp_path / "m.safetensors", {"w": torch.tensor([1.0, float("nan")])}, {})
    assert not list(tmp_path.iterdir())
