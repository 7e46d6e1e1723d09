"""The bias functions that the fast paths evaluate as lines between knots."""

from __future__ import annotations

from typing import Any

from .._arrays import array_namespace, dtype_name, widest_integer
from .._bias import LinearOffset, OffsetMLP, OffsetTable
from .._piecewise import PiecewiseLinear
from .._position_bias import PositionBias
from .._positions import is_integer

__all__ = ["has_lines", "lines_of", "network_as_lines", "positions_near_zero"]

_COMPILERS: dict[type, Any] = {
    OffsetMLP: PiecewiseLinear.from_mlp,
    OffsetTable: PiecewiseLinear.from_table,
    LinearOffset: PiecewiseLinear.from_linear,
    PiecewiseLinear: lambda f: f,
}


def has_lines(bias: Any) -> bool:
    """Whether a bias is a function of one offset, and so lines between knots."""
    return isinstance(bias, PositionBias) and type(bias.f) in _COMPILERS


def lines_of(bias: PositionBias) -> PiecewiseLinear:
    """The same function, compiled."""
    compiled: PiecewiseLinear = _COMPILERS[type(bias.f)](bias.f)
    return compiled


def positions_near_zero(bias: PositionBias) -> list[Any]:
    """Positions of queries and values; whole ones counted from the first value.

    Offsets of whole numbers are exact however far from 0 these are, and no float holds all of them.

    >>> import numpy as np
    >>> bias = PositionBias(LinearOffset(np.ones(1)), np.asarray([2**60 + 1]), 2**60 + np.arange(3))
    >>> positions_near_zero(bias)
    [array([1]), array([0, 1, 2])]
    """
    places = [bias.query_positions, bias.value_positions]
    if not all(is_integer(at) for at in places) or places[1].shape[-1] == 0:
        return places
    if any(dtype_name(at.dtype) != "int64" for at in places):  # differences of short ones would wrap around
        xp = array_namespace(places[1])
        places = [xp.astype(at, widest_integer(xp)) for at in places]
    return [at - places[1][..., :1] for at in places]


def network_as_lines(bias: Any, least: int = 0) -> Any:
    """A bias whose network has at least so many hidden units, compiled; every other one as it is."""
    if not (isinstance(bias, PositionBias) and type(bias.f) is OffsetMLP and bias.f.w1.shape[0] >= least):
        return bias
    return bias._replace(f=PiecewiseLinear.from_mlp(bias.f))
