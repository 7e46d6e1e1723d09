"""Moving a whole tree of parameters to another library, dtype and device."""

from __future__ import annotations

from typing import Any

import array_api_compat.numpy as numpy_namespace
from array_api_compat import is_array_api_obj, is_cupy_array, is_torch_array, to_device

from ._arrays import Array, Namespace, array_namespace, dtype_name

__all__ = ["to_library"]

_HOST: Namespace = numpy_namespace


def to_library(tree: Any, xp: Namespace, *, dtype: Any = None, device: Any = None) -> Any:
    """A copy of a tree of arrays in another library.

    Parameters
    ----------
    tree : NamedTuple, tuple, list, dict, array or None, nested in any way
        None stays None.
    xp : namespace
        The target: ``numpy``, ``torch``, ``jax.numpy``, ``cupy``, ``array_api_strict``, ``dask.array``, ...
        or the array-api-compat namespace of one.
    dtype : dtype of xp, or its name, optional
        For floating arrays; by default each keeps its own. Integer, boolean and complex arrays always do.
    device : device of xp, optional
        The library's default device otherwise.

    Returns
    -------
    The same tree, of the same types, with arrays of xp
        Copies on no autograd graph, through the host's memory: a change on one side leaves the other alone.

    Raises
    ------
    TypeError
        If a leaf is neither an array nor None (the text names its path), xp is no array library, or it does
        not have the dtype wanted (IA-X-20).

    Notes
    -----
    JAX without ``jax_enable_x64`` has no 64-bit dtypes and narrows to 32 bits, as it does everywhere. A lazy
    array (Dask, Cubed) is computed; an array that is being traced has no values and cannot be moved.

    Examples
    --------
    >>> import numpy as np
    >>> from ia_core import init_layer_norm
    >>> to_library([init_layer_norm(2), None], np, dtype="float64")
    [LayerNorm(weight=array([1., 1.]), bias=array([0., 0.])), None]
    """
    if not hasattr(xp, "asarray"):
        raise TypeError(f"`xp` must be an array library's namespace; got {type(xp).__name__} [IA-X-20]")
    wanted = _dtype(xp, dtype, "dtype") if isinstance(dtype, str) else dtype
    return _map(tree, "tree", lambda leaf, path: _move(leaf, path, xp, wanted, device))


def _map(tree: Any, path: str, move: Any) -> Any:
    if tree is None:
        return None
    if isinstance(tree, dict):
        return {key: _map(part, f"{path}[{key!r}]", move) for key, part in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        parts = zip(tree._fields, tree, strict=True)
        return type(tree)(*(_map(part, f"{path}.{name}", move) for name, part in parts))
    if isinstance(tree, tuple | list):
        return type(tree)(_map(part, f"{path}[{number}]", move) for number, part in enumerate(tree))
    return move(tree, path)


def _move(leaf: Any, path: str, xp: Namespace, dtype: Any, device: Any) -> Array:
    if not is_array_api_obj(leaf):
        raise TypeError(f"`{path}` must be an array, or None; got {type(leaf).__name__} [IA-X-20]")
    kind = dtype_name(leaf.dtype)
    options = {} if device is None else {"device": device}
    if kind == "bfloat16" and dtype is None:
        options["dtype"] = _dtype(xp, kind, path)
    elif dtype is not None and (kind == "bfloat16" or array_namespace(leaf).isdtype(leaf.dtype, "real floating")):
        options["dtype"] = dtype
    return xp.asarray(_on_host(leaf), **options)


def _on_host(leaf: Array) -> Array:
    """A NumPy copy; bfloat16, which NumPy has not, as float32."""
    if is_torch_array(leaf):
        leaf = leaf.detach()
    if dtype_name(leaf.dtype) == "bfloat16":
        xp = array_namespace(leaf)
        leaf = xp.astype(leaf, xp.float32)
    if is_torch_array(leaf) or is_cupy_array(leaf):  # the others convert from wherever they are
        leaf = to_device(leaf, "cpu")
    # In two steps, because not every library's __array__ knows the argument copy.
    return _HOST.asarray(_HOST.asarray(leaf), copy=True)


def _dtype(xp: Namespace, name: str, path: str) -> Any:
    found = getattr(xp, name, None)
    if found is None:
        raise TypeError(f"`{path}` is {name}, which {xp.__name__} has not; give another dtype [IA-X-20]")
    return found
