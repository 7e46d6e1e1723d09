"""Initialisers of position updates, blocks and the three transformers.

==================  ==========================================================================
part                starts as
==================  ==========================================================================
tables, m           standard normal: tokens, position rows, query embedding
linear maps         as init_linear
norms               the plain normalisation
f of each layer     as init_offset_mlp without slopes, on raw offsets
g of each layer     as init_update: no movement. The last layer has none
==================  ==========================================================================
"""

from __future__ import annotations

from typing import Any, NamedTuple

import array_api_compat.numpy as numpy_namespace

from ._arrays import Namespace
from ._blocks import TransformerBlock
from ._init_bias import init_offset_mlp
from ._params import (
    check_sizes,
    init_feed_forward,
    init_layer_norm,
    init_linear,
    init_multi_head,
    normal,
    random_generator,
)
from ._transformer import PointerReadout, PooledReadout, TokenReadout, Transformer, TransformerLayer
from ._updates import BoxUpdate, PositionAwareUpdate, PositionUpdate, RowUpdate, ScalarUpdate

__all__ = [
    "TransformerOptions",
    "init_cross_transformer",
    "init_indirect_transformer",
    "init_naive_transformer",
    "init_transformer_block",
    "init_update",
]

xp: Namespace = numpy_namespace

_READOUTS: dict[str, Any] = {"token": TokenReadout, "pointer": PointerReadout, "pooled": PooledReadout}


class TransformerOptions(NamedTuple):
    """Sizes and choices of a transformer; by default those of the paper's sorting task.

    Attributes
    ----------
    vocabulary : int
    conditioning_length, content_length : int
        Rows of the position tables, the longest sequences that the model takes.
    queries : int, optional
        M, where a selection chooses fewer queries than content positions; content_length by default.
    classes : int, optional
        Of the token and the pooled readout; content_length by default.
    layers, heads, width, feed_forward : int
        The paper gives 6 layers, 4 heads and width 128.
    self_attention : bool
        Whether the queries of a block also attend to one another.
    readout : str
        ``"token"`` (classes for every query), ``"pointer"`` (one logit for every query) or ``"pooled"``.
    shared_embedding : bool
        One row m for all queries in place of one for each.
    bias_hidden : int
        Hidden units of each f.
    update : str or None
        ``"scalar"``, ``"position-aware"``, ``"row"``, or None for positions that stay.
    update_hidden : int
        Hidden units of each g.

    Examples
    --------
    >>> TransformerOptions(readout="pointer").width
    128
    """

    vocabulary: int = 10
    conditioning_length: int = 10
    content_length: int = 10
    queries: int | None = None
    classes: int | None = None
    layers: int = 6
    heads: int = 4
    width: int = 128
    feed_forward: int = 256
    self_attention: bool = False
    readout: str = "token"
    shared_embedding: bool = False
    bias_hidden: int = 32
    update: str | None = "scalar"
    update_hidden: int = 32


def init_indirect_transformer(
    seed: Any, options: TransformerOptions | None = None, *, dtype: Any = "float32"
) -> Transformer:
    """Parameters of :func:`ia_core.indirect_transformer`.

    Parameters
    ----------
    seed : int or numpy.random.Generator
    options : TransformerOptions, optional
    dtype : dtype
        A floating dtype of NumPy.

    Returns
    -------
    Transformer

    Raises
    ------
    ValueError
        If a size or a choice is not possible (IA-X-33).

    Notes
    -----
    Section 6.1 of arXiv 2509.26015. For the sorting task a shared embedding served better, for retrieval one
    for each query.

    Examples
    --------
    >>> params = init_indirect_transformer(0, TransformerOptions(layers=2, width=8, update="row"))
    >>> params.layers[0].update.b2.shape
    (10,)
    """
    return _transformer(seed, options, dtype, bias=True, content_positions=True)


def init_naive_transformer(
    seed: Any, options: TransformerOptions | None = None, *, dtype: Any = "float32"
) -> Transformer:
    """Parameters of :func:`ia_core.naive_transformer`.

    Parameters
    ----------
    seed : int or numpy.random.Generator
    options : TransformerOptions, optional
        Those of the bias and of the update have no effect.
    dtype : dtype
        A floating dtype of NumPy.

    Returns
    -------
    Transformer

    Raises
    ------
    ValueError
        If a size or a choice is not possible (IA-X-33).

    Notes
    -----
    Section 6.1 of arXiv 2509.26015.

    Examples
    --------
    >>> init_naive_transformer(0, TransformerOptions(layers=1, width=8)).layers[0].bias is None
    True
    """
    return _transformer(seed, options, dtype, bias=False, content_positions=True)


def init_cross_transformer(
    seed: Any, options: TransformerOptions | None = None, *, bias: bool = False, dtype: Any = "float32"
) -> Transformer:
    """Parameters of :func:`ia_core.cross_transformer`.

    Parameters
    ----------
    seed : int or numpy.random.Generator
    options : TransformerOptions, optional
        Those of the bias and of the update have an effect with ``bias`` only.
    bias : bool
        Whether cross-attention is given the bias and the updates of indirect attention.
    dtype : dtype
        A floating dtype of NumPy.

    Returns
    -------
    Transformer

    Raises
    ------
    ValueError
        If a size or a choice is not possible (IA-X-33).

    Notes
    -----
    Section 6.1 of arXiv 2509.26015.

    Examples
    --------
    >>> init_cross_transformer(0, TransformerOptions(layers=1, width=8)).content_positions is None
    True
    """
    return _transformer(seed, options, dtype, bias=bias, content_positions=False)


def init_transformer_block(
    seed: Any,
    width: int,
    heads: int,
    *,
    feed_forward: int | None = None,
    conditioning_width: int | None = None,
    content_width: int | None = None,
    self_attention: bool = False,
    dtype: Any = "float32",
) -> TransformerBlock:
    """A random block, with its parts as their own initialisers give them.

    Parameters
    ----------
    seed : int or numpy.random.Generator
    width, heads : int
    feed_forward : int, optional
        Hidden units of the feed-forward network; ``2 * width`` by default.
    conditioning_width, content_width : int, optional
        d_x and d_y; ``width`` by default.
    self_attention : bool
    dtype : dtype
        A floating dtype of NumPy.

    Returns
    -------
    TransformerBlock

    Raises
    ------
    ValueError
        If a size is not positive, or width is no multiple of heads (IA-X-33).

    Examples
    --------
    >>> init_transformer_block(0, 8, 2).feed_forward.w1.shape
    (8, 16)
    """
    rng = random_generator(seed)
    hidden = 2 * width if feed_forward is None else feed_forward
    return TransformerBlock(
        attention=init_multi_head(
            rng,
            width,
            heads,
            conditioning_width=conditioning_width,
            content_width=content_width,
            dtype=dtype,
        ),
        attention_norm=init_layer_norm(width, dtype=dtype),
        feed_forward=init_feed_forward(rng, width, hidden, dtype=dtype),
        feed_forward_norm=init_layer_norm(width, dtype=dtype),
        self_attention=init_multi_head(rng, width, heads, dtype=dtype) if self_attention else None,
        self_attention_norm=init_layer_norm(width, dtype=dtype) if self_attention else None,
    )


def init_update(
    seed: Any,
    kind: str,
    width: int,
    *,
    hidden: int = 32,
    heads: int | None = None,
    values: int | None = None,
    dtype: Any = "float32",
) -> PositionUpdate:
    """A position update g (P12) that moves nothing yet: its last layer is 0.

    Parameters
    ----------
    seed : int or numpy.random.Generator
    kind : str
        ``"scalar"``, ``"position-aware"``, ``"row"`` or ``"box"``.
    width, hidden : int
    heads : int, optional
        H, for ``"position-aware"``.
    values : int, optional
        N, for ``"row"``.
    dtype : dtype
        A floating dtype of NumPy.

    Returns
    -------
    ScalarUpdate, PositionAwareUpdate, RowUpdate or BoxUpdate

    Raises
    ------
    ValueError
        If the kind is unknown, or a size that it needs is missing or not positive (IA-X-33).

    Notes
    -----
    Equation P12 of arXiv 2509.26015. Where w2 is 0, w1 has no gradient until the first step has moved w2.

    Examples
    --------
    >>> type(init_update(0, "row", 8, values=10)).__name__
    'RowUpdate'
    """
    outputs = {"scalar": 1, "position-aware": 1, "row": values, "box": 4}
    if kind not in outputs:
        raise ValueError(f"`kind` must be one of {', '.join(outputs)}; got {kind!r} [IA-X-33]")
    needed = {"values": values} if kind == "row" else {"heads": heads} if kind == "position-aware" else {}
    check_sizes(width=width, hidden=hidden, **needed)
    first = init_linear(seed, width, hidden, dtype=dtype)
    last = (xp.zeros((hidden, outputs[kind]), dtype=dtype), xp.zeros(outputs[kind], dtype=dtype))
    if kind == "position-aware":
        return PositionAwareUpdate(*first, *last, xp.zeros(heads, dtype=dtype))
    if kind == "row":
        return RowUpdate(*first, *last)
    return BoxUpdate(*first, *last) if kind == "box" else ScalarUpdate(*first, *last)


def _transformer(
    seed: Any, options: TransformerOptions | None, dtype: Any, *, bias: bool, content_positions: bool
) -> Transformer:
    options = TransformerOptions() if options is None else options
    queries = options.content_length if options.queries is None else options.queries
    classes = options.content_length if options.classes is None else options.classes
    _check_options(options, queries, classes)
    rng, d = random_generator(seed), options.width
    values = options.content_length if content_positions else options.conditioning_length
    outputs = 1 if options.readout == "pointer" else classes
    return Transformer(
        tokens=normal(rng, (options.vocabulary, d), dtype),
        conditioning_positions=normal(rng, (options.conditioning_length, d), dtype),
        content_positions=normal(rng, (options.content_length, d), dtype) if content_positions else None,
        query_embedding=normal(rng, (1 if options.shared_embedding else queries, d), dtype),
        query_content=init_linear(rng, d, d, dtype=dtype),
        layers=tuple(
            _layer(rng, options, dtype, bias=bias, values=None if last else values)
            for last in (number == options.layers - 1 for number in range(options.layers))
        ),
        norm=init_layer_norm(d, dtype=dtype),
        readout=_READOUTS[options.readout](*init_linear(rng, d, outputs, dtype=dtype)),
    )


def _layer(rng: Any, options: TransformerOptions, dtype: Any, *, bias: bool, values: int | None) -> TransformerLayer:
    """One layer; without values, one that no update follows."""
    heads, hidden = options.heads, options.feed_forward
    block = init_transformer_block(
        rng, options.width, heads, feed_forward=hidden, self_attention=options.self_attention, dtype=dtype
    )
    if not bias:
        return TransformerLayer(block)
    f = init_offset_mlp(rng, heads, hidden=options.bias_hidden, dtype=dtype)
    if options.update is None or values is None:
        return TransformerLayer(block, f)
    sizes = {"hidden": options.update_hidden, "heads": heads, "values": values}
    return TransformerLayer(block, f, init_update(rng, options.update, options.width, **sizes, dtype=dtype))


def _check_options(options: TransformerOptions, queries: int, classes: int) -> None:
    choices = ("self_attention", "readout", "shared_embedding", "update", "queries", "classes")
    sizes = {name: size for name, size in options._asdict().items() if name not in choices}
    check_sizes(**sizes, queries=queries, classes=classes)
    if options.readout not in _READOUTS:
        raise ValueError(f"`readout` must be one of {', '.join(_READOUTS)}; got {options.readout!r} [IA-X-33]")
    if options.update not in (None, "scalar", "position-aware", "row"):
        raise ValueError(f"`update` must be None, scalar, position-aware or row; got {options.update!r} [IA-X-33]")
