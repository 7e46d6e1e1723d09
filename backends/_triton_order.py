"""The tiles of each block, put in order of what their bias takes (kinds of ``_triton_tile``), before a kernel runs."""

from __future__ import annotations

import triton
import triton.language as tl

from ._triton_tile import EDGES, FOLDED, KINDS, SEARCH, count_below

__all__ = ["order_tiles", "span_tiles"]

INFINITY = tl.constexpr(float("inf"))
SLOTS = tl.constexpr(4)  # a power of 2, more than kinds


@triton.jit
def _span(positions, at, length, LENGTH: tl.constexpr):
    """Least and largest position of a tile; nan where one is not finite."""
    there = tl.load(positions + tl.minimum(at * LENGTH + tl.arange(0, LENGTH), length - 1))
    wild = tl.max(tl.where(tl.abs(there) < INFINITY, 0, 1), 0) > 0
    return tl.where(wild, float("nan"), tl.min(there, 0)), tl.where(wild, float("nan"), tl.max(there, 0))


@triton.jit(do_not_specialize=["own_stride", "others_stride", "own_length", "length", "blocks"])
def span_tiles(
    own, others, spans, places, own_stride, others_stride, own_length, length, blocks, BLOCK: tl.constexpr,
    LENGTH: tl.constexpr,
):  # fmt: skip
    """Spans of the blocks of ``own`` positions, then those of the tiles of ``others``: (B, blocks + tiles, 2).

    And the tiles' positions, as they are and from their first on, the last one again beyond the end: (B, tiles, 2,
    LENGTH).
    """
    b, at = tl.program_id(0).to(tl.int64), tl.program_id(1)
    if at < blocks:
        low, high = _span(own + b * own_stride, at, own_length, BLOCK)
    else:
        others += b * others_stride
        low, high = _span(others, at - blocks, length, LENGTH)
        first = (at - blocks) * LENGTH
        there = tl.load(others + tl.minimum(first + tl.arange(0, LENGTH), length - 1))
        at_places = places + (b * (tl.num_programs(1) - blocks) * LENGTH + first) * 2 + tl.arange(0, LENGTH)
        tl.store(at_places, there)
        tl.store(at_places + LENGTH, there - tl.load(others + first))
    spans += (b * tl.num_programs(1) + at) * 2
    tl.store(spans, low)
    tl.store(spans + 1, high)


@triton.jit
def _kinds_of_tiles(
    tile, tiles, low, high, spans, edges, sizes, row, STEPS: tl.constexpr, KEYS: tl.constexpr, LARGEST: tl.constexpr
):
    """Least and largest offset, first cell, edges and kind of some tiles against a block from ``low`` to ``high``."""
    at = spans + tl.minimum(tile, tiles - 1) * 2
    if KEYS:  # the block is of keys, the tiles are of queries
        least, most = low - tl.load(at + 1), high - tl.load(at)
    else:
        least, most = tl.load(at) - high, tl.load(at + 1) - low
    first = count_below(least, edges, STEPS)
    count = count_below(most, edges, STEPS) - first
    # Twice as near as far at most: positions counted from one of the tile's are then no larger than its offsets are.
    far = tl.where(least > 0.0, 2.0 * least >= most, 2.0 * most <= least)
    size = tl.load(sizes + first) * tl.maximum(tl.abs(least), tl.abs(most)) + tl.load(sizes + row + first)
    kind = tl.where((count == 0) & far & (size < LARGEST), FOLDED, EDGES)
    kind = tl.where((tl.abs(least) < INFINITY) & (tl.abs(most) < INFINITY), kind, SEARCH)
    return least, most, first, count, tl.where(tile < tiles, kind, KINDS)


@triton.jit(do_not_specialize=["blocks", "tiles", "row"])
def order_tiles(
    spans, edges, sizes, order, ends, reach, blocks, tiles, row, TILES: tl.constexpr, STEPS: tl.constexpr,
    KEYS: tl.constexpr, LARGEST: tl.constexpr,
):  # fmt: skip
    """The tiles of a block, kind by kind, where each kind ends, and the least and largest offset of all.

    An entry of 64 bits is the tile's number, in the lower 32 bits how many edges it has, and in the lower 16 its first
    cell. ``TILES`` are looked at together.
    """
    b, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    spans += b * (blocks + tiles) * 2
    low, high = tl.load(spans + block * 2), tl.load(spans + block * 2 + 1)
    spans += blocks * 2
    order += (b * blocks + block) * tiles
    slot = tl.arange(0, SLOTS)
    counts = tl.zeros((SLOTS,), tl.int32)
    nearest, farthest = float("inf"), float("-inf")
    for start in range(0, tiles, TILES):
        least, most, _, _, its = _kinds_of_tiles(
            start + tl.arange(0, TILES), tiles, low, high, spans, edges, sizes, row, STEPS, KEYS, LARGEST
        )
        counts += tl.sum(tl.where(its[:, None] == slot[None, :], 1, 0), 0)
        nearest, farthest = tl.minimum(nearest, tl.min(least, 0)), tl.maximum(farthest, tl.max(most, 0))
    end = tl.cumsum(counts, 0)
    tl.store(ends + (b * blocks + block) * KINDS + slot, end, mask=slot < KINDS)
    wild = tl.sum(tl.where(slot == SEARCH, counts, 0), 0) > 0
    reach += (b * blocks + block) * 2
    tl.store(reach, tl.where(wild, float("nan"), nearest))
    tl.store(reach + 1, tl.where(wild, float("nan"), farthest))
    end -= counts
    for start in range(0, tiles, TILES):
        tile = start + tl.arange(0, TILES)
        _, _, first, count, its = _kinds_of_tiles(
            tile, tiles, low, high, spans, edges, sizes, row, STEPS, KEYS, LARGEST
        )
        its_own = its[:, None] == slot[None, :]
        place = tl.cumsum(tl.where(its_own, 1, 0), 0) - 1 + end[None, :]
        place = tl.sum(tl.where(its_own, place, 0), 1)
        entry = (tile.to(tl.int64) << 32) | (count.to(tl.int64) << 16) | first
        tl.store(order + place, entry, mask=tile < tiles)
        end += tl.sum(tl.where(its_own, 1, 0), 0)
