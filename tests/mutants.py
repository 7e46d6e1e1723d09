"""Ten broken implementations, each with one realistic bug, and the clauses that must convict them.

Each is the reference's own composition with one line changed. They take NumPy arrays, the last one torch tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ia_core import OffsetMLP, PositionBias, indirect_attention
from ia_core.conformance import Implementation
from ia_core.conformance._implementation import BASIC
from ia_core.conformance._own import DTYPES

FORWARD = BASIC - {"lse"}


def attention(
    query: Any,
    key: Any,
    value: Any,
    *,
    bias: Any = None,
    mask: Any = None,
    scale: float | None = None,
    spread: Callable[..., Any] = np.repeat,
    axis: int = -1,
    work: Any = None,
    add_bias_first: bool = False,
    empty_gives_mean: bool = False,
) -> Any:
    """A correct implementation unless one of the last five arguments says otherwise."""
    dtype = query.dtype
    work = work or (np.float32 if dtype.itemsize == 2 else dtype.type)
    group = query.shape[-3] // key.shape[-3] if key.shape[-3] else 1
    q, k, v = query.astype(work), spread(key.astype(work), group, axis=-3), spread(value.astype(work), group, axis=-3)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    bias = bias.dense() if isinstance(bias, PositionBias) else bias
    bias = np.zeros((1,), work) if bias is None else bias.astype(work)
    if mask is not None:
        attended = np.any(np.broadcast_to(mask, (*q.shape[:-1], k.shape[-2])), axis=-2)[..., None]
        k, v = np.where(attended, k, 0), np.where(attended, v, 0)
    products = q @ np.swapaxes(k, -1, -2)
    s = work(scale) * (products + bias) if add_bias_first else work(scale) * products + bias
    if k.shape[-2] == 0:
        return np.zeros((*q.shape[:-1], v.shape[-1]), dtype)
    s = s if mask is None else np.where(mask, s, -np.inf)
    top = np.max(s, axis=axis, keepdims=True)
    e = np.exp(s - np.where(np.isneginf(top), 0, top))
    if empty_gives_mean:
        e = np.where(np.isneginf(top), 1, e)
    total = e.sum(axis=axis, keepdims=True, dtype=work)
    weights = e / np.where(total == 0, 1, total)
    return (weights.astype(work) @ v).astype(dtype)


def scale_missing(query: Any, key: Any, value: Any, *, scale: float | None = None, **rest: Any) -> Any:
    return attention(query, key, value, scale=1.0 if scale is None else scale, **rest)


def softmax_over_queries(query: Any, key: Any, value: Any, **rest: Any) -> Any:
    return attention(query, key, value, axis=-2, **rest)


def offsets_flipped(query: Any, key: Any, value: Any, *, bias: Any = None, **rest: Any) -> Any:
    if isinstance(bias, PositionBias) and isinstance(bias.f, OffsetMLP):
        bias = bias._replace(f=bias.f._replace(w1=-bias.f.w1))  # f(i - j)
    return attention(query, key, value, bias=bias, **rest)


def bias_before_scale(query: Any, key: Any, value: Any, **rest: Any) -> Any:
    return attention(query, key, value, add_bias_first=True, **rest)


def mask_inverted(query: Any, key: Any, value: Any, *, mask: Any = None, **rest: Any) -> Any:
    return attention(query, key, value, mask=None if mask is None else ~mask, **rest)


def heads_tiled(query: Any, key: Any, value: Any, **rest: Any) -> Any:
    def tile(array: Any, group: int, axis: int) -> Any:
        return np.concatenate([array] * group, axis=axis)

    return attention(query, key, value, spread=tile, **rest)


def one_head_bias(query: Any, key: Any, value: Any, *, bias: Any = None, **rest: Any) -> Any:
    if bias is not None and bias.ndim >= 3:
        bias = bias[..., :1, :, :]
    return attention(query, key, value, bias=bias, **rest)


def half_accumulation(query: Any, key: Any, value: Any, **rest: Any) -> Any:
    return attention(query, key, value, work=query.dtype.type, **rest)


def empty_row_mean(query: Any, key: Any, value: Any, **rest: Any) -> Any:
    return attention(query, key, value, empty_gives_mean=True, **rest)


def bias_gradient_not_summed(query: Any, key: Any, value: Any, *, bias: Any = None, **rest: Any) -> Any:
    """The gradient of a broadcast bias is that of its first copy (torch)."""
    import torch

    if bias is not None and bias.requires_grad:
        shape = torch.broadcast_shapes(bias.shape, (*query.shape[:-1], key.shape[-2]))
        first = torch.zeros(shape, dtype=bias.dtype)
        first[tuple(slice(0, size) for size in (1,) * (len(shape) - bias.ndim) + tuple(bias.shape))] = 1.0
        spread = bias.expand(shape)
        bias = spread * first + spread.detach() * (1 - first)
    return indirect_attention(query, key, value, bias=bias, **rest)


class Mutant(NamedTuple):
    """A bug, and the clauses that are about it."""

    fn: Callable[..., Any]
    caught_by: tuple[str, ...]

    @property
    def implementation(self) -> Implementation:
        name = self.fn.__name__
        if name == "bias_gradient_not_summed":
            return Implementation(self.fn, name, library="torch", supports=FORWARD | {"grad"})
        supports = FORWARD | {"position_bias"}
        dtypes = ("float32", *(d for d in DTYPES if d != "float32"))
        return Implementation(self.fn, name, dtypes=dtypes, supports=supports)


MUTANTS = [
    Mutant(scale_missing, ("IA-F-02",)),
    Mutant(softmax_over_queries, ("IA-F-12", "IA-E-13")),
    Mutant(offsets_flipped, ("IA-B-01", "IA-B-02")),
    Mutant(bias_before_scale, ("IA-F-03",)),
    Mutant(mask_inverted, ("IA-F-06", "IA-E-08")),
    Mutant(heads_tiled, ("IA-F-07",)),
    Mutant(one_head_bias, ("IA-F-05",)),
    Mutant(half_accumulation, ("IA-P-03", "IA-P-04")),
    Mutant(empty_row_mean, ("IA-S-01",)),
    Mutant(bias_gradient_not_summed, ("IA-G-02",)),
]
