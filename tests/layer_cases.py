"""What the tests of layers, updates, models and parameters share."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from ia_core import to_library

MODULES = {
    "numpy": "numpy",
    "torch": "torch",
    "jax": "jax.numpy",
    "strict": "array_api_strict",
    "dask": "array_api_compat.dask.array",
}
GRAPHS = {"cubed": "cubed.array_api", "ndonnx": "ndonnx"}

# Two float64 evaluations of one of our small models differ by their order of summation alone. A path from the
# input to an output crosses fewer than 500 roundings of 1.1e-16 each, and no model here magnifies a relative
# error more than 20-fold, so that 1.1e-12 is an upper bound for outputs of order 1.
CLOSE = 1.1e-12


def library(name: str) -> Any:
    """The namespace of a library, set up as strictly as it can be."""
    xp = importlib.import_module((MODULES | GRAPHS)[name])
    if name == "jax":
        importlib.import_module("jax").config.update("jax_enable_x64", True)
    if name == "strict":
        xp.set_array_api_strict_flags(boolean_indexing=False, data_dependent_shapes=False, enabled_extensions=[])
    return xp


def as_numpy(array: Any) -> np.ndarray:
    """The values of an array of any of the libraries."""
    if hasattr(array, "unwrap_numpy"):  # ndonnx
        return np.asarray(array.unwrap_numpy())
    return np.asarray(to_library(array, np))


def on_library(name: str, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """The value that a function has on a library, arguments and options moved there first; or its values."""
    xp = library(name)
    result = function(*to_library(arguments, xp), **to_library(options, xp))
    return tuple(map(as_numpy, result)) if isinstance(result, tuple) else as_numpy(result)


def random_like(tree: Any, seed: int = 0, scale: float = 0.3) -> Any:
    """The same tree in float64 with random numbers added: no zero or one of an initialiser is left."""
    rng = np.random.default_rng(seed)

    def visit(part: Any) -> Any:
        if part is None:
            return None
        if isinstance(part, tuple):
            parts = [visit(one) for one in part]
            return type(part)(*parts) if hasattr(part, "_fields") else tuple(parts)
        return np.asarray(part, dtype=np.float64) + scale * rng.standard_normal(part.shape)

    return visit(tree)


def leaves(tree: Any, path: str = "") -> dict[str, Any]:
    """Every array of a tree by its path."""
    if tree is None:
        return {}
    if isinstance(tree, tuple):
        names = getattr(tree, "_fields", range(len(tree)))
        found: dict[str, Any] = {}
        for name, part in zip(names, tree, strict=True):
            found |= leaves(part, f"{path}.{name}")
        return found
    return {path: tree}
