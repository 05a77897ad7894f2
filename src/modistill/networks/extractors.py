"""Feature extractors that never learn: what the contextual loss compares two images by.

All have one interface, `extractor(images) -> maps`: images (B, 1, *spatial) in [-1, 1], a map (B, channels, *) for each layer.
CMEDL (Jiang et al., IEEE TMI 2022, https://arxiv.org/abs/2107.07985) takes three layers of the VGG19 of Simonyan and Zisserman
(ICLR 2015, https://arxiv.org/abs/1409.1556), trained on ImageNet: conv3_3, conv3_4 and conv4_1. With k = 64:

=====  ================================  ======================  ==========
scale  channels of its 3x3 convolutions  index in torchvision    resolution
=====  ================================  ======================  ==========
1      in -> k -> k                      0, 2                    1
2      2k -> 2k                          5, 7                    1/2
3      4k -> 4k -> 4k -> 4k              10, 12, 14, 16          1/4
4      8k -> 8k -> 8k -> 8k              19, 21, 23, 25          1/8
5      8k -> 8k -> 8k -> 8k              28, 30, 32, 34          1/16
=====  ================================  ======================  ==========

ReLU follows every convolution, max-pooling every scale. No more layers are built than are asked for. The weights cannot be part
of this package: they are the user's file. The other extractors need none, but results with them are not the paper's. So keep
`record()` with every run.

Differs from the paper
    1. It names VGG19 in one section and VGG16 in another. The sizes it prints for the seventh to ninth convolution, 64x64x256
       twice and 32x32x512 for images of 256x256, are VGG19's; in VGG16 the eighth has 32x32x512 already.
    2. How images are given to VGG is not stated: here moved to [0, 1], repeated to three channels, and standardised by
       ImageNet's means and deviations. Nor whether maps are taken before ReLU, as here, or after it (`after_relu`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Self, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import skip_init
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from modistill.errors import ModelError
from modistill.networks.convolution import CONVOLUTION

__all__ = ["EncoderFeatures", "FeatureExtractor", "GradientFeatures", "RandomFeatures", "Record", "VGG19Features"]

Record: TypeAlias = dict[str, str | int | float | bool | list[str] | None]

_CMEDL = ("conv3_3", "conv3_4", "conv4_1")
_VGG19 = tuple(  # in torchvision's order
    name
    for scale, count in enumerate((2, 2, 4, 4, 4), start=1)
    for name in (*(part for number in range(1, count + 1) for part in (f"conv{scale}_{number}", "relu")), "pool")
)
_INDEX = {name: index for index, name in enumerate(_VGG19) if name.startswith("conv")}  # that of conv3_3 is 14
_POOLING = {2: nn.MaxPool2d, 3: nn.MaxPool3d}


class FeatureExtractor(nn.Module):
    """Maps of several layers of an image, from weights that no training changes.

    It is in eval mode always, and its parameters ask for no gradient; a gradient still goes through it to the images.

    Attributes:
        kind: name of the extractor, for records.
        layers: names of the layers, in the order of the maps.
    """

    kind: ClassVar[str]
    layers: tuple[str, ...]

    def train(self, mode: bool = True) -> Self:
        """Eval mode, whatever is asked for."""
        return super().train(False)

    def digest(self) -> str:
        """SHA-256 over names, types, shapes and bytes of the weights as they are now."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def record(self) -> Record:
        """What a run keeps, to say what its images were compared by: plain values."""
        return {"kind": self.kind, "layers": list(self.layers), "digest": self.digest(), "seed": None}

    def _freeze(self) -> None:
        self.requires_grad_(False).eval()


class _VGG(FeatureExtractor):
    """The layers of VGG19 up to the last one asked for. Subclasses give them weights."""

    def __init__(self, layers: Sequence[str], in_channels: int, width: int, dims: int, after_relu: bool) -> None:
        super().__init__()
        if not layers or not {*layers} <= _INDEX.keys() or len({*layers}) < len(layers):
            raise ValueError(f"layers are {list(layers)}, different names from conv1_1 to conv5_4 are needed")
        self.layers, self.dims, self.after_relu = tuple(layers), dims, after_relu
        self._wanted = {_INDEX[name] + after_relu: name for name in layers}
        self.features = nn.Sequential()  # with torchvision's names
        n = in_channels
        for name in _VGG19[: max(self._wanted) + 1]:
            if name in _INDEX:
                channels = width * min(2 ** (int(name[4]) - 1), 8)
                # without the numbers it would start from: an extractor must not change what else is drawn at random
                self.features.append(skip_init(CONVOLUTION[dims], n, channels, 3, padding=1))  # type: ignore[no-untyped-call]
                n = channels
            else:
                self.features.append(nn.ReLU() if name == "relu" else _POOLING[dims](2))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """A map (B, channels, *spatial / 2^(scale - 1)) of each layer, from images (B, 1, *spatial) in [-1, 1].

        Raises:
            ModelError: more than one channel, other axes, or an axis that cannot be halved so often.
        """
        _check(images, self.dims, least=2 ** _VGG19[: len(self.features)].count("pool"))
        x, maps = self._given(images), {}
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self._wanted:
                maps[self._wanted[index]] = x
        return tuple(maps[name] for name in self.layers)

    def record(self) -> Record:
        """See `FeatureExtractor`."""
        return {**super().record(), "after_relu": self.after_relu}

    def _given(self, images: Tensor) -> Tensor:
        """Images as the first layer reads them."""
        return images


class VGG19Features(_VGG):
    """VGG19 with weights from a file, in two dimensions.

    Args:
        file: the state dict of torchvision's `vgg19` (without batch norm), as `.pth` or as `.safetensors`; opening it runs no
            code. Only `features.*` up to the last layer asked for need be there.
        layers: names from "conv1_1" to "conv5_4".
        after_relu: take the maps after ReLU, not before.

    Raises:
        ModelError: there is no such file, it cannot be read, or it holds other weights.
        ValueError: unknown layers.
    """

    kind = "vgg19"
    mean: Tensor
    deviation: Tensor

    def __init__(self, file: str, layers: Sequence[str] = _CMEDL, *, after_relu: bool = False) -> None:
        super().__init__(layers, 3, 64, 2, after_relu)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).reshape(1, 3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor([0.229, 0.224, 0.225]).reshape(1, 3, 1, 1), persistent=False)
        self.load_state_dict(_vgg19_weights(file, {name: tensor.shape for name, tensor in self.state_dict().items()}))
        self._freeze()

    def _given(self, images: Tensor) -> Tensor:
        return ((images + 1) / 2 - self.mean) / self.deviation


class RandomFeatures(_VGG):
    """The layers of VGG19 with random weights, for one channel, in two dimensions or three; no file is needed.

    In perceptual losses of paired images random networks have served, too (Liu et al., "Generic Perceptual Loss for Modeling
    Structured Output Dependencies", CVPR 2021, https://arxiv.org/abs/2103.10571). For the contextual loss of unpaired images we
    know of no evidence. Weights are Kaiming-normal, biases zero.

    Args:
        layers: names from "conv1_1" to "conv5_4".
        seed: of the weights; equal seeds give equal weights.
        width: channels of the first scale (`k` of the table).
        dims: 2 or 3.
        after_relu: take the maps after ReLU, not before.
        centred: take each channel's mean over the positions of an image away from it: what all positions share, such as an
            offset of the intensities, then says nothing.

    Raises:
        ValueError: unknown layers.

    Example:
        >>> maps = RandomFeatures(seed=0, width=4)(torch.zeros(2, 1, 32, 32))
        >>> [tuple(one.shape) for one in maps]
        [(2, 16, 8, 8), (2, 16, 8, 8), (2, 32, 4, 4)]
    """

    kind = "random"

    def __init__(
        self,
        layers: Sequence[str] = _CMEDL,
        *,
        seed: int = 0,
        width: int = 64,
        dims: int = 2,
        after_relu: bool = False,
        centred: bool = True,
    ) -> None:
        super().__init__(layers, 1, width, dims, after_relu)
        self.seed, self.width, self.centred = seed, width, centred
        generator = torch.Generator().manual_seed(seed)
        for layer in self.features:
            if isinstance(layer, nn.Conv2d | nn.Conv3d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        self._freeze()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """See `_VGG`."""
        maps = super().forward(images)
        return tuple(x - x.mean(tuple(range(2, x.ndim)), keepdim=True) for x in maps) if self.centred else maps

    def record(self) -> Record:
        """See `FeatureExtractor`."""
        return {**super().record(), "seed": self.seed, "width": self.width, "centred": self.centred}


class GradientFeatures(FeatureExtractor):
    """Intensities and gradients of the neighbourhood of every position, without weights: for tests, and where nothing else is.

    An image is averaged over blocks of `scale` voxels; the map holds, for each block, the averages and their central
    differences along every axis in the `patch` x `patch` blocks around it (beyond the edge, the last ones again).

    Args:
        scales: one map for each; those of CMEDL's layers are 4 and 8.
        patch: odd number of blocks along an axis.
        dims: 2 or 3.

    Raises:
        ValueError: no scale, a scale below 1, or an even patch.

    Example:
        >>> maps = GradientFeatures(scales=(2,), patch=3)(torch.zeros(1, 1, 16, 16))
        >>> tuple(maps[0].shape)  # 3 x 3 x (intensity, two differences)
        (1, 27, 8, 8)
    """

    kind = "gradient"

    def __init__(self, scales: Sequence[int] = (4, 8), *, patch: int = 5, dims: int = 2) -> None:
        super().__init__()
        if not scales or min(scales) < 1 or patch < 1 or patch % 2 == 0:
            raise ValueError(f"scales are {list(scales)} and patch is {patch}: positive numbers, patch odd")
        self.scales, self.patch, self.dims = tuple(scales), patch, dims
        self.layers = tuple(f"1/{scale}" for scale in scales)
        self._freeze()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """A map (B, (1 + dims) * patch^dims, *spatial / scale) of each scale, from images (B, 1, *spatial) in [-1, 1].

        Raises:
            ModelError: more than one channel, other axes, or an axis of fewer than two blocks.
        """
        _check(images, self.dims, least=2 * max(self.scales))
        return tuple(self._of_scale(images, scale) for scale in self.scales)

    def record(self) -> Record:
        """See `FeatureExtractor`."""
        return {**super().record(), "digest": None, "patch": self.patch}

    def _of_scale(self, images: Tensor, scale: int) -> Tensor:
        pool = functional.avg_pool3d if self.dims == 3 else functional.avg_pool2d
        x, axes = pool(images, scale), tuple(range(2, 2 + self.dims))
        x = torch.cat([x, *torch.gradient(x, dim=axes)], 1)
        x = functional.pad(x, [self.patch // 2] * (2 * self.dims), mode="replicate")
        for axis in axes:
            x = x.unfold(axis, self.patch, 1)  # (B, 1 + dims, *spatial, patch, ...)
        return x.flatten(2 + self.dims).movedim(-1, 2).flatten(1, 2)


class EncoderFeatures(FeatureExtractor):
    """Maps of a segmentor's encoder, which follows the segmentor as an exponential moving average.

    In losses of paired images a frozen segmentation network has served (https://arxiv.org/abs/2410.10328). For the contextual
    loss of unpaired images we know of no evidence. Between two calls of `update` the copy stands still.

    Args:
        network: what is copied: a segmentor, or its encoder alone, of the modality of both images.
        maps: called with the copy and with images (B, 1, *spatial), gives a map for each layer; None: the copy gives them.
        layers: their names.
        decay: share of the average that stays at an update; the first update copies.

    Raises:
        ValueError: the decay is not in [0, 1).

    Example:
        >>> encoder = nn.Conv2d(1, 4, 3)
        >>> extractor = EncoderFeatures(encoder, layers=["conv"])
        >>> extractor.update(encoder)  # after each step of the segmentor
        >>> tuple(extractor(torch.zeros(2, 1, 8, 8))[0].shape)
        (2, 4, 6, 6)
    """

    kind = "encoder"

    def __init__(
        self,
        network: nn.Module,
        maps: Callable[[nn.Module, Tensor], Tensor | Sequence[Tensor]] | None = None,
        *,
        layers: Sequence[str],
        decay: float = 0.999,
    ) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"decay is {decay}, it must be at least 0 and below 1")
        self.layers, self.decay, self._maps = tuple(layers), decay, maps
        average: Callable[..., None] = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        self.average = AveragedModel(network, multi_avg_fn=average, use_buffers=True)
        self._freeze()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """What `maps` gives for images (B, 1, *spatial) in [-1, 1].

        Raises:
            ModelError: it does not give one map for every layer.
        """
        copy = self.average.module
        found = copy(images) if self._maps is None else self._maps(copy, images)
        maps = (found,) if isinstance(found, Tensor) else tuple(found)
        if len(maps) != len(self.layers):
            raise ModelError(f"{len(maps)} maps for the layers {', '.join(self.layers)}", remedy="name every map once")
        return maps

    def update(self, network: nn.Module) -> None:
        """Move the average towards the weights and running statistics of the network as it is now."""
        self.average.update_parameters(network)

    def record(self) -> Record:
        """See `FeatureExtractor`; the digest is that of the average as it is now."""
        return {**super().record(), "decay": self.decay}


def _check(images: Tensor, dims: int, least: int) -> None:
    """See that there is one channel, so many axes, and so many voxels along each."""
    channels, *size = images.shape[1:]
    if channels != 1 or len(size) != dims:
        raise ModelError(
            f"images of {channels} channels and {len(size)} axes, the extractor reads 1 and {dims}",
            remedy="give one modality, and build the extractor with dims of the images",
        )
    if min(size) < least:
        raise ModelError(
            f"images of {'x'.join(map(str, size))} voxels are too small for the extractor: every axis needs {least}",
            remedy="choose a larger patch, or layers nearer to the image",
        )


def _vgg19_weights(file: str, wanted: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """The wanted weights of a file, checked, in single precision."""
    remedy = "give the state dict of torchvision's vgg19, without batch norm, as .pth or .safetensors"
    try:
        tensors = _read_safetensors(file) if str(file).endswith(".safetensors") else _read_pickled(file)
    except FileNotFoundError as error:
        raise ModelError("no weights of VGG19 here", file=file, remedy=remedy) from error
    except Exception as error:  # whatever a foreign file makes of its reader
        reason = " ".join(str(error).split())[:150] or type(error).__name__
        raise ModelError(f"cannot be read as weights: {reason}", file=file, remedy=remedy) from error
    known = {f"features.{index}.{part}" for index in _INDEX.values() for part in ("weight", "bias")}
    foreign, missing = sorted(tensors.keys() - known), sorted(wanted.keys() - tensors.keys())
    if foreign or missing:
        reason = f"it has {foreign[0]}" if foreign else f"it lacks {missing[0]}"
        raise ModelError(f"not the layers of VGG19: {reason}", file=file, remedy=remedy)
    for name, shape in wanted.items():
        if (found := tensors[name].shape) != shape:
            raise ModelError(f"not VGG19: {name} is {tuple(found)}, it should be {tuple(shape)}", file=file, remedy=remedy)
        if not torch.isfinite(tensors[name]).all():
            raise ModelError(f"{name} is not finite", file=file, remedy="fetch the file again")
    return {name: tensors[name].float() for name in wanted}


def _read_pickled(file: str) -> dict[str, Tensor]:
    """The tensors `features.*` of a file of `torch.save`; whatever else a pickle asks for is refused, not run."""
    content = torch.load(file, map_location="cpu", weights_only=True)
    if not isinstance(content, Mapping):
        raise ValueError(f"it holds a {type(content).__name__}, not a state dict")
    return {name: value for name, value in content.items() if str(name).startswith("features.") and isinstance(value, Tensor)}


def _read_safetensors(file: str) -> dict[str, Tensor]:
    """The tensors `features.*` of a safetensors file: the length of a JSON header, the header, and the numbers."""
    kinds = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
    tensors = {}
    with open(file, "rb") as content:
        length = int.from_bytes(content.read(8), "little")
        header = json.loads(content.read(length))
        for name, entry in header.items():
            if name.startswith("features."):
                begin, end = entry["data_offsets"]
                content.seek(8 + length + begin)
                numbers = torch.frombuffer(bytearray(content.read(end - begin)), dtype=kinds[entry["dtype"]])
                tensors[name] = numbers.reshape(entry["shape"])
    return tensors
