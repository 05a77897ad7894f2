"""The application: collects the commands. A command's function imports what it needs when it runs, so help is instant."""

from __future__ import annotations

import importlib
import pkgutil

import typer

import modistill.cli as package

app = typer.Typer(
    name="modistill",
    help="Train with every sequence you have. Predict with whatever the patient has.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


@app.callback()
def _options() -> None:
    """Train with every sequence you have. Predict with whatever the patient has."""


_ORDER = (
    "inspect",
    "phantom",
    "prepare",
    "train",
    "predict",
    "translate",
    "evaluate",
    "evaluate_translations",
    "compare",
    "roc",
    "features",
    "raters",
    "picture",
    "benchmark",
    "check_leak",
    "methods",
)
_FOUND = {module.name for module in pkgutil.iter_modules(package.__path__)}
for _name in _ORDER:
    if _name in _FOUND:
        app.command(_name.replace("_", "-"))(importlib.import_module(f"modistill.cli.{_name}").command)
