import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from modistill.errors import CaseError, GeometryError, LabelError, RecipeError
from modistill.metrics.overlap import dice
from modistill.metrics.uncertainty import (
    THRESHOLDS,
    Scale,
    as_percent,
    as_probability,
    entropy,
    mutual_information,
    predictive_uncertainty,
    qu_brats,
    region_uncertainty,
    rescaled,
    trivial_score,
)

Map = NDArray[Any]


def plain(prediction: Map, reference: Map, uncertainty: Map, brain: Map) -> tuple[list[float], list[float], list[float]]:
    """Dice, FTP and FTN, threshold after threshold."""
    p, g, b = prediction != 0, reference != 0, brain > 0
    curves: tuple[list[float], list[float], list[float]] = ([], [], [])
    for threshold in [2.5 * step for step in range(41)]:
        certain = ~(uncertainty > threshold)
        total = (p & certain).sum() + (g & certain).sum()
        curves[0].append(2 * (p & g & certain).sum() / total if total else 1.0)
        for curve, right in zip(curves[1:], (p & g & b, ~p & ~g & b), strict=True):
            curve.append((right & ~certain).sum() / (right.sum() + np.finfo(np.float32).eps))
    return curves


def random_maps(seed: int) -> tuple[Map, Map, Map, Map]:
    """Regions from none to all, and uncertainties of which many equal a threshold."""
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 7, size=rng.integers(1, 4)))
    prediction, reference = (rng.random(shape) < rng.choice([0, 0.1, 0.5, 1]) for _ in range(2))
    uncertainty = rng.uniform(0, 100, shape) if rng.random() < 0.5 else 2.5 * rng.integers(0, 41, shape)
    brain = rng.random(shape) < 0.7
    brain.flat[0] = True
    return prediction, reference, uncertainty.astype(np.float32), brain


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_curves_equal_the_plain_form(seed: int) -> None:
    maps = random_maps(seed)
    found = qu_brats(*maps)
    for own, other in zip((found.dice, found.ftp, found.ftn), plain(*maps), strict=True):
        np.testing.assert_allclose(own, other, rtol=0, atol=1e-12)


def vectors() -> tuple[Map, Map, dict[str, Map], Map]:
    """The nested cubes and prepared uncertainties whose areas the challenge's script gave under NumPy 1.26."""
    i, j, k = grid = np.indices((8, 8, 8))
    reference = np.zeros((8, 8, 8), np.float32)
    for label, low, high in ((2, 1, 6), (1, 2, 5), (4, 3, 5)):
        reference[((grid >= low) & (grid <= high)).all(axis=0)] = label
    uncertainty = {
        "WT": (7 * i + 11 * j + 13 * k) % 101,
        "TC": (5 * i + 3 * j + 2 * k) % 101,
        "ET": (17 * i + 29 * j + 31 * k) % 101,
    }
    return np.roll(reference, 1, axis=0), reference, uncertainty, i > 0


LABELS = {"WT": (1, 2, 4), "TC": (1, 4), "ET": (4,)}


@pytest.mark.parametrize(
    ("case", "region", "dice_auc", "ftp_auc", "ftn_auc"),
    [
        ("A", "WT", 0.845764, 0.472222, 0.519898),
        ("A", "TC", 0.731621, 0.371875, 0.372351),
        ("A", "ET", 0.722557, 0.468056, 0.493356),
        ("B", "ET", 1.0, 0.0, 0.493610),
        ("C", "ET", 0.0375, 0.0, 0.494596),
        ("D", "ET", 0.0375, 0.0, 0.493468),
        ("E", "WT", 0.833333, 0.0, 0.0),
        ("E", "TC", 0.75, 0.0, 0.0),
        ("E", "ET", 0.666667, 0.0, 0.0),
        ("F", "WT", 0.997917, 0.9875, 0.9875),
        ("F", "TC", 0.996875, 0.9875, 0.9875),
        ("F", "ET", 0.995833, 0.9875, 0.9875),
    ],
)
def test_areas_of_the_challenge_script(case: str, region: str, dice_auc: float, ftp_auc: float, ftn_auc: float) -> None:
    """A: as prepared; B, C, D: no ET in both, the reference, the prediction; E, F: uncertainty 0, 100 everywhere."""
    prediction, reference, uncertainties, brain = vectors()
    if case in "BD":
        prediction = np.where(prediction == 4, 1, prediction)
    if case in "BC":
        reference = np.where(reference == 4, 1, reference)
    uncertainty = {"E": np.zeros((8, 8, 8)), "F": np.full((8, 8, 8), 100.0)}.get(case, uncertainties[region])
    found = qu_brats(np.isin(prediction, LABELS[region]), np.isin(reference, LABELS[region]), uncertainty, brain)
    assert [round(value, 6) for value in (found.dice_auc, found.ftp_auc, found.ftn_auc)] == [dice_auc, ftp_auc, ftn_auc]
    assert found.score == pytest.approx((dice_auc + 1 - ftp_auc + 1 - ftn_auc) / 3, abs=1e-6)


def test_filtered_numbers_by_hand() -> None:
    """Ten voxels: 4 hits, 2 misses, 1 false alarm, 3 true negatives, one of these outside the brain."""
    prediction = np.array([1, 1, 1, 1, 0, 0, 1, 0, 0, 0])
    reference = np.array([1, 1, 1, 1, 1, 1, 0, 0, 0, 0])
    uncertainty = np.array([0, 20, 50, 90, 80, 50, 75, 0, 60, 90])
    brain = np.array([1, 1, 1, 1, 1, 1, 1, 1, 1, 0])
    found = qu_brats(prediction, reference, uncertainty, brain)
    assert found.filtered(100) == pytest.approx((8 / 11, 0, 0))
    assert found.filtered(75) == pytest.approx((6 / 8, 1 / 4, 0))  # the false alarm, at 75 exactly, stays
    assert found.filtered(50) == pytest.approx((6 / 7, 1 / 4, 1 / 2))
    assert found.filtered(25) == pytest.approx((1, 2 / 4, 1 / 2))
    assert found.filtered(0) == pytest.approx((1, 3 / 4, 1 / 2))
    with pytest.raises(RecipeError, match=r"33 is no threshold \(choose from 0, 2.5, 5, ..., 100\)"):
        found.filtered(33)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_scores_lie_in_bounds_curves_fall_and_voxels_have_no_order(seed: int) -> None:
    maps = random_maps(seed)
    found = qu_brats(*maps)
    assert 0 <= found.score <= 1
    for curve in (found.ftp, found.ftn):
        assert (np.diff(curve) <= 0).all()
        assert curve[-1] == 0
    order = np.random.default_rng(seed).permutation(maps[0].size)
    shuffled = qu_brats(*[values.ravel()[order] for values in maps])
    np.testing.assert_array_equal(shuffled.dice, found.dice)
    np.testing.assert_array_equal(shuffled.ftp, found.ftp)
    np.testing.assert_array_equal(shuffled.ftn, found.ftn)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_no_uncertainty_scores_the_trivial_score(seed: int) -> None:
    prediction, reference, uncertainty, brain = random_maps(seed)
    found = qu_brats(prediction, reference, np.zeros_like(uncertainty), brain)
    assert found.score == pytest.approx(trivial_score(prediction, reference), abs=1e-12)


def test_trivial_score_by_hand() -> None:
    none, half, other = np.array([0, 0, 0, 0]), np.array([1, 1, 0, 0]), np.array([1, 0, 1, 0])
    assert trivial_score(half, half) == trivial_score(none, none) == 1
    assert trivial_score(half, other) == pytest.approx(2.5 / 3)
    assert trivial_score(half, none) == pytest.approx(2 / 3)


def test_best_and_worst_uncertainty() -> None:
    """Uncertain on the errors alone, the score beats none at all; uncertain on all that is right, it is far below."""
    prediction, reference = np.array([1, 1, 0, 0]), np.array([1, 0, 1, 0])
    brain, errors = np.ones(4), prediction != reference
    best, worst = (qu_brats(prediction, reference, 100.0 * where, brain) for where in (errors, ~errors))
    assert best.dice_auc == pytest.approx(0.9875 + 0.0125 * 0.5)  # Dice 1 below 100; 0.5 at 100
    assert (best.ftp_auc, best.ftn_auc) == (0, 0)
    assert worst.dice_auc == pytest.approx(0.0125 * 0.5)
    assert worst.ftp_auc == worst.ftn_auc == pytest.approx(0.9875)
    assert worst.score < trivial_score(prediction, reference) < best.score
    perfect = qu_brats(prediction, prediction, np.zeros(4), brain)
    assert perfect.score == 1


def test_dice_looks_beyond_the_brain_and_the_shares_do_not() -> None:
    prediction = reference = np.array([1, 1, 0, 0])
    found = qu_brats(prediction, reference, np.array([0, 90, 0, 90]), np.array([1, 0, 1, 0]))
    assert found.filtered(50) == (1, 0, 0)
    outside = qu_brats(prediction, np.array([1, 0, 0, 0]), np.zeros(4), np.array([1, 0, 1, 0]))
    assert outside.filtered(100).dice == pytest.approx(2 / 3)


def test_small_types_and_images_as_brain() -> None:
    rng = np.random.default_rng(0)
    prediction, reference = (rng.random((20, 30)) < 0.5).astype(np.uint8), (rng.random((20, 30)) < 0.5).astype(np.uint8)
    uncertainty, image = rng.integers(0, 101, (20, 30), dtype=np.uint8), rng.normal(size=(20, 30))
    found = qu_brats(prediction, reference, uncertainty, image)
    other = qu_brats(prediction > 0, reference > 0, uncertainty.astype(float), image > 0)
    assert found.score == other.score
    assert found.filtered(100).dice == dice(prediction, reference)


@pytest.mark.parametrize("place", ["reference", "uncertainty", "brain"])
def test_shapes_must_agree(place: str) -> None:
    maps = {name: np.ones((2, 3)) for name in ("prediction", "reference", "uncertainty", "brain")} | {place: np.ones((3, 2))}
    with pytest.raises(GeometryError, match=rf"prediction has shape \(2, 3\), {place} \(3, 2\)"):
        qu_brats(**maps)


@pytest.mark.parametrize(
    ("value", "found"), [(math.nan, "nan to nan"), (101, "0 to 101"), (-1, "-1 to 0"), (math.inf, "0 to inf")]
)
def test_uncertainty_must_lie_on_the_scale(value: float, found: str) -> None:
    with pytest.raises(LabelError, match=rf"uncertainty runs from {found} \(it is 0 \(certain\) to 100"):
        qu_brats(np.ones(2), np.ones(2), np.array([0, value]), np.ones(2))


@pytest.mark.parametrize("size", [0, 3])
def test_the_brain_must_not_be_empty(size: int) -> None:
    nothing = np.zeros(size)
    with pytest.raises(CaseError, match=r"the brain is empty \(give a mask or image"):
        qu_brats(nothing, nothing, nothing, nothing)


def test_thresholds_reach_100_exactly() -> None:
    assert THRESHOLDS.tolist() == [2.5 * step for step in range(41)]
    qu_brats(np.ones(1), np.ones(1), np.zeros(1), np.ones(1)).thresholds[:] = 0  # a copy
    assert THRESHOLDS[-1] == 100


def test_entropy_by_hand() -> None:
    probabilities = np.array([[0.5, 1, 0.25], [0.25, 0, 0.25], [0.25, 0, 0.5]])
    np.testing.assert_allclose(entropy(probabilities), [1.5 * math.log(2), 0, 1.5 * math.log(2)])
    np.testing.assert_allclose(predictive_uncertainty(probabilities), np.array([150, 0, 150]) * math.log(2) / math.log(3))
    assert region_uncertainty(np.array([0.25]))[0] == pytest.approx(81.12781)  # 2 - 0.75 log2 3 bits


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_maps_stay_on_the_scale_in_every_precision(kind: type) -> None:
    """Rounding must not push a map beyond 100, which `qu_brats` refuses."""
    probability: Map = np.linspace(0, 1, 1001).astype(kind)
    probability[0], probability[-1] = -1e-4, 1 + 1e-3  # sums of float16 leave [0, 1]
    found = region_uncertainty(probability)
    assert found.dtype == (np.float64 if kind is np.float64 else np.float32)
    assert found.min() == found[0] == found[-1] == 0
    assert found.max() == pytest.approx(100)
    assert found.max() <= 100
    np.testing.assert_allclose(found, found[::-1], atol=0.2 if kind is np.float16 else 1e-4)
    qu_brats(probability > 0.5, probability > 0.6, found, np.ones(1001))


def test_scales_by_hand() -> None:
    probability = np.array([0, 0.25, 0.1])
    half = region_uncertainty(probability)
    np.testing.assert_allclose(region_uncertainty(probability, scale="case"), 100 * half / half[1])
    bits = math.log(2)
    found = region_uncertainty(np.array([0, 0.5, 0.25]), scale=(0.5 * bits, 0.9 * bits))
    np.testing.assert_allclose(found, [0, 100, (81.12781 - 50) / 0.4], rtol=1e-6)
    np.testing.assert_array_equal(region_uncertainty(np.ones((2, 3)), scale="case"), np.zeros((2, 3)))


@pytest.mark.parametrize("scale", ["max", (0.5, 0.5), (1, 0), (-1, 1), (0, math.inf), (math.nan, 1), (0, 1, 2)])
def test_bad_scales(scale: Scale) -> None:
    for scaled in (lambda: region_uncertainty(np.ones(2), scale=scale), lambda: rescaled(np.ones(2), scale)):
        with pytest.raises(RecipeError, match=r"scale is .* \(theoretical, case, or the entropies that count 0 and 100\)"):
            scaled()


def test_a_written_map_on_other_scales_by_hand() -> None:
    written = np.array([5, 10, 20, 40], np.float32)
    np.testing.assert_array_equal(rescaled(written, "theoretical"), written)
    np.testing.assert_array_equal(rescaled(written, "case"), [12.5, 25, 50, 100])
    np.testing.assert_array_equal(rescaled(written, (10, 30)), [0, 0, 50, 100])  # beyond the bounds: cut off
    np.testing.assert_array_equal(rescaled(np.zeros(3), "case"), np.zeros(3))
    assert rescaled(written.astype(np.uint8), "case").dtype == np.float32


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_scaling_what_was_written_is_scaling_the_entropy(seed: int) -> None:
    """In per cent of ln 2 or in nats: the map is the same. And the theoretical one is what was written, to the last bit."""
    probability = np.random.default_rng(seed).uniform(0, 0.3, (5, 6)).astype(np.float32)
    written = region_uncertainty(probability)
    assert rescaled(written, "theoretical").tobytes() == written.tobytes()
    np.testing.assert_allclose(rescaled(written, "case"), region_uncertainty(probability, scale="case"), atol=1e-4)
    bounds = (20 * math.log(2) / 100, 70 * math.log(2) / 100)
    np.testing.assert_allclose(rescaled(written, (20, 70)), region_uncertainty(probability, scale=bounds), atol=1e-4)


@pytest.mark.parametrize("value", [math.nan, -0.1, 100.1, math.inf])
def test_what_is_no_percentage_is_not_scaled(value: float) -> None:
    """Cutting values off must not hide that a map is none."""
    for scale in ("theoretical", "case", (0.0, 50.0)):
        with pytest.raises(LabelError, match=r"uncertainty runs from .* \(it is 0 \(certain\) to 100"):
            rescaled(np.array([50, value]), scale)  # type: ignore[arg-type]
    assert as_percent(np.zeros(0)).size == 0


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), classes=st.integers(2, 5), passes=st.integers(1, 6))
def test_mutual_information_is_zero_for_equal_answers_and_never_above_the_predictive_part(
    seed: int, classes: int, passes: int
) -> None:
    answers = np.random.default_rng(seed).dirichlet([0.3] * classes, size=(passes, 7)).swapaxes(1, 2).astype(np.float32)
    predictive = entropy(answers.mean(axis=0))
    expected = np.mean([entropy(answer) for answer in answers], axis=0)
    information = mutual_information(predictive, expected, classes)
    assert information.min() >= 0
    assert (information <= predictive_uncertainty(answers.mean(axis=0)) + 1e-3).all()
    np.testing.assert_array_equal(mutual_information(entropy(answers[0]), entropy(answers[0]), classes), 0)


def test_certain_answers_that_all_differ_have_all_the_information() -> None:
    answers = np.eye(3)[:, :, None]  # three answers, one class each
    predictive, expected = entropy(answers.mean(axis=0)), np.mean([entropy(answer) for answer in answers], axis=0)
    np.testing.assert_allclose(mutual_information(predictive, expected, 3), [100])
    np.testing.assert_allclose(mutual_information(predictive, expected, 3, scale=(0, 2 * math.log(3))), [50])


def test_entropies_in_the_wrong_order_or_shape() -> None:
    low, high = np.zeros(3), np.ones(3)
    with pytest.raises(LabelError, match="the mean entropy exceeds the predictive entropy"):
        mutual_information(low, high, 4)
    with pytest.raises(LabelError, match="or one is NaN"):
        mutual_information(high, np.full(3, math.nan), 4)
    with pytest.raises(GeometryError, match=r"predictive entropy has shape \(3,\), mean entropy \(2,\)"):
        mutual_information(high, low[:2], 4)
    with pytest.raises(RecipeError, match="entropy of 1 class"):
        mutual_information(high, low, 1)


@pytest.mark.parametrize("value", [math.nan, -0.1, 1.1, math.inf])
def test_probabilities_must_be_such(value: float) -> None:
    with pytest.raises(LabelError, match=r"probabilities run from .* \(give them after softmax or sigmoid\)"):
        as_probability(np.array([0.5, value]))


def test_probabilities_of_classes_must_sum_to_one() -> None:
    with pytest.raises(LabelError, match="do not sum to 1"):
        predictive_uncertainty(np.full((4, 2), 0.5))
    with pytest.raises(RecipeError, match=r"entropy of 1 class \(give two classes or more"):
        predictive_uncertainty(np.ones((1, 2)))
