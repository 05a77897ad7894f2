"""From a recipe to a run folder and back to a model: records, refusals, and a deployed student that holds nothing else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from command_line import run_main
from modistill import runs
from modistill.data.folder import find_cases
from modistill.data.preparing import prepare
from modistill.data.preprocessing import Preprocessing
from modistill.errors import FileError, ModelError, RecipeError
from modistill.inference.predictor import Predictor
from modistill.log import read_log
from modistill.methods.modality_dropout import ModalityDropout
from modistill.phantom.cohort import write_cohort
from modistill.recipe import Recipe, load_recipe
from modistill.weights import save_weights

SMALL = [
    "training.epochs=1",
    "training.validate_every=1",
    "training.precision='32'",
    "method.width=2",
    "data.size=[32, 32, 32]",
]
ARMS = ("teacher", "student", "control", "had_net")


def small(arm: str, *overrides: str) -> Recipe:
    return load_recipe(f"demo/{arm}", [*SMALL, *overrides])


@pytest.fixture(scope="module")
def patients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantom") / "patients"
    write_cohort(folder, 4, seed=3, shape=(32, 32, 32), workers=1)
    return folder


@pytest.fixture(scope="module")
def prepared(patients: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = small("teacher").data
    folder = tmp_path_factory.mktemp("prepared") / "cohort"
    how = Preprocessing(data.modalities, data.available or data.modalities, data.normalisation, size=data.size)
    prepare(find_cases(patients), folder, how, {"train": 0.5, "validation": 0.5}, workers=1)
    return folder


@pytest.fixture(scope="module")
def trained(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for arm in ARMS:
        runs.train(small(arm), prepared, folder / arm, device="cpu")
    return folder


@pytest.mark.parametrize("arm", ARMS)
def test_a_run_folder_holds_its_records(trained: Path, arm: str) -> None:
    run = trained / arm
    found = {path.name for path in run.iterdir()}
    assert {"recipe.yaml", "environment.json", "split.json", "log.csv", "progress.png", "checkpoints"} <= found
    assert {"model.safetensors", "model.json"} <= found
    card = json.loads((run / "model.json").read_text())
    assert "t1ce" not in card["reads"] or arm == "teacher"
    resolved = yaml.safe_load((run / "recipe.yaml").read_text())
    assert resolved["method"]["class_weights"][0] == 1.0
    assert len(resolved["method"]["class_weights"]) == 4


def test_the_deployed_student_holds_no_teacher_and_no_critic(trained: Path) -> None:
    model = runs.load_model(trained / "had_net")
    assert model.reads == ("flair", "t1", "t2")
    kinds = {name.split(".")[0]: parameter.device.type for name, parameter in model.method.named_parameters()}
    assert kinds == {"teacher": "meta", "student": "cpu", "critic": "meta"}


def test_had_net_starts_from_the_weights_it_is_given(trained: Path, prepared: Path) -> None:
    cohort = runs.PreparedCohort(prepared)
    recipe = runs.resolve(small("had_net"), cohort.plan)
    method = runs.build_method(recipe)
    runs.start_from(method, recipe, trained / "elsewhere", cohort)
    for network, arm in {"teacher": "teacher", "student": "student"}.items():
        weights = runs.load_weights(trained / arm / "model.safetensors")[0]
        for name, value in method.get_submodule(network).state_dict().items():
            assert torch.equal(value, weights[name]), f"{network}.{name}"


def test_what_a_run_predicts_in_the_patient_is_what_validation_saw(trained: Path, patients: Path, prepared: Path) -> None:
    """Predicting the raw case and segmenting the prepared one give the same labels, up to what float16 rounds."""
    cohort = runs.PreparedCohort(prepared)
    case = next(case for case in find_cases(patients).cases if case.id == cohort.ids("validation")[0])
    prediction = Predictor([runs.load_model(trained / "had_net")], device="cpu", precision="32").predict(case.read())
    stored = cohort.read(case.id)
    method = runs.load_model(trained / "had_net").method
    channels = [cohort.plan.preprocessing.modalities.index(name) for name in method.available]
    with torch.inference_mode():
        logits = method.segment(torch.from_numpy(stored.images[channels].astype(np.float32))[None])[0]
    restored = cohort.plan.preprocessing.restore(logits.softmax(0).numpy(), stored.geometry, outside=(1, 0, 0, 0))
    same = prediction.labels.voxels == prediction.convention.from_classes(restored.argmax(0))
    assert same.mean() > 0.995


def test_a_second_training_into_the_same_folder_is_refused(trained: Path, prepared: Path) -> None:
    with pytest.raises(FileError, match=r"holds a run already \(--resume to go on, or choose another folder\)"):
        runs.train(small("teacher"), prepared, trained / "teacher")


def test_resuming_another_experiment_is_refused(trained: Path, prepared: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"differs from the run's own: method.lr is 0.5, was 0.001 \(only training.epochs may change\)"
    ):
        runs.train(small("teacher", "method.lr=0.5"), prepared, trained / "teacher", resume=True)


@pytest.fixture(scope="module")
def exchanged(patients: Path, prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same patients, prepared alike, but those of training and validation changed places."""
    before = runs.PreparedCohort(prepared)
    folder = tmp_path_factory.mktemp("exchanged") / "cohort"
    split = {"train": before.ids("validation"), "validation": before.ids("train")}
    prepare(find_cases(patients), folder, before.plan.preprocessing, split, workers=1)
    return folder


def test_weights_that_have_seen_patients_held_back_here_are_refused(trained: Path, exchanged: Path) -> None:
    with pytest.raises(
        ModelError, match=r"teacher: was trained on 2 of the 2 cases held back here, such as .* --split .*split.json"
    ):
        runs.train(small("had_net"), exchanged, trained / "leak", device="cpu")
    assert not (trained / "leak").exists()


def test_resuming_with_another_split_is_refused(trained: Path, exchanged: Path) -> None:
    with pytest.raises(RecipeError, match="split otherwise than those of the run"):
        runs.train(small("student", "training.epochs=2"), exchanged, trained / "student", device="cpu", resume=True)


def test_a_finished_run_can_be_made_longer(trained: Path, prepared: Path, tmp_path: Path) -> None:
    long, parts = tmp_path / "long", tmp_path / "parts"
    runs.train(small("student", "training.epochs=2"), prepared, long, device="cpu")
    runs.train(small("student"), prepared, parts, device="cpu")
    runs.train(small("student", "training.epochs=2"), prepared, parts, device="cpu", resume=True)
    first, second = (runs.load_weights(run / "model.safetensors")[0] for run in (long, parts))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_recipes_that_do_not_fit_the_prepared_cases_are_refused(prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"data.size is 32, 32, 48, the prepared cases were made with 32, 32, 32"):
        runs.train(small("teacher", "data.size=[32, 32, 48]"), prepared, tmp_path / "run")
    with pytest.raises(RecipeError, match="method reads ct, the prepared cases hold flair, t1ce, t1, t2"):
        runs.train(small("student", "method.modalities=[t1, ct]"), prepared, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_weights_of_another_network_are_refused(trained: Path, prepared: Path) -> None:
    with pytest.raises(ModelError, match="reads flair, t1, t2, the teacher of this method reads flair, t1ce, t1, t2"):
        runs.train(small("had_net", "start_from.teacher=../student"), prepared, trained / "wrong1")
    with pytest.raises(ModelError, match="does not fit the teacher"):
        runs.train(small("had_net", "method.width=4"), prepared, trained / "wrong2")
    with pytest.raises(ModelError, match="no trained model here"):
        runs.train(small("had_net", "start_from.teacher=../nobody"), prepared, trained / "wrong2")
    with pytest.raises(RecipeError, match=r"start_from.studnt: no such network \(known: teacher, student\)"):
        runs.train(small("had_net", "start_from.studnt=../student"), prepared, trained / "wrong3")
    assert not list(trained.glob("wrong*"))


def test_a_damaged_model_is_refused(trained: Path, tmp_path: Path) -> None:
    broken = tmp_path / "model.safetensors"
    content = bytearray((trained / "student" / "model.safetensors").read_bytes())
    content[-5] ^= 1
    broken.write_bytes(bytes(content))
    with pytest.raises(ModelError, match="do not match their digest"):
        runs.load_model(tmp_path)
    with pytest.raises(ModelError, match="no trained model here"):
        runs.load_model(trained)


def test_the_mask_of_a_patient_without_t1ce_is_the_one_of_training(trained: Path) -> None:
    model = runs.load_model(trained / "teacher")
    assert model.preprocessing.available == ("flair", "t1", "t2")
    assert model.preprocessing.modalities == ("flair", "t1ce", "t1", "t2")
    assert model.preprocessing.normalisation == "hadnet"


def test_weights_for_other_classes_are_refused(trained: Path, prepared: Path) -> None:
    """A run that found its classes in another order, or says nothing of them, starts no network here."""
    tensors, card = runs.load_weights(trained / "teacher" / "model.safetensors")
    found = card.pop("classes")
    assert found == ["background", "NCR", "ED", "ET"]
    for name, more in (("swapped", {"classes": ["background", "ED", "NCR", "ET"]}), ("silent", {})):
        save_weights(trained / f"teacher_{name}" / "model.safetensors", tensors, card | more)
        words = f"finds {', '.join(more.get('classes', ()))}, the prepared cases hold {', '.join(found)}"
        with pytest.raises(ModelError, match=words):
            runs.train(small("had_net", f"start_from.teacher=../teacher_{name}"), prepared, trained / "wrong4", device="cpu")
    assert not (trained / "wrong4").exists()


@pytest.fixture(scope="module")
def lacking(patients: Path, prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same patients, one of those that train without t1ce."""
    before = runs.PreparedCohort(prepared)
    root = tmp_path_factory.mktemp("lacking")
    shutil.copytree(patients, root / "patients")
    case = before.ids("train")[0]
    (root / "patients" / case / f"{case}_t1ce.nii.gz").unlink()
    split = {part: before.ids(part) for part in ("train", "validation")}
    prepare(find_cases(root / "patients"), root / "cohort", before.plan.preprocessing, split, workers=1)
    return root / "cohort"


def test_cases_that_lack_what_a_method_reads_are_refused_by_name(lacking: Path, tmp_path: Path) -> None:
    case = runs.PreparedCohort(lacking).ids("train")[0]
    with pytest.raises(RecipeError) as error:
        runs.train(small("teacher"), lacking, tmp_path / "run", device="cpu")
    assert str(error.value) == (
        f"{lacking}: 1 of 4 cases lack what the method reads, such as {case}: t1ce "
        "(leave them out of the split, or train a method of any subset (see `modistill methods`))"
    )
    assert not (tmp_path / "run").exists()


def test_a_method_that_does_not_read_what_is_missing_trains(lacking: Path, tmp_path: Path) -> None:
    runs.train(small("student"), lacking, tmp_path / "run", device="cpu")
    assert runs.load_model(tmp_path / "run").reads == ("flair", "t1", "t2")


def test_a_method_of_any_subset_trains_on_cases_that_lack_some(lacking: Path, patients: Path, tmp_path: Path) -> None:
    runs.train(small("modality_dropout"), lacking, tmp_path / "run", device="cpu")
    rows = {row.name: row.value for row in read_log(tmp_path / "run" / "log.csv")}
    assert 0 <= rows["validation/score"] <= 1
    assert all(np.isfinite(value) for value in rows.values())
    model = runs.load_model(tmp_path / "run")
    assert (model.any_subset, model.reads) == (True, ("flair", "t1ce", "t1", "t2"))
    case = find_cases(patients).cases[0].read(["t1ce"])
    assert Predictor([model], device="cpu", precision="32").predict(case).available == ("t1ce",)


def test_what_is_missing_in_a_training_case_does_not_reach_the_weights(
    lacking: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other values in the channel of a modality that the case lacks: not one bit of the model differs."""
    patch, spoiled = runs.PreparedCohort.patch, []

    def garbage(cohort: runs.PreparedCohort, case: str, *box: Any) -> Any:
        images, labels = patch(cohort, case, *box)
        missing = ~np.asarray(cohort.entry(case).presence)
        spoiled.append(missing.sum())
        return np.where(missing[:, None, None, None], np.float16(7), images), labels

    runs.train(small("modality_dropout"), lacking, tmp_path / "plain", device="cpu")
    monkeypatch.setattr(runs.PreparedCohort, "patch", garbage)
    runs.train(small("modality_dropout"), lacking, tmp_path / "spoiled", device="cpu")
    assert set(spoiled) == {0, 1}  # of two training cases, one lacks one
    plain, other = (runs.load_weights(tmp_path / run / "model.safetensors")[0] for run in ("plain", "spoiled"))
    assert all(torch.equal(plain[name], other[name]) for name in plain)


def test_validation_asks_with_what_a_patient_will_have(lacking: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Privileged modalities of validation cases do not count: the score is of the sequences available at test time."""
    asked: set[tuple[bool, ...]] = set()
    for_patient = ModalityDropout.for_patient

    def noted(method: ModalityDropout, has: Sequence[bool]) -> Any:
        asked.add(tuple(has))
        return for_patient(method, has)

    monkeypatch.setattr(ModalityDropout, "for_patient", noted)
    runs.train(small("modality_dropout"), lacking, tmp_path / "run", device="cpu")
    assert asked == {(True, False, True, True)}


def test_controls_are_trained_first_and_beside(prepared: Path, tmp_path: Path) -> None:
    """`train --with-controls` trains what the weights come from; run again with --resume, it leaves them as they are."""
    words = [word for override in SMALL for word in ("--set", override)]
    command = (
        "train",
        "demo/had_net",
        "-d",
        prepared,
        "-o",
        tmp_path / "had_net",
        "--device",
        "cpu",
        "--with-controls",
        *words,
    )
    assert run_main(*command) == 0
    models = {path.parent.name: path.stat().st_mtime_ns for path in tmp_path.glob("*/model.safetensors")}
    assert set(models) == {"had_net", *load_recipe("demo/had_net").controls}
    assert run_main(*command, "--resume") == 0
    assert {path.parent.name: path.stat().st_mtime_ns for path in tmp_path.glob("*/model.safetensors")} == models


def test_controls_of_a_recipe_that_names_none(prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main("train", "demo/teacher", "-d", prepared, "-o", tmp_path / "run", "--with-controls") == 2
    assert "error: demo/teacher names no controls" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
