"""PyTorch on a GPU: ``flex_attention``, with the bias as its score function.

Where the kernels of ``_torch_triton`` cannot be had, PyTorch's compiler writes one. Its score function finds a bias at
each score anew, from arrays that stay in the GPU's memory:

============  ==================================================================================================
bias          at each score
============  ==================================================================================================
knots         a search of the knots, unrolled: as many steps as 2 K + 1 has binary digits, less one; then two numbers
OffsetTable   the cell by arithmetic, for entries stand at whole offsets; then the same two numbers
LinearOffset  one slope
BoxMLP        a number of the pixel's column and one of its row
a matrix      its entry
============  ==================================================================================================

It multiplies and sums in float32 without reduced products (IA-P-02), in halves too: they are widened first, because
``flex_attention`` rounds the weights to the dtype of the values (IA-P-03, IA-P-04).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from .._arrays import widen
from .._attention import prepare
from .._bias import BoxMLP, LinearOffset, OffsetTable
from .._checks import Call
from .._position_bias import PositionBias
from . import _torch
from ._compiled_bias import lines_of
from ._torch_native import over_leading
from ._torch_triton import positions_in_batch

__all__ = ["attend", "declines", "score_function", "why_not_here", "why_not_with"]

# Its kernels on a GPU take rows of 16 numbers and more.
NARROWEST = 16
# They change to base 2 by a product, in which the smallest float32 becomes -inf. Only -inf empties a row (IA-S-12).
LEAST = -2.3e38
# So that an offset of two infinite positions behind a mask stays finite: times a gradient of 0 it is 0.
FARTHEST = 1.5e38
# Compiled anew for other ranks and dtypes, for static sizes, and for each number of steps.
VARIANTS = 256
# Read by the kernels for GPUs: 'ieee' is what keeps IA-P-02. What is read for a tile of scores is as large as the tile,
# at every step of a search. Larger tiles than these, or several stages, would hold it in shared memory several times.
GPU_OPTIONS: dict[str, Any] = {
    "FLOAT32_PRECISION": "'ieee'",
    "fwd_BLOCK_M": 64,
    "fwd_BLOCK_N": 32,
    "fwd_num_stages": 1,
    "bwd_num_stages": 1,
}

Score = Callable[..., Any]


def declines(call: Call, arrays: dict[str, Any], return_lse: bool) -> str | None:
    """Why this path does not take the call, or None."""
    query = arrays["query"]
    other = _torch.has_own_rules(arrays) or _torch.why_not_a_kernel(arrays) or why_not_here(query.device.type)
    if other is not None:
        return other
    if query.dtype == torch.float64:
        return "on a GPU flex_attention sums in float32; `query` is float64"
    if 0 in (*call.scores_shape, query.shape[-1], arrays["value"].shape[-1]):
        return "flex_attention does not take empty axes"
    moving = torch.is_grad_enabled() and any(array.requires_grad for array in arrays.values())
    return why_not_with(query.device.type, moving, return_lse)


@torch.compiler.assume_constant_result
def why_not_here(kind: str) -> str | None:
    """Why there is no ``flex_attention`` for this kind of device; read once per trace."""
    if kind not in ("cuda", "cpu"):
        return f"it is for GPUs that PyTorch calls cuda, and for the CPU; `query` is on {kind}"
    try:
        from torch.nn.attention.flex_attention import AuxRequest  # noqa: F401
    except ImportError:
        return f"it needs a flex_attention that gives the lse on request; this is PyTorch {torch.__version__}"
    return None


def why_not_with(kind: str, moving: bool, return_lse: bool) -> str | None:
    """What ``flex_attention`` does on a GPU alone: gradients, and the lse."""
    if kind == "cpu" and moving:
        return "flex_attention has no backward on the CPU"
    if kind == "cpu" and return_lse:
        return "compiled flex_attention does not give the lse on the CPU"
    return None


def attend(call: Call, query: Any, key: Any, value: Any, bias: Any, mask: Any) -> tuple[Any, Any]:
    """Output and lse of a checked call, in the working dtype."""
    Dv = value.shape[-1]
    with _torch.own_precision(query):
        v: Any
        q, k, v = widen(query), widen(key), widen(value)
        if mask is not None:  # what a mask hides from one of the heads that share a key another may see
            q, k, v, _ = prepare(call, query, key, value, mask)
        B = math.prod(call.batch)
        flat = [_wide_enough(array.reshape(B, *array.shape[-3:])) for array in (q, k, v)]
        kind, tables = _bias_tables(call, bias, mask)
        if mask is not None:
            tables.append(over_leading(call, mask))
        run: Any = _computed
        limit: Any = nullcontext()
        if not torch.compiler.is_compiling():
            run, limit = _compiled(), torch._dynamo.config.patch(recompile_limit=VARIANTS)
        with limit:
            output, lse = run(flat, kind, tables, mask is not None, call.scale)
    shape = call.scores_shape[:-1]
    return output[..., :Dv].reshape(*shape, Dv), lse if lse is None else lse.reshape(shape)


@functools.cache
def _compiled() -> Callable[..., Any]:
    return torch.compile(_computed, fullgraph=True)


def _computed(arrays: list[Tensor], kind: str, tables: list[Tensor], masked: bool, scale: float) -> tuple[Any, Any]:
    """Output and lse of query, key and value (B, H, L, width)."""
    from torch.nn.attention.flex_attention import AuxRequest, flex_attention

    with_bias = score_function(kind, masked)

    def score(s: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return with_bias(s, b, h, i, j, *tables)

    q, k, v = arrays
    gpu = q.device.type != "cpu"
    options: Any = {"return_aux": AuxRequest(lse=True), "kernel_options": GPU_OPTIONS} if gpu else {}
    grouped = q.shape[1] != k.shape[1]
    found: Any = flex_attention(q, k, v, score_mod=score, scale=scale, enable_gqa=grouped, **options)
    return (found[0], found[1].lse) if gpu else (found, None)


def score_function(kind: str, masked: bool) -> Score:
    """A function of a score, its batch element, head, query and key, and then of the arrays that the bias reads.

    If ``masked``, the last of these is the mask.
    """
    with_bias = _SCORES[kind]
    if not masked:
        return with_bias

    def score(s: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor, *tables: Tensor) -> Tensor:
        s = with_bias(s, b, h, i, j, *tables[:-1])
        return torch.where(_entry(tables[-1], b, h, i, j), s, -math.inf)

    return score


def _wide_enough(array: Tensor) -> Tensor:
    """Zero columns, which add nothing to a product, and are cut off from the output."""
    more = NARROWEST - array.shape[-1]
    return pad(array, (0, more)) if more > 0 else array


def _bias_tables(call: Call, bias: Any, mask: Any) -> tuple[str, list[Tensor]]:
    """Which of the score functions, and the arrays that it reads."""
    if bias is None:
        return "plain", []
    if not isinstance(bias, PositionBias):
        # A gradient is summed in the dtype of what it belongs to, and rounded to the matrix's own once.
        return "matrix", [over_leading(call, widen(bias) if torch.is_grad_enabled() and bias.requires_grad else bias)]
    f = bias.f
    if type(f) is BoxMLP:
        offsets = f.offsets(bias.query_positions, bias.value_positions)
        return "box", [over_leading(call, part) for part in (f.x(offsets.x), f.y(offsets.y))]  # (..., H, M, W), R
    places = [torch.clamp(at, -FARTHEST, FARTHEST) for at in _seen(call, positions_in_batch(call, bias), mask)]
    if type(f) is LinearOffset:
        return "linear", [*places, f.slopes.to(torch.float32)]
    g = lines_of(bias)
    tables = [table.to(torch.float32).mT.contiguous() for table in (g.slopes, g.intercepts)]  # (H, 2 K + 1)
    if type(f) is OffsetTable:
        return "table", [*places, *tables]
    knots = g.knots.detach().to(torch.float32)
    steps = knots.shape[0].bit_length()
    padded = pad(knots, (0, 2**steps - knots.shape[0]), value=math.inf)  # one more than a search reads
    return "knots", [*places, *tables, padded]


def _seen(call: Call, places: list[Tensor], mask: Any) -> list[Tensor]:
    """0 in place of positions of queries that ask nothing, and of values that nobody asks for."""
    if mask is None:
        return places
    mask = over_leading(call, mask).expand(math.prod(call.batch), *call.scores_shape[-3:])
    return [torch.where(mask.any(axis).any(1), at, 0.0) for axis, at in zip((3, 2), places, strict=True)]


def _entry(array: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """Of an array that broadcasts to (B, H, M, N)."""
    kept = tuple(at for at, size in zip((b, h, i, j), array.shape, strict=True) if size != 1)
    array = array.reshape([size for size in array.shape if size != 1] or [1])
    return array[kept or (b * 0,)]  # always an index: gradients of what is read otherwise are not summed


def _plain(s: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
    return s


def _matrix(s: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor, bias: Tensor) -> Tensor:
    entry = _entry(bias, b, h, i, j).to(torch.float32)
    return s + torch.where(entry == -math.inf, entry, torch.clamp(entry, min=LEAST))


def _box(s: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor, columns: Tensor, rows: Tensor) -> Tensor:
    W = columns.shape[-1]
    return s + (_entry(columns, b, h, i, j % W) + _entry(rows, b, h, i, j // W))


def _linear(
    s: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor, queries: Tensor, values: Tensor, slopes: Tensor
) -> Tensor:
    return s - slopes[h] * torch.abs(values[b, j] - queries[b, i])


def _table(
    s: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor,
    queries: Tensor, values: Tensor, slopes: Tensor, lines: Tensor,
) -> Tensor:  # fmt: skip
    R = (slopes.shape[-1] - 3) // 4  # 2 (2 R + 1) + 1 cells
    t = values[b, j] - queries[b, i]
    below = torch.floor(t)
    on = (below == t) & (torch.abs(t) <= R)
    reached = torch.clamp(torch.where(t == t, below, 0.0), -R - 1, R) + (R + 1)  # entries at or below t
    cell = 2 * reached.to(torch.int32) - on.to(torch.int32)
    return s + (slopes[h, cell] * t + lines[h, cell])


def _knots(
    s: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor,
    queries: Tensor, values: Tensor, slopes: Tensor, lines: Tensor, knots: Tensor,
) -> Tensor:  # fmt: skip
    t = values[b, j] - queries[b, i]
    below = torch.zeros_like(j)
    for step in reversed(range(knots.shape[0].bit_length() - 1)):
        probe = below + 2**step
        below = torch.where(knots[probe - 1] < t, probe, below)
    cell = 2 * below + (knots[below] == t).to(below.dtype)
    return s + (slopes[h, cell] * t + lines[h, cell])


_SCORES: dict[str, Score] = {
    "plain": _plain,
    "matrix": _matrix,
    "box": _box,
    "linear": _linear,
    "table": _table,
    "knots": _knots,
}
