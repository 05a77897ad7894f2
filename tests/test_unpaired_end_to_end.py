"""The recipes of unpaired CT and MR, the whole way: patients of either kind in one cohort, trained, predicted, scored."""

from __future__ import annotations

from pathlib import Path

import pytest

from command_line import run_main
from modistill.benchmark import sizes
from modistill.evaluation.scores import read_scores
from modistill.methods.segmentor import Segmentor
from modistill.phantom.cohort import write_cohort
from modistill.recipe import recipe_names
from modistill.runs import load_model

SMALL = (
    *("sampling.patch_size=[32, 32]", "sampling.samples_per_case=1", "sampling.workers=0"),
    *("training.epochs=1", "training.validate_every=1", "method.width=2"),
)
RECIPES = tuple(name for name in recipe_names() if name.startswith("chest/"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three patients with CT, three others with MR, and two of the first kind to test on."""
    root = tmp_path_factory.mktemp("chest")
    how = {"body": "chest", "seed": 5, "shape": (48, 48, 16), "workers": 1}
    write_cohort(root / "train" / "ct", 3, without=("mr",), **how)
    write_cohort(root / "train" / "mr", 3, without=("ct",), first=3, **how)
    write_cohort(root / "test", 2, without=("mr",), first=6, **how)
    prepare = ("prepare", root / "train", "-o", root / "prepared", "--recipe", "chest/cmedl", "--fractions", 0.7, 0.3, 0)
    assert run_main(*prepare, "--workers", 1) == 0
    return root


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_goes_the_whole_way(folder: Path, name: str) -> None:
    run = folder / "runs" / name.removeprefix("chest/")
    narrow = (*SMALL, "method.translator_width=2", "method.blocks=1") if name == "chest/cmedl" else SMALL
    overrides = [word for override in narrow for word in ("--set", override)]
    assert run_main("train", name, "--data", folder / "prepared", "-o", run, "--device", "cpu", *overrides) == 0
    found, scores = folder / "found" / run.name, folder / f"{run.name}.csv"
    predict = ("predict", "-i", folder / "test", "-o", found, "--model", run, "--device", "cpu")
    if name == "chest/cyclegan":
        assert run_main(*predict) == 2  # it translates, and says so
        return
    assert run_main(*predict) == 0
    assert run_main("evaluate", found, "-r", folder / "test", "-o", scores, "-w", 1) == 0
    table = read_scores(scores)
    assert (table.subsets, table.regions, len(table.cases)) == (("ct",), ("TUMOUR",), 2)
    assert not table.failed
    assert isinstance(load_model(run).method, Segmentor)
    assert sizes(run)["parameters"] > 0


def test_patients_of_another_modality_are_refused_by_name(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = folder / "runs" / "ct_only"
    assert run_main("predict", "-i", folder / "train" / "mr", "-o", folder / "wrong", "--model", run, "--device", "cpu") == 2
    assert "has mr, lacks ct" in "".join(capsys.readouterr())
