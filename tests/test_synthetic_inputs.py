"""An image that a network made never passes for a real one, whoever reads it: its header tells, and each command says so."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest

from any_to_any import ALL, any_model, write_patients
from command_line import run_main
from modistill.data.case import Case, not_evidence
from modistill.data.folder import find_cases
from modistill.data.nifti import read_labels, read_volume, read_volumes, write_volume
from modistill.data.store import PreparedCohort
from modistill.data.volume import Volume
from modistill.errors import CaseError
from modistill.inference.completion import Fill, Substitute, Translated, header
from modistill.inference.model import Model
from modistill.inference.predictor import Predictor
from modistill.inference.translator import NOT_ENHANCEMENT, NOT_EVIDENCE, Translator
from patients import STUDENT, nearest_model
from tiny_cohort import write_folder

T1CE = "t1ce is synthetic: not evidence of enhancement"
TEACHER = ("t1ce", *STUDENT)


def mark(path: Path) -> Path:
    """The same image, as if a network had made it."""
    volume = read_volume(path)
    path.unlink()
    write_volume(path, replace(volume, synthetic=True), dtype=np.float32, description="SYNTHETIC by a test")
    return path


def told(capsys: pytest.CaptureFixture[str]) -> str:
    """What was printed while it worked, then the result."""
    out, err = capsys.readouterr()
    return " ".join(f"{err} {out}".split())


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> dict[str, Model]:
    """What run folders hold, by name."""
    known = {
        "utad": any_model(),
        "t1ce_to_t2": any_model("t1ce_to_t2", {"t2": 0.5}, ("t1ce",)),
        "teacher": nearest_model("teacher", TEACHER, normalisation=(0.0, 1000.0)),
    }
    monkeypatch.setattr("modistill.runs.load_model", lambda path: known[path.name])
    return known


@pytest.fixture
def patients(tmp_path: Path, models: dict[str, Model]) -> Path:
    """Two patients with all four sequences and a tumour; the t1ce of the second was translated from its flair."""
    root = write_patients(tmp_path / "in", {"a": ALL, "b": ALL}, labels=True)
    assert translate(root / "b", tmp_path / "made", "--to", "t1ce", "--from", "flair") == 0
    shutil.move(root / "b" / "b_t1ce.nii.gz", tmp_path / "real_t1ce.nii.gz")
    shutil.copy(tmp_path / "made" / "b" / "b_t1ce.nii.gz", root / "b")
    return root


def translate(patients: Path, output: Path, *more: object) -> int:
    return run_main("translate", "-i", patients, "-o", output, "-m", "utad", "--device", "cpu", *more)


def predict(patients: Path, output: Path, *more: object) -> int:
    return run_main(*("predict", "-i", patients, "-o", output, "-m", "teacher", "--device", "cpu", "--precision", "32"), *more)


def record(output: Path, name: str) -> dict:
    return json.loads((output / f"{name}.json").read_text())


def description(path: Path) -> str:
    return nibabel.load(path).header["descrip"].item().decode()


# --------------------------------------------------------------------------- reader and writer


def test_the_reader_knows_and_the_writer_keeps_it(patients: Path, tmp_path: Path) -> None:
    made, real = read_volume(patients / "b" / "b_t1ce.nii.gz"), read_volume(patients / "b" / "b_flair.nii.gz")
    assert (made.synthetic, real.synthetic) == (True, False)
    assert find_cases(patients).cases[1].read().synthetic == ("t1ce",)
    smoothed = made.with_voxels(made.voxels / 2)
    for said, kept in (("", "SYNTHETIC"), ("smoothed", "SYNTHETIC smoothed"), ("SYNTHETIC as it was", "SYNTHETIC as it was")):
        write_volume(tmp_path / "smoothed.nii", smoothed, dtype=np.float32, description=said)
        assert description(tmp_path / "smoothed.nii").strip() == kept
        assert read_volume(tmp_path / "smoothed.nii").synthetic
    write_volume(tmp_path / "real.nii", real, dtype=np.float32, description="not SYNTHETIC at all")
    assert not read_volume(tmp_path / "real.nii").synthetic


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_each_channel_of_either_format(tmp_path: Path, kind: type) -> None:
    image = kind(np.random.default_rng(0).random((5, 6, 7, 2), dtype=np.float32), np.eye(4))
    image.header["descrip"] = b"SYNTHETIC both"
    nibabel.save(image, tmp_path / "both.nii.gz")
    assert [volume.synthetic for volume in read_volumes(tmp_path / "both.nii.gz", [0, 1])] == [True, True]


def test_what_must_be_real_is_named_with_its_file(patients: Path) -> None:
    case = find_cases(patients).cases[1].read()
    with pytest.raises(CaseError) as refused:
        case.require_real("not for this")
    line = f"b: {patients / 'b' / 'b_t1ce.nii.gz'}: t1ce is synthetic: not for this (give the real image, or leave it out)"
    assert str(refused.value) == line
    case.require_real("not for this", ["flair"])
    case.without("t1ce").require_real("not for this")


# --------------------------------------------------------------------------- predict


def test_a_prediction_says_what_was_synthetic(patients: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert predict(patients, out, "--save-probabilities", "--uncertainty") == 0
    text = told(capsys)
    assert f"notice: b: {T1CE}" in text
    assert "1 case: teacher reads t1ce, flair, t1, t2 1 case: teacher reads synthetic t1ce, flair, t1, t2" in text
    assert text.endswith(f"{NOT_EVIDENCE} {NOT_ENHANCEMENT}")
    assert (record(out, "b")["synthetic_inputs"], record(out, "b")["notices"][0]) == (["t1ce"], T1CE)
    assert (record(out, "a")["synthetic_inputs"], record(out, "a")["notices"]) == ([], record(out, "b")["notices"][1:])
    assert [row["synthetic_inputs"] for row in record(out, "report")["rows"]] == [[], ["t1ce"]]
    for path in ("b.nii.gz", "probabilities/b/WT.nii.gz", "uncertainty/b/WT.nii.gz"):
        assert description(out / path) == T1CE
    for path in ("a.nii.gz", "probabilities/a/WT.nii.gz", "uncertainty/b/brain.nii.gz"):
        assert description(out / path) == ""
    read_labels(out / "b.nii.gz")


def test_the_grid_may_be_that_of_the_synthetic_image(patients: Path) -> None:
    """The first image stands for the grid; the label map on it is none the less a label map."""
    case = find_cases(patients).cases[1].read(["t1ce"])
    assert case.grid.synthetic
    found = Predictor([nearest_model("one", ("t1ce",))], device="cpu", uncertainty=True).predict(case)
    assert found.brain is not None
    assert not any(volume.synthetic for volume in (found.labels, found.brain, *found.uncertainty.values()))
    assert found.synthetic_inputs == ("t1ce",)


def test_what_is_not_read_is_not_spoken_of(patients: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict(patients, tmp_path / "out", "--only", "flair,t1,t2", "--complete-with", "zero") == 0
    assert "synthetic" not in told(capsys)
    assert record(tmp_path / "out", "b")["synthetic_inputs"] == []


def test_continue_says_it_again(patients: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert predict(patients, out) == 0
    told(capsys)
    assert predict(patients, out, "--continue") == 0
    assert told(capsys).endswith(f"2 skipped -> {out} (report.json names every case) {NOT_EVIDENCE} {NOT_ENHANCEMENT}")
    assert [row["synthetic_inputs"] for row in record(out, "report")["rows"]] == [[], ["t1ce"]]
    before = record(out, "b")
    del before["synthetic_inputs"]  # as a version wrote it that did not look
    (out / "b.json").write_text(json.dumps(before))
    assert predict(patients, out, "--continue") == 0
    assert [row["status"] for row in record(out, "report")["rows"]] == ["skipped", "done"]
    shutil.copy(tmp_path / "real_t1ce.nii.gz", patients / "b" / "b_t1ce.nii.gz")
    assert predict(patients, out, "--continue") == 0
    assert (record(out, "b")["synthetic_inputs"], description(out / "b.nii.gz")) == ([], "")


def test_in_memory_too(patients: Path, models: dict[str, Model]) -> None:
    """What a translator gives back, without any file, handed on to a predictor."""
    real = find_cases(patients).cases[0].read(STUDENT)
    made = Translator(models["utad"], "t1ce", device="cpu").translate(real)
    assert (made.image.synthetic, made.synthetic_inputs, made.read) == (True, (), "flair")
    found = Predictor([models["teacher"]], device="cpu").predict(Case("p", {**real.images, "t1ce": made.image}))
    assert (found.notices[0], found.synthetic_inputs) == (T1CE, ("t1ce",))


def test_one_header_for_inputs_and_substitutes() -> None:
    utad = [Substitute("t1ce", "utad", ("flair",), "0123")]
    assert header((), ["t2"]) == "t2 is synthetic: not evidence" == not_evidence(["t2"])
    assert header(utad, ["t2"]) == "t2, t1ce are synthetic: not evidence of enhancement"
    assert header([Substitute("t1", "mean", ("flair", "t2"))], ["t1ce"]) == T1CE
    zero = "t2 is synthetic: not evidence; t1 is missing: its channel is 0 everywhere"
    assert header([Substitute("t1", "zero")], ["t2"]) == zero
    assert len(zero) <= 79


# --------------------------------------------------------------------------- nothing is made from what is synthetic


def test_a_synthetic_input_completes_nothing(patients: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only the case in question fails; and with t1ce held back, its translation is not missed."""
    for case in "ab":
        (patients / case / f"{case}_t2.nii.gz").unlink()
    path = patients / "b" / "b_t1ce.nii.gz"
    refused = f"error: b: {path}: t1ce is synthetic: nothing is made from it (give the real image, or leave it out)"
    for how in ("t1ce_to_t2", "mean"):
        assert predict(patients, tmp_path / how, "--complete-with", how) == 3
        assert refused in told(capsys)
        assert not (tmp_path / how / "b.json").exists()
        assert record(tmp_path / how, "a")["substitutes"][0]["by"] == how
    assert predict(patients, tmp_path / "zero", "--complete-with", "zero") == 0
    assert predict(patients, tmp_path / "utad", "--complete-with", "utad") == 0  # from flair, which is real
    warning = f"{T1CE}; t2 is synthetic (by utad from flair): not evidence"
    assert record(tmp_path / "utad", "b")["notices"][:2] == warning.split("; ")
    assert description(tmp_path / "utad" / "b.nii.gz") == "t1ce, t2 are synthetic: not evidence of enhancement"


def test_a_case_in_memory_completes_nothing_either(models: dict[str, Model]) -> None:
    voxels = np.random.default_rng(0).uniform(1, 900, (8, 8, 8)).astype(np.float32)
    case = Case("p", {"t1ce": Volume(voxels, synthetic=True), "flair": Volume(voxels), "t1": Volume(voxels)})
    teacher = models["teacher"]
    for completion in (Translated([models["t1ce_to_t2"]], [teacher], device="cpu"), Fill("mean", [teacher])):
        with pytest.raises(CaseError, match=r"^p: t1ce is synthetic: nothing is made from it"):
            Predictor([teacher], device="cpu", completion=completion).predict(case)


# --------------------------------------------------------------------------- translate


def test_a_translation_says_that_its_source_was_one(patients: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert translate(patients, out, "--to", "t2", "--from", "t1ce") == 0
    text = told(capsys)
    assert f"notice: b: {T1CE}" in text
    assert "1 case: utad translates t1ce into t2 1 case: utad translates synthetic t1ce into t2" in text
    assert text.endswith(f"{NOT_EVIDENCE} {NOT_ENHANCEMENT}")
    made = record(out / "b", "b_t2")
    assert (made["available"], made["synthetic_inputs"], made["notices"][0]) == (["t1ce"], ["t1ce"], T1CE)
    assert made["warning"] == f"{NOT_EVIDENCE} {NOT_ENHANCEMENT}"
    written = description(out / "b" / "b_t2.nii.gz")
    assert written == "SYNTHETIC t2 from synthetic t1ce, not evidence; modistill utad 01234567"
    assert (record(out / "a", "a_t2")["synthetic_inputs"], record(out / "a", "a_t2")["warning"]) == ([], NOT_EVIDENCE)
    assert description(out / "a" / "a_t2.nii.gz") == "SYNTHETIC t2 from t1ce, not evidence; modistill utad 01234567"
    assert translate(patients, out, "--to", "t2", "--from", "t1ce", "--continue") == 0
    assert told(capsys).endswith(NOT_ENHANCEMENT)
    assert [row["synthetic_inputs"] for row in record(out, "report")["rows"]] == [[], ["t1ce"]]


def test_a_source_beside_it_is_no_matter(patients: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert translate(patients, tmp_path / "out", "--to", "t2") == 0
    assert NOT_ENHANCEMENT not in told(capsys)
    assert record(tmp_path / "out" / "b", "b_t2")["synthetic_inputs"] == []


# --------------------------------------------------------------------------- prepare


@pytest.mark.parametrize("normalisation", ["zscore", "landmarks"])
def test_no_training_on_it(tmp_path: Path, capsys: pytest.CaptureFixture[str], normalisation: str) -> None:
    """A privileged sequence or another: an error of its case; the others go on."""
    raw = write_folder(tmp_path / "raw", cases=4)
    marked = [mark(raw / case / f"{case}_{name}.nii.gz") for case, name in (("BraTS21_001", "t1ce"), ("BraTS21_003", "t2"))]

    def prepare(output: str, *more: object) -> int:
        how = ("--available", "t1", "--fractions", 1, 0, 0, "--normalisation", normalisation, "--workers", 1)
        return run_main("prepare", raw, "-o", tmp_path / output, *how, *more)

    assert prepare("all") == 3
    lines = [line for line in capsys.readouterr().out.replace("\n", " ").split("error: ")[1:]]
    assert len(lines) == 2
    for line, path, name in zip(lines, marked, ("t1ce", "t2"), strict=True):
        said = f"{path.parent.name}: {path}: {name} is synthetic: nothing to learn from (give the real image, or leave it out)"
        assert said.replace(" ", "") in line.replace(" ", "")  # wrapped wherever the terminal ends
    assert PreparedCohort(tmp_path / "all").ids("train") == ("BraTS21_000", "BraTS21_002")
    assert prepare("some", "--modalities", "t1,flair") == 0
    for path in raw.glob("*/*_t1.nii.gz"):
        mark(path)
    assert prepare("none") == 2
    assert "none of 4 cases could be prepared: BraTS21_000: " in told(capsys)


# --------------------------------------------------------------------------- evaluate-translations


def test_it_is_no_reference(patients: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, scores = tmp_path / "out", tmp_path / "scores.csv"
    assert translate(patients, out, "--to", "t1ce") == 0
    told(capsys)
    assert run_main("evaluate-translations", out, "-r", patients, "-o", scores, "--body-above", 0) == 3
    path = patients / "b" / "b_t1ce.nii.gz"
    assert f"b: {path}: t1ce is synthetic: no reference (give the real image, or leave it out)" in told(capsys)
    assert {line.split(",")[1] for line in scores.read_text().splitlines()[1:]} == {"a"}
    scores.unlink()
    assert run_main("evaluate-translations", out, "-r", out, "-o", scores, "--body-above", 0) == 2
    assert "none of 2 translations can be scored; the first: a: " in told(capsys)
    assert not scores.exists()
