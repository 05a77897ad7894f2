import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from command_line import run_main
from modistill.data.nifti import write_volume
from modistill.data.volume import Volume
from modistill.errors import FileError, RecipeError, ScoreError
from modistill.evaluation.comparison import compare
from modistill.evaluation.folders import Evaluation, evaluate_folders
from modistill.evaluation.protocol import METRICS, Protocol
from modistill.evaluation.scores import Score, Scores, read_scores
from modistill.evaluation.subsets import evaluate_subsets
from modistill.evaluation.tables import summary_table, uncertainty_table
from modistill.evaluation.uncertainty import WORST, written_scale
from modistill.metrics.calibration import reliability
from modistill.metrics.uncertainty import qu_brats, region_uncertainty

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


def save_maps(predictions: Path, case: str, made: Mapping[str, NDArray[Any]]) -> None:
    for region, voxels in made.items():
        save(predictions / "uncertainty" / case / f"{region}.nii.gz", voxels.astype(np.float32))


def on_scale(folders: tuple[Path, Path], scale: str) -> Evaluation:
    return evaluate_folders(*folders, protocol=Protocol(uncertainty=scale))  # type: ignore[arg-type]


def by_hand(region: str, uncertainty: NDArray[Any]) -> dict[str, float]:
    """What a case scores whose map, in its final scale, is this."""
    predicted, true = (np.isin(labels(shift=shift), VALUES[region]) for shift in (1, 0))
    curves = qu_brats(predicted, true, uncertainty, brain())
    at = {f"qu_{name}_{t}": getattr(curves.filtered(t), name) for t in (75, 50, 25) for name in ("dice", "ftp", "ftn")}
    areas = {"qu_dice_auc": curves.dice_auc, "qu_ftp_auc": curves.ftp_auc, "qu_ftn_auc": curves.ftn_auc}
    return {"qu_score": curves.score, **areas, **at}


def of_maps(row: Mapping[str, float]) -> dict[str, float]:
    """The metrics that depend on the scale."""
    return {name: value for name, value in row.items() if name.startswith("qu_") and name != "qu_trivial"}


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
    shown = [row for row in summary_table(found.scores).rows if row[1] == "calibration error"]
    assert [(row[0], row[5]) for row in shown] == [("WT", "1")]


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
        counts_the_worst(values(found, "p2", region))
    assert {row.status for row in found.scores.rows if row.case != "p2"} == {"measured"}


def counts_the_worst(row: Mapping[str, float]) -> None:
    worst = {name: value for name, value in WORST.items() if name not in ("ece", "uncertainty_mean")}
    assert {name: row[name] for name in worst} == worst
    assert math.isnan(row["uncertainty_mean"])
    assert row["dice"] == 0


def test_an_absent_prediction_counts_the_worst_of_every_metric_too(folders: tuple[Path, Path]) -> None:
    predictions, references = folders
    (predictions / "p2.nii.gz").unlink()
    row = values(evaluate_folders(predictions, references), "p2", "ET")
    counts_the_worst(row)
    assert "ece" not in row  # the run has no probabilities


def test_the_worst_is_the_worst() -> None:
    """No map and no prediction score below it: Dice 0, all that was right left out; a map of zeros cannot fall below 2/3."""
    assert set(WORST) == {name for name, metric in METRICS.items() if metric.rests_on in ("uncertainty", "probabilities")}
    for name, value in WORST.items():
        if METRICS[name].better is None:
            assert math.isnan(value)
            continue
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
    assert written_scale(predictions) == ""
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


def of_cases(available: str = "t1", region: str = "WT", **metrics: Mapping[str, float]) -> list[Score]:
    return [Score("a", case, available, region, name, value) for name, of in metrics.items() for case, value in of.items()]


def test_what_uncertainty_is_worth_by_hand() -> None:
    """Risks 0.1, 0.8, 0.3; the surest first: 0.3, (0.3 + 0.1) / 2, 1.2 / 3, in the mean 0.3; best: 0.1, 0.2, 0.4."""
    dice = {"p1": 0.9, "p2": 0.2, "p3": 0.7}
    wrong, right = {"p1": 20.0, "p2": 30.0, "p3": 10.0}, {"p1": 1.0, "p2": 50.0, "p3": 2.0}
    qu, zeros = {"p1": 0.9, "p2": 0.5, "p3": 0.4}, {"p1": 0.8, "p2": 0.7, "p3": 0.9}
    rows = of_cases(dice=dice, qu_score=qu, qu_trivial=zeros, uncertainty_mean=wrong)
    rows += of_cases("t1+t2", dice=dice, qu_score=qu, qu_trivial=zeros, uncertainty_mean=right)
    table = uncertainty_table(Scores(tuple(rows), Protocol()))
    assert table is not None
    assert table.header == ("read", "region", "QU-BraTS", "QU-BraTS of zeros", "AURC", "best", "random", "n")
    assert table.rows == (
        ("t1", "WT", "0.600", "0.800", "0.300", "0.233", "0.400", "3"),
        ("t1+t2", "WT", "0.600", "0.800", "0.233", "0.233", "0.400", "3"),
    )
    calibrated = of_cases("t1+t2", ece={"p1": 0.1, "p2": 0.2, "p3": 0.6})
    table = uncertainty_table(Scores((*rows, *calibrated), Protocol()))
    assert table is not None
    assert table.header[2:6] == ("QU-BraTS", "QU-BraTS of zeros", "ECE", "AURC")
    assert [row[4] for row in table.rows] == ["-", "0.300"]


def test_the_ranking_leaves_out_what_has_no_number() -> None:
    """p2 was not segmented; p3 has no Dice. The mean score is over all three."""
    dice = {"p1": 0.5, "p2": 0.25, "p3": math.nan}
    some = of_cases(
        dice=dice, qu_score={"p1": 0.3, "p2": 0.0, "p3": 0.9}, uncertainty_mean={"p1": 1.0, "p2": math.nan, "p3": 3.0}
    )
    none = of_cases(region="ET", dice=dice, uncertainty_mean={"p3": 3.0})
    table = uncertainty_table(Scores((*some, *none), Protocol()))
    assert table is not None
    assert table.rows == (
        ("t1", "WT", "0.400", "-", "0.500", "0.500", "0.500", "1"),
        ("t1", "ET", "-", "-", "-", "-", "-", "0"),
    )
    assert uncertainty_table(Scores(tuple(of_cases(dice={"p1": 0.5})), Protocol())) is None


# --------------------------------------------------------------------------- the scale


def ranges_differ(folders: tuple[Path, Path]) -> dict[str, dict[str, NDArray[np.float32]]]:
    """Maps of p1 run from 10 to 30, of p2 from 20 to 60, of p3 from 40 to 50 inside the brain; outside from 0 to 100."""
    inside = brain() > 0
    made = {}
    for case, (low, high) in {"p1": (10, 30), "p2": (20, 60), "p3": (40, 50)}.items():
        made[case] = maps(case)
        for voxels in made[case].values():
            shares = voxels[inside]
            voxels[inside] = low + (high - low) * (shares - shares.min()) / (shares.max() - shares.min())
            voxels[0, 0, :2] = 0, 100
        save_maps(folders[0], case, made[case])
    return made


def test_the_scale_of_the_cohort_by_hand(folders: tuple[Path, Path]) -> None:
    """10 counts 0 and 60 counts 100, in every case: 35 counts 50. What lies beyond, outside the brain, is cut off."""
    made = ranges_differ(folders)
    found = on_scale(folders, "cohort")
    assert found.faults == ()
    for case in CASES:
        for region in VALUES:
            scaled = ((made[case][region] - 10) * 2).clip(0, 100)
            row = values(found, case, region)
            assert of_maps(row) == pytest.approx(by_hand(region, scaled))
            assert row["uncertainty_mean"] == pytest.approx(made[case][region][brain() > 0].mean())  # as written
    two = evaluate_folders(*folders, protocol=Protocol(uncertainty="cohort"), cases=["p1", "p3"])  # from 10 to 50
    assert of_maps(values(two, "p3", "TC")) == pytest.approx(by_hand("TC", ((made["p3"]["TC"] - 10) * 2.5).clip(0, 100)))


def test_the_scale_of_the_case_is_that_of_its_own_entropies(folders: tuple[Path, Path]) -> None:
    """As if the entropies themselves had been divided by their largest; another case has no part in it."""
    probabilities = {case: maps(case)["WT"] / 500 for case in CASES}  # up to 0.2: the largest is 72 % of ln 2
    for case, q in probabilities.items():
        save_maps(folders[0], case, {"WT": region_uncertainty(q)})
    found = on_scale(folders, "case")
    for case, q in probabilities.items():
        row = values(found, case, "WT")
        assert of_maps(row) == pytest.approx(by_hand("WT", region_uncertainty(q, scale="case")))
        assert row["qu_score"] != pytest.approx(by_hand("WT", region_uncertainty(q))["qu_score"], abs=1e-3)
        assert row["uncertainty_mean"] == pytest.approx(region_uncertainty(q)[brain() > 0].mean())


@pytest.mark.parametrize("scale", ["theoretical", "case", "cohort"])
def test_a_factor_common_to_all_maps_matters_on_the_theoretical_scale_alone(folders: tuple[Path, Path], scale: str) -> None:
    numbers = []
    for factor in (1, 0.5):
        for case in CASES:
            save_maps(folders[0], case, {region: factor * voxels for region, voxels in maps(case).items()})
        numbers.append(on_scale(folders, scale))
    for case in CASES:
        for region in VALUES:
            whole, half = (values(found, case, region) for found in numbers)
            assert (of_maps(whole) == of_maps(half)) == (scale != "theoretical")
            assert half["uncertainty_mean"] == pytest.approx(whole["uncertainty_mean"] / 2)


def test_a_cohort_that_is_certain_of_everything_scores_as_zeros_do(folders: tuple[Path, Path]) -> None:
    for case in CASES:
        save_maps(folders[0], case, dict.fromkeys(VALUES, np.zeros(SHAPE)))
    for scale in ("case", "cohort"):
        row = values(on_scale(folders, scale), "p1", "WT")
        assert row["qu_score"] == pytest.approx(row["qu_trivial"])


@pytest.mark.parametrize("fault", ["cut", "out of range", "no brain", "no prediction"])
def test_maps_that_cannot_be_read_have_no_part_in_the_scale(folders: tuple[Path, Path], fault: str) -> None:
    """Without the ET of p2 the cohort runs from 10 to 50; the case is named and failed when it is scored."""
    made = ranges_differ(folders)
    place = folders[0] / "uncertainty" / "p2"
    if fault == "cut":
        content = (place / "ET.nii.gz").read_bytes()
        (place / "ET.nii.gz").write_bytes(content[:-30])
    elif fault == "out of range":
        save(place / "ET.nii.gz", np.full(SHAPE, 101, np.float32))
    elif fault == "no brain":
        (place / "brain.nii.gz").unlink()
    else:
        (folders[0] / "p2.nii.gz").unlink()
    found = on_scale(folders, "cohort")
    assert (found.scores.failed, [one.case for one in found.faults]) == (("p2",), ["p2"])
    counts_the_worst(values(found, "p2", "ET"))
    assert of_maps(values(found, "p1", "ET")) == pytest.approx(by_hand("ET", ((made["p1"]["ET"] - 10) * 2.5).clip(0, 100)))


def test_every_subset_is_a_cohort_of_its_own(tmp_path: Path) -> None:
    """The maps of the second folder are half those of the first: on scales of their own they score alike."""
    for case in CASES:
        save(tmp_path / "references" / f"{case}.nii.gz", labels())
        for subset, factor in (("t1", 1.0), ("t1+t2", 0.5)):
            folder = tmp_path / "out" / subset
            save(folder / f"{case}.nii.gz", labels(shift=1))
            save(folder / "uncertainty" / case / "brain.nii.gz", brain())
            save_maps(folder, case, {region: factor * voxels for region, voxels in maps(case).items()})
    for scale, alike in (("cohort", True), ("theoretical", False)):
        rules = Protocol(uncertainty=scale)  # type: ignore[arg-type]
        found = evaluate_subsets(tmp_path / "out", tmp_path / "references", protocol=rules, labels="brats2021").scores
        assert found.protocol == rules
        of = [[row.value for row in found.select(available=name).rows if row.metric == "qu_score"] for name in found.subsets]
        assert (of[0] == of[1]) == alike


def test_scales_are_protocols_of_their_own(folders: tuple[Path, Path]) -> None:
    scales = ("theoretical", "case", "cohort")
    found = {scale: on_scale(folders, scale).scores for scale in scales}
    assert [table.protocol.uncertainty for table in found.values()] == list(scales)
    assert len({table.protocol.digest for table in found.values()} | {Protocol().digest}) == 4
    assert len({table.protocol.describe()[-1] for table in found.values()}) == 3
    assert evaluate_folders(*folders).scores == found["theoretical"]
    for name in ("case", "cohort"):
        other = Scores(tuple(replace(row, run="other") for row in found[name].rows), found[name].protocol)
        with pytest.raises(ScoreError, match=f"uncertainty theoretical and {name}"):
            compare([found["theoretical"], other], "other", metrics=["qu_score"], resamples=100)


def test_a_scale_needs_maps_that_hold_the_entropy(folders: tuple[Path, Path]) -> None:
    predictions, _ = folders
    for case in CASES:  # as an older version wrote them on request
        record(predictions, case, "case")
    with pytest.raises(FileError, match=r"uncertainty was written on the case scale \(predict with this version\)"):
        evaluate_folders(*folders)
    for case in CASES:
        record(predictions, case, None)
    with pytest.raises(FileError, match=r"holds no uncertainty to score on the cohort scale \(predict --uncertainty\)"):
        on_scale(folders, "cohort")
    with pytest.raises(RecipeError, match=r"uncertainty is 'max' \(choose theoretical or case or cohort\)"):
        on_scale(folders, "max")


# --------------------------------------------------------------------------- failed cases


def test_a_case_that_failed_in_one_arm_is_paired_and_not_ranked(folders: tuple[Path, Path]) -> None:
    """It counts the worst calibration and has no mean uncertainty: no other case takes its place."""
    predictions, references = folders
    for case in CASES:
        for region, voxels in maps(case).items():
            save(predictions / "probabilities" / case / f"{region}.nii.gz", voxels / 100)
    whole = evaluate_folders(predictions, references, run_name="whole").scores
    (predictions / "p2.nii.gz").unlink()
    broken = evaluate_folders(predictions, references, run_name="broken").scores
    rows = {(row.case, row.metric): row for row in broken.rows if row.region == "WT"}
    assert (rows["p2", "ece"].value, rows["p2", "ece"].status) == (1.0, "failed")
    assert math.isnan(rows["p2", "uncertainty_mean"].value)
    kept = [row.value for row in whole.rows if (row.region, row.metric) == ("WT", "ece") and row.case != "p2"]
    shown = next(row for row in summary_table(broken).rows if row[:2] == ("WT", "calibration error"))
    assert shown[2] == f"{(1 + sum(kept)) / 3:.3f}"
    assert shown[5:7] == ("3", "1")
    table = uncertainty_table(broken)
    assert table is not None
    assert [(row[0], row[1], row[-1]) for row in table.rows] == [("t1+t2", region, "2") for region in VALUES]
    assert table.rows[0][4] == shown[2]  # p2 has no part in the ranking, but in the means
    found = compare([whole, broken], "whole", metrics=["ece", "uncertainty_mean", "qu_score"], resamples=100)
    lines = {(line.metric, line.region, line.arm): line for line in found.lines}
    ece = lines["ece", "WT", "broken"]
    assert ece.difference is not None
    own = next(row.value for row in whole.rows if (row.case, row.region, row.metric) == ("p2", "WT", "ece"))
    assert (ece.difference.n, ece.difference.n_dropped) == (3, 0)
    assert ece.difference.mean == pytest.approx((1 - own) / 3)
    mean = lines["uncertainty_mean", "WT", "broken"].difference
    assert mean is not None
    assert (mean.n, mean.n_dropped, mean.mean) == (2, 1, 0)


def test_the_command_shows_scores_scale_and_ranking(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "110")
    predictions, references = folders
    assert run_main("evaluate", predictions, "-r", references, "-w", 1) == 0
    shown = capsys.readouterr().out
    for words in (
        "QU-BraTS of zeros",
        "Worth of uncertainty: QU-BraTS, higher is better",
        "uncertainty: 100 is the largest entropy possible",
    ):
        assert words in shown
    scores = read_scores(predictions / "scores.csv")
    assert scores.protocol.uncertainty == "theoretical"
    assert {"QU-BraTS", "filtered TP at 75"} & {row[1] for row in summary_table(scores).rows} == {"QU-BraTS"}
