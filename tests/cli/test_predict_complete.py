"""`predict --complete-with` and `--one-missing` as a user meets them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from command_line import run_main
from modistill.data.nifti import read_volume, write_volume
from modistill.data.preprocessing import Preprocessing
from modistill.data.volume import Volume
from modistill.evaluation.scores import read_scores
from modistill.methods.cyclegan import CycleGAN
from modistill.methods.modality_dropout import ModalityDropout
from modistill.methods.supervised import Supervised
from modistill.weights import save_weights
from patients import ALL, STUDENT, intensities, write_patient

AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])


def save_run(folder: Path, method: str, network: torch.nn.Module, arguments: dict, **card: object) -> Path:
    facts = {
        "name": folder.name,
        "method": {"name": method, **arguments},
        "convention": "brats2021",
        "inference": {"window": None, "overlap": 0.5, "mirror": []},
        **card,
    }
    save_weights(folder / "model.safetensors", network.state_dict(), facts)
    return folder


def save_segmentor(folder: Path, modalities: tuple[str, ...]) -> Path:
    torch.manual_seed(0)
    preprocessing = Preprocessing(modalities, modalities, "percentiles").to_json()
    arguments = {"modalities": list(modalities), "width": 2}
    return save_run(folder, "supervised", Supervised(modalities, width=2).network, arguments, preprocessing=preprocessing)


def save_translation(folder: Path, source: str, target: str, seed: int = 0) -> Path:
    """A tiny CycleGAN that was not trained."""
    torch.manual_seed(seed)
    arguments = {"source": source, "target": target, "width": 2, "blocks": 1}
    of_source, of_target = (Preprocessing((name,), (name,), "percentiles").to_json() for name in (source, target))
    network = CycleGAN(**arguments).generators["to_target"]
    return save_run(folder, "cyclegan", network, arguments, preprocessing=of_source, targets={target: of_target})


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A patient who has all, another without t1ce; runs of all kinds."""
    root = tmp_path_factory.mktemp("complete")
    write_patient(root / "in", "p1")
    write_patient(root / "in", "p2", seed=1, without=("t1ce",))
    save_segmentor(root / "teacher", ALL)
    save_segmentor(root / "student", STUDENT)
    save_translation(root / "t1_to_t1ce", "t1", "t1ce")
    save_translation(root / "flair_to_t2", "flair", "t2")
    any_subset = ModalityDropout(ALL, width=2)
    arguments = {"modalities": list(ALL), "width": 2}
    preprocessing = Preprocessing(ALL, ALL, "percentiles").to_json()
    save_run(root / "any", "modality_dropout", any_subset.network, arguments, preprocessing=preprocessing)
    return root


def predict(root: Path, out: Path, *more: object, model: str = "teacher", patients: Path | None = None) -> int:
    how = ("--device", "cpu", "--precision", "32")
    return run_main("predict", "-i", patients or root / "in", "-o", out, "-m", root / model, *how, *more)


def labels(path: Path) -> np.ndarray:
    return read_volume(path).voxels


def told(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(" ".join(capsys.readouterr()).split())


def test_a_patient_without_t1ce(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict(root, tmp_path / "plain") == 3
    assert "p2: has t1, t2, flair, lacks t1ce: no model can serve that" in told(capsys)
    assert predict(root, tmp_path / "out", "--complete-with", root / "t1_to_t1ce") == 0
    text = told(capsys)
    assert "p2: t1ce is synthetic (by t1_to_t1ce from t1): not evidence of enhancement" in text
    assert "A synthetic T1ce is not evidence of enhancement." in text
    assert "1 case: teacher reads flair, t1ce, t1, t2 " in text
    assert "1 case: teacher reads flair, t1, t2, synthetic t1ce (by t1_to_t1ce)" in text
    assert np.array_equal(labels(tmp_path / "plain" / "p1.nii.gz"), labels(tmp_path / "out" / "p1.nii.gz"))
    digest = json.loads((root / "t1_to_t1ce" / "model.json").read_text())["digest"]
    substitutes = {case: json.loads((tmp_path / "out" / f"{case}.json").read_text())["substitutes"] for case in ("p1", "p2")}
    assert substitutes["p1"] == []
    assert [(one["modality"], one["by"], one["digest"], one["made_from"]) for one in substitutes["p2"]] == [
        ("t1ce", "t1_to_t1ce", digest, ["t1"])
    ]


def test_it_is_the_image_that_translate_writes(root: Path, tmp_path: Path) -> None:
    """Made in passing, or written as a file and read again: the same labels."""
    translation = root / "t1_to_t1ce"
    assert run_main("translate", "-i", root / "in", "-o", tmp_path / "made", "-m", translation, "--device", "cpu") == 0
    files = {name: root / "in" / "p2" / f"p2_{name}.nii.gz" for name in STUDENT}
    files["t1ce"] = tmp_path / "made" / "p2" / "p2_t1ce.nii.gz"
    given = [word for name, path in files.items() for word in ("--file", f"{name}={path}")]
    how = ("--device", "cpu", "--precision", "32")
    assert run_main("predict", *given, "-o", tmp_path / "given", "-m", root / "teacher", *how) == 0
    assert predict(root, tmp_path / "out", "--complete-with", translation, "--only", "flair,t1,t2") == 0
    (written,) = (tmp_path / "given").glob("*.nii.gz")
    assert np.array_equal(labels(written), labels(tmp_path / "out" / "p2.nii.gz"))


def test_what_only_takes_away_has_no_say(root: Path, tmp_path: Path) -> None:
    folder = write_patient(tmp_path / "in", "p1")
    how = ("--complete-with", root / "t1_to_t1ce", "--only", "flair,t1,t2", "--save-probabilities")
    assert predict(root, tmp_path / "before", *how, patients=tmp_path / "in") == 0
    write_volume(folder / "p1_t1ce.nii.gz", Volume(intensities(99)["t1ce"], AFFINE), dtype=np.int16)
    assert predict(root, tmp_path / "after", *how, patients=tmp_path / "in") == 0
    for name in ("p1.nii.gz", "probabilities/p1/WT.nii.gz", "probabilities/p1/ET.nii.gz"):
        assert (tmp_path / "before" / name).read_bytes() == (tmp_path / "after" / name).read_bytes()
    assert "t1ce" not in json.loads((tmp_path / "after" / "p1.json").read_text())["inputs"]


def test_a_student_goes_before_a_completed_teacher(root: Path, tmp_path: Path) -> None:
    assert predict(root, tmp_path / "out", "-m", root / "student", "--complete-with", root / "t1_to_t1ce") == 0
    runs = {case: json.loads((tmp_path / "out" / f"{case}.json").read_text())["run"] for case in ("p1", "p2")}
    assert runs == {"p1": "teacher", "p2": "student"}


def test_continue_notices_another_translation(root: Path, tmp_path: Path) -> None:
    def status(run: Path) -> dict[str, str]:
        assert predict(root, tmp_path / "out", "--continue", "--complete-with", run) == 0
        rows = json.loads((tmp_path / "out" / "report.json").read_text())["rows"]
        return {row["case"]: row["status"] for row in rows}

    assert status(root / "t1_to_t1ce") == {"p1": "done", "p2": "done"}
    assert status(root / "t1_to_t1ce") == {"p1": "skipped", "p2": "skipped"}
    again = save_translation(tmp_path / "t1_to_t1ce", "t1", "t1ce", seed=7)  # trained again under the same name
    assert status(again) == {"p1": "skipped", "p2": "done"}
    assert status(Path("mean")) == {"p1": "skipped", "p2": "done"}


# --------------------------------------------------------------------------- one missing


@pytest.mark.parametrize("how", ["zero", "mean"])
def test_one_missing_is_scored_like_subsets(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str) -> None:
    write_patient(tmp_path / "in", "p1")
    subsets = {"t1ce+t1+t2", "flair+t1+t2", "flair+t1ce+t2", "flair+t1ce+t1"}
    out = tmp_path / "out"
    assert predict(root, out, "--one-missing", "--complete-with", how, patients=tmp_path / "in") == 0
    assert "not evidence" not in told(capsys)
    assert {path.name for path in out.iterdir()} == subsets
    for subset in subsets:
        record = json.loads((out / subset / "p1.json").read_text())
        assert "+".join(record["available"]) == "+".join(name for name in ALL if name in subset.split("+"))
        assert [one["by"] for one in record["substitutes"]] == [how]
        assert {one["modality"] for one in record["substitutes"]} == set(ALL) - set(subset.split("+"))
    scores = tmp_path / "scores.csv"
    reference = tmp_path / "reference"
    predict(root, reference, patients=tmp_path / "in")
    run_main("evaluate", out, "-r", reference, "--labels", "brats2021", "--subsets", "-o", scores, "-w", 1)
    assert set(read_scores(scores).subsets) == subsets


def test_one_missing_does_what_the_translations_can(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    translations = ("--complete-with", root / "t1_to_t1ce", "--complete-with", root / "flair_to_t2")
    assert predict(root, tmp_path / "out", "--one-missing", *translations) == 0
    text = told(capsys)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"flair+t1+t2", "flair+t1ce+t1"}
    assert "notice: 1 cases lack one of flair, t1ce, t1, t2 and are left out" in text
    assert "notice: flair+t1ce+t2 is left out: has flair, t1ce, t2, lacks t1: no model can serve that" in text
    made = {path.parent.name: json.loads(path.read_text())["substitutes"][0] for path in (tmp_path / "out").glob("*/p1.json")}
    assert {name: (one["modality"], one["made_from"]) for name, one in made.items()} == {
        "flair+t1+t2": ("t1ce", ["t1"]),
        "flair+t1ce+t1": ("t2", ["flair"]),
    }


def test_one_missing_of_a_model_of_any_subset(root: Path, tmp_path: Path) -> None:
    assert predict(root, tmp_path / "out", "--one-missing", model="any") == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("flair+t1ce+t1", "flair+t1ce+t2", "flair+t1+t2", "t1ce+t1+t2"),
    }


def test_the_source_is_named_after_the_run(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict(root, tmp_path / "out", "--complete-with", f"{root / 't1_to_t1ce'}:flair") == 2
    assert "t1_to_t1ce does not read flair (it makes t1ce from t1)" in told(capsys)
    assert predict(root, tmp_path / "out", "--complete-with", f"{root / 't1_to_t1ce'}:T1") == 0
    assert "p2: t1ce is synthetic (by t1_to_t1ce from t1): not evidence" in told(capsys)
    assert predict(root, tmp_path / "out", "--complete-with", f"{root / 'nowhere'}:t1") == 2
    assert f"{root / 'nowhere'}" in told(capsys)


# --------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("model", "words", "said"),
    [
        ("teacher", ("--complete-with", "@student"), "student segments and translates nothing (give a translation)"),
        (
            "student",
            ("--complete-with", "@t1_to_t1ce"),
            "error: t1_to_t1ce makes t1ce, which no model needs (they read flair, t1, t2)",
        ),
        (
            "teacher",
            ("--complete-with", "zero", "--complete-with", "@t1_to_t1ce"),
            "error: --complete-with zero fills whatever is missing (leave out ",
        ),
        ("teacher", ("--complete-with", "zero", "--complete-with", "mean"), "fills whatever is missing (leave out mean)"),
        ("any", ("--complete-with", "mean"), "error: nothing to complete: any reads whatever a case has"),
        (
            "teacher",
            ("--one-missing",),
            "error: no model can do without one of its sequences (give --complete-with; teacher needs flair+t1ce+t1+t2)",
        ),
        (
            "teacher",
            ("--one-missing", "--only", "t1", "--complete-with", "zero"),
            "--one-missing and --only exclude each other",
        ),
        ("any", ("--one-missing", "--subsets"), "--subsets and --one-missing exclude each other"),
        ("teacher", ("--only", "ct", "--complete-with", "zero"), "error: --only ct: no model reads ct"),
    ],
)
def test_wrong_wishes_are_one_line(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str, words: tuple[str, ...], said: str
) -> None:
    given = [root / word[1:] if word.startswith("@") else word for word in words]
    assert predict(root, tmp_path / "out", *given, model=model) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(lines) == 1
    assert said in lines[0]
    assert not (tmp_path / "out").exists()


def test_nothing_to_make_it_from_costs_that_case_alone(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_patient(tmp_path / "in", "p1", without=("t1ce",))
    write_patient(tmp_path / "in", "p2", without=("t1ce", "t1"))
    assert predict(root, tmp_path / "out", "--complete-with", root / "t1_to_t1ce", patients=tmp_path / "in") == 3
    assert (
        "error: p2: has t2, flair, lacks t1, t1ce: no model can serve that, nor can all of it be made "
        "(teacher needs flair+t1ce+t1+t2; t1_to_t1ce makes t1ce from t1)"
    ) in told(capsys)
