"""Tables as papers print them: arms in lines, regions in columns, published numbers beside ours."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from modistill.evaluation.comparison import arm_of, compare
from modistill.evaluation.protocol import METRICS
from modistill.evaluation.scores import Scores
from modistill.evaluation.statistics import Summary
from modistill.evaluation.tables import TextTable, number, p_value

__all__ = ["Published", "case_means", "cost_table", "paper_table", "published_in", "set_apart"]

_TESTS = {"t": "paired t-test", "wilcoxon": "Wilcoxon's signed-rank test"}
Published = Mapping[str, Mapping[str, tuple[float, float | None]]]  # arm -> what a paper says of it


def paper_table(
    tables: Sequence[Scores],
    metric: str = "dice",
    *,
    beside: str | None = None,
    apart: Collection[str] = (),
    published: Published | None = None,
    test: Literal["t", "wilcoxon"] = "t",
    title: str = "",
) -> tuple[TextTable, list[str]]:
    """Mean and SD of every arm in every region, and what the best one beats.

    In each region the best arm is compared with every other by a paired test over cases: HAD-Net's tables have the t-test,
    CMEDL's Wilcoxon's signed ranks. Here each case is averaged over seeds first, and Holm's correction is applied.

    Args:
        tables: scores of all runs, named `arm/seed`.
        metric: which number.
        beside: a metric whose mean is shown in a column of its own beside each region.
        apart: arms that are bounds and no rivals, or these arms -> why: shown below the others, and not compared.
        published: arm -> mean and SD of a paper, or None for an SD it does not give: for a region, of Dice in per cent; for
            "metric/region", of this metric.
        test: of the best arm against the others.
        title: above the table.

    Returns:
        The table, and notes for below it.

    Raises:
        ScoreError: the runs cannot be compared.
    """
    arms = list(dict.fromkeys(arm_of(run) for table in tables for run in table.runs))
    rivals = [arm for arm in arms if arm not in apart]
    bounds = [arm for arm in arms if arm in apart]
    regions = tables[0].regions
    everything = compare(tables, rivals[0], metrics=(metric, *([beside] if beside else [])), resamples=100)
    summaries = {(line.arm, line.region): line.summary for line in everything.lines if line.metric == metric}
    others = {(line.arm, line.region): line.summary for line in everything.lines if line.metric == beside}
    lower = METRICS[metric].better == "lower"
    best = {r: min(rivals, key=lambda arm: _order(summaries[arm, r], lower)) for r in regions}
    largest: dict[str, str] = {}
    for arm in dict.fromkeys(best.values()):
        found = compare([t for t in tables if arm_of(t.runs[0]) in rivals], arm, metrics=(metric,), resamples=100)
        for region in (r for r in regions if best[r] == arm):
            differences = [line.difference for line in found.lines if line.region == region and line.difference]
            p = [(one.t if test == "t" else one.wilcoxon).adjusted for one in differences]
            known = [value for value in p if value is not None]
            beats = sum(value < 0.05 for value in known)
            largest[region] = f"{region}: {arm} is best; p < 0.05 against {beats} of {len(p)} others" + (
                f", largest p {p_value(max(known))}" if known else ""
            )
    theirs = {(arm, region): _theirs((published or {}).get(arm, {}), metric, region) for arm in arms for region in regions}
    rows = []
    for arm in (*rivals, *bounds):
        ours = [_cell(summaries[arm, region], metric) + ("*" if best[region] == arm else "") for region in regions]
        paper = [theirs[arm, region] or "-" for region in regions] if any(theirs.values()) else []
        second = [number(others[arm, region].mean, beside) for region in regions] if beside else []
        rows.append((arm, *ours, *second, *paper))
    header = (
        "arm",
        *regions,
        *((f"{region}, {METRICS[beside].title}" for region in regions) if beside else ()),
        *((f"{region} published" for region in regions) if any(theirs.values()) else ()),
    )
    undefined = {r: {summaries[arm, r].n_undefined for arm in arms} for r in regions}
    left_out = {f"{r}{' up to' if len(counts) > 1 else ''}": max(counts) for r, counts in undefined.items()}
    failed = {arm: max(summaries[arm, r].n_failed for r in regions) for arm in arms}
    notes = [
        f"{METRICS[metric].title}, mean ± SD over {len(everything.cases)} cases, each averaged over the seeds of an arm first; "
        "* best in its column",
        *([set_apart(bounds, apart)] if bounds else []),
        *([f"undefined and left out: {_counted(left_out)}"] if any(left_out.values()) else []),
        *([f"without usable result, counted at the worst: {_counted(failed)}"] if any(failed.values()) else []),
        *(largest[region] for region in regions),
        f"p: {_TESTS[test]}, best arm against others, after Holm's correction over all regions it is compared in",
    ]
    if any(theirs.values()):
        notes.append("published: the paper's own numbers, on its data; not comparable with ours")
    ends = (len(rivals) - 1,) if bounds else ()
    return TextTable(title or METRICS[metric].title, header, tuple(rows), ends), notes


def set_apart(arms: Sequence[str], apart: Collection[str]) -> str:
    """What a note says of arms that are shown and not compared.

    Example:
        >>> set_apart(["teacher", "bound"], {"teacher": "sees privileged data", "bound": ""})
        'set apart, neither ranked nor compared: teacher (sees privileged data), bound'
    """
    why = apart if isinstance(apart, Mapping) else {}
    said = (f"{arm} ({why[arm]})" if why.get(arm) else arm for arm in arms)
    return f"set apart, neither ranked nor compared: {', '.join(said)}"


def published_in(
    numbers: Mapping[str, tuple[float, float | None]], metric: str, region: str
) -> tuple[float, float | None] | None:
    """Mean and SD of one arm in a paper, in the unit of the metric; None where the paper has none.

    Example:
        >>> published_in({"WT": (87.5, 7.5), "kl/body": (0.079, None)}, "dice", "WT")
        (0.875, 0.075)
    """
    if metric == "dice" and region in numbers and f"dice/{region}" not in numbers:
        mean, sd = numbers[region]
        return mean / 100, None if sd is None else sd / 100
    return numbers.get(f"{metric}/{region}")


def case_means(tables: Sequence[Scores], metric: str) -> dict[str, dict[str, NDArray[np.float64]]]:
    """Arm -> region -> one value a case: its mean over the seeds that define it, NaN where none does."""
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    for row in (row for table in tables for row in table.rows if row.metric == metric):
        values = found.setdefault(arm_of(row.run), {}).setdefault(row.region, {}).setdefault(row.case, [])
        if not np.isnan(row.value):
            values.append(row.value)
    return {
        arm: {
            region: np.array([np.mean(values) if values else np.nan for _, values in sorted(cases.items())])
            for region, cases in regions.items()
        }
        for arm, regions in found.items()
    }


def cost_table(costs: Mapping[str, Sequence[Mapping[str, Any]]]) -> TextTable:
    """What each arm cost.

    Args:
        costs: arm -> one entry a seed with `parameters`, `trained_parameters`, `flops` (of the deployed network and one case),
            `seconds` and `peak_bytes` (of the training process).
    """
    rows = []
    for arm, seeds in costs.items():
        mean = {key: sum(float(one[key]) for one in seeds) / len(seeds) for key in seeds[0]}
        rows.append(
            (
                arm,
                f"{mean['parameters'] / 1e6:.3f}",
                f"{mean['trained_parameters'] / 1e6:.3f}",
                f"{mean['flops'] / 1e9:.1f}",
                f"{mean['seconds'] / 60:.1f}",
                f"{mean['peak_bytes'] / 1e9:.2f}",
            )
        )
    header = ("arm", "parameters (M)", "in training (M)", "GFLOP a case", "minutes", "peak GB")
    return TextTable("Cost, mean over seeds", header, tuple(rows))


def _counted(numbers: Mapping[str, int]) -> str:
    """How many cases, where there are some: "ET 2 cases"."""
    return ", ".join(f"{name} {n} case{'s' * (n > 1)}" for name, n in numbers.items() if n)


def _theirs(numbers: Mapping[str, tuple[float, float | None]], metric: str, region: str) -> str:
    """Mean and SD of a paper, the mean alone, or nothing."""
    if (found := published_in(numbers, metric, region)) is None:
        return ""
    mean, sd = found
    return number(mean, metric) + (f" ± {number(sd, metric)}" if sd is not None else "")


def _order(summary: Summary, lower: bool) -> float:
    if summary.mean is None:
        return float("inf")
    return summary.mean if lower else -summary.mean


def _cell(summary: Summary, metric: str) -> str:
    return f"{number(summary.mean, metric)} ± {number(summary.sd, metric)}"
