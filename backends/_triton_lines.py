"""Kernels that compile a network into lines between knots: PiecewiseLinear.from_mlp in two launches, not thirty.

Sums of slopes and intercepts are in float64, as there. A last kernel writes the tables that the attention kernels read.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["pack_lines", "sort_knots", "sum_active"]

INFINITY = tl.constexpr(float("inf"))
LARGEST = tl.constexpr(3.4028234663852886e38)  # of float32
FINITE = tl.constexpr(3.4e38)
LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _units(w1, b1, k, K):
    """Weight, offset and knot of hidden units, and whether they are active above the knot; absent ones never are."""
    w = tl.load(w1 + k, mask=k < K, other=0.0).to(tl.float64)
    b = tl.load(b1 + k, mask=k < K, other=-1.0).to(tl.float64)
    # A unit whose knot no finite offset reaches is constant: dead, or active everywhere, as nan must be.
    far = (tl.abs(b) / LARGEST < tl.abs(w)) == 0
    dead = far & (b <= 0.0) & (w == w)
    knot = tl.where(far, tl.where(dead, INFINITY, -INFINITY), -b / tl.where(far, 1.0, w)).to(tl.float32)
    return tl.where(dead, 0.0, w), tl.where(dead, 0.0, b), knot, far | (w > 0.0)


@triton.jit
def _number_before(own):
    """The largest float32 below each number; -inf is its own."""
    bits = own.to(tl.int32, bitcast=True)
    lower = tl.where(own == 0.0, -2147483647, tl.where(bits > 0, bits - 1, bits + 1))
    return tl.where(own == -INFINITY, bits, lower).to(tl.float32, bitcast=True)


@triton.jit
def _ranks(own, others, k, at, K):
    """How many of some numbers come before each, equal ones in their order."""
    before = (others[None, :] < own[:, None]) | ((others[None, :] == own[:, None]) & (at[None, :] < k[:, None]))
    return tl.sum(tl.where(before & (at[None, :] < K), 1, 0), 1)


@triton.jit(do_not_specialize=["K"])
def sort_knots(w1, b1, knots, edges, K, BLOCK: tl.constexpr):
    """Write knots, and edges, in ascending order: each program ranks ``BLOCK`` of them among all.

    The edge of a unit that is active above its knot is the knot, of any other the number before it: on its knot neither
    is active. Between two neighbouring edges the active units are the same.
    """
    k = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    _, _, own, rising = _units(w1, b1, k, K)
    edge = tl.where(rising, own, _number_before(own))
    rank = tl.zeros((BLOCK,), tl.int32)
    edge_rank = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, K, BLOCK):
        at = start + tl.arange(0, BLOCK)
        _, _, others, others_rising = _units(w1, b1, at, K)
        rank += _ranks(own, others, k, at, K)
        edge_rank += _ranks(edge, tl.where(others_rising, others, _number_before(others)), k, at, K)
    tl.store(knots + rank, own, mask=k < K)
    tl.store(edges + edge_rank, edge, mask=k < K)


@triton.jit(do_not_specialize=["K"])
def sum_active(w1, b1, w2, b2, knots, slopes, intercepts, active, K, H, BLOCK: tl.constexpr):
    """Slopes and intercepts (H, 2 K + 1) of ``BLOCK`` cells and one head.

    For the first head, which units are active.
    """
    cells, h = 2 * K + 1, tl.program_id(1)
    c = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    below = tl.load(knots + (c - 1) // 2, mask=(c > 0) & (c < cells), other=-INFINITY)
    above = tl.load(knots + c // 2, mask=c < cells - 1, other=INFINITY)
    slope = tl.zeros((BLOCK,), tl.float64)
    intercept = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, K, BLOCK):
        k = start + tl.arange(0, BLOCK)
        w, b, knot, rising = _units(w1, b1, k, K)
        weight = tl.load(w2 + k * H + h, mask=k < K, other=0.0).to(tl.float64)
        on = tl.where(rising[None, :], knot[None, :] < above[:, None], knot[None, :] > below[:, None])
        on = on & (k[None, :] < K)
        slope += tl.sum(tl.where(on, (w * weight)[None, :], 0.0), 1)
        intercept += tl.sum(tl.where(on, (b * weight)[None, :], 0.0), 1)
        if h == 0:
            there = (c[:, None] < cells) & (k[None, :] < K)
            tl.store(active + c[:, None] * K + k[None, :], tl.where(on, 1.0, 0.0), mask=there)
    intercept += tl.load(b2 + h).to(tl.float64)
    tl.store(slopes + h * cells + c, slope, mask=c < cells)
    tl.store(intercepts + h * cells + c, intercept, mask=c < cells)


@triton.jit
def _knots_before(own, knots, K, step, EQUAL: tl.constexpr):
    """How many of the ascending knots lie below each number, or do not lie above it.

    ``step`` is the largest power of 2 up to K.
    """
    found = tl.zeros(own.shape, tl.int32)
    while step > 0:
        probe = found + step
        knot = tl.load(knots + probe - 1, mask=probe <= K, other=INFINITY)
        if EQUAL:
            before = knot <= own
        else:
            before = knot < own
        found = tl.where(before & (probe <= K), probe, found)
        step = step // 2
    return found


@triton.jit
def _pack_both_sides(own, at, knots, edges, K, step, length):
    """Two edges for each knot: t is on it if it is above the number before the knot, and not above the knot.

    Of knots that coincide only the first has its lower side: on them is the first of their cells.
    """
    below = _knots_before(own, knots, K, step, False)
    tl.store(edges + at + below, tl.where(at == below, _number_before(own), own), mask=at < K)
    tl.store(edges + at + _knots_before(own, knots, K, step, True), own, mask=at < K)
    tl.store(edges + at, INFINITY, mask=(at >= 2 * K) & (at < length))


@triton.jit
def _finite(numbers):
    """As float32; what is finite stays finite."""
    held = tl.minimum(tl.maximum(numbers, -FINITE), FINITE)
    return tl.where(tl.abs(numbers) < INFINITY, held, numbers).to(tl.float32)


@triton.jit(do_not_specialize=["K", "step", "length", "row"])
def pack_lines(
    knots, slopes, intercepts, edges, table, sizes, K, step, slope_h, slope_c, intercept_h, intercept_c, length, row,
    SMOOTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Edges, slopes and lines (2, H, row) of float32 in units of log 2, and their largest ``sizes`` (2, row).

    ``SMOOTH`` leaves the knots' own cells out; ``knots`` are edges then. Beyond the knots edges are infinite; beyond
    the cells no line is read.
    """
    at, h = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.program_id(1)
    H = tl.num_programs(1)
    if h == 0:
        own = tl.load(knots + at, mask=at < K, other=INFINITY)
        if SMOOTH:
            tl.store(edges + at, own, mask=at < length)
        else:
            _pack_both_sides(own, at, knots, edges, K, step, length)
    if SMOOTH:
        cell = 2 * at
    else:
        cell = at
    there = cell < 2 * K + 1
    slope = tl.load(slopes + h * slope_h + cell * slope_c, mask=there, other=0.0) * LOG2E
    line = tl.load(intercepts + h * intercept_h + cell * intercept_c, mask=there, other=0.0) * LOG2E
    tl.store(table + h * row + at, _finite(slope), mask=at < row)
    tl.store(table + (H + h) * row + at, _finite(line), mask=at < row)
    if h == 0:
        slope, line = tl.abs(slope), tl.abs(line)
        for other in range(1, H):
            its_slope = tl.load(slopes + other * slope_h + cell * slope_c, mask=there, other=0.0) * LOG2E
            its_line = tl.load(intercepts + other * intercept_h + cell * intercept_c, mask=there, other=0.0) * LOG2E
            slope, line = tl.maximum(slope, tl.abs(its_slope)), tl.maximum(line, tl.abs(its_line))
        tl.store(sizes + at, _finite(slope), mask=at < row)
        tl.store(sizes + row + at, _finite(line), mask=at < row)
