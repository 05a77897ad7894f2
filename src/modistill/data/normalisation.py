"""How the numbers of an image become those a network reads.

- "zscore": minus mean, by standard deviation, inside the mask.
- "hadnet" (Vadacchino et al., MIDL 2021): z-score, clipped above at 3, then (z - min z) / (3 - min z): 0 to 1.
- "percentiles": the 0.5th and 99.5th percentile inside the mask become 0 and 1; clipped.
- two numbers, such as -1000, 500 for CT in Hounsfield units: they become 0 and 1; clipped. The same for every patient.
- "landmarks": histogram standardisation (Nyul and Udupa, Magnetic Resonance in Medicine 42:1072, 1999,
  https://doi.org/10.1002/(SICI)1522-2594(199912)42:6%3C1072::AID-MRM11%3E3.0.CO;2-M). An image's landmarks are its least
  value, and the 1st, 10th, 20th ... 90th and 99th percentile of what is brighter than its mean (so that air does not count).
  A piecewise linear map takes them to the standard landmarks: the mean landmarks of the training images, each image scaled so
  that its first is 0 and its last 1. Clipped to [0, 1].

All but the z-score end in [0, 1] with 0 for the darkest, as is what lies outside the mask and in the padding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from modistill.data.naming import modality_name
from modistill.errors import CaseError, RecipeError

__all__ = [
    "NAMES",
    "Landmarks",
    "Normalisation",
    "Normalisations",
    "landmarks",
    "normalise",
    "parse",
    "scale_of",
    "spell",
    "standard_landmarks",
]

Normalisation: TypeAlias = str | tuple[float, float]
Normalisations: TypeAlias = Normalisation | Mapping[str, Normalisation]
Landmarks: TypeAlias = tuple[float, ...]

NAMES = ("zscore", "hadnet", "percentiles", "landmarks")
_CLIP = 3.0  # standard deviations; HAD-Net clips above only
_PERCENTILES = (1, *range(10, 100, 10), 99)
_TAIL = 0.5  # per cent that "percentiles" cuts off at either end


def normalise(
    voxels: NDArray[np.float32],
    inside: NDArray[np.bool_],
    how: Normalisation,
    *,
    standard: Landmarks | None = None,
    modality: str = "image",
    case: str | None = None,
) -> tuple[NDArray[np.float32], float]:
    """An image as a network reads it; 0 outside the mask.

    Args:
        voxels: (D, H, W).
        inside: (D, H, W) mask.
        how: see the module.
        standard: landmarks of the training images, for "landmarks".
        modality: for messages.
        case: for messages.

    Returns:
        The image, and its largest absolute z-score, by which a damaged voxel shows.

    Raises:
        CaseError: the image is constant inside the mask.
        RecipeError: "landmarks" without standard landmarks.
    """
    values = voxels[inside]
    mean, deviation = values.mean(dtype=np.float64), values.std(dtype=np.float64)
    if not deviation > 0:
        raise CaseError(
            f"{modality} is constant inside the brain", case=case, remedy="treat it as missing: remove or replace the file"
        )
    scores = ((voxels - mean) / deviation).astype(np.float32)
    largest = max(float(scores[inside].max()), -float(scores[inside].min()))
    if how == "zscore":
        found = scores
    elif how == "hadnet":
        low = min(float(scores.min()), _CLIP - 1e-6)
        found = (np.minimum(scores, np.float32(_CLIP)) - np.float32(low)) / np.float32(_CLIP - low)
    elif how == "landmarks":
        if standard is None:
            raise RecipeError(f"no landmarks of {modality} are known", remedy="they come with the prepared training cases")
        found = np.interp(voxels, *_rising(landmarks(values), standard)).astype(np.float32)
    else:
        darkest, brightest = _bounds(values) if isinstance(how, str) else how
        found = ((voxels - np.float32(darkest)) / np.float32(brightest - darkest)).clip(0, 1)
    return np.where(inside, found, np.float32(0)), largest


def landmarks(values: NDArray[Any]) -> Landmarks:
    """The twelve landmarks of an image, ascending: see the module.

    Args:
        values: of the voxels inside the mask, any shape, not all equal.
    """
    bright = values[values > values.mean(dtype=np.float64)]
    return (float(values.min()), *(float(p) for p in np.percentile(bright, _PERCENTILES)))


def standard_landmarks(images: Sequence[Landmarks]) -> Landmarks:
    """The mean of the landmarks of several images, each scaled to run from 0 to 1.

    Example:
        >>> standard_landmarks([(0.0, 5.0, 10.0), (100.0, 110.0, 200.0)])
        (0.0, 0.3, 1.0)
    """
    found = np.array(images, dtype=np.float64)
    scaled = (found - found[:, :1]) / (found[:, -1:] - found[:, :1])
    return tuple(round(float(value), 6) for value in scaled.mean(axis=0))


def parse(text: str) -> Normalisations:
    """What `spell` wrote, or a user on the command line; modalities by any of their names.

    Raises:
        RecipeError: it cannot be understood, or names a modality twice.

    Example:
        >>> parse("hadnet"), parse("CT=-1000:500,MRI=landmarks")
        ('hadnet', {'ct': (-1000.0, 500.0), 'mr': 'landmarks'})
    """
    try:
        if "=" not in text:
            return _one(text)
        pairs = [(modality_name(name.strip()), _one(how)) for name, how in (part.split("=") for part in text.split(","))]
    except ValueError as error:
        raise RecipeError(
            f"normalisation {text!r} cannot be understood", remedy=f"{', '.join(NAMES)}, LOW:HIGH, or ct=-1000:500,mr=landmarks"
        ) from error
    names = [name for name, _ in pairs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise RecipeError(f"normalisation {text!r} names {twice[0]} twice", remedy="give each modality one normalisation")
    return dict(pairs)


def spell(how: Normalisations) -> str:
    """The inverse of `parse`, to the last digit.

    Example:
        >>> spell({"ct": (-1000, 500), "mr": "landmarks"})
        'ct=-1000:500,mr=landmarks'
    """
    if isinstance(how, Mapping):
        return ",".join(f"{name}={spell(one)}" for name, one in how.items())
    return how if isinstance(how, str) else ":".join(repr(float(bound)).removesuffix(".0") for bound in how)


def scale_of(how: Normalisation) -> tuple[float, float]:
    """What the 0 and the 1 of a normalised image stand for: the two numbers of a window, else 0 and 1.

    Raises:
        RecipeError: z-scores, which have neither a lowest nor a highest value.

    Example:
        >>> scale_of((-1000.0, 500.0)), scale_of("landmarks")
        ((-1000.0, 500.0), (0.0, 1.0))
    """
    if how == "zscore":
        raise RecipeError(
            "z-scores have no lowest and no highest value", remedy=f"normalise by {', '.join(NAMES[1:])} or LOW:HIGH"
        )
    return (0.0, 1.0) if isinstance(how, str) else how


def _one(text: str) -> Normalisation:
    text = text.strip()
    if ":" not in text:
        return text
    low, high = (float(bound) for bound in text.split(":"))
    return low, high


def _bounds(values: NDArray[np.float32]) -> tuple[float, float]:
    """The two percentiles of "percentiles"; the extremes where nearly all values are equal."""
    low, high = (float(p) for p in np.percentile(values, (_TAIL, 100 - _TAIL)))
    return (low, high) if low < high else (float(values.min()), float(values.max()))


def _rising(places: Sequence[float], targets: Sequence[float]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Both without the places that do not rise (an image of few values has equal percentiles); the last of equals counts."""
    found, last = np.unique(np.array(places)[::-1], return_index=True)
    return found, np.array(targets, dtype=np.float64)[::-1][last]
