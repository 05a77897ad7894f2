"""Score tables as text cells, for the terminal and for files; every number with its n, every table with its protocol."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import numpy as np

from modistill.evaluation.comparison import Comparison, ComparisonTable
from modistill.evaluation.protocol import METRICS
from modistill.evaluation.scores import Scores
from modistill.evaluation.statistics import Difference, Summary, TestResult, summarise

__all__ = [
    "TextTable",
    "comparison_csv",
    "comparison_json",
    "comparison_markdown",
    "comparison_notes",
    "comparison_tables",
    "modalities_of",
    "number",
    "p_value",
    "subset_means",
    "subset_table",
    "summary_table",
    "uncertainty_table",
]


_DETAILS = frozenset(name for name in METRICS if name.endswith(("_75", "_50", "_25"))) | {"uncertainty_mean"}  # in files only


@dataclass(frozen=True)
class TextTable:
    """A table of text.

    Attributes:
        title: above it.
        header: column names.
        rows: one text a column.
        sections: indices of the rows after which a rule is drawn.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    sections: tuple[int, ...] = ()

    def markdown(self) -> str:
        """The table in Markdown."""
        lines = [self.header, tuple("---" for _ in self.header), *self.rows]
        return f"### {self.title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def number(value: float | None, metric: str, *, signed: bool = False) -> str:
    """A value with as many decimals as its metric deserves; "-" where there is none.

    Example:
        >>> number(0.81239, "dice"), number(-3.5, "hausdorff95_mm", signed=True), number(None, "dice")
        ('0.812', '-3.50', '-')
    """
    if value is None:
        return "-"
    decimals = 2 if METRICS[metric].unit else 3
    return f"{value:+.{decimals}f}" if signed else f"{value:.{decimals}f}"


def p_value(p: float) -> str:
    """A p-value with three decimals, "< 0.001" below them."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def summary_table(scores: Scores) -> TextTable:
    """Mean, spread and counts for each region and metric of one run."""
    summaries = summarise(scores.rows)
    metrics = [metric for metric in dict.fromkeys(metric for _, _, metric in summaries) if metric not in _DETAILS]
    rows, sections = [], []
    for region in scores.regions:
        found = {metric: summaries.get((scores.runs[0], region, metric)) for metric in metrics}
        rows += [
            (region, _title(metric), *_summary(summary, metric), *map(str, _counts(summary)))
            for metric, summary in found.items()
            if summary is not None  # probabilities may be of some regions only
        ]
        sections.append(len(rows) - 1)
    header = ("region", "metric", "mean", "SD", "median", "n", "failed", "one empty", "undefined")
    return TextTable(f"{scores.runs[0]}: {len(scores.cases)} cases", header, tuple(rows), tuple(sections))


def subset_means(scores: Scores, metric: str = "dice") -> dict[str, dict[str, float]]:
    """Set of modalities -> region -> mean over cases, each averaged over the runs there are; NaN where nothing is defined."""
    found: dict[str, dict[str, float]] = {}
    for subset in scores.subsets:
        rows = scores.select(available=subset).rows
        for region in scores.regions:
            values = [row.value for row in rows if row.region == region and row.metric == metric]
            defined = [value for value in values if not math.isnan(value)]
            found.setdefault(subset, {})[region] = sum(defined) / len(defined) if defined else math.nan
    return found


def modalities_of(subsets: Iterable[str]) -> tuple[str, ...]:
    """All modalities of sets written like "t1+flair", in the order of the largest set."""
    ordered = sorted(subsets, key=lambda subset: -subset.count("+"))
    return tuple(dict.fromkeys(name for subset in ordered for name in subset.split("+")))


def subset_table(scores: Scores, metric: str = "dice") -> TextTable:
    """Means over the cases for every set of modalities, and over all sets: the table of papers on missing modalities."""
    means = subset_means(scores, metric)
    modalities = modalities_of(means)
    rows = [
        (*("●" if name in subset.split("+") else "○" for name in modalities), *(number(v, metric) for v in values.values()))
        for subset, values in means.items()
    ]
    columns = zip(*(values.values() for values in means.values()), strict=True)
    overall = tuple(number(sum(column) / len(column), metric) for column in columns)
    rows.append((*("" for _ in modalities[1:]), "mean", *overall))
    title = f"{scores.runs[0]}: {_title(metric)}, {len(scores.cases)} cases, {len(means)} subsets"
    return TextTable(title, (*modalities, *scores.regions), tuple(rows), (len(rows) - 2,))


def uncertainty_table(scores: Scores) -> TextTable | None:
    """What the uncertainty of a run is worth, for every set of modalities and region; None without uncertainty.

    QU-BraTS, that of a map of zeros and the calibration error (where probabilities were written) are means over all cases,
    failed ones at their worst. The ranking tells whether uncertain cases are the bad ones: area under the risk-coverage curve,
    risk 1 - Dice, beside the best order and a random one, of the n cases that have both numbers, which failed ones have not.
    """
    subsets = [subset for subset in scores.subsets if subset]
    # Nobody wrote down what a case without prediction was read from: it counts where all the others do, else by itself.
    unknown = subsets[0] if len(subsets) == 1 else ""
    values: dict[tuple[str, str, str], dict[str, float]] = {}
    for row in scores.rows:
        values.setdefault((row.available or unknown, row.region, row.metric), {})[row.case] = row.value
    shown = ["qu_score", "qu_trivial", *(["ece"] if any(metric == "ece" for _, _, metric in values) else [])]
    rows = []
    for subset, region in product(dict.fromkeys(subset for subset, _, _ in values), scores.regions):
        if uncertainty := values.get((subset, region, "uncertainty_mean")):
            found = {metric: Summary.of(list(values.get((subset, region, metric), {}).values())) for metric in shown}
            means = (number(summary.mean, metric) for metric, summary in found.items())
            rows.append((subset, region, *means, *_ranking(values[subset, region, "dice"], uncertainty)))
    titles = ("ECE" if metric == "ece" else _title(metric) for metric in shown)
    header = ("read", "region", *titles, "AURC", "best", "random", "n")
    title = "Worth of uncertainty: QU-BraTS, higher is better; ECE and AURC, lower is better"
    return TextTable(title, header, tuple(rows)) if rows else None


def comparison_tables(table: ComparisonTable) -> list[TextTable]:
    """One table for each metric: regions, and in each the control and every arm."""
    header = ("region", "arm", "n", "mean ± SD", "median", "difference [95 % interval]", "p (t-test)", "p (Wilcoxon)")
    made = []
    for metric in dict.fromkeys(line.metric for line in table.lines):
        lines = [line for line in table.lines if line.metric == metric]
        rows = [_comparison_cells(line, previous) for line, previous in zip(lines, [None, *lines], strict=False)]
        ends = [i for i, (line, after) in enumerate(zip(lines, [*lines[1:], None], strict=True))
                if after is None or after.region != line.region]  # fmt: skip
        better = METRICS[metric].better
        title = _title(metric) + (f", {better} is better" if better else "")
        made.append(TextTable(title, header, tuple(rows), tuple(ends)))
    return made


def comparison_notes(table: ComparisonTable) -> list[str]:
    """What has to be said below the tables: pairing, tests, everything undefined, the protocol."""
    seeds = {line.arm: line.seeds for line in table.lines}
    several = ", ".join(f"{arm} {count}" for arm, count in seeds.items())
    t_tests, wilcoxon = table.family
    notes = [
        f"{len(table.cases)} cases, paired; difference: arm minus {table.control}",
        f"interval: BCa bootstrap of the mean difference over cases, {table.resamples} resamples, seed {table.seed}",
        f"p: two-sided, after Holm's correction over all {t_tests} t-tests and all {wilcoxon} Wilcoxon signed-rank tests here",
    ]
    if any(any(_counts(line.summary)[1:]) for line in table.lines):
        notes.append(
            "beside n: f failed (no usable prediction), e empty in prediction or reference only, u undefined, left out"
        )
    if max(seeds.values()) > 1:
        notes.append(f"each case averaged over the seeds of its arm first; seeds: {several}")
    if table.left_out:
        notes.append(f"only cases common to all runs; {len(table.left_out)} left out: {', '.join(table.left_out)}")
    smallest = min((line.difference.n for line in table.lines if line.difference), default=0)
    if 2 <= smallest <= 5:
        notes.append(f"with {smallest} pairs no Wilcoxon p below {2.0 ** (1 - smallest):g} is possible, before correction")
    notes += _gaps(table.lines)
    return [*notes, f"protocol {table.protocol.digest}:", *(f"  {rule}" for rule in table.protocol.describe())]


def comparison_markdown(table: ComparisonTable) -> str:
    """Tables and notes as Markdown."""
    tables = "\n".join(text.markdown() for text in comparison_tables(table))
    listed = "\n".join(f"  - {note.strip()}" if note.startswith(" ") else f"- {note}" for note in comparison_notes(table))
    return f"## Comparison with {table.control}\n\n{tables}\n{listed}\n"


def comparison_csv(table: ComparisonTable) -> str:
    """All numbers at full precision, one line for each arm, region and metric; empty where not defined."""
    stream = io.StringIO()
    records = [_record(line) for line in table.lines]
    writer = csv.DictWriter(stream, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return stream.getvalue()


def comparison_json(table: ComparisonTable) -> dict[str, Any]:
    """Everything in the table as a JSON object; infinities as text, undefined values as null."""
    facts = {
        "control": table.control,
        "cases": table.cases,
        "left_out": table.left_out,
        "holm_family": {"t": table.family[0], "wilcoxon": table.family[1]},
        "bootstrap": {"method": "BCa", "resamples": table.resamples, "seed": table.seed},
        "protocol": table.protocol.to_json(),
        "lines": [_record(line) for line in table.lines],
        "notes": comparison_notes(table),
    }
    return {key: _without_infinity(value) for key, value in facts.items()}


def _ranking(dice: Mapping[str, float], uncertainty: Mapping[str, float]) -> tuple[str, ...]:
    """AURC, the best possible, that of a random order, and how many cases were ranked."""
    from modistill.metrics.calibration import aurc

    pairs = np.array([(1 - dice[case], -value) for case, value in uncertainty.items()])
    risk, confidence = pairs[~np.isnan(pairs).any(axis=1)].T
    if not risk.size:
        return "-", "-", "-", "0"
    area = aurc(risk, confidence)
    return f"{area.value:.3f}", f"{area.best:.3f}", f"{area.random:.3f}", str(risk.size)


def _title(metric: str) -> str:
    fact = METRICS[metric]
    return f"{fact.title} ({fact.unit})" if fact.unit else fact.title


def _summary(summary: Summary, metric: str) -> tuple[str, str, str]:
    return number(summary.mean, metric), number(summary.sd, metric), number(summary.median, metric)


def _counts(summary: Summary) -> tuple[int, int, int, int]:
    return summary.n, summary.n_failed, summary.n_one_empty, summary.n_undefined


def _comparison_cells(line: Comparison, previous: Comparison | None) -> tuple[str, ...]:
    """Cells of one line; the region is named once, and letters beside n say what was not simply measured."""
    region = "" if previous is not None and previous.region == line.region else line.region
    mean, sd, median = _summary(line.summary, line.metric)
    counted = [f"{count}{letter}" for count, letter in zip(_counts(line.summary)[1:], "feu", strict=True) if count]
    n = " ".join([str(line.summary.n), *counted])
    return region, line.arm, n, f"{mean} ± {sd}", median, *_difference_cells(line.difference, line.metric)


def _difference_cells(difference: Difference | None, metric: str) -> tuple[str, str, str]:
    if difference is None:
        return "control", "", ""
    mean = number(difference.mean, metric, signed=True)
    if difference.interval:
        low, high = (number(end, metric, signed=True) for end in difference.interval)
        mean += f" [{low}, {high}]"
    return mean, _p(difference.t), _p(difference.wilcoxon)


def _p(test: TestResult) -> str:
    return "not defined" if test.adjusted is None else p_value(test.adjusted)


def _gaps(lines: Iterable[Comparison]) -> list[str]:
    """Everything that is not defined, and why."""
    notes = []
    for line in lines:
        difference = line.difference
        if difference is None:
            continue
        place = f"{METRICS[line.metric].title} of {line.region}, {line.arm}"
        if difference.n_dropped:
            notes.append(f"{place}: {difference.n_dropped} pairs undefined and left out, n = {difference.n}")
        reasons: dict[str, list[str]] = {}
        for what, reason in (
            ("interval", difference.interval_why_not),
            ("t-test p", difference.t.why_not),
            ("Wilcoxon p", difference.wilcoxon.why_not),
        ):
            if reason:
                reasons.setdefault(reason, []).append(what)
        notes += [f"{place}: {', '.join(whats)} not defined: {reason}" for reason, whats in reasons.items()]
    return notes


def _record(line: Comparison) -> dict[str, Any]:
    """One line as plain values, units and reasons included."""
    record: dict[str, Any] = {"metric": line.metric, "unit": METRICS[line.metric].unit, "region": line.region, "arm": line.arm}
    record |= {"seeds": line.seeds, **asdict(line.summary)}
    d = line.difference
    low, high = d.interval if d and d.interval else (None, None)
    return record | {
        "pairs": d.n if d else None,
        "pairs_dropped": d.n_dropped if d else None,
        "difference": d.mean if d else None,
        "interval_low": low,
        "interval_high": high,
        "t_p": d.t.p if d else None,
        "t_p_holm": d.t.adjusted if d else None,
        "t_why_not": d.t.why_not if d else "",
        "wilcoxon_p": d.wilcoxon.p if d else None,
        "wilcoxon_p_holm": d.wilcoxon.adjusted if d else None,
        "wilcoxon_why_not": d.wilcoxon.why_not if d else "",
    }


def _without_infinity(value: Any) -> Any:
    """Infinities as text, in lists and objects too: JSON has none."""
    if isinstance(value, dict):
        return {key: _without_infinity(inner) for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_without_infinity(inner) for inner in value]
    return str(value) if isinstance(value, float) and value in (float("inf"), float("-inf")) else value
