import functools
import itertools
import math
import operator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from modistill.errors import CaseError, GeometryError, LabelError, RecipeError, ScoreError
from modistill.metrics.calibration import Bins, aurc, brier, ece, reliability, risk_coverage


def test_bins_by_hand() -> None:
    probability = np.array([0, 0.1, 0.25, 0.26, 0.5, 0.9, 1.0])
    truth = np.array([0, 1, 0, 0, 1, 1, 1])
    found = reliability(probability, truth, bins=4)
    assert found.edges.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert found.counts.tolist() == [3, 2, 0, 2]  # a bin holds its upper edge
    assert found.positives.tolist() == [1, 1, 0, 2]
    np.testing.assert_allclose(found.mean_probability, [0.35 / 3, 0.38, math.nan, 0.95])
    np.testing.assert_allclose(found.observed_frequency, [1 / 3, 1 / 2, math.nan, 1])
    assert found.ece == pytest.approx((3 * (1 / 3 - 0.35 / 3) + 2 * (0.5 - 0.38) + 2 * 0.05) / 7)
    assert brier(probability, truth) == pytest.approx((0.81 + 0.0625 + 0.0676 + 0.25 + 0.01) / 7)


def plain_ece(probability: NDArray[Any], truth: NDArray[Any], bins: int) -> float:
    error = 0.0
    for number in range(1, bins + 1):
        inside = (probability > (number - 1) / bins if number > 1 else probability >= 0) & (probability <= number / bins)
        if inside.any():
            error += inside.mean() * abs(truth[inside].mean() - probability[inside].mean())
    return error


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), bins=st.integers(1, 20), voxels=st.integers(1, 60))
def test_ece_of_the_plain_form_in_any_order(seed: int, bins: int, voxels: int) -> None:
    rng = np.random.default_rng(seed)
    probability, truth = rng.random(voxels), rng.random(voxels) < 0.3
    order = rng.permutation(voxels)
    assert ece(probability, truth, bins=bins) == pytest.approx(plain_ece(probability, truth, bins))
    assert ece(probability[order], truth[order], bins=bins) == pytest.approx(ece(probability, truth, bins=bins))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), cases=st.integers(1, 4))
def test_adding_bins_pools_the_voxels(seed: int, cases: int) -> None:
    rng = np.random.default_rng(seed)
    probabilities = [rng.random(rng.integers(1, 40)) for _ in range(cases)]
    truths = [rng.random(len(values)) < values for values in probabilities]
    merged = functools.reduce(operator.add, [reliability(*case) for case in zip(probabilities, truths, strict=True)])
    pooled = reliability(np.concatenate(probabilities), np.concatenate(truths))
    np.testing.assert_array_equal(merged.counts, pooled.counts)
    np.testing.assert_array_equal(merged.positives, pooled.positives)
    np.testing.assert_allclose(merged.probability_sums, pooled.probability_sums)
    assert merged.ece == pytest.approx(pooled.ece)


def test_calibrated_certain_and_wrong_probabilities() -> None:
    truth = np.arange(10) < 7
    assert ece(np.full(10, 0.7), truth) == pytest.approx(0)
    assert ece(truth.astype(float), truth) == brier(truth.astype(float), truth) == 0
    assert ece(1.0 - truth, truth) == brier(1.0 - truth, truth) == 1
    assert brier(np.full(10, 0.7), truth) == pytest.approx(0.21)


def test_only_voxels_inside_the_mask_count() -> None:
    probability, truth = np.array([[0.2, 0.9], [0.6, 1.0]]), np.array([[0, 0], [1, 0]])
    mask = np.array([[3.5, -1], [0.1, 0]])  # an image serves: above 0 is inside
    assert reliability(probability, truth, bins=2, mask=mask).counts.tolist() == [1, 1]
    assert ece(probability, truth, mask=mask) == pytest.approx((0.2 + 0.4) / 2)
    assert brier(probability, truth, mask=mask) == pytest.approx((0.04 + 0.16) / 2)


def test_edges_hold_in_single_precision() -> None:
    tenths = np.arange(11) / 10
    for kind in (np.float32, np.float64):
        assert reliability(tenths.astype(kind), tenths > 0.5, bins=10).counts.tolist() == [2] + [1] * 9


def test_no_voxels_no_number() -> None:
    nothing = Bins(np.zeros(3, np.int64), np.zeros(3), np.zeros(3, np.int64))
    assert math.isnan(nothing.ece)
    assert np.isnan(nothing.mean_probability).all()
    assert np.isnan(nothing.observed_frequency).all()


def test_bad_voxels() -> None:
    half = np.full((2, 2), 0.5)
    with pytest.raises(GeometryError, match=r"probability has shape \(2, 2\), truth \(4,\)"):
        ece(half, np.ones(4))
    with pytest.raises(GeometryError, match=r"probability has shape \(2, 2\), mask \(4,\)"):
        brier(half, half, mask=np.ones(4))
    with pytest.raises(CaseError, match="no voxel counts"):
        ece(half, half, mask=np.zeros((2, 2)))
    with pytest.raises(RecipeError, match="0 bins"):
        reliability(half, half, bins=0)
    with pytest.raises(LabelError, match="probabilities run from"):
        brier(half + 1, half)
    with pytest.raises(ScoreError, match="bins differ: 2 and 3"):
        reliability(half, half, bins=2) + reliability(half, half, bins=3)


def test_risk_coverage_by_hand() -> None:
    risk, confidence = np.array([0.2, 0.1, 0.6]), np.array([-10.0, -30.0, -20.0])
    np.testing.assert_allclose(risk_coverage(risk, confidence), [0.2, 0.4, 0.3])
    found = aurc(risk, confidence)
    assert found.value == pytest.approx(0.9 / 3)
    assert found.best == pytest.approx((0.1 + 0.15 + 0.3) / 3)
    assert found.random == pytest.approx(0.3)
    assert found.excess == pytest.approx((0.9 - 0.55) / 3)


values = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), min_size=1, max_size=5)


def area(risks: tuple[float, ...]) -> float:
    """Of cases in this order, most confident first."""
    return sum(sum(risks[:k]) / k for k in range(1, len(risks) + 1)) / len(risks)


@settings(max_examples=60, deadline=None)
@given(cases=values)
def test_ties_are_the_mean_over_all_their_orders(cases: list[tuple[int, int]]) -> None:
    orders = [order for order in itertools.permutations(cases) if list(order) == sorted(order, key=lambda case: -case[1])]
    expected = sum(area(tuple(risk / 5 for risk, _ in order)) for order in orders) / len(orders)
    risk, confidence = np.array(cases).T
    assert aurc(risk / 5, confidence).value == pytest.approx(expected)


@settings(max_examples=60, deadline=None)
@given(cases=values)
def test_no_order_beats_the_best_and_the_mean_of_all_is_random(cases: list[tuple[int, int]]) -> None:
    risk, confidence = np.array(cases).T
    found = aurc(risk / 5, confidence)
    areas = [area(order) for order in itertools.permutations((risk / 5).tolist())]
    assert found.best == pytest.approx(min(areas))
    assert found.random == pytest.approx(sum(areas) / len(areas))
    assert aurc(risk / 5, -risk).excess == 0
    assert found.excess >= -1e-12


def test_only_the_order_of_confidence_counts() -> None:
    rng = np.random.default_rng(0)
    risk, confidence = rng.random(30), rng.normal(size=30)
    assert aurc(risk, np.exp(3 * confidence)) == aurc(risk, confidence)
    assert aurc(risk, np.zeros(30)).value == pytest.approx(risk.mean())


def test_bad_cases() -> None:
    ones = np.ones(3)
    with pytest.raises(ScoreError, match=r"risks have shape \(3,\), confidences \(2,\) \(give one of each a case\)"):
        aurc(ones, ones[:2])
    with pytest.raises(ScoreError, match=r"risks have shape \(0,\)"):
        aurc(ones[:0], ones[:0])
    for bad in (np.array([1, math.nan, 1]), np.array([1, math.inf, 1])):
        with pytest.raises(ScoreError, match=r"not finite \(leave out cases without a value\)"):
            aurc(bad, ones)
        with pytest.raises(ScoreError, match="not finite"):
            aurc(ones, bad)
