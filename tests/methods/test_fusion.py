"""Who learns from what in each strategy of fusion, the weighting by hand and beside another ResNet, and what is deployed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from modistill.data.batch import Batch
from modistill.errors import ModelError, RecipeError
from modistill.methods.base import Turn
from modistill.methods.fusion import Fusion
from modistill.methods.segmentor import Segmentor
from modistill.networks.translating_segmentor import ResNet18, TranslatingSegmentor, WeightedSegmentor
from modistill.training import TrainingSettings, fit
from modistill.weights import load_weights, save_weights
from samples import RandomBatches

SMALL = {"width": 2, "weighting_width": 2, "norm": "instance", "translation": {"width": 2, "blocks": 1}}
STRATEGIES = pytest.mark.parametrize("sees", ["translation", "both", "weighted"])


def make(**arguments: Any) -> Fusion:
    torch.manual_seed(0)
    return Fusion(**{**SMALL, **arguments}).train()


def batches(method: nn.Module, **arguments: Any) -> RandomBatches:
    return RandomBatches(method.modalities, method.available, size=(32, 32), classes=2, domains=method.domains, **arguments)


def batch_of(method: nn.Module) -> Batch:
    return batches(method).batch(0, 0)


def turns(method: Fusion) -> list[Turn]:
    """In order; nobody learns in between."""
    return list(method.losses(batch_of(method)))


def reached(term: Tensor, networks: dict[str, nn.Module]) -> set[str]:
    """The networks whose parameters a term has a gradient for."""
    found = set()
    for name, network in networks.items():
        gradients = torch.autograd.grad(term, list(network.parameters()), retain_graph=True, allow_unused=True)
        if any(gradient is not None and gradient.any() for gradient in gradients):
            found.add(name)
    return found


class Constant(nn.Module):
    """A weighting that says the same of every image."""

    def __init__(self, *alphas: float) -> None:
        super().__init__()
        self.logits = torch.tensor(alphas).logit()[:, None]

    def forward(self, pair: Tensor) -> Tensor:
        return self.logits


class Shown(nn.Module):
    """A segmentor whose logits are what it sees."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.in_channels = in_channels

    def forward(self, images: Tensor) -> Tensor:
        return images


@STRATEGIES
def test_the_table_of_gradients(sees: str) -> None:
    method = make(sees=sees)
    translation, critics, last = turns(method)
    names = {"adversarial_target", "adversarial_source", "cycle"}  # neither contextual loss, nor guidance
    assert (translation[0], set(translation[1])) == ("translation.generators", names)
    assert (critics[0], set(critics[1])) == ("translation.critics", {"target", "source"})
    segmentor = method.reader.segmentor
    parts = {"F": method.reader.translator, "G": method.translation.generators["to_source"]}
    parts |= {"S": segmentor.segmentor, "R": segmentor.weighting} if sees == "weighted" else {"S": segmentor}
    who = {"S", "R"} if sees == "weighted" else {"S"}
    player, terms = last
    assert player == "reader.segmentor"
    assert {name: reached(term, parts) for name, term in terms.items()} == (
        {"source": {"S"}, "target": {"S"}} if sees == "translation" else {"source": who}
    )


def test_a_segmentor_of_the_target_that_sees_no_translation_in_training_is_segmentor_on_it() -> None:
    method = make(learns_from_translations=False)
    alone = Segmentor(("mr",), width=2, norm="instance")
    alone.network.load_state_dict(method.reader.segmentor.state_dict())
    ((_, expected),) = alone.losses(batch_of(method))
    *_, (_, terms) = turns(method)
    assert set(terms) == {"target"}
    torch.testing.assert_close(terms["target"], expected["segmentation"])


def test_the_segmentor_sees_translations_by_the_translator_as_it_is_now() -> None:
    method, seen = make(), []
    method.reader.segmentor.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
    batch = batch_of(method)
    for player, _ in method.losses(batch):
        if player == "translation.generators":
            with torch.no_grad():
                for parameter in method.translation.generators.parameters():
                    parameter.mul_(1.5)
    x_s = 2 * batch.having(("ct",)).images - 1
    with torch.no_grad():
        assert torch.equal(seen[0][: len(x_s)], method.translation.generators["to_target"](x_s))


@STRATEGIES
def test_a_patient_is_segmented_as_in_training(sees: str) -> None:
    method = make(sees=sees).eval()
    images = torch.rand(2, 1, 40, 33)
    with torch.inference_mode():
        x = 2 * images - 1
        translated = method.translation.translate(images, "mr") * 2 - 1
        expected = method.reader.segmentor(translated if sees == "translation" else torch.cat([x, translated], 1))
        torch.testing.assert_close(method.segment(images), expected)
    assert method.available == ("ct",)
    assert method.modalities == ("ct", "mr")


def test_weights_by_hand() -> None:
    """Image 0 at alpha 1/4, image 1 at alpha 1: intensities 0, 1/2 and 1 of the image, 1, 1/2 and 0 of the translation."""
    x = torch.tensor([-1.0, 0.0, 1.0]).expand(2, 1, 3)
    reader = TranslatingSegmentor(nn.Identity(), WeightedSegmentor(Constant(0.25, 1.0), Shown(2)))
    found = (reader.read(x, -x) + 1) / 2
    expected = [[[0, 0.375, 0.75], [0.25, 0.125, 0]], [[0, 0, 0], [1, 0.5, 0]]]
    torch.testing.assert_close(found, torch.tensor(expected))
    torch.testing.assert_close(reader(x)[0, 1], torch.tensor([-1.0, -0.75, -0.5]))  # the identity as the translator


def test_a_reader_shows_its_segmentor_what_it_has_channels_for() -> None:
    x = torch.rand(2, 1, 4, 4)
    assert torch.equal(TranslatingSegmentor(nn.Tanh(), Shown(1))(x), x.tanh())
    assert torch.equal(TranslatingSegmentor(nn.Tanh(), Shown(2))(x), torch.cat([x, x.tanh()], 1))


def test_parameters_of_the_papers_sizes() -> None:
    def count(module: nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    with torch.device("meta"):
        translated, both, weighted = (Fusion(sees=sees) for sees in ("translation", "both", "weighted"))
        volumes = ResNet18(2, dims=3)
    assert count(translated.reader) == 11_365_633 + 13_394_242
    assert count(both.reader.segmentor) == 13_394_242 + 64 * 9  # a second channel for the first convolution
    weighting = weighted.reader.segmentor.weighting
    assert count(weighting) == 11_304_961
    assert count(weighting) - count(weighting.head) == 11_173_376
    assert count(weighted) == 2 * (11_365_633 + 2_762_689) + count(both.reader.segmentor) + 11_304_961  # each counted once
    assert weighting(torch.empty(3, 2, 256, 256, device="meta")).shape == (3, 1)
    assert volumes(torch.empty(3, 2, 64, 64, 40, device="meta")).shape == (3, 1)


@pytest.mark.parametrize("dims", [2, 3])
def test_the_weighting_is_the_resnet18_of_monai(dims: int) -> None:
    from monai.networks.nets import ResNet

    how = {"block_inplanes": [4, 8, 16, 32], "spatial_dims": dims, "n_input_channels": 2, "conv1_t_stride": 2}
    theirs = ResNet("basic", [2, 2, 2, 2], bias_downsample=False, feed_forward=False, **how).train()
    ours = ResNet18(2, width=4, dims=dims).train()
    missing, unexpected = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert (unexpected, {name.split(".")[0] for name in missing}) == ([], {"head"})
    images = torch.randn(3, 2, *(50, 70, 34)[:dims])
    for _ in "training", "evaluation":
        torch.testing.assert_close(ours(images), ours.head(theirs(images)))
        ours.eval(), theirs.eval()


def test_a_weighting_says_what_it_cannot_read() -> None:
    network = ResNet18(2, width=2)
    with pytest.raises(ModelError, match="images of 3 channels and 2 axes, the weighting reads 2 and 2"):
        network(torch.zeros(1, 3, 64, 64))
    with pytest.raises(ModelError, match=r"a single image of 32x32 voxels .* \(choose a larger batch"):
        network(torch.zeros(1, 2, 32, 32))
    for readable in (network.eval(), ResNet18(2, width=2, norm="instance")):
        assert readable(torch.zeros(1, 2, 32, 32)).isfinite().all()


@STRATEGIES
def test_what_is_deployed_answers_the_same_bit_for_bit(sees: str, tmp_path: Path) -> None:
    """As `runs` saves and loads it: without memory for what does not segment, and without any file of an extractor."""
    arguments = {**SMALL, "sees": sees, "norm": "batch"}
    method = make(**arguments)
    list(method.losses(batches(method, batch_size=2).batch(0, 0)))  # norms that have seen something
    save_weights(tmp_path / "model.safetensors", method.get_submodule(method.deployed).state_dict(), {})
    judged = {**arguments["translation"], "contextual_weight": 1.0, "extractor": "vgg19", "vgg19_weights": "nowhere.pth"}
    with torch.device("meta"):
        alone = Fusion.for_inference(**{**arguments, "translation": judged})
    tensors, _ = load_weights(tmp_path / "model.safetensors")
    alone.get_submodule(alone.deployed).load_state_dict(tensors, strict=True, assign=True)
    images = torch.rand(2, 1, 48, 33)
    with torch.inference_mode():
        assert torch.equal(alone.eval().segment(images), method.eval().segment(images))
    kept = {id(parameter) for parameter in alone.reader.parameters()}
    assert all(parameter.is_meta != (id(parameter) in kept) for parameter in alone.parameters())


def test_a_resumed_run_has_one_translator_still(tmp_path: Path) -> None:
    """It stands in two places of the method; a checkpoint keeps both, and the resumed run goes on as if never stopped."""
    how = {"precision": "32", "checkpoint_minutes": 60}
    whole, first, second = make(), make(), make()
    fit(whole, batches(whole), tmp_path / "whole", TrainingSettings(epochs=2, **how))
    fit(first, batches(first), tmp_path / "parts", TrainingSettings(epochs=1, **how))
    fit(second, batches(second), tmp_path / "parts", TrainingSettings(epochs=2, **how), resume=True)
    assert second.reader.translator is second.translation.generators["to_target"]
    found = second.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in whole.state_dict().items())
    assert not torch.equal(found["reader.translator.stem.weight"], make().state_dict()["reader.translator.stem.weight"])


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="sees 'ct': translation, both or weighted"):
        make(sees="ct")
    with pytest.raises(ValueError, match="sees both needs learns_from_translations"):
        make(sees="both", learns_from_translations=False)
    with pytest.raises(RecipeError, match=r"unknown key method\.translation\.wdith \(did you mean width\?\)"):
        make(translation={"wdith": 2})
