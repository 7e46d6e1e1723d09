"""Several heads: their noise is of the same tokens, so that what one head passes on meets what another does.

=================  ======================  =================================================================
array              shape                   meaning
=================  ======================  =================================================================
weights            (..., H, M, N)          a^h, as :func:`ia_core.attention_weights` gives them
overlaps           (..., M, H, H)          G_hg = sum_i a_i^h a_i^g
value_projection   (d, H dh)               [W_1 .. W_H], applied as x W; the identity by default, with H dh = d
output_projection  (H dh, d_out)           [O_1; ..; O_H], applied as o W; the identity by default
mean               (..., d)                of the tokens
covariance         (..., d, d)             of the tokens, or of their noise
=================  ======================  =================================================================

Leading axes of means and covariances broadcast to those of the weights before the heads, the axes of sigma to these and
M. The output sum_h sum_i a_i^h x_i T_h, T_h = W_h O_h, of tokens with mean mu and covariance Sigma has the energy

    E||o||^2 = sum_hg G_hg tr(T_h^T Sigma T_g) + ||mu sum_h T_h||^2

Orthonormal projections leave sum_h (sum_i (a_i^h)^2) tr(W_h^T Sigma W_h): nothing passes between heads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .._arrays import Array, device, move_axis, namespace_of
from ._inputs import Given, check_choice, check_level, check_weights, given, quotient, squared, width_of

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = [
    "head_maps",
    "head_overlaps",
    "head_width",
    "multi_head_critical_sigma",
    "multi_head_noise_energy",
    "multi_head_signal_energy",
    "multi_head_snr",
    "shift_energy",
    "spread_energy",
]


def head_overlaps(weights: Float[Array, "... H M N"]) -> Float[Array, "... M H H"]:
    """G_hg = sum_i a_i^h a_i^g: how much two heads look at the same tokens; on the diagonal 1 / n_eff.

    Parameters
    ----------
    weights : array of shape (..., H, M, N)

    Returns
    -------
    array of shape (..., M, H, H)

    Raises
    ------
    TypeError, ValueError
        If the weights are none (IA-X-34), or have no axes for heads and queries (IA-X-35).

    Examples
    --------
    >>> import numpy as np
    >>> head_overlaps(np.asarray([[[1.0, 0.0]], [[0.5, 0.5]]]))
    array([[[1. , 0.5],
            [0.5, 0.5]]])
    """
    wide = check_weights(weights)
    if weights.ndim < 3:
        raise ValueError(f"`weights` must have the axes (..., H, M, N); got shape {tuple(weights.shape)} [IA-X-35]")
    xp = namespace_of(weights=weights)
    by_row = move_axis(wide, -3, -2)  # (..., M, H, N)
    return xp.matmul(by_row, xp.matrix_transpose(by_row))


def multi_head_noise_energy(
    weights: Float[Array, "... H M N"],
    sigma: Any,
    *,
    dim: int | None = None,
    noise_covariance: Float[Array, "... d d"] | None = None,
    value_projection: Float[Array, "d Hdh"] | None = None,
    output_projection: Float[Array, "Hdh dout"] | None = None,
    form: str = "exact",
) -> Float[Array, "... M"]:
    """The energy of the values' noise in the output of all heads together (P5).

    Parameters
    ----------
    weights : array of shape (..., H, M, N)
    sigma : float or array of shape (..., M)
    dim : int, optional
        d, where nothing else says it.
    noise_covariance : array of shape (..., d, d), optional
    value_projection : array of shape (d, H dh), optional
    output_projection : array of shape (H dh, d_out), optional
    form : str
        exact: sigma^2 sum_hg G_hg tr(T_h^T R T_g), with G of :func:`head_overlaps` and T_h = W_h O_h; mixed terms may
        be negative. paper: (sigma^2 d / H) sum_h sum_i (a_i^h)^2, which agrees for white noise and projections with
        orthonormal rows and columns.

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
    >>> weights = np.asarray([[[1.0, 0.0]], [[0.5, 0.5]]])
    >>> multi_head_noise_energy(weights, 0.5, dim=8)
    array([1.5])
    """
    check_choice("form", form)
    overlaps, lead = head_overlaps(weights), weights.shape[:-3]
    sigma = check_level("sigma", sigma, weights, (*lead, weights.shape[-2]))
    arrays = given(
        weights,
        lead,
        noise_covariance=noise_covariance,
        value_projection=value_projection,
        output_projection=output_projection,
    )
    d = head_width(dim, arrays)
    maps = head_maps(d, arrays, overlaps)
    if form == "paper":
        return sigma * sigma * d / weights.shape[-3] * _diagonal_sum(overlaps)
    return sigma * sigma * spread_energy(overlaps, maps, arrays.get("noise_covariance"))


def multi_head_signal_energy(
    weights: Float[Array, "... H M N"],
    *,
    dim: int | None = None,
    mean: Float[Array, "... d"] | None = None,
    covariance: Float[Array, "... d d"] | None = None,
    value_projection: Float[Array, "d Hdh"] | None = None,
    output_projection: Float[Array, "Hdh dout"] | None = None,
    form: str = "exact",
) -> Float[Array, "... M"]:
    """The energy of the clean output of all heads together.

    Parameters
    ----------
    weights : array of shape (..., H, M, N)
    dim : int, optional
    mean : array of shape (..., d), optional
    covariance : array of shape (..., d, d), optional
    value_projection, output_projection : array, optional
        As in :func:`multi_head_noise_energy`.
    form : str
        exact: sum_hg G_hg tr(T_h^T Sigma T_g) + ||mu sum_h T_h||^2, with G of :func:`head_overlaps` and T_h = W_h O_h.
        paper: (d / H) sum_h sum_i (a_i^h)^2, the energy that the paper's forms of noise and SNR (P5 to P7) leave for
        the signal; it agrees for a mean of 0, a covariance of the identity and projections with orthonormal rows and
        columns.

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
    >>> weights = np.asarray([[[1.0, 0.0]], [[0.5, 0.5]]])
    >>> multi_head_signal_energy(weights, mean=np.ones(8))
    array([14.])
    """
    check_choice("form", form)
    overlaps = head_overlaps(weights)
    arrays = given(
        weights,
        weights.shape[:-3],
        mean=mean,
        covariance=covariance,
        value_projection=value_projection,
        output_projection=output_projection,
    )
    d = head_width(dim, arrays)
    maps = head_maps(d, arrays, overlaps)
    if form == "paper":
        return d / weights.shape[-3] * _diagonal_sum(overlaps)
    return spread_energy(overlaps, maps, arrays.get("covariance")) + shift_energy(maps, arrays.get("mean"))


def multi_head_snr(
    weights: Float[Array, "... H M N"],
    sigma: Any,
    *,
    dim: int | None = None,
    mean: Float[Array, "... d"] | None = None,
    covariance: Float[Array, "... d d"] | None = None,
    noise_covariance: Float[Array, "... d d"] | None = None,
    value_projection: Float[Array, "d Hdh"] | None = None,
    output_projection: Float[Array, "Hdh dout"] | None = None,
    form: str = "exact",
) -> Float[Array, "... M"]:
    """Signal over noise (P6) in the output of all heads together; inf without noise.

    Parameters
    ----------
    weights : array of shape (..., H, M, N)
    sigma : float or array of shape (..., M)
    dim : int, optional
    mean, covariance, noise_covariance, value_projection, output_projection : array, optional
        As in :func:`multi_head_signal_energy` and :func:`multi_head_noise_energy`.
    form : str
        exact: the quotient of the two. paper: 1 / sigma^2, which agrees for a mean of 0 and a covariance that is the
        noise's at sigma = 1, whatever the projections are.

    Returns
    -------
    array of shape (..., M)
        1 / sigma^2 for a mean of 0, a covariance of the identity and white noise, whatever heads and projections are.

    Raises
    ------
    TypeError, ValueError
        As IA-X-34 to IA-X-37 say.

    Examples
    --------
    >>> import numpy as np
    >>> multi_head_snr(np.asarray([[[1.0, 0.0]], [[0.5, 0.5]]]), 0.5, dim=8)
    array([4.])
    """
    both: dict[str, Any] = {"value_projection": value_projection, "output_projection": output_projection, "form": form}
    squares = (mean, covariance, noise_covariance)
    widths = [array.shape[-1] for array in squares if array is not None]
    dim = dim if dim is not None or not widths else int(widths[0])
    signal = multi_head_signal_energy(weights, dim=dim, mean=mean, covariance=covariance, **both)
    noise = multi_head_noise_energy(weights, sigma, dim=dim, noise_covariance=noise_covariance, **both)
    return quotient(signal, noise)


def multi_head_critical_sigma(
    weights: Float[Array, "... H M N"],
    *,
    dim: int | None = None,
    mean: Float[Array, "... d"] | None = None,
    covariance: Float[Array, "... d d"] | None = None,
    noise_covariance: Float[Array, "... d d"] | None = None,
    value_projection: Float[Array, "d Hdh"] | None = None,
    output_projection: Float[Array, "Hdh dout"] | None = None,
    form: str = "exact",
) -> Float[Array, "... M"]:
    """sigma*, at which signal and noise have the same energy in the output of all heads together (P7).

    Parameters
    ----------
    weights : array of shape (..., H, M, N)
    dim : int, optional
    mean, covariance, noise_covariance, value_projection, output_projection : array, optional
        As in :func:`multi_head_snr`.
    form : str
        exact: the root of the quotient of the two energies at sigma = 1. paper: 1 for every head count, which agrees
        where the SNR is the paper's: see :func:`multi_head_snr`.

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
    >>> multi_head_critical_sigma(np.full((2, 1, 8), 0.125), mean=np.ones(64))
    array([3.])
    """
    one = multi_head_snr(
        weights,
        1.0,
        dim=dim,
        mean=mean,
        covariance=covariance,
        noise_covariance=noise_covariance,
        value_projection=value_projection,
        output_projection=output_projection,
        form=form,
    )
    return namespace_of(weights=weights).sqrt(one)


def head_width(dim: int | None, arrays: Given) -> int:
    """The width of a token; the output projection tells it only where nothing else does: it takes the heads' width."""
    others = {name: array for name, array in arrays.items() if name != "output_projection"}
    return width_of(dim, others if others or dim is not None else arrays)


def head_maps(d: int, arrays: Given, overlaps: Array) -> Array:
    """T_h = W_h O_h, of shape (H, d, d_out)."""
    xp, H = namespace_of(overlaps=overlaps), overlaps.shape[-1]
    eye = {"dtype": overlaps.dtype, "device": device(overlaps)}
    W = arrays.get("value_projection", xp.eye(d, **eye))
    if W.ndim != 2 or W.shape[-1] % H:
        raise ValueError(
            f"`value_projection` must have shape (d, H dh) with H = {H} heads; got {tuple(W.shape)} [IA-X-35]"
        )
    output = arrays.get("output_projection", xp.eye(W.shape[-1], **eye))
    if output.ndim != 2 or output.shape[0] != W.shape[-1]:
        raise ValueError(
            f"`output_projection` must have shape ({W.shape[-1]}, d_out), as wide as all heads; "
            f"got {tuple(output.shape)} [IA-X-35]"
        )
    by_head = xp.permute_dims(xp.reshape(W, (d, H, -1)), (1, 0, 2))  # (H, d, dh)
    return xp.matmul(by_head, xp.reshape(output, (H, -1, output.shape[-1])))


def spread_energy(overlaps: Array, maps: Array, covariance: Array | None) -> Array:
    """sum_hg G_hg tr(T_h^T C T_g)."""
    xp = namespace_of(overlaps=overlaps)
    flat = xp.reshape(maps, (maps.shape[0], -1))  # (H, d d_out)
    if covariance is None:
        return xp.sum(overlaps * xp.matmul(flat, xp.matrix_transpose(flat)), axis=(-2, -1))
    moved = xp.matmul(covariance[..., None, :, :], maps)  # (..., H, d, d_out)
    moved = xp.reshape(moved, (*moved.shape[:-2], -1))
    traces = xp.matmul(flat, xp.matrix_transpose(moved))  # (..., H, H)
    return xp.sum(overlaps * traces[..., None, :, :], axis=(-2, -1))


def shift_energy(maps: Array, mean: Array | None) -> Any:
    """||mu sum_h T_h||^2, with an axis for the rows."""
    if mean is None:
        return 0.0
    xp = namespace_of(maps=maps)
    return squared(xp.matmul(mean[..., None, :], xp.sum(maps, axis=0)))


def _diagonal_sum(overlaps: Array) -> Array:
    xp = namespace_of(overlaps=overlaps)
    eye = xp.eye(overlaps.shape[-1], dtype=overlaps.dtype, device=device(overlaps))
    return xp.sum(overlaps * eye, axis=(-2, -1))
