"""`modistill benchmark`: the table of a paper, from patients to numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from modistill.benchmark import Benchmark
    from modistill.evaluation.scores import Scores

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


def _report(benchmark: Benchmark, output: Path, name: str) -> None:
    """All tables that the finished arms allow, on the terminal and as OUTPUT/NAME.md, and OUTPUT/NAME_METRIC.png beside it."""
    from modistill.benchmark import MC, costs
    from modistill.cli.tables import print_notes, print_table
    from modistill.evaluation.comparison import arm_of
    from modistill.evaluation.papers import cost_table, paper_table
    from modistill.evaluation.protocol import METRICS
    from modistill.files import write_text
    from modistill.report.arms import plot_arms

    done = {arm: _scored(benchmark, arm, output) for arm in benchmark.arms}
    scores = [table for tables in done.values() for table in tables]
    uncertain = [table for arm in benchmark.arms for table in _scored(benchmark, arm + MC, output)]
    rivals = [arm for arm, tables in done.items() if tables and not benchmark.arms[arm].privileged]
    if len(rivals) < 2:
        print_notes([f"no tables yet: {len(rivals)} arms are scored, a comparison needs 2"])
        return
    apart = [arm for arm in done if benchmark.arms[arm].privileged]
    published = {arm: its.published for arm, its in benchmark.arms.items() if its.published}
    parts = [f"# {benchmark.about or 'Benchmark'}\n"]
    unequal = {arm: len(tables) for arm, tables in done.items() if len(tables) != len(benchmark.seeds)}
    if unequal:
        parts.append(
            f"Not complete: {', '.join(f'{arm} {n} of {len(benchmark.seeds)} seeds' for arm, n in unequal.items())}.\n"
        )
    shown, pictures = [], []
    for metric in benchmark.metrics:
        title = f"Table 1: {METRICS[metric].title}"
        shown.append(paper_table(scores, metric, apart=apart, published=published, test=benchmark.test, title=title))
        pictures.append(output / f"{name}_{metric}.png")
        plot_arms(scores, pictures[-1], metric, apart=apart, published=published)
    if len({arm_of(table.runs[0]) for table in uncertain}) > 1:
        title = f"Table 2: QU-BraTS score, {uncertain[0].protocol.uncertainty} scale"
        shown.append(paper_table(uncertain, "qu_score", beside="qu_trivial", apart=apart, title=title))
    for table, notes in shown:
        print_table(table)
        print_notes(notes)
        parts += [table.markdown(), *(f"- {note}" for note in notes), ""]
    if spent := costs(benchmark, output):
        print_table(cost_table(spent))
        parts.append(cost_table(spent).markdown())
    parts += _comparisons(benchmark, done)
    write_text(output / f"{name}.md", "\n".join(parts))
    print_notes([f"tables: {output / f'{name}.md'}", *(f"picture: {path}" for path in pictures)])


def _scored(benchmark: Benchmark, arm: str, output: Path) -> list[Scores]:
    """The scores of the seeds of an arm that are there."""
    from modistill.evaluation.scores import read_scores

    paths = [output / "scores" / f"{arm}_{seed}.csv" for seed in benchmark.seeds]
    return [read_scores(path) for path in paths if path.with_suffix(".json").exists()]


def _comparisons(benchmark: Benchmark, done: Mapping[str, Sequence[Scores]]) -> Iterator[str]:
    """Each control that is scored with the arms that are compared with it: on the terminal, and as Markdown."""
    from modistill.cli.tables import print_notes, print_table
    from modistill.evaluation.comparison import compare
    from modistill.evaluation.tables import comparison_markdown, comparison_notes, comparison_tables

    for control, arms in benchmark.comparisons().items():
        scores = [table for arm in arms for table in done[arm]]
        if not scores or not done[control]:
            continue
        found = compare([*done[control], *scores], control, metrics=benchmark.metrics)
        print_notes(["", f"Comparison with {control}"])
        for table in comparison_tables(found):
            print_table(table)
        print_notes(comparison_notes(found))
        yield comparison_markdown(found)
