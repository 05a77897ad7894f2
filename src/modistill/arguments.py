"""Plain values, as YAML has them, for the arguments of a constructor: checked against its annotations before it is called."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from modistill.errors import RecipeError

__all__ = ["checked", "nearest_name", "takes"]


def checked(constructor: Callable[..., Any], arguments: Mapping[str, Any], section: str) -> dict[str, Any]:
    """The arguments, each turned into what its annotation asks for.

    Args:
        constructor: whose signature they must fit.
        arguments: plain values.
        section: of the recipe, for messages.

    Raises:
        RecipeError: an argument is unknown or of another type.

    Example:
        >>> checked(complex, {}, "number")
        {}
    """
    if not arguments:
        return {}
    known = inspect.signature(constructor).parameters
    hints = get_type_hints(constructor.__init__ if isinstance(constructor, type) else constructor)  # type: ignore[misc]
    found: dict[str, Any] = {}
    for name, value in arguments.items():
        if name not in known:
            raise RecipeError(f"unknown key {section}.{name}", remedy=nearest_name(name, known))
        try:
            found[name] = TypeAdapter(hints[name]).validate_python(value)
        except ValidationError as error:
            raise RecipeError(f"{section}.{name}: {error.errors()[0]['msg']}, found {value!r}") from error
    return found


def takes(constructor: Callable[..., Any], name: str) -> bool:
    """Whether a constructor has this argument."""
    return name in inspect.signature(constructor).parameters


def nearest_name(word: str, known: Iterable[str]) -> str:
    """A remedy for a misspelt name: the nearest known one, or all of them."""
    known = list(known)
    near = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
