"""The predictor: the right model for a patient, the right answer on the patient's own grid, and nothing read in vain."""

from __future__ import annotations

import itertools
import os

import nibabel
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modistill.data.case import Case
from modistill.data.folder import case_from_files, find_cases
from modistill.data.naming import LabelConvention, conventions
from modistill.data.nifti import write_volume
from modistill.data.preprocessing import Preprocessing
from modistill.data.volume import Volume
from modistill.errors import CaseError, FileError, LabelError, ModelError, RecipeError
from modistill.inference.model import Model
from modistill.inference.predictor import Predictor
from modistill.methods.supervised import Supervised
from patients import ALL, NEW_NAMES, STUDENT, Nearest, expected_classes, intensities, nearest_model, write_patient


def predictor(*models, **how):
    return Predictor(models or [nearest_model()], device="cpu", precision="32", **how)


def found(root):
    return find_cases(root).cases


# --------------------------------------------------------------------------- which model


@given(
    needs=st.lists(st.sets(st.sampled_from(ALL), min_size=1).map(sorted).map(tuple), min_size=1, max_size=4),
    available=st.sets(st.sampled_from(ALL), min_size=1),
)
def test_the_chosen_model_reads_most_of_what_is_there(needs, available):
    models = [nearest_model(str(index), names) for index, names in enumerate(needs)]
    fitting = [model for model in models if set(model.reads) <= available]
    if not fitting:
        with pytest.raises(CaseError, match="no model can serve that") as error:
            predictor(*models).choose(available, case="p1")
        for model in models:
            assert f"{model.name} needs {'+'.join(model.reads)}" in error.value.remedy
        return
    chosen = predictor(*models).choose(available)
    assert chosen in fitting
    assert chosen is next(model for model in fitting if len(model.reads) == max(len(one.reads) for one in fitting))


def test_why_names_the_others_and_what_they_lack():
    models = [nearest_model("teacher", ALL), nearest_model("had_net"), nearest_model("control")]
    chosen = predictor(*models).choose(STUDENT)
    assert predictor(*models).why(chosen, STUDENT) == (
        "had_net reads flair, t1, t2; teacher would need t1ce, which the case lacks; control fits too, but was given later"
    )
    assert "had_net fits too, but reads less of it" in predictor(*models).why(models[0], ALL)


def test_a_case_nobody_can_serve_is_told_what_the_models_need(tmp_path):
    write_patient(tmp_path, "p1", without=("flair", "t1ce"))
    with pytest.raises(CaseError) as error:
        predictor(nearest_model("teacher", ALL), nearest_model("had_net")).predict(found(tmp_path)[0])
    assert str(error.value) == (
        "p1: has t1, t2, lacks flair, t1ce: no model can serve that (teacher needs flair+t1ce+t1+t2; had_net needs flair+t1+t2)"
    )


# --------------------------------------------------------------------------- what is read


def damage(path, how):
    if how == "absent":
        path.unlink()
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:-40])
    elif how == "another grid":
        write_volume(path, Volume(np.random.default_rng(5).normal(size=(4, 5, 6))), dtype=np.float32)
    elif how == "other values":
        write_volume(path, Volume(intensities(99)["t1ce"], np.diag([1.0, 1, 2, 1])), dtype=np.int16)
    elif how == "a pipe":
        path.unlink()
        os.mkfifo(path)


@pytest.mark.parametrize("how", ["absent", "cut", "another grid", "other values", "a pipe"])
def test_a_student_never_opens_the_privileged_file(tmp_path, how):
    folder = write_patient(tmp_path, "p1")
    before = predictor().predict(found(tmp_path)[0])
    damage(folder / "p1_t1ce.nii.gz", how)
    after = predictor().predict(found(tmp_path)[0])
    assert np.array_equal(before.probabilities, after.probabilities)
    assert np.array_equal(before.labels.voxels, after.labels.voxels)


def test_with_the_teacher_at_hand_a_damaged_file_is_said_not_worked_around(tmp_path):
    damage(write_patient(tmp_path, "p1") / "p1_t1ce.nii.gz", "cut")
    with pytest.raises(FileError, match=r"p1_t1ce\.nii\.gz") as error:
        predictor(nearest_model("teacher", ALL), nearest_model()).predict(found(tmp_path)[0])
    assert error.value.case == "p1"


def test_a_reference_is_not_needed_and_not_read(tmp_path):
    (write_patient(tmp_path, "p1") / "p1_seg.nii.gz").write_bytes(b"damaged")
    predictor().predict(found(tmp_path)[0])


# --------------------------------------------------------------------------- what is answered


@pytest.mark.parametrize("window", [None, (6, 6, 6)])
def test_labels_are_those_worked_out_by_hand(tmp_path, window):
    write_patient(tmp_path, "p1", seed=3)
    answer = predictor(nearest_model(window=window)).predict(found(tmp_path)[0])
    classes = expected_classes(intensities(3)["flair"])
    assert set(np.unique(classes)) == {0, 1, 2}
    assert np.array_equal(answer.labels.voxels, np.array([0, 1, 2, 4])[classes])
    assert answer.labels.voxels.dtype == np.uint8
    np.testing.assert_allclose(answer.probabilities.sum(axis=0), 1, rtol=1e-5)
    assert np.array_equal(answer.probabilities.argmax(axis=0), classes)


def test_a_case_in_memory_gives_the_same_as_its_files(tmp_path):
    write_patient(tmp_path, "p1")
    files = found(tmp_path)[0]
    with_extra, from_files = predictor().predict(files.read()), predictor().predict(files)
    assert np.array_equal(with_extra.probabilities, from_files.probabilities)


def test_all_48_orientations_give_one_map_in_world_space(tmp_path):
    """Files whose axes are permuted and flipped: same labels in the patient, each on its own grid."""
    base = np.array([[1.0, 0, 0, -5], [0, 1.5, 0, 7], [0, 0, 2, 3], [0, 0, 0, 1]])
    images, classes = intensities(4), expected_classes(intensities(4)["flair"])
    for number, (axes, flips) in enumerate(
        itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3))
    ):
        turn = nibabel.orientations.inv_ornt_aff(np.column_stack([axes, flips]), images["t1"].shape)
        ornt = np.column_stack([axes, flips])
        folder = tmp_path / f"p{number}"
        folder.mkdir()
        for name in STUDENT:
            turned = nibabel.orientations.apply_orientation(images[name], ornt)
            nibabel.Nifti1Image(turned, base @ turn).to_filename(folder / f"p{number}_{name}.nii.gz")
        answer = predictor().predict(found(folder)[0])
        write_volume(tmp_path / "out.nii.gz", answer.labels, dtype=np.uint8)
        written = nibabel.load(tmp_path / "out.nii.gz")
        assert written.shape == turned.shape
        np.testing.assert_allclose(written.affine, base @ turn, atol=1e-5)
        expected = nibabel.orientations.apply_orientation(np.array([0, 1, 2, 4])[classes], ornt)
        assert np.array_equal(np.asarray(written.dataobj), expected), ornt


def test_a_resampled_and_padded_model_answers_on_the_native_grid(tmp_path):
    write_patient(tmp_path, "p1", shape=(20, 18, 13))
    answer = predictor(nearest_model(spacing_mm=(2.0, 2.0, 2.0), size=(24, 24, 24))).predict(found(tmp_path)[0])
    assert answer.labels.shape == (20, 18, 13)
    assert answer.probabilities.shape == (4, 20, 18, 13)
    assert not answer.labels.voxels[:2].any()
    np.testing.assert_allclose(answer.probabilities[:, 0, 0, 0], [1, 0, 0, 0])


def test_a_case_larger_than_the_model_reads_says_so(tmp_path):
    write_patient(tmp_path, "p1", shape=(40, 10, 9))
    answer = predictor(nearest_model(size=(24, 24, 24))).predict(found(tmp_path)[0])
    assert any("larger than the size" in notice for notice in answer.notices)


def test_a_patient_smaller_than_networks_read_is_padded_and_told(tmp_path):
    write_patient(tmp_path, "p1")
    model = Model("control", Supervised(STUDENT, width=2), Preprocessing(STUDENT, STUDENT), conventions["brats2023"])
    answer = predictor(model).predict(found(tmp_path)[0])
    assert answer.labels.shape == (12, 10, 9)
    assert answer.notices == ("only 8x7x7 voxels: padded with zeros for the network",)


def test_a_network_with_windows_and_mirrors_on_a_small_patient(tmp_path):
    write_patient(tmp_path, "p1", shape=(44, 37, 22))
    torch.manual_seed(0)
    model = Model(
        "control", Supervised(STUDENT, width=2), Preprocessing(STUDENT, STUDENT), conventions["brats2023"], (32, 32, 16)
    )
    told = []
    answer = predictor(model, mirror=(0,)).predict(found(tmp_path)[0], on_window=lambda *step: told.append(step))
    assert told == [(done, len(told)) for done in range(1, len(told) + 1)]
    assert len(told) > 1
    assert answer.probabilities.shape == (4, 44, 37, 22)
    assert np.isfinite(answer.probabilities).all()


def test_the_order_of_cases_changes_nothing(tmp_path):
    for index in range(3):
        write_patient(tmp_path, f"p{index}", seed=index)
    one, torch_state = predictor(), torch.get_rng_state()
    forwards = {files.id: one.predict(files).probabilities for files in found(tmp_path)}
    backwards = {files.id: one.predict(files).probabilities for files in reversed(found(tmp_path))}
    assert all(np.array_equal(forwards[case], backwards[case]) for case in forwards)
    assert torch.equal(torch_state, torch.get_rng_state())


def test_probabilities_of_regions_are_sums_over_their_classes(tmp_path):
    write_patient(tmp_path, "p1")
    answer = predictor().predict(found(tmp_path)[0])
    regions = {name: volume.voxels for name, volume in answer.region_probabilities().items()}
    assert list(regions) == ["WT", "TC", "ET"]
    np.testing.assert_allclose(regions["WT"], 1 - answer.probabilities[0], atol=1e-6)
    np.testing.assert_allclose(regions["TC"], answer.probabilities[1] + answer.probabilities[3], atol=1e-6)  # NCR and ET
    assert (regions["ET"] <= regions["TC"]).all()
    assert (regions["TC"] <= regions["WT"]).all()


# --------------------------------------------------------------------------- in which numbers


@pytest.mark.parametrize(("names", "convention"), [(None, "brats2021"), (NEW_NAMES, "brats2023")])
def test_the_numbers_are_those_of_the_input(tmp_path, names, convention):
    write_patient(tmp_path, "p1", **({} if names is None else {"names": names}))
    assert predictor(nearest_model(convention="msd_task01")).predict(found(tmp_path)[0]).convention.name == convention


def test_single_files_get_the_numbers_of_the_model_unless_others_are_asked_for(tmp_path):
    folder = write_patient(tmp_path, "p1")
    case = case_from_files({name: folder / f"p1_{name}.nii.gz" for name in STUDENT})
    assert predictor(nearest_model(convention="msd_task01")).predict(case).convention.name == "msd_task01"
    asked = predictor(nearest_model(convention="msd_task01"), labels="brats2021").predict(case)
    own = predictor(nearest_model(convention="msd_task01")).predict(case)
    swapped = np.array([0, 2, 1, 4])[own.labels.voxels]  # by name: MSD has ED 1, NCR 2, ET 3
    assert np.array_equal(asked.labels.voxels, swapped)


def test_classes_that_the_convention_of_the_input_lacks(tmp_path):
    write_patient(tmp_path, "p1")
    organs = LabelConvention("organs", {"liver": 1, "spleen": 2, "kidney": 3}, {"liver": ("liver",)})
    model = Model("organs", Nearest(), Preprocessing(STUDENT, STUDENT), organs)
    assert predictor(model).predict(found(tmp_path)[0]).convention is organs
    with pytest.raises(LabelError, match="brats2021 has no label for liver, spleen, kidney, which organs finds"):
        predictor(model, labels="brats2021")
    with pytest.raises(LabelError, match="unknown label convention 'brats'"):
        predictor(labels="brats")


# --------------------------------------------------------------------------- what is refused


def test_a_network_that_answers_nan_names_the_case():
    model = nearest_model()
    with torch.no_grad():
        model.method.network.bias[1] = float("nan")
    case = Case("p7", {name: Volume(voxels) for name, voxels in intensities(0).items()})
    with pytest.raises(ModelError, match="p7: the network's output is not finite"):
        predictor(model).predict(case)


def test_a_full_memory_is_a_message():
    model = nearest_model(window=(6, 6, 6))

    def full(_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    model.method.segment = full
    case = Case("p7", {name: Volume(voxels) for name, voxels in intensities(0).items()})
    with pytest.raises(ModelError, match="p7: 6x6x6 voxels do not fit into the memory of cpu"):
        predictor(model).predict(case)


def test_models_that_do_not_fit_together_are_refused():
    with pytest.raises(ModelError, match="reads flair, t1, t2, its preprocessing makes t1, t2, flair"):
        Model("x", Nearest(), Preprocessing(("t1", "t2", "flair"), STUDENT), conventions["brats2021"])
    with pytest.raises(RecipeError, match="different names"):
        predictor(nearest_model("a"), nearest_model("a"))
    with pytest.raises(RecipeError, match="got none"):
        Predictor([])
    with pytest.raises(RecipeError, match="no device"):
        Predictor([nearest_model()], device="gpu")
    wrong = Model("x", Nearest(classes=2), Preprocessing(STUDENT, STUDENT), conventions["brats2021"])
    case = Case("p7", {name: Volume(voxels) for name, voxels in intensities(0).items()})
    with pytest.raises(ModelError, match="gives 2 classes, its convention has 4"):
        predictor(wrong).predict(case)
