"""From a case as it was acquired to the array a network reads, and back again.

0. Divide the modalities in `n4` by their bias field (`modistill.data.bias`), if any are named.
1. Brain mask: voxels that are non-zero in every *available* modality with a zero background. A modality has one when most
   voxels on the six faces of its volume are exactly zero (skull-stripped, or air set to zero); CT and unstripped MR have
   none. If no available modality has one, the mask is the whole volume. `within="lungs"` ends it with the axial slices that
   show lung in an available CT (`modistill.data.lungs`); a case without such a CT, or without lungs in it, stays whole.
2. Crop to the bounding box of the mask.
3. Normalise each modality inside the mask (`modistill.data.normalisation`); outside it is 0.
4. Resample to `spacing_mm`, if one is asked for: images linearly, mask and labels to the nearest voxel. The new grid has the
   same centre and covers the box.
5. Pad with zeros, centred, to `size`, if one is asked for (an odd remainder goes to the end). A larger case is cut, centred.

A privileged modality plays no part in steps 1, 2, 4, 5 nor in the channels of the others: a patient who lacks it is prepared
to the same bits. (A training case of an unpaired cohort may have nothing else; then everything rests on it, see `for_subset`.)
`Geometry` records every step, and `Preprocessing.restore` undoes them onto the grid of the case.

HAD-Net's preparation (Vadacchino et al., MIDL 2021) differs here from the authors' tool in two points: the mask uses the
available modalities only (theirs opens the privileged file too, so it cannot run on the patients it is for), and voxels outside
the mask are zero as the paper says (theirs keep a value where one modality is non-zero). Their 160 x 192 x 160 counts the axes
as (z, y, x): (D, H, W) here has the same numbers.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from modistill.data.bias import correct_bias
from modistill.data.case import Case
from modistill.data.geometry import Geometry, Triple, centred, triple, tuples
from modistill.data.lungs import lung_mask, lung_slices
from modistill.data.naming import LabelConvention, conventions
from modistill.data.normalisation import NAMES, Landmarks, Normalisation, Normalisations, landmarks, normalise
from modistill.data.volume import Volume, require_same_grid
from modistill.errors import CaseError, LabelError, RecipeError

__all__ = ["Prepared", "Preprocessing", "brain_mask"]

Images: TypeAlias = NDArray[np.float32]
Mask: TypeAlias = NDArray[np.bool_]

_EXTREME = 50.0  # a z-score beyond this is a damaged voxel, not anatomy


@dataclass(frozen=True)
class Prepared:
    """A case as a network reads it.

    Attributes:
        images: (M, D, H, W) float32 in the order of `Preprocessing.modalities`; a modality the case lacks is a zero channel.
        presence: (M,) which modalities the case has.
        labels: (D, H, W) class indices 0, 1, 2 ...; None if the case has no reference.
        mask: (D, H, W) brain mask; all true where the images have no zero background.
        geometry: the way back.
        notices: what a user should know about the case, one line each.
    """

    images: Images
    presence: Mask
    labels: NDArray[np.uint8] | None
    mask: Mask
    geometry: Geometry
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Preprocessing:
    """How every case of a cohort is prepared, at training and at test time.

    Args:
        modalities: all modalities of training, in channel order.
        available: those that exist at test time; mask and crop depend on nothing else.
        normalisation: of all modalities, or modality -> its own (`modistill.data.normalisation`).
        spacing_mm: voxel size to resample to; None keeps each case's own.
        size: (D, H, W) in voxels to pad to; None keeps each case's own.
        crop: cut to the bounding box of the brain mask.
        convention: name of the label convention; None takes what each case says.
        landmarks: modality -> standard landmarks of its training images, where it is normalised by them; `prepare` finds them.
        within: "lungs" keeps the axial slices from the first to the last that shows lung in `ct`; elsewhere is background.
        n4: modalities whose bias field is taken out.

    Raises:
        RecipeError: a value that makes no sense, with the ones that do.
    """

    modalities: tuple[str, ...]
    available: tuple[str, ...]
    normalisation: Normalisations = "zscore"
    spacing_mm: tuple[float, float, float] | None = None
    size: Triple | None = None
    crop: bool = True
    convention: str | None = None
    landmarks: Mapping[str, Landmarks] = field(default_factory=dict)
    within: Literal["lungs"] | None = None
    n4: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("modalities", "available", "spacing_mm", "size", "n4"):
            object.__setattr__(self, name, tuples(getattr(self, name)))
        for name in ("modalities", "available"):
            listed = getattr(self, name)
            if not listed or len(set(listed)) != len(listed):
                raise RecipeError(f"{name} must name each modality once, and at least one; got {list(listed)}")
        if foreign := [name for name in self.available if name not in self.modalities]:
            raise RecipeError(f"available modality {foreign[0]} is not among the modalities {', '.join(self.modalities)}")
        self._take_normalisation()
        for name in ("spacing_mm", "size"):
            values = getattr(self, name)
            if values is not None and (len(values) != 3 or not all(np.isfinite(value) and value > 0 for value in values)):
                raise RecipeError(f"{name} needs three positive numbers, got {list(values)}")
        if self.convention is not None and self.convention not in conventions:
            raise RecipeError(f"unknown label convention {self.convention!r}", remedy=f"known: {', '.join(conventions)}")
        if self.within not in (None, "lungs"):
            raise RecipeError(f"within is {self.within!r}", remedy="lungs, or nothing")
        object.__setattr__(self, "n4", tuple(name for name in dict.fromkeys(self.n4) if name in self.modalities))

    def _take_normalisation(self) -> None:
        """Plain values as they come from a file or a recipe; every modality must find its own."""
        given = self.normalisation
        listed: Mapping[str, Any] = given if isinstance(given, Mapping) else {"": given}
        checked = {name: _checked(how) for name, how in listed.items()}
        if isinstance(given, Mapping):
            if lacking := [name for name in self.modalities if name not in checked]:
                raise RecipeError(f"normalisation says nothing of {', '.join(lacking)}", remedy="name every modality, or none")
            object.__setattr__(self, "normalisation", {name: checked[name] for name in self.modalities})
        else:
            object.__setattr__(self, "normalisation", checked[""])
        kept = {name: tuple(map(float, found)) for name, found in self.landmarks.items() if name in self.modalities}
        object.__setattr__(self, "landmarks", kept)

    def normalisation_of(self, modality: str) -> Normalisation:
        """How this modality is normalised."""
        return self.normalisation[modality] if isinstance(self.normalisation, Mapping) else self.normalisation

    @property
    def by_landmarks(self) -> tuple[str, ...]:
        """The modalities whose normalisation rests on the training images."""
        return tuple(name for name in self.modalities if self.normalisation_of(name) == "landmarks")

    def to_json(self) -> dict[str, Any]:
        """As plain values, readable in a plan or a model card."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Preprocessing:
        """The inverse of `to_json`, also after a journey through a JSON file.

        Raises:
            RecipeError: a key that is not known, or one that is needed and not there.
        """
        try:
            return cls(**values)
        except TypeError as error:
            raise RecipeError(f"preprocessing: {error}", remedy="written by another version? prepare the data again") from error

    def for_patients(self) -> Preprocessing:
        """The same preprocessing at test time: privileged modalities are not even looked at."""
        return replace(self, modalities=self.available)

    def alone(self, modality: str) -> Preprocessing:
        """The same for one modality, as if no other had ever been acquired."""
        return replace(self, modalities=(modality,), available=(modality,))

    def for_subset(self, there: Collection[str]) -> Preprocessing:
        """The same for a case that has only these: mask and crop rest on those of the available modalities, else on all."""
        kept = tuple(name for name in self.available if name in there)
        return replace(self, available=kept or tuple(name for name in self.modalities if name in there))

    def apply(self, case: Case, *, training: bool = False) -> Prepared:
        """Prepare one case.

        Args:
            case: modalities outside `modalities` are ignored.
            training: refuse what inference can live with (a case larger than `size`).

        Raises:
            CaseError: no available modality, an empty brain mask, a constant modality, or larger than `size` in training.
            LabelError: label values outside the convention, or no convention known.
        """
        case = self._corrected(case)
        mask, notices = self._mask(case)
        geometry = self._geometry(self._grid(case), mask)
        if training and geometry.is_cut:
            sizes = ["x".join(map(str, shape)) for shape in (geometry.resampled, geometry.prepared_shape)]
            raise CaseError(f"{sizes[0]} voxels do not fit size {sizes[1]}", case=case.id, remedy="train with a larger size")
        inside = mask[geometry.slices]
        images = np.zeros((len(self.modalities), *geometry.prepared_shape), dtype=np.float32)
        prepared_mask = geometry.forward(inside.astype(np.uint8)).astype(bool)
        for channel, name in zip(images, self.modalities, strict=True):
            if name in case.images:
                voxels = case.images[name].voxels[geometry.slices].astype(np.float32)
                how, standard = self.normalisation_of(name), self.landmarks.get(name)
                normalised, extreme = normalise(voxels, inside, how, standard=standard, modality=name, case=case.id)
                channel[:] = np.where(prepared_mask, geometry.forward(normalised), 0)
                if extreme > _EXTREME:
                    notices.append(f"{name} holds a voxel {extreme:.0f} standard deviations from the mean")
        presence = np.array([name in case.images for name in self.modalities])
        labels = self._labels(case, geometry, notices)
        return Prepared(images, presence, labels, prepared_mask, geometry, tuple(notices))

    def landmarks_of(self, case: Case) -> dict[str, Landmarks]:
        """The landmarks of a training case in the modalities that are standardised by them.

        Raises:
            CaseError: no available modality, or an empty brain mask.
        """
        case = self._corrected(case)
        mask, _ = self._mask(case)
        return {name: landmarks(case.images[name].voxels[mask]) for name in self.by_landmarks if name in case.images}

    def restore(self, maps: NDArray[Any], geometry: Geometry, outside: ArrayLike = 0) -> NDArray[Any]:
        """Bring maps from the prepared grid onto the canonical grid of the case: the inverse of crop, pad and resampling.

        Args:
            maps: (C, d, h, w); fractions are resampled linearly, integers to the nearest voxel.
            geometry: of the prepared case.
            outside: value of voxels the prepared grid does not cover: one number, or one a channel (probabilities: 1 for the
                background, 0 for the others).

        Returns:
            (C, D, H, W) of the same dtype. Without resampling, voxels that were not cut come back bit for bit.

        Raises:
            GeometryError: the maps do not have the prepared shape.
        """
        fill = np.broadcast_to(np.asarray(outside, dtype=maps.dtype), (len(maps),))
        return np.stack([geometry.backward(channel, value) for channel, value in zip(maps, fill, strict=True)])

    def _grid(self, case: Case) -> Volume:
        """The first available image: the grid may not depend on a privileged file, not even within the tolerance."""
        for name in self.available:
            if name in case.images:
                return case.images[name]
        raise CaseError(
            f"has {', '.join(case.modalities)}, none of the available modalities {', '.join(self.available)}", case=case.id
        )

    def _corrected(self, case: Case) -> Case:
        """The case without the bias fields of the modalities in `n4`."""
        images = dict(case.images)
        for name in self.n4:
            if name in images:
                found = correct_bias(images[name].voxels, images[name].spacing_mm, modality=name, case=case.id)
                images[name] = images[name].with_voxels(found)
        return replace(case, images=images)

    def _mask(self, case: Case) -> tuple[Mask, list[str]]:
        """The brain mask, of the lungs' slices where these are asked for, and what a user should know about it."""
        self._grid(case)
        mask = brain_mask({name: case.images[name].voxels for name in self.available if name in case.images}, case=case.id)
        if self.within is None or "ct" not in self.available or "ct" not in case.images:
            return mask, []
        ct = case.images["ct"]
        (shown,) = np.nonzero(lung_slices(mask & lung_mask(ct.voxels, ct.spacing_mm)))
        if not len(shown):
            return mask, ["no lungs found in ct: all slices are kept"]
        mask[..., : shown[0]] = mask[..., shown[-1] + 1 :] = False
        return mask, []

    def _geometry(self, grid: Volume, mask: Mask) -> Geometry:
        box = _bounding_box(mask) if self.crop else tuple((0, n) for n in grid.shape)
        spacing = triple(round(size, 6) for size in grid.spacing_mm)
        shape = triple(stop - start for start, stop in box)
        target = spacing
        if self.spacing_mm is not None and not np.allclose(spacing, self.spacing_mm, rtol=1e-3, atol=0):
            target = self.spacing_mm
            # Rounded up, so that the new grid covers the box and the way back never reads beyond it.
            extents = zip(shape, spacing, target, strict=True)
            shape = triple(max(1, int(np.ceil(n * old / new - 1e-6))) for n, old, new in extents)
        pad = tuple(centred(n, m) for n, m in zip(shape, self.size or shape, strict=True))
        return Geometry(grid.shape, spacing, box, shape, target, pad)

    def _labels(self, case: Case, geometry: Geometry, notices: list[str]) -> NDArray[np.uint8] | None:
        if case.labels is None:
            return None
        require_same_grid(self._grid(case), case.labels, reference_name=self.available[0], other_name="labels")
        try:
            classes = self._convention(case).to_classes(case.labels.voxels)
        except LabelError as error:
            raise error.at(case.id) from None
        box = classes[geometry.slices]
        if lost := int(np.count_nonzero(classes) - np.count_nonzero(box)):
            notices.append(f"{lost} labelled voxels lie outside the crop")
        return geometry.forward(box)

    def _convention(self, case: Case) -> LabelConvention:
        """What the user said; else what the case's layout says."""
        name = self.convention or case.convention
        if name is None:
            raise LabelError("nobody says which convention the labels follow", remedy="give --labels")
        return conventions[name]


def brain_mask(images: Mapping[str, NDArray[Any]], *, case: str | None = None) -> Mask:
    """Voxels that are non-zero in every image with a zero background; all voxels if no image has one.

    Args:
        images: modality -> (D, H, W); pass available modalities only.
        case: id, for the message.

    Raises:
        CaseError: the intersection is empty.
    """
    first = next(iter(images.values()))
    mask = np.ones(first.shape, dtype=bool)
    stripped = [name for name, voxels in images.items() if _has_zero_background(voxels)]
    for name in stripped:
        mask &= images[name] != 0
    if not mask.any():
        empty = next((name for name in stripped if not images[name].any()), None)
        reason = f"{empty} is zero everywhere" if empty else f"no voxel is non-zero in all of {', '.join(stripped)}"
        raise CaseError(f"{reason}: the brain mask is empty", case=case, remedy="look at the images, or leave that one out")
    return mask


def _has_zero_background(voxels: NDArray[Any]) -> bool:
    faces = [np.take(voxels, end, axis=axis) for axis in range(3) for end in (0, -1)]
    return 2 * sum(int(np.count_nonzero(face == 0)) for face in faces) > sum(int(face.size) for face in faces)


def _bounding_box(mask: Mask) -> tuple[tuple[int, int], ...]:
    box = []
    for axis in range(3):
        (hits,) = np.nonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        box.append((int(hits[0]), int(hits[-1]) + 1))
    return tuple(box)


def _checked(how: Any) -> Normalisation:
    """A normalisation that is known.

    Raises:
        RecipeError: it is not.
    """
    if isinstance(how, str) and how in NAMES:
        return how
    if not isinstance(how, str) and isinstance(how, Sequence) and len(how) == 2 and how[0] < how[1]:
        return float(how[0]), float(how[1])
    raise RecipeError(
        f"unknown normalisation {how!r}", remedy=f"known: {', '.join(NAMES)}, or two rising numbers such as -1000, 500"
    )
