import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from command_line import run_main
from modistill.data.nifti import read_labels, write_volume
from modistill.data.volume import Volume
from modistill.evaluation.scores import read_scores

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "brats2021"


def save(path: Path, size: int, value: int = 4) -> None:
    voxels = np.zeros((10, 10, 10), np.uint8)
    voxels[2 : 2 + size, 2:6, 2:6] = value
    write_volume(path, Volume(voxels), dtype=np.uint8)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    for case in ("p1", "p2"):
        save(tmp_path / "references" / f"{case}.nii.gz", 4)
        save(tmp_path / "predictions" / f"{case}.nii.gz", 5)
    return tmp_path / "predictions", tmp_path / "references"


def test_rows_table_and_protocol(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "110")
    predictions, references = folders
    assert run_main("evaluate", predictions, "--reference", references, "-w", 1, "--tolerance-mm", 2) == 0
    printed = capsys.readouterr().out
    assert "predictions: 2 cases" in printed
    assert "surface Dice: share of boundary voxels within 2 mm" in printed
    assert max(map(len, printed.splitlines())) <= 110
    scores = read_scores(predictions / "scores.csv")
    assert scores.protocol.tolerance_mm == 2
    assert [row.value for row in scores.rows if row.metric == "dice"] == pytest.approx([8 / 9] * 6)


def test_a_missing_prediction_ends_with_exit_code_2_and_is_scored(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    predictions, references = folders
    (predictions / "p2.nii.gz").unlink()
    save(predictions / "p7.nii.gz", 3)
    out = predictions.parent / "out.csv"
    assert run_main("evaluate", predictions, "-r", references, "-o", out, "--run", "had/0", "-w", 1) == 2
    shown = capsys.readouterr().err
    assert "error: p2: no prediction: counted as failed" in shown
    assert "note: 1 predictions have no reference and are not scored: p7" in shown
    assert read_scores(out).failed == ("p2",)
    assert read_scores(out).runs == ("had/0",)


def test_a_bad_reference_ends_with_exit_code_3(folders: tuple[Path, Path]) -> None:
    predictions, references = folders
    save(references / "p2.nii.gz", 4, value=9)
    assert run_main("evaluate", predictions, "-r", references, "-w", 1, "--labels", "brats2021") == 3


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (("--both-empty", "nan"), "error: protocol: both_empty is 'nan' (choose perfect or undefined)"),
        (("--tolerance-mm", "-1"), "error: protocol: tolerance_mm is -1.0"),
        (("--labels", "brats1"), "error: unknown label convention brats1"),
        (("--output", "x.txt"), "error: x.txt: score rows are written as CSV"),
    ],
)
def test_what_can_be_got_wrong(
    option: tuple[str, str],
    words: str,
    folders: tuple[Path, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    predictions, references = folders
    assert run_main("evaluate", predictions, "-r", references, "-w", 1, *option) == 2
    assert words in capsys.readouterr().err
    assert not (predictions / "scores.csv").exists()


def test_help_and_module_import_nothing_heavy() -> None:
    code = (
        "import sys, modistill.cli.evaluate, modistill.cli.compare;"
        "print(sorted({'torch', 'scipy', 'monai', 'nibabel', 'numpy'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_a_real_case_with_itself(tmp_path: Path) -> None:
    if not REAL.is_dir():
        pytest.skip(f"no real data at {REAL}")
    case = "BraTS2021_00014"
    labels = read_labels(REAL / case / f"{case}_seg.nii.gz")
    write_volume(tmp_path / f"{case}.nii.gz", labels, dtype=np.uint8)
    (tmp_path / "ids.txt").write_text(case)
    assert run_main("evaluate", tmp_path, "-r", REAL, "--cases", tmp_path / "ids.txt", "-w", 1) == 0
    values = {(row.region, row.metric): row.value for row in read_scores(tmp_path / "scores.csv").rows}
    assert {values[region, "dice"] for region in ("WT", "TC", "ET")} == {1.0}
    assert {values[region, "hausdorff95_mm"] for region in ("WT", "TC", "ET")} == {0.0}
