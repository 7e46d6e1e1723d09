"""Trees of arrays, such as a bias, as a list of arrays and what remains; for libraries that have no trees."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

__all__ = ["build", "classes", "leaves"]


def leaves(tree: Any) -> list[Any]:
    """The arrays of a tree of NamedTuples.

    >>> from ia_core import LinearOffset
    >>> leaves(LinearOffset(7))
    [7]
    """
    return [leaf for part in tree for leaf in leaves(part)] if isinstance(tree, tuple) else [tree]


def classes(tree: Any) -> Any:
    """The classes that a tree is made of; None for an array."""
    return (type(tree), tuple(classes(part) for part in tree)) if isinstance(tree, tuple) else None


def build(structure: Any, arrays: Iterator[Any]) -> Any:
    """The tree of these classes over the next arrays."""
    if structure is None:
        return next(arrays)
    kind, parts = structure
    return kind(*[build(part, arrays) for part in parts])
