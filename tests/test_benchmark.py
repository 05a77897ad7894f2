"""Benchmarks: what is refused, in which order tasks run, what is done twice, and one small table from patients to numbers."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from command_line import run_main
from modistill import benchmark
from modistill import tasks as running
from modistill.benchmark import Benchmark, load_benchmark, tasks
from modistill.cli.benchmark import _report
from modistill.errors import ModistillError, RecipeError
from modistill.evaluation.protocol import Protocol
from modistill.evaluation.scores import Score, Scores, read_scores, write_scores
from modistill.evaluation.synthesis import Scale, SynthesisProtocol
from modistill.phantom.cohort import write_cohort
from modistill.recipe import MethodChoice, load_recipe, save_recipe
from modistill.tasks import Task, run_tasks

ARMS = {"student": {"recipe": "demo/student"}, "control": {"recipe": "demo/control"}}


def write(path: Path, **content: Any) -> Path:
    path.write_text(json.dumps({"arms": ARMS, "control": "student", "seeds": [0], **content}))  # which YAML contains
    return path


def plan(**content: Any) -> dict[str, Task]:
    chosen = Benchmark.model_validate({"arms": ARMS, "control": "student", "seeds": [0], **content})
    return tasks(chosen, Path("train"), Path("test"), Path("out"), device="cpu")


# --------------------------------------------------------------------------- the file


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"control": "had_net"}, "control is had_net, no such arm among student, control"),
        ({"sedes": [0]}, r"unknown key sedes \(did you mean seeds\?\)"),
        ({"arms": {**ARMS, "x": {"recipe": "demo/student", "privilege": True}}}, "unknown key arms.x.privilege"),
        ({"arms": {"student": ARMS["student"]}}, "arms: Dictionary should have at least 2 items"),
        ({"arms": {**ARMS, "a/b": ARMS["control"]}}, "an arm's name is letters, digits, _ and -; not 'a/b'"),
        ({"seeds": []}, "seeds: Tuple should have at least 1 item"),
        ({"arms": {**ARMS, "x": {"recipe": "demo/student", "mc_dropout": -1}}}, "arms.x.mc_dropout: .* found -1"),
        ({"arms": {**ARMS, "x": {}}}, "arms: x has no recipe; give one, or another arm that it is like"),
        ({"arms": {**ARMS, "x": {"like": "y"}}}, "arms: x is like y, which is no other arm; there are student, control, x"),
        ({"arms": {**ARMS, "x": {"like": "y"}, "y": {"like": "x"}}}, "arms: y is like x, which is no other arm"),
        ({"arms": {**ARMS, "x": {"like": "control", "apart": [1]}}}, "arms.x.apart.bool: Input should be a valid boolean"),
        ({"arms": {**ARMS, "student": {"recipe": "demo/student", "apart": True}}}, "control is student, which stands apart"),
        ({"uncertainty": "data"}, "uncertainty: Input should be 'theoretical', 'case' or 'cohort'"),
        ({"arms": {**ARMS, "x": {"recipe": "demo/student", "control": "had"}}}, "arms.x.control is had, no such arm among"),
        ({"arms": {**ARMS, "student": {"recipe": "demo/teacher", "privileged": True}}}, "control is student, which stands"),
        ({"arms": {**ARMS, "x": {"recipe": "demo/student", "published": {"WT": [1, 2, 3]}}}}, "arms.x.published.WT: Tuple"),
        ({"labels": "brats"}, "no label convention named brats; known: .*brats2021"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path: Path, content: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=rf"b\.yaml: .*{words}") as error:
        load_benchmark(write(tmp_path / "b.yaml", **content))
    assert "\n" not in str(error.value)


def test_a_file_that_is_absent_or_no_yaml(tmp_path: Path) -> None:
    known = "known: benchmarks/cmedl_table1, benchmarks/cmedl_table1_small"
    with pytest.raises(RecipeError, match=rf"b\.yaml: there is no such benchmark \({known}"):
        load_benchmark(tmp_path / "b.yaml")
    (tmp_path / "b.yaml").write_text("arms: [")
    with pytest.raises(RecipeError, match=r"b\.yaml: cannot be read"):
        load_benchmark(tmp_path / "b.yaml")
    assert load_benchmark(write(tmp_path / "b.yaml")).seeds == (0,)


def test_an_arm_may_name_its_own_control() -> None:
    arms = {
        "teacher": {"recipe": "demo/teacher", "privileged": True},
        "student": {"recipe": "demo/student"},
        "a": {"recipe": "demo/student", "control": "a"},  # compared with none
        "b": {"recipe": "demo/student", "control": "a", "published": {"WT": [87.9], "kl/body": [0.34, None]}},
        "c": {"recipe": "demo/student"},
    }
    chosen = Benchmark.model_validate({"arms": arms, "control": "student"})
    assert chosen.comparisons() == {"a": ["b"], "student": ["c"]}
    assert chosen.arms["b"].published == {"WT": (87.9, None), "kl/body": (0.34, None)}


def test_an_arm_takes_over_what_another_is(tmp_path: Path) -> None:
    arms = {
        "first": {"recipe": "demo/student", "set": ["training.epochs=2"], "privileged": True},
        "later": {"like": "second", "set": ["method.width=4"], "control": "third"},
        "second": {"like": "first", "set": ["training.epochs=3"]},
        "third": {"like": "first", "recipe": "demo/control"},
        "again": {"trained_as": "second"},
    }
    chosen = load_benchmark(write(tmp_path / "b.yaml", arms=arms, control="second"), ["training.epochs=9"]).arms
    one, two, four, nine = "training.epochs=2", "training.epochs=3", "method.width=4", "training.epochs=9"
    assert {name: (arm.recipe, arm.set) for name, arm in chosen.items()} == {
        "first": ("demo/student", (one, nine)),
        "later": ("demo/student", (one, two, four, nine)),  # what comes last counts
        "second": ("demo/student", (one, two, nine)),
        "third": ("demo/control", (one, nine)),
        "again": ("demo/student", (one, two, nine)),
    }
    assert not any(chosen[name].privileged for name in ("later", "second", "third", "again"))


def test_what_stands_apart_is_compared_with_none() -> None:
    arms = {
        **ARMS,
        "teacher": {"recipe": "demo/teacher", "privileged": True},
        "with_labels": {"like": "student", "privileged": True, "apart": "sees reference labels"},
        "pairs": {"like": "student", "apart": "learns from pairs"},
        "bound": {"like": "student", "apart": True},
    }
    chosen = Benchmark.model_validate({"arms": arms, "control": "student"})
    assert chosen.comparisons() == {"student": ["control"]}
    assert chosen.apart == {
        "teacher": "sees privileged data",
        "with_labels": "sees reference labels",
        "pairs": "learns from pairs",
        "bound": "",
    }


@pytest.mark.parametrize("name", ["utad", "utad_small"])
def test_bounds_of_the_translations_are_no_rivals(name: str) -> None:
    chosen = load_benchmark(f"benchmarks/{name}")
    bounds = {"teacher_with_masks", "teacher_without", "fixed_teacher_with_masks", "pix2pix", "segmentor"}
    assert set(chosen.apart) == bounds
    assert chosen.comparisons() == {"a_without_distillation": ["a", "b", "c", "d", "star_gan"], "a": ["fixed_a"]}


@pytest.mark.parametrize("name", ["utad", "utad_small"])
def test_translations_have_equal_budgets(name: str) -> None:
    """Teacher and student learn as long together as those who learn alone."""
    chosen = load_benchmark(f"benchmarks/{name}")
    recipes = {arm: load_recipe(its.recipe, [*chosen.set, *its.set]) for arm, its in chosen.arms.items()}
    epochs = {arm: recipe.training["epochs"] for arm, recipe in recipes.items()}
    alone = {"star_gan", "pix2pix"}
    for arm in set(epochs) - alone - {"segmentor"}:
        assert {2 * epochs[arm]} == {epochs[other] for other in alone}, arm
    slices = {recipe.sampling.patch_size for arm, recipe in recipes.items() if arm != "segmentor"}
    assert len(slices) == 1


@pytest.mark.parametrize("name", ["cmedl_table1", "cmedl_table1_small"])
def test_each_network_of_cmedl_has_its_own_control(name: str) -> None:
    networks = ("unet", "fc_densenet", "mrrn")
    expected = {f"{network}_ct_only": [f"{network}_vae_cmedl", f"{network}_cmedl"] for network in networks}
    assert load_benchmark(f"benchmarks/{name}").comparisons() == expected


# --------------------------------------------------------------------------- the tasks


def shipped() -> list[str]:
    folder = Path(benchmark.__file__).parent / "recipes" / "benchmarks"
    return sorted(f"benchmarks/{path.stem}" for path in folder.glob("*.yaml"))


@pytest.mark.parametrize("name", shipped())
def test_shipped_benchmarks_need_only_what_comes_before(name: str) -> None:
    chosen = load_benchmark(name)
    found = tasks(chosen, Path("train"), Path("test"), Path("out"))
    before: set[str] = set()
    for task in found.values():
        assert set(task.needs) <= before, task.name
        before.add(task.name)
    sampled = sum(arm.mc_dropout > 0 for arm in chosen.arms.values())
    again = sum(arm.trained_as is not None for arm in chosen.arms.values())
    completed = sum(task.startswith("complete ") for task in found)
    assert (completed > 0) == (chosen.completes is not None)
    assert len(found) == 1 + (3 * len(chosen.arms) - again + 2 * sampled) * len(chosen.seeds) + 2 * completed
    assert len({task.done for task in found.values()}) == len(found)
    assert sum(chosen.fractions) == pytest.approx(1)
    if "had_net" in chosen.arms:
        assert "train teacher/1" in found["train had_net/1"].needs
    for name, arm in chosen.arms.items():
        for seed in chosen.seeds:
            assert f"training.seed={seed}" in found[f"train {arm.trained_as or name}/{seed}"].command


def test_pairs_privilege_and_what_is_completed_by_hand() -> None:
    found = tasks(load_benchmark("benchmarks/utad_small", seeds=[4]), Path("train"), Path("test"), Path("out"))
    with_masks, without = (found[f"translate teacher_{name}/4"].command for name in ("with_masks", "without"))
    assert "--pairs" in with_masks
    assert "--pairs" in without
    assert "--with-labels" in with_masks
    assert "--with-labels" not in without
    assert with_masks[4] == without[4] == "out/runs/4/teacher_with_masks"
    assert "train teacher_without/4" not in found
    score = found["score a/4"].command
    assert score[score.index("--body-above") + 1] == "0.0"
    completed = {name.split()[1].split("/")[0] for name in found if name.startswith("complete ")}
    assert completed == {"teacher_without", *"abcd", "a_without_distillation", "star_gan", "fixed_a", "zero", "mean"}
    task = found["complete teacher_without/4"]
    assert set(task.needs) == {"train segmentor/4", "train teacher_with_masks/4"}
    assert task.command[task.command.index("--complete-with") + 1] == "out/runs/4/teacher_with_masks"
    assert found["complete zero/4"].needs == ("train segmentor/4",)


def made_up(
    arm: str, seed: int, subsets: Sequence[str], metrics: Sequence[str], rules: Any, shift: float, *more: str
) -> Scores:
    rows = [
        Score(f"{arm}/{seed}", case, subset, "WT", metric, number + 10 * place + shift)
        for number, case in enumerate(("p1", "p2", "p3", *more))
        for place, subset in enumerate(subsets)
        for metric in metrics
    ]
    return Scores(tuple(rows), rules)


@pytest.fixture
def translated(tmp_path: Path) -> Path:
    """Made-up scores of three arms that translate, and of what is segmented with what one of them made."""
    scales = tuple(Scale(name, "percentiles") for name in ("t1", "t1ce"))
    every, metrics = ("t1-to-t1ce", "t1ce-to-t1"), ("psnr", "ssim", "nmae")
    for shift, arm in enumerate(("a", "a_without_distillation", "pix2pix")):
        rules = SynthesisProtocol(scales[1:] if arm == "pix2pix" else scales)
        table = made_up(arm, 0, every[:1] if arm == "pix2pix" else every, metrics, rules, shift)
        write_scores(tmp_path / "scores" / f"{arm}_0.csv", table)
    for shift, name in enumerate(("a", "zero", "mean")):
        table = made_up(name, 0, ("t1", "t1ce"), ("dice",), Protocol(), shift / 10)
        write_scores(tmp_path / "scores" / f"{name}+completed_0.csv", table)
    for there, made in (("t1", "t1ce"), ("t1ce", "t1")):
        substitute = {"modality": made, "by": "a", "made_from": [there], "digest": "0"}
        place = tmp_path / "completed" / "0" / "a" / there / "report.json"
        place.parent.mkdir(parents=True)
        place.write_text(json.dumps({"rows": [{"substitutes": []}, {"substitutes": [substitute]}]}))
    return tmp_path


def cells(text: str, title: str, arm: str) -> str:
    """What the first column of numbers says of an arm, in the table of this title."""
    lines = text.splitlines()
    begin = next(number for number, line in enumerate(lines) if re.search(rf"{title}$", line))
    row = next(line for line in lines[begin:] if line.startswith(f"| {arm} |"))
    return row.split("|")[2].strip()


def notes(text: str, title: str) -> list[str]:
    """What stands below the table of this title."""
    _, _, below = text.partition(f"{title}\n")
    return [line.removeprefix("- ") for line in below.partition("\n#")[0].splitlines() if line.startswith("- ")]


def test_tables_of_pairs(translated: Path) -> None:
    _report(load_benchmark("benchmarks/utad_small", seeds=[0]), translated, "small")
    text = (translated / "small.md").read_text()
    mean, pair = "PSNR, mean of 2 pairs", "PSNR, t1-to-t1ce"
    assert cells(text, mean, "a_without_distillation").startswith("7.00")  # 1 + mean(0, 1, 2) + mean(0, 10)
    assert cells(text, pair, "a").startswith("1.00")
    assert cells(text, pair, "a_without_distillation") == "2.00 ± 1.00*"
    assert cells(text, pair, "pix2pix") == "3.00 ± 1.00"  # the largest of all, and no rival
    assert any("a case counts the mean of its pairs" in note for note in notes(text, mean))
    assert notes(text, pair)[1] == "set apart, neither ranked nor compared: pix2pix (learns from pairs)"
    assert "WT: a_without_distillation is best; p < 0.05 against 0 of 1 others" in "\n".join(notes(text, pair))
    assert "## Comparison with a_without_distillation, mean of 2 pairs" in text
    assert (translated / "small_psnr_t1-to-t1ce.png").exists()


def test_tables_of_what_is_completed(translated: Path) -> None:
    """Beside the same patients with nothing missing, and with what each missing sequence was made from."""
    table = made_up("segmentor", 0, ("t1+t1ce",), ("dice",), Protocol(), 0.5, "p4")  # who has one sequence only, say
    write_scores(translated / "scores" / "segmentor_0.csv", table)
    _report(load_benchmark("benchmarks/utad_small", seeds=[0]), translated, "small")
    text = (translated / "small.md").read_text()
    together, alone = "Dice, segmented without one sequence", "Dice, segmented without t1ce"
    assert cells(text, alone, "mean").startswith("1.200")
    assert cells(text, "Dice, segmented without t1", "mean").startswith("11.200")
    assert cells(text, together, "mean").startswith("6.200")
    for title in (together, alone):
        assert cells(text, title, "segmentor") == "1.500 ± 1.000"  # without p4
        assert "set apart, neither ranked nor compared: segmentor (nothing is missing)" in notes(text, title)
    assert "made by translation: t1 from t1ce, t1ce from t1" in notes(text, together)
    assert "made by translation: t1ce from t1" in notes(text, alone)
    assert "## Comparison with zero, segmented without one sequence" in text


def test_arms_that_make_a_sequence_from_different_ones_are_told_apart(translated: Path) -> None:
    write_scores(translated / "scores" / "b+completed_0.csv", made_up("b", 0, ("t1", "t1ce"), ("dice",), Protocol(), 0.3))
    report = translated / "completed" / "0" / "b" / "t1" / "report.json"
    report.parent.mkdir(parents=True)
    made = [{"substitutes": [{"modality": "t1ce", "made_from": [source]}]} for source in ("t2", "t1", "t2")]
    report.write_text(json.dumps({"rows": made}))
    _report(load_benchmark("benchmarks/utad_small", seeds=[0]), translated, "small")
    found = notes((translated / "small.md").read_text(), "Dice, segmented without t1ce")
    assert found[-2:] == ["made by translation: t1ce from t1 (a)", "made by translation: t1ce from t2 or t1 (b)"]


def test_every_arm_of_the_translations_has_a_size(tmp_path: Path) -> None:
    """Counted without computing; an arm that takes another's runs has no cost of its own."""
    chosen = load_benchmark("benchmarks/utad_small", seeds=[0])
    for name, arm in chosen.arms.items():
        recipe = load_recipe(arm.recipe, [*chosen.set, *arm.set])
        known = {"segmentor": {"classes": 4}, "pix2pix": {}}.get(name, {"side": 48})  # what training fills in
        method = MethodChoice(name=recipe.method.name, **known, **recipe.method.arguments)
        save_recipe(recipe.model_copy(update={"method": method}), tmp_path / "runs" / "0" / name / "recipe.yaml")
        if not arm.trained_as:
            (tmp_path / "costs").mkdir(exist_ok=True)
            (tmp_path / "costs" / f"{name}_0.json").write_text('{"seconds": 1, "peak_bytes": 2}')
    found = benchmark.costs(chosen, tmp_path)
    assert set(found) == set(chosen.arms) - {"teacher_without"}
    assert all(one["flops"] > 0 and one["trained_parameters"] >= one["parameters"] > 0 for (one,) in found.values())
    assert found["b"][0]["parameters"] < found["a"][0]["parameters"] == found["a_without_distillation"][0]["parameters"]
    assert found["b"][0]["flops"] == found["star_gan"][0]["flops"]
    thin = load_recipe(tmp_path / "runs" / "0" / "b" / "recipe.yaml", ["data.size=[48, 48, 10]"])
    save_recipe(thin, tmp_path / "thin" / "recipe.yaml")
    assert found["b"][0]["flops"] == 4 * benchmark.sizes(tmp_path / "thin")["flops"]  # of 40 slices, and of 10


@pytest.mark.parametrize(
    "content",
    [
        {"trained_as": "student", "set": ["training.epochs=2"]},
        {"trained_as": "student", "recipe": "demo/control"},
        {"trained_as": "third"},
        {"trained_as": "nobody"},
        {"trained_as": "second"},
        {"trained_as": "student", "like": "third"},
    ],
)
def test_an_arm_is_trained_as_another_of_the_same_recipe(tmp_path: Path, content: dict[str, Any]) -> None:
    arms = {"student": {"recipe": "demo/student"}, "second": content, "third": {"trained_as": "student"}}
    words = "must have a training of its own, and the same|which is no other arm|leave out like: third"
    with pytest.raises(RecipeError, match=words):
        load_benchmark(write(tmp_path / "wrong.yaml", arms=arms, control="student"))


def test_commands_by_hand() -> None:
    arms = {"teacher": {"recipe": "demo/teacher", "privileged": True, "set": ["training.epochs=2"]}, **ARMS}
    arms["student"] = {"recipe": "demo/student", "mc_dropout": 7}
    found = plan(arms=arms, set=["method.width=2"], fractions=[0.5, 0.5, 0.0], uncertainty="cohort")
    assert list(found)[:4] == ["prepare", "train teacher/0", "predict teacher/0", "score teacher/0"]
    assert " ".join(found["prepare"].command) == (
        "prepare train -o out/prepared --modalities flair,t1ce,t1,t2 --normalisation hadnet --size 48 48 40 "
        "--fractions 0.5 0.5 0.0 --available flair,t1,t2"
    )
    train = found["train teacher/0"]
    assert " ".join(train.command) == (
        "train demo/teacher --data out/prepared -o out/runs/0/teacher --device cpu "
        "--set method.width=2 --set training.epochs=2 --set training.seed=0"
    )
    assert (train.needs, train.done, train.cost) == (("prepare",), *[Path("out/costs/teacher_0.json")] * 2)
    assert train.resumes == Path("out/runs/0/teacher/checkpoints/index.json")
    assert " ".join(found["predict teacher/0"].command) == (
        "predict -i test --model out/runs/0/teacher --device cpu --continue --only flair,t1ce,t1,t2 "
        "-o out/predictions/0/teacher"
    )
    assert "--mc-dropout" not in found["predict student/0"].command  # Dice is of one pass, for all arms alike
    assert " ".join(found["predict student+mc/0"].command) == (
        "predict -i test --model out/runs/0/student --device cpu --continue --only flair,t1,t2 "
        "-o out/predictions/0/student+mc --mc-dropout 7 --uncertainty"
    )
    assert found["score student+mc/0"].done == Path("out/scores/student+mc_0.json")
    assert " ".join(found["score student+mc/0"].command) == (
        "evaluate out/predictions/0/student+mc --reference test --run student/0 -o out/scores/student+mc_0.csv "
        "--uncertainty-scale cohort"
    )
    assert " ".join(found["score control/0"].command) == (
        "evaluate out/predictions/0/control --reference test --run control/0 -o out/scores/control_0.csv"
    )
    assert found["train control/0"].needs == ("prepare", "train student/0")  # it starts from its weights


def test_the_convention_reaches_all_that_read_references() -> None:
    arms = {**ARMS, "student": {"recipe": "demo/student", "mc_dropout": 2}}
    told = [name for name, task in plan(arms=arms, labels="chaos").items() if "--labels chaos" in " ".join(task.command)]
    assert told == ["prepare", "score student/0", "score student+mc/0", "score control/0"]
    arms = {"a": {"recipe": "chest/cyclegan"}, "b": {"recipe": "chest/cyclegan"}}
    assert "evaluate-translations" in (command := plan(arms=arms, control="a", labels="chaos")["score a/0"].command)
    assert command[-2:] == ("--labels", "chaos")


def starting(**parents: str) -> dict[str, Any]:
    """Arms that start from each other."""
    made: dict[str, Any] = {name: {"recipe": "demo/student"} for name in parents}
    for name, parent in parents.items():
        if parent:
            made[name]["set"] = [f"start_from.network=../{parent}"]
    return {"arms": made, "control": next(iter(parents))}


def test_arms_wait_for_those_they_start_from() -> None:
    order = [name for name in plan(**starting(c="b", a="", b="a")) if name.startswith("train")]
    assert order == ["train a/0", "train b/0", "train c/0"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (starting(a="", b="teacher"), "b starts from teacher, which is no arm (add it to the arms)"),
        (starting(a="", b="c", c="b"), "arms wait for each other: b, c"),
        (
            {"arms": {"a": ARMS["student"], "b": {"recipe": "demo/student", "set": ["data.size=[32,32,32]"]}}, "control": "a"},
            "the data sections of a and b differ (one prepared cohort serves all arms)",
        ),
        (
            {"arms": {**ARMS, "x": {"recipe": "demo/hadnet"}}},
            "demo/hadnet: there is no such recipe (did you mean demo/had_net?)",
        ),
    ],
)
def test_arms_that_cannot_be_compared(content: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(words)):
        plan(**content)


# --------------------------------------------------------------------------- running


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Tasks run what stands in their command as it is; returns the commands that began."""
    begun: list[list[str]] = []

    def start(command: list[str]) -> subprocess.Popen[bytes]:
        begun.append(command[3:])
        return subprocess.Popen(command[3:])

    monkeypatch.setattr(running, "subprocess", SimpleNamespace(Popen=start))
    return begun


def sh(name: str, script: str, done: Path, **more: Any) -> Task:
    return Task(name, ("sh", "-c", script), done, **more)


def test_tasks_run_once_and_in_order(tmp_path: Path, shell: list[list[str]]) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    todo = {"a": sh("a", f"touch {a}", a), "b": sh("b", f"test -f {a} && touch {b}", b, needs=("a",))}
    told: list[tuple[str, int, int]] = []

    def run() -> bool:
        return run_tasks(todo, on_task=lambda task, number, count: told.append((task.name, number, count)))

    assert run()
    assert told == [("a", 1, 2), ("b", 2, 2)]
    assert run()
    assert len(shell) == len(told) == 2
    b.unlink()
    assert run()
    assert told[2:] == [("b", 2, 2)]


def test_a_failure_names_the_task_and_stops(tmp_path: Path, shell: list[list[str]]) -> None:
    todo = {
        "train a/0": sh("train a/0", "exit 4", tmp_path / "a", cost=tmp_path / "costs" / "a.json"),
        "b": sh("b", "exit 0", tmp_path / "b", needs=("train a/0",)),
    }
    with pytest.raises(ModistillError, match=r"train a/0 ended with exit code 4 \(see above: modistill sh -c exit 4\)"):
        run_tasks(todo)
    assert len(shell) == 1
    assert not (tmp_path / "a").exists()
    assert not (tmp_path / "costs" / "a.json").exists()


@pytest.mark.parametrize(("code", "writes"), [(0, False), (3, False), (2, True)])
def test_what_counts_as_done(tmp_path: Path, shell: list[list[str]], code: int, writes: bool) -> None:
    """Some cases failed (3), or the file is there and the exit code names failed cases (2): the table counts them."""
    done = tmp_path / "done"
    assert run_tasks({"a": sh("a", f"{f'touch {done};' if writes else ''} exit {code}", done)})
    assert done.exists()


def test_the_time_is_over_and_the_next_run_resumes(tmp_path: Path, shell: list[list[str]]) -> None:
    cost, index = tmp_path / "costs" / "a_0.json", tmp_path / "index.json"
    slow = sh("train a/0", f"touch {index}; sleep 20 & wait", cost, resumes=index, cost=cost)
    later = sh("b", f"touch {tmp_path / 'b'}", tmp_path / "b")
    assert not run_tasks({"a": slow, "b": later}, minutes=0.3 / 60)
    part = json.loads((tmp_path / "costs" / "a_0.part.json").read_text())
    assert 0.3 <= part["seconds"] < 5
    assert part["peak_bytes"] > 100_000
    assert not cost.exists()
    assert not (tmp_path / "b").exists()
    quick = sh("train a/0", "sleep 0.2", cost, resumes=index, cost=cost)
    assert run_tasks({"a": quick, "b": later}, minutes=5)
    assert [command[3:] for command in shell] == [[], ["--resume"], []]
    whole = json.loads(cost.read_text())
    assert whole["seconds"] > part["seconds"] + 0.15
    assert whole["peak_bytes"] >= part["peak_bytes"]
    assert [path.name for path in cost.parent.iterdir()] == ["a_0.json"]


@pytest.mark.parametrize(("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_signal_waits_for_the_checkpoint_and_keeps_the_cost(
    tmp_path: Path, shell: list[list[str]], number: signal.Signals, raised: type[BaseException]
) -> None:
    started, checkpoint, cost = tmp_path / "started", tmp_path / "checkpoint", tmp_path / "cost.json"
    script = f"trap 'sleep 0.3; touch {checkpoint}; kill $!; exit 143' TERM; touch {started}; sleep 20 & wait"

    def interrupt() -> None:
        while not started.exists():
            time.sleep(0.02)
        time.sleep(0.1)
        os.kill(os.getpid(), number)  # us alone

    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as the command line does
    try:
        threading.Thread(target=interrupt).start()
        with pytest.raises(raised):
            run_tasks({"train a/0": sh("train a/0", script, cost, cost=cost)})
    finally:
        signal.signal(signal.SIGTERM, before)
    assert checkpoint.exists()
    assert 0.4 <= json.loads((tmp_path / "cost.part.json").read_text())["seconds"] < 5
    assert not cost.exists()


def test_peak_memory_is_that_of_the_process(tmp_path: Path, shell: list[list[str]]) -> None:
    """200 MB that are written to."""
    cost = tmp_path / "cost.json"
    command = (sys.executable, "-S", "-c", "x = bytearray(b'1') * 200_000_000")
    assert run_tasks({"a": Task("a", command, cost, cost=cost)})
    assert 200e6 < json.loads(cost.read_text())["peak_bytes"] < 2e9


# --------------------------------------------------------------------------- Dask


@pytest.fixture
def scheduler() -> Any:
    distributed = pytest.importorskip("distributed")
    how = {"processes": False, "n_workers": 1, "threads_per_worker": 2, "dashboard_address": None}
    with distributed.LocalCluster(**how) as cluster:
        yield cluster.scheduler_address


@pytest.mark.filterwarnings("ignore")  # those of Dask
def test_dask_runs_tasks_after_those_they_need(tmp_path: Path, shell: list[list[str]], scheduler: str) -> None:
    files = {name: tmp_path / name for name in "abcd"}
    needs = {"a": (), "b": ("a",), "c": ("a",), "d": ("b", "c")}
    todo = {
        name: sh(name, " && ".join(["sleep 0.1", *(f"test -f {files[n]}" for n in needs[name]), f"touch {path}"]), path,
                 needs=needs[name])
        for name, path in files.items()
    }  # fmt: skip
    assert run_tasks(todo, scheduler=scheduler)
    assert all(path.exists() for path in files.values())
    assert run_tasks(todo, scheduler=scheduler)
    assert len(shell) == 4


@pytest.mark.filterwarnings("ignore")  # those of Dask
def test_no_dask_worker_idles_while_tasks_wait(tmp_path: Path, shell: list[list[str]]) -> None:
    distributed = pytest.importorskip("distributed")
    first, long, short = tmp_path / "first", tmp_path / "long", [tmp_path / f"short{n}" for n in range(8)]
    todo = {"first": sh("first", f"touch {first}", first)}
    waits = " && ".join(f"test -e {path}" for path in short)  # it ends when all others are done, which it may not hold up
    loop = f"for i in $(seq 600); do if {waits}; then touch {long}; exit 0; fi; sleep 0.1; done; exit 1"
    todo["long"] = sh("long", loop, long, needs=("first",))
    todo |= {path.name: sh(path.name, f"touch {path}", path, needs=("first",)) for path in short}
    told: list[str] = []
    with distributed.LocalCluster(processes=False, n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        assert run_tasks(todo, scheduler=cluster.scheduler_address, on_task=lambda task, *_: told.append(task.name))
    assert told == list(todo)


@pytest.mark.filterwarnings("ignore")  # those of Dask
def test_a_failure_on_a_dask_worker_names_the_task(tmp_path: Path, shell: list[list[str]], scheduler: str) -> None:
    todo = {
        "train a/0": sh("train a/0", "exit 4", tmp_path / "a"),
        "b": sh("b", f"touch {tmp_path / 'b'}", tmp_path / "b", needs=("train a/0",)),
    }
    with pytest.raises(ModistillError, match=r"train a/0 ended with exit code 4"):
        run_tasks(todo, scheduler=scheduler)
    assert not (tmp_path / "b").exists()


def test_no_scheduler_there_is_one_line() -> None:
    pytest.importorskip("distributed")
    with pytest.raises(RecipeError, match="no Dask scheduler answers at nonsense://x"):
        run_tasks({}, scheduler="nonsense://x")


# --------------------------------------------------------------------------- the whole way


def test_from_patients_to_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Two arms, one seed, one epoch; and everything again, where nothing is left to do."""
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    write_cohort(tmp_path / "train", 3, seed=3, shape=(32, 32, 32), workers=1)
    write_cohort(tmp_path / "test", 2, seed=3, shape=(32, 32, 32), first=10, workers=1)
    small = ["training.epochs=1", "training.validate_every=1", "training.precision='32'", "method.width=2"]
    arms = {
        "student": {"recipe": "demo/student", "mc_dropout": 2, "published": {"WT": [87.9, 12.4]}},
        "any": {"recipe": "demo/modality_dropout", "mc_dropout": 2},
    }
    how = {"arms": arms, "about": "A small table", "set": [*small, "data.size=[32,32,32]"], "fractions": [0.67, 0.33, 0.0]}
    how["uncertainty"] = "cohort"
    file, out = write(tmp_path / "small.yaml", **how), tmp_path / "out"
    command = ("benchmark", file, "--train", tmp_path / "train", "--test", tmp_path / "test", "-o", out, "--device", "cpu")
    assert run_main(*command) == 0
    shown = capfd.readouterr()
    assert [line for line in shown.err.splitlines() if re.fullmatch(r"\d+/11 .*", line)] == [
        *("1/11 prepare", "2/11 train student/0", "3/11 predict student/0", "4/11 score student/0"),
        *("5/11 predict student+mc/0", "6/11 score student+mc/0", "7/11 train any/0"),
        *("8/11 predict any/0", "9/11 score any/0", "10/11 predict any+mc/0", "11/11 score any+mc/0"),
    ]
    text = (out / "small.md").read_text()
    for words in (
        "# small\n\nA small table\n",
        "### Table 1: Dice",
        "WT published",
        "0.879 ± 0.124",
        "### Table 2: QU-BraTS score, cohort scale",
        "### Cost, mean over seeds",
        "## Comparison with student",
    ):
        assert words in text, words
    assert all(f"| {arm} |" in text for arm in arms)
    for arm in arms:
        scores = read_scores(out / "scores" / f"{arm}_0.csv")
        assert (scores.runs, scores.subsets, len(scores.cases)) == ((f"{arm}/0",), ("flair+t1+t2",), 2)
        assert scores.failed == ()
        assert scores.protocol.uncertainty == ""
        assert read_scores(out / "scores" / f"{arm}+mc_0.csv").protocol.uncertainty == "cohort"
        cost = json.loads((out / "costs" / f"{arm}_0.json").read_text())
        assert cost["seconds"] > 0
        assert cost["peak_bytes"] > 50e6
    chosen = load_benchmark(file)
    found = benchmark.costs(chosen, out)
    assert {arm: len(seeds) for arm, seeds in found.items()} == {"student": 1, "any": 1}
    assert all(one[0]["flops"] > 0 and one[0]["parameters"] == one[0]["trained_parameters"] > 0 for one in found.values())
    made = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file() and path.parent != out}
    assert run_main(*command) == 0
    assert "/11 " not in capfd.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in made} == made
    assert (out / "small.md").read_text() == text
    assert (out / "small_dice.png").exists()
    (out / "scores" / "any_0.json").unlink()  # one arm alone makes no table, and its scores are still to come
    (out / "small.md").unlink()
    assert run_main(*command, "--tables") == 0
    assert not (out / "small.md").exists()
