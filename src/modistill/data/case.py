"""A case: one examination of one patient. A modality that was not acquired is simply not there."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from modistill.data.volume import Volume, require_same_grid
from modistill.errors import CaseError, ModistillError

__all__ = ["Case", "not_evidence"]


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

    @property
    def synthetic(self) -> tuple[str, ...]:
        """Names of the modalities whose image a network made, and no scanner."""
        return tuple(name for name, volume in self.images.items() if volume.synthetic)

    def require_real(self, why: str, modalities: Collection[str] | None = None) -> None:
        """Refuse synthetic images where only those of a scanner will do.

        Args:
            why: what it is then not fit for, in words.
            modalities: that must be real; None for all that are there.

        Raises:
            CaseError: one of them is synthetic; with its file.
        """
        for name in self.synthetic:
            if modalities is None or name in modalities:
                native = self.images[name].native
                raise CaseError(
                    f"{name} is synthetic: {why}",
                    case=self.id,
                    file=None if native is None else native.path,
                    remedy="give the real image, or leave it out",
                )

    def without(self, *modalities: str) -> Case:
        """The same case as if these modalities had never been acquired."""
        kept = {name: volume for name, volume in self.images.items() if name not in modalities}
        return Case(self.id, kept, self.labels, self.convention)


def not_evidence(modalities: Sequence[str], made: str = "") -> str:
    """What a reader of synthetic images of these modalities must be told.

    Args:
        modalities: one or more.
        made: by what and from what, if that is to be said.

    Example:
        >>> not_evidence(["t1ce", "t1"])
        't1ce, t1 are synthetic: not evidence of enhancement'
        >>> not_evidence(["t2"], "by utad from flair")
        't2 is synthetic (by utad from flair): not evidence'
    """
    are, how = "is" if len(modalities) == 1 else "are", f" ({made})" if made else ""
    return f"{', '.join(modalities)} {are} synthetic{how}: not evidence{' of enhancement' if 't1ce' in modalities else ''}"
