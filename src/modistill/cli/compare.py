"""`modistill compare`: arms against a control, with paired statistics."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from modistill.evaluation.comparison import ComparisonTable
    from modistill.evaluation.scores import Scores

__all__ = ["command"]


def command(
    scores: Annotated[list[Path], typer.Argument(help="Score files that `modistill evaluate` wrote, two or more.")],
    control: Annotated[str, typer.Option("--control", help="The arm that all others are compared with.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the table: .md, .csv or .json.", show_default="only printed")
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            "--metric",
            help="Repeat for several.",
            show_default="dice, hausdorff95_mm, surface_dice; of synthetic images psnr, ssim, nmae, kl",
        ),
    ] = None,
    available: Annotated[
        str | None, typer.Option("--available", help="Only what was predicted from these sequences, as t1+flair.")
    ] = None,
    common: Annotated[bool, typer.Option("--common", help="Compare the cases that all runs share.")] = False,
    resamples: Annotated[int, typer.Option("--resamples", min=100, help="Of each bootstrap interval.")] = 9999,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of each bootstrap interval.")] = 0,
) -> None:
    """Compare runs with a control: mean, SD, median, paired difference with interval, t-test and Wilcoxon after Holm.

    Runs named ARM/SEED are averaged over their seeds, case by case, before they are compared.
    """
    from modistill.cli.tables import print_notes, print_table
    from modistill.errors import FileError
    from modistill.evaluation.comparison import compare
    from modistill.evaluation.tables import comparison_notes, comparison_tables
    from modistill.files import require_writable

    if output is not None and output.suffix not in (".md", ".csv", ".json"):
        raise FileError("unknown kind of table", file=output, remedy="give a name that ends in .md, .csv or .json")
    if output is not None:
        require_writable(output)
    table = compare(
        [_read(path, available) for path in scores],
        control,
        metrics=metric,
        common=common,
        resamples=resamples,
        seed=seed,
    )
    for text in comparison_tables(table):
        print_table(text)
    print_notes(comparison_notes(table))
    if output is not None:
        _write(output, table)
        print_notes([f"table: {output}"])


def _read(path: Path, available: str | None) -> Scores:
    """The scores of a file, or those from one set of sequences, in whatever order they are named."""
    from modistill.errors import ScoreError
    from modistill.evaluation.scores import read_scores

    scores = read_scores(path)
    if available is None:
        return scores
    wanted = set(available.split("+"))
    for subset in scores.subsets:
        if set(subset.split("+")) == wanted:
            return scores.select(available=subset)
    raise ScoreError(f"nothing was predicted from {available}", file=path, remedy=f"found: {', '.join(scores.subsets)}")


def _write(path: Path, table: ComparisonTable) -> None:
    from modistill.evaluation.tables import comparison_csv, comparison_json, comparison_markdown
    from modistill.files import write_json, write_text

    if path.suffix == ".json":
        write_json(path, comparison_json(table))
    else:
        write_text(path, comparison_csv(table) if path.suffix == ".csv" else comparison_markdown(table))
