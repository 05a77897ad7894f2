from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from modistill.data.augmentation import (
    HADNetAugmentation,
    HADNetTransform,
    NNUNetAugmentation,
    NNUNetTransform,
    SpatialTransform,
    StandardAugmentation,
    augmentations,
)
from modistill.data.intensities import (
    IntensityTransform,
    NNUNetIntensities,
    add_noise,
    blur,
    change_contrast,
    change_gamma,
    lower_resolution,
)
from modistill.errors import RecipeError

SHAPE = (11, 14, 9)


def ball(shape=SHAPE, modalities=3) -> tuple[torch.Tensor, torch.Tensor]:
    axes = torch.meshgrid(*[torch.linspace(-1.2, 1.2, n) for n in shape], indexing="ij")
    inside = sum(axis**2 for axis in axes) < 1
    images = torch.rand(modalities, *shape) + 0.5
    labels = (inside & (axes[0] > 0.2)).to(torch.uint8) * 2
    return images * inside, labels


@pytest.mark.parametrize("name", ["hadnet", "nnunet", "spatial", "standard"])
def test_a_drawn_transform_repeats_itself_and_leaves_its_arguments_alone(name):
    images, labels = ball()
    images[1] = 0  # a modality the case lacks
    before = images.clone(), labels.clone()
    changed = 0
    for seed in range(8):
        transform = augmentations[name].sample(np.random.default_rng(seed))
        one, two = transform(images, labels), transform(images, labels)
        assert torch.equal(one[0], two[0])
        assert torch.equal(one[1], two[1])
        assert torch.equal(images, before[0])
        assert torch.equal(labels, before[1])
        assert one[0].shape == images.shape
        assert one[1].dtype == labels.dtype
        assert set(one[1].unique().tolist()) <= {0, 2}
        assert not one[0][1].any()
        changed += not torch.equal(one[0], images)
    assert changed >= 5


def test_frequencies_and_ranges_are_those_of_the_paper():
    augmentation = HADNetAugmentation()
    drawn = [augmentation.sample(np.random.default_rng([1, index])) for index in range(3000)]
    assert abs(np.mean([transform.flip for transform in drawn]) - 0.5) < 0.03
    matrices = [transform.matrix for transform in drawn if transform.matrix is not None]
    assert abs(len(matrices) / 3000 - 0.8) < 0.03
    volume = np.array([np.linalg.det(matrix) for matrix in matrices])
    assert abs(volume.mean() - 1) < 0.005
    # row 2 has no shear of its own: it is R[2] . shear . scale, and its first two entries are rotations of at most 4 degrees
    bound = np.sin(np.deg2rad(4)) * 1.04 * 1.1 + 0.04 * np.sin(np.deg2rad(4))
    assert max(np.abs(matrix[2, :2]).max() for matrix in matrices) < bound
    assert 0.9 * (np.sin(np.deg2rad(4)) + 0.04) < max(np.abs(matrix[0, 1]) for matrix in matrices) < 0.13
    assert len({matrix.tobytes() for matrix in matrices}) == len(matrices)  # no two samples share a draw


def test_the_affine_map_is_that_of_an_independent_resampler():
    images, labels = ball()
    matrix = HADNetAugmentation(affine_probability=1).sample(np.random.default_rng(5)).matrix
    warped, warped_labels = HADNetTransform(flip=False, matrix=matrix)(images, labels)
    ours = matrix[::-1, ::-1]  # scipy counts axes from the first
    centre = (np.array(SHAPE) - 1) / 2
    offset = centre - ours @ centre
    mask = ndimage.affine_transform((images != 0).any(0).float().numpy(), ours, offset, order=0)
    for image, result in zip(images, warped, strict=True):
        expected = ndimage.affine_transform(image.numpy(), ours, offset, order=1, mode="grid-constant") * mask
        np.testing.assert_allclose(result, expected, atol=2e-4)
    nearest = ndimage.affine_transform(labels.numpy(), ours, offset, order=0)
    assert (warped_labels.numpy() == nearest).mean() > 0.998  # ties between two voxels may fall either way


def test_nothing_drawn_changes_nothing_and_a_flip_is_exact():
    images, labels = ball()
    same = HADNetTransform(flip=False, matrix=None)(images, labels)
    assert torch.equal(same[0], images)
    flipped = HADNetTransform(flip=True, matrix=None)(images, labels)
    assert torch.equal(flipped[0], images.flip(1))
    assert torch.equal(flipped[1], labels.flip(0))
    identity = HADNetTransform(flip=False, matrix=np.eye(3))(images, labels)
    torch.testing.assert_close(identity[0], images, atol=1e-5, rtol=0)
    assert torch.equal(identity[1], labels)


def test_standard_keeps_background_and_works_on_slices():
    images, labels = ball()
    for seed in range(10):
        out, classes = StandardAugmentation(probability=1).sample(np.random.default_rng(seed))(images[..., 4], labels[..., 4])
        flip = torch.equal(classes, labels[..., 4].flip(0))
        assert torch.equal(out != 0, (images[..., 4].flip(1) if flip else images[..., 4]) != 0)
    with pytest.raises(RecipeError, match="made for volumes"):
        augmentations["hadnet"].sample(np.random.default_rng(0))(images[..., 0], labels[..., 0])


STILL = np.zeros((2, 4, 4))


def test_upright_never_mirrors():
    """A left kidney stays one."""
    rng = np.random.default_rng(0)
    assert not any(augmentations["upright"].sample(rng).flip for _ in range(100))
    assert any(augmentations["spatial"].sample(rng).flip for _ in range(100))


def test_a_spatial_map_that_changes_nothing_is_the_identity():
    images, labels = ball()
    found = SpatialTransform(False, 0.0, 1.0, STILL)(images, labels)
    torch.testing.assert_close(found[0], images)
    assert torch.equal(found[1], labels)


@pytest.mark.parametrize(("angle", "scale"), [(0.3, 1.0), (0.0, 1.2), (-0.2, 0.9)])
def test_rotation_and_scaling_are_those_of_scipy(angle, scale):
    image = ndimage.gaussian_filter(np.random.default_rng(0).random((21, 33)), 2).astype(np.float32)
    found, _ = SpatialTransform(False, angle, scale, STILL)(
        torch.from_numpy(image)[None], torch.zeros(21, 33, dtype=torch.uint8)
    )
    matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / scale
    centre = np.array([10.0, 16.0])
    expected = ndimage.affine_transform(image, matrix, centre - matrix @ centre, order=1, mode="constant")
    inner = (slice(4, -4), slice(8, -8))
    np.testing.assert_allclose(found[0].numpy()[inner], expected[inner], atol=1e-5)


def test_a_deformation_moves_things_by_what_its_points_say():
    image, labels = torch.zeros(1, 20, 40), torch.zeros(20, 40, dtype=torch.uint8)
    image[0, 10, 20], labels[10, 20] = 1, 1
    field = STILL.copy()
    field[0] = 3 / 40  # every voxel takes its value from 3 voxels further on: the point moves back by 3
    found, moved = SpatialTransform(False, 0.0, 1.0, field)(image, labels)
    assert np.unravel_index(int(found.argmax()), found.shape) == (0, 7, 20)
    assert moved.nonzero().tolist() == [[7, 20]]


def test_all_slices_of_a_volume_change_alike():
    images, labels = ball()
    transform = augmentations["spatial"].sample(np.random.default_rng(3))
    whole = transform(images, labels)
    for index in range(SHAPE[2]):
        images_of_slice, labels_of_slice = transform(images[..., index], labels[..., index])
        torch.testing.assert_close(whole[0][..., index], images_of_slice)
        assert torch.equal(whole[1][..., index], labels_of_slice)


NOTHING = IntensityTransform(NNUNetIntensities(), (False,) * 7, 0.0, 0)
CHANGES = ("noise", "blur", "brightness", "contrast", "zoom", "inverted_gamma", "gamma")


def geometry(angles=(0.0, 0.0, 0.0), scale=1.0, axes=(), slice_angle=0.0) -> NNUNetTransform:
    return NNUNetTransform(np.array(angles), slice_angle, scale, axes, NOTHING)


def intensities(name: str, **ranges) -> NNUNetIntensities:
    """This change alone, always."""
    chances = {f"{other}_probability": float(other == name) for other in CHANGES}
    return NNUNetIntensities(**chances, channel_probability=1.0, **ranges)


def test_nnunet_draws_as_often_and_as_far_as_nnunet() -> None:
    drawn = [augmentations["nnunet"].sample(np.random.default_rng([2, index])) for index in range(4000)]
    expected = {
        "noise": 0.1,
        "blur": 0.2,
        "brightness": 0.15,
        "contrast": 0.15,
        "zoom": 0.25,
        "inverted_gamma": 0.1,
        "gamma": 0.3,
    }
    found = np.mean([transform.intensities.drawn for transform in drawn], axis=0)
    np.testing.assert_allclose(found, list(expected.values()), atol=0.025)
    angles = np.array([transform.angles for transform in drawn if transform.angles.any()])
    assert abs(len(angles) / 4000 - 0.2) < 0.025
    assert all(np.deg2rad(29) < np.abs(angles[:, axis]).max() <= np.deg2rad(30) for axis in range(3))
    scales = np.array([transform.scale for transform in drawn if transform.scale != 1])
    assert abs(len(scales) / 4000 - 0.2) < 0.025
    assert 0.7 <= scales.min() < 0.71
    assert 1.39 < scales.max() <= 1.4
    assert abs(scales.mean() - 1.05) < 0.03
    for axis in range(3):
        assert abs(np.mean([axis in transform.axes for transform in drawn]) - 0.5) < 0.03
    deviations = [transform.intensities.deviation for transform in drawn]
    assert 0 <= min(deviations) < 0.001
    assert 0.099 < max(deviations) <= 0.1
    of_slices = [abs(transform.slice_angle) for transform in drawn]
    assert np.deg2rad(170) < max(of_slices) <= np.deg2rad(180)


def test_nnunet_without_a_draw_is_the_identity_and_mirrors_are_exact() -> None:
    images, labels = ball()
    same = geometry()(images, labels)
    assert torch.equal(same[0], images)
    assert torch.equal(same[1], labels)
    assert geometry().for_patch(SHAPE).margin == (0, 0, 0)
    mirrored = geometry(axes=(0, 2))(images, labels)
    assert torch.equal(mirrored[0], images.flip(1, 3))
    assert torch.equal(mirrored[1], labels.flip(0, 2))
    on_a_slice = geometry(axes=(0, 2))(images[..., 3], labels[..., 3])
    assert torch.equal(on_a_slice[0], images[..., 3].flip(1))


@pytest.mark.parametrize(("angles", "scale"), [((0.0, 0.0, 0.4), 1.0), ((0.0, 0.0, 0.0), 0.83), ((0.3, -0.2, 0.1), 1.2)])
def test_a_patch_is_turned_and_scaled_as_scipy_does_with_the_whole_volume(angles, scale) -> None:
    """One map about the patch's centre, and what lies beyond the patch comes in: the margin holds all that is needed."""
    whole = ndimage.gaussian_filter(np.random.default_rng(0).random((60, 56, 52)), 1.5).astype(np.float32) + 1
    size, start = (20, 16, 18), np.array([21, 19, 17])
    transform = geometry(angles, scale).for_patch(size)
    margin = np.array(transform.margin)
    assert (margin <= np.floor(0.3 * np.array(size))).all()
    box = tuple(slice(a - m, a + n + m) for a, n, m in zip(start, size, margin, strict=True))
    classes = (whole > np.median(whole)).astype(np.uint8) * 3
    found, labels = transform(torch.from_numpy(whole[box])[None], torch.from_numpy(classes[box]))
    assert found.shape == (1, *size)
    c, s = np.cos(angles), np.sin(angles)
    about_last, about_middle, about_first = (  # torch's axes: the last is its first
        np.array([[1, 0, 0], [0, c[0], -s[0]], [0, s[0], c[0]]]),
        np.array([[c[1], 0, s[1]], [0, 1, 0], [-s[1], 0, c[1]]]),
        np.array([[c[2], -s[2], 0], [s[2], c[2], 0], [0, 0, 1]]),
    )
    matrix = (about_last @ about_middle @ about_first * scale)[::-1, ::-1]
    centre = start + (np.array(size) - 1) / 2
    offset = centre - matrix @ ((np.array(size) - 1) / 2)
    expected = ndimage.affine_transform(whole, matrix, offset, output_shape=size, order=1)
    reach = np.abs(matrix) @ ((np.array(size) - 1) / 2) - (np.array(size) - 1) / 2
    if (reach <= margin).all():  # else the corners lie beyond the margin
        np.testing.assert_allclose(found[0], expected, atol=2e-4)
    inner = (slice(4, -4),) * 3
    np.testing.assert_allclose(found[0][inner], expected[inner], atol=2e-4)
    nearest = ndimage.affine_transform(classes, matrix, offset, output_shape=size, order=0)
    assert (labels.numpy() == nearest)[inner].mean() > 0.995
    assert set(labels.unique().tolist()) == {0, 3}
    assert labels.dtype == torch.uint8


def test_the_margin_by_hand() -> None:
    """45 degrees in the plane: the box around a square of edge 21 (10 from the centre) is 10 (sqrt 2 - 1) = 4.1 larger."""
    assert geometry(slice_angle=np.pi / 4).for_patch((21, 21)).margin == (5, 5)
    assert geometry(scale=1.2).for_patch((21, 11, 31)).margin == (2, 1, 3)
    assert geometry(scale=1.4).for_patch((128, 128, 128)).margin == (26, 26, 26)
    assert geometry((0.5, 0.5, 0.5), 1.4).for_patch((128, 128, 128)).margin == (38, 38, 38)  # at most: 204 voxels
    assert geometry(scale=0.7).for_patch((128, 128)).margin == (0, 0)


def test_a_slice_turns_in_its_plane() -> None:
    image, labels = torch.zeros(1, 21, 21), torch.zeros(21, 21, dtype=torch.uint8)
    image[0, 4, 10], labels[4, 10] = 1, 2
    found, turned = geometry(slice_angle=np.pi / 2)(image, labels)
    assert turned.nonzero().tolist() == [[10, 4]] or turned.nonzero().tolist() == [[10, 16]]
    assert float(found[0][turned == 2]) == pytest.approx(1, abs=1e-4)


def test_all_modalities_and_the_labels_share_one_geometry() -> None:
    """Teacher and student read channels of one tensor, so what they see lies at the same place."""
    _, labels = ball((24, 22, 20))
    field = labels.float() + 1
    images = torch.stack([field, 2 * field, -3 * field])
    augmentation = NNUNetAugmentation(rotation_probability=1, scaling_probability=1, intensities=intensities("none"))
    for seed in range(5):
        found, classes = augmentation.sample(np.random.default_rng(seed))(images, labels)
        torch.testing.assert_close(found[1], 2 * found[0])
        torch.testing.assert_close(found[2], -3 * found[0])
        inside = found[0] > 0
        unambiguous = inside & ((found[0] - found[0].round()).abs() < 1e-3) & (found[0] > 0.99)
        assert unambiguous.sum() > 500
        assert (classes[unambiguous] == found[0][unambiguous].round() - 1).float().mean() > 0.97


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", CHANGES)
def test_what_is_absent_and_what_lies_outside_stays_zero(name: str, dims: int) -> None:
    images, labels = ball()
    images[1] = 0
    if dims == 2:
        images, labels = images[..., 4], labels[..., 4]
    augmentation = NNUNetAugmentation(0, scaling_probability=0, mirror_axes=(), intensities=intensities(name))
    found, classes = augmentation.sample(np.random.default_rng(0))(images, labels)
    assert not found[1].any()
    assert not found[:, ~(images != 0).any(0)].any()
    assert torch.isfinite(found).all()
    assert all(not torch.equal(found[index], images[index]) for index in (0, 2))
    assert torch.equal(classes, labels)


def test_channels_draw_for_themselves_but_share_the_strength_of_noise() -> None:
    images = torch.ones(4, 30, 30, 30)
    intensities("brightness").sample(np.random.default_rng(0))(images)
    factors = images[:, 0, 0, 0]
    assert len(set(factors.tolist())) == 4
    noise = torch.ones(4, 30, 30, 30)
    drawn = intensities("noise").sample(np.random.default_rng(0))
    drawn(noise)
    assert not torch.equal(noise[0], noise[1])
    np.testing.assert_allclose(noise.std((1, 2, 3)), drawn.deviation, rtol=0.03)
    variance = NNUNetIntensities(noise_is="variance").sample(np.random.default_rng(0)).deviation
    assert variance**2 == pytest.approx(NNUNetIntensities().sample(np.random.default_rng(0)).deviation)


def test_half_of_the_channels_are_blurred_and_half_of_the_factors_lie_below_one() -> None:
    factors = torch.ones(600, 2, 2)
    intensities("brightness").sample(np.random.default_rng(3))(factors)
    assert abs(float((factors < 1).float().mean()) - 0.5) < 0.06
    assert 0.75 <= float(factors.min()) < 0.76
    assert 1.24 < float(factors.max()) <= 1.25
    for name in ("blur", "zoom"):
        images = torch.rand(600, 6, 6)
        before, chances = images.clone(), {f"{other}_probability": float(other == name) for other in CHANGES}
        NNUNetIntensities(**chances, zoom=(0.5, 0.6)).sample(np.random.default_rng(3))(images)
        assert abs(float((images != before).flatten(1).any(1).float().mean()) - 0.5) < 0.06


def test_changes_of_intensity_in_plain_words() -> None:
    x = np.random.default_rng(0).normal(0.3, 1, (9, 8, 7))
    image = torch.from_numpy(x.astype(np.float32))

    contrast = image.clone()
    change_contrast(contrast, 1.25)
    np.testing.assert_allclose(contrast, np.clip(x.mean() + 1.25 * (x - x.mean()), x.min(), x.max()), atol=1e-5)

    def bent(values: np.ndarray, gamma: float) -> np.ndarray:
        low, high = values.min(), values.max()
        curve = ((values - low) / (high - low)) ** gamma * (high - low) + low
        return (curve - curve.mean()) / curve.std() * values.std() + values.mean()

    for gamma in (0.7, 1.5):
        plain, inverted = image.clone(), image.clone()
        change_gamma(plain, gamma)
        change_gamma(inverted, gamma, inverted=True)
        np.testing.assert_allclose(plain, bent(x, gamma), atol=1e-5)
        np.testing.assert_allclose(inverted, -bent(-x, gamma), atol=1e-5)
        assert float(plain.mean()) == pytest.approx(x.mean(), abs=1e-5)
        assert float(inverted.std(correction=0)) == pytest.approx(x.std(), abs=1e-5)
    flat = torch.full((3, 3, 3), 2.0)
    change_gamma(flat, 1.4)
    torch.testing.assert_close(flat, torch.full((3, 3, 3), 2.0))

    noisy = image.clone()
    add_noise(noisy, 0.1, torch.Generator().manual_seed(5))
    expected = image + 0.1 * torch.randn(image.shape, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(noisy, expected)


def test_blur_by_hand() -> None:
    """A point becomes the product of Gaussians, each with its own sigma."""
    image = torch.zeros(13, 13)
    image[6, 6] = 1
    blur(image, [0.5, 1.0])
    at = np.arange(-4, 5)
    kernels = [np.where(np.abs(at) <= round(4 * sigma), np.exp(-(at**2) / (2 * sigma**2)), 0) for sigma in (0.5, 1.0)]
    expected = np.outer(*(kernel / kernel.sum() for kernel in kernels))
    np.testing.assert_allclose(image[2:11, 2:11], expected, atol=1e-6)


def test_low_resolution_by_hand() -> None:
    """Half of eight voxels are those right of each middle: 1, 3, 5, 7; enlarged, they lie at 0.5, 2.5, 4.5 and 6.5."""
    image = torch.tensor([[0.0, 1.0, 4.0, 9.0, 16.0, 25.0, 36.0, 49.0]])
    lower_resolution(image, 0.5)
    assert image[0].tolist() == [1, 3, 7, 13, 21, 31, 43, 49]
    same = torch.rand(5, 4, 3)
    before = same.clone()
    lower_resolution(same, 1.0)
    torch.testing.assert_close(same, before)
