"""Sums over the cells of a position bias in the backward kernel: the gradients of its slopes and lines."""

from __future__ import annotations

import triton
import triton.language as tl

from ._triton_tile import FOLDED, SEARCH, count_below, sums_of_eight

__all__ = ["TABLES", "part_sums"]

INFINITY = tl.constexpr(float("inf"))
TABLES = tl.constexpr(4)  # of a program, for its warps; one where rows are few


@triton.jit
def part_sums(
    ds, x, p, first, count, edges, slopes, sums, apart, table, STEPS: tl.constexpr, KIND: tl.constexpr,
):  # fmt: skip
    """Sums of ds times the slope, eight for each row; adds the sums of ds and of ds t over each cell to tables.

    The tables are the program's own, with ``table`` numbers for each of four warps (one, where rows are few), and those
    of the other sum lie ``apart`` numbers behind them.
    """
    if KIND == FOLDED:  # x and p are small
        rows = sums_of_eight(ds)
        moved = rows * tl.load(slopes + first)
        _add(sums, apart, table, first, rows, sums_of_eight(ds * x) - rows * p)
    elif KIND == SEARCH:
        moved = _sums_by_search(ds, x - p, edges, slopes, sums, apart, table, STEPS)
    else:
        moved = _sums_between_edges(ds, x - p, first, count, edges, slopes, sums, apart, table)
    return moved


@triton.jit
def _sums_by_search(ds, t, edges, slopes, sums, apart, table, STEPS: tl.constexpr):
    far = tl.where(ds == 0.0, 0.0, ds * t)  # 0 times what is not finite
    cell = count_below(t, edges, STEPS)
    for c in range(tl.min(tl.min(cell, 1), 0), tl.max(tl.max(cell, 1), 0) + 1):
        here, there = tl.where(cell == c, ds, 0.0), tl.where(cell == c, far, 0.0)
        _add(sums, apart, table, c, sums_of_eight(here), sums_of_eight(there))
    return sums_of_eight(ds * tl.load(slopes + cell))


@triton.jit
def _sums_between_edges(ds, t, first, count, edges, slopes, sums, apart, table):
    """Cell by cell: what is in a steep one is little, and would be lost in differences of sums over all."""
    low, moved = -INFINITY, tl.zeros((ds.shape[0], 8), tl.float32)
    if count > 0:
        for cell in tl.range(first, first + count):
            high = tl.load(edges + cell)
            moved += _sums_of_cell(ds, t, low, high, cell, slopes, sums, apart, table)
            low = high
    return moved + _sums_of_cell(ds, t, low, INFINITY, first + count, slopes, sums, apart, table)


@triton.jit
def _sums_of_cell(ds, t, low, high, cell, slopes, sums, apart, table):
    inside = tl.where((t > low) & (t <= high), ds, 0.0)
    rows = sums_of_eight(inside)
    _add(sums, apart, table, cell, rows, sums_of_eight(inside * t))
    return rows * tl.load(slopes + cell)


@triton.jit
def _add(sums, apart, table, cell, rows, far):
    """Add both sums, in a table for each warp: crossing from warp to warp would make all of them wait.

    So would a tensor of two numbers for each warp, which the compiler gives to one of them: each lane has one here.
    The additions are atomic not because others add to these numbers, but because one thread then makes them all, in
    order.
    """
    both = _of_warps(tl.join(rows, far))
    COPIES: tl.constexpr = both.shape[0]
    lane = tl.arange(0, 32 * COPIES)
    spread = tl.reshape(tl.broadcast_to(both[:, None, :], (COPIES, 16, 2)), (32 * COPIES,))
    at = sums + cell + (lane // 32) * table + (lane % 2) * apart
    tl.atomic_add(at, spread, mask=lane % 32 < 2, sem="relaxed")


@triton.jit
def _of_warps(numbers):
    """Sums over the rows that each of four warps has, 16 of 64."""
    ROWS: tl.constexpr = numbers.shape[0]
    WIDTH: tl.constexpr = numbers.shape[1]
    KINDS: tl.constexpr = numbers.shape[2]
    COPIES: tl.constexpr = TABLES if ROWS >= 16 * TABLES else 1
    OWN: tl.constexpr = 16 if ROWS >= 16 * TABLES else ROWS
    return tl.sum(tl.sum(tl.reshape(numbers, (ROWS // (COPIES * OWN), COPIES, OWN * WIDTH, KINDS)), 2), 0)
