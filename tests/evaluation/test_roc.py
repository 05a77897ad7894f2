"""ROC curves of folders: which voxels and cases count, and what is refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from command_line import run_main
from modistill.data.nifti import write_volume
from modistill.data.volume import Volume
from modistill.errors import CaseError, GeometryError, LabelError, RecipeError
from modistill.evaluation.roc import RegionROC, RunROCs, roc_notes, roc_of_folders, roc_table
from modistill.metrics.roc import DETECTION_THRESHOLDS, Detections, count_voxels
from modistill.report.roc import draw_roc

SHAPE = (8, 8, 8)
PNG = b"\x89PNG\r\n\x1a\n"


def tumour(case: int) -> np.ndarray:
    labels = np.zeros(SHAPE, np.uint8)
    labels[1:4, 1:4, 1 : 3 + case] = 1
    return labels


def write_run(root: Path, name: str, cases: range = range(3), noise: float = 1.0, shape: tuple[int, ...] = SHAPE) -> Path:
    for case in cases:
        rng = np.random.default_rng([case, len(name)])
        p = 1 / (1 + np.exp(-(3.0 * tumour(case) - 2 + noise * rng.normal(size=SHAPE))))
        write_volume(root / name / "probabilities" / f"p{case}" / "TUMOUR.nii.gz", Volume(p[: shape[0]]), dtype=np.float32)
    return root / name


@pytest.fixture
def references(tmp_path: Path) -> Path:
    for case in range(3):
        write_volume(tmp_path / "references" / f"p{case}.nii.gz", Volume(tumour(case)), dtype=np.uint8)
    return tmp_path / "references"


def test_curves_of_several_runs(tmp_path: Path, references: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = write_run(tmp_path, "good", noise=0.1), write_run(tmp_path, "bad", noise=3)
    options = ("--labels", "chest", "-o", tmp_path / "roc.csv", "--figure", tmp_path / "roc.png", "--resamples", 200)
    assert run_main("roc", good, bad, "-r", references, "--run", "CMEDL", "--run", "CT only", *options) == 0
    printed = capsys.readouterr().out
    assert "CT only" in printed
    assert "3 patients pooled" in printed
    assert "200 resamples, seed 0" in printed
    rows = list(csv.DictReader((tmp_path / "roc.csv").read_text().splitlines()))
    assert list(rows[0]) == ["run", "region", "unit", "threshold", "false_positives", "sensitivity"]
    assert {(row["run"], row["unit"]) for row in rows} == {(r, u) for r in ("CMEDL", "CT only") for u in ("voxel", "component")}
    curve = [(float(row["false_positives"]), float(row["sensitivity"])) for row in rows if row["unit"] == "voxel"]
    assert curve[0] == (0, 0)
    assert curve[-1] == (1, 1)
    content = json.loads((tmp_path / "roc.json").read_text())
    areas = {entry["run"]: entry for entry in content["areas"]}
    assert areas["CMEDL"]["auc"] == 1
    assert 0.6 < areas["CT only"]["interval"][0] < areas["CT only"]["auc"] < areas["CT only"]["interval"][1] < 0.95
    assert areas["CMEDL"]["positives"] == 9 * (2 + 3 + 4)
    assert areas["CMEDL"]["negatives"] == 3 * 512 - 81
    assert list(areas["CMEDL"]["auc_of_patients"]) == ["p0", "p1", "p2"]
    assert (tmp_path / "roc.png").read_bytes().startswith(PNG)


def test_only_the_cases_that_are_named_count(tmp_path: Path, references: Path) -> None:
    run = write_run(tmp_path, "run", cases=range(2), noise=3)
    found = roc_of_folders([run], references, labels="chest", cases=["p0", "p1"], resamples=100)
    assert found.cases == ("p0", "p1")
    one = roc_of_folders([run], references, labels="chest", cases=["p1"], resamples=100)
    assert one.curves[0].pooled.area == found.curves[0].areas["p1"]
    assert one.curves[0].interval is None
    assert "-, -" in roc_table(one).rows[0]


def test_a_run_that_lacks_a_case_is_refused_before_anything_is_counted(tmp_path: Path, references: Path) -> None:
    runs = [write_run(tmp_path, "all"), write_run(tmp_path, "some", cases=range(2))]
    with pytest.raises(CaseError, match=r"^p2: .*some/probabilities: no probabilities of TUMOUR \(predict --save-prob"):
        roc_of_folders(runs, references, labels="chest", on_case=lambda *_: pytest.fail("counted"))
    with pytest.raises(CaseError, match=r"p9: .*has no reference labels"):
        roc_of_folders(runs[:1], references, labels="chest", cases=["p0", "p9"])


def test_a_region_that_no_case_has(tmp_path: Path, references: Path) -> None:
    run = write_run(tmp_path, "run")
    for case in range(3):
        write_volume(references / f"p{case}.nii.gz", Volume(np.zeros(SHAPE, np.uint8)), dtype=np.uint8)
    with pytest.raises(CaseError, match="no case has any TUMOUR: there is no curve"):
        roc_of_folders([run], references, labels="chest")


def test_an_absent_region_beside_others_is_named(tmp_path: Path, references: Path) -> None:
    for case in range(3):  # labels 1 are liver; there are no kidneys, and no spleen
        for region in ("LIVER", "RIGHT_KIDNEY", "LEFT_KIDNEY", "SPLEEN"):
            path = tmp_path / "run" / "probabilities" / f"p{case}" / f"{region}.nii.gz"
            write_volume(path, Volume(0.8 * tumour(case)), dtype=np.float32)
    found = roc_of_folders([tmp_path / "run"], references, labels="abdomen", resamples=100)
    assert [one.region for one in found.curves] == ["LIVER"]
    assert found.absent == ("RIGHT_KIDNEY", "LEFT_KIDNEY", "SPLEEN")
    assert "SPLEEN: no case has any, there is no curve" in roc_notes(found)


def test_a_picture_where_probability_a_half_is_out_of_view(tmp_path: Path) -> None:
    """Runs of two regions, with 40 false components at 0.5 and one at the best threshold."""
    steps = np.arange(len(DETECTION_THRESHOLDS))
    detected = Detections(1, (steps > 11).astype(int), np.where(steps > 11, 1, 40))
    counts = count_voxels(np.array([0.1, 0.4, 0.3, 0.9]), np.array([0, 0, 1, 1]))
    curves = [RegionROC(run, region, {"p1": counts}, {"p1": detected}, 100, 0) for region in "AB" for run in ("one", "other")]
    draw_roc(RunROCs(tuple(curves), ("p1",), (), ()), tmp_path / "roc.png")  # a warning of the layout would be an error
    assert (tmp_path / "roc.png").read_bytes().startswith(PNG)


def test_what_can_be_got_wrong(tmp_path: Path, references: Path) -> None:
    run = write_run(tmp_path, "run")
    with pytest.raises(RecipeError, match="2 folders are named run, run"):
        roc_of_folders([run, run], references, labels="chest")
    with pytest.raises(RecipeError, match="1 folders are named a, b"):
        roc_of_folders([run], references, names=["a", "b"], labels="chest")
    with pytest.raises(LabelError, match="say which with --labels"):
        roc_of_folders([run], references)
    write_run(tmp_path, "run", cases=range(1), shape=(7, 8, 8))
    with pytest.raises(GeometryError, match=r"^p0: .*TUMOUR.nii.gz has shape 7x8x8, reference has 8x8x8"):
        roc_of_folders([run], references, labels="chest")
    write_volume(references / "p0.nii.gz", Volume(tumour(0) * 7), dtype=np.uint8)
    with pytest.raises(LabelError, match=r"^p0: .*p0.nii.gz: label values outside chest: 7"):
        roc_of_folders([run], references, labels="chest")


def test_examinations_of_a_patient_count_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Three visits of two patients: intervals, areas and false components are of patients."""
    run = write_run(tmp_path, "run", noise=3)
    visits = {"p0": "A_ses-1", "p1": "A_ses-2", "p2": "B_ses-1"}
    for case, visit in visits.items():
        write_volume(tmp_path / "references" / f"{visit}.nii.gz", Volume(tumour(int(case[1]))), dtype=np.uint8)
        (run / "probabilities" / case).rename(run / "probabilities" / visit)
    alone = {v: roc_of_folders([run], tmp_path / "references", labels="chest", cases=[v]).curves[0] for v in visits.values()}
    found = roc_of_folders([run], tmp_path / "references", labels="chest", resamples=500)
    (one,) = found.curves
    assert (found.cases, found.patients) == (tuple(visits.values()), ("A", "B"))
    first, second = alone["A_ses-1"], alone["A_ses-2"]
    assert one.areas == {"A": (first.pooled + second.pooled).area, "B": alone["B_ses-1"].pooled.area}
    assert one.pooled.area == (first.pooled + second.pooled + alone["B_ses-1"].pooled).area
    ends = [*one.areas.values(), one.pooled.area]
    assert one.interval == (min(ends), max(ends))  # two patients, drawn with replacement: no third area exists
    detected = [alone[visit].detections[visit[0]] for visit in visits.values()]
    assert one.detections["A"].tumours == 2
    np.testing.assert_array_equal(one.detections["A"].false, detected[0].false + detected[1].false)
    np.testing.assert_array_equal(one.detections["A"].found, detected[0].found + detected[1].found)
    assert roc_table(found).title == "ROC, 3 cases of 2 patients"
    assert roc_table(found).rows[0][5] == "2"
    assert "2 patients pooled" in roc_notes(found)[0]
