"""`translate --to`, `--from`, `--pairs` and the scores of pairs as a user meets them."""

from __future__ import annotations

import json
import math
import shutil
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

from any_to_any import ALL, FACTORS, any_model, sequence, write, write_patients
from command_line import run_main
from modistill.evaluation.scores import Score, Scores, read_scores
from modistill.evaluation.synthesis import Scale, SynthesisProtocol
from modistill.evaluation.translations import evaluate_translations, pair_table
from modistill.inference.model import Model
from modistill.inference.translator import NOT_ENHANCEMENT, NOT_EVIDENCE
from modistill.metrics.synthesis import worst_nmae
from patients import nearest_model

PAIRS = [f"{source}-to-{target}" for source, target in permutations(ALL, 2)]
HAS = {"a": ALL, "b": ("flair", "t1ce"), "c": ALL}
REGIONS = ("body", "WT", "TC", "ET")


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> dict[str, Model]:
    """What run folders hold, by name."""
    known = {
        "utad": any_model(),
        "other": any_model("other", {name: factor / 2 for name, factor in FACTORS.items()}, digest="fedcba9876543210"),
        "pix2pix": any_model("pix2pix", {"t1ce": 0.5}, ("t1",)),
        "wider": any_model("wider", scales={"t2": (0, 2000)}),
        "segmentor": nearest_model("segmentor"),
    }
    monkeypatch.setattr("modistill.runs.load_model", lambda path: known[path.name])
    return known


@pytest.fixture
def patients(tmp_path: Path, models: dict[str, Model]) -> Path:
    """Three patients, of whom one has two sequences; all have a tumour."""
    return write_patients(tmp_path / "in", HAS, labels=True)


def translate(patients: Path, output: Path, *more: object, model: str = "utad") -> int:
    return run_main("translate", "-i", patients, "-o", output, "--model", model, "--device", "cpu", *more)


def evaluate(translated: Path, patients: Path, output: Path, *more: object) -> int:
    return run_main("evaluate-translations", translated, "-r", patients, "-o", output, "--body-above", 0, *more)


def told(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(" ".join(capsys.readouterr()).split())


# --------------------------------------------------------------------------- translate


def test_a_target_is_chosen_and_a_source_may_be(patients: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By any of their names."""
    assert translate(patients, tmp_path / "out") == 2
    assert "error: utad makes flair, t1, t1ce, t2: which of them is not said (as --to flair)" in told(capsys)
    assert not (tmp_path / "out").exists()
    assert translate(patients, tmp_path / "out", "--to", "T1c") == 0
    text = told(capsys)
    assert "notice: a: made from flair; t1, t2 could be translated, too" in text
    assert "3 cases: utad translates flair into t1ce 3 done" in text
    assert "scale: 0 to 1000; the .json beside each image says how real t1ce comes to it" in text
    assert f"{NOT_EVIDENCE} {NOT_ENHANCEMENT}" in text
    assert translate(patients, tmp_path / "out", "--to", "t2", "--from", "T1", "--continue") == 3
    text = told(capsys)
    assert "error: b: has t1ce, flair, lacks t1 (utad needs t1 to make t2)" in text
    assert "notice: a" not in text
    assert NOT_EVIDENCE in text
    assert NOT_ENHANCEMENT not in text
    made = sorted(path.name for path in (tmp_path / "out").glob("*/*.nii.gz"))
    assert made == ["a_t1ce.nii.gz", "a_t2.nii.gz", "b_t1ce.nii.gz", "c_t1ce.nii.gz", "c_t2.nii.gz"]


@pytest.mark.parametrize(
    ("model", "more", "message"),
    [
        ("utad", ("--to", "pet"), "utad makes no pet (it makes flair, t1, t1ce, t2)"),
        ("utad", ("--to", "t1ce", "--from", "pet"), "utad does not read pet (it makes t1ce from flair, t1, t2)"),
        ("utad", ("--to", "t1ce", "--from", "T1Gd"), "t1ce is source and target (utad makes it from flair, t1, t2)"),
        ("utad", ("--pairs", "--to", "t1ce"), "--pairs makes everything from everything (leave out --to and --from)"),
        ("segmentor", ("--pairs",), "segmentor segments and translates nothing (modistill predict)"),
        ("segmentor", ("--to", "t1ce"), "segmentor segments and translates nothing (modistill predict)"),
    ],
)
def test_wrong_wishes_are_one_line(
    patients: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str, more: tuple[str, ...], message: str
) -> None:
    assert translate(patients, tmp_path / "out", *more, model=model) == 2
    assert capsys.readouterr().err.strip() == f"error: {message}"
    assert not (tmp_path / "out").exists()


def test_all_pairs(patients: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert translate(patients, out, "--pairs") == 0
    text = told(capsys)
    assert sorted(path.name for path in out.iterdir()) == sorted(PAIRS)
    for pair in PAIRS:
        source, target = pair.split("-to-")
        having = [case for case, names in HAS.items() if source in names]
        assert sorted(path.name for path in (out / pair).glob("*/*.nii.gz")) == [f"{case}_{target}.nii.gz" for case in having]
        record = json.loads((out / pair / "a" / f"a_{target}.json").read_text())
        assert (record["available"], record["target"], record["notices"]) == ([source], target, [])
    assert "notice: 1 of 3 cases lack t1: nothing is made from it" in text
    assert text.count("scale: 0 to 1000; the .json beside each image says how real") == 1
    assert text.count(NOT_ENHANCEMENT) == 1
    assert translate(patients, out, "--pairs") == 2
    assert f"{out / PAIRS[0]}: is not empty" in told(capsys)
    shutil.rmtree(out / "t1-to-t2" / "a")
    assert translate(patients, out, "--pairs", "--continue") == 0
    assert "1 done, 1 skipped" in told(capsys)


def test_pairs_of_what_is_there(tmp_path: Path, models: dict[str, Model], capsys: pytest.CaptureFixture[str]) -> None:
    """A sequence that nobody has is no source; a damaged file fails in its own pairs."""
    patients = write_patients(tmp_path / "in", {"a": ("flair", "t1"), "b": ("flair", "t1")})
    (patients / "a" / "a_t1.nii.gz").write_bytes(b"")
    assert translate(patients, tmp_path / "out", "--pairs") == 3
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        pair for pair in PAIRS if pair[:2] in ("fl", "t1") and not pair.startswith("t1ce")
    ]
    text = told(capsys)
    assert text.count(f"error: a: {patients / 'a' / 'a_t1.nii.gz'}: empty file") == 3
    assert "notice: 2 of 2 cases lack t2: nothing is made from it" in text
    write_patients(tmp_path / "pet", {"a": ("t2",)})
    assert translate(tmp_path / "pet", tmp_path / "one", "--pairs", model="pix2pix") == 2
    assert "no case has any of t1" in told(capsys)
    assert translate(patients, tmp_path / "one", "--pairs", model="pix2pix") == 3
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["t1-to-t1ce"]


# --------------------------------------------------------------------------- evaluate-translations


@pytest.fixture
def made(patients: Path, tmp_path: Path) -> Path:
    """All pairs of the three patients."""
    assert translate(patients, tmp_path / "made", "--pairs") == 0
    return tmp_path / "made"


def test_scores_of_pairs_by_a_plain_way(patients: Path, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert evaluate(made, patients, tmp_path / "s.csv") == 0
    text = told(capsys)
    table = read_scores(tmp_path / "s.csv")
    assert table.subsets == tuple(sorted(PAIRS))
    assert table.regions == REGIONS
    assert table.protocol.target == "flair+t1+t1ce+t2"
    assert "scale: flair, t1, t1ce, t2 normalised by 0:1000, 0 to 1000, clipped" in text
    assert "utad: 3 cases, 12 pairs" in text
    assert text.count("mean of pairs") == len(REGIONS)
    for pair in PAIRS:
        source, target = pair.split("-to-")
        scored = [case for case, names in HAS.items() if {source, target} <= set(names)]
        assert table.select(available=pair).cases == tuple(scored)
    found = {row.metric: row.value for row in table.rows if (row.case, row.available, row.region) == ("c", "t2-to-t1", "body")}
    real, synthetic = sequence("t1", 2) / 1000, 0.5 * sequence("t2", 2) / 1000
    inside = real > 0
    error = np.abs(real - synthetic)[inside]
    assert found["mae"] == pytest.approx(1000 * error.mean(), rel=1e-5)
    assert found["nmae"] == pytest.approx(error.sum() / real[inside].sum(), rel=1e-5)
    assert found["psnr"] == pytest.approx(-10 * math.log10((error**2).mean()), rel=1e-5)
    tumour = np.zeros(inside.shape, bool)
    tumour[5:11, 5:10, 4:8] = True
    (whole,) = (r.value for r in table.rows if (r.case, r.available, r.region, r.metric) == ("c", "t2-to-t1", "WT", "nmae"))
    assert whole == pytest.approx(np.abs(real - synthetic)[tumour].sum() / real[tumour].sum(), rel=1e-5)


def test_runs_are_compared_pair_by_pair(patients: Path, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of one pair, too, with a model that makes no other; not on other scales."""
    files = {name: tmp_path / f"{name}.csv" for name in ("utad", "other", "pix2pix", "wider")}
    assert evaluate(made, patients, files["utad"]) == 0
    for name in ("other", "pix2pix", "wider"):
        assert translate(patients, tmp_path / name, "--pairs", model=name) == 0
        assert evaluate(tmp_path / name, patients, files[name]) == 0
    capsys.readouterr()
    how = ("--control", "utad", "--metric", "nmae", "--resamples", 100)
    assert run_main("compare", files["utad"], files["other"], *how) == 2
    assert "run utad was scored with flair-to-t1 and with flair-to-t1ce (compare one set: --available" in told(capsys)
    assert run_main("compare", files["utad"], files["other"], *how, "--available", "flair-to-t1ce") == 0
    assert "3 cases, paired" in told(capsys)
    assert run_main("compare", files["utad"], files["pix2pix"], *how, "--available", "t1-to-t1ce") == 0
    text = told(capsys)
    assert "2 cases, paired" in text
    assert "scale: t1ce normalised by 0:1000" in text
    assert run_main("compare", files["utad"], files["wider"], *how, "--available", "flair-to-t1ce") == 0
    told(capsys)
    assert run_main("compare", files["utad"], files["wider"], *how, "--available", "flair-to-t2") == 2
    assert "protocols differ between utad and wider: normalisation 0:1000 and 0:2000, highest 1000.0 and 2000.0" in told(capsys)
    assert evaluate(tmp_path / "wider", patients, tmp_path / "s.csv", "--to", "t1") == 0
    assert [subset.endswith("-to-t1") for subset in read_scores(tmp_path / "s.csv").subsets] == [True] * 3


def test_a_pair_that_lacks_a_case(patients: Path, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Lost, it has failed; made from what the references do not show, it is scored; without a source, it does not count."""
    shutil.rmtree(made / "flair-to-t1" / "a")
    (patients / "c" / "c_t2.nii.gz").unlink()
    capsys.readouterr()
    assert evaluate(made, patients, tmp_path / "s.csv") == 2
    text = told(capsys)
    assert "error: a: no translation flair-to-t1: counted as failed" in text
    gone = "flair-to-t1/b, flair-to-t2/b, flair-to-t2/c, t1-to-t2/c, t1ce-to-t1/b, t1ce-to-t2/b, t1ce-to-t2/c"
    assert f"note: 7 translations have no reference and are not scored: {gone}" in text
    table = read_scores(tmp_path / "s.csv")
    failed = {(r.case, r.available) for r in table.rows if r.status == "failed"}
    assert failed == {("a", "flair-to-t1")}
    real = sequence("t1", 0) / 1000
    (worst,) = (r.value for r in table.rows if (*failed, r.region, r.metric) == ((r.case, r.available), "body", "nmae"))
    assert worst == pytest.approx(worst_nmae(real[real > 0]))
    assert table.select(available="t2-to-t1").cases == ("a", "c")
    assert table.select(available="t1-to-flair").cases == ("a", "c")


def test_what_does_not_belong_there_is_named(
    patients: Path, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(made / "t2-to-t1" / "a", made / "flair-to-t1" / "a", dirs_exist_ok=True)
    capsys.readouterr()
    assert evaluate(made, patients, tmp_path / "s.csv") == 2
    record = made / "flair-to-t1" / "a" / "a_t1.json"
    assert f"error: a: {record}: translates t2 into t1 (does not belong into {made / 'flair-to-t1'})" in told(capsys)
    for pair in ("flair-to-t1", "t1ce-to-t1", "t2-to-t1"):
        for case in (made / pair).glob("?"):
            shutil.rmtree(case)
    assert evaluate(made, patients, tmp_path / "s.csv") == 2
    assert f"error: {made}: holds no record of a translation into t1" in told(capsys)
    assert evaluate(made, patients, tmp_path / "s.csv", "--to", "t2") == 0


def test_pairs_of_one_table_are_on_one_scale(
    patients: Path, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert translate(patients, tmp_path / "wider", "--pairs", model="wider") == 0
    shutil.rmtree(made / "flair-to-t2")
    shutil.copytree(tmp_path / "wider" / "flair-to-t2", made / "flair-to-t2")
    capsys.readouterr()
    assert evaluate(made, patients, tmp_path / "s.csv") == 2
    assert "was made on another scale than the first: normalisation 0:2000 and 0:1000" in told(capsys)
    for path in (made / "flair-to-t1").glob("*/*.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"dims": 3}))
    assert evaluate(made, patients, tmp_path / "s.csv") == 2
    assert "holds translations of different kinds: dims 2 and 3 (score them apart)" in told(capsys)


def test_a_damaged_reference_is_said_once(
    patients: Path, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = patients / "a" / "a_t1.nii.gz"
    bad.write_bytes(b"")
    capsys.readouterr()
    assert evaluate(made, patients, tmp_path / "s.csv") == 3
    assert told(capsys).count(f"error: a: {bad}: empty file") == 1
    assert read_scores(tmp_path / "s.csv").select(available="t2-to-t1").cases == ("c",)


def test_cases_that_count(patients: Path, made: Path, tmp_path: Path) -> None:
    found = evaluate_translations(made, patients, cases=("b", "c", "nobody"), target="t2", body_above=0)
    assert [str(fault) for fault in found.faults] == [f"{case}: {patients}: has no real t2" for case in ("b", "nobody")]
    assert found.scores.cases == ("c",)


def test_a_case_may_be_called_like_a_pair(tmp_path: Path, models: dict[str, Model]) -> None:
    name = "head-to-toe"
    write(tmp_path / "in" / name / f"{name}_t1.nii.gz", sequence("t1"))
    write(tmp_path / "in" / name / f"{name}_t1ce.nii.gz", sequence("t1ce"))
    assert translate(tmp_path / "in", tmp_path / "out", model="pix2pix") == 0
    assert evaluate(tmp_path / "out", tmp_path / "in", tmp_path / "s.csv") == 0
    assert read_scores(tmp_path / "s.csv").subsets == ("t1",)


def test_the_table_of_pairs_by_hand() -> None:
    """The mean of pairs counts each pair alike, however many cases it has; what is undefined is left out."""
    values = {("t1-to-t2", "a"): 0.2, ("t1-to-t2", "b"): 0.4, ("t2-to-t1", "a"): 0.9, ("t2-to-t1", "b"): math.nan}
    rules = SynthesisProtocol((Scale("t1", "percentiles"), Scale("t2", "percentiles")))
    rows = [
        Score("run", case, pair, "body", metric, value, "both_empty" if math.isnan(value) else "measured")
        for (pair, case), value in values.items()
        for metric in rules.headline
    ]
    table = pair_table(Scores(tuple(rows), rules))
    assert table.header == ("region", "read", "PSNR (dB)", "SSIM", "NMAE", "KL(real, synthetic)", "n", "failed", "undefined")
    assert table.rows[0] == ("body", "t1-to-t2", "0.30 ± 0.14", *["0.300 ± 0.141"] * 3, "2", "0", "0")
    assert table.rows[1] == ("body", "t2-to-t1", "0.90 ± -", *["0.900 ± -"] * 3, "1", "0", "1")
    assert table.rows[2] == ("body", "mean of pairs", "0.60", *["0.600"] * 3, "", "", "")
    assert table.sections == (2,)
