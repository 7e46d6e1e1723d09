"""The bias of ``torch-lines``, a tile at a time: filled in, or a view where it is the same along diagonals.

A tile is some rows of some heads of an element of the batch. It knows which part of an array belongs to its rows, and
where the gradients of its scores go.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from ._tiled import tiles
from ._torch_diagonals import add_along, diagonals_of, offsets_in_steps, turned

__all__ = ["Lines", "Sums", "Tile", "tiles_of"]

Maybe: TypeAlias = Tensor | None

# Twice as many are a little faster on two cores, and take more than 64 MiB beside 32768 values.
SCORES_PER_TILE = 2**21
MOST_ROWS, LEAST_ROWS = 1024, 64
# Backward, where several arrays of a tile are read one after the other, smaller ones stay in the cache.
SCORES_BACKWARD = 2**20
# Of a view, which PyTorch's fused kernel reads in all heads: queries and output alone are copied, to turn them.
ROWS_OF_A_VIEW = 2048
# Cells and distances are found for so many offsets at a time, which stay in the cache in float64.
OFFSETS = 2**18


class Lines(NamedTuple):
    """What a bias is made of, apart from its positions."""

    knots: Tensor  # (K,)
    anchors: Tensor  # (2 K + 1,)
    values: Tensor  # (H, 2 K + 1)
    slopes: Tensor  # (H, 2 K + 1)

    def fill(self, heads: slice, cells: Tensor, local: Tensor, bias: Tensor, slope: Tensor, *, finite: bool) -> None:
        """Write bias and slopes (h, rows, N) where cells and distances are (rows, N)."""
        at = cells.expand(bias.shape)
        for table, out in ((self.values, bias), (self.slopes, slope)):
            torch.gather(table[heads, None, :].expand(*bias.shape[:2], table.shape[-1]), 2, at, out=out)
        if finite:
            bias.addcmul_(slope, local)
        else:  # a line of slope 0 goes on to infinity
            bias.add_(torch.where(slope == 0, 0.0, slope * local))


class Sums(NamedTuple):
    """Where gradients are added: of the values and slopes of the lines (H, 2 K + 1), of positions (B, M) and (B, N)."""

    values: Tensor
    slopes: Tensor
    queries: Tensor | None  # None where they do not move
    at_values: Tensor | None


@dataclass(frozen=True)
class Tile:
    """Some rows of some heads of the element b of the batch, and the bias (h, rows, N) there."""

    b: int
    heads: slice
    rows: slice
    bias: Tensor

    def of(self, array: Tensor) -> Tensor:
        """The rows (h, rows, D) of an array (B, H, M, D), in the order of those of the bias."""
        return array[self.b, self.heads, self.rows]

    def put(self, rows: Tensor, array: Tensor) -> None:
        """Write the rows (h, rows, D) of an array (B, H, M, D), given in the order of those of the bias."""
        array[self.b, self.heads, self.rows] = rows

    def key_heads(self, Hk: int, H: int) -> list[int]:
        """The heads of the keys that these heads read."""
        return [h * Hk // H for h in range(self.heads.start, self.heads.stop)]

    def of_keys(self, array: Tensor, H: int) -> Tensor:
        """What these heads read (h, N, D) of keys or values (B, Hk, N, D)."""
        Hk = array.shape[1]
        return array[self.b, self.heads if Hk == H else self.key_heads(Hk, H)]

    def add(self, d_scores: Tensor, lines: Lines, sums: Sums) -> None:
        """Add what the scores (h, rows, N) of the tile give to the lines and to the positions."""
        raise NotImplementedError


@dataclass(frozen=True)
class FilledTile(Tile):
    """One whose every offset was looked up."""

    cells: Tensor  # (rows, N)
    local: Tensor

    def add(self, d_scores: Tensor, lines: Lines, sums: Sums) -> None:
        here = lines.slopes[self.heads]
        at = self.cells.expand(d_scores.shape)
        of_cells = d_scores.new_zeros((*d_scores.shape[:2], here.shape[-1]))
        by_row = of_cells.scatter_add(2, at, d_scores).double()
        sums.values[self.heads] += by_row.sum(1)
        if sums.queries is not None:
            sums.queries[self.b, self.rows] -= torch.einsum("hic,hc->i", by_row, here.double())
        if sums.at_values is not None:
            slope = torch.gather(here[:, None, :].expand(of_cells.shape), 2, at)
            sums.at_values[self.b] += (slope * d_scores).sum((0, 1), dtype=torch.float64)
        far = torch.where(d_scores == 0, 0.0, d_scores * self.local)
        sums.slopes[self.heads] += of_cells.scatter_add_(2, at, far).sum(1, dtype=torch.float64)


class Diagonals(NamedTuple):
    """The bias of one element of the batch at its M + N - 1 offsets."""

    cells: Tensor  # (M + N - 1,)
    local: Tensor
    bias: Tensor  # (H, M + N - 1)
    slopes: Tensor


@dataclass(frozen=True)
class TurnedTile(Tile):
    """One that is a view, or was copied out of it; its last row comes first."""

    diagonals: Diagonals

    def of(self, array: Tensor) -> Tensor:
        return super().of(array).flip(-2)

    def put(self, rows: Tensor, array: Tensor) -> None:
        super().put(rows.flip(-2), array)

    def add(self, d_scores: Tensor, lines: Lines, sums: Sums) -> None:
        whole, (i0, i1), N = self.diagonals, (self.rows.start, self.rows.stop), d_scores.shape[-1]
        span = diagonals_of((i0, i1), N, whole.cells.shape[0])
        along = add_along(d_scores)  # (h, i1 - i0 + N - 1)
        at, local = whole.cells[span].expand(along.shape), whole.local[span]
        for into, numbers in ((sums.values, along), (sums.slopes, torch.where(along == 0, 0.0, along * local))):
            into[self.heads] += torch.zeros_like(into[self.heads]).scatter_add_(1, at, numbers)
        if sums.queries is None and sums.at_values is None:
            return
        moved = (d_scores * turned(whole.slopes[self.heads], (i0, i1), N)).sum(0, dtype=torch.float64)
        if sums.queries is not None:
            sums.queries[self.b, self.rows] -= moved.sum(1).flip(0)
        if sums.at_values is not None:
            sums.at_values[self.b] += moved.sum(0)


def tiles_of(lines: Lines, places: list[Tensor], hidden: Maybe, *, backward: bool) -> Iterator[Tile]:
    """The bias and the mask at positions (B, M) and (B, N), tile by tile; a filled one is overwritten by the next."""
    H, M, N = lines.values.shape[0], places[0].shape[-1], places[1].shape[-1]
    most = SCORES_BACKWARD if backward else SCORES_PER_TILE
    rows = min(max(1, M), max(LEAST_ROWS, min(MOST_ROWS, most // max(1, N))))
    heads = max(1, min(H, most // max(1, rows * N)))
    same = all(at.shape[0] == 1 or at.stride(0) == 0 for at in places)
    offsets = _offsets_of_each(places, same=same)
    if offsets is None:
        return _filled(lines, places, hidden, rows, heads, same=same)
    # PyTorch's other kernel holds the scores.
    if hidden is None and not backward and torch.backends.cuda.flash_sdp_enabled():
        rows, heads = ROWS_OF_A_VIEW, max(1, H)
    return _turned(lines, offsets, N, hidden, rows, heads)


def _offsets_of_each(places: list[Tensor], *, same: bool) -> list[Tensor] | None:
    """The offsets of each element of the batch; None if the bias of one is not the same along diagonals.

    ``same`` positions have those of the first.
    """
    found: list[Tensor] = []
    for queries, values in zip(*places, strict=True):
        offsets = found[0] if same and found else offsets_in_steps(queries, values)
        if offsets is None:
            return None
        found.append(offsets)
    return found or None  # without a batch there is nothing to view


def _filled(
    lines: Lines, places: list[Tensor], hidden: Maybe, rows: int, heads: int, *, same: bool
) -> Iterator[FilledTile]:
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
                yield FilledTile(b, some, slice(i0, i1), bias, cells[:size], local[:size])


def _turned(lines: Lines, offsets: list[Tensor], N: int, hidden: Maybe, rows: int, heads: int) -> Iterator[TurnedTile]:
    H, M = lines.values.shape[0], offsets[0].shape[0] - N + 1
    for b, at in enumerate(offsets):
        if b == 0 or at is not offsets[b - 1]:
            whole = _along(lines, at)
        for i0, i1 in tiles(M, rows):
            for h0, h1 in tiles(H, heads):
                some, of_rows = slice(h0, h1), slice(i0, i1)
                bias = turned(whole.bias[some], (i0, i1), N)
                if hidden is not None:
                    bias = bias.masked_fill(~hidden[b, some, of_rows].flip(-2), -math.inf)
                yield TurnedTile(b, some, of_rows, bias, whole)


def _along(lines: Lines, offsets: Tensor) -> Diagonals:
    """The bias at finite offsets, which are those of one query at 0."""
    H, length = lines.values.shape[0], offsets.shape[0]
    cells, local = offsets.new_empty((1, length), dtype=torch.int64), lines.values.new_empty((1, length))
    _locate(lines, offsets.new_zeros(1), offsets, cells, local)
    bias, slopes = lines.values.new_empty((2, H, 1, length))
    lines.fill(slice(0, H), cells, local, bias, slopes, finite=True)
    return Diagonals(cells[0], local[0], bias[:, 0], slopes[:, 0])


def _locate(lines: Lines, queries: Tensor, values: Tensor, cells: Tensor, local: Tensor) -> None:
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
