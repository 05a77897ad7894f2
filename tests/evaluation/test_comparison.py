import json
import math
from collections.abc import Mapping, Sequence

import pytest

from modistill.errors import ScoreError
from modistill.evaluation.comparison import compare
from modistill.evaluation.protocol import Protocol, Status
from modistill.evaluation.scores import Score, Scores
from modistill.evaluation.statistics import compare_paired, holm
from modistill.evaluation.tables import (
    comparison_csv,
    comparison_json,
    comparison_markdown,
    comparison_notes,
    comparison_tables,
    summary_table,
)

CONTROL, BETTER = [0.5, 0.6, 0.7, 0.4, 0.55, 0.61], [0.6, 0.65, 0.72, 0.49, 0.6, 0.7]


def scores(
    run: str,
    regions: Mapping[str, Sequence[float]],
    *,
    protocol: Protocol | None = None,
    cases: Sequence[str] = "abcdefgh",
    status: Status = "measured",
) -> Scores:
    rows = [
        Score(run, case, "t1", region, "dice", value, status)
        for region, values in regions.items()
        for case, value in zip(cases, values, strict=False)
    ]
    return Scores(tuple(rows), protocol or Protocol())


def test_table_by_hand() -> None:
    regions = {"WT": CONTROL, "ET": BETTER}
    table = compare([scores("control", regions), scores("had", {"WT": BETTER, "ET": CONTROL})], "control", metrics=["dice"])
    assert [(line.region, line.arm) for line in table.lines] == [(r, a) for r in ("WT", "ET") for a in ("control", "had")]
    first, second = table.lines[1].difference, table.lines[3].difference
    assert first is not None
    assert second is not None
    assert table.lines[0].difference is None
    assert first.mean == pytest.approx(0.4 / 6)
    assert second.mean == pytest.approx(-0.4 / 6)
    plain = compare_paired(CONTROL, BETTER)
    assert first.t.p == plain.t.p
    assert table.family == (2, 2)
    assert plain.t.p is not None
    assert first.t.adjusted == pytest.approx(holm([plain.t.p] * 2)[0])


def test_holm_runs_over_what_is_defined_only() -> None:
    same = {"WT": CONTROL, "ET": CONTROL}
    table = compare([scores("c", same), scores("h", {"WT": BETTER, "ET": CONTROL})], "c", metrics=["dice"])
    tested, equal = table.lines[1].difference, table.lines[3].difference
    assert table.family == (1, 1)
    assert tested is not None
    assert tested.t.adjusted == tested.t.p
    assert equal is not None
    assert (equal.t.p, equal.t.adjusted) == (None, None)
    assert "Dice of ET, h: t-test p, Wilcoxon p not defined: all 6 differences are zero" in comparison_notes(table)


def test_seeds_are_averaged_per_case_and_are_no_patients() -> None:
    seeds = [scores(f"had/{seed}", {"WT": [value + shift for value in BETTER]}) for seed, shift in enumerate((-0.05, 0.05))]
    table = compare([scores("c", {"WT": CONTROL}), *seeds], "c", metrics=["dice"])
    line = table.lines[1]
    assert (line.arm, line.seeds, line.summary.n) == ("had", 2, 6)
    assert line.difference is not None
    assert line.difference.mean == pytest.approx(0.4 / 6)
    assert "seeds: c 1, had 2" in "\n".join(comparison_notes(table))


def test_an_undefined_seed_neither_hides_a_failure_nor_becomes_a_zero() -> None:
    """Under the rule "undefined" one seed may have a value where the other has none."""
    seeds = [scores("h/0", {"ET": [math.nan, math.nan]}), scores("h/1", {"ET": [0.0, math.nan]})]
    table = compare([scores("c", {"ET": [1.0, 1.0]}), *seeds], "c", metrics=["dice"])
    assert (table.lines[1].summary.n, table.lines[1].summary.n_undefined, table.lines[1].summary.mean) == (1, 1, 0.0)
    assert "Dice of ET, h: 1 pairs undefined and left out, n = 1" in comparison_notes(table)


def test_failures_are_counted_beside_n() -> None:
    failed = scores("h", {"WT": [0.0]}, status="failed")
    rest = scores("h", {"WT": BETTER[1:]}, cases="bcdefg")
    table = compare([scores("c", {"WT": CONTROL}), failed, rest], "c", metrics=["dice"])
    assert table.lines[1].summary.n_failed == 1
    assert comparison_tables(table)[0].rows[1][:3] == ("", "h", "6 1f")


def test_other_cases_are_refused_or_left_out_aloud() -> None:
    tables = [scores("c", {"WT": CONTROL}), scores("h", {"WT": BETTER[:4]})]
    with pytest.raises(ScoreError, match=r"2 of 6 are not in all of them, e not in h .*--common"):
        compare(tables, "c", metrics=["dice"])
    table = compare(tables, "c", metrics=["dice"], common=True)
    assert (table.cases, table.left_out) == (("a", "b", "c", "d"), ("e", "f"))
    assert "only cases common to all runs; 2 left out: e, f" in comparison_notes(table)
    with pytest.raises(ScoreError, match="no case in common"):
        compare([tables[0], scores("h", {"WT": BETTER}, cases="uvwxyz")], "c", metrics=["dice"], common=True)


def test_other_protocols_are_refused() -> None:
    other = scores("h", {"WT": BETTER}, protocol=Protocol(tolerance_mm=2.0))
    with pytest.raises(ScoreError, match=r"protocols differ between c and h: tolerance_mm 1\.0 and 2\.0"):
        compare([scores("c", {"WT": CONTROL}), other], "c", metrics=["dice"])


def test_what_cannot_be_compared_is_refused() -> None:
    control, arm = scores("c", {"WT": CONTROL}), scores("h", {"WT": BETTER})
    for tables, name, words in (
        ([], "c", "no scores given"),
        ([control], "c", "c is the only arm"),
        ([control, arm], "x", "no arm named x .found: c, h."),
        ([control, arm, arm], "c", "a: run h scores dice of WT twice"),
        ([control, scores("h", {"ET": BETTER})], "c", "regions differ: c has WT but h has ET"),
    ):
        with pytest.raises(ScoreError, match=words):
            compare(tables, name, metrics=["dice"])
    with pytest.raises(ScoreError, match=r"no metric named dise .known: dice, "):
        compare([control, arm], "c", metrics=["dise"])
    with pytest.raises(ScoreError, match="a: no hausdorff95_mm of WT in run c"):
        compare([control, arm], "c", metrics=["hausdorff95_mm"])


def test_written_tables_hold_numbers_and_protocol() -> None:
    infinite = [math.inf, *CONTROL[1:]]
    table = compare([scores("c", {"WT": infinite}), scores("h", {"WT": BETTER})], "c", metrics=["dice"])
    text = comparison_markdown(table)
    assert "| WT | c | 6 | inf ± - | 0.605 | control |  |  |" in text
    assert "- Dice of WT, h: interval not defined: infinite values" in text
    assert "  - surface Dice: share of boundary voxels within 1 mm" in text
    assert comparison_csv(table).splitlines()[1].startswith("dice,,WT,c,1,6,0,0,0,inf,,0.605")
    content = json.loads(json.dumps(comparison_json(table), allow_nan=False))
    assert content["lines"][0]["mean"] == "inf"
    assert content["lines"][1]["t_why_not"] == "1 of 6 differences are infinite"


def test_summary_table_names_every_count() -> None:
    text = summary_table(scores("had/0", {"WT": CONTROL, "ET": [1.0, math.nan]}))
    assert text.header[-4:] == ("n", "failed", "one empty", "undefined")
    assert text.rows[1] == ("ET", "Dice", "1.000", "-", "1.000", "1", "0", "0", "1")
    assert text.markdown().splitlines()[0] == "### had/0: 6 cases"


def test_small_samples_say_what_wilcoxon_can_reach() -> None:
    table = compare([scores("c", {"WT": CONTROL[:5]}), scores("h", {"WT": BETTER[:5]})], "c", metrics=["dice"])
    assert "with 5 pairs no Wilcoxon p below 0.0625 is possible, before correction" in comparison_notes(table)
