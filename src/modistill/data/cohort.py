"""What a folder holds, before any image is opened: cases as files, and the faults found on the way."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal, TypeAlias

import numpy as np

from modistill.data.case import Case
from modistill.data.nifti import read_labels, read_volumes
from modistill.data.volume import Volume, require_same_grid
from modistill.errors import CaseError, ModistillError

__all__ = ["CaseFiles", "Cohort", "Fault", "ImageSource", "Severity", "require_contrast"]

Severity: TypeAlias = Literal["error", "warning", "notice"]


@dataclass(frozen=True)
class Fault:
    """One line of a report: what is wrong, where, and what to do about it.

    Attributes:
        case: id of the case, None for the cohort as a whole.
        file: the file or folder at fault.
        reason: what is wrong, with the values found.
        remedy: what the user can do.
        severity: `error`: the case cannot be used; `warning`: it can, but look at it; `notice`: worth knowing.

    Example:
        >>> print(Fault("p01", "t1.nii.gz", "empty file", "fetch it again"))
        p01: t1.nii.gz: empty file (fetch it again)
    """

    case: str | None
    file: str | None
    reason: str
    remedy: str | None = None
    severity: Severity = "error"

    @classmethod
    def of(cls, error: ModistillError, case: str | None = None) -> Fault:
        """The fault that an error reports."""
        return cls(error.case or case, error.file, error.reason, error.remedy)

    def __str__(self) -> str:
        return str(ModistillError(self.reason, case=self.case, file=self.file, remedy=self.remedy))


@dataclass(frozen=True)
class ImageSource:
    """Where one modality of a case lies: a file, and which of its volumes if it holds several."""

    path: Path
    channel: int | None = None


@dataclass(frozen=True)
class CaseFiles:
    """The files of one case.

    Attributes:
        id: name of the case, unique in its cohort.
        images: modality -> file; a modality that was not acquired is not there.
        labels: reference label map, if there is one.
        convention: what the layout says about the meaning of the label values; a hint, checked against the values.
    """

    id: str
    images: Mapping[str, ImageSource]
    labels: Path | None = None
    convention: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "images", MappingProxyType(dict(self.images)))

    def __reduce__(self) -> tuple[object, ...]:
        # the read-only view of a dict cannot be pickled, and cases travel to other processes
        return CaseFiles, (self.id, dict(self.images), self.labels, self.convention)

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities that are there."""
        return tuple(self.images)

    def by_file(self, modalities: Iterable[str] | None = None) -> dict[Path, list[str]]:
        """File -> the modalities it holds (several for a 4-D file), so that no file is opened twice."""
        files: dict[Path, list[str]] = {}
        for name in self.images if modalities is None else modalities:
            files.setdefault(self.images[name].path, []).append(name)
        return files

    def read(self, modalities: Iterable[str] | None = None, with_labels: bool = True) -> Case:
        """Open the files, and only those that are asked for.

        Args:
            modalities: which to read, as far as the case has them; None for all. Other files are not touched.
            with_labels: read the reference labels too, if there are any.

        Raises:
            CaseError: none of these modalities is there, or one holds the same value everywhere.
            FileError: a file is damaged.
            GeometryError: the volumes do not lie on one grid.
            LabelError: the label map holds fractions.
        """
        try:
            images = self._read_images([name for name in self.images if modalities is None or name in set(modalities)])
            labels = read_labels(self.labels) if with_labels and self.labels is not None else None
            self._require_one_grid(images, labels)
            return Case(self.id, images, labels, self.convention)
        except ModistillError as error:
            raise error.at(self.id) from None

    def _read_images(self, names: Sequence[str]) -> dict[str, Volume]:
        if not names:
            raise CaseError(f"has none of the modalities asked for, only {', '.join(self.images) or 'none'}")
        images: dict[str, Volume] = {}
        for path, members in self.by_file(names).items():
            volumes = read_volumes(path, [self.images[name].channel for name in members])
            images.update(zip(members, volumes, strict=True))
        for name, volume in images.items():
            require_contrast(name, volume, self.images[name].path)
        return {name: images[name] for name in names}

    def _require_one_grid(self, images: Mapping[str, Volume], labels: Volume | None) -> None:
        first, *others = images
        for name in others:
            _require_same_grid(images[first], images[name], first, name, self.images[name].path)
        if labels is not None:
            _require_same_grid(images[first], labels, first, "the label map", self.labels)


@dataclass(frozen=True)
class Cohort:
    """What was found under a path.

    Attributes:
        root: the path given.
        layout: name of the layout that was recognised.
        cases: usable so far, by id; their images are not opened yet.
        faults: what was refused or noticed while looking.
    """

    root: Path
    layout: str
    cases: tuple[CaseFiles, ...]
    faults: tuple[Fault, ...] = ()

    @property
    def modalities(self) -> tuple[str, ...]:
        """All modalities that any case has: first the usual ones in their usual order, then others by name."""
        usual = ("t1", "t1ce", "t2", "flair")
        found = {name for case in self.cases for name in case.images}
        return (*(name for name in usual if name in found), *sorted(found - set(usual)))


def require_contrast(name: str, volume: Volume, path: Path) -> None:
    """Refuse a volume that holds one value everywhere: it says nothing about the patient.

    Raises:
        CaseError: with the value.
    """
    value = volume.voxels.flat[0]
    if np.all(volume.voxels == value):
        raise CaseError(
            f"{name} is empty, all voxels are 0" if value == 0 else f"{name} is constant, all voxels are {value:g}",
            file=path,
            remedy="treat it as missing: remove the file",
        )


def _require_same_grid(reference: Volume, other: Volume, reference_name: str, name: str, path: Path | None) -> None:
    try:
        require_same_grid(reference, other, reference_name=reference_name, other_name=name)
    except ModistillError as error:
        error.file = None if path is None else str(path)
        raise
