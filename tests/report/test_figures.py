"""Pictures: the slice that is shown, the numbers below it, which way the patient lies, and that drawing works at all."""

from __future__ import annotations

import json

import numpy as np
import pytest

from modistill.data.naming import conventions
from modistill.data.nifti import write_volume
from modistill.data.volume import Volume
from modistill.errors import CaseError
from modistill.log import LogRow, write_log
from modistill.report.figures import CaseView, _axial, draw_predictions, figure_cases, plot_progress
from patients import intensities, write_patient

REGIONS = conventions["brats2021"].class_regions
PNG = b"\x89PNG\r\n\x1a\n"


def view(reference=None, **predictions):
    return CaseView("p1", intensities(0)["flair"], "flair", (1.0, 1.0, 2.0), reference, predictions, REGIONS)


def labels(*, slices, value=3):
    voxels = np.zeros((12, 10, 9), dtype=np.uint8)
    for index, size in slices.items():
        voxels[3 : 3 + size, 4:6, index] = value
    return voxels


def test_the_slice_with_most_tumour():
    assert view(labels(slices={2: 2, 5: 4})).slice == 5
    assert view(labels(slices={}), had_net=labels(slices={6: 1})).slice == 6
    assert view(None, had_net=labels(slices={3: 1})).slice == 3
    assert view(None, had_net=labels(slices={})).slice == 4


def test_dice_of_the_whole_volume():
    shown = view(labels(slices={2: 2, 5: 4}), half=labels(slices={5: 4}), edema=labels(slices={2: 2, 5: 4}, value=2))
    assert shown.scores("half") == pytest.approx({"WT": 0.8, "TC": 0.8, "ET": 0.8})  # 2*8 / (12 + 8)
    assert shown.scores("edema") == {"WT": 1.0, "TC": 0.0, "ET": 0.0}
    empty = view(labels(slices={}), had_net=labels(slices={}))
    assert np.isnan(list(empty.scores("had_net").values())).all()
    assert view(None, had_net=labels(slices={})).scores("had_net") == {}


def test_the_patients_right_is_on_the_left_and_the_face_on_top():
    volume = np.zeros((4, 3, 2))
    volume[3, 2, 1] = 1  # right, anterior, superior
    drawn = _axial(volume, 1)  # rows are drawn from below
    assert drawn.shape == (3, 4)
    assert np.argwhere(drawn).tolist() == [[2, 0]]


def test_pictures_of_everything_that_occurs(tmp_path):
    full = view(labels(slices={2: 2, 5: 4}), control=labels(slices={5: 4}), had_net=labels(slices={}))
    figure_cases([full, view(None, had_net=labels(slices={4: 12}))], tmp_path / "cases.png", caption="two cases")
    assert (tmp_path / "cases.png").read_bytes().startswith(PNG)


def test_predictions_in_other_numbers_and_folders(tmp_path):
    folder = write_patient(tmp_path / "in", "p1")
    truth = labels(slices={5: 4}, value=4)
    write_volume(folder / "p1_seg.nii.gz", Volume(truth, np.diag([1.0, 1, 2, 1])), dtype=np.uint8)
    for name, value in (("control", 4), ("had_net", 3)):
        write_volume(
            tmp_path / name / "p1.nii.gz", Volume(labels(slices={5: 4}, value=value), np.diag([1.0, 1, 2, 1])), dtype=np.uint8
        )
    (tmp_path / "had_net" / "p1.json").write_text(json.dumps({"convention": "msd_task01"}))
    folders = [tmp_path / "control", tmp_path / "had_net"]
    draw_predictions(tmp_path / "in", folders, tmp_path / "cases.png")
    assert (tmp_path / "cases.png").read_bytes().startswith(PNG)
    with pytest.raises(CaseError, match="p2: lacks images or a prediction"):
        draw_predictions(tmp_path / "in", folders, tmp_path / "cases.png", cases=["p2"])


def rows(epochs):
    names = {"train/student/segmentation": 1.0, "train/student/adversarial": 0.01, "train/critic/on_teacher": 0.2}
    train = [LogRow(epoch, epoch, 1.0, name, value / (epoch + 1)) for epoch in range(epochs) for name, value in names.items()]
    return train + [LogRow(epochs - 1, epochs, 1.0, f"validation/{name}", 0.5) for name in ("score", "dice/ET")]


@pytest.mark.parametrize("epochs", [1, 60])
def test_progress(tmp_path, epochs):
    write_log(tmp_path / "log.csv", rows(epochs))
    plot_progress(tmp_path / "log.csv", tmp_path / "progress.png")
    assert (tmp_path / "progress.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize("content", [[], None])
def test_no_picture_of_nothing(tmp_path, content):
    if content is not None:
        write_log(tmp_path / "log.csv", content)
    plot_progress(tmp_path / "log.csv", tmp_path / "progress.png")
    assert not (tmp_path / "progress.png").exists()


def test_colours_of_what_filtering_leaves():
    """Two voxels of four are wrong, and uncertain: at 50 nothing but hits is left."""
    from modistill.report.uncertainty import _kinds

    found, true = np.array([[[True, True, False, False]]]), np.array([[[True, False, True, False]]])
    uncertain = np.array([[[False, True, True, False]]])
    before, after = _kinds(found, true, np.zeros_like(found)), _kinds(found, true, uncertain)
    assert len({tuple(colour) for colour in before[0, 0]}) == 4  # hit, false alarm, miss, and nothing
    assert (after[0, 0, 1] == after[0, 0, 2]).all()
    assert (after[0, 0, 0] == before[0, 0, 0]).all()
    assert before[0, 0, 3, 3] == 0
