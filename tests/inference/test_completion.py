"""What stands in for a missing sequence: numbers by hand, and nothing that is held back has a say."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from modistill.data.case import Case
from modistill.data.folder import find_cases
from modistill.data.naming import conventions
from modistill.data.nifti import write_volume
from modistill.data.preprocessing import Preprocessing
from modistill.data.volume import Volume
from modistill.errors import CaseError, ModelError, RecipeError
from modistill.inference.cohort import CaseRow, predict_cohort
from modistill.inference.completion import Fill, Substitute, Translated, header
from modistill.inference.model import Model
from modistill.inference.outputs import IfNotEmpty, OutputFolder
from modistill.inference.predictor import Predictor
from modistill.methods.base import TranslationMethod
from modistill.methods.modality_dropout import ModalityDropout
from patients import ALL, STUDENT, Nearest, intensities, nearest_model, write_patient

FIRST = ("t1ce", "flair", "t1", "t2")  # `Nearest` looks at the first
WINDOW = (0.0, 1000.0)


class Linear(TranslationMethod):
    """One sequence into another: times a number, plus another."""

    deployed = "network"

    def __init__(self, sources: tuple[str, ...], targets: tuple[str, ...], factor: float, offset: float) -> None:
        super().__init__()
        self.targets, self.reads, self.players = targets, {"network": sources}, {}
        self.network = nn.Linear(1, 1)
        nn.init.constant_(self.network.weight, factor)
        nn.init.constant_(self.network.bias, offset)

    def losses(self, batch):
        raise NotImplementedError

    def translate(self, images: Tensor, target: str) -> Tensor:
        assert images.shape[1] == 1
        return images * self.network.weight.view(()) + self.network.bias.view(())


def translation(
    name: str = "doubling",
    sources: tuple[str, ...] = ("flair",),
    targets: tuple[str, ...] = ("t1ce",),
    *,
    factor: float = 0.5,
    offset: float = 0.0,
    into: object = (0.0, 4000.0),
    digest: str = "d1",
) -> Model:
    """x of 0 to 1000 is read as x / 1000; times a half, on a scale from 0 to 4000, that is 2 x."""
    targets_how = {target: Preprocessing((target,), (target,), into) for target in targets}
    method = Linear(sources, targets, factor, offset)
    preprocessing = Preprocessing(sources, sources, WINDOW)
    return Model(name, method, preprocessing, conventions["brats2021"], digest=digest, targets=targets_how)


def segmentor(name: str = "teacher", modalities: tuple[str, ...] = FIRST, **how) -> Model:
    """Class 1 where the first sequence is above 500, else 0."""
    return nearest_model(name, modalities, **({"normalisation": WINDOW} | how))


SUBSETS = (("t1ce",), ("t2",), ("t1ce", "t2"), ("t1ce", "t1"))


def translated(*models: Model, runs: tuple[Model, ...] = ()) -> Translated:
    return Translated(runs or (translation(),), models or (segmentor(),), device="cpu")


def predictor(*models: Model, runs: tuple[Model, ...] = (), **how) -> Predictor:
    models = models or (segmentor(),)
    completion = how.pop("completion", None) or translated(*models, runs=runs)
    return Predictor(models, device="cpu", precision="32", completion=completion, **how)


def memory_case(*, seed: int = 3, without: tuple[str, ...] = ("t1ce",), **others: np.ndarray) -> Case:
    images = {**intensities(seed), **others}
    return Case("p1", {name: Volume(image.astype(np.float32)) for name, image in images.items() if name not in without})


def above(image: np.ndarray, threshold: float) -> np.ndarray:
    return np.where(image > threshold, 1, 0)


# --------------------------------------------------------------------------- a translation


def test_a_synthetic_image_is_read_like_a_real_one() -> None:
    """2 x flair, above 500 where flair is above 250; as the answer to that very image, had it been acquired."""
    flair = intensities(3)["flair"]
    answer = predictor().predict(memory_case())
    assert np.array_equal(answer.labels.voxels, above(flair, 250))
    real = Predictor([segmentor()], device="cpu", precision="32").predict(memory_case(without=(), t1ce=2 * flair))
    np.testing.assert_allclose(answer.probabilities, real.probabilities, atol=1e-4)


def test_the_source_may_be_chosen() -> None:
    """Made from T2 where it is there, else from T1, and never from FLAIR; T2 itself from T1."""
    run = translation(sources=("flair", "t1", "t2"), targets=("t1ce", "t2"))
    completion = Translated([run], [segmentor()], {"doubling": ("t2", "t1")}, device="cpu")
    made = {missing: completion.plan(segmentor(), [name for name in FIRST if name not in missing]) for missing in SUBSETS}
    assert {missing: [(one.modality, *one.made_from) for one in made[missing]] for missing in SUBSETS} == {
        ("t1ce",): [("t1ce", "t2")],
        ("t2",): [("t2", "t1")],
        ("t1ce", "t2"): [("t1ce", "t1"), ("t2", "t1")],
        ("t1ce", "t1"): [],
    }
    case = memory_case()
    answer = predictor(completion=completion).predict(case)
    assert np.array_equal(answer.labels.voxels, above(intensities(3)["t2"], 250))
    assert completion.sources == ("t2", "t1")


def test_a_source_that_is_the_target_makes_the_others() -> None:
    run = translation(sources=("flair", "t1", "t2"), targets=("t1ce", "t2"))
    completion = Translated([run], [segmentor()], {"doubling": ("t2",)}, device="cpu")
    assert completion.demand() == "doubling makes t1ce from t2"
    with pytest.raises(RecipeError, match="does not read pet"):
        Translated([run], [segmentor()], {"doubling": ("pet",)}, device="cpu")
    with pytest.raises(RecipeError, match="t1ce is source and target"):
        Translated([translation(sources=("flair", "t1ce"))], [segmentor()], {"doubling": ("t1ce",)}, device="cpu")


def test_what_is_said_of_it() -> None:
    answer = predictor().predict(memory_case())
    assert answer.available == STUDENT
    assert answer.substitutes == (Substitute("t1ce", "doubling", ("flair",), "d1"),)
    assert answer.notices[0] == "t1ce is synthetic (by doubling from flair): not evidence of enhancement"
    assert answer.reason == "teacher reads flair, t1, t2, synthetic t1ce (by doubling)"
    assert str(Substitute("t2", "x", ("t1",), "1")) == "t2 is synthetic (by x from t1): not evidence"


def test_the_real_image_is_read_where_it_may_be() -> None:
    case = memory_case(without=())
    answer = predictor().predict(case)
    assert (answer.substitutes, answer.available) == ((), FIRST)
    assert np.array_equal(answer.labels.voxels, above(intensities(3)["t1ce"], 500))
    held_back = predictor(only=STUDENT).predict(case)
    assert np.array_equal(held_back.labels.voxels, above(intensities(3)["flair"], 250))


def test_mask_and_grid_rest_on_what_was_acquired() -> None:
    """The synthetic image is 0 wherever flair is below 500; the mask stays that of the real images."""
    darkened = translation(offset=-0.25)
    answer = predictor(runs=(darkened,), uncertainty=True).predict(memory_case())
    flair = intensities(3)["flair"]
    assert answer.brain is not None
    assert np.array_equal(answer.brain.voxels, (flair != 0).astype(np.uint8))
    assert np.array_equal(answer.labels.voxels, above(flair, 750))


def test_a_model_of_which_nothing_was_acquired() -> None:
    only = segmentor("t1ce_only", ("t1ce",))
    answer = predictor(only).predict(memory_case())
    assert np.array_equal(answer.labels.voxels, above(intensities(3)["flair"], 250))
    assert answer.available == ("flair",)
    assert answer.reason == "t1ce_only reads synthetic t1ce (by doubling)"


def test_several_are_made_each_from_the_first_real_one() -> None:
    """Any into any: t1ce and t1 are missing, both are made of flair, and neither of the other."""
    anything = translation("any", ALL, ALL, digest="d2")
    case = memory_case(without=("t1ce", "t1"))
    answer = predictor(runs=(anything,)).predict(case)
    assert [(one.modality, one.made_from) for one in answer.substitutes] == [("t1ce", ("flair",)), ("t1", ("flair",))]
    assert answer.available == ("flair", "t2")
    assert np.array_equal(answer.labels.voxels, above(intensities(3)["flair"], 250))
    without_flair = predictor(runs=(anything,)).predict(memory_case(without=("t1ce", "flair")))
    assert {one.made_from for one in without_flair.substitutes} == {("t1",)}  # the next in the translation's order
    assert np.array_equal(without_flair.labels.voxels, above(intensities(3)["t1"], 250))


def test_of_two_translations_the_first_that_finds_its_source() -> None:
    runs = translation("a", ("flair",)), translation("b", ("t2",), factor=1.0)
    assert predictor(runs=runs).predict(memory_case()).substitutes[0].by == "a"
    answer = predictor(segmentor(modalities=("t1ce", "t1")), runs=runs, only=("t1", "t2")).predict(memory_case())
    assert answer.available == ("t1", "t2")
    assert np.array_equal(answer.labels.voxels, above(intensities(3)["t2"], 125))  # 4 x


def test_notices_of_the_translation_are_passed_on() -> None:
    small = translation()
    cut = Preprocessing(("flair",), ("flair",), WINDOW, size=(4, 7, 7))
    run = Model("doubling", small.method, cut, small.convention, digest="d1", targets=small.targets)
    notices = predictor(runs=(run,)).predict(memory_case()).notices
    assert notices[1] == "synthetic t1ce: larger than the size the model reads: what lies outside is 0"


# --------------------------------------------------------------------------- which model


def test_real_sequences_go_before_synthetic_ones() -> None:
    teacher, student, pair = segmentor(), segmentor("student", STUDENT), segmentor("pair", ("t1ce", "t1"))
    both = predictor(teacher, student)
    assert both.choose(STUDENT) is student
    assert both.choose(ALL) is teacher
    assert both.substitutes(student, STUDENT) == ()
    assert both.predict(memory_case()).reason == ("student reads flair, t1, t2; teacher would need t1ce, which the case lacks")
    assert predictor(pair, teacher).choose(STUDENT) is teacher  # one synthetic in either, three real ones here
    anything = translation("any", ALL, ALL)
    assert predictor(teacher, pair, runs=(anything,)).choose(("t1",)) is pair  # one synthetic instead of three


def test_members_of_an_ensemble_read_the_same_synthetic_image() -> None:
    a, b = segmentor("a"), segmentor("b")
    with torch.no_grad():
        b.method.network.weight *= 0.5
    case = memory_case()
    single = [predictor(one).predict(case).probabilities for one in (a, b)]
    both = predictor(a, b, ensemble=True).predict(case)
    np.testing.assert_allclose(both.probabilities, sum(single) / 2, atol=1e-6)
    assert both.reason.endswith("averaged over a, b")


# --------------------------------------------------------------------------- a number


def test_zero_is_zero_and_the_mean_is_that_of_the_brain() -> None:
    """On a resampled and padded grid; mean of the means of flair, t1, t2, inside the mask."""
    model = segmentor(spacing_mm=(1.5, 1.0, 1.0), size=(12, 12, 12))
    case = memory_case()
    made = {}
    for how in ("zero", "mean"):
        fill = Fill(how, (model,))
        made[how] = fill.prepare(case, model.preprocessing, fill.plan(model, case.modalities))
    plain = model.preprocessing.for_subset(STUDENT).apply(case)
    for prepared in made.values():
        np.testing.assert_array_equal(prepared.images[1:], plain.images[1:])
        np.testing.assert_array_equal(prepared.mask, plain.mask)
    assert not made["zero"].images[0].any()
    inside = plain.mask
    assert 0 < inside.sum() < inside.size
    mean = np.mean([image[inside].mean(dtype=np.float64) for image in plain.images[1:]])
    np.testing.assert_allclose(made["mean"].images[0][inside], mean, rtol=1e-6)
    assert not made["mean"].images[0][~inside].any()


@pytest.mark.parametrize(("how", "said"), [("zero", "0 everywhere"), ("mean", "the mean of flair, t1, t2 inside the mask")])
def test_fills_from_end_to_end(how: str, said: str) -> None:
    """Of 0 to 800 the mean is above a half, so that the whole brain is class 1."""
    model = segmentor(normalisation=(0.0, 800.0))
    answer = predictor(model, completion=Fill(how, (model,))).predict(memory_case())
    brain = intensities(3)["flair"] != 0
    assert np.array_equal(answer.labels.voxels, brain.astype(np.uint8) if how == "mean" else np.zeros(brain.shape))
    assert answer.notices[0] == f"t1ce is missing: its channel is {said}"
    assert answer.available == STUDENT
    assert answer.reason == f"teacher reads flair, t1, t2, t1ce filled with {how}"


# --------------------------------------------------------------------------- files


def predict(root: Path, out: Path, how: IfNotEmpty = "refuse", **settings) -> list[CaseRow]:
    with OutputFolder(out, how).opened() as folder:
        return list(predict_cohort(predictor(**settings), find_cases(root).cases, folder))


def test_the_record_the_report_and_the_header(tmp_path: Path) -> None:
    write_patient(tmp_path / "in", "p1", without=("t1ce",))
    (row,) = predict(tmp_path / "in", tmp_path / "out")
    warning = "t1ce is synthetic (by doubling from flair): not evidence of enhancement"
    record = json.loads((tmp_path / "out" / "p1.json").read_text())
    assert record["substitutes"] == [
        {
            "modality": "t1ce",
            "by": "doubling",
            "made_from": ["flair"],
            "digest": "d1",
            "synthetic": True,
            "warning": warning,
        }
    ]
    assert (record["available"], sorted(record["inputs"])) == (list(STUDENT), sorted(STUDENT))
    assert record["made_with"]["substitutes"][0]["settings"]["digest"] == "d1"
    assert (row.status, row.substitutes[0].by, row.notices[0]) == ("done", "doubling", warning)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["rows"][0]["substitutes"][0]["digest"] == "d1"
    assert report["completed"] == "doubling makes t1ce from flair"
    assert nibabel.load(tmp_path / "out" / "p1.nii.gz").header["descrip"].item().decode() == warning


def test_headers_hold_79_characters() -> None:
    many = [Substitute(name, "a_translation_with_quite_a_long_name", ("flair",), "1") for name in ALL[1:]]
    assert header(many) == "t1ce, t1, t2 are synthetic: not evidence of enhancement"
    assert header(many[1:2]).startswith("t1 is synthetic")
    assert header([Substitute(name, "mean", STUDENT[:1]) for name in ALL[1:]]) == (
        "t1ce, t1, t2 are missing, their channels filled"
    )
    assert header(()) == ""


def test_what_is_held_back_is_never_opened(tmp_path: Path) -> None:
    folder = write_patient(tmp_path / "in", "p1")
    settings = {"only": STUDENT}
    predict(tmp_path / "in", tmp_path / "before", **settings)
    other = intensities(99)["t1ce"]
    write_volume(folder / "p1_t1ce.nii.gz", Volume(other, np.diag([1.0, 1.0, 2.0, 1.0])), dtype=np.int16)
    predict(tmp_path / "in", tmp_path / "changed", **settings)
    (folder / "p1_t1ce.nii.gz").write_bytes(b"damaged")
    predict(tmp_path / "in", tmp_path / "damaged", **settings)
    labels = [(tmp_path / name / "p1.nii.gz").read_bytes() for name in ("before", "changed", "damaged")]
    assert labels[0] == labels[1] == labels[2]


def test_continue_notices_another_translation(tmp_path: Path) -> None:
    write_patient(tmp_path / "in", "p1", without=("t1ce",))
    write_patient(tmp_path / "in", "p2", seed=1)

    def status(run: Model) -> list[str]:
        return [row.status for row in predict(tmp_path / "in", tmp_path / "out", "continue", runs=(run,))]

    assert status(translation()) == ["done", "done"]
    assert status(translation()) == ["skipped", "skipped"]
    assert status(translation(digest="d2")) == ["done", "skipped"]  # the complete case needs no translation
    write_patient(tmp_path / "in", "p1", seed=5, without=("t1ce",))
    assert status(translation(digest="d2")) == ["done", "skipped"]
    model = segmentor()
    zero = predict(tmp_path / "in", tmp_path / "out", "continue", completion=Fill("zero", (model,)))
    assert [row.status for row in zero] == ["done", "skipped"]
    assert zero[0].substitutes == (Substitute("t1ce", "zero"),)


# --------------------------------------------------------------------------- what is refused


def test_nothing_to_make_it_from_is_one_line() -> None:
    with pytest.raises(CaseError) as error:
        predictor().predict(memory_case(without=("t1ce", "flair")))
    assert str(error.value) == (
        "p1: has t1, t2, lacks flair, t1ce: no model can serve that, nor can all of it be made "
        "(teacher needs t1ce+flair+t1+t2; doubling makes t1ce from flair)"
    )
    ct = Case("p1", {"ct": Volume(np.ones((4, 4, 4), np.float32))})
    model = segmentor()
    with pytest.raises(CaseError, match=r"p1: has ct, .* nor can .*mean stands in beside a sequence that is read"):
        predictor(completion=Fill("mean", (model,))).predict(ct)


def test_completions_that_cannot_help_are_refused() -> None:
    with pytest.raises(ModelError, match=r"student segments and translates nothing \(give a translation\)"):
        translated(runs=(segmentor("student", STUDENT),))
    with pytest.raises(RecipeError, match=r"doubling makes t1ce, which no model needs \(they read flair, t1, t2\)"):
        translated(segmentor("student", STUDENT))
    with pytest.raises(RecipeError, match="translations need different names, and at least one; got a, a"):
        translated(runs=(translation("a"), translation("a", targets=("t2",))))
    with pytest.raises(RecipeError, match=r"no fill 'median' \(zero or mean"):
        Fill("median", (segmentor(),))
    flexible = Model("any", ModalityDropout(ALL, width=2), Preprocessing(ALL, STUDENT), conventions["brats2021"])
    with pytest.raises(RecipeError, match="nothing to complete: any reads whatever a case has"):
        Fill("zero", (flexible,))


def test_a_sequence_in_other_units_is_refused() -> None:
    with pytest.raises(ModelError, match="doubling makes t1ce on a scale from 0 to 1, teacher reads it from 0 to 1000"):
        translated(runs=(translation(into="percentiles"),))
    translated(segmentor(normalisation="percentiles"), runs=(translation(into="percentiles"),))


def test_a_translation_that_makes_nothing_of_it() -> None:
    with pytest.raises(ModelError, match="p1: doubling makes a constant t1ce"):
        predictor(runs=(translation(factor=0.0, offset=0.5),)).predict(memory_case())


def test_the_mean_of_four_classes_needs_no_window() -> None:
    """Z-scores average to 0, so that both fills are the same but for rounding."""
    model = Model("z", Nearest(FIRST), Preprocessing(FIRST, FIRST), conventions["brats2021"])
    maps = [predictor(model, completion=Fill(how, (model,))).predict(memory_case()).probabilities for how in ("zero", "mean")]
    np.testing.assert_allclose(*maps, atol=1e-5)
