"""Samplers of one head: what each closed form of :mod:`ia_core.noise` is the mean of, drawn from its definition.

All rows of the weights see the same tokens and noise, as the queries of one attention call do, and the numerator and
the denominator of a ratio see the same tokens: common random numbers, with which they are compared more precisely.

``form`` chooses what is in ``theory``. Samples are drawn from the definition either way: with ``form="paper"`` what is
measured is held against the paper's form, and differs from it where that form's condition does not hold.
"""

from __future__ import annotations

import math
from typing import Any

from .. import noise as theory
from .._arrays import Array, namespace_of
from ..noise._inputs import check_number, check_weights
from ._draws import Normal, Pairs, Sampler, energy, fingerprint, of_squares, pick, through, width

__all__ = ["misalignment_energy", "misalignment_snr", "noise_energy", "signal_energy", "snr"]


def noise_energy(weights: Array, sigma: float, **keywords: Any) -> Sampler:
    """Samples of ||o^ - o*||^2, the mean of which is :func:`ia_core.noise.noise_energy`.

    Parameters
    ----------
    weights : array of shape (..., N)
    sigma : float
    **keywords
        dim, noise_covariance, projection, form: as there. The form is that of ``theory`` alone.

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
    d, a = width(dim, noise_covariance=spread, projection=W), check_weights(weights)
    xp, eps, scaled = namespace_of(weights=a), Normal(a, d, None, spread), sigma * a

    def draw(generator: Any, count: int) -> tuple[Any, ...]:
        return (energy(xp, through(xp, eps.draw(generator, count, a.shape[-1]), scaled, W)),)

    N = a.shape[-1]
    numbers = max(eps.numbers(N), of_squares(N * d, a, d, W))
    mark = fingerprint("noise_energy", weights=a, sigma=sigma, d=d, noise_covariance=spread, projection=W)
    return Sampler(draw, tuple(a.shape[:-1]), numbers, wanted, mark)


def signal_energy(weights: Array, **keywords: Any) -> Sampler:
    """Samples of ||o*||^2, the mean of which is :func:`ia_core.noise.signal_energy`.

    Parameters
    ----------
    weights : array of shape (..., N)
    **keywords
        dim, mean, covariance, projection, form: as there. The form is that of ``theory`` alone.

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
    d = width(dim, mean=mean, covariance=spread, projection=W)
    a, xp = check_weights(weights), namespace_of(weights=weights)
    x = Normal(a, d, mean, spread)

    def draw(generator: Any, count: int) -> tuple[Any, ...]:
        return (energy(xp, through(xp, x.draw(generator, count, a.shape[-1]), a, W)),)

    N = a.shape[-1]
    numbers = max(x.numbers(N), of_squares(N * d, a, d, W))
    mark = fingerprint("signal_energy", weights=a, d=d, mean=mean, covariance=spread, projection=W)
    return Sampler(draw, tuple(a.shape[:-1]), numbers, wanted, mark)


def snr(weights: Array, sigma: float, **keywords: Any) -> Sampler:
    """Samples of signal and noise, the quotient of whose means is :func:`ia_core.noise.snr`.

    Parameters
    ----------
    weights : array of shape (..., N)
    sigma : float
        Positive.
    **keywords
        dim, mean, covariance, noise_covariance, projection, form: as there. The form is that of ``theory`` alone:
        samples are drawn from the definition, and agree with the paper's form inside of its condition.

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
    d = width(dim, mean=mean, covariance=spread, noise_covariance=noisy, projection=W)
    a, xp = check_weights(weights), namespace_of(weights=weights)
    x, eps, scaled = Normal(a, d, mean, spread), Normal(a, d, None, noisy), sigma * a

    def draw(generator: Any, count: int) -> tuple[Any, ...]:
        signal = energy(xp, through(xp, x.draw(generator, count, a.shape[-1]), a, W))
        return signal, energy(xp, through(xp, eps.draw(generator, count, a.shape[-1]), scaled, W))

    N, rows = a.shape[-1], math.prod(a.shape[:-1])
    numbers = rows + max(x.numbers(N), eps.numbers(N), of_squares(N * d, a, d, W))
    given = {"mean": mean, "covariance": spread, "noise_covariance": noisy, "projection": W}
    return Sampler(draw, tuple(a.shape[:-1]), numbers, wanted, fingerprint("snr", weights=a, sigma=sigma, d=d, **given))


def misalignment_energy(weights: Array, **keywords: Any) -> Sampler:
    """Samples of ||Delta-o||^2, the mean of which is :func:`ia_core.noise.misalignment_energy`.

    Parameters
    ----------
    weights : array of shape (..., N)
    **keywords
        dim, mean_x, mean_y, covariance_x, covariance_y, cross_covariance, projection, form: as there. The form is that
        of ``theory`` alone.

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
    pairs, xp = Pairs(a, keywords), namespace_of(weights=a)

    def draw(generator: Any, count: int) -> tuple[Any, ...]:
        x, y = pairs.draw(generator, count, a.shape[-1])
        return (energy(xp, through(xp, y - x, a, W)),)

    return _of_pairs("misalignment_energy", draw, a, pairs, keywords, wanted)


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
    pairs, xp = Pairs(a, keywords), namespace_of(weights=a)

    def draw(generator: Any, count: int) -> tuple[Any, ...]:
        x, y = pairs.draw(generator, count, a.shape[-1])
        return energy(xp, through(xp, x, a, W)), energy(xp, through(xp, y - x, a, W))

    return _of_pairs("misalignment_snr", draw, a, pairs, keywords, wanted)


def _of_pairs(name: str, draw: Any, a: Array, pairs: Pairs, keywords: dict[str, Any], wanted: Any) -> Sampler:
    N, rows, W = a.shape[-1], math.prod(a.shape[:-1]), keywords.get("projection")
    drawn = 2 * N * pairs.d
    passing = of_squares(drawn + N * pairs.d, a, pairs.d, W, kept=drawn)
    numbers = rows + max(pairs.numbers(N), passing)
    given = {key: value for key, value in keywords.items() if key not in ("dim", "form")}
    return Sampler(draw, tuple(a.shape[:-1]), numbers, wanted, fingerprint(name, weights=a, d=pairs.d, **given))
