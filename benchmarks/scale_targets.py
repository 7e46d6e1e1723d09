"""Attention past one machine as targets of the conformance suite, such as

    ia-core conform benchmarks.scale_targets:dask_chunked --profile full

``dask_chunked`` and ``cubed_chunked`` split every axis that may be split: leading axes, heads, queries and keys.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from ia_core import PositionBias
from ia_core.backends import indirect_attention
from ia_core.conformance import Implementation

__all__ = ["cubed_chunked", "dask_chunked"]

DTYPES = ("float64", "float32", "float16", "bfloat16")
BASIC = {"bias", "bias_broadcast", "mask", "scale", "lse", "grouped", "value_width", "batch_axes", "empty"}
FORWARD = frozenset(BASIC | {"position_bias", "wide_bias", "errors"})
# Blocks along a leading axis, along queries, and along keys: enough for a tree that is deeper than one merge.
BATCH_BLOCKS, QUERY_BLOCKS, KEY_BLOCKS = 2, 2, 5


def in_chunks(
    give: Callable[[np.ndarray, tuple[int, ...]], Any], query: Any, key: Any, value: Any, bias: Any, mask: Any
) -> tuple[list[Any], dict[str, Any]]:
    """The arguments of a call in chunks, whatever is no array of NumPy as it is."""
    if not all(isinstance(array, np.ndarray) and array.ndim >= 3 for array in (query, key, value)):
        return [_whole(give, array) for array in (query, key, value)], {
            "bias": _tree(bias, lambda array: _whole(give, array)),
            "mask": _whole(give, mask),
        }
    Hk = key.shape[-3]
    group = query.shape[-3] // Hk if Hk else 1
    h, m, n = max(1, -(-Hk // 2)), _part(query.shape[-2], QUERY_BLOCKS), _part(key.shape[-2], KEY_BLOCKS)
    batch = tuple(_part(size, BATCH_BLOCKS) for size in query.shape[:-3])
    scores = (*batch, h * max(1, group), m, n)

    def over_scores(array: Any) -> Any:
        if not isinstance(array, np.ndarray):
            return array
        chunks = scores[max(0, len(scores) - array.ndim) :]
        return (
            give(array, tuple(min(a, max(1, b)) for a, b in zip(array.shape, chunks, strict=True)))
            if (len(chunks) == array.ndim)
            else _whole(give, array)
        )

    def sequence(array: Any, size: int, rank: int) -> Any:
        leading = batch[len(batch) - array.ndim + rank :]
        leading = tuple(min(a, max(1, b)) for a, b in zip(array.shape, leading, strict=False))
        return give(array, (*leading, size, *array.shape[array.ndim - rank + 1 :]))

    if isinstance(bias, PositionBias):
        f = _tree(bias.f, lambda array: _whole(give, array))
        of_values = bias.value_positions
        of_values = (
            _tree(of_values, lambda array: _whole(give, array))
            if isinstance(of_values, tuple)
            else (sequence(of_values, n, 1))
        )
        bias = PositionBias(f, sequence(bias.query_positions, m, bias.f.query_rank), of_values)
    else:
        bias = over_scores(bias)
    arrays = [
        give(array, (*batch, heads, size, max(1, array.shape[-1])))
        for array, heads, size in ((query, h * max(1, group), m), (key, h, n), (value, h, n))
    ]
    return arrays, {"bias": bias, "mask": over_scores(mask)}


def _part(size: int, blocks: int) -> int:
    return max(1, -(-size // blocks))


def _tree(tree: Any, of_leaf: Callable[[Any], Any]) -> Any:
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(_tree(part, of_leaf) for part in tree))
    return of_leaf(tree)


def _whole(give: Callable[[np.ndarray, tuple[int, ...]], Any], array: Any) -> Any:
    return give(array, tuple(max(1, size) for size in array.shape)) if isinstance(array, np.ndarray) else array


def _dask(
    query: Any, key: Any, value: Any, *, bias: Any = None, mask: Any = None, scale: Any = None, return_lse: bool = False
) -> Any:
    dask = importlib.import_module("dask")
    give = importlib.import_module("dask.array").from_array
    arrays, keywords = in_chunks(give, query, key, value, bias, mask)
    found = indirect_attention(*arrays, **keywords, scale=scale, return_lse=return_lse)
    return dask.compute(*found) if return_lse else found.compute()


def _cubed(
    query: Any, key: Any, value: Any, *, bias: Any = None, mask: Any = None, scale: Any = None, return_lse: bool = False
) -> Any:
    cubed = importlib.import_module("cubed")
    spec = cubed.Spec(allowed_mem="500MB", executor_name="threads")

    def give(array: np.ndarray, chunks: tuple[int, ...]) -> Any:
        return cubed.from_array(array, chunks=chunks, spec=spec)

    arrays, keywords = in_chunks(give, query, key, value, bias, mask)
    found = indirect_attention(*arrays, **keywords, scale=scale, return_lse=return_lse)
    return tuple(cubed.compute(*found)) if return_lse else found.compute()


dask_chunked = Implementation(_dask, "dask-chunked", dtypes=DTYPES, supports=FORWARD)
# Empty arrays have no blocks in Cubed, and its arrays have no halves beyond float32.
cubed_chunked = Implementation(_cubed, "cubed-chunked", dtypes=DTYPES[:2], supports=FORWARD - {"empty"}, most_cases=8)
