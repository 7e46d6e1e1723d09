"""Initialisers of the bias functions f, and the slopes of their priors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import array_api_compat.numpy as numpy_namespace

from ._bias import BoxMLP, EdgeMLP, OffsetMLP
from ._params import check_sizes, init_linear, random_generator

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float

    from ._arrays import Array, Namespace

__all__ = ["alibi_slopes", "init_box_mlp", "init_edge_mlp", "init_offset_mlp"]

xp: Namespace = numpy_namespace


def alibi_slopes(heads: int, *, dtype: Any = "float32") -> Float[Array, "H"]:
    """Slopes of ALiBi: the geometric sequence that starts at ``2^(-8/H)`` with that same ratio.

    Parameters
    ----------
    heads : int
    dtype : dtype
        A floating dtype of NumPy.

    Returns
    -------
    array of shape (heads,)
        For :class:`ia_core.LinearOffset`, or as the prior of :func:`init_offset_mlp`.

    Raises
    ------
    ValueError
        If the number of heads is not positive (IA-X-33).

    Notes
    -----
    Press, Smith and Lewis, arXiv 2108.12409, section 3, for any number of heads. (Their program departs
    from this text where the number is no power of two: it interleaves two such sequences.)

    Examples
    --------
    >>> alibi_slopes(4)
    array([0.25      , 0.0625    , 0.015625  , 0.00390625], dtype=float32)
    """
    check_sizes(heads=heads)
    return xp.asarray([2.0 ** (-8.0 * h / heads) for h in range(1, heads + 1)], dtype=dtype)


def init_offset_mlp(
    seed: Any,
    heads: int,
    *,
    hidden: int = 32,
    slopes: Sequence[float] | Float[Array, "H"] | None = None,
    dtype: Any = "float32",
) -> OffsetMLP:
    """A bias function f of one offset: random, or a penalty that grows with the distance.

    Parameters
    ----------
    seed : int or numpy.random.Generator
    heads : int
    hidden : int
        At least 2 with slopes.
    slopes : sequence of float, one per head, optional
        Start as ``f_h(t) = -slopes_h |t|`` exactly: the first two hidden units are relu(t) and relu(-t),
        the others are random but do not reach the output yet.
    dtype : dtype
        A floating dtype of NumPy.

    Returns
    -------
    OffsetMLP

    Raises
    ------
    ValueError
        If a size is not positive, or the slopes do not fit (IA-X-33).

    Notes
    -----
    Section 4 of arXiv 2509.26015. Both layers as :func:`init_linear`: a knot of f lies at ``-b1 / w1``,
    half of them within 1 of offset 0, so that f starts nearly linear at a distance.

    Examples
    --------
    >>> import numpy as np
    >>> init_offset_mlp(0, 2, slopes=[1.0, 0.5])(np.asarray([[-2.0, 4.0]]))
    array([[[-2., -4.]],
           [[-1., -2.]]], dtype=float32)
    """
    w1, b1, w2, b2 = _two_layers(seed, 1, heads, hidden, dtype)
    f = OffsetMLP(w1[0, :], b1, w2, b2)
    if slopes is None:
        return f
    units = xp.asarray([1.0, -1.0], dtype=dtype)
    return OffsetMLP(*_prior(f.w1, units, f, slopes))


def init_edge_mlp(
    seed: Any,
    heads: int,
    *,
    hidden: int = 32,
    slopes: Sequence[float] | Float[Array, "H"] | None = None,
    dtype: Any = "float32",
) -> EdgeMLP:
    """One axis of a box bias: random, or a penalty that grows with the distance outside the box.

    Parameters
    ----------
    seed : int or numpy.random.Generator
    heads : int
    hidden : int
        At least 2 with slopes.
    slopes : sequence of float, one per head, optional
        Start as ``-slopes_h (relu(x0 - c) + relu(c - x1))``: 0 within the box, a log-prior that falls off
        outside.
    dtype : dtype
        A floating dtype of NumPy.

    Returns
    -------
    EdgeMLP

    Raises
    ------
    ValueError
        If a size is not positive, or the slopes do not fit (IA-X-33).

    Notes
    -----
    Section 6.2 of arXiv 2509.26015.

    Examples
    --------
    >>> import numpy as np
    >>> edges = np.asarray([[[1.0, 4.0], [-1.0, 2.0], [-5.0, -2.0]]])  # a column before, in and after the box
    >>> init_edge_mlp(0, 1, slopes=[3.0])(edges) + 0.0
    array([[[-3.,  0., -6.]]], dtype=float32)
    """
    f = EdgeMLP(*_two_layers(seed, 2, heads, hidden, dtype))
    if slopes is None:
        return f
    units = xp.asarray([[1.0, 0.0], [0.0, -1.0]], dtype=dtype)  # x0 - c, and -(x1 - c)
    return EdgeMLP(*_prior(f.w1, units, f, slopes))


def init_box_mlp(
    seed: Any,
    heads: int,
    *,
    hidden: int = 32,
    slopes: Sequence[float] | Float[Array, "H"] | None = None,
    dtype: Any = "float32",
) -> BoxMLP:
    """A box bias, both axes by :func:`init_edge_mlp`.

    Parameters
    ----------
    seed : int or numpy.random.Generator
    heads, hidden, slopes, dtype
        As in :func:`init_edge_mlp`.

    Returns
    -------
    BoxMLP

    Raises
    ------
    ValueError
        If a size is not positive, or the slopes do not fit (IA-X-33).

    Notes
    -----
    Section 6.2 of arXiv 2509.26015. Measured on small detection tasks, the prior was needed: from a
    random start the box bias did worse than none.

    Examples
    --------
    >>> init_box_mlp(0, 4, hidden=8).y.w1.shape
    (2, 8)
    """
    rng = random_generator(seed)
    x, y = (init_edge_mlp(rng, heads, hidden=hidden, slopes=slopes, dtype=dtype) for _ in range(2))
    return BoxMLP(x, y)


def _two_layers(seed: Any, inputs: int, heads: int, hidden: int, dtype: Any) -> tuple[Array, ...]:
    check_sizes(heads=heads, hidden=hidden)
    rng = random_generator(seed)
    return (*init_linear(rng, inputs, hidden, dtype=dtype), *init_linear(rng, hidden, heads, dtype=dtype))


def _prior(w1: Array, units: Array, f: OffsetMLP | EdgeMLP, slopes: Any) -> tuple[Array, ...]:
    """Parameters of f whose first two hidden units are given, and which alone reach the output."""
    hidden, heads = f.w2.shape
    slopes = xp.asarray(slopes, dtype=f.w2.dtype)
    if slopes.shape != (heads,):
        raise ValueError(f"`slopes` must have shape (heads,) = ({heads},); got {slopes.shape} [IA-X-33]")
    if hidden < 2:
        raise ValueError(f"`hidden` must be at least 2 with slopes; got {hidden} [IA-X-33]")
    w1 = xp.concat([units, w1[..., 2:]], axis=-1)
    b1 = xp.concat([xp.zeros_like(f.b1[:2]), f.b1[2:]])
    w2 = xp.concat([xp.stack([-slopes, -slopes]), xp.zeros_like(f.w2[2:])])
    return w1, b1, w2, xp.zeros_like(f.b2)
