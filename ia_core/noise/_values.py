"""Noise on the values: its energy in the output, the signal's, and the noise level at which they are equal.

=================  ======================  ===============================================================
array              shape                   meaning
=================  ======================  ===============================================================
weights            (..., N)                a, independent of the tokens and of the noise
mean               (..., d)                mu of the tokens x_i; 0 by default
covariance         (..., d, d)             Sigma of the tokens x_i; the identity by default
noise_covariance   (..., d, d)             R of the noise at sigma = 1; the identity by default
projection         (d, dv)                 W_v, applied as x W, as :class:`ia_core.Linear` does; none by default
=================  ======================  ===============================================================

Leading axes of means and covariances, and the axes of sigma, broadcast to those of the weights.
Tokens are independent of each other, noise has mean 0 and covariance sigma^2 R, independent for each token. With
S2 = sum_i a_i^2 the output o* = sum_i a_i x_i W and its noise have the energies

    E||o^ - o*||^2 = sigma^2 S2 tr(W^T R W)
    E||o*||^2      = S2 tr(W^T Sigma W) + ||mu W||^2
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .._arrays import Array, namespace_of
from ._inputs import (
    check_choice,
    check_level,
    check_weights,
    covariance_energy,
    given,
    mean_energy,
    quotient,
    squared,
    width_of,
)

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["critical_sigma", "noise_bound", "noise_energy", "signal_energy", "snr"]


def noise_bound(
    weights: Float[Array, "... N"],
    noise: Float[Array, "... N d"],
    *,
    projection: Float[Array, "d dv"] | None = None,
) -> Float[Array, "..."]:
    """sum_i a_i ||eps_i W||, which no ||o^ - o*|| exceeds (P3): attention passes noise on, and never enlarges it.

    Parameters
    ----------
    weights : array of shape (..., N)
    noise : array of shape (..., N, d)
        The noise eps itself, one sample; its leading axes broadcast to those of the weights.
    projection : array of shape (d, dv), optional

    Returns
    -------
    array of shape (...)

    Raises
    ------
    TypeError, ValueError
        If the weights are none (IA-X-34), shapes do not fit (IA-X-35), or the noise is not finite (IA-X-36).

    Notes
    -----
    Lemma 1 of arXiv 2509.26015. It is the triangle inequality, so it holds for every sample and any noise; equality
    needs one-hot weights or noise vectors of one direction.

    Examples
    --------
    >>> import numpy as np
    >>> float(noise_bound(np.asarray([0.5, 0.5]), np.asarray([[3.0, 4.0], [0.0, -5.0]])))
    5.0
    """
    wide = check_weights(weights)
    arrays = given(weights, weights.shape[:-1], noise=noise, projection=projection)
    xp = namespace_of(weights=weights)
    width_of(None, arrays)
    if noise.shape[-2] != weights.shape[-1]:
        raise ValueError(
            f"`noise` must have the axes (..., N, d) with N = {weights.shape[-1]}; got {tuple(noise.shape)} [IA-X-35]"
        )
    moved = arrays["noise"] if projection is None else xp.matmul(arrays["noise"], arrays["projection"])
    return xp.sum(wide * xp.sqrt(squared(moved)), axis=-1)


def noise_energy(
    weights: Float[Array, "... N"],
    sigma: Any,
    *,
    dim: int | None = None,
    noise_covariance: Float[Array, "... d d"] | None = None,
    projection: Float[Array, "d dv"] | None = None,
    form: str = "exact",
) -> Float[Array, "..."]:
    """E||o^ - o*||^2, the energy of the noise in the output (P4).

    Parameters
    ----------
    weights : array of shape (..., N)
    sigma : float or array of shape (...)
        Standard deviation of each component of the noise, or of the noise's scale if its covariance is given. Here and
        below, an array of fewer axes broadcasts to the leading axes of the weights.
    dim : int, optional
        d, where nothing else says it.
    noise_covariance : array of shape (..., d, d), optional
        Of the noise at sigma = 1.
    projection : array of shape (d, dv), optional
    form : str
        exact: sigma^2 S2 tr(W^T R W). paper: sigma^2 d S2, whatever R and W are; it agrees where tr(W^T R W) = d, as
        for white noise and ||W||_F^2 = d, and so for orthonormal rows of W.

    Returns
    -------
    array of shape (...)

    Raises
    ------
    TypeError, ValueError
        As IA-X-34 to IA-X-37 say.

    Notes
    -----
    Lemma 2 of arXiv 2509.26015.

    Examples
    --------
    >>> import numpy as np
    >>> one_hot, uniform = np.asarray([1.0, 0.0, 0.0, 0.0]), np.full(4, 0.25)
    >>> noise_energy(np.stack([one_hot, uniform]), 0.5, dim=8)
    array([2. , 0.5])
    """
    check_choice("form", form)
    wide, lead = check_weights(weights), weights.shape[:-1]
    sigma = check_level("sigma", sigma, weights, lead)
    arrays = given(weights, lead, noise_covariance=noise_covariance, projection=projection)
    d = width_of(dim, arrays)
    if form == "paper":
        return sigma * sigma * d * squared(wide)
    xp = namespace_of(weights=weights)
    one = covariance_energy(xp, d, arrays.get("noise_covariance"), arrays.get("projection"))
    return sigma * sigma * squared(wide) * one


def signal_energy(
    weights: Float[Array, "... N"],
    *,
    dim: int | None = None,
    mean: Float[Array, "... d"] | None = None,
    covariance: Float[Array, "... d d"] | None = None,
    projection: Float[Array, "d dv"] | None = None,
    form: str = "exact",
) -> Float[Array, "..."]:
    """E||o*||^2, the energy of the clean output.

    Parameters
    ----------
    weights : array of shape (..., N)
    dim : int, optional
        d, where nothing else says it.
    mean : array of shape (..., d), optional
    covariance : array of shape (..., d, d), optional
    projection : array of shape (d, dv), optional
    form : str
        exact: S2 tr(W^T Sigma W) + ||mu W||^2. paper: d S2, which agrees for a mean of 0, a covariance of
        the identity and ||W||_F^2 = d.

    Returns
    -------
    array of shape (...)

    Raises
    ------
    TypeError, ValueError
        As IA-X-34 to IA-X-37 say.

    Examples
    --------
    >>> import numpy as np
    >>> uniform = np.full((1, 4), 0.25)
    >>> signal_energy(uniform, dim=8), signal_energy(uniform, mean=np.ones(8))
    (array([2.]), array([10.]))
    """
    check_choice("form", form)
    wide = check_weights(weights)
    arrays = given(weights, weights.shape[:-1], mean=mean, covariance=covariance, projection=projection)
    d = width_of(dim, arrays)
    if form == "paper":
        return d * squared(wide)
    xp = namespace_of(weights=weights)
    spread = squared(wide) * covariance_energy(xp, d, arrays.get("covariance"), arrays.get("projection"))
    return spread + mean_energy(xp, arrays.get("mean"), arrays.get("projection"))


def snr(
    weights: Float[Array, "... N"],
    sigma: Any,
    *,
    dim: int | None = None,
    mean: Float[Array, "... d"] | None = None,
    covariance: Float[Array, "... d d"] | None = None,
    noise_covariance: Float[Array, "... d d"] | None = None,
    projection: Float[Array, "d dv"] | None = None,
    form: str = "exact",
) -> Float[Array, "..."]:
    """E||o*||^2 / E||o^ - o*||^2 (P6); inf without noise.

    Parameters
    ----------
    weights : array of shape (..., N)
    sigma : float or array of shape (...)
    dim : int, optional
    mean, covariance, noise_covariance, projection : array, optional
        As in :func:`signal_energy` and :func:`noise_energy`.
    form : str
        exact: their quotient. paper: 1 / sigma^2, which agrees for a mean of 0 and a covariance that is the noise's at
        sigma = 1, as for uncorrelated components of variance 1 and white noise.

    Returns
    -------
    array of shape (...)

    Raises
    ------
    TypeError, ValueError
        As IA-X-34 to IA-X-37 say.

    Notes
    -----
    The erratum to (P7) of arXiv 2509.26015: with a mean the quotient depends on the weights.

    Examples
    --------
    >>> import numpy as np
    >>> uniform = np.full((1, 4), 0.25)
    >>> snr(uniform, 0.5, dim=8), snr(uniform, 0.5, mean=np.ones(8))
    (array([4.]), array([20.]))
    """
    keywords: dict[str, Any] = {"dim": _dim(dim, mean, covariance, noise_covariance, projection), "form": form}
    signal = signal_energy(weights, mean=mean, covariance=covariance, projection=projection, **keywords)
    noise = noise_energy(weights, sigma, noise_covariance=noise_covariance, projection=projection, **keywords)
    return quotient(signal, noise)


def critical_sigma(
    weights: Float[Array, "... N"],
    *,
    dim: int | None = None,
    mean: Float[Array, "... d"] | None = None,
    covariance: Float[Array, "... d d"] | None = None,
    noise_covariance: Float[Array, "... d d"] | None = None,
    projection: Float[Array, "d dv"] | None = None,
    form: str = "exact",
) -> Float[Array, "..."]:
    """sigma*, the noise level at which the noise has the energy of the signal: SNR = 1 (P7).

    Parameters
    ----------
    weights : array of shape (..., N)
    dim : int, optional
    mean, covariance, noise_covariance, projection : array, optional
        As in :func:`snr`.
    form : str
        exact: sqrt of tr(Sigma) / d + n_eff ||mu||^2 / d for orthonormal W and white noise, and of the quotient of the
        two energies at sigma = 1 in general. paper: 1, which agrees where the SNR is the paper's: see :func:`snr`.

    Returns
    -------
    array of shape (...)

    Raises
    ------
    TypeError, ValueError
        As IA-X-34 to IA-X-37 say.

    Notes
    -----
    The erratum to (P7) of arXiv 2509.26015: with a mean the threshold rises with the effective number of tokens.

    Examples
    --------
    >>> import numpy as np
    >>> uniform = np.full((1, 8), 0.125)
    >>> critical_sigma(uniform, dim=64), critical_sigma(uniform, mean=np.ones(64))
    (array([1.]), array([3.]))
    """
    both: dict[str, Any] = {"mean": mean, "covariance": covariance, "noise_covariance": noise_covariance}
    one = snr(weights, 1.0, dim=dim, projection=projection, form=form, **both)
    return namespace_of(weights=weights).sqrt(one)


def _dim(dim: int | None, *arrays: Array | None) -> int | None:
    """The width, for each of two energies of which one may be told by the arrays of the other alone."""
    *square, projection = arrays
    known = [array.shape[-1] for array in square if array is not None]
    known += [] if projection is None or projection.ndim < 2 else [projection.shape[-2]]
    return dim if dim is not None or not known else int(known[0])
