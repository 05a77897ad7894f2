"""The recipes of translation between sequences, the whole way: trained, translated, scored, and what is segmented with it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from matplotlib.image import imread

from command_line import run_main
from modistill.evaluation.scores import read_scores
from modistill.files import read_json
from modistill.phantom.cohort import write_cohort

DATA = ("data.spacing_mm=null", "data.size=[32, 32, 24]")
SLICES = ("sampling.samples_per_case=1", "sampling.steps_per_epoch=2", "sampling.patch_size=[32, 32]", "sampling.workers=0")
SHORT = ("training.epochs=1", "method.width=2")
UTAD = ("method.side=32", "method.levels=3", "method.critic_rounds=1")
NARROW = {
    "utad_teacher": (*SLICES, *UTAD),
    "utad_net": (*SLICES, *UTAD),
    "star_gan": (*SLICES, *UTAD),
    "pix2pix": (*SLICES, "method.halvings=3"),
    "segmentor": (
        *("sampling.patch_size=[16, 16, 16]", "sampling.steps_per_epoch=1", "sampling.workers=0", "method.stages=3"),
        *("inference.window=[16, 16, 16]", "training.validate_every=1"),
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All recipes trained, each for a moment, and two patients to test on."""
    root = tmp_path_factory.mktemp("translation")
    write_cohort(root / "train", 5, seed=5, shape=(32, 32, 24), workers=1)
    write_cohort(root / "test", 2, seed=6, shape=(32, 32, 24), workers=1)
    sequences = "flair,t1,t1ce,t2"
    how = ("--modalities", sequences, "--available", sequences, "--normalisation", "percentiles", "--size", 32, 32, 24)
    prepare = ("prepare", root / "train", "-o", root / "prepared", *how, "--slices")
    assert run_main(*prepare, "--fractions", 0.8, 0.2, 0, "--workers", 1) == 0
    for name, narrow in NARROW.items():
        overrides = [word for override in (*DATA, *SHORT, *narrow) for word in ("--set", override)]
        run = ("train", f"translation/{name}", "--data", root / "prepared", "-o", root / name, "--device", "cpu")
        assert run_main(*run, *overrides) == 0, name
    return root


@pytest.mark.parametrize(("name", "number"), [("utad_teacher", 12), ("utad_net", 12), ("star_gan", 12), ("pix2pix", 1)])
def test_every_pair_is_translated_and_scored(folder: Path, name: str, number: int) -> None:
    made, scores = folder / "made" / name, folder / f"{name}.csv"
    assert run_main("translate", "-i", folder / "test", "--pairs", "-m", folder / name, "-o", made, "--device", "cpu") == 0
    assert run_main("evaluate-translations", made, "-r", folder / "test", "-o", scores, "--body-above", 0) == 0
    table = read_scores(scores)
    assert len(table.subsets) == number
    assert "t1-to-t1ce" in table.subsets
    assert (len(table.cases), table.failed) == (2, ())
    assert {"body", "WT"} <= set(table.regions)


def test_a_picture_shows_every_pair_of_one_case(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made, case = tmp_path / "made", next((folder / "test").iterdir()).name
    assert (
        run_main("translate", "-i", folder / "test", "--pairs", "-m", folder / "star_gan", "-o", made, "--device", "cpu") == 0
    )
    assert run_main("picture", folder / "test", made, "--pairs", "--case", case, "-o", tmp_path / "pairs.png") == 0
    assert imread(tmp_path / "pairs.png").std() > 0.1
    assert run_main("picture", folder / "test", made, "--pairs", "--case", "nobody", "-o", tmp_path / "no.png") == 2
    assert "nobody: " in capsys.readouterr().err
    assert run_main("picture", folder / "test", tmp_path, "--pairs", "-o", tmp_path / "no.png") == 2
    assert "lacks folders like flair-to-t1ce" in capsys.readouterr().err
    assert run_main("picture", folder / "test", made, made, "--pairs", "-o", tmp_path / "no.png") == 2
    assert "one folder and one case" in capsys.readouterr().err
    assert not (tmp_path / "no.png").exists()


def test_what_a_patient_lacks_is_made_for_the_segmentor(folder: Path) -> None:
    how = ("predict", "-i", folder / "test", "--model", folder / "segmentor", "--one-missing", "--device", "cpu")
    for by in (folder / "utad_net", "zero", "mean"):
        found, scores = folder / "completed" / Path(by).name, folder / f"{Path(by).name}_completed.csv"
        assert run_main(*how, "--complete-with", by, "-o", found) == 0
        assert run_main("evaluate", found, "--subsets", "-r", folder / "test", "-o", scores, "-w", 1) == 0
        table = read_scores(scores)
        assert len(table.subsets) == 4
        assert len(table.averaged().rows) * 4 == len(table.rows)


def test_a_teacher_sees_labels_only_when_it_is_told_to_and_a_student_never(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, more in (("without", ()), ("with", ("--with-labels",))):
        how = ("translate", "-i", folder / "test", "--to", "t2", "--from", "t1", "--device", "cpu")
        assert run_main(*how, "-m", folder / "utad_teacher", "-o", tmp_path / name, *more) == 0
    case = next((tmp_path / "with").glob("Phantom*")).name
    records = {name: read_json(tmp_path / name / case / f"{case}_t2.json") for name in ("with", "without")}
    assert "labels" in records["with"]["inputs"]
    assert "labels" not in records["without"]["inputs"]
    assert any("reference labels" in notice for notice in records["with"]["notices"])
    files = {name: record["files"] for name, record in records.items()}
    assert files["with"] != files["without"]
    capsys.readouterr()
    assert run_main(*how, "-m", folder / "utad_net", "-o", tmp_path / "student", "--with-labels") == 2
    assert "utad_net reads no labels" in capsys.readouterr().err
    bare = tmp_path / "bare" / case
    shutil.copytree(folder / "test" / case, bare, ignore=shutil.ignore_patterns("*seg*"))
    assert run_main(*how[:1], "-i", bare.parent, *how[3:], "-m", folder / "utad_teacher", "-o", tmp_path / "no", *more) == 2
    assert "has no reference labels" in capsys.readouterr().err + (tmp_path / "no" / "report.json").read_text()
