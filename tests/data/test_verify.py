"""`inspect` as the validator of everything: each row of faults is found, by case and file, and no fault hides another."""

import importlib
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from modistill.data.cohort import CaseFiles, Cohort, Fault, ImageSource
from modistill.data.folder import find_cases
from modistill.data.nifti import write_volume
from modistill.data.verify import CaseRow, inspect_case, inspect_cohort
from modistill.data.volume import Volume
from modistill.errors import LabelError
from modistill.files import write_json

SHAPE = (12, 11, 10)
GRID = np.array([[-1.0, 0, 0, 5], [0, -1, 0, 6], [0, 0, 2, 7], [0, 0, 0, 1]])  # L, P, S on disk
WORDS = ("t1", "t1ce", "t2", "flair")


def image(path, data=None, affine=GRID, seed=0, dtype=np.int16):
    """An image along L-P-S axes, written by nibabel: what is verified does not come from what verifies."""
    data = np.random.default_rng(seed).integers(1, 500, SHAPE) if data is None else data
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.Nifti1Image(np.asarray(data, dtype=dtype), affine).to_filename(path)


def label_map(*values):
    data = np.zeros(SHAPE)
    for index, value in enumerate(values):
        data[index, :5, :5] = value
    return data


def case(root, name="p", labels=(1, 2, 4), words=WORDS):
    for seed, word in enumerate(words):
        image(root / name / f"{name}_{word}.nii.gz", seed=seed)
    if labels is not None:
        image(root / name / f"{name}_seg.nii.gz", label_map(*labels), dtype=np.float32)
    return root / name


def inspected(root, **options):
    return inspect_cohort(find_cases(root), workers=1, **options)


def test_a_clean_case(tmp_path):
    case(tmp_path)
    result = inspected(tmp_path)
    (row,) = result.rows
    assert (row.id, row.modalities, row.shape, row.spacing_mm, row.orientation) == ("p", WORDS, SHAPE, (1, 1, 2), "LPS")
    assert row.labels == {0: 12 * 110 - 75, 1: 25, 2: 25, 4: 25}
    assert (result.all_faults, result.convention, result.exit_code, result.usable) == ((), "brats2021", 0, ("p",))


def turned(degrees):
    angle = np.radians(degrees)
    affine = GRID.copy()
    affine[:2, :2] = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ GRID[:2, :2]
    return affine


def shifted(mm):
    affine = GRID.copy()
    affine[1, 3] += mm
    return affine


def flipped():
    affine = GRID.copy()
    affine[0] *= -1
    return affine


NOISE = np.random.default_rng(7).integers(1, 500, SHAPE)
with_spike = NOISE.astype(float)
with_spike[6, 6, 6] = 3e5
with_nan = NOISE.astype(float)
with_nan[:2] = np.nan

# name -> how the file of one modality is spoilt, severity, words of the reason
IMAGES = {
    "all zero": (dict(data=np.zeros(SHAPE)), "error", "empty, all voxels are 0"),
    "constant": (dict(data=np.full(SHAPE, 9)), "error", "constant, all voxels are 9"),
    "NaN": (dict(data=with_nan, dtype=np.float32), "error", "220 NaN"),
    "shape": (dict(data=NOISE[1:]), "error", "shape 11x11x10"),
    "spacing": (dict(affine=GRID @ np.diag([1, 1, 1.1, 1])), "error", "spacing 1x1x2.2 mm"),
    "30 mm off": (dict(affine=shifted(30)), "error", "shifted against t1: corners lie up to 30.0 mm apart"),
    "0.4 mm off": (dict(affine=shifted(0.4)), "error", "0.4 mm apart, 0.1 mm allowed"),
    "0.05 mm off": (dict(affine=shifted(0.05)), "warning", "0.050 mm off t1, tolerated"),
    "flipped header": (dict(affine=flipped()), "error", "shifted against t1|turned or flipped against t1"),
    "rotated": (dict(affine=turned(10)), "error", "turned or flipped against t1"),
    "4-D": (dict(data=np.stack([NOISE, NOISE], axis=-1)), "error", "holds 2 volumes"),
    "2-D": (dict(data=NOISE[0]), "error", "2-D image"),
    "extreme voxel": (dict(data=with_spike, dtype=np.float32), "warning", "1 extreme voxels up to 300000"),
    "copy of t1": (dict(seed=0), "warning", "t1 and t2 hold the same voxels"),
}


@pytest.mark.parametrize("fault", IMAGES)
def test_every_fault_of_an_image_is_found(tmp_path, fault):
    spoilt, severity, reason = IMAGES[fault]
    folder = case(tmp_path)
    image(folder / "p_t2.nii.gz", **{"seed": 9, **spoilt})
    (found,) = inspected(tmp_path).all_faults
    assert (found.case, Path(found.file).name, found.severity) == ("p", "p_t2.nii.gz", severity)
    assert any(part in found.reason for part in reason.split("|"))


LABELS = {
    "255": (label_map(1, 2, 255), "error", "outside every known convention: 255 (25 voxels)"),
    "negative": (label_map(1, -1), "error", "-1 (25 voxels)"),
    "fractions": (label_map(1, 2.5), "error", "fractions such as 2.5"),
    "NaN": (label_map(1, np.nan), "error", "25 voxels of the label map are NaN"),
    "an image": (NOISE, "error", "values more"),
    "shape": (label_map(1, 2)[1:], "error", "the label map has shape 11x11x10"),
    "one-hot": (np.stack([label_map(1), label_map(0)], axis=-1), "error", "holds 2 volumes"),
    "only background": (label_map(0), "notice", "only background"),
    "no background": (np.ones(SHAPE), "warning", "no background"),
}


@pytest.mark.parametrize("fault", LABELS)
def test_every_fault_of_a_label_map_is_found(tmp_path, fault):
    data, severity, reason = LABELS[fault]
    folder = case(tmp_path)
    image(folder / "p_seg.nii.gz", data, dtype=np.float32)
    (found,) = [fault for fault in inspected(tmp_path).all_faults if fault.case]
    assert (Path(found.file).name, found.severity) == ("p_seg.nii.gz", severity)
    assert reason in found.reason


@pytest.mark.parametrize("affine", [flipped(), shifted(20)])
def test_label_map_elsewhere_than_the_image(tmp_path, affine):
    folder = case(tmp_path)
    image(folder / "p_seg.nii.gz", label_map(1, 2, 4), affine)
    (found,) = inspected(tmp_path).all_faults
    assert "the label map is" in found.reason
    assert found.severity == "error"


def test_the_channels_of_a_4d_file(tmp_path):
    image(tmp_path / "four.nii.gz", np.stack([NOISE, NOISE * 2, np.zeros(SHAPE)], axis=-1))
    sources = {name: ImageSource(tmp_path / "four.nii.gz", n) for n, name in enumerate(("flair", "t1", "t2"))}
    row = inspect_case(CaseFiles("p", sources))
    assert row.modalities == ("flair", "t1")
    assert [fault.reason for fault in row.faults] == ["t2 is empty, all voxels are 0"]


def test_no_fault_hides_another(tmp_path):
    folder = case(tmp_path)
    (folder / "p_t1.nii.gz").write_bytes(b"")
    image(folder / "p_t1ce.nii.gz", np.zeros(SHAPE))
    image(folder / "p_flair.nii.gz", affine=shifted(30), seed=3)
    image(folder / "p_seg.nii.gz", label_map(7), affine=shifted(30))
    result = inspected(tmp_path)
    assert len([fault for fault in result.all_faults if fault.severity == "error"]) == 5
    assert result.rows[0].modalities == ("t2", "flair")
    assert result.exit_code == 2


def test_thin_volume_and_unknown_orientation_are_warned_about(tmp_path):
    path = tmp_path / "p" / "t1.nii"
    image(path, NOISE[:, :, :3])
    content = bytearray(path.read_bytes())
    content[252:256] = bytes(4)  # qform_code and sform_code
    path.write_bytes(content)
    reasons = [fault.reason for fault in inspect_case(CaseFiles("p", {"t1": ImageSource(path)})).faults]
    assert any("thin volume of 12x11x3" in reason for reason in reasons)
    assert any("orientation unknown" in reason for reason in reasons)


def test_one_bad_case_among_many(tmp_path):
    for name in ("a", "b", "c"):
        case(tmp_path, name)
    (tmp_path / "b" / "b_t2.nii.gz").write_bytes(b"")
    (tmp_path / "d").mkdir()
    result = inspected(tmp_path)
    assert [row.id for row in result.rows] == ["a", "b", "c", "d"]
    assert result.usable == ("a", "c")
    assert result.exit_code == 3
    alone = inspect_case(next(one for one in find_cases(tmp_path).cases if one.id == "c"))
    assert result.rows[2] == alone


# --------------------------------------------------------------------------- conventions


def test_another_value_for_the_enhancing_part_is_an_error_of_that_case(tmp_path):
    for name in ("a", "b", "c"):
        case(tmp_path, name, labels=(1, 2, 3) if name == "b" else (1, 2, 4))
    result = inspected(tmp_path)
    (found,) = result.all_faults
    assert (found.case, found.severity, result.convention) == ("b", "error", "brats2021")
    assert "outside brats2021: 3 (25 voxels)" in found.reason
    assert "fit brats2023" in found.remedy


def test_old_names_with_new_labels_follow_the_labels_where_they_decide(tmp_path):
    for name in ("a", "b"):
        case(tmp_path, name, labels=(1, 2, 3))
    result = inspected(tmp_path)
    assert result.convention is None
    assert "fit brats2023, brats2024, msd_task01" in result.faults[0].reason
    assert result.faults[0].remedy == "say which with --labels"
    stated = inspected(tmp_path, convention="brats2023")
    assert (stated.convention, stated.all_faults) == ("brats2023", ())
    with pytest.raises(LabelError, match="unknown label convention"):
        inspected(tmp_path, convention="brats1999")


def test_two_conventions_in_one_folder_without_a_hint_are_warned_about(tmp_path):
    for name, labels in (("a", (1, 2, 3)), ("b", (1, 2, 4)), ("c", (1, 2, 3))):
        case(tmp_path, name, labels=labels, words=("t1", "t2"))
    result = inspected(tmp_path)
    assert result.convention == "brats2024"
    assert "1 alone say otherwise, as ['b']" in result.faults[0].reason


def test_without_labels_there_is_no_convention(tmp_path):
    case(tmp_path, labels=None)
    result = inspected(tmp_path)
    assert (result.convention, result.all_faults, result.rows[0].labels) == (None, (), None)


# --------------------------------------------------------------------------- processes


DYING = """
import os
from modistill.data.verify import CaseRow

def dies_on_b(files):
    if files.id == "b":
        os._exit(9)
    return CaseRow(files.id)
"""


def fails_on_b(files):
    if files.id == "b":
        raise RuntimeError("a bug")
    return CaseRow(files.id)


def cohort_of(*names):
    return Cohort(Path("/data"), "folders", tuple(CaseFiles(name, {}) for name in names))


def test_a_dead_worker_costs_its_case_only(tmp_path, monkeypatch):
    (tmp_path / "dying_worker.py").write_text(DYING)  # the other process must be able to import it
    monkeypatch.syspath_prepend(tmp_path)
    dies_on_b = importlib.import_module("dying_worker").dies_on_b
    done = []
    result = inspect_cohort(cohort_of("a", "b", "c"), workers=2, inspect=dies_on_b, progress=done.append)
    assert result.usable == ("a", "c")
    assert "died" in result.all_faults[0].reason
    assert sorted(done) == ["a", "b", "c"]


def test_a_bug_costs_its_case_only():
    result = inspect_cohort(cohort_of("a", "b", "c"), workers=1, inspect=fails_on_b)
    assert result.usable == ("a", "c")
    assert "unexpected RuntimeError: a bug" in result.all_faults[0].reason


def test_processes_and_none_give_the_same(tmp_path):
    for name in ("a", "b", "c"):
        case(tmp_path, name)
    (tmp_path / "b" / "b_t2.nii.gz").write_bytes(b"")
    cohort = find_cases(tmp_path)
    assert inspect_cohort(cohort, workers=2) == inspect_cohort(cohort, workers=1)


def test_everything_goes_into_json(tmp_path):
    case(tmp_path, "a")
    (tmp_path / "a" / "a_t2.nii.gz").write_bytes(b"")
    write_json(tmp_path / "out.json", inspected(tmp_path).to_json())
    content = json.loads((tmp_path / "out.json").read_text())
    (row,) = content["cases"]
    assert (row["id"], row["usable"], row["labels"]) == ("a", False, {"0": 1245, "1": 25, "2": 25, "4": 25})
    assert row["faults"][0]["reason"] == "empty file (0 bytes)"


def test_severities_of_the_layout_are_kept(tmp_path):
    write_volume(tmp_path / "a" / "t1.nii", Volume(NOISE), dtype=np.int16)
    write_volume(tmp_path / "a" / "x_ph4.nii", Volume(NOISE), dtype=np.int16)
    (fault,) = inspected(tmp_path).all_faults
    assert isinstance(fault, Fault)
    assert fault.severity == "warning"
