"""pyproject.toml gives ranges, constraints.txt gives pins: each pin lies in its range, none is missing."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# `make` installs neither: the one needs a GPU, and builds of PyTorch for a GPU ask for a Triton of their own.
UNPINNED = {"cupy-cuda12x", "triton"}


def requirements() -> list[Requirement]:
    """Everything the metadata names, from the dependencies and from every extra, that is to be pinned."""
    lines = [*PROJECT["dependencies"], *extra_lines()]
    return [one for one in map(Requirement, lines) if one.name not in (PROJECT["name"], *UNPINNED)]


def extra_lines() -> list[str]:
    return [line for extra in PROJECT["optional-dependencies"].values() for line in extra]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_pin_lies_in_the_range(requirement: Requirement) -> None:
    pinned = {canonicalize_name(name): version for name, version in pins().items()}
    assert requirement.specifier, f"{requirement.name} has no lower end"
    assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)])


def test_nothing_is_pinned_that_nothing_asks_for() -> None:
    asked = {canonicalize_name(one.name) for one in requirements()}
    assert {canonicalize_name(name) for name in pins()} - asked == set()


def test_the_extras_of_the_self_reference_exist() -> None:
    own = [one for one in map(Requirement, extra_lines()) if one.name == PROJECT["name"]]
    assert own
    assert {extra for one in own for extra in one.extras} <= set(PROJECT["optional-dependencies"])


def test_the_version_stands_in_one_place() -> None:
    assert "version" in PROJECT["dynamic"]
    source = (ROOT / "ia_core" / "__init__.py").read_text(encoding="utf-8")
    assert len(re.findall(r'^__version__ = "\d+\.\d+\.\d+[.\w]*"$', source, re.MULTILINE)) == 1
