from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from command_line import run_main
from modistill.data.store import PreparedCohort
from tiny_cohort import write_folder


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("raw"), cases=4)


def modistill(*arguments: object) -> int:
    return run_main("prepare", *arguments, "--workers", "1")


def test_flags_reach_the_plan_and_the_summary_is_printed(raw: Path, tmp_path: Path, capsys):
    split = tmp_path / "split.yaml"
    split.write_text("test: [BraTS21_003]\ntrain: 2\nvalidation: 1\n")
    options = ["--available", "T1,t2w,flair", "--normalisation", "hadnet", "--size", 32, 24, 32, "--split", split]
    assert modistill(raw, "-o", tmp_path / "p", *options) == 0
    cohort = PreparedCohort(tmp_path / "p")
    assert [len(cohort.ids(part)) for part in ("train", "validation", "test")] == [2, 1, 1]
    assert cohort.plan.preprocessing.available == ("t1", "t2", "flair")
    assert cohort.plan.preprocessing.modalities == ("t1", "t1ce", "t2", "flair")
    assert (cohort.plan.preprocessing.normalisation, cohort.plan.shape) == ("hadnet", (32, 24, 32))
    printed = " ".join(capsys.readouterr().out.split())
    assert "privileged t1ce" in printed
    assert "train 2" in printed
    assert cohort.split.digest in printed


def test_a_recipe_gives_the_settings_and_flags_override_them(raw: Path, tmp_path: Path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("data: {modalities: [flair, t1], available: [t1], size: [32, 32, 32]}\nmethod: {name: supervised}\n")
    code = modistill(raw, "-o", tmp_path / "p", "-r", recipe, "--size", 40, 32, 32, "--fractions", 1, 0, 0)
    assert code == 0
    chosen = PreparedCohort(tmp_path / "p").plan.preprocessing
    assert (chosen.modalities, chosen.available, chosen.size) == (("flair", "t1"), ("t1",), (40, 32, 32))


def test_modalities_are_normalised_by_any_of_their_names(raw: Path, tmp_path: Path):
    options = ["--modalities", "t1,flair", "--available", "t1", "--normalisation", "T1n=-10.125:1136257,T2-FLAIR=hadnet"]
    assert modistill(raw, "-o", tmp_path / "p", *options, "--fractions", 1, 0, 0) == 0
    chosen = PreparedCohort(tmp_path / "p").plan.preprocessing
    assert chosen.normalisation == {"t1": (-10.125, 1136257), "flair": "hadnet"}


def test_a_bad_case_gives_exit_code_3_and_its_line(tmp_path: Path, capsys):
    raw = write_folder(tmp_path / "raw", cases=3)
    path = raw / "BraTS21_001" / "BraTS21_001_flair.nii.gz"
    path.write_bytes(path.read_bytes()[:200])
    assert modistill(raw, "-o", tmp_path / "p", "--available", "t1", "--fractions", 1, 0, 0) == 3
    printed = capsys.readouterr().out
    assert "error: BraTS21_001: " in printed
    assert PreparedCohort(tmp_path / "p").ids("train") == ("BraTS21_000", "BraTS21_002")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "nobody says which modalities a patient will have at test time (--available with some of t1,t1ce,t2,flair"),
        (["--available", "t1", "--modalities", "t1,ct"], "no case has ct"),
        (["--available", "t1", "--normalisation", "minmax"], "unknown normalisation 'minmax' (known: zscore, hadnet"),
        (
            ["--available", "t1", "--modalities", "t1,t2", "--normalisation", "t1=zscore,T2w=hadnet,MRI=zscore"],
            "--normalisation mr: no such modality (some of t1,t2)",
        ),
        (["--available", "t1", "--labels", "brats1999"], "unknown label convention"),
        (["--available", "t1", "--split", "absent.yaml"], "absent.yaml: cannot be read"),
        (["--available", "t1", "--labels", "brats2023"], "label values outside brats2023: 4"),
    ],
)
def test_what_a_user_gets_wrong_is_one_line(raw: Path, tmp_path: Path, capsys, options, words):
    assert modistill(raw, "-o", tmp_path / "p", *options) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert words in line
    assert not (tmp_path / "p" / "plan.json").exists()


def test_two_commands_on_one_folder_and_processes(raw: Path, tmp_path: Path):
    command = [sys.executable, "-m", "modistill", "prepare", str(raw), "-o", str(tmp_path / "p"), "--available", "t1,t2,flair"]
    program = f"import sys; sys.argv = {command[2:]!r}; from modistill.cli import main; main()"
    two = [subprocess.Popen([sys.executable, "-c", program, "--workers", "2"], stderr=subprocess.PIPE) for _ in range(2)]
    errors = [process.communicate(timeout=120)[1].decode() for process in two]
    codes = sorted(process.returncode for process in two)
    assert codes in ([0, 0], [0, 2])  # one after the other, or the second refused
    assert codes == [0, 0] or any("in use by another process" in text for text in errors)
    assert json.loads((tmp_path / "p" / "plan.json").read_text())["cases"] >= 2
