from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import ttest_rel

from modistill.errors import ScoreError
from modistill.evaluation.papers import case_means, cost_table, paper_table
from modistill.evaluation.protocol import Protocol
from modistill.evaluation.scores import Score, Scores

BASE = np.array([0.50, 0.62, 0.71, 0.44, 0.55, 0.60, 0.48, 0.66])
NOISE = np.array([0.01, -0.02, 0.015, -0.005, 0.02, -0.01, 0.0, 0.005])
WINS = BASE + 0.1 + NOISE  # clearly above
EVEN = BASE + NOISE[::-1]  # above in the mean by next to nothing

ARMS: dict[str, dict[str, np.ndarray]] = {
    "student": {"WT": BASE, "ET": EVEN},
    "had_net": {"WT": WINS, "ET": BASE},
    "ad_net": {"WT": BASE - 0.05 + NOISE / 2, "ET": BASE - 0.2 - NOISE / 3},
}


def scores(run: str, regions: Mapping[str, Sequence[float] | np.ndarray], metric: str = "dice") -> Scores:
    rows = [
        Score(run, f"p{case}", "t1", region, metric, float(value))
        for region, values in regions.items()
        for case, value in enumerate(values)
    ]
    return Scores(tuple(rows), Protocol())


def tables(**more: dict[str, np.ndarray]) -> list[Scores]:
    return [scores(name, regions) for name, regions in (ARMS | more).items()]


def holm(p: Sequence[float]) -> list[float]:
    """Step down, written out."""
    order, found, largest = np.argsort(p), [0.0] * len(p), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p) - rank) * p[index]))
        found[index] = largest
    return found


def against(best: str) -> dict[str, list[float]]:
    """Region -> adjusted p of the best arm against each other arm, all regions in one family."""
    others = [name for name in ARMS if name != best]
    pairs = [(region, name) for region in ("WT", "ET") for name in others]
    adjusted = holm([float(ttest_rel(ARMS[name][region], ARMS[best][region]).pvalue) for region, name in pairs])
    return {region: [p for (place, _), p in zip(pairs, adjusted, strict=True) if place == region] for region in ("WT", "ET")}


def test_the_best_is_marked_and_what_it_beats_is_said() -> None:
    table, notes = paper_table(tables(), title="Table 1: Dice")
    assert (table.title, table.header) == ("Table 1: Dice", ("arm", "WT", "ET"))
    mean, sd = WINS.mean(), WINS.std(ddof=1)
    assert table.rows[1] == ("had_net", f"{mean:.3f} ± {sd:.3f}*", f"{BASE.mean():.3f} ± {BASE.std(ddof=1):.3f}")
    assert [row[0] for row in table.rows] == list(ARMS)
    assert [[cell.endswith("*") for cell in row[1:]] for row in table.rows] == [[False, True], [True, False], [False, False]]
    whole, enhancing = against("had_net")["WT"], against("student")["ET"]
    assert max(whole) < 0.001 < 0.05 < max(enhancing)
    assert notes[0].startswith(
        "Dice, mean ± SD over 8 cases, each averaged over the seeds of an arm first; * best in its column"
    )
    assert notes[1] == "WT: had_net is best; p < 0.05 against 2 of 2 others, largest p < 0.001"
    assert notes[2] == f"ET: student is best; p < 0.05 against 1 of 2 others, largest p {max(enhancing):.3f}"
    assert not any("published" in note for note in notes)


def test_seeds_are_one_arm() -> None:
    seeds = [scores(f"had_net/{seed}", {"WT": WINS + shift, "ET": BASE}) for seed, shift in ((0, 0.04), (1, -0.04))]
    one, two = paper_table(tables()), paper_table([tables()[0], *seeds, tables()[2]])
    assert one == two


def test_privileged_arms_are_shown_and_not_compared() -> None:
    perfect = {"WT": BASE * 0 + 0.99, "ET": BASE * 0 + 0.98 + NOISE}
    first = [scores("teacher", perfect), *tables()]
    with_teacher, notes = paper_table(first, apart={"teacher": "sees privileged data", "absent": "nothing"})
    assert with_teacher.rows[:3] == paper_table(tables())[0].rows
    assert with_teacher.rows[3] == ("teacher", "0.990 ± 0.000", f"0.982 ± {NOISE.std(ddof=1):.3f}")
    assert with_teacher.sections == (2,)  # below a rule, wherever its scores came
    assert notes[1] == "set apart, neither ranked nor compared: teacher (sees privileged data)"
    assert [notes[0], *notes[2:]] == paper_table(tables())[1]
    assert paper_table(first, apart=["teacher"])[1][1] == "set apart, neither ranked nor compared: teacher"


def test_what_is_undefined_or_failed_is_counted() -> None:
    empty, failed = BASE.copy(), {"p2", "p5"}
    empty[[1, 3]] = np.nan
    made = [scores(name, {"WT": values, "ET": empty}) for name, values in (("a", BASE), ("b", WINS), ("c", EVEN))]
    worst = tuple(replace(row, value=0.0, status="failed") if row.case in failed else row for row in made[2].rows)
    _, notes = paper_table([*made[:2], replace(made[2], rows=worst)])
    assert notes[1:3] == ["undefined and left out: ET 2 cases", "without usable result, counted at the worst: c 2 cases"]
    assert not any("left out" in note or "worst" in note for note in paper_table(tables())[1])


def test_published_numbers_stand_beside_ours() -> None:
    published = {"had_net": {"WT": (87.5, 7.6)}, "student": {"WT": (87.9, 12.4), "ET": (34.3, 25.3)}}
    table, notes = paper_table(tables(), published=published)
    assert table.header == ("arm", "WT", "ET", "WT published", "ET published")
    assert [row[3:] for row in table.rows] == [("0.879 ± 0.124", "0.343 ± 0.253"), ("0.875 ± 0.076", "-"), ("-", "-")]
    assert notes[-1] == "published: the paper's own numbers, on its data; not comparable with ours"


def test_a_published_mean_may_stand_alone() -> None:
    table, _ = paper_table(tables(), published={"had_net": {"WT": (87.5, None), "dice/ET": (0.4, None)}})
    assert table.rows[1][3:] == ("0.875", "0.400")
    kl = [scores(name, regions, "kl") for name, regions in ARMS.items()]
    table, _ = paper_table(kl, "kl", published={"student": {"kl/WT": (0.079, None), "WT": (87.5, 7.6)}})
    assert table.header == ("arm", "WT", "ET", "WT published", "ET published")
    assert table.rows[0][3:] == ("0.079", "-")


def test_cases_are_averaged_over_the_seeds_that_define_them() -> None:
    nan = np.nan
    made = [scores("a/0", {"WT": [0.25, nan, nan]}), scores("a/1", {"WT": [0.75, 0.5, nan]}), scores("b", {"WT": [1, 2, 3]})]
    found = case_means(made, "dice")
    np.testing.assert_array_equal(found["a"]["WT"], [0.5, 0.5, nan])
    np.testing.assert_array_equal(found["b"]["WT"], [1, 2, 3])
    assert case_means(made, "kl") == {}


def test_a_score_beside_the_score() -> None:
    made = []
    for name, regions in ARMS.items():
        trivial = {region: (values + 2) / 3 for region, values in regions.items()}
        rows = (*scores(name, regions, "qu_score").rows, *scores(name, trivial, "qu_trivial").rows)
        made.append(Scores(rows, Protocol()))
    table, notes = paper_table(made, "qu_score", beside="qu_trivial")
    assert table.title == "QU-BraTS"
    assert table.header == ("arm", "WT", "ET", "WT, QU-BraTS of zeros", "ET, QU-BraTS of zeros")
    assert table.rows[0][3:] == (f"{(BASE.mean() + 2) / 3:.3f}", f"{(EVEN.mean() + 2) / 3:.3f}")
    assert notes[1:] == paper_table(tables())[1][1:]


def test_lower_may_be_better() -> None:
    made = [scores(name, {r: 10 * v for r, v in regions.items()}, "hausdorff95_mm") for name, regions in ARMS.items()]
    table, notes = paper_table(made, "hausdorff95_mm")
    assert [row[0] for row in table.rows if row[1].endswith("*")] == ["ad_net"]
    assert table.rows[2][1] == f"{10 * ARMS['ad_net']['WT'].mean():.2f} ± {10 * ARMS['ad_net']['WT'].std(ddof=1):.2f}*"
    assert notes[1].startswith("WT: ad_net is best; p < 0.05 against 2 of 2 others")


def test_an_arm_without_numbers_is_never_best() -> None:
    nothing = {"WT": BASE * np.nan, "ET": BASE * np.nan}
    table, notes = paper_table(tables(empty=nothing))
    assert table.rows[3] == ("empty", "- ± -", "- ± -")
    assert notes[1] == "undefined and left out: WT up to 8 cases, ET up to 8 cases"
    assert notes[2].startswith("WT: had_net is best; p < 0.05 against 2 of 3 others")


def test_equal_arms_have_no_p() -> None:
    regions = {"WT": BASE}
    _, notes = paper_table([scores("a", regions), scores("b", regions)])
    assert notes[1] == "WT: a is best; p < 0.05 against 0 of 1 others"


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ScoreError, match="is the only arm"):
        paper_table(tables()[:1])
    with pytest.raises(ScoreError, match="no hausdorff95_mm of WT"):
        paper_table(tables(), "hausdorff95_mm")


def test_costs_are_means_over_seeds() -> None:
    same = {"parameters": 1.5e6, "trained_parameters": 4e6, "flops": 2.5e10}
    seeds = [same | {"seconds": 60, "peak_bytes": 2e9}, same | {"seconds": 180, "peak_bytes": 3e9}]
    table = cost_table({"had_net": seeds, "student": seeds[:1]})
    assert table.header == ("arm", "parameters (M)", "in training (M)", "GFLOP a case", "minutes", "peak GB")
    assert table.rows == (
        ("had_net", "1.500", "4.000", "25.0", "2.0", "2.50"),
        ("student", "1.500", "4.000", "25.0", "1.0", "2.00"),
    )
