"""Sliding windows: a network sees a volume part by part, and the parts are blended into one answer.

What is blended are *probabilities*, not logits: a window that is very sure of itself then counts no more than its neighbour
does, and a class that one of two windows excludes still gets the other's half. Mirrored views are averaged in the same way.
Weights fall off from the middle of a window like a Gaussian (sigma an eighth of its edge), because a network knows least at
its borders.

The windows are MONAI's `sliding_window_inference`, imported here and nowhere else. Measured (benchmarks/inference.py): with the
softmax they add 4 to 5 % to the time of a network of width 8 and 1.4 % at width 16; what they hold is one volume of
probabilities and one of weights, however many windows there are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from modistill.data.geometry import Triple, centred
from modistill.errors import ModelError, RecipeError
from modistill.inference.sampling import Mirrored, Once, Sampler

__all__ = ["OnWindow", "blend_windows", "by_slices", "count_windows", "predict_windows", "sample_windows", "within_memory"]

OnWindow: TypeAlias = Callable[[int, int], None]  # windows done, windows in all


def predict_windows(
    segment: Callable[[Tensor], Tensor],
    images: Tensor,
    *,
    window: Triple | None = None,
    overlap: float = 0.5,
    mirror: Sequence[int] = (),
    batch: int = 1,
    minimum: Triple = (1, 1, 1),
    device: torch.device | str = "cpu",
    on_window: OnWindow | None = None,
) -> Tensor:
    """Class probabilities of a whole volume.

    Args:
        segment: images (B, M, d, h, w) -> logits (B, C, d, h, w), on `device`.
        images: (M, D, H, W).
        window: voxels (d, h, w) seen at once; None, or a window that covers the volume, for one pass.
        overlap: of neighbouring windows, as a fraction of their edges.
        mirror: axes (0, 1, 2 for D, H, W); the mean is taken over all 2^n combinations of mirrored axes.
        batch: windows in one pass of the network.
        minimum: smaller volumes are padded with zeros to this size (d, h, w), and the answer is cut back.
        device: where the network lies; the answer lies there too.
        on_window: told after every pass of the network how many windows are done.

    Returns:
        (C, D, H, W) float32; they add up to 1 in every voxel.

    Raises:
        ModelError: a logit is NaN or infinite.
        RecipeError: window, overlap or mirrored axes that make no sense.
    """
    sampler = Mirrored(Once(segment), mirror)
    windows = {"window": window, "overlap": overlap, "batch": batch, "minimum": minimum}
    return sample_windows(sampler, images, device=device, on_window=on_window, **windows)  # type: ignore[arg-type]


def sample_windows(
    sampler: Sampler,
    images: Tensor,
    *,
    entropy: bool = False,
    window: Triple | None = None,
    overlap: float = 0.5,
    batch: int = 1,
    minimum: Triple = (1, 1, 1),
    device: torch.device | str = "cpu",
    on_window: OnWindow | None = None,
) -> Tensor:
    """Mean class probabilities of a whole volume over everything that a sampler answers.

    Sums run along with the samples: their number costs time, and no memory.

    Args:
        sampler: images (B, M, d, h, w) -> several logits (B, C, d, h, w), on `device`.
        images: (M, D, H, W).
        entropy: also give the mean over the samples of -sum_c p_c ln p_c, as one more channel.
        window: as for `predict_windows`.
        overlap: as for `predict_windows`.
        batch: as for `predict_windows`.
        minimum: as for `predict_windows`.
        device: as for `predict_windows`.
        on_window: as for `predict_windows`.

    Returns:
        (C, D, H, W) float32, or (C + 1, D, H, W) with the mean entropy (in nats) last.

    Raises:
        ModelError: a logit is NaN or infinite.
        RecipeError: a window or overlap that makes no sense.
    """
    finite = torch.ones((), dtype=torch.bool, device=device)

    def averaged(patches: Tensor) -> Tensor:
        nonlocal finite
        total, count = torch.zeros(()), 0
        for logits in sampler(patches):
            logits, count = logits.float(), count + 1
            finite = finite & torch.isfinite(logits.sum())  # a sum carries NaN and infinity, and needs no copy
            p = logits.softmax(dim=1)
            if entropy:
                p = torch.cat([p, torch.special.entr(p).sum(dim=1, keepdim=True)], dim=1)
            total = p if count == 1 else total.add_(p)
        return total if count == 1 else total.div_(count)

    with torch.inference_mode():
        blended = blend_windows(
            averaged,
            images.to(device, torch.float32),
            window=window,
            overlap=overlap,
            batch=batch,
            minimum=minimum,
            on_window=on_window,
        )
    if not finite:  # asked once, at the end: each question would make a GPU wait
        raise ModelError("the network's output is not finite", remedy="look at the images, or try --precision 32")
    return blended


def blend_windows(
    function: Callable[[Tensor], Tensor],
    images: Tensor,
    *,
    window: Triple | None = None,
    overlap: float = 0.5,
    batch: int = 1,
    minimum: Triple = (1, 1, 1),
    on_window: OnWindow | None = None,
) -> Tensor:
    """The weighted mean of what a function says of all windows that cover a volume.

    Args:
        function: (B, M, d, h, w) -> (B, C, d, h, w), of any meaning.
        images: (M, D, H, W); the function is given parts of it on the same device.
        window: as for `predict_windows`.
        overlap: as for `predict_windows`.
        batch: as for `predict_windows`.
        minimum: as for `predict_windows`.
        on_window: as for `predict_windows`.

    Returns:
        (C, D, H, W). In a voxel that one window covers, what the function said there.

    Raises:
        RecipeError: a window or overlap that makes no sense.
    """
    _require_sense(window, overlap)
    size = tuple(images.shape[1:])
    margins = [centred(n, max(n, least)) for n, least in zip(size, minimum, strict=True)]
    padded = functional.pad(images, [amount for margin in reversed(margins) for amount in margin])
    seen = _fitting(window, padded.shape[1:])
    total, done = count_windows(padded.shape[1:], window, overlap), 0

    def watched(patches: Tensor) -> Tensor:
        nonlocal done
        answer = function(patches)
        done += len(patches)
        if on_window is not None:
            on_window(done, total)
        return answer

    if total == 1:
        blended = watched(padded[None])[0]
    else:
        from monai.inferers import sliding_window_inference

        blended = sliding_window_inference(padded[None], seen, batch, watched, overlap=overlap, mode="gaussian")[0]
    d, h, w = (slice(before, before + n) for (before, _), n in zip(margins, size, strict=True))
    return blended[:, d, h, w]


def by_slices(segment: Callable[[Tensor], Tensor], at_once: int = 8) -> Callable[[Tensor], Tensor]:
    """A network of axial slices, as one of volumes.

    Args:
        segment: images (B, M, D, H) -> (B, C, D, H).
        at_once: slices in one pass.

    Returns:
        Images (B, M, D, H, W) -> (B, C, D, H, W).
    """

    def whole(images: Tensor) -> Tensor:
        slices = images.movedim(-1, 1)
        found = torch.cat([segment(part) for part in torch.split(slices.flatten(0, 1), at_once)])
        return found.reshape(*slices.shape[:2], *found.shape[1:]).movedim(1, -1)

    return whole


def count_windows(size: Sequence[int], window: Triple | None, overlap: float = 0.5) -> int:
    """How many windows cover a volume of this size.

    Example:
        >>> count_windows((160, 192, 152), (96, 96, 96)), count_windows((40, 40, 40), None)
        (27, 1)
    """
    edges = zip(size, _fitting(window, size), strict=True)
    return math.prod(1 + math.ceil((n - edge) / max(1, int(edge * (1 - overlap)))) for n, edge in edges)


@contextmanager
def within_memory(size: Sequence[int], device: torch.device | str) -> Iterator[None]:
    """Work on so many voxels (d, h, w) at once: if memory is full, a user is told what to do.

    Raises:
        ModelError: it is.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        voxels = "x".join(map(str, size))
        raise ModelError(
            f"{voxels} voxels do not fit into the memory of {device}", remedy="try --device cpu, or a smaller window"
        ) from error


def _fitting(window: Triple | None, size: Sequence[int]) -> Triple:
    """The window, nowhere larger than the volume: zeros beyond its border would tell the network nothing."""
    d, h, w = size if window is None else map(min, window, size)
    return d, h, w


def _require_sense(window: Triple | None, overlap: float) -> None:
    if not 0 <= overlap < 1:
        raise RecipeError(f"overlap is a fraction from 0 to below 1, got {overlap}", remedy="0.5 is usual")
    if window is not None and (len(window) != 3 or min(window) < 1):
        raise RecipeError(f"a window has three positive edges, got {list(window)}")
