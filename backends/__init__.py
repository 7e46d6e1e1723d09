"""The same operation on the fastest path that keeps the specification's rules.

Same signature, same numbers within rounding and same errors as ``ia_core.indirect_attention``, which is the
specification itself and never delegates. Importing this imports no framework.

A bias that is a function of one offset is evaluated as lines between knots, inside a kernel in C that the machine's
compiler makes on the first call that may take it (some seconds, once; kept in ``$IA_CORE_CACHE``, by default
``~/.cache/indirect-attention``). Where there is no compiler, or ``IA_CORE_NATIVE=0`` is set, other paths serve.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .._checks import check_call
from . import _registry
from ._registry import Explanation, Path, available, use_backend

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

    from .._arrays import Array
    from .._position_bias import PositionBias

__all__ = ["Explanation", "Path", "available", "explain", "indirect_attention", "use_backend"]


def indirect_attention(
    query: Float[Array, "... H M D"],
    key: Float[Array, "... Hk N D"],
    value: Float[Array, "... Hk N Dv"],
    *,
    bias: Float[Array, ...] | PositionBias | None = None,
    mask: Bool[Array, ...] | None = None,
    scale: float | None = None,
    return_lse: bool = False,
) -> Any:
    """Indirect attention (P11) on the fastest path that keeps every rule of the specification.

    Parameters
    ----------
    query, key, value, bias, mask, scale, return_lse
        As in :func:`ia_core.indirect_attention`.

    Returns
    -------
    output : array of shape (..., H, M, Dv)
    lse : array of shape (..., H, M), if asked for

    Raises
    ------
    TypeError, ValueError
        As :func:`ia_core.indirect_attention`, in the same words; and if :func:`use_backend` asks for a path
        that declines the call (IA-X-23).

    Notes
    -----
    Equation P11 of arXiv 2509.26015. PyTorch's fused kernel and the compiled one have first derivatives only, and
    autograd says so when it is asked for a second: take that under ``use_backend("torch-tiled")``. The transforms of
    ``torch.func`` take the other path by themselves. In JAX on the CPU second and forward derivatives take another path
    by themselves, unless ``jax.jit`` hides them from the call, or ``jax.linearize``, which looks like ``jax.grad`` from
    within: then, and for ``jax.export``, there is ``use_backend("jax-jit")``.

    Examples
    --------
    >>> import numpy as np
    >>> from ia_core import relative_positions
    >>> query, key = np.ones((1, 2, 4)), np.ones((1, 3, 4))
    >>> value = np.asarray([[[10.0], [20.0], [30.0]]])
    >>> bias = np.where(relative_positions(2, 3) == 1, 100.0, 0.0)
    >>> indirect_attention(query, key, value, bias=bias)
    array([[[20.],
            [30.]]])
    """
    if bias is None and mask is None and not return_lse:
        shortcut = _registry.shortcut(type(query))
        output = None if shortcut is None else shortcut(query, key, value, scale)
        if output is not None:
            return output
    call = check_call(query, key, value, bias, mask, scale)
    path = _registry.choose(call, _registry.named(query, key, value, bias, mask), return_lse)
    output, lse = _registry.load(path).attend(call, query, key, value, bias, mask)
    output = call.xp.astype(output, query.dtype, copy=False)  # the one rounding
    return (output, lse) if return_lse else output


def explain(
    query: Float[Array, "... H M D"],
    key: Float[Array, "... Hk N D"],
    value: Float[Array, "... Hk N Dv"],
    *,
    bias: Float[Array, ...] | PositionBias | None = None,
    mask: Bool[Array, ...] | None = None,
    scale: float | None = None,
    return_lse: bool = False,
) -> Explanation:
    """Which path :func:`indirect_attention` would take with these arguments, and why not another.

    Parameters
    ----------
    query, key, value, bias, mask, scale, return_lse
        As in :func:`ia_core.indirect_attention`; nothing is computed from them.

    Returns
    -------
    Explanation
        Prints as text.

    Raises
    ------
    TypeError, ValueError
        As :func:`indirect_attention`.

    Examples
    --------
    >>> import numpy as np
    >>> q = np.ones((1, 2, 4))
    >>> explain(q, q, q).path in ("numpy-native", "numpy-tiled")  # whether there is a C compiler
    True
    >>> class Tagged(np.ndarray):
    ...     pass
    >>> print(explain(q.view(Tagged), q, q))
    reference
      numpy-native declined: `query` is a Tagged, which may compute in its own way
      numpy-tiled declined: `query` is a Tagged, which may compute in its own way
    """
    call = check_call(query, key, value, bias, mask, scale)
    return _registry.explain_choice(call, _registry.named(query, key, value, bias, mask), return_lse)
