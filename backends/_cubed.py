"""Cubed: partial states over pairs of query and key blocks, merged in a tree, within ``allowed_mem``.

Cubed plans before it computes, and refuses a plan whose tasks would need more than ``Spec(allowed_mem=...)``. What it
cannot know, the memory inside a block's attention, is told to it as a bound (``scratch_bytes``).
"""

from __future__ import annotations

import functools
import math
from typing import Any

import cubed.array_api
import cubed.core.ops

from .._arrays import dtype_name, working_dtype
from .._checks import Call
from ._chunked import (
    COLUMNS,
    LEAST_ROWS,
    SCORES_PER_TILE,
    block_state,
    merge_packed,
    plan,
    unpacked,
    why_not_chunked,
)

__all__ = ["attend", "declines", "scratch_bytes"]

SPLIT_EVERY = 4


def declines(call: Call, arrays: dict[str, Any], return_lse: bool) -> str | None:
    """Why this path does not take the call, or None."""
    if 0 in call.scores_shape or 0 in arrays["value"].shape:
        return "Cubed has no blocks of empty arrays"
    return why_not_chunked(call, arrays)


def attend(call: Call, query: Any, key: Any, value: Any, bias: Any, mask: Any) -> tuple[Any, Any]:
    """Output and lse of a checked call, in the working dtype."""
    blocks = plan(call, query, key, value, bias, mask, functools.partial(_numbers, spec=query.spec))
    dtype = working_dtype(query)
    states = cubed.core.ops.blockwise(
        functools.partial(block_state, layout=blocks.layout),
        blocks.out,
        *(part for operand in blocks.operands for part in operand),
        adjust_chunks={"j": 1, "v": value.shape[-1] + COLUMNS},
        dtype=dtype,
        align_arrays=False,
        extra_projected_mem=scratch_bytes(query, key, value),
        # Fused with what makes its operands, a task would hold these operands' own temporaries besides.
        fusable_with_predecessors=False,
    )
    merged = cubed.core.ops.reduction(
        states,
        None,
        combine_func=merge_packed,
        axis=blocks.axis,
        intermediate_dtype=dtype,
        dtype=dtype,
        split_every={blocks.axis: SPLIT_EVERY},
    )
    return unpacked(merged)


def scratch_bytes(query: Any, key: Any, value: Any) -> int:
    """A bound on what the attention of one pair of blocks needs besides its operands and its state.

    Either the compiled kernel runs, or the tiled path, which needs more: of a tile of scores at most twelve arrays at a
    time (with a bias by positions: offsets, cells, slopes and intercepts in double), and key, value and query once in
    the working dtype with all heads, once more cleaned of what a mask hides.
    """
    rows, columns = (math.prod(array.chunksize[:-1]) for array in (query, key))
    heads = query.chunksize[-3] // max(1, key.chunksize[-3])
    tile = max(SCORES_PER_TILE, LEAST_ROWS * rows // query.chunksize[-2] * key.chunksize[-2])
    tile = min(tile, rows * key.chunksize[-2])
    itemsize = 8 if dtype_name(query.dtype) == "float64" else 4
    widened = rows * query.chunksize[-1] + columns * heads * (query.chunksize[-1] + value.chunksize[-1])
    state = rows * (value.chunksize[-1] + COLUMNS)
    return 12 * 8 * tile + itemsize * (2 * widened + 2 * state)


def _numbers(chunks: tuple[tuple[int, ...], ...], *, spec: Any) -> Any:
    return cubed.array_api.arange(sum(chunks[0]), chunks=(chunks[0][0],), spec=spec)
