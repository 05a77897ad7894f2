import json
from pathlib import Path

import numpy as np
import pytest

from modistill.data.folder import find_cases
from modistill.errors import FileError, RecipeError
from modistill.phantom import cohort
from modistill.phantom.cohort import write_cohort
from modistill.phantom.patient import phantom_case

SHAPE = (24, 28, 24)


def test_what_is_written_is_read_as_brats(tmp_path: Path) -> None:
    folders = write_cohort(tmp_path / "c", 2, seed=4, shape=SHAPE)
    assert [folder.name for folder in folders] == ["Phantom_00000", "Phantom_00001"]
    found = find_cases(tmp_path / "c")
    assert not found.faults
    for index, files in enumerate(found.cases):
        case, made = files.read(), phantom_case(index, seed=4, shape=SHAPE)
        assert case.id == made.id
        for name, volume in made.images.items():
            np.testing.assert_array_equal(case.images[name].voxels, volume.voxels)
            np.testing.assert_allclose(case.images[name].affine, volume.affine, atol=1e-4)
            assert case.images[name].native.dtype == np.int16
            np.testing.assert_allclose(case.images[name].native.affine, volume.native.affine, atol=1e-4)
        np.testing.assert_array_equal(case.labels.voxels, made.labels.voxels)


def test_the_folder_says_that_it_is_synthetic(tmp_path: Path) -> None:
    write_cohort(tmp_path, 1, seed=4, shape=SHAPE, without=["t1ce"])
    record = json.loads((tmp_path / "phantom.json").read_text())
    assert record["synthetic"] is True
    assert (record["seed"], record["shape"], record["modalities"]) == (4, list(SHAPE), ["t1", "t2", "flair"])
    assert "no person was ever examined" in (tmp_path / "README.md").read_text()
    assert not list(tmp_path.rglob("*t1ce*"))


def test_leaving_a_sequence_out_changes_nothing_else(tmp_path: Path) -> None:
    whole, less = tmp_path / "whole", tmp_path / "less"
    write_cohort(whole, 1, shape=SHAPE)
    write_cohort(less, 1, shape=SHAPE, without=["t1ce"])
    for path in less.rglob("*.nii.gz"):
        assert path.read_bytes() == (whole / path.relative_to(less)).read_bytes()


def test_an_interrupted_cohort_is_finished_and_its_cases_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def interrupted(index: int, **options: object) -> object:
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(index)
        return phantom_case(index, **options)

    with monkeypatch.context() as patch:
        patch.setattr(cohort, "phantom_case", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_cohort(tmp_path, 3, shape=SHAPE)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["Phantom_00000", "Phantom_00001"]
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nii.gz")}
    seen: list[str] = []
    write_cohort(tmp_path, 3, shape=SHAPE, progress=seen.append)
    assert seen == ["Phantom_00000", "Phantom_00001", "Phantom_00002"]
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())


def test_a_case_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, *_: object, **__: object) -> None:
        raise FileError("cannot be written: No space left on device", file=path)

    monkeypatch.setattr("modistill.data.nifti.write_volume", full)
    with pytest.raises(FileError, match="No space left"):
        write_cohort(tmp_path, 1, shape=SHAPE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "phantom.json"]


def test_several_processes_write_the_same_files(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    write_cohort(one, 3, shape=SHAPE, first=5, without=["t1", "t1ce"])
    write_cohort(two, 3, shape=SHAPE, first=5, without=["t1", "t1ce"], workers=2)
    files = sorted(path.relative_to(one) for path in one.rglob("*.*"))
    assert files == sorted(path.relative_to(two) for path in two.rglob("*.*"))
    assert all((one / path).read_bytes() == (two / path).read_bytes() for path in files)


def test_a_folder_made_otherwise_is_refused(tmp_path: Path) -> None:
    write_cohort(tmp_path, 1, seed=1, shape=SHAPE)
    with pytest.raises(RecipeError, match="made with seed 1"):
        write_cohort(tmp_path, 1, seed=2, shape=SHAPE)


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(FileError, match="holds other files"):
        write_cohort(tmp_path, 1, shape=SHAPE)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cases": 0}, "0 cases"),
        ({"workers": 0}, "0 workers"),
        ({"without": ["pet"]}, "no modality pet"),
        ({"without": ["t1", "t1ce", "t2", "flair"]}, "every modality is left out"),
        ({"shape": (4, 4, 4)}, "too small for a head"),
        ({"first": -1}, "must not be negative"),
    ],
)
def test_impossible_requests_leave_no_folder(tmp_path: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        write_cohort(tmp_path / "c", **{"cases": 1, "shape": SHAPE, **options})
    assert not (tmp_path / "c").exists()
