"""From a patient to a label map: the model that fits what was acquired, on the grid the images came on.

A `Predictor` holds several models and gives each case to the one that makes most of its modalities. A modality that the chosen
model does not read is never opened: it may be absent, damaged or of another grid, the answer is the same to the bit.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from modistill.data.case import Case
from modistill.data.cohort import CaseFiles
from modistill.data.naming import LabelConvention, conventions
from modistill.data.preprocessing import Preprocessing
from modistill.data.volume import Volume
from modistill.errors import CaseError, LabelError, ModelError, ModistillError, RecipeError
from modistill.hardware import pick_device, pick_precision, tune_allocator
from modistill.inference.windows import OnWindow, predict_windows
from modistill.methods.base import Method

__all__ = ["Model", "Prediction", "Predictor", "smallest_size"]

_EDGE, _LONGEST_EDGE = 16, 32  # voxels: the networks halve a volume four times, and must be left with two voxels at least


@dataclass(frozen=True, eq=False)
class Model:
    """A trained method with what it takes to use it on a patient.

    Attributes:
        name: of the run.
        method: holds weights for the network that segments, and need not hold any others.
        preprocessing: at test time; its modalities are the channels of `method.segment`.
        convention: what the classes are; class index 1, 2, 3 ... in its order.
        window: voxels (D, H, W) seen at once; None for whole cases.
        source: the file it was loaded from.
        digest: SHA-256 of its weights.
        overlap: of neighbouring windows.
        mirror: axes (0, 1, 2) over which its predictions are mirrored and averaged.

    Raises:
        ModelError: method and preprocessing do not speak of the same channels.
    """

    name: str
    method: Method
    preprocessing: Preprocessing
    convention: LabelConvention
    window: tuple[int, int, int] | None = None
    source: Path | None = None
    digest: str = ""
    overlap: float = 0.5
    mirror: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.preprocessing.modalities != self.needs:
            prepared, read = (", ".join(names) for names in (self.preprocessing.modalities, self.needs))
            raise ModelError(f"{self.name} reads {read}, its preprocessing makes {prepared}", file=self.source)

    @property
    def needs(self) -> tuple[str, ...]:
        """The modalities a patient must have, in channel order."""
        return self.method.available


@dataclass(frozen=True)
class Prediction:
    """What was found in one case.

    Attributes:
        case: id of the case.
        labels: (D, H, W) uint8 on the case's own grid, in the numbers of `convention`.
        convention: that of the case where its layout tells, else the model's.
        probabilities: (C, D, H, W) float32 on the same grid; class 0 is the background.
        used_model: the model that was chosen.
        reason: why that one.
        notices: what a user should know about the case, one line each.
    """

    case: str
    labels: Volume
    convention: LabelConvention
    probabilities: NDArray[np.float32]
    used_model: Model
    reason: str
    notices: tuple[str, ...] = ()

    def region_probabilities(self) -> dict[str, Volume]:
        """Region -> probability (D, H, W) that a voxel belongs to it: the sum over its classes."""
        regions = self.used_model.convention.class_regions
        return {
            name: self.labels.with_voxels(self.probabilities[sorted(classes)].sum(axis=0).clip(0, 1))
            for name, classes in regions.items()
        }


class Predictor:
    """Segments whole cases with the best of several models.

    Args:
        models: in order of preference where two make equally much of a case.
        device: "auto", "cpu", "cuda", "cuda:1" or "mps".
        precision: of the network's arithmetic; "auto" is bf16-mixed where the hardware multiplies bf16, else 32.
        mirror: axes (0, 1, 2) to mirror and average over; None as each model says.
        overlap: of neighbouring windows; None as each model says.
        labels: name of the label convention to answer in; None for that of the case.
        batch: windows in one pass.

    Raises:
        RecipeError: no model, no such device, or two models of one name.
        LabelError: no such label convention, or a model has classes that it lacks.
    """

    def __init__(
        self,
        models: Sequence[Model],
        *,
        device: str = "auto",
        precision: Literal["auto", "32", "bf16-mixed"] = "auto",
        mirror: Sequence[int] | None = None,
        overlap: float | None = None,
        labels: str | None = None,
        batch: int = 1,
    ) -> None:
        names = [model.name for model in models]
        if not names or len(set(names)) < len(names):
            raise RecipeError(f"models need different names, and at least one; got {', '.join(names) or 'none'}")
        self.models = tuple(models)
        self.device = pick_device(device)
        self.precision = pick_precision(self.device) if precision == "auto" else precision
        self.mirror, self.overlap, self.batch = mirror, overlap, batch
        self.labels = None if labels is None else _convention_named(labels, self.models)
        tune_allocator()
        for model in self.models:
            network = model.method.get_submodule(model.method.deployed).eval().to(self.device)
            if self.device.type == "cuda":
                network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    def choose(self, available: Collection[str], *, case: str | None = None) -> Model:
        """The model that reads most of what is available; of equals, the one given first.

        Raises:
            CaseError: every model needs something that is not there; the message lists what the models can serve.
        """
        fitting = [model for model in self.models if set(model.needs) <= set(available)]
        if fitting:
            return max(fitting, key=lambda model: len(model.needs))  # max keeps the first of equals
        lacking = {name for model in self.models for name in _lacking(model, available)}
        raise CaseError(
            f"has {', '.join(available) or 'nothing'}, lacks {', '.join(sorted(lacking))}: no model can serve that",
            case=case,
            remedy="; ".join(f"{model.name} needs {'+'.join(model.needs)}" for model in self.models),
        )

    def why(self, chosen: Model, available: Collection[str]) -> str:
        """In words, why a case with these modalities is given to this model."""
        parts = [f"{chosen.name} reads {', '.join(chosen.needs)}"]
        for other in self.models:
            if lacking := _lacking(other, available):
                parts.append(f"{other.name} would need {', '.join(lacking)}, which the case lacks")
            elif other is not chosen:
                equal = len(other.needs) == len(chosen.needs)
                parts.append(f"{other.name} fits too, but {'was given later' if equal else 'reads less of it'}")
        return "; ".join(parts)

    def convention(self, case: Case | CaseFiles, model: Model) -> LabelConvention:
        """The convention a case is answered in: the one asked for, else its own if that has the classes, else the model's."""
        if self.labels is not None:
            return self.labels
        own = None if case.convention is None else conventions.get(case.convention)
        return own if own is not None and not _classes_lacking(model, own) else model.convention

    def settings(self, model: Model) -> dict[str, Any]:
        """Everything but the images that decides what this predictor answers with a model, as plain values."""
        return {
            "digest": model.digest,
            "window": None if model.window is None else list(model.window),
            "overlap": self._overlap(model),
            "mirror": list(self._mirror(model)),
            "precision": self.precision,
            "preprocessing": model.preprocessing.to_json(),
        }

    def predict(self, case: Case | CaseFiles, *, on_window: OnWindow | None = None) -> Prediction:
        """Segment one case.

        Args:
            case: a case in memory, or its files; only the modalities of the chosen model are read.
            on_window: told how many windows are done.

        Raises:
            CaseError: no model fits the case, or an image says nothing.
            FileError, GeometryError: an image that is needed cannot be used.
            ModelError: the network's output is not finite, or the volume does not fit into memory.
        """
        try:
            model = self.choose(case.modalities)
            reason = self.why(model, case.modalities)
            case = _reduced(case, model.needs)
            return self._predict(case, model, reason, on_window)
        except ModistillError as error:
            raise error.at(case.id) from error.__cause__

    def _predict(self, case: Case, model: Model, reason: str, on_window: OnWindow | None) -> Prediction:
        prepared = model.preprocessing.apply(case)
        maps = self._probabilities(model, prepared.images, on_window)
        classes = len(model.convention.values) + 1
        if len(maps) != classes:
            raise ModelError(f"gives {len(maps)} classes, its convention has {classes} with background", file=model.source)
        background = np.eye(classes)[0]  # where the crop did not look
        restored = model.preprocessing.restore(maps, prepared.geometry, outside=background)
        convention = self.convention(case, model)
        numbers = np.array([0, *(convention.values[name] for name in model.convention.values)], dtype=np.uint8)
        labels = case.grid.with_voxels(numbers[restored.argmax(axis=0)])
        notices = prepared.notices
        if prepared.geometry.is_cut:
            notices += ("larger than the size the model reads: what lies outside is called background",)
        size = prepared.geometry.prepared_shape
        if any(n < least for n, least in zip(size, smallest_size(size), strict=True)):
            notices += (f"only {'x'.join(map(str, size))} voxels: padded with zeros for the network",)
        return Prediction(case.id, labels, convention, restored, model, reason, notices)

    def _probabilities(self, model: Model, images: NDArray[np.float32], on_window: OnWindow | None) -> NDArray[np.float32]:
        """(M, D, H, W) prepared images -> (C, D, H, W) probabilities."""
        try:
            with self._arithmetic():
                maps = predict_windows(
                    model.method.segment,
                    torch.from_numpy(images),
                    window=model.window,
                    overlap=self._overlap(model),
                    mirror=self._mirror(model),
                    batch=self.batch,
                    minimum=smallest_size(images.shape[1:]),
                    device=self.device,
                    on_window=on_window,
                )
            return np.asarray(maps.cpu().numpy())
        except (RuntimeError, MemoryError) as error:
            if isinstance(error, RuntimeError) and "memory" not in str(error):
                raise
            size = "x".join(map(str, model.window or images.shape[1:]))
            raise ModelError(
                f"{size} voxels do not fit into the memory of {self.device}", remedy="try --device cpu, or a smaller window"
            ) from error

    def _arithmetic(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16) if self.precision == "bf16-mixed" else nullcontext()

    def _overlap(self, model: Model) -> float:
        return model.overlap if self.overlap is None else self.overlap

    def _mirror(self, model: Model) -> tuple[int, ...]:
        return tuple(model.mirror if self.mirror is None else self.mirror)


def _reduced(case: Case | CaseFiles, modalities: tuple[str, ...]) -> Case:
    """The case with these modalities alone; of files, no others are opened."""
    if isinstance(case, CaseFiles):
        return case.read(modalities, with_labels=False)
    return Case(case.id, {name: case.images[name] for name in modalities}, convention=case.convention)


def smallest_size(size: Sequence[int]) -> tuple[int, int, int]:
    """The size to which a volume must be padded, at least, for a network to read it."""
    longest = max(range(3), key=lambda axis: size[axis])
    d, h, w = (_LONGEST_EDGE if axis == longest else _EDGE for axis in range(3))
    return d, h, w


def _lacking(model: Model, available: Collection[str]) -> list[str]:
    return [name for name in model.needs if name not in available]


def _classes_lacking(model: Model, convention: LabelConvention) -> list[str]:
    return [name for name in model.convention.values if name not in convention.values]


def _convention_named(name: str, models: Sequence[Model]) -> LabelConvention:
    if name not in conventions:
        raise LabelError(f"unknown label convention {name!r}", remedy=f"known: {', '.join(conventions)}")
    for model in models:
        if lacking := _classes_lacking(model, conventions[name]):
            raise LabelError(f"{name} has no label for {', '.join(lacking)}, which {model.name} finds")
    return conventions[name]
