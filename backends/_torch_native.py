"""PyTorch on the CPU: one compiled kernel that evaluates a position bias inside the block of scores it is added to.

The two operators below are opaque to ``torch.compile``, and autograd knows the one as the derivative of the other. What
comes before them, the compilation of the bias into lines between knots, is plain PyTorch and is differentiated as such:
so the gradients of the bias's parameters cost as much as there are knots, not offsets.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import torch
from torch import Tensor

from .._arrays import widen
from .._attention import prepare
from .._checks import Call
from .._position_bias import PositionBias
from .._positions import is_integer
from . import _native, _torch
from ._compiled_bias import has_lines, lines_of, positions_near_zero

__all__ = ["Gradients", "attend", "declines", "lines_in_batch", "over_leading", "over_scores"]

Maybe: TypeAlias = Tensor | None
Gradients: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def declines(call: Call, arrays: dict[str, Any], return_lse: bool) -> str | None:
    """Why this path does not take the call, or None."""
    other = _torch.has_own_rules(arrays) or _torch.why_not_a_kernel(arrays)
    if other is not None:
        return other
    query = arrays["query"]
    if query.device.type != "cpu":
        return f"its kernel is for the CPU; `query` is on {query.device}"
    if "bias.f.x.w1" in arrays:
        return "it evaluates functions of one offset; a BoxMLP is one of two"
    dense = arrays.get("bias")
    if dense is not None and dense.requires_grad:
        return "it does not give the gradient of a bias that is a matrix"
    plain = "bias.query_positions" not in arrays and not return_lse
    if plain and not _torch.differentiates_beside_a_matrix(arrays):
        return "without a position bias or the lse PyTorch's own kernel serves"
    return why_not_here()


@torch.compiler.assume_constant_result
def why_not_here() -> str | None:
    """Why the kernel cannot be had on this machine; read once per trace."""
    return _native.why_not()


def attend(call: Call, query: Any, key: Any, value: Any, bias: Any, mask: Any) -> tuple[Any, Any]:
    """Output and lse of a checked call, in the working dtype."""
    with _torch.own_precision(query):
        # Grouped heads are read in place, unless what a mask hides from one of them another may see.
        q, k, v = widen(query), widen(key), widen(value)
        if mask is not None:
            q, k, v, _ = prepare(call, query, key, value, mask)
        B = math.prod(call.batch)
        flat = [array.reshape(B, *array.shape[-3:]) for array in (q, k, v)]
        dense = mask_4d = None
        if bias is not None and not isinstance(bias, PositionBias):
            dense = over_scores(call, bias.to(q.dtype))
        if mask is not None:
            mask_4d = over_scores(call, mask)
        whole = isinstance(bias, PositionBias) and is_integer(bias.value_positions)
        lines = lines_in_batch(call, bias) if has_lines(bias) else [None] * 5
        output, lse, *_ = _forward(*flat, *lines, dense, mask_4d, call.scale, whole)
    shape = call.scores_shape[:-1]
    return output.reshape(*shape, value.shape[-1]), lse.reshape(shape)


def lines_in_batch(call: Call, bias: PositionBias) -> list[Any]:
    """Knots (K,), slopes and intercepts (H, 2 K + 1), and positions (B, M) and (B, N), all in float64."""
    g = lines_of(bias)
    shape = (call.H, 2 * g.knots.shape[0] + 1)
    tables = [table.to(torch.float64).mT.expand(shape) for table in (g.slopes, g.intercepts)]
    places = [_in_batch(call, at) for at in positions_near_zero(bias)]
    return [g.knots.detach().to(torch.float64), *tables, *places]


def over_scores(call: Call, array: Any) -> Any:
    """(B, H, M, N), of which no more is copied than the leading axes ask for."""
    return over_leading(call, array).expand(math.prod(call.batch), *call.scores_shape[-3:])


def over_leading(call: Call, array: Any) -> Any:
    """Four axes that broadcast to (B, H, M, N), one for all the leading ones."""
    own = (1,) * (len(call.scores_shape) - array.ndim) + tuple(array.shape)
    leading = call.batch if math.prod(own[:-3]) != 1 else ()
    array = array.reshape(own[-3:]) if not leading else array.expand(*leading, *own[-3:])
    return array.reshape(math.prod(leading), *own[-3:])


def _in_batch(call: Call, positions: Any) -> Any:
    """Positions (..., L) as float64 (B, L)."""
    positions = positions.to(torch.float64)
    return positions.expand(*call.batch, positions.shape[-1]).reshape(math.prod(call.batch), positions.shape[-1])


@torch.library.custom_op("ia_core::native_forward", mutates_args=())
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
    whole: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Output (B, H, M, Dv) and lse (B, H, M); for the gradient, the row's maximum and sum, of which the lse is made."""
    lines = [knots, slopes, intercepts, query_positions, value_positions]
    call, held = _described(query, key, value, lines, bias, mask, scale, whole)
    results = _empty_results(query, value)
    call.output, call.lse, call.top, call.total = (array.data_ptr() for array in results)
    _native.call_native(call, _precision(query), backward=False)
    del held
    return results


@_forward.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _empty_results(query, value)


@torch.library.custom_op("ia_core::native_backward", mutates_args=())
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
    whole: bool,
    output: Tensor,
    lse: Tensor,
    top: Tensor,
    total: Tensor,
    cotangent: Tensor,
    lse_cotangent: Tensor,
    values_move: bool,
) -> Gradients:
    """Gradients of query, key and value, and of slopes, intercepts and both positions: empty if there are none."""
    lines = [knots, slopes, intercepts, query_positions, value_positions]
    call, held = _described(query, key, value, lines, bias, mask, scale, whole)
    cotangents = [cotangent.contiguous(), lse_cotangent.contiguous()]
    call.output, call.lse, call.top, call.total = (array.data_ptr() for array in (output, lse, top, total))
    call.cotangent, call.lse_cotangent = (array.data_ptr() for array in cotangents)
    found = _empty_gradients(query, key, value, slopes, values_move)
    names = ("d_query", "d_key", "d_value", "d_slopes", "d_intercepts", "d_query_positions", "d_value_positions")
    for name, gradient in zip(names, found, strict=True):
        setattr(call, name, gradient.data_ptr() if gradient.numel() else None)
    _native.call_native(call, _precision(query), backward=True)
    del held
    return found


@_backward.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, knots: Maybe, slopes: Maybe, *others: Any) -> Gradients:
    return _empty_gradients(query, key, value, slopes, values_move=others[-1])


def _keep(ctx: Any, inputs: Any, output: Any) -> None:
    *arrays, ctx.scale, ctx.whole = inputs
    ctx.save_for_backward(*arrays, *output)
    ctx.mark_non_differentiable(*output[2:])


def _differentiate(ctx: Any, cotangent: Any, lse_cotangent: Any, *_: Any) -> Any:
    *arrays, output, lse, top, total = ctx.saved_tensors
    results = (output, lse, top, total)
    values_move = bool(ctx.needs_input_grad[7])
    found = _backward(*arrays, ctx.scale, ctx.whole, *results, cotangent, lse_cotangent, values_move)
    B, Hk = arrays[1].shape[:2]
    group = arrays[0].shape[1] // max(1, Hk)
    d_key, d_value = (
        to if group == 1 else to.reshape(B, Hk, group, *to.shape[2:]).sum(2)  # of the heads that share one
        for to in found[1:3]
    )
    lines: list[Any] = [None] * 5
    if arrays[4] is not None:
        d_slopes, d_intercepts, d_queries, d_values = found[3:]
        of_values = d_values.sum(1) if d_values.numel() else None
        lines = [None, d_slopes.sum(0), d_intercepts.sum(0), d_queries.sum(1), of_values]
    return (found[0], d_key, d_value, *lines, None, None, None, None)


_torch.map_one_by_one(_backward)
_forward.register_autograd(_differentiate, setup_context=_keep)


def _precision(array: Tensor) -> str:
    return "double" if array.dtype == torch.float64 else "float"


def _empty_results(query: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    shape = query.shape[:-1]
    rows = [query.new_empty(shape) for _ in range(3)]
    return query.new_empty((*shape, value.shape[-1])), rows[0], rows[1], rows[2]


def _empty_gradients(query: Tensor, key: Tensor, value: Tensor, slopes: Maybe, values_move: bool) -> Gradients:
    B, H, M, D = query.shape
    N, Dv = key.shape[-2], value.shape[-1]
    d_query, d_key, d_value = (query.new_zeros((B, H, *shape)) for shape in ((M, D), (N, D), (N, Dv)))
    cells = 0 if slopes is None else slopes.shape[-1]
    lengths = (cells, cells, 0 if slopes is None else M, N if values_move else 0)
    d_slopes, d_intercepts, d_queries, d_values = (
        query.new_zeros((B, H, length), dtype=torch.float64) for length in lengths
    )
    return d_query, d_key, d_value, d_slopes, d_intercepts, d_queries, d_values


def _described(
    query: Tensor, key: Tensor, value: Tensor, lines: list[Any], bias: Maybe, mask: Maybe, scale: float, whole: bool
) -> tuple[_native.Call, list[Any]]:
    """The kernel's view of the arguments, and what must be held while it looks."""
    rows = [array if array.stride(-1) == 1 else array.contiguous() for array in (query, key, value)]
    plain = None if lines[1] is None else [array.contiguous() for array in lines]
    scores = {name: array for name, array in (("bias", bias), ("mask", mask)) if array is not None}
    numbers = {"scale": scale, "whole_positions": whole, "threads": torch.get_num_threads()}
    call = _native.describe(lambda array: (array.data_ptr(), array.stride()), rows, plain, scores, **numbers)
    return call, [*rows, *(plain or ())]
