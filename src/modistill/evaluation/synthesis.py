"""The protocol by which synthetic images are scored against real ones of the same patients."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from modistill.data.lungs import body_mask
from modistill.errors import RecipeError, ScoreError
from modistill.evaluation.protocol import Rules
from modistill.metrics.synthesis import (
    SSIM_SIGMA,
    SSIM_WINDOW,
    kl_divergence,
    mae,
    nmae,
    psnr,
    ssim_map,
    worst_kl,
    worst_nmae,
)

__all__ = ["PAIR", "Scale", "SynthesisProtocol"]

PAIR = "-to-"  # between source and target, in names of folders and of sets of scores


@dataclass(frozen=True)
class Scale:
    """The scale of one modality, on which real and synthetic images are compared.

    It decides every number: one with room to spare makes errors small. The landmarks are part of it.

    Attributes:
        target: the modality.
        normalisation: of the real images, as `modistill.data.normalisation.spell` writes it.
        lowest: what 0 of the normalised image stands for.
        highest: what 1 stands for.
        landmarks: standard landmarks of the training images, where the normalisation has some.
        n4: whether real images have lost their bias field first (`modistill.data.bias`).
    """

    target: str
    normalisation: str
    lowest: float = 0.0
    highest: float = 1.0
    landmarks: tuple[float, ...] = ()
    n4: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "landmarks", tuple(self.landmarks))

    @property
    def range(self) -> float:
        """From the lowest value to the highest."""
        return self.highest - self.lowest

    def describe(self) -> str:
        """How images come to it, in words."""
        n4 = ", bias field taken out by N4," if self.n4 else ""
        known = " (of the training images)" if self.landmarks else ""
        return f"{n4} normalised by {self.normalisation}{known}, {self.lowest:g} to {self.highest:g}, clipped"


@dataclass(frozen=True)
class SynthesisProtocol(Rules):
    """The rules of one evaluation of synthetic images.

    Attributes:
        scales: of each modality that is synthesised.
        within: what the network was shown of a patient, such as "lungs"; nothing else counts. "" for everything.
        body_above: share of the scale above which the real image is the region "body"; None: `modistill.data.lungs.body_mask`.
        dims: 2 for SSIM slice by slice, 3 for windows of volumes.
        bins: of the histograms.
        epsilon: added to the share of every bin.

    A case without a usable translation *failed*: it counts the worst value that any image on the scale could have.
    """

    headline = ("psnr", "ssim", "nmae", "kl")

    scales: tuple[Scale, ...]
    within: str = ""
    body_above: float | None = None
    dims: int = 2
    bins: int = 256
    epsilon: float = 1e-6

    def __post_init__(self) -> None:
        if self.body_above is not None and not 0 <= self.body_above < 1:
            raise RecipeError(f"body_above is a share of the scale, got {self.body_above:g}", remedy="give 0 or more, below 1")
        if self.dims not in (2, 3):
            raise RecipeError(f"SSIM has windows of 2 or 3 axes, got {self.dims}")

    @property
    def target(self) -> str:
        """The modalities, joined by "+"."""
        return "+".join(scale.target for scale in self.scales)

    def scale(self, target: str) -> Scale:
        """Of one modality."""
        (found,) = (scale for scale in self.scales if scale.target == target)
        return found

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """See `Rules`."""
        try:
            scales = tuple(Scale(**scale) for scale in content["scales"])
        except (KeyError, TypeError) as error:
            raise ScoreError("foreign protocol, differs in: scales", remedy="evaluate again with this version") from error
        return super().from_json({**content, "scales": scales})

    def of_set(self, available: str) -> Self:
        """See `Rules`: scores of a pair rest on the scale of its target alone."""
        _, pair, target = available.partition(PAIR)
        return replace(self, scales=(self.scale(target),)) if pair else self

    def differences(self, other: Rules) -> str:
        """See `Rules`; scale by scale.

        Example:
            >>> rules = SynthesisProtocol((Scale("t1", "percentiles"), Scale("t2", "percentiles")))
            >>> rules.differences(SynthesisProtocol((rules.scales[0], Scale("t2", "hadnet"))))
            't2: normalisation percentiles and hadnet'
        """
        if not isinstance(other, SynthesisProtocol):
            return super().differences(other)
        if self.target != other.target:
            return f"target {self.target} and {other.target}"
        found = []
        for ours, theirs in zip(self.scales, other.scales, strict=True):
            pairs = zip(asdict(ours).items(), asdict(theirs).values(), strict=True)
            if differing := ", ".join(f"{name} {one} and {another}" for (name, one), another in pairs if one != another):
                found.append(f"{ours.target}: {differing}" if len(self.scales) > 1 else differing)
        others = super().differences(replace(other, scales=self.scales))
        return "; ".join(filter(None, [*found, others]))

    def describe(self) -> tuple[str, ...]:
        """See `Rules`."""
        targets: dict[str, list[str]] = {}
        for scale in self.scales:
            targets.setdefault(scale.describe(), []).append(scale.target)
        edge = "x".join([str(SSIM_WINDOW)] * self.dims)
        where = "slice by slice" if self.dims == 2 else "in volumes"
        body = f"voxels in which the real image lies above {100 * (self.body_above or 0):g} % of the scale"
        if self.body_above is None:
            body = "largest component above the real image's Otsu threshold, slices filled"
        return (
            *(f"scale: {', '.join(names)}{how}" for how, names in targets.items()),
            f"body: {body}; other regions: labels of the reference",
            *((f"within: only the axial slices that show {self.within}",) if self.within else ()),
            "PSNR: 10 log10(range^2 / mean squared error), range that of the scale; MAE: in its units",
            "NMAE: sum |synthetic - real| / sum real, both from 0 to 1",
            f"SSIM: {where}, Gaussian window {edge}, sigma {SSIM_SIGMA}; mean over voxels whose window lies inside the image",
            f"KL: of histograms, {self.bins} bins over the scale, {self.epsilon:g} added to the share of each; in nats",
            "no voxel in a region: undefined, left out and counted",
            "no usable translation (failed): PSNR 0, SSIM -1, MAE the range, NMAE that of the farthest image on the scale, "
            f"KL {worst_kl(self.bins, self.epsilon):.2f}",
        )

    def body(self, real: NDArray[np.float32]) -> NDArray[np.bool_]:
        """The region "body" (D, H, W) of a whole real image, from 0 to 1."""
        return body_mask(real) if self.body_above is None else real > self.body_above

    def score(
        self,
        target: str,
        synthetic: NDArray[np.float32],
        real: NDArray[np.float32],
        regions: Mapping[str, NDArray[np.bool_]],
    ) -> dict[str, dict[str, float]]:
        """All metrics of every region of one case; NaN in a region without a voxel.

        Args:
            target: modality of the images.
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
                "mae": mae(s, r) * self.scale(target).range,
                "nmae": nmae(s, r),
                "kl": kl_divergence(r, s, bins=self.bins, epsilon=self.epsilon),
                "kl_reverse": kl_divergence(s, r, bins=self.bins, epsilon=self.epsilon),
            }
        return values

    def score_failed(self, target: str, real: NDArray[np.float32]) -> dict[str, float]:
        """What a region counts for which there is no usable translation.

        Args:
            target: modality of the images.
            real: (N,) values of the real image in the region, from 0 to 1.
        """
        kl = worst_kl(self.bins, self.epsilon)
        worst = {"psnr": 0.0, "ssim": -1.0, "mae": self.scale(target).range}
        return worst | {"nmae": worst_nmae(real), "kl": kl, "kl_reverse": kl}
