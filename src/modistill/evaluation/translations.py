"""Score synthetic images against real ones of the same patients, case by case.

A translation is `CASE/CASE_MODALITY.nii.gz` with a record `CASE/CASE_MODALITY.json` beside it, which says on which scale it is
and how real images were brought to that scale. The real image is normalised so on its own, and both are compared from 0 to 1.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from modistill.data.case import Case
from modistill.data.cohort import CaseFiles, Fault
from modistill.data.folder import find_cases
from modistill.data.naming import LabelConvention, conventions
from modistill.data.nifti import read_volume
from modistill.data.normalisation import scale_of, spell
from modistill.data.preprocessing import Preprocessing
from modistill.data.volume import Volume, require_same_grid
from modistill.errors import CaseError, FileError, GeometryError, ModistillError
from modistill.evaluation.folders import Evaluation, find_labels
from modistill.evaluation.protocol import Status, SynthesisProtocol
from modistill.evaluation.scores import Score, Scores
from modistill.files import read_json

__all__ = ["evaluate_translations", "real_on_scale"]

_ROUNDING = 1e-3  # of the scale's range: what a value may lie beyond it


@dataclass(frozen=True)
class _Record:
    """What the JSON file beside a translation says."""

    image: Path
    run: str
    available: str
    box: tuple[slice, ...]
    preprocessing: Preprocessing
    protocol: SynthesisProtocol


@dataclass(frozen=True)
class _Real:
    """A real image on the scale, and the regions in which it is compared."""

    image: Volume
    regions: Mapping[str, NDArray[np.bool_]]


def evaluate_translations(
    translated: Path,
    references: Path,
    *,
    run_name: str | None = None,
    labels: str | None = None,
    cases: Collection[str] | None = None,
    body_above: float | None = None,
    dims: int | None = None,
    on_case: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Score every case of `references` that has a real image of the target.

    Args:
        translated: folder that `modistill translate` wrote.
        references: a cohort in any layout; its labels, where it has some, give more regions than the body.
        run_name: `arm` or `arm/seed`; else the one run that the records name, else the folder's name.
        labels: name of the references' label convention; else as the cohort says, or guessed from all its values.
        cases: the ids that count; else every case with a real image of the target. A case without a translation has failed.
        body_above: share of the scale above which the real image is body; None: see `SynthesisProtocol`.
        dims: axes of SSIM's windows; None for those of the network that translated.
        on_case: called with (cases done, cases in all).

    Raises:
        CaseError: nothing to score: no real image, or no usable translation at all.
        FileError: no folder of translations, or two of one case in it.
        LabelError: the label convention is unknown or ambiguous.
        RecipeError: `body_above` or `dims` make no sense.
    """
    translated, references = Path(translated), Path(references)
    records, faults = _records(translated)
    first = next(iter(records.values()))
    rules = replace(first.protocol, body_above=body_above, dims=first.protocol.dims if dims is None else dims)
    cohort = find_cases(references)
    real = {case.id: case for case in cohort.cases if rules.target in case.images}
    faults += [fault for fault in cohort.faults if fault.severity == "error"]
    known, _ = find_labels(references, (), labels)
    if cases is not None:
        absent = (
            CaseError(f"has no real {rules.target}", case=case, file=references) for case in sorted(set(cases) - set(real))
        )
        faults += map(Fault.of, absent)
        real = {name: case for name, case in real.items() if name in cases}
    if not real:
        raise CaseError(f"no real {rules.target} found", file=references, remedy="give cases that have what was synthesised")
    runs = {record.run for record in records.values()}
    run = run_name or (runs.pop() if len(runs) == 1 else translated.resolve().name)
    rows: list[Score] = []
    for done, (name, case) in enumerate(sorted(real.items()), start=1):
        convention = conventions[known[name].convention] if name in known else None
        scored, problems = _score_case(case, convention, records.get(name), translated, first, rules, run)
        rows += scored
        faults += problems
        if on_case:
            on_case(done, len(real))
    if all(row.status == "failed" for row in rows):
        reason = f"no usable translation for any of {len(real)} cases" + (f"; the first: {faults[0]}" if faults else "")
        raise CaseError(reason, file=translated, remedy="translate the cases that have a real image, too")
    return Evaluation(Scores(_of_all_regions(rows), rules), tuple(faults), tuple(sorted(set(records) - set(real))))


def real_on_scale(image: Volume, modality: str, preprocessing: Preprocessing, *, case: str = "case") -> Volume:
    """A real image as its modality was normalised for training: (D, H, W) float32 from 0 to 1 on its own grid.

    Args:
        image: as it was acquired.
        modality: its name.
        preprocessing: of this modality alone, as the record of a translation holds it.
        case: id, for messages.

    Raises:
        CaseError: the image says nothing.
    """
    alone = replace(preprocessing, spacing_mm=None, size=None)  # the grid stays; normalisation comes before resampling anyway
    prepared = alone.apply(Case(case, {modality: image}))
    return image.with_voxels(alone.restore(prepared.images, prepared.geometry)[0])


def _records(folder: Path) -> tuple[dict[str, _Record], list[Fault]]:
    """Case id -> its record, and what is wrong with the others.

    Raises:
        FileError: no record, or two of one case, of which only one could be scored.
    """
    if not folder.is_dir():
        raise FileError("is not a folder", file=folder, remedy="give the folder that `modistill translate` wrote")
    found: dict[str, _Record] = {}
    faults: list[Fault] = []
    for path in sorted(folder.glob("*/*.json")):
        case = path.parent.name
        try:
            record = _record(path)
        except ModistillError as error:
            error.file = error.file or str(path)
            faults.append(Fault.of(error, case))
            continue
        if case in found:
            both = f"{found[case].image.name} and {record.image.name}"
            raise FileError(f"holds {both}: one case has one translation", file=path.parent, remedy="choose another folder")
        found[case] = record
    if not found:
        reason = "holds no record of a translation" + (f"; the first: {faults[0]}" if faults else "")
        raise FileError(reason, file=folder, remedy="give the folder that `modistill translate` wrote")
    return found, faults


def _record(path: Path) -> _Record:
    content = read_json(path)
    try:
        if content["synthetic"] is not True:
            raise ValueError
        target = str(content["target"])
        preprocessing = Preprocessing.from_json(content["preprocessing"])
        how = preprocessing.normalisation_of(target)
        low, high = scale_of(how)
        landmarks = preprocessing.landmarks.get(target, ())
        n4, within = target in preprocessing.n4, content["within"] or ""
        rules = SynthesisProtocol(target, spell(how), low, high, landmarks, n4, within, dims=int(content["dims"]))
        image = path.with_suffix(".nii.gz")
        box = tuple(slice(start, stop) for start, stop in content["box"])
        return _Record(image, str(content["run"]), "+".join(content["available"]), box, preprocessing, rules)
    except (KeyError, TypeError, ValueError) as error:
        raise FileError("is not the record of a translation", remedy="translate again") from error


def _score_case(
    case: CaseFiles,
    convention: LabelConvention | None,
    record: _Record | None,
    translated: Path,
    first: _Record,
    rules: SynthesisProtocol,
    run: str,
) -> tuple[list[Score], list[Fault]]:
    """Score one case. A fault of the translation is a failed case; a case whose reference is at fault has no rows."""
    try:
        real = _real(case, convention, rules, first.preprocessing)
    except ModistillError as error:
        return [], [Fault.of(error.at(case.id))]
    available = "" if record is None else record.available
    faults: list[Fault] = []
    try:
        synthetic = _synthetic(case.id, record, translated, first, real.image)
        values = rules.score(synthetic, *_shown(real, record, rules))
        status: Status = "measured"
    except ModistillError as error:
        faults = [Fault.of(error.at(case.id))]
        values, status = {region: rules.score_failed() for region in real.regions}, "failed"
    rows = []
    for region, found in values.items():
        empty = not real.regions[region].any()
        rule: Status = "both_empty" if empty else status
        rows += [
            Score(run, case.id, available, region, metric, float("nan") if empty else value, rule)
            for metric, value in found.items()
        ]
    return rows, faults


def _real(case: CaseFiles, convention: LabelConvention | None, rules: SynthesisProtocol, preprocessing: Preprocessing) -> _Real:
    whole = case.read((rules.target,))
    image = real_on_scale(whole.images[rules.target], rules.target, preprocessing, case=case.id)
    regions = {"body": rules.body(np.asarray(image.voxels, dtype=np.float32))}
    if whole.labels is not None and convention is not None:
        convention.check(whole.labels.voxels)
        regions |= zip(convention.regions, convention.regions.encode(whole.labels.voxels), strict=True)
    return _Real(image, regions)


def _shown(
    real: _Real, record: _Record | None, rules: SynthesisProtocol
) -> tuple[NDArray[np.float32], Mapping[str, NDArray[np.bool_]]]:
    """The real image and its regions, without what the network was not shown where it was shown a part only."""
    image = np.asarray(real.image.voxels, dtype=np.float32)
    if record is None or not rules.within:
        return image, real.regions
    shown = np.zeros(image.shape, dtype=bool)
    shown[record.box] = True
    return image * shown, {name: mask & shown for name, mask in real.regions.items()}


def _synthetic(case: str, record: _Record | None, folder: Path, first: _Record, real: Volume) -> NDArray[np.float32]:
    """The translation of a case, from 0 to 1."""
    rules = first.protocol
    if record is None:
        orphan = folder / case / f"{case}_{rules.target}.nii.gz"
        if orphan.exists():
            raise FileError("has no record beside it: its scale is unknown", file=orphan, remedy="translate it again")
        raise CaseError("no translation: counted as failed", remedy="translate it, or name the cases that count (--cases)")
    if differing := rules.differences(record.protocol):
        raise CaseError(f"was made on another scale than the first: {differing}", file=record.image, remedy="score it apart")
    image = read_volume(record.image)
    try:
        require_same_grid(real, image, reference_name=f"the real {rules.target}", other_name="the translation")
    except GeometryError as error:
        error.file = str(record.image)
        raise
    values = (image.voxels.astype(np.float64) - rules.lowest) / (rules.highest - rules.lowest)
    if values.min() < -_ROUNDING or values.max() > 1 + _ROUNDING:
        held = f"{image.voxels.min():g} to {image.voxels.max():g}"
        raise FileError(
            f"holds {held}, its record says {rules.lowest:g} to {rules.highest:g}",
            file=record.image,
            remedy="translate it again",
        )
    return np.asarray(values.clip(0, 1), dtype=np.float32)


def _of_all_regions(rows: list[Score]) -> tuple[Score, ...]:
    """The rows, and undefined ones where a case without labels lacks a region that others have: cases stay comparable."""
    regions = dict.fromkeys(row.region for row in rows)
    cases = dict.fromkeys((row.run, row.case, row.available) for row in rows)
    there = {(row.case, row.region, row.metric) for row in rows}
    metrics = dict.fromkeys(row.metric for row in rows)
    added = [
        Score(run, case, available, region, metric, float("nan"), "both_empty")
        for run, case, available in cases
        for region in regions
        for metric in metrics
        if (case, region, metric) not in there
    ]
    return (*rows, *added)
