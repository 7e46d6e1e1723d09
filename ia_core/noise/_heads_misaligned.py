"""Misalignment in several heads: shapes as in ``_heads``, sequences as in ``_misalignment``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from .._arrays import Array, namespace_of
from ._heads import head_maps, head_overlaps, head_width, shift_energy, spread_energy
from ._inputs import Given, check_choice, given, not_below_zero, quotient, squared
from ._misalignment import Difference, difference

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["multi_head_misalignment_energy", "multi_head_misalignment_snr"]


class _Setting(NamedTuple):
    arrays: Given
    d: int
    overlaps: Array
    maps: Array
    of: Difference


def multi_head_misalignment_energy(
    weights: Float[Array, "... H M N"],
    *,
    dim: int | None = None,
    mean_x: Float[Array, "... d"] | None = None,
    mean_y: Float[Array, "... d"] | None = None,
    covariance_x: Float[Array, "... d d"] | None = None,
    covariance_y: Float[Array, "... d d"] | None = None,
    cross_covariance: Float[Array, "... d d"] | None = None,
    value_projection: Float[Array, "d Hdh"] | None = None,
    output_projection: Float[Array, "Hdh dout"] | None = None,
    form: str = "exact",
) -> Float[Array, "... M"]:
    """The energy gamma of all heads together (P9).

    Parameters
    ----------
    weights : array of shape (..., H, M, N)
    dim : int, optional
        d, where nothing else says it.
    mean_x, mean_y, covariance_x, covariance_y, cross_covariance : array, optional
        As in :func:`misalignment_energy`.
    value_projection, output_projection : array, optional
        As in :func:`multi_head_noise_energy`.
    form : str
        exact: sum_hg G_hg tr(T_h^T (Sigma_x + Sigma_y - C - C^T) T_g) + ||(mu_y - mu_x) sum_h T_h||^2, T_h = W_h O_h.
        paper: 2 d + (1 / H) sum_h ||mu_y^h - mu_x^h||^2, where mu^h = mu W_h. For independent sequences, unit variances
        and one-hot weights the two agree if all heads together have orthonormal projections and the means do not
        differ (a difference is counted H times too little); or, with any means, if each W_h is orthogonal, of shape
        (d, d), and the rows of the sqrt(H) O_h are orthonormal, those of one head and of all heads together: the
        output has the mean of the heads' energies.

    Returns
    -------
    array of shape (..., M)

    Raises
    ------
    TypeError, ValueError
        As IA-X-34 to IA-X-37 say.

    Notes
    -----
    Section 3 of arXiv 2509.26015, and its erratum.

    Examples
    --------
    >>> import numpy as np
    >>> multi_head_misalignment_energy(np.asarray([[[1.0, 0.0]], [[0.5, 0.5]]]), dim=8)
    array([12.])
    """
    check_choice("form", form)
    at = _setting(
        weights,
        dim,
        mean_x=mean_x,
        mean_y=mean_y,
        covariance_x=covariance_x,
        covariance_y=covariance_y,
        cross_covariance=cross_covariance,
        value_projection=value_projection,
        output_projection=output_projection,
    )
    return _energy(at) if form == "exact" else _paper_energy(at)


def multi_head_misalignment_snr(
    weights: Float[Array, "... H M N"],
    *,
    dim: int | None = None,
    mean_x: Float[Array, "... d"] | None = None,
    mean_y: Float[Array, "... d"] | None = None,
    covariance_x: Float[Array, "... d d"] | None = None,
    covariance_y: Float[Array, "... d d"] | None = None,
    cross_covariance: Float[Array, "... d d"] | None = None,
    value_projection: Float[Array, "d Hdh"] | None = None,
    output_projection: Float[Array, "Hdh dout"] | None = None,
    form: str = "exact",
) -> Float[Array, "... M"]:
    """Energy of the aligned output of all heads over that of the misalignment; inf where there is none.

    Parameters
    ----------
    weights : array of shape (..., H, M, N)
    dim : int, optional
    mean_x, mean_y, covariance_x, covariance_y, cross_covariance, value_projection, output_projection : array, optional
        As in :func:`multi_head_misalignment_energy`.
    form : str
        exact: the quotient of the two energies. paper: 1 / gamma with the paper's gamma, as in
        :func:`misalignment_snr`; it agrees where that gamma does and the aligned output has an energy of 1.

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
    >>> multi_head_misalignment_snr(np.asarray([[[1.0, 0.0]], [[0.5, 0.5]]]), dim=8)
    array([0.5])
    """
    check_choice("form", form)
    at = _setting(
        weights,
        dim,
        mean_x=mean_x,
        mean_y=mean_y,
        covariance_x=covariance_x,
        covariance_y=covariance_y,
        cross_covariance=cross_covariance,
        value_projection=value_projection,
        output_projection=output_projection,
    )
    if form == "paper":
        return 1 / _paper_energy(at)
    signal = spread_energy(at.overlaps, at.maps, at.arrays.get("covariance_x"))
    signal = signal + shift_energy(at.maps, at.arrays.get("mean_x"))
    return quotient(signal, _energy(at))


def _energy(at: _Setting) -> Array:
    return not_below_zero(spread_energy(at.overlaps, at.maps, at.of.covariance) + shift_energy(at.maps, at.of.mean))


def _paper_energy(at: _Setting) -> Array:
    xp, H = namespace_of(overlaps=at.overlaps), at.overlaps.shape[-1]
    shift = at.of.mean
    if shift is not None and "value_projection" in at.arrays:
        shift = xp.matmul(shift[..., None, :], at.arrays["value_projection"])[..., 0, :]
    shifted: Any = 0.0 if shift is None else squared(shift)[..., None] / H
    return 2 * at.d + shifted + 0 * at.overlaps[..., 0, 0]


def _setting(weights: Array, dim: int | None, **arrays: Array | None) -> _Setting:
    overlaps = head_overlaps(weights)
    some = given(weights, weights.shape[:-3], **arrays)
    d = head_width(dim, some)
    of = difference(namespace_of(weights=weights), d, some, overlaps)
    return _Setting(some, d, overlaps, head_maps(d, some, overlaps), of)
