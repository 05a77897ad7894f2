"""A translation of any sequence into any other whose answers can be worked out by hand, and patients for it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import nibabel
import numpy as np
import torch
from torch import Tensor, nn

from modistill.data.naming import conventions
from modistill.data.preprocessing import Preprocessing
from modistill.inference.model import Model
from modistill.methods.base import TranslationMethod

ALL = ("flair", "t1", "t1ce", "t2")
FACTORS = {"flair": 1.0, "t1": 0.5, "t1ce": 0.25, "t2": 0.75}
WINDOW = (0.0, 1000.0)
SHAPE = (17, 15, 13)


class AnyToAny(TranslationMethod):
    """Whatever it is given times the factor of the target; slice by slice."""

    deployed = "network"
    dims = 2

    def __init__(self, factors: Mapping[str, float] = FACTORS, reads: tuple[str, ...] = ALL) -> None:
        super().__init__()
        self.reads, self.targets, self.players = {"network": reads}, tuple(factors), {}
        self.network = nn.ParameterDict({name: nn.Parameter(torch.tensor(value)) for name, value in factors.items()})

    def losses(self, batch):
        raise NotImplementedError

    def translate(self, images: Tensor, target: str) -> Tensor:
        if images.shape[1] != 1 or images.ndim != 4:
            raise ValueError(images.shape)
        return images * self.network[target]


def any_model(
    name: str = "utad",
    factors: Mapping[str, float] = FACTORS,
    reads: tuple[str, ...] = ALL,
    *,
    scales: Mapping[str, object] | None = None,
    digest: str = "0123456789abcdef",
    **preparation: object,
) -> Model:
    """Sequences are normalised by a window unless `scales` says otherwise."""
    names = tuple(dict.fromkeys((*reads, *factors)))
    how = dict.fromkeys(names, WINDOW) | dict(scales or {})
    prepared = Preprocessing(names, names, how, **preparation)
    read = Preprocessing(reads, reads, how, **preparation)
    targets = {target: prepared.alone(target) for target in factors}
    return Model(name, AnyToAny(factors, reads), read, conventions["brats2023"], digest=digest, targets=targets)


def sequence(name: str, seed: int = 0) -> np.ndarray:
    """Whole numbers from 100 to 799 in a box, other ones in each sequence, in a zero background."""
    voxels = np.zeros(SHAPE, np.float32)
    inside = voxels[2:-2, 2:-1, 1:-1]
    inside[:] = np.random.default_rng((seed, ALL.index(name))).integers(100, 800, inside.shape)
    return voxels


def write(path: Path, voxels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([1.0, 1.0, 2.0, 1.0])), path)
    return path


def write_patients(root: Path, has: Mapping[str, tuple[str, ...]], *, labels: bool = False) -> Path:
    """Case -> its sequences, in the naming of BraTS; with a tumour of all three classes where asked for."""
    for seed, (case, names) in enumerate(has.items()):
        for name in names:
            write(root / case / f"{case}_{name}.nii.gz", sequence(name, seed))
        if labels:
            tumour = np.zeros(SHAPE, np.uint8)
            tumour[5:11, 5:10, 4:8], tumour[7:10, 6:9, 5:8], tumour[8, 7, 5:7] = 2, 4, 1
            write(root / case / f"{case}_seg.nii.gz", tumour)
    return root
