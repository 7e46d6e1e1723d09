"""PyTorch on the CPU without a compiler: a position bias filled in by plain operations, a tile of queries at a time.

A bias of one offset is lines between knots. Which line an offset is on is found once for all heads, from where the
knots lie among the value positions; each head then takes its two numbers of every line:

==================  ================  =============================================================================
array               shape             meaning
==================  ================  =============================================================================
cells               (rows, N)         which line, 0 to 2 K
local               (rows, N)         the offset's distance from the anchor of its cell, its number nearest to 0
values, slopes      (B, H, 2 K + 1)   the bias at the anchor, and its slope: bias = values[cell] + slopes[cell] local
==================  ================  =============================================================================

An anchor is no farther from 0 than the offset, so that no sum is of larger numbers than ``slope t + intercept`` is.
The backward pass fills the tiles anew. Neither pass holds more than a few tiles.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from .._attention import prepare
from .._checks import Call
from . import _torch
from ._compiled_bias import has_lines
from ._tiled import tiles
from ._torch_native import Gradients, lines_in_batch, over_scores

__all__ = ["attend", "declines"]

Maybe: TypeAlias = Tensor | None

# Measured on two cores, float32, 8 heads, N of 2048 and 4096: PyTorch's kernel takes larger blocks from 768 rows on.
SCORES_PER_TILE = 2**22
MOST_ROWS, LEAST_ROWS = 1024, 64
# Cells and distances are found for so many offsets at a time, which stay in the cache in float64.
OFFSETS = 2**18


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


class _Tile(NamedTuple):
    """Rows i0 .. i1 - 1 of heads h0 .. h1 - 1 of the batch element b."""

    b: int
    heads: slice
    shared: list[int]  # the heads of the keys that they read
    rows: slice
    bias: Tensor  # (h1 - h0, i1 - i0, N)
    cells: Tensor
    local: Tensor


def _filled(
    B: int, H: int, Hk: int, knots: Tensor, anchors: Tensor, tables: list[Tensor], places: list[Tensor], hidden: Maybe
) -> Iterator[_Tile]:
    """The bias and the mask, tile by tile; each is overwritten by the next."""
    M, N = places[0].shape[-1], places[1].shape[-1]
    rows = min(max(1, M), max(LEAST_ROWS, min(MOST_ROWS, SCORES_PER_TILE // max(1, N))))
    several = min(H, max(1, SCORES_PER_TILE // max(1, rows * N)))
    cells = places[0].new_empty((rows, N), dtype=torch.int64)
    local = tables[0].new_empty((rows, N))
    slab, taken = tables[0].new_empty((2, several, rows, N))
    same_places = B == 1 or all(at.stride(0) == 0 for at in places)
    finite = all(bool(torch.isfinite(at).all()) for at in places)
    for i0, i1 in tiles(M, rows):
        size = i1 - i0
        for b in range(B):
            if b == 0 or not same_places:
                _locate(knots, anchors, places[0][b, i0:i1], places[1][b], cells[:size], local[:size])
            for h0, h1 in tiles(H, several):
                bias, slope = slab[: h1 - h0, :size], taken[: h1 - h0, :size]
                at = cells[None, :size].expand(h1 - h0, size, N)
                for table, out in zip(tables, (bias, slope), strict=True):
                    torch.gather(table[h0:h1, None, :].expand(h1 - h0, size, table.shape[-1]), 2, at, out=out)
                if finite:
                    bias.addcmul_(slope, local[:size])
                else:  # a line of slope 0 goes on to infinity
                    bias.add_(torch.where(slope == 0, 0.0, slope * local[:size]))
                if hidden is not None:
                    bias.masked_fill_(~hidden[b, h0:h1, i0:i1], -math.inf)
                shared = [h * Hk // H for h in range(h0, h1)]
                yield _Tile(b, slice(h0, h1), shared, slice(i0, i1), bias, cells[:size], local[:size])


def _locate(knots: Tensor, anchors: Tensor, queries: Tensor, values: Tensor, cells: Tensor, local: Tensor) -> None:
    """Write the cells and the distances from their anchors, for queries (rows,) and values (N,)."""
    N = values.shape[0]
    ordered, order = torch.sort(torch.where(torch.isnan(values), math.inf, values))
    back = None if bool((values[1:] >= values[:-1]).all()) else torch.argsort(order)
    begins = cells.new_ones(knots.shape)
    begins[1:] = knots[1:] != knots[:-1]
    for i0, i1 in tiles(queries.shape[0], max(1, OFFSETS // max(1, N))):
        reached = queries[i0:i1, None] + knots  # (rows, K)
        steps = cells.new_zeros((i1 - i0, N + 1))
        # A cell ends where offsets reach a knot, and where they pass it: on knots that coincide is the first's own.
        for right, ended in ((False, begins), (True, 2 - begins)):
            first = torch.searchsorted(ordered, reached, right=right)
            steps.scatter_add_(1, first, ended.expand_as(first))
        found = torch.cumsum(steps, 1)[:, :N]
        cells[i0:i1] = found if back is None else found[:, back]
        t = values - queries[i0:i1, None]
        local[i0:i1] = t.sub_(anchors[cells[i0:i1]])


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
    (B, H), Hk = query.shape[:2], key.shape[1]
    places = [query_positions, value_positions]
    for tile in _filled(B, H, Hk, knots, anchors, [values, slopes], places, hidden):
        q, k, v = _parts(tile, query, key, value)
        output[tile.b, tile.heads, tile.rows] = scaled_dot_product_attention(
            q[None], k[None], v[None], attn_mask=tile.bias[None], scale=scale
        )[0]
    return output


@_forward.register_fake
def _(query: Tensor, *others: Any) -> Tensor:
    return torch.empty_like(query, memory_format=torch.contiguous_format)


def _parts(tile: _Tile, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries (h, rows, D) of a tile, and the keys and values (h, N, D) of its heads."""
    q = query[tile.b, tile.heads, tile.rows]
    if query.shape[1] == key.shape[1]:
        return q, key[tile.b, tile.heads], value[tile.b, tile.heads]
    return q, key[tile.b, tile.shared], value[tile.b, tile.shared]


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
    values_move: bool,
) -> Gradients:
    """Gradients of query, key and value, of values and slopes, of the positions; those of the values if they move."""
    (B, H), Hk = query.shape[:2], key.shape[1]
    found = [torch.zeros_like(array, memory_format=torch.contiguous_format) for array in (query, key, value)]
    tables = [torch.zeros_like(table, dtype=torch.float64) for table in (values, slopes)]
    moved = [torch.zeros_like(at, memory_format=torch.contiguous_format) for at in (query_positions, value_positions)]
    moved[1] = moved[1] if values_move else moved[1][:, :0].clone()
    places = [query_positions, value_positions]
    for tile in _filled(B, H, Hk, knots, anchors, [values, slopes], places, hidden):
        q, k, v = _parts(tile, query, key, value)
        do, o = (array[tile.b, tile.heads, tile.rows] for array in (cotangent, output))
        scores = torch.baddbmm(tile.bias, q, k.mT, alpha=scale)
        empty = (scores == -math.inf).all(-1, keepdim=True)
        weights = torch.softmax(scores, -1).masked_fill_(empty, 0.0)  # (h, rows, N)
        do = do.masked_fill(empty, 0.0)
        d_value = weights.mT @ do
        d_scores = (do @ v.mT).sub_((do * o).sum(-1, keepdim=True)).mul_(weights)
        d_scores.masked_fill_(weights == 0, 0.0)  # 0 times what is not finite: nothing flows where nothing is read
        found[0][tile.b, tile.heads, tile.rows] = scale * (d_scores @ k)
        shared = torch.tensor(tile.shared)
        found[1][tile.b].index_add_(0, shared, scale * (d_scores.mT @ q))
        found[2][tile.b].index_add_(0, shared, d_value)
        _of_lines(tile, d_scores, slopes, tables, moved)
    return found[0], found[1], found[2], tables[0], tables[1], moved[0], moved[1]


@_backward.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *others: Any) -> tuple[Tensor, ...]:
    _, _, values, slopes, *places = others[:6]
    moved = places[1] if others[-1] else places[1][:, :0]
    found = [torch.empty_like(array, memory_format=torch.contiguous_format) for array in (query, key, value)]
    found += [torch.empty_like(table, dtype=torch.float64) for table in (values, slopes)]
    return *found, *(torch.empty_like(at, memory_format=torch.contiguous_format) for at in (places[0], moved))


def _of_lines(tile: _Tile, d_scores: Tensor, slopes: Tensor, tables: list[Tensor], moved: list[Tensor]) -> None:
    """Add what the scores of a tile give to the numbers of the lines and to the positions."""
    here = slopes[tile.heads].double()
    at = tile.cells.expand(d_scores.shape)
    sums = d_scores.new_zeros((*d_scores.shape[:2], slopes.shape[-1])).scatter_add_(2, at, d_scores).double()
    tables[0][tile.heads] += sums.sum(1)
    moved[0][tile.b, tile.rows] -= torch.einsum("hic,hc->i", sums, here)
    if moved[1].numel():
        slope = torch.gather(here.to(d_scores.dtype)[:, None, :].expand(sums.shape), 2, at)
        moved[1][tile.b] += (slope * d_scores).sum((0, 1), dtype=torch.float64)
    far = torch.where(d_scores == 0, 0.0, d_scores * tile.local)
    sums = torch.zeros_like(sums, dtype=far.dtype).scatter_add_(2, at, far)
    tables[1][tile.heads] += sums.sum(1, dtype=torch.float64)


def _keep(ctx: Any, inputs: Any, output: Any) -> None:
    *arrays, ctx.scale = inputs
    ctx.save_for_backward(*arrays, output)


def _differentiate(ctx: Any, cotangent: Any) -> Any:
    *arrays, output = ctx.saved_tensors
    found = _backward(*arrays, ctx.scale, output, cotangent, bool(ctx.needs_input_grad[8]))
    d_values, d_slopes = (gradient.to(arrays[5].dtype) for gradient in found[3:5])
    d_places = [found[5], found[6] if found[6].numel() else None]
    return (*found[:3], None, None, d_values, d_slopes, *d_places, None, None)


_torch.map_one_by_one(_backward)
_forward.register_autograd(_differentiate, setup_context=_keep)
