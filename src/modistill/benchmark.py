"""A table of a paper: many arms over several seeds, in pieces that can be stopped, taken up again and run on many machines.

A benchmark is a folder and a list of *tasks*: prepare once; train every arm of every seed once the runs it starts from are
there; predict the test patients; score them. A task is one `modistill` command in a process of its own, and done when its last
file is there; a training that was stopped goes on bit for bit. So a benchmark may be interrupted anywhere, and tasks may run in
any order that their needs allow, here or on the workers of a Dask scheduler that see the same folder.

    OUT/prepared
    OUT/runs/SEED/ARM           recipes name each other as `../ARM`
    OUT/predictions/SEED/ARM
    OUT/scores/ARM_SEED.csv
    OUT/predictions/SEED/ARM+mc, OUT/scores/ARM+mc_SEED.csv    with Monte-Carlo dropout, for the table of uncertainty
    OUT/costs/ARM_SEED.json     wall time and peak memory of the training
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from modistill.data.normalisation import spell
from modistill.errors import ModistillError, RecipeError
from modistill.evaluation.protocol import UncertaintyScale
from modistill.files import parse_yaml, read_json, write_json
from modistill.inference.windows import count_windows
from modistill.recipe import check, load_recipe
from modistill.runs import build_method

__all__ = ["MC", "Arm", "Benchmark", "Task", "costs", "load_benchmark", "run_tasks", "sizes", "tasks"]

_SHIPPED = Path(__file__).parent / "recipes"
MC = "+mc"  # after the name of an arm, in the folders of its Monte-Carlo predictions
_LOOK_SECONDS = 10  # between two looks at the workers of a scheduler
_SOME_FAILED = 3  # exit code of a command that did what could be done; the table counts the rest as failed


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Arm(_Section):
    """One line of the table.

    Attributes:
        recipe: a file, or the name of one that comes with the package.
        set: "section.key=value" each; more than the benchmark's own.
        privileged: it is predicted with every sequence of the test patients; the others with the available ones.
        mc_dropout: passes of Monte-Carlo dropout for the table of uncertainty; Dice is of one pass without, for all arms.
        published: region -> mean and SD in the paper, in per cent, shown beside ours and marked as published.
    """

    recipe: str
    set: tuple[str, ...] = ()
    privileged: bool = False
    mc_dropout: int = Field(default=0, ge=0)
    published: dict[str, tuple[float, float]] = {}


class Benchmark(_Section):
    """What is compared.

    Attributes:
        about: a line for people: the data it is meant for, and what the published numbers were measured on.
        arms: name -> arm, in the order of the table.
        control: the arm that all others are compared with.
        seeds: every arm is trained with each.
        set: "section.key=value" for the recipes of all arms.
        fractions: of training, validation and test among the training patients.
        uncertainty: what counts 100 in uncertainty maps when they are scored (see `Protocol`); the score depends on it.
    """

    about: str = ""
    arms: dict[str, Arm] = Field(min_length=2)
    control: str
    seeds: tuple[int, ...] = Field(default=(0, 1, 2), min_length=1)
    set: tuple[str, ...] = ()
    fractions: tuple[float, float, float] = (0.85, 0.15, 0.0)
    uncertainty: UncertaintyScale = "theoretical"

    @model_validator(mode="after")
    def _known(self) -> Benchmark:
        if self.control not in self.arms:
            raise ValueError(f"control is {self.control}, no such arm among {', '.join(self.arms)}")
        if foreign := [name for name in self.arms if not name.replace("_", "").replace("-", "").isalnum()]:
            raise ValueError(f"an arm's name is letters, digits, _ and -; not {foreign[0]!r}")
        return self


@dataclass(frozen=True)
class Task:
    """One command of a benchmark.

    Attributes:
        name: such as "train had_net/1".
        command: words after `modistill`.
        done: the file that is there once it succeeded.
        needs: names of the tasks that must be done before.
        resumes: file that tells an interrupted run of this command: `--resume` is then added.
        cost: where wall time and peak memory are written; None for nowhere.
    """

    name: str
    command: tuple[str, ...]
    done: Path
    needs: tuple[str, ...] = ()
    resumes: Path | None = None
    cost: Path | None = None


def load_benchmark(path: Path | str) -> Benchmark:
    """Read a benchmark.

    Args:
        path: a YAML file, or the name of one that comes with the package ("benchmarks/hadnet_table1_phantom").

    Raises:
        RecipeError: the file, a key or an arm's recipe is wrong.
    """
    shipped = _SHIPPED / f"{path}.yaml"
    place = Path(path) if Path(path).is_file() else shipped
    if not place.is_file():
        known = sorted(file.stem for file in (_SHIPPED / "benchmarks").glob("*.yaml"))
        raise RecipeError(
            "there is no such benchmark", file=path, remedy=f"known: {', '.join(f'benchmarks/{n}' for n in known)}"
        )
    try:
        content = parse_yaml(place.read_text())
    except (OSError, ValueError) as error:
        raise RecipeError(f"cannot be read: {' '.join(str(error).split())[:200]}", file=place) from error
    return check(Benchmark, content, place)


def tasks(benchmark: Benchmark, train: Path, test: Path, output: Path, *, device: str = "auto") -> dict[str, Task]:
    """All tasks, each after those it needs.

    Args:
        benchmark: what is compared.
        train: patients for training and validation, in any layout.
        test: patients with reference labels; privileged sequences may lie among them, they are not read.
        output: folder of the benchmark.
        device: for training and prediction.

    Raises:
        RecipeError: arms whose data sections differ, or that start from a run that is no arm.
    """
    recipes = {name: load_recipe(arm.recipe, [*benchmark.set, *arm.set]) for name, arm in benchmark.arms.items()}
    first, *others = recipes.items()
    for name, recipe in others:
        if recipe.data != first[1].data:
            raise RecipeError(
                f"the data sections of {first[0]} and {name} differ", remedy="one prepared cohort serves all arms"
            )
    data, prepared = first[1].data, output / "prepared"
    how = ["--modalities", ",".join(data.modalities), "--normalisation", spell(data.normalisation)]
    for option, values in (("--spacing", data.spacing_mm), ("--size", data.size), ("--fractions", benchmark.fractions)):
        how += [option, *map(str, values)] if values is not None else []
    if data.available is not None:
        how += ["--available", ",".join(data.available)]
    found = [Task("prepare", ("prepare", str(train), "-o", str(prepared), *how), prepared / "plan.json")]
    for seed in benchmark.seeds:
        for name in _in_order(recipes):
            arm, run = benchmark.arms[name], output / "runs" / str(seed) / name
            overrides = [*benchmark.set, *arm.set, f"training.seed={seed}"]
            parents = [Path(os.path.normpath(Path(name) / parent)).name for parent in recipes[name].start_from.values()]
            cost = output / "costs" / f"{name}_{seed}.json"
            found.append(
                Task(
                    f"train {name}/{seed}",
                    (
                        *("train", arm.recipe, "--data", str(prepared), "-o", str(run), "--device", device),
                        *(word for override in overrides for word in ("--set", override)),
                    ),
                    cost,
                    ("prepare", *(f"train {parent}/{seed}" for parent in parents)),
                    resumes=run / "checkpoints" / "index.json",
                    cost=cost,
                )
            )
            seen = data.modalities if arm.privileged else data.available or data.modalities
            predict = (
                *("predict", "-i", str(test), "--model", str(run), "--device", device),
                *("--only", ",".join(seen), "--continue"),
            )
            sampled = ("--mc-dropout", str(arm.mc_dropout), "--uncertainty")
            scale = ("--uncertainty-scale", benchmark.uncertainty)
            for kind, extra, rules in (("", (), ()), *([(MC, sampled, scale)] if arm.mc_dropout else [])):
                predictions = output / "predictions" / str(seed) / f"{name}{kind}"
                scores = output / "scores" / f"{name}{kind}_{seed}.csv"
                title = f"{name}{kind}/{seed}"
                begin = (*predict, "-o", str(predictions), *extra)
                found.append(Task(f"predict {title}", begin, predictions / ".done", (f"train {name}/{seed}",)))
                score = ("evaluate", str(predictions), "--reference", str(test), "--run", f"{name}/{seed}", "-o", str(scores))
                found.append(Task(f"score {title}", (*score, *rules), scores.with_suffix(".json"), (f"predict {title}",)))
    return {task.name: task for task in found}


def run_tasks(
    todo: Mapping[str, Task],
    *,
    minutes: float | None = None,
    scheduler: str | None = None,
    on_task: Callable[[Task, int, int], None] | None = None,
) -> bool:
    """Run what is not done yet.

    Args:
        todo: from `tasks`.
        minutes: stop after so many; a training that runs then writes a checkpoint and goes on the next time.
        scheduler: address of a Dask scheduler whose workers run the tasks; None for one after the other, here.
        on_task: called before each task with its number and the number of all.

    Returns:
        Whether everything is done.

    Raises:
        ModistillError: a command failed, or the scheduler cannot be reached.
        RecipeError: a limit of time for tasks that run elsewhere.
    """
    if scheduler is not None and minutes is not None:
        raise RecipeError("--minutes and --dask exclude each other", remedy="limit the time of the workers instead")
    if scheduler is not None:
        return _run_with_dask(todo, scheduler, on_task)
    end = None if minutes is None else time.monotonic() + 60 * minutes
    for number, task in enumerate(todo.values(), start=1):
        if task.done.exists():
            continue
        if on_task is not None:
            on_task(task, number, len(todo))
        if not _run(task, end):
            return False
    return True


def costs(benchmark: Benchmark, output: Path) -> dict[str, list[dict[str, float]]]:
    """Arm -> for each seed that is trained: parameters deployed and in training, FLOPs of one case, seconds, peak memory."""
    found: dict[str, list[dict[str, float]]] = {}
    for name in benchmark.arms:
        for seed in benchmark.seeds:
            path = output / "costs" / f"{name}_{seed}.json"
            if path.exists():
                size = found[name][0] if name in found else sizes(output / "runs" / str(seed) / name)
                found.setdefault(name, []).append(size | read_json(path))
    return found


def sizes(run: Path) -> dict[str, float]:
    """Parameters and FLOPs of the method of a run, without computing anything.

    FLOPs are of a case of the recipe's size, or of its patch where it has none; of one slice where the networks read slices.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    recipe = load_recipe(run / "recipe.yaml")
    with torch.device("meta"):
        method = build_method(recipe)
        whole = recipe.data.size or recipe.sampling.patch_size or (64, 64, 64)
        images = torch.empty(1, len(method.available), *(recipe.inference.window or whole)[: method.dims])
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        method.eval().segment(images)
    deployed, inference = method.get_submodule(method.deployed), recipe.inference
    windows = count_windows(whole, inference.window, inference.overlap) if method.dims == 3 else 1
    return {
        "parameters": sum(p.numel() for p in deployed.parameters()),
        "trained_parameters": sum(p.numel() for p in method.parameters() if p.requires_grad),
        "flops": counter.get_total_flops() * windows * 2 ** len(inference.mirror),
    }


def _run(task: Task, end: float | None = None) -> bool:
    """Run one task; False if the time was over before it was done."""
    if task.done.exists():
        return True
    resume = ("--resume",) if task.resumes is not None and task.resumes.exists() else ()
    command = [sys.executable, "-c", "from modistill.cli import main; main()", *task.command, *resume]
    begin = time.monotonic()
    code, peak = _wait(subprocess.Popen(command), end)
    if task.cost is not None:
        _add_cost(task.cost, time.monotonic() - begin, peak, whole=code == 0)
    if code is None:
        return False
    if code not in (0, _SOME_FAILED) and not task.done.exists():
        raise ModistillError(
            f"{task.name} ended with exit code {code}", remedy=f"see above: modistill {' '.join(task.command)}"
        )
    if not task.done.exists():
        task.done.touch()
    return True


def _add_cost(path: Path, seconds: float, peak: int, *, whole: bool) -> None:
    """Add a piece of a training to its cost; the file bears its final name once the training is whole."""
    part = path.with_suffix(".part.json")
    before = read_json(part) if part.exists() else {"seconds": 0.0, "peak_bytes": 0}
    cost = {"seconds": round(before["seconds"] + seconds, 1), "peak_bytes": max(before["peak_bytes"], peak)}
    write_json(path if whole else part, cost)
    if whole:
        part.unlink(missing_ok=True)


def _wait(process: subprocess.Popen[bytes], end: float | None) -> tuple[int | None, int]:
    """Exit code and peak of resident memory in bytes; no code if the time was over and the process was asked to stop."""
    stopped = False
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            return (None if stopped else process.returncode), usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        if end is not None and time.monotonic() > end and not stopped:
            process.send_signal(signal.SIGTERM)
            stopped = True
        time.sleep(0.05)


def _run_with_dask(todo: Mapping[str, Task], scheduler: str, on_task: Callable[[Task, int, int], None] | None) -> bool:
    """As many tasks at a time as the workers have threads.

    Given all at once, the scheduler would deal them out by its guess of half a second each, and one worker would be left with
    hours of training while others have nothing to do.
    """
    try:
        from distributed import Client, wait
    except ModuleNotFoundError as error:
        raise RecipeError("Dask is not installed", remedy="pip install 'modistill[dask]'") from error
    try:
        client = Client(scheduler, timeout="10s")
    except (OSError, ValueError) as error:
        raise RecipeError(f"no Dask scheduler answers at {scheduler}", remedy="start one: dask scheduler") from error
    waiting = {name: task for name, task in todo.items() if not task.done.exists()}
    running: dict[Any, str] = {}
    with client:
        while waiting or running:
            free = sum(client.nthreads().values()) - len(running)
            unmet = {*waiting, *running.values()}
            ready = [name for name, task in waiting.items() if unmet.isdisjoint(task.needs)]
            for name in ready[: max(free, 0)]:
                task = waiting.pop(name)
                if on_task is not None:
                    on_task(task, len(todo) - len(waiting), len(todo))
                running[client.submit(_run, task, key=f"{name}-{task.done}", pure=False)] = name
            with suppress(TimeoutError):  # look again: workers may have come
                wait(list(running), timeout=_LOOK_SECONDS, return_when="FIRST_COMPLETED")
            for future in [future for future in running if future.done()]:
                future.result()
                del running[future]
    return True


def _in_order(recipes: Mapping[str, Any]) -> Iterator[str]:
    """Arms, each after those it starts from.

    Raises:
        RecipeError: one starts from a run that is no arm, or they wait for each other.
    """
    waiting = {
        name: {Path(os.path.normpath(Path(name) / parent)).name for parent in recipe.start_from.values()}
        for name, recipe in recipes.items()
    }
    for name, parents in waiting.items():
        if strangers := parents - set(recipes):
            raise RecipeError(
                f"{name} starts from {', '.join(sorted(strangers))}, which is no arm", remedy="add it to the arms"
            )
    done: set[str] = set()
    while len(done) < len(recipes):
        ready = [name for name, parents in waiting.items() if name not in done and parents <= done]
        if not ready:
            raise RecipeError(f"arms wait for each other: {', '.join(sorted(set(recipes) - done))}")
        yield from ready
        done.update(ready)
