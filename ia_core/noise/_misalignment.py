"""Misalignment: keys of one sequence x, values of another y, seen as noise in place of the aligned values.

================  ==============  ========================================================================
array             shape           meaning
================  ==============  ========================================================================
weights           (..., N)        a, independent of both sequences
mean_x, mean_y    (..., d)        of the tokens x_i and y_i; 0 by default
covariance_x, _y  (..., d, d)     of the tokens x_i and y_i; the identity by default
cross_covariance  (..., d, d)     E (x_i - mu_x)(y_i - mu_y)^T; 0 by default: the sequences are independent
projection        (d, dv)         W_v, applied as y W; none by default
================  ==============  ========================================================================

Leading axes of means and covariances broadcast to those of the weights. Pairs (x_i, y_i) are independent of each
other. Delta-o = sum_i a_i (y_i - x_i) W has the energy

    gamma = E||Delta-o||^2 = S2 tr(W^T (Sigma_x + Sigma_y - C - C^T) W) + ||(mu_y - mu_x) W||^2
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from .._arrays import Array, Namespace, device, namespace_of
from ._inputs import (
    Given,
    check_choice,
    check_covariance,
    check_level,
    check_weights,
    covariance_energy,
    given,
    mean_energy,
    not_below_zero,
    quotient,
    squared,
    width_of,
)
from ._values import noise_energy

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["Difference", "difference", "equivalent_sigma", "misalignment_energy", "misalignment_snr"]


class Difference(NamedTuple):
    """Mean and covariance of y_i - x_i."""

    mean: Any
    covariance: Any


def misalignment_energy(
    weights: Float[Array, "... N"],
    *,
    dim: int | None = None,
    mean_x: Float[Array, "... d"] | None = None,
    mean_y: Float[Array, "... d"] | None = None,
    covariance_x: Float[Array, "... d d"] | None = None,
    covariance_y: Float[Array, "... d d"] | None = None,
    cross_covariance: Float[Array, "... d d"] | None = None,
    projection: Float[Array, "d dv"] | None = None,
    form: str = "exact",
) -> Float[Array, "..."]:
    """How far values of another sequence move the output: gamma = E||Delta-o||^2 (P8, P9).

    Parameters
    ----------
    weights : array of shape (..., N)
    dim : int, optional
        d, where nothing else says it.
    mean_x, mean_y : array of shape (..., d), optional
    covariance_x, covariance_y, cross_covariance : array of shape (..., d, d), optional
        The same sequence twice (all three equal) has no misalignment.
    projection : array of shape (d, dv), optional
    form : str
        exact: S2 tr(W^T (Sigma_x + Sigma_y - C - C^T) W) + ||(mu_y - mu_x) W||^2. paper: 2 d + ||mu_y - mu_x||^2. For
        independent sequences, unit variances and orthonormal rows of W that agrees for one-hot weights and is an upper
        bound for all others; without these three conditions it may be too small.

    Returns
    -------
    array of shape (...)

    Raises
    ------
    TypeError, ValueError
        As IA-X-34 to IA-X-37 say.

    Notes
    -----
    Section 3 of arXiv 2509.26015, and its erratum: taken term by term, the variances are averaged by the weights. C has
    the covariance of component a of x_i and component b of y_i in row a and column b.

    Examples
    --------
    >>> import numpy as np
    >>> one_hot, uniform = np.asarray([1.0, 0.0, 0.0, 0.0]), np.full(4, 0.25)
    >>> misalignment_energy(np.stack([one_hot, uniform]), dim=64)
    array([128.,  32.])
    >>> eye = np.eye(64)
    >>> float(misalignment_energy(uniform, covariance_x=eye, covariance_y=eye, cross_covariance=eye))
    0.0
    """
    check_choice("form", form)
    wide = check_weights(weights)
    arrays = given(
        weights,
        weights.shape[:-1],
        mean_x=mean_x,
        mean_y=mean_y,
        covariance_x=covariance_x,
        covariance_y=covariance_y,
        cross_covariance=cross_covariance,
        projection=projection,
    )
    d = width_of(dim, arrays)
    xp = namespace_of(weights=weights)
    of = difference(xp, d, arrays, wide)
    if form == "paper":
        return 2 * d + mean_energy(xp, of.mean, None) + 0 * squared(wide)
    W = arrays.get("projection")
    return not_below_zero(squared(wide) * covariance_energy(xp, d, of.covariance, W) + mean_energy(xp, of.mean, W))


def misalignment_snr(
    weights: Float[Array, "... N"],
    *,
    dim: int | None = None,
    mean_x: Float[Array, "... d"] | None = None,
    mean_y: Float[Array, "... d"] | None = None,
    covariance_x: Float[Array, "... d d"] | None = None,
    covariance_y: Float[Array, "... d d"] | None = None,
    cross_covariance: Float[Array, "... d d"] | None = None,
    projection: Float[Array, "d dv"] | None = None,
    form: str = "exact",
) -> Float[Array, "..."]:
    """Energy of the aligned output over that of the misalignment; inf where there is none.

    Parameters
    ----------
    weights : array of shape (..., N)
    dim : int, optional
    mean_x, mean_y, covariance_x, covariance_y, cross_covariance, projection : array, optional
        As in :func:`misalignment_energy`.
    form : str
        exact: the quotient of the two energies. paper: 1 / gamma with the paper's gamma, which takes the place of
        sigma^2 in 1 / sigma^2; it agrees where that gamma does (see there) and the aligned output has an energy of 1,
        as for d = 1 and a mean_x of 0, and falls with d where the exact form does not.

    Returns
    -------
    array of shape (...)
        (S2 tr(Sigma_x) + ||mu_x||^2) / gamma without a projection. For independent sequences of unit variance: 1/2 for
        means of 0, at every d; below 1 if and only if d S2 + ||mu_y - mu_x||^2 > ||mu_x||^2; and, as n_eff grows,
        rising to ||mu_x||^2 / ||mu_y - mu_x||^2 if that is above 1/2, falling to it if it is below.

    Raises
    ------
    TypeError, ValueError
        As IA-X-34 to IA-X-37 say.

    Notes
    -----
    The erratum to (P9) of arXiv 2509.26015: gamma, an energy over d components, compares with sigma*, a deviation of
    one component, only after both are divided by the energy of the signal.

    Examples
    --------
    >>> import numpy as np
    >>> uniform = np.full((1, 4), 0.25)
    >>> misalignment_snr(uniform, dim=64), misalignment_snr(uniform, mean_y=np.ones(64)).round(3)
    (array([0.5]), array([0.167]))
    """
    check_choice("form", form)
    wide = check_weights(weights)
    arrays = given(
        weights,
        weights.shape[:-1],
        mean_x=mean_x,
        mean_y=mean_y,
        covariance_x=covariance_x,
        covariance_y=covariance_y,
        cross_covariance=cross_covariance,
        projection=projection,
    )
    d, xp = width_of(dim, arrays), namespace_of(weights=weights)
    of, W = difference(xp, d, arrays, wide), arrays.get("projection")
    S2 = squared(wide)
    if form == "paper":
        return 1 / (2 * d + mean_energy(xp, of.mean, None) + 0 * S2)
    signal = S2 * covariance_energy(xp, d, arrays.get("covariance_x"), W) + mean_energy(xp, arrays.get("mean_x"), W)
    gamma = S2 * covariance_energy(xp, d, of.covariance, W) + mean_energy(xp, of.mean, W)
    return quotient(signal, not_below_zero(gamma))


def equivalent_sigma(
    weights: Float[Array, "... N"],
    energy: Any,
    *,
    dim: int | None = None,
    noise_covariance: Float[Array, "... d d"] | None = None,
    projection: Float[Array, "d dv"] | None = None,
) -> Float[Array, "..."]:
    """The level of additive noise on the values that does as much harm as a given energy, say of a misalignment.

    Parameters
    ----------
    weights : array of shape (..., N)
    energy : float or array of shape (...)
        Not negative, for example from :func:`misalignment_energy`.
    dim : int, optional
    noise_covariance, projection : array, optional
        As in :func:`noise_energy`.

    Returns
    -------
    array of shape (...)
        sqrt(energy / (S2 tr(W^T R W))): sqrt(2 + n_eff ||mu_y - mu_x||^2 / d) for a misalignment of independent
        sequences of unit variance and an orthogonal W; inf where no level of such noise has an energy.

    Raises
    ------
    TypeError, ValueError
        As IA-X-34 to IA-X-37 say.

    Notes
    -----
    It inverts Lemma 2 of arXiv 2509.26015 (P4).

    Examples
    --------
    >>> import numpy as np
    >>> weights = np.full((1, 4), 0.25)
    >>> equivalent_sigma(weights, misalignment_energy(weights, dim=64), dim=64).round(4)
    array([1.4142])
    """
    energy = check_level("energy", energy, weights, weights.shape[:-1])
    one = noise_energy(weights, 1.0, dim=dim, noise_covariance=noise_covariance, projection=projection)
    return namespace_of(weights=weights).sqrt(quotient(energy, one))


def difference(xp: Namespace, d: int, arrays: Given, like: Array) -> Difference:
    """Mean and covariance of y_i - x_i, of what is given; None for a mean of 0."""
    mean, mean_x = arrays.get("mean_y"), arrays.get("mean_x")
    if mean_x is not None:
        mean = -mean_x if mean is None else mean - mean_x
    eye = xp.eye(d, dtype=like.dtype, device=device(like))
    x, y, cross = arrays.get("covariance_x", eye), arrays.get("covariance_y", eye), arrays.get("cross_covariance")
    if cross is None:
        return Difference(mean, x + y)
    x, y, cross = xp.broadcast_arrays(x, y, cross)
    back = xp.matrix_transpose(cross)
    joint = xp.concat([xp.concat([x, cross], axis=-1), xp.concat([back, y], axis=-1)], axis=-2)
    check_covariance("covariance of x and y together", joint)
    return Difference(mean, x + y - cross - back)
