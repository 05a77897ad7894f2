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
OF_A_PART = ("method.translation.width=2", "method.translation.blocks=1")
DRIT = ("critic_scales=1", "content_layers=0", "blocks=1")
NARROW = {
    **dict.fromkeys(("chest/cmedl", "chest/pmr", "chest/ct_and_pmr", "chest/weighted", "chest/mutual"), OF_A_PART),
    "chest/weighted": (*OF_A_PART, "method.weighting_width=2"),
    "chest/vae_cmedl": ("method.translation.width=2", *(f"method.translation.{how}" for how in DRIT)),
    "chest/drit": tuple(f"method.{how}" for how in DRIT),
    "chest/cyclegan": ("method.blocks=1",),
}
TRANSLATING = {"chest/cyclegan", "chest/drit"}
RECIPES = tuple(name for name in recipe_names() if name.startswith("chest/") and name != "chest/weak_teacher")


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
    narrow = (*SMALL, *NARROW.get(name, ()))
    overrides = [word for override in narrow for word in ("--set", override)]
    assert run_main("train", name, "--data", folder / "prepared", "-o", run, "--device", "cpu", *overrides) == 0
    found, scores = folder / "found" / run.name, folder / f"{run.name}.csv"
    predict = ("predict", "-i", folder / "test", "-o", found, "--model", run, "--device", "cpu")
    assert 0 < sizes(run)["parameters"] <= sizes(run)["trained_parameters"]
    assert sizes(run)["flops"] > 0
    if name in TRANSLATING:
        assert run_main(*predict) == 2  # it translates, and says so
        return
    assert run_main(*predict) == 0
    assert run_main("evaluate", found, "-r", folder / "test", "-o", scores, "-w", 1) == 0
    table = read_scores(scores)
    assert (table.subsets, table.regions, len(table.cases)) == (("ct",), ("TUMOUR",), 2)
    assert not table.failed
    deployed = load_model(run).method
    assert deployed.available == ("ct",)
    assert isinstance(deployed, Segmentor) == (name in {"chest/ct_only", "chest/cmedl", "chest/vae_cmedl"})  # the student alone


def test_patients_of_another_modality_are_refused_by_name(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = folder / "runs" / "ct_only"
    assert run_main("predict", "-i", folder / "train" / "mr", "-o", folder / "wrong", "--model", run, "--device", "cpu") == 2
    assert "has mr, lacks ct" in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("body", "name", "student", "overrides"),
    [
        ("chest", "chest/weak_teacher", "mr", ("method.augment_student=true",)),
        ("abdomen", "abdomen/equal_teacher", "t1", ()),
        ("abdomen", "abdomen/t1_only", "t1", ()),
    ],
)
def test_weak_and_equal_teachers(tmp_path: Path, body: str, name: str, student: str, overrides: tuple[str, ...]) -> None:
    """The student is for MR, taught by CT; or for T1, taught by T2, with four organs."""
    how = {"body": body, "seed": 5, "shape": (48, 48, 16), "workers": 1}
    one, other = ("ct", "mr") if body == "chest" else ("t2", "t1")
    write_cohort(tmp_path / "train" / one, 2, without=(other,), **how)
    write_cohort(tmp_path / "train" / other, 2, without=(one,), first=2, **how)
    prepared = tmp_path / "prepared"
    prepare = ("prepare", tmp_path / "train", "-o", prepared, "--recipe", name, "--fractions", 1, 0, 0, "--workers", 1)
    assert run_main(*prepare) == 0
    narrow = (*SMALL, *overrides, *(OF_A_PART if name != "abdomen/t1_only" else ()))
    words = [word for override in narrow for word in ("--set", override)]
    assert run_main("train", name, "--data", prepared, "-o", tmp_path / "run", "--device", "cpu", *words) == 0
    method = load_model(tmp_path / "run").method
    assert (method.available, type(method)) == ((student,), Segmentor)
