"""The forward kernel for GPUs: a block of queries of one head against all keys, tile by tile, with an online softmax.

Scores are in units of log 2, so that an exponential is one instruction; beside a bias that is a matrix they are as they
stand (``NATURAL``), because the largest numbers of float32 would overflow.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ._triton_tile import (
    FOLDED,
    KINDS,
    PLAIN,
    SEARCH,
    bias_in_tile,
    line_of_tile,
    parts_of,
    product,
    row_zeros,
    weighted_sum,
)

__all__ = [
    "LN2",
    "LOG2E",
    "SIZES",
    "forward",
    "load_pairs",
    "load_places",
    "load_positions",
    "load_rows",
    "row_step",
    "scores_in_tile",
]

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
# Numbers that a kernel is not compiled anew for, as Triton does for 1 and for multiples of 16.
SIZES = ["H", "GROUP", "M", "N", "table"]


@triton.jit
def row_step(step, KNOWN: tl.constexpr):
    """From a row to the next; a number that is known spares the loops most of their computation of addresses."""
    if KNOWN > 0:
        step = KNOWN
    return step


@triton.jit
def load_rows(pointer, rows, columns, stride, step, MORE, WIDTH, CHECK: tl.constexpr):
    """Rows of an array, 0 beyond its ends; ``CHECK`` says whether the tile may reach there."""
    at = pointer + rows.to(tl.int64) * stride + columns * step
    if CHECK:
        tile = tl.load(at, mask=(rows < MORE) & (columns < WIDTH), other=0.0)
    else:
        tile = tl.load(at)
    return tile


@triton.jit
def load_positions(pointer, at, length, CHECK: tl.constexpr):
    """Positions of a block; beyond the end the last one, which is as finite as it is."""
    if CHECK:
        at = tl.minimum(at, length - 1)
    return tl.load(pointer + at)


@triton.jit
def load_places(places, tile, LENGTH: tl.constexpr):
    """Positions of a tile, as they are and from its first on: as many numbers as threads, so that each loads one.

    Of fewer, each thread would load all that it needs.
    """
    at = places + tile * (2 * LENGTH) + tl.arange(0, 2)[:, None] * LENGTH + tl.arange(0, LENGTH)[None, :]
    return tl.split(tl.trans(tl.load(at)))


@triton.jit
def load_pairs(pointer, at, length, CHECK: tl.constexpr):
    """Two of the four numbers for each row or column of a tile, likewise."""
    if CHECK:
        at = tl.minimum(at, length - 1)
    return tl.split(tl.load(pointer + at[:, None] * 4 + tl.arange(0, 2)[None, :]))


@triton.jit
def scores_in_tile(
    q, k, scale, x, p, minus, first, count, edges, slopes, lines, bias, bias_rows, bias_columns, mask, mask_rows,
    mask_columns, rows, columns, M, N, STEPS: tl.constexpr, DENSE: tl.constexpr, MASKED: tl.constexpr,
    TAIL: tl.constexpr, KIND: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Scaled products with the bias less ``minus``, -inf where nothing may be attended to, and the bias' slopes.

    Subtracted ``EARLY`` from the bias, ``minus`` costs nothing; of the score, it leaves nothing of the largest one,
    whatever its size.
    ``rows`` and ``columns`` are the numbers of queries and keys, one of them as a row and the other as a column; ``x``
    and ``p`` are the positions of values and queries, likewise; of a folded bias ``x`` is the part along one axis.
    """
    slope = 0.0
    if KIND == FOLDED:
        slope = tl.load(slopes + first)
    elif STEPS > 0:  # before the product, so that fewer numbers are held at a time
        x, slope = bias_in_tile(x - p, first, count, edges, slopes, lines, STEPS, KIND)
        if EARLY:
            x -= minus
    s = product(q, tl.trans(k), tl.zeros((q.shape[0], k.shape[0]), tl.float32)) * scale
    if STEPS > 0:
        s += x
    if DENSE or MASKED:
        there = (rows < M) & (columns < N)
    if DENSE:
        at = rows.to(tl.int64) * bias_rows + columns.to(tl.int64) * bias_columns
        s += tl.load(bias + at, mask=there, other=0.0).to(tl.float32)
    if not EARLY:
        s -= minus
    if MASKED:
        at = rows.to(tl.int64) * mask_rows + columns.to(tl.int64) * mask_columns
        s = tl.where(tl.load(mask + at, mask=there, other=0) != 0, s, float("-inf"))
    if TAIL:
        s = tl.where(columns < N, s, float("-inf"))
    return s, slope


@triton.jit
def _with_tile(
    acc, top, total, q, tile, first, count, line, p_at, i, d, e, key, value, places, edges, slopes, lines, bias,
    mask,
    k_n, k_d, v_n, v_d, bias_m, bias_n, mask_m, mask_n, M, N, D, DV, scale, COLUMNS: tl.constexpr,
    STEPS: tl.constexpr, DENSE: tl.constexpr, MASKED: tl.constexpr, TAIL: tl.constexpr, NATURAL: tl.constexpr,
    PARTS: tl.constexpr, SHIFT: tl.constexpr, PAD_D: tl.constexpr, PAD_DV: tl.constexpr,
    KIND: tl.constexpr,
):  # fmt: skip
    """Weighted sum, maximum and sum of the rows with one more tile of keys."""
    j = tile * COLUMNS + tl.arange(0, COLUMNS)
    x = p_at
    row = tl.zeros(p_at.shape, tl.float32)
    if STEPS > 0:
        x, near = load_places(places, tile, COLUMNS)
    if KIND == FOLDED:
        slope, bias_at_0, origin = line
        x = slope * near + bias_at_0
        row = slope * (origin - p_at)
    k = load_rows(key, j[:, None], d[None, :], k_n, k_d, N, D, PAD_D or TAIL)
    s, _ = scores_in_tile(
        q, k, scale, x[None, :], p_at[:, None], 0.0, first, count, edges, slopes, lines, bias, bias_m, bias_n, mask,
        mask_m, mask_n, i[:, None], j[None, :], M, N, STEPS, DENSE, MASKED, TAIL, KIND, False,
    )  # fmt: skip
    own = tl.max(s, 1)
    new = tl.maximum(top, own + row)
    safe = tl.where(new == float("-inf"), 0.0, new)
    # Rounded, `new - row` is not what was largest: a weight above 1 would overflow a half.
    local = tl.where(own + row == new, own, tl.maximum(safe - row, own)) if KIND == FOLDED else safe
    local = tl.where(new == float("-inf"), 0.0, local)
    s -= local[:, None]
    if NATURAL:
        p = tl.exp2(s * LOG2E + SHIFT)
        kept = tl.exp2((top - safe) * LOG2E)
    else:
        p = tl.exp2(s + SHIFT if SHIFT > 0 else s)  # not in `local`, where it may be lost
        kept = tl.exp2(top - safe)
    total = total * kept + tl.sum(p, 1)
    acc = acc * kept[:, None]
    v = load_rows(value, j[:, None], e[None, :], v_n, v_d, N, DV, PAD_DV or TAIL)
    return weighted_sum(p, v, acc, PARTS), new, total


@triton.jit(do_not_specialize=SIZES)
def forward(
    query, key, value, output, lse, base, left, positions, places, order, ends, edges, slopes, lines, bias,
    mask,
    q_b, q_h, q_m, q_d, k_b, k_h, k_n, k_d, v_b, v_h, v_n, v_d,
    bias_b, bias_h, bias_m, bias_n, mask_b, mask_h, mask_m, mask_n, positions_b, places_b, order_b, ends_b,
    H, GROUP, M, N, D, DV, table, scale,
    BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    STEPS: tl.constexpr, DENSE: tl.constexpr, MASKED: tl.constexpr, TAIL: tl.constexpr, ROW_TAIL: tl.constexpr,
    NATURAL: tl.constexpr, PARTS: tl.constexpr, SHIFT: tl.constexpr, PAD_D: tl.constexpr, PAD_DV: tl.constexpr,
    LEFT: tl.constexpr, K_ROW: tl.constexpr, V_ROW: tl.constexpr,
):  # fmt: skip
    """One program for each block of queries and head; the output and the two statistics are contiguous.

    ``base`` has two numbers for the gradient: the largest score (elsewhere another bound), in the units of the scores,
    and how far the lse is above it, in units of log 2; +inf and 0 for a row without anything to attend to. Of a large
    score their sum would hold the first alone. If blocks are ``LEFT`` by another kernel, only those are computed.
    """
    if LEFT:  # noqa: SIM102  a constant of the compiler and a number that is loaded
        if tl.load(left + tl.program_id(0)) == 0:
            return
    k_n, v_n = row_step(k_n, K_ROW), row_step(v_n, V_ROW)
    blocks = tl.cdiv(M, ROWS)
    block, bh = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    b, h = (bh // H).to(tl.int64), (bh % H).to(tl.int64)
    i, d, e = block * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_DV)
    key += b * k_b + (h // GROUP) * k_h
    value += b * v_b + (h // GROUP) * v_h
    bias += b * bias_b + h * bias_h
    mask += b * mask_b + h * mask_h
    q = load_rows(query + b * q_b + h * q_h, i[:, None], d[None, :], q_m, q_d, M, D, PAD_D or ROW_TAIL)
    tiles = tl.cdiv(N, COLUMNS)
    p_at = tl.zeros((ROWS,), tl.float32)
    acc = tl.zeros((ROWS, BLOCK_DV), tl.float32)
    top = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    if STEPS == 0:
        for at in tl.range(0, tiles):
            acc, top, total = _with_tile(
                acc, top, total, q, at, 0, 0, (0.0, 0.0, 0.0), p_at, i, d, e, key, value, places, edges, slopes,
                lines, bias, mask, k_n, k_d, v_n, v_d, bias_m, bias_n, mask_m, mask_n, M, N, D, DV, scale, COLUMNS,
                STEPS, DENSE, MASKED, TAIL, NATURAL, PARTS, SHIFT, PAD_D, PAD_DV, PLAIN,
            )  # fmt: skip
    else:
        p_at = load_positions(positions + b * positions_b, i, M, ROW_TAIL) + row_zeros(q, COLUMNS)
        places += b * places_b
        order += b * order_b + block * tiles
        ends += b * ends_b + block * KINDS
        slopes += h * table
        lines += h * table
        end = 0
        for kind in tl.static_range(KINDS):
            start, end = end, tl.load(ends + kind)
            ahead = tl.load(order + tl.minimum(start, tiles - 1))
            for at in tl.range(start, end, num_stages=None if kind < SEARCH else 1):
                tile, first, count = parts_of(ahead)
                line = line_of_tile(ahead, slopes, lines, places, COLUMNS)
                ahead = tl.load(order + tl.minimum(at + 1, tiles - 1))
                acc, top, total = _with_tile(
                    acc, top, total, q, tile, first, count, line, p_at, i, d, e, key, value, places, edges, slopes,
                    lines, bias, mask, k_n, k_d, v_n, v_d, bias_m, bias_n, mask_m, mask_n, M, N, D, DV, scale, COLUMNS,
                    STEPS, DENSE, MASKED, TAIL, NATURAL, PARTS, SHIFT, PAD_D, PAD_DV,
                    kind,
                )  # fmt: skip
    empty = total == 0.0
    acc = acc / tl.where(empty, 1.0, total)[:, None]
    above = tl.log2(total) - SHIFT
    natural = top + above * LN2 if NATURAL else (top + above) * LN2
    row = bh.to(tl.int64) * M + i
    tl.store(lse + row, tl.where(empty, float("-inf"), natural), mask=i < M)
    tl.store(base + row * 2, tl.where(empty, float("inf"), top), mask=i < M)
    tl.store(base + row * 2 + 1, tl.where(empty, 0.0, above), mask=i < M)
    at = output + row[:, None] * DV + e[None, :]
    tl.store(at, acc.to(output.dtype.element_ty), mask=(i[:, None] < M) & (e[None, :] < DV))
