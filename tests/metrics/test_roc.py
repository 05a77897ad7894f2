"""ROC curves by hand and against the Mann-Whitney statistic, the bootstrap over patients, and tumours found."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit
from scipy.stats import mannwhitneyu

from modistill.errors import GeometryError, LabelError, ScoreError
from modistill.metrics.roc import (
    DETECTION_THRESHOLDS,
    VoxelCounts,
    bootstrap_area,
    count_voxels,
    detection_curve,
    find_components,
)


def cohort(patients: int, seed: int = 0, size: int = 200) -> list[VoxelCounts]:
    rng = np.random.default_rng(seed)
    truth = [np.arange(size) < 40 for _ in range(patients)]
    return [count_voxels(expit(rng.normal(mask * 1.5 + rng.normal(0, 0.3), 1)), mask) for mask in truth]


def test_area_and_curve_by_hand() -> None:
    """Pairs: 0.5 beats 0.1, ties 0.5 and loses to 0.6; 0.9 beats all. 1 + 1/2 + 0 + 3 of 6."""
    counts = count_voxels(np.array([[0.1, 0.6, 0.5], [0.5, 0.9, 0.0]])[:, :], np.array([[0, 0, 0], [1, 1, 0]]))
    assert counts.area == pytest.approx((2 + 0.5 + 4) / 8)  # the voxel at 0 loses to both
    false, sensitivity, thresholds = counts.curve
    assert false.tolist() == [0, 0, 0.25, 0.5, 0.75, 1]
    assert sensitivity.tolist() == [0, 0.5, 0.5, 1, 1, 1]
    assert thresholds[0] == math.inf
    assert thresholds[1:] == pytest.approx([0.9, 0.6, 0.5, 0.1, 0], abs=0.002)
    assert np.trapezoid(sensitivity, false) == pytest.approx(counts.area)


@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=2, max_size=40))
def test_area_is_the_mann_whitney_statistic_with_ties(voxels: list[tuple[int, bool]]) -> None:
    levels, truth = (np.array(column) for column in zip(*voxels, strict=True))
    p = np.array([0, 1e-5, 0.01, 0.3, 0.5, 0.999, 1])[levels]
    area = count_voxels(p.astype(np.float32), truth).area
    if truth.all() or not truth.any():
        assert math.isnan(area)
    else:
        pairs = truth.sum() * (~truth).sum()
        assert area == pytest.approx(mannwhitneyu(p[truth], p[~truth]).statistic / pairs)


def test_bins_cost_little() -> None:
    rng = np.random.default_rng(0)
    truth = rng.random(20_000) < 0.1
    for spread in (0.1, 1.0, 4.0):  # of logits: a network hardly trained, and one that is sure
        p = expit(spread * (rng.normal(size=truth.size) + truth - 1))
        exact = mannwhitneyu(p[truth], p[~truth]).statistic / (truth.sum() * (~truth).sum())
        assert count_voxels(p, truth).area == pytest.approx(exact, abs=5e-4)


def test_perfect_reversed_and_constant_probabilities() -> None:
    truth = np.array([1, 1, 0, 0, 0])
    assert count_voxels(np.array([1.0, 0.9, 0.2, 0.1, 0.0]), truth).area == 1
    assert count_voxels(np.array([0.0, 0.1, 0.2, 0.9, 1.0]), truth).area == 0
    constant = count_voxels(np.full(5, 0.3), truth)
    assert constant.area == 0.5
    assert [axis.tolist() for axis in constant.curve[:2]] == [[0, 1], [0, 1]]


def test_counts_of_cases_add_up_to_those_of_all_voxels() -> None:
    rng = np.random.default_rng(1)
    p, truth = rng.random((3, 50)), rng.random((3, 50)) < 0.3
    parts = [count_voxels(*pair) for pair in zip(p, truth, strict=True)]
    assert (parts[0] + parts[1] + parts[2]).area == count_voxels(p, truth).area


def test_interval_holds_the_area_and_narrows_with_patients() -> None:
    few, many = cohort(6), cohort(60)
    widths = []
    for cases in (few, many):
        low, high = bootstrap_area(cases, resamples=500)
        assert low < sum(cases[1:], cases[0]).area < high
        widths.append(high - low)
    assert widths[1] < 0.6 * widths[0]
    assert bootstrap_area(few, resamples=500) == bootstrap_area(few, resamples=500)
    assert bootstrap_area(few, resamples=500, seed=1) != bootstrap_area(few, resamples=500)
    narrow = bootstrap_area(few, resamples=500, level=0.5)
    assert narrow[1] - narrow[0] < widths[0]


def test_the_interval_is_of_whole_patients() -> None:
    """Two patients, one perfect and one reversed: a resample is one of them twice (areas 1 and 0), or both."""
    good, bad = (count_voxels(np.array(p), np.array([1, 0])) for p in ([0.9, 0.1], [0.1, 0.9]))
    low, high = bootstrap_area([good, bad], resamples=300)
    assert (low, high) == (0, 1)
    assert (good + bad).area == 0.5


def test_patients_without_the_region_lend_background_only() -> None:
    cases = cohort(5)
    without = count_voxels(np.full(100, 0.01), np.zeros(100, bool))
    assert math.isnan(without.area)
    low, high = bootstrap_area([*cases, without], resamples=300)
    assert low > bootstrap_area(cases, resamples=300)[0]
    assert high <= 1
    assert bootstrap_area([cases[0], without, without]) is None


def test_tumours_found_by_hand() -> None:
    """A tumour of 4 voxels, one of 1 voxel, and a false spot of 2 voxels that touch at a corner only."""
    truth = np.zeros((8, 8, 2), bool)
    truth[0:2, 0:2, 0] = True
    truth[7, 7, 1] = True
    p = np.zeros(truth.shape, np.float32)
    p[0:2, 0, 0] = 0.93  # half of the first: IoU 2 / 4
    p[0:2, 1, 0] = 0.42
    p[4, 4, 0] = p[5, 5, 1] = 0.63
    found = find_components(p, truth)
    at = [DETECTION_THRESHOLDS.index(t) for t in (0.05, 0.4, 0.45, 0.6, 0.65, 0.9, 0.95)]
    assert found.tumours == 2
    assert found.found[at].tolist() == [1, 1, 1, 1, 1, 1, 0]
    assert found.false[at].tolist() == [1, 1, 1, 1, 0, 0, 0]
    nothing = find_components(np.full(truth.shape, 0.57), np.zeros_like(truth))
    per_patient, sensitivity = detection_curve([found, nothing])
    assert per_patient[at].tolist() == [1, 1, 1, 0.5, 0, 0, 0]
    assert sensitivity[at].tolist() == [0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0]
    assert np.isnan(detection_curve([nothing])[1]).all()


def test_a_map_that_is_positive_everywhere_finds_nothing() -> None:
    truth = np.zeros((10, 10, 10), bool)
    truth[:4, :4, :4] = True
    found = find_components(np.ones(truth.shape), truth)
    assert (set(found.found.tolist()), set(found.false.tolist())) == ({0}, {1})
    truth[:5, :5, :4] = True  # a tenth of the volume: IoU 0.1
    assert set(find_components(np.ones(truth.shape), truth).found.tolist()) == {1}


@pytest.mark.parametrize("function", [count_voxels, find_components])
def test_what_is_refused(function) -> None:
    with pytest.raises(GeometryError, match="probabilities have shape"):
        function(np.zeros((2, 2)), np.zeros((2, 3)))
    with pytest.raises(LabelError, match="probabilities run from"):
        function(np.array([0.0, 1.2]), np.zeros(2))


def test_other_bins_are_refused() -> None:
    one, other = (count_voxels(np.array([0.1, 0.9]), np.array([0, 1]), bins=bins) for bins in (8, 16))
    with pytest.raises(ScoreError, match="different bins"):
        bootstrap_area([one, other])
