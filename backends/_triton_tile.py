"""What the kernels for GPUs share: the bias in a tile of scores, weights that meet values, and which cells a tile has.

A position bias is lines between edges: cell c holds the offsets t with ``edges[c - 1] < t <= edges[c]``, and there the
bias is ``slopes[c] t + lines[c]``. The offsets of a tile of sorted positions span little, so most tiles lie in one cell,
and cost one fused multiplication for each score. A tile's code says how many edges it holds and its first cell:

==================  ===========================================================================================
edges in the tile   how the bias is found
==================  ===========================================================================================
none                one line
one or two, few     the first cell's line, replaced at the offsets that pass an edge, edge by edge
more                a search of the table for every offset; so too where an offset of the tile is not finite
==================  ===========================================================================================

Every kernel goes over its tiles twice, for the last kind in a loop of its own: a search reads memory, and with it in the
first loop the compiler would lay out scores as memory is, and would not load ahead.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["FEW", "IRREGULAR", "add_bias", "classify", "count_below", "part_sums", "part_sums_by_search", "product", "slopes_times", "weighted_sum"]

# Edges that are taken one by one; the tables are longer than the cells by so many.
FEW = tl.constexpr(8)
# What stands for the number of edges where an offset is not finite.
IRREGULAR = tl.constexpr(0x7FFF)
INFINITY = tl.constexpr(float("inf"))
# The interpreter multiplies the bits of bfloat16 as if they were whole numbers; in float32 the products are the same.
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def count_below(t, edges, STEPS: tl.constexpr):
    """How many edges lie below each number: its cell. There are ``2 ** STEPS - 1``, the last ones infinite."""
    cell = tl.zeros(t.shape, tl.int32)
    for step in tl.static_range(STEPS):
        probe = cell + (1 << (STEPS - 1 - step))
        cell = tl.where(t > tl.load(edges + probe - 1), probe, cell)
    return cell


@triton.jit
def classify(
    query_positions, value_positions, edges, codes, query_stride, value_stride, M, N, tiles,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, TILES: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """Write the code of every tile of ``ROWS`` queries and ``COLUMNS`` values, ``TILES`` of them in a program."""
    block, part, b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    i = tl.minimum(block * ROWS + tl.arange(0, ROWS), M - 1)
    p = tl.load(query_positions + b * query_stride + i)  # (ROWS,)
    tile = part * TILES + tl.arange(0, TILES)
    j = tl.minimum(tile[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :], N - 1)
    x = tl.load(value_positions + b * value_stride + j)  # (TILES, COLUMNS)
    low = tl.min(x, 1) - tl.max(p, 0)
    high = tl.max(x, 1) - tl.min(p, 0)
    wild = tl.max(tl.where(tl.abs(x) < INFINITY, 0, 1), 1) + tl.max(tl.where(tl.abs(p) < INFINITY, 0, 1), 0)
    wild += tl.where(tl.abs(low) < INFINITY, 0, 1) + tl.where(tl.abs(high) < INFINITY, 0, 1)
    first = count_below(low, edges, STEPS)
    count = count_below(high, edges, STEPS) - first
    code = tl.where(wild > 0, IRREGULAR << 16, (count << 16) | first)
    tl.store(codes + (b * tl.num_programs(0) + block) * tiles + tile, code, mask=tile < tiles)


@triton.jit
def add_bias(s, x, p, code, edges, slopes, lines, STEPS: tl.constexpr, SEARCH: tl.constexpr):
    """Scores of one head with the bias at the offsets ``x - p``; ``slopes`` and ``lines`` are the head's.

    With ``SEARCH`` for tiles of many edges, without for the others; what is not asked for becomes -inf. Every branch
    forms its own offsets and its own sum: what leaves a branch would be laid out as memory is, not as scores.
    """
    first, count = code & 0xFFFF, code >> 16
    if SEARCH:
        t = x - p
        cell = count_below(t, edges, STEPS)
        slope = tl.load(slopes + cell)
        # A line of slope 0 goes on to infinity; nan stays what it is.
        s += tl.where((slope == 0.0) & (t == t), 0.0, slope * t) + tl.load(lines + cell)
    elif count == 0:
        s += tl.load(slopes + first) * (x - p) + tl.load(lines + first)
    elif count <= 2:
        s += _step_by_step(x - p, first, edges, slopes, lines, 2)
    elif count <= FEW:
        s += _step_by_step(x - p, first, edges, slopes, lines, FEW)
    else:
        s = tl.where(x > p, float("-inf"), float("-inf"))
    return s


@triton.jit
def _step_by_step(t, first, edges, slopes, lines, MOST: tl.constexpr):
    bias = tl.load(slopes + first) * t + tl.load(lines + first)
    for k in tl.static_range(MOST):
        after = tl.load(slopes + first + k + 1) * t + tl.load(lines + first + k + 1)
        bias = tl.where(t > tl.load(edges + first + k), after, bias)
    return bias


@triton.jit
def product(a, b, acc):
    """``acc + a b``, summed in float32; float32 without reduced products (IA-P-02)."""
    if INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def weighted_sum(p, v, acc, PARTS: tl.constexpr):
    """``acc + p v``: in float32 for no parts, else with p as the sum of so many numbers of v's dtype."""
    if PARTS == 0:
        acc = product(p, v.to(tl.float32), acc)
    else:
        high = p.to(v.dtype)
        acc = product(high, v, acc)
        if PARTS > 1:
            rest = p - high.to(tl.float32)
            low = rest.to(v.dtype)
            acc = product(low, v, acc)
            if PARTS > 2:
                acc = product((rest - low.to(tl.float32)).to(v.dtype), v, acc)
    return acc


@triton.jit
def part_sums(ds, x, p, code, edges, slopes, sums, far_sums):
    """Row sums of ``ds slope``; adds the sums of ds and of ds t over each cell to the program's own rows of both tables.

    For tiles of few edges: in others ds must be 0 here. The additions are atomic, not because
    others add to these rows, but because one thread then makes them all, in order.
    """
    first, count = code & 0xFFFF, code >> 16
    if count == 0:
        rows = tl.sum(ds, 1)
        moved = rows * tl.load(slopes + first)
        tl.atomic_add(sums + first, tl.sum(rows, 0), sem="relaxed")
        tl.atomic_add(far_sums + first, tl.sum(tl.sum(ds * (x - p), 1), 0), sem="relaxed")
    elif count <= 2:
        moved = _sums_step_by_step(ds, x - p, first, edges, slopes, sums, far_sums, 2)
    elif count <= FEW:
        moved = _sums_step_by_step(ds, x - p, first, edges, slopes, sums, far_sums, FEW)
    else:
        moved = tl.sum(ds, 1)  # of zeros
    return moved


@triton.jit
def _sums_step_by_step(ds, t, first, edges, slopes, sums, far_sums, MOST: tl.constexpr):
    far = ds * t
    before = t > tl.load(edges + first)
    rows = tl.sum(tl.where(before, 0.0, ds), 1)
    moved = rows * tl.load(slopes + first)
    tl.atomic_add(sums + first, tl.sum(rows, 0), sem="relaxed")
    tl.atomic_add(far_sums + first, tl.sum(tl.sum(tl.where(before, 0.0, far), 1), 0), sem="relaxed")
    for k in tl.static_range(MOST):
        cell = first + k + 1
        after = t > tl.load(edges + cell)
        inside = before & (after == 0)
        rows = tl.sum(tl.where(inside, ds, 0.0), 1)
        moved += rows * tl.load(slopes + cell)
        tl.atomic_add(sums + cell, tl.sum(rows, 0), sem="relaxed")
        tl.atomic_add(far_sums + cell, tl.sum(tl.sum(tl.where(inside, far, 0.0), 1), 0), sem="relaxed")
        before = after
    return moved


@triton.jit
def slopes_times(ds, x, p, code, edges, slopes, STEPS: tl.constexpr, SEARCH: tl.constexpr):
    """Row sums of ds times the slope at ``x - p``."""
    first, count = code & 0xFFFF, code >> 16
    if SEARCH:
        moved = tl.sum(ds * tl.load(slopes + count_below(x - p, edges, STEPS)), 1)
    elif count == 0:
        moved = tl.sum(ds, 1) * tl.load(slopes + first)
    else:
        t = x - p
        slope = tl.zeros(ds.shape, tl.float32) + tl.load(slopes + first)
        for k in tl.static_range(FEW):
            slope = tl.where(t > tl.load(edges + first + k), tl.load(slopes + first + k + 1), slope)
        moved = tl.sum(ds * slope, 1)
    return moved


@triton.jit
def part_sums_by_search(ds, x, p, edges, slopes, sums, far_sums, STEPS: tl.constexpr):
    """What :func:`part_sums` gives, for a tile of any number of edges."""
    t = x - p
    far = tl.where(ds == 0.0, 0.0, ds * t)  # 0 times what is not finite
    cell = count_below(t, edges, STEPS)
    moved = tl.sum(ds * tl.load(slopes + cell), 1)
    for c in range(tl.min(tl.min(cell, 1), 0), tl.max(tl.max(cell, 1), 0) + 1):
        here = cell == c
        tl.atomic_add(sums + c, tl.sum(tl.sum(tl.where(here, ds, 0.0), 1), 0), sem="relaxed")
        tl.atomic_add(far_sums + c, tl.sum(tl.sum(tl.where(here, far, 0.0), 1), 0), sem="relaxed")
    return moved
