"""Uncertainty of a segmentation: entropy maps, and the QU-BraTS score that rates them.

**Maps.** Several stochastic answers of a network (Monte-Carlo dropout, an ensemble) give per voxel a mean probability. Its
entropy is the uncertainty (Gal and Ghahramani, https://arxiv.org/abs/1506.02142); what remains of it after the mean entropy of
the single answers is taken away is the mutual information, the part on which the answers disagree (Houlsby et al.,
https://arxiv.org/abs/1112.5745). Maps run from 0 (certain) to 100. **The scale decides the score:** divided by the largest
entropy possible, most maps are dark; divided by the largest entropy found, the same maps are bright, and more is filtered.
Numbers of two scales must not share a table.

**Score.** QU-BraTS (Mehta et al., MELBA 2022:026, https://arxiv.org/abs/2112.10074) leaves out the voxels whose uncertainty is
above a threshold and follows three numbers over the thresholds: Dice of what stays, and the shares of true positives (FTP) and
true negatives (FTN) that were left out. Good uncertainty lifts Dice and filters little that was right. Never read the score
alone: a map that is 0 everywhere scores (Dice + 2) / 3 (`trivial_score`), often more than published maps do.

Differs from the challenge's script: thresholds are 0, 2.5, ..., 100 whatever the NumPy version (under NumPy 2 the script stops
at 97.5 and loses up to 2.5 % of every AUC); it computes no score of the three areas, that is the paper's equation 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from modistill.errors import CaseError, GeometryError, LabelError, RecipeError
from modistill.metrics.overlap import dice

__all__ = [
    "THRESHOLDS",
    "Filtered",
    "QUBraTS",
    "Scale",
    "as_percent",
    "as_probability",
    "entropy",
    "mutual_information",
    "predictive_uncertainty",
    "qu_brats",
    "region_uncertainty",
    "rescaled",
    "trivial_score",
]

Scale: TypeAlias = Literal["theoretical", "case"] | tuple[float, float]

THRESHOLDS = np.linspace(0, 100, 41)
_EPSILON = float(np.finfo(np.float32).eps)  # the script's: a region without true positives filters none of them
_ROUNDING = 1e-3  # probabilities that were summed, averaged or stored as float16 may leave [0, 1] by this much


class Filtered(NamedTuple):
    """What filtering at one threshold does.

    Attributes:
        dice: of the voxels that stay, 0 to 1.
        ftp: share of the true positives that is left out.
        ftn: share of the true negatives that is left out.
    """

    dice: float
    ftp: float
    ftn: float


@dataclass(frozen=True)
class QUBraTS:
    """The QU-BraTS curves of one region of one case, and their areas.

    Attributes:
        thresholds: (41,) rising from 0 to 100; voxels with uncertainty above it are left out.
        dice: (41,) Dice of the voxels that stay; 1 where neither map has any.
        ftp: (41,) share of the true positives that is left out; 0 where there are none.
        ftn: (41,) share of the true negatives that is left out; 0 where there are none.
    """

    thresholds: NDArray[np.float64]
    dice: NDArray[np.float64]
    ftp: NDArray[np.float64]
    ftn: NDArray[np.float64]

    @property
    def dice_auc(self) -> float:
        """Area under the Dice curve, 0 to 1."""
        return self._area(self.dice)

    @property
    def ftp_auc(self) -> float:
        """Area under the curve of filtered true positives, 0 to 1."""
        return self._area(self.ftp)

    @property
    def ftn_auc(self) -> float:
        """Area under the curve of filtered true negatives, 0 to 1."""
        return self._area(self.ftn)

    @property
    def score(self) -> float:
        """`(dice_auc + (1 - ftp_auc) + (1 - ftn_auc)) / 3` (equation 1), 0 to 1: the higher, the better."""
        return (self.dice_auc + (1 - self.ftp_auc) + (1 - self.ftn_auc)) / 3

    def filtered(self, threshold: float) -> Filtered:
        """The three numbers at one threshold; papers show 100, 75, 50 and 25.

        Raises:
            RecipeError: not one of the thresholds.
        """
        places = np.flatnonzero(self.thresholds == threshold)
        if not places.size:
            raise RecipeError(f"{threshold} is no threshold", remedy="choose from 0, 2.5, 5, ..., 100")
        place = int(places[0])
        return Filtered(float(self.dice[place]), float(self.ftp[place]), float(self.ftn[place]))

    def _area(self, curve: NDArray[np.float64]) -> float:
        return float(np.trapezoid(curve, self.thresholds)) / 100


def qu_brats(prediction: NDArray[Any], reference: NDArray[Any], uncertainty: NDArray[Any], brain: NDArray[Any]) -> QUBraTS:
    """QU-BraTS curves of one region (definition: see the module).

    A voxel whose uncertainty equals the threshold stays. Only FTP and FTN look at the brain alone; Dice counts every voxel. Two
    quirks are part of the definition: leaving out a missed voxel is rewarded, and where nothing stays, Dice is 1.

    Args:
        prediction: binary map, any shape (other types: everything that is not 0 belongs to the region).
        reference: binary map of the same shape.
        uncertainty: of the same shape, 0 (certain) to 100; compared in float32, as by the script.
        brain: of the same shape, above 0 inside the brain (a mask, or an image without skull).

    Raises:
        GeometryError: the shapes differ.
        LabelError: the uncertainty has NaN or leaves [0, 100].
        CaseError: the brain is empty.

    Example:
        Four voxels: a hit, a miss, a false alarm and a true negative; the two errors are uncertain.

        >>> curves = qu_brats(np.array([1, 0, 1, 0]), np.array([1, 1, 0, 0]), np.array([0, 60, 60, 0]), np.ones(4))
        >>> curves.filtered(75), curves.filtered(50)
        (Filtered(dice=0.5, ftp=0.0, ftn=0.0), Filtered(dice=1.0, ftp=0.0, ftn=0.0))
        >>> curves.dice_auc, round(curves.score, 3)
        (0.79375, 0.931)
    """
    maps = {"reference": reference, "uncertainty": uncertainty, "brain": brain}
    for name, other in maps.items():
        if other.shape != prediction.shape:
            raise GeometryError(f"prediction has shape {prediction.shape}, {name} {other.shape}")
    predicted, true, inside = prediction.astype(bool), reference.astype(bool), brain > 0
    if not inside.any():
        raise CaseError("the brain is empty", remedy="give a mask or image that is above 0 inside the brain")
    values = as_percent(uncertainty)
    # One look-up instead of 41 comparisons: the lowest threshold at which each voxel stays, then cumulative counts.
    lowest = np.searchsorted(THRESHOLDS.astype(np.float32), values)

    def staying(voxels: NDArray[np.bool_]) -> NDArray[np.int64]:
        return np.bincount(lowest[voxels], minlength=THRESHOLDS.size).cumsum()

    total, shared = staying(predicted) + staying(true), staying(predicted & true)
    overlap = np.divide(2 * shared, total, out=np.ones(THRESHOLDS.size), where=total > 0)
    hits, rejections = staying(predicted & true & inside), staying(~(predicted | true) & inside)
    return QUBraTS(THRESHOLDS.copy(), overlap, _left_out(hits), _left_out(rejections))


def trivial_score(prediction: NDArray[Any], reference: NDArray[Any]) -> float:
    """The score of a map that is 0 everywhere, `(Dice + 2) / 3`: to be printed beside every QU-BraTS score.

    Args:
        prediction: binary map, any shape.
        reference: binary map of the same shape.

    Returns:
        2/3 to 1 (1 where both maps are empty).

    Raises:
        GeometryError: the shapes differ.

    Example:
        >>> round(trivial_score(np.array([1, 1, 0, 0]), np.array([0, 1, 1, 1])), 6)
        0.8
    """
    value = dice(prediction, reference)
    return ((1 if math.isnan(value) else value) + 2) / 3


def entropy(probabilities: NDArray[Any]) -> NDArray[Any]:
    """Shannon entropy over the classes, in nats.

    Args:
        probabilities: (C, ...), sum 1 over the first axis.

    Returns:
        (...), 0 to ln C.

    Raises:
        LabelError: NaN, values outside [0, 1], or sums other than 1.

    Example:
        >>> entropy(np.array([[0.5, 1.0], [0.5, 0.0]])).round(4)
        array([0.6931, 0.    ])
    """
    from scipy.special import entr

    shares = as_probability(probabilities)
    if not np.allclose(shares.sum(axis=0), 1, rtol=0, atol=len(shares) * _ROUNDING):
        raise LabelError("the probabilities of the classes do not sum to 1", remedy="give the softmax over the first axis")
    return np.asarray(entr(shares).sum(axis=0))


def region_uncertainty(probability: NDArray[Any], *, scale: Scale = "theoretical") -> NDArray[Any]:
    """Uncertainty of one region: entropy of "in it or not".

    With `q` the mean probability that a voxel belongs to the region (for regions of several classes the sum of theirs),
    `100 H(q) / ln 2`, `H(q) = -q ln q - (1 - q) ln(1 - q)`.

    Args:
        probability: mean probability of the region, any shape.
        scale: what counts 100. "theoretical": the largest entropy possible, ln 2; "case": the largest of this map, wherever it
            lies; two numbers: the entropies, in nats, that count 0 and 100 (as found in a whole data set).

    Returns:
        0 to 100, of the same shape; float32 for float32.

    Raises:
        LabelError: NaN, or values outside [0, 1].
        RecipeError: an unknown scale, or bounds that do not rise from 0 or more.

    Example:
        >>> region_uncertainty(np.array([0, 0.11, 0.5, 1])).round(1)
        array([  0.,  50., 100.,   0.])
    """
    inside = as_probability(probability)
    return _percent(entropy(np.stack([inside, 1 - inside])), math.log(2), scale)


def predictive_uncertainty(probabilities: NDArray[Any], *, scale: Scale = "theoretical") -> NDArray[Any]:
    """Predictive entropy: entropy of the mean probabilities of all classes, `100 H / ln C`.

    Args:
        probabilities: (C, ...) mean probabilities, two classes or more.
        scale: see `region_uncertainty`; "theoretical" is ln C.

    Returns:
        (...), 0 to 100.

    Raises:
        LabelError: NaN, values outside [0, 1], or sums other than 1.
        RecipeError: a bad scale, or fewer than two classes.

    Example:
        >>> predictive_uncertainty(np.array([[0.25, 1], [0.25, 0], [0.25, 0], [0.25, 0]]))
        array([100.,   0.])
    """
    return _percent(entropy(probabilities), _largest(len(probabilities)), scale)


def mutual_information(
    predictive: NDArray[Any], expected: NDArray[Any], classes: int, *, scale: Scale = "theoretical"
) -> NDArray[Any]:
    """Mutual information of answer and network: predictive entropy minus the mean entropy of the single answers.

    Args:
        predictive: entropy of the mean probabilities, in nats, any shape (`entropy`).
        expected: mean over the answers of their entropies, in nats, of the same shape.
        classes: C, of the probabilities behind both (2 for one region).
        scale: see `region_uncertainty`; "theoretical" is ln C, reached by answers that are certain and all different.

    Returns:
        0 to 100, of the same shape.

    Raises:
        GeometryError: the shapes differ.
        LabelError: NaN, or a mean entropy above the predictive one, which no set of answers has.
        RecipeError: a bad scale, or fewer than two classes.

    Example:
        One answer says (1, 0), the other (0, 1); then both say (0.5, 0.5):

        >>> mutual_information(np.log([2, 2]), np.array([0, np.log(2)]), classes=2)
        array([100.,   0.])
    """
    if predictive.shape != expected.shape:
        raise GeometryError(f"predictive entropy has shape {predictive.shape}, mean entropy {expected.shape}")
    difference = predictive - expected
    if not (difference >= -_ROUNDING).all():
        raise LabelError(
            "the mean entropy exceeds the predictive entropy, or one is NaN", remedy="give the entropy of the mean first"
        )
    return _percent(difference, _largest(classes), scale)


def rescaled(uncertainty: NDArray[Any], scale: Scale) -> NDArray[Any]:
    """A map whose 100 is the largest entropy possible, on another scale.

    Args:
        uncertainty: 0 to 100, any shape (`region_uncertainty` and its kind, as `modistill predict` writes them).
        scale: see `region_uncertainty`; two numbers are the values of this map that count 0 and 100, values beyond are cut off.

    Returns:
        float32, 0 to 100, of the same shape.

    Raises:
        LabelError: NaN, or values outside 0 to 100.
        RecipeError: a bad scale.

    Example:
        >>> rescaled(np.array([0, 10, 20, 40]), "case"), rescaled(np.array([0, 10, 20, 40]), (10, 30))
        (array([  0.,  25.,  50., 100.], dtype=float32), array([  0.,   0.,  50., 100.], dtype=float32))
    """
    values = as_percent(uncertainty)
    return values if scale == "theoretical" else _percent(values, 100.0, scale)  # as it is, to the last bit


def as_percent(values: NDArray[Any]) -> NDArray[np.float32]:
    """Uncertainty as float32.

    Raises:
        LabelError: NaN, or values outside 0 to 100.
    """
    values = values.astype(np.float32, copy=False)
    if values.size and not (values.min() >= 0 and values.max() <= 100):  # NaN fails as well
        raise LabelError(
            f"uncertainty runs from {values.min():g} to {values.max():g}", remedy="it is 0 (certain) to 100 (uncertain)"
        )
    return values


def as_probability(values: NDArray[Any]) -> NDArray[Any]:
    """Probabilities as float32 or float64, with rounding errors (up to 0.001) beyond 0 and 1 cut off.

    Raises:
        LabelError: NaN, or values outside [0, 1].
    """
    values = values.astype(np.result_type(values, np.float32), copy=False)
    if values.size and not (values.min() >= -_ROUNDING and values.max() <= 1 + _ROUNDING):  # NaN fails as well
        raise LabelError(
            f"probabilities run from {values.min():g} to {values.max():g}", remedy="give them after softmax or sigmoid"
        )
    return values.clip(0, 1)


def _left_out(staying: NDArray[np.int64]) -> NDArray[np.float64]:
    """Share of the voxels that is left out at each threshold; at the last one all stay."""
    return np.asarray((staying[-1] - staying) / (staying[-1] + _EPSILON))


def _largest(classes: int) -> float:
    """The largest entropy of so many classes, in nats."""
    if classes < 2:
        raise RecipeError(f"entropy of {classes} class", remedy="give two classes or more (a region: region_uncertainty)")
    return math.log(classes)


def _percent(values: NDArray[Any], largest: float, scale: Scale) -> NDArray[Any]:
    """Entropies, in the unit of the largest possible, on a scale from 0 to 100."""
    if scale == "theoretical":
        low, high = 0.0, largest
    elif scale == "case":
        low, high = 0.0, float(values.max(initial=0)) or 1.0  # certain everywhere: 0 everywhere
    elif isinstance(scale, str) or not (len(scale) == 2 and 0 <= scale[0] < scale[1] < math.inf):
        raise RecipeError(f"scale is {scale!r}", remedy="theoretical, case, or the entropies that count 0 and 100")
    else:
        low, high = map(float, scale)
    return np.asarray((100 * (values - low) / (high - low)).clip(0, 100))
