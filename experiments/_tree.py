"""Trees of parameters: NamedTuples, tuples, dicts and None around arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from ia_core import LayerNorm

__all__ = ["decays", "leaves", "mapped", "rebuilt", "stacked"]

_NO_DECAY = frozenset({"bias", "b1", "b2", "pull"})


def leaves(tree: Any) -> list[Any]:
    """The arrays of a tree, in order."""
    return [leaf for _, _, leaf in _walk(tree, "", None)]


def decays(tree: Any) -> list[bool]:
    """Which leaves weight decay applies to: weights and tables, neither biases nor norms."""
    return [name not in _NO_DECAY and not isinstance(owner, LayerNorm) for name, owner, _ in _walk(tree, "", None)]


def rebuilt(tree: Any, arrays: Iterator[Any]) -> Any:
    """The same tree with other arrays."""
    if tree is None:
        return None
    if isinstance(tree, dict):
        return {key: rebuilt(part, arrays) for key, part in tree.items()}
    if isinstance(tree, tuple):
        parts = [rebuilt(part, arrays) for part in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)
    return next(arrays)


def mapped(function: Callable[..., Any], *trees: Any) -> Any:
    """A function applied to each array, or to those at the same place of several trees."""
    return rebuilt(trees[0], iter([function(*parts) for parts in zip(*map(leaves, trees), strict=True)]))


def stacked(trees: list[Any], stack: Callable[[list[Any]], Any]) -> Any:
    """Trees of one structure as one tree, whose arrays have a new first axis."""
    return mapped(lambda *parts: stack(list(parts)), *trees)


def _walk(tree: Any, name: str, owner: Any) -> Iterator[tuple[str, Any, Any]]:
    if tree is None:
        return
    if isinstance(tree, dict):
        for key, part in tree.items():
            yield from _walk(part, key, tree)
    elif isinstance(tree, tuple):
        names = getattr(tree, "_fields", None) or [str(number) for number in range(len(tree))]
        for field, part in zip(names, tree, strict=True):
            yield from _walk(part, field, tree)
    else:
        yield name, owner, tree
