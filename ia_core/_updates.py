"""Position updates between layers: ``P^(l+1) = g(o^(l))`` (P12).

====================  ====================  ==============================================
update                moves                 equation
====================  ====================  ==============================================
ScalarUpdate          p (..., M)            p <- p + g(o)
PositionAwareUpdate   p (..., M)            p <- p + g(o) + sum_h w_h (E_h - p)
RowUpdate             P (..., M, N)         P <- P + g(o), or P <- g(o)
BoxUpdate             boxes (..., M, 4)     b <- sigmoid(inverse_sigmoid(b) + g(o))
====================  ====================  ==============================================

In each, g is a two-layer ReLU network of the layer's output o (..., M, d): ``g(o) = relu(o w1 + b1) w2 +
b2`` with w1 (d, hidden), b1 (hidden,), w2 (hidden, k), b2 (k,) and k = 1, 1, N, 4. Where w2 and b2 are 0,
g moves nothing. Positions are kept in the working dtype: in half precision they could not count beyond
256 or 2048.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from ._arrays import Array, array_namespace, check_floating, dtype_name, namespace_of, widen
from ._bias import check_parameters, two_layers
from ._layers import check_input
from ._positions import is_integer

if TYPE_CHECKING:
    from jaxtyping import Float, Real

__all__ = [
    "BoxUpdate",
    "PositionAwareUpdate",
    "PositionUpdate",
    "RowUpdate",
    "ScalarUpdate",
    "box_update",
    "position_aware_update",
    "row_update",
    "scalar_update",
]


class ScalarUpdate(NamedTuple):
    """The map g for :func:`scalar_update`: from a query's output to a step of its reference position.

    Attributes
    ----------
    w1 : array of shape (d, hidden)
    b1 : array of shape (hidden,)
    w2 : array of shape (hidden, 1)
    b2 : array of shape (1,)

    Examples
    --------
    >>> from ia_core import init_update
    >>> init_update(0, "scalar", 8).w2.any()
    np.False_
    """

    w1: Float[Array, "d hidden"]
    b1: Float[Array, "hidden"]
    w2: Float[Array, "hidden 1"]
    b2: Float[Array, "1"]


class PositionAwareUpdate(NamedTuple):
    """The map g for :func:`position_aware_update`, and the weights of where attention landed.

    Attributes
    ----------
    w1 : array of shape (d, hidden)
    b1 : array of shape (hidden,)
    w2 : array of shape (hidden, 1)
    b2 : array of shape (1,)
    pull : array of shape (H,)
        w_h: 1 for one head and 0 for the others puts a query exactly where that head attended.

    Examples
    --------
    >>> from ia_core import init_update
    >>> init_update(0, "position-aware", 8, heads=2).pull
    array([0., 0.], dtype=float32)
    """

    w1: Float[Array, "d hidden"]
    b1: Float[Array, "hidden"]
    w2: Float[Array, "hidden 1"]
    b2: Float[Array, "1"]
    pull: Float[Array, "H"]


class RowUpdate(NamedTuple):
    """The map g for :func:`row_update`: from a query's output to its whole row of relative positions.

    Attributes
    ----------
    w1 : array of shape (d, hidden)
    b1 : array of shape (hidden,)
    w2 : array of shape (hidden, N)
    b2 : array of shape (N,)

    Examples
    --------
    >>> from ia_core import init_update
    >>> init_update(0, "row", 8, values=5).b2.shape
    (5,)
    """

    w1: Float[Array, "d hidden"]
    b1: Float[Array, "hidden"]
    w2: Float[Array, "hidden N"]
    b2: Float[Array, "N"]


class BoxUpdate(NamedTuple):
    """The map g for :func:`box_update`: from a query's output to a step of its box's four coordinates.

    Attributes
    ----------
    w1 : array of shape (d, hidden)
    b1 : array of shape (hidden,)
    w2 : array of shape (hidden, 4)
    b2 : array of shape (4,)

    Examples
    --------
    >>> from ia_core import init_update
    >>> init_update(0, "box", 8).b2.shape
    (4,)
    """

    w1: Float[Array, "d hidden"]
    b1: Float[Array, "hidden"]
    w2: Float[Array, "hidden 4"]
    b2: Float[Array, "4"]


PositionUpdate: TypeAlias = ScalarUpdate | PositionAwareUpdate | RowUpdate | BoxUpdate


def scalar_update(
    params: ScalarUpdate, positions: Real[Array, "... M"], output: Float[Array, "... M d"]
) -> Float[Array, "... M"]:
    """Move each query's reference position: ``p <- p + g(o)`` (P12).

    Parameters
    ----------
    params : ScalarUpdate
    positions : array of shape (..., M)
        Integer or real; leading axes broadcast with output's.
    output : array of shape (..., M, d)
        The layer's output o, in the parameters' dtype.

    Returns
    -------
    array of shape (..., M)
        In the working dtype; the next bias is f of the offsets from it.

    Raises
    ------
    TypeError, ValueError
        If the parameters do not fit together (IA-X-14), or an input does not fit them (IA-X-30).

    Notes
    -----
    Equation P12 of arXiv 2509.26015, one offset for a whole row: ``P_ij = j - p_i``. It cannot change the
    shape of the row, only shift it, and nothing keeps p within the values: f must say what holds beyond
    them. g sees what was attended, not where; :func:`position_aware_update` sees both.

    Examples
    --------
    >>> import numpy as np
    >>> params = ScalarUpdate(np.eye(1), np.zeros(1), np.asarray([[2.0]]), np.zeros(1))
    >>> scalar_update(params, np.asarray([0, 1]), np.asarray([[3.0], [-3.0]]))
    array([6., 1.])
    """
    step = _g("ScalarUpdate", params, output, 1)[..., 0]  # (..., M)
    return _positions("positions", positions, step) + step


def position_aware_update(
    params: PositionAwareUpdate,
    positions: Real[Array, "... M"],
    output: Float[Array, "... M d"],
    landing: Float[Array, "... H M"],
) -> Float[Array, "... M"]:
    """Move each query by what it read and by where it read: ``p <- p + g(o) + sum_h w_h (E_h - p)`` (P12).

    Parameters
    ----------
    params : PositionAwareUpdate
    positions : array of shape (..., M)
        Integer or real; leading axes broadcast with output's.
    output : array of shape (..., M, d)
        The layer's output o, in the parameters' dtype.
    landing : array of shape (..., H, M)
        ``E_h = sum_j alpha_hij position_j``, which :func:`ia_core.multi_head_attention` gives for
        ``value_positions``; in the working dtype.

    Returns
    -------
    array of shape (..., M)
        In the working dtype.

    Raises
    ------
    TypeError, ValueError
        If the parameters do not fit together (IA-X-14), or an input does not fit them (IA-X-30).

    Notes
    -----
    P12 of arXiv 2509.26015 gives g the layer's output alone. Where attention landed is in that output
    only as far as the values tell their positions; here it enters as a linear term, exactly. The expected
    position says little where a head attends to two distant places at once: it then lies between them.

    Examples
    --------
    >>> import numpy as np
    >>> g = np.zeros((1, 1)), np.zeros(1), np.zeros((1, 1)), np.zeros(1)
    >>> params = PositionAwareUpdate(*g, pull=np.asarray([1.0, 0.0]))
    >>> landing = np.asarray([[4.5, 2.0], [9.0, 9.0]])
    >>> position_aware_update(params, np.asarray([0, 1]), np.zeros((2, 1)), landing)
    array([4.5, 2. ])
    """
    step = _g("PositionAwareUpdate", params, output, 1)[..., 0]  # (..., M)
    positions = _positions("positions", positions, step)
    H = params.pull.shape[0]
    xp = namespace_of(output=output, landing=landing)
    if dtype_name(landing.dtype) != dtype_name(step.dtype):
        raise TypeError(f"`landing` must be {dtype_name(step.dtype)}; got {dtype_name(landing.dtype)} [IA-X-30]")
    wanted = (*step.shape[:-1], H, step.shape[-1])
    if tuple(landing.shape) != wanted:
        raise ValueError(f"`landing` must have shape {wanted}; got {tuple(landing.shape)} [IA-X-30]")
    away = landing - positions[..., None, :]  # (..., H, M)
    return positions + step + xp.sum(widen(params.pull)[:, None] * away, axis=-2)


def row_update(
    params: RowUpdate,
    output: Float[Array, "... M d"],
    relative: Real[Array, "... M N"] | None = None,
) -> Float[Array, "... M N"]:
    """New relative positions for each whole row: ``P <- P + g(o)``, or ``P <- g(o)`` (P12).

    Parameters
    ----------
    params : RowUpdate
    output : array of shape (..., M, d)
        The layer's output o, in the parameters' dtype.
    relative : array of shape (..., M, N), optional
        The present relative positions P. Without them the result is g(o), the paper's equation to the letter.

    Returns
    -------
    array of shape (..., M, N)
        In the working dtype; the next bias is the matrix ``f(P)``.

    Raises
    ------
    TypeError, ValueError
        If the parameters do not fit together (IA-X-14), or an input does not fit them (IA-X-30).

    Notes
    -----
    Equation P12 of arXiv 2509.26015 with all of P free. N is fixed by the parameters, P is a full M x N
    matrix (no lookup or slice makes f(P) cheaper), and its rows need not be offsets from any position.
    Adding to the present P lets the first layer's ``j - i`` stand where g starts at 0; g(o) alone would
    start with all of P at 0.

    Examples
    --------
    >>> import numpy as np
    >>> params = RowUpdate(np.eye(1), np.zeros(1), np.asarray([[1.0, -1.0]]), np.zeros(2))
    >>> row_update(params, np.asarray([[0.5]]), np.asarray([[0, 1]]))
    array([[0.5, 0.5]])
    >>> row_update(params, np.asarray([[0.5]]))
    array([[ 0.5, -0.5]])
    """
    N = params.b2.shape[-1] if params.b2.ndim else 0
    step = _g("RowUpdate", params, output, N)  # (..., M, N)
    return step if relative is None else _positions("relative", relative, step) + step


def box_update(
    params: BoxUpdate,
    boxes: Float[Array, "... M 4"],
    output: Float[Array, "... M d"],
    *,
    eps: float = 1e-5,
) -> Float[Array, "... M 4"]:
    """Refine each query's box: ``b <- sigmoid(inverse_sigmoid(b) + g(o))``, coordinate by coordinate (P12).

    Parameters
    ----------
    params : BoxUpdate
    boxes : array of shape (..., M, 4)
        ``x0, y0, x1, y1`` as fractions of the image's sides, or any four numbers in [0, 1].
    output : array of shape (..., M, d)
        The layer's output o, in the parameters' dtype.
    eps : float
        Coordinates are clipped to [eps, 1 - eps] before the inverse sigmoid, which is infinite at 0 and 1.

    Returns
    -------
    array of shape (..., M, 4)
        Between 0 and 1, in the working dtype.

    Raises
    ------
    TypeError, ValueError
        If the parameters do not fit together (IA-X-14), an input does not fit them, or eps is not in (0, 0.5)
        (IA-X-30).

    Notes
    -----
    Section 6.2 of arXiv 2509.26015, after Deformable DETR (arXiv 2010.04159). The sigmoid is strictly
    between 0 and 1 until it rounds: beyond about 17 (float32) or 37 (float64) it is 1, and the next
    refinement clips it. A clipped coordinate has gradient 0 with respect to the present box, not with
    respect to g. Nothing keeps x0 below x1: a box may turn inside out. Multiply by the image's size for
    the offsets of a Grid in pixels.

    Examples
    --------
    >>> import numpy as np
    >>> params = BoxUpdate(np.eye(1), np.zeros(1), np.asarray([[0.0, 0.0, 2.0, 0.0]]), np.zeros(4))
    >>> box_update(params, np.asarray([[0.25, 0.5, 0.5, 0.75]]), np.ones((1, 1))).round(3)
    array([[0.25 , 0.5  , 0.881, 0.75 ]])
    """
    if not 0.0 < eps < 0.5:
        raise ValueError(f"`eps` must lie between 0 and 0.5; got {eps} [IA-X-30]")
    step = _g("BoxUpdate", params, output, 4)  # (..., M, 4)
    check_floating("boxes", boxes)
    return _sigmoid(_inverse_sigmoid(_positions("boxes", boxes, step), eps) + step)


def _g(owner: str, params: Any, output: Array, outputs: int) -> Array:
    """g(o) in the working dtype, (..., M, outputs)."""
    hidden = params.w1.shape[-1] if params.w1.ndim else 0
    shapes: dict[str, tuple[int | None, ...]] = {
        "w1": (None, hidden),
        "b1": (hidden,),
        "w2": (hidden, outputs),
        "b2": (outputs,),
        "pull": (None,),
    }
    check_parameters(owner, params, shapes)
    check_input("output", output, params.w1)
    if output.ndim < 2:
        raise ValueError(f"`output` must have the axes (..., M, d); got {tuple(output.shape)} [IA-X-30]")
    return two_layers(widen(output), widen(params.w1), widen(params.b1), widen(params.w2), widen(params.b2))


def _positions(name: str, positions: Array, step: Array) -> Array:
    """Positions in the step's dtype, if they broadcast to its shape."""
    xp = namespace_of(**{name: positions, "output": step})
    if not is_integer(positions):
        check_floating(name, positions)
        positions = widen(positions)
        kind, allowed = dtype_name(positions.dtype), dtype_name(step.dtype)
        if kind != allowed:
            raise TypeError(f"`{name}` must be integer or {allowed}; got {kind} [IA-X-30]")
    given, wanted = tuple(positions.shape), tuple(step.shape)
    ends = zip(reversed(given), reversed(wanted), strict=False)
    if len(given) > len(wanted) or any(size != 1 and size != want for size, want in ends):
        raise ValueError(f"`{name}` of shape {given} does not broadcast to {wanted} [IA-X-30]")
    return xp.astype(positions, step.dtype, copy=False)


def _inverse_sigmoid(x: Array, eps: float) -> Array:
    xp = array_namespace(x)
    x = xp.clip(x, eps, 1.0 - eps)
    return xp.log(x / (1.0 - x))


def _sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)) without overflow, and with the right gradient at 0, where that of abs is 0."""
    xp = array_namespace(x)
    small = xp.exp(xp.where(x >= 0.0, -x, x))  # exp(-|x|), at most 1
    return xp.where(x >= 0.0, 1.0, small) / (1.0 + small)
