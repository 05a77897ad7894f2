"""A table of a paper: many arms over several seeds, in pieces that can be stopped, taken up again and run on many machines.

A benchmark is a folder and a list of *tasks*: prepare once; train every arm of every seed once the runs it starts from are
there; predict the test patients; score them. A task is one `modistill` command in a process of its own, and done when its last
file is there; a training that was stopped goes on bit for bit. So a benchmark may be interrupted anywhere, and tasks may run in
any order that their needs allow, here or on the workers of a Dask scheduler that see the same folder (`modistill.tasks`).

    OUT/prepared
    OUT/runs/SEED/ARM           recipes name each other as `../ARM`
    OUT/predictions/SEED/ARM
    OUT/scores/ARM_SEED.csv
    OUT/translations/SEED/ARM   of methods that translate, scored against the real images of the test patients
    OUT/predictions/SEED/ARM+mc, OUT/scores/ARM+mc_SEED.csv    with Monte-Carlo dropout, for the table of uncertainty
    OUT/completed/SEED/ARM, OUT/scores/ARM+completed_SEED.csv  segmentations of patients who lack a sequence, which ARM makes
    OUT/costs/ARM_SEED.json     wall time and peak memory of the training
    OUT/NAME.md, OUT/NAME_METRIC.png    tables and pictures; NAME is that of the YAML file: benchmarks may share a folder
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from modistill.data.naming import conventions
from modistill.data.normalisation import spell
from modistill.errors import RecipeError
from modistill.evaluation.protocol import METRICS, UncertaintyScale
from modistill.files import parse_yaml, read_json
from modistill.inference.completion import FILLS
from modistill.inference.windows import count_windows
from modistill.methods import load_method
from modistill.methods.base import TranslationMethod
from modistill.recipe import Recipe, build, check, load_recipe
from modistill.runs import build_method
from modistill.tasks import Task

__all__ = ["COMPLETED", "MC", "Arm", "Benchmark", "costs", "load_benchmark", "sizes", "tasks"]

_SHIPPED = Path(__file__).parent / "recipes"
MC = "+mc"  # after the name of an arm, in the folders of its Monte-Carlo predictions
COMPLETED = "+completed"  # after the name of an arm that translates, in the scores of what is segmented with its translations


def _with_sd(numbers: Any) -> Any:
    """A published mean whose SD was not: [0.34] is [0.34, null]."""
    return [*numbers, None] if isinstance(numbers, list) and len(numbers) == 1 else numbers


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Arm(_Section):
    """One line of the table.

    Attributes:
        recipe: a file, or the name of one that comes with the package.
        set: "section.key=value" each; they come after the benchmark's own.
        like: another arm, whose recipe this one takes if it names none, and whose `set` comes before its own.
        control: the arm that this one is compared with, if not the benchmark's; an arm that names itself is compared with none.
        trained_as: another arm, whose runs this one takes instead of training, and with them recipe and `set`.
        privileged: it is predicted with every sequence of the test patients, the others with the available ones; one that
            translates is shown their labels. It stands apart.
        apart: true, or why. A bound is no rival: it is shown below the others, neither ranked nor compared.
        mc_dropout: passes of Monte-Carlo dropout for the table of uncertainty; Dice is of one pass without, for all arms.
        published: mean and SD in the paper, or the mean alone, shown beside ours and marked as published: region -> Dice in
            per cent, or "metric/region" -> another metric in its own unit.
    """

    recipe: str = ""
    set: tuple[str, ...] = ()
    like: str | None = None
    control: str | None = None
    trained_as: str | None = None
    privileged: bool = False
    apart: bool | str = False
    mc_dropout: int = Field(default=0, ge=0)
    published: dict[str, Annotated[tuple[float, float | None], BeforeValidator(_with_sd)]] = {}


class Benchmark(_Section):
    """What is compared.

    Attributes:
        about: a line for people: the data it is meant for, and what the published numbers were measured on.
        arms: name -> arm, in the order of the table.
        control: the arm that all others are compared with, except those that name their own.
        seeds: every arm is trained with each.
        set: "section.key=value" for the recipes of all arms.
        fractions: of training, validation and test among the training patients.
        labels: convention of the reference labels; None where names or values tell.
        metrics: a table for each.
        test: "t" or "wilcoxon", paired over patients, by which the best arm is compared with the others.
        uncertainty: what counts 100 in uncertainty maps when they are scored (see `Protocol`); the score depends on it.
        pairs: arms that translate are asked for every ordered pair of sequences that they know, not for one.
        body_above: share of the scale above which a real image is body when translations are scored (see `SynthesisProtocol`).
        completes: an arm that segments. It is given the test patients once without each of its sequences, which every arm that
            translates into all of them makes, and once with nothing in its place: `FILLS`.
    """

    about: str = ""
    arms: dict[str, Arm] = Field(min_length=2)
    control: str
    seeds: tuple[int, ...] = Field(default=(0, 1, 2), min_length=1)
    set: tuple[str, ...] = ()
    fractions: tuple[float, float, float] = (0.85, 0.15, 0.0)
    labels: str | None = None
    metrics: tuple[str, ...] = Field(default=("dice",), min_length=1)
    test: Literal["t", "wilcoxon"] = "t"
    uncertainty: UncertaintyScale = "theoretical"
    pairs: bool = False
    body_above: float | None = Field(default=None, ge=0, lt=1)
    completes: str | None = None

    @field_validator("arms")
    @classmethod
    def _taken_over(cls, arms: dict[str, Arm]) -> dict[str, Arm]:
        """Each arm with all that it takes from others: its whole recipe and `set`."""

        def whole(name: str, *takers: str) -> Arm:
            arm = arms[name]
            if arm.trained_as and arm.like:
                raise ValueError(f"{name} is trained as {arm.trained_as}; leave out like: {arm.like}")
            if (other := arm.trained_as or arm.like) is None:
                if not arm.recipe:
                    raise ValueError(f"{name} has no recipe; give one, or another arm that it is like")
                return arm
            if other not in arms or other in (name, *takers):
                raise ValueError(f"{name} is like {other}, which is no other arm; there are {', '.join(arms)}")
            taken = whole(other, name, *takers)
            return arm.model_copy(update={"recipe": arm.recipe or taken.recipe, "set": (*taken.set, *arm.set)})

        return {name: whole(name) for name in arms}

    @model_validator(mode="after")
    def _known(self) -> Benchmark:
        chosen = {"control": self.control} | {f"arms.{name}.control": self.control_of(name) for name in self.arms}
        for place, control in chosen.items():
            if control not in self.arms:
                raise ValueError(f"{place} is {control}, no such arm among {', '.join(self.arms)}")
            if control in self.apart:
                raise ValueError(f"{place} is {control}, which stands apart: no fair comparison")
        for name, arm in self.arms.items():
            trained = self.arms[arm.trained_as or name]
            if trained.trained_as or (trained.recipe, trained.set) != (arm.recipe, arm.set):
                raise ValueError(f"{name} is trained as {arm.trained_as}, which must have a training of its own, and the same")
        if self.completes is not None and self.completes not in self.arms:
            raise ValueError(f"completes is {self.completes}, no such arm among {', '.join(self.arms)}")
        if self.labels is not None and self.labels not in conventions:
            raise ValueError(f"no label convention named {self.labels}; known: {', '.join(conventions)}")
        if unknown := [name for name in self.metrics if name not in METRICS]:
            raise ValueError(f"no metric named {unknown[0]}; known: {', '.join(METRICS)}")
        if foreign := [name for name in self.arms if not name.replace("_", "").replace("-", "").isalnum()]:
            raise ValueError(f"an arm's name is letters, digits, _ and -; not {foreign[0]!r}")
        return self

    @property
    def apart(self) -> dict[str, str]:
        """The arms that are neither ranked nor compared -> why, "" where nobody says."""
        found = {}
        for name, arm in self.arms.items():
            if arm.apart or arm.privileged:
                why = arm.apart if isinstance(arm.apart, str) else ""
                found[name] = why or ("sees privileged data" if arm.privileged else "")
        return found

    def control_of(self, arm: str) -> str:
        """The arm that one is compared with."""
        return self.arms[arm].control or self.control

    def comparisons(self) -> dict[str, list[str]]:
        """Control -> the arms compared with it, in the order of the table; those apart are compared with none."""
        found: dict[str, list[str]] = {}
        for name in self.arms:
            if name != (control := self.control_of(name)) and name not in self.apart:
                found.setdefault(control, []).append(name)
        return found


def load_benchmark(path: Path | str, overrides: Sequence[str] = (), seeds: Sequence[int] = ()) -> Benchmark:
    """Read a benchmark.

    Args:
        path: a YAML file, or the name of one that comes with the package ("benchmarks/hadnet_table1_phantom").
        overrides: "section.key=value" for the recipes of all arms; they come after the benchmark's and the arms' own.
        seeds: in place of the benchmark's.

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
    found = check(Benchmark, content, place)
    arms = {name: arm.model_copy(update={"set": (*arm.set, *overrides)}) for name, arm in found.arms.items()}
    return found.model_copy(update={"arms": arms, "seeds": tuple(seeds) or found.seeds})


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
    for option, names in (("--available", data.available), ("--n4", data.n4)):
        how += [option, ",".join(names)] if names else []
    how += ["--within", data.within] if data.within else []
    how += ["--labels", benchmark.labels] if benchmark.labels else []
    how += ["--slices"] if any(len(recipe.sampling.patch_size or ()) == 2 for recipe in recipes.values()) else []
    found = [Task("prepare", ("prepare", str(train), "-o", str(prepared), *how), prepared / "plan.json")]
    for seed in benchmark.seeds:
        for name in _in_order(recipes):
            arm = benchmark.arms[name]
            trained = arm.trained_as or name
            run = output / "runs" / str(seed) / trained
            overrides = [*benchmark.set, *arm.set, f"training.seed={seed}"]
            parents = [Path(os.path.normpath(Path(name) / parent)).name for parent in recipes[name].start_from.values()]
            cost = output / "costs" / f"{name}_{seed}.json"
            train_it = Task(
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
            found += [train_it] if trained == name else []
            found += _scored(benchmark, name, seed, recipes[name], run, test, output, device)
        if benchmark.completes is not None:
            able = [name for name, recipe in recipes.items() if _makes(recipe) >= set(data.modalities)]
            makers = {name: benchmark.arms[name].trained_as or name for name in able if not benchmark.arms[name].privileged}
            found += _completed(benchmark, benchmark.completes, makers, seed, test, output, device)
    return {task.name: task for task in found}


def _scored(
    benchmark: Benchmark, name: str, seed: int, recipe: Recipe, run: Path, test: Path, output: Path, device: str
) -> Iterator[Task]:
    """What becomes of a trained run: predictions or translations of the test patients, and their scores."""
    arm, data, translates = benchmark.arms[name], recipe.data, _translates(recipe)
    seen = data.modalities if arm.privileged else data.available or data.modalities
    reading = ("-i", str(test), "--model", str(run), "--device", device, "--continue")
    only = ("--pairs",) if benchmark.pairs else ()  # a translator reads what it translates, and nothing else
    only = (*only, *(("--with-labels",) if arm.privileged else ())) if translates else ("--only", ",".join(seen))
    sampled = ("--mc-dropout", str(arm.mc_dropout), "--uncertainty")
    labels = ("--labels", benchmark.labels) if benchmark.labels else ()
    scale = ("--uncertainty-scale", benchmark.uncertainty)
    if translates and benchmark.body_above is not None:
        labels = (*labels, "--body-above", str(benchmark.body_above))
    for kind, extra, rules in (("", (), labels), *([(MC, sampled, (*labels, *scale))] if arm.mc_dropout else [])):
        title, scores = f"{name}{kind}/{seed}", output / "scores" / f"{name}{kind}_{seed}.csv"
        made = output / ("translations" if translates else "predictions") / str(seed) / f"{name}{kind}"
        verb, evaluate = ("translate", "evaluate-translations") if translates else ("predict", "evaluate")
        yield Task(
            f"{verb} {title}", (verb, *reading, *only, "-o", str(made), *extra), made / ".done", (f"train {run.name}/{seed}",)
        )
        score = (evaluate, str(made), "--reference", str(test), "--run", f"{name}/{seed}", "-o", str(scores), *rules)
        yield Task(f"score {title}", score, scores.with_suffix(".json"), (f"{verb} {title}",))


def _completed(
    benchmark: Benchmark, segmentor: str, makers: Mapping[str, str], seed: int, test: Path, output: Path, device: str
) -> Iterator[Task]:
    """What a segmentor makes of test patients who lack a sequence, which somebody else makes or nobody does."""
    labels = ("--labels", benchmark.labels) if benchmark.labels else ()
    runs = output / "runs" / str(seed)
    for name in (*makers, *FILLS):
        by = str(runs / makers[name]) if name in makers else name
        made, scores = output / "completed" / str(seed) / name, output / "scores" / f"{name}{COMPLETED}_{seed}.csv"
        reading = ("-i", str(test), "--model", str(runs / segmentor), "--device", device, "--continue")
        needs = (f"train {segmentor}/{seed}", *((f"train {makers[name]}/{seed}",) if name in makers else ()))
        how = ("--one-missing", "--complete-with", by)
        yield Task(f"complete {name}/{seed}", ("predict", *reading, *how, "-o", str(made)), made / ".done", needs)
        told = ("--subsets", "--reference", str(test), "--run", f"{name}/{seed}", "-o", str(scores), *labels)
        score = ("evaluate", str(made), *told)
        yield Task(f"score {name}{COMPLETED}/{seed}", score, scores.with_suffix(".json"), (f"complete {name}/{seed}",))


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

    FLOPs are of a case of the recipe's size, all its slices where the networks read slices; of a patch where it has none.
    """
    from torch.utils.flop_counter import FlopCounterMode

    recipe = load_recipe(run / "recipe.yaml")
    constructor = load_method(recipe.method.name)
    with torch.device("meta"):
        whole_method = build_method(recipe)
        method = build(constructor, recipe.method.arguments, "method", call=constructor.for_inference)
        whole = recipe.data.size or recipe.sampling.patch_size or (64, 64, 64)
        channels = 1 if isinstance(method, TranslationMethod) else len(method.available)
        images = torch.empty(1, channels, *(recipe.inference.window or whole)[: method.dims])
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        method.eval()
        if isinstance(method, TranslationMethod):
            method.translate(images, method.targets[0])
        else:
            method.segment(images)
    deployed, inference = method.get_submodule(method.deployed), recipe.inference
    if method.dims == 3:
        passes = count_windows(whole, inference.window, inference.overlap)
    else:
        passes = recipe.data.size[2] if recipe.data.size else 1
    return {
        "parameters": sum(p.numel() for p in deployed.parameters()),
        "trained_parameters": sum(p.numel() for p in whole_method.parameters() if p.requires_grad),
        "flops": counter.get_total_flops() * passes * 2 ** len(inference.mirror),
    }


def _translates(recipe: Recipe) -> bool:
    """Whether what a recipe trains makes images, and segments nothing."""
    return (
        issubclass(load_method(recipe.method.name), TranslationMethod)
        or recipe.method.arguments.get("read_out") == "translator"
    )


def _makes(recipe: Recipe) -> set[str]:
    """The modalities that what a recipe trains translates into."""
    if not _translates(recipe):
        return set()
    with torch.device("meta"):
        return set(build_method(recipe).targets)


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
