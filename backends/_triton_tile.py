"""What the kernels for GPUs share: the bias in a tile of scores, weights that meet values, and which cells a tile has.

A position bias is lines between edges: cell c holds the offsets t with ``edges[c - 1] < t <= edges[c]``, and there the
bias is ``slopes[c] t + lines[c]``. The offsets of a tile of sorted positions span little, so most tiles lie in one
cell. Before a kernel runs, the tiles of each of its blocks are put in order of what their bias takes, and it has a loop
for each kind:

==========  ============================  =========================================================================
kind        tiles                         how the bias is found
==========  ============================  =========================================================================
``FOLDED``  no edge, far from 0, a bias   one line, as a number for each column and one for each row
            of moderate size
``EDGES``   other finite offsets          the line of its cell, in place of the one before beyond the edge between
``SEARCH``  an offset is not finite       a search of the table for every offset
==========  ============================  =========================================================================

In one loop for all tiles the compiler would lay the scores out twice. The loop over edges stands behind a branch: so
the compiler still takes the loop around it for the innermost one, and loads tiles ahead.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = [
    "EDGES",
    "FOLDED",
    "KINDS",
    "PLAIN",
    "SEARCH",
    "SPARE",
    "bias_in_tile",
    "count_below",
    "line_of_tile",
    "parts_of",
    "product",
    "row_zeros",
    "sums_of_eight",
    "weighted_sum",
]

PLAIN = tl.constexpr(-1)  # no bias of positions
FOLDED = tl.constexpr(0)
EDGES = tl.constexpr(1)
SEARCH = tl.constexpr(2)
KINDS = tl.constexpr(3)
SPARE = tl.constexpr(2)  # by so many the tables are longer than the cells
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
def parts_of(entry):
    """Number, first cell and edges of a tile."""
    return (entry >> 32).to(tl.int32), (entry & 0xFFFF).to(tl.int32), ((entry >> 16) & 0xFFFF).to(tl.int32)


@triton.jit
def line_of_tile(entry, slopes, lines, places, LENGTH: tl.constexpr):
    """Slope and line of a tile's first cell, and the tile's first position."""
    tile, first, _ = parts_of(entry)
    return tl.load(slopes + first), tl.load(lines + first), tl.load(places + tile * (2 * LENGTH))


@triton.jit
def bias_in_tile(t, first, count, edges, slopes, lines, STEPS: tl.constexpr, KIND: tl.constexpr):
    """The bias of one head at offsets ``t``, and its slopes there.

    ``count`` edges lie among the offsets, from the one behind cell ``first`` on. Each offset gets the line of its own
    cell: sums of changes of slope would be shorter, and lose a flat cell beside a steep one.
    """
    if KIND == SEARCH:
        cell = count_below(t, edges, STEPS)
        slope = tl.load(slopes + cell)
        # A line of slope 0 goes on to infinity; nan stays what it is.
        bias = tl.where((slope == 0.0) & (t == t), 0.0, slope * t) + tl.load(lines + cell)
    else:
        slope = tl.zeros(t.shape, tl.float32) + tl.load(slopes + first)
        bias = slope * t + tl.load(lines + first)
        if count > 0:
            edge, after, line = _edge_behind(first, edges, slopes, lines)
            for cell in tl.range(first, first + count):
                beyond = t > edge
                bias = tl.where(beyond, after * t + line, bias)
                slope = tl.where(beyond, after, slope)
                edge, after, line = _edge_behind(cell + 1, edges, slopes, lines)
    return bias, slope


@triton.jit
def _edge_behind(cell, edges, slopes, lines):
    """The edge behind a cell, and slope and line beyond it."""
    return tl.load(edges + cell), tl.load(slopes + cell + 1), tl.load(lines + cell + 1)


@triton.jit
def sums_of_eight(tile):
    """Eight sums for each row, of each eighth column: threads hold some of each, and need nothing of one another.

    Long sums in one number would also wait for every addition before the next.
    """
    return tl.sum(tl.reshape(tile, (tile.shape[0], tile.shape[1] // 8, 8)), 1)


@triton.jit
def product(a, b, acc):
    """``acc + a b``, summed in float32; float32 without reduced products (IA-P-02)."""
    if INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def row_zeros(q, COLUMNS: tl.constexpr):
    """A zero for each row, laid out over the threads as rows of scores are.

    What is added to it is laid out so too: else the compiler moves numbers of rows through shared memory, tile by tile.
    """
    none = tl.zeros((q.shape[1], COLUMNS), q.dtype)
    sums = tl.sum(product(q, none, tl.zeros((q.shape[0], COLUMNS), tl.float32)), 1)
    return tl.where(sums == 0.0, sums, 0.0)  # nan, of what is infinite


@triton.jit
def _as_half(numbers, half):
    """The nearest numbers that a half holds, still in float32: of bfloat16 by their bits, for conversions are slow."""
    if half.dtype == tl.bfloat16:
        bits = numbers.to(tl.int32, bitcast=True)
        near = ((bits + 0x8000) & -0x10000).to(tl.float32, bitcast=True)
    else:
        near = numbers.to(half.dtype).to(tl.float32)
    return near


@triton.jit
def weighted_sum(p, v, acc, PARTS: tl.constexpr):
    """``acc + p v``: in float32 for no parts, else with p as the sum of so many numbers of v's dtype."""
    if PARTS == 0:
        acc = product(p, v.to(tl.float32), acc)
    elif PARTS == 1:
        acc = product(p.to(v.dtype), v, acc)
    else:
        high = _as_half(p, v)
        acc = product(high.to(v.dtype), v, acc)
        rest = p - high
        if PARTS > 2:
            low = _as_half(rest, v)
            acc = product(low.to(v.dtype), v, acc)
            rest -= low
        acc = product(rest.to(v.dtype), v, acc)
    return acc
