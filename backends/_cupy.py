"""CuPy: query tiles; in each of them one kernel for scale, bias, mask and softmax, between two products of matrices."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

import cupy

from .._attention import dense_bias, prepare
from .._checks import Call
from ._compiled_bias import has_lines, lines_of, positions_near_zero
from ._tiled import rows_within, slab, tiles

__all__ = ["attend", "declines"]

# By size and not by measurement: 256 MiB of float32 scores are work enough for a whole device, so that the launches
# do not count.
SCORES_PER_TILE = 2**26
LEAST_ROWS = 64
WIDTH = 256  # threads of a block, which share a row


def declines(call: Call, arrays: dict[str, Any], return_lse: bool) -> str | None:
    """Why this path does not take the call, or None."""
    for name, array in arrays.items():
        if type(array) is not cupy.ndarray:
            return f"`{name}` is a {type(array).__name__}, which may compute in its own way"
    return None


def attend(call: Call, query: Any, key: Any, value: Any, bias: Any, mask: Any) -> tuple[Any, Any]:
    """Output and lse of a checked call, in the working dtype."""
    v: Any
    q, k, v, _ = prepare(call, query, key, value, mask)
    B = math.prod(call.batch)
    q, k, v = (array.reshape(B, *array.shape[-3:]) for array in (q, k, v))
    output = cupy.empty((B, call.H, call.M, v.shape[-1]), dtype=v.dtype)
    lse = cupy.full((B, call.H, call.M), -math.inf, dtype=v.dtype)
    if 0 in lse.shape or call.N == 0:
        output[...] = 0.0
        return output.reshape(*call.scores_shape[:-1], v.shape[-1]), lse.reshape(call.scores_shape[:-1])
    lines = _lines(call, bias) if has_lines(bias) else None
    mask = None if mask is None else _over_scores(call, mask, call.M)
    for i0, i1 in tiles(call.M, rows_within(call, SCORES_PER_TILE, LEAST_ROWS)):
        s = cupy.matmul(q[..., i0:i1, :], cupy.swapaxes(k, -1, -2))  # (B, H, i1 - i0, N)
        scale = call.scale
        if bias is not None and lines is None:
            s *= scale
            s += _over_scores(call, dense_bias(slab(bias, i0, i1)), i1 - i0).astype(s.dtype, copy=False)
            scale = 1.0
        total = _softmax(s, lse[..., i0:i1], scale, lines, (i0, i1), None if mask is None else mask[..., i0:i1, :])
        output[..., i0:i1, :] = cupy.matmul(s, v) / total[..., None]
    return output.reshape(*call.scores_shape[:-1], v.shape[-1]), lse.reshape(call.scores_shape[:-1])


def _lines(call: Call, bias: Any) -> list[Any]:
    """Knots (K,), slopes and intercepts (H, 2 K + 1), positions (B, M) and (B, N), all in float64."""
    f = lines_of(bias)
    tables = [cupy.broadcast_to(table, (table.shape[0], call.H)).T for table in f[1:]]
    places = []
    for positions in positions_near_zero(bias):
        in_batch = cupy.broadcast_to(positions, (*call.batch, positions.shape[-1]))
        places.append(in_batch.reshape(math.prod(call.batch), -1))
    # astype alone keeps the order of strides, and a broadcast array has none.
    return [cupy.ascontiguousarray(array, dtype=cupy.float64) for array in (f.knots, *tables, *places)]


def _over_scores(call: Call, array: Any, rows: int) -> Any:
    """A bias or a mask over (B, H, rows, N); no copy unless several leading axes differ in what they repeat."""
    shape = (*call.batch, call.H, rows, call.N)
    return cupy.broadcast_to(array, shape).reshape(math.prod(call.batch), *shape[-3:])


def _softmax(s: Any, lse: Any, scale: float, lines: Any, rows: tuple[int, int], mask: Any) -> Any:
    """Exponentials in place of the products s (B, H, rows, N); their sums; lse is filled in."""
    B, H, size, N = s.shape
    total, found = cupy.empty((2, B, H, size), dtype=s.dtype)
    nothing = cupy.zeros((0,))
    knots, slopes, intercepts, p, x = lines or [nothing] * 5
    p = cupy.ascontiguousarray(p[:, rows[0] : rows[1]]) if lines else p
    strides = (0, 0, 0, 0) if mask is None else mask.strides  # of booleans, so in elements
    sizes = (H, size, N, float(scale), knots.shape[0] if lines else -1)
    tables = (knots, slopes, intercepts, p, x, 0 if mask is None else mask)
    _kernel(s.dtype.name)((B * H * size,), (WIDTH,), (s, total, found, *sizes, *tables, *strides))
    lse[...] = found
    return total


@cache
def _kernel(dtype: str) -> Any:
    """The compiled kernel for float32 or float64."""
    source = (Path(__file__).parent / "native" / "softmax.cu").read_text(encoding="utf-8")
    words = {"float32": "float", "float64": "double"}
    return cupy.RawKernel(f"#define T {words[dtype]}\n#define WIDTH {WIDTH}\n{source}", "attend_rows")
