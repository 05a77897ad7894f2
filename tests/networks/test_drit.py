"""DRIT's networks against their table, written out with PyTorch's functions; and the properties a translation needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from modistill.errors import ModelError
from modistill.networks.drit import ContentEncoder, StyleEncoder, StyleGenerator, StyleTranslator
from modistill.networks.drit_critics import ContentCritic, MultiScaleCritic

DOMAINS = ("ct", "mr")
SMALL = {"width": 2, "code": 3}


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def translator(dims: int = 2, blocks: int = 4) -> tuple[ContentEncoder, StyleEncoder, StyleGenerator]:
    """Small networks in eval mode and double precision, with parameters that let no term hide."""
    torch.manual_seed(0)
    content = ContentEncoder(DOMAINS, width=2, blocks=blocks, dims=dims)
    networks = content, StyleEncoder(DOMAINS, dims=dims, **SMALL), StyleGenerator(DOMAINS, blocks=blocks, dims=dims, **SMALL)
    for network in networks:
        shaken(network.double().eval())
    return networks


def shaken(network: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.3)
    return network


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


# ------------------------------------------------------------------------------------------------ the layers in plain words

CONV: dict[int, Callable[..., Tensor]] = {2: functional.conv2d, 3: functional.conv3d}
TRANSPOSED: dict[int, Callable[..., Tensor]] = {2: functional.conv_transpose2d, 3: functional.conv_transpose3d}
MEAN: dict[int, Callable[..., Tensor]] = {2: functional.avg_pool2d, 3: functional.avg_pool3d}


def plain(x: Tensor, weights: list[Tensor], border: int, stride: int = 1) -> Tensor:
    dims = x.ndim - 2
    return CONV[dims](functional.pad(x, (border,) * 2 * dims, mode="reflect"), *weights, stride=stride)


def in_order(module: nn.Module) -> Iterator[list[Tensor]]:
    """Weight and bias of one layer after the other, as they were made."""
    for layer in module.modules():
        if any(True for _ in layer.parameters(recurse=False)):
            yield [layer.weight, layer.bias]


def plain_residual(x: Tensor, first: list[Tensor], second: list[Tensor]) -> Tensor:
    inside = functional.instance_norm(plain(x, first, 1)).relu()
    return x + functional.instance_norm(plain(inside, second, 1))


def plain_content(network: ContentEncoder, images: Tensor, domain: str, blocks: int = 4) -> Tensor:
    layers = in_order(network.private[domain])
    x = functional.leaky_relu(plain(images, next(layers), 3), 0.01)
    for _ in range(2):
        x = functional.instance_norm(plain(x, next(layers), 1, stride=2)).relu()
    for _ in range(blocks - 1):
        x = plain_residual(x, next(layers), next(layers))
    assert next(layers, None) is None
    return plain_residual(x, *in_order(network.shared))


def plain_style(network: StyleEncoder, images: Tensor, domain: str) -> tuple[Tensor, Tensor]:
    layers, mean = in_order(network.private[domain]), MEAN[images.ndim - 2]
    x = plain(images, next(layers), 1, stride=2)
    for _ in range(3):
        inside = functional.leaky_relu(plain(functional.leaky_relu(x, 0.2), next(layers), 1), 0.2)
        inside = plain(inside, next(layers), 1)
        x = mean(inside, 2) + mean(plain(x, next(layers), 0), 2)  # the mean of 1x1 is 1x1 of the mean
    x = functional.leaky_relu(x, 0.2).mean(tuple(range(2, x.ndim)))
    return network.mean[domain](x), network.logvar[domain](x)


def plain_image(network: StyleGenerator, content: Tensor, style: Tensor, domain: str, blocks: int = 4) -> Tensor:
    layers, dims = in_order(network.private[domain]), content.ndim - 2

    def beside(x: Tensor) -> Tensor:
        return torch.cat([x, style.reshape(*style.shape, *(1,) * dims) * torch.ones_like(x[:, :1])], 1)

    x = beside(plain_residual(content, *in_order(network.shared)))
    for _ in range(blocks - 1):
        x = plain_residual(x, next(layers), next(layers))
    for _ in range(2):
        x = TRANSPOSED[dims](beside(x), *next(layers), stride=2, padding=1, output_padding=1)
        weight, bias = (p.reshape(-1, *(1,) * dims).expand(x.shape[1:]) for p in next(layers))
        x = functional.layer_norm(x, x.shape[1:], weight, bias).relu()
    return plain(beside(x), next(layers), 0).tanh()


def plain_critic(network: MultiScaleCritic, images: Tensor, norm: bool = False) -> list[Tensor]:
    logits, x = [], images
    for index, scale in enumerate(network.scales):
        *layers, last = in_order(scale)
        if index:
            ones = functional.conv2d(torch.ones_like(x), torch.ones(1, 1, 3, 3).to(x), stride=2, padding=1)
            x = functional.conv2d(x, torch.ones(1, 1, 3, 3).to(x), stride=2, padding=1) / ones
        y = x
        for layer in layers:
            y = plain(y, layer, 1, stride=2)
            y = functional.leaky_relu(functional.instance_norm(y) if norm else y, 0.01)
        logits.append(plain(y, last, 0))
    return logits


def plain_content_critic(network: ContentCritic, content: Tensor, norm: bool = False) -> Tensor:
    *layers, four, last = in_order(network)
    x = content
    for layer in layers:
        x = plain(x, layer, 1, stride=2)
        x = functional.leaky_relu(functional.instance_norm(x) if norm else x, 0.01)
    return plain(functional.leaky_relu(plain(x, four, 0), 0.01), last, 0)


# ------------------------------------------------------------------------------------------------------ counts and shapes


def test_parameters_are_those_of_the_published_networks() -> None:
    with torch.device("meta"):
        content, style, generator = ContentEncoder(DOMAINS), StyleEncoder(DOMAINS), StyleGenerator(DOMAINS)
        critics = [MultiScaleCritic(norm=norm) for norm in (False, True)]
        content_critics = [ContentCritic(norm=norm) for norm in (False, True)]
    assert (count(content), count(style), count(generator)) == (9_005_568, 2_684_064, 9_564_386)
    assert [count(critic) for critic in critics] == [8_265_027] * 2
    assert [count(critic) for critic in content_critics] == [10_683_649] * 2
    assert count(content.shared) == count(generator.shared) == 2 * (256 * 256 * 9 + 256)
    assert count(content.private["ct"]) == 3_200 + 73_856 + 295_168 + 3 * 1_180_160
    assert [count(layer) for layer in generator.private["mr"]] == [3 * 1_255_056, 333_336, 93_528, 81]
    assert [count(scale) for scale in critics[0].scales] == [2_755_009] * 3


def test_parameters_with_more_blocks() -> None:
    """Two more of 256 and of 264 channels, in either domain."""
    with torch.device("meta"):
        content, generator = (kind(DOMAINS, blocks=6) for kind in (ContentEncoder, StyleGenerator))
    assert count(content) == 9_005_568 + 2 * 2 * 1_180_160
    assert count(generator) == 9_564_386 + 2 * 2 * 1_255_056


@pytest.mark.parametrize(("size", "inner", "patches", "judged"), [(256, 64, 2, [16, 8, 4]), (216, 54, 1, [13, 6, 3])])
def test_shapes_at_the_sizes_of_the_papers(size: int, inner: int, patches: int, judged: list[int]) -> None:
    with torch.device("meta"):
        images = torch.empty(2, 1, size, size)
        content = ContentEncoder(DOMAINS)(images, "ct")
        style = StyleEncoder(DOMAINS)(images, "mr")
        assert content.shape == (2, 256, inner, inner)
        assert style.mean.shape == style.logvar.shape == (2, 8)
        assert StyleGenerator(DOMAINS)(content, style.mean, "mr").shape == images.shape
        assert ContentCritic()(content).shape == (2, 1, patches, patches)
        assert [logits.shape for logits in MultiScaleCritic()(images)] == [(2, 1, n, n) for n in judged]


# ------------------------------------------------------------------------------------------------------------ the values


@pytest.mark.parametrize(("dims", "size", "blocks"), [(2, (32, 24), 4), (2, (27, 30), 1), (3, (16, 18, 17), 2)])
def test_a_translation_equals_the_plain_form(dims: int, size: tuple[int, ...], blocks: int) -> None:
    content, style, generator = networks = translator(dims, blocks)
    ct, mr = torch.randn(2, 1, *size, dtype=torch.double, requires_grad=True), torch.randn(2, 1, *size[::-1]).double()
    code = style(mr, "mr")
    ours = generator(content(ct, "ct"), code.mean + code.logvar, "mr", size=size)
    mean, logvar = plain_style(style, mr, "mr")
    inside = plain_content(content, ct, "ct", blocks)
    theirs = plain_image(generator, inside, mean + logvar, "mr", blocks)[(..., *(slice(n) for n in size))]
    assert ours.shape == ct.shape
    torch.testing.assert_close(ours, theirs)
    given = [ct, *(p for network in networks for p in network.parameters())]
    direction = torch.randn_like(ours)
    mine = torch.autograd.grad(ours, given, direction, allow_unused=True)
    other = torch.autograd.grad(theirs, given, direction, allow_unused=True)
    for one, two in zip(mine, other, strict=True):
        assert (one is None) == (two is None)
        if one is not None:
            torch.testing.assert_close(one, two)


@pytest.mark.parametrize("norm", [False, True])
def test_critics_equal_the_plain_form(norm: bool) -> None:
    critic = shaken(MultiScaleCritic(width=2, scales=2, norm=norm).double())
    images = torch.randn(2, 1, 65, 71, dtype=torch.double)
    for ours, theirs in zip(critic(images), plain_critic(critic, images, norm), strict=True):
        torch.testing.assert_close(ours, theirs)
    of_content = shaken(ContentCritic(channels=3, layers=2, norm=norm).double())
    content = torch.randn(2, 3, 25, 31, dtype=torch.double)
    torch.testing.assert_close(of_content(content), plain_content_critic(of_content, content, norm))


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize(("dims", "size"), [(2, (27, 30)), (3, (16, 18, 17))])
def test_deterministic_borders_are_the_same(dims: int, size: tuple[int, ...]) -> None:
    content, *_ = translator(dims)
    images = torch.randn(1, 1, *size, dtype=torch.double)
    torch.testing.assert_close(content(images, "mr"), plain_content(content, images, "mr"))


def test_taps_start_small() -> None:
    torch.manual_seed(0)
    generator = StyleGenerator(DOMAINS, width=16)
    first = generator.shared.inside[0].conv.weight
    assert first.std().item() == pytest.approx(0.02, rel=0.02)
    assert generator.private["ct"][1][0].weight.std().item() == pytest.approx(0.02, rel=0.02)


# -------------------------------------------------------------------------------------------------------- the properties


@pytest.mark.parametrize("size", [(16, 16), (17, 18), (19, 35), (16, 53)])
def test_a_translation_has_the_size_of_its_image(size: tuple[int, int]) -> None:
    content, style, generator = translator()
    images = torch.randn(1, 1, *size, dtype=torch.double)
    code = style(images, "mr").mean
    inside = content(images, "ct")
    found = generator(inside, code, "mr", size=size)
    assert found.shape == images.shape
    assert found.abs().max() <= 1
    whole = generator(inside, code, "mr")
    assert whole.shape[2:] == tuple(4 * n for n in inside.shape[2:])
    assert torch.equal(found, whole[..., : size[0], : size[1]])


def test_a_translator_is_content_of_one_domain_in_a_style_of_the_other() -> None:
    whole = StyleTranslator("ct", "mr", width=2, blocks=2, code=3).double()
    images, style = torch.randn(2, 1, 17, 20, dtype=torch.double), torch.randn(2, 3, dtype=torch.double)
    expected = whole.generator(whole.content(images, "ct"), style, "mr", (17, 20))
    assert torch.equal(whole(images, style), expected)
    assert torch.equal(whole(images), whole(images, torch.zeros(2, 3, dtype=torch.double)))


def test_a_code_for_all_is_the_same_code_for_each() -> None:
    _, _, generator = translator()
    content, code = torch.randn(3, 8, 4, 5, dtype=torch.double), torch.randn(1, 3, dtype=torch.double)
    torch.testing.assert_close(generator(content, code, "ct"), generator(content, code.repeat(3, 1), "ct"))
    assert not torch.allclose(generator(content, code, "ct"), generator(content, -code, "ct"))


def test_private_parts_differ_and_content_goes_into_any_domain() -> None:
    content, style, generator = translator()
    images = torch.randn(1, 1, 20, 20, dtype=torch.double)
    assert not torch.allclose(content(images, "ct"), content(images, "mr"))
    assert not torch.allclose(style(images, "ct").mean, style(images, "mr").mean)
    inside, code = content(images, "ct"), style(images, "mr").mean
    assert not torch.allclose(generator(inside, code, "ct"), generator(inside, code, "mr"))


def test_a_batch_is_its_parts() -> None:
    content, style, generator = translator()
    critic, of_content = shaken(MultiScaleCritic(width=2, scales=1).double()), shaken(ContentCritic(8, layers=0).double())

    def everything(images: Tensor) -> list[Tensor]:
        inside, code = content(images, "ct"), style(images, "mr")
        image = generator(inside, code.mean, "mr", size=images.shape[2:])
        return [inside, *code, image, *critic(image), of_content(inside)]

    images = torch.randn(3, 1, 21, 18, dtype=torch.double)
    for whole, *parts in zip(everything(images), *(everything(one) for one in images.split(1)), strict=True):
        torch.testing.assert_close(whole, torch.cat(parts))


def test_the_gradient_of_a_translation_reaches_what_made_it() -> None:
    """CT's content and MR's style and generator learn; CT's style and generator, and MR's content, do not."""
    content, style, generator = translator()
    ct, mr = torch.randn(2, 2, 1, 20, 20, dtype=torch.double)
    code = style(mr, "mr")
    generator(content(ct, "ct"), code.sample(torch.ones(2).double()), "mr").square().mean().backward()
    idle, learning = [], []
    for name, network in (("content", content), ("style", style), ("generator", generator)):
        for key, parameter in network.named_parameters():
            (idle if parameter.grad is None else learning).append((name, key))
    assert {name for name, key in learning if "mr" in key} == {"style", "generator"}
    assert {name for name, key in learning if "ct" in key} == {"content"}
    assert {name for name, key in learning if "shared" in key} == {"content", "generator"}
    assert {name for name, key in idle if "ct" in key} == {"style", "generator"}
    assert {key.split(".")[0] for name, key in learning if name == "style"} == {"private", "mean", "logvar"}


def test_half_precision_gives_wide_images_and_styles() -> None:
    content, style, generator = (network.float() for network in translator())
    images = torch.rand(1, 1, 24, 24)
    with torch.autocast("cpu", torch.bfloat16):
        code = style(images, "mr")
        found = generator(content(images, "ct"), code.mean, "mr")
    assert {found.dtype, code.mean.dtype, code.logvar.dtype} == {torch.float32}
    torch.testing.assert_close(found, generator(content(images, "ct"), code.mean, "mr"), atol=0.2, rtol=0.2)


# ------------------------------------------------------------------------------------------------------- what is refused


def test_the_least_size_of_every_network() -> None:
    content, style, _ = (network.float() for network in translator())
    networks = [
        (lambda x: content(x, "ct"), 1, 5),
        (lambda x: style(x, "ct").mean, 1, 16),
        (MultiScaleCritic(width=1), 1, 61),
        (MultiScaleCritic(width=1, scales=1), 1, 16),
        (MultiScaleCritic(width=1, scales=2, norm=True), 1, 63),
        *((ContentCritic(1, layers), 1, n) for layers, n in enumerate((4, 11, 25, 53))),
    ]
    for network, channels, least in networks:
        network(torch.rand(1, channels, least, least))
        with pytest.raises(ModelError, match=rf"{least}x{least - 1} voxels are too small .* every axis needs {least} "):
            network(torch.rand(1, channels, least, least - 1))


@pytest.mark.parametrize(("layers", "least"), [(0, 13), (1, 41), (2, 97), (3, 209)])
def test_the_least_image_of_a_content_critic(layers: int, least: int) -> None:
    """Its content has a voxel for every 4 begun: one voxel less in the image, and the content is one short."""
    smallest = ContentCritic(1, layers).smallest
    assert (-(-least // 4), -(-(least - 1) // 4)) == (smallest, smallest - 1)


def test_what_they_cannot_read() -> None:
    content, style, generator = (network.float() for network in translator())
    images = torch.zeros(2, 1, 16, 16)
    inside, code = content(images, "ct"), style(images, "mr").mean
    for call in (lambda: content(images, "pet"), lambda: style(images, "pet"), lambda: generator(inside, code, "pet")):
        with pytest.raises(ModelError, match=r"no domain 'pet' \(this network was built for ct, mr\)"):
            call()
    for call in (
        lambda: content(images.repeat(1, 2, 1, 1), "ct"),
        lambda: style(images.repeat(1, 2, 1, 1), "ct"),
        lambda: MultiScaleCritic(width=1)(images.repeat(1, 2, 1, 1)),
        lambda: generator(inside[:, :2], code, "ct"),
        lambda: ContentCritic(3)(inside[:, :2]),
    ):
        with pytest.raises(ModelError, match=r"^2 channels and 2 axes, the .* reads \d and 2 "):
            call()
    with pytest.raises(ModelError, match="1 channels and 3 axes, the content encoder reads 1 and 2"):
        content(images[..., None], "ct")
    for wrong in (code[:, :2], code[0], code.repeat(2, 1)):
        with pytest.raises(ModelError, match="for 2 contents, the generator reads codes of 3"):
            generator(inside, wrong, "mr")
    for size in ((16, 17), (12, 16), (16,)):
        with pytest.raises(ModelError, match="content of 4x4 voxels is not that of an image of"):
            generator(inside, code, "mr", size=size)
    for kind in (ContentEncoder, StyleGenerator):
        with pytest.raises(ValueError, match="at least one is needed"):
            kind(DOMAINS, width=2, blocks=0)
