import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from command_line import run_main
from modistill.data.nifti import write_volume
from modistill.data.volume import Volume
from modistill.errors import FileError, ScoreError
from modistill.evaluation.comparison import compare
from modistill.evaluation.folders import evaluate_folders
from modistill.evaluation.protocol import Protocol
from modistill.evaluation.scores import Score, Scores, read_scores, refuse_repeated, write_scores
from modistill.evaluation.subsets import evaluate_subsets
from modistill.evaluation.tables import modalities_of, subset_means, subset_table
from modistill.report.figures import plot_subsets
from modistill.subsets import all_subsets

NAMES = ("flair", "t1", "t2")
FOLDERS = tuple("+".join(subset) for subset in all_subsets(NAMES))


def save(path: Path, size: int) -> None:
    """A cube of enhancing tumour: Dice with one of 4 is known."""
    voxels = np.zeros((10, 10, 10), np.uint8)
    voxels[1 : 1 + size, 1:5, 1:5] = 4
    write_volume(path, Volume(voxels), dtype=np.uint8)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Predictions that grow better with the number of modalities: cubes of 1, 2, 3 in place of 4 slices."""
    for case in ("p1", "p2"):
        save(tmp_path / "references" / f"{case}.nii.gz", 4)
        for folder in FOLDERS:
            save(tmp_path / "out" / folder / f"{case}.nii.gz", folder.count("+") + 1)
    return tmp_path / "out", tmp_path / "references"


def test_every_folder_is_scored_small_subsets_first(folders: tuple[Path, Path]) -> None:
    predictions, references = folders
    (predictions / "notes").mkdir()  # holds no predictions
    save(predictions / "t1+t2" / "p9.nii.gz", 1)
    found = evaluate_subsets(predictions, references, run_name="any/0", labels="brats2021")
    assert found.scores.subsets == ("flair", "t1", "t2", "flair+t1", "flair+t2", "t1+t2", "flair+t1+t2")
    assert (found.scores.runs, found.scores.cases, found.unscored) == (("any/0",), ("p1", "p2"), ("p9",))
    dice = {row.available: row.value for row in found.scores.rows if (row.region, row.metric) == ("ET", "dice")}
    assert dice == pytest.approx({folder: 2 * n / (n + 4) for folder in FOLDERS for n in [folder.count("+") + 1]})


def test_a_case_that_failed_in_one_folder_is_failed_there_alone(folders: tuple[Path, Path]) -> None:
    predictions, references = folders
    (predictions / "t1" / "p2.nii.gz").unlink()
    found = evaluate_subsets(predictions, references, labels="brats2021")
    assert {(row.case, row.available) for row in found.scores.rows if row.status == "failed"} == {("p2", "t1")}
    assert [fault.case for fault in found.faults] == ["p2"]


def test_a_patient_who_never_had_all_sequences_does_not_count(folders: tuple[Path, Path], tmp_path: Path) -> None:
    predictions, flat = folders
    for case, names in {"p1": NAMES, "p2": NAMES, "p3": NAMES[:2]}.items():
        source = flat / f"{'p1' if case == 'p3' else case}.nii.gz"
        for name in (*names, "seg"):
            save(tmp_path / "cohort" / case / f"{case}_{name}.nii.gz", 4)
        shutil.copy(source, tmp_path / "cohort" / case / f"{case}_seg.nii.gz")
    found = evaluate_subsets(predictions, tmp_path / "cohort", labels="brats2021")
    assert (found.scores.cases, found.scores.failed) == (("p1", "p2"), ())
    (predictions / "t1" / "p2.nii.gz").unlink()
    assert evaluate_subsets(predictions, tmp_path / "cohort", labels="brats2021").scores.failed == ("p2",)


def test_no_folders_and_mixed_uncertainty_are_refused(folders: tuple[Path, Path]) -> None:
    predictions, references = folders
    with pytest.raises(FileError, match=r"holds no folders of predictions \(run `modistill predict --subsets`\)"):
        evaluate_subsets(predictions / "t1", references)
    with pytest.raises(FileError, match="holds no folders of predictions"):
        evaluate_subsets(predictions / "absent", references)
    (predictions / "t1" / "p1.json").write_text('{"made_with": {"uncertainty": "case"}}')
    for case in ("p1", "p2"):
        for name in ("brain", "WT", "TC", "ET"):
            write_volume(predictions / f"t1/uncertainty/{case}/{name}.nii.gz", Volume(np.ones((10, 10, 10))), dtype=np.uint8)
    with pytest.raises(FileError, match=r"uncertainty was written in several ways \(predict all subsets alike\)"):
        evaluate_subsets(predictions, references, labels="brats2021")


def test_the_mean_over_sets_is_of_what_is_defined_and_failed_where_any_failed() -> None:
    values = {"t1": (0.2, "measured"), "t2": (math.nan, "both_empty"), "t1+t2": (0.0, "failed")}
    rows = [Score("any", "p1", name, "WT", "dice", value, status) for name, (value, status) in values.items()]
    rows.append(Score("any", "p2", "t1", "WT", "dice", math.nan, "both_empty"))
    first, second = Scores(tuple(rows), Protocol()).averaged().rows
    assert (first.case, first.available, first.value, first.status) == ("p1", "", 0.1, "failed")
    assert (second.case, second.status) == ("p2", "both_empty")
    assert math.isnan(second.value)


def scores(run: str = "any") -> Scores:
    """Dice of two regions, two cases and three subsets."""
    made = {
        "t1": {"WT": (0.5, 0.7), "ET": (0.1, math.nan)},
        "flair": {"WT": (0.6, 0.9), "ET": (math.nan, math.nan)},
        "flair+t1": {"WT": (0.9, 1.0), "ET": (0.5, 0.6)},
    }
    rows = [
        Score(run, case, subset, region, "dice", value)
        for subset, regions in made.items()
        for region, pair in regions.items()
        for case, value in zip(("p1", "p2"), pair, strict=True)
    ]
    return Scores(tuple(rows), Protocol())


def test_means_by_hand() -> None:
    means = subset_means(scores())
    assert list(means) == ["t1", "flair", "flair+t1"]
    assert [row["WT"] for row in means.values()] == pytest.approx([0.6, 0.75, 0.95])
    assert [row["ET"] for row in means.values()] == pytest.approx([0.1, math.nan, 0.55], nan_ok=True)


def test_the_table_of_dots_by_hand() -> None:
    kept = tuple(row for row in scores().rows if row.region == "WT")
    table = subset_table(Scores(kept, Protocol()))
    assert table.title == "any: Dice, 2 cases, 3 subsets"
    assert table.header == ("flair", "t1", "WT")
    assert table.rows == (("○", "●", "0.600"), ("●", "○", "0.750"), ("●", "●", "0.950"), ("", "mean", "0.767"))
    assert table.sections == (2,)


def test_names_within_names_are_told_apart() -> None:
    """t1 is no part of t1ce."""
    rows = tuple(Score("any", "p1", subset, "WT", "dice", 0.5) for subset in ("t1ce", "t1", "t1ce+t1"))
    assert [row[:2] for row in subset_table(Scores(rows, Protocol())).rows[:2]] == [("●", "○"), ("○", "●")]


def test_modalities_stand_in_the_order_of_the_largest_set() -> None:
    assert modalities_of(["t2", "t1", "t1+t2", "flair+t1ce+t1+t2"]) == ("flair", "t1ce", "t1", "t2")
    assert modalities_of(["t2", "ct+t1"]) == ("ct", "t1", "t2")


def test_the_picture(tmp_path: Path) -> None:
    plot_subsets(scores(), tmp_path / "subsets.png")  # with a NaN in it
    assert (tmp_path / "subsets.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_several_subsets_of_a_run_are_not_compared() -> None:
    with pytest.raises(
        ScoreError, match=r"p1: run any was scored with t1 and with flair \(compare one set: --available flair\)"
    ):
        compare([scores(), scores("other")], "any", metrics=["dice"])


def test_a_case_may_stand_there_once_from_each_subset(tmp_path: Path) -> None:
    write_scores(tmp_path / "s.csv", scores())
    back = read_scores(tmp_path / "s.csv")
    assert back.subsets == scores().subsets
    assert back.select(available="flair").subsets == ("flair",)
    with pytest.raises(ScoreError, match="p1: run any scores dice of WT twice"):
        refuse_repeated([*back.rows, Score("any", "p1", "flair+t1", "WT", "dice", 0.1)])
    refuse_repeated([*back.rows, Score("any", "p1", "t2", "WT", "dice", 0.1)])


def test_from_folders_to_table_picture_and_comparison(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "110")
    predictions, references = folders
    arms = {name: predictions.parent / f"{name}.csv" for name in ("any", "control")}
    for name, path in arms.items():
        how = ("--subsets", "--run", name, "-o", path, "--labels", "brats2021", "-w", 1)
        assert run_main("evaluate", predictions, "-r", references, *how) == 0
    shown = capsys.readouterr().out
    assert "7 subsets" in shown
    assert "●" in shown
    assert arms["any"].with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
    asked = ("compare", *arms.values(), "--control", "control", "--metric", "dice", "--resamples", 100)
    assert run_main(*asked) == 2
    assert "was scored with flair and with t1 (compare one set: --available t1)" in capsys.readouterr().err
    assert run_main(*asked, "--available", "t2+t1+flair") == 0  # in any order
    assert "2 cases, paired" in capsys.readouterr().out
    assert run_main(*asked, "--available", "t1ce") == 2
    assert "nothing was predicted from t1ce (found: flair, t1, t2, flair+t1" in capsys.readouterr().err


def test_one_folder_of_many_can_be_scored_alone(folders: tuple[Path, Path]) -> None:
    predictions, references = folders
    assert evaluate_folders(predictions / "t1+t2", references, labels="brats2021").scores.runs == ("t1+t2",)
