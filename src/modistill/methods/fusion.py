"""Fusion: the translation is read at test time, too, alone or beside the image it was made of.

The strategies that CMEDL is compared with: Jiang et al., "Unpaired Cross-Modality Educed Distillation (CMEDL) for Medical Image
Segmentation", IEEE TMI 2022 (https://arxiv.org/abs/2107.07985), Tables II and III. A translation F learns by itself to make of
every image x_s of the patients' modality one of the target's. Beside it, in the same run, a segmentor S learns to read what it
makes, and does not change it: there is no hint, no contextual loss, and no guidance.

Terms, with x_t images of other patients in the target's modality, y labels, L_seg the loss of `segmentor` (Dice and
cross-entropy), and R(x_s) what patients are segmented by
    reader.segmentor/source   = segmentation_weight L_seg(R(x_s), y_s)
    reader.segmentor/target   = segmentation_weight L_seg(S(x_t), y_t), where S reads the target's modality alone

and the terms of the translation (`cyclegan` or `drit`), `translation.` in front of their names.

| strategy | R(x_s) | arguments |
|---|---|---|
| pMRI-Cycle | S(F(x_s)) | `sees: translation` |
| pMRI-DRIT | S(F(x_s)) | `sees: translation, translator: drit` |
| CT+pMRI | S([x_s; F(x_s)]) | `sees: both` |
| weighted CT+pMRI | S([(1 - alpha) x_s; alpha F(x_s)]), alpha = sigmoid(ResNet18([x_s; F(x_s)])) | `sees: weighted` |
| a segmentor for MR that never saw a translation | S(F(x_s)) | `sees: translation, learns_from_translations: false` |

Turns: those of the translation; then the segmentor, and with it the weighting, sees translations by F as it is now. What is
deployed is F and S together. The teacher of CMEDL on translations (pMRI-CMEDL) is `cmedl` with `read_out: teacher`.

Differs from the paper
    1. Whether the segmentor of pMRI-Cycle learns from translations, with the labels of their source, is not said. Here it does,
       as CMEDL's teacher; `learns_from_translations=False` is the other reading.
    2. Its text puts image and translation together row by row, its table by channels: here they are channels.
    3. Its equation 14 is a log-likelihood; the loss is that of all segmentors here, see `segmentor`. For the weighting, see
       `networks.translating_segmentor`. One number an image is nearly undone by the norm after the first convolution.
    4. How batch norms meet translations and real images is not said. Here both are one batch, so that the running statistics
       are those of training; normalised apart, translations are segmented at test time by statistics they never had.
    5. Whether the translation was finished before the segmentor began is not said; here they learn in one run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Adam

from modistill.data.batch import Batch
from modistill.methods.base import Method, Turn, build_translation, nested, signed
from modistill.methods.segmentor import SegmentationLoss, segmentation_loss
from modistill.networks.blocks import NormKind
from modistill.networks.segmentors import SegmentorName, build_segmentor
from modistill.networks.translating_segmentor import ResNet18, TranslatingSegmentor, WeightedSegmentor

__all__ = ["BY_ITSELF", "Fusion"]

BY_ITSELF: Mapping[str, Mapping[str, Any]] = {"cyclegan": {"contextual_weight": 0.0}}
"""Arguments of a translator that learns by itself: CycleGAN without what CMEDL added to it."""


class Fusion(Method):
    """A translation, and a segmentor that reads what it makes.

    Args:
        source: modality of the patients, which is translated.
        target: modality it is translated into.
        classes: number of classes C, background included.
        sees: what the segmentor reads: "translation", "both" or "weighted".
        learns_from_translations: the segmentor of translations learns from these, too, not from real images alone.
        network: "unet", "fc_densenet" or "mrrn".
        width: channels of its first scale; None for the paper's.
        norm: "batch", "instance" or "group"; of the weighting, too.
        dropout: None for the network's own.
        dims: 2 or 3.
        loss: "both", "dice" or "cross_entropy".
        segmentation_weight: of the loss.
        weighting_width: channels of the first scale of the ResNet18 behind alpha.
        translator: "cyclegan" or "drit".
        translation: arguments of that method, but for modalities and dims; `contextual_weight` is 0 unless it is among them.
        lr: learning rate of the segmentor's Adam.
        betas: of that Adam.

    Raises:
        ValueError: a segmentor that would learn from nothing, or an unknown value.
        RecipeError: no such translator.
    """

    deployed = "reader"

    def __init__(
        self,
        source: str = "ct",
        target: str = "mr",
        classes: int = 2,
        *,
        sees: Literal["translation", "both", "weighted"] = "translation",
        learns_from_translations: bool = True,
        network: SegmentorName = "unet",
        width: int | None = None,
        norm: NormKind = "batch",
        dropout: float | None = None,
        dims: int = 2,
        loss: SegmentationLoss = "both",
        segmentation_weight: float = 5.0,
        weighting_width: int = 64,
        translator: str = "cyclegan",
        translation: Mapping[str, Any] | None = None,
        lr: float = 2e-4,
        betas: tuple[float, float] = (0.5, 0.999),
    ) -> None:
        super().__init__()
        if sees not in {"translation", "both", "weighted"}:
            raise ValueError(f"a segmentor that sees {sees!r}: translation, both or weighted")
        if sees != "translation" and not learns_from_translations:
            raise ValueError(f"a segmentor that sees {sees} needs learns_from_translations, or it learns nothing")
        self.dims, self.loss, self.segmentation_weight = dims, loss, segmentation_weight
        self.sees, self.learns_from_translations = sees, learns_from_translations
        arguments = {**BY_ITSELF.get(translator, {}), **(translation or {})}
        self.translation = build_translation(translator, source, target, dims, arguments)
        channels = 1 if sees == "translation" else 2
        segmentor = build_segmentor(network, channels, classes, width=width, norm=norm, dropout=dropout, dims=dims)
        self.halvings = segmentor.halvings
        self.reader = TranslatingSegmentor(
            self.translation.get_submodule(self.translation.deployed),
            WeightedSegmentor(ResNet18(2, width=weighting_width, norm=norm, dims=dims), segmentor)
            if sees == "weighted"
            else segmentor,
        )
        self.reads = {
            "reader": (source,),
            "reader.segmentor": (target,) if sees == "translation" else (source, target),
            **{f"translation.{path}": names for path, names in self.translation.reads.items()},
        }
        self.domains = ((source,), (target,))
        self.players = {
            **nested("translation", self.translation.players),
            "reader.segmentor": partial(Adam, lr=lr, betas=betas, fused=True),
        }

    def losses(self, batch: Batch) -> Iterator[Turn]:
        """The turns of the translation, then that of the segmentor."""
        for player, terms in self.translation.losses(batch):
            yield f"translation.{player}", terms

        own, other = (batch.having(domain) for domain in self.domains)
        x_s, x_t = signed(own.images), signed(other.images)
        if not self.learns_from_translations:
            yield "reader.segmentor", {"target": self._segmentation(self.reader.segmentor(x_t), other.labels)}
            return
        with torch.no_grad():
            translated = self.translation.to_target(x_s, x_t)
        if self.sees != "translation":
            yield "reader.segmentor", {"source": self._segmentation(self.reader.read(x_s, translated), own.labels)}
            return
        # In one pass: batch norms then normalise by the same mixture in training as at test time.
        z_s, z_t = self.reader.segmentor(torch.cat([translated, x_t])).split([len(x_s), len(x_t)])
        learnt = {"source": self._segmentation(z_s, own.labels), "target": self._segmentation(z_t, other.labels)}
        yield "reader.segmentor", learnt

    def segment(self, images: Tensor) -> Tensor:
        """Logits (B, C, *spatial)."""
        logits: Tensor = self.reader(signed(images))
        return logits

    def record(self) -> dict[str, Any]:
        """See `Method`: that of the translation."""
        return self.translation.record()

    @classmethod
    def for_inference(cls, **arguments: Any) -> Method:
        """The method without what judges translations by the features of a file."""
        given, translator = arguments.get("translation") or {}, arguments.get("translator", "cyclegan")
        return cls(**{**arguments, "translation": {**given, **BY_ITSELF.get(translator, {})}})

    def _segmentation(self, logits: Tensor, labels: Tensor) -> Tensor:
        return self.segmentation_weight * segmentation_loss(logits, labels, self.loss)
