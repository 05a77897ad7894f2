"""Arms against a control, in every region and metric.

An *arm* is what is compared (a method); its runs differ in the seed only and are named `arm/seed`. Each case is averaged over
the seeds of an arm before anything is tested, so the cases are the sample and seeds do not pass for patients.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from modistill.errors import ScoreError
from modistill.evaluation.protocol import METRICS, Rules
from modistill.evaluation.scores import Score, Scores, refuse_repeated
from modistill.evaluation.statistics import Difference, Summary, TestResult, compare_paired, holm

__all__ = ["Comparison", "ComparisonTable", "arm_of", "compare"]


@dataclass(frozen=True)
class Comparison:
    """One line of the table: an arm in one region and metric.

    Attributes:
        arm: its name.
        seeds: runs that were averaged.
        region: name of the region.
        metric: name of the metric.
        summary: over cases, each averaged over seeds.
        difference: against the control; None for the control itself.
    """

    arm: str
    seeds: int
    region: str
    metric: str
    summary: Summary
    difference: Difference | None


@dataclass(frozen=True)
class ComparisonTable:
    """Lines in the order metric, region, arm (the control first), and what they rest on.

    Attributes:
        control: name of the control.
        lines: the comparisons.
        cases: ids of the cases compared.
        left_out: ids of cases that some run lacks (only where common cases were asked for).
        protocol: the rules all scores were made by.
        family: how many t-tests and how many Wilcoxon tests Holm's correction ran over: all that the table defines.
        resamples: of each bootstrap.
        seed: of each bootstrap.
    """

    control: str
    lines: tuple[Comparison, ...]
    cases: tuple[str, ...]
    left_out: tuple[str, ...]
    protocol: Rules
    family: tuple[int, int]
    resamples: int
    seed: int


def arm_of(run: str) -> str:
    """The arm that a run belongs to: what stands before the last "/".

    Example:
        >>> arm_of("had_net/seed1"), arm_of("control")
        ('had_net', 'control')
    """
    return run.rsplit("/", 1)[0]


def compare(
    tables: Sequence[Scores],
    control: str,
    *,
    metrics: Collection[str] | None = None,
    common: bool = False,
    resamples: int = 9999,
    seed: int = 0,
) -> ComparisonTable:
    """Compare every arm with the control, in every region and metric.

    Args:
        tables: score tables; runs named `arm/seed` are seeds of one arm.
        control: name of the control arm.
        metrics: names of the metrics, in the order of the table; None for those that lead in the tables' protocol.
        common: compare the cases that all runs share, where their cases differ.
        resamples: of each bootstrap.
        seed: of each bootstrap.

    Raises:
        ScoreError: no such control or metric, no other arm, different protocols, cases or regions, or a row twice.
    """
    if metrics is None:
        metrics = tables[0].protocol.headline if tables else ()
    for name in metrics:
        if name not in METRICS:
            raise ScoreError(f"no metric named {name}", remedy=f"known: {', '.join(METRICS)}")
    rows = [row for table in tables for row in table.rows]
    refuse_repeated(rows)
    _refuse_subsets(rows)
    protocol = _one_protocol(tables, scales=any(METRICS[name].rests_on == "uncertainty" for name in metrics))
    arms = _arms(rows, control)
    cases, left_out = _cases(rows, common)
    regions = _regions(rows)
    scores = {(row.run, row.case, row.region, row.metric): row for row in rows}
    lines = []
    for metric in metrics:
        for region in regions:
            values = {arm: _per_case(scores, runs, cases, region, metric) for arm, runs in arms.items()}
            for arm, (of_arm, counts) in values.items():
                pairs = (values[control][0], of_arm)
                difference = None if arm == control else compare_paired(*pairs, resamples=resamples, seed=seed)
                lines.append(Comparison(arm, len(arms[arm]), region, metric, Summary.of(of_arm, *counts), difference))
    corrected, family = _corrected(lines)
    return ComparisonTable(control, corrected, cases, left_out, protocol, family, resamples, seed)


def _one_protocol(tables: Sequence[Scores], scales: bool) -> Rules:
    """The protocol of all tables; the scale of uncertainty is part of it where `scales` matter."""
    if not tables:
        raise ScoreError("no scores given", remedy="give the score files of two runs or more")
    protocols = [table.protocol if scales else table.protocol.without_scale() for table in tables]
    for table, protocol in zip(tables, protocols, strict=True):
        if protocol != protocols[0]:
            raise ScoreError(
                f"protocols differ between {tables[0].runs[0]} and {table.runs[0]}: {protocols[0].differences(protocol)}",
                remedy="evaluate them by one protocol",
            )
    return protocols[0]


def _refuse_subsets(rows: Sequence[Score]) -> None:
    """Refuse runs that scored a case from several sets of modalities: a comparison is of one."""
    given: dict[tuple[str, str], str] = {}
    for row in rows:
        other = given.setdefault((row.run, row.case), row.available)
        if other != row.available:
            raise ScoreError(
                f"run {row.run} was scored with {other} and with {row.available}",
                case=row.case,
                remedy=f"compare one set: --available {row.available}",
            )


def _arms(rows: Sequence[Score], control: str) -> dict[str, list[str]]:
    """Arm -> its runs, the control first."""
    runs = dict.fromkeys(row.run for row in rows)
    names = dict.fromkeys(arm_of(run) for run in runs)
    if control not in names:
        raise ScoreError(f"no arm named {control}", remedy=f"found: {', '.join(names) or 'none'}")
    if len(names) < 2:
        raise ScoreError(f"{control} is the only arm", remedy="give the scores of another run")
    ordered = [control, *(name for name in names if name != control)]
    return {name: [run for run in runs if arm_of(run) == name] for name in ordered}


def _cases(rows: Sequence[Score], common: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The cases compared, and those left out because some run lacks them."""
    by_run: dict[str, set[str]] = {}
    for row in rows:
        by_run.setdefault(row.run, set()).add(row.case)
    everything, shared = set().union(*by_run.values()), set.intersection(*by_run.values())
    missing = sorted(everything - shared)
    if missing and not common:
        run = next(run for run, found in by_run.items() if missing[0] not in found)
        raise ScoreError(
            f"the runs were not scored on the same cases: {len(missing)} of {len(everything)} are not in all of them, "
            f"{missing[0]} not in {run}",
            remedy="score them on the same cases, or compare the common ones with --common",
        )
    if not shared:
        raise ScoreError("the runs have no case in common", remedy="score them on the same cases")
    return tuple(sorted(shared)), tuple(missing)


def _regions(rows: Sequence[Score]) -> tuple[str, ...]:
    """The regions, which must be the same in every run."""
    by_run: dict[str, dict[str, None]] = {}
    for row in rows:
        by_run.setdefault(row.run, {})[row.region] = None
    first, *others = by_run
    for run in others:
        if set(by_run[run]) != set(by_run[first]):
            named = [f"{name} has {', '.join(by_run[name])}" for name in (first, run)]
            raise ScoreError(f"regions differ: {' but '.join(named)}", remedy="score them in one set of regions")
    return tuple(by_run[first])


def _per_case(
    scores: Mapping[tuple[str, str, str, str], Score], runs: Sequence[str], cases: Sequence[str], region: str, metric: str
) -> tuple[list[float], tuple[int, int]]:
    """Value of each case, averaged over the seeds that define it (NaN where none does).

    Counted besides: cases that failed, and cases where one of prediction and reference is empty, in at least one seed.
    """
    values, failed, one_empty = [], 0, 0
    for case in cases:
        try:
            found = [scores[run, case, region, metric] for run in runs]
        except KeyError as error:
            raise ScoreError(
                f"no {metric} of {region} in run {error.args[0][0]}", case=case, remedy="evaluate it again"
            ) from None
        defined = [score.value for score in found if not np.isnan(score.value)]
        values.append(float(np.mean(defined)) if defined else float("nan"))
        failed += any(score.status == "failed" for score in found)
        one_empty += any(score.status == "one_empty" for score in found)
    return values, (failed, one_empty)


def _corrected(lines: Sequence[Comparison]) -> tuple[tuple[Comparison, ...], tuple[int, int]]:
    """Holm's correction over all defined tests of a kind, and the sizes of the two families."""
    differences = [line.difference for line in lines if line.difference]
    t_tests = _adjusted([difference.t for difference in differences])
    wilcoxon = _adjusted([difference.wilcoxon for difference in differences])
    tested = iter(zip(differences, t_tests, wilcoxon, strict=True))
    corrected = []
    for line in lines:
        if line.difference:
            difference, t, w = next(tested)
            line = replace(line, difference=replace(difference, t=t, wilcoxon=w))
        corrected.append(line)
    return tuple(corrected), (sum(t.p is not None for t in t_tests), sum(w.p is not None for w in wilcoxon))


def _adjusted(tests: Sequence[TestResult]) -> list[TestResult]:
    adjusted = iter(holm([test.p for test in tests if test.p is not None]))
    return [test if test.p is None else replace(test, adjusted=next(adjusted)) for test in tests]
