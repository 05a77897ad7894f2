"""The validator: everything that a later step would refuse, found for all cases at once, without stopping at the first fault.

Each case is read as training and prediction would read it, in a process of its own; a worker that dies (as under a lack of
memory) costs only the case it was reading. Severities: an `error` makes a case unusable, a `warning` asks for a look, a
`notice` is worth knowing.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np

from modistill.data.cohort import CaseFiles, Cohort, Fault, require_contrast
from modistill.data.header import axis_codes
from modistill.data.naming import LabelConvention, conventions, count_labels, guess_convention
from modistill.data.nifti import read_labels, read_volumes
from modistill.data.processes import run_each
from modistill.data.volume import Volume, grid_distance_mm, require_same_grid
from modistill.errors import LabelError, ModistillError

__all__ = ["CaseRow", "Grid", "Inspection", "inspect_case", "inspect_cohort"]

T = TypeVar("T")
Grid: TypeAlias = tuple[tuple[int, int, int], tuple[float, float, float], str]
_SHIFT_WORTH_A_WARNING_MM = 0.01
_THIN_VOXELS = 8
_EXTREME = 20.0  # times the range that holds 99.9 % of the voxels


@dataclass(frozen=True)
class CaseRow:
    """What one case holds.

    Attributes:
        id: name of the case.
        modalities: those that could be read.
        shape: voxels along the axes of the file.
        spacing_mm: voxel size along the axes of the file.
        orientation: where these axes run to, as `LPS`.
        labels: value -> number of voxels; None without a label map that could be read.
        faults: what is wrong or odd.
    """

    id: str
    modalities: tuple[str, ...] = ()
    shape: tuple[int, int, int] | None = None
    spacing_mm: tuple[float, float, float] | None = None
    orientation: str | None = None
    labels: Mapping[float, int] | None = None
    faults: tuple[Fault, ...] = ()

    @property
    def grid(self) -> Grid | None:
        """Shape, spacing and orientation, None where no image could be read."""
        if self.shape is None or self.spacing_mm is None or self.orientation is None:
            return None
        return self.shape, self.spacing_mm, self.orientation

    @property
    def usable(self) -> bool:
        """Whether nothing stands against using the case."""
        return not any(fault.severity == "error" for fault in self.faults)


@dataclass(frozen=True)
class Inspection:
    """The result for a cohort.

    Attributes:
        cohort: what was inspected.
        rows: one for each case, by id; cases that the layout refused have a row without content.
        faults: of the cohort as a whole.
        convention: name of the label convention that all label maps follow, None if there are none or nothing decides.
    """

    cohort: Cohort
    rows: tuple[CaseRow, ...]
    faults: tuple[Fault, ...]
    convention: str | None

    @property
    def all_faults(self) -> tuple[Fault, ...]:
        """Those of the cohort, then those of each case."""
        return (*self.faults, *(fault for row in self.rows for fault in row.faults))

    @property
    def usable(self) -> tuple[str, ...]:
        """Ids of the cases without errors."""
        return tuple(row.id for row in self.rows if row.usable)

    @property
    def exit_code(self) -> int:
        """0 without errors, 3 if some cases have errors, 2 if no case is usable."""
        if not self.usable:
            return 2
        return 3 if any(fault.severity == "error" for fault in self.all_faults) else 0

    def to_json(self) -> dict[str, Any]:
        """Plain values, for `write_json`."""
        return {
            "root": str(self.cohort.root),
            "layout": self.cohort.layout,
            "convention": self.convention,
            "usable": list(self.usable),
            "cases": [_row_to_json(row) for row in self.rows],
            "faults": [asdict(fault) for fault in self.faults],
        }


def inspect_cohort(
    cohort: Cohort,
    *,
    workers: int = 0,
    convention: str | None = None,
    progress: Callable[[str], None] | None = None,
    inspect: Callable[[CaseFiles], CaseRow] | None = None,
) -> Inspection:
    """Read and check every case of a cohort.

    Args:
        cohort: from `find_cases`.
        workers: processes; 0 for one a core (at most 8), 1 for none beside this one.
        convention: name of the label convention, if it is known; else it is inferred.
        progress: called with a case id when that case is done.
        inspect: what to do with one case, `inspect_case` unless a test says otherwise; must be picklable.

    Raises:
        LabelError: no convention of that name.
    """
    if convention is not None and convention not in conventions:
        raise LabelError(f"unknown label convention {convention!r}", remedy=f"known: {', '.join(conventions)}")
    rows: dict[str, CaseRow] = {}
    for case, found in run_each(inspect or inspect_case, cohort.cases, workers or min(os.cpu_count() or 1, 8)):
        rows[case.id] = CaseRow(case.id, faults=(replace(found, case=case.id),)) if isinstance(found, Fault) else found
        if progress is not None:
            progress(case.id)
    for fault in reversed(cohort.faults):
        if fault.case is not None:
            row = rows.get(fault.case, CaseRow(fault.case))
            rows[fault.case] = replace(row, faults=(fault, *row.faults))
    whole = [fault for fault in cohort.faults if fault.case is None]
    hints = {case.id: case.convention for case in cohort.cases}
    name, remarks = _common_convention(rows.values(), hints, convention)
    if name is not None:
        rows = {id: _check_values(row, conventions[name]) for id, row in rows.items()}
    return Inspection(cohort, tuple(rows[id] for id in sorted(rows)), (*whole, *remarks), name)


def inspect_case(case: CaseFiles) -> CaseRow:
    """Read every file of a case, and note all that is wrong with it."""
    faults: list[Fault] = []
    images: dict[str, Volume] = {}
    for path, names in case.by_file().items():
        volumes = _attempt(case, faults, partial(read_volumes, path, [case.images[name].channel for name in names]))
        for name, volume in zip(names, volumes or (), strict=False):
            found = tuple(_image_faults(case.id, name, volume, path))
            faults += found
            if not any(fault.severity == "error" for fault in found):
                images[name] = volume
    labels = None if case.labels is None else _attempt(case, faults, partial(read_labels, case.labels))
    counts = None if labels is None else count_labels(labels.voxels)
    faults += [*_grid_faults(case, images, labels), *_twins(case, images)]
    faults += [] if counts is None else _label_faults(case, counts)
    if not images:
        return CaseRow(case.id, labels=counts, faults=tuple(faults))
    present = tuple(name for name in case.images if name in images)
    return CaseRow(case.id, present, *_native_geometry(images[present[0]]), counts, tuple(faults))


# --------------------------------------------------------------------------- one case


def _attempt(case: CaseFiles, faults: list[Fault], read: Callable[[], T]) -> T | None:
    """What `read` gives; or None, and one fault more."""
    try:
        return read()
    except ModistillError as error:
        faults.append(Fault.of(error, case.id))
        return None


def _native_geometry(volume: Volume) -> Grid:
    """Shape, voxel size and orientation as in the file."""
    shape, affine = (volume.shape, volume.affine) if volume.native is None else (volume.native.shape, volume.native.affine)
    x, y, z = (round(float(size), 4) for size in np.linalg.norm(affine[:3, :3], axis=0))
    return shape, (x, y, z), axis_codes(affine)


def _image_faults(case: str, name: str, volume: Volume, path: Path) -> Iterator[Fault]:
    """A volume without contrast is an error; the rest is odd, but can be used."""
    try:
        require_contrast(name, volume, path)
    except ModistillError as error:
        yield Fault.of(error, case)
        return
    for note in volume.native.notes if volume.native else ():
        remedy = "leave it out of training and of references" if volume.synthetic else "check the header"
        yield Fault(case, str(path), note, remedy, "warning")
    if min(volume.shape) < _THIN_VOXELS:
        shape = "x".join(map(str, volume.shape))
        yield Fault(case, str(path), f"thin volume of {shape} voxels", "is this the whole series?", "warning")
    sizes = np.abs(np.asarray(volume.voxels, dtype=np.float32)).ravel()
    sample = sizes[::7]
    usual = float(np.quantile(sample[sample > 0], 0.999)) if sample.any() else 0.0
    if 0 < _EXTREME * usual < float(sizes.max()):
        count = int((sizes > _EXTREME * usual).sum())
        reason = f"{count} extreme voxels up to {sizes.max():g}, while 99.9 % lie below {usual:g}"
        yield Fault(case, str(path), reason, "look at the image; they would squeeze a normalisation", "warning")


def _grid_faults(case: CaseFiles, images: Mapping[str, Volume], labels: Volume | None) -> Iterator[Fault]:
    """Every volume against the first: an error beyond the tolerance, a warning below it."""
    if not images:
        return
    first = next(iter(images))
    others = [(name, volume, case.images[name].path) for name, volume in images.items() if name != first]
    if labels is not None and case.labels is not None:
        others.append(("the label map", labels, case.labels))
    for name, volume, path in others:
        try:
            require_same_grid(images[first], volume, reference_name=first, other_name=name)
        except ModistillError as error:
            yield Fault(case.id, str(path), error.reason, error.remedy)
            continue
        apart = grid_distance_mm(images[first], volume)
        if apart > _SHIFT_WORTH_A_WARNING_MM:
            yield Fault(case.id, str(path), f"{name} lies {apart:.3f} mm off {first}, tolerated", None, "warning")


def _twins(case: CaseFiles, images: Mapping[str, Volume]) -> Iterator[Fault]:
    """Two modalities that hold the same voxels: one of them is a copy."""
    for (one, first), (other, second) in combinations(images.items(), 2):
        if first.shape == second.shape and np.array_equal(first.voxels, second.voxels):
            path = str(case.images[other].path)
            yield Fault(case.id, path, f"{one} and {other} hold the same voxels", "is one a copy of the other?", "warning")


def _label_faults(case: CaseFiles, counts: Mapping[float, int]) -> Iterator[Fault]:
    """What can be said of label values without knowing the convention."""
    place = str(case.labels)
    if not any(convention.fits(counts) for convention in conventions.values()):
        widest = max(conventions.values(), key=lambda convention: len(convention.values))
        try:
            widest.check_counts(counts)
        except LabelError as error:
            reason = error.reason.replace(f"outside {widest.name}", "outside every known convention")
            yield Fault(case.id, place, reason, error.remedy)
    elif set(counts) == {0.0}:
        yield Fault(case.id, place, "the label map holds only background", None, "notice")
    elif 0.0 not in counts:
        yield Fault(case.id, place, "the label map has no background", "is it the right file?", "warning")


# --------------------------------------------------------------------------- the cohort


def _common_convention(
    rows: Iterable[CaseRow], hints: Mapping[str, str | None], stated: str | None
) -> tuple[str | None, list[Fault]]:
    """The convention of all label maps that follow any: as stated, as the layout says, or as the values say."""
    found = {
        row.id: row.labels
        for row in rows
        if row.labels is not None and any(convention.fits(row.labels) for convention in conventions.values())
    }
    if stated is not None or not found:
        return stated, []
    votes = Counter(hint for case, hint in hints.items() if hint in conventions and case in found)
    hint = votes.most_common(1)[0][0] if votes else None
    if hint is not None and 2 * sum(conventions[hint].fits(labels) for labels in found.values()) >= len(found):
        return hint, []
    try:
        name = guess_convention({value for labels in found.values() for value in labels}).name
    except LabelError as error:
        return None, [Fault(None, None, error.reason, error.remedy, "warning")]
    other = [case for case, labels in found.items() if _alone(labels) not in (None, name)]
    text = f"the label values of all cases together say {name}, those of {len(other)} alone say otherwise, as {other[:1]}"
    return name, [Fault(None, None, text, "say which with --labels", "warning")] if other else []


def _alone(labels: Mapping[float, int]) -> str | None:
    """The convention that the values of one case would be taken for."""
    try:
        return guess_convention(labels).name
    except LabelError:
        return None


def _check_values(row: CaseRow, convention: LabelConvention) -> CaseRow:
    """Add a fault to a case whose values belong to another known convention than the cohort's."""
    if row.labels is None or not any(other.fits(row.labels) for other in conventions.values()):
        return row
    try:
        convention.check_counts(row.labels)
    except LabelError as error:
        return replace(row, faults=(*row.faults, Fault.of(error, row.id)))
    return row


def _row_to_json(row: CaseRow) -> dict[str, Any]:
    labels = None if row.labels is None else {f"{value:g}": count for value, count in row.labels.items()}
    return {**asdict(replace(row, labels=None)), "labels": labels, "usable": row.usable}
