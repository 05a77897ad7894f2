"""`modistill predict` as a user meets it: what is printed, what is written, and the exit code."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from modistill.cli.app import app
from modistill.data.nifti import read_labels
from modistill.data.preprocessing import Preprocessing
from modistill.errors import CaseError, FileError, ModelError, RecipeError
from modistill.methods.supervised import Supervised
from modistill.weights import save_weights
from patients import ALL, NEW_NAMES, OLD_NAMES, STUDENT, write_patient

SHAPE = (36, 20, 19)


def save_run(folder, modalities):
    """A run folder with a tiny untrained network, as a training leaves it."""
    torch.manual_seed(0)
    method = Supervised(modalities, width=2)
    available = tuple(name for name in modalities if name != "t1ce")
    card = {
        "name": folder.name,
        "method": {"name": "supervised", "modalities": list(modalities), "width": 2, "classes": 4},
        "reads": list(modalities),
        "convention": "brats2021",
        "preprocessing": Preprocessing(modalities, available).to_json(),
        "inference": {"window": None, "overlap": 0.5, "mirror": []},
    }
    save_weights(folder / "model.safetensors", method.network.state_dict(), card)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return save_run(root / "teacher", ALL), save_run(root / "had_net", STUDENT)


@pytest.fixture
def run(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")

    def predict(*arguments):
        result = CliRunner().invoke(app, ["predict", "--device", "cpu", "--precision", "32", *map(str, arguments)])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.stdout, result.stderr

    return predict


def test_each_case_gets_the_model_that_fits(tmp_path, runs, run):
    teacher, student = runs
    write_patient(tmp_path / "in", "full", shape=SHAPE)
    write_patient(tmp_path / "in", "plain", shape=SHAPE, without=("t1ce",))
    write_patient(tmp_path / "in", "poor", shape=SHAPE, without=("flair",))
    code, table, log = run("-i", tmp_path / "in", "-o", tmp_path / "out", "--model", teacher, "--model", student)
    assert code == 3
    lines = {line.split()[0]: line.split() for line in table.splitlines() if line.strip()}
    assert lines["full"][1:-1] == ["done", "teacher", *ALL]
    assert lines["plain"][1:-1] == ["done", "had_net", *STUDENT]
    assert lines["poor"][1] == "failed"
    assert "1 case: had_net reads flair, t1, t2; teacher would need t1ce, which the case lacks" in table
    assert "2 done, 1 failed" in table
    assert "error: poor: has t1, t1ce, t2, lacks flair" in log
    assert "1/3 full: teacher" in log
    record = json.loads((tmp_path / "out" / "plain.json").read_text())
    assert record["run"] == "had_net"
    assert record["made_with"]["digest"] == json.loads((student / "model.json").read_text())["digest"]


@pytest.mark.parametrize(("names", "numbers"), [(OLD_NAMES, {0, 1, 2, 4}), (NEW_NAMES, {0, 1, 2, 3})])
def test_label_numbers_follow_the_names_of_the_input(tmp_path, runs, run, names, numbers):
    write_patient(tmp_path / "in", "p1", shape=SHAPE, names=names)
    assert run("-i", tmp_path / "in" / "p1", "-o", tmp_path / "out", "-m", runs[1])[0] == 0
    found = set(np.unique(read_labels(tmp_path / "out" / "p1.nii.gz").voxels).tolist())
    assert len(found) > 1
    assert found <= numbers
    assert run("-i", tmp_path / "in", "-o", tmp_path / "other", "-m", runs[1], "--labels", "msd_task01")[0] == 0
    assert json.loads((tmp_path / "other" / "p1.json").read_text())["convention"] == "msd_task01"


def test_single_files_mirror_and_probabilities(tmp_path, runs, run):
    folder = write_patient(tmp_path / "in", "p1", shape=SHAPE)
    files = [part for name in STUDENT for part in ("--file", f"{name.upper()}={folder / f'p1_{name}.nii.gz'}")]
    code, _, _ = run(*files, "-o", tmp_path / "out", "-m", runs[1], "--mirror", "--overlap", "0.25", "--save-probabilities")
    assert code == 0
    record = json.loads((tmp_path / "out" / "p1.json").read_text())
    assert (record["made_with"]["mirror"], record["made_with"]["overlap"]) == ([0], 0.25)
    assert set(record["files"]) == {"p1.nii.gz", *(f"probabilities/p1/{name}.nii.gz" for name in ("WT", "TC", "ET"))}


def test_continue_and_overwrite(tmp_path, runs, run):
    write_patient(tmp_path / "in", "p1", shape=SHAPE)
    arguments = ("-i", tmp_path / "in", "-o", tmp_path / "out", "-m", runs[1])
    run(*arguments)
    with pytest.raises(FileError, match="is not empty"):
        run(*arguments)
    code, table, log = run(*arguments, "--continue")
    assert code == 0
    assert "1 skipped" in table
    assert "1/1 p1: done by an earlier run" in log
    assert "1 done" in run(*arguments, "--overwrite")[1]
    with pytest.raises(RecipeError, match="exclude each other"):
        run(*arguments, "--overwrite", "--continue")


def test_unused_files_are_named_once(tmp_path, runs, run):
    folder = write_patient(tmp_path / "in", "p1", shape=SHAPE)
    (folder / "p1_adc.nii.gz").write_bytes(b"never opened")
    code, _, log = run("-i", tmp_path / "in", "-o", tmp_path / "out", "-m", runs[1])
    assert code == 0
    assert log.count("notice: p1: ") == 1
    assert "adc" in log


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("-o", "out"), RecipeError, "nothing to predict"),
        (("-i", "in", "--file", "t1=x.nii.gz", "-o", "out"), RecipeError, "exclude each other"),
        (("--file", "t1", "-o", "out"), RecipeError, "write NAME=FILE"),
        (("--file", "t1=a.nii.gz", "--file", "t1=b.nii.gz", "-o", "out"), CaseError, "t1 is given twice"),
        (("-i", "in", "-o", "in/out"), FileError, "lies inside the input folder"),
        (("-i", "in", "-o", "in"), FileError, "lies inside the input folder"),
        (("-i", "nowhere", "-o", "out"), FileError, "no such file or folder"),
        (("-i", "in", "-o", "out", "--precision", "64"), RecipeError, "no precision '64'"),
        (("-i", "in", "-o", "out", "--device", "cuda:77"), RecipeError, "no device cuda:77"),
        (("-i", "in", "-o", "out", "-m", "in"), ModelError, "no trained model here"),
    ],
)
def test_wrong_usage_is_refused_before_anything_is_written(tmp_path, monkeypatch, runs, run, arguments, error, message):
    monkeypatch.chdir(tmp_path)
    write_patient(tmp_path / "in", "p1", shape=SHAPE)
    with pytest.raises(error, match=message):
        run(*arguments, "-m", runs[1])
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "in" / "out").exists()


def test_from_the_shell_one_line_and_no_traceback(tmp_path, runs):
    write_patient(tmp_path / "in", "p1", shape=SHAPE, without=("flair",))
    program = [
        sys.executable,
        "-c",
        "from modistill.cli import main; main()",
        "predict",
        "-i",
        "in",
        "-o",
        "out",
        "-m",
        runs[1],
    ]
    done = subprocess.run([str(part) for part in program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.strip() == (
        "error: p1: has t1, t1ce, t2, lacks flair: no model can serve that (had_net needs flair+t1+t2)"
    )
    assert "Traceback" not in done.stdout + done.stderr
