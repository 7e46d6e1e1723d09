"""The bias functions that the fast paths evaluate as lines between knots."""

from __future__ import annotations

from typing import Any

from .._bias import LinearOffset, OffsetMLP, OffsetTable
from .._piecewise import PiecewiseLinear
from .._position_bias import PositionBias

__all__ = ["has_lines", "lines_of", "network_as_lines"]

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


def network_as_lines(bias: Any, least: int = 0) -> Any:
    """A bias whose network has at least so many hidden units, compiled; every other one as it is."""
    if not (isinstance(bias, PositionBias) and type(bias.f) is OffsetMLP and bias.f.w1.shape[0] >= least):
        return bias
    return bias._replace(f=PiecewiseLinear.from_mlp(bias.f))
