"""Cases stored for networks of axial slices: the same values in other blocks, and the settings that belong to such cohorts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from command_line import run_main
from modistill.benchmark import Benchmark, tasks
from modistill.data.folder import find_cases
from modistill.data.loading import Loader
from modistill.data.preparing import prepare
from modistill.data.preprocessing import Preprocessing
from modistill.data.store import PreparedCohort
from modistill.errors import RecipeError
from modistill.recipe import Recipe, check
from modistill.runs import train
from tiny_cohort import ALL, AVAILABLE, write_folder

RECIPE = (
    "data: {modalities: [flair, t1], available: [t1], n4: [t1]}\nmethod: {name: supervised}\nsampling: {patch_size: [8, 8]}\n"
)


@pytest.fixture(scope="module")
def cohorts(tmp_path_factory: pytest.TempPathFactory) -> list[PreparedCohort]:
    """The same cases, stored for patches and for slices."""
    root = tmp_path_factory.mktemp("slices")
    raw = find_cases(write_folder(root / "raw", cases=2, shape=(100, 90, 14)))
    how = Preprocessing(ALL, AVAILABLE)
    return [prepare(raw, root / str(slices), how, {"train": 1.0}, workers=1, slices=slices).cohort for slices in (False, True)]


def stored(cohort: PreparedCohort, name: str = "images.b2nd") -> tuple[tuple[int, ...], tuple[int, ...]]:
    import blosc2

    array = blosc2.open(str(cohort.folder / "cases" / "BraTS21_000" / name), mode="r")
    return array.chunks, array.blocks


def test_a_block_is_of_one_slice(cohorts: list[PreparedCohort]) -> None:
    (d, h, w), (patches, slices) = cohorts[0].entry("BraTS21_000").shape, cohorts
    assert stored(patches) == ((4, 32, 32, w), (4, 8, 8, w))
    assert stored(slices) == ((4, min(d, 128), min(h, 128), 8), (4, 64, min(h, 128), 1))
    assert stored(slices, "labels.b2nd")[1] == (64, min(h, 128), 1)


def test_every_value_is_the_same(cohorts: list[PreparedCohort]) -> None:
    rng = np.random.default_rng(0)
    for case in cohorts[0].ids("train"):
        shape = cohorts[0].entry(case).shape
        boxes = [((0, 0, 0), shape), ((3, 5, 7), (96, 96, 1)), ((-4, 60, -2), (100, 90, 9))]
        boxes += [(tuple(rng.integers(-9, 90, 3)), tuple(rng.integers(1, 80, 3))) for _ in range(8)]
        for start, size in boxes:
            for one, other in zip(*(cohort.patch(case, start, size) for cohort in cohorts), strict=True):
                np.testing.assert_array_equal(one, other)
        assert cohorts[0].entry(case).preprocessing == cohorts[1].entry(case).preprocessing


@pytest.mark.parametrize("patch_size", [(96, 96), (32, 16, 8)])
def test_batches_are_the_same(cohorts: list[PreparedCohort], patch_size: tuple[int, ...]) -> None:
    how = {"modalities": ALL, "available": AVAILABLE, "patch_size": patch_size, "dims": len(patch_size), "workers": 0}
    loaders = [Loader(cohort, cohort.ids("train"), **how, samples_per_case=3) for cohort in cohorts]
    for one, other in zip(*(loader.batches(0) for loader in loaders), strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)


def test_cases_that_are_there_stay_as_they_are(tmp_path: Path) -> None:
    raw = find_cases(write_folder(tmp_path / "raw", cases=2, shape=(20, 17, 23)))
    for slices in (False, True):
        done = prepare(raw, tmp_path / "p", Preprocessing(ALL, AVAILABLE), {"train": 1.0}, workers=1, slices=slices)
    assert done.kept == 2
    assert stored(done.cohort)[1][-1] > 1


def test_a_recipe_of_slices_stores_for_slices_and_the_option_wins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw, recipe = write_folder(tmp_path / "raw", cases=2, shape=(9, 9, 9)), tmp_path / "r.yaml"
    recipe.write_text(RECIPE)
    words = ["prepare", raw, "-r", recipe, "--fractions", 1, 0, 0, "--workers", 1]
    assert run_main(*words, "-o", tmp_path / "a") == 0
    assert "without bias field: t1" in " ".join(capsys.readouterr().out.split())
    assert run_main(*words, "-o", tmp_path / "b", "--patches", "--n4", "flair") == 0
    assert [stored(PreparedCohort(tmp_path / name))[1][-1] == 1 for name in "ab"] == [True, False]
    assert [PreparedCohort(tmp_path / name).plan.preprocessing.n4 for name in "ab"] == [("t1",), ("flair",)]
    assert run_main(*words, "-o", tmp_path / "c", "--n4", "t2") == 2
    assert "--n4 t2: no such modality (some of flair,t1)" in " ".join(capsys.readouterr().err.split())


def recipe_of(**data: object) -> Recipe:
    content = {"data": {"modalities": ["ct", "mr"], "available": ["ct"], **data}, "method": {"name": "segmentor"}}
    return check(Recipe, content, "r.yaml")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"n4": ["t2"]}, "n4 holds t2, which modalities lack"),
        ({"within": "lungs", "available": ["mr"]}, "within lungs needs ct among the available modalities"),
        ({"within": "liver"}, "data.within: Input should be 'lungs'"),
    ],
)
def test_recipes_that_make_no_sense(data: dict[str, object], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        recipe_of(**data)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"within": "lungs"}, "data.within is lungs, the prepared cases were made with None"),
        ({"n4": ["ct"]}, "data.n4 is ct, the prepared cases were made with none"),
    ],
)
def test_a_recipe_refuses_cases_that_were_prepared_otherwise(tmp_path: Path, data: dict[str, object], words: str) -> None:
    raw = write_folder(tmp_path / "raw", cases=2)
    for path in raw.rglob("*_t1.nii.gz"):
        path.rename(path.with_name(path.name.replace("_t1.", "_ct.")))
    how = Preprocessing(("ct",), ("ct",))
    prepare(find_cases(raw), tmp_path / "p", how, {"train": 1.0}, workers=1)
    with pytest.raises(RecipeError, match=words):
        train(recipe_of(modalities=["ct"], **data), tmp_path / "p", tmp_path / "run")


def test_a_benchmark_prepares_as_its_recipes_say() -> None:
    arms = {name: {"recipe": f"chest/{name}"} for name in ("ct_only", "cmedl")}
    chosen = Benchmark(arms=arms, control="ct_only", set=("data.within=lungs", "data.n4=[mr]"))
    command = " ".join(tasks(chosen, Path("train"), Path("test"), Path("out"))["prepare"].command)
    assert command.endswith("--available ct --n4 mr --within lungs --slices")
