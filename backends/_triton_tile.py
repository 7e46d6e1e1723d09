"""What the kernels for GPUs share: the bias in a tile of scores, weights that meet values, and which cells a tile has.

A position bias is lines between edges: cell c holds the offsets t with ``edges[c - 1] < t <= edges[c]``, and there the
bias is ``slopes[c] t + lines[c]``. The offsets of a tile of sorted positions span little, so most tiles lie in one
cell. Before a kernel runs, the tiles of each of its blocks are put in order of what their bias takes:

=====  =======================  =================================================================================
kind   edges in a tile          how the bias is found
=====  =======================  =================================================================================
0      none, far from 0         one line, as a number for each column and one for each row: nothing for each score
1      one or none              the first cell's line, replaced at the offsets that pass an edge, edge by edge
2      up to four               likewise
3      up to ``FEW``            likewise
4      more                     likewise, in a loop
5      an offset is not finite  a search of the table for every offset
=====  =======================  =================================================================================

A kernel has a loop for each kind. A branch in one loop over all tiles costs more than what it saves: the compiler then
lays the scores out twice, and computes two of every exponential, or moves the bias through shared memory.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = [
    "ANY",
    "FEW",
    "FOLDED",
    "KINDS",
    "MOST_EDGES",
    "PIPED",
    "SEARCH",
    "bias_in_tile",
    "count_below",
    "order_tiles",
    "part_sums",
    "parts_of",
    "product",
    "weighted_sum",
]

# In place of a number of edges: none, and far from 0; any number; any number, and offsets that are not finite.
FOLDED = tl.constexpr(-1)
ANY = tl.constexpr(-2)
SEARCH = tl.constexpr(-3)
# Edges that are taken one by one; the tables are longer than the cells by more than so many.
FEW = tl.constexpr(8)
# Of each kind; loops over the first ``PIPED`` load tiles ahead.
MOST_EDGES = tl.constexpr((-1, 1, 4, 8, -2, -3))
KINDS = tl.constexpr(6)
PIPED = tl.constexpr(4)
INFINITY = tl.constexpr(float("inf"))
# The interpreter multiplies the bits of bfloat16 as if they were whole numbers; in float32 the products are the same.
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def count_below(t, edges, STEPS: tl.constexpr):
    """How many edges lie below each number: its cell. There are ``2 ** STEPS - 1``, the last ones infinite."""
    cell = tl.zeros(t.shape, tl.int32)
    size = 1 << (STEPS - 1)
    for _ in range(STEPS):
        probe = cell + size
        cell = tl.where(t > tl.load(edges + probe - 1), probe, cell)
        size = size // 2
    return cell


@triton.jit
def _kinds_of_tiles(tile, tiles, low, high, others, length, edges, wild, LENGTH: tl.constexpr, STEPS: tl.constexpr,
                    KEYS: tl.constexpr):  # fmt: skip
    """First cell, edges and kind of some tiles against a block whose positions reach from ``low`` to ``high``."""
    at = tl.minimum(tile[:, None] * LENGTH + tl.arange(0, LENGTH)[None, :], length - 1)
    there = tl.load(others + at)  # (TILES, LENGTH)
    if KEYS:  # the block is of keys, the tiles are of queries
        least, most = low - tl.max(there, 1), high - tl.min(there, 1)
    else:
        least, most = tl.min(there, 1) - high, tl.max(there, 1) - low
    wild += tl.max(tl.where(tl.abs(there) < INFINITY, 0, 1), 1)
    wild += tl.where((tl.abs(least) < INFINITY) & (tl.abs(most) < INFINITY), 0, 1)
    first = count_below(least, edges, STEPS)
    count = count_below(most, edges, STEPS) - first
    # Twice as near as far at most: positions counted from one of the tile's are then no larger than its offsets are.
    far = tl.where(least > 0.0, 2.0 * least >= most, 2.0 * most <= least)
    kind = tl.where((count > 0) | (far == 0), 1, 0)
    for more in tl.static_range(1, PIPED):
        kind += tl.where(count > MOST_EDGES[more], 1, 0)
    kind = tl.where(wild > 0, KINDS - 1, kind)
    return first, count, tl.where(tile < tiles, kind, KINDS)


@triton.jit(do_not_specialize=["own_stride", "others_stride", "own_length", "length", "tiles"])
def order_tiles(
    own, others, edges, order, ends, own_stride, others_stride, own_length, length, tiles,
    BLOCK: tl.constexpr, LENGTH: tl.constexpr, TILES: tl.constexpr, STEPS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """The tiles of a block, kind by kind, and where each kind ends; ``LENGTH`` positions a tile, ``TILES`` at a time.

    An entry of 64 bits is the tile's number, in the lower 32 bits how many edges it has, and in the lower 16 its first
    cell.
    """
    block, blocks, b = tl.program_id(0), tl.num_programs(0), tl.program_id(1).to(tl.int64)
    mine = tl.load(own + b * own_stride + tl.minimum(block * BLOCK + tl.arange(0, BLOCK), own_length - 1))
    low, high = tl.min(mine, 0), tl.max(mine, 0)
    wild = tl.max(tl.where(tl.abs(mine) < INFINITY, 0, 1), 0)
    others += b * others_stride
    order += (b * blocks + block) * tiles
    ends += (b * blocks + block) * KINDS
    end = 0
    for kind in tl.static_range(KINDS):
        for start in range(0, tiles, TILES):
            tile = start + tl.arange(0, TILES)
            first, count, its = _kinds_of_tiles(
                tile, tiles, low, high, others, length, edges, wild, LENGTH, STEPS, KEYS
            )  # fmt: skip
            here = tl.where(its == kind, 1, 0)
            entry = (tile.to(tl.int64) << 32) | (count.to(tl.int64) << 16) | first
            tl.store(order + end + tl.cumsum(here, 0) - 1, entry, mask=here > 0)
            end += tl.sum(here, 0)
        tl.store(ends + kind, end)


@triton.jit
def parts_of(entry):
    """Number, first cell and edges of a tile."""
    return (entry >> 32).to(tl.int32), (entry & 0xFFFF).to(tl.int32), ((entry >> 16) & 0xFFFF).to(tl.int32)


@triton.jit
def bias_in_tile(x, p, first, count, edges, slopes, lines, STEPS: tl.constexpr, MOST: tl.constexpr):
    """The bias of one head, and its slope, at the offsets ``x - p`` of a tile of ``count`` edges, from ``first`` on."""
    t = x - p
    if MOST == SEARCH:
        cell = count_below(t, edges, STEPS)
        slope = tl.load(slopes + cell)
        # A line of slope 0 goes on to infinity; nan stays what it is.
        bias = tl.where((slope == 0.0) & (t == t), 0.0, slope * t) + tl.load(lines + cell)
    else:
        slope = tl.zeros(t.shape, tl.float32) + tl.load(slopes + first)
        bias = slope * t + tl.load(lines + first)
        if MOST == ANY:
            for cell in tl.range(first, first + count):
                bias, slope = _past_edge(bias, slope, t, cell, edges, slopes, lines)
        else:
            for k in tl.static_range(MOST):
                bias, slope = _past_edge(bias, slope, t, first + k, edges, slopes, lines)
    return bias, slope


@triton.jit
def _past_edge(bias, slope, t, cell, edges, slopes, lines):
    """The line of the cell after this one, at offsets beyond the edge between them."""
    after = tl.load(slopes + cell + 1)
    beyond = t > tl.load(edges + cell)
    return tl.where(beyond, after * t + tl.load(lines + cell + 1), bias), tl.where(beyond, after, slope)


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
def part_sums(
    ds, x, p, first, count, edges, slopes, sums, apart, STEPS: tl.constexpr, MOST: tl.constexpr,
):  # fmt: skip
    """Row sums of ds times the slope; adds the sums of ds and of ds t over each cell to the program's own tables.

    The second table lies ``apart`` numbers behind the first. The additions are atomic not because others add to these
    rows, but because one thread then makes them all, in order.
    """
    if MOST == FOLDED:  # x and p are small
        rows = tl.sum(ds, 1)
        moved = rows * tl.load(slopes + first)
        # p has one column
        _add(sums, apart, first, rows, tl.sum(ds * x, 1) - rows * tl.sum(p, 1))
    elif MOST == SEARCH:
        t = x - p
        far = tl.where(ds == 0.0, 0.0, ds * t)  # 0 times what is not finite
        cell = count_below(t, edges, STEPS)
        moved = tl.sum(ds * tl.load(slopes + cell), 1)
        for c in range(tl.min(tl.min(cell, 1), 0), tl.max(tl.max(cell, 1), 0) + 1):
            here, there = tl.where(cell == c, ds, 0.0), tl.where(cell == c, far, 0.0)
            _add(sums, apart, c, tl.sum(here, 1), tl.sum(there, 1))
    else:
        t = x - p
        moved = tl.sum(ds, 1) * 0.0
        if MOST == ANY:
            for cell in tl.range(first, first + count + 1):
                moved += _sums_of_cell(ds, t, cell, first, edges, slopes, sums, apart)
        else:
            for k in tl.static_range(MOST + 1):
                if k <= count:
                    moved += _sums_of_cell(ds, t, first + k, first, edges, slopes, sums, apart)
    return moved


@triton.jit
def _sums_of_cell(ds, t, cell, first, edges, slopes, sums, apart):
    """What one cell adds: below the tile's first and beyond its last cell there is nothing."""
    low = tl.where(cell == first, -INFINITY, tl.load(edges + tl.maximum(cell - 1, 0)))
    inside = tl.where((t > low) & (t <= tl.load(edges + cell)), ds, 0.0)
    rows = tl.sum(inside, 1)
    _add(sums, apart, cell, rows, tl.sum(inside * t, 1))
    return rows * tl.load(slopes + cell)


@triton.jit
def _add(sums, apart, cell, rows, far_rows):
    """Both sums at once: each crossing from warp to warp makes all of them wait."""
    both = tl.sum(tl.join(rows, far_rows), 0)
    tl.atomic_add(sums + cell + tl.arange(0, 2) * apart, both, sem="relaxed")
