"""Score a folder of predicted label maps against reference labels, case by case.

A prediction is `<case>.nii.gz`, with or without a `<case>.json` beside it that names the run, the available modalities and the
label convention. Prediction and reference may number their labels differently: regions are compared, by name.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from modistill.data.cohort import Fault
from modistill.data.folder import find_cases
from modistill.data.naming import LabelConvention, conventions, guess_convention
from modistill.data.nifti import read_labels
from modistill.data.volume import Volume, require_same_grid
from modistill.errors import CaseError, FileError, LabelError, ModistillError
from modistill.evaluation.protocol import Protocol
from modistill.evaluation.scores import Score, Scores
from modistill.evaluation.uncertainty import (
    WORST,
    Bounds,
    cohort_bounds,
    ranges_in_brain,
    scale_to_score,
    score_uncertainty,
)
from modistill.files import read_json
from modistill.metrics.surface import bounding_box

__all__ = ["Evaluation", "evaluate_folders", "find_labels", "ids_that_count", "label_maps", "score_labels"]

_T = TypeVar("_T")
_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class Evaluation:
    """What came of comparing two folders.

    Attributes:
        scores: the rows; a case without a usable prediction is in them, as failed.
        faults: what was wrong, by case and file.
        unscored: ids of predictions that have no reference.
    """

    scores: Scores
    faults: tuple[Fault, ...]
    unscored: tuple[str, ...]


def score_labels(
    case: str,
    prediction: Volume,
    reference: Volume,
    *,
    prediction_convention: LabelConvention,
    reference_convention: LabelConvention,
    protocol: Protocol,
    run: str,
    available: str = "",
) -> list[Score]:
    """Score one predicted label map.

    Args:
        case: id of the case.
        prediction: integer label map.
        reference: integer label map on the same grid.
        prediction_convention: what the numbers of the prediction mean.
        reference_convention: what the numbers of the reference mean; its regions are scored.
        protocol: the rules.
        run: name of the run.
        available: modalities the model was given, joined by "+".

    Returns:
        One row for each region and metric.

    Raises:
        GeometryError: the two do not lie on one grid; nothing is resampled.
        LabelError: fractions (probabilities?), values outside the convention, or a region the other convention lacks.
    """
    require_same_grid(reference, prediction, reference_name="reference", other_name="prediction")
    reference_convention.check(reference.voxels)
    prediction_convention.check(prediction.voxels)
    lacking = [name for name in reference_convention.unions if name not in prediction_convention.unions]
    if lacking:
        raise LabelError(f"convention {prediction_convention.name} has no region {', '.join(lacking)}", case=case)
    box = bounding_box((prediction.voxels != 0) | (reference.voxels != 0))
    true, own = reference_convention.regions, prediction_convention.regions
    predicted = dict(zip(own, own.encode(prediction.voxels[box]), strict=True))
    rows = []
    for region, mask in zip(true, true.encode(reference.voxels[box]), strict=True):
        status, values = protocol.score(region, predicted[region], mask, reference.spacing_mm)
        rows += [Score(run, case, available, region, metric, value, status) for metric, value in values.items()]
    return rows


def ids_that_count(path: Path) -> tuple[str, ...]:
    """Case ids from a file: one a line, a JSON list, or the test part of a `split.json`.

    Raises:
        FileError: the file cannot be read.
        CaseError: it names no case.
    """
    if path.suffix == ".json":
        content = read_json(path)
        parts = content.get("parts", content) if isinstance(content, dict) else {"test": content}
        ids = parts.get("test") if isinstance(parts, dict) else None
        found = [str(case) for case in ids] if isinstance(ids, list) else []
    else:
        try:
            found = path.read_text().split()
        except (OSError, UnicodeDecodeError) as error:
            raise FileError(f"cannot be read: {error}", file=path, remedy="give a text file, one id a line") from error
    if not found:
        raise CaseError("names no case", file=path, remedy='one id a line, or JSON with "test": [...]')
    return tuple(found)


def evaluate_folders(
    predictions: Path,
    references: Path,
    *,
    protocol: Protocol | None = None,
    run_name: str | None = None,
    labels: str | None = None,
    cases: Collection[str] | None = None,
    workers: int = 1,
    on_case: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Score every case of `references` with the prediction of that name.

    Args:
        predictions: folder of `<case>.nii.gz` (or .nii), each with an optional `<case>.json`.
        references: a cohort in any layout with reference labels, or a folder of label maps named as the predictions.
        protocol: the rules; the default ones if None. Where it names no scale, uncertainty maps are scored as written. The
            scale of the "cohort" rests on the maps of all cases that count, as far as they can be read.
        run_name: `arm` or `arm/seed`; else the one run that the `<case>.json` files name, else the folder's name.
        labels: name of the references' label convention; else as the cohort says, or guessed from all its values.
        cases: the ids that count; else every case that has reference labels. A case without a prediction has failed.
        workers: processes.
        on_case: called with (cases done, cases in all).

    Raises:
        CaseError: nothing to score: no reference, or no usable prediction at all.
        FileError: uncertainty was written for some cases only, or not at all though the protocol names its scale.
        LabelError: the label convention is unknown or ambiguous.
    """
    predictions, references = Path(predictions), Path(references)
    files = label_maps(predictions)
    known, faults = find_labels(references, files, labels)
    if cases is not None:
        absent = (CaseError("has no reference labels", case=case, file=references) for case in sorted(set(cases) - set(known)))
        faults += map(Fault.of, absent)
        known = {case: reference for case, reference in known.items() if case in cases}
    if not known:
        raise CaseError("no reference labels found", file=references, remedy="give cases with reference labels")
    run = run_name or _run_named_by(files.values()) or predictions.resolve().name
    rules = protocol or Protocol()
    rules = replace(rules, uncertainty=scale_to_score(predictions, rules.uncertainty))
    calibrated = any((predictions / "probabilities").glob("*/*.nii.gz"))
    jobs = [_Job(case, run, files.get(case), reference, rules, calibrated) for case, reference in sorted(known.items())]
    if rules.uncertainty == "cohort":
        bounds = cohort_bounds(_each(_ranges_in_brain, jobs, workers))
        jobs = [replace(job, bounds=bounds) for job in jobs]
    rows: list[Score] = []
    for done, (scored, problems) in enumerate(_each(_score_case, jobs, workers), start=1):
        rows += scored
        faults += problems
        if on_case:
            on_case(done, len(jobs))
    if all(row.status == "failed" for row in rows):
        reason = f"no usable prediction for any of {len(jobs)} cases" + (f"; the first: {faults[0]}" if faults else "")
        raise CaseError(reason, file=predictions, remedy="predictions are named <case>.nii.gz")
    return Evaluation(Scores(tuple(rows), rules), tuple(faults), tuple(sorted(set(files) - set(known))))


@dataclass(frozen=True)
class _Reference:
    labels: Path
    convention: str


@dataclass(frozen=True)
class _Job:
    """One case to score: everything a worker process needs."""

    case: str
    run: str
    prediction: Path | None
    reference: _Reference
    protocol: Protocol
    calibrated: bool  # the run wrote probabilities
    bounds: Bounds = field(default_factory=dict)  # of uncertainty, on the scale of the cohort

    @property
    def uncertainty(self) -> Path | None:
        """Where the maps of this case belong, if the run wrote uncertainty."""
        if not self.protocol.uncertainty or self.prediction is None:
            return None
        return self.prediction.parent / "uncertainty" / self.case


def _ranges_in_brain(job: _Job) -> Bounds:
    """Smallest and largest uncertainty of each region of one case."""
    regions = conventions[job.reference.convention].regions
    return {} if job.uncertainty is None else ranges_in_brain(job.uncertainty, regions)


def _score_case(job: _Job) -> tuple[list[Score], list[Fault]]:
    """Score one case. A fault of the prediction is a failed case; a case whose reference is at fault has no rows."""
    convention = conventions[job.reference.convention]
    try:
        reference = read_labels(job.reference.labels)
        convention.check(reference.voxels)
    except ModistillError as error:
        return [], [_fault(error, job.case, job.reference.labels)]
    available = ""
    try:
        if job.prediction is None:
            raise CaseError("no prediction: counted as failed", remedy="predict it, or name the cases that count (--cases)")
        available, own = _sidecar(job.prediction)
        prediction = read_labels(job.prediction)
        rows = score_labels(
            job.case,
            prediction,
            reference,
            prediction_convention=own or convention,
            reference_convention=convention,
            protocol=job.protocol,
            run=job.run,
            available=available,
        )
        if job.uncertainty is not None:
            masks = _masks(own or convention, prediction), _masks(convention, reference)
            pairs = {region: (masks[0][region], true) for region, true in masks[1].items()}
            status = {row.region: row.status for row in rows}
            scored = score_uncertainty(job.uncertainty, prediction, reference, pairs, job.protocol.uncertainty, job.bounds)
            rows += [
                Score(job.run, job.case, available, region, metric, value, status[region])
                for region, values in scored.items()
                for metric, value in values.items()
            ]
        return rows, []
    except ModistillError as error:
        regions = convention.regions
        worst = dict(WORST) if job.protocol.uncertainty else {}
        if not job.calibrated:
            worst.pop("ece", None)
        values = {
            region: job.protocol.score_failed(mask, reference.spacing_mm) | worst
            for region, mask in zip(regions, regions.encode(reference.voxels), strict=True)
        }
        rows = [
            Score(job.run, job.case, available, region, metric, value, "failed")
            for region, metrics in values.items()
            for metric, value in metrics.items()
        ]
        return rows, [_fault(error, job.case, job.prediction)]


def _masks(convention: LabelConvention, labels: Volume) -> dict[str, NDArray[np.bool_]]:
    """Region -> binary map (D, H, W)."""
    return dict(zip(convention.regions, convention.regions.encode(labels.voxels), strict=True))


def _fault(error: ModistillError, case: str, file: Path | None) -> Fault:
    error.file = error.file or (None if file is None else str(file))
    return Fault.of(error.at(case))


def _sidecar(prediction: Path) -> tuple[str, LabelConvention | None]:
    """Available modalities and label convention, as the JSON file beside a prediction names them."""
    path = prediction.with_name(f"{_stem(prediction)}.json")
    if not path.exists():
        return "", None
    content = read_json(path)
    if not isinstance(content, dict):
        raise FileError("is not a JSON object", file=path, remedy="predict again")
    name = content.get("convention")
    return "+".join(map(str, content.get("available") or ())), None if name is None else _named(str(name))


def _run_named_by(files: Iterable[Path]) -> str | None:
    """The run that all JSON files beside the predictions name; None where they name none, or several."""
    runs = set()
    for file in files:
        path = file.with_name(f"{_stem(file)}.json")
        try:
            content = read_json(path) if path.exists() else {}
        except FileError:  # named as a fault of its case when that is scored
            continue
        runs.add(content.get("run") if isinstance(content, dict) else None)
    return str(runs.pop()) if len(runs) == 1 and None not in runs else None


def label_maps(folder: Path) -> dict[str, Path]:
    """Case id -> file of the .nii and .nii.gz files that lie directly in a folder."""
    if not folder.is_dir():
        raise FileError("is not a folder", file=folder, remedy="give the folder that `modistill predict` wrote")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if not path.name.startswith(".") and path.name.endswith((".nii", ".nii.gz")):
            if _stem(path) in found:
                raise CaseError("stands there twice", case=_stem(path), file=path, remedy="keep .nii or .nii.gz, not both")
            found[_stem(path)] = path
    return found


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".nii")


def find_labels(folder: Path, predictions: Collection[str], labels: str | None) -> tuple[dict[str, _Reference], list[Fault]]:
    """Case id -> reference labels and their convention, and what was wrong with the cohort."""
    flat = label_maps(folder) if folder.is_dir() else {}
    if set(flat) & set(predictions):
        files: dict[str, tuple[Path, str | None]] = {case: (path, None) for case, path in flat.items()}
        faults: list[Fault] = []
    else:
        cohort = find_cases(folder)
        files = {case.id: (case.labels, case.convention) for case in cohort.cases if case.labels}
        # What is wrong with images does not matter here: only labels are read.
        faults = [fault for fault in cohort.faults if fault.severity == "error" and fault.case not in files]
    if labels:
        return {case: _Reference(path, _named(labels).name) for case, (path, _) in files.items()}, faults
    unnamed = [path for path, convention in files.values() if convention is None]
    guess = _guess(unnamed).name if unnamed else ""
    return {case: _Reference(path, convention or guess) for case, (path, convention) in files.items()}, faults


def _named(name: str) -> LabelConvention:
    if name not in conventions:
        raise LabelError(f"unknown label convention {name}", remedy=f"known: {', '.join(conventions)}")
    return conventions[name]


def _guess(files: Iterable[Path]) -> LabelConvention:
    """The convention of label maps, read one after the other until only one fits."""
    values: set[float] = set()
    for file in files:
        try:
            values.update(float(value) for value in np.unique(read_labels(file).voxels))
            return guess_convention(values)
        except ModistillError:  # damaged files are named when their case is scored
            continue
    return guess_convention(values)


def _each(function: Callable[[_T], _Answer], jobs: Sequence[_T], workers: int) -> Iterator[_Answer]:
    """Answers in the order of the jobs, from several processes where asked for."""
    if workers <= 1 or len(jobs) <= 1:
        yield from map(function, jobs)
        return
    # Spawned, not forked: a fork would copy locks that progress bars and thread pools of this process hold.
    with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=get_context("spawn")) as pool:
        try:
            yield from pool.map(function, jobs)
        except BrokenProcessPool as error:
            raise ModistillError("a worker process died", remedy="out of memory? try --workers 1") from error
