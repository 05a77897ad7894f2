from pathlib import Path

import pytest
from typer.testing import CliRunner

from modistill.cli.app import app
from modistill.errors import RecipeError


def run(*words: str, out: Path) -> str:
    result = CliRunner().invoke(app, ["phantom", "-o", str(out), *words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_writes_patients_without_a_sequence_however_it_is_spelt(tmp_path: Path) -> None:
    text = run("--cases", "2", "--shape", "24", "28", "24", "--first", "3", "--without", "T1Gd", "--workers", "1", out=tmp_path)
    assert "2 synthetic patients of 24x28x24 voxels" in text
    names = sorted(path.name for path in tmp_path.rglob("*.nii.gz"))
    expected = [f"Phantom_0000{case}_{name}.nii.gz" for case in (3, 4) for name in ("flair", "seg", "t1", "t2")]
    assert names == expected


def test_a_bad_request_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no modality pet"):
        run("--without", "pet", out=tmp_path / "c")
    assert not (tmp_path / "c").exists()
