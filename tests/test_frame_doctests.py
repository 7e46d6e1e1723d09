"""The examples in the docstrings run and print what they say."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {"ia_core": "ia_core", "backends": "ia_core.backends", "conformance": "ia_core.conformance"}
OPTIONS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
# Frameworks that the test environment need not have.
OPTIONAL = ("cubed", "cupy", "dask", "distributed", "equinox", "flax", "jax", "torch", "triton")


def modules() -> list[str]:
    """Every module of the three folders, by the name under which it is imported."""
    names = []
    for folder, root in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = [part for part in path.relative_to(ROOT / folder).with_suffix("").parts if part != "__init__"]
            names.append(".".join([root, *parts]))
    return names


@pytest.mark.parametrize("name", modules())
def test_examples_of_the_module(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name in OPTIONAL:
            pytest.skip(f"{error.name} is not installed")
        raise
    monkeypatch.chdir(tmp_path)  # an example may write a file
    result = doctest.testmod(module, optionflags=OPTIONS)
    assert result.failed == 0, f"{result.failed} of {result.attempted} examples of {name} failed, see the output"


def test_examples_are_found() -> None:
    finder = doctest.DocTestFinder(exclude_empty=True)
    attention = importlib.import_module("ia_core._attention")
    assert any(test.examples for test in finder.find(attention))
