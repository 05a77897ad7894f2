"""Who learns from what: the table of gradients of CMEDL, its variants, and the student alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from modistill.errors import ModelError, RecipeError
from modistill.losses.distillation import hint_loss, output_distillation
from modistill.losses.segmentation import dice_loss
from modistill.methods.cmedl import CMEDL
from modistill.methods.cyclegan import CycleGAN
from modistill.methods.segmentor import Segmentor, segmentation_loss
from samples import RandomBatches

TRANSLATION = {"width": 2, "blocks": 1}
SMALL = {"width": 2, "translation": TRANSLATION, "norm": "instance"}


def make(**arguments: Any) -> CMEDL:
    torch.manual_seed(0)
    return CMEDL(**{**SMALL, **arguments}).train()


def batch_of(method: nn.Module, **arguments: Any) -> Any:
    batches = RandomBatches(method.modalities, method.available, size=(32, 32), classes=2, domains=method.domains, **arguments)
    return batches.batch(0, 0)


def turns(method: nn.Module) -> dict[str, dict[str, Tensor]]:
    """Player -> terms; nobody learns in between."""
    return {player: dict(terms) for player, terms in method.losses(batch_of(method))}


def reached(term: Tensor, networks: dict[str, nn.Module]) -> set[str]:
    """The networks whose parameters a term has a gradient for."""
    found = set()
    for name, network in networks.items():
        gradients = torch.autograd.grad(term, list(network.parameters()), retain_graph=True, allow_unused=True)
        if any(gradient is not None and gradient.any() for gradient in gradients):
            found.add(name)
    return found


def test_the_table_of_gradients() -> None:
    """Which network of the player each term reaches: the paper's optimisation, section by section."""
    method = make(translation={**TRANSLATION, "identity_weight": 1.0}, augment_student=True, output_weight=1.0)
    parts = {
        "translation.generators": {
            "F": method.translation.generators["to_target"],
            "G": method.translation.generators["to_source"],
        },
        "translation.critics": {"M": method.translation.critics["target"], "C": method.translation.critics["source"]},
        "segmentors": {"S": method.segmentors.student, "T": method.segmentors.teacher},
    }
    expected = {
        "translation.generators": {
            "adversarial_target": {"F"},
            "adversarial_source": {"G"},
            "cycle": {"F", "G"},
            "contextual": {"F"},
            "identity": {"F", "G"},
            "hint": {"F"},
            "segmentation": {"F"},
        },
        "translation.critics": {"target": {"M"}, "source": {"C"}},
        "segmentors": {
            "student": {"S"},
            "teacher_translated": {"T"},
            "teacher": {"T"},
            "student_augmented": {"S"},
            "hint": {"S", "T"},
            "outputs": {"S", "T"},
            "rms_student": set(),
            "rms_teacher": set(),
        },
    }
    found = {
        player: {name: reached(term, parts[player]) if term.requires_grad else set() for name, term in terms.items()}
        for player, terms in turns(method).items()
    }
    assert found == expected
    # The segmentors' turn does not reach back into the translators.
    segmentors = turns(make())["segmentors"]
    assert not reached(segmentors["hint"], parts["translation.generators"])


def test_a_detached_teacher_learns_from_its_labels_alone() -> None:
    method = make(detach_teacher=True, output_weight=1.0)
    networks = {"S": method.segmentors.student, "T": method.segmentors.teacher}
    terms = turns(method)["segmentors"]
    assert reached(terms["hint"], networks) == reached(terms["outputs"], networks) == {"S"}


@pytest.mark.parametrize(
    ("arguments", "gone"),
    [
        ({"teacher_labels": False}, {"segmentors/teacher"}),
        ({"teacher_sees_translations": False}, {"segmentors/teacher_translated", "translation.generators/segmentation"}),
        ({"translation": {**TRANSLATION, "contextual_weight": 0}}, {"translation.generators/contextual"}),
        ({"translation": {**TRANSLATION, "cycle_weight": 0}}, {"translation.generators/cycle"}),
        ({"hint_weight": 0}, {"segmentors/hint", "translation.generators/hint"}),
    ],
)
def test_ablations_leave_out_their_term_and_no_other(arguments: dict[str, Any], gone: set[str]) -> None:
    def names(method: CMEDL) -> set[str]:
        return {f"{player}/{name}" for player, terms in turns(method).items() for name in terms}

    assert names(make()) - names(make(**arguments)) == gone


def test_without_hints_and_distillation_the_student_is_the_control() -> None:
    """Same weights, same images: the same loss as `segmentor`, whatever the teacher does."""
    method = make(hint_weight=0)
    control = Segmentor(("ct",), width=2, norm="instance")
    control.network.load_state_dict(method.segmentors.student.state_dict())
    batch = batch_of(method)
    (_, terms), *_ = [(p, t) for p, t in method.losses(batch) if p == "segmentors"]
    ((_, own),) = control.losses(batch)
    torch.testing.assert_close(terms["student"], own["segmentation"])


def test_the_segmentors_see_the_translators_as_they_are_after_their_turn() -> None:
    method, watched = make(), []
    method.segmentors.teacher.register_forward_pre_hook(lambda _, inputs: watched.append(inputs[0].detach().clone()))
    with_hints = method.segmentors.teacher.with_hints
    method.segmentors.teacher.with_hints = lambda images, at: watched.append(images.detach().clone()) or with_hints(images, at)
    for player, _ in method.losses(batch_of(method)):
        if player == "translation.generators":
            with torch.no_grad():
                for parameter in method.translation.generators.parameters():
                    parameter.mul_(1.5)
    before, after = watched[:2]
    assert before.shape == after.shape
    assert not torch.equal(before, after)


def test_batch_statistics_are_those_of_the_segmentors_turn_alone() -> None:
    method = make(norm="batch")
    norms = [m for m in method.segmentors.modules() if isinstance(m, nn.BatchNorm2d)]
    for player, _ in method.losses(batch_of(method, batch_size=2)):
        counts = {int(norm.num_batches_tracked) for norm in norms}
        assert counts == ({1, 2} if player == "segmentors" else {0})  # the teacher sees translations and its own images


def test_features_of_the_teacher_serve_the_contextual_loss() -> None:
    """Its moving average does: the first turn sees the teacher as it was built, and none of it learns."""
    method = make(translation={**TRANSLATION, "extractor": "teacher"})
    batch = batch_of(method)
    first = next(terms for player, terms in method.losses(batch) if player == "translation.generators")
    assert first["contextual"] > 0
    assert {name.split(".")[0] for name in method.record()["extractor"]} >= {"kind", "digest", "decay"}
    average = method.translation.extractor.average.module
    with torch.no_grad():
        for parameter in method.segmentors.teacher.parameters():
            parameter.add_(1.0)
    for _ in method.losses(batch):
        pass
    pairs = zip(average.parameters(), method.segmentors.teacher.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)  # its first update copies
    assert not any(parameter.requires_grad for parameter in average.parameters())
    with pytest.raises(ModelError, match="no teacher"):
        next(CycleGAN(width=2, blocks=1, extractor="teacher").losses(batch))


def test_the_scale_of_the_last_norm_is_watched() -> None:
    method = make(norm="batch")
    (last,) = [m for m in method.segmentors.teacher.modules() if isinstance(m, nn.BatchNorm2d)][-1:]
    with torch.no_grad():
        last.weight.copy_(torch.tensor([-3.0, 1.0]))
    terms = turns(method)["segmentors"]
    assert terms["scale_teacher"].item() == 2.0
    assert not terms["scale_student"].requires_grad
    assert "scale_student" not in turns(make())["segmentors"]  # instance norms have none


def test_hint_sites_reach_the_networks() -> None:
    low, high = (turns(make(hints_at=at))["segmentors"]["hint"] for at in ("low", "high"))
    assert low.item() != high.item()
    with pytest.raises(ValueError, match="no hints at 'top'"):
        turns(make(hints_at="top"))


def test_for_prediction_nothing_but_the_student_is_built() -> None:
    method = make(network="fc_densenet", width=4, classes=3)
    arguments = {"student": "ct", "teacher": "mr", "network": "fc_densenet", "width": 4, "classes": 3, "norm": "instance"}
    alone = CMEDL.for_inference(**arguments, translation={"extractor": "vgg19", "vgg19_weights": "/nowhere.pth"})
    assert [name for name, _ in alone.named_children()] == ["network"]
    alone.network.load_state_dict(method.get_submodule(method.deployed).state_dict())
    images = torch.rand(1, 1, 40, 64)
    with torch.inference_mode():
        assert torch.equal(alone.eval().segment(images), method.eval().segment(images))
    assert alone.available == method.available == ("ct",)


def test_what_a_teacher_cannot_do_without() -> None:
    with pytest.raises(ValueError, match="learns nothing"):
        make(teacher_labels=False, teacher_sees_translations=False)
    with pytest.raises(ValueError, match="needs vgg19_weights"):
        make(translation={"extractor": "vgg19"})
    with pytest.raises(RecipeError, match=r"unknown key method\.translation\.blocs \(did you mean blocks\?\)"):
        make(translation={"blocs": 2})
    with pytest.raises(RecipeError, match=r"method\.translation\.adversarial: .*found 'lsgan'"):
        make(translation={"adversarial": "lsgan"})
    assert (
        make(translation={**TRANSLATION, "lr": "1e-4"}).translation.players["generators"].keywords["lr"] == 1e-4
    )  # as YAML has it
    with pytest.raises(ValueError, match="no adversarial loss 'lsgan'"):
        CycleGAN(width=2, adversarial="lsgan")
    with pytest.raises(ValueError, match="no hints at 'last'"):
        make(hints_at="last")
    with pytest.raises(ValueError, match="'segmentor' is no unpaired translation"):
        make(translator="segmentor")


@pytest.mark.parametrize("translator", ["cyclegan", "drit"])
@pytest.mark.parametrize("read_out", ["student", "teacher", "translator"])
def test_what_is_read_out_is_built_alone_and_says_the_same(translator: str, read_out: str) -> None:
    how = {**TRANSLATION, **({"critic_scales": 1, "content_layers": 0} if translator == "drit" else {})}
    arguments = {**SMALL, "classes": 3, "translator": translator, "translation": how, "read_out": read_out}
    method = make(**arguments).eval()
    alone = CMEDL.for_inference(**arguments).eval()
    alone.get_submodule(alone.deployed).load_state_dict(method.get_submodule(method.deployed).state_dict())
    images = torch.rand(2, 1, 32, 48)
    with torch.inference_mode():
        translated = method.translation.translate(images, "mr")
        if read_out == "translator":
            assert torch.equal(alone.translate(images, "mr"), translated)
        else:
            assert torch.equal(alone.segment(images), method.segment(images))
        if read_out == "teacher":
            torch.testing.assert_close(method.segment(images), method.segmentors.teacher(2 * translated - 1))
    assert method.available == alone.available == ("ct",)
    assert method.targets == alone.targets == (("mr",) if read_out == "translator" else ())


def test_vae_cmedl_guides_its_generators_in_one_turn_of_two() -> None:
    how = {**TRANSLATION, "critic_scales": 1, "content_layers": 0, "content_updates": 2}
    method = make(translator="drit", translation=how)
    found = [(player, set(terms)) for player, terms in method.losses(batch_of(method))]
    assert [player for player, _ in found] == [
        *["translation.content_critic"] * 2,
        "translation.critics",
        *["translation.generators"] * 2,
        "segmentors",
    ]
    assert [("hint" in terms, "segmentation" in terms) for _, terms in found[3:5]] == [(True, True), (False, False)]


def test_a_translation_keeps_the_range_and_the_size() -> None:
    torch.manual_seed(0)
    method = CycleGAN(width=2, blocks=1).eval()
    with torch.inference_mode():
        made = method.translate(torch.rand(2, 1, 33, 41), method.target)
    assert made.shape == (2, 1, 33, 41)
    assert 0 <= made.min() < made.max() <= 1


def test_both_readings_of_the_segmentation_loss() -> None:
    logits = torch.tensor([[[0.0, 2.0]], [[0.0, 0.0]]]).movedim(0, 1)[None]  # (1, 2 classes, 1, 2): (0, 0) and (2, 0)
    logits, labels = logits.reshape(1, 2, 2), torch.tensor([[1, 0]])
    dice, entropy = dice_loss(logits, labels), torch.nn.functional.cross_entropy(logits, labels)
    assert segmentation_loss(logits, labels, "dice") == dice
    assert segmentation_loss(logits, labels, "cross_entropy") == entropy
    torch.testing.assert_close(segmentation_loss(logits, labels), 0.75 * dice + 0.25 * entropy)


def test_hints_and_outputs_by_hand() -> None:
    ones = [torch.ones(2, 3, 4), torch.zeros(2, 1, 8)]
    others = [torch.zeros(2, 3, 4), torch.full((2, 1, 8), 3.0)]
    assert hint_loss(ones, others).item() == 1 + 9
    assert hint_loss(ones, others, "positions").item() == 3 + 9
    assert hint_loss(ones, others, "sum").item() == 12 + 72
    z = torch.tensor([1.0, 3.0]).log().reshape(1, 2, 1)
    p = torch.tensor([0.1, 0.9])  # at T = 1/2 odds are squared
    assert output_distillation(z, z, 0.5).item() == pytest.approx(-(p * p.log()).sum().item())


def test_what_learns_at_the_papers_size() -> None:
    """Two translators, two critics and two segmentors; or DRIT's encoders, generator, four critics and that of contents."""
    with torch.device("meta"):
        cyclegan, drit = CMEDL(), CMEDL(translator="drit")
    learn = sum(p.numel() for p in cyclegan.parameters() if p.requires_grad)
    assert learn == 2 * (11_365_633 + 2_762_689 + 13_394_242) == 55_045_128
    learn = sum(p.numel() for p in drit.translation.parameters() if p.requires_grad)
    assert learn == 9_005_568 + 2_684_064 + 9_564_386 + 4 * 8_265_027 + 10_683_649
