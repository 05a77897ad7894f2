"""Tiny cases with a known content, in memory, as files and prepared; and work that goes wrong in other processes."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from modistill.data.case import Case
from modistill.data.folder import find_cases
from modistill.data.nifti import write_volume
from modistill.data.preparing import Preparation, prepare
from modistill.data.preprocessing import Preprocessing
from modistill.data.volume import Volume
from modistill.errors import CaseError

ALL, AVAILABLE = ("flair", "t1ce", "t1", "t2"), ("flair", "t1", "t2")


def make_case(shape=(20, 17, 23), spacing=(1.0, 1.0, 1.0), seed=0, modalities=ALL, labels=True) -> Case:
    """An ellipsoid of noise on zero, with a labelled ball in it."""
    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*[np.linspace(-1.3, 1.3, n) for n in shape], indexing="ij")
    radius = np.sqrt(sum(axis**2 for axis in axes))
    affine = np.diag([*spacing, 1.0])
    images = {name: Volume((radius < 1) * rng.uniform(50, 400, shape).astype(np.float32), affine) for name in modalities}
    classes = (np.digitize(-radius, [-0.5, -0.35, -0.2]) * (radius < 1)).astype(np.int16)
    reference = Volume(np.array([0, 2, 1, 4], np.int16)[classes], affine)
    return Case("p1", images, reference if labels else None, "brats2021")


def write_folder(root: Path, cases: int = 5, shape=(20, 17, 23)) -> Path:
    """BraTS folders `BraTS21_000` ..., each of another size."""
    for index in range(cases):
        case = make_case((shape[0] + index, shape[1], shape[2] - index), seed=index)
        name = f"BraTS21_{index:03d}"
        for modality, volume in case.images.items():
            write_volume(root / name / f"{name}_{modality}.nii.gz", volume, dtype=np.float32)
        write_volume(root / name / f"{name}_seg.nii.gz", case.labels, dtype=np.uint8)
    return root


def prepare_folder(root: Path, output: Path, split=None, workers: int = 1, **settings) -> Preparation:
    """The folder, prepared; by default the last case tests and the others train."""
    cohort = find_cases(root)
    preprocessing = Preprocessing(**{"modalities": ALL, "available": AVAILABLE, **settings})
    return prepare(cohort, output, preprocessing, split or {"test": [cohort.cases[-1].id]}, workers=workers)


def fragile(item: str) -> str:
    """Work that ends as its item says."""
    if item == "dies":
        os._exit(1)
    if item == "refused":
        raise CaseError("not today", case="p7", remedy="try tomorrow")
    if item == "bug":
        raise ZeroDivisionError("by zero")
    if item == "memory":
        raise MemoryError
    return item.upper()
