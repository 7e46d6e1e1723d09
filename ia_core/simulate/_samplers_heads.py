"""Samplers of several heads, drawn from the definition: all heads read the same tokens and the same noise."""

from __future__ import annotations

from typing import Any

from .. import noise as theory
from .._arrays import Array, namespace_of
from ..noise._inputs import check_number, check_weights, squared
from ._draws import Normal, Pairs, Sampler, pick, width

__all__ = ["multi_head_misalignment_snr", "multi_head_snr"]


def multi_head_snr(weights: Array, sigma: float, **keywords: Any) -> Sampler:
    """Samples of signal and noise of all heads: :func:`ia_core.noise.multi_head_snr`.

    Parameters
    ----------
    weights : array of shape (..., H, M, N)
    sigma : float
        Positive.
    **keywords
        dim, mean, covariance, noise_covariance, value_projection, output_projection: as there.

    Returns
    -------
    Sampler

    Examples
    --------
    >>> import numpy as np
    >>> multi_head_snr(np.full((2, 1, 4), 0.25), 0.5, dim=8).theory
    array([4.])
    """
    check_number("sigma", sigma, positive=True, scalar=True)
    wanted = theory.multi_head_snr(weights, sigma, **keywords)
    dim, mean, spread, noisy, V, out = pick(
        keywords, "dim", "mean", "covariance", "noise_covariance", "value_projection", "output_projection"
    )
    arrays = {"mean": mean, "covariance": spread, "noise_covariance": noisy}
    d = width(dim, weights, **arrays, value_projection=V, output_projection=out)
    a = check_weights(weights)
    x, eps = Normal(a, d, mean, spread), Normal(a, d, None, noisy)

    def draw(generator: Any, count: int) -> tuple[Any, ...]:
        signal = squared(_output(x.draw(generator, count, a.shape[-1]), a, V, out))
        return signal, squared(sigma * _output(eps.draw(generator, count, a.shape[-1]), a, V, out))

    return Sampler(draw, (*a.shape[:-3], a.shape[-2]), 2 * a.shape[-1] * d, wanted)


def multi_head_misalignment_snr(weights: Array, **keywords: Any) -> Sampler:
    """Samples of all heads' aligned output and misalignment: :func:`ia_core.noise.multi_head_misalignment_snr`.

    Parameters
    ----------
    weights : array of shape (..., H, M, N)
    **keywords
        dim, mean_x, mean_y, covariance_x, covariance_y, cross_covariance, value_projection, output_projection: as
        there.

    Returns
    -------
    Sampler

    Examples
    --------
    >>> import numpy as np
    >>> multi_head_misalignment_snr(np.full((2, 1, 4), 0.25), dim=8).theory
    array([0.5])
    """
    wanted = theory.multi_head_misalignment_snr(weights, **keywords)
    a, (V, out) = check_weights(weights), pick(keywords, "value_projection", "output_projection")
    pairs = Pairs(weights, a, keywords)

    def draw(generator: Any, count: int) -> tuple[Any, ...]:
        x, y = pairs.draw(generator, count, a.shape[-1])
        return squared(_output(x, a, V, out)), squared(_output(y - x, a, V, out))

    return Sampler(draw, (*a.shape[:-3], a.shape[-2]), 2 * a.shape[-1] * pairs.d, wanted)


def _output(x: Array, weights: Array, value_projection: Any, output_projection: Any) -> Array:
    """Outputs (count, ..., M, d_out) of tokens (count, N, d) for weights (..., H, M, N)."""
    xp, H = namespace_of(weights=weights), weights.shape[-3]
    v = x if value_projection is None else xp.matmul(x, value_projection)
    count, N, _ = v.shape
    v = xp.permute_dims(xp.reshape(v, (count, N, H, -1)), (0, 2, 1, 3))  # (count, H, N, dh)
    v = xp.reshape(v, (count, *(1 for _ in weights.shape[:-3]), *v.shape[1:]))
    heads = xp.matmul(weights, v)  # (count, ..., H, M, dh)
    together = xp.moveaxis(heads, -3, -2)
    together = xp.reshape(together, (*together.shape[:-2], -1))  # (count, ..., M, H dh)
    return together if output_projection is None else xp.matmul(together, output_projection)
