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

from modistill.data.lungs import body_mask
from modistill.errors import RecipeError, ScoreError
from modistill.metrics.overlap import dice
from modistill.metrics.surface import bounding_box, surface_distances
from modistill.metrics.synthesis import SSIM_SIGMA, SSIM_WINDOW, kl_divergence, mae, nmae, psnr, ssim_map, worst_kl
from modistill.metrics.volume import volume_ml

__all__ = ["METRICS", "Metric", "Protocol", "Rules", "Status", "SynthesisProtocol", "UncertaintyScale", "protocol_from_json"]

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
        """A JSON object, from which `protocol_from_json` makes the protocol again."""
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
        pairs = ((name, value, getattr(other, name)) for name, value in asdict(self).items())
        return ", ".join(f"{name} {ours} and {theirs}" for name, ours, theirs in pairs if ours != theirs)


def protocol_from_json(content: Mapping[str, Any]) -> Rules:
    """The protocol that `to_json` wrote, of either kind.

    Raises:
        ScoreError: entries are missing or foreign (scores of another version).
    """
    return SynthesisProtocol.from_json(content) if "target" in content else Protocol.from_json(content)


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


@dataclass(frozen=True)
class SynthesisProtocol(Rules):
    """The rules by which synthetic images are scored against real ones of the same patients.

    Both are compared on the scale of the target's normalisation, which decides every number: a scale with room to spare makes
    errors small. The landmarks are part of it.

    Attributes:
        target: modality of the images.
        normalisation: of the real images, as `modistill.data.normalisation.spell` writes it.
        lowest: what 0 of the normalised image stands for.
        highest: what 1 stands for.
        landmarks: standard landmarks of the training images, where the normalisation has some.
        n4: whether real images have lost their bias field first (`modistill.data.bias`).
        within: what the network was shown of a patient, such as "lungs"; nothing else counts. "" for everything.
        body_above: share of the scale above which the real image is the region "body"; None: `modistill.data.lungs.body_mask`.
        dims: 2 for SSIM slice by slice, 3 for windows of volumes.
        bins: of the histograms.
        epsilon: added to the share of every bin.

    A case without a usable translation *failed*: it counts the worst value of every metric.
    """

    headline = ("psnr", "ssim", "nmae", "kl")

    target: str
    normalisation: str
    lowest: float = 0.0
    highest: float = 1.0
    landmarks: tuple[float, ...] = ()
    n4: bool = False
    within: str = ""
    body_above: float | None = None
    dims: int = 2
    bins: int = 256
    epsilon: float = 1e-6

    def __post_init__(self) -> None:
        object.__setattr__(self, "landmarks", tuple(self.landmarks))
        if self.body_above is not None and not 0 <= self.body_above < 1:
            raise RecipeError(f"body_above is a share of the scale, got {self.body_above:g}", remedy="give 0 or more, below 1")
        if self.dims not in (2, 3):
            raise RecipeError(f"SSIM has windows of 2 or 3 axes, got {self.dims}")

    def describe(self) -> tuple[str, ...]:
        """See `Rules`."""
        edge = "x".join([str(SSIM_WINDOW)] * self.dims)
        where = "slice by slice" if self.dims == 2 else "in volumes"
        known = " (of the training images)" if self.landmarks else ""
        n4 = ", bias field taken out by N4," if self.n4 else ""
        body = f"voxels in which the real image lies above {100 * (self.body_above or 0):g} % of the scale"
        if self.body_above is None:
            body = "largest component above the real image's Otsu threshold, slices filled"
        return (
            f"scale: {self.target}{n4} normalised by {self.normalisation}{known}, {self.lowest:g} to {self.highest:g}, clipped",
            f"body: {body}; other regions: labels of the reference",
            *((f"within: only the axial slices that show {self.within}",) if self.within else ()),
            "PSNR: 10 log10(range^2 / mean squared error), range that of the scale; MAE: in its units; NMAE: MAE / range",
            f"SSIM: {where}, Gaussian window {edge}, sigma {SSIM_SIGMA}; mean over voxels whose window lies inside the image",
            f"KL: of histograms, {self.bins} bins over the scale, {self.epsilon:g} added to the share of each; in nats",
            "no voxel in a region: undefined, left out and counted",
            f"no usable translation (failed): PSNR 0, SSIM -1, NMAE 1, KL {worst_kl(self.bins, self.epsilon):.2f}",
        )

    def body(self, real: NDArray[np.float32]) -> NDArray[np.bool_]:
        """The region "body" (D, H, W) of a whole real image, from 0 to 1."""
        return body_mask(real) if self.body_above is None else real > self.body_above

    def score(
        self, synthetic: NDArray[np.float32], real: NDArray[np.float32], regions: Mapping[str, NDArray[np.bool_]]
    ) -> dict[str, dict[str, float]]:
        """All metrics of every region of one case; NaN in a region without a voxel.

        Args:
            synthetic: (D, H, W) from 0 to 1.
            real: (D, H, W) from 0 to 1.
            regions: name -> binary map (D, H, W), the body among them.
        """
        similarity = ssim_map(synthetic, real, dims=self.dims)
        values = {}
        for name, mask in regions.items():
            s, r = synthetic[mask], real[mask]
            seen = similarity[mask]
            seen = seen[~np.isnan(seen)]
            values[name] = {
                "psnr": psnr(s, r),
                "ssim": float(seen.mean()) if seen.size else math.nan,
                "mae": mae(s, r) * (self.highest - self.lowest),
                "nmae": nmae(s, r),
                "kl": kl_divergence(r, s, bins=self.bins, epsilon=self.epsilon),
                "kl_reverse": kl_divergence(s, r, bins=self.bins, epsilon=self.epsilon),
            }
        return values

    def score_failed(self) -> dict[str, float]:
        """What a region counts for which there is no usable translation."""
        kl = worst_kl(self.bins, self.epsilon)
        return {"psnr": 0.0, "ssim": -1.0, "mae": self.highest - self.lowest, "nmae": 1.0, "kl": kl, "kl_reverse": kl}


def _volumes(prediction: NDArray[np.bool_], reference: NDArray[np.bool_], spacing_mm: Sequence[float]) -> dict[str, float]:
    predicted, true = volume_ml(prediction, spacing_mm), volume_ml(reference, spacing_mm)
    return {"volume_ml": predicted, "volume_error_ml": abs(predicted - true)}
