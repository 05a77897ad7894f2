"""From a cohort of files to a prepared cohort: each case once, in several processes, as often interrupted as it may be.

A case is complete in its folder or not there. When the command is run again, a case is kept if its sources, the preprocessing
and the digests of its files are the same, and made anew otherwise. One bad case costs only itself. When all cases are through,
the split is made and the plan written, with class weights counted over the training cases alone.

Histogram landmarks rest on the training cases too, so with them the split is made first, from a reading of its own.
"""

from __future__ import annotations

import glob
import os
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from modistill.data.case import Case
from modistill.data.cohort import CaseFiles, Cohort, Fault
from modistill.data.naming import LabelConvention, conventions, guess_convention
from modistill.data.nifti import read_labels
from modistill.data.normalisation import Landmarks, standard_landmarks
from modistill.data.preprocessing import Preprocessing
from modistill.data.processes import run_each
from modistill.data.splits import Share, Split, make_split, require_known, tumour_strata
from modistill.data.store import FORMAT, PLAN, SPLIT, CaseEntry, Plan, PreparedCohort, Source, case_folder, store_case, versions
from modistill.errors import CaseError, FileError, LabelError, ModistillError, RecipeError
from modistill.files import atomic_folder, read_json, run_lock, write_json

__all__ = ["DEFAULT_SHARES", "Preparation", "infer_convention", "prepare"]

DEFAULT_SHARES: Mapping[str, Share] = {"train": 0.7, "validation": 0.1, "test": 0.2}

_ENOUGH = 25  # label maps that decide about the convention, or nothing does


@dataclass(frozen=True)
class Preparation:
    """What `prepare` did.

    Attributes:
        cohort: ready to be read.
        faults: of cases that are not in it.
        notices: what a user should know, one line each.
        kept: number of cases that were there already, complete and up to date.
    """

    cohort: PreparedCohort
    faults: tuple[Fault, ...]
    notices: tuple[str, ...]
    kept: int


def prepare(
    cohort: Cohort,
    folder: Path,
    preprocessing: Preprocessing,
    split: Mapping[str, Share] = DEFAULT_SHARES,
    *,
    seed: int = 0,
    workers: int = 0,
    slices: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Preparation:
    """Prepare every case of a cohort.

    Args:
        cohort: from `find_cases`.
        folder: where the prepared cohort goes; new, empty, or an earlier attempt.
        preprocessing: with `convention` None, it is inferred from the label maps.
        split: part -> ids, count or fraction (`make_split`).
        seed: of the split.
        workers: processes; 0 for one a core (at most 8), 1 for none beside this one.
        slices: store cases so that axial slices are read fast, instead of patches; cases that are kept stay as they are.
        progress: called with a case id when that case is done.

    Raises:
        FileError: the folder holds something else, or was prepared differently.
        CaseError: not a single case could be prepared, or a training case is larger than `size`.
        LabelError: the convention cannot be inferred, or no training case has one of its classes.
        RecipeError: the split makes no sense.
    """
    known = {case.id for case in cohort.cases} | {fault.case for fault in cohort.faults if fault.case}
    require_known(split, known)
    faults = [fault for fault in cohort.faults if fault.severity == "error"]
    with run_lock(folder):
        convention = conventions[preprocessing.convention] if preprocessing.convention else infer_convention(cohort.cases)
        preprocessing = replace(preprocessing, convention=convention.name)
        _require_ours(folder, preprocessing)
        processes = workers or min(os.cpu_count() or 1, 8)
        first = None
        if preprocessing.by_landmarks:
            first, preprocessing = _fitted(cohort, preprocessing, split, seed, processes)
        work = partial(_prepare_case, folder=folder, preprocessing=preprocessing, slices=slices)
        kept: dict[str, bool] = {}
        for case, result in run_each(work, cohort.cases, processes):
            if isinstance(result, Fault):
                faults.append(replace(result, case=result.case or case.id))
            else:
                kept[case.id] = result
            if progress is not None:
                progress(case.id)
        if not kept:
            reason = f": {faults[0]}" if faults else ""
            raise CaseError(f"none of {len(known)} cases could be prepared{reason}", file=cohort.root)
        entries = {case: CaseEntry.load(case_folder(folder, case)) for case in sorted(kept)}
        volumes = {case: _volumes(entry.class_voxels, entry.voxel_volume_ml, convention) for case, entry in entries.items()}
        chosen = _split(volumes, cohort, split, seed) if first is None else _without_others(first, entries)
        plan = _plan([entries[case] for case in chosen["train"]], cohort, preprocessing, convention, chosen)
        notices = _notices(entries, chosen, convention, folder)
        write_json(folder / SPLIT, chosen.to_json())
        write_json(folder / PLAN, plan.to_json())
    return Preparation(PreparedCohort(folder), tuple(faults), tuple(notices), sum(kept.values()))


def infer_convention(cases: Iterable[CaseFiles]) -> LabelConvention:
    """The label convention of a cohort, from what its layout says and from label maps, read until they are unambiguous.

    Raises:
        LabelError: nothing decides.
    """
    labelled = [(case.convention, case.labels) for case in cases if case.labels is not None]
    hints = Counter(hint for hint, _ in labelled if hint in conventions)
    hint = hints.most_common(1)[0][0] if hints else None
    values: set[float] = set()
    doubt = LabelError("no case has reference labels", remedy="add them, or say which convention they follow with --labels")
    for _, path in labelled[:_ENOUGH]:
        try:
            values.update(float(value) for value in np.unique(read_labels(path).voxels))
        except ModistillError:
            continue  # a damaged file is reported when its case is prepared
        try:
            if values - {0.0}:
                return guess_convention(values, hint)
        except LabelError as error:
            doubt = error
    raise doubt


def _prepare_case(case: CaseFiles, folder: Path, preprocessing: Preprocessing, slices: bool) -> bool:
    """Make one case, unless it is there, complete and up to date; whether it was."""
    place = case_folder(folder, case.id)
    sources = _sources(case, preprocessing)
    if _up_to_date(place, sources, preprocessing):
        return True
    read = _read(case, preprocessing)
    prepared = preprocessing.for_subset(read.images).apply(read)
    classes = len(conventions[preprocessing.convention or ""].values) + 1
    _discard(place)
    with atomic_folder(place) as new:
        store_case(new, case.id, prepared, preprocessing, sources, classes, slices=slices)
    return False


def _read(case: CaseFiles, preprocessing: Preprocessing, *, with_labels: bool = True) -> Case:
    """What is prepared of a case, all of it real: a network that learns from translations learns what these invent."""
    read = case.read([name for name in preprocessing.modalities if name in case.images], with_labels)
    read.require_real("nothing to learn from")
    return read


def _labels_of(case: CaseFiles) -> Path:
    if case.labels is None:
        raise CaseError("no reference labels", case=case.id, remedy="add them; predict takes cases as they are")
    return case.labels


def _sources(case: CaseFiles, preprocessing: Preprocessing) -> tuple[Source, ...]:
    paths = {source.path for name, source in case.images.items() if name in preprocessing.modalities}
    paths.add(_labels_of(case))
    found = []
    for path in sorted(paths):
        try:
            status = path.stat()
        except OSError as error:
            raise FileError(f"cannot be read: {error.strerror}", case=case.id, file=path) from error
        found.append((str(path.absolute()), status.st_size, status.st_mtime_ns))
    return tuple(found)


def _up_to_date(place: Path, sources: tuple[Source, ...], preprocessing: Preprocessing) -> bool:
    if not place.is_dir():
        return False
    try:
        entry = CaseEntry.load(place)
        same = Preprocessing.from_json(entry.preprocessing) == preprocessing
    except ModistillError:
        return False
    return same and entry.format == FORMAT and entry.sources == sources and entry.damaged(place) is None


def _discard(place: Path) -> None:
    """Remove an outdated case. It loses its name first, so that a half-removed one is never taken for a case."""
    for rubbish in place.parent.glob(f".{glob.escape(place.name)}.part.*"):
        shutil.rmtree(rubbish, ignore_errors=True)  # of a process that was killed
    old = place.with_name(f".{place.name}.part.old")
    if place.exists():
        os.replace(place, old)
        shutil.rmtree(old, ignore_errors=True)


def _require_ours(folder: Path, preprocessing: Preprocessing) -> None:
    """Refuse a folder that holds other things, or cases prepared in another way."""
    foreign = sorted({path.name for path in folder.iterdir()} - {".lock", "cases", PLAN, SPLIT})
    if foreign:
        raise FileError(f"not empty, it holds {foreign[0]}", file=folder, remedy="choose a new folder")
    if (folder / PLAN).exists():
        before, now = Plan.load(folder / PLAN).preprocessing.to_json(), preprocessing.to_json()
        for name, value in now.items():
            if name != "landmarks" and before.get(name) != value:
                reason = f"was prepared with {name} {before[name]}, now it is {value}"
                raise FileError(reason, file=folder, remedy="choose another folder, or remove this one")


def _split(volumes: Mapping[str, Mapping[str, float]], cohort: Cohort, shares: Mapping[str, Share], seed: int) -> Split:
    """Deal the cases whose volumes are known; those that could not be read drop out of the lists."""
    there = {
        part: share if isinstance(share, int | float) else [case for case in share if case in volumes]
        for part, share in shares.items()
    }
    tumours = tumour_strata(volumes, _grades(cohort.cases))
    acquired = {case.id: "+".join(case.modalities) for case in cohort.cases}
    return make_split(volumes, there, seed=seed, strata={case: f"{acquired[case]}/{tumours[case]}" for case in volumes})


def _without_others(split: Split, entries: Collection[str]) -> Split:
    """The same split, of the cases that could be prepared."""
    parts = {part: tuple(case for case in ids if case in entries) for part, ids in split.parts.items()}
    return replace(split, parts=parts)


def _volumes(class_voxels: Sequence[int], voxel_volume_ml: float, convention: LabelConvention) -> dict[str, float]:
    """Class name -> volume in ml; the background comes first in the counts and is left out."""
    return {name: count * voxel_volume_ml for name, count in zip(convention.values, class_voxels[1:], strict=True)}


@dataclass(frozen=True)
class _Reading:
    """What the first reading of a case tells: class name -> volume in ml, and modality -> landmarks."""

    volumes: dict[str, float]
    landmarks: dict[str, Landmarks]


def _read_landmarks(case: CaseFiles, preprocessing: Preprocessing) -> _Reading:
    labels = read_labels(_labels_of(case))
    read = _read(case, preprocessing, with_labels=False)
    convention = conventions[preprocessing.convention or ""]
    counts = np.bincount(convention.to_classes(labels.voxels).ravel(), minlength=len(convention.values) + 1)
    ml = float(np.prod(labels.spacing_mm)) / 1000
    return _Reading(_volumes(counts.tolist(), ml, convention), preprocessing.for_subset(read.images).landmarks_of(read))


def _fitted(
    cohort: Cohort, preprocessing: Preprocessing, shares: Mapping[str, Share], seed: int, processes: int
) -> tuple[Split, Preprocessing]:
    """The split, and the preprocessing with the standard landmarks of its training cases.

    Raises:
        CaseError: not a single case can be read, or no training case has a modality that is to be standardised.
    """
    work = partial(_read_landmarks, preprocessing=preprocessing)
    readings = {case.id: reading for case, reading in run_each(work, cohort.cases, processes)}
    found = {case: reading for case, reading in readings.items() if isinstance(reading, _Reading)}
    if not found:  # one case that cannot be read is named when it is prepared
        first = next((f": {fault}" for fault in readings.values()), "")
        raise CaseError(f"none of {len(readings)} cases could be prepared{first}", file=cohort.root)
    split = _split({case: reading.volumes for case, reading in found.items()}, cohort, shares, seed)
    standard = {}
    for name in preprocessing.by_landmarks:
        training = [found[case].landmarks[name] for case in split["train"] if name in found[case].landmarks]
        if not training:
            raise CaseError(f"no training case has {name}, whose histogram is to be standardised", file=cohort.root)
        standard[name] = standard_landmarks(training)
    return split, replace(preprocessing, landmarks=standard)


def _grades(cases: Iterable[CaseFiles]) -> dict[str, str]:
    """Case id -> HGG or LGG, where a folder says it (BraTS up to 2019)."""
    grades = {}
    for case in cases:
        folders = {part for source in case.images.values() for part in source.path.parts}
        if found := folders & {"HGG", "LGG"}:
            grades[case.id] = min(found)
    return grades


def _plan(
    training: Sequence[CaseEntry], cohort: Cohort, preprocessing: Preprocessing, convention: LabelConvention, split: Split
) -> Plan:
    """Count over the training cases, and refuse what no training could be made of."""
    if not training:
        raise RecipeError("no training case is left", remedy="give part train a larger share")
    cut = [entry for entry in training if entry.geometry.is_cut]
    if cut:
        largest = "x".join(str(max(entry.geometry.resampled[axis] for entry in training)) for axis in range(3))
        reason = f"{len(cut)} training cases do not fit the size; the largest needs {largest} voxels"
        raise CaseError(reason, case=cut[0].id, remedy="use a larger size")
    counts = np.array([entry.class_voxels for entry in training], dtype=np.int64).sum(axis=0).tolist()
    absent = [name for name, count in zip(convention.values, counts[1:], strict=True) if count == 0]
    if absent:
        reason = f"no training case has the class {absent[0]} of {convention.name}, so nothing can learn it"
        raise LabelError(reason, remedy="check --labels and the split")
    shapes = np.array([entry.shape for entry in training])
    spacings = np.array([entry.geometry.prepared_spacing_mm for entry in training])
    return Plan(
        preprocessing=preprocessing,
        convention=convention.name,
        classes=tuple(convention.values),
        class_voxels=tuple(counts),
        class_weights=tuple(round(counts[0] / count, 4) for count in counts),
        spacing_mm=tuple(float(size) for size in np.median(spacings, axis=0)),
        shape=tuple(int(n) for n in np.median(shapes, axis=0)),
        largest=tuple(int(n) for n in shapes.max(axis=0)),
        cases=len(training),
        source=str(cohort.root.absolute()),
        layout=cohort.layout,
        split=split.digest,
        versions=versions(),
    )


def _notices(entries: Mapping[str, CaseEntry], split: Split, convention: LabelConvention, folder: Path) -> list[str]:
    """What is odd but usable."""
    notices = [f"{case}: {notice}" for case, entry in entries.items() for notice in entry.notices]
    training = [entries[case] for case in split["train"]]
    for index, name in enumerate(convention.values, start=1):
        if lacking := [entry.id for entry in training if entry.class_voxels[index] == 0]:
            notices.append(f"{len(lacking)} of {len(training)} training cases have no {name}, such as {lacking[0]}")
    if empty := [case for case, entry in entries.items() if not any(entry.class_voxels[1:])]:
        notices.append(f"{len(empty)} cases have only background, such as {empty[0]}")
    notices += [f"no case is in part {part}" for part, ids in split.parts.items() if not ids]
    if (folder / SPLIT).exists() and read_json(folder / SPLIT).get("digest") != split.digest:
        notices.append("the split is not that of the earlier attempt: runs trained on it cannot be compared with new ones")
    return notices
