"""HAD-Net's turns, worked out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from modistill.data.batch import Batch
from modistill.methods.had_net import HADNet
from modistill.methods.supervised import Supervised
from modistill.training import TrainingSettings, fit
from samples import RandomBatches

ALL, AVAILABLE = ("flair", "t1ce", "t1", "t2"), ("flair", "t1", "t2")
BATCHES = RandomBatches(ALL, AVAILABLE, count=3)


class WithoutT1ce(RandomBatches):
    """The same batches, as a training sees them that never reads t1ce."""

    def batches(self, epoch: int, start: int = 0, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        for batch in super().batches(epoch, start, rank, world):
            yield replace(batch, images=batch.available, modalities=AVAILABLE)


def test_without_its_adversarial_term_it_is_the_control(tmp_path: Path) -> None:
    """Same start, optimiser and batches: what HAD-Net adds to the control is the critic's word, and nothing else."""
    weights = [1.0, 5.0, 5.0, 5.0]
    had_net = HADNet(width=2, dropout=0.0, adversarial_weight=0.0, class_weights=weights)
    stage = {"class_weight_decay": 1.0, "betas": (0.5, 0.999), "weight_decay": 0.0}
    control = Supervised(AVAILABLE, width=2, dropout=0.0, class_weights=weights, **stage)
    control.network.load_state_dict(had_net.student.state_dict())
    settings = TrainingSettings(epochs=2, precision="32")
    fit(had_net, BATCHES, tmp_path / "h", settings)
    fit(control, WithoutT1ce(ALL, AVAILABLE, count=3), tmp_path / "c", settings)
    for name, value in control.network.state_dict().items():
        torch.testing.assert_close(had_net.student.state_dict()[name], value, rtol=1e-4, atol=1e-6)


def terms_of(method: HADNet, position: int = 0) -> dict[str, dict[str, torch.Tensor]]:
    return {player: dict(terms) for player, terms in method.losses(BATCHES.batch(0, position))}


def test_the_critic_rests_above_the_threshold() -> None:
    method = HADNet(width=2)
    with torch.no_grad():
        method.critic.out.weight.zero_()  # every patch scores 0: teacher wrong, student right, accuracy 0.5
    assert set(terms_of(method)) == {"student", "critic"}
    method.critic_rests_above = 0.4
    assert set(terms_of(method)) == {"student"}


def test_terms_of_a_critic_that_says_nothing() -> None:
    """Scores of 0 everywhere: student/adversarial 0.2 * (0 - 1)^2, critic/on_teacher (0 - 1)^2, critic/on_student 0."""
    method = HADNet(width=2)
    with torch.no_grad():
        method.critic.out.weight.zero_()
    terms = terms_of(method)
    assert terms["student"]["adversarial"].item() == pytest.approx(0.2)
    assert terms["critic"]["on_teacher"].item() == 1.0
    assert terms["critic"]["on_student"].item() == 0.0


def test_the_teacher_is_frozen_and_its_dropout_follows_the_argument() -> None:
    assert not any(parameter.requires_grad for parameter in HADNet(width=2).teacher.parameters())
    assert HADNet(width=2).train().teacher.training
    assert not HADNet(width=2, teacher_dropout=False).train().teacher.training
    assert not HADNet(width=2).eval().teacher.training


def test_the_critic_sees_what_it_is_told_to() -> None:
    logits = torch.randn(1, 4, 2, 2, 2)
    assert torch.equal(HADNet(width=2).shown(logits), logits)
    shown = HADNet(width=2, critic_sees="probabilities").shown(logits)
    torch.testing.assert_close(shown.sum(1), torch.ones(1, 2, 2, 2))


def test_the_papers_networks() -> None:
    """Digest, section 1.2: teacher 16,489,188, student 16,488,324 and critic 88,205,184 parameters at width 32."""
    with torch.device("meta"):
        method = HADNet()
    counts = [sum(p.numel() for p in network.parameters()) for network in (method.teacher, method.student, method.critic)]
    assert counts == [16_489_188, 16_488_324, 88_205_184]
