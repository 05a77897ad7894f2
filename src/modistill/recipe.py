"""Recipes: one YAML file an experiment, checked strictly, with the constructors themselves as the schema of what they take."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from modistill.arguments import checked, nearest_name
from modistill.data.normalisation import NAMES, Normalisations
from modistill.errors import RecipeError
from modistill.files import parse_yaml, write_text

__all__ = [
    "Data",
    "Inference",
    "MethodChoice",
    "Recipe",
    "Sampling",
    "build",
    "check",
    "load_recipe",
    "recipe_names",
    "save_recipe",
]

Schema = TypeVar("Schema", bound=BaseModel)
Built = TypeVar("Built")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Data(_Section):
    """What is prepared. Two recipes with equal `data` sections share one prepared cohort.

    Attributes:
        modalities: all of the training cohort, in channel order.
        available: those that exist at test time; mask, crop and their own intensities come from these alone. None: all.
        normalisation: of all modalities, or modality -> its own: "zscore", "hadnet", "percentiles", "landmarks", or two numbers
            that become 0 and 1 (`modistill.data.normalisation`).
        spacing_mm: voxel size to resample to; None keeps every case's own.
        size: pad every case to this many voxels (D, H, W); None keeps the crop.
        within: "lungs" crops cases that have `ct` to the axial slices that show lung.
        n4: modalities whose bias field is taken out first, such as [mr].
    """

    modalities: tuple[str, ...] = Field(min_length=1)
    available: tuple[str, ...] | None = None
    normalisation: str | tuple[float, float] | dict[str, str | tuple[float, float]] = "zscore"
    spacing_mm: tuple[float, float, float] | None = None
    size: tuple[int, int, int] | None = None
    within: Literal["lungs"] | None = None
    n4: tuple[str, ...] = ()

    @field_validator("normalisation")
    @classmethod
    def _named(cls, value: Normalisations) -> Normalisations:
        for how in value.values() if isinstance(value, Mapping) else (value,):
            if isinstance(how, str) and how not in NAMES:
                raise ValueError(f"known: {', '.join(NAMES)}, or two numbers")
        return value

    @model_validator(mode="after")
    def _known(self) -> Data:
        foreign = [name for name in self.available or () if name not in self.modalities]
        if foreign:
            raise ValueError(f"available holds {', '.join(foreign)}, which modalities lack")
        if foreign := [name for name in self.n4 if name not in self.modalities]:
            raise ValueError(f"n4 holds {', '.join(foreign)}, which modalities lack")
        if self.within == "lungs" and "ct" not in (self.available or self.modalities):
            raise ValueError("within lungs needs ct among the available modalities")
        return self


class Sampling(_Section):
    """How batches are drawn from the prepared cases.

    Attributes:
        batch_size: samples a step.
        patch_size: voxels (D, H, W) of a sample, (D, H) for methods of slices; None for whole cases.
        samples_per_case: patches drawn from each case in an epoch.
        steps_per_epoch: steps of an epoch, whatever the number of cases, each sample of any case, drawn with replacement;
            nnU-Net's are 250. None: what `samples_per_case` gives.
        foreground_fraction: share of the patches that hold a drawn foreground voxel.
        foreground: "probability" for each patch, the voxel anywhere in it, or "share": the last patches of every batch, the
            voxel in their middle, as in nnU-Net (the second of two for 0.33).
        augmentation: "none", "hadnet" (flip and small affine, as in its pre-training), "nnunet" (rotation, scaling, mirrors and
            intensities, as in its second version), "spatial" (flip, rotation, scaling and deformation in the axial plane),
            "standard" (flip and intensities) or "upright" ("spatial" without the flip, for labels that know left from right).
        apart: each training case shows one domain of an unpaired method only, whatever else it has.
        workers: threads that read ahead.
    """

    batch_size: int = Field(default=1, ge=1)
    patch_size: tuple[int, int, int] | tuple[int, int] | None = None
    samples_per_case: int = Field(default=1, ge=1)
    steps_per_epoch: int | None = Field(default=None, ge=1)
    foreground_fraction: float = Field(default=0.33, ge=0, le=1)
    foreground: Literal["probability", "share"] = "probability"
    augmentation: Literal["none", "hadnet", "nnunet", "spatial", "standard", "upright"] = "none"
    apart: bool = False
    workers: int = Field(default=2, ge=0)

    @model_validator(mode="after")
    def _one_length(self) -> Sampling:
        if self.steps_per_epoch is not None and self.samples_per_case != 1:
            raise ValueError("steps_per_epoch and samples_per_case both say how long an epoch is; leave out one")
        return self


class Inference(_Section):
    """How whole cases are segmented, in validation and by `modistill predict`.

    Attributes:
        window: voxels (D, H, W) of a sliding window; None for the whole case in one pass.
        overlap: of neighbouring windows.
        mirror: axes (0, 1, 2) over which predictions are mirrored and averaged.
    """

    window: tuple[int, int, int] | None = None
    overlap: float = Field(default=0.5, ge=0, lt=1)
    mirror: tuple[Literal[0, 1, 2], ...] = ()


class MethodChoice(BaseModel):
    """Name of a method and arguments of its constructor."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str

    @property
    def arguments(self) -> dict[str, Any]:
        """Everything but the name."""
        return dict(self.model_extra or {})


class Recipe(_Section):
    """One experiment.

    Attributes:
        about: a line for people.
        start_from: path of a network of the method -> run folder whose deployed weights it starts with.
        controls: run folder beside this run's -> recipe; what `train --with-controls` trains too, in an order in which every
            run finds those it starts from.
        training: see `modistill.training.TrainingSettings`.
    """

    about: str = ""
    data: Data
    method: MethodChoice
    start_from: dict[str, str] = {}
    controls: dict[str, str] = {}
    sampling: Sampling = Sampling()
    training: dict[str, Any] = {}
    inference: Inference = Inference()


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        path: a YAML file, or the name of a recipe that comes with the package ("demo/had_net").
        overrides: "section.key=value" each, the value in YAML.

    Raises:
        RecipeError: the file or a key is wrong; the message names it and the nearest known one.
    """
    place = _find(Path(path))
    try:
        content = parse_yaml(place.read_text())
    except (OSError, ValueError) as error:
        raise RecipeError(f"cannot be read: {' '.join(str(error).split())[:200]}", file=place) from error
    if not isinstance(content, dict):
        raise RecipeError("holds no sections", file=place, remedy="see the recipes that come with the package")
    for override in overrides:
        _override(content, override)
    return check(Recipe, content, place)


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Write the recipe with every default spelled out."""
    write_text(path, yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, default_flow_style=None))


def check(schema: type[Schema], content: Any, place: Path | str) -> Schema:
    """Content as an instance of a schema, or a `RecipeError` that names the first wrong key."""
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        keys = [str(key) for key in first["loc"]]
        if first["type"] == "extra_forbidden":
            raise RecipeError(
                f"unknown key {'.'.join(keys)}", file=place, remedy=nearest_name(keys[-1], _keys(schema, keys))
            ) from error
        reason = first["msg"].removeprefix("Value error, ")
        found = "" if first["type"] == "missing" else f", found {first['input']!r}"[:80]
        raise RecipeError(f"{'.'.join(keys) or 'recipe'}: {reason}{found}", file=place) from error


def build(
    constructor: Callable[..., Built], arguments: Mapping[str, Any], section: str, *, call: Callable[..., Any] | None = None
) -> Built:
    """Call a constructor with arguments from a recipe, each checked against its annotation.

    Args:
        constructor: whose signature the arguments must fit.
        arguments: plain values.
        section: of the recipe, for messages.
        call: what is called with them in its place.

    Raises:
        RecipeError: an argument is unknown, missing, of another type, or refused by the constructor.
    """
    arguments = checked(constructor, arguments, section)
    try:
        built: Built = (call or constructor)(**arguments)
        return built
    except (TypeError, ValueError) as error:
        raise RecipeError(f"{section}: {error}") from error


def recipe_names() -> tuple[str, ...]:
    """Names of the recipes that come with the package."""
    root = _shipped()
    names = (str(path.relative_to(root).with_suffix("")) for path in root.rglob("*.yaml"))
    return tuple(sorted(name for name in names if not name.startswith("benchmarks/")))  # those are of `modistill benchmark`


def _shipped() -> Path:
    return Path(__file__).parent / "recipes"


def _find(path: Path) -> Path:
    if path.is_file():
        return path
    shipped = _shipped() / f"{path}.yaml"
    if shipped.is_file():
        return shipped
    raise RecipeError("there is no such recipe", file=path, remedy=nearest_name(str(path), recipe_names()))


def _override(content: dict[str, Any], override: str) -> None:
    keys, separator, text = override.partition("=")
    if not separator:
        raise RecipeError(f"--set {override}", remedy="write section.key=value")
    *path, last = keys.strip().split(".")
    place: Any = content
    for key in path:
        place = place.setdefault(key, {})
        if not isinstance(place, dict):
            raise RecipeError(f"--set {override}: {key} is no section")
    try:
        place[last] = parse_yaml(text)
    except ValueError as error:
        raise RecipeError(f"--set {override}: the value is no YAML") from error


def _keys(schema: type[BaseModel], keys: Sequence[str]) -> list[str]:
    for key in keys[:-1]:
        annotation = schema.model_fields[key].annotation if key in schema.model_fields else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            break
        schema = annotation
    return list(schema.model_fields)
