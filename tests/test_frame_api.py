"""The public API: what `__all__` lists exists, is documented with an example, and is complete."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from pathlib import Path

import pytest
from numpydoc.docscrape import get_doc_object

ROOT = Path(__file__).parents[1]
MODULES = ("ia_core", "ia_core.noise", "ia_core.simulate", "ia_core.tasks", "ia_core.backends", "ia_core.conformance")
NAMES = [
    (module, name)
    for module in MODULES
    for name in importlib.import_module(module).__all__
    if inspect.isroutine(getattr(importlib.import_module(module), name, None))
    or inspect.isclass(getattr(importlib.import_module(module), name, None))
]


def documented(doc: object, *sections: str) -> set[str]:
    """The names that sections of a docstring describe, `one, other : type` being two of them."""
    entries = [entry.name for section in sections for entry in doc.get(section, [])]
    return {name.strip().lstrip("*") for entry in entries for name in entry.split(",")}


@pytest.mark.parametrize("module", MODULES)
def test_every_listed_name_exists(module: str) -> None:
    loaded = importlib.import_module(module)
    assert [name for name in loaded.__all__ if not hasattr(loaded, name)] == []
    assert len(set(loaded.__all__)) == len(loaded.__all__)


@pytest.mark.parametrize("module", MODULES)
def test_every_public_definition_is_listed(module: str) -> None:
    loaded = importlib.import_module(module)
    body = ast.parse(Path(loaded.__file__).read_text(encoding="utf-8")).body
    own = [node.name for node in body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    # A name that a package takes from a module of its own is there to be used from the package.
    taken = [
        alias.asname or alias.name
        for node in body
        if isinstance(node, ast.ImportFrom) and node.level == 1 and Path(loaded.__file__).name == "__init__.py"
        for alias in node.names
    ]
    public = {name for name in [*own, *taken] if not name.startswith("_")}
    assert public - set(loaded.__all__) == set()


def test_no_public_module_is_left_out() -> None:
    found = {
        path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
        for path in (ROOT / "ia_core").glob("[!_]*.py")
    }
    assert found <= set(MODULES)


def test_the_names_of_the_root_are_sorted() -> None:
    names = importlib.import_module("ia_core").__all__
    assert list(names) == sorted(names)


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_docstring_is_complete(module: str, name: str) -> None:
    thing = getattr(importlib.import_module(module), name)
    doc = get_doc_object(thing, config={"show_class_members": False})
    assert doc["Summary"], f"{name} has no summary"
    assert any(">>> " in line for line in doc["Examples"]), f"{name} has no example"
    arguments = set(inspect.signature(thing).parameters)
    # A NamedTuple's fields are its arguments, and stand under Attributes.
    assert arguments - documented(doc, "Parameters", "Attributes") == set()
    assert documented(doc, "Parameters") - arguments == set()
    if inspect.isfunction(thing) and thing.__annotations__.get("return", "") not in (None, "None"):
        assert doc["Returns"] or doc["Yields"], f"{name} does not say what it returns"


def names_in_the_docs() -> list[str]:
    """What the tables of docs/api.md list, each below its module's directive."""
    module, listed = "", []
    for line in (ROOT / "docs" / "api.md").read_text(encoding="utf-8").splitlines():
        if match := re.fullmatch(r"\.\. automodule:: (\S+)", line):
            module = match[1]
        elif match := re.fullmatch(r" {3}(\w+)", line):
            listed.append(f"{module}.{match[1]}")
    return listed


def test_every_name_stands_once_in_the_docs() -> None:
    assert sorted(names_in_the_docs()) == sorted(f"{module}.{name}" for module, name in NAMES)
