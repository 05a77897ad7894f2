"""From a patient's image to a synthetic one of another modality, on the grid the image came on.

One image of the patient is read. A model of several sources takes the one that is asked for, else the first in its own order
that the patient has. It is prepared alone, so mask and crop rest on it and nothing else; a real image of the target may lie
beside it and is never opened.

The image is prepared as in training, translated (slice by slice by a network of slices), brought back to the grid of its file
and into the scale of the target's normalisation: what 0 and 1 of a normalised image stand for. Where the target was normalised
by a window, such as -1000 to 500 HU, values are in the window's units again; else they stay between 0 and 1. What the network
did not see, outside crop and mask, is the scale's lowest value, as it is in a real image that was prepared alike.

Arithmetic is always single precision: the 8 bits of bf16 would show as steps of up to 6 HU.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from modistill.data.case import Case, not_evidence
from modistill.data.cohort import CaseFiles
from modistill.data.header import SYNTHETIC
from modistill.data.normalisation import scale_of
from modistill.data.volume import Volume
from modistill.errors import CaseError, ModelError, ModistillError, RecipeError
from modistill.hardware import pick_device, tune_allocator
from modistill.inference.model import Model, smallest_size
from modistill.inference.predictor import reduced
from modistill.inference.sampling import seeded
from modistill.inference.windows import OnWindow, blend_windows, by_slices, within_memory
from modistill.methods.base import TranslationMethod

__all__ = ["NOT_ENHANCEMENT", "NOT_EVIDENCE", "Translation", "Translator", "warning"]

NOT_EVIDENCE = "A synthetic image is not evidence: it can show a lesion that is not there, and hide one that is."
NOT_ENHANCEMENT = "A synthetic T1ce is not evidence of enhancement."


def warning(*targets: str) -> str:
    """What a reader of synthetic images of these modalities must be told.

    Example:
        >>> warning("t2") == NOT_EVIDENCE, warning("t1ce") == f"{NOT_EVIDENCE} {NOT_ENHANCEMENT}"
        (True, True)
    """
    return f"{NOT_EVIDENCE} {NOT_ENHANCEMENT}" if "t1ce" in targets else NOT_EVIDENCE


@dataclass(frozen=True)
class Translation:
    """A synthetic image.

    Attributes:
        case: id of the case.
        image: (D, H, W) float32 on the case's own grid, from `scale[0]` to `scale[1]`.
        target: modality it imitates.
        scale: lowest and highest value it can have: what 0 and 1 of the target's normalisation stand for.
        box: (start, stop) along each axis of what the network saw.
        available: the modality it was made from.
        used_model: that made it.
        notices: what a user should know about the case, one line each.
        synthetic_inputs: the same modality, if its image was itself made by a network.
    """

    case: str
    image: Volume
    target: str
    scale: tuple[float, float]
    box: tuple[tuple[int, int], ...]
    available: tuple[str, ...]
    used_model: Model
    notices: tuple[str, ...] = ()
    synthetic_inputs: tuple[str, ...] = ()

    @property
    def read(self) -> str:
        """What it was made from, in words."""
        return "+".join(f"synthetic {name}" if name in self.synthetic_inputs else name for name in self.available)

    @property
    def description(self) -> str:
        """What the header of its file says, which has room for 79 characters."""
        made = f"{self.target} from {self.read}"
        return f"{SYNTHETIC} {made}, not evidence; modistill {self.used_model.name} {self.used_model.digest[:8]}"

    def record(self) -> dict[str, Any]:
        """What a reader of the image must know, with all it takes to bring a real image to the same scale."""
        model = self.used_model
        low, high = self.scale
        return {
            "case": self.case,
            "synthetic": True,
            "warning": warning(self.target, *self.synthetic_inputs),
            "run": model.name,
            "available": list(self.available),
            "synthetic_inputs": list(self.synthetic_inputs),
            "target": self.target,
            "scale": {"lowest": low, "highest": high, "unit": _unit(self.target, self.scale)},
            "preprocessing": model.targets[self.target].to_json(),
            "dims": model.method.dims,
            "within": model.preprocessing.within,
            "box": [list(edge) for edge in self.box],
            "notices": list(self.notices),
            "model": {
                "source": None if model.source is None else str(model.source.resolve()),
                "method": type(model.method).__name__,
                "digest": model.digest,
            },
        }


class Translator:
    """Translates whole cases.

    Args:
        model: a trained translation.
        target: modality to make; None if the model makes one only.
        source: modality to make it from, or several, of which the first is taken that a case has; None for all that the model
            reads in its own order.
        device: "auto", "cpu", "cuda", "cuda:1" or "mps".
        overlap: of neighbouring windows; None as the model says.
        batch: windows in one pass.
        seed: of what a method draws.
        with_labels: show it the tumour of the reference labels, as a teacher saw it in training; for a bound only.

    Attributes:
        target: modality of what it makes.
        sources: the modalities it makes that from, any of them, the first first.
        scale: lowest and highest value of what it makes.

    Raises:
        ModelError: the model segments, or does not say on which scale it translates.
        RecipeError: a target or source that the model does not know, a target that is its own source, none of several targets
            chosen, or no such device.
    """

    def __init__(
        self,
        model: Model,
        target: str | None = None,
        source: str | Sequence[str] | None = None,
        *,
        device: str = "auto",
        overlap: float | None = None,
        batch: int = 1,
        seed: int = 0,
        with_labels: bool = False,
    ) -> None:
        method = model.method
        if not isinstance(method, TranslationMethod):
            raise ModelError(f"{model.name} segments and translates nothing", file=model.source, remedy="modistill predict")
        if with_labels and not method.reads_tumour:
            raise RecipeError(f"{model.name} reads no labels", remedy="leave out --with-labels; it is for a teacher who does")
        self.model, self.method, self.target, self.with_labels = model, method, _target(model, target), with_labels
        self.sources = _sources(model, self.target, source)
        self.scale = _scale(model, self.target)
        self.device = pick_device(device)
        self.overlap = model.overlap if overlap is None else overlap
        self.batch, self.seed = batch, seed
        tune_allocator()
        method.get_submodule(method.deployed).eval().to(self.device)

    def require_source(self, available: Collection[str]) -> tuple[str, ...]:
        """What it reads of a case with these modalities: one of its sources.

        Raises:
            CaseError: none of them is there.
        """
        if there := self._there(available):
            return there[:1]
        needed = f"{'one of ' if len(self.sources) > 1 else ''}{', '.join(self.sources)}"
        raise CaseError(
            f"has {', '.join(available) or 'nothing'}, lacks {', '.join(self.sources)}",
            remedy=f"{self.model.name} needs {needed} to make {self.target}",
        )

    def _there(self, available: Collection[str]) -> tuple[str, ...]:
        return tuple(name for name in self.sources if name in available)

    def settings(self) -> dict[str, Any]:
        """Everything but the images that decides what it makes, as plain values."""
        return {
            "digest": self.model.digest,  # which covers the card: preprocessing, and that of the target
            "target": self.target,
            "window": None if self.model.window is None else list(self.model.window),
            "overlap": self.overlap,
            "seed": self.seed,
            **({"with_labels": True} if self.with_labels else {}),
        }

    def translate(self, case: Case | CaseFiles, *, on_window: OnWindow | None = None) -> Translation:
        """Translate one case.

        Args:
            case: a case in memory, or its files; only the source is read.
            on_window: told how many windows are done.

        Raises:
            CaseError: no source is there, or it says nothing.
            FileError: it cannot be read.
            ModelError: the network's output is not finite, or the volume does not fit into memory.
        """
        try:
            used = self.require_source(case.modalities)
            return self._translate(self._read(case, used), used, self._chosen(case.modalities), on_window)
        except ModistillError as error:
            raise error.at(case.id) from error.__cause__

    def _read(self, case: Case | CaseFiles, used: tuple[str, ...]) -> Case:
        """The source, and the reference labels if they are to be seen."""
        if not self.with_labels:
            return reduced(case, used)
        if case.labels is None:
            raise CaseError("has no reference labels, which are to be seen", remedy="leave out --with-labels")
        return case.read(used) if isinstance(case, CaseFiles) else case

    def _chosen(self, available: Collection[str]) -> tuple[str, ...]:
        """A notice of what was translated, where that was a choice."""
        first, *others = self._there(available)
        return (f"made from {first}; {', '.join(others)} could be translated, too",) if others else ()

    def _translate(self, case: Case, used: tuple[str, ...], chosen: tuple[str, ...], on_window: OnWindow | None) -> Translation:
        preprocessing = self.model.preprocessing.alone(*used)
        prepared = preprocessing.apply(case)
        images = prepared.images
        if self.with_labels and prepared.labels is not None:
            images = np.concatenate([images, (prepared.labels > 0)[None].astype(np.float32)])
            chosen += ("made with the reference labels: a bound, nothing a patient has",)
        inside = np.where(prepared.mask, self._normalised(images, on_window), np.float32(0))
        whole = preprocessing.restore(inside, prepared.geometry)[0]
        low, high = self.scale
        image = (np.float32(low) + np.float32(high - low) * whole).astype(np.float32)
        synthetic = tuple(name for name in used if name in case.synthetic)
        notices = (*([not_evidence(synthetic)] if synthetic else []), *chosen, *prepared.notices)
        if prepared.geometry.is_cut:
            notices += (f"larger than the size the model reads: what lies outside is {low:g}",)
        box = prepared.geometry.box
        made = replace(case.grid, voxels=image, synthetic=True)
        return Translation(case.id, made, self.target, self.scale, box, used, self.model, notices, synthetic)

    def _normalised(self, images: NDArray[np.float32], on_window: OnWindow | None) -> NDArray[np.float32]:
        """(1, d, h, w) of the target in [0, 1] from the prepared source (1, d, h, w), or from it and the tumour."""
        translate = partial(self.method.translate, target=self.target)
        with (
            within_memory(self.model.window or images.shape[1:], self.device),
            seeded(self.seed, self.device),
            torch.inference_mode(),
        ):
            made = blend_windows(
                translate if self.method.dims == 3 else by_slices(translate),
                torch.from_numpy(images).to(self.device),
                window=self.model.window,
                overlap=self.overlap,
                batch=self.batch,
                minimum=smallest_size(images.shape[1:], self.method),
                on_window=on_window,
            )
            if not torch.isfinite(made).all():
                raise ModelError("the network's output is not finite", remedy="look at the image")
            return np.asarray(made.clamp(0, 1).cpu().numpy())  # a network that ends in no tanh may overshoot


def _target(model: Model, target: str | None) -> str:
    """The target that is meant.

    Raises:
        RecipeError: the model does not make it, or makes several and none was chosen.
    """
    made = model.method.targets
    if target is None and len(made) > 1:
        raise RecipeError(f"{model.name} makes {', '.join(made)}: which of them is not said", remedy=f"as --to {made[0]}")
    if target is not None and target not in made:
        raise RecipeError(f"{model.name} makes no {target}", remedy=f"it makes {', '.join(made)}")
    return target or made[0]


def _sources(model: Model, target: str, source: str | Sequence[str] | None) -> tuple[str, ...]:
    """The sources that are meant, without the target.

    Raises:
        RecipeError: the model does not read what was chosen, or that is the target alone.
    """
    sources = model.sources(target)
    if source is None:
        return sources
    chosen = (source,) if isinstance(source, str) else tuple(source)
    if foreign := [name for name in chosen if name not in (*sources, target)]:
        remedy = f"it makes {target} from {', '.join(sources)}"
        raise RecipeError(f"{model.name} does not read {', '.join(foreign)}", remedy=remedy)
    if others := tuple(name for name in chosen if name != target):
        return others
    raise RecipeError(f"{target} is source and target", remedy=f"{model.name} makes it from {', '.join(sources)}")


def _scale(model: Model, target: str) -> tuple[float, float]:
    if target not in model.targets:
        raise ModelError(
            f"{model.name} does not say how {target} was normalised",
            file=model.source,
            remedy="train it again with this version",
        )
    try:
        return scale_of(model.targets[target].normalisation_of(target))
    except RecipeError as error:
        raise ModelError(f"{target} is on no scale: {error.reason}", file=model.source, remedy=error.remedy) from error


def _unit(target: str, scale: tuple[float, float]) -> str:
    """Of a CT in its window the Hounsfield unit; nobody knows of a unit else."""
    return "HU" if target == "ct" and scale != (0.0, 1.0) else ""
