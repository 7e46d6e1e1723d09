"""Noise on the keys and on the queries, which reaches the output through the softmax: to first order.

=========  ================  ==============================
array      shape             meaning
=========  ================  ==============================
weights    (..., M, N)       a, of the clean scores
query      (..., M, D)       as in the scores
key        (..., N, D)       as in the scores
value      (..., N, Dv)      as given; they are not noisy
=========  ================  ==============================

Leading axes of queries, keys and values broadcast to those of the weights. Scores that move by ds_ij move the output by
sum_j a_ij (v_j - o_i) ds_ij, the softmax Jacobian applied to the values, and an error of the second order in ds. Noise
of deviation sigma on each component of the keys moves scores independently of each other, that of the queries moves
those of a row together.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from .._arrays import Array, namespace_of
from ._inputs import Given, check_level, check_number, check_weights, given, squared

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["key_noise_energy", "query_noise_energy"]


def key_noise_energy(
    weights: Float[Array, "... M N"],
    query: Float[Array, "... M D"],
    value: Float[Array, "... N Dv"],
    sigma: Any,
    *,
    scale: float | None = None,
) -> Float[Array, "... M"]:
    """E||o^ - o||^2 for noise on the keys, to first order: scale^2 sigma^2 ||q_i||^2 sum_j a_ij^2 ||v_j - o_i||^2.

    Parameters
    ----------
    weights : array of shape (..., M, N)
    query : array of shape (..., M, D)
    value : array of shape (..., N, Dv)
    sigma : float or array of shape (..., M)
        Standard deviation of each component of the noise; scale sigma ||q|| must be small against 1.
    scale : float, optional
        Of the scores; by default 1 / sqrt(D).

    Returns
    -------
    array of shape (..., M)

    Raises
    ------
    TypeError, ValueError
        As IA-X-34 to IA-X-37 say.

    Examples
    --------
    >>> import numpy as np
    >>> weights, value = np.asarray([[0.5, 0.5]]), np.asarray([[1.0], [-1.0]])
    >>> key_noise_energy(weights, np.ones((1, 4)), value, 0.1)
    array([0.005])
    """
    wide, sigma, arrays = _checked(weights, sigma, query=query, value=value)
    xp = namespace_of(weights=weights)
    step = _scale(scale, query) * sigma
    v = arrays["value"]
    output = xp.matmul(wide, v)
    distance = squared(v[..., None, :, :] - output[..., :, None, :])  # (..., M, N)
    return step * step * squared(arrays["query"]) * xp.sum(wide * wide * distance, axis=-1)


def query_noise_energy(
    weights: Float[Array, "... M N"],
    key: Float[Array, "... N D"],
    value: Float[Array, "... N Dv"],
    sigma: Any,
    *,
    scale: float | None = None,
) -> Float[Array, "... M"]:
    """E||o^ - o||^2 for noise on the queries, to first order: scale^2 sigma^2 ||sum_j a_ij (v_j - o_i) k_j^T||_F^2.

    Parameters
    ----------
    weights : array of shape (..., M, N)
    key : array of shape (..., N, D)
    value : array of shape (..., N, Dv)
    sigma : float or array of shape (..., M)
        Standard deviation of each component of the noise; scale sigma times the spread of the keys must be small.
    scale : float, optional
        Of the scores; by default 1 / sqrt(D).

    Returns
    -------
    array of shape (..., M)
        The same for keys that all move by one vector: only their covariance with the values counts.

    Raises
    ------
    TypeError, ValueError
        As IA-X-34 to IA-X-37 say.

    Examples
    --------
    >>> import numpy as np
    >>> weights, value = np.asarray([[0.5, 0.5]]), np.asarray([[1.0], [-1.0]])
    >>> query_noise_energy(weights, np.asarray([[2.0], [0.0]]), value, 0.1).round(6)
    array([0.01])
    """
    wide, sigma, arrays = _checked(weights, sigma, key=key, value=value)
    xp = namespace_of(weights=weights)
    step = _scale(scale, key) * sigma
    v, k = arrays["value"], arrays["key"]
    mean_v, mean_k = xp.matmul(wide, v), xp.matmul(wide, k)  # (..., M, Dv), (..., M, D)
    off_v = v[..., None, :, :] - mean_v[..., :, None, :]  # (..., M, N, Dv)
    off_k = k[..., None, :, :] - mean_k[..., :, None, :]  # (..., M, N, D)
    covariance = xp.matmul(xp.matrix_transpose(off_v), wide[..., None] * off_k)  # (..., M, Dv, D)
    return step * step * xp.sum(covariance * covariance, axis=(-2, -1))


def _scale(scale: float | None, like: Array) -> Any:
    return 1 / math.sqrt(like.shape[-1]) if scale is None else check_number("scale", scale)


def _checked(weights: Array, sigma: Any, **arrays: Array) -> tuple[Array, Any, Given]:
    """(..., M, N) weights go with (..., M, D) queries and with (..., N, D) of everything else."""
    wide = check_weights(weights)
    if weights.ndim < 2:
        raise ValueError(f"`weights` must have the axes (..., M, N); got shape {tuple(weights.shape)} [IA-X-35]")
    M, N = weights.shape[-2:]
    sigma = check_level("sigma", sigma, weights, weights.shape[:-1])
    some = given(weights, weights.shape[:-2], **arrays)
    for name, array in arrays.items():
        axes, count = ("M", M) if name == "query" else ("N", N)
        if array.shape[-2] != count:
            raise ValueError(
                f"`{name}` must have the axes (..., {axes}, width) with {axes} = {count} as the weights have it; "
                f"got shape {tuple(array.shape)} [IA-X-35]"
            )
    return wide, sigma, some
