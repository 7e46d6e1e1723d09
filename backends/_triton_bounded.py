"""The forward kernel for GPUs where no score can be far above the others: exponentials need no maximum first.

No score of a row is above ``scale |q| max |k| + max f``. A softmax that is taken relative to that, and not to the
largest score, needs no maximum of a tile before its exponentials and never scales its sums anew. It is the same
softmax as long as the sums do not fall out of the range of float32: rows where they could, or where they have, are
left to ``forward``.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ._triton_forward import LN2, SIZES, load_places, load_positions, load_rows, row_step, scores_in_tile
from ._triton_tile import (
    EDGES,
    FOLDED,
    KINDS,
    PLAIN,
    SEARCH,
    count_below,
    line_of_tile,
    parts_of,
    row_zeros,
    sums_of_eight,
    weighted_sum,
)

__all__ = ["PARTS_OF_KEYS", "forward_bounded", "longest_keys"]

PARTS_OF_KEYS = tl.constexpr(64)
FINITE = tl.constexpr(1e30)
TOGETHER = tl.constexpr(128)  # edges that are looked at at a time
# Scores of that size are rounded by 2^-19, and their exponentials differ by 2^-64 at most; in units of log 2.
LARGEST = tl.constexpr(32.0)
LARGEST_BIAS = tl.constexpr(4096.0)  # relative to larger ones exponentials would lose more than a bfloat16 holds
# What has fallen below the range of float32 is less than 2^-86 of a row's sum for each key.
LEAST_SUM = tl.constexpr(2.0**-40)
LARGEST_SUM = tl.constexpr(2.0**60)  # a bound that roundings put far below the scores


@triton.jit(do_not_specialize=["N", "D"])
def longest_keys(
    key, longest, k_b, k_h, k_n, k_d, Hk, N, D, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, PAD_D: tl.constexpr,
):  # fmt: skip
    """The largest square of the length of a key, for each head and each part of its keys: (B Hk, PARTS_OF_KEYS).

    Where a head's keys are too few for so many programs, one writes the numbers of several parts, all the same.
    """
    bh, part, parts = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    key += (bh // Hk).to(tl.int64) * k_b + (bh % Hk).to(tl.int64) * k_h
    length = tl.cdiv(N, parts)
    d = tl.arange(0, BLOCK_D)
    most = tl.zeros((ROWS,), tl.float32)
    for start in tl.range(part * length, (part + 1) * length, ROWS):
        j = tl.minimum(start + tl.arange(0, ROWS), N - 1)
        k = load_rows(key, j[:, None], d[None, :], k_n, k_d, N, D, PAD_D).to(tl.float32)
        most = tl.maximum(most, tl.where(tl.sum(k * k, 1) < FINITE, tl.sum(k * k, 1), float("inf")))  # of nan too
    slot = tl.arange(0, PARTS_OF_KEYS)
    tl.store(longest + bh * PARTS_OF_KEYS + slot, tl.max(most, 0), mask=slot % parts == part)


@triton.jit
def _line_at(t, cell, slopes, lines, there):
    return tl.load(slopes + cell, mask=there, other=0.0) * t + tl.load(lines + cell, mask=there, other=0.0)


@triton.jit
def _largest_bias(reach, edges, slopes, lines, STEPS: tl.constexpr):
    """Of the offsets that a block has: at the least, at the largest, and on both sides of each edge between them."""
    least, most = tl.load(reach), tl.load(reach + 1)
    ends = tl.where(tl.arange(0, 2) == 0, least, most)
    largest = tl.max(_line_at(ends, count_below(ends, edges, STEPS), slopes, lines, ends == ends), 0)
    for start in tl.range(0, 2**STEPS - 1, TOGETHER):
        at = start + tl.arange(0, TOGETHER)
        edge = tl.load(edges + at, mask=at < 2**STEPS - 1, other=float("inf"))
        there = (edge >= least) & (edge < most)
        t = tl.where(there, edge, 0.0)
        both = tl.maximum(_line_at(t, at, slopes, lines, there), _line_at(t, at + 1, slopes, lines, there))
        largest = tl.maximum(largest, tl.max(tl.where(there, both, float("-inf")), 0))
    return tl.where(least == least, largest, float("nan"))


@triton.jit
def _with_tile(
    acc, total, q, bound, tile, first, count, line, p_at, i, d, e, key, value, places, edges, slopes, lines,
    k_n, k_d, v_n, v_d, M, N, D, DV, scale, COLUMNS: tl.constexpr, STEPS: tl.constexpr,
    TAIL: tl.constexpr, PARTS: tl.constexpr, PAD_D: tl.constexpr, PAD_DV: tl.constexpr, KIND: tl.constexpr,
):  # fmt: skip
    """Weighted sum and sum of the rows with one more tile of keys."""
    j = tile * COLUMNS + tl.arange(0, COLUMNS)
    x = p_at
    if STEPS > 0:
        x, near = load_places(places, tile, COLUMNS)
    if KIND == FOLDED:
        slope, bias_at_0, origin = line
        x = slope * near + bias_at_0
        bound += slope * (p_at - origin)
    k = load_rows(key, j[:, None], d[None, :], k_n, k_d, N, D, PAD_D or TAIL)
    s, _ = scores_in_tile(
        q, k, scale, x[None, :], p_at[:, None], bound[:, None], first, count, edges, slopes, lines, key, 0, 0, key, 0,
        0, i[:, None], j[None, :], M, N, STEPS, False, False, TAIL, KIND, KIND == EDGES,
    )  # fmt: skip
    p = tl.exp2(s)
    total += sums_of_eight(p)
    v = load_rows(value, j[:, None], e[None, :], v_n, v_d, N, DV, PAD_DV or TAIL)
    return weighted_sum(p, v, acc, PARTS), total


@triton.jit(do_not_specialize=SIZES)
def forward_bounded(
    query, key, value, output, lse, base, left, longest, positions, places, order, ends, reach, edges,
    slopes, lines,
    q_b, q_h, q_m, q_d, k_b, k_h, k_n, k_d, v_b, v_h, v_n, v_d, positions_b, places_b, order_b, ends_b, reach_b,
    H, GROUP, M, N, D, DV, table, scale,
    BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    STEPS: tl.constexpr, TAIL: tl.constexpr, ROW_TAIL: tl.constexpr, PARTS: tl.constexpr,
    PAD_D: tl.constexpr, PAD_DV: tl.constexpr, K_ROW: tl.constexpr, V_ROW: tl.constexpr,
):  # fmt: skip
    """As ``forward``, and 1 in ``left`` (B H, blocks) for each block of rows that is left to it, else 0."""
    k_n, v_n = row_step(k_n, K_ROW), row_step(v_n, V_ROW)
    blocks = tl.cdiv(M, ROWS)
    block, bh = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    b, h = (bh // H).to(tl.int64), (bh % H).to(tl.int64)
    i, d, e = block * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_DV)
    key += b * k_b + (h // GROUP) * k_h
    value += b * v_b + (h // GROUP) * v_h
    q = load_rows(query + b * q_b + h * q_h, i[:, None], d[None, :], q_m, q_d, M, D, PAD_D or ROW_TAIL)
    tiles = tl.cdiv(N, COLUMNS)
    numbers = q.to(tl.float32)
    parts = tl.load(longest + (bh // GROUP) * PARTS_OF_KEYS + tl.arange(0, PARTS_OF_KEYS))
    bound = tl.sqrt(tl.sum(numbers * numbers, 1)) * (tl.sqrt(tl.max(parts, 0)) * scale)
    near = tl.min(tl.where(bound < LARGEST, 1, 0), 0)  # nan is not
    p_at = tl.zeros((ROWS,), tl.float32)
    if STEPS > 0:
        reach += b * reach_b + block * 2
        slopes += h * table
        lines += h * table
        largest = _largest_bias(reach, edges, slopes, lines, STEPS)
        bound += largest
        near = tl.where(tl.abs(largest) < LARGEST_BIAS, near, 0)
    if near == 0:
        tl.store(left + tl.program_id(0), 1)
        return
    acc = tl.zeros((ROWS, BLOCK_DV), tl.float32)
    total = tl.zeros((ROWS, 8), tl.float32)
    zeros = row_zeros(q, COLUMNS)
    bound += zeros
    if STEPS == 0:
        for at in tl.range(0, tiles):
            acc, total = _with_tile(
                acc, total, q, bound, at, 0, 0, (0.0, 0.0, 0.0), p_at, i, d, e, key, value, places, edges, slopes,
                lines, k_n, k_d, v_n, v_d, M, N, D, DV, scale, COLUMNS, STEPS, TAIL, PARTS, PAD_D, PAD_DV,
                PLAIN,
            )  # fmt: skip
    else:
        p_at = load_positions(positions + b * positions_b, i, M, ROW_TAIL)
        p_at += zeros
        places += b * places_b
        order += b * order_b + block * tiles
        ends += b * ends_b + block * KINDS
        end = 0
        for kind in tl.static_range(SEARCH):  # all offsets are finite
            start, end = end, tl.load(ends + kind)
            ahead = tl.load(order + tl.minimum(start, tiles - 1))
            for at in tl.range(start, end):
                tile, first, count = parts_of(ahead)
                line = line_of_tile(ahead, slopes, lines, places, COLUMNS)
                ahead = tl.load(order + tl.minimum(at + 1, tiles - 1))
                acc, total = _with_tile(
                    acc, total, q, bound, tile, first, count, line, p_at, i, d, e, key, value, places, edges,
                    slopes, lines, k_n, k_d, v_n, v_d, M, N, D, DV, scale, COLUMNS, STEPS, TAIL, PARTS, PAD_D,
                    PAD_DV, kind,
                )  # fmt: skip
    total = tl.sum(total, 1)
    good = (total >= LEAST_SUM) & (total <= LARGEST_SUM)  # nan is not
    tl.store(left + tl.program_id(0), 1 - tl.min(tl.where(good, 1, 0), 0))
    acc = acc / total[:, None]
    above = tl.log2(total)
    row = bh.to(tl.int64) * M + i
    tl.store(lse + row, (bound + above) * LN2, mask=i < M)
    tl.store(base + row * 2, bound, mask=i < M)
    tl.store(base + row * 2 + 1, above, mask=i < M)
    at = output + row[:, None] * DV + e[None, :]
    tl.store(at, acc.to(output.dtype.element_ty), mask=(i[:, None] < M) & (e[None, :] < DV))
