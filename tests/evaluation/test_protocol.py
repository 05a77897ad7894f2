import math
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from modistill.errors import RecipeError, ScoreError
from modistill.evaluation.protocol import METRICS, Protocol

SPACING = (1.0, 1.0, 2.0)


def cube(size: int) -> NDArray[np.bool_]:
    region = np.zeros((8, 8, 8), bool)
    region[:size, :size, :size] = True
    return region


def test_every_metric_has_a_value_and_a_direction() -> None:
    status, values = Protocol().score("WT", cube(3), cube(3), SPACING)
    assert status == "measured"
    assert set(values) == {name for name, metric in METRICS.items() if metric.rests_on == "labels"}
    assert values == {"dice": 1, "hausdorff95_mm": 0, "surface_dice": 1, "volume_ml": 0.054, "volume_error_ml": 0}


def test_one_empty_is_the_worst_whichever_it_is() -> None:
    for pair in ((cube(2), cube(0)), (cube(0), cube(2))):
        status, values = Protocol().score("WT", *pair, SPACING)
        assert status == "one_empty"
        assert (values["dice"], values["surface_dice"], values["hausdorff95_mm"]) == (0, 0, 373.13)
        assert values["volume_error_ml"] == pytest.approx(0.016)
    assert Protocol(penalty_mm=math.inf).score("WT", cube(2), cube(0), SPACING)[1]["hausdorff95_mm"] == math.inf


def test_both_empty_is_one_rule_for_all_metrics() -> None:
    names = ("dice", "hausdorff95_mm", "surface_dice")
    for dice in ("brats", "smooth1"):
        status, values = Protocol(dice=dice).score("ET", cube(0), cube(0), SPACING)
        assert status == "both_empty"
        assert [values[name] for name in names] == [1, 0, 1]
        _, values = Protocol(dice=dice, both_empty="undefined").score("ET", cube(0), cube(0), SPACING)
        assert all(math.isnan(values[name]) for name in names)


def test_smoothed_dice_of_had_nets_validation() -> None:
    protocol = Protocol(dice="smooth1")
    three = np.zeros((8, 8, 8), bool)
    three[0, 0, :3] = True
    assert protocol.score("ET", three, cube(0), SPACING)[1]["dice"] == 0.25
    assert protocol.score("ET", cube(1), three, SPACING)[1]["dice"] == pytest.approx(3 / 5)


def test_failed_is_never_better_than_anything_measured() -> None:
    """Not even where the reference is empty and an empty prediction would have been right."""
    protocol = Protocol()
    for reference in (cube(0), cube(3)):
        failed = protocol.score_failed(reference, SPACING)
        for prediction in (cube(0), cube(1), cube(8)):
            _, values = protocol.score("ET", prediction, reference, SPACING)
            for name in ("dice", "surface_dice"):
                assert failed[name] <= values[name]
            assert failed["hausdorff95_mm"] >= values["hausdorff95_mm"]


def test_small_enhancing_tumour_counts_as_none_only_there() -> None:
    protocol = Protocol(et_minimum_voxels=9)
    assert protocol.score("ET", cube(2), cube(0), SPACING)[0] == "both_empty"
    assert protocol.score("ET", cube(3), cube(0), SPACING)[0] == "one_empty"
    assert protocol.score("TC", cube(2), cube(0), SPACING)[0] == "one_empty"


def test_pooled_hd95_is_another_number() -> None:
    line, first = np.zeros((1, 1, 20), bool), np.zeros((1, 1, 20), bool)
    line[:], first[..., 0] = True, True
    values = [
        Protocol(hausdorff95=which).score("WT", line, first, (1, 1, 1))[1]["hausdorff95_mm"]
        for which in ("directed_max", "pooled")
    ]
    assert values == pytest.approx([18.05, 18.0])


def test_json_round_trip_and_digest() -> None:
    protocol = Protocol(both_empty="undefined", penalty_mm=math.inf, tolerance_mm=2)
    assert Protocol.from_json(protocol.to_json()) == protocol
    assert protocol.to_json()["penalty_mm"] == "inf"
    assert protocol.digest == replace(protocol).digest != Protocol().digest
    assert protocol.differences(Protocol(penalty_mm=math.inf, tolerance_mm=2)) == "both_empty undefined and perfect"
    with pytest.raises(ScoreError, match="foreign protocol, differs in: tolerance_mm"):
        Protocol.from_json({name: value for name, value in protocol.to_json().items() if name != "tolerance_mm"})


def test_describe_tells_every_rule() -> None:
    text = "\n".join(Protocol(penalty_mm=math.inf, tolerance_mm=2, et_minimum_voxels=500, dice="smooth1").describe())
    for words in ("(2I + 1) / (P + G + 1)", "within 2 mm", "HD95 inf mm", "below 500 voxels", "1 / (n + 1) for n voxels"):
        assert words in text


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ({"both_empty": "nan"}, "both_empty is 'nan' (choose perfect or undefined)"),
        ({"hausdorff95": "max"}, "hausdorff95 is 'max' (choose directed_max or pooled)"),
        ({"dice": "soft"}, "dice is 'soft' (choose brats or smooth1)"),
        ({"penalty_mm": 0.0}, "penalty_mm is 0.0 (give millimetres above 0, or inf)"),
        ({"penalty_mm": math.nan}, "penalty_mm is nan"),
        ({"tolerance_mm": -1.0}, "tolerance_mm is -1.0 (give millimetres, 0 or more)"),
        ({"tolerance_mm": math.inf}, "tolerance_mm is inf"),
        ({"et_minimum_voxels": -1}, "et_minimum_voxels is -1 (give 0 or more)"),
    ],
)
def test_rules_that_are_none_are_refused(rule: dict[str, object], words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Protocol(**rule)  # type: ignore[arg-type]
    assert words in str(caught.value)
