"""The body in an image; the lungs in a CT, and the axial slices that show them.

    tissue = {v : I(v) > Otsu's threshold of I}
    body   = the largest connected component of tissue, with the holes of its axial slices filled

Air around a patient is never exactly zero, so no fixed threshold near the darkest value tells it from the patient; Otsu's
(IEEE Trans. Syst. Man Cybern. 9:62, 1979, https://doi.org/10.1109/TSMC.1979.4310076) is the one at which the means of what is
darker and of what is brighter lie furthest apart. Dark organs, as lungs are, come back with the holes.

The rule by which CMEDL (Jiang et al., IEEE TMI 2022, https://arxiv.org/abs/2107.07985) finds the slices it is tested on: "every
slice containing lung".

    air    = {v : HU(v) < -300}
    body   = as above, of the tissue that is no air
    inside = air in the body
    lungs  = the two largest connected components of inside

The paper does not say how air around the patient is left out. Here the body is filled slice by slice, so that a mouth that is
open, or a scan that ends in the windpipe, does not let it into the lungs; a hollow table is no part of the body, unless it
touches it. Components join faces. Both lungs are one component where the bronchi join them, and the second largest may then be
gas in the gut: what holds less than `smallest_ml` is none. The windpipe belongs to the lungs it leads to, so slices of the neck
that show it count, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["body_mask", "lung_mask", "lung_slices"]

_AIR_HU = -300.0


def body_mask(image: NDArray[Any]) -> NDArray[np.bool_]:
    """The patient, without the air around: see the module.

    Args:
        image: (D, H, W) of any modality in which air is dark, on any scale, and some air in view; W the axial direction.

    Returns:
        (D, H, W), all false in a constant image.

    Example:
        >>> mr = np.random.default_rng(0).uniform(0, 0.1, (20, 20, 6))
        >>> mr[2:18, 2:18] += 0.8
        >>> mr[6:14, 6:14] -= 0.8
        >>> int(body_mask(mr).sum()) == 16 * 16 * 6
        True
    """
    import SimpleITK as sitk

    values = sitk.GetImageFromArray(np.ascontiguousarray(image, dtype=np.float32))
    return _filled_body(sitk.GetArrayFromImage(sitk.OtsuThreshold(values, 0, 1)).astype(bool))


def lung_mask(ct_hu: NDArray[Any], spacing_mm: Sequence[float], *, smallest_ml: float = 100.0) -> NDArray[np.bool_]:
    """The two largest components of air inside the body, both lungs as a rule.

    Args:
        ct_hu: (D, H, W) Hounsfield units, W the axial direction.
        spacing_mm: of a voxel.
        smallest_ml: what is smaller is no lung.

    Returns:
        (D, H, W), all false where no lung is found.

    Example:
        >>> ct = np.full((20, 20, 6), -1000.0)
        >>> ct[2:18, 2:18] = 40
        >>> ct[4:8, 4:16, :4] = ct[12:16, 4:16, 2:] = -800
        >>> lung_slices(lung_mask(ct, (10, 10, 10))).tolist()
        [True, True, True, True, True, True]
    """
    from scipy import ndimage

    air = ct_hu < _AIR_HU
    inside, _ = ndimage.label(air & _filled_body(~air))  # components join faces
    return _largest(inside, 2, smallest_ml * 1000 / float(np.prod(spacing_mm)))


def _filled_body(tissue: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest component of tissue (D, H, W), and what it encloses in each axial slice."""
    from scipy import ndimage

    in_plane = ndimage.generate_binary_structure(3, 1)
    in_plane[1, 1, ::2] = False
    components, _ = ndimage.label(tissue)
    around, count = ndimage.label(~_largest(components, 1, 1), in_plane)
    outside = np.zeros(count + 1, dtype=bool)
    for edge in (around[0], around[-1], around[:, 0], around[:, -1]):
        outside[edge] = True
    outside[0] = False  # the body itself, where it reaches the edge
    filled: NDArray[np.bool_] = ~outside[around]
    return filled


def _largest(components: NDArray[Any], count: int, smallest: float) -> NDArray[np.bool_]:
    """The voxels of the largest components, numbered from 1, if they have enough."""
    voxels = np.bincount(components.ravel())
    voxels[0] = 0
    chosen = np.zeros(len(voxels), dtype=bool)
    chosen[np.argsort(voxels)[-count:]] = True
    kept: NDArray[np.bool_] = (chosen & (voxels >= smallest) & (voxels > 0))[components]
    return kept


def lung_slices(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which axial slices hold some of it: (D, H, W) -> (W,)."""
    return np.asarray(mask.any(axis=(0, 1)))
