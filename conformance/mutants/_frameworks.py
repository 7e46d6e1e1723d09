"""Bugs that live in what a framework does to a function: automatic differentiation, compilation, mapping.

No framework is imported: arrays bring their methods along.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ia_core import LinearOffset, OffsetMLP, PositionBias, indirect_attention

from .._implementation import BASIC
from ._mutant import REMEMBERED as _KEPT
from ._mutant import instead

__all__: list[str] = []

GRAD = BASIC | {"grad", "bias_grad"}
TORCH = {"library": "torch", "dtypes": ("float64", "float32")}
JAX = {"library": "jax", "dtypes": ("float32",), "supports": BASIC | {"grad", "bias_grad", "compile", "vmap"}}


def _on_gradient(array: Any, change: Any) -> Any:
    """The array, with a change of the gradient that flows into it (torch)."""
    if not getattr(array, "requires_grad", False):
        return array
    same = array * 1
    same.register_hook(change)
    return same


@instead("gradients", "IA-G-08", supports=GRAD, **TORCH)
def gradient_only_if_the_query_needs_one(query: Any, key: Any, value: Any, **rest: Any) -> Any:
    """If the query needs no gradient, nothing is kept for the others' (torch)."""
    if not query.requires_grad:
        key, value = key.detach(), value.detach()
        rest["bias"] = None if rest.get("bias") is None else rest["bias"].detach()
    return indirect_attention(query, key, value, **rest)


@instead("gradients", "IA-G-02", "IA-G-08", supports=GRAD, **TORCH)
def bias_detached(query: Any, key: Any, value: Any, **rest: Any) -> Any:
    """The bias takes no part in automatic differentiation (torch)."""
    rest["bias"] = None if rest.get("bias") is None else rest["bias"].detach()
    return indirect_attention(query, key, value, **rest)


@instead("gradients", "IA-G-10", supports=GRAD | {"double_grad"}, **TORCH)
def gradient_without_a_gradient(query: Any, key: Any, value: Any, **rest: Any) -> Any:
    """The gradient of the query is a constant to a second differentiation (torch)."""
    return indirect_attention(_on_gradient(query, lambda g: g.detach()), key, value, **rest)


@instead("gradients", "IA-G-12", supports=GRAD | {"lse_grad"}, **TORCH)
def lse_is_a_constant(query: Any, key: Any, value: Any, **rest: Any) -> Any:
    """No gradient flows through the lse (torch)."""
    found = indirect_attention(query, key, value, **rest)
    return (found[0], _on_gradient(found[1], lambda g: g * 0)) if rest.get("return_lse") else found


@instead("gradients", "IA-G-12", supports=GRAD | {"lse_grad"}, **TORCH)
def lse_gradient_negated(query: Any, key: Any, value: Any, **rest: Any) -> Any:
    """The cotangent of the lse is subtracted (torch)."""
    found = indirect_attention(query, key, value, **rest)
    return (found[0], _on_gradient(found[1], lambda g: -g)) if rest.get("return_lse") else found


PARAMETERS = GRAD | {"position_bias", "parameter_grad"}


@instead("gradients", "IA-G-07", supports=PARAMETERS, **TORCH)
def equal_offsets_overwrite_each_other(query: Any, key: Any, value: Any, *, bias: Any = None, **rest: Any) -> Any:
    """Of all uses of one offset only the last adds to the parameters' gradient (torch)."""
    if isinstance(bias, PositionBias) and isinstance(bias.f, OffsetMLP | LinearOffset):
        relative = np.asarray(bias.f.offsets(bias.query_positions, bias.value_positions).tolist())
        flat = relative.reshape(-1)
        last = [t not in flat[n + 1 :] for n, t in enumerate(flat)]
        keep = np.asarray(last).reshape(relative.shape)[..., None, :, :]
        bias = _on_gradient(bias.dense(), lambda g: g * g.new_tensor(keep.tolist()))
    return indirect_attention(query, key, value, bias=bias, **rest)


def _positions(bias: Any, change: Any) -> Any:
    return bias._replace(query_positions=change(bias.query_positions)) if isinstance(bias, PositionBias) else bias


@instead("gradients", "IA-G-14", supports=PARAMETERS, **TORCH)
def positions_are_constants(query: Any, key: Any, value: Any, *, bias: Any = None, **rest: Any) -> Any:
    """Query positions have no gradient (torch)."""
    return indirect_attention(query, key, value, bias=_positions(bias, lambda p: p.detach()), **rest)


@instead("gradients", "IA-G-14", supports=PARAMETERS, **TORCH)
def position_gradient_negated(query: Any, key: Any, value: Any, *, bias: Any = None, **rest: Any) -> Any:
    """The gradient of query positions is that of the offsets, without the minus (torch)."""
    moved = _positions(bias, lambda p: _on_gradient(p, lambda g: -g))
    return indirect_attention(query, key, value, bias=moved, **rest)


def _traced(array: Any) -> bool:
    return "Tracer" in type(array).__name__


@instead("transforms", "IA-T-01", **JAX)
def mask_ignored_where_traced(query: Any, key: Any, value: Any, *, mask: Any = None, **rest: Any) -> Any:
    """A mask whose values are not known yet is dropped (JAX)."""
    return indirect_attention(query, key, value, mask=None if _traced(mask) else mask, **rest)


@instead("transforms", "IA-T-02", **JAX)
def keys_of_the_first_trace(query: Any, key: Any, value: Any, **rest: Any) -> Any:
    """A number of keys is kept from the first trace; longer ones are cut (JAX)."""
    if _traced(query):
        N = _KEPT.setdefault("N", key.shape[-2])
        if key.shape[-2] > N:
            rest |= {n: rest[n][..., :N] for n in ("bias", "mask") if rest.get(n) is not None}
            key, value = key[..., :N, :], value[..., :N, :]
    return indirect_attention(query, key, value, **rest)


@instead("transforms", "IA-T-03", **JAX)
def scale_of_the_first_trace(query: Any, key: Any, value: Any, *, scale: Any = None, **rest: Any) -> Any:
    """The scale of the first trace is kept (JAX)."""
    scale = _KEPT.setdefault(("scale", query.shape), scale) if _traced(query) else scale
    return indirect_attention(query, key, value, scale=scale, **rest)


@instead("transforms", "IA-T-04", **JAX)
def flattened_under_vmap(query: Any, key: Any, value: Any, **rest: Any) -> Any:
    """A mapped axis is not known: values are reversed there (JAX)."""
    if type(query).__name__ == "BatchTracer":
        value = value[..., ::-1, :]
    return indirect_attention(query, key, value, **rest)


@instead("transforms", "IA-T-05", **JAX)
def bias_without_gradient_where_compiled(query: Any, key: Any, value: Any, *, bias: Any = None, **rest: Any) -> Any:
    """A compiled bias goes through fixed point, where nothing flows back (JAX)."""
    if bias is not None and type(bias).__name__ == "DynamicJaxprTracer":
        bias = (bias * 2.0**23).round() / 2.0**23
    return indirect_attention(query, key, value, bias=bias, **rest)
