"""Score what `modistill predict --subsets` or `--one-missing` wrote."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from modistill.data.folder import find_cases
from modistill.errors import FileError
from modistill.evaluation.folders import Evaluation, evaluate_folders
from modistill.evaluation.scores import Scores
from modistill.evaluation.tables import modalities_of
from modistill.evaluation.uncertainty import written_scale

__all__ = ["evaluate_subsets"]


def evaluate_subsets(predictions: Path, references: Path, **how: Any) -> Evaluation:
    """Score the folders that `modistill predict --subsets` wrote, one for each subset of modalities.

    Each folder is a cohort of its own: with `uncertainty="cohort"` its maps are scaled by the bounds of its own cases. Unless
    `cases` says otherwise, patients count who have all of the sequences, as for `modistill predict`.

    Args:
        predictions: folder of folders named by what was used, like `t1+flair`.
        references: as for `evaluate_folders`.
        how: as for `evaluate_folders`.

    Returns:
        All rows in one table, told apart by `available`; small subsets first.

    Raises:
        FileError: there are no such folders, or their uncertainty was written in several ways.
    """
    folders = [path for path in Path(predictions).glob("*") if path.is_dir() and any(path.glob("*.nii*"))]
    if not folders:
        raise FileError("holds no folders of predictions", file=predictions, remedy="run `modistill predict --subsets`")
    names = modalities_of(path.name for path in folders)
    folders.sort(key=lambda path: (path.name.count("+"), [names.index(n) for n in path.name.split("+")]))
    cohort = find_cases(references).cases
    if how.get("cases") is None and any(case.images and not {*names} <= {*case.images} for case in cohort):
        how["cases"] = [case.id for case in cohort if case.labels and {*names} <= {*case.images}]
    if len({written_scale(path) for path in folders}) > 1:
        raise FileError("uncertainty was written in several ways", file=predictions, remedy="predict all subsets alike")
    found = {path.name: evaluate_folders(path, references, **how) for path in folders}
    rows = [replace(row, available=name) for name, one in found.items() for row in one.scores.rows]
    faults = tuple(fault for one in found.values() for fault in one.faults)
    unscored = tuple(sorted({case for one in found.values() for case in one.unscored}))
    return Evaluation(Scores(tuple(rows), found[folders[0].name].scores.protocol), faults, unscored)
