"""A history of generated images, from which a critic is shown some again.

Shrivastava et al., "Learning from Simulated and Unsupervised Images through Adversarial Training" (CVPR 2017,
https://arxiv.org/abs/1612.07828), section 2.3, in the form of CycleGAN (Zhu et al., ICCV 2017,
https://arxiv.org/abs/1703.10593): while it fills, images are kept and shown as they are; a full history keeps every second
image on average, in the place of an old one, which is shown instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from modistill.errors import ModelError

__all__ = ["ImageHistory"]


class ImageHistory(nn.Module):
    """The last images a generator made, and by chance older ones.

    Its content is a buffer: it moves with the module and is part of the state dict, so that a training goes on exactly. Where
    several ranks train, each has a history of its own, and a state dict is that of one of them.

    Args:
        size: number of images that are kept; 0 shows every image as it is.

    Attributes:
        images: (n, channels, *spatial), what is kept, n <= `size`; (0,) before the first image.

    Example:
        >>> history = ImageHistory(size=2)
        >>> for n in range(3):
        ...     shown = history(torch.full((1, 1, 4, 4), float(n)))
        >>> len(history.images), shown.mean().item() in (0, 1, 2)
        (2, True)
    """

    images: Tensor

    def __init__(self, size: int = 50) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("images", torch.empty(0))

    def forward(self, images: Tensor) -> Tensor:
        """What to show a critic in the place of these images: one after the other, itself or, by chance, an older one.

        Chance is that of torch's global generator of the CPU, whatever the device: two numbers for every image, whether or not
        the history is full.

        Args:
            images: (B, channels, *spatial), as a generator made them.

        Returns:
            (B, channels, *spatial), without gradient.

        Raises:
            ModelError: images of another shape than those that are kept.
        """
        images = images.detach()
        if self.size == 0:
            return images
        if not len(self.images):
            self.images = images.new_empty(0, *images.shape[1:])
        self._check(images)
        swaps = (torch.rand(len(images), device="cpu") < 0.5).tolist()
        places = torch.randint(self.size, (len(images),), device="cpu").tolist()
        shown = []
        for image, swap, place in zip(images, swaps, places, strict=True):
            if len(self.images) < self.size:
                self.images = torch.cat([self.images, image[None]])
            elif swap:
                old = self.images[place].clone()
                self.images[place] = image
                image = old.to(image.dtype)
            shown.append(image)
        return torch.stack(shown)

    def extra_repr(self) -> str:
        """What `print(network)` shows."""
        return f"size={self.size}"

    def _check(self, images: Tensor) -> None:
        if images.shape[1:] != self.images.shape[1:]:
            raise ModelError(
                f"images of shape {tuple(images.shape[1:])}, the history keeps {tuple(self.images.shape[1:])}",
                remedy="train with one patch size, or with a history of size 0",
            )

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *arguments: Any) -> None:
        """Make room for what is about to be loaded: how many images there are, and how large, is part of the state."""
        stored = state_dict.get(f"{prefix}images")
        if stored is not None:
            if len(stored) > self.size:
                raise ModelError(
                    f"a history of {len(stored)} images, this one keeps {self.size}", remedy="resume with the recipe of the run"
                )
            self.images = torch.empty_like(stored, device=self.images.device)
        super()._load_from_state_dict(state_dict, prefix, *arguments)
