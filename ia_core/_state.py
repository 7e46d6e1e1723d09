"""Partial attention states: a commutative monoid (AttentionState, merge_states, empty_state).

The output and lse over one part of the keys are all that is needed to join it with any other part:

    lse = log(exp(lse_1) + exp(lse_2)),   output = exp(lse_1 - lse) output_1 + exp(lse_2 - lse) output_2.

The sum is commutative and associative up to rounding, and a state over no keys (output 0, lse -inf) is its
identity. Tiling, streaming and distribution over keys are all this one piece of mathematics (IA-E-07).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

from ._arrays import Array, check_floating, device, dtype_name, namespace_of
from ._attention import attend
from ._checks import check_call

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

    from ._position_bias import PositionBias

__all__ = ["AttentionState", "empty_state", "merge_states", "partial_attention"]


class AttentionState(NamedTuple):
    """What attention over one part of the keys leaves behind, in the working dtype.

    Attributes
    ----------
    output : array of shape (..., H, M, Dv)
    lse : array of shape (..., H, M)
        Natural logarithm of the rows' sums of exponentials over this part.

    Examples
    --------
    >>> import numpy as np
    >>> state = partial_attention(np.zeros((1, 1, 2)), np.zeros((1, 1, 2)), np.ones((1, 1, 3)))
    >>> state.output, state.lse
    (array([[[1., 1., 1.]]]), array([[0.]]))
    """

    output: Float[Array, "... H M Dv"]
    lse: Float[Array, "... H M"]


def partial_attention(
    query: Float[Array, "... H M D"],
    key: Float[Array, "... Hk N D"],
    value: Float[Array, "... Hk N Dv"],
    *,
    bias: Float[Array, "..."] | PositionBias | None = None,
    mask: Bool[Array, "..."] | None = None,
    scale: float | None = None,
) -> AttentionState:
    """Attention over one part of the keys, as a state that merges with the others (P11).

    Parameters
    ----------
    query, key, value, bias, mask, scale
        As in :func:`ia_core.indirect_attention`; key, value, bias and mask hold this part's N positions.

    Returns
    -------
    AttentionState
        Not rounded to query's dtype: that is done once, after the last merge.

    Raises
    ------
    TypeError, ValueError
        As in :func:`ia_core.indirect_attention`.

    Notes
    -----
    Equation P11 of arXiv 2509.26015, over part of the sum.

    Examples
    --------
    >>> import numpy as np
    >>> q, k, v = np.ones((1, 1, 2)), np.eye(2)[None], np.asarray([[[1.0], [3.0]]])
    >>> parts = [partial_attention(q, k[:, j : j + 1], v[:, j : j + 1]) for j in range(2)]
    >>> merge_states(*parts).output
    array([[[2.]]])
    """
    call = check_call(query, key, value, bias, mask, scale)
    return AttentionState(*attend(call, query, key, value, bias, mask))


def merge_states(one: AttentionState, other: AttentionState) -> AttentionState:
    """The state over both parts of the keys.

    Parameters
    ----------
    one, other : AttentionState
        Over disjoint parts of the keys, for the same queries.

    Returns
    -------
    AttentionState

    Raises
    ------
    TypeError, ValueError
        If the states differ in library, device, dtype or shape (IA-X-17).

    Notes
    -----
    Follows from P11 of arXiv 2509.26015 by splitting the sum over j.

    Examples
    --------
    >>> import numpy as np
    >>> state = AttentionState(np.asarray([[[5.0]]]), np.asarray([[2.0]]))
    >>> merge_states(state, empty_state((1, 1, 1), like=state.output)) == state
    True
    """
    xp = _check_states(one, other)
    top = xp.maximum(one.lse, other.lse)
    top = xp.where(top == -math.inf, 0.0, top)  # exp(-inf - (-inf)) would be nan
    mass_one, mass_other = xp.exp(one.lse - top), xp.exp(other.lse - top)
    total = mass_one + mass_other
    empty = total == 0.0
    total = xp.where(empty, 1.0, total)
    output = (mass_one / total)[..., None] * one.output + (mass_other / total)[..., None] * other.output
    return AttentionState(output, xp.where(empty, -math.inf, top + xp.log(total)))


def empty_state(shape: tuple[int, ...], *, like: Array) -> AttentionState:
    """The state over no keys: the identity of :func:`merge_states`.

    Parameters
    ----------
    shape : tuple of int
        (..., H, M, Dv) of the output.
    like : array
        Gives the library, the device and the working dtype.

    Returns
    -------
    AttentionState
        Output 0, lse ``-inf``.

    Raises
    ------
    TypeError
        If ``like`` is no array (IA-X-01), or neither float32 nor float64 (IA-X-17).

    Examples
    --------
    >>> import numpy as np
    >>> empty_state((1, 2, 3), like=np.zeros(1)).lse
    array([[-inf, -inf]])
    """
    xp = namespace_of(like=like)
    _check_working("like", like)
    where = {"dtype": like.dtype, "device": device(like)}
    return AttentionState(xp.zeros(shape, **where), xp.full(shape[:-1], -math.inf, **where))


def _check_states(one: AttentionState, other: AttentionState) -> Any:
    for name, state in (("one", one), ("other", other)):
        if not isinstance(state, AttentionState):
            raise TypeError(f"`{name}` must be an AttentionState; got {type(state).__name__} [IA-X-17]")
        _check_working(f"{name}.output", state.output)
    xp = namespace_of(
        **{"one.output": one.output, "one.lse": one.lse}, **{"other.output": other.output, "other.lse": other.lse}
    )
    shapes = [tuple(array.shape) for array in (one.output, other.output, one.lse, other.lse)]
    if shapes[0] != shapes[1] or shapes[2] != shapes[3] or shapes[0][:-1] != shapes[2]:
        raise ValueError(f"`other` must have the shapes of one; got outputs {shapes[:2]}, lse {shapes[2:]} [IA-X-17]")
    names = {dtype_name(array.dtype) for array in (*one, *other)}
    if len(names) > 1:
        raise TypeError(f"`other` must have the dtype of one; got {sorted(names)} [IA-X-17]")
    return xp


def _check_working(name: str, array: Array) -> None:
    check_floating(name, array)
    if dtype_name(array.dtype) not in ("float32", "float64"):
        raise TypeError(f"`{name}` must be float32 or float64; got {dtype_name(array.dtype)} [IA-X-17]")
