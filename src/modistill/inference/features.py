"""What a segmentor makes of tumour and of background: the maps of its hint sites, at sampled voxels.

Jiang et al., CMEDL (IEEE TMI 2022, https://arxiv.org/abs/2107.07985), take the features of the last two layers, in test
patients, from a patch of 160 x 160 around the tumour in every slice that shows it, balanced between tumour and background,
at most 35,000 pixels a patient. Maps of a lower resolution are brought to that of the image (linearly) and all are
concatenated.

Whatever runs are compared, they are asked at the same voxels.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from modistill.data.cohort import CaseFiles
from modistill.data.preprocessing import Prepared
from modistill.errors import CaseError, LabelError, ModelError, RecipeError
from modistill.hardware import pick_device
from modistill.inference.model import Model
from modistill.methods.base import Method
from modistill.networks.hinted import HintedNetwork

__all__ = ["Features", "VoxelSample", "draw_voxels", "hint_features", "hinted_network", "sample_features"]

_SITE = "high"  # of the last two scales on the way up


@dataclass(frozen=True)
class Features:
    """Features of several models at the same voxels.

    Attributes:
        region: whose voxels count as tumour.
        cases: (N,) the case of each voxel.
        tumour: (N,) whether a voxel belongs to the region.
        values: name of a model -> (N, F), each with an F of its own.
    """

    region: str
    cases: NDArray[np.str_]
    tumour: NDArray[np.bool_]
    values: Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class VoxelSample:
    """Voxels of one case, as many of the tumour as of the background.

    Attributes:
        positions: (N, 3) indices on the prepared grid (D, H, W).
        tumour: (N,) whether a voxel belongs to it.
    """

    positions: NDArray[np.intp]
    tumour: NDArray[np.bool_]


def draw_voxels(region: NDArray[np.bool_], case: str, *, most: int = 400, patch: int = 160, seed: int = 0) -> VoxelSample:
    """Draw voxels without replacement from the patches around a tumour, a patch in every axial slice that shows it.

    Args:
        region: (D, H, W) binary map of the tumour.
        case: id, which decides the draw together with the seed, whatever other cases there are.
        most: voxels in all; fewer where tumour or background has not half as many.
        patch: edge in voxels, around the middle of the tumour in the slice, clipped to the image.
        seed: of the draw.

    Returns:
        The sample; empty where there is no tumour.
    """
    around = np.zeros_like(region)
    for index in np.flatnonzero(region.any(axis=(0, 1))):
        spans = []
        for axis in (0, 1):
            inside = np.flatnonzero(region[:, :, index].any(axis=1 - axis))
            first = (int(inside[0]) + int(inside[-1]) + 1 - patch) // 2
            spans.append(slice(max(0, first), max(0, first + patch)))
        around[spans[0], spans[1], index] = True
    rng = np.random.default_rng([seed, zlib.crc32(case.encode())])
    kinds = [np.argwhere(region & around), np.argwhere(around & ~region)]
    each = min(most // 2, *map(len, kinds))
    drawn = [kind[np.sort(rng.choice(len(kind), each, replace=False))] for kind in kinds]
    return VoxelSample(np.concatenate(drawn), np.repeat([True, False], each))


def hinted_network(model: Model) -> HintedNetwork:
    """The segmentor of a model, whose maps are asked for.

    Raises:
        ModelError: it has no hint sites.
    """
    deployed = model.method.get_submodule(model.method.deployed)
    for network in deployed.modules():
        if isinstance(network, HintedNetwork):
            return network
    raise ModelError(
        f"{type(deployed).__name__} has no hint sites, whose features could be shown",
        file=model.source,
        remedy="give runs of segmentor or cmedl",
    )


def hint_features(model: Model, images: NDArray[np.float32], positions: NDArray[np.intp]) -> NDArray[np.float32]:
    """The features of a model at voxels of one case.

    Args:
        model: with a network that has hint sites, in eval mode.
        images: (M, D, H, W), prepared; whole slices or, by a network of three axes, the whole volume are read at once.
        positions: (N, 3) voxels on that grid.

    Returns:
        (N, F), F the channels of both maps together.

    Raises:
        ModelError: it has no hint sites, or the images are too small.
    """
    network, method = hinted_network(model), model.method
    inputs = torch.from_numpy(images)[None].to(next(network.parameters()).device)
    if method.dims == 3:
        return _at(_maps(method, network, inputs), images.shape[1:], positions)
    found = np.empty((len(positions), sum(network.hint_channels(_SITE))), dtype=np.float32)
    for index in np.unique(positions[:, 2]):
        here = positions[:, 2] == index
        found[here] = _at(_maps(method, network, inputs[..., int(index)]), images.shape[1:3], positions[here, :2])
    return found


def sample_features(
    models: Sequence[Model],
    cases: Sequence[CaseFiles],
    *,
    region: str | None = None,
    most: int = 400,
    patch: int = 160,
    seed: int = 0,
    device: str = "cpu",
    on_case: Callable[[int, int], None] | None = None,
) -> Features:
    """The features of several models at the same voxels of the same cases.

    Args:
        models: with networks that have hint sites.
        cases: those without reference labels do not count, nor those without the region.
        region: of the first model's label convention; None for its first.
        most: see `draw_voxels`.
        patch: see `draw_voxels`.
        seed: see `draw_voxels`.
        device: "auto", "cpu", "cuda", "cuda:1" or "mps".
        on_case: called with (cases done, cases in all).

    Raises:
        ModelError: a network has no hint sites.
        RecipeError: two models of one name, or which bring cases onto different grids.
        CaseError: a case lacks what a model reads, or no case shows the region.
        LabelError: there is no such region.
        FileError, GeometryError: a file cannot be used.
    """
    _require_comparable(models)
    for model in models:
        model.method.get_submodule(model.method.deployed).eval().to(pick_device(device))
    regions = models[0].convention.class_regions
    chosen = next(iter(regions)) if region is None else region
    if chosen not in regions:
        raise LabelError(f"{models[0].name} finds no {chosen}", remedy=f"it finds {', '.join(regions)}")
    labelled = [case for case in cases if case.labels is not None]
    names: list[str] = []
    tumour: list[NDArray[np.bool_]] = []
    values: dict[str, list[NDArray[np.float32]]] = {model.name: [] for model in models}
    for done, files in enumerate(labelled, start=1):
        prepared = _prepared(models, files)
        mask = np.isin(_labels(prepared[0]), sorted(regions[chosen]))
        sample = draw_voxels(mask, files.id, most=most, patch=patch, seed=seed)
        if len(sample.tumour):
            names += [files.id] * len(sample.tumour)
            tumour.append(sample.tumour)
            for model, one in zip(models, prepared, strict=True):
                values[model.name].append(hint_features(model, one.images, sample.positions))
        if on_case:
            on_case(done, len(labelled))
    if not names:
        raise CaseError(f"no case has reference labels with {chosen}", remedy="give cases with reference labels")
    stacked = {name: np.concatenate(found) for name, found in values.items()}
    return Features(chosen, np.array(names), np.concatenate(tumour), stacked)


def _require_comparable(models: Sequence[Model]) -> None:
    """Refuse models without hint sites, and two of one name."""
    for model in models:
        hinted_network(model)
    names = [model.name for model in models]
    if len(set(names)) < len(names):
        raise RecipeError(f"runs are named {', '.join(names)}", remedy="give runs of different names")


def _prepared(models: Sequence[Model], files: CaseFiles) -> list[Prepared]:
    """A case as each model reads it, all on one grid."""
    for model in models:
        if lacking := [name for name in model.reads if name not in files.modalities]:
            raise CaseError(f"lacks {', '.join(lacking)}, which {model.name} reads", case=files.id)
    case = files.read(dict.fromkeys(name for model in models for name in model.reads))
    prepared = [model.preprocessing.apply(case) for model in models]
    for model, one in zip(models, prepared, strict=True):
        if one.geometry != prepared[0].geometry:
            told = f"{model.name} and {models[0].name} bring {files.id} onto different grids"
            raise RecipeError(told, remedy="compare runs of one prepared cohort")
    return prepared


def _labels(prepared: Prepared) -> NDArray[np.uint8]:
    """Class indices (D, H, W) of a case that has a reference."""
    if prepared.labels is None:
        raise CaseError("has no reference labels")
    return prepared.labels


def _maps(method: Method, network: HintedNetwork, images: Tensor) -> tuple[Tensor, ...]:
    """The maps of the site, for what the method gives its network of these images."""
    given: list[Tensor] = []
    with torch.inference_mode(), network.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0])):
        method.segment(images)
        return network.with_hints(given[0], _SITE)[1]


def _at(maps: Sequence[Tensor], size: Sequence[int], positions: NDArray[np.intp]) -> NDArray[np.float32]:
    """(N, F): maps (1, C, *spatial of their scale), brought to `size`, at these voxels."""
    flat = torch.from_numpy(np.ravel_multi_index(tuple(positions.T), tuple(size)))
    mode = {2: "bilinear", 3: "trilinear"}[len(size)]
    whole = [functional.interpolate(x.float(), tuple(size), mode=mode, align_corners=False)[0] for x in maps]
    return np.concatenate([x.flatten(1)[:, flat.to(x.device)].cpu().numpy() for x in whole]).T
