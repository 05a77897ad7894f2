"""`modistill methods`: what there is to train."""

from __future__ import annotations

from typing import Annotated

import typer


def command(
    name: Annotated[str | None, typer.Argument(help="Show one method: its page, players and arguments.")] = None,
) -> None:
    """List the methods and recipes, or show one method's page: paper, equations, terms, what differs."""
    import inspect

    from rich.console import Console
    from rich.table import Table

    from modistill.methods import load_method, method_names
    from modistill.recipe import recipe_names

    console = Console()
    if name is not None:
        method = load_method(name)
        console.print((inspect.getdoc(inspect.getmodule(method)) or "").strip(), markup=False, highlight=False)
        table = Table("argument", "default", title=f"{method.__name__}", title_justify="left", box=None)
        for argument in inspect.signature(method).parameters.values():
            default = "required" if argument.default is argument.empty else repr(argument.default)
            table.add_row(argument.name, default)
        console.print(table)
        return
    table = Table("method", "what it is", box=None)
    for known in method_names():
        page = inspect.getdoc(inspect.getmodule(load_method(known))) or ""
        table.add_row(known, page.splitlines()[0])
    console.print(table)
    console.print(f"\nrecipes: {', '.join(recipe_names())}", highlight=False)
