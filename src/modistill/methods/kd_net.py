"""KD-Net: a student imitates the soft targets and the latent space of a teacher that sees more modalities.

Hu, Maillard, Zhang, Ciceri, La Barbera, Bloch, Gori: "Knowledge Distillation from Multi-Modal to Mono-Modal Segmentation
Networks", MICCAI 2020 (https://arxiv.org/abs/2106.09564).

A frozen teacher reads all modalities, the student those that exist at test time: one in KD-Net. *KD-Net+* is the baseline of
that name in Vadacchino et al., HAD-Net, MIDL 2021 (https://arxiv.org/abs/2103.16617): KD-Net's losses, HAD-Net's two U-Nets, a
student that reads three modalities and starts from random weights (`start_from: {teacher: RUN}` in a recipe).

Turns and terms, with p the student's probability of every region, q the teacher's at temperature tau, y the reference, f_S and
f_T the latent maps, and D(q, p) = 1 - Dice(q, p) + BCE(q, p)
    student/imitation      lambda * L_KD          L_KD = D(q, p)
    student/latent         mu * L_KL              L_KL = KL(softmax(f_T) || softmax(f_S))
    student/segmentation   (1 - lambda) * L_GT    L_GT = D(y, p)

where lambda = 0.75, mu = 1, and tau = 5 softens the teacher alone.

What is known, and how well
    The paper's abstract: generalised distillation, a trained teacher of n modalities, a student of one.
    Others who describe the paper: Dice and BCE between the two predictions, divergence between latent features.
    Recollection, not verified against the full text: the form of the equations, lambda, tau, and the schedule (Adam at 1e-4,
    times 0.2 after 50 epochs without improvement, 500 epochs, random flips). We found no published code.
    HAD-Net's paper: what stands above of KD-Net+; for losses and training it refers to KD-Net.

Choices where the sources are silent, an argument each
    1. A region is one foreground class, and q a softmax of logits / tau: the U-Nets have exclusive classes, and logits of a
       softmax mean something relative to each other only. KD-Net has a sigmoid for each overlapping region (not verified
       either): `activation="sigmoid"` and, for BraTS, `regions=((1, 2, 3), (1, 3), (3,))`.
    2. The latent map is the output of the U-Net's centre (c5), its softmax over the channels of each voxel; the divergence is
       summed over voxels and averaged over the batch, as in a public re-implementation. So it grows with the image: about half
       a nat for each of 1,200 latent voxels at 160x192x160, hundreds of times the other terms; at KD-Net's 64^3 there are 64.
       `latent_weight` is mu (`brats/kd_net_plus` keeps the original's weight with 64 / 1200), `latent_over` and
       `latent_reduction` have the other readings. The direction, teacher first, is that of the re-implementation too.
    3. The frozen teacher's dropout is silent: `teacher_dropout=True` keeps it active, as in HAD-Net.

Differs from the paper
    4. Networks, preparation and image size are HAD-Net's, as in KD-Net+; losses are means over regions and voxels. So is the
       augmentation of the recipes (a left-right mirror, a small affine map; KD-Net's presumably mirrors every axis).
    5. The plateau (`training.plateau` in a recipe) is one of the validation score; there, of the validation loss.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.optim import Adam

from modistill.data.batch import Batch
from modistill.losses.distillation import (
    dice_and_cross_entropy,
    latent_divergence,
    region_logits,
    region_masks,
    soft_targets,
)
from modistill.methods.base import Method, Turn, frozen
from modistill.networks.unet import UNet

__all__ = ["KDNet"]


class KDNet(Method):
    """A student that learns from the labels, from a teacher's soft targets and from its latent space.

    Args:
        modalities: what the teacher reads.
        available: what the student reads: the modalities that exist at test time.
        classes: number of classes C, background included.
        width: feature maps of the first block, of teacher and student.
        dims: 2 or 3.
        dropout: probability of dropping a feature map at the entry of each block.
        imitation_weight: lambda, in [0, 1]; the reference weighs 1 - lambda.
        latent_weight: mu, not negative.
        temperature: tau, positive.
        activation: "softmax" softens the probabilities of exclusive classes, "sigmoid" those of each region on its own.
        regions: class indices of each region that is compared; None for every foreground class on its own.
        latent_over: what the latent softmax runs over: "channel", "spatial" or "all".
        latent_reduction: "batch" (sum over a sample) or "mean" (over all elements).
        teacher_dropout: whether the frozen teacher drops feature maps while training.
        lr: learning rate of Adam.
        betas: of Adam.
    """

    deployed = "student"
    learnt_before = ("teacher",)

    def __init__(
        self,
        modalities: tuple[str, ...] = ("flair", "t1ce", "t1", "t2"),
        available: tuple[str, ...] = ("flair", "t1", "t2"),
        classes: int = 4,
        *,
        width: int = 32,
        dims: int = 3,
        dropout: float = 0.2,
        imitation_weight: float = 0.75,
        latent_weight: float = 1.0,
        temperature: float = 5.0,
        activation: Literal["softmax", "sigmoid"] = "softmax",
        regions: tuple[tuple[int, ...], ...] | None = None,
        latent_over: Literal["channel", "spatial", "all"] = "channel",
        latent_reduction: Literal["batch", "mean"] = "batch",
        teacher_dropout: bool = False,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.999),
    ) -> None:
        super().__init__()
        self.dims = dims
        if not 0 <= imitation_weight <= 1:
            raise ValueError(f"imitation_weight must be between 0 and 1, it is {imitation_weight}")
        if temperature <= 0 or latent_weight < 0:
            raise ValueError(f"temperature {temperature} must be positive, latent_weight {latent_weight} not negative")
        self.teacher = frozen(UNet(len(modalities), classes, width=width, dims=dims, dropout=dropout))
        self.student = UNet(len(available), classes, width=width, dims=dims, dropout=dropout)
        self.imitation_weight = imitation_weight
        self.latent_weight = latent_weight
        self.regions = _checked(regions, classes)
        self.soft_targets = partial(soft_targets, regions=self.regions, temperature=temperature, activation=activation)
        self.latent_divergence = partial(latent_divergence, over=latent_over, reduction=latent_reduction)
        self.silent = () if teacher_dropout else ("teacher",)
        self.reads = {"teacher": tuple(modalities), "student": tuple(available)}
        self.players = {"student": partial(Adam, lr=lr, betas=betas, fused=True)}

    def losses(self, batch: Batch) -> Iterator[Turn]:
        """One turn: the student learns from teacher and reference."""
        with torch.no_grad():
            t, latent_t = _with_latent(self.teacher, batch.all)
            targets = self.soft_targets(t)
        s, latent_s = _with_latent(self.student, batch.available)
        z, y = region_logits(s, self.regions), region_masks(batch.labels, self.regions)
        yield (
            "student",
            {
                "imitation": self.imitation_weight * dice_and_cross_entropy(z, targets),
                "latent": self.latent_weight * self.latent_divergence(latent_s, latent_t),
                "segmentation": (1 - self.imitation_weight) * dice_and_cross_entropy(z, y),
            },
        )

    def segment(self, images: Tensor) -> Tensor:
        """The student's logits (B, C, *spatial)."""
        logits: Tensor = self.student(images)
        return logits


def _with_latent(network: UNet, images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits, and the map of the centre; the others are let go."""
    logits, features = network.with_features(images)
    return logits, features.c5


def _checked(regions: tuple[tuple[int, ...], ...] | None, classes: int) -> tuple[tuple[int, ...], ...]:
    """The regions; every foreground class on its own where none are given."""
    regions = tuple((c,) for c in range(1, classes)) if regions is None else regions
    if not regions or not all(region and set(region) < set(range(classes)) for region in regions):
        raise ValueError(f"regions must each hold some, not all, of the classes 0 ... {classes - 1}, they are {regions}")
    return regions
