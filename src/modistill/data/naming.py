"""Names of modalities and meanings of label numbers: the conventions of the field, by name."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from modistill.data.regions import Regions
from modistill.errors import LabelError

__all__ = [
    "BRATS_REGIONS",
    "LabelConvention",
    "conventions",
    "count_labels",
    "guess_convention",
    "known_modality",
    "modality_name",
    "modality_names",
]

_ALIASES: Mapping[str, tuple[str, ...]] = {
    "t1": ("t1", "t1n", "t1w", "t1pre"),
    "t1ce": ("t1ce", "t1c", "t1gd", "t1post", "t1km", "t1wce", "cet1", "cet1w"),
    "t2": ("t2", "t2w"),
    "flair": ("flair", "t2f", "fla", "fl", "flr", "t2flair", "flairw"),
    "ct": ("ct",),
    "mr": ("mr", "mri"),
}
_CANONICAL = {alias: name for name, aliases in _ALIASES.items() for alias in aliases}


def known_modality(text: str) -> str | None:
    """The canonical name of a modality, None if the field has no such name.

    Example:
        >>> known_modality("T1-Gd"), known_modality("seg")
        ('t1ce', None)
    """
    return _CANONICAL.get("".join(letter for letter in text.lower() if letter.isalnum()))


def modality_name(text: str) -> str:
    """The canonical name of a modality; names that are not known stay as they are, in lower case.

    Example:
        >>> [modality_name(text) for text in ("T1c", "t2-FLAIR", "t1n", "pet")]
        ['t1ce', 'flair', 't1', 'pet']
    """
    return known_modality(text) or text.lower()


def modality_names(text: str) -> tuple[str, ...]:
    """The canonical names of modalities that are listed.

    Example:
        >>> modality_names("T1c, flair")
        ('t1ce', 'flair')
    """
    return tuple(modality_name(word.strip()) for word in text.split(",") if word.strip())


def count_labels(labels: NDArray[np.generic]) -> dict[float, int]:
    """How many voxels hold each value, ascending. Small whole numbers are counted without sorting.

    Example:
        >>> count_labels(np.array([4, 0, 0, 1]))
        {0.0: 2, 1.0: 1, 4.0: 1}
    """
    if labels.dtype.kind in "iub" and labels.size and int(labels.min()) >= 0 and int(labels.max()) < 1 << 16:
        counts = np.bincount(labels.ravel())
        return {float(value): int(counts[value]) for value in np.flatnonzero(counts)}
    values, numbers = np.unique(labels, return_counts=True)
    return {float(value): int(number) for value, number in zip(values, numbers, strict=True)}


@dataclass(frozen=True)
class LabelConvention:
    """What the numbers in a label map mean.

    Attributes:
        name: as given on the command line and stored in plans and models.
        values: class name -> number in the files. The order of the classes is that of the network's outputs 1, 2, 3 ...
            (0 is the background).
        unions: region name -> class names.
        told_by_values: whether the values in files alone may say that a cohort follows it. Not where many conventions have
            such values: these are named by the layout or by the user.
    """

    name: str
    values: Mapping[str, int]
    unions: Mapping[str, tuple[str, ...]]
    told_by_values: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", MappingProxyType(dict(self.values)))
        object.__setattr__(self, "unions", MappingProxyType(dict(self.unions)))

    @property
    def regions(self) -> Regions:
        """The regions, over the numbers in the files."""
        return Regions({region: {self.values[name] for name in names} for region, names in self.unions.items()})

    @property
    def class_regions(self) -> Regions:
        """The regions, over class indices 1, 2, 3 ... (what prepared cases and networks hold)."""
        order = list(self.values)
        return Regions({region: {order.index(name) + 1 for name in names} for region, names in self.unions.items()})

    def check(self, labels: NDArray[np.generic]) -> None:
        """Refuse a label map with fractions or with values that this convention does not have.

        Raises:
            LabelError: naming the values and how many voxels hold them.
        """
        self.check_counts(count_labels(labels))

    def check_counts(self, counts: Mapping[float, int]) -> None:
        """The same check for values that were counted already (`count_labels`)."""
        if not all(map(math.isfinite, counts)):
            raise LabelError("the label map holds NaN or infinite values", remedy="repair the label map")
        fractions = [value for value in counts if value != round(value)]
        if fractions:
            raise LabelError(
                f"{sum(counts[value] for value in fractions)} voxels hold fractions such as {fractions[0]:g}",
                remedy="resample label maps with nearest neighbour",
            )
        foreign = [value for value in counts if value not in (0, *self.values.values())]
        if foreign:
            listed = ", ".join(f"{value:.0f} ({counts[value]} voxels)" for value in foreign[:5])
            more = f" and {len(foreign) - 5} values more" if len(foreign) > 5 else ""
            fitting = [other.name for other in conventions.values() if other.fits(counts)]
            remedy = f"these values fit {', '.join(fitting)}" if fitting else "check the label map"
            if len(foreign) > 50:
                remedy = "this looks like an image under a label map's name"
            raise LabelError(f"label values outside {self.name}: {listed}{more}", remedy=remedy)

    def fits(self, values: Iterable[object]) -> bool:
        """Whether all these values (0 aside) belong to the convention."""
        return set(map(float, values)) <= {0.0, *map(float, self.values.values())}  # type: ignore[arg-type]

    def to_classes(self, labels: NDArray[np.generic]) -> NDArray[np.uint8]:
        """Numbers of the files -> class indices 0, 1, 2 ... (checked first)."""
        self.check(labels)
        classes = np.zeros(labels.shape, dtype=np.uint8)
        for index, value in enumerate(self.values.values(), start=1):
            classes[labels == value] = index
        return classes

    def from_classes(self, classes: NDArray[np.generic]) -> NDArray[np.uint8]:
        """Class indices 0, 1, 2 ... -> numbers of the files."""
        table = np.array([0, *self.values.values()], dtype=np.uint8)
        return table[classes.astype(np.intp)]


_ORGANS: Mapping[str, tuple[str, ...]] = {name: (name,) for name in ("LIVER", "RIGHT_KIDNEY", "LEFT_KIDNEY", "SPLEEN")}
BRATS_REGIONS: Mapping[str, tuple[str, ...]] = {"WT": ("NCR", "ED", "ET"), "TC": ("NCR", "ET"), "ET": ("ET",)}

conventions: Mapping[str, LabelConvention] = {
    convention.name: convention
    for convention in (
        LabelConvention("brats2021", {"NCR": 1, "ED": 2, "ET": 4}, BRATS_REGIONS),
        LabelConvention("brats2023", {"NCR": 1, "ED": 2, "ET": 3}, BRATS_REGIONS),
        LabelConvention("brats2024", {"NCR": 1, "ED": 2, "ET": 3, "RC": 4}, BRATS_REGIONS),
        LabelConvention("msd_task01", {"NCR": 2, "ED": 1, "ET": 3}, BRATS_REGIONS),
        LabelConvention("nnunet_brats", {"NCR": 2, "ED": 1, "ET": 3}, BRATS_REGIONS),
        LabelConvention("chest", {"TUMOUR": 1}, {"TUMOUR": ("TUMOUR",)}, told_by_values=False),
        LabelConvention(
            "abdomen", {"LIVER": 1, "RIGHT_KIDNEY": 2, "LEFT_KIDNEY": 3, "SPLEEN": 4}, _ORGANS, told_by_values=False
        ),
        LabelConvention("chaos", {"LIVER": 63, "RIGHT_KIDNEY": 126, "LEFT_KIDNEY": 189, "SPLEEN": 252}, _ORGANS),
    )
}


def guess_convention(values: Iterable[float], hint: str | None = None) -> LabelConvention:
    """The convention of a cohort, from all label values found in it.

    Args:
        values: label values found, over all cases.
        hint: what the layout says (file names of BraTS 2023, a dataset.json of MSD, the record of a phantom); taken when it
            fits.

    Raises:
        LabelError: no convention fits, or several do and nothing decides between them.
    """
    found = sorted({float(value) for value in values} - {0.0})
    if hint is not None and conventions[hint].fits(found):
        return conventions[hint]
    if 4.0 in found and 3.0 not in found and conventions["brats2021"].fits(found):
        return conventions["brats2021"]
    fitting = [convention for convention in conventions.values() if convention.fits(found)]
    told = [convention for convention in fitting if convention.told_by_values]
    if len(told) == 1:
        return told[0]
    text = ", ".join(f"{value:g}" for value in found) or "none"
    if not fitting:
        raise LabelError(f"label values {text} fit no known convention", remedy=f"known: {', '.join(conventions)}")
    raise LabelError(
        f"label values {text} fit {', '.join(convention.name for convention in fitting)}",
        remedy="say which with --labels",
    )
