"""The zoo. A file in this folder is a method, under the file's name; adding one is adding a file."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from typing import TYPE_CHECKING

from modistill.errors import RecipeError

if TYPE_CHECKING:
    from modistill.methods.base import Method

__all__ = ["load_method", "method_names"]


def method_names() -> tuple[str, ...]:
    """Names of all methods, without importing them.

    Example:
        >>> {"supervised", "had_net"} <= set(method_names())
        True
    """
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "base"))


def load_method(name: str) -> type[Method]:
    """The method's class.

    Raises:
        RecipeError: there is no such method; the message names the nearest one.
    """
    from modistill.methods.base import Method

    if name not in method_names():
        near = difflib.get_close_matches(name, method_names(), n=1)
        known = f"did you mean {near[0]}?" if near else f"known: {', '.join(method_names())}"
        raise RecipeError(f"there is no method {name!r}", remedy=known)
    module = importlib.import_module(f"{__name__}.{name}")
    (found,) = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Method) and value.__module__ == module.__name__
    ]
    return found
