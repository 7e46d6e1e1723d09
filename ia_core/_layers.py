"""Layers as pure functions of (params, inputs): affine map, normalisation, feed-forward network.

==================  ===================================  =====================================
parameters          arrays                               function
==================  ===================================  =====================================
Linear              (d_in, ...), (...) or None           (..., d_in) to (..., ...)
LayerNorm           (d,), (d,)                           (..., d) to (..., d)
FeedForward         (d, hidden), (hidden,),              (..., d) to (..., d_out)
                    (hidden, d_out), (d_out,)
==================  ===================================  =====================================

Every layer computes in the working dtype (float32 for halves) and rounds its result to the input's dtype
once.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

from ._arrays import Array, check_floating, dtype_name, namespace_of, widen
from ._bias import check_parameters

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = [
    "FeedForward",
    "LayerNorm",
    "Linear",
    "affine",
    "check_input",
    "check_linear",
    "feed_forward",
    "layer_norm",
    "linear",
]


class Linear(NamedTuple):
    """An affine map of the last axis, to one axis or several (for example heads and their width).

    Attributes
    ----------
    weight : array of shape (d_in, ...)
    bias : array of the other axes' shape (...), or None

    Examples
    --------
    >>> import numpy as np
    >>> linear(Linear(np.ones((2, 3)), np.asarray([0.0, 1.0, 2.0])), np.asarray([1.0, 5.0]))
    array([6., 7., 8.])
    """

    weight: Float[Array, "d_in ..."]
    bias: Float[Array, "..."] | None = None


class LayerNorm(NamedTuple):
    """Scale and shift after normalisation over the last axis.

    Attributes
    ----------
    weight, bias : array of shape (d,)

    Examples
    --------
    >>> import numpy as np
    >>> layer_norm(LayerNorm(np.ones(2), np.ones(2)), np.asarray([-4.0, 4.0])).round(3)
    array([0., 2.])
    """

    weight: Float[Array, "d"]
    bias: Float[Array, "d"]


class FeedForward(NamedTuple):
    """Two layers with a GELU in between, applied at every position.

    Attributes
    ----------
    w1 : array of shape (d, hidden)
    b1 : array of shape (hidden,)
    w2 : array of shape (hidden, d_out)
    b2 : array of shape (d_out,)

    Examples
    --------
    >>> import numpy as np
    >>> params = FeedForward(np.ones((1, 2)), np.zeros(2), np.ones((2, 1)), np.zeros(1))
    >>> feed_forward(params, np.asarray([[0.0], [9.0]])).round(6)
    array([[ 0.],
           [18.]])
    """

    w1: Float[Array, "d hidden"]
    b1: Float[Array, "hidden"]
    w2: Float[Array, "hidden d_out"]
    b2: Float[Array, "d_out"]


def linear(params: Linear, x: Float[Array, "... d_in"]) -> Float[Array, "..."]:
    """``x W + b`` over the last axis.

    Parameters
    ----------
    params : Linear
    x : array of shape (..., d_in)
        In the parameters' dtype.

    Returns
    -------
    array
        The last axis is replaced by the axes of weight after its first.

    Raises
    ------
    TypeError, ValueError
        If the parameters do not fit together (IA-X-14), or x does not fit them (IA-X-30).

    Examples
    --------
    >>> import numpy as np
    >>> linear(Linear(np.ones((2, 4, 8))), np.ones((5, 2))).shape
    (5, 4, 8)
    """
    check_linear("Linear", params)
    return affine(params, "x", x)


def layer_norm(params: LayerNorm, x: Float[Array, "... d"], *, eps: float = 1e-5) -> Float[Array, "... d"]:
    """``(x - mean) / sqrt(var + eps) * weight + bias`` over the last axis.

    Parameters
    ----------
    params : LayerNorm
    x : array of shape (..., d)
        In the parameters' dtype.
    eps : float
        Added to the variance, which is the mean square deviation (divided by d, not d - 1).

    Returns
    -------
    array of shape (..., d)

    Raises
    ------
    TypeError, ValueError
        If the parameters do not fit together (IA-X-14), or x does not fit them (IA-X-30).

    Notes
    -----
    Ba, Kiros and Hinton, arXiv 1607.06450.

    Examples
    --------
    >>> import numpy as np
    >>> layer_norm(LayerNorm(np.ones(4), np.zeros(4)), np.asarray([7.0, 7.0, 7.0, 7.0]))
    array([0., 0., 0., 0.])
    """
    check_parameters("LayerNorm", params, {"weight": (None,), "bias": tuple(params.weight.shape)})
    xp = check_input("x", x, params.weight)
    wide = widen(x)
    centred = wide - xp.mean(wide, axis=-1, keepdims=True)
    variance = xp.mean(centred * centred, axis=-1, keepdims=True)
    out = centred / xp.sqrt(variance + eps) * widen(params.weight) + widen(params.bias)
    return xp.astype(out, x.dtype, copy=False)


def feed_forward(params: FeedForward, x: Float[Array, "... d"]) -> Float[Array, "... d_out"]:
    """``gelu(x w1 + b1) w2 + b2`` over the last axis.

    Parameters
    ----------
    params : FeedForward
    x : array of shape (..., d)
        In the parameters' dtype.

    Returns
    -------
    array of shape (..., d_out)

    Raises
    ------
    TypeError, ValueError
        If the parameters do not fit together (IA-X-14), or x does not fit them (IA-X-30).

    Notes
    -----
    GELU in its tanh form, ``z/2 (1 + tanh(sqrt(2/pi) (z + 0.044715 z^3)))`` (Hendrycks and Gimpel, arXiv
    1606.08415): the exact form needs the error function, which the array API standard does not have. The two
    differ by less than 5e-4 everywhere.

    Examples
    --------
    >>> import numpy as np
    >>> feed_forward(FeedForward(np.eye(3), np.zeros(3), np.ones((3, 2)), np.ones(2)), np.zeros((5, 3))).shape
    (5, 2)
    """
    hidden = params.w1.shape[-1] if params.w1.ndim else 0
    shapes = {"w1": (None, hidden), "b1": (hidden,), "w2": (hidden, None), "b2": (params.w2.shape[-1],)}
    check_parameters("FeedForward", params, shapes)
    xp = check_input("x", x, params.w1)
    inner = _gelu(xp, xp.matmul(widen(x), widen(params.w1)) + widen(params.b1))
    return xp.astype(xp.matmul(inner, widen(params.w2)) + widen(params.b2), x.dtype, copy=False)


def check_input(name: str, x: Array, weight: Array) -> Any:
    """The namespace of an input (..., d) and of the weight (d, ...) that it meets, if they fit (IA-X-30)."""
    xp = namespace_of(**{name: x, "params": weight})
    check_floating(name, x)
    given, wanted = dtype_name(x.dtype), dtype_name(weight.dtype)
    if given != wanted:
        raise TypeError(f"`{name}` must have the dtype of the parameters, {wanted}; got {given} [IA-X-30]")
    d, shape = weight.shape[0], tuple(x.shape)
    if shape[-1:] != (d,):
        raise ValueError(f"`{name}` must have the parameters' {d} features on its last axis; got {shape} [IA-X-30]")
    return xp


def affine(params: Linear, name: str, x: Array) -> Array:
    """The map ``x W + b`` of a named input and parameters that fit each other."""
    xp = check_input(name, x, params.weight)
    d_in, *features = params.weight.shape
    weight = xp.reshape(widen(params.weight), (d_in, math.prod(features)))
    out = xp.reshape(xp.matmul(widen(x), weight), (*x.shape[:-1], *features))
    out = out if params.bias is None else out + widen(params.bias)
    return xp.astype(out, x.dtype, copy=False)


def _gelu(xp: Any, z: Array) -> Array:
    return 0.5 * z * (1.0 + xp.tanh(math.sqrt(2.0 / math.pi) * (z + 0.044715 * z * z * z)))


class _Weight(NamedTuple):
    """A Linear without its bias, for the check of its arrays."""

    weight: Array


def check_linear(
    owner: str, params: Linear, weight: tuple[int | None, ...] | None = None, *, contracted: int = 1
) -> None:
    """Refuse a weight of another shape than wanted, and a bias that does not fit its later axes (IA-X-14)."""
    if not isinstance(params, Linear):
        raise TypeError(f"`{owner}` must be a Linear; got {type(params).__name__} [IA-X-14]")
    features = tuple(params.weight.shape[contracted:])
    shapes = {"weight": weight or (None,) * contracted + features, "bias": features}
    check_parameters(owner, _Weight(params.weight) if params.bias is None else params, shapes)
