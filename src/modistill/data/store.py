"""Prepared cases on disk: written once, read by patch.

    PREPARED/
      plan.json            how the cases were prepared, and what the training cases look like; written last
      split.json           who trains, validates, tests
      cases/ID/
        images.b2nd        (M, D, H, W) float16, Blosc2
        labels.b2nd        (D, H, W) uint8 class indices, Blosc2
        case.json          geometry, counts, a sample of foreground voxels, sources, digests

Images are kept as float16. A normalised intensity x is then off by at most |x| / 2048: below 0.001 standard deviations for
95 % of a brain's voxels, under the noise of any scanner and finer than the bfloat16 a network computes in. A z-score cannot
overflow (the largest of n voxels is below sqrt(n)). Measured on BraTS 2021 (benchmarks/loading.py): half the disk of float32,
and a patch is read in 0.55 of the time. `patch` gives float16 as it is stored: torch makes it float32 in a sixth of the time
that NumPy needs.

All modalities lie in one block of 8 x 8 whole rows, in chunks of 32 x 32 rows, packed by LZ4 without a filter. Of 22 shapes,
codecs and filters this reads patches of 64, 96 and 128 voxels fastest; most of the time goes into copying rows, so unbroken
rows count more than the codec. An axial slice crosses all rows there. Networks of slices read cases whose blocks are 64 x 128
pixels of one slice, in chunks of 8 slices: a slice of 256 x 256 costs them a seventh, a patch of 96 voxels three times as much
(benchmarks/loading.py --slices). Every shape between these that was tried, rows of 8, 16 or 32 voxels, slows patches by 15 to
50 %, so the blocks are chosen when cases are stored. The values are the same, and each file says how it is cut.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from modistill.data.geometry import Geometry, Triple, tuples
from modistill.data.patches import within
from modistill.data.preprocessing import Prepared, Preprocessing
from modistill.data.splits import Split
from modistill.errors import CaseError, FileError, RecipeError
from modistill.files import read_json, sha256, write_bytes, write_json

__all__ = ["FORMAT", "CaseEntry", "Plan", "PreparedCase", "PreparedCohort", "Source", "store_case"]

FORMAT = 1
IMAGES, LABELS, ENTRY, PLAN, SPLIT = "images.b2nd", "labels.b2nd", "case.json", "plan.json", "split.json"
_WHOLE = 2**31 - 1  # rows that are not broken
_PATCHES = (32, 32, _WHOLE), (8, 8, _WHOLE)  # chunk and block, in voxels
_SLICES = (128, 128, 8), (64, 128, 1)
_SAMPLE = 512  # foreground voxels remembered for each class

Source: TypeAlias = tuple[str, int, int]  # path, bytes, time of last change in ns


@dataclass(frozen=True)
class CaseEntry:
    """What `case.json` says.

    Attributes:
        id: name of the case.
        presence: (M,) which modalities it has.
        class_voxels: voxels of each class; index 0 counts the background inside the brain mask.
        foreground: for each class from 1 on, a sample of its voxels as flat indices into the prepared array.
        geometry: the way back to the case's grid.
        notices: what a user should know.
        sources: the files it was made from, so that a changed one is noticed.
        preprocessing: how it was made, as plain values.
        digests: file -> SHA-256.
        format: of the files.
    """

    id: str
    presence: tuple[bool, ...]
    class_voxels: tuple[int, ...]
    foreground: tuple[tuple[int, ...], ...]
    geometry: Geometry
    notices: tuple[str, ...]
    sources: tuple[Source, ...]
    preprocessing: Mapping[str, Any]
    digests: Mapping[str, str]
    format: int = FORMAT

    @property
    def shape(self) -> Triple:
        """(D, H, W) of the prepared arrays."""
        return self.geometry.prepared_shape

    @property
    def voxel_volume_ml(self) -> float:
        """Volume of one prepared voxel."""
        return float(np.prod(self.geometry.prepared_spacing_mm)) / 1000

    def draw_foreground(self, rng: np.random.Generator) -> tuple[int, ...] | None:
        """Index of a foreground voxel: first a class among those the case has, then one of its voxels. None without any."""
        present = [sample for sample in self.foreground if sample]
        if not present:
            return None
        sample = present[rng.integers(len(present))]
        return tuple(int(index) for index in np.unravel_index(sample[rng.integers(len(sample))], self.shape))

    @classmethod
    def load(cls, folder: Path) -> CaseEntry:
        """Read `folder/case.json`.

        Raises:
            FileError: it is absent, damaged or of another version.
        """
        values = read_json(folder / ENTRY)
        try:
            geometry = Geometry.from_json(values["geometry"])
            names = ("presence", "class_voxels", "foreground", "notices", "sources")
            listed = {name: tuples(values[name]) for name in names}
            others = {name: values[name] for name in ("id", "preprocessing", "digests", "format")}
            return cls(geometry=geometry, **listed, **others)
        except (KeyError, TypeError) as error:
            raise FileError(
                f"not a prepared case: {error}", file=folder / ENTRY, remedy="run modistill prepare again"
            ) from error

    def damaged(self, folder: Path) -> str | None:
        """Name of a file whose content is not what was written; None if all is well."""
        for name, digest in self.digests.items():
            if not (folder / name).is_file() or sha256(folder / name) != digest:
                return name
        return None


@dataclass(frozen=True)
class Plan:
    """How a cohort was prepared, and what its training cases look like. What is counted is counted over training cases only.

    Attributes:
        preprocessing: the same for every case, and for every patient later.
        convention: of the label values in the source files.
        classes: names of class indices 1, 2, 3 ...
        class_voxels: voxels of each class, the background inside the brain mask first.
        class_weights: background voxels / voxels of the class; 1 for the background.
        spacing_mm: median voxel size of the prepared arrays.
        shape: median shape of the prepared arrays; `largest` is the largest along each axis.
        cases: number of training cases.
        source: where the cases lay, and `layout` how.
        split: digest of the split.
        versions: of the packages whose numbers these are.
        format: of the files.
    """

    preprocessing: Preprocessing
    convention: str
    classes: tuple[str, ...]
    class_voxels: tuple[int, ...]
    class_weights: tuple[float, ...]
    spacing_mm: tuple[float, ...]
    shape: tuple[int, ...]
    largest: tuple[int, ...]
    cases: int
    source: str
    layout: str
    split: str
    versions: Mapping[str, str]
    format: int = FORMAT

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    @classmethod
    def load(cls, path: Path) -> Plan:
        """Read `plan.json`.

        Raises:
            FileError: it is absent, damaged or of another version.
        """
        if not path.is_file():
            raise FileError("not a prepared cohort: no plan.json", file=path.parent, remedy="run modistill prepare")
        values = read_json(path)
        found = values.get("format") if isinstance(values, dict) else None
        if found != FORMAT:
            raise FileError(f"format {found}, this version reads {FORMAT}", file=path, remedy="run modistill prepare again")
        try:
            preprocessing = Preprocessing.from_json(values.pop("preprocessing"))
            return cls(preprocessing, **{name: tuples(value) for name, value in values.items()})
        except (KeyError, TypeError, RecipeError) as error:
            raise FileError(f"not a plan: {error}", file=path, remedy="run modistill prepare again") from error


@dataclass(frozen=True)
class PreparedCase:
    """A whole case.

    Attributes:
        id: name of the case.
        images: (M, D, H, W) float32, channels as `Preprocessing.modalities`.
        labels: (D, H, W) uint8 class indices.
        presence: (M,) which modalities the case has; the others are zero channels.
        geometry: the way back to the case's grid.
    """

    id: str
    images: NDArray[np.float32]
    labels: NDArray[np.uint8]
    presence: NDArray[np.bool_]
    geometry: Geometry


class PreparedCohort:
    """A folder written by `modistill prepare`. Safe to read from several threads and processes.

    Args:
        folder: the folder.

    Raises:
        FileError: it is no prepared cohort, a damaged one, or one of another version.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.plan = Plan.load(self.folder / PLAN)
        self.split = Split.load(self.folder / SPLIT)
        if self.split.digest != self.plan.split:
            raise FileError("plan.json is about another split", file=self.folder, remedy="run modistill prepare again")
        self._entries: dict[str, CaseEntry] = {}

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(case for ids in self.split.parts.values() for case in ids)

    def ids(self, part: str) -> tuple[str, ...]:
        """Case ids of one part ("train", "validation", "test"), ascending; empty if there is no such part."""
        return self.split[part]

    def entry(self, case: str) -> CaseEntry:
        """What is known about a case without reading its voxels.

        Raises:
            CaseError: no such case.
        """
        if case not in self._entries:
            if case not in self._known:
                raise CaseError(f"not among the {len(self._known)} prepared cases of {self.folder}", case=case)
            self._entries[case] = CaseEntry.load(case_folder(self.folder, case))
        return self._entries[case]

    def read(self, case: str) -> PreparedCase:
        """A whole case.

        Raises:
            CaseError: no such case.
            FileError: a file is damaged.
        """
        entry = self.entry(case)
        images, labels = self.patch(case, (0, 0, 0), entry.shape)
        return PreparedCase(case, images.astype(np.float32), labels, np.array(entry.presence), entry.geometry)

    def patch(self, case: str, start: Triple, size: Triple) -> tuple[NDArray[np.float16], NDArray[np.uint8]]:
        """Read one patch and no more than the blocks it touches.

        Args:
            case: its id.
            start: first corner; may be negative. What lies outside the case is zero and background.
            size: (d, h, w).

        Returns:
            images (M, d, h, w) float16 and labels (d, h, w) uint8.

        Raises:
            CaseError: no such case.
            FileError: a file is damaged.
        """
        slices, padding = within(start, size, self.entry(case).shape)
        folder = case_folder(self.folder, case)
        images = _read(folder / IMAGES, (slice(None), *slices))
        labels = _read(folder / LABELS, slices)
        if any(amount for both in padding for amount in both):
            images, labels = np.pad(images, ((0, 0), *padding)), np.pad(labels, padding)
        return images, labels

    def verify(self) -> None:
        """Compare every file of the cohort with the digest taken when it was written.

        Raises:
            FileError: the first one that differs.
        """
        for case in sorted(self._known):
            folder = case_folder(self.folder, case)
            if name := self.entry(case).damaged(folder):
                raise FileError("absent or changed since it was written", case=case, file=folder / name, remedy="prepare again")


def case_folder(cohort: Path, case: str) -> Path:
    """Where a case lies.

    Raises:
        CaseError: an id that cannot be the name of a folder.
    """
    if Path(case).name != case or case.startswith("."):
        raise CaseError(f"the id {case!r} cannot be the name of a folder", case=case, remedy="rename the case")
    return cohort / "cases" / case


def store_case(
    folder: Path,
    case: str,
    prepared: Prepared,
    preprocessing: Preprocessing,
    sources: Sequence[Source],
    classes: int,
    *,
    slices: bool = False,
) -> None:
    """Write the three files of a case into a folder that exists (and that nobody reads yet).

    Args:
        folder: of the case.
        case: its id.
        prepared: its arrays.
        preprocessing: how they were made.
        sources: from which files.
        classes: number of them, background included.
        slices: in blocks for networks of axial slices, instead of patches.

    Raises:
        CaseError: the case has no reference labels.
        FileError: the disk is full, or a file read back differs.
    """
    labels = prepared.labels
    if labels is None:
        raise CaseError("no reference labels", case=case, remedy="add them; predict takes cases as they are")
    write_bytes(folder / IMAGES, _pack(prepared.images.astype(np.float16), slices))
    write_bytes(folder / LABELS, _pack(labels, slices))
    counts = np.bincount(labels.ravel(), minlength=classes)
    inside = np.count_nonzero(prepared.mask & (labels == 0))
    entry = CaseEntry(
        id=case,
        presence=tuple(bool(there) for there in prepared.presence),
        class_voxels=(int(inside), *(int(count) for count in counts[1:])),
        foreground=tuple(_sample(labels, index) for index in range(1, classes)),
        geometry=prepared.geometry,
        notices=prepared.notices,
        sources=tuple(sources),
        preprocessing=preprocessing.to_json(),
        digests={name: sha256(folder / name) for name in (IMAGES, LABELS)},
    )
    write_json(
        folder / ENTRY,
        {field.name: getattr(entry, field.name) for field in fields(entry)} | {"geometry": entry.geometry.to_json()},
    )


def versions() -> dict[str, str]:
    """Of the packages that a prepared voxel depends on."""
    return {name: metadata.version(name) for name in ("modistill", "numpy", "SimpleITK", "nibabel", "blosc2")}


def _sample(labels: NDArray[np.uint8], value: int) -> tuple[int, ...]:
    """At most `_SAMPLE` voxels of a class, evenly spread over all of them in scan order: no chance is involved."""
    voxels = np.flatnonzero(labels == value)
    if len(voxels) > _SAMPLE:
        voxels = voxels[np.linspace(0, len(voxels) - 1, _SAMPLE).astype(np.intp)]
    return tuple(int(voxel) for voxel in voxels)


def _pack(array: NDArray[Any], slices: bool) -> bytes:
    import blosc2

    channels, shape = array.shape[:-3], array.shape[-3:]
    chunks, blocks = ((*channels, *map(min, shape, edges)) for edges in (_SLICES if slices else _PATCHES))
    settings = {"codec": blosc2.Codec.LZ4, "clevel": 1, "filters": [blosc2.Filter.NOFILTER], "nthreads": 1}
    return bytes(blosc2.asarray(array, chunks=chunks, blocks=blocks, cparams=settings).to_cframe())


def _read(path: Path, box: tuple[slice, ...]) -> NDArray[Any]:
    import blosc2

    try:
        # Opened each time (0.1 ms): an open array is not safe to share between threads, and thousands would stay open.
        return np.asarray(blosc2.open(str(path), mode="r", dparams={"nthreads": 1})[box])
    except (RuntimeError, ValueError, OSError) as error:
        raise FileError(
            f"cannot be read: {error}", case=path.parent.name, file=path, remedy="run modistill prepare again"
        ) from error
