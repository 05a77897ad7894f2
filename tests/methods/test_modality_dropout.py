"""Modality dropout: what the network is shown."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from modistill.methods.modality_dropout import ModalityDropout
from modistill.methods.supervised import Supervised
from modistill.recipe import load_recipe
from modistill.subsets import only_present
from samples import RandomBatches

ALL = ("flair", "t1ce", "t1", "t2")
BATCH = RandomBatches(ALL, ALL, size=(32, 32), batch_size=40).batch(3, 0)
SMALL = {"width": 5, "dims": 2, "class_weights": [1.0, 9.0, 8.0, 7.0]}


def shown(method: ModalityDropout, presence: torch.Tensor = BATCH.presence) -> torch.Tensor:
    """Which channels (B, M) the network reads in one turn; each is either as it was, not scaled, or zero."""
    found = []
    handle = method.network.register_forward_pre_hook(lambda network, given: found.append(given[0]))
    torch.manual_seed(0)
    list(method.losses(replace(BATCH, presence=presence)))
    handle.remove()
    there = found[0].flatten(2).any(2)
    assert torch.equal(found[0], only_present(BATCH.images, there))
    return there


def test_each_sample_has_its_own_subset_and_the_rest_is_zero() -> None:
    there = shown(ModalityDropout(**SMALL))
    assert there.any(1).all()
    assert len(there.unique(dim=0)) > 8  # of 15, in 40 draws
    assert set(there.sum(1).tolist()) == {1, 2, 3, 4}


def test_what_a_case_lacks_is_never_shown() -> None:
    lacking = BATCH.presence.clone()
    lacking[:20, 1] = lacking[20:, :3] = False
    there = shown(ModalityDropout(**SMALL), lacking)
    assert not (there & ~lacking).any()
    assert there[20:, 3].all()  # the only one they have


def test_dropout_is_the_share_of_samples_that_lose_modalities() -> None:
    assert shown(ModalityDropout(**SMALL, dropout=0.0)).all()
    full = shown(ModalityDropout(**SMALL, dropout=0.4)).all(1).float().mean()
    assert 0.45 < full < 0.95  # 0.6 + 0.4 / 4 = 0.7 expected; three standard deviations


def test_without_dropout_it_is_supervised() -> None:
    """The same loss to the last bit: network, class weights and their decay (epoch 3)."""
    found = []
    for constructor, options in ((ModalityDropout, {"dropout": 0.0, "feature_dropout": 0.2}), (Supervised, {"dropout": 0.2})):
        torch.manual_seed(0)
        method = constructor(**SMALL, **options).eval()
        ((player, terms),) = method.losses(BATCH)
        optimizer = method.players[player](list(method.parameters()))
        found.append((player, terms["segmentation"].item(), type(optimizer), optimizer.defaults))
    assert found[0] == found[1]


def test_segmentation_of_a_subset_is_that_of_zeros_elsewhere() -> None:
    method = ModalityDropout(**SMALL).eval()
    presence = torch.tensor([[True, False, True, True]] * 2)
    images = BATCH.images[:2]
    zeros, garbage = images.clone(), images.clone()
    zeros[:, 1], garbage[:, 1] = 0, torch.nan
    with torch.inference_mode():
        assert torch.equal(method.segment_subset(garbage, presence), method.network(zeros))
        assert torch.equal(method.segment(images), method.network(images))


@pytest.mark.parametrize("wrong", [{"dropout": 1.5}, {"dropout": -0.1}, {"class_weights": [1.0, 0.0, 1.0, 1.0]}])
def test_arguments_that_make_no_sense(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ModalityDropout(**SMALL | wrong)


@pytest.mark.parametrize("stage", ["brats", "demo"])
def test_recipes_spend_what_the_control_spends(stage: str) -> None:
    """Epochs of the student's two stages; data, sampling and arguments of its first."""
    recipe, student, control = (load_recipe(f"{stage}/{name}") for name in ("modality_dropout", "student", "control"))
    assert recipe.training["epochs"] == student.training["epochs"] + control.training["epochs"]
    assert (recipe.data, recipe.sampling) == (student.data, student.sampling)
    arguments, others = recipe.method.arguments, student.method.arguments
    assert (arguments.pop("dropout"), arguments.pop("feature_dropout")) == (1.0, others.pop("dropout"))
    assert arguments == others | {"modalities": [*ALL]}
