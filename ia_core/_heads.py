"""Multi-head indirect attention: the operation between its projections (P11).

==================  ==========================  ==========================================
array               shape                       meaning
==================  ==========================  ==========================================
queries             (..., M, d)                 q_i, before the projection
conditioning X      (..., N, d_x)               the keys' source
content Y           (..., N, d_y)               the values' source
MultiHead.query     (d, H, D), (H, D)           weight and bias of W_q; may be None
MultiHead.key       (d_x, Hk, D), (Hk, D)       of W_k
MultiHead.value     (d_y, Hk, Dv), (Hk, Dv)     of W_v
MultiHead.output    (H, Dv, d_out), (d_out,)    of W_o; may be None
landing             (..., H, M)                 E_alpha[value position], per head
==================  ==========================  ==========================================
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from ._arrays import Array, array_namespace, move_axis, namespace_of, widen
from ._attention import indirect_attention
from ._layers import Linear, affine, check_linear
from ._position_bias import PositionBias

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Bool, Float, Real

__all__ = ["MultiHead", "multi_head_attention"]


class MultiHead(NamedTuple):
    """Projections of multi-head indirect attention: K from the conditioning X, V from the content Y.

    Attributes
    ----------
    query : Linear of weight (d, H, D), or None
        None: the queries' features are cut into heads as they are, D to each (the paper has no W_q).
    key : Linear of weight (d_x, Hk, D)
    value : Linear of weight (d_y, Hk, Dv)
    output : Linear of weight (H, Dv, d_out) and bias (d_out,), or None
        None: the heads' outputs stand side by side, d_out = H * Dv.

    Examples
    --------
    >>> import numpy as np
    >>> key, value = Linear(np.ones((3, 2, 4))), Linear(np.ones((5, 2, 1)))
    >>> params = MultiHead(None, key, value, None)
    >>> multi_head_attention(params, np.ones((6, 8)), np.ones((7, 3)), np.ones((7, 5))).shape
    (6, 2)
    """

    query: Linear | None
    key: Linear
    value: Linear
    output: Linear | None


def multi_head_attention(
    params: MultiHead,
    queries: Float[Array, "... M d"],
    conditioning: Float[Array, "... N d_x"],
    content: Float[Array, "... N d_y"],
    *,
    bias: Float[Array, "..."] | PositionBias | None = None,
    mask: Bool[Array, "..."] | None = None,
    scale: float | None = None,
    value_positions: Real[Array, "... N"] | None = None,
    attention: Callable[..., Any] = indirect_attention,
) -> Any:
    """Multi-head indirect attention with its projections: ``K = X W_k``, ``V = Y W_v`` (P11).

    Parameters
    ----------
    params : MultiHead
    queries : array of shape (..., M, d)
    conditioning : array of shape (..., N, d_x)
        The key source X.
    content : array of shape (..., N, d_y)
        The value source Y: position j of the values is addressed by position j of the keys. The conditioning
        itself makes this cross-attention; queries, conditioning and content the same, self-attention.
    bias, mask, scale
        As in :func:`ia_core.indirect_attention`.
    value_positions : array broadcastable to (..., N), optional
        Also return where each head's attention landed, ``E_alpha[position]``.
    attention : callable
        What computes the attention, with the signature of :func:`ia_core.indirect_attention`; for example
        ``ia_core.backends.indirect_attention``.

    Returns
    -------
    output : array of shape (..., M, d_out)
        In queries' dtype.
    landing : array of shape (..., H, M), if value_positions are given
        ``sum_j alpha_ij position_j`` in the working dtype; 0 where there is nothing to attend to.

    Raises
    ------
    TypeError, ValueError
        If the parameters do not fit together (IA-X-14), an input does not fit them (IA-X-30), or the call of
        the attention is refused (IA-X-01 to IA-X-15).

    Notes
    -----
    Section 4 of arXiv 2509.26015. The positions go through the attention as one more value channel, so they
    cost one column, and in half precision they are not rounded.

    Examples
    --------
    >>> import numpy as np
    >>> params = MultiHead(Linear(np.ones((4, 2, 8))), Linear(np.ones((4, 2, 8))),
    ...                    Linear(np.ones((4, 2, 8))), Linear(np.ones((2, 8, 4)), np.zeros(4)))
    >>> x = np.ones((3, 5, 4))
    >>> output, landing = multi_head_attention(params, x, x, x, value_positions=np.arange(5))
    >>> output.shape, landing.shape, float(landing[0, 0, 0])
    ((3, 5, 4), (3, 2, 5), 2.0)
    """
    _check_multi_head(params, queries)
    query = _query_heads(params, queries)  # (..., H, M, D)
    key = _heads_first(affine(params.key, "conditioning", conditioning))  # (..., Hk, N, D)
    value = _heads_first(affine(params.value, "content", content))  # (..., Hk, N, Dv)
    if value_positions is None:
        return _join_heads(params, attention(query, key, value, bias=bias, mask=mask, scale=scale))
    located = _with_positions(value, value_positions)  # (..., Hk, N, Dv + 1)
    bias = bias if bias is None or isinstance(bias, PositionBias) else widen(bias)
    both = attention(widen(query), widen(key), located, bias=bias, mask=mask, scale=scale)
    output = array_namespace(both).astype(both[..., :-1], queries.dtype, copy=False)
    return _join_heads(params, output), both[..., -1]


def _query_heads(params: MultiHead, queries: Array) -> Array:
    """(..., M, d) to (..., H, M, D)."""
    if params.query is not None:
        return _heads_first(affine(params.query, "queries", queries))
    D = params.key.weight.shape[-1]
    return _heads_first(array_namespace(queries).reshape(queries, (*queries.shape[:-1], queries.shape[-1] // D, D)))


def _heads_first(x: Array) -> Array:
    """(..., M, H, D) to (..., H, M, D)."""
    return move_axis(x, -2, -3)


def _join_heads(params: MultiHead, output: Array) -> Array:
    """(..., H, M, Dv) to (..., M, d_out)."""
    xp = array_namespace(output)
    *batch, H, M, Dv = output.shape
    joined = xp.reshape(move_axis(output, -3, -2), (*batch, M, H * Dv))
    if params.output is None:
        return joined
    weight = xp.reshape(params.output.weight, (H * Dv, params.output.weight.shape[-1]))
    return affine(Linear(weight, params.output.bias), "output", joined)


def _with_positions(value: Array, positions: Array) -> Array:
    """Values (..., Hk, N, Dv) with their positions (..., N) as one more channel, in the working dtype."""
    xp = namespace_of(value=value, value_positions=positions)
    wide = widen(value)
    if positions.ndim < 1 or positions.shape[-1] != value.shape[-2]:
        raise ValueError(
            f"`value_positions` must have shape (..., N) with N = {value.shape[-2]}; "
            f"got {tuple(positions.shape)} [IA-X-30]"
        )
    channel = xp.astype(positions, wide.dtype, copy=False)[..., None, :, None]  # (..., 1, N, 1)
    channel = xp.broadcast_to(channel, (*value.shape[:-1], 1))
    # The axis is counted from the front: Cubed 0.27 concatenates along the wrong one when it is negative.
    return xp.concat([wide, channel], axis=value.ndim - 1)


def _check_multi_head(params: MultiHead, queries: Array) -> None:
    """Refuse projections that do not fit each other (IA-X-14), or queries without heads (IA-X-30)."""
    check_linear("MultiHead.key", params.key, (None, None, None))
    _, Hk, D = params.key.weight.shape
    check_linear("MultiHead.value", params.value, (None, Hk, None))
    if params.query is not None:
        check_linear("MultiHead.query", params.query, (None, None, D))
        H = params.query.weight.shape[1]
    else:
        namespace_of(queries=queries)
        H, left = divmod(queries.shape[-1], D) if queries.ndim else (0, 1)
        if left:
            raise ValueError(
                f"`queries` must have a multiple of the head width D = {D} on the last axis, as there is no "
                f"query projection; got {tuple(queries.shape)} [IA-X-30]"
            )
    if params.output is not None:
        Dv = params.value.weight.shape[-1]
        check_linear("MultiHead.output", params.output, (H, Dv, None), contracted=2)
