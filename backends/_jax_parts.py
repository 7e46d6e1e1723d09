"""Parts of the arrays of a call in JAX: pieces of keys, tiles of rows, floats among other numbers.

A call's arrays are a dict of trees by name. A place is where a part of an array lies: axis from behind, start (which
may be traced) and size, for each axis that is cut.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from .._arrays import widen
from .._checks import Call

__all__ = [
    "LEAST_KEYS",
    "PIECES",
    "add",
    "as_tree",
    "at",
    "cut",
    "floats",
    "only_floats",
    "piece",
    "pieces",
    "places",
    "put",
    "put_back",
    "put_piece",
    "widened",
    "zeros",
]

# A device's keys travel in so many pieces, unless these had fewer keys: products of smaller matrices take longer.
PIECES, LEAST_KEYS = 8, 128

Place = tuple[tuple[int, Any, int], ...]


def pieces(moving: dict[str, Any]) -> int:
    """Of how many pieces a device's keys are: a divisor of their number, and of the rows of a grid."""
    n = moving["key"].shape[-2]
    units = moving["grid_y"].shape[0] if "grid_y" in moving else n
    return max(c for c in range(1, PIECES + 1) if units % c == 0 and (c == 1 or n // c >= LEAST_KEYS))


def piece(moving: dict[str, Any], c: Any, count: int) -> dict[str, Any]:
    """The piece c of what travels."""
    return cut(moving, {name: _piece_place(name, array, c, count) for name, array in moving.items()})


def put_piece(sums: dict[str, list[Any]], found: dict[str, list[Any]], c: Any, count: int) -> dict[str, list[Any]]:
    """Gradients of what travels, with those of the piece c put to their places."""
    return {
        name: [put(one, _piece_place(name, one, c, count), part) for one, part in zip(sums[name], parts, strict=True)]
        for name, parts in found.items()
    }


def places(staying: dict[str, Any], call: Call, rows: tuple[Any, int], columns: tuple[Any, int]) -> dict[str, Place]:
    """Where in what stays the rows of a tile, and of all keys some columns, are; first one and number of each."""
    found: dict[str, Place] = {"query": ((-2, *rows),)}
    if "f" in staying:
        found["query_positions"] = ((-staying["f"].query_rank, *rows),)
    for name in ("bias", "mask"):
        array = staying.get(name)
        if array is None:
            continue
        along = ((-2, *rows),) if array.ndim > 1 and array.shape[-2] != 1 else ()
        found[name] = (*along, (-1, *columns)) if array.ndim and array.shape[-1] == call.N != 1 else along
    return found


def cut(trees: dict[str, Any], places: dict[str, Place]) -> dict[str, Any]:
    """The parts at these places; whole what has none."""
    return {name: at(tree, places[name]) if name in places else tree for name, tree in trees.items()}


def add(sums: dict[str, list[Any]], found: dict[str, list[Any]], places: dict[str, Place]) -> dict[str, list[Any]]:
    """The sums, with what was found of their parts at these places."""

    def into(array: Any, part: Any, place: Place) -> Any:
        return put(array, place, at(array, place) + part)

    return {
        name: [into(one, part, places.get(name, ())) for one, part in zip(sums[name], parts, strict=True)]
        for name, parts in found.items()
    }


def at(array: Any, place: Place) -> Any:
    """The part of an array at a place."""
    for axis, start, size in place:
        array = jax.lax.dynamic_slice_in_dim(array, start, size, axis=axis)
    return array


def put(array: Any, place: Place, part: Any) -> Any:
    """An array with a part put to its place."""
    if not place:
        return part
    starts = {axis % array.ndim: start for axis, start, _ in place}
    return jax.lax.dynamic_update_slice(array, part, [starts.get(axis, 0) for axis in range(array.ndim)])


def zeros(trees: dict[str, Any]) -> dict[str, list[Any]]:
    """Sums over gradients of the floats of trees, of nothing yet."""
    return {name: [jnp.zeros_like(one) for one in widened(tree)] for name, tree in trees.items()}


def widened(tree: Any) -> list[Any]:
    """The floats of a tree in the working dtype."""
    return [widen(leaf) for leaf in floats(tree)]


def floats(tree: Any) -> list[Any]:
    """The floats of a tree, in its order."""
    return [leaf for leaf in jax.tree.leaves(tree) if _is_float(leaf)]


def only_floats(tree: Any, specs: Any) -> list[Any]:
    """The specs of the floats of a tree, in its order."""
    flat = jax.tree.leaves(specs, is_leaf=lambda spec: isinstance(spec, PartitionSpec))
    return [spec for leaf, spec in zip(jax.tree.leaves(tree), flat, strict=True) if _is_float(leaf)]


def put_back(floats: dict[str, list[Any]], trees: dict[str, Any]) -> dict[str, Any]:
    """Trees with other floats."""
    given = iter([one for name in sorted(floats) for one in floats[name]])  # the order of a dict in JAX
    found: dict[str, Any] = jax.tree.map(lambda leaf: next(given) if _is_float(leaf) else leaf, trees)
    return found


def as_tree(floats: list[Any], tree: Any) -> Any:
    """A tree with these floats, and None in the place of everything else."""
    given = iter(floats)
    return jax.tree.map(lambda leaf: next(given) if _is_float(leaf) else None, tree)


def _piece_place(name: str, array: Any, c: Any, count: int) -> Place:
    axis = -2 if name in ("key", "value") else -1
    size = array.shape[axis] // count
    return ((axis, c * size, size),)


def _is_float(leaf: Any) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jnp.floating))
