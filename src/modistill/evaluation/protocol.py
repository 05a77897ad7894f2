"""Protocols: every rule that a table of scores depends on, in one value that is printed with the table.

Numbers of two tables may be compared only where their protocols are equal, and papers differ in exactly these rules: what an
empty region counts, which HD95 is meant, how Dice is smoothed. None of them has a right answer; all of them have to be said.
"""

from __future__ import annotations

import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from modistill.errors import RecipeError, ScoreError
from modistill.metrics.overlap import dice
from modistill.metrics.surface import bounding_box, surface_distances
from modistill.metrics.volume import volume_ml

__all__ = ["METRICS", "Metric", "Protocol", "Rules", "Status", "UncertaintyScale"]

UncertaintyScale: TypeAlias = Literal["theoretical", "case", "cohort"]
Status: TypeAlias = Literal["measured", "both_empty", "one_empty", "failed"]


@dataclass(frozen=True)
class Metric:
    """What a column of numbers means.

    Attributes:
        name: as in score rows.
        title: as in tables.
        unit: "" for a share.
        better: "higher" or "lower"; None for a quantity that is neither good nor bad.
        rests_on: what of a prediction it is computed from, besides the reference.
    """

    name: str
    title: str
    unit: str
    better: Literal["higher", "lower"] | None
    rests_on: Literal["labels", "uncertainty", "probabilities", "synthesis"] = "labels"


_THRESHOLDS = (75, 50, 25)  # of uncertainty, shown in papers; nothing is filtered at 100

METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        metric.name: metric
        for metric in (
            Metric("dice", "Dice", "", "higher"),
            Metric("hausdorff95_mm", "HD95", "mm", "lower"),
            Metric("surface_dice", "surface Dice", "", "higher"),
            Metric("volume_ml", "volume", "ml", None),
            Metric("volume_error_ml", "volume error", "ml", "lower"),
            # Of uncertainty maps, where a run wrote them (modistill.metrics.uncertainty).
            Metric("qu_score", "QU-BraTS", "", "higher", "uncertainty"),
            Metric("qu_trivial", "QU-BraTS of zeros", "", "higher", "uncertainty"),
            Metric("qu_dice_auc", "area under Dice", "", "higher", "uncertainty"),
            Metric("qu_ftp_auc", "area under filtered TP", "", "lower", "uncertainty"),
            Metric("qu_ftn_auc", "area under filtered TN", "", "lower", "uncertainty"),
            *(Metric(f"qu_dice_{t}", f"Dice of what stays at {t}", "", "higher", "uncertainty") for t in _THRESHOLDS),
            *(Metric(f"qu_ftp_{t}", f"filtered TP at {t}", "", "lower", "uncertainty") for t in _THRESHOLDS),
            *(Metric(f"qu_ftn_{t}", f"filtered TN at {t}", "", "lower", "uncertainty") for t in _THRESHOLDS),
            Metric("uncertainty_mean", "mean uncertainty in the brain", "%", None, "uncertainty"),
            Metric("ece", "calibration error", "", "lower", "probabilities"),
            # Of synthetic images against real ones (modistill.metrics.synthesis).
            Metric("psnr", "PSNR", "dB", "higher", "synthesis"),
            Metric("ssim", "SSIM", "", "higher", "synthesis"),
            Metric("mae", "MAE", "", "lower", "synthesis"),
            Metric("nmae", "NMAE", "", "lower", "synthesis"),
            Metric("kl", "KL(real, synthetic)", "", "lower", "synthesis"),
            Metric("kl_reverse", "KL(synthetic, real)", "", "lower", "synthesis"),
        )
    }
)


@dataclass(frozen=True)
class Rules(ABC):
    """What every protocol can do.

    Attributes:
        headline: the metrics that a comparison shows if none are asked for.
    """

    headline: ClassVar[tuple[str, ...]]

    @abstractmethod
    def describe(self) -> tuple[str, ...]:
        """The rules in words, one line each, as printed below every table."""

    def to_json(self) -> dict[str, Any]:
        """A JSON object, from which `from_json` makes the protocol again."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """The protocol that `to_json` wrote.

        Raises:
            ScoreError: entries are missing or foreign (scores of another version).
        """
        names = {field.name for field in fields(cls)}
        if set(content) != names:
            differing = ", ".join(sorted(set(content) ^ names))
            raise ScoreError(f"foreign protocol, differs in: {differing}", remedy="evaluate again with this version")
        return cls(**content)

    @property
    def uncertainty(self) -> str:
        """Scale of uncertainty maps; "" where none are scored."""
        return ""

    def without_scale(self) -> Self:
        """The same rules for metrics that do not rest on the scale of uncertainty."""
        return self

    def of_set(self, available: str) -> Self:
        """The rules that the scores of one set rest on (`Score.available`)."""
        return self

    @property
    def digest(self) -> str:
        """Eight characters that tell two protocols apart at a glance."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:8]

    def differences(self, other: Rules) -> str:
        """What sets two protocols apart, as text; "" where they are equal.

        Example:
            >>> Protocol().differences(Protocol(tolerance_mm=2))
            'tolerance_mm 1.0 and 2'
        """
        if type(self) is not type(other):
            return "one is of label maps, one of synthetic images"
        pairs = ((field.name, getattr(self, field.name), getattr(other, field.name)) for field in fields(self))
        return ", ".join(f"{name} {ours} and {theirs}" for name, ours, theirs in pairs if ours != theirs)


@dataclass(frozen=True)
class Protocol(Rules):
    """The rules of one evaluation of label maps.

    Attributes:
        both_empty: what a region counts that neither the reference nor the prediction has. "perfect": Dice 1, surface Dice 1,
            HD95 0 (BraTS); "undefined": no value, counted beside the mean.
        penalty_mm: HD95 where exactly one of the two is empty (Dice and surface Dice are 0). 373.13 mm is the diagonal of a
            BraTS volume, used by its servers; `inf` is the distance itself. Choose it larger than any distance your images
            allow, else missing a tumour is cheaper than finding it badly.
        hausdorff95: "directed_max" (MONAI, DeepMind, BraTS) or "pooled" (MedPy); see `modistill.metrics.surface`.
        tolerance_mm: of the surface Dice.
        dice: "brats", 2I / (P + G), or "smooth1", (2I + 1) / (P + G + 1), as HAD-Net's validation, where `n` false voxels on an
            empty reference still count 1 / (n + 1).
        et_minimum_voxels: a predicted enhancing tumour (region ET) below this size counts as none; 0 leaves all. (500 is
            usual where papers do this.)
        uncertainty: which entropy counts 100 in the uncertainty map of a region when it is scored. "theoretical": the largest
            possible; "case": the largest of the map; "cohort": 0 and 100 are the smallest and the largest inside the brain, of
            this region in all cases that count. "" where there are no maps.

    Raises:
        RecipeError: a value outside these.

    A case without a usable prediction *failed*: Dice 0, surface Dice 0, HD95 the penalty, in every region, whatever the
    reference holds; so a failed case never improves a mean.
    """

    headline = ("dice", "hausdorff95_mm", "surface_dice")

    both_empty: Literal["perfect", "undefined"] = "perfect"
    penalty_mm: float = 373.13
    hausdorff95: Literal["directed_max", "pooled"] = "directed_max"
    tolerance_mm: float = 1.0
    dice: Literal["brats", "smooth1"] = "brats"
    et_minimum_voxels: int = 0
    uncertainty: UncertaintyScale | Literal[""] = ""

    def __post_init__(self) -> None:
        choices = {
            "both_empty": ("perfect", "undefined"),
            "hausdorff95": ("directed_max", "pooled"),
            "dice": ("brats", "smooth1"),
            "uncertainty": ("", "theoretical", "case", "cohort"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                known = " or ".join(filter(None, allowed))
                raise RecipeError(f"protocol: {name} is {getattr(self, name)!r}", remedy=f"choose {known}")
        if not self.penalty_mm > 0:
            raise RecipeError(f"protocol: penalty_mm is {self.penalty_mm}", remedy="give millimetres above 0, or inf")
        if not (self.tolerance_mm >= 0 and math.isfinite(self.tolerance_mm)):
            raise RecipeError(f"protocol: tolerance_mm is {self.tolerance_mm}", remedy="give millimetres, 0 or more")
        if self.et_minimum_voxels < 0:
            raise RecipeError(f"protocol: et_minimum_voxels is {self.et_minimum_voxels}", remedy="give 0 or more")

    def describe(self) -> tuple[str, ...]:
        """The rules in words, one line each, as printed below every table."""
        smooth = self.dice == "smooth1"
        both = "Dice 1, surface Dice 1, HD95 0 mm" if self.both_empty == "perfect" else "undefined, left out and counted"
        percentile = {
            "directed_max": "larger of the two directed 95th percentiles",
            "pooled": "95th percentile of both directions",
        }
        threshold = f"below {self.et_minimum_voxels} voxels counts as none" if self.et_minimum_voxels else "kept at any size"
        scale = {
            "": (),
            "theoretical": ("uncertainty: 100 is the largest entropy possible",),
            "case": ("uncertainty: 100 is the largest entropy in the case",),
            "cohort": ("uncertainty: 0 and 100 are the smallest and largest entropy in the brain over all cases of the run",),
        }
        return (
            f"Dice: {'(2I + 1) / (P + G + 1)' if smooth else '2I / (P + G)'}",
            f"HD95: {percentile[self.hausdorff95]}, boundary voxels",
            f"surface Dice: share of boundary voxels within {self.tolerance_mm:g} mm",
            f"empty in prediction and reference: {both}",
            f"empty in one: Dice {'1 / (n + 1) for n voxels' if smooth else '0'}, surface Dice 0, HD95 {self.penalty_mm:g} mm",
            f"no usable prediction (failed): Dice 0, surface Dice 0, HD95 {self.penalty_mm:g} mm in every region",
            f"predicted ET: {threshold}",
            *scale[self.uncertainty],
        )

    def to_json(self) -> dict[str, Any]:
        """A JSON object; an infinite penalty becomes the text "inf", as JSON has none."""
        content = asdict(self)
        if math.isinf(self.penalty_mm):
            content["penalty_mm"] = "inf"
        return content

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """See `Rules`."""
        content = {"uncertainty": "", **content}  # versions that did not score uncertainty did not name it
        return super().from_json({name: float(value) if name == "penalty_mm" else value for name, value in content.items()})

    def without_scale(self) -> Self:
        """See `Rules`."""
        return replace(self, uncertainty="")

    def score(
        self, region: str, prediction: NDArray[np.bool_], reference: NDArray[np.bool_], spacing_mm: Sequence[float]
    ) -> tuple[Status, dict[str, float]]:
        """All metrics of one region of one case, with the empty rules applied.

        Args:
            region: its name; only "ET" has a rule of its own.
            prediction: binary map (D, H, W).
            reference: binary map (D, H, W).
            spacing_mm: voxel size along each axis.

        Returns:
            Which rule applied, and metric name -> value; NaN only where `both_empty` is "undefined".
        """
        # Everything below looks at the box around both regions only: a tumour fills a few per cent of a brain volume.
        box = bounding_box(prediction | reference)
        prediction, reference = prediction[box], reference[box]
        if region == "ET" and np.count_nonzero(prediction) < self.et_minimum_voxels:
            prediction = np.zeros_like(prediction)
        volumes = _volumes(prediction, reference, spacing_mm)
        smooth = float(self.dice == "smooth1")
        if not prediction.any() and not reference.any():
            return "both_empty", self._agreement_on_nothing() | volumes
        if not prediction.any() or not reference.any():
            return "one_empty", self._worst() | {"dice": dice(prediction, reference, smooth=smooth)} | volumes
        distances = surface_distances(prediction, reference, spacing_mm)
        values = {
            "dice": dice(prediction, reference, smooth=smooth),
            "hausdorff95_mm": distances.hausdorff95_mm(pooled=self.hausdorff95 == "pooled"),
            "surface_dice": distances.surface_dice(self.tolerance_mm),
        }
        return "measured", values | volumes

    def score_failed(self, reference: NDArray[np.bool_], spacing_mm: Sequence[float]) -> dict[str, float]:
        """What a region of a case counts for which there is no usable prediction: the worst, with a volume of 0 ml."""
        return self._worst() | _volumes(np.zeros_like(reference), reference, spacing_mm)

    def _worst(self) -> dict[str, float]:
        return {"dice": 0.0, "hausdorff95_mm": self.penalty_mm, "surface_dice": 0.0}

    def _agreement_on_nothing(self) -> dict[str, float]:
        if self.both_empty == "undefined":
            return dict.fromkeys(self._worst(), math.nan)
        return {"dice": 1.0, "hausdorff95_mm": 0.0, "surface_dice": 1.0}


def _volumes(prediction: NDArray[np.bool_], reference: NDArray[np.bool_], spacing_mm: Sequence[float]) -> dict[str, float]:
    predicted, true = volume_ml(prediction, spacing_mm), volume_ml(reference, spacing_mm)
    return {"volume_ml": predicted, "volume_error_ml": abs(predicted - true)}
