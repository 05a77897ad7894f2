"""ROC curves of folders of predictions: of the probabilities that `modistill predict --save-probabilities` wrote.

Jiang et al., CMEDL (IEEE TMI 2022, https://arxiv.org/abs/2107.07985), show ROC curves of segmentations and name neither the
unit of analysis nor an area. Here the unit is the voxel, every one of the image, pooled over the patients; the interval rests
on patients, and beside it stands the detection of whole tumours, the components of the reference (`modistill.metrics.roc`).
All examinations of a patient count together (`modistill.data.splits.patient_of`).
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from operator import add
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from modistill.data.cohort import Fault
from modistill.data.naming import conventions
from modistill.data.nifti import read_labels, read_volume
from modistill.data.splits import patient_of
from modistill.data.volume import Volume, require_same_grid
from modistill.errors import CaseError, ModistillError, RecipeError
from modistill.evaluation.folders import find_labels
from modistill.evaluation.tables import TextTable
from modistill.metrics.roc import (
    DETECTION_THRESHOLDS,
    Detections,
    VoxelCounts,
    bootstrap_area,
    count_voxels,
    detection_curve,
    find_components,
)

__all__ = ["RegionROC", "RunROCs", "roc_csv", "roc_json", "roc_notes", "roc_of_folders", "roc_table"]

_Counted: TypeAlias = tuple[VoxelCounts, Detections]
_SHOWN = DETECTION_THRESHOLDS.index(0.5)  # of the table


@dataclass(frozen=True)
class RegionROC:
    """How well one run tells one region from the rest.

    Attributes:
        run: its name.
        region: name of the region.
        voxels: patient -> the voxels of all examinations by probability.
        detections: patient -> components found, and false ones.
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """

    run: str
    region: str
    voxels: Mapping[str, VoxelCounts]
    detections: Mapping[str, Detections]
    resamples: int
    seed: int

    @cached_property
    def pooled(self) -> VoxelCounts:
        """The voxels of all patients."""
        return reduce(add, self.voxels.values())

    @cached_property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of the pooled area over patients; None where fewer than two have the region."""
        return bootstrap_area(list(self.voxels.values()), resamples=self.resamples, seed=self.seed)

    @property
    def areas(self) -> dict[str, float]:
        """Patient -> the area of this one alone, of the patients that have the region."""
        found = {patient: counts.area for patient, counts in self.voxels.items()}
        return {patient: area for patient, area in found.items() if not math.isnan(area)}


@dataclass(frozen=True)
class RunROCs:
    """ROC curves of several runs over the same cases.

    Attributes:
        curves: of each region, one a run.
        cases: ids of all cases that count.
        absent: regions that no case has; they have no curve.
        faults: cases whose reference cannot be used; they do not count.
    """

    curves: tuple[RegionROC, ...]
    cases: tuple[str, ...]
    absent: tuple[str, ...]
    faults: tuple[Fault, ...]

    @property
    def patients(self) -> tuple[str, ...]:
        """Whose examinations the cases are."""
        return tuple(dict.fromkeys(map(patient_of, self.cases)))


def roc_of_folders(
    predictions: Sequence[Path],
    references: Path,
    *,
    names: Sequence[str] | None = None,
    labels: str | None = None,
    cases: Collection[str] | None = None,
    resamples: int = 9999,
    seed: int = 0,
    on_case: Callable[[int, int], None] | None = None,
) -> RunROCs:
    """Count the voxels of every run, case after case; nothing else of a case is kept.

    Args:
        predictions: folders with `probabilities/CASE/REGION.nii.gz`, one a run.
        references: a cohort in any layout with reference labels, or a folder of label maps.
        names: of the runs; None for those of the folders.
        labels: name of the references' label convention; else as the cohort says, or guessed from all its values.
        cases: the ids that count; else every case that has reference labels.
        resamples: of the bootstrap.
        seed: of the bootstrap.
        on_case: called with (cases done, cases in all).

    Raises:
        RecipeError: not one name a run, or one name twice.
        CaseError: no reference, a case that some run lacks, or no case that has any region.
        FileError, GeometryError, LabelError: a file cannot be used.
    """
    runs = list(names or (folder.resolve().name for folder in predictions))
    if len(runs) != len(predictions) or len(set(runs)) < len(runs):
        told = f"{len(predictions)} folders are named {', '.join(runs)}"
        raise RecipeError(told, remedy="give every folder a name of its own, --run NAME for each")
    predicted = {path.name for folder in predictions for path in (folder / "probabilities").glob("*")}
    known, faults = find_labels(references, predicted, labels)
    if cases is not None:
        known = {case: reference for case, reference in known.items() if case in cases}
        faults = [fault for fault in faults if fault.case in cases]
    if lacking := sorted(set(cases or ()) - set(known)):
        raise CaseError("has no reference labels", case=lacking[0], file=references, remedy="see --cases")
    if not known:
        raise CaseError("no reference labels found", file=references, remedy="give cases with reference labels")
    regions = dict.fromkeys(name for reference in known.values() for name in conventions[reference.convention].regions)
    places = {run: folder / "probabilities" for run, folder in zip(runs, predictions, strict=True)}
    for case, reference in known.items():  # before anything is counted
        for place in places.values():
            _require(place / case, case, conventions[reference.convention].regions)
    counted: dict[tuple[str, str], dict[str, list[_Counted]]] = {(run, region): {} for region in regions for run in runs}
    for done, (case, reference) in enumerate(sorted(known.items()), start=1):
        truth, convention = read_labels(reference.labels), conventions[reference.convention]
        try:
            convention.check(truth.voxels)
        except ModistillError as error:
            error.file = str(reference.labels)
            raise error.at(case) from None
        for region, mask in zip(convention.regions, convention.regions.encode(truth.voxels), strict=True):
            for run, place in places.items():
                found = _count(place / case / f"{region}.nii.gz", case, truth, mask)
                counted[run, region].setdefault(patient_of(case), []).append(found)
        if on_case:
            on_case(done, len(known))
    curves = [_curve(*key, examinations, resamples, seed) for key, examinations in counted.items()]
    there = {one.region for one in curves if one.pooled.positives.any()}
    if not there:
        raise CaseError(f"no case has any {' or '.join(regions)}: there is no curve", file=references, remedy="see --cases")
    absent = tuple(region for region in regions if region not in there)
    return RunROCs(tuple(one for one in curves if one.region in there), tuple(sorted(known)), absent, tuple(faults))


def roc_table(found: RunROCs) -> TextTable:
    """Areas, and what is detected at probability 0.5."""
    rows, sections = [], []
    for number, one in enumerate(found.curves):
        areas, patients = one.areas.values(), list(one.detections.values())
        low, high = (f"{end:.3f}" for end in one.interval) if one.interval else ("-", "-")
        hit, there = sum(patient.found[_SHOWN] for patient in patients), sum(patient.tumours for patient in patients)
        shown = f"{hit} of {there}", f"{detection_curve(patients)[0][_SHOWN]:.2f}"
        mean = sum(areas) / len(areas)
        rows.append((one.region, one.run, f"{one.pooled.area:.3f}", f"{low}, {high}", f"{mean:.3f}", f"{len(areas)}", *shown))
        if number + 1 == len(found.curves) or found.curves[number + 1].region != one.region:
            sections.append(number)
    header = (
        "region",
        "run",
        "AUC",
        "95 % interval",
        "mean AUC (a patient)",
        "patients",
        "components found",
        "false (a patient)",
    )
    whose = f" of {len(found.patients)} patients" if len(found.patients) < len(found.cases) else ""
    return TextTable(f"ROC, {len(found.cases)} cases{whose}", header, tuple(rows), tuple(sections))


def roc_notes(found: RunROCs) -> list[str]:
    """The rules, a line each."""
    first = found.curves[0]
    return [
        f"AUC: of voxels, all of the image, {len(found.patients)} patients pooled; the more easy background, the higher it is",
        f"interval: percentile bootstrap over whole patients, {first.resamples} resamples, seed {first.seed}",
        "mean AUC: of the patients that have the region, each by itself",
        "components: of voxels with probability 0.5 or more find those of the reference with which their IoU is 0.1 or more",
        "false: components that find none",
        *(f"{region}: no case has any, there is no curve" for region in found.absent),
    ]


def roc_csv(found: RunROCs) -> str:
    """The points of all curves: a rate of false positive voxels, or a number of false components a patient."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(("run", "region", "unit", "threshold", "false_positives", "sensitivity"))
    for one in found.curves:
        false, sensitivity, thresholds = one.pooled.curve
        points = [("voxel", *point) for point in zip(thresholds, false, sensitivity, strict=True)]
        detected = detection_curve(list(one.detections.values()))
        points += [("component", *point) for point in zip(DETECTION_THRESHOLDS, *detected, strict=True)]
        writer.writerows((one.run, one.region, unit, *(f"{value:.7g}" for value in values)) for unit, *values in points)
    return stream.getvalue()


def roc_json(found: RunROCs) -> dict[str, Any]:
    """Areas, intervals and rules as plain values."""
    return {
        "rules": roc_notes(found),
        "cases": found.cases,
        "areas": [
            {
                "run": one.run,
                "region": one.region,
                "auc": one.pooled.area,
                "interval": one.interval,
                "auc_of_patients": one.areas,
                "positives": int(one.pooled.positives.sum()),
                "negatives": int(one.pooled.negatives.sum()),
            }
            for one in found.curves
        ],
        "faults": [str(fault) for fault in found.faults],
    }


def _require(folder: Path, case: str, regions: Collection[str]) -> None:
    """Refuse a case that a run has not written probabilities of."""
    for region in regions:
        if not (folder / f"{region}.nii.gz").is_file():
            raise CaseError(
                f"no probabilities of {region}",
                case=case,
                file=folder.parent,
                remedy="predict --save-probabilities, or name the cases that count (--cases)",
            )


def _curve(run: str, region: str, counted: Mapping[str, Sequence[_Counted]], resamples: int, seed: int) -> RegionROC:
    """One run and region, the examinations of each patient together."""
    voxels = {patient: reduce(add, (counts for counts, _ in visits)) for patient, visits in counted.items()}
    detections = {}
    for patient, visits in counted.items():
        found = [one for _, one in visits]
        totals = (sum(one.found for one in found), sum(one.false for one in found))
        detections[patient] = Detections(sum(one.tumours for one in found), *map(np.asarray, totals))
    return RegionROC(run, region, voxels, detections, resamples, seed)


def _count(path: Path, case: str, truth: Volume, mask: Any) -> _Counted:
    """The voxels of one region of one case, and its tumours."""
    try:
        p = read_volume(path)
        require_same_grid(truth, p, reference_name="reference", other_name=path.name)
        return count_voxels(p.voxels, mask), find_components(p.voxels, mask)
    except ModistillError as error:
        error.file = error.file or str(path)
        raise error.at(case) from None
