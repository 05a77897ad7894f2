import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from command_line import run_main
from modistill.data.nifti import write_volume
from modistill.data.volume import Volume
from modistill.errors import FileError, ScoreError
from modistill.evaluation.comparison import compare
from modistill.evaluation.folders import Evaluation, evaluate_folders
from modistill.evaluation.protocol import METRICS, Protocol
from modistill.evaluation.scores import Score, Scores, read_scores
from modistill.evaluation.tables import failure_table, summary_table
from modistill.evaluation.uncertainty import WORST, uncertainty_scale
from modistill.metrics.calibration import reliability
from modistill.metrics.uncertainty import qu_brats

SHAPE = (12, 11, 10)
CASES = ("p1", "p2", "p3")
VALUES = {"WT": (1, 2, 4), "TC": (1, 4), "ET": (4,)}


def labels(shift: int = 0) -> NDArray[np.uint8]:
    voxels = np.zeros(SHAPE, np.uint8)
    voxels[2 + shift : 9 + shift, 2:9, 2:8] = 2
    voxels[3 + shift : 7 + shift, 3:7, 3:7] = 1
    voxels[4 + shift : 6 + shift, 4:6, 4:6] = 4
    return voxels


def brain() -> NDArray[np.uint8]:
    voxels = np.zeros(SHAPE, np.uint8)
    voxels[1:11, 1:10, 1:9] = 1
    return voxels


def maps(case: str) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(int(case[1:]))
    return {region: rng.uniform(0, 100, SHAPE).astype(np.float32) for region in VALUES}


def save(path: Path, voxels: NDArray[Any]) -> None:
    write_volume(path, Volume(voxels, np.diag([1.0, 1.0, 2.0, 1.0])), dtype=voxels.dtype)


def record(folder: Path, case: str, scale: str | None) -> None:
    facts = {"run": "had/0", "available": ["t1", "t2"], "convention": "brats2021", "made_with": {"uncertainty": scale}}
    (folder / f"{case}.json").write_text(json.dumps(facts))


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Three cases with uncertainty as `modistill predict` writes it, and their references."""
    predictions, references = tmp_path / "predictions", tmp_path / "references"
    for case in CASES:
        save(references / f"{case}.nii.gz", labels())
        save(predictions / f"{case}.nii.gz", labels(shift=1))
        record(predictions, case, "theoretical")
        save(predictions / "uncertainty" / case / "brain.nii.gz", brain())
        for region, values in maps(case).items():
            save(predictions / "uncertainty" / case / f"{region}.nii.gz", values)
    (predictions / "report.json").write_text('{"cases": 3}')
    return predictions, references


def values(found: Evaluation, case: str, region: str) -> dict[str, float]:
    return {row.metric: row.value for row in found.scores.rows if (row.case, row.region) == (case, region)}


def test_rows_are_the_metrics_by_hand(folders: tuple[Path, Path]) -> None:
    found = evaluate_folders(*folders)
    assert found.faults == ()
    assert found.scores.protocol.uncertainty == "theoretical"
    for case in CASES:
        for region, numbers in VALUES.items():
            predicted, true = np.isin(labels(shift=1), numbers), np.isin(labels(), numbers)
            curves = qu_brats(predicted, true, maps(case)[region], brain())
            row = values(found, case, region)
            assert (row["qu_score"], row["qu_dice_auc"]) == (curves.score, curves.dice_auc)
            assert (row["qu_ftp_auc"], row["qu_ftn_auc"]) == (curves.ftp_auc, curves.ftn_auc)
            assert row["qu_trivial"] == pytest.approx((row["dice"] + 2) / 3)
            for threshold in (75, 50, 25):
                shown = [row[f"qu_{name}_{threshold}"] for name in ("dice", "ftp", "ftn")]
                assert shown == list(curves.filtered(threshold))
            assert row["uncertainty_mean"] == pytest.approx(maps(case)[region][brain() > 0].mean())
            assert "ece" not in row
    assert {row.available for row in found.scores.rows} == {"t1+t2"}
    assert {row.status for row in found.scores.rows} == {"measured"}


def test_the_calibration_error_needs_probabilities(folders: tuple[Path, Path]) -> None:
    predictions, references = folders
    shares = maps("p2")["WT"] / 100
    save(predictions / "probabilities" / "p2" / "WT.nii.gz", shares)
    found = evaluate_folders(predictions, references)
    rows = {(row.case, row.region): row.value for row in found.scores.rows if row.metric == "ece"}
    inside = brain() > 0
    assert rows == {("p2", "WT"): reliability(shares[inside], (labels() > 0)[inside]).ece}


def test_without_maps_there_are_no_such_rows(folders: tuple[Path, Path]) -> None:
    predictions, references = folders
    plain = predictions.rename(predictions.with_name("plain"))
    (plain / "uncertainty").rename(predictions.with_name("moved"))
    found = evaluate_folders(plain, references)
    assert found.scores.protocol == Protocol()
    assert {METRICS[row.metric].rests_on for row in found.scores.rows} == {"labels"}


@pytest.mark.parametrize("fault", ["no folder", "no brain", "out of range", "other grid", "empty brain", "cut"])
def test_a_case_whose_maps_cannot_be_used_counts_the_worst(folders: tuple[Path, Path], fault: str) -> None:
    predictions, references = folders
    maps_of = predictions / "uncertainty" / "p2"
    if fault == "no folder":
        maps_of.rename(predictions / "uncertainty" / "elsewhere")
    elif fault == "no brain":
        (maps_of / "brain.nii.gz").unlink()
    elif fault == "out of range":
        save(maps_of / "TC.nii.gz", np.full(SHAPE, 101, np.float32))
    elif fault == "other grid":
        save(maps_of / "TC.nii.gz", np.zeros(SHAPE[::-1], np.float32))
    elif fault == "empty brain":
        save(maps_of / "brain.nii.gz", np.zeros(SHAPE, np.uint8))
    else:
        path = maps_of / "ET.nii.gz"
        path.write_bytes(path.read_bytes()[:-30])
    found = evaluate_folders(predictions, references)
    assert found.scores.failed == ("p2",)
    assert [one.case for one in found.faults] == ["p2"]
    for region in VALUES:
        row = values(found, "p2", region)
        assert {name: row[name] for name in WORST} == dict(WORST)
        assert row["dice"] == 0
    assert {row.status for row in found.scores.rows if row.case != "p2"} == {"measured"}


def test_an_absent_prediction_counts_the_worst_of_every_metric_too(folders: tuple[Path, Path]) -> None:
    predictions, references = folders
    (predictions / "p2.nii.gz").unlink()
    row = values(evaluate_folders(predictions, references), "p2", "ET")
    assert {name: row[name] for name in WORST} == dict(WORST)


def test_the_worst_is_the_worst() -> None:
    """No map and no prediction score below it: Dice 0, all that was right left out; a map of zeros cannot fall below 2/3."""
    assert set(WORST) == {name for name, metric in METRICS.items() if metric.rests_on == "uncertainty"} - {"uncertainty_mean"}
    for name, value in WORST.items():
        assert value == (1.0 if METRICS[name].better == "lower" else pytest.approx(2 / 3) if name == "qu_trivial" else 0.0)


def test_mixed_scales_are_refused(folders: tuple[Path, Path]) -> None:
    predictions, references = folders
    for scale, words in (("case", r"theoretical \(p1.json\), case \(p2.json\)"), (None, r"theoretical .*, none \(p2.json\)")):
        record(predictions, "p2", scale)
        with pytest.raises(FileError, match=rf"uncertainty was written in several ways: {words} \(predict all cases alike\)"):
            evaluate_folders(predictions, references)


def test_what_an_older_prediction_left_is_no_uncertainty(folders: tuple[Path, Path]) -> None:
    """Predicted again without maps, the cases leave an empty folder `uncertainty`: nobody has failed."""
    predictions, references = folders
    for case in CASES:
        record(predictions, case, None)
    assert uncertainty_scale(predictions) == ""
    assert evaluate_folders(predictions, references).scores.failed == ()


@pytest.mark.parametrize("text", ["{", '{"made_with": []}', "[]"])
def test_a_damaged_record_costs_no_other_case_anything(folders: tuple[Path, Path], text: str) -> None:
    predictions, references = folders
    (predictions / "p2.json").write_text(text)
    found = evaluate_folders(predictions, references)
    assert found.scores.protocol.uncertainty == "theoretical"
    assert {row.case for row in found.scores.rows if row.status == "failed"} <= {"p2"}


def test_score_files_of_a_version_without_uncertainty_are_read() -> None:
    content = Protocol().to_json()
    del content["uncertainty"]
    assert Protocol.from_json(content) == Protocol()


def arm(run: str, protocol: Protocol, dice: Sequence[float], qu: Sequence[float]) -> Scores:
    pairs = [(case, metric, value) for metric, row in (("dice", dice), ("qu_score", qu)) for case, value in enumerate(row)]
    return Scores(tuple(Score(run, f"p{case}", "t1", "WT", metric, value) for case, metric, value in pairs), protocol)


def test_scales_matter_only_where_uncertainty_is_compared() -> None:
    dice, qu = [0.5, 0.6, 0.75], [0.9, 0.8, 0.75]
    tables = [arm("a", Protocol(uncertainty="theoretical"), dice, qu), arm("b", Protocol(uncertainty="case"), qu, dice)]
    found = compare(tables, "a", metrics=["dice"], resamples=100)
    assert not [rule for rule in found.protocol.describe() if "uncertainty" in rule]
    words = "protocols differ between a and b: uncertainty theoretical and case"
    for metrics in (["qu_score"], ["dice", "qu_score"]):
        with pytest.raises(ScoreError, match=words):
            compare(tables, "a", metrics=metrics, resamples=100)
    alike = [tables[0], arm("b", Protocol(uncertainty="theoretical"), qu, dice)]
    scale = "uncertainty: 100 is the largest entropy possible"
    assert scale in compare(alike, "a", metrics=["qu_score"], resamples=100).protocol.describe()


def ranked(dice: Mapping[str, float], uncertainty: Mapping[str, float], available: str = "t1") -> list[Score]:
    rows = [Score("a", case, available, "WT", "dice", value) for case, value in dice.items()]
    return rows + [Score("a", case, available, "WT", "uncertainty_mean", value) for case, value in uncertainty.items()]


def test_failure_ranking_by_hand() -> None:
    """Risks 0.1, 0.8, 0.3; the surest first: 0.3, (0.3 + 0.1) / 2, 1.2 / 3, in the mean 0.3; best: 0.1, 0.2, 0.4."""
    dice = {"p1": 0.9, "p2": 0.2, "p3": 0.7}
    right = {"p1": 1.0, "p2": 50.0, "p3": 2.0}
    rows = ranked(dice, {"p1": 20.0, "p2": 30.0, "p3": 10.0}) + ranked(dice, right, "t1+t2")
    table = failure_table(Scores(tuple(rows), Protocol()))
    assert table is not None
    assert table.header == ("read", "region", "AURC", "best", "random", "n")
    assert table.rows == (("t1", "WT", "0.300", "0.233", "0.400", "3"), ("t1+t2", "WT", "0.233", "0.233", "0.400", "3"))


def test_failure_ranking_leaves_out_what_has_no_number() -> None:
    some = ranked({"p1": 0.5, "p2": 0.25, "p3": math.nan}, {"p1": 1.0, "p3": 3.0})
    table = failure_table(Scores(tuple(some), Protocol()))
    assert table is not None
    assert table.rows == (("t1", "WT", "0.500", "0.500", "0.500", "1"),)
    assert failure_table(Scores(tuple(ranked({"p1": 0.5}, {})), Protocol())) is None


def test_the_command_shows_scores_scale_and_ranking(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "110")
    predictions, references = folders
    assert run_main("evaluate", predictions, "-r", references, "-w", 1) == 0
    shown = capsys.readouterr().out
    for words in (
        "QU-BraTS of zeros",
        "Failure ranking, lower is better",
        "uncertainty: 100 is the largest entropy possible",
    ):
        assert words in shown
    scores = read_scores(predictions / "scores.csv")
    assert scores.protocol.uncertainty == "theoretical"
    assert {"QU-BraTS", "filtered TP at 75"} & {row[1] for row in summary_table(scores).rows} == {"QU-BraTS"}
