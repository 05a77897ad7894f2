"""U-HVED's terms, worked out; what is deployed, and what is left to chance."""

from __future__ import annotations

from dataclasses import replace
from math import log

import pytest
import torch

from modistill.data.batch import Batch
from modistill.losses.gaussian import subset_divergence
from modistill.methods.u_hemis import kernel_penalty
from modistill.methods.u_hved import UHVED
from samples import RandomBatches

ALL = ("flair", "t1ce", "t1", "t2")
SMALL = {"width": 2, "dims": 2}
BATCHES = RandomBatches(ALL, ALL, batch_size=2, size=(32, 32))


def terms_of(method: UHVED, batch: Batch) -> dict[str, torch.Tensor]:
    ((player, terms),) = method.losses(batch)
    assert player == "vae"
    return dict(terms)


def test_terms_of_decoders_that_say_nothing() -> None:
    """Equal logits: CE = ln 4. Images of zeros: the mean square of what each case has, chosen or not."""
    method = UHVED(**SMALL)
    with torch.no_grad():
        for decoder in (method.vae.network.decoder, *method.vae.images):
            decoder.out.weight.zero_()
    presence = torch.tensor([[True, True, True, True], [True, False, False, True]])
    batch = replace(BATCHES.batch(0, 0), presence=presence)
    terms = terms_of(method, batch)
    squares = batch.images.square().mean((2, 3))
    expected = (squares[0].mean() + (squares[1, 0] + squares[1, 3]) / 2) / 2
    assert terms["cross_entropy"].item() == pytest.approx(log(4))
    assert terms["reconstruction"].item() == pytest.approx(0.1 * expected.item(), rel=1e-5)
    assert terms["regularisation"].item() == pytest.approx(1e-5 * kernel_penalty(method.vae).item())


def test_encoders_that_say_nothing_have_nothing_to_diverge() -> None:
    """Means of 0 and log-variances of 0: the product of n experts and the prior is N(0, 1 / (n + 1)).

    One case sees all four: KL(q_4 || q_n) = (ln(5 / (n + 1)) - 1 + (n + 1) / 5) / 2 for 4, 6 and 4 subsets of 1, 2 and 3, and
    KL(q_n || N(0, 1)) = (ln(n + 1) - 1 + 1 / (n + 1)) / 2 for these and the whole.
    """
    method, counts = UHVED(**SMALL, dropout=0.0), {1: 4, 2: 6, 3: 4, 4: 1}
    with torch.no_grad():
        for encoder in method.vae.network.encoders:
            for _, second in encoder.blocks:
                second.conv.weight.zero_()
    inter = sum(count * (log(5 / (n + 1)) - 1 + (n + 1) / 5) / 2 for n, count in counts.items()) / 14
    prior = sum(count * (log(n + 1) - 1 + 1 / (n + 1)) / 2 for n, count in counts.items()) / 15
    terms = terms_of(method, BATCHES.batch(0, 0))
    assert terms["divergence"].item() == pytest.approx(0.1 * (inter + prior), rel=1e-4)


def test_the_divergence_is_a_mean_over_scales() -> None:
    method, batch = UHVED(**SMALL, dropout=0.0, divergence_weight=3.0), BATCHES.batch(0, 0)
    found = terms_of(method, batch)["divergence"]
    scales = method.vae.network.experts(batch.images)
    expected = sum(subset_divergence(scale, batch.presence, batch.presence) for scale in scales) / 4
    torch.testing.assert_close(found, 3 * expected)


def test_what_is_deployed_has_no_image_decoders() -> None:
    method = UHVED(**SMALL)
    assert {name.split(".")[0] for name in method.get_submodule(method.deployed).state_dict()} == {"encoders", "decoder"}
    assert method.available == method.modalities == ALL


def test_segmenting_is_deterministic_unless_a_draw_is_asked_for() -> None:
    images = BATCHES.batch(0, 0).images
    mean, draw = UHVED(**SMALL).eval(), UHVED(**SMALL, deterministic=False).eval()
    draw.load_state_dict(mean.state_dict())
    with torch.inference_mode():
        assert torch.equal(mean.segment(images), mean.segment(images))
        assert not torch.equal(draw.segment(images), draw.segment(images))
        results = []
        for _ in range(2):
            torch.manual_seed(3)
            results.append(draw.segment(images))
    assert torch.equal(*results)


def test_training_draws_its_codes_unless_nothing_is_left_to_chance() -> None:
    batch = BATCHES.batch(0, 0)
    method = UHVED(**SMALL)
    assert terms_of(method, batch)["cross_entropy"] != terms_of(method, batch)["cross_entropy"]
    method.dropout = 0.0
    assert terms_of(method, batch)["cross_entropy"] == terms_of(method, batch)["cross_entropy"]


def test_all_encoders_of_what_a_case_has_learn_and_the_others_do_not() -> None:
    """Divergences reach the modalities that were not chosen, too."""
    method = UHVED(**SMALL, regularisation=0.0)
    presence = torch.tensor([[True, True, False, True]] * 2)
    torch.manual_seed(1)
    sum(terms_of(method, replace(BATCHES.batch(0, 0), presence=presence)).values()).backward()
    learnt = [encoder.blocks[3][1].conv.weight.grad.any().item() for encoder in method.vae.network.encoders]
    assert learnt == [True, True, False, True]


def test_arguments_without_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="dropout is 2"):
        UHVED(**SMALL, dropout=2.0)
    with pytest.raises(ValueError, match="width is 5"):
        UHVED(width=5)
