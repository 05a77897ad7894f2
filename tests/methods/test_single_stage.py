"""Single-stage distillation: who learns from what, the twin without distillation, and when the latent says nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from modistill.errors import ModelError
from modistill.losses.barlow import barlow_twins
from modistill.losses.deep_supervision import deep_cross_entropy, deep_dice, deep_soft_labels
from modistill.methods.dedicated import Dedicated
from modistill.methods.single_stage import BarlowDistillation
from modistill.training import TrainingSettings, fit
from samples import RandomBatches, leave_out

SMALL = {"width": 2, "stages": 3, "classes": 3, "warm_up": 0.0, "epochs": 4, "smallest_sample": 8}


def make(**arguments: Any) -> BarlowDistillation:
    torch.manual_seed(0)
    return BarlowDistillation(**{**SMALL, **arguments}).train()


def batches(method: Any, **arguments: Any) -> RandomBatches:
    how = {"size": (16, 16, 16), "classes": 3, "batch_size": 2, **arguments}
    return RandomBatches(method.modalities, method.available, **how)


def turns(method: BarlowDistillation, epoch: int = 0) -> list[tuple[str, dict[str, Tensor]]]:
    return [(player, dict(terms)) for player, terms in method.losses(batches(method).batch(epoch, 0))]


def reached(term: Tensor, networks: dict[str, nn.Module]) -> set[str]:
    if not term.requires_grad:
        return set()
    found = set()
    for name, network in networks.items():
        parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        gradients = torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True) if parameters else ()
        if any(gradient is not None and gradient.any() for gradient in gradients):
            found.add(name)
    return found


@pytest.mark.parametrize("mode", ["successive", "joint", "two_stage"])
def test_who_learns_from_what(mode: str) -> None:
    method = make(mode=mode, soft_weight=1.0, projector=(5, 4))
    networks = {"T": method.teacher, "S": method.student.network, "P": method.student.projector}
    watched = {name: set() for name in ("mean_diagonal", "rms_off_diagonal", "rank_student", "rank_teacher", "alignment")}
    both = {"T", "S", "P"} if mode == "joint" else {"S", "P"}
    student = {"cross_entropy": {"S"}, "dice": {"S"}, "barlow": both, "soft_labels": {"S"}, **watched}
    expected = {
        "successive": [("teacher", {"cross_entropy": {"T"}, "dice": {"T"}}), ("student", student)],
        "joint": [("both", {**student, "teacher_cross_entropy": {"T"}, "teacher_dice": {"T"}})],
        "two_stage": [("student", student)],
    }[mode]
    assert [(p, {n: reached(t, networks) for n, t in terms.items()}) for p, terms in turns(method)] == expected


def test_the_terms_by_their_functions() -> None:
    method = make(soft_weight=0.5, temperature=2.0, latent_weight=3.0, above=1)
    batch = batches(method).batch(0, 0)
    (_, taught), (_, terms) = method.losses(batch)
    with torch.no_grad():
        *maps_t, _ = method.teacher.maps(batch.all)
        *maps_s, _ = method.student.network.maps(batch.available)
        z_t, z_s = method.teacher.at_all_scales(batch.all), method.student.network.at_all_scales(batch.available)
        s, t = (maps[-1].flatten(2).movedim(1, 2).flatten(0, 1) for maps in (maps_s, maps_t))
    torch.testing.assert_close(taught["dice"].detach(), deep_dice(z_t, batch.labels))
    torch.testing.assert_close(terms["cross_entropy"].detach(), deep_cross_entropy(z_s, batch.labels))
    torch.testing.assert_close(terms["barlow"].detach(), 3 * barlow_twins(s, t, smallest=8))
    torch.testing.assert_close(terms["soft_labels"].detach(), 0.5 * deep_soft_labels(z_s, z_t, 2.0))
    q, log_p = (z_t[0] / 2).softmax(1), (z_s[0] / 2).log_softmax(1)
    torch.testing.assert_close(deep_soft_labels(z_s[:1], z_t[:1], 2.0), -4 * (q * log_p).sum(1).mean())


def test_without_distillation_the_student_is_dedicated(tmp_path: Any) -> None:
    """The twin: weights, steps and optimiser alike, whatever the teacher does beside it."""
    method = make(latent="none")
    twin = Dedicated(method.available, 3, width=2, stages=3, epochs=4)
    twin.network.load_state_dict(method.student.network.state_dict())
    settings = TrainingSettings(epochs=2, precision="32", checkpoint_minutes=60)
    data = batches(method, count=2)
    fit(method, data, tmp_path / "one", settings)
    fit(twin, data, tmp_path / "other", settings)
    for one, other in zip(method.student.network.parameters(), twin.network.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_weight_of_the_latent_rises() -> None:
    method = make(warm_up=0.5)
    (first, *_), (second, *_), (last, *_) = (
        [terms["barlow"] for p, terms in turns(method, e) if p == "student"] for e in (0, 1, 3)
    )
    assert first == 0
    assert second > 0
    assert last > 0
    whole = dict(turns(make(), 1))["student"]["barlow"]
    torch.testing.assert_close(second, whole / 2)


def test_a_batch_as_samples_is_refused_and_voxels_are_not() -> None:
    for samples_of in ("batch", "pooled"):
        with pytest.raises(ModelError, match=r"Barlow Twins of 2 samples .*\(take voxels as samples"):
            turns(make(samples_of=samples_of))
    assert turns(make(samples_of="batch", smallest_sample=2))  # the documented negative control
    with pytest.raises(ModelError, match="Barlow Twins of 128 samples"):
        turns(make(smallest_sample=129))
    with pytest.raises(ValueError, match="only_head goes with"):
        make(samples_of="channels", only_head=True)
    with pytest.raises(ValueError, match=r"above 2 in 0 \.\.\. 1"):
        make(above=2)


def test_only_the_head_counts() -> None:
    method = make(only_head=True)
    batch = batches(method).batch(0, 0)
    half = batch.all.clone()
    half[:, :, 8:] = 0  # air
    air = type(batch)(**{**vars(batch), "images": half})
    found = dict(method.losses(air))["student"]["barlow"]
    with torch.no_grad():
        t, s = method.teacher.maps(air.all)[-1], method.student.network.maps(air.available)[-1]
        kept = [x[:, :, :2].flatten(2).movedim(1, 2).flatten(0, 1) for x in (s, t)]
    torch.testing.assert_close(found.detach(), barlow_twins(*kept, smallest=8))


def test_a_patch_that_is_filled_up_keeps_the_blocks_of_its_head() -> None:
    """17 voxels become 20, five blocks of 4. The head ends in the third block of the first axis: two are left out, whole."""
    method = make(only_head=True)
    batch = batches(method, size=(17, 16, 16)).batch(0, 0)
    images = batch.all.clone()
    images[:, :, 12:] = 0
    air = type(batch)(**{**vars(batch), "images": images})
    found = dict(method.losses(air))["student"]["barlow"]
    with torch.no_grad():
        t, s = method.teacher.maps(air.all)[-1], method.student.network.maps(air.available)[-1]
    assert s.shape[2:] == (5, 4, 4)
    kept = [x[:, :, :3].flatten(2).movedim(1, 2).flatten(0, 1) for x in (s, t)]
    torch.testing.assert_close(found.detach(), barlow_twins(*kept, smallest=8))


def test_equal_latents_need_no_change() -> None:
    """With the teacher's own weights and images the diagonal is 1 and CKA is 1."""
    method = make(available=("flair", "t1ce", "t1", "t2"))
    method.student.network.load_state_dict(method.teacher.state_dict())
    terms = dict(turns(method))["student"]
    assert terms["mean_diagonal"].item() == pytest.approx(1, abs=1e-2)
    assert terms["alignment"].item() == pytest.approx(1, abs=1e-4)
    assert terms["rank_student"].item() == pytest.approx(terms["rank_teacher"].item())
    (l1,) = [terms["latent"].item() for p, terms in turns(make(latent="l1", available=method.modalities)) if p == "student"]
    assert l1 > 0


def test_the_student_sees_its_own_channels_alone() -> None:
    method = make().eval()
    batch = batches(method).batch(0, 0)
    shared = [batch.modalities.index(name) for name in method.available]
    assert torch.equal(batch.all[:, shared], batch.available)  # crops, flips and intensities are one draw
    with torch.inference_mode():
        garbage = leave_out(batch, ("t1", "t2"), float("nan"))
        assert torch.equal(method.segment(batch.available), method.segment(garbage.available))
