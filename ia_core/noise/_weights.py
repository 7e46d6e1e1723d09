"""What the noise theory needs of attention weights: one number, the sum of their squares.

==========  ===========  ==================================
array       shape        meaning
==========  ===========  ==================================
weights     (..., N)     attention weights of one row each
result      (...)        one number for each row
==========  ===========  ==================================
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .._arrays import Array, namespace_of
from ._inputs import check_level, check_weights, squared

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["effective_tokens", "tempered_weights"]


def effective_tokens(weights: Float[Array, "... N"]) -> Float[Array, "..."]:
    """n_eff = 1 / S2, with S2 = sum_i a_i^2: how many equal weights would spread as much.

    Parameters
    ----------
    weights : array of shape (..., N)
        Attention weights, as :func:`ia_core.attention_weights` gives them.

    Returns
    -------
    array of shape (...)
        Between 1 (one-hot) and N (uniform).

    Raises
    ------
    TypeError, ValueError
        If the weights are negative or do not sum to 1 (IA-X-34).

    Notes
    -----
    The erratum to (P7) of arXiv 2509.26015: with a mean the threshold rises with it.

    Examples
    --------
    >>> import numpy as np
    >>> effective_tokens(np.asarray([[0.25, 0.25, 0.25, 0.25], [1.0, 0.0, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0]]))
    array([4., 1., 2.])
    """
    return 1 / squared(check_weights(weights))


def tempered_weights(weights: Float[Array, "... N"], temperature: Any) -> Float[Array, "... N"]:
    """The weights that the same scores give after a division by a temperature T: a_i^(1/T) / sum_j a_j^(1/T).

    Every energy of the noise theory at a temperature is that of these weights: T below 1 sharpens them, so that noise
    of the values passes with more of its energy, and T above 1 spreads them.

    Parameters
    ----------
    weights : array of shape (..., N)
    temperature : float or array of shape (...)
        Positive. An array has one for each row: it broadcasts to the leading axes of the weights.

    Returns
    -------
    array of shape (..., N)

    Raises
    ------
    TypeError, ValueError
        If the weights are none (IA-X-34), or the temperature does not fit them (IA-X-35) or is not positive (IA-X-37).

    Examples
    --------
    >>> import numpy as np
    >>> tempered_weights(np.asarray([0.8, 0.2]), 0.5).round(4)
    array([0.9412, 0.0588])
    """
    wide = check_weights(weights)
    temperature = check_level("temperature", temperature, weights, weights.shape[:-1], positive=True)
    xp = namespace_of(weights=weights)
    if hasattr(temperature, "ndim") and temperature.ndim:
        temperature = temperature[..., None]
    none = wide == 0  # whose logarithm, and gradient, would not be finite
    scores = xp.log(xp.where(none, xp.ones_like(wide), wide))
    scores = xp.where(none, -xp.ones_like(wide) * xp.inf, scores)
    # The largest is taken off first: divided by a small temperature, scores may be infinite.
    powers = xp.exp((scores - xp.max(scores, axis=-1, keepdims=True)) / temperature)
    return powers / xp.sum(powers, axis=-1, keepdims=True)
