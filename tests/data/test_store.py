from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modistill.data import preparing
from modistill.data.folder import find_cases
from modistill.data.naming import conventions
from modistill.data.nifti import read_labels, write_volume
from modistill.data.preparing import infer_convention, prepare
from modistill.data.preprocessing import Preprocessing
from modistill.data.store import PreparedCohort
from modistill.errors import CaseError, FileError, LabelError, RecipeError
from tiny_cohort import ALL, AVAILABLE, make_case, prepare_folder, write_folder


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("raw"))


@pytest.fixture(scope="module")
def prepared(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> PreparedCohort:
    return prepare_folder(raw, tmp_path_factory.mktemp("prepared"), workers=2).cohort


@pytest.fixture
def copy(raw: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(raw, tmp_path / "raw"))


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.*")) if path.is_file()}


def test_what_is_stored_is_what_was_prepared_within_half_precision(raw: Path, prepared: PreparedCohort):
    preprocessing = Preprocessing(ALL, AVAILABLE)
    for case in find_cases(raw).cases:
        expected = preprocessing.apply(case.read())
        stored = prepared.read(case.id)
        bound = np.abs(expected.images) / 2048 + 1e-7
        assert (np.abs(stored.images.astype(np.float32) - expected.images) <= bound).all()
        np.testing.assert_array_equal(stored.labels, expected.labels)
        assert stored.geometry == expected.geometry
        assert stored.presence.all()


@given(st.tuples(*[st.integers(-6, 20)] * 3), st.tuples(*[st.integers(1, 25)] * 3))
def test_a_patch_is_the_part_of_the_whole_with_zeros_around(prepared: PreparedCohort, start, size):
    case = prepared.ids("train")[1]
    whole = prepared.read(case)
    images, labels = prepared.patch(case, start, size)
    box = tuple(slice(30 + first, 30 + first + p) for first, p in zip(start, size, strict=True))
    np.testing.assert_array_equal(images, np.pad(whole.images, ((0, 0), *[(30, 60)] * 3))[:, *box])
    np.testing.assert_array_equal(labels, np.pad(whole.labels, [(30, 60)] * 3)[box])


def test_the_plan_counts_training_cases_only(raw: Path, prepared: PreparedCohort):
    counts = np.zeros(4)
    for case in prepared.ids("train"):
        found = Preprocessing(ALL, AVAILABLE, convention="brats2021").apply(find_case(raw, case).read())
        counts += [np.sum(found.mask & (found.labels == 0)), *(np.sum(found.labels == index) for index in (1, 2, 3))]
    plan = prepared.plan
    assert plan.class_voxels == tuple(counts)
    np.testing.assert_allclose(plan.class_weights, counts[0] / counts, atol=1e-4)
    assert (plan.classes, plan.convention, plan.cases) == (("NCR", "ED", "ET"), "brats2021", 4)
    assert len(prepared.ids("test")) == 1
    assert plan.split == prepared.split.digest


def find_case(raw: Path, name: str):
    return next(case for case in find_cases(raw).cases if case.id == name)


def test_foreground_samples_are_voxels_of_their_class(prepared: PreparedCohort):
    entry, labels = prepared.entry(prepared.ids("train")[0]), prepared.read(prepared.ids("train")[0]).labels
    for index, sample in enumerate(entry.foreground, start=1):
        assert sample
        assert (labels.ravel()[list(sample)] == index).all()
    drawn = {int(labels[entry.draw_foreground(np.random.default_rng(seed))]) for seed in range(30)}
    assert drawn == {1, 2, 3}
    assert replace(entry, foreground=((), (), ())).draw_foreground(np.random.default_rng(0)) is None


def test_workers_change_nothing_and_a_second_run_keeps_everything(raw: Path, prepared: PreparedCohort, tmp_path: Path):
    seen: list[str] = []
    cohort = find_cases(raw)
    split = {"test": [cohort.cases[-1].id]}
    first = prepare(cohort, tmp_path / "p", Preprocessing(ALL, AVAILABLE), split, workers=1, progress=seen.append)
    assert content(tmp_path / "p") == content(prepared.folder)
    assert (first.kept, sorted(seen)) == (0, [case.id for case in cohort.cases])
    inodes = {path: path.stat().st_ino for path in (tmp_path / "p" / "cases").rglob("*.b2nd")}
    assert prepare_folder(raw, tmp_path / "p").kept == 5
    assert {path: path.stat().st_ino for path in (tmp_path / "p" / "cases").rglob("*.b2nd")} == inodes


def change_source(raw: Path, output: Path) -> None:
    path = raw / "BraTS21_001" / "BraTS21_001_seg.nii.gz"
    write_volume(path, read_labels(path), dtype=np.int16)


def flip_a_bit(raw: Path, output: Path) -> None:
    path = output / "cases" / "BraTS21_001" / "images.b2nd"
    path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1]))


def lose_a_file(raw: Path, output: Path) -> None:
    (output / "cases" / "BraTS21_001" / "case.json").unlink()


def cut_a_record(raw: Path, output: Path) -> None:
    (output / "cases" / "BraTS21_001" / "case.json").write_text("{}")


@pytest.mark.parametrize("harm", [change_source, flip_a_bit, lose_a_file, cut_a_record])
def test_only_what_changed_or_was_harmed_is_made_again(copy: Path, tmp_path: Path, harm: Callable[[Path, Path], None]):
    output = tmp_path / "p"
    prepare_folder(copy, output)
    harm(copy, output)
    again = prepare_folder(copy, output)
    assert again.kept == 4
    again.cohort.verify()
    assert not list((output / "cases").glob(".*"))


def test_an_interrupted_case_is_not_there_and_the_next_run_cleans_up(copy: Path, tmp_path: Path, monkeypatch):
    output, store = tmp_path / "p", preparing.store_case

    def interrupted(folder: Path, case: str, *rest, **how) -> None:
        store(folder, case, *rest, **how)
        if case == "BraTS21_002":
            shutil.copytree(folder, folder.with_name(".BraTS21_002.part.killed"))  # what a killed process leaves
            raise KeyboardInterrupt

    monkeypatch.setattr(preparing, "store_case", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare_folder(copy, output)
    assert sorted(path.name for path in (output / "cases").glob("[!.]*")) == ["BraTS21_000", "BraTS21_001"]
    with pytest.raises(FileError, match=r"no plan\.json"):
        PreparedCohort(output)
    monkeypatch.undo()
    assert prepare_folder(copy, output).kept == 2
    assert not list((output / "cases").glob(".*"))


def test_a_bad_case_is_reported_and_the_others_are_as_ever(copy: Path, prepared: PreparedCohort, tmp_path: Path):
    path = copy / "BraTS21_001" / "BraTS21_001_t1.nii.gz"
    path.write_bytes(path.read_bytes()[:-900])
    (copy / "BraTS21_002" / "BraTS21_002_seg.nii.gz").unlink()
    done = prepare_folder(copy, tmp_path / "p", split={"train": ["BraTS21_000", "BraTS21_001"], "test": 1.0})
    assert [fault.case for fault in done.faults] == ["BraTS21_001", "BraTS21_002"]
    assert "no reference labels" in done.faults[1].reason
    assert done.cohort.ids("train") == ("BraTS21_000",)
    assert done.cohort.ids("test") == ("BraTS21_003", "BraTS21_004")
    for name in ("images.b2nd", "labels.b2nd"):
        place = Path("cases", "BraTS21_003", name)
        assert (tmp_path / "p" / place).read_bytes() == (prepared.folder / place).read_bytes()


def test_without_the_privileged_file_a_case_is_prepared_to_the_same_bits(copy: Path, prepared: PreparedCohort, tmp_path: Path):
    (copy / "BraTS21_004" / "BraTS21_004_t1ce.nii.gz").unlink()
    without = prepare_folder(copy, tmp_path / "p").cohort.read("BraTS21_004")
    kept = [ALL.index(name) for name in AVAILABLE]
    np.testing.assert_array_equal(without.images[kept], prepared.read("BraTS21_004").images[kept])
    assert without.presence.tolist() == [True, False, True, True]


def test_a_class_no_training_case_has_is_refused_and_one_that_some_lack_is_noticed(copy: Path, tmp_path: Path):
    for index in range(4):
        path = copy / f"BraTS21_00{index}" / f"BraTS21_00{index}_seg.nii.gz"
        labels = read_labels(path)
        write_volume(path, labels.with_voxels(np.where(labels.voxels == 4, 0, labels.voxels)), dtype=np.uint8)
        if index == 2:
            done = prepare_folder(copy, tmp_path / "some")
            assert "3 of 4 training cases have no ET, such as BraTS21_000" in done.notices
    with pytest.raises(LabelError, match="no training case has the class ET of brats2021"):
        prepare_folder(copy, tmp_path / "none")
    assert not (tmp_path / "none" / "plan.json").exists()


def test_a_size_that_training_cases_exceed_is_refused_with_the_size_they_need(raw: Path, tmp_path: Path):
    with pytest.raises(CaseError, match=r"4 training cases do not fit the size; the largest needs 17x13x17 voxels"):
        prepare_folder(raw, tmp_path / "p", size=(8, 8, 8))


def test_a_folder_of_something_else_is_left_alone(raw: Path, prepared: PreparedCohort, tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FileError, match=r"not empty, it holds thesis\.tex"):
        prepare_folder(raw, tmp_path)
    with pytest.raises(FileError, match="was prepared with normalisation zscore, now it is hadnet"):
        prepare_folder(raw, prepared.folder, normalisation="hadnet")
    with pytest.raises(RecipeError, match=r"did you mean BraTS21_00\d\?"):
        prepare_folder(raw, tmp_path / "p", split={"test": ["BraTS21_009"]})
    assert not (tmp_path / "p").exists()


def test_damage_is_named(raw: Path, tmp_path: Path):
    cohort = prepare_folder(raw, tmp_path / "p").cohort
    with pytest.raises(CaseError, match="not among the 5 prepared cases"):
        cohort.read("nobody")
    path = tmp_path / "p" / "cases" / "BraTS21_000" / "labels.b2nd"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(FileError, match=r"BraTS21_000: .*labels\.b2nd: cannot be read"):
        cohort.read("BraTS21_000")
    with pytest.raises(FileError, match=r"labels\.b2nd: absent or changed"):
        cohort.verify()
    plan = tmp_path / "p" / "plan.json"
    for change, words in (({"format": 99}, "format 99, this version reads 1"), ({"split": "0"}, "about another split")):
        plan.write_text(json.dumps({**json.loads(plan.read_text()), **change}))
        with pytest.raises(FileError, match=words):
            PreparedCohort(tmp_path / "p")
        plan.write_text(json.dumps({**json.loads(plan.read_text()), "format": 1}))


def test_the_convention_is_inferred_from_as_few_label_maps_as_decide(raw: Path, copy: Path):
    cases = [replace(case, convention=None) for case in find_cases(raw).cases]
    assert infer_convention(cases).name == "brats2021"
    assert infer_convention([replace(case, convention="brats2023") for case in cases]) == conventions["brats2021"]
    for case in find_cases(copy).cases:
        labels = read_labels(case.labels)
        write_volume(case.labels, labels.with_voxels(np.where(labels.voxels == 4, 3, labels.voxels)), dtype=np.uint8)
    ambiguous = [replace(case, convention=None) for case in find_cases(copy).cases]
    with pytest.raises(LabelError, match="say which with --labels"):
        infer_convention(ambiguous)
    assert infer_convention([replace(case, convention="msd_task01") for case in ambiguous]).name == "msd_task01"
    with pytest.raises(LabelError, match="no case has reference labels"):
        infer_convention([replace(case, labels=None) for case in cases])


def test_grades_are_taken_from_folders(tmp_path: Path):
    for grade in ("HGG", "LGG"):
        write_folder(tmp_path / grade, cases=1)
        os.rename(tmp_path / grade / "BraTS21_000", tmp_path / grade / f"{grade}_1")
        for path in (tmp_path / grade / f"{grade}_1").iterdir():
            path.rename(path.with_name(path.name.replace("BraTS21_000", f"{grade}_1")))
    assert preparing._grades(find_cases(tmp_path).cases) == {"HGG_1": "HGG", "LGG_1": "LGG"}


def test_real_patients_have_the_class_weights_of_the_field(tmp_path: Path):
    folder = Path(__file__).resolve().parents[3] / "shared" / "data" / "brats2021"
    if not folder.is_dir():
        pytest.skip(f"no real patients at {folder}")
    cohort = find_cases(folder)
    two = replace(cohort, cases=cohort.cases[:2])
    plan = prepare(two, tmp_path / "p", Preprocessing(ALL, AVAILABLE), {"train": 1.0}, workers=1).cohort.plan
    assert plan.convention == "brats2021"
    assert all(5 < weight < 400 for weight in plan.class_weights[1:])  # HAD-Net has 59, 23 and 72 for BraTS 2019
    assert all(100 < n < 200 for n in plan.shape)


def test_made_in_memory_a_case_needs_no_file():
    assert Preprocessing(ALL, AVAILABLE).apply(make_case()).labels.max() == 3
