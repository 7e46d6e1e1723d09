"""Samplers of one head: what each closed form of :mod:`ia_core.noise` is the mean of, drawn from its definition.

All rows of the weights see the same tokens and noise, as the queries of one attention call do, and the numerator and
the denominator of a ratio see the same tokens: common random numbers, with which they are compared more precisely.
"""

from __future__ import annotations

from typing import Any

from .. import noise as theory
from .._arrays import Array
from ..noise._inputs import check_number, check_weights, squared
from ._draws import Normal, Pairs, Sampler, pick, through, width

__all__ = ["misalignment_energy", "misalignment_snr", "noise_energy", "signal_energy", "snr"]


def noise_energy(weights: Array, sigma: float, **keywords: Any) -> Sampler:
    """Samples of ||o^ - o*||^2, the mean of which is :func:`ia_core.noise.noise_energy`.

    Parameters
    ----------
    weights : array of shape (..., N)
    sigma : float
    **keywords
        dim, noise_covariance, projection: as there.

    Returns
    -------
    Sampler

    Examples
    --------
    >>> import numpy as np
    >>> noise_energy(np.full(4, 0.25), 0.5, dim=8).theory.item()
    0.5
    """
    check_number("sigma", sigma, scalar=True)
    wanted = theory.noise_energy(weights, sigma, **keywords)
    dim, spread, W = pick(keywords, "dim", "noise_covariance", "projection")
    d, a = width(dim, weights, noise_covariance=spread, projection=W), check_weights(weights)
    eps = Normal(a, d, None, spread)

    def draw(generator: Any, count: int) -> tuple[Any, ...]:
        return (squared(sigma * through(eps.draw(generator, count, a.shape[-1]), a, W)),)

    return Sampler(draw, tuple(a.shape[:-1]), a.shape[-1] * d, wanted)


def signal_energy(weights: Array, **keywords: Any) -> Sampler:
    """Samples of ||o*||^2, the mean of which is :func:`ia_core.noise.signal_energy`.

    Parameters
    ----------
    weights : array of shape (..., N)
    **keywords
        dim, mean, covariance, projection: as there.

    Returns
    -------
    Sampler

    Examples
    --------
    >>> import numpy as np
    >>> signal_energy(np.full(4, 0.25), mean=np.ones(8)).theory.item()
    10.0
    """
    wanted = theory.signal_energy(weights, **keywords)
    dim, mean, spread, W = pick(keywords, "dim", "mean", "covariance", "projection")
    d = width(dim, weights, mean=mean, covariance=spread, projection=W)
    a = check_weights(weights)
    x = Normal(a, d, mean, spread)

    def draw(generator: Any, count: int) -> tuple[Any, ...]:
        return (squared(through(x.draw(generator, count, a.shape[-1]), a, W)),)

    return Sampler(draw, tuple(a.shape[:-1]), a.shape[-1] * d, wanted)


def snr(weights: Array, sigma: float, **keywords: Any) -> Sampler:
    """Samples of signal and noise, the quotient of whose means is :func:`ia_core.noise.snr`.

    Parameters
    ----------
    weights : array of shape (..., N)
    sigma : float
        Positive.
    **keywords
        dim, mean, covariance, noise_covariance, projection: as there.

    Returns
    -------
    Sampler

    Examples
    --------
    >>> import numpy as np
    >>> snr(np.full(4, 0.25), 0.5, dim=8).theory.item()
    4.0
    """
    check_number("sigma", sigma, positive=True, scalar=True)
    wanted = theory.snr(weights, sigma, **keywords)
    dim, mean, spread, noisy, W = pick(keywords, "dim", "mean", "covariance", "noise_covariance", "projection")
    d = width(dim, weights, mean=mean, covariance=spread, noise_covariance=noisy, projection=W)
    a = check_weights(weights)
    x, eps = Normal(a, d, mean, spread), Normal(a, d, None, noisy)

    def draw(generator: Any, count: int) -> tuple[Any, ...]:
        signal = squared(through(x.draw(generator, count, a.shape[-1]), a, W))
        return signal, squared(sigma * through(eps.draw(generator, count, a.shape[-1]), a, W))

    return Sampler(draw, tuple(a.shape[:-1]), 2 * a.shape[-1] * d, wanted)


def misalignment_energy(weights: Array, **keywords: Any) -> Sampler:
    """Samples of ||Delta-o||^2, the mean of which is :func:`ia_core.noise.misalignment_energy`.

    Parameters
    ----------
    weights : array of shape (..., N)
    **keywords
        dim, mean_x, mean_y, covariance_x, covariance_y, cross_covariance, projection: as there.

    Returns
    -------
    Sampler

    Examples
    --------
    >>> import numpy as np
    >>> misalignment_energy(np.full(4, 0.25), dim=64).theory.item()
    32.0
    """
    wanted = theory.misalignment_energy(weights, **keywords)
    a, W = check_weights(weights), keywords.get("projection")
    pairs = Pairs(weights, a, keywords)

    def draw(generator: Any, count: int) -> tuple[Any, ...]:
        x, y = pairs.draw(generator, count, a.shape[-1])
        return (squared(through(y - x, a, W)),)

    return Sampler(draw, tuple(a.shape[:-1]), 2 * a.shape[-1] * pairs.d, wanted)


def misalignment_snr(weights: Array, **keywords: Any) -> Sampler:
    """Samples of the aligned output and of the misalignment: :func:`ia_core.noise.misalignment_snr`.

    Parameters
    ----------
    weights : array of shape (..., N)
    **keywords
        As for :func:`misalignment_energy`.

    Returns
    -------
    Sampler

    Examples
    --------
    >>> import numpy as np
    >>> misalignment_snr(np.full(4, 0.25), dim=64).theory.item()
    0.5
    """
    wanted = theory.misalignment_snr(weights, **keywords)
    a, W = check_weights(weights), keywords.get("projection")
    pairs = Pairs(weights, a, keywords)

    def draw(generator: Any, count: int) -> tuple[Any, ...]:
        x, y = pairs.draw(generator, count, a.shape[-1])
        return squared(through(x, a, W)), squared(through(y - x, a, W))

    return Sampler(draw, tuple(a.shape[:-1]), 2 * a.shape[-1] * pairs.d, wanted)
