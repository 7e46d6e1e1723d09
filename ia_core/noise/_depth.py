"""Depth: how signal and noise of the tokens pass through residual layers of attention.

===========  ====================  ======================================================
array        shape                 meaning
===========  ====================  ======================================================
weights      (..., L, N, N)        A_l of each layer, token to token
result       (..., L + 1, N)       SNR of each token before the first layer and after each
===========  ====================  ======================================================

Layer l is x + A_l x W_l, with W_l random, of mean 0 and E W W^T = gain^2 I, independent of everything before it. The
products of two tokens, K_ij = E <x_i, x_j> / d, then go from layer to layer as

    K + gain^2 A K A^T

for the signal and for the noise alike, because the products with W_l vanish in the mean.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .._arrays import Array, device, namespace_of
from ._inputs import check_number, check_weights, quotient

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["depth_snr"]


def depth_snr(
    weights: Float[Array, "... L N N"],
    sigma: float,
    *,
    mean_square: float = 0.0,
    gain: float = 1.0,
) -> Float[Array, "... L+1 N"]:
    """SNR of every token through L residual layers, for tokens of unit variance with noise of deviation sigma.

    Parameters
    ----------
    weights : array of shape (..., L, N, N)
        Attention weights of each layer, the first one first.
    sigma : float
        Of the noise on each component of the tokens; positive.
    mean_square : float
        ||mu||^2 / d, for tokens with a common mean.
    gain : float
        Of the layers' projections: E W W^T = gain^2 I.

    Returns
    -------
    array of shape (..., L + 1, N)
        1 / sigma^2 at every depth for a mean of 0. With a mean, mixing averages the noise and keeps the mean: no token
        falls below where it started, and the lowest of all tokens never falls. A single one may, by attending to one
        that has mixed less.

    Raises
    ------
    TypeError, ValueError
        If the weights are none (IA-X-34) or not square (IA-X-35), or a number is out of its range (IA-X-37).

    Notes
    -----
    Layers that normalise are not covered: a clean and a noisy stream are each divided by a random size of their own,
    and the recursion is not exact. :func:`ia_core.simulate.depth_snr` measures them.

    Examples
    --------
    >>> import numpy as np
    >>> uniform = np.full((2, 4, 4), 0.25)
    >>> depth_snr(uniform, 1.0)[:, 0], depth_snr(uniform, 1.0, mean_square=1.0)[:, 0].round(2)
    (array([1., 1., 1.]), array([2.  , 2.6 , 3.29]))
    """
    wide = check_weights(weights)
    if weights.ndim < 3 or weights.shape[-1] != weights.shape[-2]:
        raise ValueError(f"`weights` must have the axes (..., L, N, N); got shape {tuple(weights.shape)} [IA-X-35]")
    sigma = check_number("sigma", sigma, positive=True, scalar=True)
    gain, mean_square = (check_number(n, x, scalar=True) for n, x in (("gain", gain), ("mean_square", mean_square)))
    xp, N = namespace_of(weights=weights), weights.shape[-1]
    eye = xp.eye(N, dtype=wide.dtype, device=device(wide))
    signal: Any = eye + mean_square * xp.ones_like(eye)
    noise: Any = sigma * sigma * eye
    none = xp.zeros_like(wide[..., 0, :, :])
    signal, noise = signal + none, noise + none  # (..., N, N)
    found = [_snr(signal, noise)]
    for layer in range(weights.shape[-3]):
        mixing = wide[..., layer, :, :]
        back = xp.matrix_transpose(mixing)
        signal, noise = (K + gain * gain * xp.matmul(mixing, xp.matmul(K, back)) for K in (signal, noise))
        found.append(_snr(signal, noise))
    return xp.stack(found, axis=-2)


def _diagonal(matrix: Array) -> Array:
    xp = namespace_of(matrix=matrix)
    return xp.sum(matrix * xp.eye(matrix.shape[-1], dtype=matrix.dtype, device=device(matrix)), axis=-1)


def _snr(signal: Array, noise: Array) -> Array:
    return quotient(_diagonal(signal), _diagonal(noise))
