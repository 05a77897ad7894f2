"""The layers of docs/architecture.md, checked on the imports themselves."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "src" / "modistill"
LAYERS = {
    **dict.fromkeys(("errors", "files", "log", "hardware"), 1),
    **dict.fromkeys(("data", "phantom", "networks", "losses", "metrics"), 2),
    **dict.fromkeys(("arguments", "distributed", "subsets", "schedules", "checkpoints", "weights", "settings", "tasks"), 2),
    "methods": 3,
    **dict.fromkeys(("training", "inference", "evaluation", "report"), 4),
    **dict.fromkeys(("recipe", "runs", "warm_start", "benchmark"), 5),
    "cli": 6,
}
ALLOWED_SIBLINGS = {  # who may know whom inside a layer
    ("files", "errors"),
    ("hardware", "errors"),
    ("log", "errors"),
    ("log", "files"),
    ("phantom", "data"),
    ("networks", "losses"),
    ("report", "evaluation"),
    ("runs", "recipe"),
    ("runs", "warm_start"),
    ("warm_start", "recipe"),
    ("benchmark", "recipe"),
    ("benchmark", "runs"),
}
ONE_DOOR = {  # library -> the only files that may open it
    "nibabel": {"data/nifti.py", "data/header.py"},
    "lightning_fabric": {"training.py", "runs.py"},
    "blosc2": {"data/store.py"},
    "safetensors": {"weights.py"},
}
TORCH_ONLY = {
    "torch",
    "modistill",
    "__future__",
    "collections",
    "typing",
    "dataclasses",
    "functools",
    "itertools",
    "math",
    "abc",
}
TORCH_ONLY |= {"hashlib", "json"}  # weights from files of others, and their digests


def imports(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module, node.lineno


FILES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_downwards(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0].removesuffix(".py")
    if package == "__init__":
        return
    for name, line in imports(path):
        if not name.startswith("modistill."):
            continue
        other = name.split(".")[1]
        if other == package or (package, other) in ALLOWED_SIBLINGS:
            continue
        assert LAYERS[other] < LAYERS[package], f"{path}:{line}: {package} must not import {other}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_each_library_has_one_door(path: Path) -> None:
    place = str(path.relative_to(ROOT))
    for name, line in imports(path):
        allowed = ONE_DOOR.get(name.split(".")[0])
        assert allowed is None or place in allowed, f"{path}:{line}: {name} belongs into {', '.join(sorted(allowed or ()))}"


@pytest.mark.parametrize("package", ["methods", "networks", "losses"])
def test_what_is_learnt_imports_torch_only(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        if path.name == "__init__.py":
            continue
        for name, line in imports(path):
            assert name.split(".")[0] in TORCH_ONLY, f"{path}:{line}: {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_sizes_and_no_asserts(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 400, f"{path} has more than 400 lines"
    for node in ast.walk(ast.parse(text)):
        assert not isinstance(node, ast.Assert), f"{path}:{node.lineno}: an assert against users"


def test_no_yield_inside_a_with_in_a_method() -> None:
    for path in (ROOT / "methods").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.With):
                inner = [n for n in ast.walk(node) if isinstance(n, ast.Yield | ast.YieldFrom)]
                assert not inner, f"{path}:{node.lineno}: autocast is entered around each resumption; no yield in a with"


def test_help_is_instant_and_imports_nothing_heavy() -> None:
    heavy = ("torch", "monai", "nibabel", "SimpleITK", "matplotlib", "scipy", "pydantic", "lightning_fabric", "blosc2", "numpy")
    program = (
        "import sys; sys.argv = ['modistill', '--help']\n"
        "from modistill.cli import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    times = []
    for _ in range(3):
        begin = time.monotonic()
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        times.append(time.monotonic() - begin)
        assert done.stdout.splitlines()[-1] == "[]"
    assert min(times) < 1.0, f"help took {min(times):.2f} s"  # 0.3 s on a quiet machine; this one may be busy
