"""examples/sts_ct_mr.py: nobody gives two scans, and every command can be typed."""

from __future__ import annotations

import csv
import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer.main

from modistill.cli.app import app
from modistill.recipe import load_recipe
from modistill.runs import build_method

SCRIPT = Path(__file__).parents[2] / "examples" / "sts_ct_mr.py"
COMMANDS: Any = typer.main.get_command(app).commands


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("sts_ct_mr", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_patient_gives_one_scan_or_is_tested(example: ModuleType, tmp_path: Path) -> None:
    patients = [tmp_path / f"STS_{index:03d}" for index in range(7)]
    tables = example.parts(patients)
    assert sorted(folder for rows in tables.values() for folder, _ in rows) == patients
    example.write_table(tmp_path / "train.csv", tables["train"])
    with (tmp_path / "train.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["case"] for row in rows] == ["STS_000_ct", "STS_003_ct", "STS_006_ct", "STS_001_mr", "STS_004_mr"]
    assert all(bool(row["ct"]) != bool(row["mr"]) for row in rows)
    assert rows[3]["mr"] == str(patients[1] / "MR_T1_image.nii.gz")
    assert rows[3]["labels"] == str(patients[1] / "MR_T1_mask.nii.gz")
    assert tables["test"] == [(patients[2], "ct"), (patients[5], "ct")]


def test_every_command_can_be_typed_and_the_networks_can_be_built(example: ModuleType, tmp_path: Path) -> None:
    words = list(example.commands(tmp_path, 3))
    assert [line[0] for line in words] == ["inspect", "prepare", *["train"] * 2, *["predict", "evaluate"] * 2, "compare"]
    contexts = [COMMANDS[name].make_context(name, rest) for name, *rest in words]
    data = []
    for context in contexts[2:4]:
        recipe = load_recipe(context.params["recipe"], context.params["overrides"])
        assert build_method(recipe).dims == 2
        assert recipe.training["epochs"] == 3
        data.append(recipe.data)
    prepare = contexts[1].params
    assert data[0] == data[1]
    assert data[0].n4 == (prepare["n4"],)
    low, high = data[0].normalisation["ct"]
    assert prepare["normalisation"] == f"ct={low:g}:{high:g},mr=landmarks"


def test_the_script_names_no_place_of_some_machine() -> None:
    assert re.search(r"[\s\"'`(=:]/(?:work|tmp|home|root|mnt|var|Users)\b", SCRIPT.read_text()) is None
