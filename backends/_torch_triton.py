"""PyTorch on a GPU: a Triton kernel that evaluates a position bias inside the tile of scores it is added to.

The compilation of the bias into lines between knots is plain PyTorch and is differentiated as such, as in
``_torch_native``; the two operators below are opaque to ``torch.compile``. In halves the products are those of the
tensor cores, which take weights as halves: here as a sum of two or three of them, whose rest is below the rounding of
float32 sums (IA-P-03, IA-P-04); those of float16 hold nothing below 2^-38 of a row's largest weight.
``_torch_triton_rounded`` is the same with weights rounded to one half.
"""

from __future__ import annotations

import importlib.util
import math
import os
from typing import Any, TypeAlias

import torch
from torch import Tensor

from .._arrays import widen
from .._bias import OffsetMLP
from .._checks import Call
from .._position_bias import PositionBias
from . import _torch
from ._compiled_bias import has_lines, lines_of, positions_near_zero
from ._torch_native import over_scores
from ._torch_triton_lines import lines_of_network

__all__ = ["attend", "attend_in_parts", "declines", "positions_in_batch", "why_not_here"]

Maybe: TypeAlias = Tensor | None

WIDEST = 256
MOST_KNOTS, LONGEST = 32000, 1_000_000  # a cell and the edges of a tile, two for each knot, have 16 bits each


def declines(call: Call, arrays: dict[str, Any], return_lse: bool) -> str | None:
    """Why this path does not take the call, or None."""
    query = arrays["query"]
    other = _torch.has_own_rules(arrays) or why_not_here(query.device.type) or _torch.why_not_a_kernel(arrays)
    if other is not None:
        return other
    if query.dtype == torch.float64:
        return "its kernels compute in float32; `query` is float64"
    if "bias.f.x.w1" in arrays:
        return "it evaluates functions of one offset; a BoxMLP is one of two"
    dense = arrays.get("bias")
    if dense is not None and dense.requires_grad:
        return "it does not give the gradient of a bias that is a matrix"
    width = max(query.shape[-1], arrays["value"].shape[-1])
    if width > WIDEST:
        return f"its tiles hold rows of up to {WIDEST} numbers; these have {width}"
    knots = max((arrays[name].shape[-1] for name in _TABLES if name in arrays), default=0)
    if knots > MOST_KNOTS:
        return f"its tables hold up to {MOST_KNOTS} knots; the bias has {knots}"
    if max(call.M, call.N) > LONGEST:
        return f"its lists of tiles are for up to {LONGEST} positions; there are {max(call.M, call.N)}"
    return None


_TABLES = ("bias.f.w1", "bias.f.values", "bias.f.knots")


@torch.compiler.assume_constant_result
def why_not_here(kind: str) -> str | None:
    """Why there is no kernel for this kind of device; read once per trace."""
    if kind not in ("cuda", "cpu"):
        return f"its kernels are for NVIDIA's GPUs; `query` is on {kind}"
    if kind == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        return "its kernels are for GPUs; on the CPU they run under TRITON_INTERPRET=1 alone"
    if importlib.util.find_spec("triton") is None:
        return "its kernels need Triton, which is not installed"
    if kind == "cpu":
        return None
    if torch.version.hip is not None or torch.cuda.get_device_capability() < (8, 0):
        return "its kernels were tried on NVIDIA's GPUs of compute capability 8.0 and later only"
    return None


def attend(call: Call, query: Any, key: Any, value: Any, bias: Any, mask: Any) -> tuple[Any, Any]:
    """Output and lse of a checked call, in the working dtype."""
    return attend_in_parts(call, query, key, value, bias, mask, rounded=False)


def attend_in_parts(
    call: Call, query: Any, key: Any, value: Any, bias: Any, mask: Any, *, rounded: bool
) -> tuple[Any, Any]:
    """Output and lse; where weights are ``rounded`` the output too comes in the dtype of the query."""
    with _torch.own_precision(query):
        B = math.prod(call.batch)
        flat = [array.reshape(B, *array.shape[-3:]) for array in (query, key, value)]
        dense = hidden = None
        if bias is not None and not isinstance(bias, PositionBias):
            dense = over_scores(call, bias)
        if mask is not None:
            hidden = over_scores(call, mask)
        lines, smooth = [None] * 5, False
        if has_lines(bias):
            lines, smooth = _lines_in_batch(call, bias), type(bias.f) is OffsetMLP
        output, lse, _ = _forward(*flat, *lines, dense, hidden, call.scale, smooth, rounded)
    shape = call.scores_shape[:-1]
    return output.reshape(*shape, value.shape[-1]), lse.reshape(shape)


def _lines_in_batch(call: Call, bias: PositionBias) -> list[Any]:
    """Knots (K,), slopes and intercepts (H, 2 K + 1), and positions (B, M) and (B, N) in float32.

    Of a network edges stand for the knots.
    """
    f = bias.f
    if type(f) is OffsetMLP:
        knots, *tables = lines_of_network(f)
    else:
        g = lines_of(bias)
        knots, tables = g.knots.detach().to(torch.float32), [g.slopes.mT, g.intercepts.mT]
    shape = (call.H, 2 * knots.shape[0] + 1)
    tables = [table.expand(shape) for table in tables]
    return [knots, *tables, *positions_in_batch(call, bias)]


def positions_in_batch(call: Call, bias: PositionBias) -> list[Tensor]:
    """Positions (B, M) and (B, N) in float32."""
    places = []
    for at in positions_near_zero(bias):
        at = widen(at) if at.is_floating_point() else at.to(torch.float32)
        places.append(at.expand(*call.batch, at.shape[-1]).reshape(math.prod(call.batch), at.shape[-1]))
    return places


@torch.library.custom_op("ia_core::triton_forward", mutates_args=())
def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    knots: Maybe,
    slopes: Maybe,
    intercepts: Maybe,
    query_positions: Maybe,
    value_positions: Maybe,
    bias: Maybe,
    mask: Maybe,
    scale: float,
    smooth: bool,
    rounded: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Output (B, H, M, Dv), lse (B, H, M), and the lse as two numbers (B, H, M, 2) in the kernel's own units."""
    from . import _triton_launch

    results = _empty_results(query, value, rounded)
    lines = [knots, slopes, intercepts, query_positions, value_positions]
    _triton_launch.forward([query, key, value], lines, bias, mask, scale, smooth, rounded, results)
    return results


@_forward.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_results(query, value, others[-1])


@torch.library.custom_op("ia_core::triton_backward", mutates_args=())
def _backward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    knots: Maybe,
    slopes: Maybe,
    intercepts: Maybe,
    query_positions: Maybe,
    value_positions: Maybe,
    bias: Maybe,
    mask: Maybe,
    scale: float,
    smooth: bool,
    rounded: bool,
    output: Tensor,
    base: Tensor,
    cotangent: Tensor,
    lse_cotangent: Tensor,
    values_move: bool,
) -> list[Tensor]:
    """Gradients of query, key and value, and of slopes, intercepts and both positions if there are any."""
    from . import _triton_launch

    lines = [knots, slopes, intercepts, query_positions, value_positions]
    found = _empty_gradients(query, key, value, slopes, query_positions, value_positions, values_move)
    kept = [output, base, cotangent, lse_cotangent]
    _triton_launch.backward([query, key, value], lines, bias, mask, scale, smooth, rounded, kept, found)
    return found


@_backward.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, knots: Maybe, slopes: Maybe, *others: Any) -> list[Tensor]:
    return _empty_gradients(query, key, value, slopes, others[1], others[2], values_move=others[-1])


def _keep(ctx: Any, inputs: Any, output: Any) -> None:
    *arrays, ctx.scale, ctx.smooth, ctx.rounded = inputs
    results, _, base = output
    ctx.save_for_backward(*arrays, results, base)
    ctx.mark_non_differentiable(base)


def _differentiate(ctx: Any, cotangent: Any, lse_cotangent: Any, _: Any) -> Any:
    *arrays, output, base = ctx.saved_tensors
    numbers = (ctx.scale, ctx.smooth, ctx.rounded)
    values_move = bool(ctx.needs_input_grad[7])
    found = _backward(*arrays, *numbers, output, base, cotangent, lse_cotangent, values_move)
    lines: list[Any] = [None] * 5
    if len(found) > 3:
        d_slopes, d_intercepts, d_queries, d_values = found[3:]
        tables = [gradient.to(arrays[4].dtype) for gradient in (d_slopes, d_intercepts)]
        lines = [None, *tables, d_queries, d_values if d_values.numel() else None]
    return (*found[:3], *lines, None, None, None, None, None)


_forward.register_autograd(_differentiate, setup_context=_keep)


def _empty_results(query: Tensor, value: Tensor, rounded: bool) -> tuple[Tensor, Tensor, Tensor]:
    shape = query.shape[:-1]
    dtype = query.dtype if rounded else torch.float32
    lse, base = (query.new_empty(size, dtype=torch.float32) for size in (shape, (*shape, 2)))
    return query.new_empty((*shape, value.shape[-1]), dtype=dtype), lse, base


def _empty_gradients(
    query: Tensor, key: Tensor, value: Tensor, slopes: Maybe, queries: Maybe, values: Maybe, values_move: bool
) -> list[Tensor]:
    found = [array.new_empty(array.shape) for array in (query, key, value)]
    if slopes is not None and queries is not None and values is not None:
        found += [slopes.new_empty(slopes.shape, dtype=torch.float64) for _ in range(2)]
        found += [queries.new_empty(queries.shape), values.new_empty((values.shape[0], values.shape[1] * values_move))]
    return found
