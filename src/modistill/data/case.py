"""A case: one examination of one patient. A modality that was not acquired is simply not there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from modistill.data.volume import Volume, require_same_grid
from modistill.errors import CaseError, ModistillError

__all__ = ["Case"]


@dataclass(frozen=True)
class Case:
    """One examination: the modalities that were acquired, and reference labels if there are any.

    Attributes:
        id: name of the case, unique in its cohort.
        images: modality name -> volume; all on one grid.
        labels: reference label map on the same grid, values in the convention named by `convention`.
        convention: name of the label convention (`modistill.data.naming.conventions`), None where nobody knows.

    Raises:
        CaseError: no modality at all.
        GeometryError: volumes do not lie on one grid.
    """

    id: str
    images: Mapping[str, Volume]
    labels: Volume | None = None
    convention: str | None = None

    def __post_init__(self) -> None:
        if not self.images:
            raise CaseError("no modality found", case=self.id, remedy="give at least one image")
        object.__setattr__(self, "images", MappingProxyType(dict(self.images)))
        first = next(iter(self.images))
        for name, volume in [*self.images.items(), *([("labels", self.labels)] if self.labels is not None else [])]:
            try:
                require_same_grid(self.images[first], volume, reference_name=first, other_name=name)
            except ModistillError as error:
                raise error.at(self.id) from None

    @property
    def grid(self) -> Volume:
        """The first image: stands for the grid that all volumes of the case share."""
        return next(iter(self.images.values()))

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities that are there."""
        return tuple(self.images)

    def without(self, *modalities: str) -> Case:
        """The same case as if these modalities had never been acquired."""
        kept = {name: volume for name, volume in self.images.items() if name not in modalities}
        return Case(self.id, kept, self.labels, self.convention)
