"""Paired statistics: what differs between two arms over the same cases, by how much, and how sure one may be.

- mean difference, arm minus control, with a bootstrap interval over cases (BCa: Efron, JASA 82:171, 1987; seeded);
- paired t-test (Student, Biometrika 6:1, 1908), two-sided;
- Wilcoxon signed-rank test (Biometrics Bulletin 1:80, 1945), two-sided, zero differences dropped;
- Holm's correction for several tests (Scand. J. Statist. 6:65, 1979).

A number that is not defined is None and its place says why; it is never NaN, and never 0 in silence.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from modistill.errors import ScoreError
from modistill.evaluation.scores import Score

__all__ = [
    "Difference",
    "Summary",
    "TestResult",
    "compare_paired",
    "holm",
    "paired_t_test",
    "summarise",
    "wilcoxon_test",
]


@dataclass(frozen=True)
class Summary:
    """Mean and spread of one metric in one region.

    Attributes:
        n: values in the mean.
        n_failed: cases among them without a usable prediction (in at least one seed), counted at the protocol's worst value.
        n_one_empty: cases among them where the region was missed, or predicted where there is none (in at least one seed).
        n_undefined: cases left out because the protocol gives them no value.
        mean: None where n = 0.
        sd: sample standard deviation (n - 1); None where n < 2 or a value is infinite.
        median: None where n = 0.
    """

    n: int
    n_failed: int
    n_one_empty: int
    n_undefined: int
    mean: float | None
    sd: float | None
    median: float | None

    @classmethod
    def of(cls, values: Sequence[float], n_failed: int = 0, n_one_empty: int = 0) -> Summary:
        """Summarise values, one a case; NaN is undefined.

        Example:
            >>> Summary.of([1.0, 2.0, 6.0, float("nan")])
            Summary(n=3, n_failed=0, n_one_empty=0, n_undefined=1, mean=3.0, sd=2.6457513110645907, median=2.0)
        """
        everything = np.asarray(values, dtype=np.float64)
        defined = everything[~np.isnan(everything)]
        n = len(defined)
        return cls(
            n,
            n_failed,
            n_one_empty,
            len(everything) - n,
            float(defined.mean()) if n else None,
            float(defined.std(ddof=1)) if n > 1 and np.isfinite(defined).all() else None,
            float(np.median(defined)) if n else None,
        )


@dataclass(frozen=True)
class TestResult:
    """One test.

    Attributes:
        p: two-sided p-value, None where it is not defined.
        why_not: the reason then, "" otherwise.
        adjusted: p after Holm's correction over the family of the table.
    """

    __test__ = False  # not a test class of pytest's

    p: float | None
    why_not: str = ""
    adjusted: float | None = None


@dataclass(frozen=True)
class Difference:
    """Paired difference of two arms, arm minus control.

    Attributes:
        n: pairs in which both values are defined.
        n_dropped: pairs left out because one value, or both, is undefined.
        mean: mean difference; None where n = 0 or a value is infinite.
        interval: 95 % bootstrap interval of the mean difference; None where it is not defined.
        interval_why_not: the reason then.
        t: paired t-test.
        wilcoxon: Wilcoxon signed-rank test.
    """

    n: int
    n_dropped: int
    mean: float | None
    interval: tuple[float, float] | None
    interval_why_not: str
    t: TestResult
    wilcoxon: TestResult


def summarise(rows: Iterable[Score]) -> dict[tuple[str, str, str], Summary]:
    """(run, region, metric) -> summary over cases."""
    groups: dict[tuple[str, str, str], list[Score]] = {}
    for row in rows:
        groups.setdefault((row.run, row.region, row.metric), []).append(row)
    return {
        key: Summary.of([row.value for row in group], *(sum(row.status == s for row in group) for s in ("failed", "one_empty")))
        for key, group in groups.items()
    }


def paired_t_test(differences: NDArray[np.float64]) -> TestResult:
    """Student's t-test of paired differences against 0, two-sided.

    Args:
        differences: (n,) arm minus control, no NaN.

    Example:
        The hours of sleep of Student's paper: t = -4.0621 with 9 degrees of freedom.

        >>> gain = np.array([-1.2, -2.4, -1.3, -1.3, 0.0, -1.0, -1.8, -0.8, -4.6, -1.4])
        >>> round(paired_t_test(gain).p, 6)
        0.002833
    """
    why_not = _no_test(differences)
    if not why_not and not np.isfinite(differences).all():
        why_not = f"{np.count_nonzero(~np.isfinite(differences))} of {len(differences)} differences are infinite"
    if not why_not and np.ptp(differences) <= 1e-12 * np.abs(differences).max():
        why_not = f"all {len(differences)} differences are equal"
    if why_not:
        return TestResult(None, why_not)
    from scipy.stats import ttest_1samp

    return TestResult(float(ttest_1samp(differences, 0.0).pvalue))


def wilcoxon_test(differences: NDArray[np.float64]) -> TestResult:
    """Wilcoxon signed-rank test of paired differences, two-sided; zero differences are dropped.

    Exact where at most 50 differences remain and no two are tied; with ties exact by permutation up to 13 differences, and the
    normal approximation beyond (`scipy.stats.wilcoxon`, method "auto"). Ranks carry it through infinite differences.

    Args:
        differences: (n,) arm minus control, no NaN.

    Example:
        Five differences of one sign: 2 of 32 sign patterns are as extreme.

        >>> wilcoxon_test(np.array([1.0, 2.0, 3.0, 4.0, 5.0])).p
        0.0625
    """
    why_not = _no_test(differences)
    if why_not:
        return TestResult(None, why_not)
    from scipy.stats import rankdata, wilcoxon

    rest = differences[differences != 0]
    # Signed ranks in place of differences: the test sees only these, and infinities become plain numbers.
    return TestResult(float(wilcoxon(np.sign(rest) * rankdata(np.abs(rest))).pvalue))


def _no_test(differences: NDArray[np.float64]) -> str:
    """Why no test of these differences is defined; "" where one is."""
    if len(differences) < 2:
        return f"n = {len(differences)}"
    return "" if differences.any() else f"all {len(differences)} differences are zero"


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: the k-th smallest of m p-values times m - k + 1, never falling, at most 1.

    Example:
        >>> holm([0.01, 0.04, 0.03, 0.005])
        [0.03, 0.06, 0.06, 0.02]
    """
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def compare_paired(control: Sequence[float], arm: Sequence[float], *, resamples: int = 9999, seed: int = 0) -> Difference:
    """Compare two arms over the same cases.

    Args:
        control: one value a case; NaN is undefined, infinities are kept.
        arm: the other arm's values, cases in the same order.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        The difference, arm minus control, tests not yet corrected. Where both values are infinite the difference is 0.

    Raises:
        ScoreError: the arms differ in length.
    """
    if len(control) != len(arm):
        raise ScoreError(f"{len(control)} values of the control and {len(arm)} of the arm are no pairs")
    before, after = np.asarray(control, dtype=np.float64), np.asarray(arm, dtype=np.float64)
    defined = ~(np.isnan(before) | np.isnan(after))
    before, after = before[defined], after[defined]
    different = before != after
    differences = np.zeros(len(before))
    differences[different] = after[different] - before[different]
    finite = bool(np.isfinite(before).all() and np.isfinite(after).all())
    mean = float(differences.mean()) if finite and len(differences) else None
    interval, why_not = _bootstrap(differences, resamples, seed) if finite else (None, "infinite values")
    dropped = int(np.count_nonzero(~defined))
    return Difference(
        len(differences), dropped, mean, interval, why_not, paired_t_test(differences), wilcoxon_test(differences)
    )


def _bootstrap(differences: NDArray[np.float64], resamples: int, seed: int) -> tuple[tuple[float, float] | None, str]:
    """95 % BCa interval of the mean, or why there is none."""
    if len(differences) < 2:
        return None, f"n = {len(differences)}"
    if np.ptp(differences) <= 1e-12 * np.abs(differences).max():
        return None, f"all {len(differences)} differences are equal"
    from scipy.stats import bootstrap

    rng = np.random.default_rng(seed)
    found = bootstrap((differences,), np.mean, n_resamples=resamples, method="BCa", batch=1000, rng=rng).confidence_interval
    if not (math.isfinite(found.low) and math.isfinite(found.high)):
        return None, f"too few different values among n = {len(differences)}"
    return (float(found.low), float(found.high)), ""
