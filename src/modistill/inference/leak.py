"""The leak test: what stands where a modality is missing must not change one bit of the answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from modistill.data.case import Case
from modistill.errors import CaseError, ModelError
from modistill.inference.model import Model
from modistill.inference.predictor import Predictor
from modistill.subsets import all_subsets

__all__ = ["Leak", "check_leak"]

_GARBAGE = {"noise": 1.0, "values of a million": 1e6, "NaN": float("nan")}


@dataclass(frozen=True)
class Leak:
    """What came of one subset.

    Attributes:
        subset: the modalities that counted.
        garbage: what was put in place of the others, and how it got there.
        largest: difference of a probability; 0 where every bit is the same, infinite where the answer is no longer finite.
    """

    subset: tuple[str, ...]
    garbage: str
    largest: float


def check_leak(model: Model, case: Case, *, device: str = "auto") -> Iterator[Leak]:
    """Predict a case from every subset the model serves, with garbage in place of what is missing.

    The garbage comes in both ways there are: as images of the case that are not to be used, and (for a model of any subset) as
    channels of the network that are marked absent.

    Args:
        model: whose answers are compared.
        case: with every modality that the model reads.
        device: as for `Predictor`.

    Yields:
        One line for each subset and kind of garbage.

    Raises:
        CaseError: the case lacks something the model reads, or there is nothing that could leak.
    """
    if lacking := [name for name in model.reads if name not in case.modalities]:
        raise CaseError(f"lacks {', '.join(lacking)}", case=case.id, remedy="give a case that has all the model reads")
    subsets = all_subsets(model.reads) if model.any_subset else (model.reads,)
    if not model.any_subset and set(case.modalities) == set(model.reads):
        raise CaseError("has nothing that the model does not read", case=case.id, remedy="give one with privileged sequences")
    rng = np.random.default_rng(0)
    for subset in subsets:
        missing = [name for name in case.modalities if name not in subset]
        predictor = Predictor([model], device=device, precision="32", only=subset)
        without = Case(case.id, {name: case.images[name] for name in subset}, convention=case.convention)
        expected = predictor.predict(without).probabilities
        prepared = model.preprocessing.for_subset(subset).apply(without) if model.any_subset else None
        clean = None if prepared is None else predictor.maps([model], subset, prepared.images)
        for name, scale in _GARBAGE.items() if missing else ():
            noise = {m: case.images[m].with_voxels(_noise(rng, case.images[m].shape, scale)) for m in missing}
            spoiled = Case(case.id, {**case.images, **noise}, convention=case.convention)
            yield Leak(subset, f"{name} as an image", _largest(expected, _probabilities, predictor, spoiled))
            if prepared is not None and clean is not None:
                images = prepared.images.copy()
                for channel in np.flatnonzero([m not in subset for m in model.reads]):
                    images[channel] = _noise(rng, images[channel].shape, scale)
                yield Leak(subset, f"{name} in the channel", _largest(clean, predictor.maps, [model], subset, images))


def _noise(rng: np.random.Generator, shape: tuple[int, ...], scale: float) -> np.ndarray:
    return (scale * rng.standard_normal(shape)).astype(np.float32)


def _probabilities(predictor: Predictor, case: Case) -> np.ndarray:
    return predictor.predict(case).probabilities


def _largest(expected: np.ndarray, answer: Callable[..., np.ndarray], *question: Any) -> float:
    """The largest difference; infinite where garbage drives the answer out of the finite numbers, which is refused."""
    try:
        return float(np.abs(expected - answer(*question)).max())
    except ModelError:
        return float("inf")
