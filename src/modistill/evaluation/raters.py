"""Agreement of several raters, and of an algorithm with them: how far apart are contours of the same patients?

Jiang et al., CMEDL (IEEE TMI 2022, https://arxiv.org/abs/2107.07985), Table IV: five radiation oncologists and the network, in
Dice, HD95 and their coefficients of variation. With the contours c_1 ... c_R of a case, rater r scores in that case

    m_r = mean_{s != r} m(c_r, c_s),   m = Dice or HD95

and its column of the table holds mean, SD and CV = SD / mean of m_r over the cases.

Differs from the paper
    1. It does not say what a column is. Whether the algorithm is among the contours that raters are compared with is the
       other reading, so both are given: `references` "raters", or "raters and algorithm". Its own column is the same in both.
    2. The SD is that of a sample (n - 1).
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from modistill.data.naming import LabelConvention, conventions
from modistill.data.nifti import read_labels
from modistill.data.volume import Volume, require_same_grid
from modistill.errors import CaseError, LabelError, ModistillError, RecipeError
from modistill.evaluation.folders import label_maps
from modistill.evaluation.statistics import Summary
from modistill.evaluation.tables import TextTable, number
from modistill.metrics.overlap import dice
from modistill.metrics.surface import hausdorff95_mm

__all__ = ["Agreement", "RaterScore", "compare_raters", "raters_csv", "raters_json", "raters_notes", "raters_tables"]

References: TypeAlias = Literal["raters", "raters and algorithm"]

_METRICS: Mapping[str, Callable[[NDArray[np.bool_], NDArray[np.bool_], Sequence[float]], float]] = {
    "dice": lambda one, other, _: dice(one, other),
    "hausdorff95_mm": hausdorff95_mm,
}
_TITLES = {"dice": "Dice", "hausdorff95_mm": "HD95 mm"}
_CONTOUR = "contour"  # the one region where no convention is named


@dataclass(frozen=True)
class RaterScore:
    """How one rater agrees with the others in one case.

    Attributes:
        rater: name of the rater, or of the algorithm.
        references: whom it is compared with.
        region: name of the region.
        metric: "dice" or "hausdorff95_mm".
        case: id of the case.
        value: mean over the others; NaN where the region is in no pair of contours, infinite HD95 where one lacks it.
    """

    rater: str
    references: References
    region: str
    metric: str
    case: str
    value: float


@dataclass(frozen=True)
class Agreement:
    """The scores of all raters.

    Attributes:
        raters: names, the algorithm last.
        algorithm: its name, if there is one.
        scores: of every rater, region, metric, case and choice of references.
    """

    raters: tuple[str, ...]
    algorithm: str | None
    scores: tuple[RaterScore, ...]

    @property
    def cases(self) -> tuple[str, ...]:
        """Ids, sorted."""
        return tuple(sorted({score.case for score in self.scores}))

    @property
    def columns(self) -> dict[tuple[References, str, str], dict[str, Summary]]:
        """(references, region, metric) -> rater -> mean and SD over the cases."""
        values: dict[tuple[References, str, str], dict[str, list[float]]] = {}
        for one in self.scores:
            values.setdefault((one.references, one.region, one.metric), {}).setdefault(one.rater, []).append(one.value)
        return {key: {rater: Summary.of(found) for rater, found in row.items()} for key, row in values.items()}


def variation(summary: Summary) -> float | None:
    """Coefficient of variation, SD / mean; None where one is not defined, or the mean is 0.

    Example:
        >>> variation(Summary.of([1.0, 2.0, 3.0]))
        0.5
    """
    return summary.sd / summary.mean if summary.sd is not None and summary.mean else None


def compare_raters(
    raters: Sequence[Path],
    algorithm: Path | None = None,
    *,
    labels: str | None = None,
    on_case: Callable[[int, int], None] | None = None,
) -> Agreement:
    """Compare the contours of every pair, case by case.

    Args:
        raters: folders of label maps, CASE.nii.gz each, of the same cases; named by the folders.
        algorithm: folder of its label maps, which may hold more cases.
        labels: name of the label convention of all maps, whose regions are compared; None for one region, all but 0.
        on_case: called with (cases done, cases in all).

    Raises:
        RecipeError: fewer than two raters, or two of one name.
        CaseError: a folder lacks a case, or there is none.
        FileError, GeometryError: a map cannot be read, or lies on another grid.
        LabelError: no such convention, or values outside it.
    """
    folders = [*raters, *([] if algorithm is None else [algorithm])]
    names = [folder.resolve().name for folder in folders]
    if len(raters) < 2 or len(set(names)) < len(names):
        raise RecipeError(f"raters are {', '.join(names) or 'none'}", remedy="give two folders or more, of different names")
    if labels is not None and labels not in conventions:
        raise LabelError(f"unknown label convention {labels}", remedy=f"known: {', '.join(conventions)}")
    convention = None if labels is None else conventions[labels]
    maps = {name: label_maps(folder) for name, folder in zip(names, folders, strict=True)}
    cases = sorted(set().union(*(maps[name] for name in names[: len(raters)])))
    if not cases:
        raise CaseError("holds no label map", file=raters[0], remedy="label maps are named CASE.nii.gz")
    for name, folder in zip(names, folders, strict=True):
        if lacking := [case for case in cases if case not in maps[name]]:
            raise CaseError("has no label map here", case=lacking[0], file=folder, remedy="every rater needs the same cases")
    scores: list[RaterScore] = []
    for done, case in enumerate(cases, start=1):
        scores += _scores(case, {name: maps[name][case] for name in names}, algorithm is not None, convention)
        if on_case:
            on_case(done, len(cases))
    return Agreement(tuple(names), None if algorithm is None else names[-1], tuple(scores))


def raters_tables(found: Agreement) -> list[TextTable]:
    """As Table IV: a column a rater; mean, SD and CV over the cases. A table for each choice of references."""
    columns, tables = found.columns, []
    for references in dict.fromkeys(key[0] for key in columns):
        rows, sections = [], []
        for (_, region, metric), summaries in ((key, row) for key, row in columns.items() if key[0] == references):
            title, shown = _TITLES[metric], [summaries[rater] for rater in found.raters]
            rows += [
                (region, title, *(number(one.mean, metric) for one in shown)),
                (region, f"{title}, SD", *(number(one.sd, metric) for one in shown)),
                (region, f"{title}, CV", *(number(variation(one), "dice") for one in shown)),
            ]
            sections.append(len(rows) - 1)
        title = f"Agreement with the other {references}, {len(found.cases)} cases"
        tables.append(TextTable(title, ("region", "metric", *found.raters), tuple(rows), tuple(sections)))
    return tables


def raters_notes(found: Agreement) -> list[str]:
    """The rules, a line each."""
    undefined = sum(math.isnan(score.value) for score in found.scores)
    infinite = sum(math.isinf(score.value) for score in found.scores)
    return [
        "each case: mean over the others' contours; columns: mean, sample SD and CV = SD / mean over the cases",
        "HD95: larger of the two directed 95th percentiles, boundary voxels; infinite where one of two contours is empty",
        *([f"{undefined} values are undefined, as both contours are empty, and left out"] if undefined else []),
        *([f"{infinite} values are infinite: their columns have no SD and no CV"] if infinite else []),
    ]


def raters_csv(found: Agreement) -> str:
    """A row for every score."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(("rater", "references", "region", "metric", "case", "value"))
    for one in found.scores:
        value = "" if math.isnan(one.value) else repr(one.value)
        writer.writerow((one.rater, one.references, one.region, one.metric, one.case, value))
    return stream.getvalue()


def raters_json(found: Agreement) -> dict[str, Any]:
    """The tables and their rules as plain values; an infinite mean becomes the text "inf", as JSON has none."""
    return {
        "rules": raters_notes(found),
        "raters": found.raters,
        "algorithm": found.algorithm,
        "cases": found.cases,
        "columns": [
            {
                "references": references,
                "region": region,
                "metric": metric,
                "rater": rater,
                "n": one.n,
                "mean": "inf" if one.mean == math.inf else one.mean,
                "sd": one.sd,
                "cv": variation(one),
            }
            for (references, region, metric), row in found.columns.items()
            for rater, one in row.items()
        ],
    }


def _scores(
    case: str, files: Mapping[str, Path], with_algorithm: bool, convention: LabelConvention | None
) -> Iterator[RaterScore]:
    """The scores of one case: every pair is compared once, as both metrics are symmetric."""
    volumes = _read(case, files)
    regions = {name: _regions(case, files[name], volume, convention) for name, volume in volumes.items()}
    names, spacing_mm = list(files), next(iter(volumes.values())).spacing_mm
    choices: dict[References, list[str]] = {"raters": names[:-1] if with_algorithm else names}
    if with_algorithm:
        choices["raters and algorithm"] = names
    for region in regions[names[0]]:
        for metric, measure in _METRICS.items():
            pairs = {
                frozenset((one, other)): measure(regions[one][region], regions[other][region], spacing_mm)
                for one, other in combinations(names, 2)
            }
            for references, others in choices.items():
                for name in names:
                    mean = Summary.of([pairs[frozenset((name, other))] for other in others if other != name]).mean
                    yield RaterScore(name, references, region, metric, case, math.nan if mean is None else mean)


def _read(case: str, files: Mapping[str, Path]) -> dict[str, Volume]:
    """Rater -> label map, all on one grid."""
    volumes: dict[str, Volume] = {}
    for name, path in files.items():
        try:
            volumes[name] = read_labels(path)
            first = next(iter(volumes))
            require_same_grid(volumes[first], volumes[name], reference_name=first, other_name=name)
        except ModistillError as error:
            error.file = error.file or str(path)
            raise error.at(case) from None
    return volumes


def _regions(case: str, path: Path, volume: Volume, convention: LabelConvention | None) -> dict[str, NDArray[np.bool_]]:
    """Region -> binary map (D, H, W)."""
    if convention is None:
        return {_CONTOUR: volume.voxels != 0}
    try:
        convention.check(volume.voxels)
    except LabelError as error:
        error.file = str(path)
        raise error.at(case) from None
    return dict(zip(convention.regions, convention.regions.encode(volume.voxels), strict=True))
