"""JAX on a GPU: Pallas kernels that evaluate a position bias inside the tile of scores it is added to.

On a CPU the same kernels are interpreted, as operations of XLA. What comes before them, the compilation of the bias
into lines between knots, is plain JAX and is differentiated as such. The kernels have first derivatives in reverse; a
mapped axis becomes one of the grid. In halves the products are those of the tensor cores, which take weights as halves:
here as a sum of two or three of them, whose rest is below the rounding of float32 sums (IA-P-03, IA-P-04).
"""

from __future__ import annotations

import functools
import importlib
import math
from typing import Any

import jax
import jax.numpy as jnp

from .._arrays import dtype_name, widen
from .._bias import LinearOffset, OffsetMLP
from .._checks import Call, check_call
from .._piecewise import PiecewiseLinear
from .._position_bias import PositionBias
from ._compiled_bias import has_lines, lines_of, positions_near_zero
from ._jax_traces import four_axes, platforms_of, why_no_derivative, why_not_one_device
from ._pallas_plan import Lines, Over, Plan, Rows, on_platform

__all__ = ["attend", "declines"]

WIDEST = 256
MOST_KNOTS = 4096  # each block of queries has a row of sums for each cell
CAPABILITY = 8.0


def declines(call: Call, arrays: dict[str, Any], return_lse: bool) -> str | None:
    """Why this path does not take the call, or None."""
    why = _why_no_pallas() or why_no_derivative(arrays) or why_not_one_device(arrays) or _why_not_here(arrays)
    if why is not None:
        return why
    if "bias.f.x.w1" in arrays:
        return "it evaluates functions of one offset; a BoxMLP is one of two"
    width = max(call.D, arrays["value"].shape[-1])
    if width > WIDEST:
        return f"its tiles hold rows of up to {WIDEST} numbers; these have {width}"
    knots = max((arrays[name].shape[-1] for name in _TABLES if name in arrays), default=0)
    if knots > MOST_KNOTS:
        return f"its tables hold up to {MOST_KNOTS} knots; the bias has {knots}"
    return None


_TABLES = ("bias.f.w1", "bias.f.values", "bias.f.knots")


@functools.cache
def _why_no_pallas() -> str | None:
    """JAX 0.11.0 deprecates the backend for Triton: a later one may not have it."""
    try:
        found = hasattr(importlib.import_module("jax.experimental.pallas.triton"), "CompilerParams")
    except ImportError:
        found = False
    return None if found else f"its kernels need Pallas's backend for Triton, which JAX {jax.__version__} does not have"


def _why_not_here(arrays: dict[str, Any]) -> str | None:
    for platform in sorted(platforms_of(arrays)):
        if platform not in ("cpu", "gpu", "cuda"):
            return f"its kernels are for NVIDIA's GPUs; JAX computes on {platform}"
        if platform == "cpu":
            continue
        if dtype_name(arrays["query"].dtype) == "float64":
            return "its kernels compute in float32 on a GPU; `query` is float64"
        capability = getattr(jax.devices(platform)[0], "compute_capability", "")
        if not capability.replace(".", "").isdigit() or float(capability) < CAPABILITY:
            return f"its kernels are for NVIDIA's GPUs of compute capability {CAPABILITY} and later"
    return None


def attend(call: Call, query: Any, key: Any, value: Any, bias: Any, mask: Any) -> tuple[Any, Any]:
    """Output and lse of a checked call, in the working dtype."""
    return _compiled(query, key, value, bias, mask, scale=call.scale)


@functools.partial(jax.jit, static_argnames="scale")
def _compiled(query: Any, key: Any, value: Any, bias: Any, mask: Any, *, scale: float) -> tuple[Any, Any]:
    call = check_call(query, key, value, bias, mask, scale)
    work, Dv = widen(query).dtype, value.shape[-1]
    shape = call.scores_shape[:-1]
    if 0 in call.scores_shape:  # no programs, or no tiles
        return jnp.zeros((*shape, Dv), work), jnp.full(shape, -math.inf, work)
    B = math.prod(call.batch)
    rows = Rows(*(array.reshape(B, *array.shape[-3:]) for array in (query, key, value)))
    matrix = bias if bias is not None and not isinstance(bias, PositionBias) else None
    over = Over(*(None if array is None else four_axes(call, array) for array in (matrix, mask)))
    rows = _clean(rows, over.mask)
    lines = _lines(call, bias, work)
    plan = Plan(
        batch=B,
        heads=call.H,
        key_heads=rows.key.shape[1],
        M=call.M,
        N=call.N,
        D=query.shape[-1],
        Dv=Dv,
        knots=None if lines is None else lines.knots.shape[0],
        scale=scale,
        smooth=isinstance(bias, PositionBias) and type(bias.f) in (OffsetMLP, LinearOffset),
        query=dtype_name(rows.query.dtype),
        work=dtype_name(work),
    )
    output, lse, _, _ = _attention(plan, rows, lines, over)
    return output.reshape(*shape, Dv), lse.reshape(shape)


def _clean(rows: Rows, mask: Any) -> Rows:
    """Zeros where no attention is allowed; a key head for each query head where these have masks of their own.

    What copies of a key have for gradients is added before the one rounding: they are in the working dtype.
    """
    if mask is None:
        return rows
    query, key, value = rows
    asks, attended = jnp.any(mask, -1, keepdims=True), jnp.any(mask, -2)[..., None]  # (b, h, m, 1) and (b, h, n, 1)
    if attended.shape[1] != 1 and key.shape[1] != query.shape[1]:
        group = query.shape[1] // key.shape[1]
        query, key, value = map(widen, rows)
        key, value = (jnp.repeat(array, group, axis=1) for array in (key, value))
    zero = jnp.zeros((), query.dtype)
    return Rows(jnp.where(asks, query, zero), *(jnp.where(attended, array, zero) for array in (key, value)))


def _lines(call: Call, bias: Any, work: Any) -> Lines | None:
    if not isinstance(bias, PositionBias) or not has_lines(bias):
        return None
    g = lines_of(bias)
    knots = jax.lax.stop_gradient(g.knots).astype(work)
    tables = [g.slopes, g.intercepts]
    if type(bias.f) is PiecewiseLinear:
        first = _first_of_equals(knots)
        tables = [table[first] for table in tables]
    shape = (call.H, 2 * g.knots.shape[0] + 1)
    slopes, intercepts = (jnp.broadcast_to(table.T, shape).astype(work) for table in tables)
    own = []
    for at in positions_near_zero(bias):
        at = at.astype(work)
        if math.prod(at.shape[:-1]) != 1:
            at = jnp.broadcast_to(at, (*call.batch, at.shape[-1]))
        own.append(at.reshape(math.prod(at.shape[:-1]), at.shape[-1]))
    return Lines(own[0], own[1], knots, slopes, intercepts)


def _first_of_equals(knots: Any) -> Any:
    """For each cell the one that offsets take there: of knots that coincide the first one's."""
    K = knots.shape[0]
    at = jnp.arange(2 * K + 1)
    if K == 0:
        return at
    before, after = knots[jnp.maximum(at - 1, 0) // 2], knots[jnp.minimum(at // 2, K - 1)]
    on = (at > 0) & (at < 2 * K) & (before == after)  # between knots that coincide, or on one
    return jnp.where(on, 2 * jnp.searchsorted(knots, after) + 1, at)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(plan: Plan, rows: Rows, lines: Lines | None, over: Over) -> tuple[Any, Any, Any, Any]:
    from ._pallas_forward import forward

    return on_platform(forward, plan, rows, lines, over)


def _keep(plan: Plan, rows: Any, lines: Any, over: Any) -> Any:
    """``perturbed`` says which arrays a gradient is asked of, in a form that holds no array."""
    given = jax.tree.map(lambda leaf: leaf.value, (rows, lines, over), is_leaf=_is_primal)
    asked = [
        () if array is not None and array.perturbed else None
        for array in (None if lines is None else lines.values, over.bias)
    ]
    results = _attention(plan, *given)
    return results, (given, results, asked)


def _is_primal(leaf: Any) -> bool:
    return hasattr(leaf, "perturbed")


def _differentiate(plan: Plan, kept: Any, cotangents: Any) -> Any:
    from ._pallas_backward import backward

    (rows, lines, over), (output, _, low, above), asked = kept
    cotangent, lse_cotangent = (_whole(one) for one in cotangents[:2])
    # What came from a half is one again.
    rest = jnp.sum(cotangent * output, -1) - lse_cotangent
    function = functools.partial(backward, wanted=(asked[0] is not None, asked[1] is not None))
    given = (rows, lines, over, cotangent.astype(rows.query.dtype), low, above, rest)
    d_rows, d_lines, d_bias = on_platform(function, plan, *given)
    if lines is not None:
        d_lines = d_lines._replace(knots=jnp.zeros_like(lines.knots))
    return d_rows, d_lines, Over(d_bias, None)


def _whole(cotangent: Any) -> Any:
    zero = isinstance(cotangent, jax.custom_derivatives.SymbolicZero)
    return jnp.zeros(cotangent.shape, cotangent.dtype) if zero else cotangent


_attention.defvjp(_keep, _differentiate, symbolic_zeros=True)
