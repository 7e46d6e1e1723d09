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
The backward pass fills the tiles anew. Neither pass holds more than a few tiles. Whole positions that go on by one step
have a bias that need not be filled in.
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
from ._torch_diagonals import add_along, offsets_in_steps, turned
from ._torch_native import Gradients, lines_in_batch, over_scores

__all__ = ["attend", "declines"]

Maybe: TypeAlias = Tensor | None

# Measured on two cores, float32, 8 heads, N of 4096 and 8192: twice as many are 3 to 5 % faster, and take 80 MiB.
SCORES_PER_TILE = 2**21
MOST_ROWS, LEAST_ROWS = 1024, 64
# Backward, where several arrays of a tile are read one after the other, smaller ones stay in the cache.
SCORES_BACKWARD = 2**20
# Of a bias that is a view, in all heads: only queries and output are copied, to turn them.
ROWS_OF_A_VIEW = 2048
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


class _Lines(NamedTuple):
    """What a bias is made of, apart from its positions."""

    knots: Tensor  # (K,)
    anchors: Tensor  # (2 K + 1,)
    values: Tensor  # (H, 2 K + 1)
    slopes: Tensor

    def fill(self, heads: slice, cells: Tensor, local: Tensor, bias: Tensor, slope: Tensor, *, finite: bool) -> None:
        """Write the bias (h, rows, N) of cells and distances (rows, N), and the slopes."""
        at = cells.expand(bias.shape)
        for table, out in ((self.values, bias), (self.slopes, slope)):
            torch.gather(table[heads, None, :].expand(*bias.shape[:2], table.shape[-1]), 2, at, out=out)
        if finite:
            bias.addcmul_(slope, local)
        else:  # a line of slope 0 goes on to infinity
            bias.add_(torch.where(slope == 0, 0.0, slope * local))


class _Tile(NamedTuple):
    """Rows i0 .. i1 - 1 of heads h0 .. h1 - 1 of the batch element b."""

    b: int
    heads: slice
    rows: slice
    bias: Tensor  # (h1 - h0, i1 - i0, N)
    cells: Tensor  # (i1 - i0, N); of diagonals (1, M + N - 1)
    local: Tensor
    of_diagonals: bool = False  # then the last row comes first

    def of(self, array: Tensor) -> Tensor:
        """What of an array (B, H, M, D) belongs to the rows of the bias."""
        part = array[self.b, self.heads, self.rows]
        return part.flip(-2) if self.of_diagonals else part

    def shared(self, array: Tensor, H: int) -> Tensor:
        """Keys or values (h1 - h0, N, D) of an array (B, Hk, N, D)."""
        return array[self.b, self.heads if array.shape[1] == H else self.which(array.shape[1], H)]

    def which(self, Hk: int, H: int) -> list[int]:
        """The heads of the keys that these heads read."""
        return [h * Hk // H for h in range(self.heads.start, self.heads.stop)]

    def put(self, rows: Tensor, into: Tensor) -> None:
        into[self.b, self.heads, self.rows] = rows.flip(-2) if self.of_diagonals else rows


def _tiles(lines: _Lines, places: list[Tensor], hidden: Maybe, *, backward: bool, move: bool) -> Iterator[_Tile]:
    """The bias and the mask, tile by tile; positions that ``move`` need the offsets one by one."""
    H, M, N = lines.values.shape[0], places[0].shape[-1], places[1].shape[-1]
    most = SCORES_BACKWARD if backward else SCORES_PER_TILE
    rows = min(max(1, M), max(LEAST_ROWS, min(MOST_ROWS, most // max(1, N))))
    heads = min(H, max(1, most // max(1, rows * N)))
    same = all(at.shape[0] == 1 or at.stride(0) == 0 for at in places)
    offsets = None if move else _offsets_of_each(places, same=same)
    if offsets is None:
        return _filled(lines, places, hidden, rows, heads, same=same)
    if hidden is None and not backward:
        rows, heads = ROWS_OF_A_VIEW, H
    return _along_diagonals(lines, offsets, N, hidden, rows, heads)


def _offsets_of_each(places: list[Tensor], *, same: bool) -> list[Tensor] | None:
    """The offsets (M + N - 1,) of each element of the batch, if the bias of every one is the same along diagonals."""
    found: list[Tensor] = []
    for queries, values in zip(*places, strict=True):
        offsets = found[0] if same and found else offsets_in_steps(queries, values)
        if offsets is None:
            return None
        found.append(offsets)
    return found or None


def _filled(
    lines: _Lines, places: list[Tensor], hidden: Maybe, rows: int, heads: int, *, same: bool
) -> Iterator[_Tile]:
    """Each is overwritten by the next."""
    (B, M), N, H = places[0].shape, places[1].shape[-1], lines.values.shape[0]
    cells = places[0].new_empty((rows, N), dtype=torch.int64)
    local = lines.values.new_empty((rows, N))
    slab, taken = lines.values.new_empty((2, heads, rows, N))
    finite = all(bool(torch.isfinite(at).all()) for at in places)
    for i0, i1 in tiles(M, rows):
        size = i1 - i0
        for b in range(B):
            if b == 0 or not same:
                _locate(lines, places[0][b, i0:i1], places[1][b], cells[:size], local[:size])
            for h0, h1 in tiles(H, heads):
                some, bias = slice(h0, h1), slab[: h1 - h0, :size]
                lines.fill(some, cells[:size], local[:size], bias, taken[: h1 - h0, :size], finite=finite)
                if hidden is not None:
                    bias.masked_fill_(~hidden[b, some, i0:i1], -math.inf)
                yield _Tile(b, some, slice(i0, i1), bias, cells[:size], local[:size])


def _along_diagonals(
    lines: _Lines, offsets: list[Tensor], N: int, hidden: Maybe, rows: int, heads: int
) -> Iterator[_Tile]:
    """Each is a view of the bias at the offsets, or a copy where there is a mask."""
    H, length = lines.values.shape[0], offsets[0].shape[0]
    for b, at in enumerate(offsets):
        if b == 0 or at is not offsets[b - 1]:
            cells, local = at.new_empty((1, length), dtype=torch.int64), lines.values.new_empty((1, length))
            _locate(lines, at.new_zeros(1), at, cells, local)
            diagonals, slope = lines.values.new_empty((2, H, 1, length))
            lines.fill(slice(0, H), cells, local, diagonals, slope, finite=True)
        for i0, i1 in tiles(length - N + 1, rows):
            for h0, h1 in tiles(H, heads):
                some, of_rows = slice(h0, h1), slice(i0, i1)
                bias = turned(diagonals[some, 0], (i0, i1), N)
                if hidden is not None:
                    bias = bias.masked_fill(~hidden[b, some, of_rows].flip(-2), -math.inf)
                yield _Tile(b, some, of_rows, bias, cells, local, of_diagonals=True)


def _locate(lines: _Lines, queries: Tensor, values: Tensor, cells: Tensor, local: Tensor) -> None:
    """Write the cells and the distances from their anchors, for queries (rows,) and values (N,)."""
    knots, N = lines.knots, values.shape[0]
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
        local[i0:i1] = t.sub_(lines.anchors[cells[i0:i1]])


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
    lines, places = _Lines(knots, anchors, values, slopes), [query_positions, value_positions]
    for tile in _tiles(lines, places, hidden, backward=False, move=False):
        q, (k, v) = tile.of(query), (tile.shared(array, query.shape[1]) for array in (key, value))
        rows = scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=tile.bias[None], scale=scale)
        tile.put(rows[0], output)
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
    moved = [torch.zeros_like(at, memory_format=torch.contiguous_format) for at in (query_positions, value_positions)]
    moved[1] = moved[1] if values_move else moved[1][:, :0].clone()
    lines, places = _Lines(knots, anchors, values, slopes), [query_positions, value_positions]
    for tile in _tiles(lines, places, hidden, backward=True, move=queries_move or values_move):
        q, do, o = (tile.of(array) for array in (query, cotangent, output))
        k, v = (tile.shared(array, H) for array in (key, value))
        scores = torch.baddbmm(tile.bias, q, k.mT, alpha=scale)
        empty = (scores == -math.inf).all(-1, keepdim=True)
        weights = torch.softmax(scores, -1).masked_fill_(empty, 0.0)  # (h, rows, N)
        do = do.masked_fill(empty, 0.0)
        d_value = weights.mT @ do
        d_scores = (do @ v.mT).sub_((do * o).sum(-1, keepdim=True)).mul_(weights)
        d_scores.masked_fill_(weights == 0, 0.0)  # 0 times what is not finite: nothing flows where nothing is read
        tile.put(scale * (d_scores @ k), found[0])
        shared = torch.tensor(tile.which(Hk, H))
        found[1][tile.b].index_add_(0, shared, scale * (d_scores.mT @ q))
        found[2][tile.b].index_add_(0, shared, d_value)
        if tile.of_diagonals:
            _of_diagonals(tile, d_scores, tables)
        else:
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


def _of_diagonals(tile: _Tile, d_scores: Tensor, tables: list[Tensor]) -> None:
    """Add what the scores of a tile give to the numbers of the lines, where positions do not move."""
    sums = d_scores.new_zeros((d_scores.shape[0], tile.cells.shape[1]), dtype=torch.float64)
    add_along(sums, (tile.rows.start, tile.rows.stop), d_scores)
    at = tile.cells.expand(sums.shape)
    tables[0][tile.heads] += torch.zeros_like(tables[0][tile.heads]).scatter_add_(1, at, sums)
    far = torch.where(sums == 0, 0.0, sums * tile.local)
    tables[1][tile.heads] += torch.zeros_like(tables[1][tile.heads]).scatter_add_(1, at, far)


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
