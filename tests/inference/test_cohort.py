"""Many patients: a bad one costs nobody else anything, and what is called done is complete."""

from __future__ import annotations

import json
import os
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from modistill.data.folder import Fault, find_cases
from modistill.data.nifti import read_labels, read_volume
from modistill.errors import FileError
from modistill.files import run_lock
from modistill.inference import outputs
from modistill.inference.cohort import exit_code, predict_cohort
from modistill.inference.outputs import OutputFolder
from modistill.inference.predictor import Predictor
from patients import ALL, expected_classes, intensities, nearest_model, write_patient


@pytest.fixture
def patients(tmp_path):
    root = tmp_path / "in"
    for index in range(3):
        write_patient(root, f"p{index}", seed=index, without=("t1ce",))
    return root


def predict(root, out, if_not_empty="refuse", *, models=None, probabilities=False, **how):
    predictor = Predictor(models or [nearest_model()], device="cpu", precision="32", **how)
    cohort = find_cases(root)
    with OutputFolder(out, if_not_empty, probabilities=probabilities).opened() as folder:
        return list(predict_cohort(predictor, cohort.cases, folder, faults=cohort.faults))


def statuses(rows):
    return {row.case: row.status for row in rows}


def content(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*.nii.gz")}


def test_every_case_gets_a_label_map_and_a_record(patients, tmp_path):
    rows = predict(patients, tmp_path / "out")
    assert statuses(rows) == {"p0": "done", "p1": "done", "p2": "done"}
    assert exit_code(rows) == 0
    labels = read_labels(tmp_path / "out" / "p1.nii.gz")
    assert np.array_equal(labels.voxels, np.array([0, 1, 2, 4])[expected_classes(intensities(1)["flair"])])
    record = json.loads((tmp_path / "out" / "p1.json").read_text())
    assert record["run"] == "had_net"
    assert record["available"] == ["flair", "t1", "t2"]
    assert record["convention"] == "brats2021"
    assert record["labels"] == {"NCR": 1, "ED": 2, "ET": 4}
    assert record["reason"] == "had_net reads flair, t1, t2"
    assert record["made_with"]["preprocessing"]["normalisation"] == "zscore"
    assert set(record["inputs"]) == {"flair", "t1", "t2"}
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["cases"], report["done"], report["failed"], report["not_yet"]) == (3, 3, 0, 0)
    assert sorted(p.name for p in (tmp_path / "out").iterdir() if not p.name.startswith(".")) == sorted(
        ["p0.json", "p0.nii.gz", "p1.json", "p1.nii.gz", "p2.json", "p2.nii.gz", "report.json"]
    )


def test_a_bad_case_among_good_ones(patients, tmp_path):
    """A cut file, a sequence that is missing, one there twice, a pipe: four failures, and the others as if alone."""
    alone = tmp_path / "alone"
    predict(patients / "p0", alone)
    for index, name in enumerate(("cut", "lacking", "twice", "pipe")):
        write_patient(patients, name, seed=10 + index)
    cut = patients / "cut" / "cut_t2.nii.gz"
    cut.write_bytes(cut.read_bytes()[:-30])
    (patients / "lacking" / "lacking_flair.nii.gz").unlink()
    (patients / "twice" / "twice_T2w.nii.gz").write_bytes((patients / "twice" / "twice_t2.nii.gz").read_bytes())
    (patients / "pipe" / "pipe_t1.nii.gz").unlink()
    os.mkfifo(patients / "pipe" / "pipe_t1.nii.gz")

    rows = predict(patients, tmp_path / "out")
    assert {case for case, status in statuses(rows).items() if status == "failed"} == {"cut", "lacking", "twice", "pipe"}
    assert exit_code(rows) == 3
    assert content(tmp_path / "out").keys() == {"p0.nii.gz", "p1.nii.gz", "p2.nii.gz"}
    assert content(tmp_path / "out")["p0.nii.gz"] == content(alone)["p0.nii.gz"]
    failed = {row.case: str(row) for row in rows if row.status == "failed"}
    assert "cut_t2.nii.gz" in failed["cut"]
    assert "truncated" in failed["cut"]
    assert failed["lacking"].startswith("lacking: has t1, t1ce, t2, lacks flair")
    assert "t2 is there twice" in failed["twice"]
    assert "a pipe, socket or device" in failed["pipe"]
    for row in json.loads((tmp_path / "out" / "report.json").read_text())["rows"]:
        assert row["status"] != "failed" or (row["reason"] and row["remedy"])


def test_nothing_done_is_exit_code_2(patients, tmp_path):
    rows = predict(patients, tmp_path / "out", models=[nearest_model("teacher", ALL)])
    assert exit_code(rows) == 2
    assert content(tmp_path / "out") == {}


def test_a_bug_in_one_case_is_kept_as_evidence(patients, tmp_path, monkeypatch):
    original = Predictor.predict

    def predict_or_stumble(self, case, **how):
        if case.id == "p1":
            raise IndexError("list index out of range")
        return original(self, case, **how)

    monkeypatch.setattr(Predictor, "predict", predict_or_stumble)
    rows = predict(patients, tmp_path / "out")
    assert statuses(rows) == {"p0": "done", "p1": "failed", "p2": "done"}
    assert "unforeseen IndexError" in str(rows[1])
    assert "predict_or_stumble" in rows[1].traceback


# --------------------------------------------------------------------------- going on


def test_continue_leaves_what_is_done_and_still_matches(patients, tmp_path):
    out = tmp_path / "out"
    predict(patients, out, probabilities=True)
    before = content(out)
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.nii.gz")}
    assert set(statuses(predict(patients, out, "continue", probabilities=True)).values()) == {"skipped"}
    assert content(out) == before
    assert times == {path: path.stat().st_mtime_ns for path in out.rglob("*.nii.gz")}


def spoil(out, patients, how):
    if how == "label map cut":
        (out / "p1.nii.gz").write_bytes((out / "p1.nii.gz").read_bytes()[:-10])
    elif how == "label map gone":
        (out / "p1.nii.gz").unlink()
    elif how == "record gone":
        (out / "p1.json").unlink()
    elif how == "record damaged":
        (out / "p1.json").write_text('{"made_with": ')
    elif how == "record foreign":
        (out / "p1.json").write_text("[1, 2]")
    elif how == "input changed":
        write_patient(patients, "p1", seed=77, without=("t1ce",))


@pytest.mark.parametrize(
    "how", ["label map cut", "label map gone", "record gone", "record damaged", "record foreign", "input changed"]
)
def test_continue_does_again_what_does_not_match(patients, tmp_path, how):
    out = tmp_path / "out"
    predict(patients, out)
    before = content(out)
    spoil(out, patients, how)
    assert statuses(predict(patients, out, "continue")) == {"p0": "skipped", "p1": "done", "p2": "skipped"}
    assert (content(out) == before) == (how != "input changed")
    assert set(statuses(predict(patients, out, "continue")).values()) == {"skipped"}


@pytest.mark.parametrize(
    "how",
    [
        {"models": [nearest_model(digest="1")]},
        {"models": [nearest_model(normalisation="hadnet")]},
        {"mirror": (0,)},
        {"overlap": 0.25},
        {"labels": "brats2023"},
        {"probabilities": True},
    ],
)
def test_continue_with_other_settings_does_all_again(patients, tmp_path, how):
    predict(patients, tmp_path / "out")
    assert set(statuses(predict(patients, tmp_path / "out", "continue", **how)).values()) == {"done"}


def test_killed_between_label_map_and_record(patients, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def kill(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(outputs, "write_json", kill)
        with pytest.raises(Killed):
            predict(patients, tmp_path / "out")
    assert content(tmp_path / "out").keys() == {"p0.nii.gz"}
    (tmp_path / "out" / ".p1.nii.gz.x7.part.nii.gz").write_bytes(b"half a file")
    assert set(statuses(predict(patients, tmp_path / "out", "continue")).values()) == {"done"}
    assert {name for name in os.listdir(tmp_path / "out") if name.startswith(".")} == {".lock"}


# --------------------------------------------------------------------------- the folder


def test_a_folder_that_is_not_empty_is_refused(patients, tmp_path):
    predict(patients, tmp_path / "out")
    with pytest.raises(FileError, match=r"is not empty \(--continue, --overwrite"):
        predict(patients, tmp_path / "out")
    assert set(statuses(predict(patients, tmp_path / "out", "overwrite")).values()) == {"done"}


def test_a_folder_that_cannot_be_written_or_is_in_use(patients, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="cannot be written"):
        predict(patients, tmp_path / "file" / "out")
    with run_lock(tmp_path / "out"), pytest.raises(FileError, match="in use by another process"):
        predict(patients, tmp_path / "out")


def test_what_fails_now_leaves_no_older_result_under_its_name(patients, tmp_path):
    out = tmp_path / "out"
    predict(patients, out, probabilities=True)
    (patients / "p1" / "p1_t2.nii.gz").write_bytes(b"")
    write_patient(patients, "p2", seed=9)
    (patients / "p2" / "p2_T2w.nii.gz").write_bytes((patients / "p2" / "p2_t2.nii.gz").read_bytes())
    assert statuses(predict(patients, out, "overwrite")) == {"p0": "done", "p1": "failed", "p2": "failed"}
    assert {name for name in os.listdir(out) if name.startswith(("p1", "p2"))} == set()


def test_probabilities_lie_apart_and_belong_to_one_case(tmp_path):
    write_patient(tmp_path / "in", "p1")
    write_patient(tmp_path / "in", "p1_a", seed=1)
    out = tmp_path / "out"
    predict(tmp_path / "in", out, probabilities=True)
    written = {f"probabilities/{case}/{region}.nii.gz" for case in ("p1", "p1_a") for region in ("WT", "TC", "ET")}
    assert content(out).keys() == {"p1.nii.gz", "p1_a.nii.gz"} | written
    whole = read_volume(out / "probabilities" / "p1" / "WT.nii.gz").voxels
    labels = read_labels(out / "p1.nii.gz").voxels
    assert whole.min() >= 0
    assert whole.max() <= 1
    assert (whole[labels == 0] <= 0.75).all()
    assert (whole[labels != 0] >= 0.5).all()
    OutputFolder(out).clear("p1")
    assert content(out).keys() == {"p1_a.nii.gz"} | {name for name in written if "p1_a" in name}


def test_a_case_named_as_the_report(tmp_path):
    write_patient(tmp_path / "in", "report")
    write_patient(tmp_path / "in", "p1")
    assert statuses(predict(tmp_path / "in", tmp_path / "out")) == {"p1": "done", "report": "failed"}


def test_faults_of_the_cohort_stand_in_the_report(patients, tmp_path):
    predictor = Predictor([nearest_model()], device="cpu", precision="32")
    faults = [Fault("p9", "x", "duplicate", "rename"), Fault("p0", "adc", "not used", "declare it", severity="warning")]
    with OutputFolder(tmp_path / "out").opened() as folder:
        rows = list(predict_cohort(predictor, find_cases(patients).cases, folder, faults=faults))
    assert statuses(rows)["p9"] == "failed"
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["faults"] == ["p0: adc: not used (declare it)"]
    assert report["cases"] == 4


def test_a_real_patient_without_the_post_contrast_file(tmp_path):
    """Nothing changes when it is gone, and the label map lies where the images lie."""
    patient = Path(__file__).parents[3] / "shared" / "data" / "brats2021" / "BraTS2021_01657"
    if not patient.is_dir():
        pytest.skip(f"real patients are not at {patient}")
    lacking = tmp_path / "in" / patient.name
    lacking.mkdir(parents=True)
    for path in patient.glob("*.nii.gz"):
        if "t1ce" not in path.name:
            (lacking / path.name).symlink_to(path)
    predict(patient, tmp_path / "whole")
    rows = predict(lacking.parent, tmp_path / "out")
    assert exit_code(rows) == 0
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    written = nibabel.load(tmp_path / "out" / f"{patient.name}.nii.gz")
    source = nibabel.load(patient / f"{patient.name}_flair.nii.gz")
    assert written.shape == source.shape
    np.testing.assert_allclose(written.affine, source.affine, atol=1e-5)
    assert set(np.unique(np.asarray(written.dataobj))) <= {0, 1, 2, 4}


def test_nothing_is_written_for_an_answer_that_is_not_finite(patients, tmp_path):
    model = nearest_model()
    with torch.no_grad():
        model.method.network.bias[1] = float("inf")
    rows = predict(patients, tmp_path / "out", models=[model])
    assert exit_code(rows) == 2
    assert all("not finite" in row.reason for row in rows)
    assert content(tmp_path / "out") == {}
