"""How well probabilities tell a region from the rest, whatever the threshold: ROC curves, and the detection of tumours.

**Voxels.** A voxel is called positive where its probability is at least t. Over all t, the share of the region's voxels so
called (sensitivity) against that of the others (false positive rate) is the receiver operating characteristic. The area
under it is the chance that a voxel of the region has a higher probability than one outside it, a tie counting half: the
Mann-Whitney statistic over its number of pairs (Hanley and McNeil, Radiology 143:29, 1982,
https://doi.org/10.1148/radiology.143.1.7063747).

Voxels are counted in bins of equal width in logit(p), from p = 1e-7 to 1 - 1e-7, as both ends of [0, 1] are crowded; those
of one bin are ties. Counts of several cases add up, so a cohort takes no more memory than a case.

**Uncertainty.** Voxels of one patient are no independent samples. The interval is of the bootstrap over whole patients
(percentile; Efron, Ann. Statist. 7:1, 1979, https://doi.org/10.1214/aos/1176344552).

**Tumours.** At every t, the voxels called positive form components (voxels that touch at a corner belong together), and so
does the reference. A component of either finds one of the other where their intersection over union is at least 0.1, the
usual demand on volumes (Baumgartner et al., nnDetection, MICCAI 2021, https://arxiv.org/abs/2106.00817); mere contact would
let a map that is positive everywhere find everything. A component that finds nothing is a false positive. Sensitivity against
false positives per patient is the free-response ROC (Bunch et al., Proc. SPIE 127:124, 1977,
https://doi.org/10.1117/12.955926).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modistill.errors import GeometryError, ScoreError
from modistill.metrics.surface import bounding_box
from modistill.metrics.uncertainty import as_probability

__all__ = [
    "DETECTION_THRESHOLDS",
    "Detections",
    "VoxelCounts",
    "bootstrap_area",
    "count_voxels",
    "detection_curve",
    "envelope",
    "find_components",
]

BINS = 4096
_LARGEST_LOGIT = 16.0  # 1 - p = 1e-7: float32 tells no more apart near 1
DETECTION_THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(1, 20))
_OVERLAP = 0.1
_AT_ONCE = 256  # resamples of the bootstrap


@dataclass(frozen=True)
class VoxelCounts:
    """Voxels by their probability, in bins of rising probability. `a + b` holds the voxels of both.

    Attributes:
        positives: (B,) voxels of the region.
        negatives: (B,) other voxels.
    """

    positives: NDArray[np.int64]
    negatives: NDArray[np.int64]

    def __add__(self, other: VoxelCounts) -> VoxelCounts:
        """Both together, as if their voxels had been counted at once."""
        return VoxelCounts(self.positives + other.positives, self.negatives + other.negatives)

    @property
    def area(self) -> float:
        """Area under the ROC curve, 0 to 1; NaN where all voxels belong to the region, or none does."""
        return float(_areas(self.positives.astype(float), self.negatives.astype(float)))

    @property
    def curve(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """False positive rate, sensitivity and threshold, each (K,), from (0, 0) at infinity to (1, 1) at probability 0.

        Thresholds between which nothing changes are left out. Rates are NaN where there are no such voxels.
        """
        occupied = np.flatnonzero(self.positives + self.negatives)[::-1]
        rates = [_rates(counts[occupied]) for counts in (self.negatives, self.positives)]
        return rates[0], rates[1], np.concatenate([[math.inf], _lower_edges(len(self.positives))[occupied]])


@dataclass(frozen=True)
class Detections:
    """The tumours of one case that are found, and what is taken for one, at each of `DETECTION_THRESHOLDS`.

    Attributes:
        tumours: their number, components of the reference.
        found: (K,) how many of them are found.
        false: (K,) components that find none.
    """

    tumours: int
    found: NDArray[np.int64]
    false: NDArray[np.int64]


def count_voxels(probability: NDArray[Any], truth: NDArray[Any], *, bins: int = BINS) -> VoxelCounts:
    """Count voxels by probability.

    Args:
        probability: of the region, any shape.
        truth: binary map of the same shape.
        bins: of equal width in logit(p).

    Raises:
        GeometryError: the shapes differ.
        LabelError: probabilities with NaN or outside [0, 1].

    Example:
        One of the two voxels of the region lies above both others, one between them: 3 of 4 pairs are in order.

        >>> count_voxels(np.array([0.1, 0.6, 0.5, 0.9]), np.array([0, 0, 1, 1])).area
        0.75
    """
    if probability.shape != truth.shape:
        raise GeometryError(f"probabilities have shape {probability.shape}, the reference {truth.shape}")
    p, inside = as_probability(probability).ravel(), truth.astype(bool).ravel()
    with np.errstate(divide="ignore"):  # 0 and 1 go to the outermost bins
        logits = np.log(p) - np.log1p(-p)
    shares = (logits.clip(-_LARGEST_LOGIT, _LARGEST_LOGIT) / _LARGEST_LOGIT + 1) / 2
    index = np.minimum((shares * bins).astype(np.intp), bins - 1)
    positives = np.bincount(index[inside], minlength=bins)
    return VoxelCounts(positives, np.bincount(index, minlength=bins) - positives)


def bootstrap_area(
    cases: Sequence[VoxelCounts], *, resamples: int = 9999, seed: int = 0, level: float = 0.95
) -> tuple[float, float] | None:
    """Percentile interval of the pooled area, over patients drawn with replacement.

    Args:
        cases: one a patient, of equal bins.
        resamples: how often a cohort is drawn. One without any voxel of the region has no area and is left out.
        seed: of the draws.
        level: of confidence.

    Returns:
        Lower and upper end; None where fewer than two patients have the region.

    Raises:
        ScoreError: bins differ.
    """
    if len({len(case.positives) for case in cases}) > 1:
        raise ScoreError("voxels were counted in different bins", remedy="count all cases alike")
    if sum(bool(case.positives.any()) for case in cases) < 2:
        return None
    positives, negatives = (np.stack([getattr(case, kind) for case in cases]).astype(float) for kind in _KINDS)
    occupied = (positives + negatives).any(axis=0)
    positives, negatives = positives[:, occupied], negatives[:, occupied]
    rng, areas = np.random.default_rng(seed), []
    for start in range(0, resamples, _AT_ONCE):
        drawn = rng.multinomial(len(cases), np.full(len(cases), 1 / len(cases)), min(_AT_ONCE, resamples - start))
        areas.append(_areas(drawn @ positives, drawn @ negatives))
    tail = (1 - level) / 2
    low, high = np.nanquantile(np.concatenate(areas), (tail, 1 - tail))
    return float(low), float(high)


def find_components(probability: NDArray[Any], truth: NDArray[Any]) -> Detections:
    """Tumours found and false components of one case, at `DETECTION_THRESHOLDS`.

    Args:
        probability: of the region, (D, H, W) or fewer axes.
        truth: binary map of the same shape.

    Raises:
        GeometryError: the shapes differ.
        LabelError: probabilities with NaN or outside [0, 1].

    Example:
        At 0.05, 0.5 and 0.8:

        >>> found = find_components(np.array([0.9, 0.0, 0.3, 0.0, 0.7]), np.array([1, 0, 0, 0, 0]))
        >>> found.found[[0, 9, 15]], found.false[[0, 9, 15]]
        (array([1, 1, 1]), array([2, 1, 0]))
    """
    if probability.shape != truth.shape:
        raise GeometryError(f"probabilities have shape {probability.shape}, the reference {truth.shape}")
    p = as_probability(probability)
    tumours, count = _components(truth.astype(bool))
    sizes = np.bincount(tumours.ravel(), minlength=count + 1)
    found, false = [], []
    for threshold in DETECTION_THRESHOLDS:  # rising, so that what has to be looked at shrinks
        box = bounding_box(p >= threshold)
        p, tumours = p[box], tumours[box]
        components, number = _components(p >= threshold)
        own = np.bincount(components.ravel(), minlength=number + 1)
        both = (components > 0) & (tumours > 0)
        (one, other), shared = np.unique(np.stack([components[both], tumours[both]]), axis=1, return_counts=True)
        hits = shared >= _OVERLAP * (own[one] + sizes[other] - shared)
        found.append(len(np.unique(other[hits])))
        false.append(number - len(np.unique(one[hits])))
    return Detections(count, np.array(found), np.array(false))


def detection_curve(cases: Sequence[Detections]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """False positives per patient and sensitivity, each (K,), at `DETECTION_THRESHOLDS`.

    Sensitivity is that over all tumours of all patients; NaN where there are none.
    """
    tumours = sum(case.tumours for case in cases)
    found = np.sum([case.found for case in cases], axis=0) / (tumours or math.nan)
    return np.mean([case.false for case in cases], axis=0), found


def envelope(false: NDArray[np.float64], sensitivity: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The best sensitivity for at most so many false positives, as steps from (0, 0) on.

    At low thresholds components merge, and both false positives and sensitivity may fall again: no other point of the
    curve is as good as the ones that are kept.

    Args:
        false: (K,) false positives per patient.
        sensitivity: (K,).

    Example:
        >>> envelope(np.array([9.0, 4.0, 4.0, 1.0]), np.array([0.5, 0.8, 0.6, 0.3]))
        (array([0., 1., 4.]), array([0. , 0.3, 0.8]))
    """
    order = np.lexsort((-sensitivity, false))
    false, sensitivity = np.concatenate([[0], false[order]]), np.concatenate([[0], sensitivity[order]])
    better = np.flatnonzero(np.diff(np.maximum.accumulate(sensitivity), prepend=-1) > 0)
    return false[better], sensitivity[better]


_KINDS = ("positives", "negatives")


def _areas(positives: NDArray[np.float64], negatives: NDArray[np.float64]) -> NDArray[np.float64]:
    """Area of each row of counts (..., B); NaN where a kind is absent."""
    total = positives.sum(axis=-1)
    above = total[..., None] - np.cumsum(positives, axis=-1)
    wins = (negatives * (above + positives / 2)).sum(axis=-1)
    pairs = total * negatives.sum(axis=-1)
    return np.asarray(np.divide(wins, pairs, out=np.full_like(pairs, math.nan), where=pairs > 0))


def _rates(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Running share of the whole, from 0 to 1."""
    total = int(counts.sum())
    return np.concatenate([[0], np.cumsum(counts)]) / (total or math.nan)


def _lower_edges(bins: int) -> NDArray[np.float64]:
    """The smallest probability of each bin, (B,)."""
    from scipy.special import expit

    edges = expit(np.linspace(-_LARGEST_LOGIT, _LARGEST_LOGIT, bins, endpoint=False))
    edges[0] = 0
    return np.asarray(edges)


def _components(region: NDArray[np.bool_]) -> tuple[NDArray[Any], int]:
    """Each voxel's component, 1, 2, ..., and their number; neighbours share a corner at least."""
    from scipy.ndimage import generate_binary_structure, label

    numbered, count = label(region, generate_binary_structure(region.ndim, region.ndim))
    return numbered, int(count)
