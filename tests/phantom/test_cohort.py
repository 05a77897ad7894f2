import json
from pathlib import Path

import numpy as np
import pytest

from modistill.data.folder import find_cases
from modistill.data.preparing import infer_convention
from modistill.errors import FileError, RecipeError
from modistill.phantom import cohort
from modistill.phantom.cohort import write_cohort
from modistill.phantom.patient import BODIES, phantom_case

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


BODY_SHAPE = (24, 20, 16)


@pytest.mark.parametrize("body", ["chest", "abdomen"])
def test_another_body_is_read_with_its_own_convention(tmp_path: Path, body: str) -> None:
    """Its label values alone would be taken for another convention, or for any; the folder says which."""
    (folder,) = write_cohort(tmp_path / "c", 1, body=body, seed=4, shape=BODY_SHAPE)
    record = json.loads((tmp_path / "c" / "phantom.json").read_text())
    assert (record["body"], record["convention"], record["modalities"]) == (body, body, list(BODIES[body].modalities))
    assert len(record["spacing_mm"]) == 3
    assert "no person was ever examined" in (tmp_path / "c" / "README.md").read_text()
    for place in (tmp_path / "c", folder):
        found = find_cases(place)
        assert not found.faults
        assert infer_convention(found.cases).name == body
        (files,) = found.cases
        case, made = files.read(), phantom_case(0, seed=4, shape=BODY_SHAPE, body=body)
        assert case.convention == body
        for name, volume in made.images.items():
            np.testing.assert_array_equal(case.images[name].voxels, volume.voxels)
            assert case.images[name].native.dtype == np.int16
        np.testing.assert_array_equal(case.labels.voxels, made.labels.voxels)


def test_a_damaged_or_foreign_record_says_nothing(tmp_path: Path) -> None:
    write_cohort(tmp_path, 1, body="chest", shape=BODY_SHAPE)
    for text in ("{", "[]", '{"convention": "leg"}', '{"convention": ["chest"]}'):
        (tmp_path / "phantom.json").write_text(text)
        assert find_cases(tmp_path).cases[0].convention is None


def test_a_brain_is_recorded_as_ever(tmp_path: Path) -> None:
    write_cohort(tmp_path, 1, seed=4, shape=SHAPE)
    assert list(json.loads((tmp_path / "phantom.json").read_text())) == [
        *("synthetic", "format", "seed", "shape", "modalities", "spacing_mm")
    ]


def test_a_chest_in_one_modality_is_the_same_chest_whoever_writes_it(tmp_path: Path) -> None:
    whole, ct, mr = (tmp_path / name for name in ("whole", "ct", "mr"))
    write_cohort(whole, 2, body="chest", shape=BODY_SHAPE, first=3, workers=2)
    write_cohort(ct, 2, body="chest", shape=BODY_SHAPE, first=3, without=["mr"])
    write_cohort(mr, 1, body="chest", shape=BODY_SHAPE, first=4, without=["ct"])
    for less, names in ((ct, ["Phantom_00003", "Phantom_00004"]), (mr, ["Phantom_00004"])):
        written = sorted(less.rglob("*.nii.gz"))
        assert sorted({path.parent.name for path in written}) == names
        assert {path.name.split("_")[-1] for path in written} == {f"{less.name}.nii.gz", "seg.nii.gz"}
        assert all(path.read_bytes() == (whole / path.relative_to(less)).read_bytes() for path in written)


def test_an_interrupted_chest_cohort_is_finished_by_the_same_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(index: int, **options: object) -> object:
        if index == 1:
            raise KeyboardInterrupt
        return phantom_case(index, **options)

    with monkeypatch.context() as patch:
        patch.setattr(cohort, "phantom_case", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_cohort(tmp_path, 2, body="chest", shape=BODY_SHAPE)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nii.gz")}
    assert {path.parent.name for path in before} == {"Phantom_00000"}
    write_cohort(tmp_path, 2, body="chest", shape=BODY_SHAPE)
    assert len(list(tmp_path.rglob("*_seg.nii.gz"))) == 2
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())


@pytest.mark.parametrize(("first", "second"), [("brain", "chest"), ("chest", "brain"), ("chest", "abdomen")])
def test_a_folder_of_another_body_is_refused(tmp_path: Path, first: str, second: str) -> None:
    write_cohort(tmp_path, 1, body=first, shape=BODY_SHAPE)
    with pytest.raises(RecipeError, match=f"made with body {first}"):
        write_cohort(tmp_path, 1, body=second, shape=BODY_SHAPE)


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
        ({"without": ["t1"], "body": "chest"}, "no modality t1 .there are ct, mr"),
        ({"without": ["mr", "ct"], "body": "chest"}, "every modality is left out"),
        ({"body": "leg"}, "no body leg .there are brain, chest, abdomen"),
        ({"shape": (24, 20, 8), "body": "abdomen"}, "too small for an abdomen"),
        ({"without": ["t1", "t1ce", "t2", "flair"]}, "every modality is left out"),
        ({"shape": (4, 4, 4)}, "too small for a head"),
        ({"first": -1}, "must not be negative"),
    ],
)
def test_impossible_requests_leave_no_folder(tmp_path: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        write_cohort(tmp_path / "c", **{"cases": 1, "shape": SHAPE, **options})
    assert not (tmp_path / "c").exists()
