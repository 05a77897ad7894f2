import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata

from modistill.errors import ScoreError
from modistill.evaluation.scores import Score
from modistill.evaluation.statistics import Summary, compare_paired, holm, paired_t_test, summarise, wilcoxon_test

NAN, INF = math.nan, math.inf


def test_t_test_by_hand() -> None:
    """Differences 1, 2, 3: mean 2, SD 1, t = 2 sqrt(3) with 2 degrees of freedom, p = 1 - t / sqrt(2 + t^2)."""
    t = 2 * math.sqrt(3)
    assert paired_t_test(np.array([1.0, 2.0, 3.0])).p == pytest.approx(1 - t / math.sqrt(2 + t * t))


def test_t_test_of_two_pairs_is_arctan() -> None:
    """One degree of freedom is the Cauchy distribution."""
    p = paired_t_test(np.array([1.0, 4.0])).p
    assert p == pytest.approx(1 - 2 / math.pi * math.atan(2.5 / 1.5))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(-9, 9).filter(bool), min_size=2, max_size=9, unique_by=abs))
def test_wilcoxon_counts_sign_patterns(values: list[int]) -> None:
    """Oracle: the share of all sign patterns whose smaller rank sum is at most the one found."""
    ranks = rankdata(np.abs(values))
    total = ranks.sum()
    found = min(ranks[np.array(values) > 0].sum(), ranks[np.array(values) < 0].sum())
    sums = [sum(r for r, s in zip(ranks, signs, strict=True) if s) for signs in itertools.product((0, 1), repeat=len(ranks))]
    share = sum(min(s, total - s) <= found + 1e-9 for s in sums) / len(sums)
    assert wilcoxon_test(np.array(values, float)).p == pytest.approx(share)


def test_wilcoxon_drops_zeros_and_ranks_infinities() -> None:
    plain = wilcoxon_test(np.array([1.0, 2.0, 3.0, -4.0, 5.0]))
    assert wilcoxon_test(np.array([0.0, 1.0, 2.0, 3.0, -4.0, 5.0, 0.0])) == plain
    assert wilcoxon_test(np.array([1.0, 2.0, 3.0, -4.0, INF])) == plain


def test_holm_by_hand() -> None:
    """R: p.adjust(c(0.01, 0.02, 0.03, 0.04, 0.05), "holm") = 0.05 0.08 0.09 0.09 0.09."""
    assert holm([0.01, 0.02, 0.03, 0.04, 0.05]) == pytest.approx([0.05, 0.08, 0.09, 0.09, 0.09])
    assert holm([0.6, 0.5]) == pytest.approx([1.0, 1.0])
    assert holm([0.2]) == [0.2]
    assert holm([]) == []


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.randoms())
def test_holm_is_between_p_and_bonferroni_and_ignores_order(p: list[float], random: object) -> None:
    adjusted = holm(p)
    assert all(raw <= new <= min(1.0, len(p) * raw) + 1e-12 for raw, new in zip(p, adjusted, strict=True))
    order = list(range(len(p)))
    random.shuffle(order)  # type: ignore[attr-defined]
    assert holm([p[i] for i in order]) == pytest.approx([adjusted[i] for i in order])


def test_undefined_pairs_are_dropped_and_counted() -> None:
    found = compare_paired([1.0, NAN, 3.0, 4.0], [2.0, 5.0, NAN, 7.0])
    assert (found.n, found.n_dropped, found.mean) == (2, 2, 2.0)
    assert found.t.p == compare_paired([1.0, 4.0], [2.0, 7.0]).t.p is not None


@pytest.mark.parametrize(
    ("control", "arm", "mean", "t", "wilcoxon", "interval"),
    [
        ([], [], None, "n = 0", "n = 0", "n = 0"),
        ([NAN], [1.0], None, "n = 0", "n = 0", "n = 0"),
        ([0.5], [0.7], 0.2, "n = 1", "n = 1", "n = 1"),
        (
            [1.0, 2.0],
            [1.0, 2.0],
            0.0,
            "all 2 differences are zero",
            "all 2 differences are zero",
            "all 2 differences are equal",
        ),
        ([0.1, 0.2, 0.3], [0.2, 0.3, 0.4], 0.1, "all 3 differences are equal", "", "all 3 differences are equal"),
        ([1.0, INF, 2.0], [2.0, 1.0, 2.5], None, "1 of 3 differences are infinite", "", "infinite values"),
        ([INF, INF], [INF, INF], None, "all 2 differences are zero", "all 2 differences are zero", "infinite values"),
    ],
)
def test_what_is_not_defined_says_why(
    control: list[float], arm: list[float], mean: float | None, t: str, wilcoxon: str, interval: str
) -> None:
    found = compare_paired(control, arm, resamples=200)
    assert found.mean == (None if mean is None else pytest.approx(mean))
    assert (found.t.why_not, found.wilcoxon.why_not, found.interval_why_not) == (t, wilcoxon, interval)
    for test in (found.t, found.wilcoxon):
        assert (test.p is None) == bool(test.why_not)
    assert (found.interval is None) == bool(interval)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(*[st.sampled_from([NAN, INF, 0.0, 0.25, 0.5, 1.0])] * 2), max_size=7))
def test_no_number_is_ever_nan(pairs: list[tuple[float, float]]) -> None:
    found = compare_paired([a for a, _ in pairs], [b for _, b in pairs], resamples=100)
    assert found.n + found.n_dropped == len(pairs)
    for value in (found.mean, found.t.p, found.wilcoxon.p, *(found.interval or ())):
        assert value is None or math.isfinite(value)
    assert all(test.p is None or test.p > 0 for test in (found.t, found.wilcoxon))


def test_interval_is_seeded_and_covers_the_mean_difference() -> None:
    rng = np.random.default_rng(0)
    control, arm = rng.normal(size=20), rng.normal(0.5, 1, size=20)
    first, again, other = (compare_paired(control, arm, resamples=2000, seed=seed).interval for seed in (1, 1, 2))
    assert first == again != other
    assert first is not None
    assert first[0] < (arm - control).mean() < first[1]
    # Twenty values are enough for the normal interval to be a neighbour.
    half = 1.96 * (arm - control).std(ddof=1) / math.sqrt(20)
    assert first[1] - first[0] == pytest.approx(2 * half, rel=0.15)


def test_pairs_are_needed() -> None:
    with pytest.raises(ScoreError, match="2 values of the control and 1 of the arm are no pairs"):
        compare_paired([1.0, 2.0], [1.0])


def test_summary_counts_what_the_mean_rests_on() -> None:
    rows = [
        Score("a", "1", "", "ET", "dice", 1.0, "both_empty"),
        Score("a", "2", "", "ET", "dice", 0.0, "failed"),
        Score("a", "3", "", "ET", "dice", NAN, "both_empty"),
        Score("a", "4", "", "ET", "dice", 0.5),
        Score("a", "5", "", "ET", "dice", 0.0, "one_empty"),
    ]
    found = summarise(rows)["a", "ET", "dice"]
    assert (found.n, found.n_failed, found.n_one_empty, found.n_undefined) == (4, 1, 1, 1)
    assert found.mean == pytest.approx(0.375)
    assert found.median == 0.25


def test_summaries_of_little_and_of_infinities() -> None:
    assert Summary.of([NAN]) == Summary(0, 0, 0, 1, None, None, None)
    assert Summary.of([2.0]) == Summary(1, 0, 0, 0, 2.0, None, 2.0)
    assert Summary.of([1.0, 2.0, INF]) == Summary(3, 0, 0, 0, INF, None, 2.0)
