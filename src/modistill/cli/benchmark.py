"""`modistill benchmark`: the table of a paper, from patients to numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from modistill.benchmark import Benchmark
    from modistill.evaluation.scores import Scores
    from modistill.evaluation.tables import TextTable

__all__ = ["command"]


def command(
    benchmark: Annotated[str, typer.Argument(help="A YAML file, or the name of one that comes with the package.")],
    train: Annotated[Path, typer.Option("--train", help="Patients for training and validation.")],
    test: Annotated[Path, typer.Option("--test", help="Patients with reference labels that no training sees.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the benchmark; run again, it goes on.")],
    minutes: Annotated[
        float | None, typer.Option("--minutes", help="Stop after so many; run the same command again to go on.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="section.key=value for the recipes of all arms; repeat for several.")
    ] = None,
    seeds: Annotated[
        list[int] | None, typer.Option("--seed", help="Repeat for several.", show_default="the benchmark's own")
    ] = None,
    dask: Annotated[str | None, typer.Option("--dask", help="Address of a Dask scheduler whose workers share OUTPUT.")] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    tables_only: Annotated[bool, typer.Option("--tables", help="Run nothing; make the tables from what is there.")] = False,
) -> None:
    """Train, predict, score and compare every arm over several seeds.

    What is done stays done: the command may be stopped anywhere and run again. Exit code: 0 complete, 3 something is left.
    """
    from rich.console import Console

    from modistill.benchmark import load_benchmark, tasks
    from modistill.tasks import run_tasks

    chosen = load_benchmark(benchmark, overrides or (), seeds or ())
    todo = tasks(chosen, train, test, output, device=device)
    console = Console(stderr=True, highlight=False)
    complete = True
    if not tables_only:
        complete = run_tasks(
            todo,
            minutes=minutes,
            scheduler=dask,
            on_task=lambda task, number, count: console.print(f"[bold]{number}/{count} {task.name}[/]"),
        )
    _report(chosen, output, Path(benchmark).stem)
    if not complete:
        console.print("the time is over; run the same command again to go on")
    raise typer.Exit(0 if complete else 3)


@dataclass(frozen=True)
class _View:
    """Scores that are compared with each other, and the tables that are made of them.

    Attributes:
        name: after the title of its tables, and of its pictures; "" for the only one.
        tables: arm -> scores of its seeds, one set of modalities each.
        metrics: a table and a picture for each.
        comparisons: control -> arms that are compared with it.
        apart: arms that are shown and not compared -> why.
        notes: what else a reader should know.
    """

    name: str
    tables: Mapping[str, Sequence[Scores]]
    metrics: Sequence[str]
    comparisons: Mapping[str, Sequence[str]]
    apart: Mapping[str, str]
    notes: Sequence[str] = ()


def _views(benchmark: Benchmark, output: Path) -> Iterator[_View]:
    """All there is; of pairs the mean, those that not all arms have, and what is segmented with what was made."""
    done = {arm: _scored(benchmark, arm, output) for arm in benchmark.arms}
    if not benchmark.pairs:
        yield _View("", done, benchmark.metrics, benchmark.comparisons(), benchmark.apart)
        return
    yield from _pairs(benchmark, done)
    if benchmark.completes is not None:
        yield from _completed(benchmark, output, done[benchmark.completes])


def _pairs(benchmark: Benchmark, done: Mapping[str, Sequence[Scores]]) -> Iterator[_View]:
    """The mean of all pairs, and each that some arm alone has."""
    from modistill.evaluation.synthesis import PAIR

    pairs = {arm: {pair for table in tables for pair in table.subsets if PAIR in pair} for arm, tables in done.items()}
    most = max(map(len, pairs.values()))
    means = {arm: [table.averaged() for table in done[arm]] for arm, of_arm in pairs.items() if len(of_arm) == most > 0}
    note = "a case counts the mean of its pairs (the last lines of evaluate-translations are means over cases, then over pairs)"
    yield _View(f"mean of {most} pairs", means, benchmark.metrics, benchmark.comparisons(), benchmark.apart, [note])
    for pair in sorted({pair for of_arm in pairs.values() if len(of_arm) < most for pair in of_arm}):
        alone = {arm: [table.select(available=pair) for table in done[arm]] for arm, of_arm in pairs.items() if pair in of_arm}
        yield _View(pair, alone, benchmark.metrics, {}, benchmark.apart)


def _completed(benchmark: Benchmark, output: Path, real: Sequence[Scores]) -> Iterator[_View]:
    """What is segmented without each of the sequences, beside what the same patients' real images give."""
    from modistill.benchmark import COMPLETED
    from modistill.inference.completion import FILLS

    scored = {name: _scored(benchmark, name + COMPLETED, output) for name in (*benchmark.arms, *FILLS)}
    made = {name: tables for name, tables in scored.items() if tables}
    if not made:
        return
    first = next(iter(made.values()))[0]
    whole = [table.select(cases=first.cases) for table in real]
    bound = {str(benchmark.completes): whole} if whole and all(table.cases == first.cases for table in whole) else {}
    apart = {**benchmark.apart, **dict.fromkeys(bound, "nothing is missing")}
    sources = {name: _sources(output / "completed", name) for name in made if name not in FILLS}
    fills = f"{' and '.join(FILLS)} translate nothing: the channel of what is missing holds 0, or the mean of the others"
    means = {name: [table.averaged() for table in tables] for name, tables in made.items()} | bound
    against = {FILLS[0]: [name for name in made if name != FILLS[0] and name not in apart]}
    together = "a case counts the mean of what is segmented without each sequence"
    notes = [together, *_said(sources), fills]
    yield _View("segmented without one sequence", means, ("dice",), against, apart, notes)
    everything = {name for subset in first.subsets for name in subset.split("+")}
    for subset in first.subsets:
        missing = everything - set(subset.split("+"))
        alone = {name: [table.select(available=subset) for table in tables] for name, tables in made.items()} | bound
        of_missing = {name: {m: source for m, source in found.items() if m in missing} for name, found in sources.items()}
        yield _View(f"segmented without {'+'.join(missing)}", alone, ("dice",), {}, apart, _said(of_missing))


def _sources(completed: Path, arm: str) -> dict[str, str]:
    """Missing sequence -> those that an arm made it from, as the reports beside what was segmented say."""
    from modistill.files import read_json

    found: dict[str, dict[str, None]] = {}
    for report in sorted(completed.glob(f"*/{arm}/*/report.json")):
        for one in (one for row in read_json(report)["rows"] for one in row["substitutes"]):
            found.setdefault(one["modality"], {})["+".join(one["made_from"])] = None
    return {modality: " or ".join(sources) for modality, sources in sorted(found.items())}


def _said(sources: Mapping[str, Mapping[str, str]]) -> list[str]:
    """A note for all arms that made sequences from the same others."""
    alike: dict[str, list[str]] = {}
    for arm, of_arm in sources.items():
        alike.setdefault(", ".join(f"{modality} from {source}" for modality, source in of_arm.items()), []).append(arm)
    known = {text: arms for text, arms in alike.items() if text}
    whose = {text: f" ({', '.join(arms)})" if len(known) > 1 else "" for text, arms in known.items()}
    return [f"made by translation: {text}{whose[text]}" for text in known]


def _report(benchmark: Benchmark, output: Path, name: str) -> None:
    """All tables that the finished arms allow, on the terminal and as OUTPUT/NAME.md, and OUTPUT/NAME_METRIC.png beside it."""
    from modistill.benchmark import MC, costs
    from modistill.cli.tables import print_notes
    from modistill.evaluation.comparison import arm_of
    from modistill.evaluation.papers import cost_table, paper_table
    from modistill.evaluation.protocol import METRICS
    from modistill.files import write_text
    from modistill.report.arms import plot_arms

    published = {arm: its.published for arm, its in benchmark.arms.items() if its.published}
    uncertain = [table for arm in benchmark.arms for table in _scored(benchmark, arm + MC, output)]
    parts = [f"# {name}\n", *([f"{benchmark.about}\n"] if benchmark.about else [])]
    seeds = {arm: len(_scored(benchmark, arm, output)) for arm in benchmark.arms}
    if unequal := {arm: number for arm, number in seeds.items() if number != len(benchmark.seeds)}:
        lacking = f"not complete: {', '.join(f'{arm} {n} of {len(benchmark.seeds)} seeds' for arm, n in unequal.items())}"
        parts.append(f"{lacking.capitalize()}.\n")
        print_notes([lacking])
    pictures, numbers = [], count(1)
    for view in _views(benchmark, output):
        rivals = [arm for arm, tables in view.tables.items() if tables and arm not in view.apart]
        if len(rivals) < 2:
            print_notes([f"no tables yet{f' ({view.name})' if view.name else ''}: {len(rivals)} arms are scored, it takes 2"])
            continue
        scores = [table for tables in view.tables.values() for table in tables]
        parts += [f"## {view.name}\n"] if view.name else []
        for metric in view.metrics:
            title = f"Table {next(numbers)}: {METRICS[metric].title}{f', {view.name}' if view.name else ''}"
            table, notes = paper_table(scores, metric, apart=view.apart, published=published, test=benchmark.test, title=title)
            parts += _shown(table, [*notes, *view.notes])
            ending = "".join(f"_{word}" for word in view.name.replace(",", "").split())
            pictures.append(output / f"{name}_{metric}{ending}.png")
            plot_arms(scores, pictures[-1], metric, apart=view.apart, published=published, title=view.name)
        parts += _compared(view)
    if len({arm_of(table.runs[0]) for table in uncertain}) > 1:
        title = f"Table {next(numbers)}: QU-BraTS score, {uncertain[0].protocol.uncertainty} scale"
        parts += _shown(*paper_table(uncertain, "qu_score", beside="qu_trivial", apart=benchmark.apart, title=title))
    if not pictures:
        return
    if spent := costs(benchmark, output):
        own = "minutes and memory of an arm's own training, without those of runs that it starts from"
        parts += ["## Cost\n", *_shown(cost_table(spent), [own])]
    write_text(output / f"{name}.md", "\n".join(parts))
    print_notes([f"tables: {output / f'{name}.md'}", *(f"picture: {path}" for path in pictures)])


def _shown(table: TextTable, notes: Sequence[str]) -> list[str]:
    """A table on the terminal, and as lines of Markdown."""
    from modistill.cli.tables import print_notes, print_table

    print_table(table)
    print_notes([*notes, ""])
    return [table.markdown(), *(f"- {note}" for note in notes), ""]


def _scored(benchmark: Benchmark, arm: str, output: Path) -> list[Scores]:
    """The scores of the seeds of an arm that are there."""
    from modistill.evaluation.scores import read_scores

    paths = [output / "scores" / f"{arm}_{seed}.csv" for seed in benchmark.seeds]
    return [read_scores(path) for path in paths if path.with_suffix(".json").exists()]


def _compared(view: _View) -> Iterator[str]:
    """Each control that is scored with the arms that are compared with it: on the terminal, and as Markdown."""
    from modistill.cli.tables import print_notes, print_table
    from modistill.evaluation.comparison import compare
    from modistill.evaluation.tables import comparison_markdown, comparison_notes, comparison_tables

    for control, arms in view.comparisons.items():
        scores = [table for arm in arms for table in view.tables.get(arm, ())]
        if not scores or not view.tables.get(control):
            continue
        found = compare([*view.tables[control], *scores], control, metrics=view.metrics)
        title = f"Comparison with {control}{f', {view.name}' if view.name else ''}"
        print_notes([title])
        for table in comparison_tables(found):
            print_table(table)
        print_notes([*comparison_notes(found), ""])
        _, _, tables = comparison_markdown(found).partition("\n")
        yield f"## {title}\n{tables}"
