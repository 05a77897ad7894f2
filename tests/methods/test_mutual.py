"""Two segmentors that teach each other: who learns from what, the divergence and the ensemble by hand."""

from __future__ import annotations

from math import log
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from modistill.methods.base import Turn
from modistill.methods.mutual import Ensemble, MutualDistillation, mutual_divergence
from modistill.methods.segmentor import segmentation_loss
from modistill.weights import load_weights, save_weights
from samples import RandomBatches

SMALL = {"width": 2, "norm": "instance", "translation": {"width": 2, "blocks": 1}}


def make(**arguments: Any) -> MutualDistillation:
    torch.manual_seed(0)
    return MutualDistillation(**{**SMALL, **arguments}).train()


def turns(method: MutualDistillation, **arguments: Any) -> list[Turn]:
    """In order; nobody learns in between."""
    batches = RandomBatches(method.modalities, method.available, size=(32, 32), classes=2, domains=method.domains, **arguments)
    return list(method.losses(batches.batch(0, 0)))


def reached(term: Tensor, networks: dict[str, nn.Module]) -> set[str]:
    """The networks whose parameters a term has a gradient for."""
    found = set()
    for name, network in networks.items():
        gradients = torch.autograd.grad(term, list(network.parameters()), retain_graph=True, allow_unused=True)
        if any(gradient is not None and gradient.any() for gradient in gradients):
            found.add(name)
    return found


class Says(nn.Module):
    """Logits that are known, whatever the image."""

    def __init__(self, *odds: float) -> None:
        super().__init__()
        self.logits = torch.tensor(odds).log().reshape(1, -1, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.logits


def test_the_table_of_gradients() -> None:
    method = make()
    (generators, terms), (critics, _), (last, learnt) = turns(method)
    assert (generators, critics, last) == ("translation.generators", "translation.critics", "segmentors")
    assert set(terms) == {"adversarial_target", "adversarial_source", "cycle"}  # neither contextual loss, nor guidance
    parts = {"T": method.segmentors.target, "A": method.segmentors.assistant, "F": method.translation}
    assert {name: reached(term, parts) for name, term in learnt.items()} == {
        "target": {"T"},
        "assistant": {"A"},
        "target_from_assistant": {"T"},
        "assistant_from_target": {"A"},
    }


def test_the_assistant_learns_from_aligned_images_with_the_labels_of_their_source() -> None:
    method = make()
    batch = RandomBatches(method.modalities, method.available, size=(32, 32), classes=2, domains=method.domains).batch(0, 0)
    other = batch.having(("mr",))
    assert (method.translation.source, method.translation.target) == ("mr", "ct")
    with torch.no_grad():
        aligned = method.translation.to_target(2 * other.images - 1)
        expected = 5 * segmentation_loss(method.segmentors.assistant(aligned), other.labels)
    *_, (_, learnt) = method.losses(batch)
    torch.testing.assert_close(learnt["assistant"], expected)


def test_divergence_by_hand() -> None:
    """Two voxels. Teacher 3:1 and 1:1, learner 1:1 and 1:1, at T = 1; and at T = 2 the square roots of the odds."""
    teacher = torch.tensor([[3.0, 1.0], [1.0, 1.0]]).log().T[None]
    learner = torch.zeros(1, 2, 2)
    first = 0.75 * log(1.5) + 0.25 * log(0.5)
    assert mutual_divergence(learner, teacher, 1.0).item() == pytest.approx(first / 2, rel=1e-5)
    p = 3**0.5 / (3**0.5 + 1)
    softened = p * log(2 * p) + (1 - p) * log(2 * (1 - p))
    assert mutual_divergence(learner, teacher, 2.0).item() == pytest.approx(4 * softened / 2, rel=1e-5)
    assert mutual_divergence(teacher, teacher, 2.0).item() == pytest.approx(0, abs=1e-7)
    reverse = 0.5 * log(0.5 / 0.75) + 0.5 * log(0.5 / 0.25)  # the other direction is another number
    assert mutual_divergence(teacher, learner, 1.0).item() == pytest.approx(reverse / 2, rel=1e-5)


def test_divergence_is_an_average_over_voxels_and_images_and_teaches_one() -> None:
    learner, teacher = (torch.randn(3, 4, 5, 6, requires_grad=True) for _ in range(2))
    found = mutual_divergence(learner, teacher, 3.0)
    p, q = ((z / 3).softmax(1) for z in (teacher, learner))
    torch.testing.assert_close(found, 9 * (p * (p / q).log()).sum(1).mean())
    found.backward()
    assert teacher.grad is None
    torch.testing.assert_close(learner.grad, 3 * (q - p).detach() / (3 * 5 * 6))  # the known gradient, T^2 / T (q - p) a voxel


def test_an_ensemble_of_two_known_answers() -> None:
    ensemble = Ensemble(Says(3.0, 1.0), Says(1.0, 9.0))
    images = torch.zeros(1, 1, 1)
    found = ensemble(images)
    torch.testing.assert_close(found.exp().flatten(), torch.tensor([(0.75 + 0.1) / 2, (0.25 + 0.9) / 2]))
    torch.testing.assert_close(found.softmax(1), found.exp())
    sure = Ensemble(Says(1.0, 0.0), Says(1.0, 1.0))(images)  # one excludes a class, the other does not
    torch.testing.assert_close(sure.exp().flatten(), torch.tensor([0.75, 0.25]))


def test_at_test_time_both_answer_together() -> None:
    method = make().eval()
    images = torch.rand(2, 1, 40, 33)
    with torch.inference_mode():
        both = [functional.softmax(network(2 * images - 1), 1) for network in method.segmentors.children()]
        torch.testing.assert_close(method.segment(images).softmax(1), (both[0] + both[1]) / 2)
    assert (method.available, method.modalities) == (("ct",), ("ct", "mr"))


def test_equal_segmentors_have_nothing_to_teach_and_weight_zero_leaves_it_out() -> None:
    method = make()
    method.segmentors.assistant.load_state_dict(method.segmentors.target.state_dict())
    *_, (_, learnt) = turns(method)
    assert learnt["target_from_assistant"].item() == pytest.approx(0, abs=1e-6)
    *_, (_, alone) = turns(make(distillation_weight=0.0))
    assert set(alone) == {"target", "assistant"}


def test_what_is_deployed_are_both_segmentors_bit_for_bit(tmp_path: Path) -> None:
    """As `runs` saves and loads them; the translation is not read from anywhere."""
    method = make(norm="batch")
    turns(method, batch_size=2)  # norms that have seen something
    save_weights(tmp_path / "model.safetensors", method.get_submodule(method.deployed).state_dict(), {})
    judged = {"contextual_weight": 1.0, "extractor": "vgg19", "vgg19_weights": "nowhere.pth"}
    with torch.device("meta"):
        alone = MutualDistillation.for_inference(**{**SMALL, "norm": "batch", "translation": judged})
    tensors, _ = load_weights(tmp_path / "model.safetensors")
    assert {name.split(".")[0] for name in tensors} == {"target", "assistant"}
    alone.get_submodule(alone.deployed).load_state_dict(tensors, strict=True, assign=True)
    images = torch.rand(2, 1, 48, 33)
    with torch.inference_mode():
        assert torch.equal(alone.eval().segment(images), method.eval().segment(images))
    assert all(parameter.is_meta for parameter in alone.translation.parameters())
