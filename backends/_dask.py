"""Dask: partial states over pairs of query and key blocks, merged in a tree.

Nothing is computed before the caller asks. What a block needs at a time: its queries, keys and values, the tile of
scores that the path of its own library keeps, and the state. It has no gradient.
"""

from __future__ import annotations

import functools
from typing import Any

import dask.array

from .._arrays import working_dtype
from .._checks import Call
from ._chunked import COLUMNS, block_state, merge_packed, plan, unpacked, why_not_chunked

__all__ = ["attend", "declines"]

# States that one task merges: each is as large as a query block, and few at a time keep a worker's memory small.
SPLIT_EVERY = 4


def declines(call: Call, arrays: dict[str, Any], return_lse: bool) -> str | None:
    """Why this path does not take the call, or None."""
    return why_not_chunked(call, arrays)


def attend(call: Call, query: Any, key: Any, value: Any, bias: Any, mask: Any) -> tuple[Any, Any]:
    """Output and lse of a checked call, in the working dtype."""
    blocks = plan(call, query, key, value, bias, mask, _numbers)
    dtype = working_dtype(query)
    states = dask.array.blockwise(
        functools.partial(block_state, layout=blocks.layout),
        blocks.out,
        *(part for operand in blocks.operands for part in operand),
        adjust_chunks={"j": 1, "v": value.shape[-1] + COLUMNS},
        dtype=dtype,
        meta=query._meta.astype(dtype),
        align_arrays=False,
        name=None,
    )
    merged = dask.array.reduction(
        states,
        chunk=_as_it_is,
        combine=merge_packed,
        aggregate=merge_packed,
        axis=blocks.axis,
        dtype=dtype,
        split_every=SPLIT_EVERY,
    )
    return unpacked(merged)


def _as_it_is(states: Any, axis: Any, keepdims: bool) -> Any:
    return states


def _numbers(chunks: tuple[tuple[int, ...], ...]) -> Any:
    return dask.array.arange(sum(chunks[0]), chunks=chunks)
