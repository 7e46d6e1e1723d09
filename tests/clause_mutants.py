"""Bugs that the clauses of families G, T, D and R are about, one change each to the reference."""

from __future__ import annotations

import math
import os
import random
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from ia_core import PositionBias, indirect_attention, indirect_attention_vjp


def not_summed_over_rows(query: Any, key: Any, value: Any, *, bias: Any = None, **rest: Any) -> Any:
    """Of equal offsets only the first row's use reaches the parameters."""
    import torch

    if isinstance(bias, PositionBias):
        dense = bias.dense()
        bias = torch.cat([dense[..., :1, :], dense[..., 1:, :].detach()], dim=-2)
    return indirect_attention(query, key, value, bias=bias, **rest)


def positions_are_constants(query: Any, key: Any, value: Any, *, bias: Any = None, **rest: Any) -> Any:
    if isinstance(bias, PositionBias):
        bias = bias._replace(query_positions=bias.query_positions.detach())
    return indirect_attention(query, key, value, bias=bias, **rest)


def key_needs_query(query: Any, key: Any, value: Any, **rest: Any) -> Any:
    """The gradient of the key is computed only with that of the query."""
    return indirect_attention(query, key if query.requires_grad else key.detach(), value, **rest)


def cotangent_read_as_contiguous(query: Any, key: Any, value: Any, **rest: Any) -> Any:
    import torch

    class Kernel(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, output: Any) -> Any:
            return output.clone()

        @staticmethod
        def backward(ctx: Any, cotangent: Any) -> Any:
            return torch.as_strided(cotangent, cotangent.shape, torch.empty(cotangent.shape).stride())

    return Kernel.apply(indirect_attention(query, key, value, **rest))


def differentiable_once(query: Any, key: Any, value: Any, **rest: Any) -> Any:
    import torch

    class Kernel(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, output: Any) -> Any:
            return output.clone()

        @staticmethod
        def backward(ctx: Any, cotangent: Any) -> Any:
            return cotangent.detach()

    return Kernel.apply(indirect_attention(query, key, value, **rest))


def keys_not_cleaned(query: Any, key: Any, value: Any, *, mask: Any = None, **rest: Any) -> Any:
    """The output is clean; the gradient of the query meets 0 * nan."""
    import torch

    if mask is None:
        return indirect_attention(query, key, value, **rest)
    mask = torch.broadcast_to(mask, (*query.shape[:-1], key.shape[-2]))
    group = query.shape[-3] // key.shape[-3]
    key, value = (x.repeat_interleave(group, dim=-3) for x in (key, value))
    value = torch.where(mask.any(dim=-2)[..., None], value, 0.0)
    scores = rest.get("scale", 1 / math.sqrt(query.shape[-1])) * query @ key.mT
    return torch.softmax(torch.where(mask, scores, -math.inf), dim=-1) @ value


def lse_gradient_too_large(query: Any, key: Any, value: Any, *, return_lse: bool = False, **rest: Any) -> Any:
    output, lse = indirect_attention(query, key, value, return_lse=True, **rest)
    return (output, 1.5 * lse - 0.5 * lse.detach()) if return_lse else output


def last_tile_of_gradients_lost(cotangent: Any, query: Any, key: Any, value: Any, **rest: Any) -> Any:
    found = indirect_attention_vjp(query, key, value, cotangent, **rest)
    if key.shape[-2] > 32:
        found.value[..., key.shape[-2] // 32 * 32 :, :] = 0
    return [g for g in found if g is not None]


def cotangent_written(cotangent: Any, query: Any, key: Any, value: Any, **rest: Any) -> Any:
    found = indirect_attention_vjp(query, key, value, cotangent, **rest)
    cotangent *= 2
    return [g for g in found if g is not None]


def asks_for_a_number(query: Any, key: Any, value: Any, **rest: Any) -> Any:
    """A branch on data: nothing that can be traced."""
    return indirect_attention(query, key, value, **rest) if float(query.sum()) != 0.5 else query


def _compiling() -> bool:
    import torch

    return torch.compiler.is_compiling()


def compiled_for_five_keys(query: Any, key: Any, value: Any, *, bias: Any = None, mask: Any = None, **rest: Any) -> Any:
    if _compiling() and not isinstance(bias, PositionBias):
        key, value = key[..., :5, :], value[..., :5, :]
        bias, mask = (None if x is None else x[..., :5] for x in (bias, mask))
    return indirect_attention(query, key, value, bias=bias, mask=mask, **rest)


def compiled_for_one_scale(query: Any, key: Any, value: Any, *, scale: Any = None, **rest: Any) -> Any:
    return indirect_attention(query, key, value, scale=0.3 if scale and _compiling() else scale, **rest)


def compiled_without_value_gradient(query: Any, key: Any, value: Any, **rest: Any) -> Any:
    return indirect_attention(query, key, value.detach() if _compiling() else value, **rest)


def compiled_bias_without_heads(query: Any, key: Any, value: Any, *, bias: Any = None, **rest: Any) -> Any:
    if bias is not None and not isinstance(bias, PositionBias) and _compiling():
        bias = bias[..., :1, :, :]
    return indirect_attention(query, key, value, bias=bias, **rest)


def value_written(query: Any, key: Any, value: Any, **rest: Any) -> Any:
    output = indirect_attention(query, key, value, **rest)
    value *= 2
    return output


def mask_written(query: Any, key: Any, value: Any, *, mask: Any = None, **rest: Any) -> Any:
    output = indirect_attention(query, key, value, mask=mask, **rest)
    if mask is not None:
        mask[...] = True
    return output


def split_for_large_batches(query: Any, key: Any, value: Any, **rest: Any) -> Any:
    """Sums each row by itself; for a batch the keys are split in two, which rounds otherwise."""
    parts = 2 if query.shape[0] > 1 else 1
    return by_rows(query, key, value, parts=parts, **rest)


def by_rows(query: Any, key: Any, value: Any, *, parts: int = 1, scale: Any = None, **rest: Any) -> Any:
    """No product of matrices: a row's sums do not know of other rows."""
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    group = query.shape[-3] // key.shape[-3]
    key, value = (np.repeat(x, group, axis=-3) for x in (key, value))
    output = np.zeros((*query.shape[:-1], value.shape[-1]), query.dtype)
    for at in np.ndindex(query.shape[:-1]):
        k, v = key[at[:-1]], value[at[:-1]]
        scores = scale * np.array([np.sum(query[at] * row) for row in k])
        weights = np.exp(scores - scores.max())
        pieces = np.array_split(weights[:, None] * v, parts)
        output[at] = sum(piece.sum(axis=0) for piece in pieces) / weights.sum()
    return output


def after(action: Callable[[], Any]) -> Callable[..., Any]:
    def attention(query: Any, key: Any, value: Any, **rest: Any) -> Any:
        action()
        return indirect_attention(query, key, value, **rest)

    return attention


def _torch_action(action: Callable[[Any], Any]) -> Callable[..., Any]:
    def attention(query: Any, key: Any, value: Any, **rest: Any) -> Any:
        import torch

        action(torch)
        return indirect_attention(query, key, value, **rest)

    return attention


NUMPY, TORCH, JAX = "numpy", "torch", "jax"
MUTANTS: list[tuple[str, Callable[..., Any], str]] = [
    ("IA-G-07", not_summed_over_rows, TORCH),
    ("IA-G-08", key_needs_query, TORCH),
    ("IA-G-09", cotangent_read_as_contiguous, TORCH),
    ("IA-G-10", differentiable_once, TORCH),
    ("IA-G-11", keys_not_cleaned, TORCH),
    ("IA-G-12", lse_gradient_too_large, TORCH),
    ("IA-G-14", positions_are_constants, TORCH),
    ("IA-T-01", asks_for_a_number, TORCH),
    ("IA-T-01", asks_for_a_number, JAX),
    ("IA-T-01", compiled_bias_without_heads, TORCH),
    ("IA-T-02", compiled_for_five_keys, TORCH),
    ("IA-T-03", compiled_for_one_scale, TORCH),
    ("IA-T-04", asks_for_a_number, TORCH),
    ("IA-T-04", asks_for_a_number, JAX),
    ("IA-T-05", compiled_without_value_gradient, TORCH),
    ("IA-D-01", value_written, NUMPY),
    ("IA-D-01", mask_written, NUMPY),
    ("IA-D-04", split_for_large_batches, NUMPY),
    ("IA-D-05", after(lambda: random.random()), NUMPY),
    ("IA-D-05", after(lambda: np.random.seed(0)), NUMPY),
    ("IA-D-05", _torch_action(lambda torch: torch.manual_seed(0)), TORCH),
    ("IA-D-06", after(lambda: np.seterr(all="warn")), NUMPY),
    ("IA-D-06", after(lambda: np.set_printoptions(precision=8)), NUMPY),
    ("IA-D-06", _torch_action(lambda torch: torch.set_default_dtype(torch.float32)), TORCH),
    ("IA-D-06", _torch_action(lambda torch: torch.set_num_threads(1)), TORCH),
    ("IA-D-06", _torch_action(lambda torch: torch.set_grad_enabled(True)), TORCH),
    ("IA-D-07", after(lambda: print("computing")), NUMPY),
    ("IA-D-07", after(lambda: print("computing", file=sys.stderr)), NUMPY),
    ("IA-D-07", after(lambda: os.write(1, b"computing\n")), NUMPY),
    ("IA-D-07", after(lambda: subprocess.run(["sh", "-c", "echo computing >&2"], check=True)), NUMPY),
]
