import numpy as np
import pytest

from modistill.phantom.shapes import Canvas, fill, superellipse, tube
from modistill.phantom.vessels import grow_tree, paint_tree


def blank(size: int = 24, voxel_mm: float = 1.0, tissues: tuple[str, ...] = ("air", "soft", "hard")) -> Canvas:
    axis = ((np.arange(size) - (size - 1) / 2) * voxel_mm).astype(np.float32)
    return Canvas(tissues, *np.meshgrid(axis, axis, axis, indexing="ij"), voxel_mm)


def test_an_ellipse_and_a_box_by_hand() -> None:
    """Power 2 is the ellipse, whose depth on an axis is the distance; a high power is nearly a box."""
    x, y = np.array([8.0, 0.0]), np.array([0.0, 7.0])
    np.testing.assert_allclose(superellipse(x, y, 10.0, 5.0, 2.0), [2.0, -2.0], atol=1e-3)
    assert superellipse(np.array([9.0]), np.array([4.0]), 10.0, 5.0, 60.0)[0] == pytest.approx(1.0, abs=0.05)


def test_a_tube_by_hand() -> None:
    """From radius 2 to radius 4 over 10 mm: 3 in the middle, less the distance; beyond the end, distance to the end."""
    course = ((0.0, 0.0, 0.0, 2.0), (10.0, 0.0, 0.0, 4.0))
    x, y, z = np.array([5.0, 5.0, 13.0]), np.array([0.0, 1.0, 0.0]), np.zeros(3)
    np.testing.assert_allclose(tube(x, y, z, course), [3.0, 2.0, 1.0], atol=1e-6)


def test_what_is_painted_later_lies_on_top_and_shares_fill_every_voxel() -> None:
    canvas = blank()
    canvas.ellipsoid("soft", (0.0, 0.0, 0.0), (9.0, 7.0, 5.0))
    canvas.ellipsoid("hard", (2.0, 0.0, 0.0), (3.0, 3.0, 3.0), over=("soft",))
    np.testing.assert_allclose(canvas.shares.sum(axis=0), 1, atol=1e-6)
    assert canvas.share("soft", "hard").sum() == pytest.approx(4 / 3 * np.pi * 9 * 7 * 5, rel=0.02)
    assert canvas.share("hard").sum() == pytest.approx(4 / 3 * np.pi * 27, rel=0.03)


def test_only_the_tissues_named_give_way() -> None:
    canvas = blank()
    canvas.ellipsoid("soft", (0.0, 0.0, 0.0), (4.0, 4.0, 4.0))
    air = canvas.share("air").copy()
    canvas.ellipsoid("hard", (0.0, 0.0, 0.0), (9.0, 9.0, 9.0), over=("soft",))
    np.testing.assert_array_equal(canvas.share("air"), air)
    assert canvas.share("soft").max() < 1e-6


@pytest.mark.parametrize("radius", [0.3, 0.8, 3.0])
def test_a_tube_keeps_its_volume_however_thin(radius: float) -> None:
    """Pi r^2 times its length, though the voxels are 2 mm wide; ends aside."""
    canvas = blank(24, 2.0)
    canvas.tube("hard", ((0.4, 0.3, -60.0, radius), (0.4, 0.3, 60.0, radius)))
    assert canvas.share("hard").sum() * 8 == pytest.approx(np.pi * radius**2 * 48, rel=0.06)


def test_a_part_is_a_view_and_may_be_empty() -> None:
    canvas = blank()
    part = canvas.part((-3.0, -3.0, -3.0), (3.0, 3.0, 3.0))
    part.blend("hard", np.ones_like(part.x))
    assert canvas.share("hard").sum() == part.x.size == 6**3
    nowhere = canvas.part((50.0, 50.0, 50.0), (60.0, 60.0, 60.0))
    nowhere.paint("hard", nowhere.x)
    assert nowhere.part((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)).x.size == 0


def test_a_part_holds_what_it_should_in_a_body_that_is_turned() -> None:
    canvas = blank()
    x, y = canvas.x + 0.3 * canvas.y, canvas.y - 0.3 * canvas.x
    turned = Canvas(canvas.tissues, x, y, canvas.z, 1.0)
    whole = fill(4.0 - np.sqrt((x - 5) ** 2 + (y + 2) ** 2 + (turned.z - 1) ** 2), 1.0)
    part = turned.part((0.0, -7.0, -4.0), (10.0, 3.0, 6.0))
    part.paint("hard", 4.0 - np.sqrt((part.x - 5) ** 2 + (part.y + 2) ** 2 + (part.z - 1) ** 2))
    np.testing.assert_allclose(turned.share("hard"), whole, atol=1e-6)


def test_a_tree_reaches_everywhere_and_thins_by_murrays_law() -> None:
    rng = np.random.default_rng(0)
    points = rng.uniform(-30, 30, (512, 3))
    branches = list(grow_tree(rng, (0.0, 0.0, -40.0), points, 4.0, 8))
    assert len(branches) == 127, "512 points are halved six times: 2^7 - 1"
    for (*_, first), (*_, last) in branches:
        assert last**3 * 2 == pytest.approx(first**3)
    ends = np.array([end[:3] for _, end in branches])
    nearest = np.sqrt(((points[:, None] - ends) ** 2).sum(axis=-1)).min(axis=1)
    assert np.percentile(nearest, 90) < 15, "no further than the edge of a cube that eight points share"
    canvas = blank(24, 3.0)
    paint_tree(canvas, "hard", branches, ("air",))
    assert canvas.share("hard").max() > 0.9
    assert 0.001 < canvas.share("hard").mean() < 0.05
