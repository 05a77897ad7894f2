import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from modistill.data.nifti import write_volume
from modistill.data.volume import Volume
from modistill.errors import CaseError, FileError, LabelError, ModistillError
from modistill.evaluation.folders import _each, evaluate_folders, ids_that_count
from modistill.evaluation.protocol import Protocol

SHAPE = (12, 11, 10)


def labels(et: int = 4, shift: int = 0) -> NDArray[np.uint8]:
    voxels = np.zeros(SHAPE, np.uint8)
    voxels[2 + shift : 9 + shift, 2:9, 2:8] = 2
    voxels[3 + shift : 7 + shift, 3:7, 3:7] = 1
    voxels[4 + shift : 6 + shift, 4:6, 4:6] = et
    return voxels


def save(path: Path, voxels: NDArray[np.generic], *, origin: float = 0.0) -> None:
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    affine[0, 3] = origin
    write_volume(path, Volume(voxels, affine), dtype=voxels.dtype)


@pytest.fixture
def cohort(tmp_path: Path) -> tuple[Path, Path]:
    """Three BraTS-like cases with references, and their predictions moved by one voxel."""
    rng = np.random.default_rng(0)
    for case in ("p1", "p2", "p3"):
        folder = tmp_path / "cohort" / case
        save(folder / f"{case}_t1.nii.gz", rng.normal(size=SHAPE).astype(np.float32))
        save(folder / f"{case}_seg.nii.gz", labels())
        save(tmp_path / "predicted" / f"{case}.nii.gz", labels(shift=1))
    return tmp_path / "predicted", tmp_path / "cohort"


def test_numbers_by_hand(cohort: tuple[Path, Path]) -> None:
    found = evaluate_folders(*cohort)
    assert (found.faults, found.unscored, found.scores.runs) == ((), (), ("predicted",))
    assert len(found.scores.rows) == 3 * 3 * 5
    values = {(row.region, row.metric): row.value for row in found.scores.rows if row.case == "p1"}
    assert values["WT", "dice"] == pytest.approx(6 / 7)  # a box of 7 moved by 1
    assert values["TC", "dice"] == pytest.approx(3 / 4)
    assert values["ET", "dice"] == pytest.approx(1 / 2)
    assert values["WT", "hausdorff95_mm"] == 1
    assert values["WT", "surface_dice"] == 1
    assert values["WT", "volume_ml"] == pytest.approx(7 * 7 * 6 * 2 / 1000)
    assert values["WT", "volume_error_ml"] == 0


def test_conventions_may_differ_by_name(cohort: tuple[Path, Path]) -> None:
    predictions, references = cohort
    plain = evaluate_folders(predictions, references)
    for case in ("p1", "p2", "p3"):
        save(predictions / f"{case}.nii.gz", labels(et=3, shift=1))
        facts = {"run": "had/1", "convention": "brats2023", "available": ["t1", "t2"]}
        (predictions / f"{case}.json").write_text(json.dumps(facts))
    renumbered = evaluate_folders(predictions, references)
    assert [row.value for row in renumbered.scores.rows] == [row.value for row in plain.scores.rows]
    assert {(row.run, row.available) for row in renumbered.scores.rows} == {("had/1", "t1+t2")}
    assert evaluate_folders(predictions, references, run_name="mine").scores.runs == ("mine",)


def test_an_absent_prediction_has_failed_and_is_named(cohort: tuple[Path, Path]) -> None:
    predictions, references = cohort
    (predictions / "p2.nii.gz").unlink()
    found = evaluate_folders(predictions, references)
    assert found.scores.failed == ("p2",)
    assert str(found.faults[0]).startswith("p2: no prediction: counted as failed")
    values = {(row.region, row.metric): row.value for row in found.scores.rows if row.case == "p2"}
    assert (values["ET", "dice"], values["ET", "surface_dice"], values["ET", "hausdorff95_mm"]) == (0, 0, 373.13)
    assert values["WT", "volume_error_ml"] == pytest.approx(7 * 7 * 6 * 2 / 1000)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("shape", "prediction has shape 12x11x9"),
        ("shifted", "prediction is shifted against reference: corners lie up to 5.0 mm apart"),
        ("fractions", "fraction"),
        ("unknown", "label values outside brats2021: 7"),
        ("convention", "these values fit brats2023"),
        ("cut", "p2.nii.gz"),
        ("sidecar", "p2.json: damaged JSON"),
        ("list", "p2.json: is not a JSON object"),
        ("named", "unknown label convention brats1999"),
    ],
)
def test_a_prediction_that_cannot_be_scored_has_failed(cohort: tuple[Path, Path], fault: str, words: str) -> None:
    predictions, references = cohort
    path = predictions / "p2.nii.gz"
    sidecars = {"sidecar": "{", "list": "[]", "named": '{"convention": "brats1999"}'}
    if fault in sidecars:
        (predictions / "p2.json").write_text(sidecars[fault])
    elif fault == "cut":
        path.write_bytes(path.read_bytes()[:-20])
    elif fault == "shifted":
        save(path, labels(), origin=5)
    else:
        made = {
            "shape": labels()[..., :9],
            "fractions": labels().astype(np.float32) * 0.3,
            "unknown": labels(et=7),
            "convention": labels(et=3),
        }
        save(path, made[fault])
    found = evaluate_folders(predictions, references)
    assert found.scores.failed == ("p2",)
    assert len(found.faults) == 1
    assert found.faults[0].case == "p2"
    assert words in str(found.faults[0])
    assert {row.status for row in found.scores.rows if row.case != "p2"} == {"measured"}


def test_a_bad_reference_has_no_rows_and_is_named(cohort: tuple[Path, Path]) -> None:
    predictions, references = cohort
    save(references / "p3" / "p3_seg.nii.gz", labels(et=9))
    found = evaluate_folders(predictions, references, labels="brats2021")
    assert found.scores.cases == ("p1", "p2")
    assert "p3_seg.nii.gz: label values outside brats2021: 9" in str(found.faults[0])


def test_cases_that_count(cohort: tuple[Path, Path], tmp_path: Path) -> None:
    predictions, references = cohort
    found = evaluate_folders(predictions, references, cases=["p1", "p9"])
    assert found.scores.cases == ("p1",)
    assert [fault.case for fault in found.faults] == ["p9"]
    assert found.unscored == ("p2", "p3")
    for name, text in (("a.txt", "p1\np2\n"), ("b.json", '["p1", "p2"]'), ("c.json", '{"parts": {"test": ["p1", "p2"]}}')):
        (tmp_path / name).write_text(text)
        assert ids_that_count(tmp_path / name) == ("p1", "p2")
    (tmp_path / "d.json").write_text('{"train": ["p1"]}')
    with pytest.raises(CaseError, match=r"d\.json: names no case"):
        ids_that_count(tmp_path / "d.json")
    with pytest.raises(FileError, match=r"e\.txt: cannot be read"):
        ids_that_count(tmp_path / "e.txt")


def test_a_flat_folder_of_references(cohort: tuple[Path, Path]) -> None:
    predictions, _ = cohort
    found = evaluate_folders(predictions, predictions)
    assert {row.value for row in found.scores.rows if row.metric == "dice"} == {1.0}


def test_an_ambiguous_convention_is_refused(cohort: tuple[Path, Path]) -> None:
    predictions, references = cohort
    for case in ("p1", "p2", "p3"):
        save(references / case / f"{case}_seg.nii.gz", labels(et=3))
    with pytest.raises(LabelError, match=r"say which with --labels"):
        evaluate_folders(predictions, references)
    with pytest.raises(LabelError, match=r"unknown label convention brats20 .known: brats2021"):
        evaluate_folders(predictions, references, labels="brats20")


def test_nothing_to_score_is_refused(cohort: tuple[Path, Path], tmp_path: Path) -> None:
    predictions, references = cohort
    (tmp_path / "none").mkdir()
    with pytest.raises(CaseError, match="no usable prediction for any of 3 cases; the first: p1: no prediction"):
        evaluate_folders(tmp_path / "none", references)
    with pytest.raises(FileError, match="is not a folder"):
        evaluate_folders(tmp_path / "absent", references)
    for case in ("p1", "p2", "p3"):
        (references / case / f"{case}_seg.nii.gz").unlink()
    with pytest.raises(CaseError, match="no reference labels found"):
        evaluate_folders(predictions, references)


def test_a_prediction_that_stands_there_twice_is_refused(cohort: tuple[Path, Path]) -> None:
    predictions, references = cohort
    save(predictions / "p1.nii", labels())
    with pytest.raises(CaseError, match=r"p1: .*p1\.nii\.gz: stands there twice"):
        evaluate_folders(predictions, references)


def test_several_processes_give_the_same_rows(cohort: tuple[Path, Path]) -> None:
    done: list[tuple[int, int]] = []
    one = evaluate_folders(*cohort)
    two = evaluate_folders(*cohort, workers=2, on_case=lambda *count: done.append(count))
    assert one == two
    assert done == [(1, 3), (2, 3), (3, 3)]


def test_a_worker_that_dies_is_one_line() -> None:
    with pytest.raises(ModistillError, match=r"a worker process died \(out of memory\? try --workers 1\)"):
        list(_each(os._exit, [1, 1], workers=2))


def test_a_case_without_tumour_by_both_rules(cohort: tuple[Path, Path]) -> None:
    predictions, references = cohort
    save(predictions / "p1.nii.gz", np.zeros(SHAPE, np.uint8))
    save(references / "p1" / "p1_seg.nii.gz", np.zeros(SHAPE, np.uint8))
    for rule, expected in (("perfect", 1.0), ("undefined", math.nan)):
        found = evaluate_folders(predictions, references, protocol=Protocol(both_empty=rule), labels="brats2021")
        row = next(row for row in found.scores.rows if row.case == "p1" and row.metric == "dice")
        assert row.status == "both_empty"
        assert row.value == pytest.approx(expected, nan_ok=True)
