"""The operation: indirect attention (P11), line by line.

==================  =====================  ============================================
array               shape                  meaning
==================  =====================  ============================================
query               (..., H, M, D)         M queries in each of H heads
key                 (..., Hk, N, D)        from the conditioning sequence X
value               (..., Hk, N, Dv)       from the content sequence Y
scores, weights     (..., H, M, N)         s_ij and alpha_ij
output              (..., H, M, Dv)        o_i
lse                 (..., H, M)            log sum_j exp(s_ij)
==================  =====================  ============================================
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from ._arrays import Array, device, widen
from ._checks import Call, check_call
from ._position_bias import PositionBias

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

__all__ = ["attention_weights", "indirect_attention"]


def indirect_attention(
    query: Float[Array, "... H M D"],
    key: Float[Array, "... Hk N D"],
    value: Float[Array, "... Hk N Dv"],
    *,
    bias: Float[Array, "..."] | PositionBias | None = None,
    mask: Bool[Array, "..."] | None = None,
    scale: float | None = None,
    return_lse: bool = False,
) -> Any:
    """Indirect attention: keys from one sequence, values from another, joined by a position bias (P11).

    ``o_i = sum_j alpha_ij v_j`` with ``alpha_i = softmax_j(s_ij)`` and
    ``s_ij = scale * <q_i, k_j> + bias_ij``.

    Parameters
    ----------
    query : array of shape (..., H, M, D)
        Floating dtype, shared by query, key and value.
    key : array of shape (..., Hk, N, D)
        H is a multiple of Hk; query head h reads key head ``h // (H // Hk)``.
    value : array of shape (..., Hk, N, Dv)
        Position j of the values is addressed by position j of the keys.
    bias : array broadcastable to (..., H, M, N), or PositionBias, optional
        Added to the scaled scores. ``-inf`` gives a weight of zero.
    mask : boolean array broadcastable to (..., H, M, N), optional
        True: may attend. What stands at positions that no query may attend to has no influence, NaN included.
    scale : float, optional
        Finite, not negative; ``1 / sqrt(D)`` by default.
    return_lse : bool
        Also return the logarithm of each row's sum of exponentials.

    Returns
    -------
    output : array of shape (..., H, M, Dv)
        In query's dtype. A row with nothing to attend to is 0.
    lse : array of shape (..., H, M), if asked for
        Natural logarithm, in the working dtype (float32 for halves). ``-inf`` for a row with nothing to attend to.

    Raises
    ------
    TypeError, ValueError
        Before any compute; the table is in docs/spec.md, labels IA-X-01 to IA-X-15.

    Notes
    -----
    Equation P11 of Bahaduri et al., "Indirect Attention", arXiv 2509.26015. float16 and bfloat16 inputs are
    computed in float32 and rounded once at the end (IA-P-03).

    Examples
    --------
    A bias that is large at one offset addresses the values by position, whatever the keys say:

    >>> import numpy as np
    >>> from ia_core import indirect_attention, relative_positions
    >>> query, key = np.ones((1, 2, 4)), np.ones((1, 3, 4))
    >>> value = np.asarray([[[10.0], [20.0], [30.0]]])
    >>> bias = np.where(relative_positions(2, 3) == 1, 100.0, 0.0)
    >>> indirect_attention(query, key, value, bias=bias)
    array([[[20.],
            [30.]]])
    """
    call = check_call(query, key, value, bias, mask, scale)
    output, lse = attend(call, query, key, value, bias, mask)
    output = call.xp.astype(output, query.dtype, copy=False)  # the one rounding
    return (output, lse) if return_lse else output


def attention_weights(
    query: Float[Array, "... H M D"],
    key: Float[Array, "... Hk N D"],
    *,
    bias: Float[Array, "..."] | PositionBias | None = None,
    mask: Bool[Array, "..."] | None = None,
    scale: float | None = None,
) -> Float[Array, "... H M N"]:
    """The weights alpha_ij that :func:`indirect_attention` gives to the values (P11).

    Parameters
    ----------
    query, key, bias, mask, scale
        As in :func:`indirect_attention`.

    Returns
    -------
    array of shape (..., H, M, N)
        Rows sum to 1, or are all 0 where there is nothing to attend to; in query's dtype.

    Raises
    ------
    TypeError, ValueError
        As in :func:`indirect_attention`.

    Notes
    -----
    Equation P11 of arXiv 2509.26015.

    Examples
    --------
    >>> import numpy as np
    >>> attention_weights(np.zeros((1, 1, 2)), np.zeros((1, 4, 2)))
    array([[[0.25, 0.25, 0.25, 0.25]]])
    """
    call = check_call(query, key, key, bias, mask, scale)  # no values: the keys are as good for the checks
    q, k, _, mask = prepare(call, query, key, None, mask)
    weights, _ = softmax(call, scores(call, q, k, bias, mask))
    return call.xp.astype(weights, query.dtype, copy=False)


def attend(
    call: Call, query: Array, key: Array, value: Array, bias: Array | PositionBias | None, mask: Array | None
) -> tuple[Array, Array]:
    """Output and lse of a checked call, in the working dtype."""
    q, k, v, mask = prepare(call, query, key, value, mask)
    weights, lse = softmax(call, scores(call, q, k, bias, mask))
    return call.xp.matmul(weights, v), lse  # (..., H, M, Dv), (..., H, M)


def prepare(
    call: Call, query: Array, key: Array, value: Array | None, mask: Array | None
) -> tuple[Array, Array, Array | None, Array | None]:
    """Working dtype, one key head per query head, and zeros where no attention is allowed."""
    q = widen(query)
    k = repeat_heads(call, widen(key))
    v = None if value is None else repeat_heads(call, widen(value))
    if mask is None:
        return q, k, v, None
    xp = call.xp
    mask = xp.broadcast_to(mask, call.scores_shape)
    # A masked weight is 0, but 0 * nan is nan: what nobody may attend to must go before the products,
    # and what a row without anything to attend to asks must go before the gradients' products.
    asks = xp.any(mask, axis=-1)[..., None]  # (..., H, M, 1)
    attended = xp.any(mask, axis=-2)[..., None]  # (..., H, N, 1)
    q = xp.where(asks, q, 0.0)
    k = xp.where(attended, k, 0.0)
    v = None if v is None else xp.where(attended, v, 0.0)
    return q, k, v, mask


def repeat_heads(call: Call, array: Array) -> Array:
    """(..., Hk, N, D) to (..., H, N, D): head h is key head h // (H / Hk)."""
    if call.H == call.Hk:
        return array
    # Counted from the front: Cubed 0.27 repeats along the wrong axis when it is counted from the back.
    return call.xp.repeat(array, call.H // call.Hk, axis=len(call.batch))


def scores(call: Call, q: Array, k: Array, bias: Array | PositionBias | None, mask: Array | None) -> Array:
    """s_ij = scale * <q_i, k_j> + bias_ij, and -inf where the mask forbids (P11)."""
    xp = call.xp
    s = call.scale * xp.matmul(q, xp.matrix_transpose(k))  # (..., H, M, N)
    if bias is not None:
        s = s + xp.astype(dense_bias(bias), s.dtype, copy=False)
    if mask is not None:
        s = xp.where(mask, s, -math.inf)
    return s


def dense_bias(bias: Array | PositionBias) -> Array:
    """The bias as an array, broadcastable to (..., H, M, N)."""
    return bias.dense() if isinstance(bias, PositionBias) else bias


def softmax(call: Call, s: Array) -> tuple[Array, Array]:
    """Softmax over the last axis, and log sum exp; 0 and -inf for a row with nothing to attend to."""
    xp = call.xp
    if call.N == 0:  # a maximum over nothing is not defined by the standard
        return s, xp.full(call.scores_shape[:-1], -math.inf, dtype=s.dtype, device=device(s))
    # Any shift near the maximum will do. Rounded up it is a constant to automatic differentiation, as it should be:
    # the derivative of a maximum looks for s among the scores again, which a compiler may have rounded otherwise.
    top = xp.ceil(xp.max(s, axis=-1, keepdims=True))
    top = xp.where(top == -math.inf, 0.0, top)  # exp(-inf - (-inf)) would be nan
    below = s - top
    # A compiler may compute s twice, with other rounding: then a score lies above the maximum, and may overflow.
    exps = xp.exp(xp.where(below > 0.0, 0.0, below))
    total = xp.sum(exps, axis=-1, keepdims=True)  # at least 1 / e unless the row is empty
    empty = total == 0.0
    total = xp.where(empty, 1.0, total)
    lse = xp.where(empty, -math.inf, top + xp.log(total))
    return exps / total, xp.squeeze(lse, axis=-1)
