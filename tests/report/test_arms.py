"""The picture of a table: what is drawn is what the table holds, and benchmarks may share a folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import bootstrap, ttest_rel

from command_line import run_main
from modistill.evaluation.protocol import Protocol
from modistill.evaluation.scores import Score, Scores, write_scores
from modistill.report import arms as report
from modistill.report.arms import plot_arms

PNG = b"\x89PNG\r\n\x1a\n"
CONTROL = np.array([0.50, 0.62, 0.71, 0.44, 0.55, 0.60])
BETTER = CONTROL + np.array([0.10, 0.12, 0.08, 0.11, 0.13, 0.09])


def scores(run: str, regions: Mapping[str, Sequence[float] | np.ndarray], metric: str = "dice") -> Scores:
    rows = [
        Score(run, f"p{case}", "ct", region, metric, float(value))
        for region, values in regions.items()
        for case, value in enumerate(values)
    ]
    return Scores(tuple(rows), Protocol())


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are saved."""
    figures: list[Any] = []
    monkeypatch.setattr(report, "save_figure", lambda figure, out: figures.append(figure))
    return figures


def lines(panel: Any, marker: str, size: float) -> dict[float, list[float]]:
    """Row -> what stands there with a mark of this shape and size."""
    shown = [line for line in panel.lines if line.get_marker() == marker and line.get_markersize() == size]
    return {round(float(np.mean(line.get_ydata())), 1): list(map(float, np.atleast_1d(line.get_xdata()))) for line in shown}


def test_cases_means_intervals_and_published_means_are_those_of_the_table(drawn: list[Any], tmp_path: Path) -> None:
    seeds = [scores(f"cmedl/{n}", {"WT": BETTER + shift, "ET": CONTROL}) for n, shift in ((0, 0.04), (1, -0.04))]
    teacher = scores("teacher/0", {"WT": BETTER + 0.1, "ET": BETTER})
    plain = scores("control/0", {"WT": CONTROL, "ET": BETTER})
    published = {"cmedl": {"WT": (75, 17)}, "teacher": {"dice/ET": (0.9, None)}}
    plot_arms([teacher, plain, *seeds], tmp_path / "x.png", apart={"teacher": "sees T1ce"}, published=published, title="all")
    (figure,) = drawn
    whole, enhancing = figure.axes
    assert [panel.get_title(loc="left") for panel in (whole, enhancing)] == ["WT", "ET"]
    rows = dict(zip((tick.get_text() for tick in whole.get_yticklabels()), whole.get_yticks(), strict=True))
    assert rows == {"control": 0, "cmedl": 1, "teacher": 2.6}  # privileged arms stand apart
    points = lines(whole, "o", 3)
    assert len(points) == 3
    np.testing.assert_allclose(list(points.values())[1], np.sort(BETTER))
    means = {row: mean for row, (mean,) in lines(whole, "o", 5).items()}
    assert means == pytest.approx({0.0: CONTROL.mean(), 1.0: BETTER.mean(), 2.6: BETTER.mean() + 0.1})
    assert (lines(whole, "D", 4.5), lines(enhancing, "D", 4.5)) == ({1.0: [0.75]}, {2.6: [0.9]})
    found = bootstrap((CONTROL,), np.mean, n_resamples=9999, method="BCa", rng=np.random.default_rng(0)).confidence_interval
    assert lines(whole, "None", 6)[0.0] == pytest.approx([found.low, found.high])
    assert figure.get_supxlabel() == (
        "higher is better; 6 cases, each averaged over the seeds of an arm first\n"
        "set apart, neither ranked nor compared: teacher (sees T1ce)"
    )
    assert figure.legends[0].get_title().get_text() == "all"
    assert [text.get_text() for text in figure.legends[0].texts][2:] == ["published mean, of other patients"]


def test_what_cannot_be_drawn_is_left_out_and_said(drawn: list[Any], tmp_path: Path) -> None:
    values = {"WT": [np.inf, np.nan, 3.0, 5.0]}
    plot_arms(
        [scores("a", values, "hausdorff95_mm"), scores("b", {"WT": [2.0] * 4}, "hausdorff95_mm")], tmp_path, "hausdorff95_mm"
    )
    (panel,) = drawn[0].axes
    assert list(lines(panel, "o", 3).values()) == [[3.0, 5.0], [2.0] * 4]
    assert lines(panel, "o", 5) == {1.0: [2.0]}  # the mean of the other is infinite
    assert drawn[0].get_supxlabel().replace("\n", " ").endswith("1 infinite values are not shown")
    assert len(drawn[0].legends[0].texts) == 2
    assert panel.get_xlim()[0] < 0


@pytest.mark.parametrize("metric", ["dice", "nmae", "psnr"])
def test_every_case_of_every_panel_lies_within_its_axis(drawn: list[Any], tmp_path: Path, metric: str) -> None:
    """The first panel has the smallest values, and panels of one unit share an axis."""
    regions = {"body": CONTROL / 4, "WT": CONTROL / 2, "ET": BETTER}
    plot_arms([scores("a", regions, metric), scores("b", regions, metric)], tmp_path, metric)
    for panel in drawn[0].axes:
        low, high = panel.get_xlim()
        for cases in lines(panel, "o", 3).values():
            assert low < min(cases) <= max(cases) < high
    assert (drawn[0].axes[0].get_xlim()[0] <= 0) == (metric != "psnr")


def test_an_axis_far_from_0_does_not_begin_there(drawn: list[Any], tmp_path: Path) -> None:
    for values in (BETTER, CONTROL / 4):
        plot_arms([scores("a", {"WT": values}), scores("b", {"WT": BETTER})], tmp_path)
    far, near = (figure.axes[0].get_xlim()[0] for figure in drawn)
    assert near < 0 < 0.45 < far < BETTER.min()


# --------------------------------------------------------------------------- beside the tables of a benchmark


def test_a_comparison_for_each_control_and_files_by_the_name_of_the_benchmark(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arms = {
        "teacher": {"recipe": "demo/teacher", "privileged": True},
        "unet": {"recipe": "demo/student"},
        "unet_had": {"recipe": "demo/student", "published": {"WT": [87.9]}},
        "mrrn": {"recipe": "demo/student", "control": "mrrn"},
        "mrrn_had": {"recipe": "demo/student", "control": "mrrn"},
        "late": {"recipe": "demo/student", "control": "missing"},
        "missing": {"recipe": "demo/student", "control": "missing"},
    }
    values = {
        "teacher": CONTROL + 0.3,
        "unet": CONTROL,
        "unet_had": BETTER,
        "mrrn": CONTROL[::-1],
        "mrrn_had": BETTER,
        "late": BETTER,
    }
    for arm, of_arm in values.items():
        write_scores(tmp_path / "scores" / f"{arm}_0.csv", scores(f"{arm}/0", {"WT": of_arm}))
    shared = {"unet": arms["unet"], "unet_had": arms["unet_had"]}
    for name, chosen in (("one", arms), ("two", shared)):
        (tmp_path / f"{name}.yaml").write_text(json.dumps({"arms": chosen, "control": "unet", "seeds": [0]}))
        command = ("benchmark", tmp_path / f"{name}.yaml", "--train", "x", "--test", "y", "-o", tmp_path, "--tables")
        assert run_main(*command) == 0
    shown, text = capsys.readouterr().out, (tmp_path / "one.md").read_text()
    comparisons = text.split("## Comparison with ")[1:]
    assert [part.split("\n")[0] for part in comparisons] == ["unet", "mrrn"]
    for part, others in zip(comparisons, (["unet", "unet_had"], ["mrrn", "mrrn_had"]), strict=True):
        cells = [[cell.strip() for cell in line.split("|")] for line in part.splitlines() if line.startswith("| ")]
        assert [row[2] for row in cells[2:]] == others
        assert "over all 1 t-tests" in part  # Holm's family is the comparison's own
    p = ttest_rel(BETTER, CONTROL[::-1]).pvalue
    assert 0.001 < p < 1
    assert f"| {p:.3f} |" in comparisons[1]
    assert "Comparison with unet\n" in shown
    assert "Comparison with mrrn\n" in shown
    assert "mrrn" not in (tmp_path / "two.md").read_text()
    assert all((tmp_path / f"{name}_dice.png").read_bytes().startswith(PNG) for name in ("one", "two"))
    assert not (tmp_path / "tables.md").exists()
