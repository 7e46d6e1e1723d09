"""Initialisers: from a seed to parameters as NumPy arrays.

Random numbers are not in the array API standard, so NumPy draws them; :func:`ia_core.to_library` moves a
whole tree of them to another library. A seed is anything that ``numpy.random.default_rng`` takes: an
integer gives the same parameters every time (for one version of NumPy), a Generator is drawn from and
moves on.

====================  =================================================  ============================
initialiser           scale                                              starts as
====================  =================================================  ============================
init_linear           uniform within 1/sqrt(d_in), bias too              a random map
init_layer_norm       weight 1, bias 0                                   the plain normalisation
init_feed_forward     as init_linear, layer by layer                     a random map
init_multi_head       as init_linear; the output's d_in is H * Dv        random maps
====================  =================================================  ============================
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from ._heads import MultiHead
from ._layers import FeedForward, LayerNorm, Linear

if TYPE_CHECKING:
    from ._arrays import Array

__all__ = [
    "check_sizes",
    "init_feed_forward",
    "init_layer_norm",
    "init_linear",
    "init_multi_head",
    "normal",
    "random_generator",
]


def init_linear(
    seed: Any, inputs: int, outputs: int | tuple[int, ...], *, bias: bool = True, dtype: Any = "float32"
) -> Linear:
    """A random affine map: weight and bias uniform within ``1 / sqrt(inputs)`` of 0.

    Parameters
    ----------
    seed : int or numpy.random.Generator
    inputs : int
    outputs : int or tuple of int
        The axes after the first, for example (heads, head width).
    bias : bool
    dtype : dtype
        A floating dtype of NumPy.

    Returns
    -------
    Linear

    Raises
    ------
    ValueError
        If a size is not positive (IA-X-33).

    Notes
    -----
    For unit-variance inputs every output has variance 1/3: the customary default of linear layers.

    Examples
    --------
    >>> params = init_linear(0, 4, (2, 3))
    >>> params.weight.shape, params.bias.shape, str(params.weight.dtype)
    ((4, 2, 3), (2, 3), 'float32')
    """
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    check_sizes(inputs=inputs, **{f"outputs[{axis}]": size for axis, size in enumerate(outputs)})
    rng = random_generator(seed)
    weight = _uniform(rng, (inputs, *outputs), inputs, dtype)
    return Linear(weight, _uniform(rng, outputs, inputs, dtype) if bias else None)


def init_layer_norm(width: int, *, dtype: Any = "float32") -> LayerNorm:
    """The plain normalisation: weight 1, bias 0.

    Parameters
    ----------
    width : int
    dtype : dtype
        A floating dtype of NumPy.

    Returns
    -------
    LayerNorm

    Raises
    ------
    ValueError
        If the width is not positive (IA-X-33).

    Examples
    --------
    >>> init_layer_norm(2)
    LayerNorm(weight=array([1., 1.], dtype=float32), bias=array([0., 0.], dtype=float32))
    """
    check_sizes(width=width)
    return LayerNorm(np.ones(width, dtype=dtype), np.zeros(width, dtype=dtype))


def init_feed_forward(
    seed: Any, width: int, hidden: int, *, outputs: int | None = None, dtype: Any = "float32"
) -> FeedForward:
    """A random feed-forward network; each layer as :func:`init_linear`.

    Parameters
    ----------
    seed : int or numpy.random.Generator
    width, hidden : int
    outputs : int, optional
        ``width`` by default.
    dtype : dtype
        A floating dtype of NumPy.

    Returns
    -------
    FeedForward

    Raises
    ------
    ValueError
        If a size is not positive (IA-X-33).

    Examples
    --------
    >>> init_feed_forward(0, 4, 8).w1.shape
    (4, 8)
    """
    rng = random_generator(seed)
    first = init_linear(rng, width, hidden, dtype=dtype)
    return FeedForward(*first, *init_linear(rng, hidden, width if outputs is None else outputs, dtype=dtype))


def init_multi_head(
    seed: Any,
    width: int,
    heads: int,
    *,
    key_heads: int | None = None,
    head_width: int | None = None,
    value_width: int | None = None,
    conditioning_width: int | None = None,
    content_width: int | None = None,
    outputs: int | None = None,
    project_query: bool = True,
    project_output: bool = True,
    bias: bool = True,
    dtype: Any = "float32",
) -> MultiHead:
    """Random projections of multi-head attention; each as :func:`init_linear`.

    Parameters
    ----------
    seed : int or numpy.random.Generator
    width, heads : int
        d of the queries, and H.
    key_heads : int, optional
        Hk, of which H is a multiple; H by default.
    head_width, value_width : int, optional
        D and Dv; ``width / heads`` by default.
    conditioning_width, content_width, outputs : int, optional
        d_x, d_y and d_out; ``width`` by default.
    project_query, project_output, bias : bool
        Without: None in its place. Without a query projection, ``width`` must be ``heads * head_width``.
    dtype : dtype
        A floating dtype of NumPy.

    Returns
    -------
    MultiHead

    Raises
    ------
    ValueError
        If a size is not positive, or the sizes do not divide (IA-X-33).

    Examples
    --------
    >>> params = init_multi_head(0, 8, 4, key_heads=2)
    >>> params.query.weight.shape, params.key.weight.shape, params.output.weight.shape
    ((8, 4, 2), (8, 2, 2), (4, 2, 8))
    """
    Hk = heads if key_heads is None else key_heads
    check_sizes(width=width, heads=heads, key_heads=Hk)
    if heads % Hk:
        raise ValueError(f"`heads` must be a multiple of key_heads = {Hk}; got {heads} [IA-X-33]")
    if None in (head_width, value_width) and width % heads:
        raise ValueError(f"`width` must be a multiple of heads = {heads}; got {width} [IA-X-33]")
    D = width // heads if head_width is None else head_width
    Dv = width // heads if value_width is None else value_width
    if not project_query and width != heads * D:
        raise ValueError(
            f"`width` must be heads * head_width = {heads * D}, as there is no query projection; got {width} [IA-X-33]"
        )
    rng, options = random_generator(seed), {"bias": bias, "dtype": dtype}
    widths = (conditioning_width, content_width, outputs)
    d_x, d_y, d_out = (width if size is None else size for size in widths)
    query = init_linear(rng, width, (heads, D), **options) if project_query else None
    key = init_linear(rng, d_x, (Hk, D), **options)
    value = init_linear(rng, d_y, (Hk, Dv), **options)
    if not project_output:
        return MultiHead(query, key, value, None)
    flat = init_linear(rng, heads * Dv, d_out, **options)
    return MultiHead(query, key, value, flat._replace(weight=flat.weight.reshape(heads, Dv, d_out)))


def random_generator(seed: Any) -> Any:
    """A generator of NumPy from a seed, or the generator given."""
    return np.random.default_rng(seed)


def normal(rng: Any, shape: tuple[int, ...], dtype: Any) -> Array:
    """Standard normal numbers."""
    return rng.standard_normal(shape).astype(dtype)


def check_sizes(**sizes: Any) -> None:
    """Refuse sizes that are not positive integers (IA-X-33)."""
    for name, size in sizes.items():
        if not isinstance(size, int | np.integer) or isinstance(size, bool) or size < 1:
            raise ValueError(f"`{name}` must be a positive integer; got {size!r} [IA-X-33]")


def _uniform(rng: Any, shape: tuple[int, ...], inputs: int, dtype: Any) -> Array:
    reach = 1.0 / math.sqrt(inputs)
    return rng.uniform(-reach, reach, shape).astype(dtype)
