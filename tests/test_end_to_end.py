"""Every recipe of the demo, the whole way: trained, predicted from patients without t1ce, scored."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from command_line import run_main
from modistill.benchmark import sizes
from modistill.evaluation.scores import read_scores
from modistill.phantom.cohort import write_cohort
from modistill.recipe import recipe_names

SMALL = ("data.size=[32, 32, 32]", "method.width=2", "training.epochs=1", "training.validate_every=1")
FIRST = ("demo/teacher", "demo/student")  # others start from these
OTHERS = tuple(name for name in recipe_names() if name.startswith("demo/") and name not in FIRST)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Patients, prepared cases, patients without t1ce, and the runs that others start from."""
    root = tmp_path_factory.mktemp("demo")
    write_cohort(root / "patients", 4, seed=3, shape=(32, 32, 32), workers=1)
    shutil.copytree(root / "patients", root / "new_patients")
    for privileged in (root / "new_patients").rglob("*t1ce*"):
        privileged.unlink()
    prepare = ("prepare", root / "patients", "-o", root / "prepared", "--recipe", "demo/teacher", "--size", 32, 32, 32)
    assert run_main(*prepare, "--fractions", 0.5, 0.5, 0, "--workers", 1) == 0
    for name in FIRST:
        train(root, name)
    return root


def train(root: Path, name: str) -> Path:
    run = root / "runs" / name.removeprefix("demo/")
    overrides = [word for override in SMALL for word in ("--set", override)]
    assert run_main("train", name, "--data", root / "prepared", "-o", run, "--device", "cpu", *overrides) == 0
    return run


@pytest.mark.parametrize("name", OTHERS)
def test_a_recipe_goes_the_whole_way(folder: Path, name: str) -> None:
    run = train(folder, name)
    found, scores = folder / "found" / run.name, folder / f"{run.name}.csv"
    assert run_main("predict", "-i", folder / "new_patients", "-o", found, "--model", run, "--device", "cpu") == 0
    assert run_main("evaluate", found, "-r", folder / "new_patients", "-o", scores, "-w", 1) == 0
    table = read_scores(scores)
    assert table.runs == (run.name,)
    assert table.subsets == ("flair+t1+t2",)
    assert len(table.cases) == 4
    assert not table.failed
    counted, weights = sizes(run), load_file(run / "model.safetensors").values()
    assert 0 < counted["parameters"] <= sum(weight.numel() for weight in weights)
    assert counted["flops"] > 1e6
