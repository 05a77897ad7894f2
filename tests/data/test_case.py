"""A case: what was acquired, on one grid."""

import numpy as np
import pytest

from modistill.data.case import Case
from modistill.data.volume import Volume
from modistill.errors import CaseError, GeometryError


def volume(shape=(4, 5, 6)):
    return Volume(np.zeros(shape))


def test_a_case_keeps_its_order_and_cannot_be_changed():
    images = {"t2": volume(), "t1": volume()}
    case = Case("p", images, volume(), "brats2021")
    images["flair"] = volume()
    assert case.modalities == ("t2", "t1")
    assert case.grid is case.images["t2"]
    with pytest.raises(TypeError):
        case.images["flair"] = volume()


def test_without_a_modality():
    case = Case("p", {"t1": volume(), "t1ce": volume()}, volume(), "brats2021")
    rest = case.without("t1ce", "pet")
    assert (rest.id, rest.modalities, rest.convention) == ("p", ("t1",), "brats2021")
    assert rest.labels is case.labels
    with pytest.raises(CaseError, match="p: no modality found"):
        case.without("t1", "t1ce")


@pytest.mark.parametrize("part", ["t2", "labels"])
def test_parts_on_other_grids_are_refused_by_name(part):
    odd = volume((4, 5, 7))
    images = {"t1": volume(), "t2": odd if part == "t2" else volume()}
    with pytest.raises(GeometryError, match=f"{part} has shape 4x5x7, t1 has 4x5x6") as caught:
        Case("p", images, odd if part == "labels" else None)
    assert caught.value.case == "p"
