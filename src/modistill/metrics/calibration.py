"""Are the probabilities true, and does the uncertainty know which cases failed?

**Calibration** looks at voxels: of those to which a region is given with probability 0.7, seven in ten should belong to it.
Reliability diagram and expected calibration error (ECE) follow Guo et al., "On Calibration of Modern Neural Networks" (ICML
2017, https://arxiv.org/abs/1706.04599), with the probability of the region in place of their confidence in the predicted class.
Most voxels of an image are easy background, so ECE and Brier score depend on the mask: name it with the number.

**Failure ranking** looks at cases: sent to a human in the order of their uncertainty, how soon does the risk of the others
fall? Risk-coverage curve: Geifman and El-Yaniv (NeurIPS 2017, https://arxiv.org/abs/1705.08500); area under it (AURC) and its
excess over the best possible order (E-AURC): Geifman, Uziel and El-Yaniv (ICLR 2019, https://arxiv.org/abs/1805.08206); for
segmentations, with 1 - Dice as risk: Zenk et al. (Medical Image Analysis 2025, https://arxiv.org/abs/2406.03323).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modistill.errors import CaseError, GeometryError, RecipeError, ScoreError
from modistill.metrics.uncertainty import as_probability

__all__ = ["AURC", "Bins", "aurc", "brier", "ece", "reliability", "risk_coverage"]


@dataclass(frozen=True)
class Bins:
    """Voxels gathered by their probability in B bins of equal width. `a + b` holds the voxels of both.

    Attributes:
        counts: (B,) number of voxels.
        probability_sums: (B,) sum of their probabilities.
        positives: (B,) how many belong to the region.
    """

    counts: NDArray[np.int64]
    probability_sums: NDArray[np.float64]
    positives: NDArray[np.int64]

    def __add__(self, other: Bins) -> Bins:
        """Both together, as if their voxels had been gathered at once.

        Raises:
            ScoreError: other bins.
        """
        if len(self.counts) != len(other.counts):
            raise ScoreError(f"bins differ: {len(self.counts)} and {len(other.counts)}", remedy="gather all cases in as many")
        return Bins(
            self.counts + other.counts,
            self.probability_sums + other.probability_sums,
            self.positives + other.positives,
        )

    @property
    def edges(self) -> NDArray[np.float64]:
        """(B + 1,) from 0 to 1; a bin holds its upper edge, the first one 0 as well."""
        return _edges(len(self.counts))

    @property
    def mean_probability(self) -> NDArray[np.float64]:
        """(B,) mean probability of the voxels of each bin (its confidence); NaN where there are none."""
        return _ratio(self.probability_sums, self.counts)

    @property
    def observed_frequency(self) -> NDArray[np.float64]:
        """(B,) share of the voxels of each bin that belong to the region; NaN where there are none."""
        return _ratio(self.positives, self.counts)

    @property
    def ece(self) -> float:
        """Expected calibration error, `sum_b (n_b / n) |observed_b - mean probability_b|`, 0 to 1; NaN without voxels."""
        voxels = int(self.counts.sum())
        return float(np.abs(self.positives - self.probability_sums).sum()) / voxels if voxels else float("nan")


@dataclass(frozen=True)
class AURC:
    """Area under the risk-coverage curve, beside what it can be.

    Attributes:
        value: of the confidence given; the lower, the better.
        best: of the order by true risk (the oracle).
        random: of a random order, in the mean: the mean risk.
    """

    value: float
    best: float
    random: float

    @property
    def excess(self) -> float:
        """E-AURC, `value - best`: 0 for the best order."""
        return self.value - self.best


def reliability(probability: NDArray[Any], truth: NDArray[Any], *, bins: int = 15, mask: NDArray[Any] | None = None) -> Bins:
    """Probabilities of a region beside how often they came true, for a reliability diagram.

    Add the bins of all cases for the diagram, and the ECE, of a cohort.

    Args:
        probability: of the region, any shape.
        truth: binary map of the same shape.
        bins: number of bins of equal width (15 in Guo et al.).
        mask: only voxels where it is above 0 count (as the brain), of the same shape.

    Raises:
        GeometryError: the shapes differ.
        LabelError: probabilities with NaN or outside [0, 1].
        CaseError: the mask is empty.
        RecipeError: less than one bin.

    Example:
        >>> found = reliability(np.array([0.1, 0.3, 0.8, 0.8]), np.array([0, 1, 1, 1]), bins=2)
        >>> found.counts, found.mean_probability.round(2), found.observed_frequency
        (array([2, 2]), array([0.2, 0.8]), array([0.5, 1. ]))
    """
    if bins < 1:
        raise RecipeError(f"{bins} bins", remedy="give one or more (15 is usual)")
    shares, true = _inside(probability, truth, mask)
    # Edges in the precision of the probabilities: a 0.2 of float32 is the edge 0.2, not above it.
    places = np.searchsorted(_edges(bins)[1:-1].astype(shares.dtype), shares)
    return Bins(
        np.bincount(places, minlength=bins),
        np.bincount(places, weights=shares, minlength=bins).astype(np.float64),
        np.bincount(places[true], minlength=bins),
    )


def ece(probability: NDArray[Any], truth: NDArray[Any], *, bins: int = 15, mask: NDArray[Any] | None = None) -> float:
    """Expected calibration error of one case, 0 to 1 (of a cohort: add the `reliability` of its cases).

    Arguments and errors: see `reliability`.

    Example:
        Two bins, (0.5 - 0.2) and (1 - 0.8) off, half of the voxels in each:

        >>> round(ece(np.array([0.1, 0.3, 0.8, 0.8]), np.array([0, 1, 1, 1]), bins=2), 6)
        0.25
    """
    return reliability(probability, truth, bins=bins, mask=mask).ece


def brier(probability: NDArray[Any], truth: NDArray[Any], *, mask: NDArray[Any] | None = None) -> float:
    """Mean squared difference of probability and truth, 0 to 1 (Brier, Monthly Weather Review 78:1, 1950; one region).

    Arguments and errors: see `reliability`.

    Example:
        >>> round(brier(np.array([0.1, 0.3, 0.8, 0.8]), np.array([0, 1, 1, 1])), 6)
        0.145
    """
    shares, true = _inside(probability, truth, mask)
    return float(np.mean((shares - true) ** 2, dtype=np.float64))


def risk_coverage(risk: NDArray[Any], confidence: NDArray[Any]) -> NDArray[np.float64]:
    """Mean risk of the k most confident cases, for k = 1..n.

    Tied cases have no order: each of their places holds the mean over all orders of them, so that neither the order of the
    file nor luck enters.

    Args:
        risk: (n,) of each case, such as 1 - Dice.
        confidence: (n,) of each case, such as minus its mean uncertainty; only the order counts.

    Returns:
        (n,) risks at the coverages 1/n, 2/n, ..., 1.

    Raises:
        ScoreError: no cases, not as many of both, or values that are not finite.

    Example:
        >>> risk_coverage(np.array([0.1, 0.8, 0.3]), np.array([9, 5, 7]))
        array([0.1, 0.2, 0.4])
    """
    if risk.ndim != 1 or risk.shape != confidence.shape or not risk.size:
        raise ScoreError(f"risks have shape {risk.shape}, confidences {confidence.shape}", remedy="give one of each a case")
    if not (np.isfinite(risk).all() and np.isfinite(confidence).all()):
        raise ScoreError("a risk or confidence is not finite", remedy="leave out cases without a value")
    # The mean curve over the orders of tied cases is the curve in which each of them has their mean risk.
    _, group, sizes = np.unique(-confidence.astype(np.float64), return_inverse=True, return_counts=True)
    ordered = np.repeat(np.bincount(group, weights=risk) / sizes, sizes)
    return np.asarray(ordered.cumsum() / np.arange(1, risk.size + 1))


def aurc(risk: NDArray[Any], confidence: NDArray[Any]) -> AURC:
    """Area under the risk-coverage curve of cases: low where confident cases are good ones.

    The area is the mean of the curve over the coverages 1/n to 1, ties as in `risk_coverage`. Others join the points by
    trapezoids, or multiply by 1000: their numbers must not share a table with these.

    Arguments and errors: see `risk_coverage`.

    Example:
        >>> found = aurc(np.array([0.1, 0.8, 0.3]), np.array([7, 5, 9]))
        >>> round(found.value, 4), round(found.best, 4), round(found.random, 4), round(found.excess, 4)
        (0.3, 0.2333, 0.4, 0.0667)
    """
    curve = risk_coverage(risk, confidence)
    return AURC(float(curve.mean()), float(risk_coverage(risk, -risk).mean()), float(curve[-1]))


def _edges(bins: int) -> NDArray[np.float64]:
    return np.linspace(0, 1, bins + 1)


def _ratio(sums: NDArray[Any], counts: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.asarray(np.divide(sums, counts, out=np.full(counts.shape, np.nan), where=counts > 0))


def _inside(
    probability: NDArray[Any], truth: NDArray[Any], mask: NDArray[Any] | None
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Probability and truth of the voxels that count, (n,) each."""
    for name, other in {"truth": truth, "mask": mask}.items():
        if other is not None and other.shape != probability.shape:
            raise GeometryError(f"probability has shape {probability.shape}, {name} {other.shape}")
    within = np.ones(probability.shape, bool) if mask is None else mask > 0
    if not within.any():
        raise CaseError("no voxel counts", remedy="give a mask that is above 0 inside the brain")
    return as_probability(probability[within]), truth[within].astype(bool)
