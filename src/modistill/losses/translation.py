"""Losses that keep a translator true to what it translates.

Zhu et al., "Unpaired Image-to-Image Translation using Cycle-Consistent Adversarial Networks" (ICCV 2017,
https://arxiv.org/abs/1703.10593). With translators F: A -> B and G: B -> A, and images a and b of the two modalities,

    cycle      L_cyc = mean |G(F(a)) - a|  +  mean |F(G(b)) - b|
    identity   L_id  = mean |G(a) - a|     +  mean |F(b) - b|

one function call for each of the four. Weights belong to a method: CycleGAN and CMEDL weigh the cycle with 10; the identity has
5 in CycleGAN's code, none in CMEDL's paper. The adversarial losses are in `losses.adversarial`, the contextual one in
`losses.contextual`.
"""

from __future__ import annotations

from torch import Tensor

from modistill.errors import ModelError
from modistill.hardware import wide

__all__ = ["cycle_loss", "identity_loss"]


def cycle_loss(reconstruction: Tensor, images: Tensor) -> Tensor:
    """Mean absolute difference between images and what became of them on the way to the other modality and back.

    Args:
        reconstruction: G(F(images)), of the shape of `images`.
        images: (B, channels, *spatial).

    Returns:
        A scalar, computed in float32 at least.

    Raises:
        ModelError: the shapes differ.

    Example:
        >>> import torch
        >>> cycle_loss(torch.tensor([[0.5, -1.0]]), torch.tensor([[1.0, 1.0]])).item()
        1.25
    """
    return _mean_absolute_difference(reconstruction, images)


def identity_loss(translation: Tensor, images: Tensor) -> Tensor:
    """Mean absolute difference between images and their translation into the modality they have already.

    It discourages a translator from changing what needs no change, such as the sign of the contrast.

    Args:
        translation: F(images), of the shape of `images`, for images of the modality that F translates to.
        images: (B, channels, *spatial).

    Returns:
        A scalar, computed in float32 at least.

    Raises:
        ModelError: the shapes differ.

    Example:
        >>> import torch
        >>> identity_loss(torch.zeros(2, 3), torch.full((2, 3), -0.5)).item()
        0.5
    """
    return _mean_absolute_difference(translation, images)


def _mean_absolute_difference(one: Tensor, other: Tensor) -> Tensor:
    if one.shape != other.shape:
        raise ModelError(
            f"images of {tuple(other.shape)} and their translation of {tuple(one.shape)}",
            remedy="a translator must keep the size of its images",
        )
    return (wide(one) - wide(other)).abs().mean()
