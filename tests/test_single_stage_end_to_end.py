"""The recipes of single-stage distillation, the whole way: nnU-Net's training, any pair of sequences, the student alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from command_line import run_main
from modistill.evaluation.scores import read_scores
from modistill.methods.dedicated import Dedicated
from modistill.methods.single_stage import BarlowDistillation
from modistill.phantom.cohort import write_cohort
from modistill.runs import load_model

SMALL = (
    *(
        "method.width=2",
        "method.stages=3",
        "sampling.patch_size=[16, 16, 16]",
        "sampling.steps_per_epoch=2",
        "sampling.workers=0",
    ),
    *("training.epochs=2", "training.validate_every=1", "inference.window=[16, 16, 16]", "inference.mirror=[]"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four patients with all sequences, and one to test on who has FLAIR and T1ce alone."""
    root = tmp_path_factory.mktemp("single_stage")
    write_cohort(root / "train", 4, seed=3, shape=(32, 32, 32), workers=1)
    write_cohort(root / "test", 1, seed=3, shape=(32, 32, 32), first=4, without=("t1", "t2"), workers=1)
    prepare = ("prepare", root / "train", "-o", root / "prepared", "--recipe", "single_stage/student")
    assert run_main(*prepare, "--fractions", 0.75, 0.25, 0, "--workers", 1) == 0
    return root


def train(folder: Path, recipe: str, run: str, *overrides: str) -> Path:
    words = [word for override in (*SMALL, *overrides) for word in ("--set", override)]
    out = folder / "runs" / run
    assert run_main("train", f"single_stage/{recipe}", "--data", folder / "prepared", "-o", out, "--device", "cpu", *words) == 0
    return out


def test_student_and_twin_go_the_whole_way(folder: Path) -> None:
    for recipe, kind in (("student", BarlowDistillation), ("plain", Dedicated)):
        run, found = train(folder, recipe, recipe), folder / "found" / recipe
        assert run_main("predict", "-i", folder / "test", "-o", found, "--model", run, "--device", "cpu") == 0
        assert run_main("evaluate", found, "-r", folder / "test", "-o", folder / f"{recipe}.csv", "-w", 1) == 0
        assert read_scores(folder / f"{recipe}.csv").subsets == ("flair+t1ce",)
        model = load_model(run)
        assert (type(model.method), model.reads) == (kind, ("flair", "t1ce"))
    student = load_model(folder / "runs" / "student").method
    assert not any(p.is_meta for p in student.student.network.parameters())
    assert all(p.is_meta for p in student.teacher.parameters())  # nothing of the teacher was saved


def test_two_stages_begin_with_a_trained_teacher(folder: Path) -> None:
    teacher = train(folder, "teacher", "teacher")
    run = train(folder, "student", "two_stage", "method.mode=two_stage", "start_from.teacher=../teacher")
    log = (run / "log.csv").read_text()
    assert "train/student/barlow" in log
    assert "train/teacher" not in log
    assert load_model(teacher).reads == ("flair", "t1ce", "t1", "t2")


def test_any_other_subset_by_one_key(folder: Path) -> None:
    """`data.available`, which the cohort is prepared for, too."""
    prepared = folder / "t2"
    prepare = ("prepare", folder / "train", "-o", prepared, "--recipe", "single_stage/student", "--available", "t2")
    assert run_main(*prepare, "--fractions", 0.75, 0.25, 0, "--workers", 1) == 0
    overrides = [
        word for o in (*SMALL, "data.available=[t2]", "method.available=[t2]", "method.above=1") for word in ("--set", o)
    ]
    run = folder / "runs" / "t2"
    assert run_main("train", "single_stage/student", "--data", prepared, "-o", run, "--device", "cpu", *overrides) == 0
    assert load_model(run).reads == ("t2",)
