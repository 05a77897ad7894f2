import json
from pathlib import Path

import pytest

from command_line import run_main
from modistill.evaluation.protocol import Protocol
from modistill.evaluation.scores import Score, Scores, write_scores

METRICS = {"dice": 1.0, "hausdorff95_mm": 20.0, "surface_dice": 1.0}


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    made = []
    for arm, gain in (("control", 0.0), ("had_net/0", 0.03), ("had_net/1", 0.05)):
        rows = [
            Score(arm, f"p{i}", "t1+t2+flair", region, metric, factor * (0.5 + i / 20 + gain * (1 + i % 3)))
            for i in range(8)
            for region in ("WT", "TC", "ET")
            for metric, factor in METRICS.items()
        ]
        made.append(tmp_path / f"{arm.replace('/', '_')}.csv")
        write_scores(made[-1], Scores(tuple(rows), Protocol()))
    return made


def test_the_table_fits_and_says_what_it_rests_on(
    files: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "110")
    assert run_main("compare", *files, "--control", "control", "--resamples", 500) == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 110
    for words in (
        "HD95 (mm), lower is better",
        "8 cases, paired; difference: arm minus control",
        "Holm's correction over all 9 t-tests and all 9 Wilcoxon signed-rank tests",
        "seeds: control 1, had_net 2",
        "empty in one: Dice 0, surface Dice 0, HD95 373.13 mm",
    ):
        assert words in printed
    assert "…" not in printed  # nothing was cut off


@pytest.mark.parametrize("suffix", [".md", ".csv", ".json"])
def test_written_tables(files: list[Path], suffix: str, tmp_path: Path) -> None:
    out = tmp_path / f"table{suffix}"
    chosen = ("--metric", "dice", "--resamples", 500, "-o", out)
    assert run_main("compare", *files, "--control", "control", *chosen) == 0
    text = out.read_text()
    assert "had_net" in text
    if suffix == ".json":
        assert len(json.loads(text)["lines"]) == 3 * 2


def test_what_can_be_got_wrong(files: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in (
        ((*files, "--control", "x"), "error: no arm named x (found: control, had_net)"),
        ((*files, "--control", "control", "-o", "t.html"), "error: t.html: unknown kind of table"),
        ((files[0], "--control", "control"), "error: control is the only arm"),
        (("absent.csv", "--control", "control"), "error: absent.csv: cannot be read"),
    ):
        assert run_main("compare", *arguments) == 2
        assert words in capsys.readouterr().err
