"""PyTorch on the CPU without a compiler: a position bias filled in by plain operations, a tile of queries at a time.

A bias of one offset is lines between knots. Which line an offset is on is found once for all heads, from where the
knots lie among the value positions; each head then takes its two numbers of every line:

==================  ================  =============================================================================
array               shape             meaning
==================  ================  =============================================================================
cells               (rows, N)         which line, 0 to 2 K
local               (rows, N)         the offset's distance from the anchor of its cell, its number nearest to 0
values, slopes      (H, 2 K + 1)      the bias at the anchor, and its slope: bias = values[cell] + slopes[cell] local
==================  ================  =============================================================================

An anchor is no farther from 0 than the offset, so that no sum is of larger numbers than ``slope t + intercept`` is.
The backward pass fills the tiles anew. Neither pass holds more than a few tiles. Whole positions that go on by one step
have a bias that need not be filled in.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from .._attention import prepare
from .._checks import Call
from . import _torch
from ._compiled_bias import has_lines
from ._torch_line_tiles import Lines, Sums, tiles_of
from ._torch_native import Gradients, lines_in_batch, over_scores

__all__ = ["attend", "declines"]

Maybe: TypeAlias = Tensor | None


def declines(call: Call, arrays: dict[str, Any], return_lse: bool) -> str | None:
    """Why this path does not take the call, or None."""
    own = _torch.has_own_rules(arrays)
    if own is not None:
        return own
    if "bias.query_positions" not in arrays:
        return "it is for position biases"
    if "bias.f.x.w1" in arrays:
        return "it evaluates functions of one offset; a BoxMLP is one of two"
    return _torch.why_not_forward(arrays, return_lse)


def attend(call: Call, query: Any, key: Any, value: Any, bias: Any, mask: Any) -> tuple[Any, None]:
    """Output of a checked call, in the working dtype."""
    assert has_lines(bias)
    v: Any
    q, k, v, _ = prepare(call, query, key, value, mask)
    B, Dv = math.prod(call.batch), v.shape[-1]
    with _torch.own_precision(q):
        flat = [array.reshape(B, *array.shape[-3:]) for array in (q, k, v)]
        knots, slopes, intercepts, *places = lines_in_batch(call, bias)
        anchors = _anchors(knots)
        values = slopes * torch.where(torch.isfinite(anchors), anchors, 0.0) + intercepts
        tables = [table.to(q.dtype) for table in (values, slopes)]
        hidden = None if mask is None else over_scores(call, mask)
        output = _forward(*_torch.same_width(*flat), knots, anchors, *tables, *places, hidden, call.scale)
    return output[..., :Dv].reshape(*call.scores_shape[:-1], Dv), None


def _anchors(knots: Tensor) -> Tensor:
    """The number nearest to 0 in every cell, (2 K + 1,); that of a knot is the knot."""
    end = knots.new_full((1,), math.inf)
    each_twice = knots.repeat_interleave(2)
    below, above = torch.cat([-end, each_twice]), torch.cat([each_twice, end])
    return torch.clamp(torch.zeros_like(below), below, above)


@torch.library.custom_op("ia_core::lines_forward", mutates_args=())
def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    knots: Tensor,
    anchors: Tensor,
    values: Tensor,
    slopes: Tensor,
    query_positions: Tensor,
    value_positions: Tensor,
    hidden: Maybe,
    scale: float,
) -> Tensor:
    """Output (B, H, M, D): query, key and value are of one width."""
    output = torch.empty_like(query, memory_format=torch.contiguous_format)
    # PyTorch's fused kernel declines others, and what serves then holds all scores of a tile.
    q, k, v = (array if array.stride(-1) == 1 else array.contiguous() for array in (query, key, value))
    lines, H = Lines(knots, anchors, values, slopes), query.shape[1]
    for tile in tiles_of(lines, [query_positions, value_positions], hidden, backward=False):
        parts = (tile.of(q)[None], tile.of_keys(k, H)[None], tile.of_keys(v, H)[None])
        tile.put(scaled_dot_product_attention(*parts, attn_mask=tile.bias[None], scale=scale)[0], output)
    return output


@_forward.register_fake
def _(query: Tensor, *others: Any) -> Tensor:
    return torch.empty_like(query, memory_format=torch.contiguous_format)


@torch.library.custom_op("ia_core::lines_backward", mutates_args=())
def _backward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    knots: Tensor,
    anchors: Tensor,
    values: Tensor,
    slopes: Tensor,
    query_positions: Tensor,
    value_positions: Tensor,
    hidden: Maybe,
    scale: float,
    output: Tensor,
    cotangent: Tensor,
    queries_move: bool,
    values_move: bool,
) -> Gradients:
    """Gradients of query, key and value, of values and slopes, of the positions; those of the values if they move."""
    H, Hk = query.shape[1], key.shape[1]
    found = [torch.zeros_like(array, memory_format=torch.contiguous_format) for array in (query, key, value)]
    tables = [torch.zeros_like(table, dtype=torch.float64) for table in (values, slopes)]
    places = [query_positions, value_positions]
    moved = [torch.zeros_like(at, memory_format=torch.contiguous_format) for at in places]
    moved[1] = moved[1] if values_move else moved[1][:, :0].clone()
    lines = Lines(knots, anchors, values, slopes)
    sums = Sums(tables[0], tables[1], moved[0] if queries_move else None, moved[1] if values_move else None)
    for tile in tiles_of(lines, places, hidden, backward=True):
        q, do, o = (tile.of(array) for array in (query, cotangent, output))
        k, v = (tile.of_keys(array, H) for array in (key, value))
        scores = torch.baddbmm(tile.bias, q, k.mT, alpha=scale)
        empty = (scores == -math.inf).all(-1, keepdim=True)
        weights = torch.softmax(scores, -1).masked_fill_(empty, 0.0)  # (h, rows, N)
        do = do.masked_fill(empty, 0.0)
        d_value = weights.mT @ do
        d_scores = (do @ v.mT).sub_((do * o).sum(-1, keepdim=True)).mul_(weights)
        d_scores.masked_fill_(weights == 0, 0.0)  # 0 times what is not finite: nothing flows where nothing is read
        tile.put(scale * (d_scores @ k), found[0])
        shared = torch.tensor(tile.key_heads(Hk, H), dtype=torch.int64)
        found[1][tile.b].index_add_(0, shared, scale * (d_scores.mT @ q))
        found[2][tile.b].index_add_(0, shared, d_value)
        tile.add(d_scores, lines, sums)
    return found[0], found[1], found[2], tables[0], tables[1], moved[0], moved[1]


@_backward.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *others: Any) -> tuple[Tensor, ...]:
    _, _, values, slopes, *places = others[:6]
    moved = places[1] if others[-1] else places[1][:, :0]
    found = [torch.empty_like(array, memory_format=torch.contiguous_format) for array in (query, key, value)]
    found += [torch.empty_like(table, dtype=torch.float64) for table in (values, slopes)]
    return *found, *(torch.empty_like(at, memory_format=torch.contiguous_format) for at in (places[0], moved))


def _keep(ctx: Any, inputs: Any, output: Any) -> None:
    *arrays, ctx.scale = inputs
    ctx.save_for_backward(*arrays, output)


def _differentiate(ctx: Any, cotangent: Any) -> Any:
    *arrays, output = ctx.saved_tensors
    move = [bool(needed) for needed in ctx.needs_input_grad[7:9]]
    found = _backward(*arrays, ctx.scale, output, cotangent, *move)
    d_values, d_slopes = (gradient.to(arrays[5].dtype) for gradient in found[3:5])
    d_places = [found[5], found[6] if found[6].numel() else None]
    return (*found[:3], None, None, d_values, d_slopes, *d_places, None, None)


_torch.map_one_by_one(_backward)
_forward.register_autograd(_differentiate, setup_context=_keep)
