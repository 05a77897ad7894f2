"""Score synthetic images against real ones of the same patients, case by case.

A translation is `CASE/CASE_MODALITY.nii.gz` with a record `CASE/CASE_MODALITY.json` beside it, which says on which scale it is
and how real images were brought to that scale. The real image is normalised so on its own, and both are compared from 0 to 1.

A folder holds translations into one modality, or folders of them named SOURCE-to-TARGET, one for each pair (`modistill
translate --pairs`). Pairs make one table, and their rows are told apart by `available`, which is the name of the folder. A case
counts for a pair if its real target is there, and its source too, unless a translation shows that it had one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
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
from modistill.evaluation.protocol import METRICS, Status
from modistill.evaluation.scores import Score, Scores
from modistill.evaluation.statistics import Summary, summarise
from modistill.evaluation.synthesis import PAIR, Scale, SynthesisProtocol
from modistill.evaluation.tables import TextTable, number
from modistill.files import read_json

__all__ = ["evaluate_translations", "pair_table", "real_on_scale"]

_ROUNDING = 1e-3  # of the scale's range: what a value may lie beyond it
_WRITTEN_BY = "give the folder that `modistill translate` wrote"


@dataclass(frozen=True)
class _Record:
    """What the JSON file beside a translation says."""

    image: Path
    run: str
    available: str
    target: str
    box: tuple[slice, ...]
    preprocessing: Preprocessing
    protocol: SynthesisProtocol


@dataclass(frozen=True)
class _Made:
    """The translations of one folder.

    Attributes:
        folder: where they lie.
        target: modality they are of.
        records: case id -> record.
        source: modality that all of them were made from, where the folder is one of a pair.
    """

    folder: Path
    target: str
    records: Mapping[str, _Record]
    source: str = ""

    @property
    def pair(self) -> str:
        """Name of the pair, "" where there is none."""
        return self.folder.name if self.source else ""

    def counts(self, case: CaseFiles) -> bool:
        """Whether a case is to be scored."""
        had_source = not self.source or self.source in case.images or case.id in self.records
        return self.target in case.images and had_source


@dataclass(frozen=True)
class _Real:
    """A real image on the scale, and the regions in which it is compared."""

    image: Volume
    regions: Mapping[str, NDArray[np.bool_]]


def evaluate_translations(
    translated: Path,
    references: Path,
    *,
    target: str | None = None,
    run_name: str | None = None,
    labels: str | None = None,
    cases: Collection[str] | None = None,
    body_above: float | None = None,
    dims: int | None = None,
    on_case: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Score every case of `references` that has a real image of the target.

    Args:
        translated: folder that `modistill translate` wrote, with or without `--pairs`.
        references: a cohort in any layout; its labels, where it has some, give more regions than the body.
        target: modality to score; needed where one folder holds several. None for all that there are.
        run_name: `arm` or `arm/seed`; else the one run that the records name, else the folder's name.
        labels: name of the references' label convention; else as the cohort says, or guessed from all its values.
        cases: the ids that count; else every case with a real image of the target. A case without a translation has failed.
        body_above: share of the scale above which the real image is body; None: see `SynthesisProtocol`.
        dims: axes of SSIM's windows; None for those of the network that translated.
        on_case: called with (translations done, translations in all).

    Raises:
        CaseError: nothing to score: no real image, or no usable translation at all.
        FileError: no folder of translations, one of several targets of which none was chosen, or pairs that were made by
            different networks.
        LabelError: the label convention is unknown or ambiguous.
        RecipeError: `body_above` or `dims` make no sense.
    """
    translated, references = Path(translated), Path(references)
    made, faults = _made(translated, target)
    firsts = {one.target: next(iter(one.records.values())) for one in reversed(made) if one.records}
    rules = _together([firsts[name].protocol for name in sorted(firsts)], translated)
    rules = replace(rules, body_above=body_above, dims=rules.dims if dims is None else dims)
    cohort = find_cases(references)
    faults += [fault for fault in cohort.faults if fault.severity == "error"]
    if cases is not None:
        there = {(case.id, name) for case in cohort.cases for name in case.images}
        lacking = [(case, name) for name in sorted(firsts) for case in sorted(set(cases)) if (case, name) not in there]
        faults += [Fault.of(CaseError(f"has no real {name}", case=case, file=references)) for case, name in lacking]
    counted = sorted((case for case in cohort.cases if cases is None or case.id in cases), key=lambda case: case.id)
    jobs = [(one, case) for one in made for case in counted if one.counts(case)]
    if not jobs:
        wanted = ", ".join(sorted(firsts))
        raise CaseError(f"no real {wanted} found", file=references, remedy="give cases that have what was synthesised")
    known, _ = find_labels(references, (), labels)
    runs = {record.run for one in made for record in one.records.values()}
    run = run_name or (runs.pop() if len(runs) == 1 else translated.resolve().name)
    rows: list[Score] = []
    for done, (one, case) in enumerate(jobs, start=1):
        convention = conventions[known[case.id].convention] if case.id in known else None
        scored, problems = _score_case(case, convention, one, firsts[one.target], rules, run)
        rows += scored
        faults += problems
        if on_case:
            on_case(done, len(jobs))
    if all(row.status == "failed" for row in rows):
        reason = f"none of {len(jobs)} translations can be scored" + (f"; the first: {faults[0]}" if faults else "")
        raise CaseError(reason, file=translated, remedy="translate the cases that have a real image, too")
    compared = {(one.pair, case.id) for one, case in jobs}
    unscored = sorted((one.pair, case) for one in made for case in one.records if (one.pair, case) not in compared)
    names = tuple("/".join(filter(None, place)) for place in unscored)
    # A real image at fault is met with each of its translations, and said once.
    return Evaluation(Scores(_of_all_regions(rows), rules), tuple(dict.fromkeys(faults)), names)


def pair_table(scores: Scores) -> TextTable:
    """Mean and spread over the cases of each pair, region by region, and the mean of the pairs, each counting alike."""
    metrics = scores.protocol.headline
    pairs = {pair: summarise(scores.select(available=pair).rows) for pair in scores.subsets}
    rows: list[tuple[str, ...]] = []
    sections = []
    for region in scores.regions:
        columns = []
        for pair, summaries in pairs.items():
            found = {metric: summaries[scores.runs[0], region, metric] for metric in metrics}
            cells = (f"{number(one.mean, metric)} ± {number(one.sd, metric)}" for metric, one in found.items())
            counts = (found[metrics[0]].n, found[metrics[0]].n_failed, found[metrics[0]].n_undefined)
            rows.append((region, pair, *cells, *map(str, counts)))
            columns.append([math.nan if one.mean is None else one.mean for one in found.values()])
        means = (
            number(Summary.of(column).mean, metric) for metric, column in zip(metrics, zip(*columns, strict=True), strict=True)
        )
        rows.append((region, "mean of pairs", *means, "", "", ""))
        sections.append(len(rows) - 1)
    units = {metric: f" ({METRICS[metric].unit})" if METRICS[metric].unit else "" for metric in metrics}
    titles = (f"{METRICS[metric].title}{unit}" for metric, unit in units.items())
    title = f"{scores.runs[0]}: {len(scores.cases)} cases, {len(pairs)} pairs"
    return TextTable(title, ("region", "read", *titles, "n", "failed", "undefined"), tuple(rows), tuple(sections))


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


def _made(folder: Path, target: str | None) -> tuple[list[_Made], list[Fault]]:
    """What lies in a folder, of one target or of all its pairs, and what is wrong with the rest.

    Raises:
        FileError: nothing into the target, or into several of which none was chosen.
    """
    if not folder.is_dir():
        raise FileError("is not a folder", file=folder, remedy=_WRITTEN_BY)
    # A case folder may be called so, too; but then images lie in it.
    pairs = [path for path in folder.glob(f"?*{PAIR}?*") if path.is_dir() and not any(path.glob("*.nii.gz"))]
    if not pairs:
        found, faults = _records(folder)
        if target is None and len(found) > 1:
            raise FileError(f"holds translations into {', '.join(sorted(found))}", file=folder, remedy="choose one with --to")
        made = [_Made(folder, name, records) for name, records in found.items() if target in (None, name)]
    else:
        made, faults = [], []
        for path in sorted(pairs):
            source, _, name = path.name.partition(PAIR)
            if target in (None, name):
                found, problems = _records(path, (source, name))
                made.append(_Made(path, name, found.get(name, {}), source))
                faults += problems
    lacking = {one.target for one in made} - {one.target for one in made if one.records}
    if lacking or not made:
        names = ", ".join(sorted(lacking)) or target
        into = f" into {names}" if names else ""
        reason = f"holds no record of a translation{into}" + (f"; the first: {faults[0]}" if faults else "")
        raise FileError(reason, file=folder, remedy=_WRITTEN_BY)
    return made, faults


def _records(folder: Path, pair: tuple[str, str] | None = None) -> tuple[dict[str, dict[str, _Record]], list[Fault]]:
    """Target -> case id -> record, and what is wrong with the others; of one pair only, where one is given."""
    found: dict[str, dict[str, _Record]] = {}
    faults: list[Fault] = []
    for path in sorted(folder.glob("*/*.json")):
        case = path.parent.name
        try:
            record = _record(path)
            if pair not in (None, (record.available, record.target)):
                raise FileError(f"translates {record.available} into {record.target}", remedy=f"does not belong into {folder}")
            found.setdefault(record.target, {})[case] = record
        except ModistillError as error:
            error.file = error.file or str(path)
            faults.append(Fault.of(error, case))
    return found, faults


def _record(path: Path) -> _Record:
    content = read_json(path)
    try:
        target, image = str(content["target"]), path.with_suffix(".nii.gz")
        if content["synthetic"] is not True or path.name != f"{path.parent.name}_{target}.json":
            raise ValueError
        preprocessing = Preprocessing.from_json(content["preprocessing"])
        how = preprocessing.normalisation_of(target)
        scale = Scale(
            target, spell(how), *scale_of(how), preprocessing.landmarks.get(target, ()), n4=target in preprocessing.n4
        )
        rules = SynthesisProtocol((scale,), content["within"] or "", dims=int(content["dims"]))
        box = tuple(slice(start, stop) for start, stop in content["box"])
        return _Record(image, str(content["run"]), "+".join(content["available"]), target, box, preprocessing, rules)
    except (KeyError, TypeError, ValueError) as error:
        raise FileError("is not the record of a translation", remedy="translate again") from error


def _together(protocols: Sequence[SynthesisProtocol], folder: Path) -> SynthesisProtocol:
    """The rules for translations into several modalities.

    Raises:
        FileError: their networks were not shown the same, or have other axes.
    """
    first, *others = (replace(rules, scales=()) for rules in protocols)
    for other in others:
        if differing := first.differences(other):
            raise FileError(f"holds translations of different kinds: {differing}", file=folder, remedy="score them apart")
    return replace(first, scales=tuple(scale for rules in protocols for scale in rules.scales))


def _score_case(
    case: CaseFiles,
    convention: LabelConvention | None,
    made: _Made,
    first: _Record,
    rules: SynthesisProtocol,
    run: str,
) -> tuple[list[Score], list[Fault]]:
    """Score one case. A fault of the translation is a failed case; a case whose reference is at fault has no rows."""
    try:
        real = _real(case, convention, made.target, rules, first.preprocessing)
    except ModistillError as error:
        return [], [Fault.of(error.at(case.id))]
    record = made.records.get(case.id)
    available = made.pair or ("" if record is None else record.available)
    faults: list[Fault] = []
    try:
        synthetic = _synthetic(case.id, record, made, first, real.image)
        values = rules.score(made.target, synthetic, *_shown(real, record, rules))
        status: Status = "measured"
    except ModistillError as error:
        faults = [Fault.of(error.at(case.id))]
        known = np.asarray(real.image.voxels, dtype=np.float32)
        values = {name: rules.score_failed(made.target, known[mask]) for name, mask in real.regions.items()}
        status = "failed"
    rows = []
    for region, found in values.items():
        empty = not real.regions[region].any()
        rule: Status = "both_empty" if empty else status
        rows += [
            Score(run, case.id, available, region, metric, float("nan") if empty else value, rule)
            for metric, value in found.items()
        ]
    return rows, faults


def _real(
    case: CaseFiles,
    convention: LabelConvention | None,
    target: str,
    rules: SynthesisProtocol,
    preprocessing: Preprocessing,
) -> _Real:
    whole = case.read((target,))
    whole.require_real("no reference")
    image = real_on_scale(whole.images[target], target, preprocessing, case=case.id)
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


def _synthetic(case: str, record: _Record | None, made: _Made, first: _Record, real: Volume) -> NDArray[np.float32]:
    """The translation of a case, from 0 to 1."""
    if record is None:
        orphan = made.folder / case / f"{case}_{made.target}.nii.gz"
        if orphan.exists():
            raise FileError("has no record beside it: its scale is unknown", file=orphan, remedy="translate it again")
        reason = f"no translation{' ' * bool(made.pair)}{made.pair}: counted as failed"
        raise CaseError(reason, remedy="translate it, or name the cases that count (--cases)")
    if differing := first.protocol.differences(record.protocol):
        raise CaseError(f"was made on another scale than the first: {differing}", file=record.image, remedy="score it apart")
    image = read_volume(record.image)
    try:
        require_same_grid(real, image, reference_name=f"the real {made.target}", other_name="the translation")
    except GeometryError as error:
        error.file = str(record.image)
        raise
    (scale,) = record.protocol.scales
    values = (image.voxels.astype(np.float64) - scale.lowest) / scale.range
    if values.min() < -_ROUNDING or values.max() > 1 + _ROUNDING:
        held = f"{image.voxels.min():g} to {image.voxels.max():g}"
        raise FileError(
            f"holds {held}, its record says {scale.lowest:g} to {scale.highest:g}",
            file=record.image,
            remedy="translate it again",
        )
    return np.asarray(values.clip(0, 1), dtype=np.float32)


def _of_all_regions(rows: list[Score]) -> tuple[Score, ...]:
    """The rows, and undefined ones where a case without labels lacks a region that others have: cases stay comparable."""
    regions = dict.fromkeys(row.region for row in rows)
    cases = dict.fromkeys((row.run, row.case, row.available) for row in rows)
    there = {(row.case, row.available, row.region, row.metric) for row in rows}
    metrics = dict.fromkeys(row.metric for row in rows)
    added = [
        Score(run, case, available, region, metric, float("nan"), "both_empty")
        for run, case, available in cases
        for region in regions
        for metric in metrics
        if (case, available, region, metric) not in there
    ]
    return (*rows, *added)
