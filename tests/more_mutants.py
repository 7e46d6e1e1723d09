"""One small bug for each clause that the ten of mutants.py are not about: wrappers around the reference."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ia_core import AttentionGradients, indirect_attention, indirect_attention_vjp
from ia_core.conformance import Implementation
from ia_core.conformance._implementation import BASIC

CALLS = {"count": 0, "scale": None}


def log2_lse(*qkv: Any, return_lse: bool = False, **rest: Any) -> Any:
    output, lse = indirect_attention(*qkv, return_lse=True, **rest)
    return (output, lse / math.log(2)) if return_lse else output


def lse_of_empty_rows_is_0(*qkv: Any, return_lse: bool = False, **rest: Any) -> Any:
    output, lse = indirect_attention(*qkv, return_lse=True, **rest)
    return (output, np.where(np.isinf(lse), 0.0, lse)) if return_lse else output


def width_of_keys(query: Any, key: Any, value: Any, **rest: Any) -> Any:
    output = indirect_attention(query, key, value, **rest)
    return output[0] if rest.get("return_lse") else output[..., : query.shape[-1]]


def float32_output(*qkv: Any, **rest: Any) -> Any:
    return np.asarray(indirect_attention(*qkv, **{**rest, "return_lse": False}), dtype=np.float32)


def one_batch_for_all(query: Any, key: Any, value: Any, **rest: Any) -> Any:
    if query.ndim > 3 and query.size and key.size:
        key, value = (np.broadcast_to(a[..., :1, :, :, :], a.shape) for a in (key, value))
    return indirect_attention(query, key, value, **rest)


def mask_leaks(query: Any, key: Any, value: Any, *, mask: Any = None, bias: Any = None, **rest: Any) -> Any:
    if mask is not None:
        hidden = np.where(mask, 0.0, -30.0).astype(query.dtype)
        bias = hidden if bias is None else bias + hidden
    return indirect_attention(query, key, value, bias=bias, **rest)


def poison_leaks(query: Any, key: Any, value: Any, *, mask: Any = None, bias: Any = None, **rest: Any) -> Any:
    if mask is not None and bias is None and np.isnan(value).any():
        bias = np.where(mask, 0.0, -np.inf).astype(query.dtype)
        mask = None
    return indirect_attention(query, key, value, mask=mask, bias=bias, **rest)


def nan_swallowed(query: Any, key: Any, value: Any, **rest: Any) -> Any:
    return indirect_attention(np.nan_to_num(query), key, value, **rest)


def no_keys_raise(query: Any, key: Any, value: Any, **rest: Any) -> Any:
    if key.shape[-2] == 0:
        raise IndexError("max of nothing")
    return indirect_attention(query, key, value, **rest)


def no_queries_give_a_row(query: Any, key: Any, value: Any, **rest: Any) -> Any:
    query = query if query.shape[-2] else np.zeros((*query.shape[:-2], 1, query.shape[-1]), query.dtype)
    return indirect_attention(query, key, value, **rest)


def maximum_not_subtracted(query: Any, key: Any, value: Any, *, bias: Any = None, **rest: Any) -> Any:
    top = 0 if bias is None else np.max(np.where(np.isinf(bias), 0, bias), initial=0.0)
    output = indirect_attention(query, key, value, bias=bias, **rest)
    return output * np.asarray(np.inf if top > 700 else 1, dtype=query.dtype)


def finite_sentinel(query: Any, key: Any, value: Any, *, bias: Any = None, **rest: Any) -> Any:
    bias = None if bias is None else np.maximum(bias, np.asarray(-5.0, bias.dtype))
    return indirect_attention(query, key, value, bias=bias, **rest)


def float64_in_float32(*qkv: Any, bias: Any = None, **rest: Any) -> Any:
    dtype = qkv[0].dtype
    low = [a.astype(np.float32) for a in qkv]
    bias = None if bias is None else bias.astype(np.float32)
    found = indirect_attention(*low, bias=bias, **{**rest, "return_lse": False})
    return found.astype(dtype)


def long_rows_cut(query: Any, key: Any, value: Any, **rest: Any) -> Any:
    return indirect_attention(query, key[..., :4000, :], value[..., :4000, :], **rest)


def strides_ignored(query: Any, key: Any, value: Any, **rest: Any) -> Any:
    if value.size and not value.flags.c_contiguous:
        value = np.lib.stride_tricks.as_strided(value, strides=(*value.strides[:-1], value.itemsize))
    return indirect_attention(query, key, value, **rest)


def value_written(query: Any, key: Any, value: Any, **rest: Any) -> Any:
    output = indirect_attention(query, key, value, **rest)
    value *= 2
    return output


def not_repeatable(query: Any, key: Any, value: Any, **rest: Any) -> Any:
    CALLS["count"] += 1
    output = indirect_attention(query, key, value, **{**rest, "return_lse": False})
    return output * np.asarray(1 + CALLS["count"] % 2 * 2 * np.finfo(query.dtype).eps, dtype=query.dtype)


def first_scale_kept(query: Any, key: Any, value: Any, *, scale: Any = None, **rest: Any) -> Any:
    if query.shape[-2] == 1:  # forgets here, so that each drawn case begins anew
        CALLS["scale"] = None
    CALLS["scale"] = CALLS["scale"] or scale
    return indirect_attention(query, key, value, scale=CALLS["scale"], **rest)


def _vjp(change: Callable[[AttentionGradients], list[Any]]) -> Callable[..., Any]:
    def vjp(cotangent: Any, query: Any, key: Any, value: Any, **keywords: Any) -> Any:
        found = indirect_attention_vjp(query, key, value, cotangent, **keywords)
        return [g for g in change(found) if g is not None]

    return vjp


GRADIENTS = {
    "key_gradient_halved": (_vjp(lambda g: [g.query, g.key / 2, g.value, g.bias]), ("IA-G-01", "IA-G-05")),
    "groups_not_summed": (_vjp(lambda g: [g.query, g.key, g.value / 2, g.bias]), ("IA-G-03",)),
    "masked_gradient_leaks": (_vjp(lambda g: [g.query + 1e-30, g.key, g.value, g.bias]), ("IA-G-04",)),
    "zero_cotangent_ignored": (_vjp(lambda g: [g.query + 1e-300, g.key, g.value, g.bias]), ("IA-G-06",)),
}
FORWARD: list[tuple[Callable[..., Any], tuple[str, ...]]] = [
    (log2_lse, ("IA-F-08", "IA-E-07")),
    (lse_of_empty_rows_is_0, ("IA-S-03",)),
    (width_of_keys, ("IA-F-09",)),
    (float32_output, ("IA-F-10",)),
    (one_batch_for_all, ("IA-F-11", "IA-E-10")),
    (mask_leaks, ("IA-E-08", "IA-E-14", "IA-S-01")),
    (poison_leaks, ("IA-S-06",)),
    (nan_swallowed, ("IA-S-07",)),
    (no_keys_raise, ("IA-S-04",)),
    (no_queries_give_a_row, ("IA-S-05",)),
    (maximum_not_subtracted, ("IA-S-09", "IA-E-11")),
    (finite_sentinel, ("IA-S-10",)),
    (float64_in_float32, ("IA-P-01",)),
    (long_rows_cut, ("IA-P-05",)),
    (strides_ignored, ("IA-L-01",)),
    (value_written, ("IA-L-02",)),
    (not_repeatable, ("IA-L-03",)),
    (first_scale_kept, ("IA-L-04",)),
]


def implementations() -> list[tuple[Implementation, tuple[str, ...]]]:
    """Every mutant with the clauses that are about it."""
    found = [(Implementation(fn, fn.__name__), labels) for fn, labels in FORWARD]
    for name, (vjp, labels) in GRADIENTS.items():
        found.append((Implementation(indirect_attention, name, supports=BASIC | {"grad"}, vjp=vjp), labels))
    return found
