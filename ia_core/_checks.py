"""Bad input to the attention call: refused before any compute, and while tracing, by shapes and dtypes alone.

=========  ============================================================  ==========
label      rule                                                          error
=========  ============================================================  ==========
IA-X-01    arrays, all of one library                                    TypeError
IA-X-02    all on one device                                             TypeError
IA-X-03    float16, bfloat16, float32 or float64                         TypeError
IA-X-04    one floating dtype; a bias may have the working dtype         TypeError
IA-X-05    query, key and value have one rank, at least 3                ValueError
IA-X-06    query and key have the same last axis D, at least 1           ValueError
IA-X-07    key and value have the same number N of positions             ValueError
IA-X-08    key and value have Hk heads, query a multiple of Hk           ValueError
IA-X-09    the leading axes agree                                        ValueError
IA-X-10    the bias broadcasts to (..., H, M, N)                         ValueError
IA-X-11    the mask is boolean                                           TypeError
IA-X-12    the mask broadcasts to (..., H, M, N)                         ValueError
IA-X-13    the scale is a finite real number, not negative               both
IA-X-14    the arrays of a bias function fit together                    both
IA-X-15    positions fit the bias function                               both
IA-X-16    a range of rows lies within the bias                          ValueError
=========  ============================================================  ==========
"""

from __future__ import annotations

import math
from numbers import Real
from typing import TYPE_CHECKING, Any, NamedTuple

from ._arrays import Array, Namespace, check_floating, dtype_name, namespace_of, working_dtype
from ._position_bias import PositionBias

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Call", "check_call", "check_over_scores"]


class Call(NamedTuple):
    """A checked call: the namespace, the sizes, the scale."""

    xp: Namespace
    batch: tuple[int, ...]
    H: int
    Hk: int
    M: int
    N: int
    D: int
    scale: float

    @property
    def scores_shape(self) -> tuple[int, ...]:
        """(..., H, M, N)."""
        return (*self.batch, self.H, self.M, self.N)


def check_call(
    query: Array, key: Array, value: Array, bias: Any = None, mask: Array | None = None, scale: Any = None
) -> Call:
    """Check the arguments of :func:`ia_core.indirect_attention`.

    Raises
    ------
    TypeError, ValueError
        As the table at the top of this module says.
    """
    arrays = {"query": query, "key": key, "value": value}
    if isinstance(bias, PositionBias):
        bias.check()
    others = {} if mask is None else {"mask": mask}
    xp = namespace_of(**arrays, **dict(_bias_arrays(bias)), **others)
    _check_dtypes(arrays)
    call = _check_shapes(xp, arrays, _check_scale(scale))
    check_over_scores(call, query, bias, mask)
    return call


def check_over_scores(call: Call, query: Array, bias: Any, mask: Array | None) -> None:
    """Check that a bias and a mask have their dtypes, and broadcast to the scores."""
    if isinstance(bias, PositionBias):
        _check_bias(query, bias.dtype, bias.shape, call)
    elif bias is not None:
        check_floating("bias", bias)
        _check_bias(query, bias.dtype, tuple(bias.shape), call)
    if mask is not None:
        if dtype_name(mask.dtype) not in ("bool", "bool_"):
            raise TypeError(f"`mask` must be boolean (True: may attend); got {dtype_name(mask.dtype)} [IA-X-11]")
        _check_broadcast("mask", tuple(mask.shape), call, "IA-X-12")


def _bias_arrays(bias: Any) -> Iterator[tuple[str, Array]]:
    if isinstance(bias, PositionBias):
        yield from bias.named_arrays()
    elif bias is not None:
        yield "bias", bias


def _check_dtypes(arrays: dict[str, Array]) -> None:
    for name, array in arrays.items():
        check_floating(name, array)
    names = {name: dtype_name(array.dtype) for name, array in arrays.items()}
    if len(set(names.values())) > 1:
        listed = ", ".join(f"`{name}` {dtype}" for name, dtype in names.items())
        raise TypeError(f"query, key and value must have one floating dtype; got {listed} [IA-X-04]")


def _check_shapes(xp: Namespace, arrays: dict[str, Array], scale: float | None) -> Call:
    shapes = {name: tuple(array.shape) for name, array in arrays.items()}
    query, key, value = shapes.values()
    for name, shape in shapes.items():
        if len(shape) < 3 or len(shape) != len(query):
            axes = {"query": "(..., H, M, D)", "key": "(..., Hk, N, D)", "value": "(..., Hk, N, Dv)"}[name]
            raise ValueError(f"`{name}` must have the axes {axes}; got shape {shape}, query {query} [IA-X-05]")
    for name, shape in shapes.items():
        if shape[:-3] != query[:-3]:
            raise ValueError(f"`{name}` must have the leading axes of query, {query[:-3]}; got shape {shape} [IA-X-09]")
    H, M, D = query[-3:]
    Hk, N, key_D = key[-3:]
    if key_D != D or D < 1:
        raise ValueError(f"`key` must have the last axis D = {D} of query, at least 1; got shape {key} [IA-X-06]")
    if value[-2] != N:
        raise ValueError(f"`value` must have the N = {N} positions of key; got shape {value} [IA-X-07]")
    if value[-3] != Hk:
        raise ValueError(f"`value` must have the Hk = {Hk} heads of key; got shape {value} [IA-X-08]")
    if H != Hk and (Hk == 0 or H % Hk):
        raise ValueError(f"`query` must have a multiple of the Hk = {Hk} heads of key; got H = {H} [IA-X-08]")
    return Call(xp, query[:-3], H, Hk, M, N, D, 1.0 / math.sqrt(D) if scale is None else scale)


def _check_scale(scale: Any) -> float | None:
    if scale is None:
        return None
    if not isinstance(scale, Real) or isinstance(scale, bool):
        raise TypeError(f"`scale` must be a real number, known before tracing; got {type(scale).__name__} [IA-X-13]")
    try:
        number = float(scale)
    except OverflowError:  # an integer beyond every float
        number = math.inf
    if not 0.0 <= number < math.inf:
        raise ValueError(f"`scale` must be finite and not negative; got {scale} [IA-X-13]")
    return number


def _check_bias(query: Array, dtype: Any, shape: tuple[int, ...], call: Call) -> None:
    allowed = {dtype_name(query.dtype), dtype_name(working_dtype(query))}
    if dtype_name(dtype) not in allowed:
        names = " or ".join(sorted(allowed))
        raise TypeError(f"`bias` must be {names} as query is; got {dtype_name(dtype)} [IA-X-04]")
    _check_broadcast("bias", shape, call, "IA-X-10")


def _check_broadcast(name: str, shape: tuple[int, ...], call: Call, label: str) -> None:
    target = call.scores_shape
    ends = zip(reversed(shape), reversed(target), strict=False)
    if len(shape) > len(target) or any(size != 1 and size != want for size, want in ends):
        axes = "(..., H, M, N)" if call.batch else "(H, M, N)"
        raise ValueError(f"`{name}` of shape {shape} does not broadcast to {axes} = {target} [{label}]")
