"""UTAD-Net's teacher and student: terms from an independent count, who learns what, and what nobody may see."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from modistill.data.batch import Batch
from modistill.losses.adversarial import gradient_penalty
from modistill.losses.tumour import cut
from modistill.methods.utad_net import UTADNet
from modistill.methods.utad_teacher import UTADTeacher
from samples import RandomBatches

SMALL = {"width": 2, "levels": 3, "side": 32, "critic_rounds": 2}


def make(kind: type[UTADTeacher] = UTADNet, **arguments: Any) -> Any:
    torch.manual_seed(0)
    return kind(**{**SMALL, **arguments}).train()


def batch_of(method: UTADTeacher, **arguments: Any) -> Batch:
    batch = RandomBatches(method.modalities, method.available, size=(32, 32), batch_size=2, domains=method.domains).batch(0, 0)
    return replace(batch, images=(batch.images / 4).clamp(0, 1), **arguments)


def rounds(method: UTADTeacher, batch: Batch, number: int = 2) -> list[tuple[str, dict[str, Tensor]]]:
    torch.manual_seed(3)
    return [turn for _ in range(number) for turn in method.losses(batch)]


@pytest.mark.parametrize("kind", [UTADTeacher, UTADNet])
@pytest.mark.parametrize("mode", ["faithful", "fixed"])
def test_terms_are_those_of_the_page(kind: type[UTADTeacher], mode: str) -> None:
    method, reference = make(kind, mode=mode), make(kind, mode=mode)
    batch = batch_of(method)
    labels = batch.labels.clone()
    labels[::3] = 0  # slices without tumour
    batch = replace(batch, labels=labels)
    found = {player: {name: value.item() for name, value in terms.items()} for player, terms in rounds(method, batch)}

    torch.manual_seed(3)
    m = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3])
    x = 2 * torch.stack([batch.images[i, m[i]] for i in range(8)])[:, None] - 1
    mask = (labels > 0)[:, None]
    t = torch.where(mask, x, -1.0)
    generator, critics = reference.generator, reference.critics
    counts = mask.any(dim=(1, 2, 3)) if mode == "fixed" else torch.ones(8, dtype=torch.bool)
    shown = t if kind is UTADTeacher else x

    def mean_over_slices(values: Tensor) -> Tensor:
        return values.reshape(8, -1).mean(1)[counts].mean()

    def l1(one: Tensor, other: Tensor) -> Tensor:
        d = (one - other).abs()
        if mode == "faithful":
            return d.mean()
        return torch.stack([d[i][mask[i]].mean() + d[i][~mask[i]].mean() for i in range(8) if counts[i]]).mean()

    def penalty(critic: Any, real: Tensor, fake: Tensor, counts: Tensor) -> Tensor:
        share = torch.rand(8, 1).reshape(8, 1, 1, 1)
        between = (share * real + (1 - share) * fake).detach().requires_grad_()
        slope = torch.autograd.grad(critic(between)[0].sum(), between)[0]
        return (slope.pow(2).sum((1, 2, 3)).sqrt() - 1).pow(2)[counts].mean()

    all_of_them = torch.ones(8, dtype=torch.bool)
    for _ in range(2):  # of two rounds, the second of which is the generator's too
        k = m[torch.randperm(8)]
        made = generator(x, shown, k)
        expected = {"critics.whole": {}, "critics.tumour": {}}
        for name, real, fake, those in ("whole", x, made.whole, all_of_them), ("tumour", t, made.tumour, counts):
            critic = critics[name]
            expected[f"critics.{name}"] = {
                "real": -critic(real)[0].reshape(8, -1).mean(1)[those].mean(),
                "fake": critic(fake)[0].reshape(8, -1).mean(1)[those].mean(),
                "modality": functional.cross_entropy(critic(real)[1][those], m[those]),
                "penalty": 10 * penalty(critic, real, fake, those),
            }
    made = generator(x, shown, k)
    back = generator(made.whole, torch.where(mask, made.whole, -1.0) if kind is UTADTeacher else made.whole, m)
    expected["generator"] = {
        "adversarial": -critics["whole"](made.whole)[0].mean(),
        "modality": functional.cross_entropy(critics["whole"](made.whole)[1], k),
        "reconstruction": 10 * (back.whole - x).abs().mean(),
        "adversarial_tumour": -mean_over_slices(critics["tumour"](made.tumour)[0]),
        "modality_tumour": functional.cross_entropy(critics["tumour"](made.tumour)[1][counts], k[counts]),
        "local_consistency": 10 * l1(made.tumour, torch.where(mask, made.whole, -1.0)),
        "local_reconstruction": 10 * l1(back.tumour, t),
    }
    if kind is UTADNet:
        taught = reference.teacher.eval()(x, t, k)
        expected["generator"] |= {
            "feature": 10 * (made.fused - taught.fused).abs().mean(),
            "image": 10 * (made.whole - taught.whole).abs().mean(),
        }
    assert found.keys() == expected.keys()
    for player, terms in expected.items():
        assert found[player].keys() == terms.keys()
        for name, value in terms.items():
            assert found[player][name] == pytest.approx(value.item(), rel=1e-3, abs=1e-4), f"{player}/{name}"


def test_the_generator_learns_in_every_fifth_round_and_the_count_is_kept() -> None:
    method = make(critic_rounds=5)
    players = [player for player, _ in rounds(method, batch_of(method), 11)]
    critics = ["critics.whole", "critics.tumour"]
    assert players == (critics * 5 + ["generator"]) * 2 + critics
    assert int(method.state_dict()["rounds"]) == 11


@pytest.mark.parametrize(
    ("scheme", "critics", "local"), [("a", True, True), ("b", False, False), ("c", True, True), ("d", True, True)]
)
def test_schemes(scheme: str, critics: bool, local: bool) -> None:
    method = make(scheme=scheme)
    turns = dict(rounds(method, batch_of(method)))
    assert ("critics.tumour" in turns) == critics
    assert ("local_consistency" in turns["generator"]) == local
    if scheme == "d":  # the tumour is cut out of the whole slice: consistent by construction
        assert turns["generator"]["local_consistency"] == 0
    assert {"feature", "image"} <= turns["generator"].keys()


@pytest.mark.parametrize("scheme", ["a", "b", "c", "d"])
def test_a_student_begins_as_a_copy_of_its_teacher_but_for_the_tumours_encoder(scheme: str) -> None:
    method = make(scheme=scheme)
    own = {name: value.clone() for name, value in method.generator.state_dict().items()}
    method.begin()
    taught = method.teacher.state_dict()
    for name, value in method.generator.state_dict().items():
        assert torch.equal(value, own[name] if "tumour_encoder" in name else taught[name]), name
    assert not torch.equal(own["whole.decoder.out.weight"], taught["whole.decoder.out.weight"])


def test_the_teacher_gets_no_gradient_and_stays_in_eval_mode() -> None:
    method = make()
    assert not method.teacher.training
    assert method.generator.training
    statistics = method.teacher.whole.fusion.norm1.running_mean.clone()
    for _, terms in rounds(method, batch_of(method)):
        sum(terms.values()).backward()
    assert all(p.grad is None and not p.requires_grad for p in method.teacher.parameters())
    assert torch.equal(statistics, method.teacher.whole.fusion.norm1.running_mean)


def test_nothing_but_the_one_modality_of_each_sample_is_read() -> None:
    method = make()
    batch = batch_of(method)
    hidden = torch.where(batch.presence[:, :, None, None], batch.images, torch.nan)
    first = rounds(make(), batch)
    second = rounds(make(), replace(batch, images=hidden))
    for (player, one), (other, two) in zip(first, second, strict=True):
        assert player == other
        assert all(torch.equal(one[name], two[name]) for name in one)


def test_without_distillation_from_scratch_there_is_no_teacher() -> None:
    method = make(scheme="b", start="scratch", feature_weight=0.0, image_weight=0.0)
    assert not hasattr(method, "teacher")
    assert "teacher" not in method.reads
    method.begin()
    assert set(dict(rounds(method, batch_of(method)))["generator"]) == {"adversarial", "modality", "reconstruction"}


def test_a_weight_of_zero_leaves_its_term_out() -> None:
    method = make(feature_weight=0.0)
    generator = dict(rounds(method, batch_of(method)))["generator"]
    assert "image" in generator
    assert "feature" not in generator


def test_fixed_survives_a_batch_without_any_tumour() -> None:
    method = make(mode="fixed")
    batch = batch_of(method)
    for _, terms in rounds(method, replace(batch, labels=torch.zeros_like(batch.labels))):
        assert all(torch.isfinite(value) for value in terms.values())


@pytest.mark.parametrize("kind", [UTADTeacher, UTADNet])
def test_translation_needs_no_mask_and_depends_on_the_target(kind: type[UTADTeacher]) -> None:
    method = make(kind).eval()
    images = torch.rand(2, 1, 32, 32)
    made = {target: method.translate(images, target) for target in method.targets}
    assert all(m.shape == images.shape and m.min() >= 0 and m.max() <= 1 for m in made.values())
    assert (made["t1"] - made["t1ce"]).abs().mean() > 1e-4


def test_a_teacher_with_the_mask_sees_the_tumour_alone() -> None:
    method, images, mask = make(UTADTeacher).eval(), torch.rand(1, 1, 32, 32), torch.zeros(1, 1, 32, 32)
    mask[..., 8:16, 8:16] = 1
    x = 2 * images - 1
    expected = method.generator(x, cut(mask > 0, x), torch.tensor([2])).whole
    torch.testing.assert_close(method.translate(torch.cat([images, mask], 1), "t1ce"), (expected + 1) / 2)


@pytest.mark.parametrize("kind", [UTADTeacher, UTADNet])
def test_what_is_deployed_translates_alone(kind: type[UTADTeacher]) -> None:
    method = make(kind).eval()
    alone = kind.for_inference(**SMALL).eval()
    alone.get_submodule(alone.deployed).load_state_dict(method.get_submodule(method.deployed).state_dict())
    assert not hasattr(alone, "critics")
    assert not hasattr(alone, "teacher")
    images = torch.rand(1, 1, 32, 32)
    assert torch.equal(method.translate(images, "t2"), alone.translate(images, "t2"))


def test_cut_is_exactly_minus_one_outside() -> None:
    x, mask = torch.rand(2, 1, 8, 8), torch.zeros(2, 1, 8, 8, dtype=torch.bool)
    mask[0, 0, 2:5, 2:5] = True
    found = cut(mask, x)
    assert torch.equal(found[mask], x[mask])
    assert (found[~mask] == -1).all()


def test_penalty_of_a_linear_critic_is_that_of_its_slope() -> None:
    weight = torch.randn(1, 3, 4, 4)
    real, fake = torch.rand(5, 3, 4, 4), torch.rand(5, 3, 4, 4)
    unit = weight / weight.norm()
    assert float(gradient_penalty(lambda x: (x * unit).sum((1, 2, 3)), real, fake)) == pytest.approx(0, abs=1e-10)
    assert float(gradient_penalty(lambda x: 3 * (x * unit).sum((1, 2, 3)), real, fake)) == pytest.approx(4, rel=1e-5)


def test_the_rate_is_constant_for_half_of_the_epochs_and_then_falls() -> None:
    method = make(epochs=100)
    optimizer = method.players["generator"](list(method.generator.parameters()))
    rates = []
    for epoch in (0, 50, 75, 99):
        method.adam.begin(epoch)
        for p in method.generator.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step()
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([1e-4, 1e-4, 5.05e-5, 1e-4 - 9.9e-5 * 49 / 50])


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(ValueError, match="no mode 'other': faithful or fixed"):
        make(mode="other")
    with pytest.raises(ValueError, match="side of 36 voxels cannot be halved 3 times"):
        make(side=36)
    with pytest.raises(ValueError, match="two or more"):
        make(modalities=("t1",))


def test_slices_of_any_size_lie_in_the_middle_of_those_of_training() -> None:
    method, images = make().eval(), torch.rand(1, 1, 21, 30)
    whole = torch.zeros(1, 1, 32, 32)
    whole[..., 5:26, 1:31] = images
    assert torch.equal(method.translate(images, "t2"), method.translate(whole, "t2")[..., 5:26, 1:31])
    assert method.translate(torch.rand(1, 1, 50, 33), "t2").shape == (1, 1, 50, 33)


@pytest.mark.parametrize(("scheme", "reads"), [("a", True), ("b", False), ("c", False), ("d", True)])
def test_only_a_teacher_with_an_encoder_of_tumours_reads_them(scheme: str, reads: bool) -> None:
    assert make(UTADTeacher, scheme=scheme).reads_tumour == reads
    assert not make(UTADNet, scheme=scheme).reads_tumour
