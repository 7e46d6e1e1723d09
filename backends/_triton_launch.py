"""Launches of the Triton kernels."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ._triton_backward import backward_keys, backward_queries
from ._triton_bounded import PARTS_OF_KEYS, forward_bounded, longest_keys
from ._triton_call import Arguments, Maybe, Tables, Tiling, cdiv, on, step, tables_of
from ._triton_forward import forward as forward_kernel
from ._triton_sums import TABLES

__all__ = ["backward", "forward"]


def forward(
    arrays: list[Tensor],
    lines: list[Any],
    bias: Maybe,
    mask: Maybe,
    scale: float,
    smooth: bool,
    rounded: bool,
    results: tuple[Tensor, Tensor, Tensor],
) -> None:
    """Fill output, lse and base of ``_torch_triton._forward``."""
    output, lse, _ = results
    if lse.numel() == 0 or arrays[1].shape[-2] == 0:
        output.zero_(), lse.fill_(-math.inf)
        return
    with on(arrays[0]):
        call = Arguments(arrays, bias, mask, scale, rounded)
        tile = call.tiling("bounded" if call.bounded else "forward")
        tables = None if lines[0] is None else tables_of(lines, smooth)
        placed, reach = call.placed(tables, lines, tile)
        grid = (cdiv(call.M, tile.rows) * call.B * call.H,)
        left = None
        if call.bounded:
            left = _bounded(call, tables, placed, reach, tile, grid, results)
            tile = tile._replace(registers=None)
        forward_kernel[grid](
            *call.arrays,
            *results,
            call.arrays[0] if left is None else left,
            *placed,
            *call.over_scores,
            *call.strides(placed),
            *call.sizes(tables),
            call.scale,
            **call.constants(tile, tables),
            **call.rows("KV"),
            **call.of_scores(),
            ROW_TAIL=call.M % tile.rows != 0,
            PARTS=call.parts,
            SHIFT=call.shift,
            LEFT=left is not None,
            **call.options(tables, tile),
        )


def _bounded(
    call: Arguments,
    tables: Tables | None,
    placed: list[Tensor],
    reach: Tensor,
    tile: Tiling,
    grid: tuple[int],
    results: tuple[Tensor, Tensor, Tensor],
) -> Tensor:
    """Fill the results where no score can be far above the others; 1 for each program's block that is left, else 0."""
    key, parts = call.arrays[1], int(PARTS_OF_KEYS.value)
    longest = key.new_empty((call.B * call.Hk, parts), dtype=torch.float32)
    rows = 32
    left = key.new_empty(grid, dtype=torch.int32)
    constants = call.constants(tile, tables)
    longest_keys[(call.B * call.Hk, min(parts, cdiv(call.N, rows)))](
        key,
        longest,
        *key.stride(),
        call.Hk,
        call.N,
        call.D,
        BLOCK_D=constants["BLOCK_D"],
        ROWS=rows,
        PAD_D=constants["PAD_D"],
        num_warps=4,
    )
    forward_bounded[grid](
        *call.arrays,
        *results,
        left,
        longest,
        *placed[:4],
        reach,
        *placed[4:],
        *(stride for array in call.arrays for stride in array.stride()),
        *(step(array) for array in [*placed[:4], reach]),
        *call.sizes(tables),
        call.scale,
        **constants,
        **call.rows("KV"),
        ROW_TAIL=call.M % tile.rows != 0,
        PARTS=call.parts,
        **tile.options,
    )
    return left


def backward(
    arrays: list[Tensor],
    lines: list[Any],
    bias: Maybe,
    mask: Maybe,
    scale: float,
    smooth: bool,
    rounded: bool,
    kept: list[Tensor],
    found: list[Tensor],
) -> None:
    """Fill the gradients of ``_torch_triton._backward``, or replace them."""
    if arrays[0].numel() == 0 or arrays[1].numel() == 0:
        for gradient in found:
            gradient.zero_()
        return
    with on(arrays[0]):
        call = Arguments(arrays, bias, mask, scale, rounded)
        output, base, cotangent, lse_cotangent = kept
        cotangent = cotangent.to(arrays[0].dtype).contiguous()
        rests = base.new_empty((*base.shape[:-1], 4))
        tables = None if lines[0] is None else tables_of(lines, smooth)
        moves = len(found) > 3 and found[6].numel() > 0
        own = [output, cotangent, lse_cotangent.contiguous(), base, rests]
        d_positions = _queries(call, tables, lines, own, found)
        d_values = _keys(call, tables, lines, [cotangent, rests], found, moves)
        if d_positions is not None:
            found[5] = d_positions.sum(1)
        if d_values is not None:
            found[6] = d_values.sum(1)


def _queries(call: Arguments, tables: Tables | None, lines: list[Any], own: list[Tensor], found: list[Tensor]) -> Maybe:
    tile = call.tiling("queries")
    programs = cdiv(call.M, tile.rows) * call.B * call.H
    placed, _ = call.placed(tables, lines, tile)
    d_positions: Maybe = None
    sums = call.arrays[0]
    if tables is not None:
        d_positions = own[3].new_empty((call.B, call.H, call.M))
        copies = int(TABLES.value) if tile.rows >= 16 * TABLES.value else 1
        sums = own[3].new_zeros((2, programs * copies, tables.row))
    backward_queries[(programs,)](
        *call.arrays,
        *own,
        *placed,
        *call.over_scores,
        found[0],
        own[3] if d_positions is None else d_positions,
        sums,
        *call.strides(placed),
        *call.sizes(tables),
        call.scale,
        call.factor,
        **call.constants(tile, tables),
        **call.of_scores(),
        **call.rows("KV"),
        ROW_TAIL=call.M % tile.rows != 0,
        PARTS=call.gradient_parts,
        **call.options(tables, tile),
    )
    if tables is not None:
        added = sums.view(2, call.B, call.H, -1, tables.row)[..., : tables.cells].sum((1, 3), dtype=torch.float64)
        found[3:5] = [torch.zeros_like(gradient) for gradient in found[3:5]]
        for gradient, total in zip(found[3:5], (added[1], added[0]), strict=True):
            gradient[:, :: tables.every] = total
    return d_positions


def _keys(
    call: Arguments, tables: Tables | None, lines: list[Any], own: list[Tensor], found: list[Tensor], moves: bool
) -> Maybe:
    tile = call.tiling("keys")
    placed, _ = call.placed(tables, lines, tile, keys=True)
    gradients, apart = found[1:3], call.H != found[1].shape[1]
    if apart:  # heads that share keys add their gradients, before the one rounding
        gradients = [own[1].new_empty((call.B, call.H, *array.shape[2:])) for array in gradients]
    d_values = own[1].new_empty((call.B, call.H, call.N)) if moves else None
    backward_keys[(cdiv(call.N, tile.columns) * call.B * call.H,)](
        *call.arrays,
        *own,
        *placed,
        *call.over_scores,
        *gradients,
        own[1] if d_values is None else d_values,
        *call.strides(placed),
        *call.sizes(tables),
        call.scale,
        call.factor,
        **call.constants(tile, tables),
        **call.of_scores(),
        **call.rows("Q"),
        ROW_TAIL=call.M % tile.rows != 0,
        PARTS=call.gradient_parts,
        WEIGHT_PARTS=call.parts,
        SHIFT=call.shift,
        MOVE=moves,
        **call.options(tables, tile),
    )
    if apart:
        for gradient, each in zip(found[1:3], gradients, strict=True):
            shape = gradient.shape
            gradient.copy_(each.view(call.B, shape[1], call.H // shape[1], *shape[2:]).sum(2))
    return d_values
