from __future__ import annotations

import hashlib

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from modistill.errors import ModelError
from modistill.losses.contextual import contextual_loss
from modistill.networks.extractors import EncoderFeatures, GradientFeatures, RandomFeatures, VGG19Features

# index of torchvision's vgg19.features -> (input, output channels)
CONVOLUTIONS = {
    **{0: (3, 64), 2: (64, 64), 5: (64, 128), 7: (128, 128), 10: (128, 256), 12: (256, 256), 14: (256, 256)},
    **{16: (256, 256), 19: (256, 512), 21: (512, 512), 23: (512, 512), 25: (512, 512)},
    **{28: (512, 512), 30: (512, 512), 32: (512, 512), 34: (512, 512)},
}
POOLINGS = {4, 9, 18, 27, 36}
EXPECTED = "state dict of torchvision's vgg19, without batch norm, as .pth or .safetensors"


def state(indices=CONVOLUTIONS, last=19):
    """A state dict with torchvision's names: weights up to `last`, of the rest the names only, and a classifier."""
    random = torch.Generator().manual_seed(0)
    tensors = {"classifier.0.weight": torch.zeros(2, 2), "classifier.0.bias": torch.zeros(2)}
    for index in indices:
        n, channels = CONVOLUTIONS.get(index, (2, 2))
        shape = (channels, n, 3, 3) if index <= last else (1,)
        tensors[f"features.{index}.weight"] = torch.randn(*shape, generator=random) * (2 / (9 * n)) ** 0.5
        tensors[f"features.{index}.bias"] = torch.randn(channels, generator=random) * 0.1
    return tensors


def plain(tensors, images, at):
    """VGG19 in the words of torchvision's list of layers, one index after the other."""
    mean, deviation = (torch.tensor(v).reshape(1, 3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    x, found = (((images + 1) / 2).expand(-1, 3, -1, -1) - mean) / deviation, {}
    for index in range(max(at) + 1):
        if index in CONVOLUTIONS:
            x = functional.conv2d(x, tensors[f"features.{index}.weight"], tensors[f"features.{index}.bias"], padding=1)
        else:
            x = functional.max_pool2d(x, 2) if index in POOLINGS else functional.relu(x)
        found[index] = x
    return [found[index] for index in at]


@pytest.fixture(scope="module")
def weights():
    return state()


@pytest.fixture(scope="module")
def file(weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "vgg19.pth"
    torch.save(weights, path)
    return path


@pytest.fixture
def image():
    return torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_the_papers_layers(file, weights, image):
    """For 256x256 the paper prints 64x64x256, 64x64x256 and 32x32x512: a quarter, a quarter and an eighth."""
    extractor = VGG19Features(file)
    maps = extractor(image)
    assert [tuple(one.shape) for one in maps] == [(1, 256, 16, 16), (1, 256, 16, 16), (1, 512, 8, 8)]
    torch.testing.assert_close(list(maps), plain(weights, image, (14, 16, 19)), atol=1e-4, rtol=1e-4)
    assert len(extractor.features) == 20  # no more than is needed
    assert sum(p.numel() for p in extractor.parameters()) == sum(
        9 * n * channels + channels for index, (n, channels) in CONVOLUTIONS.items() if index <= 19
    )


def test_layers_in_the_order_asked_for_and_after_relu(file, weights, image):
    extractor = VGG19Features(file, ("conv3_3", "conv1_2"), after_relu=True)
    found = extractor(image)
    torch.testing.assert_close(list(found), plain(weights, image, (15, 3)), atol=1e-4, rtol=1e-4)
    assert all((one >= 0).all() for one in found)


def test_other_containers_and_types(file, weights, tmp_path, image):
    """The old format of `torch.save`, safetensors, halves: the same features; the features alone are enough."""
    features = {name: tensor for name, tensor in weights.items() if name.startswith("features")}
    torch.save(features, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    save_file(weights, tmp_path / "new.safetensors")
    save_file({name: tensor.bfloat16() for name, tensor in weights.items()}, tmp_path / "half.safetensors")
    expected = VGG19Features(file)
    for name in ("old.pth", "new.safetensors"):
        assert VGG19Features(tmp_path / name).record() == expected.record()
    half = VGG19Features(str(tmp_path / "half.safetensors"))
    assert {p.dtype for p in half.parameters()} == {torch.float32}
    torch.testing.assert_close(half(image), expected(image), atol=0.1, rtol=0.1)
    assert half.digest() != expected.digest()


def test_what_a_run_records(file, weights):
    digest = hashlib.sha256()
    for name in sorted(name for name in weights if name.startswith("features") and int(name.split(".")[1]) <= 19):
        digest.update(f"{name} torch.float32 {tuple(weights[name].shape)}\n".encode())
        digest.update(weights[name].numpy().tobytes())
    assert VGG19Features(file).record() == {
        "kind": "vgg19",
        "layers": ["conv3_3", "conv3_4", "conv4_1"],
        "after_relu": False,
        "seed": None,
        "digest": digest.hexdigest(),
    }


def changed(**tensors):
    """A sound state dict with other or no tensors at some names (dots written as __)."""
    content = state(last=2) | {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    return {name: tensor for name, tensor in content.items() if tensor is not None}


VGG16 = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
FOREIGN = {
    "vgg16": (lambda: state(VGG16, last=-1), "not the layers of VGG19: it has features.17.bias"),
    "norms": (lambda: changed(features__1__running_mean=torch.zeros(64)), "it has features.1.running_mean"),
    "nothing": (lambda: {"weight": torch.zeros(2)}, "it lacks features.0.bias"),
    "lacking": (lambda: changed(features__2__bias=None), "it lacks features.2.bias"),
    "grey": (
        lambda: changed(features__0__weight=torch.zeros(64, 1, 3, 3)),
        r"not VGG19: features.0.weight is \(64, 1, 3, 3\), it should be \(64, 3, 3, 3\)",
    ),
    "not finite": (lambda: changed(features__2__bias=torch.full((64,), torch.nan)), "features.2.bias is not finite"),
    "a list": (lambda: [torch.zeros(2)], "it holds a list, not a state dict"),
    "a module": (lambda: nn.Linear(2, 2), "cannot be read as weights: Weights only load failed"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_weights(name, tmp_path):
    content, message = FOREIGN[name]
    content = content()
    files = [tmp_path / "some.pth"]
    torch.save(content, files[0])
    if isinstance(content, dict):
        files.append(tmp_path / "some.safetensors")
        save_file(content, files[1])
    for file in files:
        with pytest.raises(ModelError, match=message) as caught:
            VGG19Features(file, ("conv1_2",))
        assert str(caught.value).startswith(f"{file}: ")
        assert "\n" not in str(caught.value)
        assert EXPECTED in str(caught.value) or name == "not finite"


def test_missing_and_damaged_files(tmp_path):
    save_file(state(last=2), tmp_path / "sound.safetensors")
    torch.save(state(last=2), tmp_path / "sound.pth")
    assert VGG19Features(tmp_path / "sound.pth", ("conv1_2",)).digest()
    for ending in (".pth", ".safetensors"):
        with pytest.raises(ModelError, match=r"none.*: no weights of VGG19 here \(give the state dict"):
            VGG19Features(tmp_path / f"none{ending}", ("conv1_2",))
        content = (tmp_path / f"sound{ending}").read_bytes()
        for length in (0, 5, 300, len(content) // 2):
            cut = tmp_path / f"cut{ending}"
            cut.write_bytes(content[:length])
            with pytest.raises(ModelError, match=r"cut.*: cannot be read as weights: .* \(give the state dict") as caught:
                VGG19Features(cut, ("conv1_2",))
            assert EXPECTED in str(caught.value)


EXTRACTORS = {
    "random": lambda: RandomFeatures(width=4),
    "random 3d": lambda: RandomFeatures(("conv1_2", "conv2_1"), width=4, dims=3, centred=False),
    "gradient": lambda: GradientFeatures((2, 4), patch=3),
    "gradient 3d": lambda: GradientFeatures((1, 2), patch=3, dims=3),
    "encoder": lambda: EncoderFeatures(encoder(), layers=["conv"]),
}


def encoder(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 6, 3, stride=2), nn.BatchNorm2d(6), nn.Dropout(0.5))


def images_for(name):
    return torch.rand(2, 1, *((8, 12, 8) if "3d" in name else (32, 40)), generator=torch.Generator().manual_seed(2)) * 2 - 1


@pytest.mark.parametrize("name", EXTRACTORS)
def test_no_extractor_ever_learns(name):
    extractor = EXTRACTORS[name]()
    whole = nn.ModuleDict({"extractor": extractor})
    whole.train()
    assert not any(module.training for module in extractor.modules())
    assert not any(parameter.requires_grad for parameter in extractor.parameters())
    images = images_for(name).requires_grad_()
    before = extractor.record()
    contextual_loss(extractor(images), extractor(images.detach().flip(2))).backward()
    assert images.grad.isfinite().all()
    assert images.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in extractor.parameters())
    assert extractor.record() == before
    assert before["kind"] == name.split()[0]
    assert len(before["layers"]) == len(extractor(images))
    assert all(isinstance(value, str | int | float | bool | list | None) for value in before.values())


@pytest.mark.parametrize("name", EXTRACTORS)
def test_a_batch_is_its_parts(name):
    extractor, images = EXTRACTORS[name](), images_for(name)
    parts = [extractor(image[None]) for image in images]
    for whole, *halves in zip(extractor(images), *parts, strict=True):
        torch.testing.assert_close(whole, torch.cat(halves), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", EXTRACTORS)
def test_an_image_is_at_no_distance_of_itself(name):
    extractor, images = EXTRACTORS[name](), images_for(name)
    with torch.no_grad():
        same, other = (contextual_loss(extractor(x), extractor(images)).item() for x in (images, images.flip(0).square()))
    assert abs(same) < 1e-3
    assert other > 0.1


def test_random_features_are_a_function_of_their_seed(image):
    state = torch.get_rng_state()
    one, two, other = (RandomFeatures(seed=seed, width=4) for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), state)
    assert one.record() == two.record()
    assert one.record() == {
        **{"kind": "random", "layers": ["conv3_3", "conv3_4", "conv4_1"], "after_relu": False, "digest": one.digest()},
        **{"seed": 5, "width": 4, "centred": True},
    }
    assert one.digest() != other.digest()
    other.load_state_dict(one.state_dict())
    torch.testing.assert_close(other(image), one(image))


def test_random_features_are_kaimings_and_centred(image):
    extractor = RandomFeatures(width=16)
    for layer in extractor.features:
        if isinstance(layer, nn.Conv2d) and layer.in_channels > 1:
            assert layer.weight.std().item() == pytest.approx((2 / (9 * layer.in_channels)) ** 0.5, rel=0.1)
            assert not layer.bias.any()
    for one, raw in zip(extractor(image), RandomFeatures(width=16, centred=False)(image), strict=True):
        torch.testing.assert_close(one.mean((2, 3)), torch.zeros(1, one.shape[1]), atol=1e-5, rtol=0)
        torch.testing.assert_close(one, raw - raw.mean((2, 3), keepdim=True))


def test_random_features_have_the_layers_of_vgg19():
    ours = RandomFeatures(tuple(f"conv{scale}_{n}" for scale, n in ((5, 4), (1, 1))), width=1)
    found = {index: layer for index, layer in enumerate(ours.features) if isinstance(layer, nn.Conv2d)}
    assert {index: layer.out_channels for index, layer in found.items()} == {
        index: channels // 64 for index, (_, channels) in CONVOLUTIONS.items()
    }
    assert {index for index, layer in enumerate(ours.features) if isinstance(layer, nn.MaxPool2d)} == POOLINGS - {36}
    shapes = [tuple(one.shape) for one in ours(torch.zeros(1, 1, 33, 50))]
    assert shapes == [(1, 8, 2, 3), (1, 1, 33, 50)]


def test_gradient_features_by_hand():
    """Rows 0, 1, 4, 9: differences 1, (4 - 0) / 2, (9 - 1) / 2, 5 along the rows, none along the columns."""
    rows = torch.tensor([0.0, 1.0, 4.0, 9.0])
    (found,) = GradientFeatures((1,), patch=1)(rows.reshape(1, 1, 4, 1).expand(-1, -1, -1, 3) / 10)
    assert found.shape == (1, 3, 4, 3)
    torch.testing.assert_close(found[0, :, :, 1] * 10, torch.stack([rows, torch.tensor([1.0, 2, 4, 5]), torch.zeros(4)]))


def test_gradient_features_see_a_neighbourhood():
    """3x3 averages of 2x2 blocks, the last ones repeated beyond the edge."""
    image = torch.rand(1, 1, 9, 8)
    found, averages = GradientFeatures((2,), patch=3)(image)[0], functional.avg_pool2d(image, 2)
    assert found.shape == (1, 27, 4, 4)
    torch.testing.assert_close(found[0, :9, 1, 2], averages[0, 0, 0:3, 1:4].flatten())
    corner = averages[0, 0][[0, 0, 1]][:, [0, 0, 1]]
    torch.testing.assert_close(found[0, :9, 0, 0], corner.flatten())


def test_gradient_features_record():
    assert GradientFeatures((4,), patch=3).record() == {
        **{"kind": "gradient", "layers": ["1/4"], "digest": None, "seed": None},
        "patch": 3,
    }


def test_the_average_follows_the_network():
    """The first update copies; then 3/4 of the average stays, of weights and of running statistics."""
    network = encoder()
    extractor = EncoderFeatures(network, layers=["conv"], decay=0.75, maps=lambda net, images: [net[0](images)])
    first, second = encoder(1), encoder(2)
    first[1].running_mean.fill_(1)
    second[1].running_mean.fill_(5)
    extractor.update(first)
    copy = extractor.average.module
    torch.testing.assert_close(copy.state_dict(), first.state_dict())
    before = extractor.digest()
    extractor.update(second)
    torch.testing.assert_close(copy[0].weight, 0.75 * first[0].weight + 0.25 * second[0].weight)
    torch.testing.assert_close(copy[1].running_mean, torch.full((6,), 2.0))
    assert extractor.digest() != before
    assert not any(parameter.requires_grad for parameter in extractor.parameters())
    assert all(parameter.requires_grad for parameter in second.parameters())
    torch.testing.assert_close(network.state_dict(), encoder().state_dict())  # what it was copied from is left alone
    again = EncoderFeatures(encoder(3), layers=["conv"], decay=0.75, maps=lambda net, images: [net[0](images)])
    again.load_state_dict(extractor.state_dict())
    assert (
        again.record()
        == extractor.record()
        == {
            **{"kind": "encoder", "layers": ["conv"], "digest": extractor.digest(), "seed": None},
            "decay": 0.75,
        }
    )
    again.update(first)
    extractor.update(first)
    assert again.digest() == extractor.digest()


def test_an_encoder_that_gives_maps_itself(image):
    class Pair(nn.Module):
        def forward(self, images):
            return images, 2 * images

    assert torch.equal(EncoderFeatures(Pair(), layers=["one", "two"])(image)[1], 2 * image)
    with pytest.raises(ModelError, match=r"2 maps for the layers one \(name every map once\)"):
        EncoderFeatures(Pair(), layers=["one"])(image)


def test_what_they_cannot_read(file):
    with pytest.raises(ModelError, match=r"7x64 voxels are too small for the extractor: every axis needs 8 \(choose a larger"):
        VGG19Features(file)(torch.zeros(1, 1, 7, 64))
    assert RandomFeatures(width=1)(torch.zeros(1, 1, 8, 8))[2].shape == (1, 8, 1, 1)
    with pytest.raises(ModelError, match="images of 3 channels and 2 axes, the extractor reads 1 and 2"):
        RandomFeatures(width=1)(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ModelError, match="images of 1 channels and 2 axes, the extractor reads 1 and 3"):
        GradientFeatures(dims=3)(torch.zeros(1, 1, 16, 16))
    with pytest.raises(ModelError, match="15x16 voxels are too small for the extractor: every axis needs 16"):
        GradientFeatures()(torch.zeros(1, 1, 15, 16))


def test_arguments_that_make_no_sense():
    for layers in ((), ("conv3_5",), ("conv1_1", "conv1_1")):
        with pytest.raises(ValueError, match="different names from conv1_1 to conv5_4 are needed"):
            RandomFeatures(layers)
    for options in ({"scales": ()}, {"scales": (0,)}, {"patch": 4}):
        with pytest.raises(ValueError, match="positive numbers, patch odd"):
            GradientFeatures(**options)
    with pytest.raises(ValueError, match=r"decay is 1.0, it must be at least 0 and below 1"):
        EncoderFeatures(encoder(), layers=["conv"], decay=1.0)
