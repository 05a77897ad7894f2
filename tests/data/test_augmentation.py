from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from modistill.data.augmentation import (
    HADNetAugmentation,
    HADNetTransform,
    SpatialTransform,
    StandardAugmentation,
    augmentations,
)
from modistill.errors import RecipeError

SHAPE = (11, 14, 9)


def ball(shape=SHAPE, modalities=3) -> tuple[torch.Tensor, torch.Tensor]:
    axes = torch.meshgrid(*[torch.linspace(-1.2, 1.2, n) for n in shape], indexing="ij")
    inside = sum(axis**2 for axis in axes) < 1
    images = torch.rand(modalities, *shape) + 0.5
    labels = (inside & (axes[0] > 0.2)).to(torch.uint8) * 2
    return images * inside, labels


@pytest.mark.parametrize("name", ["hadnet", "spatial", "standard"])
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
