"""PyTorch on a GPU: a network compiled into lines by three small kernels, and the gradients of its parameters.

``PiecewiseLinear.from_mlp`` is some thirty operations of PyTorch, which on a GPU take as long as a whole attention.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._bias import OffsetMLP

__all__ = ["lines_of_network"]

BLOCK = 32


def lines_of_network(f: OffsetMLP) -> tuple[Tensor, Tensor, Tensor]:
    """Edges (K,) in float32, slopes and intercepts (H, 2 K + 1) in float64, these as of ``PiecewiseLinear.from_mlp``.

    Cell 2 c holds the offsets above edge c - 1 and not above edge c: those on knots too, so that cells of their own
    have nothing to hold.
    """
    _, slopes, intercepts, _, edges = _compile(*f)
    return edges, slopes, intercepts


@torch.library.custom_op("ia_core::triton_lines", mutates_args=())
def _compile(w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Knots, slopes, intercepts, (2 K + 1, K) which units are active in which cell, 1 or 0, and edges."""
    from ._triton_call import cdiv, on
    from ._triton_lines import sort_knots, sum_active

    knots, slopes, intercepts, active, edges = results = _empty(w1, w2)
    (K, H), parts = w2.shape, [part.contiguous() for part in (w1, b1, w2, b2)]
    with on(w1):
        if K:
            sort_knots[(cdiv(K, BLOCK),)](*parts[:2], knots, edges, K, BLOCK=BLOCK, num_warps=4)
        if H:
            grid = (cdiv(2 * K + 1, BLOCK), H)
            sum_active[grid](*parts, knots, slopes, intercepts, active, K, H, BLOCK=BLOCK, num_warps=4)
    return results


@_compile.register_fake
def _(w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return _empty(w1, w2)


def _keep(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(*inputs, output[3])
    ctx.mark_non_differentiable(output[0], *output[3:])


def _differentiate(ctx: Any, _: Any, d_slopes: Any, d_intercepts: Any, *__: Any) -> Any:
    w1, b1, w2, b2, active = ctx.saved_tensors
    # Over the cells in which a unit is active, of which both are sums: (2, H, K).
    sums = torch.stack([d_slopes, d_intercepts]) @ active
    first = torch.stack([w1, b1]).double()[:, None, :]
    d_w2 = (sums * first).sum(0).mT
    d_first = (sums * w2.double().mT).sum(1)
    return d_first[0].to(w1.dtype), d_first[1].to(b1.dtype), d_w2.to(w2.dtype), d_intercepts.sum(1).to(b2.dtype)


_compile.register_autograd(_differentiate, setup_context=_keep)


def _empty(w1: Tensor, w2: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    K, H = w2.shape
    tables = [w1.new_empty((H, 2 * K + 1), dtype=torch.float64) for _ in range(2)]
    knots, edges = (w1.new_empty((K,), dtype=torch.float32) for _ in range(2))
    return knots, tables[0], tables[1], w1.new_empty((2 * K + 1, K), dtype=torch.float64), edges
