"""The gradient in closed form, so that backward kernels have a reference.

With weights alpha = softmax(s), output o = alpha v, lse = log sum exp(s), and cotangents do and dlse:

    dv = alpha^T do
    ds_ij = alpha_ij (<do_i, v_j> - <do_i, o_i> + dlse_i)
    dq = scale ds k,    dk = scale ds^T q,    dbias = ds

each summed back over what was broadcast: query heads that share a key head, and the bias's broadcast axes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

from ._arrays import Array, check_floating, dtype_name, namespace_of, working_dtype
from ._attention import prepare, scores, softmax
from ._bias_vjp import position_bias_vjp, sum_to_shape
from ._checks import Call, check_call
from ._position_bias import PositionBias

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

__all__ = ["AttentionGradients", "indirect_attention_vjp"]


class AttentionGradients(NamedTuple):
    """Gradients with the shapes and dtypes of the inputs.

    Attributes
    ----------
    query, key, value : array
    bias : array, PositionBias of gradients, or None
        None where the call had no bias. In a PositionBias, integer positions have the gradient None.

    Examples
    --------
    >>> import numpy as np
    >>> q = k = v = np.ones((1, 1, 2))
    >>> indirect_attention_vjp(q, k, v, np.ones((1, 1, 2))).value
    array([[[1., 1.]]])
    """

    query: Float[Array, "... H M D"]
    key: Float[Array, "... Hk N D"]
    value: Float[Array, "... Hk N Dv"]
    bias: Any


def indirect_attention_vjp(
    query: Float[Array, "... H M D"],
    key: Float[Array, "... Hk N D"],
    value: Float[Array, "... Hk N Dv"],
    cotangent: Float[Array, "... H M Dv"],
    *,
    bias: Float[Array, "..."] | PositionBias | None = None,
    mask: Bool[Array, "..."] | None = None,
    scale: float | None = None,
    lse_cotangent: Float[Array, "... H M"] | None = None,
) -> AttentionGradients:
    """Vector-Jacobian product of :func:`ia_core.indirect_attention`, in closed form.

    Parameters
    ----------
    query, key, value, bias, mask, scale
        As in :func:`ia_core.indirect_attention`.
    cotangent : array of shape (..., H, M, Dv)
        Derivative of a scalar with respect to the output; in query's dtype or its working dtype.
    lse_cotangent : array of shape (..., H, M), optional
        The same for the lse.

    Returns
    -------
    AttentionGradients
        Computed in the working dtype, rounded once. Exactly 0 where the mask forbids.

    Raises
    ------
    TypeError, ValueError
        As :func:`ia_core.indirect_attention`, and if a cotangent does not fit (IA-X-18).

    Notes
    -----
    The derivative of P11 of arXiv 2509.26015; the paper leaves it to automatic differentiation.

    Examples
    --------
    Two keys alike share the value's gradient:

    >>> import numpy as np
    >>> q, k, v = np.ones((1, 1, 2)), np.ones((1, 2, 2)), np.asarray([[[0.0], [2.0]]])
    >>> gradients = indirect_attention_vjp(q, k, v, np.ones((1, 1, 1)), bias=np.zeros((1, 1, 2)))
    >>> gradients.value, gradients.bias
    (array([[[0.5],
            [0.5]]]), array([[[-0.5,  0.5]]]))
    """
    call = check_call(query, key, value, bias, mask, scale)
    xp = call.xp
    output_shape = (*call.scores_shape[:-1], value.shape[-1])
    _check_cotangent("cotangent", cotangent, query, output_shape)
    q, k, v, mask = prepare(call, query, key, value, mask)
    weights, lse = softmax(call, scores(call, q, k, bias, mask))
    output = xp.matmul(weights, v)
    empty = lse == -math.inf  # (..., H, M)
    # An empty row's output is a constant: its weights of 0 must not meet what its cotangent holds.
    do = xp.where(empty[..., None], 0.0, xp.astype(cotangent, q.dtype, copy=False))
    from_output = xp.sum(do * output, axis=-1)  # (..., H, M)
    if lse_cotangent is not None:
        _check_cotangent("lse_cotangent", lse_cotangent, query, call.scores_shape[:-1])
        from_output = from_output - xp.where(empty, 0.0, xp.astype(lse_cotangent, q.dtype, copy=False))
    to_weights = xp.matmul(do, xp.matrix_transpose(v))  # (..., H, M, N)
    ds = weights * (to_weights - from_output[..., None])
    # A forbidden score is a constant, whatever an infinite cotangent makes of its weight of 0.
    ds = ds if mask is None else xp.where(mask, ds, 0.0)
    dq = call.scale * xp.matmul(ds, k)
    dk = call.scale * xp.matmul(xp.matrix_transpose(ds), q)
    dv = xp.matmul(xp.matrix_transpose(weights), do)
    return AttentionGradients(
        xp.astype(dq, query.dtype, copy=False),
        xp.astype(_sum_groups(call, dk), key.dtype, copy=False),
        xp.astype(_sum_groups(call, dv), value.dtype, copy=False),
        _bias_gradient(call, bias, ds),
    )


def _sum_groups(call: Call, gradient: Array) -> Array:
    """(..., H, N, D) to (..., Hk, N, D): the query heads that read a key head add up."""
    if call.H == call.Hk:
        return gradient
    *batch, _, N, D = gradient.shape
    return call.xp.sum(call.xp.reshape(gradient, (*batch, call.Hk, call.H // call.Hk, N, D)), axis=-3)


def _bias_gradient(call: Call, bias: Array | PositionBias | None, ds: Array) -> Any:
    if bias is None:
        return None
    if isinstance(bias, PositionBias):
        return position_bias_vjp(bias, sum_to_shape(ds, bias.shape))
    return call.xp.astype(sum_to_shape(ds, tuple(bias.shape)), bias.dtype, copy=False)


def _check_cotangent(name: str, cotangent: Array, query: Array, shape: tuple[int, ...]) -> None:
    namespace_of(query=query, **{name: cotangent})
    check_floating(name, cotangent)
    allowed = sorted({dtype_name(query.dtype), dtype_name(working_dtype(query))})
    if dtype_name(cotangent.dtype) not in allowed:
        raise TypeError(f"`{name}` must be {' or '.join(allowed)}; got {dtype_name(cotangent.dtype)} [IA-X-18]")
    if tuple(cotangent.shape) != shape:
        raise ValueError(f"`{name}` must have shape {shape}; got {tuple(cotangent.shape)} [IA-X-18]")
