"""Voxels drawn around a tumour, the features of networks there by hand, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch.nn import functional

from modistill.data.cohort import CaseFiles, ImageSource
from modistill.data.naming import conventions
from modistill.data.nifti import write_volume
from modistill.data.preprocessing import Preprocessing
from modistill.data.volume import Volume
from modistill.errors import CaseError, LabelError, ModelError, RecipeError
from modistill.inference.features import draw_voxels, hint_features, sample_features
from modistill.inference.model import Model
from modistill.methods.base import signed
from modistill.methods.segmentor import Segmentor
from modistill.methods.supervised import Supervised
from modistill.networks.hinted import HintedNetwork

SHAPE = (40, 36, 4)


class Plain(HintedNetwork):
    """Shows its images at half the resolution, and doubled."""

    sites: ClassVar = {"high": ("half", "whole")}
    halvings = 1

    def __init__(self, dims: int = 2) -> None:
        super().__init__(1, 2, dims=dims, channels={"half": 1, "whole": 1})
        self.weight = torch.nn.Parameter(torch.ones(()))

    def _segment(self, images, hints):
        hints("half", functional.avg_pool2d(images, 2) if self.dims == 2 else functional.avg_pool3d(images, 2))
        return torch.cat([images, hints("whole", 2 * images)], 1)


def model(name: str = "run", method=None, **how) -> Model:
    torch.manual_seed(0)
    method = method or Segmentor(("ct",), width=4)
    preprocessing = Preprocessing(("ct",), ("ct",), normalisation=(0, 100), convention="chest", **how)
    return Model(name, method.eval(), preprocessing, conventions["chest"])


def plain(dims: int = 2) -> Model:
    method = Segmentor(("ct",), width=4, dims=dims)
    method.network = Plain(dims)
    return model(method=method)


def tumour(size: int = 6) -> np.ndarray:
    labels = np.zeros(SHAPE, np.uint8)
    labels[10 : 10 + size, 20 : 20 + size, 1:3] = 1
    return labels


def write_case(root: Path, case: str, size: int = 6, modality: str = "ct") -> CaseFiles:
    image = np.random.default_rng(len(case) + size).uniform(1, 100, SHAPE).astype(np.float32)
    write_volume(root / f"{case}_{modality}.nii.gz", Volume(image), dtype=np.float32)
    write_volume(root / f"{case}_seg.nii.gz", Volume(tumour(size)), dtype=np.uint8)
    return CaseFiles(
        case, {modality: ImageSource(root / f"{case}_{modality}.nii.gz")}, root / f"{case}_seg.nii.gz", convention="chest"
    )


def test_voxels_are_balanced_and_lie_in_the_patch_of_their_slice() -> None:
    region = tumour().astype(bool)
    sample = draw_voxels(region, "p1", most=100, patch=12)
    assert sample.positions.shape == (100, 3)
    assert sample.tumour.sum() == 50
    assert (region[tuple(sample.positions.T)] == sample.tumour).all()
    assert len(np.unique(sample.positions, axis=0)) == 100
    assert set(sample.positions[:, 2]) == {1, 2}
    assert sample.positions[:, 0].min() >= 10 + 3 - 6  # the tumour's middle lies between voxels 12 and 13
    assert sample.positions[:, 0].max() <= 10 + 3 + 5
    every = draw_voxels(region, "p1", most=10_000, patch=12)  # 72 voxels of tumour, 2 * 144 - 72 beside it
    assert len(every.tumour) == 144
    assert every.tumour.sum() == 72


def test_patches_are_clipped_to_the_image() -> None:
    region = np.zeros(SHAPE, bool)
    region[:4, :4, 0] = True
    positions = draw_voxels(region, "p1", patch=8, most=10_000).positions
    assert positions[:, :2].max() <= 5
    assert len(positions) == 2 * 16
    assert len(draw_voxels(region, "p1", patch=1000, most=10_000).positions) == 2 * 16


def test_the_draw_is_of_the_case_and_the_seed() -> None:
    region = tumour().astype(bool)
    first, again, other, seeded = (
        draw_voxels(region, case, most=40, seed=seed).positions.tolist()
        for case, seed in (("p1", 0), ("p1", 0), ("p2", 0), ("p1", 1))
    )
    assert first == again
    assert first != other
    assert first != seeded
    assert not len(draw_voxels(np.zeros(SHAPE, bool), "p1").tumour)


@pytest.mark.parametrize("dims", [2, 3])
def test_features_by_hand(dims: int) -> None:
    """The network sees 2 x - 1; its map of half the size is interpolated between the means of its voxels."""
    images = np.random.default_rng(0).random((1, *SHAPE)).astype(np.float32)
    positions = np.array([[0, 0, 0], [5, 8, 1], [5, 9, 1], [39, 35, 3]])
    found = hint_features(plain(dims), images, positions)
    seen = signed(images[0])
    assert found[:, 1] == pytest.approx(2 * seen[tuple(positions.T)])
    if dims == 2:
        half = seen.reshape(20, 2, 18, 2, 4).mean(axis=(1, 3))
        # Voxel 5 lies a quarter of a coarse voxel below the middle of coarse voxel 2, voxel 8 a quarter above that of 4.
        row = 0.75 * half[2, :, 1] + 0.25 * half[3, :, 1]
        assert found[:, 0] == pytest.approx(
            [half[0, 0, 0], 0.75 * row[4] + 0.25 * row[3], 0.75 * row[4] + 0.25 * row[5], half[19, 17, 3]], abs=1e-6
        )


@pytest.mark.parametrize(("network", "width", "channels"), [("unet", 4, 8), ("fc_densenet", None, None), ("mrrn", 4, None)])
def test_every_segmentor_has_features(network, width, channels) -> None:
    method = Segmentor(("ct",), network=network, width=width)
    images = np.random.default_rng(0).random((1, 64, 64, 2)).astype(np.float32)
    found = hint_features(model(method=method), images, np.array([[3, 5, 0], [20, 31, 1], [63, 63, 1]]))
    assert found.shape == (3, channels or sum(method.network.hint_channels("high")))
    assert np.isfinite(found).all()
    assert np.ptp(found, axis=0).max() > 0


def test_every_run_is_asked_at_the_same_voxels(tmp_path: Path) -> None:
    cases = [write_case(tmp_path, "p1"), write_case(tmp_path, "p2", size=4), write_case(tmp_path, "none", size=0)]
    runs = [model("a"), model("b", Segmentor(("ct",), width=6))]
    told = []
    found = sample_features(runs, cases, most=30, patch=20, on_case=lambda *done: told.append(done))
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert found.region == "TUMOUR"
    assert found.cases.tolist() == ["p1"] * 30 + ["p2"] * 30
    assert found.tumour.sum() == 30
    assert {name: values.shape for name, values in found.values.items()} == {"a": (60, 8), "b": (60, 12)}
    alone = sample_features(runs[1:], cases[1:2], most=30, patch=20)
    assert np.array_equal(alone.values["b"], found.values["b"][30:])


def test_what_is_refused(tmp_path: Path) -> None:
    case = write_case(tmp_path, "p1")
    with pytest.raises(ModelError, match="UNet has no hint sites, whose features could be shown"):
        sample_features([model(method=Supervised(("ct",), classes=2, width=2))], [case])
    with pytest.raises(RecipeError, match="runs are named run, run"):
        sample_features([model(), model()], [case])
    with pytest.raises(LabelError, match=r"run finds no LIVER \(it finds TUMOUR\)"):
        sample_features([model()], [case], region="LIVER")
    with pytest.raises(RecipeError, match="b and a bring p1 onto different grids"):
        sample_features([model("a"), model("b", spacing_mm=(2, 2, 1))], [case])
    with pytest.raises(CaseError, match="p2: lacks ct, which run reads"):
        sample_features([model()], [write_case(tmp_path, "p2", modality="mr")])
    with pytest.raises(CaseError, match="no case has reference labels with TUMOUR"):
        sample_features([model()], [write_case(tmp_path, "none", size=0)])
    with pytest.raises(CaseError, match="no case has reference labels with TUMOUR"):
        sample_features([model()], [CaseFiles("p1", case.images)])
