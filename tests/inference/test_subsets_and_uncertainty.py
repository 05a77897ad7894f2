"""Whatever a patient has, several answers to one question, and how sure they are."""

from __future__ import annotations

import json
import os

import nibabel
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from command_line import run_main
from modistill.data.case import Case
from modistill.data.folder import find_cases
from modistill.data.naming import conventions
from modistill.data.nifti import read_volume
from modistill.data.preprocessing import Preprocessing
from modistill.data.volume import Volume
from modistill.errors import CaseError, ModelError
from modistill.inference.cohort import predict_cohort
from modistill.inference.model import Model
from modistill.inference.outputs import OutputFolder
from modistill.inference.predictor import Predictor
from modistill.methods.base import AnySubsetMethod
from modistill.methods.modality_dropout import ModalityDropout
from modistill.subsets import all_subsets
from modistill.weights import save_weights
from patients import ALL, STUDENT, Nearest, expected_classes, intensities, nearest_model, write_patient

MAPS = {"WT", "TC", "ET", "entropy", "mutual_information"}


class NearestOfAny(AnySubsetMethod):
    """`Nearest`, by the first modality that a patient has."""

    deployed = "network"

    def __init__(self, modalities=ALL):
        super().__init__()
        self.reads, self.players = {"network": modalities}, {}
        self.network = Nearest(("first",)).network

    def losses(self, batch):
        raise NotImplementedError

    def segment_subset(self, images, presence):
        first = presence.int().argmax(1)
        return self.network(images[torch.arange(len(images)), first].unsqueeze(1))


def any_model(name="any", modalities=ALL, **how):
    available = tuple(modality for modality in modalities if modality != "t1ce") or modalities
    return Model(name, NearestOfAny(modalities), Preprocessing(modalities, available), conventions["brats2023"], **how)


def dropout_model(name="dropout", feature_dropout=0.5, **how):
    torch.manual_seed(0)
    method = ModalityDropout(ALL, width=2, feature_dropout=feature_dropout)
    return Model(name, method, Preprocessing(ALL, STUDENT), conventions["brats2023"], **how)


def blunt_model(name, sharpness, **how):
    """`Nearest` with flatter probabilities."""
    model = nearest_model(name, **how)
    with torch.no_grad():
        model.method.network.weight *= sharpness
        model.method.network.bias *= sharpness
    return model


def predictor(*models, **how):
    return Predictor(models or [any_model()], device="cpu", precision="32", **how)


def predict(root, out, *models, if_not_empty="refuse", **how):
    with OutputFolder(out, if_not_empty).opened() as folder:
        rows = list(predict_cohort(predictor(*models, **how), find_cases(root).cases, folder))
    return {row.case: row.status for row in rows}


def by_hand(image, sharpness=1.0):
    """Class probabilities of `Nearest`, without torch: proportional to exp(-10 (z - class)^2); background outside the brain."""
    inside = image != 0
    z = (image[inside] - image[inside].mean()) / image[inside].std()
    likely = np.exp(-10 * sharpness * (z - np.arange(4)[:, None]) ** 2)
    p = np.zeros((4, *image.shape))
    p[0] = 1
    p[:, inside] = likely / likely.sum(axis=0)
    return p


def entropy(p):
    """In nats, over the first axis."""
    return -(p * np.log(np.maximum(p, 1e-300))).sum(axis=0)


def memory_case(seed=3, names=ALL, **others):
    return Case("p1", {name: Volume(image) for name, image in (intensities(seed) | others).items() if name in names})


# --------------------------------------------------------------------------- which model


@given(
    kinds=st.lists(
        st.tuples(st.booleans(), st.sets(st.sampled_from(ALL), min_size=1).map(sorted).map(tuple)), min_size=1, max_size=4
    ),
    has=st.sets(st.sampled_from(ALL), min_size=1),
    only=st.none() | st.sets(st.sampled_from(ALL)),
)
def test_the_chosen_model_uses_most_of_what_may_be_used(kinds, has, only):
    models = [
        any_model(str(index), names) if flexible else nearest_model(str(index), names)
        for index, (flexible, names) in enumerate(kinds)
    ]
    allowed = has if only is None else has & only
    uses = [len(allowed & set(names)) if flexible or set(names) <= allowed else 0 for flexible, names in kinds]
    assert [len(model.uses(allowed)) for model in models] == uses
    if not any(uses):
        with pytest.raises(CaseError, match="no model can serve that"):
            predictor(*models, only=only).choose(has)
        return
    assert predictor(*models, only=only).choose(has) is models[uses.index(max(uses))]


def test_why_one_of_any_subset_and_what_it_asks_of_a_patient():
    fixed, flexible = nearest_model("had_net"), any_model("any")
    both = predictor(fixed, flexible)
    assert flexible.uses(["t2", "flair", "ct"]) == ("flair", "t2")
    assert (fixed.demand(), flexible.demand()) == ("needs flair+t1+t2", "needs one or more of flair+t1ce+t1+t2")
    assert both.choose(("t2", "flair")) is flexible
    assert both.why(flexible, ("t2", "flair")) == "any reads flair, t2; had_net would need t1, which the case lacks"
    assert both.why(fixed, STUDENT) == "had_net reads flair, t1, t2; any fits too, but was given later"
    assert both.why(flexible, ALL) == "any reads flair, t1ce, t1, t2; had_net fits too, but reads less of it"
    with pytest.raises(CaseError) as error:
        both.choose(("ct",), case="p1")
    assert str(error.value) == (
        "p1: has ct, lacks flair, t1, t1ce, t2: no model can serve that "
        "(had_net needs flair+t1+t2; any needs one or more of flair+t1ce+t1+t2)"
    )
    with pytest.raises(CaseError, match="has nothing, lacks"):
        predictor(flexible, only=("t1",)).choose(("t2", "flair"))


@pytest.mark.parametrize("subset", all_subsets(ALL), ids="+".join)
def test_a_case_of_any_subset_by_hand(tmp_path, subset):
    write_patient(tmp_path, "p1", seed=3, without=tuple(name for name in ALL if name not in subset))
    answer = predictor().predict(find_cases(tmp_path).cases[0])
    assert answer.available == subset
    assert np.array_equal(answer.probabilities.argmax(axis=0), expected_classes(intensities(3)[subset[0]]))


def test_what_may_not_be_used_is_never_opened(tmp_path):
    folder = write_patient(tmp_path, "p1", seed=3)
    before = predictor(only=("t1", "t2")).predict(find_cases(tmp_path).cases[0])
    (folder / "p1_flair.nii.gz").write_bytes(b"damaged")
    (folder / "p1_t1ce.nii.gz").unlink()
    os.mkfifo(folder / "p1_t1ce.nii.gz")
    after = predictor(only=("t1", "t2")).predict(find_cases(tmp_path).cases[0])
    assert before.available == after.available == ("t1", "t2")
    assert np.array_equal(before.probabilities, after.probabilities)


def test_the_brain_mask_of_a_subset_rests_on_what_there_is():
    """Mask and z-scores of a patient with t1ce alone, though preprocessing prefers the others; of t1 and t1ce, t1 alone."""
    t1ce = intensities(5)["t1ce"]
    t1ce[:5] = 0
    for names, image in ((("t1ce",), t1ce), (("t1ce", "t1"), intensities(3)["t1"])):
        answer = predictor(uncertainty=True).predict(memory_case(names=names, t1ce=t1ce))
        assert np.array_equal(answer.brain.voxels, (image != 0).astype(np.uint8)), names
        assert answer.brain.voxels.dtype == np.uint8


# --------------------------------------------------------------------------- several answers


def test_an_ensemble_is_the_mean_of_its_members_by_hand():
    a, b = blunt_model("a", 1.0), blunt_model("b", 0.1)
    flair = intensities(3)["flair"]
    mean = (by_hand(flair) + by_hand(flair, 0.1)) / 2
    answer = predictor(a, b, ensemble=True, uncertainty=True).predict(memory_case())
    np.testing.assert_allclose(answer.probabilities, mean, atol=1e-5)
    assert answer.reason.endswith("; averaged over a, b")
    expected = (entropy(by_hand(flair)) + entropy(by_hand(flair, 0.1))) / 2
    disagreement = 100 * (entropy(mean) - expected) / np.log(4)
    np.testing.assert_allclose(answer.uncertainty["mutual_information"].voxels, disagreement, atol=1e-3)
    assert disagreement.max() > 1
    alone = predictor(a, b).predict(memory_case())
    np.testing.assert_allclose(alone.probabilities, by_hand(flair), atol=1e-5)


@pytest.mark.parametrize(
    "stranger",
    [
        nearest_model("b", normalisation="hadnet"),
        nearest_model("b", window=(8, 8, 8)),
        nearest_model("b", convention="msd_task01"),
        nearest_model("b", ("flair", "t2")),
    ],
)
def test_members_that_differ_in_more_than_weights_are_not_averaged(stranger):
    chosen = nearest_model("a")
    answer = predictor(chosen, stranger, ensemble=True).predict(memory_case())
    assert "averaged over" not in answer.reason
    np.testing.assert_array_equal(answer.probabilities, predictor(chosen).predict(memory_case()).probabilities)


def test_an_ensemble_of_any_subset_averages_what_the_patient_has():
    members = [dropout_model("a"), dropout_model("b")]
    with torch.no_grad():
        for parameter in members[1].method.parameters():
            parameter.mul_(1.5)
    case = memory_case(names=("t1", "t2"))
    single = [predictor(member).predict(case).probabilities for member in members]
    assert not np.allclose(*single)
    both = predictor(*members, ensemble=True).predict(case).probabilities
    np.testing.assert_allclose(both, sum(single) / 2, atol=1e-6)


def test_a_model_that_cannot_serve_a_patient_is_no_member():
    """Alike in everything, but it needs all four; with all four it is one."""
    flexible, fixed = any_model("any"), blunt_model("fixed", 0.1, modalities=ALL)
    both, case = predictor(flexible, fixed, ensemble=True), memory_case(names=("t1", "t2"))
    assert "averaged" not in both.predict(case).reason
    assert np.array_equal(both.predict(case).probabilities, predictor(flexible).predict(case).probabilities)
    assert both.predict(memory_case()).reason.endswith("; averaged over any, fixed")


def test_dropout_passes_repeat_with_their_seed():
    model, case = dropout_model(), memory_case(names=("t1", "t2"))

    def answer(**how):
        return predictor(model, **how).predict(case).probabilities

    plain, first = answer(), answer(passes=3, seed=5)
    assert np.array_equal(first, answer(passes=3, seed=5))
    assert not np.array_equal(first, answer(passes=3, seed=6))
    assert not np.array_equal(first, plain)
    assert np.array_equal(plain, answer())
    np.testing.assert_allclose(first.sum(axis=0), 1, atol=1e-5)


def test_dropout_passes_of_a_network_without_dropout_are_refused():
    with pytest.raises(ModelError) as error:
        predictor(dropout_model(), dropout_model("plain", feature_dropout=0.0), passes=2)
    assert str(error.value) == (
        "plain has no dropout: all Monte-Carlo passes would be equal (ask for an ensemble or mirroring instead)"
    )


# --------------------------------------------------------------------------- uncertainty


def test_uncertainty_by_hand():
    """100 is the largest entropy possible, whether the case reaches it or not."""
    answer = predictor(blunt_model("a", 0.1), uncertainty=True).predict(memory_case())
    p = by_hand(intensities(3)["flair"], 0.1)
    shares = {"WT": p[1:].sum(axis=0), "TC": p[1] + p[3], "ET": p[3]}  # classes NCR, ED, ET
    nats = {name: (entropy(np.stack([q, 1 - q])), np.log(2)) for name, q in shares.items()} | {
        "entropy": (entropy(p), np.log(4))
    }
    for name, (found, possible) in nats.items():
        np.testing.assert_allclose(answer.uncertainty[name].voxels, 100 * found / possible, atol=0.02, err_msg=name)


def test_one_certain_answer_leaves_nothing_to_disagree_on():
    answer = predictor(uncertainty=True).predict(memory_case())
    assert set(answer.uncertainty) == MAPS
    assert answer.uncertainty["mutual_information"].voxels.max() < 1e-3
    outside = intensities(3)["flair"] == 0
    assert all(not volume.voxels[outside].any() for volume in answer.uncertainty.values())


def test_without_a_wish_there_is_no_uncertainty_and_the_answer_is_the_same():
    plain, asked = predictor().predict(memory_case()), predictor(uncertainty=True).predict(memory_case())
    assert (dict(plain.uncertainty), plain.brain) == ({}, None)
    assert np.array_equal(plain.probabilities, asked.probabilities)


def test_maps_lie_on_the_grid_of_the_files_and_run_from_0_to_100(tmp_path):
    """Files with permuted and flipped axes, a network with dropout, resampling: maps where the images are."""
    affine = np.array([[0, -1.5, 0, 40], [0, 0, 2.0, -7], [-1.0, 0, 0, 11], [0, 0, 0, 1]])
    (tmp_path / "in" / "p1").mkdir(parents=True)
    for name, voxels in intensities(3).items():
        nibabel.Nifti1Image(voxels, affine).to_filename(tmp_path / "in" / "p1" / f"p1_{name}.nii.gz")
    model = dropout_model()
    resampled = Preprocessing(ALL, STUDENT, spacing_mm=(1.5, 1.5, 1.5))
    model = Model("resampled", model.method, resampled, model.convention)
    assert predict(tmp_path / "in", tmp_path / "out", model, passes=2, uncertainty=True) == {"p1": "done"}
    for name in (*MAPS, "brain"):
        written = nibabel.load(tmp_path / "out" / "uncertainty" / "p1" / f"{name}.nii.gz")
        assert written.shape == (12, 10, 9)
        np.testing.assert_allclose(written.affine, affine, atol=1e-5)
        assert written.get_data_dtype() == (np.uint8 if name == "brain" else np.float32)
        voxels = np.asarray(written.dataobj)
        assert voxels.min() >= 0
        assert 0 < voxels.max() <= (1 if name == "brain" else 100)


# --------------------------------------------------------------------------- what is written


@pytest.fixture
def written(tmp_path):
    """A patient, predicted with dropout passes and uncertainty."""
    write_patient(tmp_path / "in", "p1")
    predict(tmp_path / "in", tmp_path / "out", dropout_model(), passes=2, uncertainty=True)
    return tmp_path / "in", tmp_path / "out"


def test_the_record_vouches_for_the_maps(written):
    patients, out = written
    record = json.loads((out / "p1.json").read_text())
    assert set(record["files"]) == {"p1.nii.gz", *(f"uncertainty/p1/{name}.nii.gz" for name in (*MAPS, "brain"))}
    made = record["made_with"]
    assert (made["passes"], made["seed"], made["ensemble"], made["uncertainty"]) == (2, 0, None, "theoretical")
    again = {"passes": 2, "uncertainty": True, "if_not_empty": "continue"}
    assert predict(patients, out, dropout_model(), **again) == {"p1": "skipped"}
    (out / "uncertainty" / "p1" / "ET.nii.gz").unlink()
    assert predict(patients, out, dropout_model(), **again) == {"p1": "done"}
    assert (out / "uncertainty" / "p1" / "ET.nii.gz").is_file()


@pytest.mark.parametrize("change", [{"passes": 3}, {"seed": 1}, {"uncertainty": False}, {"only": ("t1",)}, {"ensemble": True}])
def test_continue_predicts_again_what_would_come_out_otherwise(written, change):
    patients, out = written
    how = {"passes": 2, "uncertainty": True, "if_not_empty": "continue", **change}
    assert predict(patients, out, dropout_model(), **how) == {"p1": "done"}
    assert predict(patients, out, dropout_model(), **how) == {"p1": "skipped"}


def test_continue_without_uncertainty_leaves_no_older_maps(written):
    patients, out = written
    assert predict(patients, out, dropout_model(), if_not_empty="continue") == {"p1": "done"}
    assert not (out / "uncertainty" / "p1").exists()
    assert predict(patients, out, dropout_model(), if_not_empty="continue") == {"p1": "skipped"}


def test_clear_removes_the_maps_of_this_case_alone(written):
    patients, out = written
    write_patient(patients, "p1_a", seed=1)
    predict(patients, out, dropout_model(), passes=2, uncertainty=True, if_not_empty="continue")
    OutputFolder(out).clear("p1")
    assert not list(out.glob("p1.*"))
    assert [path.name for path in (out / "uncertainty").iterdir()] == ["p1_a"]


# --------------------------------------------------------------------------- the command line


@pytest.fixture
def run_folder(tmp_path):
    model = dropout_model()
    card = {
        "name": "tiny",
        "method": {"name": "modality_dropout", "modalities": ["flair", "t1ce", "t1", "t2"], "width": 2, "feature_dropout": 0.5},
        "convention": "brats2021",
        "preprocessing": model.preprocessing.to_json(),
        "inference": {"window": None, "overlap": 0.5, "mirror": []},
    }
    save_weights(tmp_path / "run" / "model.safetensors", model.method.network.state_dict(), card)
    return tmp_path / "run"


def test_predict_every_subset_from_the_command_line(run_folder, tmp_path, capsys):
    write_patient(tmp_path / "in", "p1")
    write_patient(tmp_path / "in", "p2", without=("t1ce",))
    how = ("-m", run_folder, "--device", "cpu", "--precision", "32")
    assert run_main("predict", "-i", tmp_path / "in", "-o", tmp_path / "out", "--subsets", *how) == 0
    assert "1 cases lack one of flair, t1ce, t1, t2 and are left out" in capsys.readouterr().err
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"+".join(subset) for subset in all_subsets(ALL)}
    for subset in all_subsets(ALL):
        record = json.loads((tmp_path / "out" / "+".join(subset) / "p1.json").read_text())
        assert record["available"] == list(subset)
        assert set(record["inputs"]) == set(subset)
    alone = ("predict", "-i", tmp_path / "in", "-o", tmp_path / "alone", "--only", "T1w, t1gd", *how)
    assert run_main(*alone) == 0
    assert json.loads((tmp_path / "alone" / "p1.json").read_text())["available"] == ["t1ce", "t1"]
    assert np.array_equal(
        read_volume(tmp_path / "alone" / "p1.nii.gz").voxels, read_volume(tmp_path / "out" / "t1ce+t1" / "p1.nii.gz").voxels
    )


def test_uncertainty_from_the_command_line_is_scored_on_any_scale(run_folder, tmp_path, capsys):
    """Predict once, score thrice; asked of a folder without maps, a scale is one line."""
    write_patient(tmp_path / "in", "p1")
    write_patient(tmp_path / "in", "p2", seed=1)
    how = ("-m", run_folder, "--device", "cpu", "--precision", "32")
    maps, plain = tmp_path / "maps", tmp_path / "plain"
    assert run_main("predict", "-i", tmp_path / "in", "-o", plain, *how) == 0
    assert run_main("predict", "-i", tmp_path / "in", "-o", maps, "--mc-dropout", 2, "--uncertainty", *how) == 0
    assert json.loads((maps / "p1.json").read_text())["made_with"]["uncertainty"] == "theoretical"
    evaluate = ("-r", plain, "--labels", "brats2021", "-w", 1)
    for scale, words in (
        ("theoretical", "100 is the largest entropy possible"),
        ("case", "100 is the largest entropy in the case"),
        ("cohort", "0 and 100 are the smallest and largest entropy in the brain over all cases of the run"),
    ):
        assert run_main("evaluate", maps, *evaluate, "--uncertainty-scale", scale) == 0
        assert f"uncertainty: {words}" in capsys.readouterr().out
    assert run_main("evaluate", plain, *evaluate) == 0
    capsys.readouterr()
    assert run_main("evaluate", plain, *evaluate, "--uncertainty-scale", "case") == 2
    said = capsys.readouterr().err.splitlines()
    assert [line for line in said if line.startswith("error")] == [
        f"error: {plain}: holds no uncertainty to score on the case scale (predict --uncertainty)"
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--only", "t1,ct"), "error: --only t1,ct: no model reads ct (they read flair, t1, t1ce, t2)"),
        (("--only", "t1", "--subsets"), "error: --subsets and --only exclude each other"),
        (("--subsets",), "error: no case has all of flair, t1ce, t1, t2"),
    ],
)
def test_wrong_wishes_are_one_line(run_folder, tmp_path, capsys, arguments, words):
    write_patient(tmp_path / "in", "p1", without=("t1ce",))
    code = run_main("predict", "-i", tmp_path / "in", "-o", tmp_path / "out", "-m", run_folder, "--device", "cpu", *arguments)
    assert code == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
