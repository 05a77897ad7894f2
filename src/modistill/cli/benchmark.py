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
        note: what else a reader should know.
    """

    name: str
    tables: Mapping[str, Sequence[Scores]]
    metrics: Sequence[str]
    comparisons: Mapping[str, Sequence[str]]
    note: str = ""


def _views(benchmark: Benchmark, output: Path) -> Iterator[_View]:
    """Of a benchmark of pairs: their mean, single pairs that some arm alone has, and what is segmented with what was made."""
    from modistill.benchmark import COMPLETED
    from modistill.evaluation.synthesis import PAIR
    from modistill.inference.completion import FILLS

    done = {arm: _scored(benchmark, arm, output) for arm in benchmark.arms}
    if not benchmark.pairs:
        yield _View("", done, benchmark.metrics, benchmark.comparisons())
        return
    pairs = {arm: {pair for table in tables for pair in table.subsets if PAIR in pair} for arm, tables in done.items()}
    most = max(map(len, pairs.values()))
    means = {arm: [table.averaged() for table in done[arm]] for arm, of_arm in pairs.items() if len(of_arm) == most > 0}
    yield _View(f"mean of {most} pairs", means, benchmark.metrics, benchmark.comparisons())
    for pair in sorted({pair for of_arm in pairs.values() if len(of_arm) < most for pair in of_arm}):
        alone = {arm: [table.select(available=pair) for table in done[arm]] for arm, of_arm in pairs.items() if pair in of_arm}
        yield _View(pair, alone, benchmark.metrics, {})
    completed = {name: _scored(benchmark, name + COMPLETED, output) for name in (*benchmark.arms, *FILLS)}
    completed = {name: tables for name, tables in completed.items() if tables}
    if benchmark.completes is None or not completed:
        return
    real = _dice(done[benchmark.completes])
    subsets = next(iter(completed.values()))[0].subsets
    everything = {name for subset in subsets for name in subset.split("+")}
    against = {FILLS[0]: [name for name in completed if name != FILLS[0]]}
    together = {name: [table.averaged() for table in tables] for name, tables in completed.items()}
    note = f"{benchmark.completes} with nothing missing: {real}" if real else ""
    yield _View("segmented without one sequence", together, ("dice",), against, note)
    for subset in subsets:
        missing = everything - set(subset.split("+"))
        alone = {name: [table.select(available=subset) for table in tables] for name, tables in completed.items()}
        yield _View(f"segmented without {'+'.join(missing)}", alone, ("dice",), {})


def _dice(tables: Sequence[Scores]) -> str:
    """Mean Dice of each region over cases and seeds, in words."""
    import numpy as np

    from modistill.evaluation.papers import case_means
    from modistill.evaluation.tables import number

    means = case_means(tables, "dice")
    return ", ".join(
        f"{region} {number(float(np.nanmean(cases)), 'dice')}" for of in means.values() for region, cases in of.items()
    )


def _report(benchmark: Benchmark, output: Path, name: str) -> None:
    """All tables that the finished arms allow, on the terminal and as OUTPUT/NAME.md, and OUTPUT/NAME_METRIC.png beside it."""
    from modistill.benchmark import MC, costs
    from modistill.cli.tables import print_notes
    from modistill.evaluation.comparison import arm_of
    from modistill.evaluation.papers import cost_table, paper_table
    from modistill.evaluation.protocol import METRICS
    from modistill.files import write_text
    from modistill.report.arms import plot_arms

    privileged = [arm for arm in benchmark.arms if benchmark.arms[arm].privileged]
    published = {arm: its.published for arm, its in benchmark.arms.items() if its.published}
    uncertain = [table for arm in benchmark.arms for table in _scored(benchmark, arm + MC, output)]
    parts = [f"# {benchmark.about or 'Benchmark'}\n"]
    seeds = {arm: len(_scored(benchmark, arm, output)) for arm in benchmark.arms}
    if unequal := {arm: number for arm, number in seeds.items() if number != len(benchmark.seeds)}:
        parts.append(
            f"Not complete: {', '.join(f'{arm} {n} of {len(benchmark.seeds)} seeds' for arm, n in unequal.items())}.\n"
        )
    pictures, numbers = [], count(1)
    for view in _views(benchmark, output):
        rivals = [arm for arm, tables in view.tables.items() if tables and arm not in privileged]
        if len(rivals) < 2:
            print_notes([f"no tables yet{f' ({view.name})' if view.name else ''}: {len(rivals)} arms are scored, it takes 2"])
            continue
        scores = [table for tables in view.tables.values() for table in tables]
        apart = [arm for arm in privileged if view.tables.get(arm)]
        for metric in view.metrics:
            title = f"Table {next(numbers)}: {METRICS[metric].title}{f', {view.name}' if view.name else ''}"
            table, notes = paper_table(scores, metric, apart=apart, published=published, test=benchmark.test, title=title)
            parts += _shown(table, [*notes, *([view.note] if view.note else [])])
            ending = "".join(f"_{word}" for word in view.name.replace(",", "").split())
            pictures.append(output / f"{name}_{metric}{ending}.png")
            plot_arms(scores, pictures[-1], metric, apart=apart, published=published)
        parts += _compared(view)
    if len({arm_of(table.runs[0]) for table in uncertain}) > 1:
        title = f"Table {next(numbers)}: QU-BraTS score, {uncertain[0].protocol.uncertainty} scale"
        apart = [arm for arm in privileged if arm in {arm_of(table.runs[0]) for table in uncertain}]
        parts += _shown(*paper_table(uncertain, "qu_score", beside="qu_trivial", apart=apart, title=title))
    if not pictures:
        return
    if spent := costs(benchmark, output):
        parts += _shown(cost_table(spent), [])
    write_text(output / f"{name}.md", "\n".join(parts))
    print_notes([f"tables: {output / f'{name}.md'}", *(f"picture: {path}" for path in pictures)])


def _shown(table: TextTable, notes: Sequence[str]) -> list[str]:
    """A table on the terminal, and as lines of Markdown."""
    from modistill.cli.tables import print_notes, print_table

    print_table(table)
    print_notes(list(notes))
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
        print_notes(["", f"Comparison with {control}{f', {view.name}' if view.name else ''}"])
        for table in comparison_tables(found):
            print_table(table)
        print_notes(comparison_notes(found))
        yield comparison_markdown(found)
