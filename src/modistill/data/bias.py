"""The bias field of an MR: intensities that drift across the volume because the coils do not see all of it alike.

N4 (Tustison et al., "N4ITK: Improved N3 Bias Correction", IEEE TMI 2010;29(6):1310-1320,
https://doi.org/10.1109/TMI.2010.2046908) models an image v as the true one u times a smooth field f,

    v = u f,    log f = the B-spline that sharpens the histogram of log u most.

SimpleITK computes it on a coarse copy, of at most 48 voxels an axis, inside Otsu's mask of what is no air: 2 to 8 s of a
core. The field is smooth, so its B-spline is read at full resolution, and the image divided by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modistill.errors import CaseError

__all__ = ["correct_bias"]

_COARSE = 48  # voxels an axis


def correct_bias(
    voxels: NDArray[Any], spacing_mm: Sequence[float], *, modality: str = "image", case: str | None = None
) -> NDArray[np.float32]:
    """The image without its bias field.

    One thread computes it, so that a patient is prepared to the same bits wherever that happens.

    Args:
        voxels: (D, H, W) intensities of an MR, none negative where there is tissue.
        spacing_mm: of a voxel.
        modality: for messages.
        case: for messages.

    Returns:
        (D, H, W); what is zero stays zero.

    Raises:
        CaseError: the field cannot be found, as of a constant image.
    """
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(np.ascontiguousarray(voxels, dtype=np.float32))  # SimpleITK counts axes from the last
    image.SetSpacing([float(size) for size in reversed(spacing_mm)])
    coarse = sitk.BinShrink(image, [-(-n // _COARSE) for n in image.GetSize()])
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetNumberOfWorkUnits(1)
    try:
        n4.Execute(coarse, sitk.OtsuThreshold(coarse, 0, 1))
        field = sitk.GetArrayFromImage(sitk.Exp(n4.GetLogBiasFieldAsImage(image)))
    except RuntimeError as error:
        reason = f"N4 finds no bias field in {modality}: {str(error).splitlines()[-1].strip()}"
        raise CaseError(reason, case=case, remedy="look at the image, or leave out --n4") from error
    return np.asarray(voxels / field, dtype=np.float32)
