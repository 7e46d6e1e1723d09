"""Partial states whose lse stands relative to a whole number near the row's largest score.

An lse of -1e308 cannot hold the logarithm of how many keys it counts, so states of blocks of different sizes would
merge with equal weights (IA-S-12 sees it). Two numbers can: ``lse = top + low``, 0 <= low <= log N. The merge itself
is ``merge_states``, on lses relative to the larger top.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from .._arrays import Array, array_namespace
from .._attention import scores, softmax
from .._checks import Call
from .._state import AttentionState, merge_states

__all__ = ["RelativeState", "absolute", "empty_relative", "merge_relative", "relative_state"]


class RelativeState(NamedTuple):
    """Output (..., H, M, Dv), top and low (..., H, M); top is -inf for a row with nothing to attend to."""

    output: Array
    top: Array
    low: Array


def relative_state(call: Call, q: Array, k: Array, v: Array, bias: Any, mask: Array | None) -> RelativeState:
    """The state over prepared arrays of at least one key (see ``ia_core._attention.prepare``)."""
    xp = call.xp
    s = scores(call, q, k, bias, mask)
    top = xp.ceil(xp.max(s, axis=-1, keepdims=True))
    shift = xp.where(top == -math.inf, 0.0, top)
    weights, low = softmax(call, s - shift)
    return RelativeState(xp.matmul(weights, v), top[..., 0], low)


def merge_relative(one: RelativeState, other: RelativeState) -> RelativeState:
    """The state over both parts of the keys."""
    xp = array_namespace(one.top)
    top = xp.maximum(one.top, other.top)
    shift = xp.where(top == -math.inf, 0.0, top)
    output, low = merge_states(*(AttentionState(part.output, (part.top - shift) + part.low) for part in (one, other)))
    return RelativeState(output, top, low)


def empty_relative(output: Array) -> RelativeState:
    """The state over no keys, shaped as an output: the identity of :func:`merge_relative`."""
    xp = array_namespace(output)
    low = xp.full_like(output[..., 0], -math.inf)
    return RelativeState(xp.zeros_like(output), low, low)


def absolute(state: RelativeState) -> AttentionState:
    """Output and lse."""
    xp = array_namespace(state.top)
    return AttentionState(state.output, xp.where(state.top == -math.inf, -math.inf, state.top + state.low))
