"""What the machine can do: devices, precisions, memory allocation."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from modistill.errors import RecipeError

__all__ = ["SoundConvolutions", "pick_device", "pick_precision", "tune_allocator", "wide"]


def pick_device(name: str) -> torch.device:
    """The device of this name; "auto" is the first GPU, else Apple's, else the CPU.

    Raises:
        RecipeError: there is no such device here.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", 0)
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise RecipeError(f"no device {name!r}", remedy="auto, cpu, cuda, cuda:1, mps") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise RecipeError(f"no device {name}: {torch.cuda.device_count()} CUDA devices are visible", remedy="--device auto")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise RecipeError("no device mps on this machine", remedy="--device auto")
    if device.type not in {"cpu", "cuda", "mps"}:
        raise RecipeError(f"no device {name!r}", remedy="auto, cpu, cuda, cuda:1, mps")
    return device


def pick_precision(device: torch.device) -> Literal["32", "bf16-mixed"]:
    """bf16-mixed where the hardware multiplies bf16 numbers natively, else 32.

    On a CPU without AVX512-BF16 or AMX bf16 is emulated and slower than fp32.
    """
    if device.type == "cuda":
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32"
    if device.type == "cpu":
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return "bf16-mixed" if native else "32"
    return "32"


def tune_allocator() -> None:
    """Keep freed memory for the next large tensor instead of giving it back to the kernel (glibc only; else nothing).

    Volumes are allocated and freed at every layer; by default each such block is a fresh mapping whose pages fault one by one,
    which takes up to ten times as long as adding two volumes. One arena, so that the thread of the backward pass finds what
    the forward pass has freed.
    """
    if not sys.platform.startswith("linux"):
        return
    trim_threshold, mmap_max, arena_max = -1, -4, -8
    try:
        library = ctypes.CDLL(None)
        library.mallopt(mmap_max, 0)
        library.mallopt(trim_threshold, -1)  # as an unsigned number: never
        library.mallopt(arena_max, 1)
    except (OSError, AttributeError):
        return


def wide(x: Tensor) -> Tensor:
    """`x` in single precision at least: what sums over many voxels, and losses, are computed in."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class SoundConvolutions(TorchFunctionMode):
    """While it is entered, CPU convolutions of small maps are computed in fp32, also under bf16 autocast.

    oneDNN's bf16 gradient of the weights, as PyTorch 2.13 brings it, reads and writes memory that is not its own where an
    axis of the map is hardly longer than the kernel: gradients are wrong or not finite, or the process dies. Of random layers
    with an axis up to the kernel's length at least one in 100 showed it, of some 4,000 with longer axes none. Small maps cost
    next to nothing.
    """

    _CONVOLUTIONS = frozenset((torch.conv2d, torch.conv3d, torch.conv_transpose2d, torch.conv_transpose3d))

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, arguments: Sequence[Any] = (), options: Mapping[str, Any] | None = None
    ) -> Any:
        """`function` of its arguments."""
        if function not in self._CONVOLUTIONS or not self._at_risk(*arguments[:2]):
            return function(*arguments, **(options or {}))
        with torch.autocast("cpu", enabled=False):
            single = [value.float() if isinstance(value, Tensor) else value for value in arguments]
            return function(*single, **(options or {})).bfloat16()

    def _at_risk(self, x: Tensor, weight: Tensor) -> bool:
        """Whether a map with an axis no longer than the kernel is about to be convolved in bf16 on a CPU."""
        bf16 = torch.is_autocast_enabled("cpu") or x.dtype == torch.bfloat16
        return (
            x.device.type == "cpu" and bf16 and any(n <= taps for n, taps in zip(x.shape[2:], weight.shape[2:], strict=False))
        )
