import math
from pathlib import Path

import pytest

from modistill.errors import FileError, ScoreError
from modistill.evaluation.protocol import Protocol
from modistill.evaluation.scores import Score, Scores, read_scores, write_scores

ROWS = (
    Score("had/0", "p, 01", "t1+t2", "ET", "dice", 1 / 3),
    Score("had/0", "p, 01", "t1+t2", "ET", "hausdorff95_mm", math.inf, "one_empty"),
    Score("had/0", "p02", "", "ET", "dice", math.nan, "both_empty"),
    Score("had/0", "p02", "", "WT", "dice", 0.0, "failed"),
)


def same(a: Score, b: Score) -> bool:
    return repr(a) == repr(b)  # NaN equals NaN here


def test_rows_come_back_exactly(tmp_path: Path) -> None:
    scores = Scores(ROWS, Protocol(penalty_mm=math.inf, both_empty="undefined"))
    write_scores(tmp_path / "s.csv", scores, note={"faults": ["p02: no prediction"]})
    back = read_scores(tmp_path / "s.csv")
    assert back.protocol == scores.protocol
    assert all(same(a, b) for a, b in zip(back.rows, ROWS, strict=True))
    assert (back.runs, back.cases, back.regions, back.failed) == (("had/0",), ("p, 01", "p02"), ("ET", "WT"), ("p02",))
    assert (tmp_path / "s.csv").read_text().splitlines()[:2] == [
        "run,case,available,region,metric,value,unit,status",
        'had/0,"p, 01",t1+t2,ET,dice,0.3333333333333333,,measured',
    ]


def test_an_edited_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    write_scores(path, Scores(ROWS, Protocol()))
    path.write_text(path.read_text().replace("0.333", "0.933"))
    with pytest.raises(FileError, match="is not the file its JSON was written for"):
        read_scores(path)


def test_rows_without_a_protocol_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    write_scores(path, Scores(ROWS, Protocol()))
    path.with_suffix(".json").write_text("{}")
    with pytest.raises(ScoreError, match=r"s\.json: holds no protocol"):
        read_scores(path)
    path.with_suffix(".json").unlink()
    with pytest.raises(FileError, match=r"s\.json: cannot be read"):
        read_scores(path)
    with pytest.raises(FileError, match=r"other\.csv: cannot be read: No such file"):
        read_scores(tmp_path / "other.csv")


@pytest.mark.parametrize(
    "change", [("0.3333333333333333", "good"), (",dice,", ",dise,"), (",measured", ",fine"), (",measured", ",measured,7")]
)
def test_a_damaged_row_is_named(tmp_path: Path, change: tuple[str, str]) -> None:
    import hashlib

    path = tmp_path / "s.csv"
    write_scores(path, Scores(ROWS, Protocol()))
    old = hashlib.sha256(path.read_bytes()).hexdigest()
    path.write_text(path.read_text().replace(*change))
    facts = path.with_suffix(".json")
    facts.write_text(facts.read_text().replace(old, hashlib.sha256(path.read_bytes()).hexdigest()))
    with pytest.raises(ScoreError, match=r"s\.csv: line 2 is damaged"):
        read_scores(path)


def test_a_case_scored_twice_is_refused(tmp_path: Path) -> None:
    write_scores(tmp_path / "s.csv", Scores((ROWS[0], ROWS[0]), Protocol()))
    with pytest.raises(ScoreError, match=r"p, 01: .*s\.csv: run had/0 scores dice of ET twice"):
        read_scores(tmp_path / "s.csv")


def test_other_suffixes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"ends in \.csv"):
        write_scores(tmp_path / "s.json", Scores(ROWS, Protocol()))


def test_select() -> None:
    scores = Scores((*ROWS, Score("control", "p02", "", "ET", "dice", 1.0)), Protocol())
    assert scores.select(run="control").runs == ("control",)
    assert scores.select(cases=["p02"]).cases == ("p02",)
