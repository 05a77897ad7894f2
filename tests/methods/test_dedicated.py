"""The dedicated network: its loss at every scale, its learning rate, its recipes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from modistill.errors import TrainingStopped
from modistill.methods.dedicated import Dedicated
from modistill.recipe import load_recipe
from modistill.training import TrainingSettings, fit
from samples import RandomBatches

SMALL = {"width": 2, "dims": 2, "stages": 4}
BATCHES = RandomBatches(("flair", "t1", "t2"), ("flair", "t1", "t2"), size=(32, 48), batch_size=2)


def optimizer_of(method: Dedicated) -> torch.optim.Optimizer:
    return method.players["network"](list(method.network.parameters()))


def step(method: Dedicated, optimizer: torch.optim.Optimizer, epoch: int) -> None:
    for _, terms in method.losses(replace(BATCHES.batch(0, 0), epoch=epoch)):
        optimizer.zero_grad()
        sum(terms.values()).backward()
        optimizer.step()


def test_the_terms_in_plain_words() -> None:
    """An independent computation, voxel lists in NumPy: three scales, of which two count, with 2/3 and 1/3."""
    torch.manual_seed(0)
    method, batch = Dedicated(**SMALL), BATCHES.batch(0, 0)
    ((player, terms),) = method.losses(batch)
    with torch.no_grad():
        scales = [logits.double().numpy() for logits in method.network.at_all_scales(batch.available)]
    assert [logits.shape[2:] for logits in scales] == [(32, 48), (16, 24), (8, 12)]
    dice = cross_entropy = 0.0
    for weight, logits, labels in (
        (2 / 3, scales[0], batch.labels.numpy()),
        (1 / 3, scales[1], batch.labels.numpy()[:, 1::2, 1::2]),
    ):
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        overlaps = [
            (2 * p[b, c][labels[b] == c].sum() + 1e-5) / (p[b, c].sum() + (labels[b] == c).sum() + 1e-5)
            for b in range(2)
            for c in (1, 2, 3)
        ]
        right = [p[b, labels[b, i, j], i, j] for b, i, j in np.ndindex(*labels.shape)]
        dice += weight * (1 - np.mean(overlaps))
        cross_entropy += weight * -np.mean(np.log(right))
    assert player == "network"
    assert terms["dice"].item() == pytest.approx(dice, rel=1e-5)
    assert terms["cross_entropy"].item() == pytest.approx(cross_entropy, rel=1e-5)


def test_the_coarsest_head_does_not_learn() -> None:
    method = Dedicated(**SMALL)
    before = [head.weight.detach().clone() for head in method.network.heads]
    step(method, optimizer_of(method), epoch=0)
    same = [torch.equal(old, head.weight) for old, head in zip(before, method.network.heads, strict=True)]
    assert same == [False, False, True]


@pytest.mark.parametrize(("epoch", "rate"), [(0, 0.01), (5, 0.01 * 0.5**0.9), (9, 0.01 * 0.1**0.9)])
def test_the_rate_follows_the_epoch(epoch: int, rate: float) -> None:
    method = Dedicated(**SMALL, epochs=10)
    optimizer = optimizer_of(method)
    step(method, optimizer, epoch)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(rate)


def test_the_first_step_by_hand() -> None:
    """Nesterov's first step from rest: w - rate (1 + momentum) (gradient + decay w)."""
    torch.manual_seed(0)
    method = Dedicated(**SMALL, epochs=10, weight_decay=0.1)
    weight = method.network.heads[0].weight
    before = weight.detach().clone()
    step(method, optimizer_of(method), epoch=5)
    expected = before - 0.01 * 0.5**0.9 * 1.99 * (weight.grad + 0.1 * before)
    torch.testing.assert_close(weight.detach(), expected)


def test_a_resumed_training_goes_on_at_its_rate(tmp_path) -> None:
    """With a rate that falls from epoch to epoch, halves of a training equal the whole, bit for bit."""
    made = []
    for parts in ((4,), (1, 4)):
        for index, epochs in enumerate(parts):
            torch.manual_seed(0)
            method = Dedicated(**SMALL, epochs=4)
            fit(method, BATCHES, tmp_path / str(parts), TrainingSettings(epochs=epochs, precision="32"), resume=index > 0)
        made.append(method.state_dict())
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])


def test_no_epoch_without_a_rate() -> None:
    method = Dedicated(**SMALL, epochs=3)
    with pytest.raises(TrainingStopped, match="zero after 3 epochs"):
        step(method, optimizer_of(method), epoch=3)


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"momentum": 0.0}, {"momentum": 1.0}, {"stages": 1}])
def test_arguments_that_make_no_sense(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Dedicated(**SMALL | wrong)


@pytest.mark.parametrize("stage", ["brats", "demo"])
def test_recipes_spend_what_the_control_spends(stage: str) -> None:
    """As many steps as the student's two stages, the same prepared cases, the same modalities; the rate ends at zero."""
    recipe, student, control = (load_recipe(f"{stage}/{name}") for name in ("dedicated", "student", "control"))
    epochs = recipe.training["epochs"]
    assert "epochs" not in recipe.method.arguments  # training.epochs is filled in
    assert epochs == student.training["epochs"] + control.training["epochs"]
    assert recipe.sampling.samples_per_case == recipe.sampling.batch_size  # one step a case, as theirs
    assert recipe.data == control.data
    assert recipe.method.arguments["modalities"] == control.method.arguments["modalities"]
    assert recipe.training["clip_norm"] == 12
