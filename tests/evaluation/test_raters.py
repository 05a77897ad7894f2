"""Table IV of CMEDL by hand, with three tiny raters and an algorithm."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest

from command_line import run_main
from modistill.data.nifti import write_volume
from modistill.data.volume import Volume
from modistill.errors import CaseError, FileError, GeometryError, LabelError, RecipeError
from modistill.evaluation.raters import compare_raters, raters_csv, raters_json, raters_notes, variation
from modistill.evaluation.statistics import Summary

SPACING = np.diag([2.0, 1.0, 1.0, 1.0])
# Rods along the first axis, from voxel 1 on: their lengths for every case, in voxels of 2 mm.
LENGTHS = {"R1": (4, 6), "R2": (4, 4), "R3": (2, 6), "network": (3, 6)}


def rod(length: int, value: int = 1, affine: np.ndarray = SPACING) -> Volume:
    voxels = np.zeros((8, 3, 3), np.uint8)
    voxels[1 : 1 + length, 1, 1] = value
    return Volume(voxels, affine)


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    for name, lengths in LENGTHS.items():
        for case, length in enumerate(lengths, start=1):
            write_volume(tmp_path / name / f"p{case}.nii.gz", rod(length), dtype=np.uint8)
    return {name: tmp_path / name for name in LENGTHS}


def dsc(a: int, b: int) -> float:
    return 2 * min(a, b) / (a + b)


def test_three_raters_by_hand(folders: dict[str, Path]) -> None:
    """Rods of lengths a and b: DSC 2 min / (a + b), R1 in p1: (1 + 4/6) / 2; p2: (8/10 + 1) / 2."""
    found = compare_raters([folders[name] for name in ("R1", "R2", "R3")])
    values = {(one.rater, one.case): one.value for one in found.scores if one.metric == "dice"}
    assert values == pytest.approx(
        {
            ("R1", "p1"): (1 + 2 / 3) / 2,
            ("R1", "p2"): (0.8 + 1) / 2,
            ("R2", "p1"): (1 + 2 / 3) / 2,
            ("R2", "p2"): 0.8,
            ("R3", "p1"): 2 / 3,
            ("R3", "p2"): (1 + 0.8) / 2,
        }
    )
    assert (found.raters, found.algorithm, found.cases) == (("R1", "R2", "R3"), None, ("p1", "p2"))
    column = found.columns["raters", "contour", "dice"]["R1"]
    a, b = 5 / 6, 0.9
    assert column.mean == pytest.approx((a + b) / 2)
    assert column.sd == pytest.approx((b - a) / math.sqrt(2))  # of a sample of two
    assert variation(column) == pytest.approx(math.sqrt(2) * (b - a) / (a + b))


def test_hd95_by_hand(folders: dict[str, Path]) -> None:
    """Rods of 4 and 2 voxels: distances of the longer one 0 0 2 4 mm, their 95th percentile 2 + 0.85 * 2 mm; R1 = R2 in p1."""
    found = compare_raters([folders[name] for name in ("R1", "R2", "R3")])
    values = {(one.rater, one.case): one.value for one in found.scores if one.metric == "hausdorff95_mm"}
    assert values["R1", "p1"] == pytest.approx((0 + 3.7) / 2)
    assert values["R3", "p1"] == pytest.approx(3.7)


def test_the_algorithm_among_the_references_or_not(folders: dict[str, Path]) -> None:
    found = compare_raters([folders[name] for name in ("R1", "R2", "R3")], folders["network"])
    values = {(one.rater, one.references): one.value for one in found.scores if one.metric == "dice" and one.case == "p1"}
    own = (2 * dsc(3, 4) + dsc(3, 2)) / 3
    assert values["network", "raters"] == values["network", "raters and algorithm"] == pytest.approx(own)
    assert values["R3", "raters"] == pytest.approx(dsc(2, 4))
    assert values["R3", "raters and algorithm"] == pytest.approx((2 * dsc(2, 4) + dsc(2, 3)) / 3)
    alone = compare_raters([folders[name] for name in ("R1", "R2", "R3")])
    same = [one for one in found.scores if one.references == "raters" and one.rater != "network"]
    assert sorted(map(str, same)) == sorted(map(str, alone.scores))


def test_the_command(folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "raters.csv"
    raters = [folders[name] for name in ("R1", "R2", "R3")]
    assert run_main("raters", *raters, "--algorithm", folders["network"], "-o", out) == 0
    printed = capsys.readouterr().out
    assert "Agreement with the other raters, 2 cases" in printed
    assert "Agreement with the other raters and algorithm, 2 cases" in printed
    assert "CV = SD / mean" in printed
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert len(rows) == 4 * 2 * 2 * 2  # raters, metrics, cases, choices of references
    table = json.loads(out.with_suffix(".json").read_text())
    (r1,) = (c for c in table["columns"] if (c["rater"], c["metric"], c["references"]) == ("R1", "dice", "raters"))
    assert r1["mean"] == pytest.approx((5 / 6 + 0.9) / 2)
    assert table["algorithm"] == "network"


def test_numbers_other_than_1_are_one_contour_unless_a_convention_is_named(folders: dict[str, Path]) -> None:
    write_volume(folders["R2"] / "p1.nii.gz", rod(4, value=7), dtype=np.uint8)
    found = compare_raters([folders["R1"], folders["R2"]])
    assert next(one.value for one in found.scores if one.metric == "dice" and one.case == "p1") == 1
    with pytest.raises(LabelError, match=r"^p1: .*R2/p1.nii.gz: label values outside chest: 7"):
        compare_raters([folders["R1"], folders["R2"]], labels="chest")
    with pytest.raises(LabelError, match="unknown label convention lung"):
        compare_raters([folders["R1"], folders["R2"]], labels="lung")
    write_volume(folders["R2"] / "p1.nii.gz", rod(4, value=2), dtype=np.uint8)
    found = compare_raters([folders["R1"], folders["R2"]], labels="abdomen")
    assert {one.region for one in found.scores} == {"LIVER", "RIGHT_KIDNEY", "LEFT_KIDNEY", "SPLEEN"}


def test_empty_contours_are_said(folders: dict[str, Path]) -> None:
    """R3 drew nothing in p1: Dice 0, HD95 infinite, and no SD; where nobody drew anything, no value."""
    write_volume(folders["R3"] / "p1.nii.gz", rod(0), dtype=np.uint8)
    found = compare_raters([folders[name] for name in ("R1", "R2", "R3")])
    values = {(one.rater, one.metric): one.value for one in found.scores if one.case == "p1"}
    assert values["R1", "dice"] == 0.5
    assert values["R1", "hausdorff95_mm"] == math.inf
    column = found.columns["raters", "contour", "hausdorff95_mm"]["R1"]
    assert (column.mean, column.sd, variation(column)) == (math.inf, None, None)
    assert any("3 values are infinite" in note for note in raters_notes(found))
    assert json.dumps(raters_json(found), allow_nan=False)
    for name in ("R1", "R2"):
        write_volume(folders[name] / "p1.nii.gz", rod(0), dtype=np.uint8)
    found = compare_raters([folders[name] for name in ("R1", "R2", "R3")])
    assert math.isnan(next(one.value for one in found.scores if one.case == "p1"))
    assert found.columns["raters", "contour", "dice"]["R1"].n == 1
    assert any("6 values are undefined" in note for note in raters_notes(found))
    assert "R1,raters,contour,dice,p1,\n" in raters_csv(found)


def test_a_cv_of_agreement_without_spread_or_mean() -> None:
    assert variation(Summary.of([0.0, 0.0])) is None
    assert variation(Summary.of([0.5])) is None
    assert variation(Summary.of([0.5, 0.5])) == 0


def test_what_can_be_got_wrong(folders: dict[str, Path], tmp_path: Path) -> None:
    raters = [folders[name] for name in ("R1", "R2", "R3")]
    with pytest.raises(RecipeError, match="raters are R1 "):
        compare_raters(raters[:1])
    with pytest.raises(RecipeError, match="raters are R1, R1"):
        compare_raters([raters[0], raters[0]])
    with pytest.raises(FileError, match="is not a folder"):
        compare_raters([*raters, tmp_path / "R4"])
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with pytest.raises(CaseError, match="holds no label map"):
        compare_raters([tmp_path / "a", tmp_path / "b"])
    moved = SPACING.copy()
    moved[1, 3] = 5
    write_volume(folders["R3"] / "p2.nii.gz", rod(6, affine=moved), dtype=np.uint8)
    with pytest.raises(GeometryError, match=r"^p2: .*R3/p2.nii.gz: R3 is shifted against R1"):
        compare_raters(raters)
    (folders["R3"] / "p2.nii.gz").unlink()
    with pytest.raises(CaseError, match=r"^p2: .*R3: has no label map here \(every rater needs the same cases\)"):
        compare_raters(raters)


def test_the_algorithm_may_have_more_cases(folders: dict[str, Path]) -> None:
    write_volume(folders["network"] / "p9.nii.gz", rod(3), dtype=np.uint8)
    assert compare_raters([folders["R1"], folders["R2"]], folders["network"]).cases == ("p1", "p2")
