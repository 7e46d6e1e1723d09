"""JAX on the CPU: the compiled kernel, called by XLA, which evaluates a position bias inside the block of scores.

What comes before it, the compilation of the bias into lines between knots, is plain JAX and is differentiated as such.
The kernel has first derivatives in reverse. A mapped axis becomes part of the batch.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

from .._arrays import widen
from .._attention import prepare
from .._checks import Call, check_call
from .._position_bias import PositionBias
from . import _native
from ._compiled_bias import has_lines, lines_of, positions_near_zero
from ._jax_traces import four_axes, platforms_of, why_no_derivative, why_not_one_device

__all__ = ["attend", "declines"]


class _Lines(NamedTuple):
    """A bias for the kernel: positions (B, M) and (B, N), and the tables that all batch elements share."""

    query_positions: Any
    value_positions: Any
    knots: Any  # (K,)
    slopes: Any  # (H, 2 K + 1)
    intercepts: Any


def declines(call: Call, arrays: dict[str, Any], return_lse: bool) -> str | None:
    """Why this path does not take the call, or None."""
    why = why_no_derivative(arrays)
    if why is not None:
        return why
    if "bias.f.x.w1" in arrays:
        return "it evaluates functions of one offset; a BoxMLP is one of two"
    if "bias" in arrays:
        return "it does not give the gradient of a bias that is a matrix"
    why = why_not_one_device(arrays)
    if why is not None:
        return why
    for platform, name in platforms_of(arrays).items():
        if platform != "cpu":
            where = f"`{name}` is on {platform}" if name else f"JAX computes on {platform}"
            return f"its kernel is for the CPU; {where}"
    return _native.why_not(jax.ffi.include_dir())


def attend(call: Call, query: Any, key: Any, value: Any, bias: Any, mask: Any) -> tuple[Any, Any]:
    """Output and lse of a checked call, in the working dtype."""
    _register()
    return _compiled(query, key, value, bias, mask, scale=call.scale)


@functools.cache
def _register() -> None:
    library = _native.entry_points(jax.ffi.include_dir())
    for name in ("forward", "backward"):
        capsule = jax.ffi.pycapsule(getattr(library, f"ia_jax_{name}"))
        jax.ffi.register_ffi_target(f"ia_core_{name}", capsule, platform="cpu")


@functools.partial(jax.jit, static_argnames="scale")
def _compiled(query: Any, key: Any, value: Any, bias: Any, mask: Any, *, scale: float) -> tuple[Any, Any]:
    call = check_call(query, key, value, bias, mask, scale)
    # Grouped heads are read in place, unless what a mask hides from one of them another may see.
    q, k, v = widen(query), widen(key), widen(value)
    allowed = None
    if mask is not None:
        q, k, v, _ = prepare(call, query, key, value, mask)
        allowed = four_axes(call, mask)
    B = math.prod(call.batch)
    rows = tuple(array.reshape(B, *array.shape[-3:]) for array in (q, k, v))
    output, lse = _attention(call.scale, rows, _lines(call, bias), allowed)
    shape = call.scores_shape[:-1]
    return output.reshape(*shape, v.shape[-1]), lse.reshape(shape)


def _lines(call: Call, bias: Any) -> _Lines | None:
    if not isinstance(bias, PositionBias) or not has_lines(bias):
        return None
    g = lines_of(bias)
    shape = (call.H, 2 * g.knots.shape[0] + 1)
    tables = [jnp.broadcast_to(table.T, shape) for table in (g.slopes, g.intercepts)]
    places = []
    for at in positions_near_zero(bias):
        if jnp.issubdtype(at.dtype, jnp.floating):
            at = widen(at)
        elif at.dtype not in (jnp.int32, jnp.int64):
            at = at.astype(jax.dtypes.canonicalize_dtype(jnp.int64))
        places.append(jnp.broadcast_to(at, (*call.batch, at.shape[-1])).reshape(math.prod(call.batch), at.shape[-1]))
    return _Lines(places[0], places[1], jax.lax.stop_gradient(g.knots), tables[0], tables[1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(scale: float, rows: Any, lines: _Lines | None, mask: Any) -> tuple[Any, Any]:
    return _forward(scale, rows, lines, mask)[:2]


def _keep(scale: float, rows: Any, lines: _Lines | None, mask: Any) -> Any:
    results = _forward(scale, rows, lines, mask)
    return results[:2], (rows, lines, mask, results)


def _differentiate(scale: float, kept: Any, cotangents: Any) -> Any:
    rows, lines, mask, results = kept
    (d_query, d_key, d_value), d_lines = _backward(scale, (*rows, *results, *cotangents), lines, mask)
    B, Hk = rows[1].shape[:2]
    group = rows[0].shape[1] // max(1, Hk)
    d_key, d_value = (
        to if group == 1 else to.reshape(B, Hk, group, *to.shape[2:]).sum(2)  # of the heads that share one
        for to in (d_key, d_value)
    )
    d_rows = (d_query, d_key, d_value)
    if lines is None:
        return d_rows, None, None
    d_queries, d_values, d_slopes, d_intercepts = d_lines
    d_queries, d_values = (
        to if jnp.issubdtype(at.dtype, jnp.floating) else None  # whole numbers have no gradient
        for to, at in ((d_queries, lines.query_positions), (d_values, lines.value_positions))
    )
    d_knots = jnp.zeros_like(lines.knots)
    return d_rows, _Lines(d_queries, d_values, d_knots, d_slopes.sum(0), d_intercepts.sum(0)), None


_attention.defvjp(_keep, _differentiate)


def _forward(scale: float, rows: Any, lines: _Lines | None, mask: Any) -> Any:
    """Output (B, H, M, Dv) and lse (B, H, M); for the gradient, the row's maximum and sum, of which the lse is made."""
    return _mappable(_call_forward, scale)(rows, lines, mask)


def _call_forward(scale: float, rows: Any, lines: _Lines | None, mask: Any) -> Any:
    q, _, v = rows
    shape, dtype = q.shape[:3], q.dtype
    results = [jax.ShapeDtypeStruct(s, dtype) for s in ((*shape, v.shape[-1]), shape, shape, shape)]
    return tuple(_ffi("ia_core_forward", results, scale, rows, lines, mask))


def _backward(scale: float, arrays: Any, lines: _Lines | None, mask: Any) -> Any:
    """Gradients of query, key and value, one for each head, and of positions, slopes and intercepts."""
    return _mappable(_call_backward, scale)(arrays, lines, mask)


def _call_backward(scale: float, arrays: Any, lines: _Lines | None, mask: Any) -> Any:
    (B, H, M, D), (*_, N, Dv), q = arrays[0].shape, arrays[2].shape, arrays[0]
    results = [jax.ShapeDtypeStruct((B, H, *s), q.dtype) for s in ((M, D), (N, D), (N, Dv))]
    if lines is not None:
        wide = lines.slopes.dtype
        kinds = [at.dtype if jnp.issubdtype(at.dtype, jnp.floating) else wide for at in lines[:2]]
        results += [jax.ShapeDtypeStruct((B, L), kind) for L, kind in zip((M, N), kinds, strict=True)]
        results += [jax.ShapeDtypeStruct((B, *lines.slopes.shape), wide)] * 2
    found = _ffi("ia_core_backward", results, scale, arrays, lines, mask)
    return tuple(found[:3]), tuple(found[3:])


def _ffi(name: str, results: Any, scale: float, arrays: Any, lines: _Lines | None, mask: Any) -> Any:
    given = [*arrays, *(lines or ()), *(() if mask is None else (mask,))]
    whole, real = (jnp.dtype(kind).type for kind in ("int64", "float64"))  # scalars of NumPy, whatever JAX computes in
    flags = {"lines": whole(lines is not None), "masked": whole(mask is not None)}
    return jax.ffi.ffi_call(name, results)(*given, scale=real(scale), **flags)


@functools.cache
def _mappable(function: Callable[..., Any], scale: float) -> Any:
    """The call of a kernel, in which a mapped axis becomes part of the batch, the leading axis of most arrays."""
    whole = custom_vmap(functools.partial(function, scale))

    @whole.def_vmap
    def _(size: int, mapped: Any, arrays: Any, lines: _Lines | None, mask: Any) -> Any:
        its = lines is not None and mapped[1] is not None and any(mapped[1][2:])
        if its:  # tables of its own for each element of the axis: one after the other
            return _one_by_one(whole, mapped, (arrays, lines, mask))
        B = arrays[0].shape[1 if mapped[0][0] else 0]

        def fold(array: Any, is_mapped: bool) -> Any:
            if not is_mapped:
                array = jnp.broadcast_to(array, (size, *array.shape))
            return array.reshape(size * array.shape[1], *array.shape[2:])

        arrays = tuple(fold(*pair) for pair in zip(arrays, mapped[0], strict=True))
        if lines is not None:
            queries, values = (fold(*pair) for pair in zip(lines[:2], mapped[1][:2], strict=True))
            lines = lines._replace(query_positions=queries, value_positions=values)
        if mask is not None and (mapped[2] or mask.shape[0] != 1):
            own = mask if mapped[2] else mask[None]
            mask = fold(jnp.broadcast_to(own, (size, B, *own.shape[2:])), True)
        found = whole(arrays, lines, mask)
        unfolded = jax.tree.map(lambda array: array.reshape(size, B, *array.shape[1:]), found)
        return unfolded, jax.tree.map(lambda _: True, found)

    return whole


def _one_by_one(function: Any, mapped: Any, given: Any) -> Any:
    leaves, tree = jax.tree.flatten(given)
    moves = [at for at, is_mapped in enumerate(jax.tree.leaves(mapped)) if is_mapped]

    def one(parts: Any) -> Any:
        its = dict(zip(moves, parts, strict=True))
        return function(*jax.tree.unflatten(tree, [its.get(at, leaf) for at, leaf in enumerate(leaves)]))

    found = jax.lax.map(one, [leaves[at] for at in moves])
    return found, jax.tree.map(lambda _: True, found)
