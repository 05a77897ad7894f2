"""The public names are there, and importing the package costs nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest

import modistill


@pytest.mark.parametrize("name", modistill.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(modistill, name)
    assert name in dir(modistill)


def test_a_wrong_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Teacher'"):
        modistill.Teacher  # noqa: B018


def test_importing_the_package_imports_nothing_heavy() -> None:
    program = "import sys, modistill; print([m for m in ('torch', 'numpy', 'nibabel', 'typer') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip() == "[]"
