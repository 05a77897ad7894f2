"""`modistill inspect` as a user meets it: what is printed, what is written, and the exit code."""

import json
import subprocess
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

from modistill.cli.app import app
from modistill.cli.inspect import words
from modistill.data.nifti import write_volume
from modistill.data.volume import Volume
from modistill.errors import FileError, LabelError, RecipeError


def case(root, name, words=("t1", "t1ce", "t2", "flair"), labels=(1, 2, 4), shape=(10, 10, 10)):
    generator = np.random.default_rng(0)
    for word in words:
        write_volume(root / name / f"{name}_{word}.nii.gz", Volume(generator.integers(1, 99, shape)), dtype=np.int16)
    values = np.zeros(shape)
    for index, value in enumerate(labels):
        values[index] = value
    write_volume(root / name / f"{name}_seg.nii.gz", Volume(values), dtype=np.uint8)


@pytest.fixture
def run(monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")

    def inspect(*arguments):
        result = CliRunner().invoke(app, ["inspect", "--workers", "1", *map(str, arguments)])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.stdout

    return inspect


def test_a_clean_cohort(tmp_path, run):
    case(tmp_path, "a")
    case(tmp_path, "b", words=("t1", "t2", "flair"))
    code, text = run(tmp_path)
    assert code == 0
    for part in (
        "t1 2/2   t1ce 1/2   t2 2/2",
        "10x10x10 voxels of 1x1x1 mm, RAS",
        "brats2021: 1 NCR  2 ED  4 ET",
        "All 2 cases",
    ):
        assert part in text
    line = next(line for line in text.splitlines() if line.strip().startswith("b "))
    assert line.split() == ["b", "●", "–", "●", "●", "0.1", "0.1", "0.1"]


def test_faults_are_listed_by_case_file_reason_and_remedy(tmp_path, run):
    case(tmp_path, "a")
    case(tmp_path, "b")
    case(tmp_path, "c", shape=(12, 10, 10))
    (tmp_path / "b" / "b_t2.nii.gz").write_bytes(b"")
    code, text = run(tmp_path, "--json", tmp_path / "out.json")
    assert code == 3
    assert "error  b: b_t2.nii.gz: empty file (0 bytes) (fetch or export the file again)" in text
    assert "2 of 3 cases are usable" in text
    assert "A  10x10x10 voxels of 1x1x1 mm, RAS   (2 cases)" in text
    assert "B  12x10x10 voxels of 1x1x1 mm, RAS   (1 case)" in text
    assert "✗" in next(line for line in text.splitlines() if line.strip().startswith("b "))
    content = json.loads((tmp_path / "out.json").read_text())
    assert content["usable"] == ["a", "c"]


def test_nothing_usable(tmp_path, run):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "a_t1.nii.gz").write_text("<html>")
    code, text = run(tmp_path)
    assert code == 2
    assert "No case is usable." in text
    with pytest.raises(FileError, match="no such file or folder"):
        run(tmp_path / "nowhere")


def test_stated_convention_and_declared_words(tmp_path, run):
    case(tmp_path, "a", words=("t1", "ph4"), labels=(1, 2, 3))
    code, text = run(tmp_path)
    assert code == 0
    assert "unknown sequence 'ph4'" in text
    assert "convention unknown" in text
    code, text = run(tmp_path, "--labels", "brats2023", "--modality", "ph4=t1ce")
    assert "t1 1/1   t1ce 1/1" in text
    assert "warning" not in text
    with pytest.raises(LabelError, match="unknown label convention"):
        run(tmp_path, "--labels", "nonsense")


@pytest.mark.parametrize("entry", ["ph4", "=t1", "ph4=", "a=b=c"])
def test_a_declaration_that_is_none(entry):
    with pytest.raises(RecipeError, match="WORD=NAME"):
        words([entry])


def test_a_large_cohort_lists_the_remarkable_cases_only(tmp_path, run):
    for number in range(41):
        for word in ("t1", "t2") if number != 7 else ("t1",):
            data = np.random.default_rng(word == "t1").integers(1, 99, (8, 8, 8))
            write_volume(tmp_path / f"p{number:02d}" / f"{word}.nii", Volume(data), dtype=np.int16)
    _, text = run(tmp_path)
    assert "40 complete cases without faults are not listed" in text
    assert "p07" in text
    assert "p08" not in text
    assert "p08" in run(tmp_path, "--all")[1]


def test_markup_in_names_is_printed_as_it_is(tmp_path, run):
    case(tmp_path, "a[bold]b")
    assert "a[bold]b" in run(tmp_path)[1]


def test_the_real_command_gives_one_line_and_exit_code_2(tmp_path):
    command = [sys.executable, "-c", "from modistill.cli import main; main()", "inspect", str(tmp_path / "nowhere")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""


def test_heavy_libraries_stay_out(tmp_path):
    """Help imports none of them; inspecting needs nibabel and no more."""
    case(tmp_path, "a")
    code = f"""
import sys
sys.argv = ["modistill", "inspect", {str(tmp_path)!r}, "--workers", "1"]
from modistill.cli import main
heavy = {{"torch", "monai", "SimpleITK", "matplotlib", "lightning"}}
assert not heavy & set(sys.modules) and "numpy" not in sys.modules and "nibabel" not in sys.modules
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print(sorted(heavy & set(sys.modules)))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.splitlines()[-1] == "[]", result.stderr
