"""`modistill check-leak`: that a model cannot see what a patient does not have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    run: Annotated[Path, typer.Argument(help="Run folder of a trained model.")],
    case: Annotated[Path, typer.Argument(help="A case with every sequence, or a folder of cases (one that is complete).")],
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
) -> None:
    """Put noise, huge values and NaN in place of missing sequences; not one bit of the answer may change.

    A model of any subset is asked for every subset it serves. Exit code 0 if nothing leaks, 2 if something does.
    """
    from modistill.cli.tables import print_notes, print_table
    from modistill.data.folder import find_cases
    from modistill.errors import CaseError
    from modistill.evaluation.tables import TextTable
    from modistill.inference.leak import check_leak
    from modistill.runs import load_model

    model = load_model(run)
    cases = find_cases(case).cases
    chosen = next((one for one in cases if set(model.reads) < set(one.modalities)), None) or next(
        (one for one in cases if set(model.reads) <= set(one.modalities)), None
    )
    if chosen is None:
        raise CaseError(f"no case has {', '.join(model.reads)}", file=case, remedy="give one that has all the model reads")
    found = list(check_leak(model, chosen.read(chosen.modalities, with_labels=False), device=device))
    rows: dict[tuple[str, ...], dict[str, float]] = {}
    for leak in found:
        rows.setdefault(leak.subset, {})[leak.garbage] = leak.largest
    columns = list(dict.fromkeys(leak.garbage for leak in found))
    cells = [
        ("+".join(subset), *("same" if row.get(c) == 0 else "-" if c not in row else f"{row[c]:.3g}" for c in columns))
        for subset, row in rows.items()
    ]
    print_table(TextTable(f"{model.name}, case {chosen.id}: largest change of a probability", ("read", *columns), tuple(cells)))
    leaking = ["+".join(subset) for subset, row in rows.items() if any(row.values())]
    print_notes([f"leaks with {', '.join(leaking)}" if leaking else "nothing leaks: every bit is the same"])
    raise typer.Exit(2 if leaking else 0)
