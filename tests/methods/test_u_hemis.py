"""U-HeMIS's terms, worked out, and which modalities a training case is seen through."""

from __future__ import annotations

from dataclasses import replace
from math import log
from pathlib import Path

import pytest
import torch
from torch import nn

from modistill.data.batch import Batch
from modistill.errors import RecipeError
from modistill.methods.u_hemis import UHeMIS, kernel_penalty, segmentation_terms
from modistill.recipe import build, load_recipe
from modistill.training import TrainingSettings, fit
from samples import RandomBatches

ALL = ("flair", "t1ce", "t1", "t2")
SMALL = {"width": 2, "dims": 2}
BATCHES = RandomBatches(ALL, ALL, batch_size=2, size=(32, 32), count=4)


def terms_of(method: UHeMIS, batch: Batch) -> dict[str, torch.Tensor]:
    ((player, terms),) = method.losses(batch)
    assert player == "network"
    return dict(terms)


def test_terms_of_a_network_that_says_nothing() -> None:
    """Equal logits: CE = ln 4; Dice of class c with n_c of N voxels is (2 n_c / 4) / (N / 16 + n_c)."""
    method, batch = UHeMIS(**SMALL), BATCHES.batch(0, 0)
    with torch.no_grad():
        method.network.decoder.out.weight.zero_()
    terms = terms_of(method, batch)
    counts = batch.labels[0].flatten().bincount(minlength=4)
    assert terms["cross_entropy"].item() == pytest.approx(log(4))
    assert terms["dice"].item() == pytest.approx(1 - ((counts / 2) / (32 * 32 / 16 + counts)).mean().item(), rel=1e-5)


def test_segmentation_terms_by_hand() -> None:
    """Two voxels, p of the first class 3/4 and 1/2, references 0 and 1: sum p^2 + sum g is 1 + 13/16, and 1 + 5/16."""
    logits = torch.tensor([[[[log(3.0), 0.0]], [[0.0, 0.0]]]], dtype=torch.double)
    terms = segmentation_terms(logits, torch.tensor([[[0, 1]]]))
    assert terms["cross_entropy"].item() == pytest.approx(-(log(3 / 4) + log(1 / 2)) / 2)
    assert terms["dice"].item() == pytest.approx(1 - (1.5 / (29 / 16) + 1.0 / (21 / 16)) / 2, abs=1e-5)


def test_the_penalty_by_hand() -> None:
    """Kernels of one and four elements, all 2: (4 + 16) / 2 / 2; norms and biases do not count."""
    network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.InstanceNorm2d(1, affine=True), nn.Conv2d(1, 1, 2))
    for parameter in network.parameters():
        nn.init.constant_(parameter, 2.0)
    assert kernel_penalty(network).item() == 5.0
    method = UHeMIS(**SMALL, regularisation=0.5)
    penalty = 0.5 * kernel_penalty(method.network)
    assert terms_of(method, BATCHES.batch(0, 0))["regularisation"].item() == pytest.approx(penalty.item())


def test_every_number_of_modalities_is_seen_and_never_one_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    method, batch, seen = UHeMIS(**SMALL), BATCHES.batch(0, 0), []
    batch = replace(batch, presence=torch.tensor([[True, True, True, True], [False, True, False, True]]))

    def segment(images: torch.Tensor, presence: torch.Tensor) -> torch.Tensor:
        seen.append(presence)
        return torch.zeros(2, 4, 32, 32)

    monkeypatch.setattr(method, "segment_subset", segment)
    torch.manual_seed(0)
    for _ in range(60):
        terms_of(method, batch)
    shown = torch.stack(seen)
    assert set(shown[:, 0].sum(1).tolist()) == {1, 2, 3, 4}
    assert set(map(tuple, shown[:, 1].tolist())) == {
        (False, True, False, True),
        (False, True, False, False),
        (False,) * 3 + (True,),
    }
    seen.clear()
    method.dropout = 0.0
    terms_of(method, batch)
    assert torch.equal(seen[0], batch.presence)


def test_the_rate_falls_inside_a_training(tmp_path: Path) -> None:
    """With a divisor beyond measure nothing moves after `lr_every` steps: four batches end where two do."""

    def trained(count: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        method = UHeMIS(**SMALL, lr_divisor=1e30, lr_every=2)
        fit(method, replace(BATCHES, count=count), tmp_path / str(count), TrainingSettings(epochs=1, precision="32"))
        return method.state_dict()

    two, four = trained(2), trained(4)
    assert all(torch.equal(two[name], four[name]) for name in two)


@pytest.mark.parametrize(
    ("argument", "message"),
    [({"dropout": 1.5}, "dropout is 1.5"), ({"width": 3}, "width is 3"), ({"dropout": -0.1}, "dropout is -0.1")],
)
def test_arguments_without_sense_are_refused(argument: dict[str, float], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        build(UHeMIS, argument, "method")


@pytest.mark.parametrize("name", ["u_hemis", "u_hved"])
def test_the_papers_recipe(name: str) -> None:
    """60,000 iterations of 112^3 voxels for 200 cases; the cohort of HAD-Net's arms; as many steps as student and control."""
    recipe = load_recipe(f"brats/{name}")
    assert 200 * recipe.sampling.samples_per_case * recipe.training["epochs"] == 60_000
    assert (recipe.sampling.batch_size, recipe.sampling.patch_size) == (1, (112, 112, 112))
    arguments = recipe.method.arguments
    assert [arguments[key] for key in ("width", "lr", "lr_divisor", "lr_every")] == [8, 1e-3, 4.0, 10_000]
    assert recipe.data == load_recipe("brats/had_net").data
    demo, student, control = (load_recipe(f"demo/{one}") for one in (name, "student", "control"))
    assert demo.data == control.data
    assert demo.training["epochs"] == student.training["epochs"] + control.training["epochs"]
